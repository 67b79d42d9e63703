"""What each PyTorch operation is, by its full name: one call of the drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idinit_ref.layout import SPATIAL
from idinit_ref.tracing import Data, Made, Signal, Value

from ._drawing import ModuleDrawing
from ._memory import Memory, is_floating, shape_of

__all__ = ["ATTENTIONS", "FRESH", "Call", "draw_call"]


@dataclass
class Call:
    """One operation that has run."""

    draw: ModuleDrawing
    name: str
    overload: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    known: Mapping[int, Value]  # of all tensors that are given, by id
    results: list[Tensor]  # that it returns or has written to
    pointwise: bool
    memory: Memory

    @property
    def what(self) -> str:
        """Its name for a reader: of PyTorch's own operations without the namespace."""
        return self.name.removeprefix("aten::").strip("_")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its first result."""
        return shape_of(self.results[0])

    @property
    def floating(self) -> bool:
        """Whether its first result holds real or complex numbers."""
        return is_floating(self.results[0])

    @property
    def values(self) -> list[Value]:
        """The values of all tensors that it is given."""
        return list(self.known.values())

    @property
    def signals(self) -> list[Signal]:
        """Those that depend on the model's inputs."""
        return [value for value in self.known.values() if isinstance(value, Signal)]

    def arg(self, at: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its place or its name."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def of(self, given: Any) -> Value:
        """Return the value of an argument: a tensor or a number."""
        if isinstance(given, Tensor):
            return self.known.get(id(given)) or self.draw.constant(shape_of(given))
        return self.draw.constant((), True)

    def operands(self, most: int) -> list[Value]:
        """Return the values of the first arguments that are tensors or numbers."""
        kinds = (Tensor, bool, int, float, complex)
        return [self.of(arg) for arg in self.args[:most] if isinstance(arg, kinds)]


Handler = Callable[[Call], "Value | Sequence[Value]"]


def draw_call(call: Call) -> Sequence[Value]:
    """Draw an operation, and return a value for each of its results."""
    handler = _TABLE.get(call.name)
    if handler is None:
        handler = _entrywise if call.pointwise else _result if call.name in _KNOWN else _other
    found = handler(call)
    return _all(call, found) if isinstance(found, (Signal, Made, Data)) else found


def _all(call: Call, first: Value) -> list[Value]:
    """Return a value for each result, given the first: statistics of a norm, say, are its."""
    found = [first]
    for tensor in call.results[1:]:
        shape = shape_of(tensor)
        if isinstance(first, Made):
            found.append(first.lost(shape))
        elif isinstance(first, Signal) and is_floating(tensor):
            found.append(Signal(first.node, shape))
        else:
            found.append(Data(shape))
    return found


def _result(call: Call) -> Value:
    return call.draw.result(call.what, call.values, call.shape, call.floating)


def _other(call: Call) -> Value:
    return call.draw.other(call.what, call.values, call.shape, call.floating)


def _entrywise(call: Call) -> Value:
    doing = _DOING.get(call.name, "")
    return call.draw.entrywise(
        call.what, call.operands(3) or call.values, call.shape, call.floating, doing
    )


def _fresh(call: Call) -> list[Value]:
    return [call.draw.constant(shape_of(tensor)) for tensor in call.results]


# Moves ------------------------------------------------------------------------------------------


def _axis(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _reshape(call: Call) -> Value:
    if call.overload == "dtype":
        return _other(call)
    return call.draw.reshape(call.what, call.of(call.args[0]), call.shape)


def _transpose(call: Call) -> Value:
    value = call.of(call.args[0])
    rank = len(value.shape or ())
    order = list(range(rank))
    if call.name == "aten::permute":
        order = [_axis(axis, rank) for axis in call.args[1]]
    elif rank > 1:
        a, b = call.args[1:3] if len(call.args) > 2 else (-2, -1)
        order[a], order[b] = order[b], order[a]
    return call.draw.transpose(call.what, value, order)


def _spans(value: Value) -> list[tuple[int, int, int]]:
    return [(0, size, 1) for size in value.shape or ()]


def _slice(call: Call) -> Value:
    value, spans = call.of(call.args[0]), _spans(call.of(call.args[0]))
    axis = _axis(call.arg(1, "dim", 0), len(spans))
    start, stop, step = call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1)
    start, stop, _ = slice(start, stop).indices(spans[axis][1])
    spans[axis] = (start, stop, step)
    return call.draw.part(call.what, value, spans)


def _select(call: Call) -> Value:
    value, spans = call.of(call.args[0]), _spans(call.of(call.args[0]))
    axis = _axis(call.args[1], len(spans))
    at = _axis(int(call.args[2]), spans[axis][1])
    spans[axis] = (at, at + 1, 1)
    return call.draw.part(call.what, value, spans, (axis,))


def _split(call: Call) -> list[Value]:
    value = call.of(call.args[0])
    axis = _axis(call.arg(2, "dim", 0), len(value.shape or ()))
    sizes = [int(tensor.shape[axis]) for tensor in call.results]
    return call.draw.split("split", value, axis, sizes)


def _unbind(call: Call) -> list[Value]:
    value, spans = call.of(call.args[0]), _spans(call.of(call.args[0]))
    axis = _axis(call.arg(1, "dim", 0), len(spans))
    return [
        call.draw.part(
            "unbind", value, [*spans[:axis], (at, at + 1, 1), *spans[axis + 1 :]], (axis,)
        )
        for at in range(len(call.results))
    ]


def _lose(call: Call) -> Value:
    return call.draw.part(call.what, call.of(call.args[0]), None, shape=call.shape)


def _expand(call: Call) -> Value:
    return call.draw.broadcast(call.what, call.of(call.args[0]), call.shape)


def _flip(call: Call) -> Value:
    value = call.of(call.args[0])
    rank = len(value.shape or ())
    return call.draw.flip("flip", value, [_axis(axis, rank) for axis in call.args[1]])


def _roll(call: Call) -> Value:
    value, axes = call.of(call.args[0]), call.arg(2, "dims", ())
    rank = len(value.shape or ())
    if not axes and rank != 1:
        return _lose(call)
    pairs = zip(axes or (0,), call.args[1], strict=True)
    return call.draw.roll("roll", value, {_axis(axis, rank): by for axis, by in pairs})


def _repeat(call: Call) -> Value:
    value = call.of(call.args[0])
    if not isinstance(value, Made) or value.shape is None:
        return _result(call)
    times, draw = call.args[1], call.draw
    old = (1,) * (len(times) - len(value.shape)) + value.shape
    apart = draw.reshape("repeat", value, tuple(n for size in old for n in (1, size)))
    pairs = zip(times, old, strict=True)
    spread = draw.broadcast("repeat", apart, tuple(n for pair in pairs for n in pair))
    return draw.reshape("repeat", spread, call.shape)


def _cast(call: Call) -> Value:
    given = call.args[0]
    return call.draw.cast("cast", call.of(given), call.floating, given.dtype == torch.bool)


def _stop(call: Call) -> Value:
    return call.draw.stop("detach", call.of(call.args[0]), call.floating)


def _copy(call: Call) -> Value:
    source = call.args[1]
    value = call.draw.cast("cast", call.of(source), call.floating, source.dtype == torch.bool)
    return call.draw.broadcast("expand", value, call.shape)


def _cat(call: Call) -> Value:
    tensors = [t for t in call.args[0] if t.dim() > 1 or t.numel() or t.dim() == len(call.shape)]
    axis = _axis(call.arg(1, "dim", 0), len(call.shape))
    values = [call.of(tensor) for tensor in tensors]
    return call.draw.join("cat", values, axis, call.shape, call.floating)


def _stack(call: Call) -> Value:
    axis = _axis(call.arg(1, "dim", 0), len(call.shape))
    values = [call.of(tensor) for tensor in call.args[0]]
    if not call.floating:
        return _result(call)
    return call.draw.stack("stack", values, axis, call.shape)


def _pad(call: Call) -> Value:
    value = call.of(call.args[0])
    is_constant = call.name == "aten::constant_pad_nd"
    if not call.floating or not (is_constant or isinstance(value, Signal)):
        return _result(call)
    low = [0] * len(call.shape)
    for number, by in enumerate(call.args[1][::2], 1):
        low[-number] = by
    return call.draw.pad("pad", value, low, call.shape)


# Lookups ----------------------------------------------------------------------------------------


def _embedding(call: Call) -> Value:
    table, ids = (call.of(arg) for arg in call.args[:2])
    kept = [*(None for _ in call.shape[:-1]), 1]
    return call.draw.lookup("lookup", [table, ids], call.shape, kept)


def _bag(call: Call) -> Value:
    table, ids = (call.of(arg) for arg in call.args[:2])
    return call.draw.lookup("lookup", [table, ids], call.shape, None)


def _index(call: Call) -> Value:
    """Draw a lookup by tensors of places along some axes."""
    table, places = call.args[0], list(call.args[1])
    places += [None] * (table.dim() - len(places))
    given = [place for place in places if place is not None]
    at = [axis for axis, place in enumerate(places) if place is not None]
    values = [call.of(table), *map(call.of, given)]
    kept: list[int | None] | None = None
    if all(place.dtype not in (torch.bool, torch.uint8) for place in given):
        rank = max(place.dim() for place in given)
        whole: list[int | None] = [a for a, place in enumerate(places) if place is None]
        first = at[0] if at[-1] - at[0] == len(at) - 1 else 0
        kept = [*whole[:first], *[None] * rank, *whole[first:]]
    return call.draw.lookup("lookup", values, call.shape, kept, call.floating)


def _along(call: Call) -> Value:
    """Draw a lookup by one tensor of places along one axis."""
    table, axis, places = call.args[:3]
    values, rank = [call.of(table), call.of(places)], table.dim()
    kept: list[int | None] = [None] * rank
    if call.name == "aten::index_select":
        kept = [None if at == _axis(axis, rank) else at for at in range(rank)]
    return call.draw.lookup("lookup", values, call.shape, kept, call.floating)


def _take(call: Call) -> Value:
    values = [call.of(arg) for arg in call.args[:2]]
    return call.draw.lookup("lookup", values, call.shape, None, call.floating)


# Products ---------------------------------------------------------------------------------------


def _data(call: Call, given: Tensor, weight: Value) -> Value:
    """Return what a layer is applied to: a signal starts where that is made of no data.

    Learned queries and initial states of recurrent layers are such.
    """
    value = call.of(given)
    if not isinstance(value, Made) or not call.draw.applies(weight):
        return value
    call.draw.use(value, "other")
    start = call.draw.start("input", value.shape)
    call.memory.set(given, start)
    return start


def _product(call: Call, a: Tensor, b: Tensor, letters: str, shape: tuple[int, ...]) -> Value:
    """Draw a product, of which an einsum writes the axes."""
    inputs, out = letters.split("->")
    left, right = inputs.split(",")
    if not call.floating:
        return _result(call)
    weight = call.of(b)
    data = call.of(a) if len(out) < 2 else _data(call, a, weight)
    grouped = "".join(c for c in right if c == "g")
    what = _SUMS.get(call.name, call.what)
    return call.draw.product(what, [data, weight], [left, right], out, shape, grouped)


def _plus(call: Call, value: Value, bias: Any) -> Value:
    if bias is None:
        return value
    return call.draw.add("add", value, call.of(bias), call.shape)


def _dense(call: Call) -> Value:
    return _product(call, call.args[0], call.args[1], _LETTERS[call.name], call.shape)


def _dense_sum(call: Call) -> Value:
    base, a, b = call.args[:3]
    made = _product(call, a, b, _LETTERS["aten::" + _SUMS[call.name]], call.shape)
    return _plus(call, made, base)


def _linear(call: Call) -> Value:
    x, weight = call.args[:2]
    free = "stuvwxyz"[: x.dim() - 1]
    letters = f"{free}i,oi->{free}o" if weight.dim() == 2 else f"{free}i,i->{free}"
    return _plus(call, _product(call, x, weight, letters, call.shape), call.arg(2, "bias"))


def _grouped(call: Call) -> Value:
    a, b = call.args[:2]
    letters = {(2, 3): "ti,gio->to", (3, 3): "bti,bio->bto"}.get((a.dim(), b.dim()))
    return _other(call) if letters is None else _product(call, a, b, letters, call.shape)


def _convolution(call: Call) -> Value:
    data, weight, bias, strides, padding, dilation, transposed, _, groups = call.args[:9]
    rank = weight.dim() - 2
    strides, padding, dilation = (
        tuple(given) * (rank if len(given) == 1 else 1) for given in (strides, padding, dilation)
    )
    options = {"groups": groups} if groups > 1 else {}
    made = call.draw.convolution(
        "convolution",
        _data(call, data, call.of(weight)),
        call.of(weight),
        ("IO" if transposed else "OI") + SPATIAL[len(SPATIAL) - rank :],
        call.shape,
        channels=1,
        space=range(2, rank + 2),
        left=padding,
        dilation=dilation,
        spread=strides if transposed else (),
        crops=transposed,
        options=options | ({"transposed": True} if transposed else {}),
    )
    if bias is None:
        return made
    bias = call.draw.reshape("view", call.of(bias), (call.shape[1], *(1,) * rank))
    return call.draw.add("add", made, bias, call.shape)


# Entry by entry ---------------------------------------------------------------------------------


def _add(call: Call) -> Value:
    a, b = call.of(call.args[0]), call.of(call.args[1])
    if not call.floating:
        return _result(call)
    return call.draw.add("add", a, b, call.shape)


def _adds(call: Call) -> list[Value]:
    left, right = call.args[:2]
    others = right if isinstance(right, (list, tuple)) else [right] * len(left)
    return [
        call.draw.add("add", call.of(a), call.of(b), shape_of(out))
        for a, b, out in zip(left, others, call.results, strict=True)
    ]


def _add_product(call: Call) -> Value:
    """Draw a product or quotient, and the sum with it."""
    base, a, b = map(call.of, call.args[:3])
    draw, shapes = call.draw, (call.args[1].shape, call.args[2].shape)
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]  # torch has no types here
    if call.name == "aten::addcmul":
        made = draw.multiply("mul", a, b, tuple(shape))
    else:
        made = draw.scale("div", (a, b), tuple(shape), "divided by")
    return draw.add("add", base, made, call.shape)


