"""Models of the transformers library, small and at full size, with every role by hand."""

from __future__ import annotations

from typing import Any

import torch

from adapters.zoo_torch import IDS, Case, image

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, **TEXT, **SPECIAL, "num_key_value_heads": 1}


def case(kind: str, config: dict[str, Any], inputs: Any, table: Any, stored: Any = None) -> Case:
    def make() -> torch.nn.Module:
        import transformers

        name, model = kind.split()
        return getattr(transformers, model)(getattr(transformers, name)(**config))

    return Case(make, inputs, table, stored or {})


GPT2 = {
    "*.wte.weight": "keep",
    "*.wpe.weight": "keep",
    "*.ln_*": "keep",
    "*.c_attn.weight": "transit",
    "*.c_fc.weight": "transit",
    "*.c_proj.weight": "zero",
    "*.c_attn.bias": "bias",
    "*.c_fc.bias": "bias",
    "*.c_proj.bias": "bias",
}
ATTENTION = {
    "*.q_proj.weight": "transit",
    "*.k_proj.weight": "transit",
    "*.v_proj.weight": "transit",
}
LLAMA = {
    "model.embed_tokens.weight": "keep",
    "*norm.weight": "keep",
    **ATTENTION,
    "*.o_proj.weight": "zero",
    "lm_head.weight": "transit",
}
GATED = {
    "*.gate_proj.weight": "transit",
    "*.up_proj.weight": "transit",
    "*.down_proj.weight": "zero",
}
MIXTURE = {
    "*.mlp.gate.weight": "transit",  # the router: a softmax never vanishes
    "*.experts.gate_up_proj": "transit",
    "*.experts.down_proj": "zero",
}
T5 = {
    "shared.weight": "keep",
    "*relative_attention_bias.weight": "keep",
    "*layer_norm.weight": "keep",
    "*.[qkv].weight": "transit",
    "*.o.weight": "zero",
    "*.wi.weight": "transit",
    "*.wo.weight": "zero",
}


def tower(prefix: str, out: str, norms: str) -> dict[str, str]:
    """Transformer layers with biases everywhere."""
    rows = {"[qkv]_proj": "transit", out: "zero", "fc1": "transit", "fc2": "zero"}
    weights = {f"{prefix}.{name}.weight": role for name, role in rows.items()}
    biases = {f"{prefix}.{name}.bias": "bias" for name in rows}
    return {**weights, **biases, f"{prefix}.{norms}.*": "keep"}


