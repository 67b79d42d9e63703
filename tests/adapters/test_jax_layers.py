"""Layers of flax.nnx, by what they compute: real forward passes, with in != out throughout."""

import itertools
import math
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
from strategies import examples

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
#
# u is half a unit in the last place: what one rounding may change, relatively. Where a docstring
# says no more, an output is one product plus zeros, so one rounding, and the gain was rounded once
# before. XLA compiles every shape and dtype anew: sizes are small, and Linear layers get 6 rows.

SIZES = st.integers(1, 5)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
POWERS = st.sampled_from([1.0, -1.0, 0.5, -2.0])
GAINS = POWERS | st.sampled_from([math.sqrt(2), 1 / 3]) | st.floats(0.25, 4) | st.floats(-4, -0.25)
KERNELS = st.sampled_from([(), (), (3,), (2, 1)])  # () for a Linear layer
theorem = settings(max_examples=examples(4))  # each compiles


def unit(dtype):
    return 2.0 ** -FORMATS[dtype][0]


def layer_of(n, m, kernel, dtype, role="transit", **options):
    """A Linear layer, or a convolution of the identity tap."""
    start_of = start() | {"param_dtype": dtype}
    layer = nnx.Conv(n, m, kernel, **start_of) if kernel else nnx.Linear(n, m, **start_of)
    write = ij.idi_layer_ if role == "transit" else ij.idiz_layer_
    return write(layer, taps="center" if kernel else "outward", **options)


def signal(n, kernel, dtype):
    """Integers that every dtype here holds: batch, an axis of 2 for every one of a kernel, n."""
    return jnp.asarray(np.asarray(x_of(6, *(2,) * len(kernel), n)), dtype)


def float64(array):
    return np.asarray(array).astype(np.float64)


def matrix(*layers, dtype):
    """The matrix of a chain of layers, by passing the identity through it."""
    n = layers[0].in_features
    y = jnp.asarray(np.eye(6, n), dtype)
    for layer in layers:
        y = layer(y)
    assert y.dtype == jnp.dtype(dtype)
    return float64(y).T[:, :n]


@given(n=SIZES, m=SIZES, kernel=KERNELS, gain=GAINS, dtype=DTYPES)
@theorem
def test_t1_a_layer_passes_its_input_on(n, m, kernel, gain, dtype):
    """Exactly; of another gain than 1, float64's product, which is exact, rounded once."""
    x = signal(n, kernel, dtype)
    y = layer_of(n, m, kernel, dtype, gain=gain)(x)
    assert y.dtype == jnp.dtype(dtype)
    assert y.shape == (*x.shape[:-1], m)
    held = by_hand.nearest(gain, *FORMATS[dtype])
    want = (held * cycled(float64(x), m)).astype(y.dtype)  # a wide one keeps the first m inputs
    np.testing.assert_array_equal(float64(y), float64(want))
    if gain == 1:
        np.testing.assert_array_equal(float64(y), cycled(float64(x), m))


@given(n=SIZES, m=SIZES, gain=GAINS, dtype=DTYPES)
@theorem
def test_t2_variance_under_any_covariance(n, m, gain, dtype):
    """Exact for a power of 2. Else y = gain * x + r with abs(r) <= (2u + u^2) abs(gain * x), so the
    standard deviations differ by the root mean square of r at most (and float64's roundings).
    """
    integers = np.random.default_rng(n).integers
    x = integers(-9, 10, (6, n)) @ integers(-2, 3, (n, n))
    y = layer_of(n, m, (), dtype, gain=gain)(jnp.asarray(x, dtype))
    # Contiguous alike, and so added up in one order.
    before, after = (np.ascontiguousarray(a) for a in (cycled(float64(x), m), float64(y)))
    u, exact = unit(dtype), abs(math.frexp(gain)[0]) == 0.5
    found, want = np.std(after, axis=0), abs(gain) * np.std(before, axis=0)
    allowed = abs(gain) * np.sqrt(np.mean(before**2, axis=0)) * (2.1 * u + 2.0**-46)
    assert np.all(np.abs(found - want) <= (0 if exact else allowed))


