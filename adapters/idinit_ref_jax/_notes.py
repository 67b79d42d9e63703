"""What is known while a jaxpr is walked, and the graph that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

import jax.numpy as jnp

from idinit_ref import Graph, Node
from idinit_ref.graph import Kind, Use
from idinit_ref.layout import SPATIAL, merge_axes

from ._axes import Stored, View, blocks_of, identity, stored

__all__ = [
    "CONSTANT",
    "INTEGER",
    "NUMBER",
    "SIGNAL",
    "Cut",
    "Fold",
    "Made",
    "Notes",
    "Operation",
    "Parameter",
    "Part",
    "Signal",
    "Track",
    "Value",
    "is_constant",
    "is_floating",
]

CONSTANT: Final = "constant"
"""A value that depends neither on the inputs nor on the parameters."""
NUMBER: Final = "number"
"""A constant that is one number, or one number everywhere."""
INTEGER: Final = "integer"
"""A value that depends on the inputs, and is no floating tensor."""
SIGNAL: Final = "signal"
"""The carry of a loop that is a signal, with no node yet."""

Cut = tuple[int, int, int]
"""An axis of the weight of an operation, and from where to where."""

_SELF_NAMED = {"kernel", "weight", "embedding"}


class Parameter(NamedTuple):
    """A parameter of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


class Part(NamedTuple):
    """How a parameter goes into something; no view where its axes are lost."""

    view: View | None
    stopped: bool = False  # behind stop_gradient
    done: str = ""  # what was done to it besides moving, casting and scaling by a number
    added: bool = False  # to other parameters or constants


@dataclass(frozen=True)
class Made:
    """A value made of parameters and constants alone."""

    parts: Mapping[str, Part]

    def moved(self, move: Callable[[View], View | None]) -> Made:
        """Return what becomes of it when the axes of all its parts are moved."""
        return Made(
            {
                name: part._replace(view=None if part.view is None else move(part.view))
                for name, part in self.parts.items()
            }
        )

    def join(self, other: Made) -> Made:
        """Return what is made of both; of two ways to one parameter, that which shows more."""
        parts = dict(self.parts)
        for name, new in other.parts.items():
            old = parts.get(name, new)
            seen = max((old.view, new.view), key=lambda view: -1 if view is None else view.weight)
            first, second = (old, new) if seen is old.view else (new, old)
            parts[name] = Part(
                seen,
                old.stopped and new.stopped,
                first.done or second.done,
                old.added and new.added,
            )
        return Made(parts)

    def noted(self, done: Callable[[str], str]) -> Made:
        """Return it with a note of what is done to each part, where there is none yet."""
        return Made(
            {name: part._replace(done=part.done or done(name)) for name, part in self.parts.items()}
        )


@dataclass(eq=False)
class Operation:
    """A dense layer or convolution; what becomes of its result says whether it is packed."""

    sizes: tuple[int, ...]  # the shape of its weight
    kinds: Sequence[str] | None = None  # the letter of each axis, B for batch; None: unknown
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[int, ...] | None = None  # padding of a convolution, and so on
    strides: tuple[int, ...] = ()  # by which a transposed convolution spreads its input
    dilation: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    space: tuple[int, ...] = ()  # the axes of its result that its kernel moves along
    whole: bool = False  # used in one piece too
    gated: bool = False  # two parts of it meet in a product
    cuts: set[Cut] = field(default_factory=set)
    batched: set[int] = field(default_factory=set)  # axes that a later weight has as batch axes

    def stored(self, view: View | None, shape: Sequence[int]) -> Stored | str:
        """Return how a parameter is stored that the weight is made of."""
        if self.kinds is None:
            return "no layout is known for the weight of"
        kinds = ["B" if at in self.batched else kind for at, kind in enumerate(self.kinds)]
        found = stored(view, kinds, shape)
        # Experts: stacked before the inputs. Heads, after them, are outputs of one matrix.
        if self.batched and (isinstance(found, str) or found.letters[0] in "IO"):
            return stored(view, self.kinds, shape)
        return found

    def identity(self, flipped: str) -> dict[str, Any]:
        """Return the tap of a convolution that passes its input unshifted, and its phases."""
        if self.left is None:
            return {}
        turned = [letter in flipped for letter in SPATIAL[len(SPATIAL) - len(self.kernel) :]]
        return identity(self.left, self.strides, self.dilation, self.kernel, turned)

    def parts(self, stored: Stored) -> set[tuple[int, int]]:
        """Return which parts of a weight's outputs are used each on its own; none if it is one."""
        if stored.cut is None and self.whole:
            return set()
        found = blocks_of(stored, self.cuts, self.sizes)
        if self.left is not None and not (self.gated and len({b - a for a, b in found}) == 1):
            return set()  # channels that are split are not for that a packed weight
        return found


