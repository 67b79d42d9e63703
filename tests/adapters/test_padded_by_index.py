"""Padding by an index: the kernel passes the signal, as with the padding modes of a framework."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

X = np.random.default_rng(0).normal(size=(2, 7, 7, 4)).astype("float32")  # channels last
MODES = ("wrap", "reflect", "symmetric", "edge")
HOW = ("one axis", "each axis", "both axes")


def padded(mode, size, by):
    """NumPy's own padding of a list of indices."""
    return np.pad(np.arange(size), by, mode=mode)


def in_torch(index, how):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            rank = 1 if how == "one axis" else 2
            self.conv = (torch.nn.Conv1d, torch.nn.Conv2d)[rank - 1](4, 4, 5, bias=False)
            self.register_buffer("index", torch.tensor(index))

        def forward(self, x):
            i = self.index
            if how == "one axis":
                return self.conv(x[:, :, 0].index_select(-1, i))
            return self.conv(x[:, :, i][..., i] if how == "each axis" else x[..., i[:, None], i])

    net, x = Net(), torch.tensor(X).permute(0, 3, 1, 2)
    irt.init_(net, x)
    return net(x).movedim(1, -1).detach().numpy()


def in_jax(index, how):
    def apply(p, x):
        i = jnp.asarray(index)
        if how == "one axis":
            x, names = x[:, 0][:, i], ("NWC", "WIO", "NWC")
            return jax.lax.conv_general_dilated(x, p["k"], (1,), "VALID", dimension_numbers=names)
        x = jnp.take(jnp.take(x, i, 1), i, 2) if how == "each axis" else x[:, i[:, None], i]
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, p["k"], (1, 1), "VALID", dimension_numbers=names)

    sizes = (5, 4, 4) if how == "one axis" else (5, 5, 4, 4)
    new, _ = irj.init({"k": np.ones(sizes, np.float32)}, X, apply)
    return np.asarray(apply(new, X))


def in_keras(index, how):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            kind = keras.layers.Conv1D if how == "one axis" else keras.layers.Conv2D
            self.conv = kind(4, 5, use_bias=False)

        def call(self, x):
            if how == "one axis":
                return self.conv(keras.ops.take(x[:, 0], index, 1))
            return self.conv(keras.ops.take(keras.ops.take(x, index, 1), index, 2))

    model = Model()
    model(X)
    irk.init_(model, X)
    return keras.ops.convert_to_numpy(model(X))


@pytest.mark.every
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_a_kernel_passes_a_signal_that_an_index_has_padded(framework, mode, how):
    out = framework(padded(mode, 7, 2), how)
    np.testing.assert_array_equal(out, X[:, 0] if how == "one axis" else X)


@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_a_larger_padding_on_the_left_moves_the_identity_tap(framework):
    """The left padding is 1 and the right one 3: the identity tap is the second one."""
    out = framework(np.arange(-1, 10) % 7, "one axis")
    np.testing.assert_array_equal(out, X[:, 0])


@pytest.mark.parametrize("framework", [in_torch, in_jax, in_keras])
def test_an_index_that_mixes_all_entries_is_no_padding(framework):
    """A permutation that no padding gives stays a selection; the signal comes out permuted."""
    index = np.array([0, 3, 6, 1, 4, 2, 5, 0, 3, 6, 1])
    out = framework(index, "one axis")
    rows = {tuple(row) for row in out.reshape(-1, 4)}
    assert rows <= {tuple(row) for row in X[:, 0].reshape(-1, 4)}