@given(n=SIZES, m=SIZES, gain=GAINS, dtype=DTYPES)
@theorem
def test_t2_row_norms(n, m, gain, dtype):
    """One entry in each row: its norm is the gain as the dtype holds it, exactly."""
    norms = np.abs(matrix(layer_of(n, m, (), dtype, gain=gain), dtype=dtype)).sum(axis=1)
    np.testing.assert_array_equal(norms, abs(by_hand.nearest(gain, *FORMATS[dtype])))


@given(n=SIZES, m=SIZES, gain=GAINS, dtype=DTYPES)
@theorem
def test_t3_fold_rms(n, m, gain, dtype):
    """Entries are off by u each, so are norms; variances, their squares, by 2u + u^2. The k equal
    entries of a row add up where their inputs are the same, to k times the variance.
    """
    w = matrix(layer_of(n, m, (), dtype, gain=gain, wide="fold_rms"), dtype=dtype)
    u, sigma2 = unit(dtype), 4.0
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), abs(gain), rtol=u * 1.01)
    uncorrelated = np.diag(w @ (sigma2 * np.eye(n)) @ w.T)
    np.testing.assert_allclose(uncorrelated, gain**2 * sigma2, rtol=2.1 * u)
    equal = np.diag(w @ (sigma2 * np.ones((n, n))) @ w.T)
    folded = np.array([max(len(range(i, n, m)), 1) for i in range(m)])
    np.testing.assert_allclose(equal, gain**2 * sigma2 * folded, rtol=2.1 * u)
    assert (m < n) == bool(np.any(folded > 1))


