"""Internal: where the entries of a signal come from, so that what is undone is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.layout import strides_of
from ._axes import View
from ._made import Shape
from ._values import Data, Place, Signal, Value, is_constant

__all__ = [
    "Box",
    "Move",
    "Runs",
    "assembled",
    "box_at",
    "embedded",
    "followed",
    "outside",
    "runs_of",
    "sliced",
    "spans_in",
    "taken",
    "turned",
    "whole",
]

Move = Callable[[View], View | None]


def followed(value: Value, move: Move) -> tuple[Place, ...] | None:
    """Return the places of a value's entries after a move; None if they cannot be tracked.

    Zeros have no places. A value whose sources cannot be tracked any more is its own source.
    """
    if is_constant(value) and value.zero:
        return ()
    if value.shape is None or isinstance(value, Data):
        return None
    own = value.places if isinstance(value, Signal) else ()
    found = _moved(own, move) if own else None
    if found is None:
        root = whole(runs_of(own, value.shape), own, value.shape) or value  # of a reshape
        found = _moved((Place(root, View.of(value.shape), value.shape),), move)
    return found


def _moved(places: Iterable[Place], move: Move) -> tuple[Place, ...] | None:
    moved = [(place, move(place.view)) for place in places]
    found = [place._replace(view=view) for place, view in moved if view is not None]
    if len(found) < len(moved):
        return None
    return tuple(place for place in found if not place.view.is_empty)


def embedded(
    view: View, low: Sequence[int], old: Shape, shape: Shape, steps: Sequence[int] = ()
) -> View | None:
    """Return a view padded to a shape, from `low` on along every axis; negative ones crop.

    Along an axis of a step greater than 1, its entries are so far apart.
    """
    new: View | None = view
    for axis, by in enumerate(low):
        step = steps[axis] if steps else 1
        if step > 1:
            fits = by >= 0 and by + (old[axis] - 1) * step < shape[axis]
            new = new.join(axis, by, shape[axis], step) if new is not None and fits else None
            continue
        size = min(old[axis], shape[axis] - by)
        if new is not None and (by < 0 or size < old[axis]):
            new = new.slice(axis, max(-by, 0), size)
        if new is not None and shape[axis] != max(size + min(by, 0), 0):
            new = new.join(axis, max(by, 0), shape[axis])
    return new


def assembled(moves: Iterable[tuple[Value, Move]]) -> tuple[Place, ...] | None:
    """Return the places of several moved values that together are one; None if unknown."""
    found: tuple[Place, ...] = ()
    for value, move in moves:
        places = followed(value, move)
        if places is None:
            return None
        found += places
    return found


def outside(low: Sequence[int], part: Shape, shape: Shape, steps: Sequence[int]) -> Iterator[Move]:
    """Yield moves to the entries of an array outside a box, which stay where they are.

    Along every axis, the box has entries from `low` on, a step apart.
    """

    def boxed(spans: Mapping[int, range]) -> Move:
        def move(view: View) -> View | None:
            new: View | None = view
            for axis, span in spans.items():
                by = span.start, span.stop, span.step
                new = None if new is None else new.slice(axis, *by)
                new = None if new is None else new.join(axis, by[0], shape[axis], by[2])
            return new

        return move

    inside: dict[int, range] = {}
    for axis, (first, size, whole, step) in enumerate(zip(low, part, shape, steps, strict=True)):
        own = range(whole)[max(first, 0) : max(first + size * step, 0) : step]
        rests = [range(at, whole, step) for at in range(step) if at != first % step]
        rests += [range(first % step, own.start, step), range(own.stop, whole, step)]
        yield from (boxed({**inside, axis: rest}) for rest in rests if rest)
        if len(own) < whole:
            inside[axis] = own


def sliced(
    spans: Sequence[tuple[int, int, int]], cut: Iterable[int], gone: Iterable[int] = ()
) -> Move:
    """Return a slice along the axes `cut`, which drops the axes `gone`."""

    def move(view: View) -> View | None:
        new: View | None = view
        for axis in cut:
            new = None if new is None else new.slice(axis, *spans[axis])
        for axis in sorted(gone, reverse=True):
            new = None if new is None else new.take(axis)
        return new

    return move


class Box(NamedTuple):
    """Some entries of an array: along every axis their first index, number and distance.

    Along the axes `turned` they come in reverse order.
    """

    low: Sequence[int]
    sizes: Sequence[int]
    steps: Sequence[int]
    turned: tuple[int, ...] = ()

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """The start, stop and step along every axis."""
        axes = zip(self.low, self.sizes, self.steps, strict=True)
        return [(low, low + (size - 1) * step + 1, step) for low, size, step in axes]


def box_at(
    index: NDArray[np.int64],
    axes: Sequence[int],
    windows: Sequence[int | None],
    new: Shape,
    shape: Shape,
) -> tuple[Box, list[int]] | None:
    """Return the box that a scatter writes to, and the axes of its update in the box's order.

    A lookup reads such a box; its result stands for the update.

    Parameters
    ----------
    index : array of shape (*rows, len(axes))
        Where each update starts; negative indices count from the end.
    axes : sequence of int
        The axes that the indices belong to.
    windows : sequence of (int or None)
        For each axis of the array, the axis of the update that lies along it; None if an update
        has one entry there.
    new, shape : tuple of int
        The shapes of the update, whose other axes are `rows`, and of the array.

    Examples
    --------
    >>> box_at(np.array([[1], [3]]), [1], [0, None], (4, 2), (4, 6))
    (Box(low=[0, 1], sizes=[4, 2], steps=[1, 2], turned=()), [0, 1])
    >>> box_at(np.array([[-1], [-2]]), [1], [0, None], (4, 2), (4, 6))
    (Box(low=[0, 4], sizes=[4, 2], steps=[1, 1], turned=(1,)), [0, 1])
    """
    rows = [axis for axis in range(len(new)) if axis not in windows]
    low, steps, order, turned = [0] * len(windows), [1] * len(windows), list(windows), list[int]()
    if len(rows) != index.ndim - 1:
        return None
    for axis, at in zip(axes, np.moveaxis(index, -1, 0), strict=True):
        at = np.where(at < 0, at + shape[axis], at)
        apart = {k: {*np.diff(at, axis=k).flat} for k in range(at.ndim)}
        ways = [k for k, by in apart.items() if by - {0}]
        if not at.size or len(ways) > (windows[axis] is None):
            return None
        low[axis] = int(at.min())
        for k in ways:
            by, order[axis] = min(apart[k]), rows[k]
            if len(apart[k]) > 1:
                return None
            steps[axis] = abs(by)
            turned += [axis] if by < 0 else []
    used = [axis for axis in order if axis is not None]
    left = [axis for axis in range(len(new)) if axis not in used]
    if len(set(used)) < len(used) or any(new[axis] > 1 for axis in left):
        return None
    sizes = [1 if axis is None else new[axis] for axis in order]
    box = Box(low, sizes, list(map(int, steps)), tuple(turned))
    ends = zip(box.spans, shape, strict=True)
    is_inside = all(start >= 0 and stop <= size for (start, stop, _), size in ends)
    return (box, [*used, *left]) if is_inside else None


def turned(by: Mapping[int, int], shape: Shape) -> Iterator[Move]:
    """Yield the moves of all parts of a circular shift along axes."""

    def part(spans: Iterable[tuple[int, int]]) -> Move:
        def move(view: View) -> View | None:
            new: View | None = view
            for axis, (start, stop) in zip(by, spans, strict=True):
                new = None if new is None else new.slice(axis, start, stop)
                low = (start + by[axis]) % shape[axis]
                new = None if new is None else new.join(axis, low, shape[axis])
            return new

        return move

    firsts = [(-step % shape[axis] if shape[axis] else 0, shape[axis]) for axis, step in by.items()]
    ways = [[(a, b) for a, b in ((0, first), (first, size)) if a < b] for first, size in firsts]
    for spans in product(*ways):
        yield part(spans)


# Equal entries at equal places ------------------------------------------------------------------

Loop = tuple[int, int, int]
"""Entries at equal distances: their distance, their number, and their distance in the source."""


class _Run(NamedTuple):
    """Entries of one source, by their numbers in row-major order."""

    at: int  # of the first one
    of: int  # the identity of the source
    start: int  # the number of the first one in the source
    loops: tuple[Loop, ...]

    def join(self, other: _Run) -> _Run | None:
        """Return a run with another one that continues it, or None."""
        if self.of != other.of:
            return None
        by, source = other.at - self.at, other.start - self.start
        mine, theirs = set(self.loops) - set(other.loops), set(other.loops) - set(self.loops)
        if len(mine) > 1 or len(theirs) > 1:
            return None
        step, count, run = next(iter(mine or theirs), (by, 1, source))
        more = next(iter(theirs), (step, 1, run))
        first = count if mine else 1
        if (more[0], more[2]) != (step, run) or (by, source) != (first * step, first * run):
            return None
        loops = {*self.loops} - mine | {(step, first + more[1], run)}
        return self._replace(loops=_coalesced(loops))

    def in_source(self) -> _Run:
        """Return it as entries of the source alone, in the source's order."""
        back = sum((count - 1) * by for _, count, by in self.loops if by < 0)
        loops = _coalesced((abs(by), count, abs(by)) for _, count, by in self.loops)
        return _Run(self.start + back, self.of, self.start + back, loops)


