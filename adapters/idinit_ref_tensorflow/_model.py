"""A whole Keras model: its plans, and its weights in place."""

from __future__ import annotations

from typing import Any, Unpack

import keras
from array_api_compat import numpy as xp

from idinit_ref import Plan, Report
from idinit_ref.core.axes import stored
from idinit_ref.roles import ModelOptions
from idinit_ref.roles.decide import decide
from idinit_ref.roles.whole import Parted, Weights, initialise

from ._restore import restored_on_error
from ._trace import trace_model
from ._variable import shape_and_dtype

__all__ = ["init_", "plans"]


def plans(
    model: Any, example_inputs: Any = None, **options: Unpack[ModelOptions]
) -> dict[str, Plan]:
    """Decide the weights of a whole Keras model, and change none (spec section 6).

    Parameters
    ----------
    model, example_inputs
        As in :func:`idinit_ref_tensorflow.trace`.
    **options : idinit_ref.roles.ModelOptions
        As in :func:`init_`.

    Returns
    -------
    dict of str to Plan
        By the weight's name. A plan has the weight's shape, but joins several axes of one kind
        (EinsumDense and attention: heads and their size).

    Raises
    ------
    GraphError, ShapeError, LayoutError, OptionError, OptionTypeError
        As in :func:`init_`.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import plans
    >>> x = keras.Input((4,))
    >>> y = keras.layers.Dense(4, name="proj")(x)
    >>> plans(keras.Model(x, x + y))["proj/kernel"].role
    'zero'
    """
    with restored_on_error(model):
        return decide(trace_model(model, example_inputs).graph, **options).plans


def init_(model: Any, example_inputs: Any = None, **options: Unpack[ModelOptions]) -> Report:
    """Initialise a whole Keras model with IDInit, in place; on an error nothing changes.

    Parameters
    ----------
    model, example_inputs
        As in :func:`idinit_ref_tensorflow.trace`.
    **options : idinit_ref.roles.ModelOptions
        gain, eps, wide, form, taps, head, embeddings, norms, biases, overrides, strict: keywords,
        each with a default, as :class:`idinit_ref.roles.ModelOptions` lists them.

    Returns
    -------
    Report
        The role and value of every parameter, and the reason. It begins with the warnings. Moving
        statistics and seeds are not parameters.

    Raises
    ------
    GraphError
        If the model cannot be traced, or has no parameters; with ``strict=True`` also for a used
        matrix that would be kept.
    ShapeError, LayoutError, OptionError, OptionTypeError
        If an option is unknown or does not fit, or an override matches no parameter.
    DTypeError, RoundingError
        If a parameter cannot hold its values. On any error nothing is written, and an unbuilt model
        stays unbuilt.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import init_
    >>> x = keras.Input((4,))
    >>> h = keras.layers.Dense(4, activation="relu", name="fc")(x)
    >>> y = x + keras.layers.Dense(4, name="proj")(h)
    >>> report = init_(keras.Model(x, y))
    >>> report.roles
    {'fc/kernel': 'transit', 'fc/bias': 'bias', 'proj/kernel': 'zero', 'proj/bias': 'bias'}
    >>> report.summary
    '4 parameters: 1 transit, 1 zero, 2 bias, 0 keep'
    """
    with restored_on_error(model):
        graph, variables = trace_model(model, example_inputs)
        return initialise(graph, _Variables(variables), **options)


class _Variables(Weights):
    """Variables of Keras, or of TensorFlow itself."""

    def read(self, name: str, whole: bool = True) -> Any:
        value = getattr(self.held[name], "_value", self.held[name])
        if value is None or not getattr(value, "is_fully_addressable", True):
            return None
        at = ... if whole or 0 in value.shape else (0,) * (len(value.shape) - 1)
        return keras.ops.convert_to_numpy(value[at])

    def dtype(self, name: str) -> str:
        return shape_and_dtype(self.held[name])[1]

    def write(self, name: str, what: Plan | float, parted: Parted) -> None:
        variable = self.held[name]
        shape, dtype = shape_and_dtype(variable)
        if isinstance(what, Plan):
            sizes, letters = parted or (shape, what.layout)
            array = stored(what, dtype, shape, letters, sizes)
        else:
            array = Plan((0, 0)).build(dtype=dtype)
            array = xp.full(shape, what, dtype=array.dtype)
        variable.assign(array)
