"""What is to be exported: what sources say, what rules and fills say, and what each tensor gets."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from math import prod
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import by_hand
import idinit_ref as ir
from idinit_ref.commands import cli
from idinit_ref.core.text import some
from idinit_ref.errors import CheckpointError, IDInitError, OptionError
from idinit_ref.files import presets, sources, views
from idinit_ref.files.assembly import assemble, choose, parse_rule
from idinit_ref.files.bits import DTYPES, carrier, decode
from idinit_ref.files.fills import parse_fill
from idinit_ref.files.reading import open_checkpoint
from idinit_ref.files.sources import Asked, read
from idinit_ref.files.storage import ArrayTensor, Tensor
from idinit_ref.roles.decide import decide
from idinit_ref.roles.names import RULES, Rule
from idinit_ref.roles.report import Entry, Report

SMALL = {
    "wte.weight": (9, 4),
    "wpe.weight": (9, 4),
    "h.0.ln_1.weight": (4,),
    "h.0.ln_1.bias": (4,),
    "h.0.attn.c_attn.weight": (4, 12),
    "h.0.attn.c_attn.bias": (12,),
    "h.0.attn.c_proj.weight": (4, 4),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "bn.num_batches_tracked": (),
}
ASKED = {name: Asked(shape) for name, shape in SMALL.items()}


@pytest.fixture
def manifest(tmp_path):
    """Write a manifest (text, bytes or an object) and read it."""

    def write(content):
        path = tmp_path / "m.json"
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read(manifest=path)

    return write


@pytest.fixture
def stored(tmp_path):
    """Write a safetensors file, and open it."""

    def write(arrays):
        path = tmp_path / "old.safetensors"
        safetensors.numpy.save_file(arrays, path)
        return open_checkpoint(path)

    return write


def numbers(value, dtype="float64"):
    """All of a tensor, as it would be written."""
    assert isinstance(value, Tensor)
    assert value.dtype is None or value.dtype in DTYPES
    block = np.asarray(value.read((slice(None),) * len(value.shape), dtype))
    assert (block.shape, block.dtype) == (value.shape, carrier(dtype))
    return decode(block, dtype)


def values(found):
    return {item.name: item.value for item in found.items}


# Sources -----------------------------------------------------------------------------------------


def test_a_preset():
    source = read(preset="gpt2")
    assert {k: a.shape for k, a in source.tensors.items()} == presets.load("gpt2").tensors
    assert source.about["class"] == "GPT2LMHeadModel"
    assert source.files == ()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_manifest_of_shapes(wrapped, manifest):
    shapes = {name: list(shape) for name, shape in SMALL.items()}
    source = manifest({"tensors": shapes} if wrapped else shapes)
    assert {k: a.shape for k, a in source.tensors.items()} == SMALL
    assert list(source.tensors) == list(SMALL)
    assert not any(asked.role or asked.options for asked in source.tensors.values())
    assert [path.name for path in source.files] == ["m.json"]


def test_a_presets_own_file_is_a_manifest():
    path = next(iter(presets.__path__)) + "/gpt2.json"
    assert read(manifest=path).tensors == read(preset="gpt2").tensors


def test_a_manifest_says_roles_and_options(manifest):
    source = manifest(
        {
            "tensors": [2, 3],  # a tensor of that name
            "a": {"shape": [4, 6], "role": "zero", "eps": 0.5, "layout": "IO"},
            "b": {"shape": [4, 12], "gain": 2, "blocks": [4, 8], "layout": "IO", "role": "transit"},
            "c": {"shape": [3], "role": "bias"},
            "d": {"shape": [3, 3], "role": "keep", "why": "mine"},
        }
    )
    chosen = choose(source.tensors)
    assert chosen["tensors"] is None
    assert chosen["a"] == ("zero", {"eps": 0.5, "layout": "IO"}, "stated in m.json", "manifest")
    assert chosen["c"].role == "bias"
    assert chosen["d"][:3] == ("keep", {}, "mine")
    del source.tensors["tensors"]
    made = values(assemble(source.tensors, gain=3.0, eps=7.0))
    assert made["a"] == ir.plan((4, 6), "zero", eps=0.5, layout="IO")
    assert made["b"] == ir.plan((4, 12), gain=2.0, layout="IO", blocks=(4, 8))
    assert made["d"] is None


@pytest.mark.parametrize(
    "plan",
    [
        ir.plan((4, 3, 4, 4), layout="IOHW", stride=(2, -2), tap=(1, 2)),
        ir.plan((4, 3, 3), taps="diagonal", tap=(0,)),
        ir.plan((4, 3, 3), taps="channel_major"),
        ir.plan((2, 8), "zero", form="shifted", eps=0.5),
        ir.plan((4, 3), loosen=0.5, loosen_at="entries", seed=7),
        ir.plan((6, 3), ("zero", "transit"), blocks=(4, 2), eps=0.5, gain=2.0, loosen=0.5),
    ],
    ids=["phases", "diagonal", "channel_major", "shifted", "loosened", "roles"],
)
@pytest.mark.every
def test_every_option_of_a_plan_travels_by_the_manifest(plan, manifest):
    role = plan.role if isinstance(plan.role, str) else "zero"
    entry = Report((Entry("w", plan.shape, role, "why", plan),)).to_dict()
    found = manifest(entry).tensors
    assert assemble(found).items[0].value == plan


ROLES = {"layout": "OI", "role": ["transit", "zero"], "blocks": [2, 4]}


def test_a_manifest_has_a_role_for_each_block(manifest):
    found = manifest({"w": {"shape": [6, 3], "role": "zero", "plan": ROLES}}).tensors
    (item,) = assemble(found, gain=2.0, eps=0.5, wide="fold_rms").items
    options = {"blocks": (2, 4), "gain": 2.0, "eps": 0.5, "wide": "fold_rms"}
    assert item.value == ir.plan((6, 3), ("transit", "zero"), **options)
    assert (item.role, item.origin) == ("zero", "IDI+IDIZ")
    (item,) = assemble(found, own=[parse_rule("w=transit")], gain=2.0).items
    assert item.value == ir.plan((6, 3), blocks=(2, 4), gain=2.0)
    assert item.origin == "IDI"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"role": "transit"}, "role of tensor 'w'.* should be one of 'zero'"),
        ({}, "role of tensor 'w'.* should be one of 'zero'"),
        ({"role": "zero", "plan": ROLES | {"blocks": [6]}}, "tensor 'w'.*as there are blocks, 1"),
        ({"role": "zero", "plan": ROLES | {"role": ["zero", "x"]}}, "tensor 'w'.*role = 'x'"),
        ({"role": "zero", "plan": ROLES | {"role": "zero"}}, "option of tensor 'w' = 'role'"),
    ],
)
def test_roles_of_blocks_that_do_not_fit(more, text, manifest):
    with pytest.raises(ir.errors.OptionError, match=text):
        assemble(manifest({"w": {"shape": [6, 3], "plan": ROLES, **more}}).tensors)


def test_a_tensor_named_tensors_with_a_role(manifest):
    source = manifest({"tensors": {"shape": [3, 3], "role": "zero"}, "odd": [2, 2]})
    assert list(source.tensors) == ["tensors", "odd"]


def test_the_plans_of_a_traced_model_travel(manifest):
    """A real model's report, as JSON: the same plans come out, whatever the names are."""
    import torch
    from torch import nn

    import idinit_ref_torch as irt

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 1)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x):
            return x + self.two(torch.relu(self.one(self.norm(x))))

    report = decide(irt.trace(Block(), torch.zeros(1, 6, 4, 4)), gain=2.0, eps=0.5)
    source = manifest(report.to_dict())
    found = assemble(source.tensors, gain=9.0, eps=9.0)
    plans = {name: value for name, value in values(found).items() if isinstance(value, ir.Plan)}
    assert plans == report.plans
    assert {item.name: item.role for item in found.items} == report.roles
    assert [item.why for item in found.items] == [entry.why for entry in report.entries]


