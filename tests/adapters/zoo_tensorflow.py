"""Keras models for the tests of the whole-model tracer; small, and on any backend of Keras."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from keras import layers as kl
from keras import ops

WIDTH, LENGTH, HEADS = 16, 6, 4


def mlp():
    return keras.Sequential(
        [keras.Input((8,)), kl.Dense(16, "relu", name="fc1"), kl.Dense(4, name="fc2")]
    )


def functional(layers, name, shape=(LENGTH, WIDTH), dtype="float32"):
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, layers(x), name=name)


def transformer():
    """Pre-norm, of Keras' own attention layers."""

    def layers(x):
        for k in range(2):
            n = kl.LayerNormalization(name=f"{k}_norm1")(x)
            x = x + kl.MultiHeadAttention(HEADS, 4, name=f"{k}_attention")(n, n)
            n = kl.LayerNormalization(name=f"{k}_norm2")(x)
            n = kl.Dense(2 * WIDTH, "gelu", name=f"{k}_up")(n)
            x = kl.Add(name=f"{k}_add")([x, kl.Dense(WIDTH, name=f"{k}_down")(n)])
        return kl.Dense(5, name="head")(kl.LayerNormalization(name="norm")(x))

    return functional(layers, "transformer")


def grouped_query():
    def layers(x):
        n = kl.RMSNormalization(name="norm1")(x)
        x = x + kl.GroupQueryAttention(4, HEADS, 2, name="attention")(n, n)
        return x + kl.Dense(WIDTH, name="mlp")(kl.RMSNormalization(name="norm2")(x))

    return functional(layers, "grouped_query")


def post_norm():
    def layers(x):
        h = kl.MultiHeadAttention(HEADS, 4, name="attention")(x, x)
        x = kl.LayerNormalization(name="norm1")(x + h)
        h = kl.Dense(WIDTH, name="down")(kl.Dense(2 * WIDTH, "relu", name="up")(x))
        return kl.LayerNormalization(name="norm2")(x + h)

    return functional(layers, "post_norm")


def attend(q, k, v):
    def heads(t):
        t = ops.reshape(t, (-1, LENGTH, t.shape[-1] // 4, 4))
        t = ops.transpose(t, (0, 2, 1, 3))
        return ops.repeat(t, HEADS // t.shape[1], axis=1)

    q, k, v = heads(q), heads(k), heads(v)
    scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / 2.0)
    return ops.reshape(ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3)), (-1, LENGTH, WIDTH))


class Block(kl.Layer):
    """A pre-norm block of Dense layers alone, with three projections or with one packed one."""

    def __init__(self, packed=(), **options):
        super().__init__(**options)
        self.packed = packed
        self.norm1, self.norm2 = kl.LayerNormalization(name="n1"), kl.LayerNormalization(name="n2")
        if packed:
            self.qkv = kl.Dense(sum(packed), name="qkv")
        else:
            self.q, self.k, self.v = (kl.Dense(WIDTH, name=c) for c in "qkv")
        self.out = kl.Dense(WIDTH, name="out")
        self.up, self.down = kl.Dense(WIDTH, "gelu", name="up"), kl.Dense(WIDTH, name="down")

    def call(self, x):
        n = self.norm1(x)
        if self.packed:
            cuts = [self.packed[0], sum(self.packed[:2])]
            q, k, v = ops.split(self.qkv(n), cuts, axis=-1)
        else:
            q, k, v = self.q(n), self.k(n), self.v(n)
        x = x + self.out(attend(q, k, v))
        return x + self.down(self.up(self.norm2(x)))