def _multiply(call: Call) -> Value:
    a, b = call.of(call.args[0]), call.of(call.args[1])
    if not call.floating:
        return call.draw.entrywise("mul", [a, b], call.shape, False, "multiplied by")
    return call.draw.multiply("mul", a, b, call.shape)


def _scale(call: Call) -> Value:
    """Draw a quotient, a change of sign, or a clamp."""
    values = call.operands(2 if call.name == "aten::div" else 1)
    first, doing = values[0], "divided by" if call.name == "aten::div" else ""
    is_clamped = call.name == "aten::clamp" and not isinstance(first, Signal)
    if is_clamped or not call.floating or call.kwargs.get("rounding_mode"):
        return call.draw.entrywise(call.what, values, call.shape, call.floating, doing)
    if isinstance(first, Made) and not first.parts:  # a number divided by what is given
        return call.draw.entrywise(call.what, values, call.shape, True, doing)
    return call.draw.scale(call.what, values, call.shape, doing)


def _sum(call: Call) -> Value:
    value, axes = call.of(call.args[0]), call.arg(1, "dim")
    rank = len(value.shape or ())
    if not call.floating or not isinstance(axes, (list, tuple)):
        return _result(call)
    axes = sorted(_axis(axis, rank) for axis in axes) or range(rank)
    return call.draw.sum(call.what, value, tuple(axes), call.shape)


