"""How a convolution slides: what its left padding is, and which tap of its kernel is the identity.

Everything here is in the order of the kernel's axes: D, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

from idinit_ref.core.kernel import identity_tap

Sizes = tuple[int | None, ...]
"""Of an input in space; () or None where they are not known."""


class Window(NamedTuple):
    """The kernel of a convolution, its left padding and dilation; strides if it is transposed."""

    kernel: tuple[int, ...]
    left: tuple[int, ...]
    dilation: tuple[int, ...]
    strides: tuple[int, ...] = ()

    def on(self, axes: Sequence[int]) -> Window:
        """Return it on some of its axes alone.

        >>> Window((1, 3), (0, 1), (1, 1)).on([1])
        Window(kernel=(3,), left=(1,), dilation=(1,), strides=())
        """
        return Window(*(tuple(fact[at] for at in axes) if fact else () for fact in self))

    def stored(self, left: Sequence[int] = ()) -> dict[str, Any]:
        """Return the identity tap, and the phases, as options of a plan.

        `left` is the padding that was put before the convolution; its last axes are the kernel's.

        >>> Window((3, 3), (1, 1), (1, 1)).stored((0, 1, 0))
        {'tap': (2, 1)}
        >>> Window((4,), (1,), (1,), (2,)).stored()
        {'tap': (1,), 'stride': (2,)}
        """
        steps = zip(self.strides, self.dilation, strict=False)
        stride = tuple(s // gcd(s, d) for s, d in steps)
        padding = self.left
        if not stride:
            more = left[len(left) - len(padding) :] or (0,) * len(padding)
            padding = tuple(a + b for a, b in zip(padding, more, strict=True))
        tap = identity_tap(padding, self.dilation, self.kernel)
        return {"tap": tap, "stride": stride} if max(stride, default=1) > 1 else {"tap": tap}


def same(reach: Sequence[int], strides: Sequence[int], sizes: Sizes) -> tuple[int, ...]:
    """Return the left padding of 'same', from the reach d (k - 1) + 1 of a kernel on each axis.

    With a stride it depends on the size of the input; where that is not known, that of stride 1.

    >>> same((3, 3), (2, 2), (8, 7)), same((3, 3), (2, 2), ())
    ((0, 1), (1, 1))
    """

    def total(k: int, stride: int, size: int | None) -> int:
        return k - 1 if size is None else max(stride * (-(-size // stride) - 1) + k - size, 0)

    known = sizes or (None,) * len(reach)
    return tuple(total(*axis) // 2 for axis in zip(reach, strides, known, strict=True))


def same_transposed(reach: int, stride: int, more: int | None) -> int:
    """Return the left padding that a transposed convolution of padding 'same' takes away.

    Its output has as many places as its input times the stride, or as `output_padding` says.

    >>> same_transposed(4, 2, None), same_transposed(5, 2, 1)
    (1, 1)
    """
    extra = stride - reach % 2 if more is None else more
    return max(reach - reach % 2 - extra, 0) // 2
