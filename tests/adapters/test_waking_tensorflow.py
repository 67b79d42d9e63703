"""What an audit of a Keras model says of waking, beside real training of the same model.

With KERAS_BACKEND=jax or torch the same holds of Keras' own calls.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import idinit_ref_tensorflow as irk
from idinit_ref.errors import OptionTypeError

ops = keras.ops

pytestmark = pytest.mark.filterwarnings(  # of NumPy, where Keras converts PyTorch's tensors
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def numpy(x):
    x = x.value if isinstance(x, keras.Variable) else x
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def samples(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def select(kernel):
    """Selective kernels: a softmax weighs two branches, by what they have found."""
    layers = keras.layers
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    a = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(h)
    b = layers.Conv2D(8, kernel, padding="same", activation="relu", name="b")(h)
    z = layers.GlobalAveragePooling2D()(a + b)
    w = layers.Dense(16, name="logits")(layers.Dense(4, activation="relu", name="squeeze")(z))
    w = layers.Softmax(1)(layers.Reshape((2, 1, 1, 8))(w))
    y = layers.GlobalAveragePooling2D()(a * w[:, 0] + b * w[:, 1])
    return keras.Model(x, layers.Dense(3, name="head")(y))


class Attend(keras.layers.Layer):
    def __init__(self, name):
        super().__init__(name=name)
        self.q, self.k, self.v, self.out = (keras.layers.Dense(8, name=n) for n in "qkvo")

    def build(self, x_shape, y_shape):
        for layer in (self.q, self.k, self.v, self.out):
            layer.build((None, None, 8))

    def call(self, x, y):
        a = ops.matmul(self.q(x), ops.transpose(self.k(y), (0, 2, 1))) / 8**0.5
        return self.out(ops.matmul(ops.softmax(a), self.v(y)))


class Perceiver(keras.Model):
    """Latents read the input, and output queries read the latents: eps times eps at first."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads
        self.latents, self.queries = (
            self.add_weight(shape=(n, 8), initializer=lambda s, dtype=None: samples(*s), name=name)
            for n, name in ((6, "latents"), (2, "queries"))
        )
        self.encode, self.decode = Attend("encode"), Attend("decode")
        self.head = keras.layers.Dense(3, name="head")

    def call(self, x, training=False):
        x = x if self.reads else x * 0 + 1
        z, q = (ops.broadcast_to(t, (x.shape[0], *t.shape)) for t in (self.latents, self.queries))
        z = z + self.encode(z, x)
        return self.head(q + self.decode(q, z))


@ops.custom_gradient
def stop(x):
    def gradient(*given, upstream=None):
        return 0 * (given[0] if upstream is None else upstream)

    return ops.relu(x), gradient


class Stop(keras.layers.Layer):
    def call(self, x):
        return stop(x)


def stopped():
    x = keras.Input((8,))
    h = keras.layers.Dense(8, name="first")(x)
    b = Stop()(keras.layers.Dense(16, name="up")(h))
    h = h + keras.layers.Dense(8, name="down")(b)
    return keras.Model(x, keras.layers.Dense(3, name="head")(h))


def res():
    x = keras.Input((8,))
    h = keras.layers.Dense(8, name="first")(x)
    b = keras.layers.Dense(16, activation="relu", name="up")(keras.layers.BatchNormalization()(h))
    h = h + keras.layers.Dense(8, name="down")(keras.layers.Dropout(0.5)(b))
    return keras.Model(x, keras.layers.Dense(3, name="head")(h))


def beside():
    """Selective kernels inside a residual branch: all that they select from is of size eps."""
    x = keras.Input((16, 16, 3))
    h = keras.layers.Conv2D(8, 3, name="first")(x)
    both = [keras.layers.Conv2D(8, k, padding="same", name=f"k{k}")(h) for k in (3, 5)]
    z = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()(both))
    z = keras.layers.Dense(4, activation="relu", name="squeeze")(z)
    w = keras.layers.Reshape((2, 8))(keras.layers.Dense(16, name="logits")(z))
    w = keras.layers.Softmax(axis=1)(w)
    parts = [part * w[:, k, None, None] for k, part in enumerate(both)]
    return keras.Model(x, keras.layers.Conv2D(3, 1, name="head")(h + (parts[0] + parts[1])))


class Mix(keras.layers.Layer):
    """A sum that a learned softmax weighs: its logits have no gradient while terms are equal."""

    def build(self, shapes):
        self.logits = self.add_weight(shape=(2,), initializer="zeros", name="logits")

    def call(self, parts):
        w = ops.softmax(self.logits)
        return w[0] * parts[0] + w[1] * parts[1]


def mixed():
    x = keras.Input((8,))
    mix = Mix()([keras.layers.Dense(8, name=name)(x) for name in "ab"])
    return keras.Model(x, keras.layers.Dense(3, name="head")(x + mix))


KINDS = {
    "twins that logits mix": (mixed, (6, 8), {}, False),
    "select of two samples": (beside, (2, 16, 16, 3), {}, True),
    "select": (lambda: select(5), (4, 8, 8, 3), {}, True),
    "twins": (lambda: select(3), (4, 8, 8, 3), {}, False),
    "perceiver": (lambda: Perceiver(True), (4, 5, 8), {}, True),
    "blind perceiver": (lambda: Perceiver(False), (4, 5, 8), {}, False),
    "zero head": (res, (6, 8), {"head/kernel": 0}, True),
    "zero entry and head": (res, (6, 8), {"head/kernel": 0, "first/kernel": 0}, False),
    "dead ReLU": (res, (6, 8), {"up/bias": -100}, False),
    "dead ReLU behind 0": (res, (6, 8), {"up/bias": -100, "first/kernel": 0}, False),
}
if keras.backend.backend() == "tensorflow":  # the others do not look into such a function
    KINDS["gradient of 0"] = (stopped, (6, 8), {}, False)


