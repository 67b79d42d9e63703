"""Tiny configurations: a default one is shrunk by the names of its fields."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VOCABULARY = 160

_WIDE = re.compile(
    r"hidden_size|hidden_sizes|_dim$|^dim|dims$|d_model|d_ff|d_kv|intermediate|n_embd|n_inner|embed|"
    r"ffn|lora_rank|channels|width|head_size|filters|feedforward|^d_|_size_global|hidden_channels|"
    r"projector_|bottleneck|d_inner|d_head$|d_state$|channel_list|sections?$|pos_feats|inner_|state_size|depth_dim"
)
_NOT_WIDE = re.compile(
    r"num_channels|^in_channels|in_chans|max_|position|^out_channels$|token|_id|num_embeddings|"
    r"dropout|input_channels|image_channels|audio_channels|n_embeds|embeds_|channels_last|"
    r"codebook_dim$|mel_dim|model_in_dim|mask_input|num_input|latent_channels"
)
_DEEP = re.compile(
    r"^(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_encoder_layers|"
    r"num_decoder_layers|layers|n_layer|num_hidden_layers_.*|depth|num_blocks|resampler_depth|"
    r"num_layers_per_stack|.*_num_layers|.*_num_hidden_layers|.*_layers|num_.*_layers|.*_depth)$"
)
_NOT_DEEP = re.compile(r"no_rope|cross_attention_layers|feat_extract|window_layers|keep|mlp_only")
_LENGTHS = re.compile(
    r"max_.*positions?(_embeddings)?$|^n_positions$|^n_ctx$|max_seq_len|seq_length$"
)
_SLICES = re.compile(
    r"^(depths|block_sizes|.*num_blocks|blocks_per_stage|stage_numb_of_layers|num_block_repeats)$"
)
_INDICES = re.compile(r"index(?!er)|indices|idx")


def _cut(config: Any, name: str, deep: int) -> Any:
    """Return how many layers a configuration keeps: some of every kind that it names."""
    kinds = [value for key, value in vars(config).items() if re.search("layer.*type", key)]
    kinds = [value for value in kinds if isinstance(value, (list, tuple)) and len(value) == deep]
    out = len(vars(config).get("_out_indices") or ()) if "stage_names" in vars(config) else 0
    return min(deep, max(2, out, *(len(dict.fromkeys(map(str, value))) for value in kinds), 2))


def _cut_stages(config: Any, deep: int, kept: int) -> None:
    """Let a backbone whose stages are its layers return the last ones that it still has."""
    names = vars(config).get("stage_names")
    if names is None or len(names) != deep + 1:
        return
    out = range(kept + 1)[-max(1, len(vars(config).get("_out_indices") or ())) :]
    _set(config, "stage_names", names[: kept + 1])
    _set(config, "_out_indices", list(out))
    _set(config, "_out_features", [names[at] for at in out])


def configurations(config: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield a configuration and those in it."""
    from transformers import PretrainedConfig

    seen = set() if seen is None else seen
    if id(config) in seen or config is None:
        return
    seen.add(id(config))
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from configurations(value, seen)


def shrink(config: Any, by: int, image: int | None, fill: bool = False) -> None:
    """Divide widths by a number, cut depth, vocabulary and image; in place.

    `fill` gives numbers to fields that are None by default, and leaves widths that kernels and
    groups of channels divide.
    """
    ids: dict[str, int] = {}
    for part in configurations(config):
        _shrink_depth(part)
        _shrink_width(part, by, fill)
        _shrink_vocabulary(part, ids)
        _shrink_counts(part)
        _shrink_image(part, image)
        if fill:
            _fill(part)
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    if hasattr(text, "hidden_size") and "out_hidden_size" in getattr(vision, "__dict__", {}):
        _set(vision, "out_hidden_size", text.hidden_size)


_LACKED = {
    "dropout": 0.0, "dropout_rate": 0.0, "layerdrop": 0.0, "initializer_range": 0.02,
    "pad_token_id": 0, "rope_theta": 1e4,
}  # fmt: skip
"""What some code asks of a configuration that has no such field."""
_FILLED = {
    "vocab_size": VOCABULARY, "context_length": 8, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "top_k_experts": 2, "moe_intermediate_size": 16, "mask_token_id": 4,
    "moe_top_k": 2, "num_local_experts": 4, "n_shared_experts": 1,
}  # fmt: skip


