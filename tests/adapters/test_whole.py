"""Options of a whole model, through each framework: the same answer to the same model."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from torch import nn

import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from idinit_ref.errors import GraphError, OptionTypeError
from idinit_ref.roles.options import settled
from idinit_ref_jax._model import _Arrays
from idinit_ref_tensorflow._model import _Variables
from idinit_ref_torch._model import _Tensors

D = 8
STEPS = np.linspace(0.001, 0.1, D)  # of a state space: softplus(bias) is the step
RING = np.cos(np.arange(D)).astype(np.float32)


class Torch:
    """Two dense layers with biases, the first of which a function follows."""

    name = "torch"

    def __init__(self, function="tanh", weight=None, bias=None):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.z = nn.Linear(D, D), nn.Linear(D, D)

            def forward(self, x):
                act = {"tanh": torch.tanh, "softplus": nn.functional.softplus, "exp": torch.exp}
                return self.z(act[function](self.a(x)))

        self.model = Net()
        with torch.no_grad():
            for tensor, new in ((self.model.a.weight, weight), (self.model.a.bias, bias)):
                if new is not None:
                    tensor.copy_(torch.from_numpy(np.broadcast_to(new, tensor.shape).copy()))

    def init(self, **options):
        self.report = irt.init_(self.model, torch.zeros(2, D), **options)
        return self.model.a.bias.detach().numpy()

    def entries(self):
        return {entry.name.replace("weight", "w"): entry for entry in self.report.entries}


class Jax:
    name = "jax"

    def __init__(self, function="tanh", weight=None, bias=None):
        random = np.random.default_rng(0).uniform(-1, 1, (2, D, D)).astype(np.float32)
        first = random[0] if weight is None else np.broadcast_to(np.float32(weight), (D, D))
        bias = random[1, 0] if bias is None else np.broadcast_to(np.float32(bias), (D,))
        self.params = {
            "a": {"bias": jnp.asarray(bias), "w": jnp.asarray(first)},
            "z": {"bias": jnp.ones(D) * jnp.arange(D), "w": jnp.asarray(random[1])},
        }
        act = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "exp": jnp.exp}[function]

        def apply(p, x):
            h = act(x @ p["a"]["w"] + p["a"]["bias"])
            return h @ p["z"]["w"] + p["z"]["bias"]

        self.apply = apply

    def init(self, **options):
        new, self.report = irj.init(self.params, jnp.zeros((2, D)), self.apply, **options)
        return np.asarray(new["a"]["bias"])

    def entries(self):
        return {entry.name: entry for entry in self.report.entries}


class Keras:
    name = "keras"

    def __init__(self, function="tanh", weight=None, bias=None):
        function = {"exp": "exponential"}.get(function, function)
        x = keras.Input((D,))
        a = keras.layers.Dense(D, activation=function, name="a", bias_initializer="normal")
        z = keras.layers.Dense(D, name="z", bias_initializer="normal")
        self.model = keras.Model(x, z(a(x)))
        self.a = a
        for variable, new in ((a.kernel, weight), (a.bias, bias)):
            if new is not None:
                variable.assign(np.broadcast_to(np.float32(new), variable.shape))

    def init(self, **options):
        self.report = irk.init_(self.model, **options)
        return np.asarray(self.a.bias)

    def entries(self):
        return {e.name.replace("/", ".").replace("kernel", "w"): e for e in self.report.entries}


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # TensorFlow's own
every = pytest.mark.parametrize("framework", [Torch, Jax, Keras], ids=lambda each: each.name)


@every
@pytest.mark.parametrize("function", ["softplus", "exp"])
def test_time_steps_survive(framework, function):
    """Mamba's dt_proj.bias: with 0 the step would be 0.69, up to 700 times as large."""
    steps = np.log(np.expm1(STEPS)).astype(np.float32)
    net = framework(function, bias=steps)
    assert np.array_equal(net.init(), steps)
    assert net.entries()["a.bias"].why == f"bias; kept, as {function} takes its sum"
    assert net.entries()["z.bias"].role == "bias"
    assert not framework(function, bias=steps).init(biases="zero").any()


