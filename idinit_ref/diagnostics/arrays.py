"""Helpers of all diagnostics: arrays of any framework, validated and converted to float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import format_of
from ..core.options import real
from ..errors import DTypeError, OptionError, OptionTypeError, ShapeError, message

Array = NDArray[np.float64]

EPS = 2.0**-52
"""The distance from 1 to the next float64."""


def eps_of(dtype: object) -> float:
    """Return the distance from 1 to the next number of a dtype of any framework."""
    return 2.0 ** (1 - format_of(dtype).precision)


def read(name: str, value: Any) -> tuple[Array, float]:
    """Return an array's values as float64, and the eps of its dtype.

    Raises an OptionTypeError, DTypeError, ShapeError or OptionError unless the value is a real
    floating array, not empty, with readable, finite entries.

    >>> read("x", np.float32([1, 2]))
    (array([1., 2.]), 1.1920928955078125e-07)
    """
    try:
        fit = hasattr(value, "dtype") and hasattr(value, "shape")
    except RuntimeError:  # a nested tensor has several shapes
        fit = False
    if not fit or isinstance(value, np.ma.MaskedArray):
        cure = "pass an array or tensor, such as np.asarray(value, dtype=float)"
        should = "it should be an array, neither masked nor nested"
        raise OptionTypeError(message(name, type(value).__name__, should, cure))
    try:
        form = format_of(value.dtype)
    except DTypeError:
        cure = "convert it, such as with np.asarray(value, dtype=float)"
        should = "it should be real and floating"
        raise DTypeError(message(f"{name}'s dtype", value.dtype, should, cure)) from None
    if form.is_complex:
        cure = "pass its real and imaginary parts separately"
        raise DTypeError(message(f"{name}'s dtype", form.name, "it should be real", cure))
    try:
        out: Array = np.asarray(_on_host(value)).astype(np.float64)
    except Exception as problem:  # each framework has its own error for unreadable values
        text = (str(problem).splitlines() or [""])[0]
        should = f"its values should be readable; {type(value).__module__} raised: {text}"
        cure = "pass an array with values, outside jit; gather a sharded array first"
        raise OptionTypeError(message(name, type(value).__name__, should, cure)) from problem
    if out.size == 0:
        should = "it should not be empty"
        raise ShapeError(message(f"{name}'s shape", out.shape, should, "give it entries"))
    _finite(name, out)
    return out, eps_of(value.dtype)


def _on_host(value: Any) -> Any:
    """Return an array that NumPy can read, without importing a framework."""
    if array_api_compat.is_torch_array(value):
        value = value.detach()
        return (value if str(value.layout) == "torch.strided" else value.to_dense()).double().cpu()
    if array_api_compat.is_cupy_array(value):
        return value.get()
    if hasattr(value, "dense_shape"):  # TensorFlow's sparse tensors, or rows of a table
        out = np.zeros([int(size) for size in value.dense_shape])
        places = np.asarray(value.indices)
        at = tuple(places.T) if places.ndim == 2 else places
        np.add.at(out, at, np.asarray(value.values).astype(np.float64))
        return out
    if hasattr(value, "__array_namespace__") and not isinstance(value, np.ndarray):
        xp = value.__array_namespace__()
        return array_api_compat.to_device(value, xp.__array_namespace_info__().default_device())
    return value


def _finite(name: str, array: Array) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(at) for at in bad[0])
        where = f"{name}[{', '.join(map(str, place))}]" if place else name
        cure = "find where it first overflows; a shallower net or a wider dtype may avoid it"
        raise OptionError(message(where, float(array[place]), "it should be finite", cure))


def named(name: str, values: Any) -> list[tuple[str, Any]]:
    """Return the names and items of a sequence or mapping."""
    if isinstance(values, Mapping):
        out = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        out = [(str(key), value) for key, value in enumerate(values)]
    else:
        should = "it should be a list or mapping of arrays, one for each layer or parameter"
        raise OptionTypeError(message(name, type(values).__name__, should, "pass [array, ...]"))
    if not out:
        raise OptionError(message(name, values, "it should not be empty", "give an array"))
    return out


def positive(name: str, value: object, below: float = np.inf) -> float:
    """Return a positive number; raise for any other value."""
    number = real(name, value)
    if not 0 < number < below:
        should = "it should be positive" + ("" if np.isinf(below) else f" and below {below:g}")
        raise OptionError(message(name, value, should, "choose one in range"))
    return number


def scaled(*arrays: Array) -> tuple[list[Array], int]:
    """Return arrays times 2**-e, and e, with the largest entry in [1/2, 1): no sum overflows."""
    _, e = np.frexp(max(float(np.max(np.abs(array))) for array in arrays))
    return [np.ldexp(array, -e) for array in arrays], int(e)


def mean_square(array: Array) -> float:
    """Return the mean of squares; inf only if float64 cannot hold the result."""
    scale = np.max(np.abs(array)) or np.float64(1.0)
    with np.errstate(over="ignore", under="ignore"):
        return float(np.mean((array / scale) ** 2) * scale * scale)
