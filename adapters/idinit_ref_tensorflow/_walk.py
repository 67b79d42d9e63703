"""A model's graph from Keras' own symbolic calls, on any of its backends.

A functional model is a graph of calls already. A layer of another kind is called on symbolic
tensors, also in place of its variables, and Keras notes what it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np

from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Data, Drawing, Made, Signal, Value, clamped, power

from ._layers import Weight, known_weights
from ._operations import labels_of
from ._window import same
from ._words import plain

Shape = tuple[int, ...]

_CONTROL = {"Map", "Scan", "AssociativeScan", "Switch", "WhileLoop", "ForiLoop", "Cond"}
_CONTROL |= {"VectorizedMap"}
_RESHAPES = {"Reshape", "ExpandDims", "Squeeze", "Flatten", "Ravel"}
_SAME = {"Cast", "Identity", "Copy", "Dropout", "SpatialDropout1D"}
_SAME |= {"SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise"}
_SAME |= {"ActivityRegularization"}
_PLUS = {"Add", "AddN", "Average"}
_SCALES = {"Divide", "Multiply", "TrueDivide", "Negative", "Round"}
_DOING = {"Divide": "divided by", "TrueDivide": "divided by", "Where": "masked by"}
_PRODUCTS = {"Matmul", "Dot", "Einsum", "Tensordot", "Inner", "Vdot"}
_KNOWN = {
    "Absolute", "ArgMax", "ArgMin", "AveragePooling1D", "AveragePooling2D", "BatchNormalization",
    "Max", "MaxPooling1D", "MaxPooling2D", "Mean", "Min", "Prod", "Softmax", "Std", "Var",
}  # fmt: skip


class Walker:
    """Follows symbolic tensors through the calls of a model.

    Parameters
    ----------
    drawing : Drawing
        What is written to.
    names : mapping of int to str
        The parameters, by the id of their variable.
    """

    def __init__(self, drawing: Drawing, names: Mapping[int, str]) -> None:
        self.draw, self.names = drawing, names
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
        if name is not None:
            return self.draw.parameter(name)
        return self.draw.constant(tuple(np.shape(leaf)))

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
        given = (*args, *kwargs.values())
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
                if getattr(layer, "data_format", None) == "channels_first":
                    ones = (1,) * (len(shape or ()) - 2)
                    bias = self.draw.reshape("bias", bias, (*(bias.shape or ()), *ones))
                bias = self.draw.broadcast("bias", bias, shape)
                value = self.draw.add(f"{self._name(layer)}: bias", value, bias, shape)
        if getattr(layer, "activation", None) not in (None, keras.activations.linear):
            name, word = f"{self._name(layer)}: activation", _activation(layer)
            value = self.draw.entrywise(name, [value], shape, word=word)
        return [value]

    def _weigh(self, layer: Any, weight: Weight, value: Value, shape: Shape | None) -> Value:
        made = self.value(weight.variable)
        if isinstance(layer, keras.layers.EinsumDense):
            return self._einsum(layer.equation, self._name(layer), [value, made], shape)
        if weight.window is None and not any(c in "DHW" for c in weight.letters):
            return self._matmul(self._name(layer), [value, made], shape)
        rank = len(weight.letters) - 2
        first = getattr(layer, "data_format", None) == "channels_first"
        space = [2 + axis if first else 1 + axis for axis in range(rank)]
        sizes = tuple((value.shape or ())[axis] for axis in space) if value.shape else ()
        window = weight.window(sizes) if weight.window is not None else None
        grouped = {"groups": weight.groups, "transposed": weight.transposed}
        return self.draw.convolution(
            self._name(layer),
            value,
            made,
            weight.letters,
            shape,
            channels=1 if first else rank + 1,
            space=space,
            left=(0,) * rank if window is None else window.left,
            dilation=() if window is None else window.dilation,
            spread=() if window is None else window.strides,
            crops=bool(window and window.strides),
            sized=bool(window and not window.strides and max(layer.strides) > 1),
            options=grouped if weight.groups > 1 else {},
        )

    def _embedding(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        shape, table, name = _shape(results[0]), self.value(layer.embeddings), self._name(layer)
        reverse = getattr(layer, "reverse_embeddings", None)
        if isinstance(values[0], Data) or not hasattr(layer, "tie_weights"):
            return [self.draw.lookup(name, [table, *values], shape)]
        made = table if reverse is None else self.value(reverse)
        if reverse is None:
            made = self.draw.transpose(name, made, [1, 0])
        return [self._matmul(f"{name}/reverse", [values[0], made], shape)]

    def _recurrent(
        self, layer: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        """Draw one step of a recurrent layer, after the first: its state is a signal."""
        weights, name, draw = known_weights(layer.cell), self._name(layer), self.draw
        if not weights:
            raise _cannot(layer, f"what its cell {type(layer.cell).__name__} does is not known")
        wide = (2, weights[0].variable.shape[-1])
        state = draw.start(f"{name}: state", (2, layer.cell.units))
        step = values[0].shape
        now = draw.result(f"{name}: step", values[:1], step and (2, step[-1]))
        parts = [
            self._matmul(name, [value, self.value(weight.variable)], wide)
            for weight, value in zip(weights, (now, state), strict=True)
        ]
        bias = self.value(layer.cell.bias) if layer.cell.use_bias else None
        value = draw.add(f"{name}: add", parts[0], parts[1], wide)
        if bias is not None:
            if len(bias.shape or ()) == 2:  # one for the input, and one for the state
                bias = draw.part(f"{name}: bias", bias, [(0, 1, 1), (0, wide[1], 1)], (0,))
            bias = draw.broadcast(f"{name}: bias", bias, wide)
            value = draw.add(f"{name}: bias", value, bias, wide)
        units, many = layer.cell.units, weights[0].parts
        gates = draw.split(f"{name}: gates", value, 1, (units,) * many) if many > 1 else [value]
        if isinstance(layer.cell, keras.layers.GRUCell):  # z * state + (1 - z) * candidate
            kept = draw.result(f"{name}: kept", [state, gates[0]], state.shape)
            new = draw.result(f"{name}: new", gates[1:], state.shape)
            value = draw.add(f"{name}: update", kept, new, state.shape)
        else:
            value = draw.result(f"{name}: gated", gates, state.shape)
        return [
            draw.result(f"{name}: {at}" if at else name, [value], _shape(result))
            for at, result in enumerate(results)
        ]

    # Operations -----------------------------------------------------------------------------

    def _operation(
        self, op: Any, values: list[Value], results: list[Any], args: Any
    ) -> list[Value]:
        name, kind, draw = self._name(op), _kind(op), self.draw
        for variable in getattr(op, "weights", ()):
            own = self.names.get(id(variable))
            value = self.value(variable)
            if own and isinstance(value, Made) and draw.parameters[own].is_bias:
                draw.use(value, "bias")  # of a quantised layer
            elif own:
                values = [*values, value]
        if kind in ("Split", "ArraySplit", "Unstack"):
            return list(self._parts(op, values[0], results))
        if len(results) != 1:
            return [draw.other(name, values, _shape(r), _is_floating(r)) for r in results]
        return [self._single(op, kind, name, values, results[0], args)]

    def _single(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        draw, shape, floating = self.draw, _shape(result), _is_floating(result)
        value = values[0] if values else draw.constant(shape)
        moved = self._moved(op, kind, name, values, result, args) if values else None
        if moved is not None:
            return moved
        if kind in ("Take", "TakeAlongAxis"):
            kept = None
            if kind == "Take" and op.axis is not None and shape is not None:
                rank = len(args[0].shape)
                at = op.axis % rank
                kept = [*range(at), *[None] * (len(shape) - rank + 1), *range(at + 1, rank)]
            return draw.lookup(name, values[:2], shape, kept, floating)
        if not floating:
            return draw.entrywise(name, values, shape, False)
        given = values if len(values) > 1 or kind == "Sum" else self._operands(args, values)
        if kind in _PLUS and len(given) > 1:
            for more in given[1:]:
                wide = draw.broadcast(name, more, shape) if isinstance(more, Made) else more
                value = draw.add(name, value, wide, shape)
            return value
        if kind == "Subtract" and len(given) == 2:
            a, b = (
                draw.broadcast(name, one, shape) if isinstance(one, Made) else one for one in given
            )
            return draw.subtract(name, a, b, shape)
        if kind == "Multiply" and len(values) == 2:
            return draw.multiply(name, values[0], values[1], shape)
        under = "Div" in kind and not _is_array(args[0])  # a number divided by a tensor
        if kind in _SCALES and not under:
            return draw.scale(name, values, shape, _DOING.get(kind, ""))
        if kind == "Sum" and len(values) == 1:
            rank = len(args[0].shape)
            axes = range(rank) if op.axis is None else np.ravel(op.axis).tolist()
            return draw.sum(name, value, [axis % rank for axis in axes], shape)
        one_hot = kind == "CategoryEncoding" and op.output_mode == "one_hot"
        if kind == "OneHot" or one_hot:
            found = draw.result(name, values, shape)
            return found._replace(picks=True) if isinstance(found, Signal) else found
        if len(values) > 1 or kind in _PRODUCTS:
            given = values
        return self._product(op, kind, name, given, result, args)

    def _operands(self, args: Any, values: list[Value]) -> list[Value]:
        """Return the values of what an operation is called with, numbers too."""
        flat = [leaf for leaf in keras.tree.flatten(args) if not isinstance(leaf, (str, bool))]
        if not all(_is_array(leaf) or isinstance(leaf, (int, float)) for leaf in flat):
            return values
        return [
            self.value(leaf) if _is_array(leaf) else self.draw.constant((), True, leaf)
            for leaf in flat
        ]

    def _moved(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value | None:
        """Draw what only moves entries; None if it does more."""
        draw, value, shape = self.draw, values[0], _shape(result)
        rank = len(shape or ())
        if kind == "StopGradient":
            return draw.stop(name, value, _is_floating(result))
        if kind in _SAME:
            return draw.cast(name, value, _is_floating(result), str(args[0].dtype) == "bool")
        if kind in _RESHAPES:
            return draw.reshape(name, value, shape)
        if kind in ("Transpose", "Permute", "Swapaxes", "Moveaxis"):
            return draw.transpose(name, value, _order(op, kind, rank))
        if kind == "BroadcastTo":
            return draw.broadcast(name, value, shape)
        if kind == "Flip":
            axes = range(rank) if op.axis is None else np.ravel(op.axis).tolist()
            return draw.flip(name, value, [axis % rank for axis in axes])
        if kind == "Roll" and op.axis is not None:
            pairs = np.broadcast(np.ravel(op.axis), np.ravel(op.shift))
            return draw.roll(name, value, {int(axis) % rank: int(by) for axis, by in pairs})
        if kind == "GetItem":
            spans, gone, plain = _spans(args[0].shape, args[1])
            part = draw.part(name, value, spans, gone, shape)
            return part if plain else draw.reshape(name, part, shape)
        if kind == "Concatenate":
            return draw.join(name, values, op.axis % rank, shape, _is_floating(result))
        if kind == "Stack":
            return draw.stack(name, values, op.axis % rank, shape)
        if (kind == "Pad" or kind.startswith("ZeroPadding")) and _is_floating(result):
            mode, fill = getattr(op, "mode", "constant"), (0, *args)[-1]
            others = [draw.constant((), True, fill)] if isinstance(fill, (int, float)) else []
            does: Literal["pad", "move"] = "pad" if mode == "constant" else "move"
            return draw.pad(name, value, _left(op, kind, rank), shape, None, others, does)
        return None

    def _product(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        shape, draw = _shape(result), self.draw
        if kind in _PRODUCTS and any(
            isinstance(v, Made) and not v.parts and v.shape and len(v.shape) > 1 for v in values
        ):
            raise _cannot(op, "it is not seen where one of its operands comes from")
        if kind == "Einsum":
            return self._einsum(op.subscripts, name, values, shape)
        if kind in ("Matmul", "Dot") and len(values) == 2:
            return self._matmul(name, values, shape, stacked=kind == "Matmul")
        if kind in ("Tensordot", "Inner", "Vdot") and len(values) == 2:
            ranks = [len(value.shape or ()) for value in values]
            axes = op.axes if kind == "Tensordot" else ([ranks[0] - 1], [ranks[1] - 1])
            return self._tensordot(name, values, axes, ranks, shape)
        if kind in ("Conv", "DepthwiseConv") and len(values) == 2:
            return self._conv(op, kind, name, values, shape)
        word = _word(op, kind, values, args)
        if word == "where":
            values = values[1:] + values[:1]
        if kind in ("Attention", "AdditiveAttention"):  # of queries, values, and perhaps keys
            word, values = "attention", [values[0], values[-1], values[1]]
        if kind in _KNOWN:
            return draw.result(name, values, shape, word=word)
        if all(value.shape in ((), shape) or isinstance(value, Made) for value in values):
            return draw.entrywise(name, values, shape, doing=_DOING.get(kind, ""), word=word)
        return draw.other(name, values, shape, word=word)

    def _matmul(
        self, name: str, values: list[Value], shape: Shape | None, stacked: bool = True
    ) -> Value:
        """Draw a product of matrices; of stacks of them, as `matmul` has it, or as `dot` does."""
        ranks = [len(value.shape or ()) for value in values]
        if shape is None or any(value.shape is None for value in values):
            return self.draw.other(name, values, shape)
        if min(ranks) < 2 or not stacked or ranks[1] == 2:
            axes = ([ranks[0] - 1], [max(ranks[1] - 2, 0)])
            return self._tensordot(name, values, axes, ranks, shape)
        rank = max(ranks)
        sides = [
            [*range(rank - n, rank - 2), *pair] for n, pair in zip(ranks, ("ab", "bc"), strict=True)
        ]
        return self.draw.product(name, values, sides, [*range(rank - 2), *"ac"], shape)

    def _tensordot(
        self, name: str, values: list[Value], axes: Any, ranks: list[int], shape: Shape | None
    ) -> Value:
        if isinstance(axes, int):
            axes = (range(ranks[0] - axes, ranks[0]), range(axes))
        first, second = (np.ravel(list(side)).tolist() for side in axes)
        sides: list[list[Any]] = [[("a", k) for k in range(ranks[0])]]
        sides.append([("b", k) for k in range(ranks[1])])
        for a, b in zip(first, second, strict=True):
            sides[1][b] = sides[0][a]
        out = [k for k in sides[0] if k not in sides[1]] + [k for k in sides[1] if k[0] == "b"]
        return self.draw.product(name, values, sides, out, shape)

    def _einsum(self, equation: str, name: str, values: list[Value], shape: Shape | None) -> Value:
        if any(value.shape is None for value in values):
            return self.draw.other(name, values, shape)
        sides, out = labels_of(equation, [len(value.shape or ()) for value in values])
        return self.draw.product(name, values, sides, out, shape)

    def _conv(
        self, op: Any, kind: str, name: str, values: list[Value], shape: Shape | None
    ) -> Value:
        signal, kernel = values
        rank = len(kernel.shape or ()) - 2
        if signal.shape is None or kernel.shape is None or not 0 < rank < 4:
            return self.draw.other(name, values, shape)
        first = op.data_format == "channels_first"
        space = [2 + axis if first else 1 + axis for axis in range(rank)]
        each = [np.broadcast_to(x, rank).tolist() for x in (op.strides, op.dilation_rate)]
        reach = [d * (k - 1) + 1 for d, k in zip(each[1], kernel.shape, strict=False)]
        left: tuple[int, ...] = (0,) * rank
        if op.padding == "same":
            left = same(reach, each[0], tuple(signal.shape[axis] for axis in space))
        elif op.padding == "causal":
            left = tuple(k - 1 for k in reach)
        channels = signal.shape[1 if first else -1]
        options: dict[str, Any] = {}
        if kind == "DepthwiseConv":
            options = {"groups": channels, "transposed": True} if channels > 1 else {}
        elif channels != kernel.shape[-2]:
            options = {"groups": channels // kernel.shape[-2]}
        return self.draw.convolution(
            name,
            signal,
            kernel,
            "DHW"[3 - rank :] + "IO",
            shape,
            channels=1 if first else rank + 1,
            space=space,
            left=left,
            dilation=each[1],
            sized=max(each[0]) > 1,
            options=options,
        )

    def _parts(self, op: Any, value: Value, results: list[Any]) -> Iterator[Value]:
        is_unstack = type(op).__name__ == "Unstack"
        axis, start = op.axis % (len(results[0].shape) + is_unstack), 0
        for result in results:
            size = 1 if is_unstack else result.shape[axis]
            spans = None
            if value.shape is not None:
                spans = [(0, n, 1) for n in value.shape]
                spans[axis] = (start, start + size, 1)
            start += size
            gone = (axis,) if is_unstack else ()
            yield self.draw.part(self._name(op), value, spans, gone, _shape(result))


def walk(
    draw: Drawing, held: Mapping[int, str], model: Any, args: Any, kwargs: Any, names: Iterable[str]
) -> list[Value]:
    """Draw a model; return the values that it returns."""
    walker = Walker(draw, held)
    for leaf, name in zip(keras.tree.flatten((args, kwargs)), names, strict=True):
        walker.note(leaf, draw.input(name, tuple(leaf.shape), _is_floating(leaf)))
    results = keras.tree.flatten(walker.call(model, *args, **kwargs))
    values = [walker.value(result) for result in results if _is_array(result)]
    return [value for value in values if isinstance(value, Signal)]


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


def _is_floating(tensor: Any) -> bool:
    return "float" in str(tensor.dtype) or "complex" in str(tensor.dtype)


def _kind(op: Any) -> str:
    """Return what an operation is called: its class, and where it is from if not from Keras."""
    kind = type(op)
    is_own = kind.__module__.split(".")[0] == "keras"
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


def _activation(layer: Any) -> str:
    """Return the plain name of a layer's activation."""
    return str(getattr(layer.activation, "__name__", type(layer.activation).__name__)).lower()


