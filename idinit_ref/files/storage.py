"""Tensors that are read block by block, from a file or for one.

A `Tensor` has a shape and can be read in blocks: a plan, an array, noise, a tensor of a file, or a
rearranged view of one of them. File formats and axis orders are not known here.
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
"""The elements of one block: 4 MiB in float64."""


def check_axes(label: str, shape: tuple[int, ...]) -> None:
    """Raise if a shape has more axes than every version of NumPy supports."""
    if len(shape) > _AXES:
        should = f"it should have at most {_AXES} axes, which every version of NumPy supports"
        raise ShapeError(message(f"shape of {label}", shape, should, "reshape it"))


def index_of(place: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the index of a row-major position.

    >>> index_of(4, (2, 3))
    (1, 1)
    """
    return tuple(map(int, np.unravel_index(place, shape))) if shape else ()


Tell = Callable[[int, int], object]


class Progress:
    """Counts progress, and calls ``tell(done, total)``."""

    def __init__(self, tell: Tell | None, total: int) -> None:
        self.tell, self.done, self.total = tell, 0, total

    def add(self, count: int) -> None:
        """Add to the count, and report it."""
        self.done += count
        if self.tell is not None:
            self.tell(self.done, self.total)


@runtime_checkable
class Tensor(Protocol):
    """A tensor for a file: a shape, a dtype, and blocks.

    ``dtype`` is one of DTYPES, or None if any dtype is possible (a plan); a `StoredTensor` may have
    another. ``read(index, dtype)`` returns the block ``[index]`` as an array of ``carrier(dtype)``;
    the index has one slice of step 1 for each axis. It raises the errors of `convert`.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""

    @property
    def dtype(self) -> str | None:
        """Its dtype, or None if any is possible."""

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block."""


def obstacle(tensor: Tensor) -> str:
    """Return why the numbers of a tensor cannot be read, "" if they can.

    >>> obstacle(NoiseTensor((2,), 1.0))
    ''
    """
    return tensor.obstacle if isinstance(tensor, StoredTensor) else ""


def nbytes_of(tensor: Tensor, dtype: str) -> int:
    """Return the bytes of a tensor in a dtype; if it is not decoded, its stored bytes.

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
        """The shape of the plan."""
        return self.plan.shape

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Build a block."""
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
    """An array as a tensor, with any strides and byte order."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.array.shape

    @property
    def dtype(self) -> str:
        """The name of the array's dtype."""
        return self.array.dtype.name

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block."""
        block = np.asarray(self.array[index])
        if carrier(self.dtype).name != self.dtype:  # a dtype of ml_dtypes
            own = carrier(self.dtype)
            block = block.view(own.newbyteorder(block.dtype.byteorder)).astype(own, copy=False)
        return convert(block, self.dtype, dtype, "array")


@dataclass(frozen=True)
class NoiseTensor:
    """Reproducible normal noise N(0, std^2): row r is drawn by Philox with the key [seed, r].

    Rows are along the first axis, as in the loosening of spec section 5. A vector is one row.
    """

    shape: tuple[int, ...]
    std: float
    seed: int = 0
    dtype: None = None

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Draw the rows of a block, each from the block's first to its last column."""
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
    """Return a plan, an array or a tensor as a tensor; raise for any other type."""
    if isinstance(value, Plan):
        return PlanTensor(value)
    if isinstance(value, np.ma.MaskedArray):
        should = "it should have no mask: a file cannot hold one"
        raise OptionTypeError(message(name, "MaskedArray", should, "fill it: value.filled(0)"))
    if isinstance(value, np.ndarray):
        value = ArrayTensor(value)
    if not isinstance(value, Tensor):
        should = "it should be a Plan or a NumPy array"
        cure = "make it with idinit_ref.plan or numpy.asarray"
        raise OptionTypeError(message(name, type(value).__name__, should, cure))
    is_open = value.dtype is None or isinstance(value, StoredTensor)
    if not is_open and value.dtype not in DTYPES:
        should = f"a checkpoint can hold {', '.join(DTYPES)}"
        cure = "convert the array first"
        raise DTypeError(message(f"dtype of {name}", value.dtype, should, cure))
    return value


def blocks(shape: tuple[int, ...]) -> Iterator[Index]:
    """Yield the indices of blocks of bounded size that cover an array in row-major order."""
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
    """Yield a tensor's numbers by blocks: row-major, contiguous and little-endian.

    If its numbers cannot be decoded, yield its bytes.
    """
    if isinstance(tensor, StoredTensor) and tensor.obstacle:
        for start in range(0, tensor.nbytes, 8 * BLOCK):
            yield tensor.read_bytes(start, min(start + 8 * BLOCK, tensor.nbytes))
        return
    for index in blocks(tensor.shape):
        yield little(tensor.read(index, dtype))
