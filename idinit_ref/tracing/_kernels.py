"""Internal: the identity tap of a convolution, which passes its input unshifted, and its phases."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

from ..core.kernel import identity_tap

__all__ = ["identity"]


def identity(
    left: Sequence[int],
    dilation: Sequence[int],
    kernel: Sequence[int],
    spread: Sequence[int] = (),
    flipped: Sequence[bool] = (),
    forward: bool = True,
    stored: Sequence[Sequence[int]] = (),
) -> dict[str, Any]:
    """Return the identity tap of a convolution and its phases, as options of a plan (section 3).

    Parameters
    ----------
    left, dilation, kernel : sequence of int
        The left padding and the kernel's dilation and size, in the order D, H, W.
    spread : sequence of int
        The dilation of its input: the strides of a transposed convolution.
    flipped : sequence of bool
        Whether the parameter stores the kernel reversed.
    forward : bool
        Whether output s*j + r meets input j at tap left + r, as deep learning frameworks define a
        transposed convolution; in `jax.lax` it does at left - r.
    stored : sequence of sequence of int
        For each tap of an axis of the kernel, the nearest one of the parameter, if it is not that
        kernel, perhaps reversed.

    Returns
    -------
    dict
        `tap`, and `stride` if there are several phases; it is negative if their taps are reversed.

    >>> identity((1,), (1,), (4,), (2,))
    {'tap': (1,), 'stride': (2,)}
    >>> identity((2,), (1,), (4,), (2,), forward=False)
    {'tap': (2,), 'stride': (-2,)}
    """
    turned = flipped or (False,) * len(kernel)
    tap = identity_tap(left, dilation, kernel)
    own = stored or [range(k)[:: -1 if t else 1] for k, t in zip(kernel, turned, strict=True)]
    found = {"tap": tuple(taps[at] for at, taps in zip(tap, own, strict=True))}
    phases = [s // gcd(s, d) for s, d in zip(spread, dilation, strict=bool(spread))]
    if any(phase > 1 for phase in phases):
        signs = [1 if turn != forward else -1 for turn in turned]
        found["stride"] = tuple(
            phase if phase == 1 else sign * phase for phase, sign in zip(phases, signs, strict=True)
        )
    return found
