"""The differences of two checkpoints, tensor by tensor, in one pass over both.

Numbers are compared exactly; of equal dtypes, by their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS
from ..errors import RoundingError
from .bits import REALS, convert, decode, unsigned
from .storage import Progress, Tell, Tensor, as_tensor, index_of, nbytes_of, obstacle, stream

Way = Literal["equal", "values", "dtype", "shape", "only in a", "only in b"]


@dataclass(frozen=True)
class Difference:
    """The difference of two tensors that have one name in two checkpoints.

    Parameters
    ----------
    name : str
        The name of the tensors.
    way : {"equal", "values", "dtype", "shape", "only in a", "only in b"}
        "equal": the bits are equal, except payloads of NaNs. "values": some bits differ. "dtype":
        the dtypes differ; the numbers were compared if they can be decoded. "shape" and "only in":
        nothing was compared.
    shapes, dtypes : tuple
        Of a and of b. None if the tensor is missing; the dtype of a plan is also None.
    size, count : int
        The number of entries, and of entries that differ. A NaN equals a NaN. -0.0 differs from 0.0
        only within one dtype.
    largest : number, optional
        The largest absolute difference; infinite between NaN and a number.
    first : tuple of int, optional
        The index of the first entry that differs.
    values : tuple, optional
        Both numbers at this index.
    rounded : {"a", "b"}, optional
        The tensor that equals the other one after rounding once into its dtype.
    close : tuple of str
        Similar names that are only in the other checkpoint.
    transposed : bool
        Whether the shapes differ only in the order of their axes.
    raw : bool
        Whether a dtype cannot be decoded. Then bytes were compared: `size`, `count`, `first` and
        `values` refer to bytes. Tensors of two dtypes were not compared.

    Examples
    --------
    >>> (one,) = diff({"w": np.zeros(4)}, {"w": np.array([0.0, 1.0, 0.0, -2.0])})
    >>> one.way, one.count, one.largest, one.first, one.values
    ('values', 2, 2.0, (1,), (0.0, 1.0))
    """

    name: str
    way: Way
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    dtypes: tuple[str | None, str | None]
    size: int = 0
    count: int = 0
    largest: float | None = None
    first: tuple[int, ...] | None = None
    values: tuple[complex, complex] | None = None
    rounded: Literal["a", "b"] | None = None
    close: tuple[str, ...] = ()
    transposed: bool = False
    raw: bool = False

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.name}: {self._summary()}"

    def _summary(self) -> str:
        if self.way in ("only in a", "only in b"):
            return self.way + (f"; like {', '.join(self.close)}" if self.close else "")
        if self.way == "shape":
            hint = "; only the order of axes differs: try --dialect" if self.transposed else ""
            return f"shape {self.shapes[0]} in a, {self.shapes[1]} in b{hint}"
        parts = []
        if self.way == "dtype":
            parts.append(f"{self.dtypes[0]} in a, {self.dtypes[1]} in b")
        if self.raw:
            return "; ".join([*parts, self._byte_summary()])
        if self.rounded is not None and self.count:
            other = self.dtypes[1 if self.rounded == "a" else 0]
            parts.append(f"equal after rounding {self.rounded} to {other}")
        if self.count:
            parts.append(f"{self.count:,} of {self.size:,} differ, by {self.largest:.6g} at most")
        if self.first is not None and self.values is not None:
            one, two = self.values
            parts.append(f"first at {list(self.first)}: {one!r} and {two!r}")
        else:
            parts.append("equal" if self.way == "equal" else "the same numbers")
        return "; ".join(parts)

    def _byte_summary(self) -> str:
        if self.way == "dtype":
            return "not decoded, not compared"
        if self.first is None or self.values is None:
            return "equal"
        one, two = self.values
        at = f"first at byte {self.first[0]:,}: {one!r} and {two!r}"
        return f"not decoded; {self.count:,} of {self.size:,} bytes differ; {at}"


def diff(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], progress: Tell | None = None
) -> Iterator[Difference]:
    """Compare two checkpoints tensor by tensor, in one pass and bounded memory.

    Parameters
    ----------
    a, b : mapping of str to Tensor, Plan or numpy.ndarray
        Numbers of different dtypes are compared exactly; a plan gets the other tensor's dtype.
    progress : callable, optional
        Called as ``progress(entries_compared, entries_in_all)`` after each block.

    Yields
    ------
    Difference
        One for each name, also for equal tensors: in the order of `a`, then names only in `b`.

    Raises
    ------
    OptionTypeError, DTypeError, RoundingError
        If a value is not a tensor, or a plan does not fit the dtype of the other tensor.
    OSError, CheckpointError
        If reading fails.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> one = {"w": ir.idi((3, 2)), "x": np.zeros(2)}
    >>> two = {"w": ir.idi((3, 2), gain=2), "y": np.zeros(2)}
    >>> for difference in diff(one, two):
    ...     print(difference)
    w: 3 of 6 differ, by 1 at most; first at [0, 0]: 1.0 and 2.0
    x: only in a
    y: only in b
    """
    ours = {name: as_tensor(name, tensor) for name, tensor in a.items()}
    theirs = {name: as_tensor(name, tensor) for name, tensor in b.items()}
    only_a = {name: t for name, t in ours.items() if name not in theirs}
    only_b = {name: t for name, t in theirs.items() if name not in ours}
    pairs = [(t, theirs[name]) for name, t in ours.items() if name in theirs]
    total = sum(prod(x.shape) for x, y in pairs if x.shape == y.shape)
    read = Progress(progress, total).add
    for name, one in ours.items():
        if name in theirs:
            yield _compare(name, one, theirs[name], read)
        else:
            close = _close(name, one.shape, only_b)
            shapes = (one.shape, None)
            yield Difference(name, "only in a", shapes, (one.dtype, None), close=close)
    for name, two in only_b.items():
        close = _close(name, two.shape, only_a)
        yield Difference(name, "only in b", (None, two.shape), (None, two.dtype), close=close)


def _close(name: str, shape: tuple[int, ...], others: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return similar names, of tensors with the same sizes if there are any."""
    alike = [n for n, t in others.items() if sorted(t.shape) == sorted(shape)] or list(others)
    return tuple(get_close_matches(name, alike[:200], 3, 0.7))