# Several axes as one ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "back"),
    [
        ({"shape": [8, 2, 4], "axes": "IOO"}, lambda m: m.T.reshape(8, 2, 4)),
        ({"shape": [2, 4, 8], "axes": "IIO"}, lambda m: m.T.reshape(2, 4, 8)),
        ({"shape": [2, 8, 4], "axes": "OIO"},
         lambda m: m.reshape(2, 4, 8).transpose(0, 2, 1)),
        ({"shape": [2, 3, 4], "axes": "IOI"}, lambda m: m.T.reshape(2, 4, 3).transpose(0, 2, 1)),
        ({"shape": [16, 4], "axes": "OIO", "parted": [2, 8, 4]},
         lambda m: m.reshape(2, 4, 8).transpose(0, 2, 1).reshape(16, 4)),
        ({"shape": [64], "axes": "OIO", "parted": [2, 8, 4]},
         lambda m: m.reshape(2, 4, 8).transpose(0, 2, 1).reshape(64)),
        ({"shape": [24, 4], "axes": "OEOI", "parted": [2, 3, 4, 4]},  # three of each head
         lambda m: np.stack([m.reshape(2, 4, 4)] * 3, 1).reshape(24, 4)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_axes_of_one_letter_count_as_one(said, back, role, manifest):
    """The expected weight is a matrix by hand, cut and turned by NumPy."""
    source = manifest({"w": {**said, "role": role, "plan": {"eps": 0.5} if role == "zero" else {}}})
    found = assemble(source.tensors).values["w"]
    sizes = dict.fromkeys("OIE", 1)
    for letter, size in zip(said["axes"], said.get("parted", said["shape"]), strict=True):
        sizes[letter] *= size
    options = {"eps": 0.5} if role == "zero" else {}
    expected = back(by_hand.weight((sizes["O"], sizes["I"]), role, layout="OI", **options))
    assert found.shape == tuple(said["shape"])
    assert np.array_equal(numbers(found), expected)


def test_blocks_along_axes_of_one_letter(manifest):
    stored = {"shape": [4, 3, 4], "axes": "IOO"}
    plan = {"layout": "IO", "blocks": [4, 8]}
    mixed = ["zero", "transit"]
    source = manifest(
        {
            "one": {**stored, "role": "transit", "plan": plan},
            "two": {**stored, "role": "zero", "plan": plan | {"role": mixed}},
        }
    )
    made = assemble(source.tensors).values
    for name, role in (("one", "transit"), ("two", tuple(mixed))):
        expected = by_hand.weight((4, 12), role, layout="IO", blocks=(4, 8)).reshape(4, 3, 4)
        assert np.array_equal(numbers(made[name]), expected)


@given(st.data())
def test_joined_axes_are_a_reshape_and_read_in_parts(data):
    groups = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=3))
    sizes = [size for group in groups for size in group]
    whole = np.arange(prod(sizes), dtype=np.float64)
    counts = tuple(map(len, groups))
    joined = views.joined(ArrayTensor(whole.reshape(sizes)), counts)
    assert joined.shape == tuple(map(prod, groups))
    index = []
    for size in joined.shape:
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))
        index.append(slice(start, stop))
    expected = whole.reshape(joined.shape)[tuple(index)]
    assert np.array_equal(joined.read(tuple(index), "float64"), expected)


