"""Inside: what moves entries and computes none: reshapes, slices, concatenations, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod

from ..roles.graph import Does
from ._axes import View
from ._functions import Fact
from ._nodes import Nodes
from ._units import Unit, merged, renumbered, seen_by
from ._values import Cut, Data, Fold, Made, Part, Piece, Shape, Signal, Value

__all__ = ["Moves", "Span"]

Span = tuple[int, int, int]
"""From where to where a slice goes along an axis, and in which steps."""
_Move = Callable[[View], View | None]
_DEPTH = 4  # of parts of parts that are known


class Moves(Nodes):
    """A drawing that knows the moves."""

    def move(
        self,
        name: str,
        value: Value,
        shape: Shape | None,
        move: _Move,
        quiet: bool = False,
        spreads: bool = False,
        does: Does = "move",
    ) -> Value:
        """Draw a move, given what it does to a view.

        A quiet one leaves a signal's node; `spreads` says that it may copy along axes.
        """
        if value.shape is None or shape is None:
            move = _lose
        if isinstance(value, Made):
            return value.moved(shape, move)
        if isinstance(value, Data):
            return Data(shape)
        tracks = []
        for track in value.tracks:
            view = move(track.view)
            if view is not None:
                tracks.append(track._replace(view=view))
            elif not (track.is_part or track.is_faded):
                track.operation.whole = True
        node = value.node if quiet else self.draw("other", name, (value.node,), shape, (), does)
        pieces = tuple(piece._replace(shift=None) for piece in value.pieces)
        shift, copied, units = _moved(value, shape, move, spreads)
        return Signal(
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
            units=units,
            is_direct=value.is_direct,
        )

    def reshape(self, name: str, value: Value, shape: Shape | None) -> Value:
        """Draw a reshape: also a squeeze, and axes of size 1 more."""
        old = value.shape or ()
        same = value.shape == shape
        out = self.move(name, value, shape, lambda view: view.reshape(old, shape or ()), same)
        if isinstance(value, Signal) and isinstance(out, Signal) and value.fold and shape:
            return out._replace(fold=_folding(value.fold, old, shape))
        return out

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
        out = self.move(name, value, value.shape, lambda view: view.flip(axes))
        if isinstance(out, Signal) and isinstance(value, Signal):
            return out._replace(pieces=(Piece(value.node, None), *out.pieces))
        return out

    def broadcast(
        self, name: str, value: Value, shape: Shape | None, places: Sequence[int] | None = None
    ) -> Value:
        """Draw a broadcast; `places` are those of the axes of the value, the last ones if None."""
        old = value.shape
        if old is None or shape is None:
            return self.move(name, value, shape, _lose)
        at = range(len(shape) - len(old), len(shape)) if places is None else places
        out = self.move(
            name, value, shape, lambda view: view.broadcast(shape, at, old), old == shape, True
        )
        if isinstance(out, Signal) and isinstance(value, Signal):
            copies = [size for size in old if size != 1] != [size for size in shape if size != 1]
            return out._replace(
                narrow=value.node if copies else value.narrow,
                is_number=value.is_number or prod(old) == 1,
            )
        return out

    # Parts ----------------------------------------------------------------------------------

    def part(
        self,
        name: str,
        value: Value,
        spans: Sequence[Span] | None,
        gone: Sequence[int] = (),
        shape: Shape | None = None,
    ) -> Value:
        """Draw a slice: what it takes of every axis, and which axes vanish.

        Where the spans are not known, `shape` is that of the result.
        """
        old = value.shape
        if spans is None or old is None:
            return self.move(name, value, shape, _lose, does="select")
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
        return self._part(name, value, move, spans, cut, gone, shape)

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
        tracks, halves = [], set(value.halves)
        for track in value.tracks:
            view, own = move(track.view), track.operation
            touched = [
                axis for axis in cut if any(atom.axis >= 0 for atom in track.view.axes[axis])
            ]
            if touched and not (track.is_part or track.is_faded):
                place = None if view is None else _place(track.view, touched, spans)
                if place is None:
                    own.whole = True
                else:
                    own.cuts.add(place)
                    halves.add((own, place))
            if view is not None:
                tracks.append(track._replace(view=view, is_part=track.is_part or bool(touched)))
        held = {axis for unit in value.units for axis in unit.axes}
        is_crop = not gone and 0 not in cut and bool(held) and held.isdisjoint(cut)
        does: Does = "crop" if is_crop else "select" if cut else "move"
        node = self.draw("other", name, (value.node,), shape, (), does)
        kept = [axis for axis in range(len(spans)) if axis not in gone]
        units = renumbered(value.units, {axis: at for at, axis in enumerate(kept)})
        starts = None
        if not gone and all(step == 1 for *_, step in spans):
            starts = [start for start, *_ in spans]
        pieces = [_cropped(piece, starts) for piece in _chain(value)[:_DEPTH]]
        moved = pieces[0].shift if value.shift and pieces[0].shift else ()
        shift = _shift(tuple(max(by, 0) for by in moved))
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

    def split(self, name: str, value: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Draw a cut into parts of some sizes along an axis."""
        ends = list(pairwise(accumulate(sizes, initial=0)))
        if value.shape is None:
            return [self.part(name, value, None) for _ in ends]
        whole = [(0, size, 1) for size in value.shape]
        return [
            self.part(name, value, [*whole[:axis], (*span, 1), *whole[axis + 1 :]]) for span in ends
        ]

    # Wholes ---------------------------------------------------------------------------------

    def join(
        self,
        name: str,
        values: Sequence[Value],
        axis: int,
        shape: Shape | None,
        floating: bool = True,
    ) -> Value:
        """Draw a concatenation. Parts that are put together again, as in rotary, were no blocks."""
        halves = {half for value in values if isinstance(value, Signal) for half in value.halves}
        for operation, half in halves:
            if any(operation is of and half != rest for of, rest in halves):
                operation.whole = True
        sizes = [None if value.shape is None else value.shape[axis] for value in values]
        starts = None if None in sizes else list(accumulate([n or 0 for n in sizes], initial=0))
        out = self.result(name, values, shape, floating, "join")
        if isinstance(out, Made) and starts is not None:
            made = [value for value in values if isinstance(value, Made)]
            pairs = zip(made, starts[:-1], strict=True)
            parts = [
                part._replace(factor=False)
                for value, start in pairs
                for part in value.moved(
                    shape,
                    lambda view, low=start: view.join(axis, low, starts[-1]),  # type: ignore[misc]  # no type in a default
                ).parts
            ]
            return Made(shape, _merged(parts, axis))
        if isinstance(out, Signal):
            shift = () if starts is None else _padded(values, axis, starts, sizes)
            return out._replace(halves=frozenset(halves), shift=shift)
        return out

    def stack(self, name: str, values: Sequence[Value], axis: int, shape: Shape | None) -> Value:
        """Draw a stack along a new axis."""
        if all(isinstance(value, Made) for value in values):
            rows = []
            for value in values:
                size = value.shape
                new = None if size is None else (*size[:axis], 1, *size[axis:])
                rows.append(self.move(name, value, new, lambda view: view.expand(axis)))
            return self.join(name, rows, axis, shape)
        out = self.result(name, values, shape, word="join")
        if isinstance(out, Signal) and shape is not None:
            units = [value.units for value in values if isinstance(value, Signal)]
            places = {old: old + (old >= axis) for old in range(len(shape) - 1)}
            return out._replace(units=merged(renumbered(sum(units, ()), places)))
        return out

    def pad(
        self,
        name: str,
        value: Value,
        low: Sequence[int],
        shape: Shape | None,
        gaps: Sequence[int] | None = None,
        others: Sequence[Value] = (),
        does: Does = "pad",
    ) -> Value:
        """Draw a padding: what it adds before every axis, and between entries; less is a crop.

        `others` are what it puts there; `does` is "move" where that is entries of the value.
        """
        out = self.result(name, [value, *others], shape, word=Fact(does, "sum"))
        old, gaps = value.shape, gaps or (0,) * len(low)
        if isinstance(value, Made) and isinstance(out, Made) and old and shape and not any(gaps):

            def move(view: View) -> View | None:
                new: View | None = view
                for axis, by in enumerate(low):
                    size = min(old[axis], shape[axis] - by)
                    if new is not None and (by < 0 or size < old[axis]):
                        new = new.slice(axis, max(-by, 0), size)
                    if new is not None and shape[axis] != old[axis]:
                        new = new.join(axis, max(by, 0), shape[axis])
                return new

            return value.moved(shape, move)
        if not isinstance(value, Signal) or not isinstance(out, Signal):
            return out
        places = zip(low, value.moved, gaps, strict=True)
        shift = tuple(by + at * (1 + gap) for by, at, gap in places)
        tracks = value.fresh
        is_circle = len(tracks) == 1 and tracks[0].operation.space
        return out._replace(shift=_shift(shift), fold=Fold(tracks[0], shift) if is_circle else None)

    def write(
        self, name: str, value: Value, part: Value, low: Sequence[int], shape: Shape | None
    ) -> Value:
        """Draw that a part of a value is written over, from `low` on along every axis.

        Over a constant that is a padding. Over a signal, what is a part of it itself pads it.
        """
        if isinstance(value, Made) and not value.parts:
            return self.pad(name, part, low, shape)
        if isinstance(value, Made) and isinstance(part, Made) and part.shape is not None:
            spans = [(at, at + size, 1) for at, size in zip(low, part.shape, strict=True)]
            under, new = self.part(name, value, spans), self.pad(name, part, low, shape)
            if isinstance(under, Made) and isinstance(new, Made) and not under.parts:
                return Made(shape, (*value.parts, *new.parts))
        floating = any(isinstance(one, Signal) for one in (value, part))
        out = self.result(name, [value, part], shape, floating, "scatter")
        own = part.pieces if isinstance(part, Signal) else ()
        if isinstance(out, Signal) and isinstance(value, Signal):
            is_own = any(piece.node == value.node for piece in own)
            return out._replace(shift=value.shift) if is_own else out
        return out

    def roll(self, name: str, value: Value, by: Mapping[int, int]) -> Value:
        """Draw a shift along axes, in which what leaves at one end enters at the other."""
        if value.shape is None or isinstance(value, Data):
            return self.move(name, value, value.shape, _lose)
        if isinstance(value, Signal):
            out = self.result(name, [value], value.shape, word="move")
            assert isinstance(out, Signal)
            shift = tuple(at + by.get(axis, 0) for axis, at in enumerate(value.moved))
            return out._replace(shift=_shift(shift))
        new: Value = value
        for axis, step in by.items():
            size = value.shape[axis]
            first = -step % size if size else 0
            if first:
                new = self.join(
                    name,
                    self.split(name, new, axis, [first, size - first])[::-1],
                    axis,
                    value.shape,
                )
        return new


