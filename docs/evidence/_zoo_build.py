"""Tiny models of every type of transformers, and inputs for them.

No list of sizes is kept for hundreds of types. A default configuration is shrunk by the names of
its fields, a class is looked for that takes it, and inputs are made by the names of the arguments
of ``forward``. If the forward pass fails, the next smaller change is tried.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from docs.evidence._zoo_shrink import VOCABULARY, configurations, shrink

LENGTH = 16  # tokens
BATCH = 2
PATIENCE = 6  # seconds of tries for one type
MOST = 48_000_000  # parameters of a tiny model


# Classes ------------------------------------------------------------------------------------------

_HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MASKED_LM", "CAUSAL_LM",
    "OBJECT_DETECTION", "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION",
    "MASK_GENERATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "CTC", "TEXT_TO_WAVEFORM",
)  # fmt: skip


def classes(kind: str, config: Any) -> list[type]:
    """Return the classes that take a configuration: with a head first, then any."""
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto

    found: list[type] = []
    heads = [*(f"MODEL_FOR_{name}" for name in _HEADS), "MODEL"]
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):  # both of the two
        heads = ["MODEL_FOR_IMAGE_TEXT_TO_TEXT", "MODEL", *heads]
    for head in heads:
        names = getattr(modeling_auto, f"{head}_MAPPING_NAMES").get(kind)
        for name in (names,) if isinstance(names, str) else names or ():
            found += [cls for cls in [_of_transformers(name)] if cls is not None]
    module = type(config).__module__.replace("configuration_", "modeling_")
    try:
        held = vars(importlib.import_module(module))
    except ImportError:
        held = {}
    own = [
        cls
        for cls in held.values()
        if inspect.isclass(cls)
        and issubclass(cls, PreTrainedModel)
        and cls.__module__ == module
        and getattr(cls, "config_class", None) is type(config)
        and not cls.__name__.endswith("PreTrainedModel")
    ]
    own.sort(key=lambda cls: ("Model" not in cls.__name__, "For" not in cls.__name__))
    return list(dict.fromkeys([*found, *own]))[:4]


def _of_transformers(name: str) -> type | None:
    import transformers

    return getattr(transformers, name, None)


# Inputs -------------------------------------------------------------------------------------------


def _find(config: Any, *names: str, default: Any = None) -> Any:
    """Return a field of a configuration, or of one in it."""
    for part in configurations(config):
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _side(config: Any) -> tuple[int, int]:
    vision = getattr(config, "vision_config", None)
    size = None
    for part in (vision, config):
        if part is not None and size is None:
            size = _find(part, "image_size", "input_size", default=None)
    size = 64 if size is None else size
    if isinstance(size, dict):
        size = (size.get("height", 64), size.get("width", 64))
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _ids(config: Any, length: int = LENGTH) -> torch.Tensor:
    most = min(VOCABULARY, _find(config, "vocab_size", default=VOCABULARY) or VOCABULARY)
    return torch.randint(3 % most, max(4, most - 60 if most > 100 else most), (BATCH, length))


def _pixels(config: Any) -> torch.Tensor:
    channels = _find(
        getattr(config, "vision_config", config), "num_channels", "in_channels", "in_chans"
    )
    channels = channels if isinstance(channels, int) else 3
    return torch.randn(BATCH, channels, *_side(config))


def _video(config: Any) -> torch.Tensor:
    frames = _find(config, "num_frames", "frames_per_clip", default=8)
    return torch.randn(BATCH, frames, 3, *_side(config))


def _features(config: Any) -> torch.Tensor:
    mel = _find(
        config, "num_mel_bins", "feature_size", "input_feat_per_channel", "mel_bins", default=80
    )
    long = _find(config, "max_source_positions", default=None)
    return torch.randn(BATCH, mel, 2 * long if isinstance(long, int) else 128)


def _wave(config: Any) -> torch.Tensor:
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_length"):  # a spectrogram
        return torch.randn(BATCH, config.max_length, config.num_mel_bins)
    if re.search("codec|dac|mimi|vocos|higgs|vibe|pe_audio", config.model_type):
        return torch.randn(BATCH, 1, 5760)
    return torch.randn(BATCH, 5760)


def _past(config: Any) -> int:
    length: int = _find(config, "context_length", default=16)
    return length + max(_find(config, "lags_sequence", default=[0]) or [0])


Maker = Callable[[Any], Any]
MAKERS: dict[str, Maker] = {
    "input_ids": _ids,
    "decoder_input_ids": lambda c: _ids(c, 6),
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "video": _video,
    "input_features": _features,
    "input_values": _wave,
    "audio_values": _wave,
    "audio": _wave,
    "bbox": lambda c: torch.randint(0, 60, (BATCH, LENGTH, 2)).repeat(1, 1, 2),
    "attention_mask": lambda c: torch.ones(BATCH, LENGTH, dtype=torch.long),
    "input_points": lambda c: torch.rand(BATCH, 1, 2, 2) * _side(c)[0],
    "past_values": lambda c: torch.randn(
        BATCH, _past(c), *([c.num_input_channels] if hasattr(c, "num_input_channels") else [])
    ),
    "past_time_features": lambda c: torch.randn(BATCH, _past(c), c.num_time_features),
    "past_observed_mask": lambda c: torch.ones(BATCH, _past(c)),
    "future_time_features": lambda c: torch.randn(BATCH, 8, c.num_time_features),
    "future_values": lambda c: torch.randn(BATCH, _find(c, "prediction_length", default=8)),
    "images": _pixels,
    "image": _pixels,
    "inputs_embeds": lambda c: torch.randn(BATCH, LENGTH, _find(c, "hidden_size", "d_model")),
    "hidden_states": lambda c: torch.randn(
        BATCH, LENGTH, getattr(c, "input_dim", None) or _find(c, "hidden_size", "d_model")
    ),
    "encoder_hidden_states": lambda c: torch.randn(
        BATCH, 6, _find(c, "encoder_hidden_size", "cross_attention_dim", "hidden_size", "d_model")
    ),
    "states": lambda c: torch.randn(BATCH, LENGTH, c.state_dim),
    "actions": lambda c: torch.randn(BATCH, LENGTH, c.act_dim),
    "rewards": lambda c: torch.randn(BATCH, LENGTH, 1),
    "returns_to_go": lambda c: torch.randn(BATCH, LENGTH, 1),
    "timesteps": lambda c: torch.arange(LENGTH).expand(BATCH, LENGTH).clone(),
    "flattened_patches": lambda c: torch.cat(
        [
            torch.randint(1, 4, (BATCH, LENGTH, 2)).float(),
            torch.randn(BATCH, LENGTH, _find(c, "patch_embed_hidden_size")),
        ],
        -1,
    ),
    "qformer_input_ids": _ids,
    "query_embeds": lambda c: torch.randn(BATCH, 4, _find(c, "hidden_size")),
    "target_sizes": lambda c: torch.tensor([[4, 4]] * BATCH),
    "visual_feats": lambda c: torch.randn(BATCH, 5, c.visual_feat_dim),
    "visual_pos": lambda c: torch.rand(BATCH, 5, c.visual_pos_dim),
    "input_features_mask": lambda c: torch.ones(BATCH, _features(c).shape[-1], dtype=torch.long),
    "aspect_ratio_ids": lambda c: torch.ones(BATCH, 1, dtype=torch.long),
    "aspect_ratio_mask": lambda c: torch.ones(
        BATCH, 1, _find(c, "max_num_tiles"), dtype=torch.long
    ),
    "merge_sizes": lambda c: torch.ones(BATCH, dtype=torch.long),
    "mask": lambda c: torch.ones(BATCH, _features(c).shape[-1], dtype=torch.bool),
    "context": lambda c: torch.randn(BATCH, LENGTH, _find(c, "hidden_size")),
    "spectrogram": lambda c: torch.randn(BATCH, LENGTH, _find(c, "model_in_dim", "num_mel_bins")),
}  # fmt: skip
_ALWAYS = (
    "bbox", "states", "actions", "returns_to_go", "timesteps", "past_values", "target_sizes",
    "visual_feats", "visual_pos",
)  # fmt: skip


_OPTIONAL = (
    "input_features_mask", "encoder_hidden_states", "past_time_features", "past_observed_mask",
    "future_values", "future_time_features", "decoder_input_ids", "bbox",
)  # fmt: skip


def inputs(model: Any, config: Any) -> Iterator[dict[str, Any]]:
    """Yield inputs that a model may take, the most telling first."""
    signature = inspect.signature(model.forward).parameters
    named = getattr(model, "main_input_name", "input_ids")
    main = named if isinstance(named, str) else named[0]
    must = [
        name
        for name, p in signature.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if "image_grid_thw" in signature and "input_ids" in signature:
        yield _of_patches(config)
    for grid in ("grid_thw", "image_grid_thw") if "input_ids" not in signature else ():
        for data in ("hidden_states", "pixel_values"):
            if grid in signature and data in signature:
                image = _of_patches(config)
                yield {data: image["pixel_values"], grid: image["image_grid_thw"]}
    many = ("input_ids", "pixel_values", "input_features", "input_values", "decoder_input_ids",
            "flattened_patches")  # fmt: skip
    tried: list[list[str]] = []
    also = [name for name in _ALWAYS if name in signature]
    for chosen in (
        [name for name in many if name in signature],
        [main],
        [name for name in (main, "decoder_input_ids") if name in signature],
        ["input_ids"],
        ["pixel_values"],
        ["input_features"],
        ["input_values"],
        ["inputs_embeds"],
    ):
        names = list(dict.fromkeys([*must, *chosen, *also]))
        names = [name for name in names if name in signature and name in MAKERS]
        if names and names not in tried:
            tried.append(names)
            with contextlib.suppress(AttributeError, TypeError):  # it lacks what these are made of
                yield {name: MAKERS[name](config) for name in names}


def _of_patches(config: Any) -> dict[str, Any]:
    """Return text and an image of 4 x 4 patches, laid out as rows."""
    vision = getattr(config, "vision_config", config)
    patch = getattr(vision, "patch_size", 14)
    times = getattr(vision, "temporal_patch_size", 1)
    merge = getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_size", None) or 2
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", 3)
    ids = _ids(config, LENGTH + 4)
    token = _find(config, "image_token_id", "image_token_index", default=0)
    ids[:, 2 : 2 + 16 // merge**2] = token
    kinds = torch.zeros_like(ids)
    kinds[ids == token] = 1
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(BATCH * 16, channels * times * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH),
        "mm_token_type_ids": kinds,
    }


def _mended(model: Any, given: dict[str, Any], config: Any, said: str) -> dict[str, Any] | None:
    """Return inputs of another form, as an error asks for them; None if it does not say."""
    new = dict(given)
    more = [name for name in inspect.signature(model.forward).parameters if name in _OPTIONAL]
    counts = re.search(r"tokens:? (\d+),?.* (?:features|length):? (\d+)", said)
    if counts and "input_ids" in given and counts[1] != counts[2]:
        kind = "audio" if re.search("audio", said, re.IGNORECASE) else "image"
        token = _find(config, f"{kind}_token_id", f"{kind}_token_index", default=None)
        count = int(counts[2]) // BATCH
        if not isinstance(token, int) or not 0 < count < 400:
            return None
        new["input_ids"] = _ids(config, count + 8)
        new["input_ids"][:, 2 : 2 + count] = token
        if "mm_token_type_ids" in given:
            new["mm_token_type_ids"] = (new["input_ids"] == token).long()
    elif "5D tensor" in said and "pixel_values" in given:
        new["pixel_values"] = torch.stack([given["pixel_values"]] * 2, 1)
    elif "expected 5, got 4" in said and given.get("pixel_values", torch.empty(0)).dim() == 4:
        frames = _find(config, "num_frames", default=1)
        new["pixel_values"] = torch.stack([given["pixel_values"]] * frames, 1)
    elif "expected 4, got 3" in said and "pixel_values" in given:
        new["pixel_values"] = given["pixel_values"][:, None]
    elif rows := re.search(r"\(\d+x(\d+) and (\d+)x\d+\)", said):
        for key, value in given.items():
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                continue
            if value.dim() > 2 and (value.shape[-2] == int(rows[2]) or key == "input_features"):
                new[key] = value.mT.contiguous()
            elif value.shape[-1] == int(rows[1]):  # an image is laid out as 4 x 4 patches
                before = (BATCH, 16) if value.dim() == 4 else value.shape[:-1]
                new[key] = torch.randn(*before, int(rows[2]))
    elif norm := re.search(r"normalized_shape=\[(\d+)\].*size\[([\d, ]+)\]", said):
        for key, value in given.items():
            if str([*getattr(value, "shape", ())]) == f"[{norm[2]}]":
                new[key] = torch.randn(BATCH, 64, int(norm[1]))
    elif both := re.search(r"cannot specify both (\w+) and (\w+)", said):
        new.pop(both[2], None)
    elif lacks := re.search(r"missing \d+ required \w+ arguments?: (.*)", said):
        names = re.findall(r"'(\w+)'", lacks[1])
        if not set(names) <= {*MAKERS}:
            return None
        new |= {name: MAKERS[name](config) for name in names}
    elif re.search("NoneType|must be given|cannot be `None`|is required", said):
        new |= {name: MAKERS[name](config) for name in more if name not in given}
    same = len(new) == len(given) and all(new[key] is given.get(key) for key in new)
    return None if same else new


# Trying -------------------------------------------------------------------------------------------


_UNFIT = re.compile(
    r"None|strides|divisible|empty\(\)|does not define|no attribute"
)  # what `fill` may mend


def build(kind: str) -> tuple[Any, dict[str, Any]]:
    """Return a tiny model of a type, in evaluation mode, and inputs that it runs with.

    Raises
    ------
    CannotBuild
        With the first thing that was said.
    """
    first = ""
    for model, given, _, problem in attempts(kind):
        if given is not None:
            if kind == "reformer":  # its backward pass refuses evaluation
                model.train()
            if not any(p.requires_grad for p in model.parameters()):
                raise CannotBuildError("all of its parameters are frozen")
            return model, given
        first = first or problem
    raise CannotBuildError(first or "no class takes its configuration")


class CannotBuildError(Exception):
    """No tiny model of a type runs."""


def attempts(kind: str) -> Iterator[tuple[Any, dict[str, Any] | None, str, str]]:
    """Yield (model, inputs, how, "") once it runs, and before that (None, None, how, error)."""
    begin, first = time.process_time(), ""
    ways = ((16, 64), (4, 64), (32, 64), (8, 64), (16, None), (2, 64), (1, 64))
    told: list[str] = []  # by every way, without its numbers
    for by, image, fill in ((*way, fill) for way in ways for fill in (False, True)):
        same = told.count(told[-1]) if told and told[-1] else 0
        if (fill and not _UNFIT.search(first)) or (same > 3 and by > 1):
            continue
        told.append("")
        how = f"widths / {by}, image {image}"
        try:
            config = _configuration(kind)
        except Exception as problem:  # whatever a configuration may raise
            yield None, None, "default configuration", said(problem)
            return
        shrink(config, by, image, fill)
        for cls in classes(kind, config):
            name = f"{cls.__name__}, {how}"
            try:
                with torch.device("meta"):
                    size = sum(p.numel() for p in cls(config).parameters())
            except Exception as problem:
                size = 0
                if by < 4:  # and it might be as large as its authors made it
                    yield None, None, name, said(problem)
                    continue
            if size > MOST:
                yield None, None, name, f"{size:,} parameters"
                continue
            try:
                torch.manual_seed(0)
                model = _with_codebooks(cls(config).float().eval())
            except Exception as problem:
                first, told[-1] = first or said(problem), told[-1] or _bare(said(problem))
                yield None, None, name, said(problem)
                continue
            for given in inputs(model, config):
                if time.process_time() - begin > PATIENCE:
                    return
                fitting, problem = _fitting(model, given, config)
                if fitting is not None:
                    yield model, fitting, how, ""
                    return
                first, told[-1] = first or problem, told[-1] or _bare(problem)
                yield None, None, f"{name}, {', '.join(given)}", problem


def _with_codebooks(model: Any) -> Any:
    """Draw the tables that wait empty for numbers of their own, before anything is made of them."""
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.dim() > 1 and not buffer.any():
            buffer.normal_()
    return model


def _bare(problem: str) -> str:
    return re.sub(r"\d+", "", problem)


def _configuration(kind: str) -> Any:
    """Return a default configuration, with the parts that are left out by default."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind]()
    lacks = [name for name in type(config).sub_configs if getattr(config, name, 0) is None]
    if lacks:
        with contextlib.suppress(Exception):  # then without
            config = CONFIG_MAPPING[kind](**{name: {} for name in lacks})
    for part in configurations(config):
        if "use_pretrained_backbone" in vars(part):
            vars(part)["use_pretrained_backbone"] = False
    return config


def _fitting(model: Any, given: dict[str, Any], config: Any) -> tuple[dict[str, Any] | None, str]:
    """Return inputs with which a model runs, these or as its errors ask, and the first error."""
    first = ""
    now: dict[str, Any] | None = given
    for _ in range(4):
        if now is None:
            break
        problem = runs(model, now)
        if problem is None:
            return now, ""
        first = first or said(problem)
        now = _mended(model, now, config, said(problem))
    return None, first


def runs(model: Any, given: Any) -> Exception | None:
    """Return what a forward pass raises."""
    try:
        with torch.no_grad():
            model(**given) if isinstance(given, dict) else model(*given)
    except Exception as problem:
        return problem
    return None


def said(problem: BaseException) -> str:
    """Return an error in a line."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]
