"""Internal: the nodes of a graph under construction, and the uses of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Literal

from ..roles.graph import Does, Graph, Node, NodeKind
from ._added import addends_of
from ._made import Made, Shape, names_of
from ._makers import Kernel
from ._records import Met, Records
from ._settled import settled
from ._units import Places, Unit, carried, merged, placed
from ._values import Operation, Signal, Value

__all__ = ["Nodes"]

_SELF_NAMED = {"kernel", "weight", "embedding"}


class Nodes(Records):
    """A graph under construction."""

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
        if self.prefixed and kind in ("add", "other") and last[1]:
            base = f"{last[1]}: {base}"
        name = base
        while name in self._taken:
            self._taken[base] += 1
            name = f"{base} ({self._taken[base]})"
        self._taken[name] = 1
        at = {"weight": len(self.nodes), "input": -1}.get(kind)
        self._after[name] = last if at is None else (at, name)
        self.place[name] = len(self.nodes)
        if names and self.learned.nodes.issuperset(names):
            self.learned.nodes.add(name)
        if kind != "weight":
            is_same = does in ("move", "scale") and vanishes == "all" and len(names) == 1
            self.root[name] = self.root.get(names[0], names[0]) if is_same else name
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

    def use(self, made: Made, use: Met, node: str | None = None) -> None:
        """Record the use of parameters, and the node that uses them."""
        for part in made.parts:
            seen: Met = "sum" if part.added and not part.offset and use == "other" else use
            if part.offset and node is not None:
                self.used.offsets[part.name, node] = part.offset
            if part.done and not (part.factor or part.offset):
                self.used.changed.add((part.name, node))
            self.used.steps.setdefault(part.name, set()).add(part.steps)
            self.used.each.append((part.name, seen, node, part.stopped))

    def weigh(
        self, base: str, made: Made, signal: Signal, operation: Operation, out: Signal
    ) -> Signal:
        """Draw a weight operation, once; `out` is its result without the node."""
        key = made, signal.node, signal.shape, operation.key, out.shape
        if key not in self.weights.results:
            self.weights.results[key] = self._weigh(base, made, signal, operation, out)
        return self.weights.results[key]

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
            self.used.scales |= dict.fromkeys(floating, coded[0])
        self.weights.reads[operation.name] = operation.reads
        self.weights.data[operation.name] = signal
        lost = {part.name for part in made.parts if part.view is None}
        for part in made.parts:
            if part.done:
                self.used.done.setdefault(part.name, part.done)
            view = None if part.name in lost else part.view
            self.weights.each.append((part.name, operation, view))
        ends = [part for part in made.parts if part.done and part.factor]
        vectors = [part for part in ends if self.parameters[part.name].is_vector]
        for part in vectors or ends[:1]:
            self.used.magnitudes.add((part.name, operation))
        self.use(made, "weight", operation.name)
        kinds = operation.kinds or ()
        units = [
            Unit(frozenset([axis]))
            for track in out.tracks
            for axis, atoms in enumerate(track.view.axes)
            if any(atom.axis >= 0 and kinds[atom.axis] == "O" for atom in atoms)
        ]
        self.weights.outputs[operation.name] = frozenset(
            axis
            for track in out.tracks
            for axis, atoms in enumerate(track.view.axes)
            if any(atom.axis >= 0 and kinds[atom.axis] in "OB" for atom in atoms)
        )
        return Signal(operation.name, out.shape, out.tracks, units=merged(units), is_direct=True)

    def note_addends(self, node: str, made: Made, shape: Shape | None) -> None:
        """Record what a node adds to a signal, or what is added to the node."""
        self.used.addends.setdefault(node, []).extend(addends_of(made, shape, self.shapes))

    def leave(self, value: Value, by: str) -> None:
        """Record that a signal's numbers leave the tensors: no gradient comes back."""
        if isinstance(value, Signal):
            self.fates.exits[value.node] = by

    def kernel(self, by: str, node: str, is_whole: bool) -> None:
        """Record a signal that a product reads as a matrix or a kernel.

        `is_whole` means that it is one matrix for all rows of the other operand.
        """
        old = self.weights.kernels.get(node)
        if old is None or (is_whole and not old.is_whole):
            self.weights.kernels[node] = Kernel(by, is_whole)

    def hide(self, values: Iterable[Value]) -> None:
        """Record signals that are read without a node: as by integers or bools."""
        self.fates.hidden.update(value.node for value in values if isinstance(value, Signal))

    def derive(self) -> None:
        """Record that derivatives of what is drawn may be results: all of it is read."""
        self.fates.hidden.update(node.name for node in self.nodes)

    def label(self, base: str, weight: str) -> str:
        """Name a weight operation after its weight.

        >>> draw = Nodes([], prefixed=False)
        >>> draw.label("block/out/MatMul", "model/block/out/kernel")  # the name holds the place
        'block/out'
        """
        head, _, tail = weight.replace("/", ".").rpartition(".")
        if head and tail in _SELF_NAMED:
            return self._layer(base, weight) or weight[: len(head)]
        return f"{weight}: {base}" if self.prefixed else base

    def _layer(self, base: str, weight: str) -> str:
        """Return the layer that owns a weight if the operation is in that layer, else ""."""
        rest, _, tail = weight.rpartition("/")
        while rest and tail in _SELF_NAMED and not self.prefixed:
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
        if self.prefixed:
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
            self.axes.steps.setdefault(node, []).append((signal.node, places))
        if signal.units and node != signal.node:
            self.axes.ways.setdefault((node, signal.node), []).append(places)
        return placed(signal.units, places)

    def moved(self, out: Signal, ways: Iterable[tuple[Signal, Places]]) -> Signal:
        """Return the result of an operation with its units: where the axes of its inputs go."""
        pairs = list(ways)
        self.axes.steps.pop(out.node, None)
        for signal, _ in pairs:
            self.axes.ways.pop((out.node, signal.node), None)
        units = [unit for pair in pairs for unit in self.follow(out.node, *pair)]
        return out._replace(units=merged(units))

    def factor(self, node: str, place: int, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """Record the units of a factor of a product, and return them as such."""
        self.axes.factors.setdefault((node, place), []).extend(units)
        return tuple(unit._replace(is_factor=True) for unit in units)

    def graph(self, outputs: Sequence[Value], also: Sequence[Value] = ()) -> Graph:
        """Return the graph, parameters first; `also` are results other than the outputs."""
        for value in outputs:
            if isinstance(value, Signal):
                value.spend()
            elif isinstance(value, Made):
                self.use(value, "other")
        ends, others = (
            [value.node for value in values if isinstance(value, Signal)]
            for values in (outputs, also)
        )
        return settled(self, ends, others)

    def carried(
        self, graph: Graph, starts: Mapping[str, Collection[int]]
    ) -> dict[str, frozenset[int]]:
        """Return the axes of each node of the graph along which some axes of the starts may lie."""
        axes, weights = self.axes, self.weights
        steps = {
            node.name: [
                (name, places or axes.turns.get(node.name, {}))
                for name, places in axes.steps.get(node.name, ())
            ]
            for node in graph.nodes
        }
        fed = {name: [(weights.data[name].node, places)] for name, places in weights.fed.items()}
        return carried(graph.nodes, {**steps, **fed}, starts)
