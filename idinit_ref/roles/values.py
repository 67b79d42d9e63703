"""Conclusions from a model's present values: biases and zero matrices that are set on purpose.

An adapter only reads the numbers; all conclusions are drawn here (spec section 6, "Biases").
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from heapq import heappop, heappush
from itertools import permutations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.layout import DEFAULT_LAYOUTS
from .graph import Graph, Node, function_of

__all__ = ["Held", "Values", "function_of"]

_SET_BY = {
    *("softplus", "logaddexp", "exp", "exp2", "log", "log1p", "log2"),
    *("logsigmoid", "log_sigmoid", "log_sigmoid_forward"),  # a softplus
}  # of a time step or a rate
_MOVES = ("move", "shift", "scale", "select", "crop", "pad", "join")
_JOINS = ("select", "pad", "join")  # also writes, and a choice of entries
_SPREADS = (
    "move", "scale", "contract", "pool", "mix", "resize", "select", "crop", "pad", "join", "product"
)  # fmt: skip
"""Aggregations: sums of rows, also weighted ones, as by the gates of experts or a blur."""


class Held(Protocol):
    """The parameters of a model in its framework."""

    @property
    def held(self) -> Mapping[str, Any]:
        """The framework's own objects, by name."""

    def read(self, name: str, whole: bool = True) -> NDArray[Any] | None:
        """Return a parameter's numbers, or one row; None if this process does not have them."""


class _Ahead:
    """Nodes to visit, each once, the latest in the computation first."""

    def __init__(self, at: Mapping[str, int]) -> None:
        self._at = at
        self._heap: list[tuple[int, str]] = []
        self.seen: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def latest(self) -> int:
        """The number of the next node."""
        return -self._heap[0][0]

    def push(self, names: Iterable[str]) -> None:
        """Add nodes that were not added before."""
        for name in names:
            if name not in self.seen:
                self.seen.add(name)
                heappush(self._heap, (-self._at[name], name))

    def pop(self) -> str:
        """Return the latest node."""
        return heappop(self._heap)[1]


