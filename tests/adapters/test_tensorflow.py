"""Initializers and variables, on whichever backend Keras runs with.

One process has one Keras backend. Everything here holds on all of them, except two sections that
only TensorFlow or JAX collect; test_keras_backends.py runs this file on the others.
"""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import by_hand

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import idinit_ref_tensorflow as it
from idinit_ref import errors, plan
from idinit_ref_tensorflow import _initializers as initializers
from strategies import examples

BACKEND = keras.backend.backend()
KERAS = {2: "IO", 3: "WIO", 4: "HWIO", 5: "DHWIO"}
FORMATS = {
    "float32": (24, -126),
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float8_e4m3fn": (4, -6),
}
# Keras (3.15) converts its variables with np.array(), which NumPy 2 wants to pass a copy keyword.
keras_array = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def expected(shape, role="transit", dtype="float32", layout=None, **options):
    """Spec by hand, rounded by hand, in Keras' axis order."""
    exact = by_hand.weight(shape, role, layout=layout or KERAS[len(shape)], **options)
    known = {value: by_hand.nearest(value, *FORMATS[dtype]) for value in np.unique(exact).tolist()}
    return np.array([known[value] for value in exact.ravel().tolist()]).reshape(shape)


def check(got, want, dtype="float32"):
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    assert tuple(got.shape) == want.shape
    assert np.array_equal(np.asarray(got).astype(np.float64), want)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_large_weight_is_its_own_memory(dtype):
    """It outlives the array that it was made from, and what is trained does not change it."""
    shape = (300, 257)
    made = [it.IDI()(shape, dtype=dtype) for _ in range(3)]
    gc.collect()
    junk = [np.full(shape, 7.0) for _ in range(50)]  # where freed memory would be used again
    variable = keras.Variable(made[0])
    variable.assign_add(keras.ops.ones(shape, dtype=dtype))
    product = keras.ops.matmul(keras.ops.transpose(made[1]), made[2])  # kernels ask for alignment
    assert len(junk) == 50
    want = expected(shape)  # of ones, which every dtype holds
    for weight in made:
        check(weight, want, dtype)
    check(product, want.T @ want, dtype)
    check(variable, want + 1, dtype)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def variable(shape=(4, 3), dtype="float32"):
    return keras.Variable(np.full(shape, 7), dtype=dtype)


# The initializers' numbers ------------------------------------------------------------------

sizes = st.integers(1, 5)
gains = st.floats(0.01, 100).flatmap(lambda x: st.sampled_from([x, -x]))
taps = st.sampled_from(["outward", "diagonal", "center", "channel_major", "spatial_major"])


@given(st.lists(sizes, min_size=2, max_size=5), gains, taps, st.data())
def test_idi_is_the_spec_in_keras_axis_order(shape, gain, taps, data):
    wide = data.draw(st.sampled_from(["truncate", "fold_rms", "fold_mean"]))
    got = it.IDI(gain, wide=wide, taps=taps, layout=KERAS[len(shape)])(shape)
    check(got, expected(tuple(shape), gain=gain, wide=wide, taps=taps))


@given(st.lists(sizes, min_size=2, max_size=5), gains, taps)
def test_idiz_is_the_spec_in_keras_axis_order(shape, eps, taps):
    got = it.IDIZ(eps, taps=taps, layout=KERAS[len(shape)])(shape)
    check(got, expected(tuple(shape), "zero", eps=eps, taps=taps))


OPTIONS = [
    ((3, 6), {"blocks": (2, 4)}),
    ((6, 3), {"layout": "OI"}),
    ((2, 3, 4), {"layout": "EIO"}),
    ((3, 2, 6), {"groups": 3}),
    ((3, 3, 6, 2), {"groups": 6, "transposed": True, "taps": "center"}),
    ((3, 2, 2, 4), {"taps": "center", "tap": (2, 1)}),
    ((3, 2, 2, 4), {"taps": "diagonal", "tap": (2, 1)}),
    ((4, 3, 2, 3), {"layout": "HWOI", "stride": (2, 3), "tap": (1, 0)}),
    ((4, 3, 2), {"stride": (-2,)}),
]


NOISE = [((3, 6), {"loosen": 0.125, "seed": 5}), ((3, 6), {"loosen": 0.5, "loosen_at": "entries"})]


@pytest.mark.parametrize(("shape", "options"), [*OPTIONS, *NOISE])
def test_idi_takes_every_option(shape, options):
    check(it.IDI(0.3, **options)(shape), expected(shape, gain=0.3, **options))


