"""Spelling changes no start: every function of the framework that says the same starts the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from adapters import rewritten_jax, rewritten_keras, rewritten_torch
from adapters.rewritten import (
    KINDS,
    STORED,
    WIDTH,
    Apart,
    Packed,
    X,
    differing,
    packed,
    several,
    single,
)

FRAMEWORKS = [rewritten_torch, rewritten_jax]
if keras.backend.backend() == "tensorflow":
    FRAMEWORKS.append(rewritten_keras)
ALONE = [(framework, *each) for framework in FRAMEWORKS for each in single(framework.TABLE)]


@pytest.mark.parametrize("entry", [False, True])
@pytest.mark.parametrize(("framework", "kind", "name"), ALONE)
def test_every_spelling_starts_alike(framework, kind, name, entry):
    kinds = KINDS.get(kind, (kind, kind))
    assert not differing(framework.run, framework.TABLE, kinds, entry, {kind: name})


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_spellings_together_start_alike(framework, seed):
    assert not differing(framework.run, framework.TABLE, *several(framework.TABLE, seed))


@pytest.mark.cases(24)
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_matrices_that_heads_interleave_start_as_those_apart(framework, how, turn):
    """With and without rotary embeddings, whose halves or pairs are no matrices."""
    apart = Apart(framework.TABLE, framework.TURNS[turn])
    one = Packed(framework, how, framework.TURNS[turn])
    before, plain = framework.run(apart, apart.values, X)
    same, found = framework.run(one, one.values, X)
    np.testing.assert_allclose(same, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    expected = packed(how, *(plain[name] for name in "qkv"))
    np.testing.assert_array_equal(found["w"], expected)
    np.testing.assert_array_equal(found["o"], plain["o"])
    np.testing.assert_array_equal(plain["q"], np.eye(WIDTH))


class Gates:
    """A gated branch, with a matrix for either factor or one for both, in a way to multiply."""

    def __init__(self, framework, linear, is_packed):
        self.linear = framework.TABLE["linear"][linear]
        self.relu = next(iter(framework.TABLE["relu"].values()))
        rng = np.random.default_rng(3)
        self.values = {name: rng.normal(size=(WIDTH, WIDTH)) for name in "abd"}
        if is_packed:
            one, two, out = self.values.values()
            self.values = {"w": interleaved(one, two), "d": out}

    def __call__(self, p, x):
        if "w" in p:
            h = self.linear(x, p["w"])
            one, two = h[..., ::2], h[..., 1::2]
        else:
            one, two = self.linear(x, p["a"]), self.linear(x, p["b"])
        return x + self.linear(self.relu(one) * two, p["d"])


def interleaved(one, two):
    return np.stack([one, two], 2).reshape(WIDTH, -1)


@pytest.mark.every
@pytest.mark.parametrize("linear", ["@", "conv1d"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_interleaved_gates_start_as_two_matrices(framework, linear):
    """Also those of a kernel, as its parts are multiplied."""
    two, one = (Gates(framework, linear, is_packed) for is_packed in (False, True))
    before, plain = framework.run(two, two.values, X)
    same, found = framework.run(one, one.values, X)
    np.testing.assert_allclose(same, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    np.testing.assert_array_equal(found["w"], interleaved(plain["a"], plain["b"]))
    np.testing.assert_array_equal(found["d"], plain["d"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_weight_that_is_also_used_whole_is_one_matrix(framework):
    """In one call of a layer, its result is cut; in another it is not."""

    def network(p, x):
        h = x @ p["w"]
        return x + (relu(h[..., ::2]) * h[..., 1::2]) @ p["d"] + relu((2 * x) @ p["w"]) @ p["e"]

    relu = next(iter(framework.TABLE["relu"].values()))
    rng = np.random.default_rng(4)
    sizes = {"w": (WIDTH, 2 * WIDTH), "d": (WIDTH, WIDTH), "e": (2 * WIDTH, WIDTH)}
    _, found = framework.run(network, {k: rng.normal(size=size) for k, size in sizes.items()}, X)
    np.testing.assert_array_equal(found["w"], np.tile(np.eye(WIDTH), 2))
