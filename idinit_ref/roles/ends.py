"""Internal: the ends of a signal, the weights with which it vanishes to first order (section 6)."""

from __future__ import annotations

from collections.abc import Collection, Set
from math import prod
from typing import NamedTuple

from ..core.layout import SPATIAL
from .after import After
from .bundles import Bundles
from .dominators import ROOT
from .flow import Flow
from .graph import ROOTS, entries, function_of
from .void import factors_of, find_alive, find_void, needed_of, struck_of

__all__ = ["Ends", "Vanishing"]


class Ends(NamedTuple):
    """The weight operations that end a signal, or the node that prevents ends.

    Parameters
    ----------
    weights : collection of int
        In the order of the graph; () if the signal has no ends.
    blocker : int, optional
        The node that vanishes with no weight: an operation, a start, or the source itself. Also
        None if the signal has ends, but none of them comes after the source.
    norms : tuple of int
        The normalisations between these weights and the signal.
    """

    weights: Collection[int] = ()
    blocker: int | None = None
    norms: tuple[int, ...] = ()


_ELSEWHERE, _ENDS = "elsewhere", "ends"
_State = str | int
"""The state of a node: it ends only in weights before the source, or also in later ones; or the
blocker."""
_Known = dict[int, _State] | list[_State]
"""The states of nodes by number."""
_FEW = 8  # the most weights of a bundle that are listed
_TRIES = 8  # the most weights that are passed as of second order
_MOST = 2**19  # the most states that are kept, of all walks


class _Walk(NamedTuple):
    """A search back from a signal to the weights after its sources.

    A weight operation with a weight in `passed` is no end. Where `summed`, a factor that is struck
    out may end a product if no other factor does. What is known of nodes holds for all signals:
    their states in `known`, in `chosen` the factor of each product that ends it, and in `struck`
    the nodes on whose paths back a factor is struck out.
    """

    sources: Collection[int]
    passed: Set[str]
    summed: bool
    after: After
    known: dict[int, _State]
    chosen: dict[int, int]
    struck: set[int]


