"""IDI and IDIZ as integer arithmetic: sections 1 and 2 of the specification, on one screen.

Every matrix of the texts is a sum of few terms, and each term is one congruence: inside a
rectangle of rows i and columns j, the entry is ``value`` where ``j - i = shift (mod period)``.
Nothing here has the size of a weight, knows an axis order or a framework.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd, sqrt
from typing import Any, Literal, NamedTuple

__all__ = ["Line", "Role", "Term", "Wide", "idi_terms", "idiz_terms"]

Role = Literal["transit", "zero"]
Wide = Literal["truncate", "fold_rms", "fold_mean"]


@lru_cache(maxsize=4096)
def idi_terms(m: int, n: int, tau: float, wide: Wide = "truncate") -> tuple[Term, ...]:
    """IDI_tau of m rows and n columns (spec section 1; [P, Eq. 3]).

    ``W[i, j] = tau if j = i mod n``. The two folds apply where m < n: ``j mod m = i``, with
    ``tau / sqrt(k_i)`` or ``tau / k_i``, and k_i the number of columns j with j mod m = i.
    """
    if m == 0 or n == 0:
        return ()
    if m >= n or wide == "truncate":
        return (Term(tau, range(m), range(n), 0, n),)
    k, more = divmod(n, m)  # rows i < more have k + 1 such columns, the others k
    folded = sqrt if wide == "fold_rms" else float
    larger = Term(tau / folded(k + 1), range(more), range(n), 0, m)
    smaller = Term(tau / folded(k), range(more, m), range(n), 0, m)
    return (larger, smaller) if more else (smaller,)


@lru_cache(maxsize=4096)
def idiz_terms(m: int, n: int, eps: float) -> tuple[Term, ...]:
    """IDIZ_eps of m rows and n columns (spec section 2): +eps and -eps in every row."""
    if m == 0 or n == 0:
        return ()
    if n == 1:  # both entries would fall on one place: W[i, 0] = eps * (-1)^i
        return (
            Term(eps, range(m), range(1), 0, 2),
            Term(-eps, range(m), range(1), 1, 2),
        )
    plus = Term(eps, range(m), range(n), 0, n)  # j = i mod n
    if m < n:  # -eps at j = m + (i mod (n - m))
        return plus, Term(-eps, range(m), range(m, n), m % (n - m), n - m)
    return plus, Term(-eps, range(m), range(n), 1, n)  # -eps at j = (i + 1) mod n


class Line(NamedTuple):
    """Entries in a straight line: (row, item), (row + row_step, item + item_step), ..."""

    row: int
    item: int
    length: int
    row_step: int
    item_step: int


class Term(NamedTuple):
    """Entries of one value: those of a rectangle with ``(j - i) mod period == shift``."""

    value: float
    rows: range
    columns: range
    shift: int
    period: int

    @property
    def nnz(self) -> int:
        """The number of its entries."""
        return sum(at.length for at in self.lines(self.rows, 0, 1, self.columns.stop))

    def keys(self, xp: Any, row: Any, column: Any) -> tuple[Any, Any]:
        """Return integer arrays that agree where this term has its entries, and only there."""
        inside = (row >= self.rows.start) & (row < self.rows.stop)
        across = (column >= self.columns.start) & (column < self.columns.stop)
        return (
            xp.where(inside, (row + self.shift) % self.period, -1),
            xp.where(across, column % self.period, -2),
        )

    def lines(self, rows: range, first: int, step: int, count: int) -> Iterator[Line]:
        """Yield this term's entries in some rows and in the columns first + step * item.

        The solutions of the congruence form a lattice. It is cut into as few straight lines as
        one of three directions gives: along a column, along a row, or along the diagonal.
        """
        top, bottom = max(rows.start, self.rows.start), min(rows.stop, self.rows.stop)
        left = max(0, -((first - self.columns.start) // step))
        right = min(count, -((first - self.columns.stop) // step))
        if top >= bottom or left >= right:
            return
        p, offset = self.period, first - self.shift  # row = offset + step * item (mod p)
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
