"""Parameters that are not here, and what brings them: placeholders, offloaded, flattened ones."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from idinit_ref.errors import OptionError, OptionTypeError, ShapeError, message

__all__ = ["lasting", "offloaded", "present", "written_back"]


def present(tensor: Tensor, name: str) -> None:
    """Raise for a parameter whose values are elsewhere, or not yet anywhere."""
    if nn.parameter.is_lazy(tensor):
        should = "its shape should be known, and a lazy layer learns it from its first input"
        cure = "run one forward pass through the layer first"
        raise ShapeError(message(name, type(tensor), should, cure))
    gathered = getattr(tensor, "ds_shape", None)
    if gathered is not None and not tensor.numel() and prod(gathered):
        should = f"it is DeepSpeed ZeRO-3's placeholder of a parameter of shape {tuple(gathered)}"
        cure = (
            "gather it around the call: with deepspeed.zero.GatheredParameters(list("
            "model.parameters()), modifier_rank=0): ..."
        )
        raise OptionError(message(name, tuple(tensor.shape), should, cure))
    if any(kind.__name__ == "FlatParameter" for kind in type(tensor).__mro__):
        should = (
            "it is a flat parameter of FullyShardedDataParallel: many weights, and parts of them"
        )
        cure = "initialise before wrapping, or wrap with fully_shard (FSDP2)"
        raise OptionTypeError(message(name, "FlatParameter", should, cure))


def lasting(tensor: Tensor, name: str) -> None:
    """Raise for a tensor that is computed anew at every access, and for a part of a flat one.

    Without gradients a computed tensor cannot be told from one that was just made.
    """
    owner = tensor if tensor._base is None else tensor._base
    if tensor.grad_fn is not None and owner.grad_fn is not None:
        should = "it should be a parameter, or a view of one: this one is computed from others"
        cure = (
            "for the weight of a layer under weight norm, spectral norm or another parametrization "
            "use idi_layer_ or idiz_layer_, which set what it is computed from; else detach() it"
        )
        raise OptionError(message(name, f"a result of {tensor.grad_fn.name()}", should, cure))
    if tensor.ndim == 1 and hasattr(tensor, "_fsdp_flattened"):
        should = "it is a part of a flat parameter of FullyShardedDataParallel"
        cure = "call it within FullyShardedDataParallel.summon_full_params(model)"
        raise OptionError(message(name, tuple(tensor.shape), should, cure))


def offloaded(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return the parameters that accelerate has brought for now, each with what it keeps of them.

    OptionError for those that it has not brought, or that it keeps on disk.
    """
    brought = []
    for name, module in model.named_modules():
        for hook in _hooks(module):
            for own, tensor in module.named_parameters(recurse=False):
                label = f"{name}.{own}".lstrip(".")
                if tensor.is_meta:
                    should = "accelerate has offloaded it, and its values are not here"
                    cure = (
                        "initialise the layer within accelerate.utils.align_module_device(layer), "
                        "or the model before it is dispatched"
                    )
                    raise OptionError(message(label, "on the meta device", should, cure))
                kept, again = hook.weights_map[own], hook.weights_map[own]
                if kept.data_ptr() != again.data_ptr():
                    should = "accelerate keeps it on disk, where it cannot be written from here"
                    cure = "initialise the model before it is dispatched, or offload to the CPU"
                    raise OptionError(message(label, "offloaded to disk", should, cure))
                brought.append((tensor, kept))
    return brought


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks of accelerate that offload a module's own parameters."""
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "offload", False) and getattr(each, "weights_map", None) is not None:
            yield each


def written_back(brought: list[tuple[Tensor, Tensor]]) -> None:
    """Give accelerate the new values of parameters that it has brought as copies."""
    with torch.no_grad():
        for tensor, kept in brought:
            if kept.data_ptr() != tensor.data_ptr():
                kept.copy_(tensor)
