"""Internal: the stored form of a parameter, from its axes in an operation's weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from ..core.layout import SPATIAL
from ._axes import Atom, View

__all__ = ["Cut", "Rows", "Steps", "Stored", "blocks_of", "stacked", "steps_of", "stored"]

_SUMMED = "I" + SPATIAL
_BATCH = "LENKPQRSTUVXYZABCFGJM"


Rows = tuple[int, int]
"""The first index of a part along an axis, and the one behind it."""
Steps = Mapping[int, tuple[int, ...]]
"""By stored axis: the steps of the digits into which it is parted, the largest first."""


class Cut(NamedTuple):
    """A part of an operation's result: the outputs o with start <= o % period < stop.

    They lie along one axis of its weight. If the period is that axis's size, they are one range;
    else every head, say, has such a range.
    """

    axis: int
    start: int
    stop: int
    period: int


@dataclass(frozen=True)
class Stored:
    """The stored form of an operation's weight.

    Parameters
    ----------
    shape : tuple of int
        The stored shape, with an axis split if it serves as several axes of the weight.
    letters : str
        A letter for each of these axes; axes with the same letter count as one.
    outs : tuple of int
        For each O axis, its axis of the operation's weight, or -1.
    cut : tuple of int, optional
        The part of the first O axis that the operation uses, if not all of it.
    spans : mapping of int to (int, int)
        Its start and length along an axis of the operation's weight.
    flipped : str
        The letters of axes that the operation uses reversed.
    narrow : bool
        Whether the operation uses only a part of its inputs.
    taps : mapping of str to tuple of int
        For each letter of space: the stored index that is nearest to each tap of the operation,
        whose kernel may be a part of the stored one, or padded with zeros.
    batch : mapping of int to str
        The letter of each batch axis, by its axis of the operation's weight.
    member : mapping of str to (int, int)
        By the letter of a batch axis, the first index of the matrices that the operation uses, at
        once or one in each turn of a loop, and the one behind them; absent if some are skipped.
    solid : Stored, optional
        Of a stack of interleaved matrices: the form as one matrix, for other uses of the parameter.
    """

    shape: tuple[int, ...]
    letters: str
    outs: tuple[int, ...] = ()
    cut: tuple[int, int] | None = None
    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    flipped: str = ""
    narrow: bool = False
    taps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: Mapping[int, str] = field(default_factory=dict)
    member: Mapping[str, Rows] = field(default_factory=dict)
    solid: Stored | None = None


class _Run(NamedTuple):
    """A digit along a stored axis, and the letter and position of its axis in the operand."""

    atom: Atom
    letter: str
    place: int


class _Axis(NamedTuple):
    """A stored axis or a part of one."""

    size: int
    letter: str
    place: int = -1
    at: Rows | None = None  # the indices that the operand has


def stored(
    view: View | None,
    kinds: Sequence[str],
    shape: Sequence[int],
    batched: Collection[tuple[int, int, int]] = (),
    batch: str = "",
    steps: Steps = MappingProxyType({}),
) -> Stored | str:
    """Return the stored form of a parameter, given the letter of every axis of the operand.

    The letter "B" is a batch axis. Each gets its own letter, those in `batch` first. `batched` are
    further batch axes: digits by axis, step and size. `steps` are those of the digits into which
    each stored axis is parted that only numbers matrices. A string is the reason why there is no
    form.

    >>> stored(View.of((4, 3)).transpose([1, 0]), "IO", (4, 3)).letters
    'OI'
    """
    if view is None:
        return "its axes cannot be followed to"
    axes: list[_Axis] = []
    whole: list[_Run] = []  # the O axes that lie together in memory
    flipped, narrow = "", False
    digits = enumerate(_runs(view, kinds, len(shape), batched))
    for (number, runs), size in zip(digits, shape, strict=True):
        kept = [run for run in runs if run.atom.radix > 1 or run.letter == "B"] or runs
        flipped += "".join(run.letter for run in kept if run.atom.step < 0)
        parts = _axes_of(kept, size, steps.get(number, (1,)))
        if isinstance(parts, str):
            return parts
        axes += parts
        narrow |= _is_narrow(kept, parts)
        whole += [run for run in kept if run.letter == "O"]
    axes = _named(axes, view, kinds, batch)
    for need, meaning in (("O", "outputs"), ("I", "inputs")):
        if all(axis.letter != need for axis in axes):
            return f"it has no axis of {meaning} in"
    outs = tuple(axis.place for axis in axes if axis.letter == "O")
    cut = None
    if len(whole) == len(outs) == 1:
        atom = whole[0].atom
        full = next(axis.size for axis in axes if axis.letter == "O")
        if atom.step == 1 and atom.size < full:
            cut = (atom.start, atom.start + atom.size)
    sizes, letters_of = tuple(axis.size for axis in axes), "".join(axis.letter for axis in axes)
    spans, taps = _spans(view, outs), _taps(view, kinds, axes)
    along = {axis.place: axis.letter for axis in axes if axis.letter not in _SUMMED + "O"}
    every = ((axis.letter, axis.at) for axis in axes if axis.letter not in _SUMMED + "O")
    member = {letter: at for letter, at in every if at is not None}
    return Stored(sizes, letters_of, outs, cut, spans, flipped, narrow, taps, along, member)


def _axes_of(kept: Sequence[_Run], size: int, steps: tuple[int, ...]) -> list[_Axis] | str:
    """Return a stored axis in parts, given its digits; a string is the reason why it has none."""
    letters = {run.letter for run in kept}
    if not letters or (size == 1 and letters == {"B"}):
        return [_Axis(1, "?")] if size == 1 else "it is only a factor of the weight of"
    if letters == {"B"}:
        return _numbered(kept, size, steps)
    if len(letters) > 1:
        return _parted(kept, size) or "it is used in parts by"
    is_one = len({run.place for run in kept}) == 1
    return [_Axis(size, kept[0].letter, kept[0].place if is_one else -1)]


def _is_narrow(kept: Sequence[_Run], parts: Sequence[_Axis]) -> bool:
    """Whether an operation uses only some of the inputs along a stored axis."""
    if not any(run.letter in _SUMMED for run in kept):
        return False
    if len(parts) == 1:
        return prod(run.atom.size for run in kept) < parts[0].size
    pairs = zip(kept, parts, strict=True)
    return any(run.atom.size < of.size for run, of in pairs if run.letter in _SUMMED)


def stacked(
    view: View,
    kinds: Sequence[str],
    sizes: Sequence[int],
    cuts: Set[Cut],
    shape: Sequence[int],
    batch: str = "",
    steps: Steps = MappingProxyType({}),
) -> Stored | None:
    """Return the stored form of a packed weight as a stack of the matrices that it interleaves.

    The digit of the outputs that numbers these matrices, as the query, key and value of each head,
    is then a batch axis. None if the cuts are not all the equal parts of such a digit.
    """
    axis, start, stop, period = min(cuts)
    size, count = stop - start, period // (stop - start)
    is_all = cuts == {Cut(axis, at * size, (at + 1) * size, period) for at in range(count)}
    if not is_all or period % size or kinds[axis] != "O":
        return None
    digits = sizes[axis] // period, count, size
    opened = view.reshape(sizes, (*sizes[:axis], *digits, *sizes[axis + 1 :]))
    found = stored(opened, [*kinds[:axis], *"OBO", *kinds[axis + 1 :]], shape, (), batch, steps)
    if isinstance(found, str):
        return None
    own = {axis + 1: found.batch[axis + 1]}  # that of the digit alone
    return replace(found, outs=(-1,) * len(found.outs), spans={}, batch=own)


def _taps(view: View, kinds: Sequence[str], axes: Sequence[_Axis]) -> dict[str, tuple[int, ...]]:
    """Return the stored index nearest to each tap, for every letter of space."""
    found = {}
    for place, letter in enumerate(kinds):
        if letter not in SPATIAL:
            continue
        atoms = [atom for atom in view.axes[place] if atom.axis >= 0 or atom.radix > 1]
        count = prod(atom.radix for atom in atoms)
        sizes = [axis.size for axis in axes if axis.letter == letter]
        if len(atoms) == len(sizes) == 1:
            (atom,), (size,) = atoms, sizes
            digits = [min(max(tap - atom.low, 0), atom.size - 1) for tap in range(count)]
            first = atom.start // abs(atom.step) % size if atom.size < size else 0
            places = [first + digit for digit in digits]
            if atom.step < 0:
                last = first if atom.size < size else size - 1
                places = [last - digit for digit in digits]
        else:
            is_turned = any(atom.step < 0 for atom in atoms)
            places = [*range(count)[:: -1 if is_turned else 1]]
        found[letter] = tuple(places)
    return found


def _spans(view: View, outs: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return the start and length of a parameter along each axis that it fills without gaps."""
    found = {}
    for place in set(outs) - {-1}:
        first, *inner = view.axes[place] or (Atom.of(-1, 1),)
        run = prod(atom.size for atom in inner)
        if run == prod(atom.radix for atom in inner):
            found[place] = (first.low * run, first.size * run)
    return found


