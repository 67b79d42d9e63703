"""Files that the format's own library reads: against that library, and that nothing is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest
import torch

import idinit_ref as ir
from idinit_ref.errors import CheckpointError
from idinit_ref.files import diff, open_checkpoint
from idinit_ref.files.bits import decode


def whole(tensor):
    """The numbers of a tensor, read in blocks of one row each where it has rows."""
    if not tensor.shape:
        return decode(tensor.read((), tensor.dtype), tensor.dtype)
    rest = (slice(None),) * (len(tensor.shape) - 1)
    rows = [tensor.read((slice(i, i + 1), *rest), tensor.dtype) for i in range(tensor.shape[0])]
    return decode(np.concatenate(rows), tensor.dtype)


def state():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "fc.weight": base,
        "fc.turned": base.T,
        "fc.half": base.to(torch.bfloat16),
        "fc.eight": base.to(torch.float8_e4m3fn),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "tied": base[1:3],
    }


def same(checkpoint, tensors):
    assert sorted(checkpoint.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        found = checkpoint.tensors[name]
        assert found.shape == tuple(tensor.shape), name
        assert f"torch.{found.dtype}" == str(tensor.dtype), name
        assert np.array_equal(whole(found), tensor.to(torch.float64).numpy()), name


def trap(path):
    """A pickle that makes a file where it is read as pickles are."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(path),)

    return Trap()


# PyTorch's state dicts ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.pth"])
def test_a_state_dict_is_read_as_torch_reads_it(tmp_path, name):
    torch.save(state(), tmp_path / name)
    same(open_checkpoint(tmp_path / name), state())
    if name == "pytorch_model.bin":
        same(open_checkpoint(tmp_path), state())


def test_nested_dicts_are_joined_and_other_values_are_no_weights(tmp_path):
    torch.save({"state_dict": {"w": torch.eye(3)}, "epoch": 3, "lr": [0.1]}, tmp_path / "m.pt")
    assert list(open_checkpoint(tmp_path / "m.pt").tensors) == ["state_dict.w"]


def test_shards_of_state_dicts(tmp_path):
    torch.save({"a": torch.eye(3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    homes = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": homes}))
    for path in (index, tmp_path):
        same(open_checkpoint(path), {"a": torch.eye(3), "b": torch.ones(2)})


def test_what_is_read_from_torch_is_written_elsewhere(tmp_path):
    torch.save(state(), tmp_path / "m.pt")
    opened = open_checkpoint(tmp_path / "m.pt")
    ir.save(tmp_path / "m.safetensors", opened.tensors)
    again = open_checkpoint(tmp_path / "m.safetensors")
    assert all(found.way == "equal" for found in diff(opened.tensors, again.tensors))


def test_no_code_of_a_pickle_is_run(tmp_path):
    torch.save({"w": torch.eye(2), "x": trap(tmp_path / "ran")}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="only tensors and plain values"):
        open_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(2, 2), "only tensors and plain values; .*if you trust it.*state_dict"),
        (torch.eye(2), "tensors by name; .*torch.save a dict of its tensors"),
        ({"a.b": torch.eye(2), "a": {"b": torch.zeros(2, 2)}}, "'a.b', but only one tensor should"),
        ({1: torch.eye(2), "1": torch.zeros(2, 2)}, "'1', but only one tensor should"),
        ({"w": torch.empty(3, device="meta")}, "on meta', but it should be dense, with its"),
    ],
    ids=["module", "tensor", "repeated", "repeated number", "meta"],
)
def test_a_file_of_torch_that_holds_no_tensors_by_name_says_what_to_save(tmp_path, content, words):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(99), b"\x80\x02N."])
def test_a_broken_state_dict_is_one_line(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert str(caught.value).isprintable()


def test_a_state_dict_that_was_cut_off_after_it_was_opened_is_told(tmp_path):
    torch.save({"w": torch.zeros(9000)}, tmp_path / "m.pt")
    tensor = open_checkpoint(tmp_path / "m.pt").tensors["w"]
    os.truncate(tmp_path / "m.pt", 100)
    with pytest.raises(CheckpointError, match="should not have changed"):
        tensor.read((slice(None),), "float32")


# PyTorch's distributed checkpoints ----------------------------------------------------------------


def distributed(path, tensors):
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors, checkpoint_id=path, no_dist=True)


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def test_a_distributed_checkpoint_is_read_as_it_was_saved(tmp_path):
    distributed(tmp_path / "dcp", {"model": state(), "step": 5})
    same(open_checkpoint(tmp_path / "dcp"), {f"model.{k}": v for k, v in state().items()})


