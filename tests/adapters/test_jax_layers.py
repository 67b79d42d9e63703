"""Layers of flax.nnx, by what they compute: real forward passes, with in != out throughout."""

import itertools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import idinit_ref_jax as ij
from idinit_ref import errors

FORMATS = {"float32": (24, -126), "float16": (11, -14), "bfloat16": (8, -126)}


def x_of(*shape, seed=0):
    """Integers: every product and sum below is exact, on any device."""
    return jnp.asarray(np.random.default_rng(seed).integers(-99, 100, shape), jnp.float32)


def sevens(key, shape, dtype):
    """What is to be overwritten: through NumPy, which compiles nothing."""
    del key
    return jnp.asarray(np.full(shape, 7), dtype)


def start():
    return {"kernel_init": sevens, "bias_init": sevens, "rngs": nnx.Rngs(0)}


def linear(n, m, **options):
    return nnx.Linear(n, m, **start(), **options)


def cycled(x, outputs):
    """Output i is input i mod n."""
    return np.asarray(x)[..., np.arange(outputs) % x.shape[-1]]


def rounded(weight, dtype="float32"):
    values = [by_hand.nearest(value, *FORMATS[dtype]) for value in weight.ravel().tolist()]
    return np.asarray(values).reshape(weight.shape)


def kernel(layer):
    return np.asarray(layer.kernel[...]).astype(np.float64)


# The theorems -------------------------------------------------------------------------------


@given(n=st.integers(1, 9), m=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_t1_a_linear_layer_passes_its_input_on(n, m):
    x = x_of(4, n)
    y = ij.idi_layer_(linear(n, m))(x)
    assert y.shape == (4, m)
    np.testing.assert_array_equal(y, cycled(x, m))  # a wide one keeps the first m inputs


@pytest.mark.parametrize(("n", "m"), [(3, 8), (8, 3)])
def test_t2_variance_under_any_covariance(n, m):
    mixed = x_of(50, n) @ x_of(n, n, seed=1)
    y = ij.idi_layer_(linear(n, m), gain=-2)(mixed)
    before, after = np.var(np.float64(mixed), axis=0), np.var(np.float64(y), axis=0)
    np.testing.assert_array_equal(after, 4 * before[np.arange(m) % n])


@pytest.mark.parametrize(
    ("wide", "holds"), [("truncate", True), ("fold_mean", True), ("fold_rms", False)]
)
def test_t4_wide_after_tall_is_the_identity(wide, holds):
    x = x_of(4, 3)
    tall, back = ij.idi_layer_(linear(3, 12)), ij.idi_layer_(linear(12, 3), wide=wide)
    assert np.array_equal(back(tall(x)), x) is holds


def test_t6_a_chain_of_square_layers_with_relu():
    x, y = x_of(4, 5), None
    for _ in range(3):
        y = nnx.relu(ij.idi_layer_(linear(5, 5), gain=0.5)(x if y is None else y))
    np.testing.assert_array_equal(y, 0.5**3 * np.maximum(x, 0))


@pytest.mark.parametrize("hidden", [3, 8])
def test_t7_a_residual_block_is_the_identity_up_to_eps(hidden):
    x, eps = x_of(4, 6), 2.0**-10
    first, last = ij.idi_layer_(linear(6, hidden)), ij.idiz_layer_(linear(hidden, 6), eps=eps)
    f = nnx.relu(first(x))
    branch = np.asarray(last(f))
    assert 0 < np.max(np.abs(branch)) <= 2 * eps * np.max(np.abs(f))
    np.testing.assert_allclose(x + branch, x, rtol=0, atol=2 * eps * float(np.max(np.abs(f))))


# Linear, LinearGeneral, Einsum --------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
def test_linear_keeps_its_parameters_and_holds_the_by_hand_bits(dtype):
    layer = linear(7, 4, param_dtype=dtype, kernel_metadata={"note": "mine"})
    kernel_before, metadata = layer.kernel, layer.kernel.get_metadata()
    for write, want in (
        (lambda: ij.idi_layer_(layer, gain=0.3), by_hand.weight((7, 4), gain=0.3, layout="IO")),
        (lambda: ij.idiz_layer_(layer, eps=1e-6), by_hand.weight((7, 4), "zero", layout="IO")),
    ):
        assert write() is layer
        assert layer.kernel is kernel_before
        assert not layer.kernel[...].committed
        assert layer.kernel.get_metadata() == metadata
        assert metadata["note"] == "mine"
        assert layer.kernel[...].dtype == layer.bias[...].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(kernel(layer), rounded(want, dtype))
        assert not np.any(np.asarray(layer.bias[...]))


def test_a_layer_without_bias_and_a_wide_folded_one():
    layer = ij.idi_layer_(linear(7, 3, use_bias=False), wide="fold_rms", loosen=0.5, seed=3)
    want = by_hand.weight((7, 3), wide="fold_rms", loosen=0.5, seed=3, layout="IO")
    np.testing.assert_array_equal(kernel(layer), rounded(want))


def test_linear_general_counts_its_features_in_row_major_order():
    layer = nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), **start())
    assert ij.layer_plans(layer)["kernel"].shape == (6, 20)
    x = x_of(7, 2, 3)
    y = ij.idi_layer_(layer)(x)
    np.testing.assert_array_equal(y, cycled(x.reshape(7, 6), 20).reshape(7, 4, 5))
    joined = ij.layer_plans(layer)["kernel"].build()
    np.testing.assert_array_equal(joined.reshape(2, 3, 4, 5), layer.kernel[...])


