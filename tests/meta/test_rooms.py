"""The rooms of the design: who may import whom, held against the real imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "idinit_ref"
ADAPTERS = sorted((ROOT / "adapters").iterdir())


def imported(path):
    """The top-level modules and the core's own rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level and path.is_relative_to(CORE):
                base = "idinit_ref." + (node.module or "")
                found |= {base} if node.module else {base + alias.name for alias in node.names}
            elif not node.level:
                found.add(node.module or "")
    return found


def rooms(path):
    return {name.split(".")[1] for name in imported(path) if name.startswith("idinit_ref.")}


def test_there_are_three_adapters():
    names = [path.name for path in ADAPTERS if path.is_dir()]
    assert names == ["idinit_ref_jax", "idinit_ref_tensorflow", "idinit_ref_torch"]
    assert not (ROOT / "adapters" / "__init__.py").exists()


def declared():
    """The rooms and what they import, as the page about the house says."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return {room: set(rest) for room, *rest in map(str.split, block.splitlines())}


ROOMS = declared()


def test_every_room_is_on_the_page():
    assert set(ROOMS) == {path.stem for path in CORE.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_page_says(room):
    assert rooms(CORE / f"{room}.py") - {"__version__"} == ROOMS[room]


def test_the_arithmetic_knows_nothing_of_plans_or_files():
    def reach(room):
        return {room}.union(*(reach(other) for other in ROOMS.get(room, ())))

    for room in ("pattern", "lattice", "layout", "build", "dtypes", "options"):
        assert not reach(room) & {"plan", "graph", "rules", "model", "storage", "export"}
    assert not reach("plan") & {"graph", "rules", "model", "storage", "export", "diagnostics"}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: p.name)
def test_the_core_imports_no_adapter_and_no_framework(path):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not {name for name in tops if name.startswith("idinit_ref_")}
    assert not tops & {"torch", "jax", "tensorflow", "keras", "flax", "equinox", "cupy", "dask"}


@pytest.mark.parametrize("folder", [p for p in ADAPTERS if p.is_dir()], ids=lambda p: p.name)
def test_adapters_do_not_import_each_other(folder):
    for path in folder.glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not {t for t in tops if t.startswith("idinit_ref_")} - {folder.name}


def test_the_arithmetic_fits_on_one_screen():
    text = (CORE / "pattern.py").read_text().splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("class Term"))
    assert len(text) - start <= 50
