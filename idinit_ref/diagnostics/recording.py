"""Internal: the measurements of one forward and one backward pass, for every adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ..roles.graph import Graph, Node
from .blocks import blocks_of
from .facts import TensorFacts, facts_of
from .signals import Record
from .verdict import check_inputs

_NUMBERS = ("float", "int", "bool")


class Recording:
    """Records a run: measurements of tensors, which may be traced ones, and facts at its end.

    ``look(array, batch, units)`` measures an array, as `facts.look` does in a namespace;
    ``host(array)`` returns a small array as NumPy's. The first input with axes gives the number of
    samples.

    >>> from functools import partial
    >>> import numpy as np
    >>> from idinit_ref.diagnostics.facts import look
    >>> run = Recording(partial(look, np), np.asarray, [np.ones((2, 3))])
    >>> run.see("fc", np.eye(2), (1, 2))
    >>> float(run.looks["nodes"]["fc"]["spread"])
    1.0
    """

    def __init__(
        self, look: Callable[..., Any], host: Callable[[Any], Any], inputs: Iterable[Any]
    ) -> None:
        batch = next((int(x.shape[0]) for x in inputs if len(x.shape)), 1)
        self.look, self.host, self.record = look, host, Record(batch)
        self.looks: dict[str, dict[str, Any]] = {"nodes": {}}
        self._dtypes: dict[str, dict[str, Any]] = {"nodes": {}}
        self._units: dict[str, tuple[int, int] | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._hidden: dict[Any, tuple[Any, set[str]]] = {}  # of integers: the nodes before them
        self._turned = set[str]()  # nodes whose first axis does not hold the samples

    def see(
        self, node: str, x: Any, units: tuple[int, int] | None = None, is_sum: bool = False
    ) -> None:
        """Measure a node's first floating result, or its sum with a bias, which has no node.

        `units` is the range of axes of a weight operation's units; `is_sum` tells that the result
        is a sum.
        """
        shape = tuple(map(int, x.shape))
        is_new = node not in self._shapes
        if not prod(shape) or not (is_new or (is_sum and shape == self._shapes[node])):
            return
        if is_new:
            self._shapes[node], self._units[node] = shape, units
        self._look("nodes", node, x, self.record.batch, self._units[node])

    def link(
        self,
        given: Iterable[tuple[Any, Any]],
        results: Iterable[tuple[Any, Any]],
        new: Iterable[Node] = (),
    ) -> None:
        """Record an operation: its tensors, each with its value, and the new nodes of its drawing.

        A value that is no signal has no node, as one of integers or bools. So an output is known to
        depend on a node also through indices and comparisons. A tensor may be given by its name.
        """
        before, hidden = set[str](), set[str]()
        for value, x in given:
            node = getattr(value, "node", None)
            before |= set() if node is None else {node}
            hidden |= self._hidden.get(_key(x), (x, set()))[1] if node is None else set()
        nodes = [(getattr(value, "node", None), x) for value, x in results]
        for node, x in [*nodes, *((one.name, None) for one in new if not one.inputs)]:
            if node is None and before | hidden:
                self._hidden[_key(x)] = (x, before | hidden)
            elif node is not None:
                self.record.links.setdefault(node, set()).update(hidden - {node})
                self.record.reads.setdefault(node, set()).update(before - {node})

    def drew(self, drawing: Any, graph: Graph) -> None:
        """Record the graph of a drawing, the uses of parameters, and where gradients stop."""
        self.record.graph, self.record.uses = graph, drawing.uses()
        self.record.stops = drawing.stops
        starts = {node.name: [0] for node in graph.nodes if node.kind == "input" and node.shape}
        held = drawing.carried(graph, starts)
        self._turned = {name for name, axes in held.items() if axes and 0 not in axes}

    def end(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[Any],
        values: Mapping[str, Any],
        starts: Sequence[str],
        gradients: Sequence[Any],
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Measure inputs, outputs, values and gradients.

        Returns all measurements, and the gradients of `values` by name. Inputs without numbers are
        skipped. `outputs` are floating, `values` the trained parameters, `starts` the floating
        inputs, and `gradients` those of `values`, then of `starts`.
        """
        batch, by_value = self.record.batch, dict(zip(values, gradients, strict=False))
        named = {name: x for name, x in inputs.items() if any(w in str(x.dtype) for w in _NUMBERS)}
        shapes = {name: tuple(map(int, x.shape)) for name, x in by_value.items()}
        self.record.blocks = blocks = blocks_of(self.record.graph, shapes)
        groups: dict[str, tuple[Mapping[str, Any], int]] = {
            "inputs": (named, batch),
            "outputs": ({str(at): x for at, x in enumerate(outputs)}, batch),
            "values": (values, 1),
            "gradients": (by_value, 1),
            "blocks": ({name: by_value[one.of][one.places] for name, one in blocks.items()}, 1),
            "starts": (dict(zip(starts, gradients[len(values) :], strict=True)), 1),
        }
        for group, (arrays, samples) in groups.items():
            self.looks[group], self._dtypes[group] = {}, {}
            for name, x in arrays.items():
                if prod(map(int, x.shape)) and "complex" not in str(x.dtype):
                    self._look(group, name, x, samples)
        return self.looks, by_value

    def _look(self, group: str, name: str, x: Any, batch: int, units: Any = None) -> None:
        self.looks[group][name] = self.look(x, batch, units)
        self._dtypes[group][name] = x.dtype if "float" in str(x.dtype) else "float32"

    def filled(self, looks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Record:
        """Return a record of the measurements, as arrays.

        Raises an OptionError if the inputs cannot show anything.
        """
        facts: dict[str, dict[str, TensorFacts]] = {
            group: {
                name: facts_of({k: self.host(v) for k, v in looks[group][name].items()}, dtype)
                for name, dtype in dtypes.items()
            }
            for group, dtypes in self._dtypes.items()
        }
        ends = self.record.graph.outputs
        is_each = len(ends) == len(facts["outputs"])  # some may be returned twice, or no signal
        turned = {str(at) for at, name in enumerate(ends) if is_each and name in self._turned}
        facts["nodes"] = _without_samples(facts["nodes"], self._turned)
        facts["outputs"] = _without_samples(facts["outputs"], turned)
        inputs, nodes = facts["inputs"], facts["nodes"]
        blocks = {
            name: self.record.blocks[name]._replace(gradient=fact)
            for name, fact in facts["blocks"].items()
        }
        floating = {name: inputs[name] for name in facts["starts"] if name in inputs}
        check_inputs(floating, len(floating) < len(inputs))
        return replace(
            self.record,
            inputs=inputs,
            facts={**inputs, **nodes},
            outputs=list(facts["outputs"].values()),
            values=facts["values"],
            gradients=facts["gradients"],
            blocks=blocks,
            input_gradients=facts["starts"],
        )


def _without_samples(
    facts: Mapping[str, TensorFacts], names: Collection[str]
) -> dict[str, TensorFacts]:
    """Return facts, of which some compare no samples: other rows lie along the first axis."""
    return {
        name: fact._replace(spread=None) if name in names else fact for name, fact in facts.items()
    }


def _key(x: Any) -> Any:
    return x if isinstance(x, str) else id(x)