@pytest.mark.parametrize(("shape", "options"), [*OPTIONS, ((7, 3), {"form": "shifted"})])
def test_idiz_takes_every_option(shape, options):
    check(it.IDIZ(0.3, **options)(shape), expected(shape, "zero", eps=0.3, **options))


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_dtype_is_rounded_once_to_nearest_even(dtype):
    check(it.IDI(1 / 3)((4, 5), dtype=dtype), expected((4, 5), dtype=dtype, gain=1 / 3), dtype)
    eps = 0.3 if dtype.startswith("float8") else 1e-6
    check(it.IDIZ(eps)((4, 5), dtype), expected((4, 5), "zero", dtype, eps=eps), dtype)


def test_float16_that_float32_would_round_twice():
    gain = 1 + 2**-11 + 2**-30  # by way of float32 it is a tie, and goes down to 1
    check(it.IDI(gain)((3, 2), "float16"), (1 + 2**-10) * np.eye(3, 2), "float16")


def test_complex_has_no_imaginary_part():
    got = np.asarray(it.IDI(-0.75)((4, 3), "complex64"))
    assert got.dtype == np.complex64
    assert np.array_equal(got, -0.75 * np.eye(4, 3) + 0j)


def test_without_a_dtype_it_is_floatx():
    before = keras.config.floatx()
    keras.config.set_floatx("float16")
    try:
        check(it.IDI()((3, 2)), np.eye(3, 2), "float16")
    finally:
        keras.config.set_floatx(before)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 3, 0, 2)])
def test_empty_weights_are_weights(shape):
    assert tuple(it.IDI()(shape).shape) == tuple(it.IDIZ()(shape).shape) == shape


# The initializers as Keras objects --------------------------------------------------------------


@pytest.mark.parametrize(
    "made",
    [
        it.IDI(),
        it.IDI(-0.75, wide="fold_rms", layout="IO", blocks=(1, 2), loosen=0.5, seed=3),
        it.IDI(np.float32(0.5), groups=np.int64(2), taps="center", tap=(1, 0)),
        it.IDI(layout="HWOI", stride=(2, -3), tap=(1, 0), loosen=0.5, loosen_at="entries"),
        it.IDI(stride=[2]),
        it.IDIZ(),
        it.IDIZ(form="shifted", stride=(1, 2), taps="diagonal"),
        it.IDIZ(0.5, layout="HWIO", transposed=True, groups=2, blocks=[4], taps="spatial_major"),
    ],
)
def test_config_goes_around(made):
    config = made.get_config()
    assert json.loads(json.dumps(config)) == config
    assert type(made).from_config(config).get_config() == config
    assert made.clone().get_config() == config
    served = keras.initializers.serialize(made)
    again = keras.initializers.get(json.loads(json.dumps(served)))
    assert type(again) is type(made)
    assert again.get_config() == config


def test_config_names_every_argument():
    config = it.IDI(-0.75, blocks=(1, 2), taps="center", tap=(1, 1), groups=3).get_config()
    assert config == {
        "gain": -0.75,
        "wide": "truncate",
        "layout": None,
        "groups": 3,
        "transposed": False,
        "stride": None,
        "blocks": [1, 2],
        "taps": "center",
        "tap": [1, 1],
        "loosen": 0.0,
        "loosen_at": "all",
        "seed": 0,
    }
    assert it.IDIZ(eps=0.5).get_config() == {
        "eps": 0.5,
        "form": "pair",
        "layout": None,
        "groups": 1,
        "transposed": False,
        "stride": None,
        "blocks": None,
        "taps": "outward",
        "tap": None,
    }


@pytest.mark.parametrize(
    ("named", "gain"),
    [
        (it.IDI(gain=2.0), 2.0),
        (it.IDI, 1.0),
        ("idinit_ref>IDI", 1.0),
        ({"class_name": "idinit_ref>IDI", "config": {"gain": 2.0}}, 2.0),
    ],
)
def test_a_layer_takes_it_by_any_name(named, gain):
    layer = keras.layers.Dense(5, kernel_initializer=named)
    x = normal(2, 3)
    y = np.asarray(layer(x))
    assert np.array_equal(y, np.float32(gain) * x[:, [0, 1, 2, 0, 1]])


