"""What the tracer of Keras follows: joined weights, products in other forms, kernels without axes.

With KERAS_BACKEND=jax or torch the same holds of Keras' own graph.
"""

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import ops

from adapters.test_tensorflow_vanishing import READERS
from idinit_ref.roles.decide import decide
from idinit_ref_tensorflow import init_, trace

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
D = 8


class Own(keras.layers.Layer):
    """Weights of some shapes, and what is computed with them."""

    def __init__(self, compute, **shapes):
        super().__init__(name="own")
        self.compute, self.shapes = compute, shapes

    def build(self, shape):
        for name, size in self.shapes.items():
            setattr(self, name, self.add_weight(shape=size, name=name))

    def call(self, x):
        return self.compute(self, x)


def report_of(compute, inputs=(2, 5, D), **shapes):
    x = keras.Input(batch_shape=inputs)
    return init_(keras.Model(x, Own(compute, **shapes)(x)), np.ones(inputs, np.float32))


def roles(compute, **shapes):
    found = report_of(compute, **shapes).roles
    return {name.rpartition("/")[2]: role for name, role in found.items()}


PRODUCTS = {
    "tensordot": lambda x, w: ops.tensordot(x, w, 1),
    "dot": ops.dot,
    "matmul": ops.matmul,
    "einsum": lambda x, w: ops.einsum("btd,de->bte", x, w),
    "multiply and sum": lambda x, w: ops.sum(ops.expand_dims(x, -1) * w, -2),
    "stacked": lambda x, w: ops.stack([x @ w, x @ w])[0],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_in_any_form_is_a_weight_operation(name):
    product = PRODUCTS[name]
    found = roles(lambda s, x: x + product(ops.relu(product(x, s.a)), s.b), a=(D, D), b=(D, D))
    assert found == {"a": "transit", "b": "zero"}


@pytest.mark.parametrize("reader", READERS)
def test_a_layer_that_reads_constants_is_followed(reader):
    """Keras' calls would compute it at once, and record nothing."""
    rows, dense = keras.layers.Embedding(5, D, name="rows"), keras.layers.Dense(D, name="dense")

    class Placed(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="placed")
            self.rows, self.dense = rows, dense

        def call(self, x):
            return x + self.dense(self.rows(ops.arange(5)))[None]

    x = keras.Input(batch_shape=(2, 5, D))
    roles = decide(READERS[reader](keras.Model(x, Placed()(x)))).roles
    assert [role for name, role in roles.items() if name.endswith("kernel")] == ["transit"]


def test_attention_whose_last_product_has_three_operands():
    def attend(s, x):
        q, k, v = (ops.einsum("btd,dhk->bthk", x, s.qkv[i]) for i in range(3))
        scores = ops.softmax(ops.einsum("bqhk,bshk->bhqs", q, k))
        return x + ops.einsum("bhqs,bshk,hkd->bqd", scores, v, s.o)

    assert roles(attend, qkv=(3, D, 2, 4), o=(2, 4, D)) == {"qkv": "transit", "o": "zero"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("flip", [ops.flipud, ops.fliplr])
def test_a_weight_that_is_flipped_twice_is_a_weight(flip, reader):
    x = keras.Input(batch_shape=(2, D))
    layer = Own(lambda s, x: x @ flip(flip(s.w)), w=(D, 3))
    graph = READERS[reader](keras.Model(x, layer(x)))
    assert decide(graph).roles == {"own/w": "transit"}


@pytest.mark.parametrize("cut", ["slice", "split"])
def test_weights_joined_and_cut_again_keep_their_own_roles(cut):
    def two(s, x):
        both = ops.concatenate([s.up, s.down], axis=1)
        up, down = (both[:, :D], both[:, D:]) if cut == "slice" else ops.split(both, 2, axis=1)
        return x + ops.tanh(x @ up) @ down

    assert roles(two, up=(D, D), down=(D, D)) == {"up": "transit", "down": "zero"}


def test_a_depthwise_kernel_without_its_axis_of_size_1():
    def causal(s, x):
        kernel = ops.expand_dims(ops.transpose(s.kernel), -1)
        return ops.depthwise_conv(ops.pad(x, [[0, 0], [3, 0], [0, 0]]), kernel, padding="valid")

    inputs = np.random.default_rng(0).integers(-9, 9, (2, 6, D)).astype(np.float32)
    layer = Own(causal, kernel=(D, 4))
    assert set(init_(layer, inputs).roles.values()) == {"transit"}
    assert np.array_equal(keras.ops.convert_to_numpy(layer(inputs)), inputs)


def test_every_weight_of_a_stacked_model_is_in_the_graph():
    layer = Own(lambda s, x: x @ s.w, w=(D, D))
    graph = trace(layer, np.ones((2, D), np.float32))
    assert [node.kind for node in graph.nodes if node.weights] == ["weight"]


def test_a_norm_of_running_means_ends_no_branch_of_its_own():
    """Not training, a batch norm is a product and a sum with what is made of four variables."""
    x = keras.Input((8, 8, 4))
    h = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    h = keras.layers.BatchNormalization()(h)
    model = keras.Model(x, keras.layers.Add()([x, h]))
    report = init_(model, np.zeros((2, 8, 8, 4), "float32"))
    assert report.roles["conv/kernel"] == "zero"


@pytest.mark.parametrize(
    "norm",
    [
        keras.layers.LayerNormalization(),
        keras.layers.LayerNormalization(scale=False),
        keras.layers.LayerNormalization(center=False),
        keras.layers.GroupNormalization(2),
        keras.layers.RMSNormalization(),
        keras.layers.UnitNormalization(),
    ],
    ids=["layer", "unscaled", "uncentered", "group", "rms", "unit"],
)
def test_a_norm_that_is_written_out_ends_no_branch_of_its_own(norm):
    """TensorFlow has x s + (b - mean(x) s) for it: both products are 0 where x is, and b shifts."""
    x = keras.Input((5, D))
    h = keras.layers.Dense(D, use_bias=False, name="dense")(x)
    model = keras.Model(x, keras.layers.Add()([x, type(norm).from_config(norm.get_config())(h)]))
    report = init_(model, np.zeros((2, 5, D), "float32"))
    assert report.roles == {**dict.fromkeys(report.roles, "keep"), "dense/kernel": "zero"}
    assert [note.kind for note in report.warnings] == ["norm"]
    model.get_layer("dense").kernel.assign(np.zeros((D, D), "float32"))
    inputs = np.random.default_rng(0).standard_normal((2, 5, D)).astype("float32")
    assert np.array_equal(keras.ops.convert_to_numpy(model(inputs)), inputs)
