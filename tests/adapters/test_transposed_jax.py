"""Theorems T14 and T15 through the real layers of JAX: kernels that leave the image in its place.

Images are integers, so every product and sum is exact. No number of a kernel is asked for: a layer
acts on an image, and the result is compared with the image.
"""

import itertools
import math
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import idinit_ref_jax as ij


def image(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(-99, 100, shape), jnp.float32)


def sevens(key, shape, dtype):
    """What is to be overwritten."""
    del key
    return jnp.asarray(np.full(shape, 7), dtype)


def start():
    return {"kernel_init": sevens, "bias_init": sevens, "rngs": nnx.Rngs(0)}


def ids(cases):
    return [" ".join(map(str, case)).replace("'", "") for case in cases]


# Real layers, each initialised by every way there is ----------------------------------------


def by_layer(layer, x, **options):
    return ij.idi_layer_(layer, **options)(x)


def by_model(layer, x, **options):
    return ij.init(layer, x, **options)[0](x)


def of_linen(module, x, **options):
    variables = module.init(jax.random.key(0), x)
    return module.apply(ij.init(variables, x, module.apply, **options)[0], x)


def of_equinox(layer, x, **options):
    """Equinox puts channels first, and has no axis of images."""
    moved = jnp.moveaxis(x[0], -1, 0)
    return jnp.moveaxis(ij.init(layer, moved, **options)[0](moved), 0, -1)[None]


# T14: outward ---------------------------------------------------------------------------------

SAME_SIZE = [
    *(((k,), 1, pad) for k in (1, 2, 3, 4, 5) for pad in ("SAME", "CIRCULAR", "REFLECT")),
    ((3,), 2, "CAUSAL"),
    ((4,), 1, "SAME_LOWER"),
    ((3,), 2, "SAME"),
    ((3, 3), 1, "SAME"),
    ((4, 2), 1, "SAME"),
    ((5, 3), 1, [(4, 0), (0, 2)]),
    ((3, 2), (2, 1), "CIRCULAR"),
    ((3, 2, 1), 1, "SAME"),
    ((2, 3, 3), 1, "SAME"),
]