@every
@pytest.mark.parametrize(
    ("weight", "bias", "kept"),
    [(None, -4.6, True), (None, RING, False), (0.0, RING, True), (None, None, False)],
    ids=["prior", "not constant", "ring beside zeros", "the framework's own"],
)
def test_values_say_which_biases_are_meant(framework, weight, bias, kept):
    net = framework(weight=weight, bias=bias)
    after = net.init()
    assert net.entries()["a.bias"].role == ("keep" if kept else "bias")
    assert np.array_equal(after, np.broadcast_to(np.float32(bias), D) if kept else np.zeros(D))


@every
def test_zeros_that_become_transit_are_named(framework):
    net = framework(weight=0.0, bias=0.0)
    net.init()
    [note] = net.report.warnings
    assert note.kind == "overwritten"
    assert note.names == (net.entries()["a.w"].name,)
    net.init()
    assert not net.report.warnings or framework is Jax  # whose model is as it was


@every
def test_all_biases_can_be_kept(framework):
    net = framework(bias=RING)
    assert np.array_equal(net.init(biases="keep"), RING)


@every
def test_an_unknown_option_is_named(framework):
    net = framework(bias=RING)
    with pytest.raises(OptionTypeError, match="scale is not an option of a whole"):
        net.init(scale=2)
    with pytest.raises(OptionTypeError, match="tuas = 2"):
        net.init(tuas=2)


def test_the_three_take_the_same_options_in_the_same_order():
    for verb in (irt.init_, irt.plans, irj.init, irj.plans, irk.init_, irk.plans):
        *given, options = inspect.signature(verb).parameters.values()
        names = ["model", "example_inputs"] + ["apply_fn"] * (verb in (irj.init, irj.plans))
        assert [parameter.name for parameter in given] == names
        assert options.kind is options.VAR_KEYWORD
        assert options.annotation == "Unpack[ModelOptions]"
    assert list(inspect.signature(irj.trace).parameters) == ["model", "example_inputs", "apply_fn"]
    assert settled({})["biases"] == "auto"


def test_a_mark_keeps_a_bias_of_pytorch():
    net = Torch(bias=RING)
    net.model.a.bias._no_reinit = True  # as mamba_ssm marks its time steps
    assert np.array_equal(net.init(), RING)


def test_no_values_are_looked_at_where_there_are_none():
    with torch.device("meta"):
        net = nn.Linear(D, D)
    assert irt.init_(net, torch.zeros(2, D)).roles["bias"] == "bias"
    shapes = {"w": jax.ShapeDtypeStruct((D, D), jnp.float32)}
    with pytest.raises(GraphError, match="all its arrays should have values"):
        irj.init(shapes, jnp.zeros((2, D)), lambda p, x: x @ p["w"])


def test_strict_in_each_framework():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(D, D))

        def forward(self, x):
            return x @ (self.w / self.w.norm(dim=0))

    assert [n.kind for n in irt.init_(Normed(), torch.zeros(2, D)).warnings] == ["kept"]
    with pytest.raises(GraphError, match="kept matrices = 'w'"):
        irt.init_(Normed(), torch.zeros(2, D), strict=True)
    params = {"w": jnp.ones((D, D))}
    apply = lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0))  # noqa: E731  # short
    with pytest.raises(GraphError, match="kept matrices = 'w'"):
        irj.init(params, jnp.zeros((2, D)), apply, strict=True)


# A branch that its authors start at 0 --------------------------------------------------------


def roles_in_torch(function, values):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.from_numpy(v.copy()) for k, v in values.items()})

        def forward(self, x):
            return function(torch, self.p, x)

    return irt.init_(Net(), torch.zeros(2, D)).roles


def roles_in_jax(function, values):
    params = {name: jnp.asarray(value) for name, value in values.items()}
    apply = lambda p, x: function(jnp, p, x)  # noqa: E731  # short
    return irj.init(params, jnp.zeros((2, D)), apply)[1].roles