@keras_array
def test_a_saved_model_comes_back_whole(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(7, kernel_initializer=it.IDI(gain=-0.75, blocks=(4, 3))),
            keras.layers.Dense(3, kernel_initializer=it.IDIZ(eps=0.5)),
        ]
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    want = [expected((3, 7), gain=-0.75, blocks=(4, 3)), expected((7, 3), "zero", eps=0.5)]
    for old, new, kernel in zip(model.layers, again.layers, want, strict=True):
        assert type(new.kernel_initializer) is type(old.kernel_initializer)
        assert new.kernel_initializer.get_config() == old.kernel_initializer.get_config()
        check(new.kernel, kernel)
    # And the reloaded initializer still makes the same weights.
    check(again.layers[0].kernel_initializer((3, 7)), want[0])


def test_mixed_precision_keeps_float32_variables():
    layer = keras.layers.Dense(5, kernel_initializer=it.IDI(1 / 3), dtype="mixed_bfloat16")
    y = layer(np.ones((2, 3), np.float32))
    check(layer.kernel, expected((3, 5), gain=1 / 3))
    check(y, np.full((2, 5), by_hand.nearest(1 / 3, *FORMATS["bfloat16"])), "bfloat16")


def test_a_model_with_it_trains():
    x, y = normal(8, 3), normal(8, 2)
    model = keras.Sequential(
        [
            keras.layers.Dense(4, "tanh", kernel_initializer=it.IDI()),
            keras.layers.Dense(2, kernel_initializer=it.IDIZ(1e-3)),
        ]
    )
    model.compile("sgd", "mse")
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=3, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before


# Theorems of the spec, through real layers of every dtype ----------------------------------------

UNITS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
if BACKEND != "jax":  # which has float64 only where a whole process asks for it
    UNITS["float64"] = 2.0**-52
seeds = st.integers(0, 99)
signed_gains = st.sampled_from([1.0, -1.0, -0.5, 4.0]) | st.floats(0.02, 50).flatmap(
    lambda x: st.sampled_from([x, -x])
)


def power_of_two(gain):
    return abs(math.frexp(gain)[0]) == 0.5


def dense(units, made, **options):
    return keras.layers.Dense(units, kernel_initializer=made, use_bias=False, **options)


def theorem(*strategies):
    """A small budget: making a layer is slow, and JAX compiles every shape."""
    budget = settings(max_examples=4 if BACKEND == "jax" else examples(8), deadline=None)
    return lambda test: budget(given(*strategies)(test))


class KerasKind(NamedTuple):
    """Layers of a dtype: convolutions of a kernel, or dense where there is none."""

    dtype: str
    kernel: tuple[int, ...] = ()

    @property
    def unit(self):
        """The distance from 1 to the next number.

        A rounding errs by half of it at most; TensorFlow cuts bfloat16 products off, by up to all.
        """
        return UNITS[self.dtype]

    @property
    def size(self):
        return range(4, 4 + len(self.kernel))

    def rounded(self, value):
        """A number as the dtype holds it, by hand."""
        return value if self.dtype == "float64" else by_hand.nearest(value, *FORMATS[self.dtype])

    def held(self, numbers):
        return numbers.astype(np.dtype(self.dtype)).astype(np.float64)

    def signal(self, n, seed, samples=5):
        """Numbers of both signs, away from 0, so that none becomes subnormal: (samples, ..., n)."""
        numbers = np.random.default_rng(seed).standard_normal((samples, *self.size, n))
        return self.held(numbers + np.copysign(1 / 16, numbers))

    def run(self, layer, x):
        return np.asarray(layer(x)).astype(np.float64)

    def made(self, units, initializer, **options):
        options |= {"dtype": self.dtype}
        if not self.kernel:
            return dense(units, initializer, **options)
        conv = keras.layers.Conv1D if len(self.kernel) == 1 else keras.layers.Conv2D
        options |= {"kernel_initializer": initializer, "use_bias": False}
        return conv(units, self.kernel, padding="same", **options)

    def idi(self, units, x, activation=None, **options):
        initializer = it.IDI(taps="center", **options)
        return self.run(self.made(units, initializer, activation=activation), x)


dense_kinds = st.sampled_from([*UNITS]).map(KerasKind)
kernels = st.lists(st.sampled_from([1, 3]), max_size=2).map(tuple)
kinds = st.builds(KerasKind, st.sampled_from([*UNITS]), kernels)


@theorem(sizes, st.integers(1, 9), kinds, seeds, signed_gains)
def test_t1_a_layer_repeats_its_input(n, m, kind, seed, gain):
    """Output i is tau x[i mod n], for a tall layer all inputs and for a wide one the first m.

    All other products are 0, so that only tau x is rounded; for powers of two, nothing is.
    """
    x, cycle = kind.signal(n, seed), np.arange(m) % n
    assert np.array_equal(kind.idi(m, x), x[..., cycle])
    slack = 0 if power_of_two(gain) else kind.unit
    wanted = kind.rounded(gain) * x[..., cycle]
    np.testing.assert_allclose(kind.idi(m, x, gain=gain), wanted, rtol=slack)


