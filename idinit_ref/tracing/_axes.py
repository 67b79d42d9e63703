"""Internal: the axes of a parameter, tracked through moves to an operation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import NamedTuple

__all__ = ["Atom", "Axis", "View", "regroup"]


class Atom(NamedTuple):
    """A digit of an axis with `radix` values, along which indices of one source axis lie.

    There are `size` indices, from the value `low` on, `apart` values apart. The first is index
    `start` of the source's axis, and the next ones are `step` apart. The other values hold entries
    that were joined with the source. Axis -1 is not an axis of the source, for example a broadcast
    axis.
    """

    axis: int
    step: int
    size: int
    start: int
    low: int
    radix: int
    apart: int = 1

    @classmethod
    def of(cls, axis: int, size: int) -> Atom:
        """Return the digit of a whole axis."""
        return cls(axis, 1, size, 0, 0, size)

    @property
    def is_source(self) -> bool:
        """Whether different indices of the source lie along it, not copies of one."""
        return self.axis >= 0 and self.size > 1

    def flip(self) -> Atom:
        """Return the digit reversed."""
        last = self.start + (self.size - 1) * self.step
        low = self.radix - 1 - self.low - (self.size - 1) * self.apart
        return self._replace(step=-self.step, start=last, low=low)

    def slice(self, start: int, stop: int, step: int) -> Atom:
        """Return every step-th value of a part; its size is 0 if the source is not in it."""
        radix, by = len(range(start, stop, step)), gcd(step, self.apart)
        apart, ahead = self.apart // by, self.low - start
        first = max(0, -(-ahead // step))
        first += (ahead // by * pow(step // by, -1, apart) - first) % apart
        last = min(radix, (ahead + (self.size - 1) * self.apart) // step + 1)
        size = 0 if ahead % by else max(-((first - last) // apart), 0)
        at = self.start + (first * step - ahead) // self.apart * self.step
        return Atom(self.axis, self.step * (step // by), size, at, first, radix, apart)

    def joined(self, inner: Atom) -> Atom | None:
        """Return it and the digit behind it as one digit; None if they are not two parts of one."""
        axis, step, size, start, low, radix = inner[:6]
        is_whole = size == radix > 1 and low == 0 and inner.apart == self.apart == 1
        if axis != self.axis or axis < 0 or not is_whole or self.step != step * radix:
            return None
        outer = self._replace(step=step, size=self.size * radix, start=self.start + start)
        return outer._replace(low=self.low * radix, radix=self.radix * radix)

    def cut(self, inner: int) -> tuple[Atom, Atom] | None:
        """Return it as two digits, the second of radix `inner`; None if that is impossible."""
        axis, step, size, start, low, radix, apart = self
        if apart > 1:
            return None
        if low % inner == size % inner == 0:
            outer = Atom(axis, step * inner, size // inner, start, low // inner, radix // inner)
            return outer, Atom(axis, step, inner, 0, 0, inner)
        at = low // inner
        if size and at != (low + size - 1) // inner:
            return None
        return Atom(-1, 1, 1, 0, at, radix // inner), Atom(
            axis, step, size, start, low % inner, inner
        )


Axis = tuple[Atom, ...]
"""The digits of an axis from the slowest to the fastest; empty if the axis has size 1."""


@dataclass(frozen=True)
class View:
    """An array whose axes consist of digits of a source's axes.

    Parameters
    ----------
    axes : tuple of tuple of Atom
        The digits of each axis.
    fixed : tuple of Atom
        Digits at one value, which select the array, such as the index of a layer in a stack.
    """

    axes: tuple[Axis, ...]
    fixed: Axis = ()

    @classmethod
    def of(cls, shape: Sequence[int]) -> View:
        """Return the view of a whole source.

        >>> View.of((2, 3)).transpose([1, 0]).axes[1]
        (Atom(axis=0, step=1, size=2, start=0, low=0, radix=2, apart=1),)
        """
        return cls(tuple((Atom.of(axis, size),) for axis, size in enumerate(shape)))

    @property
    def atoms(self) -> Iterator[Atom]:
        """All its digits."""
        for axis in self.axes:
            yield from axis
        yield from self.fixed

    @property
    def is_empty(self) -> bool:
        """Whether it holds no entry of the source."""
        return any(atom.size == 0 < atom.radix for atom in self.atoms)

    @property
    def is_dense(self) -> bool:
        """Whether nothing lies between its entries along any digit."""
        return all(atom.apart == 1 for atom in self.atoms)

    @property
    def weight(self) -> int:
        """The number of the source's axes in it."""
        return len({atom.axis for atom in self.atoms if atom.axis >= 0})

    @property
    def rank(self) -> int:
        """The number of its axes with more than one index of the source."""
        return sum(map(self.varies, range(len(self.axes))))

    def varies(self, axis: int) -> bool:
        """Whether different indices of the source lie along an axis, or one among zeros."""
        own = (atom for atom in self.axes[axis] if atom.axis >= 0)
        return any(atom.is_source or atom.radix > 1 for atom in own)

    # Moves; None means that an axis cannot be tracked ---------------------------------------

    def transpose(self, order: Iterable[int]) -> View:
        """Return the view with its axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def flip(self, axes: Iterable[int]) -> View:
        """Return the view with some axes reversed."""
        turned = set(axes)
        new = [
            tuple(atom.flip() for atom in axis) if place in turned else axis
            for place, axis in enumerate(self.axes)
        ]
        return replace(self, axes=tuple(new))

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> View | None:
        """Return the view of a part of one axis."""
        fixed, atoms = list(self.fixed), list(self.axes[axis])
        count = len(range(start, stop, step))
        while len(atoms) > 1 and step > 1 and step % atoms[-1].radix == 0:  # one value of a digit
            last = atoms.pop()
            start, at = divmod(start, last.radix)
            step //= last.radix
            stop = start + (count - 1) * step + 1
            fixed.append(last.slice(at, at + 1, 1))
        while len(atoms) > 1:
            run = prod(atom.radix for atom in atoms[1:])
            if step == 1 and start % run == stop % run == 0:
                start, stop = start // run, stop // run
                break
            at = start // run
            if not start < stop or at != (stop - 1) // run:
                return None
            fixed.append(atoms.pop(0).slice(at, at + 1, 1))
            start, stop = start - at * run, stop - at * run
        if atoms:
            atoms[0] = atoms[0].slice(start, stop, step)
        elif (start, stop) != (0, 1):
            return None
        return View(self._with(axis, tuple(atoms)), tuple(fixed))

    def take(self, axis: int, place: int = 0) -> View | None:
        """Return the view at one index of an axis, without that axis."""
        part = self.slice(axis, place, place + 1)
        if part is None:
            return None
        rest = (*part.axes[:axis], *part.axes[axis + 1 :])
        return View(rest, (*part.fixed, *part.axes[axis]))

    def each(self, axis: int) -> View:
        """Return the view at any one index of an axis, without that axis: a turn of a loop."""
        rest = (*self.axes[:axis], *self.axes[axis + 1 :])
        return View(rest, (*self.fixed, *self.axes[axis]))

    def expand(self, axis: int) -> View:
        """Return the view with a new axis of size 1 before another."""
        return replace(self, axes=(*self.axes[:axis], (), *self.axes[axis:]))

    def join(self, axis: int, low: int, whole: int, step: int = 1) -> View | None:
        """Return the view with an axis embedded in a longer one: from `low` on, `step` apart."""
        first, *inner = self.axes[axis] or (Atom.of(-1, 1),)
        run = prod(atom.radix for atom in inner)
        if whole % step and not inner:
            by = first.apart * step
            first = first._replace(low=first.low * step + low, radix=whole, apart=by)
            return replace(self, axes=self._with(axis, (first,)))
        low, at = divmod(low, step)
        if low % run or whole % (run * step):
            return None
        first = first._replace(low=first.low + low // run, radix=whole // (run * step))
        last = (Atom(-1, 1, 1, 0, at, step),) if step > 1 else ()
        return replace(self, axes=self._with(axis, (first, *inner, *last)))

    def broadcast(self, shape: Sequence[int], places: Sequence[int], old: Sequence[int]) -> View:
        """Return the view broadcast to a shape, with its axes at the given positions."""
        axes: list[Axis] = [(Atom.of(-1, size),) if size != 1 else () for size in shape]
        fixed = list(self.fixed)
        for axis, place in enumerate(places):
            if old[axis] == shape[place]:
                axes[place] = self.axes[axis]
            else:
                fixed += self.axes[axis]
        return View(tuple(axes), tuple(fixed))

    def reshape(self, old: Sequence[int], new: Sequence[int]) -> View | None:
        """Return the view in another shape."""
        if 0 in old:
            return None
        axes: list[Axis] = []
        fixed = list(self.fixed)
        for before, after in regroup(old, new):
            if len(before) == len(after) == 1:
                axes.append(self.axes[before[0]])
            elif not before:
                axes.append(())
            elif not after:
                fixed += self.axes[before[0]]
            else:
                atoms = [atom for place in before for atom in self.axes[place]]
                fixed += [atom for atom in atoms if atom.radix == 1]
                parted = _deal([atom for atom in atoms if atom.radix != 1], [new[k] for k in after])
                if parted is None:
                    return None
                axes += parted
        return View(tuple(axes), tuple(fixed))

    def _with(self, axis: int, atoms: Axis) -> tuple[Axis, ...]:
        return (*self.axes[:axis], atoms, *self.axes[axis + 1 :])


def regroup(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest groups of axes that a reshape turns into each other.

    >>> list(regroup((2, 6, 1, 4), (12, 2, 2)))
    [([0, 1], [0]), ([2], []), ([3], [1, 2])]
    """
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            yield [i], [j]
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            yield [i], []
            i += 1
        elif j < len(new) and new[j] == 1:
            yield [], [j]
            j += 1
        else:
            first, last = i, j
            a, b, i, j = old[i], new[j], i + 1, j + 1
            while a != b:
                if a < b:
                    a, i = a * old[i], i + 1
                else:
                    b, j = b * new[j], j + 1
            yield list(range(first, i)), list(range(last, j))


def _deal(left: list[Atom], sizes: Sequence[int]) -> list[Axis] | None:
    """Distribute digits to axes of some sizes, and split digits where needed.

    None if a digit does not fit, or if the sizes are not theirs, as after a padding.
    """
    if prod(atom.radix for atom in left) != prod(sizes):
        return None
    dealt = []
    for need in sizes:
        axis = list[Atom]()
        while need > 1:
            atom = left.pop(0)
            if atom.radix > need:
                cut = None if atom.radix % need else atom.cut(atom.radix // need)
                if cut is None:
                    return None
                atom, rest = cut
                left.insert(0, rest)
            elif need % atom.radix:
                return None
            one = axis[-1].joined(atom) if axis else None
            axis[len(axis) - (one is not None) :] = [one or atom]
            need //= atom.radix
        dealt.append(tuple(axis))
    return dealt
