"""A factor of a product is struck out only if nothing that comes of it keeps its units."""

from __future__ import annotations

import pytest

from idinit_ref.tracing import Parameter
from idinit_ref.tracing._drawing import Drawing
from idinit_ref.tracing._made import Made


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_sum_of_one_use_strikes_nothing(is_kept):
    """As the mean of squares of a norm, which is a use of the product beside others."""
    draw = Drawing([Parameter(name, (3, 3)) for name in "wuv"])
    x = draw.input("x", (2, 3))

    def dense(name, value):
        return draw.product(name, [value, draw.parameter(name[0])], ["bi", "io"], "bo", (2, 3))

    product = draw.multiply("mul", dense("w", x), dense("u", x), (2, 3))
    outputs = [draw.sum("sum", product, [1], (2,))]
    if is_kept:
        outputs.append(dense("v", product))
    (node,) = (node for node in draw.graph(outputs).nodes if node.does == "product")
    assert node.vanishes == ((0, 1) if is_kept else ())
    assert node.sums == (() if is_kept else (0, 1))


@pytest.mark.parametrize("by", ["copies", "a matrix"])
def test_units_are_followed_through_a_change_of_resolution(by):
    """The sum over the channels of a product strikes its factors, at four times its places too."""
    draw = Drawing([Parameter(name, (3, 3)) for name in "wu"])
    x = draw.input("x", (2, 5, 3))
    q, k = (
        draw.product(name, [x, draw.parameter(name)], ["bti", "io"], "bto", x.shape)
        for name in "wu"
    )
    wide = draw.multiply("mul", q, k, x.shape)
    if by == "copies":
        wide = draw.reshape("apart", wide, (2, 5, 1, 3))
        wide = draw.reshape("wide", draw.broadcast("copies", wide, (2, 5, 4, 3)), (2, 20, 3))
    else:
        wide = draw.product(
            "wide", [Made((20, 5), value=1), wide], ["st", "bto"], "bso", (2, 20, 3)
        )
    graph = draw.graph([draw.sum("sum", wide, [2], (2, 20))])
    does = {node.does: node for node in graph.nodes}
    assert "resize" in does
    assert does["product"].sums == (0, 1)
