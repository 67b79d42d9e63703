"""One rounding into every dtype, to nearest even; nothing is lost to zero or infinity."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from idinit_ref.core.dtypes import FORMATS, format_of, round_array, round_value

REAL = [name for name in FORMATS if name.startswith(("float", "bfloat"))]
NARROW = [name for name in REAL if name not in ("float64", "float96", "float128")]
TORCH_FP8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


def torch():
    """PyTorch, for the cases that need it."""
    return importlib.import_module("torch")


def ml_dtypes():
    """The narrow dtypes of NumPy, for the cases that need them."""
    return importlib.import_module("ml_dtypes")


def numpy_dtype(name):
    """NumPy's dtype; ml_dtypes is needed for those that NumPy does not have itself."""
    return np.dtype(name if hasattr(np, name) else getattr(ml_dtypes(), name))


@pytest.mark.parametrize("name", NARROW)
def test_the_table_of_formats(name):
    """Against ml_dtypes, which keeps its own."""
    info = ml_dtypes().finfo(numpy_dtype(name))
    form = FORMATS[name]
    assert form.largest == float(info.max)
    assert form.smallest == float(info.smallest_subnormal)
    assert 2.0**form.emin == float(info.smallest_normal)
    assert 2.0 ** (1 - form.precision) == float(info.eps)


@pytest.mark.parametrize("name", TORCH_FP8)
def test_the_table_of_formats_against_every_value_that_torch_holds(name):
    """All 256 of them. (torch.finfo gives a wrong eps for float8_e5m2fnuz.)"""
    form = FORMATS[name]
    held = torch().arange(256, dtype=torch().uint8).view(getattr(torch(), name)).double().numpy()
    held = np.unique(held[np.isfinite(held)])
    assert held.max() == form.largest
    assert held[held > 0].min() == form.smallest
    assert np.array_equal(round_array(held, form, "gain"), held)
    middles = (held[1:] + held[:-1]) / 2
    rounded = round_array(middles, form, "gain")
    assert np.all((rounded == held[1:]) | (rounded == held[:-1]))


@given(st.floats(-1e4, 1e4), st.sampled_from(NARROW))
def test_rounding_is_to_nearest_even(value, name):
    form = FORMATS[name]
    expected = by_hand.nearest(value, form.precision, form.emin)
    if abs(expected) > form.largest:
        with pytest.raises(ir.errors.RoundingError, match="largest"):
            round_array(np.asarray([value]), form, "gain")
    else:
        assert round_array(np.asarray([value]), form, "gain")[0] == expected


@given(st.floats(width=16, allow_nan=False, allow_infinity=False))
def test_what_a_dtype_holds_stays_as_it_is(value):
    assert round_array(np.asarray([value]), FORMATS["float16"], "gain")[0] == value


def test_bfloat16_is_rounded_once():
    """Just above the middle of two neighbours: by way of float32 it falls to the wrong one."""
    value = 1 + 2.0**-8 + 2.0**-30
    twice = float(np.float64(value).astype(ml_dtypes().bfloat16))
    assert twice == 1.0  # what NumPy does; PyTorch and JAX do the same
    for xp, dtype in ((np, ml_dtypes().bfloat16), (torch(), torch().bfloat16)):
        assert float(ir.idi((1, 1), gain=value, xp=xp, dtype=dtype)[0, 0]) == 1 + 2.0**-7


def test_bfloat16_is_rounded_once_in_jax():
    import jax
    import jax.numpy as jnp

    make = lambda: ir.idi((1, 1), gain=1 + 2.0**-8 + 2.0**-30, xp=jnp, dtype=jnp.bfloat16)  # noqa: E731
    assert float(make()[0, 0]) == float(jax.jit(make)()[0, 0]) == 1 + 2.0**-7


def test_loosened_entries_are_rounded_once():
    plan = ir.plan((24, 24), loosen=0.1, seed=3)
    form = FORMATS["bfloat16"]
    exact = by_hand.weight((24, 24), loosen=0.1, seed=3)
    expected = [by_hand.nearest(v, form.precision, form.emin) for v in exact.reshape(-1)]
    for xp, dtype in ((np, ml_dtypes().bfloat16), (torch(), torch().bfloat16)):
        built = plan.build(xp, dtype)
        values = built.double().numpy() if xp is torch() else built.astype(np.float64)
        assert values.reshape(-1).tolist() == expected


