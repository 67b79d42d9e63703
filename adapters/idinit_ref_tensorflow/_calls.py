"""Keras' own operations, each as one call of `Drawing`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

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
    is_constant,
    of_einsum,
    of_matmul,
    of_tensordot,
    power,
    spans_of,
)

from ._table import along
from ._window import convolved, sliding, spatial, windows
from ._words import SPECTRA, plain

Shape = tuple[int, ...]

_SAME = {
    "Cast", "Identity", "Copy", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    "SpatialDropout3D", "GaussianDropout", "GaussianNoise", "ActivityRegularization",
}  # fmt: skip
_DOING = {"Divide": "divided by", "TrueDivide": "divided by", "Where": "masked by"}
_KNOWN = {
    "Absolute", "Argmax", "Argmin", "AveragePooling1D", "AveragePooling2D", "BatchNormalization",
    "Max", "MaxPooling1D", "MaxPooling2D", "Min", "Prod", "Softmax", "Std", "Var",
}  # fmt: skip

_OFFSETS = {"LayerNorm": 2, "BatchNorm": 3}  # the position of a norm's offset among its arguments


class Call(NamedTuple):
    """A call of an operation that has one result."""

    draw: Drawing
    op: Any
    name: str
    values: list[Value]  # of its tensor arguments
    operands: list[Value]  # the same; where there is one tensor, also of its numbers
    args: Any
    result: Any

    @property
    def kind(self) -> str:
        """The name of the operation's class; with its module if it is not Keras'."""
        return kind_of(self.op)

    @property
    def shape(self) -> Shape | None:
        """The shape of the result."""
        return shape_of(self.result)

    @property
    def floating(self) -> bool:
        """Whether the result holds real or complex numbers."""
        return is_floating(self.result)

    @property
    def axes(self) -> list[int]:
        """The axes that the operation names; all of its operand's if it names none."""
        rank, axes = len(self.args[0].shape), self.op.axis
        return [axis % rank for axis in (range(rank) if axes is None else np.ravel(axes).tolist())]


def draw_call(call: Call) -> Value:
    """Draw an operation."""
    kind = call.kind
    if kind in SPECTRA:
        return call.draw.spectrum(call.name, call.values[0], call.shape, call.floating)
    handler = (MOVES.get(kind) or (TABLE.get(kind) if call.floating else None)) or _other
    return handler(call) if call.values else _other(call)


def _other(call: Call, values: list[Value] | None = None, word: str = "") -> Value:
    """Draw an operation of which at most the plain name is known."""
    _, op, name, *_ = call
    draw, kind, shape = call.draw, call.kind, call.shape
    if not call.floating:
        return draw.entrywise(name, call.values, shape, False)
    values = values or call.operands
    word = word or _word(op, kind, call.args)
    if kind in _KNOWN:
        return draw.result(name, values, shape, word=word)
    if all(value.shape in ((), shape) or isinstance(value, Made) for value in values):
        return draw.entrywise(name, values, shape, doing=_DOING.get(kind, ""), word=word)
    return draw.other(name, values, shape, word=word)


def _cast(call: Call) -> Value:
    is_mask = str(call.args[0].dtype) == "bool"
    return call.draw.cast(call.name, call.values[0], call.floating, is_mask)


def _transpose(call: Call) -> Value:
    order = _order(call.op, call.kind, len(call.shape or ()))
    return call.draw.transpose(call.name, call.values[0], order)


def _turn(call: Call) -> Value:
    plane = [axis % len(call.args[0].shape) for axis in call.op.axes]
    return call.draw.turn(call.name, call.values[0], call.op.k, plane)


def _roll(call: Call) -> Value:
    if call.op.axis is None:
        return _other(call, word="move")
    rank = len(call.shape or ())
    pairs = np.broadcast(np.ravel(call.op.axis), np.ravel(call.op.shift))
    steps = {int(axis) % rank: int(by) for axis, by in pairs}
    return call.draw.roll(call.name, call.values[0], steps)


def _index(call: Call) -> Value:
    spans, gone = spans_of(call.args[0].shape, call.args[1])
    part = call.draw.part(call.name, call.values[0], spans, gone, call.shape)
    return call.draw.reshape(call.name, part, call.shape)


def _join(call: Call) -> Value:
    axis = call.op.axis % len(call.result.shape)
    return call.draw.join(call.name, call.values, axis, call.shape, call.floating)


