"""Kinds of branches, each written in three frameworks: which weights are zero."""

from __future__ import annotations

import os
from itertools import product
from types import SimpleNamespace

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from flax import nnx
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from idinit_ref.roles import infer_roles
from idinit_ref.roles.decide import decide

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
X = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
ROWS = np.array([0, 2])
MIX = np.tri(5, dtype="float32")


def torch_add_at(x, rows, y):
    return x.index_add(1, rows, y)


def torch_put(x, rows, y):
    out = x.clone()
    out[:, rows] = y
    return out


def keras_add_at(x, rows, y):
    return ops.transpose(
        tf.tensor_scatter_nd_add(
            ops.transpose(x, (1, 0, 2)), rows[:, None], ops.transpose(y, (1, 0, 2))
        ),
        (1, 0, 2),
    )


def torch_write(x, parts, step=1):
    """All parts along the last axis, written to new memory one after another."""
    out = torch.empty_like(x)
    for start, part in parts:
        out[..., start : start + step * part.shape[-1] : step] = part
    return out


def torch_cover(x, start, part):
    out = x.clone()
    out[..., start : start + part.shape[-1]] = part
    return out


def jax_write(x, parts, step=1):
    out = jnp.zeros_like(x)
    for start, part in parts:
        out = out.at[..., start : start + step * part.shape[-1] : step].set(part)
    return out


def keras_write(x, parts, step=1):
    out, write = ops.zeros_like(x), tf.raw_ops.TensorStridedSliceUpdate
    for start, part in parts:
        first = [0] * (len(x.shape) - 1) + [start]
        if step == 1:
            out = ops.slice_update(out, first, part)
        else:
            steps, end = [1] * (len(x.shape) - 1) + [step], (1 << len(x.shape)) - 1
            out = write(input=out, begin=first, end=first, strides=steps, value=part, end_mask=end)
    return out


def keras_put(x, rows, y):
    out = tf.tensor_scatter_nd_update(
        ops.transpose(x, (1, 0, 2)), rows[:, None], ops.transpose(y, (1, 0, 2))
    )
    return ops.transpose(out, (1, 0, 2))


def torch_tokens(x, rows, y):
    out = x.clone()
    out[rows] = y
    return out


def unrolled(step, state, rows):
    found = []
    for at in range(5):
        state, y = step(state, [row[at] for row in rows])
        found.append(y)
    return state, found


def keras_scan(step, state, rows):
    return tf.scan(lambda held, row: step(held[0], row), rows, (state, ops.zeros((3, 4))))


