"""What a tensor of a computation is to a tracer: a signal, made of parameters, or mere data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]
Axes = tuple[tuple[int, ...], ...]
"""Of a tensor made of a parameter: for each of its axes the stored ones that it holds, in order."""


class Signal(NamedTuple):
    """A floating tensor that depends on the model's inputs."""

    node: str
    shape: Shape | None
    products: tuple[str, ...] = ()  # the parameters of the weight operations that gave it
    places: tuple[int, ...] = ()  # its axes that hold all their outputs, in order
    copies: tuple[int, ...] = ()  # its axes that are batch axes of those parameters
    left: tuple[int, ...] = ()  # the padding at the start of every axis that was just added
    held: Mapping[str, Axes] = {}  # the stored axes of these along its own, also after a ReLU
    picks: bool = False  # one-hot: a product with it looks up rows
    member: Made | None = None  # a matrix of a stack,
    chosen: str = ""  # and the lookup that chose it


class Made(NamedTuple):
    """A tensor made of parameters (with their axes, None where lost) and constants alone."""

    shape: Shape | None
    axes: Mapping[str, Axes | None] = {}
    done: str = ""  # the first operation that computed something else of them
    sums: frozenset[str] = frozenset()  # those added as a bias to what is made of parameters


class Data(NamedTuple):
    """Integers, bools or strings that depend on the model's inputs, or on some signals."""

    shape: Shape | None
    signals: tuple[str, ...] = ()


Value = Signal | Made | Data


def only_made(values: Iterable[Value]) -> bool:
    """Whether some values are made of parameters and constants alone."""
    return all(isinstance(value, Made) for value in values)


def einsum_letters(kernel: str, other: str, result: str, made: Made) -> str:
    """Return what each axis of a weight in an einsum is; one that is no stored axis is a batch.

    >>> einsum_letters("edf", "bted", "btef", Made((3, 4, 8), {"w": ((0,), (1,), (2,))}))
    'BIO'
    """
    ways = [axes for axes in made.axes.values() if axes is not None]
    return "".join(
        "I"
        if c not in result
        else "B"
        if c in other or (ways and not any(axes[at] for axes in ways))
        else "O"
        for at, c in enumerate(kernel)
    )


def regroup(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which axes of one shape become which of another by a reshape, in smallest groups.

    >>> regroup((2, 6, 4), (12, 2, 2))
    [([0, 1], [0]), ([2], [1, 2])]
    """
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = 1, 1
        left: list[int] = []
        right: list[int] = []
        while not (left or right) or a != b:
            if (a <= b and i < len(old)) or j >= len(new):
                a *= old[i]
                left.append(i)
                i += 1
            else:
                b *= new[j]
                right.append(j)
                j += 1
            if (i >= len(old) and j >= len(new)) or 0 in (a, b):
                break
        groups.append((left, right))
    return groups


def reshaped(
    old: Axes, stored: Shape, groups: list[tuple[list[int], list[int]]], shape: Shape
) -> Axes | None:
    """Return where the stored axes lie after a reshape, or None where one is split."""
    new: list[tuple[int, ...]] = [()] * len(shape)
    for before, after in groups:
        todo = [axis for place in before for axis in old[place] if stored[axis] != 1]
        for place in after:
            size, at = 1, []
            while todo and size < shape[place]:
                at.append(todo.pop(0))
                size *= stored[at[-1]]
            if at and size != shape[place]:
                return None
            new[place] = tuple(at)
        if todo:
            return None
    return tuple(new)
