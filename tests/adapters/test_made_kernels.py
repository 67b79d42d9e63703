"""Kernels and matrices that a model puts together, or applies in parts, before their use."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
D = 8
IMAGE = np.random.default_rng(0).normal(size=(2, 6, 6, D)).astype("float32")


def torch_conv(x, w, pad):
    return nn.functional.conv2d(x.movedim(-1, 1), w.permute(3, 2, 0, 1), padding=pad).movedim(1, -1)


def jax_conv(x, w, pad):
    kinds = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), [(pad, pad)] * 2, dimension_numbers=kinds)


def keras_conv(x, w, pad):
    return keras.ops.conv(tf.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)]), w, 1, "valid")


def torch_pad(x, by):
    return nn.functional.pad(x, [n for pair in reversed(by) for n in pair])


TORCH = SimpleNamespace(
    conv=torch_conv, pad=torch_pad, einsum=torch.einsum, reshape=torch.reshape, relu=torch.relu,
    flip=lambda x, axes: x.flip(axes), cat=lambda xs, axis: torch.cat(xs, axis),
    sum=lambda x, axis: x.sum(axis), mean=lambda x, axis: x.mean(axis),
)  # fmt: skip
JAX = SimpleNamespace(
    conv=jax_conv, pad=jnp.pad, einsum=jnp.einsum, reshape=jnp.reshape, relu=jax.nn.relu,
    flip=jnp.flip, cat=jnp.concatenate, sum=jnp.sum, mean=jnp.mean,
)  # fmt: skip
KERAS = SimpleNamespace(
    conv=keras_conv, pad=tf.pad, einsum=tf.einsum, reshape=tf.reshape, relu=tf.nn.relu,
    flip=tf.reverse, cat=tf.concat, sum=tf.reduce_sum, mean=tf.reduce_mean,
)  # fmt: skip


def in_torch(function, sizes, x):
    """Initialise a function of parameters and an input; return it with them, and the report."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterDict({k: torch.randn(size) for k, size in sizes.items()})

        def forward(self, x):
            return function(TORCH, dict(self.p.items()), x)

    model = Model()
    report = irt.init_(model, torch.tensor(x))
    return lambda x: model(torch.tensor(x)).detach().numpy(), report


def in_jax(function, sizes, x):
    values = {k: jax.random.normal(jax.random.key(0), size) for k, size in sizes.items()}
    new, report = irj.init(values, jnp.asarray(x), lambda p, x: function(JAX, p, x))
    return lambda x: np.asarray(function(JAX, new, jnp.asarray(x))), report


def in_keras(function, sizes, x):
    class Model(keras.layers.Layer):
        def build(self, shape):
            normal = keras.initializers.RandomNormal(seed=0)
            self.p = {
                k: self.add_weight(shape=v, name=k, initializer=normal) for k, v in sizes.items()
            }

        def call(self, x):
            return function(KERAS, self.p, x)

    model = Model()
    report = irk.init_(model, x)
    return lambda x: np.asarray(model(tf.constant(x))), report


FRAMEWORKS = [in_torch, in_jax, in_keras]


# The identity tap of a part of a kernel -----------------------------------------------------------

