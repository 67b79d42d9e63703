"""The content of an export: a decision and values for every tensor of a source.

Every tensor becomes IDI, IDIZ or zeros, is copied or filled if the caller asks for it, or is left
out. Each has its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple, cast, get_args

import numpy as np

from ..core.layout import merge_axes
from ..core.options import choice
from ..core.pattern import called
from ..core.plan import Plan
from ..core.text import some
from ..core.weights import plan
from ..errors import OptionError, message, prefixed
from ..roles.names import Kind, Rule, decide, find
from .bits import DTYPES, FLOATS
from .fills import Fill
from .reading import Checkpoint
from .sources import OPTIONS, Asked, joins
from .storage import ArrayTensor, PlanTensor, Tensor
from .views import joined, rearrange

_REASONS = 6  # reasons that a message names
_NAME = 100  # letters: longer names are not searched for the nearest one
_NONE: Mapping[str, Any] = MappingProxyType({})


def parse_rule(text: str) -> Rule:
    """Return the rule that ``REGEX=ROLE[,OPTION=VALUE...]`` describes; else raise an OptionError.

    Options are those of `idinit_ref.plan`, and ``parts``; colons separate several sizes.

    >>> rule = parse_rule(r"qkv[.]weight$=transit,layout=IO,blocks=8:4:4,gain=0.5")
    >>> rule.pattern, rule.role, dict(rule.options)
    ('qkv[.]weight$', 'transit', {'layout': 'IO', 'blocks': (8, 4, 4), 'gain': 0.5})
    """

    def wrong(should: str, cure: str) -> OptionError:
        return OptionError(message("rule", text, should, cure))

    roles = "|".join(get_args(Kind))
    match = re.fullmatch(rf"(?s)(.+)=({roles})((?:,[^,=]+=[^,=]*)*)", text)
    if match is None:
        raise wrong(
            f"it should be REGEX=ROLE[,OPTION=VALUE...] with a ROLE of {roles}",
            r"write 'proj\.weight$=zero,layout=IO'",
        )
    pattern, role, rest = match.groups()
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as problem:
        should = f"its pattern should be a regular expression ({problem})"
        raise wrong(should, "correct it") from None
    options: dict[str, Any] = {}
    for part in rest.split(",")[1:]:
        key, _, value = part.partition("=")
        choice("option of a rule", key, (*OPTIONS, "parts"))
        try:
            options[key] = _PARSERS.get(key, str)(value)
        except (ValueError, KeyError):
            raise wrong(f"{value!r} is not a value of {key}", "correct it") from None
    if options and role in ("bias", "keep"):
        raise wrong(f"the role {role!r} has no options", "leave them out")
    return Rule(pattern, cast("Kind", role), options, f"rule {pattern}")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(":"))


_PARSERS: dict[str, Any] = {
    **dict.fromkeys(("gain", "eps", "loosen"), float),
    **dict.fromkeys(("groups", "seed", "parts"), int),
    **dict.fromkeys(("blocks", "tap", "stride"), _integers),
    "transposed": lambda text: {"true": True, "false": False}[text.lower()],
}


class Choice(NamedTuple):
    """The role of one tensor, and its origin: "manifest", "dtype" or a rule's pattern."""

    role: Kind
    options: Mapping[str, Any]
    why: str
    by: str


def choose(tensors: Mapping[str, Asked], *, own: Sequence[Rule] = ()) -> dict[str, Choice | None]:
    r"""Return the choice for every tensor, None for an unknown one.

    The caller's `own` rules come first, then the source's roles, then the rules by name. A tensor
    of a checkpoint that holds no real numbers is kept unless an own rule decides otherwise. Raises
    an OptionError if an own rule matches no name, or a kept tensor or bias has options.

    >>> choose({"fc1.bias": Asked((3,)), "odd": Asked((3, 3))})
    {'fc1.bias': Choice(role='bias', options={}, why='bias', by='(^|\\.)bias$'), 'odd': None}
    """
    for rule in own:
        if not any(re.search(rule.pattern, name) for name in tensors):
            raise _fits_nothing("rule", rule.pattern, tensors)
    return {name: _choose(name, asked, own, tensors) for name, asked in tensors.items()}


