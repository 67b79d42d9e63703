"""Internal: values and slopes where signals are zero, of functions that are not zero there.

1 - exp(-h) vanishes with h, to first order, and 1 - cos(h) to second order, though exp and cos
never vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

__all__ = ["AtZero", "at_zero", "is_flat"]


class AtZero(NamedTuple):
    """A result where some signals are zero: its value, and its slope along each signal."""

    value: float
    slopes: Mapping[str, float]


_MOST = 4  # the most signals on which a result is followed
_STEP = 1e-4
_ROUNDING = 1e-7  # about that of float32, in which models compute, and in which 2 log 2 is stored
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "arctan": math.atan,
    "atan": math.atan,
    "cos": math.cos,
    "cosh": math.cosh,
    "erf": math.erf,
    "erfc": math.erfc,
    "exp": math.exp,
    "exp2": lambda x: 2.0**x,
    "expm1": math.expm1,
    "identity": lambda x: x,
    "log": math.log,
    "log10": math.log10,
    "log1p": math.log1p,
    "log2": math.log2,
    "logsigmoid": lambda x: -math.log1p(math.exp(-x)),
    "neg": lambda x: -x,
    "negative": lambda x: -x,
    "reciprocal": lambda x: 1 / x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sin": math.sin,
    "sinh": math.sinh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "tanh": math.tanh,
}
_SLOPES = {
    "arcsin": 1.0,
    "arcsinh": 1.0,
    "asin": 1.0,
    "asinh": 1.0,
    "hardtanh": 1.0,
    "softsign": 1.0,
    "square": 0.0,
    "tan": 1.0,
}
"""The slopes of functions with f(0) = 0 that are known at 0 alone; square is any power above 1."""

_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "pow": 0.0}
"""Names of powers; of another exponent, too, if no other operand says which."""


def at_zero(word: str, terms: Sequence[AtZero | float]) -> AtZero | None:
    """Return an operation's result at zero, given its operands there; None if it is not known.

    >>> exp = at_zero("exp", [AtZero(0.0, {"h": 2.0})])
    >>> exp.value, round(exp.slopes["h"], 6)
    (1.0, 2.0)
    >>> at_zero("sub", [1.0, AtZero(1.0, {"h": 2.0})])
    AtZero(value=0.0, slopes={'h': -2.0})
    >>> at_zero("relu", [AtZero(0.0, {"h": 2.0})])
    """
    values = [term.value if isinstance(term, AtZero) else term for term in terms]
    try:
        value, by = _partial(word.replace("_", ""), values, not isinstance(terms[-1], AtZero))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    if len(by) != len(terms) or not math.isfinite(value):
        return None
    slopes: dict[str, float] = {}
    for term, partial in zip(terms, by, strict=True):
        for signal, slope in term.slopes.items() if isinstance(term, AtZero) else ():
            slopes[signal] = slopes.get(signal, 0.0) + partial * slope
    if abs(value) <= _ROUNDING * max(map(abs, values)):
        value = 0.0
    return AtZero(value, slopes) if len(slopes) <= _MOST else None


def is_flat(slope: float) -> bool:
    """Whether a slope is 0, but for the error of a difference quotient."""
    return abs(slope) < 1e-6


def _partial(word: str, values: Sequence[float], is_number: bool) -> tuple[float, list[float]]:
    """Return the value of an operation, and its derivative by each operand; none if unknown.

    `is_number` says whether the last operand is a number.
    """
    if len(values) == 1:
        (x,) = values
        if word in _POWERS and x == 1:  # whatever the exponent
            return 1.0, [_POWERS[word]]
        if word in _SLOPES and not x:
            return 0.0, [_SLOPES[word]]
        function = _FUNCTIONS.get(word)
        if function is None:
            return 0.0, []
        return function(x), [(function(x + _STEP) - function(x - _STEP)) / (2 * _STEP)]
    if len(values) != 2:
        return 0.0, []
    a, b = values
    if word == "add":
        return a + b, [1.0, 1.0]
    if word in ("sub", "subtract"):
        return a - b, [1.0, -1.0]
    if word in ("mul", "multiply"):
        return a * b, [b, a]
    if word in ("div", "divide", "truedivide"):
        return a / b, [1 / b, -a / (b * b)]
    if word in _POWERS and is_number:
        return a**b, [b * a ** (b - 1), 0.0]
    return 0.0, []
