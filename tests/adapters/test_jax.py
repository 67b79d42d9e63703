"""The JAX initialisers: the by-hand weights, eager, traced and in shards, in real layers."""

import itertools
import math
import os
import pickle
import subprocess
import sys
import textwrap

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import PartitionSpec, SingleDeviceSharding

import by_hand
import idinit_ref_jax as ij
from idinit_ref import errors
from strategies import examples

FORMATS = {"float32": (24, -126), "float16": (11, -14), "bfloat16": (8, -126)}
FORMATS["complex64"] = FORMATS["float32"]

# shape, options of the initialiser, and the layout that the by-hand weight has
CASES = [
    ((3, 7), {}, "IO"),
    ((7, 3), {}, "IO"),
    ((5, 3), {"in_axis": 1, "out_axis": 0}, "OI"),
    ((4, 3, 5), {"batch_axis": 0}, "EIO"),
    ((3, 2, 5), {"layout": "WIO"}, "WIO"),
    ((3, 2, 4, 6), {"groups": 2}, "HWIO"),
    ((3, 2, 1, 6), {"groups": 6, "taps": "center", "tap": (2, 0)}, "HWIO"),
    ((2, 2, 3, 2, 4), {"taps": "spatial_major"}, "DHWIO"),
    ((3, 2, 4, 6), {"taps": "channel_major"}, "HWIO"),
    ((3, 2, 4, 6), {"taps": "diagonal", "tap": (0, 1)}, "HWIO"),
    ((4, 3, 2, 6), {"stride": (2, -2), "tap": (1, 1)}, "HWIO"),
    ((5, 2, 3), {"stride": (3,), "taps": "diagonal"}, "WIO"),
    ((6, 2, 3), {"layout": "IOW", "groups": 2, "transposed": True}, "IOW"),
    ((3, 8), {"blocks": (5, 3)}, "IO"),
]
ROLES = [("transit", {"gain": 1 / 3}), ("zero", {"eps": 1e-6})]


def x_of(*shape):
    """Integers: every product and sum of a layer is exact, on any device."""
    return jnp.asarray(np.random.default_rng(0).integers(-99, 100, shape), jnp.float32)


def init_of(role, options):
    return ij.idi(**options) if role == "transit" else ij.idiz(**options)


def expected(shape, role, layout, dtype, options):
    """The by-hand weight, rounded by hand."""
    options = {k: v for k, v in options.items() if k not in ("in_axis", "out_axis", "batch_axis")}
    exact = by_hand.weight(shape, role, **{**options, "layout": layout})
    rounded = [by_hand.nearest(value, *FORMATS[dtype]) for value in exact.ravel().tolist()]
    return np.asarray(rounded).reshape(shape)


def same(array, values, dtype):
    assert isinstance(array, jax.Array)
    assert array.dtype == jnp.dtype(dtype)
    assert array.shape == values.shape
    wide = np.complex128 if dtype == "complex64" else np.float64
    np.testing.assert_array_equal(np.asarray(array).astype(wide), values)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(("role", "value"), ROLES)
def test_eager_and_traced_bits_are_the_by_hand_ones(role, value, dtype):
    inits = [
        (shape, init_of(role, options | value), value | options) for shape, options, _ in CASES
    ]
    traced = jax.jit(lambda: [init(None, shape, dtype) for shape, init, _ in inits])()
    for (shape, init, options), other, (_, _, layout) in zip(inits, traced, CASES, strict=True):
        eager = init(jax.random.key(1), shape, dtype)
        same(eager, expected(shape, role, layout, dtype, options), dtype)
        assert np.asarray(other).tobytes() == np.asarray(eager).tobytes()


