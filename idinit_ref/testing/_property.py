"""A property: a check, and the weights to which it applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_array
from ..core.layout import DEFAULT_LAYOUTS
from ..core.plan import Plan
from ..core.weights import plan as _plan
from ..errors import OptionError, OptionTypeError, message
from ._subject import MadeWeight, Subject, Violation

Values = NDArray[Any]
Check = Callable[..., None]


class Property(NamedTuple):
    """A check, and the weights to which it applies."""

    name: str
    check: Check  # the public function
    body: Callable[[Subject, Plan, str | None], None]
    roles: tuple[str, ...]
    fit: Callable[[Plan], Plan]  # the nearest plan to which the property applies
    needs: Callable[[Subject], str | None]  # why it cannot be tested, or None


ALL: dict[str, Property] = {}
"""All properties by name; each check adds itself, in the order of the modules."""

_BOTH = ("transit", "zero")


def _about(name: str, roles: tuple[str, ...]) -> str:
    """Return the common part of all checks' docstrings, and an example."""
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
        Any initialiser, as for :func:`idinit_ref.testing.make_oracle`.
    plan : Plan
        The weight to request.
    xp : array namespace, optional
        The framework to use, if the signature does not show it.
    dtype : str, optional
        The dtype to request; by default the implementation's own.

    Raises
    ------
    Violation
        An AssertionError, if the property does not hold.
    OptionError, OptionTypeError
        If the property does not apply to the weight, or cannot be tested.

    Examples
    --------
    >>> import idinit_ref as ir{first}
    >>> check_{name}({call})
    """


def stated(
    roles: tuple[str, ...] = _BOTH,
    fit: Callable[[Plan], Plan] = lambda plan: plan,
    needs: Callable[[Subject], str | None] = lambda _: None,
) -> Callable[[Callable[[Subject, Plan, str | None], None]], Check]:
    """Return a decorator that makes a public check of a body, and adds it to `ALL`."""

    def decorate(body: Callable[[Subject, Plan, str | None], None]) -> Check:
        name = body.__name__.removeprefix("check_")

        @wraps(body)
        def check(
            implementation: Any, plan: Plan, *, xp: Any = None, dtype: str | None = None
        ) -> None:
            if not isinstance(plan, Plan):
                raise OptionTypeError(
                    message("plan", plan, "it should be a Plan", "make one with ir.plan(shape)")
                )
            subject = implementation
            if not isinstance(subject, Subject):
                subject = Subject(implementation, xp)
            if plan.role not in roles or fit(plan) != plan:
                should = f"the property {name} does not apply to this weight"
                cure = f"try {fit(_in_role(plan, roles))}"
                raise OptionError(message("plan", plan, should, cure))
            why = needs(subject)
            if why:
                raise OptionError(message("implementation", subject.name, why, "use other checks"))
            try:
                subject.settle(_without_options(plan))
                dtype = None if dtype is None else _named(subject, dtype)
                body(subject, plan, dtype)
            except Violation as finding:
                text = f"{finding}\n\n{snippet(subject, name, plan, dtype)}"
                finding.args = (text,)
                raise

        vars(check).pop("__wrapped__")  # it has another signature
        check.__doc__ = f"{body.__doc__}{_about(name, roles)}"
        ALL[name] = Property(name, check, body, roles, fit, needs)
        return check

    return decorate


def _named(subject: Subject, dtype: Any) -> str:
    """Return the name of a dtype that the implementation's framework has."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    name = str(getattr(dtype, "__name__", dtype) if name is None else name).rpartition(".")[2]
    if name not in FORMATS or subject.framework.dtype(name) is None:
        should = f"it should be a floating dtype of {subject.framework.name}"
        cure = "name one, for example 'float32'"
        raise OptionError(message("dtype", dtype, should, cure))
    return name


def _in_role(plan: Plan, roles: tuple[Any, ...]) -> Plan:
    """Return a plan in one of the given roles, without options of the other role."""
    if plan.role in roles:
        return plan
    plain: dict[str, Any] = {"gain": 1.0, "eps": 1e-6, "wide": "truncate", "form": "pair"}
    return replace(still(plan), role=roles[0], **plain)


def still(plan: Plan) -> Plan:
    """Return a plan without noise."""
    return replace(plan, loosen=0.0, loosen_at="all", seed=0)


