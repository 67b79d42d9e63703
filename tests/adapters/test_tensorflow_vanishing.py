"""When the result of an operation is zero: the drawing's word, and Keras' own arithmetic.

Both ways to read a model are asked: TensorFlow's function, and Keras' own calls.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from keras import layers, ops

from adapters.vanishing import vanishing
from idinit_ref_tensorflow import _trace, _walk, trace

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
X = np.linspace(0.3, 1.7, 48, dtype=np.float32).reshape(2, 4, 6)
IMAGE = np.linspace(0.3, 1.7, 2 * 6 * 6 * 4, dtype=np.float32).reshape(2, 6, 6, 4)


def walked(model):
    """The graph of Keras' own calls, whatever the backend."""
    arguments = _trace.prepare(model, None)
    held = _trace._parameters(model)
    draw = _trace._drawing(held)
    names = {id(one.variable): one.parameter.name for one in held}
    inputs = _trace._input_names(arguments)
    return draw.graph(_walk.walk(draw, names, model, *arguments, inputs))


SHIFT = np.float32([[1, 0, 3, 0, 1, 0, 0, 0]] * 2)
READERS = {"function": trace, "calls": walked}


def zeros_of(function, inputs, read):
    """For every subset of inputs that is zero: if it is all, if the result should be, and is."""
    given = [keras.Input(batch_shape=x.shape) for x in inputs]
    model = keras.Model(given, function(*given))
    graph = read(model)
    names = [node.name for node in graph.nodes if node.kind == "input"]
    assert len(names) >= len(inputs)
    for chosen in range(1, 2 ** len(inputs)):
        at = [k for k in range(len(inputs)) if chosen >> k & 1]
        out = model([x * 0 if k in at else x for k, x in enumerate(inputs)])
        said = graph.outputs[0] in vanishing(graph, [names[k] for k in at])
        yield len(at) == len(inputs), said, bool((ops.convert_to_numpy(out) == 0).all())


