"""Weights in files: written, read, recognised, compared, and translated between frameworks.

The names here are public; the modules are internal. A module is loaded when one of its names is
used, so `import idinit_ref`, which needs only `save`, stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import assemble
    from .dialects import DIALECTS, Dialect, Leaf, load
    from .difference import Difference, diff
    from .fills import parse_fill
    from .reading import Checkpoint, open_checkpoint
    from .recognise import Finding, inspect
    from .renaming import Change, Items
    from .sources import read
    from .stored import StoredTensor
    from .tally import Numbers
    from .translating import translate
    from .whole import whole_file
    from .writing import FilePlan, file_plans, save

__all__ = [
    "DIALECTS",
    "Change",
    "Checkpoint",
    "Dialect",
    "Difference",
    "FilePlan",
    "Finding",
    "Items",
    "Leaf",
    "Numbers",
    "StoredTensor",
    "assemble",
    "diff",
    "file_plans",
    "inspect",
    "load",
    "open_checkpoint",
    "parse_fill",
    "read",
    "save",
    "translate",
    "whole_file",
]

_HOMES = {
    "assembly": ("assemble",),
    "dialects": ("DIALECTS", "Dialect", "Leaf", "load"),
    "difference": ("Difference", "diff"),
    "reading": ("Checkpoint", "open_checkpoint"),
    "recognise": ("Finding", "inspect"),
    "renaming": ("Change", "Items"),
    "stored": ("StoredTensor",),
    "tally": ("Numbers",),
    "fills": ("parse_fill",),
    "sources": ("read",),
    "translating": ("translate",),
    "whole": ("whole_file",),
    "writing": ("FilePlan", "file_plans", "save"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