@pytest.mark.parametrize("name", [n for n in NARROW if "float8" in n or "float4" in n])
def test_the_default_eps_is_lost_in_every_fp8(name):
    plan = ir.plan((3, 3), "zero")
    with pytest.raises(ir.errors.RoundingError, match=r"eps = 1e-06.*rounds to 0.*smallest"):
        plan.check(numpy_dtype(name))
    with pytest.raises(ir.errors.RoundingError, match=str(FORMATS[name].smallest)):
        plan.build(dtype=numpy_dtype(name))


@pytest.mark.parametrize("name", NARROW)
def test_the_smallest_value_is_kept_and_its_half_is_not(name):
    form = FORMATS[name]
    assert round_value(form.smallest, form, "eps") == form.smallest
    assert round_value(form.smallest * 0.500001, form, "eps") == form.smallest
    with pytest.raises(ir.errors.RoundingError, match="rounds to 0"):
        round_value(form.smallest * 0.5, form, "eps")


@pytest.mark.parametrize("name", NARROW)
def test_overflow_is_refused(name):
    form = FORMATS[name]
    assert round_value(form.largest, form, "gain") == form.largest
    with pytest.raises(ir.errors.RoundingError, match="largest value"):
        round_value(1.7e308, form, "gain")


@pytest.mark.parametrize("name", NARROW)
def test_numpy_builds_every_dtype(name):
    dtype = numpy_dtype(name)
    array = ir.idi((5, 3), dtype=dtype)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array.astype(np.float64), by_hand.weight((5, 3)))


@pytest.mark.parametrize(
    "name",
    [*TORCH_FP8, "bfloat16", "float16"],
)
def test_torch_builds_every_dtype(name):
    array = ir.idi((5, 3), gain=-0.75, xp=torch(), dtype=getattr(torch(), name))
    assert array.dtype == getattr(torch(), name)
    np.testing.assert_array_equal(array.double().numpy(), by_hand.weight((5, 3), gain=-0.75))


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_complex_has_no_imaginary_part(name):
    array = ir.idiz((2, 3), dtype=name)
    assert array.dtype == np.dtype(name)
    assert not array.imag.any()
    assert np.array_equal(array.real, ir.idiz((2, 3), dtype=array.real.dtype))


def test_longdouble_holds_the_float64_entries():
    array = ir.idiz((2, 3), eps=1e-6, dtype=np.longdouble)
    assert array.dtype == np.longdouble
    assert array[0, 0] == np.longdouble(1e-6)


def test_low_precision_eps():
    """What 1e-6 becomes; in float16 it is a subnormal number."""
    assert float(ir.idiz((2, 2), dtype=ml_dtypes().bfloat16)[0, 0]) == 9.98377799987793e-07
    assert float(ir.idiz((2, 2), dtype="float16")[0, 0]) == 1.0132789611816406e-06


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "object", "datetime64[s]"])
def test_no_other_dtype(dtype):
    with pytest.raises(ir.errors.DTypeError, match=r"dtype = .*real floating or complex.*float32"):
        ir.idi((2, 2), dtype=dtype)


def test_a_dtype_without_zero_is_refused():
    with pytest.raises(ir.errors.DTypeError, match="float8_e8m0fnu"):
        ir.idi((2, 2), xp=torch(), dtype=torch().float8_e8m0fnu)
    with pytest.raises(ir.errors.DTypeError, match="float8_e8m0fnu"):
        format_of(np.dtype(ml_dtypes().float8_e8m0fnu))


def test_noise_that_the_dtype_loses_is_refused():
    with pytest.raises(ir.errors.RoundingError, match=r"loosen = 1e-30.*float16"):
        ir.idi((2, 2), loosen=1e-30, dtype="float16")


def test_a_fold_that_underflows_is_refused():
    with pytest.raises(ir.errors.RoundingError, match="fold_mean"):
        ir.idi((1, 9), gain=5e-324, wide="fold_mean")


def test_a_dtype_of_any_framework_is_known():
    import jax.numpy as jnp
    import tensorflow as tf

    for dtype in (np.float32, np.dtype("f4"), ">f4", "float32", torch().float32, tf.float32):
        assert format_of(dtype).name == "float32"
    for dtype in (jnp.bfloat16, ml_dtypes().bfloat16, torch().bfloat16, tf.bfloat16, "bfloat16"):
        assert format_of(dtype).name == "bfloat16"
    assert format_of(float).name == "float64"
    for dtype in (np.int32, int, torch().int8, tf.int32, "nothing", object(), bool):
        with pytest.raises(ir.errors.DTypeError, match="real floating or complex"):
            ir.plan((3, 3)).check(dtype)


def test_the_other_byte_order():
    assert np.array_equal(ir.idiz((3, 4), dtype=">f4"), ir.idiz((3, 4), dtype="f4"))
    assert ir.idi((3, 4), dtype=">f4").dtype.byteorder == ">"
