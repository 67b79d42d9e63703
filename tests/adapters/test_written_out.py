"""One function in several spellings: the roles are those of the function, judged by running it."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math
from types import SimpleNamespace

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


def library(module, *others):
    """The functions of a framework that the models use, by one name each."""
    names = "cos cosh einsum erf erfc exp exp2 expm1 log log1p matmul relu rsqrt sigmoid sin "
    names += "softplus sqrt square sum swapaxes tanh where"
    found = {}
    for name in names.split():
        of = next(each for each in (module, *others) if hasattr(each, name))
        found[name] = getattr(of, name)
    return SimpleNamespace(**found)


TORCH = library(torch, nn.functional)
JAX = library(jnp, jax.nn, jax.lax, jax.scipy.special)
KERAS = library(
    keras.ops,
    SimpleNamespace(
        cosh=keras.ops.cosh, erfc=lambda x: 1 - keras.ops.erf(x), exp2=keras.ops.exp2
    ),
)  # fmt: skip


class Torch(nn.Module):
    """A model of PyTorch, of a function f(m, x, p): m is its library of functions."""

    def __init__(self, function, **values):
        super().__init__()
        self.function = function
        self.held = nn.ParameterDict({k: nn.Parameter(torch.tensor(v)) for k, v in values.items()})

    def forward(self, x):
        return self.function(TORCH, x, self.held)

    def init(self, **options):
        report = irt.init_(self, torch.tensor(X), **options)
        return {name.removeprefix("held."): role for name, role in report.roles.items()}, report

    def values(self):
        return {name: value.detach().numpy() for name, value in self.held.items()}

    def run(self, x=X, **values):
        with torch.no_grad():
            held = self.held | {name: torch.tensor(value) for name, value in values.items()}
            return self.function(TORCH, torch.tensor(x), held).numpy()


class Jax:
    """The same in JAX."""

    def __init__(self, function, **values):
        self.held = {name: jnp.asarray(value) for name, value in values.items()}
        self.function = lambda p, x: function(JAX, x, p)

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
        return self.function(KERAS, x, self.held)

    def init(self, **options):
        report = irk.init_(self, X, **options)
        return {name.split("/")[-1]: role for name, role in report.roles.items()}, report

    def values(self):
        return {name: np.asarray(value) for name, value in self.held.items()}

    def run(self, x=X, **values):
        held = self.held | {k: keras.ops.convert_to_tensor(v) for k, v in values.items()}
        return np.asarray(self.function(KERAS, keras.ops.convert_to_tensor(x), held))


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
    """In x + A tanh(A tanh(x)) a zero A is in vain: its gradient is 0."""
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


# Functions that vanish at 0, though their parts do not --------------------------------------------

A, LOG2 = 0.7, math.log(2)
FUNCTIONS = {
    "snake, by a cosine": lambda m, h: h + (1 - m.cos(2 * A * h)) / (2 * A),
    "only the cosine": lambda m, h: (1 - m.cos(2 * A * h)) / (2 * A),
    "1 - exp(-h)": lambda m, h: 1 - m.exp(-h),
    "exp(h) - 1": lambda m, h: m.exp(h) - 1,
    "exp(h) - 1.0001": lambda m, h: m.exp(h) - 1.0001,
    "ELU": lambda m, h: m.where(h > 0, h, A * (m.exp(h) - 1)),
    "2 sigmoid(h) - 1": lambda m, h: 2 * m.sigmoid(h) - 1,
    "2 / (1 + exp(-2 h)) - 1": lambda m, h: 2 / (1 + m.exp(-2 * h)) - 1,
    "sinh by exp, over cosh": lambda m, h: (m.exp(h) - m.exp(-h)) / (m.exp(h) + m.exp(-h)),
    "cosh(h) - 1": lambda m, h: (m.exp(h) + m.exp(-h)) / 2 - 1,
    "log of cosh": lambda m, h: m.log((m.exp(h) + m.exp(-h)) / 2),
    "softplus(h) - log 2": lambda m, h: m.softplus(h) - LOG2,
    "log(1 + exp(h)) - log 2": lambda m, h: m.log(1 + m.exp(h)) - LOG2,
    "sqrt(1 + h) - 1": lambda m, h: m.sqrt(1 + h) - 1,
    "GELU": lambda m, h: 0.5 * (1 + m.erf(h * 2**-0.5)) * h,
    "erf by erfc": lambda m, h: 1 - m.erfc(h),
    "SiLU": lambda m, h: h / (1 + m.exp(-h)),
    "mish": lambda m, h: h * m.tanh(m.log(1 + m.exp(h))),
    "ISRU": lambda m, h: h / m.sqrt(1 + A * h**2),
    "ISRU, by rsqrt": lambda m, h: h * m.rsqrt(1 + A * (h * h)),
    "exp - cos": lambda m, h: m.exp(h) - m.cos(h),
    "exp - sin": lambda m, h: m.exp(h) - m.sin(h),
    "exp - sin - 1": lambda m, h: m.exp(h) - m.sin(h) - 1,
    "powers": lambda m, h: (1 + h) ** 2 - (1 + h) ** 3,
    "a number of no entry": lambda m, h: 1.5 * m.cos(h) - 1.5 * m.exp(h),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.every
def test_a_function_is_judged_as_a_whole(framework, name):
    """Its value and its slope at 0 decide, however it is written."""

    def function(m, x, p):
        return x + FUNCTIONS[name](m, m.matmul(x, p["w"]))

    model = framework(function, w=matrix(N, N))
    is_identity = np.abs(model.run(w=np.zeros((N, N), "float32")) - X).max() < 1e-6
    is_zero = is_identity and change_of(model, "w") > 0.01
    roles, report = model.init()
    assert roles["w"] == ("zero" if is_zero else "transit")
    assert ("endless" in [note.kind for note in report.warnings]) == (not is_zero)
    assert not is_zero or np.abs(model.run() - X).max() < 1e-4


SUMS = {  # with PyTorch's factor of the second term
    "exp - exp": lambda h: torch.add(torch.exp(h), torch.exp(-h), alpha=-1),
    "exp - 2": lambda h: torch.add(torch.exp(h), torch.ones_like(h), alpha=-2),
    "2 - 2 exp": lambda h: torch.sub(torch.full_like(h, 2.0), torch.exp(h), alpha=2),
    "1 - 2 exp": lambda h: torch.sub(torch.ones_like(h), torch.exp(h), alpha=2),
    "floors": lambda h: torch.div(torch.exp(h), 0.6, rounding_mode="floor") - 1 / 0.6,
    "softplus of 2 h": lambda h: nn.functional.softplus(h, 2.0) - LOG2,
}


@pytest.mark.parametrize("name", SUMS)
def test_the_numbers_of_a_call_of_pytorch_count(name):
    model = Torch(lambda m, x, p: x + SUMS[name](x @ p["w"]), w=matrix(N, N))
    is_identity = np.abs(model.run(w=np.zeros((N, N), "float32")) - X).max() < 1e-6
    assert model.init()[0]["w"] == ("zero" if is_identity else "transit")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("by", ["numbers", "parameters"])
def test_a_shift_after_a_function_and_a_scale_is_one(framework, by):
    """As of dynamic tanh: h / sqrt(1 + a h^2) * w + b stands for a norm."""

    def function(m, x, p):
        h = m.matmul(x, p["v"])
        a = A if by == "numbers" else p["a"]
        return x + (h / m.sqrt(1 + a * h**2) * p["w"] + p["b"])

    values = {"v": matrix(N, N), "w": matrix(N), "b": matrix(N, seed=1)}
    values |= {"a": np.float32([A])} if by == "parameters" else {}
    model = framework(function, **values)
    roles, report = model.init()
    assert roles == {"v": "zero"} | dict.fromkeys(values.keys() - "v", "keep")
    assert not report.warnings
    assert np.abs(model.run(b=np.zeros(N, "float32")) - X).max() < 1e-4


# The scale of a norm, before or after its division ------------------------------------------------

SCALED = {
    "(g h) / |h|": lambda h, size, g: g * h / size,
    "g (h / |h|)": lambda h, size, g: g * (h / size),
    "(h / |h|) g": lambda h, size, g: h / size * g,
    "h (g / |h|)": lambda h, size, g: h * (g / size),
    "(2 h g) / |h|": lambda h, size, g: 2 * h * g / size,
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("shape", [(), (1,), (N,)], ids=["a number", "one entry", "a vector"])
@pytest.mark.parametrize("name", SCALED)
def test_the_scale_of_a_norm_is_eps_wherever_it_stands(framework, shape, name):
    """ScaleNorm's is one number; norms="zero" makes the branch that it ends small."""

    def function(m, x, p):
        h = m.matmul(x, p["w"])
        return x + SCALED[name](h, m.sqrt(m.sum(h * h, -1)[:, None] + 1e-6), p["g"])

    model = framework(function, w=matrix(N, N), g=np.full(shape, 2.0, "float32"))
    roles, report = model.init(norms="zero")
    assert roles == {"w": "transit", "g": "zero"}
    assert 0 < np.abs(model.run() - X).max() < 1e-5
    assert "norm" not in [note.kind for note in report.warnings]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_scale_that_a_norm_undoes_is_none_of_its_own(framework):
    """In g h / |g h| no g makes the branch small."""

    def function(m, x, p):
        h = m.matmul(x, p["w"]) * p["g"]
        return x + h / m.sqrt(m.sum(h * h, -1)[:, None] + 1e-6)

    model = framework(function, w=matrix(N, N), g=np.full(N, 2.0, "float32"))
    assert model.init(norms="zero")[0] == {"w": "zero", "g": "keep"}


