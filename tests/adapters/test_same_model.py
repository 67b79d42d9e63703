"""One model written in PyTorch and in JAX: the same weights, bit for bit, and the same output."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import idinit_ref_jax as ij
import idinit_ref_torch as it

D, HEADS = 16, 4


class TorchBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(D, D), nn.Linear(D, 3 * D), nn.Linear(3 * D, D)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (
            layer(h).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / (D // HEADS) ** 0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


def dense(params, x):
    return x @ params["weight"] + params["bias"]


def norm(params, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * params["weight"] + params["bias"]


def jax_block(params, x):
    h = norm(params["norm1"], x)
    q, k, v = (
        dense(params[name], h).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (D // HEADS) ** 0.5) @ v
    x = x + dense(params["out"], mixed.swapaxes(1, 2).reshape(x.shape))
    return x + dense(params["down"], jax.nn.relu(dense(params["up"], norm(params["norm2"], x))))


class TorchResidual(nn.Module):
    """Two ResNet blocks, the second with a projection shortcut; BatchNorm as in evaluation."""

    def __init__(self):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False)
        self.conv1, self.norm1 = conv(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = conv(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv3, self.norm3 = conv(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.conv4, self.norm4 = conv(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shortcut = conv(6, 8, 1, 2)

    def forward(self, x):
        h = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(x + self.norm2(self.conv2(h)))
        h = torch.relu(self.norm3(self.conv3(x)))
        return torch.relu(self.shortcut(x) + self.norm4(self.conv4(h)))


def convolve(params, x, stride=1):
    size = params["weight"].shape[0]
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, params["weight"], (stride,) * 2, [(size // 2,) * 2] * 2, dimension_numbers=dimensions
    )


def scale(params, x):
    return x / np.sqrt(1 + 1e-5) * params["weight"] + params["bias"]


def jax_residual(params, x):
    h = jax.nn.relu(scale(params["norm1"], convolve(params["conv1"], x)))
    x = jax.nn.relu(x + scale(params["norm2"], convolve(params["conv2"], h)))
    h = jax.nn.relu(scale(params["norm3"], convolve(params["conv3"], x, 2)))
    short = convolve(params["shortcut"], x, 2)
    return jax.nn.relu(short + scale(params["norm4"], convolve(params["conv4"], h)))


def to_jax(array):
    """A torch weight in JAX's layout: (in, out), (height, width, in, out)."""
    array = array.detach().numpy()
    return np.ascontiguousarray(array.transpose([2, 3, 1, 0] if array.ndim == 4 else None))


def both(model, apply, x):
    """Initialise one model in PyTorch and in JAX, each from other values; return both."""
    names = [name for name, _ in model.named_parameters()]
    params = {}
    for name in names:
        layer, _, what = name.rpartition(".")
        value = to_jax(model.get_parameter(name))
        is_norm = layer.startswith("norm")
        params.setdefault(layer, {})[what] = jnp.asarray(value if is_norm else value + 1)
    in_torch = it.init_(model, (torch.from_numpy(x),))
    moved = x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
    new, in_jax = ij.init(params, jnp.asarray(moved), apply)
    assert in_torch.roles == in_jax.roles
    assert set(in_jax.roles) == set(names)
    return in_jax.roles, new, moved


def same(model, new, apply, x, moved):
    for name, parameter in model.named_parameters():
        layer, _, what = name.rpartition(".")
        assert np.asarray(new[layer][what]).tobytes() == to_jax(parameter).tobytes(), name
    out = model(torch.from_numpy(x)).detach().numpy()
    other = np.asarray(apply(new, jnp.asarray(moved)))
    other = other.transpose(0, 3, 1, 2) if other.ndim == 4 else other
    assert np.abs(out - other).max() < 1e-5
    assert np.abs(out).max() > 0.1


def test_a_transformer_block():
    model, x = TorchBlock(), np.random.default_rng(0).normal(size=(2, 5, D)).astype("float32")
    roles, new, moved = both(model, jax_block, x)
    zero = {name for name, role in roles.items() if role == "zero"}
    assert zero == {"out.weight", "down.weight"}
    same(model, new, jax_block, x, moved)


def test_a_resnet_block():
    model = TorchResidual().eval()
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 8)).astype("float32")
    roles, new, moved = both(model, jax_residual, x)
    zero = {name for name, role in roles.items() if role == "zero"}
    assert zero == {"conv2.weight", "conv4.weight"}
    same(model, new, jax_residual, x, moved)
