"""The warnings of a report."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Note"]


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
