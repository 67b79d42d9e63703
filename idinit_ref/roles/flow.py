"""Internal: properties of a graph for the search, computed once, in the order of computation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from math import inf

from ..core.layout import SPATIAL
from .after import After, Paths
from .dominators import ROOT, dominators
from .graph import Graph, Node, bare_shape, entries, without_repeats

__all__ = ["GATES", "SPACE", "Flow"]

GATES = {"product", "contract", "attention"}
SPACE = {"move", "scale", "pool", "pad", "resize", "crop"}
_MASKED = {"product", "scale", "select", "attention"}
_SPATIAL = SPACE - {"crop"}
_CUTS = {"select", "crop"}


class Flow:
    """The signals of a graph: nodes by number, with their predecessors and successors.

    Attributes
    ----------
    args, inputs, users : list of tuple of int
        For each node: its arguments by position, the signals among them, and the nodes computed
        from it.
    weighted : list of bool
        Whether a path to a node passes a weight operation.
    starts : list of int
        The inputs from which a node is computed, one bit each.
    uses : dict of str to list of int
        For each weight, its operations.
    depth : list of int
        The most weight operations on a path to a node, including the node.
    before, behind : Tree
        The dominators; and the post-dominators, on paths to weight operations and adds.
    source : list of int
        The nearest node that dominates all nearest weight operations before a node.

    A sum that is computed anew is the sum that was there: its nodes are left out.
    """

    def __init__(self, graph: Graph) -> None:
        graph = without_repeats(graph)
        self.graph, self.nodes = graph, graph.nodes
        self.at = {node.name: number for number, node in enumerate(graph.nodes)}
        self.outputs = {self.at[name] for name in graph.outputs}
        self.args = [tuple([self.at[name] for name in node.inputs]) for node in graph.nodes]
        self.uses: dict[str, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            for name in node.weights:
                self.uses.setdefault(name, []).append(number)
        self._signals()
        self.paths = Paths(self.inputs)
        count = len(self.nodes)
        self._trunk = [self._without_masks(number) for number in range(count)]
        self.before = dominators(self._trunk, range(count))
        self.behind = dominators(self._ahead(), reversed(range(count)))
        self._sources()
        self._passing()
        self._spots()

    def _signals(self) -> None:
        bits = 0
        count = len(self.nodes)
        self.starts = [0] * count
        self.inputs: list[tuple[int, ...]] = [()] * count
        self.users: list[list[int]] = [[] for _ in self.nodes]
        self.weighted = [False] * count
        self.depth = [0] * count
        for number, (node, args) in enumerate(zip(self.nodes, self.args, strict=True)):
            if node.kind == "parameter":
                continue
            starts = depth = 0
            if node.kind == "input":
                starts, bits = 1 << bits, bits + 1
            inputs = []
            for to in args if len(args) < 2 else dict.fromkeys(args):
                if self.starts[to]:
                    inputs.append(to)
                    starts |= self.starts[to]
                    self.users[to].append(number)
                    depth = max(depth, self.depth[to])
            self.starts[number] = starts  # and what is read is kept once, if all are signals
            self.inputs[number] = args if len(inputs) == len(args) else tuple(inputs)
            self.depth[number] = depth + (node.kind == "weight")
            self.weighted[number] = self.depth[number] > 0

    def _without_masks(self, number: int) -> tuple[int, ...]:
        """Return the inputs of a node without masks, which do not separate two paths."""
        node, inputs = self.nodes[number], self.inputs[number]
        if node.does not in _MASKED or len(inputs) < 2:
            return inputs
        size = entries(node)
        kept = tuple(
            to for to in inputs if self.weighted[to] or not 0 < entries(self.nodes[to]) < size
        )
        return kept or inputs

    def _ahead(self) -> list[list[int]]:
        """Return for each node the users from which a weight operation or an add is reached."""
        leads = [node.kind in ("weight", "add") for node in self.nodes]
        found = [*self.users]
        for number in reversed(range(len(leads))):
            if not all(map(leads.__getitem__, found[number])):
                found[number] = [user for user in found[number] if leads[user]]
            leads[number] |= bool(found[number])
        return found

    def _sources(self) -> None:
        """Find for each node the dominator of its nearest weights, and its closure."""
        self.source: list[int | None] = [None] * len(self.nodes)
        self._closed = list(range(len(self.nodes)))
        before = self.before
        for number, node in enumerate(self.nodes):
            found: int | None = None
            if node.kind == "parameter":
                continue
            if node.kind == "weight":
                found = before.parent[number]
            else:
                for to in self.inputs[number]:
                    other = self.source[to]
                    if other is not None:
                        found = other if found is None else before.common(found, other)
            self.source[number] = found
            # Everything between this dominator and the node leads to the node alone.
            top, over = before.parent[number], self._trunk[number]
            is_closed = all(
                to == top
                or (
                    self.behind.is_above(number, to)
                    and before.depth[self._closed[to]] <= before.depth[top]
                )
                for to in over
            )
            if is_closed and top != ROOT:
                is_above = self.behind.is_above(number, top)
                self._closed[number] = self._closed[top] if is_above else top

    def _passing(self) -> None:
        """Find bounds of the possible sources; a chain of adds is passed in one hop."""
        self.least: list[float] = []  # the earliest shared node reached freely, as a whole
        self.lead: list[int] = []  # the latest weight operation reached so; -1 if none is
        self.most: list[int] = []  # the latest node reached over a weight
        self.hop: list[int] = []
        is_open: list[bool] = []  # whether a shared node is reached over no weight, or a part of it
        self.peak: list[int] = []  # the latest shared node before a node; a shared one is its own
        for number, node in enumerate(self.nodes):
            own = number if len(self.users[number]) > 1 else inf
            inputs = self.inputs[number]
            before = [self.peak[to] for to in inputs] if own == inf else ()
            self.peak.append(max(before) if before else number)
            if node.kind in ("weight", "parameter"):
                is_open.append(own < inf)
                self.lead.append(number if node.kind == "weight" else -1)
                self.least.append(own)
                self.most.append(max(inputs, default=-1))
                self.hop.append(number)
                continue
            free = self.wholes(number) if node.does in ("join", "select") else inputs
            parted = [to for to in free if to not in inputs]  # read by more than one of its parts
            self.least.append(min([own, *parted, *[self.least[to] for to in free]]))
            self.lead.append(max([self.lead[self.hop[to]] for to in free], default=-1))
            open_ = [to for to in inputs if is_open[to]]
            is_open.append(own < inf or len(open_) > 0)
            self.most.append(max([self.most[to] for to in inputs], default=-1))
            is_chain = node.kind == "add" and own == inf and len(open_) == 1
            if is_chain and self.nodes[open_[0]].shape == node.shape:
                self.hop.append(self.hop[open_[0]])
            else:
                self.hop.append(number)

    def wholes(self, number: int) -> Sequence[int]:
        """Return the nodes of which a concatenation or selection holds all entries."""
        if self.nodes[number].does == "join":
            whole = self.rejoined(number)
            return self.inputs[number] if whole is None else (whole,)
        return [to for to in self.inputs[number] if not self.is_dropping(number, to)]

    def _spots(self) -> None:
        """Find the start of each chain of sums, past terms that reach no source of such a sum.

        A source has the sum's size, or is reached through space alone.
        """
        count = len(self.nodes)
        self.start = list(range(count))
        spots = [0] * count  # the sizes of the shared nodes reached over no weight, one bit each
        spatial = [False] * count  # whether one is reached through space alone
        bits: dict[int, int] = {}
        for number, node in enumerate(self.nodes):
            is_spatial, inputs = len(self.users[number]) > 1, self.inputs[number]
            bit = bits.setdefault(entries(node), 1 << len(bits)) if inputs or is_spatial else 0
            size = bit if is_spatial else 0
            if node.kind == "add" and not is_spatial:
                open_ = [to for to in inputs if spatial[to] or spots[to] & bit]
                if len(open_) == 1 and self.nodes[open_[0]].shape == node.shape:
                    self.start[number] = self.start[open_[0]]
            if node.kind != "weight" and inputs:
                whole = self.rejoined(number) if node.does == "join" else None
                is_way = node.kind == "add" or node.does in SPACE or self.is_widening(number)
                for to in inputs if whole is None else (*inputs, whole):
                    size |= spots[to]
                    if spatial[to] and not is_spatial:
                        is_spatial = is_way or to == whole or self.is_sorting(number, to)
            spots[number], spatial[number] = size, is_spatial

    # Questions ------------------------------------------------------------------------------

    def alike(self, operations: Collection[int]) -> set[int]:
        """Return all operations that have a weight of some operations."""
        return {at for name in self.names(operations) for at in self.uses[name]}

    def names(self, operations: Iterable[int]) -> set[str]:
        """Return the weights of some operations."""
        return {name for at in operations for name in self.nodes[at].weights}

    def gates(self, node: int, to: int) -> tuple[int, ...]:
        """Return the factors with weights by which an operation multiplies one of its inputs."""
        if self.nodes[node].kind != "other" or self.nodes[node].does not in GATES:
            return ()
        return tuple(by for by in self.inputs[node] if by != to and self.weighted[by])

    def is_dropping(self, node: int, to: int) -> bool:
        """Whether an operation selects only some entries of one of its inputs."""
        have, had = entries(self.nodes[node]), entries(self.nodes[to])
        return self.nodes[node].does == "select" and have < had

    def is_sorting(self, node: int, to: int) -> bool:
        """Whether an operation takes all entries of its one input, as rows by a full mask."""
        this = self.nodes[node]
        is_one = this.does == "select" and self.inputs[node] == (to,)
        return is_one and entries(this) == entries(self.nodes[to])

    def is_widening(self, node: int) -> bool:
        """Whether an operation joins copies of one node only, changed in space, and zeros."""
        if self.nodes[node].does != "join":
            return False
        bases = set()
        for part in self.inputs[node]:
            while len(self.inputs[part]) == 1 and self.nodes[part].does in _SPATIAL:
                (part,) = self.inputs[part]
            bases.add(part)
        return len(bases) == 1

    def rejoined(self, node: int) -> int | None:
        """Return what a concatenation puts together again: all parts of one node, in space.

        In MViT a class token is cut off, the rest is pooled, and the two are joined again.
        """
        if self.nodes[node].does != "join":
            return None
        size, bases = 0, set[int]()
        for part in self.args[node]:
            while len(self.inputs[part]) == 1 and self.nodes[part].does in _SPATIAL:
                (part,) = self.inputs[part]
            if self.nodes[part].does not in _CUTS or len(self.inputs[part]) != 1:
                return None
            size += entries(self.nodes[part])
            bases.update(self.inputs[part])
        whole = min(bases)
        return whole if len(bases) == 1 and size == entries(self.nodes[whole]) else None

    def after(self, sources: Collection[int]) -> After:
        """Return what knows whether a node is computed from one of some sources."""
        return After(self.inputs, self.before, self.paths, sources)

    def longest(self, node: int, sources: Collection[int]) -> int:
        """Return the most weights on a path from some sources to a node; -1 without a path."""
        lowest = min(sources)
        known: dict[int, int] = dict.fromkeys(sources, 0)
        if lowest == ROOT:
            return self.depth[node]
        stack = [node]
        while stack:
            top = stack[-1]
            if top in known:
                stack.pop()
                continue
            new = [to for to in self.inputs[top] if to >= lowest]
            missing = [to for to in new if to not in known]
            stack += missing
            if not missing:
                most = max((known[to] for to in new), default=-1)
                known[top] = most if most < 0 else most + (self.nodes[top].kind == "weight")
        return known[node]

    def is_closed(self, add: int, source: int) -> bool:
        """Whether all paths from between a source and an add lead through the add."""
        if self.before.is_above(source, add):
            if self.before.depth[self._closed[add]] <= self.before.depth[source]:
                return True
            return self._leads_to(add, add, source)
        return all(self._leads_to(add, to, source) for to in self.inputs[add])

    def _leads_to(self, add: int, node: int, source: int) -> bool:
        """Whether the add post-dominates all nodes before `node` that come after the source."""
        seen, stack = {node}, [node]
        while stack:
            top = stack.pop()
            for to in self.inputs[top]:
                if to <= source or to in seen:
                    continue
                seen.add(to)
                if self.behind.is_above(add, to):
                    stack.append(to)
                elif self.comes_from(to, source):
                    return False
        return True

    def comes_from(self, node: int, source: int) -> bool:
        """Whether a node is computed from a source; searches the latest, nearest nodes first."""
        bits = self.starts[source]
        if node < source:
            return False
        if self.nodes[source].kind == "input" or not self.starts[node] & bits:
            return bool(self.starts[node] & bits)
        if self.paths.is_above(source, node) or self.before.is_above(source, node):
            return True
        seen, heap = {node}, [-node]
        while heap:
            top = -heappop(heap)
            use = self.last_use(source, top)
            if use != ROOT and self.behind.is_above(top, use):
                return True
            for to in self.inputs[top]:
                if source in self.inputs[to]:
                    return True
                if to > source and to not in seen and self.starts[to] & bits:
                    seen.add(to)
                    heappush(heap, -to)
        return False

    def last_use(self, source: int, node: int) -> int:
        """Return the latest user of a source up to a node; ROOT if there is none."""
        users = self.users[source]
        at = bisect_right(users, node)
        return users[at - 1] if at else ROOT

    def nearest(self, node: int) -> Iterable[int]:
        """Yield the nearest weight operations before a node, the latest first."""
        seen, stack = {node}, [node]
        while stack:
            top = stack.pop()
            if self.nodes[top].kind == "weight":
                yield top
                continue
            new = [to for to in self.inputs[top] if to not in seen]
            seen.update(new)
            stack += sorted(new)

    def is_even(self, add: int) -> bool:
        """Whether a sum is of two signals of one shape, and more than one entry.

        Leading axes of size 1 are ignored, and so are batch axes of the weights of one side, and
        those that constants have brought to it.
        """
        left, right = (self.nodes[to] for to in self.args[add])
        shape = bare_shape(self.nodes[add].shape)
        if left.shape is None or right.shape is None or entries(self.nodes[add]) < 2:
            return False
        sides = sorted((bare_shape(left.shape), bare_shape(right.shape)), key=len)
        if sides[1] != shape or sides[0] == shape:
            return sides[0] == sides[1] == shape
        more = len(shape) - len(sides[0])
        if not sides[0] or shape[more:] != sides[0]:
            return False
        wide = self.args[add][bare_shape(left.shape) != shape]
        first = next(iter(self.nearest(wide)), None)
        is_own = first is not None and list(shape[:more]) == self._batch(self.nodes[first])
        return is_own or self._is_copied(wide, shape[:more])

    def _is_copied(self, node: int, batch: tuple[int, ...]) -> bool:
        """Whether constants brought the leading axes of a node, as a batch of masks does."""
        seen, stack, is_masked = {node}, [node], False
        while stack:
            top = stack.pop()
            this, args = self.nodes[top], self.args[top]
            wide = {to for to in args if bare_shape(self.nodes[to].shape)[: len(batch)] == batch}
            is_masked |= this.does in _MASKED
            is_new = this.does in ("move", *_MASKED) and len(args) == 1
            if not wide and not (is_new and 0 < entries(self.nodes[args[0]]) < entries(this)):
                return False
            stack += wide - seen
            seen |= wide
        return is_masked

    def _batch(self, operation: Node) -> list[int]:
        """Return the sizes of the batch axes of an operation's weight."""
        parameter = self.nodes[self.at[operation.weights[0]]]
        letters = str(parameter.options.get("layout") or "")
        sizes = zip(letters, parameter.shape or (), strict=False)
        return [size for letter, size in sizes if letter not in ("O", "I", *SPATIAL)]
