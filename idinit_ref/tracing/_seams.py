"""Internal: weights that are joined, and the parts of their result: one operation for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ._aligned import slice_of, span_of
from ._axes import View
from ._labels import Einsum
from ._made import Made, Shape
from ._mixtures import Mixtures
from ._moves import Moving, chained, unmoved
from ._places import Move
from ._slices import Span
from ._values import Signal, Value

__all__ = ["Seams"]


class Seam(NamedTuple):
    """The result of an operation with joined weights, which may be moved.

    Along an axis, the weights have the outputs `spans`; `draw` draws the operation with one alone,
    given its span and the shape of its result.
    """

    shape: Shape
    axis: int
    spans: tuple[range, ...]
    draw: Callable[[range, Shape], Value]
    move: Move = unmoved

    def into(self, span: range) -> tuple[Shape, Move]:
        """Return the shape of the result of one weight, and its move into this result."""

        def move(view: View) -> View | None:
            return view.join(self.axis, span.start, self.shape[self.axis])

        return self.with_size(len(span)), chained(move, self.move)

    def with_size(self, size: int) -> Shape:
        """Return the shape of the whole result with another size of that axis."""
        return (*self.shape[: self.axis], size, *self.shape[self.axis + 1 :])


class Seams(Mixtures):
    """A drawing in which the parts of such a result are results of weights of their own."""

    def _product(self, of: Einsum) -> Value:
        """Draw a product: see :class:`Products`."""
        found = super()._product(of)
        for at, made, own, _, rest in of.sides:
            sewn = _sewn(made) if isinstance(made, Made) else None
            if sewn is None or of.shape is None or own[sewn[0]] not in {*of.out} - {*rest}:
                continue
            (axis, spans), place = sewn, [*of.out].index(own[sewn[0]])
            if of.shape[place] == spans[-1].stop:
                draw = self._one_cut(of, at, axis)
                self._note_seams(found, Seam(of.shape, place, spans, draw))
        return found

    def _one_cut(self, of: Einsum, at: int, axis: int) -> Callable[[range, Shape], Value]:
        """Return what draws a product with one of some joined weights, given its span and shape.

        An operand holds them along an axis.
        """

        def draw(span: range, shape: Shape) -> Value:
            values = [*of.values]
            values[at] = self.part_along(of.name, values[at], axis, span.start, span.stop)
            return self._product(of._replace(values=values, shape=shape))

        return draw

    def _seam_of(self, value: Value) -> Seam | None:
        found = isinstance(value, Signal) and self._seams.get((value.node, value.shape))
        return found or None

    def _note_seams(self, value: Value, seam: Seam) -> None:
        if isinstance(value, Signal) and self.node(value.node).kind == "weight":
            self._seams[value.node, value.shape] = seam
            self.fates.lazy.add(value.node)

    def add(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a sum of two values, entry by entry; a bias of joined weights is one of each."""
        out = super().add(name, a, b, shape)
        for signal, bias in ((a, b), (b, a)):
            seam = self._seam_of(signal)
            if seam is None or not isinstance(bias, Made) or not isinstance(out, Signal):
                continue
            if isinstance(signal, Signal) and out.node == signal.node:
                del self._seams[signal.node, signal.shape]
                own = self._moved_there(name, seam, out.shape or ())
                if own is not None and bias.shape is not None:
                    new = own._replace(draw=self._biased(name, own, bias))
                    self._seams[out.node, out.shape] = new
        return out

    def _biased(self, name: str, seam: Seam, bias: Made) -> Callable[[range, Shape], Value]:
        """Return what draws the result of one of some joined weights with its bias."""
        sizes = bias.shape or ()
        axis = seam.axis - len(seam.shape) + len(sizes)

        def draw(span: range, shape: Shape) -> Value:
            is_each = axis >= 0 and sizes[axis] > 1
            part = self.part_along(name, bias, axis, span.start, span.stop) if is_each else bias
            return self.add(name, seam.draw(span, shape), part, shape)

        return draw

    def move(self, value: Value, by: Moving) -> Value:
        """Draw a move: see :class:`Moves`."""
        out = super().move(value, by)
        seam = self._seam_of(value)
        if seam is not None and isinstance(out, Signal) and by.does == "move":
            moved = seam._replace(move=chained(seam.move, by.move))
            self._seams.setdefault((out.node, out.shape), moved)
        return out

    def part(
        self,
        name: str,
        value: Value,
        spans: Sequence[Span] | None,
        gone: Sequence[int] = (),
        shape: Shape | None = None,
    ) -> Value:
        """Draw a slice: see :class:`Slices`; of the result of joined weights, of their results."""
        seam, found = self._seam_of(value), None
        if seam is not None and spans is not None and value.shape is not None:
            found = self._results_read(name, seam, value.shape, spans)
        if found is None:
            return super().part(name, value, spans, gone, shape)
        axis, start, part = found
        own = [*(spans or ())]
        own[axis] = (own[axis][0] - start, own[axis][1] - start, own[axis][2])
        return self.part(name, part, own, gone)

    def _results_read(
        self, name: str, seam: Seam, shape: Shape, spans: Sequence[Span]
    ) -> tuple[int, int, Value] | None:
        """Return the results that a slice takes some of, their axis, and where they start."""
        own = self._moved_there(name, seam, shape)
        taken = range(*spans[own.axis]) if own is not None else range(0)
        if own is None or not taken:
            return None
        read = [span for span in own.spans if taken[0] < span.stop and span.start <= taken[-1]]
        if len(read) == len(own.spans):
            return None
        parts = [own.draw(span, own.with_size(len(span))) for span in read]
        if len(parts) == 1:
            return own.axis, read[0].start, parts[0]
        if taken.step > 1:
            return None
        held = [range(max(taken[0], s.start) - s.start, min(taken.stop, s.stop) - s.start)
                for s in read]  # fmt: skip
        parts = [
            self.part_along(name, part, own.axis, span.start, span.stop)
            for part, span in zip(parts, held, strict=True)
        ]
        value = self.join(name, parts, own.axis, own.with_size(len(taken)))
        return own.axis, taken[0], value

    def _moved_there(self, name: str, seam: Seam, shape: Shape) -> Seam | None:
        """Return a moved result as one whose weights' results are moved; None if they mix."""
        held: dict[range, tuple[range, Move]] = {}
        axes = set[int]()
        for span in seam.spans:
            size, into = seam.into(span)
            view = into(View.of(size))
            place = None if view is None else span_of(view, shape)
            if place is None:
                return None
            axes.add(place[0])
            held[place[1]] = span, chained(into, slice_of(*place))
        if len(axes) > 1:
            return None

        def draw(span: range, shape: Shape) -> Value:
            of, move = held[span]
            return self.move(seam.draw(of, seam.with_size(len(of))), Moving(name, shape, move))

        return Seam(shape, min(axes), tuple(sorted(held, key=lambda at: at.start)), draw)


def _sewn(made: Made) -> tuple[int, tuple[range, ...]] | None:
    """Return the axis along which several parameters are joined, and the part that each fills."""
    shape, names = made.shape or (), {part.name for part in made.parts}
    views = [part.view for part in made.parts]
    if len(names) < 2 or made.recipe is not None or not shape:
        return None
    held = [None if view is None else span_of(view, shape) for view in views]
    known = [one for one in held if one is not None]
    if len(known) < len(held) or len({axis for axis, _ in known}) > 1:
        return None
    axis, spans = known[0][0], tuple(sorted((span for _, span in known), key=lambda s: s.start))
    ends = [0, *(span.stop for span in spans)]
    is_whole = all(span.start == end for span, end in zip(spans, ends, strict=False))
    return (axis, spans) if is_whole and 0 < ends[-1] == shape[axis] else None
