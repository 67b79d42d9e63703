"""Internal: dominators, the nodes on every path to a node, or on every path onward from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["ROOT", "Tree", "dominators"]

ROOT = -1
"""The virtual node before all others (or after all others, for post-dominators)."""


class Tree:
    """A tree that grows leaf by leaf; common ancestors in logarithmic time.

    Every node keeps its parent and one ancestor further up (a skew-binary jump: E. W. Myers, "An
    applicative random-access stack", Information Processing Letters 17, 1983).

    Parameters
    ----------
    count : int
        The number of nodes, which are numbered from 0; `ROOT` exists from the start.

    Examples
    --------
    >>> tree = Tree(3)
    >>> tree.grow(0, ROOT), tree.grow(1, 0), tree.grow(2, 0)
    (None, None, None)
    >>> tree.common(1, 2), tree.is_above(0, 2), tree.is_above(1, 2)
    (0, True, False)
    """

    def __init__(self, count: int) -> None:
        self.parent = [ROOT] * (count + 1)  # the last one is the root's
        self.depth = [0] * (count + 1)
        self._jump = [ROOT] * (count + 1)

    def grow(self, node: int, parent: int) -> None:
        """Add a node below a parent in the tree."""
        depth, jump = self.depth, self._jump
        self.parent[node] = parent
        depth[node] = depth[parent] + 1
        far = jump[parent]
        is_even = depth[parent] - depth[far] == depth[far] - depth[jump[far]]
        jump[node] = jump[far] if is_even else parent

    def up_to(self, node: int, depth: int) -> int:
        """Return the ancestor of a node, or the node itself, at a depth."""
        while self.depth[node] > depth:
            far = self._jump[node]
            node = far if self.depth[far] >= depth else self.parent[node]
        return node

    def is_above(self, node: int, other: int) -> bool:
        """Whether a node is an ancestor of another one, or the same."""
        return self.up_to(other, self.depth[node]) == node

    def common(self, one: int, other: int) -> int:
        """Return the deepest node that is above both."""
        one, other = self.up_to(one, self.depth[other]), self.up_to(other, self.depth[one])
        while one != other:
            if self._jump[one] != self._jump[other]:
                one, other = self._jump[one], self._jump[other]
            else:
                one, other = self.parent[one], self.parent[other]
        return one


def dominators(before: Sequence[Sequence[int]], order: Iterable[int]) -> Tree:
    """Return the dominator tree: a node's parent is the nearest node on every path to it.

    Parameters
    ----------
    before : sequence of sequences of int
        The direct predecessors of every node; a node without any has the predecessor `ROOT`.
    order : iterable of int
        All nodes, each after its predecessors. There are no cycles.

    Examples
    --------
    >>> dominators([[], [0], [0], [1, 2]], range(4)).parent[:4]  # a diamond
    [-1, 0, 0, 0]
    """
    tree = Tree(len(before))
    for node in order:
        ways = before[node]
        parent = ways[0] if ways else ROOT
        for other in ways[1:]:
            parent = tree.common(parent, other)
        tree.grow(node, parent)
    return tree
