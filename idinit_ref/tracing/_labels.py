"""Inside: labels of the axes of a product, as the letters of an einsum."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from ._axes import Atom, Axis
from ._values import Made, Shape

__all__ = ["Labels", "axis_of", "kinds_of", "parted"]

Labels = Sequence[Hashable]
"""A label for each axis of an operand, as the letters of an einsum."""


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
    """Return a weight with an axis for each of those that its axes of outputs are joined of.

    With it its labels, what its axes are, and the new labels by the old ones.
    """
    sizes: list[int] = []
    labels: list[Hashable] = []
    letters = ""
    apart: dict[Hashable, list[Hashable]] = {}
    whole = made.shape or ()
    for axis, (label, kind, size) in enumerate(zip(own, kinds, whole, strict=True)):
        ways = {
            tuple(atom.radix for atom in part.view.axes[axis] if atom.radix > 1)
            for part in made.parts
            if part.view is not None
        }
        found = next(iter(ways)) if len(ways) == 1 and kind == "O" else ()
        if len(found) > 1:
            apart[label] = [(label, digit) for digit in range(len(found))]
        sizes += found if len(found) > 1 else [size]
        labels += apart.get(label, [label])
        letters += kind * max(len(apart.get(label, ())), 1)
    if not apart:
        return made, own, kinds, apart
    new = tuple(sizes)
    return made.moved(new, lambda view: view.reshape(whole, new)), labels, letters, apart


def axis_of(label: Hashable, own: Labels, sizes: Shape, shape: Shape | None, at: int) -> Axis:
    """Return what of a weight's axes lies along an axis of the result."""
    if label in own:
        axis = list(own).index(label)
        return (Atom.of(axis, sizes[axis]),)
    return (Atom.of(-1, 1 if shape is None else shape[at]),)
