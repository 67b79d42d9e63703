"""Whole models in JAX: every expected role is written by hand, and real models are run."""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.flax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import idinit_ref as ir
import idinit_ref_jax as ij
from adapters import zoo_jax as zoo
from idinit_ref import errors
from idinit_ref.files import assembly, fills, sources
from idinit_ref.roles.decide import decide

D = zoo.D


def like(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


IDS, IMAGES, X = like(2, 8, dtype=jnp.int32), like(2, 8, 8, 3), like(2, 8, D)


def abstract(make):
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


def check(graph, table):
    """Every parameter is covered by exactly one row, and has the role that the row says."""
    roles = decide(graph).roles
    assert list(roles) == list(graph.parameters)
    for name, role in roles.items():
        rows = [pattern for pattern in table if fnmatchcase(name, pattern)]
        assert len(rows) == 1, (name, rows)
        assert (name, role) == (name, table[rows[0]])
    for pattern in table:
        assert any(fnmatchcase(name, pattern) for name in roles), pattern


# Roles, of Flax's modules -------------------------------------------------------------------

ENDS = {"tokens.embedding": "keep", "positions": "keep", "norm.*": "keep", "*.norm?.*": "keep"}
HEAD = {"head.kernel": "transit"}
PACKED = {
    "*.attention.qkv.kernel": "transit", "*.attention.qkv.bias": "bias",
    "*.attention.out.kernel": "zero",
}  # fmt: skip
SEPARATE = {
    "*.attention.query.kernel": "transit", "*.attention.key.kernel": "transit",
    "*.attention.value.kernel": "transit", "*.attention.out.kernel": "zero",
    "*.attention.*.bias": "bias",
}  # fmt: skip
GELU = {"*.mlp.up.kernel": "transit", "*.mlp.down.kernel": "zero", "*.mlp.*.bias": "bias"}
SWIGLU = {"*.mlp.gate_up.kernel": "transit", "*.mlp.down.kernel": "zero"}
GATED = {
    "*.mlp.gate.kernel": "transit", "*.mlp.up.kernel": "transit", "*.mlp.down.kernel": "zero",
}  # fmt: skip
EXPERTS = {
    "*.mlp.up": "transit", "*.mlp.bias": "bias", "*.mlp.down": "zero",
    "*.mlp.router.kernel": "transit",  # a softmax never vanishes
}  # fmt: skip

TRANSFORMERS = {
    "grouped queries": ({}, ENDS | HEAD | PACKED | GELU),
    "rotary": (
        {"attention": partial(zoo.Attention, kv=4, rotary=True)},
        ENDS | HEAD | PACKED | GELU,
    ),
    "flax attention": ({"attention": zoo.flax_attention}, ENDS | HEAD | SEPARATE | GELU),
    "flax grouped": (
        {"attention": partial(zoo.flax_attention, kv=2), "mlp": zoo.SwiGLU},
        ENDS | HEAD | SEPARATE | SWIGLU,
    ),
    "swiglu in two": ({"mlp": partial(zoo.SwiGLU, packed=False)}, ENDS | HEAD | PACKED | GATED),
    "tied": ({"tied": True}, ENDS | PACKED | GELU),
    "post-norm": ({"order": "post"}, ENDS | HEAD | PACKED | GELU),
    "parallel": ({"order": "parallel"}, ENDS | HEAD | PACKED | GELU),
    "layer scale": ({"order": "scaled"}, ENDS | HEAD | PACKED | GELU | {"*.scale": "keep"}),
    "experts": ({"mlp": zoo.Experts}, ENDS | HEAD | PACKED | EXPERTS),
    "remat": ({"wrap": zoo.remat}, ENDS | HEAD | PACKED | GELU),
    "jit": ({"wrap": zoo.jit}, ENDS | HEAD | PACKED | GELU),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_roles_of_a_transformer(name):
    options, table = TRANSFORMERS[name]
    table = dict(table)
    if name == "layer scale":  # the norms end in "scale" too, and have their row
        table = {k: v for k, v in table.items() if k != "*.scale"} | {"blocks.?.scale": "keep"}
    check(ij.trace(abstract(partial(zoo.Transformer, **options)), IDS), table)


NORMS = {"norm.*": "keep", "blocks.?.norm?.*": "keep"}
CLASSES = {"stem.kernel": "transit", "head.kernel": "transit", "head.bias": "bias"}
RESIDUAL = {
    "blocks.?.conv1.kernel": "transit", "blocks.?.conv2.kernel": "zero",
    "blocks.1.shortcut.kernel": "transit",
}  # fmt: skip
SQUEEZE = {
    "blocks.?.gate1.kernel": "transit", "blocks.?.gate2.kernel": "transit",
    "blocks.?.gate?.bias": "bias",
}  # fmt: skip
INVERTED = {
    "blocks.?.expand.kernel": "transit", "blocks.?.depthwise.kernel": "transit",
    "blocks.0.shrink.kernel": "zero", "blocks.1.shrink.kernel": "transit",
}  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "table"),
    [
        (zoo.residual_blocks, RESIDUAL),
        (partial(zoo.residual_blocks, squeeze=True), RESIDUAL | SQUEEZE),
        (zoo.inverted_blocks, INVERTED),
    ],
    ids=["resnet", "squeeze-excite", "mobilenet"],
)
def test_roles_of_a_convolutional_network(blocks, table):
    graph = ij.trace(abstract(partial(zoo.ResNet, blocks=blocks)), IMAGES)
    check(graph, NORMS | CLASSES | table)


def test_roles_of_an_encoder_and_a_decoder():
    table = {
        "shared.embedding": "keep", "relative.embedding": "keep", "norms.?.scale": "keep",
        "*coder.query.kernel": "transit", "*coder.key.kernel": "transit",
        "*coder.value.kernel": "transit", "*coder.out.kernel": "zero", "*coder.*.bias": "bias",
        "cross.[012].kernel": "transit", "cross.3.kernel": "zero",
        "mlp?.up.kernel": "transit", "mlp?.down.kernel": "zero", "mlp?.*.bias": "bias",
    }  # fmt: skip
    inputs = IDS, like(2, 6, dtype=jnp.int32)
    check(ij.trace(abstract(zoo.EncoderDecoder), inputs), table)


def test_roles_of_a_unet():
    table = {
        "down?.kernel": "transit", "middle.kernel": "zero", "up.kernel": "transit",
        "up.bias": "bias", "last.kernel": "transit",
    }  # fmt: skip
    check(ij.trace(abstract(zoo.UNet), IMAGES), table)


def test_roles_of_a_scan_in_flax():
    graph = ij.trace(abstract(zoo.Scanned), X)
    check(graph, {"layers.norm?.*": "keep"} | SEPARATE | GELU)
    assert graph.by_name["layers.mlp.up.kernel"].options == {"layout": "LIO"}


def test_roles_of_a_recurrent_network():
    graph = ij.trace(abstract(zoo.Recurrent), X)
    table = {"rnn.cell.dense_?.kernel": "transit", "head.kernel": "transit", "*.bias": "bias"}
    check(graph, table)
    packed = {"layout": "IO", "blocks": (D,) * 4}
    assert graph.by_name["rnn.cell.dense_h.kernel"].options == packed