def test_joined_axes_read_little_more_than_is_asked_for():
    class Counting(ArrayTensor):
        read_so_far = 0

        def read(self, index, dtype):
            block = super().read(index, dtype)
            Counting.read_so_far += block.size
            return block

    joined = views.joined(Counting(np.zeros((5, 6, 7, 3))), (3, 1))
    joined.read((slice(20, 190), slice(1, 3)), "float64")
    assert Counting.read_so_far < (170 + 2 * 6 * 7) * 2  # whole steps of the outermost axis


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"axes": "IO"}, "axes of tensor 'w' = 'IO', but it should be a capital letter for each"),
        ({"axes": "IoO"}, "axes of tensor 'w' = 'IoO', but it should be a capital letter"),
        ({"axes": 3}, "axes of tensor 'w' = 3"),
        ({"parted": [8, 8]}, "axes of tensor 'w' = None"),
        ({"axes": "IO", "parted": [8, 9]}, "they should split the axes of the shape (8, 2, 4)"),
        ({"axes": "IO", "parted": [8, 8]}, "they should split the axes of the shape (8, 2, 4)"),
        ({"axes": "IOEO", "parted": [8, 2, 2]}, "it should be a capital letter for each"),
        ({"axes": "IOO", "parted": [8, 2, -4]}, "parted"),
        ({"axes": "IOO", "layout": "OI"}, "the layout of its plan should be 'IO', not 'OI'"),
        ({"axes": "IOO", "role": "bias"}, "in role 'bias' it should have no options"),
        ({"plan": {"axes": "IOO"}}, "option of tensor 'w' = 'axes'"),
    ],
)
def test_axes_that_do_not_fit(more, text, manifest):
    with pytest.raises(IDInitError) as caught:
        manifest({"w": {"shape": [8, 2, 4], "role": "transit", **more}})
    text = text if text != "parted" else "shape of tensor 'w' = (8, 2, -4)"
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_axes_without_outputs_name_the_tensor(manifest):
    source = manifest({"w": {"shape": [8, 2, 4], "role": "transit", "axes": "IEE"}})
    with pytest.raises(ir.errors.LayoutError, match=r"tensor 'w': .*'O' \(outputs\) is missing"):
        assemble(source.tensors)


