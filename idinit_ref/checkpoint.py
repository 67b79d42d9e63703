"""Checkpoints that exist: headers first, numbers block by block, against broken and hostile files.

A file is believed only as far as its own size bears it out: nothing is allocated by what a header
says, nothing outside the file is read, and whatever is wrong is one `CheckpointError` of one line.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .errors import (
    CheckpointError,
    IDInitError,
    IndexingError,
    OptionError,
    OptionTypeError,
    message,
)
from .storage import DTYPES, HEADER, Index, carrier, check_name, convert, itemsize

__all__ = ["Checkpoint", "Stored", "open_checkpoint"]

_Bytes = NDArray[np.uint8]
_Get = Callable[[int, _Bytes], None]  # fills an array with the bytes from a place on
_Spans = tuple[range, ...]

_AXES = 32  # NumPy 1's limit
_PAGE = 2**12  # bytes: a smaller gap is read through, as the disk does
_PIECE = 2**20  # bytes that are read at once where most of them are cut away
_DEFLATE = 1032  # the most bytes that deflate makes out of one
_CHUNK = 2**26  # bytes of an HDF5 chunk, which is unpacked as a whole
_FILTERS = {1, 2, 3, 32000}  # of HDF5: deflate, shuffle, fletcher32, lzf; others load plug-ins
_MERGED = ("idinit_ref.plans", "idinit_ref.sha256")  # JSON by tensor name, in each shard its own
_OWN = ("idinit_ref.plan", "idinit_ref.sha256")  # the same, where each tensor has its own
_AGAIN = "download the file again, or write it anew"
_KNOWN = {
    b"version https://git-lfs": ("a pointer of git-lfs", "run git lfs pull"),
    b"PK\x03\x04": (
        "a ZIP archive",
        "name it .npz if NumPy wrote it; a PyTorch pickle can run code and is not read: save it "
        "with safetensors.torch.save_file",
    ),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", "name it .h5"),
    b"\x93NUMPY": ("a single array of NumPy", "save it with numpy.savez"),
    b"\x80\x02\x8a\x0a": (
        "a pickle, which can run code",
        "save it with safetensors.torch.save_file",
    ),
}


def _short(value: object) -> str:
    """Return a value as text that is not long; a message shows it with its controls escaped."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """A regular file as it was when its header was read."""

    path: Path
    size: int
    time: int

    def wrong(self, what: str, got: object, should: str, cure: str = _AGAIN) -> CheckpointError:
        """Return an error about it, of one line that is not long."""
        shown = _short(got) if isinstance(got, str) else got
        where = f"{what} of {_short(self.path.name)!r}"
        return CheckpointError(message(where, shown, should, cure))

    @contextmanager
    def open(self) -> Iterator[io.FileIO]:
        """Open it, if it is still the same."""
        with open(self.path, "rb", buffering=0) as file:
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) != (self.size, self.time):
                raise self.changed()
            yield file

    def changed(self) -> CheckpointError:
        should = f"since it was opened, with {self.size:,} bytes, it should not have changed"
        return self.wrong("content", "another", should, "open it again")

    def fill(self, file: io.FileIO, at: int, into: _Bytes) -> None:
        """Read the bytes from a place on, all or an error."""
        file.seek(at)
        rest = into.data
        while rest:
            count = file.readinto(rest)
            if not count:
                raise self.changed()
            rest = rest[count:]

    def take(self, file: io.FileIO, at: int, count: int) -> bytearray:
        found = np.empty(min(count, max(self.size - at, 0)), np.uint8)
        self.fill(file, at, found)
        return bytearray(found.data)


def _source(path: Path, kind: str) -> _Source:
    """Look at a file, and raise for one that cannot be of its kind."""
    try:
        found = os.stat(path)
    except ValueError:  # a NUL, or a surrogate that no file name holds
        should = "it should be a name that a file can have"
        raise CheckpointError(message("path", _short(path), should, "correct it")) from None
    source = _Source(path, found.st_size, found.st_mtime_ns)
    if not stat.S_ISREG(found.st_mode):
        raise source.wrong("kind", "not a regular file", f"it should be {kind}", "name a file")
    with source.open() as file:
        first = bytes(source.take(file, 0, 32))
    if not first:
        raise source.wrong("size", 0, f"{kind} is not empty")
    for magic, (what, cure) in _KNOWN.items():
        if first.startswith(magic) and what != kind:
            raise source.wrong("content", what, f"it should be {kind}", cure)
    return source


@contextmanager
def _broken(source: _Source, kind: str) -> Iterator[None]:
    """Say of what a library cannot read, whatever it raises, that the file is broken."""
    try:
        yield
    except IDInitError:
        raise
    except Exception as problem:
        said = (str(problem).splitlines() or [""])[0]
        got = f"{type(problem).__name__}: {said}"
        raise source.wrong("content", got, f"it should be {kind} that can be read") from problem


@dataclass(frozen=True, slots=True)
class _Plain:
    """Bytes that lie in a file as they are."""

    source: _Source
    start: int

    @contextmanager
    def reading(self) -> Iterator[_Get]:
        with self.source.open() as file:
            yield lambda at, into: self.source.fill(file, self.start + at, into)


class _Inflater:
    """Where a deflated stream has been read to."""

    def __init__(self) -> None:
        self.zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        self.taken = self.made = self.crc = 0


@dataclass(frozen=True, slots=True)
class _Packed:
    """Deflated bytes in a file, unpacked in order; going back begins anew.

    Of all members of a file, `resting` keeps where the last one has been read to.
    """

    source: _Source
    start: int
    packed: int
    size: int
    crc: int
    resting: dict[int, _Inflater] = field(compare=False)

    @contextmanager
    def reading(self) -> Iterator[_Get]:
        with self.source.open() as file:
            yield lambda at, into: self._fill(file, at, into)

    def _fill(self, file: io.FileIO, at: int, into: _Bytes) -> None:
        state = self.resting.pop(self.start, None)  # atomic: no two threads have the same
        if state is None or state.made > at:
            state = _Inflater()
        while state.made < at:
            self._some(file, state, min(at - state.made, _PIECE))
        done = 0
        while done < into.size:
            piece = self._some(file, state, min(into.size - done, _PIECE))
            into[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        self.resting.clear()
        self.resting[self.start] = state

    def _some(self, file: io.FileIO, state: _Inflater, most: int) -> bytes:
        """Unpack at least one byte."""
        piece = b""
        while not piece:
            packed: bytes | bytearray = state.zlib.unconsumed_tail
            if not packed:
                count = min(2**16, self.packed - state.taken)
                packed = self.source.take(file, self.start + state.taken, count)
                state.taken += count
            try:
                piece = state.zlib.decompress(packed, most)
            except zlib.error as problem:
                raise self._bad(str(problem)) from problem
            if not piece and (state.zlib.eof or not packed):
                raise self._bad("it ends early")
        state.made += len(piece)
        state.crc = zlib.crc32(piece, state.crc)
        if state.made == self.size and state.crc != self.crc:
            raise self._bad("its checksum differs")
        return piece

    def _bad(self, got: str) -> CheckpointError:
        return self.source.wrong("packed array", got, "it should unpack to what was written")


def _cut(get: _Get, shape: tuple[int, ...], spans: _Spans) -> _Bytes:
    """Return a block of an array of bytes that lies in row-major order where `get` reads.

    Read are whole runs of the block. Where runs lie closer than a page, whole steps along the
    outermost axis of such short steps are read, and cut.
    """
    out = np.empty([len(span) for span in spans], np.uint8)
    if not out.size:
        return out
    last = len(shape) - 1
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    whole = last
    while whole and len(spans[whole]) == shape[whole]:
        whole -= 1
    axis = min(whole, next(axis for axis, step in enumerate(steps) if step <= _PAGE))
    span, step = spans[axis], steps[axis]
    inner = tuple(slice(span.start, span.stop) for span in spans[axis + 1 :])
    rows = len(span) if axis == whole else max(_PIECE // max(step, 1), 1)
    for place in product(*spans[:axis]):
        base = sum(i * step for i, step in zip(place, steps, strict=False))
        part = out[tuple(i - span.start for i, span in zip(place, spans, strict=False))]
        for start in range(span.start, span.stop, rows):
            stop = min(start + rows, span.stop)
            into = part[start - span.start : stop - span.start]
            if axis == whole:
                get(base + start * step, into.reshape(-1))
            else:
                seen = np.empty((stop - start, *shape[axis + 1 :]), np.uint8)
                get(base + start * step, seen.reshape(-1))
                into[...] = seen[(slice(None), *inner)]
    return out


# Tensors ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a checkpoint, of which nothing is read until a block is asked for.

    Parameters
    ----------
    name : str
        Its name there.
    dtype : str
        Its dtype there, of `idinit_ref.storage.DTYPES`.
    shape : tuple of int
        Its axes.
    path : pathlib.Path
        The file that holds its numbers.

    Examples
    --------
    >>> Stored("fc.weight", "bfloat16", (4, 3), Path("model.safetensors")).nbytes
    24
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path

    @property
    def nbytes(self) -> int:
        """Its bytes, unpacked.

        Examples
        --------
        >>> Stored("fc.weight", "float32", (4, 3), Path("model.npz")).nbytes
        48
        """
        return prod(self.shape) * itemsize(self.dtype)

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block, of which alone the bytes are read, as an array of its own.

        Parameters
        ----------
        index : tuple of slice
            One of step 1 for each axis.
        dtype : str
            Of `idinit_ref.storage.DTYPES`; rounded once if it is not the tensor's own.

        Returns
        -------
        numpy.ndarray
            Of the block's shape and that dtype; of one that NumPy lacks (bfloat16, float8), its
            bits as unsigned integers.

        Raises
        ------
        IndexingError
            If the index is not of that form.
        CheckpointError
            If the file has changed, or its numbers are broken.
        DTypeError, RoundingError
            If the dtype cannot hold the numbers.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.npz")
        ...     np.savez(path, fc=np.eye(2, 3))
        ...     open_checkpoint(path).tensors["fc"].read((slice(0, 1), slice(None)), "float32")
        array([[1., 0., 0.]], dtype=float32)
        """
        return convert(self._block(_spans(index, self.shape)), self.dtype, dtype, self.name)

    def _block(self, spans: _Spans) -> NDArray[Any]:
        """Return a block of the stored numbers; how, each kind of file says."""
        raise NotImplementedError  # the classes below have it, one for each kind of file


