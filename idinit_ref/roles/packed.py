"""Internal: packed and stacked weights as matrices of their own, each with a role (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, pairwise
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node, entries
from .notes import Note
from .values import Held

__all__ = ["HeldParts", "Rows", "Unpacked", "letters_of", "spans_of", "unpacked"]

_OF_PARTS = {"blocks", "parted", "parts"}
_KEEPS = {"move", "scale", "shift", "map"}
"""The operations between a packed result and its parts: each part passes them alone."""
_MEETS = {"product", "select"}
"""The same, if all operands are computed from the packed result: as `y * sigmoid(y)`."""

Rows = tuple[int, int]
"""The first row of a block, and the one behind it; in a stack, the indices of its matrices."""
_Cuts = Mapping[str, Mapping[str, Rows]]
"""For each part of a result, the rows of each weight that it holds."""


class Unpacked(NamedTuple):
    """A graph in which each used block of a packed weight, and of its bias, is a parameter.

    `whole` is the graph with packed weights. `blocks` holds, for each such parameter, the rows and
    the new name of each block; None if no part of a result is that block. `biases` holds the weight
    of each packed bias.
    """

    graph: Graph
    whole: Graph
    blocks: Mapping[str, Mapping[Rows, str | None]]
    biases: Mapping[str, str] = MappingProxyType({})

    @property
    def origins(self) -> dict[str, str]:
        """The packed parameter of each block, by the block's name."""
        pairs = ((name, own.values()) for name, own in self.blocks.items())
        return {part: name for name, parts in pairs for part in parts if part is not None}

    def named(self, notes: Iterable[Note]) -> tuple[Note, ...]:
        """Return notes that name packed parameters in place of their blocks."""
        of, found = self.origins, []
        for note in notes:
            names, text = dict.fromkeys(of.get(name, name) for name in note.names), note.text
            for part in (part for part in of if part in text):
                text = text.replace(part, of[part]).replace(f"{of[part]}, {of[part]}", of[part])
            found.append(note._replace(names=tuple(names), text=text))
        return tuple(found)


