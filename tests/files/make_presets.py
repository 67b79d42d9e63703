"""Write the presets anew from the installed transformers: python tests/files/make_presets.py."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "idinit_ref" / "files" / "presets"

MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "bert-base": ("BertModel", "BertConfig", {}),
    "vit-b-16": ("ViTForImageClassification", "ViTConfig", {"num_labels": 1000}),
    "resnet50": ("ResNetForImageClassification", "ResNetConfig", {"num_labels": 1000}),
    "llama-3-8b": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    ),
}


def make(name):
    """Build the real model without memory (meta device) and read its state dict."""
    import torch
    import transformers

    model_class, config_class, options = MODELS[name]
    config = getattr(transformers, config_class)(**options)
    with torch.device("meta"):
        model = getattr(transformers, model_class)(config)
    tensors, seen = {}, set()
    for key, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # a tied tensor is there once, under its first name
            seen.add(id(value))
            tensors[key] = list(value.shape)
    return {
        "name": name,
        "source": {
            "class": model_class,
            "config": config_class,
            "options": options,
            "transformers": transformers.__version__,
        },
        "parameters": model.num_parameters(),
        "tensors": tensors,
    }


def text(preset):
    """Return a preset as JSON, one tensor a line."""
    head = {key: value for key, value in preset.items() if key != "tensors"}
    lines = (f"{json.dumps(key)}: {json.dumps(shape)}" for key, shape in preset["tensors"].items())
    return json.dumps(head)[:-1] + ',\n"tensors": {\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    for each in MODELS:
        (FOLDER / f"{each}.json").write_text(text(make(each)), encoding="utf-8")
