"""Where a matrix's entries lie in the stored weight: sections 3 and 4 of the specification.

The only place that knows axis order. A weight is a stack of alike matrices (batch axes, groups)
and of differing ones (blocks); each is a `Sheet`: local rows, and the columns in strips that lie
evenly spaced in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Literal, NamedTuple

from .errors import LayoutError, OptionError, message

__all__ = [
    "DEFAULT_LAYOUTS",
    "Box",
    "Cut",
    "Layout",
    "Piece",
    "Repeat",
    "Sheet",
    "Strip",
    "Taps",
    "identity_tap",
    "merge_axes",
    "split_axes",
    "strides_of",
]

Taps = Literal["channel_major", "spatial_major", "center"]
Box = tuple[range, ...]
"""The part of a weight that is asked for: a range of step 1 for each axis."""

DEFAULT_LAYOUTS = {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
SPATIAL = "DHW"


class Strip(NamedTuple):
    """Columns first, first + step, ... of a matrix, `stride` elements apart in memory."""

    first: int
    step: int
    length: int
    offset: int
    stride: int


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


def identity_tap(
    left_padding: Sequence[int], dilation: Sequence[int], kernel: Sequence[int]
) -> tuple[int, ...]:
    """Return the tap through which a convolution passes its input unshifted (section 3).

    It is the left padding divided by the dilation, on each axis. OptionError where that is no
    tap of the kernel.

    >>> identity_tap((2, 1), (2, 1), (3, 3))
    (1, 1)
    """
    axes = list(zip(left_padding, dilation, kernel, strict=True))
    if any(pad % step or not 0 <= pad // step < k for pad, step, k in axes):
        raise OptionError(
            message(
                "padding",
                tuple(left_padding),
                f"no tap of the kernel {tuple(kernel)} with dilation {tuple(dilation)} lies at "
                "that left padding, so none is the identity",
                "pass tap=... to choose one, or taps='channel_major'",
            )
        )
    return tuple(pad // step for pad, step, _ in axes)


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
        The place of ``taps="center"``, in the order D, H, W; None for (k - 1) // 2.

    Raises
    ------
    LayoutError
        If the letters, groups or blocks do not fit the shape.
    OptionError
        If the tap lies outside the kernel or is not used.
    """

    shape: tuple[int, ...]
    letters: str
    groups: int
    transposed: bool
    blocks: tuple[int, ...] | None
    taps: Taps
    tap: tuple[int, ...] | None

    def __post_init__(self) -> None:
        self._check_letters()
        self._check_groups_and_blocks()
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
        if self.taps != "center":
            raise OptionError(
                message(
                    "tap",
                    self.tap,
                    f"taps={self.taps!r} fills the kernel from its first tap on",
                    "add taps='center', or leave tap out",
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
    def center(self) -> tuple[int, ...] | None:
        """The one tap that holds the matrix, or None where it is spread over all of them."""
        if self.taps != "center" or not self.kernel:
            return None
        return tuple((k - 1) // 2 for k in self.kernel) if self.tap is None else self.tap

    # Matrices -------------------------------------------------------------------------------

    @cached_property
    def channels(self) -> int:
        """C, the inputs of one group."""
        return self.inputs // self.groups if self.transposed else self.inputs

    @cached_property
    def columns(self) -> int:
        """n, the columns of the flattened matrix: C * K, or C at the centre."""
        taps = prod(self.kernel)
        return self.channels * (min(taps, 1) if self.center is not None else taps)

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
        steps = [strides[axis] for axis in self.spatial_axes]
        if self.center is not None:
            if all(c in span for c, span in zip(self.center, spans, strict=True)):
                yield Strip(
                    channels.start, 1, count, self._offset(self.center, box, strides), stride
                )
            return
        taps, by_channel = prod(self.kernel), self.taps == "channel_major"
        if self._is_even(spans, steps):  # perhaps one strip holds the whole kernel
            tap = steps[-1] if steps else stride
            if by_channel and (count == 1 or stride == taps * tap):
                yield Strip(channels.start * taps, 1, count * taps, 0, tap)
                return
            if not by_channel and count == self.channels and tap == count * stride:
                yield Strip(0, 1, count * taps, 0, stride)
                return
        for place in product(*spans):
            s = sum(p * q for p, q in zip(place, strides_of(self.kernel), strict=True))
            offset = self._offset(place, box, strides)
            if by_channel:
                yield Strip(channels.start * taps + s, taps, count, offset, stride)
            else:
                yield Strip(s * self.channels + channels.start, 1, count, offset, stride)

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

    def column_grid(self, xp: Any, box: Box) -> Any:
        """Return the matrix column at every place of a box, -1 where it holds none."""
        channel = self._along(xp, box, self.i_axis)
        if self.channels < self.inputs:
            channel = channel % max(self.channels, 1)
        places = [self._along(xp, box, axis) for axis in self.spatial_axes]
        if self.center is not None:
            for place, tap in zip(places, self.center, strict=True):
                channel = xp.where(place == tap, channel, -1)
            return channel
        s = sum(p * q for p, q in zip(places, strides_of(self.kernel), strict=True))
        if self.taps == "channel_major":
            return channel * prod(self.kernel) + s
        return channel + s * self.channels

    def _along(self, xp: Any, box: Box, axis: int) -> Any:
        shape = tuple(len(span) if a == axis else 1 for a, span in enumerate(box))
        return xp.reshape(xp.arange(box[axis].start, box[axis].stop), shape)
