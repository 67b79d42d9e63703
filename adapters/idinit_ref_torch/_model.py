"""A whole model: its plans, and its weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import nn

from idinit_ref import Plan, Report
from idinit_ref.errors import OptionTypeError, message
from idinit_ref.roles import ModelOptions
from idinit_ref.roles.decide import decide
from idinit_ref.roles.whole import Parted, Weights, initialise

from ._absent import offloaded, write_back
from ._parametrized import norms
from ._sharded import PLAIN, reshard
from ._tensor import check_memory, shape_of, write_, write_parted_
from ._trace import trace

__all__ = ["init_", "plans"]


def plans(
    model: nn.Module, example_inputs: Any, **options: Unpack[ModelOptions]
) -> dict[str, Plan]:
    """Decide every weight of a model from its computation, and write nothing.

    Parameters
    ----------
    model, example_inputs
        As in :func:`trace`.
    **options : idinit_ref.roles.ModelOptions
        As in :func:`init_`.

    Returns
    -------
    dict of str to Plan
        By the names that ``model.named_parameters()`` uses.

    Raises
    ------
    GraphError, ShapeError, LayoutError, OptionError, OptionTypeError
        As in :func:`init_`.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import plans
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> {name: plan.role for name, plan in plans(model, torch.zeros(1, 4)).items()}
    {'0.weight': 'transit', '2.weight': 'transit'}
    """
    return decide(trace(model, example_inputs), **options).plans


def init_(model: nn.Module, example_inputs: Any, **options: Unpack[ModelOptions]) -> Report:
    """Initialise a whole model with IDInit, in place; spec section 6.

    The last weights of each residual branch get IDIZ, all other dense and convolution weights IDI,
    biases 0. Normalisations, embeddings and all other parameters that IDInit does not define keep
    their values. The model is traced, every weight is decided and checked, and only then are
    weights written.

    Parameters
    ----------
    model : torch.nn.Module
        Any eager model whose parameters exist. A model on the meta device is only checked. With
        DTensors (FSDP2, tensor parallelism) each rank fills its own parts, without communication
        and without reading values.
    example_inputs : torch.Tensor, tuple or mapping
        The arguments of the forward pass, as in :func:`trace`.
    **options : idinit_ref.roles.ModelOptions
        gain, eps, wide, form, taps, head, embeddings, norms, biases, overrides, strict: keywords,
        each with a default, as :class:`idinit_ref.roles.ModelOptions` lists them.

    Returns
    -------
    idinit_ref.Report
        The role and value of every parameter, with the reason. Warnings come first.

    Raises
    ------
    GraphError, OptionTypeError
        As in :func:`trace`; with ``strict=True`` also if a matrix in use would be kept.
    OptionError, OptionTypeError, ShapeError, LayoutError
        If an option is unknown or does not fit, an override matches no parameter, or some weights
        are in memory and others on the meta device.
    DTypeError, RoundingError
        If a parameter's dtype cannot hold its entries. On an error the model does not change.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import init_
    >>> print(init_(torch.nn.Linear(4, 2), torch.zeros(1, 4)))
    name    shape   role     why
    weight  (2, 4)  transit  the head
    bias    (2,)    bias     bias
    2 parameters: 1 transit, 0 zero, 1 bias, 0 keep
    """
    loaded = []
    if isinstance(model, nn.Module):
        reshard(model)
        loaded = offloaded(model)
    graph = trace(model, example_inputs)
    with torch.no_grad():
        report = initialise(graph, _Tensors(model), **options)
    write_back(loaded)
    return report


class _Tensors(Weights):
    """A model's parameters; under weight norm the plan of v is the weight's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(dict(model.named_parameters()))
        self.norms = norms(model)

    def read(self, name: str, whole: bool = True) -> Any:
        if type(self.held[name]) not in PLAIN or self.held[name].is_meta:
            return None
        tensor = self.held[name].detach()
        if not whole and tensor.numel() and tensor.ndim:
            tensor = tensor[(0,) * (tensor.ndim - 1)]
        return tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64).numpy()

    def check(self, name: str, what: Plan | float) -> None:
        tensor = self.held[name]
        shape_of(tensor, name)
        super().check(name, what)
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            should = "it should be writable outside torch.inference_mode(), which created it"
            raise OptionTypeError(message(name, "an inference tensor", should, "clone it first"))

    def check_all(self, whats: Mapping[str, Plan | float]) -> None:
        super().check_all(whats)
        check_memory({name: self.held[name] for name in whats})

    def write(self, name: str, what: Plan | float, parted: Parted) -> None:
        tensor = self.held[name]
        if not isinstance(what, Plan):
            tensor.fill_(what)
            return
        found = [] if tensor.is_meta else self.norms.get(name, [])
        to = torch.empty_like(tensor) if found else tensor
        if parted is None:
            write_(to, what)
        else:
            write_parted_(to, what, parted)
        for norm in found:
            norm.write(to)
