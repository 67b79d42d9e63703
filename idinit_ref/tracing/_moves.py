"""Internal: operations that only move one value's entries: reshapes, slices, flips."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

from ..roles.graph import Does
from ._axes import View
from ._made import Made, Shape
from ._places import Runs, followed, runs_of, spans_in, whole
from ._resolution import between, copied_axes, without_copies
from ._results import Results
from ._units import Places, seen_by, spread_to
from ._values import Cut, Data, Fold, Piece, Place, Signal, Value

__all__ = ["Joined", "Moves", "Span", "Spot", "lose", "shift_of", "spans_of"]

Span = tuple[int, int, int]
"""The start, stop and step of a slice along an axis."""
_Move = Callable[[View], View | None]
_DEPTH = 4  # the most nested parts that are followed
_MOST = 64  # the most places that are moved on


class Joined(NamedTuple):
    """The operands of a concatenation or stack: along an axis, each from a start to the next."""

    axis: int
    starts: tuple[int, ...]
    operands: tuple[Value, ...]
    is_new: bool = False  # a stack's axis, which its operands lack


class Spot(NamedTuple):
    """The places of a new signal's entries, their runs, and the value that has them already."""

    places: tuple[Place, ...] = ()
    key: tuple[Shape, Runs] = ((), ())
    value: Value | None = None


