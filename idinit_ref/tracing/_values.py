"""Internal: the value of a tensor in a trace: a signal, made of parameters, or data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..core.layout import SPATIAL
from ._axes import View
from ._kernels import identity
from ._stored import Stored, blocks_of, stored
from ._units import Unit

Shape = tuple[int, ...]
Cut = tuple[int, int, int]
"""An axis of an operation's weight, a start and a stop."""


class Part(NamedTuple):
    """A parameter in a value; the view is None if its axes cannot be tracked."""

    name: str
    view: View | None
    stopped: bool = False  # no gradient reaches it
    done: str = ""  # its change, except moves, casts and scalings by a number
    added: bool = False  # it is added to other parameters or constants
    factor: bool = False  # the whole value vanishes with this part alone, to first order
    still: bool = False  # the same, to any order
    offset: float = 0.0  # it is added to this number alone; 0: to none

    @property
    def ends(self) -> bool:
        """Whether the whole value vanishes with this part, to first order."""
        return self.factor or not (self.done or self.added)

    @property
    def vanishes(self) -> bool:
        """Whether the whole value vanishes with this part, to any order."""
        return self.still or self.ends


class Factors(NamedTuple):
    """A product of two values of parameters, given as an einsum; `view` says how it was moved."""

    values: tuple[Made, Made]
    labels: tuple[tuple[Hashable, ...], tuple[Hashable, ...]]
    out: tuple[Hashable, ...]
    view: View

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Factors | None:
        """Return it moved, or None if its axes are no longer tracked."""
        view = move(self.view)
        return None if view is None else self._replace(view=view)


class Terms(NamedTuple):
    """A sum of values of parameters, of which at least one is a product."""

    values: tuple[Made, ...]

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Terms | None:
        """Return it moved, or None if the axes of a term are no longer tracked."""
        values = tuple(value.moved(shape, move) for value in self.values)
        is_lost = any(part.view is None for value in values for part in value.parts)
        return None if is_lost else Terms(values)


class Made(NamedTuple):
    """A value computed only from parameters and constants; without parts it is a constant."""

    shape: Shape | None
    parts: tuple[Part, ...] = ()
    number: bool = False  # a constant with one value everywhere
    value: float | None = None  # that value, if it is known
    rooted: bool = False  # contains a root of several numbers, as of a running variance
    span: tuple[float, float] | None = None  # its least and largest entry, as the model holds it
    entries: bytes = b""  # a constant's float64 entries, in row-major order, if they are known
    recipe: Factors | Terms | None = None  # what it is applied as: one part after the other

    @property
    def extent(self) -> tuple[float, float] | None:
        """Its least and largest entry, if they are known."""
        return self.span if self.value is None else (self.value, self.value)

    @property
    def zero(self) -> bool:
        """Whether it is a constant that is 0 everywhere."""
        return not self.parts and self.extent == (0, 0)

    @property
    def numbers(self) -> NDArray[np.float64] | None:
        """Its entries, if it is a constant of known numbers."""
        if self.parts or self.shape is None or prod(self.shape) > _MOST:
            return None
        if self.value is not None:
            return np.full(self.shape, self.value)
        is_known = len(self.entries) == 8 * prod(self.shape) > 0
        return np.frombuffer(self.entries).reshape(self.shape) if is_known else None

    @property
    def integers(self) -> NDArray[np.int64] | None:
        """Its entries, if it is a constant of known integers."""
        found = self.numbers
        if found is None or not np.isfinite(found).all() or (found % 1).any():
            return None
        return found.astype(np.int64)

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Made:
        """Return it with the axes of all its parts moved."""
        new = []
        for part in self.parts:
            view = None if part.view is None else move(part.view)
            view = view if view is not None and view.is_dense else None
            if view is None or not view.is_empty:
                new.append(part._replace(view=view))
        recipe = self.recipe and self.recipe.moved(shape, move)
        return self._replace(shape=shape, parts=tuple(new), entries=b"", recipe=recipe)

    def lost(self, shape: Shape | None) -> Made:
        """Return it with parts whose axes are no longer tracked."""
        return self.moved(shape, lambda view: None)

    def noted(self, done: Callable[[str], str]) -> Made:
        """Return it with a note on each part that has none: the operation done to it."""
        parts = tuple(part._replace(done=part.done or done(part.name)) for part in self.parts)
        return self._replace(parts=parts, recipe=None)

    def multiplied(self, by: Collection[str]) -> Made:
        """Return it as a factor of a product with a value of other parameters."""
        parts = (part._replace(factor=part.ends and part.name not in by) for part in self.parts)
        return self._replace(parts=tuple(parts))

    def factored(self, names: Collection[str], still: Collection[str] = ()) -> Made:
        """Return it as a value that vanishes with each of some parameters, and with no other.

        It vanishes to first order with some of them, and to any order with those in `still`.
        """
        parts = (
            part._replace(factor=part.name in names, still=part.name in still)
            for part in self.parts
        )
        return self._replace(parts=tuple(parts))

    def varies(self, axis: int) -> bool:
        """Whether its entries may differ along an axis."""
        return any(part.view is None or part.view.varies(axis) for part in self.parts)

    @property
    def is_table(self) -> bool:
        """Whether it may vary along several axes, as tokens and positions do, unlike a bias."""
        views = [part.view for part in self.parts]
        return any(view is None or view.rank > 1 for view in views)

    @property
    def is_vector(self) -> bool:
        """Whether it varies along at most one axis, also after broadcasting."""
        if self.is_table:
            return False
        views = [part.view for part in self.parts if part.view is not None]
        if not views:
            return sum(size != 1 for size in self.shape or ()) < 2
        return len({a for view in views for a in range(len(view.axes)) if view.varies(a)}) < 2

    @property
    def is_plain(self) -> bool:
        """Whether it is one parameter, moved or scaled by a number at most."""
        return len(self.parts) == 1 and self.parts[0].ends and self.parts[0].view is not None

    @property
    def is_matrix(self) -> bool:
        """Whether every part is tracked and has more than one axis."""
        return all(part.view is not None and part.view.rank > 1 for part in self.parts)