def _without_options(plan: Plan) -> Plan:
    return _plan(
        plan.shape, plan.role, layout=plan.layout, taps=plan.taps, transposed=plan.transposed
    )


def options_of(plan: Plan) -> str:
    """Return the options of a plan that differ from the defaults, as code."""
    options = plan.options()
    del options["role"]
    if options["layout"] == DEFAULT_LAYOUTS.get(len(plan.shape)):
        del options["layout"]
    return "".join(f", {name}={value!r}" for name, value in options.items())


def snippet(subject: Subject, name: str, plan: Plan, dtype: str | None) -> str:
    """Return the three lines that reproduce a check."""
    module = getattr(subject.implementation, "__module__", None)
    path = getattr(subject.implementation, "__qualname__", "<")
    if subject.source:
        module, path = subject.source
    top, dot, rest = path.partition(".")
    source = f"from {module} import {top}"
    if top in ("ir", f"check_{name}"):
        source, path = f"{source} as mine", f"mine{dot}{rest}"
    bound = getattr(subject.implementation, "__self__", None)
    is_method = subject.source is None and bound is not None and not isinstance(bound, type)
    if "<" in path or module in (None, "__main__") or is_method:
        path, source = "f", "f = ...  # your implementation"
    role = "" if plan.role == "transit" else ', "zero"'
    more = "" if dtype is None else f", dtype={dtype!r}"
    if subject.xp is not None:
        more = f", xp={subject.framework.name!r}{more}"
    return (
        f"import idinit_ref as ir; from idinit_ref.testing import check_{name}\n"
        f"{source}\n"
        f"check_{name}({path}, ir.plan({plan.shape}{role}{options_of(plan)}){more})"
    )


def tall(plan: Plan) -> Plan:
    """Return a plan with at least as many outputs as columns, in every group, without noise."""
    plan = still(plan)
    n, pieces = max(plan.axes.widths), plan.axes.pieces
    if plan.blocks is None and all(p.m >= n for p in pieces):
        return plan
    groups = 1 if plan.transposed else plan.groups
    shape = list(plan.shape)
    shape[plan.axes.o_axis] = max(n + plan.axes.outputs // groups - 1, 0) * groups
    return replace(plan, shape=tuple(shape), blocks=None)


# Numbers -----------------------------------------------------------------------------------------


def unit(weight: MadeWeight) -> float:
    """Return a bound of the relative error of a few operations, in float32 at most."""
    return float(2.0 ** (3 - min(weight.format.precision, 24)))


def coarse(weight: MadeWeight, plan: Plan, m: int, n: int) -> float:
    """Return the absolute tolerance of an entry of ``form="shifted"``; 0 for other forms."""
    shifted = plan.role == "zero" and plan.form == "shifted" and n >= 2 * m
    return weight.format.smallest * shifted


def number(weight: MadeWeight, value: float) -> float:
    """Return an entry, rounded into the dtype."""
    return float(round_array(np.asarray([value]), weight.format, "an entry")[0])


def shown(x: Any, digits: int = 9) -> str:
    """Return a number in its shortest form."""
    value = complex(x) + 0  # no -0
    return f"{value.real:.{digits}g}" if value.imag == 0 else f"{value:.{digits}g}"


def both(got: Any, should: Any) -> tuple[str, str]:
    """Return two numbers in the shortest form in which they differ."""
    short = shown(got), shown(should)
    return short if short[0] != short[1] else (shown(got, 17), shown(should, 17))


def compare(
    call: object,
    what: str,
    got: Values,
    should: Values,
    tolerance: float | Values = 0.0,
    expected: str = "{right}",
) -> None:
    """Raise a `Violation` for the first number that differs by more than the tolerance.

    In `what` and `expected`, {at} is its index, {0}, {1}, ... are its coordinates, and {right} is
    the right number.
    """
    off = np.argwhere(~(np.abs(got - should) <= tolerance))
    if len(off):
        place = tuple(off[0].tolist())
        number, right = both(got[place], np.broadcast_to(should, got.shape)[place])
        at = ", ".join(map(str, place))
        should_be = expected.format(*place, right=right)
        raise Violation(what.format(*place, at=at), number, should_be, call)
