"""The table of PyTorch operations: a handler, by the operation's full name, draws each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from idinit_ref.core.layout import SPATIAL
from idinit_ref.tracing import Data, Made, Signal, Value, clamped, is_constant, is_entrywise, power

from . import _moves
from ._call import Call, axis_of, other, result, scaled
from ._fresh import FRESH, fresh
from ._memory import is_floating, shape_of
from ._words import WORDS, names_in

__all__ = ["ATTENTIONS", "draw_call"]


Handler = Callable[[Call], "Value | Sequence[Value]"]


def draw_call(call: Call) -> Sequence[Value]:
    """Draw an operation and return a value for each of its results."""
    original = call.name.removesuffix("_copy")
    if call.name not in TABLE and original in MOVES:  # a view that copies
        call = replace(call, name=original)
    handler = MOVES.get(call.name) or (TABLE.get(call.name) if call.floating else None)
    handler = handler or (_entrywise if call.pointwise else _known)
    found = handler(call)
    return _all(call, found) if isinstance(found, (Signal, Made, Data)) else found


def _all(call: Call, first: Value) -> list[Value]:
    """Return a value for each result, given the first (others are a norm's statistics, say)."""
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


def _entrywise(call: Call, word: str = "") -> Value:
    values, word = call.operands(3) or call.values, word or call.what.removeprefix("special_")
    return call.draw.entrywise(call.what, values, call.shape, call.floating, "", word)


def _known(call: Call) -> Value:
    word = WORDS.get(call.name)
    if word == "norm" and isinstance(first := call.of(call.args[0]), Made) and first.parts:
        return call.draw.entrywise(call.what, call.values, call.shape, call.floating, "", word)
    if is_entrywise(word or call.what):
        return _entrywise(call, word or call.what)
    return other(call, call.what) if word is None else result(call, word)


# Products ---------------------------------------------------------------------------------------


def _data(call: Call, given: Tensor, weight: Value) -> Value:
    """Return the value that a layer is applied to; a value without data starts a signal.

    Learned queries and initial states of recurrent layers are such values.
    """
    value = call.of(given)
    if not isinstance(value, Made) or not isinstance(weight, Made):
        return value
    if not call.draw.applies(call.what, weight, value):
        return value
    start = call.draw.data(value)
    call.memory.set(given, start)
    return start


def _product(call: Call, a: Tensor, b: Tensor, letters: str, shape: tuple[int, ...]) -> Value:
    """Draw a product whose axes are given as an einsum equation."""
    inputs, out = letters.split("->")
    left, right = inputs.split(",")
    weight = call.of(b)
    data = call.of(a) if len(out) < 2 else _data(call, a, weight)
    grouped = "".join(c for c in right if c == "g")
    what = _SUMS.get(call.name, (call.what,))[0]
    return call.draw.product(what, [data, weight], [left, right], out, shape, grouped)


def _plus(call: Call, value: Value, bias: Any) -> Value:
    if bias is None:
        return value
    return call.draw.add("add", value, call.of(bias), call.shape)


def _dense(call: Call) -> Value:
    return _product(call, call.args[0], call.args[1], _LETTERS[call.name], call.shape)


def _dense_sum(call: Call) -> Value:
    base, a, b = call.args[:3]
    made = _product(call, a, b, _SUMS[call.name][1], call.shape)
    return made if call.kwargs.get("beta") == 0 else _plus(call, made, base)


def _linear(call: Call) -> Value:
    x, weight = call.args[:2]
    free = "stuvwxyz"[: x.dim() - 1]
    letters = f"{free}i,oi->{free}o" if weight.dim() == 2 else f"{free}i,i->{free}"
    return _plus(call, _product(call, x, weight, letters, call.shape), call.arg(2, "bias"))


def _grouped(call: Call) -> Value:
    a, b = call.args[:2]
    letters = {(2, 3): "ti,gio->to", (3, 3): "bti,bio->bto"}.get((a.dim(), b.dim()))
    return other(call) if letters is None else _product(call, a, b, letters, call.shape)


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
    a, b = call.of(call.args[0]), scaled(call, 1)
    return call.draw.add("add", a, b, call.shape)


def _adds(call: Call) -> list[Value]:
    left, right = call.args[:2]
    others = right if isinstance(right, (list, tuple)) else [right] * len(left)
    return [
        call.draw.add("add", call.of(a), call.of(b), shape_of(out))
        for a, b, out in zip(left, others, call.results, strict=True)
    ]


def _add_product(call: Call) -> Value:
    """Draw a product or quotient, and its sum with a base."""
    base, a, b = map(call.of, call.args[:3])
    draw, shapes = call.draw, (call.args[1].shape, call.args[2].shape)
    shape = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]  # untyped in PyTorch
    if call.name == "aten::addcmul":
        made = draw.multiply("mul", a, b, tuple(shape))
    else:
        made = draw.scale("div", (a, b), tuple(shape), "divided by")
    return draw.add("add", base, made, call.shape)


