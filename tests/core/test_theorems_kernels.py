"""T14 and T15 of the mathematics page, and the orders of taps, through convolutions by hand.

The layers of each framework are asked in `tests/adapters/`.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import idinit_ref as ir

IDENTITY = st.sampled_from(["outward", "center"])
seeds = st.integers(0, 99)
STORED = {1: "IOW", 2: "IOHW"}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def convolve(x, weight, left, outputs, dilation):
    """Outputs (O, places) of an image (C, places): place j reads tap t at j + t*dilation - left."""
    y = np.zeros((len(weight), *outputs))
    for tap in product(*map(range, weight.shape[2:])):
        for place in product(*map(range, outputs)):
            at = [j + t * d - p for j, t, d, p in zip(place, tap, dilation, left, strict=True)]
            if all(0 <= a < size for a, size in zip(at, x.shape[1:], strict=True)):
                y[(..., *place)] += weight[(..., *tap)] @ x[(..., *at)]
    return y


def transpose_convolve(x, weight, left, outputs, stride, dilation=1):
    """Outputs (O, places): input place j writes tap t to s*j + t*d - p. The weight is (I, O, k)."""
    y = np.zeros((weight.shape[1], *outputs))
    for tap in product(*map(range, weight.shape[2:])):
        for place in product(*map(range, x.shape[1:])):
            at = [
                s * j + t * dilation - p
                for j, t, s, p in zip(place, tap, stride, left, strict=True)
            ]
            if all(0 <= a < size for a, size in zip(at, outputs, strict=True)):
                y[(..., *at)] += weight[(..., *tap)].T @ x[(..., *place)]
    return y


class Case(NamedTuple):
    """A kernel, its identity tap, and an image."""

    kernel: tuple[int, ...]
    tap: tuple[int, ...]
    dilation: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def left(self):
        return tuple(t * d for t, d in zip(self.tap, self.dilation, strict=True))


@st.composite
def cases(draw, largest=5):
    kernel = tuple(draw(st.lists(st.integers(1, largest), min_size=1, max_size=2)))
    tap = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    if draw(st.booleans()):
        tap = tuple((k - 1) // 2 for k in kernel)
    dilation = tuple(draw(st.integers(1, 2)) for _ in kernel)
    return Case(kernel, tap, dilation, tuple(draw(st.integers(1, 5)) for _ in kernel))


# T14 ------------------------------------------------------------------------------------------


@given(cases(), st.integers(1, 3), st.integers(0, 7), seeds)
def test_t14_outward_passes_the_image(case, channels, more, seed):
    """The first C outputs are the image, at each of its places, for any size of the kernel."""
    x = normal(channels, *case.size, seed=seed)
    w = ir.idi((channels + more, channels, *case.kernel), tap=case.tap)
    y = convolve(x, w, case.left, case.size, case.dilation)
    assert np.array_equal(y[:channels], x)


@given(cases(), st.integers(1, 3), st.integers(1, 3), seeds)
def test_t14_outward_with_fewer_outputs_passes_the_first_channels(case, outputs, more, seed):
    x = normal(outputs + more, *case.size, seed=seed)
    w = ir.idi((outputs, outputs + more, *case.kernel), tap=case.tap)
    assert np.array_equal(convolve(x, w, case.left, case.size, case.dilation), x[:outputs])


@given(cases(), st.integers(1, 3), seeds)
def test_t14_the_next_outputs_are_the_image_one_tap_aside(case, channels, seed):
    """By one step along one axis; a kernel of one tap has no neighbours, and repeats the image."""
    x = normal(channels, *case.size, seed=seed)
    w = ir.idi((2 * channels, channels, *case.kernel), tap=case.tap)
    y = convolve(x, w, case.left, case.size, case.dilation)
    around = np.pad(x, [(0, 0), *((d, d) for d in case.dilation)])
    aside = []
    for axis, sign in product(range(len(case.size)), (-1, 1)):
        first = [d * (1 + sign * (a == axis)) for a, d in enumerate(case.dilation)]
        spans = [slice(f, f + size) for f, size in zip(first, case.size, strict=True)]
        aside.append(around[(slice(None), *spans)])
    if math.prod(case.kernel) == 1:
        aside = [x]
    assert any(np.array_equal(y[channels:], image) for image in aside)


@given(cases(), st.integers(1, 3), st.data(), IDENTITY, seeds)
def test_t14_padding_behind_decides_which_places_have_an_output(case, channels, data, taps, seed):
    """Any padding behind the image: its places with an output pass, and the others are lost."""
    same = [(k - 1 - t) * d for k, t, d in zip(case.kernel, case.tap, case.dilation, strict=True)]
    fewest = [max(0, s - n + 1) for s, n in zip(same, case.size, strict=True)]
    behind = [data.draw(st.integers(f, s + 2)) for f, s in zip(fewest, same, strict=True)]
    axes = zip(case.size, case.left, behind, case.dilation, case.kernel, strict=True)
    count = [n + p + b - d * (k - 1) for n, p, b, d, k in axes]
    x = normal(channels, *case.size, seed=seed)
    w = ir.idi((channels, channels, *case.kernel), taps=taps, tap=case.tap)
    y = convolve(x, w, case.left, count, case.dilation)
    both = (slice(None), *(slice(min(n, m)) for n, m in zip(case.size, count, strict=True)))
    assert np.array_equal(y[both], x[both])
    assert np.count_nonzero(y) == x[both].size  # what lies beyond is 0
    is_isometry = math.isclose(np.linalg.norm(y), np.linalg.norm(x))
    assert is_isometry is all(b >= s for b, s in zip(behind, same, strict=True))


@pytest.mark.parametrize("taps", ["outward", "center"])
def test_t14_beyond_the_image_an_even_kernel_gives_zeros(taps):
    """Kernel 4 and padding 2 give a place more than the image has: it is not of the image."""
    x = normal(3, 6)
    y = convolve(x, ir.idi((3, 3, 4), taps=taps, tap=(2,)), (2,), (7,), (1,))
    assert np.array_equal(y[:, :6], x)
    assert not y[:, 6].any()


@given(cases(), st.integers(1, 3), st.integers(1, 4), seeds)
def test_t14_center_passes_channels_modulo_c(case, channels, outputs, seed):
    x = normal(channels, *case.size, seed=seed)
    w = ir.idi((outputs, channels, *case.kernel), taps="center", tap=case.tap)
    y = convolve(x, w, case.left, case.size, case.dilation)
    assert np.array_equal(y, x[[o % channels for o in range(outputs)]])


@given(cases(), st.integers(1, 3))
def test_outward_takes_a_tap_after_the_other_by_distance(case, channels):
    """Output o reads channel o mod C at the tap of rank o // C."""
    places = [*product(*map(range, case.kernel))]
    w = ir.idi((len(places) * channels, channels, *case.kernel), tap=case.tap)
    near = sorted(places, key=lambda place: (math.dist(place, case.tap), place))
    for o in range(len(w)):
        assert np.count_nonzero(w[o]) == 1
        assert w[(o, o % channels, *near[o // channels])] == 1


def on_a_ring(x, weight, depth):
    """Layers of a 1-D kernel on a ring of places, the identity tap in the middle."""
    for _ in range(depth):
        taps = range(weight.shape[2])
        x = sum(weight[:, :, s] @ np.roll(x, (weight.shape[2] - 1) // 2 - s, axis=1) for s in taps)
    return x


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_t14_channel_major_keeps_few_channels(channels, taps, depth):
    w = ir.idi((channels, channels, taps), taps="channel_major")
    read = [
        on_a_ring(np.eye(channels)[:, [c]] * np.eye(5)[0], w, depth).any() for c in range(channels)
    ]
    assert read == [c < -(-channels // taps**depth) for c in range(channels)]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), seeds)
def test_t14_spatial_major_moves_the_image_out_of_sight(channels, taps, depth, seed):
    """By half a kernel a layer; the places that it leaves hold zeros."""
    w, half = ir.idi((channels, channels, taps), taps="spatial_major"), (taps - 1) // 2
    x = y = normal(channels, 6, seed=seed)
    for _ in range(depth):
        y = convolve(y, w, (half,), (6,), (1,))
    moved = min(half * depth, 6)
    assert np.array_equal(y[:, moved:], x[:, : 6 - moved])
    assert not y[:, :moved].any()


@pytest.mark.parametrize("channels", range(1, 9))
def test_diagonal_takes_every_channel_at_every_tap_once(channels):
    for k in product(range(1, 4), repeat=2):
        taps = math.prod(k)
        w = ir.idi((channels * taps, channels, *k), taps="diagonal")
        center = [(size - 1) // 2 for size in k]
        near = sorted(product(*map(range, k)), key=lambda place: (math.dist(place, center), place))
        assert np.all(np.count_nonzero(w, axis=0) == 1)
        for t in range(channels * taps):
            rank = (t + t // math.lcm(channels, taps)) % taps
            assert w[(t, t % channels, *near[rank])] == 1
            assert np.count_nonzero(w[t]) == 1


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), seeds)
def test_t14_diagonal_moves_each_channel_its_own_way(channels, taps, depth, seed):
    """With O = C: rows are orthonormal, and on a ring every channel moves, the same every layer."""
    w = ir.idi((channels, channels, taps), taps="diagonal")
    assert np.array_equal(w.reshape(channels, -1) @ w.reshape(channels, -1).T, np.eye(channels))
    x = normal(channels, 6, seed=seed)
    y, middle = on_a_ring(x, w, depth), (taps - 1) // 2
    near = sorted(range(taps), key=lambda tap: (abs(tap - middle), tap))
    for c in range(channels):
        by = near[c % taps] - middle
        assert np.array_equal(y[c], np.roll(x[c], -by * depth))


@given(cases(4), st.integers(1, 3), st.integers(1, 4), seeds, st.sampled_from(["pair", "shifted"]))
def test_t7_a_kernel_that_reads_padding_meets_0(case, outputs, channels, seed, form):
    """A branch that ends in a kernel: the spread of f, and of the 0 of the padding."""
    inside = 1 + np.abs(normal(channels, *case.size, seed=seed))  # 0 is none of its values
    w = ir.idiz((outputs, channels, *case.kernel), eps=0.5, tap=case.tap, form=form)
    rows = w.reshape(outputs, -1)
    y = convolve(inside, w, case.left, case.size, case.dilation)
    spread = inside.max()  # less 0
    many = np.count_nonzero(rows, axis=1).max()
    factor = math.sqrt(many / 2) if rows.shape[1] > 1 else 1
    assert np.abs(y).max() <= 0.5 * spread * factor * (1 + 1e-12)


def test_t7_padding_may_be_all_of_the_spread():
    """f is 1 everywhere, so its own spread is 0; at the border the branch is eps."""
    w = ir.idiz((1, 1, 3), eps=0.5)
    y = convolve(np.ones((1, 4)), w, (1,), (4,), (1,))
    assert np.abs(y).tolist() == [[0.5, 0, 0, 0]]


# T15 ------------------------------------------------------------------------------------------


@st.composite
def upsamplings(draw):
    """Kernels, strides and paddings of one or two axes, with p + s <= k on each, or k < s."""
    stride = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    left = tuple(draw(st.integers(0, 2)) for _ in stride)
    kernel = tuple(s + p + draw(st.integers(0, 2)) for s, p in zip(stride, left, strict=True))
    return kernel, stride, left, tuple(draw(st.integers(1, 4)) for _ in stride)


@given(upsamplings(), st.integers(1, 3), st.integers(0, 2), st.integers(0, 3), IDENTITY, seeds)
def test_t15_upsampling_by_phases(case, outputs, more, longer, taps, seed):
    """y[s j + r] = x[j] in every phase r, and later places hold zeros."""
    kernel, stride, left, size = case
    x = normal(outputs + more, *size, seed=seed)
    w = ir.idi(
        (outputs + more, outputs, *kernel),
        layout=STORED[len(kernel)],
        stride=stride,
        tap=left,
        taps=taps,
    )
    places = tuple(s * n + longer for s, n in zip(stride, size, strict=True))
    y = transpose_convolve(x, w, left, places, stride)
    expected = x[:outputs]
    for axis, s in enumerate(stride, start=1):
        expected = np.repeat(expected, s, axis=axis)
    image = (slice(None), *(slice(s * n) for s, n in zip(stride, size, strict=True)))
    assert np.array_equal(y[image], expected)
    y[image] = 0
    assert not y.any()


@given(upsamplings(), st.integers(1, 2), st.data(), IDENTITY, seeds)
def test_t15_padding_behind_crops_the_upsampled_image(case, channels, data, taps, seed):
    """y[s j + r] = x[j] where there is an output: for all j if and only if p + b <= k - s."""
    kernel, stride, left, size = case
    wholes = [s * (n - 1) + k - p for s, n, k, p in zip(stride, size, kernel, left, strict=True)]
    behind = [data.draw(st.integers(0, min(whole - 1, 6))) for whole in wholes]
    places = tuple(whole - b for whole, b in zip(wholes, behind, strict=True))
    x = normal(channels, *size, seed=seed)
    layout = STORED[len(kernel)]
    w = ir.idi((channels, channels, *kernel), layout=layout, stride=stride, tap=left, taps=taps)
    y = transpose_convolve(x, w, left, places, stride)
    for at in product(*map(range, places)):
        j = [a // s for a, s in zip(at, stride, strict=True)]
        inside = all(i < n for i, n in zip(j, size, strict=True))
        assert np.array_equal(y[(..., *at)], x[(..., *j)] if inside else np.zeros(channels))
    complete = all(m >= s * n for m, s, n in zip(places, stride, size, strict=True))
    rooms = zip(left, behind, kernel, stride, strict=True)
    assert complete is all(p + b <= k - s for p, b, k, s in rooms)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), seeds)
def test_t15_phases_without_taps_are_zero(kernel, more, channels, seed):
    """A kernel shorter than the stride: outputs s*j + r with r >= k."""
    stride, x = kernel + more, normal(channels, 4, seed=seed)
    w = ir.idi((channels, channels, kernel), layout="IOW", stride=(stride,), tap=(0,))
    y = transpose_convolve(x, w, (0,), (4 * stride,), (stride,))
    expected = np.repeat(x, stride, axis=1) * np.tile(np.arange(stride) < kernel, 4)
    assert np.array_equal(y, expected)


@given(upsamplings(), st.integers(1, 3), st.integers(0, 2))
def test_a_flipped_kernel_counts_its_taps_from_the_other_end(case, outputs, more):
    """A negative stride, for frameworks that store a kernel the other way round."""
    kernel, stride, left, _ = case
    layout = STORED[len(kernel)]
    shape = (outputs + more, outputs, *kernel)
    axes = range(2, 2 + len(kernel))
    stored = ir.idi(
        shape,
        layout=layout,
        stride=tuple(-s for s in stride),
        tap=tuple(k - 1 - p for k, p in zip(kernel, left, strict=True)),
    )
    assert np.array_equal(
        np.flip(stored, tuple(axes)), ir.idi(shape, layout=layout, stride=stride, tap=left)
    )


@given(upsamplings(), st.integers(1, 4), st.integers(1, 3))
def test_each_phase_is_a_kernel_of_its_own(case, outputs, channels):
    """The taps of a phase alone, with their identity tap, or the nearest where that is beyond."""
    kernel, stride, left, _ = case
    layout = STORED[len(kernel)]
    left = tuple(min(p + 2, k - 1) for p, k in zip(left, kernel, strict=True))  # p + s > k, too
    w = ir.idi((channels, outputs, *kernel), layout=layout, stride=stride, tap=left)
    for phase in product(*map(range, stride)):
        members, taps = [], []
        for k, s, p, r in zip(kernel, stride, left, phase, strict=True):
            own = [t for t in range(k) if (t - p - r) % s == 0]
            members.append(own)
            taps.append(min(range(len(own)), key=lambda i: abs(own[i] - p - r), default=0))
        if all(members):
            alone = w[np.ix_(range(channels), range(outputs), *members)]
            expected = ir.idi(alone.shape, layout=layout, tap=tuple(taps))
            assert np.array_equal(alone, expected)
