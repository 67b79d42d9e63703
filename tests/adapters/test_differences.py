"""A difference of two signals is a residual add like a sum, unless it is a loss or a distance.

The models run: with the zero weights at 0 and all others random, each branch leaves its skip.
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
from torch import nn

import idinit_ref_torch as irt
from adapters.test_spellings import FRAMEWORKS, JAX, KERAS, TORCH, X, in_jax, in_torch, judged
from adapters.test_tensorflow_vanishing import READERS
from idinit_ref.roles.decide import decide

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
SIZES = dict.fromkeys("abc", (8, 8))
MORE = {
    id(TORCH): (torch.mean, torch.sigmoid, torch.exp),
    id(JAX): (jnp.mean, jax.nn.sigmoid, jnp.exp),
    id(KERAS): (keras.ops.mean, keras.ops.sigmoid, keras.ops.exp),
}


def mean(np_, x, *axes):
    return MORE[id(np_)][0](x, axes)


def sigmoid(np_, x):
    return MORE[id(np_)][1](x)


def f(np_, p, x):
    return np_.tanh(x @ p["a"]) @ p["b"]


def roles_of(framework, function, sizes=SIZES, x=X):
    roles, _ = framework(function, sizes, x)
    return {k.strip("./")[-1]: role for k, role in roles.items() if "held" not in k}


# Residual differences -----------------------------------------------------------------------------

ADDS = {  # each with its result if the branch is 0
    "x - f(x)": (lambda np_, p, x: x - f(np_, p, x), X),
    "f(x) - x": (lambda np_, p, x: f(np_, p, x) - x, -X),
    "x - f(x) / 2": (lambda np_, p, x: x - 0.5 * f(np_, p, x), X),
    "x + (-f(x))": (lambda np_, p, x: x + (-f(np_, p, x)), X),
    "x - (-1) f(x)": (lambda np_, p, x: x - (-1.0) * f(np_, p, x), X),
    "rows": (lambda np_, p, x: x[:, ::2] - f(np_, p, x)[:, ::2], X[:, ::2]),
    "an average of both": (lambda np_, p, x: x + 0.25 * (f(np_, p, x) - x), 0.75 * X),
    "a mean": (lambda np_, p, x: x - (f(np_, p, x) - mean(np_, f(np_, p, x), 1)[:, None]), X),
    "functions": (lambda np_, p, x: x - exps(np_, f(np_, p, x)), X),
}


def exps(np_, h):
    exp = MORE[id(np_)][2]
    return exp(h) - exp(-h)


@pytest.mark.every
@pytest.mark.parametrize("name", ADDS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_difference_is_a_residual_add(framework, name):
    function, skip = ADDS[name]
    sizes = {k: SIZES[k] for k in "ab"}
    assert judged(framework, function, sizes, X, skip) == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("sign", [1, -1])
def test_functions_of_two_signals_cancel_where_these_are_zero(framework, sign):
    """exp(a(x)) - exp(b(x)) vanishes with both, also as exp(a(x)) + (-exp(b(x)))."""

    def function(np_, p, x):
        one, other = (MORE[id(np_)][2](0.1 * (x @ p[name])) for name in "ab")
        return x + (one - other if sign < 0 else one + (-other))

    sizes = {k: SIZES[k] for k in "ab"}
    assert judged(framework, function, sizes, X, X) == {"a": "zero", "b": "zero"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_differences_follow_each_other(framework):
    """As in a diffusion on a graph: each step takes something from the state."""

    def function(np_, p, x):
        for name in "abc":
            x = x - 0.1 * np_.tanh(x @ p[name])
        return x

    assert judged(framework, function, SIZES, X, X) == dict.fromkeys("abc", "zero")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_difference_with_a_projection(framework):
    def function(np_, p, x):
        return x @ p["c"] - f(np_, p, x)

    assert roles_of(framework, function) == {"a": "transit", "b": "zero", "c": "transit"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_before_a_pooled_head(framework, sign):
    """The sums over places keep the channels, which the head reads."""

    def function(np_, p, x):
        y = x - f(np_, p, x) if sign < 0 else x + f(np_, p, x)
        return mean(np_, y, 1) @ p["c"]

    assert roles_of(framework, function) == {"a": "transit", "b": "zero", "c": "transit"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_result_and_its_loss(framework):
    """A denoiser returns both; its last weight ends the branch."""

    def function(np_, p, x):
        y = x - f(np_, p, x)
        return y, mean(np_, (y - 1) ** 2, 0, 1, 2)

    assert roles_of(framework, function, {k: SIZES[k] for k in "ab"}) == {
        "a": "transit",
        "b": "zero",
    }


PUTS = {
    "PyTorch, by index": (
        in_torch,
        lambda m, p, x: torch.index_add(x, 1, torch.tensor([0, 2]), f(m, p, x[:, ::4]), alpha=-1),
    ),
    "JAX, by index": (
        in_jax,
        lambda m, p, x: jnp.asarray(x).at[:, ::2].subtract(f(m, p, x[:, ::2])),
    ),
    "JAX, by list": (
        in_jax,
        lambda m, p, x: jnp.asarray(x).at[:, jnp.array([0, 3])].subtract(f(m, p, x[:, ::3])),
    ),
    "TensorFlow, by index": (
        FRAMEWORKS[2],
        lambda m, p, x: tf.tensor_scatter_nd_sub(x, [[0], [2]], f(m, p, x[::2])),
    ),
}


@pytest.mark.parametrize("name", PUTS)
def test_a_difference_at_some_places(name):
    framework, function = PUTS[name]
    sizes = {k: SIZES[k] for k in "ab"}
    assert judged(framework, function, sizes, X, X) == {"a": "transit", "b": "zero"}


# Losses and distances -----------------------------------------------------------------------------


def distance(how):
    def function(np_, p, x):
        d = x - f(np_, p, x)
        if how == "squares":
            return mean(np_, d**2, 0, 1, 2)
        if how == "squares of a sample":
            return mean(np_, np_.reshape(d, (3, 40)) ** 2, 1)
        if how == "squares of a place":
            return mean(np_, d * d, 2)
        if how == "squares of a channel":
            return mean(np_, d * d, 0, 1)
        if how == "sizes":
            return mean(np_, abs(d), 0, 1, 2)
        if how == "reconstruction":
            y = f(np_, p, x)
            return y, mean(np_, (x - y) ** 2, 0, 1, 2)
        return mean(np_, abs(d) ** 0.5, 2) @ p["a"][:5, :5]  # of distances

    return function


DISTANCES = "squares", "squares of a sample", "squares of a place", "squares of a channel"
DISTANCES += ("sizes", "reconstruction", "weighed")


@pytest.mark.every
@pytest.mark.parametrize("how", DISTANCES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_is_no_residual_add(framework, how):
    """A zero decoder would reconstruct nothing: its last weight passes its input on."""
    found = roles_of(framework, distance(how), {k: SIZES[k] for k in "ab"})
    assert found == {"a": "transit", "b": "transit"}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_distance_to_a_code_is_no_residual_add(framework):
    """The loss of a quantiser: encoded, the nearest mixture of codes, decoded."""

    def function(np_, p, x):
        h = np_.tanh(x @ p["a"])
        code = np_.tanh(h @ p["b"]) @ p["b"]
        return code @ p["c"], mean(np_, (h - code) ** 2, 0, 1, 2)

    assert roles_of(framework, function) == dict.fromkeys("abc", "transit")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("gated", [True, False])
def test_differences_without_weights_change_nothing(framework, gated):
    """What is left beside two moving averages, as of a series, inside a branch and behind it."""

    def about(np_, h):
        near = (h + np_.widen(mean(np_, h, 2)[..., None], 0)) / 2
        return (h - near) - (near - h * 0.5)

    def function(np_, p, x):
        h = np_.tanh(about(np_, x) @ p["a"])
        return about(np_, x + (h * sigmoid(np_, x @ p["c"]) if gated else h) @ p["b"])

    sizes = {k: SIZES[k] for k in ("abc" if gated else "ab")}
    found = roles_of(framework, function, sizes)
    assert found == {k: "zero" if k == "b" else "transit" for k in sizes}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("start", ["skip", "branch"])
def test_a_gate_between_two_states_is_on_the_skip_too(framework, start):
    """x + g (f - x) = (1 - g) x + g f, as in a highway: nothing is zero."""

    def function(np_, p, x):
        g, h = sigmoid(np_, x @ p["c"]), f(np_, p, x)
        return x + g * (h - x) if start == "skip" else h + (1 - g) * (x - h)

    def spelled(np_, p, x):
        g, h = sigmoid(np_, x @ p["c"]), f(np_, p, x)
        return (1 - g) * x + g * h

    found = roles_of(framework, function)
    assert found == roles_of(framework, spelled) == dict.fromkeys("abc", "transit")
    draw = {k: np.random.default_rng(1).normal(size=v).astype("float32") for k, v in SIZES.items()}
    one, other = (framework(each, SIZES, X)[1](draw, X) for each in (function, spelled))
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("by", ["a number", "a gate"])
def test_an_interpolation_of_pytorch(by):
    """By a number it is a difference with the skip; by a gate it is a highway."""

    def function(np_, p, x):
        return torch.lerp(x, f(np_, p, x), 0.25 if by == "a number" else (x @ p["c"]).sigmoid())

    if by == "a number":
        found = judged(in_torch, function, {k: SIZES[k] for k in "ab"}, X, 0.75 * X)
        assert found == {"a": "transit", "b": "zero"}
    else:
        assert roles_of(in_torch, function) == dict.fromkeys("abc", "transit")


class DnCNN(nn.Module):
    """Zhang et al. 2017: the network predicts the noise."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 3, 3, padding=1),
        )

    def forward(self, x):
        return x - self.net(x)


