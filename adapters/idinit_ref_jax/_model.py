"""A whole model: its plans, and a copy of it with new weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from idinit_ref import Graph, Plan, Report
from idinit_ref.core.dtypes import format_of
from idinit_ref.core.kernel import Taps
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import GraphError, IDInitError, message
from idinit_ref.roles.decide import Head, Override, decide
from idinit_ref.roles.report import Entry

from ._initializers import in_numpy, place, realise, sharding_of
from ._trace import opened

__all__ = ["init", "plans"]


def plans(
    model: Any,
    example_inputs: Any,
    apply_fn: Callable[..., Any] | None = None,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> dict[str, Plan]:
    """Decide every weight of a model, and make nothing.

    Parameters
    ----------
    model, example_inputs, apply_fn
        As in :func:`trace`; the model may be abstract.
    gain, eps, wide, form, taps, head, embeddings, overrides
        As in :func:`init`.

    Returns
    -------
    dict of str to Plan
        By the name of the parameter. Where several axes of a weight are inputs, or outputs, they
        count as one in row-major order, and the plan has the shape of the matrix.

    Raises
    ------
    GraphError, OptionError, OptionTypeError, ShapeError, LayoutError
        As in :func:`init`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> shapes = nnx.eval_shape(lambda: nnx.MultiHeadAttention(2, 8, decode=False,
    ...                                                        rngs=nnx.Rngs(0)))
    >>> x = jax.ShapeDtypeStruct((1, 3, 8), jnp.float32)
    >>> plans(shapes, x, lambda attention, x: x + attention(x))["out.kernel"]
    Plan(shape=(8, 8), role='zero', gain=1.0, eps=1e-06, wide='truncate', form='pair', layout='IO',
         groups=1, transposed=False, stride=None, blocks=None, taps='outward', tap=None,
         loosen=0.0, loosen_at='all', seed=0)
    """
    graph = opened(model, apply_fn).trace(example_inputs)
    report = decide(
        graph,
        gain=gain,
        eps=eps,
        wide=wide,
        form=form,
        taps=taps,
        head=head,
        embeddings=embeddings,
        overrides=overrides,
    )
    return report.plans


def init(
    model: Any,
    apply_fn: Callable[..., Any] | None,
    example_inputs: Any,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> tuple[Any, Report]:
    """Return a copy of a model with every weight IDI or IDIZ, by its place in the computation.

    Weights that end a residual branch become IDIZ, all others IDI, and biases 0 (spec section 6);
    everything else stays, as do the dtype and the sharding of every parameter. Whatever goes
    wrong, the model is untouched.

    Parameters
    ----------
    model : flax.nnx.Module, equinox.Module or pytree
        As in :func:`trace`, and not abstract.
    apply_fn : callable or None
        ``apply_fn(model, *example_inputs)`` computes the output; None calls the model.
    example_inputs : tuple, dict or array
        As in :func:`trace`; only shapes and dtypes are used.
    gain : float
        tau of the weights in role "transit".
    eps : float
        Of the weights in role "zero".
    wide : {"truncate", "fold_rms", "fold_mean"}
        What is done where a transit weight has more columns than rows.
    form : {"pair", "shifted"}
        How the entries of a wide zero weight are spread.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3). The first three start at the layer's identity
        tap, and in each phase of a transposed convolution.
    head : {"transit", "zero", "keep"}
        What becomes of the weights whose result the model returns, unless they end a branch.
    embeddings : {"keep", "transit"}
        What becomes of embedding tables, and of heads that are tied to them.
    overrides : mapping of str to role or options, optional
        Patterns of names (``"*.gate.kernel"``), each with a role ("transit", "zero", "bias" for
        zeros, "keep") or with options of :func:`idinit_ref.plan`. All that fit apply, a later one
        over an earlier.

    Returns
    -------
    model : of the same type
        The new model. What is kept is the same arrays.
    report : Report
        What became of every parameter, and why.

    Raises
    ------
    GraphError
        If the model cannot be traced, has no parameters, or is abstract.
    OptionError, OptionTypeError, ShapeError, LayoutError
        If an option does not fit, or an override fits no parameter.
    DTypeError, RoundingError
        If the dtype of a parameter cannot hold its weight.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
    >>> new, report = init(params, apply, jnp.ones((2, 4)))
    >>> print(report)
    name  shape   role     why
    down  (8, 4)  zero     last of the branch down: product, which down: product: add adds to
        inputs.0
    up    (4, 8)  transit  weight; no residual branch ends with it
    2 parameters: 1 transit, 1 zero, 0 bias, 0 keep
    """
    taken = opened(model, apply_fn)
    graph = taken.trace(example_inputs)
    report = decide(
        graph,
        gain=gain,
        eps=eps,
        wide=wide,
        form=form,
        taps=taps,
        head=head,
        embeddings=embeddings,
        overrides=overrides,
    )
    at = {name: number for number, name in enumerate(taken.names) if name}
    arrays = list(taken.arrays)
    entries = []
    for entry in report.entries:
        old = arrays[at[entry.name]]
        try:
            arrays[at[entry.name]] = _made(graph, entry, old)
        except IDInitError as problem:
            raise type(problem)(f"of parameter {entry.name!r}: {problem}") from problem
        entries.append(entry.stored(old.shape, *_axes(graph, entry)))
    return taken.rebuild(arrays), Report(tuple(entries))


def _axes(graph: Graph, entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return a letter for each axis of a parted shape, and that shape: as `split_axes` takes it."""
    plain = (entry.shape, "" if entry.plan is None else entry.plan.layout)
    parted, letters = graph.by_name[entry.name].options.get("parted", plain)
    return letters, parted


def _made(graph: Graph, entry: Entry, old: Any) -> Any:
    """Return what takes the place of a parameter."""
    if isinstance(old, jax.ShapeDtypeStruct):
        raise GraphError(
            message(
                "model",
                old,
                "it should have values, for some of them are kept",
                "make the model first; plans(...) takes abstract ones",
            )
        )
    if entry.role == "keep":
        return old
    format_of(old.dtype)
    shape, plan = tuple(old.shape), entry.plan
    is_numpy = isinstance(old, np.ndarray)
    if plan is None:
        if isinstance(old, jax.core.Tracer):
            return jnp.zeros_like(old)
        if is_numpy:
            return np.zeros_like(old)
        zeros = np.broadcast_to(np.zeros((), old.dtype), shape)
        return place(lambda part: zeros[part], shape, old.dtype, sharding_of(old))
    letters, parted = _axes(graph, entry)
    if is_numpy:
        return in_numpy(plan, letters, parted, shape, old.dtype)
    return realise(plan, letters, parted, shape, old.dtype, sharding_of(old))
