"""Internal: operations that only move one value's entries: reshapes, slices, flips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from ..roles.graph import Does
from ._axes import View
from ._made import Made, Shape, entries_of, span_of
from ._places import Move, Runs, assembled, followed, runs_of, whole
from ._resolution import between, copied_axes, without_copies
from ._results import Results
from ._units import Places, seen_by, spread_to
from ._values import Data, Fold, Piece, Place, Signal, Value, is_constant

__all__ = ["Moves", "Moving", "Spot", "chained", "lose", "shift_of", "unmoved"]

_MOST = 64  # the most places that are moved on


class Moving(NamedTuple):
    """A move, given its effect on a view.

    A quiet move adds no node to a signal. `spreads` means that it may copy along axes. `more` are
    further facts on a new signal.
    """

    name: str
    shape: Shape | None
    move: Move
    quiet: bool = False
    spreads: bool = False
    does: Does = "move"
    more: Mapping[str, Any] = MappingProxyType({})


class Spot(NamedTuple):
    """The places of a new signal's entries, their runs, and the value that has them already.

    `parts` are the signals that it is put together from, with their moves into it.
    """

    places: tuple[Place, ...] = ()
    key: tuple[Shape, Runs] = ((), ())
    value: Value | None = None
    parts: tuple[tuple[Signal, Move], ...] = ()


class Moves(Results):
    """A drawing with moves."""

    def constant(
        self,
        shape: Shape | None,
        number: bool = False,
        value: float | None = None,
        numbers: Any = None,
    ) -> Made:
        """Return a constant: whether all its entries are equal, and their number if known.

        `numbers` are the entries of an array that the model holds, if there are any.
        """
        span = None if numbers is None else span_of(numbers)
        if span is not None and span[0] == span[1]:
            value = span[0]
        value = None if value != value else value
        return Made(shape, (), number, value, span=span, entries=entries_of(numbers))

    def move(self, value: Value, by: Moving) -> Value:
        """Draw a move. One that undoes others has their operand as result."""
        if value.shape is None or by.shape is None:
            by = by._replace(move=lose)
        name, shape, move, *_ = by
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
            else:
                track.spend()
        node = value.node
        if not by.quiet:
            node = self.draw("other", name, (value.node,), shape, (), by.does)
        if node != value.node and by.does == "move" and move is not lose:
            again = by._replace(more={})
            self._moves[node] = value, lambda other: self.move(other, again)
        if node != value.node and not value.units and value.shape and shape:
            probe = move(View.of(value.shape))
            self.axes.turns |= {} if probe is None else {node: seen_by(probe)}
        pieces = tuple(piece._replace(shift=None) for piece in value.pieces)
        shift, copied, places = _moved(value, by)
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
        return self.placed(out._replace(**by.more), spot)

    def spot(self, places: Sequence[Place] | None, shape: Shape | None) -> Spot:
        """Return where the entries of a new signal come from, and the value that has them."""
        if not places or shape is None or not prod(shape):
            return Spot()
        runs = runs_of(places, shape)
        found = self._placed.get((shape, runs)) or whole(runs, places, shape)
        return Spot(tuple(places) if len(places) <= _MOST else (), (shape, runs), found)

    def assembly(self, moves: Iterable[tuple[Value, Move]], shape: Shape | None) -> Spot:
        """Return the spot of several moved values that together are one."""
        pairs = list(moves)
        spot = self.spot(assembled(pairs), shape)
        if not spot.places or spot.value is not None:
            return spot
        parts: list[tuple[Signal, Move]] = []
        for value, move in pairs:
            own = self._parts.get(value.node, ()) if isinstance(value, Signal) else ()
            for part, first in own or ((value, unmoved),):
                if not isinstance(part, Signal):
                    continue
                both = chained(first, move)
                after = followed(part, both)
                if after:
                    parts.append((part, first if after == followed(part, first) else both))
        return spot._replace(parts=tuple(parts))

    def placed(self, signal: Signal, spot: Spot) -> Signal:
        """Return a new signal with the places of its entries, to be found again."""
        out = signal._replace(places=spot.places)
        if spot.places:
            self._placed[spot.key] = out  # its places keep their sources' identities
        if spot.parts:
            self._parts[out.node] = spot.parts
        return out

    def reshape(self, name: str, value: Value, shape: Shape | None) -> Value:
        """Draw a reshape, which may add or drop axes of size 1."""
        old = value.shape or ()
        if value.shape == shape is not None:
            return value
        if is_constant(value) and shape is not None:
            return value._replace(shape=shape)  # its entries keep their order
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

        return self.move(value, Moving(name, shape, move, does=does, more=more))

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
        return self.move(value, Moving(name, shape, lambda view: view.transpose(order)))

    def flip(self, name: str, value: Value, axes: Sequence[int]) -> Value:
        """Draw a reversal of axes."""
        more: dict[str, Any] = {}
        if isinstance(value, Signal):
            more["pieces"] = tuple(Piece(piece.node, None) for piece in value.chain)
        return self.move(value, Moving(name, value.shape, lambda view: view.flip(axes), more=more))

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
            return self.move(value, Moving(name, shape, lose))
        at = range(len(shape) - len(old), len(shape)) if places is None else places
        more: dict[str, Any] = {}
        if isinstance(value, Signal):
            copies = [size for size in old if size != 1] != [size for size in shape if size != 1]
            more["narrow"] = value.node if copies else value.narrow
            more["is_number"] = value.is_number or prod(old) == 1

        def move(view: View) -> View:
            return view.broadcast(shape, at, old)

        return self.move(value, Moving(name, shape, move, old == shape, True, more=more))

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


def lose(view: View) -> None:
    return None


def unmoved(view: View) -> View:
    return view


def chained(first: Move, then: Move) -> Move:
    """Return a move after another one."""

    def move(view: View) -> View | None:
        new = first(view)
        return None if new is None else then(new)

    return move


def shift_of(shift: tuple[int, ...]) -> tuple[int, ...]:
    return shift if any(shift) else ()


def _moved(value: Signal, by: Moving) -> tuple[tuple[int, ...], frozenset[int], Places]:
    """Return a signal's shift by padding, its copied axes and where its axes go, for a move."""
    keeps = not value.shift and not value.spread and not by.spreads
    if keeps and not value.units:
        return (), frozenset(), {}
    shape = by.shape
    probe = None if shape is None or value.shape is None else by.move(View.of(value.shape))
    if probe is None or shape is None:
        return (), frozenset(), {}
    places = seen_by(probe) if value.units else {}
    if keeps:
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


def _split(fold: Fold, old: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that a reshape may have split at a period; several where one is 1."""
    return tuple(
        axis
        for axis in fold.track.operation.space
        if (*old[:axis], *old[axis + 1 :]) == (*new[:axis], *new[axis + 2 :])
    )
