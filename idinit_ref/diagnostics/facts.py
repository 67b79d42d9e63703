"""Internal: the few numbers that an audit keeps of a tensor, measured in its own framework."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import eps_of

CONSTANT = 2.0
"""A tensor counts as the same for all samples if they differ by at most this many eps (of its
dtype) times its largest entry: equal rows of a product may differ in their last bits."""

SAMPLES = 128
"""The number of positions (samples, times and pixels) at which units of a layer are compared."""

_GOLDEN = (5**0.5 - 1) / 2  # its multiples spread evenly, out of step with the rows of an image


class TensorFacts(NamedTuple):
    """The measurements of a tensor."""

    peak: float  # the largest absolute value of finite entries; NaN if it holds a NaN
    second: float  # the mean of squares, where an infinity counts as 0
    spread: float | None  # the largest difference between samples; None if there are none
    eps: float  # of the dtype
    finite: bool = True
    units: int = 0  # of a weight operation's result
    copies: int = 0  # units that copy an earlier one exactly
    silent: int = 0  # units that are constant
    masked: bool = False  # some entries are finite, and all others are -inf, as under a mask

    @property
    def has_nan(self) -> bool:
        """Whether it holds a NaN."""
        return self.peak != self.peak

    @property
    def rms(self) -> float:
        """The root of the mean of squares."""
        return float(self.second**0.5)

    @property
    def is_constant(self) -> bool:
        """Whether the tensor is zero, or the same for all samples."""
        is_still = self.spread is not None and self.spread <= CONSTANT * self.eps * self.peak
        return not self.has_nan and (self.peak == 0 or is_still) and self.spread != inf


def look(xp: Any, x: Any, batch: int, units: tuple[int, int] | None = None) -> dict[str, Any]:
    """Measure an array: return small arrays of its framework for `facts_of`, also under a trace.

    `xp` is an array namespace or `keras.ops`; `x` is real floating, and not empty. `batch` is the
    number of samples along its first axis, 1 if there are none to compare. `units` is the range of
    the units' axes.
    """
    shape = tuple(map(int, x.shape))
    if not str(x.dtype).endswith(("float32", "float64")):
        x = xp.cast(x, "float32") if hasattr(xp, "cast") else xp.astype(x, xp.float32)
    numbers, whole = {"nan": xp.any(xp.isnan(x))}, xp.isfinite(x)
    numbers |= {"finite": xp.all(whole), "some": xp.any(whole), "masked": xp.all(whole | (x < 0))}
    x = xp.where(whole, x, xp.zeros_like(x))
    numbers["peak"] = size = xp.max(xp.abs(x))
    numbers["mean"] = xp.mean(xp.square(x / xp.where(size > 0, size, xp.ones_like(size))))
    if batch > 1 and shape and shape[0] % batch == 0:  # the first axis may also hold times
        rows, holes = xp.reshape(x, (batch, -1)), xp.reshape(whole, (batch, -1))
        numbers["spread"] = xp.max(xp.abs(rows - rows[:1]))
        numbers["moved"] = xp.any(holes != holes[:1])  # the mask differs between samples
    if units is not None and shape:
        first, last = units
        count = int(np.prod(shape[first:last]))
        rest = [axis for axis in range(len(shape)) if not first <= axis < last]
        order = (*rest, *range(first, last))
        turn = getattr(xp, "permute_dims", None) or xp.transpose
        rows = xp.reshape(turn(x, order), (-1, count))
        total = int(np.prod(shape)) // count
        picked = np.unique((np.arange(1, SAMPLES + 1) * _GOLDEN % 1 * total).astype(np.int64))
        picked = picked if total > SAMPLES else np.arange(total)
        numbers["units"] = xp.take(rows, picked, axis=0) if hasattr(xp, "cast") else rows[picked]
    return numbers


def facts_of(numbers: Mapping[str, Any], dtype: Any) -> TensorFacts:
    """Return the facts from the result of `look`, now on the host."""
    peak = nan if numbers["nan"] else float(numbers["peak"])
    spread = inf if numbers.get("moved") else numbers.get("spread")
    finite = bool(numbers["finite"])
    units = copies = silent = 0
    eps = eps_of(dtype)
    if "units" in numbers:
        columns = np.asarray(numbers["units"], dtype=np.float64).T + 0.0  # no -0
        units = len(columns)
        still = np.ptp(columns, axis=1) <= CONSTANT * eps * np.abs(columns).max(axis=1)
        still = still & (columns.shape[1] > 1)
        alive = [column.tobytes() for column in columns[~still]]
        silent, copies = int(still.sum()), len(alive) - len(set(alive))
    return TensorFacts(
        peak,
        float(numbers["mean"]) * peak * peak,
        None if spread is None else float(spread),
        eps,
        finite,
        units,
        copies,
        silent,
        not finite and bool(numbers["some"]) and bool(numbers["masked"]),
    )


def signs(shapes: Iterable[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """Return the cotangents of an audit: arrays of 1 and -1, the same ones at every call.

    >>> [list(map(float, x)) for x in signs([(4,), (2,)])] == [
    ...     list(map(float, x)) for x in signs([(4,), (2,)])]
    True
    >>> [x.shape for x in signs([()])]
    [()]
    """
    bits = np.random.Generator(np.random.Philox(key=0))
    drawn = (bits.integers(0, 2, shape, np.int8) for shape in shapes)
    return [np.asarray(2 * one - 1, np.float32) for one in drawn]  # also of shape ()
