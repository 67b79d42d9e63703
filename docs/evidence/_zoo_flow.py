"""The residual adds of a run, read from the dataflow of its tape alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from docs.evidence._zoo_tape import ADDS, DIFFERENCES, SUMS, Slot, Tape, bits

MOVES = (
    "view",
    "_unsafe_view",
    "reshape",
    "transpose",
    "permute",
    "alias",
    "clone",
    "expand",
    "_to_copy",
    "detach",
    "unsqueeze",
    "squeeze",
    "contiguous",
    "slice",
    "select",
    "split",
    "unbind",
    "mul",
    "div",
    "t.",
    "written",
)  # by how names begin
_AXES = {
    "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "expand", "unsqueeze",
    "squeeze", "slice", "select", "split", "split_with_sizes", "unbind",
}  # fmt: skip
_PRODUCTS = {"mm", "bmm", "baddbmm", "addmm"}
_SOFTMAX = {"_softmax", "_safe_softmax", "_log_softmax"}
SPACE = re.compile(r"pool|pad|upsample|interpolate|slice")
_LINEAR = re.compile(r"avg_pool|constant_pad|upsample")  # of two terms, the sum of what each gives


# The adds of a run --------------------------------------------------------------------------------


@dataclass
class Add:
    """An elementwise sum or difference in which one operand may be the skip of the other."""

    step: int
    node: int
    skip: int
    branch: int  # of it the part that comes from the source
    reader: int  # the step that reads the branch
    source: int
    weights: tuple[int, ...]  # the nodes of the branch's weight operations after the source
    plain: bool  # no weight operation lies between source and skip
    where: str


class Flow:
    """What the dataflow of a tape says of its adds."""

    def __init__(self, tape: Tape) -> None:
        self.tape, self.nodes = tape, tape.nodes
        self.above: list[int] = []  # as the tape has it, but for what only makes masks and places
        for number, node in enumerate(self.nodes):
            before = [self.above[each] for each in node.inputs] if node.floating else []
            self.above.append(_joined(before) | 1 << number)
        self.weights = [k for k, node in enumerate(self.nodes) if node.weights]
        self.data = {
            k: _joined(self.above[each] for each in self.nodes[k].data) for k in self.weights
        }
        self.readers: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for each in node.inputs:
                self.readers[each].append(number)
        is_add = {k for k, node in enumerate(self.nodes) if node.name in ADDS}
        self.unread = [False] * len(self.nodes)  # an alias that a write has changed for nobody
        self.useful = [False] * len(self.nodes)  # leads to a weight operation or an add
        for number in reversed(range(len(self.nodes))):
            self.unread[number] = self.nodes[number].name == "written" and all(
                self.unread[each] for each in self.readers[number]
            )
            self.useful[number] = (
                bool(self.nodes[number].weights)
                or number in is_add
                or any(self.useful[each] for each in self.readers[number])
            )
        self.residual: dict[int, int] = {}  # of a plain add, its source
        self.adds: list[Add] = []
        self.others: list[Add] = []  # differences, and sums of what was stacked
        for number, step in enumerate(tape.steps):
            if step.name in ADDS and step.nodes:
                self.adds += self._add(number)
            elif step.name in DIFFERENCES and step.nodes:
                self.others += [add for add in self._add(number) if add.plain]
            elif step.name in SUMS and step.nodes:
                self.others += self._stacked(step.nodes[0])

    def _add(self, step: int) -> list[Add]:
        node = self.tape.steps[step].nodes[0]
        inputs = self.nodes[node].inputs
        if len(inputs) != 2 or any(self.tape.made[k] and not self._learned(k) for k in inputs):
            return []
        first, second = (_shape(self.nodes[k].shape) for k in inputs)
        if first != second or not self.nodes[node].floating or _size(first) < 2:
            return []
        if self._is_score(node):
            return []
        plain = [
            found
            for skip, branch in (inputs, inputs[::-1])
            for found in self._plain(step, node, skip, branch)
        ]
        return plain or self._projection(step, node, *inputs)

    def _stacked(self, node: int) -> list[Add]:
        """Return the terms of a sum over a stack, two by two."""
        (stack,) = self.nodes[node].inputs
        parts = self.nodes[stack].inputs
        is_stack = self.nodes[stack].name == "aten::stack" and len(parts) <= 8
        if not is_stack or len(self.nodes[node].shape) != len(self.nodes[parts[0]].shape):
            return []
        step, found = self.nodes[stack].step, list[Add]()
        for first, second in combinations(dict.fromkeys(parts), 2):
            pairs = ((first, second), (second, first))
            plain = [add for pair in pairs for add in self._plain(step, node, *pair)]
            found += plain or self._projection(step, node, first, second)
        return found

    def _learned(self, node: int) -> bool:
        return len(self.nodes[node].shape) > 1

    def _is_score(self, node: int, over: bool = False) -> bool:
        """Whether a sum only enters a softmax or a choice, or a signal sums its output axis away.

        A choice gives integers, as the indices of the largest entries. `over` allows for one
        weight operation on every way there.
        """
        seen, stack, ends = {node}, [(node, self._output_axis(node))], []
        while stack:
            here, axis = stack.pop()
            for reader in self.readers[here]:
                this = self.nodes[reader]
                name = _base(this.name)
                if not self.readers[reader] and self._is_byproduct(reader):
                    continue
                if name in _SOFTMAX or not this.floating:
                    ends.append(True)
                elif this.weights:
                    ends.append(over and self._is_score(reader))
                elif name in _PRODUCTS and axis == self._summed(reader, here):
                    ends.append(self._leads_on(reader))
                elif reader not in seen and not self.unread[reader]:
                    seen.add(reader)
                    place = self._moved(reader, here, axis)
                    if place is not None:
                        stack.append((reader, place))
                    is_pooled = _size(this.shape) < _size(self.nodes[here].shape)
                    if not self.readers[reader] or not (place or is_pooled):
                        ends.append(False)  # it is returned, or not followed
        return bool(ends) and all(ends)

    def _leads_on(self, node: int) -> bool:
        """Whether a softmax or a weight follows: not where a product compares two towers."""
        seen, stack = {node}, [node]
        while stack:
            for reader in self.readers[stack.pop()]:
                this = self.nodes[reader]
                if this.weights or _base(this.name) in _SOFTMAX:
                    return True
                if reader not in seen:
                    seen.add(reader)
                    stack.append(reader)
        return False

    def _is_byproduct(self, node: int) -> bool:
        """Whether other results of the same operation are read, as maxima beside their places."""
        step = self.nodes[node].step
        return any(self.readers[other] for other in self.tape.steps[step].nodes)

    def _output_axis(self, node: int) -> int:
        """Return the axis that holds the outputs of the last weight operation, from the end."""
        way = [node]
        while not self.nodes[way[-1]].weights and self.nodes[way[-1]].inputs:
            way.append(max(self.nodes[way[-1]].inputs))
        last = self.nodes[way[-1]]
        axis: int | None = 1 - len(last.shape) if "convolution" in last.name else -1
        for here, reader in zip(way[:0:-1], way[-2::-1], strict=True):
            axis = None if axis is None else self._moved(reader, here, axis)
        return -1 if axis is None else axis

    def _summed(self, product: int, operand: int) -> int:
        """Return the axis of an operand that a product of matrices sums."""
        return -1 if operand == self.nodes[product].inputs[-2:][0] else -2

    def _moved(self, reader: int, here: int, axis: int) -> int | None:
        """Return where an axis lies after an operation, found by moving its places."""
        this, shape = self.nodes[reader], self.nodes[here].shape
        name = _base(this.name)
        if name in _PRODUCTS:
            return axis
        if -axis > len(shape):
            return None
        if name not in _AXES:  # where it is pooled, there are only statistics of it
            is_kept = len(this.shape) == len(shape) and this.shape[axis] > 1
            return axis if is_kept else None
        places = torch.arange(float(shape[axis])).reshape(-1, *(1,) * (-1 - axis))
        places = places.expand(shape).contiguous()
        step = self.tape.steps[this.step]
        args = tree_map_only(Slot, lambda _: places, step.args)
        out = (torch.Tensor.reshape if "view" in name else step.function)(*args, **step.kwargs)
        out = out if isinstance(out, torch.Tensor) else out[step.nodes.index(reader)]
        found = [k - out.dim() for k in range(out.dim()) if bool((out.diff(dim=k) == 1).any())]
        return found[-1] if found else None

    def _free(self, node: int) -> set[int]:
        """Return what a node reaches back over no weight; the weight operations themselves too."""
        seen, stack = {node}, [node]
        while stack:
            here = stack.pop()
            if self.nodes[here].weights:
                continue
            for each in self.nodes[here].inputs:
                if each not in seen:
                    seen.add(each)
                    stack.append(each)
        return seen

    def _after(self, source: int, end: int) -> tuple[int, ...]:
        """Return the weight operations between a node and another."""
        return tuple(
            k
            for k in self.weights
            if k > source and self.above[end] >> k & 1 and self.data[k] >> source & 1
        )

    def _plain(self, step: int, node: int, skip: int, branch: int) -> Iterator[Add]:
        shape = _shape(self.nodes[node].shape)
        for source in sorted(self._free(skip), reverse=True):
            if not self.above[branch] >> source & 1 or not self.nodes[source].floating:
                continue
            if _size(self.nodes[source].shape) != _size(shape) and not self._in_space(source, skip):
                continue
            if self.tape.made[source] and (
                self.nodes[source].leaf == "constant" or self._root(branch) in self.residual
            ):
                continue
            is_stream = bool(self._after(source, skip))  # which has gone on from its source
            if is_stream and source not in self._stream(skip):
                return
            weights = self._after(source, branch)
            if weights and not (len(self.readers[branch]) > 1 and self._is_score(node, over=True)):
                if self.nodes[node].name in ADDS:
                    self.residual[node] = source
                where = self.nodes[node].where
                own, reader = self._own(branch, step, source)
                yield Add(step, node, skip, own, reader, source, weights, not is_stream, where)
                return
            # Else both reach it over no weight, as a mask or a position: nothing parts there.

    def _stream(self, node: int) -> set[int]:
        """Return what a node reaches back over sums, joins and functions of one signal: no gate."""
        seen, stack = {node}, [node]
        while stack:
            here = self.nodes[stack.pop()]
            new = {k for k in here.inputs if self.nodes[k].floating and not self.tape.made[k]}
            if not here.weights and (here.name in {*ADDS, "aten::cat"} or len(new) == 1):
                stack += new - seen
                seen |= new
        return seen

    def _own(self, branch: int, reader: int, source: int) -> tuple[int, int]:
        """Return the part of a branch that comes from the source, and the step that reads it.

        What the branch adds to it from elsewhere, over weights of its own, may remain (R1).
        """
        here = branch
        while True:
            node = self.nodes[here]
            signals = [k for k in node.inputs if not self.tape.made[k]]
            if node.name in ADDS and len(signals) == 2:
                own = [k for k in signals if self.above[k] >> source & 1]
                if len(own) != 1 or not self._is_elsewhere(sum(signals) - own[0], source):
                    return branch, reader
                here = branch = own[0]
                reader = node.step
            elif len(signals) == 1 and (_is_move(node.name) or _LINEAR.search(node.name)):
                here = signals[0]
            else:
                return branch, reader

    def _is_elsewhere(self, node: int, source: int) -> bool:
        """Whether a signal comes over weights that the source does not."""
        return any((self.above[node] & ~self.above[source]) >> k & 1 for k in self.weights)

    def _root(self, node: int) -> int:
        """Return what a node is a moved form of."""
        while _is_move(self.nodes[node].name):
            node = self.nodes[node].inputs[0]
        return node

    def _in_space(self, source: int, skip: int) -> bool:
        between = self.above[skip] & ~((1 << source + 1) - 1)
        return any(
            SPACE.search(self.nodes[k].name) for k in bits(between) if self.above[k] >> source & 1
        )

    def _projection(self, step: int, node: int, first: int, second: int) -> list[Add]:
        common = self.above[first] & self.above[second]
        for source in sorted(bits(common), reverse=True):
            if not self.nodes[source].floating or self.tape.made[source]:
                continue
            if len(self.readers[source]) < 2:  # nothing parts here
                continue
            both = [set(self._after(source, each)) for each in (first, second)]
            if both[0] <= both[1] or both[1] <= both[0] or both[0] & both[1]:
                continue
            if not self._closed(source, node):
                return []
            return [
                Add(
                    step,
                    node,
                    skip,
                    branch,
                    step,
                    source,
                    tuple(sorted(mine)),
                    False,
                    self.nodes[node].where,
                )
                for skip, branch, mine in ((first, second, both[1]), (second, first, both[0]))
            ]
        return []

    def _closed(self, source: int, end: int) -> bool:
        for k in bits(self.above[end] & ~((1 << source + 1) - 1)):
            if k == end or not self.above[k] >> source & 1:
                continue
            if any(not self.above[end] >> c & 1 and self.useful[c] for c in self.readers[k]):
                return False
        return True


def _joined(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _is_move(name: str) -> bool:
    return name.removeprefix("aten::").startswith(MOVES)


def _base(name: str) -> str:
    return name.removeprefix("aten::").partition(".")[0]


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