def test_no_code_of_the_list_is_run(tmp_path):
    distributed(tmp_path, {"w": torch.eye(2)})
    (tmp_path / ".metadata").write_bytes(pickle.dumps(trap(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match="does not belong in such a list"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def edited(folder, change):
    with open(folder / ".metadata", "rb") as file:
        listed = pickle.load(file)
    change(listed)
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(listed, file)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda info: setattr(info, "relative_path", "../__0_0.distcp"), "lie in the folder"),
        (lambda info: setattr(info, "offset", 10**9), "should be in the file"),
        (lambda info: setattr(info, "length", 3), "cover it"),
        (lambda info: setattr(info, "offset", -1), "should be in the file"),
    ],
    ids=["another folder", "beyond", "too short", "negative"],
)
def test_a_list_that_leads_elsewhere_is_refused(tmp_path, change, text):
    distributed(tmp_path, {"w": torch.eye(2)})
    edited(tmp_path, lambda listed: change(next(iter(listed.storage_data.values()))))
    with pytest.raises(CheckpointError, match=text):
        open_checkpoint(tmp_path)


def test_lenient_goes_on_without_a_file_of_pieces(tmp_path):
    distributed(tmp_path, {"w": torch.eye(2), "v": torch.ones(3), "there": torch.eye(3)})
    os.link(tmp_path / "__0_0.distcp", tmp_path / "other.distcp")

    def move(listed):
        for key, place in listed.storage_data.items():
            place.relative_path = "other.distcp" if key.fqn == "there" else "__0_0.distcp"

    edited(tmp_path, move)
    os.unlink(tmp_path / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"'__0_0[.]distcp', but it is missing"):
        open_checkpoint(tmp_path)
    found = open_checkpoint(tmp_path, lenient=True)
    assert list(found.tensors) == ["there"]
    assert len(found.findings) == 1  # for both tensors


def test_pieces_of_several_files_make_up_one_tensor(tmp_path):
    """As two processes would have written halves of a matrix, along either axis."""
    import io

    from torch.distributed.checkpoint import metadata as md
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    full = torch.arange(35.0).reshape(5, 7)
    places, chunks = {}, []
    for k, (rows, columns) in enumerate([((0, 5), (0, 3)), ((0, 2), (3, 7)), ((2, 5), (3, 7))]):
        stream = io.BytesIO()
        torch.save(full[slice(*rows), slice(*columns)].clone(), stream)
        (tmp_path / f"__{k}_0.distcp").write_bytes(b"any" + stream.getvalue())
        at = torch.Size([rows[0], columns[0]])
        sizes = torch.Size([rows[1] - rows[0], columns[1] - columns[0]])
        info = _StorageInfo(f"__{k}_0.distcp", 3, len(stream.getvalue()))
        places[md.MetadataIndex("w", at, k)] = info
        chunks.append(md.ChunkStorageMetadata(at, sizes))
    entry = md.TensorStorageMetadata(md.TensorProperties(full.dtype), full.shape, chunks)
    with open(tmp_path / ".metadata", "wb") as file:
        pickle.dump(md.Metadata({"w": entry}, None, places), file)
    tensor = open_checkpoint(tmp_path).tensors["w"]
    assert np.array_equal(whole(tensor), full.numpy())
    part = tensor.read((slice(1, 4), slice(2, 6)), "float32")
    assert np.array_equal(part, full[1:4, 2:6].numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_what_is_written_is_loaded_by_pytorch(tmp_path, dtype, monkeypatch):
    import torch.distributed.checkpoint as dcp

    monkeypatch.setattr("idinit_ref.files.write_distributed._PIECE", 40)
    values = {
        "fc.weight": ir.plan((7, 5)),
        "last.weight": ir.plan((5, 7), "zero", eps=0.5),
        "bias": np.zeros(3, np.float32),
        "count": np.array(7),
        "none": np.zeros((0, 3), np.float32),
    }
    ir.save(tmp_path / "m.distcp", values, dtype=dtype)
    ir.save(tmp_path / "m.safetensors", values, dtype=dtype)
    one, two = (open_checkpoint(tmp_path / name) for name in ("m.distcp", "m.safetensors"))
    assert {found.way for found in diff(one.tensors, two.tensors)} == {"equal"}
    state = {
        name: torch.full(t.shape, 3).to(getattr(torch, t.dtype)) for name, t in one.tensors.items()
    }
    dcp.load(state, checkpoint_id=tmp_path / "m.distcp", no_dist=True)
    exact = ir.idi((7, 5))
    assert np.array_equal(state["fc.weight"].to(torch.float64).numpy(), exact)
    assert state["count"] == 7


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m.distcp"
    ir.save(path, {"old": ir.plan((3, 3))})

    class Broken:
        shape, dtype = (2, 2), None

        def read(self, index, dtype):
            raise OSError(5, "the disk is gone")

    with pytest.raises(OSError, match=r"the disk is gone|could not be written"):
        ir.save(path, {"new": Broken()})
    assert [each.name for each in tmp_path.iterdir()] == ["m.distcp"]
    assert list(open_checkpoint(path).tensors) == ["old"]
    ir.save(path, {"new": ir.plan((3, 3))})
    assert [each.name for each in tmp_path.iterdir()] == ["m.distcp"]
    assert list(open_checkpoint(path).tensors) == ["new"]


# Keras' whole models ------------------------------------------------------------------------------


def test_the_weights_inside_a_keras_model(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorFlow and NumPy, in Keras' own code
        model.save(tmp_path / "m.keras")
        model.save_weights(tmp_path / "m.weights.h5")
    inside = open_checkpoint(tmp_path / "m.keras")
    beside = open_checkpoint(tmp_path / "m.weights.h5")
    assert len(inside.tensors) >= 4
    assert all(found.way == "equal" for found in diff(inside.tensors, beside.tensors))
    kernels = [whole(t) for t in inside.tensors.values() if t.shape == (4, 3)]
    assert np.array_equal(kernels[0], np.asarray(model.layers[0].kernel))


@pytest.mark.parametrize("how", ["deflated", "without", "empty"])
def test_a_keras_archive_that_is_none_is_one_line(tmp_path, how):
    kind = zipfile.ZIP_DEFLATED if how == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "m.keras", "w", kind) as out:
        out.writestr("config.json", "{}")
        if how != "without":
            out.writestr("model.weights.h5", b"" if how == "empty" else bytes(99))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m.keras")
    assert str(caught.value).isprintable()


# Orbax --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["ocdbt", "folders"])
def test_an_orbax_checkpoint_is_read_as_it_was_saved(tmp_path, packed):
    import jax.numpy as jnp
    import orbax.checkpoint as ocp

    tree = {
        "fc": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)},
        "list": [jnp.arange(3), 5],
        "plain": np.eye(2),
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=packed)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "orbax", tree)
    found = open_checkpoint(tmp_path / "orbax").tensors
    assert {"fc.kernel", "fc.bias", "list.0", "plain"} <= set(found)
    assert found["fc.bias"].dtype == "bfloat16"
    assert np.array_equal(whole(found["fc.kernel"]), np.arange(6.0).reshape(2, 3))
    assert np.array_equal(whole(found["fc.bias"]), np.ones(3))
    assert np.array_equal(whole(found["list.0"]), np.arange(3))
    assert np.array_equal(whole(found["plain"]), np.eye(2))


