"""The presets are the real models, and every tensor of theirs has the role it should have."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import idinit_ref as ir
from by_name import plans
from files.make_presets import MODELS, make, text
from idinit_ref.files import presets, writing
from idinit_ref.roles.names import decide

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

# Counted by hand: tensors of each role. GPT-2: 12 blocks of 4 matrices, 2 of them last; and so on.
ROLES = {
    "gpt2": {"transit": 24, "zero": 24, "bias": 48, "keep": 2 + 25 * 2},
    "bert-base": {"transit": 12 * 4 + 1, "zero": 24, "bias": 12 * 6 + 1, "keep": 3 + 25 * 2},
    "vit-b-16": {"transit": 1 + 12 * 4 + 1, "zero": 24, "bias": 1 + 12 * 6 + 1, "keep": 2 + 25 * 2},
    "resnet50": {"transit": 1 + 16 * 2 + 4 + 1, "zero": 16, "bias": 1, "keep": 53 * 5},
    "llama-3-8b": {"transit": 32 * 5 + 1, "zero": 64, "keep": 1 + 65},
}

SAMPLE = {
    "gpt2": {
        "transformer.wte.weight": "keep",
        "transformer.h.11.ln_2.weight": "keep",
        "transformer.h.11.attn.c_attn.weight": "transit",
        "transformer.h.11.attn.c_proj.weight": "zero",
        "transformer.h.11.mlp.c_fc.weight": "transit",
        "transformer.h.11.mlp.c_proj.weight": "zero",
        "transformer.h.11.mlp.c_proj.bias": "bias",
    },
    "bert-base": {
        "embeddings.position_embeddings.weight": "keep",
        "encoder.layer.11.attention.self.value.weight": "transit",
        "encoder.layer.11.attention.output.dense.weight": "zero",
        "encoder.layer.11.intermediate.dense.weight": "transit",
        "encoder.layer.11.output.dense.weight": "zero",
        "pooler.dense.weight": "transit",
    },
    "vit-b-16": {
        "vit.embeddings.cls_token": "keep",
        "vit.embeddings.patch_embeddings.projection.weight": "transit",
        "vit.layers.11.attention.v_proj.weight": "transit",
        "vit.layers.11.attention.o_proj.weight": "zero",
        "vit.layers.11.mlp.fc2.weight": "zero",
        "classifier.weight": "transit",
    },
    "resnet50": {
        "resnet.embedder.embedder.convolution.weight": "transit",
        "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight": "transit",
        "resnet.encoder.stages.3.layers.2.layer.0.convolution.weight": "transit",
        "resnet.encoder.stages.3.layers.2.layer.1.convolution.weight": "transit",
        "resnet.encoder.stages.3.layers.2.layer.2.convolution.weight": "zero",
        "resnet.encoder.stages.3.layers.2.layer.2.normalization.num_batches_tracked": "keep",
    },
    "llama-3-8b": {
        "model.embed_tokens.weight": "keep",
        "model.layers.31.self_attn.k_proj.weight": "transit",
        "model.layers.31.self_attn.o_proj.weight": "zero",
        "model.layers.31.mlp.up_proj.weight": "transit",
        "model.layers.31.mlp.down_proj.weight": "zero",
        "lm_head.weight": "transit",
    },
}

# As published: without buffers, tied tensors once.
PARAMETERS = {
    "gpt2": 124_439_808,
    "bert-base": 109_482_240,
    "vit-b-16": 86_567_656,
    "resnet50": 25_557_032,
    "llama-3-8b": 8_030_261_248,
}

SMALL = {
    "gpt2": {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 31},
    "bert-base": {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "vocab_size": 31,
    },
    "vit-b-16": {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "image_size": 8,
        "patch_size": 4,
    },
    "resnet50": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]},
    "llama-3-8b": {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 20,
        "vocab_size": 31,
    },
}


def test_the_presets_are_those_that_are_made():
    assert presets.names() == tuple(sorted(MODELS))


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_is_what_the_real_model_defines(name):
    made, stored = make(name), presets.load(name)
    made["source"]["transformers"] = stored.source["transformers"]  # of when it was made
    assert text(made) == (Path(presets.__file__).parent / f"{name}.json").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_many_as_published(name):
    preset = presets.load(name)
    counted = sum(
        int(np.prod(shape, dtype=np.int64))
        for key, shape in preset.tensors.items()
        if not key.endswith(BUFFERS)
    )
    assert counted == preset.parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", MODELS)
def test_roles(name):
    tensors = presets.load(name).tensors
    decisions = {key: decide(key, shape, names=tensors) for key, shape in tensors.items()}
    assert Counter(decision.role for decision in decisions.values()) == ROLES[name]
    assert {key: decisions[key].role for key in SAMPLE[name]} == SAMPLE[name]


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ir.errors.OptionError, match=r"'lama-3-8b'.*did you mean 'llama-3-8b'\?"):
        presets.load("lama-3-8b")


@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_of_each_kind_loads_the_file_as_its_checkpoint(name, tmp_path):
    """from_pretrained takes every tensor of the file, and misses only what IDInit leaves."""
    import torch
    import transformers

    model_class, config_class, _ = MODELS[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**SMALL[name]))
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    made = plans(shapes)
    model.config.save_pretrained(tmp_path)
    writing.save(tmp_path / "model.safetensors", made)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    found = dict(loaded.named_parameters())
    assert set(shapes) - set(made) <= set(info["missing_keys"])
    assert not set(made) & set(info["missing_keys"])
    for key, value in made.items():
        expected = value.build(dtype="float32") if isinstance(value, ir.Plan) else +value
        assert torch.equal(found[key], torch.from_numpy(expected)), key


def test_gpt2_at_full_size_runs_and_every_block_is_nearly_the_identity():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        writing.save(os.path.join(folder, "model.safetensors"), plans(presets.load("gpt2").tensors))
        GPT2Config().save_pretrained(folder)
        torch.manual_seed(0)
        model = GPT2LMHeadModel.from_pretrained(folder).eval()
    moves = []

    def measure(_, inputs, output):
        x, y = inputs[0], output[0] if isinstance(output, tuple) else output
        moves.append(((y - x).norm(dim=-1) / x.norm(dim=-1)).max().item())

    for block in model.transformer.h:
        block.register_forward_hook(measure)
    with torch.no_grad():
        logits = model(torch.randint(0, 50257, (2, 32))).logits
    assert logits.shape == (2, 32, 50257)
    assert torch.isfinite(logits).all()
    assert len(moves) == 12
    assert 0 < max(moves) < 1e-4
