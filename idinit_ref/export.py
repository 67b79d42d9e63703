"""Plans to checkpoint files: streamed, complete or not there, readable by every framework.

The safetensors format is written by hand (8 bytes of header length, JSON, data without gaps),
because its own writers want every tensor in memory and write wrong bytes for strided ones. Of an
HDF5 file h5py makes the bytes between the data; NumPy's .npz is a zip of .npy files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from .dtypes import format_of
from .errors import DTypeError, IDInitError, OptionError, OptionTypeError, ShapeError, message
from .options import integer
from .plan import Plan
from .storage import (
    BLOCK,
    DTYPES,
    FLOATS,
    HEADER,
    Held,
    Made,
    Tensor,
    as_tensor,
    blocks,
    carrier,
    check_name,
    convert,
    itemsize,
    stream,
)

__all__ = ["FilePlan", "layout_of", "save", "whole_file"]

_AXES = 32
_COMMENT = 2**16 - 1  # bytes that a comment in a zip file may have
_RARE = 64  # non-zeros that are as rare as that are quicker one by one
_SHARDS = 99_999  # that names of five digits tell apart
_VARIABLE = re.compile(r"(.*/)?vars/\d+")  # in Keras' files
_NO_DIGEST = "0" * 64  # in its place until it is known


class FilePlan(NamedTuple):
    """A file that would be written: its bytes, header included, and its tensors in their order.

    The index of a checkpoint in shards is one of them, without tensors.
    """

    path: Path
    nbytes: int
    names: tuple[str, ...]


class _Item(NamedTuple):
    """One tensor of a file: its name, what it holds, and its dtype there."""

    name: str
    tensor: Tensor
    dtype: str

    @property
    def nbytes(self) -> int:
        return prod(self.tensor.shape) * itemsize(self.dtype)

    @property
    def options(self) -> dict[str, object] | None:
        """What `idinit_ref.plan` needs besides the shape to make it again; None without a plan."""
        if not isinstance(self.tensor, Made):
            return None
        plan = self.tensor.plan
        kept = {"role": plan.role, "layout": plan.layout}
        every = {f.name: (getattr(plan, f.name), f.default) for f in fields(plan) if f.compare}
        return kept | {k: v for k, (v, usual) in every.items() if k != "shape" and v != usual}

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yield its numbers in order, little-endian; each is gone when the next one is made."""
        plan = self.tensor.plan if isinstance(self.tensor, Made) else None
        if plan is None or plan.nnz * _RARE > prod(plan.shape):
            yield from stream(self.tensor, self.dtype)
            return
        # One buffer for all, in which only the few non-zeros are written and taken back.
        buffer = np.zeros(BLOCK, carrier(self.dtype).newbyteorder("<"))
        for index in blocks(plan.shape):
            spans = (span.indices(size) for span, size in zip(index, plan.shape, strict=True))
            at, values = plan.entries(index)
            buffer[at] = convert(values, "float64", self.dtype, self.name)
            yield buffer[: prod(stop - start for start, stop, _ in spans)]
            buffer[at] = 0

    def check(self) -> None:
        """Raise if the dtype cannot hold one of an array's values."""
        own = self.tensor.dtype
        if isinstance(self.tensor, Held) and own is not None and own != self.dtype:
            for index in blocks(self.tensor.shape):
                convert(self.tensor.read(index, own), own, self.dtype, self.name)


def _item(name: object, value: object, dtype: str | None, form: _Form) -> _Item:
    """Check one tensor of a mapping, all but an array's values, which take long."""
    name = check_name(name)
    tensor = as_tensor(name, value)
    if len(tensor.shape) > _AXES:
        should = f"it should have at most {_AXES} axes, as an array of every NumPy has"
        raise ShapeError(message(f"shape of {name}", tensor.shape, should, "reshape it"))
    own = tensor.dtype
    to = own if own is not None and own not in FLOATS else dtype or own or "float32"
    if isinstance(tensor, Made):
        try:
            tensor.plan.check(to)
        except IDInitError as problem:
            raise type(problem)(f"of tensor {name!r}: {problem}") from problem
    elif own is not None and own != to:
        convert(np.empty(0, carrier(own)), own, to, name)
    if to not in form.dtypes:
        should = f"{form.what} holds {', '.join(form.dtypes)}"
        cure = "choose one of them with dtype=, or write .safetensors"
        raise DTypeError(message(f"dtype of {name}", to, should, cure))
    return _Item(name, tensor, to)


