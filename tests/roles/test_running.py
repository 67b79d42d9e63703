"""Roles are right if R1 and R2 of section 6 hold: measured by running random computations."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from computations import SHAPE, Net, draw_weights, programs, run
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
        if not sources or descendants(graph, add).isdisjoint(graph.outputs):
            continue  # no output reads the add
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


# Layers that each read the sum of all earlier results ---------------------------------------------

ORDERS = {
    "oldest first": lambda terms: terms,
    "newest first": lambda terms: terms[::-1],
    "at random": lambda terms: list(np.random.default_rng(len(terms)).permutation(terms)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("by", ["themselves", "multiples"])
def test_sums_of_all_earlier_results(order, by):
    """Whatever the order of the terms is, each sum starts as the input that all of them hold."""
    net, sums = Net(SHAPE), []
    results = [net.x()]
    for k in range(60):
        terms = [str(name) for name in ORDERS[order](results)]
        if by == "multiples" and k > 1:
            terms = [net.f(f"m{k}.{at}", name, does="scale") for at, name in enumerate(terms)]
        total = terms[0]
        for at, term in enumerate(terms[1:]):
            total = net.add(f"y{k}.{at}", total, term)
        sums.append(total)
        results.append(net.f(f"f{k}", net.w(f"w{k}", total)))
    graph = net.graph(results[-1])
    zeros = {name for name, role in explain_roles(graph).items() if role.role == "zero"}
    assert zeros == {f"W{k}" for k in range(59)}  # no sum holds what the last layer gives
    values = run(graph, zeroed(graph, draw_weights(graph, 0), zeros), 0)
    factor = 2 if by == "multiples" else 1
    for k, name in enumerate(sums):
        assert np.array_equal(values[name], values["x"] * (factor if k > 1 else 1))


@pytest.mark.parametrize("order", ORDERS)
def test_gated_sums_of_all_earlier_results(order):
    """As in MUDD: each gate is computed from its own term, so only the stream has skips."""
    net = Net(SHAPE)
    results = [net.x()]
    for k in range(20):
        terms = []
        for at, name in enumerate(ORDERS[order](results)):
            gate = net.sigmoid(f"s{k}.{at}", net.w(f"g{k}.{at}", results[-1]))
            terms.append(net.mul(f"m{k}.{at}", str(name), gate))
        total = terms[0]
        for at, term in enumerate(terms[1:]):
            total = net.add(f"y{k}.{at}", total, term)
        branch = net.w(f"b{k}", net.f(f"f{k}", net.w(f"a{k}", total)))
        results.append(net.add(f"r{k}", results[-1], branch))
    graph = net.graph(results[-1])
    found = explain_roles(graph)
    zeros = {name for name, role in found.items() if role.role == "zero"}
    assert zeros == {f"B{k}" for k in range(20)}
    assert {note.kind for note in found.notes} == {"gate"}
    values = run(graph, zeroed(graph, draw_weights(graph, 0), zeros), 0)
    assert all(np.array_equal(values[name], values["x"]) for name in results)


# Weights that are shared within a branch ----------------------------------------------------------


@st.composite
def shared(draw):
    """x + f(x), f a chain of layers that have two or three weights between them."""
    net = Net(SHAPE)
    at, names = net.x(), draw(st.sampled_from(["AB", "ABC"]))
    for name in names:  # their first uses are beside the branch
        net.w(name.lower(), at)
    for k in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(names))
        at = net.again(f"w{k}", name, net.f(f"f{k}", at))
    net.branch, net.ends = at, [net.add("y", "x", at)]
    return net


def is_right(net, zeros, seed):
    """Whether some weights make the branch vanish, and each of them to first order."""
    graph, step = net.graph(*net.ends), 1e-200
    weights = draw_weights(graph, seed)
    if not zeros or np.any(run(graph, zeroed(graph, weights, zeros), seed)[net.branch]):
        return False
    changes = [zeroed(graph, weights, zeros) | {name: 1j * step * weights[name]} for name in zeros]
    return all(np.any(run(graph, some, seed)[net.branch].imag / step) for some in changes)


def check_shared(net, seed):
    """What the rule finds is right, and it finds something wherever a choice of weights is."""
    found = {name for name, role in net.roles(*net.ends).items() if role == "zero"}
    note("\n".join(f"{n.name} = {n.kind} {n.does} {n.inputs} {n.weights}" for n in net.nodes))
    names = net.graph(*net.ends).weights
    subsets = (set(some) for k in range(1, len(names) + 1) for some in combinations(names, k))
    right = [some for some in subsets if is_right(net, some, seed)]
    note(f"zeros: {found}, right: {right}")
    assert found in right or not (found or right)


@settings(max_examples=60)
@given(shared(), SEEDS)
def test_weights_that_are_shared_within_a_branch(net, seed):
    check_shared(net, seed)


@pytest.mark.nightly
@settings(max_examples=2_000)
@given(shared(), SEEDS)
def test_many_weights_that_are_shared_within_a_branch(net, seed):
    check_shared(net, seed)


@pytest.mark.nightly
@settings(max_examples=2_000)
@given(programs(), SEEDS)
def test_identity_and_minimality_of_many(net, seed):
    check_identity(net, seed)
    check_minimality(net, seed)
