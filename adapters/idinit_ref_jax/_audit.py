"""The audit of a model: one forward and one backward pass, both measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_api_compat import numpy as numpy_namespace
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.tree_util import Partial

from idinit_ref.diagnostics.audit import Audit
from idinit_ref.diagnostics.facts import look, signs
from idinit_ref.diagnostics.recording import Recording
from idinit_ref.diagnostics.verdict import check_outputs
from idinit_ref.diagnostics.waking import Look, stepped, steps_of, watched
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Made, Signal, Value, redrawn

from ._table import number_of
from ._trace import open_model
from ._walk import shape_of, start_drawing, step

__all__ = ["audit"]

_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2")
_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def audit(
    model: Any, inputs: Any, apply_fn: Callable[..., Any] | None = None, *, steps: int = 0
) -> Audit:
    """Run a model once forward and once backward, and say whether it works.

    Call it after `init`. It measures whether the output depends on the input, the size of every
    residual branch beside its skip, and the second moment from the first weight to the last. It
    finds parameters without gradient and what stops the gradient, units that are copies, and values
    that are not finite.

    Both passes run in evaluation mode, compiled once. The backward pass starts from a fixed
    gradient, not from a loss: 1 or -1 for every entry of the outputs, drawn by Philox. The model is
    unchanged. Inside a loop (``scan``, ``while``), a ``cond`` or a function with its own
    derivative, gradients are measured, but signals are not; the audit names these places.

    Parameters
    ----------
    model : flax.nnx.Module, equinox.Module or pytree
        As for `trace`, but not abstract. Sharded arrays stay where they are.
    inputs : tuple, dict or array
        As for `trace`, but real samples: at least two that differ, so that a constant output is
        noticed. For integers alone (tokens) no gradient is taken.
    apply_fn : callable, optional
        ``apply_fn(model, *inputs)`` computes the output; left out, the model is called.
    steps : int, optional
        The most small steps of training, either way and on copies of the parameters, that follow
        where something fails, or where a weight has no gradient and what is behind it does not tell
        why. What ends with them, as 3 can show, is a remark, not a failure. With 0 there is exactly
        one forward and one backward pass, and a limit names what steps might wake.

    Returns
    -------
    idinit_ref.diagnostics.Audit
        ``print(audit)`` prints the findings. ``audit.healthy`` is true, or the tuple of what
        failed.

    Raises
    ------
    GraphError
        If the model cannot be run or traced, is abstract, has no parameters, returns no
        floating-point array, or has a loop without a backward pass (``while_loop``).
    OptionError, OptionTypeError
        If the inputs are all zeros or hold a NaN, the model cannot be called, or `steps` is no
        integer >= 0.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from idinit_ref_jax import audit, init
    >>> def apply(params, x):
    ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> params = {"up": jnp.ones((4, 4)), "down": jnp.ones((4, 4))}
    >>> x = jnp.array([[1.0, 2.0, 0.5, 1.0], [3.0, 1.0, 2.0, 0.0]])
    >>> params, _ = init(params, x, apply)
    >>> result = audit(params, x, apply)
    >>> bool(result.healthy), [branch.add for branch in result.branches]
    (True, ['down: product: add'])
    """
    steps = steps_of(steps)
    opened = open_model(model, apply_fn)
    opened.check_values()
    prepared = opened.prepared(inputs, "inputs")
    arrays = [*opened.arrays, *prepared.inputs]
    for array in prepared.inputs:
        if isinstance(array, jax.ShapeDtypeStruct):
            should = "an audit runs the model, so they should have values"
            cure = "pass a few real samples"
            raise GraphError(message("inputs", f"abstract: {array}", should, cure))
    if not any(opened.names):
        cure = "pass the parameters as the model, or a module that holds them"
        raise GraphError(message("model", type(model), "it should have parameters", cure))
    names = [a if isinstance(a, str) else getattr(a, "name", "") for a in prepared.arguments]
    count = len(opened.arrays)
    differ = [at for at, array in enumerate(arrays) if names[at] and _is_real(array)]
    outs = [aval for aval in prepared.jaxpr.out_avals if _is_real(aval) and aval.size]
    check_outputs(len(outs), prepared.jaxpr.out_avals)
    signed = zip(signs(out.shape for out in outs), outs, strict=True)
    cotangents = [g.astype(o.dtype) for g, o in signed]
    about = prepared.jaxpr, prepared.arguments, names, count, differ
    with _blame_loops():
        run, compiled = _compiled((arrays, cotangents), *about)

    def look(values: Mapping[str, Any]) -> Look:
        given = [_placed(values.get(name), one) for name, one in zip(names, arrays, strict=True)]
        deferred, gradients = compiled(given, cotangents)
        looks = {
            group: {name: measure() for name, measure in measures.items()}
            for group, measures in deferred.items()
        }
        own = {name: x for name, x in zip(names[:count], given, strict=False) if name in gradients}
        return Look(run.recording.filled(jax.device_get(looks)), own, gradients)

    return watched(look, jax.jit(partial(stepped, jnp)), host=_host, steps=steps)


def _host(x: Any) -> Any:
    return np.asarray(x) if getattr(x, "is_fully_addressable", True) else None


def _placed(value: Any, instead: Any) -> Any:
    """Return an array on the devices of another one, or that one if there is none."""
    return instead if value is None else jax.device_put(value, getattr(instead, "sharding", None))


@contextmanager
def _blame_loops() -> Iterator[None]:
    """Turn JAX's error about a loop without a backward pass into a GraphError."""
    try:
        yield
    except ValueError as problem:
        if "Reverse-mode differentiation does not work" not in str(problem):
            raise
        loop = "a loop of unknown length: lax.while_loop, or lax.fori_loop with traced bounds"
        should = "an audit runs its backward pass, which JAX has only for loops of known length"
        cure = (
            "audit it with lax.scan, or lax.fori_loop between Python integers; init and trace take "
            "the loop as it is"
        )
        raise GraphError(message("model", loop, should, cure)) from problem


