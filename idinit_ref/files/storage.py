"""Tensors on their way into a file or out of one: block by block, in the bits of any dtype.

A `Tensor` is whatever has a shape and can be read in blocks: a plan, an array, noise, a tensor of
a file, or a rearranged view of one of them. Nothing here knows a file format or an axis order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, Format, round_array
from ..core.noise import standard_normal
from ..core.plan import Plan
from ..errors import DTypeError, OptionTypeError, ShapeError, message

__all__ = [
    "BLOCK",
    "DTYPES",
    "FLOATS",
    "ArrayTensor",
    "InFile",
    "Index",
    "NoiseTensor",
    "PlanTensor",
    "Tensor",
    "as_tensor",
    "blocks",
    "carrier",
    "check_axes",
    "convert",
    "decode",
    "index_of",
    "itemsize",
    "little",
    "nbytes_of",
    "obstacle",
    "stream",
    "unsigned",
]

Index = tuple[slice, ...]

DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
"""The dtypes of a checkpoint, with their safetensors names, in that format's own order."""

FLOATS = tuple(name for name in DTYPES if name in FORMATS)
"""Those of them that hold an IDInit weight."""

_BITS = {  # not NumPy's own: their bytes, infinity and NaN (e4m3fn has no infinity)
    "bfloat16": (2, 0x7F80, 0x7FC0),
    "float8_e4m3fn": (1, 0x7F, 0x7F),
    "float8_e5m2": (1, 0x7C, 0x7E),
}
_AXES = 32
BLOCK = 2**19
"""Elements that are read at once: 4 MiB in float64."""


# Dtypes -------------------------------------------------------------------------------------------


def itemsize(dtype: str) -> int:
    """Return the bytes of one entry.

    >>> itemsize("float32"), itemsize("bfloat16")
    (4, 2)
    """
    return _BITS[dtype][0] if dtype in _BITS else np.dtype(dtype).itemsize


