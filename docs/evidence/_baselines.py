"""Other initialisations, by their authors' code where it is published."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence._nets import Bias, Residual, weighted
from docs.evidence._study import need

__all__ = ["METHODS", "OLD", "Method", "apply"]


class Method(NamedTuple):
    """A method that initialises an existing model."""

    name: str
    cite: str
    apply: Callable[[nn.Module, Tensor], Any]
    scalars: bool = False  # whether the residual blocks need learned scales


METHODS: dict[str, Method] = {}


def apply(name: str, model: nn.Module, example: Tensor) -> None:
    """Initialise a model; random methods use PyTorch's generator, which the caller seeds."""
    METHODS[name].apply(model, example)


def method(name: str, cite: str, *, scalars: bool = False) -> Callable[[Any], Any]:
    """Enter a function into the table of methods."""

    def enter(function: Callable[[nn.Module, Tensor], Any]) -> Any:
        METHODS[name] = Method(name, cite, function, scalars)
        return function

    return enter


def each(model: nn.Module, fill: Callable[[Tensor], Any]) -> None:
    """Fill the weights of all dense and convolution layers; their biases are 0."""
    with torch.no_grad():
        for layer in weighted(model):
            fill(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()


def branches(model: nn.Module) -> list[Residual]:
    """Return a model's residual blocks; these methods need at least one."""
    found = [module for module in model.modules() if isinstance(module, Residual)]
    if not found:
        raise ValueError("a method for residual nets, and the model has no Residual block")
    return found


OLD = "channel-major kernels (not today's default)"  # as in the data that were measured


@method("idinit", '[P]; `idinit_ref_torch.init_` with `taps="channel_major"`, not its default')
def _idinit(model: nn.Module, example: Tensor) -> None:
    irt.init_(model, example, taps="channel_major")


@method("default", "what PyTorch's layers do by themselves")
def _default(model: nn.Module, example: Tensor) -> None:
    for layer in weighted(model):
        layer.reset_parameters()


@method("xavier", "Glorot, Bengio 2010; `torch.nn.init.xavier_uniform_`")
def _xavier(model: nn.Module, example: Tensor) -> None:
    each(model, nn.init.xavier_uniform_)


@method("kaiming", "He et al. 2015; `torch.nn.init.kaiming_normal_`, ReLU")
def _kaiming(model: nn.Module, example: Tensor) -> None:
    each(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


@method("orthogonal", "Saxe et al. 2014; `torch.nn.init.orthogonal_`, gain sqrt(2)")
def _orthogonal(model: nn.Module, example: Tensor) -> None:
    each(model, lambda weight: nn.init.orthogonal_(weight, math.sqrt(2)))


@method("orthogonal_1", "Saxe et al. 2014; `torch.nn.init.orthogonal_`, gain 1")
def _orthogonal_1(model: nn.Module, example: Tensor) -> None:
    each(model, nn.init.orthogonal_)


@method("delta_orthogonal", "Xiao et al. 2018; `jax.nn.initializers.delta_orthogonal`")
def _delta_orthogonal(model: nn.Module, example: Tensor) -> None:
    """Fill kernels with an orthogonal centre; needs no more inputs than outputs."""
    jax = need("jax")
    make = jax.nn.initializers.delta_orthogonal(scale=math.sqrt(2))

    def fill(weight: Tensor) -> None:
        if weight.ndim == 2 or weight.shape[0] < weight.shape[1]:
            nn.init.orthogonal_(weight, math.sqrt(2))
            return
        key = jax.random.key(int(torch.randint(2**31, ())))
        outputs, inputs, *sizes = weight.shape
        kernel = torch.tensor(make(key, (*sizes, inputs, outputs)).__array__())
        weight.copy_(kernel.movedim((-1, -2), (0, 1)))

    each(model, fill)


@method("dirac", "`torch.nn.init.dirac_` for kernels, `eye_` for matrices")
def _dirac(model: nn.Module, example: Tensor) -> None:
    each(model, lambda w: nn.init.eye_(w) if w.ndim == 2 else nn.init.dirac_(w))


@method("bartlett", "Bartlett et al. 2018: the identity in every layer; `eye_`, `dirac_`")
def _bartlett(model: nn.Module, example: Tensor) -> None:
    _dirac(model, example)


@method("zero", "ZerO: Zhao et al. 2022; PyPI `zero-init`, layer by layer")
def _zero(model: nn.Module, example: Tensor) -> None:
    make = need("zero_init").ZerO_Init
    for layer in weighted(model):
        make(layer)


@method("fixup", "Fixup: Zhang, Dauphin, Ma 2019, rules 1 to 3", scalars=True)
def _fixup(model: nn.Module, example: Tensor) -> None:
    """Scale a branch's m weights by L^(-1/(2m-2)); the last of a branch and the head are 0."""
    _kaiming_out(model)
    found = branches(model)
    *_, head = weighted(model)
    with torch.no_grad():
        for block in found:
            *first, last = weighted(block.branch)
            for layer in first:
                layer.weight.mul_(len(found) ** (-1 / (2 * len(first))))
            last.weight.zero_()
        head.weight.zero_()


def _kaiming_out(model: nn.Module) -> None:
    def fill(weight: Tensor) -> None:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")

    each(model, fill)


@method("rezero", "ReZero: Bachlechner et al. 2020: default weights, scales 0", scalars=True)
def _rezero(model: nn.Module, example: Tensor) -> None:
    _default(model, example)
    _unscale(model)


@method("skipinit", "SkipInit: De, Smith 2020: Kaiming weights, scales 0", scalars=True)
def _skipinit(model: nn.Module, example: Tensor) -> None:
    _kaiming(model, example)
    _unscale(model)


def _unscale(model: nn.Module) -> None:
    """Set the scales to 0; freeze Fixup's biases at 0, since these methods have none."""
    for module in model.modules():
        if isinstance(module, Bias):
            nn.init.zeros_(module.value).requires_grad_(False)
    with torch.no_grad():
        for block in branches(model):
            if block.scale is None:
                raise ValueError("a method that needs Residual blocks with scalars=True")
            block.scale.zero_()


@method("zero_gamma", "Goyal et al. 2017: Kaiming weights, the last norm of a branch 0")
def _zero_gamma(model: nn.Module, example: Tensor) -> None:
    _kaiming(model, example)
    for block in branches(model):
        norms = [layer for layer in block.branch if isinstance(layer, nn.BatchNorm2d)]
        if not norms:
            raise ValueError("zero_gamma needs batch normalisation in each branch")
        nn.init.zeros_(norms[-1].weight)


@method("hardt_ma", "Hardt, Ma 2017, Sec. 4: branches of N(0, 1/(k^2 c)^2), near the identity")
def _hardt_ma(model: nn.Module, example: Tensor) -> None:
    """Fill a branch's weights with a standard deviation of 1 over the inputs that each row has."""
    _kaiming(model, example)
    for block in branches(model):
        for layer in weighted(block.branch):
            nn.init.normal_(layer.weight, std=1 / layer.weight[0].numel())