@pytest.mark.filterwarnings(  # Keras (3.15) converts its variables with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_what_the_documentation_says_of_traced_models(tmp_path, monkeypatch, capsys):
    """Its section's Python and its commands in turn; then the frameworks' own loaders."""
    import keras
    import safetensors.flax
    import safetensors.torch
    from flax import nnx

    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    names: dict[str, object] = {}
    first, *_ = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(first, names)  # the imports, and a model of its own
    section = page.partition("\n## From a traced model\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(?:python)?\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    *others, loading = blocks
    for block in others:
        if block.startswith("idinit "):
            assert cli.main(shlex.split(block)[1:]) == 0, capsys.readouterr().err
        else:
            exec(block, names)
    net = names["net"]
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(safetensors.torch.load_file("net.safetensors"))
    assert len(expected) == 7
    for name, tensor in net.state_dict().items():  # a fresh norm is the identity
        assert tensor.equal(expected[name]), name

    held = safetensors.flax.load_file("flax_net.safetensors")
    state = nnx.state(names["flax_net"], (nnx.Param, nnx.BatchStat))
    paths = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    assert set(paths) == set(held)
    for name, variable in paths.items():
        assert np.array_equal(held[name], variable.get_value()), name

    keras_net = names["keras_net"]
    before = [np.array(v.value) for v in keras_net.variables]
    for v in keras_net.variables:
        v.assign(np.full(v.shape, 7, "float32"))
    exec(loading, names)
    for v, value in zip(keras_net.variables, before, strict=True):
        assert np.array_equal(v.value, value), v.path
    other = keras.models.clone_model(keras_net)
    other.load_weights("net.weights.h5")
    for v, value in zip(other.variables, before, strict=True):
        assert np.array_equal(v.value, value), v.path


def test_a_checkpoint_gives_names_shapes_and_dtypes(stored):
    old = stored(
        {
            "h.0.attn.bias": np.tri(4, dtype=bool).reshape(1, 1, 4, 4),
            "h.0.attn.c_proj.weight": np.zeros((4, 4), np.float16),
        }
    )
    source = read(checkpoint=old.path)
    assert source.tensors["h.0.attn.bias"] == Asked((1, 1, 4, 4), dtype="bool")
    assert source.tensors["h.0.attn.c_proj.weight"] == Asked((4, 4), dtype="float16")
    assert old.path in source.files


@pytest.mark.parametrize("given", [{}, {"preset": "gpt2", "manifest": "m.json"}])
def test_exactly_one_source(given):
    with pytest.raises(OptionError, match="exactly one"):
        read(**given)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "it should be JSON"),
        (b"{", "it should be JSON"),
        (b"\xff\xfe{\x00}\x00", "UTF-8, also from byte 0 on"),
        (b'{"a": [1, 2]} x', "it should be JSON (Extra data"),
        (b'{"a": [NaN, 2]}', "JSON has no NaN"),
        (b'{"a": {"shape": [2, 2], "gain": -Infinity}}', "JSON has no -Infinity"),
        (b'{"a": [2, 2], "b": [1, 1], "a": [3, 3]}', "the key 'a' should occur once"),
        (b'{"a": {"shape": [2], "shape": [3]}}', "the key 'shape' should occur once"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 200_000, "nested too deeply"),
        (b'{"a": [' + b"9" * 5000 + b", 2]}", "it should hold no integer of 5,000 digits"),
        (b'{"a": [2, 2]}' + b" " * 2**25, "it should have at most 33,554,432 bytes"),
        (b"[]", "it should hold an object, every tensor's name with its shape, not list"),
        (b"3", "every tensor's name with its shape, not int"),
        (b"null", "every tensor's name with its shape, not NoneType"),
        (b"{}", "it should hold a tensor"),
        (b'{"tensors": {}}', "it should hold a tensor"),
        (b'{"tensors": {"a": [2, 2]}, "tensor": 3}', "manifest = 'tensor', but it should be one"),
        (b'{"a": 3}', "tensor 'a' = 3, but it should be a list of sizes"),
        (b'{"a": null}', "tensor 'a' = None, but it should be a list of sizes"),
        (b'{"a": {"role": "zero"}}', "tensor 'a' = {'role': 'zero'}, but it should be a list"),
        (b'{"a": {"shape": 3}}', "shape of tensor 'a' = 3, but it should be a tuple"),
        (b'{"a": {"shape": "33"}}', "shape of tensor 'a' = '33', but it should be a tuple"),
        (b'{"a": [3, -1]}', "shape of tensor 'a' = (3, -1), but every axis"),
        (b'{"a": [3, 1.0]}', "shape of tensor 'a' = (3, 1.0), but every axis"),
        (b'{"a": [3, true]}', "axis 1 is a bool"),
        (b'{"a": [3, null]}', "axis 1 is None"),
        (b'{"a": [3, [3]]}', "axis 1 is [3]"),
        (b'{"a": [9223372036854775808]}', "every axis should be an integer >= 0 and < 2**63"),
        (b'{"a": [4294967296, 4294967296]}', "places are more than an array can count"),
        (json.dumps({"a": [1] * 33}).encode(), "it should have at most 32 axes"),
        (b'{"a": {"shape": [3, 3], "roll": "zero"}}', "option of tensor 'a' = 'roll', but"),
        (b'{"a": {"shape": [3, 3], "role": "one"}}', "role of tensor 'a' = 'one', but it"),
        (b'{"a": {"shape": [3, 3], "role": 3}}', "role of tensor 'a' = 3, but it"),
        (b'{"a": {"shape": [3, 3], "role": ["zero"]}}', "role of tensor 'a' = ['zero'], but it"),
        (b'{"a": {"shape": [3, 3], "plan": [1]}}', "its plan should be an object"),
        (b'{"a": {"shape": [3, 3], "plan": {"xp": "numpy"}}}', "option of tensor 'a' = 'xp'"),
        (b'{"a": {"shape": [3, 3], "why": 3}}', "tensor 'a' = 3, but its 'why' should be text"),
        (b'{"a": {"shape": [3], "role": "bias", "gain": 1}}', "'bias' it should have no options"),
        (b'{"a/../../b": [3, 3]}', "name = 'a/../../b'"),
        (b'{"a\\u001b[31m": [3, 3]}', "name = 'a\\x1b[31m'"),
        (b'{"\\ud800": [3, 3]}', "name = '\\ud800'"),
        (b'{"__metadata__": [3, 3]}', "name = '__metadata__'"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_one_line(content, text, manifest):
    with pytest.raises(IDInitError) as caught:
        manifest(content)
    assert text in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert len(str(caught.value)) < 1000


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(manifest=tmp_path / "m.json")
    with pytest.raises(IsADirectoryError):
        read(manifest=tmp_path)
    with pytest.raises(FileNotFoundError):
        read(checkpoint=tmp_path / "m.safetensors")
    with pytest.raises(IDInitError, match="null"):
        read(manifest="a\0b")
    with pytest.raises(CheckpointError):
        read(checkpoint=tmp_path)


def test_an_empty_checkpoint(stored):
    path = stored({}).path
    with pytest.raises(OptionError, match="it should hold a tensor"):
        read(checkpoint=path)


# Rules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a=zero", Rule("a", "zero")),
        (r"^x(?=y)[=,]$=keep", Rule(r"^x(?=y)[=,]$", "keep")),
        ("a=zero=bias", Rule("a=zero", "bias")),
        ("a=transit,layout=IO", Rule("a", "transit", {"layout": "IO"})),
        (
            "a=transit,gain=-.5,wide=fold_rms,groups=2,transposed=true,loosen=1e-3,seed=7",
            Rule(
                "a",
                "transit",
                {"gain": -0.5, "wide": "fold_rms", "groups": 2, "transposed": True,
                 "loosen": 1e-3, "seed": 7},
            ),
        ),
        ("a=zero,eps=2,taps=center,tap=1:1", Rule("a", "zero", {"eps": 2.0, "taps": "center",
                                                                "tap": (1, 1)})),
        ("a=transit,stride=2:-1,taps=diagonal", Rule("a", "transit", {"stride": (2, -1),
                                                                      "taps": "diagonal"})),
        ("a=zero,form=shifted", Rule("a", "zero", {"form": "shifted"})),
        ("a=transit,loosen=.5,loosen_at=entries", Rule("a", "transit", {"loosen": 0.5,
                                                                        "loosen_at": "entries"})),
        ("a=transit,blocks=8:4:4", Rule("a", "transit", {"blocks": (8, 4, 4)})),
        ("a=transit,parts=3,layout=OI", Rule("a", "transit", {"parts": 3, "layout": "OI"})),
    ],
)  # fmt: skip
def test_rules_in_words(text, rule):
    found = parse_rule(text)
    assert found[:3] == rule[:3]
    assert found.why == f"rule {rule.pattern}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it should be REGEX=ROLE"),
        ("a", "it should be REGEX=ROLE"),
        ("=zero", "it should be REGEX=ROLE"),
        ("a=ones", "it should be REGEX=ROLE"),
        ("a=zero,", "it should be REGEX=ROLE"),
        ("a=zero,eps", "it should be REGEX=ROLE"),
        ("a=zero;eps=1", "it should be REGEX=ROLE"),
        ("(=zero", "a regular expression (missing )"),
        ("a{99999999999999999999}=zero", "a regular expression"),
        ("a=zero,size=3", "option of a rule = 'size', but it should be one of '"),
        ("a=zero,eps=small", "'small' is not a value of eps"),
        ("a=zero,groups=1.5", "'1.5' is not a value of groups"),
        ("a=zero,transposed=yes", "'yes' is not a value of transposed"),
        ("a=zero,blocks=", "'' is not a value of blocks"),
        ("a=keep,layout=IO", "the role 'keep' has no options"),
        ("a=bias,gain=1", "the role 'bias' has no options"),
    ],
)
def test_what_is_no_rule(text, said):
    with pytest.raises(OptionError) as caught:
        parse_rule(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_own_rules_come_before_the_source_and_the_source_before_the_rules_by_name():
    asked = {
        "h.0.mlp.c_fc.weight": Asked((4, 8), "zero", {"layout": "OI"}, "said"),
        "h.1.mlp.c_fc.weight": Asked((4, 8), "zero", {"layout": "OI"}, "said"),
        "h.2.mlp.c_fc.weight": Asked((4, 8)),
        "h.3.mlp.c_fc.weight": Asked((4, 8), options={"gain": 0.5}),
    }
    chosen = choose(asked, own=[parse_rule(r"^h\.[12]\..*weight$=transit,layout=OI")])
    assert [c.role for c in chosen.values()] == ["zero", "transit", "transit", "transit"]
    assert [c.by for c in chosen.values()] == [
        "manifest", r"^h\.[12]\..*weight$", r"^h\.[12]\..*weight$", r"\.(q_attn|c_fc)\.weight$",
    ]  # fmt: skip
    assert chosen["h.3.mlp.c_fc.weight"].options == {"layout": "IO", "gain": 0.5}


def test_an_own_rule_that_fits_nothing_is_an_error():
    with pytest.raises(OptionError, match=r"rule = 'c_atn', but it fits no tensor; the nearest"):
        choose(ASKED, own=[parse_rule("c_atn=zero")])


def test_options_for_what_has_none():
    with pytest.raises(OptionError, match=r"gives wte\.weight the role 'keep'"):
        choose({"wte.weight": Asked((9, 4), options={"gain": 2.0})})


def test_what_no_rule_knows_is_an_error_with_the_count():
    odd = {"odd.1": Asked((3, 3)), "lm_head.weight": Asked((3, 3)), "odd.2": Asked((3, 3))}
    with pytest.raises(OptionError, match=r"'odd\.1'.*\(3, 3\)\), nor 1 more, such as 'odd\.2'"):
        assemble(odd)
    found = assemble(odd, own=[parse_rule("odd=zero")])
    assert [item.origin for item in found.items] == ["IDIZ", "IDI", "IDIZ"]


@pytest.mark.parametrize("name", ["bool", "int8", "int64", "uint16"])
def test_what_holds_no_real_numbers_is_left_as_it_is(name):
    asked = {"fc.bias": Asked((3,), dtype=name), "q_proj.weight": Asked((3, 3), dtype=name)}
    asked = {f"m.{key}": value for key, value in asked.items()}
    for chose in choose(asked).values():
        assert (chose.role, chose.why, chose.by) == ("keep", f"{name}: no real numbers", "dtype")
    assert choose(asked, own=[parse_rule("q_proj=transit")])["m.q_proj.weight"].role == "transit"


def test_an_option_that_does_not_fit_names_the_tensor():
    with pytest.raises(ir.errors.LayoutError, match=r"^rule 'odd', tensor 'odd': layout = 'OX'"):
        assemble({"odd": Asked((3, 3))}, own=[parse_rule("odd=zero,layout=OX")])
    with pytest.raises(OptionError, match=r"^tensor 'a': eps = 1\.0, but IDI"):
        assemble({"a": Asked((3, 3), "transit", {"eps": 1.0})})
    with pytest.raises(OptionError, match="gain = nan"):
        assemble(ASKED, gain=float("nan"))
    with pytest.raises(OptionError, match="wide = 'wider'"):
        assemble(ASKED, wide="wider")


# What every tensor gets --------------------------------------------------------------------------


def test_made_zeros_and_left_out():
    found = assemble(ASKED, gain=2.0, eps=0.25, wide="fold_mean")
    assert [item.name for item in found.items] == list(SMALL)
    assert [item.shape for item in found.items] == list(SMALL.values())
    assert {item.name: item.origin for item in found.items if item.origin != "left out"} == {
        "h.0.attn.c_attn.weight": "IDI",
        "h.0.attn.c_attn.bias": "zeros",
        "h.0.attn.c_proj.weight": "IDIZ",
    }
    made = values(found)
    assert made["h.0.attn.c_attn.weight"] == ir.plan(
        (4, 12), gain=2.0, wide="fold_mean", layout="IO", blocks=(4, 4, 4)
    )
    assert made["h.0.attn.c_proj.weight"] == ir.plan((4, 4), "zero", eps=0.25, layout="IO")
    assert not numbers(made["h.0.attn.c_attn.bias"]).any()
    assert found.values == {k: v for k, v in made.items() if v is not None}
    assert all(item.why for item in found.items)


def test_the_result_is_what_save_takes(tmp_path):
    fills = [parse_fill("*=zeros"), parse_fill("normalisation=identity")]
    path = tmp_path / "a.safetensors"
    ir.save(path, assemble(ASKED, fills=fills).values, dtype="float32")
    held = safetensors.numpy.load_file(path)
    assert {name: array.shape for name, array in held.items()} == SMALL
    assert held["bn.num_batches_tracked"].dtype == np.int64
    expected = by_hand.weight((4, 4), "zero", layout="IO")
    assert np.array_equal(held["h.0.attn.c_proj.weight"], expected.astype(np.float32))
    assert held["h.0.ln_1.weight"].tolist() == [1, 1, 1, 1]


def test_copies_are_those_of_the_checkpoint(stored):
    rng = np.random.default_rng(0)
    there = {
        "wte.weight": rng.normal(size=(9, 4)).astype(np.float32),
        "wpe.weight": rng.normal(size=(9, 4)).astype(np.float16),
        "h.0.ln_1.weight": np.float32([1, 2, 3, 4]),
        "h.0.ln_1.bias": np.float32([1, 2, 3, 5]),
        "bn.running_mean": np.float32([1, 2, 3, 6]),
        "bn.running_var": np.float32([1, 2, 3, 7]),
        "bn.num_batches_tracked": np.array(17),
        "h.0.attn.c_proj.weight": np.ones((4, 4), np.float32),  # IDInit defines it
        "more": np.ones(2),
        "most": np.ones(2),
    }
    old = stored(there)
    found = assemble(ASKED, keep_from=old)
    assert set(found.unused) == {"more", "most"}
    made = values(found)
    for item in found.items:
        if item.role == "keep":
            assert item.origin == "copied from old.safetensors"
            own = np.asarray(there[item.name])
            assert np.array_equal(numbers(made[item.name], own.dtype.name), own)
    assert made["h.0.attn.c_proj.weight"] == ir.plan((4, 4), "zero", layout="IO")
    filled = assemble(ASKED, keep_from=old, fills=[parse_fill("wte.weight=zeros")])
    assert filled.items[0].origin == "filled by zeros"
    assert filled.items[1].origin == "copied from old.safetensors"


def test_what_is_missing_to_be_copied_is_all_named(stored):
    old = stored(
        {
            "transformer.wte.weight": np.zeros((9, 4)),
            "wpe.weight": np.zeros((8, 4)),
            "h.0.ln_1.weight": np.zeros(4),
            "h.0.ln_1.bias": np.zeros((4, 1)),
        }
    )
    kept = [parse_fill("bn.*=zeros")]
    with pytest.raises(OptionError) as caught:
        assemble(ASKED, keep_from=old, fills=kept)
    text = str(caught.value)
    assert "it lacks wte.weight (nearest to the first: transformer.wte.weight)" in text
    assert "wpe.weight (8, 4) for (9, 4), h.0.ln_1.bias (4, 1) for (4,);" in text
    assert "h.0.ln_1.weight" not in text


# Fills -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fill"),
    [
        ("a=zeros", ("a", "zeros", 0.0, 0, "zeros")),
        ("a=b=ones", ("a=b", "ones", 0.0, 0, "ones")),
        ("batch statistics=identity", ("batch statistics", "identity", 0.0, 0, "identity")),
        ("*.w=constant:-1e-4", ("*.w", "constant", -1e-4, 0, "constant:-1e-4")),
        ("*=normal:0.02", ("*", "normal", 0.02, 0, "normal:0.02")),
        ("*=normal:0", ("*", "normal", 0.0, 0, "normal:0")),
        ("*=normal:.5:12", ("*", "normal", 0.5, 12, "normal:.5:12")),
    ],
)
def test_fills_in_words(text, fill):
    assert parse_fill(text) == fill


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "=zeros", "a=", "a=zero", "a=Ones", "a=zeros:1", "a=ones:", "a=identity:2",
        "a=constant", "a=constant:", "a=constant:x", "a=constant:nan", "a=constant:inf",
        "a=constant:1:2", "a=normal", "a=normal:-1", "a=normal:inf", "a=normal:1:2:3",
        "a=normal:1:-2", "a=normal:1:x", "a=normal:1:9223372036854775808", "a=uniform:1",
    ],
)  # fmt: skip
def test_what_is_no_fill(text):
    with pytest.raises(OptionError) as caught:
        parse_fill(text)
    assert "it should be PATTERN=RULE" in str(caught.value)


