"""What a report says of a model beside the roles of its parameters: one warning each."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Note"]


class Note(NamedTuple):
    """One warning: something that a user would want to know before training.

    Parameters
    ----------
    kind : str
        Which sort of warning, a word of lower-case letters: "kept", "copies", "tie", ...
    names : tuple of str
        The parameters or nodes that it is about, in the order of the graph.
    text : str
        One sentence: what is so, and what to do about it.

    Examples
    --------
    >>> note = Note("tie", ("a.weight", "b.weight"), "two branches are added, and neither is zero")
    >>> note.kind, note.names
    ('tie', ('a.weight', 'b.weight'))
    """

    kind: str
    names: tuple[str, ...]
    text: str
