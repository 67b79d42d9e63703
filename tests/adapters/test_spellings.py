"""One computation in several spellings has one set of roles, which running the model confirms.

R1: with the zero weights at 0 and all others random, each branch leaves its skip. R2: a small
change of one zero weight changes the result in proportion.
"""

from __future__ import annotations

import os
from functools import partial
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
from torch.nn import functional

import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from adapters.test_kinds import jax_write, keras_write, torch_write
from idinit_ref import errors
from idinit_ref.roles.decide import decide

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
ops = keras.ops
X = np.random.default_rng(0).normal(size=(3, 5, 8)).astype("float32")
HELD = np.arange(8)[::2]


def torch_put(x, parts):
    out = torch.zeros_like(x)
    for places, part in parts:
        out[..., places] = part
    return out


def jax_put(x, parts):
    out = jnp.zeros_like(x)
    for places, part in parts:
        out = out.at[..., places].set(part)
    return out


def keras_put(x, parts):
    axes = [len(x.shape) - 1, *range(len(x.shape) - 1)]
    back = [*range(1, len(x.shape)), 0]
    out = ops.transpose(ops.zeros_like(x), axes)
    for places, part in parts:
        out = ops.scatter_update(out, ops.expand_dims(places, 1), ops.transpose(part, axes))
    return ops.transpose(out, back)


def torch_step(x, t, row):
    out = x.clone()
    out[:, t] = row
    return out


TORCH = SimpleNamespace(
    swap=lambda x: x.mT,
    relu=torch.relu, tanh=torch.tanh, exp=torch.exp,
    cat=lambda xs: torch.cat(xs, -1), stack=torch.stack,
    count=torch.arange, array=torch.tensor, line=torch.linspace, whole=lambda x: x.long(),
    where=torch.where, reshape=torch.reshape, at=lambda x, places: x[..., places],
    put=torch_put, write=torch_write, zeros=torch.zeros_like, step=torch_step,
    widen=lambda x, by: functional.pad(x, (by, by)), join=lambda x, c: torch.cat(
        [torch.zeros(*x.shape[:-1], c), x, torch.zeros(*x.shape[:-1], c)], -1),
)  # fmt: skip
JAX = SimpleNamespace(
    swap=lambda x: x.mT,
    relu=jax.nn.relu, tanh=jnp.tanh, exp=jnp.exp,
    cat=lambda xs: jnp.concatenate(xs, -1), stack=jnp.stack,
    count=jnp.arange, array=jnp.array, line=jnp.linspace, whole=lambda x: x.astype(int),
    where=jnp.where, reshape=jnp.reshape, at=lambda x, places: x[..., places],
    put=jax_put, write=jax_write, zeros=jnp.zeros_like, step=lambda x, t, row: x.at[:, t].set(row),
    widen=lambda x, by: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(by, by)]), join=lambda x, c:
    jnp.concatenate([jnp.zeros((*x.shape[:-1], c)), x, jnp.zeros((*x.shape[:-1], c))], -1),
)  # fmt: skip
KERAS = SimpleNamespace(
    swap=lambda x: ops.swapaxes(x, -1, -2),
    relu=ops.relu, tanh=ops.tanh, exp=ops.exp,
    cat=lambda xs: ops.concatenate(xs, -1), stack=ops.stack,
    count=ops.arange, array=ops.array, line=ops.linspace, whole=lambda x: ops.cast(x, "int32"),
    where=ops.where, reshape=ops.reshape, at=lambda x, places: ops.take(x, places, -1),
    put=keras_put, write=keras_write, zeros=ops.zeros_like,
    step=lambda x, t, row: ops.slice_update(x, (0, t, 0), row[:, None]),
    widen=lambda x, by: ops.pad(x, [(0, 0)] * (len(x.shape) - 1) + [(by, by)]), join=lambda x, c:
    ops.concatenate([ops.zeros_like(x)[..., :c], x, ops.zeros_like(x)[..., :c]], -1),
)  # fmt: skip


def roles_of(found):
    return found.roles


def facts(found):
    """All that a user sees of a function's parameters, by their last letter."""
    own = [entry for entry in found.entries if "held" not in entry.name]
    entries = {entry.name.strip("./")[-1]: (entry.role, entry.plan, entry.value) for entry in own}
    return entries, sorted(note.kind for note in found.warnings)


