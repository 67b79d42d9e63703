"""Initialisers where a shape is not enough: heads, einsums, stacks; and Keras' and Flax's layers.

What a layer does is compared with a matrix of in != out: outputs in order are the inputs, repeated.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from flax import nnx

import idinit_ref_jax as irj
import idinit_ref_tensorflow as irk
import idinit_ref_torch as irt
from idinit_ref import errors

kl = keras.layers
KEY = jax.random.key(0)


def x_of(*shape):
    return np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)


def cycled(x, outputs):
    """The inputs of the last axis, over and over."""
    return np.take(x, np.arange(outputs) % x.shape[-1], -1)


# equation, the kernel's shape, the input's, how the output's matrix is read, the inputs as one axis
EINSUMS = {
    "heads last": ("btd,dhe->bthe", (8, 2, 6), (2, 3, 8), (2, 3, 12)),
    "output projection": ("bthe,hed->btd", (2, 4, 5), (2, 3, 2, 4), (2, 3, 5)),
    "output projection transposed": ("bthe,dhe->btd", (5, 2, 4), (2, 3, 2, 4), (2, 3, 5)),
    "matrix": ("bd,de->be", (3, 7), (2, 3), (2, 7)),
}


def wanted(x, out):
    flat = x.reshape(*out[:-1], -1) if x.ndim > len(out) else x
    return cycled(flat, out[-1])


def by_nnx(equation, kernel, x):
    layer = nnx.Einsum(equation, kernel, kernel_init=irj.idi(), rngs=nnx.Rngs(0))
    return layer(x)


def by_linen(equation, kernel, x):
    return nn.Einsum(kernel, equation, use_bias=False, kernel_init=irj.idi()).init_with_output(
        KEY, x
    )[0]


def by_linen_call(equation, kernel, x):
    """The equation is an argument of the call, and the initialiser is wrapped."""
    init = nn.with_partitioning(irj.idi(taps="center"), (None,) * len(kernel))
    layer = nn.Einsum(kernel, use_bias=False, kernel_init=init)
    return layer.init_with_output(KEY, x, equation)[0]


def by_keras(equation, kernel, x):
    outputs = dict(zip(equation.split(",")[1].split("->")[0], kernel, strict=True))
    outputs |= dict(zip(equation.split(",")[0], x.shape, strict=True))
    shape = tuple(outputs[c] for c in equation.split("->")[1][1:])
    return keras.ops.convert_to_numpy(
        kl.EinsumDense(equation, shape, kernel_initializer=irk.IDI())(x)
    )


@pytest.mark.parametrize("name", EINSUMS)
@pytest.mark.parametrize("by", [by_nnx, by_linen, by_linen_call, by_keras])
def test_an_einsum_is_asked_for_its_equation(by, name):
    equation, kernel, into, out = EINSUMS[name]
    x = x_of(*into)
    got = np.asarray(by(equation, kernel, x)).reshape(out)
    np.testing.assert_array_equal(got, wanted(x, out))


@pytest.mark.parametrize("by", [by_nnx, by_linen, by_linen_call, by_keras])
def test_heads_first(by):
    """Kernels (heads, d, size) and (3, d, heads, size), of packed queries, keys and values."""
    x = x_of(2, 3, 8)
    y = by("btd,hde->bthe", (2, 8, 6), x)
    np.testing.assert_array_equal(np.asarray(y).reshape(2, 3, 12), cycled(x, 12))
    y = by("btd,sdhe->btshe", (3, 8, 2, 4), x)
    np.testing.assert_array_equal(np.asarray(y).reshape(2, 3, 24), cycled(x, 24))


def test_an_einsum_is_asked_under_transformations():
    def make():
        layer = nnx.Einsum("btd,dhe->bthe", (8, 2, 3), kernel_init=irj.idi(), rngs=nnx.Rngs(0))
        return nnx.state(layer)

    made = jax.tree.leaves(jax.jit(make)())[0]
    np.testing.assert_array_equal(np.asarray(made).reshape(8, 6), np.eye(8, 6))
    shape = jax.tree.leaves(jax.eval_shape(make))[0].shape
    assert shape == (8, 2, 3)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Einsum((8, 2, 3), "btd,dhe->bthe", kernel_init=irj.idi(), name="into")(x)
        return nn.DenseGeneral(8, (-2, -1), kernel_init=irj.idi(), name="out")(y), None


def test_stacks_that_a_scan_and_a_vmap_make():
    scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    params = scan().init(KEY, jnp.ones((1, 2, 8)), None)["params"]
    for k, kernel in enumerate(np.asarray(params["into"]["kernel"])):
        np.testing.assert_array_equal(kernel.reshape(8, 6), np.eye(8, 6), f"into {k}")
    for k, kernel in enumerate(np.asarray(params["out"]["kernel"])):
        np.testing.assert_array_equal(kernel.reshape(6, 8), cycled(np.eye(6), 8), f"out {k}")

    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(rngs):
        return nnx.Einsum("btd,dhe->bthe", (8, 2, 3), kernel_init=irj.idi(), rngs=rngs)

    for k, kernel in enumerate(np.asarray(stacked(nnx.Rngs(0).split(3)).kernel.get_value())):
        np.testing.assert_array_equal(kernel.reshape(8, 6), np.eye(8, 6), f"kernel {k}")


def test_a_general_dense_layer_is_asked_for_its_copies():
    """They show their initialisers one matrix; each of four copies has its own identity."""
    x = x_of(4, 5, 3)
    layer = nnx.LinearGeneral(3, (2, 4), batch_axis={0: 4}, kernel_init=irj.idi(), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(np.asarray(layer(x)).reshape(4, 5, 8), cycled(x, 8))
    layer = nn.DenseGeneral((2, 4), batch_dims=(0,), kernel_init=irj.idi())
    y = np.asarray(layer.init_with_output(KEY, x)[0]).reshape(4, 5, 8)
    np.testing.assert_array_equal(y, cycled(x, 8))


@pytest.mark.parametrize(
    "layer",
    [
        lambda i: nn.MultiHeadDotProductAttention(2, qkv_features=8, kernel_init=i),
        lambda i: nnx.MultiHeadAttention(2, 6, 8, kernel_init=i, decode=False, rngs=nnx.Rngs(0)),
    ],
    ids=["linen", "nnx"],
)
def test_flaxs_attention_is_what_the_layer_call_makes(layer):
    made, x = layer(irj.idi()), x_of(1, 3, 6)
    like = nnx.MultiHeadAttention(2, 6, 8, decode=False, rngs=nnx.Rngs(0))
    want = irj.idi_layer_(like)(x)
    got = made(x) if isinstance(made, nnx.Module) else made.init_with_output(KEY, x)[0]
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_convolutions_are_read_as_before_and_flipped_ones_aright():
    x = x_of(1, 7, 4)
    y = nnx.Conv(4, 6, 3, kernel_init=irj.idi(), rngs=nnx.Rngs(0))(x)
    np.testing.assert_array_equal(np.asarray(y)[..., :4], x)
    y = nn.Conv(6, (3,), kernel_init=irj.idi()).init_with_output(KEY, x)[0]
    np.testing.assert_array_equal(np.asarray(y)[..., :4], x)
    turned = nn.ConvTranspose(6, (3,), transpose_kernel=True, kernel_init=irj.idi())
    np.testing.assert_array_equal(np.asarray(turned.init_with_output(KEY, x)[0])[..., :4], x)
    y = kl.Conv1D(6, 3, padding="same", kernel_initializer=irk.IDI())(x)
    np.testing.assert_array_equal(np.asarray(y)[..., :4], x)
    y = kl.Conv1DTranspose(6, 3, padding="same", kernel_initializer=irk.IDI())(x)
    np.testing.assert_array_equal(np.asarray(y)[..., :4], x)


# Keras ----------------------------------------------------------------------------------------

ATTENTION = {
    "heads": lambda **o: kl.MultiHeadAttention(2, 5, value_dim=3, **o),
    "grouped": lambda **o: kl.GroupQueryAttention(3, 4, 2, **o),
}


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize(("init", "role"), [(irk.IDI, "transit"), (irk.IDIZ, "zero")])
def test_keras_attention_by_name_is_attention_by_layer(kind, init, role):
    x = x_of(1, 4, 7)
    named, layer = ATTENTION[kind](kernel_initializer=init()), ATTENTION[kind]()
    named(x, x), layer(x, x)
    irk.idi_layer_(layer) if role == "transit" else irk.idiz_layer_(layer)
    pairs = list(zip(named.weights, layer.weights, strict=True))
    for mine, theirs in pairs if role == "transit" else pairs[-2:]:
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs), mine.path)


def test_keras_variables_that_are_filled_later_know_their_layer():
    """A subclassed model that is called on a symbolic input makes its variables empty."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = kl.MultiHeadAttention(2, 3, kernel_initializer=irk.IDI())
            self.convolution = kl.Conv1D(6, 3, padding="same", kernel_initializer=irk.IDI())

        def call(self, x):
            return self.convolution(x + self.attention(x, x))

    model = Model()
    model(keras.Input((5, 6)))
    for part in ("query", "key", "value", "output"):
        kernel = np.asarray(getattr(model.attention, f"_{part}_dense").kernel)
        np.testing.assert_array_equal(kernel.reshape(6, 6), np.eye(6), part)
    np.testing.assert_array_equal(np.asarray(model.convolution.kernel)[1], np.eye(6))


