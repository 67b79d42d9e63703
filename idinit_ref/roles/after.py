"""Internal: whether nodes are computed from others, with what is known from other questions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .dominators import Tree

__all__ = ["After", "Paths"]


class Paths:
    """All nodes on paths that have no node in common: of two nodes on one, which is the earlier.

    Parameters
    ----------
    inputs : sequence of sequence of int
        The predecessors of every node, all of them with smaller numbers.

    Examples
    --------
    >>> paths = Paths([[], [0], [0], [1, 2]])
    >>> paths.of, paths.is_above(0, 3), paths.is_above(2, 3)
    ([0, 0, 2, 0], True, False)
    """

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        self.of: list[int] = []  # the first node of each node's path
        last: dict[int, int] = {}  # by path
        for number, before in enumerate(inputs):
            own = [self.of[to] for to in before if last[self.of[to]] == to]
            path = min(own, default=number)  # the oldest, of paths that end at a predecessor
            self.of.append(path)
            last[path] = number

    def is_above(self, node: int, other: int) -> bool:
        """Whether a node is on the path to another one, or the same; False does not say no."""
        return node <= other and self.of[node] == self.of[other]


class After:
    """Whether a node is computed from one of some sources, or is one.

    Parameters
    ----------
    inputs : sequence of sequence of int
        The predecessors of every node, all of them with smaller numbers.
    before : Tree
        The dominators.
    paths : Paths
        The paths of these nodes.
    sources : collection of int
        Some nodes.

    Examples
    --------
    >>> from .dominators import dominators
    >>> inputs = [[], [], [0, 1], [2], [1]]
    >>> after = After(inputs, dominators(inputs, range(5)), Paths(inputs), [0])
    >>> [after(node) for node in range(5)]
    [True, False, True, True, False]
    """

    def __init__(
        self,
        inputs: Sequence[Sequence[int]],
        before: Tree,
        paths: Paths,
        sources: Collection[int],
    ) -> None:
        self._inputs, self._before, self._of = inputs, before, paths.of
        ordered = sorted(sources)
        self._first, self._last = ordered[0], ordered[-1]
        self._least: dict[int, int] = {}  # by path: the first source on it
        for source in ordered:
            self._least.setdefault(self._of[source], source)
        self._known: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, node: int) -> bool:
        """Answer for one node; a search ends where a path of a source is met behind it."""
        known, of, least, far = self._known, self._of, self._least, len(self._of)
        if node < self._first or node in known:
            return known.get(node, False)
        above = self._before.is_above
        if node >= least.get(of[node], far) or above(self._last, node) or above(self._first, node):
            return True
        stack = [(node, iter(self._inputs[node]))]  # the path that is followed
        while stack:
            top, ahead = stack[-1]
            for to in ahead:
                if known.get(to) or to >= least.get(of[to], far):
                    known.update((at, True) for at, _ in stack)
                    return True
                if to > self._first and to not in known:
                    stack.append((to, iter(self._inputs[to])))
                    break
            else:
                known[top] = False
                stack.pop()
        return False
