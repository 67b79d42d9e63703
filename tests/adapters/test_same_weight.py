"""One weight in several spellings has one role and one start: those of the plain spelling.

Each spelling is the plain computation in other words. So a chain of four such layers has to start
as that of the plain ones does, as a branch's end its weights have to have the same roles, and R1
and R2 are measured by running it.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from adapters import test_made_kernels as kernels
from adapters.test_tensorflow_vanishing import READERS
from idinit_ref.roles.decide import decide

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
D, HEADS, EXPERTS = 8, 2, 4
K = D // HEADS
X = np.random.default_rng(0).normal(size=(3, 5, D)).astype("float32")
IMAGE = np.random.default_rng(0).normal(size=(2, 6, 6, D)).astype("float32")
ORDER = np.array([3, 1, 0, 2, 7, 6, 5, 4])
UNIT = np.eye(D, dtype="float32")
TURN = UNIT[ORDER]  # a permutation
MIX = np.random.default_rng(2).normal(size=(D, D)).astype("float32")
TAP = np.zeros((3, 3, D, D), "float32")  # the kernel that passes its input
TAP[1, 1] = UNIT


def torch_windows(x, k, pad, step=1):
    """The windows of an image, (..., k * k * channels): as the kernels of `conv` are stored."""
    found = nn.functional.unfold(x.movedim(-1, 1), k, padding=pad, stride=step)
    places = [(n + 2 * pad - k) // step + 1 for n in x.shape[1:3]]
    found = found.view(x.shape[0], x.shape[-1], k, k, *places)
    return found.permute(0, 4, 5, 2, 3, 1).reshape(x.shape[0], *places, -1)


def jax_windows(x, k, pad, step=1):
    kinds = ("NHWC", "HWIO", "NHWC")
    found = jax.lax.conv_general_dilated_patches(
        x, (k, k), (step, step), [(pad, pad)] * 2, dimension_numbers=kinds
    )
    found = found.reshape(*found.shape[:3], x.shape[-1], k, k)
    return found.transpose(0, 1, 2, 4, 5, 3).reshape(*found.shape[:3], -1)


def keras_windows(x, k, pad, step=1):
    x = tf.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    return keras.ops.image.extract_patches(x, k, step, padding="valid")


def tf_windows(x, k, pad, step=1):
    x = tf.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    return tf.image.extract_patches(x, [1, k, k, 1], [1, step, step, 1], [1, 1, 1, 1], "VALID")


TORCH = SimpleNamespace(
    **vars(kernels.TORCH), array=torch.tensor, diag=torch.diag, t=lambda w: w.mT,
    softmax=lambda x: torch.softmax(x, -1), sigmoid=torch.sigmoid, take=lambda w, at: w[:, at],
    windows=[torch_windows], stack=torch.stack, blocks=torch.block_diag,
)  # fmt: skip
JAX = SimpleNamespace(
    **vars(kernels.JAX), array=jnp.array, diag=jnp.diag, t=lambda w: jnp.swapaxes(w, -1, -2),
    softmax=jax.nn.softmax, sigmoid=jax.nn.sigmoid, take=lambda w, at: w[:, at],
    windows=[jax_windows], stack=jnp.stack, blocks=jax.scipy.linalg.block_diag,
)  # fmt: skip
KERAS = SimpleNamespace(
    **vars(kernels.KERAS), array=tf.constant, diag=tf.linalg.diag, t=tf.linalg.matrix_transpose,
    softmax=tf.nn.softmax, sigmoid=tf.sigmoid, take=lambda w, at: tf.gather(w, at, axis=1),
    windows=[keras_windows, tf_windows], stack=tf.stack,
    blocks=lambda c, d: tf.linalg.LinearOperatorBlockDiag(
        [tf.linalg.LinearOperatorFullMatrix(c), tf.linalg.LinearOperatorFullMatrix(d)]).to_dense(),
)  # fmt: skip


def in_torch(function, sizes, x):
    """Initialise a function of parameters and an input; return its roles and values, and it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.tensor(v) for k, v in drawn(sizes).items()})

        def forward(self, x):
            return function(TORCH, dict(self.p.items()), x)

    def run(p, x):
        p = {k: torch.tensor(v) for k, v in p.items()}
        return function(TORCH, p, torch.tensor(x)).numpy()

    model = Model()
    report = irt.init_(model, torch.tensor(x))
    values = {k: v.detach().numpy().copy() for k, v in model.p.items()}
    return report, values, run


