"""Weights that are joined, and their result cut at the seams: the roles of weights apart.

R1 and R2 are measured on the model, and the roles are those of the same model without the join.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import torch
from torch import nn
from torch.nn import functional

import idinit_ref_torch as irt
from adapters.test_spellings import FRAMEWORKS, MORE, X, facts, judged

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
NAMES = "agv"
BIASES = dict(zip(NAMES, "bch", strict=True))


def whole(np_, p, x):
    return x @ np_.cat([p[name] for name in NAMES])


def cut(y):
    return [y[..., :8], y[..., 8:16], y[..., 16:]]


def by_heads(np_, p, x):
    y = np_.reshape(whole(np_, p, x), (3, 5, 3, 2, 4))
    return [np_.reshape(y[:, :, at], (3, 5, 8)) for at in range(3)]


def by_columns(np_, p, x):
    y = np_.swap(whole(np_, p, x))
    return [np_.swap(part) for part in (y[:, :8], y[:, 8:16], y[:, 16:])]


def twice(np_, p, x):
    y = whole(np_, p, x)
    first = y[..., :16]
    return [first[..., :8], first[..., 8:], y[..., 16:]]


APART = {
    False: lambda np_, p, x: [x @ p[name] for name in NAMES],
    True: lambda np_, p, x: [x @ p[name] + p[bias] for name, bias in BIASES.items()],
}
WAYS = {
    "cut": (False, lambda np_, p, x: cut(whole(np_, p, x))),
    "einsum": (False, lambda np_, p, x: cut(MORE[id(np_)].einsum(
        "bti,io->bto", x, np_.cat([p[name] for name in NAMES])))),
    "heads": (False, by_heads),
    "columns": (False, by_columns),
    "twice": (False, twice),
    "biases": (True, lambda np_, p, x: cut(
        whole(np_, p, x) + np_.cat([p[bias] for bias in BIASES.values()]))),
}  # fmt: skip


def attention(np_, x, a, g, v):
    scores = np_.exp(0.1 * a @ np_.swap(g))
    return x + (scores / MORE[id(np_)].sum(scores, -1)[..., None]) @ v


def gate(np_, x, a, g, v):
    return x + a / (1 + np_.exp(-g) + np_.exp(0.1 * v))


def bilinear(np_, x, a, g, v):
    return x + v + a * np_.tanh(g)


ENDS = {attention: {"v"}, gate: {"a"}, bilinear: {"a", "v"}}


@pytest.mark.every
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block", [attention, gate, bilinear])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_parts_of_joined_weights_have_the_roles_of_weights_apart(framework, block, way):
    is_biased, parts = WAYS[way]
    sizes = dict.fromkeys(NAMES, (8, 8)) | dict.fromkeys(BIASES.values() if is_biased else (), (8,))

    def function(np_, p, x):
        return block(np_, x, *parts(np_, p, x))

    def apart(np_, p, x):
        return block(np_, x, *APART[is_biased](np_, p, x))

    found, _ = framework(function, sizes, X, facts)
    wanted, _ = framework(apart, sizes, X, facts)
    assert found == wanted
    if not is_biased:  # R1 has no biases
        roles = judged(framework, function, sizes, X, X)
        assert {name for name in roles if roles[name] == "zero"} == ENDS[block]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_joined_weights_whose_result_is_read_whole_end_a_branch_together(framework):
    def function(np_, p, x):
        z = np_.cat([x, x, x])
        return z + whole(np_, p, x)

    sizes = dict.fromkeys(NAMES, (8, 8))
    roles, _ = framework(function, sizes, X)
    assert {role for name, role in roles.items() if "held" not in name} == {"zero"}


class Fused(nn.Module):
    """An attention whose projections are applied at once, with their biases, by heads."""

    def __init__(self, apart):
        super().__init__()
        self.apart = apart
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        own = self.q, self.k, self.v
        if self.apart:
            q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in own)
        else:
            weight, bias = (torch.cat([getattr(m, of) for m in own]) for of in ("weight", "bias"))
            y = functional.linear(x, weight, bias)
            q, k, v = y.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.o(y.transpose(1, 2).flatten(2))


def test_layers_of_pytorch_that_are_applied_at_once():
    found, wanted = (
        irt.init_(model, torch.tensor(X)) for model in (Fused(apart=False), Fused(apart=True))
    )
    assert found.roles == wanted.roles
    assert found.plans == wanted.plans
    assert not found.warnings
