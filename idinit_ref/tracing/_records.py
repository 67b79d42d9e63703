"""Internal: what a drawing records while it is drawn, until its graph is settled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from ..roles.graph import Node, Use
from ._added import Addend, Drawn
from ._at_zero import AtZero
from ._forms import Form
from ._made import Made
from ._makers import Kernel
from ._parameter import Parameter
from ._summed import Gathered, Weighed
from ._units import Places, Unit
from ._values import Operation, Signal, Value

__all__ = ["Met", "Records"]

Met = Use | Literal["sum", "rows"]
"""A use of a parameter; "rows" are all rows in some order: of a weight, or of an embedding."""


class _Copied:
    """A group of records; a copy of it has copies of them."""

    def __copy__(self) -> Self:
        return type(self)(**{name: copy(value) for name, value in vars(self).items()})


@dataclass
class Uses(_Copied):
    """How parameters are used: in `each`, the parameter, its use, the node, and if it is stopped.

    By parameter: what rounds it before each use (`steps`), what is `done` to it before it is a
    weight, the unknown operation that it `met`, and the quantised weight that it `scales`.
    """

    each: list[tuple[str, Met, str | None, bool]] = field(default_factory=list)
    steps: dict[str, set[str]] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    met: dict[str, str] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    magnitudes: set[tuple[str, Operation]] = field(default_factory=set)  # a weight vanishes with it
    offsets: dict[tuple[str, str], float] = field(default_factory=dict)  # what a node adds to one
    changed: set[tuple[str, str | None]] = field(default_factory=set)  # that a node reads changed
    narrow: set[tuple[str, str]] = field(default_factory=set)  # that narrower signals change there
    addends: dict[str, list[Addend]] = field(default_factory=dict)  # per node: what is added there
    members: set[str] = field(default_factory=set)  # lookups of a weight in a stack
    biases: set[str] = field(default_factory=set)  # lookups of a bias in a stack


@dataclass
class Weights(_Copied):
    """The weight operations: in `each`, a parameter, the operation, and its view there.

    By operation: the signal that it reads (`data`), the axes of that which it sums (`reads`), and
    the axes of its `outputs`.
    """

    each: list[Weighed] = field(default_factory=list)
    results: dict[Hashable, Signal] = field(default_factory=dict)
    data: dict[str, Signal] = field(default_factory=dict)
    reads: dict[str, frozenset[int]] = field(default_factory=dict)
    outputs: dict[str, frozenset[int]] = field(default_factory=dict)
    fed: dict[str, Places] = field(default_factory=dict)  # where the axes of its data go
    gathered: dict[str, Gathered] = field(default_factory=dict)  # sums over a weight's batch axes
    shrunk: dict[str, float] = field(default_factory=dict)  # the number by which a node multiplies
    kernels: dict[str, Kernel] = field(default_factory=dict)  # signals that may be matrices


@dataclass
class Axes(_Copied):
    """Where the axes of signals go."""

    ways: dict[tuple[str, str], list[Places]] = field(default_factory=dict)  # of a node's input
    steps: dict[str, list[tuple[str, Places]]] = field(default_factory=dict)  # also without units
    slices: dict[str, frozenset[int]] = field(default_factory=dict)  # without units: the axes cut
    turns: dict[str, Places] = field(default_factory=dict)  # of each move of a signal without units
    factors: dict[tuple[str, int], list[Unit]] = field(default_factory=dict)  # units of an input
    differences: dict[str, tuple[Unit, ...]] = field(default_factory=dict)  # the units of each


@dataclass
class Fates(_Copied):
    """What becomes of nodes when the graph is settled."""

    wide: dict[str, tuple[str, ...]] = field(default_factory=dict)  # a sum of copies: these inputs
    rewritten: dict[str, str] = field(default_factory=dict)  # an add of some entries: that of all
    passed: dict[str, str] = field(default_factory=dict)  # drawn otherwise; in a function: its node
    lazy: set[str] = field(default_factory=set)  # nodes that later ones may be drawn without
    hidden: set[str] = field(default_factory=set)  # signals that are read without a node
    exits: dict[str, str] = field(default_factory=dict)  # what leaves the tensors, and by what


@dataclass
class Learned(_Copied):
    """Learned tables: `starts` are the inputs of those that are data, by parameter."""

    starts: dict[str, str] = field(default_factory=dict)
    signals: dict[Made, Signal] = field(default_factory=dict)  # of each value used as data
    nodes: set[str] = field(default_factory=set)  # computed from learned tables alone
    composed: dict[str, set[str]] = field(default_factory=dict)  # per table: matrices applied to it
    queries: dict[str, set[str]] = field(default_factory=dict)  # tables in an operation's weight
    late: set[str] = field(default_factory=set)  # tables that were met as data after that


class Records:
    """The nodes of a drawing, and all that is known of them.

    Parameters
    ----------
    parameters : iterable of Parameter
        All parameters of the model.
    stops : str
        The framework's function that stops gradients, for messages.
    prefixed : bool
        Whether a node's name begins with that of the last weight operation before it.
    batch : str
        The preferred layout letters for batch axes.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        stops: str = "a stop of gradients",
        prefixed: bool = True,
        batch: str = "",
    ) -> None:
        self.parameters = {given.name: given for given in parameters}
        self.stop_name, self.prefixed, self.batch_letters = stops, prefixed, batch
        self.nodes: list[Node] = []
        self.place: dict[str, int] = {}  # the index of each node in `nodes`
        self.stops: set[str] = set()
        self.used, self.weights, self.axes = Uses(), Weights(), Axes()
        self.fates, self.learned = Fates(), Learned()
        # Of nodes, by name:
        self._taken = dict.fromkeys(self.parameters, 1)  # how often each name was asked for
        self._after: dict[str, tuple[int, str]] = {}  # the last weight or input before a node
        self.root: dict[str, str] = {}  # the node that it is a moved or scaled copy of
        self._pooled: dict[str, int] = {}  # 1: a statistic; 2: a root of one
        self._sums: dict[str, tuple[Signal, Signal]] = {}  # the terms of each add
        self._forms: dict[str, Form] = {}  # the terms of a sum, difference, scale or shift
        self._shifts: dict[str, tuple[Signal, Made]] = {}  # of each sum with a constant: its terms
        self._moves: dict[str, tuple[Signal, Callable[[Value], Value]]] = {}  # each move, to repeat
        self._parts: dict[str, Any] = {}  # the signals that a node puts together, and their moves
        self._laid: dict[str, Any] = {}  # the same of a stack, concatenation, or move of one
        self._begun: set[str] = set()  # writes to constants, or to what was written to them
        self._filled: dict[str, frozenset[str]] = {}  # per accumulator: the terms written to zeros
        self._at_zero: dict[str, AtZero] = {}  # per function of signals: where these are zero
        self.joins: dict[str, Any] = {}  # the operands of each concatenation
        self.selections: dict[str, Any] = {}  # the operands of each selection by indices
        self.rows: dict[str, Any] = {}  # each slice that cuts no units
        # What was drawn before, to be found again:
        self._drawn_once: dict[Hashable, tuple[Sequence[Value], Value]] = {}
        self._placed: dict[Hashable, Value] = {}  # the value with entries at some places
        self._seams: dict[Hashable, Any] = {}  # the results of joined weights, to draw them apart
        self._stopped: dict[int, tuple[Value, Value]] = {}  # per copy that stops gradients, its id

    def mark(self) -> Any:
        """Return the current state, for `back_to`.

        >>> draw = Records([])
        >>> mark = draw.mark()
        >>> draw.used.members.add("later")
        >>> draw.back_to(mark)
        >>> draw.used.members
        set()
        """
        return {name: copy(value) for name, value in vars(self).items()}

    def back_to(self, mark: Any) -> None:
        """Remove everything that was drawn after a mark."""
        vars(self).update(mark)

    def node(self, name: str) -> Node:
        """Return a node by its name."""
        return self.nodes[self.place[name]]

    def change(self, name: str, **facts: Any) -> None:
        """Change some facts on a node."""
        self.nodes[self.place[name]] = replace(self.node(name), **facts)

    def keep(self, nodes: Sequence[Node]) -> None:
        """Put other nodes in the place of all."""
        self.nodes = [*nodes]
        self.place = {node.name: place for place, node in enumerate(nodes)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters."""
        return {name: given.shape for name, given in self.parameters.items()}

    @property
    def so_far(self) -> Drawn:
        """The drawing as far as it shows where the axes of weights' outputs go."""
        return Drawn(self.nodes, self.place, self.axes.steps, self.weights.outputs)

    def uses(self) -> dict[str, tuple[str, ...]]:
        """Return the known nodes that use each parameter; unused parameters are absent.

        >>> draw = Records([Parameter("b", (3,)), Parameter("unused", (3,))])
        >>> draw.used.each.append(("b", "bias", "fc", False))
        >>> draw.uses()
        {'b': ('fc',)}
        """
        found: dict[str, dict[str, None]] = {}
        for name, _, node, _ in self.used.each:
            found.setdefault(name, {}).update({} if node is None else {node: None})
        return {name: tuple(nodes) for name, nodes in found.items()}