def _multiply(call: Call) -> Value:
    a, b = map(call.of, call.args[:2])
    return call.draw.multiply("mul", a, b, call.shape)


def _subtract(call: Call) -> Value:
    first, second = (1, 0) if call.name == "aten::rsub" else (0, 1)
    a, b = call.of(call.args[first]), scaled(call, second)
    return call.draw.subtract(call.what, a, b, call.shape)


def _between(call: Call) -> Value:
    """Draw an interpolation, as it is computed: a + w (b - a)."""
    (a, b, by), draw, shape = map(call.of, call.args[:3]), call.draw, call.shape
    step = draw.multiply("mul", draw.subtract("sub", b, a, shape), by, shape)
    return draw.add("add", a, step, shape)


def _scale(call: Call) -> Value:
    """Draw a quotient or a change of sign."""
    values = call.operands(2 if call.name == "aten::div" else 1)
    first, doing = values[0], "divided by" if call.name == "aten::div" else ""
    is_number = isinstance(first, Made) and not first.parts  # a number divided by a tensor
    word = "floor_divide" if call.kwargs.get("rounding_mode") else call.what
    if is_number or not call.floating or word == "floor_divide":
        return call.draw.entrywise(call.what, values, call.shape, call.floating, doing, word)
    return call.draw.scale(call.what, values, call.shape, doing, word)


def _clamp(call: Call) -> Value:
    value, low, high = (call.of(given) for given in (call.args[0], *map(call.arg, (1, 2), _BOUNDS)))
    word = clamped(low, high, value)
    if isinstance(value, Signal) and word != "offset" and is_constant(low) and is_constant(high):
        return call.draw.scale(call.what, [value], call.shape)  # a result's axes stay known
    values = [value, low, high]
    return call.draw.entrywise(call.what, values, call.shape, call.floating, "", word)


def _bounded(call: Call) -> Value:
    """Draw a hard tanh, or a threshold."""
    low, high = call.arg(1, "min_val", -1), call.arg(2, "max_val", 1)
    if call.name == "aten::threshold":  # below the threshold (`low`) the result is `high`
        low, high = (0 if high == 0 or low < 0 else 1), None
    return _entrywise(call, clamped(low, high))


def _power(call: Call) -> Value:
    exponent = call.args[1]
    if isinstance(exponent, Tensor):
        extent = value.extent if is_constant(value := call.of(exponent)) else None
        exponent = extent and extent[0]
    return _entrywise(call, power(exponent))


def _chosen(call: Call) -> Value:
    """Draw a choice between two values, entry by entry."""
    given = call.args[1:3] if call.name == "aten::where" else (call.args[0], call.arg(2, "value"))
    mask = call.args[0 if call.name == "aten::where" else 1]
    values = [*map(call.of, given), call.of(mask)]
    return call.draw.entrywise(call.what, values, call.shape, call.floating, "masked by", "where")


def _triangle(call: Call) -> Value:
    return call.draw.masked(call.what, call.of(call.args[0]), call.shape)


def _scatter(call: Call) -> Value:
    """Draw an operation that writes values into a tensor, at indices or by a mask."""
    source, placed = call.args[_SOURCES.get(call.name, -1)], _moves.placed(call)
    is_sum = {
        "aten::index_put": call.arg(3, "accumulate", False) is True,
        "aten::put": call.arg(3, "accumulate", False) is True,
        "aten::scatter_reduce": call.arg(4, "reduce") == "sum"
        and call.kwargs.get("include_self", True),
    }.get(call.name, call.name in ("aten::index_add", "aten::scatter_add"))
    draw, whole, update = call.draw, call.of(call.args[0]), call.of(source)
    if placed is not None and not is_sum:
        return draw.scatter(call.what, whole, *placed[:2], call.shape, placed[2])
    if placed is not None:
        return draw.scatter_add(call.what, whole, placed[0], [placed[1]], call.shape, placed[2])
    if is_sum:
        rest = [v for v in call.values if v is not whole and v is not update]
        return draw.scatter_add(call.what, whole, update, rest, call.shape)
    return result(call, "scatter", [whole, update])


