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
    sum=lambda x, axis: x.sum(axis),
)  # fmt: skip
JAX = SimpleNamespace(
    conv=jax_conv, pad=jnp.pad, einsum=jnp.einsum, reshape=jnp.reshape, relu=jax.nn.relu,
    flip=jnp.flip, cat=jnp.concatenate, sum=jnp.sum,
)  # fmt: skip
KERAS = SimpleNamespace(
    conv=keras_conv, pad=tf.pad, einsum=tf.einsum, reshape=tf.reshape, relu=tf.nn.relu,
    flip=tf.reverse, cat=tf.concat, sum=tf.reduce_sum,
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