# Weights that are products of parameters ----------------------------------------------------------

PRODUCTS = {  # the last spelling of each applies the factors one after the other
    "two factors": (
        {"v": (N, 3), "u": (3, N)},
        [
            lambda m, x, p: m.matmul(x, m.matmul(p["v"], p["u"])),
            lambda m, x, p: m.matmul(
                x, m.swapaxes(m.matmul(turn(m, p["u"]), turn(m, p["v"])), 0, 1)
            ),
            lambda m, x, p: m.einsum("bi,io->bo", x, m.einsum("ir,ro->io", p["v"], p["u"])),
            lambda m, x, p: m.matmul(x, 0.5 * m.matmul(p["v"], p["u"])),
            lambda m, x, p: m.matmul(m.matmul(x, p["v"]), p["u"]),
        ],
    ),
    "rank 1": (
        {"v": (N, 1), "u": (1, N)},
        [
            lambda m, x, p: m.matmul(x, m.matmul(p["v"], p["u"])),
            lambda m, x, p: m.matmul(m.matmul(x, p["v"]), p["u"]),
        ],
    ),
    "three factors": (
        {"w": (N, 3), "v": (3, 5), "u": (5, N)},
        [
            lambda m, x, p: m.matmul(x, m.matmul(m.matmul(p["w"], p["v"]), p["u"])),
            lambda m, x, p: m.matmul(x, m.matmul(p["w"], m.matmul(p["v"], p["u"]))),
            lambda m, x, p: m.matmul(m.matmul(m.matmul(x, p["w"]), p["v"]), p["u"]),
        ],
    ),
    "merged low rank": (
        {"w": (N, N), "v": (N, 3), "u": (3, N)},
        [
            lambda m, x, p: m.matmul(x, p["w"] + m.matmul(p["v"], p["u"])),
            lambda m, x, p: m.matmul(x, 2 * m.matmul(p["v"], p["u"]) + p["w"]),
            lambda m, x, p: m.matmul(
                x, turn(m, turn(m, m.matmul(p["v"], p["u"])) + turn(m, p["w"]))
            ),
            lambda m, x, p: m.matmul(x, p["w"]) + m.matmul(m.matmul(x, p["v"]), p["u"]),
        ],
    ),
}
CHAINS = [(name, way) for name, (_, ways) in PRODUCTS.items() for way in range(len(ways) - 1)]