@given(data=st.data())
@settings(max_examples=examples(5))  # each compiles
def test_several_axes_of_one_kind_count_as_one_in_row_major_order(data):
    kinds = data.draw(st.lists(st.sampled_from("OOIIB"), min_size=2, max_size=5))
    kinds = data.draw(st.permutations(["O", "I", *kinds]))
    shape = data.draw(st.tuples(*(st.integers(1, 3) for _ in kinds)))
    axes = {c: [a for a, kind in enumerate(kinds) if kind == c] for c in "OIB"}
    given_axes = {
        c: [a - data.draw(st.sampled_from([0, len(kinds)])) for a in axes[c]] for c in axes
    }
    init = ij.idiz(
        eps=0.5, in_axis=given_axes["I"], out_axis=given_axes["O"], batch_axis=given_axes["B"]
    )
    m, n = (math.prod(shape[a] for a in axes[c]) for c in "OI")
    matrix = by_hand.weight((m, n), "zero", eps=0.5)

    def count(place, kind):
        at = 0
        for a in axes[kind]:
            at = at * shape[a] + place[a]
        return at

    want = np.zeros(shape)
    for place in itertools.product(*map(range, shape)):
        want[place] = matrix[count(place, "O"), count(place, "I")]
    same(init(None, shape), want, "float32")


def test_joined_axes_under_jit_and_loosened():
    init = ij.idi(in_axis=(1, -1), out_axis=(0, 2), loosen=0.25, seed=7, dtype=jnp.float16)
    eager = init(None, (2, 2, 3, 2))
    flat = np.transpose(eager, (0, 2, 1, 3)).reshape(6, 4)
    same(
        jnp.asarray(flat),
        expected((6, 4), "transit", "OI", "float16", {"loosen": 0.25, "seed": 7}),
        "float16",
    )
    traced = jax.jit(lambda: init(None, (2, 2, 3, 2)))()
    assert np.asarray(traced).tobytes() == np.asarray(eager).tobytes()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4)])
def test_empty_weights(shape):
    assert ij.idi(batch_axis=0 if len(shape) == 3 else ())(None, shape).shape == shape
    assert jax.jit(lambda: ij.idiz()(None, shape[-2:]))().shape == shape[-2:]


# Transformations ----------------------------------------------------------------------------


def test_a_wide_idiz_compares_once():
    """+eps and -eps lie in different columns there; each comparison costs as much as the fill."""
    for shape, compared in (((4608, 512), 1), ((512, 4608), 2), ((512, 512), 2)):
        traced = jax.make_jaxpr(lambda shape=shape: ij.idiz()(None, shape, jnp.float32))()
        assert str(traced).count(" eq ") == compared


@pytest.mark.parametrize("layout", ["HWIO", "OIHW"])
def test_all_phases_of_a_kernel_are_compared_at_once_in_two_axes(layout):
    """What XLA loops over is then a matrix, and one pass; 4-D loops over a kernel take longer."""
    init = ij.idiz(layout=layout, stride=(2, -2))
    shape = (4, 4, 64, 64) if layout == "HWIO" else (64, 64, 4, 4)
    traced = jax.make_jaxpr(lambda: init(None, shape, jnp.float32))()
    compared = [eqn.outvars[0].aval for eqn in traced.eqns if eqn.primitive.name == "eq"]
    assert all(part.ndim == 2 for part in compared)
    assert sum(part.size for part in compared) == 64 * 1024
    eager = np.asarray(init(None, shape, jnp.float32))
    assert (
        np.asarray(jax.jit(lambda: init(None, shape, jnp.float32))()).tobytes() == eager.tobytes()
    )


def sizes_of_constants(jaxpr):
    for constant in jaxpr.consts:
        yield np.size(constant)
    for equation in jaxpr.eqns:
        for atom in equation.invars:
            if isinstance(atom, Literal):
                yield np.size(atom.val)
        for inner in equation.params.values():
            if isinstance(inner, ClosedJaxpr):
                yield from sizes_of_constants(inner)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((64, 96), {}),
        ((3, 3, 8, 16), {"groups": 4}),
        ((8, 4, 2, 16), {"in_axis": (0, 2), "out_axis": (1, 3)}),
    ],
)
def test_a_trace_holds_no_constant_of_the_size_of_the_weight(shape, options):
    def largest(f):
        return max(sizes_of_constants(jax.make_jaxpr(f)()), default=0)

    assert largest(lambda: ij.idiz(**options)(None, shape)) <= math.prod(shape) / 16
    assert largest(lambda: ij.idiz()(None, (10**5, 10**5))) <= 2**14
    constant = np.arange(math.prod(shape), dtype=np.float32)
    assert largest(lambda: jnp.asarray(constant) + 1) == constant.size  # the check can fail


