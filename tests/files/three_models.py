"""ResNet-50 and GPT-2 written by hand in Flax NNX and Keras, with Hugging Face's attribute names.

Only what the weights need: no dropout, no cache, and batch statistics as they are stored.
"""

from __future__ import annotations

import jax
import keras
from flax import nnx

L, ops = keras.layers, keras.ops


# ResNet v1.5 (the stride is in the 3 x 3 convolution), in Flax ------------------------------------


class FlaxConvLayer(nnx.Module):
    def __init__(self, i, o, k, stride=1, relu=True, *, rngs):
        pad = [(k // 2, k // 2)] * 2
        self.convolution = nnx.Conv(
            i, o, (k, k), strides=stride, padding=pad, use_bias=False, rngs=rngs
        )
        self.normalization = nnx.BatchNorm(o, epsilon=1e-5, use_running_average=True, rngs=rngs)
        self.relu = relu

    def __call__(self, x):
        x = self.normalization(self.convolution(x))
        return nnx.relu(x) if self.relu else x


class FlaxBottleneck(nnx.Module):
    def __init__(self, i, o, stride, *, rngs):
        changes = i != o or stride > 1
        self.shortcut = (
            FlaxConvLayer(i, o, 1, stride, relu=False, rngs=rngs) if changes else nnx.data(None)
        )
        self.layer = nnx.List(
            [
                FlaxConvLayer(i, o // 4, 1, rngs=rngs),
                FlaxConvLayer(o // 4, o // 4, 3, stride, rngs=rngs),
                FlaxConvLayer(o // 4, o, 1, relu=False, rngs=rngs),
            ]
        )

    def __call__(self, x):
        skip = x if self.shortcut is None else self.shortcut(x)
        for layer in self.layer:
            x = layer(x)
        return nnx.relu(x + skip)


class FlaxStage(nnx.Module):
    def __init__(self, i, o, stride, depth, *, rngs):
        first = FlaxBottleneck(i, o, stride, rngs=rngs)
        self.layers = nnx.List(
            [first, *(FlaxBottleneck(o, o, 1, rngs=rngs) for _ in range(depth - 1))]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class FlaxEmbedder(nnx.Module):
    def __init__(self, o, *, rngs):
        self.embedder = FlaxConvLayer(3, o, 7, 2, rngs=rngs)

    def __call__(self, x):
        return nnx.max_pool(self.embedder(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class FlaxEncoder(nnx.Module):
    def __init__(self, config, *, rngs):
        sizes = [config.embedding_size, *config.hidden_sizes]
        self.stages = nnx.List(
            [
                FlaxStage(sizes[k], sizes[k + 1], 2 if k else 1, depth, rngs=rngs)
                for k, depth in enumerate(config.depths)
            ]
        )

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class FlaxResNetModel(nnx.Module):
    def __init__(self, config, *, rngs):
        self.embedder = FlaxEmbedder(config.embedding_size, rngs=rngs)
        self.encoder = FlaxEncoder(config, rngs=rngs)

    def __call__(self, x):
        return self.encoder(self.embedder(x)).mean((1, 2))


class FlaxResNet(nnx.Module):
    def __init__(self, config, *, rngs):
        self.resnet = FlaxResNetModel(config, rngs=rngs)
        self.classifier = nnx.Linear(config.hidden_sizes[-1], config.num_labels, rngs=rngs)

    def __call__(self, x):
        return self.classifier(self.resnet(x))


# The same in Keras --------------------------------------------------------------------------------


class ConvLayer(L.Layer):
    def __init__(self, o, k, stride=1, relu=True):
        super().__init__()
        self.pad = k // 2  # padding="same" would put all of it after, where the stride is 2
        self.convolution = L.Conv2D(o, k, strides=stride, use_bias=False)
        self.normalization = L.BatchNormalization(epsilon=1e-5)
        self.relu = relu

    def call(self, x):
        x = ops.pad(x, [(0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)])
        x = self.normalization(self.convolution(x), training=False)
        return ops.relu(x) if self.relu else x


class Bottleneck(L.Layer):
    def __init__(self, i, o, stride):
        super().__init__()
        self.shortcut = ConvLayer(o, 1, stride, relu=False) if i != o or stride > 1 else None
        self.layer = [
            ConvLayer(o // 4, 1),
            ConvLayer(o // 4, 3, stride),
            ConvLayer(o, 1, relu=False),
        ]

    def call(self, x):
        skip = x if self.shortcut is None else self.shortcut(x)
        for layer in self.layer:
            x = layer(x)
        return ops.relu(x + skip)


class Stage(L.Layer):
    def __init__(self, i, o, stride, depth):
        super().__init__()
        self.layers = [Bottleneck(i, o, stride), *(Bottleneck(o, o, 1) for _ in range(depth - 1))]

    def call(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Embedder(L.Layer):
    def __init__(self, o):
        super().__init__()
        self.embedder = ConvLayer(o, 7, 2)

    def call(self, x):  # of what a ReLU gives, 0 is as good as -inf
        x = ops.pad(self.embedder(x), [(0, 0), (1, 1), (1, 1), (0, 0)])
        return ops.max_pool(x, 3, strides=2)


class Encoder(L.Layer):
    def __init__(self, config):
        super().__init__()
        sizes = [config.embedding_size, *config.hidden_sizes]
        self.stages = [
            Stage(sizes[k], sizes[k + 1], 2 if k else 1, depth)
            for k, depth in enumerate(config.depths)
        ]

    def call(self, x):
        for stage in self.stages:
            x = stage(x)
        return x


class ResNetModel(L.Layer):
    def __init__(self, config):
        super().__init__()
        self.embedder = Embedder(config.embedding_size)
        self.encoder = Encoder(config)

    def call(self, x):
        return ops.mean(self.encoder(self.embedder(x)), (1, 2))


class KerasResNet(keras.Model):
    def __init__(self, config):
        super().__init__()
        self.resnet = ResNetModel(config)
        self.classifier = L.Dense(config.num_labels)

    def call(self, x):
        return self.classifier(self.resnet(x))


_CLASSIFIER = {"pattern": r"^classifier\.1\.", "name": "classifier."}  # there after a Flatten
RESNET_RULES = {
    "flax": [_CLASSIFIER],
    "keras": [
        _CLASSIFIER,
        {"list": "resnet.encoder.stages", "class": "Stage"},
        {"list": "*.layers", "class": "Bottleneck"},
        {"list": "*.layer", "class": "ConvLayer"},
    ],
}


# GPT-2, in Flax -----------------------------------------------------------------------------------


class FlaxAttention(nnx.Module):
    def __init__(self, config, *, rngs):
        n = config.n_embd
        self.c_attn = nnx.Linear(n, 3 * n, rngs=rngs)
        self.c_proj = nnx.Linear(n, n, rngs=rngs)
        self.heads = config.n_head

    def __call__(self, x):
        qkv = self.c_attn(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        q, k, v = (qkv[..., part, :, :] for part in range(3))
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.reshape(x.shape))


class FlaxMLP(nnx.Module):
    def __init__(self, config, *, rngs):
        n = config.n_embd
        self.c_fc = nnx.Linear(n, 4 * n, rngs=rngs)
        self.c_proj = nnx.Linear(4 * n, n, rngs=rngs)

    def __call__(self, x):
        return self.c_proj(nnx.gelu(self.c_fc(x), approximate=True))


class FlaxBlock(nnx.Module):
    def __init__(self, config, *, rngs):
        self.ln_1, self.ln_2 = (_norm(config, rngs) for _ in range(2))
        self.attn = FlaxAttention(config, rngs=rngs)
        self.mlp = FlaxMLP(config, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


def _norm(config, rngs):
    return nnx.LayerNorm(config.n_embd, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class FlaxTransformer(nnx.Module):
    def __init__(self, config, *, rngs):
        self.wte = nnx.Embed(config.vocab_size, config.n_embd, rngs=rngs)
        self.wpe = nnx.Embed(config.n_positions, config.n_embd, rngs=rngs)
        self.h = nnx.List([FlaxBlock(config, rngs=rngs) for _ in range(config.n_layer)])
        self.ln_f = _norm(config, rngs)

    def __call__(self, ids):
        x = self.wte(ids) + self.wpe(jax.numpy.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class FlaxGPT2(nnx.Module):
    def __init__(self, config, *, rngs):
        self.transformer = FlaxTransformer(config, rngs=rngs)

    def __call__(self, ids):
        return self.transformer.wte.attend(self.transformer(ids))  # the head is tied


# The same in Keras --------------------------------------------------------------------------------


class Attention(L.Layer):
    def __init__(self, config):
        super().__init__()
        self.c_attn = L.Dense(3 * config.n_embd)
        self.c_proj = L.Dense(config.n_embd)
        self.heads = config.n_head

    def call(self, x):
        length, width = x.shape[1:]
        qkv = ops.reshape(self.c_attn(x), (-1, length, 3, self.heads, width // self.heads))
        q, k, v = (qkv[:, :, part] for part in range(3))
        out = ops.dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(ops.reshape(out, (-1, length, width)))


class MLP(L.Layer):
    def __init__(self, config):
        super().__init__()
        self.c_fc = L.Dense(4 * config.n_embd)
        self.c_proj = L.Dense(config.n_embd)

    def call(self, x):
        return self.c_proj(ops.gelu(self.c_fc(x), approximate=True))


class GPT2Block(L.Layer):
    def __init__(self, config):
        super().__init__()
        self.ln_1, self.ln_2 = (L.LayerNormalization(epsilon=1e-5) for _ in range(2))
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def call(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(L.Layer):
    def __init__(self, config):
        super().__init__()
        self.wte = L.Embedding(config.vocab_size, config.n_embd)
        self.wpe = L.Embedding(config.n_positions, config.n_embd)
        self.h = [GPT2Block(config) for _ in range(config.n_layer)]
        self.ln_f = L.LayerNormalization(epsilon=1e-5)

    def call(self, ids):
        x = self.wte(ids) + self.wpe(ops.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class KerasGPT2(keras.Model):
    def __init__(self, config):
        super().__init__()
        self.transformer = Transformer(config)

    def call(self, ids):
        return ops.matmul(self.transformer(ids), ops.transpose(self.transformer.wte.embeddings))


GPT2_RULES = {"flax": [], "keras": [{"list": "transformer.h", "class": "GPT2Block"}]}
