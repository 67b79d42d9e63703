"""Theorems T14 and T15 through PyTorch's convolutions, strided and transposed."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from idinit_ref import plan
from idinit_ref_torch import idi_, idi_layer_, idiz_layer_, init_, layer_plans, plans

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIDES = (6, 7, 5)


def image(channels, dims, samples=2):
    """Reproducible numbers of both signs, none of them 0."""
    shape = samples, channels, *SIDES[:dims]
    return torch.tensor(np.random.default_rng(0).standard_normal(shape), dtype=torch.float32)


def passed(layer):
    """The input channel that the first outputs of each group are, and where these outputs lie."""
    m, n = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    pairs = [(g * m + i, g * n + i) for g in range(layer.groups) for i in range(min(m, n))]
    return tuple(map(list, zip(*pairs, strict=True)))


# T14: convolutions --------------------------------------------------------------------------------

CHANNELS = [(3, 5, 1), (5, 3, 1), (2, 40, 1), (4, 6, 2), (6, 4, 2), (4, 8, 4), (3, 3, 3)]
MODES = ["zeros", "reflect", "replicate", "circular"]


def groups_named(channels):
    return "{}-to-{}-in-{}".format(*channels)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kernel", "dilation"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (3, 2), (3, 4), (5, 2)]
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_t14_same_padding_of_every_mode(mode, kernel, dilation):
    """For an even kernel one place more is padded on the right, so the tap left of the middle."""
    layer = nn.Conv1d(3, 5, kernel, padding="same", dilation=dilation, padding_mode=mode)
    x = image(3, 1)
    assert torch.equal(idi_layer_(layer)(x)[:, :3], x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", CHANNELS, ids=groups_named)
@pytest.mark.parametrize("mode", MODES)
def test_t14_the_first_outputs_are_the_image(dims, channels, mode):
    into, out, groups = channels
    kernel, dilation = (3, 5, 3)[:dims], (2, 1, 1)[:dims]
    padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    options = {"padding": padding, "dilation": dilation, "padding_mode": mode}
    layer = idi_layer_(CONV[dims](into, out, kernel, groups=groups, **options))
    x = image(into, dims)
    ours, theirs = passed(layer)
    assert torch.equal(layer(x)[:, ours], x[:, theirs])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_t14_as_many_outputs_as_inputs_are_an_isometry(dims):
    x = image(4, dims)
    assert torch.equal(idi_layer_(CONV[dims](4, 4, 3, padding=1))(x), x)


def test_t14_more_outputs_are_its_neighbours_the_nearest_first():
    """Output q*C + c is channel c, moved by the tap of rank q: by what the picture has there."""
    layer = idi_layer_(nn.Conv2d(2, 18, 3, padding=1))
    x = image(2, 2)
    ranks = sorted(itertools.product([-1, 0, 1], repeat=2), key=lambda at: at[0] ** 2 + at[1] ** 2)
    around = nn.functional.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    want = [around[:, :, 1 + a : 1 + a + height, 1 + b : 1 + b + width] for a, b in ranks]
    assert torch.equal(layer(x), torch.cat(want, 1))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_t14_a_deep_chain_leaves_the_image_where_it_is(kernel):
    x = image(3, 2)
    pad = kernel // 2
    net = nn.Sequential(
        *(nn.Conv2d(a, b, kernel, padding=pad) for a, b in itertools.pairwise([3, 7, 7, 9, 30, 4]))
    )
    for layer in net:
        idi_layer_(layer)
    assert torch.equal(net(x)[:, :3], x)


def test_t14_a_stride_samples_the_image():
    x = image(3, 2)
    layer = idi_layer_(nn.Conv2d(3, 5, 5, stride=(2, 3), padding=2))
    assert torch.equal(layer(x)[:, :3], x[:, :, ::2, ::3])


def test_t14_fails_for_the_order_that_starts_in_a_corner():
    """With as many outputs as inputs C it keeps ceil(C / K) channels, moved by half a kernel."""
    x = image(4, 1)
    y = idi_layer_(nn.Conv1d(4, 4, 3, padding=1), taps="channel_major")(x)
    assert torch.equal(y[:, 0, 1:], x[:, 0, :-1])
    kept = {c for c in range(4) for o in range(4) if torch.equal(y[:, o], x[:, c])}
    assert kept == {0}


# T15: transposed convolutions ---------------------------------------------------------------------

UP = {
    "k4-s2-p1": {"kernel_size": 4, "stride": 2, "padding": 1},
    "k3-s2-p1-op1": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "k2-s2": {"kernel_size": 2, "stride": 2},
    "k3-s3": {"kernel_size": 3, "stride": 3},
    "k5-s3-p1": {"kernel_size": 5, "stride": 3, "padding": 1, "output_padding": 0},
    "k6-s3-p2-op1": {"kernel_size": 6, "stride": 3, "padding": 2, "output_padding": 1},
    "k5-s2": {"kernel_size": 5, "stride": 2},
    "k3-s1-p1": {"kernel_size": 3, "padding": 1},
    "k2-s1-p1-cropped": {"kernel_size": 2, "padding": 1},  # the last place has no output
    "k5-s2-p3-cropped": {"kernel_size": 5, "stride": 2, "padding": 3},
    "unequal": {"kernel_size": (4, 3, 2), "stride": (2, 3, 1), "padding": (1, 0, 0)},
}
NARROWING = [(5, 3, 1), (3, 3, 1), (6, 4, 2), (4, 4, 4)]
WIDENING = [(3, 5, 1), (2, 9, 1), (4, 12, 2)]


def transposed(dims, channels, options):
    into, out, groups = channels
    options = {
        key: value[:dims] if isinstance(value, tuple) else value for key, value in options.items()
    }
    return TRANSPOSED[dims](into, out, groups=groups, **options)


def upsampled(x, stride):
    """Nearest-neighbour upsampling: y[s*j + r] = x[j]."""
    for axis, times in enumerate(stride):
        x = x.repeat_interleave(times, axis + 2)
    return x


def split(y, sides):
    """The places of an upsampled picture of these sides, and all the later ones."""
    here = y[(slice(None), slice(None), *map(slice, sides))]
    later = y.clone()
    later[(slice(None), slice(None), *map(slice, sides))] = 0
    return here, later


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", NARROWING, ids=groups_named)
@pytest.mark.parametrize("name", UP)
def test_t15_nearest_neighbour_upsampling(name, channels, dims):
    layer = idi_layer_(transposed(dims, channels, UP[name]))
    x = image(layer.in_channels, dims)
    ours, theirs = passed(layer)
    want = upsampled(x[:, theirs], layer.stride)
    y, later = split(layer(x)[:, ours], want.shape[2:])
    assert torch.equal(y, want[(slice(None), slice(None), *map(slice, y.shape[2:]))])
    assert not later.any()
    if y.shape == want.shape:
        assert torch.isclose(y.var(correction=0), x[:, theirs].var(correction=0))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", WIDENING, ids=groups_named)
@pytest.mark.parametrize("name", UP)
def test_t15_with_more_outputs_the_first_are_upsampled(name, channels, dims):
    layer = idi_layer_(transposed(dims, channels, UP[name]))
    x = image(layer.in_channels, dims)
    ours, theirs = passed(layer)
    want = upsampled(x[:, theirs], layer.stride)
    y, _ = split(layer(x)[:, ours], want.shape[2:])
    assert torch.equal(y, want[(slice(None), slice(None), *map(slice, y.shape[2:]))])


def test_t15_with_more_outputs_the_next_are_its_neighbours():
    """Kernel 4, stride 2, padding 1: each phase has two taps, on either side of the place."""
    x = image(3, 1)
    y = idi_layer_(nn.ConvTranspose1d(3, 6, 4, stride=2, padding=1))(x)
    assert torch.equal(y[:, 3:, 2::2], x[:, :, :-1])  # before the place
    assert torch.equal(y[:, 3:, 1:-1:2], x[:, :, 1:])  # behind it


ALL = [(k, s, p) for k in range(1, 6) for s in range(1, 5) for p in range(k) if (k, s) != (1, 1)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), ALL)
def test_t15_holds_just_where_padding_and_stride_fit_into_the_kernel(kernel, stride, padding):
    """The output s*j + r reads input j by tap p + r, for which r = s - 1 is the last."""
    x = image(2, 1)
    layer = idi_layer_(nn.ConvTranspose1d(2, 2, kernel, stride=stride, padding=padding))
    y, want = layer(x), upsampled(x, (stride,))
    length = min(y.shape[2], want.shape[2])
    assert length >= stride  # all phases are there
    is_upsampled = torch.equal(y[:, :, :length], want[:, :, :length])
    assert is_upsampled == (padding + stride <= kernel)


@pytest.mark.parametrize(("kernel", "stride", "padding"), ALL)
def test_t15_elsewhere_a_phase_takes_its_nearest_tap_and_is_0_without_any(kernel, stride, padding):
    """By the definition of the layer: input i reaches o = s*i + t - p by tap t."""
    x = image(2, 1)
    layer = nn.ConvTranspose1d(2, 2, kernel, stride=stride, padding=padding)
    y = idi_layer_(layer)(x)
    for o in range(y.shape[2]):
        j, r = divmod(o, stride)
        taps = [t for t in range(kernel) if (o + padding - t) % stride == 0]
        t = min(taps, key=lambda t: abs(t - padding - r), default=None)
        i = -1 if t is None else (o + padding - t) // stride
        want = x[:, :, i] if 0 <= i < x.shape[2] else torch.zeros_like(x[:, :, 0])
        assert torch.equal(y[:, :, o], want), (o, j, r)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (3, 2, 2, 2),
        (3, 2, 3, 3),
        (4, 2, 3, 3),
        (3, 4, 2, 2),
        (4, 4, 6, 6),
        (5, 3, 4, 2),
        (4, 6, 4, 4),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("channels", NARROWING, ids=groups_named)
def test_t15_dilation(kernel, stride, padding, dilation, channels):
    """Taps t and u reach the same outputs if d*t = d*u modulo s, so if t = u modulo s / gcd(s, d).

    Tap p/d + r is that of the r-th of these classes: input j goes to s*j + d*r.
    """
    into, out, groups = channels
    layer = nn.ConvTranspose1d(
        into, out, kernel, stride, padding, dilation=dilation, groups=groups, output_padding=1
    )
    x = image(into, 1)
    y = idi_layer_(layer)(x)
    ours, theirs = passed(layer)
    want = torch.zeros_like(y)
    for r in range(min(stride // math.gcd(stride, dilation), kernel - padding // dilation)):
        for j in range(x.shape[2]):
            if stride * j + dilation * r < y.shape[2]:
                want[:, ours, stride * j + dilation * r] = x[:, theirs, j]
    assert torch.equal(y, want)


def test_t15_a_stride_that_divides_the_dilation_leaves_one_phase():
    layer = nn.ConvTranspose2d(3, 3, 3, stride=(2, 1), padding=2, dilation=2)
    assert layer_plans(layer)["weight"].stride is None
    x = image(3, 2)
    y = idi_layer_(layer)(x)
    assert torch.equal(y[:, :, ::2], x)
    assert not y[:, :, 1::2].any()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("taps", ["diagonal", "center"])
def test_t15_the_other_orders_with_phases_upsample_too(taps, dims):
    """Center: exactly. Diagonal: channel 0, which is at the identity tap of each phase."""
    layer = idi_layer_(TRANSPOSED[dims](4, 3, 4, stride=2, padding=1), taps=taps)
    x = image(4, dims)
    want, got = upsampled(x, layer.stride), layer(x)
    channels = 3 if taps == "center" else 1
    assert torch.equal(got[:, :channels], want[:, :channels])


@pytest.mark.parametrize("taps", ["channel_major", "spatial_major"])
def test_the_corner_orders_know_no_phases(taps):
    layer = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1)
    flat = nn.ConvTranspose2d(4, 6, 4)
    for verb in (idi_layer_, idiz_layer_):
        assert torch.equal(verb(layer, taps=taps).weight, verb(flat, taps=taps).weight)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", [*NARROWING, *WIDENING], ids=groups_named)
@pytest.mark.parametrize("name", UP)
def test_a_branch_that_ends_in_a_transposed_convolution_adds_nothing(name, channels, dims):
    """Each phase has +eps and -eps in every row, of the same size: equal inputs cancel."""
    layer = idiz_layer_(transposed(dims, channels, UP[name]), eps=0.5)
    x = torch.ones(1, layer.in_channels, *(9 for _ in range(dims)))
    y = layer(x)
    inner = (slice(None), slice(None), *(slice(5, 8) for _ in range(dims)))
    pairs = zip(layer.kernel_size, layer.stride, strict=True)
    is_alone = layer.in_channels == layer.groups and all(k < 2 * s for k, s in pairs)
    if not is_alone:  # one channel and one tap leave room for one entry
        assert not y[inner].any()
    y.sum().backward()
    assert layer.weight.grad.any()


# Bits and plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channels", [(5, 3, 1), (3, 5, 1), (4, 6, 2)], ids=groups_named)
@pytest.mark.parametrize("name", UP)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_the_bits_are_the_cores(role, name, channels, dims):
    layer = transposed(dims, channels, UP[name])
    how = plan(
        tuple(layer.weight.shape),
        role,
        layout="IO" + "DHW"[-dims:],
        groups=layer.groups,
        transposed=True,
        stride=layer.stride if max(layer.stride) > 1 else None,
        tap=layer.padding,
    )
    assert layer_plans(layer, role) == {"weight": how}
    want = how.build(dtype="float32")
    verb = idi_layer_ if role == "transit" else idiz_layer_
    assert verb(layer).weight.detach().numpy().tobytes() == want.tobytes()


def test_one_tensor_with_a_stride():
    layer = idi_layer_(nn.ConvTranspose2d(5, 3, (4, 3), stride=(2, 3), padding=(1, 0)))
    options = {"layout": "IOHW", "transposed": True, "stride": (2, 3), "tap": (1, 0)}
    assert torch.equal(idi_(torch.empty(5, 3, 4, 3), **options), layer.weight)
    first_before = {**options, "layout": "OIHW"}
    stored = idi_(torch.empty(3, 5, 4, 3), **{**first_before, "transposed": False})
    assert torch.equal(stored.transpose(0, 1), layer.weight)


def test_a_kernel_that_is_stored_flipped():
    """A negative stride: the same weight, read from its end."""
    layer = idi_layer_(nn.ConvTranspose1d(5, 3, 6, stride=2, padding=1))
    options = {"layout": "IOW", "transposed": True, "stride": (-2,), "tap": (6 - 1 - 1,)}
    flipped = idi_(torch.empty(5, 3, 6), **options).flip(2)
    x = image(5, 1)
    y = nn.functional.conv_transpose1d(x, flipped, stride=2, padding=1)
    assert torch.equal(y, layer(x))


# Whole models -------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """From noise to pictures, with and without padding by hand."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(6, 5, 4)
        self.second = nn.ConvTranspose2d(5, 4, 4, 2, 1)
        self.third = nn.ConvTranspose2d(4, 4, 3, (2, 1), 1, (1, 0), groups=2)
        self.dilated = nn.ConvTranspose2d(4, 2, 3, 2, 2, dilation=2)
        self.padded = nn.ConvTranspose2d(2, 2, 4, 2, 3)

    def forward(self, x):
        x = self.dilated(self.third(self.second(self.first(x).relu()).relu()).relu())
        return self.padded(nn.functional.pad(x, (1, 1, 1, 1)))


def test_a_model_tells_the_stride_of_its_transposed_convolutions():
    model = Decoder()
    found = plans(model, torch.ones(1, 6, 1, 1))
    alone = {name: layer_plans(layer)["weight"] for name, layer in model.named_children()}
    # A place before the input is a stride before the output, so the padding is 3 - 2.
    alone["padded"] = replace(alone["padded"], tap=(1, 1))
    assert found == {f"{name}.weight": how for name, how in alone.items()}
    strides = [how.stride for how in found.values()]
    assert strides == [None, (2, 2), (2, 1), None, (2, 2)]


@pytest.mark.parametrize("pad", [0, 1, 2])
def test_padding_by_hand_before_a_transposed_convolution(pad):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(4, 3, 4, 2, 1 + 2 * pad)

        def forward(self, x):
            return self.up(nn.functional.pad(x, (pad, pad)))

    model, x = Padded(), image(4, 1)
    init_(model, x)
    assert torch.equal(model(x), upsampled(x[:, :3], (2,)))