def test_kerass_other_layers_are_read_as_before():
    x = x_of(1, 2, 5, 5, 3)
    cell = kl.ConvLSTM2D(4, 3, kernel_initializer=irk.IDI(), recurrent_initializer=irk.IDI())
    cell(x)
    want = irk.IDI(layout="HWIO")((3, 3, 3, 16))
    np.testing.assert_array_equal(np.asarray(cell.cell.kernel), np.asarray(want))
    separable = kl.SeparableConv1D(4, 3, pointwise_initializer=irk.IDI())
    separable(x_of(1, 5, 4))
    np.testing.assert_array_equal(np.asarray(separable.pointwise_kernel)[0], np.eye(4))
    table = kl.Embedding(4, 6, embeddings_initializer=irk.IDI())
    np.testing.assert_array_equal(np.asarray(table(np.arange(4))), cycled(np.eye(4), 6))


# By letters and by numbers ----------------------------------------------------------------------

LETTERS = [
    ("IOO", (8, 2, 3), {"in": 0, "out": (1, 2)}),
    ("OOI", (2, 3, 8), {"in": -1, "out": (0, 1)}),
    ("IIO", (2, 4, 5), {"in": (0, 1), "out": 2}),
    ("OIO", (2, 8, 3), {"in": 1, "out": (0, -1)}),
    ("LIOO", (3, 8, 2, 3), {"batch": 0, "in": 1, "out": (2, 3)}),
    ("LIIO", (3, 2, 4, 5), {"batch": 0, "in": (1, 2), "out": 3}),
    ("LIO", (3, 8, 5), {"batch": 0}),
    ("BLIO", (2, 3, 8, 5), {"batch": (0, 1)}),
]


