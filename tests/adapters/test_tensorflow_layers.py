"""Built Keras layers: forward passes first, then the bits. Runs on any backend of Keras.

`test_tensorflow.py` runs this file on JAX as well.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import by_hand

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers as kl

from idinit_ref import errors, plan
from idinit_ref_tensorflow import idi_layer_, idiz_layer_, layer_plans

BACKEND = keras.backend.backend()


@pytest.fixture(autouse=True)
def _cheap_layers(monkeypatch):
    """Spare JAX a compilation for the random values of each shape, which no test looks at."""

    def sevens(self, shape, dtype=None):
        return np.full(shape, 7.0, dtype)

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", sevens)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def built(layer, *shape):
    """Build a layer, and fill it with 7, so that whatever is not written shows."""
    layer.build((None, *shape))
    return filled(layer)


def filled(layer):
    for weight in layer.weights:
        weight.assign(np.full(tuple(weight.shape), 7.0))
    return layer


def untouched(layer):
    return all(np.all(np.asarray(weight) == 7) for weight in layer.weights)


def run(layer, *inputs):
    return np.asarray(layer(*inputs))


def check(variable, want):
    assert tuple(variable.shape) == want.shape
    assert np.array_equal(np.asarray(variable), want.astype(np.float32))


def repeat(x, channels, axis=-1):
    """The channels i mod C of an input: what an identity of m outputs gives, wide or tall."""
    return np.take(x, np.arange(channels) % x.shape[axis], axis=axis)


# Dense and EinsumDense ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(3, 7), (7, 3), (4, 4)])
def test_dense(n, m):
    layer = built(kl.Dense(m), n)
    assert idi_layer_(layer, gain=-0.5) is layer
    x = normal(3, n)
    assert np.array_equal(run(layer, x), -0.5 * repeat(x, m))


def test_dense_bits():
    layer = idi_layer_(built(kl.Dense(3), 7), gain=0.3, wide="fold_rms")
    check(layer.kernel, by_hand.weight((7, 3), gain=0.3, wide="fold_rms", layout="IO"))
    check(layer.bias, np.zeros(3))
    idiz_layer_(filled(layer), eps=0.3)
    check(layer.kernel, by_hand.weight((7, 3), "zero", eps=0.3, layout="IO"))
    check(layer.bias, np.zeros(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_low_precision_layer_keeps_its_dtype(dtype):
    precision, emin = {"float16": (11, -14), "bfloat16": (8, -126)}[dtype]
    layer = idi_layer_(built(kl.Dense(3, dtype=dtype), 2), gain=1 / 3)
    assert layer.kernel.dtype == layer.bias.dtype == dtype
    want = by_hand.weight((2, 3), layout="IO") * by_hand.nearest(1 / 3, precision, emin)
    assert np.array_equal(np.asarray(layer.kernel).astype(np.float64), want)


def last(x, axes, joined):
    """Move some named axes of an array to its end, and join them."""
    rest = [c for c in axes.replace("...", "") if c not in joined]
    moved = np.einsum(f"{axes}->{'...' if '...' in axes else ''}{''.join([*rest, *joined])}", x)
    return moved.reshape(*moved.shape[: -len(joined)], -1)


EQUATIONS = [
    # equation, output shape, input shape, letters, merged shape and letters of the kernel
    ("ab,bc->ac", 5, (3,), "IO", (3, 5), "IO"),
    ("...x,xy->...y", 5, (2, 3), "IO", (3, 5), "IO"),
    ("ab...,bc->ac...", (5, 4), (3, 4), "IO", (3, 5), "IO"),
    ("ab,cb->ac", 5, (3,), "OI", (5, 3), "OI"),
    ("abc,cde->abde", (None, 2, 4), (5, 3), "IOO", (3, 8), "IO"),
    ("abde,dec->abc", (None, 3), (5, 2, 4), "IIO", (8, 3), "IO"),
    ("abc,dce->abde", (None, 2, 4), (5, 3), "OIO", (8, 3), "OI"),
    ("abc,bcd->abd", (2, 5), (2, 3), "BIO", (2, 3, 5), "BIO"),
    ("abc,cbd->abd", (2, 5), (2, 3), "IBO", (3, 2, 5), "IBO"),
]


@pytest.mark.parametrize(("equation", "out", "into", "letters", "shape", "merged"), EQUATIONS)
def test_einsum_dense(equation, out, into, letters, shape, merged):
    layer = built(kl.EinsumDense(equation, out, bias_axes=equation[-1].strip(".") or None), *into)
    decided = layer_plans(layer)["kernel"]
    assert (decided.shape, decided.layout) == (shape, merged)
    idi_layer_(layer)
    # The outputs, in the kernel's order, are the inputs in that order, over and over.
    x = normal(2, *into)
    kernel = equation.split(",")[1].split("->")[0]
    inputs, outputs = (
        [c for c, letter in zip(kernel, letters, strict=True) if letter == kind] for kind in "IO"
    )
    rows = last(x, equation.split(",")[0], inputs)
    y = last(run(layer, x), equation.split("->")[1], outputs)
    assert np.array_equal(y, repeat(rows, y.shape[-1]))


@pytest.mark.parametrize("role", ["transit", "zero"])
def test_einsum_dense_bits(role):
    layer = built(kl.EinsumDense("abc,dce->abde", (None, 2, 4), bias_axes="de"), 5, 3)
    change = idi_layer_ if role == "transit" else idiz_layer_
    change(layer)
    flat = by_hand.weight((8, 3), role, layout="OI")
    want = np.array([[[flat[4 * d + e, c] for e in range(4)] for c in range(3)] for d in range(2)])
    check(layer.kernel, want)
    check(layer.bias, np.zeros((2, 4)))


def test_einsum_dense_noise_is_that_of_the_merged_matrix():
    layer = idi_layer_(built(kl.EinsumDense("abc,cde->abde", (None, 2, 4)), 5, 3), loosen=0.5)
    want = by_hand.weight((3, 8), loosen=0.5, layout="IO").reshape(3, 2, 4)
    check(layer.kernel, want)


@pytest.mark.parametrize(
    ("equation", "out", "into"), [("ab,b->ab", (3,), (3,)), ("ab,bcc->ac", (4,), (3,))]
)
def test_an_equation_that_is_no_matrix_is_refused(equation, out, into):
    layer = built(kl.EinsumDense(equation, out), *into)
    with pytest.raises(
        errors.OptionError, match=r"equation = 'ab,b.*should stand once.*input_axes="
    ):
        idi_layer_(layer)
    assert untouched(layer)


# Convolutions ----------------------------------------------------------------------------------

TAPS = ["outward", "diagonal", "center", "channel_major", "spatial_major"]
CONV = {1: kl.Conv1D, 2: kl.Conv2D, 3: kl.Conv3D}
TRANSPOSE = {1: kl.Conv1DTranspose, 2: kl.Conv2DTranspose, 3: kl.Conv3DTranspose}
LETTERS = {1: "W", 2: "HW", 3: "DHW"}
SIZES = {1: (9,), 2: (7, 6), 3: (4, 5, 3)}
KERNELS = {1: (4,), 2: (3, 4), 3: (2, 1, 3)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("filters", [2, 3, 5])
def test_a_centred_convolution_is_the_identity(rank, filters):
    layer = built(CONV[rank](filters, KERNELS[rank], padding="same"), *SIZES[rank], 3)
    idi_layer_(layer, taps="center")
    x = normal(2, *SIZES[rank], 3)
    assert np.array_equal(run(layer, x), repeat(x, filters))


def check_identity_tap(layer, stride=1):
    """Let every tap act alone on one place: the decided tap moves it least, of two the first."""
    built(layer, 29, 1)
    x = np.zeros((1, 29, 1), np.float32)
    x[0, 14] = 1
    moves = {}
    for tap in range(layer.kernel_size[0]):
        kernel = np.zeros(tuple(layer.kernel.shape))
        kernel[tap, 0, 0] = 1
        layer.kernel.assign(kernel)
        layer.bias.assign(np.zeros(1))
        (place,) = np.flatnonzero(run(layer, x))
        moves[tap] = abs(place - 14 * stride)
    for taps in ("outward", "diagonal", "center"):
        assert layer_plans(layer, taps=taps)["kernel"].tap == (min(moves, key=moves.get),)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_the_identity_tap_of_a_convolution(padding, kernel, dilation):
    check_identity_tap(kl.Conv1D(1, kernel, padding=padding, dilation_rate=dilation))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("stride", "more"), [(1, None), (2, None), (3, None), (3, 1), (3, 2)])
def test_the_identity_tap_of_a_transposed_convolution(padding, kernel, stride, more):
    options = {"strides": stride, "padding": padding, "output_padding": more}
    check_identity_tap(kl.Conv1DTranspose(1, kernel, **options), stride)


if BACKEND != "tensorflow":  # TensorFlow's CPU kernels know no dilated transposed convolution

    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("dilation", [2, 3])
    def test_the_identity_tap_of_a_dilated_transposed_convolution(padding, kernel, dilation):
        check_identity_tap(kl.Conv1DTranspose(1, kernel, padding=padding, dilation_rate=dilation))


# T14: what a kernel of the default order does with the image ------------------------------------

T14 = [
    kl.Conv1D(9, 4, padding="same"),
    kl.Conv1D(3, 3, padding="causal", dilation_rate=2),
    kl.Conv2D(7, (3, 4), padding="same"),
    kl.Conv2D(3, (4, 4), padding="same"),
    kl.Conv2D(6, 5, padding="same", dilation_rate=2),
    kl.Conv3D(3, (2, 1, 3), padding="same"),
    kl.Conv1DTranspose(6, 4, padding="same"),
    kl.Conv2DTranspose(3, (3, 2), padding="same"),
]


def shown(layer):
    return f"{layer.name}-{layer.kernel_size}-{layer.filters}"


@pytest.mark.parametrize("layer", T14, ids=shown)
def test_t14_the_first_outputs_are_the_image(layer):
    size = SIZES[layer.rank]
    x = normal(2, *size, 3)
    y = run(idi_layer_(built(layer, *size, 3)), x)
    assert np.array_equal(y[..., :3], x)
    if layer.filters == 3:
        assert np.array_equal(np.square(y).sum(), np.square(x).sum())


@pytest.mark.parametrize(
    "layer", [kl.Conv1D(2, 4, padding="same"), kl.Conv2D(2, 3, padding="same")], ids=shown
)
def test_t14_fewer_outputs_are_the_first_channels(layer):
    size = SIZES[layer.rank]
    x = normal(2, *size, 3)
    assert np.array_equal(run(idi_layer_(built(layer, *size, 3)), x), x[..., :2])


def test_t14_more_outputs_are_the_neighbours_all_channels_at_a_time():
    layer = idi_layer_(built(kl.Conv2D(15, 3, padding="same"), 7, 6, 3))
    x = normal(2, 7, 6, 3)
    y = run(layer, x)
    # Outputs 3g to 3g + 2 are the image, moved by one place: from above, left, right and below.
    for at, (row, column) in enumerate([(0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)]):
        moved = np.zeros_like(x)
        rows = slice(max(row, 0), 7 + min(row, 0)), slice(max(-row, 0), 7 + min(-row, 0))
        columns = (
            slice(max(column, 0), 6 + min(column, 0)),
            slice(max(-column, 0), 6 + min(-column, 0)),
        )
        moved[:, rows[1], columns[1]] = x[:, rows[0], columns[0]]
        assert np.array_equal(y[..., 3 * at : 3 * at + 3], moved)


def test_t14_the_corner_order_keeps_few_channels_and_moves_them():
    layer = idi_layer_(built(kl.Conv2D(18, 3, padding="same"), 7, 6, 18), taps="channel_major")
    x = normal(2, 7, 6, 18)
    y = run(layer, x)
    assert np.array_equal(y[:, 1:, 1:, 0], x[:, :-1, :-1, 0])
    kept = {c for c in range(18) if np.any(np.asarray(layer.kernel)[:, :, c])}
    assert kept == {0, 1}  # of 18 channels a ninth


@pytest.mark.parametrize(
    ("size", "kernel"), [(8, 3), (7, 3), (8, 4), (7, 4), (9, 5), (9, 2)], ids=str
)
@pytest.mark.parametrize("stride", [2, 3])
def test_a_strided_convolution_takes_every_place_that_it_stops_at(size, kernel, stride):
    """With padding "same" the left padding depends on the size of the input."""
    x = normal(2, size, size + 1, 3)
    layer = kl.Conv2D(5, kernel, strides=stride, padding="same")
    y = run(idi_layer_(built(layer, size, size + 1, 3)), x)
    assert np.array_equal(y[..., :3], x[:, ::stride, ::stride])


def test_a_strided_convolution_of_an_unknown_size_has_the_tap_of_stride_one():
    layer = built(kl.Conv2D(4, (3, 4), strides=2, padding="same"), None, 8, 2)
    assert layer_plans(layer)["kernel"].tap == (1, 1)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_centred_transposed_convolution_is_the_identity(rank):
    layer = built(TRANSPOSE[rank](5, KERNELS[rank], padding="same"), *SIZES[rank], 3)
    idi_layer_(layer, taps="center")
    x = normal(2, *SIZES[rank], 3)
    assert np.array_equal(run(layer, x), repeat(x, 5))


@pytest.mark.parametrize("filters", [4, 8])
def test_grouped_convolutions_pass_every_group(filters):
    layer = built(kl.Conv2D(filters, 3, padding="same", groups=2), 5, 6, 4)
    x = normal(2, 5, 6, 4)
    y = run(idi_layer_(layer, taps="center"), x)
    want = [repeat(x[..., g : g + 2], filters // 2) for g in (0, 2)]
    assert np.array_equal(y, np.concatenate(want, axis=-1))


@pytest.mark.parametrize(
    "layer",
    [
        kl.Conv2D(4, (3, 2), padding="same", groups=4),
        kl.DepthwiseConv1D(4, padding="same"),
        kl.DepthwiseConv2D((3, 2), padding="same"),
        kl.DepthwiseConv2D(3, padding="same", dilation_rate=2),
        kl.SeparableConv1D(4, 4, padding="same"),
        kl.SeparableConv2D(4, (3, 2), padding="same"),
    ],
    ids=lambda layer: layer.name,
)
def test_depthwise_layers_pass_the_image_by_default(layer):
    size = SIZES[layer.rank]
    x = normal(2, *size, 4)
    y = run(idi_layer_(built(layer, *size, 4)), x)
    assert np.array_equal(y, x)


def test_a_depth_multiplier_shows_each_channel_twice():
    layer = idi_layer_(built(kl.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), 5, 6, 3))
    x = normal(2, 5, 6, 3)
    y = run(layer, x)
    assert np.array_equal(y[..., ::2], x)
    assert np.array_equal(y[:, 1:, :, 1::2], x[:, :-1])  # the second is the neighbour's, above
    assert np.array_equal(run(idi_layer_(layer, taps="center"), x), np.repeat(x, 2, axis=-1))


CHANNELS_FIRST = [
    # TensorFlow's CPU kernels run these; its plain and transposed convolutions need a GPU for it.
    kl.Conv2D(4, (3, 2), groups=2, padding="same", data_format="channels_first"),
    kl.DepthwiseConv2D((3, 2), padding="same", data_format="channels_first"),
    kl.SeparableConv2D(4, (3, 2), padding="same", data_format="channels_first"),
]
if BACKEND != "tensorflow":
    CHANNELS_FIRST += [
        kl.Conv2D(4, (3, 2), padding="same", data_format="channels_first"),
        kl.Conv2DTranspose(4, (3, 2), padding="same", data_format="channels_first"),
    ]


@pytest.mark.parametrize("layer", CHANNELS_FIRST, ids=lambda layer: layer.name)
def test_channels_first_changes_no_kernel(layer):
    layer = idi_layer_(built(layer, 4, 5, 6), taps="center")
    x = normal(2, 4, 5, 6)
    assert np.array_equal(run(layer, x), x)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("role", ["transit", "zero"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_bits(taps, role, rank):
    value = {"gain": 0.3} if role == "transit" else {"eps": 0.3}
    change = idi_layer_ if role == "transit" else idiz_layer_
    tap = None if "major" in taps else tuple(k - 1 for k in KERNELS[rank])
    options = {"taps": taps, "tap": tap, **value}

    grouped = change(built(CONV[rank](6, KERNELS[rank], groups=2), *SIZES[rank], 4), **options)
    shape, letters = (*KERNELS[rank], 2, 6), LETTERS[rank] + "IO"
    check(grouped.kernel, by_hand.weight(shape, role, layout=letters, groups=2, **options))
    check(grouped.bias, np.zeros(6))

    turned = change(built(TRANSPOSE[rank](5, KERNELS[rank]), *SIZES[rank], 3), **options)
    shape, letters = (*KERNELS[rank], 5, 3), LETTERS[rank] + "OI"
    check(turned.kernel, by_hand.weight(shape, role, layout=letters, **options))
    check(turned.bias, np.zeros(5))

    if rank < 3:
        kind = (kl.DepthwiseConv1D, kl.DepthwiseConv2D)[rank - 1]
        deep = change(built(kind(KERNELS[rank], depth_multiplier=2), *SIZES[rank], 3), **options)
        shape, letters = (*KERNELS[rank], 3, 2), LETTERS[rank] + "IO"
        groups = {"groups": 3, "transposed": True}
        check(deep.kernel, by_hand.weight(shape, role, layout=letters, **groups, **options))
        check(deep.bias, np.zeros(6))


def test_a_plain_convolution_is_outward_by_default():
    layer = idi_layer_(built(kl.Conv2D(5, 3, padding="same"), 5, 6, 2))
    check(layer.kernel, by_hand.weight((3, 3, 2, 5), layout="HWIO", taps="outward"))


def test_noise_can_be_at_the_entries_alone():
    layer = idi_layer_(built(kl.Conv2D(5, 3), 5, 6, 2), loosen=0.5, loosen_at="entries", seed=3)
    options = {"loosen": 0.5, "loosen_at": "entries", "seed": 3, "tap": (0, 0)}
    check(layer.kernel, by_hand.weight((3, 3, 2, 5), layout="HWIO", taps="outward", **options))
    assert np.count_nonzero(np.asarray(layer.kernel)) == 5


def test_the_shifted_form_of_a_zero_layer():
    layer = idiz_layer_(built(kl.Dense(3), 10), eps=0.5, form="shifted")
    check(layer.kernel, by_hand.weight((10, 3), "zero", eps=0.5, form="shifted", layout="IO"))
    assert np.all(np.any(np.asarray(layer.kernel), axis=1))  # every input has an entry


# Role zero -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (kl.Dense(4), (3,)),
        (kl.EinsumDense("abc,cde->abde", (None, 2, 4)), (5, 3)),
        (kl.Conv2D(4, 3, padding="same"), (5, 6, 3)),
        (kl.Conv2DTranspose(4, 3, padding="same"), (5, 6, 3)),
        (kl.DepthwiseConv2D(3, padding="same"), (5, 6, 3)),
        (kl.SeparableConv2D(4, 3, padding="same"), (5, 6, 3)),
    ],
    ids=lambda part: getattr(part, "name", ""),
)
def test_a_zero_layer_is_almost_silent(layer, shape):
    x, eps = normal(2, *shape), 1e-3
    y = run(idiz_layer_(built(layer, *shape), eps=eps), x)
    assert 0 < np.abs(y).max() <= 2 * eps * np.abs(x).max()


def test_a_residual_block_of_convolutions_is_the_identity():
    x, eps = normal(2, 5, 6, 3), 1e-6
    first = idi_layer_(built(kl.Conv2D(4, 3, padding="same", activation="relu"), 5, 6, 3))
    last = idiz_layer_(built(kl.Conv2D(3, 3, padding="same"), 5, 6, 4))
    f = run(first, x)
    assert np.all(np.abs(run(last, f)) <= 2 * eps * np.abs(f).max())


# Layers of several weights ----------------------------------------------------------------------


def attention(kind=kl.MultiHeadAttention, **more):
    sizes = (2, 3) if kind is kl.MultiHeadAttention else (3, 4, 2)
    layer = kind(*sizes, **more)
    layer.build((None, 5, 6), (None, 5, 6))
    return filled(layer)


def test_attention_to_one_place_is_the_identity():
    layer = idi_layer_(attention())
    x = normal(2, 1, 6)  # one place can only attend to itself: 6 -> 2 heads of 3 -> 6
    y = np.asarray(layer(x, x))
    assert np.array_equal(y, x)


def test_attention_bits():
    layer = idi_layer_(attention(value_dim=4), gain=0.5)
    for part, size in (("query", 3), ("key", 3), ("value", 4)):
        kernel = getattr(layer, f"{part}_dense").kernel
        want = by_hand.weight((6, 2 * size), gain=0.5, layout="IO").reshape(6, 2, size)
        check(kernel, want)
        check(getattr(layer, f"{part}_dense").bias, np.zeros((2, size)))
    out = by_hand.weight((8, 6), gain=0.5, layout="IO").reshape(2, 4, 6)
    check(layer.output_dense.kernel, out)
    check(layer.output_dense.bias, np.zeros(6))


@pytest.mark.parametrize("kind", [kl.MultiHeadAttention, kl.GroupQueryAttention])
def test_attention_in_a_residual_branch_has_a_zero_output_projection(kind):
    layer = attention(kind)
    decided = layer_plans(layer, "zero")
    assert {name: p.role for name, p in decided.items()} == {
        "query/kernel": "transit",
        "key/kernel": "transit",
        "value/kernel": "transit",
        "attention_output/kernel": "zero",
    }
    x, eps = normal(2, 5, 6), 1e-3
    y = np.asarray(idiz_layer_(layer, eps=eps)(x, x))
    assert 0 < np.abs(y).max() <= 2 * eps * np.abs(x).max()


def test_gated_attention_has_one_weight_more():
    assert list(layer_plans(attention(use_gate=True))) == [
        "query/kernel",
        "key/kernel",
        "value/kernel",
        "gate/kernel",
        "attention_output/kernel",
    ]


def test_a_separable_layer_in_a_residual_branch_has_a_zero_pointwise_kernel():
    layer = built(kl.SeparableConv2D(4, (3, 2), padding="same"), 5, 6, 3)
    idiz_layer_(layer, eps=0.5, tap=(2, 1))
    depthwise = {"groups": 3, "transposed": True, "taps": "outward", "tap": (2, 1)}
    check(layer.depthwise_kernel, by_hand.weight((3, 2, 3, 1), layout="HWIO", **depthwise))
    check(layer.pointwise_kernel, by_hand.weight((1, 1, 3, 4), "zero", eps=0.5, layout="HWIO"))
    check(layer.bias, np.zeros(4))


def test_noise_differs_from_weight_to_weight():
    decided = layer_plans(attention(), loosen=0.5, seed=7)
    assert [p.seed for p in decided.values()] == [7, 8, 9, 10]
    assert [p.seed for p in layer_plans(attention(), seed=7).values()] == [7, 7, 7, 7]
    layer = idi_layer_(built(kl.SeparableConv1D(4, 3), 8, 3), loosen=0.5, seed=7)
    want = by_hand.weight((1, 3, 4), layout="WIO", loosen=0.5, seed=8)
    check(layer.pointwise_kernel, want)


# Plans -------------------------------------------------------------------------------------------


def test_plans_change_nothing_and_take_every_option():
    layer = built(kl.Conv2D(5, (3, 2)), 5, 6, 4)
    options = {"gain": 0.5, "wide": "fold_mean", "taps": "center", "tap": (2, 0)}
    decided = layer_plans(layer, loosen=0.5, seed=3, **options)["kernel"]
    assert decided.shape == (3, 2, 4, 5)
    assert decided.layout == "HWIO"
    assert (decided.loosen, decided.seed) == (0.5, 3)
    assert {name: getattr(decided, name) for name in options} == options
    zero = layer_plans(layer, "zero", eps=0.5)["kernel"]
    assert (zero.role, zero.eps, zero.taps) == ("zero", 0.5, "outward")
    assert untouched(layer)


TRANSIT = {"gain": 0.5, "wide": "fold_rms", "loosen": 0.25, "seed": 3}


@pytest.mark.parametrize("layer", [kl.Dense(2), kl.Conv1D(2, 3)], ids=lambda layer: layer.name)
def test_plans_do_not_use_options_of_a_role_that_no_weight_has(layer):
    built(layer, 4, 3)
    assert layer_plans(layer, eps=0.5, **TRANSIT) == layer_plans(layer, **TRANSIT)
    assert layer_plans(layer, "zero", eps=0.5, **TRANSIT) == layer_plans(layer, "zero", eps=0.5)


def test_plans_use_the_options_of_both_roles_where_a_layer_has_both():
    layer = built(kl.SeparableConv1D(4, 3), 8, 3)
    into, out = layer_plans(layer, "zero", eps=0.5, **TRANSIT).values()
    assert {name: getattr(into, name) for name in TRANSIT} == TRANSIT
    assert out == plan((1, 3, 4), "zero", eps=0.5, layout="WIO")


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"gain": 0}, errors.OptionError, ["gain = 0", "non-zero"]),
        ({"gain": "1"}, errors.OptionTypeError, ["gain = '1'", "float"]),
        ({"eps": float("nan")}, errors.OptionError, ["eps = nan", "non-zero"]),
        ({"eps": None}, errors.OptionTypeError, ["eps = None", "float"]),
        ({"wide": "fold"}, errors.OptionError, ["wide = 'fold'", "pick one"]),
        ({"loosen": -1}, errors.OptionError, ["loosen = -1", "standard deviation"]),
        ({"seed": -1}, errors.OptionError, ["seed = -1", "in range"]),
        ({"loosen": 0.1, "seed": "a"}, errors.OptionTypeError, ["seed = 'a'", "whole number"]),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [lambda: kl.Dense(2), lambda: kl.SeparableConv1D(2, 3)], ids=["one", "several"]
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_plans_validate_the_options_of_both_roles(make, role, option, error, words):
    layer = built(make(), 4, 3)
    with pytest.raises(error) as caught:
        layer_plans(layer, role, **option)
    assert all(word in str(caught.value) for word in words), caught.value
    assert untouched(layer)


def test_a_layer_without_a_bias():
    layer = idi_layer_(built(kl.Dense(3, use_bias=False), 2))
    check(layer.kernel, by_hand.weight((2, 3), layout="IO"))


# Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [idi_layer_, idiz_layer_, layer_plans])
def test_an_unbuilt_layer_is_refused(change):
    with pytest.raises(errors.OptionError, match=r"layer = 'young'.*call it once on an input"):
        change(kl.Dense(3, name="young"))


@pytest.mark.parametrize(
    ("layer", "name"), [(kl.LSTM(3), "LSTM"), (kl.BatchNormalization(), "BatchNormalization")]
)
def test_an_unknown_layer_is_refused_with_a_list(layer, name):
    built(layer, 5, 4)
    with pytest.raises(errors.OptionTypeError) as caught:
        idi_layer_(layer)
    text = str(caught.value)
    assert f"layer = {name!r}" in text
    assert "Dense, EinsumDense, Conv1D" in text
    assert "idi_(variable)" in text
    assert untouched(layer)


def test_a_layer_with_lora_is_refused():
    layer = built(kl.Dense(3), 4)
    layer.enable_lora(2)
    filled(layer)
    with pytest.raises(errors.OptionError, match=r"LoRA or quantization.*initialise it first"):
        idi_layer_(layer)
    assert untouched(layer)


@pytest.mark.filterwarnings(  # Keras (3.15) converts its variables with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_a_quantized_layer_is_refused():
    layer = built(kl.Dense(3), 4)
    layer.quantize("int8")
    before = [np.asarray(weight).tolist() for weight in layer.weights]
    with pytest.raises(errors.OptionError, match=r"LoRA or quantization.*initialise it first"):
        idi_layer_(layer)
    assert [np.asarray(weight).tolist() for weight in layer.weights] == before


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"gain": 0}, errors.OptionError, ["gain = 0", "non-zero"]),
        ({"wide": "fold"}, errors.OptionError, ["wide = 'fold'", "pick one"]),
        ({"taps": "middle"}, errors.OptionError, ["taps = 'middle'", "pick one"]),
        (
            {"taps": "channel_major", "tap": (1, 1)},
            errors.OptionError,
            ["tap = (1, 1)", "use taps='outward'"],
        ),
        ({"tap": (1,)}, errors.OptionError, ["tap = (1,)", "order D, H, W"]),
        ({"loosen_at": "entries"}, errors.OptionError, ["loosen_at = 'entries'", "loosen"]),
        ({"tap": (3, 0)}, errors.OptionError, ["tap = (3, 0)", "0 to k - 1"]),
        ({"gain": 1e300}, errors.RoundingError, ["gain = 1e+300", "smaller"]),
        ({"loosen": 3e38}, errors.RoundingError, ["gain + noise", "smaller"]),
    ],
)
def test_a_wrong_option_leaves_the_layer_alone(options, error, parts):
    layer = built(kl.Conv2D(5, 3), 5, 6, 4)
    with pytest.raises(error) as caught:
        idi_layer_(layer, **options)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert untouched(layer)


def test_a_wrong_role_is_refused():
    with pytest.raises(errors.OptionError, match=r"role = 'nought'.*'transit', 'zero'"):
        layer_plans(built(kl.Dense(3), 4), "nought")


def test_an_error_in_the_last_weight_leaves_the_first_alone():
    layer = attention()
    with pytest.raises(errors.RoundingError, match=r"eps = 1e-60"):
        idiz_layer_(layer, eps=1e-60)
    assert untouched(layer)
