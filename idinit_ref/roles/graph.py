"""A computation as a tiny graph: its nodes, checked, as every tracer draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from ..core.options import sizes
from ..errors import GraphError, OptionTypeError, ShapeError, message

__all__ = ["ROOTS", "Does", "Graph", "Node", "NodeKind", "Use", "function_of"]

NodeKind = Literal["input", "parameter", "weight", "add", "other"]
"""What a node does: starts a signal, is a parameter, is a dense or convolution operation with
parameters for a weight, adds two tensors elementwise, or anything else."""

Use = Literal["weight", "bias", "embedding", "other"]
"""What a parameter is for, as its tracer saw."""


Does = Literal[
    "",
    "unknown",
    "move",
    "map",
    "scale",
    "shift",
    "product",
    "contract",
    "attention",
    "softmax",
    "norm",
    "pool",
    "pad",
    "resize",
    "crop",
    "select",
    "join",
]
"""What a node of kind "other" does, as far as roles depend on it. "" is any other.

"unknown" is an operation of which only the name is known, not what it is at 0;
"move" keeps all entries (reshape, transpose, cast, broadcast); "map" is a function of each entry;
"scale" multiplies by numbers, data or parameters (masks and dropout too), "shift" adds them;
"product" multiplies signals entry by entry, "contract" sums products of signals; "select" drops
entries; "join" concatenates; "pad", "pool", "resize" and "crop" act on space."""


ROOTS = frozenset({"sqrt", "rsqrt", "norm", "std", "linalg_vector_norm"})
"""Functions by which a normalisation that is written out is known."""


@dataclass(frozen=True)
class Node:
    """One tensor of a computation, and where it comes from.

    Parameters
    ----------
    name : str
        Its own name in the graph; a parameter has its name in the model.
    kind : {"input", "parameter", "weight", "add", "other"}
        "input" is where a signal starts: a floating input of the model, or a floating tensor made
        of none (an embedding). "weight" is a dense layer or a convolution. Only its data are its
        `inputs`; the parameters that its weight is made of are its `weights`. "add" adds its two
        inputs elementwise.
    inputs : tuple of str
        The names of the nodes that it is computed from.
    shape : tuple of int, optional
        Of the tensor. An add of tensors whose shapes are not known is no residual add.
    weights : tuple of str
        Of a weight operation: the names of its parameters.
    use : {"weight", "bias", "embedding", "other"}
        Of a parameter.
    options : mapping
        Of a parameter that is a weight: how it is stored and used, as options of
        :func:`idinit_ref.plan`: layout, groups, transposed, blocks, and of a kernel `tap`, the
        identity tap of its convolution, and `stride`, that of a transposed convolution, whose taps
        fall apart into phases (spec section 3). Other keys are the tracer's own.
    note : str
        Of a parameter that is to be left as it is: why (it is frozen, say); "" for any other.
    does : str
        Of a node of kind "other": what it does, a word of `Does`.
    vanishes : {"all", "never"} or tuple of int
        Of a node of kind "other": its result is zero if all inputs are ("all"), whatever they are
        not ("never": f(0) is not 0), or if one input at these positions is: the factors of a
        product, the values of an attention (spec section 6). A square, or a product of a signal
        with itself, has the word "product" and vanishes with "all": it is zero to second order,
        so no weight before it ends a branch.
    sums : tuple of int
        The positions of the inputs whose output axis (the axis of the units) is summed away, by
        this node or by a later one: queries and keys in a product of them. None is in `vanishes`.

    Examples
    --------
    >>> Node("fc.weight", "parameter", shape=[4, 3], use="weight").shape
    (4, 3)
    """

    name: str
    kind: NodeKind = "other"
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    weights: tuple[str, ...] = ()
    use: Use = "other"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    note: str = ""
    does: Does = ""
    vanishes: Literal["all", "never"] | tuple[int, ...] = "all"
    sums: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("inputs", "weights", "shape", "sums"):
            value: object = getattr(self, name)
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(value))
            elif name != "shape" or value is not None:
                raise OptionTypeError(message(name, value, "it should be a tuple", "pass a tuple"))
        if self.shape is not None:
            sizes("shape", self.shape, ShapeError)


@dataclass(frozen=True)
class Graph:
    """A computation, checked: every node after those that it is computed from.

    Parameters
    ----------
    nodes : sequence of Node
        In the order of the computation.
    outputs : sequence of str
        The names of the nodes that the model returns.

    Raises
    ------
    GraphError
        If a name stands twice, a node is used before it is computed, an add has not two inputs,
        or a weight operation has no parameter for its weight.
    OptionTypeError
        If something else than nodes is given.

    Examples
    --------
    >>> Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ], ["y"]).parameters
    ('w',)
    """

    nodes: Sequence[Node]
    outputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        for which in ("nodes", "outputs"):
            value: object = getattr(self, which)
            if isinstance(value, str) or not isinstance(value, Sequence):
                should = "it should be a list or tuple"
                raise OptionTypeError(message(which, value, should, "pass a list"))
            object.__setattr__(self, which, tuple(value))
        seen: dict[str, Node] = {}
        for node in self.nodes:
            if not isinstance(node, Node):
                raise OptionTypeError(
                    message("nodes", node, "every one should be a Node", "use ir.Node(...)")
                )
            if node.kind not in get_args(NodeKind):
                raise _wrong(node, f"kind {node.kind!r} is none of {', '.join(get_args(NodeKind))}")
            if node.use not in get_args(Use):
                raise _wrong(node, f"use {node.use!r} is none of {', '.join(get_args(Use))}")
            if node.does not in get_args(Does):
                raise _wrong(node, f"does {node.does!r} is none of {', '.join(get_args(Does))}")
            places = (*(node.vanishes if isinstance(node.vanishes, tuple) else ()), *node.sums)
            if node.vanishes not in ("all", "never") and not isinstance(node.vanishes, tuple):
                raise _wrong(node, f"vanishes {node.vanishes!r} is no 'all', 'never' or tuple")
            if any(not 0 <= place < len(node.inputs) for place in places):
                raise _wrong(node, f"positions {places} lie beyond its {len(node.inputs)} inputs")
            if node.kind in ("input", "parameter") and node.inputs:
                raise _wrong(node, f"a node of kind {node.kind!r} is computed from nothing")
            if node.name in seen:
                raise _wrong(node, "its name stands twice", "give every node a name of its own")
            for name in (*node.inputs, *node.weights):
                if name not in seen:
                    raise _wrong(
                        node, f"it uses {name!r}, which is not before it", "list that node first"
                    )
            if node.kind == "add" and len(node.inputs) != 2:
                raise _wrong(node, "it adds two tensors", "write a longer sum as several adds")
            if (node.kind == "weight") != bool(node.weights):
                raise _wrong(node, "a weight operation, and no other node, has weights")
            for name in node.weights:
                if seen[name].kind != "parameter":
                    raise _wrong(node, f"its weight {name!r} is no parameter")
            seen[node.name] = node
        for name in self.outputs:
            if name not in seen:
                raise GraphError(
                    message("outputs", name, "there is no such node", "name a node of the graph")
                )

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes by name.

        Examples
        --------
        >>> Graph([Node("x", "input", shape=(2, 4))]).by_name["x"].shape
        (2, 4)
        """
        return {node.name: node for node in self.nodes}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters, in the order of the graph.

        Examples
        --------
        >>> Graph([
        ...     Node("w", "parameter", shape=(4, 4), use="weight"),
        ...     Node("b", "parameter", shape=(4,), use="bias"),
        ... ]).parameters
        ('w', 'b')
        """
        return tuple(node.name for node in self.nodes if node.kind == "parameter")

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The names of the parameters that are weights of some operation.

        Examples
        --------
        >>> Graph([
        ...     Node("x", "input", shape=(2, 4)),
        ...     Node("w", "parameter", shape=(4, 4), use="weight"),
        ...     Node("b", "parameter", shape=(4,), use="bias"),
        ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
        ... ]).weights
        ('w',)
        """
        used = {name for node in self.nodes for name in node.weights}
        return tuple(name for name in self.parameters if name in used)


def _wrong(node: Node, should: str, cure: str = "mend the tracer") -> GraphError:
    return GraphError(message("node", node.name, should, cure))


def function_of(node: Node) -> str:
    """Return what a node's name says that it computes.

    >>> function_of(Node("layers.0: softplus (2)")), function_of(Node("dt/Exp_1"))
    ('softplus', 'exp')
    """
    last = re.split(r"[:/.] ?", node.name)[-1]
    return re.sub(r"(_\d*| \(\d+\))$", "", last).lower()
