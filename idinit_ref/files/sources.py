"""What is to be exported: the tensors of a preset, a manifest or a checkpoint, and their values.

Every tensor becomes IDI, IDIZ or zeros, is copied or filled where that was asked for by name, or is
left out; each with its reason. Nothing is invented.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate, islice, product
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ..core.layout import merge_axes
from ..core.options import choice, countable, real, sizes
from ..core.plan import Plan, plan
from ..errors import IDInitError, OptionError, OptionTypeError, ShapeError, message
from ..roles.names import RULES, Kind, Rule, decide, find
from . import presets
from .metadata import MalformedError, loads
from .storage import DTYPES, FLOATS, Held, Index, Made, Noise, Tensor, carrier, check_name, convert
from .views import rearrange

if TYPE_CHECKING:
    from .reading import Checkpoint

__all__ = [
    "Asked",
    "Assembly",
    "Choice",
    "Constant",
    "Fill",
    "Item",
    "Joined",
    "Source",
    "assemble",
    "choose",
    "made",
    "parse_fill",
    "parse_rule",
    "read",
    "some",
]

_CAP = 32 * 2**20  # bytes of a manifest
_AXES = 32  # NumPy 1's limit
_REASONS = 6  # that a message names
_NAME = 100  # letters of a name that a message shows
_STORED = ("groups", "transposed", "stride", "blocks", "taps", "tap")
_PLAN = ("layout", "gain", "eps", "wide", "form", *_STORED)
_OPTIONS = (*_PLAN, "loosen", "loosen_at", "seed")
_NONE: Mapping[str, Any] = MappingProxyType({})
_NUMBERS = {"num_batches_tracked": "int64", "position_ids": "int64"}  # no real numbers by name
_ONES = frozenset({"weight", "scale", "gamma", "running_var", "moving_variance", "var"})
_ZEROS = frozenset({"bias", "beta", "running_mean", "moving_mean", "mean", "num_batches_tracked"})


# What is asked for --------------------------------------------------------------------------------


class Asked(NamedTuple):
    """One tensor of a source: its shape, and what the source itself says of it.

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
    """Tensors by name, the files they were read from, and of a preset where it comes from."""

    tensors: dict[str, Asked]
    files: tuple[Path, ...] = ()
    about: Mapping[str, Any] = _NONE


