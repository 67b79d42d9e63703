"""Where the entries of a weight's matrices lie in its memory, in strips or as index arrays.

Each matrix is a `Sheet`: rows, and columns in strips that lie evenly spaced in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .kernel import CORNER, Phase, diagonal_column, diagonal_runs
from .layout import Box, Layout, Stack, cut

__all__ = ["Repeat", "Sheet", "Strip", "column_grid", "row_grid", "sheets", "stack_grid"]


class Strip(NamedTuple):
    """Columns first, first + step, ... of a matrix of n, `stride` elements apart in memory."""

    first: int
    step: int
    length: int
    offset: int
    stride: int
    n: int


class Repeat(NamedTuple):
    """Equal copies of a sheet: `stride` elements and `rows` rows of the whole weight apart."""

    times: int
    stride: int
    rows: int


class _Stack(NamedTuple):
    first: int
    row: int
    offset: int
    repeats: tuple[Repeat, ...]


class Sheet(NamedTuple):
    """Rows of one m-row matrix and their equal copies, and where they lie in memory.

    `block` is the number of the matrix among those that have a role.
    """

    m: int
    block: int
    rows: range
    first_row: int
    offset: int
    row_stride: int
    strips: tuple[Strip, ...]
    repeats: tuple[Repeat, ...]


def sheets(at: Layout, box: Box, strides: Sequence[int]) -> Iterator[Sheet]:
    """Yield the sheets in a box; offsets count from the box's first element, in `strides`."""
    if any(len(span) == 0 for span in box):
        return
    o_span, i_span = box[at.o_axis], box[at.i_axis]
    o_stride, i_stride = strides[at.o_axis], strides[at.i_axis]
    stacks = [*_stacks(at, box, strides)]
    for i_cut in cut(i_span.start, i_span.stop, at.channels):
        i_first = i_cut.first * at.channels + i_cut.start - i_span.start
        channels = range(i_cut.start, i_cut.stop)
        strips = tuple(_strips(at, box, strides, channels))
        i_repeat = Repeat(i_cut.copies, at.channels * i_stride, at.outputs)
        for stack, piece in product(stacks, at.pieces):
            low = max(o_span.start, piece.start) - piece.start
            high = min(o_span.stop, piece.start + piece.m * piece.copies) - piece.start
            for part in cut(low, high, piece.m):
                row = piece.start + part.first * piece.m + part.start
                yield Sheet(
                    m=piece.m,
                    block=stack.first + piece.block,
                    rows=range(part.start, part.stop),
                    first_row=stack.row + i_cut.first * at.outputs + row,
                    offset=stack.offset + (row - o_span.start) * o_stride + i_first * i_stride,
                    row_stride=o_stride,
                    strips=strips,
                    repeats=(
                        Repeat(part.copies, piece.m * o_stride, piece.m),
                        i_repeat,
                        *stack.repeats,
                    ),
                )


def _stacks(at: Layout, box: Box, strides: Sequence[int]) -> Iterator[_Stack]:
    """Yield the parts of a box along the batch axes in which all matrices have one role."""
    for stack in at.stacks:
        repeats, row, offset = [], 0, 0
        rows = at.outputs * at.repeats
        for axis, place in zip(at.batch_axes[::-1], stack.place[::-1], strict=True):
            span = box[axis]
            own = range(max(place, span.start), min(place + 1, span.stop)) if at.apart else span
            repeats.append(Repeat(len(own), strides[axis], rows))
            row += own.start * rows
            offset += (own.start - span.start) * strides[axis]
            rows *= at.shape[axis]
        if all(repeat.times > 0 for repeat in repeats):
            yield _Stack(stack.first, row, offset, tuple(repeats))


def _strips(at: Layout, box: Box, strides: Sequence[int], channels: range) -> Iterator[Strip]:
    """Yield the columns of some channels of one group that lie in the box."""
    count, stride = len(channels), strides[at.i_axis]
    spans = [box[axis] for axis in at.spatial_axes]
    whole = _one_strip(at, spans, strides, channels) if at.taps in CORNER else None
    if whole is not None:
        yield whole
        return
    for phase in at.phases:
        taps = len(phase)
        n = at.channels * taps
        for rank, place in enumerate(phase):
            if not all(p in span for p, span in zip(place, spans, strict=True)):
                continue
            offset = _offset(at, place, box, strides)
            if at.taps == "channel_major":
                yield Strip(channels.start * taps + rank, taps, count, offset, stride, n)
            elif at.taps == "diagonal":
                for run in diagonal_runs(rank, at.channels, taps, channels):
                    channel, step, column, length = run
                    begin = offset + (channel - channels.start) * stride
                    yield Strip(column, taps, length, begin, step * stride, n)
            else:
                first = rank * at.channels + channels.start
                yield Strip(first, 1, count, offset, stride, n)


