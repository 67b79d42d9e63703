"""A computation as a small graph of validated nodes, which every tracer draws."""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

from ..core.options import sizes
from ..errors import GraphError, OptionTypeError, ShapeError, message

__all__ = [
    "ROOTS",
    "STEPS",
    "Does",
    "Graph",
    "Node",
    "NodeKind",
    "Use",
    "bare_shape",
    "entries",
    "function_of",
    "without_repeats",
    "without_unread",
]

NodeKind = Literal["input", "parameter", "weight", "add", "other"]
"""The kind of a node: the start of a signal; a parameter; a dense or convolution operation whose
weight is a parameter; an elementwise sum of two tensors; anything else."""

Use = Literal["weight", "bias", "embedding", "other"]
"""The use of a parameter, recorded by the tracer."""


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
    "mix",
    "pad",
    "resize",
    "crop",
    "select",
    "join",
]
"""The operation of a node of kind "other", as far as roles depend on it. "" is any other one.

"unknown" is an operation whose value at 0 is not known;
"move" keeps all entries (reshape, transpose, cast, broadcast); "map" is a function of each entry;
"scale" multiplies by numbers, data or parameters (masks and dropout too), "shift" adds them;
"product" multiplies signals entry by entry, "contract" sums products of signals; "select" drops
entries; "mix" is any other linear map (a cumulative sum, a product with constants); "join"
concatenates; "pad", "pool", "resize" and "crop" act on space."""


ROOTS = frozenset({"sqrt", "rsqrt", "norm", "std", "linalg_vector_norm"})
"""Functions that identify a normalisation written out in single operations."""

STEPS = {"ceil", "fix", "floor", "floor_divide", "floordiv", "heaviside", "rint", "round"}
STEPS |= {"sgn", "sign", "trunc"}
"""Functions that are constant between their steps, so that no gradient passes them."""


@dataclass(frozen=True)
class Node:
    """One tensor of a computation, with its inputs.

    Parameters
    ----------
    name : str
        Its unique name in the graph; a parameter has its name in the model.
    kind : {"input", "parameter", "weight", "add", "other"}
        "input" is the start of a signal: a floating input of the model, or a floating tensor that
        is computed from none (an embedding). "weight" is a dense layer or a convolution; its
        `inputs` are only its data, and the parameters of its weight are its `weights`. "add" adds
        its two inputs elementwise; a difference is one, too, unless it is a loss or a distance.
    inputs : tuple of str
        The names of the nodes from which it is computed.
    shape : tuple of int, optional
        The shape of the tensor. An add of tensors with unknown shapes is not a residual add.
    weights : tuple of str
        For a weight operation: the names of its parameters.
    use : {"weight", "bias", "embedding", "other"}
        For a parameter: its use.
    options : mapping
        For a parameter that is a weight: its storage and use, as options of
        :func:`idinit_ref.plan`: layout, groups, transposed, blocks; for a kernel also `tap`, the
        identity tap of its convolution, and `stride`, that of a transposed convolution, whose taps
        form phases (spec section 3). Other keys belong to the tracer.
    note : str
        For a parameter that should be kept: the reason (for example, it is frozen); else "".
    does : str
        For a node of kind "other": its operation, a word of `Does`.
    vanishes : {"all", "never"} or tuple of int
        For a node of kind "other", when its result is zero: if all inputs are ("all"); for no
        inputs ("never": f(0) is not 0); or if one input at these positions is: the factors of a
        product, the values of an attention (spec section 6). A square, or a product of a signal
        with itself, has the word "product" and vanishes with "all": it is zero to second order,
        so no weight before it ends a branch.
    sums : tuple of int
        The positions of the inputs whose output axis (the axis of the units) is summed over, by
        this node or by a later one: queries and keys in their product. None is in `vanishes`.

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
    """A validated computation: every node comes after its inputs.

    Parameters
    ----------
    nodes : sequence of Node
        In the order of the computation.
    outputs : sequence of str
        The names of the nodes that the model returns.

    Raises
    ------
    GraphError
        If a name repeats, a node is used before it is computed, an add does not have two inputs, or
        a weight operation has no parameter for its weight.
    OptionTypeError
        If `nodes` holds anything but nodes.

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


