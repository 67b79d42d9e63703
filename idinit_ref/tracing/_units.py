"""Internal: the axes of a signal that hold units, the outputs of earlier weights."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..roles.graph import Node
from ._axes import View

__all__ = [
    "Places",
    "Unit",
    "carried",
    "left_by",
    "merged",
    "placed",
    "seen_by",
    "spread_to",
    "summed_by",
]

Places = Mapping[int, Collection[int]]
"""The axes of a result to which each axis of an operand goes: none if it is summed. Where an axis
goes is unknown if it has no key."""
_MOST = 4  # the most units that are followed


class Unit(NamedTuple):
    """Axes with units, and whether they come from one factor of a product of signals."""

    axes: frozenset[int]
    is_factor: bool = False


def merged(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Return units that meet in one signal; those of different factors stay apart.

    >>> merged([Unit(frozenset({0})), Unit(frozenset({1}))])
    (Unit(axes=frozenset({0, 1}), is_factor=False),)
    """
    found: dict[frozenset[int] | None, Unit] = {}
    for unit in units:
        key = unit.axes if unit.is_factor else None
        axes = found[key].axes if key in found else frozenset()
        found[key] = unit._replace(axes=axes | unit.axes)
    return tuple(unit for unit in list(found.values())[:_MOST] if unit.axes)


def placed(units: Sequence[Unit], places: Places) -> tuple[Unit, ...]:
    """Return the units of a result, without those that have a summed axis.

    >>> placed([Unit(frozenset({0})), Unit(frozenset({1}))], {0: (), 1: (0,)})
    (Unit(axes=frozenset({0}), is_factor=False),)
    """
    left = (unit for unit in units if all(places.get(axis, (0,)) for axis in unit.axes))
    moved = (
        unit._replace(axes=frozenset(to for axis in unit.axes for to in places.get(axis, ())))
        for unit in left
    )
    return tuple(unit for unit in moved if unit.axes)


def seen_by(probe: View) -> Places:
    """Return where a move puts the axes of a signal, given the moved view of the whole signal."""
    found: dict[int, set[int]] = {}
    for at, atoms in enumerate(probe.axes):
        for atom in atoms:
            found.setdefault(atom.axis, set()).add(at)
    return found


def spread_to(old: Sequence[int] | None, new: Sequence[int] | None) -> Places:
    """Return where an elementwise operation, which broadcasts, puts the axes of an operand."""
    if old is None or new is None or len(old) > len(new):
        return {}
    more = len(new) - len(old)
    return {axis: (axis + more,) for axis in range(len(old))}


def summed_by(own: Sequence[Hashable], out: Sequence[Hashable]) -> Places:
    """Return where a product puts the axes of an operand, by their labels."""
    to = list(out)
    return {axis: (to.index(label),) if label in to else () for axis, label in enumerate(own)}


def left_by(rank: int, axes: Sequence[int], shape: Sequence[int] | None) -> Places:
    """Return where a sum along axes leaves the other axes."""
    is_kept = shape is not None and len(shape) == rank  # the summed axes stay, with size 1
    left = [axis for axis in range(rank) if is_kept or axis not in axes]
    return {axis: () if axis in axes else (left.index(axis),) for axis in range(rank)}


def carried(
    nodes: Iterable[Node],
    steps: Mapping[str, Sequence[tuple[str, Places]]],
    starts: Mapping[str, Collection[int]],
) -> dict[str, frozenset[int]]:
    """Return the axes of each node along which some axes of the starts may lie.

    An axis may go anywhere where it is not known where it goes.

    >>> x, mean = Node("x", "input", shape=(4, 3)), Node("mean", inputs=("x",), shape=(3,))
    >>> copies = Node("copies", inputs=("x",), shape=(2, 4, 3))
    >>> steps = {"copies": [("x", {0: (1,), 1: (2,)})], "mean": [("x", {0: (), 1: (0,)})]}
    >>> [sorted(axes) for axes in carried([x, mean, copies], steps, {"x": [0]}).values()]
    [[0], [], [1]]
    """
    found: dict[str, frozenset[int]] = {}
    for node in nodes:
        axes, rank = set(starts.get(node.name, ())), len(node.shape or (1,))
        ways = steps.get(node.name, ())
        for before in set(node.inputs):
            own = [places for name, places in ways if name == before] or [{}]
            for old in found.get(before, ()):
                axes.update(at for places in own for at in places.get(old, range(rank)))
        found[node.name] = frozenset(axes)
    return found
