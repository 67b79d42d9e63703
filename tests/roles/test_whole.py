"""Options of a whole model: biases, norms, strict, and the warnings of a report."""

from __future__ import annotations

import inspect
import io
import json

import numpy as np
import pytest

import idinit_ref as ir
from cost import calls
from idinit_ref.errors import GraphError, OptionError, OptionTypeError, RoundingError
from idinit_ref.files import assembly, sources
from idinit_ref.roles import ModelOptions, Note
from idinit_ref.roles.decide import decide
from idinit_ref.roles.options import settled
from idinit_ref.roles.report import Entry, Report
from idinit_ref.roles.whole import Weights, initialise


def node(name, *inputs, kind="other", shape=(2, 8), **rest):
    return ir.Node(name, kind, inputs, shape, **rest)


def parameter(name, shape, use="weight", note="", **options):
    return ir.Node(name, "parameter", shape=shape, use=use, options=options, note=note)


def dense(name, data, *, out=8, bias=None):
    return ir.Node(name, "weight", (data,), (2, out), weights=(f"{name}.w",))


class Arrays(Weights):
    """A model of plain arrays, some of which this process does not hold."""

    def read(self, name, whole=True):
        value = self.held[name]
        return None if value is None else value if whole else value[:1]

    def write(self, name, what, parted):
        new = what.build() if isinstance(what, ir.Plan) else what
        self.held[name][...] = new


BIAS = ir.Graph(
    [
        parameter("a.w", (8, 8)),
        parameter("z.w", (8, 8)),
        parameter("b", (8,), "bias", adds_to=("a",)),
        parameter("c", (8,), "bias", adds_to=("z",)),
        node("x", kind="input"),
        dense("a", "x"),
        dense("z", "x"),
        node("a: tanh", "a", does="map"),
    ],
    ["a: tanh", "z"],
)
RANDOM = np.random.default_rng(0).uniform(-1, 1, (8, 8))


def held(b, c=0.0, z=RANDOM):
    values = {"a.w": RANDOM, "z.w": z, "b": b, "c": c}
    return Arrays({k: np.array(np.broadcast_to(v, (8, 8)[k in "bc" :])) for k, v in values.items()})


@pytest.mark.parametrize(
    ("values", "role", "why"),
    [
        (RANDOM[0], "bias", "bias"),
        (0.0, "bias", "bias"),
        (-4.6, "keep", "its values are constant and not 0"),
        ([0, 0, 1, 1, 0, 0, 0, 0], "keep", "its values are constant and not 0"),
        ([1, 2, 1, 2, 1, 2, 1, 2], "bias", "bias"),
        (np.nan, "bias", "bias"),
    ],
    ids=["random", "zeros", "prior", "forget gates", "alternating", "never written"],
)
def test_a_constant_bias_is_kept(values, role, why):
    [entry] = [e for e in decide(BIAS, held(values)).entries if e.name == "b"]
    assert (entry.role, entry.why) == (role, why if role == "bias" else f"bias; kept, as {why}")
    assert decide(BIAS, held(values), biases="zero").roles["b"] == "bias"
    assert decide(BIAS, held(values), biases="keep").roles["b"] == "keep"
    assert decide(BIAS, held(values), overrides={"b": "bias"}).roles["b"] == "bias"
    assert decide(BIAS).roles["b"] == "bias"  # no values: the form decides


def test_a_single_number_is_no_constant():
    graph = ir.Graph(
        [parameter("w", (1, 8)), parameter("b", (1,), "bias"), node("x", kind="input"),
         ir.Node("h", "weight", ("x",), (2, 1), weights=("w",))], ["h"]
    )  # fmt: skip
    arrays = Arrays({"w": np.ones((1, 8)), "b": np.array([0.3])})
    assert decide(graph, arrays).roles["b"] == "bias"


def test_a_bias_of_a_weight_that_is_exactly_zero_is_kept():
    """Deformable attention starts with offsets in a ring, and a weight of zeros."""
    report = decide(BIAS, held(0.0, c=RANDOM[1], z=0.0))
    assert report.roles["c"] == "keep"
    assert decide(BIAS, held(0.0, c=RANDOM[1])).roles["c"] == "bias"


