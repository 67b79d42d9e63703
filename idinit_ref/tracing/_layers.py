"""Internal: convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, Unpack

import numpy as np

from ..core.layout import SPATIAL
from ._axes import Atom, Axis, View
from ._labels import Einsum
from ._lookups import Lookups
from ._made import Made, Shape
from ._values import Operation, Signal, Track, Value, is_constant

__all__ = ["Layers", "Sliding"]


class Sliding(TypedDict):
    """How a kernel slides over a signal.

    Where `crops` is set, `left` crops the result of a transposed convolution, as deep learning
    frameworks define it. If not, it pads the dilated input, as in `jax.lax`.
    """

    channels: int  # the axis of the result that holds the outputs
    space: Sequence[int]  # its spatial axes, in the order D, H, W
    left: Sequence[int] | None  # the left padding, if known
    dilation: NotRequired[Sequence[int]]  # of the kernel
    spread: NotRequired[Sequence[int]]  # of the input: the stride of a transposed convolution
    crops: NotRequired[bool]
    before: NotRequired[Sequence[int] | None]  # the spatial axes of the signal, if others
    sized: NotRequired[bool]  # `left` depends on the signal's size: "same" padding with a stride
    options: NotRequired[Mapping[str, Any] | None]  # of the plan: groups, transposed


class Layers(Lookups):
    """A drawing with convolutions."""

    def convolution(
        self,
        name: str,
        signal: Value,
        kernel: Value,
        letters: str,
        shape: Shape | None,
        **how: Unpack[Sliding],
    ) -> Value:
        """Draw a convolution; `letters` are those of the kernel's axes, "" if unknown."""
        channels, space = how["channels"], how.get("before") or how["space"]
        if isinstance(kernel, Signal) and kernel.member and not kernel.chosen:
            kernel = kernel.member  # a kernel times an input
        signal, kernel = self.with_states([signal, kernel])
        spread = how.get("spread") or (1,) * len(space)
        if isinstance(signal, Signal) and max(spread, default=1) > 1:
            signal = self._apart(name, signal, space, spread)
        if not isinstance(signal, Signal) or not isinstance(kernel, Made):
            return self._convolved(name, signal, kernel, letters, shape, channels)
        if not kernel.parts or kernel.shape is None:
            return self._convolved(name, signal, kernel, letters, shape, channels)
        operation = _operation(signal, kernel, kernel.shape, letters, how)
        tracks = () if shape is None or not letters else _outputs(operation, shape, channels)
        return self.weigh(name, kernel, signal, operation, Signal("", shape, tracks))

    def _apart(
        self, name: str, signal: Signal, space: Sequence[int], steps: Sequence[int]
    ) -> Signal:
        """Draw zeros between a signal's entries, as a transposed convolution does first."""
        if signal.shape is None:
            return signal
        shape = list(signal.shape)
        for axis, step in zip(space, steps, strict=True):
            shape[axis] *= step
        return self.resized(f"{name}: apart", signal, tuple(shape), "resize")

    def _convolved(
        self,
        name: str,
        signal: Value,
        kernel: Value,
        letters: str,
        shape: Shape | None,
        channels: int,
    ) -> Value:
        """Draw a convolution whose kernel is data or constant."""
        if not isinstance(signal, Signal) or not isinstance(kernel, Signal) or not letters:
            word = "linear" if is_constant(signal) or is_constant(kernel) else ""
            if _is_blur(signal, kernel, letters, shape, channels):
                word = "pool"
            return self.result(name, [signal, kernel], shape, word=word)
        self.kernel(name, kernel.node, True)
        rank = len(signal.shape or ())
        is_each = kernel.shape is not None and kernel.shape[letters.index("I")] == 1
        own = [f"axis {k}" for k in range(rank)]
        own[channels] = "O" if is_each else "I"  # depthwise: the channels are not summed
        out = [*own[:channels], "O", *own[channels + 1 :]]
        ours = ["O" if letter == "O" or (is_each and letter == "I") else "I" for letter in letters]
        pair = (signal, kernel)
        return self._contract(Einsum(name, pair, (own, ours), out, shape), pair)


def _operation(signal: Signal, kernel: Made, sizes: Shape, letters: str, how: Sliding) -> Operation:
    """Return a convolution of a signal that may be shifted already."""
    space, crops = how.get("before") or how["space"], how.get("crops", False)
    steps = tuple(how.get("spread") or (1,) * len(space))
    moved = [signal.moved[axis] if signal.shift else 0 for axis in space]
    more = [-at * step if crops else at * step for at, step in zip(moved, steps, strict=True)]
    left = how["left"]
    return Operation(
        sizes,
        letters or None,
        options=_own(how.get("options") or {}, kernel, letters),
        left=None if left is None else tuple(a + b for a, b in zip(left, more, strict=True)),
        spread=steps,
        dilation=tuple(how.get("dilation") or (1,) * len(space)),
        kernel=tuple(sizes[letters.index(c)] for c in SPATIAL if c in letters),
        space=tuple(how["space"]),
        forward=crops,
        sized=how.get("sized", False),
        reads=frozenset({how["channels"]} - {*space}),
    )


def _outputs(operation: Operation, shape: Shape, channels: int) -> tuple[Track]:
    """Return the track of a convolution's result."""
    letters, sizes = "".join(operation.kinds or ()), operation.sizes
    axes: list[Axis] = [(Atom.of(-1, size),) for size in shape]
    outs, ins = letters.index("O"), letters.index("I")
    axes[channels] = (Atom.of(outs, sizes[outs]),)
    groups = shape[channels] // sizes[outs] if sizes[outs] else 1
    if groups > 1:  # transposed: axis I holds the groups
        group = Atom(ins, sizes[ins] // groups, groups, 0, 0, groups)
        axes[channels] = (group, *axes[channels])
    return (Track(operation, View(tuple(axes))),)


def _is_blur(
    signal: Value, kernel: Value, letters: str, shape: Shape | None, channels: int
) -> bool:
    """Whether a constant kernel takes means in space of each channel alone."""
    numbers = kernel.numbers if isinstance(kernel, Made) else None
    if numbers is None or numbers.min() < 0 or signal.shape is None or shape is None:
        return False
    sums = numbers.sum(tuple(axis for axis, letter in enumerate(letters) if letter in SPATIAL))
    is_each = sums.size == signal.shape[channels] == shape[channels]
    return is_each and bool(np.allclose(sums, 1, rtol=1e-3))


def _own(options: Mapping[str, Any], kernel: Made, letters: str) -> Mapping[str, Any]:
    """Return options with the groups of the parameter alone, if the kernel is copies of it.

    Samples that are groups of one convolution have a copy each.
    """
    groups = options.get("groups", 1)
    views = [part.view for part in kernel.parts if part.view is not None]
    for view in views if "O" in letters and groups > 1 else ():
        copies = 1
        for atom in view.axes[letters.index("O")]:
            if atom.axis >= 0:
                break
            copies *= atom.radix
        if groups % copies == 0:
            return {**options, "groups": groups // copies}
    return options
