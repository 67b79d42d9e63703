"""Tensors on their way into a file or out of one, block by block.

A `Tensor` is whatever has a shape and can be read in blocks: a plan, an array, noise, a tensor of
a file, or a rearranged view of one of them. Nothing here knows a file format or an axis order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_array
from ..core.noise import standard_normal
from ..core.plan import Plan
from ..errors import DTypeError, OptionTypeError, ShapeError, message
from .bits import DTYPES, carrier, convert, encode, itemsize, little
from .stored import Index, StoredTensor

_AXES = 32
BLOCK = 2**19
"""Elements that are read at once: 4 MiB in float64."""


def check_axes(label: str, shape: tuple[int, ...]) -> None:
    """Raise for more axes than an array of every NumPy has."""
    if len(shape) > _AXES:
        should = f"it should have at most {_AXES} axes, as an array of every NumPy has"
        raise ShapeError(message(f"shape of {label}", shape, should, "reshape it"))


def index_of(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of a row-major place.

    >>> index_of(4, (2, 3))
    (1, 1)
    """
    return tuple(map(int, np.unravel_index(place, shape))) if shape else ()


Tell = Callable[[int, int], object]


class Progress:
    """Counts what is done, and tells it as ``tell(done, in_all)``."""

    def __init__(self, tell: Tell | None, total: int) -> None:
        self.tell, self.done, self.total = tell, 0, total

    def add(self, count: int) -> None:
        """Count that much more."""
        self.done += count
        if self.tell is not None:
            self.tell(self.done, self.total)


@runtime_checkable
class Tensor(Protocol):
    """What can be written to a file: a shape, a dtype, and blocks.

    ``dtype`` is of DTYPES, or None for what is made in any dtype (a plan); of a `StoredTensor` it
    may be another. ``read(index, dtype)`` returns the block ``[index]``, one slice of step 1 for
    each axis, as an array of ``carrier(dtype)``; it raises as `convert` does.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""

    @property
    def dtype(self) -> str | None:
        """Its dtype, or None for any."""

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block of it."""


def obstacle(tensor: Tensor) -> str:
    """Return why the numbers of a tensor cannot be read, "" if they can.

    >>> obstacle(NoiseTensor((2,), 1.0))
    ''
    """
    return tensor.obstacle if isinstance(tensor, StoredTensor) else ""


def nbytes_of(tensor: Tensor, dtype: str) -> int:
    """Return the size of a tensor in bytes, in a dtype; if it is not decoded, as it is stored.

    >>> nbytes_of(NoiseTensor((2, 3), 1.0), "bfloat16")
    12
    """
    if isinstance(tensor, StoredTensor) and tensor.obstacle:
        return tensor.nbytes
    return prod(tensor.shape) * itemsize(dtype)


@dataclass(frozen=True)
class PlanTensor:
    """A plan as a tensor."""

    plan: Plan
    dtype: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The plan's."""
        return self.plan.shape

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Make the block."""
        if carrier(dtype).name == dtype:
            block: NDArray[Any] = self.plan.block(index, dtype=dtype)
            return block
        at, values = self.plan.entries(index)
        spans = (span.indices(size) for span, size in zip(index, self.shape, strict=True))
        out = np.zeros([max(stop - start, 0) for start, stop, _ in spans], carrier(dtype))
        out.reshape(-1)[at] = encode(round_array(values, FORMATS[dtype], "an entry"), dtype)
        return out


@dataclass(frozen=True, eq=False)
class ArrayTensor:
    """An array as a tensor: in its own dtype, of any strides and byte order."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """The array's, by name."""
        return self.array.dtype.name

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Cut the block out."""
        block = np.asarray(self.array[index])
        if carrier(self.dtype).name != self.dtype:  # of ml_dtypes
            own = carrier(self.dtype)
            block = block.view(own.newbyteorder(block.dtype.byteorder)).astype(own, copy=False)
        return convert(block, self.dtype, dtype, "array")


@dataclass(frozen=True)
class NoiseTensor:
    """Normal noise N(0, std^2) that is the same everywhere: row r by Philox of [seed, r].

    Rows are along the first axis, as in the loosening of spec section 5; a vector is one row.
    """

    shape: tuple[int, ...]
    std: float
    seed: int = 0
    dtype: None = None

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Draw the rows of the block, of each what lies between its first and last entry."""
        first, inner = (index[:1], index[1:]) if len(self.shape) > 1 else ((slice(0, 1),), index)
        rows, *axes = self.shape if len(self.shape) > 1 else (1, *self.shape)
        spans = [range(*span.indices(size)) for span, size in zip(inner, axes, strict=True)]
        sizes = [len(span) for span in spans]
        chosen = range(*first[0].indices(rows))
        block = np.empty((len(chosen), *sizes))
        if block.size:
            places = np.ravel_multi_index(np.ix_(*spans), axes).reshape(-1)
            low, high = int(places[0]), int(places[-1]) + 1
            for k, r in enumerate(chosen):
                drawn = standard_normal(self.seed, r, prod(axes), low, high)
                block[k] = self.std * drawn[places - low].reshape(sizes)
        shape = sizes if len(self.shape) == 1 else block.shape
        return convert(block.reshape(shape), "float64", dtype, "noise")


def as_tensor(name: str, value: object) -> Tensor:
    """Return a plan, an array or a tensor as a tensor; raise for anything else."""
    if isinstance(value, Plan):
        return PlanTensor(value)
    if isinstance(value, np.ma.MaskedArray):
        should = "it should have no mask, which a file cannot hold"
        raise OptionTypeError(message(name, "MaskedArray", should, "fill it: value.filled(0)"))
    if isinstance(value, np.ndarray):
        value = ArrayTensor(value)
    if not isinstance(value, Tensor):
        should = "it should be a Plan or a NumPy array"
        cure = "make it with idinit_ref.plan or numpy.asarray"
        raise OptionTypeError(message(name, type(value).__name__, should, cure))
    is_open = value.dtype is None or isinstance(value, StoredTensor)
    if not is_open and value.dtype not in DTYPES:
        should = f"a checkpoint holds {', '.join(DTYPES)}"
        cure = "convert the array first"
        raise DTypeError(message(f"dtype of {name}", value.dtype, should, cure))
    return value


def blocks(shape: tuple[int, ...]) -> Iterator[Index]:
    """Yield indices that cut an array, in its row-major order, into blocks of bounded size."""
    if 0 in shape or not shape:
        yield (slice(None),) * len(shape)
        return
    axis = next(a for a in range(len(shape)) if prod(shape[a + 1 :]) <= BLOCK)
    step = BLOCK // prod(shape[axis + 1 :])
    rest = (slice(None),) * (len(shape) - axis - 1)
    for place in product(*map(range, shape[:axis])):
        outer = tuple(slice(i, i + 1) for i in place)
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, min(start + step, shape[axis])), *rest)


def stream(tensor: Tensor, dtype: str) -> Iterator[NDArray[Any]]:
    """Yield a tensor's numbers in row-major order, contiguous and little-endian, by blocks.

    If its numbers cannot be read, yield its bytes.
    """
    if isinstance(tensor, StoredTensor) and tensor.obstacle:
        for start in range(0, tensor.nbytes, 8 * BLOCK):
            yield tensor.read_bytes(start, min(start + 8 * BLOCK, tensor.nbytes))
        return
    for index in blocks(tensor.shape):
        yield little(tensor.read(index, dtype))