def test_roles_of_an_mlp():
    check(
        ij.trace(abstract(zoo.MLP), like(2, 4)),
        {"first.kernel": "transit", "second.kernel": "transit", "*.bias": "bias"},
    )


# Roles, of Equinox, Linen and plain functions -----------------------------------------------


def test_roles_of_equinox():
    model = eqx.filter_eval_shape(zoo.EqxTransformer, jax.random.key(0))
    table = {
        "tokens.weight": "keep", "positions": "keep", "norm.*": "keep", "*.norm?.*": "keep",
        "*.attention.query_proj.weight": "transit", "*.attention.key_proj.weight": "transit",
        "*.attention.value_proj.weight": "transit", "*.attention.output_proj.weight": "zero",
        "*.up.weight": "transit", "*.down.weight": "zero", "head.weight": "transit",
        "*.attention.output_proj.bias": "bias", "*.up.bias": "bias", "*.down.bias": "bias",
    }  # fmt: skip
    check(ij.trace(model, like(8, dtype=jnp.int32)), table)
    check(ij.trace(model, IDS, lambda model, ids: jax.vmap(model)(ids)), table)


def test_roles_of_equinox_with_a_state():
    model, state = eqx.filter_eval_shape(eqx.nn.make_with_state(zoo.EqxResNet), jax.random.key(0))
    table = {
        "stem.weight": "transit", "*.norm?.*": "keep", "*.conv1.weight": "transit",
        "*.conv2.weight": "zero", "*.shortcut.weight": "transit", "head.weight": "transit",
        "head.bias": "bias",
    }  # fmt: skip
    check(ij.trace(model, (like(2, 3, 8, 8), state), zoo.batched), table)


def test_roles_of_equinox_with_a_shared_weight():
    model = eqx.filter_eval_shape(zoo.EqxTied, jax.random.key(0))
    (entry,) = decide(ij.trace(model, like(8, dtype=jnp.int32))).entries
    assert entry.role == "keep"
    assert entry.why == "embedding, and the head that is tied to it"


LINEN = {
    "*.LayerNorm_?.*": "keep", "*.Dense_0.kernel": "transit", "*.Dense_1.kernel": "zero",
    "*.Dense_?.bias": "bias", "*Attention_0.query.kernel": "transit",
    "*Attention_0.key.kernel": "transit", "*Attention_0.value.kernel": "transit",
    "*Attention_0.out.kernel": "zero", "*Attention_0.*.bias": "bias",
}  # fmt: skip


def test_roles_of_linen():
    model = zoo.LinenTransformer()
    variables = jax.eval_shape(model.init, jax.random.key(0), IDS)
    ends = {"*Embed_0.embedding": "keep", "*head.kernel": "transit"}
    check(ij.trace(variables, IDS, model.apply), LINEN | ends)
    alone = ij.trace(variables["params"], IDS, lambda p, ids: model.apply({"params": p}, ids))
    assert "head.kernel" in alone.parameters


def test_a_scan_over_layers_in_linen():
    model = zoo.LinenScanned()
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    graph = ij.trace(variables, X, model.apply)
    check(graph, LINEN)
    (out,) = (name for name in graph.parameters if name.endswith("out.kernel"))
    node = graph.by_name[out]
    assert node.shape == (3, D, D)
    assert node.options == {"layout": "LIO", "parted": ((3, 4, 4, D), "LIIO")}


def test_a_scan_over_stacked_layers():
    graph = ij.trace(zoo.scanned_params(), IDS, zoo.scanned)
    table = {
        "embed": "keep", "head": "transit", "layers.norm.*": "keep", "layers.qkv": "transit",
        "layers.out": "zero", "layers.mlp.up": "transit", "layers.mlp.down": "zero",
        "layers.mlp.b": "bias",
    }  # fmt: skip
    check(graph, table)
    assert graph.by_name["layers.qkv"].options == {"layout": "LIO", "blocks": (D, D, D)}
    assert graph.by_name["layers.out"].options == {"layout": "LIO"}
    why = {entry.name: entry.why for entry in decide(graph).entries}
    assert why["layers.out"] == (
        "last of the branch layers.out: product, which layers.out: product: add adds to "
        "embed: lookup"
    )


def test_a_bias_of_a_cell_that_starts_at_zero():
    cell = eqx.nn.GRUCell(D, D, key=jax.random.key(0))

    def apply(cell, x):
        h = jnp.zeros(D)
        for step in x:
            h = cell(step, h)
        return h

    roles = decide(ij.trace(cell, like(3, D), apply)).roles
    assert roles["bias"] == roles["bias_n"] == "bias"


def test_a_spectral_norm_with_a_state_among_the_inputs():
    keys = jax.random.split(jax.random.key(0))
    linear = eqx.nn.Linear(D, D, key=keys[0])
    make = eqx.nn.make_with_state(eqx.nn.SpectralNorm)
    norm, state = make(linear, weight_name="weight", key=keys[1])
    graph = ij.trace(norm, (like(D), state), lambda m, x, s: x + m(x, s)[0])
    assert decide(graph).roles == {"layer.weight": "keep", "layer.bias": "bias"}
    what = "divided by what is computed from the inputs"
    assert graph.by_name["layer.weight"].note == done(what)


# How weights are stored ---------------------------------------------------------------------

W = {"w": like(D, D)}


def stored(params, apply, inputs=X):
    """What the graph says of each parameter: role, options (stored how, added to what), note."""
    graph = ij.trace(params, inputs, apply)
    roles = decide(graph).roles
    nodes = {name: graph.by_name[name] for name in graph.parameters}
    return {name: (roles[name], dict(node.options), node.note) for name, node in nodes.items()}


def lstm(params, x):
    def step(carry, x):
        h, c = carry
        gates = x @ params["i"] + h @ params["h"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((2, D))
    return lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))[0][0]


def mixed(q, k, v):
    return jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v


def qkv_in_four_axes(params, x):
    return mixed(*jnp.einsum("btd,kdhe->kbhte", x, params["w"]))


def qkv_by_reshape(params, x):
    parts = (x @ params["w"]).reshape(2, 8, 3, 4, D // 4).transpose(2, 0, 3, 1, 4)
    return mixed(parts[0], parts[1], parts[2])


def attention_out(params, x):
    h = jnp.einsum("btd,dhe->bthe", x, params["w"])
    return x + jnp.einsum("bthe,hed->btd", h, params["o"])


DN = ("NHWC", "HWIO", "NHWC")


def conv(x, w, padding="SAME", **options):
    return lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=DN, **options)


def concatenated(params, x):
    weight = jnp.concatenate([params["q"], params["k"]], axis=1)
    return jnp.split(x @ weight + jnp.concatenate([params["b"], params["c"]]), [D], axis=-1)


def looped(params, x):
    for layer in range(3):
        x = x + x @ params["w"][layer]
    return x


def experts_of_one(params, x, sizes):
    return lax.ragged_dot(x, params["w"], sizes)


def per_image(params, x):
    return jax.vmap(lambda w, x: conv(x, w))(params["w"], x)


def done(what):
    return f"{what} before its use as a weight: a role is the result's"