def _lose(view: View) -> None:
    return None


def _shift(shift: tuple[int, ...]) -> tuple[int, ...]:
    return shift if any(shift) else ()


def _moved(
    value: Signal, shape: Shape | None, move: _Move, spreads: bool
) -> tuple[tuple[int, ...], frozenset[int], tuple[Unit, ...]]:
    """Return by how much padding has moved a signal, and which axes are copies, after a move.

    And which hold units.
    """
    if not value.shift and not value.spread and not spreads and not value.units:
        return (), frozenset(), ()
    probe = None if shape is None or value.shape is None else move(View.of(value.shape))
    if probe is None or shape is None:
        return (), frozenset(), ()
    units = seen_by(probe, value.units) if value.units else ()
    if not value.shift and not value.spread and not spreads:
        return (), frozenset(), units
    shift = [0] * len(shape)
    copied = set()
    for axis, atoms in enumerate(probe.axes):
        atoms = tuple(atom for atom in atoms if atom.radix > 1)
        if value.shift and len(atoms) == 1 and atoms[0].axis >= 0 and atoms[0].step == 1:
            shift[axis] = value.shift[atoms[0].axis]
        if atoms and all(atom.axis < 0 or atom.axis in value.spread for atom in atoms):
            copied.add(axis)
    return _shift(tuple(shift)), frozenset(copied), units


