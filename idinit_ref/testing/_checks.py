"""One function a property: what the specification says of a weight, asked of anyone's.

Each takes an implementation and a plan, calls the one for the other, and raises a `Finding`, an
AssertionError ``what = got, but should be expected  [call]`` with three lines that repeat it.
Most let the weight act on a signal, through the framework's own dense layer or convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from itertools import product
from math import lcm, prod, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_array
from ..core.kernel import CORNER
from ..core.plan import Plan
from ..core.plan import plan as _plan
from ..errors import OptionError, OptionTypeError, message
from ._subject import Finding, Made, Raised, Subject

__all__ = [
    "PROPERTIES",
    "Property",
    "both",
    "check_composition",
    "check_determinism",
    "check_device",
    "check_dtype",
    "check_exact",
    "check_groups",
    "check_image",
    "check_isometry",
    "check_layout",
    "check_rank",
    "check_reach",
    "check_residual",
    "check_row_norm",
    "check_transit",
    "check_underflow",
    "check_variance",
    "check_zero_sums",
    "dense",
    "snippet",
]

Values = NDArray[Any]
Check = Callable[..., None]


class Property(NamedTuple):
    """A check, and the weights that it says something of."""

    name: str
    check: Check  # the public function
    body: Callable[[Subject, Plan, str | None], None]
    roles: tuple[str, ...]
    fit: Callable[[Plan], Plan]  # the nearest plan that the property says something of
    needs: Callable[[Subject], str | None]  # why an implementation cannot be asked, or None


_ALL: dict[str, Property] = {}
_BOTH = ("transit", "zero")


def _about(name: str, roles: tuple[str, ...]) -> str:
    """Return what the docstrings of all checks say alike, and an example."""
    call = "ir.idi, ir.plan((3, 2))"
    if roles == ("zero",):
        call = 'ir.idiz, ir.plan((2, 4), "zero")'
    call = {
        "groups": "ir.idi, ir.plan((4, 2, 3, 3), groups=2)",
        "image": "ir.idi, ir.plan((2, 3, 4), stride=(2,))",
        "device": "ir.idi, ir.plan((3, 2)), xp=array_api_strict",
    }.get(name, call)
    first = "\n    >>> import array_api_strict" * (name == "device")
    return f"""

    Parameters
    ----------
    implementation : callable
        Anyone's initialiser, as :func:`idinit_ref.testing.make_oracle` takes it.
    plan : Plan
        The weight to ask for.
    xp : array namespace, optional
        The framework that it is to use, where its signature does not tell.
    dtype : str, optional
        The dtype to ask for; its own default if left out.

    Raises
    ------
    Finding
        An AssertionError, if the property does not hold.
    OptionError, OptionTypeError
        If the property says nothing of such a weight, or cannot be asked.

    Examples
    --------
    >>> import idinit_ref as ir{first}
    >>> check_{name}({call})
    """


def _property(
    roles: tuple[str, ...] = _BOTH,
    fit: Callable[[Plan], Plan] = lambda plan: plan,
    needs: Callable[[Subject], str | None] = lambda _: None,
) -> Callable[[Callable[[Subject, Plan, str | None], None]], Check]:
    """Make the public check of a body, which gets the snippet, and list it."""

    def listed(body: Callable[[Subject, Plan, str | None], None]) -> Check:
        name = body.__name__.removeprefix("check_")

        @wraps(body)
        def check(
            implementation: Any, plan: Plan, *, xp: Any = None, dtype: str | None = None
        ) -> None:
            if not isinstance(plan, Plan):
                raise OptionTypeError(
                    message("plan", plan, "it should be a Plan", "make one with ir.plan(shape)")
                )
            subject = (
                implementation
                if isinstance(implementation, Subject)
                else Subject(implementation, xp)
            )
            if plan.role not in roles or fit(plan) != plan:
                raise OptionError(
                    message(
                        "plan",
                        plan,
                        f"{name} says nothing of such a weight",
                        f"try {fit(_in_role(plan, roles))}",
                    )
                )
            why = needs(subject)
            if why:
                raise OptionError(message("implementation", subject.name, why, "use other checks"))
            try:
                subject.settle(_without_options(plan))
                dtype = None if dtype is None else _named(subject, dtype)
                body(subject, plan, dtype)
            except Finding as finding:
                text = f"{finding}\n\n{snippet(subject, name, plan, dtype)}"
                finding.args = (text,)
                raise

        vars(check).pop("__wrapped__")  # whose signature is another
        check.__doc__ = f"{body.__doc__}{_about(name, roles)}"
        _ALL[name] = Property(name, check, body, roles, fit, needs)
        return check

    return listed


def _named(subject: Subject, dtype: Any) -> str:
    """Return the name of a dtype that the implementation's framework has."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    name = str(getattr(dtype, "__name__", dtype) if name is None else name).rpartition(".")[2]
    if name not in FORMATS or subject.framework.dtype(name) is None:
        raise OptionError(
            message(
                "dtype",
                dtype,
                f"it should be a floating dtype of {subject.framework.name}",
                "name one, 'float32' say",
            )
        )
    return name


