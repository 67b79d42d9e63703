"""Models of Keras: its applications, and tiny configurations of keras_hub where it is installed."""

from __future__ import annotations

import inspect
from typing import Any

from docs.evidence._zoo_build import CannotBuildError, said

Row = dict[str, Any]

APPLICATIONS = (  # not their deeper or wider forms
    "ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2",
    "InceptionV3", "MobileNet", "MobileNetV2", "MobileNetV3Large", "MobileNetV3Small",
    "NASNetLarge", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "VGG19", "Xception",
)  # fmt: skip
HUB = (
    "Albert", "Bart", "Bert", "Bloom", "CSPNet", "DINOV2", "DINOV3", "DebertaV3", "DeiT",
    "DenseNet", "DistilBert", "ESM2", "EfficientNet", "Electra", "FNet", "Falcon", "GPT2",
    "GPTNeoX", "Gemma", "Gemma3", "GptOss", "Llama", "Mistral", "Mixtral", "Moonshine", "OPT",
    "Phi3", "Qwen", "Qwen3", "Qwen3Moe", "QwenMoe", "ResNet", "Roberta", "RoformerV2", "SmolLM3",
    "SwinTransformer", "T5", "VGG", "ViT", "Whisper", "XLMRoberta", "XLNet",
)  # fmt: skip
LENGTH = 8  # tokens

_LAYERS = ("num_layers", "encoder_num_layers", "decoder_num_layers")
_HEADS = ("num_heads", "num_query_heads", "num_attention_heads", "encoder_num_heads",
          "decoder_num_heads", "num_key_value_heads")  # fmt: skip
_WIDE = ("intermediate_dim", "moe_intermediate_dim", "shared_expert_intermediate_dim", "mlp_dim")
_TINY: dict[str, Any] = {
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 2),
    **dict.fromkeys(_WIDE, 32),
    "vocabulary_size": 64,
    "vocab_size": 64,
    "hidden_dim": 16,
    "embedding_dim": 16,
    "filter_dim": 16,
    "head_dim": 8,
    "head_size": 8,
    "num_experts": 4,
    "top_k": 2,
    "max_sequence_length": 16,
    "image_shape": (32, 32, 3),
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depths": (2, 2),
    "window_size": 4,
    "stackwise_num_repeats": (2, 2),
    "stackwise_num_filters": (16, 32),
    "stackwise_num_blocks": (2, 2),
    "stackwise_num_strides": (1, 2),
    "stackwise_depth": (1, 2),
    "stackwise_strides": (1, 2),
    "stem_filters": 16,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "input_conv_filters": (16,),
    "input_conv_kernel_sizes": (3,),
    "layer_types": ("full_attention",) * 2,
    "rope_layer_enabled_list": (1, 1),
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 16,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
}
"""What constructors of keras_hub are given, by the names of their arguments."""
_OWN: dict[str, dict[str, Any]] = {
    "CSPNet": {"block_type": "dark_block", "stage_type": "dark"},
    "EfficientNet": {
        "stackwise_width_coefficients": (1, 1),
        "stackwise_depth_coefficients": (1, 1),
        "stackwise_kernel_sizes": (3, 3),
        "stackwise_input_filters": (16, 16),
        "stackwise_output_filters": (16, 32),
        "stackwise_expansion_ratios": (1, 4),
        "stackwise_squeeze_and_excite_ratios": (0.25, 0.25),
        "stackwise_block_types": ("fused", "unfused"),
        "num_features": 32,
        "input_shape": (32, 32, 3),
    },
    "Phi3": {"num_key_value_heads": 1},
    "ResNet": {
        "block_type": "basic_block",
        "use_pre_activation": False,
        "input_conv_filters": (64,),
        "stackwise_num_filters": (64, 64),
    },
    "SwinTransformer": {"num_heads": (2, 2), "patch_size": 4},
}


def names() -> list[str]:
    """Return family/name of all models."""
    from docs.evidence._zoo_others import installed

    hub = HUB if installed("keras_hub") else ()
    return [*(f"keras/{name}" for name in APPLICATIONS), *(f"keras_hub/{name}" for name in hub)]


