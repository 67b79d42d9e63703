"""Other file formats, known by their first bytes or suffix, and how to convert them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ZIP, HDF5, NPY = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"
"""The first bytes of formats that are read here."""


class Known(NamedTuple):
    """A format, and how to read or convert its files."""

    what: str
    cure: str
    suffixes: tuple[str, ...] = ()  # of formats that are not read here
    magic: bytes = b""  # never the length of a safetensors header, below 100 MB


_SAVE = "then safetensors.numpy.save_file"
_KNOWN = (
    Known("a ZIP archive", "name it .npz if NumPy wrote it, .pt if PyTorch, .keras if Keras",
          magic=ZIP),
    Known("an HDF5 file", "name it .h5", magic=HDF5),
    Known("a single array of NumPy", "name it .npy", magic=NPY),
    Known("a pointer of git-lfs", "run git lfs pull", magic=b"version https://git-lfs"),
    Known("a file of torch.save before PyTorch 1.6",
          "torch.save(torch.load(PATH, weights_only=True), NEW)", magic=b"\x80\x02\x8a\x0a"),
    Known("a file of llama.cpp", f"gguf.GGUFReader, gguf.quants.dequantize of each tensor, {_SAVE}",
          (".gguf",), b"GGUF"),
    Known("a checkpoint of Lightning or of TensorFlow 1",
          "of PyTorch, name it .pt; else load it with what wrote it, and save its weights",
          (".ckpt",)),
    Known("a checkpoint of TensorFlow",
          f"tf.train.load_checkpoint, get_tensor of each name, {_SAVE}", (".index", ".data-0")),
    Known("a SavedModel of TensorFlow", "keras.Model.save_weights writes .weights.h5", (".pb",)),
    Known("a model of TensorFlow Lite", "take the model that it was converted from", (".tflite",)),
    Known("a file of Flax",
          "flax.serialization.msgpack_restore its bytes, then safetensors.flax.save_file",
          (".msgpack",)),
    Known("a model of ONNX",
          f"onnx.load, onnx.numpy_helper.to_array of each graph.initializer, {_SAVE}", (".onnx",)),
    Known("a state dict of Paddle", f"paddle.load, numpy() of each tensor, {_SAVE}",
          (".pdparams",)),
    Known("a pickle, which can run code",
          f"if you trust it, load it with what wrote it, {_SAVE}", (".pkl", ".pickle", ".joblib")),
    Known("packed", "unpack it, and name what is inside",
          (".tar", ".tgz", ".gz", ".xz", ".bz2", ".zst", ".7z")),
)  # fmt: skip


def by_content(first: bytes) -> Known | None:
    """Return the format of a file that begins with these bytes, or None.

    >>> by_content(b"GGUF").what
    'a file of llama.cpp'
    """
    return next((kind for kind in _KNOWN if kind.magic and first.startswith(kind.magic)), None)


def by_name(file: Path) -> Known | None:
    """Return the format of a file that is not read here, by its suffix, or None.

    >>> by_name(Path("model.onnx")).what, by_name(Path("model.txt"))
    ('a model of ONNX', None)
    """
    suffix = re.sub(r"^\.data-0.*", ".data-0", file.suffix.lower())  # .data-00000-of-00001
    return next((kind for kind in _KNOWN if suffix in kind.suffixes), None)
