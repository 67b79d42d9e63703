"""The second look of an audit, on small functions of NumPy and on runs told by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from idinit_ref import Graph, Node
from idinit_ref.diagnostics.facts import TensorFacts
from idinit_ref.diagnostics.signals import Record
from idinit_ref.diagnostics.waking import Look, stepped, steps_of, watched
from idinit_ref.errors import OptionError, OptionTypeError

EPS = 2.0**-23


def fact(x, batch=1):
    x = np.asarray(x, float)
    spread = abs(x - x[:1]).max() if batch > 1 else None
    return TensorFacts(float(abs(x).max()), float((x**2).mean()), spread, EPS, np.isfinite(x).all())


X = np.array([[1.0], [3.0]])


def product(values, faulty=None):
    """The run of y = c * b * relu(a * x), with gradients to 1 for each sample; all are numbers."""
    a, b, c = (np.asarray(values[name], float) for name in "abc")
    h = a * X
    on = h > 0
    r = h * on
    gradients = {"a": (c * b * on * X).sum(), "b": (c * r).sum(), "c": (b * r).sum()}
    nodes = [Node("x", "input", shape=(2, 1))]
    nodes += [Node(name, "parameter", shape=(1, 1), use="weight") for name in "abc"]
    steps = [("h", "x", "a"), ("relu", "h", ""), ("m", "relu", "b"), ("y", "m", "c")]
    nodes += [
        Node(name, "weight" if weight else "other", (before,), (2, 1), weights=(*weight,))
        for name, before, weight in steps
    ]
    results = {"x": X, "h": h, "relu": r, "m": r * b, "y": r * b * c}
    record = Record(
        2,
        {"x": fact(X, 2)},
        Graph(nodes, ["y"]),
        {name: fact(value, 2) for name, value in results.items()},
        [fact(faulty if faulty is not None else results["y"], 2)],
        {name: fact([value]) for name, value in values.items()},
        {name: fact([value]) for name, value in gradients.items()},
        {"x": fact(c * b * a * on)},
        {"a": ("h",), "b": ("m",), "c": ("y",)},
    )
    return Look(record, values, gradients)


def step(value, gradient, part):
    return value - 0.1 * part * np.sign(gradient)


def audited(start):
    return watched(lambda values: product({**start, **values}), step, steps=3)


@pytest.mark.parametrize(
    ("start", "woken", "dead"),
    [
        ((1, 1, 1), "", ""),
        ((1, 1, 0), "y", ""),
        ((1, 0, 1), "y", ""),
        ((1, 0, 0), "", "abc"),  # two zeros in a row
        ((-1, 1, 1), "", "abc"),  # a ReLU that is never on
        ((-0.05, 1, 1), "", "abc"),
        ((-1, 1, 0), "", "abc"),
    ],
    ids=str,
)
def test_what_a_step_ends_is_a_remark_and_what_it_does_not_a_failure(start, woken, dead):
    audit = audited(dict(zip("abc", start, strict=True)))
    assert bool(audit.healthy) == (not dead)
    assert {one.name for one in audit.dead if not one.wakes} == {*dead}
    assert ("the output" in audit.woken) == bool(woken)
    if woken:
        assert audit.steps == 1
        assert audit.remarks[0].startswith("ends after 1 step of training: the output does not")
        assert str(audit).startswith("healthy: what fails at the start ends within 1 step of")


@pytest.mark.parametrize("start", [(1, 1, 1), (1, 0, 0)], ids=["healthy", "no gradient"])
def test_there_is_no_second_look_where_it_could_tell_nothing(start):
    def look(values):
        assert not values
        return product(dict(zip("abc", start, strict=True)))

    audit = watched(look, step, steps=3)
    assert (audit.steps, audit.limits) == (0, ())


@pytest.mark.parametrize("way", [-1, 1, 0])
def test_what_ends_one_way_is_a_remark(way):
    """A ReLU that steps down turn off may be on after steps up, for the opposite loss."""

    def look(values):
        run = product({"a": 1.0, "b": 1.0, "c": 1.0, **values})
        moved = run.values["a"] - 1
        if way * moved <= 0:
            none = TensorFacts(0.0, 0.0, None, EPS)
            run.record.gradients |= {"b": none, "c": none}
            run.gradients.update(b=0.0, c=0.0)
        return run

    audit = watched(look, step, steps=3)
    assert bool(audit.healthy) == (way != 0)
    assert {*audit.woken} == ({"b", "c"} if way else set())
    assert audit.steps == (1 if way < 0 else 3)


def test_what_was_hidden_behind_a_zero_that_moves_is_a_failure():
    """The output wakes with c. A ReLU never lets a gradient through to a; c = 0 had hidden it."""

    def look(values):
        values = {"a": 1.0, "b": 1.0, "c": 0.0, **values}
        run = product(values)
        none = TensorFacts(0.0, 0.0, None, EPS)
        return run._replace(record=_without(run.record, none))

    def _without(record, none):
        record.gradients["a"] = none
        if record.gradients["b"].peak:  # once c has moved
            record.facts["relu"] = TensorFacts(1.0, 1.0, 0.0, EPS)
        return record

    audit = watched(look, step, steps=3)
    assert audit.woken == ("the output",)
    assert audit.steps == 3
    assert audit.healthy == (
        "1 parameter has a gradient of exactly 0 (a): relu is the same for all samples",
    )
    assert [(one.name, one.wakes) for one in audit.dead if not one.wakes] == [("a", False)]


@pytest.mark.parametrize("way", ["refused", "raises", "not finite"])
def test_without_a_second_look_the_failure_stays_and_the_limit_says_so(way):
    def look(values):
        if values and way == "raises":
            raise RuntimeError("no such\nvalue")
        bad = np.array([[np.nan], [1.0]]) if values else None
        return product({"a": 1.0, "b": 1.0, "c": 0.0, **values}, bad)

    audit = watched(look, step, "many ranks" if way == "refused" else "", steps=3)
    assert not audit.healthy
    assert audit.steps == 0
    assert not audit.woken
    said = {"refused": "many ranks", "raises": "no such value", "not finite": "not finite"}
    assert audit.limits[-1].startswith("whether training wakes the output is unknown")
    assert said[way] in audit.limits[-1]


@pytest.mark.parametrize("start", [(1, 1, 1), (1, 1, 0), (1, 0, 0), (-1, 1, 1)], ids=str)
def test_without_steps_there_is_one_run_and_a_limit_names_what_is_unknown(start):
    runs = []

    def look(values):
        runs.append(values)
        return product(dict(zip("abc", start, strict=True)))

    audit = watched(look, step)
    assert runs == [{}]
    assert (audit.steps, audit.woken) == (0, ())
    assert bool(audit.healthy) == (start == (1, 1, 1))
    said = [limit.partition(":")[0] for limit in audit.limits]
    unknown = ["whether training wakes the output is unknown"]
    assert said == (unknown if start == (1, 1, 0) else [])  # else no gradient moves anything


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_there_are_no_more_steps_than_asked_for(steps):
    """A ReLU that is never on, behind a weight that always has a gradient."""
    runs = []

    def look(values):
        runs.append(values)
        run = product({"a": 1.0, "b": 1.0, "c": 1.0, **values})
        run.record.gradients["b"] = TensorFacts(0.0, 0.0, None, EPS)
        run.record.facts["m"] = TensorFacts(1.0, 1.0, 0.0, EPS)
        return run

    audit = watched(look, step, steps=steps)
    assert not audit.healthy
    assert audit.steps == steps
    assert len(runs) == 1 + 2 * steps


@pytest.mark.parametrize(
    ("steps", "error"),
    [(-1, OptionError), (1.0, OptionTypeError), (True, OptionTypeError), (None, OptionTypeError)],
)
def test_a_wrong_number_of_steps_is_an_error(steps, error):
    with pytest.raises(error, match=f"steps = {steps!r}, but it should be an integer"):
        steps_of(steps)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_step_has_its_norm_in_every_dtype_and_moves_nothing_without_gradient(dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    gradient = np.zeros((300, 500), dtype)
    gradient[:, 10:300] = 1e-6 * np.sign(np.random.default_rng(0).standard_normal((300, 290)))
    value = np.zeros_like(gradient)
    moved = stepped(np, value, gradient, 1.0)
    assert moved.dtype == dtype
    wide = moved.astype(float)
    assert np.sqrt((wide**2).sum()) == pytest.approx(0.1, rel=0.01)
    few = stepped(np, value[:2, :3], np.ones((2, 3), dtype), 0.5)
    assert few.astype(float) == pytest.approx(-0.005, rel=0.01)
    assert (np.sign(wide) == -np.sign(gradient.astype(float))).all()
    assert not value.any()
    assert not stepped(np, value, value, 1.0).any()


def test_a_dtype_without_arithmetic_stays():
    value = np.ones(3, ml_dtypes.float8_e4m3fn)
    assert stepped(np, value, value, 1.0) is value
