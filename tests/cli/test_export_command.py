"""`idinit export`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import by_hand
from idinit_ref import errors
from idinit_ref.commands import _terminal, cli
from idinit_ref.commands import export as command
from idinit_ref.files import presets

SMALL = {
    "wte.weight": [9, 4],
    "h.0.ln_1.weight": [4],
    "h.0.ln_1.bias": [4],
    "h.0.attn.c_attn.weight": [4, 12],
    "h.0.attn.c_attn.bias": [12],
    "h.0.attn.c_proj.weight": [4, 4],
}
LAYERS = {
    "up.weight": {"shape": [6, 4], "role": "transit", "gain": 3},
    "up.bias": [6],
    "down.weight": {"shape": [4, 6], "role": "zero", "eps": 0.5},
    "norm.weight": [4],
    "norm.bias": [4],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two manifests, where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.json").write_text(json.dumps(SMALL))
    (tmp_path / "layers.json").write_text(json.dumps(LAYERS))
    return tmp_path


@pytest.fixture
def done(idinit):
    """Run the command, which must succeed; return what it prints."""

    def run(line):
        status, out, err = idinit(line)
        slow = r"(idinit: [\d.]+ of [\d.]+ [MG]B\n)*"  # how far it is, on a slow machine
        assert status == 0, err
        assert re.fullmatch(slow, err)
        return out

    return run


def table(out):
    """The rows of the roles, by their first column."""
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 4}


def code(out):
    """The lines of Python at the end: the indented ones after the last that is not."""
    lines = out.splitlines()
    last = max(k for k, line in enumerate(lines) if line and not line.startswith("  "))
    return "\n".join(line[2:] for line in lines[last + 1 :])


def test_presets(idinit):
    status, out, err = idinit("presets")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if re.search(r"\d", line)]
    assert [row[0] for row in rows] == list(presets.names())
    assert ["gpt2", "GPT2LMHeadModel", "148", "124,439,808"] in rows


def test_export_writes_the_file_and_says_what_is_in_it(idinit, tmp_path):
    path = tmp_path / "r.safetensors"
    line = ["export", "--preset", "resnet50", "--out", str(path), "--dtype", "float16"]
    status, out, err = idinit([*line, "--eps", "0.5", "--gain", "2"])
    assert (status, err) == (0, "")
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 4}
    weights = safetensors.torch.load_file(path)
    assert len(weights) == 55
    by_role = {"transit": [0, 0], "zero": [0, 0], "bias": [0, 0]}
    for name, weight in weights.items():
        role = {2.0: "transit", 0.5: "zero", 0.0: "bias"}[weight.max().item()]
        assert (role == "bias") == name.endswith("bias")
        by_role[role][0] += 1
        by_role[role][1] += weight.numel()
    for role, (tensors, entries) in by_role.items():
        assert table[role] == [f"{tensors:,}", f"{entries:,}", f"{2 * entries:,}"]
    assert table["left out: normalisation"] == ["106", "53,120", "-"]
    assert table["left out: batch statistics"] == ["159", "53,173", "-"]
    flat = " ".join(out.split())
    assert f"{path}: {path.stat().st_size:,} bytes, float16, 55 tensors" in flat
    assert "they keep the model's initialisation" in flat
    assert "ResNetForImageClassification(ResNetConfig(num_labels=1000))" in flat


# What it prints to load the files runs -----------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("more", ["r.safetensors", "r.npz", "[r].safetensors --shard-size 30MB"])
def test_a_preset_into_pytorch(more, done, here):
    out = done(f"export --preset resnet50 --out {more}")
    assert "IDInit does not define the tensors left out" in out
    assert ("glob" in out) == ("shard" in more)
    names: dict[str, object] = {}
    exec(code(out), names)
    model = names["model"]
    assert torch.equal(model.classifier[1].weight, torch.eye(1000, 2048))
    assert not model.classifier[1].bias.any()
    convolution = model.resnet.encoder.stages[3].layers[2].layer[2].convolution.weight
    expected = by_hand.weight(tuple(convolution.shape), "zero").astype(np.float32)
    assert np.array_equal(convolution.detach().numpy(), expected)


def check(up, bias, down):
    assert np.array_equal(np.asarray(up).T, by_hand.idi_matrix(6, 4, 3.0))
    assert np.array_equal(np.asarray(down).T, by_hand.idiz_matrix(4, 6, 0.5))
    assert not np.asarray(bias).any()


@pytest.mark.parametrize("shards", ["", " --shard-size 100B"])
def test_into_a_pytorch_model_of_ones_own(shards, done, here):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4, bias=False)
            self.norm = torch.nn.LayerNorm(4)

    model = Model()
    out = done(f"export --manifest layers.json --out ./l.safetensors{shards}")
    exec(code(out), {"model": model})
    weights = [model.up.weight.T, model.up.bias, model.down.weight.T]
    check(*(weight.detach().numpy() for weight in weights))
    assert model.norm.weight.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("shards", ["", " --shard-size 100B"])
def test_into_a_flax_model(shards, done, here):
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(4, 6, rngs=rngs)
            self.down = nnx.Linear(6, 4, use_bias=False, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)

    model = Model(nnx.Rngs(0))
    model.up.bias.set_value(model.up.bias[...] + 1)
    out = done(f"export --manifest layers.json --dialect flax --out l.safetensors{shards}")
    exec(code(out), {"model": model})
    check(model.up.kernel[...], model.up.bias[...], model.down.kernel[...])
    assert model.norm.scale[...].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("fill", ["", " --fill norm*=constant:2"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:A total of 1 objects could not be loaded:UserWarning")
def test_into_a_keras_model(fill, done, here):
    import keras

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.up = keras.layers.Dense(6, bias_initializer="ones")
            self.down = keras.layers.Dense(4, use_bias=False)
            self.norm = keras.layers.LayerNormalization()

        def call(self, x):
            return self.norm(self.down(self.up(x)))

    model = Model()
    model(np.zeros((1, 4), np.float32))
    out = done(f"export --manifest layers.json --dialect keras --out l.weights.h5{fill}")
    assert ("skip_mismatch" in out) == (fill == "")
    exec(code(out), {"model": model})
    check(model.up.kernel, model.up.bias, model.down.kernel)
    assert np.asarray(model.norm.gamma).tolist() == [2.0 if fill else 1.0] * 4


@pytest.mark.parametrize(
    "more",
    [
        "--dialect flax --out a.npz",
        "--dialect keras --out a.npz",
        "--dialect keras --out a.safetensors",
        "--out a.h5",
    ],
)
def test_no_code_is_printed_where_no_framework_loads_it(more, done, here):
    out = done(f"export --manifest layers.json {more}")
    assert "load" not in out


def test_shards_load_by_from_pretrained(done, here):
    """With the names that Hugging Face expects, its own loader takes the folder."""
    from transformers import GPT2Config, GPT2LMHeadModel, logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config = GPT2Config(n_embd=4, n_layer=1, n_head=2, n_positions=8, vocab_size=9)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(here / "old")
    (here / "new").mkdir()
    done("export --from old --keep-from old --out new/model.safetensors --shard-size 300B")
    assert len(list((here / "new").glob("model-*-of-*.safetensors"))) > 1
    config.save_pretrained(here / "new")
    again = GPT2LMHeadModel.from_pretrained(here / "new")
    assert torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)
    proj = again.transformer.h[0].attn.c_proj.weight.detach().numpy()
    assert np.array_equal(proj, by_hand.weight((4, 4), "zero", layout="IO").astype(np.float32))


# Sources -----------------------------------------------------------------------------------------


def test_rules_and_options_from_the_command_line(done, here):
    done(
        [
            "export", "--manifest", "m.json", "--out", "a.safetensors", "--gain", "2", "--eps",
            "-.5", "--wide", "fold_mean", "--rule", r"wte\.weight$=transit,layout=IO,gain=4",
            "--rule", r"ln_1=bias",
        ]
    )  # fmt: skip
    held = safetensors.numpy.load_file("a.safetensors")
    assert set(held) == set(SMALL)
    expected = by_hand.weight((9, 4), layout="IO", wide="fold_mean", gain=4.0)
    assert np.array_equal(held["wte.weight"], expected.astype(np.float32))
    assert not held["h.0.ln_1.weight"].any()
    expected = by_hand.weight((4, 4), "zero", layout="IO", eps=-0.5)
    assert np.array_equal(held["h.0.attn.c_proj.weight"], expected.astype(np.float32))
    expected = by_hand.weight((4, 12), layout="IO", blocks=(4, 4, 4), gain=2.0, wide="fold_mean")
    assert np.array_equal(held["h.0.attn.c_attn.weight"], expected.astype(np.float32))


def test_copies_and_fills_are_told_apart(done, here):
    there = {
        "wte.weight": np.arange(36, dtype=np.float16).reshape(9, 4),
        "h.0.ln_1.weight": np.float32([1, 2, 3, 4]),
        "h.0.ln_1.bias": np.float32([5, 6, 7, 8]),
        "h.0.attn.c_proj.weight": np.ones((4, 4), np.float32),
        "[red]more[/red].\u202e": np.ones(2),
    }
    safetensors.numpy.save_file(there, "old.safetensors")
    line = "export --manifest m.json --keep-from old.safetensors --fill normalisation=identity"
    out = done(f"{line} --strict --out a.safetensors")
    rows = table(out)
    assert rows["filled by identity: normalisation"] == ["2", "8", "32"]
    assert rows["copied from old.safetensors: embedding"] == ["1", "36", "144"]
    assert rows["transit"] == ["1", "48", "192"]
    assert "\nnot used of old.safetensors: [red]more[/red].\\u202e\n" in out
    assert "left out" not in out
    held = safetensors.numpy.load_file("a.safetensors")
    assert np.array_equal(held["wte.weight"], there["wte.weight"])
    assert held["h.0.ln_1.weight"].tolist() == [1, 1, 1, 1]
    assert not held["h.0.ln_1.bias"].any()
    assert held["h.0.attn.c_proj.weight"].max() == np.float32(1e-6)


def test_a_checkpoint_to_another_of_the_same_names(done, here):
    """What holds whole numbers is copied as it is, the rest is rounded once."""
    there = {
        "q_proj.weight": np.ones((4, 4), np.float32),
        "norm.weight": np.float64([1.5, 1 + 2**-8 + 2**-30]),
        "h.0.attn.bias": np.tri(4, dtype=bool).reshape(1, 1, 4, 4),
        "position_ids": np.arange(8),
    }
    there["m.q_proj.weight"] = there.pop("q_proj.weight")
    safetensors.numpy.save_file(there, "old.safetensors")
    out = done("export --from old.safetensors --keep-from old.safetensors --dtype bfloat16 "
               "--out new.safetensors --digests")  # fmt: skip
    assert table(out)["copied from old.safetensors: attention mask"] == ["1", "16", "16"]
    assert table(out)["copied from old.safetensors: position indices"] == ["1", "8", "64"]
    held = safetensors.torch.load_file("new.safetensors")
    assert torch.equal(held["h.0.attn.bias"], torch.from_numpy(there["h.0.attn.bias"]))
    assert torch.equal(held["position_ids"], torch.arange(8))
    assert torch.equal(held["m.q_proj.weight"], torch.eye(4, dtype=torch.bfloat16))
    assert held["norm.weight"].tolist() == [1.5, 1 + 2**-7]
    with safetensors.safe_open("new.safetensors", "np") as file:
        assert set(json.loads(file.metadata()["idinit_ref.sha256"])) == set(there)


def test_a_table_of_ones_own_for_names(done, here):
    rules = [{"pattern": "^up[.]", "name": "other."}]
    (here / "d.json").write_text(json.dumps({"base": "torch", "rules": rules}))
    done("export --manifest layers.json --dialect d.json --out a.safetensors")
    held = safetensors.numpy.load_file("a.safetensors")
    assert set(held) == {"other.weight", "other.bias", "down.weight"}


def test_the_manifest_of_the_guide_is_one(done, here):
    guide = Path(__file__).parents[2] / "docs" / "export.md"
    (block,) = re.findall(r"^```json\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    (here / "guide.json").write_text(block)
    done("export --manifest guide.json --fill scale=ones --strict --out a.safetensors")
    held = safetensors.numpy.load_file("a.safetensors")
    expected = by_hand.weight((8, 24), layout="IO", blocks=(8, 8, 8))
    assert np.array_equal(held["qkv.weight"], expected.astype(np.float32))


def test_strict_names_all_that_would_be_left_out(idinit, here):
    status, out, err = idinit("export --manifest m.json --out a.safetensors --strict")
    assert (status, out) == (2, "")
    for name in ("wte.weight (embedding)", "h.0.ln_1.weight (normalisation)", "h.0.ln_1.bias"):
        assert name in err
    assert not (here / "a.safetensors").exists()


@pytest.mark.skipif(not os.path.exists("/dev/stdin"), reason="no such file here")
def test_a_manifest_may_come_through_a_pipe(here):
    code = "from idinit_ref.commands.cli import main; raise SystemExit(main())"
    words = ["export", "--manifest", "/dev/stdin", "--out", "a.safetensors"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words], input=json.dumps(LAYERS).encode(), capture_output=True
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert set(safetensors.numpy.load_file("a.safetensors")) == {"up.weight", "up.bias",
                                                                 "down.weight"}  # fmt: skip


# What is there already ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a.safetensors",
        "a-00001-of-00002.safetensors",
        "a-00007-of-00009.safetensors",
        "a.safetensors.index.json",
    ],
)
@pytest.mark.parametrize("more", ["", " --shard-size 100B", " --dry-run"])
def test_any_form_of_the_checkpoint_that_is_there_needs_force(name, more, idinit, here):
    (here / name).write_text("old")
    line = f"export --manifest m.json --out a.safetensors{more}"
    before = sorted(os.listdir(here))
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert f"out = '{name}', but this file should not exist yet" in err
    assert sorted(os.listdir(here)) == before
    assert idinit(f"{line} --force")[0] == 0


def test_a_neighbour_of_another_name_is_nothing_to_it(done, here):
    for name in ("ab.safetensors", "a-1-of-2.safetensors", "b.safetensors.index.json", "a.npz"):
        (here / name).write_text("old")
    done("export --manifest m.json --out a.safetensors --shard-size 100B")
    for name in ("ab.safetensors", "a-1-of-2.safetensors", "b.safetensors.index.json", "a.npz"):
        assert (here / name).read_text() == "old"


@pytest.mark.parametrize("option", ["--from", "--keep-from"])
@pytest.mark.parametrize("out", ["old.safetensors", "./old.safetensors", "soft.safetensors",
                                 "hard.safetensors", "sub/../old.safetensors"])  # fmt: skip
def test_the_output_is_never_an_input(out, option, idinit, here):
    (here / "sub").mkdir()
    there = {name: np.zeros(shape, np.float32) for name, shape in SMALL.items()}
    safetensors.numpy.save_file(there, "old.safetensors")
    os.symlink("old.safetensors", "soft.safetensors")
    os.link("old.safetensors", "hard.safetensors")
    before, names = (here / "old.safetensors").read_bytes(), sorted(os.listdir(here))
    source = "--manifest m.json" if option == "--keep-from" else ""
    status, said, err = idinit(f"export {source} {option} old.safetensors --out {out} --force")
    assert (status, said) == (2, "")
    assert "but it should be another file than the input old.safetensors" in err
    assert (here / "old.safetensors").read_bytes() == before
    assert sorted(os.listdir(here)) == names


@pytest.mark.parametrize("given", ["old", "old/model.safetensors.index.json"])
@pytest.mark.parametrize("link", ["old/model.safetensors", "link/model.safetensors"])
@pytest.mark.parametrize("size", ["", " --shard-size 100B", " --shard-size 1GB"])
def test_the_output_is_no_shard_of_an_input(given, link, size, idinit, done, here):
    (here / "old").mkdir()
    os.symlink("old", "link")
    done("export --manifest m.json --fill *=ones --shard-size 200B --out old/model.safetensors")
    before = {path.name: path.read_bytes() for path in (here / "old").iterdir()}
    assert len(before) > 2
    status, out, err = idinit(f"export --from {given} --out {link} --force{size}")
    assert (status, out) == (2, "")
    assert "another file than the input" in err
    assert {path.name: path.read_bytes() for path in (here / "old").iterdir()} == before


def test_a_manifest_is_not_replaced_either(idinit, here):
    (here / "m.json").rename(here / "m.safetensors")
    status, _, err = idinit("export --manifest m.safetensors --out m.safetensors --force")
    assert status == 2
    assert "another file than the input m.safetensors" in err


# A dry run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["--out a.safetensors", "--out a.safetensors --shard-size 300B",
                                  "--out a.npz", "--out a.safetensors --digests"])  # fmt: skip
def test_a_dry_run_says_what_then_comes_and_writes_nothing(more, done, here):
    before = sorted(os.listdir(here))
    line = f"export --manifest m.json --fill *=ones {more}"
    dry = done(f"{line} --dry-run")
    assert sorted(os.listdir(here)) == before
    total = re.search(r"nothing was written; to write ([\d,]+) bytes would take about (.*) "
                      r"\(.* MB/s, measured now\); [\d,]+ bytes are free\n", dry)  # fmt: skip
    wet = done(line)
    said = dict(re.findall(r"^(a\S*): ([\d,]+) bytes", dry, re.MULTILINE))
    assert dict(re.findall(r"^(a\S*): ([\d,]+) bytes", wet, re.MULTILINE)) == said
    assert {k: int(v.replace(",", "")) for k, v in said.items()} == {
        name: os.stat(name).st_size for name in sorted(os.listdir(here)) if name not in before
    }
    assert int(total[1].replace(",", "")) == sum(os.stat(name).st_size for name in said)
    assert table(dry) == table(wet)


def test_a_dry_run_of_a_large_model_is_quick_and_small(done, here, monkeypatch):
    """Tens of MB are written at most, and 15 GB would not be free."""
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    out = done("export --preset llama-3-8b --dtype bfloat16 --shard-size 5GB --dry-run "
               "--out l.safetensors")  # fmt: skip
    assert len(re.findall(r"^l-0000\d-of-00004\.safetensors: ", out, re.MULTILINE)) == 4
    assert "1,000,000,000 bytes are free, WHICH IS NOT ENOUGH" in out
    assert sorted(os.listdir(here)) == ["layers.json", "m.json"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "less than 1 s"), (1.4, "1 s"), (119, "119 s"), (150, "2 min"), (7199, "120 min"),
     (7200, "2 h"), (1e6, "278 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert command.duration(seconds) == text


# Sizes of shards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1), ("1B", 1), ("300", 300), ("5kB", 5000), ("5KB", 5000), ("5KiB", 5120),
        ("2MB", 2 * 10**6), ("2MiB", 2**21), ("5GB", 5 * 10**9), ("5 GB", 5 * 10**9),
        ("1.5GB", 15 * 10**8), ("0.5GiB", 2**29), ("1TB", 10**12), ("1TiB", 2**40),
        ("5gb", 5 * 10**9),
    ],
)  # fmt: skip
def test_shard_sizes(text, size):
    assert command._size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GB", "0", "0GB", "0.4B", "-1GB", "5G", "5Gbit", "5PB", "1e9", "5,000", "nan", "inf",
     "5 5", "GB5", "1.GB", "\u0665GB", "9" * 30 + "GB"],
)  # fmt: skip
def test_what_is_no_shard_size(text):
    with pytest.raises(errors.OptionError, match="shard-size"):
        command._size(text)


def test_the_sizes_are_those_of_hugging_face():
    from huggingface_hub.serialization._base import parse_size_to_int

    for text in ("5GB", "500MB", "7kB", "1TB", "12MB"):
        assert command._size(text) == parse_size_to_int(text)


# Bad input ---------------------------------------------------------------------------------------

RIGHT = "export --manifest m.json --out a.safetensors"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("export --out a.safetensors", "--preset --manifest --from = None, but one is required"),
        ("export --manifest m.json", "out = None, but it is required"),
        ("export --manifest m.json --preset gpt2 --out a.npz", "--preset and --manifest are given"),
        ("export --manifest gone.json --out a.safetensors", "manifest = 'gone.json', but it"),
        ("export --manifest . --out a.safetensors", "it cannot be read (Is a directory); name"),
        ("export --from . --out a.safetensors", "one *.index.json, or one checkpoint of"),
        ("export --from m.json --out a.safetensors", "its suffix should be .index.json or one of"),
        ("export --from gone.safetensors --out a.safetensors", "it cannot be read (No such"),
        (f"{RIGHT} --keep-from gone.npz", "path = 'gone.npz', but it cannot be read (No such"),
        (f"{RIGHT} --keep-from bad.safetensors", "of 'bad.safetensors' ="),
        (f"{RIGHT} --keep-from empty.safetensors", "it lacks wte.weight, h.0.ln_1.weight, h.0"),
        ("export --manifest bad.safetensors --out a.safetensors", "it should be JSON"),
        ("export --manifest odd.json --out a.safetensors", "name = 'odd', but no rule knows it"),
        (f"{RIGHT} --fill a", "fill = 'a', but it should be PATTERN=RULE"),
        (f"{RIGHT} --fill wte.weight=normal:x", "it should be PATTERN=RULE"),
        (f"{RIGHT} --fill wtf.weight=zeros", "it fits no tensor that IDInit does not define"),
        (f"{RIGHT} --fill wte.weight=identity", "is not a scale, shift"),
        (f"{RIGHT} --rule a", "rule = 'a', but it should be REGEX=ROLE"),
        (f"{RIGHT} --rule a(=zero", "its pattern should be a regular expression"),
        (f"{RIGHT} --rule nothing=zero", "it fits no tensor; the nearest names"),
        (f"{RIGHT} --rule wte=zero,layout=OX", "rule 'wte', tensor 'wte.weight': layout = 'OX'"),
        (f"{RIGHT} --rule wte=transit,parts=3", "should hold 3 square matrices"),
        (f"{RIGHT} --rule ln_1=transit", "without a layout it should have 2 to 5 axes"),
        (f"{RIGHT} --dialect pytorch", "pytorch"),
        (f"{RIGHT} --dialect gone.json", "gone.json"),
        (f"{RIGHT} --dialect m.json", "m.json"),
        (f"{RIGHT} --shard-size 5PB", "shard-size = '5PB', but it should be a positive number"),
        (f"{RIGHT} --gain nan", "gain = nan, but it should be finite"),
        (f"{RIGHT} --eps 0", "eps = 0.0, but it should be finite and not 0"),
        (f"{RIGHT} --wide cut", "wide = 'cut', but it should be one of"),
        (f"{RIGHT} --dtype float8_e4m3fn", "eps = 1e-06, but it rounds to 0 in float8_e4m3fn"),
        (f"{RIGHT} --fill *=constant:1e5 --dtype float16", "float16"),
        ("export --manifest m.json --out a.npz --shard-size 5GB", "only a .safetensors checkpoint"),
        ("export --manifest m.json --out a.npz --dtype bfloat16", "dtype = 'bfloat16'"),
        ("export --manifest m.json --out a.bin", "its suffix should be .safetensors, .npz, .weig"),
        ("export --manifest m.json --out gone/a.safetensors", "No such file or directory"),
        ("export --manifest m.json --out gone/a.safetensors --dry-run", "gone', but it cannot be"),
        ("export --manifest m.json --out m.json/a.safetensors", "Not a directory"),
        ("export --manifest m.json --out dir.safetensors --force", "not of a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(line, text, idinit, here):
    (here / "bad.safetensors").write_bytes(b"\xff" * 100)
    (here / "odd.json").write_text('{"odd": [3, 3]}')
    (here / "dir.safetensors").mkdir()
    safetensors.numpy.save_file({}, "empty.safetensors")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err.startswith("idinit: ")
    assert err.count("\n") == 1
    assert text in err
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*") if p.is_file()} == before


def test_names_that_would_garble_a_terminal_are_written_out(idinit, here):
    (here / "x.json").write_text(json.dumps({"[red]\u202eb[/red].weight": [3, 3]}))
    status, out, err = idinit("export --manifest x.json --out a.safetensors")
    assert (status, out) == (2, "")
    assert "[red]\\u202eb[/red].weight" in err
    out = idinit("rules --manifest x.json")[1]
    assert "[red]\\u202eb[/red].weight" in out
    os.rename("x.json", "\x1b[31m.json")
    status, out, err = idinit(["rules", "--manifest", "\x1b[31m.jso"])
    assert err.startswith("idinit: manifest = '\\x1b[31m.jso', but it cannot be read (No such file")


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (MemoryError(), "there is not enough memory"),
        (RecursionError("deep"), "the input is nested too deeply"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), "'utf-8' codec can't encode"),
        (ImportError('it needs h5py: pip install "idinit-ref[export]"'), "idinit-ref[export]"),
    ],
)
def test_no_traceback_of_what_can_happen_anywhere(problem, text, idinit, here, monkeypatch):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(command, "file_plans", fail)
    status, out, err = idinit(RIGHT)
    assert (status, out) == (2, "")
    assert text in err
    assert err.count("\n") == 1


def test_without_h5py_it_names_the_extra(here):
    code = (
        "import sys; sys.modules['h5py'] = None; from idinit_ref.commands.cli import main; main()"
    )
    words = ["export", "--manifest", "m.json", "--out", "a.h5"]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.stdout == ""
    assert 'pip install "idinit-ref[export]"' in run.stderr
    assert run.stderr.count("\n") == 1
    assert sorted(os.listdir(here)) == ["layers.json", "m.json"]


@pytest.mark.parametrize("name", ["l.safetensors", "l.npz", "l.h5"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.cases(2)
def test_a_stopped_export_of_any_format_leaves_no_file(name, number, here):
    """A real signal while 16 GB are being written, in shards where there are some."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from idinit_ref.commands.cli import main; raise SystemExit(main())"
    words = ["export", "--preset", "llama-3-8b", "--dtype", "float16", "--out", name]
    words += ["--shard-size", "100MB"] if name.endswith("safetensors") else []
    run = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
    parts = 2 if "--shard-size" in words else 1
    while sum(path.stat().st_size > 0 for path in here.glob("l[.-]*")) < parts:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(getattr(signal, number))
    _, err = run.communicate()
    assert run.returncode == 128 + getattr(signal, number)
    lines = [line for line in err.splitlines() if " GB" not in line]
    assert lines == [f"idinit: stopped by {number}; no unfinished file is left"]
    assert sorted(os.listdir(here)) == ["layers.json", "m.json"]


