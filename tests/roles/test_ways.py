"""The search back from the operands of an add, and where it ends early."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computations import SHAPE, Net
from idinit_ref.roles import meet
from idinit_ref.roles.adds import Adds
from idinit_ref.roles.flow import Flow
from idinit_ref.roles.ways import Frontier
from strategies import examples


def gated_sums(rng):
    """Layers that read sums of earlier results, of which some are multiples, or gated."""
    net, pick = Net(SHAPE), lambda *some: rng.choice(some)
    results, order = [net.x()], pick("old", "new", "any")
    for k in range(rng.randint(2, 8)):
        last, terms = pick(results[-1], results[-1], *results), []
        some = {"old": results, "new": results[::-1]}.get(order) or rng.sample(results, k + 1)
        for at, name in enumerate(some):
            how, own = pick("gate", "gate", "gate", "scale", ""), f"{k}.{at}"
            if how == "gate":
                gate = net.f(f"s{own}", net.w(f"g{own}", last), vanishes=pick("never", "all"))
                name = net.mul(f"m{own}", name, gate)
            elif how == "scale":
                name = net.f(f"m{own}", name, does="scale")
            terms.append(name)
        total = terms[0]
        for at, name in enumerate(terms[1:]):
            total = net.add(f"y{k}.{at}", *pick((total, name), (name, total)))
        branch = net.w(f"b{k}", net.f(f"f{k}", net.w(f"a{k}", total)))
        results.append(net.add(f"r{k}", results[-1], branch) if pick(True, False) else branch)
    return net.graph(results[-1])


def sums_again(rng):
    """A grid of sums, whose results, or layers, are summed once more, in any order."""
    net, pick, count = Net(SHAPE), lambda *some: rng.choice(some), iter(range(10_000))
    row, results = [net.x()], []
    for _ in range(rng.randint(0, 4)):
        row.append(net.w(f"w{next(count)}", row[-1]))
    for _ in range(rng.randint(1, 6)):
        new = [row[0]] if pick(True, False) else [net.w(f"w{next(count)}", row[0])]
        for above in row[1:] or row:
            reads = pick(new[-1], new[-1], new[-1], *results, *row)
            layer = net.w(f"w{next(count)}", net.f(f"f{next(count)}", reads, does="scale"))
            new.append(net.add(f"y{next(count)}", *pick((above, layer), (layer, above))))
            results += [layer, new[-1]]
        row = new
    terms = [row[-1], *rng.sample(results, rng.randint(1, len(results)))]
    total = terms[0]
    for term in pick(terms[1:], sorted(terms[1:]), terms[:0:-1]):
        if pick(True, False, False):
            term = net.f(f"f{next(count)}", term, does="scale")
        total = net.add(f"z{next(count)}", *pick((total, term), (term, total)))
    return net.graph(net.w("last", total))


@pytest.mark.parametrize("sums", [gated_sums, sums_again])
@settings(max_examples=examples(200))
@given(st.integers(0, 2**32))
def test_what_is_surely_not_ahead_is_not_found_by_the_whole_search(sums, seed):
    graph = sums(random.Random(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meet, "_LONG", 0)
        early = Adds(Flow(graph))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frontier, "is_due", False)
        whole = Adds(Flow(graph))
    assert early.branches == whole.branches
    assert early.ties == whole.ties


@settings(max_examples=examples(200))
@given(st.integers(0, 2**32))
def test_what_is_sure_is_what_the_whole_search_finds(seed):
    graph = gated_sums(random.Random(seed))
    early = Adds(Flow(graph))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Frontier, "is_due", False)
        whole = Adds(Flow(graph))
    assert early.branches == whole.branches
    assert early.ties == whole.ties