class Moves(Results):
    """A drawing with moves."""

    def move(
        self,
        name: str,
        value: Value,
        shape: Shape | None,
        move: _Move,
        quiet: bool = False,
        spreads: bool = False,
        does: Does = "move",
        **more: Any,
    ) -> Value:
        """Draw a move, given its effect on a view.

        A quiet move adds no node to a signal. `spreads` means that it may copy along axes. `more`
        are further facts on a new signal. A move that undoes others has their operand as result.
        """
        if value.shape is None or shape is None:
            move = lose
        if isinstance(value, Made):
            return value.moved(shape, move)
        if isinstance(value, Data):
            return Data(shape)
        spot = self.spot(followed(value, move), shape)
        if spot.value is not None and (spot.value is not value or shape == value.shape):
            return self.reshape(name, spot.value, shape)
        tracks = []
        for track in value.tracks:
            view = move(track.view)
            if view is not None:
                tracks.append(track._replace(view=view))
            elif not (track.is_part or track.is_faded):
                track.operation.whole = True
        node = value.node
        if not quiet:
            node = self.draw("other", name, (value.node,), shape, (), does)
        if node != value.node and does == "move" and move is not lose:
            self._moves[node] = value, lambda by: self.move(name, by, shape, move, False, spreads)
        if node != value.node and not value.units and value.shape and shape:
            probe = move(View.of(value.shape))
            self._turns |= {} if probe is None else {node: seen_by(probe)}
        pieces = tuple(piece._replace(shift=None) for piece in value.pieces)
        shift, copied, places = _moved(value, shape, move, spreads)
        out = Signal(
            node,
            shape,
            tuple(tracks),
            value.halves,
            spread=copied,
            picks=value.picks,
            pieces=pieces,
            shift=shift,
            member=value.member.moved(shape, move) if value.member else None,
            chosen=value.chosen,
            is_number=value.is_number,
            units=self.follow(node, value, places),
            is_direct=value.is_direct,
            patches=value.patches and value.patches.moved(move),
            mixture=value.mixture and value.mixture.moved(shape, move),
        )
        return self.placed(out._replace(**more), spot)

    def spot(self, places: Sequence[Place] | None, shape: Shape | None) -> Spot:
        """Return where the entries of a new signal come from, and the value that has them."""
        if not places or shape is None or not prod(shape):
            return Spot()
        runs = runs_of(places, shape)
        found = self._placed.get((shape, runs)) or whole(runs, places, shape)
        return Spot(tuple(places) if len(places) <= _MOST else (), (shape, runs), found)

    def placed(self, signal: Signal, spot: Spot) -> Signal:
        """Return a new signal with the places of its entries, to be found again."""
        out = signal._replace(places=spot.places)
        if spot.places:
            self._placed[spot.key] = out  # its places keep their sources' identities
        return out

    def reshape(self, name: str, value: Value, shape: Shape | None) -> Value:
        """Draw a reshape, which may add or drop axes of size 1."""
        old = value.shape or ()
        if value.shape == shape is not None:
            return value
        coarse: Shape | None = None
        if isinstance(value, Signal):
            coarse, joined = without_copies(value, shape), self.joins.get(value.node)
            if coarse is None and joined and old[joined.axis :][:1] == (len(joined.operands),):
                coarse = between(value, joined.axis, shape)
        does: Does = "resize" if coarse else "move"
        if isinstance(value, Signal) and coarse:
            value = self.resized(name, value, coarse)
        more: dict[str, Any] = {}
        if isinstance(value, Signal) and value.fold and shape:
            more["fold"] = value.fold._replace(axes=_split(value.fold, old, shape))

        def move(view: View) -> View | None:
            return view.reshape(old, shape or ())

        return self.move(name, value, shape, move, does=does, **more)

    def resized(self, name: str, value: Signal, shape: Shape, does: Does = "move") -> Signal:
        """Draw a signal with another number of places; the facts on it stay as they are."""
        node = self.draw("other", name, (value.node,), shape, (), does)
        self.follow(node, value, spread_to(value.shape, value.shape))
        return value._replace(node=node, patches=None, mixture=None)

    def squeeze(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """Draw a reshape without some axes of size 1."""
        kept = [size for axis, size in enumerate(value.shape or ()) if axis not in axes]
        return self.reshape(name, value, None if value.shape is None else tuple(kept))

    def transpose(self, name: str, value: Value, order: Sequence[int]) -> Value:
        """Draw a permutation of axes."""
        shape = None if value.shape is None else tuple(value.shape[axis] for axis in order)
        return self.move(name, value, shape, lambda view: view.transpose(order))

    def flip(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """Draw a reversal of axes."""
        more: dict[str, Any] = {}
        if isinstance(value, Signal):
            more["pieces"] = tuple(Piece(piece.node, None) for piece in value.chain)
        return self.move(name, value, value.shape, lambda view: view.flip(axes), **more)

    def turn(self, name: str, value: Value, turns: int, plane: Sequence[int]) -> Value:
        """Draw quarter turns in a plane: a flip, and a transpose if their number is odd."""
        first, second = plane
        flipped: Sequence[int] = ([], [second], [first, second], [first])[turns % 4]
        order = list(range(len(value.shape or ())))
        if turns % 2:
            order[first], order[second] = second, first
        return self.transpose(name, self.flip(name, value, flipped), order)

    def broadcast(
        self, name: str, value: Value, shape: Shape | None, places: Sequence[int] | None = None
    ) -> Value:
        """Draw a broadcast; `places` are those of the axes of the value, the last ones if None."""
        old = value.shape
        if old is None or shape is None:
            return self.move(name, value, shape, lose)
        at = range(len(shape) - len(old), len(shape)) if places is None else places
        more: dict[str, Any] = {}
        if isinstance(value, Signal):
            copies = [size for size in old if size != 1] != [size for size in shape if size != 1]
            more["narrow"] = value.node if copies else value.narrow
            more["is_number"] = value.is_number or prod(old) == 1

        def move(view: View) -> View:
            return view.broadcast(shape, at, old)

        return self.move(name, value, shape, move, old == shape, True, **more)

    def tile(self, name: str, value: Value, shape: Shape | None, floating: bool = True) -> Value:
        """Draw copies side by side, along axes that become longer; the first axes may be new."""
        if not isinstance(value, Made) or value.shape is None or shape is None:
            out = self.result(name, [value], shape, floating, "move")
            if isinstance(out, Signal):
                out = out._replace(spread=copied_axes([value], shape))
            return out
        old = (1,) * (len(shape) - len(value.shape)) + value.shape
        pairs = [(new // size if size else 1, size) for size, new in zip(old, shape, strict=True)]
        apart = self.reshape(name, value, tuple(n for size in old for n in (1, size)))
        spread = self.broadcast(name, apart, tuple(n for pair in pairs for n in pair))
        return self.reshape(name, spread, shape)

    # Parts ----------------------------------------------------------------------------------

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
            return self.move(name, value, shape, lose, does="select")
        spans = [(start, max(start, stop), step) for start, stop, step in spans]
        sizes = [len(range(*span)) for span in spans]
        shape = tuple(size for axis, size in enumerate(sizes) if axis not in gone)
        cut = [axis for axis, size in enumerate(old) if spans[axis] != (0, size, 1)]

        def move(view: View) -> View | None:
            new: View | None = view
            for axis in cut:
                new = None if new is None else new.slice(axis, *spans[axis])
            for axis in sorted(gone, reverse=True):
                new = None if new is None else new.take(axis)
            return new

        if not isinstance(value, Signal):
            return self.move(name, value, shape, move)
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

    def _part(
        self,
        name: str,
        value: Signal,
        move: _Move,
        spans: Sequence[Span],
        cut: Sequence[int],
        gone: Sequence[int],
        shape: Shape,
    ) -> Signal:
        held = {axis for unit in value.units for axis in unit.axes}
        is_crop = not gone and 0 not in cut and bool(held) and held.isdisjoint(cut)
        does: Does = "crop" if is_crop else "select" if cut else "move"
        node = self.draw("other", name, (value.node,), shape, (), does)
        if cut and not (gone or held or 0 in cut):
            self._slices[node] = frozenset(cut)
        tracks, halves = [], set(value.halves)
        for track in value.tracks:
            view, own = move(track.view), track.operation
            touched = [
                axis for axis in cut if any(atom.axis >= 0 for atom in track.view.axes[axis])
            ]
            if touched and not (track.is_part or track.is_faded):
                place = None if view is None else _place(track.view, touched, spans)
                own.cuts[node] = place
                if place is not None:
                    halves.add((own, place))
            elif cut and not track.is_faded and len(value.tracks) == 1:
                own.crop(spans)
            if view is not None:
                tracks.append(track._replace(view=view, is_part=track.is_part or bool(touched)))
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

    def split(self, name: str, value: Value, axis: int, sizes: Sequence[int | None]) -> list[Value]:
        """Draw a split into parts of some sizes along an axis."""
        if value.shape is None or None in sizes:
            return [self.part(name, value, None) for _ in sizes]
        whole = [(0, size, 1) for size in value.shape]
        ends = pairwise(accumulate([size or 0 for size in sizes], initial=0))
        return [
            self.part(name, value, [*whole[:axis], (*span, 1), *whole[axis + 1 :]]) for span in ends
        ]

    def unstack(self, name: str, value: Value, axis: int, count: int) -> list[Value]:
        """Draw a split into the slices at every index of an axis, without that axis."""
        if value.shape is None:
            return [self.part(name, value, None) for _ in range(count)]
        whole = [(0, size, 1) for size in value.shape]
        return [
            self.part(name, value, [*whole[:axis], (at, at + 1, 1), *whole[axis + 1 :]], (axis,))
            for at in range(count)
        ]


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


def lose(view: View) -> None:
    return None


def shift_of(shift: tuple[int, ...]) -> tuple[int, ...]:
    return shift if any(shift) else ()


def _moved(
    value: Signal, shape: Shape | None, move: _Move, spreads: bool
) -> tuple[tuple[int, ...], frozenset[int], Places]:
    """Return a signal's shift by padding, its copied axes and where its axes go, for a move."""
    if not value.shift and not value.spread and not spreads and not value.units:
        return (), frozenset(), {}
    probe = None if shape is None or value.shape is None else move(View.of(value.shape))
    if probe is None or shape is None:
        return (), frozenset(), {}
    places = seen_by(probe) if value.units else {}
    if not value.shift and not value.spread and not spreads:
        return (), frozenset(), places
    shift = [0] * len(shape)
    copied = set()
    for axis, atoms in enumerate(probe.axes):
        atoms = tuple(atom for atom in atoms if atom.radix > 1)
        if value.shift and len(atoms) == 1 and atoms[0].axis >= 0 and atoms[0].step == 1:
            shift[axis] = value.shift[atoms[0].axis]
        if atoms and all(atom.axis < 0 or atom.axis in value.spread for atom in atoms):
            copied.add(axis)
    return shift_of(tuple(shift)), frozenset(copied), places


def _place(old: View, touched: Sequence[int], spans: Sequence[Span]) -> Cut | None:
    """Return the part of the outputs that a slice takes, or None if it is not a block."""
    if len(touched) != 1 or not old.axes[touched[0]]:
        return None
    (axis,) = touched
    first, *inner = old.axes[axis]
    start, stop, step = spans[axis]
    run = prod(atom.radix for atom in inner)
    if step != 1 or start % run or stop % run or start == stop or first.size != first.radix:
        return None
    part = first.slice(start // run, stop // run, 1)
    others = [atom for at, atoms in enumerate(old.axes) for atom in atoms if at != axis]
    slower = any(a.axis == part.axis and abs(a.step) > part.step for a in (*inner, *others))
    plain = part.step > 0 and all(atom.axis == part.axis for atom in inner)
    end = part.start + part.size * part.step
    return (part.axis, part.start, end) if plain and not slower else None


def _split(fold: Fold, old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that a reshape may have split at a period; several where one is 1."""
    return tuple(
        axis
        for axis in fold.track.operation.space
        if (*old[:axis], *old[axis + 1 :]) == (*new[:axis], *new[axis + 2 :])
    )
