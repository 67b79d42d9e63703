"""The matrices of a stack have the roles of matrices apart, however the stack is numbered and read.

The starting values are compared with those of matrices apart. R1: with the zero matrices at 0 and
all else random, each branch leaves its skip. R2: a small change of one zero matrix alone changes
the result in proportion.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from adapters.test_spellings import X

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
DEEP, FLAT, ROWS = (3, 2, 8, 8), (6, 8, 8), (48, 8)
tanh = {"torch": torch.tanh, "jax": jnp.tanh, "tf": tf.tanh}
gate = {"torch": torch.sigmoid, "jax": jax.nn.sigmoid, "tf": tf.sigmoid}


def in_torch(shape, function):
    """The starting values of a stack, and the function of a stack and an input."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(shape))

        def forward(self, x):
            return function(self.w, x)

    model = Model()
    irt.init_(model, torch.tensor(X))
    return model.w.detach().numpy(), lambda w, x: function(torch.tensor(w), torch.tensor(x)).numpy()


def in_jax(shape, function):
    start = {"w": jax.random.normal(jax.random.key(0), shape)}
    new, _ = irj.init(start, (jnp.asarray(X),), lambda p, x: function(p["w"], x))
    return np.asarray(new["w"]), lambda w, x: np.asarray(function(jnp.asarray(w), jnp.asarray(x)))


def in_tf(shape, function):
    class Layer(keras.layers.Layer):
        def build(self, _):
            self.w = self.add_weight(shape=shape, initializer="glorot_normal", name="w")

        def call(self, x):
            return function(self.w, x)

    layer = Layer()
    layer(X)
    irk.init_(layer, X)
    return layer.w.numpy(), lambda w, x: function(tf.constant(w), tf.constant(x)).numpy()


MAKES = {"torch": in_torch, "jax": in_jax, "tf": in_tf}


def check(framework, shape, function, ends, turned=False):
    """Whether exactly the matrices of the indices `ends` end branches, of the stack in order.

    They are (inputs, outputs), or the reverse if turned.
    """
    start, run = MAKES[framework](shape, function)
    count = np.prod(shape) // 64
    one = np.eye(8, dtype="float32")
    zero = np.float32(1e-6) * (one - np.roll(one, 1, turned))
    expected = [zero if at in ends else one for at in range(count)]
    np.testing.assert_array_equal(start.reshape(-1, 8, 8), expected)

    rng = np.random.default_rng(1)
    w = rng.normal(size=(count, 8, 8)).astype("float32")

    def rest(by, which):
        scales = [by * (at == which) if at in ends else 1 for at in range(count)]
        scaled = w * np.float32(scales).reshape(-1, 1, 1)
        return run(scaled.reshape(shape), X) - X

    np.testing.assert_allclose(rest(0, -1), 0, atol=1e-5)
    for which in ends:
        first, second = rest(1e-3, which), rest(2e-3, which)
        assert np.abs(first).max() > 1e-4, which
        np.testing.assert_allclose(second, 2 * first, rtol=0, atol=0.02 * np.abs(first).max())


# Stacks of layers, of two matrices each ---------------------------------------------------------


def block(kind, x, w):
    """x + tanh(x a) b."""
    return x + tanh[kind](x @ w[0]) @ w[1]


def loop(kind, w, x):
    for at in range(3):
        x = block(kind, x, w[at])
    return x


def pairs(kind, w, x):
    """The same for layers whose matrices lie one behind another."""
    for at in range(3):
        x = block(kind, x, w[2 * at : 2 * at + 2])
    return x


def each(kind, x, w):
    return x + tanh[kind](x) @ w


def gated(kind, x, parts):
    return x + parts[0] * gate[kind](parts[1])


def scan(body, w, x):
    return jax.lax.scan(lambda x, w: (body(x, w), None), x, w)[0]


def layers(kind, step, w, x, shape):
    """Layers in a scan of JAX, or in a loop of the others."""
    w = tf.reshape(w, shape) if kind == "tf" else w.reshape(shape)
    if kind == "jax":
        return scan(step, w, x)
    for at in range(shape[0]):
        x = step(x, w[at])
    return x


