"""Internal: weights that are products and sums of parameters, applied one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from ._axes import Atom, View
from ._labels import Labels
from ._values import Factors, Made, Shape, Signal, Terms, Value

__all__ = ["Step", "factors_of", "steps_of", "terms_of", "thinned"]


class Step(NamedTuple):
    """A product of a signal with one of the factors."""

    made: Made
    rest: Labels
    own: Labels
    out: Labels
    shape: Shape


def factors_of(values: Sequence[Value], labels: Sequence[Labels], out: Labels) -> Factors | None:
    """Return the recipe of a product of two values of parameters; None if one is a constant.

    Batch axes of size 1, which some frameworks add, are left out.
    """
    a, b = values
    if not isinstance(a, Made) or not isinstance(b, Made) or not a.parts or not b.parts:
        return None
    if a.shape is None or b.shape is None:
        return None
    gone = {label for label in _ones((a, b), labels) if label in out}
    kept = [label for label in out if label not in gone]
    sizes: dict[Hashable, int] = {}
    for made, own in zip((a, b), labels, strict=True):
        sizes |= dict(zip(own, made.shape or (), strict=True))
    axes = (() if c in gone else (Atom.of(kept.index(c), sizes[c]),) for c in out)
    both = tuple(tuple(label for label in own if label not in gone) for own in labels)
    first, second = (_thin(made, own, gone) for made, own in zip((a, b), labels, strict=True))
    return Factors((first, second), (both[0], both[1]), tuple(kept), View(tuple(axes)))


def thinned(values: tuple[Made, Made], labels: Sequence[Labels]) -> list[Made]:
    """Return two operands without their shared axes of size 1."""
    gone = _ones(values, labels)
    return [_thin(made, own, gone) for made, own in zip(values, labels, strict=True)]


def _ones(values: tuple[Made, Made], labels: Sequence[Labels]) -> set[Hashable]:
    """Return the labels of axes of size 1 that two operands share."""
    ones = [
        {label for label, size in zip(own, made.shape or (), strict=False) if size == 1}
        for made, own in zip(values, labels, strict=True)
    ]
    return ones[0] & ones[1]


def _thin(made: Made, own: Labels, gone: set[Hashable]) -> Made:
    """Return a value without some axes of size 1."""
    old = made.shape or ()
    new = tuple(size for label, size in zip(own, old, strict=False) if label not in gone)
    return made if new == old else made.moved(new, lambda view: view.reshape(old, new))


def terms_of(a: Made, b: Made) -> Terms | None:
    """Return the recipe of a sum, if it is one of parameters and products of others."""
    values = [
        v
        for made in (a, b)
        for v in (made.recipe.values if isinstance(made.recipe, Terms) else (made,))
    ]
    names = [part.name for value in values for part in value.parts]
    is_known = all(value.recipe or value.is_plain for value in values)
    has_product = any(value.recipe for value in values)
    if a.shape != b.shape or not is_known or not has_product or len({*names}) < len(names):
        return None
    return Terms(tuple(values))


def steps_of(made: Made, signal: Signal, own: Labels, rest: Labels, out: Labels) -> list[Step]:
    """Return a product of a signal with a product of parameters as two; none if it is no chain.

    By associativity (U V) x is U (V x).
    """
    recipe, places = made.recipe, _places(made, own)
    if not isinstance(recipe, Factors) or places is None or signal.shape is None:
        return []
    inner = ({*recipe.labels[0]} & {*recipe.labels[1]}) - {*recipe.out}
    every = {*recipe.labels[0]} | {*recipe.labels[1]}
    is_chain = bool(inner) and every == inner | {*recipe.out} and len({*rest}) == len(rest)
    if not is_chain or any(len({*each}) < len(each) for each in recipe.labels):
        return []
    names: dict[Hashable, Hashable] = {label: object() for label in inner}
    names |= {label: own[places[at]] for at, label in enumerate(recipe.out)}
    labels = [[names[label] for label in each] for each in recipe.labels]
    summed = ({*own} & {*rest}) - {*out}
    first = [at for at, each in enumerate(labels) if summed & {*each}]
    gone = [label for at, label in enumerate(own) if at not in places]  # axes of size 1
    if len(first) != 1 or not {*gone}.isdisjoint({*out} - {*rest}):
        return []
    (at,) = first
    sizes: dict[Hashable, int] = dict(zip(rest, signal.shape, strict=True))
    for value, each in zip(recipe.values, labels, strict=True):
        sizes |= dict(zip(each, value.shape or (), strict=True))
    between = list(dict.fromkeys(c for c in (*rest, *labels[at]) if c not in summed))
    whole = tuple(sizes[label] for label in out)
    return [
        Step(recipe.values[at], [*rest], labels[at], between, tuple(sizes[c] for c in between)),
        Step(recipe.values[1 - at], between, labels[1 - at], [*out], whole),
    ]


def _places(made: Made, own: Labels) -> list[int] | None:
    """Return the present axis of each axis of a product of parameters; None if it was cut."""
    recipe = made.recipe
    if not isinstance(recipe, Factors) or made.shape is None or len({*own}) < len(own):
        return None
    whole: dict[Hashable, int] = {}
    for value, each in zip(recipe.values, recipe.labels, strict=True):
        whole |= dict(zip(each, value.shape or (), strict=True))
    found: dict[int, int] = {}
    for place, (atoms, size) in enumerate(zip(recipe.view.axes, made.shape, strict=True)):
        axes = [atom for atom in atoms if atom.axis >= 0 or atom.radix > 1]
        at = axes[0].axis if len(axes) == 1 else -1
        if at >= 0 and axes[0] == Atom.of(at, whole[recipe.out[at]]):
            found[at] = place
        elif axes or size != 1:
            return None
    return [found[at] for at in range(len(recipe.out))] if len(found) == len(recipe.out) else None
