"""Names and tables as lines of text, for reports and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["columns", "short", "some"]

_LENGTH = 100  # letters of a name that a message shows
_COUNT = 5  # names that it shows


def some(names: Sequence[str]) -> str:
    """Return names in one line that ends.

    >>> some(["a", "b"]), some(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = f" and {len(names) - _COUNT:,} more" if len(names) > _COUNT else ""
    return ", ".join(short(name, _LENGTH) for name in names[:_COUNT]) + more


def short(value: object, most: int = 60) -> Any:
    """Return a value, or the beginning of its text where that is long.

    >>> short(1.5), short("abcdefgh", 6), short([1, 2, 3], 7)
    (1.5, 'abc...', '[1, ...')
    """
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= most else f"{text[: most - 3]}..."


def columns(rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """Return rows as lines of text, each column padded to one width.

    The last `numbers` columns end where their widest cells end.

    >>> print(columns([("name", "shape"), ("a", "1 x 2"), ("longer", "3")]))
    name    shape
    a       1 x 2
    longer  3
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * (len(widths) - numbers) + [str.rjust] * numbers
    lines = (map(lambda pad, *cell: pad(*cell), pads, row, widths) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)
