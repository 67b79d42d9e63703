"""State dicts that `torch.save` wrote (``pytorch_model.bin``, ``.pt``, ``.pth``).

PyTorch reads them itself: mapped into memory, with an unpickler that knows tensors and plain values
and runs no code of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..core.text import short
from .disk import Faults, SourceFile, Spans, needed, readable, source_of
from .storage import DTYPES, carrier
from .stored import Stored

__all__ = ["array_of", "open_torch", "the_torch"]

_KIND = "a file of torch.save"


def the_torch() -> Any:
    """Return PyTorch, or say what to install."""
    return needed("torch", "files of PyTorch", "torch")


def array_of(tensor: Any, dtype: str) -> NDArray[Any]:
    """Return a tensor of PyTorch as an array of `carrier(dtype)`."""
    torch, own = the_torch(), carrier(dtype)
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if own.name != dtype:  # NumPy has no such numbers: their bits
        tensor = tensor.view(getattr(torch, f"int{8 * own.itemsize}"))
    array: NDArray[Any] = tensor.numpy()
    return array.view(own) if own.name != dtype else array


@dataclass(slots=True, eq=False)
class _Tensor(Stored):
    """A tensor that PyTorch has mapped into memory."""

    tensor: Any = field(repr=False)
    source: SourceFile = field(repr=False)

    def _block(self, spans: Spans) -> NDArray[Any]:
        with self.source.open():  # or a file that became shorter would end the process
            part = self.tensor[tuple(slice(s.start, s.stop) for s in spans)]
            return array_of(part, self.dtype).copy()


def open_torch(path: Path, faults: Faults) -> tuple[list[Stored], dict[str, str]]:
    """Return the tensors of a state dict, those of dicts inside it by names joined with "."."""
    torch, source = the_torch(), source_of(path, _KIND)
    with source.open() as file:
        if bytes(source.take(file, 0, 2)) != b"PK":
            should = f"it should be {_KIND} since PyTorch 1.6, a ZIP archive"
            cure = "torch.save(torch.load(PATH, weights_only=True), NEW)"
            raise source.wrong("content", "no archive", should, cure)
    with readable(source, f"{_KIND} that holds tensors and plain values alone"):
        held = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    tensors: list[Stored] = []
    for name, value in _flat("", held):
        with faults.around():
            dtype = _dtype_of(source, name, value)
            tensors.append(_Tensor(name, dtype, tuple(value.shape), path, value, source))
    if not tensors:
        raise source.wrong("content", type(held).__name__, "it should hold tensors by name")
    return tensors, {}


def _flat(name: str, value: object) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of nested dicts; what else there is, is no weight."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), each)
    elif name and isinstance(value, the_torch().Tensor):
        yield name, value


def _dtype_of(source: SourceFile, name: str, value: Any) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES or value.layout is not the_torch().strided:
        got, should = f"{dtype}, {value.layout}", "it should be a dense array of a known dtype"
        raise source.wrong(f"tensor {short(name)!r}", got, should, "convert it with PyTorch")
    return dtype