Runs = tuple[_Run, ...]


def runs_of(places: Iterable[Place], shape: Shape) -> Runs:
    """Return the runs of a value's entries; equal entries at equal places have equal runs."""
    return _joined(_run_of(place, shape) for place in places)


def _joined(runs: Iterable[_Run]) -> Runs:
    """Return runs in order, those that continue another merged with it."""
    found: list[_Run] = []
    for run in sorted(runs):
        new: _Run | None = run
        while found and new is not None:
            new = found[-1].join(run)
            if new is not None:
                found.pop()
                run = new
        found.append(run)
    return tuple(found)


def spans_in(place: Place) -> list[tuple[int, int, int]] | None:
    """Return the slice of a source that a value is, but for axes of size 1; None if it is none."""
    if place.of.shape != place.seen:
        return None
    spans = [(0, 1, 1) if size == 1 else None for size in place.seen]
    last = -1
    for axis in (*place.view.axes, *((atom,) for atom in place.view.fixed)):
        for atom in axis:
            if atom.radix == 1 and atom.axis < 0:
                continue
            is_full = len(axis) == 1 and atom.low == 0 and atom.size == atom.radix and atom.step > 0
            is_next = atom.axis > last or (atom.size == 1 and atom.axis >= 0)
            if not (is_full and is_next) or spans[atom.axis] is not None:
                return None
            last = atom.axis if atom.size > 1 else last
            stop = atom.start + (atom.size - 1) * atom.step + 1
            spans[atom.axis] = (atom.start, stop, atom.step)
    known = [span for span in spans if span is not None]
    return known if len(known) == len(spans) else None


