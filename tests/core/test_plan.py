"""A plan is frozen, hashable, pure integers, and cheap at any size."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import tracemalloc

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from cost import calls
from idinit_ref.core.kernel import identity_tap
from idinit_ref.core.lattice import lines, nnz
from idinit_ref.core.layout import merge_axes, split_axes
from idinit_ref.core.pattern import idi_terms, idiz_terms
from idinit_ref.core.weights import either
from strategies import weights

MILLION = 10**6


def test_equal_options_make_equal_plans():
    one = ir.plan([4, 3], gain=2)
    two = ir.plan((np.int64(4), 3), gain=np.float32(2), layout="OI")
    assert one == two
    assert hash(one) == hash(two)
    assert {one: 1}[two] == 1
    assert one != ir.plan((4, 3))
    assert one.shape == (4, 3)
    assert (one.role, one.layout, one.nnz) == ("transit", "OI", 4)


def test_what_is_left_out_is_as_the_specification_says():
    for role in ("transit", "zero"):
        assert ir.plan((3, 4), role) == ir.Plan((3, 4), role) == either((3, 4), role)
        assert np.array_equal(ir.plan((3, 4), role).build(), by_hand.weight((3, 4), role))
    assert np.array_equal(ir.idi((3, 4)), by_hand.weight((3, 4)))
    assert np.array_equal(ir.idiz((3, 4)), by_hand.weight((3, 4), "zero"))
    noisy = by_hand.weight((3, 4), loosen=0.5)
    for plan in (ir.plan, ir.Plan, either):
        role = ("transit",) if plan is either else ()
        assert np.array_equal(plan((3, 4), *role, loosen=0.5).build(), noisy)
    assert np.array_equal(ir.idi((3, 4), loosen=0.5), noisy)


def test_a_plan_is_frozen_and_travels():
    plan = ir.plan((4, 3, 3, 3), "zero", taps="center")
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.gain = 2.0
    for other in (pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert other == plan
        assert np.array_equal(other.build(), plan.build())
    other = dataclasses.replace(plan, eps=0.5)
    assert np.array_equal(other.build(), 0.5e6 * plan.build())


def test_repr_shows_the_options():
    assert "shape=(4, 3), role='transit', gain=2.0" in repr(ir.plan((4, 3), gain=2))


@pytest.mark.parametrize(("role", "nnz"), [("transit", MILLION), ("zero", 2 * MILLION)])
def test_a_million_squared(role, nnz):
    """Neither the plan, nor its count, nor a block of it costs what the whole would."""
    tracemalloc.start()
    try:
        plan = ir.plan((MILLION, MILLION), role)
        assert plan.nnz == nnz
        corner = plan.block((slice(MILLION - 3, MILLION), slice(0, 3)))
        middle = plan.block((slice(5, 7), slice(5, 8)))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    if role == "transit":
        assert not corner.any()
        assert np.array_equal(middle, [[1, 0, 0], [0, 1, 0]])
    else:
        assert np.array_equal(corner[-1], [-1e-6, 0, 0])
        assert np.array_equal(middle[0], [1e-6, -1e-6, 0])


def test_the_cost_of_a_plan_does_not_grow_with_its_size():
    small = calls(lambda: ir.Plan((10, 10)))
    assert calls(lambda: ir.Plan((MILLION, MILLION))) == small
    assert small < 200


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((MILLION, MILLION), {}),
        ((MILLION, 7), {}),
        ((7, MILLION), {"wide": "fold_rms"}),
        ((3, 3, 1000, MILLION), {"layout": "HWIO"}),
        ((MILLION, 1, 3, 3), {"groups": MILLION}),
    ],
    ids=str,
)
def test_the_cost_of_a_block_is_that_of_the_block(shape, options):
    plan = ir.plan(shape, **options)
    index = tuple(slice(size // 2, size // 2 + 3) for size in shape)
    plan.block(index)
    assert calls(lambda: plan.block(index)) < 3000


def test_few_strided_writes_fill_a_large_weight():
    """Never one for each entry: at most about the square root of their number."""
    for shape, options in [
        ((4096, 4096), {}),
        ((65536, 16), {}),
        ((16, 65536), {"wide": "fold_mean"}),
        ((4096, 1, 3, 3), {"groups": 4096, "taps": "center"}),
        ((3, 3, 512, 512), {"layout": "HWIO"}),
        ((4096, 64), {"blocks": (2048, 1024, 1024)}),
    ]:
        plan = ir.plan(shape, **options)
        assert calls(lambda plan=plan: plan.build()) < 60 * math.isqrt(plan.nnz) + 500


@given(weights(loosened=False).filter(lambda weight: isinstance(weight[1], str)))
def test_matrices_say_what_the_weight_is_made_of(weight):
    shape, role, options = weight
    plan = ir.plan(shape, role, **options)
    make = by_hand.shifted_matrix if options.get("form") == "shifted" else by_hand.idiz_matrix
    per_matrix = (
        np.count_nonzero(by_hand.idi_matrix(m, n, 1.0, options.get("wide", "truncate")))
        if role == "transit"
        else np.count_nonzero(make(m, n, 1.0))
        for m, n, _ in plan.matrices
    )
    copies = [count for _, _, count in plan.matrices]
    assert plan.nnz == sum(a * b for a, b in zip(per_matrix, copies, strict=True))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((0, 3), "OI"), ((3, 0), "OI"), ((0, 0), "IO"), ((4, 3, 0, 2), "OIHW"), ((0, 3, 3), "EOI")],
)
@pytest.mark.parametrize("taps", ["channel_major", "center"])
def test_empty_weights(shape, layout, taps):
    for role in ("transit", "zero"):
        plan = ir.plan(shape, role, layout=layout, taps=taps)
        assert plan.build().shape == shape
        assert plan.nnz == 0
        assert plan.entries()[0].shape == (0,)


def test_the_largest_seed():
    seed = 2**63 - 1
    assert np.array_equal(
        ir.idi((3, 4), loosen=0.5, seed=seed), by_hand.weight((3, 4), loosen=0.5, seed=seed)
    )


@pytest.mark.parametrize("number", [63, 64, 65, 66])
def test_weights_of_few_runs_and_of_many(number):
    """Few are remembered, and many are not; twice, so that what is remembered is used."""
    plan = ir.plan((number, 3), blocks=(1,) * number)
    for _ in range(2):
        assert np.array_equal(plan.build(), [[1.0, 0.0, 0.0]] * number)


def test_an_index_may_say_its_step():
    plan = ir.plan((5, 3))
    assert np.array_equal(plan.block((slice(1, 4, 1), slice(None))), plan.build()[1:4])


def test_axes_of_one_letter_join_and_part():
    rng = np.random.default_rng(0)
    for shape, letters in [((2, 3, 4, 5), "IIOO"), ((2, 3, 4, 5), "OIOE"), ((2, 3, 4), "IOI")]:
        array = rng.standard_normal(shape)
        merged, once = merge_axes(shape, letters)
        assert int(np.prod(merged)) == array.size
        flat = np.empty(merged)
        for at in np.ndindex(*shape):
            place = []
            for letter in once:
                axes = [a for a, c in enumerate(letters) if c == letter]
                place.append(np.ravel_multi_index([at[a] for a in axes], [shape[a] for a in axes]))
            flat[tuple(place)] = array[at]
        assert np.array_equal(split_axes(xp, flat, shape, letters), array)


def test_identity_tap():
    assert identity_tap((1, 2), (1, 2), (3, 3)) == (1, 1)
    assert identity_tap((1,), (2,), (3,)) == (0,)  # between two taps: the first
    assert identity_tap((3,), (1,), (3,)) == (2,)  # beyond the kernel: its last tap
    assert identity_tap((-1,), (1,), (3,)) == (0,)


def test_either_takes_the_options_of_both_roles_and_validates_all():
    both = {"gain": 2.0, "eps": 0.5, "wide": "fold_rms", "loosen": 0.1, "seed": 3}
    kernel = {"taps": "spatial_major", "tap": (1,), "stride": (2,)}
    assert either((2, 4, 3), "zero", **kernel) == ir.plan(
        (2, 4, 3), "zero", taps="spatial_major", stride=(2,)
    )
    assert either((2, 4), "zero", 5, **both) == ir.plan((2, 4), "zero", eps=0.5)
    transit = {name: both[name] for name in both if name != "eps"} | {"seed": 8}
    assert either((2, 4), "transit", 5, **both) == ir.plan((2, 4), **transit)
    assert either((2, 4), "transit", 5, seed=3).seed == 3
    assert either((4, 2), "zero", layout="IO").layout == "IO"
    for role in ("transit", "zero"):
        for wrong in ({"gain": 0}, {"eps": float("nan")}, {"seed": "a"}, {"wide": "no"}):
            with pytest.raises(ir.errors.IDInitError, match=next(iter(wrong))):
                either((2, 4), role, 1, **wrong)
    with pytest.raises(ir.errors.OptionError, match="role"):
        either((2, 4), "one")


def test_an_empty_matrix_has_no_terms():
    for m, n in [(0, 3), (3, 0), (0, 0)]:
        for wide in ("truncate", "fold_rms", "fold_mean"):
            assert idi_terms(m, n, 1.0, wide) == ()
        assert idiz_terms(m, n, 1e-6) == ()


def test_counting_costs_nothing_at_any_size():
    huge = 10**18
    plan = ir.plan((huge, huge + 10**9), "zero")
    assert plan.nnz == 2 * huge
    assert calls(lambda: plan.nnz) < 200
    assert ir.plan((2**62, 3), "zero").nnz == 2**63
    assert ir.plan((3, 2**62), wide="fold_rms").nnz == 2**62


@given(st.integers(1, 30), st.integers(1, 30))
def test_nnz_counts_the_lines(m, n):
    terms = [*idi_terms(m, n, 1.0), *idi_terms(m, n, 1.0, "fold_mean"), *idiz_terms(m, n, 1.0)]
    for term in terms:
        found = lines(term, term.rows, 0, 1, term.columns.stop)
        assert nnz(term) == sum(line.length for line in found)


@pytest.mark.parametrize("strides", [None, "rising"])
def test_a_part_is_written_as_the_whole_has_it(strides):
    for shape, role, options in (
        ((7, 5), "zero", {}),
        ((4, 9), "transit", {"loosen": 0.5, "seed": 2}),
        ((6, 4, 3, 2), "transit", {"groups": 2, "gain": 0.5}),
        ((2, 6, 3), "zero", {"layout": "EIO", "blocks": (1, 2)}),
        ((9, 5), ("zero", "transit", "zero"), {"blocks": (4, 2, 3), "loosen": 0.5}),
    ):
        plan = ir.plan(shape, role, **options)
        whole = by_hand.weight(shape, role, **options)
        index = tuple(slice(size // 3, size) for size in shape)
        part = whole[index]
        memory = np.zeros(part.size)
        if strides is None:
            plan.write(memory, index=index)
            assert np.array_equal(memory.reshape(part.shape), part)
        else:
            rising = tuple(int(np.prod(part.shape[:axis])) for axis in range(part.ndim))
            plan.write(memory, rising, index)
            assert np.array_equal(memory.reshape(part.shape[::-1]).T, part)
    with pytest.raises(ir.errors.IndexingError, match="a tuple of 2 slices"):
        ir.plan((2, 2)).write(np.zeros(4), index=(slice(0, 1),))
    with pytest.raises(ir.errors.ShapeError, match="needs one axis of 2 places"):
        ir.plan((2, 2)).write(np.zeros(1), index=(slice(0, 1), slice(None)))


def test_what_is_remembered_is_asked_for_in_the_right_types():
    """1, 1.0 and True are equal, and only one of them is a size."""
    for _ in range(2):
        assert ir.plan((1, 2), blocks=(1,)).build().tolist() == [[1.0, 0.0]]
        for shape, options in (
            ((True, 2), {}),
            ((1.0, 2), {}),
            ((1, 2), {"groups": True}),
            ((1, 2), {"groups": 1.0}),
            ((1, 2), {"gain": True}),
            ((1, 2), {"gain": [1.0]}),
            ((1, 2), {"blocks": (True,)}),
            ((1, 2), {"transposed": 0}),
        ):
            with pytest.raises(ir.errors.OptionTypeError):
                ir.plan(shape, **options)
        memory = np.zeros(2)
        ir.plan((1, 2)).write(memory, (2, 1))
        for strides in ((2.0, 1), (2, True)):
            with pytest.raises(ir.errors.OptionTypeError, match="strides = "):
                ir.plan((1, 2)).write(memory, strides)
