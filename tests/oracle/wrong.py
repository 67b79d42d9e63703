"""Wrong implementations, and the very properties that each of them breaks.

Every one is what somebody might write: IDI (or IDIZ) by loops, without the core, and one mistake.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from idinit_ref.testing import PROPERTIES


class Wrong(NamedTuple):
    """An implementation, how the oracle is told of it, and what it breaks."""

    make: object
    broken: set[str]
    options: dict


ALL: dict[str, Wrong] = {}
ZERO = {"roles": "zero"}
CONV = {"layout": None, "conv": "OIHW"}
CENTER = {**CONV, "taps": "center"}
CORNER = {**CONV, "taps": "channel_major"}
PHASES = {"layout": None, "conv": "IOW", "stride": (2,)}
SHIFTED = {**ZERO, "form": "shifted"}


def breaks(*broken, **options):
    def listed(make):
        ALL[make.__name__] = Wrong(make, set(broken), options)
        return make

    return listed


def fill(shape, rule, dtype=float):
    """The matrix of a rule (i, j, m, n)."""
    m, n = shape
    entries = [[rule(i, j, m, n) for j in range(n)] for i in range(m)]
    return np.array(entries, dtype=dtype).reshape(m, n)


def like(make, wrapper):
    """Give a wrapper the name of what it wraps, and keep its own signature."""
    wrapper.__name__ = wrapper.__qualname__ = make.__name__
    return wrapper


def cast(weight, dtype):
    """As the reference: what would be lost is refused."""
    out = weight.astype(dtype)
    if np.any((out == 0) & (weight != 0)):
        raise ValueError("lost")
    return out


def idi(shape, gain=1.0):
    return fill(shape, lambda i, j, m, n: gain if j == i % n else 0.0)


def idiz(shape, eps=1e-6):
    def rule(i, j, m, n):
        if n == 1:
            return -eps if i % 2 else eps
        minus = m + i % (n - m) if m < n else (i + 1) % n
        return eps if j == i % n else -eps if j == minus else 0.0

    return fill(shape, rule)


def flat(shape, make):
    """A kernel by way of its matrix, channel-major."""
    return make((shape[0], math.prod(shape[1:]))).reshape(shape)


# IDI, the entries --------------------------------------------------------------------------------


@breaks("exact", "reach", "transit", "variance", "rank", "isometry", "composition", "layout")
def modulus_too_small(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % max(n - 1, 1)))


@breaks("exact", "transit", "variance", "row_norm", "isometry", "layout")
def modulus_too_large(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % (n + 1)))


@breaks("exact", "transit", "variance", "row_norm", "isometry", "layout")
def zero_padded(shape):
    return np.eye(*shape)


@breaks("exact", "reach", "transit", "variance", "row_norm", "isometry", "layout")
def transposed(shape):
    return idi(shape[::-1]).T


@breaks("exact", "transit", "variance", "composition", "layout")
def shifted(shape):
    return fill(shape, lambda i, j, m, n: float(j == (i + 1) % n))


@breaks("exact", "transit", "layout")
def wrong_sign(shape):
    return fill(shape, lambda i, j, m, n: -float(j == i % n) + 0.0)


@breaks("exact", "transit", "layout")
def wrong_sign_of_the_copies(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % n) * (1 if i < n else -1) + 0.0)


@breaks("exact", "variance", "layout")
def the_last_block_of_a_wide_one(shape):
    def rule(i, j, m, n):
        if m >= n:
            return float(j == i % n)
        return float(j == (i + m if i + m < n else i))

    return fill(shape, rule)


@breaks("exact", "composition", "layout")
def alternating_signs_when_wide(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % n) * (1 - 2 * (m < n) * (i % 2)) + 0.0)


@breaks("exact", "composition", "layout")
def negative_when_wide(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % n) * (-1 if m < n else 1) + 0.0)


@breaks("exact", "variance", "layout")
def the_last_copy_when_wide(shape):
    def rule(i, j, m, n):
        return float(j == (i % n if m >= n else i + (n - 1 - i) // m * m))

    return fill(shape, rule)


@breaks("exact", "row_norm", "variance", "isometry", "layout")
def gain_squared(shape, gain=1.0):
    return idi(shape, gain * abs(gain))


@breaks("exact", "row_norm", "variance", "isometry", "layout")
def gain_in_the_first_identity_alone(shape, gain=1.0):
    return fill(shape, lambda i, j, m, n: float(j == i % n) * (gain if i < n else 1))


@breaks("exact", "variance", "composition", "layout")
def the_last_columns(shape):
    return fill(shape, lambda i, j, m, n: float(j == (i % n if m >= n else n - m + i)))


@breaks("exact", "reach", "variance", "row_norm", "layout")
def averaged_when_wide(shape):
    def rule(i, j, m, n):
        if m >= n:
            return float(j == i % n)
        return (j % m == i) / len(range(i, n, m))

    return fill(shape, rule)


@breaks("exact", "transit", "variance", "composition", "layout")
def each_row_repeated(shape):
    return fill(shape, lambda i, j, m, n: float(j == (i * n // m if m > n else i % n)))


@breaks(
    "exact", "reach", "transit", "variance", "row_norm", "rank", "isometry", "composition", "layout"
)
def dead_rows(shape):
    return fill(shape, lambda i, j, m, n: float(j == i % n and i % 3 != 2))


@breaks("exact", "transit", "variance", "row_norm", "isometry", "composition", "layout")
def a_gain_of_root_two(shape):
    return idi(shape, math.sqrt(2))


@breaks("exact", "transit", "variance", "row_norm", "isometry", "composition", "layout")
def scaled_by_copies(shape):
    """Singular values of 1 in the wrong place: the isometry of a tall matrix is another."""
    m, n = shape
    return idi(shape, 1 / math.sqrt(math.ceil(m / n)))


@breaks("exact")
def negative_zeros(shape, gain=1.0):
    return gain * np.array(idi(shape))


@breaks("exact")
def float32_product(shape, gain=1.0):
    return idi(shape, float(np.float32(gain)))


@breaks("exact")
def rounded_twice(shape, gain=1.0, dtype=np.float64):
    import ml_dtypes

    rounded = idi(shape, float(np.float32(gain)) if dtype == ml_dtypes.bfloat16 else gain)
    return cast(rounded, dtype)


# dtype, device, determinism ----------------------------------------------------------------------


@breaks("dtype")
def always_float32(shape, dtype=None):
    return idi(shape).astype(np.float32)


@breaks("dtype")
def integers(shape):
    return idi(shape).astype(np.int64)


def _torch(make):
    """The same through torch, imported when it is called."""

    def made(shape, device=None):
        import torch

        return make(torch, torch.tensor(idi(shape)), device)

    return like(make, made)


@breaks("device", xp="torch")
@_torch
def always_on_the_cpu(torch, weight, device):
    return weight


@breaks("device", xp="torch")
@_torch
def on_the_cpu_when_small(torch, weight, device):
    return weight.to(device) if weight.numel() > 4 else weight


_MADE = {}


@breaks("determinism")
def one_array_for_all(shape):
    return _MADE.setdefault(shape, idi(shape))


_STORE = np.zeros(2**16)


@breaks("determinism")
def one_buffer_for_all(shape):
    out = _STORE[: math.prod(shape)].reshape(shape)
    out[...] = idi(shape)
    return out


@breaks("exact", "reach", "determinism", "transit")
def noise_added(shape):
    return idi(shape) + np.random.default_rng().normal(0, 1e-11, shape)


@breaks("exact", "determinism", "zero_sums", **ZERO)
def noise_added_to_idiz(shape):
    noise = 1 + np.random.default_rng().normal(0, 1e-9, shape)
    return idiz(shape) * noise


@breaks("dtype")
def complex_unasked(shape):
    return idi(shape).astype(complex)


def _into(array, out):
    """Return `out` where `array` should have been written to."""
    return out.astype(array.dtype)


NOT_ASKED = {"image", "zero_sums", "units", "residual", "device", "groups", "underflow"}


@breaks(*{*PROPERTIES} - NOT_ASKED)
def returned_and_not_written(array):
    return _into(array, idi(array.shape))


# Large ones ------------------------------------------------------------------------------------


@breaks("exact", "transit", "row_norm", "layout")
def rows_counted_in_eight_bits(shape):
    m, n = shape
    out = np.zeros(shape)
    out[np.arange(m), np.arange(m).astype(np.int8) % n if m > 8 else np.arange(m) % n] = 1
    return np.where(np.arange(m)[:, None] > 127, 0 * out, out) if m > 127 else out


@breaks("exact", "row_norm", "layout")
def right_up_to_twenty(shape):
    out = idi(shape)
    out[0] *= max(shape) <= 20 or shape[0] > shape[1]
    return out


# IDIZ --------------------------------------------------------------------------------------------


@breaks("exact", "zero_sums", "rank", "layout", "units", **ZERO)
def both_positive(shape):
    return abs(idiz(shape))


@breaks("exact", "zero_sums", "layout", "units", **ZERO)
def both_positive_when_wide(shape):
    m, n = shape
    return abs(idiz(shape)) if m < n else idiz(shape)


@breaks("exact", "zero_sums", "layout", **ZERO)
def both_positive_when_even(shape):
    m, n = shape
    return abs(idiz(shape)) if m >= n and n % 2 == 0 else idiz(shape)


@breaks("exact", "reach", "rank", "layout", "units", **ZERO)
def all_rows_alike(shape):
    def rule(i, j, m, n):
        return idiz((m, n))[0, j] if n > 1 else idiz((m, n))[i, 0]

    return fill(shape, rule)


@breaks("exact", "reach", "rank", "layout", "units", **ZERO)
def rows_in_pairs(shape):
    def rule(i, j, m, n):
        return idiz((m, n))[i - i % 2 * (n > 1), j]

    return fill(shape, rule)


@breaks("exact", "layout", **ZERO)
def the_signs_exchanged(shape):
    return 0.0 - idiz(shape)


@breaks("exact", "layout", **ZERO)
def the_minus_before_the_plus(shape):
    def rule(i, j, m, n):
        if n == 1 or m < n:
            return idiz((m, n))[i, j]
        return 1e-6 * ((j == i % n) - (j == (i - 1) % n)) + 0.0

    return fill(shape, rule)


@breaks("exact", "row_norm", "variance", "layout", **ZERO)
def smaller_in_every_second_row(shape):
    return fill(shape, lambda i, j, m, n: idiz((m, n))[i, j] / (1 + 3 * (i % 2)))


@breaks("exact", "row_norm", "variance", "layout", **ZERO)
def half_as_large(shape):
    return idiz(shape) / 2


@breaks("exact", "row_norm", "variance", "residual", "layout", **ZERO)
def ten_times_as_large(shape):
    return idiz(shape) * 10


@breaks(
    "exact",
    "reach",
    "row_norm",
    "variance",
    "rank",
    "zero_sums",
    "residual",
    "layout",
    "units",
    **ZERO,
)
def idi_instead(shape):
    return idi(shape)


@breaks("exact", "reach", "row_norm", "variance", "rank", "layout", "units", **ZERO)
def all_zero(shape):
    return np.zeros(shape)


@breaks("exact", "reach", "row_norm", "variance", "zero_sums", "rank", "layout", "units", **ZERO)
def the_minus_forgotten(shape):
    return fill(shape, lambda i, j, m, n: 1e-6 * (j == i % n))


@breaks("exact", "reach", "layout", **ZERO)
def the_minus_in_one_column(shape):
    def rule(i, j, m, n):
        right = idiz((m, n))[i, j]
        return right if m >= n or j < m else -1e-6 * (j == m)

    return fill(shape, rule)


@breaks("exact", "reach", "layout", **ZERO)
def the_minus_in_the_last_column(shape):
    def rule(i, j, m, n):
        right = idiz((m, n))[i, j]
        return right if m >= n or j < m else -1e-6 * (j == n - 1)

    return fill(shape, rule)


@breaks("exact", "reach", "layout", "units", **SHIFTED)
def a_pair_where_shifted_is_declared(shape):
    return idiz(shape)


def shifted_idiz(shape, column=lambda q, i, m: q * m + (i + q) % m, cut=None):
    m, n = shape
    if n < 2 * m or m == 0:
        return idiz(shape)
    out = np.zeros(shape)
    for i in range(m):
        js = [j for q in range(-(-n // m)) if (j := column(q, i, m)) < n][:cut]
        k = len(js)
        p = -(-k // 2)
        for q, j in enumerate(js):
            ratio = 2 * p / ((k - p) * k) if q % 2 else 2 * (k - p) / (p * k)
            out[i, j] = (-1) ** q * 1e-6 * math.sqrt(ratio)
    return out


@breaks("exact", "layout", "units", **SHIFTED)
def blocks_that_are_not_shifted(shape):
    return shifted_idiz(shape, lambda q, i, m: q * m + i)


@breaks("exact", "reach", "layout", "units", **SHIFTED)
def shifted_in_two_blocks_alone(shape):
    return shifted_idiz(shape, cut=2)


# What should be refused --------------------------------------------------------------------------


@breaks("exact", "underflow")  # NumPy rounds twice into bfloat16
def not_refused(shape, gain=1.0, dtype=np.float64):
    return idi(shape, gain).astype(dtype)


@breaks("underflow", **ZERO)
def not_refused_idiz(shape, eps=1e-6, dtype=np.float64):
    return idiz(shape, eps).astype(dtype)


@breaks("underflow", **ZERO)
def clamped(shape, eps=1e-6, dtype=np.float64):
    out = idiz(shape, eps)
    made = out.astype(dtype)
    if not made.any() and out.any():
        made[...] = np.sign(out) * np.finfo(dtype).smallest_subnormal
    return made


# Kernels -----------------------------------------------------------------------------------------


def flat_outward(shape):
    """A kernel by way of its matrix, outward."""
    c, *kernel = shape[1:]
    middle = [(k - 1) // 2 for k in kernel]
    taps = sorted(np.ndindex(*kernel), key=lambda t: math.dist(t, middle))
    return c, taps, np.zeros(shape)


@breaks("exact", "transit", "image", "variance", "layout", **CONV)
def kernels_from_the_first_tap(shape):
    """Channel-major where outward is declared: the image moves."""
    return flat(shape, idi)


@breaks("exact", "transit", "image", "variance", "layout", **CONV)
def outward_from_the_tap_k_over_two(shape):
    c, _, out = flat_outward(shape)
    middle = [k // 2 for k in shape[2:]]
    taps = sorted(np.ndindex(*shape[2:]), key=lambda t: math.dist(t, middle))
    for i in range(shape[0]):
        j = i % (c * len(taps))
        out[(i, j % c, *taps[j // c])] = 1
    return out


@breaks("exact", "transit", "variance", "layout", **CONV)
def outward_with_rows_of_the_taps_first(shape):
    """The image is there, but the taps about it come in row-major order."""
    c, taps, out = flat_outward(shape)
    taps = [taps[0], *sorted(taps[1:])]
    for i in range(shape[0]):
        j = i % (c * len(taps))
        out[(i, j % c, *taps[j // c])] = 1
    return out


def upsampling(shape, identity):
    """A kernel (inputs, outputs, k) of stride 2, outward in each phase from a tap."""
    c, o, k = shape
    out = np.zeros(shape)
    for phase in range(min(2, k)):
        own = range(phase, k, 2)
        first = min(max(identity(phase, k), own[0]), own[-1])
        taps = sorted(own, key=lambda t: abs(t - first))
        for i in range(o):
            j = i % (c * len(taps))
            out[j % c, i, taps[j // c]] = 1
    return out


@breaks(
    "exact",
    "reach",
    "rank",
    "transit",
    "image",
    "variance",
    "row_norm",
    "isometry",
    "layout",
    **PHASES,
)
def phases_are_ignored(shape):
    """Three of four places of an image that is enlarged would be 0."""
    return flat((shape[1], shape[0], shape[2]), _outward_line).swapaxes(0, 1).copy()


def _outward_line(shape):
    return idi(shape)


@breaks("exact", "transit", "image", "variance", "layout", **PHASES)
def every_phase_from_its_first_tap(shape):
    return upsampling(shape, lambda phase, k: phase)


@breaks("exact", "transit", "image", "variance", "layout", **PHASES)
def phases_of_a_kernel_that_is_stored_flipped(shape):
    return upsampling(shape, lambda phase, k: (k - 1) // 2 - ((k - 1) // 2 - phase) % 2)


@breaks(
    "exact",
    "reach",
    "transit",
    "image",
    "variance",
    "row_norm",
    "rank",
    "isometry",
    "layout",
    **CENTER,
)
def the_tap_k_over_two(shape):
    out = np.zeros(shape)
    out[:, :, shape[2] // 2, shape[3] // 2] = idi(shape[:2])
    return out


@breaks("exact", "reach", "transit", "variance", "rank", "isometry", "layout", **CORNER)
def the_tap_alone(shape):
    """Channel-maintain where patch-maintain is declared."""
    out = np.zeros(shape)
    out[:, :, (shape[2] - 1) // 2, (shape[3] - 1) // 2] = idi(shape[:2])
    return out


@breaks("exact", "transit", "variance", "layout", **CORNER)
def spatial_major_columns(shape):
    o, c, h, w = shape
    return idi((o, c * h * w)).reshape(o, h, w, c).transpose(0, 3, 1, 2).copy()


@breaks("exact", "transit", "variance", "layout", **CORNER)
def kernel_turned_over(shape):
    return flat(shape, idi)[:, :, ::-1, ::-1].copy()


def _grouped(one_group):
    def made(shape, groups=1):
        m = shape[0] // groups
        return np.concatenate([one_group((m, *shape[1:]), g) for g in range(groups)])

    return like(one_group, made)


@breaks("exact", "transit", "variance", "layout", "groups", **CORNER)
def groups_ignored(shape, groups=1):
    return flat(shape, idi)


@breaks("exact", "transit", "layout", "groups", **CORNER)
@_grouped
def groups_of_other_sign(shape, g):
    return flat(shape, idi) * (1 - 2 * (g % 2)) + 0.0


@breaks(
    "exact",
    "reach",
    "layout",
    "variance",
    "groups",
    "residual",
    "zero_sums",
    "rank",
    "row_norm",
    "units",
    **CORNER,
    **ZERO,
)
@_grouped
def one_group_is_not_zero(shape, g):
    return flat(shape, idi if g else idiz)


@breaks("exact", "reach", "transit", "variance", "row_norm", "isometry", "layout")
def layout_ignored(shape, layout="OI"):
    return idi(shape)