class _Feed:
    """Puts tensors into files; counts, digests, and tells of what it has put there."""

    def __init__(
        self,
        total: int,
        progress: Callable[[int, int], object] | None,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.pool = pool  # makes digests while the same bytes are written; none without

    def put(self, file: IO[bytes], item: _Item) -> str:
        """Write a tensor's bytes and return their SHA-256, or "" if none is wanted."""
        digest, written = hashlib.sha256(), 0
        for chunk in item.chunks():
            data = chunk.view(np.uint8).data
            if self.pool is None:
                file.write(data)
            else:
                digested = self.pool.submit(digest.update, data)
                file.write(data)
                digested.result()
            written += data.nbytes
            self.done += data.nbytes
            if self.progress is not None:
                self.progress(self.done, self.total)
        if written != item.nbytes:
            should = f"a tensor of shape {item.tensor.shape} has {item.nbytes:,} bytes"
            cure = "return all of a block from read()"
            raise OptionError(message(f"bytes of {item.name}", written, should, cure))
        return "" if self.pool is None else digest.hexdigest()


# The command --------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    plans_or_arrays: Mapping[str, Plan | NDArray[Any] | Tensor],
    *,
    dtype: Any = None,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    digests: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write weights into ``.safetensors``, ``.npz`` or ``.weights.h5``, whole or not at all.

    Memory is bounded whatever the size, and the same input gives the same bytes. Weights that
    IDInit does not define (embeddings, normalisation) are for you to add as arrays or as tensors
    of another checkpoint; without them load with ``strict=False``, or with ``from_pretrained``,
    which fills them in by the model's own initialisation.

    Parameters
    ----------
    path : path
        Its suffix says the format. A file of that name is replaced, once the new one is complete
        (of a symbolic link, the file that it names); until then it is ``NAME.part-<hex>`` there.
        ``.h5`` needs h5py; a tensor's name is the path of its dataset, and bfloat16 is stored as
        Keras stores it, which reads ``.weights.h5``.
    plans_or_arrays : mapping of str to Plan, numpy.ndarray or idinit_ref.storage.Tensor
        Every tensor by its name. An array may have any strides, and NaN and infinities where the
        file's dtype has them.
    dtype : dtype, optional
        Of all plans and of all real arrays, rounded once to nearest even: float64, float32,
        float16, bfloat16, float8_e4m3fn, float8_e5m2, or complex64. If left out, plans are
        float32 and arrays as they are; integers and bools are always as they are. ``.npz`` holds
        no bfloat16, and neither it nor ``.h5`` holds float8.
    shard_bytes : int, optional
        For ``.safetensors``: the most bytes of tensors in a file, as Hugging Face counts and
        splits them. ``model.safetensors`` is then written as ``model-00001-of-00003.safetensors``
        and so on, with ``model.safetensors.index.json``, unless one file holds it all. Whatever
        else of that checkpoint is there, whole or in shards, is removed when the new files are in
        place: a loader would take it for a part of them, or for all.
    metadata : mapping of str to str, optional
        More entries for the file's metadata: of ``.npz`` the archive's comment, as JSON, and of
        ``.h5`` the root's attributes. It has the version as ``idinit_ref``.
    digests : bool
        Whether to store the SHA-256 of each tensor's bytes.
    progress : callable, optional
        Called as ``progress(bytes_written, bytes_in_all)`` after each block.

    Raises
    ------
    OptionError, OptionTypeError, ShapeError
        If the suffix, a name, a value or another option does not fit.
    DTypeError, RoundingError
        If a dtype is not one of those, or cannot hold a value (spec section 5).
    OSError
        If the files cannot be written. On any error there is no new file, and an old one is whole.
    ImportError
        If h5py is needed and not installed.

    Notes
    -----
    The options of every plan and the digests are stored as ``idinit_ref.plans`` and
    ``idinit_ref.sha256``, JSON objects by name, in a ``.safetensors`` file's metadata; and of each
    tensor as ``idinit_ref.plan`` and ``idinit_ref.sha256``, in its attributes in an ``.h5`` file
    and in its member's comment, a JSON object, in an ``.npz`` file (65,535 bytes at most: options
    that are longer are left out).

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
    try:
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1)) if digests else None
            feed = _Feed(sum(item.nbytes for item in job.items), progress, pool)
            new = stack.enter_context(_together(job.stale))
            for part, items in job.files:
                with new(job.target(part)) as file:
                    job.form.write(file, items, job.about, feed)
            if job.index is not None:
                with new(job.target(job.index.path)) as file:
                    file.write(job.index.content)
    except OSError as problem:
        if problem.filename is not None and not _is_ours(problem.filename, job):
            raise  # of what was to be read
        size = sum(file.nbytes for file in job.layout(digests))
        raise OSError(  # of the same class: Python chooses it by the number
            problem.errno or errno.EIO,
            message(
                "path",
                str(path),
                f"it could not be written ({problem.strerror or problem})",
                f"check that the folder exists and takes files, with {size:,} bytes free; "
                "nothing was changed",
            ),
        ) from problem