FUNCTIONS = """
abs arccosh arcsinh arctan ceil celu cos cosh elu erf exp exp2 expm1 floor gelu glu hard_shrink
hard_sigmoid hard_silu hard_tanh leaky_relu log1p log_sigmoid log_softmax negative reciprocal relu
relu6 round rsqrt selu sigmoid sign silu sin sinh softmax softplus softsign
sparse_plus sparse_sigmoid sqrt square squareplus tan tanh tanh_shrink trunc
"""
ONE = {
    **{name: getattr(ops, name) for name in FUNCTIONS.split() if hasattr(ops, name)},
    "x + 1": lambda x: x + 1,
    "1 - x": lambda x: 1 - x,
    "x / 3": lambda x: x / 3,
    "3 / x": lambda x: 3 / (x + 1),
    "2 * x": lambda x: 2 * x,
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "2 ** x": lambda x: 2**x,
    "to powers above 0": lambda x: x ** np.float32([1, 2, 3, 1, 2, 3]),
    "to powers, one of them 0": lambda x: x ** np.float32([0, 2, 3, 1, 2, 3]),
    "vander": lambda x: ops.vander(x[0, 0]),
    "x ** -2": lambda x: (x + 1) ** -2,
    "clip": lambda x: ops.clip(x, -1, 1),
    "clip above 0": lambda x: ops.clip(x, 0.1, 1),
    "sum": lambda x: ops.sum(x, -1),
    "mean": lambda x: ops.mean(x, (1, 2)),
    "prod": lambda x: ops.prod(x, -1),
    "max": lambda x: ops.max(x, -1),
    "var": lambda x: ops.var(x, -1),
    "std": lambda x: ops.std(x, -1),
    "logsumexp": lambda x: ops.logsumexp(x, -1),
    "cumsum": lambda x: ops.cumsum(x, -1),
    "sort": lambda x: ops.sort(x, -1),
    "pad": lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0]]),
    "pad with 1": lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0]], constant_values=1.0),
    "reflect": lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0]], mode="reflect"),
    "roll": lambda x: ops.roll(x, 1, 1),
    "roll all": lambda x: ops.roll(x, 1),
    "range": lambda x: ops.ptp(x, -1),
    "trapezoid": ops.trapezoid,
    "det": lambda x: ops.det(x[:, :, :4]),
    "x // 2": lambda x: x // 2,
    "largest, from 1": lambda x: ops.max(x, -1, initial=1.0),
    "largest, from 0": lambda x: ops.max(x, -1, initial=0.0),
    "largest, from -1": lambda x: ops.max(x, -1, initial=-1.0),
    "least, from 1": lambda x: ops.min(x, -1, initial=1.0),
    "least, from -1": lambda x: ops.min(x, -1, initial=-1.0),
    "weighted mean": lambda x: ops.average(x, -1, weights=np.float32([1, 2, 3, 1, 2, 3])),
    "clip above arrays": lambda x: ops.clip(x, np.full(6, 0.1, "float32"), np.ones(6, "float32")),
    "solved": lambda x: ops.solve(np.eye(4, dtype=np.float32) + ops.zeros((2, 4, 4)), x),
    "singular values": lambda x: ops.svd(x, compute_uv=False),
    "singular vectors": lambda x: ops.svd(x)[0],
    "ones of a grid": lambda x: x[0, 0] + ops.meshgrid(x[0, 0], ops.ones_like(x[0, 0]))[1],
    "flip": lambda x: ops.flip(x, 1),
    "stack": lambda x: ops.stack([x, ops.abs(x)], 1),
    "slice": lambda x: x[:, 1:3],
    "written on zeros": lambda x: ops.slice_update(ops.zeros((2, 5, 6)), (0, 1, 0), x),
    "written on ones": lambda x: ops.slice_update(ops.ones((2, 5, 6)), (0, 1, 0), x),
    "where": lambda x: ops.where(x > 1, x, ops.zeros_like(x)),
    "maximum with 0": lambda x: ops.maximum(x, 0.0),
    "maximum with 1": lambda x: ops.maximum(x, 1.0),
    "minimum with 1": lambda x: ops.minimum(x, 1.0),
    "swish by hand": lambda x: x * ops.sigmoid(x),
    "rms norm": lambda x: x * ops.rsqrt(ops.mean(ops.square(x), -1, keepdims=True) + 1e-6),
    **{f"Activation {name}": layers.Activation(name) for name in ("relu", "sigmoid", "softplus")},
    **{kind.__name__: kind() for kind in (
        layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax, layers.UnitNormalization,
        layers.RMSNormalization, layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D,
        layers.UpSampling1D, layers.ZeroPadding1D, layers.Cropping1D, layers.Flatten,
    )},
    "Rescaling": layers.Rescaling(0.5),
    "Rescaling by 1": layers.Rescaling(0.5, 1.0),
}  # fmt: skip
PLANES = {
    "max pool": layers.MaxPooling2D(),
    "average pool": layers.AveragePooling2D(2),
    "up": layers.UpSampling2D(interpolation="bilinear"),
    "resize": lambda x: ops.image.resize(x, (12, 12)),
    "colours": lambda x: ops.image.hsv_to_rgb(x[..., :3] / 2),
    "shifted": lambda x: ops.image.affine_transform(x, SHIFT),
    "shifted, with 1": lambda x: ops.image.affine_transform(x, SHIFT, fill_value=1.0),
}
TWO = {
    "a + b": lambda a, b: a + b,
    "Add": lambda a, b: layers.Add()([a, b]),
    "Average": lambda a, b: layers.Average()([a, b]),
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / (b + 1),
    "maximum": ops.maximum,
    "a ** b": lambda a, b: a**b,
    "where": lambda a, b: ops.where(a > 1, a, b),
    "gated": lambda a, b: a * ops.sigmoid(b),
    "concatenate": lambda a, b: ops.concatenate([a, b], 1),
    "a @ b": lambda a, b: a @ ops.transpose(b, (0, 2, 1)),
    "einsum": lambda a, b: ops.einsum("bti,bsi->bts", a, b),
    "written": lambda a, b: ops.slice_update(a, (0, 1, 0), b[:, :2]),
}
THREE = {
    "attention": lambda q, k, v: ops.dot_product_attention(
        *(ops.reshape(x, (2, 4, 2, 3)) for x in (q, k, v))),
    "by hand": lambda q, k, v: ops.softmax(q @ ops.transpose(k, (0, 2, 1)), -1) @ v,
    "Attention": lambda q, k, v: layers.Attention()([q, v, k]),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [*ONE, *PLANES])