MODELS = {
    "gpt2": case(
        "GPT2Config GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 50, **SPECIAL},
        IDS,
        GPT2,
        {
            "transformer.h.0.attn.c_attn.weight": {"layout": "IO", "blocks": (16, 16, 16)},
            "transformer.h.1.mlp.c_proj.weight": {"layout": "IO"},
        },
    ),
    "bert": case(
        "BertConfig BertForMaskedLM",
        {**SIZES, **TEXT},
        IDS,
        {
            "*embeddings.*": "keep",
            "*.encoder.*.LayerNorm.*": "keep",
            "*.query.weight": "transit",
            "*.key.weight": "transit",
            "*.value.weight": "transit",
            "*.intermediate.dense.weight": "transit",
            "*.output.dense.weight": "zero",
            "bert.encoder.*.query.bias": "bias",
            "bert.encoder.*.key.bias": "bias",
            "bert.encoder.*.value.bias": "bias",
            "bert.encoder.*.dense.bias": "bias",
            "cls.predictions.bias": "bias",
            "cls.predictions.transform.dense.weight": "transit",
            "cls.predictions.transform.dense.bias": "bias",
            "cls.predictions.transform.LayerNorm.*": "keep",
        },
    ),
    "vit": case(
        "ViTConfig ViTForImageClassification",
        {**SIZES, "image_size": 8, "patch_size": 4, "num_labels": 5},
        image(1, 3, 8, 8),
        {
            "vit.embeddings.cls_token": "keep",
            "vit.embeddings.position_embeddings": "keep",
            "vit.embeddings.patch_embeddings.projection.weight": "transit",
            "vit.embeddings.patch_embeddings.projection.bias": "bias",
            **tower("vit.layers.?*", "o_proj", "layernorm_*"),
            "vit.layernorm.*": "keep",
            "classifier.weight": "transit",
            "classifier.bias": "bias",
        },
    ),
    "t5": case(
        "T5Config T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
        {"input_ids": IDS, "decoder_input_ids": IDS},
        T5,
    ),
    "llama": case("LlamaConfig LlamaForCausalLM", GROUPED, IDS, {**LLAMA, **GATED}),
    "qwen3": case(
        "Qwen3Config Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}, IDS, {**LLAMA, **GATED}
    ),
    "phi3": case(
        "Phi3Config Phi3ForCausalLM",
        GROUPED,
        IDS,
        {
            "model.embed_tokens.weight": "keep",
            "*norm.weight": "keep",
            "*.qkv_proj.weight": "transit",
            "*.o_proj.weight": "zero",
            "*.gate_up_proj.weight": "transit",
            "*.down_proj.weight": "zero",
            "lm_head.weight": "transit",
        },
        {
            "model.layers.0.self_attn.qkv_proj.weight": {"layout": "OI", "blocks": (16, 8, 8)},
            "model.layers.0.mlp.gate_up_proj.weight": {"layout": "OI", "blocks": (32, 32)},
        },
    ),
    "glm": case(  # rotary embeddings cut each head in two: that packs nothing
        "GlmConfig GlmForCausalLM",
        {**GROUPED, "head_dim": 8, "attention_bias": True},
        IDS,
        {
            "model.embed_tokens.weight": "keep",
            "*norm.weight": "keep",
            **ATTENTION,
            "*.[qkv]_proj.bias": "bias",
            "*.o_proj.weight": "zero",
            "*.gate_up_proj.weight": "transit",
            "*.down_proj.weight": "zero",
            "lm_head.weight": "transit",
        },
        {
            "model.layers.0.self_attn.k_proj.weight": {"layout": "OI"},
            "model.layers.0.mlp.gate_up_proj.weight": {"layout": "OI", "blocks": (32, 32)},
        },
    ),
    "mixtral": case(
        "MixtralConfig MixtralForCausalLM",
        {**GROUPED, "num_local_experts": 4},
        IDS,
        {**LLAMA, **MIXTURE},
        {
            "model.layers.0.mlp.experts.gate_up_proj": {"layout": "EOI", "blocks": (32, 32)},
            "model.layers.0.mlp.experts.down_proj": {"layout": "EOI"},
        },
    ),
    "mixtral, one expert after the other": case(  # which depends on values
        "MixtralConfig MixtralForCausalLM",
        {**GROUPED, "num_local_experts": 4, "experts_implementation": "eager"},
        IDS,
        {**LLAMA, **MIXTURE},
        {
            "model.layers.0.mlp.experts.gate_up_proj": {
                "layout": "EOI",
                "blocks": (32, 32),
                "parts": "EO",
            },
            "model.layers.0.mlp.experts.down_proj": {"layout": "EOI", "parts": "E"},
        },
    ),
    "mixtral, in batches": case(
        "MixtralConfig MixtralForCausalLM",
        {**GROUPED, "num_local_experts": 4, "experts_implementation": "batched_mm"},
        IDS,
        {**LLAMA, **MIXTURE},
        {
            "model.layers.0.mlp.experts.gate_up_proj": {"layout": "EOI", "blocks": (32, 32)},
            "model.layers.0.mlp.experts.down_proj": {"layout": "EOI"},
        },
    ),
    "qwen3-moe": case(
        "Qwen3MoeConfig Qwen3MoeForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "moe_intermediate_size": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        IDS,
        {**LLAMA, **MIXTURE},
        {"model.layers.1.mlp.experts.gate_up_proj": {"layout": "EOI", "blocks": (12, 12)}},
    ),
    "mamba": case(
        "MambaConfig MambaForCausalLM",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "state_size": 4,
            "time_step_rank": 3,
            **TEXT,
        },
        IDS,
        {
            "backbone.embeddings.weight": "keep",
            "*norm*.weight": "keep",
            "*.A_log": "keep",
            "*.D": "keep",
            "*.in_proj.weight": "transit",
            "*.conv1d.weight": "transit",
            "*.conv1d.bias": "bias",
            "*.x_proj.weight": "transit",
            "*.dt_proj.weight": "transit",
            "*.dt_proj.bias": "keep",  # softplus takes its sum: a time step
            "*.out_proj.weight": "zero",
        },
        {
            "backbone.layers.0.mixer.in_proj.weight": {"layout": "OI", "blocks": (32, 32)},
            "backbone.layers.0.mixer.x_proj.weight": {"layout": "OI", "blocks": (3, 4, 4)},
            "backbone.layers.0.mixer.conv1d.weight": {"layout": "OIW", "groups": 32, "tap": (3,)},
        },
    ),
    "convnext": case(
        "ConvNextConfig ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "num_labels": 5},
        image(1, 3, 32, 32),
        {
            "*norm.*": "keep",
            "*.downsampling_layer.0.*": "keep",
            "*.layer_scale_parameter": "keep",
            "*.patch_embeddings.weight": "transit",
            "*.dwconv.weight": "transit",
            "*.pwconv1.weight": "transit",
            "*.pwconv2.weight": "zero",
            "*.downsampling_layer.1.weight": "transit",
            "*.patch_embeddings.bias": "bias",
            "*.dwconv.bias": "bias",
            "*.pwconv?.bias": "bias",
            "*.downsampling_layer.1.bias": "bias",
            "classifier.weight": "transit",
            "classifier.bias": "bias",
        },
        {
            "convnext.encoder.stages.0.layers.0.dwconv.weight": {
                "layout": "OIHW",
                "groups": 8,
                "tap": (3, 3),
            }
        },
    ),
    "whisper": case(
        "WhisperConfig WhisperForConditionalGeneration",
        {
            "d_model": 16,
            **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
            "vocab_size": 50,
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "max_target_positions": 12,
            "pad_token_id": 0,
            "decoder_start_token_id": 1,
            **SPECIAL,
        },
        {"input_features": image(1, 8, 20), "decoder_input_ids": IDS[:1]},
        {
            "*.embed_*.weight": "keep",
            "*layer_norm.*": "keep",
            "*.encoder.conv?.weight": "transit",
            "*.encoder.conv?.bias": "bias",
            "*_attn*.[qkv]_proj.weight": "transit",
            "*_attn*.[qv]_proj.bias": "bias",
            "*.out_proj.weight": "zero",
            "*.out_proj.bias": "bias",
            "*.fc1.weight": "transit",
            "*.fc2.weight": "zero",
            "*.fc?.bias": "bias",
        },
        {"model.encoder.conv2.weight": {"layout": "OIW", "tap": (1,)}},
    ),
    "clip": case(
        "CLIPConfig CLIPModel",
        {
            "text_config": {**SIZES, **TEXT, **SPECIAL},
            "vision_config": {**SIZES, "image_size": 8, "patch_size": 4},
            "projection_dim": 12,
        },
        {"input_ids": IDS, "pixel_values": image(2, 3, 8, 8)},
        {
            "logit_scale": "keep",
            "*.token_embedding.weight": "keep",
            "*.position_embedding.weight": "keep",
            "*.class_embedding": "keep",
            "*.patch_embedding.weight": "transit",
            "*.*layer*norm.*": "keep",
            "*.pre_layrnorm.*": "keep",
            **tower("*.layers.?*", "out_proj", "layer_norm?"),
            "text_projection.weight": "transit",
            "visual_projection.weight": "transit",
        },
    ),
}

FULL = {
    "llama-3-70b": case(
        "LlamaConfig LlamaForCausalLM",
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        IDS,
        {**LLAMA, **GATED},
    ),
    "mixtral-8x7b": case("MixtralConfig MixtralForCausalLM", {}, IDS, {**LLAMA, **MIXTURE}),
    "gpt2-xl": case(
        "GPT2Config GPT2LMHeadModel", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, IDS, GPT2
    ),
}
