"""The residual adds of a run, read from the dataflow of its tape alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from docs.evidence._zoo_tape import ADDS, Tape, bits

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
    "native_dropout",
    "copy",
)  # by how names begin
_TO_SCORES = ("masked_fill", "where", "add", "sub", "baddbmm", "clamp", "tanh", "cat")
SPACE = re.compile(r"pool|pad|upsample|interpolate|slice")


# The adds of a run --------------------------------------------------------------------------------


@dataclass
class Add:
    """An elementwise sum in which one operand may be the skip of the other."""

    step: int
    node: int
    skip: int
    branch: int
    source: int
    weights: tuple[int, ...]  # the nodes of the branch's weight operations after the source
    plain: bool
    where: str


class Flow:
    """What the dataflow of a tape says of its adds."""

    def __init__(self, tape: Tape) -> None:
        self.tape, self.nodes, self.above = tape, tape.nodes, tape.above
        self.weights = [k for k, node in enumerate(self.nodes) if node.weights]
        self.data = {
            k: _joined(self.above[each] for each in self.nodes[k].data) for k in self.weights
        }
        self.readers: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for each in node.inputs:
                self.readers[each].append(number)
        is_add = {k for k, node in enumerate(self.nodes) if node.name in ADDS}
        self.useful = [False] * len(self.nodes)  # leads to a weight operation or an add
        for number in reversed(range(len(self.nodes))):
            self.useful[number] = (
                bool(self.nodes[number].weights)
                or number in is_add
                or any(self.useful[each] for each in self.readers[number])
            )
        self.residual: dict[int, int] = {}  # of a plain add, its source
        self.adds: list[Add] = []
        for number, step in enumerate(tape.steps):
            if step.name in ADDS and step.nodes:
                self.adds += self._add(number)

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

    def _learned(self, node: int) -> bool:
        return len(self.nodes[node].shape) > 1

    def _is_score(self, node: int, over: bool = False) -> bool:
        """Whether a sum only enters a softmax, or its last axis is contracted by another signal.

        `over` allows for one weight operation on every way there.
        """
        seen, stack, ends = {node}, [node], []
        while stack:
            here = stack.pop()
            for reader in self.readers[here]:
                name = self.nodes[reader].name.removeprefix("aten::")
                if name.startswith("_scaled_dot_product"):
                    queries_and_keys = self.nodes[reader].inputs[:2]
                    ends.append(here in queries_and_keys)
                elif reader not in seen and name.startswith((*MOVES, *_TO_SCORES)):
                    stack.append(reader)
                elif reader not in seen and over and self.nodes[reader].weights:
                    ends.append(self._is_score(reader))
                elif reader not in seen:
                    is_score = name.startswith(("_softmax", "_safe_softmax", "bmm"))
                    ends.append(is_score and not self.nodes[reader].weights)
                seen.add(reader)
        return bool(ends) and all(ends)

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
            if self._after(source, skip):
                return
            weights = self._after(source, branch)
            if weights and not (len(self.readers[branch]) > 1 and self._is_score(node, over=True)):
                self.residual[node] = source
                yield Add(step, node, skip, branch, source, weights, True, self.nodes[node].where)
                return
            return  # both reach it over no weight: a mask, a position

    def _root(self, node: int) -> int:
        """Return what a node is a moved form of."""
        while self.nodes[node].name.removeprefix("aten::").startswith(MOVES[:-2]):
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


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
