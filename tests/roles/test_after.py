"""What comes from what, beside a search of all ancestors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from idinit_ref.roles.after import After, Paths
from idinit_ref.roles.dominators import dominators


@st.composite
def inputs(draw):
    """The predecessors of every node, each of one to three; a few nodes have none."""
    found = [[]]
    for number in range(1, draw(st.integers(2, 30))):
        near = st.integers(max(number - 4, 0), number - 1)
        before = draw(st.lists(near | st.integers(0, number - 1), max_size=3))
        found.append(sorted(set(before)))
    return found


def ancestors(graph):
    """All ancestors of every node, and the node."""
    found = []
    for number, before in enumerate(graph):
        found.append({number}.union(*(found[to] for to in before)))
    return found


@given(inputs(), st.data())
def test_whether_a_node_comes_from_some_sources(graph, data):
    every = st.integers(0, len(graph) - 1)
    sources = data.draw(st.sets(every, min_size=1, max_size=4))
    after = After(graph, dominators(graph, range(len(graph))), Paths(graph), sources)
    above = ancestors(graph)
    for node in data.draw(st.lists(every, max_size=60)):
        assert after(node) == bool(above[node] & sources)


@given(inputs())
def test_nodes_on_one_path_come_from_each_other(graph):
    paths, above = Paths(graph), ancestors(graph)
    for node in range(len(graph)):
        found = {other for other in range(len(graph)) if paths.is_above(other, node)}
        assert node in found
        assert found <= above[node]
