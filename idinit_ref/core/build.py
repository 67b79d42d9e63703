"""Writes entries into an array of any namespace, whatever they mean.

There are three ways, with one result. Arrays that can be written to (NumPy, PyTorch, CuPy,
array-api-strict) are filled with zeros and then written in strided slices, without temporaries.
Under a JAX trace the array is a broadcast comparison, which XLA fuses. Other immutable arrays are
written in NumPy and moved (JAX), or made chunk by chunk on demand (dask).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, product
from math import prod
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ..errors import DTypeError, OptionError, OptionTypeError, ShapeError, message
from .dtypes import Format, format_of

__all__ = [
    "Match",
    "Run",
    "Target",
    "check_memory",
    "chunks",
    "is_writable",
    "like",
    "merged",
    "move",
    "pieces",
    "positions",
    "resolve",
    "select",
    "slices",
    "united",
    "write",
    "zeros",
]

_EXACT = 2**24  # every smaller integer is a float32


class Run(NamedTuple):
    """Equal entries at ``start + sum(k_d * step_d)`` for all k_d < count_d."""

    value: float
    start: int
    dims: tuple[tuple[int, int], ...]  # (count, step), each


class Match(NamedTuple):
    """Entries where two broadcastable integer arrays agree, of one value or of a broadcastable."""

    value: float | NDArray[np.float64]
    rows: Any
    columns: Any


class Target(NamedTuple):
    """The destination of a weight: namespace, dtype and format, device, and how to make it."""

    xp: Any
    dtype: Any
    format: Format
    device: Any
    way: str  # "write", "trace", "move" or "chunks"


def _namespace(xp: Any) -> Any:
    """Return the array namespace of a module or of an array."""
    try:
        sample = xp if array_api_compat.is_array_api_obj(xp) else xp.empty((0,))
        return array_api_compat.array_namespace(sample)
    except (AttributeError, TypeError) as problem:
        should = "it should be an array namespace or an array of one"
        cure = (
            "pass numpy, torch, jax.numpy, cupy, dask.array or array_api_strict "
            "(the module, not its name)"
        )
        raise OptionTypeError(message("xp", xp, should, cure)) from problem


def resolve(xp: Any, dtype: Any, device: Any) -> Target:
    """Find namespace, dtype and device by making one scalar; DTypeError for a wrong dtype."""
    if (xp is None or xp is np) and device in (None, "cpu"):
        # NumPy itself: array_api_compat's wrapper of it takes long to import.
        known = _numpy_dtype(dtype)
        return Target(np, known, format_of(known), None, "write")
    xp = _namespace(np.empty(0) if xp is None else xp)
    try:
        probe = xp.zeros((), dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError, AssertionError) as problem:
        said = str(problem).splitlines()[0]
        if device is None or (isinstance(problem, TypeError) and dtype is not None):
            should = f"{xp.__name__} should accept it; it says: {said}"
            cure = "pass one of that namespace's own floating or complex dtypes"
            raise DTypeError(message("dtype", dtype, should, cure)) from problem
        should = f"{xp.__name__} should reach it; it says: {said}"
        cure = "pass a device of that namespace, or leave device out"
        raise OptionError(message("device", device, should, cure)) from problem
    if array_api_compat.is_dask_namespace(xp):
        way = "chunks"
    elif array_api_compat.is_writeable_array(probe):
        way = "write"
    else:
        way = "trace" if _is_traced(probe) else "move"
    return Target(xp, probe.dtype, format_of(probe.dtype), device, way)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        known: np.dtype[Any] = np.dtype(dtype)
        return known
    except TypeError as problem:
        should = f"NumPy should accept it; it says: {problem}"
        cure = "pass a NumPy or ml_dtypes dtype, or name the framework's namespace with xp="
        raise DTypeError(message("dtype", dtype, should, cure)) from problem


def _is_traced(scalar: Any) -> bool:
    """Whether an array has no value yet, as under jax.jit."""
    try:
        bool(scalar)
    except TypeError:
        return True
    return False


def is_writable(array: Any) -> bool:
    """Whether an array can be written to in place."""
    return array_api_compat.is_writeable_array(array) and not array_api_compat.is_dask_array(array)


def like(array: Any, values: NDArray[np.float64]) -> Any:
    """Return values in the namespace and dtype, and on the device, of another array."""
    xp, device = array_api_compat.array_namespace(array), array_api_compat.device(array)
    return xp.asarray(values, dtype=array.dtype, device=device)


def zeros(target: Target, shape: tuple[int, ...]) -> Any:
    """Return zeros where a target says."""
    device = {} if target.device is None else {"device": target.device}
    # NumPy's ValueError here means more bytes than there are addresses.
    too_large = (MemoryError, ValueError) if target.xp is np else (MemoryError,)
    try:
        return target.xp.zeros(shape, dtype=target.dtype, **device)
    except too_large as problem:
        size = f"{prod(shape):,} entries of {target.dtype}"
        cure = "make a part with plan(...).block(index), or write all to a file with save"
        raise MemoryError(message("size", size, "it should fit into memory", cure)) from problem


def slices(runs: Iterable[Run]) -> Iterator[tuple[slice, float]]:
    """Yield runs as slices of flat memory with the value of each: what is to be written."""
    for value, start, dims in runs:
        outer = sorted(dim for dim in dims if dim[0] > 1)
        count, step = outer.pop() if outer else (1, 1)  # the longest is one slice
        for ks in product(*(range(c) for c, _ in outer)):
            first = start + sum(k * s for k, (_, s) in zip(ks, outer, strict=True))
            yield slice(first, first + (count - 1) * step + 1, step), value


def write(flat: Any, what: Iterable[tuple[slice, float]]) -> None:
    """Write slices into a flat array that can be written to."""
    for at, value in what:
        flat[at] = value


def positions(runs: Iterable[Run]) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Yield each run's value and flat positions."""
    for value, start, dims in runs:
        place = np.asarray([start], dtype=np.int64)
        for count, step in dims:
            place = (place[:, None] + np.arange(count, dtype=np.int64) * step).reshape(-1)
        yield value, place


