"""Internal: the inputs that decide whether a node is zero, and what is or never is (section 6)."""

from __future__ import annotations

from collections.abc import Collection

from .flow import Flow

__all__ = ["factors_of", "find_alive", "find_void", "needed_of", "struck_of"]

_PRODUCTS = {"product", "contract"}


def find_void(flow: Flow, zero: Collection[int] = ()) -> list[bool]:
    """Find the nodes that are zero, for any other weights, if some weight operations are zero.

    Constant zeros count too, and what is computed from them.
    """
    found: list[bool] = []
    for number, (node, args) in enumerate(zip(flow.nodes, flow.args, strict=True)):
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            found.append(False)
        elif isinstance(node.vanishes, tuple):
            found.append(any(found[args[place]] for place in node.vanishes))
        else:
            found.append(number in zero or all(map(found.__getitem__, args)))
    return found


def find_alive(flow: Flow) -> list[bool]:
    """Find the nodes that are not zero if any weight operations are zero."""
    found: list[bool] = []
    for number, (node, args) in enumerate(zip(flow.nodes, flow.args, strict=True)):
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            found.append(True)
        elif isinstance(node.vanishes, tuple):
            found.append(all(found[to] for to in factors_of(flow, number)))
        else:
            found.append(node.kind != "weight" and any(map(found.__getitem__, args)))
    return found


def needed_of(flow: Flow, number: int) -> Collection[int]:
    """Return the inputs that decide whether a node vanishes."""
    vanishes, args = flow.nodes[number].vanishes, flow.args[number]
    if vanishes == "never":
        return ()
    return args if vanishes == "all" else [args[place] for place in vanishes]


def factors_of(flow: Flow, number: int) -> Collection[int]:
    """Return the inputs that decide so, and factors that are struck out: they, too, make it 0."""
    return [*needed_of(flow, number), *struck_of(flow, number)]


def struck_of(flow: Flow, number: int) -> Collection[int]:
    """Return the factors of a product that do not decide whether it vanishes."""
    node, args = flow.nodes[number], flow.args[number]
    if node.does not in _PRODUCTS or not isinstance(node.vanishes, tuple):
        return []
    places = range(len(args)) if node.does == "contract" else node.sums
    return [args[place] for place in places if place not in node.vanishes]
