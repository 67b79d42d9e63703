"""The oracle: runs all properties against one implementation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from ..core.plan import Plan
from ..errors import OptionError, message
from . import _checks as _checks
from . import _signals as _signals
from ._diagnosis import diagnose, explain
from ._examples import Case, WeightCases
from ._property import ALL, Property, snippet
from ._report import OracleReport, Outcome
from ._subject import HOW, Subject, Violation

PROPERTIES = tuple(ALL)
"""The names of all properties, in the order of the checks."""

_SEARCH = 0.75  # the share of the budget for drawn weights; the rest is for large ones


class _Over(BaseException):
    """The time is over. A BaseException, which Hypothesis does not catch."""


@dataclass
class _Failure:
    """A counterexample."""

    finding: Violation
    plan: Plan
    dtype: str | None

    @property
    def size(self) -> tuple[Any, ...]:
        """The sort key: fewest entries, then squarest, then fewest options."""
        p = self.plan
        options = [p.gain != 1, p.eps != 1e-6, p.groups, p.blocks is not None, p.loosen != 0]
        options += [self.dtype is not None, p.tap is not None, p.stride is not None]
        options += [p.form != "pair"]
        entries = prod(p.shape) or 2**62  # an empty weight comes last: it shows little
        return entries, max(p.shape), sum(options), p.shape


@dataclass(eq=False)
class Oracle:
    """The properties bound to one implementation; see :func:`make_oracle`.

    Parameters
    ----------
    weights : WeightCases
        The implementation, and the weights that it supports.
    expect, examples, seed, budget, clock
        As in :func:`make_oracle`, validated.

    Examples
    --------
    >>> from idinit_ref.testing import make_oracle
    >>> import idinit_ref as ir
    >>> oracle = make_oracle(ir.idi, expect=["exact", "rank"], examples=5)
    >>> oracle.properties
    ('exact', 'rank')
    >>> oracle.run().ok
    True
    >>> TestMine = oracle.tests()  # in a file test_*.py, for pytest
    >>> [name for name in dir(TestMine) if name.startswith("test")]
    ['test_exact', 'test_rank']
    """

    weights: WeightCases
    expect: Sequence[str] | None
    examples: int
    seed: int
    budget: float
    clock: Callable[[], float]
    _first: str | None = field(default=None, init=False)  # the error of the first call
    _settled: bool = field(default=False, init=False)

    @property
    def _subject(self) -> Subject:
        return self.weights.subject

    @property
    def name(self) -> str:
        """The name of the implementation.

        Examples
        --------
        >>> from idinit_ref.testing import make_oracle
        >>> import idinit_ref as ir
        >>> make_oracle(ir.idi).name
        'idi'
        """
        return str(self._subject.name)

    def _about(self) -> str:
        """Describe the test in one line: roles, layouts, framework, and the form of a call."""
        roles = " and ".join({"transit": "IDI", "zero": "IDIZ"}[r] for r in self._subject.roles)
        call = self._subject.call(self.weights.smallest)
        where = "" if self._first else f", {self._subject.framework.name}"
        return f"{roles}, layout {' and '.join(self.weights.letters)}{where}; called as {call}"

    @property
    def properties(self) -> tuple[str, ...]:
        """The names of the properties that `run` checks.

        Examples
        --------
        >>> from idinit_ref.testing import make_oracle
        >>> import idinit_ref as ir
        >>> make_oracle(ir.idi, expect=["rank", "transit"]).properties
        ('rank', 'transit')
        """
        return tuple(name for name in PROPERTIES if self.expect is None or name in self.expect)

    def _settle(self) -> None:
        """Make the first call, once: it determines the framework, and shows whether calls work."""
        if not self._settled:
            self._settled = True
            try:
                self._subject.settle(self.weights.smallest)
            except Violation as finding:
                self._first = str(finding)

    def run(
        self, listen: Callable[[str, Any], None] | None = None, *, skip: Collection[str] = ()
    ) -> OracleReport:
        """Check every property, each in about the budget, and diagnose failures.

        Parameters
        ----------
        listen : callable, optional
            Called as ``listen(event, what)`` with ("call", the next call as text), ("about", a
            line that describes the test), ("property", its name) or ("outcome", the `Outcome` of a
            property).
        skip : collection of str
            Properties to leave out.

        Returns
        -------
        OracleReport
            An outcome for each of `properties`. If one is broken, also the diagnosis: known
            mistakes that reproduce the implementation exactly.

        Raises
        ------
        OptionError
            If a property of `expect` cannot be tested with this implementation.

        Examples
        --------
        >>> import numpy as np
        >>> from idinit_ref.testing import make_oracle
        >>> oracle, calls = make_oracle(lambda shape: np.eye(*shape), expect=["transit"]), []
        >>> report = oracle.run(lambda event, what: calls.append(what) if event == "call" else None)
        >>> calls[0], report.outcomes[0].plan.shape
        ('f((1, 1))', (2, 1))
        >>> report.diagnosis
        ('IDI: zeros instead of copies: one diagonal, and nothing below it',)
        """
        tell = listen or (lambda *_: None)
        self._subject.listen = lambda text: tell("call", text)
        self._settle()
        tell("about", self._about())
        outcomes = []
        for name in self.properties:
            if name not in skip:
                tell("property", name)
                outcomes.append(self._outcome(name))
                tell("outcome", outcomes[-1])
        tell("property", "diagnosis")
        broken = [outcome for outcome in outcomes if outcome.verdict == "broken"]
        return OracleReport(self.name, tuple(outcomes), self._diagnosis(broken) if broken else ())

    def _diagnosis(self, broken: Sequence[Outcome]) -> tuple[str, ...]:
        """Return the known mistakes that reproduce the implementation exactly."""
        if self._first is not None:
            call = self._subject.call(self.weights.smallest)
            return (f"the first call failed: {call}; if it should be called otherwise, {HOW}",)
        lines = list(diagnose(self.weights))
        shown = [o for o in broken if o.plan is not None]
        if shown and not lines:
            lines = list(explain(self._subject, cast("Plan", shown[0].plan), shown[0].dtype))
        return tuple(lines)

    def _outcome(self, name: str) -> Outcome:
        """Check one property; if it is broken, find the smallest counterexample."""
        each, start = ALL[name], self.clock()
        why = self.weights.why_not(each)
        if why is not None:
            if self.expect is not None:
                should = f"{self.name} cannot be tested for it: {why}"
                raise OptionError(message("expect", name, should, "leave it out"))
            return Outcome(name, "untested", message=why)
        if self._first is not None:
            call, plan = _call_in(self._first), self.weights.smallest
            return Outcome(name, "broken", 1, self.clock() - start, self._first, call, "", plan)
        tried, failures = self._search(each, start)
        seconds = self.clock() - start
        if not failures:
            return Outcome(name, "held", tried, seconds)
        worst = min(failures, key=lambda failure: failure.size)
        finding, plan, dtype = str(worst.finding), worst.plan, worst.dtype
        code = snippet(self._subject, name, plan, dtype)
        text, call = f"{finding}\n\n{code}", _call_in(finding)
        return Outcome(name, "broken", tried, seconds, text, call, code, plan, dtype)

    def _search(self, each: Property, start: float) -> tuple[int, list[_Failure]]:
        """Try examples until the time is over; return their number and all failures."""
        end, tried = start + _SEARCH * self.budget, 0
        failures: list[_Failure] = []

        def body(case: Case) -> None:
            nonlocal tried
            if tried and self.clock() > end:
                raise _Over
            tried += 1
            plan, dtype = case
            try:
                each.body(self._subject, plan, dtype)
            except Violation as finding:
                failures.append(_Failure(finding, plan, dtype))
                raise

        search = settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
            derandomize=False,
        )(hypothesis.given(self.weights.cases(each))(body))
        try:
            hypothesis.seed(self.seed)(search)()
        except (Violation, _Over):
            pass
        except hypothesis.errors.Unsatisfiable:
            should = f"it should accept a weight for the property {each.name}"
            raise OptionError(message("only", self.weights.only, should, "widen it")) from None
        except hypothesis.errors.Flaky:  # the implementation is not deterministic
            if not failures:
                raise
        end += (1 - _SEARCH) * self.budget
        with suppress(Violation, _Over):
            for plan in () if failures else self.weights.large(each):
                body((plan, None))
        return tried, failures

    def tests(self) -> type:
        """Return a class for pytest with one test for each property that can be tested.

        A test raises the AssertionError of the smallest counterexample.

        Returns
        -------
        type
            The class; its tests take no fixtures. For an implementation that needs fixtures write a
            test: ``report = make_oracle(mine).run(); assert report.ok, str(report)``.

        Examples
        --------
        >>> from idinit_ref.testing import make_oracle
        >>> import idinit_ref as ir
        >>> TestMine = make_oracle(ir.idi, expect=["rank"], examples=5).tests()
        >>> TestMine.__name__, [name for name in dir(TestMine) if name.startswith("test")]
        ('TestIdi', ['test_rank'])
        >>> TestMine().test_rank()
        """

        def make(name: str) -> Callable[[object], None]:
            def test(_: object) -> None:
                outcome = self._outcome(name)
                if outcome.verdict == "broken":
                    raise AssertionError(outcome.message)

            test.__name__ = test.__qualname__ = f"test_{name}"
            test.__doc__ = ALL[name].check.__doc__
            return test

        self._settle()
        names = [
            name
            for name in self.properties
            if self.expect or self._first or self.weights.why_not(ALL[name]) is None
        ]
        title = "".join(filter(str.isalnum, self.name.title()))
        return type(f"Test{title}", (), {f"test_{name}": make(name) for name in names})


def _call_in(text: str) -> str:
    """Return the call at the end of a message."""
    first = text.split("\n", 1)[0]
    return first[first.rindex("  [") + 3 : -1] if first.endswith("]") and "  [" in first else ""
