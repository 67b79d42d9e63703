"""What the strategies draw, and what they shrink to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import idinit_ref as ir
from idinit_ref.errors import OptionError
from idinit_ref.testing import conv_specs, dtypes, layouts, plans, weight_shapes


def smallest(strategy, condition=lambda _: True, **options):
    options = settings(max_examples=2000, database=None, **options)
    return find(strategy, condition, settings=options)


def test_what_they_shrink_to():
    assert smallest(weight_shapes()) == (1, 1)
    assert smallest(weight_shapes(smallest=0)) == (0, 0)
    assert smallest(weight_shapes(layout="HWIO")) == (1, 1, 1, 1)
    assert smallest(layouts()) == "OI"
    assert smallest(layouts(dims=2)) == "OIHW"
    assert smallest(layouts(dims=2, batch="E")) == "OIHWE"
    assert smallest(dtypes(np)) == np.float64


@pytest.mark.nightly  # many draws of each
def test_what_kernels_and_a_role_shrink_to():
    assert smallest(plans()) == ir.plan((1, 1))
    assert smallest(plans(role="zero")) == ir.plan((1, 1), "zero")
    assert smallest(conv_specs())["shape"] == (1, 1, 1)
    assert smallest(conv_specs(role="transit"))["shape"] == (1, 1, 1)


def test_what_fails_for_no_square_one_shrinks_to_neighbours():
    assert smallest(weight_shapes(), lambda s: s[0] != s[1]) in ((1, 2), (2, 1))
    assert smallest(weight_shapes(), lambda s: s[0] > s[1]) == (2, 1)
    assert smallest(weight_shapes(), lambda s: min(s) >= 3) == (3, 3)
    assert smallest(plans(), lambda p: p.nnz > 3).shape in ((2, 2), (4, 1))


@pytest.mark.parametrize(
    "condition",
    [
        lambda p: p.groups == 3 and p.transposed,
        lambda p: p.blocks is not None and len(set(p.blocks)) > 1,
        lambda p: len(p.shape) == 7,
        lambda p: p.wide == "fold_rms" and p.axes.columns > p.axes.outputs,
        lambda p: p.taps == "spatial_major" and p.axes.channels > 1,
        lambda p: p.tap is not None and any(p.tap),
        lambda p: p.loosen > 0 and p.seed > 2**40,
        lambda p: p.loosen_at == "entries",
        lambda p: p.form == "shifted" and p.axes.columns > 2 * p.axes.outputs > 0,
        lambda p: p.taps == "diagonal" and p.tap is not None and p.stride is not None,
        pytest.param(  # after many draws
            lambda p: len(p.axes.phases) > 2 and p.taps == "outward",
            marks=pytest.mark.nightly,
            id="phases",
        ),
        lambda p: p.stride is not None and min(p.stride) < 0,
        lambda p: p.role == "zero" and p.layout[0] == "I" and p.layout[-1] == "O",
    ],
)
@pytest.mark.cases(4)
def test_all_of_the_specification_is_drawn(condition):
    assert condition(smallest(plans(), condition, phases=[Phase.generate]))


@given(plans(groups=st.integers(2, 3), layout="HWIO", taps="center", tap=None, blocks=None))
def test_options_are_fixed_or_drawn_as_told(plan):
    assert plan.groups in (2, 3)
    assert (plan.layout, plan.taps, plan.tap, plan.blocks) == ("HWIO", "center", None, None)


@given(conv_specs())
def test_conv_specs_are_keywords_for_plan(spec):
    assert ir.plan(**spec).axes.kernel


@given(dtypes("torch"))
def test_dtypes_hold_a_weight(dtype):
    import torch

    assert ir.idi((2, 2), xp=torch, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(
    "strategy",
    [
        weight_shapes(layout="OX"),
        weight_shapes(layout=3),
        weight_shapes(smallest=5, largest=3),
        layouts(dims=7),
        layouts(batch="O"),
        conv_specs(layout="OI"),
        plans(layout="OX"),
    ],
)
def test_bounds_and_letters_are_checked(strategy):
    with pytest.raises(OptionError, match="it should have"):
        smallest(strategy)


@given(conv_specs(role="transit"))
def test_conv_specs_take_a_role(spec):
    assert ir.plan(**spec).axes.kernel


def test_an_unknown_option():
    with pytest.raises(OptionError, match="plans draws no such option"):
        smallest(plans(grouping=2))
