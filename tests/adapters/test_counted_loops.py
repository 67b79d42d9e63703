"""Loops that read stacks by the number of the turn have the roles of the loop in Python.

The starting values are compared with those of the loop that is written out. R1: with the zero
weights at 0 and all else random, each branch leaves its skip. R2: a small change of one zero weight
alone changes the result in proportion.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk

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
    "many": lambda p, h: jax.lax.fori_loop(0, 300, lambda at, h: layer(p, at, h), h),
}


def in_jax(how, shapes=SHAPES):
    """The roles, the starting values, and the function of a model."""

    def run(p, x):
        return IN_JAX[how](p, x @ p["first"])

    keys = jax.random.split(jax.random.key(0), len(shapes))
    start = {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    start["b"] = jnp.zeros(shapes["b"])
    new, report = irj.init(start, (jnp.asarray(X),), run)
    values = {name: np.asarray(value) for name, value in new.items()}
    return report.roles, values, lambda p, x: np.asarray(run(jax.tree.map(jnp.asarray, p), x))


class Counted(keras.Model):
    """The same model in Keras."""

    def __init__(self, how, shapes):
        super().__init__(name="counted")
        self.how = how
        for name, shape in shapes.items():
            start = "zeros" if name == "b" else "glorot_uniform"
            setattr(self, name, self.add_weight(shape=shape, initializer=start, name=name))

    def layer(self, at, h):
        return h + keras.ops.tanh(h @ self.w[at] + self.b[at]) @ self.o[at]

    def taken(self, at, h):
        w, b, o = (keras.ops.take(one, at, axis=0) for one in (self.w, self.b, self.o))
        return h + keras.ops.tanh(h @ w + b) @ o

    def rows(self, h, row):
        w, b, o = row
        return h + keras.ops.tanh(h @ w + b) @ o

    def call(self, x):
        return IN_KERAS[self.how](self, x @ self.first)


def plain(m, h):
    for at in range(LAYERS):
        h = m.layer(at, h)
    return h


def stacks(m):
    return m.w.value, m.b.value, m.o.value


def below(at, h):
    return at < LAYERS


IN_KERAS = {
    "Python": plain,
    "fori": lambda m, h: keras.ops.fori_loop(0, LAYERS, m.layer, h),
    "fori, taken": lambda m, h: keras.ops.fori_loop(0, LAYERS, m.taken, h),
    "while": lambda m, h: keras.ops.while_loop(
        below, lambda at, h: (at + 1, m.layer(at, h)), (0, h)
    )[1],
    "tf.while_loop": lambda m, h: tf.while_loop(
        below, lambda at, h: (at + 1, m.layer(at, h)), (tf.constant(0), h)
    )[1],
    "scan": lambda m, h: keras.ops.scan(lambda h, row: (m.rows(h, row), h), h, stacks(m))[0],
    "scan over numbers": lambda m, h: keras.ops.scan(
        lambda h, at: (m.layer(at, h), h), h, keras.ops.arange(LAYERS)
    )[0],
    "foldl": lambda m, h: tf.foldl(m.rows, stacks(m), initializer=h),
    "many": lambda m, h: keras.ops.fori_loop(0, 300, m.layer, h),
    "tf.scan": lambda m, h: tf.scan(m.rows, stacks(m), initializer=h)[-1],
}


def in_keras(how, shapes=SHAPES):
    model = Counted(how, shapes)
    model(X)
    report = irk.init_(model, X)
    names = {variable.path: variable.name for variable in model.variables}
    roles = {names[path]: role for path, role in report.roles.items()}

    def run(p, x):
        for variable in model.variables:
            variable.assign(p[variable.name])
        return np.asarray(model(x))

    return roles, {variable.name: variable.numpy() for variable in model.variables}, run


CASES = [(in_jax, how) for how in IN_JAX]
if keras.backend.backend() == "tensorflow":
    CASES += [(in_keras, how) for how in IN_KERAS]
MANY = [case for case in CASES if case[1] == "many"]
CASES = [case for case in CASES if case[1] != "many"]
ROLES = {"first": "transit", "w": "transit", "b": "bias", "o": "zero"}


@pytest.mark.parametrize(("make", "how"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_a_loop_by_number_has_the_roles_and_values_of_the_loop_in_python(make, how):
    roles, values, run = make(how)
    plain, expected, _ = make("Python")
    assert roles == plain == ROLES
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


@pytest.mark.parametrize(("make", "how"), MANY, ids=lambda x: getattr(x, "__name__", x))
def test_so_it_has_with_more_turns_than_are_drawn(make, how):
    shapes = {name: (300, *shape[1:]) if name in "wbo" else shape for name, shape in SHAPES.items()}
    roles, values, run = make(how, shapes)
    assert roles == ROLES
    zero = {**values, "o": np.zeros_like(values["o"])}
    np.testing.assert_array_equal(run(zero, X), X)
