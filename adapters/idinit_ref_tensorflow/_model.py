"""A whole Keras model: its plans, and its weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from array_api_compat import numpy as xp

from idinit_ref import Graph, Plan, Report
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import split_axes
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import IDInitError
from idinit_ref.roles.decide import Head, Override, decide
from idinit_ref.roles.report import Entry

from ._initializers import shape_and_dtype
from ._restore import as_it_was
from ._trace import traced

__all__ = ["init_", "plans"]


def plans(
    model: Any,
    example_inputs: Any = None,
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
    """Decide the weights of a whole Keras model, and change none (spec section 6).

    Parameters
    ----------
    model, example_inputs
        As in :func:`idinit_ref_tensorflow.trace`.
    gain, eps, wide, form, taps, head, embeddings, overrides
        As in :func:`init_`.

    Returns
    -------
    dict of str to Plan
        By the weight's name. A plan has the weight's shape, except where axes of one kind are
        joined (EinsumDense and attention: heads and their size).

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
    with as_it_was(model):
        return decide(
            traced(model, example_inputs).graph,
            gain=gain,
            eps=eps,
            wide=wide,
            form=form,
            taps=taps,
            head=head,
            embeddings=embeddings,
            overrides=overrides,
        ).plans


def init_(
    model: Any,
    example_inputs: Any = None,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> Report:
    """Give every weight of a Keras model its IDInit value, in place: all of them, or none.

    Parameters
    ----------
    model, example_inputs
        As in :func:`idinit_ref_tensorflow.trace`.
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
        Patterns of names as the shell has them (``"*/gate/kernel"``), each with a role
        ("transit", "zero", "bias" for zeros, "keep") or with options of `idinit_ref.plan`
        (``{"role": "transit", "gain": 0.5}``). All that fit apply, a later one over an earlier.

    Returns
    -------
    Report
        Every parameter, its role and why. Moving statistics and seeds are no parameters.

    Raises
    ------
    GraphError
        If the model cannot be traced, or has no parameters.
    ShapeError, LayoutError, OptionError, OptionTypeError
        If an option does not fit, or an override fits no parameter.
    DTypeError, RoundingError
        If a parameter cannot hold its values. After any error nothing is written, and what was
        not built is not.

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
    with as_it_was(model):
        graph, variables = traced(model, example_inputs)
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
        for entry in report.entries:  # all that could fail, before anything is written
            if entry.role != "keep":
                _value(graph, entry, variables[entry.name], check=True)
    for entry in report.entries:
        if entry.role != "keep":
            variable = variables[entry.name]
            variable.assign(_value(graph, entry, variable))
    return Report(
        tuple(
            entry.stored(variables[entry.name].shape, *_axes(graph, entry))
            for entry in report.entries
        )
    )


def _axes(graph: Graph, entry: Entry) -> tuple[str, tuple[int, ...]]:
    """Return a letter for each axis of a parted shape, and that shape: as `split_axes` takes it."""
    plain = (entry.shape, "" if entry.plan is None else entry.plan.layout)
    parted, letters = graph.by_name[entry.name].options.get("parted", plain)
    return letters, parted


def _value(graph: Graph, entry: Entry, variable: Any, check: bool = False) -> Any:
    """Make what a parameter is to hold, or only try whether it can."""
    try:
        shape, dtype = shape_and_dtype(variable)
        none = entry.plan or Plan((0, 0))
        empty = none.block((slice(0, 0),) * len(none.shape), dtype=dtype)
        if check:
            return empty
        if entry.plan is None:
            return xp.zeros(shape, dtype=empty.dtype)
        letters, parted = _axes(graph, entry)
        array = entry.plan.build(dtype=dtype)
        return xp.reshape(split_axes(xp, array, parted, letters), shape)
    except IDInitError as problem:
        raise type(problem)(f"of parameter {entry.name!r}: {problem}") from problem
