"""Internal: the Jacobian of a computation in any framework, as a linear operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from ..errors import OptionTypeError, ShapeError, message
from .arrays import Array, eps_of
from .spectrum import Operator


class Linearised(NamedTuple):
    """A function at a point: f(x), v -> J v for v like x, and u -> J^T u for u like f(x)."""

    value: Any
    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


@dataclass(frozen=True)
class Arrays:
    """A framework's arrays: their name ("tensor"), their classes, and a test for floating ones.

    ``like(array, values)`` returns float64 values with the dtype, device and shape of an array.
    """

    word: str
    kinds: type | tuple[type, ...]
    is_floating: Callable[[Any], bool]
    like: Callable[[Any, Array], Any]

    def checked(self, name: str, value: Any) -> Any:
        """Return a value; raise unless it is a real floating array, not empty."""
        is_array = isinstance(value, self.kinds)
        if not is_array or not self.is_floating(value):
            dtype = getattr(value, "dtype", None)
            got = str(getattr(dtype, "name", dtype)) if is_array else type(value).__name__
            should = f"it should be a real floating {self.word}"
            cure = f"pass a function of one real {self.word}: wrap other arguments in a lambda"
            raise OptionTypeError(message(name, got, should, cure))
        shape = tuple(value.shape)
        if 0 in shape:
            should = "it should not be empty"
            raise ShapeError(message(f"{name}'s shape", shape, should, "give it entries"))
        return value


def jacobian_of(
    arrays: Arrays,
    f: Callable[[Any], Any],
    x: Any,
    linearise: Callable[[Callable[[Any], Any], Any], Linearised],
) -> Operator:
    """Return the Jacobian of f at x from a framework's two products; validates x and f(x).

    ``linearise(f, x)`` runs f once. The operator has the shape (entries of f(x), entries of x) and
    the larger eps of their dtypes. Raises an OptionTypeError or ShapeError if f is not callable, or
    if x or f(x) is not a real floating array, or is empty.

    >>> import numpy as np
    >>> numpy = Arrays("array", np.ndarray, lambda x: x.dtype.kind == "f",
    ...                lambda x, values: values.astype(x.dtype).reshape(x.shape))
    >>> square = lambda f, x: Linearised(f(x), lambda v: 2 * x * v, lambda u: 2 * x * u)
    >>> jacobian_of(numpy, lambda x: x * x, np.array([1.0, 3.0]), square) @ np.ones(2)
    array([2., 6.])
    """
    function: object = f
    if not callable(function):
        should, cure = "it should be callable", f"pass a function of one {arrays.word}, or a model"
        raise OptionTypeError(message("f", function, should, cure))
    arrays.checked("x", x)
    y, push, pull = linearise(lambda v: arrays.checked("f(x)", f(v)), x)
    return Operator(
        lambda v: push(arrays.like(x, v)),
        lambda u: pull(arrays.like(y, u)),
        (prod(map(int, y.shape)), prod(map(int, x.shape))),
        max(eps_of(x.dtype), eps_of(y.dtype)),
    )
