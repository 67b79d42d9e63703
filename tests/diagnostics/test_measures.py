"""Diagnostics against explicit matrices, closed forms and counting by hand."""

from __future__ import annotations

import math
import statistics
import warnings
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import idinit_ref as ir
from idinit_ref import diagnostics as dg
from idinit_ref.diagnostics.arrays import read
from idinit_ref.diagnostics.spectrum import _largest

KINDS = [
    "numpy", "array_api_strict", "strict-device", "torch", "bfloat16", "jax", "tensorflow",
    "tf.Variable", "keras", "nnx", "dask",
]  # fmt: skip


def array(kind, values):
    """The values, exact in bfloat16, as an array of some framework; float32 where it has it."""
    values = np.asarray(values, dtype=np.float32)
    if kind in ("array_api_strict", "strict-device"):
        import array_api_strict as xp

        return xp.asarray(
            values, device=xp.Device("device1") if kind != "array_api_strict" else None
        )
    if kind in ("torch", "bfloat16"):
        import torch

        return torch.tensor(values, requires_grad=True).to(
            getattr(torch, {"torch": "float32"}.get(kind, kind))
        )
    if kind in ("jax", "nnx"):
        import jax.numpy as jnp
        from flax import nnx

        return jnp.asarray(values) if kind == "jax" else nnx.Param(jnp.asarray(values))
    if kind in ("tensorflow", "tf.Variable"):
        import tensorflow as tf

        return tf.constant(values) if kind == "tensorflow" else tf.Variable(values)
    if kind == "keras":
        import keras

        return keras.Variable(values)
    if kind == "dask":
        import dask.array

        return dask.array.from_array(values)
    return values


def by_products(matrix, precision=2.0**-52):
    return dg.Operator(lambda v: matrix @ v, lambda u: matrix.T @ u, matrix.shape, precision)