ops = keras.ops
TORCH = SimpleNamespace(
    relu=torch.relu, tanh=torch.tanh, abs=torch.abs, power=torch.pow, flip=lambda x: x.flip(1),
    cat=lambda xs: torch.cat(xs, -1), stack=torch.stack, halves=lambda x: x.chunk(2, -1),
    rows=lambda x: x[0, :, 0].argsort()[:2], pick=lambda x, rows: x[:, rows],
    clip=torch.clamp, where=torch.where, add_at=torch_add_at, put=torch_put,
    reshape=torch.reshape, spread=torch.broadcast_to, tile=torch.tile,
    repeat=torch.repeat_interleave, matrix=lambda m, x: torch.tensor(m) @ x,
    enlarge=lambda x: nn.functional.interpolate(x.mT, scale_factor=2.0).mT,
    image=lambda x: nn.functional.interpolate(
        x.permute(0, 3, 1, 2), (2, 2), mode="bilinear").permute(0, 2, 3, 1),
    unfold=lambda x, kernel: nn.functional.conv_transpose1d(
        x.mT, kernel.permute(1, 2, 0), stride=2).mT,
    zeros=torch.zeros_like, under=lambda xs: torch.cat(xs, 1),
    pairs=lambda x: x.unflatten(1, (-1, 2)).mean(2), cumsum=lambda x: x.cumsum(1),
    mixed=lambda x: torch.tensor(MIX) @ x, fft=lambda x: torch.fft.fft(torch.fft.ifft(x)).real,
    diag=lambda layer: torch.diag(layer.bias),
    moments=lambda x: torch.var_mean(x, -1, keepdim=True),
    resized=lambda x: nn.functional.interpolate(x[:, None, :3], (5, 4), mode="bilinear")[:, 0],
    blurred=lambda x: torch.conv1d(x.mT, torch.ones(4, 1, 3) / 3, padding=1, groups=4).mT,
    write=torch_write, unstack=torch.unbind, softmax=lambda x: x.softmax(-1),
    turn=lambda x: x.mT, sigmoid=torch.sigmoid, softplus=nn.functional.softplus, exp=torch.exp,
    take=lambda x, rows: x[rows], tokens=torch_tokens, cover=torch_cover,
    sin=torch.sin, sign=torch.sign, log1p=torch.log1p,
    state=torch.zeros, total=lambda x: x.sum(1), scan=unrolled,
    by_time=lambda x: x.transpose(0, 1),
    turned=lambda x: x.transpose(1, 2),
)  # fmt: skip
JAX = SimpleNamespace(
    relu=jax.nn.relu, tanh=jnp.tanh, abs=jnp.abs, power=jnp.power, flip=lambda x: jnp.flip(x, 1),
    cat=lambda xs: jnp.concatenate(xs, -1), stack=jnp.stack,
    halves=lambda x: jnp.split(x, 2, -1), rows=lambda x: jnp.argsort(x[0, :, 0])[:2],
    pick=lambda x, rows: x[:, rows], clip=jnp.clip, where=jnp.where,
    add_at=lambda x, rows, y: x.at[:, rows].add(y), put=lambda x, rows, y: x.at[:, rows].set(y),
    reshape=jnp.reshape, spread=jnp.broadcast_to, tile=jnp.tile,
    repeat=jnp.repeat, matrix=jnp.matmul,
    enlarge=lambda x: jax.image.resize(x, (3, 4, 4), "nearest"),
    image=lambda x: jax.image.resize(x, (3, 2, 2, 4), "bilinear"),
    unfold=lambda x, kernel: jax.lax.conv_transpose(
        x, kernel, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")),
    zeros=jnp.zeros_like, under=lambda xs: jnp.concatenate(xs, 1),
    pairs=lambda x: x.reshape(3, -1, 2, 4).mean(2), cumsum=lambda x: jnp.cumsum(x, 1),
    mixed=lambda x: jnp.asarray(MIX) @ x, fft=lambda x: jnp.fft.fft(jnp.fft.ifft(x)).real,
    diag=lambda layer: jnp.diag(layer.bias[...]),
    moments=lambda x: (jnp.var(x, -1, keepdims=True), jnp.mean(x, -1, keepdims=True)),
    resized=lambda x: jax.image.resize(x[:, :3], x.shape, "linear"),
    blurred=lambda x: jax.lax.conv_general_dilated(
        x, jnp.ones((3, 1, 4)) / 3, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=4),
    write=jax_write, unstack=jnp.unstack, softmax=jax.nn.softmax,
    turn=lambda x: jnp.swapaxes(x, -1, -2), sigmoid=jax.nn.sigmoid, softplus=jax.nn.softplus,
    exp=jnp.exp,
    take=lambda x, rows: x[rows], tokens=lambda x, rows, y: x.at[rows].set(y),
    cover=lambda x, k, part: x.at[..., k : k + 2].set(part),
    sin=jnp.sin, sign=jnp.sign, log1p=jnp.log1p,
    state=jnp.zeros, total=lambda x: x.sum(1), scan=jax.lax.scan,
    by_time=lambda x: x.swapaxes(0, 1),
    turned=lambda x: x.swapaxes(1, 2),
)  # fmt: skip
KERAS = SimpleNamespace(
    relu=ops.relu, tanh=ops.tanh, abs=ops.abs, power=ops.power, flip=lambda x: ops.flip(x, 1),
    cat=lambda xs: ops.concatenate(xs, -1), stack=ops.stack,
    halves=lambda x: ops.split(x, 2, -1), rows=lambda x: ops.argsort(x[0, :, 0])[:2],
    pick=lambda x, rows: ops.take(x, rows, 1), clip=tf.clip_by_value, where=ops.where,
    reshape=ops.reshape, spread=ops.broadcast_to, tile=ops.tile,
    repeat=ops.repeat, matrix=ops.matmul,
    enlarge=keras.layers.UpSampling1D(),
    image=lambda x: ops.image.resize(x, (2, 2)),
    unfold=lambda x, kernel: ops.conv_transpose(x, kernel, 2, data_format="channels_last"),
    zeros=ops.zeros_like, add_at=keras_add_at, put=keras_put,
    under=lambda xs: ops.concatenate(xs, 1),
    pairs=lambda x: ops.mean(ops.reshape(x, (3, -1, 2, 4)), 2), cumsum=lambda x: ops.cumsum(x, 1),
    mixed=lambda x: ops.matmul(MIX, x), fft=lambda x: ops.fft(ops.fft((x, 0 * x)))[0],
    diag=lambda layer: ops.diag(layer.bias),
    moments=lambda x: ops.moments(x, -1, keepdims=True)[::-1],
    resized=lambda x: ops.image.resize(x[:, :3, :, None], (5, 4))[..., 0],
    blurred=lambda x: ops.depthwise_conv(x, np.ones((3, 4, 1), "float32") / 3, 1, "same"),
    write=keras_write, unstack=ops.unstack, softmax=ops.softmax,
    turn=lambda x: ops.swapaxes(x, -1, -2), sigmoid=ops.sigmoid, softplus=ops.softplus,
    exp=ops.exp,
    take=lambda x, rows: ops.take(x, rows, 0),
    tokens=lambda x, rows, y: ops.scatter_update(x, rows[:, None], y),
    cover=lambda x, k, part: ops.slice_update(x, (0, 0, k), part),
    sin=ops.sin, sign=ops.sign, log1p=ops.log1p,
    state=ops.zeros, total=lambda x: ops.sum(x, 1), scan=keras_scan,
    by_time=lambda x: ops.transpose(x, (1, 0, 2)),
    turned=lambda x: ops.swapaxes(x, 1, 2),
)  # fmt: skip


# The models ---------------------------------------------------------------------------------------


def torch_roles(function, count, held, device=None):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(count)])
            for name, numbers in held.items():
                self.register_buffer(name, torch.tensor(numbers, dtype=torch.float32))

        def forward(self, x):
            buffers = SimpleNamespace(**dict(self.named_buffers()))
            return function(TORCH, self.layers, buffers, self.first(x))

    model = Model().to(device)
    return irt.trace(model, torch.tensor(X, device=device))


def jax_roles(function, count, held):
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first = nnx.Linear(4, 4, rngs=rngs)
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(count)])
            for name, numbers in held.items():
                setattr(self, name, nnx.BatchStat(jnp.asarray(numbers, "float32")))

        def __call__(self, x):
            buffers = SimpleNamespace(**{name: getattr(self, name)[...] for name in held})
            return function(JAX, self.layers, buffers, self.first(x))

    return irj.trace(Model(), (jnp.asarray(X),))


