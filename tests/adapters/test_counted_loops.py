"""Loops that read stacks by the number of the turn have the roles of the loop in Python.

The starting values are compared with those of the loop that is written out. R1: with the zero
weights at 0 and all else random, each branch leaves its skip. R2: a small change of one zero weight
alone changes the result in proportion.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import idinit_ref_jax as irj

LAYERS, SHAPES = 4, {"first": (8, 8), "w": (4, 8, 8), "b": (4, 8), "o": (4, 8, 8)}
X = np.random.default_rng(0).standard_normal((3, 8), dtype="float32")


def layer(p, at, h):
    return h + jnp.tanh(h @ p["w"][at] + p["b"][at]) @ p["o"][at]


@jax.jit
def taken(p, at, h):
    w, b, o = (jnp.take(p[name], at, axis=0) for name in "wbo")
    return h + jnp.tanh(h @ w + b) @ o


def sliced(p, at, h):
    w, b, o = (jax.lax.dynamic_index_in_dim(p[name], at, keepdims=False) for name in "wbo")
    return h + jnp.tanh(h @ w + b) @ o


def counted(p, h):
    """`lax.while_loop` with a counter."""
    go, turn = (lambda now: now[0] < 4), (lambda now: (now[0] + 1, layer(p, *now)))
    return jax.lax.while_loop(go, turn, (0, h))[1]


IN_JAX = {
    "Python": lambda p, h: layer(p, 3, layer(p, 2, layer(p, 1, layer(p, 0, h)))),
    "fori": lambda p, h: jax.lax.fori_loop(0, 4, lambda at, h: layer(p, at, h), h),
    "fori, taken": lambda p, h: jax.lax.fori_loop(0, 4, lambda at, h: taken(p, at, h), h),
    "fori, sliced": lambda p, h: jax.lax.fori_loop(0, 4, lambda at, h: sliced(p, at, h), h),
    "fori from 1": lambda p, h: jax.lax.fori_loop(1, 5, lambda at, h: layer(p, at - 1, h), h),
    "fori in pairs": lambda p, h: jax.lax.fori_loop(
        0, 2, lambda at, h: layer(p, 2 * at + 1, layer(p, 2 * at, h)), h
    ),
    "fori, checkpoints": lambda p, h: jax.lax.fori_loop(
        0, 4, lambda at, h: jax.checkpoint(lambda h: layer(p, at, h))(h), h
    ),
    "scan over numbers": lambda p, h: jax.lax.scan(
        lambda h, at: (layer(p, at, h), None), h, jnp.arange(4)
    )[0],
    "while": counted,
}


def in_jax(how):
    """The roles, the starting values, and the function of a model."""

    def run(p, x):
        return IN_JAX[how](p, x @ p["first"])

    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    start = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }
    start["b"] = jnp.zeros(SHAPES["b"])
    new, report = irj.init(start, (jnp.asarray(X),), run)
    values = {name: np.asarray(value) for name, value in new.items()}
    return report.roles, values, lambda p, x: np.asarray(run(jax.tree.map(jnp.asarray, p), x))


MAKES = {"jax": (in_jax, IN_JAX)}
CASES = [(make, how) for make, hows in MAKES.values() for how in hows]


@pytest.mark.parametrize(("make", "how"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_a_loop_by_number_has_the_roles_and_values_of_the_loop_in_python(make, how):
    roles, values, run = make(how)
    plain, expected, _ = make("Python")
    assert roles == plain == {"first": "transit", "w": "transit", "b": "bias", "o": "zero"}
    for name, value in values.items():
        np.testing.assert_array_equal(value, expected[name])

    rng = np.random.default_rng(1)
    p = {name: rng.standard_normal(shape, "float32") for name, shape in SHAPES.items()}
    p["b"][:] = 0

    def rest(by):
        return run({**p, "o": by * p["o"]}, X) - X @ p["first"]

    np.testing.assert_allclose(rest(np.zeros((4, 1, 1), "float32")), 0, atol=1e-5)
    for which in range(LAYERS):
        by = 1e-3 * np.eye(LAYERS, dtype="float32")[which].reshape(-1, 1, 1)
        first, second = rest(by), rest(2 * by)
        assert np.abs(first).max() > 1e-4
        np.testing.assert_allclose(second, 2 * first, rtol=0, atol=0.05 * np.abs(first).max())
