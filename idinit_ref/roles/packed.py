"""Internal: packed weights as matrices of their own, so that each block has a role (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain, pairwise
from typing import NamedTuple

from .flow import entries
from .graph import Graph, Node

__all__ = ["Rows", "Unpacked", "unpacked"]

_KEEPS = {"move", "scale", "shift"}
"""The operations between a packed result and its parts: each part passes them alone."""

Rows = tuple[int, int]
"""The first row of a block, and the one behind it."""
_Cuts = Mapping[str, Mapping[str, Rows]]
"""For each part of a result, the rows of each weight that it holds."""


class Unpacked(NamedTuple):
    """A graph in which each used block of a packed weight is a weight.

    `blocks` holds, for each packed weight, the rows and the new name of each block; None if no part
    of a result is that block.
    """

    graph: Graph
    blocks: Mapping[str, Mapping[Rows, str | None]]


def unpacked(graph: Graph) -> Unpacked:
    """Return a graph without packed weights, as far as all of their results are cut into parts.

    A tracer says in ``options["rows"]`` of a node, for each packed weight, which rows of it give
    the node: the result of one of its operations, or a part of it.

    >>> graph = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(8, 4), use="weight", options={"layout": "OI"}),
    ...     Node("h", "weight", ("x",), (2, 8), weights=("w",)),
    ...     Node("a", "other", ("h",), (2, 4), does="select", options={"rows": {"w": (0, 4)}}),
    ...     Node("b", "other", ("h",), (2, 4), does="select", options={"rows": {"w": (4, 8)}}),
    ... ], ["a", "b"])
    >>> found = unpacked(graph)
    >>> [node.name for node in found.graph.nodes]
    ['x', 'w[0:4]', 'w[4:8]', 'h[0:4]', 'a', 'h[4:8]', 'b']
    >>> found.blocks
    {'w': {(0, 4): 'w[0:4]', (4, 8): 'w[4:8]'}}
    """
    cuts = {node.name: node.options["rows"] for node in graph.nodes if "rows" in node.options}
    if not cuts:
        return Unpacked(graph, {})
    packed = {name for rows in cuts.values() for name in rows}
    inside = _inside(graph, cuts, packed)
    used: dict[str, set[Rows]] = {}
    for of in cuts.values():
        for name, own in of.items():
            used.setdefault(name, set()).add(own)
    nodes: dict[str, Node] = {}
    blocks: dict[str, dict[Rows, str | None]] = {}
    for node in graph.nodes:
        rows = {name: own for name, own in cuts.get(node.name, {}).items() if name in packed}
        if node.name in packed:
            blocks[node.name] = _blocks(node, used[node.name])
            new = _matrices(node, used[node.name])
        elif rows and node.kind == "weight":
            new = [replace(node, weights=tuple(_label(*own) for own in rows.items()))]
        elif rows:
            new = list(_way(graph, node, inside, *rows.values()))
        else:
            new = [] if node.name in inside else [node]
        nodes |= {each.name: each for each in new}
    return Unpacked(Graph(list(nodes.values()), graph.outputs), blocks)


def _inside(graph: Graph, cuts: _Cuts, packed: set[str]) -> dict[str, str]:
    """Return the packed weight of each node between a packed result and its parts.

    A weight with a result that is used in any other way is taken out of `packed`.
    """
    inside: dict[str, str] = {}
    outputs = {*graph.outputs}
    for node in graph.nodes:
        own, ends = packed.intersection(node.weights), node.name in cuts
        is_returned = node.name in outputs and not ends
        if own and (is_returned or len(node.weights) > 1):
            packed -= own
        elif own and not ends:
            inside[node.name] = node.weights[0]
        held = {inside[to] for to in node.inputs if to in inside}
        if held and ends and node.kind != "weight":
            packed -= held if len(held) > 1 else held - _held(graph, node, cuts[node.name])
        elif len(held) == 1 and node.does in _KEEPS and not is_returned:
            inside[node.name] = held.pop()
        else:
            packed -= held
    return {name: weight for name, weight in inside.items() if weight in packed}


def _held(graph: Graph, part: Node, rows: Mapping[str, Rows]) -> set[str]:
    """Return the weight of which a part of a result holds rows, and all entries of these."""
    before = entries(graph.by_name[part.inputs[0]])
    return {
        name
        for name, (start, stop) in rows.items()
        if entries(part) * _outputs(graph.by_name[name]) == before * (stop - start)
    }


def _way(graph: Graph, part: Node, inside: Mapping[str, str], rows: Rows) -> Iterator[Node]:
    """Yield copies of the nodes from a packed weight to one part of its result, and the part."""
    way = [part]
    while way[-1].kind != "weight":
        way.append(graph.by_name[next(to for to in way[-1].inputs if to in inside)])
    for node in reversed(way[1:]):
        inputs = tuple(_label(to, rows) if to in inside else to for to in node.inputs)
        weights = tuple(_label(name, rows) for name in node.weights)
        name = _label(node.name, rows)
        yield replace(node, name=name, inputs=inputs, weights=weights, shape=part.shape)
    yield replace(part, inputs=(_label(way[1].name, rows),), does="move")


def _matrices(weight: Node, used: Collection[Rows]) -> list[Node]:
    """Return the blocks of a weight that are used."""
    options = {k: v for k, v in weight.options.items() if k not in ("blocks", "parted")}
    found, shape, at = [], list(weight.shape or ()), _axis(weight)
    for rows in sorted(used):
        shape[at] = rows[1] - rows[0]
        new = replace(weight, name=_label(weight.name, rows), shape=tuple(shape), options=options)
        found.append(new)
    return found


def _blocks(weight: Node, used: Collection[Rows]) -> dict[Rows, str | None]:
    ends = sorted({0, _outputs(weight), *chain.from_iterable(used)})
    return {rows: _label(weight.name, rows) if rows in used else None for rows in pairwise(ends)}


def _axis(weight: Node) -> int:
    return str(weight.options["layout"]).index("O")


def _outputs(weight: Node) -> int:
    return (weight.shape or ())[_axis(weight)]


def _label(name: str, rows: Rows) -> str:
    return f"{name}[{rows[0]}:{rows[1]}]"
