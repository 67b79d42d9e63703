"""State dicts that `torch.save` wrote (``pytorch_model.bin``, ``.pt``, ``.pth``).

PyTorch itself maps them into memory. Its unpickler for weights admits tensors and plain values, and
runs no code of the file.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.text import short
from .disk import Faults, SourceFile, Spans, library, readable, source_of
from .others import ZIP
from .stored import Foreign, StoredTensor, known_dtype

_KIND = "a file of torch.save"
_SAVE = "torch.save a dict of its tensors, such as model.state_dict()"


def the_torch() -> Any:
    """Import PyTorch; the error names the extra to install."""
    return library("torch", "files of PyTorch", "torch")


def array_of(tensor: Any, bits: np.dtype[Any]) -> NDArray[Any]:
    """Return the bits of a PyTorch tensor as an array."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    content: NDArray[Any] = tensor.reshape(-1).view(the_torch().uint8).numpy()
    return content.view(bits).reshape(tuple(tensor.shape))


@dataclass(slots=True, eq=False)
class _MappedTensor(Foreign):
    """A tensor that PyTorch has mapped into memory."""

    tensor: Any = field(repr=False)
    source: SourceFile = field(repr=False)

    def _block(self, spans: Spans) -> NDArray[Any]:
        with self.source.open():  # a truncated file would crash the process
            part = self.tensor[tuple(slice(s.start, s.stop) for s in spans)]
            return array_of(part, self.bits).copy()


def open_torch(path: Path, faults: Faults) -> tuple[list[StoredTensor], dict[str, str]]:
    """Return the tensors of a state dict; names in nested dicts are joined with "."."""
    torch, source = the_torch(), source_of(path, _KIND, ZIP)
    with source.open() as file:
        if bytes(source.take(file, 0, 2)) != b"PK":
            should = f"it should be {_KIND} since PyTorch 1.6, a ZIP archive"
            cure = "torch.save(torch.load(PATH, weights_only=True), NEW)"
            raise source.wrong("content", "not an archive", should, cure)
    should = f"{_KIND} that holds only tensors and plain values"
    with readable(source, should):
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as problem:  # for example a whole model: its classes are code
            cure = f"if you trust it, load it in the program that wrote it, and {_SAVE}"
            got = "objects of other classes"
            raise source.wrong("content", got, f"it should be {should}", cure) from problem
    named = list(_flat("", content))
    if not named:
        should, cure = "it should hold tensors by name", f"load it, and {_SAVE}"
        raise source.wrong("content", type(content).__name__, should, cure)
    tensors: dict[str, StoredTensor] = {}
    for name, value in named:
        with faults.around():
            if name in tensors:
                should = "only one tensor should have this name, its keys joined with dots"
                raise source.wrong("name", name, should, f"rename one, and {_SAVE}")
            _check_dense(source, name, value)
            dtype, shape = known_dtype(str(value.dtype).removeprefix("torch.")), tuple(value.shape)
            width = value.element_size()
            tensors[name] = _MappedTensor(name, dtype, shape, path, width, value, source)
    return list(tensors.values()), {}


def _flat(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dicts; other values are ignored."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif name and isinstance(value, the_torch().Tensor):
        yield name, value


def _check_dense(source: SourceFile, name: str, value: Any) -> None:
    if value.layout is not the_torch().strided or value.is_quantized or value.is_meta:
        got = f"{value.dtype}, {value.layout}, on {value.device}"
        should = "it should be dense, with its numbers, and not quantized"
        raise source.wrong(f"tensor {short(name)!r}", got, should, "convert it with PyTorch")
