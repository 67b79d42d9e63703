"""Files that are not read here: what they are, and how to convert them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..core.text import short
from ..errors import CheckpointError, message
from .disk import source_of

_SAVE = "then safetensors.numpy.save_file"
_PICKLE = ("a pickle, which can run code", f"if you trust it, load it with what wrote it, {_SAVE}")
_TENSORFLOW = (
    "a checkpoint of TensorFlow",
    f"tf.train.load_checkpoint, get_tensor of each name, {_SAVE}",
)
_OTHERS = {  # by suffix
    ".ckpt": (
        "a checkpoint of Lightning or of TensorFlow 1",
        "of PyTorch, name it .pt; else load it with what wrote it, and save its weights",
    ),
    ".pb": ("a SavedModel of TensorFlow", "keras.Model.save_weights writes .weights.h5"),
    ".index": _TENSORFLOW,
    ".npy": ("a single array of NumPy", "save it with numpy.savez"),
    ".msgpack": (
        "a file of Flax",
        "flax.serialization.msgpack_restore its bytes, then safetensors.flax.save_file",
    ),
    ".gguf": (
        "a file of llama.cpp",
        f"gguf.GGUFReader, gguf.quants.dequantize of each tensor, {_SAVE}",
    ),
    ".onnx": (
        "a model of ONNX",
        f"onnx.load, onnx.numpy_helper.to_array of each graph.initializer, {_SAVE}",
    ),
    ".tflite": ("a model of TensorFlow Lite", "take the model that it was converted from"),
    ".pdparams": ("a state dict of Paddle", f"paddle.load, numpy() of each tensor, {_SAVE}"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _PICKLE),
    **dict.fromkeys((".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst", ".7z"),
                    ("packed", "unpack it, and name what is inside")),
}  # fmt: skip


def _known(file: Path) -> tuple[str, str] | None:
    suffix = file.suffix.lower()
    return _TENSORFLOW if suffix.startswith(".data-0") else _OTHERS.get(suffix)


def is_other(file: Path) -> bool:
    """Whether it is known what a file is, by its name.

    >>> is_other(Path("model.onnx")), is_other(Path("model.txt"))
    (True, False)
    """
    return _known(file) is not None


def other(file: Path, suffixes: Iterable[str]) -> CheckpointError:
    """Return an error for a file of another suffix: what it is, and how to convert it."""
    should = f"its suffix should be .index.json or one of {', '.join(suffixes)}"
    index = file.with_name(f"{file.name}.index")  # TensorFlow names its checkpoints without it
    if not os.path.lexists(file) and index.exists():
        file = index
    known = _known(file)
    if known is None:
        source_of(file, "a checkpoint")  # or it is not there at all, or another by its content
        cure = "save it in one of these formats"
        return CheckpointError(message("path", short(file.name), should, cure))
    os.stat(file)
    what, cure = known
    return CheckpointError(message("path", short(file.name), f"it is {what}; {should}", cure))