def _place(old: View, touched: Sequence[int], spans: Sequence[Span]) -> Cut | None:
    """Return which part of the outputs a slice takes, or None where it is no block."""
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


def _folding(fold: Fold, old: Sequence[int], new: Sequence[int]) -> Fold | None:
    """Return the fold of a reshape that cuts one axis at a period."""
    for axis in fold.track.operation.space:
        if (*old[:axis], *old[axis + 1 :]) == (*new[:axis], *new[axis + 2 :]):
            return fold._replace(axis=axis)
    return None


def _merged(parts: Sequence[Part], axis: int) -> tuple[Part, ...]:
    """Put parts of a parameter together that follow one another as they are stored."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        view = None
        if last is not None and last.name == part.name and last.view and part.view:
            view = _following(last.view, part.view, axis)
        if last is not None and view is not None:
            found[-1] = last._replace(view=view)
        else:
            found.append(part)
    return tuple(found)


def _following(one: View, two: View, axis: int) -> View | None:
    a, b = one.axes[axis][0], two.axes[axis][0]
    next_ = a._replace(size=b.size, start=a.start + a.size * a.step, low=a.low + a.size)
    if next_ != b or replace(one, axes=two.axes) != two:
        return None
    rest = [one.axes[axis][1:] == two.axes[axis][1:]]
    rest += [x == y for at, (x, y) in enumerate(zip(one.axes, two.axes, strict=True)) if at != axis]
    whole = (a._replace(size=a.size + b.size), *one.axes[axis][1:])
    return (
        replace(one, axes=(*one.axes[:axis], whole, *one.axes[axis + 1 :])) if all(rest) else None
    )


def _padded(
    values: Sequence[Value], axis: int, starts: Sequence[int], sizes: Sequence[int | None]
) -> tuple[int, ...]:
    """Return how far a concatenation moves the signal that it pads.

    That is one of which all others are parts, or else the longest of all.
    """
    places = zip(values, starts, sizes, strict=False)
    signals = [(v, start, size or 0) for v, start, size in places if isinstance(v, Signal)]
    if len(values) == 1 or not signals:
        return ()
    roots = _chain(signals[0][0])
    for value, *_ in signals[1:]:
        nodes = {piece.node for piece in _chain(value)}
        roots = [root for root in roots if root.node in nodes]
    if roots:
        found = []
        for value, start, size in signals:
            piece = next(piece for piece in _chain(value) if piece.node == roots[0].node)
            if piece.shift is not None:
                found.append((value.node == piece.node, size, start, piece.shift))
        if not found:
            return ()
        *_, start, moved = max(found)
    else:
        sizes_of = sorted((size for *_, size in signals), reverse=True)
        value, start, size = max(signals, key=lambda one: one[2])
        if len(signals) > 1 and sizes_of[0] == sizes_of[1]:
            return ()
        moved = value.moved
    return _shift(tuple(by + start * (at == axis) for at, by in enumerate(moved)))


def _chain(value: Signal) -> list[Piece]:
    """Return what a signal is a part of, the nearest first: itself."""
    return [Piece(value.node, value.moved), *value.pieces]


def _cropped(piece: Piece, starts: Sequence[int] | None) -> Piece:
    """Return a piece without what a slice cuts off before it; None if it is no plain slice."""
    if starts is None or piece.shift is None:
        return piece._replace(shift=None)
    return Piece(piece.node, tuple(at - by for at, by in zip(piece.shift, starts, strict=True)))
