"""Parameters whose values are not in their own memory: lazy, offloaded or flattened."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from idinit_ref.errors import OptionError, OptionTypeError, ShapeError, message

__all__ = ["lasting", "offloaded", "present", "write_back"]


def present(tensor: Tensor, name: str) -> None:
    """Raise an error for a parameter whose values are elsewhere or do not exist yet."""
    if nn.parameter.is_lazy(tensor):
        should = "its shape should be known; a lazy layer gets it from its first input"
        cure = "run one forward pass through the layer first"
        raise ShapeError(message(name, type(tensor), should, cure))
    gathered = getattr(tensor, "ds_shape", None)
    if gathered is not None and not tensor.numel() and prod(gathered):
        should = f"it is DeepSpeed ZeRO-3's placeholder for a parameter of shape {tuple(gathered)}"
        cure = (
            "gather it around the call: with deepspeed.zero.GatheredParameters(list("
            "model.parameters()), modifier_rank=0): ..."
        )
        raise OptionError(message(name, tuple(tensor.shape), should, cure))
    if any(kind.__name__ == "FlatParameter" for kind in type(tensor).__mro__):
        should = (
            "it is a flat parameter of FullyShardedDataParallel and holds parts of many weights"
        )
        cure = "initialise before wrapping, or wrap with fully_shard (FSDP2)"
        raise OptionTypeError(message(name, "FlatParameter", should, cure))


def lasting(tensor: Tensor, name: str) -> None:
    """Raise an error for a tensor that is recomputed at every access or is part of a flat one.

    A computed tensor is recognised by its gradient function only.
    """
    owner = tensor if tensor._base is None else tensor._base
    if tensor.grad_fn is not None and owner.grad_fn is not None:
        should = "it should be a parameter or a view of one, but it is computed from others"
        cure = (
            "for the weight of a layer under weight norm, spectral norm or another parametrization "
            "use idi_layer_ or idiz_layer_, which set its original tensors; else detach() it"
        )
        raise OptionError(message(name, f"a result of {tensor.grad_fn.name()}", should, cure))
    if tensor.ndim == 1 and hasattr(tensor, "_fsdp_flattened"):
        should = "it is a part of a flat parameter of FullyShardedDataParallel"
        cure = "call it within FullyShardedDataParallel.summon_full_params(model)"
        raise OptionError(message(name, tuple(tensor.shape), should, cure))


def offloaded(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the offloaded parameters that accelerate has loaded, each with its stored tensor.

    Raise OptionError for a parameter that is not loaded or is stored on disk.
    """
    loaded = []
    for name, module in model.named_modules():
        for hook in _hooks(module):
            for local, tensor in module.named_parameters(recurse=False):
                label = f"{name}.{local}".lstrip(".")
                if tensor.is_meta:
                    should = "it should have values, but accelerate has offloaded them"
                    cure = (
                        "initialise the layer within accelerate.utils.align_module_device(layer), "
                        "or the model before it is dispatched"
                    )
                    raise OptionError(message(label, "on the meta device", should, cure))
                kept, again = hook.weights_map[local], hook.weights_map[local]
                if kept.data_ptr() != again.data_ptr():
                    should = "accelerate stores it on disk, where idinit_ref cannot write it"
                    cure = "initialise the model before it is dispatched, or offload to the CPU"
                    raise OptionError(message(label, "offloaded to disk", should, cure))
                loaded.append((tensor, kept))
    return loaded


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield accelerate's hooks that offload a module's direct parameters."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if getattr(one, "offload", False) and getattr(one, "weights_map", None) is not None:
            yield one


def write_back(loaded: list[tuple[Tensor, Tensor]]) -> None:
    """Copy new values into accelerate's stored tensors, where the loaded ones are copies."""
    with torch.no_grad():
        for tensor, kept in loaded:
            if kept.data_ptr() != tensor.data_ptr():
                kept.copy_(tensor)