def _stack(call: Call) -> Value:
    axis = call.op.axis % len(call.result.shape)
    return call.draw.stack(call.name, call.values, axis, call.shape)


def _take(call: Call) -> Value:
    draw, name, axis = call.draw, call.name, call.op.axis
    if call.kind == "TakeAlongAxis" or axis is None:
        return draw.lookup(name, call.values[:2], call.shape, None, call.floating)
    return draw.take(name, call.values[0], call.values[1], axis, call.shape, call.floating)


def _pad(call: Call) -> Value:
    mode, fill = getattr(call.op, "mode", "constant"), (0, *call.args)[-1]
    others = [call.draw.constant((), True, fill)] if isinstance(fill, (int, float)) else []
    does: Literal["pad", "move"] = "pad" if mode == "constant" else "move"
    low = _left(call.op, call.kind, len(call.result.shape))
    return call.draw.pad(call.name, call.values[0], low, call.shape, None, others, does)


def _write(call: Call) -> Value:
    """Draw a write over a part of a value; over zeros it is a padding."""
    low = call.args[1]
    if is_array(low) or any(map(is_array, low)):
        return _other(call, word="scatter")
    whole, part = call.values
    return call.draw.write(call.name, whole, part, [int(at) for at in low], call.shape)


def _scatter(call: Call) -> Value:
    """Draw a write at indices of the first axes."""
    _, index, _ = call.args
    is_write = getattr(call.op, "reduction", None) is None
    if isinstance(index, keras.KerasTensor) or not is_write:
        return _other(call, [*call.values[::2], *call.values[1:2]])
    index = to_numpy(keras.ops.convert_to_tensor(index))
    whole, *_, part = call.values
    places = call.draw.constant(index.shape, numbers=index)
    return call.draw.scatter(call.name, whole, part, places, call.shape)


def _add(call: Call) -> Value:
    draw, name, shape = call.draw, call.name, call.shape
    value, *rest = call.operands
    if not rest or (call.kind == "Average" and not isinstance(call.op, keras.layers.Layer)):
        return _other(call)  # a weighted mean is no sum with its weights
    for more in rest:
        value = draw.add(name, value, along(draw, name, more, shape), shape)
    return value


def _subtract(call: Call) -> Value:
    if len(call.operands) != 2:
        return _other(call)
    a, b = (along(call.draw, call.name, one, call.shape) for one in call.operands)
    return call.draw.subtract(call.name, a, b, call.shape)


def _multiply(call: Call) -> Value:
    if len(call.values) != 2:
        return call.draw.scale(call.name, call.values, call.shape)
    return call.draw.multiply(call.name, call.values[0], call.values[1], call.shape)


def _scale(call: Call) -> Value:
    if "Div" in call.kind and not is_array(call.args[0]):  # a number divided by a tensor
        return _other(call)
    doing, word = _DOING.get(call.kind, ""), "neg" if call.kind == "Negative" else "div"
    return call.draw.scale(call.name, call.values, call.shape, doing, word)


def _sum(call: Call) -> Value:
    is_mean = call.kind == "Mean"
    return call.draw.sum(call.name, call.values[0], call.axes, call.shape, is_mean)


def _bound(call: Call) -> Value:
    if (initial := call.op.initial) is not None:  # a clamp of the result
        bound = _extreme(initial, np.max)
        limits = (bound, None) if call.kind == "Max" else (None, bound)
        return _other(call, word=clamped(*limits))
    return call.draw.extreme(call.name, call.values[0], call.axes, call.shape, "pool")


def _cumsum(call: Call) -> Value:
    if call.op.axis is None:
        return _other(call)
    return call.draw.cumsum(call.name, call.values[0], call.axes[0], call.shape)


def _one_hot(call: Call) -> Value:
    if call.kind != "OneHot" and call.op.output_mode != "one_hot":
        return _other(call)
    result = call.draw.result(call.name, call.values, call.shape, word="basis")
    return result._replace(picks=True) if isinstance(result, Signal) else result


def _product(call: Call) -> Value:
    draw, name, values, shape = call.draw, call.name, call.values, call.shape
    if any(is_constant(v) and v.shape and len(v.shape) > 1 for v in values):
        raise cannot(call.op, "the origin of one of its operands is unknown")
    if call.kind != "Einsum" and len(values) != 2:
        return _other(call, values)
    if any(value.shape is None for value in values):
        return draw.other(name, values, shape)
    ranks = [len(value.shape or ()) for value in values]
    return draw.product(name, values, *_labels(call.op, call.kind, ranks), shape)