def _fill(config: Any) -> None:
    """Give numbers to fields that are None by default, and that the code needs."""
    have = vars(config)
    deep, heads = have.get("num_hidden_layers"), have.get("num_attention_heads")
    also: dict[str, Any] = {"num_key_value_heads": heads}
    if isinstance(heads, int) and isinstance(have.get("hidden_size"), int):
        also["head_dim"] = have["hidden_size"] // heads
    if isinstance(deep, int):
        first = "conv" if "lfm2" in config.model_type else "full_attention"
        also["layer_types"] = [first, *["full_attention"] * (deep - 1)]
        also["mlp_layer_types"] = ["dense", *["sparse"] * (deep - 1)]
    for name, value in (_FILLED | also).items():
        if name in have and have[name] is None:
            _set(config, name, value)
    for name, value in (_LACKED | {"num_key_value_heads": heads or 1}).items():
        if not hasattr(config, name):
            _set(config, name, value)


_COUNTS = {  # what a tiny model has fewer of, whatever the default is
    "num_queries": 10,
    "index_topk": 8,
    "top_k": 2,
    "num_experts_per_tok": 2,
    "topk_group": 1,
    "n_group": 1,
    "moe_topk": 2,
    "moe_k": 2,
    "num_groups": 4,
    "norm_num_groups": 4,
    "num_denoising": 0,
    "two_stage_num_proposals": 10,
    "num_self_attends_per_block": 2,
    "num_latents": 8,
    "num_query_tokens": 4,
    "chunk_size": 8,
    "index_n_heads": 4,
    "router_topk": 2,
    "num_experts_per_token": 2,
    "experts_per_token": 2,
    "resampler_n_latents": 4,
    "global_rel_pos_buckets": 8,
    "n_codebooks": 3,
    "num_codebooks": 4,
    "num_quantizers": 4,
    "max_source_positions": 64,
    "moe_num_experts": 8,
    "moe_num_shared_experts": 1,
    "expert_num": 4,
    "num_moe_experts": 8,
    "num_kv_shared_layers": 0,
    "visual_feat_dim": 32,
    "num_expert_group": 1,
    "max_text_length": 8,
    "sinkhorn_iterations": 3,
    "context_length": 128,
}


_WIDTHS = ("hidden_size", "d_model", "embed_dim", "n_embd")
_HEADS_OF = (
    "num_attention_heads",
    "num_heads",
    "n_head",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "attention_heads",
)


