"""The properties of a weight in the specification, one check each.

A check takes an implementation and a plan, and calls the implementation for the plan's weight. If
the property fails, it raises a `Violation`, an AssertionError ``what = got, but should be expected
[call]`` with three lines that reproduce it. Properties of a layer are in `_signals`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import lcm, prod, sqrt
from typing import Any

import numpy as np

from ..core.dtypes import FORMATS
from ..core.plan import Plan
from ._property import both, coarse, compare, number, stated, still, tall, unit
from ._subject import Raised, Subject, Violation
from ._weights import dense, matrices


@stated()
def check_exact(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Every entry equals the reference's, bit for bit, in the returned dtype (sections 1 to 5)."""
    weight = subject.make(plan, dtype)
    should = dense(plan, weight.dtype if weight.dtype in FORMATS else "float64")
    got = weight.values
    bad = np.argwhere(got != should)
    if not len(bad):
        bad = np.argwhere(np.signbit(got.real) != np.signbit(should))
    if len(bad):
        place = tuple(bad[0].tolist())
        short = both(got[place], should[place])
        if short[0] == short[1]:  # zeros of different signs
            short = repr(got[place].item()), repr(should[place].item())
        twice = float(np.float32(dense(plan, "float64")[place]))
        if weight.format.precision < 24 and got[place] == number(weight, twice):
            short = short[0], f"{short[1]}, rounded once, not by way of float32"
        raise Violation(f"W[{', '.join(map(str, place))}]", *short, weight.call)


