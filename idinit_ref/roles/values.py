"""Conclusions from a model's present values: biases and zero matrices that are set on purpose.

An adapter only reads the numbers; all conclusions are drawn here (spec section 6, "Biases").
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import permutations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.layout import DEFAULT_LAYOUTS
from .graph import Graph, Node, function_of

__all__ = ["Held", "Values", "function_of"]

_SET_BY = {"softplus", "logaddexp", "exp", "exp2", "log", "log1p", "log2"}  # a time step, a rate
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

    # Numbers --------------------------------------------------------------------------------

    def is_zero(self, name: str) -> bool:
        """Whether a matrix is known to be exactly 0, and others of the model are not."""
        return not self._unset and self._is_zero(name)

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
        weights = {w for node in self._sums(name) for w in self._back(node, _MOVES)}
        if weights and all(map(self.is_zero, weights)):
            return "it is not 0, and its weight is exactly 0"
        return ""

    def is_bias(self, name: str) -> bool:
        """Whether a parameter is a bias that the tracer did not recognise.

        It is one if it is added to the aggregated outputs of one weight, and varies along these
        outputs only.
        """
        node = self._graph.by_name[name]
        sums = self._sums(name)
        sizes = [size for size in node.shape or () if size != 1]
        if node.use != "other" or node.note or not sums or len(sizes) != 1:
            return False
        ends = [self._last(sum_) for sum_ in sums]
        if not ends[0] or any(found != ends[0] for found in ends):
            return False
        return all(self._outputs(weight) == sizes[0] for weight in ends[0])

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
        pairs = list(permutations(node.inputs, 2))
        return not pairs or any(self._base(one) in self._all_before(two) for one, two in pairs)

    def _base(self, name: str) -> str:
        """Return the node of which a value is a part or a mean."""
        node = self._graph.by_name[name]
        while node.kind == "other" and node.does in (*_MOVES, "pool") and len(node.inputs) == 1:
            node = self._graph.by_name[node.inputs[0]]
        return node.name

    def _back(self, node: Node, over: tuple[str, ...]) -> dict[str, Node]:
        """Return the weights of the operations before a node, through nodes that keep outputs."""
        found: dict[str, Node] = {}
        stack, seen = [node], {node.name}
        while stack:
            at = stack.pop()
            if at.kind == "weight":
                found |= dict.fromkeys(at.weights, at)
            elif at is node or at.kind == "add" or (at.does in over and not self._is_norm(at)):
                kept = [name for k, name in enumerate(at.inputs) if k not in at.sums]
                stack += [self._graph.by_name[name] for name in kept if name not in seen]
                seen.update(kept)
        return found

    def _last(self, node: Node) -> set[str]:
        """Return the weights of the one operation in a sum, or none.

        After a residual add only the latest operations count.
        """
        found = self._back(node, _SPREADS)
        for end in list(found.values()):
            before = {name for at in end.inputs for name in self._all_before(at)}
            found = {name: op for name, op in found.items() if op.name not in before}
        return set(found) if len({op.name for op in found.values()}) == 1 else set()

    def _all_before(self, name: str) -> set[str]:
        seen, stack = {name}, [name]
        while stack:
            new = set(self._graph.by_name[stack.pop()].inputs) - seen
            seen |= new
            stack += new
        return seen

    def _outputs(self, name: str) -> int:
        """Return the number of a weight's outputs."""
        node = self._graph.by_name[name]
        shape = node.shape or ()
        letters = node.options.get("layout") or DEFAULT_LAYOUTS.get(len(shape), "")
        return shape[letters.index("O")] if "O" in letters else 0