def _shrink_counts(config: Any) -> None:
    for name, most in _COUNTS.items():
        value = vars(config).get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > most:
            _set(config, name, most)
    if "use_cache" in vars(config):
        _set(config, "use_cache", False)
    if "width_coefficient" in vars(config):  # EfficientNet: factors of all widths and depths
        _set(config, "width_coefficient", 0.25)
        _set(config, "depth_coefficient", 1.0)
    if "upsample_groups" in vars(config):  # a group a channel
        _set(config, "upsample_groups", vars(config)["hidden_size"])
    if vars(config).get("max_keypoints") == -1:  # as many as there are
        _set(config, "max_keypoints", 16)
    if vars(config).get("vocabulary_map", 1) is None:
        _set(config, "vocabulary_map", {"<image>": VOCABULARY - 1})
    if config.model_type == "reformer":  # it learns in training alone: nothing may be random
        for name in vars(config):
            if "dropout" in name:
                _set(config, name, 0.0)
        _set(config, "axial_pos_shape", [4, 4])  # of as many tokens
    if "gnn_layers_types" in vars(config):
        _set(config, "gnn_layers_types", list(dict.fromkeys(vars(config)["gnn_layers_types"])))
    if vars(config).get("prediction_length", 1) is None:
        _set(config, "prediction_length", 8)
    width = next((w for k in _WIDTHS if isinstance(w := vars(config).get(k), int)), None)
    for name in _HEADS_OF if width and vars(config).get("head_dim") is None else ():
        value = vars(config).get(name)
        if isinstance(value, int) and value > 0 and (width % value or width // value % 4):
            heads = [h for h in range(1, value + 1) if width % h == 0 and width // h % 4 == 0]
            _set(config, name, max(heads, default=math.gcd(width, value)))
            groups = vars(config).get("num_key_value_heads")
            if isinstance(groups, int):
                _set(config, "num_key_value_heads", math.gcd(groups, vars(config)[name]))
    rope = vars(config).get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope and "hidden_size" in vars(config):
        heads = vars(config).get("num_attention_heads") or 1
        head = vars(config).get("head_dim") or vars(config)["hidden_size"] // heads
        third, rest = divmod(int(head * (rope.get("partial_rotary_factor") or 1)) // 2, 3)
        sections = [third + rest, third, third]  # of time first, or last
        rope["mrope_section"] = sections[:: -1 if "ernie" in config.model_type else 1]


def _set(config: Any, name: str, value: Any) -> None:
    vars(config)[name] = value  # past validators, which would see half a change


def _shrink_depth(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, bool) or _NOT_DEEP.search(name):
            continue
        if _DEEP.match(name) and isinstance(value, int) and value > 2:
            kept = _cut(config, name, value)
            _set(config, name, kept)
            _cut_stages(config, value, kept)
            for key, other in list(vars(config).items()):
                if not isinstance(other, (list, tuple)) or len(other) != value:
                    continue
                if re.search("layer.*type", key):
                    every = list(dict.fromkeys(map(str, other)))
                    more = [kind for kind in other if kind not in every]
                    _set(config, key, type(other)([*every, *([other[0]] * kept), *more][:kept]))
                elif not _INDICES.search(key) and key != "stage_names":
                    _set(config, key, type(other)(other[:kept]))
            for key, other in list(vars(config).items()):
                is_set = key == "_out_indices" and "stage_names" in vars(config)
                if not is_set and _INDICES.search(key) and isinstance(other, (list, tuple)):
                    inside = [
                        kept - 1 if not isinstance(i, int) else min(i, kept - 1) for i in other
                    ]
                    _set(config, key, type(other)(dict.fromkeys(inside)))
            if hasattr(config, "first_k_dense_replace") and config.first_k_dense_replace:
                _set(config, "first_k_dense_replace", 1)
        elif _SLICES.match(name) and _are_integers(value):
            _set(config, name, type(value)(min(each, 2) for each in value))


def _asks(config: Any, word: str) -> bool:
    """Whether the code of a model names a field."""
    module = sys.modules[type(config).__module__].__file__ or ""
    file = Path(module.replace("configuration_", "modeling_"))
    return file.exists() and word in file.read_text()


def _are_integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, int) for each in value)


def _divided(value: Any, by: int, unit: int = 1) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    unit = 1 if value % unit else unit
    while by > 1 and (value % by or value // by < 2 or value // by % unit):
        by //= 2
    return value // by


def _shrink_width(config: Any, by: int, aligned: bool) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, dict):
            if "rope_theta" in value and _asks(config, "mrope_section"):
                value.setdefault("mrope_section", [16, 24, 24])
            for key, inner in value.items():
                if str(key).endswith("section") and isinstance(inner, (list, tuple)):
                    value[key] = [_divided(each, by) for each in inner]
            continue
        if not _WIDE.search(name) or _NOT_WIDE.search(name):
            continue
        unit = (32 if "channels" in name else 4) if aligned else 1
        if isinstance(value, (list, tuple)):
            _set(config, name, type(value)(_divided(each, by, unit) for each in value))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 16:
            _set(config, name, _divided(value, by, unit))


def _shrink_vocabulary(config: Any, ids: dict[str, int]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, bool):
            continue
        if re.search("vocab_size|group_vocab$", name) and isinstance(value, int):
            _set(config, name, min(value, VOCABULARY))
        elif re.search(r"token_(id|index)$|_token$|token_ids$", name):
            if isinstance(value, int) and value >= VOCABULARY - 40:
                _set(config, name, ids.setdefault(name, VOCABULARY - 1 - len(ids)))
            elif _are_integers(value) and value and not isinstance(value[0], bool):
                small = [ids.setdefault(f"{name}{i}", VOCABULARY - 1 - len(ids)) for i in value]
                _set(config, name, type(value)(small))
        elif _LENGTHS.match(name) and isinstance(value, int):
            _set(config, name, min(value, 128))
        elif re.search(r"num_(local_|routed_)?experts$|n_routed_experts", name):
            _set(config, name, min(value, 8) if isinstance(value, int) else value)


def _shrink_image(config: Any, image: int | None) -> None:
    if image is None:
        return
    patch = getattr(config, "patch_size", None)
    patch = patch if isinstance(patch, int) and patch > 4 else None
    side = 4 * patch if patch else image
    for name in ("image_size", "pretrain_image_size", "input_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > side and (name != "input_size" or value == 224):
            _set(config, name, side)
        elif isinstance(value, (list, tuple)) and len(value) == 2 and min(value) > side:
            _set(config, name, type(value)([side, side]))
