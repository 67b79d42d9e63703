"""A whole Keras model as the core's graph."""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from idinit_ref import Graph
from idinit_ref.errors import GraphError, OptionTypeError, message
from idinit_ref.tracing import Drawing, Parameter, Value, redrawn, span_of

from ._calls import numbers_of
from ._layers import is_changed, known_weights, quantised_parts
from ._restore import restored_on_error
from ._stale import check_reads, inline

__all__ = ["trace"]

_PART = "a part of a quantised weight"
_EXAMPLE = "example_inputs"  # the name of the inputs in errors


class Held(NamedTuple):
    """A parameter, its variable, and whether that was created as untrainable."""

    parameter: Parameter
    variable: Any
    is_state: bool  # if so, it is a parameter only if it is used as a weight


class Traced(NamedTuple):
    """A graph, and the model's variables by the names of its parameters."""

    graph: Graph
    variables: Mapping[str, Any]


def trace(model: Any, example_inputs: Any = None) -> Graph:
    """Return the graph of a Keras model's computation.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Functional, Sequential or subclassed. On Keras' TensorFlow backend the graph comes from the
        model's concrete function with ``training=False``; on another backend from Keras' own
        symbolic calls. Nothing is run, and no state changes. An unbuilt model is built; after an
        error it is unbuilt again.
    example_inputs : array, tensor, keras.KerasTensor or tf.TensorSpec, or a list or dict of them
        The model's inputs. Only shapes and dtypes are used, and a first axis of None counts as 2. A
        tuple, list or dict is one argument of `call`, as in Keras; if `call` requires several, it
        is all of them. A model that knows its inputs (functional, or Sequential with an Input)
        needs none.

    Returns
    -------
    idinit_ref.Graph
        The name of a parameter is its Keras path (``"conv1/kernel"``). If several variables share
        a path, ``" (1)"``, ``" (2)"`` and so on are added, in the model's order. A kernel with
        several output or input axes (EinsumDense and attention: heads and their size) appears as a
        matrix that joins them.

    Raises
    ------
    GraphError
        If the model cannot take these inputs, or uses an operation that cannot be traced.
    OptionTypeError
        If `model` is not a Keras model or layer.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import trace
    >>> x = keras.Input((4,))
    >>> y = keras.layers.Dense(4, name="proj")(x)
    >>> graph = trace(keras.Model(x, x + y))
    >>> graph.parameters
    ('proj/kernel', 'proj/bias')
    >>> [node.kind for node in graph.nodes if node.kind in ("input", "weight", "add")]
    ['input', 'weight', 'add']
    """
    with restored_on_error(model):
        return trace_model(model, example_inputs).graph


@redrawn
def trace_model(model: Any, example_inputs: Any) -> Traced:
    """Return a model's graph and its variables."""
    arguments = prepare(model, example_inputs)
    if keras.backend.backend() == "tensorflow":
        held, graph = _by_function(model, arguments)
    else:
        from ._walk import walk

        held = _parameters(model)
        draw = _drawing(held)
        names = {id(one.variable): one.parameter.name for one in held}
        with blame_inputs(arguments):
            graph = draw.graph(walk(draw, names, model, *arguments, _input_names(arguments)))
    states = {one.parameter.name for one in held if one.is_state}
    used = ("weight", "embedding")
    nodes = [node for node in graph.nodes if node.name not in states or node.use in used]
    parameters = {node.name for node in nodes if node.kind == "parameter"}
    variables = {one.parameter.name: one.variable for one in held}
    variables = {name: one for name, one in variables.items() if name in parameters}
    return Traced(Graph(nodes, graph.outputs), variables)


def prepare(model: Any, example_inputs: Any, label: str = _EXAMPLE) -> Arguments:
    """Build a model, and return the symbolic arguments of its call."""
    if not isinstance(model, keras.layers.Layer):
        should = "it should be a keras.Model or a keras.layers.Layer"
        cure = "wrap the computation in one; for single weights use idi_(variable)"
        raise OptionTypeError(message("model", type(model).__name__, should, cure))
    arguments = _arguments(model, example_inputs, label)
    _build(model, arguments, label)
    return arguments


def _drawing(held: Iterable[Held]) -> Drawing:
    stops = "tf.stop_gradient or keras.ops.stop_gradient"
    return Drawing([one.parameter for one in held], stops, prefixed=False)


