"""``idinit export``: writes the weights of a preset, a manifest or a checkpoint's header."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ..core.plan import Plan
from ..core.text import some
from ..errors import OptionError, message
from ..files import assembly, sources
from ..files.bits import FLOATS, itemsize
from ..files.containers import FORMS
from ..files.dialects import load
from ..files.fills import parse_fill
from ..files.reading import Checkpoint, open_checkpoint
from ..files.storage import Tensor, nbytes_of
from ..files.translating import translate
from ..files.writing import FilePlan, file_plans, forms_of, save
from ._terminal import Console, columns, duration, print_json, progress, tensors

_TRIAL = 2**25  # bytes written to measure the speed of a folder
_TABLE = re.compile("(position )?embedding(, and the head that is tied to it)?")  # reasons
_UNITS = {"": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", 1)
    for unit, base in ((letter + "b", 1000), (letter + "ib", 1024))
}


def run(args: Namespace, console: Console) -> None:
    """Write the files and print their content; with ``args.dry_run`` only print it."""
    source = sources.read(preset=args.preset, manifest=args.manifest, checkpoint=args.checkpoint)
    keep = None if args.keep_from is None else open_checkpoint(args.keep_from)
    assembled = _assemble(args, source, keep)
    inputs = list(source.files)
    if keep is not None:
        inputs += [Path(args.keep_from), *keep.files]
    values = assembled.values
    dialect = load(args.dialect or "torch")
    if args.dialect is not None:
        values = translate(
            {item.name: item.value for item in assembled.items},
            dialect,
            tables=[item.name for item in assembled.items if _TABLE.fullmatch(item.why)],
            metadata=None if keep is None else keep.metadata,
        )
        inputs += [Path(args.dialect)] * args.dialect.endswith(".json")
    shard = None if args.shard_size is None else _size(args.shard_size)
    if shard is not None and not args.out.endswith(".safetensors"):
        should = "only a .safetensors checkpoint has shards"
        raise OptionError(message("shard-size", args.shard_size, should, "leave it out"))
    if shard is None and args.force and args.out.endswith(".safetensors"):
        shard = sys.maxsize  # one file, and no old shards beside it
    options: dict[str, Any] = {"dtype": args.dtype, "shard_bytes": shard, "digests": args.digests}
    files = file_plans(args.out, values, **options)
    _check_free(args.out, [file.path for file in files], inputs, args.force)
    expected = ""
    if args.dry_run:
        expected = _expected(Path(args.out), sum(file.nbytes for file in files))
    else:
        with progress() as update:
            save(args.out, values, **options, progress=update)
    if args.json:
        print_json(console, _to_dict(assembled, files, args.dtype))
        return
    _print_roles(assembled, args.dtype, console)
    _print_files(args, assembled, files, console)
    if args.dry_run:
        console.show(expected)
        return
    whole = all(item.value is not None for item in assembled.items)
    if not whole:
        left = "IDInit does not define the tensors left out; they keep the model's initialisation."
        console.show("\n" + left)
    if lines := _loading(files, dialect.name, source.about, whole):
        console.show("\n  " + "\n  ".join(lines))


def _assemble(
    args: Namespace, source: sources.Source, keep: Checkpoint | None
) -> assembly.Assembly:
    """Decide every tensor; with ``--strict`` raise if one is left out."""
    assembled = assembly.assemble(
        source.tensors,
        own=[assembly.parse_rule(text) for text in args.rules],
        gain=args.gain,
        eps=args.eps,
        wide=args.wide,
        keep_from=keep,
        fills=[parse_fill(text) for text in args.fills],
        model_type=source.model_type,
    )
    left_out = [f"{item.name} ({item.why})" for item in assembled.items if item.value is None]
    if args.strict and left_out:
        cure = "copy them (--keep-from), fill them (--fill), or leave out --strict"
        should = "with --strict no tensor should be left out"
        raise OptionError(message("left out", some(left_out), should, cure))
    return assembled


def _print_files(
    args: Namespace, assembled: assembly.Assembly, files: Sequence[FilePlan], console: Console
) -> None:
    for file in files:
        count, text = len(file.names), f"{file.path}: {file.nbytes:,} bytes"
        if count:
            text += f", {args.dtype}, {tensors(count)}"
        console.show(text)
    if assembled.unused:
        console.show(f"not used of {args.keep_from}: {some(assembled.unused)}")


def _to_dict(assembled: assembly.Assembly, files: Sequence[FilePlan], dtype: str) -> dict[str, Any]:
    """Return the written files and tensors, for JSON."""
    decided = {
        item.name: {"shape": item.shape, "role": item.role, "origin": item.origin, "why": item.why}
        | {"bytes": None if item.value is None else _nbytes(item.value, dtype)}
        for item in assembled.items
    }
    written = [{"path": f.path, "bytes": f.nbytes, "tensors": f.names} for f in files]
    return {"dtype": dtype, "files": written, "tensors": decided, "not_used": assembled.unused}


def _size(text: str) -> int:
    """Return the bytes of "5GB" (decimal) or "5GiB" (binary), in Hugging Face's notation."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?b?)", text.strip().lower(), re.ASCII)
    unit = _UNITS.get(match[2] if match else "?") if not match or match[2] != "b" else 1
    size = int(float(match[1]) * unit) if match and unit and len(match[1]) < 20 else 0
    if size < 1:
        should = "it should be a positive number with B, kB, MB, GB, TB or KiB, MiB, GiB, TiB"
        raise OptionError(message("shard-size", text, should, "write 5GB"))
    return size


