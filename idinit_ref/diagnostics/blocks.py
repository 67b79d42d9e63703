"""Internal: the blocks of packed weights, whose gradients an audit judges one by one."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from ..roles.graph import Graph, Node
from .facts import TensorFacts


class Block(NamedTuple):
    """Some outputs of a weight, which are used apart from the others."""

    of: str  # the packed weight
    places: tuple[slice, ...]  # the index of its array
    nodes: tuple[str, ...] = ()  # the results, or parts of results, that it gives
    gradient: TensorFacts | None = None


def blocks_of(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Block]:
    """Return the blocks of weights whose results are cut into parts, as one would index the array.

    `shapes` are those of the arrays, by the name of the weight; others have no blocks.

    >>> graph = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 8), use="weight",
    ...          options={"layout": "IO"}),
    ...     Node("h", "weight", ("x",), (2, 8), weights=("w",)),
    ...     Node("a", "other", ("h",), (2, 4), does="select", options={"rows": {"w": (0, 4)}}),
    ...     Node("b", "other", ("h",), (2, 4), does="select", options={"rows": {"w": (4, 8)}}),
    ... ], ["a", "b"])
    >>> {name: block.nodes for name, block in blocks_of(graph, {"w": (4, 8)}).items()}
    {'w[:, 0:4]': ('a',), 'w[:, 4:8]': ('b',)}
    """
    found: dict[str, Block] = {}
    for node in graph.nodes:
        for name, rows in node.options.get("rows", {}).items():
            weight = graph.by_name[name]
            if "layout" not in weight.options or name not in shapes:
                continue
            if weight.options.get("parts", "O") != "O":
                continue  # members of a stack: of experts some may read nothing
            span = _span(weight, shapes[name], *rows)
            if span is not None:
                axis, start, stop = span
                label = f"{name}[{', '.join([':'] * axis + [f'{start}:{stop}'])}]"
                places = (*[slice(None)] * axis, slice(start, stop))
                nodes = found[label].nodes if label in found else ()
                found[label] = Block(name, places, (*nodes, node.name))
    return found


def _span(
    weight: Node, shape: tuple[int, ...], start: int, stop: int
) -> tuple[int, int, int] | None:
    """Return the axis of an array, and the places along it, that hold some rows of a weight."""
    options = weight.options
    plain = weight.shape or (), str(options["layout"])
    for sizes, letters in (plain, options.get("parted", plain)):
        axes = [axis for axis, letter in enumerate(letters) if letter == "O"]
        inner = prod(sizes[axis] for axis in axes[1:])  # the outputs at one place
        if tuple(sizes) == shape and not start % inner and not stop % inner:
            return axes[0], start // inner, stop // inner
    return None