def test_eval_shape_makes_nothing():
    out = jax.eval_shape(lambda key: ij.idi()(key, (10**6, 10**6), jnp.bfloat16), jax.random.key(0))
    assert out.shape == (10**6, 10**6)
    assert out.dtype == jnp.bfloat16


def test_vmap_grad_and_the_key():
    init, want = ij.idi(), np.asarray(by_hand.weight((2, 3), layout="IO"))
    stacked = jax.vmap(lambda key: init(key, (2, 3)))(jax.random.split(jax.random.key(0), 4))
    same(stacked, np.stack([want] * 4), "float32")
    slope = jax.grad(lambda x: (x @ init(None, (2, 3))).sum())(jnp.ones(2))
    same(slope, want.sum(axis=1), "float32")


def test_static_argument_equality_hash_repr_and_pickle():
    a = ij.idi(gain=2, in_axis=[0], out_axis=1, blocks=[2, 1], dtype=jnp.float16)
    b = ij.idi(gain=np.float32(2), in_axis=0, out_axis=(1,), blocks=(2, 1), dtype="float16")
    assert a == b
    assert hash(a) == hash(b)
    assert a != ij.idi(gain=2)
    assert ij.idi() != ij.idiz()
    assert pickle.loads(pickle.dumps(a)) == a
    assert repr(ij.idi()) == "idi()"
    assert repr(ij.idiz(eps=1e-3, taps="center")) == "idiz(eps=0.001, taps='center')"
    assert isinstance(a, jax.nn.initializers.Initializer)
    traces = []

    def f(init):
        traces.append(init)
        return init(None, (2, 3))

    jitted = jax.jit(f, static_argnums=0)
    assert jitted(a).dtype == jitted(b).dtype == jnp.float16
    assert len(traces) == 1


# Dtypes -------------------------------------------------------------------------------------


def test_the_dtype_is_that_of_the_call_or_of_the_initialiser_or_the_default():
    assert ij.idi()(None, (2, 2)).dtype == jnp.float32
    assert ij.idi(dtype="bfloat16")(None, (2, 2)).dtype == jnp.bfloat16
    assert ij.idi(dtype="bfloat16")(None, (2, 2), jnp.float16).dtype == jnp.float16
    assert ij.idi(dtype=float)(None, (2, 2)).dtype == jnp.float32
    assert not ij.idi()(None, (2, 2)).weak_type


def test_float64_is_cut_as_jax_cuts_it_unless_x64_is_enabled():
    with pytest.warns(UserWarning, match="float64"):
        like = jnp.zeros((2, 2), jnp.float64)
    with pytest.warns(UserWarning, match="float64"):
        assert ij.idi()(None, (2, 2), jnp.float64).dtype == like.dtype == jnp.float32
    with jax.enable_x64(True):
        assert ij.idi()(None, (2, 2)).dtype == jnp.float64
        out = jax.jit(lambda: ij.idi(gain=0.1)(None, (2, 3)))()
        same(out, by_hand.weight((2, 3), gain=0.1, layout="IO"), "float64")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"])
def test_fp8_holds_a_gain_of_1_and_no_eps_of_1e_6(name):
    dtype, want = getattr(jnp, name), by_hand.weight((2, 5), layout="IO")
    same(ij.idi()(None, (2, 5), dtype), want, name)
    same(jax.jit(lambda: ij.idi()(None, (2, 5), dtype))(), want, name)
    with pytest.raises(errors.RoundingError, match=f"1e-06.* rounds to 0 in {name}"):
        ij.idiz()(None, (2, 5), dtype)


def test_subnormals_of_float16_survive_jit():
    eager = ij.idiz(eps=6e-8)(None, (3, 3), jnp.float16)
    traced = jax.jit(lambda: ij.idiz(eps=6e-8)(None, (3, 3), jnp.float16))()
    assert np.count_nonzero(eager) == 6
    assert np.asarray(traced).tobytes() == np.asarray(eager).tobytes()


# Real layers --------------------------------------------------------------------------------


