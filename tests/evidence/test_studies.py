"""Each study in small comes out as in full; its page holds nothing but what its data say."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from docs.evidence import _data, _study, identity, index
from idinit_ref import plan
from idinit_ref.roles.options import settled

FOLDER = _study.FOLDER


@pytest.mark.nightly
@pytest.mark.parametrize("name", index.STUDIES)
def test_a_study_in_small_comes_out_so(name):
    study = _study.importlib.import_module(f"docs.evidence.{name}")
    rows = _study.run(name, quick=True)
    study.check(rows)
    holds, figure = study.verdict(rows)
    assert re.search(r"\b(holds|hold|shown)\b", holds)
    assert re.search(r"\d", figure)
    assert not re.search(r"\bnan\b|\binf\b", study.page(rows))


@pytest.mark.every
@pytest.mark.parametrize("name", index.STUDIES)
def test_a_page_and_its_figure_are_what_their_data_say(name, tmp_path):
    study, data = _study.importlib.import_module(f"docs.evidence.{name}"), _study.load(name)
    assert not data["quick"]
    study.check(data["rows"])
    cells = study.cells(False, data["rows"])  # what the code of today would measure
    assert [
        {key: row[key] for key in cell} for cell, row in zip(cells, data["rows"], strict=True)
    ] == [json.loads(json.dumps(cell)) for cell in cells]
    figure = _study.write(name, data, tmp_path)
    for file in (f"{name}.md", f"{name}.json"):
        assert (tmp_path / file).read_text() == (FOLDER / file).read_text(), file
    number = re.compile(r"-?\d+\.\d+")  # of a place, which another machine may round otherwise
    old, new = ((folder / f"{name}.svg").read_text() for folder in (FOLDER, tmp_path))
    assert number.sub("", old) == number.sub("", new)
    places = [list(map(float, number.findall(text))) for text in (old, new)]
    assert places[0] == pytest.approx(places[1], abs=0.01)
    assert any(axes.has_data() and axes.get_label() != "<colorbar>" for axes in figure.axes)


def test_the_first_page_is_what_the_data_say():
    assert (FOLDER / "index.md").read_text() == index.page()


def test_the_advice_of_the_first_page_follows_the_data():
    """In its order; where the data say otherwise, the advice has to."""
    studies = {n: _study.importlib.import_module(f"docs.evidence.{n}") for n in index.STUDIES}
    rows = {name: _study.load(name)["rows"] for name in index.STUDIES}
    score = studies["residual"]._score
    deep = {m: score(rows["residual"], m, 128) for m in ("xavier", "kaiming", "idinit", "fixup")}
    assert max(deep["xavier"], deep["kaiming"]) < 0.3 < deep["idinit"] < deep["fixup"]
    for against in studies["transformer"].compared(rows["transformer"]).values():
        assert (against["gpt2"], against["rezero"]) == ("ahead of", "behind")
    for net in ("resnet, width 64, BN", "resnet, width 32, BN"):
        found = identity.effects(rows["identity"], net)
        assert identity.said(found["default instead of IDI, IDIZ"]) == "better", net
    chains = studies["chains"]
    for deep in (100, 1000):  # as depth.md says, too
        ways = ("IDI", "orthogonal")
        ours, critical = (chains._scores(rows["chains"], "tanh", deep, way) for way in ways)
        assert _study.stands(critical, ours) == "ahead of"
    for act in ("gelu", "silu"):
        ways = {way for way in chains.WAYS if chains._learns(rows["chains"], act, way)}
        assert ways == {"IDI, skips"}
    for act in ("relu", "tanh"):
        assert studies["depth"]._reached(rows["depth"], act) == 10000
    counts = studies["convolution"]._beside_center(rows["convolution"])
    assert all(counts[taps][1] == 0 for taps in ("outward", "diagonal"))
    assert all(counts[taps][1] > 0 for taps in ("channel_major", "spatial_major"))
    assert studies["spread"].verdict(rows["spread"]).holds.partition("\n")[0].endswith("not shown")
    assert all(row["healthy"] for row in rows["real"])


def test_what_pages_say_of_orthogonal_weights_follows_the_data():
    rows = _study.load("identity")["rows"]
    larger = ["transformer, width 256", "transformer, width 128"]
    assert identity.nets_where(rows, "better") == larger
    for net in larger:
        default = identity.effects(rows, net)["default instead of IDI, IDIZ"]
        assert identity.said(default) == "better", net
    assert not identity.nets_where(rows, "worse")
    for page in ("README.md", "docs/choices.md", "docs/evidence/index.md"):
        assert "two nets of nine" in " ".join((FOLDER.parents[1] / page).read_text().split()), page


def test_the_table_of_defaults_is_that_of_the_choices_and_of_the_code():
    choices = (FOLDER.parent / "choices.md").read_text()
    questions = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| [^|]+ \|$", choices, re.MULTILINE)
    told = {question for question, *_ in index.DEFAULTS}
    assert {*questions[1:]} <= told
    options = {name: each.default for name, each in inspect.signature(plan).parameters.items()}
    options |= settled({}) | {"wide": options["wide"]}
    values = [re.match(r"(\w+) = ([\w.-]+)", default) for _, default, *_ in index.DEFAULTS]
    for found in filter(None, values):
        value = options[found[1]]
        assert found[2] == (format(value, "g") if isinstance(value, float) else value)
    assert {"gain", "eps", "form", "taps", "head", "norms"} <= {v[1] for v in values if v}


def test_what_is_said_of_the_larger_transformers_follows_the_data():
    """Most comes from queries and keys; at the larger rate the default is no better."""
    every = _study.load("identity")["rows"]
    for net in ("transformer, width 256", "transformer, width 128"):
        found = identity.effects(every, net)
        whole, queries = (
            found[f"orthogonal in{name}"].value
            for name in ("side instead of IDI", " qk alone, IDIZ")
        )
        assert 0.8 * whole > queries
        assert found["orthogonal in qk alone, IDIZ"].shown
    rows = _study.pick(every, net="transformer, width 128")
    tuned = {row["rate"]: row["score"] for row in rows
             if row["start"] == "IDI, IDIZ" and row["seed"] in identity.TUNE}  # fmt: skip
    assert tuned[0.001] == pytest.approx(tuned[0.003], abs=0.001)
    at_larger = {
        name: identity.said(found[f"{name} instead of IDI, IDIZ, larger rate"])
        for name in ("orthogonal, IDIZ", "rezero", "default")
    }
    assert [*at_larger.values()] == ["better", "better", "not shown"]


def test_every_study_is_on_the_first_page():
    studies = {
        path.stem
        for path in FOLDER.glob("[!_]*.py")
        if re.search(r"^def verdict\(", path.read_text(), re.MULTILINE)
    }
    assert studies == {*index.STUDIES}


# The harness --------------------------------------------------------------------------------------

TOY = """
from docs.evidence import _study
TITLE, CLAIM = "A toy", "more is more"
MADE = []
def cells(quick, rows):
    settings = [{"method": name} for name in "ab"]
    return _study.swept(settings, [0.1, 1.0, 10.0], rows, tune=[100], seeds=[0, 1], score="got")
