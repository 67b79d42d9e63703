"""The Python state that a forward pass may change: found, replaced, and restored."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["state_kept"]

# Why not a deep copy under FakeCopyMode: it fails on objects that cannot be copied (FSDP2 modules,
# locks, generators, open files), and tensors in closures would stay real.

# Objects of these modules are not part of a model and may change on their own: locks, loggers,
# compilers.
_FOREIGN = sys.stdlib_module_names - {"types", "collections"}
_SKIPPED = (type, FunctionType, BuiltinFunctionType, ModuleType, Tensor, str, bytes)


@contextmanager
def state_kept(roots: Iterable[object], instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace all tensors that can be reached, and restore all contents afterwards.

    The search enters containers and attributes of objects, but not functions and their closures.

    Parameters
    ----------
    roots : iterable of object
        Where the search starts: a model and its arguments.
    instead : callable
        Returns the replacement of a tensor.
    """
    undo: list[Callable[[], object]] = []
    seen: dict[int, object] = {}
    stack = list(roots)
    try:
        while stack:
            value = stack.pop()
            if id(value) not in seen and not isinstance(value, _SKIPPED):
                seen[id(value)] = value  # keeps it alive, so that no other object gets its id
                stack += _visit(value, instead, undo)
        yield
    finally:
        for step in undo:
            step()


def _visit(
    value: Any, instead: Callable[[Tensor], Tensor], undo: list[Callable[[], object]]
) -> list[Any]:
    """Record the contents of one object, replace its tensors, and return the contents."""
    if isinstance(value, (tuple, frozenset)):
        return list(value)
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, torch.Generator):
        undo.append(partial(value.set_state, value.get_state()))
    elif isinstance(value, random.Random):
        undo.append(partial(value.setstate, value.getstate()))
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator
        undo.append(partial(setattr, bits, "state", bits.state))
    elif isinstance(value, np.random.RandomState):
        undo.append(partial(value.set_state, value.get_state()))
    elif isinstance(value, np.ndarray) and type(value) is not np.memmap and value.flags.writeable:
        undo.append(partial(np.copyto, value, value.copy()))
    inner: list[Any] = []
    if isinstance(value, dict):
        inner += _entries(value, instead, undo)
    elif isinstance(value, (list, deque)):
        items = list(value)
        undo.append(partial(_refill_list, value, items))
        for at, item in enumerate(items):
            new = _swapped(item, instead)
            if new is not item:
                value[at] = new
        inner += items
    elif isinstance(value, set):
        members = set(value)
        undo.append(partial(_refill_set, value, members))
        _refill_set(value, {_swapped(item, instead) for item in members})
        inner += members
    if isinstance(value, nn.Module) or not _is_foreign(type(value).__module__):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            inner += _entries(attributes, instead, undo)
        for name in _slots(type(value)):
            item = getattr(value, name, undo)
            if item is undo:
                continue
            undo.append(partial(object.__setattr__, value, name, item))
            new = _swapped(item, instead)
            if new is not item:
                object.__setattr__(value, name, new)
            inner.append(item)
    return inner


def _is_foreign(module: str) -> bool:
    is_torchs = module.startswith(("torch._", "torch.distributed"))
    return is_torchs or module.partition(".")[0] in _FOREIGN


def _slots(kind: type) -> list[str]:
    """Return the names of the attributes that are stored in slots."""
    if _is_foreign(kind.__module__):
        return []
    found = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _entries(
    value: dict[Any, Any], instead: Callable[[Tensor], Tensor], undo: list[Callable[[], object]]
) -> list[Any]:
    old = list(value.items())
    undo.append(partial(_refill_dict, value, old))
    for key, item in old:
        new = _swapped(item, instead)
        if new is not item:
            dict.__setitem__(value, key, new)
    return [item for _, item in old]


def _swapped(value: Any, instead: Callable[[Tensor], Tensor]) -> Any:
    """Return the replacement of a tensor, or of a tuple that holds one."""
    if isinstance(value, Tensor):
        return instead(value)
    if isinstance(value, tuple):
        items = [_swapped(item, instead) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


# An unchanged object is not written to, since other threads may use it. The methods are those of
# the plain types, since subclasses override them (Counter.update adds).


def _refill_dict(value: dict[Any, Any], old: list[tuple[Any, Any]]) -> None:
    now = list(value.items())
    if len(now) != len(old) or any(
        k is not key or v is not item for (k, v), (key, item) in zip(now, old, strict=True)
    ):
        plain: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        plain.clear(value)
        for key, item in old:
            plain.__setitem__(value, key, item)


def _refill_list(value: Any, old: list[Any]) -> None:
    now = list(value)
    if list(map(id, now)) != list(map(id, old)):
        plain: Any = deque if isinstance(value, deque) else list
        plain.clear(value)
        plain.extend(value, old)


def _refill_set(value: set[Any], old: set[Any]) -> None:
    if set(map(id, value)) != set(map(id, old)):
        set.clear(value)
        set.update(value, old)
