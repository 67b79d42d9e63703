"""A model's graph from the concrete TensorFlow function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import LAYERS, MEMBERS, Drawing, Made, Value, is_constant

from ._static import counts_of, is_map, knowing, note_captures, reads_its_counter, static, writes_of
from ._table import ENTRYWISE, KNOWN, MOVES, TABLE, is_floating, shape_of
from ._words import SPECTRA, plain

_SAME = {"Identity", "IdentityN", "Snapshot", "EnsureShape", "ReadVariableOp", "Cast"}
_SAME |= {"CheckNumerics", "StopGradient", "PreventGradient"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {"If", "StatelessIf"}
_LOOPS = {"While", "StatelessWhile"}
_UNREADABLE = ("CudnnRNN", "SparseTensorDenseMatMul", "SparseMatMul", "Xla", "TPU", "PyFunc")


class Reader:
    """Reads function graphs into a drawing.

    Parameters
    ----------
    drawing : Drawing
        The drawing to write to.
    names : mapping of int to str
        The names of the parameters, by the id of their resource handle.
    rename : callable
        Turns the name of an operation into a readable one.
    """

    def __init__(
        self, drawing: Drawing, names: Mapping[int, str], rename: Callable[[str], str]
    ) -> None:
        self.draw, self.names, self.rename = drawing, names, rename

    def captured(self, graph: Any) -> dict[str, Value]:
        """Return the values of a function's captures: variables and constants."""
        values: dict[str, Value] = {}
        note_captures(graph)
        for outside, inside in graph.captures:
            name = self.names.get(id(outside))
            numbers = (
                outside.numpy() if is_floating(outside) and hasattr(outside, "numpy") else None
            )
            constant = self.draw.constant(shape_of(inside), numbers=numbers)
            values[inside.name] = constant if name is None else self.draw.parameter(name)
        return values

    def run(
        self, graph: Any, values: dict[str, Value], outputs: Sequence[Any] | None = None
    ) -> list[Value]:
        """Draw all operations that the outputs of a graph need; `values` holds its inputs."""
        outputs = graph.outputs if outputs is None else outputs
        for op in _needed(graph, outputs):
            if op.type == "Placeholder":
                if op.outputs[0].name not in values:
                    raise _cannot(op, "it is an input without a value")
                continue
            inputs = [values[tensor.name] for tensor in _operands(op)]
            if not all(map(is_floating, op.outputs)):
                self.draw.hide(inputs)
            for tensor, value in zip(op.outputs, self._once(op, inputs), strict=True):
                values[tensor.name] = self._computed(tensor, value)
        return [values[tensor.name] for tensor in outputs]

    def _computed(self, tensor: Any, value: Value) -> Value:
        """Return a value; a constant that is made of constants, such as tf.eye, is computed."""
        if not is_constant(value) or value.numbers is not None:
            return value
        array = static(tensor)
        return value if array is None else self.draw.constant(value.shape, numbers=array)

    def _once(self, op: Any, inputs: list[Value]) -> Sequence[Value]:
        """Return the values of an operation's outputs; indices are computed once."""
        if len(op.outputs) != 1 or is_floating(op.outputs[0]) or op.type in _CALLS:
            return self._values(op, inputs)
        key = (op.type, str(sorted(op.node_def.attr.items(), key=str)), shape_of(op.outputs[0]))
        return [self.draw.once(key, inputs, lambda: self._values(op, inputs)[0])]

    def _values(self, op: Any, inputs: list[Value]) -> Sequence[Value]:
        """Return the values of an operation's outputs."""
        if op.type in _CALLS:
            return self._body(op, "f", inputs)
        if op.type in _BRANCHES:
            return self._branches(op, inputs)
        if op.type in _LOOPS:
            return self._turns(op, inputs) or self._loop(op, inputs)
        runs = any("func" in attribute.type for attribute in op.op_def.attr)
        only_parameters = all(isinstance(value, Made) for value in inputs)
        hidden = op.type not in TABLE and any(name in op.type for name in _UNREADABLE)
        if not only_parameters and (runs or hidden):
            raise _cannot(op, "its computation with the weights is unknown")
        name = self.rename(op.name)
        if op.type in ("Split", "SplitV"):
            value, at = (op.inputs[1], 0) if op.type == "Split" else (op.inputs[0], 2)
            axis = int(static(op.inputs[at])) % value.shape.rank
            sizes = [out.shape[axis] for out in op.outputs]
            return self.draw.split(name, inputs[at == 0], axis, sizes)
        if op.type == "Unpack":
            axis = op.get_attr("axis") % op.inputs[0].shape.rank
            return self.draw.unstack(name, inputs[0], axis, len(op.outputs))
        if op.type in _SAME:
            pairs = zip(op.inputs, op.outputs, inputs, strict=True)
            return [self._unchanged(op, name, *pair) for pair in pairs]
        if len(op.outputs) == 1:
            (out,) = op.outputs
            handler = MOVES.get(op.type) or (TABLE.get(op.type) if is_floating(out) else None)
            if handler is not None:
                return [handler(self.draw, op, name, inputs, shape_of(out))]
        return [self._other(op, name, inputs, out) for out in op.outputs]

    def _other(self, op: Any, name: str, inputs: list[Value], out: Any) -> Value:
        shape, floating = shape_of(out), is_floating(out)
        if op.type in ENTRYWISE:
            return self.draw.entrywise(name, inputs, shape, floating, "", plain(op.type))
        if op.type in SPECTRA:
            return self.draw.spectrum(name, inputs[0], shape, floating)
        only_parameters = all(isinstance(value, Made) for value in inputs)
        known = op.type in KNOWN and not only_parameters
        draws = self.draw.result if known else self.draw.other
        return draws(name, inputs, shape, floating, _word(op))

    def _unchanged(self, op: Any, name: str, source: Any, out: Any, value: Value) -> Value:
        if op.type in ("StopGradient", "PreventGradient"):
            return self.draw.stop(name, value, is_floating(out))
        if source.dtype == out.dtype or source.dtype.name == "resource":
            return value
        return self.draw.cast(name, value, is_floating(out), source.dtype.name == "bool")

    # Functions ------------------------------------------------------------------------------

    def _body(self, op: Any, attribute: str, inputs: Sequence[Value]) -> list[Value]:
        body = _function(op, attribute)
        results = self.run(body, dict(zip((t.name for t in body.inputs), inputs, strict=True)))
        return results[: len(op.outputs)]  # a gradient that was taken has added what it needs

    def _loop(self, op: Any, inputs: list[Value]) -> Sequence[Value]:
        shapes = [shape_of(out) for out in op.outputs]
        state, body = f"{self.rename(op.name)}: state", partial(self._body, op, "body")
        return self.draw.loop(state, inputs, shapes, body)[-1]

    def _turns(self, op: Any, inputs: list[Value]) -> list[Value]:
        """Draw a loop that reads stacks by the number of its turn, turn by turn; else nothing."""
        test, body = (_function(op, attribute) for attribute in ("cond", "body"))
        made = {at for at, one in enumerate(inputs) if isinstance(one, Made) and one.parts}
        if not reads_its_counter(body, made):
            return []
        writes, most = writes_of(body), MEMBERS if is_map(body) else LAYERS
        *turns, last = counts_of(op, test, body, writes.values(), most) or [{}]
        constant, names = self.draw.constant, [tensor.name for tensor in body.inputs]
        outputs = [*body.outputs[: len(inputs)]]
        for at, write in writes.items():
            outputs[at] = write.inputs[2]
        states, rows = [*inputs], list[list[Value]]()
        for counts in turns:
            given = dict(zip(names, states, strict=True))
            given |= {names[at]: constant((), numbers=count) for at, count in counts.items()}
            with knowing(body, counts):
                out = self.run(body, given, outputs)
            rows.append([out[at] for at in writes])
            states = [old if at in writes else out[at] for at, old in enumerate(states)]
        if not turns:
            return []
        for at, count in last.items():
            states[at] = constant((), numbers=count)
        for at, values in zip(writes, zip(*rows, strict=True), strict=False):
            size = values[0].shape
            shape = None if size is None else (len(values), *size)
            states[at] = self.draw.stack(self.rename(op.name), values, 0, shape)
        return states

    def _branches(self, op: Any, inputs: list[Value]) -> list[Value]:
        one, other = (self._body(op, f"{b}_branch", inputs[1:]) for b in ("then", "else"))
        name = self.rename(op.name)
        return [
            self.draw.either(name, pair, shape_of(out), is_floating(out))
            for *pair, out in zip(one, other, op.outputs, strict=True)
        ]


