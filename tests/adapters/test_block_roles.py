"""The blocks of a packed weight have the roles of matrices apart, which running the model confirms.

R1: with the zero blocks at 0 and all else random, the branch leaves its skip. R2: a small change of
the zero blocks alone changes the result in proportion.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from adapters.test_spellings import FRAMEWORKS, X, facts
from idinit_ref import errors

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
T, Z = "transit", "zero"


def cut(packed, count):
    return [packed[..., 8 * k : 8 * k + 8] for k in range(count)]


def gated(np_, p, x, heads):
    value, gate = heads(x)
    return x + value * gate


def linear(np_, p, x, heads):
    q, k, v = heads(x)
    mixed = np_.swap(k) @ v
    return x + q @ mixed / 5


def two_ways(np_, p, x, heads):
    """As in WaveNet: the next residual, and a skip to the output."""
    inner, outer = heads(np_.tanh(x @ p["i"]))
    return np_.cat([(x + inner) @ p["o"], outer @ p["h"]])


def two_adds(np_, p, x, heads):
    """Values that the next block reads, too."""
    first, value = heads(np_.tanh(x @ p["i"]))
    return np_.cat([(x + np_.tanh(first)) @ p["o"], np_.tanh(value) @ p["h"]])


def moved(np_, p, x, heads):
    value, gate = heads(x)
    return x + (2 * value + p["b"]) * np_.tanh(gate)


# What each computes, the roles of its blocks, and what is left with the zero blocks at 0.
MODELS = {
    "gate": (gated, (Z, T), lambda out, x, p: out - x),
    "linear attention": (linear, (T, T, Z), lambda out, x, p: out - x),
    "two ways": (two_ways, (Z, T), lambda out, x, p: out[..., :8] - x @ p["o"]),
    "two adds": (two_adds, (Z, T), lambda out, x, p: out[..., :8] - x @ p["o"]),
    "moved": (moved, (Z, T), lambda out, x, p: out - x),
}


CUT = [
    (kind, how)
    for kind in MODELS
    for how in ("cut", "scaled", "tanh", "reshaped", "sliced", "first sliced", "twice")
    if (kind, how) != ("moved", "tanh")  # a parameter that is added to a tanh is no bias
]


def in_parts(np_, name, p, x, count):
    """Return the heads of a packed weight, spelled in different ways."""
    if name == "cut":
        return cut(x @ p["w"], count)
    if name == "scaled":
        return cut(2 * (x @ p["w"]), count)
    if name == "tanh":
        return cut(np_.tanh(x @ p["w"]), count)
    if name == "reshaped":
        packed = np_.reshape(x @ p["w"], (3, 5, count, 8))
        return [packed[:, :, k] for k in range(count)]
    if name == "first sliced":
        return [x @ p["w"][:, :8], *cut(x @ p["w"][:, 8:], count - 1)]
    if name == "twice":
        packed = x @ p["w"]
        return [packed[..., :8], *cut(packed[..., 8:], count - 1)]
    return [x @ part for part in cut(p["w"], count)]


@pytest.mark.every
@pytest.mark.parametrize(("kind", "how"), CUT)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_block_has_the_role_of_a_matrix_of_its_own(framework, kind, how):
    model, roles, left = MODELS[kind]
    count = len(roles)
    more = {"b": (8,)} if kind == "moved" else {}
    more |= dict.fromkeys("ioh", (8, 8)) if kind.startswith("two") else {}

    def packed(np_, p, x):
        return model(np_, p, x, lambda x: in_parts(np_, how, p, x, count))

    def apart(np_, p, x):
        then = {"scaled": lambda z: 2 * z, "tanh": np_.tanh}.get(how, lambda z: z)
        return model(np_, p, x, lambda x: [then(x @ p[k]) for k in "uvw"[:count]])

    (found, notes), run = framework(packed, more | {"w": (8, 8 * count)}, X, facts)
    alone, words = framework(apart, more | dict.fromkeys("uvw"[:count], (8, 8)), X, facts)[0]
    assert [alone[k][0] for k in "uvw"[:count]] == list(roles)
    plan = ir.plan((8, 8 * count), roles, layout="IO", blocks=(8,) * count)
    assert found["w"] == (Z, plan, 0)
    assert {k: own for k, own in alone.items() if k in more} == {k: found[k] for k in more}
    assert notes == words

    rng, blocks = np.random.default_rng(1), np.repeat([role == Z for role in roles], 8)
    draw = {k: rng.normal(size=size).astype("float32") for k, size in more.items()}
    draw["b"] = np.zeros(8, "float32")
    w = rng.normal(size=(8, 8 * count)).astype("float32")
    given = {k: draw[k] for k in more}
    silent = given | {"w": w * ~blocks}
    np.testing.assert_allclose(left(run(silent, X), X, draw), 0, atol=1e-5)
    small = (given | {"w": (w * np.where(blocks, by, 1)).astype("float32")} for by in (1e-3, 2e-3))
    one, two = (left(run(p, X), X, draw) for p in small)
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(two, 2 * one, rtol=0, atol=0.02 * np.abs(one).max())


def from_stack(np_, how, w, x, count):
    """Return the heads of matrices that lie in one weight in other ways."""
    if how == "stack":
        return [x @ w[k] for k in range(count)]
    if how == "of two axes":
        return [x @ w[0, k] for k in range(count)]
    if how == "packed in a stack":
        return cut(x @ w[0], count)
    if how == "sliced heads":
        w = np_.reshape(w, (8, 2, count, 4))
        return [x @ np_.reshape(w[:, :, k], (8, 8)) for k in range(count)]
    if how == "heads, the first sliced":
        w = np_.reshape(w, (8, 2, count, 4))
        rest = np_.reshape(x @ np_.reshape(w[:, :, 1:], (8, -1)), (3, 5, 2, count - 1, 4))
        rest = [np_.reshape(rest[:, :, :, k], (3, 5, 8)) for k in range(count - 1)]
        return [x @ np_.reshape(w[:, :, 0], (8, 8)), *rest]
    packed = np_.reshape(x @ w, (3, 5, 2, count, 4))  # of two heads
    return [np_.reshape(packed[:, :, :, k], (3, 5, 8)) for k in range(count)]


STACKS = {  # the shape of a weight of n heads
    "stack": lambda n: (n, 8, 8),
    "of two axes": lambda n: (2, n, 8, 8),
    "packed in a stack": lambda n: (2, 8, 8 * n),
    "heads": lambda n: (8, 8 * n),
    "sliced heads": lambda n: (8, 8 * n),
    "heads, the first sliced": lambda n: (8, 8 * n),
}


@pytest.mark.every
@pytest.mark.parametrize("how", STACKS)
@pytest.mark.parametrize("kind", ["gate", "linear attention", "two ways"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_matrix_of_a_stack_has_a_role_of_its_own(framework, kind, how):
    """In a stack of two axes, or of packed matrices, the second ones end no branch."""
    model, roles, left = MODELS[kind]
    count, is_double = len(roles), how in ("of two axes", "packed in a stack")
    more = dict.fromkeys("ioh" if kind == "two ways" else "", (8, 8))
    size = STACKS[how](count)

    def function(np_, p, x):
        last = [p["w"][1, k] for k in range(count)] if how == "of two axes" else []
        last = cut(p["w"][1], count) if how == "packed in a stack" else last
        y = model(np_, p, x, lambda x: from_stack(np_, how, p["w"], x, count))
        return np_.cat([y, *(np_.tanh(x @ each) for each in last)])

    (found, _), run = framework(function, more | {"w": size}, X, facts)
    role, plan, _ = found["w"]
    assert (role, plan.role) == (Z, (*roles, *[T] * count * is_double))
    of = np.array(plan.role) == Z

    if "heads" in how:  # outputs (head, which, entry)
        zero = np.broadcast_to(of.reshape(1, 1, count, 1), (8, 2, count, 4)).reshape(size)
    elif how == "packed in a stack":
        zero = np.repeat(of.reshape(2, 1, count), 8, -1)
    else:
        zero = of.reshape(*size[:-2], 1, 1)
    rng = np.random.default_rng(1)
    draw = {k: rng.normal(size=shape).astype("float32") for k, shape in more.items()}
    w = rng.normal(size=size).astype("float32")

    def rest(by):
        out = run(draw | {"w": (w * np.where(zero, by, 1)).astype("float32")}, X)
        own = 16 if kind == "two ways" else 8
        return left(out[..., :own], X, draw)

    np.testing.assert_allclose(rest(0), 0, atol=1e-5)
    one, two = rest(1e-3), rest(2e-3)
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(two, 2 * one, rtol=0, atol=0.02 * np.abs(one).max())


# What a packed result is added to, or multiplied with, before it is cut; `s` is another signal.
MIXED = {
    "a sum": ("uw", lambda np_, x, m, s: x @ m["w"] + np_.tanh(x) @ m["u"]),
    "a difference": ("uw", lambda np_, x, m, s: 2 * (np_.tanh(x) @ m["u"] - x @ m["w"])),
    "three terms": (
        "uvw", lambda np_, x, m, s: x @ m["w"] + np_.tanh(x) @ m["u"] + np_.relu(x) @ m["v"]),
    "a tie": ("uvw", lambda np_, x, m, s: x @ m["w"] + (x @ m["u"] + x @ m["v"])),
    "functions": ("uw", lambda np_, x, m, s: np_.tanh(x @ m["w"]) + np_.tanh(x) @ m["u"]),
    "a function": ("uw", lambda np_, x, m, s: np_.tanh(x @ m["w"] + np_.tanh(x) @ m["u"])),
    "a bias": ("uwb", lambda np_, x, m, s: x @ m["w"] + np_.tanh(x) @ m["u"] + m["b"]),
    "biases": (
        "uwbc", lambda np_, x, m, s: (x @ m["w"] + m["b"]) + (np_.tanh(x) @ m["u"] + m["c"])),
    "a signal": ("w", lambda np_, x, m, s: (x @ m["w"]) * s),
    "a gate": ("w", lambda np_, x, m, s: (x @ m["w"]) * np_.tanh(x[..., :1])),
    "a product": ("uw", lambda np_, x, m, s: (x @ m["w"]) * (np_.tanh(x) @ m["u"])),
    "a choice": ("uw", lambda np_, x, m, s: np_.where(s > 0, x @ m["w"], np_.tanh(x) @ m["u"])),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", MIXED)
@pytest.mark.parametrize("kind", ["gate", "linear attention", "two ways"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_parts_of_a_sum_or_product_are_those_of_matrices_apart(framework, kind, how):
    """(p + q).chunk(k) is p.chunk(k) + q.chunk(k), and of a product another signal is cut, too."""
    model, roles, left = MODELS[kind]
    names, mix = MIXED[how]
    count, more = len(roles), dict.fromkeys("ioh" if kind == "two ways" else "", (8, 8))
    sizes = {k: (8 * count,) if k in "bc" else (8, 8 * count) for k in names}
    every = {f"{n}{k}": (*size[:-1], 8) for k, size in sizes.items() for n in range(count)}

    def signals(np_, x):
        return [np_.tanh(x), np_.relu(x), np_.tanh(2 * x)][:count]

    def packed(np_, p, x):
        def heads(x):
            return cut(mix(np_, x, p, np_.cat(signals(np_, x))), count)

        return model(np_, p, x, heads)

    def apart(np_, p, x):
        def heads(x):
            each = enumerate(signals(np_, x))
            return [mix(np_, x, {k: p[f"{n}{k}"] for k in names}, s) for n, s in each]

        return model(np_, p, x, heads)

    (found, notes), run = framework(packed, more | sizes, X, facts)
    report, _ = framework(apart, more | every, X, lambda found: found)
    alone = {
        entry.name.strip("./").split(".")[-1].split("/")[-1]: entry for entry in report.entries
    }
    assert notes == sorted(note.kind for note in report.warnings)
    zero = {}
    for name in {*sizes} - {*"bc"}:
        own = tuple(alone[f"{n}{name}"].role for n in range(count))
        plan = found[name][1]
        assert (plan.role, plan.blocks) == (own if len({*own}) > 1 else own[0], (8,) * count)
        zero[name] = np.repeat([role == Z for role in own], 8)
    assert all(found[name][0] == "bias" for name in sizes if name in "bc")

    rng = np.random.default_rng(1)
    draw = {k: rng.normal(size=size).astype("float32") for k, size in (more | sizes).items()}
    draw |= {name: np.zeros(8 * count, "float32") for name in sizes if name in "bc"}

    confirm(run, draw, zero, lambda out: left(out, X, draw))


def confirm(run, draw, zero, left):
    """R1 and R2 for zero entries, by weight: together they leave the skip, and each has a slope."""

    def rest(by, of=""):
        given = {k: draw[k] * np.where(zero[k], by * (k == of), 1) for k in zero}
        return left(run(draw | {k: value.astype("float32") for k, value in given.items()}, X))

    np.testing.assert_allclose(rest(0), 0, atol=1e-5)
    ends = [name for name in zero if np.any(zero[name])]
    assert ends
    for name in ends:
        one, two = rest(1e-3, name), rest(2e-3, name)
        assert np.abs(one).max() > 1e-4
        np.testing.assert_allclose(two, 2 * one, rtol=0, atol=0.02 * np.abs(one).max())


COUPLINGS = {  # of a signal x of 8 channels, and of what a network makes of it
    "wide": lambda np_, x, a, f: np_.cat([x + a[0], x + f(x) * a[1]]),
    "halves": lambda np_, x, a, f: np_.cat(
        [x[..., :4] + a[0][..., :4], x[..., 4:] + f(x[..., :4]) * a[1][..., :4]]),
    "written": lambda np_, x, a, f: np_.write(
        x, [(0, x[..., :4] + a[0][..., :4]), (4, x[..., 4:] + f(x[..., :4]) * a[1][..., :4])]),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("how", COUPLINGS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_halves_whose_sums_are_joined_are_branches_of_their_own(framework, how):
    """As in a coupling net: the second half is a factor of a longer branch, which ends in o."""
    size = 8 if how == "wide" else 4

    def packed(np_, p, x):
        z = np_.tanh(x @ p["c"]) @ p["w"]
        return coupled(np_, p, x, (z[..., :size], z[..., size:]))

    def apart(np_, p, x):
        z = np_.tanh(x @ p["c"])
        return coupled(np_, p, x, (z @ p["u"], z @ p["v"]))

    def coupled(np_, p, x, parts):
        def long(y):
            return np_.tanh(np_.tanh(y @ p["k"]) @ p["l"]) @ p["o"]

        return COUPLINGS[how](np_, x, parts, long)

    sizes = {"c": (8, 8), "k": (size, 8), "l": (8, 8), "o": (8, size)}
    (found, notes), run = framework(packed, sizes | {"w": (8, 2 * size)}, X, facts)
    alone, words = framework(apart, sizes | dict.fromkeys("uv", (8, size)), X, facts)[0]
    assert notes == words
    assert {k: own for k, own in alone.items() if k in sizes} == {k: found[k] for k in sizes}
    assert (alone["u"][0], alone["v"][0], alone["o"][0]) == (Z, T, Z)
    assert found["w"][1] == ir.plan((8, 2 * size), (Z, T), layout="IO", blocks=(size, size))

    rng = np.random.default_rng(1)
    sizes["w"] = (8, 2 * size)
    draw = {k: rng.normal(size=shape).astype("float32") for k, shape in sizes.items()}
    zero = {"w": np.repeat([True, False], size), "o": True}
    skip = np.concatenate([X, X], -1) if how == "wide" else X
    confirm(run, draw, zero, lambda out: out - skip)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_half_that_is_joined_to_the_sum_with_the_other_half_ends_no_branch(framework):
    def function(np_, p, x):
        a, b = cut(np_.tanh(x @ p["c"]) @ p["w"], 2)
        return np_.cat([x + a, np_.tanh(b)])

    sizes = {"c": (8, 8), "w": (8, 16)}
    (found, _), run = framework(function, sizes, X, facts)
    assert found["w"][1] == ir.plan((8, 16), (Z, T), layout="IO", blocks=(8, 8))
    rng = np.random.default_rng(1)
    draw = {k: rng.normal(size=size).astype("float32") for k, size in sizes.items()}
    zero = {"w": np.repeat([True, False], 8)}
    confirm(run, draw, zero, lambda out: out[..., :8] - X)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_heads_that_are_added_one_by_one_are_one_matrix(framework):
    """Their sums with parts of the stream are joined, too, but they have one role."""

    def function(np_, p, x):
        parts = [[y[..., :4], y[..., 4:]] for y in (x @ p[name] for name in "qkv")]
        each = [(q @ np_.swap(k)) @ v for q, k, v in zip(*parts, strict=True)]
        return np_.cat([x[..., :4] + each[0], x[..., 4:] + each[1]])

    (found, _), _ = framework(function, dict.fromkeys("qkv", (8, 8)), X, facts)
    assert {k: own[1] for k, own in found.items()} == {
        k: ir.plan((8, 8), role, layout="IO") for k, role in zip("qkv", (T, T, Z), strict=True)
    }


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_packed_matrices_in_a_stack_that_end_no_branch_are_blocks(framework):
    """Each half of each matrix starts with an identity of its own."""

    def function(np_, p, x):
        parts = [x @ p["w"][k] for k in range(2)]
        return np_.cat([np_.tanh(z[..., :6]) * np_.tanh(z[..., 6:]) for z in parts])

    (found, _), _ = framework(function, {"w": (2, 8, 12)}, X, facts)
    role, plan, _ = found["w"]
    assert (role, plan.role, plan.blocks) == (T, T, (6, 6))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_result_that_is_also_used_whole_has_one_role(framework):
    def function(np_, p, x):
        packed = x @ p["w"]
        inner, _ = cut(packed, 2)
        return np_.cat([x + np_.tanh(inner), np_.tanh(packed)])

    (found, _), _ = framework(function, {"w": (8, 16)}, X, facts)
    assert found["w"][1] == ir.plan((8, 16), "zero", layout="IO")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_sum_of_packed_results_has_one_role(framework):
    """As in LoRA: the sum is the residual add, and its parts are none."""

    def function(np_, p, x):
        value, gate = cut(x @ p["w"] + (x @ p["a"]) @ p["b"], 2)
        return np_.tanh(value) * np_.tanh(gate)

    sizes = {"w": (8, 16), "a": (8, 4), "b": (4, 16)}
    (found, _), _ = framework(function, sizes, X, facts)
    assert [found[k][0] for k in "wab"] == [T, T, Z]
    assert found["b"][1] == ir.plan((4, 16), "zero", layout="IO", blocks=(8, 8))


@pytest.mark.parametrize("kind", ["layer", "cell", "apart"])
def test_the_gates_of_a_recurrent_cell_have_roles_of_their_own(kind):
    """Of x + h only the candidate's matrix of x is zero: the state is 0 with it."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)
            sizes = (8,) * 4 if kind == "apart" else (32,)
            self.w, self.u = (nn.ModuleList(nn.Linear(8, n) for n in sizes) for _ in "wu")

        def gates(self, x, h):
            each = [w(x) + u(h) for w, u in zip(self.w, self.u, strict=True)]
            return each if kind == "apart" else each[0].chunk(4, -1)

        def forward(self, x):
            if kind == "layer":
                return x + self.lstm(x)[0]
            h = c = torch.zeros_like(x[:, 0])
            states = []
            for t in range(x.shape[1]):
                i, f, g, o = self.gates(x[:, t], h)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                states.append(h)
            return x + torch.stack(states, 1)

    torch.manual_seed(0)
    model, x = Model(), torch.tensor(X)
    found = irt.init_(model, x, overrides={"lstm.*" if kind != "layer" else "[wu].*": "keep"}).plans
    names = {
        "layer": ("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
        "cell": ("w.0.weight", "u.0.weight"),
    }
    if kind == "apart":
        assert [found[f"w.{k}.weight"].role for k in range(4)] == [T, T, Z, T]
        assert {found[f"u.{k}.weight"].role for k in range(4)} == {T}
        return
    one, other = names[kind]
    assert (found[one].role, found[other].role) == ((T, T, Z, T), T)
    weight = dict(model.named_parameters())[one]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * ("bias" not in name))
        own = weight[16:24].clone()
        outs = []
        for by in (0, 1e-3, 2e-3):
            weight[16:24] = by * own
            outs.append(model(x) - x)
    assert outs[0].abs().max() == 0
    assert outs[1].abs().max() > 1e-4
    torch.testing.assert_close(outs[2], 2 * outs[1], rtol=0, atol=1e-4)


