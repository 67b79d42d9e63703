"""The properties of a layer: a weight is applied to a signal by the framework's own layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS
from ..core.plan import Plan
from ..core.weights import plan as _plan
from ._property import coarse, compare, number, shown, stated, still, tall, unit
from ._subject import Subject
from ._weights import apply, dense, group_of, inputs, patches, rows, signal, stride_of, whole

Values = NDArray[Any]
Sizes = tuple[int, ...]


@stated(("transit",), lambda plan: replace(tall(plan), gain=1.0))
def check_transit(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T1: with m >= n and tau = 1, output i is x[i mod n] exactly, through the real layer."""
    weight = subject.make(plan, dtype)
    x = signal(plan)
    acts = apply(subject.framework, plan, weight.values, x)
    for y, (seen, where) in product(acts, patches(plan, x)):
        for output, i, _ in rows(plan):
            j = i % seen.shape[2]
            here: Any = (slice(None), output, *where)
            outputs = y[here]
            what, should = f"output {output} of the layer", f"input {j} of what it sees, {{right}}"
            compare(weight.call, what, outputs, seen[:, group_of(plan, output), j], 0.0, should)


def _upright(plan: Plan) -> Plan:
    """Return a plan whose first outputs equal the image: tau = 1, and an identity tap."""
    plan = replace(still(plan), gain=1.0, wide="truncate")
    if not plan.axes.kernel:
        letters = "OIW" if len(plan.shape) == 2 else f"{plan.layout}W"
        plan = replace(plan, shape=(*plan.shape, 3), layout=letters)
    return plan if plan.taps in ("outward", "center") else replace(plan, taps="outward")


def _enlarged(plan: Plan, tap: Sizes, stride: Sizes) -> Iterator[Sizes]:
    """Yield the index of the first output of each copy of the image, one for each phase."""
    kernel = plan.axes.kernel
    for r in np.ndindex(*map(abs, stride)):
        taps = [p + d * (1 if s > 0 else -1) for p, d, s in zip(tap, r, stride, strict=True)]
        if all(0 <= t < k for t, k in zip(taps, kernel, strict=True)):
            axes = zip(taps, kernel, stride, strict=True)
            yield tuple(t if s > 0 else k - 1 - t for t, k, s in axes)


