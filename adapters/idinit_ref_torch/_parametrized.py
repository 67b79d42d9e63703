"""Weights that a layer computes from other tensors, which are set so that IDInit results.

Supported are all parametrizations of ``torch.nn.utils.parametrize`` and the older hooks of
``torch.nn.utils``: weight norm, spectral norm and pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from idinit_ref.errors import OptionError, message

from ._sharded import is_sharded

__all__ = ["Computed", "Norm", "computed", "norms", "unnormed"]

_STEPS = 64
"""Steps of the power iteration, whose vectors start from those of the old weight."""

_REMOVED = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    prune.BasePruningMethod: "torch.nn.utils.prune.remove",
}

Pairs = list[tuple[Tensor, Tensor]]
"""Tensors that a module holds, each with its new value."""


class Norm(NamedTuple):
    """A weight under weight norm, g v / |v|; `refresh` updates a result that the module stores."""

    g: Tensor
    v: Tensor
    dim: int
    refresh: Callable[[], None] | None = None

    def pairs(self, weight: Tensor) -> Pairs:
        """Return g and v of a weight. Where its norm is 0, g is 0 and v keeps its value."""
        sizes = torch.norm_except_dim(weight, 2, self.dim)
        old = torch.where(torch.norm_except_dim(self.v.detach(), 2, self.dim) == 0, 1, self.v)
        return [(self.g, sizes), (self.v, torch.where(sizes == 0, old, weight))]

    def write(self, weight: Tensor) -> None:
        """Set g and v so that the result is `weight`."""
        for held, new in self.pairs(weight):
            held.copy_(new)
        if self.refresh is not None:
            self.refresh()


def norms(model: nn.Module) -> dict[str, list[Norm]]:
    """Return a model's weights that have weight norm and nothing else, by the name of their v.

    Several weights may share a v.
    """
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    found = [_norm(module, hook) for module in model.modules() for hook in _hooks(module)]
    found += [_list_norm(module) for module in model.modules()]
    kept = [norm for norm in found if norm is not None and {id(norm.g), id(norm.v)} <= {*names}]
    by_name: dict[str, list[Norm]] = {}
    for norm in kept:
        if not is_sharded(norm.v):
            by_name.setdefault(names[id(norm.v)], []).append(norm)
    return by_name


def unnormed(model: nn.Module) -> None:
    """Make layers under weight norm use v as their weight; the caller undoes the change."""
    for module in model.modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, WeightNorm) and not is_sharded(getattr(module, f"{hook.name}_v")):
                module._forward_pre_hooks[key] = partial(_take, hook.name)
        norm = _list_norm(module)
        if norm is not None and not is_sharded(norm.v):
            next(module.children()).forward = _second


def _take(name: str, module: nn.Module, _: object) -> None:
    module.__dict__[name] = getattr(module, f"{name}_v")


def _second(_: Tensor, v: Tensor) -> Tensor:
    return v


def _list_norm(module: nn.Module) -> Norm | None:
    """Return the weight norm of a list of parametrizations that has no other step."""
    if not isinstance(module, parametrize.ParametrizationList) or len(module) > 1:
        return None
    steps: Any = module
    first = steps[0]
    return Norm(steps.original0, steps.original1, first.dim) if type(first) is _WeightNorm else None


def _norm(module: nn.Module, hook: Any) -> Norm | None:
    if not isinstance(hook, WeightNorm):
        return None

    def refresh() -> None:
        setattr(module, hook.name, hook.compute_weight(module))

    g, v = (getattr(module, f"{hook.name}_{letter}") for letter in "gv")
    return Norm(g, v, hook.dim, refresh)


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Yield a module's hooks that recompute a tensor before every call."""
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    yield from (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds))


