"""What follows the last weight of a branch: norms of every kind, and biases after aggregation."""

from __future__ import annotations

import os
from functools import partial

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
from flax import nnx
from torch import nn

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read"
)
IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
NODES = np.random.default_rng(1).normal(size=(6, 8)).astype("float32")
NEAR = np.random.default_rng(2).random((6, 6)).astype("float32")
TO = NEAR.argmax(1)


class UnitOffset(nn.Module):
    """An RMS norm whose scale is 1 + w, as Gemma has it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        normed = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return normed * (1.0 + self.weight.view(8, 1, 1))


class RMSPlanes(nn.RMSNorm):
    """An RMS norm of channels that stand second."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class LayerPlanes(nn.LayerNorm):
    """A layer norm of channels that stand second."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FlaxOffset(nnx.Module):
    """As `UnitOffset`."""

    def __init__(self):
        self.scale = nnx.Param(jnp.zeros(8))

    def __call__(self, x):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1.0 + self.scale[...])


class KerasOffset(keras.layers.Layer):
    """As `UnitOffset`."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="zeros", name="scale")

    def call(self, x):
        squares = keras.ops.mean(keras.ops.square(x), -1, keepdims=True)
        return x * keras.ops.rsqrt(squares + 1e-6) * (1.0 + self.scale)


TORCH = {
    "rms": lambda: RMSPlanes(8, eps=1e-6),
    "layer": lambda: LayerPlanes(8),
    "group": lambda: nn.GroupNorm(2, 8),
    "batch": lambda: nn.BatchNorm2d(8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "offset": UnitOffset,
}
FLAX = {
    "rms": lambda rngs: nnx.RMSNorm(8, rngs=rngs),
    "layer": lambda rngs: nnx.LayerNorm(8, rngs=rngs),
    "group": lambda rngs: nnx.GroupNorm(8, num_groups=2, rngs=rngs),
    "instance": lambda rngs: nnx.InstanceNorm(8, rngs=rngs),
    "offset": lambda rngs: FlaxOffset(),
}
KERAS = {
    "rms": lambda: keras.layers.RMSNormalization(name="post"),
    "layer": lambda: keras.layers.LayerNormalization(name="post"),
    "group": lambda: keras.layers.GroupNormalization(2, name="post"),
    "batch": lambda: keras.layers.BatchNormalization(name="post"),
    "offset": lambda: KerasOffset(name="post"),
}


class TorchSandwich(nn.Module):
    """x + post(down(silu(up(x)))): a branch that ends in a norm."""

    def __init__(self, norm):
        super().__init__()
        self.up, self.down, self.post = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1), norm()

    def forward(self, x):
        return x + self.post(self.down(nn.functional.silu(self.up(x))))


class FlaxSandwich(nnx.Module):
    """As `TorchSandwich`."""

    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.up, self.down = (nnx.Conv(*sizes, (1, 1), rngs=rngs) for sizes in ((8, 12), (12, 8)))
        self.post = norm(rngs)

    def __call__(self, x):
        return x + self.post(self.down(nnx.silu(self.up(x))))


def torch_sandwich(kind, **options):
    model, x = TorchSandwich(TORCH[kind]), torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    report = irt.init_(model, x, **options)
    with torch.no_grad():  # in training, in which a batch norm divides by what it sees
        return report, float((model.train()(x) - x).abs().max())


def flax_sandwich(kind, **options):
    x = jnp.asarray(IMAGES)
    model, report = irj.init(FlaxSandwich(FLAX[kind]), x, **options)
    return report, float(abs(model(x) - x).max())


def keras_sandwich(kind, **options):
    x = keras.Input(IMAGES.shape[1:])
    up, down = (keras.layers.Conv2D(n, 1, name=s) for n, s in ((12, "up"), (8, "down")))
    y = x + KERAS[kind]()(down(keras.ops.silu(up(x))))
    model = keras.Model(x, y)
    report = irk.init_(model, **options)
    return report, float(np.abs(model(IMAGES, training=True) - IMAGES).max())


