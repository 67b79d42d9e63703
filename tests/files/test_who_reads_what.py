"""docs/export.md's table: who reads what, made by a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import idinit_ref as ir
from idinit_ref.errors import CheckpointError
from idinit_ref.files import open_checkpoint

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
PAGE = Path(__file__).parents[2] / "docs" / "export.md"


def _safetensors(path):
    from safetensors.numpy import save_file

    save_file({"w": WEIGHT}, path / "m.safetensors")
    return path / "m.safetensors"


def _shards(path):
    from safetensors.numpy import save_file

    save_file({"w": WEIGHT}, path / "a.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    return path


def _npz(path):
    np.savez(path / "m.npz", w=WEIGHT)
    return path / "m.npz"


def _h5(path):
    import h5py

    with h5py.File(path / "m.h5", "w") as file:
        file["w"] = WEIGHT
    return path / "m.h5"


def _keras(path):
    import zipfile

    with zipfile.ZipFile(path / "m.keras", "w") as out:
        out.write(_h5(path), "model.weights.h5")
    return path / "m.keras"


def _torch(path):
    import torch

    torch.save({"w": torch.from_numpy(WEIGHT)}, path / "pytorch_model.bin")
    return path / "pytorch_model.bin"


def _distributed(path):
    import torch
    import torch.distributed.checkpoint as dcp

    dcp.save({"w": torch.from_numpy(WEIGHT)}, checkpoint_id=path / "dcp", no_dist=True)
    return path / "dcp"


def _orbax(path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path / "orbax" / "7" / "default", {"w": WEIGHT})
    return path / "orbax"


def _npy(path):
    np.save(path / "w.npy", WEIGHT)
    return path / "w.npy"


def _msgpack(path):
    from flax.serialization import msgpack_serialize

    (path / "m.msgpack").write_bytes(msgpack_serialize({"w": WEIGHT}))
    return path / "m.msgpack"


MADE = {  # what it is, what it needs, its suffix for `save`, and how its own library makes one
    "`.safetensors`": ("nothing", ".safetensors", _safetensors),
    "its shards, by `*.index.json` or their folder": ("nothing", ".safetensors", _shards),
    "`.npz` of NumPy": ("nothing", ".npz", _npz),
    "`.h5`, Keras' `.weights.h5`": ("extra `export` (h5py)", ".h5", _h5),
    "`.keras`: the weights inside": ("extra `export` (h5py)", "", _keras),
    "`pytorch_model.bin`, `.pt`, `.pth`, their index": ("extra `torch`", "", _torch),
    "a folder of `torch.distributed.checkpoint`": ("extra `torch`", ".distcp", _distributed),
    "a folder of Orbax, alone or in STEP/ITEM": ("extra `orbax`", ".orbax", _orbax),
    "`.npy` of NumPy, whose tensor has the name of the file": ("nothing", "", _npy),
    "`.msgpack` of Flax": ("", "", _msgpack),
}


def row(kind, path):
    """A row of the table, by trying it."""
    needs, suffix, make = MADE[kind]
    try:
        tensor = open_checkpoint(make(path)).tensors["w"]
        assert np.array_equal(tensor.read((slice(None),) * 2, "float32"), WEIGHT)
        read = "yes"
    except CheckpointError as problem:
        read = "no: " + re.search(r"; ([^;]*)$", str(problem))[1]
    written = "-"
    if suffix:
        ir.save(path / f"new{suffix}", {"w": ir.plan((2, 3))})
        tensor = open_checkpoint(path / f"new{suffix}").tensors["w"]
        assert np.array_equal(tensor.read((slice(None),) * 2, "float32"), ir.idi((2, 3)))
        written = f"`{suffix}`"
    return f"| {kind} | {needs or '-'} | {read} | {written} |"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", MADE)
def test_the_table_says_what_happens(kind, tmp_path):
    assert row(kind, tmp_path) in PAGE.read_text().splitlines()
