"""The formats of weights in files: their dtypes, sizes and writers.

Tensors are streamed one after the other, so memory is bounded. Safetensors files are written here
(8 bytes of header length, JSON, data without gaps), because the format's own writers need every
tensor in memory and write wrong bytes for strided ones. In an HDF5 file h5py writes the structure
around the data. NumPy's .npz is a zip of .npy files.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from math import prod
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DTypeError, OptionError, ShapeError, message, prefixed
from .bits import DTYPES, FLOATS, carrier, convert
from .disk import library
from .metadata import CAP
from .naming import check_name
from .storage import (
    BLOCK,
    ArrayTensor,
    PlanTensor,
    Tensor,
    as_tensor,
    blocks,
    check_axes,
    nbytes_of,
    stream,
)
from .stored import StoredTensor, form_of

_COMMENT = 2**16 - 1  # the most bytes of a comment in a zip file
_RARE = 64  # entries for each non-zero, above which single writes are faster
NO_DIGEST = "0" * 64
"""The placeholder of a SHA-256 until it is known."""


class FileTensor(NamedTuple):
    """One tensor of a file: its name, its values, and its dtype in the file."""

    name: str
    tensor: Tensor
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return nbytes_of(self.tensor, self.dtype)

    @property
    def options(self) -> dict[str, Any] | None:
        """The options with which `idinit_ref.plan` gives it again; None without a plan."""
        return self.tensor.plan.options() if isinstance(self.tensor, PlanTensor) else None

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield its numbers in order, little-endian; a chunk may overwrite the one before."""
        plan = self.tensor.plan if isinstance(self.tensor, PlanTensor) else None
        if plan is None or plan.nnz * _RARE > prod(plan.shape):
            yield from stream(self.tensor, self.dtype)
            return
        # One buffer for all chunks: only the few non-zeros are written, and then cleared.
        buffer = np.zeros(BLOCK, carrier(self.dtype).newbyteorder("<"))
        for index in blocks(plan.shape):
            spans = (span.indices(size) for span, size in zip(index, plan.shape, strict=True))
            at, values = plan.entries(index)
            buffer[at] = convert(values, "float64", self.dtype, self.name)
            yield buffer[: prod(stop - start for start, stop, _ in spans)]
            buffer[at] = 0

    def check(self) -> None:
        """Raise if the file's dtype cannot hold a value of the array."""
        own = self.tensor.dtype
        if isinstance(self.tensor, ArrayTensor) and own is not None and own != self.dtype:
            for index in blocks(self.tensor.shape):
                convert(self.tensor.read(index, own), own, self.dtype, self.name)


def file_tensor(name: object, value: object, dtype: str | None, form: Form) -> FileTensor:
    """Validate one tensor of a mapping; not an array's values, which takes long."""
    name = check_name(name)
    tensor = as_tensor(name, value)
    check_axes(name, tensor.shape)
    own = tensor.dtype
    to = own if own is not None and own not in FLOATS else dtype or own or "float32"
    if isinstance(tensor, PlanTensor):
        with prefixed(f"tensor {name!r}"):
            tensor.plan.check(to)
    elif own is not None and own != to:
        convert(np.empty(0, carrier(own)), own, to, name)
    if isinstance(tensor, StoredTensor) and own not in DTYPES:
        if form.suffix != ".safetensors" or form_of(tensor) != form.suffix:
            should = f"it is not decoded, and {form.what} cannot hold its bytes"
            cure = "write .safetensors from .safetensors, or convert it first"
            raise DTypeError(message(f"dtype of {name}", own, should, cure))
        return FileTensor(name, tensor, to)
    if to not in form.dtypes:
        should = f"{form.what} holds {', '.join(form.dtypes)}"
        cure = "choose one of them with dtype=, or write .safetensors"
        raise DTypeError(message(f"dtype of {name}", to, should, cure))
    return FileTensor(name, tensor, to)


