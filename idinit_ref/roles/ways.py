"""Internal: the paths from the operands of an add back to the nodes before it (section 6)."""

from __future__ import annotations

from collections.abc import Sequence
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


class Frontier:
    """The nodes that the two operands of an add reach, the latest possible meeting first.

    The paths to a node are complete when it is popped. Nodes with the same latest shared node come
    in their own order, so a chain of sums is followed only as far as the other operand reaches.
    """

    def __init__(self, peak: Sequence[int]) -> None:
        self._peak = peak
        self._seen: dict[int, list[Way]] = {}
        self._heap: list[tuple[int, int]] = []
        self._open = [0, 0, 0]  # nodes ahead: reached by the left, by the right operand, freely

    @property
    def may_meet(self) -> bool:
        """Whether both operands still have paths, and one of these is free."""
        return all(self._open)

    def _count(self, ways: list[Way], by: int) -> None:
        for side in (0, 1):
            self._open[side] += by * ways[side].is_open
        self._open[2] += by * (ways[0].free or ways[1].free)

    def push(self, node: int, side: int, way: Way) -> None:
        """Add a path of one operand to a node."""
        ways = self._seen.get(node)
        if ways is None:
            ways = self._seen[node] = [_NONE, _NONE]
            heappush(self._heap, (-self._peak[node], -node))
        else:
            self._count(ways, -1)
        ways[side] = ways[side].join(way)
        self._count(ways, 1)

    def pop(self) -> tuple[int, list[Way]]:
        """Return the latest node, and the paths of each operand to it."""
        node = -heappop(self._heap)[1]
        ways = self._seen.pop(node)
        self._count(ways, -1)
        return node, ways
