"""Whole Keras models: every role by hand, then what the models do. Runs on any backend of Keras.

The last test runs this file on JAX as well.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import by_hand

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

sys.path.insert(0, str(Path(__file__).parent))

import keras
import zoo_tensorflow as zoo
from keras import layers as kl
from keras import ops

import idinit_ref as ir
from idinit_ref import errors
from idinit_ref.files import assembly, sources
from idinit_ref.files.storage import as_tensor
from idinit_ref_tensorflow import audit, init_, plans, trace

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.filterwarnings(  # Keras (3.15) converts its variables with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

NORM = {"*gamma": "keep", "*beta": "keep"}
FORMER = {
    "*/embed/embeddings": "keep",
    "*/n?/gamma": "keep",
    "*/n?/beta": "keep",
    "*/out/kernel": "zero",
    "*/up/kernel": "transit",
    "*/down/kernel": "zero",
    "*/head/kernel": "transit",
    "*/bias": "bias",
}
# Patterns of names and roles; every parameter fits exactly one.
ROLES = {
    "mlp": {"*/kernel": "transit", "*/bias": "bias"},
    "transformer": {
        "?_attention/query/kernel": "transit",
        "?_attention/key/kernel": "transit",
        "?_attention/value/kernel": "transit",
        "?_attention/attention_output/kernel": "zero",
        "?_up/kernel": "transit",
        "?_down/kernel": "zero",
        "head/kernel": "transit",
        "*/bias": "bias",
        **NORM,
    },
    "grouped_query": {
        "attention/query/kernel": "transit",
        "attention/key/kernel": "transit",
        "attention/value/kernel": "transit",
        "attention/attention_output/kernel": "zero",
        "mlp/kernel": "zero",
        "norm?/scale": "keep",
        "*/bias": "bias",
    },
    "post_norm": {
        "attention/query/kernel": "transit",
        "attention/key/kernel": "transit",
        "attention/value/kernel": "transit",
        "attention/attention_output/kernel": "zero",
        "up/kernel": "transit",
        "down/kernel": "zero",
        "*/bias": "bias",
        **NORM,
    },
    "subclassed": {**FORMER, "*/[qkv]/kernel": "transit"},
    "packed": {**FORMER, "*/qkv/kernel": "transit"},
    "packed_by_reshape": {"qkv/kernel": "transit", "out/kernel": "zero", "*/bias": "bias"},
    "resnet": {
        "*/conv1/kernel": "transit",
        "*/conv2/kernel": "zero",
        "*/project/kernel": "transit",
        "*/stem/kernel": "transit",
        "*/head/kernel": "transit",
        "*/bias": "bias",
        **NORM,
    },
    "swiglu": {
        "gate/kernel": "transit",
        "up/kernel": "transit",
        "down/kernel": "zero",
        "norm/scale": "keep",
        "*/bias": "bias",
    },
    "swiglu_packed": {
        "gate_up/kernel": "transit",
        "down/kernel": "zero",
        "norm/scale": "keep",
        "*/bias": "bias",
    },
    # The gate multiplies the branch before its last convolution ...
    "squeeze_excite": {
        "conv?/kernel": "transit",
        "reduce/kernel": "transit",
        "expand/kernel": "transit",
        "project/kernel": "zero",
        "*/bias": "bias",
    },
    # ... or at its very end: it never vanishes, so the convolution alone ends the branch.
    "gate_last": {
        "conv1/kernel": "zero",
        "reduce/kernel": "transit",
        "expand/kernel": "transit",
        "*/bias": "bias",
    },
    "shared": {"both/kernel": "zero", "head/kernel": "transit", "*/bias": "bias"},
    "tied": {
        "*/embeddings": "keep",
        "*/fc/kernel": "transit",
        "*/proj/kernel": "zero",
        "*/bias": "bias",
    },
    "unet": {"*/kernel": "transit", "*/bias": "bias"},
    "parallel": {
        "attention/query/kernel": "transit",
        "attention/key/kernel": "transit",
        "attention/value/kernel": "transit",
        "attention/attention_output/kernel": "zero",
        "up/kernel": "transit",
        "down/kernel": "zero",
        "*/bias": "bias",
        **NORM,
    },
    "depthwise": {
        "deep/kernel": "transit",
        "apart/depthwise_kernel": "transit",
        "apart/pointwise_kernel": "transit",
        "grouped/kernel": "zero",
        "*/bias": "bias",
    },
    "padded": {
        "front/kernel": "transit",
        "causal/kernel": "transit",
        "dilated/kernel": "zero",
        "both/kernel": "keep",
        "*/bias": "bias",
    },
    # A GRU adds what its recurrent kernel makes of its state to a part of that state.
    "recurrent": {
        "lstm/lstm_cell/kernel": "transit",
        "lstm/lstm_cell/recurrent_kernel": "transit",
        "both/*/gru_cell/kernel": "transit",
        "both/*/gru_cell/recurrent_kernel": "transit",  # z h + (1 - z) n: a gate is on the skip
        "out/kernel": "zero",
        "head/kernel": "transit",
        "*/bias": "bias",
    },
    "mixing": {
        "mixing/up": "transit",
        "mixing/down": "zero",
        "mixing/mix": "zero",
        "mixing/bias": "bias",
        "mixing/place": "keep",
        "mixing/scale": "keep",
    },
    "ResNet50": {
        "conv1_conv/kernel": "transit",
        "conv?_block?_[012]_conv/kernel": "transit",
        "conv?_block?_3_conv/kernel": "zero",
        "predictions/kernel": "transit",
        "*/bias": "bias",
        **NORM,
    },
    # Blocks without an add (a new size, or the first) have no last weight.
    "MobileNetV2": {
        "Conv1/kernel": "transit",
        "*_expand/kernel": "transit",
        "*_depthwise/kernel": "transit",
        "expanded_conv_project/kernel": "transit",
        **dict.fromkeys([f"block_{k}_project/kernel" for k in (1, 3, 6, 10, 13, 16)], "transit"),
        **dict.fromkeys(
            [f"block_{k}_project/kernel" for k in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)], "zero"
        ),
        "Conv_1/kernel": "transit",
        "predictions/kernel": "transit",
        "*/bias": "bias",
        **NORM,
    },
    "EfficientNetB0": {
        "stem_conv/kernel": "transit",
        "*_expand_conv/kernel": "transit",
        "*_dwconv/kernel": "transit",
        "*_se_reduce/kernel": "transit",
        "*_se_expand/kernel": "transit",
        "block?a_project_conv/kernel": "transit",
        "block?[b-d]_project_conv/kernel": "zero",
        "top_conv/kernel": "transit",
        "predictions/kernel": "transit",
        "*/bias": "bias",
        **NORM,
    },
    "ConvNeXtTiny": {
        "*_stem_conv/kernel": "transit",
        "*_downsampling_conv_?/kernel": "transit",
        "*_depthwise_conv/kernel": "transit",
        "*_pointwise_conv_1/kernel": "transit",
        "*_pointwise_conv_2/kernel": "zero",
        "*_head_dense/kernel": "transit",
        "*_layer_scale/variable*": "keep",
        "*/bias": "bias",
        **NORM,
    },
}
# What is stored other than as a plain Keras matrix.
STORED = {
    "transformer": {"0_attention/query/kernel": {"layout": "IO", "shape": (16, 16)}},
    "grouped_query": {"attention/key/kernel": {"layout": "IO", "shape": (16, 8)}},
    "packed": {"transformer/block_0/qkv/kernel": {"blocks": (16, 8, 8)}},
    "packed_by_reshape": {"qkv/kernel": {"blocks": (16, 16, 16)}},
    "swiglu_packed": {"gate_up/kernel": {"blocks": (24, 24)}},
    "unet": {"down1/kernel": {"layout": "HWIO"}, "up/kernel": {"layout": "HWOI", "stride": (2, 2)}},
    "depthwise": {
        # Its left padding is that of the layer before: 1 row and 2 columns.
        "deep/kernel": {"groups": 6, "transposed": True, "tap": (1, 2)},
        "apart/depthwise_kernel": {"groups": 6, "tap": (1, 1)},
        "apart/pointwise_kernel": {"groups": 1, "tap": (0, 0)},
        "grouped/kernel": {"groups": 2, "tap": (1, 1)},
    },
    "recurrent": {
        "lstm/lstm_cell/kernel": {"blocks": (16,) * 4},
        "lstm/lstm_cell/recurrent_kernel": {"blocks": (16,) * 4},
        "both/forward_gru/gru_cell/recurrent_kernel": {"blocks": (8,) * 3},
    },
    "mixing": {
        "mixing/up": {"layout": "LIO", "shape": (3, 16, 8)},  # as the next weight shows
        "mixing/down": {"layout": "LIO", "shape": (3, 8, 16)},
        "mixing/mix": {"layout": "OI"},
    },
    "EfficientNetB0": {
        "stem_conv/kernel": {"tap": (0, 0)},  # "valid", and padded behind alone, before it
        "block1a_dwconv/kernel": {"groups": 32, "tap": (1, 1)},
    },
    "ConvNeXtTiny": {
        "ConvNeXtTiny_stage_0_block_0_depthwise_conv/kernel": {"groups": 96, "tap": (3, 3)}
    },
}


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def numpy(array):
    return ops.convert_to_numpy(array)


@lru_cache
def traced(name):
    if name in zoo.APPLICATIONS:
        model, example = zoo.application(name), None
    else:
        make, example = zoo.MODELS[name]
        model = make()
    return model, example, trace(model, example)


def arrays(model):
    return [numpy(v) for v in model.variables]


def same(before, model):
    after = arrays(model)
    return len(before) == len(after) and all(map(np.array_equal, before, after))


@pytest.fixture(autouse=True)
def _cheap_layers(monkeypatch):
    """Spare JAX a compilation for the random values of each shape."""

    def values(self, shape, dtype=None, **_):
        return (0.1 * normal(*shape)).astype(keras.backend.standardize_dtype(dtype))

    for name in ("VarianceScaling", "Orthogonal", "RandomUniform", "TruncatedNormal"):
        monkeypatch.setattr(getattr(keras.initializers, name), "__call__", values)


# Roles and plans -------------------------------------------------------------------------------


def with_large(names):
    """Cases, of which Keras' own applications are nightly."""
    return [
        pytest.param(name, marks=pytest.mark.nightly if name in zoo.APPLICATIONS else [])
        for name in names
    ]