class KerasModel(keras.layers.Layer):
    def __init__(self, function, count, held):
        super().__init__()
        self.function, self.held = function, held
        self.first = keras.layers.Dense(4, name="first")
        self.layers = [keras.layers.Dense(4, name=f"layers.{k}") for k in range(count)]

    def build(self, shape):
        for layer in (self.first, *self.layers):
            layer.build(shape)
        self.states = {
            name: self.add_weight(
                shape=np.shape(numbers),
                initializer=keras.initializers.Constant(np.asarray(numbers, "float32")),
                trainable=False,
                name=name,
            )
            for name, numbers in self.held.items()
        }

    def call(self, x):
        return self.function(KERAS, self.layers, SimpleNamespace(**self.states), self.first(x))


def keras_roles(function, count, held):
    return irk.trace(KerasModel(function, count, held), X)


def zeros(graph):
    """The numbers of the layers that are zero."""
    names = [name for name, role in infer_roles(graph).items() if role == "zero"]
    return {int(name.split("layers.")[1][0]) for name in names}


# The kinds ----------------------------------------------------------------------------------------


def mlp(np_, layers, x, first=0):
    return layers[first + 1](np_.relu(layers[first](x)))


def clipped(np_, layers, b, x):
    return x + np_.clip(layers[0](x), b.low, b.high)


def powered(np_, layers, b, x):
    return x + np_.power(np_.abs(layers[0](x)), b.by)


def after(function):
    """A function at the end of a branch."""
    return lambda np_, layers, b, x: x + function(np_, layers[0](x), layers[1:], b)


def dual_path(np_, layers, b, x):
    """A sum on the first channels, and new channels behind them, in one concatenation."""
    x, dense = np_.halves(x)
    z = np_.cat([x, np_.tanh(dense)])
    for layer in layers:
        first, new = np_.halves(layer(np_.relu(z[..., :4])))
        z = np_.cat([z[..., :2] + first, z[..., 2:], new])
    return z


def reversible(join, part):
    def function(np_, layers, b, x):
        z = join(np_)([x, np_.flip(x)])
        for k in (0, 2):
            one, two = part(np_, z)
            one = one + np_.tanh(layers[k](two))
            two = two + np_.tanh(layers[k + 1](one))
            z = join(np_)([one, two])
        return z

    return function


def chosen(how):
    """A branch of some rows."""

    def function(np_, layers, b, x):
        rows = np_.rows(x)
        if how == "written back":
            return np_.put(x, rows, np_.pick(x, rows) + mlp(np_, layers, np_.pick(x, rows)))
        if how == "added in place":
            return np_.add_at(x, rows, mlp(np_, layers, np_.pick(x, rows)))
        others = rows if how == "chosen afterwards" else np_.rows(-x)
        return np_.pick(x, rows) + np_.pick(mlp(np_, layers, x), others)

    return function


def accumulated(how):
    """Experts that add to rows of zeros, read by index and written back."""

    def function(np_, layers, b, x):
        y = np_.zeros(x)
        for k, rows in enumerate((np_.rows(x), np_.rows(-x), np_.rows(x))[: len(layers)]):
            given = y if how == "one after the other" and k else x
            new = layers[k](np_.relu(np_.pick(given, rows)))
            if k and how == "in two ways":
                y = np_.add_at(y, rows, new)
            else:
                y = np_.put(y, rows, np_.pick(y, rows) + new)
        return y if how in ("one after the other", "alone") else x + y

    return function


def on_a_copy(how):
    """Experts that add to tokens of the stream itself."""

    def function(np_, layers, b, x):
        chosen = np_.rows(x), np_.rows(-x)[:1], np_.rows(x * x)
        x = y = np_.reshape(x, (15, 4))
        read = np_.tanh(x) if how == "of a function" else x
        for layer, rows in zip(layers, chosen, strict=True):
            if how == "all tokens":
                new = np_.take(y + layer(np_.relu(read)), rows)
            else:
                given = y if how == "one after the other" else read
                new = np_.take(y, rows) + layer(np_.relu(np_.take(given, rows)))
            y = np_.tokens(y, rows, new)
        return y

    return function


def windows(np_, layers, b, x):
    """Overlapping parts of the stream, each with a sum written over it."""
    y = x
    for k, layer in enumerate(layers):
        new = y[..., k : k + 2] + layer(np_.relu(x))[..., :2]
        y = np_.cover(y, k, new)
    return y


def joined_rows(np_, layers, b, x):
    """A branch to which the stream is added in some rows."""
    rows, x = np_.rows(x), np_.reshape(x, (15, 4))
    y = layers[0](np_.relu(x))
    return np_.tokens(y, rows, np_.take(y, rows) + np_.take(x, rows))


def one_for_two(np_, layers, b, x):
    """One unit that is added to two of the stream: the shapes differ."""
    return np_.cover(x, 1, x[..., 1:3] + layers[0](np_.relu(x))[..., :1])


def widened(by):
    """A skip of more channels than its source, as of a ResNet with option A or a PyramidNet."""

    def function(np_, layers, b, x):
        x, _ = np_.halves(x)
        return by(np_, x) + mlp(np_, layers, np_.cat([x, x]))

    return function


def normed(np_, layers, b, x):
    y = layers[0](x)
    var, mean = np_.moments(y)
    return x + (y - mean) * (var + 1e-3) ** -0.5


def pooled(first):
    """As in MViT: the mean of each two rows, beside the first row as it is."""

    def function(np_, layers, b, x):
        def pool(x):
            return np_.under([x[:, :1], np_.pairs(x[:, first:])])

        return pool(x) + layers[1](np_.relu(pool(layers[0](x))))

    return function


def over_time(step, *sizes, loops=False):
    """A state that starts as zeros, over the rows of three layers: by a scan, or unrolled."""

    def function(np_, layers, b, x):
        rows = [np_.by_time(layer(x)) for layer in layers]
        state, scan = np_.state((3, *sizes)), np_.scan
        if loops:
            scan = unrolled
        _, found = scan(lambda state, row: step(np_, state, *row), state, tuple(rows))
        return x + np_.by_time(np_.stack(found) if isinstance(found, list) else found)

    return function


