"""Internal: the user's overrides, by patterns of names, and what they say of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, get_args

from ..core.options import choice
from ..core.pattern import Role
from ..errors import OptionError, OptionTypeError, message
from .names import Kind
from .options import Override
from .packed import Unpacked

__all__ = ["STORED", "Given", "check_own", "chosen", "spread", "stated"]

STORED = ("layout", "groups", "transposed", "stride", "blocks", "tap")
_CHOSEN = ("role", "gain", "eps", "wide", "form", "taps", "loosen", "loosen_at", "seed")
_OWN = {"transit": ("eps", "form"), "zero": ("gain", "wide", "loosen", "loosen_at", "seed")}
Given = Sequence[tuple[str, Mapping[str, Any]]]
"""The overrides of a parameter: each with its pattern."""


def chosen(names: tuple[str, ...], overrides: Mapping[str, Override]) -> dict[str, Given]:
    """Return the overrides of every parameter; raise if one is not valid or matches nothing.

    >>> chosen(("a.weight", "b.weight"), {"a*": "keep"})
    {'a.weight': [('a*', {'role': 'keep'})], 'b.weight': []}
    """
    if not isinstance(overrides, Mapping):
        raise OptionTypeError(
            message("overrides", overrides, "it should be a dict by name patterns", "e.g. {'*': …}")
        )
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {name: [] for name in names}
    for pattern, given in overrides.items():
        label = f"overrides[{pattern!r}]"
        key: object = pattern
        if not isinstance(key, str):
            should = "its keys should be names or patterns of names"
            raise OptionTypeError(message("overrides", key, should, "write them as strings"))
        options = {"role": given} if isinstance(given, str) else given
        if not isinstance(options, Mapping):
            raise OptionTypeError(
                message(label, given, "it should be a role or a dict of options", "e.g. 'keep'")
            )
        for key in options:
            choice(label, key, (*_CHOSEN, *STORED))
        if _is_of_blocks(options.get("role")):
            if not options["role"]:
                should = "it should have a role for each block"
                raise OptionError(message(label, options["role"], should, "e.g. 'zero'"))
            for role in options["role"]:
                choice(label, role, get_args(Role))
        elif "role" in options:
            choice(label, options["role"], get_args(Kind))
        fit = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not fit:
            near = get_close_matches(pattern, names, 3, 0.0)
            raise OptionError(
                message(
                    "overrides",
                    pattern,
                    f"it fits no parameter; the nearest are {', '.join(near)}",
                    "name a parameter, or write a pattern with * for any letters",
                )
            )
        for name in fit:
            found[name].append((pattern, options))
    return dict(found)


def _is_of_blocks(role: object) -> bool:
    """Whether a role is a sequence, with one for each block."""
    return isinstance(role, Sequence) and not isinstance(role, (str, bytes))


def check_own(role: str, own: Mapping[str, Any]) -> None:
    """Raise if an override names one weight and gives it an option of the other role."""
    for key in _OWN[role]:
        if key in own:
            should = f"its role is {role}, which has no {key}"
            cure = f"leave it out, or also give the role: {{'role': ..., {key!r}: {own[key]!r}}}"
            if "role" in own:
                cure = "leave it out, or choose the other role"
            raise OptionError(message(key, own[key], should, cure))


def stated(given: Mapping[str, Given], parts: Unpacked) -> set[str]:
    """Return the packed parameters for which the user states other blocks than those found."""
    found = set()
    for name, own in given.items():
        sizes = tuple(stop - start for start, stop in parts.blocks.get(name, ()))
        for _, options in own if sizes else ():
            blocks = options.get("blocks", sizes)
            is_same = isinstance(blocks, Sequence) and tuple(blocks) == sizes
            roles = options["role"] if _is_of_blocks(options.get("role")) else sizes
            if not is_same or len(roles) != len(sizes):
                found.add(name)
    return found


def spread(given: Mapping[str, Given], parts: Unpacked) -> dict[str, Given]:
    """Return the overrides of every parameter of a graph in blocks."""
    found = {name: own for name, own in given.items() if name not in parts.blocks}
    for name, blocks in parts.blocks.items():
        for place, part in enumerate(blocks.values()):
            if part is not None:
                found[part] = [(pattern, _at(own, place)) for pattern, own in given[name]]
    return found


def _at(options: Mapping[str, Any], place: int) -> dict[str, Any]:
    """Return the options of one block."""
    own = {key: value for key, value in options.items() if key != "blocks"}
    return own | ({"role": own["role"][place]} if _is_of_blocks(own.get("role")) else {})
