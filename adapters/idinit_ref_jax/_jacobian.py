"""The Jacobian of a computation, by its products: for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from idinit_ref.diagnostics.arrays import eps_of
from idinit_ref.diagnostics.spectrum import Operator
from idinit_ref.errors import OptionTypeError, ShapeError, message

__all__ = ["jacobian"]


def jacobian(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> Operator:
    """Return the Jacobian of f at x as a linear map, which is never written out.

    Parameters
    ----------
    f : callable
        From one array to one; a module in evaluation mode, say. It is run once, by
        `jax.linearize`; `jax.linear_transpose` gives the products with J^T. What f compiles stays
        compiled: ``jax.jit(f)`` is faster for many products.
    x : jax.Array
        Real floating, of any shape. Several samples at once are several inputs.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        Of shape (entries of f(x), entries of x), both in row-major order; the vectors are computed
        with in the dtype of x.

    Raises
    ------
    OptionTypeError
        If x or f(x) is no real floating array.
    ShapeError
        If one of them is empty.

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
    _check("x", x)

    def checked(x: jax.Array) -> jax.Array:
        y = f(x)
        _check("f(x)", y)
        return y

    y, push = jax.linearize(checked, x)
    pull = jax.linear_transpose(push, x)

    def matvec(v: NDArray[np.float64]) -> Any:
        return push(_like(x, v))

    def rmatvec(u: NDArray[np.float64]) -> Any:
        return pull(_like(y, u))[0]

    precision = max(eps_of(x.dtype), eps_of(y.dtype))
    return Operator(matvec, rmatvec, (y.size, x.size), precision)


def _check(name: str, value: Any) -> None:
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jnp.floating):
        got = str(value.dtype) if isinstance(value, jax.Array) else type(value).__name__
        cure = "take one real array to one: wrap the rest in a lambda"
        raise OptionTypeError(message(name, got, "it should be a real floating array", cure))
    if value.size == 0:
        raise ShapeError(message(f"{name}'s shape", value.shape, "it is empty", "fill it"))


def _like(array: jax.Array, values: NDArray[np.float64]) -> jax.Array:
    return jnp.asarray(values.astype(array.dtype)).reshape(array.shape)
