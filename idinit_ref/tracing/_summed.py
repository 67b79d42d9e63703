"""Internal: products with parts of one parameter, whose sum is a product with all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from math import isclose, prod
from typing import NamedTuple

from ..core.layout import SPATIAL
from ..roles.graph import Node
from ._axes import Atom, View
from ._made import Made
from ._stored import Cut, Steps, Stored, steps_of
from ._values import Operation, Signal, Value

__all__ = [
    "Gathered",
    "Halves",
    "Readers",
    "Weighed",
    "added",
    "after",
    "factor_of",
    "gather",
    "gathered",
    "loops_of",
    "members_in",
    "multiplied",
    "readers_of",
    "rebound",
    "rejoined",
    "whole",
]

Weighed = tuple[str, Operation, View | None]
"""A parameter, an operation that it is the weight of, and its view there."""
Readers = Mapping[str, Sequence[Node | None]]
"""The readers of each node; None stands for the model's outputs."""
_Digit = tuple[int, int]  # an axis of a signal, and a step along it


class Gathered(NamedTuple):
    """A sum of an operation's result over batch axes of its weight."""

    operation: Operation
    axes: frozenset[int]

    @property
    def terms(self) -> int:
        """The number of its terms."""
        return prod(self.operation.sizes[axis] for axis in self.axes)


def gathered(node: str, signal: Signal, axes: Sequence[int]) -> dict[str, Gathered]:
    """Return a sum of a signal, by its node, if it is over batch axes of a weight."""
    if len(signal.fresh) != 1:
        return {}
    operation, view, *_ = signal.fresh[0]
    atoms = [atom for axis in axes for atom in view.axes[axis]]
    own = frozenset(atom.axis for atom in atoms)
    if not own or min(own) < 0 or any((operation.kinds or "")[axis] != "B" for axis in own):
        return {}
    is_whole = prod(atom.size for atom in atoms) == prod(operation.sizes[axis] for axis in own)
    return {node: Gathered(operation, own)} if is_whole else {}


def factor_of(values: Iterable[Value], divides: bool) -> float:
    """Return the number by which a product or quotient multiplies a signal; 1 if unknown."""
    numbers = [value.value for value in values if isinstance(value, Made) and value.value]
    by = numbers[0] if numbers else 1.0
    return 1 / by if divides else by


Halves = frozenset[tuple[Operation, Cut]]
"""Parts of the results of operations."""
_MET = Cut(-1, 0, 0, 0)  # stands for parts of one result that a product has multiplied
_ADDED = -1  # the period of a part that was added to a signal before it


def rejoined(values: Iterable[Value]) -> Halves:
    """Return the parts of results in some values; a result that they rejoin is no packed one."""
    each = [value.halves for value in values if isinstance(value, Signal)]
    halves = Halves().union(*each)
    cuts: dict[Operation, set[Cut]] = {}
    for operation, cut in halves:
        cuts.setdefault(operation, set()).add(cut)
    counts = Counter(of for held in each for of in {op for op, _ in held})
    for operation, own in cuts.items():
        is_several = counts[operation] > 1 and len({cut[:3] for cut in own}) > 1
        if is_several and _MET not in own:
            is_loose = any(cut.period == _ADDED for cut in own)
            operation.loose |= is_loose
            operation.whole |= not is_loose
    return halves


def added(halves: Halves, of: Collection[Operation] | None = None) -> Halves:
    """Return parts of results after a sum with a signal from which some, or all, are computed.

    A concatenation of such sums joins no parts of a result: each may be a branch of its own.
    """
    parts = Counter(operation for operation, _ in halves)
    chosen = {op for op, count in parts.items() if count == 1 and (of is None or op in of)}
    return Halves(
        (op, cut._replace(period=_ADDED) if op in chosen and cut != _MET else cut)
        for op, cut in halves
    )


def multiplied(signals: Iterable[Signal]) -> Halves:
    """Return the parts of results in a product of signals, as of a head."""
    halves = Halves().union(*(signal.halves for signal in signals))
    parts = Counter(operation for operation, _ in halves)
    return Halves((of, cut if parts[of] == 1 else _MET) for of, cut in halves)


def members_in(
    uses: Iterable[Weighed], data: Mapping[str, Signal], shapes: Mapping[str, Sequence[int]]
) -> set[str]:
    """Return the operations that read the results of stacked matrices: of experts, say.

    These are members with a matrix each, also if their results are summed.
    """
    ways = [(of, of.stored(view, shapes[name])) for name, of, view in uses if of.batched]
    stacked = {of for of, way in ways if isinstance(way, Stored) and way.letters[0] not in "IO"}
    return {
        name
        for name, signal in data.items()
        if any(track.operation in stacked for track in signal.tracks)
    }


def loops_of(uses: Sequence[Weighed], shapes: Mapping[str, Sequence[int]]) -> dict[str, Steps]:
    """Return how the uses of each parameter number the matrices of a stack: see `steps_of`."""
    ways: dict[str, list[tuple[View, Sequence[str], Collection[tuple[int, int, int]]]]] = {}
    for name, of, view in uses:
        own = ways.setdefault(name, [])
        if view is not None and of.kinds is not None:
            own.append((view, of.kinds, of.batched))
    return {name: steps_of(own, shapes[name]) for name, own in ways.items()}