class Computed(NamedTuple):
    """A tensor that a module computes with parametrizations, or with an older hook."""

    module: nn.Module
    name: str
    hook: Any = None

    @property
    def steps(self) -> Any:
        """The parametrizations that compute it."""
        lists: Any = self.module.parametrizations
        return lists[self.name]

    def held(self) -> dict[str, Tensor]:
        """Return the tensors that the module holds instead, by name."""
        if self.hook is None:
            return {**dict(self.steps.named_parameters()), **dict(self.steps.named_buffers())}
        tensors = {**self.module._parameters, **self.module._buffers}
        ends = ("_g", "_v", "_u", "_orig", "_mask")
        names = [name for name in tensors if name in {f"{self.name}{end}" for end in ends}]
        return {name: tensor for name in names if (tensor := tensors[name]) is not None}

    def now(self) -> Tensor:
        """Return its current value, without a step of power iteration."""
        with torch.no_grad():
            if self.hook is None:
                result: Tensor = deepcopy(self.steps).eval()()
                return result
            return self._by_hook({name: one.clone() for name, one in self.held().items()}, 0)

    def solve(self, wanted: Tensor) -> Pairs:
        """Return new values for `held`; raise OptionError if none give the wanted tensor."""
        devices = [wanted.device] if wanted.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # an orthogonal completion is random
            solve = self._solved if self.hook is None else self._solved_hook
            try:
                pairs, result = solve(wanted)
            # A right inverse may be user code: it may be missing, or reject the tensor.
            except (NotImplementedError, RuntimeError, ValueError, TypeError) as problem:
                raise self._impossible(wanted, None, str(problem)) from problem
        slack = min(64 * torch.finfo(wanted.dtype).eps, 0.02) * float(
            wanted.abs().max() if wanted.numel() else 0
        )
        if result.shape != wanted.shape or not bool(((result - wanted).abs() <= slack).all()):
            raise self._impossible(wanted, result, "")
        return pairs

    def recompute(self) -> None:
        """Recompute it where the module stores the result."""
        parametrize._cache.pop((id(self.module), self.name), None)
        if self.hook is not None:
            setattr(self.module, self.name, self._by_hook(self.held(), 0))

    def _solved(self, wanted: Tensor) -> tuple[Pairs, Tensor]:
        """Invert the steps on a copy, then apply them; return the new values and the result."""
        steps = deepcopy(self.steps).train()
        value: Any = wanted
        for step in reversed(list(steps)):
            if hasattr(step, "right_inverse"):
                value = step.right_inverse(value)
        if type(steps[0]) is _WeightNorm:
            norm = Norm(steps.original0, steps.original1, steps[0].dim)
            values = [new for _, new in norm.pairs(value[1])]
        else:
            values = [value] if isinstance(value, Tensor) else list(value)
        originals = (
            [steps.original]
            if steps.is_tensor
            else [getattr(steps, f"original{k}") for k in range(steps.ntensors)]
        )
        for original, new in zip(originals, values, strict=True):
            if original.shape != new.shape:
                raise ValueError(f"its original has the shape {tuple(original.shape)}")
            original.copy_(new)
        if any(hasattr(step, "n_power_iterations") for step in steps):
            for _ in range(_STEPS):
                steps()
        now: dict[str, Tensor] = dict(steps.named_parameters()) | dict(steps.named_buffers())
        return [(one, now[name]) for name, one in self.held().items()], steps.eval()()

    def _solved_hook(self, wanted: Tensor) -> tuple[Pairs, Tensor]:
        held = self.held()
        new = {name: tensor.clone() for name, tensor in held.items()}
        norm = _norm(self.module, self.hook)
        if norm is not None:
            ends, values = ("_g", "_v"), (value for _, value in norm.pairs(wanted))
            new = {f"{self.name}{end}": value for end, value in zip(ends, values, strict=True)}
        else:
            new[f"{self.name}_orig"] = wanted
        result = self._by_hook(new, _STEPS)
        return [(tensor, new[name]) for name, tensor in held.items()], result

    def _by_hook(self, tensors: dict[str, Tensor], steps: int) -> Tensor:
        """Compute it from given tensors; power iteration changes its vectors in place."""
        module: Any = SimpleNamespace(**tensors)
        hook: Any = self.hook
        result: Tensor
        if isinstance(hook, prune.BasePruningMethod):
            apply: Any = hook.apply_mask
            result = apply(module)
        elif isinstance(hook, SpectralNorm):
            for _ in range(steps):
                hook.compute_weight(module, do_power_iteration=True)
            result = hook.compute_weight(module, do_power_iteration=False)
        else:
            result = hook.compute_weight(module)
        return result

    def _impossible(self, wanted: Tensor, result: Tensor | None, raised: str) -> OptionError:
        steps = [self.hook] if self.hook is not None else list(self.steps)
        kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
        should = f"no original tensors give the required weight of shape {tuple(wanted.shape)}"
        should += raised and f"; PyTorch raised: {' '.join(raised.split())}"
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        for kind, name in _REMOVED.items():
            remove = name if isinstance(self.hook, kind) else remove
        cure = f"call {remove}(layer, {self.name!r}), initialise, and apply it again"
        if result is not None and any(hasattr(step, "n_power_iterations") for step in steps):
            should += "; spectral norm makes its largest singular value 1"
            largest = float(torch.linalg.matrix_norm(wanted.flatten(1).double(), 2))
            cure += f", or choose a gain for which it is 1: it is {largest:.6g} now"
        return OptionError(message(self.name, f"computed by {kinds}", should, cure))


def computed(module: nn.Module, path: str) -> Computed | None:
    """Return the computation of a module's tensor, or None if it is a plain parameter."""
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    if parametrize.is_parametrized(owner, name):
        return Computed(owner, name)
    for hook in _hooks(owner):
        if getattr(hook, "name", getattr(hook, "_tensor_name", None)) == name:
            return Computed(owner, name, hook)
    return None
