"""Internal: what a finished drawing sums away later, and what no gradient reaches in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from ..roles.graph import Node, entries
from ._units import Places, Unit

__all__ = ["distances", "frozen", "live", "returned", "struck"]

_Ways = Mapping[tuple[str, str], Sequence[Places]]


def struck(
    nodes: Sequence[Node],
    factors: Mapping[tuple[str, int], Sequence[Unit]],
    ways: _Ways,
    outputs: Collection[str],
) -> list[Node]:
    """Return the nodes, without the factors of products whose units all uses sum away.

    A mean of squares, as in a norm, sums only one use of a product. What no output needs, as
    the last state of a loop, is no use.
    """
    lost: dict[str, set[int]] = {}  # the axes that every use of a node sums
    needed = set(outputs)
    for node in reversed(nodes):
        own = lost.setdefault(node.name, set())
        if outputs and node.name not in needed:
            continue
        needed.update(node.inputs)
        for to in dict.fromkeys(node.inputs):
            for places in ways.get((node.name, to), [{}]):
                summed = {axis for axis, at in places.items() if not at or own & set(at)}
                lost[to] = lost[to] & summed if to in lost else summed
    found, place_of = list(nodes), {node.name: place for place, node in enumerate(nodes)}
    for (name, at), units in factors.items():
        node = found[place := place_of[name]]
        is_lost = bool(units) and all(unit.axes & lost[name] for unit in units)
        if is_lost and isinstance(node.vanishes, tuple) and at in node.vanishes:
            rest = tuple(other for other in node.vanishes if other != at)
            found[place] = replace(node, vanishes=rest, sums=tuple(sorted({*node.sums, at})))
    return found


class _Reach:
    """What reads a node over no weight: for each axis, on ways that do not sum it.

    A weight operation counts as infinite, an output by its entries, and nothing as 0.
    """

    def __init__(self, node: Node, size: float) -> None:
        self.any = size  # on any way
        self._axes = dict.fromkeys(range(len(node.shape or ())), size)

    def along(self, axis: int) -> float:
        """Return what reads an axis; of an unknown axis, what reads the node."""
        return self._axes.get(axis, self.any)

    def read_by(self, size: float) -> None:
        """Add a reader of all axes."""
        self.any = max(self.any, size)
        self._axes = {axis: max(old, size) for axis, old in self._axes.items()}

    def lead_to(self, user: _Reach, places: Places, had: int, have: int) -> None:
        """Add what reads a user, given where the axes go there, and how many entries it cuts."""
        self.any = max(self.any, user.any * had / have)
        for axis, old in self._axes.items():
            at = places.get(axis)
            new = user.any if at is None else max(map(user.along, at), default=0)
            self._axes[axis] = max(old, new * had / have)


def distances(
    nodes: Sequence[Node],
    differences: Mapping[str, Sequence[Unit]],
    ways: _Ways,
    outputs: Collection[str],
) -> set[str]:
    """Return the differences that serve only as losses or distances, given the units of each.

    All others keep their units until a weight operation reads them, or in an output that has as
    many entries, or a part of them. A difference of two values that are both read elsewhere is a
    remainder, as in residual quantisation: what is subtracted is the signal that goes on.
    """
    reaches: dict[str, _Reach] = {}
    found: set[str] = set()
    by_name = {node.name: node for node in nodes}
    used = Counter(to for node in nodes for to in set(node.inputs))
    last = outputs or {node.name for node in nodes if node.name not in used}
    for node in reversed(nodes) if differences else ():
        reach = reaches.pop(node.name, None) or _Reach(node, 0)
        if node.name in last:
            reach.read_by(entries(node))
        if node.name in differences:
            axes = {axis for unit in differences[node.name] for axis in unit.axes}
            is_read = max(map(reach.along, axes), default=reach.any) >= entries(node)
            if not is_read or all(used[to] > 1 for to in node.inputs):
                found.add(node.name)
        for to in node.inputs:
            before = reaches.setdefault(to, _Reach(by_name[to], 0))
            sizes = entries(by_name[to]), entries(node)
            cut = sizes if node.does in ("select", "crop") and min(sizes) else (1, 1)
            if node.kind == "weight" and reach.any:
                before.read_by(inf)
            else:
                for places in ways.get((node.name, to), [{}]):
                    before.lead_to(reach, places, *cut)
    return found


def live(nodes: Sequence[Node], outputs: Collection[str]) -> set[str]:
    """Return the nodes from which outputs are computed."""
    found = set(outputs)
    for node in reversed(nodes):
        if node.name in found:
            found.update(node.inputs)
    return found


def returned(
    nodes: Sequence[Node],
    names: Collection[str],
    before: Mapping[str, Sequence[str]],
    outputs: Collection[str],
) -> list[Node]:
    """Return nodes of which some say that they are read, as from `names`, besides the outputs.

    Of a node that was dropped the nodes `before` it are read.
    """
    kept, stack, seen = {node.name for node in nodes}, [*names], {*names}
    while stack:
        name = stack.pop()
        new = () if name in kept else set(before.get(name, ())) - seen
        seen.update(new)
        stack += new
    return [
        replace(node, options={**node.options, "returned": True})
        if node.name in seen and node.name not in outputs
        else node
        for node in nodes
    ]


def frozen(
    nodes: Sequence[Node],
    uses: Sequence[tuple[str, Any, str | None, bool]],
    stops: Collection[str],
    exits: Collection[str],
    outputs: Collection[str],
) -> set[str]:
    """Return the parameters that reach the outputs only through stopped gradients.

    `exits` are nodes whose numbers leave the tensors: they may come back in as constants.
    """
    if not stops and not exits and not any(stopped for *_, stopped in uses):
        return set()
    reached, free = {*outputs, *exits}, set(outputs)
    for node in reversed(nodes):
        if node.name in reached:
            reached.update(node.inputs)
            if node.name in free and node.name not in stops:
                free.update(node.inputs)
    free.difference_update(stops)
    seen = [(name, node, stopped) for name, _, node, stopped in uses if node in reached]
    learns = {name for name, node, stopped in seen if node in free and not stopped}
    learns |= {name for name, _, node, stopped in uses if node is None and not stopped}
    return {name for name, *_ in seen} - learns
