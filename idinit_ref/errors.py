"""What goes wrong, in one family: every message has the value, the expectation and the cure.

Examples
--------
>>> import idinit_ref as ir
>>> try:
...     ir.idi((4, -3))
... except ir.errors.ShapeError as problem:
...     print(problem)
shape = (4, -3), but every axis should be an integer >= 0 and < 2**63; axis 1 is -3; write its
true length
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DTypeError",
    "GraphError",
    "IDInitError",
    "IndexingError",
    "LayoutError",
    "OptionError",
    "OptionTypeError",
    "RoundingError",
    "ShapeError",
    "message",
]


class IDInitError(Exception):
    """The base of all errors that this project raises on purpose."""


class ShapeError(IDInitError, ValueError):
    """A shape that no weight can have."""


class LayoutError(IDInitError, ValueError):
    """A layout that does not fit the shape, or groups and blocks that do not divide it."""


class OptionError(IDInitError, ValueError):
    """An option of the right type with a value outside its range."""


class OptionTypeError(IDInitError, TypeError):
    """An option of the wrong type."""


class IndexingError(IDInitError, IndexError):
    """An index that is not one slice of step 1 for each axis."""


class GraphError(IDInitError, ValueError):
    """A computation's graph that is none, or that cannot be traced."""


class DTypeError(IDInitError, TypeError):
    """A dtype that cannot hold an IDInit weight."""


class CheckpointError(IDInitError, ValueError):
    """A checkpoint file that is broken, hostile, or not of a format that is read here."""


class RoundingError(IDInitError, ValueError):
    """An entry that the dtype would round to zero or to infinity."""


def message(name: str, got: object, should: str, cure: str) -> str:
    """Return ``name = got, but should; cure``: the one form of every message here.

    Parameters
    ----------
    name : str
        What it is about: the parameter as the caller wrote it.
    got : object
        What was given; shown by its repr.
    should : str
        What was expected.
    cure : str
        What to do.

    Returns
    -------
    str
        The message.

    Examples
    --------
    >>> message("gain", 0, "it should not be 0", "leave it out for 1")
    'gain = 0, but it should not be 0; leave it out for 1'
    """
    return f"{name} = {got!r}, but {should}; {cure}"
