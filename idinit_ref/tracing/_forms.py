"""Internal: sums as their terms, each times a number and gates."""

from __future__ import annotations

from typing import NamedTuple

from ._values import Signal, Value

__all__ = ["Form", "Share"]

_MOST = 8  # the most terms of a sum that are followed


class Share(NamedTuple):
    """A term of a sum: a signal times a number and gates."""

    signal: Signal
    by: float = 1.0
    gates: tuple[Value, ...] = ()


class Form(NamedTuple):
    """A sum of some terms and a number."""

    shares: tuple[Share, ...] = ()
    number: float = 0.0

    @property
    def is_short(self) -> bool:
        """Whether it has so few terms that it is worth to be followed."""
        return len(self.shares) <= _MOST

    def times(self, by: float, *gates: Value) -> Form:
        """Return it times a number; times gates, if it has no number."""
        shares = (
            share._replace(by=share.by * by, gates=(*share.gates, *gates)) for share in self.shares
        )
        return Form(tuple(shares), self.number * by)

    def plus(self, other: Form) -> Form:
        """Return a sum of two, in which equal terms are one.

        >>> x, f = Signal("x"), Signal("f")
        >>> step = Form((Share(f), Share(x, -1.0))).times(0.25)
        >>> [(term.signal.node, term.by) for term in Form((Share(x),)).plus(step).shares]
        [('x', 0.75), ('f', 0.25)]
        """
        found: list[Share] = []
        for share in (*self.shares, *other.shares):
            for at, old in enumerate(found):
                if old.signal.node == share.signal.node and old.gates == share.gates:
                    found[at] = old._replace(by=old.by + share.by)
                    break
            else:
                found.append(share)
        return Form(tuple(found), self.number + other.number)

    def takes(self, other: Form) -> bool:
        """Whether a part of one of its terms is taken away by another sum, or the other way round.

        >>> x, f = Signal("x"), Signal("f")
        >>> terms = Form((Share(f), Share(x, -0.5)))
        >>> terms.takes(Form((Share(x),))), terms.takes(Form((Share(x, 0.5),)))
        (True, False)
        """
        return any(
            one.signal.node == two.signal.node
            and min(one.by, two.by) <= 0 <= max(one.by, two.by)
            and (one.by + two.by != 0 or one.gates != two.gates)
            for one in self.shares
            for two in other.shares
        )