def read(
    *,
    preset: str | None = None,
    manifest: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Source:
    """Return the tensors of one source: names, shapes, and roles where it states them.

    Parameters
    ----------
    preset : str, optional
        A model of `idinit_ref.files.presets`.
    manifest : path, optional
        A JSON file: ``{name: shape}``, or ``{name: {"shape": ..., "role": ..., ...}}`` with options
        of `idinit_ref.plan` beside them or in ``"plan"``, as `idinit_ref.Report.to_dict` returns
        it; alone, or as the value of ``"tensors"``. ``"axes"`` beside them is a letter for each
        axis, where several axes of inputs or of outputs count as one.
    checkpoint : path, optional
        What `idinit_ref.files.open_checkpoint` reads; of it the header alone.

    Returns
    -------
    Source
        The tensors in the source's order.

    Raises
    ------
    OptionError, OptionTypeError, ShapeError
        If not exactly one source is given, or the manifest is none; the tensor is named.
    CheckpointError
        If the checkpoint is none.
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
        found = presets.load(preset)
        return Source({k: Asked(v) for k, v in found.tensors.items()}, (), found.source)
    if manifest is not None:
        return Source(_read_manifest(Path(manifest)), (Path(manifest),))
    from .reading import open_checkpoint

    opened = open_checkpoint(cast("Path", checkpoint))
    if not opened.tensors:
        raise _empty(checkpoint)
    tensors = {k: Asked(tuple(t.shape), dtype=t.dtype) for k, t in opened.tensors.items()}
    return Source(tensors, (Path(cast("Path", checkpoint)), *opened.files))


def _empty(path: object) -> OptionError:
    return OptionError(message("source", str(path), "it holds no tensor", "choose another"))


def _read_manifest(path: Path) -> dict[str, Asked]:
    """Return what a JSON manifest asks for."""
    found = _json(path)
    if isinstance(found, dict) and "tensors" in found:  # with or without what a preset adds
        inner = found["tensors"]
        if isinstance(inner, dict) and not isinstance(inner.get("shape"), list):
            for key in found:
                choice("manifest", key, ("tensors", "name", "source", "parameters", "warnings"))
            found = inner
    if not isinstance(found, dict):
        should = "it should be an object: every tensor's name with its shape"
        cure = 'write {"fc.weight": [4, 3]}'
        raise OptionTypeError(message("manifest", type(found).__name__, should, cure))
    if not found:
        raise _empty(path)
    return {check_name(name): _asked(name, given, path.name) for name, given in found.items()}


def _json(path: Path) -> Any:
    """Return what a JSON file holds; raise for what is not exactly JSON, or is twice in it."""
    try:
        with open(path, "rb") as file:
            return loads(file.read(_CAP + 1), cap=_CAP, digits=20)
    except MalformedError as problem:
        raise OptionError(
            message("manifest", str(path), problem.should, "correct the file")
        ) from None
    except ValueError as problem:  # of the name
        should = f"it should be the name of a file ({problem})"
        raise OptionError(message("manifest", str(path), should, "correct it")) from None


def _asked(name: str, given: object, file: str) -> Asked:
    """Return what a manifest says of one tensor."""
    label = f"tensor {name!r}"
    if isinstance(given, list):
        given = {"shape": given}
    if not isinstance(given, dict) or "shape" not in given:
        should = "it should be a list of sizes, or an object with its 'shape'"
        raise OptionTypeError(message(label, _short(given), should, "write [4, 3]"))
    more = dict(given)
    plan = more.pop("plan", None)
    if plan is not None and not isinstance(plan, dict):
        should = "its plan should be an object of options, or null"
        raise OptionTypeError(message(label, _short(plan), should, 'write {"layout": "IO"}'))
    shape = _sizes(label, more.pop("shape"))
    role = more.pop("role", None)
    axes, parted = more.pop("axes", None), more.pop("parted", None)
    value = real(f"value of {label}", more.pop("value")) if "value" in more else 0.0
    why = more.pop("why", "" if role is None else f"as {file} says")
    if role is not None:
        choice(f"role of {label}", role, get_args(Kind))
    if not isinstance(why, str):
        raise OptionTypeError(message(label, _short(why), "its 'why' should be text", "quote it"))
    options = more | (plan or {})
    for key in options:
        choice(f"option of {label}", key, _OPTIONS)
    if (role in ("bias", "keep") or value) and (options or axes):
        should = f"in role {role!r} it has no options"
        raise OptionError(message(label, _short(options or axes), should, "leave them out"))
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    asked = Asked(shape, cast("Kind | None", role), tuples, why, value=value)
    return asked if axes is parted is None else _with_axes(label, asked, axes, parted)


def _with_axes(label: str, asked: Asked, axes: object, parted: object) -> Asked:
    """Return what a manifest says of a tensor whose axes are not those of its plan."""
    shape = asked.shape if parted is None else _sizes(label, parted)
    if not isinstance(axes, str) or re.fullmatch(f"[A-Z]{{{len(shape)}}}", axes) is None:
        should = f"it should be a capital letter for each axis of {shape}"
        raise OptionError(message(f"axes of {label}", _short(axes), should, "e.g. 'IOO'"))
    if _joins(asked.shape, shape) is None:
        should = f"they should cut the axes of the shape {asked.shape}"
        cure = "give the sizes of all axes, in order"
        raise ShapeError(message(f"parted axes of {label}", shape, should, cure))
    _, joined = merge_axes(shape, axes)
    layout = asked.options.get("layout", joined)
    if layout != joined:
        should = f"the layout of its plan should be {joined!r}, not {_short(layout)!r}"
        raise OptionError(message(f"axes of {label}", axes, should, "make them agree"))
    options = {**asked.options, "layout": layout}
    return asked._replace(options=options, axes=axes, parted=None if parted is None else shape)


def _joins(shape: Sequence[int], parted: Sequence[int]) -> list[int] | None:
    """Return how many of the parted axes make each stored one, or None if they do not."""
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
    if len(shape) > _AXES:
        should = f"it should have at most {_AXES} axes"
        raise ShapeError(message(f"shape of {label}", len(shape), should, "reshape it"))
    return shape


def _short(value: object) -> object:
    """Return a value of a file as a message shows it."""
    text = repr(value)
    return value if len(text) <= 60 else text[:57] + "..."


# Rules and fills in words -------------------------------------------------------------------------


def parse_rule(text: str) -> Rule:
    """Return the rule that ``REGEX=ROLE[,OPTION=VALUE...]`` describes.

    Parameters
    ----------
    text : str
        A regular expression for names, a role, and options of `idinit_ref.plan` or ``parts``;
        several sizes are joined by colons.

    Returns
    -------
    Rule

    Raises
    ------
    OptionError
        If it is none.

    Examples
    --------
    >>> rule = parse_rule(r"qkv[.]weight$=transit,layout=IO,blocks=8:4:4,gain=0.5")
    >>> rule.pattern, rule.role, dict(rule.options)
    ('qkv[.]weight$', 'transit', {'layout': 'IO', 'blocks': (8, 4, 4), 'gain': 0.5})
    """

    def wrong(should: str, cure: str) -> OptionError:
        return OptionError(message("rule", text, should, cure))

    roles = "|".join(get_args(Kind))
    found = re.fullmatch(rf"(?s)(.+)=({roles})((?:,[^,=]+=[^,=]*)*)", text)
    if found is None:
        raise wrong(
            f"it should be REGEX=ROLE[,OPTION=VALUE...], ROLE one of {roles}",
            r"write 'proj\.weight$=zero,layout=IO'",
        )
    pattern, role, rest = found.groups()
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as problem:
        raise wrong(f"its pattern is no regular expression ({problem})", "mend it") from None
    options: dict[str, Any] = {}
    for part in rest.split(",")[1:]:
        key, _, value = part.partition("=")
        choice("option of a rule", key, (*_OPTIONS, "parts"))
        try:
            options[key] = _OF_TEXT.get(key, str)(value)
        except (ValueError, KeyError):
            raise wrong(f"{value!r} is no value of {key}", "mend it") from None
    if options and role in ("bias", "keep"):
        raise wrong(f"the role {role!r} has no options", "leave them out")
    return Rule(pattern, cast("Kind", role), options, f"rule {pattern}")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(":"))


_OF_TEXT: dict[str, Any] = {
    **dict.fromkeys(("gain", "eps", "loosen"), float),
    **dict.fromkeys(("groups", "seed", "parts"), int),
    **dict.fromkeys(("blocks", "tap", "stride"), _integers),
    "transposed": lambda text: {"true": True, "false": False}[text.lower()],
}


@dataclass(frozen=True)
class Constant:
    """One number everywhere, as a tensor."""

    shape: tuple[int, ...]
    value: float
    dtype: None = None

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Return a block of it."""
        block = np.broadcast_to(np.float64(self.value), self.shape)[index]
        return convert(np.asarray(block), "float64", dtype, "constant")


@dataclass(frozen=True)
class Joined:
    """Another tensor whose neighbouring axes are joined: a reshape of it.

    Parameters
    ----------
    source : Tensor
        The other one.
    counts : tuple of int
        How many of its axes make each axis.
    """

    source: Tensor
    counts: tuple[int, ...]

    @property
    def _sizes(self) -> list[tuple[int, ...]]:
        """The sizes of the source's axes that make each axis."""
        sizes = iter(self.source.shape)
        return [tuple(islice(sizes, count)) for count in self.counts]

    @property
    def shape(self) -> tuple[int, ...]:
        """The joined axes."""
        return tuple(map(prod, self._sizes))

    @property
    def dtype(self) -> str | None:
        """The source's."""
        return self.source.dtype

    def read(self, index: Index, dtype: str) -> NDArray[Any]:
        """Read the boxes of the source that make up the block."""
        spans = [range(*s.indices(size)) for s, size in zip(index, self.shape, strict=True)]
        out = np.empty([len(span) for span in spans], carrier(dtype))
        boxes = [list(_boxes(s, k)) for s, k in zip(spans, self._sizes, strict=True)]
        at = [[0, *accumulate(prod(map(len, box)) for box in axis)] for axis in boxes]
        for place in product(*(range(len(axis)) for axis in boxes)):
            box = [span for axis, k in zip(boxes, place, strict=True) for span in axis[k]]
            where = tuple(slice(*ends[k : k + 2]) for ends, k in zip(at, place, strict=True))
            block = self.source.read(tuple(slice(s.start, s.stop) for s in box), dtype)
            out[where] = block.reshape(out[where].shape)
        return out


def _boxes(span: range, sizes: tuple[int, ...]) -> Iterator[tuple[range, ...]]:
    """Cut a run of joined axes into boxes of these axes, in order."""
    inner, at = prod(sizes[1:]), span.start
    while at < span.stop:
        place, start = divmod(at, inner)
        whole = 0 if start else (span.stop - at) // inner
        if whole:
            yield (range(place, place + whole), *map(range, sizes[1:]))
            at += whole * inner
        else:
            part = range(start, min(span.stop - place * inner, inner))
            for rest in _boxes(part, sizes[1:]):
                yield (range(place, place + 1), *rest)
            at = place * inner + part.stop


class Fill(NamedTuple):
    """A named rule for what IDInit does not define: which tensors, and what they get.

    Parameters
    ----------
    pattern : str
        A tensor's name, a reason why a tensor is left as it is ("normalisation": the source's own,
        or that of the rules by name), or a pattern of names as the shell has them.
    rule : {"zeros", "ones", "identity", "constant", "normal"}
        What they get.
    value : float
        The constant, or the standard deviation.
    seed : int
        Of the noise.
    text : str
        The rule as it was written.
    """

    pattern: str
    rule: str
    value: float = 0.0
    seed: int = 0
    text: str = ""

    def fits(self, name: str, reasons: Collection[str]) -> bool:
        """Whether it is for a tensor: by name for any, else only where IDInit defines nothing.

        Reasons are those to leave the tensor as it is; there are none if it is not left so.
        """
        if name == self.pattern:
            return True
        return any(fnmatchcase(text, self.pattern) for text in reasons and (name, *reasons))

    def tensor(self, name: str, asked: Asked) -> Tensor:
        """Return the values for a tensor.

        Noise is that of `idinit_ref.files.storage.Noise` with a seed of the tensor's own: the first
        63 bits of the SHA-256 of ``SEED:NAME``, so that it depends on no other tensor.
        """
        shape, leaf = asked.shape, re.split(r"[./]", name)[-1]
        value = {"zeros": 0.0, "ones": 1.0}.get(self.rule, self.value)
        if self.rule == "identity":
            if len(shape) > 1 or leaf not in _ONES | _ZEROS:
                raise OptionError(
                    message(
                        "fill",
                        f"{self.pattern}={self.text}",
                        f"{name} (shape {shape}) is no scale or shift, mean or variance",
                        "choose zeros, ones, constant:V or normal:STD",
                    )
                )
            value = float(leaf in _ONES)
        own = asked.dtype or _NUMBERS.get(leaf, "float32")
        if own in FLOATS:
            if self.rule == "normal":
                digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
                return Noise(shape, self.value, int.from_bytes(digest[:8], "little") >> 1)
            return Constant(shape, value)
        kind = np.dtype(own if own in DTYPES else "bool")
        least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if (
            own not in DTYPES
            or self.rule == "normal"
            or not value.is_integer()
            or not least <= value <= most
        ):
            raise OptionError(
                message(
                    "fill",
                    f"{self.pattern}={self.text}",
                    f"{name} is {own}, which holds no such number",
                    "name the others by a pattern that leaves it out, or copy it",
                )
            )
        return Held(np.broadcast_to(kind.type(int(value)), shape))


def parse_fill(text: str) -> Fill:
    """Return the fill that ``PATTERN=RULE`` describes.

    Parameters
    ----------
    text : str
        RULE is ``zeros``, ``ones``, ``identity`` (of a normalisation: scales and variances 1,
        shifts, means and counts 0), ``constant:V`` or ``normal:STD[:SEED]``.

    Returns
    -------
    Fill
        The rule, as `assemble` takes it.

    Raises
    ------
    OptionError
        If it is none.

    Examples
    --------
    >>> parse_fill("embedding=normal:0.02:7")
    Fill(pattern='embedding', rule='normal', value=0.02, seed=7, text='normal:0.02:7')
    """
    pattern, _, rule = text.rpartition("=")
    kind, *numbers = rule.split(":")
    most = {"zeros": 0, "ones": 0, "identity": 0, "constant": 1, "normal": 2}.get(kind, -1)
    try:
        value = float(numbers[0]) if numbers else 0.0
        seed = int(numbers[1]) if len(numbers) > 1 else 0
        right = pattern and min(most, 1) <= len(numbers) <= most and np.isfinite(value)
        right = right and 0 <= seed < 2**63 and not (kind == "normal" and value < 0)
    except ValueError:
        right = False
    if not right:
        raise OptionError(
            message(
                "fill",
                text,
                "it should be PATTERN=RULE, with the rule zeros, ones, identity, constant:V or "
                "normal:STD[:SEED]",
                "write 'normalisation=identity' or '*.wte.weight=normal:0.02'",
            )
        )
    return Fill(pattern, kind, value, seed, rule)


# What becomes of every tensor ---------------------------------------------------------------------


class Choice(NamedTuple):
    """What becomes of one tensor, and what says so: "manifest", "dtype" or a rule's pattern."""

    role: Kind
    options: Mapping[str, Any]
    why: str
    by: str


def choose(
    tensors: Mapping[str, Asked], *, own: Sequence[Rule] = (), rules: Sequence[Rule] = RULES
) -> dict[str, Choice | None]:
    r"""Return what becomes of every tensor, None where nothing says it.

    Your own rules come first, then what the source itself says, then the rules by name. Of a
    checkpoint, tensors that hold no real numbers are left as they are, unless a rule of your own
    says otherwise.

    Parameters
    ----------
    tensors : mapping of str to Asked
        Of a `Source`.
    own, rules : sequence of Rule
        Tried in order.

    Returns
    -------
    dict

    Raises
    ------
    OptionError
        If one of your own rules fits no name, options are for a tensor that has none, or as in
        `idinit_ref.roles.names.decide`.

    Examples
    --------
    >>> choose({"fc1.bias": Asked((3,)), "odd": Asked((3, 3))})
    {'fc1.bias': Choice(role='bias', options={}, why='bias', by='(^|\\.)bias$'), 'odd': None}
    """
    for rule in own:
        if not any(re.search(rule.pattern, name) for name in tensors):
            raise _fits_nothing("rule", rule.pattern, tensors)
    return {name: _choose(name, asked, own, rules, tensors) for name, asked in tensors.items()}


def _choose(
    name: str,
    asked: Asked,
    own: Sequence[Rule],
    rules: Sequence[Rule],
    names: Mapping[str, Asked],
) -> Choice | None:
    rule = find(name, own, names=names)
    if rule is None:
        if asked.role is not None:
            return Choice(asked.role, asked.options, asked.why, "manifest")
        rule = find(name, rules, names=names)
        real = asked.dtype is None or asked.dtype in FLOATS
        if not real and (rule is None or rule.role != "keep"):
            what = "no real numbers" if asked.dtype in DTYPES else "not decoded"
            return Choice("keep", {}, f"{asked.dtype}: {what}", "dtype")
        if rule is None:
            return None
    role, options, why = decide(name, asked.shape, (rule,), names=names)
    if asked.options and role in ("bias", "keep"):
        should = f"a rule makes {name} {role!r} ({why}), which has no options"
        raise OptionError(message("options", dict(asked.options), should, "state its role, too"))
    return Choice(role, {**options, **asked.options}, why, rule.pattern)


class Item(NamedTuple):
    """One tensor on its way into the file.

    ``origin`` is "IDI", "IDIZ", "zeros", "all 1e-06", "copied from FILE", "filled by RULE" or
    "left out"; ``value`` is a Plan or a Tensor, or None if it is left out.
    """

    name: str
    shape: tuple[int, ...]
    role: Kind
    why: str
    origin: str
    value: Plan | Tensor | None


class Assembly(NamedTuple):
    """All items, in the source's order, and the names that were there to be copied but unused."""

    items: tuple[Item, ...]
    unused: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Plan | Tensor]:
        """What is written, by name: for `idinit_ref.save`."""
        return {item.name: item.value for item in self.items if item.value is not None}


