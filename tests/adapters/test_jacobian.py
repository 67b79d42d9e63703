"""Jacobians by products, against the whole ones that each framework computes itself."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from flax import nnx
from torch import nn

import idinit_ref_jax as ij
import idinit_ref_tensorflow as itf
import idinit_ref_torch as it
from idinit_ref.diagnostics.spectrum import Operator, chi, singular_values
from idinit_ref.errors import OptionTypeError, ShapeError


class Block(nn.Module):
    """Attention, normalisation, convolution: (1, 5, 8) in, (1, 7, 8) out."""

    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv1d(5, 7, 3, padding=1)

    def forward(self, x):
        y = self.norm(x)
        return nn.functional.gelu(self.conv(x + self.mix(y, y, y)[0]))


def torch_case():
    torch.manual_seed(0)
    net, x = Block().double(), torch.randn(1, 5, 8, dtype=torch.float64)
    return it.jacobian(net, x), torch.func.jacrev(net)(x).detach().numpy().reshape(56, 40)


def jax_case():
    conv, dense = (
        nnx.Conv(3, 4, (3,), rngs=nnx.Rngs(0)),
        nnx.Linear(24, 5, rngs=nnx.Rngs(1)),
    )

    def net(x):
        return jnp.tanh(dense(nnx.gelu(conv(x)).reshape(-1)))

    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 3)))
    return ij.jacobian(jax.jit(net), x), np.asarray(jax.jacobian(net)(x)).reshape(5, 18)


def tensorflow_case():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            keras.layers.Conv1D(4, 3, activation="gelu", dtype="float64"),
            keras.layers.Flatten(dtype="float64"),
            keras.layers.Dense(5, activation="tanh", dtype="float64"),
        ]
    )
    x = tf.constant(np.random.default_rng(0).standard_normal((1, 6, 3)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = model(x)
    return itf.jacobian(model, x), tape.jacobian(y, x).numpy().reshape(5, 18)


@pytest.mark.parametrize("case", [torch_case, jax_case, tensorflow_case])
def test_products_are_those_of_the_whole_jacobian(case, x64):
    operator, whole = case()
    assert isinstance(operator, Operator)
    assert operator.shape == whole.shape
    assert operator.precision == 2.0**-52 or case is jax_case  # its parameters are float32
    tolerance = 1e-6 if case is jax_case else 1e-12
    np.testing.assert_allclose(operator @ np.eye(whole.shape[1]), whole, atol=tolerance)
    np.testing.assert_allclose(operator.T @ np.eye(whole.shape[0]), whole.T, atol=tolerance)
    truth = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(singular_values(operator), truth, atol=tolerance)
    assert chi(operator).value == pytest.approx(np.sum(truth**2) / whole.shape[1], rel=tolerance)


def test_a_deep_torch_chain_has_theorem_t6s_jacobian():
    """ReLU layers of IDI_tau: tau^L where x > 0, and 0 elsewhere."""
    x, depth = torch.tensor([1.0, -2.0, 3.0, 0.5]), 200
    for tau in (1.0, 2.0**0.5):
        layers = [it.idi_layer_(nn.Linear(4, 4), gain=tau) for _ in range(depth)]
        net = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())])
        values = singular_values(it.jacobian(net, x))
        want = [tau**depth] * 3 + [0]
        np.testing.assert_allclose(values, want, rtol=1e-4, err_msg=f"tau = {tau}")


@pytest.mark.parametrize(("m", "n"), [(7, 3), (3, 7)])
def test_real_layers_of_other_widths_agree_in_all_frameworks(m, n):
    """T5 through each framework's own dense layer, one sample in a batch of two."""
    found = []
    layer = it.idi_layer_(nn.Linear(n, m))
    found.append(it.jacobian(lambda x: layer(x[None])[0], torch.ones(n)))
    dense = ij.idi_layer_(nnx.Linear(n, m, rngs=nnx.Rngs(0)))
    found.append(ij.jacobian(dense, jnp.ones(n)))
    found.append(itf.jacobian(keras.layers.Dense(m, kernel_initializer=itf.IDI()), tf.ones((1, n))))
    copies = [3, 2, 2] if m > n else [1, 1, 1]
    for name, operator in zip(("PyTorch", "Flax", "Keras"), found, strict=True):
        assert operator.shape == (m, n)
        assert operator.precision == 2.0**-23
        squares = singular_values(operator) ** 2
        np.testing.assert_allclose(squares, copies, rtol=1e-6, err_msg=name)
        assert chi(operator).value == pytest.approx(sum(copies) / n, rel=1e-6)


