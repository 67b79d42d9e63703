"""``idinit presets``: lists the models whose tensors are known."""

from __future__ import annotations

from argparse import Namespace

from ..files import presets
from ._terminal import Console, columns, print_json


def run(args: Namespace, console: Console) -> None:
    """Print a row for each preset, or JSON."""
    models = [presets.load(name) for name in presets.names()]
    if args.json:
        each = {
            p.name: {
                "model": p.source["class"],
                "tensors": len(p.tensors),
                "parameters": p.parameters,
            }
            for p in models
        }
        print_json(console, each)
        return
    rows = [(p.name, p.source["class"], str(len(p.tensors)), f"{p.parameters:,}") for p in models]
    console.show(columns(rows, ["preset", "model", "tensors", "parameters"], numbers=2))
