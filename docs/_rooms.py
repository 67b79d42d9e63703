"""Who imports whom: the list in docs/architecture.md, and its picture where there is Graphviz."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parent / "architecture.md"
STYLE = 'node [shape=box style="rounded,filled" fillcolor="#eef3fa" color="#2a5c99"]'


def listed() -> dict[str, set[str]]:
    """Return the rooms of the page's list, each with those that it imports."""
    text = PAGE.read_text().split("```text\n")[1].split("```")[0]
    lines = text.replace("\n ", " ").splitlines()  # one that begins with a space goes on
    return {room: set(rest) for room, *rest in map(str.split, lines)}


def arrows(rooms: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Return all imports, without those that others make up together."""

    def reach(room: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in rooms[room]))

    return [
        (room, other)
        for room, direct in rooms.items()
        for other in sorted(direct - set().union(*map(reach, direct)))
    ]


def picture() -> bytes | None:
    """Return the rooms as SVG, or None where there is no `dot`."""
    if shutil.which("dot") is None:
        return None
    lines = [f'"{room}" -> "{other}"' for room, other in arrows(listed())]
    graph = "\n".join(["digraph {", STYLE, *lines, "}"])
    return subprocess.run(
        ["dot", "-Tsvg"], input=graph.encode(), capture_output=True, check=True
    ).stdout
