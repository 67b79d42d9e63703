"""One variable, in place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import keras

from idinit_ref import Role
from idinit_ref.core.axes import stored
from idinit_ref.core.kernel import Taps
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import OptionError, OptionTypeError, message

from ._initializers import decide, dtype_name

__all__ = ["idi_", "idiz_", "shape_and_dtype"]

Variable = TypeVar("Variable")


def shape_and_dtype(variable: Any) -> tuple[tuple[int, ...], str]:
    """Return the shape and dtype of a variable; raise unless it can be assigned to."""
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(variable, keras.Variable):
        value = variable._value  # as stored: Keras may cast when it reads
        if value is None:
            should = "it should hold a value already"
            cure = "leave keras.StatelessScope first, or build the layer outside it"
            raise OptionError(message("variable", variable.path, should, cure))
    elif tensorflow is not None and isinstance(variable, tensorflow.Variable):
        value = variable.read_value()
    else:
        should = "it should be a keras.Variable or a tf.Variable"
        cure = (
            "pass layer.kernel of a built layer; with LoRA the kernel is computed, so pass the "
            "variables behind it; idinit_ref.idi makes a new array"
        )
        raise OptionTypeError(message("variable", type(variable).__name__, should, cure))
    return tuple(value.shape), dtype_name(value.dtype)


def _assign(variable: Variable, role: Role, **options: Any) -> Variable:
    shape, dtype = shape_and_dtype(variable)
    decided, letters = decide(shape, role, **options)
    # `shape_and_dtype` has raised if it has no assign().
    variable.assign(stored(decided, dtype, shape, letters))  # type: ignore[attr-defined]  # Keras is untyped
    return variable


def idi_(
    variable: Variable,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> Variable:
    """Make a variable an identity-preserving weight, in place (IDI_tau, [P, Eq. 3]).

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        Of a real floating or complex dtype; its shape and dtype stay.
    gain, wide, layout, groups, transposed, stride, blocks, taps, tap, loosen, loosen_at, seed
        As in :class:`IDI`.

    Returns
    -------
    keras.Variable or tf.Variable
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in `idinit_ref.plan` and `idinit_ref.Plan.build`; the variable is untouched then.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from idinit_ref_tensorflow import idi_
    >>> kernel = keras.Variable([[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]])
    >>> idi_(kernel) is kernel
    True
    >>> np.asarray(kernel)
    array([[1., 0., 1.],
           [0., 1., 0.]], dtype=float32)
    """
    return _assign(
        variable, "transit", gain=gain, wide=wide, layout=layout, groups=groups,
        transposed=transposed, stride=stride, blocks=blocks, taps=taps, tap=tap, loosen=loosen,
        loosen_at=loosen_at, seed=seed,
    )  # fmt: skip


def idiz_(
    variable: Variable,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Variable:
    """Make a variable a zero-preserving weight, in place (IDIZ_eps, spec section 2).

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        Of a real floating or complex dtype; its shape and dtype stay.
    eps, form, layout, groups, transposed, stride, blocks, taps, tap
        As in :class:`IDIZ`.

    Returns
    -------
    keras.Variable or tf.Variable
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in `idinit_ref.plan` and `idinit_ref.Plan.build`; the variable is untouched then.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from idinit_ref_tensorflow import idiz_
    >>> kernel = keras.Variable([[7.0, 7.0], [7.0, 7.0]])
    >>> idiz_(kernel, eps=0.5) is kernel
    True
    >>> np.asarray(kernel)
    array([[ 0.5, -0.5],
           [-0.5,  0.5]], dtype=float32)
    """
    return _assign(
        variable, "zero", eps=eps, form=form, layout=layout, groups=groups, transposed=transposed,
        stride=stride, blocks=blocks, taps=taps, tap=tap,
    )  # fmt: skip