def test_fills_are_by_pattern_by_reason_and_a_later_one_wins():
    fills = ["*=constant:3", "embedding=constant:4", "h.0.ln_1.*=constant:5"]
    found = assemble(ASKED, fills=[parse_fill(text) for text in fills])
    held = {item.name: item for item in found.items}
    expected = dict.fromkeys(SMALL, 3.0) | {"wte.weight": 4.0}
    expected |= {"h.0.ln_1.weight": 5.0, "h.0.ln_1.bias": 5.0}
    for name, item in held.items():
        if item.role == "keep":
            assert item.origin == f"filled by constant:{expected[name]:g}"
            assert set(numbers(item.value, item.value.dtype or "float64").reshape(-1).tolist()) == {
                expected[name]
            }
    assert held["h.0.attn.c_attn.weight"].origin == "IDI"


def test_a_pattern_leaves_alone_what_idinit_defines_but_a_name_does_not():
    with pytest.raises(OptionError, match=r"'h\.0\.attn\.\*', but it fits no tensor that IDInit"):
        assemble(ASKED, fills=[parse_fill("h.0.attn.*=zeros")])
    found = assemble(ASKED, fills=[parse_fill("h.0.attn.c_proj.weight=zeros")])
    (item,) = (item for item in found.items if item.name == "h.0.attn.c_proj.weight")
    assert item.origin == "filled by zeros"
    assert not numbers(item.value).any()