def _glu(call: Call) -> Value:
    value, draw = call.of(call.args[0]), call.draw
    axis = _axis(call.arg(1, "dim", -1), len(call.shape))
    a, b = draw.split("split", value, axis, [call.shape[axis]] * 2)
    return draw.multiply("glu", a, draw.entrywise("sigmoid", [b], call.shape), call.shape)


def _normed(call: Call) -> Value:
    """Draw a weight norm."""
    values = [call.of(arg) for arg in call.args[:2]]
    return call.draw.entrywise("weight_norm", values, call.shape, True, "normalised with")


def _rounded(call: Call) -> Value:
    """Draw what only rounds a weight, as training for quantisation does."""
    value = call.of(call.args[0])
    return value if isinstance(value, Made) else _entrywise(call)


# The table --------------------------------------------------------------------------------------


def _aten(handler: Handler, names: str) -> dict[str, Handler]:
    return {f"aten::{name}": handler for name in names.split()}


_LETTERS = {
    "aten::mm": "ti,io->to",
    "aten::mv": "ti,i->t",
    "aten::dot": "i,i->",
    "aten::bmm": "bti,bio->bto",
}
_SUMS = {"aten::addmm": "mm", "aten::addmv": "mv", "aten::baddbmm": "bmm"}
_DOING = {
    "aten::sub": "subtracted with",
    "aten::rsub": "subtracted with",
    "aten::where": "masked by",
    "aten::masked_fill": "masked by",
}
ATTENTIONS = {"flex_attention", "flex_attention_backward"}
"""Operations that take functions, and of which it is known what they do."""


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(f"aten::{name}" for line in names for name in line.split())


