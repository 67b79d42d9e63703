"""`idinit inspect` and `idinit diff`: what files hold, and how two of them differ."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import idinit_ref as ir
from idinit_ref.commands import _terminal

PLANS = {
    "fc1.weight": ir.plan((6, 4), gain=3.0),
    "fc2.weight": ir.plan((4, 6), "zero", eps=0.5),
    "conv.weight": ir.plan((4, 4, 3, 3), "zero", taps="center"),
    "fc1.bias": np.zeros(6, np.float32),
    "norm.weight": np.ones(4, np.float32),
    "wte.weight": np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a file, where the command runs."""
    monkeypatch.chdir(tmp_path)
    ir.save("a.safetensors", PLANS, digests=True)
    return tmp_path


def lines(out):
    """The columns of each line, and the last line."""
    *rows, last = out.splitlines()
    return {row[0]: row[1:] for row in (re.split(r"  +", line) for line in rows)}, last


# inspect -----------------------------------------------------------------------------------------


def test_inspect_names_what_every_tensor_is(idinit, here):
    status, out, err = idinit("inspect a.safetensors")
    assert (status, err) == (0, "")
    rows, last = lines(out)
    assert rows.pop("name") == ["shape", "dtype", "what"]
    assert set(rows) == set(PLANS)
    assert rows["fc1.weight"] == ["(6, 4)", "float32", "IDI: OI, gain 3.0"]
    assert rows["fc2.weight"] == ["(4, 6)", "float32", "IDIZ: OI, eps 0.5"]
    assert rows["conv.weight"][2].startswith("IDIZ: OIHW, eps 1e-06, taps center")
    assert rows["fc1.bias"] == ["(6,)", "float32", "zero"]
    assert rows["norm.weight"] == ["(4,)", "float32", "constant: 1.0"]
    assert rows["wte.weight"][2].startswith("other: 1 of 36 not zero")
    total = sum(np.prod(p.shape) for p in PLANS.values()) * 4
    head, kinds, digests = re.fullmatch(r"(.*?): (.*); digests: (.*)", last).groups()
    assert head == f"6 tensors, {total} bytes"
    assert set(kinds.split(", ")) == {"2 IDIZ", "1 IDI", "1 zero", "1 constant", "1 other"}
    assert digests == "6 right, 0 WRONG"


def test_inspect_as_json(idinit, here):
    status, out, err = idinit("inspect a.safetensors --json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert set(found) == set(PLANS)
    for name, value in PLANS.items():
        assert found[name]["shape"] == list(value.shape)
        assert found[name]["dtype"] == "float32"
        assert found[name]["digest"] is True
        if isinstance(value, ir.Plan):
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in
                       found[name]["plan"].items()}  # fmt: skip
            assert ir.plan(value.shape, **options) == value
            assert found[name]["claim"] is True
        else:
            assert found[name]["plan"] is None
    assert found["wte.weight"]["numbers"]["nonzero"] == 36
    assert found["norm.weight"]["value"] == 1.0


def test_what_json_lacks_is_text(idinit, here):
    arrays = {"a": np.full(2, np.nan), "b": np.full(3, 2j, np.complex64), "c": np.array(np.inf),
              "d": np.array([np.inf, 1.0])}  # fmt: skip
    safetensors.numpy.save_file(arrays, "b.safetensors")

    def never(text):
        raise AssertionError(text)

    found = json.loads(idinit("inspect b.safetensors --json")[1], parse_constant=never)
    assert found["c"]["value"] == "inf"
    assert complex(found["b"]["value"]) == 2j
    assert found["d"]["numbers"]["infinite"] == 1


def test_a_changed_byte_is_told(idinit, here):
    content = bytearray((here / "a.safetensors").read_bytes())
    start = content.index(np.float32([3, 0, 0, 0]).tobytes())
    content[start] ^= 1
    (here / "a.safetensors").write_bytes(content)
    status, out, err = idinit("inspect a.safetensors")
    assert (status, err) == (1, "")
    assert "digests: 5 right, 1 WRONG; the file's claims: 1 WRONG" in out
    row = next(line for line in out.splitlines() if line.startswith("fc1.weight"))
    assert "SHA-256 is" in row
    assert "other" in row


@pytest.mark.parametrize("changed", ["digest", "claim"])
def test_the_status_tells_of_a_wrong_digest_and_of_a_wrong_claim(changed, idinit, here):
    name = "wte.weight" if changed == "digest" else "fc1.weight"
    ir.save("b.safetensors", PLANS, digests=changed == "digest")
    stored = safetensors.numpy.load_file("b.safetensors")[name]
    content = bytearray((here / "b.safetensors").read_bytes())
    start = content.index(stored.tobytes())
    content[start : start + 4] = np.float32(9).tobytes()
    for line in ("inspect b.safetensors", "inspect b.safetensors --json"):
        assert idinit(line)[0] == 0
    (here / "b.safetensors").write_bytes(content)
    for line in ("inspect b.safetensors", "inspect b.safetensors --json"):
        status, out, err = idinit(line)
        assert (status, err) == (1, "")
    found = json.loads(out)[name]
    assert found["digest"] is (False if changed == "digest" else None)
    assert found["claim"] is (None if changed == "digest" else False)


def test_any_container(idinit, here):
    np.savez("b.npz", **{"fc.weight": ir.idi((4, 3))})
    out = idinit("inspect b.npz")[1]
    assert re.search(r"^fc\.weight +\(4, 3\) +float64 +IDI: OI, gain 1\.0$", out, re.MULTILINE)
    ir.save("b.weights.h5", {"fc/vars/0": ir.plan((4, 3))})
    out = idinit("inspect b.weights.h5")[1]
    assert re.search(r"^fc/vars/0 +\(4, 3\) +float32 +IDI: OI, gain 1\.0$", out, re.MULTILINE)
    ir.save("c.safetensors", PLANS, shard_bytes=100)
    assert idinit("inspect c.safetensors.index.json")[0] == 0