def united(matches: Iterable[Match]) -> list[Match]:
    """Return matches, those in different columns of the same rows as one: cheaper."""
    joined: list[Match] = []
    for match in matches:
        for at, (value, rows, columns) in enumerate(joined):
            if not np.array_equal(rows, match.rows):
                continue
            here = np.isin(columns, rows)
            if not (here & np.isin(match.columns, rows)).any():
                one = np.array_equal(value, match.value)
                values = value if one else np.where(here, value, match.value)
                joined[at] = Match(values, rows, np.where(here, columns, match.columns))
                break
        else:
            joined.append(match)
    return joined


def merged(shape: tuple[int, ...], matches: Sequence[Match]) -> tuple[tuple[int, ...], list[Match]]:
    """Return a shape and matches with axes joined that follow one another and are used alike.

    Loops over a few long axes are faster than loops over many short ones, as those of a kernel.
    Where XLA cuts the last axis apart again, it takes twice as long over integers as over floats.

    >>> rows, columns = np.arange(4).reshape(4, 1, 1), np.arange(6).reshape(1, 2, 3)
    >>> joined, (match,) = merged((4, 2, 3), [Match(1.0, rows, columns)])
    >>> joined, match.rows.shape, match.columns.shape
    ((4, 6), (4, 1), (1, 6))
    """
    arrays = [part for match in matches for part in match if isinstance(part, np.ndarray)]
    kinds: list[tuple[bool, ...]] = []
    for axis, size in enumerate(shape):
        use = tuple(array.shape[axis] > 1 for array in arrays)
        kinds.append(use if size > 1 or not kinds else kinds[-1])
    joined = [list(axes) for _, axes in groupby(range(len(shape)), kinds.__getitem__)]

    inner = tuple(prod(shape[axis] for axis in axes) for axes in joined)

    def fold(part: Any) -> Any:
        if not isinstance(part, np.ndarray):
            return part
        return part.reshape([prod(part.shape[axis] for axis in axes) for axes in joined])

    def key(part: NDArray[Any]) -> Any:
        exact = inner[-1:] > shape[-1:] and np.abs(part).max(initial=0) < _EXACT
        return fold(part).astype(np.float32 if exact else part.dtype)

    return inner, [Match(fold(value), key(a), key(b)) for value, a, b in matches]


