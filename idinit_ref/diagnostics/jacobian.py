"""Inside: the Jacobian of a computation in any framework, by its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from ..errors import OptionTypeError, ShapeError, message
from .arrays import Array, eps_of
from .spectrum import Operator


class Linearised(NamedTuple):
    """A function at a place: f(x), the product J v of a v like x, and J^T u of a u like f(x)."""

    value: Any
    forward: Callable[[Any], Any]
    backward: Callable[[Any], Any]


@dataclass(frozen=True)
class Arrays:
    """What a framework calls its arrays ("tensor"), their classes, and which of them are floating.

    ``like(array, values)`` has the dtype, place and shape of an array, and float64 values.
    """

    word: str
    kinds: type | tuple[type, ...]
    is_floating: Callable[[Any], bool]
    like: Callable[[Any, Array], Any]

    def checked(self, name: str, value: Any) -> Any:
        """Return a value; OptionTypeError or ShapeError unless it is real, floating, not empty."""
        is_array = isinstance(value, self.kinds)
        if not is_array or not self.is_floating(value):
            dtype = getattr(value, "dtype", None)
            got = str(getattr(dtype, "name", dtype)) if is_array else type(value).__name__
            should = f"it should be a real floating {self.word}"
            cure = f"take one real {self.word} to one: wrap the rest in a lambda"
            raise OptionTypeError(message(name, got, should, cure))
        shape = tuple(value.shape)
        if 0 in shape:
            raise ShapeError(message(f"{name}'s shape", shape, "it is empty", "fill it"))
        return value


def jacobian_of(
    arrays: Arrays,
    f: Callable[[Any], Any],
    x: Any,
    linearise: Callable[[Callable[[Any], Any], Any], Linearised],
) -> Operator:
    """Return the Jacobian of f at x, both checked, from a framework's two products.

    ``linearise(f, x)`` runs f once. The operator has the shape (entries of f(x), entries of x) and
    the coarser eps of their dtypes. OptionTypeError or ShapeError if x or f(x) is no real floating
    array, or is empty.

    >>> import numpy as np
    >>> numpy = Arrays("array", np.ndarray, lambda x: x.dtype.kind == "f",
    ...                lambda x, values: values.astype(x.dtype).reshape(x.shape))
    >>> square = lambda f, x: Linearised(f(x), lambda v: 2 * x * v, lambda u: 2 * x * u)
    >>> jacobian_of(numpy, lambda x: x * x, np.array([1.0, 3.0]), square) @ np.ones(2)
    array([2., 6.])
    """
    arrays.checked("x", x)
    y, push, pull = linearise(lambda v: arrays.checked("f(x)", f(v)), x)
    return Operator(
        lambda v: push(arrays.like(x, v)),
        lambda u: pull(arrays.like(y, u)),
        (prod(map(int, y.shape)), prod(map(int, x.shape))),
        max(eps_of(x.dtype), eps_of(y.dtype)),
    )