def test_the_gates_of_recurrent_layers_in_a_scan_or_of_keras_have_roles_of_their_own():
    def network(p, x):
        def step(state, x):
            h, c = state
            i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        start = jnp.zeros((len(x), 8))
        states = jax.lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))[1]
        return x + jnp.swapaxes(states, 0, 1)

    sizes = {"w": (8, 32), "u": (8, 32), "b": (32,)}
    values = {name: jnp.ones(size) for name, size in sizes.items()}
    found = irj.init(values, (jnp.asarray(X),), network)[1].plans
    assert (found["w"].role, found["u"].role) == ((T, T, Z, T), T)

    x = keras.Input(X.shape[1:])
    for kind, gates in ((keras.layers.LSTM, (T, T, Z, T)), (keras.layers.GRU, (T, T, Z))):
        model = keras.Model(x, x + kind(8, return_sequences=True)(x))
        one, other = irk.init_(model).plans.values()
        assert (one.role, other.role) == (gates, T)


@pytest.mark.parametrize("how", ["input", "table"])
def test_another_signal_in_a_sum_is_cut_beside_the_packed_result(how):
    """As projections that are computed before; each half is added to its half of these."""

    class Model(nn.Module):
        def __init__(self, packed):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, n) for n in ((16,) if packed else (8, 8)))
            self.table, self.out = nn.Parameter(torch.randn(5, 16)), nn.Linear(8, 8)

        def forward(self, x, c):
            c = c if how == "input" else self.table
            if len(self.layers) == 1:
                a, b = (c + self.layers[0](x)).chunk(2, -1)
            else:
                a, b = c[..., :8] + self.layers[0](x), c[..., 8:] + self.layers[1](x)
            return x + self.out(a.tanh() * b.sigmoid()) * b

    inputs = torch.tensor(X), torch.randn(3, 5, 16)
    one, two = (irt.init_(Model(packed), inputs) for packed in (True, False))
    assert one.plans["out.weight"] == two.plans["out.weight"]
    plan = one.plans["layers.0.weight"]
    roles = [two.plans[f"layers.{k}.weight"].role for k in range(2)]
    assert (plan.role, plan.blocks) == (roles[0] if len({*roles}) == 1 else tuple(roles), (8, 8))
    assert [note.kind for note in one.warnings] == [note.kind for note in two.warnings]


