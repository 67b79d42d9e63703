"""Internal: lookups in a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._axes import Atom, Axis, View
from ._made import Made, Shape, names_of
from ._places import box_at
from ._products import Products
from ._recipes import reordered
from ._values import Data, Signal, Value, is_constant

__all__ = ["Lookups"]

_MOST = 64  # the most rows that are joined one by one
_SLICES = 16  # the most slices of one signal that indices take


class Selection(NamedTuple):
    """Entries of a signal that indices or a mask select."""

    table: Signal
    places: tuple[Value, ...]
    shape: Shape | None
    kept: tuple[int | None, ...] | None

    def is_like(self, other: Selection) -> bool:
        """Whether the same entries are selected of a signal of the same shape."""
        if len(self.places) != len(other.places):
            return False
        pairs = zip(self.places, other.places, strict=True)
        is_alike = self.shape == other.shape and self.kept == other.kept
        is_alike &= self.table.shape == other.table.shape is not None
        return is_alike and all(a is b for a, b in pairs)


class Lookup(NamedTuple):
    """A lookup in a table: see :meth:`Lookups.lookup`."""

    name: str
    table: Value
    places: Sequence[Value]
    shape: Shape | None
    kept: Sequence[int | None] | None
    axes: Sequence[int] | None


class Lookups(Products):
    """A drawing with lookups."""

    def lookup(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None = None,
        floating: bool = True,
        axes: Sequence[int] | None = None,
    ) -> Value:
        """Draw a lookup of rows in a table, or of a matrix in a stack (it may be a weight).

        A lookup in a signal at known indices that form a box is a slice, and one that repeats
        entries at the border of the signal, as padding does, a concatenation of slices.

        Parameters
        ----------
        name : str
            Of the operation.
        values : sequence of Value
            The table and the indices.
        shape : tuple of int, optional
            Of the result.
        kept : sequence of (int or None), optional
            For each axis of the result, the table's axis that it keeps whole, or None for an axis
            of the indices. The lookup takes one index of every other axis. None if unknown.
        floating : bool
            Whether the result is a floating-point tensor.
        axes : sequence of int, optional
            The table's axes to which the indices belong, if one array holds the indices of all
            along its last axis. By default there is one array for each axis that is not kept.
        """
        table, *rest = values
        of = Lookup(name, table, rest, shape, kept, axes)
        if isinstance(table, Signal) and floating:
            found = self._at_box(of) or self._in_runs(of)
            return found or self.select(name, table, rest, shape, kept)
        if not isinstance(table, Made) or not table.parts:
            return self.result(name, values, shape, floating, "select")
        chosen = table.lost(shape)
        if kept is not None and shape is not None:
            chosen = table.moved(shape, lambda view: _chosen(view, kept, shape))
        if not any(isinstance(value, (Signal, Data)) for value in rest):
            is_row = kept is not None and None not in kept  # at one index of each other axis
            if not names_of(rest) and (chosen.is_matrix or is_row):
                return self._at_box(of) or chosen
            order = _order_of(table, rest, shape, kept) if floating and table.is_plain else None
            if order is not None:
                self.use(table, "rows")
                recipe = reordered(table, *order)
                found = table.multiplied(()).noted(lambda own: "reordered")
                return found._replace(recipe=recipe) if recipe else table
            is_known = floating and all(map(is_constant, rest)) and _are_apart(rest, kept)
            self.use(table, "rows" if is_known else "embedding" if floating else "other")
            found = self._rows(of) if is_known else None
            return found or self.other(name, values, shape, floating)
        if not floating:
            return self.result(name, values, shape, floating)
        found = self.find(name, table, shape)
        return found._replace(member=chosen, chosen=found.node)

    def _rows(self, of: Lookup) -> Value | None:
        """Draw a lookup of several rows at known indices: a slice, or rows that are joined."""
        name, table, places, shape, kept, _ = of
        if table.shape is None or shape is None or kept is None:
            return None
        if not isinstance(table, Made) or not table.is_plain:
            return None
        found = self._at_box(of)
        new = [axis for axis, old in enumerate(kept) if old is None]
        if found is not None or len(shape) != len(table.shape) or len(new) != 1:
            return found if found is not None and prod(shape[axis] for axis in new) > 1 else None
        index, (axis,) = _index_of(places, 1), {*range(len(kept))} - {*kept}
        order = [] if index is None else [int(at) % table.shape[axis] for at in index.ravel()]
        if not 1 < len({*order}) == len(order) <= _MOST:
            return None
        rows = self._by_runs(name, table, axis, [range(at, at + 1) for at in order])
        turned = [axis if old is None else old for old in kept]
        return rows if turned == sorted(turned) else self.transpose(name, rows, turned)

    def _at_box(self, of: Lookup) -> Value | None:
        """Draw a lookup at known indices that form a box; None if they do not."""
        name, table, places, shape, kept, axes = of
        if table.shape is None or shape is None or kept is None:
            return None
        windows = [kept.index(a) if a in kept else None for a in range(len(table.shape))]
        own = [axis for axis, window in enumerate(windows) if window is None]
        index = _index_of(places, len(own) if axes is None else None)
        found = None if index is None else box_at(index, axes or own, windows, shape, table.shape)
        if found is None:
            return None
        box, order = found
        part = self.part(name, table, box.spans)
        if box.turned:
            part = self.flip(name, part, box.turned)
        used = [axis for axis in order if shape[axis] != 1]  # in the order of the box
        part = self.reshape(name, part, tuple(shape[axis] for axis in used))
        if used != sorted(used):
            part = self.transpose(name, part, [used.index(axis) for axis in sorted(used)])
        return self.reshape(name, part, shape)

    def _in_runs(self, of: Lookup) -> Value | None:
        """Draw a lookup along some axes, of a few runs of indices, as slices side by side, or None.

        Padding by an index is such a lookup.
        """
        name, table, places, shape, kept, axes = of
        if table.shape is None or shape is None or kept is None or len(kept) != len(table.shape):
            return None
        own = [axis for axis, old in enumerate(kept) if old != axis]
        index = _index_of(places, len(own) if axes is None else None)
        if index is None or index.shape != (*(shape[axis] for axis in own), len(own)):
            return None
        along: list[tuple[int, list[range]]] = []
        for k, axis in enumerate(own):
            size, at = table.shape[axis], np.moveaxis(index[..., k], k, 0).reshape(shape[axis], -1)
            is_own = kept[axis] is None and (axes or own)[k] == axis and (at == at[:, :1]).all()
            runs = _runs_of([int(k + size if k < 0 else k) for k in at[:, 0]]) if is_own else []
            if not runs or any(min(run) < 0 or max(run) >= size for run in runs):
                return None
            along.append((axis, runs))
        found: Value = table
        for axis, runs in along:
            found = self._by_runs(name, found, axis, runs)
        return found

    def _by_runs(self, name: str, value: Value, axis: int, runs: Sequence[range]) -> Value:
        """Draw slices of a value side by side; those of falling indices are reversed."""
        sizes, parts = value.shape or (), []
        for run in runs:
            part = self.part_along(name, value, axis, min(run), max(run) + 1)
            parts.append(self.flip(name, part, [axis]) if run.step < 0 else part)
        shape = (*sizes[:axis], sum(map(len, runs)), *sizes[axis + 1 :])
        return self.join(name, parts, axis, shape)

    def select(
        self,
        name: str,
        table: Signal,
        places: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None,
    ) -> Value:
        """Draw a selection of a signal's entries; the same selection is drawn once."""
        whole = None if kept is None else tuple(kept)

        def draw() -> Value:
            out = self.result(name, [table, *places], shape, word="select")
            if isinstance(out, Signal):
                self.selections[out.node] = Selection(table, tuple(places), shape, whole)
            return out

        return self.once((table.node, shape, whole), places, draw)

    def take(
        self,
        name: str,
        table: Value,
        places: Value,
        axis: int,
        shape: Shape | None,
        floating: bool = True,
    ) -> Value:
        """Draw a lookup along one axis, which the axes of the indices replace."""
        kept: list[int | None] | None = None
        if table.shape is not None and shape is not None:
            rank = len(table.shape)
            at = axis % rank
            kept = [*range(at), *[None] * (len(shape) - rank + 1), *range(at + 1, rank)]
        return self.lookup(name, [table, places], shape, kept, floating)