def _is_ours(name: object, job: _Job) -> bool:
    folder = Path(os.path.realpath(job.path)).parent
    target = Path(os.fsdecode(cast("Any", name)))
    return target.parent in (folder, job.path.parent) and target.name.startswith(job.path.stem)


def layout_of(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Plan | NDArray[Any] | Tensor],
    *,
    dtype: Any = None,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
    digests: bool = False,
) -> tuple[FilePlan, ...]:
    """Return the files that `save` would write, and make nothing.

    Parameters
    ----------
    path, tensors, dtype, shard_bytes, metadata, digests
        As in :func:`save`.

    Returns
    -------
    tuple of FilePlan
        Every file, the index of shards last.

    Raises
    ------
    OptionError, OptionTypeError, DTypeError, RoundingError, ImportError
        As in :func:`save`, but for the values of arrays, which are not looked at.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> made = {"fc1.weight": ir.plan((4, 3)), "fc2.weight": ir.plan((3, 4), "zero")}
    >>> for file in layout_of("model.safetensors", made, shard_bytes=50):
    ...     print(file.path, file.names)
    model-00001-of-00002.safetensors ('fc1.weight',)
    model-00002-of-00002.safetensors ('fc2.weight',)
    model.safetensors.index.json ()
    """
    return _decide(path, tensors, dtype, shard_bytes, metadata).layout(digests)


# What is to be written ----------------------------------------------------------------------------


class _Index(NamedTuple):
    """The file that says which tensor is in which shard."""

    path: Path
    content: bytes


@dataclass(frozen=True)
class _Job:
    """What is to be written, with every name and option checked."""

    form: _Form
    path: Path
    files: list[tuple[Path, list[_Item]]]
    index: _Index | None
    about: dict[str, str]
    tidy: bool  # whether other forms of this checkpoint are to go

    @property
    def items(self) -> list[_Item]:
        return [item for _, items in self.files for item in items]

    def layout(self, digests: bool) -> tuple[FilePlan, ...]:
        found = [
            FilePlan(path, self.form.size(items, self.about, digests), tuple(i.name for i in items))
            for path, items in self.files
        ]
        if self.index is not None:
            found.append(FilePlan(self.index.path, len(self.index.content), ()))
        return tuple(found)

    def target(self, path: Path) -> Path:
        """Return where a file is to be: of a single one that is a link, where that leads."""
        if self.index is None:
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(path.parent), path.name)

    def stale(self) -> list[Path]:
        """Return what else is there of this checkpoint, the index first."""
        if not self.tidy:
            return []
        names = {path.name for path, _ in self.files}
        names |= {self.index.path.name} if self.index is not None else set()
        stem = re.escape(self.path.stem)
        other = re.compile(
            rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{stem}\.safetensors\.index\.json"
        )
        found = [
            path
            for path in Path(os.path.realpath(self.path.parent)).iterdir()
            if other.fullmatch(path.name) and path.name not in names
            if path.is_symlink() or not path.is_dir()
        ]
        return sorted(found, key=lambda path: (path.suffix != ".json", path.name))