# What is decided besides roles --------------------------------------------------------------------


class Branch(nn.Module):
    """x + s a(x) norm(g(x)), with a and g in one matrix or in two; or a and g of two outputs."""

    def __init__(self, packed, scale=1.0, act=torch.sigmoid, norm=False, two=False):
        super().__init__()
        self.act, self.two = act, two
        sizes = (16,) if packed else (8, 8)
        self.layers = nn.ModuleList(nn.Linear(8, size) for size in sizes)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()
        self.scale = nn.Parameter(torch.full((8,), float(scale)))

    def forward(self, x):
        parts = [layer(x) for layer in self.layers]
        a, g = parts if len(parts) == 2 else parts[0].chunk(2, -1)
        return (x + a, g) if self.two else x + self.scale * a * self.act(self.norm(g))


def starts(packed, options, **how):
    """The values after init_ of one matrix, and of the two side by side."""
    torch.manual_seed(0)
    model = Branch(packed, **how)
    report = irt.init_(model, torch.tensor(X), **options)
    weights = torch.cat([layer.weight for layer in model.layers]).detach()
    return weights, sorted(note.kind for note in report.warnings), model


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ({"norm": True}, {"norms": "zero"}),
        ({"norm": True}, {}),
        ({"scale": 0}, {}),
        ({"two": True}, {"head": "zero"}),
        ({"two": True}, {}),
        ({}, {"overrides": {"layers.*.weight": {"gain": 2.0, "eps": 0.5}}}),
    ],
)
def test_a_block_is_decided_as_a_matrix_of_its_own(how, options):
    """By norms, scales that are 0, heads and overrides."""
    one, notes, model = starts(True, options, **how)
    two, words, apart = starts(False, options, **how)
    assert torch.equal(one, two)
    assert notes == words
    outs = [net(torch.tensor(X)) for net in (model, apart)]
    torch.testing.assert_close(*(out if isinstance(out, tuple) else (out,) for out in outs))


