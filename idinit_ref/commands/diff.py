"""``idinit diff``: compares two checkpoints, tensor by tensor."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..files.dialects import load
from ..files.difference import diff
from ..files.reading import open_checkpoint
from ..files.translating import translate
from ._terminal import Console, natural, print_json, progress, tensors


def run(args: Namespace, console: Console) -> int:
    """Print all differences, or everything as JSON; return 1 if there is a difference, else 0."""
    dialect = None if args.dialect is None else load(args.dialect)
    first = open_checkpoint(args.a)
    one: Mapping[str, Any] = first.tensors
    two = open_checkpoint(args.b).tensors
    if dialect is not None:
        one = translate(one, dialect, metadata=first.metadata)
    with progress(" entries") as update:
        results = sorted(diff(one, two, update), key=lambda result: natural(result.name))
    unequal = [result for result in results if result.way != "equal"]
    if args.json:
        equal = [result.name for result in results if result.way == "equal"]
        different = {result.name: asdict(result) for result in unequal}
        print_json(console, {"equal": equal, "different": different})
        return int(bool(unequal))
    for result in unequal:
        console.show(str(result))
    if unequal:
        console.show(f"{len(unequal)} of {tensors(len(results))} differ")
    else:
        console.show(f"{tensors(len(results))}, all equal")
    return int(bool(unequal))
