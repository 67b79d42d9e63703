"""A model's graph from Keras' own symbolic calls, on any of its backends.

A functional model already is a graph of calls. A layer of another kind is called on symbolic
tensors, with symbolic tensors for its variables, and Keras records its operations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Data, Drawing, Made, Signal, Value, of_einsum, of_matmul

from ._calls import (
    Call,
    Shape,
    activation_of,
    cannot,
    draw_call,
    is_array,
    is_floating,
    kind_of,
    numbers_of,
    shape_of,
)
from ._layers import Weight, known_weights
from ._window import Window, convolved, spatial
from ._words import SPECTRA, plain

_CONTROL = {
    "Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond", "VectorizedMap",
}  # fmt: skip


class Walker:
    """Follows symbolic tensors through the calls of a model.

    Parameters
    ----------
    drawing : Drawing
        The drawing to write to.
    names : mapping of int to str
        The names of the parameters, by the id of their variable.
    """

    def __init__(self, drawing: Drawing, names: Mapping[int, str]) -> None:
        self.draw, self.names = drawing, names
        self.scopes: list[str] = []
        self.values: dict[int, tuple[Any, Value]] = {}  # with the tensor, to keep its id unique

    def note(self, tensor: Any, value: Value) -> Any:
        """Keep the value of a symbolic tensor."""
        self.values[id(tensor)] = tensor, value
        return tensor

    def hold(self, tensor: Any, array: Any) -> Any:
        """Keep the value of a symbolic tensor that stands for a constant array."""
        return self.note(tensor, self.value(array))

    def value(self, leaf: Any) -> Value:
        """Return the value of an argument."""
        if isinstance(leaf, keras.KerasTensor):
            return self.values[id(leaf)][1]
        name = self.names.get(id(leaf))
        if name is not None:
            return self.draw.parameter(name)
        return self.draw.constant(tuple(np.shape(leaf)), numbers=numbers_of(leaf))

    def _name(self, op: Any) -> str:
        return "".join(self.scopes) + str(op.name)

    # Operations -----------------------------------------------------------------------------

    def _operation(
        self, op: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        name, kind, draw = self._name(op), kind_of(op), self.draw
        offset: Made | None = None  # of a norm with a scale
        for variable in getattr(op, "weights", ()):
            parameter = self.names.get(id(variable))
            value = self.value(variable)
            if parameter and isinstance(value, Made) and draw.parameters[parameter].is_bias:
                draw.use(value, "bias")  # of a quantised layer
            elif parameter and isinstance(value, Made) and variable is getattr(op, "beta", None):
                if len(results) == 1 and getattr(op, "gamma", None) is not None:
                    offset = value
                else:
                    draw.use(value, "other")  # the offset of a norm, not its scale
            elif parameter:
                values = [*values, value]
        if kind == "Unstack":
            axis = op.axis % (len(results[0].shape) + 1)
            return draw.unstack(name, values[0], axis, len(results))
        if kind in ("Split", "ArraySplit"):
            axis = op.axis % len(results[0].shape)
            return draw.split(name, values[0], axis, [part.shape[axis] for part in results])
        if len(results) != 1:
            apart = [[v] for v in values] if kind == "Meshgrid" else [values] * len(results)
            pairs = zip(apart, results, strict=True)
            return [self._one(name, kind, given, result) for given, result in pairs]
        operands = self._operands(args, values)
        result = draw_call(Call(draw, op, name, values, operands, args, results[0]))
        if offset is not None:  # a norm's first factor counts as its scale, so this comes second
            draw.use(offset, "other", result.node if isinstance(result, Signal) else None)
        return [result]

    def _one(self, name: str, kind: str, values: list[Value], result: Any) -> Value:
        """Draw one of several results."""
        shape, floating = shape_of(result), is_floating(result)
        if kind in SPECTRA:
            return self.draw.spectrum(name, values[0], shape, floating)
        return self.draw.other(name, values, shape, floating, plain(kind))

    def _operands(self, args: Any, values: list[Value]) -> list[Value]:
        """Return the values of an operation's arguments, also of numbers."""
        flat = [leaf for leaf in keras.tree.flatten(args) if not isinstance(leaf, (str, bool))]
        known = all(is_array(leaf) or isinstance(leaf, (int, float)) for leaf in flat)
        if len(values) > 1 or not known:
            return values
        constant = self.draw.constant
        return [self.value(x) if is_array(x) else constant((), True, x) for x in flat]

    # Calls ----------------------------------------------------------------------------------

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw a call; return the symbolic tensors of its results."""
        if isinstance(op, keras.Sequential) and getattr(op, "_functional", None) is not None:
            op = op._functional
        if isinstance(op, keras.Function):
            return self._run(op, args[0] if args else kwargs["inputs"])
        if isinstance(op, keras.layers.Layer):
            kwargs.pop("training", None)
            draw = self._layer_drawer(op)
            if draw is None:
                return self._enter(op, args, kwargs)
        else:
            draw = self._operation
        if type(op).__name__ in _CONTROL:
            raise cannot(op, "it runs a function that Keras does not record")
        leaves = [leaf for leaf in keras.tree.flatten((args, kwargs)) if is_array(leaf)]
        if isinstance(op, keras.layers.EinsumDense):  # its own spec loses the input's sizes
            pair = [keras.KerasTensor(x.shape, x.dtype) for x in (leaves[0], op.kernel)]
            results = keras.ops.einsum(op.equation, *pair)
        else:
            results = op.compute_output_spec(*args, **kwargs)
        flat = keras.tree.flatten(results)
        if kind_of(op) == "Reshape" and None in getattr(op, "newshape", ()):
            got = f"{op.name}, a reshape to {op.newshape}"
            should = "the shape should be known: Keras itself cannot run it"
            cure = "write -1 for the size that is not known, or reshape in the call of a layer"
            raise GraphError(message("model", got, should, cure))
        given = (*args, *kwargs.values())
        if not all(keras.backend.is_float_dtype(x.dtype) for x in flat):
            self.draw.hide(self.value(leaf) for leaf in leaves)
        values = draw(op, [self.value(leaf) for leaf in leaves], flat, given)
        for tensor, value in zip(flat, values, strict=True):
            self.note(tensor, value)
        return results

    def _run(self, function: Any, inputs: Any) -> Any:
        """Draw all calls of a functional model."""
        if isinstance(inputs, dict) and not isinstance(function._inputs_struct, dict):
            inputs = [inputs[expected.name] for expected in function.inputs]
        pairs = list(zip(function.inputs, keras.tree.flatten(inputs), strict=True))
        for expected, given in pairs:
            sizes = zip(expected.shape, given.shape, strict=True)
            if any(a not in (None, b) for a, b in sizes):
                raise ValueError(f"{expected.name} has the shape {expected.shape}")
        with self._inside(function):
            return self._replay(function.outputs, pairs)

    def _replay(self, results: Any, pairs: list[tuple[Any, Any]]) -> Any:
        """Draw the calls that lead from the first of each pair to some results."""
        done = {id(inner): outer for inner, outer in pairs}
        todo = [leaf for leaf in keras.tree.flatten(results) if isinstance(leaf, keras.KerasTensor)]
        while todo:
            if id(todo[-1]) in done:
                todo.pop()
                continue
            history = todo[-1]._keras_history
            node = history.operation._inbound_nodes[history.node_index]
            missing = [x for x in node.input_tensors if id(x) not in done]
            if missing:
                todo += reversed(missing)
                continue
            args, kwargs = node.arguments.fill_in(done)
            outputs = keras.tree.flatten(self.call(node.operation, *args, **kwargs))
            done |= zip(map(id, node.output_tensors), outputs, strict=True)
        return keras.tree.map_structure(lambda leaf: done.get(id(leaf), leaf), results)

    @contextmanager
    def _inside(self, layer: Any) -> Iterator[None]:
        """Prefix the names of a layer's operations with its name, unless it is the whole model."""
        self.scopes.append(f"{layer.name}/" if self.scopes else "")
        yield
        self.scopes.pop()

    def _enter(self, layer: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer on new symbolic tensors, and draw its operations."""
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = {**kwargs, "training": False}
        given: list[tuple[Any, Any]] = []

        def symbol(leaf: Any) -> Any:
            if not isinstance(leaf, keras.KerasTensor):
                return leaf
            given.append((keras.KerasTensor(leaf.shape, leaf.dtype), leaf))
            return given[-1][0]

        args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
        with _calls_forgotten(layer), self._symbolic(layer) as variables, self._inside(layer):
            try:
                with _arrays_deferring(), self._constants_followed(given):
                    results = layer.call(*args, **kwargs)
            except Exception as problem:
                text = " ".join(str(problem).split())[:300]
                raise cannot(layer, f"called on symbolic tensors it raised: {text}") from problem
            return self._replay(results, given + variables)

    @contextmanager
    def _constants_followed(self, given: list[tuple[Any, Any]]) -> Iterator[None]:
        """Let layers with parameters take constants as symbolic tensors, added to `given`.

        Keras would run such a layer at once, as one that is applied to positions, and record
        nothing.
        """
        run = keras.layers.Layer.__call__

        def symbol(leaf: Any) -> Any:
            if not is_array(leaf):
                return leaf
            shape, dtype = tuple(np.shape(leaf)), keras.backend.standardize_dtype(leaf.dtype)
            inner, outer = keras.KerasTensor(shape, dtype), keras.KerasTensor(shape, dtype)
            given.append((inner, self.hold(outer, leaf)))
            return inner

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            leaves = keras.tree.flatten((args, kwargs))
            is_known = any(id(variable) in self.names for variable in layer.variables)
            if is_known and not any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
                args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
            keras.layers.Layer.__call__ = run  # Keras may run the layer itself, to know its shapes
            try:
                return run(layer, *args, **kwargs)
            finally:
                keras.layers.Layer.__call__ = call

        keras.layers.Layer.__call__ = call
        try:
            yield
        finally:
            keras.layers.Layer.__call__ = run

    @contextmanager
    def _symbolic(self, layer: Any) -> Iterator[list[tuple[Any, Any]]]:
        """Replace a layer's own variables by symbolic tensors."""
        variables = {k: v for k, v in vars(layer).items() if id(v) in self.names}
        pairs = []
        for key, variable in variables.items():
            shape, dtype = tuple(variable.shape), layer.compute_dtype
            inner, outer = keras.KerasTensor(shape, dtype), keras.KerasTensor(shape, dtype)
            self.note(outer, self.draw.parameter(self.names[id(variable)]))
            vars(layer)[key] = inner
            pairs.append((inner, outer))
        try:
            yield pairs
        finally:
            vars(layer).update(variables)

    # Layers ---------------------------------------------------------------------------------

    def _layer_drawer(self, layer: Any) -> Callable[..., list[Value]] | None:
        """Return the method that draws a layer, or None for a layer to enter."""
        if isinstance(layer, keras.layers.RNN):
            return self._recurrent
        if isinstance(layer, keras.layers.Embedding):
            return self._embedding
        if known_weights(layer) and not layer._layers:
            return self._chain
        is_custom = not type(layer).__module__.startswith("keras.src.layers.")
        if layer._layers or is_custom or isinstance(layer, keras.layers.Lambda):
            return None
        return self._operation

    def _chain(self, layer: Any, values: list[Value], results: list[Any], args: Any) -> list[Value]:
        """Draw a layer that applies its weights one after the other."""
        shape = shape_of(results[0])
        value, *_ = values
        for weight in known_weights(layer):
            value = self._weigh(layer, weight, value, shape)
            if weight.bias is not None:
                bias = self.value(weight.bias)
                if getattr(layer, "data_format", None) == "channels_first":
                    ones = (1,) * (len(shape or ()) - 2)
                    bias = self.draw.reshape("bias", bias, (*(bias.shape or ()), *ones))
                bias = self.draw.broadcast("bias", bias, shape)
                value = self.draw.add(f"{self._name(layer)}: bias", value, bias, shape)
        if getattr(layer, "activation", None) not in (None, keras.activations.linear):
            name, word = f"{self._name(layer)}: activation", activation_of(layer)
            value = self.draw.entrywise(name, [value], shape, word=word)
        return [value]

    def _weigh(self, layer: Any, weight: Weight, value: Value, shape: Shape | None) -> Value:
        kernel = self.value(weight.variable)
        if isinstance(layer, keras.layers.EinsumDense):
            return self._dense(self._name(layer), value, kernel, shape, layer.equation)
        if weight.window is None and not any(c in "DHW" for c in weight.letters):
            return self._dense(self._name(layer), value, kernel, shape)
        first = getattr(layer, "data_format", None) == "channels_first"
        space = spatial(len(weight.letters) - 2, first)
        window = Window((), (0,) * len(space), ())  # of a kernel with one tap
        if weight.window is not None:
            window = weight.window(tuple(value.shape[k] for k in space) if value.shape else ())
        is_strided = weight.window is not None and max(layer.strides) > 1
        how = (window, first, is_strided, weight.groups, weight.transposed)
        name = self._name(layer)
        return convolved(self.draw, name, [value, kernel], weight.letters, shape, *how)

    def _dense(
        self, name: str, value: Value, kernel: Value, shape: Shape | None, equation: str = ""
    ) -> Value:
        """Draw a product of matrices, or the einsum of an equation."""
        if value.shape is None or kernel.shape is None:
            return self.draw.other(name, [value, kernel], shape)
        ranks = [len(value.shape), len(kernel.shape)]
        labels = of_einsum(equation, ranks) if equation else of_matmul(ranks)
        return self.draw.product(name, [value, kernel], *labels, shape)

    def _embedding(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        shape, table, name = shape_of(results[0]), self.value(layer.embeddings), self._name(layer)
        reverse = getattr(layer, "reverse_embeddings", None)
        if isinstance(values[0], Data) or not hasattr(layer, "tie_weights"):
            return [self.draw.lookup(name, [table, *values], shape)]
        transposed = reverse is None
        kernel = self.draw.transpose(name, table, [1, 0]) if transposed else self.value(reverse)
        return [self._dense(f"{name}/reverse", values[0], kernel, shape)]

    def _recurrent(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        """Draw the first steps of a recurrent layer, from zeros or from given states on."""
        name, draw = self._name(layer), self.draw
        if not known_weights(layer.cell):
            raise cannot(layer, f"its cell {type(layer.cell).__name__} is unknown")
        size = (2, layer.cell.units)
        first: Value = draw.constant(size, value=0)
        if len(values) > 1:
            first = draw.result(f"{name}: start", values[1:], size)

        def turn(held: list[Value]) -> list[Value]:
            return [self._step(layer, values[0], *held)]

        steps = None if values[0].shape is None else values[0].shape[1]
        turns = draw.loop(f"{name}: state", [first], [size], turn, steps)
        rows = [value for (value,) in turns]
        return [
            draw.result(f"{name}: {at}" if at else name, rows, shape_of(result))
            for at, result in enumerate(results)
        ]

    def _step(self, layer: Any, rows: Value, state: Value) -> Value:
        """Draw one step of a recurrent layer, which reads one of some rows; return its state."""
        weights, name, draw = known_weights(layer.cell), self._name(layer), self.draw
        now = draw.result(f"{name}: step", [rows], rows.shape and (2, rows.shape[-1]))
        units, many, size = layer.cell.units, weights[0].parts, state.shape
        wide = (2, weights[0].variable.shape[-1])
        parts = [
            self._dense(name, value, self.value(weight.variable), wide)
            for weight, value in zip(weights, (now, state), strict=True)
        ]
        bias = self.value(layer.cell.bias) if layer.cell.use_bias else None
        value = draw.add(f"{name}: add", parts[0], parts[1], wide)
        if bias is not None:
            if len(bias.shape or ()) == 2:  # a row for the input and one for the state
                bias = draw.part(f"{name}: bias", bias, [(0, 1, 1), (0, wide[1], 1)], (0,))
            bias = draw.broadcast(f"{name}: bias", bias, wide)
            value = draw.add(f"{name}: bias", value, bias, wide)
        gates = draw.split(f"{name}: gates", value, 1, (units,) * many) if many > 1 else [value]
        if not isinstance(layer.cell, keras.layers.GRUCell):
            return draw.result(f"{name}: gated", gates, size)
        # z * state + (1 - z) * candidate
        z = draw.result(f"{name}: z", gates[:1], size, word="sigmoid")
        kept = draw.result(f"{name}: kept", [z, state], size, word="mul")
        candidate = draw.result(f"{name}: candidate", gates[1:], size)
        rest = draw.result(f"{name}: 1 - z", [z], size, word="sigmoid")
        new = draw.result(f"{name}: new", [rest, candidate], size, word="mul")
        return draw.add(f"{name}: update", kept, new, size)


def walk(
    draw: Drawing, held: Mapping[int, str], model: Any, args: Any, kwargs: Any, names: Iterable[str]
) -> list[Value]:
    """Draw a model, and return the signals among its outputs."""
    walker = Walker(draw, held)
    for leaf, name in zip(keras.tree.flatten((args, kwargs)), names, strict=True):
        walker.note(leaf, draw.input(name, tuple(leaf.shape), is_floating(leaf)))
    results = keras.tree.flatten(walker.call(model, *args, **kwargs))
    values = [walker.value(result) for result in results if is_array(result)]
    return [value for value in values if isinstance(value, Signal)]


@contextmanager
def _arrays_deferring() -> Iterator[None]:
    """Let an array leave an operator to the symbolic tensor on its right, as that knows it.

    Symbolic tensors also take `None` as an index, which Keras only takes in a tuple.
    """
    kind = keras.KerasTensor
    held, item = kind.__jax_array__, kind.__getitem__
    kind.__getitem__ = lambda x, key: item(x, (key,) if key is None else key)
    try:
        del kind.__jax_array__  # for arrays of JAX
        kind.__array_ufunc__ = None  # for those of NumPy
        yield
    finally:
        kind.__jax_array__, kind.__getitem__ = held, item
        del kind.__array_ufunc__


@contextmanager
def _calls_forgotten(layer: Any) -> Iterator[None]:
    """Afterwards, delete Keras' records of the calls of a layer and its sublayers."""
    layers = layer._flatten_layers()
    counts = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    try:
        yield
    finally:
        for x, inbound, outbound in counts:
            del x._inbound_nodes[inbound:], x._outbound_nodes[outbound:]