def roles_in_keras(function, values):
    class Net(keras.layers.Layer):
        def build(self, shape):
            self.p = {}
            for name, value in values.items():
                self.p[name] = self.add_weight(shape=value.shape, name=name)
                self.p[name].assign(value)

        def call(self, x):
            return function(keras.ops, self.p, x)

    x = keras.Input((D,))
    return irk.init_(keras.Model(x, Net()(x))).roles


def branch(np_, p, x):
    return np_.matmul(np_.tanh(np_.matmul(x, p["a"])), p["z"])


@pytest.mark.parametrize("run", [roles_in_torch, roles_in_jax, roles_in_keras])
@pytest.mark.parametrize(
    ("add", "scale", "role"),
    [
        (lambda np_, p, x: x + p["s"] * branch(np_, p, x), 0, "transit"),
        (lambda np_, p, x: x + np_.tanh(p["s"]) * branch(np_, p, x), 0, "transit"),
        (lambda np_, p, x: x + (1 + p["s"]) * branch(np_, p, x), -1, "transit"),
        (lambda np_, p, x: x + p["s"] * branch(np_, p, x), 0.1, "zero"),
        (lambda np_, p, x: x + (1 + p["s"]) * branch(np_, p, x), 0, "zero"),
        (lambda np_, p, x: x + np_.exp(p["s"]) * branch(np_, p, x), 0, "zero"),
        (lambda np_, p, x: p["s"] * (x + branch(np_, p, x)), 0, "zero"),
        (lambda np_, p, x: x + (h := branch(np_, p, x)) - p["s"] * h, 0, "zero"),
    ],
    ids=["scale", "gate", "1 + w", "small", "1 + 0", "exp", "after the add", "not all of it"],
)
def test_a_weight_behind_which_a_scale_is_0_is_not_zero_in_vain(run, add, scale, role):
    """Two zeros in a row would have no gradient: each of them waits for the other (R2)."""
    random = np.random.default_rng(0)
    values = {name: random.normal(size=(D, D)).astype(np.float32) for name in "az"}
    values["s"] = np.full(D, scale, np.float32)
    found = {
        name.replace("/", ".").rsplit(".", 1)[-1]: one for name, one in run(add, values).items()
    }
    assert found["z"] == role
    assert (found["a"], found["s"]) == ("transit", "keep")


# A role for each block ----------------------------------------------------------------------------


def written_by_torch(old, plan, parted):
    model = nn.ParameterDict({"w": nn.Parameter(torch.from_numpy(old))})
    with torch.no_grad():
        _Tensors(model).write("w", plan, parted)
    return model["w"].detach().numpy()


def written_by_jax(old, plan, parted):
    def write(array):
        arrays = _Arrays({"w": array})
        arrays.write("w", plan, parted)
        return arrays.new["w"]

    array = jnp.asarray(old)
    whole, traced = write(array), jax.jit(write)(array)
    np.testing.assert_array_equal(traced, whole)
    return np.asarray(whole)


def written_by_keras(old, plan, parted):
    variable = keras.Variable(old)
    _Variables({"w": variable}).write("w", plan, parted)
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize("write", [written_by_torch, written_by_jax, written_by_keras])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.every
def test_a_role_for_each_block_is_written(write, heads):
    """A packed (inputs, outputs), or (inputs, heads, size): what a whole model may decide."""
    roles = ("transit", "zero", "transit")
    plan = ir.plan((4, 12), roles, layout="IO", blocks=(4, 4, 4), gain=2.0, eps=0.5)
    shape, parted = ((4, 3, 4), ((4, 3, 4), "IOO")) if heads else ((4, 12), None)
    found = write(np.full(shape, 7, np.float32), plan, parted).reshape(4, 12)
    pairs = np.eye(4) - np.roll(np.eye(4), 1, 0)  # stored (inputs, outputs)
    np.testing.assert_array_equal(found, np.hstack([2 * np.eye(4), 0.5 * pairs, 2 * np.eye(4)]))
