"""A residual sum, or an attention, that is written in parts has the roles of the whole.

R1 and R2 are measured by running: see `judged`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import ops

import idinit_ref_jax as irj
from adapters.test_spellings import FRAMEWORKS, JAX, KERAS, TORCH, X, judged
from idinit_ref.errors import GraphError
from idinit_ref_torch import init_, plans

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
TORCH.split, TORCH.rows, TORCH.joined = torch.chunk, torch.unbind, torch.cat
TORCH.piled, TORCH.turn = torch.stack, torch.permute
JAX.split, JAX.joined, JAX.piled, JAX.turn = (
    jnp.split, jnp.concatenate, jnp.stack, jnp.transpose)  # fmt: skip
TORCH.einsum, JAX.einsum, KERAS.einsum = torch.einsum, jnp.einsum, ops.einsum
TORCH.soft, JAX.soft, KERAS.soft = partial(torch.softmax, dim=-1), jax.nn.softmax, ops.softmax
TORCH.sum, JAX.sum, KERAS.sum = torch.sum, jnp.sum, ops.sum
TORCH.complex, JAX.complex, KERAS.complex = torch.complex, jax.lax.complex, tf.complex
JAX.rows = lambda x, axis: [jnp.take(x, k, axis) for k in range(x.shape[axis])]
KERAS.split, KERAS.joined, KERAS.piled = ops.split, ops.concatenate, ops.stack
KERAS.turn = ops.transpose
KERAS.rows = lambda x, axis: ops.unstack(x, axis=axis)


def heads(np_, x):
    return np_.turn(np_.reshape(x, (3, 5, 2, 4)), (0, 2, 1, 3))


def unheaded(np_, x):
    return np_.reshape(np_.turn(x, (0, 2, 1, 3)), (3, 5, 8))


def pairs(np_, z):
    real, imag = (
        (tf.math.real, tf.math.imag) if np_ is KERAS else (lambda z: z.real, lambda z: z.imag)
    )
    return np_.cat([real(z), imag(z)])


def summed(one, other):
    return [a + b for a, b in zip(one, other, strict=True)]


PARTS = {
    "slices": lambda np_, x, y: np_.cat([x[..., :3] + y[..., :3], y[..., 3:] + x[..., 3:]]),
    "differences": lambda np_, x, y: np_.cat([x[..., :3] - y[..., :3], x[..., 3:] - y[..., 3:]]),
    "chunks": lambda np_, x, y: np_.joined(summed(np_.split(x, 2, -1), np_.split(y, 2, -1)), -1),
    "channels": lambda np_, x, y: np_.piled(summed(np_.rows(x, -1), np_.rows(y, -1)), -1),
    "steps": lambda np_, x, y: np_.piled(summed(np_.rows(x, 1), np_.rows(y, 1)), 1),
    "members": lambda np_, x, y: np_.piled(summed(np_.rows(x, 0), np_.rows(y, 0)), 0),
    "heads": lambda np_, x, y: unheaded(np_, np_.piled(
        summed(np_.rows(heads(np_, x), 1), np_.rows(heads(np_, y), 1)), 1)),
    "written": lambda np_, x, y: np_.write(x, [
        (0, x[..., ::2] + y[..., ::2]), (1, x[..., 1::2] + y[..., 1::2])], 2),
    "a stack": lambda np_, x, y: np_.sum(np_.piled([x, y], 1), 1),
    "complex pairs": lambda np_, x, y: pairs(np_, np_.complex(*np_.split(x, 2, -1))
                                             + np_.complex(*np_.split(y, 2, -1))),
    "ragged": lambda np_, x, y: np_.joined([
        x[:, :2] + y[:, :2],
        np_.cat([x[:, 2:, :3] + y[:, 2:, :3], x[:, 2:, 3:] + y[:, 2:, 3:]])], 1),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_in_parts_is_a_sum(framework, part):
    def function(np_, p, x):
        for first, last in ("ab", "cd"):
            x = PARTS[part](np_, x, np_.relu(x @ p[first]) @ p[last])
        return x

    sizes = {"a": (8, 12), "b": (12, 8), "c": (8, 12), "d": (12, 8)}
    roles = judged(framework, function, sizes, X, X)
    assert roles == {"a": "transit", "b": "zero", "c": "transit", "d": "zero"}


@pytest.mark.every
@pytest.mark.parametrize("part", sorted(PARTS.keys() - {"ragged"}))
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_projected_shortcut_in_parts_is_one(framework, part):
    def function(np_, p, x):
        return PARTS[part](np_, x @ p["s"], np_.tanh(x @ p["a"]) @ p["b"])

    skip = X @ np.random.default_rng(1).normal(size=(8, 8)).astype("float32")  # as `judged` draws s
    roles = judged(framework, function, dict.fromkeys("sab", (8, 8)), X, skip)
    assert roles == {"s": "transit", "a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_of_the_same_rows_is_rows_of_a_sum(framework):
    def function(np_, p, x):
        return x[:, -1] + (np_.relu(x @ p["a"]) @ p["b"])[:, -1]

    roles = judged(framework, function, dict.fromkeys("ab", (8, 8)), X, X[:, -1])
    assert roles == {"a": "transit", "b": "zero"}


def branches(np_, p, x):
    return np_.relu(x @ p["a"]) @ p["b"], np_.relu(x @ p["c"]) @ p["d"]


OWN = {
    "joined": lambda np_, x, one, two: np_.cat([x[..., :4] + one, x[..., 4:] + two]),
    "written": lambda np_, x, one, two: np_.write(
        x, [(0, x[..., :4] + one), (4, two + x[..., 4:])]),
    "piled": lambda np_, x, one, two: unheaded(np_, np_.piled(
        [heads(np_, x)[:, 0] + one, heads(np_, x)[:, 1] + two], 1)),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_part_may_have_a_branch_of_its_own(framework, how):
    def function(np_, p, x):
        return OWN[how](np_, x, *branches(np_, p, x))

    roles = judged(framework, function, {k: (8, 8) if k in "ac" else (8, 4) for k in "abcd"}, X, X)
    assert roles == {"a": "transit", "b": "zero", "c": "transit", "d": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_part_alone_may_have_a_branch(framework):
    def function(np_, p, x):
        return np_.cat([x[..., :4] + branches(np_, p, x)[0], x[..., 4:]])

    sizes = {k: (8, 8) if k in "ac" else (8, 4) for k in "abcd"}
    assert judged(framework, function, sizes, X, X)["b"] == "zero"


SPLITS = {
    "slices": lambda np_, x: (x[..., :4], x[..., 4:]),
    "chunks": lambda np_, x: np_.split(x, 2, -1),
    "rows": lambda np_, x: np_.rows(np_.reshape(x, (3, 5, 2, 4)), 2),
}


@pytest.mark.every
@pytest.mark.parametrize("joins", ["in every block", "at last"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_halves_that_are_added_to_each_other_are_a_stream_in_the_first_block_too(
    framework, split, joins
):
    """Of a reversible network: y1 = x1 + f(x2), y2 = x2 + g(y1)."""

    def function(np_, p, x):
        one, two = SPLITS[split](np_, x)
        for a, b, c, d in ("abcd", "efgh"):
            one = one + np_.relu(two @ p[a]) @ p[b]
            two = two + np_.relu(one @ p[c]) @ p[d]
            if joins == "in every block":
                one, two = SPLITS[split](np_, np_.cat([one, two]))
        return np_.cat([one, two])

    sizes = {k: (4, 6) if k in "aceg" else (6, 4) for k in "abcdefgh"}
    roles = judged(framework, function, sizes, X, X)
    assert {k for k in roles if roles[k] == "zero"} == {*"bdfh"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_half_that_is_only_read_is_no_stream(framework):
    """In a Res2Net the sum of two halves feeds the next matrix; no half goes on as it is."""

    def function(np_, p, x):
        one, two = np_.split(x @ p["s"], 2, -1)
        one = one @ p["a"]
        return x + np_.cat([one, (two + one) @ p["b"]]) @ p["t"]

    sizes = {"s": (8, 8), "a": (4, 4), "b": (4, 4), "t": (8, 8)}
    roles = judged(framework, function, sizes, X, X)
    assert {k for k in roles if roles[k] == "zero"} == {"t"}


# Heads one after the other -----------------------------------------------------------------------


def attended(np_, q, k, v, how):
    scores = np_.einsum("bqd,bkd->bqk", q, k)
    return np_.einsum("bqk,bkd->bqd", np_.soft(scores) if how == "softmax" else scores, v)


OUTPUTS = {
    "joined": lambda np_, x, each, o: x + np_.cat(each) @ o,
    "piled": lambda np_, x, each, o: x + np_.reshape(np_.piled(each, 2), (3, 5, 8)) @ o,
    "summed": lambda np_, x, each, o: x + (each[0] @ o[:4] + each[1] @ o[4:]),
    "one by one": lambda np_, x, each, o: (x + each[0] @ o[:4]) + each[1] @ o[4:],
}


@pytest.mark.every
@pytest.mark.parametrize("kind", ["softmax", "linear"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_heads_one_after_the_other_have_one_output_matrix(framework, output, kind):
    def function(np_, p, x):
        parts = [np_.split(x @ p[name], 2, -1) for name in "qkv"]
        each = [attended(np_, *of_head, kind) for of_head in zip(*parts, strict=True)]
        return OUTPUTS[output](np_, x, each, p["o"])

    roles = judged(framework, function, dict.fromkeys("qkvo", (8, 8)), X, X)
    assert roles == {"q": "transit", "k": "transit", "v": "transit", "o": "zero"}


@pytest.mark.every
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("packed", ["", "once", "twice"])
def test_heads_in_a_loop_have_the_plans_of_all_heads_at_once(packed, fused):
    """Heads are no blocks: each shows its own part of the stream. Packed queries and keys are."""

    class Model(torch.nn.Module):
        def __init__(self, loops):
            super().__init__()
            self.loops, self.o = loops, torch.nn.Linear(8, 8)
            sizes = {"qkv": 24} if packed else dict.fromkeys("qkv", 8)
            self.layers = torch.nn.ModuleDict({k: torch.nn.Linear(8, n) for k, n in sizes.items()})

        def forward(self, x):
            y = torch.cat([layer(x) for layer in self.layers.values()], -1) if not packed else (
                self.layers["qkv"](x))  # fmt: skip
            parts = y.chunk(3, -1)
            if packed == "twice":
                parts = y[..., :8], *y[..., 8:].chunk(2, -1)
            each = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in parts]
            if self.loops:
                rows = [self.attend(*(part[:, k] for part in each)) for k in range(2)]
                return x + self.o(torch.cat(rows, -1))
            return x + self.o(self.attend(*each).transpose(1, 2).flatten(2))

        def attend(self, q, k, v):
            if fused:
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return (q @ k.mT).softmax(-1) @ v

    one, other = (plans(Model(loops), torch.tensor(X)) for loops in (False, True))
    assert one == other
    assert len(one) == (2 if packed else 4)


# Products with what the skip holds ----------------------------------------------------------------


def unfolded(np_, x):
    """Each step beside its neighbours: (3, 5, 3, 8)."""
    none = np_.zeros(x)[:, :1]
    x = np_.joined([none, x, none], 1)
    return np_.piled([x[:, k : k + 5] for k in range(3)], 2)


SUMMED = {
    "tokens are mixed": (
        lambda np_, p, x: np_.einsum("bqk,bkd->bqd", np_.tanh(x @ p["a"]) @ p["b"], x), (4, 5)),
    "involution": (lambda np_, p, x: np_.einsum(
        "btk,btkd->btd", np_.tanh(x @ p["a"]) @ p["b"], unfolded(np_, x)), (4, 3)),
    "involution of channels": (lambda np_, p, x: (unfolded(np_, x) * np_.reshape(
        np_.tanh(x @ p["a"]) @ p["b"], (3, 5, 3, 8))).sum(2) if np_ is not KERAS else ops.sum(
        unfolded(np_, x) * ops.reshape(np_.tanh(x @ p["a"]) @ p["b"], (3, 5, 3, 8)), 2), (4, 24)),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", SUMMED)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_factor_whose_units_are_summed_ends_a_branch_if_no_other_does(framework, how):
    branch, size = SUMMED[how]
    roles = judged(
        framework, lambda np_, p, x: x + branch(np_, p, x), {"a": (8, 4), "b": size}, X, X
    )
    assert roles == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_attention_without_values_ends_in_a_query_or_key(framework):
    def function(np_, p, x):
        return x + attended(np_, x @ p["q"], x @ p["k"], x, "linear")

    roles = judged(framework, function, dict.fromkeys("qk", (8, 4)), X, X)
    assert sorted(roles.values()) == ["transit", "zero"]


# A shortcut over a blur ---------------------------------------------------------------------------

TAPS = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], "float32") / 16
IMAGES = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype("float32")


def torch_blur(x, taps):
    kernel = torch.tensor(taps).expand(4, 1, 3, 3)
    return torch.conv2d(x.permute(0, 3, 1, 2), kernel, stride=2, groups=4).permute(0, 2, 3, 1)


def jax_blur(x, taps):
    kernel, layout = (
        jnp.broadcast_to(taps[:, :, None, None], (3, 3, 1, 4)),
        ("NHWC", "HWIO", "NHWC"),
    )
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=layout, feature_group_count=4
    )


def keras_blur(x, taps):
    return ops.depthwise_conv(x, np.repeat(taps[:, :, None, None], 4, 2), 2)


TORCH.blur, JAX.blur, KERAS.blur = torch_blur, jax_blur, keras_blur


def blurred(np_, p, x, taps):
    return np_.blur(x, taps) + np_.tanh(x @ p["a"])[:, 1:4:2, 1:4:2] @ p["b"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_blur_is_a_mean(framework):
    """As the anti-aliased pooling of a shortcut, by a depthwise kernel of constants."""
    windows = np.lib.stride_tricks.sliding_window_view(IMAGES, (3, 3), (1, 2))[:, ::2, ::2]
    roles = judged(
        framework, lambda np_, p, x: blurred(np_, p, x, TAPS), dict.fromkeys("ab", (4, 4)), IMAGES,
        (windows * TAPS).sum((-2, -1)))  # fmt: skip
    assert roles == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_filter_is_no_mean(framework):
    roles, _ = framework(
        lambda np_, p, x: blurred(np_, p, x, TAPS - 0.1), dict.fromkeys("ab", (4, 4)), IMAGES
    )
    assert "zero" not in roles.values()


# A batch of masks ---------------------------------------------------------------------------------

MASKS = (np.random.default_rng(2).uniform(size=(4, 3, 5, 8)) > 0.5).astype("float32")
MASKED = {
    "beside the branch": lambda np_, m, f, x: x[None] + m * f(x),
    "mapped": lambda np_, m, f, x: np_.map(lambda one: x + one * f(x), m),
}


@pytest.mark.every
@pytest.mark.parametrize("how", MASKED)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_batch_that_masks_bring_does_not_count(framework, how):
    TORCH.map = lambda function, m: torch.vmap(function)(m)
    JAX.map, KERAS.map = lambda function, m: jax.vmap(function)(m), ops.vectorized_map

    def function(np_, p, x):
        masks = np_.array(MASKS)
        return MASKED[how](np_, masks, lambda y: np_.tanh(y @ p["a"]) @ p["b"], x)

    skip = np.broadcast_to(X, MASKS.shape)
    roles = judged(framework, function, dict.fromkeys("ab", (8, 8)), X, skip)
    assert roles == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_batch_of_another_input_counts(framework):
    """Two axes of tokens are no batch: the sum of x and f(x) for all pairs has no skip."""

    def function(np_, p, x):
        return x + (x[:, None] @ p["a"]) * x[None]

    roles, _ = framework(function, {"a": (8, 8)}, X)
    assert "zero" not in roles.values()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_layer_that_reads_a_signal_twice_has_one_result(framework):
    """As when forward computes the skip anew behind its branch."""

    def function(np_, p, x):
        branch = np_.relu((x @ p["e"]) @ p["a"]) @ p["b"]
        return x @ p["e"] + branch

    skip = X @ np.random.default_rng(1).normal(size=(8, 8)).astype("float32")  # as `judged` draws e
    roles = judged(framework, function, dict.fromkeys("eab", (8, 8)), X, skip)
    assert roles == {"e": "transit", "a": "transit", "b": "zero"}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU])
def test_gates_are_blocks_for_any_number_of_steps(kind, steps):
    """The states of all steps are stacked; that puts no gates together."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = kind(8, 8, 2, batch_first=True), torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0])

    found = plans(Model(), torch.randn(2, steps, 8))
    gates = 4 if kind is torch.nn.LSTM else 3
    blocks = {found[name].blocks for name in found if name.startswith("cell.weight")}
    assert blocks == {(8,) * gates}


