"""Internal: the pieces of parameters that sums add, and along which weights' outputs they lie."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.layout import strides_of
from ..roles.graph import Node
from ._axes import View
from ._made import Made, Shape
from ._units import Places

__all__ = ["Addend", "Steps", "addends_of", "lying_along", "pieces_in", "shifted_alone"]

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


def lying_along(
    node: str, axes: Iterable[int], steps: Steps, outputs: Mapping[str, Collection[int]]
) -> set[str]:
    """Return the weight operations before a node whose outputs lie along all of some axes.

    `outputs` are the axes of each operation that hold its outputs, or count its matrices.
    """
    found: list[set[str]] = []
    for axis in axes:
        own, seen, stack = set[str](), {(node, axis)}, [(node, axis)]
        while stack:
            at, place = stack.pop()
            if at in outputs:
                own |= {at} if place in outputs[at] else set()
                continue
            new = {
                (to, old)
                for to, places in steps.get(at, ())
                for old, goes in places.items()
                if place in goes
            }
            stack += new - seen
            seen |= new
        found.append(own)
    return set.intersection(*found) if found else set()


def pieces_in(
    addends: Mapping[str, Sequence[Addend]],
    nodes: Sequence[Node],
    steps: Steps,
    outputs: Mapping[str, Collection[int]],
) -> dict[str, list[dict[str, tuple[str, ...]]]]:
    """Return, for each piece of each parameter, the nodes to which it is added.

    With each node go the weights along whose outputs the piece lies. `addends` are those of nodes,
    which may be gone.
    """
    weights = {node.name: node.weights for node in nodes}
    found: dict[str, dict[Hashable, dict[str, tuple[str, ...]]]] = {}
    for node, added in addends.items():
        for name, piece, axes in added if node in weights else ():
            ops = lying_along(node, axes, steps, outputs)
            own = tuple(dict.fromkeys(w for op in sorted(ops) for w in weights.get(op, ())))
            found.setdefault(name, {}).setdefault(piece, {})[node] = own
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