@pytest.mark.parametrize(("letters", "shape", "axes"), LETTERS, ids=[one[0] for one in LETTERS])
def test_letters_and_numbers_say_the_same(letters, shape, axes):
    x = x_of(8)
    jaxs = {f"{name}_axis": at for name, at in axes.items()}
    long = {"in": "input_axes", "out": "output_axes", "batch": "batch_axes"}
    kerass = {long[name]: at for name, at in axes.items()}
    made = [
        irj.idi(layout=letters)(None, shape),
        irj.idi(**jaxs)(None, shape),
        irj.idi(**kerass)(None, shape),
        irk.IDI(layout=letters)(shape),
        irk.IDI(**kerass)(shape),
        irk.IDI.from_config(irk.IDI(**kerass).get_config())(shape),
        irk.idi_(keras.Variable(np.ones(shape, np.float32)), layout=letters),
        irt.idi_(torch.empty(shape), layout=letters),
    ]
    small = letters.lower()
    batch = "".join(dict.fromkeys(c for c in small if c not in "io"))
    names = [c if c in batch else chr(ord("p") + k) for k, c in enumerate(small)]
    ins = [c for c, letter in zip(names, letters, strict=True) if letter == "I"]
    outs = [c for c, letter in zip(names, letters, strict=True) if letter == "O"]
    into = x.reshape([n for n, letter in zip(shape, letters, strict=True) if letter == "I"])
    for k, weight in enumerate(made):
        got = np.einsum(f"{''.join(ins)},{''.join(names)}->{batch}{''.join(outs)}", into, weight)
        got = got.reshape(-1, np.prod([n for n, c in zip(shape, letters, strict=True) if c == "O"]))
        want = np.broadcast_to(cycled(x, got.shape[1]), got.shape)
        np.testing.assert_array_equal(got, want, f"weight {k} of those made")