@pytest.mark.needs("tensorstore")
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tree_metadata": {"a": 3}}', "{"])
def test_a_broken_tree_is_one_line(tmp_path, text):
    (tmp_path / "_METADATA").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).isprintable()


# Keras' repeated paths ----------------------------------------------------------------------------


def test_variables_of_one_path_are_told_apart_from_report_to_file(tmp_path):
    """As docs/export.md has it, with a layer of one name inside and outside of a nested model."""
    import keras

    import idinit_ref_tensorflow as irk
    from idinit_ref.files import assemble, read

    def build():
        inner_in = keras.Input((8,))
        inner = keras.Model(inner_in, keras.layers.Dense(8, name="d")(inner_in), name="inner")
        x = keras.Input((8,))
        return keras.Model(x, x + keras.layers.Dense(8, name="d")(inner(x)))

    def named(variables):
        paths = [v.path for v in variables]
        again = [f" ({paths[:k].count(p) + 1})" * (paths.count(p) > 1) for k, p in enumerate(paths)]
        return {p + number: v for p, number, v in zip(paths, again, variables, strict=True)}

    net, other = build(), build()
    (tmp_path / "k.json").write_text(json.dumps(irk.init_(net).to_dict()))
    ir.save(tmp_path / "k.npz", assemble(read(manifest=tmp_path / "k.json").tensors).values)
    held = np.load(tmp_path / "k.npz")
    assert sorted(held.files) == ["d/bias (1)", "d/bias (2)", "d/kernel (1)", "d/kernel (2)"]
    for name, v in named(other.weights).items():
        v.assign(held[name])
    x = np.random.default_rng(0).standard_normal((2, 8)).astype("float32")
    assert np.abs(np.asarray(other(x)) - x).max() < 1e-4


def test_other_files_are_read_without_these_libraries(tmp_path):
    ir.save(tmp_path / "m.safetensors", {"w": ir.plan((2, 2))})
    code = (
        "import sys; from idinit_ref.files import open_checkpoint; open_checkpoint(sys.argv[1]);"
        "print({'torch', 'jax', 'keras', 'h5py', 'tensorstore'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "m.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