@pytest.mark.parametrize("given", [("transit", "zero"), ["zero", "zero"]])
def test_the_roles_of_blocks_may_be_stated(given):
    model = Branch(True)
    name = "layers.0.weight"
    report = irt.init_(model, torch.tensor(X), overrides={name: {"role": given, "eps": 0.5}})
    plan = ir.plan((16, 8), given, blocks=(8, 8), eps=0.5)
    np.testing.assert_array_equal(model.layers[0].weight.detach().numpy(), plan.build())
    assert "override" in report.entries[1].why


def test_the_found_blocks_may_be_stated_and_others_have_one_role():
    name = "layers.0.weight"
    found = irt.init_(Branch(True), torch.tensor(X), overrides={name: {"blocks": (8, 8)}})
    assert found.plans[name].role == ("zero", "transit")
    other = irt.init_(Branch(True), torch.tensor(X), overrides={name: {"blocks": (4, 12)}})
    assert other.plans[name] == ir.plan((16, 8), "zero", blocks=(4, 12))
    with pytest.raises(errors.OptionError, match="as many roles as there are blocks"):
        irt.init_(Branch(True), torch.tensor(X), overrides={name: {"role": [T] * 3}})
    with pytest.raises(errors.OptionError, match="'transit', 'zero'"):
        irt.init_(Branch(True), torch.tensor(X), overrides={name: {"role": [T, "keep"]}})


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("layers.0.weight", {"blocks": 3}, "blocks = 3, but it should be a tuple of integers"),
        ("layers.0.weight", {"role": []}, "a role for each block"),
        ("layers.0.weight", {"groups": 5}, r"shape \(16, 8\)"),
        ("layers.0.bias", {"role": [T, Z, Z]}, r"shape = \(16,\)"),
        ("layers.0.bias", "zero", r"shape = \(16,\)"),
    ],
)
def test_a_wrong_override_of_a_packed_parameter_shows_the_parameter(name, own, expected):
    model = Branch(True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=expected):
        irt.init_(model, torch.tensor(X), overrides={name: own})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_blocks_are_one_matrix():
    name = "layers.0.weight"
    found = irt.init_(Branch(True), torch.tensor(X), overrides={name: {"blocks": None}})
    assert found.plans[name].role == "zero"
    assert found.plans[name].blocks is None


