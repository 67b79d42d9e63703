"""When the result of an operation is zero: the drawing's word, and JAX's own arithmetic."""

from __future__ import annotations

import gc

import jax
import jax.experimental.pallas
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive

from adapters.vanishing import vanishing
from idinit_ref_jax import _table, _walk, init, trace

X = jnp.linspace(0.3, 1.7, 48).reshape(2, 4, 6)
IMAGE = jnp.linspace(0.3, 1.7, 2 * 6 * 6 * 4).reshape(2, 6, 6, 4)


def graph_of(function, inputs):
    return trace({"w": jnp.ones((3, 3))}, tuple(inputs), lambda _, *given: function(*given))


def zeros_of(function, inputs):
    """For every subset of inputs that is zero: if it is all, if the result should be, and is."""
    graph = graph_of(function, inputs)
    for chosen in range(1, 2 ** len(inputs)):
        at = [k for k in range(len(inputs)) if chosen >> k & 1]
        out = function(*(x * 0 if k in at else x for k, x in enumerate(inputs)))
        said = graph.outputs[0] in vanishing(graph, [f"inputs.{k}" for k in at])
        yield len(at) == len(inputs), said, bool((out == 0).all())


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "VALID")


def largest(*given):
    mesh, here = jax.make_mesh((1,), ("i",)), jax.sharding.PartitionSpec()
    both = jax.shard_map(lambda *x: lax.pmax(x, "i"), mesh=mesh, in_specs=here, out_specs=here)
    return both(*given)


