"""What each of Keras' own operations is, as a call of the drawing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any, Literal

import keras
import numpy as np

from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import (
    Drawing,
    Made,
    Sides,
    Signal,
    Value,
    clamped,
    of_einsum,
    of_matmul,
    of_tensordot,
    power,
)

from ._operations import along
from ._window import same
from ._words import plain

__all__ = ["Calls", "activation_of", "cannot", "is_array", "is_floating", "shape_of"]

Shape = tuple[int, ...]

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


class Calls:
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

    def _name(self, op: Any) -> str:
        return "".join(self.scopes) + str(op.name)

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
        if kind == "Unstack":
            axis = op.axis % (len(results[0].shape) + 1)
            return draw.unstack(name, values[0], axis, len(results))
        if kind in ("Split", "ArraySplit"):
            axis = op.axis % len(results[0].shape)
            return draw.split(name, values[0], axis, [part.shape[axis] for part in results])
        if len(results) != 1:
            return [draw.other(name, values, shape_of(r), is_floating(r)) for r in results]
        return [self._single(op, kind, name, values, results[0], args)]

    def _single(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        draw, shape, floating = self.draw, shape_of(result), is_floating(result)
        value = values[0] if values else draw.constant(shape)
        moved = self._moved(op, kind, name, values, result, args) if values else None
        if moved is not None:
            return moved
        if kind == "Take" and op.axis is not None:
            return draw.take(name, values[0], values[1], op.axis, shape, floating)
        if kind in ("Take", "TakeAlongAxis"):
            return draw.lookup(name, values[:2], shape, None, floating)
        if not floating:
            return draw.entrywise(name, values, shape, False)
        given = values if len(values) > 1 or kind == "Sum" else self._operands(args, values)
        if kind in _PLUS and len(given) > 1:
            first, *rest = (along(draw, name, one, shape) for one in given)
            return reduce(lambda sum_, more: draw.add(name, sum_, more, shape), rest, first)
        if kind == "Subtract" and len(given) == 2:
            a, b = (along(draw, name, one, shape) for one in given)
            return draw.subtract(name, a, b, shape)
        if kind == "Multiply" and len(values) == 2:
            return draw.multiply(name, values[0], values[1], shape)
        under = "Div" in kind and not is_array(args[0])  # a number divided by a tensor
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
        if not all(is_array(leaf) or isinstance(leaf, (int, float)) for leaf in flat):
            return values
        return [
            self.value(leaf) if is_array(leaf) else self.draw.constant((), True, leaf)
            for leaf in flat
        ]

    def _moved(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value | None:
        """Draw what only moves entries; None if it does more."""
        draw, value, shape = self.draw, values[0], shape_of(result)
        rank = len(shape or ())
        if kind == "StopGradient":
            return draw.stop(name, value, is_floating(result))
        if kind in _SAME:
            return draw.cast(name, value, is_floating(result), str(args[0].dtype) == "bool")
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
            return draw.join(name, values, op.axis % rank, shape, is_floating(result))
        if kind == "Stack":
            return draw.stack(name, values, op.axis % rank, shape)
        if (kind == "Pad" or kind.startswith("ZeroPadding")) and is_floating(result):
            mode, fill = getattr(op, "mode", "constant"), (0, *args)[-1]
            others = [draw.constant((), True, fill)] if isinstance(fill, (int, float)) else []
            does: Literal["pad", "move"] = "pad" if mode == "constant" else "move"
            return draw.pad(name, value, _left(op, kind, rank), shape, None, others, does)
        return None

    def _product(
        self, op: Any, kind: str, name: str, values: list[Value], result: Any, args: Any
    ) -> Value:
        shape, draw = shape_of(result), self.draw
        if kind in _PRODUCTS and any(
            isinstance(v, Made) and not v.parts and v.shape and len(v.shape) > 1 for v in values
        ):
            raise cannot(op, "it is not seen where one of its operands comes from")
        if kind in _PRODUCTS and (kind == "Einsum" or len(values) == 2):
            if any(value.shape is None for value in values):
                return draw.other(name, values, shape)
            ranks = [len(value.shape or ()) for value in values]
            return draw.product(name, values, *_labels(op, kind, ranks), shape)
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


def cannot(op: Any, why: str) -> GraphError:
    return GraphError(
        message(
            "model",
            op.name,
            f"this operation ({type(op).__name__}) cannot be traced on Keras' "
            f"{keras.backend.backend()} backend: {why}",
            "trace on the TensorFlow backend, or write that part with keras.ops and keras.layers",
        )
    )


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, (keras.KerasTensor, keras.Variable)) or hasattr(leaf, "__array__")


def shape_of(tensor: Any) -> Shape | None:
    return None if None in tensor.shape else tuple(tensor.shape)


def is_floating(tensor: Any) -> bool:
    return "float" in str(tensor.dtype) or "complex" in str(tensor.dtype)


def _kind(op: Any) -> str:
    """Return what an operation is called: its class, and where it is from if not from Keras."""
    kind = type(op)
    is_own = kind.__module__.split(".")[0] == "keras"
    return kind.__name__ if is_own else f"{kind.__module__}.{kind.__qualname__}"


def activation_of(layer: Any) -> str:
    """Return the plain name of a layer's activation."""
    return str(getattr(layer.activation, "__name__", type(layer.activation).__name__)).lower()


def _word(op: Any, kind: str, values: list[Value], args: Any) -> str:
    """Return the plain name of an operation, as far as its numbers decide what it is."""
    if kind == "Activation":
        return activation_of(op)
    if kind == "Clip":
        bounds = (op.x_min, op.x_max)
        return clamped(*(x if isinstance(x, (int, float)) else None for x in bounds))
    if kind == "Power" and len(args) == 2:
        known = [x if isinstance(x, (int, float)) else None for x in args]
        return "exp" if known[0] is not None else "pow" if known[1] is None else power(known[1])
    if kind == "Rescaling":
        return "exp" if np.any(op.offset) else "scale"
    return plain(kind)


def _labels(op: Any, kind: str, ranks: list[int]) -> Sides:
    """Return the labels of a product's operands and result."""
    if kind == "Einsum":
        return of_einsum(op.subscripts, ranks)
    if kind == "Matmul":
        return of_matmul(ranks)
    axes: Any = op.axes if kind == "Tensordot" else ([ranks[0] - 1], [ranks[1] - 1])
    if kind == "Dot":
        axes = ([ranks[0] - 1], [max(ranks[1] - 2, 0)])
    if isinstance(axes, int):
        axes = (range(ranks[0] - axes, ranks[0]), range(axes))
    first, second = (np.ravel(list(side)).tolist() for side in axes)
    return of_tensordot((first, second), ranks)


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
