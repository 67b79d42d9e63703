"""How a convolution slides: its left padding, and the identity tap of its kernel.

All values are in the order of the kernel's axes: D, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from idinit_ref.tracing import Drawing, Value, identity

Sizes = tuple[int | None, ...]
"""The spatial sizes of an input; () or None where unknown."""


class Window(NamedTuple):
    """A convolution's kernel size, left padding and dilation; strides if it is transposed."""

    kernel: tuple[int, ...]
    left: tuple[int, ...]
    dilation: tuple[int, ...]
    strides: tuple[int, ...] = ()

    def stored(self) -> dict[str, Any]:
        """Return the identity tap and the phases as options of a plan.

        >>> Window((4,), (1,), (1,), (2,)).stored()
        {'tap': (1,), 'stride': (2,)}
        """
        return identity(self.left, self.dilation, self.kernel, self.strides)


def sliding(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    sizes: Sizes = (),
) -> Window:
    """Return how a convolution slides over an input of these sizes; `padding` is Keras' name.

    >>> sliding((3,), (1,), (2,), "causal").left
    (4,)
    """
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if padding == "same":
        left = same(reach, strides, sizes)
    else:
        left = tuple(k - 1 if padding == "causal" else 0 for k in reach)
    return Window(tuple(kernel), left, tuple(dilation))


def convolved(
    draw: Drawing,
    name: str,
    values: Sequence[Value],
    letters: str,
    shape: tuple[int, ...] | None,
    window: Window | None,
    is_first: bool,
    is_strided: bool,
    groups: int = 1,
    is_depthwise: bool = False,
) -> Value:
    """Draw a convolution of a signal with a kernel, with the channels first or last."""
    rank = len(letters) - 2
    options: dict[str, Any] = {"groups": groups} if groups > 1 else {}
    if groups > 1 and is_depthwise:
        options["transposed"] = True
    _, left, dilation, spread = window or Window((), (), ())
    return draw.convolution(
        name,
        values[0],
        values[1],
        letters,
        shape,
        channels=1 if is_first else rank + 1,
        space=spatial(rank, is_first),
        left=None if window is None else left,
        dilation=dilation,
        spread=spread,
        crops=bool(spread),
        sized=is_strided and not spread,
        options=options,
    )


def windows(
    draw: Drawing,
    name: str,
    image: Value,
    shape: tuple[int, ...] | None,
    window: Window,
    is_first: bool,
) -> Value:
    """Draw the windows of an image, with the channels first or last and the kernel before them."""
    rank = len(window.kernel)
    space = spatial(rank, is_first)
    inner = [*range(2, rank + 2), 1]
    places = [[rank + 2 + axis] for axis in range(rank)]
    return draw.windows(
        name,
        image,
        shape,
        window.kernel,
        () if shape is None else [shape[axis] for axis in space],
        [[0], inner, *places] if is_first else [[0], *places, inner],
        channels=1 if is_first else rank + 1,
        space=space,
        left=window.left,
        dilation=window.dilation,
        word="move",
    )


def spatial(rank: int, is_first: bool) -> list[int]:
    """Return the spatial axes of an image, with the channels first or last."""
    return [axis + 1 + is_first for axis in range(rank)]


def same(reach: Sequence[int], strides: Sequence[int], sizes: Sizes) -> tuple[int, ...]:
    """Return the left padding of 'same', from the reach d (k - 1) + 1 of a kernel on each axis.

    With a stride it depends on the size of the input. If that is unknown, the stride counts as 1.

    >>> same((3, 3), (2, 2), (8, 7)), same((3, 3), (2, 2), ())
    ((0, 1), (1, 1))
    """

    def total(k: int, stride: int, size: int | None) -> int:
        return k - 1 if size is None else max(stride * (-(-size // stride) - 1) + k - size, 0)

    known = sizes or (None,) * len(reach)
    return tuple(total(*axis) // 2 for axis in zip(reach, strides, known, strict=True))


def same_transposed(reach: int, stride: int, more: int | None) -> int:
    """Return the left padding that a transposed convolution with padding 'same' crops.

    The size of its output is the input's times the stride, unless `output_padding` changes it.

    >>> same_transposed(4, 2, None), same_transposed(5, 2, 1)
    (1, 1)
    """
    extra = stride - reach % 2 if more is None else more
    return max(reach - reach % 2 - extra, 0) // 2
