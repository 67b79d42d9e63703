"""The graph of a whole model, from one forward pass on fake tensors."""

from __future__ import annotations

import inspect
import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from idinit_ref import Graph
from idinit_ref.errors import GraphError, IDInitError, OptionTypeError, message
from idinit_ref.tracing import redrawn

from ._absent import present
from ._memory import is_floating
from ._parametrized import norms, unnormed
from ._record import Leaving, Recorder
from ._sharded import is_sharded
from ._state import state_kept

__all__ = ["arguments", "check", "forward_error", "record", "results", "trace"]

_R = TypeVar("_R", bound=Recorder)
_T = TypeVar("_T")


def trace(model: nn.Module, example_inputs: Any) -> Graph:
    """Return the graph of a model's computation, from one forward pass in evaluation mode.

    The pass runs on fake tensors, which have shapes but no memory. So models of any size, and on
    the meta device, can be traced. Of a buffer with values, the least and the largest entry are
    used: they decide whether a clamp to them is 0 at 0. Small constants that the pass makes of no
    input and no parameter, such as indices, are computed. If the control flow depends on other
    values, the pass runs once more on the real parameters. No gradients are taken, except those
    that the forward pass itself takes.
    The model does not change; its training flags, buffers, attributes and random states are
    restored.

    Parameters
    ----------
    model : torch.nn.Module
        Any eager model whose parameters exist.
    example_inputs : torch.Tensor, tuple or mapping
        The arguments of the forward pass: one tensor, positional arguments, or keyword arguments.
        Real, meta or fake. Only shapes and dtypes matter, unless the control flow depends on
        values.

    Returns
    -------
    idinit_ref.Graph
        With every parameter of ``model.named_parameters()``, in that order.

    Raises
    ------
    GraphError
        If the model has no parameters, or its forward pass fails or cannot be traced.
    OptionTypeError
        If the model or the inputs have the wrong type.

    Examples
    --------
    >>> import torch
    >>> from idinit_ref_torch import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> graph = trace(model, torch.zeros(2, 4))
    >>> [(node.name, node.kind) for node in graph.nodes]
    [('0.weight', 'parameter'), ('0.bias', 'parameter'), ('input', 'input'), ('0', 'weight'),
     ('1: relu', 'other')]
    """
    check(model)
    args, kwargs = arguments(example_inputs)
    tensors = [*model.parameters(), *model.buffers(), *tensors_in((args, kwargs))]
    is_real = not any(t.is_meta or isinstance(t, FakeTensor) or is_sharded(t) for t in tensors)
    try:
        return _trace(model, args, kwargs, FakeTensorMode(allow_non_fake_inputs=True))
    except IDInitError:
        raise
    except Exception as problem:  # a forward pass may raise any exception
        if not is_real:
            raise forward_error(args, kwargs, problem) from problem
    try:
        return _trace(model, args, kwargs, None)
    except IDInitError:
        raise
    except Exception as problem:
        raise forward_error(args, kwargs, problem) from problem


# Before the pass ----------------------------------------------------------------------------


def check(model: object) -> None:
    if not isinstance(model, nn.Module):
        should = "it should be a torch.nn.Module"
        raise OptionTypeError(message("model", type(model), should, "pass the model itself"))
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            should = "its operations should be visible"
            given = f"submodule {name}, scripted" if name else type(module)
            raise GraphError(message("model", given, should, "pass the eager module"))
    parameters = dict(model.named_parameters())
    if not parameters:
        cure = "pass the whole model, with its layers registered as attributes"
        raise GraphError(message("model", type(model), "it should have parameters", cure))
    lazy = [name for name, tensor in parameters.items() if nn.parameter.is_lazy(tensor)]
    if lazy:
        should = "the shapes of its parameters should be known"
        cure = "run one forward pass first: model(*example_inputs)"
        raise GraphError(message("model", f"lazy {', '.join(lazy)}", should, cure))
    for name, tensor in parameters.items():
        present(tensor, name)