def _in_role(plan: Plan, roles: tuple[Any, ...]) -> Plan:
    """Return a plan in one of some roles, without the options of the other."""
    if plan.role in roles:
        return plan
    plain: dict[str, Any] = {"gain": 1.0, "eps": 1e-6, "wide": "truncate", "form": "pair"}
    return replace(_still(plan), role=roles[0], **plain)


def _without_options(plan: Plan) -> Plan:
    return _plan(
        plan.shape, plan.role, layout=plan.layout, taps=plan.taps, transposed=plan.transposed
    )


def options_of(plan: Plan) -> str:
    """Return the options of a plan that differ from the defaults, as code."""
    usual = Plan(plan.shape, plan.role) if 2 <= len(plan.shape) <= 5 else None
    names = ["gain", "eps", "wide", "form", "groups", "transposed", "blocks", "taps", "tap"]
    names += ["stride", "loosen", "loosen_at", "seed"]
    found = [
        f", {name}={getattr(plan, name)!r}"
        for name in names
        if getattr(plan, name) != Plan.__dataclass_fields__[name].default
    ]
    if usual is None or plan.layout != usual.layout:
        found.insert(0, f", layout={plan.layout!r}")
    return "".join(found)


def snippet(subject: Subject, name: str, plan: Plan, dtype: str | None) -> str:
    """Return the three lines that repeat a check."""
    module = getattr(subject.implementation, "__module__", None)
    own = getattr(subject.implementation, "__qualname__", "<")
    if subject.source:
        module, own = subject.source
    top, dot, rest = own.partition(".")
    source = f"from {module} import {top}"
    if top in ("ir", f"check_{name}"):
        source, own = f"{source} as mine", f"mine{dot}{rest}"
    bound = getattr(subject.implementation, "__self__", None)
    is_method = subject.source is None and bound is not None and not isinstance(bound, type)
    if "<" in own or module in (None, "__main__") or is_method:
        own, source = "f", "f = ...  # your implementation"
    role = "" if plan.role == "transit" else ', "zero"'
    more = "" if dtype is None else f", dtype={dtype!r}"
    if subject.xp is not None:
        more = f", xp={subject.framework.name!r}{more}"
    return (
        f"import idinit_ref as ir; from idinit_ref.testing import check_{name}\n"
        f"{source}\n"
        f"check_{name}({own}, ir.plan({plan.shape}{role}{options_of(plan)}){more})"
    )


# A weight, seen as its matrices ------------------------------------------------------------------


def dense(plan: Plan, dtype: str) -> Values:
    """Return the reference's weight, as float64 numbers that the dtype holds."""
    plan.check(np.float64)
    positions, values = plan.entries()
    out = np.zeros(prod(plan.shape))
    out[positions] = round_array(values, FORMATS[dtype], "an entry")
    return out.reshape(plan.shape)


def _copies(plan: Plan, values: Values) -> Iterator[tuple[str, Values]]:
    """Yield every batch copy of a weight, and the letters of its axes."""
    letters = "".join(c for c in plan.layout if c in "OIDHW")
    batch = [axis for axis, c in enumerate(plan.layout) if c not in "OIDHW"]
    moved = np.moveaxis(values, batch, range(len(batch)))
    for place in np.ndindex(moved.shape[: len(batch)]):
        copy = moved[place]
        if plan.transposed:  # as an ordinary one: all outputs, and the inputs of a group
            parts = np.split(copy, plan.groups, letters.index("I"))
            copy = np.concatenate(parts, letters.index("O"))
        yield letters, copy


def _segments(plan: Plan) -> list[range]:
    """Return the rows of every matrix along all outputs of all groups."""
    per_group = plan.axes.outputs
    starts = [
        (piece.start + k * piece.m, piece.m)
        for piece in plan.axes.pieces
        for k in range(piece.copies)
    ]
    times = plan.groups if plan.transposed else 1
    return [
        range(t * per_group + a, t * per_group + a + m) for t in range(times) for a, m in starts
    ]


