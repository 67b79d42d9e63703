"""Internal: the record of one run, and where its signals and gradients end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..core.text import some
from ..roles.graph import STEPS, Graph, Node, function_of
from .audit import Dead
from .blocks import Block
from .facts import TensorFacts


@dataclass
class Record:
    """An adapter's measurements of one forward and one backward pass."""

    batch: int  # samples: the first axis of the first input
    inputs: dict[str, TensorFacts] = field(default_factory=dict)  # also integers
    graph: Graph = field(default_factory=lambda: Graph([]))
    facts: dict[str, TensorFacts] = field(default_factory=dict)  # of measured nodes
    outputs: list[TensorFacts] = field(default_factory=list)  # floating ones
    values: dict[str, TensorFacts] = field(default_factory=dict)  # of trained parameters
    gradients: dict[str, TensorFacts] = field(default_factory=dict)  # of these
    input_gradients: dict[str, TensorFacts] = field(default_factory=dict)  # of floating inputs
    uses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # nodes, by parameter
    blocks: Mapping[str, Block] = field(default_factory=dict)  # of packed, trained parameters
    limits: list[str] = field(default_factory=list)  # facts that the framework could not show
    # by node: the nodes on which it depends through integers, bools or indices; and all others
    links: dict[str, set[str]] = field(default_factory=dict)
    reads: dict[str, set[str]] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)  # nodes in functions with gradients of their own
    stops: set[str] = field(default_factory=set)  # nodes that stop gradients
    stopped: set[str] = field(default_factory=set)  # results of a part that runs without gradients


