"""One pass over the numbers of a tensor: statistics, and the positions of few non-zeros."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bits import FLOATS, carrier, convert, decode, itemsize, little, unsigned
from .storage import BLOCK

LEVELS = 64
"""The most distinct numbers of a plan without noise."""

_KEPT = 3 * 2**23  # the most bytes of recorded non-zeros


class Numbers(NamedTuple):
    """Statistics of any numbers.

    ``low``, ``high``, ``mean`` and ``std`` (of the whole population) cover the finite numbers; None
    if there are none. Real and imaginary parts of complex numbers are pooled.

    Parameters
    ----------
    size, nonzero, nan, infinite : int
        Counts.
    low, high, mean, std : float, optional
        Of the finite numbers.

    Examples
    --------
    >>> print(Numbers(4, 3, 1, 0, 0.0, 3.0, 4 / 3, 1.247))
    0.75 of 4 not zero, 0 to 3, mean 1.33, standard deviation 1.247, 1 NaN
    """

    size: int
    nonzero: int
    nan: int
    infinite: int
    low: float | None
    high: float | None
    mean: float | None
    std: float | None

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"{self.nonzero / max(self.size, 1):.3g} of {self.size:,} not zero"]
        if self.mean is not None:
            parts.append(f"{self.low:.6g} to {self.high:.6g}, mean {self.mean:.3g}")
            parts.append(f"standard deviation {self.std:.4g}")
        parts += [f"{self.nan:,} NaN"] if self.nan else []
        parts += [f"{self.infinite:,} infinite"] if self.infinite else []
        return ", ".join(parts)


def values_of(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers of some bits."""
    return decode(bits.view(carrier(dtype).newbyteorder("<")), dtype)


def bits_of(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return the bits of float64 numbers, rounded once into a dtype."""
    return little(convert(values, "float64", dtype, "an entry")).view(unsigned(dtype))


def nonzero(bits: NDArray[Any]) -> NDArray[np.intp]:
    """Return the positions of non-zero bits. Most are 0, so eight bytes are tested at a time."""
    per = 8 // bits.itemsize
    whole = bits.size // per * per
    words = np.flatnonzero(bits[:whole].view(np.uint64) != 0)
    if words.size * per > bits.size // 4:
        return np.flatnonzero(bits)
    row, place = np.nonzero(bits[:whole].reshape(-1, per)[words])
    rest = np.flatnonzero(bits[whole:]) + whole
    return np.concatenate([words[row] * per + place, rest])


class _Tally:
    """Statistics of an array that comes in parts: exact counts, merged means and deviations."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.size = self.nonzero = self.nan = self.infinite = self.finite = 0
        self.low: Any = None
        self.high: Any = None
        self.mean = self.squares = 0.0
        few = itemsize(dtype) <= 2  # then each number of the dtype has its own count
        self.counts = np.zeros(2 ** (8 * itemsize(dtype)), np.int64) if few else None

    def add(self, bits: NDArray[Any]) -> None:
        if self.counts is not None:
            self.counts += np.bincount(bits, minlength=self.counts.size)
        else:
            self._merge(values_of(bits, self.dtype), None)

    def add_zeros(self, times: int) -> None:
        self._merge(values_of(np.zeros(1, unsigned(self.dtype)), self.dtype), np.array([times]))

    def result(self) -> Numbers:
        if self.counts is not None:
            seen = np.flatnonzero(self.counts)
            values = values_of(seen.astype(unsigned(self.dtype)), self.dtype)
            self._merge(values, self.counts[seen])
            self.counts = None
        moments = (self.mean, sqrt(self.squares / self.finite)) if self.finite else (None, None)
        counts = self.size, self.nonzero, self.nan, self.infinite
        return Numbers(*counts, self.low, self.high, *moments)

    def _merge(self, values: NDArray[Any], times: NDArray[np.int64] | None) -> None:
        def count_of(mask: NDArray[np.bool_]) -> int:
            return int(np.count_nonzero(mask) if times is None else times[mask].sum())

        self.size += values.size if times is None else int(times.sum())
        self.nonzero += count_of(values != 0)
        values = values.view(np.uint8) if values.dtype.kind == "b" else values
        finite = np.isfinite(values)
        if not finite.all():
            self.nan += count_of(np.isnan(values))
            self.infinite += count_of(np.isinf(values) & ~np.isnan(values))
            values, times = values[finite], None if times is None else times[finite]
        if values.dtype.kind == "c":
            values = np.ascontiguousarray(values).view(np.float32)
            times = None if times is None else np.repeat(times, 2)
        count = values.size if times is None else int(times.sum())
        if count == 0:
            return
        low, high = values.min().item(), values.max().item()
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            exact = values.astype(np.float64)
            mean = float(np.average(exact, weights=times))
            exact -= mean
            exact *= exact
            squares = float(exact.sum() if times is None else (exact * times).sum())
            apart = np.float64(mean) - self.mean
            both = self.finite + count
            self.mean = float(self.mean + apart * (count / both))
            self.squares = float(
                self.squares + squares + apart * apart * (self.finite / both * count)
            )
        self.finite = both


class TensorContent:
    """A record of a tensor while it is read: its non-zeros, or statistics if they are many."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.size, self.same = 0, True
        self.first: NDArray[Any] | None = None  # the first number's bits
        self.sparse = dtype in FLOATS
        self.tally = _Tally(dtype)
        self.place = np.dtype("<u4" if prod(shape) < 2**32 else "<i8")
        self._places, self._bits = bytearray(), bytearray()

    @property
    def places(self) -> NDArray[Any]:
        """The flat positions of the recorded non-zeros."""
        return np.frombuffer(self._places, self.place)

    @property
    def bits(self) -> NDArray[Any]:
        """The bits of the recorded non-zeros."""
        return np.frombuffer(self._bits, unsigned(self.dtype))

    def add(self, bits: NDArray[Any], where: NDArray[np.intp] | None) -> None:
        """Add the next part: its bits, and the positions of its non-zeros if known."""
        if bits.size and self.first is None:
            self.first = bits[:1].copy()
        self.same = self.same and bool((bits == self.first).all())
        if self.sparse and where is not None:
            values = bits[where]
            kept = len(self._places) + len(self._bits)
            kept += values.size * (self.place.itemsize + values.itemsize)
            if kept <= _KEPT and np.unique(values[:4096]).size <= LEVELS:
                self._places += (where + self.size).astype(self.place).data.cast("B")
                self._bits += values.data.cast("B")
            else:
                self.give_up()
        self.size += bits.size
        if not self.sparse:
            self.tally.add(bits)

    def give_up(self) -> None:
        """Replace the recorded non-zeros by their statistics."""
        if self.sparse:
            self.tally.add_zeros(self.size - self.bits.size)
            for start in range(0, self.bits.size, BLOCK):
                self.tally.add(self.bits[start : start + BLOCK])
            self.sparse = False
            self._places, self._bits = bytearray(), bytearray()
