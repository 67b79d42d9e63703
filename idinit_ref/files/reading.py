"""Reads checkpoints: headers first, numbers block by block, safe against broken and hostile files.

All that a format's own reader accepts is read. No size in a header is trusted beyond the size of
the file, nothing outside the file is read, and every fault is a `CheckpointError` of one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.text import short
from ..errors import CheckpointError, OptionError, message
from .disk import Faults, SourceFile, reachable, source_of
from .metadata import CAP, TABLES, table
from .naming import check_name, path_of
from .others import by_name
from .read_distributed import LIST, open_distributed
from .read_hdf5 import open_hdf5, open_keras
from .read_npz import open_npy, open_npz
from .read_orbax import TREE, open_orbax
from .read_safetensors import open_safetensors
from .read_torch import open_torch
from .stored import StoredTensor

_Opened = tuple[Sequence[StoredTensor], dict[str, str]]
_READERS: dict[str, Callable[[Path, Faults], _Opened]] = {  # by suffix
    ".safetensors": open_safetensors,
    ".npz": open_npz,
    ".npy": open_npy,
    **dict.fromkeys((".h5", ".hdf5"), open_hdf5),
    ".keras": open_keras,
    **dict.fromkeys((".bin", ".pt", ".pth"), open_torch),
}
_FOLDERS: dict[str, Callable[[Path, Faults], _Opened]] = {  # by a file in them
    LIST: open_distributed,
    TREE: open_orbax,
}
_FIRST = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint, from its headers.

    Parameters
    ----------
    path : pathlib.Path
        The file or folder that was opened.
    tensors : dict of str to StoredTensor
        In the order of the files.
    metadata : dict of str to str
        Of the file, or of all shards together. ``idinit_ref.plans`` and ``idinit_ref.sha256`` are
        JSON objects by tensor name, in every format.
    files : tuple of pathlib.Path
        All its files: an index first, then those with tensors.
    outside : tuple of StoredTensor
        Tensors in its shards that its index does not list; they do not belong to the model.
    findings : tuple of str
        The faults, if it was opened with ``lenient``.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.npz")
    ...     np.savez(path, fc=np.eye(2, 3))
    ...     opened = open_checkpoint(path)
    >>> list(opened.tensors), opened.nbytes, [file.name for file in opened.files]
    (['fc'], 48, ['model.npz'])
    """

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    files: tuple[Path, ...]
    outside: tuple[StoredTensor, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, unpacked.

        Examples
        --------
        >>> fc = StoredTensor("fc", "float32", (4, 3), Path("model.npz"))
        >>> Checkpoint(fc.path, {"fc": fc}, {}, (fc.path,)).nbytes
        48
        """
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | os.PathLike[str], *, lenient: bool = False) -> Checkpoint:
    """Read the headers of a checkpoint, and nothing else.

    Every tensor of the result stays in its file and can be read in blocks. A file is open only
    during a read. HDF5 is read by its own C library, which has faults of its own: from untrusted
    sources prefer the other formats.

    Parameters
    ----------
    path : path
        A file, a folder with a checkpoint, or an index of shards (also without its
        ``.index.json``), in a format of docs/export.md: safetensors, NumPy, Keras, PyTorch or
        Orbax. No code of a file is run.
    lenient : bool
        Whether to continue if a shard is missing, a file is truncated, or a part cannot be read.
        ``findings`` then lists these faults, and ``tensors`` the rest.

    Returns
    -------
    Checkpoint
        Its tensors; their numbers are not read yet.

    Raises
    ------
    CheckpointError
        If the file is broken, hostile, or of another kind.
    OptionTypeError
        If the path is not a str or os.PathLike.
    ImportError
        If the format's own library is needed and not installed.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.npz")
    ...     np.savez(path, fc=np.eye(2, 3, dtype=np.float32))
    ...     tensor = open_checkpoint(path).tensors["fc"]
    ...     tensor.dtype, tensor.shape, tensor.read((slice(1, 2), slice(None)), "float32")
    ('float32', (2, 3), array([[0., 1., 0.]], dtype=float32))
    """
    given, faults = path_of(path), Faults(lenient=lenient)
    tensors: Sequence[StoredTensor]
    with reachable(given):
        file = _in_folder(given) if os.path.isdir(given) else given
    index = Path(f"{given}.index.json")  # of a checkpoint in shards
    if not os.path.lexists(given) and os.path.isfile(index):
        file = index
    files = [file]
    if mark := _mark(file):
        tensors, metadata = _FOLDERS[mark](file, faults)
        files = sorted(path for path in file.rglob("*") if path.is_file())
    elif file.name.lower().endswith(".index.json"):
        return _index(given, file, faults)
    elif (suffix := file.suffix.lower()) in _READERS:
        tensors, metadata = _READERS[suffix](file, faults)
    else:
        raise _other(file)
    held = {tensor.name: tensor for tensor in tensors}
    return Checkpoint(given, held, metadata, tuple(files), findings=tuple(faults.messages))


def _mark(folder: Path) -> str | None:
    """Return the file that identifies a folder as a checkpoint, or None."""
    return next((mark for mark in _FOLDERS if os.path.isfile(folder / mark)), None)


def _in_folder(folder: Path) -> Path:
    """Return the checkpoint of a folder: a file in it, the folder itself, or a folder inside.

    Orbax and others store a checkpoint in STEP/ITEM.
    """
    if _mark(folder):
        return folder
    for name in _FIRST:
        if (folder / name).exists():
            return folder / name
    there = sorted(os.listdir(folder))
    indices = [name for name in there if name.endswith(".index.json")]
    if len(indices) == 1:
        return folder / indices[0]
    inside = sorted(path for depth in ("*", "*/*") for path in folder.glob(depth) if _mark(path))
    if len(inside) == 1:
        return inside[0]
    named = indices or [name for name in there if Path(name).suffix in _READERS]
    named = named or [str(path.relative_to(folder)) for path in inside]
    if not named:
        for name in there:
            if by_name(folder / name):
                raise _other(folder / name)
    shown = ", ".join(repr(short(name)) for name in named[:5]) or "none"
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    should = (
        "it should hold model.safetensors, pytorch_model.bin, one *.index.json, or one checkpoint "
        "of torch.distributed or Orbax; "
        f"its {'index files' if indices else 'checkpoints'}: {shown}{more}"
    )
    cure = "name one of them" if named else "name another folder, or a file of weights"
    raise CheckpointError(message("folder", short(str(folder)), should, cure))


def _other(file: Path) -> CheckpointError:
    """Return an error for a file with another suffix: its format, and how to convert it."""
    should = f"its suffix should be .index.json or one of {', '.join(_READERS)}"
    index = file.with_name(f"{file.name}.index")  # TensorFlow names its checkpoints without it
    if not os.path.lexists(file) and index.exists():
        file = index
    if (known := by_name(file)) is None:
        source_of(file, "a checkpoint")  # raises if it is missing, or known by its content
        cure = "save it in one of these formats"
        return CheckpointError(message("path", short(file.name), should, cure))
    with reachable(file):
        os.stat(file)
    should = f"it is {known.what}; {should}"
    return CheckpointError(message("path", short(file.name), should, known.cure))


# Shards -------------------------------------------------------------------------------------------


def _index(given: Path, path: Path, faults: Faults) -> Checkpoint:
    """Return the tensors of all shards in an index."""
    source = source_of(path, "the index of a sharded checkpoint")
    homes = _homes(source)
    shards = list(dict.fromkeys(homes.values()))
    for shard in shards:
        _check_plain(source, shard)
    held: dict[str, StoredTensor] = {}
    outside: list[StoredTensor] = []
    all_metadata: list[dict[str, str]] = []
    lost: set[str] = set()
    files = [path]
    for shard in shards:
        tensors: Sequence[StoredTensor] = ()
        metadata: dict[str, str] = {}
        lost.add(shard)
        with faults.around():
            if not os.path.exists(path.parent / shard):
                count = sum(home == shard for home in homes.values())
                should = f"it is missing, with {count:,} of {len(homes):,} tensors"
                cure = "download it into the folder of the index"
                raise source.wrong("file in the weight_map", shard, should, cure)
            reader = _READERS.get(Path(shard).suffix.lower(), open_safetensors)
            tensors, metadata = reader(path.parent / shard, faults)
            files.append(path.parent / shard)
            lost.discard(shard)
        all_metadata.append(metadata)
        for tensor in tensors:
            name = tensor.name
            if name not in homes:
                outside.append(tensor)
            elif name in held or homes[name] != shard:
                got = [short(held[name].path.name if name in held else homes[name]), short(shard)]
                should = "it should lie only in the shard that the index names"
                faults.add(source.wrong(f"shard of {short(name)!r}", got, should))
            else:
                held[name] = tensor
    for name, shard in homes.items():
        if name not in held and shard not in lost:
            should = "the tensor should be in it"
            faults.add(source.wrong(f"shard of {short(name)!r}", shard, should))
    merged, findings = _merged(all_metadata), tuple(faults.messages)
    return Checkpoint(given, held, merged, tuple(files), tuple(outside), findings)


def _homes(source: SourceFile) -> dict[str, str]:
    """Return the file of each tensor, by an index."""
    if source.size > CAP:
        raise source.wrong("size", source.size, f"an index should have at most {CAP:,} bytes")
    with source.open() as file:
        content: Any = source.loads(source.take(file, 0, source.size))
    homes = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(homes, dict) or not all(isinstance(home, str) for home in homes.values()):
        what, got = ("weight_map", homes) if isinstance(content, dict) else ("index", content)
        should = "it should be an object with a weight_map: the file of each tensor"
        raise source.wrong(what, str(got), should)
    return homes


def _check_plain(source: SourceFile, shard: str) -> None:
    """Raise if a shard's name could lead out of the folder."""
    try:
        plain = bool(shard) and "/" not in shard and Path(check_name(shard)).name == shard
    except OptionError:
        plain = False
    if not plain:
        should = "it should be the plain name of a file beside the index"
        raise source.wrong("file in the weight_map", shard, should, "do not use the index")


def _merged(all_metadata: list[dict[str, str]]) -> dict[str, str]:
    """Merge the metadata of all shards: tables by tensor name are joined, else the first counts."""
    if len(all_metadata) == 1:
        return all_metadata[0]
    merged: dict[str, str] = {}
    for metadata in all_metadata:
        for key, value in metadata.items():
            merged.setdefault(key, value)
    for key in TABLES:
        joined: dict[str, Any] = {}
        for metadata in all_metadata:
            joined |= table(metadata.get(key))
        merged.pop(key, None)
        if joined:
            merged[key] = json.dumps(joined)
    return merged