def cycled(x, outputs):
    """Output i is input i mod n: what a tall or square IDI does (theorem T1)."""
    return np.asarray(x)[..., np.arange(outputs) % x.shape[-1]]


def test_flax_nnx_layers():
    rngs, x = nnx.Rngs(0), x_of(4, 3)
    y = nnx.Linear(3, 7, kernel_init=ij.idi(), rngs=rngs)(x)
    np.testing.assert_array_equal(y, cycled(x, 7))
    y = nnx.LinearGeneral(3, (2, 5), kernel_init=ij.idi(), rngs=rngs)(x)
    np.testing.assert_array_equal(y, cycled(x, 10).reshape(4, 2, 5))
    init = ij.idi(in_axis=1, out_axis=(0, 2))
    y = nnx.Einsum("na,hab->nhb", (2, 3, 5), kernel_init=init, rngs=rngs)(x)
    np.testing.assert_array_equal(y, cycled(x, 10).reshape(4, 2, 5))
    image, center = x_of(2, 5, 6, 3), ij.idi(taps="center")
    y = nnx.Conv(3, 7, (3, 3), kernel_init=center, rngs=rngs)(image)
    np.testing.assert_array_equal(y, cycled(image, 7))
    grouped = ij.idi(taps="center", groups=3)
    y = nnx.Conv(3, 6, (3, 3), feature_group_count=3, kernel_init=grouped, rngs=rngs)(image)
    np.testing.assert_array_equal(y, np.repeat(image, 2, axis=-1))


def test_flax_linen_layers():
    x, image = x_of(4, 3), x_of(2, 5, 6, 3)
    y, variables = nn.Dense(7, kernel_init=ij.idi()).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(y, cycled(x, 7))
    assert variables["params"]["kernel"].shape == (3, 7)
    layer = nn.Conv(7, (3, 3), kernel_init=ij.idi(taps="center"))
    np.testing.assert_array_equal(
        layer.init_with_output(jax.random.key(0), image)[0], cycled(image, 7)
    )
    small = nn.Dense(7, kernel_init=ij.idiz(eps=0.5)).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_array_equal(
        small, 0.5 * cycled(x, 7) - 0.5 * np.roll(x, -1, -1)[:, [0, 1, 2, 0, 1, 2, 0]]
    )


def test_equinox_layers():
    x = x_of(3)
    linear = eqx.nn.Linear(3, 7, use_bias=False, key=jax.random.key(0))
    for axes in ({"in_axis": 1, "out_axis": 0}, {"in_axis": -1, "out_axis": -2}):
        weight = ij.idi(**axes)(None, linear.weight.shape, linear.weight.dtype)
        new = eqx.tree_at(lambda module: module.weight, linear, weight)
        np.testing.assert_array_equal(new(x), cycled(x, 7), str(axes))
    conv = eqx.nn.Conv2d(3, 7, 3, padding=1, use_bias=False, key=jax.random.key(0))
    weight = ij.idi(layout="OIHW", taps="center")(None, conv.weight.shape)
    y = eqx.tree_at(lambda module: module.weight, conv, weight)(x_of(3, 5, 6))
    np.testing.assert_array_equal(
        np.moveaxis(y, 0, -1), cycled(np.moveaxis(x_of(3, 5, 6), 0, -1), 7)
    )