def in_jax(function, sizes, x):
    new, report = irj.init(drawn(sizes), jnp.asarray(x), lambda p, x: function(JAX, p, x))
    values = {k: np.asarray(v) for k, v in new.items()}
    return report, values, lambda p, x: np.asarray(function(JAX, p, jnp.asarray(x)))


def in_keras(function, sizes, x):
    class Model(keras.layers.Layer):
        def build(self, shape):
            self.p = {
                k: self.add_weight(shape=v.shape, name=k, initializer=lambda *a, v=v, **_: v)
                for k, v in drawn(sizes).items()
            }

        def call(self, x):
            return function(KERAS, self.p, x)

    def run(p, x):
        p = {k: tf.constant(v) for k, v in p.items()}
        return np.asarray(function(KERAS, p, tf.constant(x)))

    model = Model()
    report = irk.init_(model, x)
    return report, {k: np.asarray(v) for k, v in model.p.items()}, run


FRAMEWORKS = [in_torch, in_jax, in_keras]


def drawn(sizes):
    rng = np.random.default_rng(1)
    return {k: (rng.normal(size=size) / 2).astype("float32") for k, size in sizes.items()}


def heads(m, p, names="uv"):
    """The matrices of the heads: of u they follow the inputs, of v they precede the outputs."""
    u, v = (p[name] for name in names)
    return m.reshape(u, (D, HEADS, K)), m.reshape(v, (HEADS, K, D))


def tall(m, w):
    return m.reshape(w, (1, 1, D, D))


PAIR, SCALED = {"u": (D, D), "v": (D, D)}, {"u": (D, D), "s": (D,), "v": (D, D)}
ONE = {"w": (D, D)}
STACK = {"w": (4, D, D)}
HOT = np.eye(4, dtype="float32")


def routed(m, x, p):
    """The weight of each expert for each sample."""
    return m.softmax(m.mean(x, 1) @ p["r"])


def layers(get):
    """A chain of the matrices of a stack."""

    def use(m, x, p):
        for at in range(4):
            x = m.relu(x @ get(m, p["w"], at))
        return x

    return use


