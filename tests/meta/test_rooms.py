"""The rooms of the design: who may import whom, held against the real imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import idinit_ref as ir
from docs._rooms import PAGE, listed

pytestmark = pytest.mark.every

ROOT = Path(__file__).parents[2]
CORE = ROOT / "idinit_ref"
ADAPTERS = sorted(path for path in (ROOT / "adapters").iterdir() if path.is_dir())
ROOMS = listed()
LAYERS = {  # of the page's second list: the modules of a room, each after those that it imports
    room: modules
    for room, *modules in map(
        str.split,
        PAGE.read_text().split("```text\n")[2].split("```")[0].replace("\n ", " ").splitlines(),
    )
}


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
            if module == "idinit_ref" and names & set(ir.__all__) - {"errors", "__version__"}:
                found.add(module)
                names -= set(ir.__all__) - {"errors"}
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


def test_every_room_and_every_module_is_on_the_page():
    folders = {path.parent.name for path in CORE.glob("*/__init__.py")}
    assert {path.stem for path in CORE.glob("*.py")} == {"__init__", "errors"}
    adapters = {path.name for path in ADAPTERS}
    assert set(ROOMS) == folders | {"errors", "idinit_ref"} | adapters
    assert set(LAYERS) == folders
    for folder, modules in LAYERS.items():
        inside = {path.stem for path in (CORE / folder).glob("*.py")} - {"__init__"}
        inside |= {path.parent.name for path in (CORE / folder).glob("*/__init__.py")}
        assert sorted(modules) == sorted(inside)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_the_page_says(room):
    assert rooms(room) == ROOMS[room]


def test_every_arrow_leads_to_a_room_above_in_the_list():
    above = set()
    for room, others in ROOMS.items():
        assert others <= above, room
        above.add(room)


@pytest.mark.parametrize("room", LAYERS)
def test_in_a_room_a_module_imports_only_those_before_it(room):
    before = set()
    for module in LAYERS[room]:
        names = [name.split(".") for path in files(f"{room}/{module}") for name in imported(path)]
        beside = {parts[2] for parts in names if parts[:2] == ["idinit_ref", room]}
        assert beside & set(LAYERS[room]) <= before | {module}, module
        # Nor does it ask its own folder, which may import it.
        assert beside <= set(LAYERS[room]), module
        before.add(module)


def test_an_import_is_seen_in_any_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "CORE", tmp_path / "idinit_ref")
    for name in ("idinit_ref/a.py", "idinit_ref/deep/b.py", "adapters/idinit_ref_x/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "idinit_ref/a.py").write_text(
        "from .core.plan import plan\nfrom . import roles, __version__\n"
    )
    (tmp_path / "idinit_ref/deep/b.py").write_text(
        "from ..errors import message\nfrom .. import files\nfrom . import _c\n"
        "from ._d import e\nif e:\n    from ..roles.report import Report\n"
    )
    (tmp_path / "adapters/idinit_ref_x/c.py").write_text(
        "import os, idinit_ref.core.dtypes\nfrom idinit_ref import Plan, plan\n"
        "from idinit_ref import files, errors\nfrom ._errors import z\nimport idinit_ref_y.z\n"
    )
    assert rooms("a") == {"core", "roles"}
    assert rooms("deep") == {"errors", "files", "roles"}
    assert rooms("idinit_ref_x") == {"idinit_ref", "core", "files", "errors", "idinit_ref_y"}


def test_the_arithmetic_knows_nothing_of_plans():
    core = {path.stem: imported(path) for path in (CORE / "core").glob("*.py")}

    def reach(module):
        names = {name.split(".")[2] for name in core[module] if name.startswith("idinit_ref.core.")}
        return {module}.union(*map(reach, names))

    for module in core.keys() - {"plan", "axes", "weights"}:
        assert "plan" not in reach(module)
    assert ROOMS["core"] == {"errors"}


FORMATS = {  # what reads and writes PyTorch's own files, by PyTorch, when such a file is asked for
    "read_torch.py": {"torch"},
    "write_distributed.py": {"torch"},
}


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda p: p.name)
def test_the_core_imports_no_adapter_and_no_framework(path):
    tops = {name.split(".")[0] for name in imported(path)} - FORMATS.get(path.name, set())
    assert not {name for name in tops if name.startswith("idinit_ref_")}
    assert not tops & {"torch", "jax", "tensorflow", "keras", "flax", "equinox", "cupy", "dask"}


@pytest.mark.parametrize("folder", ADAPTERS, ids=lambda p: p.name)
def test_adapters_do_not_import_each_other(folder):
    for path in folder.glob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not {t for t in tops if t.startswith("idinit_ref_")} - {folder.name}


def test_the_arithmetic_fits_on_one_screen():
    text = (CORE / "core" / "pattern.py").read_text().splitlines()
    start, stop = (
        next(i for i, line in enumerate(text) if line.startswith(first))
        for first in ("class Term", "def _shifted_terms")  # the form for study is below
    )
    assert stop - start <= 50


def test_the_page_says_how_large_the_rooms_are_and_names_their_large_modules():
    page = (ROOT / "docs" / "architecture.md").read_text()
    said = re.findall(r"^\| (\w+) \| ([\d,]+) \| (.*) \|$", page, re.MULTILINE)
    adapters = {"PyTorch": "torch", "JAX": "jax", "TensorFlow": "tensorflow"}
    rooms = [path.parent.name for path in (ROOT / "idinit_ref").glob("*/__init__.py")]
    assert sorted(room for room, _, _ in said) == sorted([*rooms, *adapters])
    for room, lines, why in said:
        folder = (
            f"adapters/idinit_ref_{adapters[room]}" if room in adapters else f"idinit_ref/{room}"
        )
        paths = (ROOT / folder).rglob("*.py")
        sizes = {path: len(path.read_text().splitlines()) for path in paths}
        own = sum(sizes.values())
        assert abs(own - int(lines.replace(",", ""))) <= 0.1 * own, (room, own)
        named = set(re.findall(r"`(\w+)`", why))
        assert named >= {path.stem for path, size in sizes.items() if size > 275}, room
        assert named <= {path.stem for path, size in sizes.items() if size > 225}, room