class Track(NamedTuple):
    """That a signal is the result of an operation, perhaps after a bias, reshapes and cuts."""

    operation: Operation
    view: View
    is_part: bool = False
    is_faded: bool = False  # after other elementwise operations: only its axes are known


class Fold(NamedTuple):
    """That the result of a convolution is laid in circles: padded, cut at a period, and summed."""

    track: Track
    low: tuple[int, ...]  # how far padding has moved it, along each axis
    axis: int = -1  # the axis that holds the periods


@dataclass(frozen=True)
class Signal:
    """A floating tensor that depends on the inputs of the model."""

    node: str
    tracks: tuple[Track, ...] = ()
    halves: frozenset[tuple[Operation, Cut]] = frozenset()
    narrow: str | None = None  # the node that was broadcast to this one
    picks: bool = False  # one-hot: a product with it looks up rows
    origin: str | None = None  # the node of which it is a part
    shift: tuple[int, ...] = ()  # how far padding has moved it, along each axis
    member: Made | None = None  # one of a stack of matrices, chosen by an input,
    chosen: str = ""  # and the node that chose it; "" if it is scaled by an input
    is_number: bool = False  # one number everywhere
    fold: Fold | None = None

    def spend(self) -> None:
        """Note that the result of an operation is used in one piece."""
        for track in self.tracks:
            if not (track.is_part or track.is_faded):
                track.operation.whole = True

    @property
    def fresh(self) -> tuple[Track, ...]:
        """Of what it is the result, with nothing but a bias added."""
        return tuple(track for track in self.tracks if not track.is_faded)


Value = Made | Signal | Literal["constant", "number", "integer", "signal"]


def is_constant(value: Value) -> bool:
    """Whether a value depends neither on the inputs nor on the parameters."""
    return value in (CONSTANT, NUMBER)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype holds real or complex numbers."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


