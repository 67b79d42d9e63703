"""Internal: choices between values, and loops."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

from ._functions import Fact
from ._layers import Layers
from ._made import Made, Shape, joined
from ._values import Data, Signal, Value

__all__ = ["LAYERS", "MEMBERS", "Loops", "reads_by_turn"]

_TURNS = 8  # the most turns of a loop that are drawn
LAYERS = 128  # the most turns that are drawn one by one, where they read stacks by their number
MEMBERS = 16  # the most members of a map that are drawn one by one


class Loops(Layers):
    """A drawing with choices and loops."""

    def either(
        self, name: str, values: Sequence[Value], shape: Shape | None, floating: bool = True
    ) -> Value:
        """Draw a choice between values; equal values need no node."""
        if all(value == values[0] for value in values):
            return values[0]
        return self.result(name, values, shape, floating, Fact("select", "sum"))

    def loop(
        self,
        name: str,
        carry: Sequence[Value],
        shapes: Sequence[Shape | None],
        turn: Callable[[list[Value]], list[Value]],
        most: int | None = None,
        fixed: Sequence[Value] = (),
    ) -> list[list[Value]]:
        """Draw the first turns of a loop, one after the other, and return the results of each.

        A further turn is drawn while it brings something new: a state depends on more states, or
        zeros have become a signal. So the last turn stands for all that follow. `turn` draws the
        body, given the values of the states, and returns their next values and any further
        results; `most` is the number of turns, if it is known, and `fixed` are values that every
        turn reads. Another constant that becomes a signal is one from the start, and one that a
        turn changes is unknown.
        """
        states: list[Value | Literal["signal"]] = list(carry)
        while True:
            mark, start = self.mark(), len(self.nodes)
            pairs = zip(states, shapes, strict=True)
            given = [self._entering(name, state, shape) for state, shape in pairs]
            out = turn(given)
            new = [_carried(old, value) for old, value in zip(states, out, strict=False)]
            if new == states:
                break
            self.back_to(mark)
            states = new
        turns = [out]
        seen = [isinstance(value, Signal) << at for at, value in enumerate(given)]
        while len(turns) < min(_TURNS, _TURNS if most is None else most):
            found = self._dependence(given, seen, out, start, fixed)
            if not any(bits & ~old for bits, old in zip(found, seen, strict=True)):
                break
            seen = [bits | old for bits, old in zip(found, seen, strict=True)]
            given = [_again(*pair) for pair in zip(given, out, strict=False)]
            start = len(self.nodes)
            out = turn(given)
            turns.append(out)
        return turns

    def _entering(self, name: str, state: Value | Literal["signal"], shape: Shape | None) -> Value:
        """Return a state before the first turn."""
        if isinstance(state, str):
            return self.start(name, shape)
        return _again(state, state)

    def _dependence(
        self,
        given: Sequence[Value],
        bits: Sequence[int],
        out: Sequence[Value],
        start: int,
        fixed: Sequence[Value],
    ) -> list[int]:
        """Return for each state after a turn the states on which it depends, as bits.

        `bits` are those of the states before it; the highest bit stands for any other signal.
        """
        known: dict[str, int] = {}
        other = 1 << len(given)
        for value, own in (*zip(given, bits, strict=True), *((value, other) for value in fixed)):
            if isinstance(value, Signal):
                known[value.node] = known.get(value.node, 0) | own
        for node in self.nodes[start:]:
            found = known.get(node.name, other if node.kind == "input" else 0)
            for to in node.inputs:
                found |= known.get(to, other)
            known[node.name] = found
        return [
            1 << at | known.get(value.node, other) if isinstance(value, Signal) else 0
            for at, value in enumerate(out[: len(given)])
        ]


def reads_by_turn(
    steps: Iterable[tuple[Iterable[Hashable], Iterable[Hashable]]],
    numbers: Iterable[Hashable],
    stacks: Iterable[Hashable],
    constants: Iterable[Hashable] = (),
) -> bool:
    """Whether the body of a loop may read stacks of parameters at the number of the turn.

    `steps` are the names that each operation reads and makes, in order, and the others are the
    names of such values at the start of a turn.

    >>> reads_by_turn([(["i"], ["j"]), (["w", "j"], ["x"])], ["i"], ["w"])
    True
    """
    known = set(constants), set(numbers), set(stacks)
    constant, number, stack = known
    for given, results in steps if stack else ():
        read = {*given} - constant
        if read & stack and read & number:
            return True
        next((names for names in known if read <= names), set[Hashable]()).update(results)
    return False


def _again(old: Value, new: Value) -> Value:
    """Return a state before a turn, given it before and after the last one."""
    if isinstance(new, Signal):
        new.spend()
        return Signal(new.node, new.shape, units=new.units)
    return new if isinstance(old, Signal) else old


def _carried(old: Value | Literal["signal"], new: Value) -> Value | Literal["signal"]:
    """Return a state's value before every turn of a loop whose first one turns `old` into `new`."""
    if isinstance(old, (str, Signal)):
        return old
    if isinstance(new, Signal):
        return old if isinstance(old, Made) and old.zero else "signal"
    if isinstance(old, Data) or isinstance(new, Data):
        return Data(old.shape)
    names = {part.name for part in old.parts}
    if any(part.name not in names for part in new.parts):
        return joined(old.shape, [old, new]).lost(old.shape)
    return old if old.zero and new.zero else Made(old.shape, old.parts, rooted=old.rooted)
