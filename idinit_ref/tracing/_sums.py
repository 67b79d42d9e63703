"""Internal: sums of signals, entry by entry or at some places, and of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any, Literal

from ._axes import View
from ._functions import Fact
from ._joins import At
from ._loops import Loops
from ._moves import Spot, unmoved
from ._places import Move, Runs, assembled, followed
from ._recipes import terms_of
from ._results import Sum, unlinked
from ._units import merged, seen_by, spread_to
from ._values import Made, Part, Shape, Signal, Track, Value

__all__ = ["Sums"]


class Sums(Loops):
    """A drawing with sums."""

    def add(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a sum of two values, entry by entry."""
        if isinstance(a, Signal) and isinstance(b, Signal):
            return self._combined(name, a, b, shape, "add")
        if isinstance(a, Made):
            a, b = b, a
        if not isinstance(a, Signal) or not isinstance(b, Made):
            return self.sum_of(name, (a, b), shape, "added to")
        if b.parts and self._shifts_statistics(a, b):
            return self.sum_of(name, (a, b), shape, "added to")
        if b.shape == shape and self.is_data(b):  # a class token, for example
            return self._add(name, a, self.data(b), shape)
        if b.parts and a.shape == shape and self._is_bias(b, a.fresh, len(shape or ())):
            self.use(b, "bias", a.node)
            return a._replace(
                tracks=a.fresh, pieces=(), picks=False, member=None, term=None, places=()
            )
        if (b.is_table or self.tables_in(b)) and self.floats(b):
            return self._add(name, a, self.data(b), shape)
        return self.sum_of(name, (a, b), shape, "added to")

    def sum(
        self,
        name: str,
        value: Value,
        axes: Sequence[int],
        shape: Shape | None,
        mean: bool = False,
    ) -> Value:
        """Draw a sum or mean along axes; of two signals in a stack it is their sum."""
        stack = self.joins.get(value.node) if isinstance(value, Signal) else None
        if not stack or [*axes] != [stack.axis] or not len(stack.operands) == stack.starts[-1] == 2:
            return super().sum(name, value, axes, shape, mean)
        one, other = (self.reshape(name, operand, shape) for operand in stack.operands)
        total = self.add("add", one, other, shape)
        half = Made((), number=True, value=0.5)
        return self.scale(name, [total, half], shape, word="mul") if mean else total

    def subtract(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a difference of two values, entry by entry.

        Of two signals it is a sum, unless one is a function of the other, as a mean is, or
        :func:`distances` says otherwise.
        """
        if isinstance(a, Signal) and isinstance(b, Signal) and not self.is_of_one(a, b):
            return self._combined(name, a, b, shape, "sub")
        return self.sum_of(name, (a, b), shape, "subtracted with")

    def _combined(
        self, name: str, a: Signal, b: Signal, shape: Shape | None, word: Literal["add", "sub"]
    ) -> Value:
        """Draw a sum or a difference of two signals; of the same entries of both, these of it."""
        one, other = (self.selections.get(signal.node) for signal in (a, b))
        if one and other and one.is_like(other):
            whole = self._add(name, one.table, other.table, one.table.shape, word)
            return self.select(name, whole, one.places, one.shape, one.kept)
        rows, others = (self.rows.get(signal.node) for signal in (a, b))
        if word == "add" and rows and others and rows.is_like(others):
            of = rows.table, others.table
            total = self.once("add", of, lambda: self._add(name, *of, of[0].shape))
            return self.part(name, total, rows.spans, rows.gone)
        return self._add(name, a, b, shape, word)

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
            self._rewritten |= dict.fromkeys(adds, value.node)
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
        out = self.result("parts", [value for value, _ in given], shape, word="join")
        if not isinstance(out, Signal):
            return out
        probes = [(one, move(View.of(one.shape or ()))) for one, move in given]
        ways = [(one, seen_by(p)) for one, p in probes if isinstance(one, Signal) and p]
        return self.placed(self.moved(out, ways), spot)

    def _shifts_statistics(self, signal: Signal, made: Made) -> bool:
        """Whether a signal is made of a norm's statistics, fewer than the entries of its offset.

        A norm may be written as x * r + (offset - mean * r). A table of positions is added to more.
        """
        stack, size = [signal.node], prod(made.shape or ())
        if not signal.is_direct or not made.parts:
            return False
        while stack:
            node = self.nodes[self._place[stack.pop()]]
            if node.shape is None or node.does not in ("scale", "product", "move", "map"):
                return False
            if prod(node.shape) >= size:
                if not node.inputs:
                    return False
                stack += node.inputs
        return True

    def _is_bias(self, made: Made, tracks: Sequence[Track], rank: int) -> bool:
        """Whether a term added to a weight's result varies along the outputs only (a bias).

        A matrix of which only a vector remains, as after a product with zeros, is not a bias.
        """
        given = [self.parameters[part.name] for part in made.parts]
        if all(parameter.is_bias for parameter in given):
            return True
        first = rank - len(made.shape or ())
        for part, parameter in zip(made.parts, given, strict=True):
            if part.view is None or (part.done and len(parameter.shape) > 1):
                return False
            for axis in range(len(part.view.axes)):
                if part.view.varies(axis) and not all(
                    track.view.axes[first + axis]
                    and all(atom.axis >= 0 for atom in track.view.axes[first + axis])
                    for track in tracks
                ):
                    return False
        return bool(tracks)

    def sum_of(self, name: str, values: Sequence[Value], shape: Shape | None, doing: str) -> Value:
        """Draw an operation whose results are sums of its operands.

        A term that varies along one axis shifts the result of a weight operation or norm. A sum
        with any other constant never vanishes.
        """
        signals = [value for value in values if isinstance(value, Signal)]
        made = [value for value in values if isinstance(value, Made) and not value.zero]
        fact = Fact("", "sum")
        if len(signals) == 1 and made:
            by = made[0]
            is_bias = by.is_vector or self._shifts_statistics(signals[0], by)
            is_shift = signals[0].is_direct and is_bias and not by.number
            fact = Fact("shift", "all" if is_shift and len(made) == 1 else "never")
        elif len(signals) == 1:
            fact = Fact("move")  # the other term is 0
        out = self.entrywise(name, values, shape, doing=doing, word=fact)
        if isinstance(out, Made):
            more = _offset(values, doing)
            own = {part.name for part in out.parts}
            terms = [part for value in made for part in value.parts or (_ADDED,)]
            if len(own) == 1 and all(part.vanishes for part in terms):
                free = [part for part in terms if not part.stopped] or terms
                if all(part.ends for part in free):  # w - mean(w), or w + stop(round(w) - w)
                    return out.factored(own, own)
                out = out.factored((), own)
            parts = tuple(
                part._replace(added=True, offset=part.offset + more if more else 0.0)
                for part in out.parts
            )
            recipe = terms_of(*made) if len(made) == len(values) == 2 else None
            return Made(shape, parts, value=None if made or parts else 0, recipe=recipe)
        if isinstance(out, Signal):
            self.expand(out, "sub" if doing == "subtracted with" else "add", values)
        if isinstance(out, Signal) and len(signals) == 1 and fact.vanishes == "all":
            return out._replace(is_direct=signals[0].is_direct)
        return out

    def _add(
        self,
        name: str,
        a: Signal,
        b: Signal,
        shape: Shape | None,
        word: Literal["add", "sub"] = "add",
    ) -> Signal:
        for signal, bias in ((a, b), (b, a)):
            is_each = bias.chosen and signal.shape == shape and _is_stacked(signal)
            if (
                is_each
                and bias.member
                and self._is_bias(bias.member, signal.fresh, len(shape or ()))
            ):
                self._biases.add(bias.chosen)  # each expert has its own bias
                return signal._replace(tracks=signal.fresh, pieces=(), term=None, places=())
        tracks: tuple[Track, ...] = ()
        # The sum of two results, as in the gates of an LSTM.
        if a.shape == b.shape and len(a.fresh) == len(b.fresh) == 1:
            tracks = a.fresh + b.fresh
        else:
            a.spend()
            b.spend()
        for own, rest in ((a, b), (b, a)):
            self._interpolate(own.node, rest.node)
        inputs = [a.narrow or a.node, b.narrow or b.node]
        wide = [a.node, b.node]
        for at, (own, rest) in enumerate(((a, b), (b, a))):
            is_table = inputs[at] in self._learned and inputs[1 - at] not in self._learned
            if shape is not None and (is_table or _is_for_all(own, rest, shape)):
                if own.shape != shape:
                    inputs[at] = self.draw("other", "copies", (own.node,), shape, (), "move")
                else:
                    inputs[at] = own.node
                wide[at] = inputs[at]
        node = self.draw("add", name, inputs, shape)
        self._sums[node] = a, b
        if inputs != wide:
            self._wide[node] = tuple(wide)
        units = merged(
            unit for one in (a, b) for unit in self.follow(node, one, spread_to(one.shape, shape))
        )
        if word == "sub":
            self._differences[node] = units
        is_direct = a.is_direct and b.is_direct
        out = Signal(node, shape, tracks, a.halves | b.halves, units=units, is_direct=is_direct)
        if self.is_function((a, b), shape):
            self.expand(out, word, (a, b))
        return out

    def _interpolate(self, term: str, part: str) -> None:
        """Make a gated difference no add if it is added to one of its terms: a + g (b - a).

        That is g b + (1 - g) a, where the gate g, computed by weights, is on the skip, too.
        """
        stack, seen, is_gated = [part], set[str](), False
        while stack and self._differences:
            node = self.nodes[self._place[stack.pop()]]
            if node.name in self._differences and term in node.inputs and is_gated:
                self._differences.pop(node.name)
                self.nodes[self._place[node.name]] = replace(node, kind="other")
            elif node.does in ("product", "scale"):
                gates = [name for name in node.inputs if self._after[name][0] >= 0]
                is_gated |= len(gates) > 1
                stack += {*node.inputs} - seen
                seen.update(node.inputs)

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


_ADDED = Part("", None, added=True)  # stands for a constant term


def _offset(values: Sequence[Value], doing: str) -> float:
    """Return the number that a sum adds to a value of parameters; 0 if it adds another value."""
    terms = [value for value in values if isinstance(value, Made)]
    numbers = [term.value for term in terms if not term.parts]
    if len(numbers) != 1 or len(terms) != 2 or numbers[0] is None:
        return 0.0
    if doing == "subtracted with":
        return -numbers[0] if terms[0].parts else 0.0
    return numbers[0]


def _is_for_all(one: Signal, other: Signal, shape: Shape) -> bool:
    """Whether a signal was copied for every member of a map over weights that returned `other`."""
    if one.shape is None or other.shape != shape or not other.tracks:
        return False
    more = len(shape) - len(one.shape)
    lacking = {*range(more), *(axis + more for axis in one.spread)}
    lacking |= {k + more for k, size in enumerate(one.shape) if size != shape[k + more]}
    if not lacking or lacking != {*range(len(lacking))}:
        return False

    def is_member(track: Track, axis: int) -> bool:
        kinds, atoms = track.operation.kinds or (), track.view.axes[axis]
        axes = {atom.axis for atom in atoms}
        firsts = {k for k, kind in enumerate(kinds) if kind == "B" or "O" in kinds[k + 1 :]}
        return bool(axes) and axes <= firsts

    return any(all(is_member(track, axis) for axis in lacking) for track in other.tracks)


def _is_stacked(signal: Signal) -> bool:
    """Whether a signal is the result of matrices chosen from a stack, as experts are."""
    return any(track.operation.each for track in signal.fresh)