class Signals:
    """The nodes that vary with the input, and those where the input's signal dies.

    A node "varies", is "still" from the start (a table of positions), "dies" (it is constant,
    though one of its inputs varies), or comes "after" a node that dies: also a product with it.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.nodes = {node.name: node for node in record.graph.nodes}
        self.uses = {**record.uses, **{name: one.nodes for name, one in record.blocks.items()}}
        for name, one in record.blocks.items():
            self.nodes[name] = replace(self.nodes[one.of], name=name)
        self.states: dict[str, str] = {}
        self._readers: dict[str, list[str]] = {}
        self._linked: dict[str, list[str]] = {}  # through integers
        for node in record.graph.nodes:
            if node.kind != "parameter":
                inputs = self._factors(node) or node.inputs
                self.states[node.name] = self._state(node.name, inputs)
            for name in node.inputs:
                self._readers.setdefault(name, []).append(node.name)
            for name in self._links(node):
                self._linked.setdefault(name, []).append(node.name)
        self._ends = set(record.graph.outputs)  # and all nodes before them, also through integers
        for node in reversed(record.graph.nodes):
            if node.name in self._ends:
                self._ends.update(node.inputs, self._links(node))

    def _links(self, node: Node) -> list[str]:
        """Return the nodes on which a node depends through integers, bools or indices.

        A float of a bool, or a row that a float of a bool picks, starts a signal of its own.
        """
        links, reads = self.record.links, self.record.reads
        found, stack = set[str](), [*links.get(node.name, ())]
        if not node.inputs and node.kind != "parameter":
            stack += reads.get(node.name, ())
        seen = set(stack)
        while stack:
            name = stack.pop()
            if name not in self.nodes:  # a move, which the graph leaves out
                before = links.get(name, set()) | reads.get(name, set())
                stack += before - seen
                seen |= before
            else:
                found.add(name)
        return sorted(found)

    def _factors(self, node: Node) -> list[str]:
        """Return the factors that make a node 0, where a signal died before."""
        places = node.vanishes if isinstance(node.vanishes, tuple) else ()
        ways = [name for name in map(node.inputs.__getitem__, places) if name in self.record.facts]
        zeros = [name for name in ways if not self.record.facts[name].peak]
        return [name for name in zeros if self.states.get(name) in ("dies", "after")]

    def _state(self, name: str, inputs: Sequence[str]) -> str:
        fact = self.record.facts.get(name)
        before = [self.states[node] for node in inputs if node in self.states]
        if not before:
            return "still" if fact is not None and fact.is_constant else "varies"
        if fact is not None and not fact.is_constant:
            return "varies"
        facts = [self.record.facts.get(node) for node in inputs]
        is_lost = fact is not None and not fact.peak and any(f and f.peak for f in facts)
        if "varies" in before:
            return "varies" if fact is None else "dies"
        return "after" if {"dies", "after"} & set(before) else "dies" if is_lost else "still"

    def reaches(self, parameter: str) -> bool:
        """Whether a path leads from a parameter to an output, as far as is known."""
        if parameter not in self.uses:
            return False
        nodes = self.uses[parameter]
        return not nodes or any(node in self._ends for node in nodes)

    def roots(self, names: Sequence[str]) -> list[str]:
        """Return the nodes that die and so make the given ones constant."""
        dying: dict[str, None] = {}
        stack, seen = list(names), set(names)
        while stack:
            name = stack.pop(0)
            if self.states.get(name) == "dies":
                dying[name] = None
            elif self.states.get(name) == "after":
                new = [node for node in self.nodes[name].inputs if node not in seen]
                seen.update(new)
                stack += new
        return list(dying)

    def wakes(self, name: str) -> bool:
        """Whether a node is constant only until the first step.

        So it is if its weight has a gradient: the weight is 0, or the terms of its result cancel;
        or if a scale is 0 and has a gradient, as in a branch that starts at 0.
        """
        roots = self.roots([name])
        return bool(roots) and all(map(self._moves, roots))

    def _moves(self, root: str) -> bool:
        weights, gradients = self.nodes[root].weights, self.record.gradients
        if weights:  # of a weight of several parameters one that moves is enough
            return any(gradients[w].peak for w in weights if w in gradients)
        scales = [p for p in gradients if root in self.nodes[p].options.get("scales", ())]
        return any(gradients[scale].peak for scale in scales)

    def way(self, parameter: str) -> tuple[list[str], list[str], list[str]]:
        """Return the operations of a parameter, the nodes between, and the next with a gradient.

        All are empty if there is no next one, or if a node between was not measured, as in a loop.
        """
        record = self.record
        alive = {name for name, fact in record.gradients.items() if fact.peak}
        start = [node for node in self.uses[parameter] if node in self._ends]
        after = [node for node in self._behind(start, alive) if node not in start]
        readers = [node for node in after if alive.intersection(self.nodes[node].weights)]
        between = [node for node in after if node not in readers]
        seen = record.facts.keys() | record.own
        if not readers or not seen.issuperset(start + between):
            return [], [], []
        return start, between, readers

    def may_learn(self, name: str) -> bool:
        """Whether a block without a gradient may have one for other inputs.

        So it is unless an operation stops it, whatever the numbers are. Data may choose among the
        blocks of a weight, as among segments; a softmax of one token, or a state of zeros at the
        first step of a recurrence, has no gradient for some blocks.
        """
        start = [node for node in self.uses[name] if node in self._ends]
        return name in self.record.blocks and not self._walls(start)

    def is_shift(self, name: str) -> bool:
        """Whether a parameter is a bias, and a gradient reaches the sum that adds it to a result.

        So it is if the weight has a gradient, and each of its uses adds this bias. If the bias has
        none, the terms of its gradient cancel, as in a difference, or its owner has stopped it.
        """
        own = set(self.uses.get(name, ()))
        node = self.nodes[name]
        if node.use != "bias" or "steps" in node.options or not own.isdisjoint(self.record.own):
            return False  # a function with a gradient of its own may give the bias none
        weights = {weight for node in own for weight in self.nodes[node].weights}
        return any(
            self.record.gradients[weight].peak > 0 and own.issuperset(self.record.uses[weight])
            for weight in weights & self.record.gradients.keys() & self.record.uses.keys()
        )

    def dead(self) -> Iterator[Dead]:
        """Yield the used parameters without a gradient, each with the node that stops it.

        Of a parameter that has one, the blocks without.
        """
        alive = {name for name, fact in self.record.gradients.items() if fact.peak}
        blocks = {
            name: block.gradient
            for name, block in self.record.blocks.items()
            if block.of in alive and block.gradient is not None
        }
        for name, fact in {**self.record.gradients, **blocks}.items():
            if fact.finite and not fact.peak and self.reaches(name):
                yield self._blocked(name, alive)

    def _blocked(self, name: str, alive: set[str]) -> Dead:
        note = self.nodes[name].note
        if note.startswith("frozen"):
            return Dead(name, "", note)
        if self.is_shift(name) and self.nodes[name].options.get("stopped"):
            return Dead(name, "", "its weight has a gradient, and some of its uses are stopped")
        if self.is_shift(name):
            return Dead(name, "", "cancels: its weight has a gradient, and its own sums up to 0")
        steps = self.nodes[name].options.get("steps")
        if steps and self.nodes[name].use == "bias":
            return Dead(name, "", f"no gradient passes {steps}, whose derivative is 0")
        start = [node for node in self.uses[name] if node in self._ends]
        walls = self._walls(start)
        if walls:
            whys = list(dict.fromkeys(walls.values()))
            said = "; ".join(
                f"{some([n for n in walls if walls[n] == why])}, {why}" for why in whys
            )
            return Dead(name, next(iter(walls)), f"no gradient passes {said}")
        reader = ""
        for node in self._behind(start, alive):
            roots = self.roots([node])
            if roots:
                fact = self.record.facts[roots[0]]
                state = "0" if not fact.peak else "the same for all samples"
                return Dead(name, roots[0], f"{roots[0]} is {state}", self.wakes(node))
            weights = self.nodes[node].weights
            if not reader and node not in start and alive.intersection(weights):
                reader = node
        if reader:
            return Dead(name, reader, f"{reader} passes no gradient back", True)
        where = some(start) or "its use"
        return Dead(name, start[0] if start else "", f"no gradient reaches {where}")

    def _walls(self, start: Sequence[str]) -> dict[str, str]:
        """Return the nodes that no gradient can pass, with reasons, if they stop every path."""
        walls: dict[str, str] = {}
        stack, seen = list(start), set(start)
        while stack:
            name = stack.pop(0)
            if name in self.record.stops:
                walls[name] = "which stops gradients"
                continue
            if name in self.record.stopped:
                walls[name] = "which runs without gradients"
                continue
            if function_of(self.nodes[name]) in STEPS and name not in self.record.own:
                walls[name] = "whose derivative is 0"
                continue
            if name in self.record.graph.outputs:
                return {}
            linked = [node for node in self._linked.get(name, ()) if node in self._ends]
            walls |= dict.fromkeys(linked, "which reads only integers, bools or indices of it")
            new = [n for n in self._readers.get(name, ()) if n in self._ends and n not in seen]
            seen.update(new)
            stack += new
        return walls

    def _behind(self, start: Sequence[str], alive: set[str]) -> Iterator[str]:
        """Yield the given nodes and those computed from them, in the order of computation.

        A weight with a gradient ends a path: nodes after it stop no gradient before it.
        """
        order = {name: at for at, name in enumerate(self.nodes)}
        reached, stack = set(start), list(start)
        while stack:
            for name in self._readers.get(stack.pop(), ()):
                if name not in reached and name in self._ends:
                    reached.add(name)
                    if not alive.intersection(self.nodes[name].weights):
                        stack.append(name)
        yield from sorted(reached, key=order.__getitem__)