def test_a_large_jacobian_of_float32_layers():
    """2,000 inputs: orthogonal layers with three directions widened."""
    torch.manual_seed(0)
    n = 2000
    d = torch.ones(n)
    d[:3] = torch.tensor([3.0, 3.0, 2.0])
    w = nn.functional.normalize(torch.randn(n), dim=0)
    operator = it.jacobian(lambda x: d * x - 2 * w * (w @ (d * x)), torch.randn(n))
    np.testing.assert_allclose(singular_values(operator, 3), [3, 3, 2], rtol=2e-5)
    found = chi(operator)
    assert abs(found.value - float((d**2).mean())) < 4 * found.error + 1e-6


def test_the_model_is_left_as_it_was():
    layer, x = nn.Linear(3, 2), torch.zeros(3, requires_grad=True)
    operator = it.jacobian(layer, x)
    np.testing.assert_array_equal(operator @ np.eye(3), layer.weight.detach().numpy())
    assert layer.weight.grad is None
    assert x.grad is None


def test_f_is_run_once_so_that_dropout_stays():
    runs = []

    def f(x):
        runs.append(1)
        return nn.functional.dropout(x, 0.5)

    operator = it.jacobian(f, torch.ones(50))
    first = operator @ np.eye(50)
    np.testing.assert_array_equal(first, operator @ np.eye(50))
    np.testing.assert_array_equal(first, (operator.T @ np.eye(50)).T)
    assert len(runs) == 1


def test_constants_have_jacobian_zero():
    for operator in (
        it.jacobian(lambda x: torch.ones(3), torch.zeros(2)),
        ij.jacobian(lambda x: jnp.ones(3), jnp.zeros(2)),
        itf.jacobian(lambda x: tf.ones(3), tf.zeros(2)),
    ):
        assert not (operator @ np.eye(2)).any()
        assert not (operator.T @ np.eye(3)).any()


def test_lookups_in_tensorflow_and_variables():
    x = tf.Variable([1.0, 2.0, 3.0])
    operator = itf.jacobian(lambda x: tf.gather(x, [2, 0, 2]), x)
    np.testing.assert_array_equal(operator.T @ np.eye(3), [[0, 1, 0], [0, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(operator @ np.eye(3), [[0, 0, 1], [1, 0, 0], [0, 0, 1]])


def test_low_precision_says_so():
    assert it.jacobian(lambda x: 2 * x, torch.ones(3, dtype=torch.bfloat16)).precision == 2.0**-7
    assert ij.jacobian(lambda x: 2 * x, jnp.ones(3, dtype=jnp.bfloat16)).precision == 2.0**-7
    twice = itf.jacobian(lambda x: 2 * x, tf.ones(3, dtype=tf.bfloat16))
    assert twice.precision == 2.0**-7
    np.testing.assert_array_equal(twice @ np.eye(3), 2 * np.eye(3))


@pytest.mark.parametrize(
    ("jacobian", "ones", "integer"),
    [
        (it.jacobian, torch.ones, torch.int32),
        (ij.jacobian, jnp.ones, jnp.int32),
        (itf.jacobian, tf.ones, tf.int32),
    ],
    ids=["torch", "jax", "tensorflow"],
)
def test_what_is_refused(jacobian, ones, integer):
    for f, x in (
        (abs, np.ones(3)),
        (abs, ones(3, dtype=integer)),
        (lambda x: (x, x), ones(3)),
        (lambda x: "y", ones(3)),
    ):
        with pytest.raises(OptionTypeError, match="real floating"):
            jacobian(f, x)
    for f in (3, None, [abs]):
        with pytest.raises(OptionTypeError, match=r"f = .*, but it should be callable; pass a"):
            jacobian(f, ones(3))
    with pytest.raises(ShapeError, match="empty"):
        jacobian(abs, ones(0))
    with pytest.raises(ShapeError, match="empty"):
        jacobian(lambda x: x[:0], ones(3))
