"""IDI and IDIZ as arrays, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .kernel import Taps
from .noise import LoosenAt
from .pattern import Form, Wide
from .plan import plan

__all__ = ["idi", "idiz"]


def idi(
    shape: Sequence[int],
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
    xp: Any = None,
    dtype: Any = None,
    device: Any = None,
) -> Any:
    """Make an identity-preserving weight, IDI_tau: ``W[i, j] = tau if j = i mod n``.

    [P, Eq. 3]; for kernels IDIC_tau [P, Sec. 3.3].

    Parameters
    ----------
    shape, gain, wide, layout, groups, transposed, stride, blocks, taps, tap, loosen, \
loosen_at, seed
        As in :func:`plan`.
    xp, dtype, device
        As in :meth:`Plan.build`.

    Returns
    -------
    array, shape `shape`
        In the namespace, dtype and device that were asked for; NumPy float64 by default.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`plan` and :meth:`Plan.build`.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idi((4, 3))
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.],
           [1., 0., 0.]])
    """
    return plan(
        shape,
        "transit",
        gain=gain,
        wide=wide,
        layout=layout,
        groups=groups,
        transposed=transposed,
        stride=stride,
        blocks=blocks,
        taps=taps,
        tap=tap,
        loosen=loosen,
        loosen_at=loosen_at,
        seed=seed,
    ).build(xp, dtype, device)


def idiz(
    shape: Sequence[int],
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    xp: Any = None,
    dtype: Any = None,
    device: Any = None,
) -> Any:
    """Make a zero-preserving weight, IDIZ_eps: +eps and -eps in every row (spec section 2).

    For the last weight of a residual branch; for kernels IDIZC_eps [P, Sec. 3.3].

    Parameters
    ----------
    shape, eps, form, layout, groups, transposed, stride, blocks, taps, tap
        As in :func:`plan`.
    xp, dtype, device
        As in :meth:`Plan.build`.

    Returns
    -------
    array, shape `shape`
        In the namespace, dtype and device that were asked for; NumPy float64 by default.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`plan` and :meth:`Plan.build`.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.idiz((3, 3), eps=0.5)
    array([[ 0.5, -0.5,  0. ],
           [ 0. ,  0.5, -0.5],
           [-0.5,  0. ,  0.5]])
    """
    return plan(
        shape,
        "zero",
        eps=eps,
        form=form,
        layout=layout,
        groups=groups,
        transposed=transposed,
        stride=stride,
        blocks=blocks,
        taps=taps,
        tap=tap,
    ).build(xp, dtype, device)
