"""Checkpoints that are folders, of Orbax and of PyTorch: written, found, and of any dtype."""

from __future__ import annotations

import logging

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import idinit_ref as ir
from idinit_ref.commands import cli
from idinit_ref.errors import CheckpointError, DTypeError, OptionError, ShapeError
from idinit_ref.files import diff, open_checkpoint
from idinit_ref.files.bits import decode
from idinit_ref.files.whole import whole_folder


def whole(tensor):
    """All numbers of a tensor."""
    return decode(tensor.read((slice(None),) * len(tensor.shape), tensor.dtype), tensor.dtype)


def saved(path, tree, **options):
    """Save a tree as Orbax itself does."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path.absolute(), tree)


# Writing Orbax ------------------------------------------------------------------------------------

VALUES = {
    "block.0.kernel": ir.plan((7, 5), layout="IO"),
    "block.0.last": ir.plan((5, 7), "zero", eps=0.5),
    "block.10.bias": np.zeros(3, np.float32),
    "scope/name//w": ir.plan((3, 3, 2, 2)),
    "count": np.array(7),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float8_e4m3fn"])
def test_what_is_written_is_restored_by_orbax(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr("idinit_ref.files.write_orbax._CHUNK", 30)  # many chunks
    done = []
    ir.save(tmp_path / "m.orbax", VALUES, dtype=dtype, progress=lambda *at: done.append(at))
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "m.orbax")
    assert tree["count"] == 7
    assert str(tree["block"]["0"]["kernel"].dtype) == dtype
    flat = {"scope/name//w": tree["scope/name//w"]}
    flat |= {f"block.{k}.{n}": v for k, part in tree["block"].items() for n, v in part.items()}
    for name, value in VALUES.items():
        if isinstance(value, ir.Plan):
            assert np.array_equal(flat[name].astype(np.float64), value.build()), name
    total = sum(tensor.nbytes for tensor in open_checkpoint(tmp_path / "m.orbax").tensors.values())
    assert done[-1] == (total, total)
    assert len(done) > len(VALUES)


def test_it_holds_what_a_safetensors_file_holds(tmp_path):
    for name in ("m.orbax", "m.safetensors"):
        ir.save(tmp_path / name, VALUES, dtype="float16")
    one, two = (open_checkpoint(tmp_path / name) for name in ("m.orbax", "m.safetensors"))
    assert {found.way for found in diff(one.tensors, two.tensors)} == {"equal"}
    assert set(one.tensors) == set(VALUES)


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"w": np.zeros((0, 3))}, ShapeError, "refuses empty arrays"),
        ({"a": np.zeros(3), "a.b": np.ones(3)}, OptionError, "'a' cannot be a tensor and a dict"),
        ({"": np.zeros(3), ".b": np.ones(3)}, OptionError, "'' cannot be a tensor and a dict"),
    ],
    ids=["empty", "tensor and dict", "no name"],
)
def test_what_no_tree_holds_is_refused_first(tmp_path, values, error, text):
    with pytest.raises(error, match=text):
        ir.save(tmp_path / "m.orbax", values)
    assert not list(tmp_path.iterdir())


def test_such_a_folder_is_replaced_whole_or_not_at_all(tmp_path, capfd):
    path, level = tmp_path / "m.orbax", logging.getLogger("absl").level
    ir.save(path, {"old": ir.plan((3, 3))})

    class Broken:
        shape, dtype = (2, 2), None

        def read(self, index, dtype):
            raise OSError(5, "the disk is gone")

    with pytest.raises(OSError, match=r"the disk is gone|could not be written"):
        ir.save(path, {"new": Broken()})
    assert [each.name for each in tmp_path.iterdir()] == ["m.orbax"]
    assert list(open_checkpoint(path).tensors) == ["old"]
    ir.save(path, {"new": ir.plan((3, 3))})
    assert [each.name for each in tmp_path.iterdir()] == ["m.orbax"]
    assert list(open_checkpoint(path).tensors) == ["new"]
    assert logging.getLogger("absl").level == level


def test_what_a_library_leaves_beside_a_folder_goes_too(tmp_path):
    (tmp_path / "m[1].other").touch()

    def stopped():
        with whole_folder(tmp_path / "m[1]") as part:
            part.with_name(f"{part.name}.unfinished").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [each.name for each in tmp_path.iterdir()] == ["m[1].other"]


@pytest.mark.parametrize("suffix", [".orbax", ".distcp"])
def test_the_command_replaces_a_folder_that_holds_no_input(tmp_path, capsys, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    ir.save("old.safetensors", {"fc.weight": ir.plan((4, 3)), "out.weight": ir.plan((3, 4))})
    out = f"new{suffix}"
    words = ["export", "--from", "old.safetensors", "--rule", ".=transit", "--out", out]
    assert cli.main(words) == 0
    assert cli.main(words) == 2
    assert "should not exist yet" in capsys.readouterr().err
    assert cli.main([*words, "--force"]) == 0
    assert cli.main(["diff", "old.safetensors", out]) == 0
    words[2] = out
    assert cli.main([*words, "--force"]) == 2
    assert "another file than the input" in capsys.readouterr().err
    ir.save(f"{out}/inside.safetensors", {"fc.weight": ir.plan((4, 3))})
    words[2] = f"{out}/inside.safetensors"
    assert cli.main([*words, "--force"]) == 2
    assert "another file than the input" in capsys.readouterr().err
    assert cli.main(["diff", "old.safetensors", out]) == 0


# Where folders are --------------------------------------------------------------------------------


def test_a_checkpoint_is_found_in_step_and_item(tmp_path):
    saved(tmp_path / "run" / "7" / "default", {"w": np.eye(3)})
    for path in ("run", "run/7", "run/7/default"):
        found = open_checkpoint(tmp_path / path)
        assert np.array_equal(whole(found.tensors["w"]), np.eye(3))
        assert all(file.is_file() for file in found.files)
    saved(tmp_path / "run" / "8" / "default", {"w": np.eye(3)})
    with pytest.raises(CheckpointError, match=r"checkpoints: '7.default', '8.default'; name"):
        open_checkpoint(tmp_path / "run")


def test_a_distributed_one_too(tmp_path):
    import torch  # noqa: F401 - needed

    ir.save(tmp_path / "run" / "model.distcp", {"w": ir.plan((3, 3))})
    assert list(open_checkpoint(tmp_path / "run").tensors) == ["w"]


# Dtypes that are not decoded ----------------------------------------------------------------------

CODES = np.arange(24, dtype=np.uint8).reshape(3, 8)
NARROW = {
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}


def _orbax(path, dtype):
    saved(path / "m", {"w": CODES.view(getattr(ml_dtypes, dtype)), "x": np.eye(2)})
    return path / "m"


def _torch(path, dtype):
    import torch

    odd = torch.from_numpy(CODES.copy()).view(getattr(torch, dtype))
    torch.save({"w": odd, "x": torch.eye(2)}, path / "m.pt")
    return path / "m.pt"


def _distributed(path, dtype):
    import torch
    import torch.distributed.checkpoint as dcp

    odd = torch.from_numpy(CODES.copy()).view(getattr(torch, dtype))
    dcp.save({"w": odd, "x": torch.eye(2)}, checkpoint_id=path / "m", no_dist=True)
    return path / "m"


def _h5(path, dtype):
    import h5py

    with h5py.File(path / "m.h5", "w") as file:
        file["w"] = CODES.view("V1") if dtype == "void8" else CODES.view(dtype)
        file["x"] = np.eye(2)
    return path / "m.h5"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:ComplexHalf support")
@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        *((_orbax, dtype) for dtype in (*NARROW, "float8_e3m4", "int4")),
        *((_torch, dtype) for dtype in (*NARROW, "float4_e2m1fn_x2", "complex32")),
        *((_distributed, dtype) for dtype in (*NARROW, "complex32")),
        *((_h5, dtype) for dtype in ("void8", "S2", ">u2,i2")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__[1:],
)
def test_name_shape_and_bytes_are_known_in_every_format(tmp_path, make, dtype):
    found = open_checkpoint(make(tmp_path, dtype))
    tensor, known = found.tensors["w"], found.tensors["x"]
    assert np.array_equal(whole(known), np.eye(2))
    assert tensor.obstacle == f"{tensor.dtype} is not decoded"
    assert tensor.nbytes == 24
    if dtype not in ("int4", ">u2,i2"):  # which the formats have in other bytes
        for start, stop in ((0, 24), (3, 9), (6, 12), (23, 24), (5, 5)):
            held = tensor.read_bytes(start, stop)
            assert held.tobytes() == CODES.tobytes()[start:stop]
    with pytest.raises(DTypeError, match="not decoded"):
        tensor.read((slice(None),) * len(tensor.shape), "float32")
    assert {each.way for each in diff(found.tensors, found.tensors)} == {"equal"}
    if dtype in NARROW:  # the same bytes mean the same in safetensors
        assert tensor.dtype == NARROW[dtype]
        ir.save(tmp_path / "new.safetensors", found.tensors)
        again = open_checkpoint(tmp_path / "new.safetensors")
        assert {each.way for each in diff(found.tensors, again.tensors)} == {"equal"}
    else:
        with pytest.raises(DTypeError, match="cannot hold its bytes"):
            ir.save(tmp_path / "new.safetensors", found.tensors)


def test_a_scalar_that_is_not_decoded(tmp_path):
    saved(tmp_path / "m", {"w": np.array(3, ml_dtypes.int4)})
    assert open_checkpoint(tmp_path / "m").tensors["w"].read_bytes(0, 1).tolist() == [3]
