"""An ensemble on one input: each member's branch ends in a zero matrix, wherever members lie."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import numpy as np
import torch

from adapters.test_spellings import FRAMEWORKS, MORE, X, in_jax, in_torch, judged

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
SIZES = {"nih": (2, 8, 12), "inh": (8, 2, 12), "ihn": (8, 12, 2)}
PLACES = {"nbto": 0, "bnto": 1, "btno": 2, "bton": 3}
"""The letters of the result, and the axis of its members; o is the axis of the outputs."""


@pytest.mark.every
@pytest.mark.parametrize("stored", SIZES)
@pytest.mark.parametrize("out", PLACES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_members_may_lie_along_any_axis(framework, out, stored):
    hidden = out.replace("o", "h")

    def function(np_, p, x):
        einsum = MORE[id(np_)].einsum
        shape = (*x.shape[: PLACES[out]], 1, *x.shape[PLACES[out] :])
        h = np_.relu(einsum(f"bti,{stored}->{hidden}", x, p["u"]))
        back = f"{hidden},{stored}->{out}".replace("i", "o")
        return np_.reshape(x, shape) + einsum(back, h, p["w"])

    sizes = {"u": SIZES[stored], "w": SIZES[stored]}
    skip = np.stack([X, X], PLACES[out])
    roles = judged(framework, function, sizes, X, skip)
    assert roles == {"u": "transit", "w": "zero"}


@pytest.mark.parametrize("framework", [in_torch, in_jax])
def test_a_map_over_members_inside_a_map_over_the_batch(framework):
    def function(np_, p, x):
        vmap = torch.vmap if isinstance(x, torch.Tensor) else jax.vmap

        def member(u, w, v):
            return v + np_.relu(v @ u) @ w

        return vmap(lambda v: vmap(lambda u, w: member(u, w, v))(p["u"], p["w"]))(x)

    sizes = {"u": (2, 8, 12), "w": (2, 12, 8)}
    roles = judged(framework, function, sizes, X, np.stack([X, X], 1))
    assert roles == {"u": "transit", "w": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rows_that_one_matrix_makes_of_a_vector_are_no_members(framework):
    """Two tokens are made of one by one matrix: nothing is computed alike for each."""

    def function(np_, p, x):
        rows = np_.reshape(x[:, 0] @ p["w"], (3, 2, 8))
        return np_.relu(x[:, :1] + rows) @ p["v"]

    roles, _ = framework(function, {"w": (8, 16), "v": (8, 8)}, X)
    assert {role for name, role in roles.items() if "held" not in name} == {"transit"}
