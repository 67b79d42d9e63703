"""Where a matrix's entries lie in the stored weight: sections 3 and 4 of the specification.

Axis order is known here, and the order of taps in `kernel`. A weight is a stack of alike matrices
(batch axes, groups) and of differing ones (blocks). Each is a `Sheet`: local rows, and the columns
in strips that lie evenly spaced in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..errors import LayoutError, OptionError, message
from .kernel import CORNER, Phase, Taps, diagonal_column, diagonal_runs, phase_sizes, phases

__all__ = [
    "DEFAULT_LAYOUTS",
    "Box",
    "Cut",
    "Layout",
    "Piece",
    "Repeat",
    "Sheet",
    "Strip",
    "merge_axes",
    "split_axes",
    "strides_of",
]

Box = tuple[range, ...]
"""The part of a weight that is asked for: a range of step 1 for each axis."""

DEFAULT_LAYOUTS = {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
SPATIAL = "DHW"


class Strip(NamedTuple):
    """Columns first, first + step, ... of a matrix of n, `stride` elements apart in memory."""

    first: int
    step: int
    length: int
    offset: int
    stride: int
    n: int


class Repeat(NamedTuple):
    """Alike copies of a sheet: `stride` elements and `rows` rows of the whole weight apart."""

    times: int
    stride: int
    rows: int


class Sheet(NamedTuple):
    """Rows of one m-row matrix and their alike copies, and where they lie in memory."""

    m: int
    rows: range
    first_row: int
    offset: int
    row_stride: int
    strips: tuple[Strip, ...]
    repeats: tuple[Repeat, ...]


class Piece(NamedTuple):
    """`copies` alike matrices of m rows that follow one another along the O axis."""

    start: int
    m: int
    copies: int


class Cut(NamedTuple):
    """A part of one or several alike segments: [start, stop) inside each of them."""

    first: int
    copies: int
    start: int
    stop: int


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous row-major array.

    >>> strides_of((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def merge_axes(shape: Sequence[int], letters: str) -> tuple[tuple[int, ...], str]:
    """Return the shape and letters of a weight whose axes of one letter are joined into one.

    For frameworks whose weights have several output or input axes (heads). The joined axes stand
    where the letter first stood and are counted in row-major order; `split_axes` goes back.

    >>> merge_axes((8, 2, 4), "IOO")
    ((8, 8), 'IO')
    """
    once = "".join(dict.fromkeys(letters))
    pairs = list(zip(letters, shape, strict=True))
    return tuple(prod(size for c, size in pairs if c == letter) for letter in once), once


def split_axes(xp: Any, array: Any, shape: Sequence[int], letters: str) -> Any:
    """Give an array of a merged shape its own shape back, with every axis in its place.

    >>> from array_api_compat import numpy as np
    >>> split_axes(np, np.arange(8).reshape(4, 2), (2, 2, 2), "OIO").tolist()
    [[[0, 2], [1, 3]], [[4, 6], [5, 7]]]
    """
    order = sorted(range(len(letters)), key=lambda axis: letters.index(letters[axis]))
    parted = xp.reshape(array, tuple(shape[axis] for axis in order))
    return xp.permute_dims(parted, tuple(order.index(axis) for axis in range(len(order))))


def _cut(start: int, stop: int, size: int) -> Iterator[Cut]:
    """Cut [start, stop) at the multiples of size, whole segments together."""
    if start >= stop:
        return
    first, last = start // size, (stop - 1) // size
    if first == last:
        yield Cut(first, 1, start - first * size, stop - first * size)
        return
    if start % size:
        yield Cut(first, 1, start % size, size)
        first += 1
    whole = stop // size
    if first < whole:
        yield Cut(first, whole - first, 0, size)
    if stop % size:
        yield Cut(whole, 1, 0, stop % size)


@dataclass(frozen=True)
class Layout:
    """The axes of one weight, and how its matrices are cut out of it.

    Parameters
    ----------
    shape
        The stored shape.
    letters
        One upper-case letter for each axis: O, I, D, H, W, any other is a batch axis.
    groups
        The number of groups; O holds all outputs, I the inputs per group.
    transposed
        With groups: I holds all inputs, and O the outputs per group.
    blocks
        Sizes that cut the O axis into matrices of their own, or None.
    taps
        How a kernel becomes a matrix (section 3).
    tap
        The identity tap, in the order D, H, W; None for (k - 1) // 2.
    stride
        The strides of a transposed convolution, in the order D, H, W: each phase of the kernel is
        a matrix of its own. Negative where the kernel is stored flipped; None for no phases.

    Raises
    ------
    LayoutError
        If the letters, groups or blocks do not fit the shape.
    OptionError
        If the tap lies outside the kernel or is not used, or the stride does not fit the kernel.
    """

    shape: tuple[int, ...]
    letters: str
    groups: int
    transposed: bool
    blocks: tuple[int, ...] | None
    taps: Taps
    tap: tuple[int, ...] | None
    stride: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        self._check_letters()
        self._check_groups_and_blocks()
        self._check_stride()
        self._check_tap()

    def _check_letters(self) -> None:
        letters, shape = self.letters, self.shape

        def wrong(should: str, cure: str) -> LayoutError:
            return LayoutError(message("layout", letters, f"for shape {shape} {should}", cure))

        if len(letters) != len(shape):
            raise wrong(
                f"it should have one letter for each of the {len(shape)} axes, not {len(letters)}",
                "name every axis once: O, I, spatial D H W, any other capital for a batch axis",
            )
        odd = [c for c in letters if not ("A" <= c <= "Z")]
        if odd:
            raise wrong(
                f"{odd[0]!r} is not a capital letter A to Z",
                "use O, I, D, H, W, and any other capital for a batch axis",
            )
        twice = [c for c, count in Counter(letters).items() if count > 1]
        if twice:
            raise wrong(f"the letter {twice[0]!r} stands in it twice", "name every axis once")
        for need, meaning in (("O", "outputs"), ("I", "inputs")):
            if need not in letters:
                raise wrong(
                    f"the letter {need!r} ({meaning}) is missing",
                    f"say which axis holds the {meaning}",
                )

    def _check_groups_and_blocks(self) -> None:
        axis, size = ("I", self.inputs) if self.transposed else ("O", self.outputs)
        if size % self.groups:
            raise LayoutError(
                message(
                    "groups",
                    self.groups,
                    f"it should divide the {axis} axis of shape {self.shape} "
                    f"(layout {self.letters}), which has {size}",
                    f"give a divisor of {size}"
                    + ("" if self.transposed else ", or transposed=True if I holds all inputs"),
                )
            )
        if self.blocks is not None and sum(self.blocks) != self.outputs:
            raise LayoutError(
                message(
                    "blocks",
                    self.blocks,
                    f"the sizes should add up to the O axis of shape {self.shape} "
                    f"(layout {self.letters}), {self.outputs}, not {sum(self.blocks)}",
                    "give the size of every block along the outputs",
                )
            )

    def _check_tap(self) -> None:
        if self.tap is None:
            return
        if self.taps in CORNER:
            raise OptionError(
                message(
                    "tap",
                    self.tap,
                    f"taps={self.taps!r} fills the kernel from its first tap on",
                    "use taps='outward', or leave tap out",
                )
            )
        kernel = self.kernel
        if len(self.tap) != len(kernel):
            raise OptionError(
                message(
                    "tap",
                    self.tap,
                    f"it should have one place for each of the {len(kernel)} kernel axes "
                    f"(layout {self.letters}, kernel {kernel})",
                    "give them in the order D, H, W",
                )
            )
        if any(not 0 <= place < size for place, size in zip(self.tap, kernel, strict=True)):
            raise OptionError(
                message(
                    "tap",
                    self.tap,
                    f"it should lie inside the kernel {kernel}",
                    "count every axis from 0 to k - 1",
                )
            )

    def _check_stride(self) -> None:
        if self.stride is None:
            return
        kernel = self.kernel
        if len(self.stride) != len(kernel):
            should = (
                f"it should have one number for each of the {len(kernel)} kernel axes "
                f"(layout {self.letters}, kernel {kernel})"
                if kernel
                else f"a matrix (layout {self.letters}) has no phases"
            )
            cure = "give them in the order D, H, W" if kernel else "leave it out"
            raise OptionError(message("stride", self.stride, should, cure))
        if 0 in self.stride:
            should = "it should hold no 0"
            cure = "give the stride of the transposed convolution on each axis, 1 where it has none"
            raise OptionError(message("stride", self.stride, should, cure))

    # Axes -----------------------------------------------------------------------------------

    @cached_property
    def o_axis(self) -> int:
        """The axis of the outputs."""
        return self.letters.index("O")

    @cached_property
    def i_axis(self) -> int:
        """The axis of the inputs."""
        return self.letters.index("I")

    @cached_property
    def spatial_axes(self) -> tuple[int, ...]:
        """The kernel's axes in the order D, H, W, however they are stored."""
        return tuple(self.letters.index(c) for c in SPATIAL if c in self.letters)

    @cached_property
    def batch_axes(self) -> tuple[int, ...]:
        """The axes of independent copies, in the order in which they are stored."""
        return tuple(a for a, c in enumerate(self.letters) if c not in "OI" + SPATIAL)

    @property
    def outputs(self) -> int:
        """The size of the O axis."""
        return self.shape[self.o_axis]

    @property
    def inputs(self) -> int:
        """The size of the I axis."""
        return self.shape[self.i_axis]

    @cached_property
    def kernel(self) -> tuple[int, ...]:
        """The spatial size k1 x ... x kd; () for a matrix."""
        return tuple(self.shape[axis] for axis in self.spatial_axes)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The taps that hold each of the interleaved matrices, in the order of their columns."""
        return phases(self.kernel, self.taps, self.tap, self.stride)

    @property
    def center(self) -> tuple[int, ...] | None:
        """The one tap that holds the matrix, or None where it is spread over several."""
        alone = self.taps == "center" and bool(self.kernel) and len(self.phases) == 1
        return self.phases[0][0] if alone else None

    # Matrices -------------------------------------------------------------------------------

    @cached_property
    def channels(self) -> int:
        """C, the inputs of one group."""
        return self.inputs // self.groups if self.transposed else self.inputs

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """n, the columns of each phase's matrix: channels times the taps that hold them."""
        sizes = phase_sizes(self.kernel, self.taps, self.stride)
        return tuple(self.channels * taps for taps in sizes) or (0,)

    @property
    def columns(self) -> int:
        """The columns of a whole row, over all phases."""
        return sum(self.widths)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The matrices along the O axis: cut at every group and at every block."""
        per_group = self.outputs if self.transposed else self.outputs // self.groups
        pieces, start = [], 0
        for size in (self.outputs,) if self.blocks is None else self.blocks:
            for cut in _cut(start, start + size, per_group):
                first = cut.first * per_group + cut.start
                pieces.append(Piece(first, cut.stop - cut.start, cut.copies))
            start += size
        return tuple(pieces)

    @cached_property
    def copies(self) -> int:
        """How often every piece is there again: batch copies, and groups along the I axis."""
        batch = prod(self.shape[axis] for axis in self.batch_axes)
        return batch * (self.groups if self.transposed else 1)

    def sheets(self, box: Box, strides: Sequence[int]) -> Iterator[Sheet]:
        """Yield what lies in a box; offsets count from the box's first element, in `strides`."""
        if any(len(span) == 0 for span in box):
            return
        o_span, i_span = box[self.o_axis], box[self.i_axis]
        o_stride, i_stride = strides[self.o_axis], strides[self.i_axis]
        all_rows = self.outputs * (self.groups if self.transposed else 1)
        batch, batch_row, rows = [], 0, all_rows
        for axis in reversed(self.batch_axes):
            batch.append(Repeat(len(box[axis]), strides[axis], rows))
            batch_row += box[axis].start * rows
            rows *= self.shape[axis]
        for i_cut in _cut(i_span.start, i_span.stop, self.channels):
            i_first = i_cut.first * self.channels + i_cut.start - i_span.start
            channels = range(i_cut.start, i_cut.stop)
            strips = tuple(self._strips(box, strides, channels))
            i_repeat = Repeat(i_cut.copies, self.channels * i_stride, self.outputs)
            for piece in self.pieces:
                low = max(o_span.start, piece.start) - piece.start
                high = min(o_span.stop, piece.start + piece.m * piece.copies) - piece.start
                for cut in _cut(low, high, piece.m):
                    row = piece.start + cut.first * piece.m + cut.start
                    yield Sheet(
                        m=piece.m,
                        rows=range(cut.start, cut.stop),
                        first_row=batch_row + i_cut.first * self.outputs + row,
                        offset=(row - o_span.start) * o_stride + i_first * i_stride,
                        row_stride=o_stride,
                        strips=strips,
                        repeats=(
                            Repeat(cut.copies, piece.m * o_stride, piece.m),
                            i_repeat,
                            *batch,
                        ),
                    )

    def _strips(self, box: Box, strides: Sequence[int], channels: range) -> Iterator[Strip]:
        """Yield the columns of some channels of one group that lie in the box."""
        count, stride = len(channels), strides[self.i_axis]
        spans = [box[axis] for axis in self.spatial_axes]
        whole = self._one_strip(spans, strides, channels) if self.taps in CORNER else None
        if whole is not None:
            yield whole
            return
        for phase in self.phases:
            taps = len(phase)
            n = self.channels * taps
            for rank, place in enumerate(phase):
                if not all(p in span for p, span in zip(place, spans, strict=True)):
                    continue
                offset = self._offset(place, box, strides)
                if self.taps == "channel_major":
                    yield Strip(channels.start * taps + rank, taps, count, offset, stride, n)
                elif self.taps == "diagonal":
                    for run in diagonal_runs(rank, self.channels, taps, channels):
                        channel, step, column, length = run
                        begin = offset + (channel - channels.start) * stride
                        yield Strip(column, taps, length, begin, step * stride, n)
                else:
                    first = rank * self.channels + channels.start
                    yield Strip(first, 1, count, offset, stride, n)

    def _one_strip(
        self, spans: Sequence[range], strides: Sequence[int], channels: range
    ) -> Strip | None:
        """Return the whole kernel as one strip, where a corner order follows the memory."""
        steps = [strides[axis] for axis in self.spatial_axes]
        if not self._is_even(spans, steps):
            return None
        taps, count, stride = prod(self.kernel), len(channels), strides[self.i_axis]
        n, tap = self.channels * taps, steps[-1] if steps else stride
        if self.taps == "channel_major" and (count == 1 or stride == taps * tap):
            return Strip(channels.start * taps, 1, count * taps, 0, tap, n)
        if self.taps == "spatial_major" and count == self.channels and tap == count * stride:
            return Strip(0, 1, count * taps, 0, stride, n)
        return None

    def _is_even(self, spans: Sequence[range], steps: Sequence[int]) -> bool:
        """Whether the box holds all taps, and these follow one another at one stride."""
        whole = all(len(span) == k for span, k in zip(spans, self.kernel, strict=True))
        inner = zip(steps, steps[1:], self.kernel[1:], strict=False)
        return whole and all(outer == step * k for outer, step, k in inner)

    def _offset(self, place: Sequence[int], box: Box, strides: Sequence[int]) -> int:
        axes = zip(self.spatial_axes, place, strict=True)
        return sum((p - box[axis].start) * strides[axis] for axis, p in axes)

    # Index arrays, for namespaces that cannot be written to -----------------------------------

    def row_grid(self, xp: Any, box: Box) -> Any:
        """Return the O index at every place of a box, broadcastable to its shape."""
        return self._along(xp, box, self.o_axis)

    def column_grid(self, xp: Any, box: Box, phase: int = 0) -> Any:
        """Return one phase's matrix column at every place of a box, -1 where it holds none."""
        channel = self._along(xp, box, self.i_axis)
        if self.channels < self.inputs:
            channel = channel % max(self.channels, 1)
        taps = self.phases[phase]
        rank = xp.asarray(self._ranks(box, taps))
        if self.taps == "channel_major":
            return channel * len(taps) + rank
        if self.taps == "diagonal":
            column = diagonal_column(channel, rank, max(self.channels, 1), len(taps))
        else:
            column = channel + rank * self.channels
        return column if len(taps) == prod(self.kernel) else xp.where(rank >= 0, column, -1)

    def _ranks(self, box: Box, taps: Phase) -> Any:
        """Return the rank of every tap of a box in a phase, -1 where the phase has it not."""
        if not self.kernel:
            return np.zeros((1,) * len(box), int)
        table = np.full(self.kernel, -1)
        table[tuple(np.asarray(taps).reshape(len(taps), -1).T)] = np.arange(len(taps))
        table = table[tuple(slice(box[a].start, box[a].stop) for a in self.spatial_axes)]
        stored = np.argsort(self.spatial_axes)
        shape = [len(span) if a in self.spatial_axes else 1 for a, span in enumerate(box)]
        return np.transpose(table, stored).reshape(shape)

    def _along(self, xp: Any, box: Box, axis: int) -> Any:
        shape = tuple(len(span) if a == axis else 1 for a, span in enumerate(box))
        return xp.reshape(xp.arange(box[axis].start, box[axis].stop), shape)