class Transformer(keras.Model):
    """Subclassed: nothing is known of it before it is called."""

    def __init__(self, packed=()):
        super().__init__(name="transformer")
        self.embed = kl.Embedding(11, WIDTH, name="embed")
        self.blocks = [Block(packed, name=f"block_{k}") for k in range(2)]
        self.head = kl.Dense(11, name="head")

    def call(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Residual(kl.Layer):
    def __init__(self, filters, strides, **options):
        super().__init__(**options)
        self.conv1 = kl.Conv2D(filters, 3, strides, "same", use_bias=False, name="conv1")
        self.conv2 = kl.Conv2D(filters, 3, 1, "same", use_bias=False, name="conv2")
        self.bn1, self.bn2 = kl.BatchNormalization(name="bn1"), kl.BatchNormalization(name="bn2")
        self.project = None
        if strides > 1:
            self.project = kl.Conv2D(filters, 1, strides, use_bias=False, name="project")
            self.bn = kl.BatchNormalization(name="bn")

    def call(self, x, training=False):
        h = ops.relu(self.bn1(self.conv1(x), training=training))
        h = self.bn2(self.conv2(h), training=training)
        if self.project is not None:
            x = self.bn(self.project(x), training=training)
        return ops.relu(x + h)


class ResNet(keras.Model):
    def __init__(self):
        super().__init__(name="resnet")
        self.stem = kl.Conv2D(8, 3, padding="same", name="stem")
        sizes = [(8, 1), (16, 2), (16, 1)]
        self.stages = [Residual(*size, name=f"stage_{k}") for k, size in enumerate(sizes)]
        self.head = kl.Dense(3, name="head")

    def call(self, x, training=False):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))


def swiglu(packed):
    def layers(x):
        n = kl.RMSNormalization(name="norm")(x)
        if packed:
            gate, up = ops.split(kl.Dense(48, name="gate_up")(n), 2, axis=-1)
        else:
            gate, up = kl.Dense(24, name="gate")(n), kl.Dense(24, name="up")(n)
        return x + kl.Dense(WIDTH, name="down")(ops.silu(gate) * up)

    return functional(layers, "swiglu")


def packed_by_reshape():
    def layers(x):
        qkv = kl.Dense(3 * WIDTH, name="qkv")(x)
        qkv = ops.transpose(ops.reshape(qkv, (-1, LENGTH, 3, HEADS, 4)), (2, 0, 3, 1, 4))
        q, k, v = qkv[0], qkv[1], qkv[2]
        h = ops.matmul(ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))), v)
        h = ops.reshape(ops.transpose(h, (0, 2, 1, 3)), (-1, LENGTH, WIDTH))
        return x + kl.Dense(WIDTH, name="out")(h)

    return functional(layers, "packed_by_reshape")


def squeeze_excite(gate_last):
    def layers(x):
        h = kl.Conv2D(8, 3, padding="same", name="conv1")(x)
        if not gate_last:
            h = kl.Conv2D(8, 3, padding="same", activation="relu", name="conv2")(h)
        s = kl.GlobalAveragePooling2D(keepdims=True)(h)
        s = kl.Conv2D(2, 1, activation="relu", name="reduce")(s)
        h = kl.Multiply()([h, kl.Conv2D(8, 1, activation="sigmoid", name="expand")(s)])
        if not gate_last:
            h = kl.Conv2D(8, 1, name="project")(h)
        return x + h

    return functional(layers, "squeeze_excite", (6, 6, 8))


def shared():
    """One layer twice: once as the last of a branch, once not."""

    def layers(x):
        both = kl.Dense(WIDTH, "relu", name="both")
        return kl.Dense(2, name="head")(both(x + both(x)))

    return functional(layers, "shared")


class Tied(keras.Model):
    def __init__(self):
        super().__init__(name="tied")
        self.embed = kl.ReversibleEmbedding(11, WIDTH, name="embed")
        self.fc = kl.Dense(WIDTH, "relu", name="fc")
        self.proj = kl.Dense(WIDTH, name="proj")

    def call(self, tokens):
        x = self.embed(tokens)
        return self.embed(x + self.proj(self.fc(x)), reverse=True)


def unet():
    def layers(x):
        one = kl.Conv2D(4, 3, padding="same", activation="relu", name="down1")(x)
        two = kl.Conv2D(8, 3, padding="same", activation="relu", name="down2")(
            kl.MaxPooling2D()(one)
        )
        up = kl.Conv2DTranspose(4, 2, 2, name="up")(two)
        h = kl.Conv2D(4, 3, padding="same", name="merge")(kl.Concatenate()([up, one]))
        return kl.Conv2D(3, 1, name="head")(h)

    return functional(layers, "unet", (8, 8, 3))