def test_values_that_another_process_holds_leave_it_to_the_form():
    """Else each rank of a sharded model could decide something else."""
    arrays = held(-4.6, c=RANDOM[1], z=0.0)
    arrays.held["a.w"] = None
    report = decide(BIAS, arrays)
    assert report.roles["b"] == report.roles["c"] == "bias"
    assert report.warnings == ()


def test_memory_that_was_never_written_says_nothing():
    """As of to_empty: pages of zeros, and what was left in small pieces."""
    arrays = held(5.0, c=RANDOM[1], z=0.0)
    arrays.held["a.w"][...] = 0
    report = decide(BIAS, arrays)
    assert report.roles["b"] == report.roles["c"] == "bias"
    assert report.warnings == ()


@pytest.mark.parametrize("function", ["softplus", "exp", "log", "Softplus_1", "softplus (2)"])
@pytest.mark.parametrize("moved", [False, True], ids=["at once", "cut out"])
def test_a_bias_whose_sum_enters_a_softplus_is_kept(function, moved):
    nodes = list(BIAS.nodes[:-1])
    if moved:
        nodes += [node("a: slice", "a", does="select"), node("a: add", "a: slice", does="shift")]
    nodes += [node(f"a: {function}", nodes[-1].name if moved else "a", does="map")]
    graph = ir.Graph(nodes, [nodes[-1].name, "z"])
    kept = decide(graph, held(RANDOM[0], RANDOM[1]))
    assert (kept.roles["b"], kept.roles["c"]) == ("keep", "bias")
    assert decide(graph).roles["b"] == "keep"
    assert decide(graph, held(0.0)).roles["b"] == "bias"


def test_a_bias_before_another_function_or_weight_is_none_of_a_softplus():
    nodes = [*BIAS.nodes, node("a: exp", "a: tanh", does="map")]
    assert decide(ir.Graph(nodes, ["z"])).roles["b"] == "bias"


def test_a_mark_of_the_model_keeps_a_bias():
    class Marked(np.ndarray):
        _no_reinit = True

    arrays = held(RANDOM[0])
    arrays.held["b"] = arrays.held["b"].view(Marked)
    assert decide(BIAS, arrays).roles["b"] == "keep"


def aggregated(*middle, shape=(8,), sums=()):
    """A weight's result, moved and summed, to which a vector is added."""
    nodes = [
        parameter("w", (8, 4)),
        parameter("b", shape, "other", adds_to=("sum",)),
        node("x", kind="input", shape=(6, 4)),
        node("adj", kind="input", shape=(6, 6)),
        node("gate", kind="input", shape=(6, 1)),
        ir.Node("h", "weight", ("x",), (6, 8), weights=("w",)),
    ]
    last = "h"
    for k, does in enumerate(middle):
        inputs = {"contract": ("adj", last), "product": ("gate", last)}.get(does, (last,))
        rest = {"sums": sums, "vanishes": (1,)} if does == "contract" else {}
        nodes.append(node(f"m{k}", *inputs, does=does, **rest))
        last = f"m{k}"
    return ir.Graph([*nodes, node("sum", last, does="shift")], ["sum"])


@pytest.mark.parametrize(
    ("graph", "role"),
    [
        (aggregated(), "bias"),
        (aggregated("contract"), "bias"),
        (aggregated("move", "select", "pool"), "bias"),
        (aggregated("product", "select"), "bias"),
        (aggregated(shape=(1, 1, 8)), "bias"),
        (aggregated("contract", sums=(1,)), "keep"),
        (aggregated(shape=(6,)), "keep"),
        (aggregated(shape=(6, 8)), "keep"),
        (aggregated("norm"), "keep"),
        (aggregated("map"), "keep"),
    ],
    ids=["at once", "adjacency", "moves and sums", "gates of experts", "ones", "summed away",
         "other length", "positions", "a norm's shift", "behind a function"],
)  # fmt: skip
def test_what_is_added_to_the_aggregated_outputs_of_one_weight_is_a_bias(graph, role):
    assert decide(graph).roles["b"] == role


def stacked(*pieces, size=2):
    """Two weights one behind the other, each result shifted by a piece of one stack."""
    nodes = [
        parameter("v", (8, 8)),
        parameter("w", (8, 8)),
        parameter("b", (size, 8), "other", adds_to=("a", "c"), added=pieces),
        node("x", kind="input", shape=(6, 8)),
        ir.Node("h", "weight", ("x",), (6, 8), weights=("v",)),
        node("a", "h", does="shift", vanishes="never"),
        ir.Node("k", "weight", ("a",), (6, 8), weights=("w",)),
        node("c", "k", does="shift", vanishes="never"),
    ]
    return ir.Graph(nodes, ["c"])


