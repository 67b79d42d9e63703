"""What an audit of a JAX model says of waking, beside real training of the same model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import idinit_ref_jax as irj
from idinit_ref.errors import OptionTypeError

KEYS = jax.random.split(jax.random.key(0), 4)


def ones(**shapes):
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def select(params, x):
    """Selective kernels: a softmax weighs two branches, by what they have found."""
    x = jax.nn.relu(conv(x, params["first"]))
    a, b = jax.nn.relu(conv(x, params["a"])), jax.nn.relu(conv(x, params["b"]))
    z = jax.nn.relu((a + b).mean((1, 2)) @ params["squeeze"])
    w = jax.nn.softmax((z @ params["logits"]).reshape(-1, 2, 1, 1, 8), 1)
    return (a * w[:, 0] + b * w[:, 1]).mean((1, 2)) @ params["head"]


def selecting(kernel):
    shapes = {"first": (3, 3, 3, 8), "a": (3, 3, 8, 8), "b": (kernel, kernel, 8, 8)}
    return ones(**shapes, squeeze=(8, 4), logits=(4, 16), head=(8, 3))


def beside(params, x):
    """Selective kernels inside a residual branch: all that they select from is of size eps."""
    x = conv(x, params["first"])
    both = jnp.stack([conv(x, params["a"]), conv(x, params["b"])], 1)
    z = jax.nn.relu(both.sum(1).mean((1, 2)) @ params["squeeze"])
    w = jax.nn.softmax((z @ params["logits"]).reshape(-1, 2, 1, 1, 8), 1)
    return (x + (both * w).sum(1)) @ params["head"]


def attend(params, name, x, y):
    q, k, v = (z @ params[f"{name}_{part}"] for z, part in ((x, "q"), (y, "k"), (y, "v")))
    return jax.nn.softmax(q @ k.mT / 8**0.5) @ v @ params[f"{name}_out"]


def perceiver(params, x):
    """Latents read the input, and output queries read the latents: eps times eps at first."""
    z, q = (jnp.broadcast_to(params[n], (len(x), *params[n].shape)) for n in ("latents", "queries"))
    z = z + attend(params, "encode", z, x)
    return (q + attend(params, "decode", q, z)) @ params["head"]


def perceiving():
    names = [f"{name}_{part}" for name in ("encode", "decode") for part in ("q", "k", "v", "out")]
    tables = {"latents": (6, 8), "queries": (2, 8)}
    drawn = {n: jax.random.normal(k, s) for (n, s), k in zip(tables.items(), KEYS, strict=False)}
    return {**ones(**dict.fromkeys(names, (8, 8)), head=(8, 3)), **drawn}


def res(params, x):
    x = x @ params["first"]
    return (x + jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]) @ params["head"]


def mixed(params, x):
    """Two equal branches, mixed by a learned softmax whose logits never get a gradient."""
    w = jax.nn.softmax(params["logits"])
    return (x + w[0] * (x @ params["up"]) + w[1] * (x @ params["down"])) @ params["head"]


@jax.custom_vjp
def stop(x):
    return jax.nn.relu(x)


stop.defvjp(lambda x: (jax.nn.relu(x), None), lambda _, gradient: (0 * gradient,))


def stopped(params, x):
    x = x @ params["first"]
    return (x + stop(x @ params["up"] + params["bias"]) @ params["down"]) @ params["head"]


RES = ones(first=(8, 8), up=(8, 16), down=(16, 8), head=(8, 3)) | {"bias": jnp.zeros(16)}
MIXED = ones(up=(8, 8), down=(8, 8), head=(8, 3)) | {"logits": jnp.zeros(2)}
KINDS = {
    "twins that logits mix": (mixed, MIXED, (6, 8), {}, False),
    "select": (select, selecting(5), (4, 8, 8, 3), {}, True),
    "select of two samples": (beside, selecting(5), (2, 16, 16, 3), {}, True),
    "twins": (select, selecting(3), (4, 8, 8, 3), {}, False),
    "perceiver": (perceiver, perceiving(), (4, 5, 8), {}, True),
    "blind perceiver": (lambda p, x: perceiver(p, x * 0 + 1), perceiving(), (4, 5, 8), {}, False),
    "zero head": (res, RES, (6, 8), {"head": 0}, True),
    "gradient of 0": (stopped, RES, (6, 8), {}, False),
    "zero entry and head": (res, RES, (6, 8), {"first": 0, "head": 0}, False),
    "dead ReLU": (res, RES, (6, 8), {"bias": -100}, False),
    "dead ReLU behind 0": (res, RES, (6, 8), {"bias": -100, "first": 0}, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.cases(4)
def test_what_wakes_in_training_is_a_remark_and_what_never_does_a_failure(kind):
    apply, params, shape, values, is_healthy = KINDS[kind]
    x = jax.random.normal(KEYS[3], shape)
    params, _ = irj.init(params, x, apply)
    params |= {name: jnp.full_like(params[name], value) for name, value in values.items()}
    before = {name: np.asarray(value).tobytes() for name, value in params.items()}
    audit = irj.audit(params, x, apply, steps=3)
    assert before == {name: np.asarray(value).tobytes() for name, value in params.items()}

    target, asleep, trained = jnp.cos(jnp.arange(apply(params, x).size)), {*params}, dict(params)
    slope = jax.jit(jax.grad(lambda p: jnp.square(apply(p, x).ravel() - target).mean()))
    for _ in range(8):
        gradients = slope(trained)
        asleep -= {name for name, gradient in gradients.items() if gradient.any()}
        trained = jax.tree.map(lambda p, g: p - 0.1 * g, trained, gradients)
    y = apply(trained, x)
    varies = abs(y - y[:1]).max() > 1e-6 * abs(y).max()
    assert {one.name for one in audit.dead if not one.wakes} == asleep
    assert any("the output does not" in said for said in audit.healthy) != bool(varies)
    assert bool(audit.healthy) == is_healthy
    if is_healthy:
        assert audit.steps in (1, 2, 3)
        assert audit.remarks[0].startswith("ends after 1 step of training: ")


def test_a_second_look_changes_nothing_in_a_flax_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.up = nnx.Linear(8, 16, rngs=rngs)
            self.head = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.head(jax.nn.relu(self.up(self.drop(self.norm(x)))))

    def bits(model):
        keys = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
                for x in jax.tree.leaves(nnx.state(model))]  # fmt: skip
        return [np.asarray(x).tobytes() for x in keys]

    model, x = Net(nnx.Rngs(0)), jax.random.normal(KEYS[0], (4, 8))
    model.train()
    for name, value in (("up", -100.0), ("head", 0.0)):
        bias = getattr(model, name).bias
        bias.set_value(jnp.full_like(bias.get_value(), value))
    before = bits(model)
    audit = irj.audit(model, x, steps=3)
    assert not audit.healthy
    assert audit.steps == 3
    assert bits(model) == before
    assert not model.norm.use_running_average
    assert not model.drop.deterministic


def test_sharded_parameters_move_where_they_are():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    place = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    x = jax.device_put(jax.random.normal(KEYS[1], (6, 8)), place)
    params, _ = irj.init(RES, x, res)
    params = {name: jax.device_put(value, place) for name, value in params.items()}
    audit = irj.audit(params | {"head": jax.device_put(jnp.zeros((8, 3)), place)}, x, res, steps=3)
    assert audit.healthy
    assert "the output" in audit.woken


@pytest.mark.parametrize("head", ["random", "zero"])
def test_without_steps_the_model_runs_once(head):
    """The contract of the default: one forward pass."""
    runs = []

    def told(params, x):
        jax.debug.callback(lambda: runs.append(1))
        return jax.nn.relu(x @ params["first"]) @ params["head"]

    x = jax.random.normal(KEYS[1], (6, 8))
    params, _ = irj.init(ones(first=(8, 8), head=(8, 3)), x, told)
    if head == "zero":
        params |= {"head": jnp.zeros((8, 3))}
    runs.clear()
    audit = irj.audit(params, x, told)
    jax.effects_barrier()
    assert len(runs) == 1
    assert (audit.steps, audit.woken) == (0, ())
    assert bool(audit.healthy) == (head == "random")
    unknown = [said for said in audit.limits if " is unknown: steps=0" in said]
    assert len(unknown) == (head == "zero")
    after = irj.audit(params, x, told, steps=3)
    jax.effects_barrier()
    assert after.healthy
    assert len(runs) == (2 if head == "random" else 3)
    with pytest.raises(OptionTypeError, match=r"steps = 0\.5"):
        irj.audit(params, x, told, steps=0.5)
