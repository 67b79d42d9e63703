"""Whole, in parts, as entries, in memory of any strides, in any namespace: the same weight."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from strategies import examples, parts, weights


@given(weights())
def test_build_is_the_specification(weight):
    shape, role, options = weight
    array = ir.plan(shape, role, **options).build()
    assert array.shape == shape
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, by_hand.weight(shape, role, **options))
    assert not np.signbit(array[array == 0]).any()


@given(st.data())
def test_block_is_the_part_of_the_whole(data):
    shape, role, options = data.draw(weights())
    index = data.draw(parts(shape))
    block = ir.plan(shape, role, **options).block(index)
    np.testing.assert_array_equal(block, by_hand.weight(shape, role, **options)[index], strict=True)


@given(st.data())
def test_entries_are_the_nonzeros(data):
    shape, role, options = data.draw(weights())
    index = data.draw(st.none() | parts(shape))
    plan = ir.plan(shape, role, **options)
    expected = by_hand.weight(shape, role, **options)[() if index is None else index].reshape(-1)
    positions, values = plan.entries(index)
    assert positions.dtype == np.int64
    assert values.dtype == np.float64
    np.testing.assert_array_equal(positions, np.flatnonzero(expected))
    np.testing.assert_array_equal(values, expected[positions])
    if index is None:
        assert plan.nnz == np.count_nonzero(expected)


@given(st.data())
def test_write_obeys_strides(data):
    shape, role, options = data.draw(weights())
    order = data.draw(st.permutations(range(len(shape))))
    gap = data.draw(st.integers(1, 3))  # memory with holes between the elements
    memory = np.zeros(int(np.prod(shape)) * gap)
    stored = memory[::gap].reshape([shape[axis] for axis in order])
    view = stored.transpose(np.argsort(order))
    ir.plan(shape, role, **options).write(memory, [step // 8 for step in view.strides])
    np.testing.assert_array_equal(view, by_hand.weight(shape, role, **options))
    assert np.count_nonzero(memory) == np.count_nonzero(view)


@settings(max_examples=examples(10))
@given(weight=weights(), dtype=st.sampled_from(["float64", "float32", "float16", "complex128"]))
def test_every_namespace_gives_the_same_bits(backend, x64, weight, dtype):
    shape, role, options = weight
    to = backend.dtype(dtype)
    if to is None:  # array-api-strict has no float16
        to, dtype = backend.dtype("float32"), "float32"
    plan = ir.plan(shape, role, **options)
    array = backend.call(lambda: plan.build(backend.xp, to, backend.at()))
    expected = by_hand.weight(shape, role, **options).astype(dtype)  # NumPy rounds these once
    assert type(array).__module__.split(".")[0] in (backend.module.split(".")[0], "jaxlib")
    assert array.dtype == to
    assert tuple(array.shape) == shape
    if backend.device:
        assert array.device == backend.at()
    np.testing.assert_array_equal(backend.numpy(array), expected, strict=True)


@settings(max_examples=examples(10))
@given(weight=weights(), data=st.data())
def test_a_block_in_every_namespace(backend, x64, weight, data):
    shape, role, options = weight
    index = data.draw(parts(shape))
    plan = ir.plan(shape, role, **options)
    to = backend.dtype("float64")
    block = backend.call(lambda: plan.block(index, backend.xp, to, backend.at()))
    expected = by_hand.weight(shape, role, **options)[index]
    np.testing.assert_array_equal(backend.numpy(block), expected, strict=True)


def test_default_dtype_is_the_namespaces(backend):
    array = backend.call(lambda: ir.idi((3, 2), xp=backend.xp))
    assert array.dtype == backend.xp.zeros((1,)).dtype


def test_a_float64_dtype_that_jax_truncates_is_checked_as_float32():
    import jax.numpy as jnp

    with (
        pytest.warns(UserWarning, match="float64"),
        pytest.raises(ir.errors.RoundingError, match="float32"),
    ):
        ir.idiz((2, 2), eps=1e-60, xp=jnp, dtype=jnp.float64)


def test_dask_is_lazy_and_chunked():
    import dask.array as da

    array = ir.plan((10**6, 10**6), "zero").build(da, dtype="float32")
    assert max(array.chunksize) < 10**5
    corner = array[-2:, -3:].compute()
    np.testing.assert_array_equal(corner, np.float32([[0, 1e-6, -1e-6], [0, 0, 1e-6]]))


def test_jit_holds_no_constant_of_weight_size():
    import jax
    import jax.numpy as jnp

    plan = ir.plan((512, 256, 3, 3), "zero")
    text = jax.jit(lambda: plan.build(jnp)).lower().as_text()
    assert len(text) < 0.02 * 8 * 512 * 256 * 9  # in hexadecimal, a constant is 8 letters long
    compiled = jax.jit(lambda: plan.build(jnp)).lower().compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.01 * 512 * 256 * 9 * 4


BIG = [
    ((1500, 1500), {}),
    ((3000, 700), {}),
    ((700, 3000), {"wide": "fold_rms"}),
    ((300, 800, 3, 3), {}),
    ((3, 3, 300, 800), {"layout": "HWIO"}),
    ((200_000, 1, 3, 3), {"groups": 200_000, "taps": "center"}),
    ((1_000_000, 1), {}),
    ((1, 1_000_000), {"wide": "fold_mean"}),
    ((700, 700), {"loosen": 0.1}),
]


@pytest.mark.parametrize(("shape", "options"), BIG, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_numpy_peak_memory(shape, options, dtype):
    """At most 1.1 times the result (a fixed 64 KiB allows for Python's own objects)."""
    plan = ir.plan(shape, **options)
    plan.block(tuple(slice(0, 1) for _ in shape))  # imports and caches
    tracemalloc.start()
    try:
        array = plan.build(dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.1 * array.nbytes + 65536
