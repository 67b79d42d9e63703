"""Binds the properties to an implementation, and validates all options."""

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
        One of these: ``f(shape)``, which returns an array with gain 1 or eps 1e-6;
        ``f(key, shape, dtype)`` as in JAX; ``f_(tensor)`` in place as in ``torch.nn.init``, whose
        first parameter is named tensor, weight, array and so on; or a class or factory of one of
        these, such as Keras' initializers. Other parameters are passed and tested if they have the
        names of :func:`idinit_ref.plan` (also tau and epsilon), or are xp, dtype or device.
    xp : module or str, optional
        The namespace of its arrays: numpy, torch, jax.numpy, tensorflow, ... By default it is
        derived from the result.
    layout : str or None
        The axis letters of its matrices (spec section 4), or None if it makes no matrices. An
        implementation with a parameter `layout` is tested with every order of these letters.
    roles : sequence of {"transit", "zero"}, optional
        IDI, IDIZ, or both if it has a parameter `role`. By default both if it has this parameter,
        "zero" if it has eps and no gain, and else "transit".
    conv : str, optional
        The axis letters of its kernels, for example "OIHW" or "HWIO". Then kernels are tested too,
        through the framework's own convolution.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How it flattens a kernel into a matrix, if it has no parameter `taps`.
    wide : {"truncate", "fold_rms", "fold_mean"}
        How its IDI fills a wide matrix, if it has no parameter `wide`.
    form : {"pair", "shifted"}
        How its IDIZ fills a wide matrix, if it has no parameter `form`.
    stride : sequence of int, optional
        The stride of the transposed convolutions of its kernels, in the order D, H, W, if it has no
        parameter `stride`.
    expect : sequence of str, optional
        The properties to check, of `PROPERTIES`; by default all that can be tested.
    examples : int
        The number of weights to try for each property.
    seed : int
        The seed of the examples.
    budget : float
        Seconds for each property; after these no further call is made. A call that hangs is not
        ended here, but by `idinit check`, which runs it in a separate process, or by
        pytest-timeout.
    only : callable, optional
        ``only(plan)`` tells whether the implementation supports a weight; others are not tried.
    name : str, optional
        The name of the implementation in reports; by default its own.
    source : tuple of str, optional
        The module and attribute from which the snippets import it.
    clock : callable
        Returns the time in seconds. ``lambda: 0.0`` stands still: then only `examples` limits the
        search, and the verdicts do not depend on the speed of the machine.

    Returns
    -------
    Oracle
        Its `run()` returns an `OracleReport`, its `tests()` a class for pytest. Oracles share no
        state.

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
        should = f"{subject.name} has no parameter role, so there should be only one"
        raise OptionError(message("roles", subject.roles, should, "test one role at a time"))
    for option, value, words in (("taps", taps, Taps), ("wide", wide, Wide), ("form", form, Form)):
        choice(option, value, get_args(words))
    letters = _layouts(layout, conv)
    if stride is not None:
        if conv is None:
            should = "it applies only to kernels, and none are tested"
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
    ticker: object = clock
    if not callable(ticker):
        should = "it should be a function without parameters that returns seconds"
        raise OptionTypeError(message("clock", clock, should, "e.g. time.monotonic"))
    fixed = {"taps": taps, "wide": wide, "form": form, "stride": stride}
    weights = WeightCases(subject, letters, fixed, only)
    return Oracle(weights, expect, examples, seed, float(budget), clock)


def _layouts(layout: object, conv: object) -> list[str]:
    """Return the layouts of the matrices and kernels to test."""
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
    """Return one or several of the given options as a list that is not empty."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    if not given:
        raise OptionError(message(name, given, "it should name at least one", "or leave it out"))
    for word in given:
        choice(name, word, options)
    return list(given)
