"""Inside: parts of concatenations that a truncated weight does not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.plan import Plan
from .graph import Graph, Node
from .notes import Note

__all__ = ["unread"]

_THROUGH = ("move", "map", "scale", "shift", "norm")


def unread(graph: Graph, plans: Mapping[str, Plan]) -> tuple[Note, ...]:
    """Find the weights that read only the first part of a concatenation.

    With ``wide="truncate"`` a transit weight of m outputs reads the first m of its inputs (spec
    section 1). What comes later starts with gradient 0, unless something else reads it.

    Parameters
    ----------
    graph : Graph
        A computation.
    plans : mapping of str to Plan
        Of its weights, by name.

    Returns
    -------
    tuple of Note
        Of kind "unread", in the order of the graph.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> graph = ir.Graph([
    ...     ir.Node("w", "parameter", shape=(4, 8), use="weight"),
    ...     ir.Node("a", "input", shape=(2, 4)),
    ...     ir.Node("b", "input", shape=(2, 4)),
    ...     ir.Node("ab", "other", ("a", "b"), (2, 8), does="join"),
    ...     ir.Node("y", "weight", ("ab",), (2, 4), weights=("w",)),
    ... ])
    >>> [note.names for note in unread(graph, {"w": ir.plan((4, 8))})]
    [('w',)]
    """
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.inputs):
            users.setdefault(name, []).append(node)
    return tuple(note for node in graph.nodes for note in _of(graph, node, plans, users))


def _of(
    graph: Graph, node: Node, plans: Mapping[str, Plan], users: Mapping[str, list[Node]]
) -> Iterator[Note]:
    """Yield the note of one weight operation, if there is one."""
    if node.kind != "weight" or len(node.weights) != 1 or len(node.inputs) != 1:
        return
    plan = plans.get(node.weights[0])
    if plan is None or plan.role != "transit" or plan.wide != "truncate" or plan.loosen:
        return
    channels = plan.axes.channels
    rows = max((piece.m for piece in plan.axes.pieces), default=0)
    if plan.groups != 1 or rows >= channels:
        return
    join = graph.by_name[node.inputs[0]]
    while join.does in _THROUGH and len(join.inputs) == 1 and len(users[join.name]) == 1:
        join = graph.by_name[join.inputs[0]]
    if join.does != "join" or len(users[join.name]) != 1:
        return
    sizes = _sizes(graph, join, channels)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    lost = [
        name
        for name, start in zip(join.inputs, starts, strict=False)
        if start >= rows and len(users[name]) == 1
    ]
    if lost:
        parts = ", ".join(lost)
        text = (
            f"{node.weights[0]} has {rows} outputs and is truncated, so of its {channels} inputs "
            f"it reads the first {rows}: {parts} starts with gradient 0; use wide='fold_rms' for "
            "this weight, or join the parts in another order"
        )
        yield Note("unread", node.weights, text)


def _sizes(graph: Graph, join: Node, channels: int) -> list[int]:
    """Return the sizes of what a concatenation joins along the axis of the channels, else []."""
    shapes = [graph.by_name[name].shape for name in join.inputs]
    whole = join.shape
    if whole is None or any(shape is None or len(shape) != len(whole) for shape in shapes):
        return []
    for axis, size in enumerate(whole):
        sizes = [shape[axis] for shape in shapes if shape is not None]
        if size == channels == sum(sizes) and len(sizes) > 1:
            return sizes
    return []
