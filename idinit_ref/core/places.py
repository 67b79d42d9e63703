"""Where a closed form has its entries: as runs in memory, or as matches of index arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from .build import Match, Run, Target, united
from .lattice import keys, lines, remainder
from .layout import Box, Layout, Stack
from .pattern import Term
from .sheets import column_grid, row_grid, sheets, stack_grid

__all__ = ["matches", "runs"]

Terms = Callable[[int, int, int], Sequence[Term]]  # of an m x n matrix in a block
_KEYS = 2**16  # places that a traced program holds as constants


def runs(
    at: Layout,
    terms: Terms,
    box: Box,
    strides: Sequence[int],
    rounded: Mapping[float, float] | None = None,
) -> Iterator[Run]:
    """Yield where the entries of a box lie, in memory of these strides."""
    for sheet in sheets(at, box, strides):
        repeats = tuple((repeat.times, repeat.stride) for repeat in sheet.repeats)
        for strip in sheet.strips:
            for term in terms(sheet.m, strip.n, sheet.block):
                value = term.value if rounded is None else rounded[term.value]
                for line in lines(term, sheet.rows, strip.first, strip.step, strip.length):
                    row = line.row - sheet.rows.start
                    start = row * sheet.row_stride + line.item * strip.stride
                    step = line.row_step * sheet.row_stride + line.item_step * strip.stride
                    place = sheet.offset + strip.offset + start
                    yield Run(value, place, ((line.length, step), *repeats))


def matches(
    at: Layout, terms: Terms, target: Target, box: Box, rounded: Mapping[float, float]
) -> Iterator[Match]:
    """Yield the entries of a box as comparisons of broadcastable integer arrays."""
    # Few keys beside many entries are counted once, here; many are left to the compiler.
    size, rows = prod(map(len, box)), len(box[at.o_axis])
    keyed = rows + size // max(rows, 1)
    xp: Any = np if 4 * keyed < size and keyed < _KEYS else target.xp
    output = row_grid(at, xp, box)
    columns = [(n, column_grid(at, xp, box, k)) for k, n in enumerate(at.widths) if n]
    for piece in at.pieces:
        row = output - piece.start
        ours = (row >= 0) & (row < piece.m * piece.copies)
        row = remainder(xp, row, range(piece.m * piece.copies), max(piece.m, 1))
        alike: dict[Any, list[Stack]] = {}
        for stack in at.stacks:
            each = [(*terms(piece.m, n, stack.first + piece.block),) for n, _ in columns]
            alike.setdefault((*each,), []).append(stack)
        for found, stacks in alike.items():
            here = stack_grid(at, xp, box, stacks)
            mine = xp.where(ours if here is None else ours & here, row, -1)
            own = [
                Match(rounded[term.value], *keys(term, xp, mine, column))
                for (_, column), each in zip(columns, found, strict=True)
                for term in each
            ]
            yield from united(own) if xp is np else own
