"""One parameter with which a computed weight vanishes, to first order, is zero at a branch's end.

R1 and R2 are measured by running each model, in every framework and spelling.
"""

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
from torch.nn import functional

from adapters.test_spellings import X, in_jax, in_keras, in_torch, judged
from adapters.test_tensorflow_vanishing import READERS
from idinit_ref.roles.decide import decide

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
ops = keras.ops
SIZES = {"a": (8, 8), "b": (8, 8)}
MASK = np.tril(np.ones((8, 8), "float32"))
MASKS = {
    "PyTorch, product": (in_torch, lambda w: w * torch.tensor(MASK)),
    "PyTorch, choice": (in_torch, lambda w: torch.where(torch.tensor(MASK) > 0, w, 0.0)),
    "PyTorch, else": (
        in_torch, lambda w: torch.where(torch.tensor(MASK) > 0, torch.zeros_like(w), w)),
    "PyTorch, fill": (in_torch, lambda w: w.masked_fill(torch.tensor(MASK) == 0, 0.0)),
    "PyTorch, tril": (in_torch, lambda w: w.tril()),
    "PyTorch, triu": (in_torch, lambda w: torch.triu(w, 1)),
    "PyTorch, of a part": (in_torch, lambda w: w[:, :8].t().tril(-1).t()),
    "JAX, product": (in_jax, lambda w: w * MASK),
    "JAX, choice": (in_jax, lambda w: jnp.where(MASK > 0, w, 0.0)),
    "JAX, else": (in_jax, lambda w: jnp.where(MASK > 0, jnp.zeros_like(w), w)),
    "JAX, tril": (in_jax, jnp.tril),
    "JAX, triu": (in_jax, lambda w: jnp.triu(w, 1)),
    "Keras, product": (in_keras, lambda w: w * MASK),
    "Keras, choice": (in_keras, lambda w: ops.where(MASK > 0, w, 0.0)),
    "Keras, else": (in_keras, lambda w: ops.where(MASK > 0, ops.zeros_like(w), w)),
    "Keras, tril": (in_keras, ops.tril),
    "Keras, triu": (in_keras, lambda w: ops.triu(w, 1)),
    "TensorFlow, band": (in_keras, lambda w: tf.linalg.band_part(w, -1, 1)),
}  # fmt: skip
CURVES = {
    "PyTorch, tanh": (in_torch, torch.tanh),
    "PyTorch, sin": (in_torch, torch.sin),
    "PyTorch, asinh": (in_torch, torch.asinh),
    "PyTorch, softsign": (in_torch, functional.softsign),
    "PyTorch, clamp": (in_torch, lambda w: w.clamp(-1, 1)),
    "PyTorch, clamp to arrays": (in_torch, lambda w: w.clamp(-torch.ones(8), torch.ones(8))),
    "PyTorch, clamp below": (in_torch, lambda w: w.clamp(min=-0.5)),
    "PyTorch, hardtanh": (in_torch, functional.hardtanh),
    "JAX, tanh": (in_jax, jnp.tanh),
    "JAX, sin": (in_jax, jnp.sin),
    "JAX, clip": (in_jax, lambda w: jnp.clip(w, -1, 1)),
    "JAX, clamp": (in_jax, lambda w: jax.lax.clamp(-1.0, w, 1.0)),
    "Keras, tanh": (in_keras, ops.tanh),
    "Keras, sin": (in_keras, ops.sin),
    "Keras, clip": (in_keras, lambda w: ops.clip(w, -1, 1)),
    "Keras, hard tanh": (in_keras, lambda w: ops.hard_tanh(w)),
    "TensorFlow, clip": (in_keras, lambda w: tf.clip_by_value(w, -1.0, 1.0)),
}


def branch(of):
    def function(np_, p, x):
        return x + np_.relu(x @ p["a"]) @ of(p["b"])

    return function


@pytest.mark.every
@pytest.mark.parametrize("name", [*MASKS, *CURVES])
def test_a_weight_that_vanishes_with_one_parameter_ends_a_branch(name):
    framework, of = {**MASKS, **CURVES}[name]
    assert judged(framework, branch(of), SIZES, X, X) == {"a": "transit", "b": "zero"}


NOT = {  # the weight does not vanish with b, or only to second order, or has no slope there
    "PyTorch, another number": (in_torch, lambda w: w.masked_fill(torch.tensor(MASK) == 0, 1.0)),
    "PyTorch, clamp beyond 0": (in_torch, lambda w: w.clamp(0.1, 1)),
    "PyTorch, cos": (in_torch, torch.cos),
    "PyTorch, square": (in_torch, torch.square),
    "PyTorch, softmax": (in_torch, lambda w: w.softmax(-1) * torch.tensor(MASK)),
    "JAX, another number": (in_jax, lambda w: jnp.where(MASK > 0, w, 1.0)),
    "JAX, clip beyond 0": (in_jax, lambda w: jnp.clip(w, 0.1, 1)),
    "JAX, cos": (in_jax, jnp.cos),
    "JAX, softmax": (in_jax, lambda w: jax.nn.softmax(w, -1) * MASK),
    "Keras, another number": (in_keras, lambda w: ops.where(MASK > 0, w, 1.0)),
    "Keras, clip beyond 0": (in_keras, lambda w: ops.clip(w, 0.1, 1)),
    "Keras, square": (in_keras, ops.square),
    "Keras, softmax": (in_keras, lambda w: ops.softmax(w, -1) * MASK),
}


