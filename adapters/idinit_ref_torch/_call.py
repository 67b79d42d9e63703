"""One executed operation: the argument of every handler of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from idinit_ref.tracing import Signal, Value, is_constant

from ._drawing import ModuleDrawing
from ._memory import Memory, is_floating, shape_of

__all__ = ["Call", "axis_of", "other", "result", "scaled"]


@dataclass
class Call:
    """One executed operation."""

    draw: ModuleDrawing
    name: str
    overload: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    known: Mapping[int, Value]  # the values of its tensor arguments, by id
    results: list[Tensor]  # the tensors that it returned or wrote to
    pointwise: bool
    memory: Memory

    @property
    def what(self) -> str:
        """Its name without PyTorch's namespace and underscores at the ends."""
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
        """The values of its tensor arguments."""
        return list(self.known.values())

    @property
    def signals(self) -> list[Signal]:
        """The values that depend on the model's inputs."""
        return [value for value in self.known.values() if isinstance(value, Signal)]

    def arg(self, at: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or its name."""
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
    """Return the index of an axis, which may be negative."""
    return axis + rank if axis < 0 else axis


def result(call: Call, word: str = "", first: Sequence[Value] = ()) -> Value:
    """Draw an operation whose result depends on all its operands; `word` is its plain name.

    `first` holds the operands whose order matters.
    """
    values = [*first, *(v for v in call.values if all(v is not one for one in first))]
    return call.draw.result(call.what, values, call.shape, call.floating, word)


def scaled(call: Call, at: int) -> Value:
    """Return an operand, times the number `alpha` of a sum if there is one."""
    value, alpha = call.of(call.args[at]), call.kwargs.get("alpha", 1)
    if alpha == 1:
        return value
    if isinstance(value, Signal):
        return call.draw.multiply("mul", value, call.of(alpha), value.shape)
    return value._replace(value=None, span=None) if is_constant(value) else value


def other(call: Call, word: str = "") -> Value:
    """Draw an operation that maps its operands' axes to its result's in an unknown way."""
    return call.draw.other(call.what, call.values, call.shape, call.floating, word)