@pytest.mark.parametrize(
    ("pieces", "role"),
    [
        (({"a": ("v",)}, {"c": ("w",)}), "bias"),
        (({"a": ("v",), "c": ("w",)},), "keep"),
        (({"a": ("v",)}, {"c": ()}), "keep"),
        (({"a": ("v",)},), "keep"),
    ],
    ids=["each of one", "one of two", "along other axes", "an unknown piece"],
)
def test_each_piece_of_a_stack_is_the_bias_of_one_weight(pieces, role):
    assert decide(stacked(*pieces)).roles["b"] == role


def test_what_is_added_behind_a_residual_add_is_the_bias_of_its_branch():
    graph = ir.Graph(
        [
            parameter("u.w", (8, 8)),
            parameter("v.w", (8, 8)),
            parameter("b", (8,), "other", adds_to=("sum",)),
            node("x", kind="input"),
            dense("u", "x"),
            dense("v", "u"),
            ir.Node("y", "add", ("u", "v"), (2, 8)),
            node("sum", "y", does="shift"),
        ],
        ["sum"],
    )
    assert decide(graph).roles == {"u.w": "transit", "v.w": "zero", "b": "bias"}


def shifted_blocks(count, behind):
    """Residual blocks whose biases follow an aggregation, or the residual add."""
    nodes, last = [node("x", kind="input")], "x"
    for k in range(count):
        at, h = f"sum{k}", f"h{k}"
        nodes += [parameter(f"w{k}", (8, 8)), parameter(f"b{k}", (8,), "other", adds_to=(at,))]
        nodes += [node(f"f{k}", last, does="map")]
        nodes += [ir.Node(h, "weight", (f"f{k}",), (2, 8), weights=(f"w{k}",))]
        if behind:
            nodes += [ir.Node(f"y{k}", "add", (last, h), (2, 8)), node(at, f"y{k}", does="shift")]
            last = at
        else:
            nodes += [node(f"m{k}", h, does="mix"), node(at, f"m{k}", does="shift")]
            nodes += [ir.Node(f"y{k}", "add", (last, at), (2, 8))]
            last = f"y{k}"
    return ir.Graph(nodes, [last])


@pytest.mark.parametrize("behind", [False, True])
def test_the_cost_of_biases_is_linear(behind):
    graphs = [shifted_blocks(k, behind) for k in (50, 100, 200)]
    costs = [calls(lambda graph=graph: decide(graph)) for graph in graphs]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.1)
    roles = decide(graphs[0]).roles
    assert roles == {f"{c}{k}": {"w": "zero", "b": "bias"}[c] for k in range(50) for c in "wb"}


def test_a_sum_with_a_bias_vanishes_with_its_weight():
    """Whatever the tracer could say of it: the bias becomes 0."""
    nodes = [each for each in aggregated("contract").nodes if each.name not in ("sum", "x")]
    nodes[1:1] = [node("x", kind="input", shape=(6, 8))]
    nodes[0] = parameter("w", (8, 8))
    more = [
        node("sum", "m0", does="shift", vanishes="never", shape=(6, 8)),
        ir.Node("y", "add", ("x", "sum"), (6, 8)),
    ]
    graph = ir.Graph([*nodes, *more], ["y"])
    assert decide(graph).roles == {"w": "zero", "b": "bias"}


# Norms ------------------------------------------------------------------------------------------


def sandwich(**scale):
    return ir.Graph(
        [
            parameter("up.w", (8, 8)),
            parameter("post.scale", (8,), "other", scales=("post",), **scale),
            node("x", kind="input"),
            dense("up", "x"),
            node("view", "up", does="move"),
            node("post", "view", does="norm"),
            node("scaled", "post", does="scale"),
            ir.Node("y", "add", ("x", "scaled"), (2, 8)),
        ],
        ["y"],
    )


def test_a_branch_that_a_norm_ends_is_named():
    report = decide(sandwich())
    assert report.roles == {"up.w": "zero", "post.scale": "keep"}
    [note] = report.warnings
    assert (note.kind, note.names) == ("norm", ("up.w",))
    assert "eps/sqrt(e)" in note.text