class Feed:
    """Writes tensors into files; counts and digests their bytes."""

    def __init__(self, count: Callable[[int], object], digests: dict[str, str]) -> None:
        self.count = count
        self.digests = digests  # by name; empty if no digest is wanted
        self.pool = ThreadPoolExecutor(1) if digests else None  # digests bytes during their write

    def put(self, file: IO[bytes], item: FileTensor) -> None:
        """Write a tensor's bytes."""
        digest, written = hashlib.sha256(), 0
        for chunk in item.chunks():
            data = chunk.view(np.uint8).data
            digested = self.pool.submit(digest.update, data) if self.pool else None
            file.write(data)
            if digested is not None:
                digested.result()
            written += data.nbytes
            self.count(data.nbytes)
        if written != item.nbytes:
            should = f"a tensor of shape {item.tensor.shape} has {item.nbytes:,} bytes"
            cure = "let read() return whole blocks"
            raise OptionError(message(f"bytes of {item.name}", written, should, cure))
        if self.digests:
            self.digests[item.name] = digest.hexdigest()


# Formats ----------------------------------------------------------------------------------------


class Form(NamedTuple):
    """A file format: its dtypes and its writer. `write` is None for a folder."""

    what: str
    suffix: str
    dtypes: Sequence[str]
    order: Callable[[list[FileTensor]], list[FileTensor]]
    check: Callable[[list[FileTensor], dict[str, str]], None]
    size: Callable[[list[FileTensor], dict[str, str], dict[str, str]], int]
    write: Callable[[BinaryIO, list[FileTensor], dict[str, str], Feed], None] | None = None


# safetensors: length, JSON, data


def _sorted(items: list[FileTensor]) -> list[FileTensor]:
    """Return tensors in the format's own order: wide dtypes first, then by name.

    Undecoded tensors come last: their bytes need no alignment.
    """
    order = {name: place for place, name in enumerate(DTYPES, 1)}
    return sorted(items, key=lambda item: (-order.get(item.dtype, 0), item.name))


