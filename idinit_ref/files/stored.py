"""Tensors of checkpoint files: only the header's entry is in memory; numbers are read in blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.options import box_of
from ..errors import DTypeError, ShapeError, message
from .bits import DTYPES, carrier, convert, itemsize
from .disk import Bytes, Packed, Plain, Spans, read_block

Index = tuple[slice, ...]

_CODES = {  # safetensors' names for dtypes of other libraries with the same bytes
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
_MOST = 63 if int(np.__version__.partition(".")[0]) > 1 else 31  # NumPy's axes; one is for bytes


@dataclass(slots=True, eq=False)  # not frozen, which doubles the time: a file may have a million
class StoredTensor:
    """A tensor of a checkpoint. Nothing is read before its first block.

    Parameters
    ----------
    name : str
        Its name in the checkpoint; any characters are possible.
    dtype : str
        Its stored dtype: one of `idinit_ref.files.bits.DTYPES`, or the file's name of another one,
        whose numbers cannot be read.
    shape : tuple of int
        The sizes of its axes.
    path : pathlib.Path
        The file that holds its numbers.

    Examples
    --------
    >>> StoredTensor("fc.weight", "bfloat16", (4, 3), Path("model.safetensors")).nbytes
    24
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path

    @property
    def nbytes(self) -> int:
        """Its size in bytes, uncompressed.

        Examples
        --------
        >>> StoredTensor("fc.weight", "float32", (4, 3), Path("model.npz")).nbytes
        48
        """
        return prod(self.shape) * itemsize(self.dtype)

    @property
    def obstacle(self) -> str:
        """Why its numbers cannot be read; "" if they can.

        Examples
        --------
        >>> StoredTensor("fc.scale", "F8_E8M0", (4, 3), Path("model.safetensors")).obstacle
        'F8_E8M0 is not decoded'
        """
        if self.dtype not in DTYPES:
            return f"{self.dtype} is not decoded"
        some = prod(size for size in self.shape if size) * itemsize(self.dtype)
        return "no array has its shape" if len(self.shape) > _MOST or some >= 2**63 else ""

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block as a new array; only the bytes of the block are read.

        Parameters
        ----------
        index : tuple of slice
            One of step 1 for each axis.
        dtype : str
            One of `idinit_ref.files.bits.DTYPES`; numbers are rounded once if it is not the stored
            dtype.

        Returns
        -------
        numpy.ndarray
            The block, in this dtype; if NumPy lacks it (bfloat16, float8), its bits as unsigned
            integers.

        Raises
        ------
        IndexingError
            If the index has another form.
        CheckpointError
            If the file has changed, or its numbers are broken.
        DTypeError, RoundingError
            If its numbers are not decoded, or the dtype cannot hold them.
        ShapeError
            If no NumPy array can have its shape.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> from idinit_ref.files import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.npz")
        ...     np.savez(path, fc=np.eye(2, 3))
        ...     open_checkpoint(path).tensors["fc"].read((slice(0, 1), slice(None)), "float32")
        array([[1., 0., 0.]], dtype=float32)
        """
        if self.dtype not in DTYPES:
            should = "its numbers are not decoded here"
            cure = "copy its bytes (--keep-from), or convert it with the library that wrote it"
            raise DTypeError(message(f"dtype of {self.name!r}", self.dtype, should, cure))
        if self.obstacle:
            should = f"an array has at most {_MOST} axes, and fewer than 2**63 bytes"
            raise ShapeError(message(f"shape of {self.name!r}", self.shape, should, "reshape it"))
        return convert(self._block(box_of(index, self.shape)), self.dtype, dtype, self.name)

    def _block(self, spans: Spans) -> NDArray[Any]:
        """Return a block of the stored numbers; each kind of file has its own way."""
        raise NotImplementedError

    def read_bytes(self, start: int, stop: int) -> Bytes:
        """Return a range of its stored bytes.

        Parameters
        ----------
        start, stop : int
            The range, from 0 to `nbytes`.

        Returns
        -------
        bytes-like
            ``stop - start`` bytes, in row-major order.

        Raises
        ------
        CheckpointError
            If the file has changed, or its numbers are broken.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> from idinit_ref.files import open_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.npz")
        ...     np.savez(path, scale=np.array([49, 50], np.uint8))
        ...     bytes(open_checkpoint(path).tensors["scale"].read_bytes(1, 2))
        b'2'
        """
        raise NotImplementedError


def known_dtype(name: str) -> str:
    """Return the name used here for a library's dtype.

    >>> known_dtype("float8_e8m0fnu"), known_dtype("float32")
    ('F8_E8M0', 'float32')
    """
    return _CODES.get(name, name)


@dataclass(slots=True, eq=False)
class Foreign(StoredTensor):
    """A tensor whose blocks a library reads; if it is not decoded, their bytes."""

    width: int  # bytes of an entry

    @property
    def nbytes(self) -> int:
        """Its size in bytes, uncompressed."""
        return prod(self.shape) * self.width

    @property
    def bits(self) -> np.dtype[Any]:
        """The dtype of a block."""
        return carrier(self.dtype) if self.dtype in DTYPES else np.dtype(f"V{self.width}")

    def read_bytes(self, start: int, stop: int) -> Bytes:
        """Return a range of its bytes, in row-major order."""
        rows, *rest = self.shape or (1,)
        step = self.nbytes // rows
        low, high = start // step, -(-stop // step)
        spans = (range(low, high), *map(range, rest)) if self.shape else ()
        content = np.ascontiguousarray(self._block(spans)).reshape(-1).view(np.uint8)
        return content[start - low * step : stop - low * step]


def form_of(tensor: StoredTensor) -> str:
    """Return the suffix of the format in which a tensor's bytes keep their meaning."""
    alike = isinstance(tensor, Foreign) and tensor.dtype in _CODES.values()
    return ".safetensors" if alike else tensor.path.suffix.lower()


@dataclass(slots=True, eq=False)
class Raw(StoredTensor):
    """A tensor of safetensors or npz: its bytes in order."""

    data: Plain | Packed = field(repr=False)
    skip: int = 0
    size: int = 0
    order: Literal["<", ">"] = "<"
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        """Its size in bytes, uncompressed."""
        return self.size

    def read_bytes(self, start: int, stop: int) -> Bytes:
        """Return a range of its stored bytes."""
        content = np.empty(stop - start, np.uint8)
        with self.data.reading() as get:
            get(self.skip + start, content)
        return content

    def _block(self, spans: Spans) -> NDArray[Any]:
        shape = self.shape
        if self.fortran:
            spans, shape = spans[::-1], shape[::-1]
        size = itemsize(self.dtype)
        with self.data.reading() as get:
            raw = read_block(
                lambda at, into: get(self.skip + at, into), (*shape, size), (*spans, range(size))
            )
        own = carrier(self.dtype)
        block: NDArray[Any]
        if self.dtype == "bool":
            block = raw[..., 0] != 0  # NumPy's bools allow only the bytes 0 and 1
        else:
            stored = raw.reshape(-1).view(own.newbyteorder(self.order))
            block = stored.astype(own, copy=False).reshape(raw.shape[:-1])
        return block.T if self.fortran else block