@given(
    wide=st.sampled_from(["truncate", "fold_mean", "fold_rms"]),
    sizes=st.tuples(SIZES, SIZES),
    dtype=DTYPES,
)
@theorem
def test_t4_wide_after_tall_is_the_identity(wide, sizes, dtype):
    """Exactly for truncate. Of fold_mean, k rounded shares 1/k add up with k roundings."""
    n, m = min(sizes), max(sizes)
    tall, back = layer_of(n, m, (), dtype), layer_of(m, n, (), dtype, wide=wide)
    error = np.abs(matrix(tall, back, dtype=dtype) - np.eye(n)).max()
    copies = -(-m // n)
    if wide == "truncate" or m == n:
        assert error == 0
    elif wide == "fold_mean":
        assert error <= 1.1 * (copies + 1) * unit(dtype)
    else:  # sqrt(k) on the diagonal
        assert error > 0.4


@given(n=SIZES, m=SIZES, gain=GAINS, dtype=DTYPES)
@theorem
def test_t5_singular_values(n, m, gain, dtype):
    """Of a square or tall layer: the gain that the dtype holds, and float64's roundings."""
    n, m = min(n, m), max(n, m)
    held = abs(by_hand.nearest(gain, *FORMATS[dtype]))
    found = np.linalg.svd(matrix(layer_of(n, m, (), dtype, gain=gain), dtype=dtype))[1]
    want = sorted((held * math.sqrt(len(range(j, m, n))) for j in range(n)), reverse=True)
    np.testing.assert_allclose(found, want, rtol=1e-13)


@given(n=SIZES, depth=st.integers(1, 4), gain=GAINS, dtype=DTYPES)
@theorem
def test_t5_a_product_of_square_layers(n, depth, gain, dtype):
    """Every layer rounds the gain and the product; where the gain is a power of 2 neither, and
    singular values of a multiple of I are exact.
    """
    product = matrix(*[layer_of(n, n, (), dtype, gain=gain) for _ in range(depth)], dtype=dtype)
    exact = abs(math.frexp(gain)[0]) == 0.5
    allowed = 0 if exact else (1 + unit(dtype)) ** (2 * depth) - 1 + 1e-13
    np.testing.assert_allclose(product, gain**depth * np.eye(n), rtol=allowed, atol=0)
    found = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(found, abs(gain) ** depth, rtol=allowed, atol=0)
    if exact:
        chi = np.mean(found**2)
        assert (chi == 1) == (abs(gain) == 1)


@given(n=SIZES, depth=st.integers(1, 4), gain=GAINS.map(abs), dtype=DTYPES)
@theorem
def test_t6_a_chain_of_square_layers_with_relu(n, depth, gain, dtype):
    """Every layer rounds the gain and the product; where the gain is a power of 2, neither."""
    x = signal(n, (), dtype)
    y, moments = x, []
    for _ in range(depth):
        y = nnx.relu(layer_of(n, n, (), dtype, gain=gain)(y))
        moments.append(np.mean(float64(y) ** 2))
    exact = math.frexp(gain)[0] == 0.5
    allowed = 0 if exact else (1 + unit(dtype)) ** (2 * depth) - 1
    want = gain**depth * np.maximum(float64(x), 0)
    np.testing.assert_allclose(float64(y), want, rtol=allowed, atol=0)
    # Every layer after the first multiplies the second moment by gain^2, sqrt(2) by 2.
    grown = gain ** (2 * (depth - 1)) * moments[0]
    allowed = 0 if exact else (1 + unit(dtype)) ** (4 * depth) - 1
    np.testing.assert_allclose(moments[-1], grown, rtol=allowed, atol=0)
    assert moments[0] > 0
    if exact and depth > 1:
        assert (moments[-1] == moments[0]) == (gain == 1)


@given(
    n=SIZES,
    hidden=SIZES,
    kernel=KERNELS,
    gain=GAINS,
    eps=st.floats(1e-3, 0.5),
    f=st.sampled_from([nnx.relu, nnx.tanh, jnp.abs]),
    dtype=DTYPES,
)
@theorem
def test_t7_a_residual_block_is_the_identity_up_to_eps(n, hidden, kernel, gain, eps, f, dtype):
    """In the branch eps, a product and a sum are rounded, and each grows by 1 + u at most; adding
    it to x is one rounding more.
    """
    x, u = signal(n, kernel, dtype), unit(dtype)
    inside = f(layer_of(n, hidden, kernel, dtype, gain=gain)(x))
    last = layer_of(hidden, n, kernel, dtype, "zero", eps=eps)
    branch = last(inside)
    bound = 2 * eps * np.max(np.abs(float64(inside))) * (1 + u) ** 3
    assert np.max(np.abs(float64(branch))) <= bound
    moved = np.abs(float64(x + branch) - float64(x))
    assert np.all(moved <= bound + u * (np.abs(float64(x)) + bound))
    at = by_hand.nearest(eps, *FORMATS[dtype])  # and the branch is alive: +-eps in every row
    w = float64(last.kernel[...]).reshape(-1, n)
    np.testing.assert_array_equal(np.abs(w).max(axis=0), at)


# Linear, LinearGeneral, Einsum --------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
def test_linear_keeps_its_parameters_and_holds_the_by_hand_bits(dtype):
    layer = linear(7, 4, param_dtype=dtype, kernel_metadata={"note": "mine"})
    kernel_before, metadata = layer.kernel, layer.kernel.get_metadata()
    for write, options, want in (
        (ij.idi_layer_, {"gain": 0.3}, by_hand.weight((7, 4), gain=0.3, layout="IO")),
        (ij.idiz_layer_, {"eps": 1e-6}, by_hand.weight((7, 4), "zero", layout="IO")),
    ):
        assert write(layer, **options) is layer
        assert layer.kernel is kernel_before
        assert not layer.kernel[...].committed
        assert layer.kernel.get_metadata() == metadata
        assert metadata["note"] == "mine"
        assert layer.kernel[...].dtype == layer.bias[...].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(kernel(layer), rounded(want, dtype), write.__name__)
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
        ((4, 3), 1, "outward"),
        ((2, 3), 2, "diagonal"),
    ],
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_patch_kernels_are_the_by_hand_ones(size, groups, taps, role):
    layer = nnx.Conv(4, 6, size, feature_group_count=groups, padding="VALID", **start())
    tap = None if taps in ("channel_major", "spatial_major") else (1,) * len(size)
    (ij.idi_layer_ if role == "transit" else ij.idiz_layer_)(layer, taps=taps, tap=tap)
    letters = "DHW"[3 - len(size) :] + "IO"
    want = by_hand.weight(
        layer.kernel.shape, role, layout=letters, groups=groups, taps=taps, tap=tap
    )
    np.testing.assert_array_equal(kernel(layer), rounded(want))