SANDWICHES = [
    *(pytest.param(torch_sandwich, kind, id=f"torch-{kind}") for kind in TORCH),
    *(pytest.param(flax_sandwich, kind, id=f"flax-{kind}") for kind in FLAX),
    *(pytest.param(keras_sandwich, kind, id=f"keras-{kind}") for kind in KERAS),
]


def weights_of(report):
    """The roles of the matrix `down` and of the norm's scale."""
    down = next(e.role for e in report.entries if "down" in e.name and len(e.shape) > 1)
    names = ("weight", "scale", "gamma")
    (scale,) = (e for e in report.entries if "post" in e.name and e.name.endswith(names))
    return down, scale


@pytest.mark.parametrize(("sandwich", "kind"), SANDWICHES)
def test_a_branch_that_a_norm_ends_is_named_or_its_scale_is_eps(sandwich, kind):
    report, size = sandwich(kind)
    assert weights_of(report)[0] == "zero"
    [note] = [note for note in report.warnings if note.kind == "norm"]
    assert "down" in note.names[0]
    assert 1e-5 < size < 1e-2  # eps / sqrt(e), not eps
    report, size = sandwich(kind, norms="zero")
    down, scale = weights_of(report)
    assert (down, scale.role) == ("transit", "zero")
    assert scale.value == pytest.approx(1e-6 - (kind == "offset"), abs=1e-12)
    assert "norm" not in [note.kind for note in report.warnings]
    assert 0 < size < 1e-5


def sides_in_torch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x):
            return x + self.norm(self.down(torch.relu(self.up(self.norm(x)))))

    model = Model()
    report = irt.init_(model, torch.tensor(NODES), norms="zero")
    return report, model(torch.tensor(NODES)).detach().numpy()


def sides_in_jax():
    params = {"g": jnp.ones(8), "up": jnp.ones((8, 12)), "down": jnp.ones((12, 8))}

    def norm(p, x):
        return jax.nn.standardize(x, epsilon=1e-5) * p["g"]

    def apply(p, x):
        return x + norm(p, jax.nn.relu(norm(p, x) @ p["up"]) @ p["down"])

    new, report = irj.init(params, (NODES,), apply, norms="zero")
    return report, np.asarray(apply(new, NODES))


def sides_in_keras():
    x, norm = keras.Input((8,)), keras.layers.LayerNormalization(epsilon=1e-5)
    up, down = (keras.layers.Dense(n, name=s) for n, s in ((12, "up"), (8, "down")))
    model = keras.Model(x, x + norm(down(keras.ops.relu(up(norm(x))))))
    report = irk.init_(model, norms="zero")
    return report, model(NODES).numpy()


@pytest.mark.parametrize("sides", [sides_in_torch, sides_in_jax, sides_in_keras])
def test_a_norm_that_also_begins_the_branch_keeps_its_scale(sides):
    """With eps as its scale the weights behind it would read eps, and the branch would be dead."""
    report, y = sides()
    assert [name for name, role in report.roles.items() if role == "zero"] == [
        next(name for name in report.roles if "down" in name)
    ]
    assert [note.kind for note in report.warnings] == ["norm"]
    assert 1e-5 < np.abs(y - NODES).max() < 1e-2  # eps / sqrt(e)


def test_a_batch_norm_that_is_frozen_magnifies_nothing():
    """Its moments stay what they are: the weight before it is zero, and nothing is warned of."""
    x = keras.Input((4, 4, 8))
    norm = keras.layers.BatchNormalization(trainable=False)
    report = irk.init_(keras.Model(x, x + norm(keras.layers.Conv2D(8, 1, name="last")(x))))
    assert report.roles["last/kernel"] == "zero"
    assert "norm" not in [note.kind for note in report.warnings]


# Biases after an aggregation ----------------------------------------------------------------------