def test_linear_general_treats_every_batch_place_alike():
    layer = nnx.LinearGeneral(
        (2, 3),
        10,
        axis=(-2, -1),
        batch_axis={0: 4},
        **start(),
    )
    assert ij.layer_plans(layer)["kernel"].shape == (4, 6, 10)
    x = x_of(4, 5, 2, 3)
    np.testing.assert_array_equal(ij.idi_layer_(layer)(x), cycled(x.reshape(4, 5, 6), 10))


def test_a_loosened_stack_draws_for_every_batch_place():
    layer = nnx.LinearGeneral(3, 5, batch_axis={0: 2}, **start())
    want = by_hand.weight((2, 3, 5), loosen=0.1, seed=9, layout="EIO")
    np.testing.assert_array_equal(kernel(ij.idi_layer_(layer, loosen=0.1, seed=9)), rounded(want))


def test_einsum_reads_its_axes_from_the_equation():
    x = x_of(3, 4, 2)
    heads = nnx.Einsum("nta, hab -> nthb", (8, 2, 5), (8, 5), **start())
    want = cycled(x, 40).reshape(3, 4, 8, 5)
    np.testing.assert_array_equal(ij.idi_layer_(heads)(x), want)
    experts = nnx.Einsum("ena,eba->enb", (3, 7, 2), **start())
    np.testing.assert_array_equal(ij.idi_layer_(experts)(x), cycled(x, 7))
    assert ij.layer_plans(experts)["kernel"].layout == "AOI"
    back = nnx.Einsum("...hb,hab->...a", (4, 3, 2), **start())
    flat = np.asarray(x).reshape(3, 8)
    np.testing.assert_array_equal(ij.idi_layer_(back)(x), flat[:, :3])


# Convolutions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "groups", "taps"),
    [
        ((3,), 1, "channel_major"),
        ((2, 3), 2, "channel_major"),
        ((2, 1, 3), 2, "spatial_major"),
        ((4, 3), 1, "center"),
    ],
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_patch_kernels_are_the_by_hand_ones(size, groups, taps, role):
    layer = nnx.Conv(4, 6, size, feature_group_count=groups, padding="VALID", **start())
    tap = (1,) * len(size) if taps == "center" else None
    (ij.idi_layer_ if role == "transit" else ij.idiz_layer_)(layer, taps=taps, tap=tap)
    letters = "DHW"[3 - len(size) :] + "IO"
    want = by_hand.weight(
        layer.kernel.shape, role, layout=letters, groups=groups, taps=taps, tap=tap
    )
    np.testing.assert_array_equal(kernel(layer), rounded(want))


