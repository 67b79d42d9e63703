"""Does a model work: one forward and one backward pass, of which everything is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from idinit_ref.diagnostics.audit import Audit
from idinit_ref.diagnostics.facts import Fact, fact_of, look, signs
from idinit_ref.diagnostics.verdict import Record, check_inputs, check_outputs, judged
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Signal

from ._restore import as_it_was
from ._trace import Arguments, Held, _drawing, _input_names, _parameters, _raw, _renamer, _told
from ._trace import prepared as _prepared

__all__ = ["audit"]


def audit(model: Any, inputs: Any) -> Audit:
    """Run a model once forward and once backward, and say whether it works.

    The second line after `init_`: does the output depend on the input, how large is every
    residual branch beside its skip, how does the second moment go from the first weight to the
    last, which parameters have no gradient and what do they hang behind, which units are copies,
    and is anything not finite.

    The pass is one with ``training=False``. What goes backward is no loss's gradient but a fixed
    one: 1 or -1 for every entry of the outputs, from Philox. The model is left as it was, its
    states too (an unbuilt one is built); nothing is kept. On Keras' TensorFlow backend every
    operation of the function is seen, but for those inside a loop; on another one the calls that
    `trace` follows, so that a layer that Keras shows as one call is one. The audit says which
    weight operations were not seen.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        As for `trace`.
    inputs : array or tensor, or a list or dict of them
        As for `trace`, but real samples: two or more that differ, so that a constant output is
        seen. Of integers alone (tokens) no gradient is taken.

    Returns
    -------
    idinit_ref.diagnostics.Audit
        ``print(audit)`` says it, ``audit.healthy`` is true or the tuple of what failed.

    Raises
    ------
    GraphError
        If the model cannot take these inputs or be followed, has no trainable weights, or returns
        nothing floating.
    OptionError, OptionTypeError
        If the inputs are all zeros or hold a NaN, or it is no Keras model or layer.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from idinit_ref_tensorflow import audit, init_
    >>> x = keras.Input((4,))
    >>> y = keras.layers.Dense(4, name="proj")(x)
    >>> model = keras.Model(x, x + y)
    >>> _ = init_(model)
    >>> found = audit(model, np.array([[1.0, 2.0, 0.5, 1.0], [3.0, 1.0, 2.0, 0.0]]))
    >>> bool(found.healthy), [layer.name for layer in found.layers]
    (True, ['proj'])
    """
    with as_it_was(model):
        arguments = _prepared(model, inputs)
        leaves = keras.tree.flatten(inputs)
        if any(leaf is None or isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            should = "it should have values"
            raise GraphError(message("inputs", inputs, should, "pass a few real samples"))
        if not model.trainable_variables:
            cure = "pass the whole model, with its layers as attributes"
            raise GraphError(message("model", model.name, "it should have trainable weights", cure))
        names = list(_input_names(arguments))
        kinds = [leaf.dtype for leaf in keras.tree.flatten(arguments)]
        arrays = [_numpy(leaf) for leaf in leaves]
        record = Record(next((int(x.shape[0]) for x in arrays if x.ndim), 1))
        floats = {}
        for name, array, dtype in zip(names, arrays, kinds, strict=True):
            if array.size and array.dtype.kind in "fiub":
                seen = look(keras.ops, keras.ops.convert_to_tensor(array, "float32"), record.batch)
                record.inputs[name] = record.facts[name] = _fact(seen, "float32")
                if keras.backend.is_float_dtype(dtype):
                    floats[name] = record.inputs[name]
        check_inputs(floats, len(floats) < len(arrays))
        given = [keras.ops.convert_to_tensor(a, d) for a, d in zip(arrays, kinds, strict=True)]
        with _unchanged(model), _told(arguments):
            held, dtypes = _parameters(model), dict[str, Any]()
            about = (held, _trained(held), record, dtypes)
            if keras.backend.backend() == "tensorflow":
                seen = _by_function(model, arguments, given, *about)
            else:
                from ._audit_calls import run

                seen = run(model, arguments, given, *about)
        _noted(record, seen, about[1], dtypes)
    return judged(record)


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Give a model's states their values back, as those of recurrent layers."""
    layers = model._flatten_layers()
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    variables = [*model.non_trainable_variables, *states]
    held = [(v, _numpy(v).copy()) for v in variables if isinstance(v, keras.Variable)]
    try:
        yield
    finally:
        for variable, value in held:
            now = _numpy(variable)
            if now.shape == value.shape and now.tobytes() != value.tobytes():
                variable.assign(value)


def _numpy(x: Any) -> Any:
    """Return an array on the host, without what some versions of `convert_to_numpy` warn of."""
    x = x.value if isinstance(x, keras.Variable) else x
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return x.numpy() if hasattr(x, "numpy") else np.asarray(x)