# Arguments ---------------------------------------------------------------------------------------


class Arguments(NamedTuple):
    """The arguments of a model's call, as symbolic tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def shapes(self) -> Any:
        """Return the shapes, for messages."""
        return keras.tree.map_structure(lambda x: x.shape, (self.args, self.kwargs))


def _arguments(model: Any, example: Any, label: str) -> Arguments:
    """Return the arguments of `call`, with every shape known."""
    if example is None:
        if isinstance(model, keras.Function):
            example = model.input
        elif isinstance(model, keras.Sequential) and model.built:
            example = model.inputs[0]
        if example is None:
            should = f"the model {model.name!r} does not know its inputs"
            cure = "pass an array of the right shape and dtype, or keras.KerasTensor(shape)"
            raise GraphError(message(label, None, should, cure))
    example = keras.tree.map_structure(partial(_symbol, label), example)
    needs = [
        p.name
        for p in inspect.signature(model.call).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and p.name != "training"
    ]
    if len(needs) > 1 and isinstance(example, (tuple, list)):
        return Arguments(tuple(example), {})
    if len(needs) > 1 and isinstance(example, dict):
        return Arguments((), dict(example))
    return Arguments((example,), {})


def _symbol(label: str, leaf: Any) -> Any:
    """Return a symbolic tensor with the shape and dtype of an example."""
    leaf = leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else np.asarray(leaf)
    dtype = "string" if _is_text(leaf) else leaf.dtype
    try:
        dtype = keras.backend.standardize_dtype(dtype)
    except ValueError as problem:
        should = "every input should be an array of numbers, bools or strings"
        cure = "pass what the model is called with"
        raise GraphError(message(label, str(leaf.dtype), should, cure)) from problem
    sizes = list(leaf.shape)
    if sizes and sizes[0] is None:
        sizes[0] = 2
    if None in sizes:
        should = "every axis but the first should have a size"
        cure = "pass example inputs with a size that the model accepts"
        raise GraphError(message(label, tuple(leaf.shape), should, cure))
    return keras.KerasTensor(tuple(sizes), dtype)


def _is_text(leaf: Any) -> bool:
    """Whether an array holds strings: of a NumPy string dtype, or as objects."""
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return False
    entries = leaf.ravel().tolist()
    is_text = bool(entries) and all(isinstance(x, (str, bytes)) for x in entries)
    return leaf.dtype.kind in "US" or (leaf.dtype.kind == "O" and is_text)


def _build(model: Any, arguments: Arguments, label: str) -> None:
    """Build an unbuilt model by a symbolic call."""
    if all(layer.built for layer in model._flatten_layers()):
        return
    with blame_inputs(arguments, label), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of layers that stay unbuilt
        run = partial(model, *arguments.args, **arguments.kwargs)
        inline(run, otherwise=run)


@contextmanager
def blame_inputs(arguments: Arguments, label: str = _EXAMPLE) -> Iterator[None]:
    """Turn any error of a model's call into a GraphError that names its inputs."""
    try:
        yield
    except GraphError:
        raise
    except Exception as problem:
        should = f"the model should accept them; it raised: {_keras_message(problem)}"
        cure = "pass what the model is called with"
        raise GraphError(message(label, arguments.shapes(), should, cure)) from problem


def _keras_message(problem: Exception) -> str:
    """Return the core of Keras' error message."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).split())
    text = text.split("Error encountered: ")[-1].split(" Arguments received by ")[0]
    return re.sub(r"^Exception encountered when calling [\w.]+\(\)\. ", "", text)[:300]


# Parameters --------------------------------------------------------------------------------------


def _parameters(model: Any, more: Any = ()) -> list[Held]:
    """Return the variables that are, or may be, parameters, in the model's order."""
    layers = model._flatten_layers()
    biases = {id(weight.bias) for layer in layers for weight in known_weights(layer)}
    biases |= {id(getattr(layer, "bias", None)) for layer in layers if is_changed(layer)}
    parts = {id(variable) for layer in layers for variable in quantised_parts(layer)}
    normal = {
        id(getattr(layer, "kernel", None))
        for layer in layers
        if isinstance(layer, keras.layers.SpectralNormalization)
    }
    trainable = {id(variable) for layer in layers for variable in layer._trainable_variables}
    trainable |= {id(variable) for variable in more if variable.trainable}
    held = []
    variables = [*model.weights, *more]
    for name, variable in zip(_names(variables), variables, strict=True):
        state = id(variable) not in trainable
        note = _note(variable, state)
        if id(variable) in parts:
            note, state = note if note.startswith("not") else _PART, False
        elif id(variable) in normal:
            note = note or "spectrally normalised in training, which overwrites it"
        dtype = keras.backend.standardize_dtype(variable.dtype)
        is_bias = id(variable) in biases
        span = span_of(numbers_of(variable)) if state else None
        parameter = Parameter(name, tuple(variable.shape), dtype, note, is_bias, span)
        held.append(Held(parameter, variable, state))
    return held