def test_the_default_is_channel_major_and_center_for_depthwise():
    plain = nnx.Conv(4, 6, (3, 3), feature_group_count=2, **start())
    depthwise = nnx.Conv(4, 8, (3, 3), feature_group_count=4, **start())
    single = nnx.Conv(1, 8, (3, 3), **start())
    plans = [ij.layer_plans(layer)["kernel"] for layer in (plain, depthwise, single)]
    assert [p.taps for p in plans] == ["channel_major", "center", "channel_major"]
    assert plans[1].tap == (1, 1)
    assert ij.layer_plans(depthwise, taps="channel_major")["kernel"].taps == "channel_major"


CONV_PADDINGS = [
    *("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL"),
    *(0, 1, (2,), [(2, 1)], [(5, 5)]),
]
TRANSPOSE_PADDINGS = ["SAME", "VALID", "CIRCULAR", 1, [(2, 1)]]


def check_identity_tap(layer, stride=1):
    """The tap that the adapter finds is the identity; where it finds none, there is none."""
    x, (k,) = x_of(1, 12, 3), layer.kernel_size

    def passes():
        y = np.asarray(layer(x))[:, ::stride]
        count = min(y.shape[1], 12)
        return count > 0 and np.array_equal(y[:, :count], cycled(x, y.shape[2])[:, :count])

    try:
        ij.idi_layer_(layer, taps="center")
    except errors.OptionError:
        for tap in range(k):
            assert not (ij.idi_layer_(layer, taps="center", tap=(tap,)) and passes())
    else:
        assert passes()


@pytest.mark.parametrize("padding", CONV_PADDINGS, ids=repr)
def test_the_identity_tap_of_a_convolution(padding):
    for k, dilation in ((1, 1), (3, 1), (4, 1), (2, 2), (3, 2)):
        check_identity_tap(nnx.Conv(3, 5, k, padding=padding, kernel_dilation=dilation, **start()))


@pytest.mark.parametrize("padding", TRANSPOSE_PADDINGS, ids=repr)
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_the_identity_tap_of_a_transposed_convolution(padding, transpose_kernel):
    for k, dilation, stride in (
        (1, 1, 1),
        (3, 1, 1),
        (4, 1, 1),
        (2, 2, 1),
        (3, 2, 1),
        (4, 1, 2),
        (2, 1, 3),
    ):
        layer = nnx.ConvTranspose(
            3,
            5,
            (k,),
            stride,
            padding=padding,
            kernel_dilation=dilation,
            transpose_kernel=transpose_kernel,
            **start(),
        )
        check_identity_tap(layer, stride)


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", [(0, 3), 1]])
def test_a_depthwise_convolution_is_the_identity_in_two_dimensions(padding):
    x = x_of(2, 7, 6, 4)
    layer = nnx.Conv(4, 8, (4, 3), feature_group_count=4, padding=padding, **start())
    np.testing.assert_array_equal(ij.idi_layer_(layer)(x), np.repeat(x, 2, axis=-1))
    small = ij.idiz_layer_(layer, eps=0.5)(x)
    np.testing.assert_array_equal(small, np.repeat(x, 2, axis=-1) * np.tile([0.5, -0.5], 4))