def unpacked(graph: Graph, whole: Collection[str] = ()) -> Unpacked:
    """Return a graph without packed weights, as far as all of their results are cut into parts.

    A tracer says in ``options["rows"]`` of a node, for each packed weight, which rows of it give
    the node: the result of one of its operations, or a part of it. ``options["reads"]`` is how many
    rows that operation reads, if not all. Of a stack the rows are counted along all axes whose
    letters are the weight's ``options["parts"]``, the last one fastest. Some weights may stay
    whole.

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
        return Unpacked(graph, graph, {})
    packed = {name for rows in cuts.values() for name in rows} - set(whole)
    inside = _inside(graph, cuts, packed)
    parts = _parts(graph, cuts, inside, packed)
    used: dict[str, set[Rows]] = {}
    for held in parts.values():
        for name, own in held.items():
            used.setdefault(name, set()).add(own)
    biases = {name: of for name, of in _biases(graph, inside).items() if name not in whole}
    place = {node.name: at for at, node in enumerate(graph.nodes)}
    nodes: dict[str, Node] = {}
    blocks: dict[str, dict[Rows, str | None]] = {}
    for node in graph.nodes:
        name, rows = node.name, parts.get(node.name, {})
        new = [] if name in inside else [node]
        if name in used or name in biases:
            blocks[name] = _blocks(node, used[biases.get(name, name)])
            new = _parameters(node, used[biases.get(name, name)])
        elif node.kind == "weight" and name not in inside:
            new = [_operation(new[0], rows, used)]
        elif rows:
            new = list(_way(graph, node, inside, next(iter(rows.values())), place))
        elif node.kind == "parameter":
            new = [_told(node, inside, used)]
        nodes |= {each.name: each for each in new}
    new_graph = Graph([_known(node, nodes) for node in nodes.values()], graph.outputs)
    return Unpacked(new_graph, graph, blocks, biases)


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
        elif len(held) == 1 and not is_returned and _passes(graph, node, inside):
            inside[node.name] = held.pop()
        else:
            packed -= held
    return {name: weight for name, weight in inside.items() if weight in packed}


def _passes(graph: Graph, node: Node, inside: Collection[str]) -> bool:
    """Whether the parts of a packed result pass an operation alone: as a function of each entry."""
    rest = [graph.by_name[to] for to in node.inputs if to not in inside]
    if node.does in _KEEPS and all(entries(other) < entries(node) for other in rest):
        return True
    shapes = {graph.by_name[to].shape for to in node.inputs}
    return not rest and shapes == {node.shape} and (node.kind == "add" or node.does in _MEETS)


def _parts(
    graph: Graph, cuts: _Cuts, inside: Mapping[str, str], packed: Collection[str]
) -> dict[str, dict[str, Rows]]:
    """Return the rows of packed weights that each part of a result holds, where it is known."""
    found = {}
    for name, rows in cuts.items():
        node = graph.by_name[name]
        of = node.weights if node.kind == "weight" else [inside.get(to, "") for to in node.inputs]
        own = {weight: rows[weight] for weight in of if weight in packed and weight in rows}
        if own:
            found[name] = own
    return found


def _operation(node: Node, rows: Mapping[str, Rows], used: Mapping[str, Collection[Rows]]) -> Node:
    """Return an operation with blocks of its weights."""
    weights = tuple(
        _label(name, rows[name] if name in rows else min(used[name])) if name in used else name
        for name in node.weights
    )
    return node if weights == node.weights else replace(node, options={}, weights=weights)


def _known(node: Node, nodes: Collection[str]) -> Node:
    """Return a parameter that names no copies of nodes that no part needs."""
    own = {k: v for k, v in node.options.items() if k in ("adds_to", "scales")}
    new = {key: tuple(at for at in held if at in nodes) for key, held in own.items()}
    return node if own == new else replace(node, options={**node.options, **new})


def _held(graph: Graph, part: Node, rows: Mapping[str, Rows]) -> set[str]:
    """Return the weight of which a part of a result holds rows, and all entries of these."""
    before, reads = entries(graph.by_name[part.inputs[0]]), part.options.get("reads", {})
    return {
        name
        for name, (start, stop) in rows.items()
        if entries(part) * reads.get(name, _size(graph.by_name[name])) == before * (stop - start)
    }


def _biases(graph: Graph, inside: Mapping[str, str]) -> dict[str, str]:
    """Return the packed weight of each parameter that is only added to its result before cuts."""
    found = {}
    for name in graph.parameters:
        node = graph.by_name[name]
        weights = {inside.get(at) for at in node.options.get("adds_to", ())}
        if len(weights) == 1 and None not in weights:
            (weight,) = weights
            of = graph.by_name[weight or name]
            if weight and "parts" not in of.options and prod(node.shape or ()) == _size(of):
                found[name] = weight
    return found


def _way(
    graph: Graph, part: Node, inside: Collection[str], rows: Rows, place: Mapping[str, int]
) -> Iterator[Node]:
    """Yield copies of the nodes from a packed weight to one part of its result, and the part."""
    way, stack = {part.name}, [part]
    while stack:
        new = {to for to in stack.pop().inputs if to in inside} - way
        way |= new
        stack += [graph.by_name[to] for to in new]
    for node in (graph.by_name[name] for name in sorted(way, key=place.__getitem__)):
        inputs = tuple(_label(to, rows) if to in way else to for to in node.inputs)
        if node is part:
            yield replace(part, inputs=inputs, does="move", options={})
            return
        weights = tuple(_label(name, rows) for name in node.weights)
        name = _label(node.name, rows)
        yield replace(node, name=name, inputs=inputs, weights=weights, shape=part.shape)


def _told(node: Node, inside: Mapping[str, str], used: Mapping[str, Collection[Rows]]) -> Node:
    """Return a parameter that says which copies of nodes it is added to, or scales."""
    options = dict(node.options)
    for key in ("adds_to", "scales"):
        if key in options:
            options[key] = tuple(
                new
                for at in options[key]
                for new in ([_label(at, r) for r in sorted(used[inside[at]])] if at in inside
                            else [at])
            )  # fmt: skip
    return node if options == node.options else replace(node, options=options)


def _parameters(node: Node, used: Collection[Rows]) -> list[Node]:
    """Return the blocks of a weight or bias that are used."""
    options = {k: v for k, v in node.options.items() if k not in _OF_PARTS}
    found, shape = [], list(node.shape or ())
    for rows in sorted(used):
        own, size = dict(options), rows[1] - rows[0]
        if "adds_to" in own:
            own["adds_to"] = tuple(_label(at, rows) for at in own["adds_to"])
        if "layout" in own:
            for axis, span in spans_of(node, rows).items():
                shape[axis] = len(span)
        if "groups" in own and "O" in letters_of(node):
            outs = (node.shape or ())[str(node.options["layout"]).index("O")]
            groups, rest = divmod(own.pop("groups") * size, outs)
            own |= {} if rest or size % max(groups, 1) else {"groups": groups}
        new = tuple(shape) if "layout" in own else (size,)
        found.append(replace(node, name=_label(node.name, rows), shape=new, options=own))
    return found


def _blocks(node: Node, used: Collection[Rows]) -> dict[Rows, str | None]:
    size = each = prod(node.shape or ())
    if "layout" in node.options:  # a part lies at one place of all axes but the last
        last = str(node.options["layout"]).index(letters_of(node)[-1])
        size, each = _size(node), (node.shape or ())[last]
    ends = sorted({*range(0, size, each), size, *chain.from_iterable(used)})
    return {rows: _label(node.name, rows) if rows in used else None for rows in pairwise(ends)}


def letters_of(weight: Node) -> str:
    """Return the letters of the axes along which a weight's parts lie."""
    return str(weight.options.get("parts", "O"))


