"""The part of a DTensor that a rank holds, under tensor and data parallelism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

from idinit_ref.errors import OptionError, message

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["PLAIN", "is_sharded", "local_of", "parts", "reshard"]

PLAIN = frozenset({Tensor, nn.Parameter})
"""The types of a tensor that is not an instance of a subclass."""


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor, without importing torch.distributed."""
    kind = type(tensor)
    if kind in PLAIN:
        return False
    return kind.__module__.startswith("torch.distributed") and hasattr(tensor, "placements")


def local_of(tensor: DTensor, name: str) -> Tensor:
    """Return this rank's local tensor of a weight; raise an error if it cannot be a part of it.

    No communication: all ranks know the placements, so each rank raises for a Partial one.
    """
    placements = tensor.placements
    for placement in placements:
        dim = _dim(placement)
        if not (placement.is_replicate() or dim is not None):
            should = (
                "each should be Shard or Replicate: with Partial, ranks hold terms of a sum, "
                "not entries"
            )
            cure = "redistribute it first, e.g. to Replicate()"
            raise OptionError(message(f"{name}.placements", placements, should, cure))
        if dim is not None and dim not in range(tensor.ndim):
            should = f"each Shard should cut one of the {tensor.ndim} axes"
            cure = "create it with distribute_tensor, which checks this"
            raise OptionError(message(f"{name}.placements", placements, should, cure))
    for _, axes in getattr(tensor._spec, "shard_order", None) or ():  # not public in PyTorch
        if list(axes) != sorted(axes):
            given = tensor._spec.shard_order
            should = "each axis should be cut by the axes of the mesh in their order"
            cure = "redistribute it to placements without a shard_order first"
            raise OptionError(message(f"{name}._spec.shard_order", given, should, cure))
    local = tensor.to_local()
    expected = tuple(sum(map(len, spans)) for spans in _spans(tensor))
    empty = not (local.numel() or prod(expected))  # FSDP2 gives an empty part the shape (0, 0)
    here = tensor.device_mesh.get_coordinate() is not None
    if here and not empty and tuple(local.shape) != expected:
        should = (
            f"for the shape {tuple(tensor.shape)} with {placements} on a mesh of "
            f"{tuple(tensor.device_mesh.shape)} this rank's part should be {expected}"
        )
        cure = "create it with distribute_tensor, which cuts it this way"
        raise OptionError(message(f"{name}.to_local().shape", tuple(local.shape), should, cure))
    return local


def parts(tensor: DTensor) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
    """Yield pieces of this rank's local tensor, each with its slices in the whole weight.

    There is one piece, unless the part is not contiguous in the weight (a _StridedShard).
    """
    local = tensor.to_local()
    if tensor.device_mesh.get_coordinate() is None or not local.numel():
        return  # a rank outside the mesh holds nothing
    axes = []
    for spans in _spans(tensor):
        start, pairs = 0, []
        for span in spans:
            here = slice(start, start := start + len(span))
            pairs.append((here, slice(span.start, span.stop)))
        axes.append(pairs)
    for chosen in product(*axes):
        yield local[tuple(here for here, _ in chosen)], tuple(there for _, there in chosen)


def reshard(model: nn.Module) -> None:
    """Make FSDP2 modules free their gathered parameters, since writes to those would be lost.

    After a forward pass the outermost FSDP2 module keeps its parameters gathered. Raise OptionError
    for a submodule of such a module that is gathered now, and for a model wrapped by the older
    FSDP, which flattens its parameters and cannot be traced.
    """
    inside: list[nn.Module] = []
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        flat = "FullyShardedDataParallel" in kinds or "_flat_param" in module._parameters
        if flat:
            should = "its parameters should have their own shapes"
            cure = (
                "initialise it before it is wrapped, or wrap with fully_shard (FSDP2); or wrap "
                "with use_orig_params=True and pass the inner module within "
                "FullyShardedDataParallel.summon_full_params"
            )
            raise OptionError(message(name or "model", "FullyShardedDataParallel", should, cure))
        if "FSDPModule" in kinds:
            module.reshard()
            inside += module.modules()
    for name, module in model.named_modules():
        if getattr(module, "_is_fsdp_managed_module", False) and module not in inside:
            for parameter, tensor in module.named_parameters(recurse=False):
                # The older FSDP marks the tensors that summon_full_params writes back at its end.
                if not (is_sharded(tensor) or hasattr(tensor, "_fsdp_flattened")):
                    raise OptionError(
                        message(
                            f"{name}.{parameter}".lstrip("."),
                            "gathered",
                            "it should be sharded: values written to a gathered one are lost",
                            "pass the module that was given to fully_shard, or call its reshard(); "
                            "the older FullyShardedDataParallel needs use_orig_params=True",
                        )
                    )


def _dim(placement: Any) -> int | None:
    """Return the axis that a placement cuts."""
    if placement.is_shard() or hasattr(placement, "split_factor"):
        dim: int = placement.dim
        return dim
    return None


def _spans(tensor: DTensor) -> list[list[range]]:
    """Return this rank's index ranges along each axis of the whole tensor."""
    axes = [[range(size)] if size else [] for size in tensor.shape]
    at = tensor.device_mesh.get_coordinate()
    if at is None:
        return axes
    for placement, ranks, rank in zip(tensor.placements, tensor.device_mesh.shape, at, strict=True):
        dim = _dim(placement)
        if dim is None:
            continue
        pieces = getattr(placement, "split_factor", 1)
        axes[dim] = [
            span
            for piece in range(pieces)
            for span in _chunk(_chunk(axes[dim], pieces, piece), ranks, rank)
        ]
    return axes


def _chunk(spans: Sequence[range], count: int, number: int) -> list[range]:
    """Return one chunk of some index ranges, cut as torch.chunk does."""
    total = sum(map(len, spans))
    size = -(-total // count)
    low, high = min(number * size, total), min((number + 1) * size, total)
    out: list[range] = []
    start = 0
    for span in spans:
        cut = span[max(low - start, 0) : max(high - start, 0)]
        start += len(span)
        if len(cut):
            out.append(cut)
    return out