def test_a_note_names_the_packed_parameter():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.w = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 16)

        def forward(self, x):
            u, v = self.w(torch.cat([self.a(x).tanh(), self.b(x).tanh()], -1)).chunk(2, -1)
            return u * v

    (note,) = irt.init_(Net(), torch.tensor(X)).warnings
    assert (note.kind, note.names) == ("unread", ("w.weight",))
    assert note.text.startswith("w.weight: ")


def test_a_block_that_ends_a_branch_is_written_beside_a_head_that_should_be_kept():
    model = Branch(True, two=True)
    report = irt.init_(model, torch.tensor(X), head="keep")
    assert "cannot be kept alone" in report.entries[1].why
    assert report.plans["layers.0.weight"].role == (Z, T)


def test_a_bias_that_one_block_keeps_is_told():
    """The time step of a state space, say: the whole bias is kept, and with it that of a branch."""
    model = Branch(True, act=torch.nn.functional.softplus)
    (bias,) = (layer.bias for layer in model.layers)
    report = irt.init_(model, torch.tensor(X))
    assert report.roles["layers.0.bias"] == "keep"
    assert [note.names for note in report.warnings if note.kind == "bias"] == [("layers.0.bias",)]
    assert (model(torch.tensor(X)) - torch.tensor(X)).abs().max() > 1e-2
    with torch.no_grad():
        bias[:8] = 0
    kept = bias.clone()
    report = irt.init_(model, torch.tensor(X))
    assert not report.warnings
    assert torch.equal(bias, kept)
    assert (model(torch.tensor(X)) - torch.tensor(X)).abs().max() < 1e-4