def pyramid(up):
    """A deep level, brought to the resolution of the finer one."""

    def function(np_, layers, b, x):
        fine = np_.relu(layers[0](x[:, :4]))
        deep = np_.relu(layers[1](np_.pairs(fine)))
        return layers[4](layers[3](fine) + up(np_, layers[2](deep), b))

    return function


def one_pixel(np_, layers, b, x):
    """A level of one pixel, brought to two by two."""
    fine = np_.relu(layers[0](x[:, :4]))
    deep = layers[2](np_.relu(layers[1](np_.pairs(np_.pairs(fine)))))
    up = np_.image(np_.reshape(deep, (3, 1, 1, 4)))
    return layers[4](np_.reshape(layers[3](fine), (3, 2, 2, 4)) + up)


def grouped(np_, x):
    """A norm of two groups of channels, whose statistics are repeated as flax does it."""

    def mean(x):
        sums = np_.reshape(np_.total(x) / 5, (3, 2, 2))
        return np_.repeat(np_.reshape(np_.moments(sums)[1], (3, 2)), 2, 1)[:, None]

    x = x - mean(x)
    return x * (mean(x * x) + 1e-5) ** -0.5


def projected(up, norm=lambda np_, x: x):
    """A block whose skip has a weight, too: both ways enlarge a picture, or none does."""

    def function(np_, layers, b, x):
        x = np_.relu(layers[0](up(np_, x)))
        return layers[3](x) + layers[2](np_.relu(norm(np_, layers[1](x))))

    return function


def picture(np_, x):
    return np_.reshape(x[:, :4], (3, 2, 2, 4))


def enlarged(np_, x):
    return np_.repeat(np_.repeat(x, 2, 1), 2, 2)


def enlarged_apart(np_, layers, b, x):
    """As in a generator: the branch and the skip enlarge the picture each for itself."""
    x = picture(np_, x)
    branch = layers[1](np_.relu(layers[0](enlarged(np_, np_.relu(x)))))
    return layers[2](enlarged(np_, x)) + branch


def attentive(np_, layers, b, x):
    """Attention on a picture, with a weight in the skip; its heads are no places."""

    def heads(layer):
        return np_.turned(np_.reshape(layer(x), (3, 16, 2, 2)))

    x = enlarged(np_, picture(np_, x))
    q, k, v = map(heads, layers[:3])
    values = np_.turned(np_.softmax(q @ np_.turn(k)) @ v)
    return layers[4](x) + layers[3](np_.reshape(values, (3, 4, 4, 4)))


def decoder(cell, loops=False):
    """A recurrent cell that reads one row and what its state asks of all rows."""

    def function(np_, layers, b, memory):
        def step(state, row):
            held, last = np_.halves(state)
            asked = np_.turn(memory @ layers[0](last)[:, :, None])
            context = (np_.softmax(asked) @ memory)[:, 0]
            z = np_.cat([row[0][:, :2], context[:, :2]])
            held, last = cell(np_, layers[1:], z, held, last)
            return np_.cat([held, last]), last

        scan = unrolled if loops else np_.scan
        start = np_.tanh(np_.total(memory))
        _, found = scan(step, np_.cat([start, start]), (np_.by_time(memory),))
        return np_.stack(found) if isinstance(found, list) else found

    return function


def simple_cell(np_, layers, z, held, last):
    return held, np_.tanh(layers[0](z) + layers[1](last))


def gated_cell(np_, layers, z, held, last):
    gate = np_.sigmoid(layers[0](z) + layers[1](last))
    held = gate * held + np_.tanh(layers[2](z) + layers[3](last))
    return held, np_.tanh(held)


def gated_sum(np_, state, q, k, v):
    gate = np_.sigmoid(k)
    state = (1 - gate) * state + gate * v
    return state, state


def outer_sum(np_, state, q, k, v):
    """Linear attention with as many keys as values; the query sums the axis of the keys."""
    state = 0.9 * state + k[:, :, None] * v[:, None, :]
    return state, np_.total(q[:, :, None] * state)


def read_before(np_, state, q, k, v):
    return state + v[:, None, :] * k[:, :, None], np_.total(state * q[:, :, None])


def between(np_, x):
    """Rows, and others in each place behind one of them."""
    return np_.reshape(np_.stack([x, np_.tanh(x)], 2), (3, 4, 4))


def written_between(np_, x):
    rows, others, new = np_.turn(x), np_.turn(np_.tanh(x)), np_.turn(np_.tile(x, (1, 2, 1)))
    return np_.turn(np_.write(new, [(0, rows), (1, others)], 2))


def spread(np_, x):
    """Repeat rows by a broadcast and a reshape."""
    return np_.reshape(np_.spread(x[:, :, None], (3, 2, 2, 4)), (3, 4, 4))


def repeated(axis):
    """Channels that are repeated, or a head for many heads, change no resolution."""

    def function(np_, layers, b, x):
        y = np_.reshape(np_.relu(layers[0](x)), (3, 5, 1, 4))
        y = np_.repeat(y[..., :2], 2, axis)
        return layers[2](x) + layers[1](y[:, :, 0] if axis == 3 else np_.reshape(y, (3, 5, 4)))

    return function


