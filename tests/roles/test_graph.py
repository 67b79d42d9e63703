"""What is a graph, and what is none."""

from __future__ import annotations

import pytest

import idinit_ref as ir
from idinit_ref.errors import GraphError, OptionTypeError, ShapeError
from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import infer_roles


def test_lists_are_as_good_as_tuples():
    node = Node("h", "weight", ["x"], [2, 4], ["w"])
    assert node == Node("h", "weight", ("x",), (2, 4), ("w",))
    assert hash(node)
    for wrong in ({"inputs": None}, {"inputs": "x"}, {"shape": "ab"}, {"shape": 3}):
        with pytest.raises(OptionTypeError, match="it should be a tuple"):
            Node("h", **wrong)
    with pytest.raises(ShapeError):
        Node("h", shape=(2, -4))


X, P = Node("x", "input", shape=(2, 4)), Node("p", "parameter", shape=(4, 4))


@pytest.mark.parametrize(
    ("nodes", "outputs", "error", "says"),
    [
        ([X, X], [], GraphError, "its name stands twice"),
        ([Node("y", "other", ("x",)), X], [], GraphError, "it uses 'x', which is not before it"),
        ([X, Node("y", "add", ("x",))], [], GraphError, "it adds two tensors"),
        ([X, Node("y", "weight", ("x",))], [], GraphError, "has weights"),
        ([X, P, Node("y", "other", ("x",), weights=("p",))], [], GraphError, "has weights"),
        ([X, Node("y", "weight", ("x",), weights=("x",))], [], GraphError, "'x' is no parameter"),
        ([X, Node("y", "best", ("x",))], [], GraphError, "kind 'best' is none of input"),
        ([X], ["y"], GraphError, "there is no such node"),
        ([X], "x", OptionTypeError, "outputs = 'x', but it should be a list"),
        (None, [], OptionTypeError, "nodes = None, but it should be a list"),
        ([Node("x", "input", use="wgt")], [], GraphError, "use 'wgt' is none of weight"),
        ([X, Node("y", "input", ("x",))], [], GraphError, "is computed from nothing"),
        ([X, Node("p", "parameter", ("x",))], [], GraphError, "is computed from nothing"),
        (["x"], [], OptionTypeError, "every one should be a Node"),
    ],
)
def test_what_is_no_graph(nodes, outputs, error, says):
    with pytest.raises(error, match=says):
        Graph(nodes, outputs)


def test_a_graph_cannot_be_changed():
    graph = Graph([X, P], ["x"])
    with pytest.raises(AttributeError):
        graph.nodes = ()
    assert (graph.parameters, graph.weights) == (("p",), ())
    assert hash(X) == hash(Node("x", "input", shape=(2, 4)))
    assert (ir.Graph, ir.Node, ir.infer_roles) == (Graph, Node, infer_roles)