def with_values(values, m, n, seed=0):
    """A dense m x n matrix with given singular values."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((size, len(values))))[0] for size in (m, n))
    return u * np.asarray(values) @ v.T


# Every framework's arrays -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_every_framework(kind):
    values = [[1.0, 0.0, 3.0], [0.0, -2.0, 0.0], [0.5, 0.0, 0.25], [4.0, 0.0, 8.0]]
    a = array(kind, values)
    flat = [x for row in values for x in row]
    found = dg.moments([a])
    assert found.mean[0] == pytest.approx(statistics.fmean(flat), rel=1e-15)
    assert found.variance[0] == pytest.approx(statistics.pvariance(flat), rel=1e-14)
    assert found.second.dtype == np.float64
    truth = np.linalg.svd(np.array(values), compute_uv=False)
    np.testing.assert_array_equal(dg.singular_values(a), truth)
    assert dg.chi(a).value == pytest.approx(sum(x * x for x in flat) / 3, rel=1e-15)
    assert dg.rank_of_change(a, array(kind, np.zeros((4, 3)))).rank == 3
    assert dg.gradient_coverage({"w": a}).zero[0] == 5 / 12
    assert dg.feature_correlation(a).distinct == 3


def test_gradients_of_lookups_are_rows_of_a_table():
    import tensorflow as tf
    import torch

    table = tf.Variable(np.ones((4, 2), dtype=np.float32))
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(tf.gather(table, [1, 3, 1]))
    gradient = tape.gradient(y, table)
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(read("g", gradient)[0], [[0, 0], [2, 2], [0, 0], [1, 1]])
    layer = torch.nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1, 3, 1])).sum().backward()
    assert dg.gradient_coverage([layer.weight.grad]).zero_rows[0] == 0.5


def test_arrays_without_values():
    import jax
    import torch

    with pytest.raises(ir.errors.OptionTypeError, match="readable"):
        dg.moments([torch.empty(3, device="meta")])
    with pytest.raises(ir.errors.OptionTypeError, match="outside jit"):
        jax.jit(lambda x: dg.moments([x]))(jax.numpy.ones(3))


# Moments ------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_standard_library():
    rng = np.random.default_rng(0)
    layers = {"a": rng.normal(3, 2, (5, 4)), "b": rng.normal(-1, 1, (5, 2, 3))}
    found = dg.moments(layers)
    assert found.names == ("a", "b")
    for at, x in enumerate(layers.values()):
        flat = x.ravel().tolist()
        assert found.mean[at] == pytest.approx(statistics.fmean(flat), rel=1e-14)
        assert found.variance[at] == pytest.approx(statistics.pvariance(flat), rel=1e-13)
        assert found.second[at] == pytest.approx(sum(v * v for v in flat) / len(flat), rel=1e-14)


def test_variance_over_samples_is_averaged_over_units():
    x = np.array([[1.0, 10.0], [3.0, 10.0]])
    assert dg.moments([x], axis=0).variance[0] == 0.5  # of 1 and 0
    assert dg.moments([x]).variance[0] == statistics.pvariance([1, 3, 10, 10])
    assert dg.moments([x], axis=(0, 1)).variance[0] == dg.moments([x]).variance[0]


def test_moments_hold_as_far_as_float64_does():
    found = dg.moments([np.array([3e200, -3e200]), np.array([3e150, -3e150])])
    assert found.second[0] == found.variance[0] == math.inf
    assert found.second[1] == pytest.approx(9e300, rel=1e-14)
    assert dg.moments([np.full(9, 1e-200), np.zeros(3)]).second.tolist() == [0.0, 0.0]


def test_idi_keeps_the_second_moment_through_a_hundred_relu_layers():
    """T6, in layers whose width changes: only tau = 1 keeps what the first ReLU has left."""
    x = np.random.default_rng(0).standard_normal((64, 8))
    widths = [8, *[8 + layer % 3 for layer in range(100)]]
    for tau in (1.0, math.sqrt(2)):
        layers, y = [], x
        for n, m in pairwise(widths):
            y = np.maximum(y @ ir.idi((m, n), gain=tau).T, 0)[:, :8] @ np.eye(8, m)
            layers.append(y)
        second = dg.moments(layers).second
        growth = tau ** (2 * np.arange(100))
        first = np.mean(np.maximum(x, 0) ** 2) * 8 / np.array(widths[1:]) * tau**2
        np.testing.assert_allclose(second, first * growth, rtol=1e-12, err_msg=f"tau = {tau}")


def test_the_table_is_aligned():
    text = str(dg.moments({"first": np.ones(2), "x": np.array([1e-7, 1e7])}))
    assert text.splitlines()[0] == "layer   mean  variance  second moment"
    assert len({len(line) for line in text.splitlines()}) == 1


# Singular values and chi --------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 99))
def test_singular_values_of_an_operator_are_those_of_its_matrix(m, n, seed):
    a = np.random.default_rng(seed).standard_normal((m, n))
    gram = np.linalg.eigvalsh(a @ a.T if m <= n else a.T @ a)[::-1]
    for name, operator in (("by products", by_products(a)), ("a matrix", a)):
        squares = dg.singular_values(operator) ** 2
        np.testing.assert_allclose(squares, gram, atol=1e-13 * gram[0], err_msg=name)
    assert len(dg.singular_values(a, 1)) == 1


@pytest.mark.parametrize(("m", "n"), [(90, 60), (60, 90), (70, 70)])
@pytest.mark.parametrize("k", [1, 4, 9, 60])
@pytest.mark.parametrize(
    "values",
    [
        np.linspace(3, 1, 60),
        np.repeat([2.0, 1.5, 0.0], [7, 13, 40]),  # many times over, and rank 20 of 60
        np.ones(60),
        0.5 ** np.arange(60),
        np.zeros(60),
    ],
    ids=["spread", "repeated", "isometry", "geometric", "zero"],
)
def test_the_iteration_finds_all_copies(m, n, k, values):
    """Against the values that the matrix was made of; a single vector would see each once."""
    a = with_values(values, m, n)
    tall = a if n <= m else a.T
    found = _largest(by_products(tall), k, 1e-8, np.random.default_rng(0))
    np.testing.assert_allclose(found, values[:k], atol=1e-8 * 3)


def test_copies_among_many_other_values():
    """A single starting vector would give 3 once, and then what comes next."""
    d = np.r_[3.0, 3.0, 3.0, 2.5, 2.0, np.linspace(1, 0, 995)]
    op = dg.Operator(lambda v: d * v, lambda u: d * u, (1000, 1000))
    found = _largest(op, 3, 1e-4, np.random.default_rng(0))
    np.testing.assert_allclose(found, [3, 3, 3], rtol=1e-4)


def test_the_tolerance_bounds_the_error_and_spares_products():
    a = np.random.default_rng(0).standard_normal((500, 400))
    truth, calls = np.linalg.svd(a, compute_uv=False)[:2], []
    for tol in (1e-3, 1e-8):
        counted = []
        op = dg.Operator(lambda v, c=counted: c.append(1) or a @ v, lambda u: a.T @ u, a.shape)
        found = _largest(op, 2, tol, np.random.default_rng(0))
        np.testing.assert_allclose(found, truth, atol=tol * truth[0], err_msg=f"{tol=}")
        calls.append(len(counted))
    assert calls[0] < calls[1] < 400


def test_a_large_map_is_never_written_out():
    """A Householder reflection with its diagonal: values in closed form, and products counted."""
    n, calls = 20_000, []
    d = np.ones(n)
    d[[5, 77, 3000]] = 4.0, 4.0, 3.0
    w = np.random.default_rng(1).standard_normal(n)
    w /= np.linalg.norm(w)

    def reflect(v):
        return v - 2 * w * (w @ v)

    def push(v):
        calls.append(1)
        return reflect(d * v)

    op = dg.Operator(push, lambda u: d * reflect(u), (n, n))
    np.testing.assert_allclose(dg.singular_values(op, 3), [4, 4, 3], rtol=1e-9)
    assert len(calls) <= 30
    found = dg.chi(op)
    assert abs(found.value - np.mean(d**2)) < 4 * found.error
    assert 0 < found.error < 1e-2 * found.value
    np.testing.assert_array_equal(dg.singular_values(op, 3), dg.singular_values(op, 3))
    with pytest.raises(ir.errors.OptionError, match="k largest"):
        dg.singular_values(op)


def test_products_in_float32_settle():
    n = 400
    a = with_values(np.r_[3.0, 2.0, np.ones(n - 2)], n, n).astype(np.float32)

    def product(matrix):
        return lambda v: matrix @ v.astype(np.float32)

    op = dg.Operator(product(a), product(a.T), a.shape, 2.0**-23)
    np.testing.assert_allclose(dg.singular_values(op, 4), [3, 2, 1, 1], atol=64 * 2.0**-23 * 3)


def test_what_does_not_settle_says_so(monkeypatch):
    monkeypatch.setattr("idinit_ref.diagnostics.spectrum._BASIS", 6)
    a = np.random.default_rng(0).standard_normal((50, 40))
    with pytest.raises(ir.errors.OptionError, match="residual"):
        _largest(a, 2, 1e-12, np.random.default_rng(0))


@pytest.mark.parametrize(("m", "n", "tau"), [(6, 6, 0.5), (8, 3, 2.0), (7, 3, -1.0), (3, 8, 1.5)])
def test_idi_has_the_values_of_theorem_t5(m, n, tau):
    weight = ir.idi((m, n), gain=tau)
    copies = sorted((len(range(j, m, n)) for j in range(n)), reverse=True)[: min(m, n)]
    truth = [abs(tau) * math.sqrt(c) for c in copies]
    np.testing.assert_allclose(dg.singular_values(by_products(weight)), truth, rtol=1e-14)
    assert dg.chi(by_products(weight)).value == pytest.approx(m * tau**2 / n, rel=1e-14)
    assert dg.chi(weight.T).value == pytest.approx(tau**2, rel=1e-14)  # per input


@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
def test_a_chain_of_idi_has_chi_tau_to_the_2l(tau):
    weight, depth = ir.idi((5, 5), gain=tau), 40

    def chain(v):
        for _ in range(depth):
            v = weight @ v
        return v

    assert dg.chi(dg.Operator(chain, chain, (5, 5))) == (tau ** (2 * depth), 0.0)
    assert dg.singular_values(dg.Operator(chain, chain, (5, 5))).tolist() == [tau**depth] * 5


def test_estimates_of_chi_are_as_good_as_they_say():
    """Over 20 seeds: unbiased, and the deviations agree with the errors stated."""
    a = np.random.default_rng(3).standard_normal((1200, 1000)) * np.linspace(0.1, 2, 1000)
    truth = np.sum(a**2) / 1000
    found = [dg.chi(by_products(a), samples=8, seed=seed) for seed in range(20)]
    z = np.array([(f.value - truth) / f.error for f in found])
    assert abs(z.mean()) < 4 * 1.15 / math.sqrt(20)  # t of 7 degrees of freedom
    assert 0.8 < np.std(z) < 1.7
    assert np.mean([f.error for f in found]) < 0.02 * truth
    assert found[0] == dg.chi(by_products(a), samples=8, seed=0)


def test_few_directions_are_summed_and_not_sampled():
    a = with_values(10.0 / 3.0 ** np.arange(40), 1300, 1100)
    found = dg.chi(by_products(a))
    assert found.value == pytest.approx(np.sum(a**2) / 1100, rel=1e-12)
    assert found.error < 1e-12 * found.value


def test_chi_of_wide_maps_counts_per_input():
    a = np.random.default_rng(0).standard_normal((900, 1500))
    found = dg.chi(by_products(a))
    assert abs(found.value - np.sum(a**2) / 1500) < 4 * found.error
    assert found.error > 0


@pytest.mark.parametrize(("m", "n"), [(7, 3), (6, 3), (4, 4), (1, 1), (9, 1)])
@pytest.mark.parametrize("tau", [1.0, -0.3, 1e200, 1e-200])
def test_the_stable_rank_of_idi_is_that_of_theorem_t5(m, n, tau):
    matrix = ir.idi((m, n), gain=tau)
    assert dg.stable_rank(matrix) == (pytest.approx(m / math.ceil(m / n), rel=1e-12), 0)
    assert dg.stable_rank(by_products(matrix)) == (pytest.approx(m / math.ceil(m / n)), 0)


def test_the_stable_rank_of_a_large_map_is_an_estimate():
    sizes = np.ones(3000)
    sizes[:2] = 10, 5
    found = dg.stable_rank(dg.Operator(lambda v: sizes * v, lambda u: sizes * u, (3000, 3000)))
    assert abs(found.value - (125 + 2998) / 100) <= 4 * found.error + 1e-9
    assert dg.stable_rank(np.zeros((2, 3))) == (0, 0)


def test_operators_of_scipy_will_do():
    class Theirs:
        shape, dtype = (2, 3), np.dtype("float32")

        def matvec(self, v):
            return np.array([v[0] + v[1], 2 * v[2]])

        def rmatvec(self, u):
            return np.array([u[0], u[0], 2 * u[1]])

    np.testing.assert_allclose(dg.singular_values(Theirs()), [2, math.sqrt(2)], rtol=1e-15)


def test_products_that_are_not_a_transpose_are_found_out():
    a = np.random.default_rng(0).standard_normal((1200, 1100))
    for wrong in (a.T * 1.01, a.T[::-1], -a.T):
        odd = dg.Operator(lambda v: a @ v, lambda u, wrong=wrong: wrong @ u, a.shape)
        for call in (dg.chi, lambda op: dg.singular_values(op, 2)):
            with pytest.raises(E.OptionError, match="transpose"):
                call(odd)
    single = a.astype(np.float32)  # honest products of another precision than is said: no error
    honest = dg.Operator(
        lambda v: single @ v.astype(np.float32), lambda u: single.T @ u.astype(np.float32), a.shape
    )
    assert dg.chi(honest).value == pytest.approx(np.sum(a**2) / 1100, rel=0.05)


def test_products_of_vectors_and_columns():
    a = np.arange(6.0).reshape(2, 3)
    op = by_products(a)
    np.testing.assert_array_equal(op @ np.ones(3), [3, 12])
    np.testing.assert_array_equal(op.T @ np.eye(2), a.T)


# Training -----------------------------------------------------------------------------------------


def test_the_rank_of_a_change_is_that_of_the_steps():
    """Gradient steps on two samples in float32: rank 2, however the weight started."""
    rng = np.random.default_rng(0)
    for start in (ir.idi((30, 20)), rng.standard_normal((30, 20))):
        weight = initial = start.astype(np.float32)
        samples = rng.standard_normal((2, 20))
        for _ in range(5):
            step = sum(np.outer(rng.standard_normal(30), x) for x in samples)
            weight = (weight - 0.01 * step).astype(np.float32)
        found = dg.rank_of_change(weight, initial)
        assert found.rank == 2
        assert found.singular_values[1] > found.tol > found.singular_values[2]
        assert dg.rank_of_change(weight, initial, tol=1e3).rank == 0
    assert dg.rank_of_change(initial, initial).rank == 0


def test_kernels_have_a_row_for_each_output():
    rng = np.random.default_rng(0)
    change = np.einsum(
        "ro,rihw->oihw", rng.standard_normal((2, 8)), rng.standard_normal((2, 3, 3, 3))
    )
    initial = ir.idi((8, 3, 3, 3))
    assert dg.rank_of_change(initial + change, initial).rank == 2
    stored = [np.transpose(w, (2, 3, 1, 0)) for w in (initial + change, initial)]
    assert dg.rank_of_change(*stored, layout="HWIO").rank == 2
    assert dg.rank_of_change(*stored).rank > 2  # the axes named wrong: another matrix


def test_coverage_is_counted():
    gradients = {
        "a": np.array([[0.0, 0, 0], [0, 1, 0]]),
        "b": None,
        "c": np.float64(0),
        "d": np.ones(2),
    }
    parameters = {"b": np.ones((2, 5)), "a": None}
    found = dg.gradient_coverage(gradients, parameters)
    assert found.names == ("a", "b", "c", "d")
    assert found.zero.tolist() == [5 / 6, 1, 1, 0]
    assert found.zero_rows.tolist() == [0.5, 1, 1, 0]
    assert found.overall == 16 / 19
    assert found.overall_rows == 4 / 7
    assert dg.gradient_coverage([gradients["a"]], outputs=-1).zero_rows[0] == 2 / 3
    assert "16" not in str(found)
    assert str(found).splitlines()[-1].split() == ["overall", "0.8421", "0.5714"]


def test_sparse_tensors_of_tensorflow_hold_zeros_too():
    import tensorflow as tf

    sparse = tf.sparse.from_dense([[0.0, 5.0], [0.0, 0.0]])
    assert dg.moments([sparse]).mean[0] == 1.25
    assert dg.gradient_coverage([sparse]).zero[0] == 0.75


def test_the_largest_numbers_do_not_overflow_on_the_way():
    eye = np.eye(3)
    assert dg.rank_of_change(1e300 * eye, 0.5e300 * eye).rank == 3
    assert dg.rank_of_change(1e308 * eye, -1e308 * eye).rank == 3  # the change is beyond float64
    assert dg.rank_of_change(5e-324 * eye, 0 * eye).rank == 3
    found = dg.moments([np.full(4, 1.7e308)])
    assert (found.mean[0], found.variance[0]) == (1.7e308, 0)
    rank_one = dg.singular_values(np.full((3, 3), 5e307))
    assert rank_one[0] == pytest.approx(1.5e308)
    assert rank_one[1] < 1e-10 * rank_one[0]


def test_the_smallest_gradient_is_not_zero():
    assert dg.gradient_coverage([np.array([5e-324, -0.0])]).overall == 0.5


def test_zero_ends_of_branches_stop_gradients_and_eps_does_not():
    """d/dW1 of W2 relu(W1 x) at step 0: W2^T g where W1 x > 0; by hand from the two matrices."""
    x, g = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 2.0])
    for eps, rows in ((1e-6, 0.0), (None, 1.0)):
        w2 = np.zeros((3, 3)) if eps is None else ir.idiz((3, 3), eps=eps)
        gradient = np.outer(w2.T @ g, x)
        assert dg.gradient_coverage({"w1": gradient}).overall_rows == rows


def test_correlation_is_that_of_numpy():
    x = np.random.default_rng(0).standard_normal((50, 6)) @ np.random.default_rng(1).random((6, 6))
    found = dg.feature_correlation(x)
    np.testing.assert_allclose(found.matrix, np.corrcoef(x.T), atol=1e-14)
    assert found.distinct == 6
    assert found.pairs.shape == (0, 2)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 99))
def test_outputs_of_a_tall_idi_are_copies(n, m, seed):
    """T1: output i is input i mod n, also with scales and shifts of either sign."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((20, n)) @ ir.idi((m, n)).T
    x = x * rng.choice([-3.0, 0.5], m) + rng.integers(-2, 3, m)
    found = dg.feature_correlation(x.astype(np.float32))
    assert found.distinct == min(m, n)
    copies = [(i, j) for i, j in combinations(range(m), 2) if i % n == j % n]
    assert [tuple(pair) for pair in found.pairs] == copies


