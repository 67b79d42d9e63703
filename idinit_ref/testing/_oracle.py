"""The oracle: all properties against one implementation, in bounded time, and what came out."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import prod
from queue import SimpleQueue
from typing import Any, cast, get_args

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from ..core.kernel import CORNER, Taps
from ..core.layout import SPATIAL
from ..core.noise import LoosenAt
from ..core.options import choice, integer
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ..errors import OptionError, OptionTypeError, message
from ._checks import PROPERTIES, Property, properties, snippet
from ._diagnosis import diagnose, explain
from ._report import Outcome, Report
from ._strategies import plans
from ._subject import HOW, Finding, Raised, Stop, Subject

__all__ = ["FIRST_CALL", "Oracle", "make_oracle"]

_GAINS = (1.0, -0.75, 2.5, 1 / 3, 1 + 2**-8 + 2**-30)  # the last shows two roundings
_EPSILONS = (1e-6, 0.5, -1e-3)
_SEARCH = 0.75  # of the budget; the rest is for the large ones
_SHORTEST, _LONGEST = 0.01, 1e5  # seconds
_LARGE = ((300, 3), (3, 300), (24, 17))  # outputs and inputs beyond what is drawn
FIRST_CALL = 60.0  # seconds; it may load a framework


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
        Seconds for each property. A single call that takes longer is a hang.
    only : callable, optional
        Whether the implementation is meant for a weight, as ``only(plan)``; others are not tried.
    name : str, optional
        What to call the implementation; its own name if left out.
    source : tuple of str, optional
        The module and attribute to import it from, for the snippets.

    Returns
    -------
    Oracle
        Its `run()` gives a `Report`, its `tests()` a class for pytest. Oracles share nothing.

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
    [('transit', 'broken'), ('rank', 'held')]
    >>> print(report.outcomes[0].message.splitlines()[0])
    output 1 of the layer = 0, but should be input 0 of what it sees, -29  [mine((2, 1))]
    """
    if expect is not None:
        expect = _words("expect", expect, PROPERTIES)
    if roles is not None:
        roles = cast("list[Role]", _words("roles", roles, get_args(Role)))
    subject = Subject(implementation, xp, name, tuple(roles or ()), source)
    if len(subject.roles) > 1 and not subject.takes("role"):
        raise OptionError(
            message(
                "roles",
                subject.roles,
                f"{subject.name} has no parameter role, so it makes one of them",
                "test one role at a time",
            )
        )
    choice("taps", taps, get_args(Taps))
    choice("wide", wide, get_args(Wide))
    choice("form", form, get_args(Form))
    letters = [each for each in (layout, conv) if each is not None]
    if not letters:
        raise OptionError(
            message("layout", None, "there should be matrices or kernels to test", "give conv=...")
        )
    axes: dict[str, object] = {"layout": layout, "conv": conv}
    for which, value in axes.items():
        if value is not None and not isinstance(value, str):
            should = "it should be a string of axis letters, or None"
            raise OptionTypeError(message(which, value, should, "e.g. 'OIHW'"))
    for each in letters:
        Plan((1,) * len(each), layout=each)
    if conv is not None and not set(conv) & set(SPATIAL):
        raise OptionError(
            message("conv", conv, "it should have spatial letters D, H, W", "e.g. 'OIHW'")
        )
    if stride is not None:
        if conv is None:
            should = "it is that of kernels, and there are none to test"
            raise OptionError(message("stride", stride, should, "give conv=..., too"))
        stride = Plan((1,) * len(conv), layout=conv, stride=cast("Any", stride)).stride
    integer("examples", examples, low=1)
    integer("seed", seed, low=0)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise OptionTypeError(message("budget", budget, "it should be seconds > 0", "e.g. 3.0"))
    if not _SHORTEST <= budget <= _LONGEST:
        should = f"it should be seconds > 0, from {_SHORTEST} to {_LONGEST:g}"
        raise OptionError(message("budget", budget, should, "e.g. 3.0"))
    chooser: object = only
    if chooser is not None and not callable(chooser):
        should = "it should be a function of a plan, or None"
        raise OptionTypeError(message("only", only, should, "e.g. lambda plan: plan.groups == 1"))
    fixed = {"taps": taps, "wide": wide, "form": form, "stride": stride}
    return Oracle(subject, letters, fixed, expect, examples, seed, float(budget), only)


def _any_of(words: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(words))


