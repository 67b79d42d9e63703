"""Writes a folder of Orbax, chunk by chunk, with Orbax itself, for JAX."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .bits import carrier
from .containers import FileTensor
from .disk import library

_CHUNK = 2**26  # the bytes of a chunk


class _LazyArray:
    """An array for Orbax whose numbers are built during the write."""

    def __init__(self, item: FileTensor) -> None:
        self.item, self.shape, self.dtype = item, item.tensor.shape, carrier(item.dtype)
        if self.dtype.name != item.dtype:  # NumPy lacks it
            self.dtype = np.dtype(getattr(importlib.import_module("ml_dtypes"), item.dtype))
        self.size, self.nbytes = prod(self.shape), item.nbytes

    def __deepcopy__(self, _: object) -> _LazyArray:
        return self  # Orbax copies arrays that may change during its write; this one cannot

    def chunks(self, sizes: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], Any]]:
        """Yield the index and the numbers of each chunk with these sizes."""
        starts = (range(0, size, step) for size, step in zip(self.shape, sizes, strict=True))
        for at in product(*starts):
            ends = map(min, map(sum, zip(at, sizes, strict=True)), self.shape)
            index = tuple(map(slice, at, ends))
            block = self.item.tensor.read(index, self.item.dtype)
            yield index, np.ascontiguousarray(block).view(self.dtype).reshape(block.shape)


def write_orbax(folder: Path, items: Sequence[FileTensor], count: Callable[[int], object]) -> None:
    """Write tensors into a new folder, as one process would.

    The tree consists of dicts, by the parts of the names between dots. Any number of processes can
    restore it, each its own parts. ``count(bytes)`` is called after each chunk.
    """
    ocp: Any = library("orbax.checkpoint", "checkpoints of Orbax", "orbax")
    tensorstore = library("tensorstore", "checkpoints of Orbax", "orbax")

    base: Any = ocp.type_handlers.NumpyHandler

    class Handler(base):  # type: ignore[misc]  # Orbax has no types
        async def _open_and_write(self, leaf: _LazyArray, spec: Any, context: Any) -> None:
            """Write one array in chunks; Orbax's own handler would need it whole."""
            spec = tensorstore.Spec(spec)
            array = await tensorstore.open(spec, create=True, open=True, context=context)
            sizes: Any = array.chunk_layout.write_chunk.shape or ()
            for index, block in leaf.chunks(sizes):
                array[index].write(block).result()  # wait: only one chunk is in memory
                count(block.nbytes)

    tree: dict[str, Any] = {}
    for item in items:
        *parents, last = item.name.split(".")
        at = tree
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = _LazyArray(item)
    registry = ocp.type_handlers.create_type_handler_registry((_LazyArray, Handler()))
    args = _filled(tree, ocp.SaveArgs(chunk_byte_size=_CHUNK))
    with _warnings_off():
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(tree, save_args=args))


def _filled(tree: dict[str, Any], value: Any) -> dict[str, Any]:
    return {k: _filled(v, value) if isinstance(v, dict) else value for k, v in tree.items()}


@contextmanager
def _warnings_off() -> Iterator[None]:
    """Drop Orbax's warnings about shardings and its changed API."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
