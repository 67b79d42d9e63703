"""HDF5 files, also Keras': all datasets of numbers that lie in the file itself.

The weights in a ``.keras`` archive are read in place, without unpacking.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.text import short
from ..errors import CheckpointError
from .bits import DTYPES, carrier
from .disk import DEFLATE, Faults, Plain, SourceFile, Spans, library, readable, source_of
from .metadata import OWN, table, tables
from .others import HDF5, ZIP
from .read_npz import member_of
from .stored import Foreign, StoredTensor

_INSIDE = "model.weights.h5"  # the member of a .keras archive
_CHUNK = 2**26  # the most bytes of a chunk, which is unpacked whole
_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, fletcher32, lzf; others load plug-ins


@dataclass(slots=True, eq=False)
class _Dataset(Foreign):
    """A tensor of HDF5."""

    source: SourceFile = field(repr=False)
    place: range = field(repr=False)  # the bytes of the HDF5 file in the file

    def _block(self, spans: Spans) -> NDArray[Any]:
        own = self.bits
        with _h5(self.source, self.place) as file:
            dataset = file[self.name]
            index = tuple(slice(span.start, span.stop) for span in spans)
            block = np.asarray(dataset[index], dataset.dtype)
        if self.dtype == "bool":
            return np.asarray(block.view(np.uint8) != 0)
        if block.dtype.kind == "V" or own.kind == "V":
            little = block.astype(block.dtype.newbyteorder("<"), copy=False)
            return np.ascontiguousarray(little).view(own).reshape(block.shape)
        return block.astype(own, copy=False)


def _h5py() -> Any:
    return library("h5py", ".h5 files", "export")


@contextmanager
def _h5(source: SourceFile, place: range) -> Iterator[Any]:
    """Open an HDF5 file; raise if it has changed."""
    h5py = _h5py()
    with source.open() as file, readable(source, "an HDF5 file"):
        whole = len(place) == source.size
        with h5py.File(source.path if whole else _Window(file, place), "r") as opened:
            yield opened


class _Window(io.RawIOBase):
    """A part of a file as a file object."""

    def __init__(self, file: io.FileIO, place: range) -> None:
        self.file, self.place, self.at = file, place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, len(self.place))[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.place.start + self.at)
        rest = memoryview(buffer)[: max(len(self.place) - self.at, 0)]
        count = self.file.readinto(rest) or 0
        rest[count:] = bytes(len(rest) - count)  # zeros past the end of a truncated file
        self.at += len(rest)
        return len(rest)


def _text(node: Any, key: str) -> str | None:
    """Return an attribute of an HDF5 object if it is a string, else None without reading it."""
    if key not in node.attrs:
        return None
    attribute = node.attrs.get_id(key)
    if attribute.shape != () or _h5py().check_string_dtype(attribute.dtype) is None:
        return None
    value = node.attrs[key]
    return value if isinstance(value, str) else None


def open_hdf5(path: Path, faults: Faults) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the datasets of a file by their paths, and its attributes."""
    source = source_of(path, "an HDF5 file", HDF5)
    place = range(source.size)
    try:
        return _open(source, place, faults)
    except CheckpointError as problem:
        if not (cut := re.search(r"stored_eof = (\d+)", str(problem.__cause__))):
            raise
        faults.add(problem)
        place = range(min(int(cut[1]), 2**62))
    return _open(source, place, faults)


