"""Internal: finds the layer that calls an initialiser, which gets only a shape."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

__all__ = ["asking"]


def asking(
    kinds: tuple[type, ...], names: Sequence[str] = (), inside: str = ""
) -> tuple[Any, dict[str, Any]]:
    """Return the innermost object of some types with a running method, or None.

    Return also the named local variables of its methods and of the functions that they called (but
    not of the module `inside`), since a layer may hold its equation only as an argument.

    >>> class Layer:
    ...     def build(self, equation):
    ...         return asking((Layer,), ["equation"])
    >>> layer = Layer()
    >>> layer.build("ab,bc->ac") == (layer, {"equation": "ab,bc->ac"})
    True
    """
    found: Any = None
    seen: dict[str, Any] = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and kinds:
        code = frame.f_code
        known = [name for name in names if name in code.co_varnames + code.co_cellvars]
        method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        if (known or method) and frame.f_globals.get("__name__") != inside:
            here = frame.f_locals
            owner = here["self"] if method and isinstance(here.get("self"), kinds) else None
            if found is not None and owner is not None and owner is not found:
                break
            if found is None or owner is found:
                found = owner
                seen = {name: here[name] for name in known if name in here} | seen
        frame = frame.f_back
    return (found, seen) if found is not None else (None, {})