def _one_strip(
    at: Layout, spans: Sequence[range], strides: Sequence[int], channels: range
) -> Strip | None:
    """Return the whole kernel as one strip, where a corner order follows the memory."""
    steps = [strides[axis] for axis in at.spatial_axes]
    if not _is_even(at, spans, steps):
        return None
    taps, count, stride = prod(at.kernel), len(channels), strides[at.i_axis]
    n, tap = at.channels * taps, steps[-1] if steps else stride
    if at.taps == "channel_major" and (count == 1 or stride == taps * tap):
        return Strip(channels.start * taps, 1, count * taps, 0, tap, n)
    if at.taps == "spatial_major" and count == at.channels and tap == count * stride:
        return Strip(0, 1, count * taps, 0, stride, n)
    return None


def _is_even(at: Layout, spans: Sequence[range], steps: Sequence[int]) -> bool:
    """Whether the box holds all taps, and these follow one another at one stride."""
    whole = all(len(span) == k for span, k in zip(spans, at.kernel, strict=True))
    inner = zip(steps, steps[1:], at.kernel[1:], strict=False)
    return whole and all(outer == step * k for outer, step, k in inner)


def _offset(at: Layout, place: Sequence[int], box: Box, strides: Sequence[int]) -> int:
    axes = zip(at.spatial_axes, place, strict=True)
    return sum((p - box[axis].start) * strides[axis] for axis, p in axes)


# Index arrays, for namespaces that cannot be written to ---------------------------------------


def row_grid(at: Layout, xp: Any, box: Box) -> Any:
    """Return the O index at every place of a box, broadcastable to its shape."""
    return _along(at, xp, box, at.o_axis)


def stack_grid(at: Layout, xp: Any, box: Box, stacks: Collection[Stack]) -> Any:
    """Return whether every place of a box is in one of some stacks; None if all places are."""
    if len(stacks) == len(at.stacks):
        return None
    table = np.zeros([at.shape[axis] for axis in at.batch_axes], bool)
    table[tuple(np.asarray([stack.place for stack in stacks]).T)] = True
    table = table[tuple(slice(box[a].start, box[a].stop) for a in at.batch_axes)]
    shape = [len(span) if a in at.batch_axes else 1 for a, span in enumerate(box)]
    return xp.asarray(table.reshape(shape))


def column_grid(at: Layout, xp: Any, box: Box, phase: int = 0) -> Any:
    """Return one phase's matrix column at every place of a box, -1 where it holds none."""
    channel = _along(at, xp, box, at.i_axis)
    if at.channels < at.inputs:
        channel = channel % max(at.channels, 1)
    taps = at.phases[phase]
    rank = xp.asarray(_ranks(at, box, taps))
    if at.taps == "channel_major":
        return channel * len(taps) + rank
    if at.taps == "diagonal":
        column = diagonal_column(channel, rank, max(at.channels, 1), len(taps))
    else:
        column = channel + rank * at.channels
    return column if len(taps) == prod(at.kernel) else xp.where(rank >= 0, column, -1)


def _ranks(at: Layout, box: Box, taps: Phase) -> Any:
    """Return the rank of every tap of a box in a phase, -1 for a tap of another phase."""
    if not at.kernel:
        return np.zeros((1,) * len(box), int)
    table = np.full(at.kernel, -1)
    table[tuple(np.asarray(taps).reshape(len(taps), -1).T)] = np.arange(len(taps))
    table = table[tuple(slice(box[a].start, box[a].stop) for a in at.spatial_axes)]
    stored = np.argsort(at.spatial_axes)
    shape = [len(span) if a in at.spatial_axes else 1 for a, span in enumerate(box)]
    return np.transpose(table, stored).reshape(shape)


def _along(at: Layout, xp: Any, box: Box, axis: int) -> Any:
    shape = tuple(len(span) if a == axis else 1 for a, span in enumerate(box))
    return xp.reshape(xp.arange(box[axis].start, box[axis].stop), shape)