STORED = {
    "lstm": (
        lstm, {"i": like(D, 4 * D), "h": like(D, 4 * D), "b": like(4 * D)}, X,
        {"i": ("transit", {"layout": "IO", "blocks": (D,) * 4}, ""),
         "h": ("transit", {"layout": "IO", "blocks": (D,) * 4}, ""),
         "b": ("bias",
               {"adds_to": ("h: product: add", "h: product (2): add", "h: product (3): add")}, "")},
    ),
    "qkv in four axes": (
        qkv_in_four_axes, {"w": like(3, D, 4, 4)}, X,
        {"w": ("transit", {"layout": "OI", "blocks": (D,) * 3,
                           "parted": ((3, D, 4, 4), "OIOO")}, "")},
    ),
    "qkv by reshape": (
        qkv_by_reshape, {"w": like(D, 3 * D)}, X,
        {"w": ("transit", {"layout": "IO", "blocks": (D,) * 3}, "")},
    ),
    "heads": (
        attention_out, {"w": like(D, 4, 4), "o": like(4, 4, D)}, X,
        {"w": ("transit", {"layout": "IO", "parted": ((D, 4, 4), "IOO")}, ""),
         "o": ("zero", {"layout": "IO", "parted": ((4, 4, D), "IIO")}, "")},
    ),
    "concatenated": (
        concatenated, {"q": like(D, D), "k": like(D, 8), "b": like(D), "c": like(8)}, X,
        {"q": ("transit", {"layout": "IO"}, ""), "k": ("transit", {"layout": "IO"}, ""),
         "b": ("bias", {"adds_to": ("q: product (2)",)}, ""),
         "c": ("bias", {"adds_to": ("k: product",)}, "")},
    ),
    "parts of a weight": (
        lambda p, x: jnp.tanh(x @ p["w"][:, :D]) * (x @ p["w"][:, D:]), {"w": like(D, 2 * D)}, X,
        {"w": ("transit", {"layout": "IO", "blocks": (D, D)}, "")},
    ),
    "glu of a convolution": (
        lambda p, x: jax.nn.glu(conv(x, p["w"])), {"w": like(3, 3, 3, 16)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "blocks": (8, 8), "tap": (1, 1)}, "")},
    ),
    "channels that are split": (
        lambda p, x: [jnp.tanh(part) for part in jnp.split(conv(x, p["w"]), 2, -1)],
        {"w": like(3, 3, 3, 16)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "blocks": (8, 8), "tap": (1, 1)}, "")},
    ),
    "dilated": (
        lambda p, x: conv(x, p["w"], [(4, 0), (2, 2)], rhs_dilation=(2, 2)),
        {"w": like(3, 3, 3, 4)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "tap": (2, 1)}, "")},
    ),
    "no tap is the identity": (
        lambda p, x: conv(x, p["w"], [(3, 0), (1, 1)]), {"w": like(3, 3, 3, 4)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "tap": (2, 1)}, "")},
    ),
    "transposed": (
        lambda p, x: lax.conv_transpose(x, p["w"], (2, 3), "SAME"), {"w": like(3, 4, 3, 4)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "tap": (2, 3), "stride": (-2, -3)}, "")},
    ),
    "transposed, its kernel too": (
        lambda p, x: lax.conv_transpose(x, p["w"], (2, 1), "VALID", transpose_kernel=True),
        {"w": like(3, 4, 4, 3)}, IMAGES,
        {"w": ("transit", {"layout": "HWOI", "tap": (0, 0), "stride": (2, 1)}, "")},
    ),
    "transposed, with one phase": (
        lambda p, x: lax.conv_transpose(x, p["w"], (2, 2), "VALID", (2, 2)),
        {"w": like(3, 3, 3, 4)}, IMAGES,
        {"w": ("transit", {"layout": "HWIO", "tap": (2, 2)}, "")},
    ),
    "a convolution for each": (
        per_image, {"w": like(3, 3, 3, 4, 8)}, like(3, 2, 8, 8, 4),
        {"w": ("transit", {"layout": "OHWI", "groups": 3, "tap": (1, 1),
                           "parted": ((3, 3, 3, 4, 8), "OHWIO")}, "")},
    ),
    "layers in a Python loop": (
        looped, {"w": like(3, D, D)}, X,
        {"w": ("zero", {"layout": "LIO", "parts": "L"}, "")},
    ),
    "layers by the counter of a loop": (
        lambda p, x: lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x) @ p["w"][i], x),
        {"w": like(3, D, D)}, X, {"w": ("zero", {"layout": "LIO", "parts": "L"}, "")},
    ),
    "a layer by an input": (
        lambda p, x, i: x @ p["w"][i], {"w": like(3, D, D)}, (X, like(dtype=jnp.int32)),
        {"w": ("transit", {"layout": "LIO"}, "")},
    ),
    "an expert for each": (
        lambda p, x, i: jnp.einsum("bd,bde->be", x, p["w"][i]), {"w": like(3, D, 8)},
        (like(2, D), like(2, dtype=jnp.int32)), {"w": ("transit", {"layout": "LIO"}, "")},
    ),
    "rows by an input": (
        lambda p, x, i: jnp.einsum("btd,bkd->btk", x @ p["w"], p["e"][i]),
        {**W, "e": like(11, D)}, (X, like(2, 5, dtype=jnp.int32)),
        {"w": ("transit", {"layout": "IO"}, ""), "e": ("keep", {}, "")},
    ),
    "a fixed slice": (
        lambda p, x: x @ lax.dynamic_slice(p["w"], (1, 0, 0), (1, D, D))[0],
        {"w": like(3, D, D)}, X, {"w": ("transit", {"layout": "LIO"}, "")},
    ),
    "a window of positions": (
        lambda p, x, i: (x + lax.dynamic_slice(p["e"], (i, 0), (8, D))) @ p["w"],
        {**W, "e": like(11, D)}, (X, like(dtype=jnp.int32)),
        {"w": ("transit", {"layout": "IO"}, ""), "e": ("keep", {}, "")},
    ),
    "heads of two weights": (
        lambda p, x: jnp.einsum("bthe,heo->btho", jnp.einsum("btd,dhe->bthe", x, p["w"]), p["v"]),
        {"w": like(D, 4, 4), "v": like(4, 4, 8)}, X,
        {"w": ("transit", {"layout": "IO", "parted": ((D, 4, 4), "IOO")}, ""),
         "v": ("transit", {"layout": "LIO"}, "")},
    ),
    "parts inside of heads": (
        lambda p, x: jnp.split((x @ p["w"]).reshape(2, 8, 4, 12), 3, -1), {"w": like(D, 48)}, X,
        {"w": ("transit", {"layout": "IOL", "parts": "L", "parted": ((D, 4, 3, 4), "IOLO")}, "")},
    ),
    "one part, and parts that overlap": (
        lambda p, x: [(x @ p["w"])[..., :9], (x @ p["v"])[..., 7:], (x @ p["v"])[..., :9]],
        {**W, "v": like(D, D)}, X,
        {"w": ("transit", {"layout": "IO"}, ""),
         "v": ("transit", {"layout": "IO"}, "")},
    ),
    "every second": (
        lambda p, x: (lambda y: y[..., ::2] * y[..., 1::2])(x @ p["w"]), W, X,
        {"w": ("transit", {"layout": "IOL", "parts": "L", "parted": ((D, 8, 2), "IOL")}, "")},
    ),
    "layers along another axis": (
        lambda p, x: lax.scan(lambda x, w: (x + x @ w, None), x, p["w"].swapaxes(0, 1))[0],
        {"w": like(D, 3, D)}, X, {"w": ("zero", {"layout": "ILO"}, "")},
    ),
    "a sum of weights in a loop": (
        lambda p, x: x @ lax.fori_loop(0, 3, lambda _, w: w + p["w"], jnp.zeros((D, D))), W, X,
        {"w": ("keep", {"layout": "IO", "magnitude": done("added to what is computed from it")},
               done("added to what is computed from it"))},
    ),
    "a reshape across rows": (
        lambda p, x: x @ p["w"].reshape(4, 24), {"w": like(6, D)}, like(2, 8, 4),
        {"w": ("keep", {}, "its axes cannot be followed to w: product")},
    ),
    "a batch of kernels": (
        lambda p, x: conv(x, p["w"], batch_group_count=2), {"w": like(3, 3, 3, 4)}, IMAGES,
        {"w": ("keep", {}, "no layout is known for the weight of w: convolution")},
    ),
    "a parameter returned": (
        lambda p, x: (x @ p["w"], p["t"]), {**W, "t": like(3)}, X,
        {"w": ("transit", {"layout": "IO"}, ""), "t": ("keep", {}, "")},
    ),
    "a kernel that is a signal": (
        lambda p, x: conv(p["w"], x), {"w": like(2, 8, 8, 4)}, like(3, 3, 4, 4),
        {"w": ("keep", {}, "")},
    ),
    "ragged experts": (
        experts_of_one, {"w": like(3, D, 8)}, (like(9, D), like(3, dtype=jnp.int32)),
        {"w": ("transit", {"layout": "LIO"}, "")},
    ),
    "a weight in parts": (
        lambda p, x: jnp.einsum("bthe,heo->btho", x, p["w"].reshape(4, 4, D)), {"w": like(D, D)},
        like(2, 8, 4, 4), {"w": ("transit", {"layout": "LIO", "parted": ((4, 4, D), "LIO")}, "")},
    ),
    "one-hot": (
        lambda p, ids: jax.nn.one_hot(ids, 11) @ p["e"] @ p["w"], {"e": like(11, D), **W}, IDS,
        {"e": ("keep", {}, ""), "w": ("transit", {"layout": "IO"}, "")},
    ),
    "rows by position": (
        lambda p, x: x @ p["w"] + p["t"][jnp.arange(8)], {**W, "t": like(32, D)}, X,
        {"w": ("transit", {"layout": "IO"}, ""), "t": ("keep", {}, "")},
    ),
    "position is no bias": (
        lambda p, x: x @ p["w"] + p["b"] + p["t"], {**W, "b": like(D), "t": like(8, D)}, X,
        {"w": ("transit", {"layout": "IO"}, ""), "b": ("bias", {"adds_to": ("w: product",)}, ""),
         "t": ("keep", {}, "")},
    ),
    "bfloat16 inside": (
        lambda p, x: x + (x.astype("bfloat16") @ p["w"].astype("bfloat16")).astype("float32"),
        W, X, {"w": ("zero", {"layout": "IO"}, "")},
    ),
    "low rank beside": (
        lambda p, x: x + x @ lax.stop_gradient(p["w"]) + (x @ p["a"]) @ p["b"],
        {**W, "a": like(D, 4), "b": like(4, D)}, X,
        {"w": ("keep", {"layout": "IO"},
               "frozen: every use of it is behind jax.lax.stop_gradient"),
         "a": ("transit", {"layout": "IO"}, ""), "b": ("zero", {"layout": "IO"}, "")},
    ),
    "low rank inside": (
        lambda p, x: x + x @ (p["w"] + p["a"] @ p["b"]),
        {**W, "a": like(D, 4), "b": like(4, D)}, X,
        {"w": ("zero", {"layout": "IO"}, ""), "a": ("transit", {"layout": "IO"}, ""),
         "b": ("zero", {"layout": "IO"}, "")},
    ),
    "weight norm": (
        lambda p, x: x @ (p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True) * p["g"]),
        {"v": like(D, 8), "g": like(1, 8)}, X,
        {"v": ("keep", {"layout": "IO"}, done("divided by what is computed from it")),
         "g": ("keep", {"layout": "IO", "magnitude": done("multiplied by v")},
               done("multiplied by v"))},
    ),
    "a sum in place": (
        lambda p, x: x.at[:].add(x @ p["w"]), W, X, {"w": ("zero", {"layout": "IO"}, "")},
    ),
    "a sum in place, permuted": (
        lambda p, x: x.at[np.array([1, 0])].add(x @ p["w"]), W, X,
        {"w": ("zero", {"layout": "IO"}, "")},  # without w it is x
    ),
    "weights in a stack": (
        lambda p, x: mixed(*jnp.einsum("btd,kde->kbte", x, jnp.stack([p["q"], p["k"], p["v"]]))),
        {"q": like(D, D), "k": like(D, D), "v": like(D, D)}, X,
        dict.fromkeys("qkv", ("transit", {"layout": "IO"}, "")),
    ),
    "a mask": (
        lambda p, x: x + x @ (p["w"] * p["m"]), {**W, "m": like(D, D)}, X,
        {"w": ("zero", {"layout": "IO", "magnitude": done("multiplied by m")},
               done("multiplied by m")),
         "m": ("keep", {"layout": "IO"}, done("multiplied by w"))},
    ),
    "a mask of bools": (
        lambda p, x: x @ (p["w"] * p["m"]), {**W, "m": like(D, D, dtype=jnp.bool_)}, X,
        {"w": ("keep", {"layout": "IO", "magnitude": done("multiplied by m")},
               done("multiplied by m")),
         "m": ("keep", {"layout": "IO"}, "bool: not a floating parameter")},
    ),
    "a choice by a mask of bools": (
        lambda p, x: x @ jnp.where(p["m"], p["w"], 0), {**W, "m": like(D, D, dtype=jnp.bool_)}, X,
        {"w": ("keep", {"layout": "IO", "magnitude": done("masked by m")}, done("masked by m")),
         "m": ("keep", {"layout": "IO"}, "bool: not a floating parameter")},
    ),
    "a constant mask": (
        lambda p, x: x + x @ (p["w"] * np.tril(np.ones((D, D), "f"))), W, X,
        {"w": ("zero", {"layout": "IO", "magnitude": done("multiplied by a constant array")},
               done("multiplied by a constant array"))},
    ),
    "a spectral norm": (
        lambda p, x: x + x @ (p["w"] / jnp.linalg.norm(p["w"], 2)), W, X,
        {"w": ("keep", {"layout": "IO"}, done("divided by what is computed from it"))},
    ),
    "a standardised weight": (
        lambda p, x: x + x @ (p["w"] - p["w"].mean(0)), W, X,
        {"w": ("zero",
               {"layout": "IO", "magnitude": done("subtracted with what is computed from it")},
               done("subtracted with what is computed from it"))},
    ),
    "a weight times a number": (
        lambda p, x: x + x @ (-p["w"] * 0.5 / jnp.sqrt(8.0)), W, X,
        {"w": ("zero", {"layout": "IO"}, "")},
    ),
    "a bias after a number": (
        lambda p, x: -(x @ p["w"]) * 0.5 / 3 + p["b"], {**W, "b": like(D)}, X,
        {"w": ("transit", {"layout": "IO"}, ""),
         "b": ("bias", {"adds_to": ("w: product: div",)}, "")},
    ),
    "a frozen backbone": (
        lambda p, x: lax.stop_gradient(jnp.tanh(x @ p["w"] + p["b"])) @ p["h"],
        {**W, "b": like(D), "h": like(D, 4)}, X,
        {"w": ("keep", {"layout": "IO"},
               "frozen: every use of it is behind jax.lax.stop_gradient"),
         "b": ("keep", {"adds_to": ("w: product",)},
               "frozen: every use of it is behind jax.lax.stop_gradient"),
         "h": ("transit", {"layout": "IO"}, "")},
    ),
    "quantised": (
        lambda p, x: x @ (p["q"].astype("float32") * p["s"]),
        {"q": like(D, 8, dtype=jnp.int8), "s": like(1, 8)}, X,
        {"q": ("keep", {"layout": "IO"}, "int8: not a floating parameter"),
         "s": ("keep", {"scales": ("q: product: product",)}, "")},
    ),
    "unused": (
        lambda p, x: x @ p["w"], {**W, "u": like(D, D)}, X,
        {"w": ("transit", {"layout": "IO"}, ""),
         "u": ("keep", {}, "not used by the computation of these example inputs")},
    ),
    "used twice alike": (
        lambda p, x: x + jnp.tanh(x @ p["w"]) @ p["w"], W, X,
        {"w": ("transit", {"layout": "IO"}, "")},  # of second order in w
    ),
    "used in two ways": (
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, W, X,
        {"w": ("keep", {}, "used in two ways that need different plans: by w: product "
                           "{'layout': 'IO'}, by w: product (2) {'layout': 'OI'}")},
    ),
    "vectors": (
        lambda p, x: (x @ p["w"], jnp.einsum("bthd,hd->bth", x.reshape(2, 8, 4, 4), p["v"])),
        {"w": like(D), "v": like(4, 4)}, X,
        {"w": ("keep", {}, ""), "v": ("keep", {}, "it has no axis of outputs in v: product")},
    ),
    "both branches of a cond": (
        lambda p, x: x + lax.cond(x.sum() > 0, lambda x: x @ p["a"], lambda x: x @ p["b"], x),
        {"a": like(D, D), "b": like(D, D)}, X,
        {"a": ("zero", {"layout": "IO"}, ""), "b": ("zero", {"layout": "IO"}, "")},
    ),
    "a while loop": (
        lambda p, x: lax.fori_loop(0, (x > 0).sum(), lambda _, x: x + jnp.tanh(x) @ p["w"], x),
        W, X, {"w": ("zero", {"layout": "IO"}, "")},
    ),
    "a sum that broadcasts": (
        lambda p, x: x + x.mean(1, keepdims=True) @ p["w"], W, X,
        {"w": ("transit", {"layout": "IO"}, "")},
    ),
    "a sum that was broadcast": (
        lambda p, x: x + jnp.broadcast_to(x.mean(1)[:, None] @ p["w"], x.shape), W, X,
        {"w": ("transit", {"layout": "IO"}, "")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_how_a_weight_is_stored(name):
    apply, params, inputs, expected = STORED[name]
    assert stored(params, apply, inputs) == expected


def test_how_the_zoo_stores_its_weights():
    def options(make, inputs, end):
        graph = ij.trace(abstract(make), inputs)
        return dict(graph.by_name[f"blocks.0.{end}"].options)

    grouped = partial(zoo.Transformer, mlp=zoo.SwiGLU)
    assert options(grouped, IDS, "attention.qkv.kernel") == {"layout": "IO", "blocks": (16, 8, 8)}
    assert options(grouped, IDS, "mlp.gate_up.kernel") == {"layout": "IO", "blocks": (24, 24)}
    flax = partial(zoo.Transformer, attention=partial(zoo.flax_attention, kv=2), mlp=zoo.Experts)
    query = {"layout": "IO", "parted": ((D, 4, 4), "IOO")}
    assert options(flax, IDS, "attention.query.kernel") == query
    assert options(flax, IDS, "mlp.up") == {"layout": "LIO", "blocks": (8, 8)}
    assert options(flax, IDS, "mlp.down") == {"layout": "LIO"}
    mobile = partial(zoo.ResNet, blocks=zoo.inverted_blocks)
    depthwise = {"layout": "HWIO", "groups": 32, "tap": (1, 1)}
    assert options(mobile, IMAGES, "depthwise.kernel") == depthwise


CONVOLUTIONS = {
    "same": (nnx.Conv, {"padding": "SAME"}),
    "valid": (nnx.Conv, {"padding": "VALID"}),
    "causal": (nnx.Conv, {"padding": "CAUSAL", "size": (3,)}),
    "circular back": (nnx.ConvTranspose, {"padding": "CIRCULAR", "size": (4, 5), "strides": 3}),
    "unequal": (nnx.ConvTranspose, {"padding": "SAME", "size": (4, 3), "strides": (2, 3)}),
    "strided same": (nnx.Conv, {"padding": "SAME", "strides": 2}),
    "far": (nnx.Conv, {"padding": [(9, 9), (0, 5)]}),
    "circular": (nnx.Conv, {"padding": "CIRCULAR"}),
    "reflect": (nnx.Conv, {"padding": "REFLECT", "size": (5, 3)}),
    "even": (nnx.Conv, {"padding": "SAME", "size": (4, 2)}),
    "dilated": (nnx.Conv, {"padding": [(4, 0), (2, 2)], "kernel_dilation": 2}),
    "grouped": (nnx.Conv, {"padding": 1, "feature_group_count": 2}),
    "transposed": (nnx.ConvTranspose, {"padding": "SAME"}),
    "flipped": (nnx.ConvTranspose, {"padding": "VALID", "transpose_kernel": True}),
    "strided": (nnx.ConvTranspose, {"padding": "SAME", "strides": 2, "transpose_kernel": True}),
    "dilated back": (nnx.ConvTranspose, {"padding": "VALID", "kernel_dilation": 2}),
    "even back": (nnx.ConvTranspose, {"padding": "SAME", "size": (4, 2), "transpose_kernel": True}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("taps", ["outward", "center", "spatial_major"])
def test_a_convolution_gets_the_plan_of_its_layer(name, taps):
    """The layer's own call knows its options; the trace sees only the computation."""
    kind, options = CONVOLUTIONS[name]
    size = options.get("size", (3, 3))
    options = {key: value for key, value in options.items() if key != "size"}
    layer = abstract(lambda rngs: kind(4, 6, size, rngs=rngs, **options))
    found = ij.plans(layer, like(2, *(8,) * len(size), 4), taps=taps)["kernel"]
    assert found == ij.layer_plans(layer, taps=taps)["kernel"]


# Models that run ----------------------------------------------------------------------------


@cache
def transformer(**options):
    return zoo.Transformer(nnx.Rngs(0), **options)


def values(model):
    """The parameters of any model by name, as NumPy arrays."""
    if isinstance(model, nnx.Module):
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(v)
            for path, v in leaves}  # fmt: skip


def same_bits(a, b):
    assert list(a) == list(b)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_init_writes_what_the_report_says():
    model = transformer(attention=zoo.flax_attention)
    before = values(model)
    new, report = ij.init(model, jnp.zeros((2, 8), jnp.int32))
    same_bits(values(model), before)
    after = values(new)
    assert list(report.roles) == list(after) == list(before)
    assert type(new) is zoo.Transformer
    assert new.blocks[0].dropout.deterministic is False
    for entry in report.entries:
        assert entry.shape == before[entry.name].shape
        assert after[entry.name].dtype == before[entry.name].dtype
        if entry.role == "keep":
            assert after[entry.name].tobytes() == before[entry.name].tobytes()
        if entry.role == "bias":
            assert not after[entry.name].any()
    assert new.tokens.embedding.get_value() is model.tokens.embedding.get_value()
    query = after["blocks.0.attention.query.kernel"]
    assert np.array_equal(query.reshape(D, D), np.eye(D))
    out = after["blocks.1.attention.out.kernel"].reshape(D, D).T
    eps = np.float32(1e-6)
    assert np.array_equal(out, eps * (np.eye(D) - np.roll(np.eye(D), 1, axis=1)))
    up = after["blocks.1.mlp.up.kernel"].T
    assert np.array_equal(up, np.tile(np.eye(D), (4, 1)))
    assert report.plans == ij.plans(model, IDS)


class SeveralAxes(nnx.Module):
    """Layers whose kernels have several axes of inputs or outputs, and some packed weights."""

    def __init__(self, rngs):
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up = nnx.LinearGeneral(8, (3, 4), rngs=rngs)
        self.down = nnx.LinearGeneral((3, 4), 8, axis=(-2, -1), rngs=rngs)
        self.heads = nnx.Einsum("bti,ioh->btoh", (8, 2, 5), (2, 5), rngs=rngs)
        self.back = nnx.Einsum("btoh,ohi->bti", (2, 5, 8), (8,), rngs=rngs)
        self.stack = nnx.Param(jnp.ones((3, 64)))
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.conv = nnx.Conv(8, 4, (3,), feature_group_count=2, rngs=rngs)

    def __call__(self, x):
        x = x + self.attn(self.norm(x))
        x = x + self.down(nnx.relu(self.up(x)))
        x = x + self.back(nnx.relu(self.heads(x)))
        x = x + jnp.einsum("bti,eio->btoe", x, self.stack[...].reshape(3, 8, 8)).sum(-1)
        return self.conv(x)


def exported(report, path, fills=()):
    """What Flax's own loader reads of a file that was made of the report alone."""
    manifest = path / "m.json"
    manifest.write_text(json.dumps(report.to_dict()))
    found = assembly.assemble(sources.read(manifest=manifest).tensors, fills=fills)
    ir.save(path / "m.safetensors", found.values)
    return safetensors.flax.load_file(path / "m.safetensors")


@pytest.mark.parametrize("overrides", [None, {"attn.key.kernel": {"layout": "OI"}}])
@pytest.mark.cases(1)
def test_what_a_report_exports_loads_and_is_what_init_makes(overrides, tmp_path):
    x = jnp.linspace(-1, 1, 48).reshape(2, 3, 8)
    new, report = ij.init(SeveralAxes(nnx.Rngs(0)), x, gain=0.7, overrides=overrides)
    axes = {
        name: each["axes"] for name, each in report.to_dict()["tensors"].items() if "axes" in each
    }
    turned = "OII" if overrides else "IOO"
    assert axes == {
        "attn.query.kernel": "IOO", "attn.key.kernel": turned, "attn.value.kernel": "IOO",
        "attn.out.kernel": "IIO", "up.kernel": "IOO", "down.kernel": "IIO",
        "heads.kernel": "IOO", "back.kernel": "IIO", "stack": "OIO",
    }  # fmt: skip
    entries = {entry.name: entry for entry in report.entries}
    assert (entries["attn.out.kernel"].shape, entries["attn.out.kernel"].parted) == (
        (2, 4, 8),
        None,
    )
    assert (entries["stack"].shape, entries["stack"].parted) == ((3, 64), (3, 8, 8))
    held = exported(report, tmp_path, [fills.parse_fill("norm.*=identity")])
    expected = values(new)
    same_bits({name: np.asarray(held[name]) for name in expected}, expected)
    other = SeveralAxes(nnx.Rngs(1))
    state = nnx.state(other)
    for path, variable in nnx.to_flat_state(state):
        variable.set_value(held[".".join(map(str, path))])
    nnx.update(other, state)
    assert np.array_equal(other(x), new(x))


def test_a_stored_batch_axis_travels(tmp_path):
    x = jnp.ones((3, 2, 4))
    layer = nnx.LinearGeneral(4, (2, 6), batch_axis={0: 3}, rngs=nnx.Rngs(0))
    new, report = ij.init(layer, x)
    held = exported(report, tmp_path)
    same_bits({name: np.asarray(held[name]) for name in values(new)}, values(new))


def test_init_twice_gives_the_same_bits():
    model = transformer(attention=zoo.flax_attention)
    one, _ = ij.init(model, IDS)
    two, _ = ij.init(one, (IDS,), lambda model, ids: model(ids))
    same_bits(values(one), values(two))


def test_init_of_equinox():
    model = eqx_model()
    before = values(model)
    new, report = ij.init(model, like(8, dtype=jnp.int32))
    same_bits(values(model), before)
    assert jax.tree.structure(new) == jax.tree.structure(model)
    after = values(new)
    assert list(report.roles) == list(after)
    assert np.array_equal(after["blocks.0.attention.query_proj.weight"], np.eye(D))
    assert np.array_equal(after["blocks.0.up.weight"], np.tile(np.eye(D), (4, 1)))
    assert np.array_equal(
        np.abs(after["blocks.1.down.weight"]).sum(1), np.full(D, np.float32(2e-6))
    )
    assert new.blocks[0].norm1.weight is model.blocks[0].norm1.weight
    assert new.blocks[0].dropout.inference is False


@cache
def eqx_model():
    return zoo.EqxTransformer(jax.random.key(0))


def test_init_of_plain_parameters_keeps_dtype_kind_and_place():
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    place = NamedSharding(mesh, PartitionSpec("x"))
    params = {
        "bf16": jnp.asarray(np.ones((D, 2, 8), ml_dtypes.bfloat16)),
        "numpy": np.ones((2, 8, D)),
        "sharded": jax.device_put(jnp.ones((D, D)), place),
        "b": jnp.arange(16, dtype=jnp.bfloat16).reshape(2, 8),
        "list": [np.arange(D).astype(np.float16)],
    }

    def apply(params, x):
        h = jnp.einsum("btd,dhe->bthe", x, params["bf16"]) + params["b"]
        x = x + jnp.einsum("bthe,hed->btd", h, params["numpy"])
        return x @ params["sharded"] + params["list"][0]

    new, report = ij.init(params, X, apply)
    roles = {"b": "bias", "bf16": "transit", "list.0": "bias", "numpy": "zero"}
    assert report.roles == roles | {"sharded": "transit"}
    assert new["sharded"].sharding == place
    assert isinstance(new["numpy"], np.ndarray)
    assert new["numpy"].dtype == np.float64
    assert new["bf16"].dtype == new["b"].dtype == jnp.bfloat16
    assert np.array_equal(np.asarray(new["bf16"], np.float32).reshape(D, D), np.eye(D))
    wanted = 1e-6 * (np.eye(D) - np.roll(np.eye(D), 1, axis=1))
    assert np.array_equal(new["numpy"].reshape(D, D).T, wanted)
    assert np.array_equal(new["sharded"], np.eye(D))
    assert not new["list"][0].any()
    assert isinstance(new["list"][0], np.ndarray)


def test_init_of_a_weight_in_parts():
    """Heads that were rows of one matrix are each a matrix of their own there."""
    apply = lambda p, x: jnp.einsum("bthe,heo->btho", x, p["w"].reshape(4, 4, D))  # noqa: E731
    new, _ = ij.init({"w": jnp.ones((D, D))}, like(2, 8, 4, 4), apply)
    wide = np.vstack([np.tile(np.eye(4), (4, 1)).T] * 4)
    assert np.array_equal(new["w"], wide)


def test_init_of_packed_and_stacked_weights():
    new, _ = ij.init({"w": jnp.ones((3, D, 4, 4))}, X, qkv_in_four_axes)
    for part in np.asarray(new["w"]):
        assert np.array_equal(part.reshape(D, D), np.eye(D))
    new, _ = ij.init({"w": jnp.ones((3, 3, 3, 4, 8))}, like(3, 2, 8, 8, 4), per_image)
    one, _ = ij.init({"w": jnp.ones((3, 3, 4, 8))}, like(2, 8, 8, 4), lambda p, x: conv(x, p["w"]))
    for part in new["w"]:
        assert np.array_equal(part, one["w"])


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rngs: nnx.LinearGeneral((4, 4), (3, 6), axis=(-2, -1), rngs=rngs), (2, 4, 4)),
        (lambda rngs: nnx.LinearGeneral(4, 6, batch_axis={0: 3}, rngs=rngs), (3, 2, 4)),
        (lambda rngs: nnx.Einsum("nta,hab->nthb", (8, 12, 4), rngs=rngs), (2, 5, 12)),
        (lambda rngs: nnx.Einsum("nthb,hab->nta", (4, 12, 5), rngs=rngs), (2, 5, 4, 5)),
        (lambda rngs: nnx.Einsum("nta,bah->nthb", (6, 12, 4), rngs=rngs), (2, 5, 12)),
    ],
    ids=["joined", "batch", "heads first", "heads to inputs", "turned"],
)
def test_a_dense_layer_gets_the_weights_of_its_own_call(make, shape):
    layer = make(nnx.Rngs(0))
    new, _ = ij.init(layer, like(*shape))
    ij.idi_layer_(layer)
    same_bits(values(new), values(layer))


