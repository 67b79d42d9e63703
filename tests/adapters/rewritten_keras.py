"""Keras' spellings, on TensorFlow, of each kind of operation; matrices have their inputs first."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import idinit_ref_tensorflow as irk
from adapters.rewritten import HEADS, LENGTH, WIDTH, table_of

EACH = WIDTH // HEADS
MASK = np.arange(WIDTH) % 2 == 0


def run(network, values, x):
    """The network's results with these values, and the values that it starts with."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.p = {k: self.add_weight(shape=v.shape, name=k) for k, v in values.items()}
            for name, weight in self.p.items():
                weight.assign(values[name])

        def call(self, x):
            return network({k: ops.convert_to_tensor(v) for k, v in self.p.items()}, x)

    model = Model()
    before = np.asarray(model(x))
    irk.init_(model, x)
    return before, {name: np.asarray(weight) for name, weight in model.p.items()}


def turned(x):
    return ops.transpose(x, (0, 2, 1))


LINEAR = {
    "@": lambda x, w: x @ w,
    "matmul": ops.matmul,
    "dot": ops.dot,
    "tf.matmul": tf.matmul,
    "transpose_b": lambda x, w: tf.linalg.matmul(x, ops.transpose(w), transpose_b=True),
    "matvec": lambda x, w: tf.linalg.matvec(ops.transpose(w), x),
    "einsum": lambda x, w: ops.einsum("bsi,io->bso", x, w),
    "tf.einsum": lambda x, w: tf.einsum("...i,io->...o", x, w),
    "tensordot": lambda x, w: ops.tensordot(x, w, 1),
    "from the left": lambda x, w: turned(ops.matmul(ops.transpose(w), turned(x))),
    "mm": lambda x, w: ops.reshape(ops.reshape(x, (-1, x.shape[-1])) @ w, (-1, LENGTH, w.shape[1])),
    "product and sum": lambda x, w: ops.sum(x[..., None] * w, -2),
    "conv1d": lambda x, w: ops.conv(x, w[None]),
    "conv2d": lambda x, w: ops.squeeze(ops.conv(x[:, None], w[None, None]), 1),
    "tiled": lambda x, w: tf.matmul(x, tf.tile(w[None], [tf.shape(x)[0], 1, 1])),
    "scaled": lambda x, w: (2 * x) @ (w / 2),
    "float64": lambda x, w: ops.cast(ops.cast(x, "float64") @ ops.cast(w, "float64"), "float32"),
    "flipped": lambda x, w: ops.flip(x, -1) @ ops.flip(w, 0),
    "rolled": lambda x, w: ops.roll(x, 1, -1) @ ops.roll(w, 1, 0),
    "padded": lambda x, w: ops.pad(x, ((0, 0), (0, 0), (0, 3))) @ ops.pad(w, ((0, 3), (0, 0))),
    "map": lambda x, w: ops.map(lambda row: row @ w, x),
    "vectorized_map": lambda x, w: ops.vectorized_map(lambda row: row @ w, x),
    "times": lambda x, w: ops.stack([x[:, t] @ w for t in range(LENGTH)], 1),
    "heads of inputs": lambda x, w: ops.einsum(
        "bshd,hdo->bso",
        ops.reshape(x, (-1, LENGTH, 2, x.shape[-1] // 2)),
        ops.reshape(w, (2, -1, w.shape[1])),
    ),
    "parts of inputs": lambda x, w: sum(
        a @ b for a, b in zip(ops.split(x, 2, -1), ops.split(w, 2), strict=True)
    ),
}
SUM = {
    "+": lambda a, b: a + b,
    "swapped": lambda a, b: b + a,
    "add": ops.add,
    "layer": lambda a, b: layers.Add()([a, b]),
    "Average": lambda a, b: 2 * layers.Average()([a, b]),
    "add_n": lambda a, b: tf.add_n([a, b]),
    "minus minus": lambda a, b: a - (-b),
    "Subtract": lambda a, b: layers.Subtract()([a, -b]),
    "halved": lambda a, b: (2 * a + 2 * b) / 2,
    "masks": lambda a, b: ops.where(MASK, a + b, 0.0) + ops.where(MASK, 0.0, a + b),
    "scatter": lambda a, b: tf.tensor_scatter_nd_add(a, [[0], [1], [2]], b),
    "slice_update": lambda a, b: ops.slice_update(a, (0, 0, 0), a + b),
    "cond": lambda a, b: ops.cond(True, lambda: a + b, lambda: a),
    "a leading axis": lambda a, b: ops.squeeze(a[None] + b[None], 0),
    "channels first": lambda a, b: turned(turned(a) + turned(b)),
    "stack": lambda a, b: ops.sum(ops.stack([a, b]), 0),
    "stack, last axis": lambda a, b: tf.reduce_sum(tf.stack([a, b], -1), -1),
    "mean": lambda a, b: 2 * ops.mean(ops.stack([a, b]), 0),
    "einsum": lambda a, b: ops.einsum("nbsd->bsd", ops.stack([a, b])),
    "parts": lambda a, b: ops.concatenate(
        [u + v for u, v in zip(ops.split(a, 2, -1), ops.split(b, 2, -1), strict=True)], -1
    ),
    "times": lambda a, b: ops.stack([a[:, t] + b[:, t] for t in range(LENGTH)], 1),
}
MOVE = {
    "none": lambda x: x,
    "identity": tf.identity,
    "permuted": lambda x: layers.Permute((2, 1))(turned(x)),
    "flipped": lambda x: ops.flip(ops.flip(x, -1), -1),
    "reversed": lambda x: tf.reverse(tf.reverse(x, [1]), [1]),
    "rolled": lambda x: ops.roll(ops.roll(x, 2, -1), -2, -1),
    "split": lambda x: ops.concatenate(ops.split(x, 2, -1), -1),
    "taken": lambda x: ops.take(x, ops.arange(WIDTH), -1),
    "gathered": lambda x: tf.gather(x, tf.range(WIDTH), axis=-1),
    "padded": lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 2)))[..., 1:-2],
    "reshaped": lambda x: layers.Reshape((LENGTH, WIDTH))(ops.reshape(x, (-1, LENGTH, 2, EACH))),
    "times an identity": lambda x: x @ ops.eye(WIDTH),
    "plus zeros": lambda x: x + ops.zeros_like(x),
    "stacked": lambda x: ops.stack([x, x])[0],
    "rows": lambda x: ops.stack(ops.unstack(x, axis=1), 1),
    "squeezed": lambda x: ops.squeeze(x[:, None], 1),
    "float64": lambda x: ops.cast(ops.cast(x, "float64"), "float32"),
    "slice": lambda x: tf.slice(x, [0, 0, 0], [-1, -1, WIDTH]),
    "fori_loop": lambda x: ops.fori_loop(0, 2, lambda i, c: c, x),
    "recompute_grad": tf.recompute_grad(lambda x: x * 1.0),
}
RELU = {
    "relu": ops.relu,
    "tf": tf.nn.relu,
    "maximum": lambda h: ops.maximum(h, 0.0),
    "where": lambda h: ops.where(h > 0, h, 0.0),
    "clip": lambda h: ops.clip(h, 0, 1e9),
    "absolute value": lambda h: (h + ops.abs(h)) / 2,
    "mask": lambda h: h * ops.cast(h > 0, "float32"),
    "layer": lambda h: layers.ReLU()(h),
    "leaky": lambda h: ops.leaky_relu(h, 0.0),
}
SILU = {
    "silu": ops.silu,
    "tf": tf.nn.silu,
    "product": lambda h: h * ops.sigmoid(h),
    "quotient": lambda h: h / (1 + ops.exp(-h)),
    "tanh": lambda h: h * 0.5 * (1 + ops.tanh(h / 2)),
}
GELU = {
    "gelu": lambda h: ops.gelu(h, False),
    "tf": tf.nn.gelu,
    "erf": lambda h: 0.5 * h * (1 + ops.erf(h / 2**0.5)),
    "erfc": lambda h: 0.5 * h * tf.math.erfc(-h / 2**0.5),
}
TANH = {
    "tanh": ops.tanh,
    "exp": lambda h: (ops.exp(h) - ops.exp(-h)) / (ops.exp(h) + ops.exp(-h)),
    "sigmoid": lambda h: 2 * ops.sigmoid(2 * h) - 1,
    "expm1": lambda h: ops.expm1(2 * h) / (ops.exp(2 * h) + 1),
}