def _spans(index: Index, shape: tuple[int, ...]) -> _Spans:
    should = f"it should be a tuple of {len(shape)} slices of step 1 with integer ends"
    cure = "write slice(i, i + 1) for one entry, slice(None) for a whole axis"
    if not isinstance(index, tuple) or len(index) != len(shape):
        raise IndexingError(message("index", index, should, cure))
    spans = []
    for part, size in zip(index, shape, strict=True):
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise IndexingError(message("index", index, should, cure))
        try:
            start, stop, _ = part.indices(size)
        except TypeError:
            raise IndexingError(message("index", index, should, cure)) from None
        spans.append(range(start, max(start, stop)))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class _Raw(Stored):
    """Of safetensors or npz: its bytes in order."""

    data: _Plain | _Packed = field(repr=False)
    skip: int = 0
    order: Literal["<", ">"] = "<"
    fortran: bool = False

    def _block(self, spans: _Spans) -> NDArray[Any]:
        shape = self.shape
        if self.fortran:
            spans, shape = spans[::-1], shape[::-1]
        size = itemsize(self.dtype)
        with self.data.reading() as get:
            raw = _cut(
                lambda at, into: get(self.skip + at, into), (*shape, size), (*spans, range(size))
            )
        own = carrier(self.dtype)
        block: NDArray[Any]
        if self.dtype == "bool":
            block = raw[..., 0] != 0  # another byte than 0 or 1 would be no bool to NumPy
        else:
            stored = raw.reshape(-1).view(own.newbyteorder(self.order))
            block = stored.astype(own, copy=False).reshape(raw.shape[:-1])
        return block.T if self.fortran else block


