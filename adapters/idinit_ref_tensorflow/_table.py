"""TensorFlow's operations, each as one call of `Drawing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from idinit_ref.tracing import (
    Drawing,
    Made,
    Signal,
    Span,
    Value,
    clamped,
    is_constant,
    of_einsum,
    of_matmul,
    power,
    spans_of,
)

from ._static import static
from ._window import Window, convolved, same, same_transposed, sliding, spatial, windows

__all__ = ["ENTRYWISE", "KNOWN", "MOVES", "TABLE", "along", "is_floating", "shape_of"]

Shape = tuple[int, ...]

ENTRYWISE = {
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atan2", "Atanh", "Ceil", "Cos",
    "Cosh", "Digamma", "Div", "DivNoNan", "Elu", "Equal", "Erf", "Erfc", "Erfinv", "Exp", "Expm1",
    "Floor", "FloorDiv", "FloorMod", "Greater", "GreaterEqual", "Inv", "IsFinite", "IsInf", "IsNan",
    "LeakyRelu", "Less", "LessEqual", "Lgamma", "Log", "Log1p", "LogicalAnd", "LogicalNot",
    "LogicalOr", "Maximum", "Minimum", "Mod", "Mul", "MulNoNan", "Neg", "NotEqual", "Pow",
    "RealDiv", "Reciprocal", "Relu", "Relu6", "Rint", "Round", "Rsqrt", "Select", "SelectV2",
    "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Square",
    "SquaredDifference", "Sub", "Tan", "Tanh", "Xdivy", "Xlogy", "AddV2", "Add",
}  # fmt: skip
KNOWN = {
    "All", "Any", "ArgMax", "ArgMin", "AvgPool", "AvgPool3D", "BatchToSpaceND", "Cumprod",
    "FusedBatchNormV3", "L2Loss", "LogSoftmax", "Max", "MaxPool", "MaxPool3D", "Min",
    "Prod", "Softmax", "TopKV2",
}  # fmt: skip
"""Operations known only by their plain name (`_words.py`): ENTRYWISE act on each entry."""

_SHAPES = {"Reshape", "Squeeze", "ExpandDims"}
_EXTREMES = ("TensorScatterMax", "TensorScatterMin", "TensorListSetItem")
_BOUNDS = ("Max", "Min")
_ZEROS = ("ZerosLike", "TensorListReserve", "EmptyTensorList")
_SUMS = {"Add", "AddV2", "AddN", "BiasAdd"}
_ROUND = {"FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
_MATMULS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"}
_CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative"}
_TRANSPOSED = {"Conv2DBackpropInput", "Conv3DBackpropInputV2"}
_DOING = {"Mul": "multiplied by", "Div": "divided by", "RealDiv": "divided by"}


# Moves ------------------------------------------------------------------------------------------


def _slice(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    spans, gone = _spans(op)
    kept = _kept(op) if spans is None and isinstance(inputs[0], Made) else None
    if kept is not None:  # for example one layer of a stack, in a loop
        return draw.lookup(name, inputs[:2], shape, kept)
    return draw.reshape(name, draw.part(name, inputs[0], spans, gone, shape), shape)


def _transpose(
    draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None
) -> Value:
    order = static(op.inputs[1])
    if order is None:
        return draw.part(name, inputs[0], None, shape=shape)
    return draw.transpose(name, inputs[0], [int(axis) for axis in order])


def _flip(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    axes = static(op.inputs[1])
    if axes is None:
        return draw.part(name, inputs[0], None, shape=shape)
    return draw.flip(name, inputs[0], [int(axis) % op.inputs[0].shape.rank for axis in axes])


def _roll(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    by, axes = static(op.inputs[1]), static(op.inputs[2])
    if by is None or axes is None:
        return draw.part(name, inputs[0], None, shape=shape)
    rank, (by, axes) = op.inputs[0].shape.rank, (list(x.reshape(-1)) for x in (by, axes))
    steps = {int(axis) % rank: int(step) for axis, step in zip(axes, by, strict=True)}
    return draw.roll(name, inputs[0], steps)


def _join(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    axis = static(op.inputs[-1])
    rank = op.outputs[0].shape.rank
    if axis is None or rank is None:
        return draw.result(name, inputs[:-1], shape, word="join")
    return draw.join(name, inputs[:-1], int(axis) % rank, shape)


def _pack(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    return draw.stack(name, inputs, op.get_attr("axis") % op.outputs[0].shape.rank, shape)


def _pad(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    padding, is_mirror = static(op.inputs[1]), op.type == "MirrorPad"
    if padding is None:
        return draw.result(name, inputs[:1], shape, word="pad")
    low = [int(row[0]) for row in padding]
    return draw.pad(name, inputs[0], low, shape, None, inputs[2:], "move" if is_mirror else "pad")


def _write(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw a write over a part of a value; over zeros it is a padding."""
    low = static(op.inputs[2])
    if low is None:
        return draw.result(name, inputs[:2], shape, word="scatter")
    return draw.write(name, inputs[0], inputs[1], [int(at) for at in low], shape)