@redrawn
def _compiled(given: Sequence[Any], *about: Any) -> tuple[_Run, Callable[..., Any]]:
    """Return a run, traced, and its compiled function."""
    run = _Run(*about)
    return run, jax.jit(run, compiler_options=_FAST).lower(*given).compile()


def _deferred(x: Any, batch: int, units: Any) -> Any:
    """Return a pytree that holds an array and measures it outside the compiled function."""
    measure = partial(_measure, batch, units)
    return Partial(measure, x)  # type: ignore[no-untyped-call]  # Partial is untyped


def _measure(batch: int, units: Any, x: jax.Array) -> Any:
    """Measure an array: on a CPU in NumPy, else by a function compiled once for each shape."""
    if x.is_fully_addressable and {device.platform for device in x.devices()} == {"cpu"}:
        return look(numpy_namespace, np.asarray(x), batch, units)
    return _compiled_measure(x, batch, units)


@partial(jax.jit, static_argnums=(1, 2))
def _compiled_measure(x: Any, batch: int, units: Any) -> Any:
    return look(jnp, x, batch, units)


class _Run:
    """Both passes of a computation, with their measurements; a function to compile."""

    def __init__(
        self,
        jaxpr: ClosedJaxpr,
        arguments: Sequence[Any],
        names: Sequence[str],
        count: int,
        differ: Sequence[int],
    ) -> None:
        self.jaxpr, self.names, self.count, self.differ = jaxpr, names, count, differ
        self.draw, self.values = start_drawing(jaxpr, arguments)
        self.recording: Recording

    def __call__(self, arrays: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        recording = Recording(_deferred, np.asarray, arrays[self.count :])
        self.recording = recording

        def forward(starts: Sequence[Any]) -> tuple[list[Any], Any]:
            full = list(arrays)
            for at, start in zip(self.differ, starts, strict=True):
                full[at] = start
            ends = self.walk(self.jaxpr, self.values, full)
            recording.drew(self.draw, self.draw.graph([value for value, _ in ends]))
            return [out for _, out in ends if _is_real(out) and out.size], recording.looks["nodes"]

        primals = [jnp.asarray(arrays[at]) for at in self.differ]
        outs, pull, recording.looks["nodes"] = jax.vjp(forward, primals, has_aux=True)
        (gradients,) = pull(list(cotangents))
        inputs = dict(zip(self.names[self.count :], arrays[self.count :], strict=True))
        values = {self.names[at]: arrays[at] for at in self.differ if at < self.count}
        starts = [self.names[at] for at in self.differ if at >= self.count]
        return recording.end(inputs, outs, values, starts, gradients)

    def walk(
        self, inner: Jaxpr | ClosedJaxpr, values: Sequence[Value], arrays: Sequence[Any]
    ) -> list[tuple[Value, Any]]:
        """Draw a jaxpr and compute it; return the drawn value and the array of each result."""
        jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
        held = inner.consts if isinstance(inner, ClosedJaxpr) else ()
        known: dict[Any, tuple[Value, Any]] = {
            var: (self.draw.constant(shape_of(var)), const)
            for var, const in zip(jaxpr.constvars, held, strict=True)
        }
        known |= zip(jaxpr.invars, zip(values, arrays, strict=True), strict=True)

        def read(var: Any) -> tuple[Value, Any]:
            if isinstance(var, Literal):
                return self.draw.constant(shape_of(var), True, number_of(var)), var.val
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
            return self.walk(called, values, arrays)
        known = {
            var: array
            for var, array in zip(eqn.invars, arrays, strict=True)
            if not isinstance(var, Literal)
        }
        body: Any = inner  # JAX does not type `Jaxpr.replace`
        alone = body.replace(constvars=[], invars=[*known], outvars=eqn.outvars, eqns=[eqn])
        results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*known.values())
        drawn = len(self.draw.nodes)
        outputs = step(self.draw, eqn, values)
        new = self.draw.nodes[drawn:]
        weights = {node.name for node in new if node.kind == "weight"}
        if eqn.primitive.name.startswith("custom_"):
            self.recording.record.own |= {node.name for node in new}
        after = list(zip(outputs, results, strict=True))
        self.recording.link(given, after, new)
        is_sum = eqn.primitive.name in ("add", "add_any")
        for value, result in after:
            if isinstance(value, Signal) and _is_real(result):
                units = _units(eqn, values) if value.node in weights else None
                self.recording.see(value.node, jax.lax.stop_gradient(result), units, is_sum)
        return after


def _units(eqn: JaxprEqn, values: Sequence[Value]) -> tuple[int, int]:
    """Return the range of axes that are the units in a weight operation's result."""
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
