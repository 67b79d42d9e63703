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

from .adds import Adds
from .flow import Flow
from .graph import Graph, Node, entries
from .notes import Note
from .values import Held

__all__ = ["HeldParts", "Rows", "Unpacked", "letters_of", "spans_of", "unpacked"]

_OF_PARTS = {"added", "blocks", "parted", "parts"}
_KEEPS = {"move", "scale", "shift", "map", "select", "crop"}
"""The operations between a packed result and its parts: each part passes them alone. A slice here
cuts other axes than the outputs'."""
_MEETS = {"", "product", "select"}
"""The same, also of sums that are no adds, if all large operands have one shape: `y * sigmoid(y)`.
Another signal is cut, too."""

Rows = tuple[int, int]
"""The first row of a block, and the one behind it; in a stack, the indices of its matrices."""
_Cuts = Mapping[str, Mapping[str, Rows]]
"""For each part of a result, the rows of each weight that it holds."""
_Inside = Mapping[str, Mapping[str, int]]
"""The packed weights of each node between packed results and their parts, several of a sum; of each
the number of rows that the result holds."""


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
    the node: the result of one of its operations, or a part of it. Of a stack the rows are counted
    along all axes whose letters are the weight's ``options["parts"]``, the last one fastest. An
    operation on some rows of a weight, and a part that is cut again, say how many rows they hold in
    ``options["reads"]``. Some weights may stay whole.

    The parts of a sum are the sums of the parts. But a residual add stays whole, and so do the
    weights of its operands: of ``(x @ w + (x @ a) @ b).chunk(2)``, b is the branch.

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
    sums = [node.name for node in graph.nodes if node.kind == "add"]
    inside = _inside(graph, cuts, _packed(cuts, whole), ())
    sums = [name for name in sums if name in inside and _is_mixed(graph.by_name[name], inside)]
    if sums:
        flow = Flow(_apart(graph, cuts, whole, sums).graph)
        residual = {flow.nodes[at].name for at in Adds(flow).residual}
        sums = [name for name in sums if name in residual]
    return _apart(graph, cuts, whole, sums)


def _packed(cuts: _Cuts, whole: Collection[str]) -> set[str]:
    return {name for rows in cuts.values() for name in rows} - set(whole)


def _apart(graph: Graph, cuts: _Cuts, whole: Collection[str], stops: Collection[str]) -> Unpacked:
    """Return a graph without packed weights; no part passes `stops`."""
    packed = _packed(cuts, whole)
    inside = _inside(graph, cuts, packed, stops)
    parts = _parts(graph, cuts, inside, packed)
    used: dict[str, set[Rows]] = {}
    for held in parts.values():
        for name, own in held.items():
            used.setdefault(name, set()).add(own)
    biases = {n: of for n, of in _biases(graph, inside, used).items() if n not in whole}
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
            new = list(_way(graph, node, inside, rows, place))
        elif node.kind == "parameter":
            new = [_told(node, inside, used)]
        nodes |= {each.name: each for each in new}
    new_graph = Graph([_known(node, nodes) for node in nodes.values()], graph.outputs)
    return Unpacked(new_graph, graph, blocks, biases)


def _inside(
    graph: Graph, cuts: _Cuts, packed: set[str], stops: Collection[str]
) -> dict[str, dict[str, int]]:
    """Return the packed weights of each node between packed results and their parts.

    A weight with a result that is used in any other way is taken out of `packed`.
    """
    inside: dict[str, dict[str, int]] = {}
    outputs = {*graph.outputs}
    for node in graph.nodes:
        own, ends = packed.intersection(node.weights), node.name in cuts
        is_returned = node.name in outputs and not ends
        if own and (is_returned or len(node.weights) > 1):
            packed -= own
        elif own and not ends:
            (name,) = node.weights
            inside[node.name] = _reads(node, {name: _size(graph.by_name[name])})
        held = {name: n for to in node.inputs for name, n in inside.get(to, {}).items()}
        is_passed = not is_returned and node.name not in stops
        if held and ends and node.kind != "weight":
            packed -= {*held} - _held(graph, node, cuts[node.name], held)
        elif held and is_passed and _passes(graph, node, inside):
            inside[node.name] = _reads(node, held)
        else:
            packed -= {*held}
    left = {at: {w: n for w, n in own.items() if w in packed} for at, own in inside.items()}
    return {node: own for node, own in left.items() if own}


def _passes(graph: Graph, node: Node, inside: Collection[str]) -> bool:
    """Whether the parts of a packed result pass an operation alone: as a function of each entry."""
    shapes = {graph.by_name[to].shape for to in node.inputs if to in inside}
    rest = [graph.by_name[to] for to in node.inputs if to not in inside]
    if node.does in _KEEPS and all(entries(other) < entries(node) for other in rest):
        return True
    is_met = node.kind == "add" or (node.does in _MEETS and len(node.inputs) > 1)
    may = all(other.shape == node.shape or entries(other) < entries(node) for other in rest)
    return is_met and may and shapes == {node.shape} and node.kind != "weight"