ROUND = ((1, 1), (1, 1), (0, 0), (0, 0))
AHEAD = ((1, 0), (1, 0), (0, 0), (0, 0))
NEXT = ((0, 0), (1, 0), (1, 0), (0, 0))
LATE = ((0, 0), (2, 0), (2, 0), (0, 0))
KERNELS = {  # the size of a kernel, and its use that passes the image unchanged
    "padded": (1, lambda m, x, w: m.conv(x, m.pad(w, ROUND), 1)),
    "padded ahead": (2, lambda m, x, w: m.conv(x, m.pad(w, AHEAD), 1)),
    "padded beside another": (
        1,
        lambda m, x, w: m.conv(x, m.cat([m.flip(m.pad(w, ROUND), (0,)), m.pad(w, ROUND)], 3), 1)[
            ..., D:
        ],
    ),
    "cut": (3, lambda m, x, w: m.conv(x, w[1:2, 1:2], 0)),
    "reversed": (3, lambda m, x, w: m.conv(m.pad(x, LATE), m.flip(w, (0, 1)), 0)),
    "cut and reversed": (
        3,
        lambda m, x, w: m.conv(m.pad(x, NEXT), m.flip(w[1:, 1:], (0, 1)), 0),
    ),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.every
def test_a_kernel_that_is_padded_or_cut_passes_the_image(framework, name):
    size, use = KERNELS[name]
    run, report = framework(lambda m, p, x: use(m, x, p["w"]), {"w": (size, size, D, D)}, IMAGE)
    assert list(report.roles.values()) == ["transit"]
    np.testing.assert_array_equal(run(IMAGE), IMAGE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.every
def test_a_padded_kernel_whose_identity_tap_is_zero_takes_the_nearest(framework):
    run, _ = framework(
        lambda m, p, x: m.conv(x, m.pad(p["w"], ROUND), 0), {"w": (1, 1, D, D)}, IMAGE
    )
    np.testing.assert_array_equal(run(IMAGE), IMAGE[:, 1:-1, 1:-1])


# A matrix or kernel in parts, whose products are summed -------------------------------------------


def shifted(m, x, i, j):
    return m.pad(x, ROUND_IMAGE)[:, i : i + 6, j : j + 6]


ROUND_IMAGE = ((0, 0), (1, 1), (1, 1), (0, 0))
HEADS, WIDTH = 4, D // 4
TAPS = [(i, j) for i in range(3) for j in range(3)]
PARTS = {  # the size of a weight, the plain product, and products with its parts
    "kernel": (
        (3, 3, D, D),
        lambda m, x, w: m.conv(x, w, 1),
        [
            lambda m, x, w: sum(
                m.einsum("bhwi,io->bhwo", shifted(m, x, i, j), w[i, j]) for i, j in TAPS
            ),
            lambda m, x, w: sum(shifted(m, x, i, j) @ w[i, j] for i, j in TAPS[::-1]),
        ],
    ),
    "heads": (
        (D, D),
        lambda m, x, w: x @ w,
        [
            lambda m, x, w: sum(
                x[..., h * WIDTH : (h + 1) * WIDTH] @ m.reshape(w, (HEADS, WIDTH, D))[h]
                for h in range(HEADS)
            ),
            lambda m, x, w: sum(
                m.reshape(x, (2, 6, 6, HEADS, WIDTH))[..., h, :]
                @ m.reshape(w, (HEADS, WIDTH, D))[h]
                for h in range(HEADS)
            ),
            lambda m, x, w: m.sum(
                m.einsum(
                    "bxyhi,hio->bxyho",
                    m.reshape(x, (2, 6, 6, HEADS, WIDTH)),
                    m.reshape(w, (HEADS, WIDTH, D)),
                ),
                3,
            ),
        ],
    ),
    "heads between": (  # the outputs are the axis before the heads
        (D, D),
        lambda m, x, w: m.einsum("bxyi,oi->bxyo", x, w),
        [
            lambda m, x, w: sum(
                m.einsum(
                    "bxyi,oi->bxyo",
                    x[..., h * WIDTH : (h + 1) * WIDTH],
                    m.reshape(w, (D, HEADS, WIDTH))[:, h],
                )
                for h in range(HEADS)
            ),
        ],
    ),
}
SPELT = [(name, way) for name, (*_, ways) in PARTS.items() for way in range(len(ways))]


def four(use, names):
    def function(m, p, x):
        for name in names:
            x = use(m, x, p[name])
        return x

    return function


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "way"), SPELT)
@pytest.mark.parametrize("names", ["abcd", "aaaa"])
@pytest.mark.every
def test_a_matrix_applied_in_parts_has_one_identity(framework, name, way, names):
    """Four layers return the input, as in the plain spelling; they gave up to 800 times it."""
    size, plain, ways = PARTS[name]
    sizes = dict.fromkeys(names, size)
    for use in (plain, ways[way]):
        run, report = framework(four(use, names), sizes, IMAGE)
        assert {*report.roles.values()} == {"transit"}
        assert not report.warnings
        np.testing.assert_array_equal(run(IMAGE), IMAGE)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(("name", "way"), SPELT)
@pytest.mark.every
def test_a_matrix_applied_in_parts_ends_a_branch(framework, name, way):
    size, _, ways = PARTS[name]
    run, report = framework(
        lambda m, p, x: x + ways[way](m, m.relu(x @ p["a"]), p["b"]),
        {"a": (D, D), "b": size},
        IMAGE,
    )
    assert list(report.roles.values()) == ["transit", "zero"]
    np.testing.assert_allclose(run(IMAGE), IMAGE, atol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("average", [lambda m, x: m.mean(x, 3), lambda m, x: m.sum(x, 3) / 3])
@pytest.mark.every
def test_members_that_are_averaged_have_a_matrix_each(framework, average):
    """Members of an ensemble are no parts of one matrix: each must pass its input."""

    def function(m, p, x):
        members = m.relu(m.einsum("bxyi,eio->bxyeo", x, p["a"]))
        return average(m, m.einsum("bxyei,eio->bxyeo", members, p["b"]))

    run, _ = framework(function, {"a": (3, D, D), "b": (3, D, D)}, IMAGE)
    np.testing.assert_allclose(run(IMAGE), np.maximum(IMAGE, 0), atol=1e-5)
