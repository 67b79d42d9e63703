"""Roles are right if R1 and R2 of section 6 hold: measured by running random computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from computations import draw_weights, programs, run
from idinit_ref.roles.search import explain_roles


def descendants(graph, name):
    found = {name}
    for node in graph.nodes:
        if found & set(node.inputs):
            found.add(node.name)
    return found - {name}


def free_sources(graph, skip, branch):
    """The nearest nodes that the skip reaches over no weight, and the branch over at least one."""
    nodes = graph.by_name

    def back(name, over, seen):
        if (name, over) not in seen:
            seen.add((name, over))
            for to in nodes[name].inputs:
                back(to, over or nodes[name].kind == "weight", seen)
        return seen

    free = {name for name, over in back(skip, False, set()) if not over}
    found = free & {name for name, over in back(branch, False, set()) if over}
    return {name for name in found if not found & descendants(graph, name)}


def zeroed(graph, weights, names):
    return {name: w * 0 if name in names else w for name, w in weights.items()}


def check_identity(net, seed):
    """R1: where zeroing all weights after the source leaves the skip, the zero weights do too."""
    graph = net.graph(*net.ends)
    found = explain_roles(graph)
    zeros = {name for name, role in found.items() if role.role == "zero"}
    note(f"zeros: {zeros}")
    note("\n".join(f"{n.name} = {n.kind} {n.does} {n.inputs}" for n in graph.nodes))
    weights = draw_weights(graph, seed)
    after = run(graph, zeroed(graph, weights, zeros), seed)
    for add, skip, branch in net.marks:
        sources = free_sources(graph, skip, branch)
        if not sources:
            continue
        late = set().union(*(descendants(graph, name) for name in sources))
        every = {name for node in graph.nodes if node.name in late for name in node.weights}
        wanted = run(graph, zeroed(graph, weights, every), seed)
        if np.any(wanted[branch]) or np.any(wanted[skip] != after[skip]):
            continue
        assert not np.any(after[branch]), f"{add}: {branch} is not zero, sources {sources}"
    for role in found.values():  # whatever is said to end a branch does so
        for text in role.why if role.role == "zero" else ():
            if text.startswith("last"):
                branch = text.split("branch ")[1].split(",")[0]
                assert not np.any(after[branch]), text


def check_minimality(net, seed):
    """R2: each zero weight alone changes its add in first order, by a complex step."""
    graph = net.graph(*net.ends)
    found = explain_roles(graph)
    zeros = {name for name, role in found.items() if role.role == "zero"}
    note(f"zeros: {zeros}")
    note("\n".join(f"{n.name} = {n.kind} {n.does} {n.inputs}" for n in graph.nodes))
    weights = draw_weights(graph, seed)
    step = 1e-200
    for name in zeros:
        for text in found[name].why:
            rest = zeros if "depth" not in text else ()  # nested zeros are of a higher order
            some = zeroed(graph, weights, rest) | {name: 1j * step * weights[name]}
            add = text.split("which ")[1].split(" adds")[0]
            assert np.any(run(graph, some, seed)[add].imag / step), f"{name}: {text}"


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(programs(), SEEDS)
def test_identity(net, seed):
    check_identity(net, seed)


@settings(max_examples=40)
@given(programs(), SEEDS)
def test_minimality(net, seed):
    check_minimality(net, seed)


@pytest.mark.nightly
@settings(max_examples=2_000)
@given(programs(), SEEDS)
def test_identity_and_minimality_of_many(net, seed):
    check_identity(net, seed)
    check_minimality(net, seed)
