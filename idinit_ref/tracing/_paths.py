"""Internal: what a drawn node is computed from, and sums with what was read of a signal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from ..roles.graph import NodeKind
from ._places import Runs, followed, taken
from ._values import Signal, Value, is_zero
from ._written import Functions

__all__ = ["Paths", "Sum", "unlinked"]

_PARTS = {"move", "scale", "select", "crop", "pad"}


class Sum(NamedTuple):
    """A term of a sum, its add, and the moves from there to the whole sum."""

    add: str
    signal: Signal
    moves: tuple[Callable[[Value], Value], ...]


class Paths(Functions):
    """A drawing whose nodes are followed back."""

    def note_write(self, node: str, whole: Value, update: Value) -> None:
        """Record a write to an accumulator: to zeros, or to what was written to them before.

        A sum of a term with what was read of an accumulator is no residual add.
        """
        terms = self._filled.get(whole.node) if isinstance(whole, Signal) else None
        if not isinstance(update, Signal) or (terms is None and not is_zero(whole)):
            return
        found = self._terms(update, whole.node if isinstance(whole, Signal) else "") or []
        new = [one.signal.node for one in found] or [update.node]
        if terms and not self._comes_from(new, terms):
            for one in found:
                self.change(one.add, kind="other")
        self._filled[node] = (terms or frozenset()).union(self._base(name) for name in new)

    def accumulates(self, whole: Value, update: Value) -> bool:
        """Whether an update is no branch of a signal that it is added to."""
        if not isinstance(whole, Signal) or not isinstance(update, Signal):
            return True
        terms = self._filled.get(whole.node)
        return terms is not None and not self._comes_from([update.node], terms)

    def _terms(self, update: Signal, whole: str, under: Runs | None = None) -> list[Sum] | None:
        """Return the terms, the first one first, of a sum with what was read of a signal, or None.

        The signal, the sum and its parts may be moved. What was read has to be what is `under` the
        update, if that is known.
        """
        wholes = self._unmoved(whole)
        stack: list[tuple[Signal, Any]] = [(update, ())]  # with the adds and moves so far, linked
        seen = set[str]()
        while stack:
            at, path = stack.pop()
            base = self._base(at.node, wholes)
            if base in wholes and not self._is_read_of(at, under):
                continue
            if base in wholes or self.fates.rewritten.get(base) in wholes:
                return unlinked(path)
            if at.node in seen:
                continue
            seen.add(at.node)
            if at.node in self._sums:
                a, b = self._sums[at.node]
                stack += [(b, (at.node, a, path)), (a, (at.node, b, path))]
            elif at.node in self._moves:
                value, move = self._moves[at.node]
                stack.append((value, ("", move, path)))
        return None

    def _is_read_of(self, signal: Signal, under: Runs | None) -> bool:
        """Whether a part of another signal, which may be moved, has its entries at some places."""
        own = None if under is None else followed(signal, lambda view: view)
        if own is None or under is None or signal.shape is None:
            return True
        is_scaled = own[0].of is signal and self.node(signal.node).does == "scale"
        return is_scaled or taken(own, signal.shape) == under

    def _are_branches(self, terms: Sequence[Sum], whole: str) -> bool:
        """Whether terms have the shape of their sum, and come from a signal, or what is in it.

        A box that a network shifts from its old place by writing a sum over it is no skip.
        """
        if any(self.node(t.add).shape != t.signal.shape for t in terms):
            return False
        parts = self._before(whole, ("add", "other"))
        return self._comes_from([one.signal.node for one in terms], parts)

    def _before(self, name: str, over: Collection[NodeKind]) -> set[str]:
        """Return a node and those from which it is computed over nodes of some kinds."""
        seen, stack = {name}, [name]
        while stack:
            node = self.node(stack.pop())
            new = {*node.inputs} - seen if node.kind in over else set()
            seen |= new
            stack += new
        return seen

    def _unmoved(self, name: str) -> list[str]:
        """Return a node and the nodes of which it is a move."""
        found = [name] if name else []
        while found and found[-1] in self._moves:
            found.append(self._moves[found[-1]][0].node)
        return found

    def _base(self, name: str, stops: Collection[str] = ()) -> str:
        """Return the node of which a node is a part, moved, scaled or padded; or one of `stops`."""
        node = self.node(name)
        while node.name not in stops and node.does in _PARTS and len(node.inputs) == 1:
            node = self.node(node.inputs[0])
        return node.name

    def _comes_from(self, names: Sequence[str], terms: Collection[str]) -> bool:
        """Whether some nodes are computed from others."""
        first, ends = min((self.place[name] for name in terms), default=0), {*terms}
        seen, stack = {*names}, [*names]
        while stack and ends.isdisjoint(names):
            inputs = self.node(stack.pop()).inputs
            names = [to for to in inputs if self.place[to] >= first and to not in seen]
            seen.update(names)
            stack += names
        return not ends.isdisjoint(seen)


def unlinked(path: Any) -> list[Sum]:
    """Return the terms of a linked list of adds and moves, the innermost first."""
    found: list[Sum] = []
    while path:
        add, by, path = path
        if add:
            found.append(Sum(add, by, ()))
        else:
            found = [one._replace(moves=(*one.moves, by)) for one in found]
    return found
