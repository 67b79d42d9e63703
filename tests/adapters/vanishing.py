"""What a graph says of zeros, beside what its framework computes: written once for all adapters."""

from __future__ import annotations

from collections.abc import Collection

from idinit_ref import Graph


def vanishing(graph: Graph, zeros: Collection[str]) -> set[str]:
    """The nodes that are zero by the graph's own words, if these inputs are, and all shifts."""
    found = set(zeros)
    for node in graph.nodes:
        here = [name in found for name in node.inputs]
        if node.kind in ("input", "parameter"):
            continue
        if node.vanishes == "never":
            is_zero = False
        elif node.vanishes == "all":
            is_zero = all(here)
        else:
            is_zero = any(here[place] for place in node.vanishes)
        if is_zero:
            found.add(node.name)
    return found


def facts(graph: Graph) -> list[tuple]:
    """What nodes do, when they vanish and what they sum, but for those that only move or scale.

    Two frameworks draw one function alike, up to names, to the order of independent nodes, and to
    what leaves a signal what it is.
    """
    found: dict[str, tuple] = {}
    for node in graph.nodes:
        if node.kind == "parameter":
            continue
        inputs = tuple(hash(found[name]) for name in node.inputs)
        if node.kind == "other" and node.does in ("move", "scale", "select"):
            found[node.name] = found[node.inputs[0]]
        else:
            found[node.name] = (node.kind, node.does, inputs, node.vanishes, node.sums)
    return sorted(set(found.values()), key=str)