@pytest.mark.parametrize("name", with_large(ROLES))
def test_every_role(name):
    model, _, graph = traced(name)
    found = ir.roles.decide.decide(graph).roles
    variables = {v.path for v in model.trainable_variables}
    assert set(found) == variables  # moving statistics and seeds are none
    for parameter, role in found.items():
        fit = [given for pattern, given in ROLES[name].items() if fnmatchcase(parameter, pattern)]
        assert len(fit) == 1, (parameter, fit)
        assert role == fit[0], parameter
    for pattern in ROLES[name]:
        assert any(fnmatchcase(parameter, pattern) for parameter in found), pattern


@pytest.mark.parametrize("name", with_large(STORED))
def test_how_a_weight_is_stored(name):
    decided = ir.roles.decide.decide(traced(name)[2]).plans
    for parameter, options in STORED[name].items():
        found = {key: getattr(decided[parameter], key) for key in options}
        assert found == options, parameter


def test_the_identity_tap_counts_the_padding_before():
    graph = traced("padded")[2]
    options = {
        name: graph.by_name[f"{name}/kernel"].options for name in ("front", "causal", "dilated")
    }
    assert {name: found["tap"] for name, found in options.items()} == {
        "front": (2,),
        "causal": (2,),
        "dilated": (1,),
    }
    note = graph.by_name["both/kernel"].note
    assert note.startswith("used in two ways that need different plans: ")
    assert "'tap': (1,)" in note
    assert "'tap': (2,)" in note


def test_a_strided_kernel_has_the_tap_of_the_size_that_it_is_called_with():
    """Keras' padding "same" puts one place less before pictures of an even size."""
    x = keras.Input((None, None, 3))
    model = keras.Model(x, kl.Conv2D(4, 3, 2, "same", name="conv")(x))
    for size, tap in ((8, 0), (7, 1)):
        found = plans(model, keras.KerasTensor((2, size, size, 3)))["conv/kernel"]
        assert found.tap == (tap, tap)


def test_a_strided_kernel_that_is_used_twice_has_the_tap_of_its_first_use():
    conv = kl.Conv2D(4, 3, 2, "same", name="conv")
    for size, tap in ((7, 1), (6, 0)):  # and then 4, or 3
        x = keras.Input((size, size, 4))
        assert plans(keras.Model(x, conv(conv(x))))["conv/kernel"].tap == (tap, tap)


@pytest.mark.nightly  # every model is traced
def test_nothing_else_is_packed():
    packed = [
        (name, parameter)
        for name in ROLES
        for parameter, decided in ir.roles.decide.decide(traced(name)[2]).plans.items()
        if decided.blocks
    ]
    assert sorted({name for name, _ in packed}) == [
        "packed", "packed_by_reshape", "recurrent", "swiglu_packed"
    ]  # fmt: skip
    assert len(packed) == 2 + 1 + 6 + 1


