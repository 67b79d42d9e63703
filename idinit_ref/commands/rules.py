"""``idinit rules``: shows the role of each name, the rule behind it, and the unknown names."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from typing import Any, get_args

from ..core.text import some
from ..errors import OptionError, message
from ..files import assembly, sources
from ..roles.names import Kind
from ._terminal import Console, columns, natural, print_json, tensors


def run(args: Namespace, console: Console) -> None:
    """Print a line for each tensor, or JSON; unknown names come last."""
    source = sources.read(preset=args.preset, manifest=args.manifest, checkpoint=args.checkpoint)
    own = [assembly.parse_rule(text) for text in args.rules]
    chosen = assembly.choose(source.tensors, own=own)
    unknown = [name for name, choice in chosen.items() if choice is None]
    if args.strict and unknown:
        should = f"no rule knows {'it' if len(unknown) == 1 else f'these {len(unknown)} names'}"
        cure = "add rules for them (--rule 'REGEX=ROLE')"
        raise OptionError(message("names", some(unknown), should, cure))
    rows = []
    by_name: dict[str, Any] = {}
    for name, choice in sorted(chosen.items(), key=lambda p: (p[1] is None, natural(p[0]))):
        shape = str(source.tensors[name].shape)
        by_name[name] = {"shape": source.tensors[name].shape, "role": None}
        if choice is None:
            rows.append((name, shape, "-", "", "no rule knows it"))
            continue
        if choice.role in ("transit", "zero"):
            assembly.weight_for(name, source.tensors[name], choice)  # validates the options
        by_name[name] |= {"role": choice.role, "options": dict(choice.options)}
        by_name[name] |= {"why": choice.why, "rule": choice.by}
        options = " ".join(f"{key}={value}" for key, value in choice.options.items())
        rows.append((name, shape, choice.role, options, f"{choice.why} [{choice.by}]"))
    if args.json:
        print_json(console, by_name)
        return
    console.show(columns(rows, ["name", "shape", "role", "options", "why [by which rule]"]))
    counts = Counter(choice.role for choice in chosen.values() if choice is not None)
    roles = ", ".join(f"{counts[role]} {role}" for role in get_args(Kind))
    console.show(f"{tensors(len(chosen))}: {roles}, {len(unknown)} that no rule knows")