def test_the_default_is_outward_for_depthwise_too():
    plain = nnx.Conv(4, 6, (3, 3), feature_group_count=2, **start())
    depthwise = nnx.Conv(4, 8, (3, 2), feature_group_count=4, padding=[(2, 0), 0], **start())
    plans = [ij.layer_plans(layer)["kernel"] for layer in (plain, depthwise)]
    assert [(p.taps, p.tap, p.stride) for p in plans] == [
        ("outward", (1, 1), None), ("outward", (2, 0), None)
    ]  # fmt: skip
    assert ij.layer_plans(depthwise, tap=(1, 1))["kernel"].tap == (1, 1)
    assert ij.layer_plans(depthwise, taps="channel_major")["kernel"].tap is None


CONV_PADDINGS = [
    *("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL"),
    *(0, 1, (2,), [(2, 1)], [(5, 5)]),
]
TRANSPOSE_PADDINGS = ["SAME", "VALID", "CIRCULAR", 1, [(2, 1)]]


def check_identity_tap(layer, stride=1):
    """The tap that the adapter finds is the identity, or there is none."""
    x, (k,) = x_of(1, 12, 3), layer.kernel_size

    def passes():
        y = np.asarray(layer(x))[:, ::stride]
        count = min(y.shape[1], 12)
        return count > 0 and np.array_equal(y[:, :count], cycled(x, y.shape[2])[:, :count])

    ij.idi_layer_(layer, taps="center")
    if not passes():
        for tap in range(k):
            assert not (ij.idi_layer_(layer, taps="center", tap=(tap,)) and passes())


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
    np.testing.assert_array_equal(ij.idi_layer_(layer)(x)[..., ::2], x)
    np.testing.assert_array_equal(ij.idi_layer_(layer, taps="center")(x), np.repeat(x, 2, axis=-1))
    small = ij.idiz_layer_(layer, eps=0.5, taps="center")(x)
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
    tap = (0, 1) if transpose_kernel else (1, 1)
    want = by_hand.weight(layer.kernel.shape, "zero", layout=letters, tap=tap)
    np.testing.assert_array_equal(kernel(ij.idiz_layer_(layer)), rounded(want))


def test_a_strided_transposed_kernel_is_the_by_hand_one():
    layer = nnx.ConvTranspose(3, 5, (4, 3), (2, 3), **start())
    options = {"layout": "HWIO", "stride": (-2, -3), "tap": (2, 2)}
    for taps in ("outward", "diagonal", "center"):
        want = by_hand.weight(layer.kernel.shape, taps=taps, **options)
        ij.idi_layer_(layer, taps=taps)
        np.testing.assert_array_equal(kernel(layer), rounded(want), taps)
    want = by_hand.weight(layer.kernel.shape, loosen=0.5, loosen_at="entries", seed=3, **options)
    ij.idi_layer_(layer, loosen=0.5, loosen_at="entries", seed=3)
    np.testing.assert_array_equal(kernel(layer), rounded(want))


def test_a_shifted_zero_layer_reads_every_input():
    layer = ij.idiz_layer_(linear(7, 2), form="shifted", eps=0.5)
    want = by_hand.weight((7, 2), "zero", form="shifted", eps=0.5, layout="IO")
    np.testing.assert_array_equal(kernel(layer), rounded(want))
    assert np.all(np.any(kernel(layer), axis=1))


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
    plans = ij.layer_plans(layer, "zero", eps=eps, gain=2, loosen=0.5, seed=7)
    last = plans.pop("out.kernel")
    assert (last.role, last.eps, last.loosen) == ("zero", eps, 0)
    found = {name: (p.role, p.gain, p.loosen, p.seed) for name, p in plans.items()}
    assert found == {
        f"{name}.kernel": ("transit", 2, 0.5, 7 + k)
        for k, name in enumerate(("query", "key", "value"))
    }
    y = ij.idiz_layer_(layer, eps=eps)(x)
    assert 0 < np.max(np.abs(y)) <= 2 * eps * np.max(np.abs(x)) * (1 + 1e-5)  # softmax rounds
    for part in (layer.query, layer.key, layer.value, layer.out):
        assert not np.any(part.bias[...])
    np.testing.assert_array_equal(layer.query(x), cycled(x, 8).reshape(3, 4, 2, 4))


