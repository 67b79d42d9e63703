"""Blocks, bits and names on their way into a file or out of one."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from idinit_ref.files import storage
from idinit_ref.files.bits import DTYPES, FLOATS, carrier, convert, decode, itemsize
from idinit_ref.files.naming import check_name
from idinit_ref.files.storage import (
    ArrayTensor,
    NoiseTensor,
    PlanTensor,
    Tensor,
    as_tensor,
    blocks,
    stream,
)

NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def theirs(name):
    return np.dtype(getattr(ml_dtypes, name, name))


@pytest.mark.parametrize("name", NARROW)
def test_every_bit_pattern_means_what_ml_dtypes_says(name):
    bits = np.arange(2 ** (8 * itemsize(name)), dtype=np.int64).astype(carrier(name))
    with np.errstate(invalid="ignore"):
        expected = bits.view(theirs(name)).astype(np.float64)
    found = decode(bits, name)
    assert np.array_equal(found, expected, equal_nan=True)
    finite = np.isfinite(found)
    assert np.array_equal(np.signbit(found[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("name", DTYPES)
def test_a_carrier_has_the_size_of_its_dtype(name):
    assert carrier(name).itemsize == itemsize(name) == theirs(name).itemsize


@pytest.mark.parametrize("own", NARROW)
@pytest.mark.parametrize("to", FLOATS)
def test_narrow_numbers_in_another_dtype_are_rounded_once(own, to):
    bits = np.arange(2 ** (8 * itemsize(own)), dtype=np.int64).astype(carrier(own))
    numbers = decode(bits, own)
    limit = float(ml_dtypes.finfo(theirs(to)).max) if to != "complex64" else np.inf
    kept = np.isfinite(numbers) & (np.abs(numbers) <= limit)
    found = convert(bits[kept], own, to, "w")
    assert found.dtype == carrier(to)
    expected = numbers[kept].astype(theirs(to))
    assert np.array_equal(found.view(theirs(to)), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_plan_is_read_in_the_bits_of_every_dtype(dtype):
    shape, index = (5, 3, 3, 2), (slice(1, 5), slice(0, 3), slice(1, None), slice(None))
    p = ir.plan(shape, "zero", eps=0.3, taps="spatial_major")
    exact = by_hand.weight(shape, "zero", eps=0.3, taps="spatial_major")[index]
    found = PlanTensor(p).read(index, dtype)
    assert found.dtype == carrier(dtype)
    expected = exact.astype(np.complex64 if dtype == "complex64" else theirs(dtype))
    assert found.tobytes() == expected.tobytes()


def test_an_overflow_names_the_tensor():
    with pytest.raises(ir.errors.RoundingError, match=r"head = 70000\.0, .* float16 is 65504"):
        convert(np.array([1.0, 70000.0]), "float64", "float16", "head")


@pytest.mark.parametrize(
    ("own", "to", "text"),
    [("int32", "float32", "float32 is not done here"), ("float32", "int8", "to int8 is not done"),
     ("complex64", "float32", "would lose the imaginary part")],
)  # fmt: skip
def test_what_cannot_be_converted(own, to, text):
    with pytest.raises(ir.errors.DTypeError, match=text):
        convert(np.zeros(2, own), own, to, "w")


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 30))
def test_blocks_cut_an_array_once_in_order(shape, size):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "BLOCK", size)
        parts = [array[index].reshape(-1) for index in blocks(tuple(shape))]
    assert np.concatenate(parts).tolist() == array.reshape(-1).tolist()
    assert all(part.size <= size for part in parts)


def test_a_stream_is_little_endian_and_row_major():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert (
        b"".join(part.tobytes() for part in stream(ArrayTensor(array), "int32"))
        == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()
    )


def test_an_array_of_ml_dtypes_is_a_tensor():
    held = as_tensor("a", np.array([1.5, -2.0], ml_dtypes.bfloat16))
    assert (held.dtype, held.shape) == ("bfloat16", (2,))
    assert held.read((slice(1, 2),), "float32").tolist() == [-2.0]
    assert held.read((slice(0, 1),), "bfloat16").tolist() == [0x3FC0]


def test_an_array_of_ml_dtypes_in_the_other_byte_order():
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    swapped = array.astype(array.dtype.newbyteorder(">"))
    held = as_tensor("a", swapped)
    assert held.read((slice(None),), "bfloat16").tolist() == [0x3FC0, 0xC000]


@given(st.lists(st.floats(width=32), min_size=1, max_size=30), st.booleans())
def test_float32_in_every_dtype_is_rounded_once(values, beside_zero):
    numbers = np.array(values + [0.0] * (2 * len(values) * beside_zero), np.float32)
    for name in ("bfloat16", "float16", "float8_e5m2", "float64"):
        limit = float(ml_dtypes.finfo(theirs(name)).max)
        with np.errstate(all="ignore"):
            expected = numbers.astype(theirs(name))
            lost = np.isinf(expected.astype(np.float64)) & np.isfinite(numbers)
        if lost.any():
            with pytest.raises(ir.errors.RoundingError, match=re.escape(f"{limit!r}")):
                convert(numbers, "float32", name, "w")
            continue
        found = convert(numbers, "float32", name, "w").view(theirs(name))
        kept = ~np.isnan(numbers)
        assert found[kept].tobytes() == expected[kept].tobytes()
        assert np.isnan(found[~kept].astype(np.float64)).all()


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 5), (7,)])
def test_noise_is_philox_of_seed_and_row_in_any_block(shape):
    rows = 1 if len(shape) == 1 else shape[0]
    expected = np.array([
        0.02 * np.random.Generator(np.random.Philox(key=np.array([9, r], np.uint64)))
        .standard_normal(int(np.prod(shape)) // rows) for r in range(rows)
    ]).reshape(shape)  # fmt: skip
    noise = NoiseTensor(shape, 0.02, 9)
    whole = tuple(slice(None) for _ in shape)
    assert noise.read(whole, "float64").tolist() == expected.tolist()
    part = tuple(slice(1, size - 1) for size in shape)
    assert noise.read(part, "float64").tolist() == expected[part].tolist()
    with np.errstate(under="ignore"):
        assert noise.read(part, "float16").tolist() == expected[part].astype("f2").tolist()


def test_what_is_a_tensor():
    assert all(isinstance(t, Tensor) for t in (PlanTensor(ir.plan((2, 2))), NoiseTensor((2,), 1.0)))
    noise = NoiseTensor((2,), 1.0)
    assert as_tensor("n", noise) is noise
    for value, error in (([1.0], TypeError), (np.array(["x"]), TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^(dtype of )?w = "):
            as_tensor("w", value)


@pytest.mark.parametrize("name", [
    "a", "h.0.attn.c_attn.weight", "params/dense/kernel", "é", "a b", "", "a//b", "/etc/a", "a/"
])  # fmt: skip
def test_good_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["__metadata__", 3, "../a", "a/./b", "a/..", "a\\b", "a\nb", "\x1b[31m",
     "a\x00", "a\x7f", "a\u2028b", "a\udc80"],
)  # fmt: skip
def test_bad_names(name):
    with pytest.raises(ir.errors.OptionError, match=re.escape(f"name = {name!r}, but it should")):
        check_name(name)
