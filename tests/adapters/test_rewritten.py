"""Spelling changes no start: every function of the framework that says the same starts the same."""

from __future__ import annotations

import keras
import pytest

from adapters import rewritten_jax, rewritten_keras, rewritten_torch
from adapters.rewritten import KINDS, differing, several, single

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
