"""Writes checkpoint files: streamed, whole or not at all, readable by every framework.

Everything is decided and validated first. Then all files of a checkpoint are written under
temporary names, and get their own names together.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from ..core.dtypes import format_of
from ..core.options import integer
from ..core.plan import Plan
from ..errors import DTypeError, OptionError, OptionTypeError, message
from .bits import FLOATS
from .containers import FORMS, NO_DIGEST, Feed, FileTensor, Form, file_tensor
from .naming import is_text, path_of
from .storage import Progress, Tell, Tensor
from .whole import together, whole_folder
from .write_distributed import write_distributed
from .write_orbax import write_orbax

_SHARDS = 99_999  # the most shards with names of five digits
_FOLDERS = {".distcp": write_distributed, ".orbax": write_orbax}
_VARIABLE = re.compile(r"(.*/)?vars/\d+")  # a name in Keras' files


class FilePlan(NamedTuple):
    """A file that `save` would write: its bytes, with the header, and its tensors in order.

    The index of shards is also one of them, without tensors.

    Parameters
    ----------
    path : Path
        Its path.
    nbytes : int
        Its size in bytes.
    names : tuple of str
        The names of its tensors, in the order of the file.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> (file,) = file_plans("model.npz", {"fc.weight": ir.plan((4, 3))})
    >>> file.path.name, file.names
    ('model.npz', ('fc.weight',))
    """

    path: Path
    nbytes: int
    names: tuple[str, ...]


# The command --------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    plans_or_arrays: Mapping[str, Plan | NDArray[Any] | Tensor],
    *,
    dtype: Any = None,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    digests: bool = False,
    progress: Tell | None = None,
) -> None:
    """Write weights into files of any of five formats, whole or not at all.

    Memory is bounded at any size, and the same input gives the same bytes. Weights that IDInit does
    not define (embeddings, normalisation) have to be added as arrays, or as tensors of another
    checkpoint. Without them load with ``strict=False``, or with ``from_pretrained``, which fills
    them by the model's own initialisation.

    Parameters
    ----------
    path : path
        Its suffix names the format: ``.safetensors``, ``.npz``, ``.h5`` and ``.weights.h5``,
        ``.distcp`` or ``.orbax``. A file of this name is replaced once the new one is complete; a
        symbolic link is followed. Until then the new file is ``NAME.part-<hex>``. ``.distcp`` is a
        folder of `torch.distributed.checkpoint`, which PyTorch writes in pieces. ``.orbax`` is a
        folder of Orbax, which it writes in chunks: a tree of dicts, by the parts of the names
        between dots. These two hold no metadata and no digests. ``.h5`` needs h5py; a tensor's name
        is the path of its dataset, and bfloat16 is stored in Keras' way. Keras reads
        ``.weights.h5``.
    plans_or_arrays : mapping of str to Plan, numpy.ndarray or idinit_ref.files.storage.Tensor
        Every tensor by its name. An array may have any strides; NaN and infinities are possible if
        the file's dtype has them.
    dtype : dtype, optional
        The dtype of all plans and real arrays, rounded once to nearest even: float64, float32,
        float16, bfloat16, float8_e4m3fn, float8_e5m2, or complex64. By default plans are float32,
        and arrays keep their dtype; integers and bools always keep it. ``.npz`` holds no bfloat16,
        and neither ``.npz`` nor ``.h5`` holds float8.
    shard_bytes : int, optional
        For ``.safetensors``: the most bytes of tensors in a file; tensors are counted and split as
        by Hugging Face. ``model.safetensors`` is then written as
        ``model-00001-of-00003.safetensors`` and so on, with ``model.safetensors.index.json``, if
        one file cannot hold it all. Other files of the same checkpoint, whole or in shards, are
        removed once the new ones are complete: a loader could read them instead.
    metadata : mapping of str to str, optional
        More entries for the file's metadata: in ``.npz`` the archive's comment, as JSON; in ``.h5``
        the root's attributes. The key ``idinit_ref`` holds the version.
    digests : bool
        Whether to store the SHA-256 of each tensor's bytes.
    progress : callable, optional
        Called as ``progress(bytes_written, bytes_in_all)`` after each block.

    Raises
    ------
    OptionError, OptionTypeError, ShapeError
        If the suffix, a name, a value or another option does not fit.
    DTypeError, RoundingError
        If a dtype is not one of these, or cannot hold a value (spec section 5).
    OSError
        If the files cannot be written. After any error there is no new file; old ones are whole.
    ImportError
        If h5py, PyTorch or Orbax is needed and not installed.

    Notes
    -----
    The options of every plan and the digests are stored, too. In a ``.safetensors`` file they are
    ``idinit_ref.plans`` and ``idinit_ref.sha256`` in the metadata, JSON objects by name. Elsewhere
    each tensor has its ``idinit_ref.plan`` and ``idinit_ref.sha256``: in ``.h5`` as attributes, in
    ``.npz`` in its member's comment, a JSON object of at most 65,535 bytes; longer options are left
    out.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import idinit_ref as ir
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.safetensors")
    ...     save(path, {"fc1.weight": ir.plan((4, 3)), "fc2.weight": ir.plan((3, 4), "zero")})
    ...     [file.name for file in path.parent.iterdir()]
    ['model.safetensors']
    """
    job = _decide(path, plans_or_arrays, dtype, shard_bytes, metadata)
    for item in job.items:
        item.check()
    count = Progress(progress, sum(item.nbytes for item in job.items)).add
    try:
        if job.form.write is None:
            with whole_folder(Path(os.path.realpath(job.path))) as folder:
                _FOLDERS[job.form.suffix](folder, job.items, count)
            return
        with ExitStack() as stack:
            feed = Feed(count, job.digests(digests))
            if feed.pool is not None:
                stack.enter_context(feed.pool)
            new = stack.enter_context(together(job.stale))
            write = job.form.write
            for part, items in job.files:
                with new(job.target(part)) as file:
                    write(file, items, job.about, feed)
            if job.index is not None:
                with new(job.target(job.index.path)) as file:
                    file.write(job.index.content)
    except OSError as problem:
        if problem.filename is not None and not _is_ours(problem.filename, job):
            raise  # from reading an input
        size = sum(file.nbytes for file in job.layout(digests))
        raise OSError(  # Python chooses the class by the number
            problem.errno or errno.EIO,
            message(
                "path",
                str(path),
                f"it could not be written ({problem.strerror or problem})",
                f"check that the folder exists and is writable, with {size:,} bytes free; "
                "nothing was changed",
            ),
        ) from problem


def _is_ours(name: object, job: _Job) -> bool:
    folder = Path(os.path.realpath(job.path)).parent
    target = Path(os.fsdecode(cast("Any", name)))
    return target.parent in (folder, job.path.parent) and target.name.startswith(job.path.stem)


def file_plans(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Plan | NDArray[Any] | Tensor],
    *,
    dtype: Any = None,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    digests: bool = False,
) -> tuple[FilePlan, ...]:
    """Return the files that `save` would write, and write nothing.

    Parameters
    ----------
    path, tensors, dtype, shard_bytes, metadata, digests
        As in :func:`idinit_ref.save`.

    Returns
    -------
    tuple of FilePlan
        Every file, the index of shards last.

    Raises
    ------
    OptionError, OptionTypeError, DTypeError, RoundingError, ImportError
        As in :func:`idinit_ref.save`, except that the values of arrays are not checked.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> plans = {"fc1.weight": ir.plan((4, 3)), "fc2.weight": ir.plan((3, 4), "zero")}
    >>> for file in file_plans("model.safetensors", plans, shard_bytes=50):
    ...     print(file.path, file.names)
    model-00001-of-00002.safetensors ('fc1.weight',)
    model-00002-of-00002.safetensors ('fc2.weight',)
    model.safetensors.index.json ()
    """
    return _decide(path, tensors, dtype, shard_bytes, metadata).layout(digests)


# Decisions before writing -------------------------------------------------------------------------


class _Index(NamedTuple):
    """The file that maps tensors to shards."""

    path: Path
    content: bytes


@dataclass(frozen=True)
class _Job:
    """The files to write, with every name and option validated."""

    form: Form
    path: Path
    files: list[tuple[Path, list[FileTensor]]]
    index: _Index | None
    about: dict[str, str]
    tidy: bool  # whether to remove other files of this checkpoint

    @property
    def items(self) -> list[FileTensor]:
        return [item for _, items in self.files for item in items]

    def digests(self, wanted: bool) -> dict[str, str]:
        """Return the placeholders of all digests."""
        return {item.name: NO_DIGEST for item in self.items} if wanted else {}

    def layout(self, digests: bool) -> tuple[FilePlan, ...]:
        held = self.digests(digests)
        files = [
            FilePlan(path, self.form.size(items, self.about, held), tuple(i.name for i in items))
            for path, items in self.files
        ]
        if self.index is not None:
            files.append(FilePlan(self.index.path, len(self.index.content), ()))
        return tuple(files)

    def target(self, path: Path) -> Path:
        """Return the real path of a file; a link is followed unless there are shards."""
        if self.index is None:
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(path.parent), path.name)

    def stale(self) -> list[Path]:
        """Return the other files of this checkpoint, the index first."""
        if not self.tidy:
            return []
        names = {path.name for path, _ in self.files}
        names |= {self.index.path.name} if self.index is not None else set()
        folder = Path(os.path.realpath(self.path.parent))
        others = (path for path in forms_of(folder / self.path.name) if path.name not in names)
        return [path for path in others if path.is_symlink() or not path.is_dir()]


def forms_of(path: Path) -> list[Path]:
    """Return all existing files of a .safetensors checkpoint, whole or sharded, the index first."""
    stem = re.escape(path.stem)
    form = re.compile(
        rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{stem}\.safetensors\.index\.json"
    )
    files = (file for file in path.parent.iterdir() if form.fullmatch(file.name))
    return sorted(files, key=lambda file: (file.suffix != ".json", file.name))


def _decide(
    given: object, tensors: object, dtype: Any, shard_bytes: object, metadata: object
) -> _Job:
    path = path_of(given)
    if path.suffix not in FORMS:
        should = "its suffix should be .safetensors, .npz, .weights.h5, .distcp or .orbax"
        raise OptionError(message("path", str(given), should, "give a file name that ends so"))
    form = FORMS[path.suffix]
    keras = path.name.endswith(".weights.h5")
    to = None if dtype is None else format_of(dtype).name
    if to is not None and to not in form.dtypes:
        should = f"{form.what} holds {', '.join(name for name in FLOATS if name in form.dtypes)}"
        raise DTypeError(message("dtype", to, should, "choose one"))
    limit = None if shard_bytes is None else integer("shard_bytes", shard_bytes, low=1)
    if limit is not None and path.suffix != ".safetensors":
        should = f"only a .safetensors checkpoint has shards, not {path.name}"
        raise OptionError(message("shard_bytes", limit, should, "leave it out"))
    about = _about(metadata)
    items = [file_tensor(*pair, to, form) for pair in _mapping("plans_or_arrays", tensors).items()]
    odd = [item.name for item in items if keras and not _VARIABLE.fullmatch(item.name)]
    if odd:
        should = "in a .weights.h5 file Keras finds only names LAYER/vars/NUMBER"
        cure = "translate PyTorch's names (--dialect keras), or name the file .h5"
        raise OptionError(message("name", odd[0], should, cure))
    shards = [items] if limit is None else _shards(items, limit)
    if len(shards) == 1:
        files, index = [(path, form.order(items))], None
    else:
        count = len(shards)
        if count > _SHARDS:
            should = f"there should be at most {_SHARDS:,} shards, not {count:,}"
            raise OptionError(message("shard_bytes", limit, should, "give more bytes"))
        files = [
            (path.with_name(f"{path.stem}-{k:05d}-of-{count:05d}.safetensors"), form.order(shard))
            for k, shard in enumerate(shards, 1)
        ]
        index = _index(path, files)
    for _, group in files:
        form.check(group, about)
    return _Job(form, path, files, index, about, tidy=limit is not None)


def _mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        should = "it should be a mapping with names as its keys"
        raise OptionTypeError(message(name, type(value).__name__, should, "pass a dict"))
    return value


def _about(metadata: object) -> dict[str, str]:
    """Return the entries of a file's metadata: the version, and the caller's."""
    from .. import __version__  # not at the top: the package imports this module

    more = {} if metadata is None else _mapping("metadata", metadata)
    for key, value in more.items():
        if not isinstance(key, str) or not isinstance(value, str):
            should = "keys and values should be strings"
            cure = "use json.dumps for anything else"
            raise OptionTypeError(message("metadata", {key: value}, should, cure))
        if not is_text(key + value):
            should = "it should be valid UTF-8, without lone surrogates"
            cure = "decode it with errors='replace'"
            raise OptionError(message("metadata", value if is_text(key) else key, should, cure))
    return {"idinit_ref": __version__, **more}


def _shards(items: list[FileTensor], limit: int) -> list[list[FileTensor]]:
    """Split a model as Hugging Face does: in order, each shard as full as possible."""
    shards: list[list[FileTensor]] = []
    current: list[FileTensor] = []
    size = 0
    for item in items:
        if item.nbytes > limit:  # a shard of its own, within the current one
            shards.append([item])
            continue
        if size + item.nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(item)
        size += item.nbytes
    return [*shards, current] if current or not shards else shards


def _index(path: Path, files: list[tuple[Path, list[FileTensor]]]) -> _Index:
    where = {item.name: file.name for file, items in files for item in items}
    size = sum(item.nbytes for _, items in files for item in items)
    content = {"metadata": {"total_size": size}, "weight_map": where}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return _Index(path.with_name(f"{path.name}.index.json"), text.encode())
