"""``idinit diff``: two checkpoints, tensor by tensor."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console

from ..files.dialects import load
from ..files.difference import diff
from ..files.reading import open_checkpoint
from ..files.translating import translate
from ._terminal import natural, print_json, progress, show, tensors


def run(args: Namespace, console: Console) -> int:
    """Print what differs, or all of it as JSON; return 0 if nothing does, else 1."""
    dialect = None if args.dialect is None else load(args.dialect)
    first = open_checkpoint(args.a)
    one: Mapping[str, Any] = first.tensors
    two = open_checkpoint(args.b).tensors
    if dialect is not None:
        one = translate(one, dialect, metadata=first.metadata)
    with progress(" entries") as update:
        differences = sorted(diff(one, two, update), key=lambda each: natural(each.name))
    apart = [difference for difference in differences if difference.way != "equal"]
    if args.json:
        equal = [difference.name for difference in differences if difference.way == "equal"]
        print_json(
            console, {"equal": equal, "different": {each.name: asdict(each) for each in apart}}
        )
        return int(bool(apart))
    for difference in apart:
        show(console, str(difference))
    if apart:
        show(console, f"{len(apart)} of {tensors(len(differences))} differ")
    else:
        show(console, f"{tensors(len(differences))}, all equal")
    return int(bool(apart))
