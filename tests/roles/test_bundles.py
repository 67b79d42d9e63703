"""The ends that are known without a walk, beside those that a walk finds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computations import SHAPE, Net, programs
from idinit_ref.roles import ends, explain_roles
from idinit_ref.roles.adds import Adds
from idinit_ref.roles.bundles import Bundle, Bundles
from idinit_ref.roles.dominators import ROOT
from idinit_ref.roles.flow import Flow
from strategies import examples


def sums(rng):
    """Layers and blocks that read sums of earlier results, also of some twice, in any order."""
    net, pick = Net(SHAPE), lambda *some: rng.choice(some)
    net.x()
    net._new("constant", "parameter", (), SHAPE)  # as learned positions
    results = ["x"]
    for k in range(rng.randint(2, 12)):
        terms = rng.choices(results, k=rng.randint(1, len(results)))
        if pick(True, False, False):
            terms.insert(rng.randrange(len(terms)), net.w(f"c{k}", "constant"))
        total = terms[0]
        for at, term in enumerate(terms[1:]):
            total = net.add(f"y{k}.{at}", *pick((total, term), (term, total)))
        layer = net.again if k and pick(True, False, False) else net.w
        args = (f"W{rng.randrange(k)}", total) if layer == net.again else (total,)
        if layer == net.again and args[0] not in net._shapes:
            layer, args = net.w, (total,)
        new = layer(f"w{k}", *args)
        if how := pick("map", "norm", "scale", "move", "product", ""):
            both = [new, net.w(f"v{k}", total)] if how == "product" else [new]
            new = net.mul(f"f{k}", *both) if how == "product" else net.f(f"f{k}", new, does=how)
        both = pick((results[-1], new), (new, results[-1]))
        results.append(net.add(f"r{k}", *both) if pick(True, False) else new)
    total = results[-1]
    for at, term in enumerate(results[-2::-1] if pick(True, False) else results[:-1]):
        total = net.add(f"z{at}", total, term)
    return net.graph(total)


def branches(graph):
    """All branches of a graph, with their ends listed."""
    found = Adds(Flow(graph))
    listed = [b.ends._replace(weights=tuple(b.ends.weights)) for b in found.branches]
    pairs = zip(found.branches, listed, strict=True)
    return [branch._replace(ends=own) for branch, own in pairs], found.ties


def check(graph):
    known = branches(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundles, "after", lambda self, signal, sources: None)
        patch.setattr(Bundles, "held", lambda self, signal, sources: ROOT)
        assert branches(graph) == known
        listed = explain_roles(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ends, "_FEW", 0)
        counted = explain_roles(graph)
    assert counted.notes == listed.notes
    for name, found in listed.items():
        assert counted[name].role == found.role
        assert counted[name].why[:2] == found.why[:2]
        assert len(counted[name].why) + counted[name].more == len(found.why)


@settings(max_examples=examples(200))
@given(st.integers(0, 2**32))
def test_sums_in_any_order_end_where_a_walk_ends(seed):
    check(sums(random.Random(seed)))


@settings(max_examples=examples(100))
@given(programs())
def test_programs_end_where_a_walk_ends(net):
    check(net.graph(*net.ends))


def test_of_many_sums_that_end_in_a_weight_two_are_named():
    """Each layer sums all earlier results, the newest first."""
    net, results, count = Net(), ["x"], 24
    net.x()
    for k in range(count + 1):
        total = results[-1]
        for at, result in enumerate(results[-2::-1]):
            total = net.add(f"y{k}.{at}", total, result)
        results.append(net.f(f"f{k}", net.w(f"w{k}", total)))
    found = explain_roles(net.graph(results[-1]))
    for k in range(count):  # in each later sum, layer k is added to all results before it
        own = found[f"W{k}"]
        assert len(own.why) + own.more == (count - k) * (k + 1)
    assert found["W20"].why[:2] == (
        "last of the branch f20, which y21.0 adds to f19",
        "last of the branch y21.0, which y21.1 adds to f18",
    )
    assert found["W20"].more > 0


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), min_size=1, max_size=12))
def test_a_bundle_is_the_set_of_its_nodes(steps):
    made, sets = [Bundle(7, 1)], [{7}]
    for node, other in steps:
        at = other % len(made)
        made.append(made[-1].joined(Bundle(node, 0)).joined(made[at]))
        sets.append(sets[-1] | {node} | sets[at])
    for bundle, own in zip(made, sets, strict=True):
        assert (list(bundle), len(bundle), bundle.low) == (sorted(own), len(own), min(own))
        assert all((node in bundle) == (node in own) for node in range(301))
        assert bundle.most >= len(bundle)
