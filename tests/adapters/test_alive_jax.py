"""Convolutional models without skips that add: alive after `init` with its default options.

With kernels that start at their first tap the image moves by half a kernel in each of these layers
and leaves the picture: the output is then the same for every input, and no gradient comes back.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import idinit_ref_jax as ij


def blank(key, shape, dtype):
    """What `init` overwrites: through NumPy, which compiles nothing."""
    del key
    return jnp.asarray(np.ones(shape), dtype)


class Strided(nnx.Module):
    """Kernels of one size, each of which halves the image; then a pool and a head."""

    def __init__(self, rngs, size, widths=(8, 16, 16, 32)):
        pairs = zip((3, *widths), widths, strict=False)
        kernel, two = (size, size), (2, 2)
        self.layers = nnx.List(
            [nnx.Conv(n, m, kernel, two, kernel_init=blank, rngs=rngs) for n, m in pairs]
        )
        self.head = nnx.Linear(widths[-1], 5, kernel_init=blank, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


class Twice(nnx.Module):
    """Two convolutions, each with a norm."""

    def __init__(self, rngs, n, m):
        conv = partial(nnx.Conv, kernel_size=(3, 3), use_bias=False, kernel_init=blank, rngs=rngs)
        self.conv1, self.norm1 = conv(n, m), nnx.BatchNorm(m, rngs=rngs)
        self.conv2, self.norm2 = conv(m, m), nnx.BatchNorm(m, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)))


class UNet(nnx.Module):
    """Its skips are concatenated; upwards it repeats places, or by a transposed convolution."""

    def __init__(self, rngs, transposed, w=(8, 16, 32, 32), order=1):
        self.order = order
        self.down = nnx.List([Twice(rngs, n, m) for n, m in zip((3, *w), w, strict=False)])
        pairs = list(zip(w[:0:-1], w[-2::-1], strict=False))
        up = partial(nnx.ConvTranspose, kernel_size=(4, 4), strides=(2, 2), kernel_init=blank,
                     rngs=rngs)  # fmt: skip
        self.grow = nnx.List([up(n, n) for n, _ in pairs] if transposed else [])
        self.up = nnx.List([Twice(rngs, n + m, m) for n, m in pairs])
        self.head = nnx.Conv(w[0], 3, (3, 3), kernel_init=blank, rngs=rngs)

    def __call__(self, x):
        skips = []
        for level, block in enumerate(self.down):
            x = block(nnx.max_pool(x, (2, 2), (2, 2)) if level else x)
            skips.append(x)
        skips.pop()
        for level, block in enumerate(self.up):
            if self.grow:
                x = self.grow[level](x)
            else:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = block(jnp.concatenate([x, skips.pop()][:: self.order], -1))
        return self.head(x)


class Generator(nnx.Module):
    """DCGAN's: a vector becomes a small image, and transposed convolutions double it."""

    def __init__(self, rngs, flipped, latent=24, w=(32, 16, 8, 3)):
        options = {"transpose_kernel": flipped, "use_bias": False, "kernel_init": blank}
        up = partial(nnx.ConvTranspose, rngs=rngs, **options)
        self.first = up(latent, w[0], (4, 4), padding="VALID")
        pairs = list(pairwise(w))
        pads = [(2, 2), (2, 2)]  # of the spread image: what PyTorch calls padding 1
        self.layers = nnx.List([up(n, m, (4, 4), (2, 2), padding=pads) for n, m in pairs])
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for n in w[:-1]])

    def __call__(self, z):
        x = self.first(z[:, None, None, :])
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(nnx.relu(norm(x)))
        return nnx.tanh(x)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


MODELS = {
    "dcgan": (partial(Generator, flipped=False), (4, 24)),
}
MORE = {
    "strided 5": (partial(Strided, size=5), (4, 32, 32, 3)),
    "unet 32": (partial(UNet, transposed=False), (2, 32, 32, 3)),
    "strided 7": (partial(Strided, size=7), (4, 64, 64, 3)),
    "unet 64": (partial(UNet, transposed=True), (2, 64, 64, 3)),
    "unet 32, skip first": (partial(UNet, transposed=False, order=-1), (2, 32, 32, 3)),
    "dcgan, kernels reversed": (partial(Generator, flipped=True), (4, 24)),
}
NAMES = [*MODELS, *(pytest.param(name, marks=pytest.mark.nightly) for name in MORE)]


def steps_of(model, x):
    """Functions of the parameters: the output, and the gradients of a loss of it."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def output(params):
        state = jax.tree.map(lambda leaf: leaf, rest)  # variables of this trace, to be changed
        return nnx.merge(graph, params, state)(x)

    target = noise(*jax.eval_shape(output, params).shape, seed=1)

    def gradients(params):
        return jax.grad(lambda p: ((output(p) - target) ** 2).mean())(params)

    compile_only = {"xla_backend_optimization_level": 0}  # compiled to be run twice
    return params, jax.jit(output, compiler_options=compile_only), jax.jit(
        gradients, compiler_options=compile_only)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_alive_after_init(name):
    """Every input has its own output; after one step at most a quarter of the leaves is dead."""
    make, shape = (MODELS | MORE)[name]
    model, report = ij.init(make(nnx.Rngs(0)), noise(*shape))
    assert {entry.plan.taps for entry in report.entries if entry.plan} == {"outward"}
    params, output, gradients = steps_of(model, noise(*shape))
    y = np.asarray(output(params))
    alike = [np.array_equal(y[0], other) for other in y[1:]]
    assert not any(alike)
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients(params))
    leaves = jax.tree.leaves(gradients(after))
    dead = sum(not np.any(leaf) for leaf in leaves)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert 4 * dead <= len(leaves), f"{dead} of {len(leaves)}"


@pytest.mark.nightly
def test_the_check_can_fail():
    """Kernels of a deep chain that start at their first tap: nothing is left of a small image."""
    make, shape = MORE["unet 32"]
    model, _ = ij.init(make(nnx.Rngs(0)), noise(*shape), taps="channel_major")
    params, output, gradients = steps_of(model, noise(*shape))
    y = np.asarray(output(params))
    leaves = jax.tree.leaves(gradients(params))
    assert np.array_equal(y[0], y[1])
    assert 4 * sum(not np.any(leaf) for leaf in leaves) > len(leaves)
