"""Tensors made of tensors: axes cut, split, joined, permuted and flipped, sums and stacks.

Nothing is made here: a block of such a tensor is read from the parts of the others that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.layout import SPATIAL
from ..core.plan import Plan
from ..errors import LayoutError, OptionError, ShapeError, message
from .storage import Index, PlanTensor, Tensor, carrier, convert

__all__ = ["Joined", "Stack", "Sum", "View", "axes_of", "rearrange", "take"]


@dataclass(frozen=True)
class View:
    """Another tensor with its axes cut, split, permuted and flipped; made by `rearrange`, `take`.

    Parameters
    ----------
    source : Tensor
        The other one.
    how : str
        What was done to it, for people.
    axis : int
        The axis that `pieces` cuts.
    pieces : tuple of (start, stop)
        What is kept of that axis, in its new order.
    split : tuple of tuple of int
        The sizes into which every axis is split then; () for one of size 1 that is dropped.
    order : tuple of int or None
        Which of all those axes is where; None for a new axis of size 1.
    flip : tuple of int
        The new axes that run backwards.
    """

    source: Tensor
    how: str
    axis: int
    pieces: tuple[tuple[int, int], ...]
    split: tuple[tuple[int, ...], ...]
    order: tuple[int | None, ...]
    flip: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The new axes."""
        sizes = [size for parts in self.split for size in parts]
        return tuple(1 if place is None else sizes[place] for place in self.order)

    @property
    def dtype(self) -> str | None:
        """The source's."""
        return self.source.dtype

    def describe(self) -> str:
        """Return what was done, from the first source on.

        >>> rearrange(PlanTensor(Plan((2, 3))), "OI->IO").describe()
        'OI->IO'
        """
        before = f"{self.source.describe()}, " if isinstance(self.source, View) else ""
        return before + self.how

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Read the block's part of the source, and rearrange that."""
        spans = [range(*s.indices(size)) for s, size in zip(index, self.shape, strict=True)]
        if any(len(span) == 0 for span in spans):
            return np.zeros([len(span) for span in spans], carrier(dtype))
        for axis in self.flip:
            span, size = spans[axis], self.shape[axis]
            spans[axis] = range(size - span.stop, size - span.start)
        wanted = {place: spans[axis] for axis, place in enumerate(self.order) if place is not None}
        box: list[range] = []  # of the source
        shape, inner = [], []  # of what is read, split; of what of it is wanted
        first = 0
        for sizes in self.split:
            parts = [wanted[first + k] for k in range(len(sizes))]
            first += len(sizes)
            at, run, hull = 0, prod(sizes), list(parts)
            for k, (span, size) in enumerate(zip(parts, sizes, strict=True)):
                run //= size
                at += span.start * run
                if len(span) > 1:  # what follows one that is not single is read whole
                    hull[k + 1 :] = map(range, sizes[k + 1 :])
                    run *= len(span)
                    break
            box.append(range(at, at + run))
            shape += [len(span) for span in hull]
            at_hull = zip(parts, hull, strict=True)
            inner += [slice(s.start - h.start, s.stop - h.start) for s, h in at_hull]
        block = self._read(box, dtype).reshape(shape)[tuple(inner)]
        places = [place for place in self.order if place is not None]
        block = block.transpose(places)
        new = [axis for axis, place in enumerate(self.order) if place is None]
        block = np.expand_dims(block, tuple(new))
        return np.flip(block, self.flip)

    def _read(self, box: Sequence[range], dtype: str) -> NDArray[Any]:
        """Return a box of the source after its pieces were put one after the other."""
        index = [slice(span.start, span.stop) for span in box]
        blocks, done, span = [], 0, box[self.axis] if box else range(0)
        if not box:
            return self.source.read((), dtype)
        for start, stop in self.pieces:
            low, high = max(span.start - done, 0), min(span.stop - done, stop - start)
            done += stop - start
            if low < high:
                index[self.axis] = slice(start + low, start + high)
                blocks.append(self.source.read(tuple(index), dtype))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, self.axis)


