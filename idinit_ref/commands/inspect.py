"""``idinit inspect``: what every tensor of a checkpoint is, recognised from its bytes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..plan import Plan
from ._terminal import columns, print_json, progress, show, tensors

if TYPE_CHECKING:
    from rich.console import Console

    from ..recognise import Finding
    from ..storage import Tensor

__all__ = ["run"]

_KINDS = {"idi": "IDI", "idiz": "IDIZ"}


def run(args: Namespace, console: Console) -> int:
    """Print a line for each tensor, or all of it as JSON; return 1 if the file is wrong, else 0."""
    from ..checkpoint import open_checkpoint
    from ..recognise import inspect

    opened = open_checkpoint(args.file)
    with progress() as update:
        found = list(inspect(opened, update))
    digests = Counter(what.digest for _, _, what in found)
    claims = sum(what.claim is False for _, _, what in found)
    status = int(bool(digests[False] or claims))
    if args.json:
        print_json(console, {name: _fields(tensor, what) for name, tensor, what in found})
        return status
    rows = []
    for name, tensor, what in found:
        kind = _KINDS.get(what.kind, what.kind)
        kind += f": {what.detail}" if what.detail else ""
        rows.append((name, str(tensor.shape), str(tensor.dtype), kind))
    show(console, columns(rows, ["name", "shape", "dtype", "what"]))
    counts = Counter(what.kind for _, _, what in found)
    kinds = ", ".join(f"{count} {_KINDS.get(kind, kind)}" for kind, count in counts.items())
    text = f"{tensors(len(found))}, {opened.nbytes:,} bytes: {kinds or 'none'}"
    if digests[True] or digests[False]:
        text += f"; digests: {digests[True]} right, {digests[False]} WRONG"
    if claims:
        text += f"; the file's claims: {claims} WRONG"
    show(console, text)
    return status


def _fields(tensor: Tensor, what: Finding) -> dict[str, Any]:
    """Return all that was found of a tensor, for JSON."""
    found: dict[str, Any] = {"shape": tensor.shape, "dtype": tensor.dtype}
    found |= {field.name: getattr(what, field.name) for field in fields(what)}
    if what.numbers is not None:
        found["numbers"] = what.numbers._asdict()
    if what.plan is not None:
        found["plan"] = {
            field.name: getattr(what.plan, field.name)
            for field in fields(Plan)
            if field.compare and field.name != "shape"
        }
    return found