def _decide(
    given: object, tensors: object, dtype: Any, shard_bytes: object, metadata: object
) -> _Job:
    if not isinstance(given, (str, os.PathLike)):
        should = "it should be a path as str or os.PathLike"
        raise OptionTypeError(message("path", given, should, "write 'model.safetensors'"))
    path = Path(given)
    if path.suffix not in _FORMS:
        should = "its suffix should be .safetensors, .npz or .weights.h5"
        raise OptionError(message("path", str(given), should, "give a file name that ends so"))
    form = _FORMS[path.suffix]
    keras = path.name.endswith(".weights.h5")
    to = None if dtype is None else format_of(dtype).name
    if to is not None and to not in form.dtypes:
        should = f"{form.what} holds {', '.join(name for name in FLOATS if name in form.dtypes)}"
        raise DTypeError(message("dtype", to, should, "choose one"))
    limit = None if shard_bytes is None else integer("shard_bytes", shard_bytes, low=1)
    if limit is not None and path.suffix != ".safetensors":
        should = f"only a .safetensors checkpoint has shards, and {path.name} is none"
        raise OptionError(message("shard_bytes", limit, should, "leave it out"))
    about = _about(metadata)
    items = [_item(*pair, to, form) for pair in _mapping("plans_or_arrays", tensors).items()]
    odd = [item.name for item in items if keras and not _VARIABLE.fullmatch(item.name)]
    if odd:
        should = "in a .weights.h5 file, Keras finds what is named LAYER/vars/NUMBER alone"
        cure = "translate PyTorch's names (--dialect keras), or name the file .h5"
        raise OptionError(message("name", odd[0], should, cure))
    shards = [items] if limit is None else _shards(items, limit)
    if len(shards) == 1:
        files, index = [(path, form.order(items))], None
    else:
        count = len(shards)
        if count > _SHARDS:
            should = f"there should be at most {_SHARDS:,} shards, not {count:,}"
            raise OptionError(message("shard_bytes", limit, should, "let a shard hold more"))
        files = [
            (path.with_name(f"{path.stem}-{k:05d}-of-{count:05d}.safetensors"), form.order(shard))
            for k, shard in enumerate(shards, 1)
        ]
        index = _index(path, files)
    for _, some in files:
        form.check(some, about)
    return _Job(form, path, files, index, about, tidy=limit is not None)


