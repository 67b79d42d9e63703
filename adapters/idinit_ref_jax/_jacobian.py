"""The Jacobian of a computation as a linear operator, for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from idinit_ref.diagnostics.jacobian import Arrays, Linearised, jacobian_of
from idinit_ref.diagnostics.spectrum import Operator

__all__ = ["jacobian"]


def jacobian(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> Operator:
    """Return the Jacobian of f at x as a linear operator; the matrix is never formed.

    Parameters
    ----------
    f : callable
        Maps one array to one array, for example a module in evaluation mode. It is run once, by
        `jax.linearize`; `jax.linear_transpose` gives the products with J^T. For many products
        ``jax.jit(f)`` is faster.
    x : jax.Array
        Real floating, of any shape. A batch of samples counts as one vector of all their entries.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        The shape is (entries of f(x), entries of x), both in row-major order. Vectors have the
        dtype of x.

    Raises
    ------
    OptionTypeError
        If f cannot be called, or x or f(x) is not a real floating array.
    ShapeError
        If x or f(x) is empty.

    Notes
    -----
    J[i, j] = d f(x)[i] / d x[j]; of a chain of L square IDI_tau it is tau^L I (theorem T5).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from idinit_ref.diagnostics.spectrum import singular_values
    >>> import idinit_ref_jax as ij
    >>> w = ij.idi()(None, (2, 4), jnp.float32)
    >>> singular_values(ij.jacobian(lambda x: x @ w, jnp.zeros(2))).round(6)
    array([1.414214, 1.414214])
    """
    return jacobian_of(_ARRAYS, f, x, _linearise)


def _linearise(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> Linearised:
    y, push = jax.linearize(f, x)
    pull = jax.linear_transpose(push, x)
    return Linearised(y, push, lambda u: pull(u)[0])


_ARRAYS = Arrays(
    "array",
    jax.Array,
    lambda x: bool(jnp.issubdtype(x.dtype, jnp.floating)),
    lambda x, values: jnp.asarray(values.astype(x.dtype)).reshape(x.shape),
)
