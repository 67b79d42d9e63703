"""Internal: the paths from the operands of an add back to the nodes before it (section 6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

__all__ = ["HERE", "Frontier", "Way"]


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


class Frontier:
    """The nodes that the two operands of an add reach, the latest possible meeting first.

    The paths to a node are complete when it is popped. Nodes with the same latest shared node come
    in their own order, so a chain of sums is followed only as far as the other operand reaches, or
    as many steps as the other operand needs.
    """

    def __init__(self, peak: Sequence[int], is_met: IsMet) -> None:
        self._peak, self._is_met = peak, is_met
        self._seen: dict[int, list[Way]] = {}
        self._heap: list[tuple[int, int]] = []
        self._alone: deque[int] = deque()  # nodes that only one node reads, and one operand reaches
        self._turn = False
        self._open = [0, 0, 0]  # nodes ahead: reached by the left, by the right operand, freely
        self._latest = [-1, -1]  # the node that was pushed last
        self._met = [0, 0]  # those where an operand ends, whatever else the other one reaches

    @property
    def may_meet(self) -> bool:
        """Whether both operands still have paths, and one of these is free."""
        return all(self._open)

    def settled(self, side: int) -> dict[int, Way]:
        """Return all nodes ahead of an operand, if both meet at each, whatever else is reached."""
        if not self._met[side] or self._met[side] < self._open[side]:
            return {}
        return {node: ways[side] for node, ways in self._seen.items() if ways[side].is_open}

    def lone(self, side: int) -> tuple[int, Way] | None:
        """Return the one node ahead of an operand, if it has one, which is the one pushed last."""
        ways = self._seen.get(self._latest[side]) if self._open[side] == 1 else None
        return (self._latest[side], ways[side]) if ways and ways[side].is_open else None

    def _count(self, node: int, ways: list[Way], by: int) -> None:
        left, right = ways
        self._open[0] += by * left.is_open
        self._open[1] += by * right.is_open
        if left.free or right.free:
            self._open[2] += by
            for side, own, other in ((0, left, right), (1, right, left)):
                if own.free and other.over and not own.over and self._is_met(node, side, own):
                    self._met[side] += by

    def push(self, node: int, side: int, way: Way, alone: bool) -> None:
        """Add a path of one operand to a node; `alone` if the other cannot reach it this way."""
        ways = self._seen.get(node)
        self._latest[side] = node
        if ways is None:
            ways = self._seen[node] = [_NONE, _NONE]
            heappush(self._heap, (-self._peak[node], -node))
            if alone and self._peak[node] != node:
                self._alone.append(node)
        joined = ways[side].join(way)
        if joined != ways[side]:
            self._count(node, ways, -1)
            ways[side] = joined
            self._count(node, ways, 1)

    def pop(self) -> tuple[int, list[Way]]:
        """Return a node to which all paths are known, and those of each operand.

        In turn the latest one, and the first one that is reached by one path only.
        """
        self._turn = not self._turn
        node = -1
        while node not in self._seen:
            is_alone = self._turn and self._alone
            node = self._alone.popleft() if is_alone else -heappop(self._heap)[1]
        ways = self._seen.pop(node)
        self._count(node, ways, -1)
        return node, ways
