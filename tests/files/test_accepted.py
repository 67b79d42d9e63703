"""What the formats' own readers read is read here; what cannot be decoded is still known."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import idinit_ref as ir
from idinit_ref.commands import cli
from idinit_ref.errors import CheckpointError, DTypeError, ShapeError
from idinit_ref.files.difference import diff
from idinit_ref.files.reading import open_checkpoint
from idinit_ref.files.recognise import recognise


@pytest.fixture
def idinit(capsys, monkeypatch):
    """Run the command: (status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(line):
        status = cli.main(line.split() if isinstance(line, str) else line)
        return status, *capsys.readouterr()

    return run


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DATA = np.float32([1.5]).tobytes()


def pack(text, data=DATA):
    text = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(text)) + text + data


def field(more):
    return f'{{"w":{{"dtype":"F32","shape":[1],"data_offsets":[0,4],{more}}}}}'


ACCEPTED = {
    "a space before": f' {{"w":{ONE}}}',
    "lines around": f'\n{{"w":{ONE}}}\t\n ',
    "metadata null": f'{{"__metadata__":null,"w":{ONE}}}',
    "a name twice": f'{{"w":{{"dtype":"U8","shape":[9],"data_offsets":[0,2]}},"w":{ONE}}}',
    "metadata with a key twice": f'{{"__metadata__":{{"a":"b","a":"c"}},"w":{ONE}}}',
    "more fields": field('"x":[1,{"a":null}],"y":-0'),
    "a field twice that is not the format's": field('"x":1,"x":2'),
    "125 lists": field('"x":' + "[" * 125 + "]" * 125),
    "125 objects": field('"x":' + '{"a":' * 125 + "1" + "}" * 125),
    "an entry inside a field": field(f'"x":{ONE}'),
    "fields in another order": '{"w":{"shape":[1],"data_offsets":[0,4],"dtype":"F32"}}',
    "an entry as a list": '{"w":["F32",[1],[0,4]]}',
    "a dtype as an object": '{"w":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
    "escapes": '{"w":{"d\\u0074ype":"F32","shape":[1],"data_offsets":[0,4]}}',
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_its_own_reader_accepts(tmp_path, what):
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack(ACCEPTED[what]))
    ((theirs, about),) = safetensors.deserialize(path.read_bytes())
    found = open_checkpoint(path).tensors
    assert list(found) == [theirs] == ["w"]
    assert found["w"].dtype == "float32"
    assert found["w"].shape == tuple(about["shape"])
    assert found["w"].read((slice(None),), "float32") == 1.5


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack(f'\ufeff {{"w":{ONE}}}'))
    assert list(open_checkpoint(path).tensors) == ["w"]


NAMES = ["", "/a", "a//b", "../x", "a\\b", "a\nb", "\x1b[2J", "\u202e", "😀", "n" * 5000]


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_any_name(tmp_path, form):
    held = {name: np.float32([k]) for k, name in enumerate(NAMES)}
    path = tmp_path / f"m.{form}"
    if form == "npz":
        np.savez(path, **held)
    else:
        safetensors.numpy.save_file(held, path)
    found = open_checkpoint(path).tensors
    assert set(found) == set(NAMES)
    for name, array in held.items():
        assert found[name].read((slice(None),), "float32") == array


def test_names_of_haiku_and_alphafold_are_exported(tmp_path, monkeypatch, idinit):
    monkeypatch.chdir(tmp_path)
    names = ["alphafold/evoformer/linear//weights", "/net/~/linear/w", ""]
    np.savez("params.npz", **{name: np.eye(4, dtype="f4") for name in names})
    for out in ("a.safetensors", "a.npz"):
        line = ["export", "--from", "params.npz", "--rule", ".*=transit", "--out", out]
        assert idinit(line)[0] == 0
        assert set(open_checkpoint(out).tensors) == set(names)
        assert idinit(f"diff params.npz {out}")[0] == 0
    assert set(np.load("a.npz").files) == set(names)
    status, _, err = idinit([*line[:-1], "a.h5"])
    assert status == 2
    assert "no part between slashes should be empty" in err


