"""The numbers of a dtype, and the one rounding into it (spec section 5).

NumPy, PyTorch and JAX round float64 to bfloat16 by way of float32, so twice. The core therefore
rounds here, once and to nearest even, and hands every framework a value that it holds exactly.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import DTypeError, RoundingError, message

__all__ = ["FORMATS", "Format", "format_of", "round_array", "round_value"]


class Format(NamedTuple):
    """A binary floating-point format: significand bits, least normal exponent, largest value."""

    name: str
    precision: int
    emin: int
    largest: float
    is_complex: bool = False

    @property
    def smallest(self) -> float:
        """The smallest positive value, subnormal ones included."""
        return float(np.ldexp(1.0, self.emin - self.precision + 1))


_FLOAT64 = Format("float64", 53, -1022, float(np.finfo(np.float64).max))
_FLOAT32 = Format("float32", 24, -126, float(np.finfo(np.float32).max))
_FLOAT16 = Format("float16", 11, -14, 65504.0)
_FORMATS = (
    _FLOAT64,
    _FLOAT32,
    _FLOAT16,
    Format("bfloat16", 8, -126, (2 - 2.0**-7) * 2.0**127),
    Format("float8_e5m2", 3, -14, 57344.0),
    Format("float8_e5m2fnuz", 3, -15, 57344.0),
    Format("float8_e4m3", 4, -6, 240.0),
    Format("float8_e4m3fn", 4, -6, 448.0),
    Format("float8_e4m3fnuz", 4, -7, 240.0),
    Format("float8_e4m3b11fnuz", 4, -10, 30.0),
    Format("float8_e3m4", 5, -2, 15.5),
    Format("float6_e3m2fn", 3, -2, 28.0),
    Format("float6_e2m3fn", 4, 0, 7.5),
    Format("float4_e2m1fn", 2, 0, 6.0),
    # Wider than float64: entries are float64 numbers there (spec section 5).
    _FLOAT64._replace(name="float128"),
    _FLOAT64._replace(name="float96"),
    # A complex dtype holds its real part; the imaginary part is 0.
    _FLOAT16._replace(name="complex32", is_complex=True),
    _FLOAT32._replace(name="complex64", is_complex=True),
    _FLOAT64._replace(name="complex128", is_complex=True),
    _FLOAT64._replace(name="complex192", is_complex=True),
    _FLOAT64._replace(name="complex256", is_complex=True),
)
FORMATS = {each.name: each for each in _FORMATS}
"""Every dtype that can hold an IDInit weight, by the name that all frameworks share."""


def format_of(dtype: object) -> Format:
    """Return the format of a dtype of any framework; DTypeError unless it is real or complex.

    >>> format_of(np.dtype("float16")).smallest
    5.960464477539063e-08
    """
    try:
        return _known(dtype)
    except TypeError:  # unhashable, or no such dtype: raised here
        return _find(dtype)


def _find(dtype: object) -> Format:
    name = getattr(dtype, "name", None)  # of NumPy, JAX and TensorFlow
    if not isinstance(name, str):
        try:
            name = np.dtype(cast("Any", dtype)).name
        except TypeError:
            name = str(dtype).rsplit(".", 1)[-1]  # of PyTorch, or one that NumPy lacks
    try:
        return FORMATS[name]
    except KeyError:
        should = "it should be a real floating or complex dtype that holds 0 and both signs"
        cure = "choose float64, float32, float16, bfloat16, an fp8 or a complex one"
        raise DTypeError(message("dtype", name, should, cure)) from None


_known = lru_cache(maxsize=256, typed=True)(_find)


def _nearest(values: NDArray[np.float64], to: Format) -> NDArray[np.float64]:
    """Round to nearest, ties to even, exactly: scaling by powers of two loses nothing."""
    if to.precision >= _FLOAT64.precision:
        return values
    _, exponent = np.frexp(values)
    quantum = np.maximum(exponent - to.precision, to.emin - to.precision + 1)
    with np.errstate(over="ignore"):  # to infinity: the caller refuses it
        return np.asarray(np.ldexp(np.rint(np.ldexp(values, -quantum)), quantum))


def round_array(values: NDArray[np.float64], to: Format, what: str) -> NDArray[np.float64]:
    """Round float64 values once into a format; RoundingError if one overflows it."""
    out = _nearest(values, to)
    if not np.all(np.abs(out) <= to.largest):
        worst = float(values[np.argmax(np.abs(values))])
        should = f"the largest value of {to.name} is {to.largest!r}"
        cure = "make it smaller, or choose a dtype of wider range"
        raise RoundingError(message(what, worst, should, cure))
    return out


def round_value(value: float, to: Format, what: str) -> float:
    """Round one non-zero entry; RoundingError if it becomes 0 (a dead neuron) or overflows.

    >>> round_value(1e-6, FORMATS["bfloat16"], "eps")
    9.98377799987793e-07
    """
    out = float(round_array(np.asarray([value], dtype=np.float64), to, what)[0])
    if out == 0.0:
        should = f"it rounds to 0 in {to.name}, whose smallest value is {to.smallest!r}"
        cure = (
            f"use at least {to.smallest!r}, or a dtype of wider range: a weight that should "
            "keep its neurons alive would be dead"
        )
        raise RoundingError(message(what, value, should, cure))
    return out
