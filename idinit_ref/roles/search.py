"""From a computation the role of every weight: the last ones of residual branches (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import heappop, heappush
from typing import NamedTuple, get_args

from ..core.options import choice
from ..core.pattern import Role
from ..errors import GraphError, OptionTypeError, message
from .graph import Graph

__all__ = ["Inferred", "explain_roles", "infer_roles"]


class Inferred(NamedTuple):
    """The role of a weight, why it has it, and whether it is the last before an output."""

    role: Role
    why: tuple[str, ...]
    head: bool = False


def infer_roles(graph: Graph, *, overrides: Mapping[str, Role] | None = None) -> dict[str, Role]:
    """Find the role of every weight from the computation itself (spec section 6).

    At an elementwise add of two tensors of one shape, where one side (the skip) reaches a common
    ancestor through no weight and the other side (the branch) holds a weight between them, the
    branch's last weights are "zero". Where both sides hold weights, the side with fewer of them on
    its longest path is the skip; a tie is left "transit". All other weights are "transit".

    The cost is linear in the residual blocks; k other tensors, added one after the other to a
    stream of their own, cost k^2.

    Parameters
    ----------
    graph : Graph
        A computation; every adapter has a `trace` that makes one.
    overrides : mapping of str to {"transit", "zero"}, optional
        Roles that are settled already, by the name of the weight.

    Returns
    -------
    dict of str to {"transit", "zero"}
        Every weight, in the order of the graph. :func:`idinit_ref.roles.explain_roles` gives the
        reasons too.

    Raises
    ------
    GraphError
        If an override names no weight of the graph.

    Examples
    --------
    >>> from idinit_ref import Graph, Node
    >>> infer_roles(Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w1", "parameter", shape=(8, 4), use="weight"),
    ...     Node("w2", "parameter", shape=(4, 8), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 8), weights=("w1",)),
    ...     Node("relu", "other", ("h",), (2, 8)),
    ...     Node("f", "weight", ("relu",), (2, 4), weights=("w2",)),
    ...     Node("y", "add", ("x", "f"), (2, 4)),
    ... ]))
    {'w1': 'transit', 'w2': 'zero'}
    """
    given: object = graph
    if not isinstance(given, Graph):
        raise OptionTypeError(
            message("graph", given, "it should be a Graph", "use ir.Graph(nodes)")
        )
    roles = {name: found.role for name, found in explain_roles(graph).items()}
    for name, role in (overrides or {}).items():
        choice("overrides", role, get_args(Role))
        if name not in roles:
            raise GraphError(
                message(
                    "overrides",
                    name,
                    f"the graph's weights are {', '.join(roles) or 'none'}",
                    "name one of them",
                )
            )
        roles[name] = role
    return roles


def explain_roles(graph: Graph) -> dict[str, Inferred]:
    """Find the role of every weight, and the reasons for it.

    Parameters
    ----------
    graph : Graph
        A computation.

    Returns
    -------
    dict of str to Inferred
        Every weight, in the order of the graph. A weight with several uses is "zero" if it is the
        last of a branch in one of them, and has a reason for each.

    Examples
    --------
    >>> from idinit_ref import Graph, Node
    >>> explain_roles(Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ]))["w"].why
    ('last of the branch h, which y adds to x',)
    """
    search = _Search(graph)
    heads, ties = search.heads, search.ties
    uses: dict[str, list[int]] = {}
    for at, node in enumerate(graph.nodes):
        for name in node.weights:
            uses.setdefault(name, []).append(at)
    found = {}
    for name in graph.weights:
        why = [text for at in uses[name] for text in search.claims.get(at, ())]
        zero = bool(why)
        if zero and any(at not in search.claims for at in uses[name]):
            why.append("used elsewhere too, where it would be transit")
        if not zero:
            why = [text for at in uses[name] for text in ties.get(at, ())]
        head = any(at in heads for at in uses[name])
        role: Role = "zero" if zero else "transit"
        found[name] = Inferred(role, tuple(dict.fromkeys(why)), head)
    return found


class _Seen(NamedTuple):
    """How one side of an add reaches a node: over at most so many weights (-1: not at all)."""

    most: int = -1
    free: bool = False  # also over none

    def over(self, weights: int) -> _Seen:
        """Return how the side reaches what lies behind so many weights more."""
        return self if self.most < 0 else _Seen(self.most + weights, self.free and not weights)

    def join(self, other: _Seen) -> _Seen:
        """Return what two ways give together."""
        return _Seen(max(self.most, other.most), self.free or other.free)


_NEVER, _HERE = _Seen(), _Seen(0, True)


class _Frontier:
    """The nodes that two sides of an add reach, the latest in the computation first.

    So what is known of a node is complete when it is popped.
    """

    def __init__(self, left: int, right: int) -> None:
        self.seen = {left: (_HERE, _NEVER), right: (_NEVER, _HERE)}
        self._heap = sorted([-left, -right])
        self._open = [1, 1, 2]  # nodes on the heap that left reaches, right reaches, any free

    def _count(self, pair: tuple[_Seen, _Seen], by: int) -> None:
        left, right = pair
        self._open[0] += by * (left.most >= 0)
        self._open[1] += by * (right.most >= 0)
        self._open[2] += by * (left.free or right.free)

    @property
    def may_meet(self) -> bool:
        """Whether there are ways left of both sides."""
        return self._open[0] > 0 and self._open[1] > 0

    @property
    def is_free(self) -> bool:
        """Whether a way is left that crosses no weight."""
        return self._open[2] > 0

    def pop(self) -> int:
        node = -heappop(self._heap)
        self._count(self.seen[node], -1)
        return node

    def push(self, node: int, pair: tuple[_Seen, _Seen]) -> None:
        old = self.seen.get(node)
        if old is None:
            heappush(self._heap, -node)
        else:
            self._count(old, -1)
            pair = old[0].join(pair[0]), old[1].join(pair[1])
        self.seen[node] = pair
        self._count(pair, 1)


class _Edge(NamedTuple):
    """A way back: to a node, over at most so many weights."""

    to: int
    weights: int = 0


class _Search:
    """All residual adds of a graph, in the order of the computation.

    Back through a residual add one goes along its skip, or over the whole branch at once to the
    ancestor. So each branch is walked once, and what a branch takes in besides (a position bias,
    another model's states) does not make the stream its descendant.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        at = {node.name: number for number, node in enumerate(graph.nodes)}
        self.outputs = [at[name] for name in graph.outputs]
        self.claims: dict[int, list[str]] = {}  # of weight operations: why they are zero
        self.residual: set[int] = set()
        self._tied: dict[int, list[int]] = {}  # by add: the weight operations that end its sides
        self.back: list[list[_Edge]] = []
        self._inputs: list[list[int]] = []
        self._starts: list[int] = []  # the signals that a node comes from, a bit each
        inputs = 0
        for number, node in enumerate(graph.nodes):
            self._inputs.append([at[name] for name in dict.fromkeys(node.inputs)])
            self.back.append([_Edge(to) for to in self._inputs[number]])
            starts = 0
            if node.kind == "input":
                starts, inputs = 1 << inputs, inputs + 1
            if node.kind == "add":
                self._judge(number, at[node.inputs[0]], at[node.inputs[1]])
            for edge in self.back[number]:
                starts |= self._starts[edge.to]
            self._starts.append(starts)

    def _judge(self, add: int, left: int, right: int) -> None:
        """Decide whether an add is residual, and claim the last weights of its branch."""
        nodes, shape = self.nodes, self.nodes[add].shape
        is_even = shape is not None and nodes[left].shape == nodes[right].shape == shape
        if left == right or not is_even or not self._starts[left] & self._starts[right]:
            return
        ahead = _Frontier(left, right)
        found: tuple[list[int], list[int]] = ([], [])  # ancestors, by the side that is the skip
        meets: list[int] = []  # where both sides meet, but neither is a plain skip
        met = False
        while ahead.may_meet and (ahead.is_free or not (met or meets)):
            node = ahead.pop()
            a, b = ahead.seen[node]
            if a.most >= 0 and b.most >= 0:
                if nodes[node].shape == shape and (a.free or b.free):
                    met = True  # the nearest ancestor on this way
                    if a.free and b.most:
                        found[0].append(node)
                    if b.free and a.most:
                        found[1].append(node)
                    continue
                meets.append(node)
            weight = int(nodes[node].kind == "weight")
            for to, weights in self.back[node]:
                pair = a.over(weights + weight), b.over(weights + weight)
                # What shares no signal with the other side cannot meet it further back.
                own = (
                    pair[0] if self._starts[to] & self._starts[right] else _NEVER,
                    pair[1] if self._starts[to] & self._starts[left] else _NEVER,
                )
                if own != (_NEVER, _NEVER):
                    ahead.push(to, own)
        sides = (left, right)
        if not met and meets:
            a, b = ahead.seen[meets[0]]
            if a.most == b.most > 0:
                # Of a sum of many, the sums before this one tell their own.
                lasts = [self._last(side, [meets[0]], self._tied) for side in sides]
                self._tied[add] = lasts[0] + lasts[1]
            if a.most != b.most:
                found[a.most > b.most].append(meets[0])
        for skip in (0, 1):
            if found[skip]:
                branch, of = sides[1 - skip], nodes[found[skip][0]].name
                why = (
                    f"last of the branch {nodes[branch].name}, which {nodes[add].name} adds to {of}"
                )
                for last in self._last(branch, found[skip]):
                    self.claims.setdefault(last, []).append(why)
        if bool(found[0]) != bool(found[1]):
            skip = int(bool(found[1]))
            self.residual.add(add)
            over = [_Edge(node, ahead.seen[node][1 - skip].most) for node in found[skip]]
            self.back[add] = [_Edge(sides[skip]), *over]

    def _last(self, side: int, ancestors: list[int], stops: Collection[int] = ()) -> list[int]:
        """Return the weight operations after some ancestors that a side reaches over no other."""
        ends, lowest = set(ancestors), min(ancestors)
        found, after = [], dict.fromkeys(ancestors, True)
        seen, stack = {side}, [side]
        while stack:
            node = stack.pop()
            if node in ends:  # it lies before the branch, though it may be a weight operation
                continue
            if self.nodes[node].kind == "weight":
                if self._is_after(node, lowest, after):
                    found.append(node)
            elif node not in stops:
                for to, weights in self.back[node]:
                    if to > lowest and not weights and to not in seen:
                        seen.add(to)
                        stack.append(to)
        return found

    def _is_after(self, node: int, lowest: int, after: dict[int, bool]) -> bool:
        """Whether a node comes from one of those that `after` has already."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in after:
                stack.pop()
                continue
            new = [edge.to for edge in self.back[top] if edge.to >= lowest]
            missing = [to for to in new if to not in after]
            stack += missing
            if not missing:
                after[top] = any(after[to] for to in new)
        return after[node]

    @property
    def ties(self) -> dict[int, list[str]]:
        """Of weight operations: the ties that no enclosing residual add settles."""
        found: dict[int, list[str]] = {}
        for add, lasts in self._tied.items():
            for last in lasts:
                if last not in self.claims:
                    why = f"a tie: {self.nodes[add].name} adds two branches"
                    found.setdefault(last, []).append(why)
        return found

    @property
    def heads(self) -> set[int]:
        """The weight operations whose result is returned, over no weight and no residual add.

        Not those that feed another one: a hidden state that is returned besides makes no head.
        """
        feeds: set[int] = set()  # what some weight operation is computed from
        for number in reversed(range(len(self.nodes))):
            if self.nodes[number].kind == "weight" or number in feeds:
                feeds.update(self._inputs[number])
        found: set[int] = set()
        seen = set(self.outputs)
        stack = list(self.outputs)
        while stack:
            node = stack.pop()
            if self.nodes[node].kind == "weight":
                found |= {node} - feeds
            elif node not in self.residual:
                new = [edge.to for edge in self.back[node] if edge.to not in seen]
                seen.update(new)
                stack += new
        return found