def mean(x):
    return ops.mean(x, -1, keepdims=True)


def by_moments(x):
    middle, spread = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, middle, spread, None, None, 1e-5)


NORM = {
    "written": lambda x: (x - mean(x)) / ops.sqrt(ops.var(x, -1, keepdims=True) + 1e-5),
    "rsqrt": lambda x: (x - mean(x)) * ops.rsqrt(mean((x - mean(x)) ** 2) + 1e-5),
    "layer": lambda x: layers.LayerNormalization(epsilon=1e-5, center=False, scale=False)(x),
    "moments": by_moments,
}
SOFTMAX = {
    "softmax": ops.softmax,
    "exp": lambda s: ops.exp(s) / ops.sum(ops.exp(s), -1, keepdims=True),
    "logsumexp": lambda s: ops.exp(s - ops.logsumexp(s, -1, keepdims=True)),
    "log_softmax": lambda s: ops.exp(ops.log_softmax(s)),
    "layer": lambda s: layers.Softmax()(s),
}


def heads(h):
    return ops.reshape(h, (-1, LENGTH, HEADS, EACH))


def joined(h):
    return ops.reshape(h, (-1, LENGTH, WIDTH))


def in_a_loop(q, k, v, softmax):
    out = []
    for head in range(HEADS):
        own = slice(head * EACH, (head + 1) * EACH)
        weights = softmax(q[..., own] @ turned(k[..., own]) * EACH**-0.5)
        out.append(weights @ v[..., own])
    return ops.concatenate(out, -1)