def test_a_name_with_brackets_is_a_name():
    found = assemble(
        {"p[0].w": Asked((2,), "keep"), "p0.w": Asked((2,), "keep")},
        fills=[parse_fill("p[0].w=ones")],
    )
    assert [item.origin for item in found.items] == ["filled by ones", "filled by ones"]


def test_the_identity_of_a_normalisation_is_that_of_real_layers():
    """With them, a fresh layer in evaluation divides by 1 and shifts by 0."""
    import torch

    norm = torch.nn.BatchNorm1d(4)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        tensor.data.normal_()
    asked = {
        f"bn_norm.{name}": Asked(tuple(tensor.shape), dtype=str(tensor.dtype).partition(".")[2])
        for name, tensor in norm.state_dict().items()
    }
    fills = [parse_fill("normalisation=identity"), parse_fill("batch statistics=identity")]
    made = values(assemble(asked, fills=fills))
    state = {
        name.partition(".")[2]: torch.from_numpy(np.array(numbers(value, value.dtype or "float32")))
        for name, value in made.items()
    }
    norm.load_state_dict(state)
    x = torch.randn(5, 4)
    assert torch.allclose(norm.eval()(x), x / (1 + norm.eps) ** 0.5)


@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight"])
def test_identity_is_for_normalisations_alone(name):
    with pytest.raises(OptionError, match=re.escape(f"{name} (shape (9, 4)) is not a scale")):
        assemble(ASKED, fills=[parse_fill(f"{name}=identity")])
    with pytest.raises(OptionError, match="is not a scale"):
        assemble({"cls_token": Asked((4,))}, fills=[parse_fill("cls_token=identity")])