def _header(items: list[FileTensor], about: dict[str, str], digests: dict[str, str]) -> bytes:
    """Return the header's length and JSON, padded so that the data begins at a multiple of 8."""
    plans = {i.name: options for i in items if (options := i.options) is not None}
    metadata = {"format": "pt", "idinit_ref.plans": json.dumps(plans)}
    if digests:
        sums = {item.name: digests[item.name] for item in items}
        metadata["idinit_ref.sha256"] = json.dumps(sums)
    entries: dict[str, object] = {"__metadata__": metadata | about}
    offset = 0
    for item in items:
        entries[item.name] = {
            "dtype": DTYPES.get(item.dtype, item.dtype),
            "shape": item.tensor.shape,
            "data_offsets": (offset, offset := offset + item.nbytes),
        }
    dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    text = dump(entries).encode()
    if len(text) > CAP:  # readers refuse it; `inspect` recognises the plans without their options
        del metadata["idinit_ref.plans"]
        text = dump(entries | {"__metadata__": metadata | about}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_safetensors(items: list[FileTensor], about: dict[str, str]) -> None:
    size = 150 * len(items) + sum(len(item.name) for item in items) + len(json.dumps(about))
    if size > CAP and (size := len(_header(items, about, {}))) > CAP:
        should = f"the file's header would have {size:,} bytes, and should have at most {CAP:,}"
        cure = "write several files (shard_bytes), or fewer and shorter names and metadata"
        raise OptionError(message("tensors", len(items), should, cure))


def _safetensors_size(
    items: list[FileTensor], about: dict[str, str], digests: dict[str, str]
) -> int:
    return len(_header(items, about, digests)) + sum(item.nbytes for item in items)


def _write_safetensors(
    file: BinaryIO, items: list[FileTensor], about: dict[str, str], feed: Feed
) -> None:
    file.write(_header(items, about, feed.digests))
    for item in items:
        feed.put(file, item)
    if feed.digests:
        file.seek(0)
        file.write(_header(items, about, feed.digests))


# npz: a zip file, not compressed, of .npy files


def _npy_header(item: FileTensor) -> bytes:
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(carrier(item.dtype).newbyteorder("<"))
    header = {"descr": descr, "fortran_order": False, "shape": item.tensor.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _comment(item: FileTensor, digests: dict[str, str]) -> bytes:
    last = {"idinit_ref.sha256": digests[item.name]} if digests else {}
    about = last if item.options is None else {"idinit_ref.plan": item.options, **last}
    if len(json.dumps(about)) > _COMMENT:  # a plan with thousands of blocks
        about = last
    return json.dumps(about).encode() if about else b""


def _check_npz(items: list[FileTensor], about: dict[str, str]) -> None:
    for item in items:
        if item.name.endswith(".npy"):
            should = "numpy.load would confuse it with another name, as it ends in .npy"
            raise OptionError(message("name", item.name, should, "rename it"))
        size = len(f"{item.name}.npy".encode())
        if size > _COMMENT:
            should = f"with .npy it has {size:,} bytes; an .npz file holds names of {_COMMENT:,}"
            raise OptionError(message("name", f"{item.name[:60]}...", should, "shorten it"))
    size = len(json.dumps(about).encode())
    if size > _COMMENT:
        should = f"it has {size:,} bytes; an .npz file holds {_COMMENT:,}"
        raise OptionError(message("metadata", [*about], should, "shorten it, or use .safetensors"))


def _npz_size(items: list[FileTensor], about: dict[str, str], digests: dict[str, str]) -> int:
    offset, listing = 0, 0
    for item in items:
        name, size = len(f"{item.name}.npy".encode()), len(_npy_header(item)) + item.nbytes
        wide = 2 * (size > _ZIP64) + (offset > _ZIP64)  # numbers of 8 bytes
        comment = len(_comment(item, digests))
        listing += 46 + name + comment + (4 + 8 * wide if wide else 0)
        offset += 30 + name + 20 * (size * 1.05 > _ZIP64) + size
    end = 22 + len(json.dumps(about).encode())
    if len(items) > 2**16 - 1 or max(offset, listing) > _ZIP64:
        end += 56 + 20
    return offset + listing + end


def _write_npz(file: BinaryIO, items: list[FileTensor], about: dict[str, str], feed: Feed) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = json.dumps(about).encode()
        for item in items:
            info = zipfile.ZipInfo(f"{item.name}.npy")  # its fixed date is in 1980
            head = _npy_header(item)
            info.file_size = len(head) + item.nbytes
            with archive.open(info, "w") as member:
                member.write(head)
                feed.put(member, item)
            info.comment = _comment(item, feed.digests)


# h5: the structure is h5py's; the data is written here


class _Structure:
    """A file object for h5py that records every write and its offset."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def write(self, data: Any) -> int:
        self.written.append((self.at, bytes(data)))
        self.at += len(data)
        self.size = max(self.size, self.at)
        return len(data)

    def read(self, count: int) -> bytes:
        content = bytearray(count)
        for start, data in self.written:
            low, high = max(start, self.at), min(start + len(data), self.at + count)
            if low < high:
                content[low - self.at : high - self.at] = data[low - start : high - start]
        self.at += count
        return bytes(content)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        return self.size

    def flush(self) -> None:
        pass


def _structure(
    items: list[FileTensor], about: dict[str, str], digests: dict[str, str]
) -> tuple[_Structure, list[int | None]]:
    """Return an HDF5 file without its data, and the offset of each tensor's data."""
    h5py = library("h5py", ".h5 files", "export")
    structure, places = _Structure(), []
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # an offset in the file now
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    with h5py.File(structure, "w") as file:
        for key, value in about.items():
            file.attrs[key] = value
        for item in items:
            bf16 = item.dtype == "bfloat16"
            dtype = np.dtype("V2") if bf16 else carrier(item.dtype).newbyteorder("<")
            dataset = h5py.Dataset(  # create_dataset() would give a scalar no offset
                h5py.h5d.create(
                    file.id,
                    item.name.encode(),
                    h5py.h5t.py_create(dtype, logical=True),
                    h5py.h5s.create_simple(item.tensor.shape),
                    creation,
                    link,
                )
            )
            if bf16:
                dataset.attrs["dtype"] = "bfloat16"
            if item.options is not None:
                dataset.attrs["idinit_ref.plan"] = json.dumps(item.options)
            if digests:
                dataset.attrs["idinit_ref.sha256"] = digests[item.name]
            places.append(dataset.id.get_offset())
    return structure, places


def _check_h5(items: list[FileTensor], about: dict[str, str]) -> None:
    for item in items:
        if "" in item.name.split("/"):
            should = "no part between slashes should be empty: in an .h5 file they are groups"
            raise OptionError(message("name", item.name, should, "rename it, or use .safetensors"))
    _check_no_folder(items, "/", "a group of other tensors in an .h5 file")
    try:
        _structure([], about, {})
    except (ValueError, OSError, RuntimeError) as problem:
        should = f"an .h5 file cannot hold it ({problem})"
        cure = "shorten it, without NUL characters, or use .safetensors"
        raise OptionError(message("metadata", [*about], should, cure)) from problem


def _check_no_folder(items: list[FileTensor], between: str, what: str) -> None:
    """Raise if a tensor's name is the first part of another's."""
    names = {item.name for item in items}
    for name in names:
        parent = name
        while between in parent:
            parent = parent.rpartition(between)[0]
            if parent in names:
                should = f"{parent!r} cannot be a tensor and {what}"
                raise OptionError(message("name", name, should, "rename one"))


def _h5_size(items: list[FileTensor], about: dict[str, str], digests: dict[str, str]) -> int:
    return _structure(items, about, digests)[0].size


def _write_h5(file: BinaryIO, items: list[FileTensor], about: dict[str, str], feed: Feed) -> None:
    structure, places = _structure(items, about, feed.digests)
    for item, place in zip(items, places, strict=True):
        if place is not None:
            file.seek(place)
        feed.put(file, item)
    if feed.digests:
        structure, _ = _structure(items, about, feed.digests)
    for place, data in structure.written:
        file.seek(place)
        file.write(data)
    file.truncate(structure.size)


# folders, written by the formats' own libraries


def _check_orbax(items: list[FileTensor], _: dict[str, str]) -> None:
    for item in items:
        if 0 in item.tensor.shape:
            should = "it should hold an entry: Orbax refuses empty arrays"
            raise ShapeError(message(f"shape of {item.name}", item.tensor.shape, should, "skip it"))
    _check_no_folder(items, ".", "a dict of other tensors in an Orbax tree")


def _data_size(items: list[FileTensor], *_: object) -> int:
    return sum(item.nbytes for item in items)


_ZIP64 = 2**31 - 1  # the largest number that zipfile writes in 4 bytes
_NUMPY = [name for name in DTYPES if carrier(name).name == name]  # NumPy's own

FORMS = {
    ".safetensors": Form(
        "a safetensors file",
        ".safetensors",
        list(DTYPES),
        _sorted,
        _check_safetensors,
        _safetensors_size,
        _write_safetensors,
    ),
    ".npz": Form("an .npz file", ".npz", _NUMPY, list, _check_npz, _npz_size, _write_npz),
    ".h5": Form("an .h5 file", ".h5", [*_NUMPY, "bfloat16"], list, _check_h5, _h5_size, _write_h5),
    ".distcp": Form(
        "a distributed checkpoint", ".distcp", list(DTYPES), list, lambda *_: None, _data_size
    ),
    ".orbax": Form("an Orbax checkpoint", ".orbax", list(DTYPES), list, _check_orbax, _data_size),
}
