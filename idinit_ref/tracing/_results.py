"""Internal: operations of any kind, of which only the plain name is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, prod
from typing import Literal

from ..roles.graph import ROOTS, STEPS
from ._at_zero import AtZero, at_zero, is_flat
from ._functions import Fact, fact_of
from ._made import Made, Shape, joined, names_of
from ._makers import matrices_in
from ._paths import Paths
from ._places import Runs
from ._resolution import copied_axes, is_finer
from ._summed import multiplied, rejoined
from ._tables import ON_DATA
from ._units import Unit, merged, spread_to
from ._values import Data, Signal, Track, Value, is_constant, is_zero

__all__ = ["MOST", "Results", "done_by", "faded", "spread"]

MOST = 4  # the most results that are followed at once
_ROOT = 2  # the mark of a root of statistics
_FACTORS = {"mul": (0, 1), "div": (0,), "weight_norm": (1,), "norm": (0,)}
"""The positions of an operation's operands that are factors of the result."""
_KEEPS = {"softmax", "norm", "attention"}  # a part of a packed result, such as a head


class Results(Paths):
    """A drawing with operations by their plain names."""

    def result(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        floating: bool = True,
        word: str | Fact = "",
        under: Runs | None = None,
        passes: bool = False,
    ) -> Value:
        """Draw an operation that depends on some values in any way.

        `word` is its plain name, as :func:`fact_of` lists it, or its facts; "" means that the
        result is zero if all these values are. `under` are the entries that a write covers. An
        operation that `passes` entries on does not use a packed result as a whole.
        """
        fact = fact_of(word) if isinstance(word, str) else word
        if word == "scatter" and floating and len(values) > 1:
            found = self._written_back(name, values, shape, under)
            if found is not None:
                return found
        if fact.does in ON_DATA and floating:
            values = self.as_data(values, fact)
        if floating and _makes_zero(values, fact):
            return self.zeros(name, values, shape)
        signals = [value for value in values if isinstance(value, Signal)]
        if not signals and not any(isinstance(value, Data) for value in values):
            made = joined(shape, [v for v in values if isinstance(v, Made)]).lost(shape)
            of = [v for v in values if isinstance(v, Made) and v.parts]  # constants do not count
            is_linear = len(of) == 1 and fact == Fact("pool") and word not in ROOTS
            linear = made.parts if is_linear else ()
            ends = [part.name for part in linear if part.ends]
            made = made.factored(ends, [part.name for part in linear if part.vanishes])
            return made.noted(done_by("", name, [])) if fact.vanishes == "never" else made
        for signal in signals:
            if not passes or signal.shape != shape:
                signal.spend()
        out: Data | Signal = Data(shape)
        if floating and signals:
            out = self._drawn(name, values, signals, shape, fact)
            if isinstance(word, str):
                self._note_root(out.node, word.replace("_", ""))
            if word == "scatter":
                self.note_write(out.node, *values[:2])
        elif floating:
            out = Signal(self.draw("input", name, (), shape), shape)
        for value in values:
            if isinstance(value, Made):
                self.use(value, "other", out.node if isinstance(out, Signal) else None)
        return out

    def _written_back(
        self, name: str, values: Sequence[Value], shape: Shape | None, under: Runs | None
    ) -> Value | None:
        """Return a write as a sum of signals, if it is one: see :class:`Writes`."""
        return None

    def zeros(self, name: str, values: Sequence[Value], shape: Shape | None) -> Value:
        """Draw the zeros that an operation makes of some values; without signals, a constant."""
        signals = [value for value in values if isinstance(value, Signal)]
        for signal in signals:
            signal.spend()
        if not signals:
            return Made(shape, value=0)
        return Signal(self.draw("other", name, (), shape), shape)

    def _drawn(
        self,
        name: str,
        values: Sequence[Value],
        signals: Sequence[Signal],
        shape: Shape | None,
        fact: Fact,
    ) -> Signal:
        """Draw an operation on signals."""
        inputs = list(dict.fromkeys(signal.node for signal in signals))
        counted = values[: fact.of]
        at = [k for k, value in enumerate(counted) if isinstance(value, Signal)]
        places = [inputs.index(counted[k].node) for k in at]  # type: ignore[union-attr]  # signals
        does, when = fact.does, fact.vanishes
        vanishes: Literal["all", "never"] | tuple[int, ...] = "all"
        sums: tuple[int, ...] = ()
        if when in ("sum", "max", "min"):
            rest = [value.extent for value in counted if isinstance(value, Made)]
            least = 0 if when != "max" else -inf
            largest = 0 if when != "min" else inf
            is_zero = all(c is not None and least <= c[0] <= c[1] <= largest for c in rest)
            vanishes = "all" if is_zero else "never"
        elif when == "never":
            vanishes = "never"
        elif when != "all":
            which = at if when == "each" else when
            enough = {place for k, place in zip(at, places, strict=True) if k in which}
            vanishes = tuple(sorted(enough)) or "never"
            if does == "attention":
                sums = tuple(sorted({*places[:2]} - enough))
            elif len(at) == 1:
                does = "scale" if does == "product" else does
                vanishes = "all" if enough else "never"
            elif when == "each" and len({self.root.get(inputs[k], inputs[k]) for k in places}) == 1:
                vanishes = "all"  # a square
        gathers = fact == Fact("select", (0,))
        repeats = gathers or does in ("move", "scale")
        if len(signals) == 1 and repeats and is_finer(signals[0], shape, gathers):
            does = "resize"
        node = self.draw("other", name, inputs, shape, (), does, vanishes, sums)
        is_direct = does == "norm" or (
            does == "scale" and len(signals) == 1 and signals[0].is_direct
        )
        units: list[Unit] = []
        for signal in signals:
            own = self.follow(node, signal, spread_to(signal.shape, shape))
            if does == "product" and len(inputs) > 1:
                own = self.factor(node, inputs.index(signal.node), own)
                is_direct |= self._pooled.get(signal.node) == _ROOT  # a norm written as a division
            units += own
        halves = multiplied(signals) if does in _KEEPS else frozenset()
        if does == "join":
            halves = rejoined(signals)
        return Signal(node, shape, halves=halves, units=merged(units), is_direct=is_direct)

    def _note_root(self, node: str, word: str) -> None:
        """Record that a node is a root of statistics, as the divisor of a norm, or a variance.

        A root that depends on no weight also counts: it may be of a running variance among the
        inputs.
        """
        is_given = self._after[node][0] < 0
        if word in ROOTS and (self._pooled[node] or word == "std" or is_given):
            self._pooled[node] = _ROOT
        elif word == "var":
            self._pooled[node] = max(self._pooled[node], 1)

    def other(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        floating: bool = True,
        word: str | Fact = "",
    ) -> Value:
        """Draw an operation that maps its operands' axes to its result's in an unknown way."""
        out = self.result(name, values, shape, floating, word)
        if isinstance(out, Made):
            return out.noted(done_by("", name, []))
        for value in values:
            for part in value.parts if isinstance(value, Made) else ():
                self.used.met.setdefault(part.name, name)
        return out

    def spectrum(
        self, name: str, value: Value, shape: Shape | None, floating: bool = True
    ) -> Value:
        """Draw the singular values or eigenvalues of a matrix, or its vectors: these are never 0.

        The values have one axis less than the matrix.
        """
        is_values = len(shape or ()) < len(value.shape or ())
        return self.other(name, [value], shape, floating, "pool" if is_values else "basis")

    def entrywise(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        floating: bool = True,
        doing: str = "",
        word: str | Fact = "",
    ) -> Value:
        """Draw an elementwise operation, which broadcasts its operands.

        `doing` describes its effect on an operand: "multiplied by". `word` is its plain name, if
        that differs from `name`.
        """
        if word == "identity" and isinstance(values[0], Made) and all(map(is_constant, values[1:])):
            return values[0]
        out = self.result(name, values, shape, floating, word or name, passes=True)
        if isinstance(out, Made) and out.parts:
            out = self._of_parameters(name, values, shape, doing, word or name)
            plain = word if word and isinstance(word, str) else name
            out = out.stepped(plain) if not floating or plain in STEPS else out
        if isinstance(out, Made):
            rooted = any(value.rooted for value in values if isinstance(value, Made))
            rooted |= (word or name) in ROOTS and prod(shape or ()) > 1
            return out._replace(rooted=rooted)
        if isinstance(out, Signal):
            signals = [value for value in values if isinstance(value, Signal)]
            halves = frozenset().union(*(signal.halves for signal in signals))
            tracks = faded([signal for signal in signals if signal.shape == shape])
            out = out._replace(tracks=tracks, halves=halves)
            self.expand(out, word or name, values)
            self.used.narrow |= {(made, out.node) for made in matrices_in(values, shape)}
            return out._replace(spread=copied_axes(values, shape))
        return out

    def _of_parameters(
        self, name: str, values: Sequence[Value], shape: Shape | None, doing: str, word: str | Fact
    ) -> Made:
        """Return the result of an elementwise operation on parameters."""
        found, factors, still = [], set(), set()
        places = _factors(word, values)
        zeros = places or _zeros(word, values)
        plain = word if isinstance(word, str) else name  # a name may begin with its scope
        for at, value in enumerate(values):
            if not isinstance(value, Made) or not value.parts:
                continue
            rest = [operand for operand in values if operand is not value]
            made = spread(value, shape)
            others = [*values[:at], *values[at + 1 :]]  # in v * v, v is no factor
            by = [
                p for v in others if isinstance(v, Made) for p in v.parts if p.still or not p.added
            ]
            names = {part.name for part in by if word != "mul" or not part.vanishes}
            new = {part.name for part in made.parts if part.vanishes and part.name not in names}
            still |= new if at in zeros else set()
            if at in places:  # 0 / (0 + e) is 0, and 0 / 0 is not
                made = made.multiplied({part.name for part in by})
            factors |= {part.name for part in made.parts if part.factor}
            found.append(made.noted(done_by(doing, plain, rest)))
        out = joined(shape, found).factored(factors if places else (), still)  # of a square: none
        if _is_beyond(word, values):
            out = out._replace(parts=tuple(part._replace(added=True) for part in out.parts))
        return out.sloped(_slope(word) if places == [0] else None)