@pytest.mark.parametrize("rule", ["constant:0.5", "constant:-1", "constant:300", "normal:1"])
@pytest.mark.parametrize("name", ["uint8", "bool"])
def test_whole_numbers_get_whole_numbers(rule, name):
    with pytest.raises(OptionError, match=f"count has the dtype {name}, which cannot hold"):
        assemble({"count": Asked((2,), "keep", dtype=name)}, fills=[parse_fill(f"count={rule}")])


def test_the_limits_of_whole_numbers():
    def made(name, value):
        fills = [parse_fill(f"a=constant:{value}")]
        return numbers(
            assemble({"a": Asked((1,), "keep", dtype=name)}, fills=fills).items[0].value, name
        )

    for name, value in (("uint8", 255), ("int8", -128), ("int64", -(2**63)), ("uint64", 2**53)):
        assert made(name, value).tolist() == [value]
    for name, value in (("uint8", 256), ("int8", -129), ("int64", 2**63), ("uint64", 2**64)):
        with pytest.raises(OptionError, match="cannot hold this value"):
            made(name, value)


@pytest.mark.parametrize("name", ["uint8", "bool", "int64"])
def test_zeros_and_ones_of_every_dtype(name):
    for rule, value in (("zeros", 0), ("ones", 1), ("constant:1", 1)):
        found = assemble({"a": Asked((2,), "keep", dtype=name)}, fills=[parse_fill(f"a={rule}")])
        assert numbers(found.items[0].value, name).tolist() == [value, value]


def test_a_constant_is_rounded_once():
    """1 + 2**-8 + 2**-30 lies just above the middle of two bfloat16: never through float32."""
    value = 1 + 2**-8 + 2**-30
    found = assemble({"a": Asked((2,), "keep")}, fills=[parse_fill(f"a=constant:{value!r}")])
    assert numbers(found.items[0].value, "bfloat16").tolist() == [1 + 2**-7] * 2
    assert numbers(found.items[0].value)[0] == value


def test_noise_is_that_of_the_name_and_the_seed_alone():
    def drawn(tensors, text):
        found = assemble(tensors, fills=[parse_fill(text)])
        return {item.name: numbers(item.value) for item in found.items if item.role == "keep"}

    embeddings = {name: ASKED[name] for name in ("wte.weight", "wpe.weight")}
    first = drawn(embeddings, "*=normal:0.5:3")
    assert not np.isclose(first["wte.weight"], first["wpe.weight"]).any()
    again = drawn({"wpe.weight": ASKED["wpe.weight"]}, "*=normal:0.5:3")
    assert np.array_equal(first["wpe.weight"], again["wpe.weight"])
    assert not np.isclose(
        first["wte.weight"], drawn(embeddings, "*=normal:0.5:4")["wte.weight"]
    ).any()
    key = int.from_bytes(hashlib.sha256(b"3:wpe.weight").digest()[:8], "little") >> 1
    for row in range(9):
        philox = np.random.Philox(key=np.array([key, row], np.uint64))
        expected = 0.5 * np.random.Generator(philox).standard_normal(4)
        assert np.array_equal(first["wpe.weight"][row], expected)


def test_noise_has_its_deviation():
    found = assemble({"a": Asked((500, 40), "keep")}, fills=[parse_fill("a=normal:0.02")])
    made = numbers(found.items[0].value)
    assert abs(made.std() - 0.02) < 0.001
    assert abs(made.mean()) < 0.001


def test_a_fill_that_fits_nothing_is_an_error():
    with pytest.raises(OptionError, match=r"fill = 'wtee', but .* the nearest names are wte\.w"):
        assemble(ASKED, fills=[parse_fill("wtee=zeros")])


def test_every_reason_of_the_rules_is_a_pattern():
    """Each reason that a rule gives for leaving a tensor alone can be said of a fill."""
    names = {
        "normalisation": "norm.weight",
        "batch statistics": "bn.running_var",
        "embedding": "wte.weight",
        "position embedding": "wpe.weight",
        "learned token": "vit.cls_token",
        "attention mask": "h.0.attn.bias",
        "position indices": "position_ids",
        "rotary frequencies": "m.rotary_emb.inv_freq",
    }
    assert set(names) == {rule.why for rule in RULES if rule.role == "keep"}
    for reason, name in names.items():
        asked = {name: Asked((4,)), "lm_head.weight": Asked((3, 3))}
        found = assemble(asked, fills=[parse_fill(f"{reason}=zeros")])
        assert [item.origin for item in found.items] == ["filled by zeros", "IDI"]


