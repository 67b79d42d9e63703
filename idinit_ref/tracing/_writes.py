"""Internal: sums with values at some places, and signals that are written over."""

from __future__ import annotations

from collections.abc import Sequence

from ._functions import Fact
from ._joins import At
from ._made import Shape
from ._places import Runs
from ._sums import Sums
from ._values import Signal, Value

__all__ = ["Writes"]


class Writes(Sums):
    """A drawing with such writes."""

    def scatter_add(
        self,
        name: str,
        whole: Value,
        update: Value,
        places: Sequence[Value],
        shape: Shape | None,
        at: At | None = None,
    ) -> Value:
        """Draw a sum with values at some places: a stream, and zeros but for these values.

        Sums that start at zeros, as of experts, stay one scatter.
        """
        if len(places) == 1 and self.fills(whole, update, places[0], at):
            return self.scatter(name, whole, update, places[0], shape, at)
        if self.accumulates(whole, update):
            return self.result(name, [whole, update, *places], shape, word="scatter")
        part = self.result(name, [update, *places], shape, word=Fact("select", "sum", 1))
        return self.add("add", whole, part, shape)

    def result(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        floating: bool = True,
        word: str | Fact = "",
        under: Runs | None = None,
    ) -> Value:
        """Draw an operation that depends on some values in any way.

        A sum with entries of a signal, written back to them, is a sum with the signal.
        """
        found = None
        if word == "scatter" and floating and len(values) > 1:
            found = self._written_back(name, values[0], values[1], values[2:], shape, under)
        return found or super().result(name, values, shape, floating, word)

    def _written_back(
        self,
        name: str,
        whole: Value,
        update: Value,
        places: Sequence[Value],
        shape: Shape | None,
        under: Runs | None,
    ) -> Value | None:
        """Draw a signal with sums of its own entries at some places; None if it holds others."""
        if not isinstance(whole, Signal) or not isinstance(update, Signal):
            return None
        if whole.shape != shape or whole.node in self._filled:
            return None
        chosen = self.selections.get(update.node)
        read = update if chosen is None else chosen.table
        found = self._terms(read, whole.node, under if chosen is None else None)
        if not found or not self._are_branches(found, whole.node):
            return None
        out: Value = whole
        for add, term, moves in found:
            part: Value = term
            for move in moves:
                part = move(part)
            if chosen is not None and isinstance(part, Signal):
                part = self.select(name, part, *chosen[1:])
            out = self.scatter_add(name, out, part, places, shape)
            self._rewritten[add] = out.node if isinstance(out, Signal) and not chosen else ""
        return out