def _function(op: Any, attribute: str) -> Any:
    """Return the graph of a function that an operation runs."""
    return op.graph._get_function(op.get_attr(attribute).name).graph


def _word(op: Any) -> str:
    """Return the plain name of an operation; a number that fills an image is a constant."""
    fill: Any = 0
    if op.type == "ImageProjectiveTransformV3":
        fill = static(op.inputs[3])
    elif op.type == "CropAndResize":
        fill = op.get_attr("extrapolation_value")
    return plain(op.type) if fill == 0 else "offset"


def _cannot(op: Any, why: str) -> GraphError:
    should = f"this operation ({op.type}) cannot be traced: {why}"
    cure = "write that part with other operations or layers, or set its weights one by one: idi_"
    return GraphError(message("model", op.name, should, cure))


def _needed(graph: Any, outputs: Sequence[Any]) -> list[Any]:
    """Return the operations that a graph's outputs depend on, in the order of the graph."""
    seen: set[str] = set()
    stack = [tensor.op for tensor in outputs]
    while stack:
        op = stack.pop()
        if op.name not in seen:
            seen.add(op.name)
            stack += [tensor.op for tensor in op.inputs]
    return [op for op in graph.get_operations() if op.name in seen]


def _operands(op: Any) -> list[Any]:
    """Return an operation's inputs. If Keras writes a sum as a bias, they are its two terms.

    For samples of one row Keras writes ``x + y`` as ``bias_add(x, squeeze(y))``.
    """
    inputs = list(op.inputs)
    if op.type == "BiasAdd" and inputs[1].op.type == "Squeeze":
        whole = inputs[1].op.inputs[0]
        if shape_of(whole) is not None and shape_of(whole) == shape_of(op.outputs[0]):
            inputs[1] = whole
    return inputs