@theorem(sizes, st.integers(1, 9), kinds, seeds, signed_gains)
def test_t2_the_variance_whatever_the_covariance(n, m, kind, seed, gain):
    """Exact for powers of two.

    Else y differs from tau x by two roundings, of tau and of y, and a standard deviation moves by
    at most the root mean square of that difference. Float64 adds up to 1000 numbers in pairs.
    """
    draw = np.random.default_rng(seed).integers  # whole numbers: halves of them are not subnormal
    x = kind.held(draw(-9, 10, (50, *kind.size, n)) @ draw(-3, 4, (n, n)))
    y = kind.idi(m, x, gain=gain)
    for i in range(m):
        before, after = np.ravel(x[..., i % n]), np.ravel(y[..., i])
        if power_of_two(gain):
            assert after.var() == gain**2 * before.var()
        else:
            slack = (1.6 * kind.unit + 1e-14) * math.sqrt(np.mean(before**2))
            assert abs(after.std() / abs(gain) - before.std()) <= slack


@theorem(sizes, st.integers(1, 9), dense_kinds, signed_gains)
def test_t2_and_t5_of_a_matrix(n, m, kind, gain):
    """One entry a row, tau as the dtype holds it, exactly; c_j of them in column j.

    So the columns are orthogonal, of norm tau sqrt(c_j): the singular values, whose tolerance is
    that of the decomposition.
    """
    w = kind.idi(m, np.eye(n), gain=gain).T
    tau = abs(kind.rounded(gain))
    assert np.array_equal(np.abs(w).sum(axis=1), np.full(m, tau))
    assert np.array_equal(np.count_nonzero(w, axis=1), np.ones(m))
    values = np.linalg.svd(w, compute_uv=False)
    copies = [len(range(j, m, n)) for j in range(min(m, n))]  # falling
    np.testing.assert_allclose(values, tau * np.sqrt(copies), rtol=1e-13)


@theorem(sizes, st.integers(1, 9), dense_kinds, signed_gains)
def test_t3_fold_rms(m, n, kind, gain):
    """Rows of norm tau; that of the output's variance where folded inputs are uncorrelated.

    An entry errs by unit / 2, so a row's norm too; the rest are float64's n + 2 roundings. The
    variance is a square, so twice that; a sum of k equal entries has k - 1 cuts more.
    """
    layer = kind.made(m, it.IDI(gain, wide="fold_rms"))
    # The coordinates of e_1 .. e_n, -e_1 .. -e_n have no covariance, and the variance 1 / n.
    # In the last two samples all are the same: k that fold together add up to k times theirs.
    eye, ones = np.eye(n), np.ones((1, n))
    y = kind.run(layer, np.concatenate([eye, -eye, ones, -ones]))
    norms = np.linalg.norm(y[:n], axis=0)
    np.testing.assert_allclose(norms, abs(gain), rtol=kind.unit + n * 1e-15)
    variance = y[:-2].var(axis=0) * n
    np.testing.assert_allclose(variance, gain**2, rtol=3 * kind.unit + n * 1e-14)
    folded = np.array([max(1, len(range(i, n, m))) for i in range(m)])
    variance = y[-2:].var(axis=0)
    rtol = 2 * n * kind.unit + n * 1e-14
    np.testing.assert_allclose(variance, gain**2 * folded, rtol=rtol)
    assert np.array_equal(abs(variance - gain**2) > gain**2 / 2, folded > 1)


@theorem(sizes, st.integers(0, 7), kinds, seeds)
def test_t4_wide_after_tall(n, more, kind, seed):
    """The identity for truncate, exactly, and for fold_mean, but not for fold_rms.

    A mean of k copies of x rounds 1 / k and cuts k products and k - 1 sums, none larger than x.
    """
    m, x = n + more, kind.signal(n, seed)
    between = kind.idi(m, x)
    assert np.array_equal(kind.idi(n, between), x)
    mean = kind.idi(n, between, wide="fold_mean")
    assert np.all(np.abs(mean - x) <= 2 * m * kind.unit * np.abs(x))
    rms = kind.idi(n, between, wide="fold_rms")
    if m == n:
        assert np.array_equal(mean, x)
        assert np.array_equal(rms, x)
    else:  # input 0 has at least two copies, so at least sqrt(2) comes back of it
        assert np.all(np.abs(rms[..., 0]) >= 1.2 * np.abs(x[..., 0]))


