"""The numbers of tensors of a TensorFlow function that depend on constants and shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from idinit_ref.tracing import reads_by_turn

__all__ = [
    "counts_of",
    "is_map",
    "knowing",
    "note_captures",
    "reads_its_counter",
    "static",
    "writes_of",
]

_MOST = 1 << 16  # the most numbers that are computed
_DEPTH = 64  # the most operations in a row that are computed
_KNOWN: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""For each graph, the numbers of tensors by name; None: unknown."""


def note_captures(graph: Any) -> None:
    """Note the numbers of the constants that a function takes from outside."""
    for outside, inside in graph.captures:
        if hasattr(outside, "numpy") and _is_small(inside):
            _KNOWN.setdefault(graph, {})[inside.name] = outside.numpy()


def static(tensor: Any, depth: int = _DEPTH) -> Any:
    """Return the numbers of a tensor that depends on constants and shapes alone, else None."""
    from tensorflow import get_static_value

    known = _KNOWN.setdefault(tensor.graph, {})
    if tensor.name not in known:
        found = get_static_value(tensor)
        if found is None and not depth:
            return None
        known[tensor.name] = _computed(tensor, depth - 1) if found is None else found
    return known[tensor.name]


@contextmanager
def knowing(graph: Any, numbers: Mapping[int, Any]) -> Iterator[None]:
    """Let the inputs of a loop's function have some numbers, as in one turn."""
    held = _KNOWN.pop(graph, {})
    _KNOWN[graph] = {graph.inputs[at].name: number for at, number in numbers.items()}
    try:
        yield
    finally:
        _KNOWN[graph] = held


def counts_of(
    op: Any, test: Any, body: Any, writes: Iterable[Any], most: int
) -> list[dict[int, Any]]:
    """Return the numbers of a loop's counters in each of its turns, and behind the last one.

    They are given by their positions among the states. Nothing if the number of turns is unknown,
    or greater than `most`, or if each turn does not write the next entry of the lists.
    """
    pairs = [(at, static(t)) for at, t in enumerate(op.inputs) if _is_counter(t)]
    found = [{at: number for at, number in pairs if number is not None}]
    while len(found) <= most + 1:
        with knowing(test, found[-1]):
            goes_on = static(test.outputs[0])
        if goes_on is not None and not goes_on:
            return found
        with knowing(body, found[-1]):
            is_next = all(static(write.inputs[1]) == len(found) - 1 for write in writes)
            found.append({at: static(body.outputs[at]) for at in found[-1]})
        if goes_on is None or None in found[-1].values() or not is_next:
            break
    return []


def writes_of(body: Any) -> dict[int, Any]:
    """Return the writes by which a loop collects the results of its turns, by their states."""
    pairs = enumerate(zip(body.inputs, map(_origin, body.outputs), strict=False))
    return {
        at: out.op
        for at, (given, out) in pairs
        if out.op.type == "TensorListSetItem" and _origin(out.op.inputs[0]) is given
    }


def is_map(body: Any) -> bool:
    """Whether a loop carries no more than counters and the results of its turns."""
    pairs = enumerate(zip(body.inputs, map(_origin, body.outputs), strict=False))
    changed = {at for at, (given, out) in pairs if out is not given and not _is_counter(given)}
    return changed == writes_of(body).keys()


def reads_its_counter(body: Any, made: Iterable[int]) -> bool:
    """Whether a loop may read one of its inputs `made`, which are stacks, by its counters."""
    numbers = [tensor.name for tensor in body.inputs if _is_counter(tensor)]
    steps = (
        ([tensor.name for tensor in op.inputs], [tensor.name for tensor in op.outputs])
        for op in body.get_operations()
        if op.type != "Placeholder"
    )
    return reads_by_turn(steps, numbers, [body.inputs[at].name for at in made])


def _origin(tensor: Any) -> Any:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor


def _is_counter(tensor: Any) -> bool:
    return bool(tensor.dtype.is_integer and tensor.shape.rank == 0)


def _is_small(tensor: Any) -> bool:
    kind, shape = tensor.dtype, tensor.shape
    is_plain = kind.is_integer or kind.is_bool or kind.is_floating
    return bool(is_plain and shape.is_fully_defined() and shape.num_elements() <= _MOST)


def _computed(tensor: Any, depth: int) -> Any:
    """Run an operation of which all operands are known."""
    import tensorflow as tf
    from tensorflow.python.eager import context, execute

    op = tensor.op
    runs = any("func" in attribute.type for attribute in op.op_def.attr)
    if runs or op.op_def.is_stateful or not op.inputs or not _is_small(tensor):
        return None
    given = []
    for operand in op.inputs:
        given.append(static(operand, depth) if _is_small(operand) else None)
        if given[-1] is None:
            return None
    with tf.init_scope(), tf.device("CPU:0"):
        given = [tf.constant(x, operand.dtype) for x, operand in zip(given, op.inputs, strict=True)]
        try:
            outs = execute.execute(
                op.type, len(op.outputs), given, _attributes(op), context.context()
            )
        except (tf.errors.OpError, TypeError, ValueError):
            return None
    return np.asarray(outs[tensor.value_index])


def _attributes(op: Any) -> tuple[Any, ...]:
    """Return an operation's attributes, each after its name."""
    found: list[Any] = []
    for attribute in op.op_def.attr:
        value = op.get_attr(attribute.name)
        if isinstance(value, list):
            value = [getattr(item, "as_datatype_enum", item) for item in value]
        found += [attribute.name, getattr(value, "as_datatype_enum", value)]
    return tuple(found)
