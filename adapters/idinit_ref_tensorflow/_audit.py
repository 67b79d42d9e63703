"""The audit of a model: one forward and one backward pass, both measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras

from idinit_ref.diagnostics.audit import Audit
from idinit_ref.diagnostics.facts import look, signs
from idinit_ref.diagnostics.recording import Recording
from idinit_ref.diagnostics.verdict import check_outputs
from idinit_ref.diagnostics.waking import Look, stepped, steps_of, watched
from idinit_ref.errors import GraphError, message
from idinit_ref.tracing import Signal, Value, redrawn

from ._calls import to_numpy
from ._restore import restored_on_error
from ._stale import check_reads
from ._trace import (
    Arguments,
    Held,
    _drawing,
    _input_names,
    _parameters,
    _raw,
    _renamer,
    blame_inputs,
    called,
    prepare,
)

__all__ = ["audit"]


def audit(model: Any, inputs: Any, *, steps: int = 0) -> Audit:
    """Run a model once forward and once backward, and say whether it works.

    Call it after `init_`. It measures whether the output depends on the input, the size of every
    residual branch beside its skip, and the second moment from the first weight to the last. It
    finds parameters without gradient and what stops the gradient, units that are copies, and values
    that are not finite.

    Both passes run with ``training=False``. The backward pass starts from a fixed gradient, not
    from a loss: 1 or -1 for every entry of the outputs, drawn by Philox. The model and its states
    are left as they were; an unbuilt model is built. On Keras' TensorFlow backend every operation
    is measured, except those inside a loop. On another backend the calls that `trace` follows are
    measured; a layer that Keras records as one call counts as one operation. The audit names
    weight operations that were not measured.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        As for `trace`.
    inputs : array or tensor, or a list or dict of them
        As for `trace`, but real samples: at least two that differ, so that a constant output is
        noticed. For integers alone (tokens) no gradient is taken.
    steps : int, optional
        The most small steps of training, either way, that follow where something fails, or where a
        weight has no gradient and what is behind it does not tell why; afterwards the parameters
        are given back to the bit. What ends with them, as 3 can show, is a remark, not a failure.
        With 0 there is exactly one forward and one backward pass, and a limit names what steps
        might wake.

    Returns
    -------
    idinit_ref.diagnostics.Audit
        ``print(audit)`` prints the findings. ``audit.healthy`` is true, or the tuple of what
        failed.

    Raises
    ------
    GraphError
        If the model cannot take these inputs or be traced, has no trainable weights, or returns
        no floating-point tensor.
    OptionError, OptionTypeError
        If the inputs are all zeros or hold a NaN, `model` is not a Keras model or layer, or `steps`
        is no integer >= 0.

    Examples
    --------
    >>> import keras, numpy as np
    >>> from idinit_ref_tensorflow import audit, init_
    >>> x = keras.Input((4,))
    >>> y = keras.layers.Dense(4, name="proj")(x)
    >>> model = keras.Model(x, x + y)
    >>> _ = init_(model)
    >>> result = audit(model, np.array([[1.0, 2.0, 0.5, 1.0], [3.0, 1.0, 2.0, 0.0]]))
    >>> bool(result.healthy), [layer.name for layer in result.layers]
    (True, ['proj'])
    """
    steps = steps_of(steps)
    with restored_on_error(model):
        arguments = prepare(model, inputs, "inputs")
        leaves = keras.tree.flatten(inputs)
        if any(leaf is None or isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            should = "it should have values"
            raise GraphError(message("inputs", inputs, should, "pass a few real samples"))
        if not model.trainable_variables:
            cure = "pass the whole model, with its layers as attributes"
            raise GraphError(message("model", model.name, "it should have trainable weights", cure))
        kinds = [leaf.dtype for leaf in keras.tree.flatten(arguments)]
        arrays = [to_numpy(leaf) for leaf in leaves]
        with blame_inputs(arguments, "inputs"):  # not each backend knows text
            given = [keras.ops.convert_to_tensor(a, d) for a, d in zip(arrays, kinds, strict=True)]
        variables = trained(_parameters(model))
        made: list[Any] = []

        def seen(values: Mapping[str, Any]) -> Look:
            moved = {name: variables[name] for name in values}
            with _kept(model, moved.values()), blame_inputs(arguments, "inputs"):
                for name, variable in moved.items():
                    variable.assign(values[name])
                if not made or keras.backend.backend() == "torch":  # the others compile the run
                    made[:] = _recorded(model, arguments, given)
                recording, run = made
                looks, gradients = run()
            own = {name: variables[name].value for name in gradients}
            return Look(recording.filled(looks), own, gradients)

        return watched(seen, partial(stepped, keras.ops), host=to_numpy, steps=steps)


@redrawn
def _recorded(
    model: Any, arguments: Arguments, given: Sequence[Any]
) -> tuple[Recording, Callable[[], Any]]:
    """Return a recording, and a function that runs it: for its measurements and gradients."""
    recording, prepared = Recording(partial(look, keras.ops), to_numpy, given), _by_function
    if keras.backend.backend() != "tensorflow":
        from ._audit_calls import prepared
    return recording, prepared(model, arguments, given, recording)


@contextmanager
def _kept(model: Any, moved: Iterable[Any]) -> Iterator[None]:
    """Restore some variables and a model's states afterwards, such as those of recurrent layers."""
    layers = model._flatten_layers()
    states = keras.tree.flatten([getattr(layer, "states", None) for layer in layers])
    variables = [*model.non_trainable_variables, *states, *moved]
    held = [(v, to_numpy(v).copy()) for v in variables if isinstance(v, keras.Variable)]
    try:
        yield
    finally:
        for variable, value in held:
            now = to_numpy(variable)
            if now.shape == value.shape and now.tobytes() != value.tobytes():
                variable.assign(value)