def test_a_model_beyond_all_memory():
    vast = {"up": like(10**6, 4 * 10**6), "b": like(4 * 10**6), "down": like(4 * 10**6, 10**6)}
    found = ij.plans(vast | {"head": like(10**6, 4)}, like(2, 10**6), two_layers)
    assert found["down"].nnz == 2 * 10**6


def test_init_under_jit():
    params = {"w": jnp.ones((D, 4, 4)), "o": jnp.ones((4, 4, D)), "b": jnp.arange(1.0 * D)}
    apply = lambda p, x: attention_out(p, x @ p["o"].reshape(D, D) + p["b"])  # noqa: E731
    inside = jax.jit(lambda params: ij.init(params, X, apply)[0])(params)
    outside, _ = ij.init(params, X, apply)
    same_bits(values(inside), values(outside))


def test_a_depthwise_convolution_passes_its_input():
    layer = nnx.Conv(4, 4, (3, 2), feature_group_count=4, padding="SAME", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (1, 5, 5, 4)), jnp.float32)
    new, _ = ij.init(layer, x)
    assert np.array_equal(new(x), x)


# At initialisation --------------------------------------------------------------------------


def measured(model, inputs, run):
    """The states before and after every block, and the gradients by name, as a function."""
    treedef, params, rest = (
        nnx.split(model, nnx.Param, ...)
        if isinstance(model, nnx.Module)
        else (None, *eqx.partition(model, eqx.is_inexact_array))
    )
    merge = (lambda p: nnx.merge(treedef, p, rest)) if treedef else lambda p: eqx.combine(p, rest)

    def loss(params):
        out = run(merge(params), inputs)
        weight = jnp.arange(1.0, out.size + 1).reshape(out.shape)
        return -(jax.nn.log_softmax(out) * weight).sum() / out.size

    step = jax.jit(
        lambda params: (merge(params).stream(inputs), jax.grad(loss)(params)),
        compiler_options={"xla_backend_optimization_level": 0},  # compiled to be run twice
    )

    def by_name(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        if treedef:
            return {".".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(tree)}
        return {jax.tree_util.keystr(p, simple=True, separator="."): v for p, v in leaves}

    def zeroed(params, names):
        if treedef:
            flat = nnx.to_flat_state(params)
            new = [(p, v.replace(v.get_value() * (".".join(map(str, p)) not in names)))
                   for p, v in flat]  # fmt: skip
            return nnx.from_flat_state(new)
        return jax.tree_util.tree_map_with_path(
            lambda p, v: v * (jax.tree_util.keystr(p, simple=True, separator=".") not in names),
            params,
        )

    def at(names=()):
        states, gradients = step(zeroed(params, names))
        return states, {name: np.asarray(v) for name, v in by_name(gradients).items()}

    return at


@cache
def run_of(kind):
    """A new model of a kind, its report, and what `measured` makes of it."""
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 8)))
    if kind == "equinox":
        new, report = ij.init(eqx_model(), ids[0])
        new = eqx.nn.inference_mode(new)
        return report, measured(new, ids[0], lambda model, ids: model(ids))
    if kind == "resnet":
        make, inputs = partial(zoo.ResNet, blocks=zoo.residual_blocks), np.ones((2, 8, 8, 3))
        inputs = jnp.asarray(inputs * np.random.default_rng(2).normal(size=inputs.shape), "float32")
        model = make(nnx.Rngs(0))
    else:
        model, inputs = transformer(mlp=zoo.SwiGLU if kind == "swiglu" else zoo.Gelu), ids
    new, report = ij.init(model, inputs)
    new.eval()
    return report, measured(new, inputs, lambda model, x: model(x))


