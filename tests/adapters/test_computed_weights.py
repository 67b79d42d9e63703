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