def test_the_graph_says_where_everything_is():
    _, _, graph = traced("subclassed")
    why = ir.roles.decide.decide(graph).to_dict()["tensors"]["transformer/block_1/out/kernel"][
        "why"
    ]
    assert re.fullmatch(
        r"last of the branch block_1/out.*, which block_1/add.* adds to block_0/add.*", why
    )
    weights = {node.name for node in traced("transformer")[2].nodes if node.kind == "weight"}
    assert {"0_attention/query", "1_down", "head"} <= weights


@pytest.mark.parametrize("name", ["transformer", "subclassed", "resnet"])
def test_tracing_changes_nothing(name):
    model, example, graph = traced(name)
    layers = model._flatten_layers()
    before = arrays(model), [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers]
    again = trace(model, example)
    assert again.parameters == graph.parameters
    assert [node.kind for node in again.nodes] == [node.kind for node in graph.nodes]
    assert same(before[0], model)
    assert [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in layers] == before[1]


# Values ------------------------------------------------------------------------------------------


def test_init_writes_what_the_plans_say():
    model = zoo.transformer()
    report = init_(model, gain=0.5, eps=1e-3)
    assert report.plans == plans(model, gain=0.5, eps=1e-3)
    values = {v.path: numpy(v) for v in model.variables}
    query = by_hand.weight((16, 16), gain=0.5, layout="IO").reshape(16, 4, 4)
    assert np.array_equal(values["0_attention/query/kernel"], query.astype(np.float32))
    out = by_hand.weight((16, 16), "zero", eps=1e-3, layout="IO").reshape(4, 4, 16)
    assert np.array_equal(values["1_attention/attention_output/kernel"], out.astype(np.float32))
    down = by_hand.weight((32, 16), "zero", eps=1e-3, layout="IO")
    assert np.array_equal(values["0_down/kernel"], down.astype(np.float32))
    assert not values["0_attention/query/bias"].any()
    assert np.all(values["norm/gamma"] == 1)
    text = str(report)
    assert all(v.path in text for v in model.variables)
    assert list(report.to_dict()["tensors"]) == [v.path for v in model.variables]


EXPORTED = ["transformer", "grouped_query", "packed_by_reshape", "mixing", "depthwise"]


@pytest.mark.parametrize("name", EXPORTED)
def test_what_a_report_exports_is_what_init_makes(name, tmp_path):
    make, example = zoo.MODELS[name]
    model = make()
    report = init_(model, example, eps=0.5)
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps(report.to_dict()))
    found = assembly.assemble(sources.read(manifest=manifest).tensors)
    ir.save(tmp_path / "m.safetensors", found.values)
    held = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    written = {entry.name: entry for entry in report.entries if entry.role != "keep"}
    assert set(held) == set(written)
    axes = {entry.axes for entry in written.values()}
    assert axes == ({"", "IOO", "IIO"} if name in ("transformer", "grouped_query") else {""})
    for v in model.variables:
        if v.path in held:
            assert written[v.path].shape == tuple(v.shape)
            assert (held[v.path].dtype, held[v.path].shape) == (np.float32, tuple(v.shape))
            assert held[v.path].tobytes() == numpy(v).tobytes(), v.path
            v.assign(held[v.path])


def test_what_the_report_of_an_einsum_exports(tmp_path):
    x = keras.Input((3, 8))
    up = kl.EinsumDense("bti,ioh->btoh", (3, 4, 5), bias_axes="oh", name="up")
    down = kl.EinsumDense("btoh,ohi->bti", (3, 8), bias_axes="i", name="down")
    model = keras.Model(x, x + down(up(x)))
    report = init_(model, overrides={"down/kernel": {"layout": "OI"}})
    assert {e.name: (e.shape, e.axes) for e in report.entries} == {
        "up/kernel": ((8, 4, 5), "IOO"), "up/bias": ((4, 5), ""),
        "down/kernel": ((4, 5, 8), "OOI"), "down/bias": ((8,), ""),
    }  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(report.to_dict()))
    found = assembly.assemble(sources.read(manifest=tmp_path / "m.json").tensors).values
    for v in model.variables:
        whole = (slice(None),) * len(v.shape)
        assert np.array_equal(as_tensor(v.path, found[v.path]).read(whole, "float32"), numpy(v))


def test_blocks_are_written_each_on_its_own():
    model = zoo.Transformer((16, 8, 8))
    init_(model, zoo.IDS)
    want = by_hand.weight((16, 32), layout="IO", blocks=(16, 8, 8))
    assert np.array_equal(numpy(model.blocks[1].qkv.kernel), want.astype(np.float32))


def test_weights_of_a_layer_of_ones_own():
    model = zoo.mixing()
    init_(model)
    layer = model.get_layer("mixing")
    want = np.stack([by_hand.weight((16, 8), layout="IO")] * 3)
    assert np.array_equal(numpy(layer.up), want.astype(np.float32))


IDENTITIES = [
    "packed_by_reshape", "swiglu", "swiglu_packed", "squeeze_excite", "gate_last", "parallel",
    "depthwise", "mixing", "grouped_query",
]  # fmt: skip


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_residual_model_is_the_identity(name):
    make, example = zoo.MODELS[name]
    model = make()
    if name == "mixing":
        model.get_layer("mixing").place.assign(np.zeros((zoo.LENGTH, zoo.WIDTH)))
    init_(model, example)
    x = normal(2, *model.input_shape[1:])
    y = numpy(model(x))
    assert np.linalg.norm(y - x) < 1e-4 * np.linalg.norm(x)


@pytest.mark.parametrize("name", ["subclassed", "packed"])
@pytest.mark.cases(1)
def test_every_block_is_the_identity(name):
    make, example = zoo.MODELS[name]
    model = make()
    init_(model, example)
    x = normal(2, zoo.LENGTH, zoo.WIDTH)
    for block in model.blocks:
        y = numpy(block(x))
        assert 0 < np.linalg.norm(y - x) < 1e-4 * np.linalg.norm(x)


def test_a_residual_block_of_convolutions_is_the_identity():
    model = zoo.ResNet()
    init_(model, zoo.IMAGES)
    x = np.abs(normal(2, 4, 4, 16))  # a ReLU comes after the add
    y = numpy(model.stages[2](x))
    assert np.linalg.norm(y - x) < 1e-4 * np.linalg.norm(x)


def test_a_post_norm_model_only_normalises():
    model = zoo.post_norm()
    init_(model)
    x = normal(2, zoo.LENGTH, zoo.WIDTH)
    want = numpy(model.get_layer("norm2")(model.get_layer("norm1")(x)))
    assert np.allclose(numpy(model(x)), want, atol=1e-4)


# Options ---------------------------------------------------------------------------------------


