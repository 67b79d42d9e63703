"""Random programs of moves, run at once on the drawing and in NumPy on arrays of labels."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from hypothesis import strategies as st

from idinit_ref.tracing import Drawing, Parameter

SIZES = st.sampled_from([1, 2, 3, 4, 6])


def held(view, shape, source):
    """The label of every place of a view of a source of labels; -1 where nothing of it is."""
    index = np.indices(shape)
    at, ok = [np.zeros(shape, int) for _ in source.shape], np.ones(shape, bool)
    for axis, atoms in enumerate(view.axes):
        rest = index[axis]
        for atom in reversed(atoms):
            digit, rest = rest % atom.radix, rest // atom.radix
            ok &= (atom.low <= digit) & (digit < atom.low + atom.size)
            if atom.axis >= 0:
                at[atom.axis] += atom.start + (digit - atom.low) * atom.step
    for atom in view.fixed:
        if atom.axis >= 0:
            at[atom.axis] += atom.start
    return np.where(ok, source[tuple(np.where(ok, a, 0) for a in at)], -1)


@dataclass
class Both:
    """A value of the drawing, and the array of labels that it stands for."""

    value: object
    array: np.ndarray


class Program:
    """Draws steps, and does each of them in both worlds."""

    def __init__(self, data):
        self.data, self.draw, self.sources, self.steps = data, Drawing([]), {}, []

    def pick(self, strategy):
        return self.data.draw(strategy)

    def parameter(self, shape):
        """A new parameter, every entry of which has a label of its own."""
        name = f"p{len(self.sources)}"
        first = sum(array.size for array in self.sources.values())
        array = first + np.arange(prod(shape)).reshape(shape)
        self.sources[name] = array
        self.draw.parameters[name] = Parameter(name, tuple(shape))
        return Both(self.draw.parameter(name), array)

    def constant(self, shape):
        return Both(self.draw.constant(tuple(shape)), np.full(shape, -1))

    def step(self, both, moves):
        name = self.pick(st.sampled_from(moves))
        new = getattr(self, name)(both)
        self.steps.append((name, new.array.shape))
        assert new.value.shape == new.array.shape
        return new

    def run(self, both, moves, most=6):
        for _ in range(self.pick(st.integers(0, most))):
            both = self.step(both, moves)
        return both

    # Moves ----------------------------------------------------------------------------------

    def axis(self, both):
        return self.pick(st.integers(0, both.array.ndim - 1)) if both.array.ndim else None

    def transpose(self, both):
        order = self.pick(st.permutations(range(both.array.ndim)))
        value = self.draw.transpose("transpose", both.value, order)
        return Both(value, both.array.transpose(order))

    def flip(self, both):
        if not both.array.ndim:
            return both
        axis = self.axis(both)
        return Both(self.draw.flip("flip", both.value, [axis]), np.flip(both.array, axis))

    def reshape(self, both):
        """Merge two neighbours, part an axis, or put in or take away an axis of size 1."""
        shape = list(both.array.shape)
        how = self.pick(st.sampled_from(["merge", "part", "one", "squeeze", "any"]))
        at = self.pick(st.integers(0, max(len(shape) - 1, 0)))
        if how == "merge" and at + 1 < len(shape):
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif how == "part" and shape:
            divisors = [n for n in range(1, shape[at] + 1) if shape[at] % n == 0]
            first = self.pick(st.sampled_from(divisors))
            shape[at : at + 1] = [first, shape[at] // first]
        elif how == "one":
            shape.insert(at, 1)
        elif how == "squeeze":
            ones = [axis for axis, size in enumerate(shape) if size == 1]
            value = self.draw.squeeze("squeeze", both.value, ones)
            return Both(value, both.array.squeeze(tuple(ones)))
        elif how == "any":
            shape = [n for n in self.pick(st.permutations(shape)) if n != 1]
        new = both.array.reshape(shape)
        return Both(self.draw.reshape("reshape", both.value, tuple(shape)), new)

    def part(self, both):
        if not both.array.ndim:
            return both
        axis = self.axis(both)
        size = both.array.shape[axis]
        start = self.pick(st.integers(0, size - 1))
        stop, step = self.pick(st.integers(start + 1, size)), self.pick(st.sampled_from([1, 1, 2]))
        spans = [(0, n, 1) for n in both.array.shape]
        spans[axis] = (start, stop, step)
        new = both.array[(slice(None),) * axis + (slice(start, stop, step),)]
        gone = ()
        if stop == start + 1 and self.pick(st.booleans()):
            new, gone = new.squeeze(axis), (axis,)
        return Both(self.draw.part("part", both.value, spans, gone), new)

    def broadcast(self, both):
        shape = [n if n > 1 else self.pick(SIZES) for n in both.array.shape]
        shape = [*([self.pick(SIZES)] if self.pick(st.booleans()) else []), *shape]
        if prod(shape) > 2000:
            return both
        value = self.draw.broadcast("broadcast", both.value, tuple(shape))
        return Both(value, np.broadcast_to(both.array, shape))

    def tile(self, both):
        times = [self.pick(st.integers(1, 3)) for _ in both.array.shape]
        times = [*([2] if self.pick(st.booleans()) else []), *times]
        new = np.tile(both.array, times)
        if new.size > 2000:
            return both
        return Both(self.draw.tile("tile", both.value, new.shape), new)

    def other(self, both, axis):
        """What can be joined along an axis: a parameter, a constant, or the same once more."""
        shape = list(both.array.shape)
        shape[axis] = self.pick(SIZES)
        how = self.pick(st.sampled_from(["parameter", "constant", "same"]))
        if how == "same":
            return both
        return getattr(self, how)(shape)

    def join(self, both):
        if not both.array.ndim:
            return both
        axis = self.axis(both)
        pair = [both, self.other(both, axis)]
        if self.pick(st.booleans()):
            pair.reverse()
        new = np.concatenate([one.array for one in pair], axis)
        values = [one.value for one in pair]
        return Both(self.draw.join("join", values, axis, new.shape), new)

    def stack(self, both):
        axis = self.pick(st.integers(0, both.array.ndim))
        pair = [both, self.parameter(both.array.shape)]
        new = np.stack([one.array for one in pair], axis)
        values = [one.value for one in pair]
        return Both(self.draw.stack("stack", values, axis, new.shape), new)

    def again(self, both):
        """Cut, and join the pieces in another order, or keep some of them."""
        if not both.array.ndim:
            return both
        axis = self.axis(both)
        size = both.array.shape[axis]
        ends = sorted({0, size, *self.pick(st.lists(st.integers(0, size), max_size=2))})
        sizes = np.diff(ends).tolist()
        values = self.draw.split("split", both.value, axis, sizes)
        pieces = list(zip(values, np.split(both.array, ends[1:-1], axis), strict=True))
        kept = self.pick(st.permutations(pieces))[: self.pick(st.integers(1, len(pieces)))]
        new = np.concatenate([array for _, array in kept], axis)
        return Both(self.draw.join("join", [v for v, _ in kept], axis, new.shape), new)

    def pad(self, both):
        if not both.array.ndim:
            return both
        widths = [self.pick(st.sampled_from([(0, 0), (1, 0), (0, 2)])) for _ in both.array.shape]
        new = np.pad(both.array, widths, constant_values=-1)
        if new.size > 2000:
            return both
        low = [width[0] for width in widths]
        return Both(self.draw.pad("pad", both.value, low, new.shape), new)

    def write(self, both):
        """Write to every entry, or to every other one, along one axis of a longer array."""
        if not both.array.ndim:
            return both
        axis, step, more = self.axis(both), self.pick(st.sampled_from([1, 2])), self.pick(SIZES)
        shape, low = list(both.array.shape), self.pick(st.integers(0, more * step - 1))
        shape[axis] = (shape[axis] + more) * step + self.pick(st.integers(0, step - 1))
        under = getattr(self, self.pick(st.sampled_from(["parameter", "constant"])))(shape)
        new, at = under.array.copy(), [0] * len(shape)
        at[axis] = low
        stop = low + both.array.shape[axis] * step
        new[(slice(None),) * axis + (slice(low, stop, step),)] = both.array
        steps = [step if k == axis else 1 for k in range(len(shape))]
        value = self.draw.write("write", under.value, both.value, at, new.shape, steps)
        return Both(value, new) if new.size <= 2000 else both

    def roll(self, both):
        if not both.array.ndim:
            return both
        axis, by = self.axis(both), self.pick(st.integers(-3, 3))
        return Both(self.draw.roll("roll", both.value, {axis: by}), np.roll(both.array, by, axis))

    def take(self, both):
        """Look up entries along an axis at known indices, which may form a box."""
        if not both.array.ndim:
            return both
        axis = self.axis(both)
        size = both.array.shape[axis]
        at = list(range(-size, size))[:: self.pick(st.sampled_from([1, -1, 2, -2]))]
        first = self.pick(st.integers(0, len(at) - 1))
        at = at[first : first + self.pick(st.integers(1, size))]
        if self.pick(st.booleans()):
            at = self.pick(st.lists(st.integers(-size, size - 1), min_size=1, max_size=3))
        index, new = np.array(at), np.take(both.array, at, axis)
        places = self.draw.constant(index.shape, numbers=index)
        return Both(self.draw.take("take", both.value, places, axis, new.shape), new)


MOVES = ["transpose", "flip", "reshape", "part", "broadcast", "tile"]
JOINS = ["join", "stack", "again", "pad", "write", "roll"]