def measure(method, rate, seed):
    MADE.append((method, rate, seed))
    if len(MADE) == STOP:
        raise KeyboardInterrupt
    return {"got": -abs(rate - (1.0 if method == "a" else 10.0)) + seed / 1000}
def verdict(rows):
    return _study.Verdict("holds", str(len(rows)))
def page(rows):
    found = (_study.judged(rows, [0, 1], method=name) for name in "ab")
    return _study.table("mr", [[row["method"], row["rate"]] for rows in found for row in rows])
def draw(rows, figure):
    figure.subplots().plot([row["got"] for row in rows])
def check(rows):
    assert rows
"""


@pytest.fixture
def toy(monkeypatch):
    """A study that stops itself at its 8th measurement, the first time."""
    module = _study.importlib.import_module("types").ModuleType("docs.evidence.toy")
    exec(f"STOP = 8\n{TOY}", module.__dict__)
    monkeypatch.setitem(_study.sys.modules, "docs.evidence.toy", module)
    monkeypatch.setattr(_study, "_source", lambda name: "1")
    return module


def test_a_stopped_study_goes_on_and_writes_all_or_nothing(toy, tmp_path, capsys):
    command = ["--out", str(tmp_path), "--workers", "1"]
    with pytest.raises(SystemExit, match="goes on"):
        _study.main("toy", command)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.rows.jsonl"]
    with (tmp_path / "toy.rows.jsonl").open("a") as log:
        log.write('[{"method": "a", "ra\n[{"method": "a"}, {"got": [1.0]')  # cut off
    _study.main("toy", command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.json", "toy.md", "toy.svg"]
    made = [job for number, job in enumerate(toy.MADE, 1) if number != toy.STOP]
    assert len(made) == len(set(made)) == 2 * 3 + 2 * 2
    data = json.loads((tmp_path / "toy.json").read_text())
    best = {(row["method"], row["rate"]) for row in data["rows"] if row["seed"] != 100}
    assert best == {("a", 1.0), ("b", 10.0)}
    assert (tmp_path / "toy.md").read_text() == _study.page("toy", data)


def test_data_of_other_settings_have_no_page(toy, tmp_path, monkeypatch):
    toy.RATE = 0.1
    data = {"settings": _study.settings("toy"), "rows": []}
    toy.RATE = 0.2
    with pytest.raises(SystemExit, match=r"toy\.json was measured with another RATE; run"):
        _study.page("toy", data)


def test_a_run_by_nobody_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        _study.main("spread", ["--quick", "--workers", "0", "--out", str(tmp_path)])
    assert "pass 1 or more" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_ends_a_run_of_several_processes(tmp_path):
    """And says how to get it, once."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is none')")
    script = tmp_path / "script.py"
    script.write_text(f"""if __name__ == "__main__":
    import sys, types
    from docs.evidence import _study
    module = sys.modules["docs.evidence.toy"] = types.ModuleType("docs.evidence.toy")
    exec({TOY!r}, module.__dict__)
    _study._source = lambda name: "1"
    _study.run("toy", quick=True, workers=2)
""")
    path = os.pathsep.join(map(str, (tmp_path, FOLDER.parents[1])))
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert run.stderr.count("pip install") == 1
    assert "there is none" in run.stderr