def arguments(given: Any, label: str = "example_inputs") -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Tensor):
        return (given,), {}
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        return tuple(given), {}
    should = "it should be a tensor, a tuple of arguments, or a dict of keyword arguments"
    raise OptionTypeError(message(label, type(given), should, "wrap it in a tuple"))


def forward_error(
    args: Any, kwargs: Any, problem: Exception, label: str = "example_inputs"
) -> GraphError:
    raised = " ".join(str(problem).split()) or type(problem).__name__
    shapes = tree_map_only(Tensor, lambda t: f"{str(t.dtype)[6:]}{tuple(t.shape)}", (args, kwargs))
    given = ", ".join([*map(str, shapes[0]), *(f"{k}={v}" for k, v in shapes[1].items())])
    should = f"the model's forward pass should accept them; it raised: {raised}"
    cure = (
        "pass arguments that model(...) accepts; if the model is on the meta device and "
        "branches on values, move it to a real device first"
    )
    return GraphError(message(label, given, should, cure))


# The pass -----------------------------------------------------------------------------------


def _trace(model: nn.Module, args: Any, kwargs: Any, fake: FakeTensorMode | None) -> Graph:
    """Record the model without gradients, or with them if its forward pass takes some (forces)."""

    def graph(recorder: Recorder, out: Any) -> Graph:
        recorder.is_derived |= torch.is_grad_enabled()
        return recorder.graph(results(out), tensors_in(out))

    try:
        return record(model, args, kwargs, fake, Recorder, graph)
    except RuntimeError as problem:
        if "does not require grad" not in str(problem):
            raise
    return record(model, args, kwargs, fake, Recorder, graph, gradients=True)