def test_a_shape_that_no_array_has(tmp_path):
    shapes = {"axes": [1] * 70, "huge": [2**64 - 1, 0], "over": [0, 2**40, 2**40], "much": [1] * 41}
    header = {
        name: {"dtype": "U8", "shape": shape, "data_offsets": [k, k + (0 not in shape)]}
        for k, (name, shape) in zip((0, 2, 2, 1), shapes.items(), strict=True)
    }
    path = tmp_path / "m.safetensors"
    path.write_bytes(pack(json.dumps(header), b"ab"))
    assert {n for n, _ in safetensors.deserialize(path.read_bytes())} == set(shapes)
    found = open_checkpoint(path).tensors
    for name, shape in shapes.items():
        tensor = found[name]
        assert tensor.shape == tuple(shape)
        if name != "much" or tensor.obstacle:
            assert recognise(tensor).kind == "not decoded"
            with pytest.raises(ShapeError, match="an array has at most"):
                tensor.read((slice(None),) * len(shape), "uint8")
    assert all(each.way == "equal" for each in diff(found, found))


# What is not decoded ------------------------------------------------------------------------------

UNDECODED = {"F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
             "F3_NEW": 3}  # fmt: skip


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A file as of DeepSeek: weights, and scales of dtypes that are not decoded."""
    monkeypatch.chdir(tmp_path)
    header, data = {}, b""

    def add(name, code, shape, content):
        nonlocal data
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
        data += content

    add("model.layers.10.mlp.down_proj.weight", "F32", [4, 4], np.eye(4, dtype="f4").tobytes())
    add("model.layers.2.mlp.down_proj.weight", "F8_E4M3", [4, 4], bytes(range(16)))
    for k, (code, width) in enumerate(UNDECODED.items()):
        name = f"model.layers.{k}.mlp.down_proj.scale"
        add(name, code, [4, 4], bytes(range(k, k + 2 * width)))
    digests = {name: hashlib.sha256(data[slice(*about["data_offsets"])]).hexdigest()
               for name, about in header.items()}  # fmt: skip
    header["__metadata__"] = {"idinit_ref.sha256": json.dumps(digests)}
    (tmp_path / "deep.safetensors").write_bytes(pack(json.dumps(header), data))
    return header, data


def test_name_shape_and_bytes_are_known(deep):
    header, data = deep
    found = open_checkpoint("deep.safetensors").tensors
    for k, (code, width) in enumerate(UNDECODED.items()):
        tensor = found[f"model.layers.{k}.mlp.down_proj.scale"]
        start, stop = header[tensor.name]["data_offsets"]
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (code, (4, 4), 2 * width)
        assert tensor.read_bytes(0, tensor.nbytes).tobytes() == data[start:stop]
        assert tensor.read_bytes(1, 3).tobytes() == data[start + 1 : start + 3]
        for dtype in ("float32", code):
            with pytest.raises(DTypeError, match=f"'{code}', but its numbers are not decoded"):
                tensor.read((slice(None), slice(None)), dtype)


def test_inspect_says_that_it_is_not_decoded(deep, idinit):
    status, out, _ = idinit("inspect deep.safetensors")
    assert status == 0
    lines = out.splitlines()
    assert sum("not decoded: " in line for line in lines[:-1]) == len(UNDECODED)
    assert "7 not decoded" in lines[-1]
    assert lines[-1].endswith("digests: 9 right, 0 WRONG")
    held = bytearray(Path("deep.safetensors").read_bytes())
    held[-1] ^= 1
    Path("deep.safetensors").write_bytes(held)
    status, out, _ = idinit("inspect deep.safetensors --json")
    assert status == 1
    last = json.loads(out)["model.layers.6.mlp.down_proj.scale"]
    assert (last["kind"], last["digest"]) == ("not decoded", False)


def test_diff_compares_bytes(deep, idinit):
    assert idinit("diff deep.safetensors deep.safetensors")[0] == 0
    held = bytearray(Path("deep.safetensors").read_bytes())
    held[-6] ^= 1
    Path("other.safetensors").write_bytes(held)
    status, out, _ = idinit("diff deep.safetensors other.safetensors")
    assert status == 1
    said = "not decoded; 1 of 6 bytes differ; first at byte 0: 6 and 7"
    assert out.splitlines()[0] == f"model.layers.6.mlp.down_proj.scale: {said}"
    one = open_checkpoint("deep.safetensors").tensors["model.layers.0.mlp.down_proj.scale"]
    (found,) = diff({"a": one}, {"a": np.ones((4, 4), "f4")})
    assert str(found) == "a: F8_E8M0 in a, float32 in b; not decoded, not compared"


def test_export_copies_bytes(deep, idinit):
    line = "export --from deep.safetensors --keep-from deep.safetensors --digests --out"
    assert idinit(f"{line} new.safetensors --dtype bfloat16")[0] == 0
    old, new = (open_checkpoint(f"{name}.safetensors").tensors for name in ("deep", "new"))
    assert set(new) == set(old)
    apart = {each.name for each in diff(old, new) if each.way != "equal"}
    assert apart == {name for name in old if name.endswith("weight")}
    assert idinit("inspect new.safetensors")[0] == 0
    for out in ("new.npz", "new.h5"):
        status, _, err = idinit(f"{line} {out}")
        assert status == 2
        assert "cannot hold its bytes" in err
    out = idinit("rules --from deep.safetensors")[1]
    assert "F8_E8M0: not decoded" in out
    assert out.count("not decoded") == len(UNDECODED)


def test_a_fill_cannot_make_what_is_not_decoded(deep, idinit):
    line = "export --from deep.safetensors --out new.safetensors --fill"
    status, _, err = idinit([*line.split(), "*.scale=ones"])
    assert status == 2
    assert "has the dtype F8_E8M0, which cannot hold this value" in err


def test_arrays_of_numpy_that_are_not_decoded(tmp_path):
    held = {
        "bfloat16": np.ones((2, 3), ml_dtypes.bfloat16),
        "complex128": np.ones(2, ">c16"),
        "text": np.array(["ab"]),
        "record": np.ones(2, "f4,i4"),
        "w": np.eye(3),
    }
    np.savez(tmp_path / "m.npz", **held)
    found = open_checkpoint(tmp_path / "m.npz").tensors
    assert list(found) == list(held)
    for name, array in held.items():
        assert (found[name].shape, found[name].nbytes) == (array.shape, array.nbytes)
        if name != "w":
            assert found[name].read_bytes(0, array.nbytes).tobytes() == array.tobytes()
            assert recognise(found[name]).kind == "not decoded"
    assert found["complex128"].dtype == "complex128, big-endian"


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy(tmp_path, version):
    record = np.ones(3, np.dtype([("Δ" if version == (3, 0) else "d", "f4")]))
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as out:
        for name, array in {"w": np.eye(3, order="F"), "record": record}.items():
            with out.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, version=version)
    found = open_checkpoint(tmp_path / "m.npz").tensors
    assert np.array_equal(found["w"].read((slice(None), slice(None)), "float64"), np.eye(3))
    assert found["record"].nbytes == record.nbytes


# Shards, and what is left to be wrong -------------------------------------------------------------


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = np.eye(4, dtype="f4")
    safetensors.numpy.save_file({"h.10.weight": one, "h.2.weight": one}, "1.safetensors")
    safetensors.numpy.save_file({"b.weight": one, "lm_head.weight": one}, "2.safetensors")
    homes = {"h.10.weight": "1.safetensors", "h.2.weight": "1.safetensors",
             "b.weight": "2.safetensors"}  # fmt: skip
    text = json.dumps({"metadata": {}, "weight_map": homes})
    (tmp_path / "model.safetensors.index.json").write_text(text)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_arrays_with_one_name_the_last_one_counts(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.zeros((3, 3)), v=np.ones(2))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as out, out.open("w.npy", "w") as member:
        np.save(member, np.eye(2))
    found = open_checkpoint(tmp_path / "m.npz").tensors
    theirs = np.load(tmp_path / "m.npz")
    assert set(found) == set(theirs.files)
    for name, tensor in found.items():
        whole = tensor.read((slice(None),) * len(tensor.shape), "float64")
        assert np.array_equal(whole, theirs[name])


def test_names_that_differ_by_a_number_alone_are_sorted(tmp_path, monkeypatch, idinit):
    monkeypatch.chdir(tmp_path)
    names = ["w", "w1", "w.1", "w10", "w2"]
    safetensors.numpy.save_file({n: np.ones((4, 4), "f4") for n in names}, "m.safetensors")
    status, out, _ = idinit("inspect m.safetensors")
    assert status == 0
    shown = [line.split("  ")[0] for line in out.splitlines()[1:6]]
    assert shown == ["w", "w1", "w2", "w10", "w.1"]


def test_a_folder_is_named_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"folder = '[.]'"):
        open_checkpoint(".")


def test_what_an_index_leaves_out_is_not_of_the_model(shards, idinit):
    found = open_checkpoint(".")
    assert set(found.tensors) == {"h.10.weight", "h.2.weight", "b.weight"}
    assert [tensor.name for tensor in found.outside] == ["lm_head.weight"]
    out = idinit("inspect .")[1]
    assert "lm_head.weight: in a shard but not in the index, so not part of the model" in out
    assert out.splitlines()[-1].startswith("3 tensors, 192 bytes")


def test_names_are_sorted_as_people_count(shards, idinit):
    expected = ["b.weight", "h.2.weight", "h.10.weight"]
    table = [line.split("  ")[0] for line in idinit("inspect .")[1].splitlines()]
    assert table[1:4] == expected
    table = [line.split("  ")[0] for line in idinit("rules --from .")[1].splitlines()]
    assert table[1:4] == expected
    safetensors.numpy.save_file({n: np.ones((4, 4), "f4") for n in expected}, "o.safetensors")
    found = [line.split(":")[0] for line in idinit("diff . o.safetensors")[1].splitlines()]
    assert found[:3] == expected


def test_lenient_goes_on_without_a_shard(shards, idinit):
    os.unlink("1.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(".")
    found = open_checkpoint(".", lenient=True)
    assert list(found.tensors) == ["b.weight"]
    (said,) = found.findings
    assert "'1.safetensors', but it is missing, with 2 of 3 tensors" in said
    assert idinit("inspect .")[0] == 2
    status, out, _ = idinit("inspect . --lenient")
    assert status == 1
    assert f"WRONG: {said}" in out
    told = json.loads(idinit("inspect . --lenient --json")[1])
    assert list(told["tensors"]) == ["b.weight"]
    assert told["outside"] == ["lm_head.weight"]
    assert told["findings"] == [said]


def test_lenient_goes_on_after_a_truncated_end(shards, idinit):
    os.truncate("2.safetensors", os.path.getsize("2.safetensors") - 4)
    assert idinit("inspect 2.safetensors")[0] == 2
    status, out, _ = idinit("inspect 2.safetensors --lenient")
    assert status == 1
    assert "b.weight" in out
    assert "WRONG: data_offsets of 'lm_head.weight'" in out
    assert not open_checkpoint("1.safetensors", lenient=True).findings


def test_lenient_goes_on_after_a_folder_in_an_archive(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.eye(3))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as out:
        out.writestr("folder/", b"")
        out.writestr("read.me", b"hello")
    with pytest.raises(CheckpointError, match="folder/"):
        open_checkpoint(tmp_path / "m.npz")
    found = open_checkpoint(tmp_path / "m.npz", lenient=True)
    assert list(found.tensors) == ["w"]
    assert len(found.findings) == 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_lenient_goes_on_where_an_npz_file_is_cut_off(tmp_path, save):
    save(tmp_path / "m.npz", a=np.eye(30), b=np.arange(5000) ** 2, c=np.eye(2))
    with zipfile.ZipFile(tmp_path / "m.npz") as archive:
        cut = archive.infolist()[2].header_offset - 9
    os.truncate(tmp_path / "m.npz", cut)
    with pytest.raises(CheckpointError, match=r"ZIP archive that can be read"):
        open_checkpoint(tmp_path / "m.npz")
    found = open_checkpoint(tmp_path / "m.npz", lenient=True)
    assert list(found.tensors) == ["a"]
    assert len(found.findings) == 2
    assert np.array_equal(found.tensors["a"].read((slice(None),) * 2, "float64"), np.eye(30))


@pytest.mark.parametrize("chunks", [None, (500,)], ids=["whole", "chunked"])
def test_lenient_goes_on_where_an_hdf5_file_is_cut_off(tmp_path, chunks):
    import h5py

    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"] = np.eye(30)
        file.create_dataset("b", data=np.arange(5000.0), chunks=chunks)
    os.truncate(tmp_path / "m.h5", (tmp_path / "m.h5").stat().st_size - 5000)
    with pytest.raises(CheckpointError, match="truncated fil"):
        open_checkpoint(tmp_path / "m.h5")
    found = open_checkpoint(tmp_path / "m.h5", lenient=True)
    assert list(found.tensors) == ["a"]
    assert len(found.findings) == 2
    assert np.array_equal(found.tensors["a"].read((slice(None),) * 2, "float64"), np.eye(30))


# Messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.ckpt", ["a checkpoint of Lightning or of TensorFlow 1", "name it .pt"]),
        ("saved_model.pb", ["a SavedModel of TensorFlow", "save_weights"]),
        ("m.msgpack", ["a file of Flax", "safetensors.flax.save_file"]),
        ("ckpt-1.index", ["a checkpoint of TensorFlow", "tf.train.load_checkpoint"]),
        ("ckpt-1.data-00000-of-00001", ["a checkpoint of TensorFlow", "load_checkpoint"]),
        ("m.gguf", ["a file of llama.cpp", "gguf.GGUFReader"]),
        ("m.onnx", ["a model of ONNX", "onnx.numpy_helper.to_array"]),
        ("m.pkl", ["a pickle, which can run code", "if you trust it"]),
        ("m.tar", ["it is packed", "unpack it"]),
    ],
)
def test_what_is_not_read_says_what_it_is(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"anything")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert all(word in str(caught.value) for word in (repr(name), *words))


def test_a_checkpoint_of_tensorflow_is_named_without_its_suffix(tmp_path):
    (tmp_path / "ckpt-1.index").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="a checkpoint of TensorFlow"):
        open_checkpoint(tmp_path / "ckpt-1")


def test_a_message_is_a_line_whatever_the_name(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file({"a\nb\x1b[2J": np.arange(3)}, path)
    (tensor,) = open_checkpoint(path).tensors.values()
    with pytest.raises(DTypeError, match=r"a\\nb\\x1b") as caught:
        tensor.read((slice(None),), "float32")
    assert str(caught.value).isprintable()
    with pytest.raises(ir.errors.OptionError, match="no control character"):
        ir.save(tmp_path / "n.safetensors", {tensor.name: tensor})


# Much -------------------------------------------------------------------------------------------


def test_a_large_header_takes_a_small_multiple_of_its_size(tmp_path):
    """A quarter of a million tensors, in a process of its own."""
    count = 250_000
    entry = '"model.layers.%d.weight":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'
    text = "{" + ",".join(entry % (k, k, k + 1) for k in range(count)) + "}"
    (tmp_path / "m.safetensors").write_bytes(pack(text, bytes(count)))
    code = (
        "import sys, resource; from idinit_ref.files import open_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(open_checkpoint(sys.argv[1]).tensors) == 250_000\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12 * len(text)
