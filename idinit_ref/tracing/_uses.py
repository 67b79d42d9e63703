"""Inside: which nodes take which parameter, of a graph that has been drawn."""

from __future__ import annotations

from ._drawing import Drawing

__all__ = ["uses_of"]


def uses_of(draw: Drawing) -> dict[str, tuple[str, ...]]:
    """Return the nodes that take each parameter which is used, as far as they are known.

    >>> from ._parameter import Parameter
    >>> draw = Drawing([Parameter("w", (3, 3)), Parameter("unused", (3,))])
    >>> _ = draw.product("dot", [draw.input("x", (2, 3)), draw.parameter("w")],
    ...                  ["bi", "io"], "bo", (2, 3))
    >>> uses_of(draw)
    {'w': ('w: dot',)}
    """
    found: dict[str, dict[str, None]] = {}
    for name, _, node, _ in draw._uses:
        nodes = found.setdefault(name, {})
        if node is not None:
            nodes[node] = None
    return {name: tuple(nodes) for name, nodes in found.items()}