def _choice(call: Call) -> Value:
    return _other(call, call.values[1:] + call.values[:1])


def _attention(call: Call) -> Value:
    """Draw attention; its arguments are queries, values, and perhaps keys."""
    query, value, *key = call.values
    return _other(call, [query, key[-1] if key else value, value], "attention")


def _patches(call: Call) -> Value:
    op, (image, *_) = call.op, call.values
    first, rank = op.data_format == "channels_first", len(op.size)
    sizes = tuple((image.shape or (None,) * 5)[axis] for axis in spatial(rank, first))
    strides, dilation = (np.broadcast_to(x, rank).tolist() for x in (op.strides, op.dilation_rate))
    window = sliding(op.size, strides, dilation, op.padding, sizes)
    return windows(call.draw, call.name, image, call.shape, window, first)


def _convolution(call: Call) -> Value:
    op, values, shape = call.op, call.values, call.shape
    if len(values) != 2:
        return _other(call)
    signal, kernel = values
    rank = len(kernel.shape or ()) - 2
    if signal.shape is None or kernel.shape is None or not 0 < rank < 4:
        return call.draw.other(call.name, values, shape)
    first = op.data_format == "channels_first"
    sizes = tuple(signal.shape[axis] for axis in spatial(rank, first))
    strides, dilation = (np.broadcast_to(x, rank).tolist() for x in (op.strides, op.dilation_rate))
    window = sliding(kernel.shape[:rank], strides, dilation, op.padding, sizes)
    channels, is_depthwise = signal.shape[1 if first else -1], call.kind == "DepthwiseConv"
    groups = channels if is_depthwise else channels // max(kernel.shape[-2], 1)
    letters, how = "DHW"[3 - rank :] + "IO", (first, max(strides) > 1, groups, is_depthwise)
    return convolved(call.draw, call.name, values, letters, shape, window, *how)


Handler = Callable[[Call], Value]
MOVES: dict[str, Handler] = {
    "StopGradient": lambda call: call.draw.stop(call.name, call.values[0], call.floating),
    **dict.fromkeys(_SAME, _cast),
    **dict.fromkeys(
        ("Reshape", "ExpandDims", "Squeeze", "Flatten", "Ravel"),
        lambda call: call.draw.reshape(call.name, call.values[0], call.shape),
    ),
    **dict.fromkeys(("Transpose", "Permute", "Swapaxes", "Moveaxis"), _transpose),
    "BroadcastTo": lambda call: call.draw.broadcast(call.name, call.values[0], call.shape),
    "Flip": lambda call: call.draw.flip(call.name, call.values[0], call.axes),
    "Flipud": lambda call: call.draw.flip(call.name, call.values[0], [0]),
    "Fliplr": lambda call: call.draw.flip(call.name, call.values[0], [1]),
    "Rot90": _turn,
    "Tile": lambda call: call.draw.tile(call.name, call.values[0], call.shape, call.floating),
    "Roll": _roll,
    "GetItem": _index,
    "Concatenate": _join,
    "Stack": _stack,
    **dict.fromkeys(("Take", "TakeAlongAxis"), _take),
}
"""Operations that move or look up entries, of any dtype."""

