"""The Jacobian of a computation as a linear operator, for `idinit_ref.diagnostics`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from idinit_ref.diagnostics.jacobian import Arrays, Linearised, jacobian_of
from idinit_ref.diagnostics.spectrum import Operator

__all__ = ["jacobian"]


def jacobian(f: Callable[[Any], Any], x: Any) -> Operator:
    """Return the Jacobian of f at x as a linear operator; the matrix is never formed.

    Parameters
    ----------
    f : callable
        Maps one tensor to one tensor, for example a Keras model of the TensorFlow backend, called
        with ``training=False``. It is run once now, and once for each product with J
        (`tf.autodiff.ForwardAccumulator`). Products with J^T (`tf.GradientTape`) reuse the first
        run. For many products ``tf.function(f)`` is faster.
    x : tf.Tensor or tf.Variable
        Real floating, of any shape. A batch of samples counts as one vector of all their entries.

    Returns
    -------
    idinit_ref.diagnostics.Operator
        The shape is (entries of f(x), entries of x), both in row-major order. Vectors have the
        dtype of x.

    Raises
    ------
    OptionTypeError
        If f cannot be called, or x or f(x) is not a real floating tensor.
    ShapeError
        If x or f(x) is empty.
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
    zero = tf.UnconnectedGradients.ZERO

    def linearise(f: Callable[[Any], Any], x: Any) -> Linearised:
        x = tf.convert_to_tensor(x)
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(x)
            y = f(x)

        def push(v: Any) -> Any:
            with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
                y = f(x)
            return accumulator.jvp(y, unconnected_gradients=zero)

        def pull(u: Any) -> Any:
            out = tape.gradient(y, x, output_gradients=u, unconnected_gradients=zero)
            return tf.convert_to_tensor(out)  # a lookup's gradient is an IndexedSlices

        return Linearised(y, push, pull)

    arrays = Arrays(
        "tensor",
        (tf.Tensor, tf.Variable),
        lambda x: bool(x.dtype.is_floating),
        lambda x, values: tf.reshape(tf.cast(values, x.dtype), x.shape),
    )
    return jacobian_of(arrays, f, x, linearise)
