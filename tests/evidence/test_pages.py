"""Pages of measurements that are no studies: each says what its data say, and nothing else."""

from __future__ import annotations

import ast
import importlib
import re
import sys

import pytest

from docs.evidence import _data, index, mutation
from docs.evidence._data import FOLDER, load, save


def text_of(name, data):
    if name == "mutation":
        return mutation.page(data, mutation.reasons((FOLDER / "mutation.md").read_text()))
    return importlib.import_module(f"docs.evidence.{name}").page(data)


OTHERS = ("export", "mutation", "oracle", "ranks", "zoo")


@pytest.mark.parametrize("name", OTHERS)
def test_a_page_is_what_its_data_say(name, tmp_path):
    data = load(name)
    assert data.get("size", "full") == "full"
    assert (FOLDER / f"{name}.md").read_text() == text_of(name, data)
    save(name, data, "", tmp_path)
    assert (tmp_path / f"{name}.json").read_text() == (FOLDER / f"{name}.json").read_text()


@pytest.mark.parametrize("name", OTHERS)
def test_a_page_shows_what_changes_in_its_data(name):
    """So that the test above can fail."""
    data = load(name)
    text = text_of(name, data)
    row = data["rows"][0]
    row |= {key: value * 3 for key, value in row.items() if isinstance(value, (int, float))}
    row |= {key: {"rank": "held"} for key, value in row.items() if isinstance(value, dict)}
    assert text_of(name, data) != text


def test_every_page_has_its_data():
    """But for the one that is made of the studies' data."""
    pages = {path.stem for path in FOLDER.glob("*.md")}
    assert pages == {*index.STUDIES, *OTHERS, "performance", "index", "gpu"}
    assert {path.stem for path in FOLDER.glob("*.json")} == pages - {"index"}


def test_every_template_is_filled_somewhere():
    tests = FOLDER.parents[1] / "tests"
    paths = [*FOLDER.glob("*.py"), *tests.glob("benchmarks/*.py"), *tests.glob("gpu/*.py")]
    named = {n for path in paths for n in re.findall(r'filled\(\s*"(\w+)"', path.read_text())}
    assert named == {path.name.removesuffix(".md.in") for path in _data.TEMPLATES.iterdir()}


def test_the_words_of_a_page_stand_in_its_template():
    """And not in an f-string."""
    strings = [
        (path.name, node)
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr)
    ]
    parts = [(name, part) for name, node in strings for part in node.values]
    words = [(name, part) for name, part in parts if isinstance(part, ast.Constant)]
    assert not [f"{name}:{part.lineno}" for name, part in words if len(part.value) > 200]


def test_what_was_not_run_has_no_page(tmp_path, monkeypatch):
    monkeypatch.setattr(_data, "FOLDER", tmp_path)
    export = importlib.import_module("docs.evidence.export")
    monkeypatch.setattr(sys, "argv", ["export", "--render"])
    with pytest.raises(SystemExit, match=r"no export\.json yet; a run"):
        export.main()


def test_data_that_were_cut_off_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(_data, "FOLDER", tmp_path)
    (tmp_path / "export.json").write_text('{"rows": [')
    with pytest.raises(SystemExit, match=r"export\.json is no JSON \(.*\); a run writes it anew"):
        load("export")


def test_every_survivor_of_a_mutation_has_its_reason():
    found = mutation.reasons((FOLDER / "mutation.md").read_text())
    survivors = load("mutation")["survivors"]
    assert {(row["file"], row["line"], row["change"]) for row in survivors} == found.keys()
    assert all(found.values())


def test_a_survivor_without_a_reason_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mutation, "FOLDER", tmp_path)
    monkeypatch.setattr(
        mutation, "save", lambda name, data, text: (tmp_path / "new").write_text(text)
    )
    line = {"file": "a.py", "number": 3, "line": "x | 1", "change": "| to &"}
    data = {
        "date": "today",
        "commit": "0000000",
        "limit": 75,
        "memory": 16 * 10**9,
        "rows": [{"file": "a.py", "possible": 9, "mutants": 4, "survivors": 1, "late": 0}],
        "survivors": [line],
    }
    known = {("a.py", "x | 1", "| to &"): "a | b hold", ("b.py", "y", "1 to 2"): "gone"}
    (tmp_path / "mutation.md").write_text(mutation.page(data, known))
    assert mutation.write(data)
    assert r"a \| b hold" in (tmp_path / "new").read_text()
    assert mutation.reasons((tmp_path / "new").read_text()) == {
        ("a.py", "x | 1", "| to &"): "a | b hold"
    }
    data["survivors"].append({**line, "change": "1 to 2"})
    assert not mutation.write(data)
    assert capsys.readouterr().out == "no reason: a.py:3 x | 1: 1 to 2\n"