@dataclass(frozen=True, slots=True)
class _Dataset(Stored):
    """Of HDF5."""

    source: _Source = field(repr=False)

    def _block(self, spans: _Spans) -> NDArray[Any]:
        own = carrier(self.dtype)
        with self.source.open(), _h5(self.source) as file:
            found = file[self.name]
            index = tuple(slice(span.start, span.stop) for span in spans)
            block = np.asarray(found[index], found.dtype)
        if self.dtype == "bool":
            return np.asarray(block.view(np.uint8) != 0)
        return block.view(own) if block.dtype.kind == "V" else block.astype(own, copy=False)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, by its headers.

    Parameters
    ----------
    path : pathlib.Path
        As given: a file or a folder.
    tensors : dict of str to Stored
        In the order of the files.
    metadata : dict of str to str
        Of the file, or of all shards together. ``idinit_ref.plans`` and ``idinit_ref.sha256`` are
        JSON objects by tensor name, from wherever a format keeps them.
    files : tuple of pathlib.Path
        All that belong to it: an index first, then what holds tensors.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.npz")
    ...     np.savez(path, fc=np.eye(2, 3))
    ...     found = open_checkpoint(path)
    >>> list(found.tensors), found.nbytes, [file.name for file in found.files]
    (['fc'], 48, ['model.npz'])
    """

    path: Path
    tensors: dict[str, Stored]
    metadata: dict[str, str]
    files: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, unpacked.

        Examples
        --------
        >>> path = Path("model.npz")
        >>> Checkpoint(path, {"fc": Stored("fc", "float32", (4, 3), path)}, {}, (path,)).nbytes
        48
        """
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what a checkpoint holds: its headers, and nothing else.

    Every tensor of the result lies in its file and can be read in blocks. A file is opened only
    while it is read from. HDF5 is read by its own library, in C, which has faults of its own: of
    strangers take the other formats.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file; a folder with ``model.safetensors`` or the index of shards; such
        an index, ``*.index.json``; a ``.npz`` file of NumPy; or, where h5py is installed, ``.h5``
        and ``.weights.h5`` of Keras.

    Returns
    -------
    Checkpoint
        Its tensors, of which only the headers were read.

    Raises
    ------
    CheckpointError
        If the file is broken, hostile, or of another kind.
    OptionTypeError
        If the path is none.
    ImportError
        If h5py is needed and not installed.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.npz")
    ...     np.savez(path, fc=np.eye(2, 3, dtype=np.float32))
    ...     tensor = open_checkpoint(path).tensors["fc"]
    ...     tensor.dtype, tensor.shape, tensor.read((slice(1, 2), slice(None)), "float32")
    ('float32', (2, 3), array([[0., 1., 0.]], dtype=float32))
    """
    given = _path(path)
    file = _in_folder(given) if os.path.isdir(given) else given
    name = file.name.lower()
    if name.endswith(".index.json"):
        tensors, metadata, files = _index(file)
    elif name.endswith(".safetensors"):
        tensors, metadata = _safetensors(file)
        files = (file,)
    elif name.endswith(".npz"):
        tensors, metadata = _npz(file)
        files = (file,)
    elif name.endswith((".h5", ".hdf5")):
        tensors, metadata = _hdf5(file)
        files = (file,)
    else:
        _source(file, "a checkpoint")  # or it is not there at all
        should = "its suffix should be .safetensors, .index.json, .npz or .h5"
        cure = "save it in one of these formats; pickles (.bin, .pt) can run code and are not read"
        raise CheckpointError(message("path", _short(file.name), should, cure))
    return Checkpoint(given, {tensor.name: tensor for tensor in tensors}, metadata, files)


def _path(path: object) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        should = "it should be a path as str or os.PathLike"
        raise OptionTypeError(message("path", path, should, "write 'model.safetensors'"))
    return Path(path)


def _checked(source: _Source, name: str) -> str:
    try:
        return check_name(name)
    except OptionError:
        should = (
            "it should hold no control character or backslash, and no part between slashes be "
            "empty, . or .."
        )
        raise source.wrong("name of a tensor", name, should, "do not use the file") from None


def _size(source: _Source, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Return the bytes of a tensor, or raise for a shape that no array can have."""
    some = prod(size for size in shape if size) * itemsize(dtype)
    if len(shape) > _AXES or some >= 2**63:
        should = f"it should have at most {_AXES} axes, and fewer than 2**63 bytes"
        raise source.wrong(f"shape of {_short(name)!r}", str(shape), should)
    return 0 if 0 in shape else some


