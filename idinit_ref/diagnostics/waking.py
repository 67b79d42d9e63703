"""Internal: the second look of an audit, which tells what ends with the first steps of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np

from ..core.options import integer
from ..core.text import some
from .audit import Audit, Dead
from .signals import Record
from .suspects import suspects
from .verdict import Verdict

ENTRY, NORM = 0.01, 0.1
"""The first step moves an entry by the former, and less where the tensor's step would have a larger
Frobenius norm than the latter. That bounds the spectral norm (1 for an identity): no layer's result
moves by more than a tenth of its input. Later steps are shorter, so that none takes a weight back
to 0."""

ONE = "steps=0; steps=3 takes up to three small steps of training, and looks again"
"""Why one run does not tell. A zero inside a branch that itself ends in a zero takes two steps."""

WAYS = (1.0, -1.0)
"""What still fails after steps down is looked at after steps up, which are down for the opposite
gradients of the output; those are drawn. On a few samples one way may turn off a ReLU. What is cut
off has no gradient after any step."""


class Look(NamedTuple):
    """One run: its record, and the trained parameters and their gradients, as arrays by name."""

    record: Record
    values: Mapping[str, Any]
    gradients: Mapping[str, Any]


def steps_of(steps: object) -> int:
    """Return the most steps of a second look; or raise.

    >>> steps_of(0)
    0
    """
    return integer("steps", steps, 0)


def watched(
    look: Callable[[Mapping[str, Any]], Look],
    step: Callable[[Any, Any, float], Any],
    why_not: str = "",
    host: Callable[[Any], Any] = np.asarray,
    steps: int = 0,
) -> Audit:
    """Audit a model: by one run; with steps, and only if something fails, by one more after each.

    What fails at first and not after a step is a remark, and what goes on failing is a failure. So
    is a parameter that was to wake, if what stops it only shows once the first fault has ended.
    There are more runs, too, for weights without a gradient, though one is sent back to them.

    Parameters
    ----------
    look : callable
        ``look(values)`` runs the model with other values of some parameters, by name, and changes
        nothing in it.
    step : callable
        `stepped`, in the namespace of the values.
    why_not : str
        Why there can be no second look; "" if there can.
    host : callable
        Turns an array into NumPy's, or into None where this process does not hold it.
    steps : int
        The most steps of training, each way. With 0 there is one run, and no more.
    """
    run = look({})
    first = Verdict(run.record)
    still = [fault.name for fault in first.faults]
    asleep = {one.name for one in first.found.dead if one.wakes}
    whole = {one.name for one in first.found.dead}
    asleep |= {name for name, block in run.record.blocks.items() if block.of in whole}
    moves = any(fact.peak for fact in run.record.gradients.values())
    if not moves or first.found.not_finite:
        return first.audit()
    stopped, hidden = suspects(first.flow, first.found.dead, run.values, run.gradients, host)
    parts = {name: one for name, one in stopped.items() if name in run.record.blocks}
    first.tell(parts)
    stopped = {name: one for name, one in stopped.items() if name not in parts}
    stopped = {**_guessed(first, steps, hidden), **stopped}
    if not still and not stopped:
        return first.audit()
    why_not = why_not and f"no look after one more step, {why_not}"
    why_not = why_not if steps else ONE
    if why_not:
        return first.audit(limit=_said([*still, *stopped], why_not))
    now = _Faults({}, still, asleep, stopped)
    for way in WAYS:
        later = _after_steps(look, step, run, now, way, steps)
        if later.why_not and now.steps:
            break  # the steps down have told
        now = later
        if now.why_not:
            said = f"no look after one more step, {now.why_not}"
            said = _said([*now.still, *now.lasting], said)
            return first.audit(now.woken, now.steps, said, now.hidden)
        if not now.still and not now.lasting:
            break
    return first.audit(now.woken, now.steps, hidden=now.lasting.values())


def _guessed(first: Verdict, steps: int, hidden: Set[str]) -> dict[str, Dead]:
    """Return the parameters that are no weights, and are to wake: for these no theorem says so.

    The logits that mix two branches, say, get no gradient while the branches are equal. Of those
    that are hidden the weights behind them tell it: the scale of a norm.
    """
    nodes = first.flow.nodes
    why = f", nor has it one after {steps} step{'s' * (steps != 1)} of training"
    return {
        one.name: one._replace(why=one.why + why, wakes=False)
        for one in first.found.dead
        if one.wakes and nodes[one.name].use == "other" and one.name not in hidden
    }


class _Faults(NamedTuple):
    """What failed in the first run: what has ended after some steps, and what goes on."""

    woken: Mapping[str, int]  # by fault: the steps after which it ended
    still: Sequence[str]  # the other faults
    asleep: Set[str]  # the parameters that were to wake, and have no gradient yet
    stopped: Mapping[str, Dead]  # of these: a gradient is sent back to them
    hidden: Sequence[Dead] = ()  # of these: what stops them was hidden in the first run
    steps: int = 0
    why_not: str = ""  # why there was no look after one more step

    @property
    def lasting(self) -> dict[str, Dead]:
        """The parameters that were to wake and fail."""
        return {**self.stopped, **{one.name: one for one in self.hidden}}


def _after_steps(
    look: Callable[[Mapping[str, Any]], Look],
    step: Callable[[Any, Any, float], Any],
    run: Look,
    now: _Faults,
    way: float,
    most: int,
) -> _Faults:
    """Return the faults after steps one way from the first run on, while there are any."""
    values, old, steps = run.values, now, 0
    while (now.still or now.lasting) and steps < most:
        part = way / (steps + 1)
        values = {name: step(value, run.gradients[name], part) for name, value in values.items()}
        try:
            run = look(values)
            later = Verdict(run.record)
            why_not = "the results were not finite" if later.found.not_finite else ""
        except Exception as problem:  # a model may raise any exception at other values
            why_not = f"the model raised: {problem}"
        if why_not:
            return now._replace(why_not=why_not)
        steps += 1
        asleep = {name for name in now.asleep if not later.is_alive(name)}
        alive = {name: steps for name in now.still if later.is_alive(name)}
        now = _Faults(
            {**now.woken, **alive},
            [name for name in now.still if name not in alive],
            asleep,
            {name: one for name, one in now.stopped.items() if name in asleep},
            # What the steps up turn off, the steps down had left on.
            [
                one
                for one in (old.hidden if old.steps else later.hidden(asleep))
                if one.name in asleep
            ],
            max(steps, old.steps),
        )
    return now


def _said(names: list[str], why: str) -> str:
    return f"whether training wakes {some(names)} is unknown: {shorten(why, 200)}"


def stepped(xp: Any, value: Any, gradient: Any, part: float) -> Any:
    """Return a parameter after a part of one step of sign descent, which is Adam's first.

    `xp` is an array namespace or `keras.ops`. What has no gradient stays, and so does a dtype
    without arithmetic.

    >>> import numpy as np
    >>> stepped(np, np.ones(4), np.array([1e-12, -1.0, 1.0, 0.0]), 0.5).round(6)
    array([0.995, 1.005, 0.995, 1.   ])
    """
    kind = str(value.dtype)
    if not any(name in kind for name in ("float16", "float32", "float64")):
        return value
    signs = xp.sign(gradient)
    wide = xp.cast(signs, "float32") if hasattr(xp, "cast") else xp.astype(signs, xp.float32)
    moved = xp.sum(xp.abs(wide))
    least = (NORM / ENTRY) ** 2  # entries: of fewer, each moves by `ENTRY`
    step = wide * (part * NORM / xp.sqrt(xp.where(moved > least, moved, least)))
    dtype = value.dtype
    return value - (xp.cast(step, dtype) if hasattr(xp, "cast") else xp.astype(step, dtype))
