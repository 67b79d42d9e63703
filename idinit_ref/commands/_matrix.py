"""Matrices of a weight for `idinit show` and its picture, and their descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import lcm, ldexp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import Format, round_array
from ..core.kernel import CORNER
from ..core.lattice import lines
from ..core.layout import Layout, Piece, Stack
from ..core.pattern import Role, Term, called
from ..core.plan import Plan
from ..core.sheets import Strip, column_grid

Floats = NDArray[np.float64]
NOISY = 2**13  # entries: noise is drawn only in matrices up to this size, as it is slow
_TAPS = 4  # the most taps of a phase that are named


class Matrix(NamedTuple):
    """The non-zeros of an m x n matrix of a stored weight."""

    m: int
    n: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats

    def dense(self) -> Floats:
        """Return the matrix as an array of shape (m, n)."""
        out = np.zeros((self.m, self.n))
        out[self.rows, self.columns] = self.values
        return out


class Alike(NamedTuple):
    """Matrices of one size and role: the place of the first, and their number."""

    piece: Piece
    stack: Stack
    phase: int
    n: int
    copies: int
    role: Role

    @property
    def m(self) -> int:
        """The number of rows."""
        return self.piece.m

    def terms(self, p: Plan) -> tuple[Term, ...]:
        """Return their closed form in the weight, without noise."""
        return p.terms(self.m, self.n, self.stack.first + self.piece.block)

    def is_noisy(self, p: Plan) -> bool:
        """Whether they are loosened in the weight."""
        return p.loosen > 0 and self.role == "transit"


def different(p: Plan) -> list[Alike]:
    """Return the first matrix of each size and role in a weight, with the number of its copies.

    >>> from idinit_ref import plan
    >>> different(plan((6, 2), blocks=(2, 3, 1)))[1]
    Alike(piece=Piece(start=2, m=3, copies=1, block=1), stack=Stack(first=0, copies=1, place=()),
          phase=0, n=2, copies=1, role='transit')
    >>> [(a.m, a.n, a.copies) for a in different(plan((4, 2, 3, 3), stride=(2, 2)))]
    [(4, 8, 1), (4, 4, 2), (4, 2, 1)]
    """
    alike: dict[tuple[int, int, Role], Alike] = {}
    roles = p.roles
    for stack, piece in product(p.axes.stacks, p.axes.pieces):
        for phase, n in enumerate(p.axes.widths):
            role = roles[stack.first + piece.block]
            copies = piece.copies * stack.copies * p.axes.repeats
            first = alike.setdefault((piece.m, n, role), Alike(piece, stack, phase, n, 0, role))
            alike[piece.m, n, role] = first._replace(copies=first.copies + copies)
    return list(alike.values())


def extract(p: Plan, alike: Alike, to: Format) -> Matrix:
    """Return the first of some alike matrices of a weight, with entries rounded into a dtype.

    >>> from idinit_ref import plan
    >>> from idinit_ref.core.dtypes import format_of
    >>> p = plan((2, 4), "zero", eps=0.5)
    >>> extract(p, different(p)[0], format_of("float16")).dense()
    array([[ 0.5,  0. , -0.5,  0. ],
           [ 0. ,  0.5,  0. , -0.5]])
    """
    at, piece = p.axes, alike.piece
    box = [range(size) for size in p.shape]
    for axis, place in zip(at.batch_axes, alike.stack.place, strict=True):
        box[axis] = range(place, place + 1)
    box[at.o_axis] = range(piece.start, piece.start + piece.m)
    box[at.i_axis] = range(at.channels)
    if at.taps == "center":
        for axis, place in zip(at.spatial_axes, at.phases[alike.phase][0], strict=True):
            box[axis] = range(place, place + 1)
    shape = tuple(len(span) for span in box)
    positions, values = p.entries(tuple(slice(span.start, span.stop) for span in box))
    places = np.unravel_index(positions, shape)
    columns = places[at.i_axis]
    if at.taps != "center":
        grid = column_grid(at, np, tuple(box), alike.phase)
        columns = np.broadcast_to(grid, shape)[places]
    ours = columns >= 0  # of this phase
    rounded = round_array(values[ours], to, "an entry")
    return Matrix(piece.m, alike.n, places[at.o_axis][ours], columns[ours], rounded)


def cells(
    terms: Sequence[Term],
    m: int,
    n: int,
    size: tuple[int, int],
    *,
    strips: Sequence[Strip] | None = None,
    sign: int = 1,
) -> Floats:
    """Return a matrix in few cells: the largest entry in each, or 0.

    Each cell is computed from the terms (of `Plan.terms`), so any matrix costs the same. `n` is the
    number of shown columns; `size` is the number of cells down and across, at most m and n.
    `strips` gives the shown columns (`offset` and `stride` count them); by default all. Between a
    positive and a negative entry of equal size, `sign` decides.

    >>> from idinit_ref import plan
    >>> cells(plan((10**6, 10**6)).terms(10**6), 10**6, 10**6, (2, 2))
    array([[1., 0.],
           [0., 1.]])
    """
    h, w = size
    strips = [Strip(0, 1, n, 0, 1, n)] if strips is None else strips
    across = [[_within(s, j * n // w, (j + 1) * n // w) for s in strips] for j in range(w)]
    order = sorted(terms, key=lambda term: (-abs(term.value), -sign * term.value))
    out = np.zeros(size)
    for i in range(h):
        rows = range(i * m // h, (i + 1) * m // h)
        for j, parts in enumerate(across):
            spans = [(s.first, s.step, s.length) for s in parts if s.length > 0]
            for term in order:
                if any(any(lines(term, rows, *span)) for span in spans):
                    out[i, j] = term.value
                    break
    return out


def _within(strip: Strip, left: int, right: int) -> Strip:
    """Return the part of a strip whose columns are shown at positions left to right - 1."""
    step = max(strip.stride, 1)
    low = max(0, -((strip.offset - left) // step))
    high = min(strip.length, -((strip.offset - right) // step))
    return strip._replace(first=strip.first + low * strip.step, length=high - low)


def column_text(at: Layout, phase: int = 0) -> str:
    """Describe how a kernel is flattened into a matrix; "" for a matrix.

    >>> from idinit_ref import plan
    >>> column_text(plan((2, 2, 3)).axes)
    'column = rank*2 + c, ranks by distance from (1,)'
    >>> column_text(plan((2, 2, 3), taps="channel_major").axes)
    'column = c*3 + s (channel c, tap s of 3)'
    """
    if not at.kernel:
        return ""
    taps = at.phases[phase]
    if at.taps in CORNER:
        order = f"c*{len(taps)} + s" if at.taps == "channel_major" else f"s*{at.channels} + c"
        return f"column = {order} (channel c, tap s of {' x '.join(map(str, at.kernel))})"
    named = ", ".join(map(_tap_text, taps[:_TAPS])) + ", ..." * (len(taps) > _TAPS)
    parts = "" if len(at.phases) == 1 else f"; phase of the taps {named}"
    if at.taps == "center":
        others = "the others" if len(at.phases) == 1 else "the others of its phase"
        return f"at the tap {_tap_text(taps[0])}; 0 at {others}"
    if at.taps == "diagonal":
        c, k = max(at.channels, 1), len(taps)
        order = f"t: channel t mod {c}, rank (t + t // {lcm(c, k)}) mod {k}"
    else:
        order = f"rank*{at.channels} + c"
    return f"column = {order}, ranks by distance from {_tap_text(taps[0])}{parts}"


def _tap_text(tap: Sequence[int]) -> str:
    return str(tuple(tap))


def title_text(p: Plan) -> str:
    """Return a weight's name, shape and layout.

    >>> from idinit_ref import plan
    >>> title_text(plan((2, 3), "zero"))
    'IDIZ  2 x 3  layout OI'
    """
    return f"{called(p.role)}  {' x '.join(map(str, p.shape))}  layout {p.layout}"


def value_text(x: float, exponent: int = 0) -> str:
    """Return x * 2**exponent in few digits, even if no float holds it.

    >>> value_text(2 / 3), value_text(1.0, 1024)
    ('0.6667', '1.798e+308')
    """
    try:
        return f"{ldexp(x, exponent):.4g}"
    except OverflowError:
        from decimal import Decimal  # rarely needed, and slow to import

        return f"{Decimal(float(x)) * 2**exponent:.3e}"


def noise_text(p: Plan) -> str:
    """Describe the noise of a loosened weight.

    >>> import idinit_ref as ir
    >>> noise_text(ir.plan((2, 2), loosen=0.1, loosen_at="entries"))
    'deviation 0.1, in the non-zeros'
    """
    where = "in every entry" if p.loosen_at == "all" else "in the non-zeros"
    return f"deviation {p.loosen:g}, {where}"
