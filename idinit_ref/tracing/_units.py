"""Internal: the axes of a signal that hold units, the outputs of earlier weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ._axes import View

__all__ = ["Factor", "Unit", "merged", "renumbered", "seen_by", "spread_to"]

Factor = tuple[str, int]
"""A product of signals, and the position of one of its inputs."""
_MOST = 4  # the most units that are followed, and factors of each


class Unit(NamedTuple):
    """Axes with units, and the products of which the signal was a factor on its way."""

    axes: frozenset[int]
    factors: tuple[Factor, ...] = ()

    def within(self, factor: Factor) -> Unit:
        """Return it with one more product of which it is a factor."""
        return self._replace(factors=(*self.factors, factor)[-_MOST:])


def merged(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Return units that meet in one signal, merged if their factors are equal.

    >>> merged([Unit(frozenset({0})), Unit(frozenset({1}))])
    (Unit(axes=frozenset({0, 1}), factors=()),)
    """
    found: dict[tuple[Factor, ...], frozenset[int]] = {}
    for axes, factors in units:
        found[factors] = found.get(factors, frozenset()) | axes
    ways = list(found.items())[:_MOST]
    return tuple(Unit(axes, factors) for factors, axes in ways if axes)


def renumbered(units: Sequence[Unit], places: Mapping[int, int]) -> tuple[Unit, ...]:
    """Return units with renumbered axes; an axis without a new number is dropped."""
    moved = (
        unit._replace(axes=frozenset(places[axis] for axis in unit.axes if axis in places))
        for unit in units
    )
    return tuple(unit for unit in moved if unit.axes)


def seen_by(probe: View, units: Sequence[Unit]) -> tuple[Unit, ...]:
    """Return units after a move, given the moved view of the whole signal."""
    sources = [{atom.axis for atom in atoms} for atoms in probe.axes]
    moved = (
        unit._replace(axes=frozenset(at for at, held in enumerate(sources) if held & unit.axes))
        for unit in units
    )
    return tuple(unit for unit in moved if unit.axes)


def spread_to(
    units: Sequence[Unit], old: Sequence[int] | None, new: Sequence[int] | None
) -> tuple[Unit, ...]:
    """Return the units of an operand, broadcast by an elementwise operation."""
    if not units or old is None or new is None or len(old) > len(new):
        return ()
    more = len(new) - len(old)
    return renumbered(units, {axis: axis + more for axis in range(len(old))}) if more else (*units,)
