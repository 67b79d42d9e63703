"""Output of the commands: tables, lines and progress, for any terminal and any name."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import isfinite
from typing import TYPE_CHECKING, Any

from ..core import text
from ..errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def is_utf(console: Console) -> bool:
    """Whether the output can show any character."""
    return console.encoding.lower().startswith("utf")


def plain(text: str, encoding: str = "utf-8") -> str:
    r"""Return a text with unprintable characters escaped.

    >>> print(plain("a\x1b[31m\udcff é"), plain("é", "ascii"))
    a\x1b[31m\udcff é \xe9
    """
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: str) -> None:
    """Print a text on stderr as one line."""
    if sys.stderr is not None:
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        with suppress(OSError):  # the terminal may be closed
            line = plain(" ".join(text.split()), encoding)
            print("idinit:", line, file=sys.stderr, flush=True)  # noqa: T201


def natural(name: str) -> tuple[list[object], str]:
    """Return a sort key of names that orders their numbers by value.

    >>> sorted(["h10", "h.10", "h.2", "h2", "h"], key=natural)
    ['h', 'h2', 'h10', 'h.2', 'h.10']
    """
    parts: list[object] = re.split("([0-9]+)", name)
    for k in range(1, len(parts), 2):  # not int(): a name may have a million digits
        number = str(parts[k]).lstrip("0")
        parts[k] = (len(number), number)
    return parts, name


def show(console: Console, text: str) -> None:
    """Print a text without markup, and without breaking lines at the terminal's width."""
    lines = (plain(line, console.encoding) for line in text.split("\n"))
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def tensors(count: int) -> str:
    """Return a number of tensors, in words.

    >>> tensors(1), tensors(2000)
    ('1 tensor', '2,000 tensors')
    """
    return f"{count:,} tensor{'s' * (count != 1)}"


def table(console: Console, rows: Sequence[Sequence[str]], heads: Sequence[str]) -> Table:
    """Return a table; columns of only numbers are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD)
    for head, column in zip(heads, zip(*rows, strict=True), strict=True):
        words = any(any(map(str.isalpha, cell)) for cell in column)
        grid.add_column(head, justify="left" if words else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(plain(cell, console.encoding)) for cell in row))
    return grid


def columns(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Return rows below their headings as lines of text, with unprintable characters escaped."""
    return text.columns([[plain(cell) for cell in row] for row in (heads, *rows)])


@contextmanager
def progress(what: str = "B") -> Iterator[Callable[[int, int], None]]:
    """Yield a function ``update(done, total)`` that shows progress on stderr after one second.

    It shows a bar, or a line from time to time, in bytes or in the named unit.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("")
    due = time.monotonic() + 1
    with ExitStack() as stack:

        def update(done: int, total: int) -> None:
            nonlocal due
            unit, size = ("G", 1e9) if total >= 1e9 else ("M", 1e6)
            text = f"{done / size:.1f} of {total / size:.1f} {unit}{what}"
            bar.update(task, completed=done, total=total, description=text)
            if time.monotonic() < due:
                return
            if not bar.console.is_interactive:
                due = time.monotonic() + 5
                say(text)
            elif not bar.live.is_started:
                stack.enter_context(bar)

        yield update


def json_of(value: Any) -> Any:
    """Return a value for JSON; parts that JSON lacks become text.

    >>> json_of({"a": (1, float("nan"), 2j)})
    {'a': [1, 'nan', '2j']}
    """
    if isinstance(value, Mapping):
        return {str(key): json_of(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_of(part) for part in value]
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    return str(value)


def print_json(console: Console, value: Any) -> None:
    """Print a value as JSON, in ASCII."""
    text = json.dumps(json_of(value), indent=1, allow_nan=False)
    console.print(text, markup=False, soft_wrap=True)
