"""Plans to a checkpoint file: streamed, complete or not there, readable by every framework.

The safetensors format is written by hand (8 bytes of header length, JSON, data without gaps),
because its own writers want every tensor in memory and write wrong bytes for strided ones.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .dtypes import FORMATS, Format, format_of, round_array
from .errors import DTypeError, OptionError, OptionTypeError, message
from .plan import Plan

__all__ = ["DTYPES", "FLOATS", "itemsize", "save", "whole_file"]

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
"""The dtypes of a safetensors file, in its own order: tensors of the last ones come first."""

FLOATS = tuple(name for name in DTYPES if name in FORMATS)
"""Those of them that hold an IDInit weight."""

_BITS = {  # not NumPy's own: their bytes, infinity and NaN (e4m3fn has no infinity)
    "bfloat16": (2, 0x7F80, 0x7FC0),
    "float8_e4m3fn": (1, 0x7F, 0x7F),
    "float8_e5m2": (1, 0x7C, 0x7E),
}
_BLOCK = 2**19  # elements made at once: 4 MiB in float64, and a few temporaries of that


def itemsize(dtype: str) -> int:
    """Return the bytes of one entry.

    >>> itemsize("float32"), itemsize("bfloat16")
    (4, 2)
    """
    return _BITS[dtype][0] if dtype in _BITS else np.dtype(dtype).itemsize


class _Tensor(NamedTuple):
    """One tensor of the file: its name, what it holds, and its dtype there."""

    name: str
    value: Plan | NDArray[Any]
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.value.shape) * itemsize(self.dtype)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes, row-major and little-endian, block by block."""
        bits = self.dtype in _BITS
        for index in _blocks(self.value.shape):
            if isinstance(self.value, Plan):
                block = self.value.block(index, dtype="float64" if bits else self.dtype)
            else:
                block = self.value[index]
            if block.dtype.name != self.dtype:
                block = self.converted(block)
            elif bits:
                block = block.view(f"u{itemsize(self.dtype)}")
            yield block.astype(block.dtype.newbyteorder("<"), copy=False).tobytes()

    def converted(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return a block in the file's dtype, or in its bits: rounded once, to nearest even.

        NaN and infinities stay what they are, where the dtype has them.
        """
        with np.errstate(invalid="ignore"):  # a signalling NaN
            exact = np.ascontiguousarray(block, dtype=np.float64).reshape(-1)
        at = np.flatnonzero(exact.view(np.uint64))  # most are 0, and -0.0 has its sign
        some, to = exact[at], FORMATS[self.dtype]
        number = ~np.isnan(some) if to.name == "float8_e4m3fn" else np.isfinite(some)
        some[number] = round_array(some[number], to, self.name)
        bits = to.name in _BITS
        out: NDArray[Any] = np.zeros(block.shape, f"u{itemsize(to.name)}" if bits else to.name)
        out.reshape(-1)[at] = _encode(some, to) if bits else some
        return out


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


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield indices that cut an array, in its row-major order, into blocks of bounded size."""
    if 0 in shape or not shape:
        yield (slice(None),) * len(shape)
        return
    axis = next(a for a in range(len(shape)) if prod(shape[a + 1 :]) <= _BLOCK)
    step = _BLOCK // prod(shape[axis + 1 :])
    rest = (slice(None),) * (len(shape) - axis - 1)
    for place in product(*map(range, shape[:axis])):
        outer = tuple(slice(i, i + 1) for i in place)
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, start + step), *rest)


def _tensor(name: object, value: object, dtype: str | None) -> _Tensor:
    """Check one tensor of a mapping, values included; raise before anything is written."""
    if not isinstance(name, str) or name == "__metadata__":
        raise OptionError(
            message("name", name, "it should be a string other than '__metadata__'", "rename it")
        )
    _check_text("name", name)
    if isinstance(value, Plan):
        tensor = _Tensor(name, value, dtype or "float32")
        value.check(tensor.dtype)
        return tensor
    if not isinstance(value, np.ndarray):
        raise OptionTypeError(
            message(
                name,
                type(value).__name__,
                "it should be a Plan or a NumPy array",
                "make it with idinit_ref.plan or numpy.asarray",
            )
        )
    own = value.dtype.name
    tensor = _Tensor(name, value, dtype if dtype and own in FLOATS else own)
    lost = value.dtype.kind == "c" and tensor.dtype != own
    if own not in DTYPES or lost:
        should = (
            f"as {tensor.dtype} it would lose its imaginary part"
            if lost
            else (f"a safetensors file holds {', '.join(DTYPES)}")
        )
        raise DTypeError(message(f"dtype of {name}", own, should, "convert the array first"))
    if tensor.dtype != own:
        for index in _blocks(value.shape):
            tensor.converted(value[index])
    return tensor


def _path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        should = "it should be a path as str or os.PathLike"
        raise OptionTypeError(message("path", path, should, "write 'model.safetensors'"))
    return Path(path)


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise OptionTypeError(
            message(
                name,
                type(value).__name__,
                "it should be a mapping with names as its keys",
                "pass a dict",
            )
        )


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError(
            message(
                name,
                text,
                "it should be text that UTF-8 holds, without lone surrogates",
                "decode it with errors='replace', or rename it",
            )
        ) from None