def _are_apart(places: Sequence[Value], kept: Sequence[int | None] | None) -> bool:
    """Whether a lookup takes rows along one axis, each once; positions of pairs repeat them."""
    index = _index_of(places, 1) if kept is not None and kept.count(None) == 1 else None
    return index is not None and len({*index.ravel().tolist()}) == index.size


def _index_of(places: Sequence[Value], count: int | None) -> NDArray[np.int64] | None:
    """Return known indices in one array, the last axis for their axes; None if some are unknown.

    They are `count` arrays, which broadcast, or one array already (None).
    """
    given = [place.integers if isinstance(place, Made) else None for place in places]
    known = [index for index in given if index is not None]
    if len(known) < len(given) or len(given) != (count or 1):
        return None
    return known[0] if count is None else np.stack(np.broadcast_arrays(*known), -1)


def _order_of(
    table: Made, places: Sequence[Value], shape: Shape | None, kept: Sequence[int | None] | None
) -> tuple[int, NDArray[np.int64]] | None:
    """Return the axis of a table along which a lookup takes every row once, and their order."""
    if shape is None or shape != table.shape or kept is None or len(places) != 1:
        return None
    index = places[0].integers if isinstance(places[0], Made) else None
    axes = [axis for axis, old in enumerate(kept) if old != axis]
    if index is None or len(axes) != 1 or kept[axes[0]] is not None:
        return None
    order = index.ravel() % shape[axes[0]]
    return (axes[0], order) if sorted(order) == list(range(shape[axes[0]])) else None


def _chosen(view: View, kept: Sequence[int | None], shape: Shape) -> View:
    """Return the view of a lookup at an unknown index."""
    axes: list[Axis] = [(Atom.of(-1, size),) for size in shape]
    fixed = list(view.fixed)
    for axis, atoms in enumerate(view.axes):
        if axis in kept:
            axes[kept.index(axis)] = atoms
        else:
            fixed += atoms
    return View(tuple(axes), tuple(fixed))


def _runs_of(indices: Sequence[int]) -> list[range]:
    """Return the runs of neighbours in a list of indices; none if no run is most of the list.

    >>> _runs_of([3, 0, 1, 2, 3, 0]), _runs_of([3, 0, 2, 1])
    ([range(3, 4), range(0, 4), range(0, 1)], [])
    """
    found: list[range] = []
    for at in indices:
        last = found[-1] if found else range(0)
        step = at - last[-1] if last else 0
        if abs(step) == 1 and (len(last) == 1 or step == last.step):
            found[-1] = range(last[0], at + step, step)
        else:
            found.append(range(at, at + 1))
    longest = max(map(len, found), default=0)
    return found if 2 * longest > len(indices) and len(found) <= _SLICES else []