TABLE: dict[str, Handler] = {
    **dict.fromkeys(("Pad", "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), _pad),
    "ZerosLike": lambda call: call.draw.constant(call.shape, value=0),
    "SliceUpdate": _write,
    "ScatterUpdate": _scatter,
    **dict.fromkeys(("Add", "Average"), _add),
    "Subtract": _subtract,
    **dict.fromkeys(
        ("Tril", "Triu"), lambda call: call.draw.masked(call.name, call.values[0], call.shape)
    ),
    "Multiply": _multiply,
    **dict.fromkeys(("Divide", "TrueDivide", "Negative"), _scale),
    "Sum": _sum,
    "Mean": _sum,
    "Nansum": _sum,
    **dict.fromkeys(("Max", "Min"), _bound),
    "Cumsum": _cumsum,
    **dict.fromkeys(("OneHot", "CategoryEncoding"), _one_hot),
    **dict.fromkeys(("Matmul", "Dot", "Einsum", "Tensordot", "Inner", "Vdot"), _product),
    **dict.fromkeys(("Conv", "DepthwiseConv"), _convolution),
    "ExtractPatches": _patches,
    "Where": _choice,
    **dict.fromkeys(("Attention", "AdditiveAttention"), _attention),
}
"""Operations that compute with real or complex numbers."""


def cannot(op: Any, why: str) -> GraphError:
    should = (
        f"this operation ({type(op).__name__}) cannot be traced on Keras' "
        f"{keras.backend.backend()} backend: {why}"
    )
    cure = "trace on the TensorFlow backend, or write that part with keras.ops and keras.layers"
    return GraphError(message("model", op.name, should, cure))


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, (keras.KerasTensor, keras.Variable)) or hasattr(leaf, "__array__")


def numbers_of(leaf: Any) -> Any:
    """Return the entries of an array or variable of real numbers, or None if it has no values."""
    value = getattr(leaf, "_value", leaf) if isinstance(leaf, keras.Variable) else leaf
    try:
        has_values = value is not None and getattr(value, "is_fully_addressable", True)
    except TypeError:  # a traced array of JAX
        has_values = False
    is_real = any(word in str(leaf.dtype) for word in ("float", "int", "bool"))
    if isinstance(leaf, keras.KerasTensor) or not has_values or not is_real:
        return None
    return np.asarray(to_numpy(leaf), dtype=float if is_floating(leaf) else None)


def to_numpy(x: Any) -> Any:
    """Return an array on the host. Some versions of Keras' `convert_to_numpy` warn here."""
    x = x.value if isinstance(x, keras.Variable) else x
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return x.numpy() if hasattr(x, "numpy") else np.asarray(x)


def shape_of(tensor: Any) -> Shape | None:
    return None if None in tensor.shape else tuple(tensor.shape)


def is_floating(tensor: Any) -> bool:
    return "float" in str(tensor.dtype) or "complex" in str(tensor.dtype)


def kind_of(op: Any) -> str:
    """Return the name of an operation's class; with its module if it is not Keras'."""
    kind = type(op)
    is_keras = kind.__module__.split(".")[0] == "keras"
    return kind.__name__ if is_keras else f"{kind.__module__}.{kind.__qualname__}"


def activation_of(layer: Any) -> str:
    """Return the plain name of a layer's activation."""
    return str(getattr(layer.activation, "__name__", type(layer.activation).__name__)).lower()


def _word(op: Any, kind: str, args: Any) -> str:
    """Return the plain name of an operation; its numbers may decide it."""
    if kind == "Activation":
        return activation_of(op)
    if kind == "Clip":
        bounds = (_extreme(op.x_min, np.max), _extreme(op.x_max, np.min))
        return clamped(*bounds)
    if np.any(getattr(op, "fill_value", 0) or 0):
        return "offset"  # another number fills what is outside an image
    if kind == "Power" and len(args) == 2:
        is_known = isinstance(args[1], (int, float)) or _is_offset(args[1])
        return power(keras.ops.convert_to_numpy(args[1]).min() if is_known else None)
    if kind == "Threshold":  # x above the threshold, else the default value
        return "relu" if op.threshold < 0 or op.default_value == 0 else "offset"
    if kind in _OFFSETS and any(map(_is_offset, args[_OFFSETS[kind] :][:1])):
        return "offset"  # a norm that adds a constant
    if kind == "Rescaling":
        return "offset" if np.any(op.offset) else "scale"
    return plain(kind)


def _extreme(bound: Any, of: Callable[[Any], Any]) -> float | None:
    """Return the number of a bound that decides whether a clamp vanishes, if it is known."""
    if bound is None or isinstance(bound, (keras.KerasTensor, keras.Variable)):
        return None
    return float(of(to_numpy(bound)))


def _is_offset(leaf: Any) -> bool:
    """Whether an argument is an array with an entry other than 0."""
    is_known = is_array(leaf) and not isinstance(leaf, (keras.KerasTensor, keras.Variable))
    return is_known and bool(np.any(keras.ops.convert_to_numpy(leaf)))


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
    # NumPy applies the rule to axes of sizes 0, 1, ...; their sizes then give the order.
    return list(np.moveaxis(np.empty(range(rank)), op.source, op.destination).shape)


def _left(op: Any, kind: str, rank: int) -> list[int]:
    """Return the left padding of every axis."""
    if kind == "Pad":
        width = list(op.pad_width)
        return [row[0] for row in (width * rank if len(width) == 1 else width)]
    padding = op.padding if kind != "ZeroPadding1D" else (op.padding,)
    left = [row[0] for row in padding]
    first = getattr(op, "data_format", "") == "channels_first"
    return [0, 0, *left] if first else [0, *left, 0]