def test_a_reason_of_the_rules_is_a_pattern_whatever_the_manifest_says():
    """As of a report, which knows no normalisation: a vector is neither weight nor bias."""
    asked = {
        "norm.weight": Asked((4,), "keep", why="neither weight nor bias"),
        "bn.running_var": Asked((4,), "keep", why="buffer"),
        "wte.weight": Asked((4, 4), "transit", {"layout": "IO"}, "an override"),
        "odd": Asked((4,), "keep", why="neither weight nor bias"),
    }

    def filled(*texts):
        found = assemble(asked, fills=[parse_fill(text) for text in texts])
        return {item.name: item.origin for item in found.items}

    out = dict.fromkeys(asked, "left out") | {"wte.weight": "IDI"}
    assert filled("normalisation=identity") == {**out, "norm.weight": "filled by identity"}
    assert filled("batch statistics=ones", "normalisation=zeros") == {
        **out, "norm.weight": "filled by zeros", "bn.running_var": "filled by ones"
    }  # fmt: skip
    assert filled("neither weight nor bias=ones") == {
        **out, "norm.weight": "filled by ones", "odd": "filled by ones"
    }  # fmt: skip
    with pytest.raises(OptionError) as caught:  # the table is a weight here
        filled("embedding=normal:1")
    assert str(caught.value).count("\n") == 0
    assert (
        "the reasons are 'neither weight nor bias', 'normalisation', 'buffer', 'batch statistics';"
        in str(caught.value)
    )


def test_reasons_without_end_are_not_all_named():
    asked = {f"a{k}": Asked((2,), "keep", why=f"reason {k}") for k in range(9)}
    with pytest.raises(OptionError, match=r"reasons are 'reason 0', .*'reason 5' and 3 more;"):
        assemble(asked, fills=[parse_fill("b=zeros")])


def test_a_large_manifest_is_quick():
    """A 70B model's 723 tensors; sizes are never looked at."""

    layers = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(80)
        for name, shape in {
            "self_attn.q_proj": (8192, 8192), "self_attn.k_proj": (1024, 8192),
            "self_attn.v_proj": (1024, 8192), "self_attn.o_proj": (8192, 8192),
            "mlp.gate_proj": (28672, 8192), "mlp.up_proj": (28672, 8192),
            "mlp.down_proj": (8192, 28672), "input_layernorm": (8192,),
            "post_attention_layernorm": (8192,),
        }.items()
    }  # fmt: skip
    layers |= {"model.embed_tokens.weight": (128256, 8192), "lm_head.weight": (128256, 8192)}
    found = assemble({k: Asked(v) for k, v in layers.items()}, fills=[parse_fill("*=normal:1")])
    assert len(found.values) == 722


# What a second reader found ----------------------------------------------------------------------


def test_a_fill_may_be_a_pattern_of_reasons():
    asked = sources.read(preset="gpt2").tensors
    found = assemble(
        asked, fills=[parse_fill("*embedding=normal:0.02"), parse_fill("norm*tion=identity")]
    )
    assert all(item.value is not None for item in found.items)
    assert {item.origin for item in found.items if "wpe" in item.name} == {"filled by normal:0.02"}


def test_names_in_a_message_end(tmp_path):
    assert some(["n" * 3_000_000]).endswith("n...")
    assert len(some(["n" * 3_000_000] * 9)) < 600


def test_an_integer_of_thousands_of_digits(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{"a": [' + "9" * 5000 + "]}")
    with pytest.raises(OptionError, match="should hold no integer of 5,000 digits"):
        sources.read(manifest=path)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3"])
def test_the_identity_of_a_norm_that_multiplies_by_one_more_than_its_weight(tmp_path, kind):
    name = "model.layers.0.input_layernorm.weight"
    ir.save(tmp_path / "model.safetensors", {name: np.full(4, 7, np.float32)})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    source = read(checkpoint=tmp_path)
    fills = [parse_fill("normalisation=identity")]
    if kind == "gemma3":  # of which the norms for pictures multiply by the weight itself
        with pytest.raises(OptionError, match=r"--fill 'PATTERN=zeros' for 1 \+ w"):
            assemble(source.tensors, fills=fills, model_type=source.model_type)
        return
    value = assemble(source.tensors, fills=fills, model_type=source.model_type).values[name]
    expected = 0 if kind == "gemma2" else 1
    assert (value.read((slice(None),), "float32") == expected).all()


def test_a_filled_gemma_normalises_to_one(tmp_path):
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, intermediate_size=24,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    source = read(checkpoint=tmp_path)
    fills = [parse_fill("normalisation=identity"), parse_fill("embedding=zeros")]
    values = assemble(source.tensors, fills=fills, model_type=source.model_type).values
    ir.save(tmp_path / "model.safetensors", values)
    norm = Gemma2ForCausalLM.from_pretrained(tmp_path).model.layers[0].input_layernorm
    made = norm(torch.randn(4, 16)).detach()
    assert torch.allclose(made.pow(2).mean(-1), torch.ones(4), atol=1e-3)


@pytest.mark.parametrize(("inner", "is_told"), [("gemma2", False), ("llama", True)])
def test_a_norm_of_one_of_several_models_is_asked_for(tmp_path, inner, is_told):
    name = "language_model.layers.0.input_layernorm.weight"
    ir.save(tmp_path / "model.safetensors", {name: np.full(4, 7, np.float32)})
    config = {"model_type": "new", "vlm_config": {"model_type": "x", "text": {"model_type": inner}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = read(checkpoint=tmp_path)
    fills = [parse_fill("normalisation=identity")]
    if not is_told:
        with pytest.raises(OptionError, match=r"a 'new\+x\+gemma2' model has both"):
            assemble(source.tensors, fills=fills, model_type=source.model_type)
        return
    value = assemble(source.tensors, fills=fills, model_type=source.model_type).values[name]
    assert (value.read((slice(None),), "float32") == 1).all()


@pytest.mark.parametrize("text", ["", "[", "[]", '{"model_type": 3}'])
def test_a_configuration_that_is_none_says_nothing(tmp_path, text):
    ir.save(tmp_path / "model.safetensors", {"a.bias": np.zeros(3, np.float32)})
    (tmp_path / "config.json").write_text(text)
    assert read(checkpoint=tmp_path).model_type == ""
