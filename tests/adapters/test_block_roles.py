"""The blocks of a packed weight have the roles of matrices apart, which running the model confirms.

R1: with the zero blocks at 0 and all else random, the branch leaves its skip. R2: a small change of
the zero blocks alone changes the result in proportion.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import idinit_ref as ir
from adapters.test_spellings import FRAMEWORKS, X, facts

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


def in_parts(np_, name, p, x, count):
    """Return the heads of a packed weight, spelled in different ways."""
    if name == "cut":
        return cut(x @ p["w"], count)
    if name == "scaled":
        return cut(2 * (x @ p["w"]), count)
    if name == "reshaped":
        packed = np_.reshape(x @ p["w"], (3, 5, count, 8))
        return [packed[:, :, k] for k in range(count)]
    return [x @ part for part in cut(p["w"], count)]


@pytest.mark.every
@pytest.mark.parametrize("how", ["cut", "scaled", "reshaped", "sliced"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_block_has_the_role_of_a_matrix_of_its_own(framework, kind, how):
    model, roles, left = MODELS[kind]
    count = len(roles)
    more = {"b": (8,)} if kind == "moved" else {}
    more |= dict.fromkeys("ioh", (8, 8)) if kind.startswith("two") else {}

    def packed(np_, p, x):
        return model(np_, p, x, lambda x: in_parts(np_, how, p, x, count))

    def apart(np_, p, x):
        twice = 2 if how == "scaled" else 1
        return model(np_, p, x, lambda x: [twice * (x @ p[k]) for k in "uvw"[:count]])

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
