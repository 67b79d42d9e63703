"""The rooms of the design: who may import whom, held against the real imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import idinit_ref as ir
from docs._rooms import listed

ROOT = Path(__file__).parents[2]
CORE = ROOT / "idinit_ref"
ADAPTERS = sorted(path for path in (ROOT / "adapters").iterdir() if path.is_dir())


def imported(path):
    """The modules that a file imports, in full."""
    package = path.relative_to(ROOT).parent.parts[path.is_relative_to(ROOT / "adapters") :]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = {alias.name for alias in node.names}
            if node.module:
                found.add(module)
                names -= set(ir.__all__) if module == "idinit_ref" else names
            found |= {f"{module}.{name}" for name in names}
    return found


def rooms(room):
    """The rooms that the files of a room import, and of the adapters all."""
    names = [name.split(".") for path in files(room) for name in imported(path)]
    core = {(parts + parts)[1] for parts in names if parts[0] == "idinit_ref"}
    others = {parts[0] for parts in names if parts[0].startswith("idinit_ref_")}
    return (core | others) - {room, "__version__"}


def files(room):
    if room == "idinit_ref":
        return [CORE / "__init__.py"]
    if room.startswith("idinit_ref_"):
        return sorted((ROOT / "adapters" / room).rglob("*.py"))
    return sorted((CORE / room).rglob("*.py")) or [CORE / f"{room}.py"]


def test_there_are_three_adapters():
    names = [path.name for path in ADAPTERS]
    assert names == ["idinit_ref_jax", "idinit_ref_tensorflow", "idinit_ref_torch"]
    assert not (ROOT / "adapters" / "__init__.py").exists()


ROOMS = listed()


def test_every_room_is_on_the_page():
    modules = {path.stem for path in CORE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in CORE.rglob("__init__.py")}  # the core itself is one
    assert set(ROOMS) == modules | folders | {path.name for path in ADAPTERS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_page_says(room):
    assert rooms(room) == ROOMS[room]


def test_an_import_is_seen_in_any_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "CORE", tmp_path / "idinit_ref")
    for name in ("idinit_ref/a.py", "idinit_ref/deep/b.py", "adapters/idinit_ref_x/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "idinit_ref/a.py").write_text(
        "from .plan import plan\nfrom . import rules, __version__\n"
    )
    (tmp_path / "idinit_ref/deep/b.py").write_text(
        "from ..errors import message\nfrom .. import sources\nfrom . import _c\n"
        "from ._d import e\nif e:\n    from ..model import Report\n"
    )
    (tmp_path / "adapters/idinit_ref_x/c.py").write_text(
        "import os, idinit_ref.dtypes\nfrom idinit_ref import Plan, plan\n"
        "from idinit_ref import layout\nfrom ._errors import z\nimport idinit_ref_y.z\n"
    )
    assert rooms("a") == {"plan", "rules"}
    assert rooms("deep") == {"errors", "sources", "model"}
    assert rooms("idinit_ref_x") == {"idinit_ref", "dtypes", "layout", "idinit_ref_y"}


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


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda p: p.name)
def test_adapters_do_not_import_each_other(folder):
    for path in folder.glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not {t for t in tops if t.startswith("idinit_ref_")} - {folder.name}


def test_the_arithmetic_fits_on_one_screen():
    text = (CORE / "pattern.py").read_text().splitlines()
    start, stop = (
        next(i for i, line in enumerate(text) if line.startswith(first))
        for first in ("class Term", "def _shifted_terms")  # the form for study is below
    )
    assert stop - start <= 50
