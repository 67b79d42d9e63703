"""Hypothesis strategies for weights: shapes, layouts, kernels, plans and dtypes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

from hypothesis import strategies as st

from ..core.kernel import CORNER, Taps
from ..core.layout import SPATIAL
from ..core.noise import LoosenAt
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ..errors import OptionError, message
from ._frameworks import framework

_KERNEL = 3  # the longest side of a kernel
_COPIES = 2  # the longest batch axis
_STRIDES = (1, 2, 3, -2)  # negative for a kernel that is stored flipped
_OPTIONS = tuple(name for name in Plan.__dataclass_fields__ if name not in ("shape", "axes"))


@st.composite
def weight_shapes(
    draw: st.DrawFn,
    /,
    *,
    layout: str | st.SearchStrategy[str] = "OI",
    largest: int = 8,
    smallest: int = 1,
) -> tuple[int, ...]:
    """Draw shapes of weights: square, tall and wide.

    Parameters
    ----------
    layout : str or strategy of str
        The axis letters. Kernel axes have sizes 1 to 3, batch axes 1 or 2.
    largest, smallest : int
        Bounds of the axes O and I.

    Returns
    -------
    strategy of tuple of int
        Shrinks to the smallest square weight: (smallest, smallest), with kernel and batch axes
        of 1. A failure of only non-square weights shrinks to sides that differ by 1.

    Raises
    ------
    OptionError
        If the layout lacks O or I, or the bounds do not fit.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(weight_shapes(), lambda shape: shape[0] > shape[1])
    (2, 1)
    """
    letters = draw(layout) if isinstance(layout, st.SearchStrategy) else layout
    _check("layout", letters, isinstance(letters, str) and {"O", "I"} <= set(letters), "O and I")
    bounds = smallest, largest
    _check("smallest, largest", bounds, 0 <= smallest <= largest, "0 <= smallest <= largest")
    n = draw(st.integers(smallest, largest))
    m = n + draw(st.integers(smallest - n, largest - n))  # shrinks to 0: a square
    size = {"O": m, "I": n}
    for c in letters:
        if c not in size:
            size[c] = draw(st.integers(1, _KERNEL if c in SPATIAL else _COPIES))
    return tuple(size[c] for c in letters)


@st.composite
def layouts(
    draw: st.DrawFn, /, *, dims: int | st.SearchStrategy[int] | None = None, batch: str = ""
) -> str:
    """Draw layouts: the letters O, I, spatial ones and batch axes in any order.

    Parameters
    ----------
    dims : int or strategy of int, optional
        The number of spatial axes, 0 to 3; by default any of these.
    batch : str
        Letters of batch axes.

    Returns
    -------
    strategy of str
        Shrinks to "OI", or with `dims` to PyTorch's order: "OIW", "OIHW", "OIDHW"; batch axes
        come last.

    Raises
    ------
    OptionError
        If there are not 0 to 3 spatial axes, or a batch letter names another axis.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(layouts(), lambda layout: "W" in layout)
    'OIW'
    """
    if dims is None:
        dims = st.integers(0, 3)
    count = draw(dims) if isinstance(dims, st.SearchStrategy) else dims
    _check("dims", count, count in range(4), "0 to 3 spatial axes")
    _check("batch", batch, not set(batch) & set("OI" + SPATIAL), "no letter of another axis")
    return "".join(draw(st.permutations("OI" + SPATIAL[3 - count :] + batch)))


def conv_specs(**options: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw kernels, as keywords for :func:`idinit_ref.plan`.

    Parameters
    ----------
    **options
        As in :func:`plans`. The default layout has 1 to 3 spatial axes, in any order.

    Returns
    -------
    strategy of dict
        The keys shape, layout, groups, transposed, taps, tap and stride. Shrinks to a kernel of
        one entry: shape (1, 1, 1), layout "OIW", one group, taps outward, no stride.

    Raises
    ------
    OptionError
        If the layout has no spatial axis; also as in :func:`plans`.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(conv_specs(layout="HWIO"), lambda spec: spec["groups"] == 2)["shape"]
    (1, 1, 1, 2)
    """
    plain: dict[str, Any] = {"role": "zero", "eps": 1e-6, "blocks": None}
    plain["layout"] = layouts(dims=st.integers(1, 3))
    names = ("shape", "layout", "groups", "transposed", "taps", "tap", "stride")

    def spec(p: Plan) -> dict[str, Any]:
        _check("layout", p.layout, set(p.layout) & set(SPATIAL), "a letter D, H or W")
        return {name: getattr(p, name) for name in names}

    return plans(**{**plain, **options}).map(spec)