def joined(shape: Shape | None, values: Sequence[Made]) -> Made:
    """Return a value of several; a parameter in two of them keeps the view with more axes."""
    ways: dict[str, list[Part]] = {}
    for value in values:
        here: dict[str, list[Part]] = {}
        for part in value.parts:
            here.setdefault(part.name, []).append(part)
        for name, new in here.items():
            old = ways.get(name)
            if old is None:
                ways[name] = new
                continue
            first, second = (old, new) if _shown(old) >= _shown(new) else (new, old)
            stopped = all(part.stopped for part in (*old, *new))
            added = any(part.added for part in (*old, *new))
            offset = old[0].offset if old[0].offset == new[0].offset else 0.0
            done = next((part.done for part in (*first, *second) if part.done), "")
            ways[name] = [
                Part(name, part.view, stopped, done, added, offset=offset) for part in first
            ]
    parts = tuple(part for parts in ways.values() for part in parts)
    return Made(shape, parts, rooted=any(value.rooted for value in values))


def _shown(parts: Sequence[Part]) -> int:
    return max(-1 if part.view is None else part.view.weight for part in parts)


@dataclass(eq=False)
class Operation:
    """A dense layer or convolution; the uses of its result decide whether it is packed.

    For a convolution, `left` is the left padding, `spread` the dilation of its input (more than 1
    if transposed), and `space` the spatial axes of its result.
    """

    sizes: Shape  # the shape of its weight
    kinds: Sequence[str] | None = None  # the letter of each axis, B for batch; None: unknown
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[int, ...] | None = None
    spread: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    space: tuple[int, ...] = ()
    forward: bool = True  # output s*j + r meets input j at tap left + r; else at left - r
    reads: frozenset[int] = frozenset()  # the axes of its input that it sums
    each: bool = False  # each row of its input has its own matrix of a stack
    sized: bool = False  # its padding depends on the input's size: the first use counts
    whole: bool = False  # its result is also used undivided
    cropped: set[int] = field(default_factory=set)  # axes that a crop has shifted already
    makes: str = ""  # its result is the kernel of this product of signals
    gated: bool = False  # two parts of its result are multiplied
    cuts: dict[str, Cut | None] = field(default_factory=dict)  # by node; None: no block
    batched: set[tuple[int, int, int]] = field(default_factory=set)  # axis, step and size of
    # digits that a later weight has as batch axes

    @property
    def key(self) -> Hashable:
        """What it computes of a signal and a parameter, as it is made."""
        facts = (self.left, self.spread, self.dilation, self.space, self.forward, self.reads)
        return tuple(self.kinds or ()), repr(self.options), facts, self.each

    def crop(self, spans: Sequence[tuple[int, int, int]]) -> None:
        """Record a slice that crops the result of a transposed convolution, as padding does."""
        if self.left is None or max(self.spread, default=1) == 1:
            return
        left = list(self.left)
        for at, axis in enumerate(self.space):
            start, _, step = spans[axis]
            if start > 0 and step == 1 and axis not in self.cropped:
                left[at] += start if self.forward else -start
                self.cropped.add(axis)
        self.left = tuple(left)

    def stored(self, view: View | None, shape: Sequence[int], batch: str = "") -> Stored | str:
        """Return the stored form of a parameter of the weight; `batch` is as in `stored`."""
        if self.kinds is None:
            return "no layout is known for the weight of"
        found = stored(view, self.kinds, shape, self.batched, batch)
        # Experts: stacked before the inputs. Heads, after them, are outputs of one matrix.
        if self.batched and (isinstance(found, str) or found.letters[0] in "IO"):
            return stored(view, self.kinds, shape, (), batch)
        return found

    def identity(self, found: Stored) -> dict[str, Any]:
        """Return the identity tap and the phases of a convolution, along the stored axes."""
        letters = SPATIAL[len(SPATIAL) - len(self.kernel) :]
        kept = [at for at, letter in enumerate(letters) if letter in found.letters]
        if self.left is None or not kept:
            return {}
        turned = [letters[at] in found.flipped for at in kept]
        facts = (self.left, self.dilation, self.kernel, self.spread)
        left, dilation, kernel, spread = ([fact[at] for at in kept] for fact in facts)
        own = [found.taps[letters[at]] for at in kept]
        return identity(left, dilation, kernel, spread, turned, self.forward, own)

    def parts(self, found: Stored) -> set[tuple[int, int]]:
        """Return the parts of a weight's outputs that are used separately; none if not packed."""
        cuts = self.cuts.values()
        whole = self.whole or None in cuts
        if found.cut is None and whole:
            return set()
        ranges = blocks_of(found, () if whole else [cut for cut in cuts if cut is not None])
        if self.left is not None and not (self.gated and len({b - a for a, b in ranges}) == 1):
            return set()  # split channels alone do not mean a packed weight
        return ranges