# safetensors --------------------------------------------------------------------------------------

_SPACES = re.compile(r"[ \t\n\r]*")
_NATURAL = re.compile(r"(0|[1-9][0-9]{0,19})(?![0-9.eE])")
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_STRING = json.JSONDecoder()
_SKIPPED = 2**16  # characters of a value that nobody asked for


class _Json:
    """JSON that is taken piece by piece: what is not expected is never built.

    So there is no recursion, no number of any length, and no list of a million lists.
    """

    def __init__(self, source: _Source, text: str) -> None:
        self.source, self.text, self.at = source, text, 0

    @classmethod
    def of(cls, source: _Source, file: io.FileIO, at: int, count: int) -> _Json:
        """Read it from a file."""
        try:
            return cls(source, source.take(file, at, count).decode())
        except UnicodeDecodeError as problem:
            should = f"from its byte {problem.start} on it should be UTF-8"
            raise source.wrong("header", problem.reason, should) from None

    def wrong(self, should: str) -> CheckpointError:
        got = self.text[self.at : self.at + 60]
        return self.source.wrong(f"JSON at character {self.at}", got, should)

    def space(self) -> None:
        found = _SPACES.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def sees(self, mark: str) -> bool:
        """Take a mark if it comes next."""
        if not self.text.startswith(mark, self.at):
            self.space()
            if not self.text.startswith(mark, self.at):
                return False
        self.at += len(mark)
        return True

    def need(self, mark: str, what: str) -> None:
        if not self.sees(mark):
            raise self.wrong(f"it should be {what}")

    def string(self, what: str) -> str:
        self.need('"', what)
        try:
            value, end = _STRING.raw_decode(self.text, self.at - 1)
            value.encode()
        except ValueError:
            raise self.wrong("it should be a string of JSON and of Unicode") from None
        self.at = end
        return str(value)

    def items(self, what: str) -> Iterator[str]:
        """Yield the keys of an object; after each its value is to be taken."""
        self.need("{", what)
        seen: set[str] = set()
        if self.sees("}"):
            return
        while True:
            key = self.string("a key")
            if key in seen:
                raise self.source.wrong("key of the JSON", key, "it should be there once")
            seen.add(key)
            self.need(":", "a colon")
            yield key
            if self.sees("}"):
                return
            self.need(",", "a comma, or the end of an object")

    def strings(self, what: str) -> dict[str, str]:
        return {key: self.string("a string") for key in self.items(what)}

    def naturals(self, most: int) -> tuple[int, ...]:
        should = f"a list of at most {most} integers >= 0 and < 2**64"
        self.need("[", should)
        found: list[int] = []
        if self.sees("]"):
            return ()
        while True:
            self.space()
            number = _NATURAL.match(self.text, self.at)
            if not number or len(found) == most:
                raise self.wrong(f"it should be {should}")
            found.append(int(number[0]))
            self.at = number.end()
            if self.sees("]"):
                return tuple(found)
            self.need(",", should)

    def skip(self) -> str:
        """Take any value; return its text."""
        self.space()
        start, depth = self.at, 0
        while True:
            if self.sees("{") or self.sees("["):
                depth += 1
            elif depth and (self.sees("}") or self.sees("]")):
                depth -= 1
            elif depth and (self.sees(",") or self.sees(":")):
                pass
            elif self.text.startswith('"', self.at):
                self.string("a string")
            elif word := _WORD.match(self.text, self.at):
                self.at = word.end()
            else:
                raise self.wrong("it should be a value of JSON")
            if self.at - start > _SKIPPED:
                raise self.wrong(f"it should be a value of at most {_SKIPPED:,} characters")
            if not depth:
                return self.text[start : self.at]

    def end(self) -> None:
        self.space()
        if self.at < len(self.text):
            raise self.wrong("it should have ended")