def assemble(
    tensors: Mapping[str, Asked],
    *,
    own: Sequence[Rule] = (),
    rules: Sequence[Rule] = RULES,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: str = "truncate",
    keep_from: Checkpoint | None = None,
    fills: Sequence[Fill] = (),
) -> Assembly:
    """Decide every tensor: made, zeros, filled, copied, or left out.

    Parameters
    ----------
    tensors : mapping of str to Asked
        Of a `Source`.
    own, rules : sequence of Rule
        As in :func:`idinit_ref.files.sources.choose`.
    gain, eps, wide
        Options of all plans that do not state their own.
    keep_from : Checkpoint, optional
        Holds what IDInit does not define, under the same names in the same shapes.
    fills : sequence of Fill
        What else IDInit does not define; a later one over an earlier, each over `keep_from`.

    Returns
    -------
    Assembly
        All items, in the order of the tensors, and what was not used.

    Raises
    ------
    OptionError
        If no rule knows a name, a fill fits no tensor, or `keep_from` lacks one.
    ShapeError, LayoutError, OptionTypeError
        As `idinit_ref.plan` raises them; the tensor is named.

    Examples
    --------
    >>> asked = {"lm_head.weight": Asked((6, 4)), "wte.weight": Asked((6, 4))}
    >>> [(item.name, item.origin) for item in assemble(asked).items]
    [('lm_head.weight', 'IDI'), ('wte.weight', 'left out')]
    >>> assemble(asked, fills=[parse_fill("embedding=normal:0.02")]).items[1].origin
    'filled by normal:0.02'
    """
    general: dict[str, dict[str, Any]] = {
        "transit": {"gain": gain, "wide": wide},
        "zero": {"eps": eps},
    }
    for role, options in general.items():
        plan((0, 0), cast("Any", role), **options)
    chosen = choose(tensors, own=own, rules=rules)
    known = {name: choice for name, choice in chosen.items() if choice is not None}
    if unknown := [name for name, choice in chosen.items() if choice is None]:
        raise _unknown(unknown, tensors[unknown[0]].shape)
    used: dict[str, Fill] = {}
    reasons = {name: _reasons(name, c, rules, tensors) for name, c in known.items() if fills}
    for fill in fills:
        fit = [name for name, why in reasons.items() if fill.fits(name, why)]
        if not fit:
            raise _fits_nothing("fill", fill.pattern, known, reasons)
        used |= dict.fromkeys(fit, fill)
    kept = [name for name, c in known.items() if c.role == "keep" and name not in used]
    if keep_from is not None:
        _check_kept(kept, tensors, keep_from)
    items = []
    for name, chose in known.items():
        asked = tensors[name]
        value: Plan | Tensor | None = None
        origin = "left out"
        if name in used:
            value, origin = used[name].tensor(name, asked), f"filled by {used[name].text}"
        elif chose.role == "bias" or (asked.value and chose.role == asked.role):
            number = np.float64(asked.value) if asked.value else np.float32(0)
            origin = f"all {asked.value:g}" if asked.value else "zeros"
            value = Held(np.broadcast_to(number, asked.shape))
        elif chose.role == "keep":
            if keep_from is not None:
                value, origin = keep_from.tensors[name], f"copied from {keep_from.path.name}"
        else:
            value = made(name, asked, chose, general[chose.role])
            origin = "IDI" if chose.role == "transit" else "IDIZ"
        items.append(Item(name, asked.shape, chose.role, chose.why, origin, value))
    there = () if keep_from is None else keep_from.tensors
    return Assembly(tuple(items), tuple(name for name in there if name not in tensors))