def _choose(
    name: str, asked: Asked, own: Sequence[Rule], names: Mapping[str, Asked]
) -> Choice | None:
    rule = find(name, own, names=names)
    if rule is None:
        if asked.role is not None:
            return Choice(asked.role, asked.options, asked.why, "manifest")
        rule = find(name, names=names)
        real = asked.dtype is None or asked.dtype in FLOATS
        if not real and (rule is None or rule.role != "keep"):
            what = "no real numbers" if asked.dtype in DTYPES else "not decoded"
            return Choice("keep", {}, f"{asked.dtype}: {what}", "dtype")
        if rule is None:
            return None
    role, options, why = decide(name, asked.shape, (rule,), names=names)
    if asked.options and role in ("bias", "keep"):
        should = f"a rule gives {name} the role {role!r} ({why}), which has no options"
        raise OptionError(message("options", dict(asked.options), should, "state its role, too"))
    stated = {key: value for key, value in asked.options.items() if key != "role"}
    return Choice(role, {**options, **stated}, why, rule.pattern)


class Assembled(NamedTuple):
    """One tensor of the source, with its value in the file.

    ``origin`` is "IDI", "IDIZ", "IDI+IDIZ", "zeros", "all 1e-06", "copied from FILE", "filled by
    RULE" or "left out"; ``value`` is a Plan or a Tensor, or None if it is left out.
    """

    name: str
    shape: tuple[int, ...]
    role: Kind
    why: str
    origin: str
    value: Plan | Tensor | None


class Assembly(NamedTuple):
    """All items, in the source's order, and the names of `keep_from` that no item uses."""

    items: tuple[Assembled, ...]
    unused: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Plan | Tensor]:
        """The values to write, by name: for `idinit_ref.save`."""
        return {item.name: item.value for item in self.items if item.value is not None}


def assemble(
    tensors: Mapping[str, Asked],
    *,
    own: Sequence[Rule] = (),
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: str = "truncate",
    keep_from: Checkpoint | None = None,
    fills: Sequence[Fill] = (),
    model_type: str = "",
) -> Assembly:
    """Decide every tensor: IDI, IDIZ, zeros, filled, copied, or left out.

    Parameters
    ----------
    tensors : mapping of str to Asked
        The tensors of a `Source`.
    own : sequence of Rule
        The caller's rules, tried before the rules by name.
    gain, eps, wide
        Options of all plans that do not state their own.
    keep_from : Checkpoint, optional
        The values of tensors that IDInit does not define, under the same names and shapes.
    fills : sequence of Fill
        Other values for such tensors. A later fill replaces an earlier one, and `keep_from`.
    model_type : str
        From Hugging Face's ``config.json``. In some models (Gemma) a normalisation multiplies by
        1 + weight, and its identity is 0.

    Returns
    -------
    Assembly
        All items, in the order of the tensors, and the unused names of `keep_from`.

    Raises
    ------
    OptionError
        If no rule knows a name, a fill matches no tensor, or `keep_from` lacks a tensor.
    ShapeError, LayoutError, OptionTypeError
        As in `idinit_ref.plan`; the message names the tensor.

    Examples
    --------
    >>> asked = {"lm_head.weight": Asked((6, 4)), "wte.weight": Asked((6, 4))}
    >>> [(item.name, item.origin) for item in assemble(asked).items]
    [('lm_head.weight', 'IDI'), ('wte.weight', 'left out')]
    >>> from idinit_ref.files import parse_fill
    >>> assemble(asked, fills=[parse_fill("embedding=normal:0.02")]).items[1].origin
    'filled by normal:0.02'
    """
    general: dict[str, dict[str, Any]] = {
        "transit": {"gain": gain, "wide": wide},
        "zero": {"eps": eps},
    }
    for role, options in general.items():
        plan((0, 0), cast("Any", role), **options)
    chosen = choose(tensors, own=own)
    known = {name: choice for name, choice in chosen.items() if choice is not None}
    if unknown := [name for name, choice in chosen.items() if choice is None]:
        raise _unknown(unknown, tensors[unknown[0]].shape)
    used: dict[str, Fill] = {}
    reasons = {name: _reasons(name, c, tensors) for name, c in known.items() if fills}
    for fill in fills:
        fit = [name for name, why in reasons.items() if fill.fits(name, why)]
        if not fit:
            raise _fits_nothing("fill", fill.pattern, known, reasons)
        used |= dict.fromkeys(fit, fill)
    kept = [name for name, c in known.items() if c.role == "keep" and name not in used]
    if keep_from is not None:
        _check_kept(kept, tensors, keep_from)
    items = []
    for name, chosen_role in known.items():
        asked = tensors[name]
        value: Plan | Tensor | None = None
        origin = "left out"
        if name in used:
            value = used[name].tensor(name, asked, model_type)
            origin = f"filled by {used[name].text}"
        elif chosen_role.role == "bias" or (asked.value and chosen_role.role == asked.role):
            number = np.float64(asked.value) if asked.value else np.float32(0)
            origin = f"all {asked.value:g}" if asked.value else "zeros"
            value = ArrayTensor(np.broadcast_to(number, asked.shape))
        elif chosen_role.role == "keep":
            if keep_from is not None:
                value, origin = keep_from.tensors[name], f"copied from {keep_from.path.name}"
        else:
            value = weight_for(name, asked, chosen_role, general)
            origin = called(chosen_role.options.get("role", chosen_role.role))
        items.append(Assembled(name, asked.shape, chosen_role.role, chosen_role.why, origin, value))
    there = () if keep_from is None else keep_from.tensors
    return Assembly(tuple(items), tuple(name for name in there if name not in tensors))


