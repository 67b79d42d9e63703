"""The audit of Keras models, beside the same numbers from the layers themselves.

With KERAS_BACKEND=jax or torch the same holds of Keras' own calls.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import idinit_ref_tensorflow as irk
from idinit_ref.errors import GraphError, OptionError, OptionTypeError

IS_TF = keras.backend.backend() == "tensorflow"

pytestmark = pytest.mark.filterwarnings(  # of NumPy, where Keras converts PyTorch's tensors
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def block(x, name):
    h = keras.layers.LayerNormalization(name=f"{name}n")(x)
    h = keras.layers.Dense(16, activation="relu", name=f"{name}up")(h)
    return x + keras.layers.Dense(8, name=f"{name}down")(h)


def net():
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    h = keras.layers.Dense(8, name="first")(x)
    h = keras.layers.BatchNormalization(name="norm")(block(h, "a"))
    h = keras.layers.Dropout(0.5)(block(h, "b"))
    return keras.Model(x, keras.layers.Dense(3, name="head")(h))


def numpy(x):
    x = x.value if isinstance(x, keras.Variable) else x
    return x.detach().numpy() if hasattr(x, "detach") else np.asarray(x)


def samples(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.cases(1)
@pytest.mark.parametrize("started", [False, True], ids=["default", "idinit"])
def test_the_numbers_are_those_of_the_layers(started):
    model, x = net(), samples(4, 6)
    if started:
        irk.init_(model)
    audit = irk.audit(model, x)
    assert audit.healthy
    names = ["first", "adown", "bdown", "head"]
    parts = keras.Model(model.input, [model.get_layer(name).output for name in names])
    for name, value in zip(names, parts(x, training=False), strict=True):
        wide = numpy(value).astype(np.float64)
        assert audit.second_moments[name] == pytest.approx(np.mean(wide**2), rel=1e-4)
    assert list(audit.second_moments) == ["first", "aup", "adown", "bup", "bdown", "head"]
    first = numpy(parts(x, training=False)[0]).astype(np.float64)
    assert audit.branches[0].skip_rms == pytest.approx(np.sqrt(np.mean(first**2)), rel=1e-4)
    assert all((branch.ratio < 1e-5) == started for branch in audit.branches)
    assert len(audit.branches) == 2


@pytest.mark.parametrize("step", [keras.ops.round, keras.ops.sign])
def test_a_bias_that_is_rounded_is_named_so_and_does_not_cancel(step):
    class Rounded(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(6, 6), initializer="identity", name="w")
            self.b = self.add_weight(shape=(6,), initializer="zeros", name="b")

        def call(self, x):
            return keras.ops.matmul(x, self.w) + step(self.b)

    model, x = keras.Sequential([keras.Input((6,)), Rounded()]), samples(4, 6)
    before = numpy(model(x))
    audit = irk.audit(model, x)
    model.layers[0].b.assign(np.arange(6))
    assert (numpy(model(x)) != before)[:, 1:].all()
    assert f"b): no gradient passes {step.__name__}" in audit.healthy[0].lower()
    assert "cancels" not in str(audit)


def test_a_bias_that_one_of_two_equal_calls_stops_is_not_said_to_cancel():
    ops = keras.ops

    class Calls(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(6, 6), initializer="identity", name="w")
            self.b = self.add_weight(shape=(6,), initializer="zeros", name="b")

        def call(self, x):
            learnt = ops.matmul(x, self.w) + self.b
            given = ops.matmul(x, self.w) + ops.stop_gradient(self.b)
            return ops.stop_gradient(ops.sigmoid(learnt)) * given

    model = keras.Sequential([keras.Input((6,)), Calls(), keras.layers.Dense(2)])
    audit = irk.audit(model, samples(4, 6))
    assert [one.name.rpartition("/")[2] for one in audit.dead] == ["b"]
    assert "cancels" not in str(audit)


def test_a_relu_that_is_never_on_and_a_weight_of_zeros_are_found():
    model, x = net(), samples(4, 6)
    irk.init_(model)
    model.get_layer("aup").bias.assign(np.full(16, -100.0))
    audit = irk.audit(model, x)
    dead = {one.name for one in audit.dead if not one.wakes}
    assert dead == {"an/gamma", "an/beta", "aup/kernel", "aup/bias", "adown/kernel"}
    behind = {one.behind for one in audit.dead if not one.wakes}
    assert behind == {"aup/Relu" if IS_TF else "aup: activation"}
    model.get_layer("first").kernel.assign(np.zeros((6, 8)))
    audit = irk.audit(model, x, steps=3)
    assert audit.output_varies is False
    assert audit.woken[0] == "the output"  # the zeros move at the first step
    assert "the signal dies at first" in audit.remarks[0]
    assert {one.name for one in audit.dead if not one.wakes} >= {"aup/kernel", "adown/kernel"}


class Masked(keras.Model):
    def __init__(self, way):
        super().__init__()
        self.qkv, self.out = keras.layers.Dense(24), keras.layers.Dense(8, name="out")
        self.way = way

    def call(self, x):
        q, k, v = keras.ops.split(self.qkv(x), 3, -1)
        a, causal = q @ keras.ops.transpose(k, (0, 2, 1)) / 8**0.5, np.tri(5, dtype=bool)
        if self.way == "where":
            a = keras.ops.where(causal, a, -np.inf)
        else:
            a = a + np.where(causal, 0, -np.inf).astype(np.float32)
        return x + self.out(keras.ops.softmax(a) @ v)


@pytest.mark.parametrize("way", ["where", "add"])
@pytest.mark.cases(1)
def test_a_mask_of_infinities_is_no_fault(way):
    model, x = Masked(way), samples(3, 5, 8)
    irk.init_(model, x)
    audit = irk.audit(model, x)
    assert audit.healthy, audit.healthy
    assert len(audit.branches) == 1
    model.out.kernel.assign(np.full((8, 8), np.nan))
    assert audit != irk.audit(model, x)
    assert not irk.audit(model, x).healthy


class Custom(keras.Model):
    def __init__(self):
        super().__init__()
        self.a, self.b = keras.layers.Dense(6, name="a"), keras.layers.Dense(6, name="b")

    def call(self, x):
        return x + self.b(keras.ops.stop_gradient(self.a(x)))


STEPS = {
    "round": keras.ops.round,
    "cast": lambda h: keras.ops.cast(h > 0, "float32"),
    "one_hot": lambda h: keras.ops.one_hot(keras.ops.argmax(h, -1), 16),
}


class Stepped(Custom):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def call(self, x):
        return x + self.b(STEPS[self.step](self.a(x)))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.cases(1)
def test_what_lets_no_gradient_through_is_the_cause(step):
    model, x = Stepped(step), samples(4, 6)
    irk.init_(model, x)
    audit = irk.audit(model, x)
    assert not audit.healthy
    assert {one.name.split("/")[-2] for one in audit.dead} == {"a"}
    assert step in audit.dead[0].behind.lower()
    assert not audit.unused


class Two(keras.Model):
    def __init__(self):
        super().__init__()
        self.up, self.down = keras.layers.Dense(16, name="up"), keras.layers.Dense(8, name="down")

    def call(self, x, c):
        c = c if keras.backend.is_float_dtype(c.dtype) else keras.ops.one_hot(c, 4)
        return x + self.down(keras.ops.relu(self.up(c)))


@pytest.mark.parametrize("stop", [False, True])
def test_a_bias_that_cancels_is_a_remark_and_one_behind_a_stop_a_failure(stop):
    class Siamese(keras.Model):
        def __init__(self):
            super().__init__()
            self.e, self.c = keras.layers.Dense(4, name="e"), keras.layers.Dense(2, name="c")

        def call(self, a, b):
            a, b = self.e(a), self.e(b)
            if stop:
                a, b = keras.ops.stop_gradient(a), keras.ops.stop_gradient(b)
            return self.c(keras.ops.abs(a - b))

    keras.utils.set_random_seed(0)
    model, pair = Siamese(), (samples(5, 6), samples(5, 6)[::-1] + 1)
    before = numpy(model(*pair))
    audit = irk.audit(model, pair)
    model.e.bias.assign_add(np.ones(4))
    np.testing.assert_allclose(numpy(model(*pair)), before, rtol=1e-4, atol=1e-5)
    assert bool(audit.healthy) != stop, audit.healthy
    assert any(one.name.endswith("e/bias") for one in audit.dead)
    assert any(text.startswith("cancels: ") for text in audit.remarks) != stop


def functional_two():
    a, b = keras.Input((8,), name="a"), keras.Input((4,), name="b")
    h = keras.layers.Dense(16, activation="relu", name="up")(b)
    return keras.Model([a, b], a + keras.layers.Dense(8, name="down")(h))


@pytest.mark.parametrize("kind", ["two arguments", "integers beside", "a list", "a tuple"])
@pytest.mark.cases(2)
def test_a_model_of_several_inputs_is_audited(kind):
    x, c = samples(3, 8), samples(3, 4)
    given = (x, np.arange(3, dtype=np.int32)) if kind == "integers beside" else (x, c)
    model = Two() if kind in ("two arguments", "integers beside") else functional_two()
    given = [*given] if kind == "a list" else given
    irk.init_(model, given)
    audit = irk.audit(model, given)
    assert audit.healthy, audit.healthy
    assert audit.output_varies
    if kind != "integers beside":  # a kernel that reads a one-hot is a table
        up = c @ numpy(model.get_layer("up").kernel)
        assert audit.second_moments["up"] == pytest.approx(np.mean(up**2), rel=1e-4)


def test_adds_in_a_models_own_code_are_seen_and_a_stopped_layer_is_found():
    model, x = Custom(), samples(4, 6)
    model(x)
    audit = irk.audit(model, x)
    assert len(audit.branches) == 1
    assert {one.name.split("/")[-2] for one in audit.dead} == {"a"}
    assert all("stop_gradient" in one.why for one in audit.dead)


@pytest.mark.nightly
@pytest.mark.skipif(not IS_TF, reason="a wide net; on the other backends it is only slower")
def test_a_deep_plain_net_whose_image_is_moved_out_of_sight_is_dead():
    x = h = keras.Input((16, 16, 3))
    for k in range(9):
        h = keras.layers.Conv2D(16, 3, padding="same", activation="relu", name=f"conv{k}")(h)
        h = keras.layers.MaxPooling2D()(h) if k in (2, 5) else h
    model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(h))
    irk.init_(model, taps="channel_major")
    audit = irk.audit(model, abs(samples(2, 16, 16, 3)))
    assert audit.output_varies is False
    assert "the signal dies at conv" in audit.healthy[0]
    irk.init_(model)
    assert irk.audit(model, abs(samples(2, 16, 16, 3))).healthy


def test_the_model_is_as_it_was_to_the_bit():
    model, x = net(), samples(4, 6)
    before = [numpy(v).tobytes() for v in model.variables]
    keys = [sorted(vars(layer)) for layer in model.layers]
    flags = [layer.activation for layer in model.layers if hasattr(layer, "activation")]
    given, state = x.copy(), np.random.get_state()
    irk.audit(model, x)
    assert before == [numpy(v).tobytes() for v in model.variables]
    assert keys == [sorted(vars(layer)) for layer in model.layers]
    assert flags == [layer.activation for layer in model.layers if hasattr(layer, "activation")]
    assert (x == given).all()
    assert all(map(np.array_equal, state, np.random.get_state()))


def test_the_state_of_a_recurrent_layer_is_given_back():
    x = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(x, keras.layers.GRU(4, stateful=True)(x))
    irk.audit(model, samples(2, 3, 4))
    assert not any(numpy(v).any() for v in model.layers[1].states)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")  # JAX, of 64 bits
def test_tokens_alone_are_judged_by_samples_and_embeddings():
    x = keras.Input((3,), dtype="int32")
    h = block(keras.layers.Embedding(10, 8, name="table")(x), "a")
    model = keras.Model(x, keras.layers.Dense(3)(h))
    irk.init_(model)
    audit = irk.audit(model, np.array([[1, 2, 3], [4, 5, 6]]))
    assert audit.healthy
    assert audit.output_varies
    assert audit.input_gradient is None


class Unbuilt(keras.Model):
    def call(self, x):
        return x


STILL = keras.Sequential([keras.Input((6,)), keras.layers.ReLU()])


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")  # JAX, of 64 bits
@pytest.mark.parametrize(
    ("model", "x", "error", "said"),
    [
        (None, np.zeros((2, 6)), OptionError, "zeros only"),
        (None, np.full((2, 6), np.nan), OptionError, "infinities or NaN"),
        (None, None, GraphError, "^inputs = None.*should have values"),
        (None, np.array([b"x"], object), GraphError, "^inputs = "),
        (Unbuilt(), None, GraphError, "^inputs = None.*pass an array"),
        (None, np.ones((2, 7)), GraphError, "^inputs = .*should accept them"),
        (STILL, np.ones((2, 6)), GraphError, "trainable weights"),
        (3, np.ones((2, 6)), OptionTypeError, "keras.Model"),
    ],
    ids=["zeros", "NaN", "none", "text", "unbuilt", "too wide", "no weights", "no model"],
)
def test_bad_inputs_are_errors_of_one_line(model, x, error, said):
    with pytest.raises(error, match=said) as caught:
        irk.audit(net() if model is None else model, x)
    assert "\n" not in str(caught.value)


class Positions(keras.layers.Layer):
    """A layer with parameters that reads constants alone, before a residual block."""

    def __init__(self):
        super().__init__(name="inner")
        self.first, self.second, self.last = (keras.layers.Dense(8, name=n) for n in "abc")

    def call(self, x):
        waves = keras.ops.sin(keras.ops.reshape(keras.ops.arange(40, dtype="float32"), (5, 8)))
        x = x + self.second(keras.ops.relu(self.first(waves)))[None]
        return x + self.last(keras.ops.tanh(x))


class Queries(keras.layers.Layer):
    """Learned queries: rows of an embedding at constant ids."""

    def __init__(self):
        super().__init__(name="inner")
        self.rows = keras.layers.Embedding(3, 8, name="rows")
        self.first, self.second = (keras.layers.MultiHeadAttention(2, 4, name=n) for n in "ab")

    def call(self, x):
        z = keras.ops.repeat(self.rows(keras.ops.arange(3))[None], 2, 0)
        z = z + self.first(z, x)
        return z + self.second(z, x)


class Outer(keras.Model):
    def __init__(self, inner):
        super().__init__(name="outer")
        self.inner = inner

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [(Positions, {"c/kernel"}), (Queries, {f"{n}/attention_output/kernel" for n in "ab"})],
)
def test_layers_that_read_constants_are_followed(kind, ends):
    model, x = Outer(kind()), samples(2, 5, 8)
    model(x)
    report = irk.init_(model, x, strict=True)
    found = {name.split("inner/")[1]: role for name, role in report.roles.items()}
    assert {name for name, role in found.items() if role == "zero"} == ends
    assert {name for name, role in found.items() if role == "keep"} <= {"rows/embeddings"}
    audit = irk.audit(model, x)
    assert audit.healthy
    assert audit.branches
    for variable in model.variables:
        if any(variable.path.endswith(end) for end in ends):
            variable.assign(np.zeros(variable.shape))
    inner = model.inner
    if kind is Queries:
        expected = numpy(inner.rows.embeddings)[None]
    else:
        waves = np.sin(np.arange(40, dtype="float32").reshape(5, 8))
        expected = x + numpy(inner.second(keras.ops.relu(inner.first(waves))))
    expected = np.broadcast_to(expected, (2, *expected.shape[1:]))
    np.testing.assert_allclose(numpy(model(x)), expected, atol=1e-6)
