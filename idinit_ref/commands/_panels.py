"""The panels of a picture: matrices in cells, and a kernel's taps side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from ..core.dtypes import Format, round_value
from ..core.layout import Layout, strides_of
from ..core.pattern import Term
from ..core.plan import Plan
from ..core.sheets import Strip, sheets
from ._matrix import NOISY, Alike, Floats, cells, extract

CELLS = 150  # the most cells across a picture: finer ones are not visible
_TAPS, _ROWS, _ACROSS = 121, 16, 11  # the most taps in panels of their own; rows; columns


class DrawnMatrix(NamedTuple):
    """The first of several alike matrices, ready to be drawn."""

    alike: Alike
    terms: tuple[Term, ...]
    noisy: Floats | None

    @property
    def m(self) -> int:
        return self.alike.m

    @property
    def n(self) -> int:
        return self.alike.n

    def sampled(
        self, count: int, strips: Sequence[Strip], most: int = CELLS
    ) -> tuple[Floats, Floats]:
        """Return `count` columns in cells, 0 outside all strips; and the cells' lowest entries."""
        m = self.m
        size = min(m, most), min(count, most)
        if self.noisy is not None:
            shown = np.zeros((m, count))
            for s in strips:
                columns = s.first + s.step * np.arange(s.length)
                shown[:, s.offset + s.stride * np.arange(s.length)] = self.noisy[:, columns]
            coarse = _coarse(shown, size)
            return coarse, coarse
        known = [term.value for term in self.terms]
        both = size != (m, count) and min(known) < 0 < max(known)
        signs = [
            cells(self.terms, m, count, size, strips=strips, sign=sign)
            for sign in ((1, -1) if both else (1,))
        ]
        return signs[0], signs[-1]


def part_of(p: Plan, alike: Alike, to: Format) -> DrawnMatrix:
    terms = tuple(
        term._replace(value=round_value(term.value, to, "an entry")) for term in alike.terms(p)
    )
    few = alike.is_noisy(p) and alike.m * alike.n <= NOISY
    return DrawnMatrix(alike, terms, extract(p, alike, to).dense() if few else None)


def _coarse(dense: Floats, size: tuple[int, int]) -> Floats:
    """Return the largest entry of each cell, as `cells` does."""
    (m, n), (h, w) = dense.shape, size
    down, across = [i * m // h for i in range(h)], [j * n // w for j in range(w)]
    high = np.maximum.reduceat(np.maximum.reduceat(dense, down, 0), across, 1)
    low = np.minimum.reduceat(np.minimum.reduceat(dense, down, 0), across, 1)
    return np.where(high >= -low, high, low)


class Panel(NamedTuple):
    """A tap of a kernel, and its place in the picture."""

    tap: tuple[int, ...]
    phase: int
    strips: tuple[Strip, ...]  # its columns in the matrix; offsets and strides count channels
    row: int
    column: int


def panels_of(at: Layout) -> list[Panel]:
    """Return a kernel's taps as panels, each row of taps in one or more rows; none if too many."""
    kernel = at.kernel
    taps = prod(kernel)
    if not 1 < taps <= _TAPS:
        return []
    deep = len(kernel) == 3 and prod(kernel[1:]) <= _ACROSS  # then a plane is a row
    line = taps if max(kernel) == taps else prod(kernel[1:]) if deep else kernel[-1]
    rows = -(-line // _ACROSS)  # rows of panels for one line of taps
    across = -(-line // rows)
    if taps // line * rows > _ROWS:
        return []
    of = {tap: phase for phase, members in enumerate(at.phases) for tap in members}
    panels = []
    for s, tap in enumerate(product(*map(range, kernel))):
        row, column = s // line * rows + s % line // across, s % line % across
        panels.append(Panel(tap, of.get(tap, 0), _columns(at, tap), row, column))
    return panels


def _columns(at: Layout, tap: tuple[int, ...]) -> tuple[Strip, ...]:
    """Return the columns of one tap's channels, in the first group."""
    spans = dict(zip(at.spatial_axes, tap, strict=True))
    box = [range(spans.get(axis, 0), spans.get(axis, 0) + 1) for axis in range(len(at.shape))]
    box[at.i_axis] = range(at.channels)
    strides = strides_of([len(span) for span in box])  # one channel beside the other
    return next(iter(sheets(at, tuple(box), strides))).strips
