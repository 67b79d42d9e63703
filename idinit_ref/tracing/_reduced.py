"""Internal: sums along an axis of values that are stacked there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import accumulate, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from ._labels import Einsum
from ._made import Made, Shape
from ._slices import Span
from ._values import Signal, Value
from ._writes import Writes

__all__ = ["Reduced"]

_MOST = 64  # the most values of a stack that are summed one by one


class Reduced(Writes):
    """A drawing with sums along axes: of values that are stacked there, these are their sums."""

    def sum(
        self,
        name: str,
        value: Value,
        axes: Sequence[int],
        shape: Shape | None,
        mean: bool = False,
    ) -> Value:
        """Draw a sum or mean along axes; of values that are stacked along them, it is their sum."""
        sizes = [(value.shape or ())[axis] for axis in axes]
        by = np.full(sizes, 1 / max(prod(sizes), 1) if mean else 1.0)
        found = self._reduced(name, value, axes, by)
        if found is None and isinstance(value, Signal) and value.term is not None:
            signal, made = value.term
            numbers = _along(made, axes, len(value.shape or ()))
            if numbers is not None and signal.shape == value.shape:
                found = self._reduced(name, signal, axes, by * numbers)
            elif made.parts and signal.shape == value.shape and not mean:
                found = self._weighted(name, signal, axes, made)
        if found is None:
            return super().sum(name, value, axes, shape, mean)
        return self.reshape(name, found, shape)

    def cumsum(
        self, name: str, value: Value, axis: int, shape: Shape | None, reverse: bool = False
    ) -> Value:
        """Draw the sums of all entries up to each one along an axis, or from it on (`reverse`)."""
        parts = self._stacked(value, [axis])
        if parts is None:
            return self.result(name, [value], shape, word="cumsum")
        turn = -1 if reverse else 1
        sums = accumulate(parts[::turn], lambda a, b: self.add(name, a, b, a.shape))
        return self.stack(name, [*sums][::turn], axis, shape)

    def is_stack(self, value: Value) -> bool:
        """Whether a signal was made of values that are stacked along its first axis."""
        return isinstance(value, Signal) and bool(value.shape) and bool(self._stacked(value, [0]))

    def _mixed(self, of: Einsum) -> Value:
        """Draw a product of a signal with constants; with numbers, it may be a sum of its parts."""
        for (value, made), (own, rest) in zip(
            (of.values, of.values[::-1]), (of.labels, of.labels[::-1]), strict=True
        ):
            summed = [label for label in rest if label in own and label not in of.out]
            if not isinstance(made, Made) or len({*own}) < len(own) or len({*rest}) < len(rest):
                continue
            at = [rest.index(label) for label in summed]
            numbers = _along(made, at, len(rest))
            axes = [own.index(label) for label in summed]
            found = None if numbers is None else self._reduced(of.name, value, axes, numbers)
            if found is not None:
                left = [label for label in own if label not in summed]
                order = [left.index(label) for label in of.out if label in left]
                return self.reshape(of.name, self.transpose(of.name, found, order), of.shape)
        return super()._mixed(of)

    def _reduced(
        self, name: str, value: Value, axes: Sequence[int], numbers: NDArray[np.float64]
    ) -> Value | None:
        """Draw the sum of values that are stacked along axes, each times a number; or None."""
        parts = self._stacked(value, axes)
        if parts is None:
            return None
        by = [float(number) for number in numbers.flat]
        same = by[0] if len({*by}) == 1 else 1.0
        terms = [self._times(name, *pair) for pair in zip(parts, np.divide(by, same), strict=True)]
        return self._times(name, self._summed_up(name, terms[0].shape, terms), same)

    def _weighted(self, name: str, value: Signal, axes: Sequence[int], made: Made) -> Value | None:
        """Draw the sum of values that are stacked along axes, each times a parameter; or None."""
        by, rest = self.broadcast(name, made, value.shape), reversed(made.shape or ())
        last = len(value.shape or ()) - 1
        if any(size > 1 and last - at not in axes for at, size in enumerate(rest)):
            return None  # it is more than one number for each
        parts = self._stacked(value, axes)
        if parts is None:
            return None
        factors = [self.part(name, by, spans, axes) for spans in _each(value.shape or (), axes)]
        terms = (
            self.scale(name, pair, pair[0].shape, "multiplied by", "mul")
            for pair in zip(parts, factors, strict=True)
        )
        return self._summed_up(name, parts[0].shape, terms)

    def _summed_up(self, name: str, shape: Shape | None, values: Iterable[Value]) -> Value:
        """Draw a sum of several values, after all of these."""
        return reduce(lambda a, b: self.add(name, a, b, shape), [*values])

    def _stacked(self, value: Value, axes: Sequence[int]) -> list[Value] | None:
        """Return the values that are stacked along axes of a signal; None if it is no stack."""
        found = list[Value]()
        for spans in _each(value.shape or (), axes):
            part = self.known_part(value, spans, axes)
            if part is None:
                return None
            found.append(part)
        own = tuple(size for axis, size in enumerate(value.shape or ()) if axis not in axes)
        return [self.reshape("part", part, own) for part in found] or None


def _each(shape: Shape, axes: Sequence[int]) -> Iterator[list[Span]]:
    """Yield the slices at every place of some axes; none if there are too many."""
    sizes = [shape[axis] for axis in axes if shape]
    for at in product(*map(range, sizes)) if 0 < prod(sizes) <= _MOST and sizes else ():
        spans = [(0, size, 1) for size in shape]
        for axis, place in zip(axes, at, strict=True):
            spans[axis] = place, place + 1, 1
        yield spans


def _along(made: Made, axes: Sequence[int], rank: int) -> NDArray[np.float64] | None:
    """Return the numbers of a constant that varies along some of `rank` axes only; or None."""
    numbers, shape = made.numbers, made.shape or ()
    if numbers is None or len(shape) > rank:
        return None
    numbers = numbers.reshape((1,) * (rank - len(shape)) + shape)
    if any(size > 1 and axis not in axes for axis, size in enumerate(numbers.shape)):
        return None
    rest = [axis for axis in range(rank) if axis not in axes]
    return numbers.transpose([*axes, *rest]).reshape([numbers.shape[axis] for axis in axes])
