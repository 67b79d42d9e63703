"""What must not change a role (section 6): each a change of random computations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from computations import programs
from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import infer_roles

CHANGES = {}


def change(function):
    CHANGES[function.__name__] = function
    return function


@change
def reordered(graph, draw):
    """Another order of the computation; the parameters keep theirs, which may decide."""
    left = [node for node in graph.nodes if node.kind != "parameter"]
    done = {name: node for node in graph.nodes if node.kind == "parameter" for name in [node.name]}
    order = list(done.values())
    while left:
        ready = [node for node in left if all(name in done for name in node.inputs)]
        node = draw(st.sampled_from(ready))
        left.remove(node)
        done[node.name] = node
        order.append(node)
    return Graph(order, graph.outputs)


@change
def with_swapped_summands(graph, draw):
    nodes = [
        replace(node, inputs=node.inputs[::-1])
        if node.kind == "add" and draw(st.booleans())
        else node
        for node in graph.nodes
    ]
    return Graph(nodes, graph.outputs)


@change
def with_identities(graph, draw):
    """A move behind some nodes, as reshapes are that are undone."""
    nodes, now = [], {}
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(now.get(name, name) for name in node.inputs)))
        if node.kind != "parameter" and draw(st.booleans()):
            now[node.name] = f"{node.name} moved"
            nodes.append(Node(now[node.name], "other", (node.name,), node.shape, does="move"))
    return Graph(nodes, graph.outputs)


@change
def with_sums_anew(graph, draw):
    """Sums that each reader computes for itself, as a sum of all earlier results in every layer."""
    nodes, sums = [], {}

    def own(name, reader):
        if name not in sums or not draw(st.booleans()):
            return name
        node = sums[name]
        inputs = tuple(own(to, f"{reader} of {place}") for place, to in enumerate(node.inputs))
        nodes.append(replace(node, name=f"{name} for {reader}", inputs=inputs))
        return nodes[-1].name

    for node in graph.nodes:
        inputs = tuple(own(to, f"{node.name} at {k}") for k, to in enumerate(node.inputs))
        nodes.append(replace(node, inputs=inputs))
        if node.kind == "add":
            sums[node.name] = node
    return Graph(nodes, graph.outputs)


@change
def with_unread_code(graph, draw):
    """Sums with results of its weights that no output reads."""
    nodes = list(graph.nodes)
    weights = [node for node in nodes if node.kind == "weight"]
    signals = [node for node in nodes if node.kind != "parameter" and node.shape is not None]
    for k in range(draw(st.integers(1, 4)) if weights and signals else 0):
        x, by = draw(st.sampled_from(signals)), draw(st.sampled_from(weights))
        h = replace(by, name=f"unread {k}", inputs=(x.name,), shape=x.shape)
        y = Node(f"unread sum {k}", "add", (x.name, h.name), x.shape)
        nodes += [h, y]
        signals += [h, y]
    return Graph(nodes, graph.outputs)


@change
def with_leading_axes(graph, draw):
    """Axes of size 1 before those of some nodes."""
    nodes = [
        replace(node, shape=(1, *node.shape))
        if node.kind != "parameter" and draw(st.booleans())
        else node
        for node in graph.nodes
    ]
    return Graph(nodes, graph.outputs)


def masked(graph, adds, inside):
    """Some sums behind a mask, m * (a + b), or of masked terms, m * a + m * b."""
    nodes, now = [Node("mask", "input", (), (3, 1))], {}

    def mask(name, shape):
        places = {"does": "product", "vanishes": (0, 1)}
        nodes.append(Node(f"{name} masked", "other", (name, "mask"), shape, **places))
        return nodes[-1].name

    for node in graph.nodes:
        inputs = [now.get(name, name) for name in node.inputs]
        if node.name in adds and inside:
            inputs = [mask(name, node.shape) for name in dict.fromkeys(inputs)]
            if len(set(node.inputs)) == 1:
                inputs *= 2
        nodes.append(replace(node, inputs=tuple(inputs)))
        if node.name in adds and not inside:
            now[node.name] = mask(node.name, node.shape)
    return Graph(nodes, graph.outputs)


@pytest.mark.parametrize("how", sorted(CHANGES))
@settings(max_examples=25)
@given(programs(), st.data())
def test_roles_stay(how, net, data):
    check(net, data.draw, how)


@settings(max_examples=25)
@given(programs(), st.data())
def test_a_mask_may_be_distributed(net, data):
    check_masks(net, data.draw)


def check(net, draw, how):
    graph = net.graph(*net.ends)
    other = CHANGES[how](graph, draw)
    show(graph, other)
    assert infer_roles(other) == infer_roles(graph)


def check_masks(net, draw):
    graph = net.graph(*net.ends)
    mask = draw(st.sampled_from([name for name, *_ in net.marks]))
    show(graph)
    note(f"masked: {mask}")
    assert infer_roles(masked(graph, {mask}, True)) == infer_roles(masked(graph, {mask}, False))


def show(*graphs):
    for graph in graphs:
        note("\n".join(f"{n.name} = {n.kind} {n.does} {n.inputs}" for n in graph.nodes))


@pytest.mark.nightly
@pytest.mark.parametrize("how", [*sorted(CHANGES), "masks"])
@settings(max_examples=400)
@given(programs(), st.data())
def test_roles_of_many_stay(how, net, data):
    if how == "masks":
        check_masks(net, data.draw)
    else:
        check(net, data.draw, how)