@theorem(sizes, st.integers(1, 6), dense_kinds, st.sampled_from([1.0, -1.0]) | st.floats(0.5, 2))
def test_t5_a_product_of_square_layers(n, depth, kind, gain):
    """A multiple p of the identity, exactly; p is cut once for each layer."""
    layers = [kind.made(n, it.IDI(gain)) for _ in range(depth)]
    product = kind.run(keras.Sequential(layers), kind.held(np.eye(n)))
    p, tau = product[0, 0], kind.rounded(gain)
    assert np.array_equal(product, p * np.eye(n))
    assert abs(p - tau**depth) <= depth * kind.unit * abs(tau) ** depth
    values = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(values, abs(p), rtol=1e-13)
    assert (p**2 == 1) == (abs(tau) == 1)  # chi


@theorem(
    sizes,
    st.integers(1, 5),
    kinds,
    seeds,
    st.sampled_from([1.0, 0.5, 2.0, 2**0.5]) | st.floats(0.5, 2),
)
def test_t6_a_chain_of_relu_layers(n, depth, kind, seed, gain):
    """Exact for powers of two; else each layer cuts once."""
    x = kind.signal(n, seed)
    x[0] = np.abs(x[0])  # some of it goes through
    y, tau, moments = x, kind.rounded(gain), []
    for _ in range(depth):
        y = kind.idi(n, y, "relu", gain=gain)
        moments.append(np.mean(y**2))
    slack = 0 if power_of_two(gain) else depth * kind.unit
    np.testing.assert_allclose(y, tau**depth * np.maximum(x, 0), rtol=slack)
    # The second moment goes as tau^2 from layer to layer: only tau = 1 keeps it.
    growth = moments[-1] / moments[0]
    np.testing.assert_allclose(growth, tau ** (2 * depth - 2), rtol=2 * slack + 1e-13)
    assert (growth == 1) == (tau == 1 or depth == 1)


@theorem(
    sizes,
    sizes,
    kinds,
    seeds,
    st.sampled_from(["tanh", "relu", "softsign"]),
    st.sampled_from([1e-6, -(2.0**-13)]) | st.floats(1e-4, 1),
)
def test_t7_a_residual_block_is_the_identity_at_first(width, hidden, kind, seed, f, eps):
    """The branch cuts two products and a sum, and the addition rounds y once more.

    In float16 a product may be subnormal, which errs by half of the smallest number.
    """
    x = kind.signal(width, seed)
    inside = kind.idi(hidden, x, f)
    least = 2.0**-24 if kind.dtype == "float16" else 0
    bound = 2 * abs(kind.rounded(eps)) * np.abs(inside).max() * (1 + 3 * kind.unit) + least
    last = kind.made(width, it.IDIZ(eps))
    branch = kind.run(last, inside)
    assert np.abs(branch).max() <= bound
    y = kind.run(lambda x: keras.ops.cast(x, kind.dtype) + last(inside), x)
    assert np.all(np.abs(y - x) <= bound + kind.unit * np.abs(y))


