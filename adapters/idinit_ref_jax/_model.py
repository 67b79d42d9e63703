"""A whole model: its plans, and a copy of it with new weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from idinit_ref import Plan, Report
from idinit_ref.core.axes import stored
from idinit_ref.roles import ModelOptions
from idinit_ref.roles.decide import decide
from idinit_ref.roles.whole import Parted, Weights, initialise

from ._sharded import place, realise, sharding_of
from ._trace import open_model

__all__ = ["init", "plans"]


def plans(
    model: Any,
    example_inputs: Any,
    apply_fn: Callable[..., Any] | None = None,
    **options: Unpack[ModelOptions],
) -> dict[str, Plan]:
    """Decide every weight of a model, and change nothing.

    Parameters
    ----------
    model, example_inputs, apply_fn
        As in :func:`trace`; the model may be abstract.
    **options : idinit_ref.roles.ModelOptions
        As in :func:`init`.

    Returns
    -------
    dict of str to Plan
        By the name of the parameter. Several axes of inputs, or of outputs, count as one in
        row-major order; the plan has the shape of the matrix.

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
    return decide(open_model(model, apply_fn).trace(example_inputs), **options).plans


def init(
    model: Any,
    example_inputs: Any,
    apply_fn: Callable[..., Any] | None = None,
    **options: Unpack[ModelOptions],
) -> tuple[Any, Report]:
    """Return a copy of a model with every weight IDI or IDIZ, by its place in the computation.

    Weights that end a residual branch become IDIZ, all others IDI, and biases 0 (spec section 6);
    everything else stays, and every parameter keeps its dtype and its sharding. The given model is
    never changed.

    Parameters
    ----------
    model : flax.nnx.Module, equinox.Module or pytree
        As in :func:`trace`, and not abstract.
    example_inputs : tuple, dict or array
        As in :func:`trace`; only shapes and dtypes are used.
    apply_fn : callable, optional
        ``apply_fn(model, *example_inputs)`` computes the output. By default the model is called.
    **options : idinit_ref.roles.ModelOptions
        gain, eps, wide, form, taps, head, embeddings, norms, biases, overrides, strict: keywords,
        each with a default, as :class:`idinit_ref.roles.ModelOptions` lists them.

    Returns
    -------
    model : of the same type
        The new model. It shares the arrays that are kept.
    report : Report
        The role and value of every parameter, and the reason. It begins with the warnings.

    Raises
    ------
    GraphError
        If the model cannot be traced, has no parameters, or is abstract; with ``strict=True`` also
        for a used matrix that would be kept.
    OptionError, OptionTypeError, ShapeError, LayoutError
        If an option is unknown or does not fit, or an override matches no parameter.
    DTypeError, RoundingError
        If the dtype of a parameter cannot hold its weight.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> def apply(params, x):
    ...     return x + jax.nn.relu(x @ params["up"]) @ params["down"]
    >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
    >>> new, report = init(params, jnp.ones((2, 4)), apply)
    >>> print(report)
    name  shape   role     why
    down  (8, 4)  zero     last of the branch down: product, which down: product: add adds to
        inputs.0
    up    (4, 8)  transit  weight; no residual branch ends with it
    2 parameters: 1 transit, 1 zero, 0 bias, 0 keep
    """
    opened = open_model(model, apply_fn)
    opened.check_values()
    graph = opened.trace(example_inputs)
    arrays = _Arrays(dict(zip(opened.names, opened.arrays, strict=True)))
    report = initialise(graph, arrays, **options)
    pairs = zip(opened.names, opened.arrays, strict=True)
    return opened.rebuild([arrays.new.get(name, old) for name, old in pairs]), report


class _Arrays(Weights):
    """A model's arrays. They are immutable, so `new` collects their replacements."""

    def __init__(self, held: Mapping[str, Any]) -> None:
        super().__init__(held)
        self.new: dict[str, Any] = {}

    def read(self, name: str, whole: bool = True) -> Any:
        array = self.held[name]
        if isinstance(array, jax.core.Tracer):
            return None
        if not getattr(array, "is_fully_addressable", True):
            return None  # other processes hold the rest
        if isinstance(array, jax.Array) and {d.platform for d in array.devices()} == {"cpu"}:
            array = np.asarray(array)  # no copy; a slice would be compiled for each shape
        empty = not (array.ndim and array.size)
        return np.asarray(array if whole or empty else array[(0,) * (array.ndim - 1)])

    def write(self, name: str, what: Plan | float, parted: Parted) -> None:
        old = self.held[name]
        shape, is_numpy = tuple(old.shape), isinstance(old, np.ndarray)
        if isinstance(what, Plan):
            sizes, letters = parted or (shape, what.layout)
            if is_numpy:
                self.new[name] = stored(what, old.dtype, shape, letters, sizes)
            else:
                where = sharding_of(old)
                self.new[name] = realise(what, letters, sizes, shape, old.dtype, where)
        elif is_numpy or isinstance(old, jax.core.Tracer):
            self.new[name] = (np if is_numpy else jnp).full_like(old, what)
        else:
            full = np.broadcast_to(np.asarray(what, old.dtype), shape)
            self.new[name] = place(full.__getitem__, shape, old.dtype, sharding_of(old))
