"""Internal: what surely is, or is not, reached back from a node, without a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .dominators import ROOT
from .flow import Flow

__all__ = ["Bounds", "Reads", "free_of", "orders"]


class Bounds:
    """How far nodes reach back, in some order of the computation.

    Parameters
    ----------
    flow : Flow
        The flow of a graph.
    rank : sequence of int
        For each node its place in the order.

    Attributes
    ----------
    rank : sequence of int
        As given.
    least : list of int
        For each node, the earliest place of a node that it reaches over no weight, of those that
        are read more than once.
    most : list of int
        For each node, the latest place of a node that it reaches over a weight; -1 if none is.
    """

    def __init__(self, flow: Flow, rank: Sequence[int]) -> None:
        self.rank, self.least, self.most = rank, list[int](), list[int]()
        least, most, far = self.least, self.most, len(rank)
        joined = {to for at in range(far) for to in free_of(flow, at) if to not in flow.inputs[at]}
        for number, (node, inputs) in enumerate(zip(flow.nodes, flow.inputs, strict=True)):
            own = rank[number] if len(flow.users[number]) > 1 or number in joined else far
            least.append(min([own, *[least[to] for to in free_of(flow, number)]]))
            over = rank if node.kind == "weight" else most
            most.append(max([over[to] for to in inputs], default=-1))


def free_of(flow: Flow, number: int) -> Sequence[int]:
    """Return the nodes that a node holds as a whole, multiplied by numbers or gates at most."""
    node = flow.nodes[number]
    if node.kind == "weight":
        return ()
    return flow.wholes(number) if node.does in ("join", "select") else flow.inputs[number]


def orders(flow: Flow) -> Iterator[list[int]]:
    """Yield the places of all nodes in two orders, where each comes behind what it needs only.

    Of the inputs of a node, the earliest or the latest is computed first. What one order cannot
    tell apart, another one often can: the columns of a grid that is computed by rows.
    """
    for step in (1, -1):
        rank, place = [-1] * len(flow.nodes), 0
        for end in reversed(range(len(rank))):
            stack = [end] if rank[end] < 0 else []
            while stack:
                top = stack[-1]
                missing = [to for to in sorted(flow.inputs[top])[::-step] if rank[to] < 0]
                stack += missing
                if not missing:
                    stack.pop()
                    if rank[top] < 0:
                        rank[top], place = place, place + 1
        yield rank


class Reads:
    """Whether a path leads from a node back to another one, as to a term of a chain of sums.

    Parameters
    ----------
    before : sequence of sequence of int
        The nodes to which paths lead from every node, all of them with smaller numbers.

    Examples
    --------
    >>> reads = Reads([[], [0], [0], [1, 2], [2]])
    >>> reads.has(3, 2), reads.has(3, 0), reads.has(4, 1)
    (True, True, False)
    """

    def __init__(self, before: Sequence[Sequence[int]]) -> None:
        self._of = of = _long_paths(before)
        self._first: dict[tuple[int, int], int] = {}  # by node and path: where this path reads it
        last = dict(zip(of, range(len(of)), strict=True))  # by path
        onto = dict[int, int]()  # by path: the first node that reads its last one
        for number, inputs in enumerate(before):
            for to in inputs:
                if last[of[to]] == to and of[number] != of[to]:
                    onto.setdefault(of[to], number)
        for number, inputs in enumerate(before):
            for to in inputs:
                self._first.setdefault((to, of[number]), number)
                user = onto.get(of[number])
                if user is not None:
                    at = (to, of[user])
                    self._first[at] = min(user, self._first.get(at, user))

    def has(self, node: int, other: int) -> bool:
        """Whether a path surely leads from a node back to another one; False does not say no.

        It is found if the path of the first node reads the other one, or reads the last node of a
        path that does, as a multiple.
        """
        at = self._of[node]
        first = self._first.get((other, at))
        is_read = first is not None and first <= node
        return is_read or (self._of[other] == at and other <= node)


def _long_paths(before: Sequence[Sequence[int]]) -> list[int]:
    """Return for each node the first one of its path; each path goes on the longest way there is.

    >>> _long_paths([[], [0], [0], [2], [1, 3]])
    [0, 1, 0, 0, 0]
    """
    ahead, onto, of = [0] * len(before), [ROOT] * len(before), list[int]()
    for number in reversed(range(len(before))):
        for to in before[number]:
            if ahead[to] <= ahead[number]:
                ahead[to], onto[to] = ahead[number] + 1, number
    for number, inputs in enumerate(before):
        of.append(min([of[to] for to in inputs if onto[to] == number], default=number))
    return of
