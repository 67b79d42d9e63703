"""Internal: slices and splits of one value."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

from ..roles.graph import Does
from ._axes import View
from ._made import Shape
from ._moves import Moves, Moving, lose, shift_of
from ._places import Move, followed, sliced, spans_in
from ._stored import Cut
from ._values import Signal, Value, is_constant

__all__ = ["Joined", "Slices", "Span", "spans_of"]

Span = tuple[int, int, int]
"""The start, stop and step of a slice along an axis."""
_DEPTH = 4  # the most nested parts that are followed


class Joined(NamedTuple):
    """The operands of a concatenation or stack: along an axis, each from a start to the next."""

    axis: int
    starts: tuple[int, ...]
    operands: tuple[Value, ...]
    is_new: bool = False  # a stack's axis, which its operands lack


class Rows(NamedTuple):
    """A slice of a signal that cuts none of its units, by its spans and the axes that it drops."""

    table: Signal
    spans: tuple[Span, ...]
    gone: tuple[int, ...]

    def is_like(self, other: Rows) -> bool:
        """Whether it has the same rows as a slice of another signal of the same shape."""
        return self[1:] == other[1:] and self.table.shape == other.table.shape


class Slices(Moves):
    """A drawing with parts of values."""

    def part(
        self,
        name: str,
        value: Value,
        spans: Sequence[Span] | None,
        gone: Sequence[int] = (),
        shape: Shape | None = None,
    ) -> Value:
        """Draw a slice, given its span along every axis and the axes that it drops.

        If the spans are unknown, `shape` is the shape of the result.
        """
        old = value.shape
        if spans is None or old is None:
            return self.move(value, Moving(name, shape, lose, does="select"))
        spans = [(start, max(start, stop), step) for start, stop, step in spans]
        sizes = [len(range(*span)) for span in spans]
        shape = tuple(size for axis, size in enumerate(sizes) if axis not in gone)
        cut = [axis for axis, size in enumerate(old) if spans[axis] != (0, size, 1)]

        move = sliced(spans, cut, gone)
        if is_constant(value) and value.numbers is not None:
            numbers = value.numbers[tuple(slice(*span) for span in spans)].reshape(shape)
            return self.constant(shape, value.number, numbers=numbers)
        if not isinstance(value, Signal):
            return self.move(value, Moving(name, shape, move))
        within = self._within(value, spans, gone)
        if within is not None:
            return self.reshape(name, self.part(name, *within), shape)
        if not cut and not gone:
            return value
        places = followed(value, move)
        spot = self.spot(places, shape)
        if spot.value is not None:
            return self.reshape(name, spot.value, shape)
        # It lies in one of some sources; circular padding has one source, and keeps its shift.
        several = any(place.of != value.places[0].of for place in value.places[1:])
        if several and places and len(places) == 1:
            box, of = spans_in(places[0]), places[0].of
            if box is not None and of is not value:
                return self.reshape(name, self.part(name, of, box), shape)
        return self.placed(self._part(name, value, move, spans, cut, gone, shape), spot)

    def _within(
        self, value: Signal, spans: Sequence[Span], gone: Sequence[int]
    ) -> tuple[Value, Sequence[Span], Sequence[int]] | None:
        """Return the operand of a concatenation that holds a whole slice, and the slice of it."""
        joined = self.joins.get(value.node)
        if joined is None:
            return None
        axis, starts, operands, is_new = joined
        start, stop, step = spans[axis]
        first = bisect_right(starts, start) - 1
        if step != 1 or start == stop or stop > starts[first + 1]:
            return None
        low = starts[first]
        own = [] if is_new else [(start - low, stop - low, 1)]
        left = [at - (is_new and at > axis) for at in gone if not (is_new and at == axis)]
        return operands[first], [*spans[:axis], *own, *spans[axis + 1 :]], left

    def known_part(self, value: Value, spans: Sequence[Span], gone: Sequence[int]) -> Value | None:
        """Return the value that is a slice of another value, up to a reshape; None if none is."""
        if not isinstance(value, Signal) or value.shape is None:
            return None
        cut = [axis for axis, size in enumerate(value.shape) if spans[axis] != (0, size, 1)]
        if not cut:
            return value
        within = self._within(value, spans, gone)
        if within is not None:
            whole = [(0, size, 1) for size in within[0].shape or ()]
            return within[0] if within[1] == whole else self.known_part(*within)
        if len({id(place.of) for place in value.places}) < 2:
            return None
        kept = [len(range(*span)) for axis, span in enumerate(spans) if axis not in gone]
        return self.spot(followed(value, sliced(spans, cut, gone)), tuple(kept)).value

    def _part(
        self,
        name: str,
        value: Signal,
        move: Move,
        spans: Sequence[Span],
        cut: Sequence[int],
        gone: Sequence[int],
        shape: Shape,
    ) -> Signal:
        held = {axis for unit in value.units for axis in unit.axes}
        is_crop = not gone and 0 not in cut and bool(held) and held.isdisjoint(cut)
        does: Does = "crop" if is_crop else "select" if cut else "move"
        node = self.draw("other", name, (value.node,), shape, (), does)
        if cut and held.isdisjoint(cut):
            self.rows[node] = Rows(value, tuple(spans), tuple(gone))
        if cut and not (gone or held or 0 in cut):
            self.axes.slices[node] = frozenset(cut)
        tracks, halves = [], set(value.halves)
        for track in value.tracks:
            view, own = move(track.view), track.operation
            touched = [
                axis for axis in cut if any(atom.axis >= 0 for atom in track.view.axes[axis])
            ]
            of, part = track.part if track.is_part else own, track.part
            if touched and of is not None:
                place = None if view is None else _place(track.view, touched, spans)
                part = of.cut(node, place)
                own.behind |= track.is_faded
                if place is not None:
                    halves.add((of, place))
            elif cut and not track.is_faded and len(value.tracks) == 1:
                own.crop(spans)
            if view is not None:
                is_part = track.is_part or bool(touched)
                tracks.append(track._replace(view=view, is_part=is_part, part=part))
        kept = [axis for axis in range(len(spans)) if axis not in gone]
        units = self.follow(node, value, {axis: (at,) for at, axis in enumerate(kept)})
        starts = None
        if not gone and all(step == 1 for *_, step in spans):
            starts = [start for start, *_ in spans]
        pieces = [piece.cropped(starts) for piece in value.chain[:_DEPTH]]
        moved = pieces[0].shift if value.shift and pieces[0].shift else ()
        shift = shift_of(tuple(max(by, 0) for by in moved))
        return Signal(
            node,
            shape,
            tuple(tracks),
            frozenset(halves),
            pieces=tuple(pieces),
            shift=shift,
            units=units,
            is_direct=value.is_direct,
        )

    def part_along(
        self, name: str, value: Value, axis: int, start: int, stop: int, gone: Sequence[int] = ()
    ) -> Value:
        """Draw a slice along one axis."""
        spans = [(0, size, 1) for size in value.shape or ()]
        spans[axis] = start, stop, 1
        return self.part(name, value, spans, gone)

    def split(self, name: str, value: Value, axis: int, sizes: Sequence[int | None]) -> list[Value]:
        """Draw a split into parts of some sizes along an axis."""
        if value.shape is None or None in sizes:
            return [self.part(name, value, None) for _ in sizes]
        ends = pairwise(accumulate([size or 0 for size in sizes], initial=0))
        return [self.part_along(name, value, axis, *span) for span in ends]

    def unstack(self, name: str, value: Value, axis: int, count: int) -> list[Value]:
        """Draw a split into the slices at every index of an axis, without that axis."""
        if value.shape is None:
            return [self.part(name, value, None) for _ in range(count)]
        return [self.part_along(name, value, axis, at, at + 1, (axis,)) for at in range(count)]


def spans_of(sizes: Sequence[int | None], index: Any) -> tuple[list[Span] | None, tuple[int, ...]]:
    """Return the span of a NumPy index along every axis, and the axes it drops; None if unknown.

    New axes of size 1 are ignored.

    >>> spans_of((4, 5, 6), (..., None, 2))
    ([(0, 4, 1), (0, 5, 1), (2, 3, 1)], (2,))
    """
    keys = [key for key in (index if isinstance(index, (tuple, list)) else [index])
            if key is not None]  # fmt: skip
    if None in sizes or any(k is not ... and not isinstance(k, (int, slice)) for k in keys):
        return None, ()
    if ... in keys:
        at = keys.index(...)
        keys[at : at + 1] = [slice(None)] * (len(sizes) - len(keys) + 1)
    spans, gone = [(0, size or 0, 1) for size in sizes], []
    for axis, key in enumerate(keys):
        if isinstance(key, int):
            gone.append(axis)
            key %= spans[axis][1]
            key = slice(key, key + 1)
        span = range(spans[axis][1])[key]
        if span.step < 1:
            return None, ()
        spans[axis] = (span.start, span.stop, span.step)
    return spans, tuple(gone)


def _place(old: View, touched: Sequence[int], spans: Sequence[Span]) -> Cut | None:
    """Return the part of the outputs that a slice takes, or None if it is not a block."""
    if len(touched) != 1 or not old.axes[touched[0]]:
        return None
    (axis,) = touched
    digits, (start, stop, step) = old.axes[axis], spans[axis]
    whole = prod(atom.radix for atom in digits)
    last = digits[-1].cut(step) if step > 1 and digits[-1].radix % step == 0 else None
    if last is not None and start < step and len(range(start, stop, step)) * step == whole:
        digits, (start, stop, step) = last[1:], (start, start + 1, 1)  # one value of a digit
    first, *inner = digits
    run = prod(atom.radix for atom in inner)
    if step != 1 or start % run or stop % run or start == stop or first.size != first.radix:
        return None
    part = first.slice(start // run, stop // run, 1)
    if part.axis < 0 or part.step < 0 or any(a.axis not in (part.axis, -1) for a in inner):
        return None
    end = part.start + part.size * part.step
    return Cut(part.axis, part.start, end, first.step * first.radix)