def made(
    name: str, asked: Asked, choice: Choice, general: Mapping[str, Any] = _NONE
) -> Plan | Tensor:
    """Return what a tensor in role "transit" or "zero" becomes.

    Parameters
    ----------
    name : str
        For messages.
    asked : Asked
        The tensor.
    choice : Choice
        What becomes of it.
    general : mapping
        Options of `idinit_ref.plan` that are not stated.

    Returns
    -------
    Plan or Tensor
        A Tensor where several axes of the stored shape count as one axis of the plan.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        As `idinit_ref.plan` raises them; the tensor is named.

    Examples
    --------
    >>> key = Asked((8, 2, 4), "transit", {"layout": "IO"}, axes="IOO")
    >>> made("key", key, Choice("transit", key.options, "", "manifest")).shape
    (8, 2, 4)
    """
    parted = asked.parted or asked.shape
    shape = merge_axes(parted, asked.axes)[0] if asked.axes else parted
    try:
        decided = plan(shape, cast("Any", choice.role), **{**general, **choice.options})
    except IDInitError as problem:
        raise type(problem)(f"of tensor {name!r}: {problem}") from problem
    if not asked.axes:
        return decided
    own = {axis: chr(ord("A") + axis) for axis in range(len(parted))}  # a letter for each axis
    groups: dict[str, str] = {}
    for axis, letter in enumerate(asked.axes):
        groups[letter] = groups.get(letter, "") + own[axis]
    before = "".join(f"({group})" if len(group) > 1 else group for group in groups.values())
    sizes = {own[axis]: size for axis, size in enumerate(parted)}
    split = rearrange(decided, f"{before}->{''.join(own.values())}", sizes)
    counts = tuple(_joins(asked.shape, parted) or ())
    if len(counts) == len(parted):
        return split
    return Joined(Made(split) if isinstance(split, Plan) else split, counts)