CASES = {  # the sizes, the input, the plain spelling, and others
    "a product of two": (PAIR, X, lambda m, x, p: (x @ p["u"]) @ p["v"], {
        "merged": lambda m, x, p: x @ (p["u"] @ p["v"]),
        "of heads": lambda m, x, p: x @ m.einsum("dhk,hke->de", *heads(m, p)),
        "heads, then summed": lambda m, x, p: m.sum(
            m.einsum("btd,hde->bthe", x, m.einsum("dhk,hke->hde", *heads(m, p))), 2),
        "a matrix per head": lambda m, x, p: m.einsum(
            "btd,hde->bte", x, m.einsum("dhk,hke->hde", *heads(m, p))),
    }),
    "a part of a product": (
        {"u": (D, D), "v": (D, D + 2)}, X, lambda m, x, p: (x @ p["u"]) @ p["v"][:, 1:-1],
        {"cut": lambda m, x, p: x @ (p["u"] @ p["v"])[:, 1:-1]}),
    "a product with a scale": (SCALED, X, lambda m, x, p: ((x @ p["u"]) * p["s"]) @ p["v"], {
        "of a diagonal": lambda m, x, p: x @ (p["u"] @ m.diag(p["s"]) @ p["v"]),
        "of columns": lambda m, x, p: x @ ((p["u"] * p["s"]) @ p["v"]),
        "of rows": lambda m, x, p: x @ (p["u"] @ (p["s"][:, None] * p["v"])),
        "einsum": lambda m, x, p: x @ m.einsum("dr,r,re->de", p["u"], p["s"], p["v"]),
    }),
    "a scale of outputs": (
        {"w": (D, D), "s": (D,)}, X, lambda m, x, p: (x @ p["w"]) * p["s"],
        {"merged": lambda m, x, p: x @ (p["w"] * p["s"])}),
    "a scale of inputs": (
        {"w": (D, D), "s": (D,)}, X, lambda m, x, p: (x * p["s"]) @ p["w"],
        {"merged": lambda m, x, p: x @ (p["s"][:, None] * p["w"])}),
    "a kernel of two": (
        {"v": (3, 3, D, D), "u": (D, D)}, IMAGE, lambda m, x, p: m.conv(x, p["v"], 1) @ p["u"], {
            "merged": lambda m, x, p: m.conv(
                x, m.reshape(m.reshape(p["v"], (9 * D, D)) @ p["u"], (3, 3, D, D)), 1),
            "einsum": lambda m, x, p: m.conv(
                x, m.einsum("hwir,ro->hwio", p["v"], p["u"]), 1),
        }),
    "a kernel behind a matrix": (
        {"u": (D, D), "v": (3, 3, D, D)}, IMAGE, lambda m, x, p: m.conv(x @ p["u"], p["v"], 1), {
            "einsum": lambda m, x, p: m.conv(
                x, m.einsum("ir,hwro->hwio", p["u"], p["v"]), 1),
        }),
    "a scaled kernel": (
        {"w": (3, 3, D, D), "s": (D,)}, IMAGE, lambda m, x, p: m.conv(x, p["w"], 1) * p["s"],
        {"merged": lambda m, x, p: m.conv(x, p["w"] * p["s"], 1)}),
    "two kernels": (
        {"v": (3, 3, D, D), "w": (1, 1, D, D)}, IMAGE,
        lambda m, x, p: m.conv(x, p["v"], 1) + m.conv(x, p["w"], 0),
        {"merged": lambda m, x, p: m.conv(x, p["v"] + m.pad(p["w"], kernels.ROUND), 1)}),
    "two kernels and the input": (
        {"v": (3, 3, D, D), "w": (1, 1, D, D)}, IMAGE,
        lambda m, x, p: m.conv(x, p["v"], 1) + m.conv(x, p["w"], 0) + x,
        {"merged": lambda m, x, p: m.conv(
            x, p["v"] + m.pad(p["w"], kernels.ROUND) + m.array(TAP), 1)}),
    "a kernel and the input": (
        {"w": (3, 3, D, D)}, IMAGE, lambda m, x, p: m.conv(x, p["w"], 1) + x,
        {"merged": lambda m, x, p: m.conv(x, p["w"] + m.array(TAP), 1)}),
    "a convolution": (
        {"w": (3, 3, D, D)}, IMAGE, lambda m, x, p: m.conv(x, p["w"], 1), {
            "of windows": lambda m, x, p: m.windows[0](x, 3, 1) @ m.reshape(p["w"], (9 * D, D)),
            "other windows": lambda m, x, p: m.einsum(
                "bhwk,ko->bhwo", m.windows[-1](x, 3, 1), m.reshape(p["w"], (9 * D, D))),
            "windows in order": lambda m, x, p: m.einsum(
                "bhwyxi,yxio->bhwo", m.reshape(m.windows[0](x, 3, 1), (2, 6, 6, 3, 3, D)), p["w"]),
        }),
    "two scaled kernels": (
        {"v": (3, 3, D, D), "w": (1, 1, D, D), "g": (D,), "h": (D,)}, IMAGE,
        lambda m, x, p: m.conv(x, p["v"], 1) * p["g"] + m.conv(x, p["w"], 0) * p["h"], {
            "merged": lambda m, x, p: m.conv(
                x, p["v"] * p["g"] + m.pad(p["w"] * p["h"], kernels.ROUND), 1)}),
    "a convolution at windows": (
        {"w": (9 * D, D)}, IMAGE,
        lambda m, x, p: m.conv(x, m.reshape(p["w"], (3, 3, D, D)), 1), {
            "of one tap": lambda m, x, p: m.conv(m.windows[0](x, 3, 1), p["w"][None, None], 0)}),
    "a concatenation": (
        ONE, X, lambda m, x, p: m.cat([m.relu(x[..., :K]), x[..., K:] ** 2], -1) @ p["w"], {
            "in slices": lambda m, x, p: (
                m.relu(x[..., :K]) @ p["w"][:K] + x[..., K:] ** 2 @ p["w"][K:]),
            "in other slices": lambda m, x, p: (
                x[..., K:] ** 2 @ p["w"][K:] + m.relu(x[..., :K]) @ p["w"][:K]),
        }),
    "blocks": (
        {"c": (K, K), "d": (K, K)}, X,
        lambda m, x, p: m.cat([x[..., :K] @ p["c"], x[..., K:] @ p["d"]], -1), {
            "on a diagonal": lambda m, x, p: x @ m.blocks(p["c"], p["d"]),
            "padded": lambda m, x, p: x @ m.cat(
                [m.pad(p["c"], ((0, 0), (0, K))), m.pad(p["d"], ((0, 0), (K, 0)))], 0),
        }),
    "a matrix": (ONE, X, lambda m, x, p: x @ p["w"], {
        "in rows": lambda m, x, p: x @ m.stack([p["w"][k] for k in range(D)]),
        "in columns": lambda m, x, p: m.cat([x @ p["w"][:, :K], x @ p["w"][:, K:]], -1),
        "in four": lambda m, x, p: m.cat([
            sum(x[..., K * i:K * i + K] @ p["w"][K * i:K * i + K, K * o:K * o + K] for i in (0, 1))
            for o in (0, 1)], -1),
        "plus 0": lambda m, x, p: x @ (p["w"] + 0.0),
        "to the power 1": lambda m, x, p: x @ p["w"] ** 1,
        "times ones": lambda m, x, p: x @ (p["w"] * m.array(np.ones(D, "float32"))),
        "all rows": lambda m, x, p: x @ m.t(m.take(m.t(p["w"]), np.arange(D))),
        "flattened": lambda m, x, p: x @ m.reshape(m.reshape(p["w"], (-1,)), (D, D)),
        "copied": lambda m, x, p: m.einsum(
            "bti,bio->bto", x, m.cat([p["w"][None]] * 3, 0)),
        "one-hot rows": lambda m, x, p: x @ (m.array(UNIT) @ p["w"]),
    }),
    "columns in another order": (
        ONE, X, lambda m, x, p: (x @ p["w"]) @ m.array(TURN.T),
        {"of the weight": lambda m, x, p: x @ m.take(p["w"], ORDER)}),
    "slices of one source": (ONE, X, lambda m, x, p: x @ p["w"], {
        "two": lambda m, x, p: x[..., :K] @ p["w"][:K] + x[..., K:] @ p["w"][K:],
        "three": lambda m, x, p: (
            x[..., :2] @ p["w"][:2] + x[..., 2:3] @ p["w"][2:3] + x[..., 3:] @ p["w"][3:]),
    }),
    "two matrices": (PAIR, X, lambda m, x, p: x @ p["u"] + x @ p["v"],
        {"merged": lambda m, x, p: x @ (p["u"] + p["v"])}),
    "a matrix and the input": (ONE, X, lambda m, x, p: x @ p["w"] + x, {
        "merged": lambda m, x, p: x @ (p["w"] + m.array(UNIT)),
        "a unit matrix": lambda m, x, p: x @ p["w"] + x @ m.array(UNIT),
    }),
    "a constant behind": (ONE, X, lambda m, x, p: (x @ p["w"]) @ m.array(MIX), {
        "merged": lambda m, x, p: x @ (p["w"] @ m.array(MIX)),
        "einsum": lambda m, x, p: m.einsum("bti,io,oe->bte", x, p["w"], m.array(MIX)),
    }),
    "a constant before": (ONE, X, lambda m, x, p: (x @ m.array(TURN)) @ p["w"],
        {"merged": lambda m, x, p: x @ (m.array(TURN) @ p["w"])}),
    "a mixture of matrices": (
        {"r": (D, EXPERTS), "w": (EXPERTS, D, D)}, X,
        lambda m, x, p: sum(
            routed(m, x, p)[:, e, None, None] * (x @ p["w"][e]) for e in range(EXPERTS)), {
            "mixed first": lambda m, x, p: x @ m.einsum("be,eio->bio", routed(m, x, p), p["w"]),
            "mixed as rows": lambda m, x, p: x @ m.reshape(
                routed(m, x, p) @ m.reshape(p["w"], (EXPERTS, D * D)), (3, D, D)),
            "mixed last": lambda m, x, p: m.einsum(
                "be,beto->bto", routed(m, x, p), m.einsum("bti,eio->beto", x, p["w"])),
            "gated and summed": lambda m, x, p: m.sum(
                routed(m, x, p)[:, :, None, None] * m.einsum("bti,eio->beto", x, p["w"]), 1),
        }),
    "a stack": (STACK, np.abs(X), layers(lambda m, w, at: w[at]), {
        "one-hot": layers(lambda m, w, at: m.einsum("l,lio->io", m.array(HOT[at]), w)),
        "one-hot product": layers(
            lambda m, w, at: m.sum(m.array(HOT[at])[:, None, None] * w, 0)),
        "one-hot rows": layers(lambda m, w, at: m.reshape(
            m.array(HOT[at:at + 1]) @ m.reshape(w, (4, D * D)), (D, D))),
    }),
}  # fmt: skip
SPELT = [(name, way) for name, (*_, ways) in CASES.items() for way in ways]


