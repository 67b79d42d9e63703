"""The recorder of one forward pass: it draws every operation as it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from idinit_ref import Graph
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Data, Value, is_constant

from ._call import Call
from ._constants import Constants, is_small
from ._drawing import ModuleDrawing
from ._fresh import FRESH
from ._memory import Memory, is_floating, is_wrapper, shape_of, storage_of, tensors_of
from ._sharded import is_sharded
from ._table import ATTENTIONS, draw_call

__all__ = ["Leaving", "Recorder"]

_EXITS = {Tensor.numpy: "numpy", Tensor.__array__: "numpy", Tensor.tolist: "tolist"}

_PRODUCTS = {
    f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear")
}


class _Schema(NamedTuple):
    """An operation's full name, the arguments that it writes to, and its kinds."""

    name: str
    written: tuple[tuple[int, str], ...]
    replaces: bool  # the old values of the written arguments do not matter
    turns: bool  # it only changes a tensor's axes, in place
    pointwise: bool
    is_random: bool  # or its result is not set


@cache
def _schema(func: Any) -> _Schema:
    schema = func._schema
    name, arguments = schema.name, enumerate(schema.arguments)
    written = tuple(
        (at, arg.name) for at, arg in arguments if arg.alias_info and arg.alias_info.is_write
    )
    if written and name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    replaces = name == "aten::copy" or name in FRESH or any(key == "out" for _, key in written)
    tags = func.tags
    is_random = torch.Tag.nondeterministic_seeded in tags or "empty" in name
    turns, pointwise = torch.Tag.inplace_view in tags, torch.Tag.pointwise in tags
    return _Schema(name, written, replaces, turns, pointwise, is_random)


