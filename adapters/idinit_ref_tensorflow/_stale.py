"""Functions of TensorFlow inside a model that were traced before its variables had values.

Keras builds a model by a symbolic call, in which a variable without a value reads as a constant:
new random numbers. A ``tf.function`` in the model that is traced there keeps these constants, and
uses them for all later inputs of the same shapes. The variables then have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras

from idinit_ref.errors import GraphError, message

__all__ = ["check_reads", "inline"]


def inline(call: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """Call with each ``tf.function`` as the Python function behind it, so that none is traced.

    Call `otherwise` as usual if one needs autograph, which allows ``if`` of a tensor.
    """
    if keras.backend.backend() != "tensorflow":
        return call()
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return call()
    except tf.errors.OperatorNotAllowedInGraphError:
        pass
    finally:
        tf.config.run_functions_eagerly(before)
    return otherwise()


def check_reads(
    graph: Any, call: Callable[..., Any], specs: Sequence[Any], names: Mapping[int, str]
) -> None:
    """Raise if a function in a model lacks variables that its Python code reads.

    Parameters
    ----------
    graph : tf.Graph
        Of `call` with `specs`.
    call : callable
        The computation, of tensors as in `specs`.
    specs : sequence of tf.TensorSpec
        The inputs.
    names : mapping of int to str
        The names of the model's variables, by the id of their resource handle.
    """
    unread = names.keys() - {id(outside) for outside, _ in graph.captures}
    attributes = (each for op in graph.get_operations() for each in op.op_def.attr)
    if not unread or not any("func" in each.type for each in attributes):
        return
    fresh = _captured_anew(call, specs)
    missed = [names[id(one)] for one in fresh if id(one) in unread]
    if missed:
        raise GraphError(
            message(
                "model",
                ", ".join(missed[:3]) + ", ..." * (len(missed) > 3),
                "a tf.function in the model should read these variables; it was traced before, "
                "when Keras built the model, and holds constants in their place: for inputs of "
                "these shapes the variables have no effect, and are not trained",
                "make the model anew and build it by a call with a batch size that nothing else "
                "has; or pass inputs of another batch size",
            )
        )


def _captured_anew(call: Callable[..., Any], specs: Sequence[Any]) -> list[Any]:
    """Return what a computation captures if the functions in it are traced anew.

    Those that need autograph are called with another batch size, which has no trace yet.
    """
    import tensorflow as tf

    def captured(specs: Sequence[Any]) -> list[Any]:
        graph = tf.function(call, autograph=False).get_concrete_function(*specs).graph
        return [outside for outside, _ in graph.captures]

    shapes = [list(one.shape) for one in specs]
    more = [
        tf.TensorSpec([n + 1 for n in shape[:1]] + shape[1:], one.dtype)
        for shape, one in zip(shapes, specs, strict=True)
    ]
    with tf.init_scope():
        try:
            return list(inline(partial(captured, specs), partial(captured, more)))
        except Exception:  # it accepts no other size: what it reads cannot be told
            return []
