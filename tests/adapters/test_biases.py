"""What is only added to the outputs of one weight is a bias, wherever and in parts it is added.

The truth is the model's own: with every weight and bias as set, a model of residual blocks returns
its input. A bias that is not 0, or a branch that does not end, shows in the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
STACKS = {"u": (3, 8, 8), "w": (3, 8, 8), "c": (3, 8)}
ONE = {"u": (8, 8), "w": (8, 8), "c": (8,)}
ROWS = [2, 0, 1]


def numbers(shapes):
    """Random starting values: biases too."""
    rng = np.random.default_rng(1)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def in_torch(shapes, function):
    """The roles of a function's parameters, and its result with the values that they have then."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in numbers(shapes).items():
                setattr(self, name, nn.Parameter(torch.tensor(value)))

        def forward(self, x):
            return function(torch, dict(self.named_parameters()), x)

    model = Model()
    report = irt.init_(model, torch.tensor(X))
    return report, model(torch.tensor(X)).detach().numpy()


def in_jax(shapes, function):
    def model(p, x):
        return function(jnp, p, x)

    start = {name: jnp.asarray(value) for name, value in numbers(shapes).items()}
    new, report = irj.init(start, (jnp.asarray(X),), model)
    return report, np.asarray(model(new, jnp.asarray(X)))


def in_keras(shapes, function):
    class Layer(keras.layers.Layer):
        def build(self, _):
            self.of = {
                name: self.add_weight(
                    shape=value.shape, initializer=keras.initializers.Constant(value), name=name
                )
                for name, value in numbers(shapes).items()
            }

        def call(self, x):
            return function(keras.ops, self.of, x)

    inputs = keras.Input((8,), batch_size=6)
    model = keras.Model(inputs, Layer()(inputs))
    report = irk.init_(model, tf.constant(X))
    return report, np.asarray(model(tf.constant(X)))


WAYS = {"torch": in_torch, "jax": in_jax, "keras": in_keras}


def role(report, name):
    (found,) = (role for key, role in report.roles.items() if key.split("/")[-1] == name)
    return found


def branch(xp, u, w, x):
    return xp.tanh(x @ u) @ w


def layers(block):
    """Residual blocks whose weights are those of a stack."""

    def model(xp, p, x):
        for k in range(3):
            x = block(xp, x, branch(xp, p["u"][k], p["w"][k], x), p["c"][k])
        return x

    return model


def one(block):
    return lambda xp, p, x: block(xp, x, branch(xp, p["u"], p["w"], x), p["c"])


def packed(xp, p, x):
    h = xp.tanh(x @ p["u"] + p["c"][:8])
    return x + h @ p["w"] + p["c"][8:]


def members(xp, p, x):
    """An ensemble, each member with its own bias behind the residual add."""
    h = x[None] + xp.tanh(x[None] @ p["u"]) @ p["w"] + p["c"][:, None]
    return h.mean(0) if xp is not keras.ops else keras.ops.mean(h, 0)


def take(xp, value, rows):
    if xp is torch:
        return value[torch.tensor(rows)]
    return value[jnp.asarray(rows)] if xp is jnp else keras.ops.take(value, rows, axis=0)


def chosen(rows):
    """Layers whose matrices and biases a list of constant numbers chooses."""

    def model(xp, p, x):
        u, w, c = (take(xp, p[name], rows) for name in "uwc")
        for k in range(len(rows)):
            x = x + (branch(xp, u[k], w[k], x) + c[k])
        return x

    return model


def late(xp, p, x):
    c = take(xp, p["c"], ROWS)
    for k in range(3):
        x = x + branch(xp, p["u"][k], p["w"][k], x) + c[k]
    return x


def heads(reduce):
    """Parts of a weight's outputs that are put together before a bias is added."""

    def model(xp, p, x):
        return x + xp.tanh(reduce(xp, x, p["w"]) + p["c"])

    return model


def mean(xp, value, axis):
    return keras.ops.mean(value, axis) if xp is keras.ops else value.mean(axis)


def largest(xp, value, axis):
    return value.amax(axis) if xp is torch else xp.max(value, axis)


def four(xp, x, w):
    return xp.reshape(x @ w, (6, 4, 8))