def _safetensors(path: Path) -> tuple[list[Stored], dict[str, str]]:
    """Return the tensors of a file in the order of its bytes, and its metadata."""
    source = _source(path, "a safetensors file")
    with source.open() as file:
        first = bytes(source.take(file, 0, 8))
        if first.isascii() and first.decode().isprintable():  # as a length far too much
            should = "it should be a safetensors file, which begins with a length of 8 bytes"
            raise source.wrong("content", first.decode(), should)
        if source.size < 8:
            raise source.wrong("size", source.size, "it should be at least 8 bytes")
        length = int.from_bytes(first, "little")
        if length > source.size - 8 or length > HEADER:
            should = (
                f"it should be at most {HEADER:,} bytes and at most the rest of the file, "
                f"{source.size - 8:,}"
            )
            raise source.wrong("length of the header", length, should)
        text = _Json.of(source, file, 8, length)
    entries: list[tuple[int, int, _Raw]] = []
    metadata: dict[str, str] = {}
    if not text.text.startswith("{"):
        raise text.wrong("it should be the { of the header")
    for name in text.items("an object"):
        if name == "__metadata__":
            metadata = text.strings("an object of strings, the metadata")
        else:
            entries.append(_entry(source, text, name, 8 + length))
    text.end()
    entries.sort(key=lambda entry: entry[:2])
    place = 0
    for begin, end, tensor in entries:
        if begin != place:
            should = f"they should begin where the tensor before ends, at {place}"
            raise source.wrong(f"data_offsets of {_short(tensor.name)!r}", (begin, end), should)
        place = end
    if place != (data := source.size - 8 - length):
        raise source.wrong("bytes of data", data, f"its tensors should have as many, not {place}")
    return [tensor for _, _, tensor in entries], metadata


_ENTRY = {"dtype", "shape", "data_offsets"}
_BY_CODE = {code: name for name, code in DTYPES.items()}