def in_torch(function, sizes, x, of=roles_of):
    """The roles of a function's parameters, or other facts, and the function itself, of arrays."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.randn(size) for k, size in sizes.items()})
            self.register_buffer("held", torch.tensor(HELD))

        def forward(self, x):
            return function(TORCH, {**self.p, "held": self.held}, x)

    def run(p, x):
        given = {k: torch.tensor(v) for k, v in {**p, "held": HELD}.items()}
        return function(TORCH, given, torch.tensor(x)).numpy()

    return of(decide(irt.trace(Model(), torch.tensor(x)))), run


def in_jax(function, sizes, x, of=roles_of):
    values = {k: jax.random.normal(jax.random.key(0), size) for k, size in sizes.items()}

    def apply(p, x):
        return function(JAX, {**p, "held": jnp.asarray(HELD)}, x)

    return of(decide(irj.trace(values, (x,), apply))), lambda p, x: np.asarray(apply(p, x))


def in_keras(function, sizes, x, of=roles_of):
    class Model(keras.layers.Layer):
        def build(self, shape):
            self.p = {k: self.add_weight(shape=size, name=k) for k, size in sizes.items()}

        def call(self, x):
            return function(KERAS, {**self.p, "held": HELD}, x)

    def run(p, x):
        given = {k: tf.constant(v) for k, v in p.items()}
        return np.asarray(function(KERAS, {**given, "held": HELD}, tf.constant(x)))

    return of(decide(irk.trace(Model(), x))), run


FRAMEWORKS = [in_torch, in_jax, in_keras]


def judged(framework, function, sizes, x, skip):
    """The roles of a function's parameters by their last letter; R1 and R2 hold for the zero ones.

    `skip` is what the function has to give if all zero weights are 0.
    """
    roles, run = framework(function, sizes, x)
    roles = {name.strip("./")[-1]: role for name, role in roles.items() if "held" not in name}
    rng, zero = np.random.default_rng(1), {name for name in roles if roles[name] == "zero"}
    draw = {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}
    silent = {name: draw[name] * (name not in zero) for name in sizes}
    np.testing.assert_allclose(run(silent, x), skip, atol=1e-5)
    for name in zero:
        one, two = (run(silent | {name: by * draw[name]}, x) - skip for by in (1e-2, 2e-2))
        assert np.abs(one).max() > 1e-4, name
        np.testing.assert_allclose(two, 2 * one, atol=0.1 * np.abs(one).max())
    return roles


# Indices that forward computes --------------------------------------------------------------------


INDICES = {
    "counted": lambda np_, p: (np_.count(0, 8, 2), np_.count(1, 8, 2)),
    "computed": lambda np_, p: (2 * np_.count(4), 2 * np_.count(4) + 1),
    "listed": lambda np_, p: (np_.array([0, 2, 4, 6]), np_.array([1, 3, 5, 7])),
    "held": lambda np_, p: (p["held"], p["held"] + 1),
    "reversed": lambda np_, p: (np_.count(6, -1, -2), np_.count(7, 0, -2)),
    "on a line": lambda np_, p: tuple(
        np_.whole(np_.line(a, a + 6.0, 4) + 0.5) for a in (0.0, 1.0)),
    "reshaped": lambda np_, p: (np_.reshape(np_.count(8), (4, 2))[:, 0],
                                np_.reshape(np_.count(8), (4, 2))[:, 1]),
    "chosen": lambda np_, p: (np_.where(np_.count(4) > 9, 0, 2 * np_.count(4)),
                              np_.where(np_.count(4) > 9, 0, 2 * np_.count(4) + 1)),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", INDICES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_indices_are_known_that_forward_computes(framework, how):
    def function(np_, p, x):
        even, odd = INDICES[how](np_, p)
        a, b = np_.tanh(np_.at(x, even)), np_.at(x, odd)
        z = np_.put(x, [(even, a), (odd, b)])
        a = np_.at(z, even) + np_.relu(a) @ p["a"]
        b = z[..., 1::2] + np_.relu(z[..., 1::2] @ p["c"]) @ p["b"]
        return np_.put(x, [(even, a), (np_.count(1, 8, 2), b)])

    skip = np.where(np.arange(8) % 2, X, np.tanh(X))
    roles = judged(framework, function, dict.fromkeys("abc", (4, 4)), X, skip)
    assert roles == {"a": "zero", "b": "zero", "c": "transit"}


def test_masks_are_known_that_forward_computes():
    """The shape of what a mask selects depends on its values, which fake tensors lack."""

    def function(np_, p, x):
        mask = torch.arange(8) % 2 == 0
        odd = x[..., ~mask].tanh()
        z = torch.zeros_like(x)
        z[..., mask], z[..., torch.nonzero(~mask)[:, 0]] = x[..., mask], odd
        assert int(mask.sum()) == 4
        return z[..., 1::2] + torch.relu(odd @ p["a"]) @ p["b"]

    skip = np.tanh(X[..., 1::2])
    roles = judged(in_torch, function, dict.fromkeys("ab", (4, 4)), X, skip)
    assert roles == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("what", ["a number", "the input"])
def test_a_constant_that_is_written_over_is_no_longer_0(what):
    """The branch never vanishes."""

    def function(np_, p, x):
        shift = torch.zeros(5, 4)
        rest = shift[1:]
        rest += 1 if what == "a number" else x[0, 1:, :4]
        return x[..., :4] + (x[..., :4] @ p["a"] + shift)

    assert in_torch(function, {"a": (4, 4)}, X)[0]["p.a"] == "transit"


# Shortcuts of a ResNet's option A -----------------------------------------------------------------


@pytest.mark.every
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("how", ["widen", "join"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_shortcut_may_drop_rows_of_an_input_and_add_channels(framework, how, axes):
    steps = (slice(None), *[slice(None, None, 2)] * axes)

    def function(np_, p, x):
        return getattr(np_, how)(x[steps], 2) + np_.relu(x @ p["a"])[steps] @ p["b"]

    x = np.random.default_rng(0).normal(size=(2, *[6] * axes, 4)).astype("float32")
    skip = np.pad(x[steps], [(0, 0)] * (axes + 1) + [(2, 2)])
    roles = judged(framework, function, {"a": (4, 8), "b": (8, 8)}, x, skip)
    assert roles == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_channels_of_an_input_are_no_rows_that_a_shortcut_drops(framework):
    """Slices of what a weight sums part the skip from a branch that reads all, as in Res2Net."""

    def function(np_, p, x):
        return x[..., ::2] + np_.relu(x @ p["a"]) @ p["b"]

    roles, _ = framework(function, {"a": (8, 4), "b": (4, 4)}, X)
    assert set(roles.values()) == {"transit"}


# Writes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("size", [4, 5, 7])
def test_a_write_in_steps_that_do_not_divide_the_axis(framework, size):
    def function(np_, p, x):
        even, odd = np_.tanh(x[..., ::2]), x[..., 1::2]
        z = np_.write(x, [(0, even), (1, odd)], 2)
        even = z[..., ::2] + np_.relu(even) @ p["a"]
        odd = z[..., 1::2] + np_.relu(odd) @ p["b"]
        return np_.write(x, [(0, even), (1, odd)], 2)

    x = X[..., :size]
    skip = np.where(np.arange(size) % 2, x, np.tanh(x))
    sizes = {"a": (-(-size // 2),) * 2, "b": (size // 2,) * 2}
    assert judged(framework, function, sizes, x, skip) == {"a": "zero", "b": "zero"}


STEPS = {
    "of the last state": lambda np_, p, y, x: np_.relu(y) @ p["a"],
    "of the input": lambda np_, p, y, x: np_.relu(x) @ p["a"],
    "of both": lambda np_, p, y, x: np_.relu(y) @ p["a"] + np_.relu(x) @ p["b"],
    "gated by the input": lambda np_, p, y, x: (np_.relu(y) @ p["a"]) * np_.tanh(x @ p["b"]),
}


def stepwise(branch, how):
    """A state that each step adds to, in a list or written over a copy of the inputs."""

    def function(np_, p, x):
        x = np_.tanh(x)
        rows = [x[:, 0]]
        y = x if how == "over the inputs" else np_.step(np_.zeros(x), 0, x[:, 0])
        for t in range(1, 4):
            if how == "in a list":
                rows.append(rows[-1] + branch(np_, p, rows[-1], x[:, t]))
            else:
                last = y[:, t - 1]
                now = y[:, t] if how == "over the inputs" else x[:, t]
                y = np_.step(y, t, last + branch(np_, p, last, now))
        return np_.stack(rows, 1) if how == "in a list" else y

    return function


@pytest.mark.every
@pytest.mark.parametrize("branch", STEPS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_steps_in_a_list_or_written_over_a_copy(framework, branch):
    ways = ("in a list", "over the inputs", "over zeros")
    sizes, x = dict.fromkeys("ab", (8, 8)), X[:, :4]
    found = [framework(stepwise(STEPS[branch], how), sizes, x) for how in ways]
    draw = {k: np.full(size, 0.1, "float32") for k, size in sizes.items()}
    results = [run(draw, x) for _, run in found]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5)
    short = [{k[-1]: role for k, role in roles.items() if "held" not in k} for roles, _ in found]
    assert short[1:] == short[:1] * 2
    if branch == "of the last state":
        assert short[0]["a"] == "zero"


# Sums ---------------------------------------------------------------------------------------------


MORE = {  # functions that sums need, by the namespace of each framework
    id(TORCH): SimpleNamespace(
        sum=torch.sum, mean=torch.mean, cumsum=torch.cumsum, einsum=torch.einsum, exp=torch.exp,
        sigmoid=torch.sigmoid, softplus=functional.softplus, ones=torch.ones, moved=torch.movedim,
        concatenate=torch.cat, tensordot=torch.tensordot,
    ),
    id(JAX): SimpleNamespace(
        sum=jnp.sum, mean=jnp.mean, cumsum=jnp.cumsum, einsum=jnp.einsum, exp=jnp.exp,
        sigmoid=jax.nn.sigmoid, softplus=jax.nn.softplus, ones=jnp.ones, moved=jnp.moveaxis,
        concatenate=jnp.concatenate, tensordot=jnp.tensordot,
    ),
    id(KERAS): SimpleNamespace(
        sum=ops.sum, mean=ops.mean, cumsum=ops.cumsum, einsum=ops.einsum, exp=ops.exp,
        sigmoid=ops.sigmoid, softplus=ops.softplus, ones=ops.ones, moved=ops.moveaxis,
        concatenate=ops.concatenate, tensordot=ops.tensordot,
    ),
}  # fmt: skip
AB = dict.fromkeys("ab", (8, 8))


def f(np_, p, x):
    return np_.tanh(x @ p["a"]) @ p["b"]


def both(np_, p, x, axis=0):
    return np_.stack([x, f(np_, p, x)], axis)


def same(framework, one, other, sizes):
    """Two spellings give the same numbers, and their parameters have the same facts."""
    (left, run), (right, run_other) = (framework(each, sizes, X, facts) for each in (one, other))
    rng = np.random.default_rng(2)
    draw = {k: 0.3 * rng.normal(size=size).astype("float32") for k, size in sizes.items()}
    np.testing.assert_allclose(run_other(draw, X), run(draw, X), atol=1e-4)
    assert right == left
    return left


def plain(np_, p, x):
    return x + f(np_, p, x)


SUMS = {
    "of a stack": lambda np_, m, p, x: m.sum(both(np_, p, x), 0),
    "of a stack along channels": lambda np_, m, p, x: m.sum(both(np_, p, x, -1), -1),
    "of a stack, the branch first": lambda np_, m, p, x: m.sum(
        np_.stack([f(np_, p, x), x], 2), 2),
    "that keeps its axis": lambda np_, m, p, x: m.sum(both(np_, p, x, 1), 1, keepdims=True)[:, 0],
    "of a stack, moved": lambda np_, m, p, x: m.sum(m.moved(both(np_, p, x), 0, 2), 2),
    "of rows": lambda np_, m, p, x: m.sum(m.concatenate([x[None], f(np_, p, x)[None]], 0), 0),
    "of halves": lambda np_, m, p, x: m.sum(
        np_.reshape(np_.cat([x, f(np_, p, x)]), (3, 5, 2, 8)), 2),
    "of a batch": lambda np_, m, p, x: m.sum(
        np_.reshape(m.concatenate([x, f(np_, p, x)], 0), (2, 3, 5, 8)), 0),
    "of three": lambda np_, m, p, x: m.sum(
        np_.stack([x, 0.5 * f(np_, p, x), 0.5 * f(np_, p, x)], 0), 0),
    "twice the mean": lambda np_, m, p, x: 2 * m.mean(both(np_, p, x), 0),
    "by einsum": lambda np_, m, p, x: m.einsum("nbtc->btc", both(np_, p, x)),
    "by ones": lambda np_, m, p, x: m.einsum("nbtc,n->btc", both(np_, p, x), m.ones(2)),
    "by numbers": lambda np_, m, p, x: m.tensordot(
        np_.array([1.0, 2.0]), np_.stack([x, 0.5 * f(np_, p, x)], 0), 1),
    "by a matrix of ones": lambda np_, m, p, x: (both(np_, p, x, -1) @ m.ones((2, 1)))[..., 0],
    "a running sum": lambda np_, m, p, x: m.cumsum(both(np_, p, x), 0)[-1],
    "of one more axis": lambda np_, m, p, x: (x[None] + f(np_, p, x)[None])[0],
    "less a negative": lambda np_, m, p, x: -(-x - f(np_, p, x)),
    "less a difference": lambda np_, m, p, x: 2 * x - (x - f(np_, p, x)),
    "of parts": lambda np_, m, p, x: sum([0.5 * x, f(np_, p, x), 0.5 * x]),
    "row by row": lambda np_, m, p, x: np_.stack(
        (lambda h: [x[k] + h[k] for k in range(3)])(f(np_, p, x)), 0),
    "step by step": lambda np_, m, p, x: np_.stack(
        (lambda h: [x[:, t] + h[:, t] for t in range(5)])(f(np_, p, x)), 1),
    "with numbers that cancel": lambda np_, m, p, x: (x - 1) + (f(np_, p, x) + 1),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", SUMS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_is_one_in_every_spelling(framework, how):
    def function(np_, p, x):
        return SUMS[how](np_, MORE[id(np_)], p, x)

    entries, notes = same(framework, plain, function, AB)
    assert judged(framework, function, AB, X, X) == {"a": "transit", "b": "zero"}
    assert {name: role for name, (role, *_) in entries.items()} == {"a": "transit", "b": "zero"}
    assert not notes


def looped(parts):
    def body(at, total):
        return total + parts[at]

    return jax.lax.fori_loop(0, len(parts), body, jnp.zeros_like(parts[0]))


IDIOMS = {
    "torch.add with alpha": (in_torch, lambda m, p, x: torch.add(x, f(m, p, x) / 2, alpha=2)),
    "torch.sub with alpha": (in_torch, lambda m, p, x: torch.sub(x, f(m, p, x) / 2, alpha=-2)),
    "add_": (in_torch, lambda m, p, x: x.clone().add_(f(m, p, x))),
    "addcmul": (in_torch, lambda m, p, x: torch.addcmul(x, f(m, p, x), torch.ones(8))),
    "addcdiv": (in_torch, lambda m, p, x: torch.addcdiv(x, f(m, p, x), torch.ones(8))),
    "baddbmm": (in_torch, lambda m, p, x: torch.baddbmm(
        x, torch.tanh(x @ p["a"]), p["b"].expand(3, 8, 8))),
    "index_add": (in_torch, lambda m, p, x: x.index_add(1, torch.arange(5), f(m, p, x))),
    "nansum": (in_torch, lambda m, p, x: torch.nansum(both(m, p, x), 0)),
    "unflatten": (in_torch, lambda m, p, x: torch.cat(
        [x, f(m, p, x)], -1).unflatten(-1, (2, 8)).sum(-2)),
    "vmap": (in_torch, lambda m, p, x: torch.vmap(torch.add)(x, f(m, p, x))),
    "jnp.array of a list": (in_jax, lambda m, p, x: jnp.array([x, f(m, p, x)]).sum(0)),
    "add.reduce": (in_jax, lambda m, p, x: jnp.add.reduce(both(m, p, x), axis=0)),
    "add.accumulate": (in_jax, lambda m, p, x: jnp.add.accumulate(both(m, p, x), axis=0)[-1]),
    "a reversed running sum": (in_jax, lambda m, p, x: jax.lax.cumsum(
        both(m, p, x), 0, reverse=True)[0]),
    "a weighted average": (in_jax, lambda m, p, x: 2 * jnp.average(
        both(m, p, x), 0, weights=jnp.array([1.0, 1.0]))),
    "tree.map": (in_jax, lambda m, p, x: jax.tree.map(jnp.add, {"h": x}, {"h": f(m, p, x)})["h"]),
    "lax.reduce": (in_jax, lambda m, p, x: jax.lax.reduce(
        both(m, p, x), np.float32(0), jax.lax.add, (0,))),
    "a loop over a stack": (in_jax, lambda m, p, x: looped(both(m, p, x))),
    "a scan over a stack": (in_jax, lambda m, p, x: jax.lax.scan(
        lambda total, part: (total + part, None), jnp.zeros_like(x), both(m, p, x))[0]),
    "the last of a scan": (in_jax, lambda m, p, x: jax.lax.scan(
        lambda total, part: (total + part,) * 2, 0 * x, both(m, p, x), reverse=True)[1][0]),
    "at[...].add": (in_jax, lambda m, p, x: jnp.asarray(x).at[...].add(f(m, p, x))),
    "layers.Average": (in_keras, lambda m, p, x: 2 * keras.layers.Average()([x, f(m, p, x)])),
    "ops.average": (in_keras, lambda m, p, x: 2 * ops.average(both(m, p, x), 0)),
    "add_n": (in_keras, lambda m, p, x: tf.add_n([x, f(m, p, x)])),
    "reduce_sum of a list": (in_keras, lambda m, p, x: tf.reduce_sum([x, f(m, p, x)], 0)),
    "tf.cumsum": (in_keras, lambda m, p, x: tf.cumsum(both(m, p, x))[-1]),
}  # fmt: skip


@pytest.mark.parametrize("how", IDIOMS)
def test_a_sum_in_the_idioms_of_each_framework(how):
    framework, function = IDIOMS[how]
    same(framework, plain, function, AB)
    assert judged(framework, function, AB, X, X) == {"a": "transit", "b": "zero"}


CHAINS = {  # the first spelling of each has brackets around what vanishes
    "exp": [
        lambda e, s, p, x, h: x + (e(h) - 1),
        lambda e, s, p, x, h: x + e(h) - 1,
        lambda e, s, p, x, h: x - 1 + e(h),
        lambda e, s, p, x, h: e(h) - (1 - x),
        lambda e, s, p, x, h: x - 0.5 + e(h) - 0.5,
        lambda e, s, p, x, h: (2 * x - 2 + 2 * e(h)) / 2,
    ],
    "sigmoid": [
        lambda e, s, p, x, h: x + (2 * s(h) - 1),
        lambda e, s, p, x, h: x + 2 * s(h) - 1,
        lambda e, s, p, x, h: x - 1 + 2 * s(h),
    ],
    "two": [
        lambda e, s, p, x, h: x + (e(h) - 1) + (e(x @ p["c"]) - 1),
        lambda e, s, p, x, h: x + e(h) + e(x @ p["c"]) - 2,
        lambda e, s, p, x, h: x - 2 + e(h) + e(x @ p["c"]),
    ],
    "no number that cancels": [
        lambda e, s, p, x, h: x + (s(h) - 1),
        lambda e, s, p, x, h: x + s(h) - 1,
        lambda e, s, p, x, h: x - 1 + s(h),
    ],
}


@pytest.mark.every
@pytest.mark.parametrize(
    ("name", "way"), [(k, n) for k in CHAINS for n in range(1, len(CHAINS[k]))]
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_is_judged_without_its_brackets(framework, name, way):
    def spelled(way):
        def function(np_, p, x):
            m = MORE[id(np_)]
            return CHAINS[name][way](m.exp, m.sigmoid, p, x, f(np_, p, x))

        return function

    sizes = AB | ({"c": (8, 8)} if name == "two" else {})
    entries, _ = same(framework, spelled(0), spelled(way), sizes)
    if name != "no number that cancels":
        zero = {name for name, (role, *_) in entries.items() if role == "zero"}
        assert zero == {*sizes} - {"a"}
        judged(framework, spelled(way), sizes, X, X)


BETWEEN = {  # x and h, by c; the first one is written out
    "as a step": lambda c, x, h: x + c * (h - x),
    "as a step back": lambda c, x, h: x - c * (x - h),
    "from the other end": lambda c, x, h: h + (1 - c) * (x - h),
    "in two steps": lambda c, x, h: x + (0.5 * c) * (2 * (h - x)),
}
BY = {
    "a number": lambda m, p, x: 0.25,
    "a parameter": lambda m, p, x: p["c"],
    "a gate": lambda m, p, x: m.sigmoid(p["c"]),
    "a gate of the signal": lambda m, p, x: m.sigmoid(x @ p["c"]),
}


@pytest.mark.every
@pytest.mark.parametrize("how", BETWEEN)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_interpolation_is_one_in_every_spelling(framework, by, how):
    def spelled(between):
        def function(np_, p, x):
            c = BY[by](MORE[id(np_)], p, x)
            return between(c, x, f(np_, p, x))

        return function

    sizes = AB | {
        "a number": {}, "a parameter": {"c": (8,)}, "a gate": {"c": (8,)},
        "a gate of the signal": {"c": (8, 8)},
    }[by]  # fmt: skip
    written = spelled(lambda c, x, h: (1 - c) * x + c * h)
    entries, notes = same(framework, written, spelled(BETWEEN[how]), sizes)
    assert notes == (["gate"] if by == "a gate of the signal" else [])
    assert entries["b"][0] == ("transit" if notes else "zero")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_interpolations_in_a_row_keep_the_stream(framework):
    """Each block reads, and interpolates with, what the last one gave."""

    def spelled(between):
        def function(np_, p, x):
            for name in "abc":
                x = between(x, np_.tanh(x @ p[name]))
            return x

        return function

    written, stepped = (lambda x, h: 0.75 * x + 0.25 * h), (lambda x, h: x + 0.25 * (h - x))
    sizes = dict.fromkeys("abc", (8, 8))
    entries, _ = same(framework, spelled(written), spelled(stepped), sizes)
    assert {role for role, *_ in entries.values()} == {"zero"}
    judged(framework, spelled(stepped), sizes, X, 0.75**3 * X)


PRODUCTS = {  # with the same without brackets
    "x (1 + f)": (lambda m, x, h: x * (1 + h), lambda m, x, h: x + x * h),
    "(f + 1) x": (lambda m, x, h: (h + 1) * x, lambda m, x, h: x + h * x),
    "x (1 - (-f))": (lambda m, x, h: x * (1 - (-h)), lambda m, x, h: x + x * h),
    "of means": (
        lambda m, x, h: x * (1 + m.mean(h, 1, keepdims=True)),
        lambda m, x, h: x + x * m.mean(h, 1, keepdims=True),
    ),
    "and a shift": (lambda m, x, h: x * (1 + h) + h, lambda m, x, h: x + x * h + h),
}


@pytest.mark.parametrize("how", PRODUCTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_product_with_1_and_a_function_of_its_factor_is_a_residual_add(framework, how):
    def spelled(way):
        return lambda np_, p, x: PRODUCTS[how][way](MORE[id(np_)], x, f(np_, p, x))

    same(framework, spelled(1), spelled(0), AB)
    assert judged(framework, spelled(0), AB, X, X) == {"a": "transit", "b": "zero"}


def normed(m, x):
    return x / (m.mean(x * x, -1, keepdims=True) + 1e-6) ** 0.5


SCALES = {  # 1 + s, where s does not come from the other factor
    "of two halves": (lambda np_, m, p, x: x + ((x @ p["a"] + 1) * np_.tanh(x @ p["b"])) @ p["c"],
                      "c"),
    "of a norm": (lambda np_, m, p, x: x + (normed(m, x) * (1 + p["d"])) @ p["a"], "a"),
    "of another input": (
        lambda np_, m, p, x: x[:, 1:] + np_.tanh(
            (normed(m, x[:, 1:]) * (1 + x[:, :1] @ p["a"]) + x[:, :1] @ p["b"]) @ p["c"]) @ p["e"],
        "e"),
    "of a channel": (lambda np_, m, p, x: x + (x @ p["a"]) * (
        1 + m.sigmoid(m.mean(np_.tanh(x @ p["a"]), 1, keepdims=True) @ p["b"])), "a"),
}  # fmt: skip


@pytest.mark.parametrize("how", SCALES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_products_with_1_and_a_signal_are_none(framework, how):
    """As in gpt-oss, Gemma, DiT, and squeeze and excitation: the branch ends where it ended."""
    function, last = SCALES[how]

    def spelled(np_, p, x):
        return function(np_, MORE[id(np_)], p, x)

    sizes = dict.fromkeys("abce", (8, 8)) | {"d": (8,)}
    roles, run = framework(spelled, sizes, X)
    assert [name.strip("./")[-1] for name, role in roles.items() if role == "zero"] == [last]
    draw = {k: np.random.default_rng(1).normal(size=v).astype("float32") for k, v in sizes.items()}
    skip = X[:, 1:] if how == "of another input" else X
    np.testing.assert_allclose(run(draw | {last: 0 * draw[last]}, X), skip, atol=1e-6)


def states(np_, p, x):
    h = np_.tanh(x[:, 0] @ p["w"])
    rows = [h]
    for t in range(1, 5):
        h = np_.tanh(x[:, t] @ p["w"] + h @ p["u"])
        rows.append(h)
    return rows


POOLED = {
    "of a list": lambda np_, m, p, x: sum(states(np_, p, x)[1:], states(np_, p, x)[0]),
    "of a stack": lambda np_, m, p, x: m.sum(np_.stack(states(np_, p, x), 1), 1),
    "5 means": lambda np_, m, p, x: 5 * m.mean(np_.stack(states(np_, p, x), 0), 0),
}


@pytest.mark.every
@pytest.mark.parametrize("how", POOLED)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_over_time_of_the_states_of_a_recurrence_has_no_skip(framework, how):
    """With a zero u each state would forget all steps before it, and the sum be no state."""
    sizes = dict.fromkeys("wuo", (8, 8))
    roles, _ = framework(lambda np_, p, x: POOLED[how](np_, MORE[id(np_)], p, x) @ p["o"], sizes, X)
    assert {role for name, role in roles.items() if "held" not in name} == {"transit"}


def test_a_sum_over_time_in_a_scan_has_no_skip_either():
    def apply(p, x):
        def step(carry, now):
            h = jnp.tanh(now @ p["w"] + carry[0] @ p["u"])
            return (h, carry[1] + h), h

        (_, total), rows = jax.lax.scan(step, (jnp.zeros((3, 8)),) * 2, jnp.swapaxes(x, 0, 1))
        return total @ p["o"], rows.mean(0) @ p["o"]

    p = {name: jnp.ones((8, 8)) for name in "wuo"}
    assert set(decide(irj.trace(p, (X,), apply)).roles.values()) == {"transit"}


# Kinds of one framework ---------------------------------------------------------------------------


class Level(nn.Module):
    """A level at half the resolution that returns to the finer one."""

    def __init__(self, up, skip):
        super().__init__()
        self.up, self.skip = up, skip
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 2, 2)
        self.side, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.ConvTranspose2d(8, 4, 2, 2) if up == "transposed" else nn.Conv2d(8, 16, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = self.last(torch.relu(self.down(x)))
        if self.up == "folded":
            y = functional.fold(y.flatten(2), (8, 8), 2, stride=2)
        elif self.up == "shuffled":
            y = functional.pixel_shuffle(y, 2)
        return self.head(torch.relu((x if self.skip == "plain" else self.side(x)) + y))


@pytest.mark.parametrize("up", ["transposed", "folded", "shuffled"])
def test_blocks_that_are_folded_are_a_transposed_convolution(up):
    x = torch.randn(2, 3, 8, 8)
    plain, level = (decide(irt.trace(Level(up, skip), x)) for skip in ("plain", "projected"))
    assert plain.roles["last.weight"] == "zero"
    assert level.roles["last.weight"] == "transit"
    assert "pyramid" in {note.kind for note in level.warnings}


def test_a_fold_is_the_transposed_convolution_of_its_weight():
    one, other = Level("transposed", "plain"), Level("folded", "plain")
    other.load_state_dict(one.state_dict() | {
        "last.weight": one.last.weight.permute(1, 2, 3, 0).reshape(16, 8, 1, 1),
        "last.bias": one.last.bias.repeat_interleave(4)})  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(one(x), other(x))


def test_blocks_of_stride_1_that_are_folded_are_no_level():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.side = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.first, self.last = nn.Linear(36, 36), nn.Linear(36, 36)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            y = functional.unfold(x, 3, padding=1).mT
            y = self.last(torch.relu(self.first(y))).mT
            return self.side(x) + functional.fold(y, (8, 8), 3, padding=1)

    roles = decide(irt.trace(Net(), torch.randn(2, 3, 8, 8))).roles
    assert [name for name in roles if roles[name] == "zero"] == ["last.weight"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_values_of_a_learned_table_end_no_branch(framework):
    """With all weights after x at 0, the branch is the mean of the values: no identity."""

    def function(np_, p, x):
        scores = (x @ p["q"]) @ (p["t"] @ p["k"]).T if np_ is not KERAS else ops.matmul(
            x @ p["q"], ops.transpose(p["t"] @ p["k"]))  # fmt: skip
        soft = {id(TORCH): lambda s: s.softmax(-1), id(JAX): jax.nn.softmax, id(KERAS): ops.softmax}
        return x + soft[id(np_)](scores) @ (p["t"] @ p["v"])

    sizes = {"t": (6, 8), **dict.fromkeys("qkv", (8, 8))}
    roles, run = framework(function, sizes, X)
    assert {k[-1]: role for k, role in roles.items() if "held" not in k} == {
        "t": "keep", **dict.fromkeys("qkv", "transit")}  # fmt: skip
    draw = {k: np.random.default_rng(1).normal(size=v).astype("float32") for k, v in sizes.items()}
    mean = (draw["t"] @ draw["v"]).mean(0)
    np.testing.assert_allclose(run(draw | {"q": 0 * draw["q"]}, X), X + mean, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("how", ["linear", "plain", "stacked"])
def test_integers_that_a_model_refuses_are_blamed(how, device):
    """A product of integers and floats is an error, though not of fake tensors."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.w = nn.Linear(8, 8), nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x):
            by = {"linear": lambda: self.fc(x), "plain": lambda: x[0] @ self.w[0]}
            return by.get(how, lambda: x @ self.w)()

    model = Model().to(device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(errors.GraphError, match=r"'int64\(3, 5, 8\)'.*(dtype|scalar type)"):
        irt.init_(model, torch.zeros(3, 5, 8, dtype=torch.int64, device=device))
    if device == "cpu":
        assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_integers_that_a_model_accepts_start_a_signal():
    """JAX multiplies integers with floats: all uses of them are of one input."""
    x = np.arange(40).reshape(5, 8)
    p = {name: jnp.ones((8, 8)) for name in "abc"}

    def apply(p, x):
        return x @ p["a"] + jax.nn.relu(x @ p["b"]) @ p["c"]

    new, report = irj.init(p, (x,), apply)
    assert report.roles == {"a": "transit", "b": "transit", "c": "zero"}
    np.testing.assert_array_equal(apply(new | {"c": 0 * new["c"]}, x), x)


@pytest.mark.parametrize("kind", [nnx.Conv, nnx.ConvTranspose])
def test_a_convolution_without_axes_is_a_matrix(kind):
    layer = kind(4, 6, kernel_size=(), rngs=nnx.Rngs(0))
    x = jnp.arange(8.0).reshape(2, 4)
    new, report = irj.init(layer, (x,))
    assert report.roles == {"bias": "bias", "kernel": "transit"}
    np.testing.assert_array_equal(new(x), np.asarray(x)[:, np.arange(6) % 4])
    np.testing.assert_array_equal(irj.idi_layer_(layer)(x), new(x))
    made = kind(4, 6, kernel_size=(), kernel_init=irj.idi(), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(made(x), new(x))


@pytest.mark.every
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_kernel_passes_the_signal_under_each_padding_mode_of_each_rank(mode, rank):
    if (mode, rank) == ("reflect", 3):
        mode = "replicate"  # PyTorch pads no volume by reflection
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    model, x = (
        nn.Sequential(kind(4, 4, 3, padding=1, padding_mode=mode)),
        torch.randn(2, 4, *[6] * rank),
    )
    irt.init_(model, x)
    assert torch.equal(model(x), x)


# Parts that are no matrices -----------------------------------------------------------------------


def three_of_four(np_, h):
    return np_.reshape(np_.reshape(h, (3, 5, 4, 4))[..., 1:], (3, 5, 12))


SOLID = {
    "joined again": lambda np_, h: np_.cat([-h[..., 1::2], h[..., ::2]]),
    "also whole": lambda np_, h: np_.relu(h) * np_.cat([h[..., ::2] * h[..., 1::2]] * 2),
    "one part alone": lambda np_, h: np_.cat([np_.relu(h[..., ::2]), np_.tanh(h[..., ::2])]),
    "of two periods": lambda np_, h: np_.cat([np_.relu(h[..., ::2]), np_.tanh(h[..., 8:])]),
    "unequal": lambda np_, h: np_.cat(
        [np_.relu(np_.reshape(h, (3, 5, 4, 4))[..., 0]), np_.tanh(three_of_four(np_, h))]
    ),
}


@pytest.mark.every
@pytest.mark.parametrize("how", SOLID)
@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_parts_of_heads_that_are_no_matrices(framework, how):
    """They start as one matrix."""

    def function(np_, p, x):
        return x + SOLID[how](np_, x @ p["w"]) @ p["o"]

    (entries, _), _ = framework(function, {"w": (8, 16), "o": (16, 8)}, X, facts)
    assert entries["w"][1] == ir.plan((8, 16), layout="IO")
    assert entries["o"][0] == "zero"


# A recurrent cell ---------------------------------------------------------------------------------


def cell(np_, p, x, joined):
    h, rows = np_.zeros(x[:, 0]), []
    for t in range(3):
        if joined:
            both = np_.reshape(np_.stack([p["w"][:], p["u"][:]]), (16, 8))
            h = np_.tanh(np_.cat([x[:, t], h]) @ both)
        else:
            h = np_.tanh(x[:, t] @ p["w"] + h @ p["u"])
        rows.append(h)
    return x + np_.stack(rows, 1)


@pytest.mark.every
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_matrices_of_a_cell_may_be_joined(framework, joined):
    """With w at 0 the state stays 0, so that a zero u would be in vain (R2)."""
    sizes = {"w": (8, 8), "u": (8, 8)}
    x = X[:, :3] / 10  # tanh is nearly linear
    roles = judged(framework, partial(cell, joined=joined), sizes, x, x)
    assert roles == {"w": "zero", "u": "transit"}


# Sums that are no ties ----------------------------------------------------------------------------


def scored(np_, h, b, c):
    e = np_.exp(np_.relu(b + c))
    return h * (e / (1 + e))


SUMS_OF_TWO = {
    "a tie": (lambda np_, h, b, c: b + c, "the signal grows up to 2-fold"),
    "noise": (lambda np_, h, b, c: b + 0.3 * np_.exp(c / 2), "no role makes the branch of"),
    "scores": (scored, ""),
}


@pytest.mark.parametrize("kind", SUMS_OF_TWO)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_tie_says_what_is_so_and_scores_are_none(framework, kind):
    """The mean and the noise of a VAE; the scores of GAT, whose softmax is written out."""
    function, said = SUMS_OF_TWO[kind]

    def forward(np_, p, x):
        h = x @ p["a"]
        return function(np_, h, h @ p["b"], h @ p["c"]) @ p["d"]

    sizes = dict.fromkeys("abcd", (8, 8))
    notes, run = framework(forward, sizes, X, lambda found: found.warnings)
    texts = [note.text for note in notes if note.kind == "tie"]
    assert (len(texts) == 1 and said in texts[0]) if said else not texts
    eye = dict.fromkeys("abcd", np.eye(8, dtype="float32"))
    whole, alone = run(eye, X), run(eye | {"c": 0 * eye["c"]}, X)
    if kind == "a tie":
        np.testing.assert_allclose(whole, 2 * alone, rtol=1e-6)
    elif kind == "noise":
        assert abs(alone - X).min() > 0.1  # the second term is not small without its weight
    else:
        assert (abs(whole) <= abs(X)).all()  # two terms multiply no signal


@pytest.mark.parametrize("order", ["qlm", "qml", "lmq"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_additive_attention_has_no_branch_in_any_order(framework, order):
    """Query, memory and places, as in Tacotron 2: what `v tanh(q + l + m)` reads are scores."""

    def function(np_, p, x):
        m = MORE[id(np_)]
        h, memory, weights = x[:, 0], x @ p["m"], 0.2 * m.ones((3, 5, 1))
        for _ in range(3):
            terms = {"q": (h @ p["q"])[:, None], "l": weights @ p["l"], "m": memory}
            first, second, third = (terms[name] for name in order)
            scores = m.exp(np_.tanh(first + second + third) @ p["v"])
            weights = scores / m.sum(scores, 1)[:, None]
            h = np_.tanh(m.sum(weights * x, 1) @ p["c"])
        return h @ p["d"]

    sizes = dict.fromkeys("mqcd", (8, 8)) | {"l": (1, 8), "v": (8, 1)}
    roles, run = framework(function, sizes, X)
    assert "zero" not in roles.values()
    rng = np.random.default_rng(1)
    some = {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}
    assert abs(run(some, X) - run(some | {"q": 0 * some["q"]}, X)).max() > 1e-3  # it asks


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_number_of_each_row_may_be_all_that_a_model_gives(framework):
    """A chance is no gate of other signals: what it is computed from has a residual branch."""

    def function(np_, p, x):
        y = np_.exp(np_.tanh(x + f(np_, p, x)) @ p["v"])
        return (y / (1 + y))[..., 0]

    roles, _ = framework(function, AB | {"v": (8, 1)}, X)
    assert {name[-1] for name, role in roles.items() if role == "zero"} == {"b"}