def _reasons(
    name: str, choice: Choice, rules: Sequence[Rule], names: Mapping[str, Asked]
) -> tuple[str, ...]:
    """Return why a tensor is left as it is: what was chosen says it, and the rules by name."""
    if choice.role != "keep":
        return ()
    rule = find(name, rules, names=names)
    return (choice.why, *((rule.why,) if rule is not None and rule.role == "keep" else ()))


def _unknown(names: Sequence[str], shape: tuple[int, ...]) -> OptionError:
    more = f", nor {len(names) - 1} more, {names[1]!r} next" if len(names) > 1 else ""
    should = f"no rule knows it (shape {shape}){more}"
    cure = "add a rule for it (--rule 'REGEX=ROLE', with transit, zero, bias or keep)"
    return OptionError(message("name", names[0], should, cure))


def _check_kept(names: Sequence[str], tensors: Mapping[str, Asked], there: Checkpoint) -> None:
    """Raise unless all that is to be copied is there, in its shape."""
    wrong = [name for name in names if name not in there.tensors]
    other = [
        f"{name} {tuple(there.tensors[name].shape)} for {tensors[name].shape}"
        for name in names
        if name in there.tensors and tuple(there.tensors[name].shape) != tensors[name].shape
    ]
    if not wrong and not other:
        return
    parts = []
    if wrong:
        ends = [name for name in there.tensors if name.endswith(f".{wrong[0]}")]
        short = [name for name in there.tensors if len(name) <= _NAME]
        near = ends or get_close_matches(wrong[0], short, 1, 0.0)
        nearest = f" (nearest to the first: {near[0]})" if near else ""
        parts.append(f"it lacks {some(wrong)}{nearest}")
    if other:
        parts.append(f"other shapes are those of {some(other)}")
    should = f"it should hold all that IDInit does not define; {'; '.join(parts)}"
    cure = "fill them (--fill), or take the names from that same file"
    raise OptionError(message("keep_from", str(there.path), should, cure))


def some(names: Sequence[str]) -> str:
    """Return names in one line that ends.

    >>> some(["a", "b"]), some(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    shown = [name if len(name) <= _NAME else f"{name[: _NAME - 3]}..." for name in names[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def _fits_nothing(
    label: str,
    pattern: str,
    names: Mapping[str, Any],
    reasons: Mapping[str, Sequence[str]] = _NONE,
) -> OptionError:
    exact = " that IDInit does not define" if label == "fill" else ""
    near = get_close_matches(pattern, names, 3, 0.0)
    should = f"it fits no tensor{exact}; the nearest names are {', '.join(near)}"
    counts = Counter(why for own in reasons.values() for why in dict.fromkeys(own))
    if counts:
        most = [repr(why) for why, _ in counts.most_common(_REASONS)]
        more = f" and {len(counts) - _REASONS} more" if len(counts) > _REASONS else ""
        should += f"; the reasons are {', '.join(most)}{more}"
    return OptionError(message(label, pattern, should, "name a tensor, or mend the pattern"))
