"""One weight in one call: as a plan, or IDI and IDIZ as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .kernel import CORNER, Taps
from .noise import LoosenAt
from .options import is_plain
from .pattern import Form, Role, Wide
from .plan import Plan

__all__ = ["either", "idi", "idiz", "plan"]


def plan(
    shape: Sequence[int],
    role: Role | Sequence[Role] = "transit",
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
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
) -> Plan:
    """Return the plan of one weight: validated, and not yet an array.

    Parameters
    ----------
    shape : sequence of int
        The stored shape; zero-size axes are allowed.
    role : {"transit", "zero"}, or a sequence of them
        IDI_tau [P, Eq. 3], or IDIZ_eps for the last weight of a residual branch. With `blocks` also
        a role for each block: a block is what a plan of it alone would be, except that its noise
        counts the rows of the whole weight. With batch axes also a role for each matrix along
        them, in row-major order, or for each block of each. Then the options of both roles are
        allowed. Equal roles are kept as one.
    gain : float
        tau, for ``role="transit"``; any finite non-zero real.
    eps : float
        For ``role="zero"``; any finite non-zero real.
    wide : {"truncate", "fold_rms", "fold_mean"}
        How IDI fills a matrix with more columns than rows.
    form : {"pair", "shifted"}
        How IDIZ fills a matrix with at least twice as many columns as rows: two entries in each
        row, or one in every column.
    layout : str, optional
        A letter for each axis: O outputs, I inputs, D H W spatial, any other capital a batch axis.
        By default, for 2 to 5 axes: "OI", "OIW", "OIHW", "OIDHW".
    groups : int
        Groups of a convolution, each initialised on its own.
    transposed : bool
        With groups: the I axis holds all inputs and the O axis the outputs per group, as in
        PyTorch's transposed convolutions and in Keras' depthwise ones.
    stride : sequence of int, optional
        The strides of a transposed convolution in the order D, H, W. Each phase of its kernel is
        a matrix of its own. Write a negative stride if the kernel is stored flipped. With a
        dilation d write s / gcd(s, d).
    blocks : sequence of int, optional
        Sizes that cut the O axis into separate matrices, as for packed q, k, v.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix. "outward": from the identity tap outwards, all channels of a
        tap together. "diagonal": also from the identity tap, each channel at its own tap. "center":
        only the identity tap. "channel_major" and "spatial_major": column c*K + s, or s*C + c, from
        the first tap.
    tap : sequence of int, optional
        The identity tap in the order D, H, W: the left padding divided by the dilation;
        (k - 1) // 2 by default.
    loosen : float
        Standard deviation of the noise added to IDI [P, Sec. 3.1.1]; 0 for none.
    loosen_at : {"all", "entries"}
        Add the noise to whole rows, or only to the entries that are not 0.
    seed : int
        The seed of that noise, 0 <= seed < 2**63.

    Returns
    -------
    Plan
        Frozen, hashable, and cheap at any size.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError
        If anything does not fit, with the value, the expectation and the cure.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> ir.plan((3, 2)).build()
    array([[1., 0.],
           [0., 1.],
           [1., 0.]])

    Packed queries, keys and values, of which only the values end the branch:

    >>> ir.plan((6, 2), ("transit", "transit", "zero"), blocks=(2, 2, 2), eps=0.5).build()
    array([[ 1. ,  0. ],
           [ 0. ,  1. ],
           [ 1. ,  0. ],
           [ 0. ,  1. ],
           [ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    given: Any = (
        shape, role, gain, eps, wide, form, layout, groups, transposed, stride, blocks, taps, tap,
        loosen, loosen_at, seed,
    )  # fmt: skip
    if is_plain(shape) and is_plain(blocks) and is_plain(tap) and is_plain(stride):
        try:
            return _remembered(*given)
        except TypeError:  # unhashable or wrong: raised again below
            pass
    return Plan(*given)


_remembered = lru_cache(maxsize=1024, typed=True)(Plan)


def either(
    shape: Sequence[int],
    role: Role | Sequence[Role],
    number: int = 0,
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
    **stored: Any,
) -> Plan:
    """Decide weight `number` of a layer, from the options of both roles.

    The adapters' layer calls take options for transit and zero weights together. All of them are
    validated, and those of `role` are used; a loosened weight has the seed ``seed + number``. The
    corner orders use no identity tap, so there the layer's `tap` is left out.

    >>> either((2, 3), "zero", gain=2.0, eps=0.5).eps
    0.5
    """
    noise: dict[str, Any] = {"loosen": loosen, "loosen_at": loosen_at, "seed": seed}
    noisy = plan((0, 0), gain=gain, wide=wide, **noise)
    zero = plan((0, 0), "zero", eps=eps, form=form)
    if stored.get("taps", "outward") in CORNER:
        stored = stored | {"tap": None}
    ends: dict[str, Any] = {"eps": zero.eps, "form": form}
    if role == "zero":
        return plan(shape, role, **ends, **stored)
    noise["seed"] = noisy.seed + number if noisy.loosen else noisy.seed
    ends = {} if isinstance(role, str) else ends
    return plan(shape, role, gain=gain, wide=wide, **noise, **ends, **stored)


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
        shape, "transit", gain=gain, wide=wide, layout=layout, groups=groups, transposed=transposed,
        stride=stride, blocks=blocks, taps=taps, tap=tap, loosen=loosen, loosen_at=loosen_at,
        seed=seed,
    ).build(xp, dtype, device)  # fmt: skip


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
        shape, "zero", eps=eps, form=form, layout=layout, groups=groups, transposed=transposed,
        stride=stride, blocks=blocks, taps=taps, tap=tap,
    ).build(xp, dtype, device)  # fmt: skip