class Leaving(TorchFunctionMode):
    """Tells a recorder of the tensors whose numbers go to NumPy or a list."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run a function."""
        if func in _EXITS:
            self.recorder.drawing.leave(
                self.recorder.value(args[0]), f"torch.Tensor.{_EXITS[func]}"
            )
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # TorchDispatchMode is untyped
    """Draws the operations that run under it.

    `parameters` holds all parameters by name, `owners` the names of all modules, and `notes` the
    reasons to keep parameters.
    """

    supports_higher_order_operators = True  # so that errors name them

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        owners: Mapping[nn.Module, str],
        notes: Mapping[str, str],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # TorchDispatchMode is untyped
        self.drawing = ModuleDrawing(parameters, owners, notes)
        self.memory = Memory(self.drawing)
        self.constants = Constants()
        self.is_derived = False  # whether forward takes derivatives, which hold what it computes
        self._protected = {storage_of(tensor) for tensor in parameters.values()}
        for name, tensor in parameters.items():
            self.memory.set(tensor, self.drawing.parameter(name))

    def input(self, name: str, tensor: Tensor) -> None:
        """Record an input of the model. A sparse input is data, like indices."""
        floating = is_floating(tensor) and tensor.layout is torch.strided
        self.memory.set(tensor, self.drawing.input(name, shape_of(tensor), floating))

    def constant(self, tensor: Tensor, held: Tensor) -> None:
        """Record a tensor that the model holds, as a buffer, with its numbers if it has any."""
        is_odd = isinstance(held, FakeTensor) or is_sharded(held) or is_wrapper(held)
        if is_odd or held.is_meta or held.layout is not torch.strided or not held.numel():
            return
        if held.is_floating_point():
            own = held.detach()
            own = own if is_small(held) else torch.stack(own.aminmax())
            numbers = own.double().cpu().numpy()
            self.memory.set(tensor, self.drawing.constant(shape_of(tensor), numbers=numbers))
        elif not held.is_complex():
            self.constants.keep(tensor, held)

    def graph(self, results: Iterable[Tensor], also: Iterable[Tensor] = ()) -> Graph:
        """Return the graph, given the model's main results and all others that it returns."""
        if self.is_derived:
            self.drawing.derive()
        outputs, more = ([self.memory.value(one) for one in given] for given in (results, also))
        return self.drawing.graph(outputs, more)

    def enter(self, module: nn.Module, _: Any) -> None:
        """Record the start of a module."""
        self.is_derived |= torch._C._functorch.maybe_current_level() is not None
        self.drawing.running.append(module)

    def leave(self, module: nn.Module, *_: Any) -> None:
        """Record the end of a module."""
        running = self.drawing.running
        while running and running.pop() is not module:
            pass  # an inner module that ended with an exception

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and draw it."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher(func, args, kwargs)
        if torch._C._current_autograd_node() is not None:  # a backward pass is not drawn
            out = func(*args, **kwargs)
            self.constants.set(tensors_of(out), None)
            return out
        schema = _schema(func)
        targets = []
        for at, key in schema.written:
            targets += tensors_of(args[at] if at < len(args) else kwargs.get(key))
        if any(storage_of(target) in self._protected for target in targets):
            raise self._write_error(func)
        args = self._unmasked(schema.name, args)
        given = [t for t in tensors_of((args, kwargs)) if not (schema.replaces and _in(t, targets))]
        values = [self.value(tensor) for tensor in given]
        is_known = all(map(is_constant, values)) and not schema.is_random
        real = self.constants.all_of([*given, *targets]) if is_known else None
        if schema.name == "aten::_local_scalar_dense" and real is not None:
            return real[id(given[0])].item()
        if schema.name == "aten::_local_scalar_dense":
            self.drawing.leave(values[0], "torch.Tensor.item")
        out, numbers = self.constants.run(_run, schema.name, (func, args, kwargs), real)
        results = tensors_of(out)
        rest = [target for target in targets if not _in(target, results)]
        results += rest
        if numbers is not None and real is not None:
            numbers += [real[id(target)] for target in rest]
        if numbers is None:
            self.constants.lose(targets)
        self.constants.set(results, numbers)
        is_plain = all(is_constant(value) and value.extent is None for value in values)
        is_plain |= numbers is not None
        if not results or (not targets and is_plain and schema.name not in FRESH):
            return out
        known = dict(zip(map(id, given), values, strict=True))
        call = (schema.name, func._overloadname, args, kwargs, known, results, schema.pointwise)
        self._note(Call(self.drawing, *call, self.memory), [] if schema.turns else targets)
        return out

    def value(self, tensor: Tensor) -> Value:
        """Return the value of a tensor; of a constant, with its numbers if they are known."""
        value = self.memory.value(tensor)
        numbers = self.constants.numbers(tensor) if is_constant(value) else None
        if numbers is not None:
            value = self.drawing.constant(shape_of(tensor), numbers=numbers)
            self.memory.set(tensor, value)
        return value

    def _unmasked(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        """Return the arguments of an indexing, with known masks as the indices that they select."""
        if name not in ("aten::index", "aten::index_put"):
            return args
        found: list[Any] = []
        for place in args[1]:
            is_mask = isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8)
            is_mask = is_mask and is_constant(self.memory.value(place))
            found += (is_mask and self.constants.selected(place)) or [place]
        return [args[0], found, *args[2:]]

    def _note(self, call: Call, targets: Sequence[Tensor]) -> None:
        """Draw a call, and set the values of the tensors that it returned or wrote to."""
        try:
            found = draw_call(call)
        except (IndexError, KeyError, TypeError, ValueError, AssertionError) as problem:
            raised = f"{type(problem).__name__}: {problem}"
            given = self.drawing.says(call.name)
            should = f"its arguments should be of a known form, but reading them raised {raised}"
            cure = (
                "use another form of it in forward, or initialise the layers one by one "
                "with idi_layer_ and idiz_layer_"
            )
            raise GraphError(message("operation", given, should, cure)) from problem
        if not all(map(is_floating, call.results)):
            self.drawing.hide(call.signals)
        for tensor, value in zip(call.results, found, strict=True):
            if tensor.layout is not torch.strided and not call.signals:
                value = Data(shape_of(tensor))
            if _in(tensor, targets):
                self.memory.write(tensor, value)
                continue
            self.memory.set(tensor, value)
            if is_constant(value) and call.name in FRESH:
                self.constants.fill(tensor, value.value)

    def _write_error(self, func: Any) -> GraphError:
        should = "its forward pass should not write to its parameters"
        cure = "move that write out of forward"
        return GraphError(message("model", self.drawing.says(str(func)), should, cure))

    def _higher(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation that takes functions, and draw it if it is a known attention."""
        name = str(func)
        if name not in ATTENTIONS:
            should = "its inner operations should be visible"
            cure = "write the branch or the loop in Python"
            raise GraphError(message("operation", self.drawing.says(name), should, cure))
        given = tensors_of((args, kwargs))
        values = [self.value(tensor) for tensor in given]
        out = func(*args, **kwargs)
        self.constants.set(tensors_of(out), None)
        known = dict(zip(map(id, given), values, strict=True))
        results = tensors_of(out)
        call = Call(self.drawing, name, "", args, kwargs, known, results, False, self.memory)
        self._note(call, [])
        return out


def _in(tensor: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(tensor is one for one in tensors)


def _run(name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation, also where its fake version is stricter or laxer than the real one."""
    is_grouped = name == "aten::_grouped_mm" and isinstance(args[0], FakeTensor)
    if is_grouped and args[0].dim() == 2 < args[1].dim():  # the fake one requires bfloat16
        return args[0].new_empty(args[0].shape[0], args[1].shape[-1])
    if name in _PRODUCTS:
        _check_kinds(func, args, kwargs)
    return func(*args, **kwargs)


def _check_kinds(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise PyTorch's own error on a product of integers and floats, which fake ones allow."""
    given = tensors_of((args, kwargs))
    if len({is_floating(tensor) for tensor in given}) > 1 and isinstance(given[0], FakeTensor):
        with _disable_current_modes():
            small = tree_map_only(
                Tensor, lambda t: torch.zeros((1,) * t.dim(), dtype=t.dtype), (args, kwargs)
            )
            func(*small[0], **small[1])
