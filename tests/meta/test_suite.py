"""How the tests are run: what a missing package means, what a case is called, what is a sample."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import conftest

ROOT = Path(__file__).parents[2]


def because_of(problem, cause=None):
    problem.__cause__ = cause
    return problem


PROBLEMS = {  # what ended a test, and whether that is a missing package
    "absent": (ModuleNotFoundError("no", name="jax"), True),
    "a part of it": (ModuleNotFoundError("no", name="jax.numpy"), True),
    "told by the adapter": (
        because_of(ImportError("pip install"), ModuleNotFoundError("no", name="jax")),
        True,
    ),
    "installed, but hidden": (ModuleNotFoundError("no", name="torch"), False),
    "no package of ours": (ModuleNotFoundError("no", name="jaxx"), False),
    "another error": (AttributeError("no", name="jax"), False),
    "none": (None, False),
}


@pytest.mark.parametrize("ci", ["", "true"], ids=["here", "CI"])
@pytest.mark.parametrize("case", PROBLEMS)
def test_a_missing_package_is_a_skip_with_its_reason_and_in_ci_a_failure(case, ci, monkeypatch):
    monkeypatch.setattr(conftest, "absent", lambda package: package == "jax")
    monkeypatch.setenv("CI", ci)
    problem, skipped = PROBLEMS[case]
    call = SimpleNamespace(excinfo=problem and SimpleNamespace(value=problem))
    report = SimpleNamespace(failed=True, outcome="failed", longrepr="as it was")
    conftest.skip_if_missing(report, call, "test_x.py")
    if skipped and not ci:
        assert report.outcome == "skipped"
        assert report.longrepr[2].startswith("Skipped: jax is not installed: pip install")
    else:
        assert (report.outcome, report.longrepr) == ("failed", "as it was")


@pytest.mark.parametrize("ci", ["", "true"], ids=["here", "CI"])
def test_a_marked_test_is_left_out_before_it_begins(ci, monkeypatch):
    monkeypatch.setattr(conftest, "absent", lambda package: package == "jax")
    monkeypatch.setenv("CI", ci)
    kind = pytest.fail.Exception if ci else pytest.skip.Exception
    for packages, left_out in ((("torch",), False), (("torch", "jax"), True)):
        marks = [SimpleNamespace(args=packages)]
        item = SimpleNamespace(iter_markers=lambda name, marks=marks: marks)
        if left_out:
            with pytest.raises(kind, match="jax is not installed"):
                conftest.pytest_runtest_setup(item)
        else:
            conftest.pytest_runtest_setup(item)


def test_every_package_that_may_be_missing_is_known():
    """Those of all extras but the ones that are in `test`, by the names they are imported by."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        re.match(r"[\w-]+", line)[0]
        for name, lines in project["optional-dependencies"].items()
        for line in lines
        if name in ("torch", "jax", "tensorflow", "export", "orbax", "plot", "dev")
    }
    tools = {"idinit-ref", "tensorflow-cpu", "mypy", "pytest-xdist", "ruff"}
    other = {"dm-haiku": "haiku", "orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
    assert {other.get(name, name.replace("-", "_")) for name in wanted - tools} <= conftest.PACKAGES


CALLS = [
    lambda: int("7"),
    lambda: sum(
        number
        for number in (1, 2)
    ),
]  # fmt: skip


def test_a_case_is_called_by_its_source_or_by_what_it_holds():
    def name(value):
        return conftest.pytest_make_parametrize_id(None, value, "value")

    assert name(CALLS[0]) == 'int("7")'
    assert name(CALLS[1]).startswith("sum( number for number in (1, 2)")
    assert name([1, "a"]) == "[1, 'a']"
    assert name({"eps": 0.5}) == "{'eps': 0.5}"
    assert len(name([1] * 999)) == 60
    assert name([object()]) is None  # an address is another one each time
    assert name("a") is name(3) is None  # pytest's own


def item_of(name, *marks):
    marks = {mark.name: mark for mark in marks}
    item = SimpleNamespace(
        path="test_x.py",
        originalname="test",
        name=name,
        added=[],
        iter_markers=lambda: marks.values(),
        get_closest_marker=marks.get,
        config=SimpleNamespace(getoption={"keyword": "", "cases": 16}.get),
    )
    item.add_marker = item.added.append
    return item


@pytest.mark.parametrize(
    ("marks", "count"),
    [((), 16), ((pytest.mark.cases(3).mark,), 3), ((pytest.mark.every.mark,), 40)],
    ids=["none", "cases", "every"],
)
def test_of_a_large_grid_a_sample_is_run(marks, count, monkeypatch):
    monkeypatch.setattr(pytest, "Function", SimpleNamespace)
    items = [item_of(f"test[{k}]", *marks) for k in range(40)]
    conftest.pytest_collection_modifyitems(items)
    assert sum("nightly" not in item.added for item in items) == count
