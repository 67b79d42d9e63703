"""What becomes of every parameter of a model, given its graph."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

import idinit_ref as ir
from idinit_ref.errors import GraphError, LayoutError, OptionError, OptionTypeError, ShapeError
from idinit_ref.roles.decide import decide
from idinit_ref.roles.report import Entry, Report


def parameter(name, shape, use="weight", note="", **options):
    return ir.Node(name, "parameter", shape=shape, use=use, options=options, note=note)


GRAPH = ir.Graph(
    [
        parameter("wte", (50, 8), "embedding"),
        parameter("norm", (8,), "other"),
        parameter("qkv.weight", (16, 8), layout="OI", blocks=(8, 4, 4)),
        parameter("qkv.bias", (16,), "bias"),
        parameter("proj.weight", (8, 8), layout="IO"),
        parameter("conv", (6, 1, 4, 3), layout="OIHW", groups=6, tap=(2, 1)),
        parameter("frozen", (8, 8), note="frozen: requires_grad is False", layout="OI"),
        parameter("score", (8,)),
        parameter("head", (50, 8)),
        ir.Node("x", "input", shape=(2, 8)),
        ir.Node("attn", "weight", ("x",), (2, 8), weights=("qkv.weight",)),
        ir.Node("proj", "weight", ("attn",), (2, 8), weights=("proj.weight",)),
        ir.Node("sum", "add", ("x", "proj"), (2, 8)),
        ir.Node("c", "weight", ("sum",), (2, 8), weights=("conv",)),
        ir.Node("f", "weight", ("c",), (2, 8), weights=("frozen",)),
        ir.Node("s", "weight", ("f",), (2, 8), weights=("score",)),
        ir.Node("y", "weight", ("s",), (2, 50), weights=("head",)),
    ],
    ["y"],
)


def test_every_parameter_has_a_role_and_a_reason():
    report = decide(GRAPH)
    assert report.roles == {
        "wte": "keep",
        "norm": "keep",
        "qkv.weight": "transit",
        "qkv.bias": "bias",
        "proj.weight": "zero",
        "conv": "transit",
        "frozen": "keep",
        "score": "keep",
        "head": "transit",
    }
    why = {entry.name: entry.why for entry in report.entries}
    assert why["proj.weight"] == "last of the branch proj, which sum adds to x"
    assert why["frozen"] == "frozen: requires_grad is False"
    assert why["head"] == "the head"
    assert all(why.values())
    assert report.plans == {
        "qkv.weight": ir.plan((16, 8), layout="OI", blocks=(8, 4, 4)),
        "proj.weight": ir.plan((8, 8), "zero", layout="IO"),
        "conv": ir.plan((6, 1, 4, 3), layout="OIHW", groups=6, tap=(2, 1)),
        "head": ir.plan((50, 8)),
    }


@pytest.mark.parametrize(
    ("options", "name", "plan"),
    [
        ({"gain": 2.0}, "head", ir.plan((50, 8), gain=2.0)),
        ({"eps": 0.5}, "proj.weight", ir.plan((8, 8), "zero", eps=0.5, layout="IO")),
        ({"head": "zero"}, "head", ir.plan((50, 8), "zero")),
        ({"head": "keep"}, "head", None),
        ({"embeddings": "transit"}, "wte", ir.plan((50, 8), layout="IO")),
        (
            {"taps": "channel_major"},
            "conv",
            ir.plan((6, 1, 4, 3), groups=6, taps="channel_major"),
        ),
        ({"taps": "center"}, "conv", ir.plan((6, 1, 4, 3), groups=6, taps="center", tap=(2, 1))),
        (
            {"form": "shifted", "head": "zero"},
            "head",
            ir.plan((50, 8), "zero", form="shifted"),
        ),
        (
            {"overrides": {"conv": {"loosen": 0.1, "loosen_at": "entries"}}},
            "conv",
            ir.plan((6, 1, 4, 3), groups=6, tap=(2, 1), loosen=0.1, loosen_at="entries"),
        ),
        ({"overrides": {"proj.weight": "transit"}}, "proj.weight", ir.plan((8, 8), layout="IO")),
        ({"overrides": {"*.weight": "zero"}}, "qkv.weight", "zero"),
        ({"overrides": {"*": "keep"}}, "head", None),
        ({"overrides": {"*": "keep", "head": "transit"}}, "head", ir.plan((50, 8))),
        ({"overrides": {"head": {"gain": 0.5}}}, "head", ir.plan((50, 8), gain=0.5)),
        ({"overrides": {"head": {"wide": "fold_rms"}}}, "head", "transit"),
        (
            {"overrides": {"frozen": {"role": "zero", "eps": 2}}},
            "frozen",
            ir.plan((8, 8), "zero", eps=2.0, layout="OI"),
        ),
        (
            {"overrides": {"conv": {"taps": "center", "tap": (0, 0)}}},
            "conv",
            ir.plan((6, 1, 4, 3), groups=6, taps="center", tap=(0, 0)),
        ),
        (
            {"overrides": {"qkv*": {"blocks": None}, "qkv.bias": "keep"}},
            "qkv.weight",
            ir.plan((16, 8)),
        ),
    ],
    ids=str,
)
def test_options(options, name, plan):
    report = decide(GRAPH, **options)
    found = report.plans.get(name)
    assert (found and found.role) == plan if isinstance(plan, str) else found == plan
    if "overrides" in options:
        assert any("override" in entry.why for entry in report.entries)
    assert report.roles.keys() == decide(GRAPH).roles.keys()


@pytest.mark.parametrize(
    ("taps", "tap"),
    [("outward", (1,)), ("diagonal", (1,)), ("center", (1,)), ("channel_major", None)],
)
def test_a_transposed_kernel_has_phases(taps, tap):
    up = parameter("up", (6, 4, 4), layout="IOW", transposed=True, stride=(2,), tap=(1,))
    plan = decide(ir.Graph([up]), overrides={"up": "transit"}, taps=taps).plans["up"]
    where = {"layout": "IOW", "transposed": True, "stride": (2,)}
    assert plan == ir.plan((6, 4, 4), **where, taps=taps, tap=tap)


def test_a_matrix_has_no_taps():
    """As a kernel of 1 x 1 that an override reads as a matrix with axes of 1."""
    odd = parameter("w", (6, 4, 1), layout="OIW", tap=(0,), stride=(1,))
    plan = decide(ir.Graph([odd]), overrides={"w": {"role": "zero", "layout": "OIE"}}).plans["w"]
    assert plan == ir.plan((6, 4, 1), "zero", layout="OIE")


def test_options_say_nothing_of_what_is_no_weight():
    report = decide(GRAPH, overrides={"*": {"gain": 2.0}})
    why = {entry.name: entry.why for entry in report.entries}
    assert why["norm"] == "neither weight nor bias: IDInit does not define it"
    assert why["head"] == "the head; options of override '*'"


def test_an_override_is_named_with_what_it_replaces():
    [entry] = [e for e in decide(GRAPH, overrides={"proj*": "transit"}).entries if e.name[0] == "p"]
    reason = "last of the branch proj, which sum adds to x"
    assert entry.why == f"override 'proj*' (it would be zero: {reason})"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"head": "none"}, OptionError, "head = 'none', but it should be one of 'transit'"),
        ({"embeddings": "zero"}, OptionError, "'keep', 'transit'"),
        ({"taps": "middle"}, OptionError, "taps = 'middle'"),
        ({"form": "even"}, OptionError, "form = 'even'"),
        (
            {"overrides": {"conv": {"taps": "channel_major", "tap": (1, 1)}}},
            OptionError,
            "parameter 'conv': tap = \\(1, 1\\)",
        ),
        (
            {"overrides": {"head": {"loosen_at": "entries"}}},
            OptionError,
            "parameter 'head': loosen_at = 'entries'",
        ),
        ({"gain": 0}, OptionError, "gain = 0"),
        ({"eps": float("nan")}, OptionError, "eps = nan"),
        ({"wide": "fold"}, OptionError, "wide = 'fold'"),
        ({"taps": None}, OptionError, "taps = None"),
        ({"overrides": {"head": {"wide": None}}}, OptionError, "only a whole model's own wide="),
        ({"overrides": ["proj"]}, OptionTypeError, "it should be a dict by name patterns"),
        ({"overrides": {3: "zero"}}, OptionTypeError, "its keys should be names"),
        ({"overrides": {"proj.wieght": "zero"}}, OptionError, "the nearest are proj.weight"),
        ({"overrides": {"proj*": "none"}}, OptionError, "overrides\\['proj\\*'\\] = 'none'"),
        ({"overrides": {"proj*": 3}}, OptionTypeError, "a role or a dict of options"),
        ({"overrides": {"proj*": {"scale": 3}}}, OptionError, "'scale', but it should be one of"),
        ({"overrides": {"norm": "zero"}}, ShapeError, "parameter 'norm'"),
        (
            {"overrides": {"qkv.weight": {"blocks": (8, 4)}}},
            LayoutError,
            "parameter 'qkv.weight': blocks = \\(8, 4\\)",
        ),
    ],
)
def test_wrong_options(options, error, says):
    with pytest.raises(error, match=says):
        decide(GRAPH, **options)


def test_of_many_reasons_two_are_told():
    nodes = [parameter("w", (8, 8)), ir.Node("x0", "input", shape=(2, 8))]
    for k in range(5):
        nodes.append(ir.Node(f"h{k}", "weight", (f"x{k}",), (2, 8), weights=("w",)))
        nodes.append(ir.Node(f"x{k + 1}", "add", (f"x{k}", f"h{k}"), (2, 8)))
    [entry] = decide(ir.Graph(nodes)).entries
    assert entry.why == (
        "last of the branch h0, which x1 adds to x0; "
        "last of the branch h1, which x2 adds to x1; and 3 more"
    )


def test_an_entry_says_how_its_axes_make_the_matrix():
    plan = ir.plan((8, 12), layout="IO")
    entry = Entry("w", (8, 12), "transit", "why", plan)
    same = entry.stored((8, 12), "IO")
    assert same == entry
    assert "axes" not in same.to_dict()
    assert entry.stored((8, 12), "") == entry
    heads = entry.stored((8, 3, 4), "IOO")
    assert (heads.shape, heads.axes, heads.parted) == ((8, 3, 4), "IOO", None)
    assert heads.to_dict()["shape"] == [8, 3, 4]
    assert heads.to_dict()["axes"] == "IOO"
    assert "parted" not in heads.to_dict()
    flat = entry.stored([96], "OIO", [3, 8, 4])
    assert (flat.to_dict()["shape"], flat.to_dict()["parted"]) == ([96], [3, 8, 4])
    assert Report((flat,)).to_dict() == {"warnings": [], "tensors": {"w": flat.to_dict()}}
    turned = replace(entry, plan=ir.plan((8, 12), layout="OI")).stored((8, 3, 4), "IOO")
    assert turned.axes == "OII"
    kept = Entry("w", (8, 12), "keep", "why").stored((8, 3, 4), "IOO")
    assert (kept.shape, kept.axes) == ((8, 3, 4), "")


def test_a_model_without_parameters():
    with pytest.raises(GraphError, match="the model should have some; pass the whole model"):
        decide(ir.Graph([ir.Node("x", "input", shape=(2,))]))


def test_the_report_as_text_and_table_and_json():
    report = decide(GRAPH)
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(report.roles)
    assert lines[-1] == "9 parameters: 3 transit, 1 zero, 1 bias, 4 keep"
    found = json.loads(json.dumps(report.to_dict()))["tensors"]
    assert list(found) == list(report.roles)
    plan = dict(found["conv"]["plan"])
    assert (
        ir.plan(
            found["conv"]["shape"],
            found["conv"]["role"],
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in plan.items()
                if key not in ("eps",)
            },
        )
        == report.plans["conv"]
    )
    assert found["wte"] == {"shape": [50, 8], "role": "keep", "why": "embedding", "plan": None}
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report)
    text = console.export_text()
    assert all(name in text for name in report.roles)
    assert lines[-1] in text


@pytest.mark.parametrize(
    ("weight", "own"),
    [
        ("up.weight", {"form": "shifted"}),
        ("up.weight", {"eps": 1e-3}),
        ("down.weight", {"gain": 2.0}),
    ],
    ids=str,
)
def test_an_option_of_the_other_role_is_refused_for_one_weight_and_not_for_a_pattern(weight, own):
    nodes = [
        ir.Node("up.weight", "parameter", shape=(8, 4), use="weight"),
        ir.Node("down.weight", "parameter", shape=(4, 8), use="weight"),
        ir.Node("x", "input", shape=(2, 4)),
        ir.Node("up", "weight", ("x",), (2, 8), weights=("up.weight",)),
        ir.Node("down", "weight", ("up",), (2, 4), weights=("down.weight",)),
        ir.Node("sum", "add", ("x", "down"), (2, 4)),
    ]
    graph = ir.Graph(nodes, ["sum"])
    assert decide(graph, overrides={"*": own}).roles == decide(graph).roles
    [key] = own
    with pytest.raises(OptionError, match=rf"'{weight}': {key} = .*also give the role"):
        decide(graph, overrides={weight: own})


@pytest.mark.parametrize("packed", [True, False])
def test_an_output_that_only_zero_weights_reach_is_told(packed):
    """As in WaveNet, whose next residual and skip may be the results of one matrix."""
    nodes = [
        parameter("r", (8, 8), layout="OI"),
        parameter("s", (8, 8), layout="OI"),
        ir.Node("x", "input", shape=(2, 8)),
        ir.Node("h", "other", ("x",), (2, 8), does="map"),
        ir.Node("a", "weight", ("h",), (2, 8), weights=("r",)),
        ir.Node("b", "weight", ("h",), (2, 8), weights=("s",)),
        ir.Node("y", "add", ("x", "a"), (2, 8)),
        ir.Node("skip", "other", ("a" if packed else "b",), (2, 8), does="map"),
    ]
    report = decide(ir.Graph(nodes, ["y", "skip"]))
    faint = [note for note in report.warnings if note.kind == "faint"]
    assert report.roles["r"] == "zero"
    assert [note.names for note in faint] == ([("r",)] if packed else [])
    assert not packed or "skip" in faint[0].text
