"""A model of Flax, Equinox or plain functions as a graph."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from idinit_ref import Graph
from idinit_ref.errors import GraphError, OptionTypeError, message
from idinit_ref.tracing import Parameter

from ._walk import graph_of, is_floating

__all__ = ["Opened", "open_model", "trace"]


def trace(model: Any, example_inputs: Any, apply_fn: Callable[..., Any] | None = None) -> Graph:
    """Return the graph of a model's computation, and compute nothing but its small constants.

    Only shapes and dtypes are used, and the least and the largest entry of arrays that are no
    parameters, if they have values. So the model may be abstract (``nnx.eval_shape``,
    ``jax.eval_shape``), and so may the inputs (``jax.ShapeDtypeStruct``). The body of a scan is
    traced once; a weight with an axis of layers has a batch axis there.

    Parameters
    ----------
    model : flax.nnx.Module, equinox.Module or pytree
        A module, or the parameters of a function; for ``flax.linen``, the variables that ``init``
        returned.
        Parameters are the ``nnx.Param`` of Flax, the floating arrays of an Equinox module, and
        the arrays of any other pytree.
    example_inputs : tuple, dict or array
        The model's inputs: a tuple of arguments, a dict of keyword arguments, or a single argument.
    apply_fn : callable, optional
        ``apply_fn(model, *example_inputs)`` computes the output. By default the model is called.
        Batched inputs of an Equinox module need one: ``lambda m, x: jax.vmap(m)(x)``.

    Returns
    -------
    idinit_ref.Graph
        All parameters first, in the order of the model. Several axes of inputs, or of outputs,
        count as one: the node has the shape of the matrix.

    Raises
    ------
    GraphError
        If the model does not accept the inputs, JAX cannot trace it, or it passes a parameter to an
        opaque operation.
    OptionTypeError
        If the model cannot be called.

    Notes
    -----
    Dropout and normalisations are traced as in evaluation (``model.eval()`` of a copy in Flax,
    ``eqx.nn.inference_mode`` in Equinox); the model itself is never changed. Sown values and state
    such as ``nnx.BatchStat`` are not parameters.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> shapes = {"up": jax.ShapeDtypeStruct((4, 8), jnp.float32),
    ...           "down": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    >>> graph = trace(shapes, jax.ShapeDtypeStruct((2, 4), jnp.float32), apply)
    >>> [node.name for node in graph.nodes]
    ['down', 'up', 'inputs.0', 'up: product', 'up: product: max', 'down: product',
     'down: product: add']
    """
    return open_model(model, apply_fn).trace(example_inputs)


@dataclass(frozen=True)
class Prepared:
    """The computation of a model, the meaning of each argument, and the input arrays."""

    jaxpr: ClosedJaxpr
    arguments: tuple[Any, ...]
    inputs: tuple[Any, ...]


@dataclass(frozen=True)
class Opened:
    """A model, separated into arrays and computation.

    Parameters
    ----------
    paths : tuple of str
        The path of every array that enters the computation.
    arrays : tuple of array
        These arrays, or their shapes.
    are_parameters : tuple of bool
        Which of them are parameters.
    module : callable
        ``module(arrays)`` returns the model with other arrays, in evaluation mode.
    apply_fn : callable or None
        Computes the output from this model and the inputs; None if the model is called.
    rebuild : callable
        ``rebuild(arrays)`` returns the model with other arrays, in its original mode.
    """

    paths: tuple[str, ...]
    arrays: tuple[Any, ...]
    are_parameters: tuple[bool, ...]
    module: Callable[[Sequence[Any]], Any]
    apply_fn: Callable[..., Any] | None
    rebuild: Callable[[Sequence[Any]], Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The path of every array, or "" for one that is not a parameter."""
        pairs = zip(self.paths, self.are_parameters, strict=True)
        return tuple(path if is_parameter else "" for path, is_parameter in pairs)

    def check_values(self) -> None:
        """Raise a GraphError if an array of the model is only a shape."""
        for path, array in zip(self.paths, self.arrays, strict=True):
            if isinstance(array, jax.ShapeDtypeStruct):
                given, should = f"abstract: {path} is {array}", "all its arrays should have values"
                cure = "build it outside eval_shape; only trace and plans accept abstract models"
                raise GraphError(message("model", given, should, cure))

    def trace(self, example_inputs: Any) -> Graph:
        """Return the graph."""
        prepared = self.prepared(example_inputs)
        return graph_of(prepared.jaxpr, prepared.arguments)

    def prepared(self, example_inputs: Any, label: str = "example_inputs") -> Prepared:
        """Trace the computation into a jaxpr."""
        twice = [name for name, count in Counter(filter(None, self.names)).items() if count > 1]
        if twice:
            should = "every parameter should have a name of its own"
            cure = "rename a key that has a dot in it"
            raise GraphError(message("model", twice[0], should, cure))
        args, kwargs = _arguments(example_inputs)
        leaves, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
        inputs = {_dotted(path[1:]): leaf for path, leaf in leaves if _is_array(leaf)}

        def run(arrays: Sequence[Any], given: Sequence[Any]) -> Any:
            rest = iter(given)
            full = [next(rest) if _is_array(leaf) else leaf for _, leaf in leaves]
            args, kwargs = jax.tree_util.tree_unflatten(tree, full)
            module = self.module(arrays)
            call = module if self.apply_fn is None else partial(self.apply_fn, module)
            return _output_arrays(call(*args, **kwargs))

        jaxpr = _make_jaxpr(run, list(self.arrays), inputs, (label, example_inputs))
        given = [
            Parameter(name, tuple(array.shape), jnp.dtype(array.dtype).name) if name else array
            for name, array in zip(self.names, self.arrays, strict=True)
        ]
        names = [f"inputs.{name}" for name in inputs]
        return Prepared(jaxpr, (*given, *names), tuple(inputs.values()))


def _make_jaxpr(
    run: Callable[..., Any], arrays: list[Any], inputs: Mapping[str, Any], given: tuple[str, Any]
) -> ClosedJaxpr:
    """Trace a computation into a jaxpr; raise a GraphError if JAX cannot."""
    try:
        jaxpr = jax.make_jaxpr(run)(arrays, list(inputs.values()))
    except jax.errors.ConcretizationTypeError as problem:
        got: object = str(problem).partition("\n")[0]
        should = "its computation should not depend on the values of arrays"
        cure = "use jax.lax.cond, jax.lax.while_loop or jnp.where in place of Python's if and while"
        raise GraphError(message("model", got, should, cure)) from problem
    except Exception as problem:  # whatever the model's own code raises
        got = [(name, tuple(leaf.shape)) for name, leaf in inputs.items()] or given[1]
        should = f"the model should run on them under jax.jit; it raised: {problem}"
        cure = (
            "pass what the model is called with, and an apply_fn where it takes more; "
            "a list or dict that is one argument goes into a tuple: ([a, b],), ({'x': x},)"
        )
        raise GraphError(message(given[0], got, should, cure)) from problem
    if not jaxpr.jaxpr.outvars:
        should = "the model should return an array, or a pytree of arrays"
        cure = "return it from the model, or from apply_fn"
        raise GraphError(message("output", None, should, cure))
    return jaxpr


def _arguments(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Mapping):
        return (), dict(given)
    return (tuple(given) if isinstance(given, (tuple, list)) else (given,)), {}


def _is_numeric(leaf: Any) -> bool:
    return hasattr(leaf, "dtype")


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and _is_numeric(leaf)


def _holds_arrays(leaf: Any, depth: int = 4) -> bool:
    """Whether a leaf of a pytree, opaque to JAX, holds arrays."""
    if not depth or isinstance(leaf, (type, ModuleType)) or inspect.isroutine(leaf):
        return False
    inner: Any = getattr(leaf, "__dict__", {}).values()
    if isinstance(leaf, Mapping):
        inner = leaf.values()
    elif isinstance(leaf, (list, tuple, set)):
        inner = leaf
    return any(_is_array(part) or _holds_arrays(part, depth - 1) for part in inner)


def _output_arrays(out: Any) -> list[Any]:
    """Return the arrays in a model's output, also in a dataclass that is not a pytree."""
    arrays = []
    for leaf in jax.tree_util.tree_leaves(out):
        if is_dataclass(leaf) and not _is_numeric(leaf):
            arrays += _output_arrays([getattr(leaf, part.name) for part in fields(leaf)])
        elif _is_numeric(leaf):
            arrays.append(leaf)
    return arrays


def _dotted(path: Sequence[Any]) -> str:
    """Return a path in a pytree as a dotted name."""
    parts = []
    for key in path:
        names = (getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))
        parts.append(str(next(names, key)))
    return ".".join(parts)


