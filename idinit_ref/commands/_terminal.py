"""Output of the commands: tables, lines and progress, for any terminal and any name."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from typing import Any

from ..core import text
from ..errors import printable

_LEAST = 40  # columns; a narrower terminal breaks lines itself
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "cyan": 36, "on red": 41, "on cyan": 46}


class Console:
    """Standard output: its width in columns, its encoding, and whether it shows colours."""

    def __init__(self) -> None:
        self.width = width()
        self.encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        self.is_utf = self.encoding.lower().startswith("utf")
        wanted = os.environ.get("FORCE_COLOR") or is_terminal(sys.stdout)
        self.colour = bool(wanted) and not os.environ.get("NO_COLOR") and os.name == "posix"

    def style(self, text: str, *styles: str) -> str:
        """Return a text in some styles; unchanged where there are no colours."""
        codes = ";".join(str(_STYLES[style]) for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour else text

    def print(self, text: str = "") -> None:
        """Print a text as it is."""
        print(text)  # noqa: T201 (the output of a command)

    def show(self, text: str) -> None:
        """Print a text that may hold anything: what the output cannot show is escaped."""
        self.print("\n".join(plain(line, self.encoding) for line in text.split("\n")))


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal that understands escape sequences."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Return the columns of the terminal; 80 without one."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal():
        return max(int(given), _LEAST)
    for number in (1, 2):  # the output may be a pipe or a file
        with suppress(OSError):
            return max(os.get_terminal_size(number).columns or 80, _LEAST)
    return 80


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
            print("idinit:", line, file=sys.stderr, flush=True)  # noqa: T201 (a message)


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


def rewrite(text: str) -> bool:
    """Put a text in place of the last one on stderr; return False if that is no terminal."""
    if not is_terminal(sys.stderr):
        return False
    with suppress(OSError):
        sys.stderr.write(f"\r\x1b[K{plain(text, sys.stderr.encoding)[: width() - 1]}")
        sys.stderr.flush()
    return True


def tensors(count: int) -> str:
    """Return a number of tensors, in words.

    >>> tensors(1), tensors(2000)
    ('1 tensor', '2,000 tensors')
    """
    return f"{count:,} tensor{'s' * (count != 1)}"


def columns(rows: Sequence[Sequence[str]], heads: Sequence[str], numbers: int = 0) -> str:
    """Return rows below their headings as lines of text, with unprintable characters escaped.

    The last `numbers` columns end where their widest cells end.
    """
    return text.columns([[plain(cell) for cell in row] for row in (heads, *rows)], numbers)


def duration(seconds: float) -> str:
    """Return a time in one unit.

    >>> duration(0.5), duration(100), duration(300)
    ('less than 1 s', '100 s', '5 min')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"


@contextmanager
def progress(what: str = "B") -> Iterator[Callable[[int, int], None]]:
    """Yield a function ``update(done, total)`` that shows progress on stderr after one second.

    It rewrites a line on a terminal and prints one every 5 seconds elsewhere, in bytes or in the
    named unit.
    """
    start = time.monotonic()
    due = start + 1

    def update(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now < due:
            return
        unit, size = ("G", 1e9) if total >= 1e9 else ("M", 1e6)
        text = f"{done / size:.1f} of {total / size:.1f} {unit}{what}"
        left = duration((now - start) * (total / max(done, 1) - 1))
        due = now + 0.1
        if not rewrite(f"{text}, {left} left"):
            due = now + 5
            say(text)

    try:
        yield update
    finally:
        if due > start + 1:
            rewrite("")


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
    import json

    console.print(json.dumps(json_of(value), indent=1, allow_nan=False))
