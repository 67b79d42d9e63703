"""A walk through a jaxpr: each equation becomes one call of `Drawing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from idinit_ref import Graph
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import (
    LAYERS,
    MEMBERS,
    Data,
    Drawing,
    Made,
    Parameter,
    Signal,
    Value,
    View,
    is_constant,
    is_number,
    reads_by_turn,
    redrawn,
)

from ._table import (
    ALONE,
    ENTRYWISE,
    MOVES,
    PLAIN,
    REDUCES,
    SPREAD,
    TABLE,
    floats,
    is_floating,
    number_of,
    numbers_of,
    shape_of,
    split,
    unstack,
)

__all__ = ["graph_of", "is_floating", "shape_of", "start_drawing", "step"]

_SAME = {
    "convert_element_type", "copy", "reduce_precision", "name", "sharding_constraint",
    "reshard", "mesh_cast", "device_put", "optimization_barrier", "pvary", "stop_gradient",
    "to_edtype", "from_edtype", "tie", "psum", "psum2", "psum_invariant",
}  # fmt: skip
_OPAQUE = {
    "pallas_call", "ffi_call", "pure_callback", "io_callback", "custom_partitioning",
    "tpu_custom_call",
}  # fmt: skip
_LOGADDEXP = ["max", "sub", "ne", "add", "abs", "neg", "exp", "log1p", "add", "select_n"]
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee")


@redrawn
def graph_of(jaxpr: ClosedJaxpr, arguments: Sequence[Any]) -> Graph:
    """Return the graph of a jaxpr.

    Parameters
    ----------
    jaxpr : jax.extend.core.ClosedJaxpr
        The model's computation.
    arguments : sequence of Parameter, str or array
        The meaning of each argument: a parameter, the name of an input, or a constant.

    Returns
    -------
    idinit_ref.Graph
        Its first nodes are the parameters.

    Raises
    ------
    GraphError
        If an opaque operation takes a parameter.
    """
    draw, values = start_drawing(jaxpr, arguments)
    return draw.graph(_walk(draw, jaxpr, values))


def start_drawing(jaxpr: ClosedJaxpr, arguments: Sequence[Any]) -> tuple[Drawing, list[Value]]:
    """Return a drawing and its values of a jaxpr's arguments: see :func:`graph_of`."""
    parameters = [argument for argument in arguments if isinstance(argument, Parameter)]
    draw = Drawing(parameters, "jax.lax.stop_gradient")
    values: list[Value] = []
    for argument, var in zip(arguments, jaxpr.jaxpr.invars, strict=True):
        if isinstance(argument, Parameter):
            values.append(draw.parameter(argument.name))
        elif isinstance(argument, str):
            values.append(draw.input(argument, shape_of(var), floats(var)))
        else:
            values.append(draw.constant(shape_of(var), numbers=held(argument)))
    return draw, values