def _entry(source: _Source, text: _Json, name: str, data: int) -> tuple[int, int, _Raw]:
    """Return a tensor of the header, and its first and last places."""
    shown = repr(_short(name))
    code, keys = "", set()
    shape: tuple[int, ...] = ()
    offsets: tuple[int, ...] = ()
    _checked(source, name)
    for key in text.items(f"an object, the entry of {shown}"):
        keys.add(key)
        if key == "dtype":
            code = text.string(f"a string, the dtype of {shown}")
        elif key == "shape":
            shape = text.naturals(_AXES)
        elif key == "data_offsets":
            offsets = text.naturals(2)
        else:
            raise source.wrong(f"key of {shown}", key, f"it should be one of {sorted(_ENTRY)}")
    if keys != _ENTRY:
        should = f"they should be exactly {sorted(_ENTRY)}"
        raise source.wrong(f"keys of {shown}", sorted(keys), should)
    if code not in _BY_CODE:
        should, cure = f"it should be one of {', '.join(_BY_CODE)}", "convert the tensor first"
        raise source.wrong(f"dtype of {shown}", code, should, cure)
    dtype = _BY_CODE[code]
    size, most = _size(source, name, shape, dtype), source.size - data
    if len(offsets) != 2 or offsets[1] - offsets[0] != size or offsets[1] > most:
        should = f"they should be two places at most {most} that are {size} bytes apart"
        raise source.wrong(f"data_offsets of {shown}", offsets, should)
    begin, end = offsets
    return begin, end, _Raw(name, dtype, shape, source.path, _Plain(source, data + begin))


def _in_folder(folder: Path) -> Path:
    """Return the file of a folder to begin with."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).exists():
            return folder / name
    there = sorted(os.listdir(folder))
    found = [name for name in there if name.endswith(".safetensors.index.json")]
    if len(found) == 1:
        return folder / found[0]
    named = found or [name for name in there if name.endswith((".safetensors", ".npz", ".h5"))]
    shown = ", ".join(repr(_short(name)) for name in named[:5]) or "none"
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    should = (
        "it should hold model.safetensors, or one *.safetensors.index.json; "
        f"of {'such indices' if found else 'checkpoint files'} it holds {shown}{more}"
    )
    raise CheckpointError(message("folder", _short(folder.name), should, "name the file itself"))


def _index(path: Path) -> tuple[list[Stored], dict[str, str], tuple[Path, ...]]:
    """Return the tensors of all shards that an index names."""
    source = _source(path, "the index of a sharded checkpoint")
    if source.size > HEADER:
        raise source.wrong("size", source.size, f"an index has at most {HEADER:,} bytes")
    with source.open() as file:
        text = _Json.of(source, file, 0, source.size)
    homes: dict[str, str] | None = None
    for key in text.items("an object"):
        if key == "weight_map":
            homes = text.strings("an object of file names, the weight_map")
        else:
            text.skip()
    text.end()
    if homes is None:
        raise source.wrong("weight_map", None, "it should name the file of each tensor")
    shards = list(dict.fromkeys(homes.values()))
    for shard in shards:
        _check_shard(source, shard)
    tensors: list[Stored] = []
    told: list[dict[str, str]] = []
    found: dict[str, str] = {}
    for shard in shards:
        held, metadata = _safetensors(path.parent / shard)
        for tensor in held:
            name = tensor.name
            if name in found:
                got, should = [_short(found[name]), _short(shard)], "it should lie in one of them"
                raise source.wrong(f"shard of {_short(name)!r}", got, should)
            if homes.get(name) != shard:
                should = f"the index says {_short(homes.get(name, 'nothing of it'))!r}"
                raise source.wrong(f"shard of {_short(name)!r}", shard, should)
            found[name] = shard
        tensors += held
        told.append(metadata)
    for name, shard in homes.items():
        if name not in found:
            should = "the tensor should be in it"
            raise source.wrong(f"shard of {_short(name)!r}", shard, should)
    return tensors, _together(source, told), (path, *(path.parent / shard for shard in shards))


def _check_shard(source: _Source, shard: str) -> None:
    """Raise for a shard that is missing, or lies (or could lie) elsewhere than in the folder."""
    try:
        plain = "/" not in shard and Path(check_name(shard)).name == shard
    except OptionError:
        plain = False
    if not plain:
        should = "it should be the plain name of a file beside the index"
        raise source.wrong("file in the weight_map", shard, should, "do not use the index")
    if not os.path.exists(source.path.parent / shard):
        cure = "download it, to beside the index"
        raise source.wrong("file in the weight_map", shard, "it is missing", cure)


def _together(source: _Source, told: list[dict[str, str]]) -> dict[str, str]:
    """Return the metadata of all shards: what is by tensor name merged, else the first's."""
    if len(told) == 1:
        return told[0]
    merged: dict[str, str] = {}
    for metadata in told:
        for key, value in metadata.items():
            merged.setdefault(key, value)
    for key in _MERGED:
        found: dict[str, str] = {}
        for metadata in told:
            found |= _values(source, metadata.get(key, ""))
        merged.pop(key, None)
        if found:
            merged[key] = _joined(found)
    return merged