def torch_aggregate(how, h, near):
    """Sum, mean or resize the results of one weight."""
    return {
        "product": lambda: near @ h,
        "sparse": lambda: torch.sparse.mm(near.to_sparse(), h),
        "scatter": lambda: torch.zeros_like(h).index_add(0, torch.tensor(TO), h),
        "mean": lambda: h.mean(0, keepdim=True).expand(6, -1),
        "heads": lambda: torch.stack([h, 2 * h]).sum(0),
        "gates": lambda: h * near[:, :1],
        "gather": lambda: h[torch.tensor(TO)],
    }[how]()


def jax_aggregate(how, h, near):
    return {
        "product": lambda: near @ h,
        "scatter": lambda: jax.ops.segment_sum(h, jnp.asarray(TO), 6),
        "mean": lambda: jnp.broadcast_to(h.mean(0, keepdims=True), h.shape),
        "heads": lambda: jnp.stack([h, 2 * h]).sum(0),
        "gates": lambda: h * near[:, :1],
        "gather": lambda: h[jnp.asarray(TO)],
    }[how]()


def keras_aggregate(how, h, near):
    ops = keras.ops
    return {
        "product": lambda: ops.matmul(near, h),
        "scatter": lambda: ops.segment_sum(h, TO, 6),
        "mean": lambda: ops.broadcast_to(ops.mean(h, 0, keepdims=True), h.shape),
        "heads": lambda: ops.sum(ops.stack([h, 2 * h]), 0),
        "gates": lambda: h * near[:, :1],
        "gather": lambda: ops.take(h, TO, 0),
    }[how]()


class TorchGraph(nn.Module):
    """A graph convolution, whose bias is added after its neighbours are summed."""

    def __init__(self, how):
        super().__init__()
        self.w, self.how = nn.Linear(8, 8, bias=False), how
        self.b = nn.Parameter(torch.linspace(-0.3, 0.3, 8))

    def forward(self, x, near):
        return x + torch.relu(torch_aggregate(self.how, self.w(x), near) + self.b)


class FlaxGraph(nnx.Module):
    """As `TorchGraph`."""

    def __init__(self, how):
        self.w, self.how = nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(0)), how
        self.b = nnx.Param(jnp.linspace(-0.3, 0.3, 8))

    def __call__(self, x, near):
        return x + nnx.relu(jax_aggregate(self.how, self.w(x), near) + self.b[...])


class KerasGraph(keras.layers.Layer):
    """As `TorchGraph`."""

    def __init__(self, how):
        super().__init__()
        self.w, self.how = keras.layers.Dense(8, use_bias=False), how

    def build(self, shape):
        values = keras.initializers.Constant(np.linspace(-0.3, 0.3, 8))
        self.w.build(shape)
        self.b = self.add_weight(shape=(8,), initializer=values, name="b")

    def call(self, x, near):
        return x + keras.ops.relu(keras_aggregate(self.how, self.w(x), near) + self.b)


def torch_graph(how):
    model, given = TorchGraph(how), (torch.tensor(NODES), torch.tensor(NEAR))
    return irt.init_(model, given), lambda: model(*given).detach().numpy()


def flax_graph(how):
    given = (jnp.asarray(NODES), jnp.asarray(NEAR))
    model, report = irj.init(FlaxGraph(how), given)
    return report, lambda: np.asarray(model(*given))


def keras_graph(how):
    model = KerasGraph(how)
    return irk.init_(model, (NODES, NEAR)), lambda: np.asarray(model(NODES, NEAR))


HOW = ("product", "scatter", "mean", "heads", "gates", "gather")


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("graph", [torch_graph, flax_graph, keras_graph])
def test_a_bias_after_an_aggregation_is_one(graph, how):
    """So the block is the identity."""
    report, run = graph(how)
    (bias,) = (e for e in report.entries if len(e.shape) == 1)
    assert bias.role == "bias", report
    assert np.abs(run() - NODES).max() < 1e-4


# Weights that are computed ------------------------------------------------------------------------