@redrawn
def record(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    fake: FakeTensorMode | None,
    start: Callable[..., _R],
    finish: Callable[[_R, Any], _T],
    gradients: bool = False,
    leaves: dict[int, Tensor] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> _T:
    """Run the model once, and return the result of `finish` on the recorder and the output.

    During the run the model holds copies of its parameters, buffers and inputs. An input with a
    gradient is copied twice, so that the model may write to the second copy; `leaves`, if given,
    maps the id of the second copy to the first. `values` replace those of some parameters.
    """
    original, notes = dict(model.named_parameters()), _notes(model)
    buffers = dict(model.named_buffers())
    labels = {id(tensor): f"parameter {name!r}" for name, tensor in original.items()}
    labels |= {id(tensor): f"buffer {name!r}" for name, tensor in buffers.items()}
    labels |= {id(tensor): f"input {name!r}" for name, tensor in named_inputs(model, args, kwargs)}
    instead = _Copies(labels, fake, gradients, leaves)
    for name, value in (values or {}).items():
        instead.put(original[name], nn.Parameter(value))
    owners = {module: name for name, module in model.named_modules()}
    with ExitStack() as stack:
        stack.enter_context(_quiet(gradients))
        args, kwargs = tree_map_only(Tensor, instead, (args, kwargs))
        stack.enter_context(state_kept([model, args, kwargs], instead))
        for own in original.values():
            if fake is None and not _is_odd(own):
                stack.callback(_restore, own, own.data)
        for module in owners:
            module.training = False
            _without_communication(module)
            _unrounded(module)
        if leaves is None:  # a trace: values do not matter, so v may replace the weight
            unnormed(model)
        parameters = {name: instead(tensor) for name, tensor in original.items()}
        recorder = start(parameters, owners, notes)
        recorder.constants.is_fake = fake is not None
        for name, tensor in model.named_buffers():
            recorder.constant(tensor, buffers[name])
        for tensor, held in instead.attributes:
            recorder.constant(tensor, held)
        known = set(map(id, parameters.values()))
        for name, tensor in named_inputs(model, args, kwargs):
            if id(tensor) not in known:
                recorder.input(name, tensor)
        for module in owners:
            module.register_forward_pre_hook(recorder.enter, prepend=True)
            module.register_forward_hook(recorder.leave, always_call=True)
        if fake is not None:
            stack.enter_context(fake)
        if fake is None and leaves is None:  # a trace on real tensors
            stack.enter_context(Leaving(recorder))
        with recorder:
            out = model(*args, **kwargs)
        return finish(recorder, out)


def _restore(tensor: Tensor, data: Tensor) -> None:
    """Give a parameter its own memory again, if the pass has set another (`p.data = ...`)."""
    if tensor.data_ptr() != data.data_ptr():
        tensor.data = data


class _Copies:
    """Copies of the tensors of a model and its inputs, for the time of a run."""

    def __init__(
        self,
        labels: Mapping[int, str],
        fake: FakeTensorMode | None,
        gradients: bool,
        leaves: dict[int, Tensor] | None,
    ) -> None:
        self.labels, self.fake, self.gradients, self.leaves = labels, fake, gradients, leaves
        self._made: dict[int, Tensor] = {}
        self.attributes: list[tuple[Tensor, Tensor]] = []  # copies of integers or bools, and these

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the copy of a tensor."""
        if id(tensor) not in self.labels and self.fake is not None and _is_odd(tensor):
            return tensor  # an attribute's tensor may be unused or constant
        if id(tensor) not in self._made:
            self.put(tensor, self._copy(tensor))
            if id(tensor) not in self.labels and not is_floating(tensor):
                self.attributes.append((self._made[id(tensor)], tensor))
        return self._made[id(tensor)]

    def put(self, tensor: Tensor, new: Tensor) -> None:
        """Set the copy of a tensor."""
        self._made[id(tensor)] = self._made[id(new)] = new

    def _copy(self, tensor: Tensor) -> Tensor:
        is_parameter = isinstance(tensor, nn.Parameter)
        if self.fake is not None:
            new = _faked(self.fake, tensor, self.labels.get(id(tensor), "model"))
            new = nn.Parameter(new, requires_grad=False) if is_parameter else new
        elif self.gradients and is_parameter:  # a new object with its own gradient
            whole = tensor.full_tensor() if is_sharded(tensor) else tensor
            new = nn.Parameter(whole.detach(), requires_grad=False)
        else:
            new = tensor if is_parameter else tensor.detach().clone()
        if self.gradients and tensor.requires_grad:
            new.requires_grad_()
            if self.leaves is not None and not is_parameter:
                leaf, new = new, new.clone()
                self.leaves[id(new)] = leaf
        return new


def _without_communication(module: nn.Module) -> None:
    """Remove the hooks of parallel engines, since every parameter is whole here."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            function = getattr(hook, "func", hook)  # of functools.partial
            if str(getattr(function, "__module__", "")).startswith("torch.distributed"):
                del hooks[key]


def _unrounded(module: nn.Module) -> None:
    """Make a float8 training layer compute with its unrounded weight."""
    if type(module).__module__.startswith("torchao.float8") and isinstance(module, nn.Linear):
        plain = partial(nn.Linear.forward, module)
        module.forward = plain  # type: ignore[method-assign]  # `state_kept` undoes it


def _faked(mode: FakeTensorMode, tensor: Tensor, label: str) -> Tensor:
    """Return a fake tensor of the same shape, strides and dtype, always on the CPU."""
    is_parameter = isinstance(tensor, nn.Parameter)
    if tensor.is_nested or tensor.is_quantized or (is_parameter and _is_odd(tensor)):
        is_nested, is_input = tensor.is_nested, label.startswith("input ")
        given = "a nested tensor" if is_nested else f"{tensor.layout} {tensor.dtype}"
        cure = "initialise the model before it is quantised or converted"
        if is_nested or is_input:
            way = "to_padded_tensor(0.0)" if is_nested else "dequantize()"
            cure = f"pass {'it' if is_input else 'or hold it'} as a plain tensor: tensor.{way}"
        raise GraphError(message(label, given, "it should be a plain dense tensor", cure))
    if _is_odd(tensor):  # sparse: data, like indices
        return mode.from_tensor(tensor.detach() if tensor.is_meta else tensor.detach().cpu())
    with mode:
        return torch.empty_strided(
            tuple(map(int, tensor.shape)), tensor.stride(), dtype=tensor.dtype, device="cpu"
        )


def _is_odd(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested


_LOG = logging.getLogger("torch._subclasses.fake_tensor")
_COMPILES_NOT = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


@contextmanager
def _quiet(gradients: bool) -> Iterator[None]:
    """Disable fused kernels for a run, and restore random states afterwards."""
    fast, fused = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    states = random.getstate(), np.random.get_state()
    was_disabled = _LOG.disabled
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    compiles = getattr(flex, _COMPILES_NOT, None)  # not in every version of PyTorch
    try:
        if compiles is not None:
            setattr(flex, _COMPILES_NOT, True)
        _LOG.disabled = True  # it prints tracebacks of exceptions that become a GraphError
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        with torch.random.fork_rng(), torch.set_grad_enabled(gradients), _disable_current_modes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(fused)
        _LOG.disabled = was_disabled
        if compiles is not None:
            setattr(flex, _COMPILES_NOT, compiles)
        random.setstate(states[0])
        np.random.set_state(states[1])


def named_inputs(model: nn.Module, args: Any, kwargs: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the input tensors with the names of their arguments."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {**{f"input {k}": value for k, value in enumerate(args)}, **kwargs}
    for name, value in bound.items():
        tensors = list(tensors_in(value))
        for k, tensor in enumerate(tensors):
            yield (name if len(tensors) == 1 else f"{name}.{k}"), tensor


def tensors_in(value: Any, seen: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Yield all tensors in a value, including those in containers and other objects."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or callable(value) or isinstance(value, (str, bytes)):
        return
    inner: Any = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple, set, deque)):
        inner = value
    elif hasattr(value, "__dict__"):
        inner = vars(value).values()
    for item in inner:
        yield from tensors_in(item, (*seen, id(value)))


def results(out: Any) -> list[Tensor]:
    """Return a model's main results: all that it returns, except for transformers' outputs.

    Those also hold states and losses; the main results are the logits, or else the first tensor.
    """
    if any(kind.__name__ == "ModelOutput" for kind in type(out).__mro__):
        logits = [value for key, value in out.items() if "logits" in str(key)]
        direct = [value for value in logits or out.values() if isinstance(value, Tensor)]
        if direct:
            return direct if logits else list(filter(is_floating, direct))[:1]
    return list(tensors_in(out))


# Notes on the parameters ------------------------------------------------------------------------


def _notes(model: nn.Module) -> dict[str, str]:
    """Return the reasons to keep parameters, by name."""
    parameters = dict(model.named_parameters())
    names = {id(tensor): name for name, tensor in parameters.items()}
    found = {
        names[id(norm.g)]: f"weight norm's factors of {name}, and set with it"
        for name, shared in norms(model).items()
        for norm in shared
    }
    found |= {
        name: "frozen: requires_grad is False"
        for name, tensor in parameters.items()
        if is_floating(tensor) and not tensor.requires_grad
    }
    return found | _shared(parameters)


def _shared(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Return notes on the parameters that overlap in memory, by name."""
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in parameters.items():
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        size = tensor.element_size()
        start = int(tensor.storage_offset()) * size
        stop = start + (1 + sum((n - 1) * step for n, step in pairs)) * size
        if tensor.numel():
            spans.setdefault(tensor.untyped_storage()._cdata, []).append((start, stop, name))
    found = {}
    for group in spans.values():
        group.sort()
        for (_, stop, one), (start, _, other) in pairwise(group):
            if start < stop:
                found[one] = f"shares memory with {other}"
                found[other] = f"shares memory with {one}"
    return found
