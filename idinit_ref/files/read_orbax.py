"""Orbax's folders: a tree in JSON, and arrays that tensorstore reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.text import short
from .disk import Faults, SourceFile, Spans, library, readable, source_of
from .stored import Foreign, StoredTensor, known_dtype

TREE = "_METADATA"
"""The file that identifies such a folder."""

_KIND = "the tree of an Orbax checkpoint"


@dataclass(slots=True, eq=False)
class _Array(Foreign):
    """An array of tensorstore."""

    array: Any = field(repr=False)
    source: SourceFile = field(repr=False)

    def _block(self, spans: Spans) -> NDArray[Any]:
        with readable(self.source, _KIND):
            index = tuple(slice(span.start, span.stop) for span in spans)
            block = np.asarray(self.array[index].read().result())
        return np.ascontiguousarray(block).view(self.bits).reshape(block.shape)


def open_orbax(path: Path, faults: Faults) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the arrays of a folder by their keys, joined with "."; other values are ignored."""
    tensorstore = library("tensorstore", "Orbax checkpoints", "orbax")
    source = source_of(path / TREE, _KIND)
    with source.open() as file:
        tree = source.loads(source.take(file, 0, source.size))
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    tensors: list[StoredTensor] = []
    with readable(source, _KIND):
        packed, driver = tree.get("use_ocdbt", True), "zarr3" if tree.get("use_zarr3") else "zarr"
        for entry in tree["tree_metadata"].values():
            keys = [str(each["key"]) for each in entry["key_metadata"]]
            if "rray" not in entry["value_metadata"]["value_type"]:  # a scalar, text or None
                continue
            with faults.around():
                name = ".".join(keys)
                store: dict[str, Any] = {"driver": "file", "path": f"{path.absolute()}/"}
                if packed:
                    store = {"driver": "ocdbt", "base": store, "path": f"{name}/"}
                elif "/" in name or name in ("", ".", ".."):
                    raise source.wrong("name", name, "it should name a folder in this one")
                else:
                    store["path"] += f"{name}/"
                with readable(source, f"a checkpoint with {short(name)!r}"):
                    spec = {"driver": driver, "kvstore": store}
                    array = tensorstore.open(spec, open=True, read=True, context=context).result()
                dtype, shape = known_dtype(array.dtype.name), tuple(map(int, array.shape))
                width = array.dtype.numpy_dtype.itemsize
                tensors.append(_Array(name, dtype, shape, path, width, array, source))
    return tensors, {}