@dataclass(frozen=True)
class Sum:
    """Tensors of one shape, added in float64 and rounded once (an LSTM's two biases)."""

    sources: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of each."""
        return self.sources[0].shape

    @property
    def dtype(self) -> str | None:
        """The first one's."""
        return self.sources[0].dtype

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Read the block of each, and add."""
        total = sum(source.read(index, "float64") for source in self.sources)
        return convert(np.asarray(total), "float64", dtype, "a sum of biases")


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape, one above the other along a new first axis (a Keras GRU's biases)."""

    sources: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """How many there are, then the shape of each."""
        return (len(self.sources), *self.sources[0].shape)

    @property
    def dtype(self) -> str | None:
        """The first one's."""
        return self.sources[0].dtype

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Read the block of those that are wanted."""
        some = self.sources[index[0]]
        rest = [len(range(*s.indices(k))) for s, k in zip(index[1:], self.shape[1:], strict=True)]
        if not some:
            return np.zeros((0, *rest), carrier(dtype))
        return np.stack([source.read(index[1:], dtype) for source in some])


@dataclass(frozen=True)
class Joined:
    """Another tensor whose neighbouring axes are joined: a reshape of it.

    Parameters
    ----------
    source : Tensor
        The other one.
    counts : tuple of int
        How many of its axes make each axis.
    """

    source: Tensor
    counts: tuple[int, ...]

    @property
    def _sizes(self) -> list[tuple[int, ...]]:
        """The sizes of the source's axes that make each axis."""
        sizes = iter(self.source.shape)
        return [tuple(islice(sizes, count)) for count in self.counts]

    @property
    def shape(self) -> tuple[int, ...]:
        """The joined axes."""
        return tuple(map(prod, self._sizes))

    @property
    def dtype(self) -> str | None:
        """The source's."""
        return self.source.dtype

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Read whole steps along the outermost of the joined axes, and cut the block out."""
        hull: list[slice] = []  # of the source
        sizes, inner = [], []  # of what is read, joined; of what of it is wanted
        for s, k, parts in zip(index, self.shape, self._sizes, strict=True):
            start, stop, _ = s.indices(k)
            step = max(prod(parts[1:]), 1)
            first, last = start // step, -(-stop // step)
            hull += [slice(first, last), *(slice(0, size) for size in parts[1:])][: len(parts)]
            sizes.append(prod((last - first, *parts[1:])))
            inner.append(slice(start - first * step, stop - first * step))
        return self.source.read(tuple(hull), dtype).reshape(sizes)[tuple(inner)]


def take(
    value: Plan | Tensor, axis: int, pieces: Sequence[tuple[int, int]], how: str = ""
) -> Tensor:
    """Return some pieces of one axis, one after the other.

    Parameters
    ----------
    value : Plan or Tensor
        Of any shape.
    axis : int
        Which axis, from 0.
    pieces : sequence of (start, stop)
        What is kept of it, in this order.
    how : str, optional
        What that means, for `View.describe`.

    Returns
    -------
    Tensor
        A `View`, or the value itself where nothing changes.

    Raises
    ------
    ShapeError
        If the axis or a piece lies outside of the tensor.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> gates = take(ir.plan((6, 2)), 0, [(2, 4), (0, 2)])
    >>> gates.shape, gates.read((slice(0, 4), slice(0, 2)), "float32")[:, 0].tolist()
    ((4, 2), [1.0, 0.0, 1.0, 0.0])
    """
    source = PlanTensor(value) if isinstance(value, Plan) else value
    shape = source.shape
    size = shape[axis] if 0 <= axis < len(shape) else -1
    if any(not 0 <= start < stop <= size for start, stop in pieces):
        should = f"every piece should lie inside axis {axis} of shape {shape}"
        raise ShapeError(message("pieces", tuple(pieces), should, "give (start, stop) pairs"))
    if list(pieces) == [(0, size)]:
        return source
    new = (*shape[:axis], sum(stop - start for start, stop in pieces), *shape[axis + 1 :])
    how = how or f"axis {axis}: {', '.join(f'{start}:{stop}' for start, stop in pieces)}"
    split = tuple((k,) for k in new)
    return View(source, how, axis, tuple(pieces), split, tuple(range(len(shape))))


_MOVES = re.compile(r"((?:[A-Z1]|\([A-Z]+\))*)->((?:~?[A-Z]|1)*)")
_AXIS = re.compile(r"\([A-Z]+\)|~?[A-Z]|1")


def rearrange(
    value: Plan | Tensor, axes: str, sizes: Mapping[str, int] | None = None
) -> Plan | Tensor:
    """Return a tensor with its axes in another order, split, or flipped.

    Parameters
    ----------
    value : Plan or Tensor
        Of any shape.
    axes : str
        A capital letter for each axis, before and after: ``"OI->IO"``. Before the arrow, letters
        in brackets split one axis, and ``1`` drops one of size 1: ``"(CM)1HW->HWCM"``. After it,
        ``~`` reads an axis backwards, and ``1`` is a new one of size 1.
    sizes : mapping of str to int, optional
        Sizes of split axes; in each bracket, all but one are needed.

    Returns
    -------
    Plan or Tensor
        A plan of permuted axes where a plan is only permuted (its bits are those of the permuted
        array); the value itself if nothing changes; else a `View`.

    Raises
    ------
    OptionError
        If the text is not of that form.
    LayoutError
        If it does not fit the shape.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> made = rearrange(ir.plan((8, 6, 3, 3)), "OIHW->HWIO")
    >>> made.shape, made.layout
    ((3, 3, 6, 8), 'HWIO')
    >>> rearrange(ir.plan((8, 6)), "(ND)I->IND", {"N": 2}).shape
    (6, 2, 4)
    """
    shape, sizes = value.shape, sizes or {}
    before, after = axes_of(axes)
    groups = [() if text == "1" else tuple(text.strip("()")) for text in before]
    cure = "write a letter for each stored axis, and the sizes of those that are split"

    def wrong(should: str) -> LayoutError:
        return LayoutError(message("axes", axes, f"for shape {shape} {should}", cure))

    if len(groups) != len(shape):
        raise wrong(f"it should have {len(shape)} axes before the arrow, not {len(groups)}")
    split = []
    for letters, size in zip(groups, shape, strict=True):
        open_ = [c for c in letters if c not in sizes] if len(letters) > 1 else list(letters)
        known = prod(sizes[c] for c in letters if c not in open_)
        if len(open_) > 1:
            raise wrong(f"the size of {open_[0]} or {open_[1]} should be given")
        if (size % known if open_ else size != known) or (letters == () and size != 1):
            text = "".join(letters) or "1"
            raise wrong(f"{text} = {[sizes.get(c, '?') for c in letters]} should make {size}")
        split.append(tuple(size // known if c in open_ else sizes[c] for c in letters))
    named = [c for letters in groups for c in letters]
    order = tuple(None if text == "1" else named.index(text[-1]) for text in after)
    flip = tuple(k for k, text in enumerate(after) if text[0] == "~")
    plain = all(len(letters) == 1 for letters in groups) and None not in order and not flip
    if plain and order == tuple(range(len(shape))):
        return value
    if plain and isinstance(value, Plan):
        places = cast("tuple[int, ...]", order)
        layout = "".join(value.layout[k] for k in places)
        batch = [c for c in value.layout if c not in "OI" + SPATIAL]
        if [c for c in layout if c in batch] == batch:  # noise is drawn in their order
            return replace(value, shape=tuple(shape[k] for k in places), layout=layout)
    source = PlanTensor(value) if isinstance(value, Plan) else value
    whole = ((0, shape[0]),) if shape else ()
    return View(source, axes, 0, whole, tuple(split), order, flip)


def axes_of(axes: str) -> tuple[list[str], list[str]]:
    """Return the axes before and after the arrow, or raise."""
    match = _MOVES.fullmatch(axes)
    before, after = (_AXIS.findall(text) for text in match.groups()) if match else ([], [])
    old = sorted(c for text in before for c in text if c.isalpha())
    new = sorted(c for text in after for c in text if c.isalpha())
    if match is None or old != new or len(set(old)) != len(old):
        should = "it should name every axis once before and once after an arrow"
        cure = "e.g. 'OI->IO', '(ND)I->IND' to split one, 'IOHW->~H~WIO' to flip the kernel"
        raise OptionError(message("axes", axes, should, cure))
    return before, after
