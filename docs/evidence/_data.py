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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory / 1e9:.0f} GB of memory, "
        f"{platform.system()} {platform.release().partition('-')[0]}"
    )


def load(name: str) -> dict[str, Any]:
    """Return what the last full run wrote, or say how to run it."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise SystemExit(f"there is no {path.name} yet: python -m docs.evidence.{name}")
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def save(name: str, data: dict[str, Any], page: str, folder: Path = FOLDER) -> None:
    """Write page and data, whose ``rows`` have a line each; a file appears when it is complete."""
    from idinit_ref.export import whole_file  # late: mutation.py takes it from its copy

    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in data["rows"])
    rest = json.dumps({**data, "rows": []}, ensure_ascii=False, indent=1)
    with whole_file(folder / f"{name}.md") as file:
        file.write(page.encode())
    with whole_file(folder / f"{name}.json") as file:
        file.write((rest.replace('"rows": []', f'"rows": [\n{lines}\n]') + "\n").encode())