def _factors(word: str | Fact, values: Sequence[Value]) -> Sequence[int]:
    """Return the positions of an elementwise operation's operands that are factors of the result.

    One such operand is 0, and so is the result, to first order: in a choice between a value and
    zeros, too, and in a function of one value with a slope at 0.
    """
    fact = fact_of(word) if isinstance(word, str) else word
    if isinstance(word, str) and word in _FACTORS:
        return _FACTORS[word]
    if (fact.does, fact.vanishes) == ("select", "sum"):
        chosen = [at for at, value in enumerate(values[: fact.of]) if not is_zero(value)]
        return chosen if len(chosen) == 1 else ()
    own = [at for at, value in enumerate(values) if isinstance(value, Made) and value.parts]
    if len(own) != 1 or not isinstance(word, str):
        return ()
    rest = [value.extent for value in values if is_constant(value)]
    if fact.vanishes in ("max", "min"):  # to a bound beyond 0
        is_max = fact.vanishes == "max"
        return own if all(by and (by[1] < 0 if is_max else by[0] > 0) for by in rest) else ()
    slope = _slope(word) if own == [0] else None
    return own if slope is not None and not is_flat(slope) else ()


def _slope(word: str | Fact) -> float | None:
    """Return the slope of a function at 0, if it is 0 there; None if that is unknown."""
    near = at_zero(word, [AtZero(0.0, {"": 1.0})]) if isinstance(word, str) else None
    return None if near is None or near.value else near.slopes[""]