LAX = """
abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf erf_inv
erfc exp exp2 expm1 floor lgamma log log1p logistic neg reciprocal round rsqrt sign sin sinh sqrt
square tan tanh
"""
NN = """
celu elu gelu glu hard_sigmoid hard_silu hard_swish leaky_relu log_sigmoid log_softmax logsumexp
mish relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus
standardize swish tanh
"""
ONE = {
    **{name: getattr(lax, name) for name in LAX.split()},
    **{f"nn.{name}": getattr(jax.nn, name) for name in NN.split()},
    "x + 1": lambda x: x + 1,
    "x + 0": lambda x: x + 0.0,
    "1 - x": lambda x: 1 - x,
    "x / 3": lambda x: x / 3,
    "3 / x": lambda x: 3 / (x + 1),
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "x ** -2": lambda x: (x + 1) ** -2,
    "2 ** x": lambda x: 2.0**x,
    "to powers of 2": lambda x: x ** jnp.full(6, 2.0),
    "to powers, one of them 0": lambda x: x ** jnp.arange(6.0),
    "vander": lambda x: jnp.vander(x[0, 0]),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "clip above 0": lambda x: jnp.clip(x, 0.1, 1),
    "clamp": lambda x: lax.clamp(0.0, x, 1.0),
    "clamp above 0": lambda x: lax.clamp(0.5, x, 1.0),
    "rms norm": lambda x: x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6),
    "layer norm": lambda x: (x - x.mean(-1)[..., None]) / jnp.sqrt(x.var(-1) + 1e-5)[..., None],
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((0, 2)),
    "prod": lambda x: x.prod(-1),
    "max": lambda x: x.max(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: x.cumprod(-1),
    "cumlogsumexp": lax.cumlogsumexp,
    "sort": lambda x: jnp.sort(x, -1),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "fft": lambda x: jnp.fft.fft(x).real,
    "pad": lambda x: jnp.pad(x, 1),
    "pad with 1": lambda x: jnp.pad(x, 1, constant_values=1.0),
    "circular pad": lambda x: jnp.pad(x, 1, mode="wrap"),
    "roll": lambda x: jnp.roll(x, 1, -1),
    "concatenate": lambda x: jnp.concatenate([x, x[:, :1]], 1),
    "with zeros": lambda x: jnp.concatenate([x, jnp.zeros((2, 1, 6))], 1),
    "with ones": lambda x: jnp.concatenate([x, jnp.ones((2, 1, 6))], 1),
    "clamp between a signal and a constant": lambda x: lax.clamp(x, X * 0 + 1, X * 0 + 5),
    "complex": lambda x: lax.complex(jnp.ones_like(x), x),
    "betainc": lambda x: jax.scipy.special.betainc(2.0, 3.0, x / 2),
    "bitcast": lambda x: lax.bitcast_convert_type(x, jnp.float16),
    "ones, where": lambda x: lax.select_n(jnp.full(x.shape, 2), x, x, jnp.ones_like(x)),
    "ones, sorted by keys": lambda x: lax.sort_key_val(x, jnp.ones_like(x))[1],
    "keys of a sort": lambda x: lax.sort_key_val(x, jnp.ones_like(x))[0],
    "gradient of a max pool": lambda x: jax.grad(lambda v: pooled(v).sum())(x),
    "tangent of a max pool": lambda x: jax.jvp(pooled, (x,), (jnp.ones_like(x),))[1],
    "ones of a collective": lambda x: x + largest(x, jnp.ones_like(x))[1],
    "of a collective": lambda x: largest(x, jnp.ones_like(x))[0],
    "solved": lambda x: jnp.linalg.solve(jnp.eye(4), x),
    "solved by": lambda x: jnp.linalg.solve(x[0, :, :4] + jnp.eye(4), jnp.ones((4, 2))),
    "triangles": lambda x: lax.linalg.triangular_solve(jnp.eye(4), x[0], left_side=True),
    "factors": lambda x: lax.linalg.lu(x[:, :, :4])[0],
    "singular values": lambda x: jnp.linalg.svd(x, compute_uv=False),
    "singular vectors": lambda x: jnp.linalg.svd(x)[0],
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(x[:, :, :4] @ x[:, :, :4].mT),
    "eigenvectors": lambda x: jnp.linalg.eigh(x[:, :, :4] @ x[:, :, :4].mT)[1],
    "three diagonals": lambda x: lax.linalg.tridiagonal_solve(*jnp.ones((3, 4)), x[0]),
    "accumulated": lambda x: jnp.zeros((3, 6)).at[np.array([0, 2, 2, 1])].add(x[0]),
    "largest, on ones": lambda x: jnp.ones((4, 6)).at[np.arange(4)].max(x[0]),
    "taken from ones": lambda x: jnp.ones((4, 6)).at[np.arange(4)].subtract(x[0]),
    "taken from zeros": lambda x: jnp.zeros((4, 6)).at[np.arange(4)].subtract(x[0]),
    "igamma": lambda x: lax.igamma(jnp.full_like(x, 2), x),
    "igammac": lambda x: lax.igammac(jnp.full_like(x, 2), x),
    "tile": lambda x: jnp.tile(x, (1, 2, 1)),
    "outside": lambda x: jax.pure_callback(np.cos, x, x),
    "accumulated on ones": lambda x: jnp.ones((4, 6)).at[np.arange(4)].add(x[0]),
    "set": lambda x: jnp.zeros((5, 6)).at[1:].set(x[0]),
    "set in ones": lambda x: jnp.ones((5, 6)).at[1:].set(x[0]),
    "written over ones": lambda x: lax.dynamic_update_slice(jnp.ones((5, 6)), x[0], (1, 0)),
    "where": lambda x: jnp.where(np.eye(4, 6) > 0, x, 0.0),
    "where or 1": lambda x: jnp.where(np.eye(4, 6) > 0, x, 1.0),
    "take": lambda x: jnp.take(x, np.array([0, 2]), 1),
    "tril": jnp.tril,
    "scanned sum": lambda x: lax.scan(lambda c, row: (c + row, row), jnp.zeros((4, 6)), x)[0],
    "scanned from 1": lambda x: lax.scan(lambda c, row: (c + row, row), jnp.ones((4, 6)), x)[0],
    "scanned map": lambda x: lax.map(jnp.cos, x),
    "loop": lambda x: lax.fori_loop(0, 3, lambda k, c: jnp.sin(c), x),
    "branches": lambda x: lax.cond(x.sum() > 0, jnp.tanh, jnp.sin, x),
    "a branch that is never 0": lambda x: lax.cond(x.sum() > 1, jnp.tanh, jnp.cos, x),
    "checkpointed": jax.checkpoint(lambda x: jnp.sin(x) + 1),
}  # fmt: skip
PLANES = {
    "max pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1,) * 4, "VALID"),
    "avg pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1,) * 4, "SAME"),
    "nearest": lambda x: jax.image.resize(x, (2, 12, 12, 4), "nearest"),
    "bilinear": lambda x: jax.image.resize(x, (2, 12, 12, 4), "bilinear"),
}  # fmt: skip
TWO = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / (b + 1),
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "a ** b": lambda a, b: a**b,
    "atan2": lambda a, b: jnp.arctan2(a, b + 1),
    "where": lambda a, b: jnp.where(np.eye(4, 6) > 0, a, b),
    "a @ b": lambda a, b: a @ b.mT,
    "outer": lambda a, b: a[..., None] * b[..., None, :],
    "gated": lambda a, b: a * jax.nn.sigmoid(b),
    "add at": lambda a, b: a.at[:, 1:3].add(b[:, :2]),
    "update": lambda a, b: lax.dynamic_update_slice(a, b[:, :2], (0, 1, 0)),
    "masked": lambda a, b: a * (b > 1),
    "multiplied at": lambda a, b: a.at[:, 1:3].multiply(b[:, :2]),
    "sorted by keys": lambda a, b: lax.sort_key_val(a, b)[1],
    "backwards through a max pool": lambda a, b: jax.vjp(pooled, b)[1](a[..., :3])[0],
    "along a max pool": lambda a, b: jax.jvp(pooled, (b,), (a,))[1],
    "conv": lambda a, b: lax.conv(a, b[:, :, :3], (1,), "SAME"),
}
THREE = {
    "attention": lambda *qkv: jax.nn.dot_product_attention(*(x.reshape(2, 4, 2, 3) for x in qkv)),
    "linear attention": lambda q, k, v: q @ (k.mT @ v),
    "select_n": lambda a, b, c: lax.select_n(jnp.ones(a.shape, int), a, b, c),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ONE, *PLANES])
