"""Writes a folder of `torch.distributed.checkpoint`, piece by piece, with PyTorch itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .bits import itemsize
from .containers import FileTensor
from .read_torch import the_torch

_PIECE = 2**26  # the bytes of a piece


def write_distributed(
    folder: Path, items: Sequence[FileTensor], count: Callable[[int], object]
) -> None:
    """Write tensors into a new folder, as one process would.

    A tensor is split along its first axis, so only one piece is in memory. Any number of processes
    can load the folder, each its own parts. ``count(bytes)`` is called after each piece.
    """
    torch = the_torch()
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
    from torch.distributed.checkpoint.state_dict_saver import save

    byname = {item.name: item for item in items}

    class Planner(SavePlanner):
        def set_up_planner(self, *_: Any, **__: Any) -> None:
            """Ignore the state: the items replace it."""

        def create_local_plan(self) -> Any:
            return SavePlan([write for item in items for write in _writes(item)])

        def create_global_plan(self, all_plans: list[Any]) -> Any:
            return create_default_global_save_plan(all_plans)

        def finish_plan(self, new_plan: Any) -> Any:
            return new_plan

        def resolve_data(self, write_item: Any) -> Any:
            item, chunk = byname[write_item.index.fqn], write_item.tensor_data.chunk
            ends = zip(chunk.offsets, chunk.sizes, strict=True)
            block = item.tensor.read(tuple(slice(a, a + n) for a, n in ends), item.dtype)
            native = np.ascontiguousarray(block, block.dtype.newbyteorder("="))
            bits = native.view(f"i{native.itemsize}") if native.dtype.kind == "u" else native
            count(native.nbytes)
            tensor = torch.from_numpy(bits.copy() if not bits.flags.writeable else bits)
            return tensor.view(getattr(torch, item.dtype)).reshape(tuple(chunk.sizes))

    writer = FileSystemWriter(folder, thread_count=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a single process
        try:
            save({}, storage_writer=writer, planner=Planner(), no_dist=True)
        except CheckpointException as problem:  # it wraps the original error
            raise next(iter(problem.failures.values()))[0] from problem


def _writes(item: FileTensor) -> list[Any]:
    """Return PyTorch's write items for the pieces of a tensor."""
    torch = the_torch()
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    shape, properties = item.tensor.shape, TensorProperties(getattr(torch, item.dtype))
    rows, inner = (shape[0], shape[1:]) if shape else (1, ())
    step = max(_PIECE // max(prod(inner) * itemsize(item.dtype), 1), 1)
    writes = []
    for k, start in enumerate(range(0, max(rows, 1), step)):
        at = (start, *(0 for _ in inner)) if shape else ()
        sizes = (min(step, rows - start), *inner) if shape else ()
        chunk = ChunkStorageMetadata(torch.Size(at), torch.Size(sizes))
        data = TensorWriteData(chunk, properties, torch.Size(shape))
        index = MetadataIndex(item.name, torch.Size(at), k)
        writes.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
    return writes
