"""What an audit makes of a run, told by hand; no framework has a part in it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from idinit_ref import Graph, Node
from idinit_ref.diagnostics import Audit, Health
from idinit_ref.diagnostics.audit import Layer
from idinit_ref.diagnostics.facts import TensorFacts, facts_of, look, signs
from idinit_ref.diagnostics.signals import Record
from idinit_ref.diagnostics.verdict import Verdict
from idinit_ref.errors import OptionError

EPS = 2.0**-23
SOME, NONE = TensorFacts(1.0, 0.25, 1.0, EPS), TensorFacts(0.0, 0.0, 0.0, EPS)
STILL = TensorFacts(1.0, 1.0, 0.0, EPS)
TINY = TensorFacts(1e-30, 1e-60, 1e-30, EPS)


def judge(record):
    return Verdict(record).audit()


def record(facts=(), gradients=(), **options):
    """A residual block, x + down(relu(up(x))), with a head: all is well but for what is given."""
    nodes = [
        Node("x", "input", shape=(2, 4)),
        *(Node(f"{n}.w", "parameter", shape=(4, 4), use="weight") for n in ("up", "down", "head")),
        Node("up", "weight", ("x",), (2, 4), weights=("up.w",)),
        Node("relu", "other", ("up",), (2, 4)),
        Node("down", "weight", ("relu",), (2, 4), weights=("down.w",)),
        Node("add", "add", ("x", "down"), (2, 4)),
        Node("head", "weight", ("add",), (2, 4), weights=("head.w",)),
    ]
    names = ("x", "up", "relu", "down", "add", "head")
    weights = ("up.w", "down.w", "head.w")
    seen = {**dict.fromkeys(names, SOME), "down": TINY, **dict(facts)}
    given = {
        "batch": 2,
        "inputs": {"x": SOME},
        "graph": Graph(nodes, ["head"]),
        "facts": seen,
        "outputs": [seen["head"]],
        "values": dict.fromkeys(weights, SOME),
        "gradients": {**dict.fromkeys(weights, TINY), **dict(gradients)},
        "input_gradients": {"x": SOME},
        "uses": {name: (name[:-2],) for name in weights},
    }
    return Record(**{**given, **options})


def test_a_branch_of_the_size_of_eps_and_gradients_of_its_square_are_well():
    audit = judge(record())
    assert audit.healthy
    assert not audit.dead
    assert not audit.remarks
    assert not audit.limits
    (branch,) = audit.branches
    assert branch[:3] == ("add", "down", "x")
    assert (branch.rms, branch.ratio) == (pytest.approx(1e-30), pytest.approx(2e-30))
    assert list(audit.second_moments) == ["up", "down", "head"]


def test_what_is_dead_hangs_behind_the_node_where_the_signal_ends():
    facts = {"relu": NONE, "down": NONE}
    audit = judge(record(facts, {"up.w": NONE, "down.w": NONE}))
    assert not audit.healthy
    assert len(audit.healthy) == 2
    assert audit.healthy[0] == "the branch down, which add adds to x, is exactly 0"
    assert {one.behind for one in audit.dead} == {"relu"}
    assert "up.w, down.w" in audit.healthy[1]
    assert "relu is 0" in audit.healthy[1]


def test_a_branch_whose_terms_cancel_is_well_since_its_weight_moves():
    audit = judge(record({"down": NONE}))
    assert audit.healthy
    assert audit.branches[0].ratio == 0


@pytest.mark.parametrize("moves", [True, False])
def test_a_weight_of_zeros_wakes_if_it_has_a_gradient(moves):
    """x + 0 @ relu(up(x)): one step changes the 0, and then up has a gradient."""
    values = {"up.w": SOME, "down.w": NONE, "head.w": SOME}
    gradients = {"up.w": NONE, "down.w": SOME if moves else NONE}
    audit = judge(record({"down": NONE}, gradients, values=values))
    assert audit.dead[0].behind == "down"
    assert audit.dead[0].wakes == moves
    assert len(audit.healthy) == (0 if moves else 2)
    assert ("branches that are exactly 0 until the first step: down" in audit.remarks) == moves


@pytest.mark.parametrize("way", ["step", "custom", "no_grad", "integers", "beside"])
def test_what_stops_every_gradient_is_named(way):
    """relu stands for a step, a part without gradients, or a comparison; beside it is a detour."""
    given = record(gradients={"up.w": NONE})
    name = "1: round (2)" if way in ("step", "custom", "beside") else "relu"
    nodes = [n for n in given.graph.nodes if n.name not in ("relu", "down")]
    inputs = () if way == "integers" else ("up",)
    reads = (name, "up") if way == "beside" else (name,)
    nodes[-2:-2] = [
        Node(name, "input" if way == "integers" else "other", inputs, (2, 4)),
        Node("down", "weight", reads, (2, 4), weights=("down.w",)),
    ]
    options = {
        "own": {name} if way == "custom" else set(),
        "stopped": {name} if way == "no_grad" else set(),
        "links": {name: {"a dropped move"}} if way == "integers" else {},
        "reads": {"a dropped move": {"up"}},
    }
    graph = Graph(nodes, ["head"])
    audit = judge(record({name: SOME}, {"up.w": NONE}, graph=graph, **options))
    (dead,) = audit.dead
    assert not audit.unused
    assert (dead.behind, dead.wakes) == (
        ("down", True) if way in ("custom", "beside") else (name, False)
    )
    assert bool(audit.healthy) == dead.wakes


def test_what_is_not_read_at_first_is_no_failure_if_its_reader_moves():
    audit = judge(record(gradients={"up.w": NONE}))
    assert audit.healthy
    assert audit.dead[0].wakes
    assert audit.dead[0].behind == "down"
    assert "no gradient at the first step for up.w" in audit.remarks[0]


@pytest.mark.parametrize(
    ("end", "said"), [(NONE, "is 0"), (STILL, "is the same for all 2 samples")], ids=["0", "still"]
)
def test_an_output_that_says_nothing_of_the_input(end, said):
    gradients = dict.fromkeys(("up.w", "down.w", "head.w"), NONE)
    audit = judge(record({"head": end}, gradients, input_gradients={"x": NONE}))
    assert audit.output_varies is False
    assert audit.input_gradient == 0
    assert said in audit.healthy[0]
    assert audit.healthy[0].endswith("the signal dies at head")


def test_one_sample_and_equal_samples_are_limits():
    audit = judge(record(batch=1, inputs={"x": SOME._replace(spread=None)}))
    assert audit.healthy
    assert audit.output_varies is None
    assert "one sample" in audit.limits[0]
    audit = judge(record({"head": STILL}, inputs={"x": SOME._replace(spread=0.0)}))
    assert audit.healthy
    assert audit.output_varies is None
    assert "equal" in audit.limits[0]


def test_what_is_not_finite_comes_first_and_alone():
    bad = SOME._replace(finite=False, peak=float("nan"))
    audit = judge(record({"up": bad, "relu": bad}, {"up.w": bad}))
    assert audit.not_finite == ("up", "relu", "the gradient of up.w")
    assert audit.healthy == ("not finite: up, relu, the gradient of up.w",)


BAD = {
    "NaN": SOME._replace(finite=False, peak=float("nan")),
    "inf": SOME._replace(finite=False),
    "mask": SOME._replace(finite=False, masked=True),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["relu", "head", "gradient", "input", "value"])
def test_only_an_infinity_that_reaches_a_result_is_a_fault(kind, place):
    """relu stands for a mask before a softmax: down, behind it, is finite."""
    bad = BAD[kind]
    node = {"relu": bad} if place == "relu" else {"head": bad} if place == "head" else {}
    options = {"input_gradients": {"x": bad}} if place == "input" else {}
    if place == "value":
        options = {"values": {**record().values, "up.w": bad}}
    audit = judge(record(node, {"up.w": bad} if place == "gradient" else {}, **options))
    passes = {"relu": ("inf", "mask"), "head": ("mask",)}
    names = {
        "relu": ("relu",),
        "head": ("head", "the output"),
        "gradient": ("the gradient of up.w",),
        "input": ("the gradient of x",),
        "value": ("up.w",),
    }
    assert audit.not_finite == (() if kind in passes.get(place, ()) else names[place])
    assert bool(audit.healthy) == (not audit.not_finite)


def test_an_infinity_is_to_blame_for_a_gradient_that_is_not_finite():
    audit = judge(record({"relu": BAD["inf"]}, {"up.w": BAD["NaN"]}))
    assert audit.not_finite == ("relu", "the gradient of up.w")


def test_a_large_branch_and_a_parameter_that_nothing_uses_are_remarks():
    uses = {"up.w": ("up",), "down.w": ("down",)}
    audit = judge(record({"down": SOME}, {"head.w": NONE}, uses=uses))
    assert audit.healthy
    assert audit.unused == ("head.w",)
    assert "1 of 1 branches are not small" in audit.remarks[0]


def test_a_bias_that_moves_nothing_is_no_failure():
    nodes = [*record().graph.nodes]
    nodes.insert(1, Node("up.b", "parameter", shape=(4,), use="bias"))
    gradients = {**record().gradients, "up.b": NONE}
    uses = {**record().uses, "up.b": ("up",)}
    options = {"graph": Graph(nodes, ["head"]), "gradients": gradients, "uses": uses}
    audit = judge(record(**options))
    assert audit.healthy
    assert [one.name for one in audit.dead] == ["up.b"]
    assert [text[:9] for text in audit.remarks] == ["cancels: "]
    # No weight tells it of a bias that is added to one of two results of the weight alone,
    nodes.append(Node("again", "weight", ("add",), (2, 4), weights=("up.w",)))
    uses["up.w"] = ("up", "again")
    assert "cancels:" not in str(judge(record(**{**options, "graph": Graph(nodes, ["head"])})))
    # or in a function with a gradient of its own.
    uses["up.w"] = ("up",)
    assert "cancels:" not in str(judge(record(**options, own={"up"})))


def test_what_lies_in_a_loop_is_named_as_unseen():
    given = record()
    del given.facts["up"]
    assert "were not measured: up" in judge(given).limits[-1]


# One look at a tensor -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_facts_are_those_of_plain_numpy(dtype):
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(dtype)
    x[..., 4:] = x[..., :4]
    x[..., 7] = 2.0
    seen = facts_of(look(np, x, 3, (2, 3)), x.dtype)
    wide = x.astype(np.float64)
    assert seen.peak == np.abs(wide).max()
    np.testing.assert_allclose(seen.second, np.mean(wide**2), rtol=1e-6)
    assert seen.spread == pytest.approx(np.abs(wide - wide[:1]).max(), rel=1e-6)
    assert (seen.units, seen.copies, seen.silent) == (8, 3, 1)
    assert not seen.is_constant
    assert facts_of(look(np, x * 0, 3), x.dtype).is_constant


def test_a_batch_that_is_flattened_with_times_is_still_compared_by_samples():
    x = np.arange(12.0).reshape(1, 6, 2).repeat(2, axis=0)
    assert facts_of(look(np, x.reshape(12, 2), 2), x.dtype).is_constant
    assert not facts_of(look(np, x.reshape(12, 2), 12), x.dtype).is_constant


def test_large_numbers_do_not_overflow():
    x = np.full((2, 2), 1e30, np.float32)
    assert facts_of(look(np, x, 1), x.dtype).second == pytest.approx(1e60, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(bad):
    with np.errstate(invalid="ignore"):
        assert not facts_of(look(np, np.array([[1.0], [bad]]), 2), np.float64).finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_infinities_hide_no_other_number(bad):
    x = np.arange(12.0).reshape(2, 6)
    x[:, 3] = bad
    seen = facts_of(look(np, x, 2), x.dtype)
    assert seen.has_nan == np.isnan(bad)
    assert seen.masked == (bad == -np.inf)
    assert seen.spread == 6.0
    if not np.isnan(bad):
        assert seen.peak == 11.0
        assert seen.second == pytest.approx(np.where(np.isinf(x), 0, x).__pow__(2).mean())
    assert not facts_of(look(np, np.full((2, 6), bad), 2), x.dtype).masked


def test_a_mask_that_differs_between_samples_is_no_constant():
    x = np.where(np.tri(3, dtype=bool), 0.0, -np.inf)
    assert not facts_of(look(np, x, 3), x.dtype).is_constant
    assert facts_of(look(np, x[:1].repeat(3, 0), 3), x.dtype).is_constant


def test_cotangents_are_signs_the_same_every_time():
    (a,), (b,) = signs([(1000,)]), signs([(1000,)])
    assert set(a.tolist()) == {1.0, -1.0}
    assert (a == b).all()
    assert abs(a.mean()) < 0.1


# What it says -------------------------------------------------------------------------------


def test_an_audit_is_text_a_table_in_colour_and_json():
    from rich.console import Console

    audit = judge(record({"relu": NONE, "down": NONE}, {"up.w": NONE, "down.w": NONE}))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(audit)
    text = console.export_text()
    for name in ("not healthy", "relu is 0", "second moment", "branch / skip"):
        assert name in str(audit)
        assert name in text
    told = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert told["healthy"] is False
    assert told["failures"] == list(audit.healthy)
    assert told["dead"][0] == {
        "name": "up.w", "behind": "relu", "why": "relu is 0", "wakes": False,
    }  # fmt: skip


def test_health_is_true_if_nothing_failed():
    assert Health()
    assert not Health(["x"])
    assert Health(["x"]) == ("x",)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture_is_a_file(tmp_path, ending):
    audit = judge(record({"relu": NONE, "down": NONE}))
    audit.plot(tmp_path / f"audit.{ending}")
    assert (tmp_path / f"audit.{ending}").stat().st_size > 1000


def test_a_picture_of_nothing_is_an_error():
    with pytest.raises(OptionError, match="a weight operation to draw"):
        Audit(Health()).plot("never.svg")


def test_zeros_alone_can_be_drawn(tmp_path):
    Audit(Health(), layers=(Layer("fc", 0.0),)).plot(tmp_path / "audit.svg")
    assert (tmp_path / "audit.svg").exists()