def _fact(found: Mapping[str, Any], dtype: Any) -> Fact:
    """Return a fact of what was measured, on the host."""
    host = {key: _numpy(value) for key, value in found.items()}
    return fact_of(host, dtype)


def _trained(held: Sequence[Held]) -> dict[str, Any]:
    """Return the variables that a gradient is asked for, by name."""
    return {
        one.parameter.name: one.variable
        for one in held
        if one.variable.trainable and keras.backend.is_float_dtype(str(one.parameter.dtype))
    }


# TensorFlow ---------------------------------------------------------------------------------


def _by_function(
    model: Any,
    arguments: Arguments,
    given: Sequence[Any],
    held: Sequence[Held],
    variables: Mapping[str, Any],
    record: Record,
    dtypes: dict[str, Any],
) -> dict[str, Any]:
    """Run the function graph that computes a model, and return what was measured in it."""
    import tensorflow as tf

    from ._function import Reader

    def measured(*values: Any) -> dict[str, Any]:
        args, kwargs = keras.tree.pack_sequence_as(arguments, list(values))
        out = model(*args, **kwargs, training=False)
        graph, draw = tf.compat.v1.get_default_graph(), _drawing(held)
        ends = [tensor for tensor in keras.tree.flatten(out) if tensor.dtype.is_floating]
        check_outputs(len(ends), type(out))
        names = {id(_raw(one.variable).handle): one.parameter.name for one in held}
        reader = Reader(draw, names, _renamer(model))
        known = reader.captured(graph)
        floats = {}
        for tensor, name in zip(values, _input_names(arguments), strict=True):
            known[tensor.name] = draw.input(name, tuple(tensor.shape), tensor.dtype.is_floating)
            if tensor.dtype.is_floating:
                floats[name] = tensor
        graph.outputs, before = ends, graph.outputs  # what the reader reads
        record.graph, record.uses = draw.graph(reader.run(graph, known)), draw.uses()
        graph.outputs = before
        cotangents = [tf.cast(g, e.dtype) for g, e in zip(_signs(ends), ends, strict=True)]
        raw = [_raw(variable) for variable in variables.values()]
        found = tf.gradients(
            ends,
            [*raw, *floats.values()],
            cotangents,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        several = [look(keras.ops, tf.convert_to_tensor(one), 1) for one in found]
        return {
            "nodes": _looks(graph, known, record, dtypes),
            "ends": [look(keras.ops, end, record.batch) for end in ends],
            "values": {n: look(keras.ops, v, 1) for n, v in zip(variables, raw, strict=True)},
            "gradients": dict(zip(variables, several, strict=False)),
            "starts": dict(zip(floats, several[len(raw) :], strict=True)),
        }

    graph = tf.function(measured, autograph=False)
    specs = [tf.TensorSpec(one.shape, one.dtype) for one in given]
    found: dict[str, Any] = graph.get_concrete_function(*specs)(*given)
    return found


def _signs(ends: Sequence[Any]) -> list[Any]:
    return list(signs(tuple(map(int, end.shape)) for end in ends))


def _looks(graph: Any, known: Mapping[str, Any], record: Record, dtypes: Any) -> dict[str, Any]:
    """Measure what every node is, in a graph that is being built."""
    kinds = {node.name: node.kind for node in record.graph.nodes}
    shapes: dict[str, Any] = {}
    units: dict[str, tuple[int, int] | None] = {}
    found = {}
    for op in graph.get_operations():
        for tensor in op.outputs:
            value = known.get(tensor.name)
            if not isinstance(value, Signal) or not tensor.dtype.is_floating:
                continue
            name, shape = value.node, tensor.shape
            if not shape.is_fully_defined() or not shape.num_elements():
                continue
            if kinds.get(name) == "weight" and name not in units:
                rank, first = shape.rank, _format(op)[:2] == b"NC"
                units[name] = (1, 2) if first else (rank - 1, rank)
            is_sum = op.type in ("BiasAdd", "AddV2", "Add")  # perhaps of a bias, which is no node
            if name not in found or (is_sum and shapes[name] == shape):
                shapes[name], dtypes[name] = shape, tensor.dtype
                found[name] = look(keras.ops, tensor, record.batch, units.get(name))
    return found


def _format(op: Any) -> bytes:
    return bytes(op.get_attr("data_format")) if "data_format" in op.node_def.attr else b""


def _noted(
    record: Record, seen: Mapping[str, Any], variables: Mapping[str, Any], dtypes: Mapping[str, Any]
) -> None:
    """Take what was measured into a record."""
    record.facts |= {name: _fact(one, dtypes[name]) for name, one in seen["nodes"].items()}
    record.outputs = [_fact(one, "float32") for one in seen["ends"]]
    for name, variable in variables.items():
        record.values[name] = _fact(seen["values"][name], variable.dtype)
        record.gradients[name] = _fact(seen["gradients"][name], variable.dtype)
    record.input_gradients = {n: _fact(one, "float32") for n, one in seen["starts"].items()}
