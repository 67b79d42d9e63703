"""The exceptions of this project: every message has the value, the expectation and the cure.

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

from collections.abc import Iterator
from contextlib import contextmanager

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
    "prefixed",
    "printable",
]


class IDInitError(Exception):
    """The base of all errors that this project raises on purpose.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> try:
    ...     ir.idi((4, 3), groups=3)
    ... except ir.errors.IDInitError as problem:
    ...     print(type(problem).__name__, isinstance(problem, ValueError))
    LayoutError True
    """


class ShapeError(IDInitError, ValueError):
    """A shape that no weight can have.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, -3))
    Traceback (most recent call last):
        ...
    idinit_ref.errors.ShapeError: shape = (4, -3), but every axis should be an integer >= 0
    and < 2**63; axis 1 is -3; write its true length
    """


class LayoutError(IDInitError, ValueError):
    """A layout that does not fit the shape, or groups and blocks that do not divide it.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3), layout="OO")
    Traceback (most recent call last):
        ...
    idinit_ref.errors.LayoutError: layout = 'OO', but for shape (4, 3) the letter 'O' appears
    twice; name every axis once
    """


class OptionError(IDInitError, ValueError):
    """An option of the right type with a value outside its range.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3), gain=0)
    Traceback (most recent call last):
        ...
    idinit_ref.errors.OptionError: gain = 0, but it should be finite and not 0; all entries
    would be zero or meaningless; give a finite non-zero number
    """


class OptionTypeError(IDInitError, TypeError):
    """An option of the wrong type.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3), groups=2.5)
    Traceback (most recent call last):
        ...
    idinit_ref.errors.OptionTypeError: groups = 2.5, but it should be an integer; write a
    whole number
    """


class IndexingError(IDInitError, IndexError):
    """An index that is not one slice of step 1 for each axis.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.plan((4, 3)).block((0, 0))
    Traceback (most recent call last):
        ...
    idinit_ref.errors.IndexingError: index = (0, 0), but 0 should be a slice of step 1; write
    slice(i, i + 1) for one place, slice(None) for a whole axis
    """


class GraphError(IDInitError, ValueError):
    """A graph that is not valid, or a computation that cannot be traced.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.Graph([], ["y"])
    Traceback (most recent call last):
        ...
    idinit_ref.errors.GraphError: outputs = 'y', but there is no such node; name a node of the
    graph
    """


class DTypeError(IDInitError, TypeError):
    """A dtype that cannot hold an IDInit weight.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3), dtype="int32")
    Traceback (most recent call last):
        ...
    idinit_ref.errors.DTypeError: dtype = 'int32', but it should be a real floating or complex
    dtype that holds 0 and both signs; choose float64, float32, float16, bfloat16, an fp8 or a
    complex one
    """


class CheckpointError(IDInitError, ValueError):
    """A checkpoint file that is broken, hostile, or in an unsupported format.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from idinit_ref.files import open_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     path.touch()
    ...     open_checkpoint(path)
    Traceback (most recent call last):
        ...
    idinit_ref.errors.CheckpointError: size of 'model.safetensors' = 0, but a safetensors file
    should not be empty; download the file again, or write it anew
    """


class RoundingError(IDInitError, ValueError):
    """An entry that the dtype would round to zero or to infinity.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3), gain=1e6, dtype="float16")
    Traceback (most recent call last):
        ...
    idinit_ref.errors.RoundingError: gain = 1000000.0, but the largest value of float16 is
    65504.0; make it smaller, or choose a dtype of wider range
    """


def message(name: str, got: object, should: str, cure: str) -> str:
    """Return ``name = got, but should; cure``: the form of every message.

    Parameters
    ----------
    name : str
        The parameter, as the caller wrote it.
    got : object
        The value that was given; shown by its repr.
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
    return printable(f"{name} = {got!r}, but {should}; {cure}")


@contextmanager
def prefixed(where: str) -> Iterator[None]:
    """Put a text before the message of every error of this project that is raised inside.

    Parameters
    ----------
    where : str
        The text.

    Yields
    ------
    None
        Control, to the block of the with statement.

    Raises
    ------
    IDInitError
        The same error, with the longer message.

    Examples
    --------
    >>> with prefixed("parameter 'w'"):
    ...     raise ShapeError("it has no axes")
    Traceback (most recent call last):
        ...
    idinit_ref.errors.ShapeError: parameter 'w': it has no axes
    """
    try:
        yield
    except IDInitError as problem:
        raise type(problem)(f"{where}: {problem}") from problem


def printable(text: str) -> str:
    r"""Return a text with unprintable characters escaped, safe for a terminal.

    Parameters
    ----------
    text : str
        Any text, for example a name from a file.

    Returns
    -------
    str
        One line.

    Examples
    --------
    >>> print(printable("a\x1b[31m\udcff é"))
    a\x1b[31m\udcff é
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
