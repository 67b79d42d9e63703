"""Validation of single options, and the errors for wrong values."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import isfinite, prod
from numbers import Real
from typing import Any, cast

import numpy as np

from ..errors import IndexingError, OptionError, OptionTypeError, ShapeError, message
from .layout import DEFAULT_LAYOUTS, Box

__all__ = ["box_of", "choice", "countable", "integer", "is_plain", "letters", "real", "sizes"]

_INT = frozenset({int})


def box_of(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Box:
    """Return the part of a shape that an index selects, all of it for None; or raise."""
    if index is None:
        return tuple(map(range, shape))
    cure = "write slice(i, i + 1) for one place, slice(None) for a whole axis"
    if not isinstance(index, tuple) or len(index) != len(shape):
        should = f"it should be a tuple of {len(shape)} slices of step 1, for the axes of {shape}"
        raise IndexingError(message("index", index, should, cure))
    box = []
    for span, size in zip(index, shape, strict=True):
        if not isinstance(span, slice) or span.step not in (None, 1):
            should = f"{span!r} should be a slice of step 1"
            raise IndexingError(message("index", index, should, cure))
        try:
            start, stop, _ = span.indices(size)
        except TypeError:
            should = f"{span!r} should have integer ends"
            raise IndexingError(message("index", index, should, "round them")) from None
        box.append(range(start, max(start, stop)))
    return tuple(box)


def is_plain(numbers: Sequence[int] | None) -> bool:
    """Whether sizes can be cached: True and 2.0 are no sizes, though equal to 1 and 2."""
    return numbers is None or (type(numbers) is tuple and _INT.issuperset(map(type, numbers)))


def countable(shape: tuple[int, ...]) -> None:
    """Raise for a shape of more places than an array can count."""
    if prod(shape) >= 2**63:
        should = f"{prod(shape):.3g} places are more than an array can count"
        cure = "ask for a part of it: block(index) or entries(index)"
        raise ShapeError(message("shape", shape, should, cure))


def choice(name: str, value: object, options: Sequence[str], cure: str = "pick one") -> None:
    """Raise unless a value is one of some words."""
    if not isinstance(value, str) or value not in options:
        should = f"it should be one of {', '.join(map(repr, options))}"
        raise OptionError(message(name, value, should, cure))


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return an integer within a range; refuse bools and floats."""
    try:
        boolean = isinstance(value, (bool, np.bool_))  # index() of the latter warns in NumPy 1
        number = None if boolean else operator.index(cast("Any", value))
    except TypeError:
        number = None
    if number is None:
        raise OptionTypeError(
            message(name, value, "it should be an integer", "write a whole number")
        )
    if number < low or (high is not None and number >= high):
        below = "" if high is None else f" and < {high}"
        raise OptionError(
            message(name, value, f"it should be an integer >= {low}{below}", "choose one in range")
        )
    return number


def sizes(
    name: str,
    values: object,
    error: type[ShapeError | OptionError],
    cure: str = "write its true length",
    low: int | None = 0,
) -> tuple[int, ...]:
    """Return integers of at least `low` as a tuple; refuse bools and floats."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        should = "it should be a tuple of integers"
        cure = f"write {name}=({values},)" if isinstance(values, int) else "pass a tuple"
        if isinstance(values, int) and name in ("stride", "tap"):
            cure = f"write one for each kernel axis, as {name}=({values},) or ({values}, {values})"
        elif isinstance(values, int) and name == "shape":  # one axis alone is no weight
            cure = f"write one for each axis, as shape=({abs(values)}, {abs(values)})"
        raise OptionTypeError(message(name, values, should, cure))
    out = []
    for axis, size in enumerate(values):
        try:
            out.append(integer(name, size, low=-(2**63) if low is None else low, high=2**63))
        except (OptionError, OptionTypeError) as problem:
            got = "a bool" if isinstance(size, (bool, np.bool_)) else repr(size)
            should = (
                f"every axis should be an integer{' >= 0' if low == 0 else ''} and < 2**63; "
                f"axis {axis} is {got}"
            )
            kind = error if isinstance(problem, OptionError) else OptionTypeError
            raise kind(message(name, tuple(values), should, cure)) from None
    return tuple(out)


def real(name: str, value: object, zero: bool = False) -> float:
    """Return a finite number that is not 0 or, if zero is allowed, not negative."""
    if isinstance(value, bool) or not isinstance(value, Real):
        cure = "pass a Python float, known when the plan is made (of an array or tensor: float(x))"
        raise OptionTypeError(message(name, value, "it should be a real number", cure))
    try:
        number = float(value)
    except OverflowError:
        number = float("nan")
    if not isfinite(number) or (number == 0.0 and not zero) or (zero and number < 0):
        sort = "finite and not negative" if zero else "finite and not 0"
        cure = (
            "give a standard deviation, or 0 for none"
            if zero
            else "all entries would be zero or meaningless; give a finite non-zero number"
        )
        raise OptionError(message(name, value, f"it should be {sort}", cure))
    return number


def letters(layout: object, shape: tuple[int, ...]) -> str:
    """Return the axis letters, by rank if there are none."""
    if layout is not None:
        if not isinstance(layout, str):
            raise OptionTypeError(
                message("layout", layout, "it should be a string of axis letters", "e.g. 'OIHW'")
            )
        return layout
    if len(shape) not in DEFAULT_LAYOUTS:
        cure = (
            "a bias is not a weight: set it to 0"
            if len(shape) < 2
            else "name the axes with layout=, e.g. 'EOIHW'"
        )
        should = f"without a layout it should have 2 to 5 axes, not {len(shape)}"
        raise ShapeError(message("shape", shape, should, cure))
    return DEFAULT_LAYOUTS[len(shape)]
