"""Internal: the labels of a product's axes, as the letters of an einsum."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from ._axes import Atom, Axis
from ._made import Made, Shape
from ._values import Signal, Value

Labels = Sequence[Hashable]
"""A label for each axis of an operand, as the letters of an einsum."""


class Side(NamedTuple):
    """An operand of a product of two, its place and labels; and the other one and its labels."""

    at: int
    value: Value
    own: Labels
    other: Value
    rest: Labels


class Einsum(NamedTuple):
    """A product that sums over some axes: see :meth:`Drawing.product`."""

    name: str
    values: Sequence[Value]
    labels: Sequence[Labels]
    out: Labels
    shape: Shape | None
    grouped: Labels = ()

    @property
    def sides(self) -> list[Side]:
        """Both operands; none if there are others, or a stack of matrices."""
        if len(self.values) != 2 or self.grouped:
            return []
        (a, b), (own, rest) = self.values, self.labels
        return [Side(0, a, own, b, rest), Side(1, b, rest, a, own)]


Sides = tuple[list[list[Hashable]], list[Hashable]]
"""The labels of every operand of a product, and those of its result."""


def of_einsum(equation: str, ranks: Sequence[int]) -> Sides:
    """Return the labels of an equation, with its ellipses expanded.

    >>> of_einsum("...a,ab->...b", (3, 2))
    ([['.2', '.1', 'a'], ['a', 'b']], ['.2', '.1', 'b'])
    """
    terms, _, result = equation.replace(" ", "").partition("->")

    def spelt(term: str, rest: int) -> list[Hashable]:
        head, dots, tail = term.partition("...")
        return [*head, *(f".{k}" for k in range(rest if dots else 0, 0, -1)), *tail]

    pairs = list(zip(terms.split(","), ranks, strict=True))
    more = [rank - len(term.replace("...", "")) for term, rank in pairs]
    sides = [spelt(term, rest) for (term, _), rest in zip(pairs, more, strict=True)]
    return sides, spelt(result, max(more))


def of_matmul(ranks: Sequence[int], turned: Sequence[bool] = (False, False)) -> Sides:
    """Return the labels of a product of matrices, vectors or stacks, perhaps transposed.

    >>> of_matmul((3, 2)), of_matmul((1, 2))
    (([[0, 'a', 'b'], ['b', 'c']], [0, 'a', 'c']), ([['b'], ['b', 'c']], ['c']))
    """
    most, sides = max(ranks), []
    for rank, matrix, turn in zip(ranks, ("ab", "bc"), turned, strict=True):
        matrix = matrix[::-1] if turn else matrix
        sides.append([*range(most - rank, most - 2), *(matrix if rank > 1 else "b")])
    free = [label for side, label in zip(sides, "ac", strict=True) if label in side]
    return sides, [*range(most - 2), *free]


def of_tensordot(axes: tuple[Sequence[int], Sequence[int]], ranks: Sequence[int]) -> Sides:
    """Return the labels of a product that sums over pairs of axes.

    >>> of_tensordot(([1], [0]), (2, 2))
    ([['a0', 'a1'], ['a1', 'b1']], ['a0', 'b1'])
    """
    a, b = (
        [f"{side}{axis}" for axis in range(rank)] for side, rank in zip("ab", ranks, strict=True)
    )
    for first, second in zip(*axes, strict=True):
        b[second] = a[first]
    return [[*a], [*b]], [*(k for k in a if k not in b), *(k for k in b if k not in a)]


def kinds_of(own: Labels, rest: Labels, out: Labels, grouped: Labels) -> str:
    """Return what each axis of a weight is: summed, shared with the signal, or its own.

    >>> kinds_of("edf", "bted", "btef", "")
    'BIO'
    """
    return "".join(
        "B" if label in grouped else "I" if label not in out else "B" if label in rest else "O"
        for label in own
    )


def parted(
    made: Made, own: Labels, kinds: str
) -> tuple[Made, Labels, str, Mapping[Hashable, list[Hashable]]]:
    """Return a weight with its output axes split into the axes that were merged into them.

    So are batch axes that hold copies, as a product that broadcasts has them. Return also its
    labels, the kinds of its axes, and the new labels by the old ones.
    """
    sizes: list[int] = []
    labels: list[Hashable] = []
    letters = ""
    apart: dict[Hashable, list[Hashable]] = {}
    whole = made.shape or ()
    for axis, (label, kind, size) in enumerate(zip(own, kinds, whole, strict=True)):
        views = [part.view for part in made.parts if part.view is not None]
        digits = [[atom for atom in view.axes[axis] if atom.radix > 1] for view in views]
        ways = {tuple(atom.radix for atom in atoms) for atoms in digits}
        copies = kind == "B" and any(atom.axis < 0 for atoms in digits for atom in atoms)
        found = next(iter(ways)) if len(ways) == 1 and (kind == "O" or copies) else ()
        if len(found) > 1:
            apart[label] = [(label, digit) for digit in range(len(found))]
        sizes += found if len(found) > 1 else [size]
        labels += apart.get(label, [label])
        letters += kind * max(len(apart.get(label, ())), 1)
    if not apart:
        return made, own, kinds, apart
    new = tuple(sizes)
    return made.moved(new, lambda view: view.reshape(whole, new)), labels, letters, apart


def axis_of(labels: Labels, made: Made, own: Labels, size: int, is_shared: bool) -> Axis:
    """Return the digits of a weight's axes that lie along an axis of the result, of some size.

    Those that the signal shares may be copies.
    """
    axis, sizes = [], made.shape or ()
    for label in labels:
        at = [*own].index(label) if label in own else -1
        is_copied = at < 0 or (is_shared and not made.varies(at))
        length = size if at < 0 or (is_copied and len(labels) == 1) else sizes[at]
        axis.append(Atom.of(-1 if is_copied else at, length))
    return tuple(axis)


def kernel_among(signals: tuple[Signal, Signal], labels: Sequence[Labels], out: Labels) -> Signal:
    """Return the signal that is a computed matrix or kernel of one weight, or an empty signal.

    The outputs of that weight lie along the summed axes and along an axis that the other signal
    lacks. It has no rows of its own, unlike the queries of grouped heads.
    """
    for signal, own, rest in zip(signals, labels, labels[::-1], strict=True):
        for unit in signal.units:
            held = {own[axis] for axis in unit.axes}
            if held - {*out} and (held & {*out}) - {*rest} and {*own} - held <= {*rest}:
                return signal
    return Signal("")