# As it was before --------------------------------------------------------------------------------


def test_export_is_the_same_every_time_and_replaces_only_by_force(idinit, tmp_path):
    path = tmp_path / "r.safetensors"
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", str(path)]
    assert idinit(line)[0] == 0
    before, stamp = path.read_bytes(), path.stat().st_ino
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err == (
        f"idinit: out = '{path}', but this file should not exist yet; "
        "choose another name, or add --force to replace it\n"
    )
    assert path.stat().st_ino == stamp
    assert idinit([*line, "--force"])[0] == 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_and_one_that_leads_nowhere_is_there_too(idinit, tmp_path):
    link, real = tmp_path / "link.safetensors", tmp_path / "real"
    link.symlink_to("real")
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", str(link)]
    status, _, err = idinit(line)
    assert (status, list(tmp_path.iterdir())) == (2, [link])
    assert "add --force to replace it" in err
    assert idinit([*line, "--force"])[0] == 0
    assert os.readlink(link) == "real"
    assert len(safetensors.torch.load(real.read_bytes())) == 55


def test_a_name_that_is_no_text(idinit, tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"\xff.safetensors"))
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", path]
    status, out, err = idinit(line)
    assert (status, err) == (0, "")
    assert "\\udcff.safetensors: " in out
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.safetensors"]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_only_after_a_second_in_one_line_on_a_terminal_and_else_in_many(
    slow, terminal, idinit, tmp_path, monkeypatch
):
    if terminal:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = itertools.count(step=0.5)  # it is asked once an update
    monkeypatch.setattr(_terminal.time, "monotonic", lambda: next(clock) if slow else 0)
    line = ["export", "--preset", "resnet50", "--dtype", "float8_e5m2", "--eps", "1e-3"]
    status, _, err = idinit([*line, "--out", str(tmp_path / "r.safetensors")])
    assert status == 0
    if not slow:
        assert err == ""
    elif terminal:
        *shown, last = err.split("\r\x1b[K")
        assert re.fullmatch(r"\d+\.\d of 25\.5 MB, .* left", shown[-1])
        assert last == "", "the line is wiped at the end"
    else:
        done = [re.fullmatch(r"idinit: (\d+\.\d) of 25\.5 MB", t)[1] for t in err.splitlines()]
        assert 2 < len(done) <= 1 + next(clock) / 5
        assert done == sorted(set(done), key=float)


