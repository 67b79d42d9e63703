"""JAX's primitives, each as one call of `Drawing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from idinit_ref.core.layout import SPATIAL
from idinit_ref.tracing import (
    Drawing,
    Fact,
    Made,
    Signal,
    Value,
    clamped,
    is_constant,
    is_number,
    power,
)

ENTRYWISE = {
    "abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clz", "complex", "conj", "cos", "cosh", "digamma", "eq",
    "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igammac", "imag", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt",
    "lt_to", "max", "min", "ne", "nextafter", "not", "or", "polygamma", "population_count", "real",
    "add", "add_any", "clamp", "div", "integer_pow", "mul", "neg", "pow", "select_n", "sub",
    "regularized_incomplete_beta", "rem", "round", "rsqrt", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "xor", "zeta",
}  # fmt: skip
PLAIN = {
    "logistic": "sigmoid", "bessel_i0e": "i0e", "approx_top_k": "topk", "lu": "",
    "bitcast_convert_type": "move", "dot_product_attention_fwd_wrapper": "attention",
}  # fmt: skip
ALONE = {
    **dict.fromkeys(
        ("all_gather", "all_gather_invariant", "all_to_all", "ppermute", "pbroadcast"), "move"),
    "pmax": "pool", "pmin": "pool", "reduce_scatter": "sum",
}  # fmt: skip
SPREAD = {"broadcast_in_dim", "reshape", "squeeze", "convert_element_type"}
REDUCES = {
    **{f"{kind}_{what}": "pool" for kind in ("reduce", "reduce_window") for what in
       ("max", "min", "sum")}, "reduce_and": "", "reduce_or": "", "reduce_xor": "",
    **{f"scatter-{what}": "scatter" for what in ("add", "max", "min")},
    "scatter-mul": "select", "argmax": "", "argmin": "", "reduce": "reduce",
    "reduce_window": "reduce", "cumlogsumexp": "logcumsumexp", "cummax": "cummax",
    "cummin": "cummin", "cumprod": "cumprod",
    "fft": "fft", "iota": "", "pad": "pad", "reduce_prod": "prod",
    "select_and_gather_add": "select", "select_and_scatter_add": "unpool", "top_k": "topk",
}  # fmt: skip


def shape_of(var: Any) -> tuple[int, ...]:
    """Return the shape of a variable."""
    return tuple(getattr(var.aval, "shape", ()))


def _shape(eqn: JaxprEqn) -> tuple[int, ...]:
    """Return the shape of an equation's first result."""
    return shape_of(eqn.outvars[0])


def is_floating(dtype: Any) -> bool:
    """Whether a dtype holds real or complex numbers."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def floats(var: Any) -> bool:
    """Whether a variable holds real or complex numbers; a token, say, holds none."""
    return hasattr(var.aval, "dtype") and is_floating(var.aval.dtype)


# Numbers that are known, as indices are ----------------------------------------------------------


def numbers_of(eqn: JaxprEqn, given: list[Value]) -> Any:
    """Return the numbers that an operation on constants gives; None if they are unknown."""
    compute = _NUMBERS.get(eqn.primitive.name)
    if compute is None or len(eqn.outvars) != 1:  # a callback may have no results
        return None
    (var,) = eqn.outvars
    if not _is_plain(var) or prod(shape_of(var)) > _MOST:
        return None
    arrays = [
        value.numbers.astype(_kind(source))
        for value, source in zip(given, eqn.invars, strict=True)
        if isinstance(value, Made) and value.numbers is not None and _is_plain(source)
    ]
    if len(arrays) < len(given):
        return None
    with np.errstate(all="ignore"):
        found = np.broadcast_to(compute(eqn.params, *arrays), shape_of(var))
    return found.astype(_kind(var)).astype(float if floats(var) else None)


def _kind(var: Any) -> Any:
    """Return the dtype of a variable; that of any object if it has none."""
    return getattr(var.aval, "dtype", object)


def _is_plain(var: Any) -> bool:
    """Whether a variable holds real numbers or bools."""
    plain = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(_kind(var), kind) for kind in plain)


def _spread(shape: Sequence[int], places: Sequence[int], x: Any) -> Any:
    sizes = [1] * len(shape)
    for place, size in zip(places, x.shape, strict=True):
        sizes[place] = size
    return x.reshape(sizes)


def _divided(of: Any, a: Any, b: Any) -> Any:
    """Return a quotient; of integers, rounded towards 0."""
    if np.issubdtype(a.dtype, np.integer):
        return np.where(b, (a - np.fmod(a, b)) // np.where(b, b, 1), 0)
    return a / b


def _by(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule of an operation without parameters."""
    return lambda of, *arrays: function(*arrays)


