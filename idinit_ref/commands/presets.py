"""``idinit presets``: the models whose tensors are known."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from ..files import presets
from ._terminal import table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run"]


def run(_: Namespace, console: Console) -> None:
    """Print a row for each preset."""
    models = [presets.load(name) for name in presets.names()]
    rows = [(p.name, p.source["class"], str(len(p.tensors)), f"{p.parameters:,}") for p in models]
    console.print(table(console, rows, ["preset", "model", "tensors", "parameters"]))
