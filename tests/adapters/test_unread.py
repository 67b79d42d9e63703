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


def cell_of_torch(function, join=lambda parts: torch.cat(parts, -1)):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.randn(s) for k, s in CELLS[function].items()})

        def forward(self, x):
            return function(join, torch.relu, self.p, x)

    model, x = Model(), torch.tensor(ROWS)
    report = irt.init_(model, x)
    model(x).square().sum().backward()
    return report, {name: p.grad for name, p in model.p.items()}


def cell_of_jax(function, join=lambda parts: jnp.concatenate(parts, -1)):
    def apply(p, x):
        return function(join, jax.nn.relu, p, x)

    p = {k: jax.random.normal(jax.random.key(0), size) for k, size in CELLS[function].items()}
    p, report = irj.init(p, ROWS, apply)
    return report, jax.grad(lambda p: jnp.square(apply(p, ROWS)).sum())(p)


def cell_of_keras(function, join=lambda parts: tf.concat(parts, -1)):
    class Model(keras.Model):
        def build(self, shape):
            self.p = {k: self.add_weight(shape=s, name=k) for k, s in CELLS[function].items()}

        def call(self, x):
            return function(join, tf.nn.relu, self.p, x)

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


# A concatenation in other spellings ---------------------------------------------------------------


def torch_written(parts):
    out = parts[0].new_zeros(len(parts[0]), 16)
    for at, part in enumerate(parts):
        out[:, 8 * at : 8 * at + 8] = part
    return out


def torch_scattered(parts):
    out = parts[0].new_zeros(len(parts[0]), 16)
    for at, part in enumerate(parts):
        out = torch.slice_scatter(out, part, 1, 8 * at, 8 * at + 8)
    return out


def jax_written(parts):
    out = jnp.zeros((len(parts[0]), 16))
    for at, part in enumerate(parts):
        out = out.at[:, 8 * at : 8 * at + 8].set(part)
    return out


def jax_updated(parts):
    out = jnp.zeros((len(parts[0]), 16))
    for at, part in enumerate(parts):
        out = jax.lax.dynamic_update_slice(out, part, (0, 8 * at))
    return out


JOINS = {
    ("torch", "stack"): lambda parts: torch.stack(parts, 1).flatten(1),
    ("torch", "new axis"): lambda parts: torch.cat([p[:, None] for p in parts], 1).view(-1, 16),
    ("torch", "permuted"): lambda parts: torch.stack(parts).permute(1, 0, 2).reshape(-1, 16),
    ("torch", "written"): torch_written,
    ("torch", "scattered"): torch_scattered,
    ("torch", "one by one"): lambda parts: torch.vmap(lambda *p: torch.stack(p).view(-1))(*parts),
    ("torch", "in halves"): lambda parts: torch.stack(
        [half for part in parts for half in part.chunk(2, 1)], 1).flatten(1),
    ("jax", "stack"): lambda parts: jnp.stack(parts, 1).reshape(-1, 16),
    ("jax", "permuted"): lambda parts: jnp.stack(parts).transpose(1, 0, 2).reshape(-1, 16),
    ("jax", "written"): jax_written,
    ("jax", "updated"): jax_updated,
    ("jax", "one by one"): lambda parts: jax.vmap(lambda *p: jnp.stack(p).reshape(-1))(*parts),
    ("keras", "stack"): lambda parts: keras.layers.Reshape((16,))(keras.ops.stack(parts, 1)),
    ("keras", "permuted"): lambda parts: keras.ops.reshape(
        keras.ops.transpose(keras.ops.stack(parts), (1, 0, 2)), (-1, 16)),
    ("keras", "new axis"): lambda parts: keras.ops.reshape(
        keras.ops.concatenate([keras.ops.expand_dims(p, 1) for p in parts], 1), (-1, 16)),
}  # fmt: skip
CELL_OF = {"torch": cell_of_torch, "jax": cell_of_jax, "keras": cell_of_keras}


@pytest.mark.every
@pytest.mark.parametrize("join", JOINS)
def test_a_concatenation_in_any_spelling_is_read_whole(join):
    report, grads = CELL_OF[join[0]](conditioned, JOINS[join])
    folds = {name[-1] for name, plan in report.plans.items() if plan.wide == "fold_mean"}
    assert folds == {"f", "g"}
    assert {note.kind for note in report.warnings} >= {"unread"}
    for name, grad in grads.items():
        assert np.abs(np.asarray(grad)).max() > 0, name


INTERLEAVED = {
    "torch": lambda parts: torch.stack(parts, -1).flatten(1),
    "jax": lambda parts: jnp.stack(parts, -1).reshape(-1, 16),
    "keras": lambda parts: keras.ops.reshape(keras.ops.stack(parts, -1), (-1, 16)),
}


@pytest.mark.parametrize("framework", INTERLEAVED)
def test_parts_whose_entries_alternate_are_read_by_a_truncated_weight(framework):
    """A weight that reads the first half of the entries reads half of each part."""
    report, grads = CELL_OF[framework](conditioned, INTERLEAVED[framework])
    assert {plan.wide for plan in report.plans.values()} == {"truncate"}
    assert "unread" not in {note.kind for note in report.warnings}
    for name, grad in grads.items():
        assert np.abs(np.asarray(grad)).max() > 0, name
