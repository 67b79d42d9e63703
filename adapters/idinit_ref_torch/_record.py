"""One forward pass, written down: what is known of every tensor, and the nodes so far."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from idinit_ref.errors import GraphError, message
from idinit_ref.graph import Kind

from ._geometry import Span, rows_of, shadow

__all__ = ["Call", "Data", "Dense", "Item", "Made", "Recorder", "Root", "Signal", "State", "Use"]


@dataclass(eq=False)
class Item:
    """A node that is still being written."""

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    weights: tuple[str, ...] = ()


@dataclass(eq=False)
class Dense:
    """One dense or convolution operation, and how its outputs are cut apart."""

    item: Item
    outputs: int
    stride: int = 1  # of the outputs, in the contiguous result
    stacks: int = 1
    is_kernel: bool = False
    gated: bool = False
    cuts: set[tuple[Span, Span]] = field(default_factory=set)
    taken: set[Span] = field(default_factory=set)

    def rows(self, seen: Tensor) -> Span | None:
        """Return which outputs a view of the result holds."""
        return rows_of(seen, self.outputs, self.stride)

    @property
    def boundaries(self) -> frozenset[int]:
        """Where a packed weight falls apart: it is used in parts only, and in several."""
        found: set[int] = set()
        stack = [Span(0, self.outputs)]
        while stack:
            whole = stack.pop()
            parts = {part for parent, part in self.cuts if parent == whole}
            if whole not in self.taken and len(parts) > 1:
                found.update(itertools.chain(*parts))
                stack += parts
        found -= {0, self.outputs}
        if self.is_kernel and not (self.gated and found == {self.outputs // 2}):
            return frozenset()
        return frozenset(found)


class Use(NamedTuple):
    """A parameter as the weight of an operation: its view, a letter for each axis, options."""

    dense: Dense
    seen: Tensor | None
    letters: str
    options: Mapping[str, Any]
    how: str


class Root(NamedTuple):
    """A dense operation whose result a signal holds, moved and cut but not computed with."""

    dense: Dense
    seen: Tensor
    is_head: bool = False  # one head, with an axis of its own


class Signal(NamedTuple):
    """A floating tensor that depends on the data."""

    item: Item
    roots: tuple[Root, ...] = ()
    half: tuple[Dense, Span] | None = None  # an elementwise function of these outputs
    left: tuple[int, ...] = ()  # the padding before it, of the last axis first


class Made(NamedTuple):
    """A tensor made of parameters and constants alone.

    `parts` are views of the parameters where the entries are theirs, moved or cast; `how` is the
    operation after which they are not, and the places alone still are. A lookup may become a
    weight, or the start of a signal.
    """

    names: tuple[str, ...]
    parts: tuple[tuple[str, Tensor], ...] = ()
    how: str = ""
    lookup: bool = False
    by_data: bool = False
    groups: tuple[int, ...] = ()  # of axes of the views that make an axis of the tensor


class Data(NamedTuple):
    """An integer tensor that depends on the data."""


State = Signal | Made | Data | None


@dataclass
class Call:
    """One operation that has run."""

    func: Any
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    is_view: bool
    targets: list[Tensor]  # that it has written to
    given: list[Tensor]  # whose values it depends on

    @property
    def results(self) -> list[Tensor]:
        """The tensors that it returns or has written to."""
        new = [t for t in tree_leaves(self.out) if isinstance(t, Tensor)]
        return new + [t for t in self.targets if not any(t is n for n in new)]


@cache
def _schema(func: Any) -> tuple[str, tuple[tuple[int, str], ...], bool]:
    """Return the name of an operation, the arguments that it writes to, and if it is a view."""
    schema = func._schema
    name = schema.name.split("::")[-1]
    arguments = enumerate(schema.arguments)
    written = tuple(
        (at, arg.name) for at, arg in arguments if arg.alias_info and arg.alias_info.is_write
    )
    if written and name.endswith("_"):
        name = name[:-1]
    aliases = [got.alias_info for got in schema.returns]
    return name, written, bool(aliases) and all(a and not a.is_write for a in aliases)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types here
    """Writes the nodes of what runs under it.

    `note` is what is done after each operation; `parameters` are all parameters by name.
    """

    supports_higher_order_operators = True  # to refuse them by name

    def __init__(
        self, note: Any, parameters: Mapping[str, Tensor], owners: Mapping[nn.Module, str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.items: list[Item] = []
        self.uses: dict[str, list[Use]] = {}
        self.biases: set[str] = set()
        self.tables: set[str] = set()
        self.others: set[str] = set()
        self.used: set[str] = set()
        self.last: Dense | None = None  # the operation just noted, if it is a dense one
        self.shapes = {k: tuple(map(int, t.shape)) for k, t in parameters.items()}
        self.floating = {k for k, t in parameters.items() if is_floating(t)}
        self._note = note
        self._parameters = {id(tensor): name for name, tensor in parameters.items()}
        self._owners = owners
        self._running: list[nn.Module] = []
        self._names = dict.fromkeys(parameters, 1)
        self._states = WeakTensorKeyDictionary()
        self._writes: dict[int, tuple[int, State, StorageWeakRef]] = {}
        self._now = 0
        self._protected = {_memory(tensor) for tensor in parameters.values()}
        for name, tensor in parameters.items():
            self.set(tensor, Made((name,), ((name, shadow(tensor.shape)),)))

    # Modules --------------------------------------------------------------------------------

    def enter(self, module: nn.Module, _: Any) -> None:
        """Note that a module begins to run."""
        self._running.append(module)

    def leave(self, module: nn.Module, *_: Any) -> None:
        """Note that it has run."""
        while self._running and self._running.pop() is not module:
            pass  # one that ended in an exception

    @property
    def module(self) -> nn.Module | None:
        """The innermost module that runs."""
        return self._running[-1] if self._running else None

    @property
    def path(self) -> str:
        """Its name in the model."""
        names = (self._owners.get(module, "") for module in reversed(self._running))
        return next(filter(None, names), "")

    def own(self, name: str) -> bool:
        """Whether a parameter belongs to the innermost module."""
        kept = {} if self.module is None else self.module._parameters
        return any(self._parameters.get(id(tensor)) == name for tensor in kept.values())

    def says(self, what: str) -> str:
        """Return a name for what happens in the module that runs."""
        return f"{self.path}: {what}" if self.path else what

    # States ---------------------------------------------------------------------------------

    def set(self, tensor: Tensor, state: State) -> None:
        """Set what is known of a tensor."""
        self._now += 1
        self._states[tensor] = (self._now, state)

    def finish(self, call: Call, tensor: Tensor, state: State) -> None:
        """Set it for a result; what shares memory that was written is looked at anew."""
        self.set(tensor, state)
        if any(tensor is target for target in call.targets):
            storage = tensor.untyped_storage()
            held = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # torch has no types here
            self._writes[storage._cdata] = (self._now, state, held)

    def state(self, tensor: Tensor) -> State:
        """Return what is known of a tensor, after all writes to its memory."""
        found: tuple[int, State] = self._states.get(tensor, (0, None))  # type: ignore[no-untyped-call]  # torch has no types here
        since, state = found
        at, new, _ = self._writes.get(_memory(tensor), (0, None, None)) if self._writes else _NEVER
        if at > since and new is not None:
            state = self._merge(tensor, state, new)
            self.set(tensor, state)
        if isinstance(state, Signal) and state.item.shape != tuple(tensor.shape):
            state = state._replace(item=self.item("other", "reshape", [state], tensor))
            self.set(tensor, state)
        return state

    def _merge(self, tensor: Tensor, old: State, new: State) -> State:
        """Return the state of a tensor, part of whose memory was written to."""
        signals = [state for state in (old, new) if isinstance(state, Signal)]
        if signals and is_floating(tensor):
            self.take(signals)
            return Signal(self.item("other", "write", signals, tensor))
        return new if old is None or isinstance(new, Data) else old

    def settled(self, tensor: Tensor) -> State:
        """Return the state of a tensor that is computed with; a lookup was an embedding then."""
        state = self.state(tensor)
        if isinstance(state, Made) and state.lookup:
            self.tables.update(state.names)
            if state.by_data:
                return self.start(tensor, self.says("embedding"))
            state = Made(state.names, how="index")
            self.set(tensor, state)
        return state

    def start(self, tensor: Tensor, name: str) -> Signal:
        """Let a signal start at a tensor."""
        signal = Signal(self.new(name, "input", (), tensor))
        self.set(tensor, signal)
        return signal

    def take(self, signals: Sequence[Signal]) -> None:
        """Note that results of dense operations are computed with."""
        for signal in signals:
            for dense, seen, _ in signal.roots:
                rows = dense.rows(seen)
                if rows is not None:
                    dense.taken.add(rows)

    # Nodes ----------------------------------------------------------------------------------

    def new(
        self,
        name: str,
        kind: Kind,
        inputs: Sequence[Signal],
        tensor: Tensor,
        weights: tuple[str, ...] = (),
    ) -> Item:
        """Write a node, under that name or one like it."""
        unique = name
        while unique in self._names:
            self._names[name] = self._names.get(name, 0) + 1
            unique = f"{name} #{self._names[name]}"
        self._names[unique] = 1
        names = tuple(signal.item.name for signal in inputs)
        item = Item(unique, kind, names, tuple(map(int, tensor.shape)), weights)
        self.items.append(item)
        return item

    def item(self, kind: Kind, what: str, inputs: Sequence[Signal], tensor: Tensor) -> Item:
        """Write a node that is named by the module that runs."""
        return self.new(self.says(what), kind, inputs, tensor)

    # Operations -----------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note it."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            name, should = self.says(str(func)), "its operations should be visible as they run"
            cure = "write the branch or the loop in Python"
            raise GraphError(message("operation", name, should, cure))
        apart = _APART.get(func.overloadpacket.__name__.removesuffix("_"))
        if apart is not None:
            with self:
                return _in_place(func, args, kwargs, apart)
        if torch._C._current_autograd_node() is not None:  # a gradient is no layer's result
            return func(*args, **kwargs)
        name, written, is_view = _schema(func)
        found = [args[at] if at < len(args) else kwargs.get(key) for at, key in written]
        targets = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        if any(_memory(target) in self._protected for target in targets):
            raise GraphError(
                message(
                    "model",
                    self.says(str(func)),
                    "its forward pass should not write to its parameters",
                    "take that out of forward, or do it before",
                )
            )
        out = _run(name, func, args, kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "copy" or any(key == "out" for _, key in written):
            given = [t for t in given if not any(t is target for target in targets)]
        call = Call(func, name, args, kwargs, out, is_view, targets, given)
        last = self.last
        if call.results:  # not a question for the device, say
            try:
                self._note(self, call)
            except Exception as problem:
                should = f"what it does should be known, and noting it failed: {problem!r}"
                cure = "report it, with the model"
                name = self.says(str(func))
                raise GraphError(message("operation", name, should, cure)) from problem
        if call.results and self.last is last:
            self.last = None
        return out


_NEVER = (0, None, None)


# Several steps in one: a product or quotient and an add, or many adds.


def _addcmul(base: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    return torch.add(base, torch.mul(a, b), alpha=value)


def _addcdiv(base: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Tensor:
    return torch.add(base, torch.div(a, b), alpha=value)


def _adds(left: Sequence[Tensor], right: Any, *, alpha: Any = 1) -> list[Tensor]:
    others = right if isinstance(right, (list, tuple)) else [right] * len(left)
    return [torch.add(a, b, alpha=alpha) for a, b in zip(left, others, strict=True)]


_APART = {"addcmul": _addcmul, "addcdiv": _addcdiv, "_foreach_add": _adds}


def _in_place(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], apart: Any) -> Any:
    """Run the steps of an operation, and write the result to where it belongs."""
    rest = dict(kwargs)
    out = rest.pop("out", None)
    made = apart(*args, **rest)
    if func.overloadpacket.__name__.endswith("_"):
        out = args[0]
    if out is None:
        return made
    pairs = zip(out, made, strict=True) if isinstance(made, list) else [(out, made)]
    for target, new in pairs:
        target.copy_(new)
    return None if isinstance(made, list) else out


def _run(name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if (
        name == "_grouped_mm"
        and isinstance(args[0], FakeTensor)
        and args[0].dim() == 2 < args[1].dim()
    ):
        return args[0].new_empty(args[0].shape[0], args[1].shape[-1])  # fake ones want bfloat16
    return func(*args, **kwargs)


def is_floating(tensor: Tensor) -> bool:
    """Whether a tensor can be a signal."""
    return tensor.is_floating_point() or tensor.is_complex()
