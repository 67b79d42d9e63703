"""Does a model work: one forward and one backward pass, of which everything is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from idinit_ref import Graph
from idinit_ref.diagnostics.audit import Audit
from idinit_ref.diagnostics.facts import Fact, fact_of, look, signs
from idinit_ref.diagnostics.verdict import Record, check_inputs, check_outputs, judged
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Made, Signal, Value

from ._trace import opened
from ._walk import shape_of, started, step

__all__ = ["audit"]

_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def audit(model: Any, inputs: Any, apply_fn: Callable[..., Any] | None = None) -> Audit:
    """Run a model once forward and once backward, and say whether it works.

    The second line after `init`: does the output depend on the input, how large is every
    residual branch beside its skip, how does the second moment go from the first weight to the
    last, which parameters have no gradient and what do they hang behind, which units are copies,
    and is anything not finite.

    The pass is one in evaluation mode, compiled once. What goes backward is no loss's gradient but
    a fixed one: 1 or -1 for every entry of the outputs, from Philox. Nothing is changed or kept.
    What happens inside a loop (``scan``, ``while``), a ``cond`` or a function with its own
    derivative is not measured, and the audit says where; its gradients are.

    Parameters
    ----------
    model : flax.nnx.Module, equinox.Module or pytree
        As for `trace`, with its values. Sharded arrays stay where they are.
    inputs : tuple, dict or array
        As for `trace`, but real samples: two or more that differ, so that a constant output is
        seen. Of integers alone (tokens) no gradient is taken.
    apply_fn : callable, optional
        ``apply_fn(model, *inputs)`` computes the output; left out, the model is called.

    Returns
    -------
    idinit_ref.diagnostics.Audit
        ``print(audit)`` says it, ``audit.healthy`` is true or the tuple of what failed.

    Raises
    ------
    GraphError
        If the model cannot be run or followed, is abstract, has no parameters, or returns nothing
        floating.
    OptionError, OptionTypeError
        If the inputs are all zeros or hold a NaN, or the model cannot be called.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from idinit_ref_jax import audit, init
    >>> def apply(params, x):
    ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> params = {"up": jnp.ones((4, 4)), "down": jnp.ones((4, 4))}
    >>> x = jnp.array([[1.0, 2.0, 0.5, 1.0], [3.0, 1.0, 2.0, 0.0]])
    >>> params, _ = init(params, x, apply)
    >>> found = audit(params, x, apply)
    >>> bool(found.healthy), [branch.add for branch in found.branches]
    (True, ['down: product: add'])
    """
    whole = opened(model, apply_fn)
    prepared = whole.prepared(inputs)
    arrays = [*whole.arrays, *prepared.inputs]
    for label, held in (("model", whole.arrays), ("inputs", prepared.inputs)):
        if any(isinstance(array, jax.ShapeDtypeStruct) for array in held):
            cure = "make the model first, and pass real inputs"
            raise GraphError(message(label, "abstract", "it should have values", cure))
    if not any(whole.names):
        cure = "pass the parameters as the model, or a module that holds them"
        raise GraphError(message("model", type(model), "it should have parameters", cure))
    names = [a if isinstance(a, str) else a.name for a in prepared.arguments]
    count = len(whole.arrays)
    record = Record(next((int(x.shape[0]) for x in prepared.inputs if x.ndim), 1))
    for name, x in zip(names[count:], prepared.inputs, strict=True):
        if x.size and not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            is_real = _is_real(x)
            seen = _look(x if is_real else x.astype(float), record.batch)
            record.inputs[name] = record.facts[name] = _fact(
                seen, x.dtype if is_real else "float32"
            )
    differ = [at for at, array in enumerate(arrays) if names[at] and _is_real(array)]
    starts = {names[at]: record.inputs[names[at]] for at in differ if at >= count}
    check_inputs(starts, len(starts) < len(record.inputs))
    run = _Run(prepared.jaxpr, prepared.arguments, differ)
    outs = [aval for aval in prepared.jaxpr.out_avals if _is_real(aval) and aval.size]
    check_outputs(len(outs), prepared.jaxpr.out_avals)
    cotangents = [
        g.astype(o.dtype) for g, o in zip(signs(o.shape for o in outs), outs, strict=True)
    ]
    nodes, ends, gradients = jax.jit(run, compiler_options=_FAST)(arrays, cotangents)
    record.graph, record.uses = run.graph, run.draw.uses()
    for name, x in nodes.items():
        record.facts[name] = _fact(_look(x, record.batch, run.units.get(name)), x.dtype)
    record.outputs = [_fact(_look(x, record.batch), x.dtype) for x in ends]
    for at, gradient in zip(differ, gradients, strict=True):
        fact = _fact(_look(gradient, 1), gradient.dtype)
        if at < count:
            record.values[names[at]] = _fact(_look(jnp.asarray(arrays[at]), 1), gradient.dtype)
            record.gradients[names[at]] = fact
        else:
            record.input_gradients[names[at]] = fact
    return judged(record)


@partial(jax.jit, static_argnums=(1, 2), compiler_options=_FAST)
def _look(x: Any, batch: int, units: tuple[int, int] | None = None) -> dict[str, Any]:
    """Measure an array: compiled once for all of a shape, and not within the whole pass."""
    return look(jnp, x, batch, units)


class _Run:
    """A computation, forward and backward, with the results of its nodes; to be compiled."""

    def __init__(self, jaxpr: ClosedJaxpr, arguments: Sequence[Any], differ: Sequence[int]) -> None:
        self.jaxpr, self.differ = jaxpr, differ
        self.draw, self.values = started(jaxpr, arguments)
        self.graph: Graph
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.units: dict[str, tuple[int, int]] = {}
        self._nodes: dict[str, Any] = {}

    def __call__(self, arrays: Sequence[Any], cotangents: Sequence[Any]) -> tuple[Any, ...]:
        def forward(starts: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
            full = list(arrays)
            for at, start in zip(self.differ, starts, strict=True):
                full[at] = start
            ends = self.inside(self.jaxpr, self.values, full)
            self.graph = self.draw.graph([value for value, _ in ends])
            return [out for _, out in ends if _is_real(out) and out.size], self._nodes

        starts = [jnp.asarray(arrays[at]) for at in self.differ]
        outs, pull, nodes = jax.vjp(forward, starts, has_aux=True)
        (gradients,) = pull(list(cotangents))
        return nodes, outs, gradients

    def inside(
        self, inner: Jaxpr | ClosedJaxpr, values: Sequence[Value], arrays: Sequence[Any]
    ) -> list[tuple[Value, Any]]:
        """Draw a jaxpr and compute it; return both for each of its results."""
        jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        held = inner.consts if isinstance(inner, ClosedJaxpr) else ()
        known: dict[Any, tuple[Value, Any]] = {
            var: (self.draw.constant(shape_of(var)), const)
            for var, const in zip(jaxpr.constvars, held, strict=True)
        }
        known |= zip(jaxpr.invars, zip(values, arrays, strict=True), strict=True)

        def read(var: Any) -> tuple[Value, Any]:
            if isinstance(var, Literal):
                return self.draw.constant(shape_of(var), True), var.val
            return known[var]

        for eqn in jaxpr.eqns:
            given = [read(var) for var in eqn.invars]
            known |= zip(eqn.outvars, self.step(jaxpr, eqn, given), strict=True)
        return [read(var) for var in jaxpr.outvars]

    def step(
        self, inner: Jaxpr, eqn: JaxprEqn, given: Sequence[tuple[Value, Any]]
    ) -> list[tuple[Value, Any]]:
        """Draw one equation and compute it."""
        values, arrays = [value for value, _ in given], [array for _, array in given]
        called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.primitive.name in _CALLS and called is not None:
            return self.inside(called, values, arrays)
        known = {
            var: array
            for var, array in zip(eqn.invars, arrays, strict=True)
            if not isinstance(var, Literal)
        }
        body: Any = inner  # jax has no types for what comes
        alone = body.replace(constvars=[], invars=[*known], outvars=eqn.outvars, eqns=[eqn])
        results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*known.values())
        drawn = len(self.draw.nodes)
        found = step(self.draw, eqn, values)
        is_weight = any(node.kind == "weight" for node in self.draw.nodes[drawn:])
        is_sum = eqn.primitive.name in ("add", "add_any")  # perhaps of a bias, which is no node
        for value, result in zip(found, results, strict=True):
            if not (isinstance(value, Signal) and _is_real(result) and result.size):
                continue
            if is_weight:
                self.units[value.node] = _units(eqn, values)
            is_same = self._shapes.setdefault(value.node, result.shape) == result.shape
            if value.node not in self._nodes or (is_sum and is_same):
                self._nodes[value.node] = jax.lax.stop_gradient(result)
        return list(zip(found, results, strict=True))


def _units(eqn: JaxprEqn, values: Sequence[Value]) -> tuple[int, int]:
    """Return which axes of a weight operation's result are its units."""
    rank = len(shape_of(eqn.outvars[0]))
    numbers: Any = eqn.params.get("dimension_numbers")
    if eqn.primitive.name == "conv_general_dilated":
        axis = int(numbers.out_spec[1])
        return axis, axis + 1
    if eqn.primitive.name != "dot_general":
        return rank - 1, rank
    (summed, shared), left = numbers, isinstance(values[0], Made)
    free = [len(shape_of(v)) - len(s) - len(b)
            for v, s, b in zip(eqn.invars, summed, shared, strict=True)]  # fmt: skip
    start = len(shared[0])
    return (start, start + free[0]) if left else (rank - free[1], rank)


def _is_real(x: Any) -> bool:
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jnp.floating))


def _fact(found: Mapping[str, Any], dtype: Any) -> Fact:
    return fact_of(jax.device_get(dict(found)), dtype)
