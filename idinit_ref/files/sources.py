"""Lists of tensors: from a preset, a manifest or a checkpoint's header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast, get_args

from ..core.layout import merge_axes
from ..core.options import choice, countable, real, sizes
from ..core.plan import Plan
from ..core.text import short
from ..errors import OptionError, OptionTypeError, ShapeError, message
from ..roles.names import Kind
from . import presets
from .disk import reachable
from .metadata import MalformedError, loads
from .naming import check_name
from .reading import open_checkpoint
from .storage import check_axes

_CAP = 32 * 2**20  # the most bytes of a manifest
OPTIONS = tuple(name for name in Plan.__dataclass_fields__ if name not in ("shape", "role", "axes"))
"""Options of `idinit_ref.plan` that a manifest or a rule may state."""

_NONE: Mapping[str, Any] = MappingProxyType({})


class Asked(NamedTuple):
    """One tensor of a source: its shape, and what the source states.

    ``role`` and ``options`` (of `idinit_ref.plan`) come from a manifest, ``dtype`` from a
    checkpoint. ``axes``, ``parted`` and ``value`` are those of `idinit_ref.roles.report.Entry`.
    """

    shape: tuple[int, ...]
    role: Kind | None = None
    options: Mapping[str, Any] = _NONE
    why: str = ""
    dtype: str | None = None
    axes: str = ""
    parted: tuple[int, ...] | None = None
    value: float = 0.0


class Source(NamedTuple):
    """Tensors by name, the files they were read from, and the origin of a preset.

    ``model_type`` is that of Hugging Face's ``config.json`` beside a checkpoint, "" without one. If
    a model has several parts, such as text and images, it is all their types, joined by "+".
    """

    tensors: dict[str, Asked]
    files: tuple[Path, ...] = ()
    about: Mapping[str, Any] = _NONE
    model_type: str = ""


def read(
    *,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Source:
    """Return the tensors of one source: names, shapes, and roles if it states them.

    Parameters
    ----------
    preset : str, optional
        A model of `idinit_ref.files.presets`.
    manifest : path, optional
        A JSON file: ``{name: shape}``, or ``{name: {"shape": ..., "role": ..., ...}}`` with options
        of `idinit_ref.plan` beside them or in ``"plan"``, as in `idinit_ref.Report.to_dict`. This
        mapping may also be the value of ``"tensors"``. ``"axes"`` beside the role is a letter for
        each axis, if several axes of inputs or of outputs count as one. ``"role"`` in the plan may
        be a list, a role for each block or matrix; the tensor's own is then "zero".
    checkpoint : path, optional
        A checkpoint for `idinit_ref.files.open_checkpoint`; only its header is read.

    Returns
    -------
    Source
        The tensors in the source's order.

    Raises
    ------
    OptionError, OptionTypeError, ShapeError
        If not exactly one source is given, or the manifest is not valid; the message names the
        tensor.
    CheckpointError
        If the checkpoint is not valid.
    OSError
        If a file cannot be read.

    Examples
    --------
    >>> read(preset="gpt2").tensors["transformer.wpe.weight"].shape
    (1024, 768)
    """
    given = [value for value in (preset, manifest, checkpoint) if value is not None]
    if len(given) != 1:
        should = "there should be exactly one of a preset, a manifest and a checkpoint"
        raise OptionError(message("source", given, should, "give one"))
    if preset is not None:
        model = presets.load(preset)
        return Source({k: Asked(v) for k, v in model.tensors.items()}, (), model.source)
    if manifest is not None:
        return Source(_read_manifest(Path(manifest)), (Path(manifest),))
    opened = open_checkpoint(cast("Path", checkpoint))
    if not opened.tensors:
        raise _empty(checkpoint)
    tensors = {k: Asked(tuple(t.shape), dtype=t.dtype) for k, t in opened.tensors.items()}
    files = (Path(cast("Path", checkpoint)), *opened.files)
    return Source(tensors, files, model_type=_model_type(opened.files[0].parent))


def _model_type(folder: Path) -> str:
    """Return the model type in a folder's configuration."""
    config: Any = None
    with suppress(OptionError, OSError):
        config = _json(folder / "config.json")
    return "+".join(dict.fromkeys(_types(config)))


def _types(config: Any) -> Iterator[str]:
    """Yield the model types in a configuration and in its nested configurations."""
    if isinstance(config, dict):
        if isinstance(config.get("model_type"), str):
            yield config["model_type"]
        for inner in config.values():
            yield from _types(inner)


def _empty(path: object) -> OptionError:
    return OptionError(message("source", str(path), "it should hold a tensor", "choose another"))


