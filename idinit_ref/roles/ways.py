"""Internal: the paths from the operands of an add back to the nodes before it (section 6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from .bounds import Bounds

__all__ = ["HERE", "Frontier", "Met", "Way"]


class Way(NamedTuple):
    """The paths from one operand of an add back to a node."""

    over: bool = False  # a path over at least one weight
    free: bool = False  # a path over none
    gates: frozenset[int] | None = None  # the factors on free paths; None: not on all of them
    spatial: bool = False  # a free path with only moves and changes of space
    cut: bool = False  # a path of only a part: no skip, but a branch if weights come before it

    @property
    def is_open(self) -> bool:
        """Whether there is a path."""
        return self.over or self.free or self.cut

    def join(self, other: Way) -> Way:
        """Return the union of two sets of paths."""
        gates = other.gates if not self.free else self.gates
        if self.free and other.free:
            both = self.gates is not None and other.gates is not None
            gates = (self.gates or frozenset()) | (other.gates or frozenset()) if both else None
        return Way(
            self.over or other.over,
            self.free or other.free,
            gates,
            self.spatial or other.spatial,
            self.cut or other.cut,
        )


_NONE, HERE = Way(), Way(False, True, None, True)
IsMet = Callable[[int, int, Way], bool]
"""Whether a node that an operand (0 or 1) reaches freely is its source, if the other reaches it
over weights."""
Met = tuple[dict[int, Way], dict[int, Way]]
"""The nodes where each operand ends, with its ways to them, as a skip of the other one."""


class Frontier:
    """The nodes that the two operands of an add reach, the latest possible meeting first.

    The paths to a node are complete when it is popped. Nodes with the same latest shared node come
    in their own order, so a chain of sums is followed only as far as the other operand reaches, or
    as many steps as the other operand needs. In a sum of gated terms both operands reach all nodes
    over the gates: there the search ends as soon as its result is sure.
    """

    def __init__(self, peak: Sequence[int], is_met: IsMet) -> None:
        self._peak, self._is_met = peak, is_met
        self._seen: dict[int, list[Way]] = {}
        self._heap: list[tuple[int, int]] = []
        self._alone: deque[int] = deque()  # nodes that only one node reads, and one operand reaches
        self._turn = False
        self.popped, self._due = 0, 1  # nodes popped, and when `sure` may be asked again
        self._open = [0, 0, 0]  # nodes ahead: reached by the left, by the right operand, freely
        self._latest = [-1, -1]  # the node that was pushed last

    @property
    def may_meet(self) -> bool:
        """Whether both operands still have paths, and one of these is free."""
        return all(self._open)

    def lone(self, side: int) -> tuple[int, Way] | None:
        """Return the one node ahead of an operand, if it has one, which is the one pushed last."""
        ways = self._seen.get(self._latest[side]) if self._open[side] == 1 else None
        return (self._latest[side], ways[side]) if ways and ways[side].is_open else None

    @property
    def is_due(self) -> bool:
        """Whether twice as many nodes were popped as when `sure` was asked last."""
        return self.popped >= self._due

    def is_apart(self, side: int, bounds: Bounds) -> bool:
        """Whether what an operand reaches freely surely comes behind all that the other reaches."""
        least, most = len(bounds.rank), -1
        for node, ways in self._seen.items():
            own, other = ways[side], ways[1 - side]
            least = min(least, bounds.least[node]) if own.free else least
            if other.is_open:
                most = max(most, (bounds.rank if other.over else bounds.most)[node])
            if least <= most:
                return False
        return True

    def sure(self, is_fed: Callable[[int, int, int], bool]) -> Met | None:
        """Return where each operand ends from here on, if it is known without a search.

        `is_fed` tells of a node whether an operand (0 or 1) surely reaches it over weights, by way
        of nodes later than another one.
        """
        self._due = 2 * self.popped
        found: Met = ({}, {})

        def is_sure(node: int, side: int, latest: int) -> bool:
            ways = self._seen[node]
            is_over = ways[1 - side].over or is_fed(node, 1 - side, latest)
            return is_over and self._is_met(node, side, ways[side])

        for side in (0, 1):  # all ways of an operand end, whatever else the other one reaches
            own = {node: ways[side] for node, ways in self._seen.items() if ways[side].is_open}
            last = max(own)
            if all(w.free and not w.over and is_sure(node, side, last) for node, w in own.items()):
                found[side].update(own)
                return found
        free = {node: ways for node, ways in self._seen.items() if ways[0].free or ways[1].free}
        last = max(free)
        for node, ways in free.items():  # all free ways end
            met = [side for side in (0, 1) if ways[side].free and is_sure(node, side, last)]
            for side in met:
                found[side][node] = ways[side]
            may = (ways[side].free and self._is_met(node, side, ways[side]) for side in (0, 1))
            if sum(may) > len(met) or not (met or (ways[0].free and ways[1].free)):
                return None
        return found

    def _count(self, ways: list[Way], by: int) -> None:
        left, right = ways
        self._open[0] += by * left.is_open
        self._open[1] += by * right.is_open
        self._open[2] += by * (left.free or right.free)

    def push(self, node: int, side: int, way: Way, alone: bool) -> None:
        """Add a path of one operand to a node; `alone` if the other cannot reach it this way."""
        ways = self._seen.get(node)
        self._latest[side] = node
        if ways is None:
            ways = self._seen[node] = [_NONE, _NONE]
            ways[side] = way
            self._count(ways, 1)
            heappush(self._heap, (-self._peak[node], -node))
            if alone and self._peak[node] != node:
                self._alone.append(node)
            return
        joined = ways[side].join(way)
        if joined != ways[side]:
            self._count(ways, -1)
            ways[side] = joined
            self._count(ways, 1)

    def pop(self) -> tuple[int, list[Way]]:
        """Return a node to which all paths are known, and those of each operand.

        In turn the latest one, and the first one that is reached by one path only.
        """
        self._turn, self.popped = not self._turn, self.popped + 1
        node = -1
        while node not in self._seen:
            is_alone = self._turn and self._alone
            node = self._alone.popleft() if is_alone else -heappop(self._heap)[1]
        ways = self._seen.pop(node)
        self._count(ways, -1)
        return node, ways
