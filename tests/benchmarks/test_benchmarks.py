"""The benchmarks run, and the page has what they measure. Nothing here looks at a time."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest

from benchmarks import performance, roles
from benchmarks.performance import GROUPS, TINY, Claim, Ratio

ALWAYS = [group for group in GROUPS if group.needs is None]
SMALLEST = [  # of NumPy and PyTorch: run each time
    min((each for each in ALWAYS if each.library == library), key=lambda each: prod(each.shape))
    for library in ("NumPy", "PyTorch")
]


def rows(text):
    """What the two tables of a page compare: the first four cells of each line."""
    found = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| .*s \|", text, re.MULTILINE
    )
    return [row for row in found if row[2] != "ours" and not re.search(r"\d [mu]s$", row[2])]


def expected():
    """The same, from the groups: first all with a floor, then all peers."""
    return [
        (group.library, group.weight, claim.ours, claim.other)
        for claims in ("claims", "peers")
        for group in GROUPS
        for claim in getattr(group, claims)
    ]


def made_up(group):
    """Times of a group in which ours takes twice as long as any other."""
    pairs = group.claims + group.peers
    return {claim.other: [1.0, 1.0] for claim in pairs} | {c.ours: [2.0, 2.0] for c in pairs}


def page_of(results, curves):
    return performance.page(results, curves, performance.about(0.0, 60.0, quick=True))


CURVES = {
    title: {name: {power: 2.0**power for power in range(6, 25)} for name in names}
    for title, (_, names) in performance.CURVES.items()
}


def test_the_page_has_every_row_of_the_code_in_order():
    assert len(expected()) > 100
    assert rows(performance.PAGE.read_text()) == expected()
    assert rows(page_of([(group, made_up(group)) for group in GROUPS], CURVES)) == expected()


def test_the_page_is_what_its_data_say():
    assert performance.PAGE.read_text() == performance.page(*performance.load())
    assert all(len(times) >= 20 for _, found in performance.load()[0] for times in found.values())


def test_without_data_there_is_no_page_to_render(monkeypatch, tmp_path):
    monkeypatch.setattr(performance._data, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["performance.py", "--render"])
    with pytest.raises(SystemExit, match=r"no performance\.json yet"):
        performance.main()


def test_times_of_another_weight_have_no_page(monkeypatch):
    data = performance._data.load("performance")
    data["rows"][:2] = data["rows"][1::-1]
    monkeypatch.setattr(performance._data, "load", lambda name: data)
    with pytest.raises(SystemExit, match=r"no PyTorch 4096x4096 where it was"):
        performance.load()


def test_the_page_has_its_figure_and_all_curves():
    text, figure = performance.PAGE.read_text(), performance.FIGURE.read_text()
    assert f"]({performance.FIGURE.name})" in text
    for title, (_, names) in performance.CURVES.items():
        assert title in figure
        for name in names:
            assert f"\n| {title} | {name} | " in text
            assert name in figure


def test_the_limits_are_those_that_were_set():
    limits = {(g.library, g.weight, c.other, c.limit) for g in GROUPS for c in g.claims if c.limit}
    linear = ["4096x4096", "8192x2048", "2048x8192"]
    depthwise = "4096x1x3x3 groups=4096"
    assert limits == {
        *(("PyTorch", weight, "zero_", 1.10) for weight in linear),
        *(("PyTorch", weight, "zero_", 1.25) for weight in ("512x512x3x3", depthwise)),
        *((f"PyTorch, {how}", "512x512x3x3", "zero_", 1.25) for how in ("8 in turn", "one thread")),
        ("PyTorch", "16x16", "eye_", 5.0),
        *(("NumPy", weight, "np.empty + fill", 1.10) for weight in (*linear, "512x512x3x3")),
        *(("JAX, jit", weight, "jnp.zeros", 1.25) for weight in linear),
        ("JAX, jit", "3x3x512x512", "jnp.zeros", 1.35),
        ("JAX, jit", "8192x2048 layout=OI", "jnp.zeros", 1.25),
        ("JAX, jit", "512x512x3x3 layout=OIHW", "jnp.zeros", 1.35),
        *(("Keras", weight, "Zeros()", 1.5) for weight in (*linear, "3x3x512x512")),
    }


@pytest.mark.every
@pytest.mark.parametrize(
    "group",
    [
        pytest.param(group, marks=[] if group in SMALLEST else pytest.mark.nightly)
        for group in ALWAYS
    ],
    ids=lambda group: f"{group.library} {group.weight}",
)
def test_every_group_runs(group):
    assert len(set(group.claims)) == len(group.claims)
    assert len(set(group.peers)) == len(group.peers)
    [(same, times)] = performance.run_groups(TINY, (group,))
    assert same is group
    assert {name for c in group.claims + group.peers for name in c[:2]} == set(times)
    assert all(seconds > 0 for found in times.values() for seconds in found)
    assert {len(found) for found in times.values()} == {TINY.rounds}


@pytest.mark.nightly
def test_cost_over_size_is_measured():
    curves = performance.run_curves(TINY)
    assert curves.keys() == performance.CURVES.keys()
    for found in curves.values():
        assert all(list(curve) == [6, 7, 8, 9] for curve in found.values())


def test_all_take_turns_in_shuffled_order():
    ran = []
    contestants = {name: lambda name=name: ran.append(name) for name in "abc"}
    effort = performance.Effort(rounds=20, seconds=0.0, shortest=0.0, largest=6)
    times = performance.measure(contestants, effort, random.Random(0))
    assert ran[::2] == ran[1::2]  # each once to wake up, and then for the clock
    assert ran[:12:2] == list("aabbcc")  # to see how long one takes, then many
    turns = ["".join(ran[k : k + 6 : 2]) for k in range(12, len(ran), 6)]
    assert len(turns) == 20
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 3
    assert {len(found) for found in times.values()} == {20}


def test_verdicts():
    group = GROUPS[0]._replace(
        claims=(Claim("a", "z", 1.5), Claim("b", "z", 1.5), Claim("b", "z", None)),
        peers=(Claim("a", "z", None), Claim("b", "z", None), Claim("z", "b", None)),
    )
    times = {"z": [1.0, 2.0, 4.0], "a": [1.0, 3.0, 4.0], "b": [2.0, 4.0, 8.0]}
    limits = [row[-4:] for row in performance.limit_rows([(group, times)])]
    assert limits == [
        ("1.00", "1.00 to 1.25", "1.50", "kept"),
        ("2.00", "2.00 to 2.00", "1.50", "**NOT KEPT**"),
        ("2.00", "2.00 to 2.00", "none", ""),
    ]
    found = [row[-1] for row in performance.peer_rows([(group, times)])]
    assert found == ["alike", "**SLOWER**", "faster"]


def test_a_ratio_is_of_the_same_round():
    assert performance.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 1.0]) == Ratio(2.0, 2.0, 4.0)


def test_the_slope_of_a_line_is_one():
    assert performance.slope({power: 3e-9 * 2.0**power for power in range(29)}) == (
        pytest.approx(1.0)
    )
    assert performance.slope(dict.fromkeys(range(29), 1.0)) == pytest.approx(0.0)
    assert performance.slope({performance.FIT_FROM: 1.0}) is None


def test_without_pytest_benchmark_timed_is_refused_in_a_line_but_can_be_imported(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "benchmarks.timed", raising=False)
    timed = importlib.import_module("benchmarks.timed")
    with pytest.raises(pytest.UsageError, match=r"pip install .*\[benchmarks\]"):
        timed.pytest_generate_tests(None)


@pytest.mark.nightly
def test_pytest_benchmark_runs_every_contestant():
    """Once each, and no time is looked at; needs the extra `benchmarks`."""
    timed = str(Path(__file__).with_name("timed.py"))
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", timed]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    assert f"{sum(len(group.names) for group in GROUPS)} passed" in run.stdout


@pytest.mark.nightly
def test_the_command_prints_the_page(tmp_path):
    """Needs the extra `benchmarks`; it fails, and is not skipped, without."""
    command = [sys.executable, "-W", "ignore", str(Path(performance.__file__)), "--quick"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert rows(run.stdout) == expected()
    performance.plot(CURVES, tmp_path / "figure.svg")
    assert "elements" in (tmp_path / "figure.svg").read_text()


@pytest.mark.every
@pytest.mark.parametrize("name", roles.SHAPES)
def test_every_shape_of_a_graph_grows(name):
    small, large = (roles.SHAPES[name](n) for n in (64, 128))
    assert len(small.nodes) < len(large.nodes)
    assert roles.explain_roles(small).keys() == set(small.weights)


@pytest.mark.every
@pytest.mark.parametrize("how", roles.TORCH)
def test_every_dense_model_is_traced(how):
    edges, took = roles.by_torch(6, roles.traced(how))
    assert edges > 6
    assert took.keys() == {"trace", "rule", "init_"}


def test_sizes_double_until_one_takes_too_long():
    measure = {64: 0.25, 128: 1.0, 256: 4.0}
    found = list(roles.measured(lambda n: (n, {"rule": measure[n]}), 512, 3.0))
    assert [line.split() for line in found] == [
        ["64", "64", "rule", "0.250", "s"],
        ["128", "128", "rule", "1.000", "s", "(2.00)"],
        ["256", "256", "rule", "4.000", "s", "(2.00)"],
    ]