KINDS = ["equinox"]
KINDS += [pytest.param(kind, marks=pytest.mark.nightly) for kind in ("gelu", "swiglu", "resnet")]
# A tall IDI before a wide IDIZ: both entries of a row of the latter meet copies of one input, so
# what feeds the branch gets a gradient of exactly 0 (docs/mathematics.md, "What does not hold").
NO_GRADIENT = {
    "gelu": {f"blocks.{block}.norm2.{what}" for block in (0, 1) for what in ("scale", "bias")},
    "equinox": {f"blocks.{block}.norm2.{what}" for block in (0, 1) for what in ("weight", "bias")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_hardly_move_their_input(kind):
    _, at = run_of(kind)
    states, _ = at()
    assert len(states) in (3, 4)
    for before, after in pairwise(states):
        if before.shape == after.shape:
            moved = float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before))
            assert 0 < moved < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind):
    report, at = run_of(kind)
    _, gradients = at()
    assert list(gradients) == list(report.roles)
    missing = {name for name, gradient in gradients.items() if not gradient.any()}
    assert missing == NO_GRADIENT.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_exact_zeros_leave_the_branch_without_a_gradient(kind):
    report, at = run_of(kind)
    zero = {name for name, role in report.roles.items() if role == "zero"}
    _, gradients = at(tuple(zero))
    inside = {name for name in gradients if name.startswith("blocks.")} - zero
    if kind == "resnet":  # the projected stream, and the norms after the branch's last weight
        inside = {name for name in inside if ".conv1" in name or ".norm1" in name}
    last = {name.rpartition(".")[0] + ".bias" for name in zero}
    dead = {name for name in inside - last if not gradients[name].any()}
    assert dead == inside - last
    assert all(gradients[name].any() for name in zero)


