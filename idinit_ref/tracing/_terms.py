"""Internal: what the terms of a sum say of its parts: biases, results of weights, a stream."""

from __future__ import annotations

from collections.abc import Sequence

from ._added import addends_of, lying_along
from ._loops import Loops
from ._made import Made, Shape
from ._results import MOST, faded
from ._summed import Halves, added
from ._values import Signal, Track

__all__ = ["Terms"]


class Terms(Loops):
    """A drawing that follows the terms of sums."""

    def _terms_in(self, a: Signal, b: Signal, shape: Shape | None) -> tuple[Track, ...]:
        """Return the operations whose results a sum adds, as in the gates of an LSTM.

        None if one term is computed from the other: that is a stream, whose parts are no blocks.
        """
        own = [signal for signal in (a, b) if signal.shape == shape]
        both = tuple(track for signal in own for track in signal.tracks)
        is_direct = all(signal.fresh for signal in own) and not any(t.is_faded for t in both)
        if len(own) == 2 and len(both) == 2 and is_direct:
            return both
        if len(own) == 2 and len({*(frozenset(t.operation for t in s.tracks) for s in own)}) == 1:
            return faded(own)  # a function of each entry, as y + tanh(y)
        if not both or self._is_stream(a, b):
            return ()
        return both if len(own) == 2 and is_direct and len(both) <= MOST else faded(own)

    def _halves_in(self, one: Signal, other: Signal) -> Halves:
        """Return the parts of results that a term brings to a sum with another one."""
        if not one.halves:
            return one.halves
        base, met = self._base(other.node), {operation for operation, _ in other.halves}
        of = {operation for operation, _ in one.halves} - met
        return added(one.halves, [op for op in of if self._comes_from([op.name], [base])])

    def _is_stream(self, a: Signal, b: Signal) -> bool:
        """Whether one term of a sum comes from the other one, or from what that is made of."""
        for one, other in ((a, b), (b, a)):
            if other.tracks:
                tops = [other.node]
            elif self._after[other.node][0] < 0:
                before = self._before(other.node, ("weight", "add", "other"))
                tops = [at for at in before if not self.node(at).inputs]  # the inputs
            else:
                return True
            if self._comes_from([one.node], tops):
                return True
        return False

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

    def _lies_along(self, signal: Signal, made: Made, shape: Shape | None) -> bool:
        """Whether a term varies along outputs alone, as the biases of several members do."""
        addends = addends_of(made, shape, self.shapes) if signal.shape == shape else []
        each = (lying_along(signal.node, addend.axes, self.so_far) for addend in addends)
        return bool(addends) and all(each)