def test_constant_units_have_no_correlation():
    rng = np.random.default_rng(0)
    x = np.hstack([rng.standard_normal((9, 2)), np.full((9, 1), 0.1), np.zeros((9, 1))])
    x[:, 2] += np.arange(9) % 2 * 1e-17  # less than a rounding of 0.1
    found = dg.feature_correlation(x)
    assert found.constant.tolist() == [2, 3]
    assert found.distinct == 2
    assert np.isnan(found.matrix[2:]).all()
    assert np.isnan(found.matrix[:, 2:]).all()
    assert not np.isnan(found.matrix[:2, :2]).any()
    assert dg.feature_correlation(np.ones((4, 3))).distinct == 0
    extreme = np.hstack([x[:, :1] * 1e300, x[:, 1:2] * 1e-300])
    assert dg.feature_correlation(extreme).distinct == 2


def test_channels_and_chains_of_pairs():
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 3))
    x = np.concatenate([x, -x[:, :1]], axis=1)
    found = dg.feature_correlation(x, units=1)
    assert found.pairs.tolist() == [[0, 2]]
    assert found.matrix[0, 2] == pytest.approx(-1)
    turn = np.linspace(0, 1, 12)  # each like the next, the ends not alike: one class
    ring = np.outer([1.0, -1, 0, 0], np.cos(turn)) + np.outer([0, 0, 1.0, -1], np.sin(turn))
    assert dg.feature_correlation(ring, tol=0.005).distinct == 1
    assert dg.feature_correlation(ring, tol=0.003).distinct == 12