def test_the_bias_of_a_forget_gate_is_kept_in_a_packed_bias():
    layer = nn.Linear(8, 32)
    with torch.no_grad():
        layer.bias[:] = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(8)

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            i, f, g, o = self.layer(x).chunk(4, -1)
            c = f.sigmoid() * x.tanh() + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh()

    report = irt.init_(Cell(), torch.tensor(X))
    assert report.roles["layer.bias"] == "keep"
    assert layer.bias.unique().tolist() == [0, 1]


def test_a_slice_of_a_weight_that_nothing_reads_changes_no_role():
    """As the forget gate at the first step, which multiplies a state of zeros."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(24, 8))

        def forward(self, x):
            c, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                i, f, g = (torch.nn.functional.linear(x[:, t], w) for w in self.weight.chunk(3))
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                out.append(c)
            return x + torch.stack(out, 1)

    report = irt.init_(Cell(), torch.tensor(X))
    assert report.plans["weight"].role == (T, T, Z)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_parts_in_code_that_no_output_reads_change_nothing(framework):
    """One weight is used there alone, another one also, and two are summed there before the cut."""

    def function(np_, p, x, dead=True):
        value, gate = cut(x @ p["w"], 2)
        y = x + value * np_.tanh(gate)
        if dead:
            a, b = cut(np_.tanh(y) @ p["d"] + y @ p["e"], 2)
            c, _ = cut(y @ p["w"], 2)
            np_.tanh(y + a * b) + np_.tanh(c)
        return y @ p["z"]

    sizes = dict.fromkeys("wde", (8, 16)) | {"z": (8, 8)}
    (found, _), _ = framework(function, sizes, X, facts)
    (alone, _), _ = framework(lambda *args: function(*args, dead=False), sizes, X, facts)
    assert found["w"] == alone["w"]
    assert found["w"][1].role == (Z, T)
    assert found["z"] == alone["z"]


# Stacks in loops and side by side --------------------------------------------------------------


def block(x, w):
    return x + jnp.tanh(x @ w[0]) @ w[1]


def in_scan(x, pairs):
    return jax.lax.scan(lambda x, w: (block(x, w), None), x, pairs)[0]


SCANS = {
    "all": in_scan,
    "first apart": lambda x, w: in_scan(in_scan(x, w[:1]), w[1:]),
    "last apart": lambda x, w: block(in_scan(x, w[:-1]), w[-1]),
    "halves": lambda x, w: in_scan(in_scan(x, w[:2]), w[2:]),
    "every second": lambda x, w: in_scan(in_scan(x, w[::2]), w[1::2]),
}


@pytest.mark.parametrize("how", SCANS)
def test_scans_over_parts_of_a_stack_are_as_one_over_all(how):
    def apply(p, x):
        return SCANS[how](x, p["w"])

    x = jnp.asarray(X)
    new, report = irj.init({"w": jnp.ones((4, 2, 8, 8))}, (x,), apply)
    assert report.plans["w"].role == (T, Z) * 4
    assert float(jnp.abs(apply(new, x) - x).max()) < 1e-4


def test_a_stem_before_a_scan_over_the_rest_of_its_stack():
    def apply(p, x):
        def body(x, w):
            return x + jnp.tanh(x) @ w, None

        return jax.lax.scan(body, jnp.tanh(x @ p["w"][0]), p["w"][1:])[0]

    _, report = irj.init({"w": jnp.ones((4, 8, 8))}, (jnp.asarray(X),), apply)
    assert report.plans["w"].role == (T, Z, Z, Z)


def attention(x, heads):
    q, k, v = heads
    return x + (q @ k.mT) @ v / 5


MEMBERS = {
    "index_select": lambda x, w: [x @ w.index_select(0, torch.tensor([k]))[0] for k in range(3)],
    "a list": lambda x, w: [x @ m for m in w[[0, 1, 2]]],
    "bmm": lambda x, w: torch.bmm(x.reshape(-1, 8).expand(3, -1, 8), w).view(3, *x.shape),
    "func.vmap": lambda x, w: torch.func.vmap(lambda m: x @ m)(w),
}
JAX_MEMBERS = {
    "vmap of the weights": lambda x, w: jax.vmap(lambda m: x @ m)(w),
    "vmap of both": lambda x, w: jax.vmap(lambda m, x: x @ m)(w, jnp.stack([x] * 3)),
    "lax.map": lambda x, w: jax.lax.map(lambda m: x @ m, w),
    "jnp.take": lambda x, w: [x @ jnp.take(w, k, 0) for k in range(3)],
}
KERAS_MEMBERS = {
    "keras.ops.take": lambda x, w: [x @ keras.ops.take(w, k, 0) for k in range(3)],
    "tf.gather": lambda x, w: [x @ tf.gather(w, k) for k in range(3)],
}


@pytest.mark.parametrize("how", [*MEMBERS, *JAX_MEMBERS, *KERAS_MEMBERS])
def test_members_side_by_side_are_as_in_a_loop(how):
    """Queries, keys and values of one stack: the last ends a linear attention."""
    if how in MEMBERS:

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.w = nn.Parameter(torch.randn(3, 8, 8))

            def forward(self, x):
                return attention(x, MEMBERS[how](x, self.w))

        report = irt.init_(Model(), torch.tensor(X))
    elif how in JAX_MEMBERS:

        def apply(p, x):
            return attention(x, JAX_MEMBERS[how](x, p["w"]))

        _, report = irj.init({"w": jnp.ones((3, 8, 8))}, (jnp.asarray(X),), apply)
    else:

        class Layer(keras.layers.Layer):
            def build(self, shape):
                self.w = self.add_weight(shape=(3, 8, 8), name="w")

            def call(self, x):
                q, k, v = KERAS_MEMBERS[how](x, self.w)
                return x + (q @ tf.linalg.matrix_transpose(k)) @ v / 5

        layer = Layer()
        layer(X)
        report = irk.init_(layer, X)
    assert [plan.role for plan in report.plans.values()] == [(T, T, Z)]


# Functions of each entry before a cut ------------------------------------------------------------

ENTRYWISE = {
    "maximum": lambda z: torch.maximum(z, 0.2 * z),
    "minimum": lambda z: torch.minimum(z, 2 * z),
    "where": lambda z: torch.where(z > 0, z, 0.2 * z),
    "sum": lambda z: z + torch.tanh(z),
    "gate": lambda z: z * torch.sigmoid(1.7 * z),
    "hardswish": nn.functional.hardswish,
    "prelu": lambda z: nn.functional.prelu(z, torch.tensor([0.25])),
    "jax.gelu": jax.nn.gelu,
    "jax.elu": jax.nn.elu,
    "jax.leaky_relu": jax.nn.leaky_relu,
    "keras.gelu": keras.ops.gelu,
    "keras.hard_silu": keras.ops.hard_silu,
}


@pytest.mark.parametrize("name", ENTRYWISE)
def test_parts_pass_a_function_that_reads_the_packed_result_twice(name):
    act = ENTRYWISE[name]

    def gate(x, z):
        return x + z[..., :8] * z[..., 8:]

    if name.startswith("jax"):
        _, report = irj.init(
            {"w": jnp.ones((8, 16))}, (jnp.asarray(X),), lambda p, x: gate(x, act(x @ p["w"]))
        )
    elif name.startswith("keras"):
        x = keras.Input(X.shape[1:])
        model = keras.Model(x, gate(x, act(keras.layers.Dense(16, use_bias=False)(x))))
        report = irk.init_(model)
    else:
        layer = nn.Linear(8, 16, bias=False)
        model = type("Model", (nn.Module,), {"forward": lambda self, x: gate(x, act(self.w(x)))})()
        model.w = layer
        report = irt.init_(model, torch.tensor(X))
    (plan,) = report.plans.values()
    assert (plan.role, plan.blocks) == ((Z, T), (8, 8))


def test_a_router_behind_a_sigmoid_is_one_matrix():
    """Its gates are read alone, and one row each cannot read all inputs."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.router = nn.Linear(8, 4)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            gates = torch.sigmoid(self.router(x))
            return sum(gates[..., k : k + 1] * each(x) for k, each in enumerate(self.experts))

    plan = irt.init_(Model(), torch.tensor(X)).plans["router.weight"]
    assert (plan.role, plan.blocks) == (T, None)
    assert np.array_equal(plan.build(), np.eye(4, 8))


