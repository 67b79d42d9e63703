"""README and docs: every Python block runs, every name that they mention exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = re.compile("/_(made|build)/")
PAGES = [page for page in (ROOT / "docs").rglob("*.md") if not MADE.search(str(page))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(PAGES)]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page in turn, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}:block {number}", "exec"), names)


def test_the_readme_has_an_example():
    assert len(blocks(ROOT / "README.md")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_of_the_code_exist(page):
    for dotted in re.findall(r"`(idinit_ref\w*(?:\.\w+)+)`", page.read_text()):
        parts = dotted.split(".")
        for split in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:split]))
            except ModuleNotFoundError:
                continue
            for name in parts[split:]:
                found = getattr(found, name)
            break


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        if not target.startswith("_made/"):  # those come when the site is built
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_exist(page):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).exists()


def test_the_readme_has_exactly_two_set_up_lines():
    lines = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    assert "idinit export" in lines[0]
    assert all(word in lines[1] for word in ("pytest", "mypy", "ruff check", "ruff format"))
    assert "grep -m 1 '^python3 .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
