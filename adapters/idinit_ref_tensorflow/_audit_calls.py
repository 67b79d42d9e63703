"""Both passes of an audit on Keras' JAX and PyTorch backends: `trace`'s calls are computed, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from idinit_ref.diagnostics.recording import Recording
from idinit_ref.diagnostics.verdict import check_outputs
from idinit_ref.tracing import Drawing, Made, Signal, Value

from ._audit import cotangents_of, own_name, trained
from ._layers import known_weights
from ._trace import Arguments, Held, _drawing, _input_names, _parameters
from ._walk import Walker

__all__ = ["prepared"]


def prepared(
    model: Any, arguments: Arguments, given: Sequence[Any], recording: Recording
) -> Callable[[], Any]:
    """Return a function that runs both passes, for their measurements and gradients."""
    held = _parameters(model)
    variables = trained(held)
    names: list[str] = []  # of the nodes of the inputs
    floats = [at for at, x in enumerate(given) if keras.backend.is_float_dtype(_dtype(x))]

    def forward(values: Sequence[Any], starts: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        full = list(given)
        for at, start in zip(floats, starts, strict=True):
            full[at] = start
        draw = _drawing(held)
        runner = _Runner(draw, held, dict(zip(variables, values, strict=True)), recording)
        names.clear()
        words = _input_names(arguments)
        for leaf, name, real in zip(keras.tree.flatten(arguments), words, full, strict=True):
            is_float = keras.backend.is_float_dtype(leaf.dtype)
            value = draw.input(name, tuple(leaf.shape), is_float)
            names.append(own_name(name, value, len(names)))
            runner.note(leaf, value)
            runner.real[id(leaf)] = real
        results = keras.tree.flatten(runner.call(model, *arguments.args, **arguments.kwargs))
        results = [one for one in results if isinstance(one, keras.KerasTensor)]
        results = [one for one in results if keras.backend.is_float_dtype(one.dtype)]
        check_outputs(len(results), type(model))
        recording.drew(draw, draw.graph([runner.value(one) for one in results]))
        return [runner.real[id(one)] for one in results], recording.looks["nodes"]

    def cotangents(ends: Sequence[Any]) -> list[Any]:
        pairs = zip(cotangents_of(ends), ends, strict=True)
        return [keras.ops.convert_to_tensor(sign, _dtype(end)) for sign, end in pairs]

    def whole(values: list[Any], starts: list[Any]) -> Any:
        ends, nodes, gradients = _differentiate(forward, cotangents, values, starts)
        recording.looks["nodes"] = nodes
        ends, values, gradients = (
            [keras.ops.stop_gradient(x) for x in many] for many in (ends, values, gradients)
        )
        inputs = dict(zip(names, given, strict=True))
        held_values = dict(zip(variables, values, strict=True))
        return recording.end(inputs, ends, held_values, [names[at] for at in floats], gradients)

    def values() -> list[Any]:
        return [variable.value for variable in variables.values()]

    starts = [given[at] for at in floats]
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(whole).lower(values(), starts).compile()
        return lambda: compiled(values(), starts)
    seen = whole([x.detach() for x in values()], [x.detach() for x in starts])
    return lambda: seen


def _differentiate(
    forward: Any, cotangents: Any, values: list[Any], starts: list[Any]
) -> tuple[list[Any], dict[str, Any], list[Any]]:
    """Return the outputs, the measurements of the nodes, and the gradients."""
    if keras.backend.backend() == "jax":
        import jax

        ends, pull, nodes = jax.vjp(forward, values, starts, has_aux=True)
        by_value, by_start = pull(cotangents(ends))
        return ends, nodes, [*by_value, *by_start]
    import torch

    values, starts = ([x.requires_grad_() for x in many] for many in (values, starts))
    ends, nodes = forward(values, [x.clone() for x in starts])
    wanted, live = [*values, *starts], [end for end in ends if end.requires_grad]
    gradients: Any = [None] * len(wanted)
    if live:
        gradients = torch.autograd.grad(live, wanted, cotangents(live), allow_unused=True)
    pairs = zip(wanted, gradients, strict=True)
    return ends, nodes, [torch.zeros_like(x) if dx is None else dx for x, dx in pairs]


class _Runner(Walker):
    """Follows symbolic tensors, and also computes each call that it draws on real ones."""

    def __init__(
        self, draw: Drawing, held: Sequence[Held], values: Mapping[str, Any], recording: Recording
    ) -> None:
        super().__init__(draw, {id(one.variable): one.parameter.name for one in held})
        self.recording = recording
        self.pairs = [
            (one.variable, values.get(one.parameter.name, one.variable.value)) for one in held
        ]
        self.real: dict[int, Any] = {}  # by the id of a symbolic tensor

    def note(self, tensor: Any, value: Value) -> Any:
        """Keep the value of a symbolic tensor; if it stands for a variable, also its array."""
        if isinstance(value, Made) and len(value.parts) == 1:
            reals = {self.names[id(one)]: real for one, real in self.pairs}
            self.real[id(tensor)] = keras.ops.cast(reals[value.parts[0].name], tensor.dtype)
        return super().note(tensor, value)

    def hold(self, tensor: Any, array: Any) -> Any:
        """Keep the value of a symbolic tensor that stands for a constant array, and the array."""
        self.real[id(tensor)] = array
        return super().hold(tensor, array)

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        """Draw a call, and compute it if it was not entered."""
        drawn = len(self.draw.nodes)
        results = super().call(op, *args, **kwargs)
        flat = [x for x in keras.tree.flatten(results) if isinstance(x, keras.KerasTensor)]
        if any(id(one) not in self.real or isinstance(self.value(one), Made) for one in flat):
            self._compute(op, args, kwargs, flat, drawn)
        return results

    def _compute(self, op: Any, args: Any, kwargs: Any, flat: list[Any], drawn: int) -> None:
        """Compute a call, and measure its results; of a layer also those before its activation."""

        def real(leaf: Any) -> Any:
            return self.real[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf

        read = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        args, kwargs = keras.tree.map_structure(real, (args, kwargs))
        kwargs.pop("training", None)
        linear: Any = keras.activations.linear
        activation: Any = getattr(op, "activation", None)
        new = [node for node in self.draw.nodes[drawn:] if node.kind == "weight"]
        split = bool(new) and isinstance(op, keras.layers.Layer) and bool(known_weights(op))
        split = split and not isinstance(op, keras.layers.RNN) and activation is not None
        with keras.StatelessScope(state_mapping=self.pairs):
            try:
                if split:
                    vars(op)["activation"] = linear
                if isinstance(op, keras.layers.Layer) and op._call_has_training_arg:
                    kwargs["training"] = False
                output = op(*args, **kwargs)
            finally:
                if split:
                    vars(op)["activation"] = activation
            if split or (len(new) == 1 and len(flat) == 1):
                first = getattr(op, "data_format", "") == "channels_first"
                rank = len(flat[0].shape)
                self._measure(new[-1].name, output, (1, 2) if first else (rank - 1, rank))
            output = activation(output) if split else output
        before, after = ([(self.value(x), x) for x in xs] for xs in (read, flat))
        self.recording.link(before, after, self.draw.nodes[drawn:])
        for symbol, result in zip(flat, keras.tree.flatten(output), strict=True):
            self.real[id(symbol)] = result
            value = self.value(symbol)
            if isinstance(value, Signal):
                self._measure(value.node, result)

    def _measure(self, node: str, x: Any, units: tuple[int, int] | None = None) -> None:
        if keras.backend.is_float_dtype(_dtype(x)):
            self.recording.see(node, keras.ops.stop_gradient(x), units)


def _dtype(x: Any) -> str:
    return str(keras.backend.standardize_dtype(x.dtype))
