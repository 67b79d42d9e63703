"""A walk through a jaxpr: what each of its operations is, as a call of the drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from idinit_ref import Graph
from idinit_ref.core.layout import SPATIAL
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import (
    Drawing,
    Made,
    Parameter,
    Signal,
    Value,
    clamped,
    is_constant,
    is_number,
    power,
)

__all__ = ["graph_of", "is_floating"]

_SAME = {
    "convert_element_type", "copy", "copy_p", "reduce_precision", "name", "sharding_constraint",
    "reshard", "mesh_cast", "device_put", "optimization_barrier", "pvary", "stop_gradient",
    "to_edtype", "from_edtype", "tie", "psum", "psum2", "psum_invariant",
}  # fmt: skip
_ENTRYWISE = {
    "abs", "acos", "acosh", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clz", "complex", "conj", "cos", "cosh", "digamma", "eq",
    "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igammac", "imag", "is_finite", "le", "le_to", "lgamma", "log", "log1p", "logistic", "lt",
    "lt_to", "max", "min", "ne", "nextafter", "not", "or", "polygamma", "population_count", "real",
    "regularized_incomplete_beta", "rem", "round", "rsqrt", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh", "xor", "zeta",
}  # fmt: skip
_PLAIN = {"logistic": "sigmoid", "bessel_i0e": "i0e"}
_SPREAD = {"broadcast_in_dim", "reshape", "squeeze", "convert_element_type"}
_REDUCES = {
    **{f"{kind}_{what}": "pool" for kind in ("reduce", "reduce_window") for what in
       ("and", "max", "min", "or", "sum", "xor")},
    **dict.fromkeys(("scatter-add", "scatter-mul", "scatter_max", "scatter_min"), "scatter"),
    "argmax": "", "argmin": "", "cumlogsumexp": "logcumsumexp", "cummax": "cummax",
    "cummin": "cummin", "cumprod": "cumprod", "cumsum": "cumsum", "dynamic_update_slice": "scatter",
    "fft": "fft", "iota": "", "reduce_prod": "prod", "scatter": "scatter",
    "select_and_gather_add": "", "select_and_scatter_add": "", "sort": "sort", "top_k": "topk",
}  # fmt: skip
_OPAQUE = {
    "pallas_call", "ffi_call", "pure_callback", "io_callback", "custom_partitioning",
    "tpu_custom_call",
}  # fmt: skip
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def shape_of(var: Any) -> tuple[int, ...]:
    """Return the shape of a variable."""
    return tuple(getattr(var.aval, "shape", ()))


def is_floating(dtype: Any) -> bool:
    """Whether a dtype holds real or complex numbers."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _floats(var: Any) -> bool:
    """Whether a variable holds real or complex numbers; a token, say, holds none."""
    return hasattr(var.aval, "dtype") and is_floating(var.aval.dtype)


def graph_of(jaxpr: ClosedJaxpr, arguments: Sequence[Parameter | str]) -> Graph:
    """Write the graph of a jaxpr.

    Parameters
    ----------
    jaxpr : jax.extend.core.ClosedJaxpr
        Of the model's computation.
    arguments : sequence of Parameter or str
        What each argument of it is: a parameter, an input of that name, or "" for a constant.

    Returns
    -------
    idinit_ref.Graph
        The parameters first.

    Raises
    ------
    GraphError
        If an operation takes a parameter where nothing can look into it.
    """
    given = [argument for argument in arguments if isinstance(argument, Parameter)]
    draw = Drawing(given, "jax.lax.stop_gradient")
    values: list[Value] = []
    for argument, var in zip(arguments, jaxpr.jaxpr.invars, strict=True):
        if isinstance(argument, Parameter):
            values.append(draw.parameter(argument.name))
        elif not argument:
            values.append(draw.constant(shape_of(var)))
        else:
            values.append(draw.input(argument, shape_of(var), _floats(var)))
    return draw.graph(inside(draw, jaxpr, values))


