"""Transposed convolutions whose result is cropped by hand, as padding would do it."""

from __future__ import annotations

import jax
import keras
import numpy as np
import pytest
import torch
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

X = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
LARGER = X.repeat(2, 1).repeat(2, 2)  # T15: the image enlarged, as nearest-neighbour upsampling
CROPS = [(3, 0), (4, 1), (5, 2), (6, 2), (6, 3)]


@pytest.mark.every
@pytest.mark.parametrize(("size", "crop"), CROPS)
def test_pytorch(size, crop):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, size, 2)

        def forward(self, x):
            h, w = x.shape[2:]
            return self.up(x)[:, :, crop : crop + 2 * h, crop : crop + 2 * w]

    net, x = Net(), torch.tensor(X).movedim(-1, 1)
    irt.init_(net, x)
    np.testing.assert_array_equal(net(x).detach().movedim(1, -1).numpy(), LARGER)


@pytest.mark.every
@pytest.mark.parametrize(("size", "crop"), CROPS)
def test_jax(size, crop):
    def apply(params, x):
        y = jax.lax.conv_transpose(x, params["up"], (2, 2), "VALID")
        return y[:, crop : crop + 2 * x.shape[1], crop : crop + 2 * x.shape[2]]

    new, _ = irj.init({"up": np.zeros((size, size, 4, 4), np.float32)}, X, apply)
    np.testing.assert_array_equal(apply(new, X), LARGER)


@pytest.mark.every
@pytest.mark.parametrize(("size", "crop"), CROPS)
def test_keras(size, crop):
    x = keras.Input((5, 6, 4))
    y = keras.layers.Conv2DTranspose(4, size, 2, padding="valid")(x)
    more = size - 2 - crop
    model = keras.Model(x, keras.layers.Cropping2D(((crop, more), (crop, more)))(y))
    irk.init_(model)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(X)), LARGER)
