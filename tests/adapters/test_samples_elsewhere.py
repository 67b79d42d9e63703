"""Audits of models with rows along the first axis that are not samples: experts, times, heads."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

D, EXPERTS = 16, 4
SIZES = {"r": (D, EXPERTS), "u": (EXPERTS, D, 4 * D), "w": (EXPERTS, 2 * D, D)}
DRAW = np.random.default_rng(0)
VALUES = {name: DRAW.standard_normal(size, np.float32) for name, size in SIZES.items()}
X = DRAW.standard_normal((2, 6, D), np.float32)
COPIES = {
    "copies": lambda np_, h, u: np_.matmul(np_.broadcast_to(h[None], (EXPERTS, *h.shape)), u),
    "a stack": lambda np_, h, u: np_.matmul(np_.stack([h] * EXPERTS), u),
    "a product": lambda np_, h, u: np_.einsum("tn,enk->etk", h, u),
    "a product that broadcasts": lambda np_, h, u: np_.matmul(h[None], u),
}


def experts(np_, p, x, how):
    """A mixture of experts, and what its experts read and give: (t, i) and (expert, t, o)."""
    h = x.reshape((-1, D)) if np_ is not keras.ops else np_.reshape(x, (-1, D))
    h = h * np_.exp(np_.matmul(h, p["r"]))[:, :1]
    inner = COPIES[how](np_, h, p["u"])
    y = np_.matmul(inner[..., : 2 * D] * np_.tanh(inner[..., 2 * D :]), p["w"])
    return np_.reshape(np_.sum(y, 0), X.shape) + x, h, inner


def in_torch(how):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in VALUES.items():
                self.register_parameter(name, nn.Parameter(torch.tensor(value)))

        def forward(self, x):
            return experts(torch, dict(self.named_parameters()), x, how)[0]

    model, x = Model(), torch.tensor(X)
    irt.init_(model, x)
    inside = experts(torch, dict(model.named_parameters()), x, how)[1:]
    return irt.audit(model, x), [one.detach().numpy() for one in inside]


def in_jax(how):
    def apply(p, x):
        return experts(jnp, p, x, how)[0]

    params, _ = irj.init(jax.tree.map(jnp.asarray, VALUES), X, apply)
    return irj.audit(params, X, apply), experts(jnp, params, jnp.asarray(X), how)[1:]


def in_keras(how):
    class Model(keras.layers.Layer):
        def build(self, _):
            for name, size in SIZES.items():
                setattr(self, name, self.add_weight(shape=size, name=name))

        def call(self, x):
            return experts(keras.ops, {name: getattr(self, name) for name in SIZES}, x, how)[0]

    given, layer = keras.Input(batch_shape=X.shape), Model()
    model = keras.Model(given, layer(given))
    irk.init_(model, X)
    values = {name: getattr(layer, name) for name in SIZES}
    inside = experts(keras.ops, values, keras.ops.convert_to_tensor(X), how)[1:]
    return irk.audit(model, X), [keras.ops.convert_to_numpy(one) for one in inside]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_experts_along_the_first_axis_are_no_samples(framework, how):
    """All experts start as the same matrix, so their results are equal; samples differ."""
    audit, (read, given) = framework(how)
    assert np.ptp(np.asarray(given), axis=0).max() == 0
    samples = np.asarray(read).reshape(2, -1)
    assert np.ptp(samples, axis=0).max() > 0.1
    assert not [one.why for one in audit.dead if "samples" in one.why]
    assert not any(layer.is_constant for layer in audit.layers)
    assert audit.healthy


def test_equal_heads_side_by_side_are_no_samples():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(D, 3) for _ in range(2))

        def forward(self, x):
            return torch.stack([head(x) for head in self.heads])

    model, x = Heads(), torch.tensor(X[:, 0])
    irt.init_(model, x)
    first, second = model(x)
    assert first.equal(second)
    assert not first[0].equal(first[1])
    assert irt.audit(model, x).healthy


def test_the_mean_of_all_samples_is_the_same_for_all_samples():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(D, D), nn.Linear(D, 3)

        def forward(self, x):
            return self.last(self.first(x).mean(0, keepdim=True).expand(len(x), -1))

    model, x = Mean(), torch.tensor(X[:, 0])
    assert model(x)[0].equal(model(x)[1])
    assert "same for all 2 samples" in irt.audit(model, x).healthy[0]
