"""Internal: the nodes of a graph under construction, and the uses of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Literal

from ..roles.graph import Does, Graph, Node, NodeKind, Use
from ._added import Addend, Drawn, addends_of, pieces_in, shifted_alone
from ._at_zero import AtZero
from ._forms import Form
from ._made import Made, Shape, names_of
from ._makers import Kernel, makers
from ._parameter import Parameter, Seen, node_of, with_rows
from ._struck import distances, frozen, live, returned, struck
from ._summed import Gathered, Weighed, gather, loops_of, members_in, whole
from ._units import Places, Unit, carried, merged, placed
from ._values import Operation, Signal, Value

__all__ = ["Nodes"]

_SELF_NAMED = {"kernel", "weight", "embedding"}
_Use = Use | Literal["sum"]
_Met = _Use | Literal["rows"]  # all rows in some order: of a weight, or of an embedding
_ALIKE = {
    "map",
    "scale",
    "shift",
    "product",
    "norm",
    "softmax",
    "pool",
    "pad",
    "resize",
    "crop",
    "select",
}  # keep the order of axes
_UNREAD = {"move", "select", "crop", "pad", "join", "resize"}  # are dropped if nothing reads them


class Nodes:
    """A graph under construction.

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
        self.nodes: list[Node] = []
        self._reads: dict[str, frozenset[int]] = {}  # per weight operation: the axes that it sums
        self._slices: dict[str, frozenset[int]] = {}  # of signals without units: the axes cut
        self._turns: dict[str, Places] = {}  # per move of such a signal: where its axes go
        self._place: dict[str, int] = {}  # the index of each node in `nodes`
        self._root: dict[str, str] = {}  # the node that it is a moved or scaled copy of
        self._pooled: dict[str, int] = {}  # 1: a statistic; 2: a root of one
        self._wide: dict[str, tuple[str, ...]] = {}  # per sum of copies: its copied inputs
        self._offsets: dict[tuple[str, str], float] = {}  # the number that a node adds to one
        self._steps: dict[str, set[str]] = {}  # by parameter: what rounds it before each use
        self._changed: set[tuple[str, str | None]] = set()  # parameters that a node reads changed
        self._starts: dict[str, str] = {}  # the input node of a parameter used as data
        self._tables: dict[Made, Signal] = {}  # the signal of a value used as data
        self._composed: dict[str, set[str]] = {}  # per learned table: the matrices applied to it
        self._queries: dict[str, set[str]] = {}  # per weight operation: the tables in its weight
        self._learned: set[str] = set()  # nodes computed from learned tables alone
        self._late: set[str] = set()  # tables that were met as data after that
        self._sums: dict[str, tuple[Signal, Signal]] = {}  # the terms of each add
        self._forms: dict[str, Form] = {}  # the terms of a sum, difference, scale or shift
        self._shifts: dict[str, tuple[Signal, Made]] = {}  # of each sum with a constant: its terms
        self._differences: dict[str, tuple[Unit, ...]] = {}  # the units of each
        self._moves: dict[str, tuple[Signal, Callable[[Value], Value]]] = {}  # each move, to repeat
        self._parts: dict[str, Any] = {}  # the signals that a node puts together, and their moves
        self._laid: dict[str, Any] = {}  # the same of a stack, concatenation, or move of one
        self._seams: dict[Hashable, Any] = {}  # the results of joined weights, to draw them apart
        self._begun: set[str] = set()  # writes to constants, or to what was written to them
        self._rewritten: dict[str, str] = {}  # per add of some entries: the add of all of them
        self._filled: dict[str, frozenset[str]] = {}  # per accumulator: the terms written to zeros
        self._at_zero: dict[str, AtZero] = {}  # per function of signals: where these are zero
        self._passed: dict[str, str] = {}  # what was drawn otherwise; of a function, with its node
        self._lazy: set[str] = set()  # nodes that later ones may be drawn without
        self._placed: dict[Hashable, Value] = {}  # the value with entries at some places
        self.joins: dict[str, Any] = {}  # the operands of each concatenation
        self.selections: dict[str, Any] = {}  # the operands of each selection by indices
        self.rows: dict[str, Any] = {}  # each slice that cuts no units
        self._drawn_once: dict[Hashable, tuple[Sequence[Value], Value]] = {}
        self._stop_name, self._prefixed, self._batch_letters = stops, prefixed, batch
        self._taken = dict.fromkeys(self.parameters, 1)  # how often each name was asked for
        self._after: dict[str, tuple[int, str]] = {}  # the last weight or input before a node
        self._uses: list[tuple[str, _Met, str | None, bool]] = []
        self._weights: list[Weighed] = []
        self._weighed: dict[Hashable, Signal] = {}  # the results of operations
        self._data: dict[str, Signal] = {}  # the signal that each weight operation reads
        self._gathered: dict[str, Gathered] = {}  # the sums over batch axes of a weight
        self._shrunk: dict[str, float] = {}  # the number by which a node multiplies
        self._scales: dict[str, str] = {}
        self._ways: dict[tuple[str, str], list[Places]] = {}  # of a node's input: where axes go
        self._steps_to: dict[str, list[tuple[str, Places]]] = {}  # the same, of all signals
        self._outputs: dict[str, frozenset[int]] = {}  # per weight operation: axes of its outputs
        self._fed: dict[str, Places] = {}  # per weight operation: where the axes of its data go
        self._addends: dict[str, list[Addend]] = {}  # per node: what is added there
        self._factors: dict[tuple[str, int], list[Unit]] = {}  # the units of a product's input
        self._done: dict[str, str] = {}
        self._magnitudes: set[tuple[str, Operation]] = set()  # the weight vanishes with it
        self._met: dict[str, str] = {}
        self._kernels: dict[str, Kernel] = {}  # per signal that may be a matrix or a kernel
        self._narrow: set[tuple[str, str]] = set()  # parameters that narrower signals change there
        self.stops: set[str] = set()
        self._stopped: dict[int, tuple[Value, Value]] = {}  # per copy that stops gradients, its id
        self._hidden: set[str] = set()  # signals that are read without a node
        self._exits: dict[str, str] = {}  # signals whose numbers leave the tensors, and by what
        self._members: set[str] = set()  # lookups of a weight in a stack
        self._biases: set[str] = set()  # lookups of a bias in a stack

    def mark(self) -> Any:
        """Return the current state, for `back_to`.

        >>> draw = Nodes([])
        >>> mark = draw.mark()
        >>> draw.back_to(mark)
        """
        return {name: copy(value) for name, value in vars(self).items()}

    def back_to(self, mark: Any) -> None:
        """Remove everything that was drawn after a mark."""
        vars(self).update(mark)

    # What is drawn --------------------------------------------------------------------------

    def draw(
        self,
        kind: NodeKind,
        base: str,
        inputs: Iterable[str],
        shape: Shape | None,
        weights: Sequence[str] = (),
        does: Does = "",
        vanishes: Literal["all", "never"] | tuple[int, ...] = "all",
        sums: tuple[int, ...] = (),
    ) -> str:
        """Add a node, and return its name."""
        names = tuple(dict.fromkeys(inputs)) if kind != "add" else tuple(inputs)
        last = max((self._after[name] for name in names), default=(-1, ""))
        if self._prefixed and kind in ("add", "other") and last[1]:
            base = f"{last[1]}: {base}"
        name = base
        while name in self._taken:
            self._taken[base] += 1
            name = f"{base} ({self._taken[base]})"
        self._taken[name] = 1
        at = {"weight": len(self.nodes), "input": -1}.get(kind)
        self._after[name] = last if at is None else (at, name)
        self._place[name] = len(self.nodes)
        if names and self._learned.issuperset(names):
            self._learned.add(name)
        if kind != "weight":
            is_same = does in ("move", "scale") and vanishes == "all" and len(names) == 1
            self._root[name] = self._root.get(names[0], names[0]) if is_same else name
            over = min((self._pooled.get(to, 0) for to in names), default=0)
            self._pooled[name] = max(over, does == "pool")
        node = Node(
            name, kind, names, shape, tuple(weights), does=does, vanishes=vanishes, sums=sums
        )
        self.nodes.append(node)
        return name

    def start(self, base: str, shape: Shape | None) -> Signal:
        """Start a signal."""
        return Signal(self.draw("input", base, (), shape), shape)

    def use(self, made: Made, use: _Met, node: str | None = None) -> None:
        """Record the use of parameters, and the node that uses them."""
        for part in made.parts:
            seen: _Met = "sum" if part.added and not part.offset and use == "other" else use
            if part.offset and node is not None:
                self._offsets[part.name, node] = part.offset
            if part.done and not (part.factor or part.offset):
                self._changed.add((part.name, node))
            self._steps.setdefault(part.name, set()).add(part.steps)
            self._uses.append((part.name, seen, node, part.stopped))

    def weigh(
        self, base: str, made: Made, signal: Signal, operation: Operation, out: Signal
    ) -> Signal:
        """Draw a weight operation, once; `out` is its result without the node."""
        key = made, signal.node, signal.shape, operation.key, out.shape
        if key not in self._weighed:
            self._weighed[key] = self._weigh(base, made, signal, operation, out)
        return self._weighed[key]

    def _weigh(
        self, base: str, made: Made, signal: Signal, operation: Operation, out: Signal
    ) -> Signal:
        names = names_of([made])
        floating = [name for name in names if self.parameters[name].is_floating] or names
        coded = [name for name in names if self.parameters[name].is_integer]
        signal.spend()
        label = self.label(base, floating[0])
        operation.name = self.draw("weight", label, (signal.node,), out.shape, floating)
        if coded:
            self._scales |= dict.fromkeys(floating, coded[0])
        self._reads[operation.name] = operation.reads
        self._data[operation.name] = signal
        lost = {part.name for part in made.parts if part.view is None}
        for part in made.parts:
            if part.done:
                self._done.setdefault(part.name, part.done)
            view = None if part.name in lost else part.view
            self._weights.append((part.name, operation, view))
        ends = [part for part in made.parts if part.done and part.factor]
        vectors = [part for part in ends if self.parameters[part.name].is_vector]
        for part in vectors or ends[:1]:
            self._magnitudes.add((part.name, operation))
        self.use(made, "weight", operation.name)
        kinds = operation.kinds or ()
        units = [
            Unit(frozenset([axis]))
            for track in out.tracks
            for axis, atoms in enumerate(track.view.axes)
            if any(atom.axis >= 0 and kinds[atom.axis] == "O" for atom in atoms)
        ]
        self._outputs[operation.name] = frozenset(
            axis
            for track in out.tracks
            for axis, atoms in enumerate(track.view.axes)
            if any(atom.axis >= 0 and kinds[atom.axis] in "OB" for atom in atoms)
        )
        return Signal(operation.name, out.shape, out.tracks, units=merged(units), is_direct=True)

    def note_addends(self, node: str, made: Made, shape: Shape | None) -> None:
        """Record what a node adds to a signal, or what is added to the node."""
        self._addends.setdefault(node, []).extend(addends_of(made, shape, self._shapes))

    @property
    def _so_far(self) -> Drawn:
        return Drawn(self.nodes, self._place, self._steps_to, self._outputs)

    def leave(self, value: Value, by: str) -> None:
        """Record that a signal's numbers leave the tensors: no gradient comes back."""
        if isinstance(value, Signal):
            self._exits[value.node] = by

    def kernel(self, by: str, node: str, is_whole: bool) -> None:
        """Record a signal that a product reads as a matrix or a kernel.

        `is_whole` means that it is one matrix for all rows of the other operand.
        """
        old = self._kernels.get(node)
        if old is None or (is_whole and not old.is_whole):
            self._kernels[node] = Kernel(by, is_whole)

    def hide(self, values: Iterable[Value]) -> None:
        """Record signals that are read without a node: as by integers or bools."""
        self._hidden.update(value.node for value in values if isinstance(value, Signal))

    def derive(self) -> None:
        """Record that derivatives of what is drawn may be results: all of it is read."""
        self._hidden.update(node.name for node in self.nodes)

    def label(self, base: str, weight: str) -> str:
        """Name a weight operation after its weight.

        >>> draw = Nodes([], prefixed=False)
        >>> draw.label("block/out/MatMul", "model/block/out/kernel")  # the name holds the place
        'block/out'
        """
        head, _, tail = weight.replace("/", ".").rpartition(".")
        if head and tail in _SELF_NAMED:
            return self._layer(base, weight) or weight[: len(head)]
        return f"{weight}: {base}" if self._prefixed else base

    def _layer(self, base: str, weight: str) -> str:
        """Return the layer that owns a weight if the operation is in that layer, else ""."""
        rest, _, tail = weight.rpartition("/")
        while rest and tail in _SELF_NAMED and not self._prefixed:
            if f"{base}/".startswith(f"{rest}/"):
                return rest
            rest = rest.partition("/")[2]  # an operation's name may lack the model's
        return ""

    def applies(self, base: str, weight: Made, data: Made) -> bool:
        """Whether an operation applies a layer's own weight to some data.

        Where an operation does not name its layer, only a layer has a kernel, and it applies that
        to parameters of any other name.
        """
        names = names_of([weight])
        if self._prefixed:
            tails = [
                {name.replace("/", ".").split(".")[-1] for name in names_of([made])}
                for made in (weight, data)
            ]
            return tails[0] == {"kernel"} and bool(tails[1]) and "kernel" not in tails[1]
        return bool(names) and all(self._layer(base, name) for name in names)

    def once(self, key: Hashable, values: Sequence[Value], draw: Callable[[], Value]) -> Value:
        """Draw an operation, or return its result if it was drawn with the same values.

        Known numbers are the same if they are equal, and all other values if they are one object.
        """
        own = tuple(
            value
            if isinstance(value, Made)
            and (value.entries or value.value is not None)
            and not value.parts
            else id(value)
            for value in values
        )
        if (key, own) not in self._drawn_once:
            self._drawn_once[key, own] = values, draw()  # the values keep their ids
        return self._drawn_once[key, own][1]

    def follow(self, node: str, signal: Signal, places: Places) -> tuple[Unit, ...]:
        """Record where the axes of a node's input go, and return its units there."""
        if node != signal.node:
            self._steps_to.setdefault(node, []).append((signal.node, places))
        if signal.units and node != signal.node:
            self._ways.setdefault((node, signal.node), []).append(places)
        return placed(signal.units, places)

    def moved(self, out: Signal, ways: Iterable[tuple[Signal, Places]]) -> Signal:
        """Return the result of an operation with its units: where the axes of its inputs go."""
        pairs = list(ways)
        self._steps_to.pop(out.node, None)
        for signal, _ in pairs:
            self._ways.pop((out.node, signal.node), None)
        units = [unit for pair in pairs for unit in self.follow(out.node, *pair)]
        return out._replace(units=merged(units))

    def factor(self, node: str, place: int, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """Record the units of a factor of a product, and return them as such."""
        self._factors.setdefault((node, place), []).extend(units)
        return tuple(unit._replace(is_factor=True) for unit in units)

    def _settle_sums(self, outputs: Collection[str]) -> None:
        """Keep the copies of a signal in a sum if another operation also reads them.

        The streams of hyper-connections start as such copies, and each is a skip.
        """
        used = {*outputs, *(name for node in self.nodes for name in node.inputs)}
        for name, wide in self._wide.items():
            place = self._place[name]
            pairs = zip(self.nodes[place].inputs, wide, strict=True)
            inputs = tuple(copies if copies in used else own for own, copies in pairs)
            self.nodes[place] = replace(self.nodes[place], inputs=inputs)

    def _find_crops(self) -> None:
        """Make slices in space of a signal without units crops: later weights read its channels."""
        read: dict[str, set[int]] = {name: set() for name in self._place}  # axes that weights sum
        for node in reversed(self.nodes):
            for to, places in self._axes_before(node):
                read[to].update(a for a, at in places.items() if read[node.name].intersection(at))
            if node.kind == "weight":
                read[node.inputs[0]].update(self._reads[node.name])
        for node in self.nodes:
            for to, places in self._axes_before(node):
                read[node.name].update(at for a in read[to] for at in places.get(a, ()))
        for name, cut in self._slices.items():
            place = self._place[name]
            channels = read[self.nodes[place].inputs[0]]
            if channels and channels.isdisjoint(cut):
                self.nodes[place] = replace(self.nodes[place], does="crop")

    def _axes_before(self, node: Node) -> Iterator[tuple[str, Places]]:
        """Yield the inputs of a node that keeps axes apart, and where their axes go."""
        if node.name in self._turns:
            yield node.inputs[0], self._turns[node.name]
        elif node.kind == "add" or node.does in _ALIKE:
            for to in node.inputs:
                rank = len(self.nodes[self._place[to]].shape or ())
                if rank == len(node.shape or ()):
                    yield to, {axis: (axis,) for axis in range(rank)}

    def _drop_moves(self, outputs: Collection[str]) -> None:
        """Remove moves, slices, joins, rewritten sums and functions that nothing reads."""
        read, kept = {*outputs}, []
        for node in reversed(self.nodes):
            is_dropped = node.does in _UNREAD or node.name in self._rewritten
            is_dropped |= node.name in self._passed or node.name in self._lazy
            if not is_dropped or node.name in read:
                read.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self._place = {node.name: place for place, node in enumerate(self.nodes)}
        uses = [(name, use, self._kept(node), stopped) for name, use, node, stopped in self._uses]
        self._uses = [use for use in uses if use[2] is None or use[2] in self._place]
        self._factors = {at: own for at, own in self._factors.items() if at[0] in self._place}
        self._weights = [use for use in self._weights if use[1].name in self._place]
        for _, operation, _ in self._weights:
            operation.keep(read)

    def _part_distances(self, outputs: Collection[str]) -> None:
        """Make differences that are losses or distances no adds: they have no skip."""
        own = {name: units for name, units in self._differences.items() if name in self._place}
        for name in distances(self.nodes, own, self._ways, outputs):
            node = self.nodes[self._place[name]]
            inputs = tuple(dict.fromkeys(node.inputs))
            self.nodes[self._place[name]] = replace(node, kind="other", inputs=inputs)

    def _kept(self, node: str | None) -> str | None:
        """Return a node, or the function in which it was dropped."""
        while node in self._passed and node not in self._place:
            node = self._passed[node]
        return node

    # The graph ------------------------------------------------------------------------------

    def graph(self, outputs: Sequence[Value], also: Sequence[Value] = ()) -> Graph:
        """Return the graph, parameters first; `also` are results other than the outputs."""
        ends = []
        for value in outputs:
            if isinstance(value, Signal):
                value.spend()
                ends.append(value.node)
            elif isinstance(value, Made):
                self.use(value, "other")
        more = [value.node for value in also if isinstance(value, Signal)]
        self._settle_sums({*ends, *more})
        self._find_crops()
        before = {node.name: node.inputs for node in self.nodes}
        added = pieces_in(self._addends, self._so_far)
        self._drop_moves({*ends, *more, *self._exits})
        self._part_distances({*ends, *more})
        seen = {name: Seen() for name in self.parameters}
        shifts = {node.name for node in self.nodes if node.does == "shift"}
        norms = {node.name for node in self.nodes if node.does == "norm"}
        scales = norms | {node.name for node in self.nodes if node.does == "scale"}
        weights = {name for name, *_ in self._weights}
        shifted = shifted_alone(self._uses, shifts)
        for name, use, node, stopped in self._uses:
            if use == "rows" and name in shifted:
                continue
            seen[name].stopped.add(stopped)
            chosen: _Use = "embedding" if use == "rows" else use
            if node in self._members or (use == "rows" and name in weights):
                chosen = "weight"
            seen[name].uses.add("bias" if node in self._biases else chosen)
            seen[name].sums.append(node if use == "bias" or node in shifts else None)
            if self.parameters[name].note or node in shifts:  # not a scale
                continue
            is_scale = use == "other" and node in scales and (name, node) not in self._changed
            seen[name].scaled.append(node if is_scale else None)
            seen[name].offsets.add(self._offsets.get((name, node or ""), 0.0))
            scales -= {node} if node in norms else set()  # a norm's first factor alone is its scale
        joint = self._joint({*ends, *more})
        steps = loops_of(joint, self._shapes)
        for name, operation, view in joint:
            shape = self.parameters[name].shape
            way = operation.stored(view, shape, self._batch_letters, steps[name])
            seen[name].ways.append((operation, way))
            made = seen[name].makes if len(seen[name].ways) > 1 else operation.makes
            seen[name].makes = made and operation.makes
        matrices = {name for name, given in self.parameters.items() if not given.is_vector}
        makes = makers(self.nodes, self._kernels, self._uses, self._narrow, matrices)
        for name, about in seen.items():
            about.added = added.get(name, [])
            about.done, about.met = self._done.get(name, ""), self._met.get(name, "")
            is_other = about.uses <= {"other", "sum"}
            about.makes = about.makes or makes.get(name, "") * is_other
            about.steps = self._steps.get(name, set())
            about.scales = self._scales.get(name, "")
        for name in dict.fromkeys(name for name, _ in self._magnitudes):
            uses = [operation for operation, _ in seen[name].ways]
            seen[name].magnitude = all((name, use) in self._magnitudes for use in uses)
        by = [self._stop_name] * bool(self.stops) + list(self._exits.values())
        reason = " or ".join(dict.fromkeys(by or [self._stop_name]))
        for name in frozen(self.nodes, self._uses, self.stops, self._exits, [*ends, *more]):
            seen[name].frozen = f"frozen: every use of it is behind {reason}"
        nodes = [node_of(given, seen[name]) for name, given in self.parameters.items()]
        drawn = with_rows(struck(self.nodes, self._factors, self._ways, {*ends, *more}), seen)
        wholes = {whole for add, whole in self._rewritten.items() if add in self._place}
        drawn = returned(drawn, {*more, *self._exits, *self._hidden, *wholes}, before, ends)
        return Graph([*nodes, *drawn], tuple(dict.fromkeys(ends)))

    def _joint(self, outputs: Collection[str]) -> list[Weighed]:
        """Return the uses of weights; products with parts of one, and their sum, are one use.

        A use that no output reads counts only if there is no other.
        """
        read = live(self.nodes, outputs)
        needed = {name for name, of, _ in self._weights if of.name in read}
        self._weights = [
            use for use in self._weights if use[1].name in read or use[0] not in needed
        ]
        readers, shapes = self._readers(outputs), self._shapes
        members = members_in(self._weights, self._data, shapes)
        gather(self._gathered, members, self._shrunk, readers)
        roots = {name: self._root.get(one.node, one.node) for name, one in self._data.items()}
        does = {node.name: node.does for node in self.nodes}
        heads = {name for name, to in roots.items() if does.get(to) in ("contract", "attention")}
        return whole(self._weights, self._data, members, heads, self._shrunk, readers)

    def _readers(self, outputs: Collection[str]) -> dict[str, list[Node | None]]:
        """Return the readers of each node; None stands for the model's outputs."""
        readers: dict[str, list[Node | None]] = {name: [None] for name in outputs}
        for node in self.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        return readers

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: given.shape for name, given in self.parameters.items()}

    def carried(
        self, graph: Graph, starts: Mapping[str, Collection[int]]
    ) -> dict[str, frozenset[int]]:
        """Return the axes of each node of the graph along which some axes of the starts may lie."""
        steps = {
            node.name: [
                (name, places or self._turns.get(node.name, {}))
                for name, places in self._steps_to.get(node.name, ())
            ]
            for node in graph.nodes
        }
        fed = {name: [(self._data[name].node, places)] for name, places in self._fed.items()}
        return carried(graph.nodes, {**steps, **fed}, starts)

    def uses(self) -> dict[str, tuple[str, ...]]:
        """Return the known nodes that use each parameter; unused parameters are absent.

        >>> from ._made import Part
        >>> draw = Nodes([Parameter("b", (3,)), Parameter("unused", (3,))])
        >>> draw.use(Made((3,), (Part("b", None),)), "bias", "fc")
        >>> draw.uses()
        {'b': ('fc',)}
        """
        found: dict[str, dict[str, None]] = {}
        for name, _, node, _ in self._uses:
            found.setdefault(name, {}).update({} if node is None else {node: None})
        return {name: tuple(nodes) for name, nodes in found.items()}