def _runs(
    view: View, kinds: Sequence[str], rank: int, batched: Collection[tuple[int, int, int]]
) -> list[list[_Run]]:
    """Return the digits that lie along every stored axis, the slowest first."""
    found: list[list[_Run]] = [[] for _ in range(rank)]
    for place, atoms in enumerate(view.axes):
        step = prod(atom.radix for atom in atoms)
        for atom in atoms:
            step //= max(atom.radix, 1)
            if atom.axis >= 0:
                letter = "B" if (place, step, atom.radix) in batched else kinds[place]
                found[atom.axis].append(_Run(atom, letter, place))
    for atom in view.fixed:
        if atom.axis >= 0:
            found[atom.axis].append(_Run(atom, "B", -1))
    for runs in found:
        runs.sort(key=lambda run: -abs(run.atom.step))
    return found


def steps_of(
    ways: Iterable[tuple[View, Sequence[str], Collection[tuple[int, int, int]]]],
    shape: Sequence[int],
) -> Steps:
    """Return how the uses of a parameter number the matrices of a stack, where one axis has all.

    A loop over one of two digits reads matrices that lie apart, so these digits are axes of their
    own. `ways` are, for each use, the view, and the kinds and batch digits as in :func:`stored`.
    """
    found: dict[int, set[int]] = {}
    for view, kinds, batched in ways:
        for axis, runs in enumerate(_runs(view, kinds, len(shape), batched)):
            kept = [run for run in runs if run.atom.radix > 1 or run.letter == "B"]
            own = {abs(run.atom.step) for run in kept}
            wide = {abs(run.atom.step) for run in kept if run.atom.size > 1}
            if {run.letter for run in kept} == {"B"} and wide and own != {1}:
                found.setdefault(axis, {1}).update(own)
    parted = {axis: tuple(sorted(own, reverse=True)) for axis, own in found.items()}
    return {
        axis: own
        for axis, own in parted.items()
        if all(a % b == 0 for a, b in pairwise((shape[axis], *own)))
    }


