"""What the tensors of a file hold, recognised from the numbers alone.

A tensor is read once, in blocks. IDI and IDIZ leave few non-zeros: these are kept, the options are
read off where they lie, and a plan counts as found only if all of its entries, rounded into the
stored dtype, are the stored bits, and no other bit is set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice, pairwise, product
from math import frexp, gcd, inf, ldexp, nextafter, prod, sqrt
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, Format, round_value
from ..core.kernel import Phase, diagonal_column, phases
from ..core.lattice import nnz as nnz_of
from ..core.layout import DEFAULT_LAYOUTS, SPATIAL
from ..core.plan import Plan
from ..errors import IDInitError, RoundingError
from ..roles.names import decide
from .metadata import table
from .storage import (
    BLOCK,
    DTYPES,
    FLOATS,
    Index,
    Made,
    Tensor,
    as_tensor,
    blocks,
    carrier,
    convert,
    decode,
    index_of,
    itemsize,
    nbytes_of,
    obstacle,
    stream,
    unsigned,
)

__all__ = ["Finding", "Numbers", "inspect", "recognise"]

Kind = Literal["idi", "idiz", "zero", "constant", "other", "not decoded"]
Source = Literal["claim", "rules", "pattern"]
Progress = Callable[[int, int], object]

_KEPT = 3 * 2**23  # bytes of non-zeros that are kept
_WINDOW = 2**18  # of those that a pattern is read from
_LEVELS = 64  # different numbers of a plan without noise, at most
_NOISE = 2**21  # columns of a loosened matrix that are drawn again
_PACKED = 8  # blocks that are written one by one
_MANY = 4096  # matrices of different sizes, at most
_TAPS = 2**12  # taps of a kernel that is looked for
_SOME = 16  # identity taps and strides that are tried, at most, of each axis and of the kernel
_FAR = 1  # options more, at most, of another plan that is worth telling


# What is found ------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """What can be said of any numbers.

    ``low``, ``high``, ``mean`` and ``std`` (of the whole population) are those of the finite
    numbers, None where there are none; of complex ones, of real and imaginary parts together.

    Parameters
    ----------
    size, nonzero, nan, infinite : int
        How many there are.
    low, high, mean, std : float, optional
        Of the finite ones.

    Examples
    --------
    >>> print(recognise(np.array([0.0, 1.0, 3.0, np.nan])).numbers)
    0.75 of 4 not zero, 0 to 3, mean 1.33, standard deviation 1.247, 1 NaN
    """

    size: int
    nonzero: int
    nan: int
    infinite: int
    low: float | None
    high: float | None
    mean: float | None
    std: float | None

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"{self.nonzero / max(self.size, 1):.3g} of {self.size:,} not zero"]
        if self.mean is not None:
            parts.append(f"{self.low:.6g} to {self.high:.6g}, mean {self.mean:.3g}")
            parts.append(f"standard deviation {self.std:.4g}")
        parts += [f"{self.nan:,} NaN"] if self.nan else []
        parts += [f"{self.infinite:,} infinite"] if self.infinite else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Finding:
    """What one tensor holds.

    Parameters
    ----------
    kind : {"idi", "idiz", "zero", "constant", "other", "not decoded"}
        An IDI or IDIZ weight; zeros of either sign, or none at all; one number everywhere; else.
        Or its numbers cannot be read.
    plan : Plan, optional
        Of "idi" and "idiz": a plan whose entries, in the stored dtype, are the stored bits.
    source : {"claim", "rules", "pattern"}, optional
        Where its options are from: the file's own claim, the name rules, or the numbers alone.
    value : number, optional
        Of "constant".
    numbers : Numbers, optional
        Of "other".
    claim : bool, optional
        Whether the claim holds; None if there was none, or one of too much noise to be checked.
    digest : bool, optional
        Whether the SHA-256 digest is that of the bytes; None if there was none.
    detail : str
        All of it in words, but for the kind.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> found = recognise(ir.idiz((4, 3), eps=0.5), claim={"role": "zero", "eps": 0.5})
    >>> found.kind, found.plan.eps, found.source, found.claim
    ('idiz', 0.5, 'claim', True)
    """

    kind: Kind
    plan: Plan | None = None
    source: Source | None = None
    value: complex | None = None
    numbers: Numbers | None = None
    claim: bool | None = None
    digest: bool | None = None
    detail: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def _words(plan: Plan) -> str:
    """Return a plan's options in words."""
    number = f"gain {plan.gain}" if plan.role == "transit" else f"eps {plan.eps}"
    parts = [plan.layout, number]
    for field in fields(plan):
        value = getattr(plan, field.name)
        said = field.name in ("shape", "role", "gain", "eps", "layout")
        if said or not field.compare or value == field.default:
            continue
        if field.name == "blocks" and len(value) > _PACKED:
            value = f"({', '.join(map(str, value[:3]))}, ... {len(value)} in all)"
        parts.append("transposed" if value is True else f"{field.name} {value}")
    return ", ".join(parts)


