"""Spelling changes no start: every function of the framework that says the same starts the same."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from adapters import rewritten_jax, rewritten_keras, rewritten_torch
from adapters.rewritten import (
    KINDS, STORED, Apart, Packed, X, differing, packed, several, single,
)  # fmt: skip

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


@pytest.mark.parametrize("turn", range(3))
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
    np.testing.assert_array_equal(plain["q"], np.eye(8))