# Gains --------------------------------------------------------------------------------------------


def quiet(activation, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.IdentityGainWarning)
        return dg.gaussian_gain(activation, *args, **options)


def below(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def relu(x):
    return np.maximum(x, 0)


def leaky(a):
    return lambda x: np.where(x > 0, x, a * x)


@pytest.mark.parametrize("sigma", [1e-3, 0.7, 1.0, 50.0])
def test_gains_of_homogeneous_activations(sigma):
    assert quiet(relu, sigma) == pytest.approx(math.sqrt(2), rel=1e-13)
    for a in (0.01, 0.2, -0.5, 1.0, -1.0, 3.0):
        assert quiet(leaky(a), sigma) == pytest.approx(math.sqrt(2 / (1 + a * a)), rel=1e-13)


def test_gains_in_closed_form():
    expected = {
        "exp": (np.exp, math.exp(-1)),
        "sin": (np.sin, ((1 - math.exp(-2)) / 2) ** -0.5),
        "cube": (lambda x: x**3, 15**-0.5),
        "sign": (np.sign, 1.0),
        "step": (lambda x: (x > 0.3) * 1.0, below(-0.3) ** -0.5),
    }
    for name, (activation, gain) in expected.items():
        assert dg.gaussian_gain(activation) == pytest.approx(gain, rel=1e-12), name


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_kinks_anywhere(sigma):
    """Hard tanh has its kinks at 1 and -1; its second moment in closed form."""
    c = 1 / sigma
    density = math.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    moment = sigma**2 * (1 - 2 * below(-c) - 2 * c * density) + 2 * below(-c)
    found = dg.gaussian_gain(lambda x: np.clip(x, -1, 1), sigma)
    assert found == pytest.approx(sigma * moment**-0.5, rel=1e-12)


def test_gauss_hermite_is_wrong_by_what_the_docstring_says():
    z, weights = np.polynomial.hermite_e.hermegauss(32)
    moment = weights @ np.clip(z, -1, 1) ** 2 / weights.sum()
    right = dg.gaussian_gain(lambda x: np.clip(x, -1, 1))
    assert abs(moment**-0.5 / right - 1) == pytest.approx(0.006, abs=5e-4)
    z, weights = np.polynomial.hermite_e.hermegauss(180)
    moment = weights @ np.tanh(z) ** 2 / weights.sum()  # smooth: the two agree
    assert dg.gaussian_gain(np.tanh) == pytest.approx(moment**-0.5, rel=1e-11)


def test_a_steep_activation_is_a_step():
    lost = 2e-9 / math.sqrt(2 * math.pi)  # of the mean of tanh(sigma z)^2: about z = 0
    assert dg.gaussian_gain(np.tanh, 1e9) / 1e9 - 1 == pytest.approx(lost / 2, rel=1e-5)
    assert dg.gaussian_gain(np.tanh, 1e-6) == pytest.approx(1, rel=1e-11)  # linear


def test_the_gain_keeps_the_second_moment_of_a_random_layer():
    z = np.random.default_rng(0).standard_normal(400_000) * 1.3
    gain = dg.gaussian_gain(np.tanh, 1.3)
    assert np.mean((gain * np.tanh(z)) ** 2) == pytest.approx(1.3**2, rel=0.01)


def test_activations_of_the_frameworks(x64):
    import array_api_strict
    import jax
    import tensorflow as tf
    import torch

    right = dg.gaussian_gain(np.tanh)
    for activation, xp in (
        (torch.tanh, torch), (jax.nn.tanh, jax.numpy), (tf.nn.tanh, None),
        (array_api_strict.tanh, array_api_strict),
    ):  # fmt: skip
        assert dg.gaussian_gain(activation, xp=xp) == pytest.approx(right, rel=1e-14)
    assert quiet(torch.nn.ReLU(), xp=torch) == pytest.approx(math.sqrt(2), rel=1e-14)
    kaiming = torch.nn.init.calculate_gain("leaky_relu", 0.2)
    leaking = torch.nn.LeakyReLU(0.2)
    assert quiet(leaking, xp=torch) == pytest.approx(kaiming, rel=1e-14)


def test_in_float32():
    import jax

    if jax.config.jax_enable_x64:
        pytest.fail("another test has left x64 on")
    assert dg.gaussian_gain(jax.nn.tanh, xp=jax.numpy) == pytest.approx(1.59253742, rel=1e-6)
    with pytest.warns(dg.IdentityGainWarning):
        assert dg.gaussian_gain(jax.nn.relu, xp=jax.numpy) == pytest.approx(2**0.5, rel=1e-6)


@pytest.mark.parametrize("a", [0.0, 0.01, 0.3, -0.5, 3.0, -3.0])
def test_the_warning_says_how_a_chain_of_identities_grows(a):
    """Theorem T6 by running the chain: 60 layers more, from both signs."""
    with pytest.warns(dg.IdentityGainWarning, match="T6") as caught:
        gain = dg.gaussian_gain(leaky(a))
    text = str(caught[0].message)
    y, sizes = np.array([1.0, -1.0]), []
    for _ in range(80):
        y = leaky(a)(gain * y)
        sizes.append(np.max(np.abs(y)))
    growth = (sizes[-1] / sizes[19]) ** (1 / 60)
    assert growth != pytest.approx(1, rel=1e-6)
    assert float(text.split("a signal by ")[1].split("^L")[0]) == pytest.approx(growth, rel=1e-5)
    tau = float(text.split("use tau = ")[1].split(",")[0])
    assert tau == pytest.approx(gain / growth, rel=1e-5)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "activation",
    [np.tanh, np.sin, np.abs, lambda x: x, lambda x: np.clip(x, -1, 1), lambda x: relu(x) ** 2,
     lambda x: np.clip(x, 0, 6), lambda x: x / (1 + np.exp(-np.clip(x, -99, 99)))],
)  # fmt: skip
def test_no_warning_where_t6_says_nothing(activation):
    assert dg.gaussian_gain(activation) > 0  # a warning is an error


