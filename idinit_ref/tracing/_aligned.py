"""Internal: concatenations in other spellings: stacks that are reshaped, and writes to zeros."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ._axes import View
from ._joins import Joins
from ._made import Shape
from ._moves import Moving, Spot, chained
from ._places import Move, followed
from ._values import Signal, Value

__all__ = ["Aligned", "slice_of", "span_of"]


class Laid(NamedTuple):
    """The signals that a concatenation or stack puts together, with their moves into it.

    `length` is the size of the axis along which they lie there.
    """

    length: int
    parts: tuple[tuple[Signal, Move], ...]


class Aligned(Joins):
    """A drawing in which signals side by side are a concatenation along the axis they lie on."""

    def move(self, value: Value, by: Moving) -> Value:
        """Draw a move: see :class:`Moves`.

        A move that merges the axis of a stack, or of a concatenation, with others puts the parts
        side by side along a longer axis: it is the concatenation of the moved parts.
        """
        laid = self._laid.get(value.node) if isinstance(value, Signal) else None
        if laid is None or by.shape is None or by.does != "move":
            return super().move(value, by)
        parts = tuple((part, chained(first, by.move)) for part, first in laid.parts)
        if not by.quiet and self.spot(followed(value, by.move), by.shape).value is None:
            found = self._joined_parts(by.name, parts, by.shape, laid.length)
            if found is not None:
                return found
        out = super().move(value, by)
        if isinstance(out, Signal):
            self._laid.setdefault(out.node, Laid(laid.length, parts))
        return out

    def placed(self, signal: Signal, spot: Spot) -> Signal:
        """Return a new signal with the places of its entries, to be found again.

        Writes that fill a constant up are a concatenation.
        """
        node, joined = self.node(signal.node), self.joins.get(signal.node)
        if spot.parts and joined is None and not self._begun.isdisjoint(node.inputs[:1]):
            self._begun.add(node.name)
            found = self._joined_parts(node.name, spot.parts, spot.key[0])
            if isinstance(found, Signal):
                if node.name in self._filled:
                    self._filled.setdefault(found.node, self._filled[node.name])
                return found
        if spot.parts and joined is not None:
            self._laid[signal.node] = Laid(joined.starts[-1], spot.parts)
        return super().placed(signal, spot)

    def _joined_parts(
        self, name: str, parts: Sequence[tuple[Signal, Move]], shape: Shape, length: int = 0
    ) -> Value | None:
        """Draw moved signals that fill a shape as a concatenation along one of its axes, or None.

        They are one already if that axis has the size `length`.
        """
        sizes = [prod(part.shape or ()) for part, _ in parts]
        if len(parts) < 2 or sum(sizes) != prod(shape):
            return None
        views = [move(View.of(part.shape or ())) for part, move in parts]
        spans = [None if view is None else span_of(view, shape) for view in views]
        known = [span for span in spans if span is not None]
        axes = {axis for axis, _ in known}
        if len(known) < len(parts) or len(axes) > 1 or shape[min(axes)] == length:
            return None
        (axis,) = axes
        ordered = sorted(zip(known, parts, strict=True), key=lambda one: one[0][1].start)
        operands = []
        for (_, span), (part, move) in ordered:
            own = (*shape[:axis], len(span), *shape[axis + 1 :])
            cut = chained(move, slice_of(axis, span))
            operands.append(self.move(part, Moving(name, own, cut)))
        return self.join(name, operands, axis, shape)


def slice_of(axis: int, span: range) -> Move:
    """Return the slice that takes a span of an axis."""

    def move(view: View) -> View | None:
        return view.slice(axis, span.start, span.stop)

    return move


def span_of(view: View, shape: Shape) -> tuple[int, range] | None:
    """Return the axis of which a whole signal fills a part, and that part; None for other places.

    >>> span_of(View.of((2, 3)).join(1, 3, 6), (2, 6))
    (1, range(3, 6))
    """
    found: list[tuple[int, range]] = []
    for axis, atoms in enumerate(view.axes):
        start, size = 0, 1
        for atom in atoms:
            is_whole = atom.size == atom.radix
            if (size > 1 and not is_whole) or atom.apart > 1 or (atom.axis < 0 and atom.size > 1):
                return None
            start, size = start * atom.radix + atom.low, size * atom.size
        if size != shape[axis]:
            found.append((axis, range(start, start + size)))
    is_one = len(found) == 1 and not any(atom.size > 1 for atom in view.fixed)
    return found[0] if is_one else None