def _walk(draw: Drawing, inner: Jaxpr | ClosedJaxpr, given: Sequence[Value]) -> list[Value]:
    """Draw a jaxpr with the given arguments, and return its results."""
    jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    consts = inner.consts if isinstance(inner, ClosedJaxpr) else [None] * len(jaxpr.constvars)
    pairs = zip(jaxpr.constvars, consts, strict=True)
    known: dict[Any, Value] = {
        var: draw.constant(shape_of(var), numbers=held(const)) for var, const in pairs
    }
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def read(var: Any) -> Value:
        if not isinstance(var, Literal):
            return known[var]
        return draw.constant(shape_of(var), True, number_of(var))

    needed = _needed(jaxpr)
    for eqn in jaxpr.eqns:
        args = [read(var) for var in eqn.invars]
        if needed.isdisjoint(eqn.outvars) and not any(isinstance(arg, Signal) for arg in args):
            known |= {var: draw.constant(shape_of(var)) for var in eqn.outvars}
        else:
            known |= dict(zip(eqn.outvars, _step_once(draw, eqn, args), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> set[Any]:
    """Return the variables that the results need; a gradient computes its function, too."""
    needed = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            needed.update(var for var in eqn.invars if not isinstance(var, Literal))
    return needed


def _step_once(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw one equation; the same computation of indices is drawn once."""
    has_body = any(isinstance(value, (Jaxpr, ClosedJaxpr)) for value in eqn.params.values())
    if has_body or len(eqn.outvars) != 1 or floats(eqn.outvars[0]):
        return step(draw, eqn, given)
    key = (eqn.primitive.name, str(eqn.params), shape_of(eqn.outvars[0]))
    return [draw.once(key, given, lambda: step(draw, eqn, given)[0])]


def step(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw one equation."""
    if not all(map(floats, eqn.outvars)):
        draw.hide(given)
    is_plain = len(eqn.outvars) == 1 and floats(eqn.outvars[0])
    zeros = is_plain and any(isinstance(value, Made) and value.zero for value in given)
    body = _body_of(eqn)
    if all(map(is_constant, given)) and body is None:
        numbers = numbers_of(eqn, given)
        if numbers is not None or not zeros:
            return _constants(draw, eqn, given, numbers)
    kind, (var, *more) = eqn.primitive.name, (*eqn.outvars, None)
    draws = MOVES.get(kind) or (TABLE.get(kind) if var is not None and floats(var) else None)
    if draws is not None and more == [None]:
        return [draws(draw, eqn, given)]
    if kind in _SEVERAL:
        return _SEVERAL[kind](draw, eqn, given)
    if kind in _SAME:
        return [
            _unchanged(draw, eqn, value, source, var)
            for value, source, var in zip(given, eqn.invars, eqn.outvars, strict=True)
        ]
    if kind in ENTRYWISE:
        word = PLAIN.get(kind, kind)
        return [draw.entrywise(kind, given, shape_of(var), floats(var), "", word)]
    if kind == "custom_jvp_call" and _is_softplus(eqn, given):
        return [draw.entrywise("softplus", given[:1], shape_of(var))]
    if body is not None:
        return _walk(draw, body, given)
    if kind in _OPAQUE:
        _refuse(eqn, given)
    if kind not in REDUCES:
        word = PLAIN.get(kind, kind)
        return [draw.other(kind, given, shape_of(var), floats(var), word) for var in eqn.outvars]
    if kind.startswith("scatter"):
        given = [given[0], given[2], given[1]]
    return [
        draw.result(kind, given, shape_of(var), floats(var), REDUCES[kind]) for var in eqn.outvars
    ]


def _body_of(eqn: JaxprEqn) -> Jaxpr | ClosedJaxpr | None:
    """Return the body of an operation that only calls it."""
    if eqn.primitive.name in {*_SEVERAL, *_OPAQUE, *REDUCES}:
        return None
    bodies = (eqn.params.get(key) for key in _BODIES)
    return next((body for body in bodies if isinstance(body, (Jaxpr, ClosedJaxpr))), None)


def _constants(draw: Drawing, eqn: JaxprEqn, given: list[Value], numbers: Any) -> Sequence[Value]:
    """Return what an operation makes of constants, with its numbers if they are known."""
    alike = eqn.primitive.name == "concatenate" and len(set(given)) == 1
    keeps = bool(given) and (alike or eqn.primitive.name in SPREAD)
    first = given[0] if keeps else draw.constant(None)
    assert isinstance(first, Made)
    first = first._replace(number=is_number(first), entries=b"")
    if numbers is not None:
        return [draw.constant(numbers.shape, first.number, numbers=numbers)]
    return [first._replace(shape=shape_of(var)) for var in eqn.outvars]


def _is_softplus(eqn: JaxprEqn, given: Sequence[Value]) -> bool:
    """Whether an equation is JAX's log(exp(x) + exp(0)), written so that nothing overflows."""
    steps = [inner.primitive.name for inner in eqn.params["call_jaxpr"].jaxpr.eqns]
    return steps == _LOGADDEXP and is_constant(given[-1]) and given[-1].zero


def held(array: Any) -> Any:
    """Return the numbers of an array, or None if it has only a shape, or numbers of no kind."""
    has = hasattr(array, "dtype") and not isinstance(array, (jax.ShapeDtypeStruct, jax.core.Tracer))
    is_real = has and not jnp.issubdtype(array.dtype, jax.dtypes.extended)
    if not is_real or not jnp.isrealobj(array):
        return None
    return np.asarray(array, dtype=float if is_floating(array.dtype) else None)


def _refuse(eqn: JaxprEqn, given: Sequence[Value]) -> None:
    """Raise if an opaque operation takes a matrix."""
    parts = [part for value in given if isinstance(value, Made) for part in value.parts]
    names = [part.name for part in parts if part.view is None or part.view.rank > 1]
    if names:
        should = f"it takes the parameters {', '.join(names)}, and its computation cannot be read"
        cure = "replace it by plain JAX operations for the trace"
        raise GraphError(message("operation", eqn.primitive.name, should, cure))


def _unchanged(draw: Drawing, eqn: JaxprEqn, value: Value, source: Any, var: Any) -> Value:
    """Draw an operation that changes no number, or only rounds it."""
    kind = eqn.primitive.name
    if kind == "stop_gradient":
        return draw.stop(kind, value, floats(var))
    if kind == "convert_element_type":
        kind = "convert_element_type" if isinstance(value, Signal) else "cast"
        return draw.cast(kind, value, floats(var), source.aval.dtype == jnp.bool_)
    return value


def _scan(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw a scan: its body stands for all layers of a stack, but for values that were stacked."""
    few, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body, many = eqn.params["jaxpr"], few + carried
    length, rows = eqn.params["length"], given[many:]
    is_layers = any(isinstance(value, Made) and value.parts for value in rows)
    fixed = [value for value in given[:few] if value.shape and value.shape[0] == length]
    is_stacked = not is_layers and any(map(draw.is_stack, [*fixed, *rows]))
    is_map = is_layers and not carried and length <= MEMBERS
    is_read = length <= LAYERS and _is_read_by_turn(body.jaxpr, given, few)
    if is_stacked or is_map or is_read or _is_mixed(rows, length):
        return _unrolled(draw, eqn, given)

    def turn(states: list[Value]) -> list[Value]:
        pairs = zip(given[many:], body.jaxpr.invars[many:], strict=True)
        layer = [_restack(draw, [value], "one of a stack", var) for value, var in pairs]
        return _walk(draw, body, [*given[:few], *states, *layer])

    shapes = list(map(shape_of, body.jaxpr.invars[few:many]))
    turns = draw.loop("loop carry", given[few:many], shapes, turn, length, given[:few])
    stacks = zip(*(out[carried:] for out in turns), strict=True)
    pairs = zip(stacks, eqn.outvars[carried:], strict=True)
    return [*turns[-1][:carried], *(_restack(draw, row, "stack", var) for row, var in pairs)]


def _is_read_by_turn(body: Jaxpr, given: Sequence[Value], few: int) -> bool:
    """Whether a loop may read stacks of parameters at the number of the turn, as `fori_loop` does.

    The number is a constant of each turn, or a state that starts from a known one. The first `few`
    of the given values are the same in each turn.
    """
    before = zip(given[few:], body.invars[few:], strict=True)
    start = [var for value, var in before if is_constant(value) and value.integers is not None]
    numbers = [var for var in start if not floats(var)]
    pairs = zip(given[:few], body.invars[:few], strict=True)
    made = [var for value, var in pairs if isinstance(value, Made) and value.parts]
    steps = (
        ([var for var in eqn.invars if not isinstance(var, Literal)], eqn.outvars)
        for eqn in body.eqns
    )
    return reads_by_turn(steps, numbers, made, body.constvars)


def _is_mixed(stacks: Sequence[Value], length: int) -> bool:
    """Whether the layers of some stacks are different parameters."""
    first = [value.moved(None, _first) for value in stacks if isinstance(value, Made)]
    names = {part.name for value in first for part in value.parts}
    all_ = {part.name for value in stacks if isinstance(value, Made) for part in value.parts}
    return length > 1 and names != all_


def _first(view: View) -> View | None:
    return view.take(0)


def _unrolled(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw a scan turn by turn."""
    few, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    many, turns = few + carried, range(eqn.params["length"])
    states, rows = given[few:many], list[Sequence[Value]]()
    rows_of = [draw.unstack("row", value, 0, len(turns)) for value in given[many:]]
    for at in turns[:: -1 if eqn.params["reverse"] else 1]:
        layer = [row[at] for row in rows_of]
        out = _walk(draw, eqn.params["jaxpr"], [*given[:few], *states, *layer])
        states, rows = out[:carried], [*rows, out[carried:]]
    if eqn.params["reverse"]:
        rows.reverse()
    pairs = zip(zip(*rows, strict=True), eqn.outvars[carried:], strict=True)
    return [*states, *(draw.stack("stack", row, 0, shape_of(var)) for row, var in pairs)]


def _restack(draw: Drawing, values: Sequence[Value], name: str, var: Any) -> Value:
    """Return one layer of a stack, or the stack of such layers."""
    shape, value = shape_of(var), values[-1]
    if isinstance(value, Made) and not value.parts:
        return draw.constant(shape, value=0 if value.zero else None)
    if name != "stack" and not isinstance(value, Data):
        return draw.layer(name, value, (), shape)
    if isinstance(value, Made):
        return value.lost(shape)
    word = "join" if name == "stack" else "select"
    return draw.result(name, values, shape, isinstance(value, Signal), word)


def _while(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw a while loop: its condition once; all its turns, where they read stacks by number."""
    test, few = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = given[test + few :]
    _walk(draw, eqn.params["cond_jaxpr"], [*given[:test], *carry])
    body, fixed = eqn.params["body_jaxpr"], given[test : test + few]
    shapes = list(map(shape_of, body.jaxpr.invars[few:]))

    def turn(states: list[Value]) -> list[Value]:
        return _walk(draw, body, [*fixed, *states])

    mark, states = draw.mark(), carry
    turns = LAYERS if _is_read_by_turn(body.jaxpr, [*fixed, *carry], few) else 0
    for _ in range(turns):
        (goes,) = _walk(draw, eqn.params["cond_jaxpr"], [*given[:test], *states])
        if not is_constant(goes) or goes.numbers is None:
            break
        if not goes.numbers:
            return states
        states = turn(states)
    draw.back_to(mark)
    return draw.loop("loop carry", carry, shapes, turn, fixed=fixed)[-1]


def _cond(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw all branches of a cond."""
    results = [_walk(draw, branch, given[1:]) for branch in eqn.params["branches"]]
    return [
        draw.either("either", values, shape_of(var), floats(var))
        for values, var in zip(zip(*results, strict=True), eqn.outvars, strict=True)
    ]


def _shard_map(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw the body of a shard_map, as the first device runs it."""
    body = eqn.params["jaxpr"]
    parts = []
    for value, var, shard in zip(given, eqn.invars, body.invars, strict=True):
        is_whole = shape_of(var) == shape_of(shard)
        spans = [(0, size, 1) for size in shape_of(shard)]
        parts.append(value if is_whole else draw.part("shard", value, spans))
    out = _walk(draw, body, parts)
    for at, (var, shard) in enumerate(zip(eqn.outvars, body.outvars, strict=True)):
        if shape_of(var) != shape_of(shard):
            out[at] = draw.result("shards", [out[at]], shape_of(var), floats(var), "join")
    return out


def _alone(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw an operation on each of its operands alone, such as a collective."""
    kind, word = eqn.primitive.name, ALONE[eqn.primitive.name]
    pairs = zip(given, eqn.outvars, strict=True)
    return [draw.other(kind, [value], shape_of(var), floats(var), word) for value, var in pairs]


def _spectrum(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    kind = eqn.primitive.name
    return [draw.spectrum(kind, given[0], shape_of(v), floats(v)) for v in eqn.outvars]


def _sort(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw a sort: its keys move every operand."""
    found = []
    for value, var in zip(given, eqn.outvars, strict=True):
        values = [value, *(key for key in given if key is not value)]
        found.append(draw.result("sort", values, shape_of(var), floats(var), "sort"))
    return found


def _solve(draw: Drawing, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Draw the solution of a linear system, which is computed by a function of its own."""
    counts, body = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    first = counts.matvec + counts.vecmat
    return _walk(draw, body, given[first : first + counts.solve] + given[-len(eqn.outvars) :])


_SEVERAL: dict[str, Callable[[Drawing, JaxprEqn, list[Value]], Sequence[Value]]] = {
    "split": split,
    "unstack": unstack,
    **dict.fromkeys(ALONE, _alone),
    **dict.fromkeys(("svd", "eigh", "eig"), _spectrum),
    "sort": _sort,
    "custom_linear_solve": _solve,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
