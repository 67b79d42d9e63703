"""Internal: learned tensors that are data, such as tokens, positions and latents."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..roles.graph import Graph, NodeKind, function_of
from ._axes import View
from ._functions import Fact
from ._labels import Labels
from ._late import LateTablesError, known_tables
from ._made import Factors, Made, Part, names_of
from ._nodes import Nodes
from ._recipes import thinned
from ._values import Data, Operation, Signal, Value

__all__ = ["ON_DATA", "Tables"]

ON_DATA = {"attention", "join", "select"}
"""Operations that turn a learned operand into a signal."""


class Tables(Nodes):
    """A drawing with learned tables, which may be data."""

    def data(self, value: Made) -> Signal:
        """Return the signal that starts at learned tensors, such as tokens and positions."""
        self.learned.late |= self.tables_in(value)
        if value not in self.learned.signals:
            names = names_of([value])
            for name in names:
                if name not in self.learned.starts:
                    shape = self.parameters[name].shape
                    self.learned.starts[name] = self.draw("input", f"{name}: data", (), shape)
                    self.learned.nodes.add(self.learned.starts[name])
            starts = [self.learned.starts[name] for name in names]
            node = starts[0] if starts else ""
            whole = names and Made(value.shape, (Part(names[0], View.of(value.shape or ())),))
            if not starts:
                kind: NodeKind = "other" if value.zero else "input"  # zeros are no input
                node = self.draw(kind, "constant", (), value.shape)
            elif value != whole:
                node = self.draw("other", "learned", starts, value.shape, (), "move")
            self.learned.signals[value] = Signal(node, value.shape)
        signal = self.learned.signals[value]
        self.use(value, "other", signal.node)
        return signal

    def is_data(self, value: Made) -> bool:
        """Whether the learned tables of a value are known to be used as data."""
        names = names_of([value])
        tables = [name for name in names if len(self.parameters[name].shape) > 1] or names
        return bool(names) and known_tables().union(self.learned.starts).issuperset(tables)

    def floats(self, value: Made) -> bool:
        """Whether a value consists of floating-point parameters."""
        return any(self.parameters[part.name].is_floating for part in value.parts)

    def as_data(self, values: Sequence[Value], fact: Fact) -> list[Value]:
        """Return operands, with learned tensors turned into signals."""
        count = 3 if fact.does == "attention" else fact.of
        found = list(values)
        if not any(isinstance(value, (Signal, Data)) for value in values):
            return found
        for at, value in enumerate(found[:count]):
            if isinstance(value, Made) and self.floats(value):
                found[at] = self.data(value)
        return found

    # Products of learned matrices -----------------------------------------------------------

    def read(self, name: str, a: Made, b: Made, labels: Sequence[Labels]) -> list[Value]:
        """Return two operands; a learned table that a layer or a matrix is applied to is data."""
        if self.applies(name, b, a):
            return [self.data(a), b]
        found: list[Value] = [a, b]
        is_last = [bool(own) and own[-1] in rest for own, rest in (labels, labels[::-1])]
        batch = [self._is_batch(made) for made in thinned((a, b), labels)]
        for at, (table, by) in enumerate(((a, b), (b, a))):
            is_data = self.is_data(table) or (batch[at] and not self.is_diagonal(table))
            is_weight = by.is_matrix and not (is_last[1 - at] and batch[1 - at])
            if is_last[at] and is_data and is_weight:
                found[at] = self.data(table)
                break
        return found

    def is_diagonal(self, made: Made) -> bool:
        """Whether a matrix is made of vectors alone, as by diag: a product with it is a scale."""
        alone = all(len(self.parameters[part.name].shape) == 1 for part in made.parts)
        spread = (part.view is None or part.done.startswith("masked") for part in made.parts)
        return alone and len(made.shape or ()) > 1 and all(spread)

    def _is_batch(self, table: Made) -> bool:
        """Whether the values of a learned table are copied for a batch."""
        if isinstance(table.recipe, Factors):  # a product may be larger than its factors
            return any(atom.axis < 0 and atom.radix > 1 for atom in table.recipe.view.atoms)
        own = [self.parameters[part.name].shape for part in table.parts]
        whole = table.shape or ()
        sizes = max(own, key=prod, default=())
        is_new = whole[-len(sizes) :] == sizes and len(whole) > len(sizes) > 1
        return is_new or 1 < prod(sizes) < prod(whole)

    def compose(self, values: Sequence[Value], labels: Sequence[Labels]) -> None:
        """Record a matrix applied to the rows of a learned table: both may make a weight."""
        for (table, by), (own, rest) in zip(
            (values, values[::-1]), (labels, labels[::-1]), strict=True
        ):
            names, matrices = names_of([table]), names_of([by])
            is_matrix = isinstance(by, Made) and by.is_matrix and bool(matrices)
            if is_matrix and own and own[-1] in rest and not {*names} & {*matrices}:
                first = [name for name in names if name in self.learned.composed] or names
                for name in first:
                    self.learned.composed.setdefault(name, set()).update(matrices)
                return

    def asked(self, name: str) -> set[str]:
        """Return the learned tables in the weight that made the scores of a softmax."""
        node, is_soft = self.node(name), False
        while self.learned.composed and node.kind in ("add", "other") and node.inputs:
            is_soft |= node.does == "softmax" or function_of(node) == "exp"
            node = self.node(node.inputs[0])
        return self.learned.queries.get(node.name, set()) if is_soft else set()

    def tables_in(self, made: Made) -> set[str]:
        """Return the learned tables in a value, if all its matrices were applied to tables."""
        matrices = {name for name in names_of([made]) if len(self.parameters[name].shape) > 1}
        tables = matrices & self.learned.composed.keys()
        applied = {name for table in tables for name in self.learned.composed[table]}
        return tables if matrices <= tables | applied else set()

    def weigh(
        self, base: str, made: Made, signal: Signal, operation: Operation, out: Signal
    ) -> Signal:
        """Draw a weight operation; `out` is its result without the node."""
        found = super().weigh(base, made, signal, operation, out)
        self.learned.queries[found.node] = self.tables_in(made)
        return found

    def graph(self, outputs: Sequence[Value], also: Sequence[Value] = ()) -> Graph:
        """Return the graph, parameters first; `also` are results other than the outputs.

        Raises
        ------
        LateTablesError
            If learned tables turned out to be data: draw again (see `redrawn`).
        """
        learned = self.learned
        late = learned.late | (learned.composed.keys() & learned.starts)
        late -= known_tables()
        if late:
            raise LateTablesError(sorted(late))
        return super().graph(outputs, also)