def in_turn(q, k, v, softmax):
    q, v = (ops.transpose(heads(h), (0, 2, 1, 3)) for h in (q, v))
    weights = softmax(q @ ops.transpose(heads(k), (0, 2, 3, 1)) * EACH**-0.5)
    return joined(ops.transpose(weights @ v, (0, 2, 1, 3)))


ATTENTION = {
    "einsum": lambda q, k, v, softmax: joined(
        ops.einsum(
            "bhqk,bkhd->bqhd",
            softmax(ops.einsum("bqhd,bkhd->bhqk", heads(q), heads(k)) * EACH**-0.5),
            heads(v),
        )
    ),
    "fused": lambda q, k, v, softmax: joined(
        ops.dot_product_attention(heads(q), heads(k), heads(v))
    ),
    "matmul": in_turn,
    "in a loop": in_a_loop,
}
TABLE = table_of(globals())


def per_head(x, w, *sizes):
    return ops.reshape(x @ w, (-1, LENGTH, *sizes))


PACKED = {
    "parts of heads": lambda x, w: map(joined, ops.split(per_head(x, w, HEADS, 3 * EACH), 3, -1)),
    "slices of heads": lambda x, w: [
        joined(per_head(x, w, HEADS, 3 * EACH)[..., at * EACH : (at + 1) * EACH]) for at in range(3)
    ],
    "one of three": lambda x, w: [
        joined(per_head(x, w, HEADS, 3, EACH)[..., at, :]) for at in range(3)
    ],
    "three in front": lambda x, w: map(
        joined, ops.unstack(ops.moveaxis(per_head(x, w, HEADS, 3, EACH), 3, 0), 3)
    ),
    "every third": lambda x, w: [(x @ w)[..., at::3] for at in range(3)],
    "three last": lambda x, w: map(joined, tf.unstack(per_head(x, w, HEADS, EACH, 3), axis=-1)),
    "einsum": lambda x, w: map(
        joined,
        ops.unstack(ops.einsum("bti,ihkd->kbthd", x, ops.reshape(w, (WIDTH, HEADS, 3, EACH))), 3),
    ),
    "three axes": lambda x, w: map(joined, ops.split(ops.einsum("bti,ihk->bthk", x, w), 3, -1)),
    "four axes": lambda x, w: map(joined, tf.unstack(ops.einsum("bti,ihkd->kbthd", x, w))),
}


def halves_turned(h):
    one, two = ops.split(heads(h), 2, -1)
    return joined(ops.concatenate([one * 0.8 - two * 0.6, two * 0.8 + one * 0.6], -1))


def pairs_turned(h):
    turned = ops.stack([-heads(h)[..., 1::2], heads(h)[..., ::2]], -1)
    return h * 0.8 + joined(turned) * 0.6


def complex_turned(h):
    turned = tf.complex(*ops.split(heads(h), 2, -1)) * (0.8 + 0.6j)
    return joined(ops.stack([ops.real(turned), ops.imag(turned)], -2))


TURNS = [lambda h: h, halves_turned, pairs_turned, complex_turned]