def test_gates_that_are_written_out_are_blocks():
    def network(p, x):
        h = c = jnp.zeros((len(x), 8))
        states = []
        for t in range(x.shape[1]):
            i, f, g, o = jnp.split(x[:, t] @ p["w"] + h @ p["u"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            states.append(h)
        return jnp.stack(states, 1) @ p["z"]

    sizes = {"w": (8, 32), "u": (8, 32), "b": (32,), "z": (8, 3)}
    values = {name: jnp.ones(size) for name, size in sizes.items()}
    found = irj.plans(values, (X,), network)
    assert {found[name].blocks for name in ("w", "u")} == {(8, 8, 8, 8)}


def test_a_use_that_nothing_reads_changes_no_plan():
    class Model(torch.nn.Module):
        def __init__(self, dead):
            super().__init__()
            self.qkv, self.out, self.dead = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8), dead

        def forward(self, x):
            if self.dead:
                self.qkv(x)
            q, k, v = (x @ w.T for w in self.qkv.weight.chunk(3))
            return x + self.out((q @ k.mT).softmax(-1) @ v)

    one, other = (plans(Model(dead), torch.randn(2, 5, 8)) for dead in (False, True))
    assert one == other
    assert one["qkv.weight"].blocks == (8, 8, 8)


def test_a_kernel_that_a_style_modulates_is_named():
    """As StyleGAN2 fuses it: the kernel of each sample is a signal; strict refuses to keep it."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.style = torch.nn.Parameter(torch.randn(8, 8, 3, 3)), torch.nn.Linear(6, 8)

        def forward(self, x, z):
            w = self.w[None] * self.style(z)[:, None, :, None, None]
            w = w * torch.rsqrt((w**2).sum((2, 3, 4), keepdim=True) + 1e-8)
            shape = x.shape[0] * 8, 8, 3, 3
            flat = x.reshape(1, -1, 4, 4)
            y = torch.nn.functional.conv2d(flat, w.reshape(shape), padding=1, groups=len(x))
            return x + y.view(x.shape)

    inputs = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    kept = [note.names for note in init_(Model(), inputs).warnings if note.kind == "kept"]
    assert kept == [("w",)]
    with pytest.raises(GraphError, match="makes the kernel"):
        init_(Model(), inputs, strict=True)