def gather(
    sums: Mapping[str, Gathered],
    members: Collection[str],
    shrunk: Mapping[str, float],
    readers: Readers,
) -> None:
    """Make batch axes of weights, over which all results are summed, axes of inputs.

    `shrunk` are the nodes that multiply by a number: a mean of members has a matrix for each.
    """
    for name, (operation, axes) in sums.items():
        path = after(operation.name, readers, name)
        is_mean = _is_mean(name, sums[name].terms, shrunk, readers)
        if path[-1] == name and operation.name not in members and not is_mean:
            kinds = operation.kinds or ()
            operation.kinds = ["I" if at in axes else kind for at, kind in enumerate(kinds)]


def _is_mean(name: str, count: int, shrunk: Mapping[str, float], readers: Readers) -> bool:
    """Whether a sum of some terms is divided by their number."""
    path = after(name, readers)
    behind = [node.name for node in readers.get(path[-1], ()) if node is not None]
    return len(behind) == 1 and isclose(shrunk.get(behind[0], 1) * count, 1, rel_tol=1e-3)


def readers_of(nodes: Iterable[Node], outputs: Iterable[str]) -> dict[str, list[Node | None]]:
    """Return the readers of each node; None stands for the model's outputs."""
    readers: dict[str, list[Node | None]] = {name: [None] for name in outputs}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers


def after(name: str, readers: Readers, end: str = "") -> list[str]:
    """Return a node and those behind it, as long as one node alone reads it: a move or a sum."""
    path = [name]
    while path[-1] != end and len(readers.get(path[-1], ())) == 1:
        (node,) = readers[path[-1]]
        if node is None or not (
            node.name == end or node.kind == "add" or node.does in ("move", "shift")
        ):
            break
        path.append(node.name)
    return path


def whole(
    uses: Iterable[Weighed],
    data: Mapping[str, Signal],
    members: Set[str],
    heads: Set[str],
    shrunk: Mapping[str, float],
    readers: Readers,
) -> list[Weighed]:
    """Return uses of parameters, with products of parts as one product, if they are summed.

    `data` are the signals that the operations read. If these are parts of one signal, the
    parameter's parts are blocks of the inputs of one matrix; so they are if its parts lie along its
    inputs, and all operations are among those that read `heads`, products of signals. If they are
    shifts of one signal, the parts are taps of a kernel.
    """
    own: dict[tuple[str, str], list[tuple[Operation, View | None]]] = {}
    for name, operation, view in uses:
        last = after(operation.name, readers)[-1]  # of all terms of one sum the same
        own.setdefault((name, last), []).append((operation, view))
    found: list[Weighed] = []
    for (name, last), each in own.items():
        operations = [operation for operation, _ in each]
        views = [view for _, view in each if view is not None]
        joint = None
        is_sum = len(views) == len(each) > 1 and not _is_mean(last, len(each), shrunk, readers)
        if is_sum and members.isdisjoint(operation.name for operation in operations):
            signals = [data[of.name] for of in operations]
            are_heads = heads >= {operation.name for operation in operations}
            joint = _joint(operations, views, signals, are_heads)
            if joint and are_heads:
                rejoined(signals)
        found += [(name, *one) for one in ([joint] if joint else each)]
    return found