def chain(use, sizes):
    names = [f"{k}{at}" for at in range(4) for k in sizes]

    def function(m, p, x):
        for at in range(4):
            x = use(m, x, {k: p[f"{k}{at}"] for k in sizes})
        return x

    return function, {name: sizes[name[:-1]] for name in names}


def branch(use, sizes, x):
    def function(m, p, x):
        return x + use(m, m.relu(x @ p["a"]), p)

    return function, {"a": (x.shape[-1],) * 2, **sizes}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "way"), SPELT)
@pytest.mark.every
def test_a_chain_starts_as_the_plain_one(framework, name, way):
    sizes, x, plain, ways = CASES[name]
    found = [framework(*chain(use, sizes), x) for use in (plain, ways[way])]
    (one, values, run), (other, ours, spelt) = found
    result = run(values, x)
    np.testing.assert_allclose(spelt(values, x), result, atol=1e-5 * np.abs(result).max())
    assert list(other.roles.values()) == list(one.roles.values())
    kinds = [{note.kind for note in report.warnings} for report in (one, other)]
    if name == "a mixture of matrices":  # its plain sum of experts is told as one of k branches
        kinds[0] -= {"tie"}
    assert kinds[0] == kinds[1]
    for k, value in values.items():
        np.testing.assert_array_equal(ours[k], value, k)