class TorchStandardised(nn.Module):
    """As in BiT, the weight less its mean, by its deviation: it vanishes with the weight."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x):
        flat = self.w.reshape(1, 8, -1)
        w = nn.functional.batch_norm(flat, None, None, training=True).reshape_as(self.w)
        return x + nn.functional.conv2d(x, w, padding=1)


class FlaxStandardised(nnx.Module):
    """The same, written out."""

    def __init__(self):
        self.w = nnx.Param(jax.random.normal(jax.random.key(0), (8, 8)))

    def __call__(self, x):
        w = self.w[...]
        return x + x @ ((w - w.mean(0)) / jnp.sqrt(w.var(0) + 1e-5))


class KerasStandardised(keras.layers.Layer):
    """The same, written out."""

    def build(self, shape):
        self.w = self.add_weight(shape=(8, 8), initializer="random_normal", name="w")

    def call(self, x):
        ops = keras.ops
        w = self.w - ops.mean(self.w, 0)
        return x + ops.matmul(x, w * ops.rsqrt(ops.mean(ops.square(w), 0) + 1e-5))


def torch_standardised():
    model, x = TorchStandardised(), torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    return irt.init_(model, x), lambda: (model(x) - x).detach().numpy()


def flax_standardised():
    model, report = irj.init(FlaxStandardised(), jnp.asarray(NODES))
    return report, lambda: np.asarray(model(jnp.asarray(NODES)) - NODES)


def keras_standardised():
    model = KerasStandardised()
    return irk.init_(model, NODES), lambda: np.asarray(model(NODES) - NODES)


@pytest.mark.parametrize("make", [torch_standardised, flax_standardised, keras_standardised])
def test_a_standardised_weight_that_ends_a_branch_is_zero(make):
    """It divides by sqrt(var + e), so eps comes out as up to eps / sqrt(e): here 3e-4."""
    report, branch = make()
    assert [entry.role for entry in report.entries] == ["zero"], report
    assert 0 < np.abs(branch()).max() < 5e-3


# Dilated convolutions -----------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kind", ["causal", "same", "image", "depthwise"])
def test_a_dilated_convolution_of_keras_is_no_level_of_a_pyramid(kind, dilation):
    """TensorFlow computes it in pieces, which it puts together again."""
    layers, rows = keras.layers, np.random.default_rng(3).normal(size=(2, 8, 8, 4))
    x = rows if kind in ("image", "depthwise") else rows[:, :, 0]
    given = keras.Input(x.shape[1:])
    one = layers.Conv2D if x.ndim == 4 else layers.Conv1D
    of = layers.DepthwiseConv2D if kind == "depthwise" else partial(one, 6)
    padding = "causal" if kind == "causal" else "same"
    last = of(3, padding=padding, dilation_rate=dilation, name="last")
    h = one(5, 1, name="stem")(given)
    y = last(keras.ops.relu(one(6, 1, name="first")(h)))
    shortcut = one(6, 1, name="skip")(h)
    out = layers.Add()([shortcut, y])
    report = irk.init_(keras.Model(given, out), x)
    zero = {name.split("/")[0] for name, role in report.roles.items() if role == "zero"}
    assert (zero, {note.kind for note in report.warnings} & {"pyramid", "tie"}) == ({"last"}, set())
    total, skip = keras.Model(given, [out, shortcut])(x)
    assert np.allclose(total, skip, atol=1e-4)
    assert np.abs(skip).max() > 0.1


# A scale of 0 behind a computed weight ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "gain", "weight_norm"])
def test_a_scale_of_0_ends_a_branch_whatever_its_last_weight_is(kind):
    """SkipInit: with eps in the gain, too, the scale would have a gradient of about eps."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
            if kind == "weight_norm":
                nn.utils.parametrizations.weight_norm(self.last)
            self.gain, self.scale = nn.Parameter(torch.ones(8, 1)), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            weight = self.last.weight * self.gain if kind == "gain" else self.last.weight
            h = nn.functional.linear(self.first(x).relu(), weight, self.last.bias)
            return x + h * self.scale

    model, x = Model(), torch.tensor(NODES)
    assert "zero" not in irt.init_(model, x).roles.values()
    model(x).square().sum().backward()
    assert torch.equal(model(x), x)
    assert model.scale.grad.abs() > 0.1