def _values(source: _Source, text: str) -> dict[str, str]:
    """Return the values of a JSON object, each as its text; nothing if it is none."""
    part, found = _Json(source, text), {}
    with suppress(ValueError, RecursionError):
        for name in part.items("an object"):
            found[name] = part.skip()
            json.loads(found[name])
        part.end()
        return found
    return {}


def _joined(values: dict[str, str]) -> str:
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in values.items()) + "}"


def _gathered(metadata: dict[str, str], plans: dict[str, str], digests: dict[str, str]) -> None:
    """Add what tensors say of themselves, as a safetensors file has it: by their names."""
    for key, found in zip(_MERGED, (plans, digests), strict=True):
        if found:
            metadata[key] = _joined(found)


# npz ----------------------------------------------------------------------------------------------

_NPY = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_NPYHEADER = 2**14  # bytes that are looked at; NumPy reads at most 10,000 characters of it


def _npz(path: Path) -> tuple[list[Stored], dict[str, str]]:
    """Return the arrays of an archive, in its order, and what its comments tell."""
    kind = "a ZIP archive"
    source = _source(path, kind)
    with source.open() as file:
        with _broken(source, kind), zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
            comment = _values(source, archive.comment.decode(errors="replace"))
        tensors: dict[str, Stored] = {}
        resting: dict[int, _Inflater] = {}
        told: tuple[dict[str, str], dict[str, str]] = ({}, {})
        for member, end in zip(members, ends, strict=True):
            name = _checked(source, member.filename.removesuffix(".npy"))
            if name == member.filename or name in tensors:
                should = "it should end in .npy, and be there once"
                raise source.wrong("member", member.filename, should)
            tensors[name] = _array(source, name, _member(source, file, member, end, resting))
            about = _values(source, member.comment.decode(errors="replace"))
            for key, found in zip(_OWN, told, strict=True):
                if key in about:
                    found[name] = about[key]
    metadata = {key: json.loads(value) for key, value in comment.items() if value[:1] == '"'}
    _gathered(metadata, *told)
    return list(tensors.values()), metadata


