"""`idinit rules`: which rule knows which name."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import by_hand
from idinit_ref.files import presets
from idinit_ref.roles.names import RULES, decide


def rows(out):
    """The columns of each line by name, and the last line."""
    head, *lines, last = out.splitlines()
    starts = [head.index(word) for word in ("name", "shape", "role", "options", "why")]
    ends = [*starts[1:], None]
    cells = [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines]
    return {cell[0]: cell[1:] for cell in cells}, last


@pytest.mark.parametrize("name", ["gpt2", "resnet50", "llama-3-8b"])
def test_every_name_of_a_preset_has_its_rule(name, idinit):
    status, out, err = idinit(f"rules --preset {name} --strict")
    assert (status, err) == (0, "")
    found, last = rows(out)
    tensors = presets.load(name).tensors
    assert set(found) == set(tensors)
    layers = [
        int(part[1])
        for n in found
        if (part := re.search(r"^(?:transformer\.h|model\.layers)\.(\d+)\.", n))
    ]
    assert layers == sorted(layers)  # 2 before 10
    for tensor, (shape, role, _, why) in found.items():
        decision = decide(tensor, tensors[tensor], names=tensors)
        assert (shape, role) == (str(tensors[tensor]), decision.role)
        reason, pattern = re.fullmatch(r"(.*?) \[(.*)\]", why).groups()
        assert reason == decision.why
        assert re.search(pattern, tensor)
        assert pattern in [rule.pattern for rule in RULES]
    assert last.startswith(f"{len(tensors)} tensors: ")
    assert last.endswith(", 0 that no rule knows")


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = {
        "odd.weight": [3, 3],
        "h.0.attn.c_attn.weight": [4, 12],
        "said": {"shape": [3, 3], "role": "zero", "eps": 0.5},
        "even.weight": [3, 3],
    }
    (tmp_path / "m.json").write_text(json.dumps(tensors))


def test_a_role_for_each_block_is_an_option(idinit, manifest, tmp_path):
    plan = {"layout": "OI", "role": ["transit", "zero"], "blocks": [2, 4]}
    tensors = {"w": {"shape": [6, 3], "role": "zero", "plan": plan}}
    (tmp_path / "r.json").write_text(json.dumps(tensors))
    status, out, err = idinit("rules --manifest r.json --json")
    assert (status, err) == (0, "")
    assert (found := json.loads(out)["w"])["role"] == "zero"
    assert found["options"] == plan
    assert "role=['transit', 'zero']" in idinit("rules --manifest r.json")[1]
    status, out, _ = idinit("export --manifest r.json --out r.npz --gain 2 --eps 0.5")
    assert status == 0
    assert "IDI" not in out.split("r.npz")[0]  # in role zero, and not left out
    with np.load("r.npz") as loaded:
        parts = by_hand.idi_matrix(2, 3, 2.0), by_hand.idiz_matrix(4, 3, 0.5)
        assert np.array_equal(loaded["w"], np.vstack(parts))
    assert "IDI+IDIZ: OI, gain 2.0, eps 0.5" in idinit("inspect r.npz")[1]


def test_what_no_rule_knows_comes_last_and_is_counted(idinit, manifest):
    status, out, err = idinit("rules --manifest m.json")
    assert (status, err) == (0, "")
    found, last = rows(out)
    assert list(found) == ["h.0.attn.c_attn.weight", "said", "even.weight", "odd.weight"]
    assert found["odd.weight"] == ["(3, 3)", "-", "", "no rule knows it"]
    assert found["said"] == ["(3, 3)", "zero", "eps=0.5", "stated in m.json [manifest]"]
    assert found["h.0.attn.c_attn.weight"][1:3] == ["transit", "layout=IO blocks=(4, 4, 4)"]
    assert last == "4 tensors: 1 transit, 1 zero, 0 bias, 0 keep, 2 that no rule knows"


def test_strict_makes_that_an_error(idinit, manifest):
    status, out, err = idinit("rules --manifest m.json --strict")
    assert (status, out) == (2, "")
    assert "'odd.weight, even.weight', but no rule knows these 2 names" in err
    status, out, err = idinit("rules --manifest m.json --strict --rule odd=zero")
    assert (status, out) == (2, "")
    assert "'even.weight', but no rule knows it" in err


def test_own_rules_are_shown(idinit, manifest):
    line = "rules --manifest m.json --strict --rule ^odd=zero,layout=IO --rule ^even=keep"
    status, out, err = idinit(line)
    assert (status, err) == (0, "")
    found, last = rows(out)
    assert found["odd.weight"] == ["(3, 3)", "zero", "layout=IO", "rule ^odd [^odd]"]
    assert found["even.weight"][1] == "keep"
    assert last == "4 tensors: 1 transit, 2 zero, 0 bias, 1 keep, 0 that no rule knows"


def test_of_a_checkpoint(idinit, manifest):
    tensors = {"lm_head.weight": np.zeros((3, 3), np.int8), "norm.weight": np.zeros(3)}
    safetensors.numpy.save_file(tensors, "c.safetensors")
    found, _ = rows(idinit("rules --from c.safetensors")[1])
    assert found["lm_head.weight"][1:] == ["keep", "", "int8: no real numbers [dtype]"]
    assert found["norm.weight"][1] == "keep"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("rules", "--preset --manifest --from = None, but one is required"),
        ("rules --preset gpt", "did you mean 'gpt2'?"),
        ("rules --manifest gone.json", "manifest = 'gone.json', but it cannot be read (No such"),
        ("rules --manifest m.json --rule x", "rule = 'x', but it should be REGEX=ROLE"),
        ("rules --manifest m.json --rule xy=zero", "rule = 'xy', but it fits no tensor"),
        ("rules --manifest m.json --rule odd=transit,parts=3", "odd.weight should hold 3 square"),
        ("rules --manifest m.json --rule odd=zero,eps=0", "'odd', tensor 'odd.weight': eps = 0.0"),
        (
            "rules --manifest m.json --strict --rule odd|even=transit,gain=nan",
            "'even.weight': gain = nan",
        ),
        ("rules --manifest m.json --rule even=transit,blocks=9", "'even.weight': blocks = (9,)"),
        ("rules --manifest m.json --rule odd=zero,layout=OX", "'odd.weight': layout = 'OX'"),
    ],
)
def test_bad_input_is_one_line(line, text, idinit, manifest):
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err.startswith("idinit: ")
    assert err.count("\n") == 1
    assert text in err
