"""T1 to T7 and T9 of the mathematics page, and what IDIZ is, through matrix products.

Products with zeros and ones are exact in floating point, so that most of these hold to the bit.
What holds in a network is in `test_theorems_network.py`, and of kernels in
`test_theorems_kernels.py`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import idinit_ref as ir
from strategies import matrices

gains = st.floats(-1e3, 1e3).filter(lambda t: abs(t) > 1e-3)
dyadic = st.sampled_from([1.0, -1.0, 0.5, -2.0, 4.0])
UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10}
UNIT["complex64"] = UNIT["float32"]
try:
    from ml_dtypes import bfloat16
except ModuleNotFoundError:  # a skip of test_rounding.py says so, and with CI set it fails
    dtypes = st.sampled_from([*map(np.dtype, UNIT)])
else:
    dtypes = st.sampled_from([*map(np.dtype, [*UNIT, bfloat16])])
    UNIT["bfloat16"] = 2.0**-7
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


@given(st.integers(1, 6), st.integers(0, 99))
def test_t2_a_random_row_has_the_variance_in_the_mean_alone(n, seed):
    """Rows of signs +-1: over all of them the mean is exact; row by row only if uncorrelated."""
    covariance = integer_covariance(n, seed)
    rows = np.array([*product([-1.0, 1.0], repeat=n)])
    variances = np.einsum("ri,ij,rj->r", rows, covariance, rows)
    assert variances.mean() == np.trace(covariance)
    uncorrelated = not np.any(covariance - np.diag(np.diag(covariance)))
    assert np.all(variances == np.trace(covariance)) == uncorrelated


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


@given(matrices(), gains, st.integers(0, 99))
def test_t3_fold_rms_variance(size, tau, seed):
    """Of any covariance, in exact fractions: the mean variance, and a share of the covariances."""
    m, n = min(size), max(size)
    covariance = integer_covariance(n, seed)
    w = ir.idi((m, n), gain=tau, wide="fold_rms")
    found = np.diag(w @ covariance @ w.T)
    for i in range(m):
        folded = range(i, n, m) if m < n else [i]
        pairs = [(a, b) for a in folded for b in folded if a != b]
        mean = sum(Fraction(covariance[a, a]) for a in folded) / len(folded)
        shared = sum((Fraction(covariance[pair]) for pair in pairs), Fraction(0)) / len(folded)
        largest = tau**2 * n * np.abs(covariance).max()
        assert abs(found[i] - tau**2 * float(mean + shared)) <= 1e-14 * n * largest


@given(matrices(), gains)
def test_t3_fold_rms_variance_of_uncorrelated_and_of_equal_inputs(size, tau):
    m, n = min(size), max(size)
    assume(m < n)
    w = ir.idi((m, n), gain=tau, wide="fold_rms")
    sigma2 = 4.0
    uncorrelated = np.diag(w @ (sigma2 * np.eye(n)) @ w.T)
    np.testing.assert_allclose(uncorrelated, tau**2 * sigma2, rtol=1e-14)
    equal = np.diag(w @ (sigma2 * np.ones((n, n))) @ w.T)  # all coordinates the same
    folded = np.array([len(range(i, n, m)) for i in range(m)])
    np.testing.assert_allclose(equal, tau**2 * sigma2 * folded, rtol=1e-14)


@given(gains, st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_t3_correlated_inputs_may_have_the_same_variance(tau, a, b):
    """Three coordinates of variance 1 whose covariances a, b and -a - b cancel."""
    covariance = np.array([[1, a, b], [a, 1, -a - b], [b, -a - b, 1]])
    w = ir.idi((1, 3), gain=tau, wide="fold_rms")
    np.testing.assert_allclose(w @ covariance @ w.T, tau**2, rtol=1e-14)


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


@given(matrices(), gains, wides)
def test_t5_wide(size, tau, wide):
    """Each of the m rows has columns of its own, so its norm is a singular value."""
    m, n = min(size), max(size)
    found = np.linalg.svd(ir.idi((m, n), gain=tau, wide=wide), compute_uv=False)
    folded = [len(range(i, n, m)) for i in range(m)]
    shares = [math.sqrt(k) if wide == "fold_mean" else 1 for k in folded]
    expected = sorted((abs(tau) / share for share in shares), reverse=True)
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


@given(st.integers(1, 6), st.integers(1, 4), st.integers(4, 6))
def test_t5_chi_1_is_no_isometry(channels, taps, places):
    """channel_major on a ring: all singular values are 0 but for those of the kept channels."""
    kernel = ir.idi((channels, channels, taps), taps="channel_major")
    layer = np.zeros((channels, places, channels, places))
    for j, s in product(range(places), range(taps)):
        layer[:, j, :, (j + s) % places] += kernel[:, :, s]
    found = np.linalg.svd(layer.reshape(channels * places, -1), compute_uv=False)
    np.testing.assert_allclose(np.sum(found**2) / found.size, 1, rtol=1e-13)  # chi
    copies = [len(range(c * taps, min((c + 1) * taps, channels))) for c in range(channels)]
    expected = sorted(np.repeat(np.sqrt(copies), places), reverse=True)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.allclose(found, 1, atol=1e-7) == (taps == 1 or channels == 1)


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


@given(st.integers(1, 8), st.integers(1, 9), gains.filter(lambda t: t > 0), st.integers(0, 99))
def test_t6_the_second_moment(n, depth, tau, seed):
    """tau^(2 depth) that of relu(x): kept for tau = 1 alone, unless relu(x) is 0."""
    x = signal(n, seed, 5)
    for name, y in (("x", x), ("-|x|", -np.abs(x))):
        start = np.mean(np.maximum(y, 0) ** 2)
        for _ in range(depth):
            y = np.maximum(ir.idi((n, n), gain=tau) @ y, 0)
        end = np.mean(y**2)
        np.testing.assert_allclose(end, tau ** (2 * depth) * start, rtol=1e-13, err_msg=name)
        assert (end == start) == (tau == 1 or start == 0), name


@given(st.integers(1, 8), st.integers(1, 9), st.integers(0, 99))
def test_t6_kaimings_gain_is_right_for_one_relu_and_wrong_for_a_chain(n, depth, seed):
    """On inputs x and -x, that is without a preferred sign."""
    x = signal(n, seed, 5)
    y = x = np.concatenate([x, -x], axis=1)
    for layer in range(1, depth + 1):
        y = np.maximum(ir.idi((n, n), gain=math.sqrt(2)) @ y, 0)
        np.testing.assert_allclose(
            np.mean(y**2), 2.0 ** (layer - 1) * np.mean(x**2), err_msg=f"layer {layer}"
        )


def rounding(w, values):
    """A bound of what roundings add to w @ values, with those of the bound that it is held to."""
    return (w.shape[1] + 8) * 2.0**-52 * np.abs(w).sum(axis=1).max() * np.abs(values).max()


FUNCTIONS = st.sampled_from([np.tanh, np.sin, np.abs, np.square, lambda x: 1 / (1 + np.exp(-x))])
forms = st.sampled_from(["pair", "shifted"])


@given(matrices(40), st.integers(0, 99), FUNCTIONS, forms, st.sampled_from([1e-6, -0.25, 3.0]))
def test_t7_residual_identity(size, seed, f, form, eps):
    """By the spread of f; the bounds are reached, so nothing smaller holds for every f."""
    width, hidden = min(size), max(size)
    values = f(ir.idi((hidden, width)) @ signal(width, seed))
    w = ir.idiz((width, hidden), eps=eps, form=form)
    k = np.count_nonzero(w, axis=1).max()  # 2 for a pair
    spread = np.abs(values).max() if hidden == 1 else np.ptp(values) * math.sqrt(k / 2)
    assert np.all(np.abs(w @ values) <= abs(eps) * spread + rounding(w, values))
    if form == "pair":
        assert spread <= 2 * np.abs(values).max()
    for row in w:  # f = 1 where the entry is positive, 0 elsewhere: a spread of 1
        reached = abs(row @ (row > 0)) / abs(eps)
        even = np.count_nonzero(row) % 2 == 0
        limit = math.sqrt(np.count_nonzero(row) / 2)
        if hidden > 1:
            assert reached <= limit * (1 + 1e-14)
            assert math.isclose(reached, limit) == even


@given(matrices(40), st.integers(0, 99), FUNCTIONS, forms)
def test_t7_behind_a_norm(size, seed, f, form):
    """An RMS norm behind W2 divides by the branch's own size: eps is lost for a small e."""
    width, hidden = min(size), max(size)
    eps = 1e-6
    values = f(ir.idi((hidden, width)) @ signal(width, seed))
    w = ir.idiz((width, hidden), eps=eps, form=form)
    branch = w @ values
    spread = np.abs(values).max() if hidden == 1 else np.ptp(values)
    bound = eps * spread * (math.sqrt(np.count_nonzero(w, axis=1).max() / 2) if hidden > 1 else 1)
    bound += rounding(w, values)
    for e in (1e-4, 1e-12, 1e-20):
        normed = branch / np.sqrt(np.mean(branch**2) + e)
        limit = min(math.sqrt(width), bound / math.sqrt(e))
        assert np.all(np.abs(normed) <= limit * (1 + 1e-12))