class Vanishing:
    """The signals that vanish, and the weights with which they do.

    Parameters
    ----------
    flow : Flow
        The flow of a graph.

    Attributes
    ----------
    void : list of bool
        For each node, whether it is zero for any weights.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.void = find_void(flow)
        self._alive = find_alive(flow)
        self._dead: dict[
            tuple[frozenset[str], bool], dict[int, bool]
        ] = {}  # by zero weights: what vanishes
        self._walks: dict[tuple[Set[int], Set[str], bool], _Walk] = {}
        self._kept = 0
        self._anywhere: list[_State] = []  # of each node; ends in weights, for any source
        self._bundles = Bundles(flow, self.void)
        for number, bundle in enumerate(self._bundles.of):
            state = _ENDS if bundle else self._state(number, self._anywhere, None)
            self._anywhere.append(state)

    def is_ended(self, signal: int) -> bool:
        """Whether some weights, also before any source, make a signal vanish."""
        return self._anywhere[signal] == _ENDS

    def ends(
        self,
        signal: int,
        sources: Collection[int],
        passed: Set[str] = frozenset(),
        summed: bool = False,
    ) -> Ends:
        """Return the ends of a signal that come after its sources.

        Factors whose axis is summed are ends only if there are no others.

        Parameters
        ----------
        signal : int
            A node.
        sources : collection of int
            Nodes before it.
        passed : set of str
            Weights that are no ends, since the signal is of second order in them.
        summed : bool
            Whether factors that are struck out are ends.
        """
        if not (passed or summed):  # what is known without a walk
            bundle, held = self._bundles.after(signal, sources), self._bundles.held(signal, sources)
            if bundle:
                return Ends(tuple(bundle) if bundle.most <= _FEW else bundle)
            if held != ROOT:
                return Ends(blocker=held)
        flow, lowest = self._flow, min(sources)
        walk = self._walk(sources, passed, summed)
        known, reach, before = walk.known, sorted(self._reach(signal, walk)), len(walk.after)
        for number in reach:
            if struck_of(flow, number):
                walk.struck.add(number)
            if number in sources:
                known[number] = number
            elif number < lowest:
                state = self._anywhere[number]
                known[number] = _ELSEWHERE if state == _ENDS else state
            elif self._is_end(number, passed):
                counts = not self.void[number] and walk.after(number)
                known[number] = _ENDS if counts else _ELSEWHERE
                if counts and self._is_again(number, sources):
                    known[number] = number
            else:
                known[number] = self._state(number, known, walk)
                if walk.struck and not walk.struck.isdisjoint(needed_of(flow, number)):
                    walk.struck.add(number)
        self._kept += len(reach) + len(walk.after) - before
        state = known[signal]
        if isinstance(state, int) and self._is_end(state, passed) and len(passed) < _TRIES:
            other = self.ends(signal, sources, passed | flow.names([state]), summed)
            return other if other.weights else Ends(blocker=state)
        if state != _ENDS:
            none = Ends(blocker=None if isinstance(state, str) else state)
            may = not summed and signal in walk.struck
            other = self.ends(signal, sources, passed, True) if may else none
            return other if other.weights else none
        weights, norms = self._collect(signal, known, walk)
        return Ends(tuple(sorted(weights)), None, tuple(sorted(norms)))

    def _reach(self, signal: int, walk: _Walk) -> set[int]:
        """Return the unknown nodes on the paths back from a signal to weights and sources."""
        sources, lowest, known = walk.sources, min(walk.sources), walk.known
        seen, stack = set[int](), [signal]
        while stack:
            top = stack.pop()
            if top in seen or top in known:
                continue
            seen.add(top)
            if top < lowest or top in sources or self._is_end(top, walk.passed):
                continue
            stack += needed_of(self._flow, top)
            if walk.summed:
                stack += struck_of(self._flow, top)
        return seen

    def _walk(self, sources: Collection[int], passed: Set[str], summed: bool) -> _Walk:
        """Return the walk to some sources, with what is known of it from other signals."""
        key = frozenset(sources), frozenset(passed), summed
        walk = self._walks.get(key)
        if walk is None:
            if self._kept > _MOST:
                self._walks.clear()
                self._kept = 0
            walk = _Walk(sources, passed, summed, self._flow.after(sources), {}, {}, set())
            self._walks[key] = walk
        return walk

    def _is_end(self, number: int, passed: Set[str]) -> bool:
        """Whether a node is a weight operation that is not passed."""
        node = self._flow.nodes[number]
        return node.kind == "weight" and passed.isdisjoint(node.weights)

    def _is_whole(self, zero: Set[str]) -> bool:
        """Whether no weight is packed. Of q, k and v in one, the block of v ends a branch."""
        nodes, at, letters = self._flow.nodes, self._flow.at, {"O", "I", *SPATIAL}
        for name in zero:
            options = nodes[at[name]].options
            is_one = len(nodes[self._flow.uses[name][0]].weights) == 1
            if not is_one or options.get("blocks") or {*(options.get("layout") or "")} - letters:
                return False
        return True

    def _is_again(self, number: int, sources: Collection[int]) -> bool:
        """Whether what a weight operation reads vanishes with its own weight, as in l(tanh(l(x))).

        Then a small change of the weight has no first-order effect. What a source holds remains.
        """
        flow, own = self._flow, self._flow.names([number])
        is_shared = any(len(flow.uses[name]) > 1 for name in own)
        inputs = flow.args[number] if is_shared else ()
        return len(inputs) == 1 and self._dies(inputs[0], own, given=sources)

    def _state(self, number: int, known: _Known, walk: _Walk | None) -> _State:
        """Return the state of a node, given those of its inputs."""
        node, args = self._flow.nodes[number], self._flow.args[number]
        if self.void[number]:
            return _ELSEWHERE
        if self._is_end(number, walk.passed if walk else frozenset()):
            return _ENDS
        if node.kind in ("input", "parameter") or node.vanishes == "never":
            return number
        struck = dict.fromkeys(args[place] for place in node.sums)
        other = struck_of(self._flow, number) if walk and walk.summed else ()
        if isinstance(node.vanishes, tuple):
            factors = dict.fromkeys(args[place] for place in node.vanishes)
            state = self._factor(number, [to for to in factors if to not in struck], known, walk)
            rest = self._factor(number, list(other), known, walk) if state != _ENDS else state
            return _ENDS if rest == _ENDS else state
        states = [known[to] for to in args]
        if node.does == "product":  # with itself: nothing of first order
            states = [number if state == _ENDS else state for state in states]
        elif struck:
            states = [
                number if to in struck and state == _ENDS else state
                for to, state in zip(args, states, strict=True)
            ]
        ended = [to for to, state in zip(args, states, strict=True) if state == _ENDS]
        for to, state in zip(args, states, strict=True):
            if (
                isinstance(state, int)
                and not self._is_shift(to, state, number)
                and not (ended and self._is_flat(to, state, ended, known, walk))
            ):
                return state
        return _ENDS if ended else _ELSEWHERE

    def _is_flat(
        self,
        operand: int,
        blocker: int,
        ended: Collection[int],
        known: _Known,
        walk: _Walk | None,
    ) -> bool:
        """Whether an operand vanishes, to second order, with the ends of others: h + sin(h)^2."""
        at = self._flow.nodes[blocker]
        if at.does not in ("product", "contract") and at.kind != "weight":
            return False
        if walk is None:
            return True
        zero = {end for to in ended for end in self._collect(to, known, walk)[0]}
        return self._dies(operand, self._flow.names(zero))

    def _is_shift(self, operand: int, start: int, number: int) -> bool:
        """Whether an input of the model only shifts a signal, such as a running mean."""
        nodes = self._flow.nodes
        vector = sum(size != 1 for size in nodes[operand].shape or (0, 0)) < 2
        is_given = nodes[start].kind == "input" and entries(nodes[operand]) < entries(nodes[number])
        return vector and is_given and nodes[number].does != "join"

    def _factor(
        self,
        number: int,
        factors: list[int],
        known: _Known,
        walk: _Walk | None,
    ) -> _State:
        """Choose the factor that ends a product."""
        may = [to for to in factors if known[to] == _ENDS]
        if walk is None:
            return _ENDS if may else number if not factors else known[factors[0]]
        if not may:
            blocked = [state for to in factors if isinstance(state := known[to], int)]
            if not blocked:
                return _ELSEWHERE if factors else number
            nodes = self._flow.nodes
            squares = [at for at in blocked if nodes[at].does == "product"]
            never = [at for at in blocked if nodes[at].vanishes == "never"]
            return (squares or never or blocked)[0]
        node, args = self._flow.nodes[number], self._flow.args[number]
        if node.does == "contract" and len(args) == 1:
            return number  # a sum of squares
        sources, chosen = walk.sources, walk.chosen
        may = [to for to in may if not self._is_sign(to)] or may
        places = [
            to
            for to in factors_of(self._flow, number)
            if not self._is_never(to) and (to in may or not self._is_sign(to))
        ]
        needed = set(needed_of(self._flow, number))
        if len(places) == 1:
            chosen[number] = may[0]
            return _ENDS
        ends = {to: self._collect(to, known, walk)[0] for to in may}
        alone = []
        for to in may:
            zero = self._flow.names(ends[to])  # a layer that is called twice vanishes in both
            counts = walk.summed or self._is_whole(zero)
            others = [by for by in places if by != to and (by in needed or counts)]
            if places.count(to) == 1 and not any(self._dies(by, zero, counts) for by in others):
                alone.append(to)
        if not alone:
            return number  # they vanish together: no first-order term is left
        if len(alone) > 1:
            alone.sort(key=lambda to: self._rank(ends[to], sources))
        chosen[number] = alone[0]
        return _ENDS

    def _is_sign(self, number: int) -> bool:
        """Whether a node is a sign: no factor that makes a product small."""
        nodes, args = self._flow.nodes, self._flow.args
        while nodes[number].does in ("move", "scale") and len(args[number]) == 1:
            (number,) = args[number]
        return function_of(nodes[number]) in ("sign", "sgn")

    def _is_never(self, number: int) -> bool:
        """Whether a node holds only what is never zero, such as rows of a sigmoid."""
        nodes, args = self._flow.nodes, self._flow.args
        while nodes[number].kind == "other" and nodes[number].vanishes == "all":
            if len(args[number]) != 1:
                return False
            (number,) = args[number]
        return nodes[number].vanishes == "never"

    def _rank(self, ends: Collection[int], sources: Collection[int]) -> tuple[int, int, int, int]:
        """Return the sort key of a factor: the smallest is chosen."""
        flow = self._flow
        names = [name for end in ends for name in flow.nodes[end].weights]
        size = max(prod(flow.nodes[flow.at[name]].shape or ()) for name in names)
        longest = max(flow.longest(end, sources) for end in ends)
        return len(ends), -longest, -size, min(flow.at[name] for name in names)

    def _collect(self, signal: int, known: _Known, walk: _Walk) -> tuple[set[int], set[int]]:
        """Return the ends of a signal that has ends, and the norms after them."""
        nodes, chosen = self._flow.nodes, walk.chosen
        weights, norms = set(), set()
        seen, stack = {signal}, [signal]
        while stack:
            top = stack.pop()
            if known[top] != _ENDS:
                continue
            if self._is_end(top, walk.passed):
                weights.add(top)
                continue
            if nodes[top].does == "norm" or (top in chosen and self._is_norm(top, chosen[top])):
                norms.add(top)
            ways = [chosen[top]] if top in chosen else needed_of(self._flow, top)
            new = [to for to in ways if to not in seen]
            seen.update(new)
            stack += new
        return weights, norms

    def _is_norm(self, product: int, factor: int) -> bool:
        """Whether a product divides a factor by a root of its pooled values: a norm written out."""
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
        """Whether a path from a source to a signal takes a root."""
        seen, stack = {signal}, [signal]
        while stack:
            top = stack.pop()
            if function_of(self._flow.nodes[top]) in ROOTS:
                return True
            new = [to for to in self._flow.inputs[top] if to > source and to not in seen]
            seen.update(new)
            stack += new
        return False

    def _dies(
        self, signal: int, zero: Set[str], is_whole: bool | None = None, given: Collection[int] = ()
    ) -> bool:
        """Whether a signal vanishes if some weights do, apart from their inputs and biases.

        Some nodes are given: they do not vanish. Factors that are struck out count where the
        weights vanish as a whole, by default where none is packed.
        """
        flow, lowest = self._flow, min(self._flow.uses[name][0] for name in zero)
        is_whole = self._is_whole(zero) if is_whole is None else is_whole
        known = {} if given else self._dead.setdefault((frozenset(zero), is_whole), {})
        stack = [signal]
        while stack:
            top = stack[-1]
            node = flow.nodes[top]
            if top in known:
                stack.pop()
            elif top in given or self._alive[top]:
                known[top] = False
            elif not zero.isdisjoint(node.weights):
                known[top] = True
            elif not flow.args[top]:
                known[top] = True  # constant zeros
            elif top < lowest:
                known[top] = False
            else:
                ways = list(factors_of(flow, top) if is_whole else needed_of(flow, top))
                missing = [to for to in ways if to not in known]
                stack += missing
                if not missing:
                    some = any if isinstance(node.vanishes, tuple) else all
                    known[top] = some(known[to] for to in ways)
        return known[signal]