# Errors of the initializers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"gain": 0}, errors.OptionError, ["gain = 0", "finite non-zero"]),
        ({"gain": "1"}, errors.OptionTypeError, ["gain = '1'", "Python float"]),
        ({"wide": "fold"}, errors.OptionError, ["wide = 'fold'", "'fold_rms'"]),
        ({"layout": "OO"}, errors.LayoutError, ["layout = 'OO'", "name every axis once"]),
        ({"layout": 3}, errors.OptionTypeError, ["layout = 3", "string of axis letters"]),
        ({"groups": 0}, errors.OptionError, ["groups = 0", ">= 1"]),
        ({"transposed": 1}, errors.OptionTypeError, ["transposed = 1", "True or False"]),
        ({"blocks": 5}, errors.OptionTypeError, ["blocks = 5", "blocks=(5,)"]),
        ({"blocks": (1, -2)}, errors.OptionError, ["blocks = (1, -2)", "axis 1"]),
        ({"blocks": (1, 2), "groups": 2}, errors.LayoutError, ["groups = 2", "divisor of 3"]),
        ({"taps": "middle"}, errors.OptionError, ["taps = 'middle'", "'center'"]),
        (
            {"tap": (1,), "taps": "spatial_major"},
            errors.OptionError,
            ["tap = (1,)", "use taps='outward'"],
        ),
        ({"stride": (2, 0)}, errors.OptionError, ["stride = (2, 0)", "no 0"]),
        ({"stride": 2}, errors.OptionTypeError, ["stride = 2", "(2,)"]),
        ({"stride": (2,), "tap": (1, 1)}, errors.OptionError, ["stride = (2,)", "order D, H, W"]),
        ({"stride": (2,), "layout": "IO"}, errors.OptionError, ["stride = (2,)", "a matrix"]),
        ({"loosen_at": "entries"}, errors.OptionError, ["loosen_at = 'entries'", "loosen"]),
        ({"loosen": 1, "loosen_at": "row"}, errors.OptionError, ["loosen_at = 'row'", "pick one"]),
        ({"tap": "11", "taps": "center"}, errors.OptionTypeError, ["tap = '11'", "a tuple"]),
        (
            {"tap": (1,), "taps": "center", "layout": "HWIO"},
            errors.OptionError,
            ["tap = (1,)", "order D, H, W"],
        ),
        ({"loosen": -1}, errors.OptionError, ["loosen = -1", "standard deviation"]),
        ({"seed": 0.5}, errors.OptionTypeError, ["seed = 0.5", "whole number"]),
    ],
)
def test_a_wrong_option_fails_at_construction(options, error, parts):
    with pytest.raises(error) as caught:
        it.IDI(**options)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_wrong_eps_fails_at_construction():
    with pytest.raises(errors.OptionError, match=r"eps = nan.* finite non-zero"):
        it.IDIZ(float("nan"))


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        (((3,),), errors.ShapeError, ["shape = (3,)", "a bias is not a weight"]),
        ((3,), errors.OptionTypeError, ["shape = 3", "shape=(3, 3)"]),
        (((3, None),), errors.OptionTypeError, ["shape = (3, None)", "true length"]),
        (((3, 2), "int32"), errors.DTypeError, ["dtype = 'int32'", "choose float64"]),
        (((3, 2), "foo"), errors.DTypeError, ["dtype = 'foo'", "pass a name such as"]),
        (((3, 2), None, "OI"), errors.OptionTypeError, ["layout = 'OI'", "IDI(layout='OI')"]),
    ],
)
def test_a_wrong_call_says_so(arguments, error, parts):
    with pytest.raises(error) as caught:
        it.IDI()(*arguments)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_eps_that_fp8_cannot_hold_is_refused():
    with pytest.raises(errors.RoundingError, match=r"eps = 1e-06.*use at least 0\.001953125"):
        it.IDIZ()((3, 3), "float8_e4m3fn")


# Variables in place ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_variable_keeps_its_identity_shape_and_dtype(dtype):
    kernel = variable((3, 5), dtype)
    assert it.idi_(kernel, gain=1 / 3) is kernel
    check(kernel, expected((3, 5), dtype=dtype, gain=1 / 3), dtype)
    eps = 0.3 if dtype.startswith("float8") else 1e-6
    assert it.idiz_(kernel, eps=eps) is kernel
    check(kernel, expected((3, 5), "zero", dtype, eps=eps), dtype)


NOISE = [((3, 6), {"loosen": 0.125, "seed": 5}), ((3, 6), {"loosen": 0.5, "loosen_at": "entries"})]


@pytest.mark.parametrize(("shape", "options"), [*OPTIONS, *NOISE])
def test_idi_in_place_takes_every_option(shape, options):
    check(it.idi_(variable(shape), gain=0.3, **options), expected(shape, gain=0.3, **options))


@pytest.mark.parametrize(("shape", "options"), [*OPTIONS, ((7, 3), {"form": "shifted"})])
def test_idiz_in_place_takes_every_option(shape, options):
    want = expected(shape, "zero", eps=0.3, **options)
    check(it.idiz_(variable(shape), eps=0.3, **options), want)


def test_in_place_a_fold():
    got = it.idi_(variable((5, 2)), wide="fold_rms")
    check(got, expected((5, 2), wide="fold_rms"))


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "error", "parts"),
    [
        ((4, 3), "int32", {}, errors.DTypeError, ["'int32'", "choose float64"]),
        ((4,), "float32", {}, errors.ShapeError, ["shape = (4,)", "set it to 0"]),
        ((4, 3), "float32", {"gain": 0}, errors.OptionError, ["gain = 0", "non-zero"]),
        ((4, 3), "float32", {"groups": 2}, errors.LayoutError, ["groups = 2", "divisor of 3"]),
        ((4, 3), "float16", {"gain": 1e6}, errors.RoundingError, ["gain = 1000000.0", "smaller"]),
    ],
)
def test_an_error_leaves_the_variable_alone(shape, dtype, options, error, parts):
    kernel = variable(shape, dtype)
    with pytest.raises(error) as caught:
        it.idi_(kernel, **options)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert np.all(np.asarray(kernel) == 7)


