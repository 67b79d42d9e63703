"""A walk through a jaxpr: which operation takes which parameters for its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from idinit_ref import Graph
from idinit_ref.errors import GraphError, message

from ._axes import View
from ._notes import (
    CONSTANT,
    INTEGER,
    NUMBER,
    SIGNAL,
    Made,
    Notes,
    Parameter,
    Part,
    Signal,
    Value,
    is_constant,
    is_floating,
)
from ._products import convolution, dot, lookup
from ._rules import (
    add,
    add_up,
    concatenate,
    dtype_of,
    move,
    multiply,
    other,
    pad,
    result,
    same,
    scale,
    scatter_add,
    shape_of,
    slice_,
    split,
)

__all__ = ["graph_of"]

_SAME = {
    "convert_element_type", "copy", "copy_p", "reduce_precision", "stop_gradient", "name",
    "sharding_constraint", "reshard", "mesh_cast", "device_put", "optimization_barrier", "pvary",
}  # fmt: skip
_SPREAD = {"broadcast_in_dim", "reshape", "squeeze", "convert_element_type"}
_OPAQUE = {
    "pallas_call", "ffi_call", "pure_callback", "io_callback", "shard_map", "custom_partitioning",
    "tpu_custom_call",
}  # fmt: skip


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
    notes = Notes(given for given in arguments if isinstance(given, Parameter))
    values: list[Value] = []
    for given, var in zip(arguments, jaxpr.jaxpr.invars, strict=True):
        if isinstance(given, Parameter):
            values.append(Made({given.name: Part(View.of(given.shape))}))
        elif not given:
            values.append(CONSTANT)
        else:
            signal = is_floating(dtype_of(var))
            values.append(notes.start(given, shape_of(var)) if signal else INTEGER)
    return notes.graph(inside(notes, jaxpr, values))


def inside(notes: Notes, inner: Jaxpr | ClosedJaxpr, given: Sequence[Value]) -> list[Value]:
    """Walk a jaxpr, its arguments given, and return its results."""
    jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    known: dict[Any, Value] = {
        var: CONSTANT if shape_of(var) else NUMBER for var in jaxpr.constvars
    }
    known |= dict(zip(jaxpr.invars, given, strict=True))

    def read(var: Any) -> Value:
        return NUMBER if isinstance(var, Literal) else known[var]

    for eqn in jaxpr.eqns:
        values = [read(var) for var in eqn.invars]
        if all(map(is_constant, values)):
            spreads = eqn.primitive.name in _SPREAD
            one = CONSTANT not in values
            found: Sequence[Value] = [
                NUMBER if one and (spreads or not shape_of(var)) else CONSTANT
                for var in eqn.outvars
            ]
        else:
            found = step(notes, eqn, values)
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def step(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> Sequence[Value]:
    """Walk one equation."""
    kind = eqn.primitive.name
    if kind in _RULES:
        return _RULES[kind](notes, eqn, given)
    if kind in _SAME:
        return [
            same(notes, eqn, value, source, var)
            for value, source, var in zip(given, eqn.invars, eqn.outvars, strict=True)
        ]
    if kind in _OPAQUE:
        parts = [part for value in given if isinstance(value, Made) for part in value.parts.items()]
        names = [name for name, part in parts if part.view is None or part.view.rank > 1]
        if names:
            raise GraphError(
                message(
                    "operation",
                    kind,
                    f"it takes the parameters {', '.join(names)}, and what it does with them "
                    "cannot be seen from outside",
                    "trace the model with plain JAX operations in its place",
                )
            )
    else:
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if isinstance(eqn.params.get(key), (Jaxpr, ClosedJaxpr)):
                return inside(notes, eqn.params[key], given)
    return other(notes, eqn, given)


def scan(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a scan: its body once, for all layers of a stack."""
    few, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    body, many = eqn.params["jaxpr"], few + carried

    def one(notes: Notes) -> list[Value]:
        pairs = zip(given[many:], body.jaxpr.invars[many:], strict=True)
        return [_restack(notes, value, "one of a stack", var) for value, var in pairs]

    out = _loop(notes, body, given[:few], given[few:many], one)
    pairs = zip(out[carried:], eqn.outvars[carried:], strict=True)
    return [*out[:carried], *(_restack(notes, value, "stack", var) for value, var in pairs)]


def repeat(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a while loop: its body once."""
    test, few = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = given[test + few :]
    inside(notes, eqn.params["cond_jaxpr"], [*given[:test], *carry])
    body = eqn.params["body_jaxpr"]
    return _loop(notes, body, given[test : test + few], carry, lambda notes: [])


def _restack(notes: Notes, value: Value, base: str, var: Any) -> Value:
    """Return one of a stack, or a stack of such."""
    if isinstance(value, Made):
        return value.moved(lambda view: view.take(0) if base != "stack" else None)
    if isinstance(value, Signal):
        return result(notes, base, [value], var)
    return CONSTANT if value == NUMBER else value


def _loop(
    notes: Notes,
    body: ClosedJaxpr,
    fixed: list[Value],
    carry: list[Value],
    more: Callable[[Notes], list[Value]],
) -> list[Value]:
    """Walk the body of a loop. What becomes a signal in it is one from the start."""
    variables = body.jaxpr.invars[len(fixed) : len(fixed) + len(carry)]

    def turn(notes: Notes) -> list[Value]:
        start = [
            notes.start("loop carry", shape_of(var)) if value == SIGNAL else _bare(value)
            for value, var in zip(carry, variables, strict=True)
        ]
        return inside(notes, body, [*fixed, *start, *more(notes)])

    while True:
        out = turn(notes.rehearsal())
        new = [_widened(old, value) for old, value in zip(carry, out, strict=False)]
        if new == carry:
            return turn(notes)
        carry = new


def branch(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk all branches of a cond."""
    ways = [inside(notes, way, given[1:]) for way in eqn.params["branches"]]
    out: list[Value] = []
    for values, var in zip(zip(*ways, strict=True), eqn.outvars, strict=True):
        same = all(value == values[0] for value in values)
        out.append(values[0] if same else result(notes, "either", values, var))
    return out


def _bare(value: Value) -> Value:
    """Return a value that enters a loop."""
    if isinstance(value, Signal):
        value.spend()
        return Signal(value.node)
    return CONSTANT if value == NUMBER else value


def _widened(old: Value, new: Value) -> Value:
    """Return what a carry is before every turn, that was `old` and became `new`."""
    if isinstance(old, Signal) or old == SIGNAL:
        return old
    if isinstance(new, Signal):
        return SIGNAL
    if INTEGER in (old, new):
        return INTEGER
    if isinstance(new, Made):
        known = old if isinstance(old, Made) else Made({})
        if not set(new.parts) <= set(known.parts):
            return known.join(new).moved(lambda view: None)
    return old


_RULES: dict[str, Callable[[Notes, JaxprEqn, list[Value]], Sequence[Value]]] = {
    "add": add,
    "add_any": add,
    "reduce_sum": add_up,
    "mul": multiply,
    "div": scale,
    "neg": scale,
    "scatter-add": scatter_add,
    "concatenate": concatenate,
    "pad": pad,
    "transpose": move,
    "reshape": move,
    "squeeze": move,
    "broadcast_in_dim": move,
    "rev": move,
    "slice": slice_,
    "split": split,
    "gather": lookup,
    "dynamic_slice": lookup,
    "dot_general": dot,
    "ragged_dot_general": dot,
    "conv_general_dilated": convolution,
    "scan": scan,
    "while": repeat,
    "cond": branch,
}