# LoRA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abstract", [False, True])
def test_lora_starts_as_what_it_is_put_around(abstract):
    def make():
        return nnx.LoRA(5, 2, 7, base_module=linear(5, 7), rngs=nnx.Rngs(0))

    layer, x, eps = nnx.eval_shape(make) if abstract else make(), x_of(3, 5), 2.0**-10
    plans = ij.layer_plans(layer, "zero", eps=eps)
    assert {name: (p.role, p.shape, p.layout) for name, p in plans.items()} == {
        "lora_a": ("transit", (5, 2), "IO"),
        "lora_b": ("zero", (2, 7), "IO"),
    }
    if abstract:
        return
    kept = layer.base_module(x)
    ij.idiz_layer_(layer, eps=eps)
    assert 0 < np.max(np.abs(layer(x) - kept)) <= 2 * eps * np.max(np.abs(x))
    np.testing.assert_array_equal(ij.idi_layer_(layer)(x) - kept, cycled(x[:, :2], 7))


def test_loosened_attention_counts_its_seeds():
    layer = ij.idi_layer_(attention(), loosen=0.1, seed=40)
    shapes = {"query": (6, 8), "key": (6, 8), "value": (6, 8), "out": (8, 5)}
    for k, (name, shape) in enumerate(shapes.items()):
        want = by_hand.weight(shape, loosen=0.1, seed=40 + k, layout="IO")
        found = kernel(getattr(layer, name)).reshape(shape)
        np.testing.assert_array_equal(found, rounded(want), name)


# Stacks of layers ---------------------------------------------------------------------------


def grouped(x):
    return np.repeat(x, 2, axis=-1)


def dense(x):
    return cycled(x, 5)


STACKED = [
    (lambda **o: nnx.Linear(3, 5, **o), (4, 3), {}, dense),
    (
        lambda **o: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), **o),
        (7, 2, 3),
        {},
        lambda x: cycled(np.reshape(x, (7, 6)), 20).reshape(7, 4, 5),
    ),
    (lambda **o: nnx.LinearGeneral(3, 5, batch_axis={0: 2}, **o), (2, 4, 3), {}, dense),
    (lambda **o: nnx.Einsum("ena,eba->enb", (2, 5, 3), **o), (2, 4, 3), {}, dense),
    (lambda **o: nnx.Conv(3, 5, (3,), **o), (1, 6, 3), {"taps": "center"}, dense),
    (
        lambda **o: nnx.Conv(3, 6, (4, 3), feature_group_count=3, **o),
        (1, 6, 5, 3),
        {"taps": "center"},
        grouped,
    ),
    (
        lambda **o: nnx.ConvTranspose(3, 5, (3,), transpose_kernel=True, **o),
        (1, 6, 3),
        {"taps": "center"},
        dense,
    ),
]


def stacked(make, *sizes):
    """A stack of layers, as Flax makes it for a scan."""
    for _ in sizes:
        make = nnx.vmap(make)
    return make(jax.random.split(jax.random.key(0), sizes))


@pytest.mark.parametrize(
    ("which", "sizes"), [*((k, (2,)) for k in range(len(STACKED))), (0, (2, 3)), (5, (2, 3))]
)
def test_every_layer_of_a_stack_passes_its_input_on(which, sizes):
    make, shape, options, want = STACKED[which]

    def one(key):
        return make(kernel_init=sevens, bias_init=sevens, rngs=nnx.Rngs(key))

    x, forward = x_of(*sizes, *shape), lambda layer, x: layer(x)
    for _ in sizes:
        forward = nnx.vmap(forward)
    layer = stacked(one, *sizes)
    assert ij.idi_layer_(layer, **options) is layer
    if getattr(layer, "bias", None) is not None:
        assert not np.any(layer.bias[...])
    y, places = np.asarray(forward(layer, x)), list(np.ndindex(sizes))
    np.testing.assert_array_equal(y, np.stack([want(x[at]) for at in places]).reshape(y.shape))
    alone = one(jax.random.key(0))
    ij.idiz_layer_(ij.idi_layer_(layer, **options), **options)
    same = kernel(ij.idiz_layer_(alone, **options))
    np.testing.assert_array_equal(kernel(layer), np.broadcast_to(same, kernel(layer).shape))