def parallel():
    def layers(x):
        n = kl.LayerNormalization(name="norm")(x)
        h = kl.MultiHeadAttention(HEADS, 4, name="attention")(n, n)
        m = kl.Dense(WIDTH, name="down")(kl.Dense(2 * WIDTH, "gelu", name="up")(n))
        return kl.Add()([x, h, m])

    return functional(layers, "parallel")


def depthwise():
    def layers(x):
        h = kl.ZeroPadding2D(((1, 0), (2, 1)))(x)
        h = kl.DepthwiseConv2D((2, 4), name="deep")(h)
        h = kl.SeparableConv2D(6, 3, padding="same", name="apart")(h)
        return x + kl.Conv2D(6, 3, padding="same", groups=2, name="grouped")(h)

    return functional(layers, "depthwise", (6, 6, 6))


def padded():
    """Paddings before kernels, in one dimension; one kernel shared by two ways to use it."""

    def layers(x):
        h = kl.Conv1D(WIDTH, 3, name="front")(kl.ZeroPadding1D((2, 0))(x))
        h = kl.Conv1D(WIDTH, 3, padding="causal", name="causal")(h)
        h = kl.Conv1D(WIDTH, 3, padding="same", dilation_rate=2, name="dilated")(h)
        both = kl.Conv1D(WIDTH, 3, padding="same", name="both")
        return x + both(both(h) + kl.Cropping1D((0, 2))(both(kl.ZeroPadding1D((1, 1))(h))))

    return functional(layers, "padded")


def recurrent():
    def layers(x):
        h = kl.LSTM(WIDTH, return_sequences=True, name="lstm")(x)
        h = kl.Bidirectional(kl.GRU(8, return_sequences=True, name="gru"), name="both")(h)
        return kl.Dense(2, name="head")(x + kl.Dense(WIDTH, name="out")(h))

    return functional(layers, "recurrent")


class Mixing(kl.Layer):
    """Weights of its own: stacked experts, a mixer from the left, a position and a scale."""

    def build(self, shape):
        self.up = self.add_weight(shape=(3, WIDTH, 8), name="up")
        self.down = self.add_weight(shape=(3, 8, WIDTH), name="down")
        self.bias = self.add_weight(shape=(3, 1, WIDTH), name="bias")
        self.mix = self.add_weight(shape=(LENGTH, LENGTH), name="mix")
        self.place = self.add_weight(shape=(LENGTH, WIDTH), name="place")
        self.scale = self.add_weight(shape=(WIDTH,), name="scale")

    def call(self, x):
        x = x + self.place
        x = x + ops.matmul(self.mix, x) * self.scale
        h = ops.einsum("bti,eio->bteo", x, self.up)
        h = ops.transpose(ops.relu(h), (2, 0, 1, 3))
        h = ops.matmul(ops.reshape(h, (3, -1, 8)), self.down) + self.bias
        return x + ops.reshape(ops.mean(h, axis=0), (-1, LENGTH, WIDTH))


def mixing():
    return functional(Mixing(name="mixing"), "mixed")


APPLICATIONS = {"ResNet50": 64, "MobileNetV2": 32, "EfficientNetB0": 32, "ConvNeXtTiny": 32}


def application(name):
    size = APPLICATIONS[name]
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), name=name)


IDS = keras.KerasTensor((2, LENGTH), "int32")
IMAGES = keras.KerasTensor((2, 8, 8, 3))

MODELS = {
    "mlp": (mlp, None),
    "transformer": (transformer, None),
    "grouped_query": (grouped_query, None),
    "post_norm": (post_norm, None),
    "subclassed": (Transformer, IDS),
    "packed": (lambda: Transformer((16, 8, 8)), IDS),
    "packed_by_reshape": (packed_by_reshape, None),
    "resnet": (ResNet, IMAGES),
    "swiglu": (lambda: swiglu(False), None),
    "swiglu_packed": (lambda: swiglu(True), None),
    "squeeze_excite": (lambda: squeeze_excite(False), None),
    "gate_last": (lambda: squeeze_excite(True), None),
    "shared": (shared, None),
    "tied": (Tied, IDS),
    "unet": (unet, None),
    "parallel": (parallel, None),
    "depthwise": (depthwise, None),
    "padded": (padded, None),
    "recurrent": (recurrent, None),
    "mixing": (mixing, None),
}