def spans_of(weight: Node, rows: Rows) -> dict[int, range]:
    """Return the span of a part along each of these axes."""
    found, (start, stop) = {}, rows
    for letter in reversed(letters_of(weight)):
        axis = str(weight.options["layout"]).index(letter)
        size = (weight.shape or ())[axis]
        found[axis] = range(start % size, start % size + stop - start)
        start, stop = start // size, start // size + 1
    return found


def _size(weight: Node) -> int:
    """Return the number of rows along these axes."""
    layout, shape = str(weight.options["layout"]), weight.shape or ()
    return prod(shape[layout.index(letter)] for letter in letters_of(weight))


def _label(name: str, rows: Rows) -> str:
    return f"{name}[{rows[0]}:{rows[1]}]"


class HeldParts:
    """The values of a model whose packed parameters are unpacked.

    Parameters
    ----------
    held : Held
        The values of the model.
    parts : Unpacked
        Its graph.
    """

    def __init__(self, held: Held, parts: Unpacked) -> None:
        self._held, self._whole, self._nodes = held, parts.whole.by_name, parts.graph.by_name
        self._rows = {
            part: (name, rows)
            for name, own in parts.blocks.items()
            for rows, part in own.items()
            if part is not None
        }
        whole = {part: held.held[name] for part, (name, _) in self._rows.items()
                 if name in held.held}  # fmt: skip
        self.held: Mapping[str, Any] = {**held.held, **whole}

    def read(self, name: str, whole: bool = True) -> NDArray[Any] | None:
        """Return a parameter's numbers; for "one row" of a block, one of the packed parameter."""
        if name not in self._rows:
            return self._held.read(name, whole)
        of, (start, stop) = self._rows[name]
        node = self._nodes[name]
        found = self._held.read(of, whole or "layout" not in node.options)
        if found is None or not whole:
            return found
        if "layout" not in node.options:
            return np.asarray(found).reshape(-1)[start:stop]
        weight = self._whole[of]
        if found.shape != weight.shape:
            return found
        for axis, span in spans_of(weight, (start, stop)).items():
            found = np.take(found, span, axis)
        return found