def test_head_and_embeddings():
    model, example, _ = traced("subclassed")
    for head in ("transit", "zero", "keep"):
        found = plans(model, example, head=head).get("transformer/head/kernel")
        assert (found.role if found else "keep") == head
    found = plans(model, example, embeddings="transit")["transformer/embed/embeddings"]
    assert (found.role, found.layout) == ("transit", "IO")  # a row for each input
    assert "transformer/embed/embeddings" not in plans(model, example)


def test_a_tied_embedding_is_told():
    _, _, graph = traced("tied")
    node = graph.by_name["tied/embed/embeddings"]
    assert node.use == "embedding"
    assert "tied/embed/embeddings" in graph.weights
    assert "the head that is tied" in ir.roles.decide.decide(graph).entries[0].why


def test_overrides():
    model, _, _ = traced("transformer")
    found = plans(
        model,
        overrides={
            "*_attention/*/kernel": {"gain": 0.5},
            "1_*": "keep",
            "0_up/kernel": {"role": "zero", "eps": 0.5},
            "norm/gamma": "bias",
        },
    )
    assert found["0_attention/query/kernel"].gain == 0.5
    assert not any(name.startswith("1_") for name in found)
    assert (found["0_up/kernel"].role, found["0_up/kernel"].eps) == ("zero", 0.5)


def test_general_options_reach_every_weight():
    model, _, _ = traced("depthwise")
    found = plans(model, gain=2.0, eps=0.5, wide="fold_rms", taps="center")
    assert {p.gain for p in found.values() if p.role == "transit"} == {2.0}
    assert {p.eps for p in found.values() if p.role == "zero"} == {0.5}
    assert {p.wide for p in found.values() if p.role == "transit"} == {"fold_rms"}
    assert found["grouped/kernel"].tap == (1, 1)


# Frozen, changed, hidden -------------------------------------------------------------------------


def small(**options):
    x = keras.Input((4,))
    h = kl.Dense(4, "relu", name="fc", **options)(x)
    return keras.Model(x, x + kl.Dense(4, name="proj")(h))


def test_frozen_parameters_are_left_alone_unless_asked_for():
    model = small()
    model.get_layer("proj").trainable = False
    before = numpy(model.get_layer("proj").kernel)
    report = init_(model)
    assert report.roles["proj/kernel"] == report.roles["proj/bias"] == "keep"
    assert report.roles["fc/kernel"] == "transit"
    assert {e.why for e in report.entries if e.role == "keep"} == {"frozen: its trainable is False"}
    assert np.array_equal(numpy(model.get_layer("proj").kernel), before)
    assert init_(model, overrides={"proj/kernel": "zero"}).roles["proj/kernel"] == "zero"


def test_a_weight_created_untrainable_is_a_parameter_and_a_counter_is_none():
    class Fixed(kl.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(4, 4), trainable=False, name="w")
            self.steps = self.add_weight(shape=(), trainable=False, name="steps")

        def call(self, x):
            return x + ops.matmul(x, self.w) + 0 * self.steps

    report = init_(Fixed(name="fixed"), np.ones((2, 4), np.float32))
    assert report.roles == {"fixed/w": "keep"}
    assert "frozen: created with trainable=False" in str(report)


def test_an_unused_parameter_is_reported():
    class Spare(kl.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(4, 4), name="w")
            self.spare = self.add_weight(shape=(4, 4), name="spare")

        def call(self, x):
            return ops.matmul(x, self.w)

    report = init_(Spare(name="s"), np.ones((2, 4)))
    assert report.roles == {"s/w": "transit", "s/spare": "keep"}
    assert "not used by the computation" in str(report)


def test_equal_paths_get_numbers():
    class Three(keras.Model):
        def __init__(self):
            super().__init__(name="three")
            self.parts = [kl.Dense(4, name="same") for _ in range(3)]

        def call(self, x):
            for part in self.parts:
                x = x + part(x)
            return x

    model = Three()
    report = init_(model, np.ones((2, 4)), overrides={"*kernel (2)": "transit"})
    assert list(report.roles) == [
        "three/same/kernel (1)", "three/same/bias (1)",
        "three/same/kernel (2)", "three/same/bias (2)",
        "three/same/kernel (3)", "three/same/bias (3)",
    ]  # fmt: skip
    assert np.array_equal(numpy(model.parts[1].kernel), np.eye(4))
    assert not np.array_equal(numpy(model.parts[2].kernel), np.eye(4))


def test_low_precision_weights_keep_their_dtype():
    x = keras.Input((4,), dtype="bfloat16")
    model = keras.Model(x, kl.Dense(4, name="fc", dtype="bfloat16")(x))
    init_(model, gain=1 / 3)
    kernel = model.get_layer("fc").kernel
    assert kernel.dtype == "bfloat16"
    value = numpy(ops.cast(kernel, "float32"))
    assert np.array_equal(value, np.eye(4) * by_hand.nearest(1 / 3, 8, -126))


# Example inputs ----------------------------------------------------------------------------------


class Two(kl.Layer):
    """Takes two arguments."""

    def build(self, first_shape, second_shape):
        self.w = self.add_weight(shape=(4, 4), name="w")

    def call(self, first, second):
        return first + ops.matmul(second, self.w)


A = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    "example", [(A, A), [A, A], {"first": A, "second": A}], ids=["tuple", "list", "dict"]
)
def test_several_arguments(example):
    assert init_(Two(name="two"), example).roles == {"two/w": "transit"}


def test_one_argument_with_a_structure():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model({"a": a, "b": b}, a + kl.Dense(4, name="d")(b))
    for example in (None, {"b": A, "a": A}, {"a": keras.KerasTensor((None, 4)), "b": A}):
        assert plans(model, example)["d/kernel"].role == "transit"
    model = keras.Model([a, b], a + kl.Dense(4, name="e")(b))
    assert plans(model, [A, A])["e/kernel"].role == "transit"


