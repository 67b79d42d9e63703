"""Theorem T15 through Keras' transposed convolutions, and one layer alone against a whole model.

Runs on any backend of Keras; at its end it runs itself on JAX and on PyTorch.
"""

from __future__ import annotations

import math
import os
import re

import numpy as np
import pytest

import by_hand

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers as kl

import idinit_ref_tensorflow as it
from idinit_ref_tensorflow import idi_layer_, idiz_layer_, layer_plans

pytestmark = pytest.mark.filterwarnings(  # Keras (3.15) reads PyTorch's tensors with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
BACKEND = keras.backend.backend()
TRANSPOSED = {1: kl.Conv1DTranspose, 2: kl.Conv2DTranspose, 3: kl.Conv3DTranspose}
SIDES = (4, 5, 3)
SPACE = {1: "W", 2: "HW", 3: "DHW"}


@pytest.fixture(autouse=True)
def _cheap_layers(monkeypatch):
    """Spare JAX a compilation for the random values of each shape, which no test looks at."""

    def sevens(self, shape, dtype=None):
        return np.full(shape, 7.0, dtype)

    monkeypatch.setattr(keras.initializers.GlorotUniform, "__call__", sevens)


def image(channels, dims, samples=2):
    """Reproducible numbers of both signs, none of them 0."""
    shape = samples, *SIDES[:dims], channels
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def numpy(tensor):
    tensor = getattr(tensor, "value", tensor)  # of a variable
    return np.asarray(tensor.detach() if BACKEND == "torch" else tensor)


def run(layer, x):
    return numpy(layer(x))


def stored(layer):
    return numpy(layer.kernel)


def transposed(dims, into, out, options):
    options = {
        key: value[:dims] if isinstance(value, tuple) else value for key, value in options.items()
    }
    layer = TRANSPOSED[dims](out, **options)
    layer.build((None, *SIDES[:dims], into))
    return layer


def upsampled(x, strides):
    """Nearest-neighbour upsampling: y[s*j + r] = x[j]."""
    for axis, times in enumerate(strides):
        x = np.repeat(x, times, axis + 1)
    return x


def split(y, sides):
    """The places of an upsampled picture of these sides, and all the later ones."""
    here = (slice(None), *map(slice, sides))
    later = y.copy()
    later[here] = 0
    return y[here], later


# Where padding and stride fit into the kernel: p + s <= k.
UP = {
    "k4-s2-same": {"kernel_size": 4, "strides": 2, "padding": "same"},
    "k4-s2-valid": {"kernel_size": 4, "strides": 2},
    "k3-s2-same": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "k3-s2-same-op1": {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
    "k3-s2-valid-op1": {"kernel_size": 3, "strides": 2, "output_padding": 1},
    "k2-s2": {"kernel_size": 2, "strides": 2},
    "k3-s3": {"kernel_size": 3, "strides": 3, "padding": "same"},
    "k5-s3-same": {"kernel_size": 5, "strides": 3, "padding": "same"},
    "k5-s3-same-op2": {"kernel_size": 5, "strides": 3, "padding": "same", "output_padding": 2},
    "k3-s1-valid": {"kernel_size": 3},
    "unequal-same": {"kernel_size": (4, 3, 2), "strides": (2, 3, 1), "padding": "same"},
    "unequal-valid": {"kernel_size": (5, 2, 3), "strides": (3, 1, 2)},
}
if BACKEND != "tensorflow":  # it knows no output that the next input should have begun
    UP["k3-s2-same-op0"] = {**UP["k3-s2-same"], "output_padding": 0}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("into", "out"), [(5, 3), (3, 3)])
@pytest.mark.parametrize("name", UP)
def test_t15_nearest_neighbour_upsampling(name, into, out, dims):
    layer = idi_layer_(transposed(dims, into, out, UP[name]))
    x = image(into, dims)
    want = upsampled(x[..., :out], layer.strides)
    y, later = split(run(layer, x), want.shape[1:-1])
    assert np.array_equal(y, want[tuple(map(slice, y.shape))])
    assert not later.any()
    if y.shape == want.shape:
        assert np.isclose(y.var(), x[..., :out].var())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("into", "out"), [(3, 5), (2, 9)])
@pytest.mark.parametrize("name", UP)
def test_t15_with_more_outputs_the_first_are_upsampled(name, into, out, dims):
    layer = idi_layer_(transposed(dims, into, out, UP[name]))
    x = image(into, dims)
    want = upsampled(x, layer.strides)
    y, _ = split(run(layer, x)[..., :into], want.shape[1:-1])
    assert np.array_equal(y, want[tuple(map(slice, y.shape))])


def test_t15_with_more_outputs_the_next_are_its_neighbours():
    """Kernel 4, stride 2: each phase has two taps, on either side of the place."""
    x = image(3, 1)
    y = run(idi_layer_(transposed(1, 3, 6, UP["k4-s2-same"])), x)
    assert np.array_equal(y[:, 2::2, 3:], x[:, :-1])  # before the place
    assert np.array_equal(y[:, 1:-1:2, 3:], x[:, 1:])  # behind it


