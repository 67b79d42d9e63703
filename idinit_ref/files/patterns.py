"""Recognises a plan from non-zeros: options from their positions, then a check of every bit.

No module of file formats is used here. The caller tries a file's metadata and names first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import islice, pairwise, product
from math import frexp, gcd, inf, ldexp, nextafter, prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_value
from ..core.kernel import Phase, diagonal_column, phases
from ..core.lattice import nnz as nnz_of
from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.pattern import idi_terms, idiz_terms
from ..core.plan import Plan
from ..errors import IDInitError, RoundingError
from .storage import blocks
from .stored import Index
from .tally import LEVELS, TensorContent, bits_of, values_of

_WINDOW = 2**18  # non-zeros from which a pattern is derived
_PACKED = 8  # the most blocks whose sizes are written out
_MANY = 4096  # the most matrices of different sizes
_TAPS = 2**12  # the most taps of a kernel
_SOME = 16  # the most identity taps and strides to try, for each axis and for the kernel
_FAR = 1  # the most additional options of a second plan that is reported


def words(plan: Plan) -> str:
    """Return a plan's options in words.

    >>> words(Plan((4, 3), "zero", blocks=(2, 2)))
    'OI, eps 1e-06, blocks (2, 2)'
    """
    numbers = {"transit": f"gain {plan.gain}", "zero": f"eps {plan.eps}"}
    parts = [plan.layout, *(text for role, text in numbers.items() if role in plan.roles)]
    for name, value in plan.options().items():
        if name in ("gain", "eps", "layout") or (name == "role" and isinstance(value, str)):
            continue
        if name in ("blocks", "role") and len(value) > _PACKED:
            value = f"({', '.join(map(str, value[:3]))}, ... {len(value)} in all)"
        parts.append("transposed" if value is True else f"{name} {value}")
    return ", ".join(parts)


def first_difference(
    plan: Plan, index: Index, dtype: str, where: NDArray[Any], bits: NDArray[Any]
) -> tuple[int, Any] | None:
    """Return the first position of a block that differs from a plan, and the plan's bits there."""
    expected, values = plan.entries(index)
    planned = bits_of(values, dtype)
    if np.array_equal(expected, where) and np.array_equal(planned, bits):
        return None
    common = min(where.size, expected.size)
    wrong = (where[:common] != expected[:common]) | (bits[:common] != planned[:common])
    k = int(np.argmax(wrong)) if wrong.any() else common
    ours = int(where[k]) if k < where.size else prod(plan.shape)
    theirs = int(expected[k]) if k < expected.size else prod(plan.shape)
    return min(ours, theirs), planned[k] if theirs <= ours else np.zeros((), planned.dtype)[()]


# Options from the positions of non-zeros ----------------------------------------------------------


@lru_cache(maxsize=16)
def _orders(rank: int) -> tuple[str, ...]:
    """Return the common layouts of a rank: batch axes first, kernel axes first or last."""
    out: list[str] = []
    for dims in range(min(rank - 2, len(SPATIAL)), -1, -1):
        kernel, batch = SPATIAL[len(SPATIAL) - dims :], "EXYZABCFG"[: rank - 2 - dims]
        if len(batch) == rank - 2 - dims:
            out += [f"{batch}OI{kernel}", f"{batch}{kernel}IO"] if dims else [f"{batch}OI"]
            out += [f"{batch}IO{kernel}", f"{batch}{kernel}OI"] if dims else [f"{batch}IO"]
    return tuple(out)