class Own(nn.Module):
    """A layer that nobody knows: of packed queries, keys and values, three heads."""

    @nn.compact
    def __call__(self, x):
        return x, self.param("kernel", irj.idi(), (3, 3, 4, 5))


class OwnKeras(kl.Layer):
    def build(self, _):
        self.kernel = self.add_weight(shape=(3, 3, 4, 5), initializer=irk.IDI(), name="kernel")


UNSURE = {
    "a stack by hand": lambda: irj.idi()(None, (4, 8, 8)),
    "a stack by hand in Keras": lambda: irk.IDI()((4, 8, 8)),
    "a stack of heads by hand": lambda: irj.idi()(None, (6, 8, 2, 4)),
    "copies and more": lambda: irj.idi(batch_axis=0)(None, (6, 8, 2, 4)),
    "copies and more in Keras": lambda: irk.IDI(batch_axes=0)((6, 8, 2, 4)),
    "an own layer": lambda: Own().init(KEY, jnp.ones(3)),
    "an own layer in Keras": lambda: OwnKeras().build((1,)),
    "a variable": lambda: irk.idi_(keras.Variable(np.ones((8, 2, 4)))),
}


@pytest.mark.parametrize("case", UNSURE)
def test_what_is_unsure_is_asked_for(case):
    with pytest.raises(
        errors.LayoutError, match=r"(?s)may belong to a convolution.*(layout=|axes=)"
    ):
        UNSURE[case]()


