"""Initialises a whole model in any framework: decides and validates all, and only then writes."""

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
"""The sizes of a weight's axes and a letter for each, if several axes count as one."""


class Weights(ABC):
    """The parameters of a model, for an adapter to read and write.

    Parameters
    ----------
    held : mapping of str to object
        The framework's own objects, each with a shape and a dtype.
    """

    def __init__(self, held: Mapping[str, Any]) -> None:
        self.held = held

    @abstractmethod
    def read(self, name: str, whole: bool = True) -> NDArray[Any] | None:
        """Return a parameter's numbers, or one row; None if this process does not have them.

        Processes that hold parts of one model should each return the same answer.
        """

    @abstractmethod
    def write(self, name: str, what: Plan | float, parted: Parted) -> None:
        """Write the weight of a plan, or one number everywhere; this must not fail."""

    def dtype(self, name: str) -> Any:
        """Return the stored dtype."""
        return self.held[name].dtype

    def check(self, name: str, what: Plan | float) -> None:
        """Raise if a parameter cannot hold its new value."""
        if isinstance(what, Plan):
            what.check(self.dtype(name))
        elif what:
            round_value(what, format_of(self.dtype(name)), "eps")
        else:
            format_of(self.dtype(name))

    def check_all(self, whats: Mapping[str, Plan | float]) -> None:
        """Raise if any parameter cannot hold its new value."""
        for name, what in whats.items():
            with prefixed(f"parameter {name!r}"):
                self.check(name, what)


def initialise(graph: Graph, weights: Weights, **options: Unpack[ModelOptions]) -> Report:
    """Write the decisions of `decide` into every parameter of a traced model, or into none.

    Parameters
    ----------
    graph : Graph
        The graph of the model.
    weights : Weights
        Its parameters, by the names of the graph.
    **options : ModelOptions
        As in :func:`idinit_ref.roles.decide.decide`.

    Returns
    -------
    Report
        The report, with the stored shapes.

    Raises
    ------
    GraphError, OptionError, OptionTypeError, ShapeError, LayoutError
        As in `decide`.
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
    """Return an entry with the stored shape, and the axes that form the matrix."""
    shape = tuple(map(int, weights.held[entry.name].shape))
    plain = (shape, "" if entry.plan is None else entry.plan.layout)
    parted, letters = graph.by_name[entry.name].options.get("parted", plain)
    return entry.stored(shape, letters, parted)
