"""Finds the cause of wrong weights: known mistakes, each tried on a few weights of every form.

A mistake is named only if it reproduces the implementation exactly, on all weights of a form
(square, tall, wide; matrices and kernels) for which the implementation is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from math import sqrt
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS
from ..core.kernel import CORNER, Taps
from ..core.layout import SPATIAL
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ..core.sheets import column_grid, row_grid
from ..errors import IDInitError
from ._examples import WeightCases
from ._property import both
from ._subject import Subject, Violation
from ._weights import dense

Values = NDArray[Any]
_SHAPES = ((4, 4), (3, 3), (7, 3), (6, 2), (5, 4), (3, 7), (2, 6), (4, 5), (5, 1), (1, 5), (2, 1))
_KERNEL = (2, 3, 4)  # even and odd axes, all of different sizes
_OPTIONS = (
    "gain", "eps", "wide", "form", "groups", "blocks", "taps", "tap", "stride", "loosen",
    "loosen_at", "layout",
)  # fmt: skip


class _Case(NamedTuple):
    """A weight: its plan, the implementation's values, and the right values."""

    plan: Plan
    got: Values
    should: Values

    @property
    def wrong(self) -> bool:
        return not np.array_equal(self.got, self.should)

    @property
    def form(self) -> str:
        m, n = self.plan.axes.pieces[0].m, max(self.plan.axes.widths)
        return "square" if m == n else "tall" if m > n else "wide"


def diagnose(weights: WeightCases) -> Iterator[str]:
    """Yield a line for a mistake in all weights, or else one for each form."""
    subject, fixed, only = weights.subject, weights.fixed, weights.only
    for role, layout in product(subject.roles, weights.letters):
        kernel = any(c in SPATIAL for c in layout)
        for groups in (1, 2) if kernel and subject.takes("groups") else (1,):
            what = {"transit": "IDI", "zero": "IDIZ"}[role]
            what += f" kernel {layout}" if kernel else ""
            what += f", {groups} groups" if groups > 1 else ""
            plans = [_plan(layout, m, n, role, fixed, groups) for m, n in _SHAPES]
            plans = [plan for plan in plans if only is None or only(plan)]
            try:
                cases = [_case(subject, plan) for plan in plans]
            except Violation as finding:
                yield f"{what}: {str(finding).split('  [', 1)[0]}"
                continue
            wrong = [case for case in cases if case.wrong]
            if not wrong:
                continue
            mistake = _random(subject, wrong[0]) or _known(cases)
            if not mistake and len(wrong) == len(cases):
                mistake = _numbers(wrong)
            if mistake:
                yield f"{what}: {mistake}"
                continue
            for form in dict.fromkeys(case.form for case in wrong):
                alike = [case for case in cases if case.form == form]
                mistake = _known(alike, whole=False) or _numbers([c for c in alike if c.wrong])
                yield f"{what}, {form}: {mistake or _unknown(alike)}"
        yield from _ignored(subject, role, layout, fixed)


def _case(subject: Subject, plan: Plan, dtype: str | None = None) -> _Case:
    weight = subject.make(plan, dtype)
    dtype = weight.dtype if weight.dtype in FORMATS else "float64"
    return _Case(plan, weight.values, dense(plan, dtype))


def _plan(layout: str, m: int, n: int, role: Role, fixed: Mapping[str, Any], groups: int) -> Plan:
    sizes = {"O": m * groups, "I": n} | dict(zip("WHD", _KERNEL, strict=True))
    shape = tuple(sizes.get(c, 2) for c in layout)
    names = ["wide" if role == "transit" else "form"]
    if any(c in SPATIAL for c in layout):
        names += ["taps", "stride"]
    more = {name: fixed[name] for name in names}
    return Plan(shape, role, layout=layout, groups=groups, **more)


def explain(subject: Subject, plan: Plan, dtype: str | None) -> Iterator[str]:
    """Yield the mistake of one weight: an option that is ignored, or its wrong entries."""
    try:
        case = _case(subject, plan, dtype)
        if not case.wrong:
            return
        for name in _OPTIONS:
            if not subject.takes(name):
                continue
            usual: Any = Plan.__dataclass_fields__[name].default
            if name == "layout":
                usual = subject.parameter("layout").default
            if getattr(plan, name) == usual:
                continue
            try:
                changes: dict[str, Any] = {name: usual}
                changes |= {"tap": None} if name == "taps" else {}
                changes |= {"seed": 0, "loosen_at": "all"} if name == "loosen" else {}
                without = replace(plan, **changes)
            except IDInitError:
                continue
            if np.array_equal(case.got, _case(subject, without, dtype).got):
                yield f"{name} is ignored"
                return
    except Violation:
        return
    known = _known([case])
    yield f"{subject.call(plan, dtype)}: {known or _unknown([case])}"