def _attention(call: Call) -> Value:
    return result(call, "attention", [call.of(arg) for arg in call.args[:3]])


def _sum(call: Call, what: str = "") -> Value:
    value, axes = call.of(call.args[0]), call.arg(1, "dim")
    rank = len(value.shape or ())
    if not isinstance(axes, (list, tuple)):  # along all
        if not isinstance(value, Made):
            return result(call, what)
        axes = []
    axes = sorted(axis_of(axis, rank) for axis in axes) or range(rank)
    name = what or call.what
    return call.draw.sum(name, value, tuple(axes), call.shape, name.startswith("mean"))


def _extreme(call: Call) -> Value:
    value, axes = call.of(call.args[0]), call.arg(1, "dim")
    rank = len(value.shape or ())
    own = axes if isinstance(axes, (list, tuple)) else [] if axes is None else [axes]
    along = [axis_of(axis, rank) for axis in own] or [*range(rank)]
    return call.draw.extreme(call.what, value, along, call.shape, "pool")


def _cumsum(call: Call) -> Value:
    value, axis = call.of(call.args[0]), axis_of(call.arg(1, "dim"), len(call.shape))
    return call.draw.cumsum(call.what, value, axis, call.shape)


def _var_mean(call: Call) -> list[Value]:
    return [result(call, "var"), _sum(call, "mean")]


def _glu(call: Call) -> Value:
    value, draw = call.of(call.args[0]), call.draw
    axis = axis_of(call.arg(1, "dim", -1), len(call.shape))
    a, b = draw.split("split", value, axis, [call.shape[axis]] * 2)
    return draw.multiply("glu", a, draw.entrywise("sigmoid", [b], call.shape), call.shape)


def _normed(call: Call) -> Value:
    """Draw a weight norm."""
    values = [call.of(arg) for arg in call.args[:2]]
    return call.draw.entrywise("weight_norm", values, call.shape, True, "normalised with")


def _rounded(call: Call) -> Value:
    """Draw a fake quantisation, which only rounds a weight."""
    value = call.of(call.args[0])
    return value if isinstance(value, Made) else _entrywise(call)


def _by_first(call: Call) -> Value:
    """Draw a derivative, which vanishes with the gradient that it is given."""
    return other(call, "by_first")


def _spectrum(call: Call) -> list[Value]:
    value, draw = call.of(call.args[0]), call.draw
    return [draw.spectrum(call.what, value, shape_of(t), is_floating(t)) for t in call.results]


def _solve(call: Call) -> list[Value]:
    """Draw a solution, and the factors of its matrix, which do not vanish with it."""
    words = ["solve", *["basis"] * (len(call.results) - 1)]
    pairs = zip(call.results, words, strict=True)
    return [
        call.draw.other(call.what, call.values, shape_of(out), is_floating(out), word)
        for out, word in pairs
    ]


# The table --------------------------------------------------------------------------------------


def _aten(handler: Handler, names: str) -> dict[str, Handler]:
    return {f"aten::{name}": handler for name in names.split()}


_LETTERS = {
    "aten::mm": "ti,io->to",
    "aten::mv": "ti,i->t",
    "aten::dot": "i,i->",
    "aten::bmm": "bti,bio->bto",
}
_SUMS = {
    **dict.fromkeys(("aten::addmm", "aten::_sparse_addmm"), ("mm", "ti,io->to")),
    "aten::addmv": ("mv", "ti,i->t"),
    "aten::baddbmm": ("bmm", "bti,bio->bto"),
    "aten::addbmm": ("bmm", "bti,bio->to"),
    "aten::addr": ("outer", "t,o->to"),
}
ATTENTIONS = {"flex_attention", "flex_attention_backward"}
"""The known operations that take functions as arguments."""

_BOUNDS = ("min", "max")
_SOURCES = {
    name: place
    for place, names in {
        1: "diagonal_scatter as_strided_scatter",
        2: "index_put put",
        3: "scatter_reduce index_reduce",
    }.items()
    for name in names_in([names])
}
"""The position of the values that are written, if it is not the last."""