def test_a_denoiser_starts_as_the_identity():
    model, x = DnCNN(), torch.randn(2, 3, 8, 8)
    roles = irt.init_(model, x).roles
    assert [name for name, role in roles.items() if role == "zero"] == ["net.5.weight"]
    torch.testing.assert_close(model(x), x, atol=1e-4, rtol=0)


def test_an_autoencoder_in_training_reconstructs():
    """The same network, once with its loss as its output."""

    class Loss(DnCNN):
        def forward(self, x):
            return nn.functional.mse_loss(self.net(x), x), super().forward(x).square().mean()

    found = decide(irt.trace(Loss(), torch.randn(2, 3, 8, 8))).roles
    assert "zero" not in found.values()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("is_loss", [False, True])
def test_both_readers_of_keras_read_differences(reader, is_loss):
    x = keras.Input(batch_shape=(3, 8))
    dense = [keras.layers.Dense(8, name=name) for name in "ab"]
    y = keras.layers.Subtract()([x, dense[1](keras.ops.tanh(dense[0](x)))])
    y = keras.ops.mean(y * y, axis=-1) if is_loss else y
    roles = decide(READERS[reader](keras.Model(x, y))).roles
    last = next(role for name, role in roles.items() if "b/kernel" in name)
    assert last == ("transit" if is_loss else "zero")


def test_a_remainder_of_quantisation_keeps_the_signal():
    """Residual quantisers (DAC): each subtracts its result, and the results are summed."""

    class Quantisers(nn.Module):
        def __init__(self):
            super().__init__()
            self.outs = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.head = nn.Linear(8, 8)

        def forward(self, x):
            total = 0
            for out in self.outs:
                part = out(torch.tanh(x))
                total, x = total + part, x - part
            return self.head(total)

    model, x = Quantisers(), torch.randn(4, 8)
    irt.init_(model, x)
    assert model(x).abs().max() > 0.1
