"""What `idinit show` and its picture take out of a weight, and how they name it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import ldexp, prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dtypes import Format, round_array
from ..lattice import lines
from ..layout import Layout, Piece
from ..pattern import Term
from ..plan import Plan

__all__ = ["Matrix", "cells", "column_text", "different", "extract", "title_text", "value_text"]

Floats = NDArray[np.float64]


class Matrix(NamedTuple):
    """The non-zeros of one matrix, taken out of the stored weight.

    Parameters
    ----------
    m, n : int
        Outputs (rows) and inputs (columns).
    rows, columns : ndarray of int64, shape (k,)
        Where the non-zeros are.
    values : ndarray of float64, shape (k,)
        What they are.
    """

    m: int
    n: int
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats

    def dense(self) -> Floats:
        """Return all of it, of shape (m, n)."""
        out = np.zeros((self.m, self.n))
        out[self.rows, self.columns] = self.values
        return out


def different(p: Plan) -> list[tuple[Piece, int]]:
    """Return one of each size of a weight's matrices, with how many there are.

    >>> from idinit_ref import plan
    >>> different(plan((6, 2), blocks=(2, 3, 1)))[1]
    (Piece(start=2, m=3, copies=1), 1)
    """
    pieces: dict[int, list[Piece]] = {}
    for piece in p.axes.pieces:
        pieces.setdefault(piece.m, []).append(piece)
    return [
        (alike[0], sum(piece.copies for piece in alike) * p.axes.copies)
        for alike in pieces.values()
    ]


def extract(p: Plan, piece: Piece, to: Format) -> Matrix:
    """Take the first of some alike matrices out of the stored weight, rounded as a dtype holds it.

    >>> from idinit_ref import plan
    >>> from idinit_ref.dtypes import format_of
    >>> p = plan((2, 4), "zero", eps=0.5)
    >>> extract(p, p.axes.pieces[0], format_of("float16")).dense()
    array([[ 0.5,  0. , -0.5,  0. ],
           [ 0. ,  0.5,  0. , -0.5]])
    """
    at = p.axes
    box = [range(1) if axis in at.batch_axes else range(size) for axis, size in enumerate(p.shape)]
    box[at.o_axis] = range(piece.start, piece.start + piece.m)
    box[at.i_axis] = range(at.channels)
    for axis, place in zip(at.spatial_axes, at.center or (), strict=False):
        box[axis] = range(place, place + 1)
    shape = tuple(len(span) for span in box)
    positions, values = p.entries(tuple(slice(span.start, span.stop) for span in box))
    places = np.unravel_index(positions, shape)
    columns = np.broadcast_to(at.column_grid(np, tuple(box)), shape)[places]
    rounded = round_array(values, to, "an entry")
    return Matrix(piece.m, at.columns, places[at.o_axis], columns, rounded)


def cells(
    terms: Sequence[Term],
    m: int,
    n: int,
    size: tuple[int, int],
    *,
    first: int = 0,
    step: int = 1,
    sign: int = 1,
) -> Floats:
    """Return a matrix in few cells: of each the largest entry, 0 if it has none.

    Every cell asks the terms whether they have an entry in it, so any matrix costs the same.

    Parameters
    ----------
    terms : sequence of Term
        The closed form, of `idinit_ref.plan.Plan.terms`.
    m, n : int
        Rows, and the number of columns first, first + step, ...
    size : (int, int)
        Cells down and across: 1 to m, and 1 to n.
    first, step : int
        Which columns.
    sign : {1, -1}
        Of entries of one size, the positive or the negative one is taken.

    Returns
    -------
    ndarray of float64, shape ``size``

    Examples
    --------
    >>> from idinit_ref import plan
    >>> cells(plan((10**6, 10**6)).terms(10**6), 10**6, 10**6, (2, 2))
    array([[1., 0.],
           [0., 1.]])
    """
    h, w = size
    across = [(j * n // w, (j + 1) * n // w) for j in range(w)]
    order = sorted(terms, key=lambda term: (-abs(term.value), -sign * term.value))
    out = np.zeros(size)
    for i in range(h):
        rows = range(i * m // h, (i + 1) * m // h)
        for j, (left, right) in enumerate(across):
            for term in order:
                if any(lines(term, rows, first + step * left, step, right - left)):
                    out[i, j] = term.value
                    break
    return out


def column_text(at: Layout) -> str:
    """Say how a kernel became a matrix; "" for what is no kernel.

    >>> from idinit_ref import plan
    >>> column_text(plan((2, 2, 3)).axes)
    'column = c*3 + s (channel c, tap s of 3)'
    """
    if not at.kernel:
        return ""
    if at.center is not None:
        return f"at the tap {at.center}; 0 at the others"
    taps = prod(at.kernel)
    order = f"c*{taps} + s" if at.taps == "channel_major" else f"s*{at.channels} + c"
    return f"column = {order} (channel c, tap s of {' x '.join(map(str, at.kernel))})"


def title_text(p: Plan) -> str:
    """Return a weight's name, shape and layout.

    >>> from idinit_ref import plan
    >>> title_text(plan((2, 3), "zero"))
    'IDIZ  2 x 3  layout OI'
    """
    name = "IDI" if p.role == "transit" else "IDIZ"
    return f"{name}  {' x '.join(map(str, p.shape))}  layout {p.layout}"


def value_text(x: float, exponent: int = 0) -> str:
    """Return x * 2**exponent in few digits, even where no float holds it.

    >>> value_text(2 / 3), value_text(1.0, 1024)
    ('0.6667', '1.798e+308')
    """
    try:
        return f"{ldexp(x, exponent):.4g}"
    except OverflowError:
        return f"{Decimal(float(x)) * 2**exponent:.3e}"
