"""A model that an error leaves as it was, unbuilt where it was unbuilt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

_CONTAINERS = (dict, list, set)


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Put back, after an error, what a model's layers hold: variables, layers, flags.

    A first call builds a model for the shapes it is given, and that is for ever. Values of
    variables are not looked at: tracing changes none.
    """
    saved = _saved(model)
    try:
        yield
    except BaseException:
        for thing, content in saved:
            _put_back(thing, content)
        raise


def _saved(model: Any) -> list[tuple[Any, Any]]:
    """Return what a model is made of, each with a copy of what it holds now."""
    if not isinstance(model, keras.layers.Layer):
        return []
    owners = (keras.layers.Layer, type(model._tracker))
    found: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    todo = [model]
    while todo:
        thing = todo.pop()
        # By the type itself: a proxy says that it is what it wraps.
        if id(thing) in seen or not issubclass(type(thing), (*owners, *_CONTAINERS, tuple)):
            continue
        seen.add(id(thing))
        if issubclass(type(thing), tuple):
            todo += thing
            continue
        held = vars(thing) if issubclass(type(thing), owners) else thing
        content: Any = dict(dict.items(held)) if issubclass(type(held), dict) else list(held)
        found.append((held, content))
        todo += content.values() if isinstance(content, dict) else content
    return found


def _put_back(thing: Any, content: Any) -> None:
    """Fill a container again, past what its own class does when it is written to."""
    if issubclass(type(thing), dict):
        dict.clear(thing)
        dict.update(thing, content)
    elif issubclass(type(thing), list):
        list.__setitem__(thing, slice(None), content)
    else:
        set.clear(thing)
        set.update(thing, content)