def _words(name: str, given: object, options: Sequence[str]) -> list[str]:
    """Return one word or several of some as a list that is not empty."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    if not given:
        raise OptionError(message(name, given, "it should name one at least", "or leave it out"))
    for each in given:
        choice(name, each, options)
    return list(given)


class Oracle:
    """The properties bound to one implementation; made by :func:`make_oracle`.

    Parameters
    ----------
    subject : Subject
        The implementation, and how it is called.
    letters, fixed, expect, examples, seed, budget, only
        As :func:`make_oracle` understood them; `fixed` holds taps, wide, form and stride.

    Examples
    --------
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

    def __init__(
        self,
        subject: Subject,
        letters: Sequence[str],
        fixed: Mapping[str, Any],
        expect: Sequence[str] | None,
        examples: int,
        seed: int,
        budget: float,
        only: Callable[[Plan], bool] | None,
    ) -> None:
        self._subject = subject
        self._letters = letters
        self._fixed = fixed
        self._expect = expect
        self._examples, self._seed, self._budget = examples, seed, budget
        self._only = only
        self._first: str | None = None  # what was wrong with the first call
        self._settled = False
        self._complex: bool | None = None  # whether it makes complex weights

    @property
    def name(self) -> str:
        """What the implementation is called.

        Examples
        --------
        >>> import numpy as np
        >>> make_oracle(lambda shape: np.eye(*shape), name="mine").name
        'mine'
        """
        return str(self._subject.name)

    @property
    def listen(self) -> Callable[[str], None]:
        """What is told of every call that is about to be made, as text; it can be set.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> oracle, calls = make_oracle(ir.idi), []
        >>> oracle.listen = calls.append
        >>> oracle.settle()
        >>> calls
        ["idi((1, 1), layout='OI')"]
        """
        return self._subject.listen

    @listen.setter
    def listen(self, listener: Callable[[str], None]) -> None:
        self._subject.listen = listener

    @property
    def about(self) -> str:
        """What is tested, in one line: roles, layouts, framework, and how it is called.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> make_oracle(ir.idi, conv="OIHW").about
        "IDI, layout OI and OIHW, numpy; called as idi((1, 1), layout='OI')"
        """
        self.settle()
        roles = " and ".join({"transit": "IDI", "zero": "IDIZ"}[r] for r in self._subject.roles)
        call = self._subject.call(self._smallest())
        where = "" if self._first else f", {self._subject.framework.name}"
        return f"{roles}, layout {' and '.join(self._letters)}{where}; called as {call}"

    @property
    def properties(self) -> tuple[str, ...]:
        """The names of the properties that `run` goes through.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> make_oracle(ir.idi, expect=["rank", "transit"]).properties
        ('transit', 'rank')
        """
        return tuple(name for name in PROPERTIES if self._expect is None or name in self._expect)

    def _smallest(self) -> Plan:
        letters, role = self._letters[0], self._subject.roles[0]
        return Plan((1,) * len(letters), role, layout=letters, taps=self._fixed["taps"])

    # Which weights ----------------------------------------------------------------------------

    def _plans(self, role: Role, letters: Sequence[str]) -> st.SearchStrategy[Plan]:
        """Return the weights of some layouts that this implementation can be asked for."""
        takes = self._subject.takes
        one: dict[str, Any] = {"role": role, "blocks": None, "tap": None, "groups": 1}
        one |= {"transposed": False, "loosen": 0.0, "loosen_at": "all", "seed": 0}
        if role == "transit":
            one["gain"] = st.sampled_from(_GAINS) if takes("gain") else 1.0
            one["wide"] = _any_of(Wide) if takes("wide") else self._fixed["wide"]
            if takes("loosen") and takes("seed"):
                one["loosen"] = st.sampled_from([0.0, 0.125])
                one["seed"] = st.integers(0, 2**32)
                if takes("loosen_at"):
                    one["loosen_at"] = _any_of(LoosenAt)
        else:
            one["eps"] = st.sampled_from(_EPSILONS) if takes("eps") else 1e-6
            one["form"] = _any_of(Form) if takes("form") else self._fixed["form"]
        if takes("blocks"):
            del one["blocks"]
        found = []
        for layout in letters:
            more = dict(one)
            kernel = any(c in SPATIAL for c in layout)
            more["layout"] = layout
            if takes("layout"):
                more["layout"] = st.permutations(layout).map("".join)
            if kernel:
                more["taps"] = _any_of(Taps) if takes("taps") else self._fixed["taps"]
                if not takes("stride"):
                    more["stride"] = self._fixed["stride"]
                if takes("tap"):
                    del more["tap"]
            if takes("groups") and kernel:
                more["groups"] = st.integers(1, 3)
                if takes("transposed"):
                    more["transposed"] = st.booleans()
            found.append(plans(**more))
        return st.one_of(found)

    def _cases(self, each: Property) -> st.SearchStrategy[tuple[Plan, str | None]]:
        subject = self._subject
        roles = [role for role in subject.roles if role in each.roles]
        names: list[str | None] = [None]
        if each.name in ("exact", "dtype") and subject.has_dtype:
            names += [name for name in subject.framework.dtypes() if self._has(name)]
        letters = self._kernels if each.name in ("groups", "image") else self._letters
        weights = st.one_of([self._plans(role, letters) for role in roles]).map(each.fit)
        if self._only is not None:
            weights = weights.filter(self._only)
        return st.tuples(weights, st.sampled_from(names))

    @property
    def _kernels(self) -> list[str]:
        return [letters for letters in self._letters if set(letters) & set(SPATIAL)]

    def _has(self, dtype: str) -> bool:
        """Whether to ask for a dtype: complex ones only if they are not refused."""
        if dtype.startswith("complex") and self._complex is None:
            try:
                self._subject.make(self._smallest(), dtype)
                self._complex = True
            except Raised:
                self._complex = False
            except Finding:
                self._complex = True
        return not dtype.startswith("complex") or bool(self._complex)

    def _large(self, each: Property) -> list[Plan]:
        """Return a few weights larger than those that are drawn."""
        if each.name not in _OF_LARGE:
            return []
        found = []
        for role in [role for role in self._subject.roles if role in each.roles]:
            for letters, (m, n) in product(self._letters, _LARGE):
                kernel = any(c in SPATIAL for c in letters)
                sizes = {"O": m, "I": n} | dict.fromkeys(SPATIAL, 2)
                names = ["taps", "stride"] if kernel else []
                names.append("wide" if role == "transit" else "form")
                more = {name: self._fixed[name] for name in names}
                shape = tuple(sizes.get(c, 1) for c in letters)
                plan = each.fit(Plan(shape, role, layout=letters, **more))
                if plan.shape == shape and (self._only is None or self._only(plan)):
                    found.append(plan)
        return found

    def _why_not(self, each: Property) -> str | None:
        """Return why the implementation cannot be asked for a property."""
        if not set(each.roles) & set(self._subject.roles):
            return f"it is about {'IDI' if each.roles == ('transit',) else 'IDIZ'}"
        wide = "truncate" if self._subject.takes("wide") else self._fixed["wide"]
        if (each.name, wide) in _NOT_FOLDED:
            return f"it does not hold for {wide}"
        if each.name == "groups" and self._subject.takes("groups") and not self._kernels:
            return "groups are of convolutions: ask with conv="
        if each.name == "image" and not self._kernels:
            return "it is about kernels: ask with conv="
        taps = self._fixed["taps"]
        if each.name == "image" and taps in CORNER and not self._subject.takes("taps"):
            return f"it does not hold for {taps}"
        return each.needs(self._subject)

    # Running ----------------------------------------------------------------------------------

    def run(self, listen: Callable[[str, str], None] | None = None) -> Report:
        """Check every property, each in at most the budget, and say what is wrong.

        Parameters
        ----------
        listen : callable, optional
            Told as ``listen(event, text)`` of what goes on: ("property", its name), ("call", the
            call that is about to be made), ("outcome", its name).

        Returns
        -------
        Report
            An outcome for each of `properties`; where one is broken, the diagnosis too.

        Raises
        ------
        OptionError
            If a property of `expect` cannot be asked of this implementation.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> events = []
        >>> oracle = make_oracle(ir.idi, expect=["transit", "rank"], examples=5)
        >>> oracle.run(lambda event, text: events.append((event, text))).ok
        True
        >>> [text for event, text in events if event == "outcome"]
        ['transit', 'rank']
        """
        tell = listen or (lambda *_: None)
        self.listen = lambda text: tell("call", text)
        outcomes = []
        for name in self.properties:
            tell("property", name)
            outcomes.append(self.outcome(name))
            tell("outcome", name)
        tell("property", "diagnosis")
        broken = any(outcome.verdict == "broken" for outcome in outcomes)
        return Report(self.name, tuple(outcomes), self.diagnosis(outcomes) if broken else ())

    def diagnosis(self, outcomes: Sequence[Outcome] = ()) -> tuple[str, ...]:
        """Return the known mistakes that give just what the implementation gives.

        Parameters
        ----------
        outcomes : sequence of Outcome
            Of its properties; where no known mistake explains all, the first counterexample among
            them is looked at.

        Returns
        -------
        tuple of str
            A line for each; empty where none is known.

        Examples
        --------
        >>> import numpy as np
        >>> make_oracle(lambda shape: np.eye(*shape)).diagnosis()
        ('IDI: zeros instead of copies: one diagonal, and nothing below it',)
        """
        self.settle()
        found: list[str] = []

        def work() -> None:
            args = self._subject, self._subject.roles, self._letters
            found.extend(diagnose(*args, fixed=self._fixed, only=self._only))
            shown = [o for o in outcomes if o.verdict == "broken" and o.plan is not None]
            if shown and not found:
                found.extend(explain(self._subject, cast("Plan", shown[0].plan), shown[0].dtype))

        if self._first is not None:
            call = self._subject.call(self._smallest())
            return (
                f"already the first call went wrong: {call}; if that is no way to call it, {HOW}",
            )
        self._within(self._budget, work)
        return tuple(found)

    def outcome(self, name: str) -> Outcome:
        """Check one property.

        Parameters
        ----------
        name : str
            One of `properties`.

        Returns
        -------
        Outcome
            Its verdict, and of a broken one the smallest counterexample that was found.

        Raises
        ------
        OptionError
            If it is named in `expect` and cannot be asked of this implementation.

        Examples
        --------
        >>> import numpy as np
        >>> outcome = make_oracle(lambda shape: np.eye(*shape), examples=20).outcome("transit")
        >>> outcome.verdict, outcome.plan.shape
        ('broken', (2, 1))
        """
        choice("property", name, PROPERTIES)
        each, start = properties()[name], time.monotonic()
        self.settle()
        why = self._why_not(each)
        if why is not None:
            if self._expect is not None:
                raise OptionError(
                    message(
                        "expect", name, f"{self.name} cannot be asked for it: {why}", "leave it out"
                    )
                )
            return Outcome(name, "untested", 0, 0.0, why)
        if self._first is not None:
            seconds = time.monotonic() - start
            return Outcome(
                name, "broken", 1, seconds, self._first, _call_in(self._first), "", self._smallest()
            )
        tried, failures = self._search(each)
        seconds = time.monotonic() - start
        if not failures:
            return Outcome(name, "held", tried, seconds)
        finding, plan, dtype = min(failures, key=_size)
        text, code = str(finding), ""
        if plan is not None:
            code = snippet(self._subject, name, plan, dtype)
            text = f"{text}\n\n{code}"
        return Outcome(
            name, "broken", tried, seconds, text, _call_in(str(finding)), code, plan, dtype
        )

    def tests(self) -> type:
        """Return a class for pytest with one test for each property that can be asked.

        A test raises the AssertionError of the smallest counterexample.

        Returns
        -------
        type
            The class; its tests take no fixtures.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> TestMine = make_oracle(ir.idi, expect=["rank"], examples=5).tests()
        >>> TestMine.__name__, [name for name in dir(TestMine) if name.startswith("test")]
        ('TestIdi', ['test_rank'])
        >>> TestMine().test_rank()
        """

        def make(name: str) -> Callable[[object], None]:
            def test(_: object) -> None:
                outcome = self.outcome(name)
                if outcome.verdict == "broken":
                    raise AssertionError(outcome.message)

            test.__name__ = test.__qualname__ = f"test_{name}"
            test.__doc__ = properties()[name].check.__doc__
            return test

        self.settle()
        names = [
            name
            for name in self.properties
            if self._expect or self._first or self._why_not(properties()[name]) is None
        ]
        title = "".join(filter(str.isalnum, self.name.title()))
        return type(f"Test{title}", (), {f"test_{name}": make(name) for name in names})

    def settle(self) -> None:
        """Make the first call: it finds the framework, and whether it answers at all.

        Whatever needs it calls it; from the second time on it does nothing.

        Examples
        --------
        >>> import idinit_ref as ir
        >>> calls = []
        >>> oracle = make_oracle(lambda shape: calls.append(shape) or ir.idi(shape))
        >>> oracle.settle()
        >>> oracle.settle()
        >>> calls
        [(1, 1)]
        """
        if self._settled:
            return
        self._settled = True
        letters = self._letters[0]
        taps = self._fixed["taps"]
        plan = Plan((1,) * len(letters), self._subject.roles[0], layout=letters, taps=taps)

        def first() -> None:
            try:
                self._subject.settle(plan)
            except Finding as finding:
                self._first = str(finding)

        stuck = self._within(max(FIRST_CALL, self._budget), first)
        if stuck is not None:
            self._first = str(stuck)

    def _search(self, each: Property) -> tuple[int, list[tuple[Finding, Plan | None, str | None]]]:
        """Try examples until the time is over, and return how many, and all that failed."""
        end = time.monotonic() + _SEARCH * self._budget
        failures: list[tuple[Finding, Plan | None, str | None]] = []
        tried, current = 0, cast("tuple[Plan | None, str | None]", (None, None))

        def body(case: tuple[Plan, str | None]) -> None:
            nonlocal tried, current
            if time.monotonic() > end and tried:
                raise Stop
            tried += 1
            current = plan, dtype = case
            try:
                each.body(self._subject, plan, dtype)
            except Finding as finding:
                failures.append((finding, plan, dtype))
                raise

        search = hypothesis.seed(self._seed)(
            settings(
                max_examples=self._examples,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                print_blob=False,
                derandomize=False,
            )(hypothesis.given(self._cases(each))(body))
        )

        def work() -> None:
            nonlocal end
            try:
                search()
            except (Finding, Stop):
                pass
            except hypothesis.errors.Unsatisfiable:
                if not tried:
                    should = f"no weight that {each.name} is about should be left out by all"
                    raise OptionError(message("only", self._only, should, "widen it")) from None
            except (hypothesis.errors.FlakyFailure, hypothesis.errors.Flaky):
                if not failures:
                    raise
            end += (1 - _SEARCH) * self._budget
            with suppress(Finding):
                for plan in () if failures else self._large(each):
                    body((plan, None))

        stuck = self._within(self._budget, work)
        if stuck is not None:
            failures.append((stuck, *current))
        return tried, failures

    def _within(self, budget: float, work: Callable[[], None]) -> Finding | None:
        """Do some work in a thread; return a `Finding` if one call takes longer than the budget.

        The work itself looks at the clock between calls. A call that does not come back is left
        behind, with an exception sent to its thread.
        """
        problem: list[BaseException] = []
        done = threading.Event()

        def task() -> None:
            try:
                work()
            except Stop:
                pass
            except BaseException as raised:
                problem.append(raised)
            finally:
                done.set()

        worker = _IDLE.pop() if _IDLE else _Worker()
        worker.tasks.put(task)
        while not done.wait(0.1 * budget):
            text, since = self._subject.busy.get(worker.ident, ("", time.monotonic()))
            if time.monotonic() - since > budget:
                stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
                stop(ctypes.c_ulong(worker.ident), ctypes.py_object(Stop))
                return Finding(text, f"no answer in {budget:g} s", "an array", text)
        _IDLE.append(worker)
        if problem:
            raise problem[0]
        return None


