"""The taps of a kernel, in the order in which they hold the columns of a matrix (spec section 3).

Pure functions of small integers. They know no axis order, no weight and no framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import gcd, prod
from typing import Any, Literal

from ..errors import ShapeError, message

__all__ = [
    "CORNER",
    "Phase",
    "Taps",
    "diagonal_column",
    "diagonal_runs",
    "identity_tap",
    "phase_sizes",
    "phases",
]

Taps = Literal["outward", "diagonal", "center", "channel_major", "spatial_major"]
Phase = tuple[tuple[int, ...], ...]
"""The taps that hold the columns of one matrix, in the order of the columns."""

_MOST = 2**20  # taps that are listed

CORNER = ("channel_major", "spatial_major")
"""The orders that start at the first tap of the kernel, and have no identity tap."""


def identity_tap(
    left_padding: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> tuple[int, ...]:
    """Return the tap through which a convolution passes its input unshifted (section 3).

    On each axis it is the left padding divided by the dilation. If that is not a tap of the kernel,
    it is the nearest one (of two, the first).

    >>> identity_tap((2, 1), (2, 1), (3, 3))
    (1, 1)
    >>> identity_tap((1, 5), (2, 1), (2, 3))
    (0, 2)
    """
    axes = zip(left_padding, dilation, kernel, strict=True)
    return tuple(max(0, min((2 * pad + step - 1) // (2 * step), k - 1)) for pad, step, k in axes)


@lru_cache(maxsize=256)
def phases(
    kernel: tuple[int, ...],
    taps: Taps,
    tap: tuple[int, ...] | None,
    stride: tuple[int, ...] | None,
) -> tuple[Phase, ...]:
    """Return the taps of every phase of a kernel, in the order of their columns.

    Without a stride there is one phase, the whole kernel. The corner orders have no phases. Phases
    without taps are left out.

    >>> phases((4,), "outward", (1,), None)
    (((1,), (0,), (2,), (3,)),)
    >>> phases((4,), "outward", (1,), (2,))
    (((2,), (0,)), ((1,), (3,)))
    """
    if taps != "center" and prod(kernel) > _MOST:
        should = f"an order of its taps should list at most {_MOST:,}, not {prod(kernel):,}"
        raise ShapeError(message("kernel", kernel, should, "use taps='center'"))
    if taps in CORNER:
        places = tuple(product(*map(range, kernel)))
        return (places,) if places else ()
    axes = _axes(kernel, tap, stride)
    return tuple(_outward(phase, taps == "center") for phase in product(*axes))


def phase_sizes(
    kernel: tuple[int, ...], taps: Taps, stride: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return how many taps every phase has, in the order of `phases`, which need not list them.

    >>> phase_sizes((5, 4), "outward", (2, 1))
    (12, 8)
    """
    if taps in CORNER:
        return (prod(kernel),)
    sizes = product(*([len(part) for part, _ in axis] for axis in _axes(kernel, None, stride)))
    return tuple(1 if taps == "center" else prod(phase) for phase in sizes)


def _axes(
    kernel: tuple[int, ...], tap: tuple[int, ...] | None, stride: tuple[int, ...] | None
) -> list[list[tuple[range, int]]]:
    """Return the classes of the taps of every axis."""
    first = tuple((k - 1) // 2 for k in kernel) if tap is None else tap
    steps = (1,) * len(kernel) if stride is None else stride
    return [_classes(k, p, s) for k, p, s in zip(kernel, first, steps, strict=True)]


def _classes(size: int, first: int, stride: int) -> list[tuple[range, int]]:
    """Return the taps of one axis, one class for each phase, each with its identity tap.

    Outputs ``s*j + r`` read input j through tap ``p + r``, or ``p - r`` of a flipped kernel.
    """
    step, classes = abs(stride), []
    for residue in range(min(step, size)):
        members = range(residue, size, step)
        ahead = (residue - first) % step if stride > 0 else -((first - residue) % step)
        classes.append((members, max(members[0], min(first + ahead, members[-1]))))
    return classes


def _outward(axes: tuple[tuple[range, int], ...], alone: bool) -> Phase:
    """Return the taps of a phase by their squared distance from its identity tap."""
    if alone:
        return (tuple(identity for _, identity in axes),)
    squares = [
        {tap: ((tap - identity) // members.step) ** 2 for tap in members}
        for members, identity in axes
    ]

    def distance(place: tuple[int, ...]) -> int:
        return sum(square[tap] for square, tap in zip(squares, place, strict=True))

    return tuple(sorted(product(*(members for members, _ in axes)), key=distance))  # stable


def diagonal_column(channel: Any, rank: Any, channels: int, taps: int) -> Any:
    """Return the column t of a channel and a rank under ``taps="diagonal"``: integers or arrays.

    Column t is channel ``t mod C`` at the tap of rank ``(t + floor(t / lcm(C, K))) mod K``.

    >>> [diagonal_column(t % 2, (t + t // 4) % 4, 2, 4) for t in range(8)]
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    common = gcd(channels, taps)
    turn = (rank - channel) % common  # floor(t / lcm): all else is the Chinese remainder theorem
    period = taps // common
    inverse = pow(channels // common, -1, period)
    cycles = (rank - turn - channel) // common * inverse % period
    return turn * (channels * period) + channel + channels * cycles


def diagonal_runs(
    rank: int, channels: int, taps: int, among: range
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first channel, channel step, first column, length) of one tap's columns.

    In each run the columns are `taps` apart. Together the runs hold every channel of `among`.
    """
    common = gcd(channels, taps)
    lcm, step = prod((channels, taps)) // common, taps % channels
    for turn in range(common):
        column = turn * lcm + (rank - turn) % taps
        left = channels // common
        while left:
            channel = column % channels
            length = min(left, -((channel - channels) // step)) if step else 1
            low = max(0, -((channel - among.start) // step)) if step else 0
            high = min(length, -((channel - among.stop) // step)) if step else length
            if low < high and channel + low * step in among:
                yield channel + low * step, max(step, 1), column + low * taps, high - low
            column += length * taps
            left -= length