def _along(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the rule of an operation along the axes that one of its parameters names."""
    return lambda of, x: function(x, axis=of[name])


_MOST = 1 << 16  # the most numbers that are computed
_NUMBERS: dict[str, Callable[..., Any]] = {
    **{name: _by(getattr(np, alias)) for name, alias in {
        "add": "add", "sub": "subtract", "mul": "multiply", "rem": "fmod", "neg": "negative",
        "sign": "sign", "abs": "abs", "floor": "floor", "ceil": "ceil", "max": "maximum",
        "min": "minimum", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
        "gt": "greater", "ge": "greater_equal", "and": "bitwise_and", "or": "bitwise_or",
        "not": "invert", "sqrt": "sqrt", "square": "square",
    }.items()},
    **{f"reduce_{name}": _along(getattr(np, name), "axes") for name in ("sum", "max", "min")},
    "iota": lambda of: _spread(of["shape"], [of["dimension"]], np.arange(
        of["shape"][of["dimension"]])),
    "div": _divided,
    "integer_pow": lambda of, x: x ** of["y"] if of["y"] >= 0 else 1 / x ** -of["y"],
    "clamp": lambda of, low, x, high: np.minimum(np.maximum(x, low), high),
    "cumsum": lambda of, x: np.flip(np.cumsum(np.flip(x, of["axis"]), of["axis"]), of["axis"])
    if of["reverse"] else np.cumsum(x, of["axis"]),
    "select_n": lambda of, at, *cases: np.choose(at.astype(int), cases),
    "rev": _along(np.flip, "dimensions"),
    "concatenate": lambda of, *xs: np.concatenate(xs, of["dimension"]),
    "broadcast_in_dim": lambda of, x: _spread(of["shape"], of["broadcast_dimensions"], x),
    "squeeze": _along(np.squeeze, "dimensions"),
    "expand_dims": _along(np.expand_dims, "dimensions"),
    "transpose": lambda of, x: np.transpose(x, of["permutation"]),
    "slice": lambda of, x: x[tuple(map(slice, of["start_indices"], of["limit_indices"],
                                       of["strides"] or [1] * x.ndim))],
    "reshape": lambda of, x: x.reshape(of["new_sizes"]),
    "convert_element_type": lambda of, x: x,
    "copy": lambda of, x: x,
}  # fmt: skip


# Operations that move entries -------------------------------------------------------------------


def _reshape(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    value, order = given[0], eqn.params.get("dimensions")
    if order and eqn.primitive.name == "reshape":
        value = draw.transpose("reshape", value, order)
    return draw.reshape(eqn.primitive.name, value, _shape(eqn))


def _slice(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    params = eqn.params
    steps = params["strides"] or (1,) * len(params["start_indices"])
    spans = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return draw.part("slice", given[0], list(spans))


def _dynamic_slice(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a slice at a computed start: often it takes one layer of a stack."""
    old, var = shape_of(eqn.invars[0]), eqn.outvars[0]
    new = shape_of(var)
    first = _start(given[1:], old, new)
    if first is not None:
        spans = [(a, a + size, 1) for a, size in zip(first, new, strict=True)]
        return draw.part("dynamic_slice", given[0], spans)
    fits = all(size in (1, full) for size, full in zip(new, old, strict=True))
    if not fits:
        return draw.lookup("dynamic_slice", given, new, None, floats(var))
    kept = [axis for axis, full in enumerate(old) if new[axis] == full]
    row = draw.lookup("dynamic_slice", given, tuple(old[a] for a in kept), kept, floats(var))
    return draw.reshape("dynamic_slice", row, new)


def _start(given: list[Value], old: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """Return the known start of a slice, moved so that it fits; None if it is not known."""
    at = [value.integers if isinstance(value, Made) else None for value in given]
    known = [int(index) for index in at if index is not None]
    if len(known) < len(old):
        return None
    return [min(max(a, 0), n - m) for a, n, m in zip(known, old, new, strict=True)]


def _write(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a write over a slice with a start that may be computed; over zeros it is a padding."""
    whole, part, shape = *map(shape_of, eqn.invars[:2]), _shape(eqn)
    low = _start(given[2:], whole, part)
    if low is None:
        return draw.result("dynamic_update_slice", given, shape, floats(eqn.outvars[0]), "scatter")
    return draw.write("dynamic_update_slice", given[0], given[1], low, shape)


def _scatter(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a write at indices, as of x.at[:, ::2].set(y)."""
    (whole, places, part), at = given, _axes(eqn)
    return draw.scatter("scatter", whole, part, places, _shape(eqn), at)


def _axes(eqn: JaxprEqn) -> tuple[Sequence[int], Sequence[int | None]]:
    """Return the axes of a scatter's indices, and for every axis that of the update, if any."""
    numbers, rank = eqn.params["dimension_numbers"], len(_shape(eqn))
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    rest = [axis for axis in range(rank) if axis not in gone]
    windows: list[int | None] = [None] * rank
    for axis, by in zip(rest, numbers.update_window_dims, strict=True):
        windows[axis] = by
    return numbers.scatter_dims_to_operand_dims, windows


def _gather(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    old, sizes, var = shape_of(eqn.invars[0]), eqn.params["slice_sizes"], eqn.outvars[0]
    numbers, new = eqn.params["dimension_numbers"], shape_of(var)
    fits = all(size in (1, full) for size, full in zip(sizes, old, strict=True))
    if not fits or bool(getattr(numbers, "operand_batching_dims", None)):
        return draw.lookup("gather", given, new, None, floats(var))
    kept: list[int | None] = [None] * len(new)
    rest = [axis for axis in range(len(old)) if axis not in numbers.collapsed_slice_dims]
    for place, axis in zip(numbers.offset_dims, rest, strict=True):
        kept[place] = axis if sizes[axis] == old[axis] else None
    return draw.lookup("gather", given, new, kept, floats(var), numbers.start_index_map)


def _concatenate(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (var,) = eqn.outvars
    axis = eqn.params["dimension"]
    return draw.join("concatenate", given, axis, shape_of(var), floats(var))


def _pad(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    config = [tuple(map(int, axis)) for axis in eqn.params["padding_config"]]
    low, gaps = [axis[0] for axis in config], [axis[2] for axis in config]
    return draw.pad("pad", given[0], low, _shape(eqn), gaps, given[1:])


# Sums and products ------------------------------------------------------------------------------


def _scatter_add(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a sum or difference at some places; with an update of the operand's shape of all."""
    whole, _, update = given
    window = eqn.params["dimension_numbers"].update_window_dims
    shape = shape_of(eqn.invars[0])
    is_full = shape == shape_of(eqn.invars[2]) and len(window) == len(shape)
    if is_full and isinstance(whole, Signal) and isinstance(update, Signal):
        return draw.add("add", whole, update, shape)
    return draw.scatter_add("scatter-add", whole, update, given[1:2], shape, _axes(eqn))


def number_of(var: Any) -> float | None:
    """Return the value of a literal that is a real number, else None."""
    is_real = isinstance(var, Literal) and not shape_of(var) and np.isrealobj(var.val)
    return float(var.val) if is_real else None


def _function(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a power, a clamp or a select; its numbers decide whether it is 0 at 0."""
    kind, (var,) = eqn.primitive.name, eqn.outvars
    word: str | Fact
    if kind == "integer_pow":
        word, given = power(eqn.params["y"]), [*given, draw.constant((), True, eqn.params["y"])]
    elif kind == "pow":
        extent = given[1].extent if is_constant(given[1]) else None
        word = power(extent and extent[0])
    elif kind == "clamp":
        low, value, high = given
        word, given = clamped(low, high, value), [value, low, high]
    else:
        given = [*given[1:], given[0]]
        word = Fact("select", "sum", len(given) - 1)
    doing = "masked by" if kind == "select_n" else ""
    return draw.entrywise(kind, given, shape_of(var), True, doing, word)


def _scale(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a quotient or a negation."""
    kind, shape = eqn.primitive.name, _shape(eqn)
    if is_number(given[0]):  # a number divided by a value
        return draw.entrywise(kind, given, shape, doing="divided by")
    return draw.scale(kind, given, shape, "divided by" if kind == "div" else "", kind)


def _dot(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Draw a product of matrices, stacked or not."""
    (var,), numbers = eqn.outvars, eqn.params.get("dimension_numbers")
    stacks: list[int] = []
    if numbers is None:
        ragged = eqn.params["ragged_dot_dimension_numbers"]
        numbers, stacks = ragged.dot_dimension_numbers, list(ragged.rhs_group_dimensions)
    (summed, shared), new = numbers, count()
    sides: list[list[int | None]] = [[None] * len(shape_of(v)) for v in eqn.invars[:2]]
    for pair in (*zip(*summed, strict=True), *zip(*shared, strict=True)):
        sides[0][pair[0]] = sides[1][pair[1]] = next(new)
    free = [(side, axis) for side in (0, 1) for axis, k in enumerate(sides[side]) if k is None]
    for side, axis in free:
        sides[side][axis] = next(new)
    grouped = [sides[1][axis] for axis in stacks]
    out = [sides[0][axis] for axis in shared[0]] + [sides[side][axis] for side, axis in free]
    out = [label for label in out if label not in grouped]
    if len(out) != len(shape_of(var)):
        return draw.other(eqn.primitive.name, given, shape_of(var))
    return draw.product("product", given[:2], sides, out, shape_of(var), grouped)


def _convolution(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    params, size, (var,) = eqn.params, shape_of(eqn.invars[1]), eqn.outvars
    numbers = params["dimension_numbers"]
    out, into, *space = numbers.rhs_spec
    letters = ["?"] * len(size)
    letters[out], letters[into] = "O", "I"
    is_known = len(space) <= len(SPATIAL) and params["batch_group_count"] == 1
    for at, letter in zip(space, SPATIAL[len(SPATIAL) - len(space) :], strict=False):
        letters[at] = letter
    groups = params["feature_group_count"]
    return draw.convolution(
        "convolution",
        given[0],
        given[1],
        "".join(letters) if is_known else "",
        shape_of(var),
        channels=numbers.out_spec[1],
        space=numbers.out_spec[2:],
        before=numbers.lhs_spec[2:],
        left=[low for low, _ in params["padding"]],
        dilation=params["rhs_dilation"],
        spread=params["lhs_dilation"],
        sized=max(params["window_strides"], default=1) > 1,
        options={"groups": groups} if groups > 1 else {},
    )


# Several results --------------------------------------------------------------------------------


def split(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    return draw.split("split", given[0], eqn.params["axis"], list(map(int, eqn.params["sizes"])))


def unstack(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    return draw.unstack("unstack", given[0], eqn.params["axis"], len(eqn.outvars))


_Draw = Callable[[Drawing, JaxprEqn, list[Value]], Value]
MOVES: dict[str, _Draw] = {
    "concatenate": _concatenate,
    "stack": lambda draw, eqn, given: draw.stack("stack", given, eqn.params["axis"], _shape(eqn)),
    "transpose": lambda draw, eqn, given: draw.transpose(
        "transpose", given[0], eqn.params["permutation"]
    ),
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": lambda draw, eqn, given: draw.broadcast(
        "broadcast_in_dim", given[0], _shape(eqn), eqn.params["broadcast_dimensions"]
    ),
    "tile": lambda draw, eqn, given: draw.tile(
        "tile", given[0], _shape(eqn), floats(eqn.outvars[0])
    ),
    "rev": lambda draw, eqn, given: draw.flip("rev", given[0], eqn.params["dimensions"]),
    "slice": _slice,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _write,
    "scatter": _scatter,
}
"""Operations that move entries, of any dtype."""

TABLE: dict[str, _Draw] = {
    "add": lambda draw, eqn, given: draw.add("add", given[0], given[1], _shape(eqn)),
    "add_any": lambda draw, eqn, given: draw.add("add", given[0], given[1], _shape(eqn)),
    "sub": lambda draw, eqn, given: draw.subtract("sub", given[0], given[1], _shape(eqn)),
    "mul": lambda draw, eqn, given: draw.multiply("mul", given[0], given[1], _shape(eqn)),
    "reduce_sum": lambda draw, eqn, given: draw.sum(
        "reduce_sum", given[0], eqn.params["axes"], _shape(eqn)
    ),
    **dict.fromkeys(
        ("reduce_max", "reduce_min"),
        lambda draw, eqn, given: draw.extreme(
            eqn.primitive.name[7:], given[0], eqn.params["axes"], _shape(eqn), "pool"
        ),
    ),
    "cumsum": lambda draw, eqn, given: draw.cumsum(
        "cumsum", given[0], eqn.params["axis"], _shape(eqn), eqn.params["reverse"]
    ),
    **dict.fromkeys(("integer_pow", "pow", "clamp", "select_n"), _function),
    **dict.fromkeys(("div", "neg"), _scale),
    "scatter-add": _scatter_add,
    "scatter-sub": _scatter_add,
    "pad": _pad,
    "dot_general": _dot,
    "ragged_dot_general": _dot,
    "conv_general_dilated": _convolution,
}
"""Operations that compute with real or complex numbers."""