_PADS = " ".join(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
MOVES: dict[str, Handler] = {
    **dict.fromkeys(FRESH, fresh),
    **_aten(_moves.reshape, "view _unsafe_view _reshape_alias reshape unsqueeze squeeze"),
    **_aten(_moves.transpose, "t transpose permute numpy_T mT swapaxes"),
    **_aten(_moves.crop, "slice"),
    **_aten(_moves.select, "select"),
    **_aten(_moves.split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk"),
    **_aten(_moves.unbind, "unbind"),
    **_aten(_moves.restride, "as_strided"),
    **_aten(_moves.lose, "diagonal unfold real imag _conj _neg_view"),
    **_aten(_moves.expand, "expand"),
    **_aten(_moves.flip, "flip"),
    **_aten(_moves.rot90, "rot90"),
    **_aten(_moves.roll, "roll"),
    **_aten(_moves.repeat, "repeat"),
    **_aten(_moves.cast, "clone _to_copy lift_fresh lift alias contiguous"),
    **_aten(_moves.stop, "detach"),
    **_aten(_moves.copy, "copy"),
    **_aten(_moves.cat, "cat"),
    **_aten(_moves.embedding, "embedding"),
    **_aten(_moves.bag, "_embedding_bag _embedding_bag_forward_only"),
    **_aten(_moves.index, "index"),
    **_aten(_moves.along, "index_select gather"),
    **_aten(_moves.take, "take"),
}
"""Operations on any dtype: moves, lookups and new tensors."""

TABLE: dict[str, Handler] = {
    **_aten(_moves.stack, "stack"),
    **_aten(_moves.block_diagonal, "block_diag"),
    **_aten(_moves.fold, "col2im"),
    **_aten(_moves.unfold, "im2col"),
    **_aten(_moves.pad, f"constant_pad_nd {_PADS}"),
    **_aten(_dense, "mm mv dot bmm"),
    **dict.fromkeys(_SUMS, _dense_sum),
    **_aten(_linear, "linear"),
    **_aten(_grouped, "_grouped_mm"),
    "transformers::grouped_mm_fallback": _grouped,
    **_aten(_convolution, "convolution"),
    **_aten(_add, "add"),
    **_aten(_adds, "_foreach_add"),
    **_aten(_add_product, "addcmul addcdiv"),
    **_aten(_multiply, "mul"),
    **_aten(_subtract, "sub rsub"),
    **_aten(_between, "lerp"),
    **_aten(_scale, "div neg"),
    **_aten(_clamp, "clamp"),
    **_aten(_bounded, "hardtanh threshold"),
    **_aten(_power, "pow"),
    **_aten(_chosen, "where masked_fill"),
    **_aten(_triangle, "tril triu"),
    **_aten(
        _scatter,
        "index_add index_put index_copy index_fill scatter scatter_add scatter_reduce "
        "diagonal_scatter as_strided_scatter masked_scatter index_reduce put",
    ),
    **_aten(_moves.overwrite, "slice_scatter select_scatter"),
    **dict.fromkeys(ATTENTIONS, _attention),
    **_aten(
        _attention,
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math scaled_dot_product_attention",
    ),
    **_aten(_sum, "sum mean nansum"),
    **_aten(_extreme, "amax amin"),
    **_aten(_cumsum, "cumsum"),
    **_aten(_var_mean, "var_mean"),
    **_aten(_glu, "glu"),
    **_aten(_spectrum, "_linalg_svd _linalg_eigh linalg_eig _linalg_eigvals"),
    **_aten(_solve, "_linalg_solve_ex linalg_solve_triangular"),
    **_aten(
        _by_first,
        "avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward elu_backward "
        "gelu_backward hardsigmoid_backward hardswish_backward hardtanh_backward "
        "leaky_relu_backward log_sigmoid_backward _log_softmax_backward_data "
        "max_pool2d_with_indices_backward max_pool3d_with_indices_backward mish_backward "
        "native_batch_norm_backward native_group_norm_backward native_layer_norm_backward "
        "sigmoid_backward silu_backward _softmax_backward_data softplus_backward tanh_backward "
        "threshold_backward upsample_bilinear2d_backward upsample_nearest2d_backward",
    ),
    **_aten(_normed, "_weight_norm_interface _weight_norm"),
    **_aten(
        _rounded,
        "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
        "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    ),
}
"""Operations that compute with real or complex numbers."""
