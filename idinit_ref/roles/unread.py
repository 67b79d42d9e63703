"""Internal: parts of concatenations that a truncated weight does not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple, cast

from ..core.plan import Plan
from ..core.text import some
from .dominators import ROOT, dominators
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
    cuts = {cut.join: cut for join in joins if (cut := _cut(graph, join, plans, users)) is not None}
    if not cuts:
        return ()
    lost = _Lost(graph, cuts, users)
    alone = {join: parts for join, cut in cuts.items() if (parts := lost.alone(cut))}
    # These are to be folded, and then read all their parts. What still only the others read:
    rest = [cut for join, cut in cuts.items() if join not in alone]
    found = alone | lost.together(rest)
    by_weights: dict[tuple[str, ...], list[str]] = {}
    for join in cuts:
        parts = by_weights.setdefault(cuts[join].weights, []) if join in found else []
        parts += [name for name in found.get(join, ()) if name not in parts]
    first = {cut.weights: cut for cut in reversed(cuts.values())}
    return tuple(_note(first[names], parts, folded) for names, parts in by_weights.items())


class _Cut(NamedTuple):
    """A concatenation whose later parts truncated weights do not read."""

    join: str
    late: frozenset[str]  # the parts that no reader reads
    weights: tuple[str, ...]
    read: int
    channels: int


def _note(cut: _Cut, parts: Sequence[str], folded: Set[str]) -> Note:
    names, first = ", ".join(cut.weights), f"the first {cut.read} of {cut.channels} inputs"
    lost = some(parts)
    if folded >= {*cut.weights}:
        text = (
            f"{names}: wide='fold_mean' is used; truncated to {first}, {lost} would start "
            "with gradient 0 (wide='truncate' gives that)"
        )
    else:
        text = (
            f"{names}: truncated to {first}, so {lost} starts with gradient 0; use "
            "wide='fold_mean' for this weight, or join the parts in another order"
        )
    return Note("unread", cut.weights, text)


def _cut(
    graph: Graph, join: Node, plans: Mapping[str, Plan], users: Mapping[str, list[Node]]
) -> _Cut | None:
    """Return what the readers of a concatenation do not read; None if they read all."""
    if _is_one(graph, join):
        return None
    readers = _readers(graph, join, users)
    rows = {name: _rows(plans.get(name)) for node in readers for name in node.weights}
    if not rows or not all(rows.values()) or any(not _is_alone(node) for node in readers):
        return None
    read, channels = max(rows.values()), plans[next(iter(rows))].axes.channels
    parts = list(zip(join.inputs, _starts(graph, join, channels), strict=False))
    late = {name for name, at in parts if at >= read} - {name for name, at in parts if at < read}
    return _Cut(join.name, frozenset(late), tuple(rows), read, channels) if late else None


def _is_one(graph: Graph, join: Node) -> bool:
    """Whether slices of one weight, which read one signal, give all parts of a concatenation."""
    found = set()
    for name in join.inputs:
        node = graph.by_name[name]
        while node.does in ("move", "shift") and len(node.inputs) == 1:
            node = graph.by_name[node.inputs[0]]
        found.add((node.weights, node.inputs))
    return len(found) == 1 < len(join.inputs) and all(weights for weights, _ in found)


class _Lost:
    """Finds the late parts that depend on a weight or a start that nothing else reads.

    A cropped skip may be computed for one concatenation only, but its source is read elsewhere.
    The post-dominators say what only the late parts of one concatenation read: each such set of
    parts leads to its concatenation over a node of its own.
    """

    def __init__(
        self, graph: Graph, cuts: Mapping[str, _Cut], users: Mapping[str, list[Node]]
    ) -> None:
        self._graph, self._users = graph, users
        self._at = {node.name: number for number, node in enumerate(graph.nodes)}
        self._alive = self._read(())
        count = len(graph.nodes)
        self._gates = {join: count + k for k, join in enumerate(cuts)}
        ahead = [self._ahead(node, cuts) for node in graph.nodes]
        ahead += [[self._at[join]] for join in cuts]
        order = []
        for number in reversed(range(count)):
            name = graph.nodes[number].name
            order += [number, self._gates[name]] if name in cuts else [number]
        self._behind = dominators(ahead, order)

    def _ahead(self, node: Node, cuts: Mapping[str, _Cut]) -> list[int]:
        """Return the nodes that read a node; over the gate of a concatenation if it is late."""
        ends = [ROOT] if node.name in self._graph.outputs else []
        return ends + [
            self._gates[user.name]
            if user.name in cuts and node.name in cuts[user.name].late
            else self._at[user.name]
            for user in self._users.get(node.name, ())
            if user.name in self._alive
        ]

    def _read(self, cuts: Iterable[_Cut]) -> set[str]:
        """Return the nodes from which a result is computed, but not over the parts that are cut."""
        late = {cut.join: cut.late for cut in cuts}
        ends = self._graph.outputs or [
            node.name for node in self._graph.nodes if node.name not in self._users
        ]
        void = self._void(late) if late else set()
        read = set(ends)
        stack = list(ends)
        while stack:
            node = self._graph.by_name[stack.pop()]
            new = {*node.inputs} - late.get(node.name, frozenset()) - read
            if isinstance(node.vanishes, tuple):  # a gate learns nothing from a signal of zeros
                zeros = {node.inputs[place] for place in node.vanishes} & void
                new = new if not zeros else zeros & new if len(zeros) == 1 else set()
            read |= new
            stack += new
        return read

    def _void(self, late: Mapping[str, frozenset[str]]) -> set[str]:
        """Return the nodes that are zero without the parts that are cut."""
        found: set[str] = set()
        for node in self._graph.nodes:
            rest = {*node.inputs} - late.get(node.name, frozenset())
            if node.kind in ("input", "parameter") or node.vanishes == "never":
                continue
            if isinstance(node.vanishes, tuple):
                is_void = any(node.inputs[place] in found for place in node.vanishes)
            else:
                is_void = found.issuperset(rest)
            if is_void:
                found.add(node.name)
        return found

    def alone(self, cut: _Cut) -> list[str]:
        """Return the parts with something that nothing but this concatenation reads."""
        gate = self._gates[cut.join]
        return self._parts(cut, lambda name: self._behind.is_above(gate, self._at[name]))

    def together(self, cuts: Sequence[_Cut]) -> dict[str, list[str]]:
        """Return the parts with something that nothing but such concatenations reads."""
        read = self._read(cuts) if cuts else set()
        found = {cut.join: self._parts(cut, lambda name: name not in read) for cut in cuts}
        return {join: parts for join, parts in found.items() if parts}

    def _parts(self, cut: _Cut, is_only_here: Callable[[str], bool]) -> list[str]:
        if cut.join not in self._alive:
            return []
        late = [name for name in self._graph.by_name[cut.join].inputs if name in cut.late]
        return [part for part in dict.fromkeys(late) if self._starts(part, is_only_here)]

    def _starts(self, part: str, is_only_here: Callable[[str], bool]) -> bool:
        """Whether a part depends on such a weight operation or start, or is one."""
        stack, seen = [part], {part}
        while stack:
            node = self._graph.by_name[stack.pop()]
            if is_only_here(node.name):
                if node.kind == "weight" or not node.inputs:
                    return True
                new = [name for name in node.inputs if name not in seen]
                seen.update(new)
                stack += new
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


def _starts(graph: Graph, join: Node, channels: int) -> Sequence[int]:
    """Return where a concatenation's inputs start along the axis of the channels, else ().

    The tracer says it (``options["starts"]``, the axis first) where other parts are constants.
    """
    shapes = [graph.by_name[name].shape for name in join.inputs]
    whole = join.shape
    if whole is None or any(shape is None or len(shape) != len(whole) for shape in shapes):
        return ()
    if "starts" in join.options:
        axis, starts = join.options["starts"]
        return cast("Sequence[int]", starts) if whole[axis] == channels else ()
    for axis, size in enumerate(whole):
        sizes = [shape[axis] for shape in shapes if shape is not None]
        if size == channels == sum(sizes) and len(sizes) > 1:
            return [sum(sizes[:at]) for at in range(len(sizes))]
    return ()