class Track(NamedTuple):
    """The operation of which a signal is the result, also after a bias, moves and slices."""

    operation: Operation
    view: View
    is_part: bool = False
    is_faded: bool = False  # after other elementwise operations: only axes are known


class Fold(NamedTuple):
    """A convolution result that is wrapped around: padded, split at a period, and summed."""

    track: Track
    low: tuple[int, ...]  # how far padding has moved it, along each axis
    axes: tuple[int, ...] = ()  # those that may hold the periods


class Piece(NamedTuple):
    """A part of another signal, and its shift along every axis, if any."""

    node: str
    shift: tuple[int, ...] | None

    def cropped(self, starts: Sequence[int] | None) -> Piece:
        """Return it after a slice that drops leading entries; None if the slice is not plain."""
        if starts is None or self.shift is None:
            return self._replace(shift=None)
        by = zip(self.shift, starts, strict=True)
        return self._replace(shift=tuple(at - start for at, start in by))


class Place(NamedTuple):
    """Where entries of another value lie in a signal that moves and joins have made of it."""

    of: Value
    view: View  # of that value in the shape `seen`
    seen: Shape


class Term(NamedTuple):
    """An elementwise product of a signal and a value of parameters."""

    signal: Signal
    made: Made


class Signal(NamedTuple):
    """A floating tensor that depends on the inputs of the model."""

    node: str
    shape: Shape | None = None
    tracks: tuple[Track, ...] = ()
    halves: frozenset[tuple[Operation, Cut]] = frozenset()
    narrow: str | None = None  # the node that was broadcast to this one
    spread: frozenset[int] = frozenset()  # the axes along which broadcasting copied it
    picks: bool = False  # one-hot: a product with it looks up rows
    pieces: tuple[Piece, ...] = ()  # the signals that it is a part of, nearest first
    shift: tuple[int, ...] = ()  # how far padding has moved it, along each axis
    member: Made | None = None  # one matrix of a stack, chosen by an input
    chosen: str = ""  # the node that chose it; "" if an input scales it
    is_number: bool = False  # one number everywhere
    term: Term | None = None
    fold: Fold | None = None
    units: tuple[Unit, ...] = ()  # the axes that hold the outputs of the weights before it
    is_direct: bool = False  # the result of a weight operation or norm, moved, scaled or shifted
    places: tuple[Place, ...] = ()  # of its entries in other values; () if it is none of them

    def along(self, axes: Sequence[int]) -> Signal:
        """Return it with only some of its axes; along the others it was copied."""
        shape = tuple((self.shape or ())[axis] for axis in axes)
        tracks = tuple(track._replace(view=track.view.transpose(axes)) for track in self.tracks)
        return Signal(self.narrow or self.node, shape, tracks)

    def spend(self) -> None:
        """Record that the result of an operation is used whole."""
        for track in self.tracks:
            if not (track.is_part or track.is_faded):
                track.operation.whole = True

    @property
    def fresh(self) -> tuple[Track, ...]:
        """The operations of which it is the result, with at most a bias added."""
        return tuple(track for track in self.tracks if not track.is_faded)

    @property
    def moved(self) -> tuple[int, ...]:
        """Its shift by padding along each axis."""
        return self.shift or (0,) * len(self.shape or ())

    @property
    def chain(self) -> tuple[Piece, ...]:
        """The signals that it is a part of, nearest first, starting with itself."""
        return (Piece(self.node, self.moved), *self.pieces)


