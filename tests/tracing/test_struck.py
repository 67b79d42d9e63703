"""A factor of a product is struck out only if nothing that comes of it keeps its units."""

from __future__ import annotations

import pytest

from idinit_ref.tracing import Parameter
from idinit_ref.tracing._drawing import Drawing


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