# Options ------------------------------------------------------------------------------------

PARAMS = {"up": like(D, 2 * D), "b": like(2 * D), "down": like(2 * D, D), "head": like(D, 4)}


def two_layers(params, x):
    x = x + jax.nn.relu(x @ params["up"] + params["b"]) @ params["down"]
    return x @ params["head"]


def test_options_reach_the_plans():
    found = ij.plans(PARAMS, X, two_layers, gain=0.5, eps=1e-3, head="zero", wide="fold_rms")
    assert (found["up"].gain, found["up"].wide) == (0.5, "fold_rms")
    assert (found["down"].role, found["down"].eps) == ("zero", 1e-3)
    assert (found["head"].role, found["head"].eps) == ("zero", 1e-3)
    assert set(ij.plans(PARAMS, X, two_layers, head="keep")) == {"up", "down"}


def test_overrides():
    found = ij.plans(
        PARAMS, X, two_layers,
        overrides={"*": {"gain": 2}, "down": "transit", "b": {"role": "bias"}, "head": "keep"},
    )  # fmt: skip
    assert {name: plan.gain for name, plan in found.items()} == {"down": 2.0, "up": 2.0}


def test_an_embedding_on_request():
    params = {"e": like(11, D), "o": like(3, 4, D)}
    apply = lambda p, ids: p["e"][ids] @ p["e"].T  # noqa: E731
    assert ij.plans(params, IDS, apply) == {}
    found = ij.plans(params, IDS, apply, embeddings="transit")["e"]
    assert (found.layout, found.role) == ("OI", "transit")