def turn(m, matrix):
    return m.swapaxes(matrix, 0, 1)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("name", "way"), CHAINS)
@pytest.mark.every
def test_a_product_of_parameters_is_applied_as_its_factors(framework, residual, name, way):
    """By associativity x (V U) = (x V) U: the same roles, plans and values."""
    shapes, ways = PRODUCTS[name]

    def spelled(way):
        def function(m, x, p):
            return (x if residual else 0.0) + ways[way](m, x, p)

        model = framework(function, **{k: matrix(*shape) for k, shape in shapes.items()})
        return model, *model.init()

    (model, roles, report), (other, wanted, apart) = spelled(way), spelled(-1)
    assert roles == wanted
    assert [(entry.plan, entry.role) for entry in report.entries] == [
        (entry.plan, entry.role) for entry in apart.entries
    ]
    assert [note.kind for note in report.warnings] == [note.kind for note in apart.warnings]
    for k, value in other.values().items():
        assert np.array_equal(model.values()[k], value), k
    if residual:  # R1, whatever the other weights are
        zeros = {k: np.zeros(shapes[k], "float32") for k, role in roles.items() if role == "zero"}
        assert zeros
        rest = {k: matrix(*shapes[k], seed=5) for k in shapes if k not in zeros}
        assert np.array_equal(model.run(**zeros, **rest), X)
        assert all(change_of(model, k, others=zeros.keys() - {k}) > 0.01 for k in zeros)


MERGED = {
    "addmm": lambda p: torch.addmm(p["w"], p["u"], p["v"], alpha=2.0),
    "alpha": lambda p: torch.add(p["w"], p["u"] @ p["v"], alpha=0.5),
    "a difference": lambda p: p["w"] - p["u"] @ p["v"],
    "a cast": lambda p: (p["w"].double() + (p["u"] @ p["v"]).double()).float(),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_merged_low_rank_weight_of_pytorch(name):
    """As PEFT's LoRA: the bias of the layer is one, and the second factor is zero."""

    def function(m, x, p):
        return nn.functional.linear(x, MERGED[name](p), p["b"])

    shapes = {"w": (4, N), "u": (4, 2), "v": (2, N), "b": (4,)}
    model = Torch(function, **{k: matrix(*shape) for k, shape in shapes.items()})
    roles, report = model.init()
    assert roles == {"w": "transit", "u": "zero", "v": "transit", "b": "bias"}
    plans = {entry.name: entry.plan.layout for entry in report.entries if entry.plan}
    assert set(plans.values()) == {"OI"}
    assert np.abs(model.run() - X[:, :4]).max() < 1e-4


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("kind", ["a mask", "a function"])
def test_a_product_that_is_changed_keeps_its_factors(framework, kind):
    """These are no chains of products: a role would describe the result."""

    def function(m, x, p):
        made = m.matmul(p["v"], p["u"])
        made = {
            "a mask": lambda: made * p["m"],
            "a function": lambda: m.tanh(made),
        }[kind]()
        return x + m.matmul(x, made)

    values = {"v": matrix(N, 3), "u": matrix(3, N)}
    values |= {"m": matrix(N, N)} if kind == "a mask" else {}
    roles, report = framework(function, **values).init()
    assert roles["u"] == roles["v"] == "keep"
    assert "kept" in [note.kind for note in report.warnings]