def _by_columns(plan: Plan, array: Values, axis: int) -> Values:
    """Join the axes of channels and taps of a phase, taps by rank, to columns (section 3)."""
    channels, taps = array.shape[axis : axis + 2]
    shape = (*array.shape[:axis], channels * taps, *array.shape[axis + 2 :])
    if plan.taps == "channel_major":
        return array.reshape(shape)
    if plan.taps != "diagonal":
        return array.swapaxes(axis, axis + 1).reshape(shape)
    round_ = lcm(max(channels, 1), max(taps, 1))
    t = np.arange(channels * taps)
    places = t % max(channels, 1) * taps + (t + t // round_) % max(taps, 1)
    out: Values = np.take(array.reshape(shape), places, axis)
    return out


def _whole(plan: Plan, values: Values) -> Iterator[list[Values]]:
    """Yield every batch copy of a weight, as all rows of its matrices of each phase."""
    for letters, copy in _copies(plan, values):
        order = [letters.index(c) for c in "OIDHW" if c in letters]
        outputs, channels, *kernel = np.transpose(copy, order).shape
        flat = np.transpose(copy, order).reshape(outputs, channels, prod(kernel))
        yield [_by_columns(plan, flat[:, :, places], 1) for places in _phases(plan)]


def _phases(plan: Plan) -> list[list[int]]:
    """Return the taps of each phase by rank, counted in row-major order."""
    kernel = plan.axes.kernel
    if 0 in kernel:
        return [[]]
    return [[int(np.ravel_multi_index(t, kernel)) if t else 0 for t in p] for p in plan.axes.phases]


def _matrices(plan: Plan, made: Made) -> Iterator[tuple[str, Values]]:
    """Yield the matrices of a weight, each with its name (spec sections 3 and 4)."""
    parts, phases = _segments(plan), len(_phases(plan))
    many = len(parts) > 1 or any(c not in "OIDHW" for c in plan.layout)
    for number, matrices in enumerate(_whole(plan, made.values)):
        for phase, matrix in enumerate(matrices):
            for rows in parts:
                where = f"rows {rows.start} to {rows.stop - 1} of copy {number}" if many else ""
                where += ", " * (many and phases > 1) + f"phase {phase}" * (phases > 1)
                yield f"{where}: " if where else "", matrix[rows.start : rows.stop]


# A weight, seen as a layer -----------------------------------------------------------------------


def _apply(subject: Subject, plan: Plan, values: Values, x: Values) -> list[Values]:
    """Let every batch copy act on a signal (samples, inputs, *space), as a real layer does.

    With a stride that is a transposed convolution.
    """
    at, out, stride = subject.framework, [], _stride(plan)
    for letters, copy in _copies(plan, values):
        if len(letters) > 2:
            if stride is None:
                out.append(at.convolve(x, copy, letters, plan.groups))
            else:
                out.append(at.upsample(x, copy, letters, plan.groups, stride))
            continue
        parts = zip(
            np.split(x, plan.groups, 1),
            np.split(copy, plan.groups, letters.index("O")),
            strict=True,
        )
        out.append(np.concatenate([at.linear(a, b, letters) for a, b in parts], 1))
    return out


def _stride(plan: Plan) -> tuple[int, ...] | None:
    """Return the stride of the transposed convolution that a kernel is for; None for no such."""
    return None if plan.taps in CORNER or not plan.axes.kernel else plan.stride


def _inputs(plan: Plan) -> int:
    return plan.axes.channels * plan.groups


def _signal(plan: Plan, samples: int = 4, more: int = 1) -> Values:
    """Return small integers (samples, inputs, *space), no two alike nearby: products are exact."""
    space = tuple(k + more for k in plan.axes.kernel)
    draw = np.random.default_rng(prod(plan.shape) + samples)
    out = draw.integers(1, 64, (samples, _inputs(plan), *space)).astype(float)
    out[::2] *= -1
    return out


def _patches(plan: Plan, x: Values) -> Iterator[tuple[Values, tuple[slice, ...]]]:
    """Yield what each output sees of a signal, and which places of the layer's output those are.

    One for each phase: (samples, outputs, n, *places), n the columns of its matrix. Places whose
    patch reaches beyond the signal are left out.
    """
    samples, groups, channels = len(x), plan.groups, plan.axes.channels
    kernel, space = plan.axes.kernel, x.shape[2:]
    x = x.reshape(samples, groups, channels, *space)
    stride, outputs = _stride(plan), plan.axes.outputs * (groups if plan.transposed else 1)
    for places in _phases(plan):
        seen, where = [], [slice(0)] * len(kernel)
        for place in places:
            spans = []
            for axis, t in enumerate(np.unravel_index(place, kernel) if kernel else ()):
                k, size = kernel[axis], space[axis]
                step = 1 if stride is None else abs(stride[axis])
                last, reach = int(t) // step, (k - 1 - int(t) % step) // step
                if stride is not None and stride[axis] > 0:  # output s*q + r sees x[q - last]
                    first, begin = reach - last, step * reach + int(t) % step
                else:  # a correlation, or a kernel that is stored flipped
                    first, begin = last, 0 if stride is None else k - 1 - int(t) % step
                count = size - reach
                spans.append(slice(first, first + count))
                where[axis] = slice(begin, begin + (count - 1) * step + 1, step)
            seen.append(x[(slice(None),) * 3 + tuple(spans)])
        if not seen:
            continue
        columns = _by_columns(plan, np.stack(seen, 3), 2)
        yield np.repeat(columns, outputs // groups, axis=1), tuple(where)


def _rows(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Yield (output, its row i, the rows m of its matrix)."""
    for rows in _segments(plan):
        for i, output in enumerate(rows):
            yield output, i, len(rows)


def _unit(made: Made) -> float:
    """Return a bound of the relative error of few operations, at most in float32."""
    return float(2.0 ** (3 - min(made.format.precision, 24)))


def _number(made: Made, value: float) -> float:
    """Return an entry as the dtype holds it."""
    return _once(np.asarray([value]), made)


def _once(value: Values, made: Made) -> float:
    return float(round_array(value, made.format, "an entry")[0])


def _differs(got: Values, should: Values, tolerance: float | Values) -> tuple[int, ...] | None:
    off = np.argwhere(~(np.abs(got - should) <= tolerance))
    return tuple(off[0].tolist()) if len(off) else None


def _place(name: str, place: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, place))}]"


def _n(x: Any, digits: int = 9) -> str:
    """Return a number in its shortest form."""
    value = complex(x) + 0  # no -0
    return f"{value.real:.{digits}g}" if value.imag == 0 else f"{value:.{digits}g}"


def both(got: Any, should: Any) -> tuple[str, str]:
    """Return two numbers in the shortest form that tells them apart."""
    short = _n(got), _n(should)
    return short if short[0] != short[1] else (_n(got, 17), _n(should, 17))


# The checks --------------------------------------------------------------------------------------


@_property()
def check_exact(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Every entry is the reference's, to the bit, in the dtype that came back (sections 1 to 5)."""
    made = subject.make(plan, dtype)
    should = dense(plan, made.dtype if made.dtype in FORMATS else "float64")
    got = made.values
    bad = np.argwhere(got != should)
    if not len(bad):
        bad = np.argwhere(np.signbit(got.real) != np.signbit(should))
    if len(bad):
        place = tuple(bad[0].tolist())
        short = both(got[place], should[place])
        if short[0] == short[1]:  # but for the sign of a zero
            short = repr(got[place].item()), repr(should[place].item())
        entry = np.asarray([dense(plan, "float64")[place]]).astype(np.float32)
        if made.format.precision < 24 and got[place] == _once(entry.astype(float), made):
            short = short[0], f"{short[1]}, rounded once, not by way of float32"
        raise Finding(_place("W", place), *short, made.call)


def _tall(plan: Plan) -> Plan:
    """Return a plan with at least as many outputs as columns, in every group."""
    n, pieces = max(plan.axes.widths), plan.axes.pieces
    if plan.blocks is None and all(p.m >= n for p in pieces):
        return plan
    m = n + plan.axes.outputs // (1 if plan.transposed else plan.groups) - 1
    shape = list(plan.shape)
    shape[plan.axes.o_axis] = max(m, 0) * (1 if plan.transposed else plan.groups)
    return replace(plan, shape=tuple(shape), blocks=None)


def _still(plan: Plan) -> Plan:
    """Return a plan without noise."""
    return replace(plan, loosen=0.0, loosen_at="all", seed=0)


def _one(plan: Plan) -> Plan:
    """Return a tall plan with tau = 1 and no noise."""
    return _tall(replace(_still(plan), gain=1.0))


@_property(("transit",), _one)
def check_transit(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T1: with m >= n and tau = 1, output i is x[i mod n] exactly, through the real layer."""
    made = subject.make(plan, dtype)
    x = _signal(plan)
    for y, (seen, where) in product(_apply(subject, plan, made.values, x), _patches(plan, x)):
        for output, i, _ in _rows(plan):
            j = i % seen.shape[2]
            should, found = seen[:, output, j], y[(slice(None), output, *where)]
            place = _differs(found, should, 0.0)
            if place is not None:
                got, right = both(found[place], should[place])
                what = f"output {output} of the layer"
                raise Finding(what, got, f"input {j} of what it sees, {right}", made.call)


def _upright(plan: Plan) -> Plan:
    """Return a plan whose first outputs are the image: tau = 1, and an identity tap."""
    plan = replace(_still(plan), gain=1.0, wide="truncate")
    if not plan.axes.kernel:
        letters = "OIW" if len(plan.shape) == 2 else f"{plan.layout}W"
        plan = replace(plan, shape=(*plan.shape, 3), layout=letters)
    return plan if plan.taps in ("outward", "center") else replace(plan, taps="outward")


@_property(("transit",), _upright)
def check_image(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T14, T15: the first outputs of a kernel are the image, unshifted, at every place of it.

    Padded such that the identity tap passes it. With a stride each place is there s times: for
    outputs whose identity tap is in the kernel.
    """
    made = subject.make(plan, dtype)
    x, stride, kernel = _signal(plan), _stride(plan), plan.axes.kernel
    tap = plan.tap or tuple((k - 1) // 2 for k in kernel)
    space = list(zip(x.shape[2:], kernel, tap, strict=True))
    if stride is None:
        signal = np.pad(x, [(0, 0), (0, 0), *((p, k - 1 - p) for _, k, p in space)])
        wanted = [((slice(None),) * len(kernel), x)]
    else:
        signal, wanted = x, []
        for r in np.ndindex(*map(abs, stride)):
            near = [p + d * (1 if s > 0 else -1) for p, d, s in zip(tap, r, stride, strict=True)]
            if all(0 <= t < k for t, k in zip(near, kernel, strict=True)):
                first = [
                    t if s > 0 else k - 1 - t for t, k, s in zip(near, kernel, stride, strict=True)
                ]
                spans = zip(first, x.shape[2:], map(abs, stride), strict=True)
                where = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in spans)
                wanted.append((where, x))
    channels, per_group = plan.axes.channels, plan.axes.outputs // plan.groups
    per_group = plan.axes.outputs if plan.transposed else per_group
    for y, (where, image) in product(_apply(subject, plan, made.values, signal), wanted):
        for output, i, _ in _rows(plan):
            if i >= channels:
                continue
            channel = output // per_group * channels + i
            found, should = y[(slice(None), output, *where)], image[:, channel]
            place = _differs(found, should, 0.0)
            if place is not None:
                got, right = both(found[place], should[place])
                what = f"output {output} of the layer at {list(place[1:])}"
                raise Finding(
                    what, got, f"channel {channel} of the image there, {right}", made.call
                )


def _varies(plan: Plan) -> Plan:
    """Return a plan whose variance is known: without noise, and not averaged."""
    plan = _still(plan)
    return replace(plan, wide="truncate") if plan.wide == "fold_mean" else plan


@_property(fit=_varies)
def check_variance(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T2: output i has variance tau^2 Var(x[i mod n]) for any covariance of x.

    T3 for a folded wide weight: tau^2 sigma^2 where the inputs are uncorrelated with equal
    variance sigma^2. IDIZ, likewise: 2 eps^2 sigma^2, and eps^2 sigma^2 for n = 1 (section 2).
    """
    made = subject.make(plan, dtype)
    folded = any(m < n for _, _, m in _rows(plan) for n in plan.axes.widths)
    white = plan.role == "zero" or folded * (plan.wide != "truncate")
    if white:  # every coordinate +1 and -1 once, alone
        size = _inputs(plan) * prod(plan.axes.kernel)
        unit = np.eye(size).reshape(size, _inputs(plan), *plan.axes.kernel)
        x = np.concatenate([unit, -unit]) * sqrt(size)
    else:  # correlated, and each coordinate with a variance of its own
        x = _signal(plan, 8, 0)
        x += np.cumsum(x, axis=1) + 3 * x[:, :1]
    value = _number(made, plan.eps if plan.role == "zero" else plan.gain)
    seen = [(np.var(patches, axis=0), where) for patches, where in _patches(plan, x)]
    for y, (inputs, where) in product(_apply(subject, plan, made.values, x), seen):
        found, n = np.var(y[(slice(None), slice(None), *where)], axis=0), inputs.shape[1]
        entries = 2 if plan.role == "zero" and n > 1 else 1
        for output, i, _ in _rows(plan):
            if n == 0:
                continue
            each = np.ones_like(inputs[output, 0]) if white else inputs[output, i % n]
            should = entries * value**2 * each
            place = _differs(found[output], should, 4 * _unit(made) * should)
            if place is not None:
                factor = "2 eps^2" if entries == 2 else "eps^2" if plan.role == "zero" else "tau^2"
                kind = "uncorrelated inputs" if white else "correlated inputs"
                got, right = both(found[output][place], should[place])
                what = f"the variance of output {output} for {kind}"
                raise Finding(what, got, f"{factor} times that of its input, {right}", made.call)


@_property(fit=_still)
def check_row_norm(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Rows have norm abs(tau) (T2, T3; abs(tau)/sqrt(k) for fold_mean), or sqrt(2) abs(eps)."""
    made = subject.make(plan, dtype)
    for name, matrix in _matrices(plan, made):
        m, n = matrix.shape
        for i in range(m if n else 0):
            if plan.role == "zero":
                should = abs(_number(made, plan.eps)) * (sqrt(2) if n > 1 else 1)
            else:
                k = len(range(i, n, m)) if plan.wide == "fold_mean" and m < n else 1
                should = abs(_number(made, plan.gain)) / sqrt(k)
            got = float(np.linalg.norm(matrix[i] / should)) * should
            if not abs(got - should) <= _unit(made) * should:
                raise Finding(f"{name}the norm of row {i}", *both(got, should), made.call)


@_property(("zero",), _still)
def check_zero_sums(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Every row of IDIZ with n >= 2 sums to 0, so equal means leave the mean at 0.

    Exactly, but for ``form="shifted"``, whose entries are rounded each on its own.
    """
    made = subject.make(plan, dtype)
    for name, matrix in _matrices(plan, made):
        if matrix.shape[1] < 2:
            continue
        for i, row in enumerate(matrix):
            shifted = plan.form == "shifted" and matrix.shape[1] >= 2 * len(matrix)
            if abs(row.sum()) > (_unit(made) * abs(row).sum() if shifted else 0.0):
                raise Finding(f"{name}the sum of row {i}", _n(row.sum()), "0", made.call)


@_property(fit=_still)
def check_rank(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """IDI has full rank; IDIZ has rank m for m < n, n - 1 for m >= n >= 2, and 1 for n = 1."""
    made = subject.make(plan, dtype)
    for name, matrix in _matrices(plan, made):
        m, n = matrix.shape
        full = min(m, n)
        should = n - 1 if plan.role == "zero" and m >= n >= 2 else full
        largest = np.abs(matrix).max(initial=0)
        tolerance = _unit(made) * max(m, n, 1)
        rank = int(np.linalg.matrix_rank(matrix / largest, tolerance)) if largest else 0
        if rank != should:
            raise Finding(f"{name}the rank", rank, f"{should} (m = {m}, n = {n})", made.call)


@_property(fit=_still)
def check_reach(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Which columns have an entry: all that should, so their inputs reach an output (section 2).

    All of a tall matrix, of a fold, and of a shifted IDIZ; the first m of a truncated IDI, and the
    first 2m of a wide IDIZ.
    """
    made = subject.make(plan, dtype)
    for name, matrix in _matrices(plan, made):
        m, n = matrix.shape
        every = m >= n or (plan.role == "transit" and plan.wide != "truncate" and m > 0)
        every |= plan.role == "zero" and plan.form == "shifted" and 2 * m <= n and m > 0
        should = n if every else min(n, 2 * m if plan.role == "zero" else m)
        got = int(np.count_nonzero((matrix != 0).any(axis=0)))
        if got != should:
            what = f"{name}the number of columns with an entry"
            raise Finding(what, got, f"{should} (m = {m}, n = {n})", made.call)


def _tall_still(plan: Plan) -> Plan:
    return _tall(_still(plan))


@_property(("transit",), _tall_still)
def check_isometry(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T5: singular values are abs(tau) sqrt(c_j), c_j the copies of input j."""
    made = subject.make(plan, dtype)
    tau = abs(_number(made, plan.gain))
    for name, matrix in _matrices(plan, made):
        m, n = matrix.shape
        got = np.linalg.svd(matrix, compute_uv=False)
        should = np.array(sorted((tau * sqrt(len(range(j, m, n))) for j in range(n)), reverse=True))
        place = _differs(got, should, 4 * _unit(made) * tau * sqrt(max(m, 1)))
        if place is not None:
            k = place[0]
            raise Finding(f"{name}singular value {k}", *both(got[k], should[k]), made.call)


def _pair(plan: Plan) -> Plan:
    """Return the tall matrix, m >= n, of the two that are composed: no groups, a kernel of 1."""
    at = plan.axes
    m, n = max(at.outputs, at.inputs), min(at.outputs, at.inputs)
    sizes = {"O": m, "I": n} | dict.fromkeys("DHW", 1)
    shape = tuple(sizes.get(c, size) for c, size in zip(plan.layout, plan.shape, strict=True))
    wide = "truncate" if plan.wide == "fold_rms" else plan.wide
    return replace(
        _still(plan),
        shape=shape,
        groups=1,
        transposed=False,
        blocks=None,
        tap=None,
        stride=None,
        gain=1.0,
        wide=wide,
    )


@_property(("transit",), _pair)
def check_composition(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T4: a wide(n, m) weight after a tall(m, n) one gives x back, for truncate and fold_mean."""
    tall = subject.make(plan, dtype)
    o, i = plan.layout.index("O"), plan.layout.index("I")
    shape = list(plan.shape)
    shape[o], shape[i] = shape[i], shape[o]
    back = replace(plan, shape=tuple(shape))
    wide = subject.make(back, dtype)
    x = _signal(plan)
    inside = _apply(subject, plan, tall.values, x)
    # fold_mean adds k shares of 1/k, each rounded
    size = plan.shape[o] * _unit(tall) * 64
    calls = f"{wide.call} after {tall.call}"
    for copy, h in enumerate(inside):
        y = _apply(subject, back, wide.values, h)[copy]
        place = _differs(y, x, size)
        if place is not None:
            got, right = both(y[place], x[place])
            what = f"output {place[1]} of a wide layer after a tall one"
            raise Finding(what, got, f"input {place[1]}, {right}", calls)


@_property(("zero",), _still)
def check_residual(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """T7: x + W2 f(W1 x) is x up to 2 eps max|f|, W1 the reference's IDI and W2 under test."""
    made = subject.make(plan, dtype)
    hidden, outputs = _inputs(plan), max((o for o, _, _ in _rows(plan)), default=-1) + 1
    x = _signal(replace(plan)) / 16
    x = np.resize(x, (len(x), outputs, *x.shape[2:]))
    letters = "OI" + "DHW"[3 - len(plan.axes.kernel) :]
    ones = (1,) * len(plan.axes.kernel)
    first = _plan((hidden, outputs, *ones), layout=letters)
    [h] = _apply(subject, first, first.build(), x)
    f = np.tanh(h)
    most = [-(-n // m) for _, _, m in _rows(plan) for n in plan.axes.widths if 2 <= 2 * m <= n]
    entries = max(most, default=2) if plan.form == "shifted" else 2
    bound = 2 * abs(_number(made, plan.eps)) * np.abs(f).max(initial=0) * (1 + _unit(made))
    bound *= sqrt(max(entries, 2) / 2)
    bound_name = "2 eps max|f|" if entries <= 2 else "sqrt(2 k) eps max|f|"
    for y in _apply(subject, plan, made.values, f):
        place = _differs(y, np.zeros_like(y), bound)
        if place is not None:
            raise Finding(
                f"what the branch adds to output {place[1]}",
                _n(y[place]),
                f"at most {bound_name} = {_n(bound)} in size",
                made.call,
            )


@_property()
def check_dtype(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Keep the dtype that was asked for; without one, any floating dtype will do."""
    made = subject.make(plan, dtype)
    if dtype is not None and made.dtype != dtype:
        raise Finding("its dtype", made.dtype, dtype, made.call)
    if made.dtype not in FORMATS:
        raise Finding("its dtype", made.dtype, "a floating dtype", made.call)
    if dtype is None and made.dtype.startswith("complex"):
        should = "a real floating dtype, since no complex one was asked for"
        raise Finding("its dtype", made.dtype, should, made.call)


def _device_needs(subject: Subject) -> str | None:
    if subject.style != "array" and not subject.takes("device"):
        return "it takes no device="
    return None if subject.framework.devices() else "there is one device only"


@_property(needs=_device_needs)
def check_device(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Lie on the device that was asked for."""
    for device in subject.framework.devices():
        made = subject.make(plan, dtype, device)
        got = subject.framework.device_of(made.raw)
        if got != str(device):
            raise Finding("its device", got, device, made.call)


@_property()
def check_determinism(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Two calls give the same bits, whatever the key, in arrays of their own."""
    first = subject.make(plan, dtype)
    before = first.values.copy()
    second = subject.make(plan, dtype, key=1)
    place = _differs(second.values, before, 0.0)
    if place is not None:
        what = f"{_place('W', place)} of a second call"
        raise Finding(what, *both(second.values[place], before[place]), first.call)
    if prod(plan.shape):
        raw = first.raw
        try:
            raw[(0,) * len(plan.shape)] = 7 if before.flat[0] != 7 else 8
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return  # it cannot be written to
        again = subject.framework.numpy(second.raw).flat[0]
        raw[(0,) * len(plan.shape)] = before.flat[0].item()  # it may be kept for later calls
        if again != before.flat[0]:
            raise Finding(
                "the array of a second call",
                "the same memory as that of the first",
                "an array of its own",
                first.call,
            )


def _grouped(plan: Plan) -> Plan:
    """Return a plan of at least two groups, without blocks and noise."""
    plan = replace(_still(plan), blocks=None)
    if plan.groups > 1:
        return plan
    axis = plan.axes.i_axis if plan.transposed else plan.axes.o_axis
    shape = tuple(size * 2 if a == axis else size for a, size in enumerate(plan.shape))
    return replace(plan, shape=shape, groups=2)


@_property(fit=_grouped, needs=lambda s: None if s.takes("groups") else "it takes no groups=")
def check_groups(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Each group is initialised on its own, alike: it is the weight of one group alone."""
    made = subject.make(plan, dtype)
    axis = plan.axes.i_axis if plan.transposed else plan.axes.o_axis
    parts = np.split(made.values, plan.groups, axis)
    alone = subject.make(replace(plan, shape=parts[0].shape, groups=1), dtype)
    for group, part in enumerate(parts):
        place = _differs(part, alone.values, 0.0)
        if place is not None:
            what = f"{_place('W', place)} of group {group}"
            got, right = both(part[place], alone.values[place])
            raise Finding(what, got, f"{right}, as in {alone.call}", made.call)


@_property()
def check_layout(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """As a layer of the framework, in its stored axis order, it does what the matrix should."""
    made = subject.make(plan, dtype)
    x = _signal(plan)
    stored = dense(plan, made.dtype if made.dtype in FORMATS else "float64")
    acts, copies = _apply(subject, plan, made.values, x), _whole(plan, stored)
    for y, matrices in zip(acts, copies, strict=True):
        for (seen, where), matrix in zip(_patches(plan, x), matrices, strict=True):
            for output in range(len(matrix)):
                should = np.tensordot(seen[:, output], matrix[output], (1, 0))
                size = np.tensordot(np.abs(seen[:, output]), np.abs(matrix[output]), (1, 0))
                here: Any = (slice(None), output, *where)
                found = y[here]
                place = _differs(found, should, 2.0**-20 * size)
                if place is not None:
                    raise Finding(
                        f"output {output} of the layer with its weight in layout {plan.layout}",
                        *both(found[place], should[place]),
                        made.call,
                    )


def _tiny(
    subject: Subject, role: str, dtype: str | None = None
) -> Iterator[tuple[Any, str, float]]:
    """Yield (dtype to ask for, option, a value of it that rounds to 0 there)."""
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


@_property(needs=_underflow_needs)
def check_underflow(subject: Subject, plan: Plan, dtype: str | None = None) -> None:
    """Refuse an entry that rounds to 0 in the dtype: the neurons would be dead (section 5)."""
    plain: dict[str, Any] = {"wide": "truncate", "gain": 1.0, "eps": 1e-6, "form": "pair"}
    plan, at = replace(_still(plan), **plain), subject.framework
    if prod(plan.shape) == 0:
        return
    for name, option, value in _tiny(subject, plan.role, dtype):
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
        raise Finding(call.text, kind, should, call)


PROPERTIES: tuple[str, ...] = tuple(_ALL)
"""The names of all properties, in the order in which they are checked."""


def properties() -> dict[str, Property]:
    """Return all properties by name."""
    return dict(_ALL)
