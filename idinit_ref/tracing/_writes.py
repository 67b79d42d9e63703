"""Internal: sums by parts: put together side by side, or written at some places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from ._axes import View
from ._functions import Fact
from ._joins import At
from ._made import Made, Shape
from ._moves import Spot, unmoved
from ._paths import Sum, unlinked
from ._places import Move, Runs, assembled, followed
from ._summed import added
from ._sums import Sums
from ._units import seen_by
from ._values import Signal, Value

__all__ = ["Writes"]


class Writes(Sums):
    """A drawing with such sums."""

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

    def _written_back(
        self, name: str, values: Sequence[Value], shape: Shape | None, under: Runs | None
    ) -> Value | None:
        """Draw a sum with entries of a signal, written back to them, as a sum with the signal.

        None if other values are written.
        """
        whole, update, *places = values
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
            self.fates.rewritten[add] = out.node if isinstance(out, Signal) and not chosen else ""
        return out

    # Sums of parts --------------------------------------------------------------------------

    def placed(self, signal: Signal, spot: Spot) -> Signal:
        """Return a new signal with the places of its entries; sums side by side are one sum."""
        nodes = {part.node for part, _ in spot.parts}
        found = None
        if len(nodes) > 1 and not nodes.isdisjoint(self._sums):
            found = self._whole_sum(spot, signal.shape)
        return super().placed(found or signal, spot)

    def _whole_sum(self, spot: Spot, shape: Shape | None) -> Signal | None:
        """Draw sums of the parts of a signal, put together, as a sum with the signal; else None.

        Where each term is computed from its own part alone, the sums stay as they are, unless the
        terms are parts of one signal, too.
        """
        moves = [move for _, move in spot.parts]
        for paths in self._common_terms([part for part, _ in spot.parts]):
            parts = [part for part, _ in paths]
            skip = self.spot(assembled(zip(parts, moves, strict=True)), shape).value
            if not isinstance(skip, Signal):
                continue
            if not self._are_of(skip, paths, moves, shape):
                return None
            value = self.reshape("add", skip, shape)
            zeros = [Made(part.shape, value=0) for part in parts]
            for level in zip_longest(*(terms for _, terms in paths)):
                each = [one.signal if one else zero for one, zero in zip(level, zeros, strict=True)]
                branch = self._assembled(zip(each, moves, strict=True), shape)
                value = self.add("add", value, branch, shape)
            assert isinstance(value, Signal)
            adds = (one.add for _, terms in paths for one in terms)
            self.fates.rewritten |= dict.fromkeys(adds, value.node)
            return value
        return None

    def _are_of(
        self,
        skip: Signal,
        paths: Sequence[tuple[Signal, list[Sum]]],
        moves: Sequence[Move],
        shape: Shape | None,
    ) -> bool:
        """Whether terms beside the parts of a signal are parts of one too, or read other parts."""
        if all(len(terms) == 1 for _, terms in paths):
            pairs = zip((terms[0].signal for _, terms in paths), moves, strict=True)
            if self.spot(assembled(pairs), shape).value is not None:
                return True
        of = [(one.signal.node, part.node) for part, terms in paths for one in terms]
        starts = {skip.node, *(part for _, part in of), *(self._base(part) for _, part in of)}
        is_apart = not all(self._comes_from([term], [part]) for term, part in of)
        return is_apart and self._comes_from([term for term, _ in of], starts)

    def _common_terms(self, sums: Sequence[Signal]) -> Iterator[list[tuple[Signal, list[Sum]]]]:
        """Yield ways to part sums: of each a term, such that all are of one signal, and the rest.

        A signal that is no sum is such a term itself.
        """
        for at in (0, 1):
            way = []
            for one in sums:
                pair = self._even_terms(one)
                rest = [Sum(one.node, pair[1 - at], ())] if pair else []
                way.append((pair[at] if pair else one, rest))
            yield way
        found: list[dict[int, tuple[Signal, list[Sum]]]] = []
        for one in sums:
            here: dict[int, tuple[Signal, list[Sum]]] = {}
            seen, stack = set[str](), list[tuple[Signal, Any]]([(one, ())])
            while stack:
                signal, path = stack.pop()
                if signal.node in seen:
                    continue
                seen.add(signal.node)
                places = followed(signal, unmoved) or ()
                if len(places) == 1:
                    here.setdefault(id(places[0].of), (signal, unlinked(path)))
                if pair := self._even_terms(signal):
                    a, b = pair
                    stack += [(b, (signal.node, a, path)), (a, (signal.node, b, path))]
            found.append(here)
        for key in found[0]:
            if all(key in here for here in found):
                yield [here[key] for here in found]

    def _even_terms(self, signal: Signal) -> tuple[()] | tuple[Signal, Signal]:
        """Return the terms of a sum, if both have its shape."""
        pair = self._sums.get(signal.node, ())
        return pair if all(one.shape == signal.shape for one in pair) else ()

    def _assembled(self, pairs: Iterable[tuple[Value, Move]], shape: Shape | None) -> Value:
        """Draw several moved values that together are one."""
        given = list(pairs)
        spot = self.assembly(given, shape)
        if spot.value is not None:
            return self.reshape("parts", spot.value, shape)
        terms = [
            one._replace(halves=added(one.halves)) if isinstance(one, Signal) else one
            for one, _ in given
        ]
        out = self.result("parts", terms, shape, word="join")
        if not isinstance(out, Signal):
            return out
        probes = [(one, move(View.of(one.shape or ()))) for one, move in given]
        ways = [(one, seen_by(p)) for one, p in probes if isinstance(one, Signal) and p]
        return self.placed(self.moved(out, ways), spot)