def started(kind):
    """Return the model of a kind as `init_` and the given values leave it, and samples."""
    keras.utils.set_random_seed(0)
    build, shape, values, _ = KINDS[kind]
    model, x = build(), samples(*shape)
    irk.init_(model, x)
    for variable in model.trainable_variables:
        if variable.path in values:
            variable.assign(np.full(variable.shape, values[variable.path]))
    return model, x


def gradients(model, x, target):
    """Return the gradients of a squared error, of each backend its own way."""
    variables = model.trainable_variables
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x, training=False) - target))
        return tape.gradient(loss, variables, unconnected_gradients="zero")
    if backend == "jax":
        import jax

        def loss(values):
            states = [v.value for v in model.non_trainable_variables]
            y, _ = model.stateless_call(values, states, x, training=False)
            return ops.mean(ops.square(y - target))

        return jax.grad(loss)([v.value for v in variables])
    import torch

    loss = ops.mean(ops.square(model(x, training=False) - target))
    tensors = [v.value for v in variables]
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.cases(4)
def test_what_wakes_in_training_is_a_remark_and_what_never_does_a_failure(kind):
    model, x = started(kind)
    before = [numpy(v).tobytes() for v in model.variables]
    keys = [sorted(vars(layer)) for layer in model._flatten_layers()]
    audit = irk.audit(model, x, steps=3)
    assert before == [numpy(v).tobytes() for v in model.variables]
    assert keys == [sorted(vars(layer)) for layer in model._flatten_layers()]

    target = ops.convert_to_tensor(samples(3, seed=7))
    asleep = {v.path for v in model.trainable_variables}
    for _ in range(8):
        slopes = [numpy(ops.convert_to_tensor(dx)) for dx in gradients(model, x, target)]
        for variable, slope in zip(model.trainable_variables, slopes, strict=True):
            asleep -= {variable.path} if slope.any() else set()
            variable.assign(numpy(variable) - 0.1 * slope)
    y = numpy(model(x, training=False))
    varies = abs(y - y[:1]).max() > 1e-6 * abs(y).max()
    assert {one.name for one in audit.dead if not one.wakes} == asleep
    assert any("the output does not" in said for said in audit.healthy) != bool(varies)
    assert bool(audit.healthy) == KINDS[kind][-1]
    if audit.healthy:
        assert audit.steps in (1, 2, 3)
        assert audit.remarks[0].startswith("ends after 1 step of training: ")


@pytest.mark.cases(1)
def test_the_model_is_as_it_was_after_an_error_in_the_second_look(monkeypatch):
    model, x = started("zero head")
    before = [numpy(v).tobytes() for v in model.variables]
    assign, count = keras.Variable.assign, [0]

    def refuse(self, value):
        count[0] += 1
        if count[0] == 3:
            raise RuntimeError("no more")
        return assign(self, value)

    monkeypatch.setattr(keras.Variable, "assign", refuse)
    audit = irk.audit(model, x, steps=3)
    assert not audit.healthy
    assert "no more" in audit.limits[-1]
    assert before == [numpy(v).tobytes() for v in model.variables]


def test_frozen_and_stateful_layers_stay():
    model, x = started("zero head")
    model.get_layer("head").trainable = False
    audit = irk.audit(model, x, steps=3)
    assert not audit.healthy
    given = keras.Input(batch_shape=(2, 3, 4))
    h = keras.layers.GRU(4, stateful=True)(given)
    model = keras.Model(given, keras.layers.Dense(3, kernel_initializer="zeros")(h))
    audit = irk.audit(model, samples(2, 3, 4), steps=3)
    assert audit.healthy
    assert audit.woken[0] == "the output"
    assert not any(numpy(v).any() for v in model.layers[1].states)


@pytest.mark.parametrize("head", ["random", "zero"])
def test_without_steps_the_model_runs_once(head):
    """The contract of the default: one forward pass."""
    runs = []

    class Told(keras.layers.Layer):
        def call(self, x):
            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                tf.py_function(lambda: runs.append(1), [], [])
            return x * 1

    x = keras.Input((8,))
    y = Told()(keras.layers.Dense(8)(x))
    model = keras.Model(x, keras.layers.Dense(3, name="head")(y))
    irk.init_(model)
    if head == "zero":
        model.get_layer("head").kernel.assign(np.zeros((8, 3)))
    runs.clear()
    audit = irk.audit(model, samples(6, 8))
    once = keras.backend.backend() == "tensorflow"  # the others also call it on symbols
    assert len(runs) == once
    assert (audit.steps, audit.woken) == (0, ())
    assert bool(audit.healthy) == (head == "random")
    unknown = [said for said in audit.limits if " is unknown: steps=0" in said]
    assert len(unknown) == (head == "zero")
    after = irk.audit(model, samples(6, 8), steps=3)
    assert after.healthy
    assert len(runs) == once * (2 if head == "random" else 3)
    with pytest.raises(OptionTypeError, match="steps = '1'"):
        irk.audit(model, samples(6, 8), steps="1")