class Values:
    """Conclusions from the values of a model's parameters.

    Parameters
    ----------
    graph : Graph
        The graph of the model. ``options["adds_to"]`` of biases and other vectors names the nodes
        to which they are added.
    held : Held, optional
        The values; without it only the graph decides.
    """

    def __init__(self, graph: Graph, held: Held | None = None) -> None:
        self._graph, self._held = graph, held
        self._zero: dict[str, bool] = {}
        self._bias: dict[str, bool] = {}
        self._normed: dict[str, bool] = {}
        self._at = {node.name: number for number, node in enumerate(graph.nodes)}

    # Numbers --------------------------------------------------------------------------------

    def is_zero(self, name: str) -> bool:
        """Whether a matrix is known to be exactly 0, and others of the model are not."""
        return not self._unset and self._is_zero(name)

    def holds_zeros(self, name: str) -> bool:
        """Whether a parameter is known to be exactly 0."""
        return not self._unset and self._is_read_as_zero(name)

    def _is_zero(self, name: str) -> bool:
        if name not in self._zero:  # one row is enough to exclude nearly all
            self._zero[name] = self._is_read_as_zero(name, False) and self._is_read_as_zero(name)
        return self._zero[name]

    def _is_read_as_zero(self, name: str, whole: bool = True) -> bool:
        found = None if self._held is None else self._held.read(name, whole)
        return found is not None and found.size > 0 and not found.any()

    @cached_property
    def _unset(self) -> bool:
        """Whether the values are unusable: this process lacks some, or they are not set (to_empty).

        So processes that share a model have the same answer, though each holds different parts.
        Values are not set if all of several matrices are 0.
        """
        held = self._held
        if held is None or any(held.read(name, False) is None for name in self._graph.parameters):
            return True
        weights = [name for name in self._graph.weights if self._is_matrix(name)]
        return len(weights) > 1 and all(map(self._is_zero, weights))

    def _is_matrix(self, name: str) -> bool:
        return len(self._graph.by_name[name].shape or ()) > 1

    # Scales ---------------------------------------------------------------------------------

    def is_silent(self, name: str) -> bool:
        """Whether every result of a weight is multiplied by parameters that are 0.

        Nothing else is added to it before. Examples are the scale of a residual branch's last
        norm, or a gate, that starts at 0.
        """
        ops = self._operations.get(name, []) if self._zeros else []
        stack, seen = [*ops], {op.name for op in ops}
        sums: dict[str, Node] = {}  # of two results of the weight, as a rotation has them
        while stack:
            node = stack.pop()
            users = self._users.get(node.name, ())
            if not users or node.name in self._graph.outputs:
                return False
            for user in users:
                if user.name in self._zeros or user.name in seen:
                    continue
                if user.kind == "add" and not seen.issuperset(user.inputs):
                    sums[user.name] = user
                elif user.kind == "weight":
                    return False
                else:
                    seen.add(user.name)
                    stack.append(user)
        return bool(ops) and seen.issuperset(sums)

    @cached_property
    def _operations(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            for name in node.weights:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def _zeros(self) -> set[str]:
        """The nodes that are scaled by a parameter whose value, with its offset, is exactly 0."""
        found: set[str] = set()
        for name in () if self._unset or self._held is None else self._graph.parameters:
            scaled = self._graph.by_name[name].options.get("scales", ())
            values = self._held.read(name) if scaled and self._held is not None else None
            offset = self._graph.by_name[name].options.get("offset", 0.0)
            if values is not None and values.size and not (values + offset).any():
                found.update(scaled)
        return found

    # Biases ---------------------------------------------------------------------------------

    def meant(self, name: str) -> str:
        """Return why a bias should not be set to 0, or "" if it should.

        >>> from .graph import Graph, Node, function_of
        >>> Values(Graph([Node("b", "parameter", shape=(3,), use="bias")])).meant("b")
        ''
        """
        held = None if self._held is None else self._held.held.get(name)
        if getattr(held, "_no_reinit", False):
            return "it is marked _no_reinit"
        values = None if self._unset or self._held is None else self._held.read(name)
        function = self._set_by(name)
        if values is None:
            return f"{function} takes its sum" if function else ""
        flat = np.asarray(values).ravel()
        if not flat.any() or not np.isfinite(flat).all():
            return ""
        if function:
            return f"{function} takes its sum"
        if flat.size > 1 and 2 * (1 + np.count_nonzero(flat[1:] != flat[:-1])) <= flat.size:
            return "its values are constant and not 0"
        if self._is_after_zeros(name):
            return "it is not 0, and its weight is exactly 0"
        return ""

    def _is_after_zeros(self, name: str) -> bool:
        """Whether a parameter is only added to results of weights that are exactly 0."""
        ops = (op for node in self._sums(name) for op in self._back(node, _MOVES))
        found = False
        for op in ops:
            if not all(map(self.is_zero, op.weights)):
                return False
            found = True
        return found

    def is_bias(self, name: str) -> bool:
        """Whether a parameter is a bias that the tracer did not recognise.

        It is one if it is added to the aggregated outputs of one weight, and varies along these
        outputs only.
        """
        if name not in self._bias:
            self._bias[name] = self._is_bias(name)
        return self._bias[name]

    def _is_bias(self, name: str) -> bool:
        node = self._graph.by_name[name]
        sums = self._sums(name)
        if node.use != "other" or node.note or not sums:
            return False
        along: dict[str, set[str]] = {}
        for piece in node.options.get("added", ()):
            for at, weights in piece.items():
                along.setdefault(at, set()).update(weights)
        ends = {sum_.name: self._last(sum_, along.get(sum_.name)) for sum_ in sums}
        if not all(ends.values()):
            return False
        if self._lies_along(node, ends):
            return True
        sizes = [size for size in node.shape or () if size != 1]
        first, *rest = ends.values()
        is_one = len(sizes) == 1 and all(found == first for found in rest)
        return is_one and all(self._outputs(weight) == sizes[0] for weight in first)

    def _lies_along(self, node: Node, ends: Mapping[str, set[str]]) -> bool:
        """Whether each piece of a parameter lies along the outputs of one weight before its sums.

        A tracer says in ``options["added"]``, for each piece, the nodes to which it is added, and
        with each node the weights along whose outputs it lies. A matrix may be a bias for each
        layer; a vector may be that of some layers one behind another.
        """
        found = set[str]()
        for piece in node.options.get("added", ()):
            own = {at: weights for at, weights in piece.items() if at in ends}
            if any(not ends[at] <= {*weights} for at, weights in own.items()):
                return False
            if len({frozenset(ends[at]) for at in own}) > 1:
                return False
            found |= own.keys()
        return found >= ends.keys()

    def _sums(self, name: str) -> list[Node]:
        by_name = self._graph.by_name
        return [by_name[at] for at in by_name[name].options.get("adds_to", ())]

    def _set_by(self, name: str) -> str:
        """Return the function of `_SET_BY` that the sum with a bias enters, or ""."""
        stack = [*self._sums(name)]
        seen = {node.name for node in stack}
        while stack:
            for user in self._users.get(stack.pop().name, ()):
                if user.kind == "other" and function_of(user) in _SET_BY:
                    return function_of(user)
                moved = user.does in ("", "mix", *_MOVES) and len(user.inputs) == 1
                moved |= user.does in _JOINS or function_of(user) == "abs"  # in a softplus
                if user.kind == "other" and moved and user.name not in seen:
                    seen.add(user.name)
                    stack.append(user)
        return ""

    @cached_property
    def _users(self) -> dict[str, list[Node]]:
        users: dict[str, list[Node]] = {}
        for node in self._graph.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return users

    @cached_property
    def _scaled(self) -> set[str]:
        """The nodes that a parameter scales: a shift after one is the other half of a norm."""
        given = (node.options.get("scales", ()) for node in self._graph.nodes)
        return {name for names in given for name in names}

    def _is_norm(self, node: Node) -> bool:
        """Whether a node is scaled by a parameter, or by a result of its own input."""
        if node.does != "product":
            return node.name in self._scaled
        if node.name not in self._normed:
            pairs = list(permutations(node.inputs, 2))
            found = not pairs or any(self._is_scale_of(two, one) for one, two in pairs)
            self._normed[node.name] = found
        return self._normed[node.name]

    def _is_scale_of(self, scale: str, signal: str) -> bool:
        """Whether a factor is computed from the outputs that it scales.

        What is computed before the last weight operation of a factor scales its outputs from
        outside: a mask, or a degree, that earlier blocks have read too.
        """
        base = self._base(signal)
        lowest, by_name = self._at[base], self._graph.by_name
        if self._at[scale] < lowest or next(self._back(by_name[signal], _SPREADS), None) is None:
            return False
        seen = {(scale, True)}
        stack = [(scale, True)]  # a node, and whether only moves and sums lie behind it
        while stack:
            name, is_plain = stack.pop()
            if name == base:
                return True
            node = by_name[name]
            if is_plain and node.kind == "weight":
                continue
            is_plain &= node.kind == "add" or node.does in _SPREADS
            for place, to in enumerate(node.inputs):
                new = (to, is_plain and place not in node.sums)
                if self._at[to] >= lowest and new not in seen:
                    seen.add(new)
                    stack.append(new)
        return False

    def _base(self, name: str) -> str:
        """Return the node of which a value is a part or a mean."""
        node = self._graph.by_name[name]
        while node.kind == "other" and node.does in (*_MOVES, "pool") and len(node.inputs) == 1:
            node = self._graph.by_name[node.inputs[0]]
        return node.name

    def _back(self, node: Node, over: tuple[str, ...]) -> Iterator[Node]:
        """Yield the weight operations before a node, through nodes that keep outputs."""
        stack, seen = [node], {node.name}
        while stack:
            at = stack.pop()
            if at.kind == "weight":
                yield at
                continue
            new = [name for name in self._passed(at, over, at is node) if name not in seen]
            stack += [self._graph.by_name[name] for name in new]
            seen.update(new)

    def _passed(self, node: Node, over: tuple[str, ...], is_first: bool) -> list[str]:
        """Return the inputs whose outputs a node keeps."""
        is_kept = is_first or node.kind == "add"
        if not is_kept and (node.does not in over or self._is_norm(node)):
            return []
        return [name for k, name in enumerate(node.inputs) if k not in node.sums]

    def _last(self, node: Node, among: Collection[str] | None = None) -> set[str]:
        """Return the weights of the one operation in a sum, or none; `among` some, if there are.

        So gates that weigh results are no part of the sum. After a residual add only the latest
        operation counts. The search takes the latest nodes first, so it ends where all that is
        left is computed before that operation.
        """
        ahead, last = _Ahead(self._at), None
        before = _Ahead(self._at)
        ahead.push([node.name])
        while ahead:
            at = self._graph.by_name[ahead.pop()]
            while before and before.latest > self._at[at.name]:
                before.push(self._graph.by_name[before.pop()].inputs)
            if at.name in before.seen:
                continue
            if at.kind != "weight":
                ahead.push(self._passed(at, _SPREADS, at is node))
            elif among and not set(at.weights) & {*among}:
                continue
            elif last is None:
                last = at
                before.push(at.inputs)
            elif not set(at.weights) <= set(last.weights):
                return set()
        return set() if last is None else set(last.weights)

    def _outputs(self, name: str) -> int:
        """Return the number of a weight's outputs."""
        node = self._graph.by_name[name]
        shape = node.shape or ()
        letters = node.options.get("layout") or DEFAULT_LAYOUTS.get(len(shape), "")
        return shape[letters.index("O")] if "O" in letters else 0