def test_what_another_code_measured_does_not_count(toy, tmp_path, monkeypatch, capsys):
    log = tmp_path / "toy.rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        _study.run("toy", quick=False, log=log)
    monkeypatch.setattr(_study, "_source", lambda name: "2")
    _study.run("toy", quick=False, log=log)
    assert len(toy.MADE) == 8 + 10


WAYS = {  # of changing the toy: what was, what is
    "docstring": ("rate, seed):\n", "rate, seed):\n    'It.'\n"),
    "comment": ("def cells", "# all of them\ndef cells"),
    "claim": ("more is more", "less is more"),
    "page": ("mr", "ab"),
    "import": ("TITLE,", "from idinit_ref import plan\nTITLE,"),
    "words": ("def page", "WORDS = 'a b'\ndef page"),
    "constant": ("MADE = []", "MADE = [()]"),
    "number": ("seed / 1000", "seed / 100"),
    "cells": ("10.0], rows", "9.0], rows"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_measured_counts_as_long_as_the_code_that_measures_is_the_same(
    way, tmp_path, monkeypatch
):
    monkeypatch.setattr(_data, "FOLDER", tmp_path)
    old, new = WAYS[way]
    assert old in TOY
    digests = []
    for text in (TOY, TOY.replace(old, new)):
        (tmp_path / "toy.py").write_text(text)
        digests.append(_data.code_digest([tmp_path / "toy.py"]))
    assert (digests[0] == digests[1]) == (way not in ("constant", "number", "cells"))


def test_a_number_that_is_none_is_refused(toy):
    toy.measure = lambda **cell: {"got": float("nan")}
    with pytest.raises(ValueError, match="say None"):
        _study.run("toy", quick=True)


def test_a_missing_package_gives_the_line_that_installs_it():
    with pytest.raises(SystemExit, match=r'pip install .*"\.\[evidence\]"'):
        _study.need("no_such_package")


def test_an_effect_is_that_of_student_s_t():
    """Of the pairs 1, 2, 3: mean 2, error 1/sqrt(3), and t of 2 degrees 4.303."""
    found = _study.effect([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.value == 2.0
    assert found.half == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert not found.shown
    assert str(found) == "+2.000 ± 2.484, not shown (least seen 3.264)"
    assert _study.effect([1.0, 1.1], [0.0, 0.1]).shown
    assert not _study.effect([1.0], [0.0]).shown


def test_the_least_effect_shows_four_times_of_five():
    """Drawn: pairs whose mean is that effect, and whose deviation is 1."""
    known = _study.effect([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]).least
    drawn = np.random.default_rng(0).normal(known, 1.0, (200_000, 3))
    halves = 4.3027 * drawn.std(1, ddof=1) / 3**0.5
    assert np.mean(abs(drawn.mean(1)) > halves) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([0.0, 1e-5, 2e-5], "+0.00001 ± 0.00002, not shown (least seen 0.00003)"),
        ([0.1, 0.10001, 0.1], "+0.10000 ± 0.00001"),
        ([0.0, 0.0, 0.0], "+0.000 in every pair, not shown"),
        ([0.25, 0.25, 0.25], "+0.250 in every pair"),
    ],
    ids=["small", "small and shown", "none", "the same"],
)
def test_no_effect_reads_as_an_interval_of_nothing(pairs, said):
    assert str(_study.effect(pairs, [0.0] * 3)) == said


def test_a_verdict_of_several_claims_has_a_line_for_each(toy):
    rows = [{"method": n, "rate": 1, "seed": 0, "got": 1, "cpu_s": 0} for n in "ab"]
    data = {"settings": _study.settings("toy"), "rows": rows}
    data |= dict.fromkeys(("date", "machine", "versions"), "")
    assert "\n\n**Verdict: holds.**\n\n* 2\n" in _study.page("toy", data)
    toy.verdict = lambda rows: _study.Verdict("one: holds\ntwo: not shown", "1; 2")
    lines = [
        "**Verdict:**",
        "",
        "* **one: holds**",
        "* **two: not shown**",
        "",
        "Figures:",
        "",
        "* 1",
    ]
    assert "\n".join(lines) in _study.page("toy", data)


def test_means_are_told_apart_by_two_standard_errors():
    near, far = [0.5, 0.6, 0.7], [0.9, 1.0, 1.1]  # variance 0.01 each: the error is sqrt(0.02 / 3)
    assert _study.stands(far, near) == "ahead of"
    assert _study.stands(near, far) == "behind"
    assert _study.stands(near, [0.66, 0.76, 0.86]) == "level with"
    assert _study.stands([0.0], far) == "level with"


def test_the_rate_of_equal_scores_is_the_smallest():
    rows = [{"rate": rate, "got": got} for rate, got in ((1.0, 2.0), (0.1, 2.0), (10.0, 1.0))]
    assert _study.best_rate(rows, "got") == 0.1