def test_noise_that_overflows_leaves_the_variable_alone():
    kernel = variable(dtype="float16")
    with pytest.raises(errors.RoundingError, match=r"gain \+ noise.*float16 is 65504.*smaller"):
        it.idi_(kernel, loosen=60000.0)
    assert np.all(np.asarray(kernel) == 7)


@pytest.mark.parametrize("change", [it.idi_, it.idiz_])
def test_what_is_no_variable_is_refused(change):
    array = np.full((4, 3), 7.0)
    with pytest.raises(errors.OptionTypeError, match=r"variable = 'ndarray'.*pass layer\.kernel"):
        change(array)
    assert np.all(array == 7)


def test_a_variable_that_holds_nothing_yet_is_refused():
    with keras.StatelessScope():
        late = keras.Variable(keras.initializers.Ones(), shape=(4, 3), name="late")
        with pytest.raises(errors.OptionError, match=r"variable = 'late'.*StatelessScope"):
            it.idi_(late)
    check(late, np.ones((4, 3)))


# Packaging -------------------------------------------------------------------------------------


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_keras_the_extra_is_named():
    done = python("import sys; sys.modules['keras'] = None; import idinit_ref_tensorflow")
    assert done.returncode != 0
    assert 'pip install "idinit-ref[tensorflow]"' in done.stderr


# TensorFlow alone ------------------------------------------------------------------------------

if BACKEND == "tensorflow":
    import tensorflow as tf

    @pytest.mark.parametrize("dtype", FORMATS)
    def test_a_tf_variable_keeps_its_identity_shape_and_dtype(dtype):
        kernel = tf.Variable(tf.cast(tf.fill((3, 5), 7.0), dtype))
        assert it.idi_(kernel, gain=1 / 3) is kernel
        check(kernel, expected((3, 5), dtype=dtype, gain=1 / 3), dtype)

    def test_a_complex_tf_variable():
        kernel = tf.Variable(np.full((3, 5), 7j, np.complex64))
        assert it.idiz_(kernel, eps=0.5) is kernel
        assert kernel.dtype == tf.complex64
        assert np.array_equal(kernel.numpy(), expected((3, 5), "zero", eps=0.5) + 0j)

    def test_a_float64_tf_variable_is_exact():
        kernel = it.idi_(tf.Variable(np.full((3, 5), 7.0)), gain=1 / 3)
        assert np.array_equal(kernel.numpy(), by_hand.weight((3, 5), gain=1 / 3, layout="IO"))

    @pytest.mark.nightly
    @pytest.mark.parametrize("dtype", FORMATS)
    @pytest.mark.parametrize("shape", [(640, 512), (3, 3, 256, 130)])
    def test_a_large_weight_is_a_tensor_like_any_other(shape, dtype):
        """It is written into TensorFlow's zeros; what is made of it can be written to."""
        got = it.IDIZ(0.5)(shape, dtype)
        want = plan(shape, "zero", layout=KERAS[len(shape)], eps=0.5).build()  # loops take long
        assert isinstance(got, tf.Tensor)
        check(got, want, dtype)
        variable = tf.Variable(got)
        variable.assign(it.IDI()(shape, dtype))
        check(got, want, dtype)
        inside = tf.function(lambda: it.IDIZ(0.5)(shape, dtype))()
        check(inside, want, dtype)

    @pytest.mark.cases(1)
    @pytest.mark.parametrize("shape", [(1500, 2900), (2900, 1500), (3, 3, 700, 701)])
    def test_a_huge_weight_is_as_numpy_makes_it(shape):
        layout = "HWIO"[-len(shape) :]
        for make in (it.IDI(), it.IDIZ(), it.IDI(loosen=0.1, seed=3)):
            options = {"loosen": 0.1, "seed": 3} if make.get_config().get("loosen") else {}
            role = "zero" if isinstance(make, it.IDIZ) else "transit"
            whole = plan(shape, role, layout=layout, **options).build(dtype=np.float32)
            assert np.array_equal(make(shape, "float32").numpy(), whole)
        assert not tf.zeros(shape).numpy().any()  # these are still what they were

    def test_zeros_that_cannot_be_written_to(monkeypatch):
        def copies(tensor):
            return memoryview(tensor.numpy().copy())

        monkeypatch.setattr(initializers, "memoryview", copies, raising=False)
        check(it.IDI()((640, 512), "float32"), np.eye(640, 512), "float32")

    @pytest.mark.parametrize("dtype", ["int32", "string", "qint8"])
    def test_a_tf_variable_that_cannot_hold_it_is_left_alone(dtype):
        value = np.full((3, 5), b"7" if dtype == "string" else 7)
        kernel = tf.Variable(
            tf.quantization.quantize(value.astype("float32"), 0, 9, tf.qint8).output
            if dtype == "qint8"
            else tf.constant(value, dtype)
        )
        before = kernel.numpy().tolist()
        with pytest.raises(errors.DTypeError, match=dtype):
            it.idi_(kernel)
        assert kernel.numpy().tolist() == before

    def test_a_tf_dtype_and_a_tf_shape():
        check(it.IDI()(tf.TensorShape((3, 2)), tf.bfloat16), np.eye(3, 2), "bfloat16")

    def test_inside_a_tf_function():
        kernel = tf.Variable(tf.fill((3, 5), 7.0))
        initial = it.IDI(0.5)

        @tf.function
        def both():
            it.idi_(kernel, gain=0.25)
            return initial((3, 5))

        check(both(), expected((3, 5), gain=0.5))
        check(kernel, expected((3, 5), gain=0.25))

    @pytest.mark.parametrize("compiled", [False, True])
    def test_a_layer_that_is_built_inside_a_tf_function(compiled):
        layer = dense(5, it.IDI())
        x = normal(2, 3)
        y = tf.function(layer, jit_compile=compiled)(tf.constant(x))
        assert np.array_equal(y.numpy(), x[:, [0, 1, 2, 0, 1]])