def _numbered(runs: Sequence[_Run], size: int, steps: Sequence[int]) -> list[_Axis]:
    """Return the parts of an axis that only numbers matrices, one for each step."""
    lengths = [a // b for a, b in pairwise((size, *steps))]
    first = sum(atom.start + min((atom.size - 1) * atom.step, 0) for atom, *_ in runs)
    spans = [(first // b % n, 1) for b, n in zip(steps, lengths, strict=True)]
    places = [-1] * len(steps)
    is_known = True
    for run in runs:
        step, left = abs(run.atom.step), run.atom.size
        if left == 1 and run.place < 0:
            continue
        is_known &= step in steps and (run.atom.step > 0 or run.place < 0)
        at = steps.index(step) if step in steps else 0
        places[at] = run.place
        while left > 1 and is_known:
            (begin, _), length = spans[at], lengths[at]
            if begin + left <= length:
                spans[at], left = (begin, left), 1
            else:  # whole values of the next digit
                is_known = at > 0 and begin == 0 and left % length == 0
                spans[at], places[at], left, at = (0, length), -1, left // length, at - 1
    parts = zip(lengths, places, spans, strict=True)
    return [
        _Axis(length, "B", place, (begin, begin + many) if is_known else None)
        for length, place, (begin, many) in parts
    ]


def _indices(atom: Atom, step: int) -> Rows | None:
    """Return the first index of an operand along an axis of some step, and the one behind it."""
    first = atom.start // step
    return (first, first + atom.size) if atom.size == 1 or atom.step == step else None


def _parted(runs: Sequence[_Run], size: int) -> list[_Axis] | None:
    """Split a stored axis by its digits; None if they do not cover it.

    The first digit may be at some of its values, each that numbers matrices, and one among these.
    """
    before, parts = size, list[_Axis]()
    is_alone = sum(run.letter != "B" for run in runs) == 1
    for run in runs:
        step = abs(run.atom.step)
        length, rest = divmod(before, step)
        is_part = bool(parts) and run.letter != "B" and run.atom.size < length
        if rest or (is_part and not is_alone):
            return None
        parts.append(_Axis(length, run.letter, run.place, _indices(run.atom, step)))
        before = step
    return parts if before == 1 else None


def _named(axes: Sequence[_Axis], view: View, kinds: Sequence[str], batch: str) -> list[_Axis]:
    """Give every batch axis a letter, and add the missing axis of size 1."""
    new = list(axes)
    for at, axis in enumerate(new):
        if axis.letter == "?":  # size 1: a missing axis I or O, or a batch axis
            have = {other.letter for other in new}
            new[at] = axis._replace(letter=next((c for c in "IO" if c not in have), "B"))
    for place, letter in enumerate(kinds if len(axes) > 1 else ()):
        missing = letter in "IO" and all(axis.letter != letter for axis in new)
        if missing and prod(atom.radix for atom in view.axes[place]) == 1:
            new.append(_Axis(1, letter, place))  # a depthwise kernel is stored without it
    spare = iter(dict.fromkeys(batch + _BATCH))
    return [a._replace(letter=next(spare)) if a.letter == "B" else a for a in new]


def blocks_of(found: Stored, cuts: Mapping[str, Cut], name: str) -> dict[str, Rows]:
    """Return the rows of a weight that each part holds; none if these are not blocks.

    Parameters
    ----------
    found : Stored
        The weight.
    cuts : mapping of str to Cut
        Parts of the operation's result, by node; each is one range.
    name : str
        The operation, whose whole result is one part if it has no cuts, but reads a slice.
    """
    lengths = [n for n, letter in zip(found.shape, found.letters, strict=True) if letter == "O"]
    first, last = found.cut or (0, lengths[0])
    used, inner = [last - first, *lengths[1:]], prod(lengths[1:])
    parts = {}
    for node, (axis, start, stop, _) in cuts.items():
        depth = 0
        while depth < len(found.outs) and found.outs[depth] == axis:
            depth += 1
        begin, own = found.spans.get(axis, (0, 0))
        if axis in found.outs[depth:] or prod(used[:depth]) != own or not depth:
            return {}
        low, high = max(start - begin, 0), min(stop - begin, own)
        if low < high:
            rest = prod(lengths[depth:])
            parts[node] = (first * inner + low * rest, first * inner + high * rest)
    if not parts and found.cut is not None:
        return {name: (first * inner, last * inner)}
    return parts