def inside(draw: Drawing, inner: Jaxpr | ClosedJaxpr, given: Sequence[Value]) -> list[Value]:
    """Walk a jaxpr, its arguments given, and return its results."""
    jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    known: dict[Any, Value] = {var: draw.constant(shape_of(var)) for var in jaxpr.constvars}
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def read(var: Any) -> Value:
        if not isinstance(var, Literal):
            return known[var]
        return draw.constant(shape_of(var), True, _number(var))

    for eqn in jaxpr.eqns:
        values = [read(var) for var in eqn.invars]
        if all(map(is_constant, values)):
            first = values[0] if values and eqn.primitive.name in _SPREAD else draw.constant(None)
            one, number = is_number(first), first.value  # type: ignore[union-attr]  # a constant
            found: Sequence[Value] = [
                draw.constant(shape_of(var), one, number) for var in eqn.outvars
            ]
        else:
            found = step(draw, eqn, values)
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def step(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk one equation."""
    kind, (var, *more) = eqn.primitive.name, (*eqn.outvars, None)
    if kind in _TABLE and more == [None]:
        return [_TABLE[kind](draw, eqn, given)]
    if kind in _SEVERAL:
        return _SEVERAL[kind](draw, eqn, given)
    if kind in _SAME:
        return [
            _same(draw, eqn, value, source, var)
            for value, source, var in zip(given, eqn.invars, eqn.outvars, strict=True)
        ]
    if kind in _ENTRYWISE:
        word = _PLAIN.get(kind, kind)
        return [draw.entrywise(kind, given, shape_of(var), _floats(var), "", word)]
    for key in _BODIES if kind not in _OPAQUE else ():
        if isinstance(eqn.params.get(key), (Jaxpr, ClosedJaxpr)):
            return inside(draw, eqn.params[key], given)
    if kind in _OPAQUE:
        _refuse(eqn, given)
    if kind not in _REDUCES:
        return [draw.other(kind, given, shape_of(var), _floats(var)) for var in eqn.outvars]
    if kind.startswith("scatter"):
        given = [given[0], given[2], given[1]]
    return [
        draw.result(kind, given, shape_of(var), _floats(var), _REDUCES[kind]) for var in eqn.outvars
    ]


def _refuse(eqn: JaxprEqn, given: Sequence[Value]) -> None:
    """Raise if a matrix goes where nothing can look."""
    parts = [part for value in given if isinstance(value, Made) for part in value.parts]
    names = [part.name for part in parts if part.view is None or part.view.rank > 1]
    if names:
        raise GraphError(
            message(
                "operation",
                eqn.primitive.name,
                f"it takes the parameters {', '.join(names)}, and what it does with them "
                "cannot be seen from outside",
                "trace the model with plain JAX operations in its place",
            )
        )


# What only moves or rounds ----------------------------------------------------------------------


def _same(draw: Drawing, eqn: JaxprEqn, value: Value, source: Any, var: Any) -> Value:
    """Walk what changes no number, or only rounds it."""
    kind = eqn.primitive.name
    if kind == "stop_gradient":
        return draw.stop(kind, value, _floats(var))
    if kind == "convert_element_type":
        kind = "convert_element_type" if isinstance(value, Signal) else "cast"
        return draw.cast(kind, value, _floats(var), source.aval.dtype == jnp.bool_)
    return value


def _reshape(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    value, order = given[0], eqn.params.get("dimensions")
    if order and eqn.primitive.name == "reshape":
        value = draw.transpose("reshape", value, order)
    return draw.reshape(eqn.primitive.name, value, shape_of(eqn.outvars[0]))


def _slice(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    params = eqn.params
    steps = params["strides"] or (1,) * len(params["start_indices"])
    spans = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return draw.part("slice", given[0], list(spans))


def _dynamic_slice(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Walk a slice whose place is computed: often it takes one layer of a stack."""
    old, var = shape_of(eqn.invars[0]), eqn.outvars[0]
    new = shape_of(var)
    at = [v.val for v in eqn.invars[1:] if isinstance(v, Literal)]
    if len(at) == len(old):
        first = [min(max(int(a), 0), n - m) for a, n, m in zip(at, old, new, strict=True)]
        spans = [(a, a + size, 1) for a, size in zip(first, new, strict=True)]
        return draw.part("dynamic_slice", given[0], spans)
    fits = all(size in (1, full) for size, full in zip(new, old, strict=True))
    kept = [axis if new[axis] == full else None for axis, full in enumerate(old)] if fits else None
    return draw.lookup("dynamic_slice", given, new, kept, _floats(var))


def _gather(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    old, sizes, var = shape_of(eqn.invars[0]), eqn.params["slice_sizes"], eqn.outvars[0]
    numbers, new = eqn.params["dimension_numbers"], shape_of(var)
    fits = all(size in (1, full) for size, full in zip(sizes, old, strict=True))
    if not fits or bool(getattr(numbers, "operand_batching_dims", None)):
        return draw.lookup("gather", given, new, None, _floats(var))
    kept: list[int | None] = [None] * len(new)
    rest = [axis for axis in range(len(old)) if axis not in numbers.collapsed_slice_dims]
    for place, axis in zip(numbers.offset_dims, rest, strict=True):
        kept[place] = axis if sizes[axis] == old[axis] else None
    return draw.lookup("gather", given, new, kept, _floats(var))


def _concatenate(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (var,) = eqn.outvars
    axis = eqn.params["dimension"]
    return draw.join("concatenate", given, axis, shape_of(var), _floats(var))


def _pad(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    config = [tuple(map(int, axis)) for axis in eqn.params["padding_config"]]
    (var,) = eqn.outvars
    if not _floats(var):
        return draw.result("pad", given, shape_of(var), False)
    low, gaps = [axis[0] for axis in config], [axis[2] for axis in config]
    return draw.pad("pad", given[0], low, shape_of(var), gaps, given[1:])


# Sums and products ------------------------------------------------------------------------------


def _add(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (a, b), (var,) = given, eqn.outvars
    if not _floats(var):
        return draw.result("add", given, shape_of(var), False)
    return draw.add("add", a, b, shape_of(var))


def _scatter_add(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Walk a scatter-add: of one update as large as what it is added to, it is a sum."""
    whole, _, update = given
    window = eqn.params["dimension_numbers"].update_window_dims
    shape, (var,) = shape_of(eqn.invars[0]), eqn.outvars
    is_full = shape == shape_of(eqn.invars[2]) and len(window) == len(shape)
    if is_full and isinstance(whole, Signal) and isinstance(update, Signal):
        return draw.add("add", whole, update, shape)
    return draw.result("scatter-add", given[::2] + given[1:2], shape, _floats(var), "scatter")


def _subtract(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (var,) = eqn.outvars
    if not _floats(var):
        return draw.entrywise("sub", given, shape_of(var), False, "subtracted with")
    return draw.subtract("sub", given[0], given[1], shape_of(var))


def _number(var: Any) -> float | None:
    """Return a real number that is written in the jaxpr."""
    is_real = isinstance(var, Literal) and not shape_of(var) and np.isrealobj(var.val)
    return float(var.val) if is_real else None


def _function(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Walk a power, a clamp, or a choice, of which the numbers count."""
    kind, (var,), word = eqn.primitive.name, eqn.outvars, "where"
    if kind == "integer_pow":
        word = power(eqn.params["y"])
    elif kind == "pow":
        base, exponent = map(_number, eqn.invars)
        word = power(exponent) if base is None and exponent is not None else "pow"
    elif kind == "clamp":
        word = clamped(_number(eqn.invars[0]), _number(eqn.invars[2]))
    else:
        given = [*given[1:], given[0]]
    doing = "masked by" if word == "where" else ""
    return draw.entrywise(kind, given, shape_of(var), _floats(var), doing, word)


def _multiply(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (a, b), (var,) = given, eqn.outvars
    if not _floats(var):
        return draw.entrywise("mul", given, shape_of(var), False, "multiplied by")
    return draw.multiply("mul", a, b, shape_of(var))


def _scale(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Walk a quotient or a change of sign."""
    kind, (var,) = eqn.primitive.name, eqn.outvars
    if is_number(given[0]) or not _floats(var):  # a number divided by what is given
        return draw.entrywise(kind, given, shape_of(var), _floats(var), "divided by")
    return draw.scale(kind, given, shape_of(var), "divided by" if kind == "div" else "")


def _sum(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    (var,) = eqn.outvars
    if not _floats(var):
        return draw.result("reduce_sum", given, shape_of(var), False)
    return draw.sum("reduce_sum", given[0], eqn.params["axes"], shape_of(var))


def _dot(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Value:
    """Walk a product of matrices, stacked or not."""
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
    if len(out) != len(shape_of(var)) or not _floats(var):
        return draw.other(eqn.primitive.name, given, shape_of(var), _floats(var))
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
        sized=max(params["window_strides"]) > 1,
        options={"groups": groups} if groups > 1 else {},
    )


# Several results --------------------------------------------------------------------------------


def _split(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    return draw.split("split", given[0], eqn.params["axis"], list(map(int, eqn.params["sizes"])))


def _unstack(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    axis, whole = eqn.params["axis"], [(0, size, 1) for size in shape_of(eqn.invars[0])]
    spans = [[*whole[:axis], (at, at + 1, 1), *whole[axis + 1 :]] for at in range(whole[axis][1])]
    return [draw.part("unstack", given[0], span, (axis,)) for span in spans]


def _scan(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk a scan: its body once, for all layers of a stack."""
    few, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body, many = eqn.params["jaxpr"], few + carried

    def one() -> list[Value]:
        pairs = zip(given[many:], body.jaxpr.invars[many:], strict=True)
        return [_restack(draw, value, "one of a stack", var) for value, var in pairs]

    out = _loop(draw, body, given[:few], given[few:many], one)
    pairs = zip(out[carried:], eqn.outvars[carried:], strict=True)
    return [*out[:carried], *(_restack(draw, value, "stack", var) for value, var in pairs)]


def _restack(draw: Drawing, value: Value, name: str, var: Any) -> Value:
    """Return one of a stack, or a stack of such."""
    shape = shape_of(var)
    if isinstance(value, Made) and not value.parts:
        return draw.constant(shape)
    if isinstance(value, Made):
        return value.moved(shape, lambda view: view.take(0) if name != "stack" else None)
    word = "join" if name == "stack" else "select"
    return draw.result(name, [value], shape, isinstance(value, Signal), word)


def _while(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk a while loop: its body once."""
    test, few = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = given[test + few :]
    inside(draw, eqn.params["cond_jaxpr"], [*given[:test], *carry])
    body = eqn.params["body_jaxpr"]
    return _loop(draw, body, given[test : test + few], carry, list)


def _loop(
    draw: Drawing,
    body: ClosedJaxpr,
    fixed: list[Value],
    carry: Sequence[Value | str],
    more: Callable[[], list[Value]],
) -> list[Value]:
    """Walk the body of a loop. What becomes a signal in it is one from the start."""
    variables = body.jaxpr.invars[len(fixed) : len(fixed) + len(carry)]

    def turn() -> list[Value]:
        start = [
            draw.state("loop carry", value, shape_of(var))  # type: ignore[arg-type]  # its two words
            if isinstance(value, str)
            else draw.enter(value)
            for value, var in zip(carry, variables, strict=True)
        ]
        return inside(draw, body, [*fixed, *start, *more()])

    while True:
        mark = draw.mark()
        out = turn()
        draw.back_to(mark)
        pairs = zip(carry, out, strict=False)
        new = [old if isinstance(old, str) else draw.carried(old, value) for old, value in pairs]
        if new == list(carry):
            return turn()
        carry = new


def _cond(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk all branches of a cond."""
    ways = [inside(draw, way, given[1:]) for way in eqn.params["branches"]]
    return [
        draw.either("either", values, shape_of(var), _floats(var))
        for values, var in zip(zip(*ways, strict=True), eqn.outvars, strict=True)
    ]


def _shard_map(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk the body of a shard_map, as the first of the devices runs it."""
    body = eqn.params["jaxpr"]
    parts = []
    for value, var, own in zip(given, eqn.invars, body.invars, strict=True):
        is_whole = shape_of(var) == shape_of(own)
        spans = [(0, size, 1) for size in shape_of(own)]
        parts.append(value if is_whole else draw.part("shard", value, spans))
    out = []
    for value, var, own in zip(inside(draw, body, parts), eqn.outvars, body.outvars, strict=True):
        is_whole = shape_of(var) == shape_of(own)
        out.append(
            value
            if is_whole
            else draw.result("shards", [value], shape_of(var), _floats(var), "join")
        )
    return out


_TABLE: dict[str, Callable[[Drawing, JaxprEqn, list[Value]], Value]] = {
    "add": _add,
    "add_any": _add,
    "mul": _multiply,
    "sub": _subtract,
    **dict.fromkeys(("integer_pow", "pow", "clamp", "select_n"), _function),
    "div": _scale,
    "neg": _scale,
    "reduce_sum": _sum,
    "scatter-add": _scatter_add,
    "concatenate": _concatenate,
    "stack": lambda draw, eqn, given: draw.stack(
        "stack", given, eqn.params["axis"], shape_of(eqn.outvars[0])
    ),
    "pad": _pad,
    "transpose": lambda draw, eqn, given: draw.transpose(
        "transpose", given[0], eqn.params["permutation"]
    ),
    "reshape": _reshape,
    "squeeze": _reshape,
    "broadcast_in_dim": lambda draw, eqn, given: draw.broadcast(
        "broadcast_in_dim", given[0], shape_of(eqn.outvars[0]), eqn.params["broadcast_dimensions"]
    ),
    "rev": lambda draw, eqn, given: draw.flip("rev", given[0], eqn.params["dimensions"]),
    "slice": _slice,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dot_general": _dot,
    "ragged_dot_general": _dot,
    "conv_general_dilated": _convolution,
}

_SEVERAL: dict[str, Callable[[Drawing, JaxprEqn, list[Value]], Sequence[Value]]] = {
    "split": _split,
    "unstack": _unstack,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
