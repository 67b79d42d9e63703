"""Long runs of the same truths: `pytest -m nightly`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from strategies import parts, weights

pytestmark = pytest.mark.nightly


@pytest.mark.parametrize("wide", ["truncate", "fold_rms", "fold_mean"])
def test_every_matrix_up_to_40_by_40(wide):
    for m in range(41):
        for n in range(41):
            assert np.array_equal(
                ir.idi((m, n), gain=-0.75, wide=wide),
                np.reshape(by_hand.idi_matrix(m, n, -0.75, wide), (m, n)),
            )
            assert np.array_equal(
                ir.idiz((m, n), eps=0.5), np.reshape(by_hand.idiz_matrix(m, n, 0.5), (m, n))
            )


@settings(max_examples=4000)
@given(st.data())
def test_any_weight_in_any_part(data):
    shape, role, options = data.draw(weights(longest=14))
    plan = ir.plan(shape, role, **options)
    expected = by_hand.weight(shape, role, **options)
    index = data.draw(parts(shape))
    assert np.array_equal(plan.build(), expected)
    assert np.array_equal(plan.block(index), expected[index])
    positions, values = plan.entries(index)
    assert np.array_equal(positions, np.flatnonzero(expected[index]))
    assert np.array_equal(values, expected[index].reshape(-1)[positions])
    assert plan.nnz == np.count_nonzero(expected)


def test_two_gibibytes():
    """Positions past 2**31 are not lost."""
    plan = ir.plan((70_000, 32_768), "zero")
    array = plan.build(dtype="float16")
    last = array[-1]
    assert np.flatnonzero(last).tolist() == [69_999 % 32_768, 70_000 % 32_768]
    assert np.count_nonzero(array[::1000]) == 2 * 70