def block_jax(x, w):
    return block("jax", x, w)


def halves(w, x):
    """Two layers in a scan, and one apart."""
    w = w.reshape(DEEP)
    return block_jax(scan(block_jax, w[:2], x), w[2])


def twice(w, x):
    w = w.reshape(3, 2, 2, 8, 8).reshape(6, 2, 8, 8)
    return block_jax(scan(block_jax, w[:5], x), w[5])


LAYERS = {
    ("jax", "flat, scan"): (FLAT, lambda w, x: scan(block_jax, w.reshape(DEEP), x)),
    ("jax", "flat, scan of parts"): (FLAT, halves),
    ("jax", "flat, loop"): (FLAT, lambda w, x: loop("jax", w.reshape(DEEP), x)),
    ("jax", "deep, loop"): (DEEP, lambda w, x: pairs("jax", w.reshape(FLAT), x)),
    ("jax", "deep, scan"): (DEEP, lambda w, x: scan(block_jax, w.reshape(FLAT).reshape(DEEP), x)),
    ("jax", "three digits, scan"): (
        (12, 8, 8),
        lambda w, x: scan(lambda x, w: scan(block_jax, w, x), w.reshape(2, *DEEP), x),
    ),
    ("jax", "three axes, scan"): (
        (2, *DEEP),
        lambda w, x: scan(block_jax, w.reshape(6, 2, 8, 8), x),
    ),
    ("jax", "numbered twice, scan of parts"): ((12, 8, 8), twice),
    ("jax", "rows, scan"): (ROWS, lambda w, x: scan(block_jax, w.reshape(DEEP), x)),
    ("jax", "strided, scan"): (
        FLAT,
        lambda w, x: scan(block_jax, (w[0::2], w[1::2]), x),
    ),
    ("jax", "flipped, scan"): (FLAT, lambda w, x: scan(block_jax, w.reshape(DEEP)[::-1], x)),
    ("torch", "view, index"): (FLAT, lambda w, x: loop("torch", w.view(DEEP), x)),
    ("torch", "rows, view"): (ROWS, lambda w, x: loop("torch", w.view(DEEP), x)),
    ("torch", "unflatten, unbind"): (
        FLAT,
        lambda w, x: loop("torch", [m.unbind(0) for m in w.unflatten(0, (3, 2)).unbind(0)], x),
    ),
    ("torch", "chunk, view"): (
        FLAT,
        lambda w, x: loop("torch", [m.view(1, 2, 8, 8)[0] for m in w.chunk(3)], x),
    ),
    ("torch", "deep, flatten"): (DEEP, lambda w, x: pairs("torch", w.flatten(0, 1), x)),
    ("tf", "reshape, index"): (FLAT, lambda w, x: loop("tf", tf.reshape(w, DEEP), x)),
    ("tf", "rows, reshape"): (ROWS, lambda w, x: loop("tf", tf.reshape(w, DEEP), x)),
    ("tf", "reshape, unstack"): (
        FLAT,
        lambda w, x: loop("tf", [tf.unstack(m) for m in tf.unstack(tf.reshape(w, DEEP))], x),
    ),
    ("tf", "split"): (FLAT, lambda w, x: loop("tf", tf.split(w, 3), x)),
    ("tf", "keras, unstack"): (
        DEEP,
        lambda w, x: pairs("tf", keras.ops.unstack(keras.ops.reshape(w, FLAT)), x),
    ),
    ("tf", "while_loop"): (
        FLAT,
        lambda w, x: tf.while_loop(
            lambda at, x: at < 3,
            lambda at, x: (at + 1, block("tf", x, tf.reshape(w, DEEP)[at])),
            (tf.constant(0), x),
        )[1],
    ),
    ("tf", "foldl"): (
        FLAT,
        lambda w, x: tf.foldl(lambda x, w: block("tf", x, w), tf.reshape(w, DEEP), x),
    ),
    ("tf", "foldl, deep"): (DEEP, lambda w, x: tf.foldl(lambda x, w: block("tf", x, w), w, x)),
    ("tf", "scan"): (
        FLAT,
        lambda w, x: tf.scan(lambda x, w: block("tf", x, w), tf.reshape(w, DEEP), x)[-1],
    ),
    ("tf", "keras.ops.scan"): (
        FLAT,
        lambda w, x: keras.ops.scan(
            lambda x, w: (block("tf", x, w), x), x, keras.ops.reshape(w, DEEP)
        )[0],
    ),
}


