"""The reference never fails its own oracle: any dtype, any size from 1 x 1 to 512 x 512."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

import idinit_ref as ir
from idinit_ref import testing
from idinit_ref.core.dtypes import FORMATS
from idinit_ref.errors import RoundingError
from idinit_ref.testing import PROPERTIES, check_rank
from idinit_ref.testing._property import ALL

SIDES = (1, 2, 7, 64, 511, 512)
SIZES = list(itertools.product(SIDES, SIDES))
OPTIONS = [
    {"role": "transit", "wide": "truncate"},
    {"role": "transit", "wide": "fold_rms", "gain": -0.75},
    {"role": "transit", "wide": "fold_mean"},
    {"role": "zero", "eps": 0.5},
    {"role": "zero", "eps": 0.25, "form": "shifted"},
    {"role": "zero", "form": "shifted"},  # subnormal in float16, where it is rounded coarsely
]
KERNELS = [  # (outputs, inputs, 3, 3) and phases of stride 2, in all orders that have them
    *({"taps": taps} for taps in ("outward", "diagonal", "channel_major", "center")),
    *({"stride": stride} for stride in ((2, 2), (-2, 1), (1, 4))),
]
DTYPES = [n for n in FORMATS if n.startswith(("float8", "float16", "bfloat", "float32", "float64"))]
SMALL = [(1, 1), (1, 7), (3, 7), (7, 1), (7, 7), (64, 7)]


def named(value):
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(str(v) for v in value.values())
    return str(value)


def numpy_dtype(name):
    return np.dtype(getattr(importlib.import_module("ml_dtypes"), name, name))


def holds(plan, dtype):
    """Ask all checks that say something of a weight, and return what they said against it."""
    try:
        weight = plan.build(dtype=numpy_dtype(dtype))
    except RoundingError:  # 1/512 in float8_e3m4: there is no such weight
        return {}
    broken = {}
    for name in PROPERTIES:
        each = ALL[name]
        if name in ("underflow", "device", "groups", "composition", "determinism"):
            continue  # they ask for other weights, or for this one twice
        if plan.role in each.roles and each.fit(plan) == plan:
            try:
                getattr(testing, f"check_{name}")(lambda s, gain=1.0, eps=1e-6: weight, plan)
            except AssertionError as problem:
                broken[name] = str(problem).splitlines()[0]
    return broken


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_ones_pass_all_checks(dtype, options):
    for size in SMALL:
        assert holds(ir.plan(size, **options), dtype) == {}, size


@pytest.mark.parametrize("options", KERNELS, ids=named)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float8_e5m2"])
def test_kernels_pass_all_checks(dtype, options):
    for role, outputs in itertools.product(({"role": "zero", "eps": 0.5}, {}), (2, 9)):
        plan = ir.plan((outputs, 2, 3, 3), **role, **options)
        assert holds(plan, dtype) == {}, plan


@pytest.mark.nightly
@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("size", SIZES, ids=named)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_dtype_and_size_passes_all_checks(dtype, size, options):
    assert holds(ir.plan(size, **options), dtype) == {}


@pytest.mark.parametrize("dtype", ["float8_e5m2", "float8_e4m3fn", "bfloat16", "float16"])
@pytest.mark.parametrize("xp", ["numpy", "torch"])
@pytest.mark.parametrize("size", [(4, 1), (16, 16), (512, 512)], ids=named)
def test_short_dtypes_have_the_rank_of_their_entries(size, xp, dtype):
    """A tolerance of the dtype would call the identity of 16 x 16 in float8 rank 0."""
    to = numpy_dtype(dtype) if xp == "numpy" else getattr(importlib.import_module(xp), dtype)
    check_rank(lambda shape: ir.idi(shape, xp=importlib.import_module(xp), dtype=to), ir.plan(size))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize(
    ("size", "role", "rank"),
    [((8, 8), "transit", 8), ((8, 8), "zero", 7), ((3, 9), "transit", 3)],
    ids=named,
)
def test_a_rank_that_is_one_too_small_is_found(size, role, rank, dtype):
    plan = ir.plan(size, role, **({"eps": 0.5} if role == "zero" else {}))
    weight = plan.build().astype(numpy_dtype(dtype))
    weight[1 : 3 if role == "zero" else 2] = weight[0]  # one of IDIZ's own rows follows anyway
    with pytest.raises(AssertionError, match=f"the rank = {rank - 1}, but should be {rank} "):
        check_rank(lambda shape, eps=1e-6: weight, plan)


def test_rounding_noise_is_no_rank():
    """Of entries of several sizes, what is left of a 0 by their own rounding does not count."""
    plan = ir.plan((8, 8), "zero", eps=0.5)
    noise = 1 + 1e-9 * np.random.default_rng(0).standard_normal((8, 8))
    assert np.linalg.matrix_rank(plan.build() * noise) == 8
    check_rank(lambda shape, eps=1e-6: plan.build() * noise, plan)