def carrier(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a block: its own, or unsigned bits for those that it lacks.

    >>> carrier("float16"), carrier("bfloat16")
    (dtype('float16'), dtype('uint16'))
    """
    return np.dtype(f"u{_BITS[dtype][0]}" if dtype in _BITS else dtype)


def decode(block: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers of a block: itself, or in float64 what its bits mean.

    >>> decode(np.array([0x3F80, 0xC000], np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    """
    return _meanings(dtype)[block] if dtype in _BITS else block


@lru_cache(maxsize=3)
def _meanings(dtype: str) -> NDArray[np.float64]:
    """Return what each bit pattern of a narrow dtype means."""
    size, infinity, _ = _BITS[dtype]
    to, sign = FORMATS[dtype], 1 << (8 * size - 1)
    magnitude = np.arange(sign)
    exponent = magnitude >> (to.precision - 1)
    significand = magnitude & ((1 << (to.precision - 1)) - 1)
    significand += (exponent > 0) * (1 << (to.precision - 1))
    power = np.maximum(exponent, 1) - 1 + to.emin - (to.precision - 1)
    out = np.ldexp(significand.astype(np.float64), power)
    out[infinity:] = np.nan
    if dtype != "float8_e4m3fn":
        out[infinity] = np.inf
    both = np.concatenate([out, -out])
    both.flags.writeable = False
    return both


def unsigned(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integers that hold the bits of a dtype.

    >>> unsigned("float16")
    dtype('uint16')
    """
    return np.dtype(f"<u{itemsize(dtype)}")


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


def _encode(values: NDArray[np.float64], to: Format) -> NDArray[Any]:
    """Return the bits of values that a binary format of sign, exponent, significand holds."""
    size, infinity, nan = _BITS[to.name]
    finite = np.where(np.isfinite(values), values, 0.0)
    exponent = np.maximum(np.frexp(finite)[1] - 1, to.emin)
    significand = np.ldexp(np.abs(finite), to.precision - 1 - exponent).astype(np.int64)
    number = significand + ((exponent - to.emin).astype(np.int64) << (to.precision - 1))
    number[finite == 0] = 0
    number[np.isinf(values)] = infinity
    number[np.isnan(values)] = nan
    return np.asarray(number + (np.signbit(values) * (1 << (8 * size - 1))), dtype=f"u{size}")


def convert(block: NDArray[Any], own: str, to: str, name: str) -> NDArray[Any]:
    """Return a block in another dtype: rounded once, to nearest even.

    NaN and infinities stay what they are, where the dtype has them.

    Parameters
    ----------
    block : numpy.ndarray of carrier(own)
        The numbers, or their bits.
    own, to : str
        Of DTYPES. Only floating and complex ones are changed; the others stay as they are.
    name : str
        For the message.

    Returns
    -------
    numpy.ndarray of carrier(to)

    Raises
    ------
    DTypeError
        If an imaginary part would be lost, or an integer would have to be changed.
    RoundingError
        If a number overflows the dtype.
    """
    if own == to:
        return block
    if own not in FLOATS or to not in FLOATS or (own == "complex64" and to != own):
        lost = "it would lose its imaginary part" if own == "complex64" else "it stays as it is"
        should = f"as {to} {lost}"
        raise DTypeError(message(f"dtype of {name}", own, should, "convert the array first"))
    if (quick := _quickly(block, own, to)) is not None:
        return quick
    with np.errstate(invalid="ignore"):  # a signalling NaN
        exact = np.ascontiguousarray(decode(block, own), dtype=np.float64).reshape(-1)
    at = np.flatnonzero(exact.view(np.uint64))  # most are 0, and -0.0 has its sign
    some, format_ = exact[at], FORMATS[to]
    number = ~np.isnan(some) if to == "float8_e4m3fn" else np.isfinite(some)
    some[number] = round_array(some[number], format_, name)
    out: NDArray[Any] = np.zeros(block.shape, carrier(to))
    out.reshape(-1)[at] = _encode(some, format_) if to in _BITS else some
    return out


def _quickly(block: NDArray[Any], own: str, to: str) -> NDArray[Any] | None:
    """Return a block in another dtype where NumPy rounds to it once, unless a number overflows."""
    single = own in ("float32", "float16", "bfloat16")
    if to in _BITS and not (single and to == "bfloat16"):
        return None
    numbers = decode(block, own)
    with np.errstate(all="ignore"):
        out = numbers.astype("float32" if to in _BITS else to)
        if to in _BITS:  # the upper half of a float32, rounded to nearest even
            u = out.view(np.uint32)
            is_nan = np.isnan(out)
            upper = (u + np.uint32(0x7FFF) + ((u >> 16) & np.uint32(1))) >> 16
            nan = ((u >> 16) & np.uint32(0x8000)) | np.uint32(_BITS[to][2])
            bits = np.where(is_nan, nan, upper).astype(np.uint16)
            is_finite = (bits & 0x7F80) != 0x7F80
            return bits if np.array_equal(is_finite, np.isfinite(out)) else None
    return out if np.array_equal(np.isfinite(out), np.isfinite(numbers)) else None


# Tensors ------------------------------------------------------------------------------------------


@runtime_checkable
class Tensor(Protocol):
    """What can be written to a file: a shape, a dtype, and blocks.

    ``dtype`` is of DTYPES, or None for what is made in any dtype (a plan); of an `InFile` it may be
    another.
    ``read(index, dtype)`` returns the block ``[index]``, one slice of step 1 for each axis, as an
    array of ``carrier(dtype)``; it raises as `convert` does.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        ...

    @property
    def dtype(self) -> str | None:
        """Its dtype, or None for any."""
        ...

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block of it."""
        ...


@runtime_checkable
class InFile(Tensor, Protocol):
    """A tensor of a file, whose bytes are known even where their numbers are not.

    ``obstacle`` says why its numbers cannot be read, "" if they can; ``form`` is the suffix of
    files in which these bytes mean the same.
    """

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        ...

    @property
    def obstacle(self) -> str:
        """Why its numbers cannot be read."""
        ...

    @property
    def form(self) -> str:
        """The suffix of its file."""
        ...

    def read_bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return bytes of it, as they are stored."""
        ...


def obstacle(tensor: Tensor) -> str:
    """Return why the numbers of a tensor cannot be read, "" if they can.

    >>> obstacle(NoiseTensor((2,), 1.0))
    ''
    """
    return tensor.obstacle if isinstance(tensor, InFile) else ""


def nbytes_of(tensor: Tensor, dtype: str) -> int:
    """Return the size of a tensor in bytes, in a dtype; if it is not decoded, as it is stored.

    >>> nbytes_of(NoiseTensor((2, 3), 1.0), "bfloat16")
    12
    """
    if isinstance(tensor, InFile) and tensor.obstacle:
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
        if dtype not in _BITS:
            block: NDArray[Any] = self.plan.block(index, dtype=dtype)
            return block
        at, values = self.plan.entries(index)
        spans = (span.indices(size) for span, size in zip(index, self.shape, strict=True))
        out = np.zeros([max(stop - start, 0) for start, stop, _ in spans], carrier(dtype))
        to = FORMATS[dtype]
        out.reshape(-1)[at] = _encode(round_array(values, to, "an entry"), to)
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
        if self.dtype in _BITS:  # of ml_dtypes
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
    if value.dtype is not None and value.dtype not in DTYPES and not isinstance(value, InFile):
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
    if isinstance(tensor, InFile) and tensor.obstacle:
        for start in range(0, tensor.nbytes, 8 * BLOCK):
            yield tensor.read_bytes(start, min(start + 8 * BLOCK, tensor.nbytes))
        return
    for index in blocks(tensor.shape):
        yield little(tensor.read(index, dtype))


def little(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block's numbers in row-major order, contiguous and little-endian."""
    return np.ascontiguousarray(block.astype(block.dtype.newbyteorder("<"), copy=False)).reshape(-1)