def _names(variables: list[Any]) -> list[str]:
    """Return the path of each variable; if several share a path, each gets a number.

    So a look-up by a shared path alone finds nothing, rather than the wrong variable.
    """
    paths = [getattr(each, "path", None) or each.name.split(":")[0] for each in variables]
    counts, places = Counter(paths), defaultdict[str, Iterator[int]](lambda: itertools.count(1))
    names = []
    for path in paths:
        name = path
        while counts[path] > 1 and name in counts:
            name = f"{path} ({next(places[path])})"
        names.append(name)
    return names


def _note(variable: Any, state: bool) -> str:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if not (keras.backend.is_float_dtype(dtype) or dtype.startswith("complex")):
        return f"not floating: {dtype}"
    if state:
        return "frozen: created with trainable=False"
    return "" if variable.trainable else "frozen: its trainable is False"


# TensorFlow's function graph ---------------------------------------------------------------------


def _by_function(model: Any, arguments: Arguments) -> tuple[list[Held], Graph]:
    import tensorflow as tf

    from ._function import Reader
    from ._table import is_floating

    flat = keras.tree.flatten(arguments)
    specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in flat]
    call = partial(called, model, arguments)
    with blame_inputs(arguments):
        graph = tf.function(call, autograph=False).get_concrete_function(*specs).graph
    held = _parameters(model)
    handles = {id(_raw(one.variable).handle) for one in held}
    known = {id(v.handle) for v in map(_raw, model.variables)}  # also seeds and metrics
    more = [variable for variable in graph.variables if id(variable.handle) not in handles | known]
    held = _parameters(model, more) if more else held
    names = {id(_raw(one.variable).handle): one.parameter.name for one in held}
    check_reads(graph, call, specs, names)
    draw = _drawing(held)
    reader = Reader(draw, names, _renamer(model))
    values: dict[str, Value] = reader.captured(graph)
    for tensor, name in zip(graph.inputs, _input_names(arguments), strict=False):
        values[tensor.name] = draw.input(name, tuple(tensor.shape), is_floating(tensor))
    return held, draw.graph(reader.run(graph, values))


def called(model: Any, arguments: Arguments, *values: Any) -> Any:
    """Return a model's output for the values of its arguments, without training."""
    args, kwargs = keras.tree.pack_sequence_as(arguments, list(values))
    return model(*args, **kwargs, training=False)


def _raw(variable: Any) -> Any:
    raw = variable._value if isinstance(variable, keras.Variable) else variable
    # Of a mirrored variable use one copy: in its strategy's scope the whole has no handle.
    return raw.values[0] if hasattr(raw, "_policy") and hasattr(raw, "values") else raw


def _input_names(arguments: Arguments) -> Iterator[str]:
    for path, _ in keras.tree.flatten_with_path(tuple(arguments)):
        words = [str(part) for part in path if isinstance(part, str)]
        yield ".".join(words) or "input"


def _renamer(model: Any) -> Any:
    """Return a function from ``model_1/block_1/add`` to ``block/add``, by the layers' names."""
    layers = {layer.name for layer in model._flatten_layers()}

    def name(part: str) -> str:
        base = re.sub(r"_\d+$", "", part)
        return base if base in layers else part

    def rename(op: str) -> str:
        *scopes, last = op.split("/")
        scopes = [name(scope) for scope in scopes]
        if scopes and scopes[0] == model.name:
            scopes = scopes[1:]
        return "/".join([*scopes, last])

    return rename