class Notes:
    """The nodes of a graph so far, and what its parameters were seen to be for."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = {given.name: given for given in parameters}
        self.nodes: list[Node] = []
        self._taken = dict.fromkeys(self.parameters, 1)  # names, and how often they were asked for
        self._after: dict[str, tuple[int, str]] = {}  # the last weight or input before a node
        self._uses: list[tuple[str, Use | Literal["sum"], str | None, bool]] = []
        self._weights: list[tuple[str, Operation, View | None]] = []
        self._scales: dict[str, str] = {}
        self._done: dict[str, str] = {}  # why the weight of an operation is not the parameter
        self._stops: set[str] = set()
        self._members: set[str] = set()  # lookups that chose a weight, and are no embeddings

    def rehearsal(self) -> Notes:
        """Return a copy to try something with."""
        other = copy(self)
        for name, value in vars(self).items():
            setattr(other, name, copy(value))
        return other

    def emit(
        self,
        kind: Kind,
        base: str,
        inputs: Iterable[str],
        shape: Sequence[int],
        weights: Sequence[str] = (),
    ) -> str:
        """Add a node, and return its name."""
        names = tuple(inputs)
        last = max((self._after[name] for name in names), default=(-1, ""))
        if kind in ("add", "other") and last[1]:
            base = f"{last[1]}: {base}"
        name = base
        while name in self._taken:
            self._taken[base] += 1
            name = f"{base} ({self._taken[base]})"
        self._taken[name] = 1
        at = {"weight": len(self.nodes), "input": -1}.get(kind)
        self._after[name] = last if at is None else (at, name)
        self.nodes.append(Node(name, kind, names, tuple(shape), tuple(weights)))
        return name

    def start(self, base: str, shape: Sequence[int]) -> Signal:
        """Add a node where a signal starts."""
        return Signal(self.emit("input", base, (), shape))

    def stop(self, signal: Signal) -> None:
        """Note that no gradient passes a node."""
        self._stops.add(signal.node)

    def choose(self, signal: Signal) -> None:
        """Note that what was looked up is the weight of an operation."""
        self._members.add(signal.chosen)

    def use(self, made: Made, use: Use, node: str | None = None) -> None:
        """Note what parameters are for, and which node takes them."""
        for name, part in made.parts.items():
            seen: Use | Literal["sum"] = "sum" if part.added and use == "other" else use
            self._uses.append((name, seen, node, part.stopped))

    def weight(
        self, base: str, made: Made, signal: Signal, shape: Sequence[int], operation: Operation
    ) -> str:
        """Add a weight operation, and return its name."""
        floating = [name for name in made.parts if is_floating(self.parameters[name].dtype)]
        whole = [
            name for name in made.parts if jnp.issubdtype(self.parameters[name].dtype, jnp.integer)
        ]
        names = floating or list(made.parts)
        first = names[0]
        head, _, tail = first.rpartition(".")
        label = head if head and tail in _SELF_NAMED else f"{first}: {base}"
        name = self.emit("weight", label, (signal.node,), shape, names)
        operation.name = name
        if whole:
            self._scales |= dict.fromkeys(floating, whole[0])
        for part_name, part in made.parts.items():
            if part.done:
                self._done.setdefault(part_name, part.done)
        self.use(made, "weight", name)
        self._weights += [(name, operation, part.view) for name, part in made.parts.items()]
        return name

    # The graph ------------------------------------------------------------------------------

    def graph(self, outputs: Sequence[Value]) -> Graph:
        """Return the graph, the parameters first."""
        ends = []
        for value in outputs:
            if isinstance(value, Signal):
                value.spend()
                ends.append(value.node)
            elif isinstance(value, Made):
                self.use(value, "other")
        frozen = self._frozen(ends)
        uses: dict[str, set[Use | Literal["sum"]]] = {name: set() for name in self.parameters}
        for name, use, node, _ in self._uses:
            uses[name].add("weight" if node in self._members else use)
        seen: dict[str, list[tuple[Operation, Stored | str]]] = {name: [] for name in uses}
        for name, operation, view in self._weights:
            how = operation.stored(view, self.parameters[name].shape)
            seen[name].append((operation, how))
        nodes = [
            self._parameter(given, uses[name], seen[name], name in frozen)
            for name, given in self.parameters.items()
        ]
        return Graph([*nodes, *self.nodes], tuple(dict.fromkeys(ends)))

    def _frozen(self, outputs: list[str]) -> set[str]:
        """Return the parameters that reach the outputs, but only by way of stop_gradient."""
        reached, free = set(outputs), set(outputs)
        for node in reversed(self.nodes):
            if node.name in reached:
                reached.update(node.inputs)
                if node.name in free and node.name not in self._stops:
                    free.update(node.inputs)
        free -= self._stops
        seen = [(name, node, stopped) for name, _, node, stopped in self._uses if node in reached]
        learns = {name for name, node, stopped in seen if node in free and not stopped}
        learns |= {name for name, _, node, stopped in self._uses if node is None and not stopped}
        return {name for name, *_ in seen} - learns

    def _parameter(
        self,
        given: Parameter,
        uses: set[Use | Literal["sum"]],
        seen: list[tuple[Operation, Stored | str]],
        frozen: bool,
    ) -> Node:
        use: Use = "other"
        if "embedding" in uses:
            use = "embedding"
        elif "weight" in uses:
            use = "weight"
        elif uses - {"sum"} == {"bias"}:  # a sum is where a state starts at a constant
            use = "bias"
        shape, options, note = _storage(given, seen)
        if given.name in self._done:
            note = f"{self._done[given.name]} before its use as a weight: a role is the result's"
        if use == "embedding" or len(given.shape) < 2:
            note = ""
        if given.name in self._scales:
            note = f"a part of the quantised weight {self._scales[given.name]}"
        if frozen:
            note = "frozen: every use of it is behind jax.lax.stop_gradient"
        if not is_floating(given.dtype):
            note = f"{jnp.dtype(given.dtype).name}: not a floating parameter"
        if not uses:
            note = "not used by the computation of these example inputs"
        return Node(given.name, "parameter", (), shape, use=use, options=options, note=note)


def _storage(
    given: Parameter, seen: list[tuple[Operation, Stored | str]]
) -> tuple[tuple[int, ...], dict[str, Any], str]:
    """Return the shape of the matrix, how it is stored, and what is wrong with it."""
    ways: dict[str, tuple[Operation, Stored, dict[str, Any]]] = {}
    for operation, how in seen:
        if isinstance(how, Stored):
            shape, layout = merge_axes(how.shape, how.letters)
            options = {"layout": layout, **operation.options, **operation.identity(how.flipped)}
            key = repr((how.shape, how.letters, options))
            ways.setdefault(key, (operation, how, options))
    if len(ways) > 1:
        (a, _, x), (b, _, y), *_ = ways.values()
        note = f"used in two ways that need different plans: by {a.name} {x}, by {b.name} {y}"
        return given.shape, {}, note
    if not ways:
        note = f"{seen[0][1]} {seen[0][0].name}" if seen else ""
        return given.shape, {}, note
    _, how, options = next(iter(ways.values()))
    shape, _ = merge_axes(how.shape, how.letters)
    parts = [op.parts(way) for op, way in seen if isinstance(way, Stored)]
    blocks = _blocks(parts, shape[options["layout"].index("O")])
    if blocks:
        options["blocks"] = blocks
    if (shape, options["layout"]) != (given.shape, how.letters):
        options["parted"] = how.shape, how.letters
    return shape, options, ""


def _blocks(parts: list[set[tuple[int, int]]], outputs: int) -> tuple[int, ...] | None:
    """Return the sizes of a packed weight's blocks, or None if it is no packed one."""
    ranges = sorted(set().union(*parts))
    if not all(parts) or len(ranges) < 2 or any(a[1] > b[0] for a, b in pairwise(ranges)):
        return None
    ends = sorted({0, outputs, *(end for span in ranges for end in span)})
    return tuple(b - a for a, b in pairwise(ends))