def test_inputs_by_name_and_static_ones():
    def apply(params, x, *, scale, mode):
        assert mode == "loud"
        return x @ params["w"] * scale

    graph = ij.trace(W, {"x": X, "scale": 2.0, "mode": "loud"}, apply)
    assert [node.name for node in graph.nodes][:2] == ["w", "inputs.x"]


@dataclass
class Output:
    """Not a pytree, as some models return."""

    logits: jax.Array
    name: str = "output"


def test_a_model_that_returns_a_dataclass():
    graph = ij.trace(W, X, lambda params, x: {"out": Output(x @ params["w"])})
    assert graph.outputs == ("w: product",)
    assert decide(graph).entries[0].why == "the head"


def test_one_array_for_a_model():
    graph = ij.trace(like(D, D), X, lambda w, x: x @ w)
    assert graph.parameters == ("model",)


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"example_inputs": like(2, 8, D + 1)}, errors.GraphError, r"example_inputs = \[\('0'"),
        ({"model": {}}, errors.GraphError, "example_inputs"),
        ({"overrides": {"dwn": "keep"}}, errors.OptionError, "the nearest are down"),
        ({"overrides": {"i": "transit"}}, errors.DTypeError, "parameter 'i'.*int32"),
        ({"overrides": {"i": "bias"}}, errors.DTypeError, "parameter 'i'.*int32"),
        ({"eps": 1e-50}, errors.RoundingError, "parameter 'down'.*rounds to 0"),
        ({"head": "none"}, errors.OptionError, "head"),
        ({"apply_fn": X}, errors.OptionTypeError, "apply_fn"),
        ({"apply_fn": None}, errors.OptionTypeError, "apply_fn"),
    ],
)
def test_bad_input_leaves_the_model_untouched(change, error, text):
    params = {name: jnp.ones(shape.shape) for name, shape in PARAMS.items()}
    params["i"] = jnp.ones((2, 2), jnp.int32)
    before = {name: np.asarray(value).copy() for name, value in params.items()}
    given = {"model": params, "apply_fn": two_layers, "example_inputs": X} | change
    with pytest.raises(error, match=text):
        ij.init(given.pop("model"), given.pop("example_inputs"), given.pop("apply_fn"), **given)
    same_bits(before, {name: np.asarray(value) for name, value in params.items()})


