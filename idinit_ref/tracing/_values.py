"""Internal: the value of a tensor in a trace: a signal, made of parameters, or data."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from ..core.layout import SPATIAL
from ._axes import View
from ._kernels import identity
from ._made import Made, Shape
from ._stored import Cut, Rows, Steps, Stored, blocks_of, stacked, stored
from ._units import Unit


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
    rejoined: bool = False  # its result is joined with those of other slices of its weight
    cropped: set[int] = field(default_factory=set)  # axes that a crop has shifted already
    makes: str = ""  # its result is the kernel of this product of signals
    loose: bool = False  # sums with parts of its result are joined: one role means one matrix
    gated: bool = False  # two parts of its result are multiplied
    behind: bool = False  # functions of each entry stand before cuts of its result
    cuts: dict[str, Cut | None] = field(default_factory=dict)  # by node; None: no block
    inner: dict[str, Operation] = field(default_factory=dict)  # by node: that part, which is cut
    batched: set[tuple[int, int, int]] = field(default_factory=set)  # axis, step and size of
    # digits that a later weight has as batch axes

    @property
    def key(self) -> Hashable:
        """What it computes of a signal and a parameter, as it is made."""
        facts = (self.left, self.spread, self.dilation, self.space, self.forward, self.reads)
        return tuple(self.kinds or ()), repr(self.options), facts, self.each

    def cut(self, node: str, place: Cut | None) -> Operation | None:
        """Record a part of its result, and return what gives this part; None if it is no block."""
        self.cuts[node] = place
        if place is None or self.left is not None:
            return None
        self.inner[node] = replace(self, whole=False, loose=False, cuts={}, inner={})
        return self.inner[node]

    def keep(self, nodes: Container[str]) -> None:
        """Forget all other parts of its result."""
        self.cuts = {node: cut for node, cut in self.cuts.items() if node in nodes}
        for part in self.inner.values():
            part.keep(nodes)

    @property
    def is_loose(self) -> bool:
        """Whether it, or a part of it, is loose."""
        return self.loose or any(part.is_loose for part in self.inner.values())

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

    def stored(
        self,
        view: View | None,
        shape: Sequence[int],
        batch: str = "",
        steps: Steps = MappingProxyType({}),
    ) -> Stored | str:
        """Return the stored form of a parameter; `batch` and `steps` are as in `stored`."""
        if self.kinds is None:
            return "no layout is known for the weight of"
        found = stored(view, self.kinds, shape, self.batched, batch, steps)
        # Experts: stacked before the inputs. Heads, after them, are outputs of one matrix.
        if self.batched and not isinstance(found, str) and found.letters[0] not in "IO":
            return found
        if self.batched:
            found = stored(view, self.kinds, shape, (), batch, steps)
        return self._apart(found, view, shape, batch, steps)

    def _apart(
        self,
        found: Stored | str,
        view: View | None,
        shape: Sequence[int],
        batch: str,
        steps: Steps,
    ) -> Stored | str:
        """Return the stored form with the matrices that a packed weight interleaves as a stack."""
        cuts, is_grouped = set(self._cuts.values()), self.options.get("groups", 1) > 1
        if isinstance(found, str) or view is None or not cuts or is_grouped or self.kinds is None:
            return found
        packs = found.cut is None and self.is_packed({cut.stop - cut.start for cut in cuts})
        each = {(c.stop - c.start) * self.sizes[c.axis] // c.period for c in cuts}
        if not packs or self.is_narrow(each) or self.parts(found)[1]:
            return found
        stack = stacked(view, self.kinds, self.sizes, cuts, shape, batch, steps)
        return replace(stack, solid=found) if stack else found

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

    def parts(self, found: Stored) -> tuple[str, dict[str, Rows]]:
        """Return the parts of a matrix that are used separately, and the letter of their axis.

        By the node that holds the result of each: a part of this operation's result, or all of it.
        They are blocks of the outputs, or interleaved matrices. None if it is not packed.
        """
        cuts = self._cuts
        if found.solid is not None:  # a stack of interleaved matrices
            (letter,) = found.batch.values()
            first, _ = found.member.get(letter, (0, 0))  # if it reads only some of these matrices
            at = {node: first + c.start // (c.stop - c.start) for node, c in cuts.items()}
            return letter, {node: (index, index + 1) for node, index in at.items()}
        if any(cut.period < self.sizes[cut.axis] for cut in cuts.values()):
            cuts = {}
        if self.rejoined or (found.cut is None and not cuts):
            return "O", {}
        axes = {cut.axis for cut in cuts.values()}
        member = found.batch.get(*axes) if len(axes) == 1 else None
        first, last = found.member.get(member or "", (0, 0))
        if member and last - first == self.sizes[min(axes)]:  # of a stack, applied side by side
            return member, {n: (first + cut.start, first + cut.stop) for n, cut in cuts.items()}
        return "O", blocks_of(found, cuts, self.name)

    @property
    def _cuts(self) -> dict[str, Cut]:
        """The parts of its result by node, if it is used in parts alone."""
        return self._cuts_in(None)[0]

    def _cuts_in(self, size: int | None) -> tuple[dict[str, Cut], dict[str, Cut]]:
        """Return its parts by node, and those that are cut again; `size` is that of a part."""
        found: dict[str, Cut] = {}
        again: dict[str, Cut] = {}
        cuts = {node: cut for node, cut in self.cuts.items() if cut is not None}
        if self.whole or self.rejoined or len(cuts) < len(self.cuts):
            return found, again
        for node, cut in cuts.items():
            own = cut.stop - cut.start
            of = self.inner.get(node) if cut.period == (size or self.sizes[cut.axis]) else None
            parts, more = of._cuts_in(own) if of else ({}, {})
            is_single = any(part.stop - part.start == 1 for part in parts.values())  # no matrices
            if not parts or is_single or any(part.period != own for part in parts.values()):
                found[node] = cut
                continue
            again[node] = cut
            found |= {at: part._replace(period=cut.period) for at, part in parts.items()}
            again |= {at: part._replace(period=cut.period) for at, part in more.items()}
        return found, again

    def cut_again(self, found: Stored) -> dict[str, Rows]:
        """Return the rows of the parts that are cut into further parts, by node."""
        again = self._cuts_in(None)[1]
        return blocks_of(found, again, self.name) if again else {}

    def is_narrow(self, sizes: Set[int]) -> bool:
        """Whether parts behind functions of each entry are too narrow for all inputs: no matrices.

        So are the gates of a router, each of which is read alone.
        """
        return self.behind and min(sizes) < self._inputs

    def is_packed(self, sizes: Set[int]) -> bool:
        """Whether parts of some sizes mean a packed weight.

        Split channels alone do not, if the parts are too narrow for all inputs: each goes on with
        some of the channels.
        """
        is_dense = self.left is None or (self.gated and len(sizes) == 1)
        return is_dense or min(sizes) >= self._inputs

    @property
    def _inputs(self) -> int:
        pairs = zip(self.kinds or (), self.sizes, strict=False)
        own = prod(size for kind, size in pairs if kind == "I")
        return own * int(self.options.get("groups", 1))


class Track(NamedTuple):
    """The operation of which a signal is the result, also after a bias, moves and slices."""

    operation: Operation
    view: View
    is_part: bool = False
    is_faded: bool = False  # after other elementwise operations: only axes are known
    part: Operation | None = None  # the operation that stands for this part

    def spend(self) -> None:
        """Record that the result, or this part of it, is used whole."""
        of = self.part if self.is_part else self.operation
        if of is not None:
            of.whole = True


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


class Patches(NamedTuple):
    """Windows of a signal at all places where a kernel meets it."""

    signal: Signal
    view: View  # of the batch, the channels, the kernel's axes and the places
    sizes: Shape  # of these
    how: Mapping[str, Any]  # how the kernel moves, as options of `Layers.convolution`

    def moved(self, move: Callable[[View], View | None]) -> Patches | None:
        """Return them moved; None if their axes are no longer tracked."""
        view = move(self.view)
        return None if view is None else self._replace(view=view)


class Mixture(NamedTuple):
    """A weight that a router mixes from a stack, as a product in which a constant stands for it."""

    made: Made
    router: Signal

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Mixture:
        """Return it moved."""
        return self._replace(made=self.made.moved(shape, move))


class Blend(NamedTuple):
    """A weight that is a sum of several, each times one number that the inputs give."""

    terms: tuple[tuple[Value, Made], ...]  # each number and its weight
    nodes: tuple[str, ...]  # of the sum and of its terms

    def moved(self, shape: Shape | None, move: Callable[[View], View | None]) -> Blend:
        """Return it moved."""
        terms = tuple((by, made.moved(shape, move)) for by, made in self.terms)
        return self._replace(terms=terms)


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
    patches: Patches | None = None  # the windows that it consists of
    mixture: Mixture | Blend | None = None  # it is a weight that a router mixes

    def along(self, axes: Sequence[int]) -> Signal:
        """Return it with only some of its axes; along the others it was copied."""
        shape = tuple((self.shape or ())[axis] for axis in axes)
        tracks = tuple(track._replace(view=track.view.transpose(axes)) for track in self.tracks)
        return Signal(self.narrow or self.node, shape, tracks)

    def spend(self) -> None:
        """Record that the results of operations are used whole."""
        for track in self.tracks:
            track.spend()

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
    if value.value is not None:
        return True
    return value.number or (value.shape is not None and prod(value.shape) == 1)