def test_nobody_to_read_the_progress_does_not_stop_the_work(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        writes = 0

        def write(self, _):
            Gone.writes += 1
            raise BrokenPipeError

    monkeypatch.setattr(_terminal.time, "monotonic", itertools.count(step=10).__next__)
    monkeypatch.setattr(sys, "stderr", Gone())
    words = ["export", "--preset", "resnet50", "--dtype", "float16"]
    assert cli.main([*words, "--out", str(tmp_path / "r.safetensors")]) == 0
    assert Gone.writes > 2


def test_force_leaves_no_shards_of_an_old_checkpoint_beside_the_new_file(done, here):
    """A loader would take them for a part of it, or for all."""
    done("export --manifest m.json --out model.safetensors --shard-size 200B")
    assert len(list(here.glob("model*"))) > 2
    done("export --manifest m.json --out model.safetensors --force")
    assert [path.name for path in here.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("free", [0, 10**9])
def test_a_dry_run_where_there_is_no_room(free, done, here, monkeypatch):
    """There it is wanted most."""
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command.tempfile, "TemporaryFile", full)
    out = done("export --preset gpt2 --dry-run --out g.safetensors")
    assert "there is no room for 340,084,784 bytes" in out


def test_a_folder_of_that_name_is_an_error_in_a_dry_run_too(idinit, here):
    os.mkdir("g.safetensors")
    status, _, err = idinit("export --preset gpt2 --dry-run --force --out g.safetensors")
    assert status == 2
    assert "not of a folder" in err