def open_model(model: Any, apply_fn: Callable[..., Any] | None) -> Opened:
    """Separate a model into its arrays and its computation."""
    nnx, linen, eqx = map(sys.modules.get, ("flax.nnx", "flax.linen", "equinox"))
    function: object = apply_fn
    if function is not None and not callable(function):
        should = "it should be a function apply_fn(model, *example_inputs), or None"
        cure = "pass the function by name: apply_fn=..."
        raise OptionTypeError(message("apply_fn", type(function), should, cure))
    if linen is not None and isinstance(model, linen.Module):
        should = "a module of flax.linen holds no parameters"
        cure = "pass the variables that its init returned, and apply_fn=module.apply"
        raise OptionTypeError(message("model", type(model), should, cure))
    if apply_fn is None and not callable(model):
        should = "it should be a module that can be called"
        cure = "pass apply_fn=..., a function of the parameters and the inputs"
        raise OptionTypeError(message("model", type(model), should, cure))
    if nnx is not None and isinstance(model, nnx.Module):
        return _open_nnx(nnx, model, apply_fn)
    is_eqx = eqx is not None and isinstance(model, eqx.Module)
    return _open_tree(model, apply_fn, eqx if is_eqx else None)


def _open_nnx(nnx: Any, model: Any, apply_fn: Callable[..., Any] | None) -> Opened:
    copy = nnx.merge(*nnx.split(model))
    copy.eval()

    def parts(module: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        graphdef, state = nnx.split(module)
        return graphdef, list(nnx.to_flat_state(state))

    def filled(whole: tuple[Any, list[tuple[Any, Any]]], arrays: Sequence[Any]) -> Any:
        graphdef, flat = whole
        pairs = zip(flat, arrays, strict=True)
        state = nnx.from_flat_state([(path, old.replace(new)) for (path, old), new in pairs])
        return nnx.merge(graphdef, state)

    original = parts(model)
    return Opened(
        tuple(".".join(map(str, path)) for path, _ in original[1]),
        tuple(variable.get_value() for _, variable in original[1]),
        tuple(isinstance(variable, nnx.Param) for _, variable in original[1]),
        partial(filled, parts(copy)),
        apply_fn,
        partial(filled, original),
    )


def _open_tree(model: Any, apply_fn: Callable[..., Any] | None, eqx: Any) -> Opened:
    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    evaluated = leaves if eqx is None else jax.tree_util.tree_flatten_with_path(
        eqx.nn.inference_mode(model))[0]  # fmt: skip
    places = [at for at, (_, leaf) in enumerate(leaves) if _is_array(leaf)]
    for path, leaf in leaves:
        if not _is_array(leaf) and _holds_arrays(leaf):
            given = f"{_dotted(path)!r}, a {type(leaf).__name__}"
            should = "JAX sees no array in it, so none of its arrays can be initialised"
            cure = (
                "take the arrays out first (in penzai: unbind_params), or register its class "
                "as a pytree: jax.tree_util.register_dataclass"
            )
            raise GraphError(message("model", given, should, cure))

    def is_parameter(array: Any) -> bool:
        plain = eqx is None and not jnp.issubdtype(array.dtype, jax.dtypes.extended)
        return plain or is_floating(array.dtype)

    def filled(old: Sequence[tuple[Any, Any]], arrays: Sequence[Any]) -> Any:
        new = [leaf for _, leaf in old]
        for at, array in zip(places, arrays, strict=True):
            new[at] = array
        return jax.tree_util.tree_unflatten(tree, new)

    return Opened(
        tuple(_dotted(leaves[at][0]) or "model" for at in places),
        tuple(leaves[at][1] for at in places),
        tuple(is_parameter(leaves[at][1]) for at in places),
        partial(filled, evaluated),
        apply_fn,
        partial(filled, leaves),
    )
