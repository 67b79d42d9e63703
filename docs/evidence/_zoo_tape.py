"""A forward pass on a tape: run again with other weights, and read as a flow of data.

The measurements of the zoo stand on this alone. It shares nothing with the tracers or with the
rule of roles: an operation is what PyTorch dispatched, and what a branch does is found by running.
Integers and booleans keep the values that were recorded, so routes and masks stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ADDS = {"aten::add.Tensor", "aten::add_.Tensor"}
DIFFERENCES = {"aten::sub.Tensor", "aten::sub_.Tensor"}
SUMS = {"aten::sum.dim_IntList", "aten::mean.dim"}
CONTRACTIONS = {  # the places of the operands that may be weights
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::convolution": (0, 1),
    "aten::_grouped_mm": (0, 1),
    "aten::linear": (0, 1),
    "aten::mv": (0, 1),
    "aten::dot": (0, 1),
    "aten::mkldnn_rnn_layer": (0, 1),  # its kernel; what it keeps of earlier steps came over it
}


@dataclass(frozen=True)
class Slot:
    """A tensor of the tape, by number."""

    number: int


@dataclass
class Step:
    """One operation: what it was given, and the numbers of what it gave."""

    function: Any
    args: Any
    kwargs: Any
    outs: list[int]
    name: str
    where: str
    frozen: dict[int, Tensor] = field(default_factory=dict)  # integers, as recorded
    nodes: list[int] = field(default_factory=list)  # of its results
    wrote: list[int] = field(default_factory=list)  # of what else has changed with them


@dataclass
class Node:
    """A tensor at one moment, and what it is computed from."""

    inputs: tuple[int, ...]
    name: str
    shape: tuple[int, ...]
    where: str = ""
    step: int = -1
    leaf: str = ""  # "input", "constant", or the name of a parameter or buffer
    floating: bool = True
    weights: frozenset[str] = frozenset()  # of a weight operation
    data: tuple[int, ...] = ()  # of a weight operation: where its data come from


class Tape(TorchDispatchMode):
    """Records what runs under it."""

    def __init__(self, model: nn.Module, given: Any) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.nodes: list[Node] = []
        self.above: list[int] = []  # ancestors of each node and itself, a bit each
        self.made: list[bool] = []  # whether a node comes from parameters and constants alone
        self.parameters: dict[str, int] = {}  # slots
        self.buffers: dict[str, int] = {}
        self.leaves: dict[int, Tensor] = {}
        self._written: set[int] = set()  # leaves that the pass writes into
        self._slots: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._node: list[int] = []  # of each slot the node that it is now
        self._storages: dict[int, list[int]] = {}
        self._modules: list[str] = []
        self._spots: dict[Any, int] = {}
        for kind, tensors in (
            (self.parameters, model.named_parameters()),
            (self.buffers, model.named_buffers()),
        ):
            for name, tensor in tensors:
                kind[name] = self._leaf(tensor, name)
        for tensor in _tensors(given):
            self._leaf(tensor, "input")
        self._names = {module: name for name, module in model.named_modules()}

    def _new(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        number = len(self._alive) - 1
        self._slots[id(tensor)] = number
        self._node.append(-1)
        self._storages.setdefault(_storage(tensor), []).append(number)
        return number

    def _leaf(self, tensor: Tensor, name: str) -> int:
        number = self._new(tensor)
        self.leaves[number] = tensor
        node = Node((), "leaf", tuple(tensor.shape), leaf=name, floating=_floats(tensor))
        self._add(number, node, made=name != "input")
        if name not in ("input", "constant"):
            self._spots.setdefault(_spot(tensor), number)
        return number

    def _add(self, slot: int, node: Node, made: bool) -> int:
        number = len(self.nodes)
        self.nodes.append(node)
        bits = 1 << number
        for each in node.inputs:
            bits |= self.above[each]
        self.above.append(bits)
        self.made.append(made)
        self._node[slot] = number
        return number

    def _slot(self, tensor: Tensor) -> int:
        found = self._slots.get(id(tensor))
        if found is None:
            found = self._spots.get(_spot(tensor))  # `parameter.data` is another object
        return self._leaf(tensor, "constant") if found is None else found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_map_only(Tensor, lambda t: Slot(self._slot(t)), (args, kwargs))
        changed = _changed(func, given) if func._schema.is_mutable else []
        self._keep(changed)
        out = func(*args, **kwargs)
        where = self._modules[-1] if self._modules else ""
        step = Step(func, *given, [], func.name(), where)
        number = len(self.steps)
        self.steps.append(step)
        slots = [each.number for each in _slots(given)]
        inputs = tuple(dict.fromkeys(self._node[slot] for slot in slots))
        weights, data = self._weights(step)
        made = all(self.made[each] for each in inputs) and not weights
        results = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        for tensor in results:
            old = self._slots.get(id(tensor))
            slot = self._new(tensor) if old is None else old
            step.outs.append(slot)
            if not _floats(tensor) or _is_random(step.name):
                step.frozen[slot] = tensor.clone()
            node = Node(inputs, step.name, tuple(tensor.shape), where, number, "", _floats(tensor))
            node.weights, node.data = weights, data
            step.nodes.append(self._add(slot, node, made))
        for slot in changed:
            storage = _storage(self._alive[slot])
            newest = self._node[slot] if slot in step.outs else None
            for other in self._storages.get(storage, ()):
                if other in step.outs:
                    continue
                before = self._node[other]
                after = (before, *(inputs if newest is None else (newest,)))
                node = Node(after, "written", self.nodes[before].shape, where, number)
                step.wrote.append(self._add(other, node, made and self.made[before]))
        return out

    def _keep(self, changed: list[int]) -> None:
        """Remember leaves as they were before they are written into."""
        for slot in changed:
            for other in self._storages[_storage(self._alive[slot])]:
                if other in self.leaves and other not in self._written:
                    self.leaves[other] = self.leaves[other].clone()
                    self._written.add(other)

    def _weights(self, step: Step) -> tuple[frozenset[str], tuple[int, ...]]:
        """Return the parameters of a weight operation, and the nodes of its data."""
        places = CONTRACTIONS.get(step.name.partition(".")[0])
        if places is None:
            return frozenset(), ()
        first, second = (self._node[step.args[k].number] for k in places)
        if self.made[first] and self.made[second]:
            if self._of(first) and self._of(second) and "bmm" not in step.name:
                return self._of(second), (first,)
            return frozenset(), ()
        for weight, signal in ((second, first), (first, second)):
            if self.made[weight] and self._of(weight):
                return self._of(weight), (signal,)
        return frozenset(), ()

    def _of(self, node: int) -> frozenset[str]:
        """Return the parameters that a node comes from."""
        return frozenset(
            self.nodes[k].leaf
            for k in bits(self.above[node])
            if self.nodes[k].leaf in self.parameters
        )

    # Where it is: the innermost module

    def __enter__(self) -> Tape:
        self._hooks = [
            hooks.register_module_forward_pre_hook(self._into),
            hooks.register_module_forward_hook(self._out_of, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)
        for hook in self._hooks:
            hook.remove()

    def _into(self, module: nn.Module, args: Any) -> None:
        self._modules.append(self._names.get(module, type(module).__name__))

    def _out_of(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._modules:
            self._modules.pop()

    # Running again

    def run(
        self,
        values: Mapping[int, Tensor],
        *,
        until: int | None = None,
        zeroed: Collection[int] = (),
        needed: int | None = None,
        watch: Callable[[int, list[Any]], None] | None = None,
        double: bool = False,
    ) -> None:
        """Run the tape with other values of leaves.

        Parameters
        ----------
        values : mapping of int to Tensor
            By slot; the other leaves are as recorded.
        until : int, optional
            The step before which to stop; `watch` is still told of it.
        zeroed : collection of int
            Steps that give zeros instead.
        needed : int, optional
            The bits of the nodes that are wanted: steps that feed none of them are left out.
        watch : callable, optional
            Told of every step's number and its arguments, before it runs.
        double : bool
            Whether float64 stands for float32, in which products of small numbers are 0.
        """
        held: dict[int, Any] = {}
        wide = _doubled if double else _same
        leaves = {slot: wide(values.get(slot, tensor)) for slot, tensor in self.leaves.items()}

        def value(slot: Any) -> Any:
            if not isinstance(slot, Slot):
                return torch.float64 if double and slot is torch.float32 else slot
            number = slot.number
            if number not in held:
                leaf = leaves[number]
                held[number] = leaf.clone() if number in self._written else leaf
            return held[number]

        for number, step in enumerate(self.steps):
            feeds = needed is None or any(needed >> k & 1 for k in (*step.nodes, *step.wrote))
            if not feeds and number != until:
                continue
            args, kwargs = _filled(step.args, value), _filled(step.kwargs, value)
            if watch is not None:
                watch(number, list(args))
            if number == until:
                return
            function = step.function
            if step.name == "aten::detach":
                function = torch.ops.aten.alias.default
            if number in zeroed:
                outs = [torch.zeros_like(self._alive[slot]) for slot in step.outs]
            else:
                out = function(*args, **kwargs)
                outs = [out] if isinstance(out, Tensor) else _tensors(out)
            for slot, tensor in zip(
                step.outs, outs, strict=False
            ):  # a cell keeps more for gradients
                held[slot] = wide(step.frozen.get(slot, tensor))


def _filled(given: Any, value: Callable[[Any], Any]) -> Any:
    """Put tensors in the places of their slots: what `tree_map` does, ten times as fast."""
    if isinstance(given, dict):
        return {key: _filled(each, value) for key, each in given.items()}
    if type(given) in (list, tuple):
        return type(given)(_filled(each, value) for each in given)
    return value(given)


def bits(number: int) -> Iterator[int]:
    """Yield the places of the ones of a number."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype == torch.float32 else tensor


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_random(name: str) -> bool:
    return any(word in name for word in ("rand", "normal_", "bernoulli", "uniform", "exponential"))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _spot(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return id(tensor)
    return _storage(tensor), tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _tensors(value: Any) -> list[Tensor]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


def _slots(value: Any) -> list[Slot]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, Slot)]


def _changed(func: Any, given: Any) -> list[int]:
    """Return the slots that an operation writes into."""
    args, kwargs = given
    found: list[Slot] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += _slots(value)
    return [each.number for each in found]