def test_a_norm_that_is_written_out_is_one():
    """x + r * rsqrt(mean(r * r) + e) with r the branch; an activation is none."""
    nodes = [n for n in sandwich().nodes if n.name not in ("post", "scaled", "y")]
    for function, count in (("rsqrt", 1), ("tanh", 0)):
        more = [
            node("square", "view", does="product"),
            node("mean", "square", does="pool", shape=(2, 1)),
            node(f"up: {function}", "mean", does="map", shape=(2, 1)),
            node("post", "view", f"up: {function}", does="product", vanishes=(0,)),
            node("scaled", "post", does="scale"),
            ir.Node("y", "add", ("x", "scaled"), (2, 8)),
        ]
        graph = ir.Graph([*nodes, *more], ["y"])
        assert [note.kind for note in decide(graph).warnings] == ["norm"] * count
        scaled = decide(graph, norms="zero").roles
        assert scaled == (
            {"up.w": "transit", "post.scale": "zero"}
            if count
            else {"up.w": "zero", "post.scale": "keep"}
        )


def test_a_norm_before_a_branch_or_beside_an_add_is_not():
    nodes = [n for n in sandwich().nodes if n.name != "y"]
    graph = ir.Graph([*nodes, node("tanh", "scaled", does="map")], ["tanh"])
    assert decide(graph).warnings == ()


@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["w", "1 + w"])
def test_the_scale_of_such_a_norm_can_be_eps(offset):
    arrays = Arrays({"up.w": np.ones((8, 8)), "post.scale": np.ones(8)})
    report = initialise(sandwich(offset=offset), arrays, norms="zero", eps=0.25)
    assert report.roles == {"up.w": "transit", "post.scale": "zero"}
    assert report.warnings == ()
    assert np.array_equal(arrays.held["up.w"], np.eye(8))
    assert np.array_equal(arrays.held["post.scale"] + offset, np.full(8, 0.25))
    kept = decide(sandwich(), norms="zero", overrides={"post.scale": "keep"})
    assert kept.roles["post.scale"] == "keep"


def test_a_scale_that_cannot_hold_eps():
    arrays = Arrays({"up.w": np.ones((8, 8), "f2"), "post.scale": np.ones(8, "f2")})
    with pytest.raises(RoundingError, match=r"parameter 'post\.scale': eps = 1e-09"):
        initialise(sandwich(), arrays, norms="zero", eps=1e-9)
    assert arrays.held["up.w"].all()


def test_a_scale_travels_by_the_manifest(tmp_path):
    report = decide(sandwich(), norms="zero")
    (tmp_path / "m.json").write_text(json.dumps(report.to_dict()))
    found = assembly.assemble(sources.read(manifest=tmp_path / "m.json").tensors)
    ir.save(tmp_path / "m.npz", found.values, dtype="float32")
    with np.load(tmp_path / "m.npz") as file:
        assert np.array_equal(file["post.scale"], np.full(8, np.float32(1e-6)))
        assert np.array_equal(file["up.w"], np.eye(8))


# Warnings ---------------------------------------------------------------------------------------


def kept_graph(note, use="weight"):
    return ir.Graph(
        [
            parameter("w", (8, 8), use, note),
            parameter("v.w", (8, 8)),
            node("x", kind="input"),
            *([ir.Node("h", "weight", ("x",), (2, 8), weights=("w",))] * (use == "weight")),
            dense("v", "x"),
        ],
        ["v"],
    )


@pytest.mark.parametrize(
    ("note", "use", "warned"),
    [
        ("multiplied by what is computed from the inputs", "weight", True),
        ("it is not known what lib::op does with it", "other", True),
        ("frozen: requires_grad is False", "weight", False),
        ("not used by the computation of these example inputs", "other", False),
        ("", "embedding", False),
    ],
    ids=["computed", "unknown operation", "frozen", "unused", "embedding"],
)
def test_a_used_matrix_that_is_kept_is_a_warning_or_an_error(note, use, warned):
    graph = kept_graph(note, use)
    found = [each for each in decide(graph).warnings if each.kind == "kept"]
    assert [each.names for each in found] == [("w",)] * warned
    if warned:
        with pytest.raises(GraphError, match="kept matrices = 'w', but no used matrix") as said:
            decide(graph, strict=True)
        assert note in str(said.value)
        assert decide(graph, strict=True, overrides={"w": "keep"}).warnings == ()
    else:
        decide(graph, strict=True)