def _read_manifest(path: Path) -> dict[str, Asked]:
    """Return the tensors of a JSON manifest."""
    content = _json(path)
    if isinstance(content, dict) and "tensors" in content:  # with or without a preset's other keys
        inner = content["tensors"]
        if isinstance(inner, dict) and not isinstance(inner.get("shape"), list):
            for key in content:
                choice("manifest", key, ("tensors", "name", "source", "parameters", "warnings"))
            content = inner
    if not isinstance(content, dict):
        found = type(content).__name__
        should = f"it should hold an object, every tensor's name with its shape, not {found}"
        cure = 'write {"fc.weight": [4, 3]}'
        raise OptionTypeError(message("manifest", str(path), should, cure))
    if not content:
        raise _empty(path)
    return {check_name(name): _asked(name, given, path.name) for name, given in content.items()}


def _json(path: Path) -> Any:
    """Parse a JSON file; raise if it is not strict JSON, or a key repeats."""
    try:
        with reachable(path, "manifest"), open(path, "rb") as file:
            return loads(file.read(_CAP + 1), cap=_CAP)
    except MalformedError as problem:
        raise OptionError(
            message("manifest", str(path), problem.should, "correct the file")
        ) from None
    except ValueError as problem:  # a NUL in the name
        should = f"it should be the name of a file ({problem})"
        raise OptionError(message("manifest", str(path), should, "correct it")) from None


def _asked(name: str, given: object, file: str) -> Asked:
    """Return one tensor of a manifest."""
    label = f"tensor {name!r}"
    if isinstance(given, list):
        given = {"shape": given}
    if not isinstance(given, dict) or "shape" not in given:
        should = "it should be a list of sizes, or an object with its 'shape'"
        raise OptionTypeError(message(label, short(given), should, "write [4, 3]"))
    more = dict(given)
    plan = more.pop("plan", None)
    if plan is not None and not isinstance(plan, dict):
        should = "its plan should be an object of options, or null"
        raise OptionTypeError(message(label, short(plan), should, 'write {"layout": "IO"}'))
    shape = _sizes(label, more.pop("shape"))
    role = more.pop("role", None)
    axes, parted = more.pop("axes", None), more.pop("parted", None)
    value = real(f"value of {label}", more.pop("value")) if "value" in more else 0.0
    why = more.pop("why", "" if role is None else f"stated in {file}")
    if role is not None:
        choice(f"role of {label}", role, get_args(Kind))
    if not isinstance(why, str):
        raise OptionTypeError(message(label, short(why), "its 'why' should be text", "quote it"))
    options = more | (plan or {})
    for key, value_of in options.items():
        if key == "role" and isinstance(value_of, list):
            choice(f"role of {label}, whose plan has one for each block,", role, ("zero",))
        else:
            choice(f"option of {label}", key, OPTIONS)
    if (role in ("bias", "keep") or value) and (options or axes):
        should = f"in role {role!r} it should have no options"
        raise OptionError(message(label, short(options or axes), should, "leave them out"))
    asked = Asked(shape, cast("Kind | None", role), options, why, value=value)
    return asked if axes is parted is None else _with_axes(label, asked, axes, parted)


def _with_axes(label: str, asked: Asked, axes: object, parted: object) -> Asked:
    """Return a tensor whose stored axes differ from the axes of its plan."""
    shape = asked.shape if parted is None else _sizes(label, parted)
    if not isinstance(axes, str) or re.fullmatch(f"[A-Z]{{{len(shape)}}}", axes) is None:
        should = f"it should be a capital letter for each axis of {shape}"
        raise OptionError(message(f"axes of {label}", short(axes), should, "e.g. 'IOO'"))
    if joins(asked.shape, shape) is None:
        should = f"they should split the axes of the shape {asked.shape}"
        cure = "give the sizes of all axes, in order"
        raise ShapeError(message(f"parted axes of {label}", shape, should, cure))
    _, joined = merge_axes(shape, axes)
    layout = asked.options.get("layout", joined)
    if layout != joined:
        should = f"the layout of its plan should be {joined!r}, not {short(layout)!r}"
        raise OptionError(message(f"axes of {label}", axes, should, "make them agree"))
    options = {**asked.options, "layout": layout}
    return asked._replace(options=options, axes=axes, parted=None if parted is None else shape)


def joins(shape: Sequence[int], parted: Sequence[int]) -> list[int] | None:
    """Return how many parted axes each stored axis joins, or None if they do not match."""
    counts, left = [], list(parted)
    for size in shape:
        parts = [left.pop(0)] if left else []
        while left and prod(parts) != size:
            parts.append(left.pop(0))
        if not parts or prod(parts) != size:
            return None
        counts.append(len(parts))
    if prod(left) != 1 or not counts:
        return None
    return [*counts[:-1], counts[-1] + len(left)]


def _sizes(label: str, value: object) -> tuple[int, ...]:
    shape = sizes(f"shape of {label}", value, ShapeError)
    countable(shape)
    check_axes(label, shape)
    return shape
