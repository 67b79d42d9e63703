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


# Parts that several concatenations join ----------------------------------------------------------


def conditioned(join, relu, p, x):
    """A condition that is concatenated second in both of two layers."""
    h, c = x[:, 0] @ p["i"], x[:, 1] @ p["c"]
    for name in "fg":
        h = relu(join([h, c]) @ p[name])
    return h @ p["o"]


def recurrent(join, relu, p, x):
    """A cell whose state stands first and starts at 0; without a fold its result is constant."""
    h = 0 * x[:, 0]
    for t in range(x.shape[1]):
        h = relu(join([h, x[:, t] @ p["i"]]) @ p["f"])
    return h @ p["o"]


def gated(join, relu, p, x):
    """As `recurrent`, with a gate that reads all, but multiplies zeros: it has no gradient."""
    h = 0 * x[:, 0]
    for t in range(x.shape[1]):
        e = x[:, t] @ p["i"]
        gate = 1 / (1 + relu(join([h, e]) @ p["g"]))
        new = relu(join([gate[:, 8:] * h, e]) @ p["f"])
        h = (1 - gate[:, :8]) * h + gate[:, :8] * new
    return h @ p["o"]


CELLS = {
    conditioned: {"i": (8, 8), "c": (8, 8), "f": (16, 8), "g": (16, 8), "o": (8, 3)},
    recurrent: {"i": (8, 8), "f": (16, 8), "o": (8, 3)},
    gated: {"i": (8, 8), "g": (16, 16), "f": (16, 8), "o": (8, 3)},
}
ROWS = np.random.default_rng(1).normal(size=(4, 3, 8)).astype("float32")


def cell_of_torch(function):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.randn(s) for k, s in CELLS[function].items()})

        def forward(self, x):
            return function(lambda parts: torch.cat(parts, -1), torch.relu, self.p, x)

    model, x = Model(), torch.tensor(ROWS)
    report = irt.init_(model, x)
    model(x).square().sum().backward()
    return report, {name: p.grad for name, p in model.p.items()}


def cell_of_jax(function):
    def apply(p, x):
        return function(lambda parts: jnp.concatenate(parts, -1), jax.nn.relu, p, x)

    p = {k: jax.random.normal(jax.random.key(0), size) for k, size in CELLS[function].items()}
    p, report = irj.init(p, ROWS, apply)
    return report, jax.grad(lambda p: jnp.square(apply(p, ROWS)).sum())(p)


def cell_of_keras(function):
    class Model(keras.Model):
        def build(self, shape):
            self.p = {k: self.add_weight(shape=s, name=k) for k, s in CELLS[function].items()}

        def call(self, x):
            return function(lambda parts: tf.concat(parts, -1), tf.nn.relu, self.p, x)

    model = Model()
    model.build(ROWS.shape)
    report = irk.init_(model, ROWS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(ROWS)))
    return report, tape.gradient(loss, model.p)


@pytest.mark.parametrize("function", [conditioned, recurrent, gated])
@pytest.mark.parametrize("of", [cell_of_torch, cell_of_jax, cell_of_keras])
def test_a_part_that_only_truncated_weights_read_is_read(of, function):
    report, grads = of(function)
    folds = {name[-1] for name, plan in report.plans.items() if plan.wide == "fold_mean"}
    assert folds == ({"f", "g"} if function is conditioned else {"f"})
    assert {note.kind for note in report.warnings} >= {"unread"}
    for name in "if" if function is gated else grads:
        assert np.abs(np.asarray(grads[name])).max() > 0, name


def sliced(join, relu, p, x):
    """Slices of one matrix, whose results are joined: they are one result, and no parts of it."""
    return relu(join([x[:, 0] @ p["w"][:, :6], x[:, 0] @ p["w"][:, 6:]])) @ p["o"]


CELLS[sliced] = {"w": (8, 12), "o": (12, 3)}


@pytest.mark.parametrize("of", [cell_of_torch, cell_of_jax, cell_of_keras])
def test_slices_of_a_weight_that_are_joined_are_no_parts(of):
    report, _ = of(sliced)
    assert "unread" not in {note.kind for note in report.warnings}
    assert {(plan.wide, plan.blocks) for plan in report.plans.values()} == {("truncate", None)}
