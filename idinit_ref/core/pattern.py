"""IDI and IDIZ in closed form: sections 1 and 2 of the specification, on one screen.

Nothing here has the size of a weight, knows an axis order or a framework.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import lcm, sqrt
from typing import Literal, NamedTuple

__all__ = ["Form", "Role", "Term", "Wide", "called", "idi_terms", "idiz_terms"]

Role = Literal["transit", "zero"]
Wide = Literal["truncate", "fold_rms", "fold_mean"]
Form = Literal["pair", "shifted"]


def called(role: Role | Sequence[Role]) -> str:
    """Return the name of a weight of one role, or of one for each block.

    >>> called("zero"), called(("zero", "transit", "zero"))
    ('IDIZ', 'IDI+IDIZ')
    """
    roles = (role,) if isinstance(role, str) else role
    names = {"transit": "IDI", "zero": "IDIZ"}
    return "+".join(name for each, name in names.items() if each in roles)


class Term(NamedTuple):
    """Entries of one value: W[i, j] = value where (j - i) mod period = shift mod period.

    For i in `rows` and j in `columns`. So ``j = i mod n`` has shift 0 and period n.
    """

    value: float
    rows: range
    columns: range
    shift: int
    period: int


@lru_cache(maxsize=4096)
def idi_terms(m: int, n: int, tau: float, wide: Wide = "truncate") -> tuple[Term, ...]:
    """IDI_tau of m rows and n columns (spec section 1; [P, Eq. 3]).

    ``W[i, j] = tau if j = i mod n``. The two folds apply where m < n: ``j mod m = i``, with
    ``tau / sqrt(k_i)`` or ``tau / k_i``, and k_i the number of columns j with j mod m = i.
    """
    if m == 0 or n == 0:
        return ()
    if m >= n or wide == "truncate":
        return (Term(tau, range(m), range(n), shift=0, period=n),)
    k, more = divmod(n, m)  # k_i = k + 1 in the rows i < more, k in the others
    folded = sqrt if wide == "fold_rms" else float
    larger = Term(tau / folded(k + 1), range(more), range(n), shift=0, period=m)
    smaller = Term(tau / folded(k), range(more, m), range(n), shift=0, period=m)
    return (larger, smaller) if more else (smaller,)


@lru_cache(maxsize=4096)
def idiz_terms(m: int, n: int, eps: float, form: Form = "pair") -> tuple[Term, ...]:
    """IDIZ_eps of m rows and n columns (spec section 2): +eps and -eps in every row.

    ``form="shifted"`` differs where n >= 2m: there every column has an entry.
    """
    if m == 0 or n == 0:
        return ()
    if n == 1:  # both would fall on one place: W[i, 0] = eps * (-1)^i, even rows and odd rows
        even = Term(eps, range(m), range(1), shift=0, period=2)
        return even, Term(-eps, range(m), range(1), shift=1, period=2)
    if form == "shifted" and n >= 2 * m:
        return _shifted_terms(m, n, eps)
    plus = Term(eps, range(m), range(n), shift=0, period=n)  # j = i mod n
    if m < n:  # j = m + (i mod (n - m)), so j - i = m (mod n - m) in the columns from m on
        return plus, Term(-eps, range(m), range(m, n), shift=m, period=n - m)
    return plus, Term(-eps, range(m), range(n), shift=1, period=n)  # j = (i + 1) mod n


def _shifted_terms(m: int, n: int, eps: float) -> tuple[Term, ...]:
    """IDIZ's shifted form: block q of m columns holds row i at ``q*m + ((i + q) mod m)``.

    The p entries of a row in even blocks are positive, its k - p others negative. What lies
    ``lcm(2, m)`` blocks further is the same again, so few terms do at any width.
    """
    blocks, rest = divmod(n, m)
    turn = lcm(2, m)
    short = -blocks % m  # rows short, short + 1, ... reach the last block, which is cut
    terms = []
    for q in range(min(blocks + (rest > 0), turn)):
        cuts = sorted({0, m, short, (short + rest) % m, -q % m})
        for low, high in pairwise(cuts):
            k = blocks + ((low + blocks) % m < rest)
            p = (k + 1) // 2
            value = eps * sqrt(2 * (k - p) / (p * k))
            if q % 2:
                value = -eps * sqrt(2 * p / ((k - p) * k))
            shift = q * m + (low + q) % m - low
            terms.append(Term(value, range(low, high), range(n), shift, turn * m))
    return tuple(terms)
