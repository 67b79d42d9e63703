"""Internal: operations that combine values without arithmetic: concatenation, padding, writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..roles.graph import Does
from ._axes import View
from ._functions import Fact
from ._moves import Joined, Moves, lose, shift_of
from ._resolution import is_repeated
from ._units import merged, renumbered
from ._values import Data, Fold, Made, Part, Shape, Signal, Value

__all__ = ["Joins"]


class Joins(Moves):
    """A drawing with the operations that combine values."""

    def join(
        self,
        name: str,
        values: Sequence[Value],
        axis: int,
        shape: Shape | None,
        floating: bool = True,
    ) -> Value:
        """Draw a concatenation. Parts that it rejoins, as rotary embedding does, are not blocks."""
        halves = {half for value in values if isinstance(value, Signal) for half in value.halves}
        for operation, half in halves:
            if any(operation is of and half != rest for of, rest in halves):
                operation.whole = True
        sizes = [None if value.shape is None else value.shape[axis] for value in values]
        starts = None if None in sizes else list(accumulate([n or 0 for n in sizes], initial=0))
        out = self.result(name, values, shape, floating, "join")
        if isinstance(out, Made) and starts is not None and not out.zero:
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
            if starts is not None:
                self.joins[out.node] = Joined(axis, tuple(starts), tuple(values))
            if sizes[0] == 1 and is_repeated(values):
                out = out._replace(spread=frozenset([axis]))
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
            if is_repeated(values):
                out = out._replace(spread=frozenset([axis]))
            self.joins[out.node] = Joined(axis, tuple(range(shape[axis] + 1)), tuple(values), True)
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
        """Draw a padding, by its sizes before each axis and between entries; negative ones crop.

        `others` are the values that fill it; `does` is "move" if entries of the value fill it.
        """
        old, gaps = value.shape, gaps or (0,) * len(low)
        does = "resize" if any(gaps) else does
        out = self.result(name, [value, *others], shape, word=Fact(does, "sum"))
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

            is_zero = value.zero and all(isinstance(by, Made) and by.zero for by in others)
            return value.moved(shape, move)._replace(value=0 if is_zero else None, span=None)
        if not isinstance(value, Signal) or not isinstance(out, Signal):
            return out
        places = zip(low, value.moved, gaps, strict=True)
        shift = tuple(by + at * (1 + gap) for by, at, gap in places)
        tracks = value.fresh
        is_circle = len(tracks) == 1 and tracks[0].operation.space
        return out._replace(
            shift=shift_of(shift), fold=Fold(tracks[0], shift) if is_circle else None
        )

    def write(
        self, name: str, value: Value, part: Value, low: Sequence[int], shape: Shape | None
    ) -> Value:
        """Draw a write to a part of a value, from `low` on along every axis.

        A write to a constant is a padding with it. A write to a signal pads a part that was cut
        from it.
        """
        if isinstance(value, Made) and not value.parts:
            others = () if part.shape == shape else (value,)
            padded = self.pad(name, part, low, shape, None, others)
            if isinstance(padded, Signal):
                self.note_write(padded.node, value, part)
            return padded
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
        """Draw a circular shift along axes."""
        if value.shape is None or isinstance(value, Data):
            return self.move(name, value, value.shape, lose)
        if isinstance(value, Signal):
            out = self.result(name, [value], value.shape, word="move")
            assert isinstance(out, Signal)
            shift = tuple(at + by.get(axis, 0) for axis, at in enumerate(value.moved))
            return out._replace(shift=shift_of(shift))
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


def _merged(parts: Sequence[Part], axis: int) -> tuple[Part, ...]:
    """Merge parts of a parameter that are adjacent in storage."""
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
    """Return how far a concatenation shifts the signal that it pads.

    This is a signal of which all others are parts, or else the longest one.
    """
    places = zip(values, starts, sizes, strict=False)
    signals = [(v, start, size or 0) for v, start, size in places if isinstance(v, Signal)]
    if len(values) == 1 or not signals:
        return ()
    roots = list(signals[0][0].chain)
    for value, *_ in signals[1:]:
        nodes = {piece.node for piece in value.chain}
        roots = [root for root in roots if root.node in nodes]
    if roots:
        found = []
        for value, start, size in signals:
            piece = next(piece for piece in value.chain if piece.node == roots[0].node)
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
    return shift_of(tuple(by + start * (at == axis) for at, by in enumerate(moved)))
