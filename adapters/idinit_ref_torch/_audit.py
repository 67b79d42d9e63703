"""The audit of a model: one forward and one backward pass, both measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from array_api_compat import torch as xp
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_leaves, tree_map_only

from idinit_ref.diagnostics.audit import Audit
from idinit_ref.diagnostics.facts import look, signs
from idinit_ref.diagnostics.recording import Recording
from idinit_ref.diagnostics.verdict import check_outputs
from idinit_ref.diagnostics.waking import Look, stepped, steps_of, watched
from idinit_ref.errors import IDInitError, OptionError, message
from idinit_ref.tracing import Signal

from ._call import Call
from ._memory import shape_of
from ._record import Recorder
from ._trace import arguments, check, forward_error, record, results, tensors_in

__all__ = ["audit"]


def audit(model: nn.Module, inputs: Any, *, steps: int = 0) -> Audit:
    """Run a model once forward and once backward, and say whether it works.

    Call it after `init_`. It measures whether the output depends on the input, the size of every
    residual branch beside its skip, and the second moment from the first weight to the last. It
    finds parameters without gradient and what stops the gradient, units that are copies, and values
    that are not finite.

    Both passes run in evaluation mode. The backward pass starts from a fixed gradient, not from a
    loss: 1 or -1 for every entry of the outputs, drawn by Philox. The model does not change: its
    parameters, their ``grad``, buffers, training flags, hooks, attributes and random states are
    restored.

    Sharded parameters (DTensors of FSDP2 or tensor parallelism) are gathered for the pass. Every
    rank must call `audit` and needs memory for all parameters. Each rank measures its own samples,
    and none takes steps of training: a failure then stays one, and a limit says so.

    Parameters
    ----------
    model : torch.nn.Module
        Any eager model that `trace` accepts, except one on the meta device: it needs values.
    inputs : torch.Tensor, tuple or mapping
        As for `trace`, but real samples: at least two that differ, so that a constant output is
        noticed. For integers alone (tokens) no gradient is taken.
    steps : int, optional
        The most small steps of training, either way and on copies of the parameters, that follow
        where something fails, or where a weight has no gradient and what is behind it does not tell
        why. What ends with them, as 3 can show, is a remark, not a failure. With 0 there is exactly
        one forward and one backward pass, and a limit names what steps might wake.

    Returns
    -------
    idinit_ref.diagnostics.Audit
        ``print(audit)`` prints the findings. ``audit.healthy`` is true, or the tuple of what
        failed.

    Raises
    ------
    GraphError
        If the model cannot be run or traced, has no parameters, or returns no floating-point
        tensor.
    OptionError, OptionTypeError
        If the inputs are all zeros, hold a NaN, or are on the meta device, or `steps` is no integer
        >= 0.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import audit, init_
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.tensor([[1.0, 2.0, 0.5, 1.0], [3.0, 1.0, 2.0, 0.0]])
    >>> _ = init_(model, x)
    >>> result = audit(model, x)
    >>> bool(result.healthy), round(result.second_moments["0"], 4)
    (True, 2.5313)
    """
    steps = steps_of(steps)
    check(model)
    args, kwargs = arguments(inputs, "inputs")
    given = tree_leaves((args, kwargs))
    tensors = [*model.parameters(), *(one for one in given if isinstance(one, Tensor))]
    if any(tensor.is_meta for tensor in tensors):
        cure = "give it memory and values first: model.to_empty(device=...), then init_"
        raise OptionError(message("model", "on the meta device", "it should have values", cure))
    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    why_not = "since the ranks of a process group may not agree to run it" if many else ""

    def run(values: Mapping[str, Any]) -> Look:
        leaves: dict[int, Tensor] = {}
        start = partial(_Measuring, leaves)
        return record(model, args, kwargs, None, start, _measure, True, leaves, values)

    try:
        with torch.inference_mode(False):
            args, kwargs = tree_map_only(Tensor, _differentiable, (args, kwargs))
            return watched(run, partial(stepped, xp), why_not, lambda x: _host(x.float()), steps)
    except IDInitError:
        raise
    except Exception as problem:  # a forward or backward pass may raise any exception
        raise forward_error(args, kwargs, problem, "inputs") from problem


def _differentiable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


class _Measuring(Recorder):  # type: ignore[no-untyped-call]  # TorchDispatchMode is untyped
    """Records a run and measures the results of its operations."""

    def __init__(self, leaves: Mapping[int, Tensor], parameters: Any, *about: Any) -> None:
        super().__init__(parameters, *about)
        self.leaves, self.parameters = leaves, parameters
        self.inputs: dict[str, Tensor] = {}

    def input(self, name: str, tensor: Tensor) -> None:
        """Record an input."""
        super().input(name, tensor)
        self.inputs[name] = tensor

    @cached_property
    def recording(self) -> Recording:
        """The measurements of this run, which start once the inputs are known."""
        return Recording(partial(look, xp), _host, self.inputs.values())

    def _note(self, call: Call, targets: Sequence[Tensor]) -> None:
        drawn, record = len(self.drawing.nodes), self.recording.record
        read = [one for one in tree_leaves((call.args, call.kwargs)) if id(one) in call.known]
        given = [(call.known[id(one)], one) for one in read]
        super()._note(call, targets)
        new = self.drawing.nodes[drawn:]
        weights = {node.name for node in new if node.kind == "weight"}
        if torch.is_grad_enabled():  # a function's own result has a gradient, one of no_grad none
            nodes = {v.node for v, x in given if isinstance(v, Signal) and not x.requires_grad}
            record.stopped |= nodes & record.own
        else:
            record.own |= {node.name for node in new}
        values = [(self.memory.value(tensor), tensor) for tensor in call.results]
        self.recording.link(given, values, new)
        for value, tensor in values:
            if not isinstance(value, Signal) or tensor.is_meta:  # forward AD asks for its shapes
                continue
            if tensor.is_floating_point():
                axis = 1 if call.name == "aten::convolution" else tensor.dim() - 1
                units = (axis, axis + 1) if value.node in weights else None
                self.recording.see(value.node, _plain(tensor), units, call.name == "aten::add")


def _measure(recorder: _Measuring, out: Any) -> Look:
    """Run the backward pass of a recorded run, and return the measurements of both."""
    recording, facts = recorder.recording, recorder.recording.record
    ends = [tensor for tensor in results(out) if tensor.is_floating_point() and tensor.numel()]
    check_outputs(len(ends), type(out))
    recording.drew(recorder.drawing, recorder.graph(ends, tensors_in(out)))
    values = {name: one for name, one in recorder.parameters.items() if one.requires_grad}
    leaves = {name: recorder.leaves.get(id(one)) for name, one in recorder.inputs.items()}
    starts = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    wanted, live = [*values.values(), *starts.values()], [t for t in ends if t.requires_grad]
    if not live:
        facts.limits.append("no output has a gradient: forward may run under torch.no_grad")
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if live and wanted:
        given = signs(shape_of(tensor) for tensor in live)
        cotangents = [torch.from_numpy(g).to(t) for g, t in zip(given, live, strict=True)]
        found = backward(live, wanted, cotangents)
    pairs = zip(wanted, found, strict=True)
    gradients = [torch.zeros_like(x) if one is None else _plain(one) for x, one in pairs]
    with torch.no_grad():
        inputs = {name: _plain(tensor) for name, tensor in recorder.inputs.items()}
        looks, by_value = recording.end(inputs, ends, values, [*starts], gradients)
        plain = {name: one.detach() for name, one in values.items()}
        return Look(recording.filled(looks), plain, by_value)


def backward(
    ends: Sequence[Tensor], wanted: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return the gradients of the wanted leaves; None for those that no gradient reaches.

    A reentrant checkpoint runs a backward pass of its own, which only fills ``grad``.
    """
    if not _is_reentrant(ends):
        return torch.autograd.grad(ends, wanted, cotangents, allow_unused=True)
    before = [leaf.grad for leaf in wanted]
    for leaf in wanted:
        leaf.grad = None
    torch.autograd.backward(ends, cotangents)
    found = [leaf.grad for leaf in wanted]
    for leaf, old in zip(wanted, before, strict=True):
        leaf.grad = old
    return found


def _is_reentrant(ends: Sequence[Tensor]) -> bool:
    """Whether a reentrant checkpoint is part of a computation."""
    stack: list[Any] = [end.grad_fn for end in ends]
    seen = set(stack)
    while stack:
        step = stack.pop()
        if "CheckpointFunction" in type(step).__name__:
            return True
        new = {one for one, _ in getattr(step, "next_functions", ())} - seen - {None}
        seen |= new
        stack += new
    return False


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


def _host(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
