"""Restores a model after an error; an unbuilt one is unbuilt again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

_CONTAINERS = (dict, list, set)


@contextmanager
def restored_on_error(model: Any) -> Iterator[None]:
    """After an error, restore the attributes of a model's layers: variables, layers, flags.

    The first call of a model builds it for the given shapes, for good. Values of variables are not
    saved: tracing changes none.
    """
    saved = _copies(model)
    try:
        yield
    except BaseException:
        for container, content in saved:
            _restore(container, content)
        raise


def _copies(model: Any) -> list[tuple[Any, Any]]:
    """Return every container in a model, each with a copy of its content."""
    if not isinstance(model, keras.layers.Layer):
        return []
    owners = (keras.layers.Layer, type(model._tracker))
    copies: list[tuple[Any, Any]] = []
    seen: set[int] = set()
    todo = [model]
    while todo:
        item = todo.pop()
        # type(), not isinstance: a proxy reports the class of the object it wraps.
        if id(item) in seen or not issubclass(type(item), (*owners, *_CONTAINERS, tuple)):
            continue
        seen.add(id(item))
        if issubclass(type(item), tuple):
            todo += item
            continue
        container = vars(item) if issubclass(type(item), owners) else item
        is_dict = issubclass(type(container), dict)
        content: Any = dict(dict.items(container)) if is_dict else list(container)
        copies.append((container, content))
        todo += content.values() if isinstance(content, dict) else content
    return copies


def _restore(container: Any, content: Any) -> None:
    """Fill a container again, without the write hooks of its own class."""
    if issubclass(type(container), dict):
        dict.clear(container)
        dict.update(container, content)
    elif issubclass(type(container), list):
        list.__setitem__(container, slice(None), content)
    else:
        set.clear(container)
        set.update(container, content)