def taken(places: Iterable[Place], shape: Shape) -> Runs:
    """Return which entries of its sources a value holds, in any order, as runs."""
    return _joined(_run_of(place, shape).in_source() for place in places)


def whole(runs: Runs, places: Sequence[Place], shape: Shape) -> Value | None:
    """Return the one value whose entries, in its order, are all entries of a shape; or None."""
    if not places or any(place.of is not places[0].of for place in places):
        return None
    of, size = places[0].of, prod(shape)
    known = sum(prod(count for _, count, _ in run.loops) for run in runs)
    in_order = all(
        run.at == run.start and all(step == by for step, _, by in run.loops) for run in runs
    )
    return of if in_order and known == size == prod(of.shape or ()) else None


def _run_of(place: Place, shape: Shape) -> _Run:
    old, view = strides_of(place.seen), place.view
    at = start = 0
    loops: set[Loop] = set()
    for step, atoms in [*zip(strides_of(shape), view.axes, strict=True), (0, view.fixed)]:
        for atom in reversed(atoms):
            by = old[atom.axis] if atom.axis >= 0 else 0
            at, start = at + step * atom.low, start + by * atom.start
            if atom.size > 1:
                loops.add((step * atom.apart, atom.size, by * atom.step))
            step *= atom.radix
    return _Run(at, id(place.of), start, _coalesced(loops))


def _coalesced(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    """Return loops from the shortest distance on, those that continue another merged with it."""
    found: list[Loop] = []
    for step, count, by in sorted(loops):
        last = found[-1] if found else (0, 1, 0)
        if found and (step, by) == (last[0] * last[1], last[2] * last[1]):
            found[-1] = (last[0], last[1] * count, last[2])
        else:
            found.append((step, count, by))
    return tuple(found)
