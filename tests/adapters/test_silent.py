"""No matrix that a computation uses is kept in silence, and what can have a role has one.

Weights that are chosen from copies of themselves, that numbers of the inputs mix, that signals
change, that lie in one vector, or that are orthogonal by construction.
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
from jax import lax
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import idinit_ref_jax as irj
import idinit_ref_torch as irt
from adapters import test_same_weight as same
from idinit_ref.errors import GraphError

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
D, X = same.D, same.X
TORCH = SimpleNamespace(
    where=torch.where, stop=lambda x: x.detach(), whole=lambda x: x.int(), lerp=torch.lerp
)
JAX = SimpleNamespace(
    where=jnp.where, stop=lax.stop_gradient, whole=lambda x: x.astype(int).astype(x.dtype),
    lerp=lambda a, b, t: a + t * (b - a),
)  # fmt: skip
KERAS = SimpleNamespace(
    where=tf.where, stop=tf.stop_gradient, lerp=lambda a, b, t: a + t * (b - a),
    whole=lambda x: tf.cast(tf.cast(x, "int32"), x.dtype),
)  # fmt: skip
MORE = ((same.TORCH, TORCH), (same.JAX, JAX), (same.KERAS, KERAS))
FRAMEWORKS = pytest.mark.parametrize("framework", same.FRAMEWORKS)
U, V, W = {"u": (D, D)}, {"v": (D, D)}, {"w": (D, D)}


def more(m):
    """The operations that `m` lacks."""
    return next(own for known, own in MORE if known is m)


def last(names):
    """Names of parameters by their last letter."""
    return {name.strip("./")[-1] for name in names}


def kept(report):
    """The matrices that the report says are kept."""
    return last(name for note in report.warnings if note.kind == "kept" for name in note.names)


def judged(framework, function, sizes):
    """The report of x + f(x); R1 and R2 hold for the weights in role zero, all others random."""
    report, values, run = framework(function, sizes, X)
    roles = {name.strip("./")[-1]: role for name, role in report.roles.items()}
    draw, zero = same.drawn(sizes), {name for name in roles if roles[name] == "zero"}
    silent = {name: draw[name] * (name not in zero) for name in sizes}
    if zero:
        np.testing.assert_allclose(run(silent, X), X, atol=1e-5)
        np.testing.assert_allclose(run(values, X), X, atol=1e-4)
    for name in zero:
        one, two = (run(silent | {name: by * draw[name]}, X) - X for by in (1e-2, 2e-2))
        assert np.abs(one).max() > 1e-4, name
        np.testing.assert_allclose(two, 2 * one, atol=0.1 * np.abs(one).max())
    return report, roles


# A choice between a value and its own copy that stops gradients ----------------------------------


@FRAMEWORKS
@pytest.mark.parametrize("is_first", [True, False])
def test_a_choice_of_a_value_and_its_own_stopped_copy_is_the_value(framework, is_first):
    def function(m, p, x):
        np_ = more(m)

        def chosen(value):
            pair = (value, np_.stop(value)) if is_first else (np_.stop(value), value)
            return np_.where(m.sum(x[0, 0], 0) > 0, *pair)

        return chosen(x) + m.relu(x @ chosen(p["u"])) @ chosen(p["w"])

    report, roles = judged(framework, function, U | W)
    assert roles == {"u": "transit", "w": "zero"}
    assert not report.warnings


def test_what_is_chosen_from_two_stopped_copies_stays_frozen():
    def function(m, p, x):
        w = torch.where(x.sum() > 0, p["w"].detach(), p["w"].detach())
        return x + torch.relu(x @ p["u"]) @ w

    report, _, _ = same.in_torch(function, U | W, X)
    entry = next(entry for entry in report.entries if entry.name == "p.w")
    assert entry.role == "keep"


BRANCHED = {
    "cond": lambda block, t: lax.cond(t.sum() > -99, block, lambda t: t, t),
    "switch": lambda block, t: lax.switch(jnp.int32(t.sum() > 99), [block, lambda t: t * 1.0], t),
}


@pytest.mark.parametrize("how", BRANCHED)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_branch_under_vmap_is_the_branch(how, is_mapped):
    """JAX then chooses between every operand and its stopped copy."""

    def apply(p, x):
        def one(t):
            return BRANCHED[how](lambda t: t + jnp.tanh(t @ p["u"] + p["b"]) @ p["w"], t)

        return jax.vmap(one)(x) if is_mapped else one(x)

    p = {name: jnp.asarray(v) for name, v in same.drawn(U | W | {"b": (D,)}).items()}
    x = jnp.asarray(X[0])
    new, report = irj.init(p, x, apply, strict=True)
    assert report.roles == {"b": "bias", "u": "transit", "w": "zero"}
    np.testing.assert_allclose(apply(new, x), x, atol=1e-5)
    assert np.abs(apply(p, x) - x).max() > 0.1


# Weights that numbers of the inputs mix ----------------------------------------------------------


EXPERTS = {"r": (D, 3), "u": (D, D), "v": (D, D), "w": (D, D)}


def shares(m, p, x):
    return m.softmax(m.reshape(m.mean(m.mean(x, 1), 0), (1, D)) @ p["r"])[0]


def looped(m, p, x):
    a = shares(m, p, x)
    return sum(a[at] * p[name] for at, name in enumerate("uvw"))


def stacked(m, p, x):
    stack = m.cat([m.reshape(p[name], (1, D, D)) for name in "uvw"], 0)
    return m.einsum("e,eio->io", shares(m, p, x), stack)


@FRAMEWORKS
def test_a_mixture_in_a_loop_is_the_stacked_one(framework):
    def function(mix):
        return lambda m, p, x: x + m.relu(x) @ mix(m, p, x)

    (one, roles), (other, ours) = (
        judged(framework, function(m), EXPERTS) for m in (stacked, looped)
    )
    assert ours == roles == {"r": "transit", "u": "zero", "v": "zero", "w": "zero"}
    assert [note.kind for note in other.warnings] == [note.kind for note in one.warnings]


@FRAMEWORKS
def test_a_mixture_in_a_loop_is_the_stacked_one_without_a_skip(framework):
    def function(mix):
        return lambda m, p, x: m.relu(x @ p["a"]) @ mix(m, p, x)

    found = [framework(function(m), {"a": (D, D), **EXPERTS}, X)[0] for m in (stacked, looped)]
    assert {*found[0].roles.values()} == {"transit"}
    assert list(found[0].roles.values()) == list(found[1].roles.values())
    assert [note.kind for note in found[0].warnings] == [note.kind for note in found[1].warnings]


@FRAMEWORKS
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_stack_that_is_mixed_in_a_loop_is_the_mixed_stack(framework, is_turned):
    def function(m, p, x):
        a = shares(m, p, x)
        w = sum(a[at] * p["w"][at] for at in range(3))
        return x + m.relu(x @ p["u"]) @ (m.t(w) if is_turned else w)

    _, roles = judged(framework, function, {"r": (D, 3), "u": (D, D), "w": (3, D, D)})
    assert roles == {"r": "transit", "u": "transit", "w": "zero"}


TIMES = {
    "from one to the other": lambda t, u, v: (1 - t) * u + t * v,
    "from one on": lambda t, u, v: u + t * v,
    "from one on, first": lambda t, u, v: t * v + u,
}


@FRAMEWORKS
@pytest.mark.parametrize("how", TIMES)
def test_weights_that_change_with_a_time_are_weights(framework, how):
    def function(m, p, x):
        t = m.mean(x[0, 0], 0) + 0.3
        return x + m.relu(x @ p["a"]) @ TIMES[how](t, p["u"], p["v"])

    report, roles = judged(framework, function, {"a": (D, D), **U, **V})
    assert roles == {"a": "transit", "u": "zero", "v": "zero"}
    assert not report.warnings


@FRAMEWORKS
def test_kernels_that_are_mixed_in_a_loop_end_a_branch(framework):
    """Dynamic convolution: one kernel for all images, and a bias behind."""

    def function(m, p, x):
        image = m.reshape(x, (1, 3, 5, D))
        a = shares(m, p, x)
        mixed = sum(a[at] * p[name] for at, name in enumerate("uvw"))
        return x + m.reshape(m.conv(m.relu(image), mixed, 1), X.shape)

    sizes = {"r": (D, 3), **dict.fromkeys("uvw", (3, 3, D, D))}
    _, roles = judged(framework, function, sizes)
    assert roles == {"r": "transit", "u": "zero", "v": "zero", "w": "zero"}


# What has no role is named -----------------------------------------------------------------------


def gate(m, p, x):
    return m.sigmoid(m.mean(m.mean(x, 1), 0)[None] @ p["g"])[0]


CHANGED = {  # weights that signals change
    "its rows": lambda m, p, x: x @ (p["w"] * gate(m, p, x)[:, None]),
    "its columns": lambda m, p, x: x @ (p["w"] * gate(m, p, x)),
    "of each sample": lambda m, p, x: m.einsum(
        "bti,bio->bto", x, p["w"] * m.sigmoid(m.mean(x, 1) @ p["g"])[:, None]),
    "an added outer product": lambda m, p, x: x @ (
        p["w"] + gate(m, p, x)[:, None] * gate(m, p, x)),
    "chosen": lambda m, p, x: x @ more(m).where(
        m.sum(gate(m, p, x), 0) > 1, p["w"], p["v"]),
    "between two": lambda m, p, x: x @ more(m).lerp(p["w"], p["v"], m.sum(gate(m, p, x), 0)),
    "joined": lambda m, p, x: x @ m.cat([p["w"][:4] * m.sum(gate(m, p, x), 0), p["v"][:4]], 0),
}  # fmt: skip


@FRAMEWORKS
@pytest.mark.parametrize("how", CHANGED)
@pytest.mark.parametrize("is_branch", [False, True])
def test_a_matrix_that_signals_change_is_named(framework, how, is_branch):
    def function(m, p, x):
        return CHANGED[how](m, p, x) + (x if is_branch else 0)

    names = {"w", "v"} if how in ("chosen", "between two", "joined") else {"w"}
    sizes = {"g": (D, D), **dict.fromkeys(sorted(names), (D, D))}
    report, _, _ = framework(function, sizes, X)
    assert kept(report) == names
    assert all(
        entry.why.startswith("it makes the kernel of")
        for entry in report.entries
        if last([entry.name]) <= names
    )


TABLES = {  # none of which is a matrix of a layer
    "positions": lambda m, p, x: x + p["t"],
    "masked positions": lambda m, p, x: x + p["t"] * m.sigmoid(x[:, :, :1]),
    "a scale": lambda m, p, x: x * p["t"],
    "scores": lambda m, p, x: m.einsum(
        "bts,bsd->btd", m.softmax(m.einsum("btd,bsd->bts", x, x) + p["s"] * x[:, :1, :1]), x),
    "shifts": lambda m, p, x: x * (1 + p["t"][None, :1] + m.mean(x, 1)[:, None])
        + p["t"][None, 1:2],
}  # fmt: skip


@FRAMEWORKS
@pytest.mark.parametrize("how", TABLES)
def test_tables_and_scales_are_not_named(framework, how):
    def function(m, p, x):
        x = TABLES[how](m, p, x)
        return x + m.einsum("bts,bsd->btd", m.softmax(m.einsum("btd,bsd->bts", x, x)), x) @ p["w"]

    report, _, _ = framework(function, {"t": (5, D), "s": (5, 5), **W}, X)
    assert not kept(report)


@FRAMEWORKS
@pytest.mark.parametrize("is_branch", [False, True])
def test_matrices_in_one_vector_are_named(framework, is_branch):
    def function(m, p, x):
        u, w = m.reshape(p["v"][:128], (D, 16)), m.reshape(p["v"][128:], (16, D))
        return m.relu(x @ u) @ w + (x if is_branch else 0)

    report, _, _ = framework(function, {"v": (256,)}, X)
    assert kept(report) == {"v"}


@FRAMEWORKS
def test_a_vector_that_no_matrix_is_cut_from_is_not_named(framework):
    def function(m, p, x):
        return x * p["v"] + m.relu(x @ p["v"])[..., None]

    report, _, _ = framework(function, {"v": (D,)}, X)
    assert not kept(report)


def test_strict_refuses_what_is_named():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.g = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x):
            return x @ (self.w.weight * torch.sigmoid(self.g(x.mean(0))))

    with pytest.raises(GraphError, match=r"kept matrices = 'w\.weight'"):
        irt.init_(Gated(), torch.tensor(X[0]), strict=True)


# A zero that would not come out ------------------------------------------------------------------


@pytest.mark.parametrize("width", [4, D, 16])
@pytest.mark.parametrize("how", [None, "matrix_exp", "cayley", "householder"])
def test_an_orthogonal_weight_keeps_its_norm_and_is_named(how, width):
    """The Householder form vanishes with the integers on its original's diagonal, for good."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.u = nn.Linear(D, width)
            self.w = orthogonal(nn.Linear(width, D), orthogonal_map=how)

        def forward(self, x):
            return x + self.w(torch.relu(self.u(x)))

    model = Block()
    before = model.w.weight.detach().clone()
    report = irt.init_(model, torch.tensor(X))
    assert report.roles["w.parametrizations.weight.original"] == "keep"
    (note,) = (note for note in report.warnings if note.kind == "kept")
    assert note.names == ("w.parametrizations.weight.original",)
    torch.testing.assert_close(model.w.weight, before)


@FRAMEWORKS
def test_what_vanishes_only_with_rounded_entries_is_kept_and_named(framework):
    """Near 0 no entry changes the result: it is constant, and no zero could grow."""

    def function(m, p, x):
        return x + m.relu(x) @ ((1 + p["w"] * p["w"]) * more(m).whole(p["w"]))

    report, _, run = framework(function, W, X)
    assert {*report.roles.values()} == {"keep"}
    assert kept(report) == {"w"}
    draw = same.drawn(W)["w"]
    np.testing.assert_array_equal(run({"w": 0.1 * draw / np.abs(draw).max()}, X), X)
