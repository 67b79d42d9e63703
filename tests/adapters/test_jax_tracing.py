"""What JAX's tracer follows: joined weights, padding by hand, products in other forms, boxes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import idinit_ref_jax as ij
from idinit_ref import errors
from idinit_ref.roles.decide import decide

D = 8


def like(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


X = like(2, 5, D)


def roles(params, apply, inputs=X):
    return decide(ij.trace(params, inputs, apply)).roles


# Joined and cut again -----------------------------------------------------------------------


def two(params, x, cut):
    both = jnp.concatenate([params["up"], params["down"]])
    up, down = cut(both)
    return x + jnp.tanh(x @ up.T) @ down.T


CUTS = {
    "slice": lambda both: (both[:D], both[D:]),
    "split": lambda both: jnp.split(both, 2),
    "reshape": lambda both: both.reshape(2, D, D),
    "index": lambda both: [both.reshape(2, D, D)[k] for k in (0, 1)],
    "dynamic": lambda both: [lax.dynamic_slice(both, (k, 0), (D, D)) for k in (0, D)],
}


@pytest.mark.parametrize("cut", CUTS)
def test_weights_joined_and_cut_again_keep_their_own_roles(cut):
    params = {"up": like(D, D), "down": like(D, D)}
    found = roles(params, lambda p, x: two(p, x, CUTS[cut]))
    assert found == {"down": "zero", "up": "transit"}


def test_biases_joined_and_cut_again_are_biases():
    def apply(p, x):
        b, c = jnp.split(jnp.concatenate([p["b"], p["c"]]), [D])
        return (x @ p["w"] + b) @ p["v"] + c

    params = {"w": like(D, D), "v": like(D, 3), "b": like(D), "c": like(3)}
    assert roles(params, apply) == {"b": "bias", "c": "bias", "v": "transit", "w": "transit"}


def test_a_weight_put_together_from_its_parts_is_one():
    apply = lambda p, x: x @ jnp.concatenate([p["w"][:, :3], p["w"][:, 3:]], 1)  # noqa: E731
    graph = ij.trace({"w": like(D, 7)}, X, apply)
    assert dict(graph.by_name["w"].options) == {"layout": "IO"}


def test_a_weight_in_copies_passes_its_input_in_copies():
    apply = lambda p, x: x @ jnp.tile(p["w"], (1, 2)) @ p["v"] + jnp.tile(p["b"], 2)  # noqa: E731
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, D)), jnp.float32)
    old = {"w": jnp.ones((D, 3)), "v": jnp.ones((6, 6)), "b": jnp.zeros(3)}
    new, report = ij.init(old, x, apply)
    assert report.roles == {"w": "transit", "v": "transit", "b": "bias"}
    assert np.array_equal(apply(new, x), np.tile(x[:, :3], 2))


def test_the_blocks_of_a_joined_weight_are_its_own():
    """Queries, keys and values in one matrix, joined to a gate, and the result cut in four."""

    def apply(p, x):
        q, k, v, g = jnp.split(x @ jnp.concatenate([p["qkv"], p["g"]], 1), 4, -1)
        return jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v * jax.nn.sigmoid(g)

    graph = ij.trace({"qkv": like(D, 3 * D), "g": like(D, D)}, X, apply)
    assert dict(graph.by_name["qkv"].options) == {"layout": "IO", "blocks": (D, D, D)}
    assert dict(graph.by_name["g"].options) == {"layout": "IO"}


# Padding by hand ------------------------------------------------------------------------------


def slide(x, w, pads=(0, 0)):
    return lax.conv_general_dilated(
        x, w, (1,), [pads], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=D
    )


def by_mode(mode, left, right):
    return lambda x: jnp.pad(x, ((0, 0), (left, right), (0, 0)), mode=mode)


PADS = {
    **{mode: by_mode(mode, 2, 0) for mode in ("constant", "edge", "reflect", "symmetric", "wrap")},
    **{f"{mode} on both sides": by_mode(mode, 1, 1) for mode in ("reflect", "wrap", "mean")},
    "zeros in front": lambda x: jnp.concatenate([jnp.zeros((2, 2, D)), x], 1),
    "the last in front": lambda x: jnp.concatenate([x[:, -2:], x], 1),
    "the first in front": lambda x: jnp.concatenate([x[:, :1], x[:, :1], x], 1),
    "all around": lambda x: jnp.concatenate([x[:, -1:], x, x[:, :1]], 1),
    "written over zeros": lambda x: lax.dynamic_update_slice(jnp.zeros((2, 8, D)), x, (0, 2, 0)),
    "set in zeros": lambda x: jnp.zeros((2, 8, D)).at[:, 2:].set(x),
    "set on two axes": lambda x: jnp.zeros((3, 8, D)).at[1:, 1:-1].set(x)[1:],
    "in two steps": lambda x: by_mode("edge", 1, 0)(by_mode("wrap", 1, 0)(x)),
    "then turned": lambda x: jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (2, 0))).swapaxes(1, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", PADS)
def test_a_convolution_after_padding_by_hand_passes_its_input(name):
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, 6, D)), jnp.float32)
    apply = lambda p, x: slide(PADS[name](x), p["w"])  # noqa: E731
    new, _ = ij.init({"w": jnp.ones((3, 1, D))}, x, apply)
    assert np.array_equal(apply(new, x), x)


@pytest.mark.parametrize("by", [1, 2, -1])
def test_a_convolution_after_a_roll_passes_what_was_rolled(by):
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, 6, D)), jnp.float32)
    apply = lambda p, x: slide(jnp.roll(x, by, 1), p["w"], (2, 2))  # noqa: E731
    new, _ = ij.init({"w": jnp.ones((5, 1, D))}, x, apply)
    inner = slice(max(-by, 0), 6 - max(by, 0))
    assert np.array_equal(apply(new, x)[:, inner], x[:, inner])


# Products in other forms ------------------------------------------------------------------------


W = {"a": like(D, D), "b": like(D, D)}
PRODUCTS = {
    "dot": jnp.dot,
    "inner": lambda x, w: jnp.inner(x, w.T),
    "tensordot": lambda x, w: jnp.tensordot(x, w, 1),
    "einsum": lambda x, w: jnp.einsum("btd,de->bte", x, w),
    "matvec": lambda x, w: jax.vmap(jax.vmap(lambda x: w.T @ x))(x),
    "multiply and sum": lambda x, w: (x[..., None] * w).sum(-2),
    "multiply and sum, turned": lambda x, w: (w.T * x[..., None, :]).sum(-1),
    "multiply and mean": lambda x, w: (x[..., None] * w).mean(-2),
    "three": lambda x, w: jnp.einsum("btd,de,t->bte", x, w, jnp.ones(x.shape[1])),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_in_any_form_is_a_weight_operation(name):
    def apply(p, x):
        return x + PRODUCTS[name](jax.nn.relu(PRODUCTS[name](x, p["a"])), p["b"])

    graph = ij.trace(W, X, apply)
    assert decide(graph).roles == {"a": "transit", "b": "zero"}
    assert dict(graph.by_name["b"].options) == {"layout": "IO"}


def test_a_scale_is_no_matrix():
    """Multiplied along the channels, and summed over the places: nothing is contracted."""
    apply = lambda p, x: (x * p["g"]).mean(1) @ p["w"]  # noqa: E731
    found = roles({"g": like(D), "w": like(D, D)}, apply)
    assert found == {"g": "keep", "w": "transit"}


def test_attention_whose_last_product_has_three_operands():
    def apply(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p["qkv"][i]) for i in range(3))
        scores = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k))
        return x + jnp.einsum("bhqs,bshk,hkd->bqd", scores, v, p["o"])

    params = {"qkv": like(3, D, 2, 4), "o": like(2, 4, D)}
    assert roles(params, apply) == {"o": "zero", "qkv": "transit"}


@pytest.mark.parametrize("name", ["taps last", "taps first"])
def test_a_depthwise_kernel_without_its_axis_of_size_1(name):
    def apply(p, x):
        kernel = p["k"].T if name == "taps last" else p["k"]
        return slide(jnp.pad(x, ((0, 0), (2, 0), (0, 0))), kernel[:, None])

    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (2, 6, D)), jnp.float32)
    shape = (D, 3) if name == "taps last" else (3, D)
    new, report = ij.init({"k": jnp.ones(shape)}, x, apply)
    assert report.roles == {"k": "transit"}
    assert new["k"].shape == shape
    assert np.array_equal(apply(new, x), x)


# What is not known, or not seen -----------------------------------------------------------------


def test_an_operation_that_is_not_known_is_named():
    def apply(p, x):
        return lax.linalg.triangular_solve(p["w"], x, left_side=False)

    (entry,) = decide(ij.trace({"w": like(D, D)}, like(2, D), apply)).entries
    assert (entry.role, entry.why) == ("keep", "it is not known what triangular_solve does with it")


REDUCES = {
    "reduce": lambda x: x + lax.reduce(x, jnp.float32(1), lambda a, b: a * b + b, (0,)),
    "reduce_window": lambda x: lax.reduce_window(
        x, jnp.float32(1), lambda a, b: a * b + b, (1, 1, 2), (1, 1, 1), "SAME"
    ),
}


@pytest.mark.parametrize("name", REDUCES)
def test_a_reduction_by_a_function_of_the_user_is_no_call_of_it(name):
    def apply(p, x):
        return x + REDUCES[name](jax.nn.relu(x @ p["a"]) @ p["b"])

    report = decide(ij.trace(W, X, apply))
    assert report.roles == {"a": "transit", "b": "transit"}
    (note,) = report.warnings
    assert note.text.endswith(f"it is not known what b: product: {name} is at 0")


def with_rule(product):
    """A function whose derivative, or whose map over a batch, is given by another function."""
    from jax.custom_batching import custom_vmap
    from jax.custom_derivatives import linear_call

    if product == "linear_call":
        return lambda x, w: linear_call(lambda w, x: x @ w, lambda w, y: y @ w.T, w, x)
    mapped = custom_vmap(lambda x, w: x @ w)
    mapped.def_vmap(lambda size, batched, x, w: (x @ w, True))
    return mapped


@pytest.mark.parametrize("name", ["linear_call", "custom_vmap"])
def test_the_body_of_a_call_with_a_rule_of_its_own_is_walked(name):
    product = with_rule(name)

    def apply(p, x):
        return x + product(jax.nn.relu(product(x, p["a"])), p["b"])

    report = decide(ij.trace(W, X, apply))
    assert report.roles == {"a": "transit", "b": "zero"}
    assert not report.warnings


class Box:
    """A mutable holder of an array, which JAX does not open."""

    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize("wrap", [Box, lambda a: Box([{"a": a}]), lambda a: Box(Box(a))])
def test_arrays_in_boxes_are_named(wrap):
    params = {"up": wrap(jnp.ones((D, D))), "down": jnp.ones((D, D))}
    with pytest.raises(errors.GraphError, match=r"'up'.*Box.*pytree"):
        ij.trace(params, X, lambda p, x: x @ p["down"])


def test_what_holds_no_arrays_is_no_box():
    class Settings:
        name, sizes = "tanh", (1, 2)

    params = {"w": jnp.ones((D, D)), "f": jnp.tanh, "s": Settings(), "n": 3, "d": jnp.float32}
    graph = ij.trace(params, X, lambda p, x: p["f"](x @ p["w"]) * p["n"])
    assert graph.weights == ("w",)
    assert ij.trace(eqx.nn.MLP(D, D, D, 1, key=jax.random.key(0)), like(D)).weights


@pytest.mark.parametrize("devices", [1, 4])
def test_the_body_of_a_shard_map_is_walked(devices):
    """A block whose hidden units lie on several devices, and whose sum is taken over these."""
    mesh = AbstractMesh((devices,), ("x",))

    def body(x, up, down):
        return x + lax.psum(jax.nn.relu(x @ up) @ down, "x")

    def apply(p, x):
        specs = (P(), P(None, "x"), P("x"))
        return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P())(x, p["up"], p["down"])

    graph = ij.trace({"up": like(D, 4 * D), "down": like(4 * D, D)}, like(2, D), apply)
    assert decide(graph).roles == {"up": "transit", "down": "zero"}
    assert dict(graph.by_name["up"].options) == {"layout": "IO"}


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_layers_that_forward_stacks_reads_all_of_them(reverse):
    draw = np.random.default_rng(0)
    layers = [{"up": draw.normal(size=(4, 6)), "down": draw.normal(size=(6, 4))} for _ in range(3)]

    def block(x, layer):
        return x + jax.nn.relu(x @ layer["up"]) @ layer["down"], x.mean()

    def apply(layers, x):
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *layers)
        return jax.lax.scan(block, x, stacked, reverse=reverse)

    roles = decide(ij.trace(layers, (jnp.ones((2, 4)),), apply)).roles
    assert {name for name in roles if roles[name] == "zero"} == {f"{k}.down" for k in range(3)}
    assert list(roles.values()).count("transit") == 3


def test_columns_that_a_gather_turns_are_columns():
    at, whole = np.array([[3], [0], [1]]), lax.GatherDimensionNumbers((1,), (1,), (1,))

    def apply(p, x):
        return x @ lax.gather(p["w"], at, whole, (5, 1)).T

    graph = ij.trace({"w": like(5, 4)}, like(2, 5), apply)
    assert graph.by_name["w"].options["layout"] == "IO"
