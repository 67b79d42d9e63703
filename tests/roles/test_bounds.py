"""What surely is, or is not, reached back from a node, beside a search."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from computations import programs
from idinit_ref.roles.bounds import Bounds, Reads, free_of, orders
from idinit_ref.roles.flow import Flow
from strategies import examples


def before(edges, node):
    """All nodes to which paths lead back, without the node."""
    found, stack = set(), [node]
    while stack:
        new = set(edges[stack.pop()]) - found
        found |= new
        stack += new
    return found


@settings(max_examples=examples(100))
@given(st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=40))
def test_a_path_that_is_known_exists(drawn):
    edges = [sorted({to % at for to in some}) if at else [] for at, some in enumerate(drawn)]
    reads, count = Reads(edges), 0
    for node in range(len(edges)):
        reached = before(edges, node) | {node}
        for other in range(len(edges)):
            if reads.has(node, other):
                count += 1
                assert other in reached
    assert count >= len(edges) + sum(map(bool, edges))  # itself, and one of what it reads


def test_a_term_of_a_chain_of_sums_is_known():
    """Each layer reads a multiple of the sum before it, and is added to that."""
    edges, total = [[]], 0
    layers = []
    for _ in range(20):
        edges += [[total], []]  # a multiple, and what a layer makes of it: no path over weights
        layers.append(len(edges) - 1)
        edges.append([layers[-1], total])
        total = len(edges) - 1
    reads = Reads(edges)
    assert all(reads.has(total, layer) for layer in layers)
    assert not reads.has(layers[-1], layers[0])


@settings(max_examples=examples(100))
@given(programs())
def test_bounds_hold_for_all_paths(net):
    flow = Flow(net.graph(*net.ends))
    every = range(len(flow.nodes))
    free = [list(free_of(flow, at)) for at in every]
    joined = {to for at in every for to in free[at] if to not in flow.inputs[at]}
    for rank in (list(every), *orders(flow)):
        assert sorted(rank) == list(every)
        assert all(rank[to] < rank[at] for at in every for to in flow.inputs[at])
        bounds = Bounds(flow, rank)
        for node in every:
            shared = [
                rank[at]
                for at in before(free, node) | {node}
                if len(flow.users[at]) > 1 or at in joined
            ]
            assert bounds.least[node] == min(shared, default=len(every))
            weights = [
                at for at in before(flow.inputs, node) | {node} if flow.nodes[at].kind == "weight"
            ]
            over = [rank[to] for at in weights for to in before(flow.inputs, at)]
            assert bounds.most[node] == max(over, default=-1)