def test_strict_is_about_these_alone():
    assert decide(sandwich(), strict=True).warnings


def hidden(units, *, form="pair", head=False):
    rest = {} if head else {"y": ir.Node("y", "add", ("x", "down"), (2, 8))}
    return ir.Graph(
        [
            parameter("up.w", (units, 8)),
            parameter("down.w", (8, units)),
            node("x", kind="input"),
            dense("up", "x", out=units),
            node("act", "up", does="map", shape=(2, units)),
            dense("down", "act"),
            *rest.values(),
        ],
        [*rest] or ["down"],
    )


@pytest.mark.parametrize("head", [False, True], ids=["zero", "transit"])
@pytest.mark.parametrize("wide", ["truncate", "fold_rms"])
@pytest.mark.parametrize("form", ["pair", "shifted"])
@pytest.mark.parametrize("units", [4, 8, 12, 16, 24, 32, 40, 260])
def test_as_many_hidden_units_are_copies_as_it_says(units, form, wide, head):
    """Counted in the matrices themselves: equal rows before, and equal columns behind."""
    report = decide(hidden(units, head=head), form=form, wide=wide)
    up, down = (report.plans[name].build() for name in ("up.w", "down.w"))
    copies = units - len({(*row, *column) for row, column in zip(up, down.T, strict=True)})
    said = [each for each in report.warnings if each.kind == "copies"]
    assert len(said) == bool(copies)
    if copies:
        assert said[0].names == ("up.w",)
        assert said[0].text.startswith(f"up to {copies} of {units} hidden units")


def test_noise_parts_copies():
    assert decide(hidden(32)).warnings
    assert not decide(hidden(32), overrides={"up.w": {"loosen": 0.01}}).warnings


def test_zeros_that_may_be_meant_are_named():
    """ControlNet's zero convolutions end no branch that the computation shows."""
    [note] = decide(BIAS, held(0.0, z=0.0)).warnings
    assert (note.kind, note.names) == ("overwritten", ("z.w",))
    for role in ("keep", "zero", "transit"):
        assert not decide(BIAS, held(0.0, z=0.0), overrides={"z.w": role}).warnings


NOTES = (Note("tie", ("a", "b"), "two branches of one length"), Note("gate", (), "\x1b[31mred"))


def test_warnings_come_first_and_travel(tmp_path):
    report = Report((Entry("b", (2,), "bias", "bias"),), NOTES)
    lines = str(report).splitlines()
    assert lines[0] == "warning: two branches of one length (a, b)"
    assert lines[1] == "warning: \\x1b[31mred"
    assert lines[2].startswith("name")
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    assert console.export_text().startswith(lines[0])
    found = json.loads(json.dumps(report.to_dict()))
    assert [Note(**each | {"names": tuple(each["names"])}) for each in found["warnings"]] == [
        *NOTES
    ]
    (tmp_path / "m.json").write_text(json.dumps(report.to_dict()))
    assert list(sources.read(manifest=tmp_path / "m.json").tensors) == ["b"]


# Options ----------------------------------------------------------------------------------------


def test_the_options_are_said_once():
    options = ModelOptions.__annotations__
    assert set(settled({})) == set(options)
    docs = inspect.getdoc(ModelOptions)
    assert all(f"{name} : " in docs for name in options)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"heads": 3}, OptionTypeError, "heads = 3, but heads is not an option of a whole model"),
        ({"biases": "none"}, OptionError, "biases = 'none', but it should be one of 'auto'"),
        ({"norms": True}, OptionError, "norms = True, but it should be one of 'keep', 'zero'"),
        ({"strict": "yes"}, OptionTypeError, "strict = 'yes', but it should be True or False"),
    ],
    ids=["unknown", "biases", "norms", "strict"],
)
def test_wrong_options(options, error, says):
    with pytest.raises(error, match=says):
        decide(BIAS, **options)


def test_nothing_is_written_if_one_does_not_fit():
    arrays = held(0.0)
    arrays.held["z.w"] = np.ones((8, 8), int)
    before = {name: value.copy() for name, value in arrays.held.items()}
    with pytest.raises(TypeError, match=r"parameter 'z\.w': dtype"):
        initialise(BIAS, arrays)
    assert all(np.array_equal(arrays.held[name], before[name]) for name in before)