def test_a_nested_model_is_entered():
    x = keras.Input((4,))
    block = keras.Sequential([kl.Dense(8, "relu", name="up"), kl.Dense(4, name="down")], name="mlp")
    model = keras.Model(x, keras.Model(x, x + block(x), name="inner")(x))
    found = plans(model)
    assert [p.role for p in found.values()] == ["transit", "zero"]


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"example_inputs": np.ones((2, 9), np.float32)}, errors.GraphError, ["(2, 9)", "pass"]),
        ({"example_inputs": np.ones((2, 3, 4, 5))}, errors.GraphError, ["(2, 3, 4, 5)"]),
        ({"overrides": {"fc/kernl": "zero"}}, errors.OptionError, ["'fc/kernl'", "fc/kernel"]),
        ({"overrides": {"fc/kernel": "nought"}}, errors.OptionError, ["nought", "'zero'"]),
        ({"head": "none"}, errors.OptionError, ["head = 'none'", "'keep'"]),
        ({"gain": 0}, errors.OptionError, ["gain = 0"]),
        ({"eps": 1e-60}, errors.RoundingError, ["proj/kernel", "eps = 1e-60"]),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_an_error_leaves_the_model_alone(options, error, words):
    model = small()
    before = arrays(model)
    with pytest.raises(error) as caught:
        init_(model, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert same(before, model)


def test_a_model_without_parameters():
    x = keras.Input((4,))
    with pytest.raises(errors.GraphError, match="the model should have some"):
        init_(keras.Model(x, kl.ReLU()(x)))


def test_a_model_that_does_not_know_its_inputs():
    with pytest.raises(errors.GraphError, match=r"example_inputs = None.*pass an array"):
        init_(zoo.Transformer())


def test_an_axis_without_a_size():
    x = keras.Input((None, 8))
    with pytest.raises(errors.GraphError, match=r"\(None, None, 8\).*every axis but the first"):
        trace(keras.Model(x, kl.Dense(8)(x)))


def test_wrong_inputs_of_an_unbuilt_model():
    with pytest.raises(errors.GraphError, match=r"\(2, 8\).*expected min_ndim=4"):
        init_(zoo.ResNet(), np.ones((2, 8), np.float32))


@pytest.mark.parametrize("model", [None, np.ones(3), kl.Dense], ids=["None", "array", "class"])
def test_what_is_no_model(model):
    with pytest.raises(errors.OptionTypeError, match=r"a keras\.Model or a keras\.layers\.Layer"):
        trace(model, A)


# Weights that are not what is stored -------------------------------------------------------------


class Own(kl.Layer):
    """A layer of some weights, and of a function of itself and its input."""

    def __init__(self, call, **shapes):
        super().__init__(name="own")
        self.function = call
        for name, shape in shapes.items():
            setattr(self, name, self.add_weight(shape=shape, name=name))

    def call(self, x):
        return self.function(self, x)


def whys(report):
    return {entry.name.rpartition("own/")[2]: entry.why for entry in report.entries}


def roles(layer, example):
    return {n.removeprefix("own/"): r for n, r in init_(layer, example).roles.items()}


X = np.ones((2, 6, 8), np.float32)


class Late(keras.Model):
    """Builds its layers when it is called."""

    def __init__(self):
        super().__init__(name="late")
        self.parts = [kl.Dense(16), keras.Sequential([kl.Dense(8)])]

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], name="scale")

    def call(self, x):
        return x + self.parts[1](self.parts[0](x)) * self.scale


@pytest.mark.parametrize(
    ("example", "options", "error"),
    [
        (np.ones((2, 6, 9)), {}, errors.GraphError),
        (X, {"overrides": {"nothing": "zero"}}, errors.OptionError),
        (X, {"eps": 1e-60}, errors.RoundingError),
    ],
    ids=["shape", "override", "eps"],
)
def test_an_error_leaves_an_unbuilt_model_unbuilt(example, options, error):
    model = Late()
    calls = [init_] if "eps" in options else [init_, plans]
    calls += [] if options else [trace]
    for call in calls:
        with pytest.raises(error):
            call(model, example, **options)
        assert not any(layer.built for layer in model._flatten_layers())
        assert model.variables == []
        assert not hasattr(model, "scale")
    assert len(init_(model, X).roles) == 5
    assert numpy(model(X)).shape == X.shape
    assert len(model.trainable_variables) == 5


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda s: ops.tanh(ops.matmul(s.w, s.other)), {"other": (8, 8)}),
        (lambda s: s.w / ops.sqrt(ops.sum(s.w * s.w, axis=0, keepdims=True)), {}),
        (lambda s: (s.w - ops.mean(s.w)) / ops.std(s.w), {}),
        (lambda s: 1 / s.w, {}),
    ],
    ids=["product", "norm", "standard", "inverse"],
)
def test_a_weight_computed_of_its_parameter_is_left_alone(change, others):
    layer = Own(lambda s, x: x + ops.matmul(x, change(s)), w=(8, 8), **others)
    report = init_(layer, X)
    assert set(report.roles.values()) == {"keep"}
    for why in whys(report).values():
        assert re.match(r"(multiplied|divided|subtracted|changed) .+ before its use as a", why), why


@pytest.mark.parametrize(
    ("change", "others"),
    [
        (lambda s: s.w * s.other, {"other": (8, 8)}),
        (lambda s: s.w * np.tri(8, dtype=np.float32), {}),
    ],
    ids=["mask", "constant"],
)
def test_a_weight_that_vanishes_with_its_parameter_ends_its_branch(change, others):
    layer = Own(lambda s, x: x + ops.matmul(x, change(s)), w=(8, 8), **others)
    assert roles(layer, X) == {"w": "zero"} | dict.fromkeys(others, "keep")
    assert 0 < np.abs(numpy(layer(X)) - numpy(X)).max() < 1e-4


def test_the_scale_of_a_weight_ends_its_branch():
    layer = Own(lambda s, x: x + ops.matmul(x, s.w * s.other), w=(8, 8), other=(1, 1))
    assert roles(layer, X) == {"w": "keep", "other": "zero"}
    assert np.abs(numpy(layer(X)) - numpy(X)).max() < 1e-4


@pytest.mark.parametrize("change", [lambda w: w * 0.5, lambda w: -w / np.float32(2)])
def test_a_weight_scaled_by_a_number_is_one(change):
    assert roles(Own(lambda s, x: x + ops.matmul(x, change(s.w)), w=(8, 8)), X) == {"w": "zero"}


def test_a_spectrally_normalised_weight_is_left_alone():
    x = keras.Input((6, 8))
    layer = kl.SpectralNormalization(kl.Dense(8, name="d"), name="own")
    report = init_(keras.Model(x, x + layer(x)))
    assert sorted(report.roles.values()) == ["bias", "keep"]
    assert "spectrally normalised in training" in str(report)


# Lookups that are weights, weights that are lookups ----------------------------------------------


def test_experts_that_are_picked_are_weights():
    def call(s, x):
        gates, k = ops.top_k(ops.softmax(ops.matmul(x, s.router)), 2)
        up, down = ops.take(s.up, k, axis=0), ops.take(s.down, k, axis=0)
        h = ops.relu(ops.einsum("btd,btkdf->btkf", x, up))
        y = ops.matmul(h[:, :, :, None, :], down)[:, :, :, 0, :]
        return x + ops.sum(y * gates[..., None], axis=2)

    layer = Own(call, router=(8, 3), up=(3, 8, 12), down=(3, 12, 8))
    report = init_(layer, X)
    assert report.roles["own/up"] == "transit"
    assert report.roles["own/down"] == "zero"
    assert {p.layout for n, p in report.plans.items() if "router" not in n} == {"LIO"}
    y = numpy(layer(normal(2, 6, 8)))
    assert np.allclose(y, normal(2, 6, 8), atol=1e-4)