def made(family: str, name: str) -> Any:
    """Return a model, always of the same numbers."""
    import keras

    keras.utils.set_random_seed(0)
    if family == "keras":
        side = 75 if name in ("InceptionV3", "InceptionResNetV2", "Xception") else 64
        options = {"input_shape": (side, side, 3), "classes": 10}
        kind = getattr(keras.applications, name)  # a saturated softmax would hide its gradients
        return kind(weights=None, classifier_activation=None, **options)
    import keras_hub

    kind = getattr(keras_hub.models, f"{name}Backbone")
    given = _TINY | _OWN.get(name, {})
    taken = inspect.signature(kind.__init__).parameters
    needed = {key for key, one in taken.items() if one.default is one.empty}
    always = {"max_sequence_length", "image_shape", "top_k", *_OWN.get(name, {})} & {*taken}
    return kind(**{key: given[key] for key in needed | always if key in given})


def samples(model: Any) -> Any:
    """Return random inputs: by the names of those of a model, masks of ones, tokens, or floats."""
    import keras
    import numpy as np

    random = np.random.default_rng(0)
    scalers = (keras.layers.Rescaling, keras.layers.Normalization)
    is_raw = any(isinstance(layer, scalers) for layer in model._flatten_layers())

    def one(name: str, given: Any) -> Any:
        long = 2000 if name == "encoder_input_values" else LENGTH  # a wave
        shape = [2 if at == 0 else size or long for at, size in enumerate(given.shape)]
        if "mask" in name:
            return np.ones(shape, given.dtype)
        if "int" in given.dtype:
            return random.integers(0, 2 if "segment" in name else 60, shape).astype(given.dtype)
        if is_raw:  # it subtracts a mean of pixels, and takes other pictures for black ones
            return random.uniform(0, 255, shape).astype(given.dtype)
        return random.normal(size=shape).astype(given.dtype)

    if isinstance(model.input, dict):
        return {name: one(name, given) for name, given in model.input.items()}
    return keras.tree.map_structure(lambda given: one(given.name, given), model.input)


def measure(family: str, name: str) -> Row:
    """Measure a model: finite, alive, and with gradients after a step."""
    import keras
    import numpy as np

    import idinit_ref_tensorflow as irk
    from docs.evidence._zoo_measure import is_alive, verdict
    from idinit_ref.errors import IDInitError

    try:
        model = made(family, name)
        given = samples(model)
        model(given, training=False)
    except Exception as problem:  # whatever a constructor may raise
        raise CannotBuildError(said(problem)) from problem
    row: Row = {"class": type(model).__name__, "parameters": int(model.count_params())}
    row["inputs"] = [*given] if isinstance(given, dict) else ["images"]
    try:
        report = irk.init_(model, given)
    except IDInitError as problem:
        return {**row, "verdict": "refused", "why": " ".join(str(problem).split())[:300]}
    held = list(report.roles.values())
    row["roles"] = {role: held.count(role) for role in ("transit", "zero", "bias", "keep")}
    outs = [np.asarray(out) for out in keras.tree.flatten(model(given, training=False))]
    row["constant"] = int(all(np.array_equal(out[0], out[1]) for out in outs))
    variables = model.trainable_variables
    names, shapes = [v.path for v in variables], [v.shape for v in variables]
    ours, finite = dead(model, given)
    newly = sorted(ours and ours - dead(made(family, name), given)[0])
    row |= {
        "finite": int(finite and all(bool(np.isfinite(out).all()) for out in outs)),
        "dead": [names[k] for k in newly],
        "dead_matrices": [names[k] for k in newly if len(shapes[k]) > 1],
        **{key: [] for key in ("missed", "vain", "false", "effects")},
    }
    row["alive"] = is_alive(row, len(names))
    return {**row, **verdict(row)}


def dead(model: Any, given: Any) -> tuple[set[int], bool]:
    """Return the variables without a gradient after a step, and whether all is finite."""
    import keras
    import numpy as np
    import tensorflow as tf

    step, finite = keras.optimizers.AdamW(1e-3), True
    for last in (False, True):
        draws = np.random.default_rng(1)
        with tf.GradientTape() as tape:
            outs = keras.tree.flatten(model(given, training=False))
            floats = [out for out in outs if out.dtype.is_floating]
            loss = sum(tf.reduce_sum(tf.cast(out, "float32") * draws.normal(size=out.shape))
                       for out in floats)  # fmt: skip
        found = tape.gradient(loss, model.trainable_variables)
        arrays = [None if g is None else np.asarray(tf.convert_to_tensor(g)) for g in found]
        finite = finite and all(bool(np.isfinite(g).all()) for g in arrays if g is not None)
        if not last:
            pairs = zip(found, model.trainable_variables, strict=True)
            step.apply_gradients((g, v) for g, v in pairs if g is not None)
    return {k for k, g in enumerate(arrays) if g is None or not g.any()}, finite
