"""An audit of a packed Keras kernel names the blocks that TensorFlow gives no gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import idinit_ref_tensorflow as irk

ops = keras.ops
CERTAIN = {
    "stop": lambda q, x: ops.stop_gradient(q),
    "round": lambda q, x: ops.round(q),
    "index": lambda q, x: _index(q),
}
UNCERTAIN = {
    "where": lambda q, x: ops.where(x > 100, q, x),
    "relu": lambda q, x: ops.relu(q - 100) + x,
}


def _index(q):
    return ops.one_hot(ops.argmax(ops.matmul(q, ops.transpose(q, (0, 2, 1))), -1), 8)


class Attention(keras.Model):
    """Queries, keys and values in one kernel; something may happen to the queries."""

    def __init__(self, change):
        super().__init__()
        self.qkv, self.out = (keras.layers.Dense(n, name=s) for n, s in ((24, "qkv"), (8, "out")))
        self.head, self.change = keras.layers.Dense(3, name="head"), change

    def call(self, x):
        q, k, v = ops.split(self.qkv(x), 3, -1)
        a = ops.softmax(ops.matmul(self.change(q, x), ops.transpose(k, (0, 2, 1))) / 8**0.5)
        return self.head(x + self.out(ops.matmul(a, v)))


def samples(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("how", [*CERTAIN, *UNCERTAIN, "plain"])
def test_a_block_without_a_gradient_is_named(how):
    model, x = Attention({**CERTAIN, **UNCERTAIN}.get(how, lambda q, x: q)), samples(4, 5, 8)
    irk.init_(model, x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x) * samples(4, 5, 3, seed=5))
    slope = np.asarray(tape.gradient(loss, model.qkv.kernel.value))
    name, spans = model.qkv.kernel.path, [(0, 8), (8, 16), (16, 24)]
    named = {f"{name}[:, {a}:{b}]" for a, b in spans if not slope[:, a:b].any()}
    assert (f"{name}[:, 0:8]" in named) == (how != "plain")
    audit = irk.audit(model, x, steps=3)
    assert {one.name for one in audit.dead} == named
    assert bool(audit.healthy) == (how not in CERTAIN)
    assert audit.steps == (0 if how not in CERTAIN else 3)