def _mapping(name: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        should = "it should be a mapping with names as its keys"
        raise OptionTypeError(message(name, type(value).__name__, should, "pass a dict"))
    return value


def _about(metadata: object) -> dict[str, str]:
    """Return a file's own entries: the version, and the caller's."""
    from . import __version__  # here, so that the package may import this module

    more = {} if metadata is None else _mapping("metadata", metadata)
    for key, value in more.items():
        if not isinstance(key, str) or not isinstance(value, str):
            should = "keys and values should be strings"
            cure = "use json.dumps for anything else"
            raise OptionTypeError(message("metadata", {key: value}, should, cure))
        for text in (key, value):
            try:
                text.encode()
            except UnicodeEncodeError:
                should = "it should be text that UTF-8 holds, without lone surrogates"
                cure = "decode it with errors='replace'"
                raise OptionError(message("metadata", text, should, cure)) from None
    return {"idinit_ref": __version__, **more}


def _shards(items: list[_Item], limit: int) -> list[list[_Item]]:
    """Cut a model as Hugging Face does: in order, as much in each as it may hold."""
    shards: list[list[_Item]] = []
    current: list[_Item] = []
    size = 0
    for item in items:
        if item.nbytes > limit:  # alone, and those around it stay together
            shards.append([item])
            continue
        if size + item.nbytes > limit:
            shards.append(current)
            current, size = [], 0
        current.append(item)
        size += item.nbytes
    return [*shards, current] if current or not shards else shards


def _index(path: Path, files: list[tuple[Path, list[_Item]]]) -> _Index:
    where = {item.name: file.name for file, items in files for item in items}
    size = sum(item.nbytes for _, items in files for item in items)
    content = {"metadata": {"total_size": size}, "weight_map": where}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return _Index(path.with_name(f"{path.name}.index.json"), text.encode())


# Whole or not at all ------------------------------------------------------------------------------


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    Raises
    ------
    OSError
        If it cannot be written; nothing is left then, nor after any other exception.
    """
    with _together(list) as new, new(target) as file:
        yield file


@contextmanager
def _together(
    stale: Callable[[], Sequence[Path]],
) -> Iterator[Callable[[Path], AbstractContextManager[BinaryIO]]]:
    """Yield what opens new files; they appear under their names together, and `stale` goes."""
    parts: list[tuple[Path, Path]] = []

    @contextmanager
    def new(target: Path) -> Iterator[BinaryIO]:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part = _beside(target, "part")
        parts.append((part, target))
        with open(part, "xb") as file:
            with suppress(OSError, AttributeError):  # there is none yet, or no rights are known
                os.fchmod(file.fileno(), os.stat(target).st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())

    try:
        yield new
        _rename(parts, stale())
    except BaseException:
        _remove(part for part, _ in parts)
        raise


def _beside(path: Path, what: str) -> Path:
    """Return a new name in the same folder, of the bytes that a name may have."""
    end = f".{what}-{secrets.token_hex(8)}"
    return path.with_name(os.fsdecode(os.fsencode(path.name)[: 255 - len(end)]) + end)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _rename(parts: list[tuple[Path, Path]], stale: Sequence[Path]) -> None:
    """Give new files their names and take away the old ones: all of it, or on an error nothing.

    The last new file (the index of shards) comes last, and the old one of its name goes first, so
    that even a machine that stops here leaves no mixture that loads.
    """
    if len(parts) == 1 and not stale:
        os.replace(*parts[0])
        return
    old = [*stale, *(target for _, target in reversed(parts) if os.path.lexists(target))]
    aside = [
        (path, _beside(path, "old")) for path in sorted(old, key=lambda p: p.suffix != ".json")
    ]
    moves = [*aside, *parts]
    try:
        for source, goal in moves:
            os.replace(source, goal)
    except BaseException:
        for source, goal in reversed(moves):
            if not os.path.lexists(source):  # it was moved
                with suppress(OSError):
                    os.replace(goal, source)
        raise
    try:
        _remove(path for _, path in aside)
    except BaseException:  # stopped: the new files are there, so go on
        _remove(path for _, path in aside)
        raise


# Formats ------------------------------------------------------------------------------------------


class _Form(NamedTuple):
    """A file format: what it holds, and how it is written."""

    what: str
    dtypes: Sequence[str]
    order: Callable[[list[_Item]], list[_Item]]
    check: Callable[[list[_Item], dict[str, str]], None]
    size: Callable[[list[_Item], dict[str, str], bool], int]
    write: Callable[[BinaryIO, list[_Item], dict[str, str], _Feed], None]


def _place_holders(items: list[_Item], digests: bool) -> dict[str, str]:
    return {item.name: _NO_DIGEST for item in items} if digests else {}


# safetensors: length, JSON, data


def _sorted(items: list[_Item]) -> list[_Item]:
    """Return tensors in the format's own order: those of wide dtypes first, then by name."""
    order = list(DTYPES)
    return sorted(items, key=lambda item: (-order.index(item.dtype), item.name))


def _header(items: list[_Item], about: dict[str, str], digests: dict[str, str]) -> bytes:
    """Return the header's length and JSON, padded so that the data begins at a multiple of 8."""
    plans = {i.name: options for i in items if (options := i.options) is not None}
    own = {"format": "pt", "idinit_ref.plans": json.dumps(plans)}
    if digests:
        own["idinit_ref.sha256"] = json.dumps(digests)
    entries: dict[str, object] = {"__metadata__": own | about}
    offset = 0
    for item in items:
        entries[item.name] = {
            "dtype": DTYPES[item.dtype],
            "shape": item.tensor.shape,
            "data_offsets": (offset, offset := offset + item.nbytes),
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    if len(text) > HEADER:  # more than is read; the plans can be found from the numbers
        del own["idinit_ref.plans"]
        entries["__metadata__"] = own | about
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check_safetensors(items: list[_Item], about: dict[str, str]) -> None:
    size = 150 * len(items) + sum(len(item.name) for item in items) + len(json.dumps(about))
    if size > HEADER and (size := len(_header(items, about, {}))) > HEADER:
        should = f"a file's header of {size:,} bytes should have at most {HEADER:,}"
        cure = "write several files (shard_bytes), or fewer and shorter names and metadata"
        raise OptionError(message("tensors", len(items), should, cure))


def _safetensors_size(items: list[_Item], about: dict[str, str], digests: bool) -> int:
    head = _header(items, about, _place_holders(items, digests))
    return len(head) + sum(item.nbytes for item in items)


def _write_safetensors(
    file: BinaryIO, items: list[_Item], about: dict[str, str], feed: _Feed
) -> None:
    file.write(_header(items, about, _place_holders(items, feed.pool is not None)))
    found = {item.name: feed.put(file, item) for item in items}
    if feed.pool is not None and items:
        file.seek(0)
        file.write(_header(items, about, found))


# npz: a zip file, not compressed, of .npy files


def _npy_header(item: _Item) -> bytes:
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(carrier(item.dtype).newbyteorder("<"))
    header = {"descr": descr, "fortran_order": False, "shape": item.tensor.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _comment(item: _Item, digest: str) -> bytes:
    options = item.options
    about: dict[str, object] = {} if options is None else {"idinit_ref.plan": options}
    if digest:
        about["idinit_ref.sha256"] = digest
    text = json.dumps(about).encode() if about else b""
    if len(text) > _COMMENT:  # of a plan with thousands of blocks
        text = json.dumps({"idinit_ref.sha256": digest}).encode() if digest else b""
    return text


def _check_npz(items: list[_Item], about: dict[str, str]) -> None:
    for item in items:
        if item.name.endswith(".npy"):
            should = "numpy.load would confuse it with another, if it ends in .npy"
            raise OptionError(message("name", item.name, should, "rename it"))
        size = len(f"{item.name}.npy".encode())
        if size > _COMMENT:
            should = f"with .npy it has {size:,} bytes, and an .npz file holds {_COMMENT:,} of it"
            raise OptionError(message("name", f"{item.name[:60]}...", should, "shorten it"))
    size = len(json.dumps(about).encode())
    if size > _COMMENT:
        should = f"{size:,} bytes are more than the {_COMMENT:,} that an .npz file holds"
        raise OptionError(message("metadata", [*about], should, "shorten it, or use .safetensors"))


def _npz_size(items: list[_Item], about: dict[str, str], digests: bool) -> int:
    offset, listing = 0, 0
    for item in items:
        name, size = len(f"{item.name}.npy".encode()), len(_npy_header(item)) + item.nbytes
        wide = 2 * (size > _ZIP64) + (offset > _ZIP64)  # numbers of 8 bytes
        comment = len(_comment(item, _NO_DIGEST * digests))
        listing += 46 + name + comment + (4 + 8 * wide if wide else 0)
        offset += 30 + name + 20 * (size * 1.05 > _ZIP64) + size
    end = 22 + len(json.dumps(about).encode())
    if len(items) > 2**16 - 1 or max(offset, listing) > _ZIP64:
        end += 56 + 20
    return offset + listing + end


def _write_npz(file: BinaryIO, items: list[_Item], about: dict[str, str], feed: _Feed) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = json.dumps(about).encode()
        for item in items:
            info = zipfile.ZipInfo(f"{item.name}.npy")  # of the year 1980, always
            head = _npy_header(item)
            info.file_size = len(head) + item.nbytes
            with archive.open(info, "w") as member:
                member.write(head)
                digest = feed.put(member, item)
            info.comment = _comment(item, digest)


# h5: the structure by h5py, the data between by hand


class _Structure:
    """A file for h5py that keeps what is written, and where."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def write(self, data: Any) -> int:
        self.written.append((self.at, bytes(data)))
        self.at += len(data)
        self.size = max(self.size, self.at)
        return len(data)

    def read(self, count: int) -> bytes:
        found = bytearray(count)
        for start, data in self.written:
            low, high = max(start, self.at), min(start + len(data), self.at + count)
            if low < high:
                found[low - self.at : high - self.at] = data[low - start : high - start]
        self.at += count
        return bytes(found)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        return self.size

    def flush(self) -> None:
        pass


def _structure(
    items: list[_Item], about: dict[str, str], digests: dict[str, str]
) -> tuple[_Structure, list[int | None]]:
    """Return an HDF5 file without its data, and where the data of each tensor is to be."""
    try:
        import h5py
    except ImportError as problem:
        cure = 'pip install "idinit-ref[export]"'
        raise ImportError(f"to write .h5 files needs h5py: {cure}") from problem
    structure, places = _Structure(), []
    own = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    own.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # a place in the file now
    own.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    own.set_obj_track_times(False)
    link = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    link.set_create_intermediate_group(True)
    link.set_char_encoding(h5py.h5t.CSET_UTF8)
    with h5py.File(structure, "w") as file:
        for key, value in about.items():
            file.attrs[key] = value
        for item in items:
            bf16 = item.dtype == "bfloat16"
            dtype = np.dtype("V2") if bf16 else carrier(item.dtype).newbyteorder("<")
            dataset = h5py.Dataset(  # create_dataset() would give a scalar no place
                h5py.h5d.create(
                    file.id,
                    item.name.encode(),
                    h5py.h5t.py_create(dtype, logical=True),
                    h5py.h5s.create_simple(item.tensor.shape),
                    own,
                    link,
                )
            )
            if bf16:
                dataset.attrs["dtype"] = "bfloat16"
            options = item.options
            if options is not None:
                dataset.attrs["idinit_ref.plan"] = json.dumps(options)
            if digests:
                dataset.attrs["idinit_ref.sha256"] = digests[item.name]
            places.append(dataset.id.get_offset())
    return structure, places


def _check_h5(items: list[_Item], about: dict[str, str]) -> None:
    names = {item.name for item in items}
    for name in names:
        for parent in map(str, PurePosixPath(name).parents):
            if parent in names:
                should = f"{parent!r} cannot be a tensor and a folder of others in an .h5 file"
                raise OptionError(message("name", name, should, "rename one"))
    try:
        _structure([], about, {})
    except (ValueError, OSError, RuntimeError) as problem:
        should = f"an .h5 file cannot hold it ({problem})"
        cure = "shorten it, without NUL characters, or use .safetensors"
        raise OptionError(message("metadata", [*about], should, cure)) from problem


def _h5_size(items: list[_Item], about: dict[str, str], digests: bool) -> int:
    return _structure(items, about, _place_holders(items, digests))[0].size


def _write_h5(file: BinaryIO, items: list[_Item], about: dict[str, str], feed: _Feed) -> None:
    structure, places = _structure(items, about, _place_holders(items, feed.pool is not None))
    digests = {}
    for item, place in zip(items, places, strict=True):
        if place is not None:
            file.seek(place)
        digests[item.name] = feed.put(file, item)
    if feed.pool is not None:
        structure, _ = _structure(items, about, digests)
    for place, data in structure.written:
        file.seek(place)
        file.write(data)
    file.truncate(structure.size)


_ZIP64 = 2**31 - 1  # what zipfile writes in 4 bytes
_NUMPY = [name for name in DTYPES if carrier(name).name == name]  # NumPy's own

_FORMS = {
    ".safetensors": _Form(
        "a safetensors file",
        list(DTYPES),
        _sorted,
        _check_safetensors,
        _safetensors_size,
        _write_safetensors,
    ),
    ".npz": _Form("an .npz file", _NUMPY, list, _check_npz, _npz_size, _write_npz),
    ".h5": _Form("an .h5 file", [*_NUMPY, "bfloat16"], list, _check_h5, _h5_size, _write_h5),
}
