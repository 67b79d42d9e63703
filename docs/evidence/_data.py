"""The results of a run: the figures in NAME.json, and the page NAME.md, written from them alone."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"


def machine() -> str:
    """Return processor, memory and system of this machine, for the pages."""
    file, name = Path("/proc/cpuinfo"), platform.machine()
    if file.exists():
        lines = [line for line in file.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(": ")[2] if lines else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{os.cpu_count()} cores ({name}), {memory / 1e9:.0f} GB of memory, "
        f"{platform.system()} {platform.release().partition('-')[0]}"
    )


def _code(path: Path) -> str:
    """Return the syntax tree of a file without comments and docstrings.

    Of a study only ``cells``, ``measure`` and all that they use: the rest may change.
    """
    tree = ast.parse(path.read_text())
    if path.parent == FOLDER and not path.name.startswith("_"):
        tree.body = _used([one for node in tree.body for one in _apart(node)], {"cells", "measure"})
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            del node.body[: ast.get_docstring(node) is not None]
    return ast.dump(tree)


def _apart(node: ast.stmt) -> list[ast.stmt]:
    """Return a statement; an import as one statement for each name."""
    match node:
        case ast.Import(names):
            return [ast.Import([name]) for name in names]
        case ast.ImportFrom(module, names, level):
            return [ast.ImportFrom(module, [name], level) for name in names]
    return [node]


def _used(body: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """Return the statements that define these names, and those that they use in turn."""
    used: list[ast.stmt] = []
    while new := [node for node in body if node not in used and _defined(node) & names]:
        used += new
        names |= {each.id for node in new for each in ast.walk(node) if isinstance(each, ast.Name)}
    return [node for node in body if node in used]


def _defined(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    match node:
        case ast.FunctionDef(name) | ast.ClassDef(name):
            return {name}
        case ast.Import([alias]) | ast.ImportFrom(_, [alias]):
            return {(alias.asname or alias.name).partition(".")[0]}
    names = (each for each in ast.walk(node) if isinstance(each, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def code_digest(paths: Iterable[Path], *more: str) -> str:
    """Return a digest of code. A stopped run goes on if it is the same."""
    return hashlib.sha256("\n".join([*map(_code, sorted(paths)), *more]).encode()).hexdigest()


def filled(name: str, /, **values: object) -> str:
    """Return the page of templates/NAME.md.in with these values."""
    return (TEMPLATES / f"{name}.md.in").read_text().format(**values)


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows) + "\n"


def kept(good: bool) -> str:
    """Return the verdict on a limit."""
    return "kept" if good else "NOT KEPT"


def load(name: str) -> dict[str, Any]:
    """Return the data of the last full run."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there is no {path.name} yet; a run of the command writes it")
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except ValueError as problem:
        raise SystemExit(f"{path.name} is no JSON ({problem}); a run writes it anew") from None
    return data


def save(name: str, data: dict[str, Any], page: str, folder: Path = FOLDER) -> None:
    """Write page and data, whose ``rows`` have a line each; a file appears when it is complete."""
    from idinit_ref.files import whole_file  # late: mutation.py takes it from its copy

    form: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False}
    lines = ",\n".join(json.dumps(row, **form) for row in data["rows"])
    rest = json.dumps({**data, "rows": []}, indent=1, **form)
    with whole_file(folder / f"{name}.json") as file:  # first: the page can be made from it
        file.write((rest.replace('"rows": []', f'"rows": [\n{lines}\n]') + "\n").encode())
    with whole_file(folder / f"{name}.md") as file:
        file.write(page.encode())
