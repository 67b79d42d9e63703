"""Internal: functions of signals that a model writes out in single operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ._at_zero import AtZero, at_zero, is_flat
from ._functions import Fact
from ._made import Made, Shape
from ._tables import Tables
from ._units import spread_to
from ._values import Signal, Value

__all__ = ["Functions"]

_SCALES = {("mul", True, False), ("mul", False, True), ("div", True, False)}
"""Products and quotients of one signal, and the position of that."""


class Functions(Tables):
    """A drawing with functions that are judged as a whole."""

    def expand(self, out: Signal, word: str | Fact, values: Sequence[Value]) -> None:
        """Record the value of an elementwise operation where its signals are zero.

        Where it is 0, but what it is computed from is not, the node is made a function of the
        signals. It is one of second order where its slopes are 0.
        """
        terms = [self._near_zero(value, out.shape) for value in values]
        known = [term for term in terms if term is not None]
        if isinstance(word, str) and known == terms:
            found = at_zero(word, known)
        else:
            found = _scaled(word, values, known)
        if found is None:
            return
        flat = {is_flat(slope) for slope in found.slopes.values()}
        cancels = flat == {True} and len(found.slopes) == 1  # tanh(h) - h
        if not found.value and (cancels or any(getattr(term, "value", 0) for term in known)):
            if len(flat) != 1:
                return  # of first order in one signal, and of second order in another
            self._make_function(out, tuple(found.slopes), "product" if True in flat else "map")
        self._at_zero[out.node] = found

    def is_function(self, terms: Sequence[Signal], shape: Shape | None) -> bool:
        """Whether a sum is no skip and a branch that is added to it, but a function of signals.

        Such is a sum of functions of one signal, or of functions none of which is zero at zero.
        """
        near = [self._near_zero(term, shape) for term in terms]
        known = [term for term in near if isinstance(term, AtZero)]
        names = {name for term in known for name in term.slopes}
        return len(known) == len(near) and (len(names) == 1 or all(term.value for term in known))

    def _make_function(
        self, out: Signal, of: tuple[str, ...], does: Literal["map", "product"]
    ) -> None:
        """Make a node a function of some nodes from which it is computed, 0 where they are."""
        node = self.node(out.node)
        self.change(out.node, kind="other", inputs=of, does=does, vanishes="all", sums=())
        self._sums.pop(out.node, None)
        for name in of if out.units else ():
            self.axes.ways.setdefault((out.node, name), []).append(spread_to(out.shape, out.shape))
        stack = [*node.inputs]
        while stack:
            name = stack.pop()
            if name not in of and name not in self.fates.passed:
                self.fates.passed[name] = out.node
                stack += self.node(name).inputs

    def _near_zero(self, value: Value, shape: Shape | None) -> AtZero | float | None:
        """Return a number, or a signal of a shape as a function of signals that may be zero."""
        if isinstance(value, Made):
            least, most = value.extent or (0, 1)
            return least if least == most and not value.parts else None
        if not isinstance(value, Signal) or value.shape != shape:
            return None
        if value.node in self._at_zero:
            return self._at_zero[value.node]
        is_never = self.node(value.node).vanishes == "never"
        return None if is_never else AtZero(0.0, {value.node: 1.0})

    def is_of_one(self, a: Signal, b: Signal) -> bool:
        """Whether one of two signals is computed from the other alone, over no weight."""
        first, last = sorted((self.place[a.node], self.place[b.node]))
        seen, stack = {first, last}, [last] if first < last else []
        while stack:
            node = self.nodes[stack.pop()]
            new = {self.place[name] for name in node.inputs} - seen
            if node.kind == "weight" or not node.inputs or min(new, default=first) < first:
                return False
            seen |= new
            stack += new
        return True


def _scaled(
    word: str | Fact, values: Sequence[Value], known: Sequence[AtZero | float]
) -> AtZero | None:
    """Return a function of second order times a parameter, which is one too; else None."""
    signals = [isinstance(value, Signal) for value in values]
    if len(known) != 1 or (word, *signals) not in _SCALES or not isinstance(known[0], AtZero):
        return None
    is_second = not known[0].value and all(map(is_flat, known[0].slopes.values()))
    return known[0] if is_second else None