CASES = {
    "(x + y) + c, one": (ONE, one(lambda xp, x, y, c: x + y + c)),
    "(x + c) + y, one": (ONE, one(lambda xp, x, y, c: x + c + y)),
    "(c + x) + y, one": (ONE, one(lambda xp, x, y, c: c + x + y)),
    "x + (y + c)": (STACKS, layers(lambda xp, x, y, c: x + (y + c))),
    "(x + y) + c": (STACKS, layers(lambda xp, x, y, c: x + y + c)),
    "(x + c) + y": (STACKS, layers(lambda xp, x, y, c: x + c + y)),
    "c + (y + x)": (STACKS, layers(lambda xp, x, y, c: c + (y + x))),
    "behind a reshape": (
        STACKS,
        layers(lambda xp, x, y, c: xp.reshape(xp.reshape(x + y, (2, 3, 8)) + c, (6, 8))),
    ),
    "one vector of two biases": ({**ONE, "c": (16,)}, packed),
    "members": (STACKS, members),
    "permuted": (STACKS, chosen(ROWS)),
    "some": (STACKS, chosen([2, 0])),
    "slice": (STACKS, chosen([0, 1])),
    "permuted, behind the add": (STACKS, late),
    "mean of heads": (
        {"w": (8, 32), "c": (8,)},
        heads(lambda xp, x, w: mean(xp, four(xp, x, w), 1)),
    ),
    "maxout": (
        {"w": (8, 32), "c": (8,)},
        heads(lambda xp, x, w: largest(xp, xp.reshape(x @ w, (6, 8, 4)), 2)),
    ),
    "sum of slices": (
        {"w": (8, 32), "c": (8,)},
        heads(lambda xp, x, w: sum((x @ w)[:, k : k + 8] for k in range(0, 32, 8))),
    ),
    "mean of members": (
        {"w": (3, 8, 8), "c": (8,)},
        heads(lambda xp, x, w: mean(xp, xp.einsum("bi,nio->nbo", x, w), 0)),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_bias_is_0_and_the_model_returns_its_input(way, case):
    shapes, function = CASES[case]
    report, result = WAYS[way](shapes, function)
    assert role(report, "c") == "bias"
    assert role(report, "w") == "zero"
    assert not report.warnings or {note.kind for note in report.warnings} <= {"copies"}
    np.testing.assert_allclose(result, X, atol=1e-4)


KEPT = {
    "positions": (
        {**ONE, "c": (6, 8)},
        lambda xp, p, x: branch(xp, p["u"], p["w"], x) + p["c"] + x,
    ),
    "positions in an order": (
        {**ONE, "c": (9, 8)},
        lambda xp, p, x: branch(xp, p["u"], p["w"], x + take(xp, p["c"], [3, 1, 2, 0, 5, 8])),
    ),
    "a vector for each row": (
        {**ONE, "c": (6, 1)},
        lambda xp, p, x: x + branch(xp, p["u"], p["w"], x) + p["c"],
    ),
    "a vector that the branch reads": (
        ONE,
        lambda xp, p, x: (x + p["c"]) + branch(xp, p["u"], p["w"], x + p["c"]),
    ),
    "a vector behind a function": (
        ONE,
        lambda xp, p, x: x + xp.tanh(branch(xp, p["u"], p["w"], x)) + p["c"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", KEPT)
def test_what_varies_otherwise_or_is_read_elsewhere_is_no_bias(way, case):
    shapes, function = KEPT[case]
    report, _ = WAYS[way](shapes, function)
    assert role(report, "c") == "keep"


ORDERS = {
    "halves": [*range(16)],
    "every second": [*range(0, 16, 2), *range(1, 16, 2)],
    "any": [3, 1, 2, 0, 5, 4, 7, 6, *range(8, 16)],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ORDERS)
def test_matrices_of_chosen_rows_are_not_kept_in_silence(way, order):
    rows = ORDERS[order]

    def model(xp, p, x):
        u, w = take(xp, p["m"], rows[:8]), take(xp, p["m"], rows[8:])
        return x + xp.tanh(x @ u) @ w

    report, result = WAYS[way]({"m": (16, 8)}, model)
    named = {name.split("/")[-1] for note in report.warnings for name in note.names}
    if role(report, "m") == "keep":
        assert "kept" in {note.kind for note in report.warnings}
        assert "m" in named
    else:
        np.testing.assert_allclose(result, X, atol=1e-4)


def logsigmoid(xp, h):
    if xp is torch:
        return torch.nn.functional.logsigmoid(h)
    return jax.nn.log_sigmoid(h) if xp is jnp else keras.ops.log_sigmoid(h)


@pytest.mark.parametrize("way", WAYS)
def test_the_bias_of_a_rate_is_kept(way):
    report, _ = WAYS[way](
        {"w": (8, 8), "c": (8,)},
        lambda xp, p, x: x * xp.exp(logsigmoid(xp, x @ p["w"] + p["c"]) / 16),
    )
    assert role(report, "c") == "keep"
