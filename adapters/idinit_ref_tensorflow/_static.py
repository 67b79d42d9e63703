"""The numbers of tensors of a TensorFlow function that depend on constants and shapes alone."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

__all__ = ["note_captures", "static"]

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
