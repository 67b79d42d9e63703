"""Internal: parts of concatenations that a truncated weight does not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from ..core.plan import Plan
from .graph import Graph, Node
from .notes import Note

__all__ = ["unread"]

_THROUGH = ("move", "map", "scale", "shift", "norm", "pool", "pad", "resize", "crop")


def unread(
    graph: Graph, plans: Mapping[str, Plan], folded: Set[str] = frozenset()
) -> tuple[Note, ...]:
    """Find the weights that read only the first part of a concatenation.

    With ``wide="truncate"`` a transit weight of m outputs reads the first m of its inputs (spec
    section 1). Later inputs start with gradient 0, unless another operation reads them.

    Parameters
    ----------
    graph : Graph
        A computation.
    plans : mapping of str to Plan
        The plans of its weights, by name.
    folded : set of str, optional
        Weights that `decide` may fold instead; a note on only such weights says that it does.

    Returns
    -------
    tuple of Note
        Notes of kind "unread", in the order of the graph.

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
    joins = (node for node in graph.nodes if node.does == "join")
    return tuple(note for join in joins for note in _of(graph, join, plans, users, folded))


def _of(
    graph: Graph,
    join: Node,
    plans: Mapping[str, Plan],
    users: Mapping[str, list[Node]],
    folded: Set[str],
) -> Iterator[Note]:
    """Yield the note of one concatenation, if there is one."""
    readers = _readers(graph, join, users)
    rows = {name: _rows(plans.get(name)) for node in readers for name in node.weights}
    if not rows or not all(rows.values()) or any(not _is_alone(node) for node in readers):
        return
    read, channels = max(rows.values()), plans[next(iter(rows))].axes.channels
    sizes = _sizes(graph, join, channels)
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    late = [name for name, at in zip(join.inputs, starts, strict=False) if at >= read]
    lost = late and _only_here(graph, join, late)
    if lost:
        parts, names = ", ".join(lost), ", ".join(rows)
        first = f"the first {read} of {channels} inputs"
        if rows.keys() <= folded:
            text = (
                f"{names}: wide='fold_mean' is used; truncated to {first}, {parts} would start "
                "with gradient 0 (wide='truncate' gives that)"
            )
        else:
            text = (
                f"{names}: truncated to {first}, so {parts} starts with gradient 0; use "
                "wide='fold_mean' for this weight, or join the parts in another order"
            )
        yield Note("unread", tuple(rows), text)


def _only_here(graph: Graph, join: Node, parts: Sequence[str]) -> list[str]:
    """Return the parts that depend on a weight or a start that nothing else reads.

    A cropped skip may be computed for one concatenation only, but its source is read elsewhere.
    """
    read: set[str] = set()
    stack = [*graph.outputs]
    while stack:
        name = stack.pop()
        if name not in read:
            read.add(name)
            inputs = graph.by_name[name].inputs
            stack += {*inputs} - {*parts} if name == join.name else inputs
    return [part for part in parts if _starts_here(graph, part, read)]


def _starts_here(graph: Graph, part: str, read: Set[str]) -> bool:
    stack, seen = [part], {part, *read}
    while stack:
        node = graph.by_name[stack.pop()]
        if node.name not in read and (node.kind == "weight" or not node.inputs):
            return True
        stack += {*node.inputs} - seen
        seen.update(node.inputs)
    return False


def _readers(graph: Graph, join: Node, users: Mapping[str, list[Node]]) -> list[Node]:
    """Return the nodes that read a concatenation, through nodes that keep its channels in place."""
    readers: list[Node] = []
    stack = [join]
    while stack:
        node = stack.pop(0)
        if node.name in graph.outputs:
            return []
        for user in users.get(node.name, ()):
            keeps = user.does in _THROUGH and len(user.inputs) == 1
            (stack if keeps else readers).append(user)
    return list(dict.fromkeys(readers))


def _is_alone(node: Node) -> bool:
    return node.kind == "weight" and len(node.weights) == 1 and len(node.inputs) == 1


def _rows(plan: Plan | None) -> int:
    """Return the number of inputs that a truncated weight reads; 0 for any other weight."""
    if plan is None or plan.role != "transit" or plan.wide != "truncate" or plan.loosen:
        return 0
    rows = max((piece.m for piece in plan.axes.pieces), default=0)
    return rows if plan.groups == 1 and rows < plan.axes.channels else 0


def _sizes(graph: Graph, join: Node, channels: int) -> list[int]:
    """Return the sizes of a concatenation's parts along the axis of the channels, else []."""
    shapes = [graph.by_name[name].shape for name in join.inputs]
    whole = join.shape
    if whole is None or any(shape is None or len(shape) != len(whole) for shape in shapes):
        return []
    for axis, size in enumerate(whole):
        sizes = [shape[axis] for shape in shapes if shape is not None]
        if size == channels == sum(sizes) and len(sizes) > 1:
            return sizes
    return []
