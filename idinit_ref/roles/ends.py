"""Inside: the ends of a signal, the weights with which it vanishes to first order (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import prod
from typing import NamedTuple

from .flow import Flow, entries
from .graph import ROOTS, function_of

__all__ = ["Ends", "Vanishing", "find_void"]


class Ends(NamedTuple):
    """The weight operations that end a signal, or the node because of which it has none.

    Parameters
    ----------
    weights : tuple of int
        In the order of the graph; () if the signal has no ends.
    blocker : int, optional
        What does not vanish with any weight: an operation, a start, or the source itself. None
        too if all its ends are elsewhere, not after the source.
    norms : tuple of int
        Normalisations between these weights and the signal.
    """

    weights: tuple[int, ...] = ()
    blocker: int | None = None
    norms: tuple[int, ...] = ()


def find_void(flow: Flow, zero: Collection[int] = ()) -> list[bool]:
    """Find what is zero whatever the other weights are, where some weight operations are.

    Constant zeros are, and what is made of them.
    """
    found: list[bool] = []
    for number, (node, args) in enumerate(zip(flow.nodes, flow.args, strict=True)):
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            found.append(False)
        elif isinstance(node.vanishes, tuple):
            found.append(any(found[args[place]] for place in node.vanishes))
        else:
            found.append(number in zero or all(found[to] for to in args))
    return found


_ELSEWHERE, _ENDS = "elsewhere", "ends"
_State = str | int
"""Of a node: ends in weights that do not count, or in some that do; else what is in the way."""


class Vanishing:
    """Which signals vanish, and with which weights.

    Parameters
    ----------
    flow : Flow
        Of a graph.

    Attributes
    ----------
    void : list of bool
        Of each node whether it is zero whatever the weights are.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.void = find_void(flow)
        known: dict[int, _State] = {}
        for number in range(len(flow.nodes)):  # ends in some weights, whatever the source is
            known[number] = self._state(number, known, None, {})
        self._anywhere = known

    def ends(self, signal: int, sources: Collection[int]) -> Ends:
        """Return the ends of a signal, as far as they come after its sources.

        Parameters
        ----------
        signal : int
            A node.
        sources : collection of int
            Nodes before it.
        """
        flow, lowest = self._flow, min(sources)
        known: dict[int, _State] = {}
        chosen: dict[int, int] = {}
        after: dict[int, bool] = {}
        for number in sorted(self._reach(signal, sources, lowest)):
            if number in sources:
                known[number] = number
            elif number < lowest:
                state = self._anywhere[number]
                known[number] = _ELSEWHERE if state == _ENDS else state
            elif flow.nodes[number].kind == "weight":
                counts = not self.void[number] and flow.is_after(number, sources, after)
                known[number] = _ENDS if counts else _ELSEWHERE
            else:
                known[number] = self._state(number, known, (sources, chosen), after)
        state = known[signal]
        if state != _ENDS:
            return Ends(blocker=None if isinstance(state, str) else state)
        weights, norms = self._collect(signal, known, chosen)
        return Ends(tuple(sorted(weights)), None, tuple(sorted(norms)))

    def _reach(self, signal: int, sources: Collection[int], lowest: int) -> set[int]:
        """Return the nodes on the ways back from a signal to weights and sources."""
        seen, stack = {signal}, [signal]
        while stack:
            top = stack.pop()
            if top < lowest or top in sources or self._flow.nodes[top].kind == "weight":
                continue
            new = [to for to in self._needed(top) if to not in seen]
            seen.update(new)
            stack += new
        return seen

    def _needed(self, number: int) -> Iterable[int]:
        """Return the inputs on which it depends whether a node vanishes."""
        vanishes, args = self._flow.nodes[number].vanishes, self._flow.args[number]
        if vanishes == "never":
            return ()
        return args if vanishes == "all" else [args[place] for place in vanishes]

    def _state(
        self,
        number: int,
        known: dict[int, _State],
        source: tuple[Collection[int], dict[int, int]] | None,
        after: dict[int, bool],
    ) -> _State:
        """Return the state of a node, given those of its inputs."""
        node, args = self._flow.nodes[number], self._flow.args[number]
        if node.kind == "weight":
            return _ELSEWHERE if self.void[number] else _ENDS
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            return number
        struck = {args[place] for place in node.sums}
        if isinstance(node.vanishes, tuple):
            factors = dict.fromkeys(args[place] for place in node.vanishes)
            return self._factor(number, [to for to in factors if to not in struck], known, source)
        squares = node.does == "product"  # a product with itself: nothing of first order
        states: list[_State] = [
            number if (to in struck or squares) and known[to] == _ENDS else known[to] for to in args
        ]
        blocked = [
            state
            for to, state in zip(args, states, strict=True)
            if isinstance(state, int) and not self._is_shift(to, state, number)
        ]
        if blocked:
            return blocked[0]
        return _ENDS if _ENDS in states else _ELSEWHERE

    def _is_shift(self, operand: int, start: int, number: int) -> bool:
        """Whether an input of the model shifts a signal, as a running mean that it is given."""
        nodes = self._flow.nodes
        vector = sum(size != 1 for size in nodes[operand].shape or (0, 0)) < 2
        is_given = nodes[start].kind == "input" and entries(nodes[operand]) < entries(nodes[number])
        return vector and is_given and nodes[number].does != "join"

    def _factor(
        self,
        number: int,
        factors: list[int],
        known: dict[int, _State],
        source: tuple[Collection[int], dict[int, int]] | None,
    ) -> _State:
        """Choose the factor that ends a product."""
        may = [to for to in factors if known[to] == _ENDS]
        if source is None:
            return _ENDS if may else number if not factors else known[factors[0]]
        if not may:
            blocked = [state for to in factors if isinstance(state := known[to], int)]
            if not blocked:
                return _ELSEWHERE if factors else number
            never = [at for at in blocked if self._flow.nodes[at].vanishes == "never"]
            return (never or blocked)[0]
        sources, chosen = source
        ends = {to: self._collect(to, known, chosen)[0] for to in may}
        places = list(self._needed(number))
        alone = [
            to
            for to in may
            if places.count(to) == 1
            and not any(to != other and self._dies(other, ends[to]) for other in places)
        ]
        if not alone:
            return number  # they vanish together: nothing of first order is left
        if len(alone) > 1:
            alone.sort(key=lambda to: self._rank(ends[to], sources))
        chosen[number] = alone[0]
        return _ENDS

    def _rank(self, ends: Collection[int], sources: Collection[int]) -> tuple[int, int, int, int]:
        """Return by what one factor is preferred to another: the smaller comes first."""
        flow = self._flow
        names = [name for end in ends for name in flow.nodes[end].weights]
        size = max(prod(flow.nodes[flow.at[name]].shape or ()) for name in names)
        longest = max(flow.longest(end, sources) for end in ends)
        return len(ends), -longest, -size, min(flow.at[name] for name in names)

    def _collect(
        self, signal: int, known: dict[int, _State], chosen: dict[int, int]
    ) -> tuple[set[int], set[int]]:
        """Return the ends of a signal that has some, and the norms before them."""
        nodes = self._flow.nodes
        weights, norms = set(), set()
        seen, stack = {signal}, [signal]
        while stack:
            top = stack.pop()
            if known[top] != _ENDS:
                continue
            if nodes[top].kind == "weight":
                weights.add(top)
                continue
            if nodes[top].does == "norm" or (top in chosen and self._is_norm(top, chosen[top])):
                norms.add(top)
            ways = [chosen[top]] if top in chosen else self._needed(top)
            new = [to for to in ways if to not in seen]
            seen.update(new)
            stack += new
        return weights, norms

    def _is_norm(self, product: int, factor: int) -> bool:
        """Whether a factor is divided by a root of what is pooled from it: a norm, written out."""
        flow = self._flow
        size = entries(flow.nodes[product])
        return any(
            entries(flow.nodes[by]) < size
            and flow.longest(by, (factor,)) == 0
            and self._has_root(by, factor)
            for by in flow.inputs[product]
            if by > factor
        )

    def _has_root(self, signal: int, source: int) -> bool:
        """Whether a root is taken on some way from a source to a signal."""
        seen, stack = {signal}, [signal]
        while stack:
            top = stack.pop()
            if function_of(self._flow.nodes[top]) in ROOTS:
                return True
            new = [to for to in self._flow.inputs[top] if to > source and to not in seen]
            seen.update(new)
            stack += new
        return False

    def _dies(self, signal: int, zero: Collection[int]) -> bool:
        """Whether a signal vanishes where some weights do, their inputs and biases aside."""
        flow, lowest = self._flow, min(zero)
        known: dict[int, bool] = {}
        stack = [signal]
        while stack:
            top = stack[-1]
            node = flow.nodes[top]
            if top in known:
                stack.pop()
            elif top in zero:
                known[top] = True
            elif node.kind in ("input", "parameter") or node.vanishes == "never":
                known[top] = False
            elif not flow.args[top]:
                known[top] = True  # constant zeros
            elif top < lowest:
                known[top] = False
            else:
                ways = list(self._needed(top))
                missing = [to for to in ways if to not in known]
                stack += missing
                if not missing:
                    some = any if isinstance(node.vanishes, tuple) else all
                    known[top] = some(known[to] for to in ways)
        return known[signal]