def test_a_convolution_in_three_dimensions():
    x = x_of(1, 4, 5, 3, 2)
    layer = nnx.Conv(2, 5, (3, 2, 1), **start())
    np.testing.assert_array_equal(ij.idi_layer_(layer, taps="center")(x), cycled(x, 5))
    layer = nnx.ConvTranspose(2, 5, (3, 2, 1), transpose_kernel=True, **start())
    assert layer.kernel.shape == (3, 2, 1, 5, 2)
    assert ij.layer_plans(layer)["kernel"].layout == "DHWOI"
    np.testing.assert_array_equal(ij.idi_layer_(layer, taps="center")(x), cycled(x, 5))


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_a_transposed_patch_kernel_is_the_by_hand_one(transpose_kernel):
    layer = nnx.ConvTranspose(3, 5, (2, 3), transpose_kernel=transpose_kernel, **start())
    letters = "HWOI" if transpose_kernel else "HWIO"
    want = by_hand.weight(layer.kernel.shape, "zero", layout=letters)
    np.testing.assert_array_equal(kernel(ij.idiz_layer_(layer)), rounded(want))


# Attention ----------------------------------------------------------------------------------


def attention(**options):
    options = {"decode": False, **start()} | options
    return nnx.MultiHeadAttention(2, 6, 8, 5, **options)


def test_attention_projects_by_identities():
    layer, x = attention(), x_of(3, 4, 6)
    assert ij.idi_layer_(layer) is layer
    np.testing.assert_array_equal(layer.value(x), cycled(x, 8).reshape(3, 4, 2, 4))
    heads = x_of(3, 4, 2, 4)
    np.testing.assert_array_equal(layer.out(heads), np.reshape(heads, (3, 4, 8))[..., :5])


def test_only_the_last_weight_of_zero_attention_is_zero():
    layer, x, eps = attention(), x_of(3, 4, 6), 2.0**-10
    roles = {name: p.role for name, p in ij.layer_plans(layer, "zero", eps=eps).items()}
    assert roles == {f"{name}.kernel": "transit" for name in ("query", "key", "value")} | {
        "out.kernel": "zero"
    }
    y = ij.idiz_layer_(layer, eps=eps)(x)
    assert 0 < np.max(np.abs(y)) <= 2 * eps * np.max(np.abs(x)) * (1 + 1e-5)  # softmax rounds
    for part in (layer.query, layer.key, layer.value, layer.out):
        assert not np.any(part.bias[...])
    np.testing.assert_array_equal(layer.query(x), cycled(x, 8).reshape(3, 4, 2, 4))


def test_loosened_attention_counts_its_seeds():
    layer = ij.idi_layer_(attention(), loosen=0.1, seed=40)
    shapes = {"query": (6, 8), "key": (6, 8), "value": (6, 8), "out": (8, 5)}
    for k, (name, shape) in enumerate(shapes.items()):
        want = by_hand.weight(shape, loosen=0.1, seed=40 + k, layout="IO")
        np.testing.assert_array_equal(kernel(getattr(layer, name)).reshape(shape), rounded(want))


# Where layers live --------------------------------------------------------------------------


def test_plans_and_values_of_abstract_layers():
    abstract = nnx.eval_shape(lambda: nnx.Linear(10**6, 10**6, rngs=nnx.Rngs(0)))
    assert ij.layer_plans(abstract, "zero")["kernel"].nnz == 2 * 10**6
    small = nnx.eval_shape(lambda: linear(3, 5, param_dtype=jnp.bfloat16))
    x = x_of(3)
    np.testing.assert_array_equal(ij.idi_layer_(small)(x), cycled(x, 5))
    assert small.kernel[...].dtype == jnp.bfloat16
    both = nnx.eval_shape(lambda: ij.idi_layer_(linear(3, 5)))
    assert both.kernel.shape == (3, 5)


def test_inside_jit_and_vmap():
    x = x_of(3)
    layer = linear(3, 5)
    nnx.jit(lambda layer: ij.idi_layer_(layer, gain=2) and None)(layer)
    np.testing.assert_array_equal(layer(x), 2 * cycled(x, 5))

    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(seed):
        del seed
        return ij.idi_layer_(linear(3, 5))

    stacked = stack(jnp.arange(4))
    want = np.stack([by_hand.weight((3, 5), layout="IO")] * 4)
    np.testing.assert_array_equal(stacked.kernel[...], want)


