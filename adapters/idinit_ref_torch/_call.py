"""One operation that has run, as the table sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from idinit_ref.tracing import Signal, Value

from ._drawing import ModuleDrawing
from ._memory import Memory, is_floating, shape_of

__all__ = ["Call", "axis_of", "other", "result"]


@dataclass
class Call:
    """One operation that has run."""

    draw: ModuleDrawing
    name: str
    overload: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    known: Mapping[int, Value]  # of all tensors that are given, by id
    results: list[Tensor]  # that it returns or has written to
    pointwise: bool
    memory: Memory

    @property
    def what(self) -> str:
        """Its name for a reader: of PyTorch's own operations without the namespace."""
        return self.name.removeprefix("aten::").strip("_")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of its first result."""
        return shape_of(self.results[0])

    @property
    def floating(self) -> bool:
        """Whether its first result holds real or complex numbers."""
        return is_floating(self.results[0])

    @property
    def values(self) -> list[Value]:
        """The values of all tensors that it is given."""
        return list(self.known.values())

    @property
    def signals(self) -> list[Signal]:
        """Those that depend on the model's inputs."""
        return [value for value in self.known.values() if isinstance(value, Signal)]

    def arg(self, at: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its place or its name."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def of(self, given: Any) -> Value:
        """Return the value of an argument: a tensor or a number."""
        if isinstance(given, Tensor):
            return self.known.get(id(given)) or self.draw.constant(shape_of(given))
        is_real = isinstance(given, (bool, int, float))
        return self.draw.constant((), True, given if is_real else None)

    def operands(self, most: int) -> list[Value]:
        """Return the values of the first arguments that are tensors or numbers."""
        kinds = (Tensor, bool, int, float, complex)
        return [self.of(arg) for arg in self.args[:most] if isinstance(arg, kinds)]


def axis_of(axis: int, rank: int) -> int:
    """Return the number of an axis that may be counted from the end."""
    return axis + rank if axis < 0 else axis


def result(call: Call, word: str = "", first: Sequence[Value] = ()) -> Value:
    """Draw an operation whose results depend on all that it takes, given its plain name.

    `first` are operands whose order counts.
    """
    values = [*first, *(v for v in call.values if all(v is not one for one in first))]
    return call.draw.result(call.what, values, call.shape, call.floating, word)


def other(call: Call, word: str = "") -> Value:
    """Draw an operation of which it is not known where the axes of what it takes go."""
    return call.draw.other(call.what, call.values, call.shape, call.floating, word)