class Data(NamedTuple):
    """Integers, bools or strings that depend on the model's inputs."""

    shape: Shape | None = None


Value = Signal | Made | Data
_MOST = 1 << 16  # the most numbers of a constant that are kept
_EXACT = 1 << 53  # integers beyond are no floats


def span_of(numbers: Any) -> tuple[float, float] | None:
    """Return the least and the largest of some real numbers; None if they have none.

    >>> span_of([-1, 0.5]), span_of([]), span_of([float("nan")])
    ((-1.0, 0.5), None, None)
    """
    array = np.asarray(numbers)
    if not array.size or array.dtype.kind not in "biuf":
        return None
    least, largest = float(array.min()), float(array.max())
    return (least, largest) if least <= largest else None


def entries_of(numbers: Any) -> bytes:
    """Return the entries of an array of not too many real numbers, for `Made.entries`; else b"".

    >>> len(entries_of(np.array([2, 4]))), entries_of(np.array([2j]))
    (16, b'')
    """
    array = np.asarray(numbers)
    if array.dtype.kind not in "biuf" or not 0 < array.size <= _MOST:
        return b""
    is_exact = array.dtype.kind not in "iu" or max(abs(int(array.min())), int(array.max())) < _EXACT
    return array.astype(np.float64).tobytes() if is_exact else b""


def is_constant(value: Value) -> TypeGuard[Made]:
    """Whether a value depends neither on the inputs nor on the parameters."""
    return isinstance(value, Made) and not value.parts


def is_zero(value: Value) -> bool:
    """Whether a value is a constant that is 0 everywhere."""
    return isinstance(value, Made) and value.zero and not value.parts


def is_number(value: Value) -> bool:
    """Whether a value is a constant of one number."""
    if not isinstance(value, Made) or value.parts:
        return False
    return value.number or (value.shape is not None and prod(value.shape) == 1)


def names_of(values: Iterable[Value]) -> list[str]:
    """Return the names of the parameters in some values."""
    parts = (part for value in values if isinstance(value, Made) for part in value.parts)
    return list(dict.fromkeys(part.name for part in parts))