@st.composite
def plans(draw: st.DrawFn, /, *, largest: int = 8, smallest: int = 1, **options: Any) -> Plan:
    """Draw weights of the specification, each as a `Plan`.

    Parameters
    ----------
    largest, smallest : int
        Bounds of the axes O and I of one group.
    **options
        Any of role, gain, eps, wide, form, layout, groups, transposed, blocks, taps, tap, stride,
        loosen, loosen_at and seed, as a value or as a strategy of values. Other options are drawn
        from all their values. Options that do not apply to a weight are ignored: gain with role
        "zero", tap with an order of taps that starts at the first one.

    Returns
    -------
    strategy of Plan
        Shrinks to ``plan((1, 1))``: the smallest square matrix, IDI, gain 1, no further option.

    Raises
    ------
    OptionError
        If an option is unknown.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(plans(), lambda p: p.role == "zero").shape
    (1, 1)
    """
    for name in options:
        if name not in _OPTIONS:
            cure = f"choose from {', '.join(_OPTIONS)}"
            raise OptionError(message("options", name, "plans draws no such option", cure))

    def pick(name: str, anything: Callable[[], st.SearchStrategy[Any]]) -> Any:
        if name in options:
            given = options[name]
            return draw(given) if isinstance(given, st.SearchStrategy) else given
        return draw(anything())

    role = pick("role", lambda: st.sampled_from(get_args(Role)))
    letters = pick("layout", lambda: st.sampled_from(["", "E", "EX"]).flatmap(_any_layout))
    kernel = [c for c in SPATIAL if c in letters]
    shape = list(draw(weight_shapes(layout=letters, largest=largest, smallest=smallest)))
    transposed = pick("transposed", st.booleans)
    groups = pick("groups", lambda: st.integers(1, 3))
    shape[letters.index("I" if transposed else "O")] *= groups
    drawn: dict[str, Any] = {"groups": groups, "transposed": transposed}
    outputs = shape[letters.index("O")]
    drawn["blocks"] = pick("blocks", lambda: st.none() | _cuts(outputs))
    if kernel:
        drawn["taps"] = pick("taps", lambda: st.sampled_from(get_args(Taps)))
        sizes = [shape[letters.index(c)] for c in kernel]
        anywhere = st.tuples(*(st.integers(0, size - 1) for size in sizes))
        tap = pick("tap", lambda: st.none() | anywhere)  # drawn for all orders: they shrink alike
        drawn["tap"] = None if drawn["taps"] in CORNER else tap
        steps = st.tuples(*(st.sampled_from(_STRIDES) for _ in kernel))
        drawn["stride"] = pick("stride", lambda: st.none() | steps)
    # All are drawn for both roles, so that one role can shrink to the other.
    eps = pick("eps", lambda: st.sampled_from([1e-6, 0.5, -1e-3]))
    gain = pick("gain", lambda: st.sampled_from([1.0, -0.75, 2.5, 1 / 3, 1e-3]))
    wide = pick("wide", lambda: st.sampled_from(get_args(Wide)))
    form = pick("form", lambda: st.sampled_from(get_args(Form)))
    loosen = pick("loosen", lambda: st.sampled_from([0.0, 0.125]))
    where = pick("loosen_at", lambda: st.sampled_from(get_args(LoosenAt)))
    seed = pick("seed", lambda: st.integers(0, 2**63 - 1))
    if role == "zero":
        drawn |= {"eps": eps, "form": form}
    else:
        drawn |= {"gain": gain, "wide": wide}
        drawn |= {"loosen": loosen, "loosen_at": where, "seed": seed} if loosen else {}
    return Plan(tuple(shape), role, layout=letters, **drawn)


def _check(name: str, value: object, holds: object, should: str) -> None:
    if not holds:
        raise OptionError(message(name, value, f"it should have {should}", "correct the call"))


def _any_layout(batch: str) -> st.SearchStrategy[str]:
    return layouts(batch=batch)


@st.composite
def _cuts(draw: st.DrawFn, /, size: int) -> tuple[int, ...]:
    """Draw sizes that add up to `size`."""
    cuts = draw(st.lists(st.integers(0, size), max_size=3).map(sorted))
    return tuple(b - a for a, b in pairwise([0, *cuts, size]))


def dtypes(xp: Any) -> st.SearchStrategy[Any]:
    """Draw a namespace's dtypes for weights: real floats of 16 bits and more, and complex64.

    Parameters
    ----------
    xp : module or str
        numpy (with bfloat16 if ml_dtypes is installed), torch, jax.numpy, tensorflow, ...

    Returns
    -------
    strategy of dtype
        dtype objects of that namespace; shrinks to its default floating dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> find(dtypes(np), lambda dtype: dtype.itemsize < 8)
    dtype('float16')
    """
    at = framework(xp)
    return st.sampled_from([at.dtype(name) for name in at.dtypes()])
