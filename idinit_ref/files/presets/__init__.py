"""Real models' tensors, name and shape, taken from their definitions; data, no framework."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import OptionError, message

__all__ = ["Preset", "load", "names"]

_FOLDER = Path(__file__).parent


class Preset(NamedTuple):
    """A model's tensors (tied ones once, stored buffers included) and where they come from.

    ``source`` holds the class, its configuration's class and options, and the version of
    transformers; ``parameters`` counts without buffers.
    """

    name: str
    source: dict[str, Any]
    parameters: int
    tensors: dict[str, tuple[int, ...]]


def names() -> tuple[str, ...]:
    """Return the names of all presets, sorted.

    >>> names()
    ('bert-base', 'gpt2', 'llama-3-8b', 'resnet50', 'vit-b-16')
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def load(name: str) -> Preset:
    """Return a preset by its name, one of `names`; OptionError with the nearest ones else.

    >>> load("gpt2").tensors["transformer.h.0.attn.c_attn.weight"]
    (768, 2304)
    """
    if name not in names():
        near = get_close_matches(name, names(), 1)
        should = f"it should be one of {', '.join(names())}"
        cure = f"did you mean {near[0]!r}?" if near else "pick one"
        raise OptionError(message("preset", name, should, cure))
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    content["tensors"] = {key: tuple(shape) for key, shape in content["tensors"].items()}
    return Preset(**content)