def _forms(out: str) -> list[Path]:
    """Return the existing files of a checkpoint of this name, whole or in shards."""
    target, real = Path(out), Path(os.path.realpath(out))
    files = [target] if os.path.lexists(target) else []
    if target.suffix == ".safetensors" and real.parent.is_dir():
        files += [*forms_of(target), *forms_of(real)]  # `out` may be a link to another folder
    return files


def _identity(path: Path) -> tuple[int, int]:
    """Return the identity of a file, the same for all its names and links."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _check_free(out: str, files: Iterable[Path], inputs: Sequence[Path], force: bool) -> None:
    """Raise if an input would be replaced, or without --force any other file."""
    existing = _forms(out)
    for path in files:
        if path.is_dir() and FORMS[path.suffix].write is not None:
            should = "it should be the name of a file, not of a folder"
            raise OptionError(message("out", str(path), should, "choose another name"))
    read: dict[tuple[int, int], Path] = {}
    for name in inputs:
        for path in (name, *Path(os.path.realpath(name)).parents):  # also the folders around it
            with suppress(OSError):
                read[_identity(path)] = name
    for path in dict.fromkeys((*existing, *files)):
        with suppress(OSError):
            if source := read.get(_identity(path)):
                should = f"it should be another file than the input {source}"
                raise OptionError(message("out", str(path), should, "choose another name"))
    if existing and not force:
        should = "this file should not exist yet"
        cure = "choose another name, or add --force to replace it"
        raise OptionError(message("out", str(existing[0]), should, cure))


def _print_roles(assembled: assembly.Assembly, dtype: str, console: Console) -> None:
    groups: dict[str, list[tuple[int, int]]] = {role: [] for role in ("transit", "zero", "bias")}
    for item in assembled.items:
        group: str = item.role
        if item.origin not in ("IDI", "IDIZ", "IDI+IDIZ", "zeros"):
            group = f"{item.origin}: {item.why}"
        entries = prod(item.shape)
        nbytes = _nbytes(item.value, dtype) if item.value is not None else 0
        groups.setdefault(group, []).append((entries, nbytes))
    rows = []
    for group, sizes in groups.items():
        entries, nbytes = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
        written = "-" if group.startswith("left out") else f"{nbytes:,}"
        rows.append((group, f"{len(sizes):,}", f"{entries:,}", written))
    console.show(columns(rows, ["role", "tensors", "entries", "bytes"], numbers=3) + "\n")


def _nbytes(value: Plan | Tensor, dtype: str) -> int:
    if isinstance(value, Plan):
        return prod(value.shape) * itemsize(dtype)
    own = value.dtype
    return nbytes_of(value, dtype if own is None or own in FLOATS else own)


def _loading(
    files: Sequence[FilePlan], dialect: str, about: Mapping[str, Any], whole: bool
) -> list[str]:
    """Return lines of Python that load the files with the framework's own tools."""
    first, framework = files[0].path, {"torch": "torch", "flax": "flax"}.get(dialect)
    path = repr(str(first))
    if dialect == "keras" and first.suffix == ".h5":
        return [f"model.load_weights({path}{'' if whole else ', skip_mismatch=True'})"]
    if dialect == "torch" and first.suffix == ".npz":
        heads = ["import numpy", "import torch"]
        held = [f"held = {{k: torch.from_numpy(v) for k, v in numpy.load({path}).items()}}"]
    elif framework and first.suffix == ".safetensors":
        heads, held = (
            [f"from safetensors.{framework} import load_file"],
            [f"held = load_file({path})"],
        )
        if len(files) > 1:
            each = r"-*-of-\1.safetensors"
            shards = re.sub(r"-\d{5}-of-(\d{5})\.safetensors$", each, glob.escape(str(first)))
            heads.insert(0, "from glob import glob")
            held = ["held = {}", f"for file in glob({shards!r}):", "    held |= load_file(file)"]
    else:
        return []
    if dialect == "flax":
        end = [
            "state = nnx.state(model)",
            "for path, variable in nnx.to_flat_state(state):",
            "    if (name := '.'.join(map(str, path))) in held:",
            "        variable.set_value(held[name])",
            "nnx.update(model, state)",
        ]
        return ["from flax import nnx", *heads, "", *held, *end]
    if not any(name.endswith((".weight", ".bias")) for file in files for name in file.names):
        return []  # the names are another framework's
    end = ["model.load_state_dict(held, strict=False)"]
    if about:
        options = ", ".join(f"{key}={value!r}" for key, value in about["options"].items())
        heads.append(f"from transformers import {about['config']}, {about['class']}")
        end.insert(0, f"model = {about['class']}({about['config']}({options}))")
    return [*heads, "", *held, *end]


def _expected(out: Path, total: int) -> str:
    """Estimate the time to write the files, from a short write into their folder."""
    folder = Path(os.path.realpath(out)).parent
    try:
        free = shutil.disk_usage(folder).free
        size = max(min(total, _TRIAL, free // 2), 1)  # leave room for others
        start = time.perf_counter()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(problem.errno, problem.strerror, str(folder)) from problem
        return f"nothing was written; there is no room for {total:,} bytes"
    rate = size / (time.perf_counter() - start)
    lacks = "" if free > total else ", WHICH IS NOT ENOUGH"
    return (
        f"nothing was written; to write {total:,} bytes would take about "
        f"{duration(total / rate)} ({rate / 1e6:,.0f} MB/s, measured now); "
        f"{free:,} bytes are free{lacks}"
    )