@pytest.mark.every
@pytest.mark.parametrize("name", NOT)
def test_a_weight_that_does_not_vanish_so_is_kept(name):
    framework, of = NOT[name]
    roles, _ = framework(branch(of), SIZES, X)
    assert sorted(roles[k] for k in roles if "held" not in k) == ["keep", "transit"]


STEP = 2.0**-14  # far below the changes by which R2 is measured
ROUNDED = {
    "PyTorch": (in_torch, torch.round, torch.detach),
    "JAX": (in_jax, jnp.round, jax.lax.stop_gradient),
    "Keras": (in_keras, ops.round, ops.stop_gradient),
    "TensorFlow": (in_keras, tf.round, tf.stop_gradient),
}
SCALES = {  # the step of a quantisation, from a weight and its absolute values
    "fixed": lambda w, size: STEP,
    "by the largest": lambda w, size: size(w) * STEP + 1e-8,
}


@pytest.mark.every
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("order", ["weight first", "weight last", "three terms"])
@pytest.mark.parametrize("name", ROUNDED)
def test_a_straight_through_weight_ends_a_branch(name, order, scale):
    framework, rounded, stop = ROUNDED[name]
    size = {in_torch: torch.amax, in_jax: jnp.max, in_keras: ops.amax}[framework]

    def of(w):
        step = SCALES[scale](w, lambda w: size(abs(w)))
        q = rounded(w / step) * step
        if order == "three terms":
            return stop(q) + w - stop(w)
        return w + stop(q - w) if order == "weight first" else stop(q - w) + w

    assert judged(framework, branch(of), SIZES, X, X) == {"a": "transit", "b": "zero"}


TERNARY = {  # BitNet's rounding to -1, 0 and 1, whose scale is bounded below
    "PyTorch": (in_torch, lambda w: 1 / w.abs().mean().clamp(min=1e-5), torch.round,
                lambda w: w.clamp(-1, 1), torch.detach),
    "JAX": (in_jax, lambda w: 1 / jnp.maximum(jnp.mean(jnp.abs(w)), 1e-5), jnp.round,
            lambda w: jnp.clip(w, -1, 1), jax.lax.stop_gradient),
    "Keras": (in_keras, lambda w: 1 / ops.maximum(ops.mean(ops.abs(w)), 1e-5), ops.round,
              lambda w: ops.clip(w, -1, 1), ops.stop_gradient),
}  # fmt: skip


@pytest.mark.parametrize("name", TERNARY)
def test_a_ternary_weight_ends_a_branch(name):
    """R2 holds of its straight-through gradient; the rounded weight itself jumps."""
    framework, scale, rounded, cut, stop = TERNARY[name]

    def of(w):
        s = scale(w)
        return w + stop(cut(rounded(w * s)) / s - w)

    roles, run = framework(branch(of), SIZES, X)
    assert {k.strip("./")[-1]: v for k, v in roles.items() if "held" not in k} == {
        "a": "transit",
        "b": "zero",
    }
    a = np.random.default_rng(1).normal(size=SIZES["a"]).astype("float32")
    np.testing.assert_array_equal(run({"a": a, "b": np.zeros((8, 8), "float32")}, X), X)


SECOND = {  # differences whose slopes cancel where the weight is 0, and others
    "w - tanh w": (lambda np_, w: w - np_.tanh(w), "keep"),
    "tanh w - w": (lambda np_, w: np_.tanh(w) - w, "keep"),
    "2 w - 2 tanh w": (lambda np_, w: 2 * w - 2 * np_.tanh(w), "keep"),
    "w - tanh(w) / 2": (lambda np_, w: w - np_.tanh(w) / 2, "zero"),
    "w + tanh w": (lambda np_, w: w + np_.tanh(w), "zero"),
}


@pytest.mark.every
@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_a_difference_of_second_order_ends_no_branch(framework, name):
    """Where it is zero, R2 holds: a small change of the weight changes the sum in proportion."""
    of, role = SECOND[name]

    def function(np_, p, x):
        return x + np_.relu(x @ p["a"]) @ of(np_, p["b"])

    roles, run = framework(function, SIZES, X)
    assert {k.strip("./")[-1]: v for k, v in roles.items() if "held" not in k}["b"] == role
    if role == "zero":
        assert judged(framework, function, SIZES, X, X)["b"] == "zero"
    else:
        a, b = (np.random.default_rng(k).normal(size=(8, 8)).astype("float32") for k in (1, 2))
        small = run({"a": a, "b": 1e-2 * b}, X) - X
        assert np.abs(small).max() < 1e-3  # a zero weight would learn in vain


