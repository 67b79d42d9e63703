"""Tensors computed from tensors: axes cut, split, joined, permuted and flipped; sums and stacks.

A block is computed when it is read, from only the parts of the sources that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.layout import SPATIAL
from ..core.plan import Plan
from ..errors import LayoutError, OptionError, ShapeError, message
from .bits import carrier, convert
from .storage import PlanTensor, Tensor
from .stored import Index

Spans = Sequence[range]


@dataclass(frozen=True, eq=False)
class Derived:
    """A tensor whose blocks are computed: ``block(spans, dtype)``, a range for each axis."""

    shape: tuple[int, ...]
    dtype: str | None
    block: Callable[[Spans, str], NDArray[Any]]

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Compute the block."""
        spans = [range(*s.indices(size)) for s, size in zip(index, self.shape, strict=True)]
        if all(spans):
            return self.block(spans, dtype)
        return np.zeros([len(span) for span in spans], carrier(dtype))


def _read(tensor: Tensor, spans: Spans, dtype: str) -> NDArray[Any]:
    return tensor.read(tuple(slice(span.start, span.stop) for span in spans), dtype)


def _tensor(value: Plan | Tensor) -> Tensor:
    return PlanTensor(value) if isinstance(value, Plan) else value


def added(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, in float64, rounded once (the two biases of an LSTM)."""

    def block(spans: Spans, dtype: str) -> NDArray[Any]:
        total = sum(_read(tensor, spans, "float64") for tensor in tensors)
        return convert(np.asarray(total), "float64", dtype, "a sum of biases")

    return Derived(tensors[0].shape, tensors[0].dtype, block)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors along a new first axis (the biases of a Keras GRU)."""

    def block(spans: Spans, dtype: str) -> NDArray[Any]:
        return np.stack([_read(tensors[k], spans[1:], dtype) for k in spans[0]])

    return Derived((len(tensors), *tensors[0].shape), tensors[0].dtype, block)


def joined(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """Join neighbouring axes of a tensor: ``counts[k]`` of them into new axis k."""
    sizes = iter(tensor.shape)
    groups = [tuple(islice(sizes, count)) for count in counts]

    def block(spans: Spans, dtype: str) -> NDArray[Any]:
        """Read whole steps along the outermost of the joined axes, and return the block in them."""
        hull: list[range] = []  # the ranges to read from the source
        shape, inner = [], []  # the joined shape of these, and the block's slices in it
        for span, parts in zip(spans, groups, strict=True):
            step = max(prod(parts[1:]), 1)
            first, last = span.start // step, -(-span.stop // step)
            hull += [range(first, last), *map(range, parts[1:])][: len(parts)]
            shape.append(prod((last - first, *parts[1:])))
            inner.append(slice(span.start - first * step, span.stop - first * step))
        return _read(tensor, hull, dtype).reshape(shape)[tuple(inner)]

    return Derived(tuple(map(prod, groups)), tensor.dtype, block)


def take(value: Plan | Tensor, axis: int, pieces: Sequence[tuple[int, int]]) -> Tensor:
    """Concatenate pieces (start, stop) of one axis; raise a ShapeError if one lies outside.

    >>> gates = take(Plan((6, 2)), 0, [(2, 4), (0, 2)])
    >>> gates.shape, gates.read((slice(0, 4), slice(0, 2)), "float32")[:, 0].tolist()
    ((4, 2), [1.0, 0.0, 1.0, 0.0])
    """
    source = _tensor(value)
    shape = source.shape
    size = shape[axis] if 0 <= axis < len(shape) else -1
    if any(not 0 <= start < stop <= size for start, stop in pieces):
        should = f"every piece should lie inside axis {axis} of shape {shape}"
        raise ShapeError(message("pieces", tuple(pieces), should, "give (start, stop) pairs"))
    if list(pieces) == [(0, size)]:
        return source

    def block(spans: Spans, dtype: str) -> NDArray[Any]:
        blocks, done, span = [], 0, spans[axis]
        for start, stop in pieces:
            low, high = max(span.start - done, 0), min(span.stop - done, stop - start)
            done += stop - start
            if low < high:
                part = range(start + low, start + high)
                blocks.append(_read(source, [*spans[:axis], part, *spans[axis + 1 :]], dtype))
        return np.concatenate(blocks, axis)

    taken = sum(stop - start for start, stop in pieces)
    return Derived((*shape[:axis], taken, *shape[axis + 1 :]), source.dtype, block)


_MOVES = re.compile(r"((?:[A-Z1]|\([A-Z]+\))*)->((?:~?[A-Z]|1)*)")
_AXIS = re.compile(r"\([A-Z]+\)|~?[A-Z]|1")


def rearrange(
    value: Plan | Tensor, axes: str, sizes: Mapping[str, int] | None = None
) -> Plan | Tensor:
    """Return a tensor with its axes permuted, split, or flipped.

    `axes` has a capital letter for each axis, before and after: ``"OI->IO"``. Before the arrow,
    letters in brackets split one axis; `sizes` gives the sizes of all but one of them. ``1`` drops
    an axis of size 1: ``"(CM)1HW->HWCM"``. After the arrow, ``~`` flips an axis, and ``1`` is a new
    one of size 1. Raises an OptionError if the text has another form, a LayoutError if it does not
    fit the shape. A plan that is only permuted stays a plan, with the same numbers.

    >>> kernel = rearrange(Plan((8, 6, 3, 3)), "OIHW->HWIO")
    >>> kernel.shape, kernel.layout
    ((3, 3, 6, 8), 'HWIO')
    >>> rearrange(Plan((8, 6)), "(ND)I->IND", {"N": 2}).shape
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
        if [c for c in layout if c in batch] == batch:  # noise depends on the order of batch axes
            return replace(value, shape=tuple(shape[k] for k in places), layout=layout)
    return _moved(_tensor(value), split, order, flip)


def _moved(
    source: Tensor,
    split: Sequence[tuple[int, ...]],
    order: Sequence[int | None],
    flip: Sequence[int],
) -> Tensor:
    """Return a tensor with its axes split into sizes, then permuted, then flipped.

    An axis of size 1 that is split into () is dropped; None in the order is a new axis of size 1.
    """
    flat = [size for sizes in split for size in sizes]
    shape = tuple(1 if place is None else flat[place] for place in order)
    places = [place for place in order if place is not None]
    new = tuple(axis for axis, place in enumerate(order) if place is None)

    def block(spans: Spans, dtype: str) -> NDArray[Any]:
        spans = list(spans)
        for axis in flip:
            span, size = spans[axis], shape[axis]
            spans[axis] = range(size - span.stop, size - span.start)
        wanted = {place: spans[axis] for axis, place in enumerate(order)}
        box: list[range] = []  # the ranges to read from the source
        read, inner = [], []  # the split sizes of these, and the block's slices in them
        first = 0
        for sizes in split:
            parts = [wanted[first + k] for k in range(len(sizes))]
            first += len(sizes)
            at, run, hull = 0, prod(sizes), list(parts)
            for k, (span, size) in enumerate(zip(parts, sizes, strict=True)):
                run //= size
                at += span.start * run
                if len(span) > 1:  # the axes after this one are read whole
                    hull[k + 1 :] = map(range, sizes[k + 1 :])
                    run *= len(span)
                    break
            box.append(range(at, at + run))
            read += [len(span) for span in hull]
            at_hull = zip(parts, hull, strict=True)
            inner += [slice(s.start - h.start, s.stop - h.start) for s, h in at_hull]
        numbers = _read(source, box, dtype).reshape(read)[tuple(inner)].transpose(places)
        return np.flip(np.expand_dims(numbers, new), tuple(flip))

    return Derived(shape, source.dtype, block)


def axes_of(axes: str) -> tuple[list[str], list[str]]:
    """Return the axes before and after the arrow; raise if they do not match."""
    match = _MOVES.fullmatch(axes)
    before, after = (_AXIS.findall(text) for text in match.groups()) if match else ([], [])
    old = sorted(c for text in before for c in text if c.isalpha())
    new = sorted(c for text in after for c in text if c.isalpha())
    if match is None or old != new or len(set(old)) != len(old):
        should = "it should name every axis once before and once after an arrow"
        cure = "e.g. 'OI->IO', '(ND)I->IND' to split one, 'IOHW->~H~WIO' to flip the kernel"
        raise OptionError(message("axes", axes, should, cure))
    return before, after
