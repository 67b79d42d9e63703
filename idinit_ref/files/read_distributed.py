"""Folders of `torch.distributed.checkpoint`: tensors in pieces, each written by `torch.save`.

The list of tensors is a pickle. PyTorch would run any code it names; the unpickler here admits only
the classes below. PyTorch itself reads the pieces.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.text import short
from .disk import Faults, SourceFile, Spans, readable, source_of
from .others import ZIP
from .read_torch import array_of, the_torch
from .stored import Foreign, StoredTensor, known_dtype

LIST = ".metadata"
"""The file that identifies such a folder."""

_KIND = "the list of a distributed checkpoint"
_DCP = "torch.distributed.checkpoint"
_KNOWN = {
    f"{_DCP}.metadata": (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata",
        "ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    ),
    f"{_DCP}.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", "device"),
}  # fmt: skip
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class _Unpickler(pickle.Unpickler):
    """Reads the list of a distributed checkpoint; refuses all that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib" and name in _PATHS:
            return PurePath
        torch = the_torch()
        known = name in _KNOWN.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        )
        if not known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in such a list")
        return getattr(importlib.import_module(module), name)


class _Chunk(NamedTuple):
    """A piece of a tensor: its offset, its sizes, and its bytes in a file."""

    at: tuple[int, ...]
    sizes: tuple[int, ...]
    source: SourceFile
    begin: int
    length: int

    def read(self, name: str, dtype: str) -> Any:
        with self.source.open() as file:
            content = self.source.take(file, self.begin, self.length)
        with readable(self.source, "a file of torch.save"):
            tensor = the_torch().load(io.BytesIO(content), map_location="cpu", weights_only=True)
            own = known_dtype(str(tensor.dtype).removeprefix("torch."))
            right = tuple(tensor.shape) == self.sizes and own == dtype
        if not right:
            should = f"it should be {dtype} of shape {self.sizes}, as in the list"
            raise self.source.wrong(f"piece of {short(name)!r}", str(tensor.shape), should)
        return tensor


@dataclass(slots=True, eq=False)
class _Sharded(Foreign):
    """A tensor in pieces. `last`, shared by all tensors, keeps the piece that was read last."""

    pieces: list[_Chunk] = field(repr=False)
    last: dict[_Chunk, Any] = field(repr=False)

    def _block(self, spans: Spans) -> NDArray[Any]:
        out = np.zeros([len(span) for span in spans], self.bits)
        for piece in self.pieces:
            ends = zip(spans, piece.at, piece.sizes, strict=True)
            both = [range(max(s.start, a), min(s.stop, a + n)) for s, a, n in ends]
            if not all(both):
                continue
            if piece not in self.last:
                self.last.clear()
                self.last[piece] = piece.read(self.name, self.dtype)
            there, here = (
                tuple(
                    slice(r.start - base, r.stop - base) for r, base in zip(both, at, strict=True)
                )
                for at in (piece.at, [span.start for span in spans])
            )
            out[here] = array_of(self.last[piece][there], self.bits)
        return out


def open_distributed(path: Path, faults: Faults) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of a folder by their full names; other content is ignored."""
    source, files = source_of(path / LIST, _KIND), dict[str, SourceFile]()
    last: dict[_Chunk, Any] = {}
    tensors: list[StoredTensor] = []
    with readable(source, _KIND):
        with source.open() as file:
            listed = _Unpickler(io.BytesIO(source.take(file, 0, source.size))).load()
        places = {(key.fqn, key.offset): place for key, place in listed.storage_data.items()}
        for name, entry in listed.state_dict_metadata.items():
            if not hasattr(entry, "chunks"):
                continue
            with faults.around():
                dtype = entry.properties.dtype
                tensor = _Sharded(
                    name,
                    known_dtype(str(dtype).removeprefix("torch.")),
                    tuple(map(int, entry.size)),
                    path,
                    int(dtype.itemsize),
                    [_piece(path, files, c, places[name, c.offsets]) for c in entry.chunks],
                    last,
                )
                _check(source, tensor)
                tensors.append(tensor)
    return tensors, {}


def _piece(folder: Path, files: dict[str, SourceFile], chunk: Any, place: Any) -> _Chunk:
    """Return a piece; raise if the list's place for it cannot be right."""
    home, (begin, length) = str(place.relative_path), (int(place.offset), int(place.length))
    if home not in files:
        listed = SourceFile(folder / LIST, 0, 0)
        if PurePath(home).name != home or home in ("", ".", "..") or "\\" in home:
            raise listed.wrong("file", home, "it should lie in the folder", "do not use it")
        if not os.path.exists(folder / home):
            raise listed.wrong("file", home, "it is missing", "download it into the folder")
        files[home] = source_of(folder / home, "a file of torch.save", ZIP)
    if min(begin, length) < 0 or begin + length > files[home].size:
        raise files[home].wrong("place of a piece", (begin, length), "it should be in the file")
    at, sizes = (tuple(map(int, each)) for each in (chunk.offsets, chunk.sizes))
    return _Chunk(at, sizes, files[home], begin, length)


def _check(source: SourceFile, tensor: _Sharded) -> None:
    """Raise if pieces are larger than their bytes, or do not cover the tensor."""
    what = f"tensor {short(tensor.name)!r}"
    inside = all(
        0 <= a <= a + n <= whole
        for piece in tensor.pieces
        for a, n, whole in zip(piece.at, piece.sizes, tensor.shape, strict=True)
    )
    fits = all(prod(piece.sizes) * tensor.width <= piece.length for piece in tensor.pieces)
    if not (inside and fits) or sum(prod(p.sizes) for p in tensor.pieces) != prod(tensor.shape):
        should = "its pieces should cover it, and lie in their files"
        raise source.wrong(what, tensor.shape, should)