def test_a_function_of_one_signal_vanishes_where_its_nodes_say(name, reader):
    function, x = {**ONE, **PLANES}[name], X if name in ONE else IMAGE
    for _, said, found in zeros_of(function, [x], READERS[reader]):
        assert said == found


RAW = {
    "complex": tf.complex,
    "relu, backwards": lambda a, b: tf.raw_ops.ReluGrad(gradients=a, features=b),
    "tanh, backwards": lambda a, b: tf.raw_ops.TanhGrad(y=b, dy=a),
    "max pool, backwards": lambda a, b: tf.raw_ops.MaxPoolGrad(
        orig_input=b[..., None], orig_output=tf.nn.max_pool2d(b[..., None], POOL, POOL, "VALID"),
        grad=a[..., :3, None], ksize=POOL, strides=POOL, padding="VALID"),
    "crops": lambda a, b: tf.image.crop_and_resize(a[..., None], b[0, :, :4], [0, 1, 0, 1], (2, 2)),
    "clip": lambda a, b: tf.raw_ops.ClipByValue(
        t=a, clip_value_min=-b, clip_value_max=b),
}  # fmt: skip
POOL = [1, 1, 2, 1]


class Raw(layers.Layer):
    """A function of TensorFlow's own operations."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, *given):
        return self.function(*given)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="they are TensorFlow's own")
@pytest.mark.parametrize("name", RAW)
def test_an_operation_of_tensorflow_vanishes_where_its_nodes_say(name):
    def against_ones(x):
        return Raw(lambda x: RAW[name](tf.ones_like(x), x))(x)

    for is_all, said, found in zeros_of(Raw(RAW[name]), [X, X[::-1] + 0.1], trace):
        assert found or not said
        if is_all:
            assert said == found
    for _, said, found in zeros_of(against_ones, [X], trace):
        assert found or not said


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [*TWO, *THREE])
def test_an_operation_on_signals_vanishes_where_its_nodes_say(name, reader):
    function = {**TWO, **THREE}[name]
    inputs = [X, X[::-1] + 0.1, X[:, ::-1] + 0.2][: 2 + (name in THREE)]
    for is_all, said, found in zeros_of(function, inputs, READERS[reader]):
        assert found or not said
        if is_all:
            assert said == found


class Pool(layers.Layer):
    """Attention from learned queries, as a DETR or Perceiver has them."""

    def __init__(self):
        super().__init__(name="pool")
        self.q, self.k, self.v = (layers.Dense(6, name=name) for name in "qkv")

    def build(self, shape):
        self.probe = self.add_weight(shape=(4, 6), initializer="random_normal", name="probe")
        for layer in (self.q, self.k, self.v):
            layer.build((None, 6))

    def call(self, x):
        scores = ops.matmul(self.q(self.probe), ops.transpose(self.k(x), (0, 2, 1)))
        return ops.softmax(scores) @ self.v(x)


@pytest.mark.parametrize("reader", READERS)
def test_a_dense_layer_on_a_learned_table_is_one_on_a_signal(reader):
    x = keras.Input(batch_shape=X.shape)
    graph = READERS[reader](keras.Model(x, Pool()(x)))
    kernels = {node.name: node.use for node in graph.nodes if node.name.endswith("kernel")}
    assert set(kernels.values()) == {"weight"}
    (probe,) = (node for node in graph.nodes if node.name.endswith("probe: data"))
    assert probe.kind == "input"