def held(report, name, shape):
    """Return the entries of a parameter that are to be zero: of a stack, those of some matrices."""
    found = np.full(shape, report.roles[name] == "zero")
    plan = report.plans.get(name)
    for place, role in plan.parts if plan and not isinstance(plan.role, str) else ():
        found[place] = role == "zero"
    return found


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "way"), SPELT)
@pytest.mark.every
def test_a_branch_ends_as_the_plain_one(framework, name, way):
    sizes, x, plain, ways = CASES[name]
    one, *_ = framework(*branch(plain, sizes, x), x)
    other, values, run = framework(*branch(ways[way], sizes, x), x)
    assert list(other.roles.values()) == list(one.roles.values())
    names = dict(zip(sorted(values), sorted(other.roles), strict=True))
    zero = {k: held(other, names[k], v.shape) for k, v in values.items()}
    zero = {k: part for k, part in zero.items() if part.any()}
    assert zero
    random = drawn({k: v.shape for k, v in values.items()})
    silent = {k: v * ~zero.get(k, np.array(False)) for k, v in random.items()}
    skip = run(silent, x)
    np.testing.assert_allclose(
        skip, run(dict.fromkeys(values, 0) | {k: 0 * v for k, v in values.items()}, x), atol=1e-5
    )
    for k in zero:
        steps = (np.where(zero[k], by, 1).astype("float32") for by in (1e-2, 2e-2))
        a, b = (run(silent | {k: random[k] * step}, x) - skip for step in steps)
        assert np.abs(a).max() > 1e-4, k
        np.testing.assert_allclose(b, 2 * a, atol=0.1 * np.abs(a).max())


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("at", [0, -1])
def test_windows_without_overlap_are_a_convolution_with_strides(framework, at):
    def use(m, p, x):
        return m.windows[at](x, 2, 0, 2) @ m.reshape(p["w"], (4 * D, D))

    report, values, run = framework(use, {"w": (2, 2, D, D)}, IMAGE)
    assert list(report.roles.values()) == ["transit"]
    np.testing.assert_array_equal(run(values, IMAGE), IMAGE[:, ::2, ::2])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_both_readers_of_keras_see_windows(reader, padding):
    """A dense layer behind them is a kernel, whose tap is that of a convolution."""
    given = keras.Input((6, 6, D), batch_size=2)
    found = keras.ops.image.extract_patches(given, 3, 1, padding=padding)
    model = keras.Model(given, keras.layers.Dense(D)(found))
    (plan,) = decide(READERS[reader](model)).plans.values()
    assert plan.layout == "HWIO"
    assert plan.tap == ((1, 1) if padding == "same" else (0, 0))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_windows_of_each_channel_are_a_depthwise_convolution(framework):
    def use(m, x, p):
        found = m.reshape(m.windows[0](x, 3, 1), (2, 6, 6, 9, D))
        return m.einsum("bhwki,ki->bhwi", found, m.reshape(p["w"], (9, D)))

    report, values, run = framework(*chain(use, {"w": (3, 3, D)}), IMAGE)
    assert {*report.roles.values()} == {"transit"}
    np.testing.assert_array_equal(run(values, IMAGE), IMAGE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("outputs", [D, K])
def test_slices_that_read_two_inputs_are_one_matrix(framework, outputs):
    """Also where the matrix has fewer outputs than inputs: it is folded, as after a `cat`."""

    def joined(m, x, p):
        return m.cat([x[..., :K] @ p["a"], x[..., K:] @ p["b"]], -1) @ p["w"]

    def sliced(m, x, p):
        return (x[..., :K] @ p["a"]) @ p["w"][:K] + (x[..., K:] @ p["b"]) @ p["w"][K:]

    sizes = {"a": (K, K), "b": (K, K), "w": (D, outputs)}
    found = [framework(lambda m, p, x, use=use: use(m, x, p), sizes, X) for use in (joined, sliced)]
    (one, values, run), (other, ours, spelt) = found
    assert list(other.roles.values()) == list(one.roles.values())
    assert [plan.wide for plan in other.plans.values()] == [
        plan.wide for plan in one.plans.values()
    ]
    np.testing.assert_allclose(spelt(ours, X), run(values, X), atol=1e-6)


def torch_samples(x, w):
    """A convolution of images with a kernel each, (N, k, k, inputs, outputs), as one of groups."""
    n, k, _, inputs, outputs = w.shape
    kernel = w.permute(0, 4, 3, 1, 2).reshape(n * outputs, inputs, k, k)
    x = x.movedim(-1, 1).reshape(1, n * inputs, *x.shape[1:3])
    found = nn.functional.conv2d(x, kernel, padding=k // 2, groups=n)
    return found.view(n, outputs, *x.shape[2:]).movedim(1, -1)


SAMPLES = {
    "PyTorch": (in_torch, torch_samples),
    "JAX": (in_jax, lambda x, w: jax.vmap(lambda x, w: kernels.jax_conv(x[None], w, 1)[0])(x, w)),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("squash", ["softmax", "sigmoid"])
def test_kernels_that_a_router_mixes_are_a_kernel_of_each_expert(name, squash):
    """CondConv: the sum of the experts' results, and of their kernels first."""
    framework, convolved = SAMPLES[name]

    def router(m, x, p):
        return getattr(m, squash)(m.mean(m.mean(x, 1), 1) @ p["r"])

    def plain(m, x, p):
        g = router(m, x, p)
        return sum(g[:, e, None, None, None] * m.conv(x, p["w"][e], 1) for e in range(EXPERTS))

    def mixed(m, x, p):
        return convolved(x, m.einsum("be,ehwio->bhwio", router(m, x, p), p["w"]))

    sizes = {"r": (D, EXPERTS), "w": (EXPERTS, 3, 3, D, D)}
    for build in (lambda use: branch(use, sizes, IMAGE), lambda use: chain(use, sizes)):
        (one, values, run), (other, ours, spelt) = (
            framework(*build(use), IMAGE) for use in (plain, mixed)
        )
        assert list(other.roles.values()) == list(one.roles.values())
        result = run(values, IMAGE)
        np.testing.assert_allclose(spelt(ours, IMAGE), result, atol=1e-5 * np.abs(result).max())
    assert {*one.roles.values()} == {"transit"}
    assert (
        sum(
            role == "zero"
            for role in framework(*branch(mixed, sizes, IMAGE), IMAGE)[0].roles.values()
        )
        == 1
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_matrix_that_a_router_makes_with_a_bias_ends_in_its_table(framework):
    """It is no mixture: the bias is a matrix of its own, which no router weighs."""

    def function(m, p, x):
        made = m.sigmoid(m.mean(x, 1) @ p["r"]) @ p["w"] + p["b"]
        return x + m.einsum("bti,bio->bto", x, m.reshape(made, (3, D, D)))

    sizes = {"b": (D * D,), "r": (D, EXPERTS), "w": (EXPERTS, D * D)}
    report, values, run = framework(function, sizes, X)
    assert list(report.roles.values()) == ["bias", "transit", "zero"]
    silent = values | {name: 0 * values[name] for name in "bw"}
    np.testing.assert_allclose(run(silent, X), X, atol=1e-6)
    draw = np.random.default_rng(3).normal(size=sizes["w"]).astype("float32")
    one, two = (run(silent | {"w": by * draw}, X) - X for by in (1e-3, 2e-3))
    assert np.abs(one).max() > 1e-5
    np.testing.assert_allclose(two, 2 * one, atol=0.1 * np.abs(one).max())


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("size", [1, 3])
def test_channels_that_are_cut_into_whole_parts_are_packed_as_columns_are(framework, size):
    """Queries, keys and values of an image, as a matrix and as a convolution."""

    def attended(m, x, z, o):
        q, k, v = (m.reshape(z[..., at : at + D], (2, 36, D)) for at in (0, D, 2 * D))
        a = m.softmax(m.einsum("btd,bsd->bts", q, k) / 3)
        return x + m.reshape(m.einsum("bts,bsd->btd", a, v) @ o, (2, 6, 6, D))

    def dense(m, p, x):
        return attended(m, x, x @ p["w"], p["o"])

    def convolved(m, p, x):
        return attended(m, x, m.conv(x, p["w"], size // 2), p["o"])

    _, plain, run = framework(dense, {"w": (D, 3 * D), "o": (D, D)}, IMAGE)
    report, values, other = framework(convolved, {"w": (size, size, D, 3 * D), "o": (D, D)}, IMAGE)
    assert {name[-1]: role for name, role in report.roles.items()} == {"w": "transit", "o": "zero"}
    np.testing.assert_array_equal(values["w"][size // 2, size // 2], plain["w"])
    values["o"] = plain["o"] = UNIT
    np.testing.assert_allclose(other(values, IMAGE), run(plain, IMAGE), atol=1e-6)
