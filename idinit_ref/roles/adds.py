"""Internal: the residual adds of a graph, and the weights that end their branches (section 6)."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from heapq import heappop, heappush
from math import prod
from typing import Literal, NamedTuple

from .dominators import ROOT
from .ends import Ends, Vanishing
from .flow import GATES, Flow
from .meet import Meetings
from .scores import Scores
from .ways import Way

__all__ = ["Adds", "Branch"]

_THROUGH = {"move", "scale", "shift", "map", "norm"}


class Branch(NamedTuple):
    """The branch of a residual add, the operand to which the skip is added.

    Parameters
    ----------
    add, skip, branch : int
        The nodes of the add and of its operands.
    sources : tuple of int
        The nodes from which both operands are computed.
    ends : Ends
        The ends of the branch.
    how : {"", "gated", "pyramid"}
        Why the ends are not "zero", if they are not.
    """

    add: int
    skip: int
    branch: int
    sources: tuple[int, ...]
    ends: Ends = Ends()
    how: Literal["", "gated", "pyramid"] = ""


class Adds:
    """All residual adds of a graph, found in the order of the computation.

    Parameters
    ----------
    flow : Flow
        The flow of the graph.

    Attributes
    ----------
    branches : list of Branch
        The branches of all residual adds, also those whose ends are not zero.
    ties : dict of int to int
        The adds of two branches without a skip, and their sources.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._serves = Scores(flow)
        self._vanishing = Vanishing(flow)
        self.branches: list[Branch] = []
        self.ties: dict[int, int] = {}
        self.residual: set[int] = set()
        self._recurrent: set[str] = set()  # weights that read the states of a recurrence
        self._meetings = Meetings(flow, self._may_skip)
        self._stream: list[int] = []  # for each node, the start of its stream of residual adds
        for number, node in enumerate(flow.nodes):
            source = self._judge(number) if node.kind == "add" else None
            inputs = flow.inputs[number]
            stream = number
            if source is not None:
                self.residual.add(number)
                stream = self._stream[source]
            elif node.does in _THROUGH and len(inputs) == 1:
                stream = self._stream[inputs[0]]
            self._stream.append(stream)

    def _is_sum(self, node: int) -> bool:
        """Whether a node is a residual sum, through moves, norms and activations."""
        while self._flow.nodes[node].does in _THROUGH and len(self._flow.inputs[node]) == 1:
            (node,) = self._flow.inputs[node]
        return node in self.residual

    def _judge(self, add: int) -> int | None:
        """Classify an add; return its latest source if it is residual."""
        flow = self._flow
        left, right = flow.args[add]
        if left == right or not flow.starts[left] & flow.starts[right] or self._serves.spent[add]:
            return None
        if not (flow.weighted[left] or flow.weighted[right]) or not flow.is_even(add):
            return None
        if self._vanishing.void[left] or self._vanishing.void[right]:
            return None  # a stream of zeros starts with the first term that is added
        found = self._plain(add, (left, right))
        if not found:
            found = self._projection(add, (left, right))
        self.branches += found
        return max((max(branch.sources) for branch in found), default=None)

    # A skip without weights -----------------------------------------------------------------

    def _plain(self, add: int, sides: tuple[int, int]) -> list[Branch]:
        """Return the branches of an add with an operand that passes no weight."""
        met = self._meetings.of(add, sides)
        found = []
        for skip in (0, 1):
            sources = {
                node: way
                for node, way in met[skip].items()
                if self._is_source(node, sides[1 - skip])
            }
            if not sources or self._is_query(add, sides[1 - skip]):
                continue
            if self._is_state(sides[1 - skip], sources):
                continue
            how: Literal["", "gated"] = (
                "gated" if all(self._is_gated(*item) for item in sources.items()) else ""
            )
            ends = self._vanishing.ends(sides[1 - skip], sources)
            found.append(
                Branch(add, sides[skip], sides[1 - skip], tuple(sorted(sources)), ends, how)
            )
        return found

    def _is_query(self, add: int, branch: int) -> bool:
        """Whether a stream that continues past the add is added to positions only for a query."""
        return self._serves.asks[add] and self._flow.users[branch] != [add]

    def _is_state(self, branch: int, sources: Collection[int]) -> bool:
        """Whether a branch is a state that a recurrence computes from its source, the last one.

        One weight reads both states, and the branch also reads what does not come from the source:
        h[t] = tanh(x[t] @ w + h[t - 1] @ u). So a sum of states, as a mean over time, has no skip.
        """
        own = self._read_by(branch) or self._recurrent
        common = own.intersection(*(self._read_by(source) for source in sources)) if own else own
        if not common:
            return False
        after = self._flow.after(sources)
        if not all(map(after, self._flow.nearest(branch))):
            self._recurrent |= common
            return True
        return False

    def _read_by(self, node: int) -> set[str]:
        """Return the weights that are applied to a node, or to what moves or scales it."""
        flow = self._flow
        while flow.nodes[node].does in ("move", "scale") and len(flow.inputs[node]) == 1:
            (node,) = flow.inputs[node]
        names, stack = set[str](), [node]
        while stack:
            for user in flow.users[stack.pop()]:
                names.update(flow.nodes[user].weights)
                stack += [user] if flow.nodes[user].does in ("move", "scale") else []
        return names

    def _may_skip(self, skip: int, branch: int) -> bool:
        """Whether a source of the skip may lie before the branch, so a search is needed."""
        flow = self._flow
        if not flow.weighted[branch] or flow.least[skip] > flow.most[branch]:
            return False
        if self._is_sum(branch):
            start = skip
            while flow.nodes[start].does in _THROUGH and len(flow.inputs[start]) == 1:
                (start,) = flow.inputs[start]
            if flow.nodes[start].kind in ("input", "weight"):
                return self._is_source(start, branch)
        return True

    def _is_source(self, node: int, branch: int) -> bool:
        """Whether a node is a source of a branch, not a term added to another source's stream."""
        if not self._is_sum(branch):
            return True
        flow, stream = self._flow, self._stream[branch]
        if self._stream[node] == stream or flow.before.is_above(node, stream):
            return True
        if flow.weighted[node]:
            return flow.comes_from(stream, node)
        ends = self._vanishing.ends(stream, (node,))  # if it has some, the stream is the branch
        return bool(ends.weights) and ends.blocker is None

    def _is_gated(self, source: int, way: Way) -> bool:
        """Whether the skip is multiplied by a result of weights on its own source."""
        flow = self._flow
        weights = (at for by in way.gates or () for at in flow.nearest(by))
        return any(at > source and flow.comes_from(at, source) for at in weights)

    # A skip with weights --------------------------------------------------------------------

    def _projection(self, add: int, sides: tuple[int, int]) -> list[Branch]:
        """Return the branch of an add with weights in both operands, or record a tie."""
        flow = self._flow
        if flow.source[sides[0]] is None or flow.source[sides[1]] is None:
            return []
        sums = [self._is_sum(side) for side in sides]
        tied: int | None = None
        for skip in (0, 1):
            if sums[1 - skip] and not sums[skip]:
                continue
            source = self._closed_source(add, sides[skip], sides[1 - skip])
            if source is None:
                continue
            most = [self._most(side, source) for side in sides]
            if all(sums) or (not any(sums) and most[skip] == most[1 - skip]):
                tied = source
            elif sums[skip] or most[skip] < most[1 - skip]:
                return self._branch(add, sides[skip], sides[1 - skip], source)
        if tied is not None and not self._serves.scores[add]:
            self.ties[add] = tied
        return []

    def _is_recurrent(self, add: int, skip: int, branch: int, source: int) -> bool:
        """Whether an add is a step of a recurrence, of states that the skip's weights read.

        In `h[t] = tanh(z[t] @ w + h[t - 1] @ u)` the states hold what w made of the other steps, so
        a zero w or u would forget them all. Either the branch passes a weight of the skip before
        its own. Or z[t] depends on h[t - 1], too, as in a decoder with attention: then u reads what
        the add gives, or the source is what it gave before.
        """
        flow, seen, stack = self._flow, {skip}, [skip]
        names: set[str] = set()
        while stack:
            top = stack.pop()
            names.update(flow.nodes[top].weights)
            new = {to for to in flow.inputs[top] if to > source} - seen
            seen |= new
            stack += new
        again = {name for name in names if len(flow.uses[name]) > 1}
        if not again:
            return False
        passed = (use for name in again for use in reversed(flow.uses[name]) if use not in seen)
        if any(source < use <= branch and flow.comes_from(branch, use) for use in passed):
            return True
        before = flow.names(flow.nearest(source))
        if not before.isdisjoint(again | flow.names(flow.nearest(branch))):
            return True
        return self._is_read(add, {name for name in again if flow.uses[name][-1] > add})

    def _is_read(self, node: int, names: Collection[str]) -> bool:
        """Whether one of some weights is applied to a node, over no other weight."""
        flow, heap, seen = self._flow, [node] if names else [], {node}
        while heap:
            top = heappop(heap)
            if not flow.names([top]).isdisjoint(names):
                return True
            if top == node or flow.nodes[top].kind != "weight":
                new = {user for user in flow.users[top] if user not in seen}
                seen |= new
                for user in new:
                    heappush(heap, user)
        return False

    def _branch(self, add: int, skip: int, branch: int, source: int) -> list[Branch]:
        """Return the branch, unless the skip depends on its ends, too, or holds its weights."""
        if self._is_recurrent(add, skip, branch, source):
            return []
        ends = self._vanishing.ends(branch, (source,))
        flow = self._flow
        own = flow.users[branch] == [add]
        is_apart = all(own and flow.behind.is_above(branch, end) for end in ends.weights)
        if not is_apart and flow.after(ends.weights)(skip):
            return []
        how: Literal["", "pyramid"] = "pyramid" if self._is_level(add, branch, source) else ""
        return [Branch(add, skip, branch, (source,), ends, how)]

    def _closed_source(self, add: int, skip: int, branch: int) -> int | None:
        """Return the nearest node from which all paths lead through the add."""
        flow = self._flow
        source = flow.source[skip]
        near = flow.before.common(skip, branch)
        assert source is not None
        while source != ROOT:
            if near != source and flow.before.is_above(source, near):
                return None  # both operands are computed from a nearer node
            is_own = flow.users[skip] == [add] and flow.behind.is_above(skip, source)
            may = not is_own and source <= flow.most[branch]  # where weights before it read
            if may and flow.is_closed(add, source) and self._is_over(branch, source):
                return source
            if not flow.behind.is_above(add, source):
                return None
            source = flow.before.parent[source]
        return None

    def _is_over(self, branch: int, source: int) -> bool:
        """Whether a path over weights leads from a source to a branch."""
        flow, nearest = self._flow, self._flow.source[branch]
        assert nearest is not None
        if flow.before.is_above(source, nearest):
            return True
        if not self._flow.starts[source] & self._flow.starts[branch]:
            return False
        return flow.longest(branch, (source,)) > 0

    def _most(self, side: int, source: int) -> int:
        """Return the most weights on a path from a source to an operand with weights."""
        flow, nearest = self._flow, self._flow.source[side]
        if nearest is not None and flow.before.is_above(source, nearest):
            return flow.depth[side] - flow.depth[source]
        return flow.longest(side, (source,))

    def _is_level(self, add: int, branch: int, source: int) -> bool:
        """Whether a branch leaves the resolution of source and add, and returns by upsampling.

        All that makes it vanish does. A mean that is spread again, as in a group norm, does not
        count beside the signal that it is taken from.
        """
        if self._finer[branch] <= source:
            return False
        flow, after = self._flow, self._flow.after((source,))
        rank, returns = len(flow.nodes[add].shape or ()), False
        seen, stack = {branch}, [branch]
        while stack:
            top = stack.pop()
            node, base = flow.nodes[top], self._unshuffled(top, rank)
            below = flow.inputs[top] if base is None or node.does == "resize" else (base,)
            is_finer = node.does == "resize" or base is not None
            may = is_finer or node.does == "select"  # a write between the places of others
            for to in below:
                if may and self._is_coarse(to, top, (source, add)):
                    returns |= is_finer
                elif to == source:
                    return False
                elif to not in seen and after(to) and flow.nodes[to].vanishes != "never":
                    seen.add(to)
                    stack.append(to)
        return returns

    @cached_property
    def _finer(self) -> list[int]:
        """For each node the latest one up to it that may leave a resolution."""
        flow, found = self._flow, list[int]()
        for number, node in enumerate(flow.nodes):
            if node.does == "move":
                is_finer = self._unshuffled(number, len(node.shape or ())) is not None
            else:
                is_finer = node.does == "resize"
            before = [found[to] for to in flow.inputs[number]]
            found.append(number if is_finer else max(before, default=ROOT))
        return found

    def _unshuffled(self, node: int, rank: int) -> int | None:
        """Return the node whose channels moves laid out in space (a pixel shuffle), or None."""
        flow, base = self._flow, node
        while flow.nodes[base].does == "move" and len(flow.inputs[base]) == 1:
            (base,) = flow.inputs[base]
        if flow.nodes[base].does in GATES:
            return None  # heads, which moves put together
        before, after = flow.nodes[base].shape or (), flow.nodes[node].shape or ()
        if not len(before) == len(after) == rank or prod(before) != prod(after):
            return None
        is_shuffle = before[0] == after[0] and sorted(before) != sorted(after)
        is_shuffle &= sum(have < had for had, have in zip(before, after, strict=True)) == 1
        return base if is_shuffle else None

    def _is_coarse(self, small: int, large: int, whole: Collection[int]) -> bool:
        """Whether a tensor is smaller than others along an axis that an operation enlarges.

        Where ranks differ, axes of size 1 do not count, as in a repetition that is written as a
        tile along a new axis; and the others' first axes are one, as before a matrix.
        """
        nodes = self._flow.nodes
        shapes = [nodes[at].shape or () for at in (small, large, *whole)]
        rank = len(shapes[0])
        if len(shapes[1]) != rank:
            return False
        pairs = list(zip(*shapes[:2], strict=True))
        if any(len(shape) != rank for shape in shapes[2:]):
            pairs = [pair for pair in pairs if pair != (1, 1)]
            rank = len(pairs)
            shapes = [tuple(size for size in shape if size > 1) for shape in shapes]
        others = [(prod(s[: 1 + len(s) - rank]), *s[1 + len(s) - rank :]) for s in shapes[2:]]
        return any(
            had < have and all(len(s) != rank or had < s[axis] for s in others)
            for axis, (had, have) in enumerate(pairs)
        )