class _Worker:
    """A thread that does one task after the other.

    It is used again, since Hypothesis collects garbage at its first use in every thread, which
    takes long beside a framework.
    """

    def __init__(self) -> None:
        self.tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        thread = threading.Thread(target=self._work, daemon=True)
        thread.start()
        self.ident = cast("int", thread.ident)

    def _work(self) -> None:
        with suppress(Stop):  # it may come late
            while True:
                self.tasks.get()()


_IDLE: list[_Worker] = []


_OF_LARGE = ("exact", "transit", "row_norm", "layout")
_NOT_FOLDED = {("variance", "fold_mean"), ("composition", "fold_rms")}


def _size(failure: tuple[Finding, Plan | None, str | None]) -> tuple[Any, ...]:
    """Order failures: the fewest entries, then the squarest, then the fewest options."""
    _, plan, dtype = failure
    if plan is None:
        return (float("inf"),)
    options = [plan.gain != 1, plan.eps != 1e-6, plan.groups, plan.blocks is not None]
    options += [plan.loosen != 0, dtype is not None, plan.tap is not None]
    options += [plan.stride is not None, plan.form != "pair"]
    entries = prod(plan.shape) or 2**62  # an empty weight tells little
    return entries, max(plan.shape), sum(options), plan.shape


def _call_in(text: str) -> str:
    """Return the call at the end of a message."""
    first = text.split("\n", 1)[0]
    return first[first.rindex("  [") + 3 : -1] if first.endswith("]") and "  [" in first else ""
