"""Where the entries of a parameter lie in an operand, and those of an operand in a result.

Tensors without memory ("shadows", contiguous at first) go through the same views as the real ones
do; their strides then say where each axis comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from idinit_ref.layout import SPATIAL, strides_of

__all__ = ["Axes", "Span", "axes_of", "follow", "groups_of", "rows_of", "shadow", "spell"]

_BATCH = "EABCFGJKLMNPQRSTUVXYZ"


class Span(NamedTuple):
    """Rows start to stop of a matrix."""

    start: int
    stop: int


class Axes(NamedTuple):
    """How an operand lies in its parameter.

    The parameter's axis letters, the rows that the operand takes, cuts along them, and whether it
    takes all inputs.
    """

    layout: str
    rows: Span
    cuts: frozenset[int] = frozenset()
    is_wide: bool = True


def shadow(shape: Sequence[int]) -> Tensor:
    """Return a contiguous tensor without memory, outside every mode."""
    with torch._C._DisableTorchDispatch():
        return torch.empty(tuple(shape), device="meta")


def follow(func: Callable[..., Any], shape: Tensor, args: Sequence[Any], kwargs: Any) -> Any:
    """Take a shadow through a view, in place of the first argument; None where none exists."""
    try:
        with torch._C._DisableTorchDispatch():
            return func(shape, *args[1:], **kwargs)
    except (RuntimeError, IndexError, TypeError):
        return None


def rows_of(seen: Tensor, outputs: int, stride: int) -> Span | None:
    """Return which outputs a view of a result holds; None if they do not follow one another.

    The result was contiguous with `outputs` places, `stride` elements apart, on its output axis.
    """
    steps = []
    for size, step in zip(seen.shape, seen.stride(), strict=True):
        if size == 1 or step % (stride * outputs) == 0 or (size - 1) * step < stride:
            continue
        if step % stride == 0:
            steps.append((step // stride, min(size, -(-outputs * stride // step))))
        elif stride % step == 0:
            steps.append((1, min(outputs, size * step // stride)))
        else:
            return None
    length = 1
    for step, count in sorted(steps):
        if step > length:
            return None
        length += step * (count - 1)
    start = int(seen.storage_offset()) // stride % outputs if outputs else 0
    return Span(start, start + length) if start + length <= outputs else None


def groups_of(fine: Sequence[int], coarse: Sequence[int]) -> tuple[int, ...] | None:
    """Return how many axes of one shape each axis of another is made of; None if it is not.

    >>> groups_of((4, 2, 3), (1, 4, 6))
    (0, 1, 2)
    """
    groups, at = [], 0
    for size in coarse:
        start, product = at, 1
        while product < size and at < len(fine):
            product, at = product * fine[at], at + 1
        if product != size:
            return None
        groups.append(at - start)
    return tuple(groups) if at == len(fine) else None


def spell(letters: str, groups: Sequence[int], strides: Sequence[int]) -> str:
    """Return a letter for each of the axes that the axes of an operand are made of.

    The order in which a product sums over several axes means nothing; they are taken in the order
    in which they are stored.

    >>> spell("EIO", (0, 1, 2), (4, 32, 1)), spell("EIO", (0, 2, 1), (8, 32, 1))
    ('IEO', 'WIO')
    """
    found, at = "", 0
    for letter, axes in zip(letters, groups, strict=True):
        stored = sorted(range(at, at + axes), key=lambda axis: -strides[axis])
        names = _spread(letter, axes, ["E"] * axes) or "?" * axes
        found += "".join(names[stored.index(axis)] for axis in range(at, at + axes))
        at += axes
    return found


def axes_of(seen: Tensor, letters: str, shape: Sequence[int]) -> Axes | None:
    """Return how an operand, with a letter for each axis, lies in its parameter.

    The letters are O, I, D, H, W, and E for a stack. `seen` is the operand as a view of the
    contiguous parameter of that shape. None where it cannot be said in letters: where inputs and
    outputs share an axis, for one.

    >>> axes_of(shadow((8, 4)).t(), "IO", (8, 4))
    Axes(layout='OI', rows=Span(start=0, stop=8), cuts=frozenset(), is_wide=True)
    """
    strides = strides_of(shape)
    found: list[str] = [""] * len(shape)
    spare = list(_BATCH)
    single: list[tuple[int, int, str]] = []
    cuts: set[int] = set()
    if 0 in shape:
        return None
    pairs = list(zip(letters, seen.shape, seen.stride(), strict=True))
    for letter, size, stride in sorted(pairs, key=lambda pair: pair[0] != "O"):
        if size == 1 and letter != "E":
            single.append((-stride, len(single), letter))
        if size == 1 or stride == 0:
            continue
        reached = _reached(size, stride, shape, strides)
        if reached is None:
            return None
        spread = _spread(letter, len(reached), spare)
        if spread is None:
            return None
        for axis, name in zip(reached, spread, strict=True):
            if not found[axis]:
                found[axis] = name
            elif found[axis] == "O" and letter == "E":  # a stack along the outputs: blocks
                step = stride // strides[axis]
                cuts |= {step * k for k in range(1, size)}
            else:
                return None
    for *_, letter in sorted(single):
        empty = [axis for axis, size in enumerate(shape) if not found[axis] and size == 1]
        if empty:
            found[empty[0]] = letter
    layout = "".join(name or spare.pop(0) for name in found)
    if "O" not in layout or "I" not in layout:
        return None
    axis = layout.index("O")
    start = int(seen.storage_offset()) // strides[axis] % shape[axis] if shape[axis] else 0
    rows = prod(size for letter, size, _ in pairs if letter == "O")
    rows = shape[axis] if cuts else min(rows, shape[axis])
    inputs = prod(size for letter, size, _ in pairs if letter in "IDHW")
    known = prod(size for name, size in zip(layout, shape, strict=True) if name in "IDHW")
    return Axes(layout, Span(start, start + rows), frozenset(cuts), inputs == known)


def _reached(
    size: int, stride: int, shape: Sequence[int], strides: Sequence[int]
) -> list[int] | None:
    """Return the axes of a contiguous tensor that a run of evenly spaced places covers."""
    real = [axis for axis in range(len(shape)) if shape[axis] > 1]
    for at in reversed(range(len(real))):
        axis = real[at]
        if stride % strides[axis] == 0 and stride < strides[axis] * shape[axis]:
            step, covered = stride // strides[axis], [axis]
            left = size
            while left * step > shape[axis]:
                if step != 1 or left % shape[axis] or at == 0:
                    return None
                left, at = left // shape[axis], at - 1
                axis = real[at]
                covered.insert(0, axis)
            return covered
    return None


def _spread(letter: str, axes: int, spare: list[str]) -> list[str] | None:
    """Return letters for the axes that one axis of an operand is made of, the outer ones first."""
    if letter == "E":
        return [spare.pop(0) for _ in range(axes)]
    if not axes:
        return []
    if letter == "O":  # heads: separate matrices
        return [*(spare.pop(0) for _ in range(axes - 1)), "O"]
    if letter == "I":  # row-major over the inner ones, as taps of a kernel are
        return ["I", *SPATIAL[len(SPATIAL) - axes + 1 :]] if axes <= 4 else None
    return [letter] if axes == 1 else None
