"""Internal: the weight operations in which signals end, shared by the sums that hold them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from .dominators import ROOT, Tree
from .flow import Flow
from .graph import entries

__all__ = ["Bundle", "Bundles", "bits"]

_FEW = 16  # the most users of sources that are looked at


class Bundle(Collection[int]):
    """Some nodes: one, or those of two bundles. So a sum of sums takes no room of its own.

    Parameters
    ----------
    low : int
        The earliest node.
    path : int
        The path on which all of them lie (`Paths.of`); ROOT if there is none.
    parts : tuple of Bundle
        The two bundles; () if `low` is the one node.

    Examples
    --------
    >>> one, two = Bundle(3, 0), Bundle(5, 0)
    >>> both = one.joined(two).joined(one)
    >>> both.low, both.path, both.most, list(both)
    (3, 0, 3, [3, 5])
    """

    __slots__ = ("_mask", "_parts", "low", "most", "path")

    def __init__(self, low: int, path: int, parts: tuple[Bundle, ...] = ()) -> None:
        self.low, self.path, self._parts = low, path, parts
        self.most: int = parts[0].most + parts[1].most if parts else 1  # how many at most
        self._mask = 0 if parts else 1

    def joined(self, other: Bundle) -> Bundle:
        """Return the union of two bundles."""
        if self is other:
            return self
        path = self.path if self.path == other.path else ROOT
        return Bundle(min(self.low, other.low), path, (self, other))

    @property
    def mask(self) -> int:
        """Return a bit for each node from `low` on."""
        stack = [] if self._mask else [self]
        while stack:
            top = stack[-1]
            missing = [part for part in top._parts if not part._mask]
            stack += missing
            if not missing:
                for part in top._parts:
                    top._mask |= part._mask << (part.low - top.low)
                stack.pop()
        return self._mask

    def __iter__(self) -> Iterator[int]:
        return (self.low + at for at in bits(self.mask))

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.mask.bit_count()

    def __contains__(self, node: object) -> bool:
        return isinstance(node, int) and node >= self.low and bool(self.mask >> node - self.low & 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bundle) and (self.low, self.mask) == (other.low, other.mask)

    def __hash__(self) -> int:
        return hash((self.low, self.mask))


class Bundles:
    """Where the walk from a signal to its ends ends, as far as one pass over the graph tells it.

    Parameters
    ----------
    flow : Flow
        The flow of a graph.
    void : sequence of bool
        For each node, whether it is zero for any weights.

    Attributes
    ----------
    of : list of Bundle or None
        The ends of each node for any source before all of them. None where a walk is needed: a
        signal has a bundle if it vanishes with all of its inputs alone, and these are weights that
        are used only once, or such signals.
    """

    def __init__(self, flow: Flow, void: Sequence[bool]) -> None:
        self._flow, self._void = flow, void
        self.of: list[Bundle | None] = []
        self._holds = Tree(len(flow.nodes))  # over each node, what blocks it if it is a source
        self._first: list[int] = []  # of each node, the start that its first terms lead to, or ROOT
        for number in range(len(flow.nodes)):
            bundle, held = self._find(number)
            self.of.append(bundle)
            self._first.append(self._start(number, held))
            if held != ROOT:
                if not self._holds.depth[held]:
                    self._holds.grow(held, ROOT)
                self._holds.grow(number, held)

    def _find(self, number: int) -> tuple[Bundle | None, int]:
        """Return the bundle of a node; if it has none, the first such input of a sum, or ROOT."""
        flow, node = self._flow, self._flow.nodes[number]
        if not flow.starts[number] or self._void[number]:
            return None, ROOT
        if node.kind == "weight":
            is_one = max([len(flow.uses[name]) for name in node.weights]) == 1
            return (Bundle(number, flow.paths.of[number]) if is_one else None), ROOT
        found: Bundle | None = None
        if node.vanishes == "all" and node.does != "product" and not node.sums:
            for to in flow.args[number]:
                bundle = self.of[to]
                if bundle is None:
                    return None, to
                found = bundle if found is None else found.joined(bundle)
        return (None if node.does == "norm" else found), ROOT

    def _start(self, number: int, held: int) -> int:
        """Return what never vanishes, and what a node holds; it has the number of entries."""
        nodes = self._flow.nodes
        if held != ROOT:
            return self._first[held] if entries(nodes[held]) == entries(nodes[number]) else ROOT
        is_alive = nodes[number].kind == "input" or nodes[number].vanishes == "never"
        is_signal = self._flow.starts[number] and nodes[number].kind != "weight"
        return number if is_alive and is_signal and not self._void[number] else ROOT

    def after(self, signal: int, sources: Collection[int]) -> Bundle | None:
        """Return the bundle of a signal, if one source surely comes before all of it."""
        flow, bundle, last = self._flow, self.of[signal], max(sources)
        if bundle is None or bundle.low <= last:
            return None
        above = flow.source[signal]  # it dominates all of them
        is_dominated = above is not None and flow.before.is_above(last, above)
        return bundle if is_dominated or flow.paths.of[last] == bundle.path else None

    def held(self, signal: int, sources: Collection[int]) -> int:
        """Return the source that a signal holds besides what it computes; ROOT if unknown.

        Such a signal has no ends, whatever comes beside the source. Nor has one that holds what
        never vanishes: without a source, this is returned.
        """
        holds, held, first = self._holds, ROOT, self._first[signal]
        for at in sources if holds.depth[signal] else ():
            held = max(held, at) if holds.depth[at] and holds.is_above(at, signal) else held
        node, ended = self._flow.nodes[held], [at for at in sources if self.of[at]]
        is_plain = node.kind in ("add", "other") and node.does not in ("product", "contract")
        if first == ROOT:
            return held if is_plain and not ended else ROOT
        place, users = held, sum([len(self._flow.users[at]) for at in ended])
        if users > _FEW:
            return ROOT
        for at in ended:  # a source that is itself a term before what the sum holds
            for user in self._flow.users[at] if holds.depth[signal] else ():
                if user <= place or user > signal or self._flow.nodes[user].kind == "weight":
                    continue
                is_on = holds.depth[user] > 0 and holds.is_above(user, signal)
                if self.of[user] or (is_on and len(self._flow.args[user]) != 2):
                    return ROOT  # perhaps it is in such a term
                if is_on and self._flow.args[user] == (at, holds.parent[user]):
                    place, held = user, at
        return first if held == ROOT else held


def bits(mask: int) -> Iterator[int]:
    """Yield the places of the bits of a number, the lowest first.

    >>> list(bits(0b10110))
    [1, 2, 4]
    """
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