def _is_mixed(node: Node, inside: _Inside) -> bool:
    """Whether a sum adds results of several weights, or a packed result to another signal."""
    return len(inside[node.name]) > 1 or any(to not in inside for to in node.inputs)


def _parts(
    graph: Graph, cuts: _Cuts, inside: _Inside, packed: Collection[str]
) -> dict[str, dict[str, Rows]]:
    """Return the rows of packed weights that each part of a result holds, where it is known."""
    found = {}
    for name, rows in cuts.items():
        node = graph.by_name[name]
        of = (
            node.weights
            if node.kind == "weight"
            else [w for to in node.inputs for w in inside.get(to, ())]
        )
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


def _held(graph: Graph, part: Node, rows: Mapping[str, Rows], reads: Mapping[str, int]) -> set[str]:
    """Return the weight of which a part of a result holds rows, and all entries of these."""
    before = entries(graph.by_name[part.inputs[0]])
    return {
        name
        for name, (start, stop) in rows.items()
        if entries(part) * reads.get(name, 0) == before * (stop - start)
    }


def _biases(graph: Graph, inside: _Inside, used: Mapping[str, Collection[Rows]]) -> dict[str, str]:
    """Return the packed weight of each parameter that is only added to its result before cuts."""
    found = {}
    for name in graph.parameters:
        node = graph.by_name[name]
        firsts = {min(inside.get(at, {"": 0})) for at in node.options.get("adds_to", ())}
        if not firsts or "" in firsts:
            continue
        weight = min(firsts)
        of = graph.by_name[weight]
        is_one = all(used[other] == used[weight] for other in firsts)
        if is_one and "parts" not in of.options and prod(node.shape or ()) == _size(of):
            found[name] = weight
    return found


def _way(
    graph: Graph,
    part: Node,
    inside: _Inside,
    rows: Mapping[str, Rows],
    place: Mapping[str, int],
) -> Iterator[Node]:
    """Yield copies of the nodes from packed weights to one part of their result, and the part."""
    way, stack = {part.name}, [part]
    while stack:
        new = {to for to in stack.pop().inputs if to in inside} - way
        way |= new
        stack += [graph.by_name[to] for to in new]

    def label(name: str) -> str:
        return _label(name, rows[min(inside[name])])

    for node in (graph.by_name[name] for name in sorted(way, key=place.__getitem__)):
        names = {to: label(to) for to in node.inputs if to in way}
        if node is part:
            inputs = tuple(names[to] for to in node.inputs)
            yield replace(part, inputs=inputs, does="move", options={})
            return
        first, reads = min(inside[node.name].items())
        shape = _shape(node, part, reads, rows[first])
        for to in node.inputs if node.kind != "weight" else ():
            if to not in way and graph.by_name[to].shape == node.shape:  # another signal
                names[to] = _label(to, rows[first])
                yield Node(names[to], inputs=(to,), shape=shape, does="select")
        inputs = tuple(names.get(to, to) for to in node.inputs)
        weights = tuple(_label(name, rows[name]) for name in node.weights)
        is_cut = "reads" in node.options and node.kind != "weight"
        copy = replace(node, name=label(node.name), inputs=inputs, weights=weights, shape=shape)
        yield replace(copy, does="move", options={}) if is_cut else copy


def _shape(node: Node, part: Node, outs: int, rows: Rows) -> tuple[int, ...] | None:
    """Return the shape of the copy of a node for a part of its outputs."""
    size, shape = rows[1] - rows[0], list(node.shape or ())
    if outs in shape and entries(part) * outs != entries(node) * size:  # sliced before it is cut
        at = max(axis for axis, length in enumerate(shape) if length == outs)
        return (*shape[:at], size, *shape[at + 1 :])
    return part.shape


def _told(node: Node, inside: _Inside, used: Mapping[str, Collection[Rows]]) -> Node:
    """Return a parameter that says which copies of nodes it is added to, or scales."""
    options = dict(node.options)
    for key in ("adds_to", "scales"):
        if key in options:
            options[key] = tuple(
                new
                for at in options[key]
                for new in (
                    [_label(at, r) for r in sorted(used[min(inside[at])])] if at in inside else [at]
                )
            )
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


def _reads(node: Node, rows: Mapping[str, int]) -> dict[str, int]:
    """Return how many rows of each weight a node holds, given those of its inputs."""
    return {**rows, **{w: n for w, n in node.options.get("reads", {}).items() if w in rows}}


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
