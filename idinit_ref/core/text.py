"""Names and tables as lines of text, for reports and messages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["columns", "some"]

_LENGTH = 100  # letters of a name that a message shows
_COUNT = 5  # names that it shows


def some(names: Sequence[str]) -> str:
    """Return names in one line that ends.

    >>> some(["a", "b"]), some(list("abcdefgh"))
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    shown = [
        name if len(name) <= _LENGTH else f"{name[: _LENGTH - 3]}..." for name in names[:_COUNT]
    ]
    return ", ".join(shown) + (f" and {len(names) - _COUNT:,} more" * (len(names) > _COUNT))


def columns(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Return rows as lines of text, each column padded to one width.

    With `numbers` all columns but the first end where the widest cell ends.

    >>> print(columns([("name", "shape"), ("a", "1 x 2"), ("longer", "3")]))
    name    shape
    a       1 x 2
    longer  3
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rest = str.rjust if numbers else str.ljust
    lines = ([row[0].ljust(widths[0]), *map(rest, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)
