"""The axes of a stored weight, and its matrices: sections 3 and 4 of the specification.

This module knows the axis order; `kernel` knows the order of taps. A weight is a stack of equal
matrices (batch axes, groups) and of different ones (blocks). `sheets` says where their entries lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product
from math import prod
from typing import Any, NamedTuple

from ..errors import LayoutError, OptionError, message
from .kernel import CORNER, Phase, Taps, phase_sizes, phases

__all__ = [
    "DEFAULT_LAYOUTS",
    "Box",
    "Cut",
    "Layout",
    "Piece",
    "Stack",
    "cut",
    "merge_axes",
    "split_axes",
    "strides_of",
]

Box = tuple[range, ...]
"""A part of a weight: a range of step 1 for each axis."""

DEFAULT_LAYOUTS = {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
SPATIAL = "DHW"


class Piece(NamedTuple):
    """`copies` equal matrices of m rows, one after the other along the O axis, in one block."""

    start: int
    m: int
    copies: int
    block: int


class Stack(NamedTuple):
    """`copies` equal stacks of all pieces, from a place along the batch axes on.

    `first` is the number of the matrix of the first block, among all that have a role.
    """

    first: int
    copies: int
    place: tuple[int, ...]


class Cut(NamedTuple):
    """A part of one or several equal segments: [start, stop) inside each of them."""

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
    """Undo `merge_axes` on an array: restore its shape, with every axis in its place.

    >>> from array_api_compat import numpy as np
    >>> split_axes(np, np.arange(8).reshape(4, 2), (2, 2, 2), "OIO").tolist()
    [[[0, 2], [1, 3]], [[4, 6], [5, 7]]]
    """
    order = sorted(range(len(letters)), key=lambda axis: letters.index(letters[axis]))
    parted = xp.reshape(array, tuple(shape[axis] for axis in order))
    return xp.permute_dims(parted, tuple(order.index(axis) for axis in range(len(order))))


def cut(start: int, stop: int, size: int) -> Iterator[Cut]:
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
    """The axes of one weight, and its matrices.

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
        Sizes that cut the O axis into separate matrices, or None.
    taps
        How a kernel becomes a matrix (section 3).
    tap
        The identity tap, in the order D, H, W; None for (k - 1) // 2.
    stride
        The strides of a transposed convolution, in the order D, H, W: each phase of the kernel is
        a matrix of its own. Negative where the kernel is stored flipped; None for no phases.
    apart
        Whether the matrices along the batch axes differ in their roles.

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
    apart: bool = False

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
            raise wrong(f"the letter {twice[0]!r} appears twice", "name every axis once")
        for need, meaning in (("O", "outputs"), ("I", "inputs")):
            if need not in letters:
                raise wrong(
                    f"the letter {need!r} ({meaning}) is missing",
                    f"say which axis holds the {meaning}",
                )

    def _check_groups_and_blocks(self) -> None:
        axis, size = ("I", self.inputs) if self.transposed else ("O", self.outputs)
        of = f"axis of shape {self.shape} (layout {self.letters})"
        if size % self.groups:
            should = f"it should divide the {axis} {of}, which has {size}"
            cure = f"give a divisor of {size}"
            cure += "" if self.transposed else ", or transposed=True if I holds all inputs"
            raise LayoutError(message("groups", self.groups, should, cure))
        if self.blocks is not None and sum(self.blocks) != self.outputs:
            total = sum(self.blocks)
            should = f"the sizes should add up to the O {of}, {self.outputs}, not {total}"
            cure = "give the size of every block along the outputs"
            raise LayoutError(message("blocks", self.blocks, should, cure))

    def _check_tap(self) -> None:
        if self.tap is None:
            return
        kernel = self.kernel
        if self.taps in CORNER:
            should = f"taps={self.taps!r} fills the kernel from its first tap on"
            cure = "use taps='outward', or leave tap out"
        elif len(self.tap) != len(kernel):
            should = (
                f"it should have one place for each of the {len(kernel)} kernel axes "
                f"(layout {self.letters}, kernel {kernel})"
            )
            cure = "give them in the order D, H, W" if kernel else "leave it out of a matrix"
        elif any(not 0 <= place < size for place, size in zip(self.tap, kernel, strict=True)):
            should = f"it should lie inside the kernel {kernel}"
            cure = "count every axis from 0 to k - 1"
        else:
            return
        raise OptionError(message("tap", self.tap, should, cure))

    def _check_stride(self) -> None:
        if self.stride is None:
            return
        kernel = self.kernel
        if not kernel:
            should = f"a matrix (layout {self.letters}) has no phases"
            cure = "leave it out"
        elif len(self.stride) != len(kernel):
            should = (
                f"it should have one number for each of the {len(kernel)} kernel axes "
                f"(layout {self.letters}, kernel {kernel})"
            )
            cure = "give them in the order D, H, W"
        elif 0 in self.stride:
            should = "it should hold no 0"
            cure = "give the stride of the transposed convolution on each axis, 1 where it has none"
        else:
            return
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
        for block, size in enumerate((self.outputs,) if self.blocks is None else self.blocks):
            for part in cut(start, start + size, per_group):
                first = part.first * per_group + part.start
                pieces.append(Piece(first, part.stop - part.start, part.copies, block))
            start += size
        return tuple(pieces)

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The matrices along the batch axes: one stack of copies, or all apart."""
        batch = [self.shape[axis] for axis in self.batch_axes]
        if not self.apart:
            return (Stack(0, prod(batch), (0,) * len(batch)),)
        count = len(self.blocks or (0,))
        places = product(*map(range, batch))
        return tuple(Stack(at * count, 1, place) for at, place in enumerate(places))

    @property
    def places(self) -> Iterator[tuple[slice, ...]]:
        """The place in the weight of each block of each stack."""
        blocks = (self.outputs,) if self.blocks is None else self.blocks
        spans = [
            slice(stop - size, stop) for size, stop in zip(blocks, accumulate(blocks), strict=True)
        ]
        for stack, span in product(self.stacks, spans):
            index = [slice(None)] * len(self.shape)
            for axis, at in zip(self.batch_axes, stack.place, strict=True):
                index[axis] = slice(at, at + 1) if self.apart else slice(None)
            index[self.o_axis] = slice(None) if self.blocks is None else span
            yield tuple(index)

    @property
    def repeats(self) -> int:
        """The number of copies of every piece along the I axis: of groups, if transposed."""
        return self.groups if self.transposed else 1

    @property
    def copies(self) -> int:
        """The number of copies of every piece along the batch axes and the I axis."""
        return sum(stack.copies for stack in self.stacks) * self.repeats