@stated(("transit",), _upright)
def check_image(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T14, T15: the first outputs of a kernel equal the image, unshifted, at every position.

    The padding is that of the identity tap. With a stride s each position appears s times, for
    outputs whose identity tap lies in the kernel.
    """
    weight = subject.make(plan, dtype)
    image, kernel = signal(plan), plan.axes.kernel
    tap = plan.tap or tuple((k - 1) // 2 for k in kernel)
    stride, x = stride_of(plan), image
    if stride is None:
        pads = [(p, k - 1 - p) for k, p in zip(kernel, tap, strict=True)]
        x = np.pad(image, [(0, 0), (0, 0), *pads])
    step = tuple(map(abs, stride or (1,) * len(kernel)))
    firsts = [(0,) * len(kernel)] if stride is None else list(_enlarged(plan, tap, stride))
    channels = plan.axes.channels
    for y, first in product(apply(subject.framework, plan, weight.values, x), firsts):
        spans = zip(first, image.shape[2:], step, strict=True)
        where = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in spans)
        for output, i, _ in rows(plan):
            if i >= channels:
                continue
            channel = group_of(plan, output) * channels + i
            here: Any = (slice(None), output, *where)
            outputs = y[here]
            what = f"output {output} of the layer (sample and place: {{at}})"
            should = f"channel {channel} of the image there, {{right}}"
            compare(weight.call, what, outputs, image[:, channel], 0.0, should)


def _varies(plan: Plan) -> Plan:
    """Return a plan whose variance is known: without noise, and without fold_mean."""
    plan = still(plan)
    return replace(plan, wide="truncate") if plan.wide == "fold_mean" else plan


@stated(fit=_varies)
def check_variance(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T2: output i has variance tau^2 Var(x[i mod n]) for any covariance of x.

    T3 for a folded wide weight: tau^2 sigma^2 if the inputs are uncorrelated with equal variance
    sigma^2. Likewise for IDIZ: 2 eps^2 sigma^2, and eps^2 sigma^2 for n = 1 (section 2).
    """
    weight = subject.make(plan, dtype)
    folded = any(m < n for _, _, m in rows(plan) for n in plan.axes.widths)
    white = plan.role == "zero" or folded * (plan.wide != "truncate")
    if white:  # each coordinate is +1 and -1 once, the others 0
        size = inputs(plan) * prod(plan.axes.kernel)
        ones = np.eye(size).reshape(size, inputs(plan), *plan.axes.kernel)
        x = np.concatenate([ones, -ones]) * sqrt(size)
    else:  # correlated, and of different variances
        x = signal(plan, 8, 0)
        x += np.cumsum(x, axis=1) + 3 * x[:, :1]
    zero, kind = plan.role == "zero", "uncorrelated inputs" if white else "correlated inputs"
    value = number(weight, plan.eps if zero else plan.gain)
    seen = [(np.var(part, axis=0), where) for part, where in patches(plan, x)]
    for y, (part, where) in product(apply(subject.framework, plan, weight.values, x), seen):
        variance, n = np.var(y[(slice(None), slice(None), *where)], axis=0), part.shape[1]
        factor = "2 eps^2" if zero and n > 1 else "eps^2" if zero else "tau^2"
        for output, i, m in rows(plan) if n else ():
            each = part[group_of(plan, output), i % n]
            should = (1 + (zero and n > 1)) * value**2 * (np.ones_like(each) if white else each)
            what = f"the variance of output {output} for {kind}"
            text, off = f"{factor} times that of its input, {{right}}", coarse(weight, plan, m, n)
            tolerance = 4 * unit(weight) * should + (2 * np.sqrt(should * n) + off * n) * off
            compare(weight.call, what, variance[output], should, tolerance, text)


def _pair(plan: Plan) -> Plan:
    """Return the tall one of two composed matrices, m >= n: no groups, a kernel of size 1."""
    at = plan.axes
    sizes = {"O": max(at.outputs, at.inputs), "I": min(at.outputs, at.inputs)}
    sizes |= dict.fromkeys("DHW", 1)
    shape = tuple(sizes.get(c, size) for c, size in zip(plan.layout, plan.shape, strict=True))
    plain: dict[str, Any] = {"groups": 1, "transposed": False, "gain": 1.0}
    plain |= dict.fromkeys(("blocks", "tap", "stride"))
    wide = "truncate" if plan.wide == "fold_rms" else plan.wide
    return replace(still(plan), shape=shape, wide=wide, **plain)


@stated(("transit",), _pair)
def check_composition(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T4: a wide(n, m) weight after a tall(m, n) one returns x, for truncate and fold_mean."""
    tall = subject.make(plan, dtype)
    o, i = plan.layout.index("O"), plan.layout.index("I")
    shape = list(plan.shape)
    shape[o], shape[i] = shape[i], shape[o]
    back = replace(plan, shape=tuple(shape))
    wide = subject.make(back, dtype)
    x = signal(plan)
    tolerance = plan.shape[o] * unit(tall) * 64  # fold_mean adds k rounded shares of 1/k
    what, should = "output {1} of a wide layer after a tall one", "input {1}, {right}"
    for copy, h in enumerate(apply(subject.framework, plan, tall.values, x)):
        y = apply(subject.framework, back, wide.values, h)[copy]
        compare(f"{wide.call} after {tall.call}", what, y, x, tolerance, should)


@stated(("zero",), still)
def check_residual(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """T7: x + W2 f(W1 x) equals x up to 2 eps max|f|, W1 the reference's IDI and W2 under test.

    For ``form="shifted"`` with k entries in a row, up to sqrt(2 k) eps max|f|.
    """
    weight = subject.make(plan, dtype)
    hidden, outputs = inputs(plan), max((o for o, _, _ in rows(plan)), default=-1) + 1
    x = signal(plan) / 16
    x = np.resize(x, (len(x), outputs, *x.shape[2:]))
    letters, ones = "OI" + "DHW"[3 - len(plan.axes.kernel) :], (1,) * len(plan.axes.kernel)
    first = _plan((hidden, outputs, *ones), layout=letters)
    [h] = apply(subject.framework, first, first.build(), x)
    f = np.tanh(h)
    many = [-(-n // m) for _, _, m in rows(plan) for n in plan.axes.widths if 2 <= 2 * m <= n]
    entries = max([2, *many]) if plan.form == "shifted" else 2
    name = "2 eps max|f|" if entries == 2 else "sqrt(2 k) eps max|f|"
    bound = sqrt(2 * entries) * abs(number(weight, plan.eps)) * np.abs(f).max(initial=0)
    bound *= 1 + unit(weight)
    bound += hidden * coarse(weight, plan, 1, hidden) * np.abs(f).max(initial=0)
    what, limit = "the branch's part of output {1}", f"at most {name} = {shown(bound)} in size"
    for y in apply(subject.framework, plan, weight.values, f):
        compare(weight.call, what, y, np.zeros_like(y), bound, limit)


@stated()
def check_layout(subject: Subject, plan: Plan, dtype: str | None) -> None:
    """In a layer of the framework, with its stored axis order, it acts as its matrix should."""
    weight = subject.make(plan, dtype)
    x = signal(plan)
    stored = dense(plan, weight.dtype if weight.dtype in FORMATS else "float64")
    acts = apply(subject.framework, plan, weight.values, x)
    for y, of_phases in zip(acts, whole(plan, stored), strict=True):
        # A kernel of size 0 has a matrix without columns, and no patches.
        for (seen, where), matrix in zip(patches(plan, x), of_phases, strict=False):
            for output, row in enumerate(matrix):
                part = seen[:, group_of(plan, output)]
                should = np.tensordot(part, row, (1, 0))
                sizes = np.tensordot(np.abs(part), np.abs(row), (1, 0))
                tolerance = 2.0**-23 * (8 + np.count_nonzero(row)) * sizes  # summed in float32
                here: Any = (slice(None), output, *where)
                outputs = y[here]
                what = f"output {output} of the layer with its weight in layout {plan.layout}"
                compare(weight.call, what, outputs, should, tolerance)