def test_t7_behind_a_norm_of_small_e_the_branch_is_of_order_one():
    x = signal(8, 0)
    branch = ir.idiz((8, 16)) @ np.tanh(np.concatenate([x, x[::-1]]))
    normed = branch / np.sqrt(np.mean(branch**2) + 1e-20)
    assert np.abs(branch).max() < 2e-6
    assert np.abs(normed).max() > 1


@given(matrices(), st.integers(0, 99), st.sampled_from([np.tanh, np.sin, np.abs]), dtypes)
def test_t7_in_every_dtype(size, seed, f, dtype):
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


@given(st.integers(2, 12), gains)
def test_t9_square(n, eps):
    found = np.linalg.svd(ir.idiz((n, n), eps=eps), compute_uv=False)
    expected = sorted((2 * abs(eps * math.sin(math.pi * k / n)) for k in range(n)), reverse=True)
    np.testing.assert_allclose(found, expected, atol=1e-14 * n * abs(eps))


@given(st.integers(2, 8), st.integers(1, 30), gains)
def test_t9_tall(n, more, eps):
    """sqrt(c) times the square's for m = c n; else between those of the c around m / n."""
    m = n + more
    found = np.linalg.svd(ir.idiz((m, n), eps=eps), compute_uv=False)
    square = sorted((2 * abs(eps * math.sin(math.pi * k / n)) for k in range(n)), reverse=True)
    slack = 1e-13 * m * abs(eps)
    low, high = math.sqrt(m // n), math.sqrt(-(-m // n))
    assert np.all(found >= low * np.array(square) - slack)
    assert np.all(found <= high * np.array(square) + slack)


@given(matrices(14), gains)
def test_t9_wide(size, eps):
    m, n = min(size), max(size)
    assume(m < n)
    found = np.linalg.svd(ir.idiz((m, n), eps=eps), compute_uv=False)
    met = [len([i for i in range(m) if i % (n - m) == k]) for k in range(min(m, n - m))]
    expected = [abs(eps) * math.sqrt(1 + c) for c in met] + [abs(eps)] * (m - len(met))
    np.testing.assert_allclose(found, sorted(expected, reverse=True), rtol=1e-13)


@given(st.integers(1, 30), gains)
def test_t9_one_column(m, eps):
    (found,) = np.linalg.svd(ir.idiz((m, 1), eps=eps), compute_uv=False)
    assert math.isclose(found, abs(eps) * math.sqrt(m), rel_tol=1e-14)


@st.composite
def shifted_sizes(draw):
    m = draw(st.integers(1, 7))
    return m, draw(st.integers(2 * m, 16 * m + 3))


@given(shifted_sizes(), gains)
def test_shifted_places(size, eps):
    """One entry a column, one a block of m columns in every row, and its sign turns."""
    m, n = size
    w = ir.idiz(size, eps=eps, form="shifted")
    assert np.all(np.count_nonzero(w, axis=0) == 1)
    for i, row in enumerate(w):
        columns = np.flatnonzero(row)
        assert columns.tolist() == [
            q * m + r
            for q in range(-(-n // m))
            for r in range(m)
            if (r - i - q) % m == 0 and q * m + r < n
        ]
        signs = np.sign(row[columns]) * np.sign(eps)
        assert signs.tolist() == [(-1) ** q for q in range(len(columns))]
        assert {*np.abs(row[columns][::2])} | {*np.abs(row[columns][1::2])} == {
            *np.abs(row[columns])
        }
        assert len({*row[columns]}) == 2
        if len(columns) % 2 == 0:
            expected = abs(eps) * math.sqrt(2 / len(columns))
            found = np.abs(row[columns])
            np.testing.assert_allclose(found, expected, rtol=1e-15, err_msg=f"row {i}")


@given(shifted_sizes(), gains)
def test_shifted_rows_sum_to_zero_with_the_norm_of_a_pair(size, eps):
    """All singular values are sqrt(2) |eps|: the rows share no column. So the rank is m."""
    m, n = size
    w = ir.idiz(size, eps=eps, form="shifted")
    np.testing.assert_allclose(w.sum(axis=1), 0, atol=1e-14 * n * abs(eps))
    np.testing.assert_allclose(np.linalg.norm(w, axis=1), math.sqrt(2) * abs(eps), rtol=1e-13)
    found = np.linalg.svd(w, compute_uv=False)
    np.testing.assert_allclose(found, [math.sqrt(2) * abs(eps)] * m, rtol=1e-12)


@given(matrices(), gains)
def test_shifted_is_the_pair_where_rows_have_no_second_block(size, eps):
    m, n = size
    assume(n < 2 * m or n == 2 * m == 2)
    assert np.array_equal(ir.idiz(size, eps=eps, form="shifted"), ir.idiz(size, eps=eps))


@given(matrices(), st.integers(0, 2**63 - 1))
def test_loosening_is_numpy_noise_row_by_row(size, seed):
    m, n = size
    noise = ir.idi(size, loosen=0.5, seed=seed) - ir.idi(size)
    for r in range(m):
        drawn = np.random.Generator(np.random.Philox(key=[seed, r])).standard_normal(n)
        np.testing.assert_allclose(noise[r], 0.5 * drawn, atol=1e-15, err_msg=f"row {r}")


@given(matrices(), st.integers(0, 2**63 - 1))
def test_loosening_of_the_entries_leaves_zeros(size, seed):
    """The same draws, at the entries that are not 0."""
    m, n = size
    everywhere = ir.idi(size, loosen=0.5, seed=seed)
    entries = ir.idi(size, loosen=0.5, loosen_at="entries", seed=seed)
    expected = [[everywhere[i, j] if j == i % n else 0.0 for j in range(n)] for i in range(m)]
    assert np.array_equal(entries, expected)
