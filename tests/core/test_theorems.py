"""T1 to T7 of the specification, and its section 2, through matrix products.

Products with zeros and ones are exact in floating point, so that most of these hold to the bit.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import idinit_ref as ir
from strategies import matrices

gains = st.floats(-1e3, 1e3).filter(lambda t: abs(t) > 1e-3)
dyadic = st.sampled_from([1.0, -1.0, 0.5, -2.0, 4.0])
UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
UNIT["complex64"] = UNIT["float32"]
dtypes = st.sampled_from([*UNIT]).map(
    lambda name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
)
wides = st.sampled_from(["truncate", "fold_rms", "fold_mean"])


def signal(n, seed, columns=None, dtype=np.float64):
    shape = (n,) if columns is None else (n, columns)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integer_covariance(n, seed):
    """A covariance of small integers: exact in float64."""
    a = np.random.default_rng(seed).integers(-4, 5, (n, n))
    return (a @ a.T).astype(float)


@given(matrices(), st.integers(0, 99), dtypes)
def test_t1_transit(size, seed, dtype):
    m, n = max(size), min(size)
    x = signal(n, seed, dtype=dtype)
    y = ir.idi((m, n), dtype=dtype) @ x
    assert np.array_equal(y[:n], x)
    assert all(y[i] == x[i % n] for i in range(m))


@given(matrices(), st.integers(0, 99), dyadic)
def test_t2_variance_for_any_covariance(size, seed, tau):
    m, n = size
    covariance = integer_covariance(n, seed)
    w = ir.idi((m, n), gain=tau)
    variance = np.diag(w @ covariance @ w.T)
    assert all(variance[i] == tau**2 * covariance[i % n, i % n] for i in range(m))


@given(matrices(), gains)
def test_t2_row_norm(size, tau):
    norms = [math.hypot(*row) for row in ir.idi(size, gain=tau)]
    assert norms == [abs(tau)] * size[0]


@given(matrices(), gains)
def test_t3_fold_rms_row_norm(size, tau):
    """k squares of tau / sqrt(k) add up with k + 2 roundings."""
    m, n = size
    norms = np.linalg.norm(ir.idi((m, n), gain=tau, wide="fold_rms"), axis=1)
    np.testing.assert_allclose(norms, abs(tau), rtol=(n + 2) * 2.0**-52)


@given(matrices(), gains)
def test_t3_fold_rms_variance_needs_uncorrelated_inputs(size, tau):
    m, n = min(size), max(size)
    assume(m < n)
    w = ir.idi((m, n), gain=tau, wide="fold_rms")
    sigma2 = 4.0
    uncorrelated = np.diag(w @ (sigma2 * np.eye(n)) @ w.T)
    np.testing.assert_allclose(uncorrelated, tau**2 * sigma2, rtol=1e-14)
    equal = np.diag(w @ (sigma2 * np.ones((n, n))) @ w.T)  # all coordinates the same
    folded = np.array([len(range(i, n, m)) for i in range(m)])
    np.testing.assert_allclose(equal, tau**2 * sigma2 * folded, rtol=1e-14)


@given(matrices(), wides, dtypes)
def test_t4_composition(size, wide, dtype):
    m, n = max(size), min(size)
    product = ir.idi((n, m), wide=wide, dtype=dtype) @ ir.idi((m, n), dtype=dtype)
    error = np.abs(product.astype(np.complex128) - np.eye(n)).max()
    if wide == "truncate" or m == n:
        assert error == 0
    elif wide == "fold_mean":  # k equal shares 1/k: exact up to their roundings
        assert error <= m * UNIT[dtype.name] / 2
    else:
        assert error > 0.1


@given(matrices(), gains)
def test_t5_isometry(size, tau):
    m, n = max(size), min(size)
    found = np.linalg.svd(ir.idi((m, n), gain=tau), compute_uv=False)
    copies = [len(range(j, m, n)) for j in range(n)]
    expected = sorted((abs(tau) * math.sqrt(c) for c in copies), reverse=True)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@given(st.integers(1, 8), st.integers(1, 7), dyadic, dtypes)
def test_t5_products_of_square_ones(n, depth, tau, dtype):
    product = np.eye(n, dtype=dtype)
    for _ in range(depth):
        product = ir.idi((n, n), gain=tau, dtype=dtype) @ product
    assert np.array_equal(product.astype(complex), tau**depth * np.eye(n))
    product = product.real.astype(np.float64)
    chi = np.sum(product**2) / n
    assert (chi == 1) == (abs(tau) == 1)


@given(
    st.integers(1, 8),
    st.integers(1, 7),
    st.sampled_from([1.0, 0.5, 2.0]),
    st.integers(0, 9),
    dtypes.filter(lambda dtype: dtype.kind != "c"),
)
def test_t6_relu_chain(n, depth, tau, seed, dtype):
    """The float16 rows stay clear of subnormal numbers, which halving would round."""
    x = y = signal(n, seed, dtype=np.float16).astype(dtype)
    x = y = np.where(np.abs(x) < 0.01, dtype.type(0), x)
    for _ in range(depth):
        y = np.maximum(ir.idi((n, n), gain=tau, dtype=dtype) @ y, dtype.type(0))
    expected = tau**depth * np.maximum(x.astype(np.float64), 0)
    assert np.array_equal(y.astype(np.float64), expected)


def test_t6_the_second_moment():
    """After the first layer only tau = 1 keeps it; sqrt(2) doubles it at every layer."""
    x = signal(64, 0, 256)
    moments = {}
    for tau in (1.0, math.sqrt(2)):
        y, found = x, []
        for _ in range(20):
            y = np.maximum(ir.idi((64, 64), gain=tau) @ y, 0)
            found.append(np.mean(y**2))
        moments[tau] = np.array(found)
    assert np.all(moments[1.0] == moments[1.0][0])
    np.testing.assert_allclose(moments[math.sqrt(2)][1:] / moments[math.sqrt(2)][:-1], 2)


@given(matrices(), st.integers(0, 99), st.sampled_from([np.tanh, np.sin, np.abs]), dtypes)
def test_t7_residual_identity(size, seed, f, dtype):
    """In a narrow dtype 2 eps max|f| is less than half a unit of x: then y is x."""
    width, hidden = size
    eps = 2.0**-13  # every dtype here holds it
    x = signal(width, seed, dtype=dtype)
    inside = f(ir.idi((hidden, width), dtype=dtype) @ x).astype(dtype)
    branch = ir.idiz((width, hidden), eps=eps, dtype=dtype) @ inside
    bound = 2 * eps * np.abs(inside).max()
    unit = UNIT[dtype.name]
    assert np.all(np.abs(branch) <= bound * (1 + 4 * unit))
    moved = np.abs((x + branch).astype(np.complex128) - x.astype(np.complex128))
    assert np.all(moved <= bound * (1 + 4 * unit) + unit * np.abs(x.astype(np.complex128)))


@given(matrices(), gains)
def test_idiz_rows_sum_to_zero_and_are_never_dead(size, eps):
    m, n = size
    w = ir.idiz(size, eps=eps)
    assert np.all(np.any(w != 0, axis=1))
    assert np.all(np.any(w != 0, axis=0)) == (m >= n or n - m <= m or n == 1)
    if n == 1:
        assert w[:, 0].tolist() == [eps * (-1) ** i for i in range(m)]
    else:
        assert np.all(w.sum(axis=1) == 0)


@given(matrices(), gains)
def test_idiz_row_norm_and_variance(size, eps):
    w = ir.idiz(size, eps=eps)
    factor = 1 if size[1] == 1 else 2
    np.testing.assert_allclose(np.diag(w @ w.T), factor * eps**2, rtol=2.0**-51)


@given(matrices())
def test_idiz_rank(size):
    m, n = size
    rank = np.linalg.matrix_rank(ir.idiz(size, eps=1.0))
    assert rank == (m if m < n else n - 1 if n >= 2 else 1)


@given(matrices(), st.integers(0, 2**63 - 1))
def test_loosening_is_numpy_noise_row_by_row(size, seed):
    m, n = size
    noise = ir.idi(size, loosen=0.5, seed=seed) - ir.idi(size)
    for r in range(m):
        drawn = np.random.Generator(np.random.Philox(key=[seed, r])).standard_normal(n)
        np.testing.assert_allclose(noise[r], 0.5 * drawn, atol=1e-15)


@given(st.integers(1, 8), st.integers(0, 99))
def test_what_does_not_hold_in_a_branch_four_times_as_wide(m, seed):
    """The documentation's three warnings: unused columns, copies that cancel, no gradient back."""
    last, first = ir.idiz((m, 4 * m), eps=0.5), ir.idi((4 * m, m))
    x, upstream = signal(m, seed), signal(m, seed + 1)
    hidden = np.maximum(first @ x, 0)
    assert np.flatnonzero(last.any(axis=0)).tolist() == list(range(2 * m))
    assert not (last @ hidden).any()
    to_hidden = (last.T @ upstream) * (hidden > 0)
    assert not (first.T @ to_hidden).any()


@given(st.integers(1, 8), st.integers(0, 99))
def test_one_step_of_the_last_weight_sets_them_right(m, seed):
    last, first = ir.idiz((m, 4 * m)), ir.idi((4 * m, m))
    x, upstream = np.abs(signal(m, seed)) + 0.1, signal(m, seed + 1)
    hidden = np.maximum(first @ x, 0)
    last = last - 0.1 * np.outer(upstream, hidden)  # gradient descent on W2 alone
    to_hidden = last.T @ upstream
    assert to_hidden.all()
    assert (first.T @ to_hidden).all()
    assert (last @ hidden).all()
