"""What a run leaves: its numbers in NAME.json, and NAME.md, which says nothing but these."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def machine() -> str:
    """Return what this machine is, as pages say it."""
    file, name = Path("/proc/cpuinfo"), platform.machine()
    if file.exists():
        lines = [line for line in file.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(": ")[2] if lines else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{os.cpu_count()} cores ({name}), {memory / 1e9:.0f} GB of memory, "
        f"{platform.system()} {platform.release().partition('-')[0]}"
    )


def load(name: str) -> dict[str, Any]:
    """Return what the last full run wrote, or say that there was none."""
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
