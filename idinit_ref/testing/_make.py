"""Bind the properties to an implementation: what it is told, and what is wrong with that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

from ..core.kernel import Taps
from ..core.layout import SPATIAL
from ..core.options import choice, integer
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ..errors import OptionError, OptionTypeError, message
from ._examples import WeightCases
from ._oracle import PROPERTIES, Oracle
from ._subject import Subject

_SHORTEST, _LONGEST = 0.01, 1e5  # seconds


def make_oracle(
    implementation: Callable[..., Any],
    *,
    xp: Any = None,
    layout: str | None = "OI",
    roles: Sequence[Role] | Role | None = None,
    conv: str | None = None,
    taps: Taps = "outward",
    wide: Wide = "truncate",
    form: Form = "pair",
    stride: Sequence[int] | None = None,
    expect: Sequence[str] | None = None,
    examples: int = 50,
    seed: int = 0,
    budget: float = 3.0,
    only: Callable[[Plan], bool] | None = None,
    name: str | None = None,
    source: tuple[str, str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Oracle:
    """Bind the properties of the specification to an implementation of IDI or IDIZ.

    Parameters
    ----------
    implementation : callable
        ``f(shape)``, which returns an array with gain 1 or eps 1e-6; or ``f(key, shape, dtype)``
        as in JAX, ``f_(tensor)`` in place as in ``torch.nn.init`` (its first parameter is then
        called tensor, weight, array, ...), or a class or factory of one of these, as Keras'
        initializers. Of its other parameters those that have the names of :func:`idinit_ref.plan`
        (also tau and epsilon), xp, dtype and device are passed, and tested too.
    xp : module or str, optional
        The namespace of its arrays: numpy, torch, jax.numpy, tensorflow, ...; found from what
        it returns if left out.
    layout : str or None
        The axis letters of its matrices (spec section 4), or None if it makes no matrices. One
        with a parameter `layout` is asked for every order of these letters.
    roles : sequence of {"transit", "zero"}, optional
        IDI, IDIZ, or both where it has a parameter `role`. If left out: both where it has one,
        "zero" where it has eps and no gain, and else "transit".
    conv : str, optional
        The axis letters of its kernels, "OIHW" or "HWIO", say: kernels are tested too, through the
        framework's own convolution.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How it makes a matrix of a kernel, if it has no parameter `taps`.
    wide : {"truncate", "fold_rms", "fold_mean"}
        What its IDI does with a wide matrix, if it has no parameter `wide`.
    form : {"pair", "shifted"}
        What its IDIZ does with a wide matrix, if it has no parameter `form`.
    stride : sequence of int, optional
        The stride of the transposed convolutions that its kernels are for, in the order D, H, W,
        if it has no parameter `stride`.
    expect : sequence of str, optional
        The properties to check, of `PROPERTIES`; all that can be asked of it if left out.
    examples : int
        How many weights to try for each property.
    seed : int
        Of the examples: the same seed gives the same ones.
    budget : float
        Seconds for each property: no further call is made when they are over. A call that hangs
        is not ended here, but by `idinit check`, which runs it in a process of its own, or by
        pytest-timeout.
    only : callable, optional
        Whether the implementation is meant for a weight, as ``only(plan)``; others are not tried.
    name : str, optional
        What to call the implementation; its own name if left out.
    source : tuple of str, optional
        The module and attribute to import it from, for the snippets.
    clock : callable
        What tells the seconds. ``lambda: 0.0`` stands still: then `examples` alone is the bound,
        and the verdicts do not depend on the speed of the machine.

    Returns
    -------
    Oracle
        Its `run()` gives an `OracleReport`, its `tests()` a class for pytest. Oracles share
        nothing.

    Raises
    ------
    OptionError, OptionTypeError
        If the oracle cannot call it, or an option here does not fit.
    ImportError
        If the framework named by `xp` is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> def mine(shape):
    ...     return np.eye(*shape)
    >>> report = make_oracle(mine, expect=["rank", "transit"]).run()
    >>> [(outcome.property, outcome.verdict) for outcome in report.outcomes]
    [('rank', 'held'), ('transit', 'broken')]
    >>> print(report.outcomes[1].message.splitlines()[0])
    output 1 of the layer = 0, but should be input 0 of what it sees, -29  [mine((2, 1))]
    """
    if expect is not None:
        expect = _words("expect", expect, PROPERTIES)
    if roles is not None:
        roles = cast("list[Role]", _words("roles", roles, get_args(Role)))
    subject = Subject(implementation, xp, name, tuple(roles or ()), source)
    if len(subject.roles) > 1 and not subject.takes("role"):
        should = f"{subject.name} has no parameter role, so it makes one of them"
        raise OptionError(message("roles", subject.roles, should, "test one role at a time"))
    for option, value, words in (("taps", taps, Taps), ("wide", wide, Wide), ("form", form, Form)):
        choice(option, value, get_args(words))
    letters = _layouts(layout, conv)
    if stride is not None:
        if conv is None:
            should = "it is that of kernels, and there are none to test"
            raise OptionError(message("stride", stride, should, "give conv=..., too"))
        stride = Plan((1,) * len(conv), layout=conv, stride=cast("Any", stride)).stride
    integer("examples", examples, low=1)
    integer("seed", seed, low=0)
    should = f"it should be seconds > 0, from {_SHORTEST} to {_LONGEST:g}"
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise OptionTypeError(message("budget", budget, should, "e.g. 3.0"))
    if not _SHORTEST <= budget <= _LONGEST:
        raise OptionError(message("budget", budget, should, "e.g. 3.0"))
    chooser: object = only
    if chooser is not None and not callable(chooser):
        should = "it should be a function of a plan, or None"
        raise OptionTypeError(message("only", only, should, "e.g. lambda plan: plan.groups == 1"))
    told: object = clock
    if not callable(told):
        should = "it should be a function of nothing that returns seconds"
        raise OptionTypeError(message("clock", clock, should, "e.g. time.monotonic"))
    fixed = {"taps": taps, "wide": wide, "form": form, "stride": stride}
    weights = WeightCases(subject, letters, fixed, only)
    return Oracle(weights, expect, examples, seed, float(budget), clock)


def _layouts(layout: object, conv: object) -> list[str]:
    """Return the layouts of matrices and kernels that are to be tested."""
    if layout is None and conv is None:
        should = "there should be matrices or kernels to test"
        raise OptionError(message("layout", None, should, "give conv=..."))
    layouts = []
    for which, value in (("layout", layout), ("conv", conv)):
        if value is None:
            continue
        if not isinstance(value, str):
            should = "it should be a string of axis letters, or None"
            raise OptionTypeError(message(which, value, should, "e.g. 'OIHW'"))
        Plan((1,) * len(value), layout=value)
        if which == "conv" and not set(value) & set(SPATIAL):
            should = "it should have spatial letters D, H, W"
            raise OptionError(message("conv", value, should, "e.g. 'OIHW'"))
        layouts.append(value)
    return layouts


def _words(name: str, given: object, options: Sequence[str]) -> list[str]:
    """Return one word or several of some as a list that is not empty."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    if not given:
        raise OptionError(message(name, given, "it should name one at least", "or leave it out"))
    for each in given:
        choice(name, each, options)
    return list(given)
