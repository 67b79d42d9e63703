"""Internal: parameters that only make a matrix or a kernel, together with signals."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from ..roles.graph import Node
from ._made import Made, Shape
from ._values import Signal, Value

__all__ = ["Kernel", "makers", "matrices_in"]

_LINEAR = {"", "product", "scale", "move", "norm", "select", "crop", "pad", "join", "mix", "shift"}
"""What operations do after which a matrix is one still. A function of its entries is none."""


class Kernel(NamedTuple):
    """A product that reads a signal as a matrix; a whole one is the same for all rows."""

    by: str
    is_whole: bool


def makers(
    nodes: Sequence[Node],
    kernels: Mapping[str, Kernel],
    uses: Iterable[tuple[str, Any, str | None, bool]],
    narrow: Collection[tuple[str, str]],
    matrices: Collection[str],
) -> dict[str, str]:
    """Return the parameters of which kernels are made together with signals, each with its product.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes in order.
    kernels : mapping of str to Kernel
        The products that read signals as matrices, by these.
    uses : iterable
        The uses of parameters: name, kind, node and whether gradients are stopped.
    narrow : collection of (str, str)
        Parameters, and the nodes in which only signals that lack an axis of them change them.
    matrices : collection of str
        The parameters of several axes.

    Returns
    -------
    dict of str to str
        The names of the products, by parameter. Of a kernel that is not the same for all rows only
        the narrow ones count: others are tables, which are added to signals, and scales of those.
    """
    found, pure = dict(kernels), _made_alone(nodes, {at for _, at in narrow})
    for node in reversed(nodes):
        own = found.get(node.name)
        if own is None or not _is_linear(node) or not (own.is_whole or node.name in pure):
            found.pop(node.name, None)
            continue
        for to in node.inputs:
            if to not in found or (own.is_whole and not found[to].is_whole):
                found[to] = own
    norms = {node.name for node in nodes if node.does == "norm"}  # their scales are no matrices
    made: dict[str, str] = {}
    for name, use, at, _ in uses:
        kernel = found.get(at or "")
        is_narrow = (name, at) in narrow
        is_table = name in matrices and at not in norms and kernel is not None and kernel.is_whole
        if kernel is not None and use in ("other", "sum") and (is_narrow or is_table):
            made.setdefault(name, kernel.by)
    return made


def _is_linear(node: Node) -> bool:
    return node.kind == "add" or (node.kind != "weight" and node.does in _LINEAR)


def _made_alone(nodes: Sequence[Node], first: Collection[str]) -> set[str]:
    """Return the nodes that are matrices changed by smaller signals alone, from the first ones."""
    found, sizes = set[str](), dict[str, int]()
    for node in nodes:
        size = prod(node.shape or ())
        sizes[node.name] = size
        if node.does == "move" and len(node.inputs) == 1:  # a broadcast
            sizes[node.name] = min(size, sizes[node.inputs[0]])
        is_made = [to in found for to in node.inputs]
        rest = [to for to in node.inputs if to not in found]
        is_alone = any(is_made) and all(sizes[to] < size for to in rest)
        if node.name in first or (is_alone and _is_linear(node)):
            found.add(node.name)
    return found


def matrices_in(values: Sequence[Value], shape: Shape | None) -> set[str]:
    """Return the parameters that an elementwise operation with signals changes as matrices.

    Each signal lacks an axis of them. A matrix that scales a signal of all its axes, or is added to
    one, is a scale or a table.
    """
    rank = len(shape or ())
    found, axes = set[str](), list[set[int]]()
    for value in values:
        if not isinstance(value, Made) or value.shape is None:
            continue
        own = {p.name for p in value.parts if (p.view is None or p.view.rank > 1) and not p.steps}
        if own:
            more = rank - len(value.shape)
            found |= own
            axes.append({a + more for a, n in enumerate(value.shape) if n > 1 and value.varies(a)})
    for value in values if found else ():
        if isinstance(value, Signal):
            own_shape = value.shape or ()
            more = rank - len(own_shape)
            wide = {a + more for a, n in enumerate(own_shape) if n > 1 and a not in value.spread}
            if any(made <= wide for made in axes):
                return set()
    return found