def _compare(name: str, one: Tensor, two: Tensor, read: Callable[[int], None]) -> Difference:
    shapes, dtypes = (one.shape, two.shape), (one.dtype, two.dtype)
    if one.shape != two.shape:
        turned = sorted(one.shape) == sorted(two.shape)
        return Difference(name, "shape", shapes, dtypes, transposed=turned)
    raw = bool(obstacle(one) or obstacle(two))
    if raw and (one.dtype != two.dtype or nbytes_of(one, "") != nbytes_of(two, "")):
        read(prod(one.shape))
        return Difference(name, "dtype", shapes, dtypes, raw=True)
    x_type = "uint8" if raw else one.dtype or two.dtype or "float64"
    y_type = "uint8" if raw else two.dtype or x_type
    types = (x_type, y_type)
    wider = _wider(*types)
    size, count, largest = 0, 0, None
    first: tuple[int, ...] | None = None
    values: tuple[complex, complex] | None = None
    for x, y in zip(stream(one, x_type), stream(two, y_type), strict=True):
        start, size = size, size + x.size
        if not raw:
            read(x.size)
        candidates = _may_differ(x, x_type, y, y_type)
        x, y = x[candidates], y[candidates]
        at, xs, ys = _unequal(x, x_type, y, y_type)
        if at.size:
            if first is None:
                place = start + int(candidates[at[0]])
                first = (place,) if raw else index_of(place, one.shape)
                values = (xs[0].item(), ys[0].item())
            most = _farthest(xs, ys)
            count, largest = count + at.size, most if largest is None else max(largest, most)
        if wider is not None and not _is_rounded((x, y), types, wider):
            wider = None
    if raw:
        read(prod(one.shape))
        largest = None
    way: Way = "dtype" if x_type != y_type else "values" if count else "equal"
    rounded: Literal["a", "b"] | None = None if wider is None else ("a", "b")[wider]
    return Difference(
        name, way, shapes, dtypes, size, count, largest, first, values, rounded, raw=raw
    )


def _may_differ(x: NDArray[Any], x_type: str, y: NDArray[Any], y_type: str) -> NDArray[np.intp]:
    """Return where two flat blocks may differ; of two dtypes, where a bit of either is set."""
    x, y = x.view(unsigned(x_type)), y.view(unsigned(y_type))
    return np.flatnonzero(x != y) if x_type == y_type else np.flatnonzero((x != 0) | (y != 0))


def _unequal(
    x: NDArray[Any], x_type: str, y: NDArray[Any], y_type: str
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[Any]]:
    """Return the positions at which two flat blocks differ, and both numbers there."""
    if x_type == y_type:
        kind = unsigned(x_type)
        at = np.flatnonzero(x.view(kind) != y.view(kind))
        xs, ys = decode(x[at], x_type), decode(y[at], y_type)
    else:
        xs, ys = decode(x, x_type), decode(y, y_type)
        apart = xs != ys
        for side in (xs, ys):
            if side.dtype.itemsize == 8 and side.dtype.kind in "iu":
                wide = np.flatnonzero(np.abs(side.astype(np.float64)) >= 2**53)
                pairs = zip(xs[wide].tolist(), ys[wide].tolist(), strict=True)
                apart[wide] = [p != q for p, q in pairs]  # Python compares them exactly
        at = np.flatnonzero(apart)
        xs, ys = xs[at], ys[at]
    kept = (xs == xs) | (ys == ys)  # a NaN equals a NaN
    return at[kept], xs[kept], ys[kept]


def _farthest(xs: NDArray[Any], ys: NDArray[Any]) -> float:
    """Return the largest absolute difference: exact for integers of one dtype."""
    if xs.dtype == ys.dtype and xs.dtype.kind in "biu":
        kind = np.dtype(f"u{xs.itemsize}")
        wide, near = np.maximum(xs, ys), np.minimum(xs, ys)
        farthest: int = (wide.view(kind) - near.view(kind)).max().item()
        return farthest
    to = np.complex128 if "c" in (xs.dtype.kind, ys.dtype.kind) else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        apart = np.abs(xs.astype(to) - ys.astype(to))
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _wider(x_type: str, y_type: str) -> int | None:
    """Return which of two real floating dtypes has the higher precision; None for other dtypes."""
    if x_type == y_type or not {x_type, y_type} <= set(REALS):
        return None
    return int(FORMATS[x_type].precision < FORMATS[y_type].precision)


def _is_rounded(
    parts: tuple[NDArray[Any], NDArray[Any]], types: tuple[str, str], wider: int
) -> bool:
    """Whether the block of the wider dtype equals the other one after rounding once."""
    own, to, narrow = types[wider], types[1 - wider], parts[1 - wider]
    try:
        rounded = convert(parts[wider], own, to, "an entry")
    except RoundingError:
        return False
    return not _unequal(rounded, to, narrow, to)[0].size