STRAIGHT = {  # each with whether the weight vanishes with w, and its gradient is that of w
    "of signs": (lambda w: w + (w.sign() - w).detach(), True),
    "of ternary numbers": (
        lambda w: w + ((w - w.mean()).sign() * w.abs().mean() - w).detach(), True),
    "of a shifted weight": (lambda w: w + ((w + 1).round() - w).detach(), False),
    "of a reciprocal": (lambda w: w + (1 / w - w).detach(), False),
    "without a stop": (lambda w: w + (w.sign() - w), False),
    "signs": (torch.sign, False),
}  # fmt: skip


@pytest.mark.every
@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_through_weights_by_their_gradients(name):
    of, ends = STRAIGHT[name]
    w = torch.zeros(8, 8, requires_grad=True)
    weight = of(w)
    weight.sum().backward()
    is_alive = w.grad is not None and torch.equal(w.grad, torch.ones(8, 8))
    assert (not weight.any() and is_alive) == ends
    assert in_torch(branch(of), SIZES, X)[0]["p.b"] == ("zero" if ends else "keep")


ORDER = np.array([3, 1, 0, 2, 7, 6, 5, 4])
ORDERS = {
    "PyTorch, index": (in_torch, lambda w: w[torch.tensor(ORDER)]),
    "PyTorch, negative": (in_torch, lambda w: w[torch.tensor(ORDER) - 8]),
    "PyTorch, columns": (in_torch, lambda w: w[:, torch.arange(8).flip(0)]),
    "PyTorch, index_select": (in_torch, lambda w: w.index_select(1, torch.tensor(ORDER))),
    "JAX, index": (in_jax, lambda w: w[ORDER]),
    "JAX, take": (in_jax, lambda w: jnp.take(w, ORDER, axis=0)),
    "JAX, columns": (in_jax, lambda w: jnp.take(w, jnp.array(ORDER), axis=1)),
    "Keras, take": (in_keras, lambda w: ops.take(w, ORDER, axis=0)),
    "Keras, columns": (in_keras, lambda w: ops.take(w, ORDER, axis=1)),
    "TensorFlow, gather": (in_keras, lambda w: tf.gather(w, ORDER)),
}


@pytest.mark.every
@pytest.mark.parametrize("name", ORDERS)
def test_a_weight_whose_rows_are_reordered_is_no_embedding(name):
    framework, of = ORDERS[name]
    assert judged(framework, branch(of), SIZES, X, X) == {"a": "transit", "b": "zero"}


TABLES = {
    "PyTorch": (in_torch, lambda w: w[torch.arange(5)]),
    "JAX": (in_jax, lambda w: w[jnp.arange(5)]),
    "Keras": (in_keras, lambda w: ops.take(w, ops.arange(5), axis=0)),
}


@pytest.mark.parametrize("name", TABLES)
def test_all_rows_of_a_table_of_positions_are_an_embedding(name):
    framework, of = TABLES[name]

    def function(np_, p, x):
        return np_.relu((x + of(p["b"])) @ p["a"])

    roles, _ = framework(function, {"a": (8, 8), "b": (5, 8)}, X)
    assert {k.strip("./")[-1]: v for k, v in roles.items() if "held" not in k} == {
        "a": "transit",
        "b": "keep",
    }


DIAGONALS = {
    "PyTorch": (in_torch, torch.diag),
    "PyTorch, embedded": (in_torch, torch.diag_embed),
    "JAX": (in_jax, jnp.diag),
    "Keras": (in_keras, ops.diag),
    "TensorFlow": (in_keras, tf.linalg.diag),
}


@pytest.mark.every
@pytest.mark.parametrize("side", ["left", "right", "transposed"])
@pytest.mark.parametrize("name", DIAGONALS)
def test_a_product_with_a_diagonal_is_a_scale(name, side):
    framework, diag = DIAGONALS[name]

    def function(np_, p, x):
        g, b = diag(p["g"]), p["b"]
        if side == "transposed":
            b = ops.transpose(b) if framework is in_keras else b.T
        return x + np_.relu(x @ p["a"]) @ (b @ g if side == "right" else g @ b)

    roles = judged(framework, function, SIZES | {"g": (8,)}, X, X)
    assert roles == {"a": "transit", "b": "zero", "g": "keep"}


class Masked(keras.layers.Layer):
    """A branch that ends in a weight without the entries above its diagonal."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def build(self, shape):
        self.a = self.add_weight(shape=(8, 8), name="a")
        self.b = self.add_weight(shape=(8, 8), name="b")

    def call(self, x):
        return x + ops.matmul(ops.relu(ops.matmul(x, self.a)), self.of(self.b))


@pytest.mark.parametrize("of", [ops.tril, ops.tanh, lambda w: ops.clip(w, -1, 1)])
@pytest.mark.parametrize("reader", READERS)
def test_both_readers_of_keras_find_it(reader, of):
    given = keras.Input((5, 8))
    model = keras.Model(given, Masked(of)(given))
    graph = READERS[reader](model)
    roles = {name.split("/")[-1]: role for name, role in decide(graph).roles.items()}
    assert roles == {"a": "transit", "b": "zero"}
