"""The frameworks behind one face: exact reading, and real layers against plain loops."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from idinit_ref.testing._frameworks import framework, framework_of

NAMES = ["numpy", "torch", "jax", "tensorflow", "array_api_strict"]


@pytest.fixture(params=NAMES)
def at(request):
    return framework(request.param)


def whole_numbers(shape, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(float)


@pytest.mark.parametrize("letters", ["OI", "IO"])
def test_linear(at, letters):
    x, w = whole_numbers((5, 3)), whole_numbers((2, 3), 1)
    stored = w if letters == "OI" else w.T
    out = at.layer(x, stored, letters)
    assert out.dtype == np.float64
    assert out.tolist() == [[sum(a * b for a, b in zip(p, q, strict=True)) for q in w] for p in x]


@pytest.mark.parametrize(
    ("letters", "kernel", "groups"),
    [
        ("OIW", (2,), 1),
        ("WIO", (3,), 2),
        ("OIHW", (2, 3), 2),
        ("HWIO", (3, 2), 1),
        ("IHOW", (1, 2), 3),
        ("DHWIO", (2, 1, 2), 2),
    ],
)
def test_convolve(at, letters, kernel, groups):
    """A correlation, as in every framework: no kernel is turned over."""
    channels, outputs = 2, 3 * groups
    space = tuple(k + 1 for k in kernel)
    x = whole_numbers((2, channels * groups, *space))
    w = whole_numbers((outputs, channels, *kernel), 1)
    spatial = "DHW"[3 - len(kernel) :]
    stored = np.transpose(w, [("OI" + spatial).index(c) for c in letters])
    should = np.zeros((2, outputs, *(2 for _ in kernel)))
    for place in itertools.product(*map(range, should.shape)):
        b, o, *p = place
        first = o // 3 * channels
        for c, *k in itertools.product(range(channels), *map(range, kernel)):
            at_x = tuple(i + j for i, j in zip(p, k, strict=True))
            should[place] += w[(o, c, *k)] * x[(b, first + c, *at_x)]
    assert np.array_equal(at.layer(x, stored, letters, groups), should)
    assert np.array_equal(at.layer(x, stored * 1j, letters, groups), should * 1j)


@pytest.mark.parametrize(
    ("letters", "kernel", "stride", "groups"),
    [
        ("IOW", (4,), (2,), 1),
        ("WIO", (3,), (-2,), 1),
        ("IOHW", (2, 3), (3, 2), 2),
        ("HWIO", (3, 4), (-1, 2), 1),
        ("DHWIO", (2, 1, 3), (1, 2, -2), 1),
    ],
)
def test_upsample(at, letters, kernel, stride, groups):
    """Every input is added into stride * place + tap; from the other end if stored flipped."""
    channels, outputs = 2, 3 * groups
    x = whole_numbers((2, channels * groups, *(3 for _ in kernel)))
    w = whole_numbers((outputs, channels, *kernel), 1)
    spatial = "DHW"[3 - len(kernel) :]
    stored = np.transpose(w, [("OI" + spatial).index(c) for c in letters])
    long = tuple(2 * abs(s) + k for k, s in zip(kernel, stride, strict=True))
    should = np.zeros((2, outputs, *long))
    for b, o, c in np.ndindex(2, outputs, channels):
        for place in np.ndindex(x.shape[2:]):
            for tap in np.ndindex(kernel):
                parts = zip(place, tap, kernel, stride, strict=True)
                to = tuple(p * abs(s) + (t if s > 0 else k - 1 - t) for p, t, k, s in parts)
                should[(b, o, *to)] += w[(o, c, *tap)] * x[(b, o // 3 * channels + c, *place)]
    assert np.array_equal(at.layer(x, stored, letters, groups, stride), should)
    assert np.array_equal(at.layer(x, stored * 1j, letters, groups, stride), should * 1j)


def test_empty_and_numpy(at):
    for name in at.dtypes():
        raw = at.empty((2, 3), name)
        assert at.owns(raw)
        assert framework_of(raw).name == at.name
        assert (at.dtype_of(raw), tuple(raw.shape)) == (name, (2, 3))
        values = at.numpy(raw)
        assert values.dtype == (np.complex128 if name.startswith("complex") else np.float64)
        assert np.isnan(values).all()


def test_numbers_are_read_exactly():
    import jax.numpy as jnp
    import ml_dtypes
    import tensorflow as tf
    import torch

    third = float(np.float32(1 / 3))
    short = float(ml_dtypes.bfloat16(1 / 3))
    parameter = torch.nn.Parameter(torch.full((1,), third))
    for raw in (np.full(1, np.float32(third)), parameter, jnp.full(1, third), tf.fill([1], third)):
        assert framework_of(raw).numpy(raw).tolist() == [third]
    for raw in (
        np.full(1, short, ml_dtypes.bfloat16),
        torch.full((1,), short, dtype=torch.bfloat16),
        jnp.full(1, short, jnp.bfloat16),
        tf.cast(tf.fill([1], short), tf.bfloat16),
    ):
        at = framework_of(raw)
        assert (at.dtype_of(raw), at.numpy(raw).tolist()) == ("bfloat16", [short])


@pytest.mark.parametrize("raw", [1.0, [1.0], np.float64(1), None, "x", object()], ids=type)
def test_what_is_no_array(raw):
    assert framework_of(raw) is None


def test_no_framework_is_imported_for_numpy():
    code = (
        "import sys, idinit_ref as ir; from idinit_ref.testing import make_oracle; "
        "assert make_oracle(ir.idi, conv='OIHW', examples=3).run().ok; "
        "print({'torch', 'jax', 'tensorflow', 'keras'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