def trained(held: Sequence[Held]) -> dict[str, Any]:
    """Return the variables whose gradients are computed, by name."""
    return {
        one.parameter.name: one.variable
        for one in held
        if one.variable.trainable and keras.backend.is_float_dtype(str(one.parameter.dtype))
    }


# TensorFlow ---------------------------------------------------------------------------------


def _by_function(
    model: Any, arguments: Arguments, given: Sequence[Any], recording: Recording
) -> Callable[[], Any]:
    """Return a function that runs the graph of a model, for its measurements and gradients."""
    import tensorflow as tf

    from ._function import Reader

    held = _parameters(model)

    def measured(*values: Any) -> Any:
        out = called(model, arguments, *values)
        graph, draw = tf.compat.v1.get_default_graph(), _drawing(held)
        ends = [tensor for tensor in keras.tree.flatten(out) if tensor.dtype.is_floating]
        check_outputs(len(ends), type(out))
        names = {id(_raw(one.variable).handle): one.parameter.name for one in held}
        check_reads(graph, partial(called, model, arguments), specs, names)
        reader = Reader(draw, names, _renamer(model))
        known = reader.captured(graph)
        inputs: dict[str, Any] = {}
        for name, tensor in zip(_input_names(arguments), values, strict=True):
            known[tensor.name] = draw.input(name, tuple(tensor.shape), tensor.dtype.is_floating)
            inputs[own_name(name, known[tensor.name], len(inputs))] = tensor
        graph.outputs, before = ends, graph.outputs  # the reader draws what these need
        recording.drew(draw, draw.graph(reader.run(graph, known)))
        graph.outputs = before
        pairs = zip(cotangents_of(ends), ends, strict=True)
        cotangents = [tf.cast(sign, end.dtype) for sign, end in pairs]
        raw = {name: _raw(variable) for name, variable in trained(held).items()}
        starts = {name: x for name, x in inputs.items() if x.dtype.is_floating}
        gradients = tf.gradients(
            ends,
            [*raw.values(), *starts.values()],
            cotangents,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        _measure_nodes(graph, known, recording)
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return recording.end(inputs, ends, raw, [*starts], gradients)

    specs = [tf.TensorSpec(one.shape, one.dtype) for one in given]
    graph = tf.function(measured, autograph=False)
    return partial(graph.get_concrete_function(*specs), *given)


def own_name(name: str, value: Value, at: int) -> str:
    """Return the name of an input's node, or, of integers, a name that no other input has."""
    return value.node if isinstance(value, Signal) else f"{name} {at}"


def cotangents_of(ends: Sequence[Any]) -> list[Any]:
    """Return the cotangents of some outputs: 1 or -1 for each entry."""
    return signs(tuple(map(int, end.shape)) for end in ends)


def _measure_nodes(graph: Any, known: Mapping[str, Any], recording: Recording) -> None:
    """Measure every node, in a graph that is being built."""
    nodes = recording.record.graph.nodes
    weights = {node.name for node in nodes if node.kind == "weight"}
    if any("_gradient_op_type" in op.node_def.attr for op in graph.get_operations()):
        recording.record.own |= {node.name for node in nodes}  # any may be under it
    for op in graph.get_operations():
        if any(tensor.name in known for tensor in op.outputs):
            given, results = (
                [(known.get(tensor.name), tensor.name) for tensor in tensors]
                for tensors in (op.inputs, op.outputs)
            )
            recording.link(given, results)
        for tensor in op.outputs:
            value = known.get(tensor.name)
            if not isinstance(value, Signal) or not tensor.dtype.is_floating:
                continue
            if tensor.shape.is_fully_defined():
                rank, first = tensor.shape.rank, _format(op)[:2] == b"NC"
                units = (1, 2) if first else (rank - 1, rank)
                is_sum = op.type in ("BiasAdd", "AddV2", "Add")
                here = units if value.node in weights else None
                recording.see(value.node, tensor, here, is_sum)


def _format(op: Any) -> bytes:
    return bytes(op.get_attr("data_format")) if "data_format" in op.node_def.attr else b""