def test_a_model_without_parameters():
    with pytest.raises(errors.GraphError, match="parameters"):
        ij.init({}, X, lambda params, x: x)


def test_an_abstract_model_is_not_made():
    with pytest.raises(errors.GraphError, match="plans"):
        ij.init(PARAMS, X, two_layers)


def test_a_linen_module_is_not_its_parameters():
    with pytest.raises(errors.OptionTypeError, match=r"apply_fn=module\.apply"):
        ij.trace(zoo.LinenTransformer(), IDS)


def test_python_control_flow_is_named():
    with pytest.raises(errors.GraphError, match=r"boolean conversion.*jax\.lax\.cond"):
        ij.trace(W, X, lambda p, x: x if x.sum() > 0 else x @ p["w"])


def test_a_vector_may_go_where_nothing_can_look():
    """It is no matrix, whatever is done with it."""

    def apply(params, x):
        return jax.pure_callback(lambda x, g: x * g, X, x @ params["w"], params["g"])

    assert decide(ij.trace({**W, "g": like(D)}, X, apply)).roles == {"g": "keep", "w": "transit"}


@pytest.mark.parametrize("inputs", [[X, X], {"x": X}], ids=["list", "dict"])
def test_one_list_or_dict_belongs_in_a_tuple(inputs):
    with pytest.raises(errors.GraphError, match=r"\(\[a, b\],\), \(\{'x': x\},\)"):
        ij.trace(W, inputs, lambda p, given: jax.tree.leaves(given)[0] @ p["w"])
    assert ij.trace(W, (inputs,), lambda p, given: jax.tree.leaves(given)[0] @ p["w"]).weights


def test_a_model_that_returns_nothing():
    with pytest.raises(errors.GraphError, match="should return an array"):
        ij.trace(W, X, lambda params, x: None)


def test_two_parameters_of_one_name():
    with pytest.raises(errors.GraphError, match="a name of its own"):
        ij.trace({"a.b": like(2), "a": {"b": like(2)}}, X, lambda params, x: x)


def test_an_opaque_operation_is_named():
    def apply(params, x):
        return jax.pure_callback(lambda x, w: x @ w, X, x, params["w"])

    with pytest.raises(errors.GraphError, match="'pure_callback', but it takes the parameters w"):
        ij.trace(W, X, apply)
