"""The Jacobian of a computation, by its products: for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idinit_ref.diagnostics.arrays import eps_of
from idinit_ref.diagnostics.spectrum import Operator
from idinit_ref.errors import OptionTypeError, ShapeError, message

__all__ = ["jacobian"]


def jacobian(f: Callable[[Any], Any], x: Any) -> Operator:
    """Return the Jacobian of f at x as a linear map, which is never written out.

    Parameters
    ----------
    f : callable
        From one tensor to one: a Keras model of the TensorFlow backend, say, called with
        ``training=False``. It is run once now, and once for each product with J
        (`tf.autodiff.ForwardAccumulator`); products with J^T (`tf.GradientTape`) reuse the first
        run. ``tf.function(f)`` is faster for many products.
    x : tf.Tensor or tf.Variable
        Real floating, of any shape. Several samples at once are several inputs.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        Of shape (entries of f(x), entries of x), both in row-major order; the vectors are computed
        with in the dtype of x.

    Raises
    ------
    OptionTypeError
        If x or f(x) is no real floating tensor.
    ShapeError
        If one of them is empty.
    ImportError
        If TensorFlow is not installed: on Keras' other backends use the adapter of that framework.

    Notes
    -----
    J[i, j] = d f(x)[i] / d x[j]; of a chain of L square IDI_tau it is tau^L I (theorem T5).

    Examples
    --------
    >>> import keras, tensorflow as tf
    >>> from idinit_ref.diagnostics.spectrum import singular_values
    >>> from idinit_ref_tensorflow import IDI, jacobian
    >>> layer = keras.layers.Dense(4, kernel_initializer=IDI())
    >>> singular_values(jacobian(layer, tf.zeros((1, 2)))).round(6)
    array([1.414214, 1.414214])
    """
    try:
        import tensorflow as tf
    except ImportError as problem:
        raise ImportError(
            'jacobian needs TensorFlow: pip install "idinit-ref[tensorflow]"; on another backend '
            "of Keras use idinit_ref_torch.jacobian or idinit_ref_jax.jacobian"
        ) from problem
    _check(tf, "x", x)
    x = tf.convert_to_tensor(x)
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        y = f(x)
    _check(tf, "f(x)", y)

    def matvec(v: NDArray[np.float64]) -> Any:
        with tf.autodiff.ForwardAccumulator(x, _like(tf, x, v)) as pushed:
            again = f(x)
        return pushed.jvp(again, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def rmatvec(u: NDArray[np.float64]) -> Any:
        none = tf.UnconnectedGradients.ZERO
        out = tape.gradient(y, x, output_gradients=_like(tf, y, u), unconnected_gradients=none)
        return tf.convert_to_tensor(out)  # of a lookup it comes as some rows

    precision = max(eps_of(x.dtype), eps_of(y.dtype))
    return Operator(matvec, rmatvec, (int(tf.size(y)), int(tf.size(x))), precision)


def _check(tf: Any, name: str, value: Any) -> None:
    is_tensor = isinstance(value, (tf.Tensor, tf.Variable))
    if not is_tensor or not value.dtype.is_floating:
        got = value.dtype.name if is_tensor else type(value).__name__
        cure = "take one real tensor to one: wrap the rest in a lambda"
        raise OptionTypeError(message(name, got, "it should be a real floating tensor", cure))
    if 0 in value.shape:
        raise ShapeError(message(f"{name}'s shape", tuple(value.shape), "it is empty", "fill it"))


def _like(tf: Any, tensor: Any, values: NDArray[np.float64]) -> Any:
    return tf.reshape(tf.cast(values, tensor.dtype), tensor.shape)
