"""The warnings of a report."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from ..core.text import some

__all__ = ["Note", "merged"]


class Note(NamedTuple):
    """One warning: a fact to know before training.

    Parameters
    ----------
    kind : str
        The kind of warning, a word of lower-case letters: "kept", "copies", "tie", ...
    names : tuple of str
        The parameters or nodes concerned, in the order of the graph.
    text : str
        One sentence: the fact, and the cure.

    Examples
    --------
    >>> note = Note("tie", ("a.weight", "b.weight"), "two branches are added, and neither is zero")
    >>> note.kind, note.names
    ('tie', ('a.weight', 'b.weight'))
    """

    kind: str
    names: tuple[str, ...]
    text: str


def merged(found: Iterable[tuple[Note, str, Hashable]]) -> tuple[Note, ...]:
    """Return notes, one for all of a kind that say the same, in the order of the first.

    Each comes with the node where it holds, and with what it says besides the names of nodes.

    >>> found = [(Note("gate", ("w",), f"{at} adds to a gated skip"), at, "w") for at in "abcdefgh"]
    >>> merged(found)[0].text
    'a adds to a gated skip; the same at b, c, d, e, f and 2 more'
    """
    groups: dict[Hashable, list[tuple[Note, str]]] = {}
    for note, at, says in found:
        groups.setdefault((note.kind, says), []).append((note, at))
    notes = []
    for (first, _), *more in groups.values():
        names = dict.fromkeys([*first.names, *(name for note, _ in more for name in note.names)])
        others = f"; the same at {some([at for _, at in more])}" if more else ""
        notes.append(Note(first.kind, tuple(names), first.text + others))
    return tuple(notes)