def _ignored(subject: Subject, role: Role, layout: str, fixed: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for a gain or eps that the implementation takes but uses wrongly."""
    name, value = ("gain", -2.5) if role == "transit" else ("eps", -0.5)
    if not subject.takes(name):
        return
    by_form: dict[str, str] = {}
    changes: dict[str, Any] = {name: value}
    for m, n in ((3, 3), (4, 3), (3, 4)):
        plain = _plan(layout, m, n, role, fixed, 1)
        asked = replace(plain, **changes)
        try:
            case, usual = _case(subject, asked), _case(subject, plain).got
        except Violation:
            return
        unit = 1.0 if role == "transit" else plain.eps
        texts = {
            f"{name} is ignored": usual,
            f"the sign of {name} is lost": usual * (abs(value) / unit),
            f"{name} is squared": usual * (value**2 / unit),
            f"{name} is taken for its sign": usual * -1.0,
        }
        if not np.allclose(case.got, case.should, 1e-6, 0):
            known = (t for t, wrong in texts.items() if np.allclose(case.got, wrong, 1e-6, 0))
            by_form[case.form] = next(known, "")
        elif np.array_equal(case.got, case.should) and np.any(
            np.signbit(case.got.real[case.should == 0])
        ):
            text = f"{name} times 0 is -0 where {name} < 0"
            by_form[case.form] = f"right but for the sign of its zeros: {text}"
    if len(by_form) == 3 and len(set(by_form.values())) == 1:
        by_form = {"": next(iter(by_form.values()))}
    yield from (f"{form}: {text}" if form else text for form, text in by_form.items() if text)


def _known(cases: Sequence[_Case], whole: bool = True) -> str:
    """Return the mistake that reproduces all cases, "" if none does."""
    for text, mistake in _mistakes(cases[0].plan):
        if not whole and "exchanged" in text:  # then other forms would be wrong, too
            continue
        try:
            if all(np.array_equal(case.got, mistake(case.plan)) for case in cases):
                return text
        except ValueError:  # the mistake cannot make this weight
            continue
    return ""


def _numbers(wrong: Sequence[_Case]) -> str:
    """Return the mistake in the numbers, if their positions are right."""
    if not any(case.got.any() for case in wrong):
        return "all zeros"
    if not all(np.array_equal(case.got != 0, case.should != 0) for case in wrong):
        return ""
    entries = [(case.got[case.should != 0], case.should[case.should != 0]) for case in wrong]
    ratios = np.concatenate([(got / should).real for got, should in entries])
    if np.ptp(ratios) > 1e-5 * abs(ratios[0]):
        return "the right places, but other numbers"
    if abs(ratios[0] - 1) < 1e-5:
        return "right but for the rounding of its numbers"
    return f"{ratios[0]:.6g} times what it should be"


def _unknown(cases: Sequence[_Case]) -> str:
    """Return the number of wrong entries in a weight, and the first of them."""
    case = next(case for case in cases if case.wrong)
    places = np.argwhere(case.got != case.should)
    first = tuple(places[0].tolist())
    got, should = both(case.got[first], case.should[first])
    return (
        f"not a mistake that the oracle knows; {len(places)} of {case.got.size} entries of shape "
        f"{case.plan.shape} are wrong, the first W{list(first)} = {got}, not {should}"
    )


def _random(subject: Subject, case: _Case) -> str:
    again = subject.make(case.plan, key=1).values
    return "" if np.array_equal(case.got, again) else "random: two calls differ"


def _mistakes(plan: Plan) -> Iterator[tuple[str, Callable[[Plan], Values]]]:
    """Yield common mistakes: a text, and a function from a plan to the wrong weight."""

    def reference(**changes: Any) -> Callable[[Plan], Values]:
        return lambda p: dense(replace(p, **changes), "float64")

    swap = plan.layout.translate(str.maketrans("OI", "IO"))
    if plan.groups == 1:
        # The swapped layout gives the transposed matrix.
        text = f"right in layout {swap}: its axes O and I are exchanged"
        yield text, reference(layout=swap)
    else:
        yield "the groups are ignored: it is the weight of one group", reference(groups=1)
    if plan.axes.kernel:
        if plan.stride is not None:
            flipped = tuple(-step for step in plan.stride)
            yield "the stride is ignored: these kernels have no phases", reference(stride=None)
            yield "right for a kernel that is stored the other way round", reference(stride=flipped)
        for taps in get_args(Taps):
            if taps != plan.taps:
                text = f"these are {taps} kernels: right for taps={taps!r}, not {plan.taps!r}"
                yield text, reference(taps=taps)
        zero, middle = (0,) * len(plan.axes.kernel), tuple(k // 2 for k in plan.axes.kernel)
        if plan.taps not in CORNER:
            yield "it starts at the first tap, not at the identity tap", reference(tap=zero)
            yield "its identity tap is k // 2 on each axis", reference(tap=middle)
        for text, tap in (("k // 2", middle), ("0", zero)):
            yield f"at the tap {text} of each axis", reference(taps="center", tap=tap)
            yield (
                f"one diagonal at the tap {text} of each axis, and zeros instead of copies",
                partial(_one_diagonal, tap=tap),
            )
    if plan.role == "zero":
        for form in get_args(Form):
            if form != plan.form:
                yield f"right for form={form!r}, not {plan.form!r}", reference(form=form)
        if plan.form == "shifted":
            yield "its blocks are not shifted: column q*m + i", partial(_filled, rule=_unshifted)
        yield "both entries of a row are positive", lambda p: abs(dense(p, "float64"))
        for text, rule in _IDIZ.items():
            yield text, partial(_filled, rule=rule)
        yield "IDI, not IDIZ", lambda p: _filled(p, _first) / p.eps
    else:
        for wide in get_args(Wide):
            if wide != plan.wide:
                yield f"right for wide={wide!r}, not {plan.wide!r}", reference(wide=wide)
        for text, rule in _IDI.items():
            yield text, partial(_filled, rule=rule)
        plain: dict[str, Any] = {"role": "zero", "gain": 1.0, "wide": "truncate"}
        yield "IDIZ, not IDI", reference(**plain)


Rule = Callable[[int, int, int, int], float]  # (i, j, m, n) -> W[i, j]


def _filled(plan: Plan, rule: Rule) -> Values:
    """Fill each matrix of a weight by a rule, times eps for IDIZ, in the plan's layout."""
    out = np.zeros(plan.shape)
    unit = plan.eps if plan.role == "zero" else 1.0
    box = tuple(range(size) for size in plan.shape)
    rows, m = np.broadcast_to(row_grid(plan.axes, np, box), plan.shape), plan.axes.pieces[0].m
    for phase, n in enumerate(plan.axes.widths):
        columns = np.broadcast_to(column_grid(plan.axes, np, box, phase), plan.shape)
        for place in np.argwhere(columns >= 0):
            at = tuple(place)
            out[at] = unit * rule(int(rows[at]) % m, int(columns[at]), m, n)
    return out


def _first(i: int, j: int, m: int, n: int) -> float:
    """Return an entry of IDI, which is also the first of the two entries of IDIZ."""
    return float(j == i % n)


def _padded(i: int, j: int, m: int, n: int) -> float:
    """Return an entry of IDIZ with zeros below the first n rows."""
    return 1.0 - 2 * (i % 2) if n == 1 else (i < n) * (_first(i, j, m, n) - (j == (i + 1) % n))


_REPEATED = "each identity row is repeated before the next one, not the whole identity"
_IDIZ: dict[str, Rule] = {
    "only +eps, and no -eps": _first,
    "-eps stands at (i + 1) mod n, as in a tall one": lambda i, j, m, n: (
        (j == i % n) - (j == (i + 1) % n)
    ),
    "-eps stands at i + 1, and is missing where that is n": lambda i, j, m, n: (
        (j == i % n) - (j == i % n + 1)
    ),
    "zeros instead of copies: nothing below the first n rows": _padded,
    "-eps stands at m + i, and is missing where that is beyond n": lambda i, j, m, n: (
        (j == i % n) - (j == m + i)
    ),
}
_IDI: dict[str, Rule] = {
    "zeros instead of copies: one diagonal, and nothing below it": lambda i, j, m, n: i == j,
    "shifted by one: j = (i + 1) mod n": lambda i, j, m, n: j == (i + 1) % n,
    "shifted by one: j = (i - 1) mod n": lambda i, j, m, n: j == (i - 1) % n,
    "the modulus is n - 1, not n": lambda i, j, m, n: j == i % max(n - 1, 1),
    "the modulus is n + 1, not n": lambda i, j, m, n: j == i % (n + 1),
    "the modulus is m, not n": lambda i, j, m, n: j == i % m,
    _REPEATED: lambda i, j, m, n: j == i * n // m,
    f"{_REPEATED}, and cut": lambda i, j, m, n: j == i // -(-m // n),
    "columns are copied, too: j mod m = i": lambda i, j, m, n: j % m == i,
    "the last columns, not the first": lambda i, j, m, n: j == n - m + i,
    "the rows stand in reverse order": lambda i, j, m, n: j == (m - 1 - i) % n,
}


def _unshifted(i: int, j: int, m: int, n: int) -> float:
    """Return an entry of a shifted IDIZ, over eps, without the shift of its blocks."""
    if n == 1:
        return -1.0 if i % 2 else 1.0
    if n < 2 * m:  # the same as a pair
        minus = m + i % (n - m) if m < n else (i + 1) % n
        return (j == i % n) - (j == minus)
    k = len(range(i, n, m))
    p = -(-k // 2)
    if j % m != i:
        return 0.0
    return -sqrt(2 * p / ((k - p) * k)) if j // m % 2 else sqrt(2 * (k - p) / (p * k))


def _one_diagonal(plan: Plan, tap: tuple[int, ...]) -> Values:
    """Return ones where output = input in a group, at one tap, as torch.nn.init.dirac_ does."""
    full = dense(replace(plan, taps="center", tap=tap), "float64")
    channels = plan.axes.channels
    rows = np.arange(plan.shape[plan.axes.o_axis]) % (plan.axes.outputs // plan.groups)
    shape = [1] * full.ndim
    shape[plan.axes.o_axis] = -1
    kept: Values = np.where(rows.reshape(shape) < channels, full, 0.0)
    return kept