def save(
    path: str | os.PathLike[str],
    plans_or_arrays: Mapping[str, Plan | NDArray[Any]],
    *,
    dtype: Any = None,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write weights into a ``.safetensors`` file, in bounded memory, whole or not at all.

    The same input gives the same bytes. The file carries the options of every plan, as JSON in
    its metadata entry ``idinit_ref.plans``. Weights that IDInit does not define (embeddings,
    normalisation) are for you to add as arrays; without them load with ``strict=False``, or with
    ``from_pretrained``, which fills them in by the model's own initialisation. (There is no way
    yet to have them copied from another file.)

    Parameters
    ----------
    path : path
        Ends in ``.safetensors``. A file of that name is replaced, once the new one is complete
        (of a symbolic link, the file that it names); until then it is ``NAME.part-<hex>`` there.
    plans_or_arrays : mapping of str to Plan or numpy.ndarray
        Every tensor by its name. An array may have any strides, and NaN and infinities where the
        file's dtype has them.
    dtype : dtype, optional
        Of all plans and of all real arrays, rounded once to nearest even: float64, float32,
        float16, bfloat16, float8_e4m3fn, float8_e5m2, or complex64. If left out, plans are
        float32 and arrays as they are; integers and bools are always as they are.
    metadata : mapping of str to str, optional
        More entries for the file's metadata.
    progress : callable, optional
        Called as ``progress(bytes_written, bytes_in_all)`` after each block.

    Raises
    ------
    OptionError, OptionTypeError
        If the suffix, a name, a value or the metadata does not fit.
    DTypeError, RoundingError
        If a dtype is not one of those, or cannot hold a value (spec section 5).
    OSError
        If the file cannot be written. On any error there is no new file, and an old one is whole.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import idinit_ref as ir
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     save(path, {"fc1.weight": ir.plan((4, 3)), "fc2.weight": ir.plan((3, 4), "zero")})
    ...     [file.name for file in path.parent.iterdir()]
    ['model.safetensors']
    """
    target = _path(path)
    if target.suffix != ".safetensors":
        raise OptionError(
            message(
                "path",
                str(path),
                "its suffix should be .safetensors",
                "give a file name that ends so",
            )
        )
    _check_mapping("plans_or_arrays", plans_or_arrays)
    to = None if dtype is None else format_of(dtype).name
    if to is not None and to not in FLOATS:
        should = f"a safetensors file holds {', '.join(FLOATS)}"
        raise DTypeError(message("dtype", to, should, "choose one"))
    tensors = [_tensor(name, value, to) for name, value in plans_or_arrays.items()]
    order = list(DTYPES)
    tensors.sort(key=lambda tensor: (-order.index(tensor.dtype), tensor.name))
    head, total, done = _header(tensors, metadata), sum(t.nbytes for t in tensors), 0
    target = Path(os.path.realpath(path))
    try:
        with whole_file(target) as file:
            file.write(head)
            for tensor in tensors:
                for chunk in tensor.chunks():
                    file.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done, total)
    except OSError as problem:
        raise OSError(  # of the same class: Python chooses it by the number
            problem.errno or errno.EIO,
            message(
                "path",
                str(path),
                f"it could not be written ({problem.strerror or problem})",
                f"check that the folder exists and takes files, with {len(head) + total:,} bytes "
                "free; nothing was changed",
            ),
        ) from problem


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left then, nor after any other exception.
    """
    part = target.with_name(f"{target.name}.part-{secrets.token_hex(8)}")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _header(tensors: list[_Tensor], more: Mapping[str, str] | None) -> bytes:
    """Return the header's length and JSON, padded so that the data begins at a multiple of 8."""
    from . import __version__  # here, so that the package may import this module

    _check_mapping("metadata", {} if more is None else more)
    about = {
        "format": "pt",
        "idinit_ref": __version__,
        "idinit_ref.plans": json.dumps(
            {t.name: _options(t.value) for t in tensors if isinstance(t.value, Plan)}
        ),
        **(more or {}),
    }
    for key, value in about.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise OptionTypeError(
                message(
                    "metadata",
                    {key: value},
                    "keys and values should be strings",
                    "use json.dumps for anything else",
                )
            )
        _check_text("metadata", key)
        _check_text("metadata", value)
    entries: dict[str, object] = {"__metadata__": about}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": tensor.value.shape,
            "data_offsets": (offset, offset := offset + tensor.nbytes),
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _options(plan: Plan) -> dict[str, object]:
    """Return what `idinit_ref.plan` needs besides the shape to make this plan again."""
    kept = {"role": plan.role, "layout": plan.layout}
    options = {f.name: getattr(plan, f.name) for f in fields(plan) if f.compare}
    defaults = {f.name: f.default for f in fields(plan)}
    return kept | {k: v for k, v in options.items() if k != "shape" and v != defaults[k]}