# Errors -------------------------------------------------------------------------------------


def conv(**options):
    return nnx.Conv(4, 4, (3,), **start(), **options)


WRONG = [
    (
        lambda: ij.layer_plans(nnx.Embed(3, 4, rngs=nnx.Rngs(0))),
        errors.OptionTypeError,
        r"layer = .*Embed.*Linear, LinearGeneral.*kernel_init",
    ),
    (
        lambda: ij.idi_layer_(eqx.nn.Linear(2, 3, key=jax.random.key(0))),
        errors.OptionTypeError,
        r"equinox.*eqx.tree_at \(in_axis=1",
    ),
    (lambda: ij.layer_plans(linear(2, 3), "zer"), errors.OptionError, r"role = 'zer'"),
    (lambda: ij.layer_plans(linear(2, 3), eps=0.1), errors.OptionError, r"eps = 0.1"),
    (lambda: ij.layer_plans(attention(), "zero", gain=2), errors.OptionError, r"gain = 2"),
    (
        lambda: ij.idi_layer_(attention(), loosen=0.1, seed="a"),
        errors.OptionTypeError,
        r"seed = 'a'",
    ),
    (lambda: ij.idi_layer_(linear(2, 3), tap=(0,)), errors.OptionError, r"tap = \(0,\)"),
    (lambda: ij.idi_layer_(conv(), taps="middle"), errors.OptionError, r"taps = 'middle'"),
    (
        lambda: ij.idi_layer_(conv(), taps="center", tap=(3,)),
        errors.OptionError,
        r"tap = \(3,\).*inside the kernel \(3,\)",
    ),
    (
        lambda: ij.idi_layer_(conv(padding=3, feature_group_count=4)),
        errors.OptionError,
        r"padding = \(3,\).*tap=\.\.\.",
    ),
    (
        lambda: ij.idi_layer_(conv(padding="ODD"), taps="center"),
        errors.OptionError,
        r"padding = 'ODD'.*SAME, VALID, CAUSAL.*tap=\.\.\.",
    ),
    (
        lambda: ij.idi_layer_(nnx.Conv(4, 4, (1, 1, 1, 1), **start())),
        errors.ShapeError,
        r"\(1, 1, 1, 1, 4, 4\).*at most 3",
    ),
]
for equation, shape in (
    ("ta,a->ta", (3,)),
    ("ta,ab->t", (3, 4)),
    ("ta,aab->tb", (3, 3, 4)),
    ("t,b->tb", (4,)),
    ("...,...a->a", (3, 4)),
):
    WRONG.append(
        (
            lambda equation=equation, shape=shape: ij.layer_plans(
                nnx.Einsum(equation, shape, **start())
            ),
            errors.OptionError,
            r"einsum_str = '[a-z.]+,.*kernel.*in_axis",
        )
    )


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_value_and_cure(call, kind, text):
    with pytest.raises(kind, match=f"(?s){text}"):
        call()


def test_nothing_is_written_on_an_error():
    layer = attention(param_dtype=jnp.float16)
    layer.out.kernel.set_value(layer.out.kernel[...].astype(jnp.float8_e4m3fn))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    with pytest.raises(errors.RoundingError, match=r"eps = 1e-06.*float8_e4m3fn"):
        ij.idiz_layer_(layer)  # query, key and value could hold theirs
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(layer)))
    assert all(
        itertools.starmap(
            np.array_equal, zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        )
    )
    ij.idiz_layer_(layer, eps=0.5)


def test_a_missing_flax_is_named(monkeypatch):
    layer = linear(2, 3)
    monkeypatch.setitem(sys.modules, "flax", None)
    with pytest.raises(ImportError, match="pip install flax"):
        ij.idi_layer_(layer)