class _Places:
    """The positions of the first non-zeros on each axis, and their signs."""

    def __init__(self, seen: TensorContent) -> None:
        self.shape = seen.shape
        self.at = np.unravel_index(seen.places[:_WINDOW].astype(np.int64), seen.shape)
        self.bits = seen.bits[:_WINDOW]
        self.negative = np.signbit(values_of(self.bits, seen.dtype).real)
        self.all = seen.bits.size <= _WINDOW
        self.corner = int(seen.places[0]) == 0

    def options(self) -> Iterator[dict[str, Any]]:
        """Yield options of plans that may have these non-zeros."""
        for letters in _orders(len(self.shape)):
            axes = {letter: axis for axis, letter in enumerate(letters)}
            spatial = [axes[c] for c in SPATIAL if c in axes]
            kernel = tuple(self.shape[axis] for axis in spatial)
            if prod(kernel) > _TAPS:
                continue
            for known in self._kernels(letters, axes, spatial, kernel):
                yield from self._with_parts(known, axes, spatial, kernel)

    def _kernels(
        self, letters: str, axes: dict[str, int], spatial: list[int], kernel: tuple[int, ...]
    ) -> Iterator[dict[str, Any]]:
        """Yield options of the kernel's taps, for one layout."""
        plain: dict[str, Any] = {"layout": letters}
        if prod(kernel) == 1:
            if self.corner:
                yield plain
            return
        if self.corner:
            yield {**plain, "taps": "channel_major"}
            if self.shape[axes["I"]] > 1:
                yield {**plain, "taps": "spatial_major"}
        usual = tuple((k - 1) // 2 for k in kernel)
        # The first entry of row 0 is in channel 0, at the identity tap of each phase.
        first = np.ones(self.negative.size, dtype=bool)
        for axis in range(len(self.shape)):
            if axis not in spatial:
                first &= self.at[axis] == 0
        for sign in (False, True):
            here = first & (self.negative == sign)
            places = zip(*(self.at[axis][here].tolist() for axis in spatial), strict=True)
            taps = dict(zip(places, self.bits[here].tolist(), strict=True))
            most = max(2, min(_SOME, _TAPS // prod(kernel)))
            for steps, tap in islice(_identities(kernel, taps), most):
                more = {**plain, "tap": None if tap == usual else tap, "stride": steps}
                for order in ("outward", "diagonal", "center"):
                    yield {**more, "taps": order}
        if not self.all:
            yield from ({**plain, "taps": order} for order in ("outward", "diagonal", "center"))

    def _with_parts(
        self, known: dict[str, Any], axes: dict[str, int], spatial: list[int], kernel: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield options of one layout and order of taps: whole, then with groups or blocks."""
        batch = [axis for c, axis in axes.items() if c not in "OI" + SPATIAL]
        complete = self.all or (batch[:1] == [0] and bool(self.at[0][-1] > 0))
        if not complete:
            yield known
            return
        order = known.get("taps", "outward")
        phase = phases(kernel, order, known.get("tap"), known.get("stride"))[0]
        rank = self._ranks(phase, spatial, kernel)
        ours = rank >= 0
        for axis in batch:
            ours = ours & (self.at[axis] == 0)
        o, i, rank = self.at[axes["O"]][ours], self.at[axes["I"]][ours], rank[ours]
        taps = len(phase)
        inputs, heads = self.shape[axes["I"]], np.unique(i[(o == 0) & (rank == 0)])
        for groups in (g for g in range(1, heads.size + 1) if inputs % g == 0):
            channels = inputs // groups
            if not np.isin(np.arange(groups) * channels, heads).all():
                continue  # a group of inputs would have no first entry
            inside = i < channels
            if order == "channel_major":
                column = i[inside] * taps + rank[inside]
            elif order == "diagonal":
                column = diagonal_column(i[inside], rank[inside], channels, taps)
            else:
                column = rank[inside] * channels + i[inside]
            sorted_ = np.lexsort((column, o[inside]))
            more = {"groups": groups, "transposed": True} if groups > 1 else {}
            rows = self.shape[axes["O"]]
            negative = self.negative[ours][inside][sorted_]
            period = channels * taps
            starts = _starts(o[inside][sorted_], column[sorted_], negative, rows, period)
            for cut in _cuts(starts, rows, period, bool(spatial), not more):
                yield {**known, **more, **cut}

    def _ranks(self, phase: Phase, spatial: list[int], kernel: tuple[int, ...]) -> NDArray[Any]:
        """Return the rank of each non-zero's tap in a phase, or -1 in another phase."""
        if not spatial:
            return np.zeros_like(self.at[0])
        ranks = np.full(kernel, -1)
        ranks[tuple(np.array(phase).T)] = np.arange(len(phase))
        return ranks[tuple(self.at[axis] for axis in spatial)]


def _identities(
    kernel: tuple[int, ...], taps: Mapping[tuple[int, ...], int]
) -> Iterator[tuple[tuple[int, ...] | None, tuple[int, ...]]]:
    """Yield strides and identity taps whose phases all begin at one of the given taps.

    `taps` are those of one sign in row 0 and channel 0, with the bits of their numbers. In each
    phase these are equal. The default comes first. Then come those with as many phases as taps,
    since IDI has one entry for each phase in row 0, and those with equal strides on all axes.
    """
    if not taps:
        return
    usual = tuple((k - 1) // 2 for k in kernel)
    by_axis = []
    for axis, k in enumerate(kernel):
        present = {tap[axis] for tap in taps}
        steps_of: dict[tuple[int, ...], tuple[int, int]] = {}  # by the first taps of all phases
        near = [p for _, p in sorted((abs(p - usual[axis]), p) for p in present)][:_SOME]
        sizes = sorted(size for size in {*range(1, _SOME + 1), k} if size <= min(k, len(present)))
        for size, sign, p in product(sizes, (1, -1), near):
            begins = tuple(first for ((first,),) in phases((k,), "center", (p,), (sign * size,)))
            if present.issuperset(begins):
                steps_of.setdefault(begins, (sign * size, p))
        by_axis.append(list(steps_of.items()))
    if prod(map(len, by_axis)) > _MANY:
        by_axis = [candidates[:_SOME] for candidates in by_axis]
    known = []
    for chosen in product(*by_axis):
        firsts = set(product(*(begins for begins, _ in chosen)))
        if firsts <= taps.keys():
            steps, tap = zip(*(step for _, step in chosen), strict=True)
            whole = all(step == 1 for step in steps)
            more = len(taps) - len(firsts)
            long = [
                (s, p - u) for k, s, p, u in zip(kernel, steps, tap, usual, strict=True) if k > 1
            ]
            uneven = more > 0 and len(set(long)) > 1
            order = (not (whole and tap == usual), more > 0, uneven, not whole, more, tap != usual)
            known.append(((*order, sum(step < 0 for step in steps)), None if whole else steps, tap))
    for _, stride, tap in sorted(known, key=lambda each: each[0]):
        if _equal_in_phases(taps, stride):
            yield stride, tap


def _equal_in_phases(taps: Mapping[tuple[int, ...], int], stride: tuple[int, ...] | None) -> bool:
    """Whether the numbers at the taps of each phase are equal."""
    if len(set(taps.values())) == 1:
        return True
    if stride is None:
        return False
    numbers: dict[tuple[int, ...], int] = {}
    phased = (tuple(t % s for t, s in zip(tap, stride, strict=True)) for tap in taps)
    return all(
        numbers.setdefault(phase, taps[tap]) == taps[tap]
        for phase, tap in zip(phased, taps, strict=True)
    )


def _starts(
    row: NDArray[Any], column: NDArray[Any], negative: NDArray[Any], rows: int, n: int
) -> list[int]:
    """Return the rows at which the matrices of a weight begin; empty if there is no such pattern.

    The entries come in row-major order. In IDI and in both forms of IDIZ, the first entry of a row
    with the corner's sign is one column after that of the row before. Where it is not, a new matrix
    begins. The first row of a wide matrix has entries further right.
    """
    head = np.flatnonzero(np.diff(row, prepend=-1))
    if head.size != rows or rows == 0:
        return []
    ours = negative == negative[0]
    if n == 1:  # the signs of IDIZ alternate
        new = ours[1:] if ours.all() else ours[1:] == ours[:-1]
        right = ours[1:]
    else:
        order = np.flatnonzero(ours)
        leading = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
        if leading.size != rows:
            return []
        lead, count = column[leading], np.diff(head, append=row.size)
        both = int(not ours.all())
        other = column[np.minimum(head + 1, row.size - 1)]
        tall = (count == 1 + both) & ((other == 1) | (both == 0))
        new = (lead[1:] != (lead[:-1] + 1) % n) | ((lead[1:] == 0) & ~tall[1:])
        right = lead[1:] == 0
    if not right[new].all():
        return []
    return [0, *(np.flatnonzero(new) + 1).tolist()]


def _cuts(
    starts: list[int], rows: int, period: int, is_kernel: bool, may_group: bool
) -> Iterator[dict[str, Any]]:
    """Yield options that split the outputs into matrices beginning at the given rows."""
    yield {}
    if len(starts) < 2:
        return
    edges = [*starts, rows]
    even = gcd(*edges)
    parts = rows // even
    if may_group and (is_kernel or parts > _PACKED):
        yield {"groups": parts}
    elif parts <= _MANY:
        yield {"blocks": (even,) * parts}
    if parts == len(starts) or len(starts) > _MANY:
        return
    if period:  # packed weights: also split where a square one ends
        finer = [row for low, high in pairwise(edges) for row in range(low, high, period)]
        if len(finer) <= _PACKED:
            yield {"blocks": tuple(b - a for a, b in pairwise([*finer, rows]))}
    yield {"blocks": tuple(b - a for a, b in pairwise(edges))}


# Numbers ------------------------------------------------------------------------------------------


def _levels(plan: Plan, size: float) -> set[float]:
    """Return the values of a plan's entries for a size of its gain or eps."""
    terms = (
        idi_terms(m, n, size, plan.wide)
        if plan.role == "transit"
        else idiz_terms(m, n, size, plan.form)
        for m, n in {(m, n) for m, n, _ in plan.matrices}
    )
    return {term.value for each in terms for term in each if nnz_of(term) > 0}


def _middle(
    stored: list[float], shares: list[float], about: float, precision: int, least: float
) -> float:
    """Return the middle of the sizes whose shares all round to a stored number."""
    low, high = 0.0, inf
    for share in shares:
        at = min(stored, key=lambda each: abs(each - share * about))
        half = max(ldexp(0.5, frexp(at)[1] - precision), least)
        low, high = max(low, (at - half) / share), min(high, (at + half) / share)
    return (low + high) / 2


def _shortest(plan: Plan, levels: list[float], dtype: str, sign: float) -> Plan | None:
    """Return a plan with the shortest gain or eps that rounds to the stored numbers, or None.

    `plan` has a gain or eps of 1; `sign` is that of the result's.
    """
    to, wanted = FORMATS[dtype], set(levels)
    name = "gain" if plan.role == "transit" else "eps"
    stored, shares = (sorted(set(map(abs, each))) for each in (levels, _levels(plan, 1.0)))
    if not shares:
        return None
    near = [stored[k] / shares[k] for k in (-1, 0)]
    close, least = ldexp(4.0, -to.precision), ldexp(2.0, to.emin - to.precision + 1)
    near.append(_middle(stored, shares, near[0], to.precision, least / 4))
    for v in _levels(plan, sign * near[0]):
        if all(abs(v - w) > close * abs(w) + least for w in wanted):
            return None

    def sizes() -> Iterator[float]:
        yield from (float(f"{each:.{digits}e}") for digits in range(17) for each in near)
        for each in near:  # the ratio was rounded, too
            for _ in range(4):
                each = nextafter(each, 0.0)
            for _ in range(9):
                yield each
                each = nextafter(each, inf)

    for size in dict.fromkeys(sizes()):
        with suppress(RoundingError):
            if {round_value(v, to, name) for v in _levels(plan, sign * size)} == wanted:
                return replace(plan, **cast("Any", {name: sign * size}))
    return None


def sized(
    shape: tuple[int, ...], options: Mapping[str, Any], nnz: int, levels: list[float], dtype: str
) -> Iterator[Plan]:
    """Yield the plans with these options that have `nnz` entries with these values."""
    try:
        plain = Plan(shape, **options)
    except IDInitError:
        return
    units: list[Plan] = []
    if len({level > 0 for level in levels}) == 1:
        folds = any(m < n for m, n, _ in plain.matrices)
        wides = ("truncate", "fold_rms", "fold_mean") if folds else ("truncate",)
        units += [replace(plain, wide=cast("Any", wide)) for wide in wides]
    shifts = any(n >= 2 * m > 0 for m, n, _ in plain.matrices)
    for form in ("pair", "shifted") if shifts else ("pair",):
        units.append(replace(plain, role="zero", form=cast("Any", form), eps=1.0))
    first = 1.0 if levels[0] > 0 else -1.0
    for unit, sign in product(units, (first, -first)):
        if unit.nnz == nnz and (plan := _shortest(unit, levels, dtype, sign)) is not None:
            yield plan


def _cost(plan: Plan) -> int:
    """Return the number of options that are not defaults."""
    return len(plan.options()) - 2 + (plan.layout != DEFAULT_LAYOUTS.get(len(plan.shape)))


def _order(plan: Plan) -> tuple[int, bool, bool, int]:
    """Return the sort key of plans: few options first, no blocks, default or short numbers."""
    numbers = plan.gain, plan.eps
    return _cost(plan), plan.blocks is not None, numbers != (1.0, 1e-6), len(repr(numbers))


def holds(plan: Plan, seen: TensorContent) -> bool:
    """Whether a plan has exactly the recorded non-zeros."""
    places, bits, start = seen.places, seen.bits, 0
    kind = places.dtype.type
    for index in blocks(seen.shape):
        spans = zip(index, seen.shape, strict=True)
        stop = start + prod(len(range(*span.indices(size))) for span, size in spans)
        low, high = np.searchsorted(places, np.array([start, stop], kind))
        where = places[low:high].astype(np.int64) - start
        if first_difference(plan, index, seen.dtype, where, bits[low:high]) is not None:
            return False
        start = stop
    return True


def _acts_alike(a: Plan, b: Plan, places: _Places) -> bool:
    """Whether two plans of one array act alike: I and O of a symmetric matrix may be swapped."""
    if (a.groups, a.transposed) != (b.groups, b.transposed):
        return False

    def matrix_of(plan: Plan) -> tuple[list[int], NDArray[Any]]:
        at = plan.axes
        axes = [*at.batch_axes, at.o_axis, at.i_axis, *at.spatial_axes]
        sizes = [plan.shape[axis] for axis in axes]
        keys = np.ravel_multi_index([places.at[axis] for axis in axes], sizes)
        return sizes, np.sort(keys * 2 + places.negative)

    (sizes_a, keys_a), (sizes_b, keys_b) = matrix_of(a), matrix_of(b)
    return not places.all or (sizes_a == sizes_b and np.array_equal(keys_a, keys_b))


def levels_of(seen: TensorContent) -> list[float]:
    """Return the distinct recorded numbers, the first entry's first; empty if no plan has them."""
    distinct = np.unique(seen.bits) if seen.sparse and len(seen.shape) > 1 else ()
    if not 0 < len(distinct) <= LEVELS:
        return []
    values = values_of(np.concatenate([seen.bits[:1], distinct]), seen.dtype)
    if not np.isfinite(values).all() or not values.all() or np.any(values.imag != 0):
        return []
    return list(dict.fromkeys(values.real.astype(float).tolist()))


def plain(seen: TensorContent, levels: list[float]) -> Plan | None:
    """Return the plan with default options of an array that is one number everywhere, or None."""
    first = {"layout": _orders(len(seen.shape))[0]}
    fit = sized(seen.shape, first, seen.bits.size, levels, seen.dtype)
    return next((plan for plan in fit if plan.wide == "truncate" and holds(plan, seen)), None)


def search(seen: TensorContent, levels: list[float]) -> tuple[Plan, str] | None:
    """Return the plan of fewest options with the recorded numbers, and a note of a second plan.

    The layouts tried have batch axes first, and kernel axes before or after O and I.
    """
    places = _Places(seen)
    plans = dict.fromkeys(
        plan
        for options in places.options()
        for plan in sized(seen.shape, options, seen.bits.size, levels, seen.dtype)
    )
    best: Plan | None = None
    for plan in sorted(plans, key=_order):  # stable: the more common layout comes first
        if best is None:
            best = plan if holds(plan, seen) else None
        elif _cost(plan) > _cost(best) + _FAR:
            break
        elif plan.stride is not None:
            continue  # a stack of matrices is also a kernel whose stride is its size
        elif (plan.groups > 1 and not plan.axes.kernel) or _order(plan)[2] > _order(best)[2]:
            continue  # a matrix has no groups; every tall one is also a fold with a long gain
        elif not _acts_alike(best, plan, places) and holds(plan, seen):
            return best, f"also {words(plan)}"
    return None if best is None else (best, "")
