"""Internal: operations that combine values without arithmetic: concatenation, padding, writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from ..roles.graph import Does
from ._axes import View
from ._functions import Fact
from ._made import Made, Part, Shape
from ._moves import Moving, Spot, lose, shift_of
from ._places import Box, Move, Runs, box_at, embedded, followed, outside, sliced, taken, turned
from ._resolution import is_apart, is_repeated
from ._slices import Joined, Slices, Span
from ._summed import rebound, rejoined
from ._values import Data, Fold, Signal, Value, is_constant

__all__ = ["At", "Joins"]

At = tuple[Sequence[int], Sequence[int | None]]
"""The axes of the indices of a scatter, and for every axis that of its update, as in `box_at`. The
indices belong to the first axes by default."""


class Joins(Slices):
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
        sizes = [None if value.shape is None else value.shape[axis] for value in values]
        starts = None if None in sizes else list(accumulate([n or 0 for n in sizes], initial=0))
        spot = Spot()
        if starts is not None and floating and any(isinstance(v, Signal) for v in values):
            spot = self.assembly(_side_by_side(values, axis, starts), shape)
            if spot.value is not None:
                return self.reshape(name, spot.value, shape)
        self._rejoin_slices(values)
        out = self.result(name, values, shape, floating, "join")
        if isinstance(out, Made) and starts is not None and not out.zero:
            made = [value for value in values if isinstance(value, Made)]
            pairs = zip(made, starts[:-1], strict=True)
            parts = [
                part._replace(factor=False, still=False)
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
                self._note_starts(out.node, values, axis, starts)
            if sizes[0] == 1 and is_repeated(values):
                out = out._replace(spread=frozenset([axis]))
            return self.placed(out._replace(shift=shift), spot)
        return out

    def _note_starts(
        self, name: str, values: Sequence[Value], axis: int, starts: Sequence[int]
    ) -> None:
        """Record where the parts of a concatenation stand, if its inputs are not all of it."""
        first: dict[str, int] = {}
        for value, start in zip(values, starts, strict=False):
            if isinstance(value, Signal):
                first.setdefault(value.node, start)
        inputs = self.node(name).inputs
        if len(first) < len(values) and set(first) == set(inputs):
            found = axis, tuple(first[to] for to in inputs)
            self.change(name, options={"starts": found})

    def _rejoin_slices(self, values: Sequence[Value]) -> None:
        """Record that products of a signal with slices of a matrix are joined: they are no blocks.

        One product with all of the matrix is the same.
        """
        uses: dict[tuple[str, ...], set[str]] = {}
        tracks = [track for v in values if isinstance(v, Signal) for track in v.fresh]
        for track in tracks:
            name = track.operation.name
            key = (self.weights.data[name].node, *self.node(name).weights)
            uses.setdefault(key, set()).add(name)
        several = set[str]().union(*(names for names in uses.values() if len(names) > 1))
        for track in tracks:
            track.operation.rejoined |= track.operation.name in several

    def stack(self, name: str, values: Sequence[Value], axis: int, shape: Shape | None) -> Value:
        """Draw a stack along a new axis."""
        if all(isinstance(value, Made) for value in values):
            whole = rebound(values, axis)
            if whole is not None:
                return whole
            rows = []
            for value in values:
                size = value.shape
                new = None if size is None else (*size[:axis], 1, *size[axis:])
                rows.append(self.move(value, Moving(name, new, lambda view: view.expand(axis))))
            return self.join(name, rows, axis, shape)
        spot = Spot()
        if shape is not None:
            starts = range(shape[axis] + 1)
            spot = self.assembly(_side_by_side(values, axis, starts, True), shape)
            if spot.value is not None:
                return self.reshape(name, spot.value, shape)
        out = self.result(name, values, shape, word="join")
        if isinstance(out, Signal) and shape is not None:
            if is_repeated(values):
                out = out._replace(spread=frozenset([axis]))
            places = {old: (old + (old >= axis),) for old in range(len(shape) - 1)}
            self.joins[out.node] = Joined(axis, tuple(range(shape[axis] + 1)), tuple(values), True)
            ways = [(value, places) for value in values if isinstance(value, Signal)]
            return self.placed(self.moved(out, ways), spot)
        return out

    def layer(self, name: str, value: Value, others: Sequence[Value], shape: Shape | None) -> Value:
        """Draw one layer of a value, its entries at any one index of the first axis."""
        if isinstance(value, Made) and value.parts and value.shape:
            is_row = shape == value.shape[1:]
            return value.moved(shape, lambda view: view.each(0) if is_row else None)
        out = self.result(name, [value, *others], shape, word="select")
        if not isinstance(out, Signal) or value.shape is None or shape != value.shape[1:]:
            return out
        assert isinstance(value, Signal)
        return self.moved(out, [(value, {axis + 1: (axis,) for axis in range(len(shape))})])

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
        steps = [gap + 1 for gap in gaps]
        spot, fills = Spot(), [by for by in others if is_constant(by)]
        if does == "pad" and len(fills) == len(others):
            under = next((by for by in fills if not by.zero), Made(None, value=0))
            spot = self._over(under._replace(shape=shape), value, low, shape, steps)
            if spot.value is not None:
                return self.reshape(name, spot.value, shape)
        does = "resize" if is_apart(value, gaps) else does
        out = self.result(name, [value, *others], shape, word=Fact(does, "sum"))
        if isinstance(value, Made) and isinstance(out, Made) and old and shape:
            is_zero = value.zero and all(isinstance(by, Made) and by.zero for by in others)
            made = value.moved(shape, lambda view: embedded(view, low, old, shape, steps))
            return made._replace(value=0 if is_zero else None, span=None)
        if not isinstance(value, Signal) or not isinstance(out, Signal):
            return out
        places = zip(low, value.moved, gaps, strict=True)
        shift = tuple(by + at * (1 + gap) for by, at, gap in places)
        tracks = value.fresh
        is_circle = len(tracks) == 1 and tracks[0].operation.space
        fold = Fold(tracks[0], shift) if is_circle else None
        out = out._replace(shift=shift_of(shift), fold=fold, halves=value.halves)
        return self.placed(out, spot)

    def masked(self, name: str, value: Value, shape: Shape | None) -> Value:
        """Draw a value of which some entries become 0, such as those beside a diagonal."""
        by = Made(shape)  # of zeros and ones
        return self.entrywise(name, [value, by], shape, doing="masked by", word="mul")

    def write(
        self,
        name: str,
        value: Value,
        part: Value,
        low: Sequence[int],
        shape: Shape | None,
        steps: Sequence[int] | None = None,
    ) -> Value:
        """Draw a write to a part of a value, along every axis from `low` on, a step apart.

        A write to a constant is a padding with it. A write to a signal pads a part that was cut
        from it.
        """
        steps = steps or (1,) * len(low)
        gaps = [step - 1 for step in steps]
        if is_constant(value):
            others = () if part.shape == shape else (value,)
            padded = self.pad(name, part, low, shape, gaps, others)
            if isinstance(padded, Signal):
                self.note_write(padded.node, value, part)
                self._begun.add(padded.node)
            return padded
        if isinstance(value, Made) and isinstance(part, Made) and part.shape is not None:
            sizes = zip(low, part.shape, steps, strict=True)
            spans = [(at, at + (size - 1) * step + 1, step) for at, size, step in sizes]
            under, new = self.part(name, value, spans), self.pad(name, part, low, shape, gaps)
            if isinstance(under, Made) and isinstance(new, Made) and not under.parts:
                return Made(shape, (*value.parts, *new.parts))
        spot = self._over(value, part, low, shape, steps)
        if spot.value is not None:
            return self.reshape(name, spot.value, shape)
        floating = any(isinstance(one, Signal) for one in (value, part))
        covered: Runs | None = None
        if part.shape is not None and 0 not in part.shape:
            places = followed(value, _within(Box(low, part.shape, steps)))
            covered = None if places is None else taken(places, part.shape)
        out = self.result(name, [value, part], shape, floating, "scatter", covered)
        if not isinstance(out, Signal):
            return out
        own = part.pieces if isinstance(part, Signal) else ()
        if isinstance(value, Signal) and any(piece.node == value.node for piece in own):
            out = out._replace(shift=value.shift)
        return self.placed(out._replace(halves=rejoined([value, part])), spot)

    def overwrite(
        self, name: str, value: Value, part: Value, spans: Sequence[Span], shape: Shape | None
    ) -> Value:
        """Draw a write over a slice, given its span along every axis."""
        part = self.reshape(name, part, tuple(len(range(*span)) for span in spans))
        low, _, steps = zip(*spans, strict=True)
        return self.write(name, value, part, low, shape, steps)

    def scatter(
        self,
        name: str,
        value: Value,
        part: Value,
        places: Value,
        shape: Shape | None,
        at: At | None = None,
    ) -> Value:
        """Draw a write at indices; at known ones that form a box, it is a write to that box."""
        found = self._boxed(part, places, shape, at)
        if found is None:
            floating = any(isinstance(one, Signal) for one in (value, part))
            return self.result(name, [value, part, places], shape, floating, "scatter")
        box, order = found
        if order != sorted(order):
            part = self.transpose(name, part, order)
        part = self.reshape(name, part, tuple(box.sizes))
        if box.turned:
            part = self.flip(name, part, box.turned)
        return self.write(name, value, part, box.low, shape, box.steps)

    def _boxed(
        self, part: Value, places: Value, shape: Shape | None, at: At | None
    ) -> tuple[Box, list[int]] | None:
        """Return the box of some indices, if they are known, as `box_at` does."""
        index = places.integers if isinstance(places, Made) else None
        if index is None or part.shape is None or shape is None:
            return None
        *rows, count = index.shape
        rest = range(len(rows), len(rows) + len(shape) - count)
        axes, windows = at or (range(count), [*[None] * count, *rest])
        return box_at(index, axes, windows, part.shape, shape)

    def fills(self, value: Value, part: Value, places: Value, at: At | None) -> bool:
        """Whether a part is added to a box of zeros: then it is written there."""
        found = self._boxed(part, places, value.shape, at)
        if found is None or value.shape is None:
            return False
        return followed(value, _within(found[0])) == ()

    def _over(
        self,
        under: Value,
        value: Value,
        low: Sequence[int],
        shape: Shape | None,
        steps: Sequence[int],
    ) -> Spot:
        """Return the spot of a value written over another one, from `low` on, some steps apart."""
        old = value.shape
        if old is None or shape is None or not any(isinstance(v, Signal) for v in (under, value)):
            return Spot()
        over = (value, lambda view: embedded(view, low, old, shape, steps))
        rest = [(under, move) for move in outside(low, old, shape, steps)]
        return self.assembly([*rest, over], shape)

    def roll(self, name: str, value: Value, by: Mapping[int, int]) -> Value:
        """Draw a circular shift along axes."""
        if value.shape is None or isinstance(value, Data):
            return self.move(value, Moving(name, value.shape, lose))
        if isinstance(value, Signal):
            moves = ((value, move) for move in turned(by, value.shape))
            spot = self.assembly(moves, value.shape)
            if spot.value is not None:
                return self.reshape(name, spot.value, value.shape)
            out = self.result(name, [value], value.shape, word="move")
            assert isinstance(out, Signal)
            shift = tuple(at + by.get(axis, 0) for axis, at in enumerate(value.moved))
            return self.placed(out._replace(shift=shift_of(shift)), spot)
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


def _within(box: Box) -> Move:
    """Return the slice that takes a box."""
    return sliced(box.spans, range(len(box.spans)))


def _side_by_side(
    values: Sequence[Value], axis: int, starts: Sequence[int], is_new: bool = False
) -> Iterator[tuple[Value, Move]]:
    """Yield values of a concatenation or stack, with their moves into it."""

    def into(low: int) -> Move:
        def move(view: View) -> View | None:
            return (view.expand(axis) if is_new else view).join(axis, low, starts[-1])

        return move

    for value, low in zip(values, starts[:-1], strict=True):
        yield value, into(low)


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