def _member(
    source: _Source,
    file: io.FileIO,
    member: zipfile.ZipInfo,
    end: int,
    resting: dict[int, _Inflater],
) -> tuple[_Plain | _Packed, int]:
    """Return the bytes of a member and their count, or raise if they cannot lie there."""
    what = f"member {_short(member.filename)!r}"
    if member.flag_bits & 1:
        raise source.wrong(what, "encrypted", "it should be readable", "decrypt it first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        should, cure = "its compression should be 0 or 8, as NumPy's", "save it with numpy.savez"
        raise source.wrong(what, member.compress_type, should, cure)
    begin = max(member.header_offset, 0)  # negative where the archive's own places are wrong
    head = bytes(source.take(file, begin, 30))
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise source.wrong(what, head[:4], "it should begin as a member of an archive")
    sizes = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    start, packed, size = begin + 30 + sizes, member.compress_size, member.file_size
    plain = member.compress_type == zipfile.ZIP_STORED
    if start + packed > end or (packed != size if plain else size > packed * _DEFLATE):
        got, should = f"{size} bytes out of {packed}", f"they should fit before place {end}"
        raise source.wrong(what, got, should)
    if plain:
        return _Plain(source, start), size
    return _Packed(source, start, packed, size, member.CRC, resting), size


def _array(source: _Source, name: str, member: tuple[_Plain | _Packed, int]) -> Stored:
    """Return the array of a member, by its header."""
    (data, size), shown = member, repr(_short(name))
    head = np.empty(min(size, _NPYHEADER), np.uint8)
    with data.reading() as get:
        get(0, head)
    stream = io.BytesIO(head.tobytes())
    with _broken(source, f"in {shown} an array of NumPy"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 2's headers, and of strange escapes
        shape, fortran, dtype = _NPY[npy.read_magic(stream)](stream)
        sizes = [int(n) if type(n) is int and n >= 0 else None for n in shape]
    if None in sizes:
        raise source.wrong(f"shape of {shown}", str(shape), "it should be of integers >= 0")
    if dtype.name not in DTYPES or dtype.hasobject:
        should = f"it should be one of {', '.join(DTYPES)}"
        cure = "NumPy keeps no others (bfloat16 and float8 least of all): save as .safetensors"
        raise source.wrong(f"dtype of {shown}", dtype.name, should, cure)
    skip, nbytes = stream.tell(), _size(source, name, shape, dtype.name)
    if skip + nbytes != size:
        should = f"its member should have {skip + nbytes}"
        raise source.wrong(f"bytes of {shown}", size, should)
    order: Literal["<", ">"] = ">" if dtype.newbyteorder(">") == dtype else "<"
    return _Raw(name, dtype.name, shape, source.path, data, skip, order, bool(fortran))


# HDF5 ---------------------------------------------------------------------------------------------


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as problem:
        cure = 'pip install "idinit-ref[export]"'
        raise ImportError(f"to read .h5 files needs h5py: {cure}") from problem
    return h5py


@contextmanager
def _h5(source: _Source) -> Iterator[Any]:
    """Open a file of HDF5 that is still the same."""
    h5py = _h5py()
    with source.open(), _broken(source, "an HDF5 file"), h5py.File(source.path, "r") as file:
        yield file


def _text(found: Any, key: str) -> str | None:
    """Return an attribute of an HDF5 object, if it is a string; nothing else is read."""
    if key not in found.attrs:
        return None
    kept = found.attrs.get_id(key)
    if kept.shape != () or _h5py().check_string_dtype(kept.dtype) is None:
        return None
    value = found.attrs[key]
    return value if isinstance(value, str) else None


def _hdf5(path: Path) -> tuple[list[Stored], dict[str, str]]:
    """Return the datasets of a file, by their paths, and what its attributes tell."""
    h5py = _h5py()
    source = _source(path, "an HDF5 file")
    tensors: list[Stored] = []
    plans: dict[str, str] = {}
    digests: dict[str, str] = {}
    with _h5(source) as file:
        metadata = {key: text for key in file.attrs if (text := _text(file, key)) is not None}
        waiting, seen = [""], set()
        while waiting:
            name = waiting.pop()
            found = file[name or "/"]
            if isinstance(found, h5py.Dataset):
                tensors.append(_dataset(source, name, found))
                plan, digest = (_text(found, key) for key in _OWN)
                if plan is not None and _values(source, plan):
                    plans[name] = plan
                if digest is not None:
                    digests[name] = json.dumps(digest)
                continue
            place = h5py.h5o.get_info(found.id).addr
            if not isinstance(found, h5py.Group) or place in seen:
                should = "it should be a dataset, or a group that is there once"
                raise source.wrong(f"object {_short(name)!r}", type(found).__name__, should)
            seen.add(place)
            below = []
            for key in found:
                child = _checked(source, f"{name}/{key}" if name else key)
                link = found.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    got, should = type(link).__name__, "it should be in this file, and no link"
                    raise source.wrong(f"object {_short(child)!r}", got, should, "copy it in")
                below.append(child)
            waiting += reversed(below)
    _gathered(metadata, plans, digests)
    return tensors, metadata


def _dataset(source: _Source, name: str, found: Any) -> Stored:
    """Return a dataset as a tensor, or raise for one that could lead out of the file."""
    shown, dtype, bits = repr(_short(name)), found.dtype.name, f"u{found.dtype.itemsize}"
    if dtype in ("void8", "void16"):  # bits, whose dtype Keras notes
        told = _text(found, "dtype")
        if told in DTYPES and carrier(told) == bits:
            dtype = told
    if dtype not in DTYPES or found.dtype.hasobject or found.shape is None:
        got = f"{dtype} of shape {found.shape}"
        should = f"it should be an array of one of {', '.join(DTYPES)}"
        raise source.wrong(f"dataset {shown}", got, should, "remove or convert it first")
    if found.is_virtual or found.external:
        got, should = "data of other files", "its numbers should be in this one"
        raise source.wrong(f"dataset {shown}", got, should, "copy them in")
    shape = tuple(int(size) for size in found.shape)
    nbytes, stored = _size(source, name, shape, dtype), found.id.get_storage_size()
    plist = found.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    chunk = prod(found.chunks or ()) * itemsize(dtype)
    if filters - _FILTERS or (filters and chunk > _CHUNK):
        got = f"filters {sorted(filters)} on chunks of {chunk:,} bytes"
        should = f"they should be of {sorted(_FILTERS)}, on at most {_CHUNK:,} bytes"
        raise source.wrong(f"dataset {shown}", got, should, "write it anew with h5py")
    begin = found.id.get_offset() or 0
    if begin + stored > source.size or nbytes > stored * (_DEFLATE if filters else 1):
        got, should = f"{nbytes} bytes out of {stored}", "they should lie in the file"
        raise source.wrong(f"dataset {shown}", got, should)
    return _Dataset(name, dtype, shape, source.path, source)
