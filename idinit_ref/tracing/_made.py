"""Internal: values that are computed from parameters and constants alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._axes import View

__all__ = [
    "Factors",
    "Made",
    "Part",
    "Shape",
    "Terms",
    "entries_of",
    "joined",
    "names_of",
    "offset_of",
    "slope_of",
    "span_of",
]

Shape = tuple[int, ...]
_MOST = 1 << 16  # the most numbers of a constant that are kept
_EXACT = 1 << 53  # integers beyond are no floats


def span_of(numbers: Any) -> tuple[float, float] | None:
    """Return the least and the largest of some real numbers; None if they have none.

    >>> span_of([-1, 0.5]), span_of([]), span_of([float("nan")])
    ((-1.0, 0.5), None, None)
    """
    array = np.asarray(numbers)
    if not array.size or array.dtype.kind not in "biuf":
        return None
    least, largest = float(array.min()), float(array.max())
    return (least, largest) if least <= largest else None


def entries_of(numbers: Any) -> bytes:
    """Return the entries of an array of not too many real numbers, for `Made.entries`; else b"".

    >>> len(entries_of(np.array([2, 4]))), entries_of(np.array([2j]))
    (16, b'')
    """
    array = np.asarray(numbers)
    if array.dtype.kind not in "biuf" or not 0 < array.size <= _MOST:
        return b""
    is_exact = array.dtype.kind not in "iu" or max(abs(int(array.min())), int(array.max())) < _EXACT
    return array.astype(np.float64).tobytes() if is_exact else b""


class Part(NamedTuple):
    """A parameter in a value; the view is None if its axes cannot be tracked."""

    name: str
    view: View | None
    stopped: bool = False  # no gradient reaches it
    done: str = ""  # its change, except moves, casts and scalings by a number
    added: bool = False  # it is added to other parameters or constants
    factor: bool = False  # the whole value vanishes with this part alone, to first order
    still: bool = False  # the same, to any order
    offset: float = 0.0  # it is added to this number alone; 0: to none
    steps: str = ""  # a function of it that is constant between its steps
    slope: float | None = 1.0  # of the value's entries along those of the part, where it is 0

    @property
    def ends(self) -> bool:
        """Whether the whole value vanishes with this part, to first order."""
        return self.factor or not (self.done or self.added)

    @property
    def vanishes(self) -> bool:
        """Whether the whole value vanishes with this part, to any order."""
        return self.still or self.ends


class Factors(NamedTuple):
    """A product of two values of parameters, given as an einsum; `view` says how it was moved."""

    values: tuple[Made, Made]
    labels: tuple[tuple[Hashable, ...], tuple[Hashable, ...]]
    out: tuple[Hashable, ...]
    view: View

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Factors | None:
        """Return it moved, or None if its axes are no longer tracked."""
        view = move(self.view)
        return None if view is None else self._replace(view=view)


class Terms(NamedTuple):
    """A sum of values of parameters, of which at least one is a product."""

    values: tuple[Made, ...]

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Terms | None:
        """Return it moved, or None if the axes of a term are no longer tracked."""
        values = tuple(value.moved(shape, move) for value in self.values)
        is_lost = any(part.view is None for value in values for part in value.parts)
        return None if is_lost else Terms(values)


class Made(NamedTuple):
    """A value computed only from parameters and constants; without parts it is a constant."""

    shape: Shape | None
    parts: tuple[Part, ...] = ()
    number: bool = False  # a constant with one value everywhere
    value: float | None = None  # that value, if it is known
    rooted: bool = False  # contains a root of several numbers, as of a running variance
    span: tuple[float, float] | None = None  # its least and largest entry, as the model holds it
    entries: bytes = b""  # a constant's float64 entries, in row-major order, if they are known
    recipe: Factors | Terms | None = None  # what it is applied as: one part after the other

    @property
    def extent(self) -> tuple[float, float] | None:
        """Its least and largest entry, if they are known."""
        return self.span if self.value is None else (self.value, self.value)

    @property
    def zero(self) -> bool:
        """Whether it is a constant that is 0 everywhere."""
        return not self.parts and self.extent == (0, 0)

    @property
    def numbers(self) -> NDArray[np.float64] | None:
        """Its entries, if it is a constant of known numbers."""
        if self.parts or self.shape is None or prod(self.shape) > _MOST:
            return None
        if self.value is not None:
            return np.full(self.shape, self.value)
        is_known = len(self.entries) == 8 * prod(self.shape) > 0
        return np.frombuffer(self.entries).reshape(self.shape) if is_known else None

    @property
    def integers(self) -> NDArray[np.int64] | None:
        """Its entries, if it is a constant of known integers."""
        found = self.numbers
        if found is None or not np.isfinite(found).all() or (found % 1).any():
            return None
        return found.astype(np.int64)

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Made:
        """Return it with the axes of all its parts moved."""
        new = []
        for part in self.parts:
            view = None if part.view is None else move(part.view)
            view = view if view is not None and view.is_dense else None
            if view is None or not view.is_empty:
                new.append(part._replace(view=view))
        recipe = self.recipe and self.recipe.moved(shape, move)
        return self._replace(shape=shape, parts=tuple(new), entries=b"", recipe=recipe)

    def lost(self, shape: Shape | None) -> Made:
        """Return it with parts whose axes are no longer tracked."""
        return self.moved(shape, lambda view: None)

    def noted(self, done: Callable[[str], str]) -> Made:
        """Return it with a note on each part that has none: the operation done to it."""
        parts = tuple(part._replace(done=part.done or done(part.name)) for part in self.parts)
        return self._replace(parts=parts, recipe=None)

    def stepped(self, by: str) -> Made:
        """Return it as a function of it that is constant between its steps."""
        return self._replace(parts=tuple(p._replace(steps=p.steps or by) for p in self.parts))

    def sloped(self, by: float | None) -> Made:
        """Return it as a function of it, or its product with a number, of some slope at 0."""
        parts = (
            p._replace(slope=None if by is None or p.slope is None else p.slope * by)
            for p in self.parts
        )
        return self._replace(parts=tuple(parts))

    def multiplied(self, by: Collection[str]) -> Made:
        """Return it as a factor of a product with a value of other parameters.

        What is constant between its steps has slope 0: nothing vanishes with it to first order.
        """
        parts = (
            part._replace(factor=part.ends and not part.steps and part.name not in by)
            for part in self.parts
        )
        return self._replace(parts=tuple(parts))

    def factored(self, names: Collection[str], still: Collection[str] = ()) -> Made:
        """Return it as a value that vanishes with each of some parameters, and with no other.

        It vanishes to first order with some of them, and to any order with those in `still`.
        """
        parts = (
            part._replace(factor=part.name in names, still=part.name in still)
            for part in self.parts
        )
        return self._replace(parts=tuple(parts))

    def varies(self, axis: int) -> bool:
        """Whether its entries may differ along an axis."""
        return any(part.view is None or part.view.varies(axis) for part in self.parts)

    @property
    def is_table(self) -> bool:
        """Whether it may vary along several axes, as tokens and positions do, unlike a bias."""
        views = [part.view for part in self.parts]
        return any(view is None or view.rank > 1 for view in views)

    @property
    def is_vector(self) -> bool:
        """Whether it varies along at most one axis, also after broadcasting."""
        if self.is_table:
            return False
        views = [part.view for part in self.parts if part.view is not None]
        if not views:
            return sum(size != 1 for size in self.shape or ()) < 2
        return len({a for view in views for a in range(len(view.axes)) if view.varies(a)}) < 2

    @property
    def is_plain(self) -> bool:
        """Whether it is one parameter, moved or scaled by a number at most."""
        return len(self.parts) == 1 and self.parts[0].ends and self.parts[0].view is not None

    @property
    def is_matrix(self) -> bool:
        """Whether every part is tracked and has more than one axis."""
        return all(part.view is not None and part.view.rank > 1 for part in self.parts)


def joined(shape: Shape | None, values: Sequence[Made]) -> Made:
    """Return a value of several; a parameter in two of them keeps the view with more axes."""
    ways: dict[str, list[Part]] = {}
    for value in values:
        here: dict[str, list[Part]] = {}
        for part in value.parts:
            here.setdefault(part.name, []).append(part)
        for name, new in here.items():
            old = ways.get(name)
            if old is None:
                ways[name] = new
                continue
            first, second = (old, new) if _shown(old) >= _shown(new) else (new, old)
            stopped = all(part.stopped for part in (*old, *new))
            added = any(part.added for part in (*old, *new))
            offset = old[0].offset if old[0].offset == new[0].offset else 0.0
            done = next((part.done for part in (*first, *second) if part.done), "")
            steps = first[0].steps if all(part.steps for part in (*old, *new)) else ""
            ways[name] = [
                Part(name, part.view, stopped, done, added, offset=offset, steps=steps, slope=None)
                for part in first
            ]
    parts = tuple(part for parts in ways.values() for part in parts)
    return Made(shape, parts, rooted=any(value.rooted for value in values))


def _shown(parts: Sequence[Part]) -> int:
    return max(-1 if part.view is None else part.view.weight for part in parts)


def names_of(values: Iterable[object]) -> list[str]:
    """Return the names of the parameters in some values."""
    parts = (part for value in values if isinstance(value, Made) for part in value.parts)
    return list(dict.fromkeys(part.name for part in parts))


def slope_of(terms: Sequence[Made], doing: str) -> float | None:
    """Return the slope at 0 of a sum of functions of one parameter; None if that is unknown."""
    signs = [1.0, -1.0 if doing == "subtracted with" else 1.0]
    pairs = zip(signs, terms, strict=False)
    parts = [(by, part) for by, term in pairs for part in term.parts if not part.stopped]
    slopes = [by * part.slope for by, part in parts if part.slope is not None and part.view]
    is_known = len(slopes) == len(parts) and len({part.view for _, part in parts}) == 1
    return sum(slopes) if is_known else None


def offset_of(values: Sequence[object], doing: str) -> float:
    """Return the number that a sum adds to a value of parameters; 0 if it adds another value."""
    terms = [value for value in values if isinstance(value, Made)]
    numbers = [term.value for term in terms if not term.parts]
    if len(numbers) != 1 or len(terms) != 2 or numbers[0] is None:
        return 0.0
    if doing == "subtracted with":
        return -numbers[0] if terms[0].parts else 0.0
    return numbers[0]
