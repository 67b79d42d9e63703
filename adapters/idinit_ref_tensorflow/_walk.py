"""A model's graph from Keras' own symbolic calls, on any of its backends.

A functional model is a graph of calls already. A layer of another kind is called on symbolic
tensors, also in place of its variables, and Keras notes what it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from idinit_ref.errors import GraphError, message

from ._draw import Drawing
from ._layers import Weight, known_weights
from ._values import Data, Made, Shape, Signal, Value, einsum_letters

_CONTROL = {"Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond"}
_CONTROL |= {"VectorizedMap"}
_RESHAPES = {"Reshape", "ExpandDims", "Squeeze", "Flatten", "Ravel"}
_SAME = {"Cast", "StopGradient", "Identity", "Copy", "Dropout", "SpatialDropout1D"}
_SAME |= {"SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise"}
_SAME |= {"ActivityRegularization"}
_PLUS = {"Add", "AddN", "Average"}
_KEEP = {"Multiply", "Divide", "TrueDivide", "Negative", "Round"}


class Walker:
    """Follows symbolic tensors through the calls of a model.

    Parameters
    ----------
    drawing : Drawing
        What is written to.
    """

    def __init__(self, drawing: Drawing) -> None:
        self.draw = drawing
        self.names = {id(p.variable): name for name, p in drawing.parameters.items()}
        self.scopes: list[str] = []
        self.values: dict[int, tuple[Any, Value]] = {}  # with the tensor, so that it lives on

    def note(self, tensor: Any, value: Value) -> Any:
        """Keep the value of a symbolic tensor."""
        self.values[id(tensor)] = tensor, value
        return tensor

    def value(self, leaf: Any) -> Value:
        """Return the value of whatever an operation is called with."""
        if isinstance(leaf, keras.KerasTensor):
            return self.values[id(leaf)][1]
        name = self.names.get(id(leaf))
        return Made(tuple(np.shape(leaf))) if name is None else self.draw.parameter(name)

    # Calls ----------------------------------------------------------------------------------

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw a call; return the symbolic tensors of its results."""
        if isinstance(op, keras.Sequential) and getattr(op, "_functional", None) is not None:
            op = op._functional
        if isinstance(op, keras.Function):
            return self._run(op, args[0] if args else kwargs["inputs"])
        if isinstance(op, keras.layers.Layer):
            kwargs.pop("training", None)
            draw = self._of_layer(op)
            if draw is None:
                return self._enter(op, args, kwargs)
        else:
            draw = self._operation
        if type(op).__name__ in _CONTROL:
            raise _cannot(op, "it runs a function that Keras does not show")
        leaves = [leaf for leaf in keras.tree.flatten((args, kwargs)) if _is_array(leaf)]
        if isinstance(op, keras.layers.EinsumDense):  # it forgets the sizes of its input
            pair = [keras.KerasTensor(x.shape, x.dtype) for x in (leaves[0], op.kernel)]
            results = keras.ops.einsum(op.equation, *pair)
        else:
            results = op.compute_output_spec(*args, **kwargs)
        flat = keras.tree.flatten(results)
        values = draw(op, [self.value(leaf) for leaf in leaves], flat, args)
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
        """Put a layer's name in front of those of what it does; not that of the whole model."""
        self.scopes.append(f"{layer.name}/" if self.scopes else "")
        yield
        self.scopes.pop()

    def _name(self, op: Any) -> str:
        return "".join(self.scopes) + str(op.name)

    def _enter(self, layer: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer on new symbolic tensors, and draw what it does with them."""
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = {**kwargs, "training": False}
        given: list[tuple[Any, Any]] = []

        def symbol(leaf: Any) -> Any:
            if not isinstance(leaf, keras.KerasTensor):
                return leaf
            given.append((keras.KerasTensor(leaf.shape, leaf.dtype), leaf))
            return given[-1][0]

        args, kwargs = keras.tree.map_structure(symbol, (args, kwargs))
        with _as_before(layer), self._symbolic_variables(layer) as variables, self._inside(layer):
            try:
                results = layer.call(*args, **kwargs)
            except Exception as problem:
                said = " ".join(str(problem).split())[:300]
                raise _cannot(layer, f"called on symbolic tensors it said: {said}") from problem
            return self._replay(results, given + variables)

    @contextmanager
    def _symbolic_variables(self, layer: Any) -> Iterator[list[tuple[Any, Any]]]:
        """Put symbolic tensors in the place of a layer's own variables."""
        own = {k: v for k, v in vars(layer).items() if id(v) in self.names}
        pairs = []
        for key, variable in own.items():
            shape, dtype = tuple(variable.shape), layer.compute_dtype
            inner, outer = keras.KerasTensor(shape, dtype), keras.KerasTensor(shape, dtype)
            self.note(outer, self.draw.parameter(self.names[id(variable)]))
            vars(layer)[key] = inner
            pairs.append((inner, outer))
        try:
            yield pairs
        finally:
            vars(layer).update(own)

    # Layers ---------------------------------------------------------------------------------

    def _of_layer(self, layer: Any) -> Callable[..., list[Value]] | None:
        """Return what draws a layer, or None for one that is to be entered."""
        if isinstance(layer, keras.layers.RNN):
            return self._recurrent
        if isinstance(layer, keras.layers.Embedding):
            return self._embedding
        if known_weights(layer) and not layer._layers:
            return self._chain
        is_own = not type(layer).__module__.startswith("keras.")
        if layer._layers or is_own or isinstance(layer, keras.layers.Lambda):
            return None
        return self._operation

    def _chain(self, layer: Any, values: list[Value], results: list[Any], args: Any) -> list[Value]:
        """Draw a layer that applies its weights one after the other."""
        shape = _shape(results[0])
        value, *_ = values
        for weight in known_weights(layer):
            value = self._weigh(layer, weight, value, shape)
            if weight.bias is not None:
                bias = self.value(weight.bias)
                value = self.draw.add(f"{self._name(layer)}: bias", value, bias, shape)
        if getattr(layer, "activation", None) not in (None, keras.activations.linear):
            value = self.draw.other(f"{self._name(layer)}: activation", [value], shape)
        return [value]

    def _weigh(self, layer: Any, weight: Weight, value: Value, shape: Shape | None) -> Value:
        made = self.value(weight.variable)
        assert isinstance(made, Made)
        last = len(shape or ()) - 1
        if isinstance(layer, keras.layers.EinsumDense):
            return self._einsum(layer.equation, self._name(layer), value, made, shape)
        first = getattr(layer, "data_format", None) == "channels_first"
        place = (1 if first else last,)
        sizes = _in_space(getattr(value, "shape", None), place[0])
        return self.draw.product(
            self._name(layer), [value], made, weight.letters, shape, place, sizes=sizes
        )

    def _embedding(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        shape, table = _shape(results[0]), self.value(layer.embeddings)
        reverse = getattr(layer, "reverse_embeddings", None)
        if isinstance(values[0], Data) or not hasattr(layer, "tie_weights"):
            return [self.draw.lookup(self._name(layer), [table, *values], shape)]
        made, letters = (table, "OI") if reverse is None else (self.value(reverse), "IO")
        assert isinstance(made, Made)
        place = (len(shape or ()) - 1,)
        return [
            self.draw.product(f"{self._name(layer)}/reverse", values, made, letters, shape, place)
        ]

    def _recurrent(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        """Draw one step of a recurrent layer, after the first: its state is a signal."""
        weights = known_weights(layer.cell)
        if not weights:
            raise _cannot(layer, f"what its cell {type(layer.cell).__name__} does is not known")
        wide = (2, weights[0].variable.shape[-1])
        state = self.draw.start(f"{self._name(layer)}: state", (2, layer.cell.units))
        parts: list[Value] = []
        for weight, value in zip(weights, (values[0], state), strict=True):
            made = self.value(weight.variable)
            assert isinstance(made, Made)
            parts.append(self.draw.product(self._name(layer), [value], made, "IO", wide, (1,)))
        value = self.draw.add(f"{self._name(layer)}: add", parts[0], parts[1], wide)
        if layer.cell.use_bias:
            bias = self.value(layer.cell.bias)
            assert isinstance(bias, Made)
            value = self.draw.add(
                f"{self._name(layer)}: bias", value, bias._replace(shape=wide[1:]), wide
            )
        if isinstance(layer.cell, keras.layers.GRUCell):  # z * state + (1 - z) * candidate
            kept = self.draw.other(f"{self._name(layer)}: kept", [state, value], state.shape)
            new = self.draw.other(f"{self._name(layer)}: new", [value], state.shape)
            value = self.draw.add(f"{self._name(layer)}: update", kept, new, state.shape)
        return [
            self.draw.other(
                f"{self._name(layer)}: {at}" if at else self._name(layer), [value], _shape(result)
            )
            for at, result in enumerate(results)
        ]

    # Operations -----------------------------------------------------------------------------

    def _operation(
        self, op: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        name, kind, draw = self._name(op), type(op).__name__, self.draw
        for variable in getattr(op, "weights", ()):
            name_of = self.names.get(id(variable))
            if name_of and draw.parameters[name_of].is_bias:
                draw.touch([self.value(variable)], "bias")  # of a quantised layer
            elif name_of:
                values = [*values, self.value(variable)]
        if kind in ("Split", "ArraySplit", "Unstack"):
            return list(self._parts(op, values[0], results))
        if len(results) != 1:
            return [draw.other(name, values, _shape(r), _is_floating(r)) for r in results]
        return [self._single(op, kind, name, values, results[0], args)]

    def _single(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        draw, shape, floating = self.draw, _shape(result), _is_floating(result)
        value = values[0] if values else Made(shape)
        if kind in _SAME:
            return draw.cast(name, value, shape, floating)
        if kind in _RESHAPES:
            return draw.reshape(name, value, shape, floating)
        if kind in ("Transpose", "Permute", "Swapaxes", "Moveaxis"):
            return draw.transpose(name, value, _order(op, kind, len(shape or ())))
        if kind == "GetItem":
            spans, gone = _spans(args[0].shape, args[1])
            return draw.part(name, value, shape, spans, gone, floating)
        if kind == "Take" or kind == "TakeAlongAxis":
            axis = getattr(op, "axis", None) if kind == "Take" else None
            at = None if axis is None else axis % len(args[0].shape)
            return draw.lookup(name, values, shape, at)
        if kind == "Concatenate" and floating:
            return draw.join(name, values, shape)
        if (kind == "Pad" or kind.startswith("ZeroPadding")) and floating:
            return draw.pad(name, values, shape, _left(op, kind, len(shape or ())))
        if kind in _PLUS and floating and len(values) > 1:
            for more in values[1:]:
                value = draw.add(name, value, more, shape)
            return value
        under = "Div" in kind and not _is_array(args[0])  # a number divided by a tensor
        if kind in _KEEP and floating and not under:
            return draw.keep(name, values, shape)
        one_hot = kind == "CategoryEncoding" and op.output_mode == "one_hot"
        if (kind == "OneHot" or one_hot) and floating:
            found = draw.other(name, values, shape)
            return found._replace(picks=True) if isinstance(found, Signal) else found
        return self._product(op, kind, name, values, result, args)

    def _product(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        shape, last = _shape(result), len(_shape(result) or ())
        if kind in ("Matmul", "Einsum"):
            values = self.draw.weights(values)
        at = next((at for at, v in enumerate(values[:2]) if isinstance(v, Made)), 0)
        made = values[at] if len(values) > 1 else None
        contracts = kind in ("Matmul", "Dot", "Einsum", "Tensordot", "Inner", "Vdot")
        if not (contracts or "Conv" in kind) or not isinstance(made, Made) or len(values) != 2:
            return self.draw.other(name, values, shape, _is_floating(result))
        other = values[1 - at]
        if isinstance(other, Made):
            return self.draw.other(name, values, shape)
        rank = len(made.shape or ())
        if not made.axes:
            raise _cannot(op, "it is not seen where one of its operands comes from")
        if kind == "Einsum":
            inputs, result = op.subscripts.split("->")
            pair = inputs.split(",")
            equation = f"{pair[1 - at]},{pair[at]}->{result}"
            return self._einsum(equation, name, other, made, shape)
        if kind in ("Matmul", "Dot") and rank >= 2:
            letters = "B" * (rank - 2) + ("IO" if at else "OI")
            copies = range(last - rank, last - 2)
            place = (last - 1 if at else last - 2,)
            return self.draw.product(name, [other], made, letters, shape, place, copies, copies)
        raise _cannot(op, "the axes of its weight are not followed")

    def _einsum(
        self, equation: str, name: str, value: Value, made: Made, shape: Shape | None
    ) -> Value:
        inputs, rest = equation.replace(" ", "").split(",")
        kernel, result = rest.split("->")
        result = result.replace("...", "." * (len(shape or ()) - len(result.replace("...", ""))))
        rank = len(getattr(value, "shape", None) or ())
        inputs = inputs.replace("...", "." * (rank - len(inputs.replace("...", ""))))
        letters = einsum_letters(kernel, inputs, result, made)
        if "." in kernel or len(set(kernel)) < len(kernel):
            letters = ""
        where = [(c, result.index(k)) for k, c in zip(kernel, letters, strict=False) if c != "I"]
        places, copies = ([at for c, at in where if c == letter] for letter in "OB")
        if not letters:
            made = made._replace(axes=dict.fromkeys(made.axes))
        behind = [inputs.index(c) for c in kernel if c in inputs and c in result]
        return self.draw.product(name, [value], made, letters, shape, places, copies, behind)

    def _parts(self, op: Any, value: Value, results: list[Any]) -> Iterator[Value]:
        is_unstack = type(op).__name__ == "Unstack"
        axis, start = op.axis % (len(results[0].shape) + is_unstack), 0
        for result in results:
            size = 1 if is_unstack else result.shape[axis]
            gone = (axis,) if is_unstack else ()
            spans = {axis: (start, start + size)}
            start += size
            floating = _is_floating(result)
            yield self.draw.part(self._name(op), value, _shape(result), spans, gone, floating)


def walk(drawing: Drawing, model: Any, args: Any, kwargs: Any, names: Iterable[str]) -> list[str]:
    """Draw a model; return the nodes that it returns."""
    walker = Walker(drawing)
    for leaf, name in zip(keras.tree.flatten((args, kwargs)), names, strict=True):
        walker.note(leaf, drawing.data(name, tuple(leaf.shape), _is_floating(leaf)))
    results = keras.tree.flatten(walker.call(model, *args, **kwargs))
    values = [walker.value(result) for result in results if _is_array(result)]
    return [value.node for value in values if isinstance(value, Signal)]


@contextmanager
def _as_before(layer: Any) -> Iterator[None]:
    """Make Keras forget the calls of some layers that are made meanwhile."""
    layers = layer._flatten_layers()
    counts = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    try:
        yield
    finally:
        for x, inbound, outbound in counts:
            del x._inbound_nodes[inbound:], x._outbound_nodes[outbound:]


def _cannot(op: Any, why: str) -> GraphError:
    return GraphError(
        message(
            "model",
            op.name,
            f"this operation ({type(op).__name__}) cannot be traced on Keras' "
            f"{keras.backend.backend()} backend: {why}",
            "trace on the TensorFlow backend, or write that part with keras.ops and keras.layers",
        )
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (keras.KerasTensor, keras.Variable)) or hasattr(leaf, "__array__")


def _shape(tensor: Any) -> Shape | None:
    return None if None in tensor.shape else tuple(tensor.shape)


def _in_space(shape: Shape | None, channels: int) -> Shape | None:
    """Return the sizes of an image without its samples and channels."""
    if shape is None:
        return None
    return tuple(size for axis, size in enumerate(shape) if axis not in (0, channels))


def _is_floating(tensor: Any) -> bool:
    return "float" in str(tensor.dtype) or "complex" in str(tensor.dtype)


def _order(op: Any, kind: str, rank: int) -> list[int] | None:
    if kind == "Transpose":
        return list(op.axes) if op.axes is not None else list(range(rank))[::-1]
    if kind == "Permute":
        return [0, *op.dims]
    order = list(range(rank))
    if kind == "Swapaxes":
        a, b = op.axis1 % rank, op.axis2 % rank
        order[a], order[b] = b, a
        return order
    # NumPy knows the rule: axes of sizes 0, 1, ... show where they went.
    return list(np.moveaxis(np.empty(range(rank)), op.source, op.destination).shape)


def _left(op: Any, kind: str, rank: int) -> list[int] | None:
    """Return what a padding adds at the start of every axis."""
    if kind == "Pad":
        width = list(op.pad_width)
        return [row[0] for row in (width * rank if len(width) == 1 else width)]
    padding = op.padding if kind != "ZeroPadding1D" else (op.padding,)
    left = [row[0] for row in padding]
    first = getattr(op, "data_format", "") == "channels_first"
    return [0, 0, *left] if first else [0, *left, 0]


def _spans(sizes: Shape, key: Any) -> tuple[dict[int, tuple[int, int]] | None, tuple[int, ...]]:
    """Return what an index takes of which axis, and which axes vanish; None if not known."""
    keys = list(key) if isinstance(key, (tuple, list)) else [key]
    if any(k is not Ellipsis and not isinstance(k, (int, slice)) for k in keys):
        return None, ()
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(sizes) - len(keys) + 1)
    spans, gone = {}, []
    for axis, k in enumerate(keys):
        if isinstance(k, int):
            spans[axis] = (k % sizes[axis], k % sizes[axis] + 1)
            gone.append(axis)
        else:
            span = range(sizes[axis])[k]
            if span.step != 1:
                return None, ()
            spans[axis] = (span.start, span.stop)
    return spans, tuple(gone)