FRESH = _names(
    (
        "zeros_like ones_like full_like empty_like rand_like randn_like randint_like zero fill",
        "new_zeros new_ones new_full new_empty new_empty_strided normal uniform random",
        "bernoulli exponential cauchy geometric log_normal",
    )
)
"""Of the tensors given to these only the shape, dtype or device counts."""

_KNOWN = ATTENTIONS | _names(
    (
        "native_layer_norm native_batch_norm native_group_norm _native_batch_norm_legit",
        "_native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm",
        "_fused_rms_norm batch_norm layer_norm group_norm _softmax _log_softmax _safe_softmax",
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_attention_math scaled_dot_product_attention",
        "max min amax amin argmax argmin mean sum prod norm linalg_vector_norm std var std_mean",
        "var_mean cumsum cumprod cummax cummin logcumsumexp logsumexp all any topk sort argsort",
        "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d",
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d",
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d",
        "_upsample_bilinear2d_aa upsample_bicubic2d _upsample_bicubic2d_aa upsample_linear1d",
        "_upsample_nearest_exact2d upsample_trilinear3d pixel_shuffle pixel_unshuffle",
        "native_dropout index_add index_put index_copy index_fill scatter scatter_add",
        "scatter_reduce slice_scatter select_scatter masked_scatter repeat tril triu histc",
        "_fft_r2c _fft_c2r _fft_c2c im2col col2im _cdist_forward roll repeat_interleave",
        "view_as_real view_as_complex nonzero unique unique2 _unique2 searchsorted bucketize",
        "lerp where masked_fill grid_sampler_2d grid_sampler_3d pow stack",
    )
)
_PADS = " ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
_TABLE: dict[str, Handler] = {
    **dict.fromkeys(FRESH, _fresh),
    **_aten(_reshape, "view _unsafe_view _reshape_alias reshape unsqueeze squeeze view_copy"),
    **_aten(_transpose, "t transpose permute numpy_T mT swapaxes"),
    **_aten(_slice, "slice"),
    **_aten(_select, "select"),
    **_aten(_split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk"),
    **_aten(_unbind, "unbind"),
    **_aten(_lose, "as_strided diagonal unfold real imag _conj _neg_view"),
    **_aten(_expand, "expand"),
    **_aten(_flip, "flip"),
    **_aten(_roll, "roll"),
    **_aten(_repeat, "repeat"),
    **_aten(_cast, "clone _to_copy lift_fresh lift alias contiguous"),
    **_aten(_stop, "detach"),
    **_aten(_copy, "copy"),
    **_aten(_cat, "cat"),
    **_aten(_stack, "stack"),
    **_aten(_pad, f"constant_pad_nd {_PADS}"),
    **_aten(_embedding, "embedding"),
    **_aten(_bag, "_embedding_bag _embedding_bag_forward_only"),
    **_aten(_index, "index"),
    **_aten(_along, "index_select gather"),
    **_aten(_take, "take"),
    **_aten(_dense, "mm mv dot bmm"),
    **_aten(_dense_sum, "addmm addmv baddbmm"),
    **_aten(_linear, "linear"),
    **_aten(_grouped, "_grouped_mm"),
    "transformers::grouped_mm_fallback": _grouped,
    **_aten(_convolution, "convolution"),
    **_aten(_add, "add"),
    **_aten(_adds, "_foreach_add"),
    **_aten(_add_product, "addcmul addcdiv"),
    **_aten(_multiply, "mul"),
    **_aten(_scale, "div neg clamp"),
    **_aten(_sum, "sum mean"),
    **_aten(_glu, "glu"),
    **_aten(_normed, "_weight_norm_interface _weight_norm"),
    **_aten(
        _rounded,
        "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    ),
}