def weight_for(
    name: str, asked: Asked, choice: Choice, general: Mapping[str, Mapping[str, Any]] = _NONE
) -> Plan | Tensor:
    """Return the plan of a tensor in role "transit" or "zero"; errors name the tensor.

    `general` holds the default options of `idinit_ref.plan` by role. The result is a Tensor if
    several axes of the stored shape count as one axis of the plan.

    >>> key = Asked((8, 2, 4), "transit", {"layout": "IO"}, axes="IOO")
    >>> weight_for("key", key, Choice("transit", key.options, "", "manifest")).shape
    (8, 2, 4)
    """
    parted = asked.parted or asked.shape
    shape = merge_axes(parted, asked.axes)[0] if asked.axes else parted
    rule = "" if choice.by == "manifest" else f"rule {choice.by!r}, "
    options = {"role": choice.role, **choice.options}
    usual = {
        k: v for role, own in general.items() if role in options["role"] for k, v in own.items()
    }
    with prefixed(f"{rule}tensor {name!r}"):
        decided = plan(shape, **cast("Any", {**usual, **options}))
    if not asked.axes:
        return decided
    letters = {axis: chr(ord("A") + axis) for axis in range(len(parted))}
    groups: dict[str, str] = {}
    for axis, letter in enumerate(asked.axes):
        groups[letter] = groups.get(letter, "") + letters[axis]
    before = "".join(f"({group})" if len(group) > 1 else group for group in groups.values())
    sizes = {letters[axis]: size for axis, size in enumerate(parted)}
    split = rearrange(decided, f"{before}->{''.join(letters.values())}", sizes)
    counts = tuple(joins(asked.shape, parted) or ())
    if len(counts) == len(parted):
        return split
    return joined(PlanTensor(split) if isinstance(split, Plan) else split, counts)


def _reasons(name: str, choice: Choice, names: Mapping[str, Asked]) -> tuple[str, ...]:
    """Return why a tensor is kept: the reason of the choice, and that of the rules by name."""
    if choice.role != "keep":
        return ()
    rule = find(name, names=names)
    return (choice.why, *((rule.why,) if rule is not None and rule.role == "keep" else ()))


def _unknown(names: Sequence[str], shape: tuple[int, ...]) -> OptionError:
    more = f", nor {len(names) - 1} more, such as {names[1]!r}" if len(names) > 1 else ""
    should = f"no rule knows it (shape {shape}){more}"
    cure = "add a rule for it (--rule 'REGEX=ROLE', with transit, zero, bias or keep)"
    return OptionError(message("name", names[0], should, cure))


def _check_kept(names: Sequence[str], tensors: Mapping[str, Asked], there: Checkpoint) -> None:
    """Raise unless the checkpoint has all tensors to copy, in their shapes."""
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
        parts.append(f"it has other shapes: {some(other)}")
    should = f"it should hold all tensors that IDInit does not define; {'; '.join(parts)}"
    cure = "fill them (--fill), or take the names from that same file"
    raise OptionError(message("keep_from", str(there.path), should, cure))


def _fits_nothing(
    label: str, pattern: str, names: Mapping[str, Any], reasons: Mapping[str, Sequence[str]] = _NONE
) -> OptionError:
    exact = " that IDInit does not define" if label == "fill" else ""
    near = get_close_matches(pattern, names, 3, 0.0)
    should = f"it fits no tensor{exact}; the nearest names are {', '.join(near)}"
    counts = Counter(why for whys in reasons.values() for why in dict.fromkeys(whys))
    if counts:
        most = [repr(why) for why, _ in counts.most_common(_REASONS)]
        more = f" and {len(counts) - _REASONS} more" if len(counts) > _REASONS else ""
        should += f"; the reasons are {', '.join(most)}{more}"
    return OptionError(message(label, pattern, should, "name a tensor, or correct the pattern"))