_PLAIN = {"abs", "cos", "exp", "relu", "sigmoid", "silu", "sin", "tanh"}  # without options


def without_repeats(graph: Graph) -> Graph:
    """Return a graph without sums of the same two nodes as an earlier one, or functions of one.

    So a sum of all earlier results, made anew in each layer, is the running sum.

    >>> net = Graph([Node(name, "input", shape=(2, 4)) for name in "ab"]
    ...             + [Node("y", "add", ("a", "b")), Node("z", "add", ("b", "a"))], ["z"])
    >>> without_repeats(net).outputs
    ('y',)
    """
    nodes: list[Node] = []
    sums: dict[Hashable, str] = {}
    now: dict[str, str] = {}  # by repeated sum: the first one
    for node in graph.nodes:
        if not now.keys().isdisjoint(node.inputs):
            node = replace(node, inputs=tuple(now.get(name, name) for name in node.inputs))
        function = function_of(node) if node.does == "map" and len(node.inputs) == 1 else ""
        if node.kind == "add" or function in _PLAIN:
            key = function, frozenset(node.inputs), node.shape, node.vanishes
            first = sums.setdefault(key, node.name)
            if first != node.name:
                now[node.name] = first
                continue
        nodes.append(node)
    return Graph(nodes, [now.get(name, name) for name in graph.outputs]) if now else graph


def without_unread(graph: Graph) -> Graph:
    """Return a graph without what no output reads; the same graph if it names no outputs.

    Parameters stay, and so do operations of weights that nothing else reads, without inputs: such a
    weight ends no branch. ``options["returned"]`` marks nodes that are read besides the outputs.

    >>> net = Graph([
    ...     Node("x", "input", shape=(2, 4)),
    ...     Node("w", "parameter", shape=(4, 4), use="weight"),
    ...     Node("h", "weight", ("x",), (2, 4), weights=("w",)),
    ...     Node("y", "add", ("x", "h"), (2, 4)),
    ... ], ["h"])
    >>> [node.name for node in without_unread(net).nodes]
    ['x', 'w', 'h']
    """
    read = {*graph.outputs, *(n.name for n in graph.nodes if n.options.get("returned"))}
    for node in reversed(graph.nodes):
        read.update((*node.inputs, *node.weights) if node.name in read else ())
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in read or node.kind in ("input", "parameter"):
            nodes.append(node)
        elif lone := tuple(name for name in node.weights if name not in read):
            nodes.append(replace(node, inputs=(), weights=lone, vanishes="all", sums=()))
    if not graph.outputs or nodes == [*graph.nodes]:
        return graph
    kept = {node.name for node in nodes}
    return Graph([_naming(node, kept) for node in nodes], graph.outputs)


def _naming(node: Node, kept: Container[str]) -> Node:
    """Return a parameter that says of these nodes only that it is added to them or scales them."""
    own = {key: node.options[key] for key in ("adds_to", "scales") if key in node.options}
    new = {key: tuple(name for name in names if name in kept) for key, names in own.items()}
    return node if own == new else replace(node, options={**node.options, **new})


def _wrong(node: Node, should: str, cure: str = "correct the tracer") -> GraphError:
    return GraphError(message("node", node.name, should, cure))


def function_of(node: Node) -> str:
    """Return the function in a node's name.

    >>> function_of(Node("layers.0: softplus (2)")), function_of(Node("dt/Exp_1"))
    ('softplus', 'exp')
    """
    name = re.sub(r"\[\d+:\d+\]$", "", node.name)  # of a part of a result
    last = re.split(r"[:/.] ?", name)[-1]
    return re.sub(r"(_\d*| \(\d+\))$", "", last).lower()


def bare_shape(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return a shape without its leading axes of size 1.

    >>> bare_shape((1, 1, 5, 8))
    (5, 8)
    """
    sizes = list(shape or ())
    while sizes and sizes[0] == 1:
        del sizes[0]
    return tuple(sizes)


def entries(node: Node) -> int:
    """Return the number of entries of a node; 0 if its shape is unknown."""
    return 0 if node.shape is None else prod(node.shape)
