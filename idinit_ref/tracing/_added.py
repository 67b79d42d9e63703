"""Internal: the pieces of parameters that sums add, and along which weights' outputs they lie."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from ..core.layout import strides_of
from ..roles.graph import Node
from ._axes import View
from ._made import Made, Shape
from ._units import Places

__all__ = ["Addend", "Drawn", "Steps", "addends_of", "lying_along", "pieces_in", "shifted_alone"]

Steps = Mapping[str, Sequence[tuple[str, Places]]]
"""For each node: its inputs, and where their axes go in it."""


class Addend(NamedTuple):
    """A piece of a parameter that is added to a signal, and the axes along which it varies."""

    name: str
    piece: Hashable
    axes: frozenset[int]


def addends_of(made: Made, shape: Shape | None, shapes: Mapping[str, Shape]) -> list[Addend]:
    """Return the pieces of parameters that are added to a signal; none if one is not tracked."""
    first, found = len(shape or ()) - len(made.shape or ()), list[Addend]()
    for part in made.parts:
        if part.view is None or shape is None or made.shape is None:
            return []
        axes = (first + axis for axis in range(len(part.view.axes)) if part.view.varies(axis))
        piece = _piece_of(part.view, shapes[part.name])
        found.append(Addend(part.name, piece, frozenset(axes)))
    return found


def _piece_of(view: View, shape: Shape) -> Hashable:
    """Return which entries of a parameter a view holds: the first, and the loops over them."""
    by = strides_of(shape)
    own = [atom for atom in view.atoms if atom.axis >= 0]
    start = sum(atom.start * by[atom.axis] for atom in own)
    loops = sorted((atom.step * by[atom.axis], atom.size) for atom in own if atom.size > 1)
    return start, tuple(loops)


class Drawn(NamedTuple):
    """A drawing: its nodes and their numbers, where their axes go, and the weights' outputs.

    `outputs` are the axes of each weight operation that hold its outputs, or count its matrices.
    """

    nodes: Sequence[Node]
    place: Mapping[str, int]
    steps: Steps
    outputs: Mapping[str, Collection[int]]


def lying_along(node: str, axes: Iterable[int], drawn: Drawn) -> set[str]:
    """Return the last weight operations before a node whose outputs lie along all of some axes."""
    found = [_along(node, axis, drawn) for axis in axes]
    return set.intersection(*found) if found else set()


def _along(node: str, axis: int, drawn: Drawn) -> set[str]:
    """Return those for one axis; what is computed before one of them is not searched."""
    nodes, place, steps, outputs = drawn
    found, seen = set[str](), {(node, axis)}
    ahead, before, behind = [(-place[node], node, axis)], list[int](), set[int]()
    while ahead:
        number, at, axis = heappop(ahead)
        while before and before[0] < number:
            _push(before, behind, (place[to] for to in nodes[-heappop(before)].inputs))
        if -number in behind:
            continue
        if at in outputs:
            found |= {at} if axis in outputs[at] else set()
            _push(before, behind, (place[to] for to in nodes[-number].inputs))
            continue
        for to, places in steps.get(at, ()):
            for old in (old for old, goes in places.items() if axis in goes):
                if (to, old) not in seen:
                    seen.add((to, old))
                    heappush(ahead, (-place[to], to, old))
    return found


def _push(heap: list[int], seen: set[int], numbers: Iterable[int]) -> None:
    """Add the numbers of nodes to visit, the latest first."""
    for number in numbers:
        if number not in seen:
            seen.add(number)
            heappush(heap, -number)


def pieces_in(
    addends: Mapping[str, Sequence[Addend]], drawn: Drawn
) -> dict[str, list[dict[str, tuple[str, ...]]]]:
    """Return, for each piece of each parameter, the nodes to which it is added.

    With each node go the weights along whose outputs the piece lies.
    """
    found: dict[str, dict[Hashable, dict[str, tuple[str, ...]]]] = {}
    for node, added in addends.items():
        for name, piece, axes in added:
            ops = sorted(lying_along(node, axes, drawn))
            own = (weight for op in ops for weight in drawn.nodes[drawn.place[op]].weights)
            found.setdefault(name, {}).setdefault(piece, {})[node] = tuple(dict.fromkeys(own))
    return {name: [*pieces.values()] for name, pieces in found.items()}


def shifted_alone(
    uses: Iterable[tuple[str, Any, str | None, bool]], shifts: Collection[str]
) -> set[str]:
    """Return the parameters that are added as biases or shifts, and used in no other way.

    Rows of them that are looked up at known indices are no embeddings.
    """
    used = [(name, use, node) for name, use, node, _ in uses if use != "rows"]
    others = {name for name, use, node in used if use != "bias" and node not in shifts}
    return {name for name, *_ in used} - others