LOW, HIGH = [-1.0, -2, -0.5, -1], [1.0, 2, 0.5, 1]
INF = float("inf")
KINDS = {
    "a clamp to all": (clipped, 1, {"low": -INF, "high": INF}, {0}),
    "a clamp around 0": (clipped, 1, {"low": LOW, "high": HIGH}, {0}),
    "a clamp above 0": (clipped, 1, {"low": HIGH, "high": [3.0] * 4}, set()),
    "a clamp below 0": (clipped, 1, {"low": [-3.0] * 4, "high": LOW}, set()),
    "a positive power": (powered, 1, {"by": [1.0, 2, 1, 3]}, {0}),
    "a power that may be 0": (powered, 1, {"by": [1.0, 2, 0, 3]}, set()),
    "a sum with a square": (
        after(lambda np_, y, _, b: y + np_.sin(b.by * y) ** 2 / b.by), 1,
        {"by": [1.0, 2, 1, 3]}, {0}),
    "a square alone": (after(lambda np_, y, _, b: np_.sin(y) ** 2), 1, {}, set()),
    "a square of another": (
        lambda np_, layers, b, x: x + (layers[0](x) + layers[1](x) ** 2), 2, {}, set()),
    "a sign and a size": (
        after(lambda np_, y, _, b: np_.sign(y) * np_.log1p(np_.abs(y))), 1, {}, {0}),
    "a mask by a choice": (
        lambda np_, layers, b, x: x + np_.where(x > 0, layers[0](x), 0.0), 1, {}, {0}),
    "one layer called twice": (
        lambda np_, layers, b, x: x + layers[0](x) * layers[0](np_.flip(x)), 1, {}, set()),
    "and a layer after it": (
        lambda np_, layers, b, x: x + layers[0](x) * layers[1](layers[0](x)), 2, {}, {1}),
    "dual path": (dual_path, 3, {}, {0, 1, 2}),
    "reversible halves": (
        reversible(lambda np_: np_.cat, lambda np_, z: (z[..., :4], z[..., 4:])),
        4, {}, {0, 1, 2, 3}),
    "reversible, split": (
        reversible(lambda np_: np_.cat, lambda np_, z: np_.halves(z)), 4, {}, {0, 1, 2, 3}),
    "reversible, stacked": (
        reversible(lambda np_: np_.stack, lambda np_, z: (z[0], z[1])), 4, {}, {0, 1, 2, 3}),
    "rows written back": (chosen("written back"), 2, {}, {1}),
    "rows added in place": (chosen("added in place"), 2, {}, {1}),
    "rows chosen afterwards": (chosen("chosen afterwards"), 2, {}, {1}),
    "a row cut twice": (
        lambda np_, layers, b, x: x[:, 0] + mlp(np_, layers, x[:, 0]), 2, {}, {1}),
    "samples cut twice": (
        lambda np_, layers, b, x: x[1:] + mlp(np_, layers, x[1:]), 2, {}, {1}),
    "other rows": (chosen("others"), 2, {}, set()),
    "a token beside pooled rows": (pooled(1), 2, {}, {1}),
    "not all rows": (pooled(3), 2, {}, set()),
    "a gated sum over time": (over_time(gated_sum, 4), 3, {}, {2}),
    "a gated sum, unrolled": (over_time(gated_sum, 4, loops=True), 3, {}, {2}),
    "a sum of outer products": (over_time(outer_sum, 4, 4), 3, {}, {2}),
    "outer products, unrolled": (over_time(outer_sum, 4, 4, loops=True), 3, {}, {2}),
    "read before the sum": (over_time(read_before, 4, 4), 3, {}, {2}),
    "a level, interpolated": (pyramid(lambda np_, y, b: np_.enlarge(y)), 5, {}, set()),
    "a level, repeated": (pyramid(lambda np_, y, b: np_.repeat(y, 2, 1)), 5, {}, set()),
    "a level, spread": (pyramid(lambda np_, y, b: spread(np_, y)), 5, {}, set()),
    "a level, tiled": (pyramid(lambda np_, y, b: np_.tile(y, (1, 2, 1))), 5, {}, set()),
    "a level, indexed": (
        pyramid(lambda np_, y, b: np_.pick(y, np.array([0, 0, 1, 1]))), 5, {}, set()),
    "a level, by a matrix": (
        pyramid(lambda np_, y, b: np_.matrix(np.ones((4, 2), "float32"), y)), 5, {}, set()),
    "a level, stacked": (
        pyramid(lambda np_, y, b: np_.reshape(np_.stack([y, y], 2), (3, 4, 4))), 5, {}, set()),
    "a level between another": (pyramid(lambda np_, y, b: between(np_, y)), 5, {}, set()),
    "a level, written": (pyramid(lambda np_, y, b: written_between(np_, y)), 5, {}, set()),
    "a level of one pixel": (one_pixel, 5, {}, set()),
    "a level, through a transposed convolution": (
        pyramid(lambda np_, y, b: np_.unfold(y, b.kernel)), 5,
        {"kernel": np.ones((2, 4, 4))}, set()),
    "a norm of groups in a projection block": (
        projected(lambda np_, x: x, grouped), 4, {}, {2}),
    "a projection block on an enlarged picture": (
        projected(lambda np_, x: enlarged(np_, picture(np_, x))), 4, {}, {2}),
    "attention on a picture": (attentive, 5, {}, {3}),
    "a block that enlarges its picture": (enlarged_apart, 3, {}, {1}),
    **{f"a decoder of {cell.__name__}{how}": (decoder(cell, loops), 5, {}, set())
       for cell in (simple_cell, gated_cell)
       for how, loops in (("", False), (", unrolled", True))},
    "repeated channels": (repeated(3), 3, {}, {1}),
    "repeated heads": (repeated(2), 3, {}, {1}),
    "experts read and written": (accumulated(""), 3, {}, {0, 1, 2}),
    "experts added too": (accumulated("in two ways"), 3, {}, {0, 1, 2}),
    "rows of rows": (accumulated("one after the other"), 2, {}, {1}),
    **{f"experts on a copy {how}": (on_a_copy(how), 3, {}, {0, 1, 2})
       for how in ("of the stream", "of a function", "one after the other", "all tokens")},
    "overlapping windows": (windows, 3, {}, {0, 1, 2}),
    "chosen rows of a branch": (joined_rows, 1, {}, {0}),
    "a unit for two": (one_for_two, 1, {}, set()),
    "zeros behind": (widened(lambda np_, x: np_.cat([x, np_.zeros(x)])), 2, {}, {1}),
    "zeros in front": (widened(lambda np_, x: np_.cat([np_.zeros(x), x])), 2, {}, {1}),
    "a product with 0": (widened(lambda np_, x: np_.cat([x * 0, x])), 2, {}, {1}),
    "two copies": (widened(lambda np_, x: np_.cat([x, x])), 2, {}, {1}),
    "a copy flipped": (widened(lambda np_, x: np_.cat([np_.flip(x), x])), 2, {}, {1}),
    "a norm written out": (normed, 1, {}, {0}),
    "a diagonal matrix": (
        lambda np_, layers, b, x: x + layers[0](x) @ np_.diag(layers[1]), 2, {}, {0}),
    "a branch times 0": (
        lambda np_, layers, b, x: x + mlp(np_, layers, x) * 0, 2, {}, set()),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_the_zero_weights_of_a_kind(roles, kind):
    function, count, held, wanted = KINDS[kind]
    assert zeros(roles(function, count, held)) == wanted


# What changes no number ---------------------------------------------------------------------------


def interleaved(np_, x):
    """The even and the odd entries, stacked and merged again."""
    last = len(x.shape) - 1
    pairs = np_.stack([x[..., 0::2], x[..., 1::2]], last + 1)
    return np_.reshape(pairs, tuple(x.shape))


def nested(np_, x):
    return np_.cat([np_.cat(np_.halves(half)) for half in np_.halves(x)])


def swapped(np_, x):
    return np_.cat([x[..., 2:], x[..., :2]])


IDENTITIES = {
    "flattened": lambda np_, x: np_.reshape(np_.reshape(x, (-1,)), tuple(x.shape)),
    "cut in three": lambda np_, x: np_.cat([x[..., :1], x[..., 1:3], x[..., 3:]]),
    "split and split again": nested,
    "stacked": lambda np_, x: np_.stack(np_.unstack(x)),
    "interleaved": interleaved,
    "written in two": lambda np_, x: np_.write(x, [(0, x[..., :2]), (2, x[..., 2:])]),
    "written in steps": lambda np_, x: np_.write(x, [(0, x[..., ::2]), (1, x[..., 1::2])], 2),
    "swapped twice": lambda np_, x: swapped(np_, swapped(np_, x)),
    "flat, cut and joined": lambda np_, x: np_.reshape(
        np_.cat([np_.reshape(x, (-1,))[:7], np_.reshape(x, (-1,))[7:]]), tuple(x.shape)),
    "reversed twice": lambda np_, x: np_.flip(np_.flip(x)),
}  # fmt: skip


def with_identities(same):
    """Attention without an output projection, a crop in time, a gate, two halves, a time step."""

    def function(np_, layers, b, x):
        x = same(np_, x)
        q, k, v = (same(np_, layer(x)) for layer in layers[:3])
        x = same(np_, x + np_.softmax(q @ np_.turn(k)) @ v)
        x = x[:, 1:] + same(np_, layers[3](np_.relu(x)))[:, 1:]
        x = x + same(np_, layers[4](np_.relu(x))) * np_.sigmoid(layers[5](same(np_, x)))
        two = same(np_, np_.stack([x, np_.flip(x)]))
        one, two = np_.unstack(two)
        one = one + same(np_, np_.tanh(layers[6](two)))
        two = two + np_.tanh(layers[7](one))
        x = same(np_, np_.stack([one, two]))
        return x * np_.exp(-np_.softplus(same(np_, layers[8](x))))

    return function


@pytest.mark.every
@pytest.mark.parametrize("same", IDENTITIES)
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_what_changes_no_number_changes_no_role(roles, same):
    plain, moved = (
        decide(roles(with_identities(how), 9, {})) for how in (lambda np_, x: x, IDENTITIES[same])
    )
    ways = [[(entry.role, entry.plan) for entry in one.entries] for one in (plain, moved)]
    assert ways[1] == ways[0]
    assert sorted(plain.roles.values()).count("zero") == 5


@pytest.mark.every
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_experts_without_a_skip_choose_and_do_not_add_up(roles):
    report = decide(roles(accumulated("alone"), 3, {}))
    assert "zero" not in report.roles.values()
    assert "tie" not in {note.kind for note in report.warnings}


def steps(np_, layers, b, x):
    """One layer for every step: its bias sets the decay, as of a time step."""
    z = np_.stack([layers[0](x[:, t]) for t in range(5)], 1)
    return layers[1](x) * np_.exp(-np_.softplus(z))


def turned(np_, layers, b, x):
    """A part of the channels is turned and written back, and a gate that is 0 follows."""
    h = layers[0](np_.relu(x))
    low = h[..., :2] * 0.3 + np_.cat([-h[..., 1:2], h[..., :1]])
    return x + np_.write(h, [(0, low), (2, h[..., 2:])])


@pytest.mark.every
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_the_bias_of_every_step_is_kept(roles):
    found = decide(roles(steps, 2, {})).roles
    kept = [name for name, role in found.items() if role == "keep"]
    assert len(kept) == 1
    assert "layers.0" in kept[0]


@pytest.mark.every
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_what_is_turned_and_written_back_is_no_packed_weight(roles):
    graph = roles(turned, 1, {})
    assert zeros(graph) == {0}
    plans = [entry.plan for entry in decide(graph).entries if entry.plan]
    assert all(plan.blocks is None for plan in plans)


def test_bounds_without_values_count_as_beyond_0():
    function, count, held, wanted = KINDS["a clamp around 0"]
    assert zeros(torch_roles(function, count, held, "meta")) == wanted


def test_sums_of_experts_from_zeros_on_are_one_scatter():
    """Each expert adds its rows: no one of them is the skip of another."""

    def function(np_, layers, b, x):
        out = torch.zeros_like(x)
        for k in (0, 1):
            out = out.index_add(1, torch.tensor(ROWS + k), layers[k](x[:, ROWS + k]))
        return x + out

    graph = torch_roles(function, 2, {})
    assert zeros(graph) == {0, 1}
    assert sum(node.kind == "add" for node in graph.nodes) == 1


# Learned tensors, and norms -----------------------------------------------------------------------


def torch_named(function, sizes):
    """The roles of the parameters of a function, by name."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.randn(size) for k, size in sizes.items()})

        def forward(self, x):
            return function(TORCH, self.p, x)

    return decide(irt.trace(Model(), torch.tensor(X))).roles


def jax_named(function, sizes):
    values = {k: jax.random.normal(jax.random.key(0), size) for k, size in sizes.items()}
    return decide(irj.trace(values, (X,), lambda p, x: function(JAX, p, x))).roles


def keras_named(function, sizes):
    class Model(keras.layers.Layer):
        def build(self, shape):
            self.p = {k: self.add_weight(shape=size, name=k) for k, size in sizes.items()}

        def call(self, x):
            return function(KERAS, self.p, x)

    return decide(irk.trace(Model(), X)).roles


def flax_named(function, sizes):
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.t = nnx.Param(jnp.ones(sizes["t"]))
            self.q, self.k, self.v, self.o = (nnx.Linear(4, 4, rngs=rngs) for _ in range(4))

        def __call__(self, x):
            scores = self.q(self.t[...]) @ self.k(x).swapaxes(1, 2)
            z = jnp.broadcast_to(self.t[...], (3, 2, 4))
            return z + self.o(jax.nn.softmax(scores) @ self.v(x))

    roles = decide(irj.trace(Model(), (X,))).roles
    return {name.removesuffix("kernel"): roles[name] for name in roles if "bias" not in name}


FRAMEWORKS = [torch_named, jax_named, keras_named]


def short(roles):
    """The roles by the last letter of each name."""
    return {name.strip("./")[-1]: role for name, role in roles.items()}


def latents(how):
    """Attention whose queries are made of a learned table, copied for a batch or broadcast."""

    def function(np_, p, x):
        z = np_.spread(p["t"], (3, 2, 4)) if how == "copied" else p["t"]
        y = np_.softmax((z @ p["q"]) @ np_.turn(x @ p["k"])) @ (x @ p["v"]) @ p["o"]
        if how == "copied later":
            z = np_.spread(p["t"], (3, 2, 4))
        return y if how == "pooled" else z + y

    return function


LATENTS = {"t": (2, 4), **dict.fromkeys("qkvo", (4, 4))}


WAYS = [*product(FRAMEWORKS, ["copied", "broadcast", "copied later", "pooled"])]


@pytest.mark.every
@pytest.mark.parametrize(("named", "how"), [*WAYS, (flax_named, "copied")])
def test_a_matrix_of_learned_queries_is_a_weight(named, how):
    """If they are not copied first, only the attention shows that they are data."""
    last = "transit" if how == "pooled" else "zero"
    wanted = {"t": "keep", **dict.fromkeys("qkv", "transit"), "o": last}
    assert short(named(latents(how), LATENTS)) == wanted


@pytest.mark.every
@pytest.mark.parametrize("where", ["queries", "activation"])
@pytest.mark.parametrize("named", FRAMEWORKS)
def test_a_weight_made_of_two_factors_is_none_of_latents(named, where):
    """As of LoRA, on queries or in front of an activation."""

    def function(np_, p, x):
        y = np_.softmax(x @ (p["b"] @ p["a"]))
        if where == "queries":
            y = np_.softmax(x @ (p["b"] @ p["a"]) @ np_.turn(x @ p["k"])) @ x
        return x + y @ p["o"]

    found = short(named(function, {"b": (4, 2), "a": (2, 4), "k": (4, 4), "o": (4, 4)}))
    assert (found["a"], found["b"], found["o"]) == ("transit", "transit", "zero")


@pytest.mark.every
@pytest.mark.parametrize("how", ["tanh", "relu"])
@pytest.mark.parametrize("named", FRAMEWORKS)
def test_a_function_with_a_learned_scale_and_shift_is_a_norm(named, how):
    """Dynamic tanh: tanh(a x) w + b. Without the scale, the shift stays where x is 0."""

    def function(np_, p, x):
        y = np_.tanh(x @ p["o"] * p["a"]) * p["w"] if how == "tanh" else np_.relu(x @ p["o"])
        return x + (y + p["b"])

    found = short(named(function, {"o": (4, 4), "a": (1,), "w": (4,), "b": (4,)}))
    assert found["o"] == ("zero" if how == "tanh" else "transit")


@pytest.mark.every
@pytest.mark.parametrize(
    "norm",
    [
        keras.layers.GroupNormalization(2),
        keras.layers.GroupNormalization(2, scale=False),
        keras.layers.LayerNormalization(axis=(1, 2)),
        keras.layers.LayerNormalization(axis=(1, 2), scale=False),
    ],
    ids=["groups", "groups without scale", "two axes", "two axes without scale"],
)
def test_the_offset_of_a_norm_is_a_shift_also_of_many_axes(norm):
    """TensorFlow computes x r + (offset - mean r)."""
    x = keras.Input((5, 4))
    model = keras.Model(x, x + type(norm).from_config(norm.get_config())(keras.layers.Dense(4)(x)))
    report = irk.init_(model, X)
    assert sorted(report.roles.values()).count("zero") == 1
    assert not {"endless", "tie"} & {note.kind for note in report.warnings}


def test_positions_after_a_norm_are_data():
    """They are no shift: they end no branch."""

    class Add(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(shape=(5, 4), name="table")

        def call(self, x):
            return x + self.table

    x = keras.Input((5, 4))
    y = Add()(keras.layers.LayerNormalization()(keras.layers.Dense(4)(x)))
    assert "zero" not in irk.init_(keras.Model(x, x + y), X).roles.values()


@pytest.mark.every
@pytest.mark.parametrize("mix", ["cumsum", "mixed", "fft", "resized", "blurred"])
@pytest.mark.parametrize("roles", [torch_roles, jax_roles, keras_roles])
def test_a_bias_may_follow_a_linear_map(roles, mix):
    """As in StyleGAN2, which blurs what a convolution gives, and then adds its bias."""

    def function(np_, layers, b, x):
        y = getattr(np_, mix)(layers[0](np_.relu(x)))
        return x + (y + (layers[1].bias[...] if roles is jax_roles else layers[1].bias))

    graph = roles(function, 2, {})
    found = {entry.name.replace("/", "."): entry.role for entry in decide(graph).entries}
    (weight,) = (found[name] for name in found if "layers.0." in name and "bias" not in name)
    (bias,) = (found[name] for name in found if name.endswith("layers.1.bias"))
    assert (weight, bias) == ("zero", "bias")


def shared_factor(how):
    """Blocks that multiply what their weight gives by a factor which is made once."""

    def function(np_, p, x):
        start, mask = x, np_.sigmoid(x[..., :1])
        for weight, bias in ("ab", "cd", "ef"):
            h = np_.relu(x) @ p[weight]
            h = {"masked": h * mask, "divided": h / (1 + mask), "start": h * start}[how]
            x = x + np_.relu(h + p[bias])
        return x

    return function


@pytest.mark.parametrize("how", ["masked", "divided", "start"])
@pytest.mark.parametrize("named", FRAMEWORKS)
def test_a_bias_may_follow_a_factor_that_blocks_share(named, how):
    """A mask, a degree: an ancestor of what it multiplies, by way of the earlier blocks."""
    function = shared_factor(how)
    roles = short(named(function, {c: (4,) if c in "bdf" else (4, 4) for c in "abcdef"}))
    assert roles == dict(zip("abcdef", ["zero", "bias"] * 3, strict=True))
    p = {c: torch.zeros(4, 4) if roles[c] == "zero" else torch.zeros(4) for c in roles}
    assert torch.equal(function(TORCH, p, torch.tensor(X)), torch.tensor(X))


@pytest.mark.parametrize("how", ["normed", "gated"])
@pytest.mark.parametrize("named", FRAMEWORKS)
def test_what_follows_a_scale_that_is_computed_from_the_outputs_is_no_bias(named, how):
    def function(np_, p, x):
        for weight, gate, shift in ("abc", "def"):
            h = np_.relu(x) @ p[weight]
            scales = {
                "normed": lambda h=h: 1 / np_.exp(np_.log1p(np_.moments(h)[0])),
                "gated": lambda h=h, gate=gate: np_.sigmoid(np_.relu(h) @ p[gate]),
            }
            x = x + np_.relu(h * scales[how]() + p[shift])
        return x

    roles = short(named(function, {c: (4,) if c in "cf" else (4, 4) for c in "abcdef"}))
    assert {roles["c"], roles["f"]} == {"keep"}


# Blocks with a projection, of the frameworks' own layers ------------------------------------------


def test_a_group_norm_of_flax_leaves_no_resolution():
    class Block(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first = nnx.Conv(4, 8, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(8, num_groups=4, rngs=rngs)
            self.last = nnx.Conv(8, 8, (3, 3), rngs=rngs)
            self.skip = nnx.Conv(4, 8, (1, 1), rngs=rngs)

        def __call__(self, x):
            return self.skip(x) + self.last(nnx.relu(self.norm(self.first(x))))

    roles = infer_roles(irj.trace(Block(), (jnp.ones((2, 6, 6, 4)),)))
    assert [name for name, role in roles.items() if role == "zero"] == ["last.kernel"]


@pytest.mark.parametrize("how", ["before", "behind", "joined"])
def test_a_repetition_or_group_norm_of_keras_leaves_no_resolution(how):
    """A generator's block, a decoder's one, and one of a diffusion model on joined levels."""
    layers, relu = keras.layers, keras.ops.relu
    given = x = keras.Input((6, 6, 4))
    first, last = (layers.Conv2D(8, 3, padding="same", name=name) for name in ("first", "last"))
    skip = layers.Conv2D(8, 1, name="skip")
    up = layers.UpSampling2D(2)
    if how == "before":
        y = last(relu(first(up(relu(x))))) + skip(up(x))
    elif how == "behind":
        y = up(last(relu(first(x)))) + skip(up(x))
    else:
        x = layers.concatenate([x, up(layers.Conv2D(4, 3, 2, padding="same", name="down")(x))])
        y = last(relu(first(relu(layers.GroupNormalization(4)(x))))) + skip(x)
    roles = infer_roles(irk.trace(keras.Model(given, y), np.ones((2, 6, 6, 4), "float32")))
    assert [name for name, role in roles.items() if role == "zero"] == ["last/kernel"]
