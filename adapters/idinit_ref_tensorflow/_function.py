"""A model's graph from the concrete TensorFlow function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from idinit_ref.errors import GraphError, message

from ._draw import Drawing
from ._values import Data, Made, Shape, Signal, Value, einsum_letters, only_made
from ._window import Sizes, Window, same, same_transposed

_SAME = {"Identity", "IdentityN", "StopGradient", "PreventGradient", "Snapshot", "EnsureShape"}
_SAME |= {"ReadVariableOp", "Cast", "CheckNumerics"}
_SHAPES = {"Reshape", "Squeeze", "ExpandDims"}
_KEEP = {"Mul", "Div", "RealDiv", "Neg", "Round"}
_ROUND = {"FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_BRANCHES = {"If", "StatelessIf"}
_LOOPS = {"While", "StatelessWhile"}
_CONVOLUTIONS = {"Conv2D", "Conv3D", "DepthwiseConv2dNative"}
_TRANSPOSED = {"Conv2DBackpropInput": 2, "Conv3DBackpropInputV2": 2}
_UNREADABLE = ("CudnnRNN", "SparseTensorDenseMatMul", "SparseMatMul", "Xla", "TPU", "PyFunc")


class Reader:
    """Reads function graphs into a drawing.

    Parameters
    ----------
    drawing : Drawing
        What is written to.
    names : mapping of int to str
        The parameters, by the id of their resource handle.
    rename : callable
        Makes a readable name of an operation's.
    """

    def __init__(
        self, drawing: Drawing, names: Mapping[int, str], rename: Callable[[str], str]
    ) -> None:
        self.draw, self.names, self.rename = drawing, names, rename

    def captured(self, graph: Any) -> dict[str, Value]:
        """Return the values of what a function takes from outside itself: variables, constants."""
        found: dict[str, Value] = {}
        for outside, inside in graph.captures:
            name = self.names.get(id(outside))
            shape = _shape(inside)
            found[inside.name] = Made(shape) if name is None else self.draw.parameter(name)
        return found

    def run(self, graph: Any, values: dict[str, Value]) -> list[Value]:
        """Draw all that the outputs of a graph need; `values` holds its inputs."""
        for op in _needed(graph):
            if op.type == "Placeholder":
                if op.outputs[0].name not in values:
                    raise _cannot(op, "it is an input that nothing was given for")
                continue
            inputs = [values[tensor.name] for tensor in _added(op)]
            for tensor, value in zip(op.outputs, self._values(op, inputs), strict=True):
                values[tensor.name] = value
        return [values[tensor.name] for tensor in graph.outputs]

    def _values(self, op: Any, inputs: list[Value]) -> list[Value]:
        """Return the values of an operation's outputs."""
        if op.type in _CALLS:
            return self._call(op, "f", inputs)
        if op.type in _BRANCHES:
            return self._branches(op, inputs)
        if op.type in _LOOPS:
            return self._loop(op, inputs)
        runs = any("func" in attribute.type for attribute in op.op_def.attr)
        if not only_made(inputs) and (runs or any(name in op.type for name in _UNREADABLE)):
            raise _cannot(op, "what it does with its weights is not known")
        name = self.rename(op.name)
        if op.type in ("Split", "SplitV", "Unpack"):
            return list(self._parts(op, name, inputs))
        if len(op.outputs) != 1 and op.type not in _SAME:
            return [
                self.draw.other(name, inputs, _shape(out), is_floating(out)) for out in op.outputs
            ]
        if op.type in _SAME:
            pairs = zip(op.inputs, op.outputs, inputs, strict=True)
            return [
                value
                if source.dtype == out.dtype or source.dtype.name == "resource"
                else self.draw.cast(name, value, _shape(out), is_floating(out))
                for source, out, value in pairs
            ]
        return [self._value(op, name, inputs, op.outputs[0])]

    def _value(self, op: Any, name: str, inputs: list[Value], out: Any) -> Value:
        shape, floating, draw, kind = _shape(out), is_floating(out), self.draw, op.type
        if kind in _SHAPES:
            return draw.reshape(name, inputs[0], shape, floating)
        if kind == "Transpose":
            return draw.transpose(name, inputs[0], _static(op.inputs[1]))
        if kind in ("StridedSlice", "Slice"):
            spans, gone = _spans(op)
            return draw.part(name, inputs[0], shape, spans, gone, floating)
        if kind == "ConcatV2":
            return (
                draw.join(name, inputs[:-1], shape)
                if floating
                else draw.other(name, inputs, shape, False)
            )
        if kind in ("GatherV2", "ResourceGather"):
            static = _static(op.inputs[2]) if kind == "GatherV2" else 0
            batched = op.get_attr("batch_dims")
            axis = None if static is None or batched else int(static) % op.inputs[0].shape.rank
            return draw.lookup(name, inputs, shape, axis)
        if kind in ("Pad", "PadV2", "MirrorPad"):
            padding = _static(op.inputs[1])
            left = None if padding is None else [int(row[0]) for row in padding]
            return (
                draw.pad(name, inputs[:1], shape, left)
                if floating
                else draw.other(name, inputs, shape, False)
            )
        if kind in ("Add", "AddV2", "AddN", "BiasAdd") and floating:
            result = inputs[0]
            for value in inputs[1:]:
                if kind == "BiasAdd" and _channels_first(op):
                    value = _along_channels(value, len(shape or ()))
                result = draw.add(name, result, value, shape)
            return result
        if kind in _KEEP and floating and not ("Div" in kind and _is_constant(inputs[0])):
            return draw.keep(name, inputs, shape)
        if kind in _ROUND:
            draw.touch(inputs[1:], "other")
            return draw.keep(name, inputs[:1], shape)
        if kind == "OneHot" and floating:
            result = draw.other(name, inputs, shape)
            return result._replace(picks=True) if isinstance(result, Signal) else result
        if "MatMul" in kind or kind == "Einsum":
            inputs = draw.weights(inputs)
        if not only_made(inputs) and any(isinstance(v, Made) and v.axes for v in inputs):
            return self._product(op, name, inputs, out)
        return draw.other(name, inputs, shape, floating)

    def _parts(self, op: Any, name: str, inputs: list[Value]) -> Iterator[Value]:
        which = 1 if op.type == "Split" else 0
        value, start = inputs[which], 0
        rank = op.inputs[which].shape.rank
        if op.type == "Unpack":
            axis = op.get_attr("axis") % rank
        else:
            axis = int(_static(op.inputs[0 if op.type == "Split" else 2])) % rank
        for out in op.outputs:
            size = 1 if op.type == "Unpack" else out.shape[axis]
            gone = (axis,) if op.type == "Unpack" else ()
            spans = {axis: (start, start + size)}
            start += size
            yield self.draw.part(name, value, _shape(out), spans, gone, is_floating(out))

    # Weight operations ----------------------------------------------------------------------

    def _product(self, op: Any, name: str, inputs: list[Value], out: Any) -> Value:
        kind, shape = op.type, _shape(out)
        if kind in _CONVOLUTIONS or kind in _TRANSPOSED:
            return self._convolution(op, name, inputs, shape)
        if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
            return self._matmul(op, name, inputs, shape)
        if kind == "Einsum" and len(inputs) == 2:
            return self._einsum(op, name, inputs, shape)
        return self.draw.other(name, inputs, shape, is_floating(out))

    def _matmul(self, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
        flags = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        turned = [op.get_attr(flag) for flag in flags]
        at = 1 if isinstance(inputs[1], Made) else 0
        weight, rank = inputs[at], op.inputs[at].shape.rank
        assert isinstance(weight, Made)
        letters = "IO" if at == 1 else "OI"
        letters = "B" * (rank - 2) + (letters[::-1] if turned[at] else letters)
        last = len(shape or ())
        place = last - 1 if at == 1 else last - 2
        copies = range(last - rank, last - 2)
        return self.draw.product(
            name, inputs[:at] + inputs[at + 1 : 2], weight, letters, shape, (place,), copies, copies
        )

    def _einsum(self, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
        terms, result = op.get_attr("equation").decode().split("->")
        both = terms.split(",")
        at = 1 if isinstance(inputs[1], Made) else 0
        weight = inputs[at]
        assert isinstance(weight, Made)
        rest = len(shape or ()) - len(result.replace("...", "")) + 1
        result = result.replace("...", "." * (rest - 1))
        kernel = both[at]
        if "." in kernel or len(set(kernel)) < len(kernel):
            raise _cannot(
                op, f"the axes of its weight in {op.get_attr('equation')!r} are not named"
            )
        other = both[1 - at].replace("...", "." * (rest - 1))
        letters = einsum_letters(kernel, other, result, weight)
        where = {c: result.index(c) for c in kernel if c in result}
        places = [where[c] for c, letter in zip(kernel, letters, strict=True) if letter == "O"]
        copies = [where[c] for c, letter in zip(kernel, letters, strict=True) if letter == "B"]
        return self.draw.product(
            name,
            inputs[1 - at : 2 - at],
            weight,
            letters,
            shape,
            places,
            copies,
            [other.index(c) for c in kernel if c in result and c in other],
        )

    def _convolution(self, op: Any, name: str, inputs: list[Value], shape: Shape | None) -> Value:
        signal = op.inputs[_TRANSPOSED.get(op.type, 0)]
        value, weight = inputs[_TRANSPOSED.get(op.type, 0)], inputs[1]
        sizes = op.inputs[1].shape.as_list()
        rank = len(sizes) - 2
        if not isinstance(weight, Made) or isinstance(value, Made) or None in sizes:
            return self.draw.other(name, inputs, shape)
        place = 1 if _channels_first(op) else rank + 1
        spatial = [place + 1 + axis if place == 1 else 1 + axis for axis in range(rank)]
        channels = signal.shape[place]
        options: dict[str, Any] = {}
        letters = "DHW"[3 - rank :] + ("OI" if op.type in _TRANSPOSED else "IO")
        if op.type == "DepthwiseConv2dNative":
            options = {"groups": channels, "transposed": True} if channels > 1 else {}
        elif op.type in _CONVOLUTIONS and channels != sizes[rank]:
            options = {"groups": channels // sizes[rank], "transposed": False}
        window, seen = _window(op, signal, tuple(sizes[:rank]), spatial)
        return self.draw.product(
            name, [value], weight, letters, shape, (place,), window=window, sizes=seen, **options
        )

    # Functions ------------------------------------------------------------------------------

    def _body(self, op: Any, attribute: str, inputs: Sequence[Value]) -> list[Value]:
        body = op.graph._get_function(op.get_attr(attribute).name).graph
        return self.run(body, dict(zip((t.name for t in body.inputs), inputs, strict=True)))

    def _call(self, op: Any, attribute: str, inputs: Sequence[Value]) -> list[Value]:
        return self._body(op, attribute, inputs)

    def _branches(self, op: Any, inputs: list[Value]) -> list[Value]:
        one, other = (self._body(op, f"{b}_branch", inputs[1:]) for b in ("then", "else"))
        name = self.rename(op.name)
        return [
            self.draw.other(name, pair, _shape(out), is_floating(out))
            for *pair, out in zip(one, other, op.outputs, strict=True)
        ]

    def _loop(self, op: Any, inputs: list[Value]) -> list[Value]:
        """Draw a loop's body once, as it is after the first time: its states are signals."""
        name, draw = self.rename(op.name), self.draw
        while True:
            before = draw.mark()
            results = self._body(op, "body", inputs)
            new = [
                isinstance(then, Signal) and not isinstance(now, Signal)
                for now, then in zip(inputs, results, strict=True)
            ]
            if not any(new):
                return results
            draw.back_to(before)
            inputs = [
                draw.start(f"{name}: state", _shape(out)) if is_new else value
                for value, is_new, out in zip(inputs, new, op.outputs, strict=True)
            ]


def _cannot(op: Any, why: str) -> GraphError:
    return GraphError(
        message(
            "model",
            op.name,
            f"this operation ({op.type}) cannot be traced: {why}",
            "write that part with other operations or layers, or give plans for it by hand: idi_",
        )
    )


def _needed(graph: Any) -> list[Any]:
    """Return the operations that the outputs of a graph depend on, in its order."""
    seen: set[str] = set()
    stack = [tensor.op for tensor in graph.outputs]
    while stack:
        op = stack.pop()
        if op.name not in seen:
            seen.add(op.name)
            stack += [tensor.op for tensor in op.inputs]
    return [op for op in graph.get_operations() if op.name in seen]


def _shape(tensor: Any) -> Shape | None:
    return tuple(tensor.shape) if tensor.shape.is_fully_defined() else None


def is_floating(tensor: Any) -> bool:
    kind = tensor.dtype
    return bool(kind.is_floating or kind.is_complex or kind.name == "variant")


def _static(tensor: Any) -> Any:
    from tensorflow import get_static_value

    return get_static_value(tensor)


def _added(op: Any) -> list[Any]:
    """Return an operation's inputs; of a sum that Keras writes as a bias, the two terms.

    For samples of one row ``x + y`` is ``bias_add(x, squeeze(y))`` there.
    """
    inputs = list(op.inputs)
    if op.type == "BiasAdd" and inputs[1].op.type == "Squeeze":
        whole = inputs[1].op.inputs[0]
        if _shape(whole) is not None and _shape(whole) == _shape(op.outputs[0]):
            inputs[1] = whole
    return inputs


def _channels_first(op: Any) -> bool:
    return bool(op.get_attr("data_format").decode().startswith("NC"))


def _window(
    op: Any, signal: Any, kernel: Shape, spatial: Sequence[int]
) -> tuple[Window | None, Sizes | None]:
    """Return how a convolution slides over which sizes, as far as they are known."""
    source = signal.op
    while source.type in ("ExpandDims", "Squeeze", "Reshape"):
        source = source.inputs[0].op
    if source.type == "SpaceToBatchND":  # a dilated convolution, in pieces of stride 1
        return _dilated(source, kernel), None

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
        return Window(kernel, left, dilation), sizes
    if padding == b"SAME":
        ends = tuple(op.outputs[0].shape[axis] for axis in spatial)
        axes = zip(reach, strides, sizes, ends, strict=True)
        left = tuple(
            same_transposed(k, s, None if None in (n, end) else end - s * (n - 1) - k % 2)
            for k, s, n, end in axes
        )
    return Window(kernel, left, dilation, strides), sizes


def _dilated(pieces: Any, kernel: Shape) -> Window | None:
    """Return how a dilated convolution slides, from the operation that cuts its input in pieces."""
    dilation, padding = (_static(tensor) for tensor in pieces.inputs[1:])
    if dilation is None or padding is None:
        return None
    rank = len(kernel)
    more = rank - len(dilation)  # 1 for an image of one row, -1 where channels stand first
    left = (0,) * more + tuple(int(row[0]) for row in padding)
    steps = (1,) * more + tuple(int(d) for d in dilation)
    return Window(kernel, left[-rank:], steps[-rank:])


def _is_constant(value: Value) -> bool:
    return isinstance(value, Made) and not value.axes


def _along_channels(value: Value, rank: int) -> Value:
    """Return a bias whose one axis stands where the channels are, second of all."""
    if not isinstance(value, Made) or value.shape is None or isinstance(value, Data):
        return value
    return value._replace(shape=(*value.shape, *(1,) * (rank - 2)))


def _spans(op: Any) -> tuple[dict[int, tuple[int, int]] | None, tuple[int, ...]]:
    """Return what a slice takes of which axis, and which axes vanish; None if not known."""
    sizes = _shape(op.inputs[0])
    begin, end = _static(op.inputs[1]), _static(op.inputs[2])
    if sizes is None or begin is None or end is None:
        return None, ()
    if op.type == "Slice":
        pairs = enumerate(zip(begin, end, strict=True))
        return {
            axis: (int(b), sizes[axis] if n == -1 else int(b + n)) for axis, (b, n) in pairs
        }, ()
    steps = _static(op.inputs[3])
    masks = [
        op.get_attr(f"{m}_mask") for m in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    ]
    spans, gone, axis = {}, [], 0
    for at in range(len(begin)):
        first, last, rest, new, gone_here = (bool(mask >> at & 1) for mask in masks)
        if new:
            return None, ()
        if rest:
            after = sum(not masks[3] >> k & 1 for k in range(at + 1, len(begin)))
            axis = len(sizes) - after
            continue
        if gone_here:
            start = int(begin[at]) % sizes[axis]
            spans[axis] = (start, start + 1)
            gone.append(axis)
        else:
            span = range(sizes[axis])[
                slice(None if first else begin[at], None if last else end[at], steps[at])
            ]
            if span.step != 1:
                return None, ()
            spans[axis] = (span.start, span.stop)
        axis += 1
    return spans, tuple(gone)
