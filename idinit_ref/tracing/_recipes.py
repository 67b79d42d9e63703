"""Internal: weights that are products and sums of others, applied one after the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._axes import Atom, View
from ._labels import Labels
from ._made import Factors, Made, Shape, Terms, entries_of, names_of, span_of
from ._values import Value, is_constant, is_number

__all__ = [
    "Factor",
    "Kernel",
    "chosen",
    "factors_of",
    "is_eye",
    "kernel_of",
    "opened",
    "ordered",
    "reordered",
    "scaled_of",
    "summed_of",
    "terms_of",
    "thin",
    "thinned",
    "uncopied",
]


class Factor(NamedTuple):
    """A value of parameters or a constant, and a label for each of its axes."""

    made: Made
    labels: Labels


class _Digit(NamedTuple):
    """A digit of an axis of a product of parameters; without a label it has one value."""

    step: int
    size: int
    start: int
    label: Hashable
    low: int = 0  # where it starts among `radix` values, of which the others are zeros
    radix: int = 0


# Recipes ----------------------------------------------------------------------------------------


def factors_of(values: Sequence[Value], labels: Sequence[Labels], out: Labels) -> Factors | None:
    """Return the recipe of a product of two values, of parameters or constant.

    Batch axes of size 1, which some frameworks add, are left out.
    """
    a, b = values
    if not isinstance(a, Made) or not isinstance(b, Made) or a.shape is None or b.shape is None:
        return None
    if any(len(own) != len(v.shape or ()) for own, v in zip(labels, (a, b), strict=True)):
        return None  # a constant's shape may lack its axes of size 1
    gone = {label for label in _ones((a, b), labels) if label in out}
    kept = [label for label in out if label not in gone]
    sizes: dict[Hashable, int] = {}
    for made, own in zip((a, b), labels, strict=True):
        sizes |= dict(zip(own, made.shape or (), strict=True))
    axes = (() if c in gone else (Atom.of(kept.index(c), sizes[c]),) for c in out)
    both = tuple(tuple(label for label in own if label not in gone) for own in labels)
    first, second = (thin(made, own, gone) for made, own in zip((a, b), labels, strict=True))
    return Factors((first, second), (both[0], both[1]), tuple(kept), View(tuple(axes)))


def scaled_of(values: Sequence[Value], shape: Shape | None) -> Factors | None:
    """Return the recipe of an elementwise product of a weight with values along one axis of it."""
    for whole, by in (values, values[::-1]):
        if not isinstance(whole, Made) or not isinstance(by, Made) or by.shape is None:
            continue
        is_weight = whole.is_plain or whole.recipe
        if not is_weight or whole.shape != shape or not shape or is_number(by):
            continue
        more = len(shape) - len(by.shape)
        axes = [axis for axis in range(len(by.shape)) if _varies(by, axis)]
        if len(axes) == 1 < len(shape) and set(names_of([whole])).isdisjoint(names_of([by])):
            every = range(len(shape))
            return factors_of([whole, _vector(by, *axes)], [every, [axes[0] + more]], every)
    return None


def _varies(made: Made, axis: int) -> bool:
    """Whether a value of parameters or a constant may vary along an axis."""
    if (made.shape or ())[axis] == 1 or made.parts:
        return (made.shape or ())[axis] != 1 and made.varies(axis)
    numbers = made.numbers
    return numbers is None or bool(np.ptp(numbers, axis=axis).any())


def _vector(made: Made, axis: int) -> Made:
    """Return the entries of a value along one axis, the only one along which it varies."""
    rest = [at for at in range(len(made.shape or ())) if at != axis]

    def move(view: View) -> View | None:
        new: View | None = view
        for at in reversed(rest):
            new = None if new is None else new.take(at)
        return new

    index = tuple(0 if at in rest else slice(None) for at in range(len(rest) + 1))
    return _moved(made, ((made.shape or ())[axis],), move, index)


def _moved(
    made: Made, shape: Shape, move: Callable[[View], View | None], index: Any, old: Shape = ()
) -> Made:
    """Return a moved value; the numbers of a constant are reshaped and indexed."""
    found, numbers = made.moved(shape, move), made.numbers
    if numbers is None:
        return found
    numbers = numbers.reshape(old or numbers.shape)[index].reshape(shape)
    return found._replace(span=span_of(numbers), entries=entries_of(numbers))


def reordered(made: Made, axis: int, order: NDArray[np.int64]) -> Factors | None:
    """Return the recipe of a weight with its rows along an axis in another order, if it is one."""
    if (order == np.arange(len(order))).all():
        return None
    numbers = np.eye(len(order))[order]
    turn = Made(numbers.shape, span=span_of(numbers), entries=entries_of(numbers))
    every: list[Hashable] = [*range(len(made.shape or ()))]
    out = [*every[:axis], "row", *every[axis + 1 :]]
    return factors_of([turn, made], [["row", axis], every], out)


def summed_of(made: Made, axes: Sequence[int], keeps: bool) -> Made | Factors | None:
    """Return the sum of a product over axes that both factors have, and which keep size 1 or go.

    None if it is unknown.
    """
    found = opened(made)
    if found is None:
        return None
    (one, ours), (two, theirs) = found.factors
    gone = {label for axis in axes for label, _ in found.axes[axis]}
    left = [() if k in axes else own for k, own in enumerate(found.axes) if keeps or k not in axes]
    out = [label for own in left for label, _ in own]
    if not gone <= {*ours} & {*theirs}:
        return None
    digits = tuple(tuple(Atom.of(out.index(c), size) for c, size in own) for own in left)
    part = chosen((one, two), (ours, theirs), out)
    return part or Factors((one, two), (tuple(ours), tuple(theirs)), tuple(out), View(digits))


def terms_of(a: Made, b: Made) -> Terms | None:
    """Return the recipe of a sum of parameters, products of others, and constant arrays."""
    values = [
        v
        for made in (a, b)
        for v in (made.recipe.values if isinstance(made.recipe, Terms) else (made,))
    ]
    names = [part.name for value in values for part in value.parts]
    is_known = all(value.recipe or value.is_plain or _is_array(value) for value in values)
    if a.shape != b.shape or not is_known or not names or len({*names}) < len(names):
        return None
    return Terms(tuple(values))


def _is_array(value: Made) -> bool:
    """Whether a value is a constant that may be a matrix or a kernel."""
    return is_constant(value) and not is_number(value) and len(value.shape or ()) > 1


def chosen(values: Sequence[Value], labels: Sequence[Labels], out: Labels) -> Made | None:
    """Return the part of a stack that a product with a constant one-hot vector chooses."""
    for table, by, own, rest in zip(values, values[::-1], labels, labels[::-1], strict=True):
        if not isinstance(table, Made) or not isinstance(by, Made):
            continue
        numbers = by.numbers
        if numbers is None or not table.parts or len(own) != len(table.shape or ()):
            continue
        long = [label for label, n in zip(rest, numbers.shape, strict=True) if n > 1]
        if len(long) != 1 or long[0] not in own or long[0] in out or len({*own}) < len(own):
            continue
        if numbers.max() != 1 or np.count_nonzero(numbers) != 1:
            continue
        if {*out} != {*own, *rest} - {*long}:
            continue
        return _taken(table, own, out, list(own).index(long[0]), int(numbers.argmax()))
    return None


def _taken(table: Made, own: Labels, out: Labels, axis: int, place: int) -> Made:
    """Return a value at one index of an axis, with its other axes in an order, and axes of 1."""
    sizes = dict(zip(own, table.shape or (), strict=True))
    left = [label for at, label in enumerate(own) if at != axis]
    kept = [label for label in out if label in sizes]
    moved, shape = [sizes[label] for label in kept], [sizes.get(label, 1) for label in out]

    def move(view: View) -> View | None:
        new = view.take(axis, place)
        new = None if new is None else new.transpose([left.index(label) for label in kept])
        return None if new is None else new.reshape(moved, shape)

    return table.moved(tuple(shape), move)


def thinned(values: tuple[Made, Made], labels: Sequence[Labels]) -> list[Made]:
    """Return two operands without their shared axes of size 1."""
    gone = _ones(values, labels)
    return [thin(made, own, gone) for made, own in zip(values, labels, strict=True)]


def _ones(values: tuple[Made, Made], labels: Sequence[Labels]) -> set[Hashable]:
    """Return the labels of axes of size 1 that two operands share."""
    ones = [
        {label for label, size in zip(own, made.shape or (), strict=False) if size == 1}
        for made, own in zip(values, labels, strict=True)
    ]
    return ones[0] & ones[1]


def thin(made: Made, own: Labels, gone: set[Hashable]) -> Made:
    """Return a value without some axes of size 1."""
    old = made.shape or ()
    new = tuple(size for label, size in zip(own, old, strict=False) if label not in gone)
    return made if new == old else _moved(made, new, lambda view: view.reshape(old, new), ())


# Their use --------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """The factors of a product, and the labels and sizes that each of its axes consists of."""

    factors: tuple[Factor, Factor]
    axes: tuple[tuple[tuple[Hashable, int], ...], ...]


def opened(made: Made) -> Opened | None:
    """Return the factors of a product, cut and reshaped as it was; None if that is unknown."""
    recipe = made.recipe
    if not isinstance(recipe, Factors) or any(len({*own}) < len(own) for own in recipe.labels):
        return None
    digits: dict[int, list[_Digit]] = {at: [] for at in range(len(recipe.out))}
    axes: list[tuple[tuple[Hashable, int], ...]] = []
    for atoms in (*recipe.view.axes, recipe.view.fixed):
        own: list[tuple[Hashable, int]] = []
        for atom in atoms:
            is_one = atom.size == atom.radix == 1
            if (atom.axis < 0 and not is_one) or atom.step < 0 or atom.apart > 1:
                return None
            label = None if is_one else (atom.axis, atom.step)
            own += [] if label is None else [(label, atom.radix)]
            if atom.axis >= 0:
                digits[atom.axis].append(_Digit(*atom[1:4], label, *atom[4:6]))
        axes.append(tuple(own))
    factors = []
    for value, labels in zip(recipe.values, recipe.labels, strict=True):
        ways = [digits[recipe.out.index(c)] if c in recipe.out else None for c in labels]
        found = _parted(value, ways, labels)
        if found is None:
            return None
        factors.append(found)
    return Opened((factors[0], factors[1]), tuple(axes[:-1]))


def _parted(made: Made, ways: Sequence[list[_Digit] | None], labels: Labels) -> Factor | None:
    """Return a factor with its axes split into digits, and its labels; None keeps an axis."""
    old = made.shape or ()
    parts: list[tuple[int, _Digit]] = []  # each with the number of its values in the factor
    for label, size, digits in zip(labels, old, ways, strict=True):
        own = (
            [_Digit(1, size, 0, ("", label))]
            if digits is None
            else sorted(digits, key=lambda d: -d.step)
        )
        steps = [size, *(digit.step for digit in own)]
        if steps[-1] != 1 or any(a % b for a, b in pairwise(steps)):
            return None
        parts += zip((a // b for a, b in pairwise(steps)), own, strict=True)
    starts = [digit.start // digit.step for _, digit in parts]
    spans = [slice(at, at + d.size) for at, (_, d) in zip(starts, parts, strict=True)]
    split = [count for count, _ in parts]
    if any(span.stop > count for span, count in zip(spans, split, strict=True)):
        return None
    kept = [digit for _, digit in parts if digit.label is not None]
    shape = tuple(digit.radix or digit.size for digit in kept)
    if is_constant(made) and shape != tuple(digit.size for digit in kept):
        return None

    def move(view: View) -> View | None:
        new = view.reshape(old, split)
        for at in reversed(range(len(parts))):
            if new is not None and parts[at][1].label is None:
                new = new.take(at, starts[at])
            elif new is not None:
                new = new.slice(at, spans[at].start, spans[at].stop)
                low, whole = parts[at][1].low, parts[at][1].radix
                new = new if new is None or not whole else new.join(at, low, whole)
        return new

    found = _moved(made, shape, move, tuple(spans), tuple(split))
    return Factor(found, tuple(digit.label for digit in kept))


def uncopied(made: Made, own: Labels, rest: Labels) -> tuple[Made, Labels]:
    """Return a weight, and its labels, without the axes along which it was copied for a signal."""
    pairs = list(enumerate(own))
    copied = [at for at, c in pairs if c in rest and made.shape and not _may_vary(made, at)]

    def move(view: View) -> View | None:
        new: View | None = view
        for at in reversed(copied):
            new = None if new is None else new.take(at)
        return new

    shape = tuple(size for at, size in enumerate(made.shape or ()) if at not in copied)
    return (made.moved(shape, move) if copied else made), [c for at, c in pairs if at not in copied]


def _may_vary(made: Made, axis: int) -> bool:
    """Whether a value, which may be a product or a sum, may vary along an axis."""
    if isinstance(made.recipe, Factors):
        return any(atom.axis >= 0 and atom.radix > 1 for atom in made.recipe.view.axes[axis])
    if isinstance(made.recipe, Terms):
        return any(_may_vary(value, axis) for value in made.recipe.values)
    return _varies(made, axis)


def ordered(
    factors: Sequence[Factor], rest: Collection[Hashable], out: Collection[Hashable]
) -> tuple[Factor, Factor] | None:
    """Return two factors in the order in which a signal with some labels can meet them.

    By associativity x (U V) is (x U) V. A factor that only scales the signal may be first, too.
    """
    for first, last in (tuple(factors), tuple(factors[::-1])):
        shared = {*first.labels} & {*rest}
        is_scale = bool(shared) and shared == {*first.labels}
        if is_scale or shared - {*last.labels} - {*out}:
            return first, last
    return None


class Kernel(NamedTuple):
    """A kernel that is a product, as two: a kernel, and a matrix or a scale of channels.

    The matrix has the labels "I" or "O", whichever channels it acts on, and "" for those between;
    a scale lacks these.
    """

    kernel: Made
    matrix: Factor
    at: str

    @property
    def between(self) -> str:
        """The label of the channels between the two."""
        return "" if "" in self.matrix.labels else self.at


def kernel_of(made: Made, letters: str) -> Kernel | None:
    """Return a kernel with some axes, which is a product, as two; None if it is none such."""
    found = opened(made)
    if found is None or any(len(axis) > 1 for axis in found.axes):
        return None
    place = {axis[0][0]: c for axis, c in zip(found.axes, letters, strict=True) if axis}
    for kernel, matrix in (found.factors, found.factors[::-1]):
        own = [place.get(label, "") for label in matrix.labels]
        at = next((c for c in own if c), "")
        whole = [place.get(label, at) for label in kernel.labels]
        is_matrix = own in ([at], [at, ""], ["", at]) and at in ("I", "O")
        if is_matrix and at in whole and len({*whole}) == len(whole):
            return Kernel(_with_axes(kernel.made, whole, letters), Factor(matrix.made, own), at)
    return None


def _with_axes(made: Made, own: Labels, letters: str) -> Made:
    """Return a value with axes in the order of some letters, of size 1 if it lacks them."""
    order = sorted(range(len(own)), key=lambda at: letters.index(str(own[at])))
    old = tuple((made.shape or ())[at] for at in order)
    sizes = dict(zip((own[at] for at in order), old, strict=True))
    new = tuple(sizes.get(letter, 1) for letter in letters)
    turned = made.moved(old, lambda view: view.transpose(order))
    return turned.moved(new, lambda view: view.reshape(old, new))


def is_eye(made: Made, letters: Sequence[str], taps: Mapping[str, int]) -> bool:
    """Whether a constant passes a signal: a unit matrix, at some taps of a kernel."""
    numbers = made.numbers
    if numbers is None or numbers.ndim != len(letters):
        return False
    if sorted({*letters} - {*taps}, key=str) != ["I", "O"]:
        return False
    index = tuple(taps.get(letter, slice(None)) for letter in letters)
    size, matrix = numbers.shape[list(letters).index("O")], numbers[index]
    return np.array_equal(matrix, np.eye(size)) and np.count_nonzero(numbers) == size
