"""One function in several spellings: the roles are those of the function, judged by running it."""

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

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
N = 6
X = np.random.default_rng(0).normal(size=(3, N)).astype("float32")


# A model in three frameworks: a function of an input and of parameters ----------------------------


class Torch(nn.Module):
    """A model of PyTorch, of a function f(m, x, p): m is its library of functions."""

    def __init__(self, function, **values):
        super().__init__()
        self.function = function
        self.held = nn.ParameterDict({k: nn.Parameter(torch.tensor(v)) for k, v in values.items()})

    def forward(self, x):
        return self.function(torch, x, self.held)

    def init(self, **options):
        report = irt.init_(self, torch.tensor(X), **options)
        return {name.removeprefix("held."): role for name, role in report.roles.items()}, report

    def values(self):
        return {name: value.detach().numpy() for name, value in self.held.items()}

    def run(self, x=X, **values):
        with torch.no_grad():
            held = self.held | {name: torch.tensor(value) for name, value in values.items()}
            return self.function(torch, torch.tensor(x), held).numpy()


class Jax:
    """The same in JAX."""

    def __init__(self, function, **values):
        self.held = {name: jnp.asarray(value) for name, value in values.items()}
        self.function = lambda p, x: function(jnp, x, p)

    def init(self, **options):
        self.held, report = irj.init(self.held, jnp.asarray(X), apply_fn=self.function, **options)
        return report.roles, report

    def values(self):
        return {name: np.asarray(value) for name, value in self.held.items()}

    def run(self, x=X, **values):
        return np.asarray(self.function(self.held | values, jnp.asarray(x)))


class Keras(keras.layers.Layer):
    """The same in Keras."""

    def __init__(self, function, **values):
        super().__init__()
        self.function, self.given = function, values
        self.held = {
            name: self.add_weight(
                shape=value.shape, initializer=keras.initializers.Constant(value), name=name
            )
            for name, value in values.items()
        }
        self.built = True

    def call(self, x):
        return self.function(keras.ops, x, self.held)

    def init(self, **options):
        report = irk.init_(self, X, **options)
        return {name.split("/")[-1]: role for name, role in report.roles.items()}, report

    def values(self):
        return {name: np.asarray(value) for name, value in self.held.items()}

    def run(self, x=X, **values):
        held = self.held | {k: keras.ops.convert_to_tensor(v) for k, v in values.items()}
        return np.asarray(self.function(keras.ops, keras.ops.convert_to_tensor(x), held))


FRAMEWORKS = [Torch, Jax, Keras]


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32") / 2


def change_of(model, name, others=(), step=1e-3):
    """Half the difference of a model's results at a step and its negative of one weight from 0.

    Other weights are 0: R2 demands a difference of first order.
    """
    zeros = {other: np.zeros_like(model.values()[other]) for other in others}
    value = matrix(*model.values()[name].shape, seed=9)
    two = (model.run(**zeros, **{name: sign * np.float32(step) * value}) for sign in (1, -1))
    one, other = two
    return np.abs(one - other).max() / (2 * step)


# A weight that is used twice in a row -------------------------------------------------------------


def chain(*names):
    """x + A tanh(B tanh(... x)), the innermost name first."""

    def function(m, x, p):
        h = x
        for name in names:
            h = m.matmul(m.tanh(h), p[name])
        return x + h

    return function


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("names", "zero"), [("aa", ""), ("aba", "b"), ("baa", "b"), ("abab", "")])
def test_a_weight_that_is_used_again_ends_a_branch_to_first_order(framework, names, zero):
    """In x + A tanh(A tanh(x)) a zero A is in vain: its gradient is 0, as that of a zero product."""
    model = framework(chain(*names), **{n: matrix(N, N, seed=ord(n)) for n in sorted({*names})})
    firsts = {name: change_of(model, name) > 0.01 for name in {*names}}
    assert firsts == {name: name == zero for name in {*names}}  # so R2 leaves no choice
    roles, report = model.init()
    assert roles == {name: "zero" if name == zero else "transit" for name in {*names}}
    assert ("endless" in [note.kind for note in report.warnings]) == (not zero)
    assert not zero or np.abs(model.run() - X).max() < 1e-4


def test_tied_weights_of_two_names_are_one_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(N, N), nn.Linear(N, N)
            self.two.weight = self.one.weight

        def forward(self, x):
            return x + self.two(torch.tanh(self.one(x)))

    report = irt.init_(Tied(), torch.tensor(X))
    assert report.roles["one.weight"] == "transit"
    assert "endless" in [note.kind for note in report.warnings]