def _is_beyond(word: str | Fact, values: Sequence[Value]) -> bool:
    """Whether a result is bounded to numbers beyond 0, as a sum with such a number is."""
    fact = fact_of(word) if isinstance(word, str) else word
    bounds = [value.extent for value in values if is_constant(value)]
    is_bounded = word == "offset" or fact.vanishes in ("max", "min")
    return is_bounded and any(by and (by[0] > 0 or by[1] < 0) for by in bounds)


def _zeros(word: str | Fact, values: Sequence[Value]) -> Sequence[int]:
    """Return the position of an operand with which a function of it vanishes, to any order."""
    fact = fact_of(word) if isinstance(word, str) else word
    own = [at for at, value in enumerate(values) if isinstance(value, Made) and value.parts]
    return own if own == [0] and (fact.does, fact.vanishes) == ("map", "all") else ()


def _makes_zero(values: Sequence[Value], fact: Fact) -> bool:
    """Whether constant zeros among its operands make an operation's result zero."""
    if not fact.does or any(isinstance(value, Made) and value.parts for value in values):
        return False
    zeros = [is_zero(value) for value in values[: fact.of]]
    if isinstance(fact.vanishes, tuple):
        return any(zeros[at] for at in fact.vanishes if at < len(zeros))
    if fact.vanishes == "each":
        return any(zeros)
    return fact.vanishes != "never" and bool(zeros) and all(zeros)


def spread(value: Made, shape: Shape | None) -> Made:
    """Return a value of parameters, broadcast by an elementwise operation."""
    old = value.shape
    if old is None or shape is None or len(old) > len(shape):
        return value.lost(shape)
    places = range(len(shape) - len(old), len(shape))
    if any(old[k] not in (1, shape[place]) for k, place in enumerate(places)):
        return value.lost(shape)
    return value.moved(shape, lambda view: view.broadcast(shape, places, old))


def done_by(doing: str, name: str, rest: Sequence[Value]) -> Callable[[str], str]:
    """Describe the effect of an operation on an operand, given the other operands."""
    names = names_of(rest)

    def done(own: str) -> str:
        if not rest or not doing:
            return f"changed by {name}"
        if own in names:
            return f"{doing} what is computed from it"
        if any(isinstance(value, (Signal, Data)) for value in rest):
            return f"{doing} what is computed from the inputs"
        return f"{doing} {', '.join(names) or 'a constant array'}"

    return done


def faded(signals: Sequence[Signal]) -> tuple[Track, ...]:
    """Return the operations of which functions of each entry are the result; none if too many."""
    each = (track._replace(is_faded=True) for signal in signals for track in signal.tracks)
    tracks = tuple(dict.fromkeys(each))
    if len(tracks) <= MOST:
        return tracks
    for signal in signals:
        signal.spend()
    return ()
