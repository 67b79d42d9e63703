"""Weights that a layer computes from others: what these have to be, so that the result is IDInit's.

Known are ``torch.nn.utils.parametrize`` with all that is registered there, and the older hooks of
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
"""Of the power iteration, whose vectors are those of another weight before."""

_REMOVED = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
    prune.BasePruningMethod: "torch.nn.utils.prune.remove",
}

Pairs = list[tuple[Tensor, Tensor]]
"""Tensors that a module holds, each with its new value."""


class Norm(NamedTuple):
    """A weight under weight norm, g v / |v|, and how its module keeps the result, if it does."""

    g: Tensor
    v: Tensor
    dim: int
    refresh: Callable[[], None] | None = None

    def pairs(self, weight: Tensor) -> Pairs:
        """Return g and v of a weight. Where its norm is 0, v stays and g is 0."""
        sizes = torch.norm_except_dim(weight, 2, self.dim)
        old = torch.where(torch.norm_except_dim(self.v.detach(), 2, self.dim) == 0, 1, self.v)
        return [(self.g, sizes), (self.v, torch.where(sizes == 0, old, weight))]

    def write(self, weight: Tensor) -> None:
        """Make the result that weight."""
        for held, new in self.pairs(weight):
            held.copy_(new)
        if self.refresh is not None:
            self.refresh()


def norms(model: nn.Module) -> dict[str, list[Norm]]:
    """Return the weights of a model that are under weight norm alone, by the name of their v.

    Several may share it.
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
    """Let a copy of a model, whose changes are undone, take v for the weight under weight norm."""
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
    """Return the weight norm that is the only step of a list of parametrizations."""
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
    """Yield the hooks that compute a tensor of a module before every call."""
    kinds = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
    yield from (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds))


class Computed(NamedTuple):
    """A tensor that a module computes: by steps that are parametrizations, or by an older hook."""

    module: nn.Module
    name: str
    hook: Any = None

    @property
    def steps(self) -> Any:
        """The parametrizations, of which it is computed."""
        lists: Any = self.module.parametrizations
        return lists[self.name]

    def held(self) -> dict[str, Tensor]:
        """Return what the module holds instead of it."""
        if self.hook is None:
            return {**dict(self.steps.named_parameters()), **dict(self.steps.named_buffers())}
        tensors = {**self.module._parameters, **self.module._buffers}
        ends = ("_g", "_v", "_u", "_orig", "_mask")
        names = [name for name in tensors if name in {f"{self.name}{end}" for end in ends}]
        return {name: tensor for name in names if (tensor := tensors[name]) is not None}

    def now(self) -> Tensor:
        """Return it as it is now, without a step of a power iteration."""
        with torch.no_grad():
            if self.hook is None:
                result: Tensor = deepcopy(self.steps).eval()()
                return result
            return self._by_hook({name: one.clone() for name, one in self.held().items()}, 0)

    def solve(self, wanted: Tensor) -> Pairs:
        """Return what the module has to hold; OptionError if nothing gives the wanted tensor."""
        devices = [wanted.device] if wanted.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)  # what completes a matrix to an orthogonal one is drawn
            solve = self._solved if self.hook is None else self._solved_hook
            try:
                pairs, result = solve(wanted)
            # A right inverse is anyone's code: it may be missing, or refuse the tensor.
            except (NotImplementedError, RuntimeError, ValueError, TypeError) as problem:
                raise self._impossible(wanted, None, str(problem)) from problem
        slack = min(64 * torch.finfo(wanted.dtype).eps, 0.02) * float(
            wanted.abs().max() if wanted.numel() else 0
        )
        if result.shape != wanted.shape or not bool(((result - wanted).abs() <= slack).all()):
            raise self._impossible(wanted, result, "")
        return pairs

    def written(self) -> None:
        """Let the module compute it anew where it keeps the result."""
        parametrize._cache.pop((id(self.module), self.name), None)
        if self.hook is not None:
            setattr(self.module, self.name, self._by_hook(self.held(), 0))

    def _solved(self, wanted: Tensor) -> tuple[Pairs, Tensor]:
        """Go back through the steps of a copy, and forward again."""
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
        """Compute it from these tensors; a power iteration changes its vectors in place."""
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

    def _impossible(self, wanted: Tensor, result: Tensor | None, said: str) -> OptionError:
        steps = [self.hook] if self.hook is not None else list(self.steps)
        kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
        should = "nothing that it is computed from makes it the wanted weight of shape "
        should += f"{tuple(wanted.shape)}" + (said and f"; PyTorch said: {' '.join(said.split())}")
        remove = "torch.nn.utils.parametrize.remove_parametrizations"
        for kind, name in _REMOVED.items():
            remove = name if isinstance(self.hook, kind) else remove
        cure = f"take that away with {remove}(layer, {self.name!r}), initialise, and put it back"
        if result is not None and any(hasattr(step, "n_power_iterations") for step in steps):
            should += "; spectral norm makes its largest singular value 1"
            largest = float(torch.linalg.matrix_norm(wanted.flatten(1).double(), 2))
            cure += f", or give a gain that does: that value is {largest:.6g} now"
        return OptionError(message(self.name, f"computed by {kinds}", should, cure))


def computed(module: nn.Module, path: str) -> Computed | None:
    """Return how a module computes the tensor of that name; None if it does not."""
    prefix, _, name = path.rpartition(".")
    owner = module.get_submodule(prefix)
    if parametrize.is_parametrized(owner, name):
        return Computed(owner, name)
    for hook in _hooks(owner):
        if getattr(hook, "name", getattr(hook, "_tensor_name", None)) == name:
            return Computed(owner, name, hook)
    return None