def possible():
    """All small transposed convolutions that Keras' backend runs."""
    for kernel in range(1, 7):
        for stride in range(1, 5):
            for more in (None, *range(stride)):
                clash = kernel % 2 + (more or 0) == 0 or kernel % 2 + (more or 0) > stride
                if more is not None and clash and BACKEND == "tensorflow":
                    continue
                yield kernel, stride, "same", more
            yield kernel, stride, "valid", None


@pytest.mark.parametrize(("kernel", "stride", "padding", "more"), list(possible()), ids=str)
def test_t15_in_every_phase_an_input_lies_as_near_as_a_tap_allows(kernel, stride, padding, more):
    """Each tap is tried alone: it puts input j at stride * j + t - p, and that measures p."""
    options = {"strides": stride, "padding": padding, "output_padding": more}
    layer = transposed(1, 3, 2, {"kernel_size": kernel, **options})
    layer.bias.assign(np.zeros(2))
    alone = np.zeros((1, SIDES[0], 3), np.float32)
    alone[0, 1, 0] = 1
    lefts = set()
    for tap in range(kernel):
        weight = np.zeros((kernel, 2, 3))
        weight[tap, 0, 0] = 1
        layer.kernel.assign(weight)
        lefts |= {stride + tap - int(place) for place in np.flatnonzero(run(layer, alone)[0, :, 0])}
    (left,) = lefts

    x = image(3, 1)
    y = run(idi_layer_(layer), x)
    for place in range(y.shape[1]):
        phase = place % stride
        taps = [t for t in range(kernel) if (place + left - t) % stride == 0]
        t = min(taps, key=lambda t: abs(t - left - phase), default=None)
        j = -1 if t is None else (place + left - t) // stride
        want = x[:, j, :2] if 0 <= j < x.shape[1] else np.zeros_like(x[:, 0, :2])
        assert np.array_equal(y[:, place], want), place


if BACKEND != "tensorflow":  # TensorFlow's CPU kernels know no dilated transposed convolution

    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize(("kernel", "dilation"), [(3, 2), (5, 3), (3, 3)])
    def test_t15_dilation(kernel, dilation, padding):
        options = {"kernel_size": kernel, "dilation_rate": dilation, "padding": padding}
        layer = idi_layer_(transposed(2, 4, 3, options))
        assert layer_plans(layer)["kernel"].stride is None
        x = image(4, 2)
        y, later = split(run(layer, x), x.shape[1:-1])
        assert np.array_equal(y, x[..., :3])
        assert not later.any()

    @pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 3), (4, 4, 6), (3, 4, 2)])
    def test_t15_dilation_and_stride(kernel, stride, dilation):
        """Keras' layers refuse both together, its operation does not."""
        phases = stride // math.gcd(stride, dilation)
        given = {"layout": "WOI", "stride": (phases,), "tap": (0,)}
        weight = it.IDI(**given)((kernel, 3, 4))
        x = image(4, 1)
        y = keras.ops.conv_transpose(x, weight, stride, "valid", dilation_rate=dilation)
        y = numpy(y)
        want = np.zeros_like(y)
        for r in range(min(phases, kernel)):  # input j goes to s*j + d*r
            for j in range(x.shape[1]):
                want[:, stride * j + dilation * r] = x[:, j, :3]
        assert np.array_equal(y, want)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", ["diagonal", "center"])
def test_t15_the_other_orders_with_phases_upsample_too(taps, dims):
    """Center: exactly. Diagonal: channel 0, which is at the identity tap of each phase."""
    layer = idi_layer_(transposed(dims, 4, 3, UP["k4-s2-same"]), taps=taps)
    x = image(4, dims)
    channels = 3 if taps == "center" else 1
    assert np.array_equal(
        run(layer, x)[..., :channels], upsampled(x, layer.strides)[..., :channels]
    )


@pytest.mark.parametrize("taps", ["channel_major", "spatial_major"])
@pytest.mark.parametrize("verb", [idi_layer_, idiz_layer_])
def test_the_corner_orders_know_no_phases(verb, taps):
    strided = verb(transposed(2, 4, 6, UP["k4-s2-same"]), taps=taps)
    flat = verb(transposed(2, 4, 6, {"kernel_size": 4}), taps=taps)
    assert np.array_equal(stored(strided), stored(flat))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("into", "out"), [(5, 3), (3, 5)])
@pytest.mark.parametrize("name", UP)
def test_a_branch_that_ends_in_a_transposed_convolution_adds_nothing(name, into, out, dims):
    """Each phase has +eps and -eps in every row, of the same size: equal inputs cancel."""
    layer = idiz_layer_(transposed(dims, into, out, UP[name]), eps=0.5)
    y = run(layer, np.ones((1, *(9 for _ in range(dims)), into), np.float32))
    inner = (slice(None), *(slice(5, 8) for _ in range(dims)))
    assert not y[inner].any()
    assert np.all(np.abs(stored(layer)).sum(axis=(*range(dims), -1)) > 0)


# Bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("k4-s2-same", (1, 1, 1)),
        ("k4-s2-valid", (0, 0, 0)),
        ("k5-s3-same-op2", (1, 1, 1)),
        ("unequal-same", (1, 0, 0)),
    ],
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_the_bits_of_a_transposed_kernel(role, name, tap, dims):
    verb = idi_layer_ if role == "transit" else idiz_layer_
    layer = verb(transposed(dims, 3, 5, UP[name]))
    options = {"layout": SPACE[dims] + "OI", "stride": layer.strides, "tap": tap[:dims]}
    want = by_hand.weight(tuple(layer.kernel.shape), role, **options).astype(np.float32)
    assert np.array_equal(stored(layer), want)
    assert not numpy(layer.bias).any()
    make = it.IDI if role == "transit" else it.IDIZ
    made = numpy(make(**options)(tuple(layer.kernel.shape)))
    assert np.array_equal(made, want)


SAME_LAYERS = {
    "conv1d-same": lambda: kl.Conv1D(5, 4, padding="same"),
    "conv1d-causal": lambda: kl.Conv1D(5, 3, padding="causal", dilation_rate=2),
    "conv1d-strided": lambda: kl.Conv1D(5, 3, 2, "same"),
    "conv2d-valid": lambda: kl.Conv2D(5, 3),
    "conv2d-strided": lambda: kl.Conv2D(5, (3, 4), (2, 3), "same"),
    "conv2d-dilated": lambda: kl.Conv2D(5, 3, dilation_rate=2, padding="same"),
    "conv2d-dilated-even": lambda: kl.Conv2D(5, (2, 4), dilation_rate=(3, 1), padding="same"),
    "conv2d-grouped": lambda: kl.Conv2D(8, 3, 2, "same", groups=2),
    "conv3d-strided": lambda: kl.Conv3D(5, 3, 2, "same"),
    "depthwise1d": lambda: kl.DepthwiseConv1D(3, 2, "same"),
    "depthwise2d": lambda: kl.DepthwiseConv2D(3, 2, "same", depth_multiplier=2),
    "depthwise2d-dilated": lambda: kl.DepthwiseConv2D(3, 1, "same", dilation_rate=2),
    "depthwise2d-strided-dilated": lambda: kl.DepthwiseConv2D(3, 2, "same", dilation_rate=2),
    "separable1d": lambda: kl.SeparableConv1D(6, 3, 2, "same"),
    "separable2d": lambda: kl.SeparableConv2D(6, 4, 2, "same"),
    **{
        f"{name}-{dims}d": lambda name=name, dims=dims: transposed(dims, 4, 5, UP[name])
        for name in UP
        for dims in (1, 2, 3)
    },
}


@pytest.mark.parametrize("taps", ["outward", "diagonal"])
@pytest.mark.parametrize("name", SAME_LAYERS)
def test_a_layer_alone_and_in_a_model_has_the_same_bits(name, taps):
    layer = SAME_LAYERS[name]()
    x = keras.Input((*(8, 7, 6)[: layer.rank], 4))
    model = keras.Model(x, layer(x))
    it.init_(model, taps=taps)
    whole = [numpy(v) for v in model.weights]
    idi_layer_(layer, taps=taps)
    alone = [numpy(v) for v in model.weights]
    assert all(np.any(a) for a in alone if a.ndim > 1)
    assert all(map(np.array_equal, whole, alone))


class Bare(kl.Layer):
    """A kernel of one's own in an operation: nobody tells the tracer that it is one."""

    def __init__(self, layer):
        super().__init__()
        self.kernel = self.add_weight(shape=tuple(layer.kernel.shape), name="kernel")
        self.how = {
            "strides": layer.strides,
            "padding": layer.padding,
            "dilation_rate": layer.dilation_rate,
        }
        self.operation = keras.ops.conv
        if "Transpose" in type(layer).__name__:
            self.how["output_padding"] = layer.output_padding
            self.operation = keras.ops.conv_transpose

    def call(self, x):
        return self.operation(x, self.kernel, **self.how)


if BACKEND == "tensorflow":  # elsewhere an operation with a variable of one's own is not traced

    @pytest.mark.parametrize(
        "name", [n for n in SAME_LAYERS if re.match("conv|k|unequal", n) and "causal" not in n]
    )
    def test_an_operation_of_ones_own_has_the_bits_of_the_layer(name):
        layer = SAME_LAYERS[name]()
        shape = (*(8, 7, 6)[: layer.rank], 4)
        if not layer.built:
            layer.build((None, *shape))
        bare = Bare(layer)
        x = keras.Input(shape)
        report = it.init_(keras.Model(x, bare(x)))
        assert [entry.role for entry in report.entries] == ["transit"]
        assert np.array_equal(stored(bare), stored(idi_layer_(layer)))
