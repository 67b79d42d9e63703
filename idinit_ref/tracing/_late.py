"""Internal: learned tables that turn out to be data after a trace has met them as weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from ..errors import GraphError

__all__ = ["LateTablesError", "known_tables", "redrawn"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_KNOWN: ContextVar[frozenset[str]] = ContextVar("known", default=frozenset())


class LateTablesError(GraphError):
    """A drawing took some learned tables for factors of weights, and met them later as data."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(f"learned tables that are data: {', '.join(names)}")
        self.names = frozenset(names)


def known_tables() -> frozenset[str]:
    """Return the learned tables that are data, as far as a trace has found before."""
    return _KNOWN.get()


def redrawn(trace: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that repeats a trace with the tables that it finds to be data.

    A product of two learned matrices may be a weight made of two factors, as in LoRA, or a layer
    applied to learned latents. Only later operations tell.
    """

    @wraps(trace)
    def repeated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        known = frozenset[str]()
        while True:
            token = _KNOWN.set(known)
            try:
                return trace(*args, **kwargs)
            except LateTablesError as found:
                known |= found.names
            finally:
                _KNOWN.reset(token)

    return repeated
