"""``idinit inspect``: recognises every tensor of a checkpoint from its bytes."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from dataclasses import fields
from typing import Any

from ..core.plan import Plan
from ..files.reading import open_checkpoint
from ..files.recognise import Finding, inspect
from ..files.storage import Tensor
from ._terminal import Console, columns, natural, print_json, progress, tensors

_KINDS = {"idi": "IDI", "idiz": "IDIZ", "idi+idiz": "IDI+IDIZ"}


def run(args: Namespace, console: Console) -> int:
    """Print a line for each tensor, or JSON; return 1 if the file is wrong, else 0."""
    opened = open_checkpoint(args.file, lenient=args.lenient)
    with progress() as update:
        findings = sorted(inspect(opened, update), key=lambda item: natural(item[0]))
    digests = Counter(found.digest for _, _, found in findings)
    claims = sum(found.claim is False for _, _, found in findings)
    status = int(bool(digests[False] or claims or opened.findings))
    outside = sorted((tensor.name for tensor in opened.outside), key=natural)
    if args.json:
        by_name = {name: _fields(tensor, found) for name, tensor, found in findings}
        whole = {"tensors": by_name, "outside": outside, "findings": opened.findings}
        print_json(console, whole if args.lenient else by_name)
        return status
    rows = []
    for name, tensor, found in findings:
        kind = _KINDS.get(found.kind, found.kind)
        kind += f": {found.detail}" if found.detail else ""
        rows.append((name, str(tensor.shape), str(tensor.dtype), kind))
    console.show(columns(rows, ["name", "shape", "dtype", "what"]))
    for name in outside:
        console.show(f"{name}: in a shard but not in the index, so not part of the model")
    for finding in opened.findings:
        console.show(f"WRONG: {finding}")
    counts = Counter(found.kind for _, _, found in findings)
    kinds = ", ".join(f"{count} {_KINDS.get(kind, kind)}" for kind, count in counts.items())
    text = f"{tensors(len(findings))}, {opened.nbytes:,} bytes: {kinds or 'none'}"
    if digests[True] or digests[False]:
        text += f"; digests: {digests[True]} right, {digests[False]} WRONG"
    if claims:
        text += f"; the file's claims: {claims} WRONG"
    if opened.findings:
        text += f"; {len(opened.findings)} more WRONG"
    console.show(text)
    return status


def _fields(tensor: Tensor, found: Finding) -> dict[str, Any]:
    """Return a tensor and its finding, for JSON."""
    shown: dict[str, Any] = {"shape": tensor.shape, "dtype": tensor.dtype}
    shown |= {field.name: getattr(found, field.name) for field in fields(found)}
    if found.numbers is not None:
        shown["numbers"] = found.numbers._asdict()
    if found.plan is not None:
        shown["plan"] = {
            field.name: getattr(found.plan, field.name)
            for field in fields(Plan)
            if field.compare and field.name != "shape"
        }
    return shown