def pieces(shape: tuple[int, ...], matches: Sequence[Match]) -> list[tuple[int, list[Match]]]:
    """Return pieces along the first axis: how many rows each has, and its matches.

    If few rows have entries, the others are pieces of zeros. Else there are two halves: XLA loops
    slowly over the short axes of a kernel where one comparison makes all of it, but not where
    several are joined.

    >>> far = Match(1.0, np.asarray([[-1], [-1], [0], [1], [-1]]), np.arange(2).reshape(1, 2))
    >>> [(rows, [match.rows.tolist() for match in own]) for rows, own in pieces((5, 2), [far])]
    [(2, []), (2, [[[0], [1]]]), (1, [])]
    """
    size = shape[0]
    used = np.zeros(size, dtype=bool)
    for match in matches:
        one, other = sorted((match.rows, match.columns), key=len)
        is_along = len(one) == 1 and len(other) == other.size == size
        used |= np.isin(other.reshape(-1), one) if is_along else True
    kept = used.nonzero()[0]
    first, last = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (0, 0)
    if 2 * (last - first) > size:
        cuts = [(0, size // 2, True), (size // 2, size, True)]
    else:
        cuts = [(0, first, False), (first, last, True), (last, size, False)]

    def cut(part: Any, start: int, stop: int) -> Any:
        return part[start:stop] if isinstance(part, np.ndarray) and len(part) > 1 else part

    return [
        (stop - start, [Match(*(cut(p, start, stop) for p in m)) for m in matches if has])
        for start, stop, has in cuts
        if stop > start
    ]


def select(target: Target, shape: tuple[int, ...], matches: Iterable[Match]) -> Any:
    """Return zeros with the matches in them, as expressions that a compiler can fuse."""
    xp, kept, inner = target.xp, list(matches), shape
    parts = [(shape[0], kept)]
    if all(isinstance(match.columns, np.ndarray) for match in kept):
        inner, kept = merged(shape, kept)
        parts = pieces(inner, kept) if len(inner) < len(shape) else [(inner[0], kept)]
    made = []
    for count, own in parts:
        out = zeros(target, (count, *inner[1:]))
        for value, rows, columns in own:
            same = xp.asarray(rows) == xp.asarray(columns)
            out = xp.where(same, xp.asarray(value, dtype=target.dtype), out)
        made.append(out)
    if not made:
        return zeros(target, shape)
    return xp.reshape(made[0] if len(made) == 1 else xp.concat(made), shape)


def move(target: Target, array: NDArray[Any]) -> Any:
    """Return a NumPy array's values where a target says."""
    return target.xp.asarray(array, dtype=target.dtype, device=target.device)


def chunks(
    target: Target, shape: tuple[int, ...], block: Callable[[tuple[slice, ...]], NDArray[Any]]
) -> Any:
    """Return a lazy dask array whose chunks are made by ``block(slices)``, each when needed."""
    empty = zeros(target, shape)

    def chunk(part: Any, block_info: Any = None) -> Any:
        where = block_info[0]["array-location"]
        return block(tuple(slice(a, b) for a, b in where)).reshape(part.shape)

    return target.xp.map_blocks(
        chunk, empty, dtype=target.dtype, meta=np.empty((0,) * len(shape), target.dtype)
    )


def check_memory(flat: tuple[int, ...], shape: tuple[int, ...], steps: tuple[int, ...]) -> None:
    """Raise unless flat memory has a place of its own for every entry."""
    if len(steps) != len(shape):
        should = f"there should be one number for each axis of shape {shape}"
        raise ShapeError(message("strides", steps, should, "count in elements, not in bytes"))
    if prod(shape) == 0:
        return
    reach = 0
    for step, size in sorted(zip(steps, shape, strict=True)):
        if size > 1 and step <= reach:
            should = f"in shape {shape} no two places should share memory"
            raise ShapeError(message("strides", steps, should, "write to a copy of its own"))
        reach += (size - 1) * step
    if len(flat) != 1 or flat[0] <= reach:
        should = f"shape {shape} with strides {steps} needs one axis of {reach + 1} places"
        raise ShapeError(message("flat", flat, should, "pass a flat view of all its memory"))