@stated(fit=still)
def check_row_norm(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Rows have norm abs(tau) (T2, T3; abs(tau)/sqrt(k) for fold_mean), or sqrt(2) abs(eps)."""
    weight = subject.make(plan, dtype)
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        if plan.role == "zero":
            should = np.full(m, abs(number(weight, plan.eps)) * (sqrt(2) if n > 1 else 1))
        else:
            should = np.full(m, abs(number(weight, plan.gain)))
            if plan.wide == "fold_mean" and m < n:
                should /= np.sqrt([len(range(i, n, m)) for i in range(m)])
        if n:
            got = np.linalg.norm(matrix / should[:, None], axis=1) * should  # no overflow
            tolerance = unit(weight) * should + coarse(weight, plan, m, n) * sqrt(n)
            compare(weight.call, f"{name}the norm of row {{0}}", got, should, tolerance)


@stated(("zero",), still)
def check_zero_sums(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Every row of IDIZ with n >= 2 sums to 0, so inputs of equal means give outputs of mean 0.

    The sum is exactly 0, except for ``form="shifted"``, whose entries are rounded separately.
    """
    weight = subject.make(plan, dtype)
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        if n >= 2:
            each = coarse(weight, plan, m, n)
            tolerance = (unit(weight) * np.abs(matrix).sum(axis=1) + each * n) * (each > 0)
            sums = matrix.sum(axis=1)
            compare(weight.call, f"{name}the sum of row {{0}}", sums, np.zeros(m), tolerance)


@stated(fit=still)
def check_rank(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """IDI has full rank; IDIZ has rank m for m < n, n - 1 for m >= n >= 2, and 1 for n = 1.

    Singular values are computed in float64, relative to the largest. If all entries have one size,
    every value that float64 distinguishes from 0 counts, in any dtype. Rounded entries of several
    sizes may turn a singular value 0 into one as small as their rounding.
    """
    weight = subject.make(plan, dtype)
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        should = n - 1 if plan.role == "zero" and m >= n >= 2 else min(m, n)
        largest = np.abs(matrix).max(initial=0.0)
        sizes = np.linalg.svd(matrix / (largest or 1.0), compute_uv=False)
        sizes /= max(sizes.max(initial=0.0), 1.0)
        exact = np.unique(np.abs(matrix[matrix != 0])).size <= 1
        rank = int(np.count_nonzero(sizes > max(m, n) * 2.0**-52))
        least = rank if exact else int(np.count_nonzero(sizes > unit(weight)))
        if not least <= should <= rank:
            got = rank if rank < should else least
            raise Violation(f"{name}the rank", got, f"{should} (m = {m}, n = {n})", weight.call)


@stated(fit=still)
def check_reach(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Count the columns with an entry: their inputs reach an output (section 2).

    All columns of a tall matrix, of a fold, and of a shifted IDIZ have one; the first m of a
    truncated IDI; and the first 2m of a wide IDIZ.
    """
    weight = subject.make(plan, dtype)
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        every = m >= n or (plan.role == "transit" and plan.wide != "truncate" and m > 0)
        every |= plan.role == "zero" and plan.form == "shifted" and 2 * m <= n and m > 0
        should = n if every else min(n, 2 * m if plan.role == "zero" else m)
        got = int(np.count_nonzero((matrix != 0).any(axis=0)))
        if got != should:
            what = f"{name}the number of columns with an entry"
            raise Violation(what, got, f"{should} (m = {m}, n = {n})", weight.call)


@stated(("zero",), still)
def check_units(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T11: the number of distinct hidden units of a branch, with W1 the reference's IDI.

    W2 is under test. Of n hidden units, n >= 2m, "pair" makes 2m + min(m, n - 2m) distinct, and
    "shifted" makes all n distinct if n <= m lcm(2, m). The others are copies, which no elementwise
    optimiser separates.
    """
    weight = subject.make(plan, dtype)
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        if n < 2 * m or not m:
            continue
        should = 2 * m + min(m, n - 2 * m)
        if plan.form == "shifted":
            should = sum(min(len(range(i, n, m)), lcm(2, m)) for i in range(m))
        units = np.concatenate([matrix.T, np.arange(n)[:, None] % m], axis=1)
        got = len(np.unique(units, axis=0))
        if got != should:
            what = f"{name}the number of hidden units that differ"
            raise Violation(what, got, f"{should} (m = {m}, n = {n})", weight.call)


@stated(("transit",), tall)
def check_isometry(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T5: singular values are abs(tau) sqrt(c_j), c_j the copies of input j."""
    weight = subject.make(plan, dtype)
    tau = abs(number(weight, plan.gain))
    for name, matrix in matrices(plan, weight.values):
        m, n = matrix.shape
        got = np.linalg.svd(matrix, compute_uv=False)
        should = np.array(sorted((tau * sqrt(len(range(j, m, n))) for j in range(n)), reverse=True))
        tolerance = 4 * unit(weight) * tau * sqrt(max(m, 1))
        compare(weight.call, f"{name}singular value {{0}}", got, should, tolerance)


@stated()
def check_dtype(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Return the requested dtype; without a request, any real floating dtype."""
    weight = subject.make(plan, dtype)
    if dtype is not None and weight.dtype != dtype:
        raise Violation("its dtype", weight.dtype, dtype, weight.call)
    if weight.dtype not in FORMATS:
        raise Violation("its dtype", weight.dtype, "a floating dtype", weight.call)
    if dtype is None and weight.format.is_complex:
        should = "a real floating dtype, since no complex one was asked for"
        raise Violation("its dtype", weight.dtype, should, weight.call)


def _device_needs(subject: Subject) -> str | None:
    if subject.style != "array" and not subject.takes("device"):
        return "it takes no device="
    return None if subject.framework.devices() else "there is one device only"


@stated(needs=_device_needs)
def check_device(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Return an array on the requested device."""
    for device in subject.framework.devices():
        weight = subject.make(plan, dtype, device)
        got = subject.framework.device_of(weight.raw)
        if got != str(device):
            raise Violation("its device", got, device, weight.call)


@stated()
def check_determinism(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Two calls give the same bits, for any key, in separate arrays."""
    first = subject.make(plan, dtype)
    before = first.values.copy()
    second = subject.make(plan, dtype, key=1)
    compare(first.call, "W[{at}] of a second call", second.values, before)
    if prod(plan.shape):
        raw = first.raw
        try:
            raw[(0,) * len(plan.shape)] = 7 if before.flat[0] != 7 else 8
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return  # the array is read-only
        again = subject.framework.numpy(second.raw).flat[0]
        raw[(0,) * len(plan.shape)] = before.flat[0].item()  # later calls may return it again
        if again != before.flat[0]:
            what, got = "the array of a second call", "the same memory as that of the first"
            raise Violation(what, got, "an array of its own", first.call)


def _grouped(plan: Plan) -> Plan:
    """Return a plan of at least two groups, without blocks and noise."""
    plan = replace(still(plan), blocks=None)
    if plan.groups > 1:
        return plan
    axis = plan.axes.i_axis if plan.transposed else plan.axes.o_axis
    shape = tuple(size * 2 if a == axis else size for a, size in enumerate(plan.shape))
    return replace(plan, shape=shape, groups=2)


@stated(fit=_grouped, needs=lambda s: None if s.takes("groups") else "it takes no groups=")
def check_groups(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Each group equals the weight of one group alone."""
    weight = subject.make(plan, dtype)
    axis = plan.axes.i_axis if plan.transposed else plan.axes.o_axis
    parts = np.split(weight.values, plan.groups, axis)
    alone = subject.make(replace(plan, shape=parts[0].shape, groups=1), dtype)
    should = "{right}, as in " + alone.call.replace("{", "{{").replace("}", "}}")
    for group, part in enumerate(parts):
        compare(weight.call, f"W[{{at}}] of group {group}", part, alone.values, 0.0, should)


def _tiny(
    subject: Subject, role: str, dtype: str | None = None
) -> Iterator[tuple[Any, str, float]]:
    """Yield (requested dtype, option, a value of the option that rounds to 0 in the dtype)."""
    option = "eps" if role == "zero" else "gain"
    names = subject.framework.small_dtypes() if subject.has_dtype else (None,)
    for name in names if dtype is None else (dtype,):
        to = FORMATS[name or subject.framework.dtypes()[0]]
        if subject.takes(option) and to.smallest / 4:
            yield name, option, to.smallest / 4
        elif option == "eps" and to.smallest > 2e-6:
            yield name, option, 1e-6


def _underflow_needs(subject: Subject) -> str | None:
    if any(any(_tiny(subject, role)) for role in subject.roles):
        return None
    return "nothing that it takes (of dtype=, eps=, gain=) makes an entry round to 0"


@stated(needs=_underflow_needs)
def check_underflow(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """Refuse an entry that rounds to 0 in the dtype: its neurons would be dead (section 5)."""
    plain: dict[str, Any] = {"wide": "truncate", "gain": 1.0, "eps": 1e-6, "form": "pair"}
    plan, at = replace(still(plan), **plain), subject.framework
    for name, option, value in _tiny(subject, str(plan.role), dtype) if prod(plan.shape) else ():
        case = replace(plan, eps=value) if option == "eps" else replace(plan, gain=value)
        call = subject.call(case, name)
        try:
            raw = subject.run(call)
        except Raised:
            continue
        kind = type(raw).__name__
        if at.owns(raw):
            zeros = "" if np.any(at.numpy(raw)) else " of zeros"
            kind = f"an array{zeros} in {at.dtype_of(raw)}"
        to = name or at.dtypes()[0]
        should = f"an error, since {option} = {value} rounds to 0 in {to}: dead neurons"
        raise Violation(call.text, kind, should, call)
