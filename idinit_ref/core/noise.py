"""The noise that loosens IDI, row by row (spec section 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .lattice import lines
from .layout import Box, Layout
from .pattern import Term
from .sheets import Sheet, Strip, sheets

__all__ = ["LoosenAt", "Noise", "standard_normal"]

LoosenAt = Literal["all", "entries"]
_PART = 2**20  # draws that are skipped at once

# The generator of one long row, and its position.
_resting: dict[tuple[int, int], tuple[np.random.Generator, int]] = {}


def standard_normal(
    seed: int, row: int, n: int, start: int = 0, stop: int | None = None
) -> NDArray[np.float64]:
    """Return row ``row`` of the standard normal noise (spec section 5, loosening), or a part of it.

    With ``Philox(key=[seed, row])`` NumPy would turn a seed from 2**63 on into a float and lose its
    last bits. Such seeds are refused, so that all ways of writing the key agree.

    The draws cannot start in the middle. A part that begins where the last one ended continues from
    there, so memory is that of the part.
    """
    stop = n if stop is None else stop
    generator, at = _resting.pop((seed, row), (None, 0))  # atomic: no two threads have the same
    if generator is None or at > start:
        key, at = np.asarray([seed, row], dtype=np.uint64), 0
        generator = np.random.Generator(np.random.Philox(key=key))
    while at < start:
        at += generator.standard_normal(min(start - at, _PART)).size
    drawn = generator.standard_normal(stop - start)
    if stop < n:
        _resting.clear()
        _resting[seed, row] = generator, stop
    return drawn


def _draws(strip: Strip, drawn: Sheet, sheet: Sheet) -> range | NDArray[np.int64]:
    """Return which draw each column of a strip has: its own column, if there are no phases."""
    if drawn.strips == sheet.strips:
        return range(strip.first, strip.first + strip.length * strip.step, strip.step)
    places = np.concatenate([s.offset + np.arange(s.length) * s.stride for s in drawn.strips])
    columns = np.concatenate([s.first + np.arange(s.length) * s.step for s in drawn.strips])
    order = np.argsort(places)
    mine = strip.offset + np.arange(strip.length) * strip.stride
    draws: NDArray[np.int64] = columns[order[np.searchsorted(places[order], mine)]]
    return draws


def _at(draws: range | NDArray[np.int64], low: int) -> slice | NDArray[np.int64]:
    """Return where some draws are in a row that begins with one of them."""
    if isinstance(draws, range):
        return slice(draws.start - low, max(draws.stop - low, 0), draws.step)
    return draws - low


def _places(strip: Strip, start: int, item: int, length: int, step: int) -> slice:
    """Return where some items of a strip lie in flat memory."""
    begin, stride = start + strip.offset + item * strip.stride, step * strip.stride
    return slice(begin, begin + (length - 1) * stride + 1, max(stride, 1))


def _copies(sheet: Sheet) -> Iterator[tuple[int, int]]:
    """Yield the offset and the first global row of each copy of a sheet."""
    copies = [(sheet.offset, sheet.first_row)]
    for repeat in sheet.repeats:
        copies = [
            (offset + k * repeat.stride, row + k * repeat.rows)
            for offset, row in copies
            for k in range(repeat.times)
        ]
    yield from copies


class Noise(NamedTuple):
    """The noise N(0, s^2) on IDI: its size, its place, its seed, and the blocks without it."""

    size: float
    at: LoosenAt
    seed: int
    still: frozenset[int]

    def rows(
        self,
        axes: Layout,
        terms: Callable[[int, int, int], Sequence[Term]],
        box: Box,
        strides: Sequence[int],
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield the rows of a box with their noise (spec section 5), strip by strip.

        `terms` gives the entries of an m x n matrix in a block.
        """
        whole = _whole_kernel(axes)
        pairs = zip(sheets(axes, box, strides), sheets(whole, box, strides), strict=True)
        for sheet, drawn in pairs:
            strips = [(strip, _draws(strip, drawn, sheet)) for strip in sheet.strips]
            if not any(len(draws) for _, draws in strips):
                continue
            low = min(int(min(draws)) for _, draws in strips)
            high = max(int(max(draws)) for _, draws in strips) + 1
            still = sheet.block in self.still
            for offset, first_row in _copies(sheet):
                for i in sheet.rows:
                    r = first_row + i - sheet.rows.start
                    row = np.zeros(high - low)
                    if not still:
                        row = self.size * standard_normal(self.seed, r, whole.columns, low, high)
                    entries = []
                    for strip, draws in strips:
                        for term in terms(sheet.m, strip.n, sheet.block):
                            for line in lines(term, range(i, i + 1), *strip[:3]):
                                step = line.item_step or 1
                                at = _at(draws[line.item :: step][: line.length], low)
                                row[at] += term.value
                                entries.append((strip, line.item, line.length, step, at))
                    if self.at == "all" and not still:
                        entries = [(s, 0, s.length, 1, _at(draws, low)) for s, draws in strips]
                    start = offset + (i - sheet.rows.start) * sheet.row_stride
                    for strip, item, length, step, at in entries:
                        yield _places(strip, start, item, length, step), row[at]


def _whole_kernel(axes: Layout) -> Layout:
    """Return the axes as the noise counts them: the whole kernel, as if stride were 1."""
    if axes.stride is None or all(abs(step) == 1 for step in axes.stride):
        return axes
    return replace(axes, stride=None, taps="outward" if axes.taps == "center" else axes.taps)
