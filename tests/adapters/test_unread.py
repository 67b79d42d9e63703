"""A concatenation is read whole, also behind a pooling: all its parts learn."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from flax import linen
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
POOLS = ("max", "average", "all", "largest")


class OfTorch(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3)
        self.pool = {
            "max": nn.MaxPool2d(2),
            "average": nn.AvgPool2d(2),
            "all": nn.AdaptiveAvgPool2d(1),
            "largest": lambda x: x.amax((2, 3), keepdim=True),
        }[pool]
        self.last = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        return self.last(self.pool(torch.cat([self.one(x)[..., 1:-1, 1:-1], self.two(x)], 1)))


def of_torch(pool):
    model, x = OfTorch(pool), torch.tensor(X).permute(0, 3, 1, 2)
    report = irt.init_(model, x)
    model(x).square().sum().backward()
    return report, [model.one.weight.grad, model.two.weight.grad]


class OfFlax(linen.Module):
    pool: str

    @linen.compact
    def __call__(self, x):
        one = linen.Conv(8, (1, 1), name="one")(x)[:, 1:-1, 1:-1]
        x = jnp.concatenate([one, linen.Conv(8, (3, 3), padding="VALID", name="two")(x)], -1)
        x = {
            "max": lambda: linen.max_pool(x, (2, 2), (2, 2)),
            "average": lambda: linen.avg_pool(x, (2, 2), (2, 2)),
            "all": lambda: x.mean((1, 2), keepdims=True),
            "largest": lambda: x.max((1, 2), keepdims=True),
        }[self.pool]()
        return linen.Conv(8, (1, 1), name="last")(x)


def of_flax(pool):
    model = OfFlax(pool)
    weights, report = irj.init(model.init(jax.random.key(0), X), X, model.apply)
    grads = jax.grad(lambda weights: jnp.square(model.apply(weights, X)).sum())(weights)
    return report, [grads["params"][name]["kernel"] for name in ("one", "two")]


def of_keras(pool):
    layers = keras.layers
    given = keras.Input(X.shape[1:])
    one, two = layers.Conv2D(8, 1), layers.Conv2D(8, 3)
    reduced = {
        "max": layers.MaxPooling2D(2),
        "average": layers.AveragePooling2D(2),
        "all": layers.GlobalAveragePooling2D(keepdims=True),
        "largest": layers.GlobalMaxPooling2D(keepdims=True),
    }[pool](layers.Concatenate()([layers.Cropping2D(1)(one(given)), two(given)]))
    model = keras.Model(given, layers.Conv2D(8, 1, name="last")(reduced))
    report = irk.init_(model, None)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(X)))
    return report, [g.numpy() for g in tape.gradient(loss, [one.kernel, two.kernel])]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("of", [of_torch, of_flax, of_keras])
def test_a_concatenation_is_read_whole_behind_a_pooling(of, pool):
    report, grads = of(pool)
    assert [plan.wide for name, plan in report.plans.items() if "last" in name] == ["fold_mean"]
    assert [note.kind for note in report.warnings] == ["unread"]
    for grad in grads:
        assert np.abs(np.asarray(grad)).max() > 0


class Inception(nn.Module):
    """Three branches, one of which pools what it reads."""

    def __init__(self, inputs):
        super().__init__()
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(inputs, 8, 1))
        wide = nn.Sequential(nn.Conv2d(inputs, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        self.branches = nn.ModuleList([nn.Conv2d(inputs, 8, 1), wide, pool])

    def forward(self, x):
        return torch.cat([branch(x).relu() for branch in self.branches], 1)


def test_no_parameter_of_inception_blocks_starts_without_gradient():
    stem, tail = nn.Conv2d(3, 16, 3), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    model, x = nn.Sequential(stem, *map(Inception, (16, 24, 24)), *tail), torch.tensor(X)
    x = x.permute(0, 3, 1, 2)
    irt.init_(model, x)
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    assert [name for name, p in model.named_parameters() if not p.grad.any()] == []