def test_a_table_of_matrices_is_an_embedding_still():
    layer = Own(lambda s, k: ops.sum(ops.take(s.table, k, axis=0), axis=1), table=(5, 4, 4))
    assert roles(layer, np.ones((2, 6), "int32")) == {"table": "keep"}


def test_a_product_with_one_hot_vectors_is_an_embedding():
    layer = Own(lambda s, ids: ops.matmul(ops.one_hot(ids, 20), s.table), table=(20, 8))
    report = init_(layer, np.ones((2, 6), "int32"))
    assert whys(report) == {"table": "embedding"}
    assert report.roles == {"own/table": "keep"}


def test_stacked_experts_that_a_later_weight_shows():
    def call(s, x):
        h = ops.relu(ops.einsum("btd,edf->btef", x, s.up))
        return x + ops.sum(ops.einsum("btef,efd->bted", h, s.down), axis=2)

    layer = Own(call, up=(3, 8, 12), down=(3, 12, 8))
    found = init_(layer, X).plans
    assert [(p.layout, p.shape) for p in found.values()] == [
        ("LIO", (3, 8, 12)),
        ("LIO", (3, 12, 8)),
    ]
    want = np.stack([by_hand.weight((8, 12), layout="IO")] * 3)
    assert np.array_equal(numpy(layer.up), want.astype(np.float32))


# Adds and biases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_a_sum_of_one_sample_is_seen(batch):
    """For which Keras' own `+` is a bias_add of the squeezed term."""
    x = inputs = keras.Input((6,))
    last = []
    for _ in range(2):
        last.append(kl.Dense(6))
        x = x + last[-1](kl.Dense(12, activation="relu")(x))
    report = init_(keras.Model(inputs, x), np.zeros((batch, 6), "float32"))
    zero = {name for name, role in report.roles.items() if role == "zero"}
    assert zero == {f"{layer.name}/kernel" for layer in last}


@pytest.mark.parametrize("plus", [kl.Average, lambda: kl.Lambda(lambda t: t[0] + t[1])])
def test_layers_that_add(plus):
    x = keras.Input((6, 8))
    report = init_(keras.Model(x, plus()([x, kl.Dense(8, name="d")(x)])))
    assert report.roles == {"d/kernel": "zero", "d/bias": "bias"}


def test_a_bias_after_a_scale():
    layer = Own(lambda s, x: x + ops.matmul(x, s.w) * 0.5 + s.b, w=(8, 8), b=(8,))
    assert roles(layer, X) == {"w": "zero", "b": "bias"}  # however the sum is written
    layer = Own(lambda s, x: x + (ops.matmul(x, s.w) * 0.5 + s.b), w=(8, 8), b=(8,))
    assert roles(layer, X) == {"w": "zero", "b": "bias"}


def test_the_bias_of_an_unrolled_cell():
    x = keras.Input((6, 8))
    report = init_(keras.Model(x, kl.GRU(8, unroll=True, name="gru")(x)))
    assert [r for n, r in report.roles.items() if n.endswith("bias")] == ["bias"]


def test_a_recurrent_kernel_that_only_meets_zeros_is_a_weight():
    x = keras.Input((1, 8))
    model = keras.Model(x, kl.LSTM(8, unroll=True, name="lstm")(x))
    report = init_(model, np.ones((1, 1, 8), np.float32))
    assert report.roles["lstm/lstm_cell/recurrent_kernel"] == "transit"


@pytest.mark.parametrize("layer", [kl.SimpleRNN, kl.LSTM, kl.GRU])
def test_a_recurrent_branch_ends_in_its_kernel(layer):
    """Its state starts as zeros, and all of its steps vanish with the kernel."""
    x = keras.Input((3, 4))
    model = keras.Model(x, x + layer(4, return_sequences=True, name="r")(x))
    roles = init_(model, np.ones((1, 3, 4), np.float32)).roles
    zero = {name.rpartition("/")[2] for name, role in roles.items() if role == "zero"}
    assert zero == {"kernel"}