def test_a_plain_pytree():
    shapes = {
        "a": jax.ShapeDtypeStruct((3, 7), jnp.bfloat16),
        "b": [jax.ShapeDtypeStruct((7, 7), jnp.float32)],
    }
    tree = jax.tree.map(lambda leaf: ij.idi()(None, leaf.shape, leaf.dtype), shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    x = x_of(3)
    np.testing.assert_array_equal(x @ tree["a"].astype(jnp.float32) @ tree["b"][0], cycled(x, 7))


# Errors -------------------------------------------------------------------------------------

WRONG = [
    (
        lambda: ij.idi(in_axis=2)(None, (3, 4)),
        errors.OptionError,
        r"in_axis = \(2,\).*axis 2 should be one of the 2 axes.*name every axis once",
    ),
    (lambda: ij.idi(out_axis=-3)(None, (3, 4)), errors.OptionError, r"out_axis = \(-3,\).*2 axes"),
    (
        lambda: ij.idi()(None, (3,)),
        errors.ShapeError,
        r"shape = \(3,\).*a bias is not a weight: set it to 0",
    ),
    (lambda: ij.idiz()(None, ()), errors.ShapeError, r"shape = \(\).*set it to 0"),
    (
        lambda: ij.idi(in_axis=1)(None, (3, 4)),
        errors.OptionError,
        r"out_axis = \(-1,\).*axis -1 of 2 is named twice.*once",
    ),
    (lambda: ij.idi(batch_axis=0)(None, (3, 4)), errors.OptionError, r"batch_axis = \(0,\).*twice"),
    (
        lambda: ij.idi(in_axis=(0, 0), out_axis=1)(None, (3, 4)),
        errors.OptionError,
        r"in_axis = \(0, 0\).*twice",
    ),
    (lambda: ij.idi(in_axis=()), errors.OptionError, r"in_axis = \(\),.*at least one.*in_axis=-2"),
    (lambda: ij.idi(out_axis=[]), errors.OptionError, r"out_axis = \[\],.*out_axis=-1"),
    (lambda: ij.idi(in_axis=True), errors.OptionTypeError, r"in_axis = True.*integer.*write -1"),
    (lambda: ij.idi(batch_axis=(0, False)), errors.OptionTypeError, r"batch_axis = \(0, False\)"),
    (
        lambda: ij.idi()(None, (2,) * 6),
        errors.ShapeError,
        r"shape = \(2, 2, 2, 2, 2, 2\).*at most 3 axes.*batch_axis",
    ),
    (lambda: ij.idi(in_axis="x"), errors.OptionTypeError, r"in_axis = 'x'.*integer or a tuple.*-1"),
    (lambda: ij.idi(batch_axis=(0.5,)), errors.OptionTypeError, r"batch_axis = \(0.5,\)"),
    (lambda: ij.idi(layout="OI", in_axis=0), errors.OptionError, r"layout = 'OI'.*give either"),
    (lambda: ij.idi(layout="OI")(None, (2, 3, 4)), errors.LayoutError, r"layout = 'OI'.*3 axes"),
    (lambda: ij.idi(layout="OO")(None, (2, 3)), errors.LayoutError, r"'O' appears twice"),
    (lambda: ij.idi(layout="WWIO")(None, (2, 3, 4, 4)), errors.LayoutError, r"'WWIO'.*once"),
    (lambda: ij.idi()(None, 5), errors.OptionTypeError, r"shape = 5.*tuple"),
    (lambda: ij.idi()(None, (None, 3)), errors.OptionTypeError, r"axis 0 is None"),
    (lambda: ij.idi()(None, (True, 3)), errors.OptionTypeError, r"axis 0 is a bool"),
    (
        lambda: ij.idi(in_axis=(0, 1))(None, (-2, -3, 4)),
        errors.ShapeError,
        r"\(-2, -3, 4\).*axis 0 is -2",
    ),
    (lambda: ij.idi(gain=0), errors.OptionError, r"gain = 0"),
    (
        lambda: jax.jit(lambda g: ij.idi(gain=g)(None, (3, 4)))(2.0),
        errors.OptionTypeError,
        r"gain = .*Tracer.*Python float, known when",
    ),
    (lambda: ij.idi(wide="fold"), errors.OptionError, r"wide = 'fold'"),
    (lambda: ij.idiz(eps=float("nan")), errors.OptionError, r"eps = nan"),
    (lambda: ij.idi(taps="centre"), errors.OptionError, r"taps = 'centre'"),
    (lambda: ij.idiz(form="even"), errors.OptionError, r"form = 'even'"),
    (lambda: ij.idi(loosen_at="entries"), errors.OptionError, r"loosen_at.*loosen is 0"),
    (lambda: ij.idi(stride=(2,))(None, (3, 4)), errors.OptionError, r"stride = \(2,\).*a matrix"),
    (lambda: ij.idi(stride=(0,))(None, (3, 3, 4)), errors.OptionError, r"stride = \(0,\).*no 0"),
    (lambda: ij.idi(groups=2)(None, (3, 5)), errors.LayoutError, r"groups = 2.*divisor of 5"),
    (lambda: ij.idi(dtype=jnp.int8), errors.DTypeError, r"'int8'.*bfloat16"),
    (lambda: ij.idi(dtype="foo"), errors.DTypeError, r"'foo'"),
    (lambda: ij.idi()(None, (2, 2), bool), errors.DTypeError, r"'bool'.*bfloat16"),
    (
        lambda: ij.idi()(None, (2, 2), None, "x"),
        errors.OptionTypeError,
        r"out_sharding = 'x'.*NamedSharding\(mesh",
    ),
    (
        lambda: ij.idi()(None, (2, 2), None, SingleDeviceSharding(jax.devices()[0])),
        errors.OptionTypeError,
        r"out_sharding = SingleDeviceSharding",
    ),
    (
        lambda: ij.idi()(None, (2, 2), None, PartitionSpec("x")),
        errors.OptionError,
        r"out_sharding = .*'x'.*none is set.*jax.set_mesh",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_value_and_cure(call, kind, text):
    with pytest.raises(kind, match=f"(?s){text}"):
        call()


def test_a_22nd_batch_axis_has_no_letter():
    with pytest.raises(errors.ShapeError, match="at most 21 batch axes"):
        ij.idi(batch_axis=range(22))(None, (1,) * 24)


# Processes of their own ---------------------------------------------------------------------


def run(code, **environment):
    full = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=full, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_flax_and_equinox_are_not_imported_and_a_missing_jax_is_named():
    code = """
    import sys, idinit_ref_jax
    print([name for name in ("flax", "equinox") if name in sys.modules])
    """
    assert run(code) == "[]\n"
    code = """
    import sys
    sys.modules["jax"] = None
    try:
        import idinit_ref_jax
    except ImportError as problem:
        print(problem)
    """
    assert 'pip install "idinit-ref[jax]"' in run(code)


SHARDED = """
import collections, itertools
import idinit_ref, jax, jax.numpy as jnp, numpy as np
import idinit_ref_jax as ij
from flax import nnx
from idinit_ref import errors
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 8
meshes = {
    kind: jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    for kind in (AxisType.Auto, AxisType.Explicit)
}
weights = [
    (ij.idi(), (8, 12), P("x", "y")),
    (ij.idiz(eps=1 / 3), (8, 12), P("y")),
    (ij.idi(), (8, 12), P()),
    (ij.idi(loosen=0.5), (8, 12), P("y", "x")),
    (ij.idi(groups=2), (3, 3, 4, 8), P(None, None, "y", "x")),
    (ij.idi(in_axis=(0, 2), out_axis=(1, 3)), (4, 2, 3, 4), P("x", "y")),
]
asked = collections.Counter()
block = idinit_ref.Plan.block
def counting(self, index, **options):
    asked[str(index)] += 1
    return block(self, index, **options)
idinit_ref.Plan.block = counting

def check(out, plain, sharding):
    assert out.sharding.is_equivalent_to(sharding, out.ndim), (out.sharding, sharding)
    assert np.asarray(out).tobytes() == plain and out.dtype == jnp.bfloat16

for init, shape, spec in weights:
    plain = np.asarray(init(None, shape, jnp.bfloat16)).tobytes()
    for kind, mesh in meshes.items():
        sharding = NamedSharding(mesh, spec)
        asked.clear()
        check(init(None, shape, jnp.bfloat16, sharding), plain, sharding)
        parts = {str(index) for index in sharding.devices_indices_map(shape).values()}
        joined = len(shape) == 4 and init != ij.idi(groups=2)  # made whole, and then cut
        assert sum(asked.values()) == len(asked) == (0 if joined else len(parts))
        with jax.set_mesh(mesh):
            check(init(None, shape, jnp.bfloat16, spec), plain, sharding)
            check(init(None, shape, jnp.bfloat16, sharding), plain, sharding)
            check(jax.jit(lambda: init(None, shape, jnp.bfloat16, spec))(), plain, sharding)
            check(jax.jit(lambda: init(None, shape, jnp.bfloat16, sharding))(), plain, sharding)
            if kind == AxisType.Explicit:  # the only kind that JAX's own initialisers serve
                own = jnp.zeros(shape, jnp.bfloat16, out_sharding=spec)
                assert init(None, shape, jnp.bfloat16, spec).sharding.is_equivalent_to(
                    own.sharding, own.ndim
                )
                typed = jax.eval_shape(lambda: init(None, shape, jnp.bfloat16, spec))
                assert typed.sharding.spec == own.sharding.spec
        if kind == AxisType.Auto:
            check(jax.jit(lambda: init(None, shape, jnp.bfloat16, sharding))(), plain, sharding)

for spec, text in ((P("x"), "6"), (P(None, None, "x"), "(6, 4)")):
    sharding = NamedSharding(meshes[AxisType.Auto], spec)
    for make in (ij.idi(), lambda *given: jax.jit(lambda: ij.idi()(*given))()):
        try:
            make(None, (6, 4), None, sharding)
        except errors.OptionError as problem:
            assert "out_sharding" in str(problem) and text in str(problem), problem
            assert "name only axes of the mesh" in str(problem)
        else:
            raise AssertionError(spec)

with jax.set_mesh(meshes[AxisType.Auto]):
    for spec in (P("nowhere"), P("x", "x")):
        try:
            ij.idi()(None, (4, 4), None, spec)
        except errors.OptionError as problem:
            assert "out_sharding" in str(problem), problem
        else:
            raise AssertionError(spec)

# Layers keep the sharding of their parameters, eager and traced.
for kind, mesh in meshes.items():
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("x", "y"))
        layer = nnx.Linear(
            8,
            12,
            kernel_metadata={"out_sharding": P("x", "y")},
            bias_metadata={"out_sharding": P("y")},
            rngs=nnx.Rngs(0),
        )
        assert layer.kernel.get_value().sharding.is_equivalent_to(sharding, 2)
        asked.clear()
        assert ij.idi_layer_(layer) is layer
        assert len(asked) == 8
        assert layer.kernel.get_value().sharding.is_equivalent_to(sharding, 2)
        assert layer.bias.get_value().sharding.is_equivalent_to(NamedSharding(mesh, P("y")), 1)
        assert layer.kernel.get_metadata("out_sharding") == P("x", "y")
        np.testing.assert_array_equal(layer.kernel.get_value(), ij.idi()(None, (8, 12)))
        graph, state = nnx.split(layer)
        traced = jax.make_jaxpr(lambda s: nnx.state(ij.idi_layer_(nnx.merge(graph, s))))(state)
        # Auto axes are left to the compiler; explicit ones are auto within, and constrained.
        assert ("sharding_constraint" in str(traced)) == (kind == AxisType.Explicit)
        nnx.jit(lambda layer: ij.idiz_layer_(layer, eps=0.5) and None)(layer)
        np.testing.assert_array_equal(layer.kernel.get_value(), ij.idiz(eps=0.5)(None, (8, 12)))
        if kind == AxisType.Explicit:
            assert layer.kernel.get_value().sharding.is_equivalent_to(sharding, 2)

abstract = nnx.eval_shape(lambda: nnx.Linear(8, 12, rngs=nnx.Rngs(0)))
place = NamedSharding(meshes[AxisType.Auto], P("x"))
abstract.kernel.set_value(jax.ShapeDtypeStruct((8, 12), jnp.float16, sharding=place))
ij.idi_layer_(abstract)
assert abstract.kernel.get_value().sharding == place
assert abstract.kernel.get_value().dtype == jnp.float16

third = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
third.kernel.set_value(jax.device_put(third.kernel.get_value(), jax.devices()[3]))
ij.idi_layer_(third)
assert third.kernel.get_value().devices() == {jax.devices()[3]}
assert third.kernel.get_value().committed and not third.bias.get_value().committed
print("all is well")
"""


@pytest.mark.nightly  # each time test_jax_sharded.py
def test_on_eight_devices():
    flags = "--xla_force_host_platform_device_count=8"
    assert run(SHARDED, XLA_FLAGS=flags) == "all is well\n"