def _word(op: Any, kind: str, values: list[Value], args: Any) -> str:
    """Return the plain name of an operation, as far as its numbers decide what it is."""
    if kind == "Activation":
        return _activation(op)
    if kind == "Clip":
        bounds = (op.x_min, op.x_max)
        return clamped(*(x if isinstance(x, (int, float)) else None for x in bounds))
    if kind == "Power" and len(args) == 2:
        known = [x if isinstance(x, (int, float)) else None for x in args]
        return "exp" if known[0] is not None else "pow" if known[1] is None else power(known[1])
    if kind == "Rescaling":
        return "exp" if np.any(op.offset) else "scale"
    return plain(kind)


def _order(op: Any, kind: str, rank: int) -> list[int]:
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


def _left(op: Any, kind: str, rank: int) -> list[int]:
    """Return what a padding adds at the start of every axis."""
    if kind == "Pad":
        width = list(op.pad_width)
        return [row[0] for row in (width * rank if len(width) == 1 else width)]
    padding = op.padding if kind != "ZeroPadding1D" else (op.padding,)
    left = [row[0] for row in padding]
    first = getattr(op, "data_format", "") == "channels_first"
    return [0, 0, *left] if first else [0, *left, 0]


def _spans(
    sizes: Shape, key: Any
) -> tuple[list[tuple[int, int, int]] | None, tuple[int, ...], bool]:
    """Return what an index takes of every axis, and which vanish; None if not known.

    And whether that is all: else axes of size 1 are put in.
    """
    given = list(key) if isinstance(key, (tuple, list)) else [key]
    keys = [k for k in given if k is not None]
    if None in sizes or any(k is not Ellipsis and not isinstance(k, (int, slice)) for k in keys):
        return None, (), True
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(sizes) - len(keys) + 1)
    spans, gone = [(0, size, 1) for size in sizes], []
    for axis, k in enumerate(keys):
        if isinstance(k, int):
            spans[axis] = (k % sizes[axis], k % sizes[axis] + 1, 1)
            gone.append(axis)
        else:
            span = range(sizes[axis])[k]
            if span.step < 1:
                return None, (), True
            spans[axis] = (span.start, span.stop, span.step)
    return spans, tuple(gone), len(keys) >= len(given)