WRONG = [
    (lambda: irj.idi(in_axis=0, input_axes=0), errors.OptionError, "input_axes = 0.*one of them"),
    (lambda: irk.IDI(layout="IOO", output_axes=1), errors.OptionError, "'IOO'.*give either"),
    (lambda: irk.IDI(input_axes=()), errors.OptionError, r"input_axes = \(\)"),
    (lambda: irk.IDI(layout="HHIO")((3, 3, 2, 2)), errors.LayoutError, "'HHIO'.*once"),
    (
        lambda: nnx.Einsum("td,dhe->the", (8, 2, 4), (2, 4), bias_init=irj.idi(), rngs=nnx.Rngs(0)),
        errors.ShapeError,
        r"\(2, 4\).*bias",
    ),
    (
        lambda: kl.EinsumDense("td,dhe->the", (2, 4), bias_axes="he", bias_initializer=irk.IDI())(
            np.ones((3, 8))
        ),
        errors.ShapeError,
        r"\(2, 4\).*bias",
    ),
    (
        lambda: kl.EinsumDense("td,d->td", 8, kernel_initializer=irk.IDI())(np.ones((3, 8))),
        errors.OptionError,
        "'td,d->td'.*layout=",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(call, kind, text):
    with pytest.raises(kind, match=f"(?s){text}"):
        call()


def test_haikus_calling_convention():
    """It calls ``init(shape, dtype)``; the layers are told by their classes' module."""
    want = np.take(np.eye(3), np.arange(5) % 3, 1)
    for call, made in (
        ("a tuple", irj.idi()((3, 5), jnp.float16)),
        ("a list, dtype=", irj.idi()([3, 5], dtype=jnp.float16)),
    ):
        assert made.dtype == jnp.float16, call
        np.testing.assert_array_equal(np.asarray(made), want, call)
    assert irj.idiz()((3, 5)).dtype == jnp.float32
    assert irj.idi()((1, 2), (3, 5)).shape == (3, 5)  # a key of whatever kind


def test_haikus_layers():
    import haiku as hk

    def run(x):
        y = hk.Linear(6, w_init=irj.idi())(x)
        return hk.Conv1D(6, 3, w_init=irj.idi())(y)

    x = x_of(1, 5, 4)
    out = hk.without_apply_rng(hk.transform(run))
    got = out.apply(out.init(KEY, x), x)
    np.testing.assert_array_equal(np.asarray(got), cycled(x, 6))


# Layers that normalise their weights --------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"feature_axes": None}, {"feature_axes": 0}])
@pytest.mark.cases(1)
def test_flaxs_weight_norm_gives_the_weight(options):
    for make in (
        lambda: nnx.Linear(4, 6, rngs=nnx.Rngs(0)),
        lambda: nnx.Linear(6, 4, rngs=nnx.Rngs(0)),
        lambda: nnx.Conv(6, 4, 3, rngs=nnx.Rngs(0)),
    ):
        plain, normed = make(), nnx.WeightNorm(make(), rngs=nnx.Rngs(0), **options)
        x = x_of(1, 5, plain.in_features)
        want = np.asarray(irj.idi_layer_(plain, gain=3.0)(x))
        assert irj.idi_layer_(normed, gain=3.0) is normed
        for call in range(3):  # which writes the result where the kernel was
            np.testing.assert_allclose(np.asarray(normed(x)), want, 1e-6, err_msg=f"call {call}")


def test_flaxs_weight_norm_of_attention_and_of_a_branchs_end():
    attention = {"in_features": 6, "qkv_features": 8, "decode": False, "num_heads": 2}
    plain = nnx.MultiHeadAttention(**attention, rngs=nnx.Rngs(0))
    inner = nnx.MultiHeadAttention(**attention, rngs=nnx.Rngs(0))
    normed = nnx.WeightNorm(inner, rngs=nnx.Rngs(0), epsilon=0.0, feature_axes=None)
    x = x_of(1, 3, 6)
    want = np.asarray(irj.idiz_layer_(plain, eps=0.5)(x))
    np.testing.assert_allclose(np.asarray(irj.idiz_layer_(normed, eps=0.5)(x)), want, rtol=1e-5)


def test_spectral_norm_leaves_the_weight_or_refuses_it():
    x = x_of(2, 6)
    for make in (
        lambda: nnx.SpectralNorm(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)),
        lambda: kl.SpectralNormalization(kl.Dense(4)),
    ):
        layer = make()
        keyword = {"training": True} if isinstance(layer, kl.Layer) else {}
        layer(x, **keyword)
        adapter = irk if keyword else irj
        adapter.idi_layer_(layer)
        name = type(layer).__name__
        for _ in range(3):
            result = np.asarray(layer(x, **keyword))
            np.testing.assert_allclose(result, x[:, :4], rtol=1e-5, err_msg=name)
        for change, options in ((adapter.idiz_layer_, {}), (adapter.idi_layer_, {"gain": 2.0})):
            with pytest.raises(errors.OptionError, match="singular value 1"):
                change(layer, **options)
        result = np.asarray(layer(x, **keyword))
        np.testing.assert_allclose(result, x[:, :4], rtol=1e-5, err_msg=f"{name}, refused")


def test_weight_norm_that_cannot_give_the_weight_refuses_it():
    for options in ({}, {"use_scale": False}):
        layer = nnx.WeightNorm(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0), **options)
        before = np.asarray(layer(x_of(2, 4)))
        with pytest.raises(errors.OptionError, match=r"(?s)WeightNorm.*epsilon=0.0"):
            irj.idiz_layer_(layer)
        after = np.asarray(layer(x_of(2, 4)))
        np.testing.assert_allclose(after, before, rtol=1e-5, err_msg=f"{options}")


@pytest.mark.parametrize("letters", ["OOO", "III", "BOO"])
def test_letters_without_inputs_or_outputs_are_told_what_is_missing(letters):
    with pytest.raises(errors.LayoutError, match=r"name inputs \(I\) and outputs \(O\).*write IOO"):
        irt.idi_(torch.empty(3, 4, 5), layout=letters)