# JAX alone -------------------------------------------------------------------------------------

if BACKEND == "jax":
    import jax

    def split(axis):
        devices = np.array(jax.devices())
        names = [None, None]
        names[axis] = "model"
        mesh = jax.sharding.Mesh(devices, ("model",))
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names))

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_sharding_is_followed(axis, dtype):
        sharding, shape = split(axis), (8, 12)
        got = it.IDI(1 / 3)(shape, dtype, layout=sharding)
        assert got.sharding == sharding
        assert len(got.addressable_shards) == len(jax.devices())
        check(got, expected(shape, dtype=dtype, gain=1 / 3), dtype)

    @pytest.mark.parametrize("shape", [(8, 13), (8,), ()])
    def test_a_layout_that_does_not_fit(shape):
        with pytest.raises((errors.OptionError, errors.ShapeError)) as caught:
            it.IDI()(shape, layout=split(1))
        assert str(shape) in str(caught.value)

    def test_a_layout_without_a_mesh():
        with pytest.raises(errors.OptionError, match="should have a mesh"):
            it.IDI()((8, 12), layout=keras.distribution.TensorLayout((None, "model")))

    def test_a_distributed_model_is_followed():
        count = len(jax.devices())
        mesh = keras.distribution.DeviceMesh((1, count), ("batch", "model"))
        layouts = keras.distribution.LayoutMap(mesh)
        layouts["dense.*kernel"] = (None, "model")
        spread = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        with spread.scope():
            layer = dense(12, it.IDIZ(0.5), name="dense_spread")
            layer.build((None, 8))
            check(it.IDI()((8, 12), layout=layouts["dense_spread/kernel"]), expected((8, 12)))
        shards = layer.kernel.value.addressable_shards
        assert {shard.data.shape for shard in shards} == {(8, 12 // count)}
        check(layer.kernel, expected((8, 12), "zero", eps=0.5))
        it.idi_(layer.kernel)
        check(layer.kernel, expected((8, 12)))
        assert {shard.data.shape for shard in layer.kernel.value.addressable_shards} == {
            (8, 12 // count)
        }

    def test_under_jit():
        got = jax.jit(lambda x: x @ it.IDI()((3, 5)))(normal(2, 3))
        assert np.array_equal(got, normal(2, 3)[:, [0, 1, 2, 0, 1]])


# All of this adapter on JAX --------------------------------------------------------------------

if BACKEND != "jax":

    def test_keras_on_jax_needs_no_tensorflow():
        code = """
import sys
sys.modules["tensorflow"] = None
import idinit_ref_tensorflow as it, keras
layer = keras.layers.Dense(5, kernel_initializer=it.IDI())
layer.build((None, 3))
it.idi_layer_(it.idiz_layer_(layer))
it.idi_(layer.kernel, gain=2.0)
print(keras.ops.convert_to_numpy(keras.ops.sum(layer.kernel)))
"""
        done = python(code, KERAS_BACKEND="jax")
        assert done.stdout.strip() == "10.0", done.stderr
