"""One function, drawn in three frameworks: what every node does, when it vanishes, what it sums."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import keras
import torch
import torch.nn.functional as F
from torch import nn

import idinit_ref_jax
import idinit_ref_tensorflow
import idinit_ref_torch
from adapters.test_tensorflow_tracing import Own
from adapters.test_tensorflow_vanishing import walked
from adapters.test_torch_tracing import Function
from adapters.vanishing import facts

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the functions of TensorFlow are read too"
)
X = (2, 5, 8)
ops = keras.ops
TORCH = SimpleNamespace(
    relu=torch.relu, tanh=torch.tanh, sigmoid=torch.sigmoid, rsqrt=torch.rsqrt,
    square=torch.square, mean=lambda x: x.mean(-1, keepdim=True), einsum=torch.einsum,
    softmax=lambda x: x.softmax(-1), concatenate=lambda xs: torch.cat(xs, -1),
    reshape=torch.reshape,
)  # fmt: skip
JAX = SimpleNamespace(
    relu=jax.nn.relu, tanh=jnp.tanh, sigmoid=jax.nn.sigmoid, rsqrt=jax.lax.rsqrt,
    square=jnp.square, mean=lambda x: x.mean(-1, keepdims=True), einsum=jnp.einsum,
    softmax=jax.nn.softmax, concatenate=lambda xs: jnp.concatenate(xs, -1), reshape=jnp.reshape,
)  # fmt: skip
KERAS = SimpleNamespace(
    relu=ops.relu, tanh=ops.tanh, sigmoid=ops.sigmoid, rsqrt=ops.rsqrt, square=ops.square,
    mean=lambda x: ops.mean(x, -1, keepdims=True), einsum=ops.einsum,
    softmax=lambda x: ops.softmax(x, -1), concatenate=lambda xs: ops.concatenate(xs, -1),
    reshape=ops.reshape,
)  # fmt: skip


def linear(np_, x, w):
    return np_.einsum("bti,io->bto", x, w)


def attention(np_, p, x):
    q, k, v = (np_.reshape(linear(np_, x, w), (2, 5, 2, 4)) for w in (p.a, p.b, p.c))
    scores = np_.softmax(np_.einsum("bqhd,bkhd->bhqk", q, k))
    out = np_.einsum("bhqk,bkhd->bqhd", scores, v)
    return x + linear(np_, np_.reshape(out, X), p.d)


def normed(np_, p, x):
    h = linear(np_, x, p.a)
    h = h * np_.rsqrt(np_.mean(np_.square(h)) + 1e-6)
    return x + linear(np_, np_.tanh(h), p.b)


FUNCTIONS = {
    "mlp": lambda np_, p, x: x + linear(np_, np_.relu(linear(np_, x, p.a)), p.b),
    "gated mlp": lambda np_, p, x: x + linear(
        np_, np_.tanh(linear(np_, x, p.a)) * linear(np_, x, p.b), p.c),
    "gate": lambda np_, p, x: x + linear(np_, x, p.a) * np_.sigmoid(linear(np_, x, p.b)),
    "shifted": lambda np_, p, x: x + (np_.tanh(linear(np_, x, p.a)) + 1),
    "shifted from the left": lambda np_, p, x: x + (1 + np_.tanh(linear(np_, x, p.a))),
    "square": lambda np_, p, x: x + np_.square(linear(np_, x, p.a)),
    "concatenation": lambda np_, p, x: np_.concatenate([linear(np_, x, p.a), np_.tanh(x)]),
    "normalisation written out": normed,
    "attention": attention,
}  # fmt: skip


def in_torch(function):
    shapes = {name: torch.randn(8, 8) for name in "abcd"}
    return idinit_ref_torch.trace(
        Function(lambda model, x: function(TORCH, model, x), **shapes), torch.zeros(X)
    )


def in_jax(function):
    def apply(p, x):
        return function(JAX, SimpleNamespace(**p), x)

    return idinit_ref_jax.trace({name: jnp.ones((8, 8)) for name in "abcd"}, jnp.ones(X), apply)


def keras_model(function):
    x = keras.Input(batch_shape=X)
    own = Own(lambda p, x: function(KERAS, p, x), **dict.fromkeys("abcd", (8, 8)))
    return keras.Model(x, own(x))


def ends(graph):
    """The weights with which the operands of the last node vanish, each by its last letter."""

    def walk(name):
        node = graph.by_name[name]
        if node.kind == "weight":
            return frozenset(weight[-1] for weight in node.weights)
        if node.vanishes == "never" or not node.inputs:
            return frozenset()
        inputs = node.inputs
        if isinstance(node.vanishes, tuple):
            inputs = [node.inputs[place] for place in node.vanishes]
        return frozenset().union(*map(walk, inputs))

    return {walk(name) for name in graph.by_name[graph.outputs[0]].inputs}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_drawn_alike_in_every_framework(name):
    """JAX writes a softmax out; of attention the ends are compared there."""
    function = FUNCTIONS[name]
    model = keras_model(function)
    graphs = [in_torch(function), idinit_ref_tensorflow.trace(model), walked(model)]
    jaxs = in_jax(function)
    if name == "attention":
        assert ends(jaxs) == ends(graphs[0])
    else:
        graphs.append(jaxs)
    first, *rest = map(facts, graphs)
    for other in rest:
        assert other == first


def test_fused_attention_vanishes_like_the_same_written_out():
    def fused(np_, p, x):
        heads = [np_.reshape(linear(np_, x, w), (2, 5, 2, 4)) for w in (p.a, p.b, p.c)]
        if np_ is TORCH:
            heads = [h.transpose(1, 2) for h in heads]
            out = F.scaled_dot_product_attention(*heads).transpose(1, 2)
        elif np_ is JAX:
            out = jax.nn.dot_product_attention(*heads)
        else:
            out = ops.dot_product_attention(*heads)
        return x + linear(np_, np_.tanh(np_.reshape(out, X)), p.d)

    model = keras_model(fused)
    for graph in (in_torch(fused), in_jax(fused), walked(model)):
        contracted = [n for n in graph.nodes if n.does in ("contract", "attention")]
        assert {name[-1] for node in contracted for name in _weights(graph, node)} == {"c"}


def _weights(graph, node):
    """The weights with which a contraction vanishes."""
    found, stack = set(), [node.inputs[place] for place in node.vanishes]
    while stack:
        now = graph.by_name[stack.pop()]
        found |= set(now.weights)
        if not now.weights and now.vanishes == "all":
            stack += now.inputs
    return found


def test_a_convolution_block_is_drawn_alike():
    shape = (2, 6, 6, 4)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    x = keras.Input(batch_shape=shape)
    conv = [keras.layers.Conv2D(4, 3, padding="same") for _ in range(2)]
    model = keras.Model(x, x + conv[1](ops.relu(conv[0](x))))
    graphs = [
        idinit_ref_torch.trace(Block(), torch.zeros(2, 4, 6, 6)),
        idinit_ref_tensorflow.trace(model),
        walked(model),
        idinit_ref_jax.trace(
            {"a": jnp.ones((3, 3, 4, 4)), "b": jnp.ones((3, 3, 4, 4))},
            jnp.ones(shape),
            lambda p, x: x + _conv(jax.nn.relu(_conv(x, p["a"])), p["b"]),
        ),
    ]
    first, *rest = map(facts, graphs)
    assert all(other == first for other in rest)


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