# One pass over the bytes --------------------------------------------------------------------------


def _values(bits: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the numbers that bits mean."""
    return decode(bits.view(carrier(dtype).newbyteorder("<")), dtype)


def _bits_of(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """Return the bits of float64 numbers, rounded once into a dtype."""
    rounded = convert(values, "float64", dtype, "an entry")
    return rounded.astype(rounded.dtype.newbyteorder("<"), copy=False).view(unsigned(dtype))


def _nonzero(bits: NDArray[Any]) -> NDArray[np.intp]:
    """Return where the bits are not all 0: eight bytes at a time, as most are."""
    per = 8 // bits.itemsize
    whole = bits.size // per * per
    words = np.flatnonzero(bits[:whole].view(np.uint64) != 0)
    if words.size * per > bits.size // 4:
        return np.flatnonzero(bits)
    row, place = np.nonzero(bits[:whole].reshape(-1, per)[words])
    rest = np.flatnonzero(bits[whole:]) + whole
    return np.concatenate([words[row] * per + place, rest])


class _Tally:
    """Numbers of an array that is seen in parts: exact counts, merged means and deviations."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.size = self.nonzero = self.nan = self.infinite = self.finite = 0
        self.low: Any = None
        self.high: Any = None
        self.mean = self.squares = 0.0
        few = itemsize(dtype) <= 2  # all numbers of the dtype are counted, each
        self.counts = np.zeros(2 ** (8 * itemsize(dtype)), np.int64) if few else None

    def add(self, bits: NDArray[Any]) -> None:
        if self.counts is not None:
            self.counts += np.bincount(bits, minlength=self.counts.size)
        else:
            self._merge(_values(bits, self.dtype), None)

    def add_zeros(self, times: int) -> None:
        self._merge(_values(np.zeros(1, unsigned(self.dtype)), self.dtype), np.array([times]))

    def result(self) -> Numbers:
        if self.counts is not None:
            seen = np.flatnonzero(self.counts)
            values = _values(seen.astype(unsigned(self.dtype)), self.dtype)
            self._merge(values, self.counts[seen])
            self.counts = None
        some = self.finite > 0
        return Numbers(
            self.size,
            self.nonzero,
            self.nan,
            self.infinite,
            self.low,
            self.high,
            self.mean if some else None,
            sqrt(self.squares / self.finite) if some else None,
        )

    def _merge(self, values: NDArray[Any], times: NDArray[np.int64] | None) -> None:
        def many(mask: NDArray[np.bool_]) -> int:
            return int(np.count_nonzero(mask) if times is None else times[mask].sum())

        self.size += values.size if times is None else int(times.sum())
        self.nonzero += many(values != 0)
        values = values.view(np.uint8) if values.dtype.kind == "b" else values
        finite = np.isfinite(values)
        if not finite.all():
            self.nan += many(np.isnan(values))
            self.infinite += many(np.isinf(values) & ~np.isnan(values))
            values, times = values[finite], None if times is None else times[finite]
        if values.dtype.kind == "c":
            values = np.ascontiguousarray(values).view(np.float32)
            times = None if times is None else np.repeat(times, 2)
        count = values.size if times is None else int(times.sum())
        if count == 0:
            return
        low, high = values.min().item(), values.max().item()
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            exact = values.astype(np.float64)
            mean = float(np.average(exact, weights=times))
            exact -= mean
            exact *= exact
            squares = float(exact.sum() if times is None else (exact * times).sum())
            apart = np.float64(mean) - self.mean
            both = self.finite + count
            self.mean = float(self.mean + apart * (count / both))
            self.squares = float(
                self.squares + squares + apart * apart * (self.finite / both * count)
            )
        self.finite = both


class _Seen:
    """What is kept of a tensor while it is read: its non-zeros, or a tally if they are many."""

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.size, self.same = 0, True
        self.first: NDArray[Any] | None = None  # the first number's bits
        self.sparse = dtype in FLOATS
        self.tally = _Tally(dtype)
        self.place = np.dtype("<u4" if prod(shape) < 2**32 else "<i8")
        self._places, self._bits = bytearray(), bytearray()

    @property
    def places(self) -> NDArray[Any]:
        """Flat positions of the non-zeros that are kept."""
        return np.frombuffer(self._places, self.place)

    @property
    def bits(self) -> NDArray[Any]:
        """Their bits."""
        return np.frombuffer(self._bits, unsigned(self.dtype))

    def add(self, bits: NDArray[Any], where: NDArray[np.intp] | None) -> None:
        if bits.size and self.first is None:
            self.first = bits[:1].copy()
        self.same = self.same and bool((bits == self.first).all())
        if self.sparse and where is not None:
            some = bits[where]
            kept = len(self._places) + len(self._bits)
            kept += some.size * (self.place.itemsize + some.itemsize)
            if kept <= _KEPT and np.unique(some[:4096]).size <= _LEVELS:
                self._places += (where + self.size).astype(self.place).data.cast("B")
                self._bits += some.data.cast("B")
            else:
                self.give_up()
        self.size += bits.size
        if not self.sparse:
            self.tally.add(bits)

    def give_up(self) -> None:
        """Keep no non-zeros any more, only their tally."""
        if self.sparse:
            self.tally.add_zeros(self.size - self.bits.size)
            for start in range(0, self.bits.size, BLOCK):
                self.tally.add(self.bits[start : start + BLOCK])
            self.sparse = False
            self._places, self._bits = bytearray(), bytearray()


class _Claim:
    """A plan that a tensor is said to be, held against its bytes block by block."""

    def __init__(self, shape: tuple[int, ...], dtype: str, options: object) -> None:
        self.plan: Plan | None = None
        self.wrong: str | None = None
        self.dtype, self.done, self.checked = dtype, 0, True
        known = {field.name for field in fields(Plan) if field.init} - {"shape"}
        if not isinstance(options, Mapping):
            self.wrong = f"the claim is no plan: {_short(options)}"
        elif unknown := sorted(map(repr, set(options) - known)):
            self.wrong = f"the claim is no plan: unknown options {_short(', '.join(unknown))}"
        else:
            try:
                claimed = Plan(shape, **options)
                claimed.check(dtype)
            except (IDInitError, TypeError, ValueError, OverflowError) as problem:
                self.wrong = f"the claim cannot be: {_short(problem)}"
            else:
                self.plan = claimed
                if claimed.loosen and prod(shape) and claimed.axes.columns > _NOISE:
                    self.checked = False
                    self.wrong = f"the claim is not checked: noise in rows of {_NOISE:,} and more"

    @property
    def open(self) -> bool:
        return self.wrong is None

    @property
    def sparse(self) -> bool:
        """Whether the non-zeros are asked for."""
        return self.open and self.plan is not None and not self.plan.loosen

    def compare(self, index: Index, bits: NDArray[Any], where: NDArray[np.intp] | None) -> None:
        if not self.open or self.plan is None:
            return
        try:
            if where is None or self.plan.loosen:
                made = np.ascontiguousarray(Made(self.plan).read(index, self.dtype)).reshape(-1)
                made = made.astype(made.dtype.newbyteorder("<"), copy=False).view(bits.dtype)
                apart = np.flatnonzero(made != bits)
                at = (int(apart[0]), made[apart[0]]) if apart.size else None
            else:
                at = _apart(self.plan, index, self.dtype, where, bits[where])
        except RoundingError as problem:
            self.wrong = f"the claim cannot be: {_short(problem)}"
            return
        if at is not None:
            place, planned = at
            numbers = _values(np.stack([bits[place], planned]).astype(bits.dtype), self.dtype)
            stored, planned = numbers.tolist()
            where_ = index_of(place + self.done, self.plan.shape)
            role = "IDI" if self.plan.role == "transit" else "IDIZ"
            self.wrong = (
                f"claimed {role} {_words(self.plan)}, but {list(where_)} is {stored!r}, "
                f"not {planned!r}"
            )
        self.done += bits.size


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 300 else line[:299] + "…"


def _apart(
    plan: Plan, index: Index, dtype: str, where: NDArray[Any], bits: NDArray[Any]
) -> tuple[int, Any] | None:
    """Return the first place of a block that is not as planned, and the planned bits there."""
    expected, values = plan.entries(index)
    planned = _bits_of(values, dtype)
    if np.array_equal(expected, where) and np.array_equal(planned, bits):
        return None
    common = min(where.size, expected.size)
    wrong = (where[:common] != expected[:common]) | (bits[:common] != planned[:common])
    k = int(np.argmax(wrong)) if wrong.any() else common
    ours = int(where[k]) if k < where.size else prod(plan.shape)
    theirs = int(expected[k]) if k < expected.size else prod(plan.shape)
    return min(ours, theirs), planned[k] if theirs <= ours else np.zeros((), planned.dtype)[()]


# Options from where the non-zeros lie -------------------------------------------------------------


@lru_cache(maxsize=16)
def _orders(rank: int) -> tuple[str, ...]:
    """Return the sensible layouts of a rank: batch axes first, kernel axes first or last."""
    out: list[str] = []
    for dims in range(min(rank - 2, len(SPATIAL)), -1, -1):
        kernel, batch = SPATIAL[len(SPATIAL) - dims :], "EXYZABCFG"[: rank - 2 - dims]
        if len(batch) == rank - 2 - dims:
            out += [f"{batch}OI{kernel}", f"{batch}{kernel}IO"] if dims else [f"{batch}OI"]
            out += [f"{batch}IO{kernel}", f"{batch}{kernel}OI"] if dims else [f"{batch}IO"]
    return tuple(out)


class _Places:
    """Where the first non-zeros lie, on each axis, and their signs."""

    def __init__(self, seen: _Seen) -> None:
        self.shape = seen.shape
        self.at = np.unravel_index(seen.places[:_WINDOW].astype(np.int64), seen.shape)
        self.negative = np.signbit(_values(seen.bits[:_WINDOW], seen.dtype).real)
        self.all = seen.bits.size <= _WINDOW
        self.corner = int(seen.places[0]) == 0
        self.one_place = {a: int(at[0]) for a, at in enumerate(self.at) if (at == at[0]).all()}

    def options(self) -> Iterator[dict[str, Any]]:
        """Yield options of plans that may have their non-zeros there."""
        for letters in _orders(len(self.shape)):
            axes = {letter: axis for axis, letter in enumerate(letters)}
            spatial = [axes[c] for c in SPATIAL if c in axes]
            kernel = tuple(self.shape[axis] for axis in spatial)
            if prod(kernel) > _TAPS:
                continue
            for known in self._kernels(letters, axes, spatial, kernel):
                yield from self._of(known, axes, spatial, kernel)

    def _kernels(
        self, letters: str, axes: dict[str, int], spatial: list[int], kernel: tuple[int, ...]
    ) -> Iterator[dict[str, Any]]:
        """Yield the ways in which a kernel may hold its matrix, those of one layout."""
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
        # Row 0 has its first entry in channel 0, at the identity tap: one in each phase.
        first = np.ones(self.negative.size, dtype=bool)
        for axis in range(len(self.shape)):
            if axis not in spatial:
                first &= self.at[axis] == 0
        for sign in (False, True):
            here = first & (self.negative == sign)
            taps = set(zip(*(self.at[axis][here].tolist() for axis in spatial), strict=True))
            some = max(2, min(_SOME, _TAPS // prod(kernel)))
            for steps, tap in islice(_identities(kernel, taps), some):
                more = {**plain, "tap": None if tap == usual else tap, "stride": steps}
                for order in ("outward", "diagonal", "center"):
                    yield {**more, "taps": order}
        if not self.all:
            yield from ({**plain, "taps": order} for order in ("outward", "diagonal", "center"))

    def _of(
        self, known: dict[str, Any], axes: dict[str, int], spatial: list[int], kernel: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield those of one layout and one way with the kernel: whole, then cut as it shows."""
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
                continue  # every group of inputs begins so
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
            for starts, run in _starts(
                o[inside][sorted_],
                column[sorted_],
                self.negative[ours][inside][sorted_],
                rows,
                channels * taps,
            ):
                for cut in _cuts(starts, rows, run, bool(spatial), not more):
                    yield {**known, **more, **cut}

    def _ranks(self, phase: Phase, spatial: list[int], kernel: tuple[int, ...]) -> NDArray[Any]:
        """Return the rank of each non-zero's tap in a phase, -1 where it is of another."""
        if not spatial:
            return np.zeros_like(self.at[0])
        ranks = np.full(kernel, -1)
        ranks[tuple(np.array(phase).T)] = np.arange(len(phase))
        return ranks[tuple(self.at[axis] for axis in spatial)]


def _identities(
    kernel: tuple[int, ...], taps: set[tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...] | None, tuple[int, ...]]]:
    """Yield strides and identity taps whose phases have their first tap among some.

    The default comes first, then those with as many phases as there are taps, since IDI has one
    entry for each phase in row 0.
    """
    if not taps:
        return
    usual = tuple((k - 1) // 2 for k in kernel)
    each = []
    for axis, k in enumerate(kernel):
        there = {tap[axis] for tap in taps}
        ways: dict[tuple[int, ...], tuple[int, int]] = {}  # by the identity taps of all phases
        nearest = [p for _, p in sorted((abs(p - usual[axis]), p) for p in there)][:_SOME]
        for size in sorted({*range(1, min(k, _SOME) + 1), k}):
            if size > len(there):
                break
            for sign, p in product((1, -1), nearest):
                if size > 1 and p + sign in range(k) and p + sign not in there:
                    continue
                found = phases((k,), "center", (p,), (sign * size,))
                own = tuple(first for ((first,),) in found)
                if there.issuperset(own):
                    ways.setdefault(own, (sign * size, p))
        each.append(list(ways.items()))
    if prod(map(len, each)) > _MANY:
        each = [ways[:_SOME] for ways in each]
    known = []
    for chosen in product(*each):
        firsts = set(product(*(those for those, _ in chosen)))
        if firsts <= taps:
            steps, tap = zip(*(way for _, way in chosen), strict=True)
            whole = all(step == 1 for step in steps)
            more = len(taps) - len(firsts)
            order = (not (whole and tap == usual), more > 0, not whole, more, tap != usual)
            known.append(((*order, sum(step < 0 for step in steps)), None if whole else steps, tap))
    for _, stride, tap in sorted(known, key=lambda each: each[0]):
        yield stride, tap


def _starts(
    row: NDArray[Any], column: NDArray[Any], negative: NDArray[Any], rows: int, n: int
) -> Iterator[tuple[list[int], int]]:
    """Yield the rows at which the matrices of a weight may begin, and a period inside them.

    Of entries in row-major order. From the first row of a matrix its own rows can be read off
    where it is wide and filled; where it is not, it goes on as long as each row follows the last.
    """
    head = np.flatnonzero(np.diff(row, prepend=-1))
    if head.size != rows or rows == 0:
        return
    count = np.diff(head, append=row.size)
    first = column[head]
    second = column[np.minimum(head + 1, row.size - 1)]
    if (negative == negative[0]).all():  # IDI
        single = count == 1
        follows = single[1:] & single[:-1] & (first[1:] == (first[:-1] + 1) % n)
        found = _walk(first == 0, follows, np.where(single, 0, second))
        if found:
            yield found, n
    if n == 1 and row.size == rows:  # IDIZ: signs take turns
        found = _walk(negative == negative[0], np.diff(negative), np.zeros(rows, int))
    elif (count == 2).all() and (negative[head] != negative[head + 1]).all():
        straight = negative[head] == negative[0]
        plus, minus = np.where(straight, first, second), np.where(straight, second, first)
        near = minus == (plus + 1) % n
        follows = near[1:] & near[:-1] & (plus[1:] == (plus[:-1] + 1) % n)
        found = _walk(plus == 0, follows, np.where(minus == 1, 0, minus))
    else:
        found = []
    if found:
        yield found, 0
    if negative.any() and not negative.all() and (count >= 2).all():  # IDIZ, shifted
        follows = first[1:] == first[:-1] + 1
        found = _walk(first == 0, follows, np.zeros(rows, int))
        if found:
            yield found, 0


def _walk(may: NDArray[Any], follows: NDArray[Any], size: NDArray[Any]) -> list[int]:
    """Return the first rows of the matrices, or none: each is of `size` or goes on as it does."""
    ends = np.append(np.flatnonzero(~follows) + 1, may.size)
    end = ends[np.searchsorted(ends, np.arange(may.size), side="right")].tolist()
    known, allowed = size.tolist(), may.tolist()
    at, starts = 0, []
    while at < may.size:
        if not allowed[at]:
            return []
        starts.append(at)
        at = at + known[at] if known[at] else end[at]
    return starts if at == may.size else []


def _cuts(
    starts: list[int], rows: int, period: int, is_kernel: bool, may_group: bool
) -> Iterator[dict[str, Any]]:
    """Yield options that cut the outputs so that matrices begin at some rows."""
    if len(starts) == 1:
        yield {}
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
    if period:  # packed weights: a square one needs no cut, but is better told apart
        finer = [row for low, high in pairwise(edges) for row in range(low, high, period)]
        if len(finer) <= _PACKED:
            yield {"blocks": tuple(b - a for a, b in pairwise([*finer, rows]))}
    yield {"blocks": tuple(b - a for a, b in pairwise(edges))}


# Numbers ------------------------------------------------------------------------------------------


def _terms(plan: Plan) -> set[float]:
    return {
        term.value for m, n, _ in plan.matrices for term in plan.terms(m, n) if nnz_of(term) > 0
    }


def _shortest(plan: Plan, levels: list[float], dtype: str, sign: float) -> Plan | None:
    """Return a plan with the shortest gain or eps of a sign that gives the stored numbers, or None.

    The plan that is given has a gain or eps of 1.
    """
    to, magnitudes = FORMATS[dtype], sorted(set(map(abs, levels)))
    shares, wanted = sorted(set(map(abs, _terms(plan)))), set(levels)
    name = "gain" if plan.role == "transit" else "eps"
    if not shares:
        return None

    def fits(gain: float) -> Plan | None:
        changes: dict[str, Any] = {name: sign * gain}
        made = replace(plan, **changes)
        with suppress(RoundingError):
            if {round_value(v, to, name) for v in _terms(made)} == wanted:
                return made
        return None

    # Between the ends of what rounds to a stored number nothing changes: a few spans, mostly one.
    ends = {end / share for v in magnitudes for share in shares for end in _interval(v, to)}
    low = max(_interval(magnitudes[k], to)[0] / shares[k] for k in (0, -1))
    high = min(_interval(magnitudes[k], to)[1] / shares[k] for k in (0, -1))
    if not 0 < low <= high * (1 + 1e-15):
        return None
    edges = [low, *sorted(end for end in ends if low < end < high), max(low, high)]
    spans = [(a, b) for a, b in pairwise(edges) if a >= b or fits(a + (b - a) / 2)]
    for digits in range(17):
        for a, b in spans:
            gain = float(f"{a + (b - a) / 2:.{digits}e}")
            if a * (1 - 1e-15) <= gain <= b * (1 + 1e-15) and (made := fits(gain)):
                return made
    near = edges[0] + (edges[1] - edges[0]) / 2
    for _ in range(4):  # a share is rounded itself
        near = nextafter(near, 0.0)
    for _ in range(9):
        if made := fits(near):
            return made
        near = nextafter(near, inf)
    return None


def _interval(value: float, to: Format) -> tuple[float, float]:
    """Return the ends of what rounds to a positive number of a format."""
    significand, exponent = frexp(value)
    unit = ldexp(1.0, max(exponent - to.precision, to.emin - to.precision + 1))
    narrow = significand == 0.5 and exponent - 1 > to.emin  # a power of two
    return value - unit / (4 if narrow else 2), value + unit / 2


def _sized(
    shape: tuple[int, ...], options: Mapping[str, Any], nnz: int, levels: list[float], dtype: str
) -> Iterator[Plan]:
    """Yield the plans of some options that have so many entries of these values."""
    try:
        plain = Plan(shape, **options)
    except IDInitError:
        return
    if len({level > 0 for level in levels}) == 1:
        folds = any(m < n for m, n, _ in plain.matrices)
        for wide in ("truncate", "fold_rms", "fold_mean") if folds else ("truncate",):
            unit = replace(plain, wide=cast("Any", wide))
            if unit.nnz == nnz:
                yield from _both(unit, levels, dtype)
    shifts = any(n >= 2 * m > 0 for m, n, _ in plain.matrices)
    for form in ("pair", "shifted") if shifts else ("pair",):
        zero = replace(plain, role="zero", form=cast("Any", form), eps=1.0)
        if zero.nnz == nnz:
            yield from _both(zero, levels, dtype)


def _both(unit: Plan, levels: list[float], dtype: str) -> Iterator[Plan]:
    """Yield a plan with the stored numbers, of either sign."""
    for sign in (1.0, -1.0) if levels[0] > 0 else (-1.0, 1.0):
        made = _shortest(unit, levels, dtype, sign)
        if made is not None:
            yield made


def _cost(plan: Plan) -> int:
    """Return how many options are not the default ones."""
    usual = DEFAULT_LAYOUTS.get(len(plan.shape))
    options = (field for field in fields(plan) if field.name not in ("shape", "role", "layout"))
    changed = [o.name for o in options if o.compare and getattr(plan, o.name) != o.default]
    return len(changed) + (plan.layout != usual)


def _order(plan: Plan) -> tuple[int, bool, bool, int]:
    """Return what plans are sorted by: few options first, no blocks, usual or short numbers."""
    numbers = plan.gain, plan.eps
    return _cost(plan), plan.blocks is not None, numbers != (1.0, 1e-6), len(repr(numbers))


def _holds(plan: Plan, seen: _Seen) -> bool:
    """Whether a plan has exactly the non-zeros that were kept."""
    places, bits, start = seen.places, seen.bits, 0
    kind = places.dtype.type
    for index in blocks(seen.shape):
        spans = zip(index, seen.shape, strict=True)
        stop = start + prod(len(range(*span.indices(size))) for span, size in spans)
        low, high = np.searchsorted(places, np.array([start, stop], kind))
        where = places[low:high].astype(np.int64) - start
        if _apart(plan, index, seen.dtype, where, bits[low:high]) is not None:
            return False
        start = stop
    return True


def _acts_alike(a: Plan, b: Plan, places: _Places) -> bool:
    """Whether two plans of one array act alike: as I and O of a symmetric matrix may be swapped."""
    if (a.groups, a.transposed) != (b.groups, b.transposed):
        return False

    def seen_from(plan: Plan) -> tuple[list[int], NDArray[Any]]:
        at = plan.axes
        axes = [*at.batch_axes, at.o_axis, at.i_axis, *at.spatial_axes]
        sizes = [plan.shape[axis] for axis in axes]
        keys = np.ravel_multi_index([places.at[axis] for axis in axes], sizes)
        return sizes, np.sort(keys * 2 + places.negative)

    (sizes_a, keys_a), (sizes_b, keys_b) = seen_from(a), seen_from(b)
    return not places.all or (sizes_a == sizes_b and np.array_equal(keys_a, keys_b))


def _find(
    seen: _Seen, name: str | None, names: Collection[str] | None
) -> tuple[Plan, Source, str] | None:
    """Return the plan of what was kept, where it is from, and what else is to be said."""
    if not seen.sparse or not seen.bits.size or len(seen.shape) < 2:
        return None
    some = np.unique(seen.bits)
    if some.size > _LEVELS:
        return None
    values = _values(np.concatenate([seen.bits[:1], some]), seen.dtype)
    if not np.isfinite(values).all() or not values.all() or np.any(values.imag != 0):
        return None
    levels = list(dict.fromkeys(values.real.astype(float).tolist()))  # the corner's comes first
    nnz, shape = seen.bits.size, seen.shape
    if name is not None:
        with suppress(IDInitError):
            role, options, _ = decide(name, shape, names=names)
            for plan in _sized(shape, options, nnz, levels, seen.dtype):
                if plan.role == role and _holds(plan, seen):
                    return plan, "rules", ""
    if seen.same:  # one number everywhere: constant, unless nothing but it is asked for
        first = {"layout": _orders(len(shape))[0]}
        for plan in _sized(shape, first, nnz, levels, seen.dtype):
            if plan.wide == "truncate" and _holds(plan, seen):
                return plan, "pattern", ""
        return None
    places = _Places(seen)
    plans = dict.fromkeys(
        plan
        for options in places.options()
        for plan in _sized(shape, options, nnz, levels, seen.dtype)
    )
    found: Plan | None = None
    for plan in sorted(plans, key=_order):  # stable: the commoner layout comes first
        if found is None:
            found = plan if _holds(plan, seen) else None
        elif _cost(plan) > _cost(found) + _FAR:
            break
        elif plan.stride is not None:
            continue  # a stack of matrices is also a kernel whose stride is its size
        elif (plan.groups > 1 and not plan.axes.kernel) or _order(plan)[2] > _order(found)[2]:
            continue  # a matrix has no groups; every tall one is a fold with an odd gain
        elif not _acts_alike(found, plan, places) and _holds(plan, seen):
            return found, "pattern", f"also {_words(plan)}"
    return None if found is None else (found, "pattern", "")


# The public face ----------------------------------------------------------------------------------


def recognise(
    tensor: Tensor,
    *,
    name: str | None = None,
    claim: Mapping[str, Any] | None = None,
    names: Collection[str] | None = None,
    digest: str | None = None,
    progress: Progress | None = None,
) -> Finding:
    """Recognise what a tensor holds, from its numbers, in one pass and bounded memory.

    A plan is found only if its entries are the stored bits, everywhere. Where several fit, the
    claim's comes first, then the one that the name rules say, then the one of fewest options;
    ``gain`` and ``eps`` are the shortest decimals that round to the stored numbers. Layouts that
    are tried without a claim have batch axes first, and kernel axes before or after O and I;
    kernels have up to 4,096 taps, in every order and with the phases of any stride. A loosened
    weight is recognised by its claim only: its noise has to be made again.

    Parameters
    ----------
    tensor : Tensor, Plan or numpy.ndarray
        Of any shape and any dtype of `idinit_ref.files.storage`.
    name : str, optional
        Its name in the checkpoint, for the rules of `idinit_ref.roles.names`.
    claim : mapping, optional
        Options of `idinit_ref.plan`, less the shape, that it is said to be made with.
    names : collection of str, optional
        All names of the checkpoint, for the rules that look at them.
    digest : str, optional
        The SHA-256 that its bytes are said to have, in hexadecimal.
    progress : callable, optional
        Called as ``progress(bytes_read, bytes_in_all)`` after each block.

    Returns
    -------
    Finding
        What it is, and by which numbers.

    Raises
    ------
    OptionTypeError, DTypeError
        If it is no tensor, or of a dtype that no checkpoint holds. A claim is never an error.
    OSError, CheckpointError
        If reading it fails.

    Examples
    --------
    >>> import numpy as np
    >>> import idinit_ref as ir
    >>> found = recognise(ir.idiz((64, 16, 3, 3), dtype="float16"))
    >>> print(found)
    idiz: OIHW, eps 1e-06
    >>> found.plan == ir.plan((64, 16, 3, 3), "zero")
    True
    >>> print(recognise(np.ones(8)), recognise(np.zeros(3)), sep=", ")
    constant: 1.0, zero
    """
    tensor = as_tensor(name or "tensor", tensor)
    shape, dtype = tensor.shape, tensor.dtype or "float64"
    if why := obstacle(tensor):
        return _not_decoded(tensor, why, digest, progress)
    seen = _Seen(shape, dtype)
    claimed = None if claim is None else _Claim(shape, dtype, claim)
    sha = None if digest is None else hashlib.sha256()
    for index, part in zip(blocks(shape), stream(tensor, dtype), strict=True):
        bits = part.view(unsigned(dtype))
        if sha is not None:
            sha.update(bits.view(np.uint8).data)
        sparse = seen.sparse or (claimed is not None and claimed.sparse)
        where = _nonzero(bits) if sparse else None
        seen.add(bits, where)
        if claimed is not None:
            claimed.compare(index, bits, where)
        if progress is not None:
            progress(seen.size * itemsize(dtype), prod(shape) * itemsize(dtype))
    right = None if sha is None or digest is None else sha.hexdigest() == digest.lower()
    return _conclude(seen, claimed, name, names, right, sha.hexdigest() if sha else "", digest)


def _not_decoded(
    tensor: Tensor, why: str, digest: str | None, progress: Progress | None
) -> Finding:
    """Return what is known of a tensor whose numbers cannot be read, and of its bytes."""
    size, done, sha = nbytes_of(tensor, ""), 0, hashlib.sha256()
    for part in stream(tensor, "") if digest is not None else ():
        sha.update(part.data)
        done += part.size
        if progress is not None:
            progress(done, size)
    right = None if digest is None else sha.hexdigest() == digest.lower()
    notes = [f"{size:,} bytes"] if tensor.dtype not in DTYPES else [why, f"{size:,} bytes"]
    if right is False:
        notes.append(_wrong_digest(sha.hexdigest(), digest))
    return Finding("not decoded", digest=right, detail="; ".join(notes))


def _wrong_digest(sha: str, digest: object) -> str:
    return f"SHA-256 is {sha}, not {_short(digest)} as the file says"


def _conclude(
    seen: _Seen,
    claimed: _Claim | None,
    name: str | None,
    names: Collection[str] | None,
    right: bool | None,
    sha: str,
    digest: str | None,
) -> Finding:
    """Return what was found, once all was seen."""
    notes = [] if claimed is None or claimed.wrong is None else [claimed.wrong]
    if right is False:
        notes.append(_wrong_digest(sha, digest))
    holds = claimed.open if claimed is not None and claimed.checked else None

    def finding(kind: Kind, detail: str, **more: Any) -> Finding:
        said = "; ".join(filter(None, [detail, *notes]))
        return Finding(kind, claim=holds, digest=right, detail=said, **more)

    def planned(plan: Plan, source: Source, note: str) -> Finding:
        kind: Kind = "idi" if plan.role == "transit" else "idiz"
        said = "; ".join(filter(None, [_words(plan), note]))
        return finding(kind, said, plan=plan, source=source)

    if holds and claimed is not None and claimed.plan is not None:
        return planned(claimed.plan, "claim", "")
    if seen.first is None:
        return finding("zero", "no entries")
    found = _find(seen, name, names)
    if found is not None:
        return planned(*found)
    constant = seen.same
    if seen.sparse:
        seen.give_up()
    numbers = seen.tally.result()
    value = _values(seen.first, seen.dtype)[0].item()
    if numbers.nonzero == 0:
        if constant and np.all(seen.first == 0):
            return finding("zero", "")
        return finding("zero", "-0.0" if constant else "0.0 and -0.0")
    if constant:
        return finding("constant", repr(value), value=value)
    return finding("other", str(numbers), numbers=numbers)


class _Opened(Protocol):
    """What `inspect` asks of a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...


def inspect(
    checkpoint: _Opened, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor, Finding]]:
    """Recognise every tensor of a checkpoint, in its order.

    Claims are those of the metadata's ``idinit_ref.plans``, digests those of
    ``idinit_ref.sha256``; metadata that is not of that form is no claim.

    Parameters
    ----------
    checkpoint : Checkpoint
        With ``tensors`` and ``metadata``.
    progress : callable, optional
        Called as ``progress(bytes_read, bytes_in_all)`` after each block.

    Yields
    ------
    name : str
        The tensor's name.
    tensor : Tensor
        The tensor itself.
    finding : Finding
        What it holds, as of :func:`recognise`.

    Raises
    ------
    OSError, CheckpointError
        If reading it fails.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> import idinit_ref as ir
    >>> file = SimpleNamespace(metadata={}, tensors={"a": ir.idi((4, 3)), "b": np.zeros(4)})
    >>> for name, tensor, finding in inspect(file):
    ...     print(name, tensor.dtype, finding)
    a float64 idi: OI, gain 1.0
    b float64 zero
    """
    claims = table(checkpoint.metadata.get("idinit_ref.plans"))
    digests = table(checkpoint.metadata.get("idinit_ref.sha256"))
    tensors = {name: as_tensor(name, tensor) for name, tensor in checkpoint.tensors.items()}
    total, done = sum(nbytes_of(t, t.dtype or "float64") for t in tensors.values()), 0

    def read(part: int, _: int) -> None:
        if progress is not None:
            progress(done + part, total)

    for name, tensor in tensors.items():
        digest = digests.get(name)
        finding = recognise(
            tensor,
            name=name,
            claim=claims.get(name),
            names=tensors.keys(),
            digest=digest if isinstance(digest, str) else None,
            progress=read,
        )
        yield name, tensor, finding
        done += nbytes_of(tensor, tensor.dtype or "float64")