def test_an_empty_file_has_no_tensors(idinit, here):
    safetensors.numpy.save_file({}, "b.safetensors")
    out = idinit("inspect b.safetensors")[1]
    assert out.splitlines()[-1] == "0 tensors, 0 bytes: none"
    assert json.loads(idinit("inspect b.safetensors --json")[1]) == {}


def test_names_are_not_markup(idinit, here):
    name = "[red]a[/red].\u202e\u00e9"
    safetensors.numpy.save_file({name: np.ones(2)}, "b.safetensors")
    for line in ("inspect b.safetensors", "diff a.safetensors b.safetensors"):
        out = idinit(line)[1]
        assert "[red]a[/red].\\u202e\u00e9" in out
    assert list(json.loads(idinit("inspect b.safetensors --json")[1])) == [name]


def test_reading_shows_progress_after_a_second(idinit, here, monkeypatch):
    import itertools

    clock = itertools.count(step=0.5)
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: next(clock))
    ir.save("b.safetensors", {f"a.{k}": ir.plan((9, 9)) for k in range(60)})
    for line, unit in (("inspect b.safetensors", "MB"), ("diff b.safetensors b.safetensors", "M")):
        status, _, err = idinit(line)
        assert status == 0
        assert len(err.splitlines()) > 2
        assert all(re.match(rf"idinit: 0\.0 of 0\.0 {unit}", text) for text in err.splitlines())


# diff --------------------------------------------------------------------------------------------


def test_equal_files(idinit, here):
    ir.save("b.safetensors", PLANS, shard_bytes=100)
    for line in ("a.safetensors a.safetensors", "a.safetensors b.safetensors.index.json"):
        assert idinit(f"diff {line}") == (0, "6 tensors, all equal\n", "")
        status, out, _ = idinit(f"diff {line} --json")
        assert status == 0
        found = json.loads(out)
        assert set(found["equal"]) == set(PLANS)
        assert found["different"] == {}


def test_different_files(idinit, here):
    other = dict(PLANS)
    other["fc1.bias"] = np.float32([0, 0, 2, 0, 0, 1])
    other["fc2.weight"] = ir.plan((6, 4), "zero", eps=0.5)
    other["norm.weight"] = np.ones(4, np.float16)
    other["more"] = other.pop("wte.weight")
    ir.save("b.safetensors", other)
    status, out, err = idinit("diff a.safetensors b.safetensors")
    assert (status, err) == (1, "")
    found = dict(line.split(": ", 1) for line in out.splitlines()[:-1])
    assert set(found) == {"fc1.bias", "fc2.weight", "norm.weight", "more", "wte.weight"}
    assert found["fc1.bias"] == "2 of 6 differ, by 2 at most; first at [2]: 0.0 and 2.0"
    assert found["fc2.weight"].startswith("shape (4, 6) in a, (6, 4) in b")
    assert found["norm.weight"] == "float32 in a, float16 in b; the same numbers"
    assert found["wte.weight"].startswith("only in a")
    assert found["more"].startswith("only in b")
    assert out.splitlines()[-1] == "5 of 7 tensors differ"
    status, out, _ = idinit("diff a.safetensors b.safetensors --json")
    assert status == 1
    found = json.loads(out)
    assert set(found["equal"]) == {"fc1.weight", "conv.weight"}
    assert found["different"]["fc1.bias"]["first"] == [2]
    assert found["different"]["fc2.weight"]["transposed"] is True


@pytest.mark.parametrize(
    ("dialect", "file"), [("flax", "b.safetensors"), ("keras", "b.weights.h5")]
)
def test_after_the_names_of_another_framework(dialect, file, idinit, here):
    manifest = {"fc1.weight": [6, 4], "fc2.weight": {"shape": [4, 6], "role": "zero"},
                "fc1.bias": [6], "conv.weight": [4, 2, 3, 3]}  # fmt: skip
    (here / "m.json").write_text(json.dumps(manifest))
    line = "export --manifest m.json --rule conv|fc1.weight=transit --out"
    assert idinit(f"{line} b.npz")[0] == 0
    assert idinit(f"{line} {file} --dialect {dialect}")[0] == 0
    assert idinit(f"diff b.npz {file} --dialect {dialect}") == (0, "4 tensors, all equal\n", "")
    assert idinit(f"diff b.npz {file}")[0] == 1


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("inspect", "CHECKPOINT = None, but it is required"),
        ("inspect gone.safetensors", "path = 'gone.safetensors', but it cannot be read"),
        ("inspect bad.safetensors", "bad.safetensors"),
        ("inspect bad.npz", "bad.npz"),
        ("inspect bad.h5", "bad.h5"),
        ("inspect text.txt", "its suffix should be"),
        ("diff a.safetensors", "B = None, but it is required"),
        ("diff a.safetensors gone.npz", "path = 'gone.npz', but it cannot be read (No such file"),
        ("diff bad.safetensors a.safetensors", "bad.safetensors"),
        ("diff a.safetensors bad.safetensors", "bad.safetensors"),
        ("diff a.safetensors a.safetensors --dialect gone.json", "gone.json"),
        ("diff a.safetensors a.safetensors --dialect kears", "keras"),
    ],
)
def test_bad_input_is_one_line(line, text, idinit, here):
    for name in ("bad.safetensors", "bad.npz", "bad.h5", "text.txt"):
        (here / name).write_bytes(b"not a checkpoint\n")
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err.startswith("idinit: ")
    assert err.count("\n") == 1
    assert text in err
