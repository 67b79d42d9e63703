"""Numbers of any dtype of a checkpoint, also of dtypes that NumPy lacks: bits and rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_array
from ..errors import DTypeError, message

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
"""The dtypes that can hold an IDInit weight."""

REALS = tuple(name for name in FLOATS if not FORMATS[name].is_complex)

_NARROW = {  # dtypes that NumPy lacks; shifted, their bits are those of a wider NumPy float
    # bytes, bytes of the wider float, shift of all bits but the sign, scale, bits of NaN
    "bfloat16": (2, 4, 16, 1.0, 0x7FC0),
    "float8_e4m3fn": (1, 2, 7, 256.0, 0x7F),
    "float8_e5m2": (1, 2, 8, 1.0, 0x7E),
}


def itemsize(dtype: str) -> int:
    """Return the bytes of one entry.

    >>> itemsize("float32"), itemsize("bfloat16")
    (4, 2)
    """
    return _NARROW[dtype][0] if dtype in _NARROW else np.dtype(dtype).itemsize


def carrier(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a block; for a dtype that NumPy lacks, unsigned bits.

    >>> carrier("float16"), carrier("bfloat16")
    (dtype('float16'), dtype('uint16'))
    """
    return np.dtype(f"u{_NARROW[dtype][0]}" if dtype in _NARROW else dtype)


def decode(block: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers of a block: the block itself, or its bits decoded into float64.

    >>> decode(np.array([0x3F80, 0xC000], np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if dtype not in _NARROW:
        return block
    size, wide, shift, scale, nan = _NARROW[dtype]
    sign, bits = 1 << (8 * size - 1), block.reshape(-1).astype(f"u{wide}")
    rest = bits & (sign - 1)
    whole = (bits & sign) << 8 * (wide - size) | rest << shift
    with np.errstate(invalid="ignore"):  # a signalling NaN
        numbers = whole.view(f"f{wide}") * np.float64(scale)
    return np.where(rest == nan, np.nan, numbers).reshape(block.shape)


def unsigned(dtype: str) -> np.dtype[Any]:
    """Return the unsigned integers that hold the bits of a dtype.

    >>> unsigned("float16")
    dtype('uint16')
    """
    return np.dtype(f"<u{itemsize(dtype)}")


def encode(values: NDArray[np.float64], to: str) -> NDArray[Any]:
    """Return numbers as bits of a dtype that NumPy lacks; it has to hold them exactly."""
    size, wide, shift, scale, nan = _NARROW[to]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        rest = np.abs(values / scale).astype(f"f{wide}").view(f"u{wide}") >> shift
    rest = np.where(np.isnan(values), nan, rest)
    sign = np.where(np.signbit(values), 1 << (8 * size - 1), 0)
    return np.asarray(rest | sign, f"u{size}")


def convert(block: NDArray[Any], own: str, to: str, name: str) -> NDArray[Any]:
    """Return a block in another dtype, rounded once, to nearest even.

    NaN and infinities stay, if the dtype has them. Integers, bools and complex numbers to a real
    dtype raise a DTypeError; a number that overflows raises a RoundingError with its name. The
    blocks have the dtypes carrier(own) and carrier(to).
    """
    if own == to:
        return block
    if own not in REALS or to not in FLOATS:
        is_complex = own in FLOATS and own not in REALS
        lost = "would lose the imaginary part" if is_complex else "is not done here"
        should = f"a conversion to {to} {lost}"
        raise DTypeError(message(f"dtype of {name}", own, should, "convert the array first"))
    if (out := _cast(block, own, to)) is not None:
        return out
    with np.errstate(invalid="ignore"):  # a signalling NaN
        exact = np.ascontiguousarray(decode(block, own), dtype=np.float64).reshape(-1)
    at = np.flatnonzero(exact.view(np.uint64))  # most entries are 0; -0.0 has its sign bit
    values, format_ = exact[at], FORMATS[to]
    number = ~np.isnan(values) if to == "float8_e4m3fn" else np.isfinite(values)
    values[number] = round_array(values[number], format_, name)
    out = np.zeros(block.shape, carrier(to))
    out.reshape(-1)[at] = encode(values, to) if to in _NARROW else values
    return out


def _cast(block: NDArray[Any], own: str, to: str) -> NDArray[Any] | None:
    """Return a block in another dtype by NumPy's cast; None if it rounds twice or overflows."""
    is_half = to == "bfloat16" and own in ("float32", "float16")
    if to in _NARROW and not is_half:
        return None
    numbers = decode(block, own)
    with np.errstate(all="ignore"):
        out = numbers.astype("float32" if is_half else to)
        is_finite = np.isfinite(out)
        if is_half:  # the upper half of a float32, rounded to nearest even
            u = out.view(np.uint32)
            even = u + np.uint32(0x7FFF) + ((u >> 16) & np.uint32(1))
            nan = (u & np.uint32(0x80000000)) | np.uint32(0x7FC00000)
            out = (np.where(np.isnan(out), nan, even) >> 16).astype(np.uint16)
            is_finite = (out & 0x7F80) != 0x7F80
    return out if np.array_equal(is_finite, np.isfinite(numbers)) else None


def little(block: NDArray[Any]) -> NDArray[Any]:
    """Return a block's numbers in row-major order, contiguous and little-endian."""
    return np.ascontiguousarray(block.astype(block.dtype.newbyteorder("<"), copy=False)).reshape(-1)