def test_int8_lists_every_weight():
    x = keras.Input((6, 8))
    model = keras.Model(x, x + kl.Dense(8, name="d")(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the input layer, which has nothing to quantise
        model.quantize("int8")
    report = init_(model)
    assert report.roles == {"d/kernel": "keep", "d/bias": "bias", "d/kernel_scale": "keep"}
    why = whys(report)
    assert why["d/kernel"] == "not floating: int8"
    assert why["d/kernel_scale"] == "a part of a quantised weight"


# Strings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [np.array(["a", "b"]), np.array(["a", "b"], object), ["a", "b"]])
def test_strings(text):
    leaf = keras.tree.flatten(text)[0] if isinstance(text, list) else text
    from idinit_ref_tensorflow._trace import _symbol

    assert _symbol("example_inputs", leaf).dtype == "string"


@pytest.mark.parametrize("what", [object(), np.array(["2000"], "datetime64[D]")])
def test_what_is_no_array(what):
    with pytest.raises(errors.GraphError, match=r"example_inputs = .*numbers, bools or strings"):
        trace(small(), what)


if BACKEND == "tensorflow":
    import tensorflow as tf

    from idinit_ref_tensorflow import _trace, _walk

    # Two ways, one graph -------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ROLES)
    def test_keras_own_graph_says_the_same(name):
        model, example, graph = traced(name)
        arguments = _trace.prepare(model, example)
        held = _trace._parameters(model)
        draw = _trace._drawing(held)
        names = {id(one.variable): one.parameter.name for one in held}
        outputs = _walk.walk(draw, names, model, *arguments, _trace._input_names(arguments))
        states = {one.parameter.name for one in held if one.is_state}
        walked = draw.graph(outputs)
        walked = ir.Graph([n for n in walked.nodes if n.name not in states], walked.outputs)
        for parameter in graph.parameters:
            one, other = (dict(each.by_name[parameter].options) for each in (walked, graph))
            for key in ("adds_to", "added", "scales"):  # nodes, whose names are their own
                one.pop(key, ()), other.pop(key, ())
            assert one == other
            same = [replace(each.by_name[parameter], options={}) for each in (walked, graph)]
            assert same[0] == same[1]
        one, other = ir.roles.decide.decide(walked), ir.roles.decide.decide(graph)
        assert one.roles == other.roles
        assert one.plans == other.plans

    # Gradients at step 0 -------------------------------------------------------------------------

    def gradients(model, *inputs):
        with tf.GradientTape() as tape:
            y = model(*inputs)
            loss = tf.reduce_sum(y * tf.constant(normal(*y.shape)))
        found = tape.gradient(loss, [v.value for v in model.trainable_variables])
        names = [v.path for v in model.trainable_variables]
        return {n: numpy(tf.convert_to_tensor(g)) for n, g in zip(names, found, strict=True)}

    def silent(found):
        return {name for name, gradient in found.items() if not gradient.any()}

    IDS = np.arange(12).reshape(2, 6) % 11
    # A wide IDIZ after a tall IDI meets copies of one input, which cancel: what feeds the branch
    # has no gradient at step 0 (docs/mathematics.md).
    SILENT = {
        "transformer": {"0_norm2/gamma", "0_norm2/beta", "1_norm2/gamma", "1_norm2/beta"},
        "subclassed": set(),
        "resnet": set(),
        "swiglu": set(),
        "squeeze_excite": set(),
    }

    def started(name):
        make, example = zoo.MODELS[name]
        model = make()
        report = init_(model, example)
        shape = zoo.IMAGES.shape if name == "resnet" else None
        inputs = IDS if example is zoo.IDS else normal(*(shape or (2, *model.input_shape[1:])))
        return model, report, inputs

    @pytest.mark.parametrize("name", SILENT)
    @pytest.mark.cases(1)
    def test_every_parameter_has_a_gradient_at_step_0(name):
        model, _, inputs = started(name)
        found = gradients(model, inputs)
        assert all(np.isfinite(gradient).all() for gradient in found.values())
        # A softmax does not feel what all keys have in common: in exact arithmetic nothing comes.
        keys = {name for name in found if re.search(r"(/k|key)/bias$", name)}
        assert silent(found) - keys == SILENT[name]

    @pytest.mark.parametrize("name", ["subclassed", "swiglu", "resnet"])
    @pytest.mark.cases(1)
    def test_exact_zeros_silence_the_earlier_weights_of_a_branch(name):
        model, report, inputs = started(name)
        zeros = [n for n, role in report.roles.items() if role == "zero"]
        for variable in model.trainable_variables:
            if variable.path in zeros:
                variable.assign(np.zeros(variable.shape))
        found = silent(gradients(model, inputs))
        earlier = [n for n in report.roles if re.search(r"(/[qkv]|/up|^up|gate|conv1)/kernel$", n)]
        assert earlier
        assert set(earlier) <= found
        assert not found & set(zeros)

    # What only a function's graph shows ----------------------------------------------------------

    def test_a_model_of_strings():
        x = keras.Input((), dtype="string")
        ids = kl.StringLookup(vocabulary=["a", "b"])(x)
        model = keras.Model(x, kl.Dense(4, name="d")(kl.Embedding(3, 4, name="e")(ids)))
        for text in (np.array(["a", "b"]), np.array(["a", b"b"], object)):
            assert init_(model, text).roles["d/kernel"] == "transit"
        with pytest.raises(errors.GraphError, match="example_inputs"):
            init_(model, object())

    class Raw(kl.Layer):
        """Bare TensorFlow: variables that Keras does not know, branches, a loop, no layers."""

        def __init__(self):
            super().__init__(name="raw")
            self.turned = tf.Variable(tf.ones((4, 4)), name="turned")
            self.normed = tf.Variable(tf.ones((4, 4)), name="normed")
            self.scale = tf.Variable(tf.ones((4,)), name="scale")
            self.kernel = tf.Variable(tf.ones((3, 2, 1, 4)), name="kernel")
            self.looped = tf.Variable(tf.ones((4, 4)), name="looped")
            self.steps = tf.Variable(0.0, trainable=False, name="steps")

        def call(self, x):
            y = tf.matmul(x, self.turned, transpose_b=True) + self.steps
            y = tf.matmul(y, self.normed / tf.norm(self.normed, axis=0) * self.scale)
            y = tf.cond(tf.reduce_sum(y) > 0, lambda: tf.nn.relu(y), lambda: y)
            image = tf.tile(y[:, None, None, :1], [1, 5, 5, 1])
            y = tf.reduce_mean(tf.nn.conv2d(image, self.kernel, 1, "SAME"), (1, 2))

            def body(k, h):
                return k + 1, h + tf.matmul(h, self.looped)

            return tf.while_loop(lambda k, _: k < 3, body, (0, x + y))[1]

    def test_bare_tensorflow():
        model = Raw()
        report = init_(model, A, taps="center")
        assert report.roles == {
            "turned": "transit",
            "normed": "keep",  # divided by its norm
            "scale": "keep",
            "kernel": "zero",
            "looped": "zero",
        }
        assert report.plans["turned"].layout == "OI"
        assert (report.plans["kernel"].layout, report.plans["kernel"].tap) == ("HWIO", (1, 0))
        assert np.array_equal(model.turned.numpy(), np.eye(4))

    def test_lora_starts_as_what_it_is_put_around():
        """Keras merges it: x (W + A B) is x W + (x A) B."""
        model = small()
        model.get_layer("proj").enable_lora(2)
        report = init_(model)
        assert report.roles == {
            "fc/kernel": "transit",
            "fc/bias": "bias",
            "proj/kernel": "keep",
            "proj/bias": "bias",
            "proj/lora_kernel_a": "transit",
            "proj/lora_kernel_b": "zero",
        }
        why = {entry.name: entry.why for entry in report.entries}
        assert why["proj/kernel"].startswith("frozen")

    def test_a_quantised_weight_is_named_and_refused():
        model = small()
        model.get_layer("proj").quantize("int8")
        before = arrays(model)
        entry = next(
            e for e in ir.roles.decide.decide(trace(model)).entries if e.name == "proj/kernel"
        )
        assert (entry.role, entry.why) == ("keep", "not floating: int8")
        with pytest.raises(errors.DTypeError, match=r"proj/kernel.*int8"):
            init_(model, overrides={"proj/kernel": "transit"})
        assert same(before, model)

    def test_mixed_precision():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = small(dtype="mixed_bfloat16")
        assert init_(model).roles["fc/kernel"] == "transit"

    def test_what_cannot_be_traced_is_named():
        class Hidden(kl.Layer):
            def build(self, shape):
                self.w = self.add_weight(shape=(4, 4), name="w")

            def call(self, x):
                y = tf.numpy_function(np.matmul, [x, self.w], tf.float32)
                return x + tf.ensure_shape(y, x.shape)

        with pytest.raises(errors.GraphError, match=r"PyFunc.*cannot be traced.*one by one"):
            init_(Hidden(), A)

else:

    def test_what_keras_does_not_show_is_named():
        class Hidden(kl.Layer):
            def build(self, shape):
                self.w = [self.add_weight(shape=(4, 4), name="w")]

            def call(self, x):
                return x + ops.matmul(x, ops.transpose(self.w[0]))

        with pytest.raises(
            errors.GraphError, match=r"origin of one of its operands.*TensorFlow backend"
        ):
            init_(Hidden(), A)


class Flat(kl.Layer):
    """A dense layer on all entries of a sample; its batch is read from the input."""

    def __init__(self, start):
        super().__init__()
        self.start, self.fc = start, kl.Dense(32, name="fc")

    def build(self, shape):
        self.fc.build((None, 32))

    def call(self, x):
        batch = ops.shape(x)[0]
        y = self.fc(ops.relu(ops.reshape(x, (batch, -1))))
        return self.start(batch) + ops.reshape(y, (batch, 4, 8))

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize(
    "start",
    [lambda batch: 0.0, lambda batch: ops.zeros((batch, 4, 8)), lambda batch: np.zeros((1, 4, 8))],
    ids=["nothing", "zeros", "an array of NumPy"],
)
def test_a_batch_that_is_not_known_before(start):
    """An array may stand to the left of a symbolic tensor."""
    x = keras.Input((4, 8))
    model = keras.Model(x, x + Flat(start)(x))
    roles = init_(model).roles
    assert [role for name, role in roles.items() if name.endswith("kernel")] == ["zero"]
    (flat,) = (layer for layer in model.layers if isinstance(layer, Flat))
    flat.fc.kernel.assign(np.zeros((32, 32)))
    data = np.ones((3, 4, 8), "float32")
    assert np.array_equal(ops.convert_to_numpy(model(data)), data)


def test_a_reshape_that_keras_cannot_run_is_refused():
    x = keras.Input((4, 8))
    y = ops.reshape(x, (ops.shape(x)[0], 32))
    model = keras.Model(x, kl.Dense(32)(y))
    before = [np.array(ops.convert_to_numpy(weight)) for weight in model.weights]
    with pytest.raises(errors.GraphError, match=r"\(None, 32\)"):
        init_(model)
    assert all(
        np.array_equal(a, ops.convert_to_numpy(b))
        for a, b in zip(before, model.weights, strict=True)
    )


def test_integers_that_a_dense_layer_accepts():
    model = keras.Sequential([kl.Dense(8), kl.ReLU(), kl.Dense(8)])
    x = np.arange(16, dtype="int32").reshape(2, 8)
    assert sorted(init_(model, x).roles.values()) == ["bias", "bias", "transit", "transit"]
    assert np.array_equal(ops.convert_to_numpy(model(x)), x)


@pytest.mark.parametrize("again", [None, "saved", "cloned"])
def test_no_name_is_a_path_that_several_variables_have(again, tmp_path):
    """A layer of one name in two nested models and outside, and one whose name ends as if."""

    def inner(name, layer):
        x = keras.Input((4,))
        return keras.Model(x, kl.Dense(4, name=layer)(x), name=name)

    x = keras.Input((4,))
    first = inner("a", "d")
    y = kl.Dense(4, name="d")(inner("b", "d")(first(first(x))))
    model = keras.Model(x, x + inner("c", "e")(y))
    if again == "saved":
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    elif again == "cloned":
        model = keras.models.clone_model(model)
    model.get_layer("c").layers[1].kernel._path = "d/kernel (2)"
    names = [name for name in init_(model).roles if name.endswith(("kernel", ")"))]
    assert names == [
        "d/kernel (1)", "d/bias (1)", "d/kernel (3)", "d/bias (2)",
        "d/kernel (4)", "d/bias (3)", "d/kernel (2)",
    ]  # fmt: skip


# Functions of TensorFlow inside a model ----------------------------------------------------------


class Compiled(keras.Model):
    """A residual net; its call, its branch or neither of them is a ``tf.function``."""

    def __init__(self, part, **options):
        super().__init__(name="m")
        self.start, self.end = kl.Dense(8, name="start"), kl.Dense(3, name="end")
        self.up, self.down = kl.Dense(12, activation="relu", name="up"), kl.Dense(8, name="down")
        if part:
            setattr(self, part, tf.function(getattr(self, part), **options))

    def branch(self, x):
        return self.down(self.up(x))

    def call(self, x):
        x = self.start(x)
        return self.end(x + self.branch(x))


class Choosing(Compiled):
    """It needs autograph."""

    def branch(self, x):
        return self.down(self.up(x)) if tf.reduce_sum(x) < 1e9 else tf.zeros_like(x)


BATCH = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")
COMPILED = [("call", {}), ("branch", {}), ("branch", {"jit_compile": True})]
ONLY_TF = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.function is TensorFlow's")
if BACKEND == "tensorflow":
    import tensorflow as tf


def is_trained(model):
    """Whether each of a model's parameters has a gradient for BATCH."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(BATCH) ** 2)
    return all(g is not None for g in tape.gradient(loss, [v.value for v in model.weights]))


@ONLY_TF
@pytest.mark.parametrize("before", ["nothing", "a call", "gradients", "another shape"])
@pytest.mark.parametrize(("part", "options"), COMPILED)
def test_a_function_inside_a_model(part, options, before):
    model, plain = Compiled(part, **options), Compiled(None)
    if before != "nothing":
        model(BATCH[:1])  # builds it
    if before == "a call":
        model(BATCH)
    elif before == "gradients":
        assert is_trained(model)
    was = tf.config.functions_run_eagerly()
    report = init_(model, BATCH)
    assert report.roles == init_(plain, BATCH).roles
    assert report.roles["m/down/kernel"] == "zero"
    assert tf.config.functions_run_eagerly() == was
    assert audit(model, BATCH).healthy
    assert np.allclose(model(BATCH), plain(BATCH), atol=1e-5)
    assert is_trained(model)


@ONLY_TF
@pytest.mark.parametrize(
    ("kind", "part", "options"), [*((Compiled, *one) for one in COMPILED), (Choosing, "branch", {})]
)
def test_a_function_that_was_traced_when_keras_built_the_model(kind, part, options):
    """It holds constants in the place of its variables: of this shape nothing is trained."""
    model = kind(part, **options)
    model(BATCH)
    assert not is_trained(model)
    weights = model.get_weights()
    for asked in (init_, trace, plans, audit):
        with pytest.raises(errors.GraphError, match=r"m/up/kernel.* a tf.function in the model"):
            asked(model, BATCH)
    assert all(map(np.array_equal, weights, model.get_weights()))
    assert init_(model, BATCH[:2]).roles["m/down/kernel"] == "zero"  # of another shape it is
    assert audit(model, BATCH[:2]).healthy
