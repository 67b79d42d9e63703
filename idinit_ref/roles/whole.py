"""A whole model: decided, checked in full, and only then written; the same in every framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Unpack

from numpy.typing import NDArray

from ..core.dtypes import format_of, round_value
from ..core.plan import Plan
from ..errors import prefixed
from .decide import decide
from .graph import Graph
from .options import ModelOptions
from .report import Entry, Report

__all__ = ["Parted", "Weights", "initialise"]

Parted = tuple[tuple[int, ...], str] | None
"""The sizes of a weight's axes and a letter for each, where several of them count as one."""


class Weights(ABC):
    """The parameters of a model, as an adapter reads and writes them.

    Parameters
    ----------
    held : mapping of str to object
        The framework's own objects, each with a shape and a dtype.
    """

    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held

    @abstractmethod
    def read(self, name: str, whole: bool = True) -> NDArray[Any] | None:
        """Return a parameter's numbers, or one row of them; None where this process has them not.

        Processes that hold parts of one model are to have the same answer, each on its own.
        """

    @abstractmethod
    def write(self, name: str, what: Plan | float, parted: Parted) -> None:
        """Write the weight of a plan, or one number everywhere; nothing may fail here."""

    def dtype(self, name: str) -> Any:
        """Return the dtype that is stored."""
        return self.held[name].dtype

    def check(self, name: str, what: Plan | float) -> None:
        """Raise if a parameter cannot hold what is to be written."""
        if isinstance(what, Plan):
            what.check(self.dtype(name))
        elif what:
            round_value(what, format_of(self.dtype(name)), "eps")
        else:
            format_of(self.dtype(name))

    def check_all(self, whats: Mapping[str, Plan | float]) -> None:
        """Raise if anything that is to be written does not fit."""
        for name, what in whats.items():
            with prefixed(f"of parameter {name!r}"):
                self.check(name, what)


def initialise(graph: Graph, weights: Weights, **options: Unpack[ModelOptions]) -> Report:
    """Give every parameter of a traced model what `decide` decides: all of them, or none.

    Parameters
    ----------
    graph : Graph
        Of the model.
    weights : Weights
        Its parameters, by the names of the graph.
    **options : ModelOptions
        As in :func:`idinit_ref.roles.decide.decide`.

    Returns
    -------
    Report
        With the shapes that are stored.

    Raises
    ------
    GraphError, OptionError, OptionTypeError, ShapeError, LayoutError
        As `decide` raises them.
    DTypeError, RoundingError
        If a parameter cannot hold its values; nothing is written then.
    """
    report = decide(graph, weights, **options)
    written = [entry for entry in report.entries if entry.role != "keep"]
    whats = {e.name: e.value if e.plan is None else e.plan for e in written}
    weights.check_all(whats)
    for name, what in whats.items():
        weights.write(name, what, graph.by_name[name].options.get("parted"))
    entries = tuple(_stored(graph, weights, entry) for entry in report.entries)
    return Report(entries, report.warnings)


def _stored(graph: Graph, weights: Weights, entry: Entry) -> Entry:
    """Return an entry with the shape that is stored, and how its axes make the matrix."""
    shape = tuple(map(int, weights.held[entry.name].shape))
    plain = (shape, "" if entry.plan is None else entry.plan.layout)
    parted, letters = graph.by_name[entry.name].options.get("parted", plain)
    return entry.stored(shape, letters, parted)
