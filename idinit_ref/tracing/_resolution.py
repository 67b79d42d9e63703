"""Internal: the resolution of a signal, the number of its places along axes without units."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import prod

from ._axes import Atom, regroup
from ._made import Made, Shape
from ._units import Unit
from ._values import Fold, Signal, Value, is_constant

__all__ = [
    "between",
    "by_matrix",
    "copied_axes",
    "folded",
    "is_apart",
    "is_finer",
    "is_repeated",
    "without_copies",
]


def _held(signal: Signal) -> set[int]:
    """Return the axes that hold units, such as channels and heads."""
    return {axis for unit in signal.units for axis in unit.axes}


def _is_one_place(signal: Signal) -> bool:
    """Whether a signal has one place, as a picture of one pixel; axis 0 holds a batch."""
    return all(
        size == 1 for axis, size in enumerate(signal.shape or ()) if axis not in _held(signal) | {0}
    )


def is_finer(signal: Signal, shape: Shape | None, of_one: bool = True) -> bool:
    """Whether a result has more places than a signal along an axis.

    Copies of one place are a change of resolution only if it is the signal's one place, and not
    if they may be a broadcast (`of_one` is False).

    >>> is_finer(Signal("x", (1, 4, 8)), (1, 8, 8)), is_finer(Signal("x", (1, 4, 8)), (1, 4, 4))
    (True, False)
    """
    old = signal.shape
    if old is None or shape is None or len(old) != len(shape):
        return False
    least = 1 if of_one and _is_one_place(signal) else 2
    free = set(range(len(old))) - _held(signal)
    return any(least <= old[axis] < shape[axis] for axis in free)


def is_apart(value: Value, gaps: Sequence[int]) -> bool:
    """Whether gaps between a value's entries move its places apart, and not its channels alone.

    Channels that are not known may be moved, too, as in an encoding of positions.

    >>> units = (Unit(frozenset({2})),)
    >>> is_apart(Signal("x", (1, 4, 8), units=units), (0, 1, 0)), is_apart(Signal("x"), (1,))
    (True, False)
    """
    held = _held(value) if isinstance(value, Signal) else set()
    return bool(held) and any(gap and axis not in held for axis, gap in enumerate(gaps))


def without_copies(signal: Signal, shape: Shape | None) -> Shape | None:
    """Return a reshape's result without the copies that it puts beside their places; None: none.

    An axis of copies that follows channels or heads is no change of space.

    >>> without_copies(Signal("x", (1, 4, 2, 8), spread=frozenset({2})), (1, 8, 8))
    (1, 4, 8)
    """
    old = signal.shape
    if old is None or shape is None or not signal.spread:
        return None
    new, held, spread = list(shape), _held(signal), signal.spread
    groups = list(regroup(old, shape))
    single = {before[0] for before, after in groups if not after}  # of size 1
    is_one = all(axis in {0, *held, *spread} for axis, size in enumerate(old) if size > 1)
    for before, after in groups:
        copies = prod(old[axis] for axis in before if axis in spread)
        places = {axis for axis in before if axis not in spread and old[axis] > 1}
        if is_one and len(before) == 1:
            places = single & {before[0] - 1, before[0] + 1}
        if len(after) == 1 and copies > 1 and places and not places & held:
            new[after[0]] //= copies
    return tuple(new) if tuple(new) != shape else None


def between(signal: Signal, axis: int, shape: Shape | None) -> Shape | None:
    """Return the shape of a stack's operands, if a reshape puts them between each other's places.

    As a reshape of them may share an axis with channels, these have to be known.

    >>> units = (Unit(frozenset({3})),)
    >>> between(Signal("x", (1, 4, 2, 8), units=units), 2, (1, 8, 8))
    (1, 4, 8)
    """
    old, held = signal.shape or (), _held(signal)
    if not held or axis in held or not old or shape is None:
        return None
    coarse = (*old[:axis], *old[axis + 1 :])
    units = (Unit(frozenset(at - (at > axis) for at in held)),)
    is_one = coarse[0] == shape[0] and is_finer(Signal("", coarse, units=units), shape)
    return coarse if is_one else None


def by_matrix(
    signal: Signal, own: Sequence[Hashable], out: Sequence[Hashable], shape: Shape | None
) -> list[int] | None:
    """Return the axes of a product with a constant in the signal's order, if it has more places.

    Return None if it has not. `own` and `out` label the axes of the signal and of the product.

    >>> by_matrix(Signal("x", (1, 4, 8)), "bhc", "bci", (1, 8, 12))
    [0, 2, 1]
    >>> by_matrix(Signal("x", (3, 1, 1)), "bhw", "ijb", (4, 5, 3))  # one pixel
    [2, 0, 1]
    """
    summed = [axis for axis, label in enumerate(own) if label not in out]
    new = [axis for axis, label in enumerate(out) if label not in own]
    if signal.shape is None or shape is None or len(summed) != len(new):
        return None
    places, at = [signal.shape[axis] for axis in summed], dict(zip(summed, new, strict=True))
    is_one = set(places) == {1} and not _is_one_place(signal)
    if _held(signal) & {*summed} or is_one or prod(places) >= prod(shape[axis] for axis in new):
        return None
    return [at[axis] if axis in at else [*out].index(label) for axis, label in enumerate(own)]


def copied_axes(values: Sequence[Value], shape: Shape | None) -> frozenset[int]:
    """Return the axes along which an operation on one signal and constants copies that signal.

    >>> copied_axes([Signal("x", (4, 1, 8))], (2, 4, 2, 8))
    frozenset({0, 2})
    """
    signals = [value for value in values if isinstance(value, Signal)]
    is_one = len(signals) == 1 and all(is_constant(v) for v in values if v is not signals[0])
    if not is_one or shape is None or signals[0].shape is None:
        return frozenset()
    more = len(shape) - len(signals[0].shape)
    old = (1,) * more + signals[0].shape
    wide = {axis for axis, size in enumerate(old) if size == 1 < shape[axis]}
    return frozenset(wide | {axis + more for axis in signals[0].spread})


def is_repeated(values: Sequence[Value]) -> bool:
    """Whether some values are one signal, and zeros between its copies.

    >>> is_repeated([Signal("x"), Signal("x")]), is_repeated([Signal("x"), Signal("y")])
    (True, False)
    """
    signals = [value for value in values if isinstance(value, Signal)]
    rest = [value for value in values if not isinstance(value, Signal)]
    is_one = len(values) > 1 and all(signal == signals[0] for signal in signals)
    return is_one and all(isinstance(value, Made) and value.zero for value in rest)


def folded(out: Signal, fold: Fold, axis: int, shape: Shape) -> Signal:
    """Return a folded convolution result after the sum over its periods.

    Origins that differ by a period are the same. The kernel may have taps for several of them, on
    a short axis; its middle one is taken.
    """
    operation, view = fold.track.operation, fold.track.view
    period, where = shape[axis], operation.space.index(axis)
    left = list(operation.left or ())
    dilation = operation.dilation[where]
    reach = dilation * (operation.kernel[where] - 1)
    first = (left[where] + fold.low[axis]) % period
    origins = range(first - period, reach + period + 1, period)
    left[where] = min(origins, key=lambda at: (at % dilation > 0, abs(2 * at - reach)))
    operation.left = tuple(left)
    axes = list(view.axes)
    axes[axis] = (Atom.of(-1, period),)
    track = fold.track._replace(view=replace(view, axes=tuple(axes)))
    return out._replace(tracks=(track,), fold=Fold(track, fold.low))