# What is refused ----------------------------------------------------------------------------------


E = ir.errors
ONE, OP = np.ones((2, 2)), by_products(np.ones((2, 2)))
REFUSED = [
    (lambda: dg.moments(ONE), E.OptionTypeError, "list or mapping"),
    (lambda: dg.moments([]), E.OptionError, "empty"),
    (lambda: dg.moments([[1.0]]), E.OptionTypeError, "array"),
    (lambda: dg.moments([np.ones(0)]), E.ShapeError, "empty"),
    (lambda: dg.moments([ONE, np.array([1, np.nan])]), E.OptionError, r"'1'\]\[1\] = nan"),
    (lambda: dg.moments({"h": np.array(np.inf)}), E.OptionError, r"'h'\] = inf"),
    (lambda: dg.moments([np.ones(2, dtype=int)]), E.DTypeError, "int64"),
    (lambda: dg.moments([np.ones(2, dtype=complex)]), E.DTypeError, "real"),
    (lambda: dg.moments([ONE], axis=2), E.OptionError, "axis"),
    (lambda: dg.moments([ONE], axis="0"), E.OptionError, "axis"),
    (lambda: dg.singular_values(np.ones(3)), E.ShapeError, "2 axes"),
    (lambda: dg.singular_values(ONE, 3), E.OptionError, "k = 3"),
    (lambda: dg.singular_values(ONE, 0), E.OptionError, "k = 0"),
    (lambda: dg.singular_values(ONE, 1.5), E.OptionTypeError, "integer"),
    (lambda: dg.singular_values(ONE, tol=0.0), E.OptionError, "tol"),
    (lambda: dg.singular_values(ONE, tol=1), E.OptionError, "below 1"),
    (lambda: dg.singular_values(ONE, seed=-1), E.OptionError, "seed"),
    (lambda: dg.singular_values(None), E.OptionTypeError, "operator"),
    (lambda: dg.chi(ONE, samples=1), E.OptionError, "samples"),
    (lambda: dg.Operator(1, len, (2, 2)), E.OptionTypeError, "matvec"),
    (lambda: dg.Operator(len, len, (2,)), E.ShapeError, "pair"),
    (lambda: dg.Operator(len, len, (0, 2)), E.OptionError, "shape"),
    (lambda: dg.Operator(len, len, (2, 2), 0.0), E.OptionError, "precision"),
    (lambda: OP @ np.ones(3), E.ShapeError, "takes"),
    (lambda: dg.Operator(lambda v: np.ones(3), len, (2, 2)) @ np.ones(2), E.ShapeError, "product"),
    (lambda: dg.chi(dg.Operator(lambda v: v * np.nan, len, (2, 2))), E.OptionError, "product"),
    (lambda: dg.rank_of_change(ONE, np.ones((2, 3))), E.ShapeError, r"\(2, 3\)"),
    (lambda: dg.rank_of_change(np.ones(2), np.ones(2)), E.ShapeError, "bias"),
    (lambda: dg.rank_of_change(ONE, ONE, tol=-1.0), E.OptionError, "tol"),
    (lambda: dg.rank_of_change(ONE, ONE, layout="OO"), E.LayoutError, "twice"),
    (lambda: dg.rank_of_change(*[np.ones((2, 2, 2))] * 2, layout="EOI"), E.OptionError, "batch"),
    (lambda: dg.gradient_coverage([None]), E.OptionError, "parameters too"),
    (lambda: dg.gradient_coverage([None], [np.ones((0, 2))]), E.ShapeError, "empty"),
    (lambda: dg.moments([np.ma.masked_array([1.0, 2.0], [0, 1])]), E.OptionTypeError, "masked"),
    (lambda: dg.gradient_coverage([None], [None]), E.OptionError, "parameters too"),
    (lambda: dg.gradient_coverage({"a": None, "b": ONE}, {"b": ONE}), E.OptionError, "this name"),
    (lambda: dg.gradient_coverage({"a": ONE}, {"a": ONE, "b": ONE}), E.OptionError, r"\['b'\]"),
    (lambda: dg.gradient_coverage([ONE], [ONE, ONE]), E.OptionError, "in gradients"),
    (lambda: dg.gradient_coverage([ONE], [ONE[:1]]), E.ShapeError, "parameter's"),
    (lambda: dg.gradient_coverage([ONE.astype(int)]), E.DTypeError, "real and floating"),
    (lambda: dg.gradient_coverage([ONE], outputs=2), E.OptionError, "outputs"),
    (lambda: dg.feature_correlation(np.ones(4)), E.ShapeError, "2 axes"),
    (lambda: dg.feature_correlation(ONE), E.ShapeError, "3 samples"),
    (lambda: dg.feature_correlation(np.ones((4, 2)), units=2), E.OptionError, "units"),
    (lambda: dg.feature_correlation(np.ones((4, 2)), tol=2.0), E.OptionError, "tol"),
    (lambda: dg.gaussian_gain("relu"), E.OptionTypeError, "callable"),
    (lambda: dg.gaussian_gain(np.tanh, 0.0), E.OptionError, "sigma"),
    (lambda: dg.gaussian_gain(np.tanh, -1.0), E.OptionError, "positive"),
    (lambda: dg.gaussian_gain(np.tanh, nodes=3), E.OptionError, "nodes"),
    (lambda: dg.gaussian_gain(np.tanh, xp="numpy"), E.OptionTypeError, "xp"),
    (lambda: dg.gaussian_gain(lambda x: x * 0), E.OptionError, "not 0"),
    (lambda: dg.gaussian_gain(lambda x: x[:3]), E.ShapeError, "elementwise"),
    (lambda: dg.gaussian_gain(lambda x: 1.0), E.OptionTypeError, "array"),
    (lambda: dg.gaussian_gain(lambda x: x / np.inf + np.nan), E.OptionError, "finite"),
    (lambda: dg.gaussian_gain(np.exp, 6.0), E.OptionError, "converge"),
    (lambda: dg.gaussian_gain(lambda x: np.exp(x * x)), E.OptionError, "converge"),
    (lambda: dg.gaussian_gain(lambda x: np.random.default_rng(0).random(x.shape)), E.OptionError,
     "converge"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "said"), REFUSED)
def test_what_is_refused(call, error, said):
    with pytest.raises(error, match=said) as caught:
        call()
    assert all(part in str(caught.value) for part in (" = ", ", but ", "; "))