@pytest.mark.every
@pytest.mark.parametrize(("kind", "how"), LAYERS)
def test_each_matrix_of_a_layer_has_a_role_however_a_reshape_numbers_them(kind, how):
    shape, function = LAYERS[kind, how]
    check(kind, shape, function, range(1, np.prod(shape) // 64, 2))


def side_by_side(x, w):
    return gated("jax", x, jax.vmap(lambda m: x @ m)(w))


def by_bmm(w, x):
    for at in range(3):
        rows = torch.bmm(x.reshape(-1, 8).expand(2, -1, 8), w[at])
        x = gated("torch", x, rows.view(2, *x.shape))
    return x


def by_vmap(w, x):
    for at in range(3):
        x = gated("torch", x, torch.func.vmap(lambda m, x=x: x @ m)(w[at]))
    return x


def by_einsum(w, x):
    for at in range(3):
        x = gated("tf", x, tf.einsum("btd,ndk->nbtk", x, w[at]))
    return x


GATED = {
    ("jax", "flat, scan, vmap"): (FLAT, lambda w, x: scan(side_by_side, w.reshape(DEEP), x)),
    ("jax", "deep, scan, vmap"): (DEEP, lambda w, x: scan(side_by_side, w, x)),
    ("jax", "transposed, scan"): (
        FLAT,
        lambda w, x: scan(side_by_side, w.reshape(2, 3, 8, 8).swapaxes(0, 1), x),
    ),
    ("torch", "flat, bmm"): (FLAT, lambda w, x: by_bmm(w.view(DEEP), x)),
    ("torch", "flat, vmap"): (FLAT, lambda w, x: by_vmap(w.view(DEEP), x)),
    ("torch", "deep, bmm"): (DEEP, by_bmm),
    ("torch", "chunk, bmm"): (FLAT, lambda w, x: by_bmm(w.chunk(3), x)),
    ("tf", "flat, einsum"): (FLAT, lambda w, x: by_einsum(tf.reshape(w, DEEP), x)),
}


@pytest.mark.cases(9)
@pytest.mark.parametrize(("kind", "how"), GATED)
def test_matrices_of_a_layer_that_are_applied_side_by_side_have_a_role_each(kind, how):
    """The first one of each layer ends its branch, and the second one is its gate."""
    shape, function = GATED[kind, how]
    check(kind, shape, function, range(3) if how.startswith("transposed") else range(0, 6, 2))


# Products that broadcast, and maps ---------------------------------------------------------------

TWO = (2, 8, 8)


def different(stack, tanh, x, w):
    """Each matrix has an input of its own."""
    return stack([x, tanh(x)]) @ w[:, None]


def map_of_both(w, x):
    """Each matrix has an input of its own."""
    pair = tf.stack([x, tf.tanh(x)]), w
    return tf.map_fn(lambda each: each[0] @ each[1], pair, fn_output_signature=tf.float32)


def map_of_two(w, x):
    first, second = tf.map_fn(
        lambda m: (x @ m, tf.tanh(x @ m)), w, fn_output_signature=(tf.float32, tf.float32)
    )
    return first[0], second[1]


SIDE_BY_SIDE = {
    ("torch", "stack"): lambda w, x: x[None] @ w[:, None],
    ("torch", "stack alone"): lambda w, x: x @ w[:, None],
    ("torch", "matmul"): lambda w, x: torch.matmul(x.unsqueeze(0), w.unsqueeze(1)),
    ("torch", "expand"): lambda w, x: x.expand(2, *x.shape) @ w[:, None],
    ("torch", "inner"): lambda w, x: (x[:, None] @ w).transpose(0, 1),
    ("torch", "different"): lambda w, x: different(torch.stack, torch.tanh, x, w),
    ("torch", "transposed"): lambda w, x: (w.mT[:, None] @ x.mT).mT,
    ("torch", "vectors"): lambda w, x: (w.mT[:, None, None] @ x[None, ..., None])[..., 0],
    ("jax", "stack"): lambda w, x: x[None] @ w[:, None],
    ("jax", "stack alone"): lambda w, x: x @ w[:, None],
    ("jax", "inner"): lambda w, x: jnp.moveaxis(x[:, None] @ w, 1, 0),
    ("jax", "different"): lambda w, x: different(jnp.stack, jnp.tanh, x, w),
    ("jax", "transposed"): lambda w, x: (w.mT[:, None] @ x.mT).mT,
    ("tf", "stack"): lambda w, x: x[None] @ w[:, None],
    ("tf", "stack alone"): lambda w, x: x @ w[:, None],
    ("tf", "matmul"): lambda w, x: tf.matmul(x[None], w[:, None]),
    ("tf", "keras.ops.matmul"): lambda w, x: keras.ops.matmul(x, w[:, None]),
    ("tf", "inner"): lambda w, x: tf.unstack(x[:, None] @ w, axis=1),
    ("tf", "different"): lambda w, x: different(tf.stack, tf.tanh, x, w),
    ("jax", "lax.map"): lambda w, x: jax.lax.map(lambda m: x @ m, w),
    ("tf", "vectorized_map"): lambda w, x: tf.vectorized_map(lambda m: x @ m, w),
    ("tf", "map_fn"): lambda w, x: tf.map_fn(lambda m: x @ m, w),
    ("tf", "map_fn, different"): map_of_both,
    ("tf", "map_fn, two results"): map_of_two,
    ("tf", "keras.ops.map"): lambda w, x: keras.ops.map(lambda m: x @ m, w),
}


@pytest.mark.cases(9)
@pytest.mark.parametrize(("kind", "how"), SIDE_BY_SIDE)
def test_matrices_that_a_product_broadcasts_or_a_map_applies_have_a_role_each(kind, how):
    check(kind, TWO, lambda w, x: gated(kind, x, SIDE_BY_SIDE[kind, how](w, x)), [0])


def test_a_map_over_rows_applies_one_matrix():
    """It has weights, but maps none."""

    def function(w, x):
        return x + tf.map_fn(lambda row: tf.tanh(row) @ w[0], x)

    check("tf", (1, 8, 8), function, [0])


@pytest.mark.parametrize("shape", [DEEP, FLAT])
@pytest.mark.parametrize(("kind", "how"), SIDE_BY_SIDE)
def test_so_have_those_of_layers(kind, how, shape):
    def function(w, x):
        def step(x, w):
            return gated(kind, x, SIDE_BY_SIDE[kind, how](w, x))

        return layers(kind, step, w, x, DEEP)

    check(kind, shape, function, range(0, 6, 2))


# Some matrices of a layer together ---------------------------------------------------------------


SOME = [key for key in SIDE_BY_SIDE if key[1] not in ("transposed", "vectors")]


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (9, 8, 8)])
@pytest.mark.parametrize(("kind", "how"), SOME)
def test_two_matrices_side_by_side_and_one_apart_have_a_role_each(kind, how, shape):
    """The one apart ends the branch; how the other two are applied changes nothing."""

    def step(x, w):
        parts = SIDE_BY_SIDE[kind, how](w[:2], x)
        return x + (parts[0] * gate[kind](parts[1])) @ w[2]

    def function(w, x):
        return layers(kind, step, w, x, (3, 3, 8, 8))

    check(kind, shape, function, range(2, 9, 3))


@pytest.mark.every
@pytest.mark.parametrize("shape", [(3, 16, 8), ROWS])
@pytest.mark.parametrize("kind", MAKES)
def test_blocks_of_layers_in_one_weight_have_a_role_each(kind, shape):
    """The outputs of two matrices, one behind the other."""

    def turn(m):
        return tf.transpose(m) if kind == "tf" else m.T

    def step(x, w):
        return x + tanh[kind](x @ turn(w[:8])) @ turn(w[8:])

    def function(w, x):
        return layers(kind, step, w, x, (3, 16, 8))

    check(kind, shape, function, range(1, 6, 2), turned=True)