def open_keras(path: Path, faults: Faults) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the weights of a ``.keras`` archive; nothing else of it is read."""
    kind = "a ZIP archive"
    source = source_of(path, kind, ZIP)
    with source.open() as file:
        with readable(source, kind), zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}
            end = archive.start_dir
        member = members.get(_INSIDE)
        if member is None:
            should = f"it should hold {_INSIDE}"
            cure = 'save the model anew: model.save("model.keras")'
            raise source.wrong("members", ", ".join(members), should, cure)
        data, size = member_of(source, file, member, end, {})
    if not isinstance(data, Plain):
        should = "it should be stored, not deflated, as Keras writes it"
        raise source.wrong(f"member {_INSIDE!r}", "deflated", should, f"unzip {_INSIDE}")
    return _open(source, range(data.start, data.start + size), faults)


def _open(
    source: SourceFile, place: range, faults: Faults
) -> tuple[list[StoredTensor], dict[str, str]]:
    h5py = _h5py()
    tensors: list[StoredTensor] = []
    by_tensor: dict[str, dict[str, Any]] = {}
    with _h5(source, place) as file:
        metadata = {key: text for key in file.attrs if (text := _text(file, key)) is not None}
        waiting, seen = [""], set()
        while waiting:
            name = waiting.pop()
            node = file[name or "/"]
            if isinstance(node, h5py.Dataset):
                with faults.around():
                    tensors.append(_dataset(source, place, name, node))
                    by_tensor[name] = _plan_and_digest(node)
                continue
            home = h5py.h5o.get_info(node.id).addr
            if not isinstance(node, h5py.Group) or home in seen:
                should = "it should be a dataset, or a group that occurs once"
                got = type(node).__name__
                faults.add(source.wrong(f"object {short(name)!r}", got, should))
                continue
            seen.add(home)
            below = []
            for key in node:
                child = f"{name}/{key}" if name else key
                link = node.get(key, getlink=True)
                if isinstance(link, h5py.HardLink):
                    below.append(child)
                    continue
                got, should = type(link).__name__, "it should be in this file, not a link"
                faults.add(source.wrong(f"object {short(child)!r}", got, should, "copy it in"))
            waiting += reversed(below)
    return tensors, metadata | tables(by_tensor)


def _plan_and_digest(dataset: Any) -> dict[str, Any]:
    """Return the plan and the digest in a dataset's attributes, by the keys OWN."""
    plan, digest = (_text(dataset, key) for key in OWN)
    values = dict(zip(OWN, (table(plan), digest), strict=True))
    return {key: value for key, value in values.items() if value}


def _dataset(source: SourceFile, place: range, name: str, dataset: Any) -> StoredTensor:
    """Return a dataset as a tensor; raise if its data may lie outside the file."""
    shown, dtype, bits = repr(short(name)), dataset.dtype.name, f"u{dataset.dtype.itemsize}"
    if dtype in ("void8", "void16"):  # bits; Keras stores their dtype as an attribute
        stated = _text(dataset, "dtype")
        if stated in DTYPES and carrier(stated) == bits:
            dtype = stated
    if dataset.dtype.hasobject or not dataset.dtype.itemsize or dataset.shape is None:
        got = f"{dtype} of shape {dataset.shape}"
        should = "it should be an array with entries of a fixed size"
        raise source.wrong(f"dataset {shown}", got, should, "remove or convert it first")
    if dataset.is_virtual or dataset.external:
        got, should = "data in other files", "its numbers should be in this one"
        raise source.wrong(f"dataset {shown}", got, should, "copy them in")
    shape = tuple(int(size) for size in dataset.shape)
    width, stored = dataset.dtype.itemsize, dataset.id.get_storage_size()
    nbytes = prod(shape) * width
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    chunk = prod(dataset.chunks or ()) * width
    if filters - _FILTERS or (filters and chunk > _CHUNK):
        got = f"filters {sorted(filters)} on chunks of {chunk:,} bytes"
        should = f"they should be among {sorted(_FILTERS)}, on at most {_CHUNK:,} bytes"
        raise source.wrong(f"dataset {shown}", got, should, "write it anew with h5py")
    begin, end = dataset.id.get_offset() or 0, min(len(place), source.size - place.start)
    inside = begin + stored <= end
    if dataset.chunks and len(place) > source.size:  # truncated: any chunk may be lost
        chunks = map(dataset.id.get_chunk_info, range(dataset.id.get_num_chunks()))
        inside = all(chunk.byte_offset + chunk.size <= end for chunk in chunks)
    if not inside or nbytes > stored * (DEFLATE if filters else 1):
        got, should = f"{nbytes} bytes out of {stored}", "they should lie in the file"
        raise source.wrong(f"dataset {shown}", got, should)
    return _Dataset(name, dtype, shape, source.path, width, source, place)