def test_a_stack_of_attention_layers():
    def one(key):
        return attention(rngs=nnx.Rngs(key))

    layer, x, heads = stacked(one, 3), x_of(3, 2, 4, 6), x_of(3, 2, 4, 2, 4)
    assert ij.layer_plans(layer)["out.kernel"].shape == (3, 8, 5)
    ij.idi_layer_(layer)
    value = nnx.vmap(lambda layer, x: layer.value(x))(layer, x)
    np.testing.assert_array_equal(value, cycled(x, 8).reshape(3, 2, 4, 2, 4))
    out = nnx.vmap(lambda layer, x: layer.out(x))(layer, heads)
    np.testing.assert_array_equal(out, np.reshape(heads, (3, 2, 4, 8))[..., :5])


def test_a_scan_over_a_stack_and_a_stack_written_inside_vmap():
    layer, x = stacked(lambda key: nnx.Linear(3, 3, rngs=nnx.Rngs(key)), 4), x_of(2, 3)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def chain(x, layer):
        return layer(x)

    np.testing.assert_array_equal(chain(x, ij.idi_layer_(layer)), x)
    nnx.vmap(lambda layer: ij.idi_layer_(layer, gain=2) and None)(layer)
    np.testing.assert_array_equal(chain(x, layer), 16 * x)


def test_a_loosened_stack_draws_for_every_layer():
    layer = stacked(lambda key: nnx.Linear(3, 5, rngs=nnx.Rngs(key)), 2)
    want = by_hand.weight((2, 3, 5), loosen=0.1, seed=9, layout="EIO")
    np.testing.assert_array_equal(kernel(ij.idi_layer_(layer, loosen=0.1, seed=9)), rounded(want))


@pytest.mark.parametrize("shape", [(5,), (3, 2, 5), (3, 4)])
def test_a_kernel_that_is_none_of_its_layer_is_refused(shape):
    """Too few axes; a stack along another axis than the first; another layer's."""
    layer = linear(3, 5)
    layer.kernel.set_value(jnp.asarray(np.full(shape, 7), jnp.float32))
    text = rf"kernel = \({shape[0]},.*Linear's kernel should be \(3, 5\).*leading axes: nnx.vmap"
    with pytest.raises(errors.ShapeError, match=text):
        ij.idi_layer_(layer)
    assert np.all(np.asarray(layer.kernel[...]) == 7)
    assert np.all(np.asarray(layer.bias[...]) == 7)


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
    (lambda: ij.layer_plans(linear(2, 3), eps=0), errors.OptionError, r"eps = 0.*not 0"),
    (lambda: ij.layer_plans(linear(2, 3), "zero", gain=0), errors.OptionError, r"gain = 0"),
    (lambda: ij.layer_plans(linear(2, 3), "zero", wide="no"), errors.OptionError, r"wide = 'no'"),
    (lambda: ij.idiz_layer_(linear(2, 3), form="even"), errors.OptionError, r"form = 'even'"),
    (
        lambda: ij.idi_layer_(linear(2, 3), loosen_at="entries"),
        errors.OptionError,
        r"loosen_at = 'entries'.*loosen is 0",
    ),
    (lambda: ij.layer_plans(linear(2, 3), "zero", seed=-1), errors.OptionError, r"seed = -1"),
    (
        lambda: ij.layer_plans(linear(2, 3), gain=jnp.float32(2)),
        errors.OptionTypeError,
        r"gain = Array\(2.*Python float",
    ),
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
        lambda: ij.idi_layer_(conv(), taps="channel_major", tap=(1,)),
        errors.OptionError,
        r"tap = \(1,\).*first tap.*leave tap out",
    ),
    (
        lambda: ij.idi_layer_(conv(padding="ODD")),
        errors.OptionError,
        r"padding = 'ODD'.*SAME, SAME_LOWER, VALID.*tap=\.\.\.",
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
