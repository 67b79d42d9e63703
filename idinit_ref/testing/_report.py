"""The verdicts of an oracle: a table, a dictionary for JSON, or JUnit XML."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from ..core.plan import Plan


@dataclass(frozen=True)
class Outcome:
    """The verdict on one property.

    Parameters
    ----------
    property : str
        The name of the property.
    verdict : {"held", "broken", "untested"}
        "untested" if the property cannot be tested with the implementation.
    examples : int
        The number of weights tried, including those of shrinking.
    seconds : float
        The time that this took.
    message : str
        If broken, ``what = got, but should be expected  [call]`` and the snippet; if untested, the
        reason.
    call : str
        The call of the smallest counterexample.
    snippet : str
        Three lines of Python that reproduce it.
    plan : Plan, optional
        The weight of the smallest counterexample.
    dtype : str, optional
        The dtype that it requests.

    Examples
    --------
    >>> Outcome("rank", "untested", message="it is about IDI").message
    'it is about IDI'
    """

    property: str
    verdict: Literal["held", "broken", "untested"]
    examples: int = 0
    seconds: float = 0.0
    message: str = ""
    call: str = ""
    snippet: str = ""
    plan: Plan | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class OracleReport:
    """The verdicts on all properties of one implementation.

    Parameters
    ----------
    name : str
        The name of the implementation.
    outcomes : tuple of Outcome
        One for each property.
    diagnosis : tuple of str
        Known mistakes that reproduce the implementation exactly.

    Examples
    --------
    >>> print(OracleReport("mine", (Outcome("rank", "held", 50, 0.25),)))
    mine: 1 held, 0 broken, 0 untested
      rank         held         50 examples   0.2 s
    """

    name: str
    outcomes: tuple[Outcome, ...]
    diagnosis: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is broken.

        Examples
        --------
        >>> OracleReport("mine", (Outcome("rank", "held"), Outcome("device", "untested"))).ok
        True
        """
        return not self.broken

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """The outcomes that are broken.

        Examples
        --------
        >>> report = OracleReport("mine", (Outcome("rank", "held"), Outcome("exact", "broken")))
        >>> [outcome.property for outcome in report.broken]
        ['exact']
        """
        return tuple(o for o in self.outcomes if o.verdict == "broken")

    def count(self, verdict: str) -> int:
        """Return the number of outcomes with a verdict.

        Parameters
        ----------
        verdict : {"held", "broken", "untested"}
            The verdict; for any other word the number is 0.

        Returns
        -------
        int
            The number of properties.

        Examples
        --------
        >>> OracleReport("mine", (Outcome("rank", "held"), Outcome("device", "held"))).count("held")
        2
        """
        return sum(o.verdict == verdict for o in self.outcomes)

    def __str__(self) -> str:
        verdicts = ("held", "broken", "untested")
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in verdicts)
        lines = [f"{self.name}: {counts}"]
        alike: dict[str, list[Outcome]] = {}
        for o in self.outcomes:
            tried = f"{o.examples:5} examples {o.seconds:5.1f} s  {o.call}"
            detail = o.message if o.verdict == "untested" else tried.rstrip()
            lines.append(f"  {o.property:12} {o.verdict:9} {detail}")
            if o.verdict == "broken":
                alike.setdefault(o.message.partition("\n\n")[0], []).append(o)
        for first, outcomes in alike.items():
            lines += ["", f"{', '.join(o.property for o in outcomes)}: {first}"]
            lines += [f"    {line}" for line in outcomes[0].snippet.splitlines()]
        if self.diagnosis:
            lines += ["", "why:", *(f"    {line}" for line in self.diagnosis)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as numbers, strings and lists, for JSON.

        Returns
        -------
        dict
            ``name``, ``ok``, ``diagnosis`` and ``outcomes``: for each outcome a dict of its fields,
            with the plan's shape instead of the plan, and seconds to the microsecond.

        Examples
        --------
        >>> OracleReport("mine", ()).to_dict()["ok"]
        True
        """
        return {
            "name": self.name,
            "ok": self.ok,
            "diagnosis": list(self.diagnosis),
            "outcomes": [_fields(outcome) for outcome in self.outcomes],
        }

    def junit(self) -> str:
        """Return the report as JUnit XML: a test case for each property.

        Returns
        -------
        str
            The document, with one test suite; characters that XML cannot hold are "?".

        Examples
        --------
        >>> OracleReport("mine", (Outcome("rank", "held"),)).junit().splitlines()[1].strip()
        '<testsuite name="mine" tests="1" failures="0" errors="0" skipped="0" time="0.000">'
        """
        suites, name = ElementTree.Element("testsuites"), _legal(self.name)
        counts = {"tests": len(self.outcomes), "failures": self.count("broken"), "errors": 0}
        counts["skipped"] = self.count("untested")
        about = {"name": name} | {key: str(count) for key, count in counts.items()}
        about["time"] = f"{sum(o.seconds for o in self.outcomes):.3f}"
        suite = ElementTree.SubElement(suites, "testsuite", about)
        for o in self.outcomes:
            about = {"classname": name, "name": o.property, "time": f"{o.seconds:.3f}"}
            case = ElementTree.SubElement(suite, "testcase", about)
            first = _legal(o.message.split("\n", 1)[0])
            if o.verdict == "broken":
                ElementTree.SubElement(case, "failure", message=first).text = _legal(o.message)
            elif o.verdict == "untested":
                ElementTree.SubElement(case, "skipped", message=first)
        ElementTree.indent(suites)
        return ElementTree.tostring(suites, encoding="unicode") + "\n"


def _fields(outcome: Outcome) -> dict[str, Any]:
    fields = vars(outcome) | {"seconds": round(outcome.seconds, 6)}
    plan = fields.pop("plan")
    return fields | {"shape": None if plan is None else list(plan.shape)}


def _legal(text: str) -> str:
    """Replace characters that XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
