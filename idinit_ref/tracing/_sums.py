"""Internal: sums of signals, entry by entry or at some places, and of parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from math import prod
from typing import Any, Literal

from ._at_zero import AtZero, at_zero, is_flat
from ._forms import Form, Share, opened, within
from ._functions import Fact
from ._made import Made, Part, Shape, offset_of, slope_of
from ._recipes import terms_of
from ._terms import Terms
from ._units import merged, spread_to
from ._values import Data, Signal, Track, Value, is_zero

__all__ = ["Sums"]

_Word = Literal["add", "sub"]


class Sums(Terms):
    """A drawing with sums."""

    # Terms ----------------------------------------------------------------------------------

    def _opened(self, signal: Signal, stops: Collection[str] = ()) -> Form:
        """Return a signal as a sum of terms, if numbers, odd terms or `stops` are among them."""

        def is_odd(one: Signal) -> bool:
            return self._at_0(Share(one), one.shape) != 0

        return opened(signal, self._forms, stops, is_odd) or Form((Share(signal),))

    def _shifted(self, values: Sequence[Value], doing: str) -> Form | None:
        """Return a sum or difference of a signal and a known number as its terms, or None."""
        if len(values) != 2 or sum(isinstance(value, Signal) for value in values) != 1:
            return None
        found = Form()
        for value, by in zip(values, (1, -1 if doing == "subtracted with" else 1), strict=True):
            if isinstance(value, Signal):
                found = found.plus(Form((Share(value, by),)))
            elif isinstance(value, Made) and not value.parts and value.value:
                found = found.plus(Form((), value.value * by))
            else:
                return None
        return found

    def _simplified(
        self, name: str, form: Form, values: Sequence[Value], shape: Shape | None
    ) -> Value | None:
        """Draw a sum by its terms if some of these cancel; None if they do not.

        x + c (f - x) is (1 - c) x + c f, and x + exp(f) - 1 is x + (exp(f) - 1).
        """
        trees = [within(share.signal, self._forms) for share in form.shares]
        stops = trees[0] & trees[1] if len(trees) > 1 else ()
        parts = [self._opened(s.signal, stops).times(s.by) for s in form.shares]
        a, b = (*parts, Form())[:2]
        whole = a.plus(b).plus(Form((), form.number))
        values_at_0 = [self._at_0(share, shape) for share in whole.shares]
        group = [share for share, at in zip(whole.shares, values_at_0, strict=True) if at]
        near = at_zero("add", [sum(values_at_0), whole.number]) if group and whole.number else None
        is_function = near is not None and not near.value and len(group) < len(whole.shares)
        is_gone = not whole.number and any(part.number for part in (a, b, form))
        if not (is_function or is_gone or a.takes(b)):
            return None
        if any(share.signal.shape != shape for share in whole.shares):
            return None
        rest = [share for share in whole.shares if not is_function or share not in group]
        out = self._total(name, rest, shape)
        number = Made((), number=True, value=whole.number)
        if is_function:
            function = self.sum_of(
                name, (self._total(name, group, shape), number), shape, "added to"
            )
            if not isinstance(out, Signal) or not isinstance(function, Signal):
                return None
            out = self._combined(name, out, function, shape, "add")
        elif whole.number:
            out = self.sum_of(name, (out, number), shape, "added to")
        self._pass(values, {share.signal.node for share in whole.shares})
        return out

    def _at_0(self, share: Share, shape: Shape | None) -> float:
        """Return a term where the signals before it are zero; 0 if that is not known."""
        near = None if share.gates else self._near_zero(share.signal, shape)
        return share.by * near.value if isinstance(near, AtZero) else 0.0

    def _total(self, name: str, shares: Sequence[Share], shape: Shape | None) -> Value:
        """Draw the sum of some terms; those of one signal are one, times a sum of gates."""
        out: Value = Made(shape, value=0)
        shares = sorted(shares, key=lambda share: share.by < 0)
        for node in dict.fromkeys(share.signal.node for share in shares):
            own = [share for share in shares if share.signal.node == node]
            number, term = sum(share.by for share in own if not share.gates), own[0].signal
            if len(own) > 1 or own[0].gates:
                by: Value = Made((), number=True, value=number)
                for share in own:
                    by = self._gated(name, by, share) if share.gates else by
                out = self._plus(name, out, self.multiply(name, term, by, shape), shape)
            elif number < 0 and not is_zero(out):
                out = self._plus(name, out, self._times(name, term, -number), shape, "sub")
            elif number:
                out = self._plus(name, out, self._times(name, term, number), shape)
        return out

    def _plus(
        self, name: str, a: Value, b: Value, shape: Shape | None, word: _Word = "add"
    ) -> Value:
        """Draw a sum or difference of terms as it stands."""
        if not isinstance(a, Signal) or not isinstance(b, Signal):
            return b if is_zero(a) else self.add(name, a, b, shape)
        if word == "sub" and self.is_of_one(a, b):
            return self.sum_of(name, (a, b), shape, "subtracted with")
        return self._combined(name, a, b, shape, word)

    def _gated(self, name: str, by: Value, share: Share) -> Value:
        """Draw a sum with the gates of a term, times its number."""
        gate = reduce(lambda a, b: self.multiply(name, a, b, a.shape), share.gates)
        gate = self._times(name, gate, abs(share.by))
        if share.by > 0:
            return gate if is_zero(by) else self.add(name, by, gate, gate.shape)
        return self.subtract(name, by, gate, gate.shape)

    def _times(self, name: str, value: Value, by: float) -> Value:
        """Draw a value times a number."""
        number = Made((), number=True, value=by)
        if by == 1:
            return value
        return self.scale(name, [value, number], value.shape, "multiplied by", "mul")

    def _pass(self, values: Sequence[Value], terms: Collection[str]) -> None:
        """Drop the sums that were drawn as others, down to their terms, if nothing reads them."""
        stack = [value.node for value in values if isinstance(value, Signal)]
        while stack:
            node = stack.pop()
            if node not in terms and node not in self.fates.passed:
                self.fates.passed[node] = ""
                form = self._forms.get(node)
                stack += self.node(node).inputs if form else ()

    # Entry by entry -------------------------------------------------------------------------

    def scale(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        doing: str = "",
        word: str = "div",
    ) -> Value:
        """Draw a product with numbers, a quotient by them, or a change of sign."""
        out = super().scale(name, values, shape, doing, word)
        by = _factor(values, word)
        if isinstance(out, Signal) and by and self.node(out.node).does == "scale":
            (signal,) = (value for value in values if isinstance(value, Signal))
            self._forms.setdefault(out.node, Form((Share(signal, by),)))
        return out

    def multiply(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw an elementwise product: a scaling, a gate, or half of a matrix product.

        x (1 + f(x)) is x + x f(x), a residual add, if f(x) vanishes with its weights. But 1 - f(x)
        is a gate on x, as in a highway.
        """
        for factor, by in ((a, b), (b, a)):
            if isinstance(factor, Signal) and isinstance(by, Signal) and factor.shape == shape:
                gate, move = self._moves.get(by.node, (by, lambda value: value))  # a broadcast
                form = self._opened(gate)
                if form.number and self._is_of_factor(form, factor):
                    self._pass([by], {share.signal.node for share in form.shares})
                    rest = move(self._total(name, form.shares, gate.shape))
                    whole = self._times(name, factor, form.number)
                    return self.add(name, whole, self.multiply(name, factor, rest, shape), shape)
        out = super().multiply(name, a, b, shape)
        for signal, gate in ((a, b), (b, a)):
            if not isinstance(out, Signal) or not isinstance(signal, Signal):
                continue
            inner = self._forms.get(signal.node)
            while inner is not None and len(inner.shares) == 1 and not inner.number:
                inner = self._forms.get(inner.shares[0].signal.node)
            if inner is not None and len(inner.shares) > 1 and signal.shape == shape:
                self._forms.setdefault(out.node, Form((Share(signal, 1.0, (gate,)),)))
        return out

    def _is_of_factor(self, form: Form, factor: Signal) -> bool:
        """Whether terms are added to a number, and vanish with weights after a factor."""
        for share in form.shares:
            name, near = share.signal.node, self._near_zero(share.signal, share.signal.shape)
            is_gone = isinstance(near, AtZero) and not near.value and not share.gates
            is_after = self._after[name][0] > self.place[factor.node]
            inner = self._forms.get(name, Form()).shares
            sign = inner[0].by if len(inner) == 1 else 1.0  # of -f
            if not is_gone or not is_after or share.by * sign * form.number < 0:
                return False
            if not self._comes_from([name], [factor.node]):
                return False
        return True

    def add(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a sum of two values, entry by entry."""
        if isinstance(a, Signal) and isinstance(b, Signal):
            found = self._simplified(name, Form((Share(a), Share(b))), (a, b), shape)
            found = (
                found or self._reordered(name, a, b, shape) or self._reordered(name, b, a, shape)
            )
            return found or self._combined(name, a, b, shape, "add")
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
            self.note_addends(a.node, b, shape)
            return a._replace(tracks=a.fresh, picks=False, member=None, **_SHIFTED)
        is_table = (b.is_table and not self._lies_along(a, b, shape)) or self.tables_in(b)
        if is_table and self.floats(b):
            return self._add(name, a, self.data(b), shape)
        return self.sum_of(name, (a, b), shape, "added to")

    def subtract(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a difference of two values, entry by entry.

        Of two signals it is a sum, unless one is a function of the other, as a mean is, or
        :func:`distances` says otherwise.
        """
        if isinstance(a, Signal) and isinstance(b, Signal) and not self.is_of_one(a, b):
            found = self._simplified(name, Form((Share(a), Share(b, -1.0))), (a, b), shape)
            return found or self._combined(name, a, b, shape, "sub")
        return self.sum_of(name, (a, b), shape, "subtracted with")

    def _combined(self, name: str, a: Signal, b: Signal, shape: Shape | None, word: _Word) -> Value:
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

    def _shifts_statistics(self, signal: Signal, made: Made) -> bool:
        """Whether a signal is made of a norm's statistics, fewer than the entries of its offset.

        A norm may be written as x * r + (offset - mean * r). A table of positions is added to more.
        """
        stack, size = [signal.node], prod(made.shape or ())
        if not signal.is_direct or not made.parts:
            return False
        while stack:
            node = self.node(stack.pop())
            if node.shape is None or node.does not in ("scale", "product", "move", "map"):
                return False
            if prod(node.shape) >= size:
                if not node.inputs:
                    return False
                stack += node.inputs
        return True

    def _reordered(self, name: str, a: Signal, b: Signal, shape: Shape | None) -> Value | None:
        """Draw (x + c) + y as x + (y + c), if c is a bias of y, and y does not read x + c."""
        if a.node not in self._shifts or not a.shape == b.shape == shape:
            return None
        signal, made = self._shifts[a.node]
        is_bias = signal.shape == shape and self._is_bias(made, b.fresh, len(shape or ()))
        if not is_bias or self._comes_from([b.node], [a.node]):
            return None
        self._pass([a], {signal.node})
        return self.add(name, signal, self.add(name, b, made, shape), shape)

    def sum_of(self, name: str, values: Sequence[Value], shape: Shape | None, doing: str) -> Value:
        """Draw an operation whose results are sums of its operands.

        A term that varies along one axis shifts the result of a weight operation or norm. A sum
        with any other constant never vanishes.
        """
        signals = [value for value in values if isinstance(value, Signal)]
        made = [value for value in values if isinstance(value, Made) and not value.zero]
        left: list[Value] = [*signals, *made]
        is_plain = len(values) > 1 and not any(isinstance(value, Data) for value in values)
        if is_plain and len(left) == 1 and left[0].shape == shape:
            return left[0]  # the other term is 0
        fact, form = Fact("", "sum"), self._shifted(values, doing)
        if form is not None:
            found = self._simplified(name, form, values, shape)
            if found is not None:
                return found
        if len(signals) == 1 and made:
            by = made[0]
            is_bias = by.is_vector or self._shifts_statistics(signals[0], by)
            is_shift = signals[0].is_direct and is_bias and not by.number
            fact = Fact("shift", "all" if is_shift and len(made) == 1 else "never")
        elif len(signals) == 1:
            fact = Fact("move")  # the other term is 0
        out = self.entrywise(name, values, shape, doing=doing, word=fact)
        if isinstance(out, Made):
            more = offset_of(values, doing)
            own = {part.name for part in out.parts}
            terms = [part for value in made for part in value.parts or (_ADDED,)]
            if len(own) == 1 and all(part.vanishes for part in terms):
                free = [part for part in terms if not part.stopped] or terms
                slope = slope_of(made, doing)
                flat = slope is not None and is_flat(slope)  # w - tanh(w)
                if all(part.ends for part in free) and not flat:
                    return out.factored(own, own)  # w - mean(w), or w + stop(round(w) - w)
                out = out.factored((), own)
            parts = tuple(
                part._replace(added=True, offset=part.offset + more if more else 0.0)
                for part in out.parts
            )
            recipe = terms_of(*made) if len(made) == len(values) == 2 else None
            return Made(shape, parts, value=None if made or parts else 0, recipe=recipe)
        if isinstance(out, Signal):
            if fact.does == "shift" and len(made) == 1:
                self.note_addends(out.node, made[0], shape)
                if fact.vanishes == "never" and doing == "added to" and made[0].parts:
                    self._shifts[out.node] = signals[0], made[0]
            self.expand(out, "sub" if doing == "subtracted with" else "add", values)
            if form is not None and self.node(out.node).does == "shift":
                self._forms[out.node] = form
        if isinstance(out, Signal) and len(signals) == 1 and fact.vanishes == "all":
            return out._replace(is_direct=signals[0].is_direct)
        return out

    def _add(
        self,
        name: str,
        a: Signal,
        b: Signal,
        shape: Shape | None,
        word: _Word = "add",
    ) -> Signal:
        for signal, bias in ((a, b), (b, a)):
            is_each = bias.chosen and signal.shape == shape and _is_stacked(signal)
            if (
                is_each
                and bias.member
                and self._is_bias(bias.member, signal.fresh, len(shape or ()))
            ):
                self.used.biases.add(bias.chosen)  # each expert has its own bias
                return signal._replace(tracks=signal.fresh, **_SHIFTED)
        tracks = self._terms_in(a, b, shape)
        for signal in (a, b):
            if not tracks or signal.shape != shape:
                signal.spend()
        inputs = [a.narrow or a.node, b.narrow or b.node]
        wide = [a.node, b.node]
        for at, (own, rest) in enumerate(((a, b), (b, a))):
            is_table = inputs[at] in self.learned.nodes and inputs[1 - at] not in self.learned.nodes
            if shape is not None and (is_table or _is_for_all(own, rest, shape)):
                if own.shape != shape:
                    inputs[at] = self.draw("other", "copies", (own.node,), shape, (), "move")
                else:
                    inputs[at] = own.node
                wide[at] = inputs[at]
        node = self.draw("add", name, inputs, shape)
        self._sums[node] = a, b
        if inputs != wide:
            self.fates.wide[node] = tuple(wide)
        units = merged(
            unit for one in (a, b) for unit in self.follow(node, one, spread_to(one.shape, shape))
        )
        if word == "sub":
            self.axes.differences[node] = units
        is_direct = a.is_direct and b.is_direct
        halves = self._halves_in(a, b) | self._halves_in(b, a)
        out = Signal(node, shape, tracks, halves, units=units, is_direct=is_direct)
        if self.is_function((a, b), shape):
            self.expand(out, word, (a, b))
        if a.shape == b.shape == shape and self.node(node).kind == "add":
            self._forms[node] = Form((Share(a), Share(b, 1.0 if word == "add" else -1.0)))
        return out


_SHIFTED: dict[str, Any] = {
    "pieces": (),
    "term": None,
    "places": (),
    "patches": None,
    "mixture": None,
}  # facts on a signal that no longer hold once a bias is added
_ADDED = Part("", None, added=True)  # stands for a constant term


def _factor(values: Sequence[Value], word: str) -> float | None:
    """Return the number by which an operation multiplies a signal, if it is known."""
    if len(values) == 1:
        return -1.0 if word == "neg" and isinstance(values[0], Signal) else None
    numbers = [value.value for value in values if isinstance(value, Made) and not value.parts]
    is_pair = len(values) == 2 and len(numbers) == 1
    if not is_pair or not numbers[0] or not any(isinstance(value, Signal) for value in values):
        return None
    return 1 / numbers[0] if word == "div" else numbers[0]


def _is_for_all(one: Signal, other: Signal, shape: Shape) -> bool:
    """Whether a signal was copied for every member of a map over weights that returned `other`."""
    if one.shape is None or other.shape != shape or not other.tracks:
        return False
    more = len(shape) - len(one.shape)
    lacking = {*range(more), *(axis + more for axis in one.spread)}
    lacking |= {k + more for k, size in enumerate(one.shape) if size != shape[k + more]}

    def is_over_members(track: Track) -> bool:
        kinds = track.operation.kinds or ()
        own = [{atom.axis for atom in atoms} for atoms in track.view.axes]
        members = set[int]().union(*(own[axis] for axis in lacking))
        kept = {k for axis, axes in enumerate(own) if axis not in lacking for k in axes if k >= 0}
        is_apart = all(own[axis] and min(own[axis]) >= 0 for axis in lacking)
        is_matrix = any(kinds[k] == "O" for k in kept - members)
        return is_apart and is_matrix and all(kinds[k] in "BO" for k in members)

    return bool(lacking) and any(map(is_over_members, other.tracks))


def _is_stacked(signal: Signal) -> bool:
    """Whether a signal is the result of matrices chosen from a stack, as experts are."""
    return any(track.operation.each for track in signal.fresh)