@pytest.mark.parametrize("number", range(len(SAME_SIZE)), ids=ids(SAME_SIZE).__getitem__)
def test_t14_the_first_outputs_are_the_image(number):
    """At every place of the image; for fewer, as many and more outputs than inputs in turn."""
    (kernel, dilation, padding), n, m = SAME_SIZE[number], 3, (2, 3, 6, 7)[number % 4]
    x = image(1, *(7, 6, 5)[: len(kernel)], n)
    layer = nnx.Conv(n, m, kernel, kernel_dilation=dilation, padding=padding, **start())
    y = by_layer(layer, x)
    assert y.shape[:-1] == x.shape[:-1]
    np.testing.assert_array_equal(y[..., : min(n, m)], x[..., : min(n, m)])
    np.testing.assert_array_equal(by_model(layer, x), y)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_t14_in_linen_and_equinox(axes):
    kernel, x, m = (3, 4, 2)[:axes], image(1, *(6, 5, 4)[:axes], 3), (2, 3, 5)[axes - 1]
    y = of_linen(nn.Conv(m, kernel), x)
    np.testing.assert_array_equal(y[..., : min(m, 3)], x[..., : min(m, 3)])
    told = nn.Conv(m, kernel, kernel_init=ij.idi(tap=tuple((k - 1) // 2 for k in kernel)))
    np.testing.assert_array_equal(told.init_with_output(jax.random.key(0), x)[0], y)
    layer = eqx.nn.Conv(axes, 3, m, kernel, padding="SAME", key=jax.random.key(0))
    np.testing.assert_array_equal(of_equinox(layer, x), y)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_t14_in_groups(groups):
    """Each group passes its own channels first; depthwise needs nothing special."""
    x, n, m = image(2, 6, 5, 4), 4, 8
    y = by_layer(nnx.Conv(n, m, (3, 3), feature_group_count=groups, **start()), x)
    first = np.reshape(y, (2, 6, 5, groups, m // groups))[..., : n // groups]
    np.testing.assert_array_equal(np.reshape(first, x.shape), x)


@pytest.mark.parametrize("order", ["outward", "diagonal", "center", "channel_major"])
def test_t14_how_many_channels_a_chain_keeps(order):
    """Those inputs that some output depends on, by feeding one channel after the other."""
    channels, k, depth = 10, 3, 3
    chain = [
        ij.idi_layer_(nnx.Conv(channels, channels, k, padding="CIRCULAR", **start()), taps=order)
        for _ in range(depth)
    ]
    x = image(channels, 9, 1) * jnp.eye(channels)[:, None, :]  # image c has channel c alone
    for after in range(1, depth + 1):
        x = chain[after - 1](x)
        kept = int(np.any(x, axis=(1, 2)).sum())
        lost = order == "channel_major"
        assert kept == (math.ceil(channels / k**after) if lost else channels)


def test_t14_channel_major_moves_the_image_out_of_sight():
    """One place in each layer of kernel 3, where outward moves none: what is left at the edge."""
    x, layers = image(1, 9, 1), 4
    for order, moved in (("channel_major", layers), ("outward", 0)):
        y = x
        for _ in range(layers):
            y = by_layer(nnx.Conv(1, 1, 3, **start()), y, taps=order)
        np.testing.assert_array_equal(y[:, moved:], x[:, : 9 - moved], order)
        assert not np.any(y[:, :moved])


def test_t14_diagonal_moves_each_channel_its_own_way():
    """The same way in every layer, so twice as far in two; nothing is lost on a circle."""
    channels, size = 7, 11
    layer = ij.idi_layer_(nnx.Conv(channels, channels, 3, padding="CIRCULAR", **start()),
                          taps="diagonal")  # fmt: skip
    x = image(1, size, channels)
    once = layer(x)
    twice, ways = layer(once), []
    for c in range(channels):
        found = [by for by in (-1, 0, 1)
                 if np.array_equal(once[0, :, c], np.roll(x[0, :, c], by))]  # fmt: skip
        assert len(found) == 1
        want = np.roll(x[0, :, c], 2 * found[0])
        np.testing.assert_array_equal(twice[0, :, c], want, f"channel {c}")
        ways += found
    assert set(ways) == {-1, 0, 1}


# T15: transposed kernels ----------------------------------------------------------------------


def check_upsampling(x, y, kernel, strides):
    """Output stride * j + r is input j in the first channels; all else is 0.

    A phase r without taps is 0, too. `y` may end before its last phases.
    """
    channels = min(x.shape[-1], y.shape[-1])
    x, y = np.asarray(x)[..., :channels], np.asarray(y)[..., :channels]
    want = np.zeros_like(y)
    for phase in itertools.product(*(range(min(s, k)) for s, k in zip(strides, kernel,
                                                                      strict=True))):  # fmt: skip
        at = [slice(r, None, s) for r, s in zip(phase, strides, strict=True)]
        room = want[(slice(None), *at)]
        both = [slice(min(a, b)) for a, b in zip(room.shape[1:-1], x.shape[1:-1], strict=True)]
        room[(slice(None), *both)] = x[(slice(None), *both)]
    np.testing.assert_array_equal(y, want)


# kernel, strides and padding, as Flax takes them: numbers pad the spread input, so 2 before and
# after a kernel of 4 is what PyTorch calls padding 1.
UPSAMPLING = [
    ((4,), (2,), [(2, 2)]),
    ((4, 4), (2, 2), [(2, 2), (2, 2)]),
    ((4, 4), (2, 2), "SAME"),
    ((4, 4), (2, 2), "VALID"),
    ((4, 4, 4), (2, 2, 2), 2),
    ((3,), (2,), "SAME"),
    ((3, 3), (2, 2), "SAME"),
    ((3, 3), (2, 2), "VALID"),
    ((3, 3), (2, 2), [(1, 2), (1, 2)]),
    ((3, 3, 3), (2, 2, 2), "SAME"),
    ((2,), (2,), "SAME"),
    ((2, 2), (2, 2), "SAME"),
    ((2, 2), (2, 2), "VALID"),
    ((2, 2, 2), (2, 2, 2), "SAME"),
    ((3,), (3,), "VALID"),
    ((5,), (3,), "SAME"),
    ((6, 4), (3, 3), "SAME"),
    ((4, 3), (2, 3), "SAME"),
    ((3, 5), (1, 2), "VALID"),
    ((2, 3, 4), (1, 3, 2), "SAME"),
    ((2,), (3,), "SAME"),
    ((1, 2), (2, 4), "VALID"),
    ((4,), (2,), "CIRCULAR"),
    ((3, 4), (2, 2), "CIRCULAR"),
    ((3,), (1,), "SAME"),
    ((4, 2), (1, 1), "VALID"),
]


@pytest.mark.parametrize("flipped", [False, True], ids=["as it is", "transpose_kernel"])
@pytest.mark.parametrize("number", range(len(UPSAMPLING)), ids=ids(UPSAMPLING).__getitem__)
def test_t15_a_transposed_kernel_repeats_every_place(number, flipped):
    """In as many outputs as there are inputs, if there are so many."""
    (kernel, strides, padding), n, m = UPSAMPLING[number], 4, (3, 4, 1, 6)[number % 4]
    x = image(1, *(5, 4, 3)[: len(kernel)], n)
    layer = nnx.ConvTranspose(n, m, kernel, strides, padding=padding, transpose_kernel=flipped,
                              **start())  # fmt: skip
    check_upsampling(x, by_layer(layer, x), kernel, strides)
    new, _ = ij.init(layer, x)
    np.testing.assert_array_equal(new.kernel[...], layer.kernel[...])


@pytest.mark.parametrize("flipped", [False, True], ids=["as it is", "transpose_kernel"])
@pytest.mark.parametrize(
    ("kernel", "strides", "dilation", "sizes"),
    [
        ((4,), 1, 1, (3,)),
        ((7,), 2, 1, (2,)),
        ((5,), 1, 2, (4,)),
        ((3, 3), 1, 1, (4, 4)),
        ((2, 3), (3, 1), 1, (3, 4)),
        ((3, 2, 2), (2, 3, 1), (2, 2, 1), (3, 1, 3)),
        ((3, 3, 3), (2, 3, 1), 1, (4, 5, 5)),
    ],
    ids=str,
)
def test_a_circle_shorter_than_its_kernel(kernel, strides, dilation, sizes, flipped):
    """The layer knows its padding; a whole model sees that its results are wrapped around."""
    given = {"strides": strides, "kernel_dilation": dilation, "transpose_kernel": flipped,
             "use_bias": False}  # fmt: skip
    make = partial(nnx.ConvTranspose, 2, 2, kernel, padding="CIRCULAR", **given)
    x = image(1, *sizes, 2)
    layer = ij.idi_layer_(make(**start()))
    new, _ = ij.init(make(**start()), x)
    np.testing.assert_array_equal(new(x), layer(x))


@pytest.mark.parametrize("flipped", [False, True], ids=["as it is", "transpose_kernel"])
@pytest.mark.parametrize(
    ("kernel", "strides"), [((4,), (2,)), ((3, 4), (2, 3)), ((2, 2, 3), (2, 1, 2))], ids=str
)
def test_t15_in_linen(kernel, strides, flipped):
    """By a whole model, and by an initialiser that is told what the layer is."""
    x = image(1, *(5, 4, 3)[: len(kernel)], 3)
    module = partial(nn.ConvTranspose, 2, kernel, strides, "VALID", transpose_kernel=flipped)
    y = of_linen(module(), x)
    check_upsampling(x, y, kernel, strides)
    axes = {"in_axis": -1, "out_axis": -2} if flipped else {}
    init = ij.idi(
        **axes,
        stride=strides if flipped else tuple(-s for s in strides),
        tap=(0,) * len(kernel) if flipped else tuple(k - 1 for k in kernel),
    )
    told, _ = module(kernel_init=init).init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(told, y)


EQUINOX = [
    ((4,), (2,), 1, 0),
    ((3,), (2,), 1, 1),
    ((2, 2), (2, 2), 0, 0),
    ((4, 4), (2, 2), 1, 0),
    ((3, 3), (2, 2), 1, 1),
    ((4, 5), (2, 3), 1, 0),
    ((3, 3), (2, 2), "SAME", 0),
    ((4, 4), (2, 2), "SAME_LOWER", 0),
    ((4, 4, 4), (2, 2, 2), 1, 0),
]


@pytest.mark.parametrize("number", range(len(EQUINOX)), ids=ids(EQUINOX).__getitem__)
def test_t15_in_equinox(number):
    """Its paddings are those of PyTorch; one group and two in turn."""
    (kernel, strides, padding, more), groups = EQUINOX[number], number % 2 + 1
    x, m = image(1, *(5, 4, 3)[: len(kernel)], 4), 2
    layer = eqx.nn.ConvTranspose(len(kernel), 4, m, kernel, strides, padding, more, groups=groups,
                                 key=jax.random.key(0))  # fmt: skip
    y = of_equinox(layer, x)
    pads = [pair[0] for pair in layer.padding] if not isinstance(layer.padding, str) else None
    if pads is None or all(p + s <= k for p, s, k in zip(pads, strides, kernel, strict=True)):
        own = np.reshape(x, (*x.shape[:-1], groups, -1))[..., : m // groups]
        check_upsampling(np.reshape(own, (*x.shape[:-1], m)), y, kernel, strides)
    else:  # kernel 3, stride 2, padding 1: the last phase has its nearest tap, one place off
        assert np.any(y)


def test_t15_a_phase_beyond_the_kernel_gets_its_nearest_tap():
    """PyTorch's padding 1 with kernel 3 and stride 2: tap 1, and tap 2 between, are both there."""
    x = image(1, 5, 1)
    layer = nnx.ConvTranspose(1, 1, 3, 2, padding=[(0, 1)], **start())
    y = np.asarray(by_layer(layer, x))[0, :, 0]
    np.testing.assert_array_equal(y[::2], np.asarray(x)[0, : y[::2].size, 0])
    np.testing.assert_array_equal(y[1::2], np.asarray(x)[0, 1 : y[1::2].size + 1, 0])


# kernel, stride, dilation, padding, and at which outputs stride * j + ... input j stands. Taps
# are 'dilation' apart, so with a common divisor of both some outputs have no tap at all.
DILATED = [
    ((3,), (2,), (2,), [(4, 4)], [(0,)]),
    ((3,), (2,), (2,), [(3, 3)], [(1,)]),
    ((3,), (2,), (3,), [(6, 6)], [(0,), (3,)]),
    ((2,), (3,), (2,), [(2, 2)], [(0,), (2,)]),
    ((4,), (4,), (2,), [(6, 6)], [(0,), (2,)]),
    ((3, 3), (2, 1), (2, 2), [(4, 4), (2, 2)], [(0, 0)]),
]


@pytest.mark.parametrize("flipped", [False, True], ids=["as it is", "transpose_kernel"])
@pytest.mark.parametrize(
    ("kernel", "strides", "dilation", "padding", "places"), DILATED, ids=ids(DILATED)
)
def test_t15_of_a_dilated_kernel(kernel, strides, dilation, padding, places, flipped):
    x = image(1, *(5, 4)[: len(kernel)], 3)
    layer = nnx.ConvTranspose(3, 2, kernel, strides, padding=padding, kernel_dilation=dilation,
                              transpose_kernel=flipped, **start())  # fmt: skip
    y = np.asarray(by_layer(layer, x))
    want = np.zeros_like(y)
    for place in itertools.product(*map(range, x.shape[1:-1])):
        for first in places:
            at = tuple(s * j + r for s, j, r in zip(strides, place, first, strict=True))
            if all(a < size for a, size in zip(at, y.shape[1:-1], strict=True)):
                want[(0, *at)] = x[(0, *place)][:2]
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(by_model(layer, x), y)


def test_t15_of_a_convolution_that_spreads_its_input():
    """`input_dilation` of a Conv is the stride of a transposed one."""
    x = image(1, 5, 4, 3)
    layer = nnx.Conv(3, 2, (4, 3), padding=[(3, 3), (2, 2)], input_dilation=(2, 3), **start())
    y = by_layer(layer, x)
    check_upsampling(x, y, (4, 3), (2, 3))
    np.testing.assert_array_equal(by_model(layer, x), y)


def test_t15_of_the_gradient_of_a_convolution():
    """A decoder that runs an encoder's convolution backwards: the kernel is read reversed."""

    def down(w, y):
        numbers = ("NHWC", "HWOI", "NHWC")
        return jax.lax.conv_general_dilated(y, w, (2, 2), "VALID", dimension_numbers=numbers)

    def up(params, x):
        like = jnp.zeros((1, 2 * x.shape[1] + 1, 2 * x.shape[2] + 1, 3))
        return jax.vjp(lambda y: down(params["w"], y), like)[1](x)[0]

    x = image(1, 4, 5, 3)
    new, _ = ij.init({"w": jnp.ones((3, 3, 3, 3))}, x, up)
    check_upsampling(x, up(new, x), (3, 3), (2, 2))


@pytest.mark.parametrize("order", ["outward", "diagonal", "center"])
def test_t15_phases_of_every_order_keep_the_variance(order):
    """Each phase is an identity of the channels, so no place of the output is empty."""
    layer = nnx.ConvTranspose(5, 5, (4, 4), (2, 2), padding="SAME", **start())
    y = by_layer(layer, image(1, 6, 6, 5), taps=order)
    for phase in itertools.product(range(2), repeat=2):
        part = y[0, phase[0] :: 2, phase[1] :: 2]
        assert np.all(np.any(part[1:-1, 1:-1], axis=-1))


@pytest.mark.parametrize("order", ["channel_major", "spatial_major"])
def test_the_corner_orders_know_no_phases(order):
    layer = nnx.ConvTranspose(3, 5, (4, 3), (2, 2), padding="SAME", **start())
    plan = ij.layer_plans(layer, taps=order)["kernel"]
    assert plan.tap is None
    np.testing.assert_array_equal(plan.build(), ij.idi(taps=order)(None, (4, 3, 3, 5)))
    assert ij.plans(layer, image(1, 4, 4, 3), taps=order)["kernel"] == plan


def test_zero_kernels_have_phases_too():
    """+eps and -eps of neighbouring channels in each phase: a constant image gives 0 everywhere."""
    layer = nnx.ConvTranspose(3, 5, (4, 4), (2, 2), padding="SAME", **start())
    ij.idiz_layer_(layer, eps=0.5)
    y = layer(image(1, 4, 4, 3))
    assert np.any(y[:, ::2, ::2]) and np.any(y[:, 1::2, 1::2]) and np.any(y[:, ::2, 1::2])  # noqa: PT018
    flat = jnp.ones((1, 6, 6, 3))
    assert not np.any(layer(flat)[:, 2:-2, 2:-2])


# The layer call and the whole model -----------------------------------------------------------

STRIDED = [
    (nnx.Conv, {"strides": 2, "padding": "SAME"}),
    (nnx.Conv, {"strides": 2, "padding": "SAME_LOWER"}),
    (nnx.Conv, {"strides": 4, "padding": "SAME"}),
    (nnx.Conv, {"strides": 2, "padding": "CIRCULAR"}),
    (nnx.Conv, {"strides": 2, "padding": "REFLECT"}),
    (nnx.Conv, {"strides": (1, 2), "padding": 2}),
    (nnx.Conv, {"padding": [(7, 7), (0, 9)]}),
    (nnx.Conv, {"padding": [(3, 3), (1, 1)], "kernel_dilation": 2}),
    (nnx.Conv, {"padding": [(3, 2), (2, 3)], "input_dilation": (2, 1)}),
    (nnx.ConvTranspose, {"strides": 2, "padding": "CIRCULAR"}),
    (nnx.ConvTranspose, {"strides": 2, "padding": "CIRCULAR", "transpose_kernel": True}),
    (nnx.ConvTranspose, {"strides": 2, "padding": [(9, 9), (0, 0)]}),
    (nnx.ConvTranspose, {"strides": (2, 3), "padding": "SAME", "kernel_dilation": (3, 3)}),
]


@pytest.mark.parametrize("size", [(3, 3), (4, 5)], ids=str)
@pytest.mark.parametrize("number", range(len(STRIDED)), ids=ids(STRIDED).__getitem__)
def test_a_layer_call_and_a_whole_model_agree_on_every_bit(number, size):
    """Also where no tap is the identity: the nearest one is, and nothing is refused."""
    kind, options = STRIDED[number]
    layer, x = kind(3, 5, size, **options, **start()), image(1, 8, 8, 3)
    new, _ = ij.init(layer, x)
    ij.idi_layer_(layer)
    np.testing.assert_array_equal(new.kernel[...], layer.kernel[...])
