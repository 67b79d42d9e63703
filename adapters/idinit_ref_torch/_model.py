"""A whole model, in place: traced, decided, checked, and only then written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from array_api_compat import torch as namespace
from torch import Tensor, nn

from idinit_ref import Graph, Plan, Report
from idinit_ref.core.dtypes import format_of
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import split_axes
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import IDInitError, OptionTypeError, message
from idinit_ref.roles.decide import Head, Override, decide
from idinit_ref.roles.report import Entry

from ._sharded import apart, is_sharded, parts
from ._tensor import shape_of, together, write_
from ._trace import trace

__all__ = ["init_", "plans"]


def plans(
    model: nn.Module,
    example_inputs: Any,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> dict[str, Plan]:
    """Decide every weight of a model from its computation, and write nothing.

    Parameters
    ----------
    model, example_inputs
        As in :func:`trace`.
    gain, eps, wide, form, taps, head, embeddings, overrides
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
    report = decide(
        trace(model, example_inputs),
        gain=gain,
        eps=eps,
        wide=wide,
        form=form,
        taps=taps,
        head=head,
        embeddings=embeddings,
        overrides=overrides,
    )
    return report.plans


def init_(
    model: nn.Module,
    example_inputs: Any,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps | None = "outward",
    head: Head = "transit",
    embeddings: Literal["keep", "transit"] = "keep",
    overrides: Mapping[str, Override] | None = None,
) -> Report:
    """Initialise a whole model with IDInit, in place; spec section 6.

    The last weights of each residual branch get IDIZ, all other dense and convolution weights IDI,
    biases 0. Normalisations, embeddings and whatever IDInit does not define stay as they are. The
    model is traced, everything is decided and checked, and only then it is written.

    Parameters
    ----------
    model : torch.nn.Module
        Any eager model with its parameters made; on the meta device it is checked and left alone.
        Of DTensors (FSDP2, tensor parallelism) each rank fills its parts, without communication.
    example_inputs : torch.Tensor, tuple or mapping
        What its forward takes, as in :func:`trace`.
    gain : float
        tau of the weights in role "transit".
    eps : float
        Of the weights in role "zero".
    wide : {"truncate", "fold_rms", "fold_mean"}
        What is done where a transit weight has more columns than rows.
    form : {"pair", "shifted"}
        How the entries of a wide zero weight are spread, as in :func:`idiz_`.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (section 3). The first three start at the layer's identity
        tap, and in each phase of a transposed convolution.
    head : {"transit", "zero", "keep"}
        What becomes of the weights whose result the model returns, unless they end a branch.
    embeddings : {"keep", "transit"}
        What becomes of embedding tables, and of heads that are tied to them.
    overrides : mapping of str to role or options, optional
        Patterns of names (``"*.gate.weight"``), each with a role ("transit", "zero", "bias" for
        zeros, "keep") or with options of `idinit_ref.plan`. A later one wins.

    Returns
    -------
    idinit_ref.Report
        What became of every parameter, and why.

    Raises
    ------
    GraphError, OptionTypeError
        As in :func:`trace`.
    OptionError, ShapeError, LayoutError
        If an option does not fit, an override fits no parameter, or only some of the weights
        have memory and others are on the meta device.
    DTypeError, RoundingError
        If a parameter's dtype cannot hold its entries. The model is untouched after every error.

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
    if isinstance(model, nn.Module):
        apart(model)
    graph = trace(model, example_inputs)
    report = decide(
        graph,
        gain=gain,
        eps=eps,
        wide=wide,
        form=form,
        taps=taps,
        head=head,
        embeddings=embeddings,
        overrides=overrides,
    )
    parameters = dict(model.named_parameters())
    written = [entry for entry in report.entries if entry.role != "keep"]
    for entry in written:
        try:
            _check(parameters[entry.name], entry.name, entry.plan)
        except IDInitError as problem:
            raise type(problem)(f"of parameter {entry.name!r}: {problem}") from problem
    together({entry.name: parameters[entry.name] for entry in written})
    with torch.no_grad():
        for entry in written:
            if entry.plan is None:
                parameters[entry.name].zero_()
            else:
                _write(parameters[entry.name], entry.plan, _parted(graph, entry.name))
    return Report(tuple(_stored(graph, entry, parameters[entry.name]) for entry in report.entries))


def _parted(graph: Graph, name: str) -> tuple[tuple[int, ...], str] | None:
    """Return the shape of a weight, several of whose axes count as one, and a letter for each."""
    return graph.by_name[name].options.get("parted")


def _stored(graph: Graph, entry: Entry, tensor: Tensor) -> Entry:
    parted = _parted(graph, entry.name)
    if parted is None:
        return entry
    shape, letters = parted
    return entry.stored(tuple(map(int, tensor.shape)), letters, shape)


def _write(tensor: Tensor, plan: Plan, parted: tuple[tuple[int, ...], str] | None) -> None:
    """Write a weight; one whose axes are joined is made beside it."""
    if parted is None or tensor.is_meta:
        write_(tensor, plan)
        return
    whole = torch.empty(plan.shape, dtype=tensor.dtype, device=tensor.device)
    write_(whole, plan)
    new = split_axes(namespace, whole, *parted).reshape(tuple(tensor.shape))
    if is_sharded(tensor):
        for part, index in parts(tensor):
            part.copy_(new[index])
    else:
        tensor.copy_(new)


def _check(tensor: Tensor, name: str, plan: Plan | None) -> None:
    shape_of(tensor, name)
    if plan is None:
        format_of(tensor.dtype)
    else:
        plan.check(tensor.dtype)
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        should = "it should be writable outside torch.inference_mode(), where it was made"
        raise OptionTypeError(message(name, "an inference tensor", should, "clone it first"))
