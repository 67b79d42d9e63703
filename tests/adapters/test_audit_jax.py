"""The audit of JAX models, beside the same numbers from plain JAX."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import idinit_ref_jax as irj
from idinit_ref.diagnostics.facts import signs
from idinit_ref.errors import GraphError, OptionError, OptionTypeError

KEYS = jax.random.split(jax.random.key(0), 4)


def apply(params, x):
    h = x @ params["first"]
    h = h + jax.nn.relu(h @ params["up"] + params["b"]) @ params["down"]
    return h @ params["head"]


def weights(scale=0.3):
    shapes = {"first": (6, 8), "up": (8, 16), "down": (16, 8), "head": (8, 3)}
    made = {n: scale * jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), KEYS)}  # noqa: B905 - of one length
    return {**made, "b": jnp.zeros(16)}


X = jax.random.normal(jax.random.key(1), (4, 6))


@pytest.mark.parametrize("started", [False, True], ids=["default", "idinit"])
@pytest.mark.cases(1)
def test_the_numbers_are_those_of_plain_jax(started):
    params = irj.init(weights(), X, apply)[0] if started else weights()
    audit = irj.audit(params, X, apply)
    assert audit.healthy
    first = X @ params["first"]
    up = first @ params["up"]
    branch = jax.nn.relu(up) @ params["down"]
    plain = {"first": first, "up": up, "down": branch, "head": (first + branch) @ params["head"]}
    found = {name.split(":")[0]: moment for name, moment in audit.second_moments.items()}
    assert list(found) == list(plain)
    for name, value in plain.items():
        wide = np.asarray(value, np.float64)
        assert found[name] == pytest.approx(np.mean(wide**2), rel=1e-4)
    (beside,) = audit.branches
    skip = np.sqrt(np.mean(np.asarray(first, np.float64) ** 2))
    assert beside.skip_rms == pytest.approx(skip, rel=1e-4)
    assert (beside.ratio < 1e-5) == started
    y, pull = jax.vjp(apply, params, X)
    gradients, start = pull(jnp.asarray(signs([y.shape])[0]))
    assert audit.input_gradient == pytest.approx(float(abs(start).max()), rel=1e-4)
    assert {one.name for one in audit.dead} == {n for n, g in gradients.items() if not g.any()}


@pytest.mark.parametrize("step", [jnp.round, jnp.sign])
def test_a_bias_that_is_rounded_is_named_so_and_does_not_cancel(step):
    params = {"w": jnp.eye(6), "b": jnp.arange(6.0)}

    def rounded(params, x):
        return x @ params["w"] + step(params["b"] / 2)

    gradients = jax.grad(lambda params: rounded(params, X).sum())(params)
    assert not gradients["b"].any()
    other = {**params, "b": params["b"] - 9}
    assert not jnp.array_equal(rounded(other, X), rounded(params, X))
    audit = irj.audit(params, X, rounded)
    assert f"(b): no gradient passes {step.__name__}" in audit.healthy[0]
    assert "cancels" not in str(audit)


def test_a_bias_that_one_of_two_equal_calls_stops_is_not_said_to_cancel():
    params, stop = {"w": jnp.eye(6), "b": jnp.arange(6.0), "c": jnp.eye(6)}, jax.lax.stop_gradient

    def calls(params, x):
        learnt, given = x @ params["w"] + params["b"], x @ params["w"] + stop(params["b"])
        return (stop(jax.nn.sigmoid(learnt)) * given) @ params["c"]

    assert not jax.grad(lambda params: calls(params, X).sum())(params)["b"].any()
    audit = irj.audit(params, X, calls)
    assert "cancels" not in str(audit)
    assert "biases without a gradient, whose weights have one: b" in audit.remarks


def test_a_relu_that_is_never_on_is_found_though_its_derivative_is_its_own():
    params = {**weights(), "b": jnp.full(16, -100.0)}
    audit = irj.audit(params, X, apply)
    assert {one.name for one in audit.dead} == {"up", "b", "down"}
    assert {one.behind for one in audit.dead} == {"up: product: max"}
    assert "is exactly 0" in audit.healthy[0]


def test_a_stopped_layer_and_a_weight_of_zeros_are_found():
    def stopped(params, x):
        return jax.lax.stop_gradient(x @ params["a"]) @ params["b"]

    params = {"a": jnp.eye(6), "b": jnp.eye(6)}
    audit = irj.audit(params, X, stopped)
    assert [one.name for one in audit.dead] == ["a"]
    assert "jax.lax.stop_gradient" in audit.dead[0].why
    audit = irj.audit({**weights(), "first": jnp.zeros((6, 8))}, X, apply, steps=3)
    assert audit.output_varies is False
    assert audit.healthy  # the zeros move at the first step
    assert "the signal dies at first: product" in audit.remarks[0]


@pytest.mark.parametrize("stop", [False, True])
def test_a_bias_that_cancels_is_a_remark_and_one_behind_a_stop_a_failure(stop):
    def apply_pair(params, a, b):
        a, b = (x @ params["e"] + params["b"] for x in (a, b))
        a, b = (jax.lax.stop_gradient(x) if stop else x for x in (a, b))
        return jnp.abs(a - b) @ params["c"]

    rng = np.random.default_rng(3)
    params = {"e": rng.standard_normal((6, 4), "f4"), "c": rng.standard_normal((4, 2), "f4")}
    params, pair = {**params, "b": np.zeros(4, "f4")}, (X, X[::-1] + 1)
    gradient = jax.grad(lambda p: apply_pair(p, *pair).sum())(params)
    assert bool(gradient["e"].any()) != stop
    moved = apply_pair({**params, "b": np.ones(4, "f4")}, *pair)
    np.testing.assert_allclose(moved, apply_pair(params, *pair), rtol=1e-4, atol=1e-5)
    audit = irj.audit(params, pair, apply_pair)
    assert bool(audit.healthy) != stop, audit.healthy
    assert "b" in [one.name for one in audit.dead]
    assert any(text.startswith("cancels: ") for text in audit.remarks) != stop


@jax.custom_vjp
def through(x):
    return jnp.round(x)


through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))
STEPS = {
    "round": jnp.round,
    "sign": jax.jit(jnp.sign),
    "cast": lambda h: (h > 0).astype("float32"),
    "select_n": lambda h: jnp.where(h > 0, 1.0, 0.0),
    "through": through,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.cases(2)
def test_what_lets_no_gradient_through_is_the_cause(step):
    def stepped(params, x):
        h = x @ params["first"]
        return (h + STEPS[step](h @ params["up"]) @ params["down"]) @ params["head"]

    audit = irj.audit(params := weights(), X, stepped)
    gradients = jax.grad(lambda p: stepped(p, X).sum())(params)
    assert bool(audit.healthy) == bool(gradients["up"].any()) == (step == "through")
    if step != "through":
        assert [one.name for one in audit.dead] == ["up"]
        assert step in audit.dead[0].behind
    assert not {"up"} & {*audit.unused}


CAUSAL = jnp.tril(jnp.ones((5, 5), bool))
MASKS = {
    "where": lambda a: jnp.where(CAUSAL, a, -jnp.inf),
    "add": lambda a: a + jnp.where(CAUSAL, 0.0, -jnp.inf),
    "maximum": lambda a: (b := a + jnp.log(CAUSAL)) - b.max(-1, keepdims=True),
}


@pytest.mark.parametrize("way", MASKS)
@pytest.mark.cases(1)
def test_a_mask_of_infinities_is_no_fault(way):
    def attend(params, x):
        q, k, v = jnp.split(x @ params["qkv"], 3, -1)
        return x + jax.nn.softmax(MASKS[way](q @ k.mT / 8**0.5)) @ v @ params["out"]

    params = {"qkv": jnp.ones((8, 24)), "out": jnp.ones((8, 8))}
    x = jax.random.normal(KEYS[1], (3, 5, 8))
    params = irj.init(params, x, attend)[0]
    audit = irj.audit(params, x, attend)
    assert audit.healthy, audit.healthy
    assert len(audit.branches) == 1
    audit = irj.audit({**params, "out": jnp.full((8, 8), jnp.nan)}, x, attend)
    assert audit.not_finite[0].startswith("out")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(jax.nn.relu(self.norm(self.conv(x)))).mean((1, 2)))


def test_a_flax_model_is_as_it_was_to_the_bit_in_training_mode():
    model = Net(nnx.Rngs(0))
    model.train()
    before = [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                         else x).tobytes() for x in jax.tree.leaves(nnx.state(model))]  # fmt: skip
    state = np.random.get_state()
    audit = irj.audit(model, jax.random.normal(KEYS[0], (2, 5, 5, 2)))
    assert audit.healthy
    assert [(layer.name, layer.units) for layer in audit.layers] == [("conv", 8), ("head", 3)]
    after = [np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                        else x).tobytes() for x in jax.tree.leaves(nnx.state(model))]  # fmt: skip
    assert before == after
    assert not model.norm.use_running_average
    assert not model.drop.deterministic
    assert all(map(np.array_equal, state, np.random.get_state()))


def test_an_equinox_model_and_sharded_arrays():
    model = eqx.nn.MLP(6, 3, 8, 1, key=KEYS[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
    x = jax.device_put(X, jax.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
    audit = irj.audit(model, x, lambda m, x: jax.vmap(m)(x))
    assert audit.healthy
    assert len(audit.layers) == 2


def test_what_happens_in_a_loop_is_said_not_to_be_seen():
    def deep(params, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0] @ params["h"]

    audit = irj.audit({"w": jnp.stack([jnp.eye(6)] * 3), "h": jnp.eye(6)}, X, deep)
    assert audit.healthy
    assert "were not measured: w: product" in audit.limits[-1]


@pytest.mark.parametrize("bounds", ["while", "traced", "known"])
def test_a_loop_without_a_backward_pass_is_named(bounds):
    def looped(params, x):
        def turn(h):
            return h + jnp.tanh(h @ params["u"]) @ params["d"]

        if bounds == "while":
            return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, turn(c[1])), (0, x))[
                1
            ]
        last = 3 if bounds == "known" else 3 + (x.sum() > 1e9).astype(int)
        return jax.lax.fori_loop(0, last, lambda _, h: turn(h), x)

    params, _ = irj.init({"u": jnp.ones((6, 8)), "d": jnp.ones((8, 6))}, X, looped)
    if bounds == "known":
        assert irj.audit(params, X, looped).healthy
        return
    with pytest.raises(
        GraphError, match=r"^model = .*a loop of unknown length.*lax\.scan"
    ) as caught:
        irj.audit(params, X, looped)
    assert "\n" not in str(caught.value)


def test_tokens_alone_are_judged_by_samples_and_embeddings():
    def tokens(params, ids):
        return params["table"][ids] @ params["head"]

    params = {"table": jax.random.normal(KEYS[0], (10, 4)), "head": jnp.eye(4)}
    audit = irj.audit(params, jnp.array([[1, 2], [3, 4]]), tokens)
    assert audit.healthy
    assert audit.output_varies
    assert audit.input_gradient is None


def normed():
    class Net(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x)

    return Net()


def test_an_abstract_state_beside_real_parameters_is_named():
    """It is neither made by `init` nor run by `audit`; only shapes are needed to plan."""
    model = normed()
    model.norm.mean.set_value(jax.ShapeDtypeStruct((6,), "float32"))
    for call in (irj.init, irj.audit):
        with pytest.raises(GraphError, match=r"norm\.mean is .*outside eval_shape"):
            call(model, X)
    assert irj.plans(model, X) == {}


ABSTRACT = jax.ShapeDtypeStruct((8, 16), "float32")
BAD = {
    "zeros": (weights(), jnp.zeros((2, 6)), apply, OptionError, "zeros only"),
    "nan": (weights(), jnp.full((2, 6), jnp.nan), apply, OptionError, "infinities or NaN"),
    "abstract": (weights(), ABSTRACT.update(shape=(2, 6)), apply, GraphError,
                 r"^inputs = .*abstract.*should have values; pass a few real samples"),
    "none": (weights(), None, apply, GraphError, "^inputs = None"),
    "abstract state": (nnx.eval_shape(normed), X, None, GraphError, r"model = .*norm\.\w+ is Shap"),
    "abstract array": (weights() | {"up": ABSTRACT}, X, apply, GraphError, "model = .*up is Shape"),
    "no parameters": ({}, X, lambda _, x: x, GraphError, "should have parameters"),
    "integers": (weights(), X, lambda p, x: apply(p, x).argmax(-1), GraphError, "floating array"),
    "no function": (weights(), X, None, OptionTypeError, "can be called"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "x", "function", "error", "said"), BAD.values(), ids=BAD)
def test_bad_inputs_are_errors_of_one_line(model, x, function, error, said):
    with pytest.raises(error, match=said) as caught:
        irj.audit(model, x, function)
    assert "\n" not in str(caught.value)