def _write_slice(
    draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None
) -> Value:
    """Draw a write over a slice, which may have steps."""
    whole, *_, part = inputs
    spans, _ = _spans(op)
    if spans is None:
        return draw.result(name, [whole, part], shape, word="scatter")
    return draw.overwrite(name, whole, part, spans, shape)


def _scatter(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw a write at indices of the first axes."""
    whole, _, part = inputs
    places, is_sum = _indices(draw, op, inputs), op.type != "TensorScatterUpdate"
    if is_sum and isinstance(part, Signal):
        return draw.scatter_add(name, whole, part, [places], shape)
    if not is_constant(places) or is_sum:
        return draw.other(name, [whole, part, places], shape, word="scatter")
    return draw.scatter(name, whole, part, places, shape)


def _indices(draw: Drawing, op: Any, inputs: list[Value]) -> Value:
    """Return the second operand, an array of indices, with its numbers if they are known."""
    index = static(op.inputs[1])
    return inputs[1] if index is None else draw.constant(index.shape, numbers=index)


def _stitch(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw rows that are put together by their indices."""
    count = len(inputs) // 2
    rows = [static(tensor) for tensor in op.inputs[:count]]
    if any(index is None for index in rows):
        return draw.result(name, inputs[count:], shape, word="join")
    whole: Value = draw.constant(shape, value=0)
    for index, part in zip(rows, inputs[count:], strict=True):
        places = draw.constant((*index.shape, 1), numbers=index)
        whole = draw.scatter(name, whole, part, places, shape)
    return whole


def _pieces(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw the pieces of a dilated convolution's input; its padding has shifted them equally."""
    value = inputs[0]
    if isinstance(value, Made):
        return draw.other(name, inputs, shape)
    out = draw.result(name, inputs, shape, word="pad")
    if isinstance(out, Signal) and isinstance(value, Signal):
        return out._replace(shift=value.shift)
    return out


def _lookup(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    axis = static(op.inputs[2]) if op.type == "GatherV2" else 0
    if axis is None or op.get_attr("batch_dims"):
        return draw.lookup(name, inputs[:2], shape)
    return draw.take(name, inputs[0], _indices(draw, op, inputs), int(axis), shape)


def _row(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw an entry of a list of tensors; a list that was one tensor has its rows."""
    value, index = inputs[0], static(op.inputs[1])
    if index is not None and shape is not None and value.shape and value.shape[1:] == shape:
        return draw.part_along(name, value, 0, int(index), int(index) + 1, (0,))
    if isinstance(value, Signal) or value.shape:
        return draw.layer(name, value, inputs[1:2], shape)
    return draw.other(name, inputs, shape, word="select")


def _rows(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw a tensor of all entries of a list, unless these were put together already."""
    value = inputs[0]
    is_whole = value.shape is not None and value.shape == shape
    return value if is_whole else draw.result(name, inputs, shape, word="move")


# Sums and products ------------------------------------------------------------------------------


def _add(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    result, *rest = inputs
    for value in rest:
        if op.type == "BiasAdd" and _channels_first(op):
            value = _along_channels(draw, name, value, len(shape or ()))
        result = draw.add(name, result, along(draw, name, value, shape), shape)
    return result


def along(draw: Drawing, name: str, value: Value, shape: Shape | None) -> Value:
    """Broadcast a value made of parameters to the shape of a sum."""
    return draw.broadcast(name, value, shape) if isinstance(value, Made) else value


def _scale(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    if len(inputs) == 2 and is_constant(inputs[0]):  # a constant divided by a value
        return draw.entrywise(name, inputs, shape, word="div")
    word = "neg" if op.type == "Neg" else "div"
    return draw.scale(name, inputs, shape, _DOING.get(op.type, ""), word)


def _subtract(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    a, b = (along(draw, name, value, shape) for value in inputs)
    return draw.subtract(name, a, b, shape)


def _function(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw a power, a clamp, a select or a scatter; numbers decide whether the first two vanish."""
    if op.type == "Pow":
        by = draw.constant(None, numbers=static(op.inputs[1])).extent
        by = inputs[1].extent if by is None and isinstance(inputs[1], Made) else by
        return draw.entrywise(name, inputs, shape, word=power(by and by[0]))
    if op.type == "ClipByValue":
        value, low, high = inputs
        return draw.entrywise(name, inputs, shape, word=clamped(low, high, value))
    if op.type in ("Select", "SelectV2"):
        return draw.entrywise(name, inputs[1:] + inputs[:1], shape, True, "masked by", "where")
    whole, places, update = inputs
    return draw.other(name, [whole, update, places], shape, word="scatter")


def _constant(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw a constant, with its number if all entries are equal."""
    if op.type == "Fill" and isinstance(inputs[1], Made):
        return draw.constant(shape, value=inputs[1].value)
    array = np.zeros(1) if op.type in _ZEROS else static(op.outputs[0])
    return draw.constant(shape, numbers=array)


def _round(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    for value in inputs[1:]:
        if isinstance(value, Made):
            draw.use(value, "other")
    return draw.scale(name, inputs[:1], shape)


def _sum(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    axes, rank = static(op.inputs[1]), op.inputs[0].shape.rank
    if axes is None or rank is None:
        return draw.result(name, inputs, shape, word="pool" if op.type in _BOUNDS else "sum")
    along = [int(axis) % rank for axis in axes.reshape(-1)]
    if op.type in _BOUNDS:
        return draw.extreme(name, inputs[0], along, shape, "pool")
    return draw.sum(name, inputs[0], along, shape, op.type == "Mean")


def _cumsum(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    axis = static(op.inputs[1])
    if axis is None or shape is None or op.get_attr("exclusive"):
        return draw.result(name, inputs, shape, word="cumsum")
    return draw.cumsum(name, inputs[0], int(axis) % len(shape), shape, op.get_attr("reverse"))


def _one_hot(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    result = draw.result(name, inputs, shape, word="basis")
    return result._replace(picks=True) if isinstance(result, Signal) else result


def _matmul(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
    ranks = [tensor.shape.rank for tensor in op.inputs[:2]]
    if None in ranks:
        return draw.other(name, inputs, shape)
    turned = [op.get_attr(flag) for flag in flags]
    return draw.product(name, inputs[:2], *of_matmul(ranks, turned), shape)


def _einsum(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    equation = op.get_attr("equation").decode()
    ranks = [tensor.shape.rank for tensor in op.inputs]
    if None in ranks or shape is None:
        return draw.other(name, inputs, shape)
    return draw.product(name, inputs, *of_einsum(equation, ranks), shape)


def _convolution(
    draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None
) -> Value:
    crops = op.type in _TRANSPOSED
    signal, value = op.inputs[2 if crops else 0], inputs[2 if crops else 0]
    sizes = op.inputs[1].shape.as_list()
    rank = len(sizes) - 2
    if None in sizes:
        return draw.other(name, inputs, shape)
    first = _channels_first(op)
    channels, is_depthwise = signal.shape[1 if first else rank + 1], "Depthwise" in op.type
    groups = channels if is_depthwise else 1 if crops else channels // max(sizes[rank], 1)
    window = _window(op, signal, tuple(sizes[:rank]), spatial(rank, first))
    letters = "DHW"[3 - rank :] + ("OI" if crops else "IO")
    how = (first, max(op.get_attr("strides")) > 1, groups, is_depthwise)
    return convolved(draw, name, [value, inputs[1]], letters, shape, window, *how)


def _patches(draw: Drawing, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
    """Draw the windows of an image with the channels last."""
    kernel, strides, dilation = (op.get_attr(k)[1:3] for k in ("ksizes", "strides", "rates"))
    sizes = tuple(op.inputs[0].shape[1:3])
    window = sliding(kernel, strides, dilation, op.get_attr("padding").decode().lower(), sizes)
    return windows(draw, name, inputs[0], shape, window, False)


_Draw = Callable[[Drawing, Any, str, list[Value], Shape | None], Value]
MOVES: dict[str, _Draw] = {
    **dict.fromkeys(
        _SHAPES, lambda draw, op, name, inputs, shape: draw.reshape(name, inputs[0], shape)
    ),
    "StridedSlice": _slice,
    "Slice": _slice,
    "Transpose": _transpose,
    "BroadcastTo": lambda draw, op, name, inputs, shape: draw.broadcast(name, inputs[0], shape),
    "ReverseV2": _flip,
    "Tile": lambda draw, op, name, inputs, shape: draw.tile(
        name, inputs[0], shape, is_floating(op.outputs[0])
    ),
}
"""Operations that move entries, of any dtype."""

TABLE: dict[str, _Draw] = {
    "ConcatV2": _join,
    "Pack": _pack,
    "Roll": _roll,
    **dict.fromkeys(("GatherV2", "ResourceGather"), _lookup),
    **dict.fromkeys(("Pad", "PadV2", "MirrorPad"), _pad),
    **dict.fromkeys(_SUMS, _add),
    "XlaDynamicUpdateSlice": _write,
    "TensorStridedSliceUpdate": _write_slice,
    "DynamicStitch": _stitch,
    "SpaceToBatchND": _pieces,
    "ExtractImagePatches": _patches,
    "TensorListFromTensor": lambda draw, op, name, inputs, shape: inputs[0],
    "TensorListGetItem": _row,
    "TensorListStack": _rows,
    "Mul": lambda draw, op, name, inputs, shape: draw.multiply(name, inputs[0], inputs[1], shape),
    "MatrixBandPart": lambda draw, op, name, inputs, shape: draw.masked(name, inputs[0], shape),
    "Sub": _subtract,
    **dict.fromkeys(("Div", "RealDiv", "Neg"), _scale),
    **dict.fromkeys(("Pow", "ClipByValue", "Select", "SelectV2"), _function),
    **dict.fromkeys(_EXTREMES, _function),
    **{f"TensorScatter{what}": _scatter for what in ("Update", "Add", "Sub")},
    **dict.fromkeys(("Const", "Fill", *_ZEROS), _constant),
    **dict.fromkeys(_ROUND, _round),
    "Sum": _sum,
    "Mean": _sum,
    **dict.fromkeys(_BOUNDS, _sum),
    "Cumsum": _cumsum,
    "OneHot": _one_hot,
    **dict.fromkeys(_MATMULS, _matmul),
    "Einsum": _einsum,
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), _convolution),
}
"""Operations that compute with or join real or complex numbers."""


def shape_of(tensor: Any) -> Shape | None:
    return tuple(tensor.shape) if tensor.shape.is_fully_defined() else None


def is_floating(tensor: Any) -> bool:
    kind = tensor.dtype
    return bool(kind.is_floating or kind.is_complex or kind.name == "variant")


def _channels_first(op: Any) -> bool:
    return bool(op.get_attr("data_format").decode().startswith("NC"))


def _window(op: Any, signal: Any, kernel: Shape, spatial: Sequence[int]) -> Window | None:
    """Return how a convolution slides, or None if it is unknown."""
    source = signal.op
    while source.type in ("ExpandDims", "Squeeze", "Reshape"):
        source = source.inputs[0].op
    if source.type == "SpaceToBatchND":  # a dilated convolution, in pieces of stride 1
        return _dilated(source, kernel)

    def of(attribute: str, step: int = 1) -> tuple[int, ...]:
        values = op.get_attr(attribute)
        return tuple(values[step * axis] for axis in spatial)

    padding, dilation, strides = op.get_attr("padding"), of("dilations"), of("strides")
    sizes = tuple(signal.shape[axis] for axis in spatial)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    left = (0,) * len(kernel)
    if padding == b"EXPLICIT":
        left = of("explicit_paddings", 2)
    if op.type not in _TRANSPOSED:
        left = same(reach, strides, sizes) if padding == b"SAME" else left
        return Window(kernel, left, dilation)
    if padding == b"SAME":
        ends = tuple(op.outputs[0].shape[axis] for axis in spatial)
        axes = zip(reach, strides, sizes, ends, strict=True)
        left = tuple(
            same_transposed(k, s, None if None in (n, end) else end - s * (n - 1) - k % 2)
            for k, s, n, end in axes
        )
    return Window(kernel, left, dilation, strides)


def _dilated(pieces: Any, kernel: Shape) -> Window | None:
    """Return how a dilated convolution slides, from the operation that splits its input."""
    dilation, padding = (static(tensor) for tensor in pieces.inputs[1:])
    if dilation is None or padding is None:
        return None
    rank = len(kernel)
    more = rank - len(dilation)  # 1 for an image of one row, -1 for channels first
    left = (0,) * more + tuple(int(row[0]) for row in padding)
    steps = (1,) * more + tuple(int(d) for d in dilation)
    return Window(kernel, left[-rank:], steps[-rank:])


def _along_channels(draw: Drawing, name: str, value: Value, rank: int) -> Value:
    """Return a bias with its axis at the channels of a channels-first tensor."""
    if value.shape is None or not isinstance(value, Made):
        return value
    return draw.reshape(name, value, (*value.shape, *(1,) * (rank - 2)))


def _kept(op: Any) -> list[int | None] | None:
    """Return the axes that computed indices leave whole; None if slices are computed."""
    if op.type != "StridedSlice" or op.get_attr("ellipsis_mask") or op.get_attr("new_axis_mask"):
        return None
    gone = op.get_attr("shrink_axis_mask")
    whole = op.get_attr("begin_mask") & op.get_attr("end_mask")
    count, rank = op.inputs[1].shape[0], op.inputs[0].shape.rank
    if count is None or rank is None or (gone | whole) & (1 << count) - 1 != (1 << count) - 1:
        return None
    return [axis for axis in range(rank) if not gone >> axis & 1]


def _spans(op: Any) -> tuple[list[Span] | None, tuple[int, ...]]:
    """Return the span of a slice on every axis (None: unknown), and the axes it removes."""
    sizes = shape_of(op.inputs[0])
    begin, end = static(op.inputs[1]), static(op.inputs[2])
    if sizes is None or begin is None or end is None:
        return None, ()
    if op.type == "Slice":
        pairs = zip(sizes, begin, end, strict=True)
        return [(int(b), size if n == -1 else int(b + n), 1) for size, b, n in pairs], ()
    steps, keys = static(op.inputs[3]), list[Any]()
    words = ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    masks = [op.get_attr(f"{word}_mask") for word in words]
    for at in range(len(begin)):
        first, last, rest, new, gone = (bool(mask >> at & 1) for mask in masks)
        span = slice(None if first else int(begin[at]), None if last else int(end[at]), steps[at])
        keys.append(... if rest else None if new else int(begin[at]) if gone else span)
    return spans_of(sizes, keys)