def _joint(
    operations: Sequence[Operation],
    views: Sequence[View],
    signals: Sequence[Signal],
    are_heads: bool,
) -> tuple[Operation, View] | None:
    """Return the operation and view of a sum of products; None if it is no product."""
    first = operations[0]
    for axis, kind in enumerate(first.kinds or ()):
        views = _parted(views, axis) if kind == "I" else views
    view = views[0]
    starts = [tuple(atom.start for atom in each.fixed) for each in views]
    bare = {replace(v, fixed=tuple(a._replace(start=0) for a in v.fixed)) for v in views}
    kinds = {None if each.kinds is None else "".join(each.kinds) for each in operations}
    if len(bare) > 1 or len(kinds) > 1 or first.kinds is None or len({*starts}) < len(starts):
        return None
    places = [at for at in range(len(view.fixed)) if len({each[at] for each in starts}) > 1]
    digits = [_digit(view.fixed[at], {each[at] for each in starts}) for at in places]
    known = [digit for digit in digits if digit is not None]
    if len(known) < len(digits) or prod(digit.size for digit in known) != len(starts):
        return None
    order = sorted(range(len(known)), key=lambda at: (known[at].axis, -known[at].step))
    known, places = [known[at] for at in order], [places[at] for at in order]
    summed = [axis for axis, kind in zip(view.axes, first.kinds, strict=True) if kind == "I"]
    inputs = {atom.axis for axis in summed for atom in axis}
    shifts = _shifts(signals, first.reads)
    if shifts is None and are_heads and all(digit.axis in inputs for digit in known):
        shifts = []  # the terms read signals side by side
    if shifts is None or (shifts and len(known) > len(SPATIAL)):
        return None
    letters = SPATIAL[-len(known) :] if shifts else "I" * len(known)
    operation = replace(first, kinds=[*first.kinds, *letters], whole=True, cuts={})
    if shifts:
        term = min(range(len(shifts)), key=lambda at: sum(map(abs, shifts[at])))
        pairs = zip(known, places, strict=True)
        operation.left = tuple((starts[term][at] - d.start) // d.step for d, at in pairs)
        operation.kernel = tuple(digit.size for digit in known)
        operation.spread = operation.dilation = (1,) * len(known)
    rest = tuple(atom for at, atom in enumerate(view.fixed) if at not in places)
    return operation, View((*view.axes, *((digit,) for digit in known)), rest)


def rebound(values: Sequence[Value], axis: int) -> Made | None:
    """Return a stack of the rows of one parameter, in their order, as a part of it; else None."""
    made = [value for value in values if isinstance(value, Made) and value.is_plain]
    views = [part.view for value in made for part in value.parts if part.view is not None]
    if len(views) < len(values) or len({value.parts[0]._replace(view=None) for value in made}) > 1:
        return None
    first = views[0]
    places = [
        at
        for at, atoms in enumerate(zip(*(v.fixed for v in views), strict=False))
        if len({*atoms}) > 1
    ]
    if len(places) != 1 or len({len(view.fixed) for view in views}) > 1:
        return None
    (at,) = places
    starts = [view.fixed[at].start for view in views]
    digit = _digit(first.fixed[at], starts)
    rests = {replace(v, fixed=(*v.fixed[:at], *v.fixed[at + 1 :])) for v in views}
    if digit is None or starts != sorted(starts) or len(rests) > 1:
        return None
    (rest,) = rests
    view = replace(rest, axes=(*rest.axes[:axis], (digit,), *rest.axes[axis:]))
    size = made[0].shape or ()
    shape = (*size[:axis], len(views), *size[axis:])
    return Made(shape, (made[0].parts[0]._replace(view=view),))


def _parted(views: Sequence[View], axis: int) -> Sequence[View]:
    """Return views with their parts of one axis, if these are as long, as digits at one value."""
    atoms = [view.axes[axis][0] for view in views if len(view.axes[axis]) == 1]
    if len(atoms) < len(views) or len({atom._replace(start=0) for atom in atoms}) > 1:
        return views
    if len({atom.start for atom in atoms}) == 1 or atoms[0].size != atoms[0].radix:
        return views
    found = []
    for view, atom in zip(views, atoms, strict=True):
        outer = atom._replace(step=atom.step * atom.size, size=1, radix=1)
        inner = (atom._replace(start=0),)
        axes = (*view.axes[:axis], inner, *view.axes[axis + 1 :])
        found.append(View(axes, (*view.fixed, outer)))
    return found


def _digit(atom: Atom, starts: Collection[int]) -> Atom | None:
    """Return the digit with all values of a fixed one; None if these are not one behind another."""
    step, first = abs(atom.step), min(starts)
    if sorted(starts) != [*range(first, first + step * len(starts), step)]:
        return None
    return Atom(atom.axis, step, len(starts), first, 0, len(starts))


def _shifts(signals: Sequence[Signal], reads: Collection[int]) -> list[tuple[int, ...]] | None:
    """Return how far each signal is shifted, if all are shifts of one; [] if they are its parts.

    None if they are neither.
    """
    sources = [_sources(signal) for signal in signals]
    common = [name for name in sources[0] if all(name in each for each in sources)]
    if not common:
        return None
    found = [_digits(each[common[0]]) for each in sources]
    keys = dict.fromkeys(key for each in found for key in each)
    moved = {key: [each.get(key, (-1, 0, 0)) for each in found] for key in keys}
    varying = {key: ways for key, ways in moved.items() if len({way[1:] for way in ways}) > 1}
    if not varying:
        return None
    if any(way[0] < 0 or way[0] in reads for ways in varying.values() for way in ways):
        return []
    shifts = [
        tuple(low - start // step for (_, step), (_, start, low) in zip(varying, each, strict=True))
        for each in zip(*varying.values(), strict=True)
    ]
    return shifts if len({*shifts}) == len(shifts) else None


def _sources(signal: Signal) -> dict[str, View]:
    """Return where entries of other signals lie in a signal, and its own."""
    found = {} if signal.shape is None else {signal.node: View.of(signal.shape)}
    for place in sorted(signal.places, key=lambda at: prod(a.size for a in at.view.atoms)):
        if isinstance(place.of, Signal):
            found[place.of.node] = place.view  # the largest part
    return found


def _digits(view: View) -> dict[_Digit, tuple[int, int, int]]:
    """Return the axis of a view along which each digit of its source lies, its start and low."""
    held = [(place, atom) for place, axis in enumerate(view.axes) for atom in axis]
    held += [(-1, atom) for atom in view.fixed]
    return {
        (atom.axis, abs(atom.step)): (place, atom.start, atom.low)
        for place, atom in held
        if atom.axis >= 0
    }
