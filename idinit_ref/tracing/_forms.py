"""Internal: sums as their terms, each times a number and gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ._values import Signal, Value

__all__ = ["Form", "Share", "opened", "within"]

_MOST = 8  # the most terms of a sum that are followed
_DEPTH = 6  # the most sums within each other


class Share(NamedTuple):
    """A term of a sum: a signal times a number and gates."""

    signal: Signal
    by: float = 1.0
    gates: tuple[Value, ...] = ()


class Form(NamedTuple):
    """A sum of some terms and a number."""

    shares: tuple[Share, ...] = ()
    number: float = 0.0

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


def within(signal: Signal, forms: Mapping[str, Form], depth: int = _DEPTH) -> set[str]:
    """Return the nodes of a signal, of its terms, and of theirs."""
    found, form = {signal.node}, forms.get(signal.node)
    for share in form.shares if form and depth else ():
        found |= within(share.signal, forms, depth - 1)
    return found


def opened(
    signal: Signal,
    forms: Mapping[str, Form],
    stops: Collection[str],
    is_odd: Callable[[Signal], bool],
    depth: int = _DEPTH,
) -> Form | None:
    """Return a signal as its terms, as far as numbers, odd terms or `stops` are among them.

    Return None if none is: the signal is a term itself.
    """
    form = forms.get(signal.node)
    if form is not None and depth and signal.node not in stops:
        total, is_open = Form((), form.number), bool(form.number)
        for share in form.shares:
            part = opened(share.signal, forms, stops, is_odd, depth - 1)
            if part is not None and part.number and share.gates:
                return None
            is_open |= part is not None
            part = part or Form((Share(share.signal),))
            total = total.plus(part.times(share.by, *share.gates))
        if is_open and len(total.shares) <= _MOST:
            return total
    return Form((Share(signal),)) if signal.node in stops or is_odd(signal) else None
