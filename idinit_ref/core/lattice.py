"""Where a term has its entries: the points of a lattice, as a few straight lines.

A term is a congruence inside a rectangle (`idinit_ref.core.pattern`). Integer arithmetic finds the
entries in any part of a matrix, at a cost that does not depend on the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import Any, NamedTuple

from .pattern import Term

__all__ = ["Line", "keys", "lines", "nnz", "remainder"]


class Line(NamedTuple):
    """Entries in a straight line: (row, item), (row + row_step, item + item_step), ..."""

    row: int
    item: int
    length: int
    row_step: int
    item_step: int


def lines(term: Term, rows: range, first: int, step: int, count: int) -> Iterator[Line]:
    """Yield a term's entries in some rows and in the columns first + step * item.

    The solutions of the congruence form a lattice. It is cut into as few straight lines as
    one of three directions gives: along a column, along a row, or along the diagonal.
    """
    top, bottom = max(rows.start, term.rows.start), min(rows.stop, term.rows.stop)
    left = max(0, -((first - term.columns.start) // step))
    right = min(count, -((first - term.columns.stop) // step))
    if top >= bottom or left >= right:
        return
    p, offset = term.period, first - term.shift  # row = offset + step * item (mod p)
    diagonals = (bottom - top + (right - left) * step) // p + 1
    if right - left <= min(diagonals, bottom - top):
        for item in range(left, right):
            row = top + (offset + step * item - top) % p
            if row < bottom:
                yield Line(row, item, (bottom - 1 - row) // p + 1, p, 0)
    elif bottom - top <= diagonals:
        common = gcd(step, p)
        q = p // common  # step * item = row - offset (mod p), solved for the item
        inverse = pow(step // common, -1, q)
        for row in range(top, bottom):
            if (row - offset) % common == 0:
                item = left + ((row - offset) // common * inverse - left) % q
                if item < right:
                    yield Line(row, item, (right - 1 - item) // q + 1, 0, q)
    else:
        lowest = top - (right - 1) * step
        for start in range(lowest + (offset - lowest) % p, bottom - left * step, p):
            item = max(left, -((start - top) // step))  # row = start + step * item
            last = min(right - 1, (bottom - 1 - start) // step)
            if item <= last:
                yield Line(start + step * item, item, last - item + 1, step, 1)


def nnz(term: Term) -> int:
    """Return the number of a term's entries.

    >>> nnz(Term(1.0, range(10), range(4), 0, 4))
    10
    """
    rows, columns, p = term.rows, term.columns, term.period
    q, r = divmod(columns.stop - columns.start, p)
    # Row i has q entries, and one more if its first column lies among the first r: counted as
    # the numbers x with x mod p < r, in a range.
    first = term.shift - columns.start

    def before(x: int) -> int:
        return x // p * r + min(x % p, r)

    more = before(rows.stop + first) - before(rows.start + first)
    return (rows.stop - rows.start) * q + more


def keys(term: Term, xp: Any, row: Any, column: Any) -> tuple[Any, Any]:
    """Return integer arrays that agree where a term has its entries, and only there."""
    inside = (row >= term.rows.start) & (row < term.rows.stop)
    across = (column >= term.columns.start) & (column < term.columns.stop)
    first = remainder(xp, row, term.rows, term.period)
    start = (term.columns.start - term.shift) % term.period  # of the first column
    shifted = range(start, start + len(term.columns))
    second = remainder(xp, column + (start - term.columns.start), shifted, term.period)
    return xp.where(inside, first, -1), xp.where(across, second, -2)


def remainder(xp: Any, number: Any, among: range, period: int) -> Any:
    """Return integers of a range modulo a period, without a slow division where possible."""
    if among.start >= 0 and among.stop <= period:
        return number
    if among.start >= 0 and among.stop <= 2 * period:
        return xp.where(number < period, number, number - period)
    return number % period