@pytest.mark.parametrize("cut_first", [True, False])
def test_a_bias_before_softplus_is_kept_wherever_the_result_is_cut(cut_first):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 16)

        def forward(self, x):
            z = self.layer(x)
            a, b = z.chunk(2, -1) if cut_first else nn.functional.softplus(z).chunk(2, -1)
            a, b = (nn.functional.softplus(a), nn.functional.softplus(b)) if cut_first else (a, b)
            return torch.tanh(a) * b

    assert irt.init_(Model(), torch.tensor(X)).roles["layer.bias"] == "keep"


# Parts that are stored together ------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("stacked", [True, False])
def test_kernels_with_groups_in_one_weight_are_kernels_apart(groups, stacked):
    """The first ends the branch, and the second starts as the identity."""
    size = (8, 8 // groups, 3, 3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn((2, *size) if stacked else (16, *size[1:])))

        def forward(self, x):
            a, b = self.w if stacked else (self.w[:8], self.w[8:])
            gate = nn.functional.conv2d(x, b, padding=1, groups=groups)
            return x + nn.functional.conv2d(x, a, padding=1, groups=groups) * torch.sigmoid(gate)

    model, x = Model(), torch.randn(2, 8, 6, 6)
    assert irt.init_(model, x).plans["w"].role == (Z, T)
    gate = (model.w[1] if stacked else model.w[8:]).detach()
    assert torch.equal(nn.functional.conv2d(x, gate, padding=1, groups=groups), x)


def test_matrices_that_are_cut_from_one_vector_are_kept_and_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(128))

        def forward(self, x):
            return torch.tanh(x @ self.w[:64].view(8, 8)) @ self.w[64:].view(8, 8)

    model = Model()
    before = model.w.detach().clone()
    report = irt.init_(model, torch.tensor(X))
    assert report.roles == {"w": "keep"}
    assert [(note.kind, note.names) for note in report.warnings] == [("kept", ("w",))]
    assert torch.equal(model.w, before)
