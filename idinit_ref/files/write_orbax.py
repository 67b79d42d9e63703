"""Weights into a folder of Orbax, chunk by chunk, by Orbax itself: what JAX restores."""

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
from .disk import needed

_CHUNK = 2**26  # bytes that are made at once, and lie together


class _LazyArray:
    """A tensor as Orbax sees it: an array whose numbers are made when they are written."""

    def __init__(self, item: FileTensor) -> None:
        self.item, self.shape, self.dtype = item, item.tensor.shape, carrier(item.dtype)
        if self.dtype.name != item.dtype:  # NumPy lacks it
            self.dtype = np.dtype(getattr(importlib.import_module("ml_dtypes"), item.dtype))
        self.size, self.nbytes = prod(self.shape), item.nbytes

    def __deepcopy__(self, _: object) -> _LazyArray:
        return self  # Orbax copies arrays, which may change while it writes

    def chunks(self, sizes: Sequence[int]) -> Iterator[tuple[tuple[slice, ...], Any]]:
        """Yield an index and its numbers, for each chunk of those sizes."""
        starts = (range(0, size, step) for size, step in zip(self.shape, sizes, strict=True))
        for at in product(*starts):
            ends = map(min, map(sum, zip(at, sizes, strict=True)), self.shape)
            index = tuple(map(slice, at, ends))
            block = self.item.tensor.read(index, self.item.dtype)
            yield index, np.ascontiguousarray(block).view(self.dtype).reshape(block.shape)


def write_orbax(folder: Path, items: Sequence[FileTensor], count: Callable[[int], object]) -> None:
    """Write tensors into a folder that is not there yet, as one process would.

    The tree is of dicts, by the parts of the names between dots. Any number of processes restores
    it, each what it needs. ``count(bytes)`` is called after each chunk.
    """
    ocp: Any = needed("orbax.checkpoint", "checkpoints of Orbax", "orbax")
    tensorstore = needed("tensorstore", "checkpoints of Orbax", "orbax")

    base: Any = ocp.type_handlers.NumpyHandler

    class Handler(base):  # type: ignore[misc]  # Orbax has no types
        async def _open_and_write(self, leaf: _LazyArray, spec: Any, context: Any) -> None:
            """Write one array, which Orbax's own handler would take as a whole."""
            spec = tensorstore.Spec(spec)
            array = await tensorstore.open(spec, create=True, open=True, context=context)
            sizes: Any = array.chunk_layout.write_chunk.shape or ()
            for index, block in leaf.chunks(sizes):
                array[index].write(block).result()  # so that no two chunks are in memory
                count(block.nbytes)

    tree: dict[str, Any] = {}
    for item in items:
        *parents, last = item.name.split(".")
        at = tree
        for key in parents:
            at = at.setdefault(key, {})
        at[last] = _LazyArray(item)
    registry = ocp.type_handlers.create_type_handler_registry((_LazyArray, Handler()))
    args = _like(tree, ocp.SaveArgs(chunk_byte_size=_CHUNK))
    with _quietly():
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(tree, save_args=args))


def _like(tree: dict[str, Any], value: Any) -> dict[str, Any]:
    return {k: _like(v, value) if isinstance(v, dict) else value for k, v in tree.items()}


@contextmanager
def _quietly() -> Iterator[None]:
    """Drop Orbax's warnings: that it keeps no shardings, and that its API has changed."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