def test_a_function_of_one_signal_vanishes_where_its_nodes_say(name):
    function, x = {**ONE, **PLANES}[name], X if name in ONE else IMAGE
    for _, said, found in zeros_of(function, [x]):
        assert said == found


@pytest.mark.parametrize("name", [*TWO, *THREE])
def test_an_operation_on_signals_vanishes_where_its_nodes_say(name):
    function = {**TWO, **THREE}[name]
    inputs = [X, X[::-1] + 0.1, X[:, ::-1] + 0.2][: 2 + (name in THREE)]
    for is_all, said, found in zeros_of(function, inputs):
        assert found or not said
        if is_all:
            assert said == found


OTHER_VERSIONS = {"mesh_cast", "psum2"}  # of JAX 0.4 to 0.7
NOT_IMPORTED = {"tpu_custom_call"}  # until Pallas for TPUs is


def test_every_name_is_a_primitive():
    every = gc.get_objects()  # of which some warn when they are asked for their class
    primitives = {thing.name for thing in every if issubclass(type(thing), Primitive)}
    tables = (
        _table.ENTRYWISE,
        _table.ALONE,
        _table.SPREAD,
        _table.REDUCES,
        _table.MOVES,
        _table.TABLE,
    )
    names = {*_table.PLAIN, *_walk._SAME, *_walk._OPAQUE, *_walk._SEVERAL}.union(*tables)
    assert names - primitives <= OTHER_VERSIONS | NOT_IMPORTED


def test_an_operation_that_no_table_knows_ends_no_branch_and_is_named():
    def apply(p, x):
        return x + jax.pure_callback(np.cos, x, x @ p["w"])

    _, report = init({"w": jnp.ones((6, 6))}, jnp.ones((4, 6)), apply)
    assert report.roles == {"w": "transit"}
    (note,) = report.warnings
    assert note.kind == "endless"
    assert note.text.endswith("it is not known what w: product: pure_callback is at 0")


def test_the_scores_sum_the_units_of_queries_and_keys():
    names = ("q", "k", "v")
    shapes = {name: jnp.ones((6, 2, 3)) for name in names}

    def apply(p, x):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, p[name]) for name in names)
        return jax.nn.dot_product_attention(q, k, v)

    graph = trace(shapes, X, apply)
    scores, mixed = (node for node in graph.nodes if node.does == "contract")
    assert (scores.vanishes, set(scores.sums)) == ((), {0, 1})
    assert (len(mixed.vanishes), mixed.sums) == (1, ())


def test_a_map_over_members_gives_their_common_input_the_shape_of_the_sum():
    def member(p, x):
        return x + jax.nn.relu(x @ p["up"]) @ p["down"]

    shapes = {"up": jnp.ones((3, 8, 16)), "down": jnp.ones((3, 16, 8))}
    graph = trace(shapes, jnp.ones((2, 8)), jax.vmap(member, (0, None)))
    (add,) = (node for node in graph.nodes if node.kind == "add")
    assert [graph.by_name[name].shape for name in add.inputs] == [(3, 2, 8)] * 2
