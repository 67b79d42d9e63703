"""Reading: every good file by every block, and of every broken or hostile one a line that helps."""

from __future__ import annotations

import builtins
import copy
import errno
import hashlib
import io
import json
import os
import re
import struct
import sys
import tracemalloc
import zipfile
import zlib
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from huggingface_hub import save_torch_state_dict
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import idinit_ref as ir
from idinit_ref.errors import (
    CheckpointError,
    DTypeError,
    IndexingError,
    OptionTypeError,
    RoundingError,
)
from idinit_ref.files import disk
from idinit_ref.files.bits import DTYPES, carrier
from idinit_ref.files.reading import open_checkpoint
from idinit_ref.files.storage import Tensor, stream
from strategies import parts

pytestmark = pytest.mark.every

CODES = {code: name for name, code in DTYPES.items()}
NATIVE = [name for name in DTYPES if np.dtype(carrier(name)).name == name]
MB = 2**20


def whole(tensor):
    return tensor.read((slice(None),) * len(tensor.shape), tensor.dtype)


def bits(array):
    """An array's bytes, whatever its dtype; it and NumPy's view are told apart by nothing else."""
    return np.ascontiguousarray(array).tobytes()


def pack(header, data=b"", length=None):
    """A safetensors file, by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin, end, dtype="U8", shape=None):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def file(tmp_path):
    """Writes a file and returns its path."""

    def write(content, name="model.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture(autouse=True)
def every_file_is_closed():
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    yield
    after = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    left = {os.path.realpath(f"/proc/self/fd/{n}") for n in after - before}
    assert not {name for name in left if name.endswith((".safetensors", ".npz", ".h5", ".json"))}


class Watched(io.FileIO):
    """A file that tells where it is read."""

    log: list[tuple[int, int]] = []  # noqa: RUF012

    def readinto(self, buffer):
        at = self.tell()
        self.log.append((at, memoryview(buffer).nbytes))
        return super().readinto(buffer)

    def read(self, size=-1):
        raise AssertionError("all reading goes through readinto")

    readall = read


@pytest.fixture
def watched(monkeypatch):
    """What is read from now on: places and counts."""

    def opened(path, mode, buffering):
        assert (mode, buffering) == ("rb", 0)
        return Watched(path)

    monkeypatch.setattr(disk, "open", opened, raising=False)
    monkeypatch.setattr(Watched, "log", [])
    return Watched.log


# Good files ---------------------------------------------------------------------------------------


def test_all_dtypes_of_safetensors(tmp_path):
    path = tmp_path / "all.safetensors"
    kinds = {
        name: getattr(torch, name)
        for name in DTYPES
        if name not in ("uint16", "uint32", "uint64")  # torch makes no random ones
    }
    random = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn((3, 4, 5), generator=random) * 3).to(dtype)
        for name, dtype in kinds.items()
    }
    tensors["uint64"] = torch.arange(4).to(torch.uint64)
    tensors["scalar"] = torch.tensor(2.5)
    tensors["none"] = torch.zeros((0, 7))
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "who": "é"})
    found = open_checkpoint(path)
    assert found.path == path
    assert found.files == (path,)
    assert found.metadata == {"format": "pt", "who": "é"}
    assert set(found.tensors) == set(tensors)
    assert found.nbytes == sum(t.nbytes for t in tensors.values())
    for name, tensor in found.tensors.items():
        expected = tensors[name]
        raw = expected.reshape(-1).view(torch.uint8).numpy() if expected.numel() else b""
        assert tensor.name == name
        assert tensor.path == path
        assert tensor.shape == tuple(expected.shape)
        assert tensor.dtype == str(expected.dtype).removeprefix("torch.")
        assert tensor.nbytes == expected.nbytes
        read = whole(tensor)
        assert read.dtype == carrier(tensor.dtype)
        assert read.shape == tensor.shape
        assert bits(read) == bytes(raw)
        assert read.base is None or read.base.flags.owndata  # its own memory, no map of the file


def test_what_is_saved_here_is_read_here(tmp_path):
    path = tmp_path / "model.safetensors"
    plans = {"a": ir.plan((5, 3), gain=0.5), "b": ir.plan((3, 5), "zero")}
    ir.save(path, plans)
    found = open_checkpoint(path)
    assert set(json.loads(found.metadata["idinit_ref.plans"])) == {"a", "b"}
    for name, plan in plans.items():
        assert np.array_equal(whole(found.tensors[name]), plan.build(dtype="float32"))


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.h5"])
def test_what_a_file_tells_of_itself_is_the_same_in_every_format(tmp_path, name):
    made = {"a/w": ir.plan((5, 3), gain=0.5), "b": ir.plan((3, 5), "zero"), "c": np.arange(3)}
    ir.save(tmp_path / name, made, metadata={"who": "é"}, digests=True)
    found = open_checkpoint(tmp_path / name)
    assert found.metadata["who"] == "é"
    assert found.metadata["idinit_ref"] == ir.__version__
    plans = json.loads(found.metadata["idinit_ref.plans"])
    assert set(plans) == {"a/w", "b"}
    assert plans["a/w"]["gain"] == 0.5
    digests = json.loads(found.metadata["idinit_ref.sha256"])
    expected = {n: hashlib.sha256(bits(whole(t))).hexdigest() for n, t in found.tensors.items()}
    assert digests == expected


def test_what_others_tell_is_no_error(tmp_path, h5):
    comments = [b"hello", b"\xff", b'{"who": 3, "x": "y"}', b'{"idinit_ref.plan": ' + b"[" * 9000]
    for comment in comments:
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as out:
            out.writestr("a.npy", npy_bytes(ONES))
            out.comment = out.infolist()[0].comment = comment
        assert open_checkpoint(tmp_path / "x.npz").metadata == (
            {"x": "y"} if b"y" in comment else {}
        )

    def make(out):
        out.attrs.update(
            number=3, list=["a"], text="é", fixed=np.bytes_(b"x"), none=h5py.Empty("f")
        )
        out["x"] = ONES
        out["x"].attrs["idinit_ref.plan"] = "no JSON"
        out["x"].attrs["idinit_ref.sha256"] = 3

    assert open_checkpoint(h5(make)).metadata == {"text": "é"}


def test_another_dtype_is_rounded_once(tmp_path):
    path = tmp_path / "model.safetensors"
    values = np.array([1 / 3, -1e-6, np.inf, -0.0])
    safetensors.numpy.save_file({"x": values, "n": np.arange(3), "big": np.full(2, 1e300)}, path)
    found = open_checkpoint(path).tensors
    everything = (slice(None),)
    for to in (np.float32, np.float16, ml_dtypes.bfloat16):
        read = found["x"].read(everything, np.dtype(to).name)
        assert bits(read) == bits(values.astype(to))
    with pytest.raises(DTypeError, match="int64"):
        found["n"].read(everything, "float32")
    with pytest.raises(RoundingError, match="big"):
        found["big"].read(everything, "float32")


ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(n) for n in NATIVE]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)


def write_safetensors(path, array):
    safetensors.numpy.save_file({"x": np.ascontiguousarray(array).reshape(array.shape)}, path)


def write_h5(path, array):
    with h5py.File(path, "w") as out:
        out.create_dataset("x", data=array)


def write_chunked(path, array):
    with h5py.File(path, "w") as out:
        more = {"compression": "gzip", "shuffle": True} if array.size and array.ndim else {}
        out.create_dataset("x", data=array, **more)


WRITERS = {
    "safetensors": ("x.safetensors", write_safetensors),
    "npz": ("x.npz", lambda path, array: np.savez(path, x=array)),
    "packed": ("x.npz", lambda path, array: np.savez_compressed(path, x=array)),
    "h5": ("x.h5", write_h5),
    "chunked": ("x.h5", write_chunked),
}


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
@pytest.mark.cases(2)
def test_any_block_of_any_array(tmp_path, kind, data):
    name, write = WRITERS[kind]
    array = data.draw(ARRAYS)
    if kind != "safetensors":
        array = array.astype(array.dtype.newbyteorder(data.draw(st.sampled_from("<>"))))
        array = np.asarray(array, order=data.draw(st.sampled_from("CF")))
    write(tmp_path / name, array)
    tensor = open_checkpoint(tmp_path / name).tensors["x"]
    assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
    with pytest.MonkeyPatch.context() as patch:  # so that all ways of reading are gone
        patch.setattr(disk, "_PAGE", data.draw(st.sampled_from([1, 8, 64, 4096])))
        patch.setattr(disk, "_PIECE", data.draw(st.sampled_from([1, 16, 4096])))
        for _ in range(3):
            index = data.draw(parts(array.shape))
            block = tensor.read(index, tensor.dtype)
            expected = array[index].astype(array.dtype.newbyteorder("="))
            assert block.shape == expected.shape
            assert block.dtype == expected.dtype
            assert block.dtype.isnative
            assert bits(block) == bits(expected)


BLOCKS = [
    (),
    (slice(5, 6),),
    (slice(299, 300), slice(1, 50)),
    (slice(None), slice(3, 4)),
    (slice(None), slice(None), slice(2, 3)),
    (slice(7, 250), slice(None), slice(None), slice(1, 2)),
    (slice(100, 90),),
    (slice(-3, None), slice(None, -1)),
    (slice(0, 2**70),),
]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.cases(2)
def test_blocks_of_a_larger_array(tmp_path, kind):
    name, write = WRITERS[kind]
    array = np.random.default_rng(0).integers(0, 9, (300, 50, 7, 30)).astype(np.float32)
    write(tmp_path / name, array)
    tensor = open_checkpoint(tmp_path / name).tensors["x"]
    for index in BLOCKS:
        full = (*index, *[slice(None)] * (4 - len(index)))
        assert np.array_equal(tensor.read(full, "float32"), array[full])


def test_only_the_block_is_read(tmp_path, watched):
    path = tmp_path / "x.safetensors"
    array = np.arange(1000 * 3000, dtype=np.float32).reshape(1000, 3000)
    safetensors.numpy.save_file({"x": array, "y": np.ones(9, np.float32)}, path)
    tensor = open_checkpoint(path).tensors["x"]
    assert sum(count for _, count in watched) < 300  # the header
    watched.clear()
    rows = (slice(2, 6), slice(None))
    assert np.array_equal(tensor.read(rows, "float32"), array[rows])
    assert [count for _, count in watched] == [4 * 3000 * 4]  # whole rows, in one
    watched.clear()
    part = (slice(10, 14), slice(7, 2900))
    assert np.array_equal(tensor.read(part, "float32"), array[part])
    assert [count for _, count in watched] == [2893 * 4] * 4
    watched.clear()
    assert tensor.read((slice(3, 3), slice(None)), "float32").shape == (0, 3000)
    assert not watched


def test_tiny_runs_are_read_through(tmp_path, watched):
    path = tmp_path / "x.safetensors"
    array = np.arange(40_000 * 4 * 9, dtype=np.float32).reshape(40_000, 4, 3, 3)
    safetensors.numpy.save_file({"x": array}, path)
    tensor = open_checkpoint(path).tensors["x"]
    watched.clear()
    index = (slice(None), slice(None), slice(1, 2), slice(1, 2))
    assert np.array_equal(tensor.read(index, "float32"), array[index])
    assert len(watched) < 10
    assert max(count for _, count in watched) <= MB


def test_packed_arrays_are_unpacked_once_when_read_in_order(tmp_path, watched):
    path = tmp_path / "x.npz"
    array = np.random.default_rng(0).integers(0, 50, (100, 10_000))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out, out.open("x.npy", "w") as to:
        np.save(to, array)
    del Watched.read, Watched.readall  # zipfile reads the directory with it
    try:
        tensor = open_checkpoint(path).tensors["x"]
        watched.clear()
        for row in range(0, 100, 10):
            index = (slice(row, row + 10), slice(None))
            assert np.array_equal(tensor.read(index, "int64"), array[index])
        assert sum(count for _, count in watched) < 1.1 * path.stat().st_size
        assert np.array_equal(whole(tensor), array)  # and back to its beginning
    finally:
        Watched.read = Watched.readall = _no_read


_no_read = Watched.read


def test_a_huge_file_costs_what_is_read(file):
    side = 2**16
    header = {"x": entry(0, side * side * 4, "F32", [side, side])}
    path = file(pack(header))
    head = path.stat().st_size
    os.truncate(path, head + side * side * 4)  # 16 GiB, of holes
    tracemalloc.start()
    try:
        tensor = open_checkpoint(path).tensors["x"]
        assert not tensor.read((slice(9, 11), slice(None)), "float32").any()
        assert not tensor.read((slice(9, 3000), slice(side - 1, side)), "float32").any()
        assert tracemalloc.get_traced_memory()[1] < 2 * MB
    finally:
        tracemalloc.stop()
        path.unlink()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_stored_tensor_is_a_tensor_that_streams(tmp_path, kind):
    name, write = WRITERS[kind]
    array = np.random.default_rng(0).standard_normal((700, 900))  # two blocks
    write(tmp_path / name, array)
    tensor = open_checkpoint(tmp_path / name).tensors["x"]
    assert isinstance(tensor, Tensor)
    for dtype in ("float64", "float32"):
        assert b"".join(map(bits, stream(tensor, dtype))) == bits(array.astype(dtype))


def test_a_bool_is_a_bool(file):
    path = file(pack({"x": entry(0, 4, "BOOL")}, bytes([0, 1, 2, 255])))
    read = whole(open_checkpoint(path).tensors["x"])
    assert bits(read) == bytes([0, 1, 1, 1])


def test_entries_may_stand_in_any_order(file):
    header = {"b": entry(2, 5), "none": entry(2, 2), "a": entry(0, 2)}
    found = open_checkpoint(file(pack(header, b"abcde")))
    assert list(found.tensors) == ["a", "none", "b"]  # as in the data
    assert bits(whole(found.tensors["b"])) == b"cde"


INDICES = [
    (slice(None),),
    [slice(None), slice(None)],
    (0, slice(None)),
    (slice(None), slice(0, 2, 2)),
    (slice(0.5), slice(None)),
    ...,
]


@pytest.mark.parametrize("index", INDICES)
def test_an_index_that_is_none(file, index):
    path = file(pack({"x": entry(0, 4, shape=[2, 2])}, b"abcd"))
    with pytest.raises(IndexingError, match=r"slices? of step 1|integer ends"):
        open_checkpoint(path).tensors["x"].read(index, "uint8")


# A file that changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_has_changed(tmp_path, kind):
    name, write = WRITERS[kind]
    path = tmp_path / name
    write(path, np.ones((40, 40)))
    tensor = open_checkpoint(path).tensors["x"]
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="changed; open it again"):
        whole(tensor)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        whole(tensor)


def test_a_file_of_the_same_size_that_has_changed(file):
    path = file(pack({"x": entry(0, 4)}, b"abcd"))
    tensor = open_checkpoint(path).tensors["x"]
    os.utime(path, (1, 1))
    with pytest.raises(CheckpointError, match="changed; open it again"):
        whole(tensor)


def test_a_file_that_is_cut_while_it_is_read(file, watched, monkeypatch):
    path = file(pack({"x": entry(0, 4)}, b"abcd"))
    tensor = open_checkpoint(path).tensors["x"]
    monkeypatch.setattr(Watched, "readinto", lambda self, buffer: 0)
    with pytest.raises(CheckpointError, match="changed; open it again"):
        whole(tensor)


def test_reads_that_come_in_parts(file, watched, monkeypatch):
    path = file(pack({"x": entry(0, 4)}, b"abcd"))
    tensor = open_checkpoint(path).tensors["x"]
    read = Watched.readinto
    monkeypatch.setattr(Watched, "readinto", lambda self, buffer: read(self, buffer[:1]))
    assert bits(whole(tensor)) == b"abcd"


# Paths --------------------------------------------------------------------------------------------


def test_paths_that_are_none(tmp_path):
    with pytest.raises(OptionTypeError, match="PathLike"):
        open_checkpoint(3)
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "no.safetensors")
    with pytest.raises(CheckpointError, match="a valid file name"):
        open_checkpoint("a\0b.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"any")
    with pytest.raises(CheckpointError, match=r"\.bin.*not an archive.*a file of torch\.save"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    folder = tmp_path / "folder" / "model.safetensors"
    folder.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="regular file"):
        open_checkpoint(folder.parent)


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="regular file"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.h5", "x.index.json"])
def test_no_permission(file, name, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(disk, "open", denied, raising=False)  # root may read anything
    with pytest.raises(PermissionError, match=name):
        open_checkpoint(file(b"x" * 100, name))


# Hostile safetensors ------------------------------------------------------------------------------

GOOD = {"a": entry(0, 2), "b": entry(2, 6)}
DATA = b"abcdef"


def changed(**entries):
    return pack({**copy.deepcopy(GOOD), **entries}, DATA)


def with_field(key, value):
    return changed(b={**entry(2, 6), key: value})


def with_more(text):
    """A file of whose entries one has a field more."""
    good = json.dumps(GOOD["b"])[:-1]
    return pack(f'{{"a":{json.dumps(GOOD["a"])},"b":{good},"more":{text}}}}}'.encode(), DATA)


def with_raw(shape):
    """A file whose one shape is this text."""
    return pack(b'{"a":{"dtype":"U8","shape":' + shape + b',"data_offsets":[0,0]}}')


LONG = "x" * 5000
HOSTILE = {
    "empty": (b"", ["size", "0", "not be empty"]),
    "under 8 bytes": (b"\x01\x02\x03", ["size", "= 3", "at least 8 bytes"]),
    "short text": (b"hello", ["'hello'", "begins with a length"]),
    "text": (b"<!DOCTYPE html><title>404", ["'<!DOCTYP'", "download the file again"]),
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        ["pointer of git-lfs", "git lfs pull"],
    ),
    "zip": (b"PK\x03\x04" + bytes(99), ["a ZIP archive", "name it .npz"]),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), ["an HDF5 file", "name it .h5"]),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), ["single array", "name it .npy"]),
    "old torch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", ["before PyTorch 1.6", "torch.save("]),
    "gguf": (b"GGUF\x03\0\0\0", ["a file of llama.cpp", "gguf.GGUFReader"]),
    "length over the file": (pack(GOOD, DATA, 10**6), ["length of the header", "1000000", "rest"]),
    "length of 2**64": (pack(GOOD, DATA, 2**64 - 1), [str(2**64 - 1), "at most 100,000,000 bytes"]),
    "length cut": (pack(GOOD, DATA, 20), ["JSON at character 20"]),
    "header of nothing": (pack(b""), ["JSON at character 0", "it should be JSON"]),
    "header of zeros": (bytes(100), ["JSON at character 0", "it should be JSON"]),
    "list": (pack([]), ["header", "'[]'", "an object"]),
    "trailing": (pack(b"{} x"), ["JSON at character 3", "'x'"]),
    "not closed": (pack(b'{"a":{'), ["JSON at character 6"]),
    "no comma": (pack(b'{"a":{} "b":{}}'), ["JSON at character 8", "it should be JSON"]),
    "comma at the end": (
        pack(b'{"__metadata__":{},}'),
        ["JSON at character 19", "it should be JSON"],
    ),
    "UTF-8": (pack(b'{"\xff":{}}'), ["UTF-8, also from byte 2 on"]),
    "UTF-16": (pack("{}".encode("utf-16")), ["UTF-8"]),
    "duplicate field": (
        pack(b'{"a":{"dtype":"U8","dtype":"U8"}}'),
        ["keys of 'a'", "dtype, dtype", "each once"],
    ),
    "NaN": (
        pack(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'),
        ["'NaN'", "JSON has no NaN"],
    ),
    "Infinity": (pack(b'{"a":{"shape":[-Infinity]}}'), ["JSON has no -Infinity"]),
    "huge integer": (
        pack(b'{"a":{"shape":[' + b"9" * 10**6 + b"]}}"),
        ["no integer of 1,000,000 digits"],
    ),
    "over the cap": (
        pack(b"{}" + b" " * 100_000_000),
        ["length of the header", "at most 100,000,000 bytes"],
    ),
    "over, then nothing": (
        changed(c=entry(6, 6, shape=[2**40, 2**40, 0])),
        ["shape of 'c'", "2**64 bits"],
    ),
    "half a byte": (changed(b=entry(2, 6, "F4", [7])), ["shape of 'b'", "whole bytes"]),
    "a field of 126 lists": (with_more("[" * 126 + "]" * 126), ["'more' of 'b'", "too deeply"]),
    "a field of 1e999": (with_more("-1e999"), ["'more' of 'b'", "float64"]),
    "a field of 400 digits": (with_more("9" * 400), ["'more' of 'b'", "float64"]),
    "a field that is no text": (with_more('"\\ud800"'), ["'more' of 'b'", "Unicode text"]),
    "metadata twice": (
        pack(b'{"__metadata__":{},"__metadata__":{}}'),
        ["'__metadata__'", "once"],
    ),
    "replaced by a right one": (
        pack(b'{"a":{"dtype":"U8"},"a":' + json.dumps(entry(0, 1)).encode() + b"}", b"x"),
        ["keys of 'a'"],
    ),
    "deep": (pack(b'{"a":' + b"[" * 10**6), ["nested too deeply"]),
    "deep objects": (pack(b'{"a":' * 10**5), ["nested too deeply"]),
    "deep metadata": (pack(b'{"__metadata__":{"a":' + b"[" * 10**6), ["nested too deeply"]),
    "no object": (changed(b=3), ["entry of 'b'", "'3'", "an object"]),
    "null": (changed(b=None), ["entry of 'b'", "'null'", "an object"]),
    "metadata of numbers": (
        changed(__metadata__={"a": 1}),
        ["__metadata__", "an object of texts, or null"],
    ),
    "lone surrogate": (pack(b'{"__metadata__":{"a":"\\ud800"}}'), ["__metadata__", "of texts"]),
    "escape": (pack(b'{"\\x":{}}'), ["JSON at character 2", "escape"]),
    "raw control": (pack(b'{"a\nb":{}}'), ["JSON at character 3", "control character"]),
    "no dtype": (
        changed(b={"shape": [4], "data_offsets": [2, 6]}),
        ["keys of 'b'", "'shape, data_offsets'", "each once"],
    ),
    "dtype": (with_field("dtype", "F4"), ["data_offsets of 'b'", "2 bytes apart"]),
    "dtype of a list": (with_field("dtype", ["U8"]), ["dtype of 'b'", "a text"]),
    "long dtype": (with_field("dtype", LONG), ["dtype of 'b'", "xxx...'", "at most 60"]),
    "shape": (with_field("shape", 4), ["shape of 'b'", "a list of integers"]),
    "bool": (with_field("shape", [True, 4]), ["True", "integers >= 0"]),
    "float": (with_field("shape", [4.0]), ["[4.0]", "integers >= 0"]),
    "exponent": (with_raw(b"[4e0]"), ["[4.0]", "integers >= 0"]),
    "leading zero": (pack(b'{"a":{"shape":[04]}}'), ["JSON at character 16", "it should be JSON"]),
    "minus zero": (with_raw(b"[-0]"), ["[-0.0]", "integers >= 0"]),
    "negative": (with_field("shape", [-4]), ["[-4]", "integers >= 0"]),
    "shape too large": (with_field("shape", [2**62]), ["shape of 'b'", "2**64 bits"]),
    "shape over 2**63": (with_field("shape", [2**32, 2**32]), ["shape of 'b'", "2**64 bits"]),
    "nothing, but over": (
        with_field("shape", [0, 2**40, 2**40]),
        ["data_offsets of 'b'", "0 bytes apart"],
    ),
    "size": (with_field("shape", [3]), ["data_offsets of 'b'", "(2, 6)", "3 bytes apart"]),
    "one offset": (with_field("data_offsets", [2]), ["data_offsets of 'b'", "two integers"]),
    "three offsets": (
        with_field("data_offsets", [2, 6, 6]),
        ["data_offsets of 'b'", "two integers"],
    ),
    "backwards": (with_field("data_offsets", [6, 2]), ["(6, 2)", "4 bytes apart"]),
    "outside": (with_field("data_offsets", [4, 8]), ["(4, 8)", "at most 6"]),
    "far outside": (with_field("data_offsets", [2**64 - 5, 2**64 - 1]), ["at most 6"]),
    "overlap": (pack({"a": entry(0, 3), "b": entry(2, 6)}, DATA), ["'b'", "(2, 6)", "before, 3"]),
    "twice the same": (pack({"a": entry(0, 6), "b": entry(0, 6)}, DATA), ["'b'", "before, 6"]),
    "gap": (pack({"a": entry(0, 1), "b": entry(2, 6)}, DATA), ["'b'", "(2, 6)", "before, 1"]),
    "gap before": (pack({"b": entry(2, 6)}, DATA), ["'b'", "before, 0"]),
    "more data": (pack(GOOD, DATA + b"g"), ["bytes of data", "= 7", "have 6"]),
    "less data": (pack(GOOD, DATA[:-1]), ["data_offsets of 'b'", "at most 5"]),
    "surrogate name": (pack(b'{"\\udc80":{}}'), ["keys of '\\udc80'"]),
    "long name, wrong": (changed(**{LONG: entry(5, 6)}), ["xxx...'", "before, 6"]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file(file, what):
    content, words = HOSTILE[what]
    refused(file(content), *words)


def refused(path, *words):
    """Assert that a path is refused in a line that says these words."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable(), "not one line"
    assert len(text) < 600
    assert "; " in text, "no cure"
    for word in words:
        assert word in text, text


def test_the_good_file_that_these_are_made_of(file):
    assert list(open_checkpoint(file(changed())).tensors) == ["a", "b"]
    padded = open_checkpoint(file(pack(json.dumps(GOOD).encode() + b" \t\n\r  ", DATA)))
    assert list(padded.tensors) == ["a", "b"]
    assert not open_checkpoint(file(pack({}))).tensors


BOMBS = {
    "lists": b'{"a":{"shape":[' + b"[]," * MB,
    "list of lists": b'{"a":[' + b"[]," * MB,
    "objects": b'{"a":{"b":' * (MB // 2),
    "ones": b'{"a":{"shape":[' + b"1," * MB,
    "strings": b'{"__metadata__":{"a":[' + b'"ab",' * MB,
    "letters": b'{"__metadata__":{"a":"' + "\U0001f600".encode() * MB,
    "digits": b'{"a":{"shape":[' + b"1" * 3 * MB,
    "spaces": b"{" + b" " * 3 * MB,
    "keys": b'{"a":{' + b",".join(b'"%x":0' % i for i in range(MB // 4)),
    "a string": b'{"' + b"a" * 3 * MB,
    "names": b"{"
    + b",".join(
        b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(MB // 128)
    )
    + b",",
}


@pytest.mark.parametrize("what", BOMBS)
@pytest.mark.cases(4)
def test_memory_goes_by_the_file(file, what):
    path = file(pack(BOMBS[what]))
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 32 * path.stat().st_size + MB
    finally:
        tracemalloc.stop()


def test_many_tensors_are_read_in_moments(file):
    count = 30_000  # more than any model has in a file
    header = {f"model.layers.{i}.weight": entry(i, i + 1) for i in range(count)}
    found = open_checkpoint(file(pack(header, bytes(count))))
    assert len(found.tensors) == count


# Shards -------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Two shards and their index, as Hugging Face's own writer makes them."""
    random = torch.Generator().manual_seed(0)
    state = {f"layer.{i}": torch.randn((64, 64), generator=random) for i in range(6)}
    save_torch_state_dict(state, tmp_path, max_shard_size=60_000)
    return tmp_path, {name: tensor.numpy() for name, tensor in state.items()}


def rewrite(folder, change):
    """Change the index in place."""
    (path,) = folder.glob("*.index.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_sharded_folder(shards):
    folder, state = shards
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for path in (folder, str(folder), folder / "model.safetensors.index.json"):
        found = open_checkpoint(path)
        assert found.path == Path(path)
        assert [file.name for file in found.files] == ["model.safetensors.index.json", *names]
        assert found.metadata == {"format": "pt"}
        assert set(found.tensors) == set(state)
        assert found.nbytes == 6 * 64 * 64 * 4
        for name, tensor in found.tensors.items():
            assert np.array_equal(whole(tensor), state[name])


def test_only_headers_of_shards_are_read(shards, watched):
    folder, _ = shards
    open_checkpoint(folder)
    assert sum(count for _, count in watched) < 4000


def test_a_folder_with_one_file(shards):
    folder, _ = shards
    safetensors.numpy.save_file({"x": np.ones(3)}, folder / "model.safetensors")
    found = open_checkpoint(folder)
    assert list(found.tensors) == ["x"]
    assert found.files == (folder / "model.safetensors",)


def test_links_into_a_cache_are_followed(shards, tmp_path_factory):
    folder, state = shards
    snapshot = tmp_path_factory.mktemp("snapshot")
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert set(open_checkpoint(snapshot).tensors) == set(state)


def test_shards_open_by_the_name_of_the_whole(shards):
    folder, state = shards
    opened = open_checkpoint(folder / "model.safetensors")
    assert set(opened.tensors) == set(state)
    (folder / "model.safetensors").touch()
    refused(folder / "model.safetensors", "should not be empty")


def test_an_index_of_another_name(shards):
    folder, state = shards
    index = folder / "model.safetensors.index.json"
    index = index.rename(folder / "unet.safetensors.index.json")
    assert set(open_checkpoint(folder).tensors) == set(state)
    (folder / "vae.safetensors.index.json").write_text("{}")
    refused(folder, "'unet.safetensors.index.json', 'vae.safetensors.index.json'", "name one")


def test_a_folder_without(tmp_path):
    kinds = ("model.safetensors", "pytorch_model.bin", "*.index.json", "torch.distributed", "Orbax")
    refused(tmp_path, *kinds, "checkpoints: none; name another folder, or a file of weights")
    for i in range(7):
        (tmp_path / f"{i}.safetensors").touch()
    refused(tmp_path, "checkpoints: '0.safetensors', ", "and 2 more; name one of them")


def test_metadata_of_shards_is_merged(tmp_path):
    homes = {}
    tables = ["{}", "no JSON", '{"x": [[[[', "[1]", '{"x": 1e999, "y": "ab"}', "NaN", None]
    for i, more in enumerate(tables):
        plans = json.dumps({f"t{i}": {"role": "zero", "eps": 0.5}})
        told = {"n": str(i), "idinit_ref.plans": plans, "idinit_ref.sha256": more}
        told = {key: value for key, value in told.items() if value is not None}
        safetensors.numpy.save_file({f"t{i}": np.ones(1)}, tmp_path / f"{i}.safetensors", told)
        homes[f"t{i}"] = f"{i}.safetensors"
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    told = open_checkpoint(tmp_path).metadata
    assert told["n"] == "0"
    expected = {f"t{i}": {"role": "zero", "eps": 0.5} for i in range(7)}
    assert json.loads(told["idinit_ref.plans"]) == expected
    assert json.loads(told["idinit_ref.sha256"]) == {"y": "ab"}  # 1e999 is no digest


def shard_called(name):
    def change(content):
        content["weight_map"]["layer.0"] = name

    return change


def home_of(name, number):
    def change(content):
        content["weight_map"][name] = f"model-0000{number}-of-00002.safetensors"

    return change


PLAIN = ["plain name of a file beside the index", "file in the weight_map"]
INDICES_WRONG = {
    "parent": (shard_called("../model-00001-of-00002.safetensors"), PLAIN),
    "absolute": (shard_called("/etc/passwd"), PLAIN),
    "folder": (shard_called("a/b.safetensors"), PLAIN),
    "backslash": (shard_called("..\\b.safetensors"), PLAIN),
    "dots": (shard_called(".."), PLAIN),
    "itself": (shard_called("."), PLAIN),
    "nothing": (shard_called(""), PLAIN),
    "NUL": (shard_called("a\0"), PLAIN),
    "missing": (shard_called("gone.safetensors"), ["'gone.safetensors'", "missing", "download"]),
    "too long": (shard_called("x" * 300), ["missing"]),
    "no shard": (shard_called("model.safetensors.index.json"), ["safetensors", "length of 8"]),
    "not there": (home_of("layer.9", 1), ["'layer.9'", "the tensor should be in it"]),
    "elsewhere": (home_of("layer.0", 2), ["'layer.0'", "00001", "that the index names"]),
    "number": (shard_called(3), ["weight_map", "the file of each tensor"]),
    "no map": (lambda content: content.pop("weight_map"), ["weight_map", "None"]),
    "list": (lambda content: content.update(weight_map=[]), ["weight_map", "'[]'", "an object"]),
}


@pytest.mark.parametrize("what", INDICES_WRONG)
def test_a_wrong_index(shards, what):
    change, words = INDICES_WRONG[what]
    folder, _ = shards
    rewrite(folder, change)
    refused(folder, *words)


def test_a_name_in_two_shards(shards):
    folder, state = shards
    safetensors.numpy.save_file(
        {name: state[name] for name in state if name > "layer.2"} | {"layer.0": state["layer.0"]},
        folder / "model-00002-of-00002.safetensors",
    )
    refused(folder, "'layer.0'", "only in the shard")


def test_a_broken_shard_is_named(shards):
    folder, _ = shards
    path = folder / "model-00002-of-00002.safetensors"
    os.truncate(path, 2000)
    refused(folder, "model-00002-of-00002.safetensors")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(folder, "model-00002-of-00002.safetensors", "git lfs pull")
    path.unlink()
    refused(folder, "model-00002-of-00002.safetensors", "missing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["not be empty"]),
        (b"[]", ["an object"]),
        (b'{"weight_map": {}', ["JSON at character 17"]),
        (b'{"weight_map": {}} {}', ["JSON at character 19"]),
        (b'{"weight_map": {}, "weight_map": {}}', ["once"]),
        (b'{"weight_map": {"a": "x", "a": "y"}}', ["'a'", "once"]),
        (b"\xff", ["UTF-8"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        (b'{"metadata": ' + b"[" * 10**6, ["nested too deeply"]),
        (b'{"metadata": ' + b"[]," * 10**6, ["far more memory"]),
        (b'{"metadata": [' + b"[]," * 10**6, ["far more memory"]),
        (b'{"metadata": }', ["JSON at character 13"]),
        (b" " * 100_000_001, ["at most 100,000,000 bytes"]),
    ],
)
def test_a_hostile_index(file, content, words):
    path = file(content, "model.safetensors.index.json")
    tracemalloc.start()
    try:
        refused(path, *words)
        assert tracemalloc.get_traced_memory()[1] < 32 * path.stat().st_size + MB
    finally:
        tracemalloc.stop()


def test_metadata_of_an_index_may_be_anything(file):
    metadata = {"total_size": -1.5e3, "more": [None, True, {"a": "]}"}, []]}
    content = json.dumps({"metadata": metadata, "weight_map": {}}).encode()
    assert not open_checkpoint(file(content, "x.safetensors.index.json")).tensors


# npz ----------------------------------------------------------------------------------------------


def npy_bytes(array, **header):
    """The bytes of a .npy file, with its header changed."""
    about = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    text = f"{about!r:<117}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def archive(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as to:
        for name, content in members.items():
            to.writestr(name, content)
    return out.getvalue()


ONES = np.ones((2, 3), np.float32)


def test_names_of_an_archive(tmp_path):
    arrays = {"b/kernel": ONES, "a": np.float16(3), "a.npy": np.arange(3), "é": np.ones((0, 2))}
    np.savez(tmp_path / "x.npz", **arrays)
    found = open_checkpoint(tmp_path / "x.npz")
    assert list(found.tensors) == list(arrays)  # in the file's order
    assert found.nbytes == 24 + 2 + 24
    for name, array in arrays.items():
        assert np.array_equal(whole(found.tensors[name]), array)


def object_archive():
    out = io.BytesIO()
    np.savez(out, x=np.array([{}, None]), allow_pickle=True)
    return out.getvalue()


def saved(array):
    out = io.BytesIO()
    np.savez(out, x=array)
    return out.getvalue()


def with_bytes(content, at, new):
    """Bytes written over an archive's last directory entry: `at` counts from its signature."""
    place = content.rindex(b"PK\x01\x02") + at
    return content[:place] + new + content[place + len(new) :]


def twice():
    """Two members of which the directory says that they lie in the same place."""
    content = bytearray(archive({"a.npy": npy_bytes(ONES), "b.npy": npy_bytes(ONES)}))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = bytes(4)
    return bytes(content)


X = archive({"x.npy": npy_bytes(ONES)})
PACKED = archive({"x.npy": npy_bytes(np.zeros(10_000))}, zipfile.ZIP_DEFLATED)
ARCHIVES = {
    "empty": (b"", ["not be empty"]),
    "text": (b"hello, this is no archive", ["a ZIP archive that can be read", "BadZipFile"]),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "cut": (X[:-30], ["BadZipFile"]),
    "cut in front": (X[60:], ["of 'x.npz'"]),
    "objects": (object_archive(), ["dtype of 'x'", "'object'", "can run code"]),
    "not an array": (archive({"x.txt": b"hi"}), ["'x.txt'", "end in .npy"]),
    "folder": (archive({"x/": b""}), ["member", "'x/'", "end in .npy"]),
    "same place": (twice(), ["member", "before byte 0"]),
    "encrypted": (with_bytes(X, 8, b"\x01"), ["encrypted", "decrypt"]),
    "bzip2": (archive({"x.npy": npy_bytes(ONES)}, zipfile.ZIP_BZIP2), ["compression", "= 12"]),
    "unknown packing": (with_bytes(X, 10, b"\x63"), ["compression", "= 99"]),
    "size": (with_bytes(X, 24, b"\xff\xff\xff\x00"), ["16777215 bytes out of"]),
    "unpacked size": (with_bytes(PACKED, 24, b"\xff\xff\xff\xf0"), ["bytes out of"]),
    "packed size": (with_bytes(PACKED, 20, b"\xff\xff\xff\x00"), ["16777215", "end before"]),
    "wrong place": (with_bytes(X, 42, b"\x04"), ["should begin with a member"]),
    "garbage": (archive({"x.npy": b"hello"}), ["in 'x' an array of NumPy"]),
    "nothing": (archive({"x.npy": b""}), ["in 'x' an array of NumPy"]),
    "short": (archive({"x.npy": npy_bytes(ONES)[:-1]}), ["bytes of 'x'", "151", "152"]),
    "long": (archive({"x.npy": npy_bytes(ONES) + b"x"}), ["bytes of 'x'", "153", "152"]),
    "version": (archive({"x.npy": b"\x93NUMPY\x09\x00" + bytes(99)}), ["in 'x' an array"]),
    "header length": (archive({"x.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff"}), ["in 'x' an"]),
    "negative": (archive({"x.npy": npy_bytes(ONES, shape=(-2, -3))}), ["(-2, -3)", ">= 0"]),
    "bool": (archive({"x.npy": npy_bytes(ONES, shape=(True, 6))}), ["(True, 6)", ">= 0"]),
    "no shape": (archive({"x.npy": npy_bytes(ONES, shape=6)}), ["in 'x' an array"]),
    "large": (archive({"x.npy": npy_bytes(ONES, shape=(2**40,))}), ["bytes of 'x'"]),
    "absurd": (archive({"x.npy": npy_bytes(ONES, shape=(2**40, 2**40))}), ["bytes of 'x'"]),
    "order": (archive({"x.npy": npy_bytes(ONES, fortran_order=2)}), ["in 'x' an array"]),
    "dtype": (archive({"x.npy": npy_bytes(ONES, descr="\\d")}), ["in 'x' an array"]),
    "code": (
        archive({"x.npy": npy_bytes(ONES).replace(b"'<f4'", b"f()  ")}),
        ["in 'x' an array of NumPy"],
    ),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_hostile_archive(file, what):
    content, words = ARCHIVES[what]
    path = file(content, "x.npz")
    tracemalloc.start()
    try:
        refused(path, *words)
        assert tracemalloc.get_traced_memory()[1] < 12 * path.stat().st_size + MB
    finally:
        tracemalloc.stop()


SINGLE = {
    "empty": (b"", ["not be empty"]),
    "an archive": (X, ["a ZIP archive", "name it .npz"]),
    "text": (b"hello, this is no array", ["in 'x' an array of NumPy"]),
    "objects": (npy_bytes(ONES).replace(b"'<f4'", b"'|O' "), ["dtype of 'x'", "can run code"]),
    "short": (npy_bytes(ONES)[:-1], ["bytes of 'x'", "151", "152"]),
    "long": (npy_bytes(ONES) + b"x", ["bytes of 'x'", "153", "152"]),
    "absurd": (npy_bytes(ONES, shape=(2**40, 2**40)), ["bytes of 'x'"]),
}


@pytest.mark.parametrize("what", SINGLE)
def test_a_hostile_array(file, what):
    content, words = SINGLE[what]
    path = file(content, "x.npy")
    refused(path, *words)
    if what not in ("empty", "an archive"):
        assert len(open_checkpoint(path, lenient=True).findings) == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_single_array_has_the_name_of_its_file(tmp_path, order):
    array = np.arange(12.0).reshape(3, 4, order=order)
    np.save(tmp_path / "fc.weight.npy", array)
    (tensor,) = open_checkpoint(tmp_path / "fc.weight.npy").tensors.values()
    assert tensor.name == "fc.weight"
    assert np.array_equal(tensor.read((slice(1, 3), slice(0, 2)), "float64"), array[1:3, :2])


def test_packed_bytes_that_are_broken(file):
    content = bytearray(archive({"x.npy": npy_bytes(np.arange(10_000))}, zipfile.ZIP_DEFLATED))
    for at in (len(content) // 2, len(content) - 120):
        broken = content.copy()
        broken[at] ^= 0xFF
        path = file(broken, "x.npz")
        with pytest.raises(CheckpointError, match="packed array"):
            whole(open_checkpoint(path).tensors["x"])


def test_a_packed_array_whose_checksum_differs(file):
    path = file(with_bytes(PACKED, 16, b"abcd"), "x.npz")
    with pytest.raises(CheckpointError, match="checksum differs"):
        whole(open_checkpoint(path).tensors["x"])


def test_a_packed_array_that_ends_early(file):
    array = npy_bytes(np.zeros(10_000))
    short = zlib.compress(array[:-800], wbits=-15)
    content = archive({"x.npy": array}, zipfile.ZIP_DEFLATED)
    whole_one = zlib.compress(array, wbits=-15)
    start = content.index(b"x.npy") + 5
    old = content[start : content.index(b"PK\x01\x02")]
    assert len(short) <= len(old)
    assert zlib.decompress(old, -15) == zlib.decompress(whole_one, -15)
    content = content.replace(old, short + bytes(len(old) - len(short)))
    with pytest.raises(CheckpointError, match="ends early"):
        whole(open_checkpoint(file(content, "x.npz")).tensors["x"])


@settings(max_examples=300)
@given(data=st.data())
def test_an_archive_with_flipped_bytes(tmp_path, data):
    method = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    content = bytearray(archive({"a.npy": npy_bytes(ONES), "b.npy": npy_bytes(ONES)}, method))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.npz"
    path.write_bytes(content[: data.draw(st.integers(len(content) - 20, len(content)))])
    with suppress(CheckpointError):
        for tensor in open_checkpoint(path).tensors.values():
            assert whole(tensor).nbytes == tensor.nbytes <= 1100 * len(content)


# HDF5 ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(  # Keras (3.15) converts its variables with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_weights_of_keras(tmp_path, policy):
    import keras

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, dtype=keras.DTypePolicy(policy)),
            keras.layers.BatchNormalization(dtype=keras.DTypePolicy(policy)),
        ]
    )
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    found = open_checkpoint(path)
    dense, norm = model.layers
    expected = {f"layers/dense/vars/{i}": v for i, v in enumerate(dense.weights)}
    expected |= {f"layers/batch_normalization/vars/{i}": v for i, v in enumerate(norm.weights)}
    assert set(found.tensors) == set(expected)
    for name, variable in expected.items():
        tensor = found.tensors[name]
        array = np.asarray(keras.ops.convert_to_numpy(variable.value))
        assert (tensor.shape, tensor.dtype) == (tuple(variable.shape), array.dtype.name)
        assert bits(whole(tensor)) == bits(array)
        index = (slice(1, 2),) * len(tensor.shape)
        wide = tensor.read(index, "float64")
        assert np.array_equal(wide, array[index].astype(np.float64))


@pytest.fixture
def h5(tmp_path):
    """Makes an HDF5 file by a function."""

    def write(make):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w") as out:
            make(out)
        return path

    return write


def test_dtypes_of_hdf5(h5):
    arrays = {name: np.ones((2, 3)).astype(name) for name in NATIVE}

    def make(out):
        for name, array in arrays.items():
            out[f"group/{name}"] = array
        for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
            name = np.dtype(dtype).name
            out[name] = ONES.astype(dtype)
            out[name].attrs["dtype"] = name
        out["scalar"] = 2.5
        out["same"] = out["group/float32"]  # a second name: fine

    found = open_checkpoint(h5(make)).tensors
    for name, array in arrays.items():
        assert found[f"group/{name}"].dtype == name
        assert bits(whole(found[f"group/{name}"])) == bits(array)
    assert whole(found["bfloat16"]).tolist() == [[0x3F80] * 3] * 2
    assert whole(found["float8_e4m3fn"]).tolist() == [[0x38] * 3] * 2
    assert whole(found["scalar"]).shape == ()
    assert whole(found["scalar"]) == 2.5
    assert np.array_equal(whole(found["same"]), ONES)


def make_external(out):
    out.create_dataset("x", (4,), "u1", external=[("other.bin", 0, 4)])


def make_virtual(out):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    out.create_virtual_dataset("x", layout)


def make_cycle(out):
    out["group/x"] = ONES
    out["group/again"] = out["group"]


def make_bomb(out):
    group = out.create_group("0")
    for _ in range(40):
        below = group.create_group("a")
        group["b"] = below
        group = below


def make_opaque(out, told):
    out["x"] = ONES.astype(ml_dtypes.bfloat16)
    if told is not None:
        out["x"].attrs["dtype"] = told


def put(value):
    def make(out):
        out["x"] = value

    return make


def created(*args, **kwargs):
    def make(out):
        out.create_dataset("x", *args, **kwargs)

    return make


FILES = {
    "soft link": (put(h5py.SoftLink("/y")), ["object 'x'", "SoftLink", "not a link"]),
    "external link": (put(h5py.ExternalLink("other.h5", "/x")), ["ExternalLink", "in this file"]),
    "external data": (make_external, ["data in other files", "copy them in"]),
    "virtual": (make_virtual, ["data in other files"]),
    "cycle": (make_cycle, ["object 'group/again'", "once"]),
    "doubling": (make_bomb, ["'Group'", "once"]),
    "type": (put(np.dtype("f4")), ["'Datatype'", "a dataset, or a group"]),
    "string": (put("hello"), ["'object of shape ()'", "a fixed size"]),
    "references": (created((2,), h5py.ref_dtype), ["object of shape (2,)"]),
    "lists": (created((2,), h5py.vlen_dtype("f4")), ["object of shape (2,)"]),
    "nothing": (put(h5py.Empty("f4")), ["shape None"]),
    "not written": (created((1000,), "f4"), ["4000 bytes out of 0", "lie in the file"]),
    "absurd": (created((2**40,), "f4"), ["bytes out of 0", "lie in the file"]),
    "absurd chunks": (
        created((2**40,), "f4", chunks=(2**20,), compression="gzip"),
        ["bytes out of 0"],
    ),
    "large chunks": (
        created((2**25,), "f4", chunks=(2**25,), compression="gzip"),
        ["on at most 67,108,864 bytes"],
    ),
    "other filters": (
        created(data=np.arange(99), chunks=(9,), scaleoffset=0),
        ["filters [6]", "write it anew"],
    ),
    "not text": (lambda out: out.create_group(b"a\xff"), ["an HDF5 file that can be read"]),
}


@pytest.mark.parametrize("what", FILES)
def test_a_hostile_hdf5_file(h5, what):
    make, words = FILES[what]
    refused(h5(make), *words)


@pytest.mark.parametrize(
    "make",
    [
        put(np.bytes_(b"hello")),
        created(data=np.ones(2, "f4,i4")),
        created(data=np.ones(2, "c16")),
        *(partial(make_opaque, told=each) for each in (None, "float32", 3, ["bfloat16"])),
    ],
    ids=["string", "records", "complex128", "no dtype", "of other size", "a number", "a list"],
)
def test_what_is_not_decoded_of_hdf5_is_listed(h5, make):
    (tensor,) = open_checkpoint(h5(make)).tensors.values()
    assert "not decoded" in tensor.obstacle
    assert tensor.read_bytes(0, tensor.nbytes).size == tensor.nbytes > 0


def test_broken_hdf5_files(file, h5):
    whole_file = h5(put(np.ones((40, 40)))).read_bytes()
    refused(file(b"", "x.h5"), "not be empty")
    refused(file(b"hello", "x.h5"), "an HDF5 file that can be read")
    refused(file(b"version https://git-lfs.github.com/spec/v1\n", "x.h5"), "git lfs pull")
    refused(file(X, "x.h5"), "a ZIP archive")
    for size in (8, 100, 1000, len(whole_file) - 1):
        refused(file(whole_file[:size], "x.h5"), "an HDF5 file that can be read")


def test_deep_groups(h5):
    found = open_checkpoint(
        h5(lambda out: out.create_group("/a" * 500).create_dataset("x", data=1))
    )
    (tensor,) = found.tensors.values()
    assert whole(tensor) == 1


def test_without_h5py(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'h5py: pip install "idinit-ref\[export\]"'):
        open_checkpoint(file(b"x", "x.h5"))


# Fuzz ---------------------------------------------------------------------------------------------

TOKENS = [
    b"NaN", b"-0", b"1.0", b"1e2", b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b"-1",
    b"18446744073709551615", b"18446744073709551616", b"9" * 50, b"[[[[", b",", b"}", b'"',
    b"\x00", b"\xff", b"\n", b"0", b"00", b'"a"', b'"__metadata__"', b'"F4"', b'"F8_E8M0"',
]  # fmt: skip
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*CODES, "F4", "F6_E2M3", "F8_E8M0", "C128", "u8"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


@st.composite
def headers(draw):
    """A valid header and its data."""
    header, place = {}, 0
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(st.text(max_size=4), st.text(max_size=9)))
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        code = draw(st.sampled_from([*CODES, "F4", "F8_E8M0", "F9"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = prod(shape) * carrier(CODES[code]).itemsize if code in CODES else prod(shape) // 2
        if code == "F8_E8M0":
            size = prod(shape)
        header[name] = entry(place, place := place + size, code, shape)
    return header, draw(st.binary(min_size=place, max_size=place))


def mutate(draw, header):
    """Replace a value somewhere in the header, or what is in it."""
    places = [(header, key) for key in header]
    for value in header.values():
        places += [(value, key) for key in value]
        places += [(inner, i) for inner in value.values() if type(inner) is list
                   for i in range(len(inner))]  # fmt: skip
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    what = draw(st.sampled_from(["value", "nudge", "drop", "add", "copy"]))
    if what == "nudge" and isinstance(holder[key], int):
        holder[key] += draw(st.integers(-4, 4))
    elif what == "drop":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=4))] = draw(JSON_VALUES)
    elif what == "copy":
        holder[key] = copy.deepcopy(draw(st.sampled_from(places))[0])
    else:
        holder[key] = draw(JSON_VALUES)


def odd_text(draw, header):
    """The header in a form that few write: keys twice, more fields, entries as lists, spaces."""
    deep = st.integers(120, 130).map(lambda n: "[" * n + "]" * n)
    values = st.sampled_from(["-0", "1e999", "9" * 400, '"\\ud800"', '"\\ud83d\\ude00"']) | deep

    def some(pairs):
        pairs = [f"{json.dumps(key)}:{value}" for key, value in pairs]
        if pairs and draw(st.booleans()):
            pairs.append(draw(st.sampled_from(pairs)))
        space = draw(st.sampled_from(["", " ", "\n"]))
        return "{" + f"{space},{space}".join(draw(st.permutations(pairs))) + "}"

    items = []
    for name, value in header.items():
        pairs = [(key, json.dumps(inner)) for key, inner in value.items()]
        how = draw(st.sampled_from(["list", "plain", "plain", "more", "twice", "null", "code"]))
        if how == "more":
            value = draw(values | JSON_VALUES.map(json.dumps))
            pairs.append((draw(st.sampled_from(["x", "dtype", ""])), value))
        if how == "code" and name != "__metadata__":
            pairs[0] = ("dtype", f"{{{pairs[0][1]}:null}}")
        text = "{" + ",".join(f"{json.dumps(key)}:{inner}" for key, inner in pairs) + "}"
        if how == "list":
            text = json.dumps(list(value.values())) if isinstance(value, dict) else text
        if how == "null" and name == "__metadata__":
            text = "null"
        if how == "twice":
            text = some(pairs)
        items.append((name, text))
    ends = st.sampled_from(["", " ", "\n\t", "\ufeff", "\ufeff "])
    return (draw(ends) + some(items)).encode() + draw(st.sampled_from([b"", b" ", b"\n", b"\0"]))


@st.composite
def files(draw):
    """A file that was valid once."""
    header, data = draw(headers())
    how = draw(
        st.sampled_from(
            [
                "order",
                "json",
                "json",
                "offsets",
                "text",
                "length",
                "bytes",
                "size",
                "noise",
                "odd",
                "odd",
            ]
        )
    )
    if how == "noise":
        return draw(st.binary(max_size=99)) if draw(st.booleans()) else pack(draw(st.binary()))
    if how == "order":
        header = {name: header[name] for name in draw(st.permutations(list(header)))}
    if how == "json":
        for _ in range(draw(st.integers(1, 3))):
            with_entries = all(isinstance(value, dict) for value in header.values())
            if with_entries:
                mutate(draw, header)
    if how == "offsets":
        entries = [value for name, value in header.items() if name != "__metadata__"]
        offsets = draw(st.permutations([value["data_offsets"] for value in entries]))
        for value, moved in zip(entries, offsets, strict=True):
            value["data_offsets"] = moved
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode(errors="replace")
    if how == "odd":
        text = odd_text(draw, header)
    if how == "text":
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 6))
        text = text[:at] + draw(st.sampled_from(TOKENS)) + text[at + cut :]
    content = pack(text + b" " * draw(st.integers(0, 9)), data)
    if how == "length":
        length = draw(st.integers(0, 2**64 - 1) | st.integers(0, len(content) + 9))
        content = struct.pack("<Q", length) + content[8:]
    if how == "bytes":
        content = bytearray(content)
        for _ in range(draw(st.integers(1, 5))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    if how == "size":
        content = content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=20))
    event(how)
    return bytes(content)


def words_of_own_reader():
    """The dtypes that the format's own reader knows, as it says itself."""
    with pytest.raises(safetensors.SafetensorError, match="unknown variant") as caught:
        safetensors.deserialize(pack({"a": entry(0, 1, "?")}, b"x"))
    return set(re.findall("`([A-Z0-9_]+)`", str(caught.value)))


KNOWN = words_of_own_reader()


def own_reader(content):
    """What the format's own reader says of a file: by name, or None if it refuses it."""
    try:
        held = safetensors.deserialize(bytes(content))
    except safetensors.SafetensorError:
        return None
    return {name: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for name, t in held}


def known(content, found):
    """A file in which what we alone accept is made as others accept it: dtypes, and the BOM."""
    header = {"__metadata__": found.metadata} if found.metadata else {}
    start = 8 + int.from_bytes(content[:8], "little")
    odd = content[8:start].startswith(b"\xef\xbb\xbf")
    for name, tensor in found.tensors.items():
        code, shape = DTYPES.get(tensor.dtype, tensor.dtype), list(tensor.shape)
        odd = odd or code not in KNOWN
        if code not in KNOWN:
            code, shape = "U8", [tensor.nbytes]
        header[name] = entry(tensor.skip, tensor.skip + tensor.nbytes, code, shape)
    assert odd, "no BOM, no unknown dtype, and yet refused"
    return pack(header, content[start:])


def judge(path, content, log):
    """Assert that a file is read rightly, or refused in one line; return whether it was read."""
    path.write_bytes(content)
    log.clear()
    found, said = None, ""
    tracemalloc.start()
    try:
        found = open_checkpoint(path)
    except CheckpointError as problem:
        said = str(problem)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not said or said.isprintable()
    assert len(said) < 600
    assert peak < 20 * len(content) + 100_000
    theirs = own_reader(content)
    if found is None:
        assert theirs is None, said
    elif theirs is None:
        assert own_reader(known(content, found)) is not None
    else:
        assert {t.name for t in found.tensors.values()} == set(theirs)
        for name, (code, shape, data) in theirs.items():
            tensor = found.tensors[name]
            assert DTYPES.get(tensor.dtype, tensor.dtype) == code
            assert tensor.shape == shape
            if tensor.obstacle:
                assert tensor.dtype not in DTYPES
                block = tensor.read_bytes(0, tensor.nbytes)
            else:
                block = whole(tensor)
                assert block.shape == shape
            assert bits(block) == (bytes(map(bool, data)) if code == "BOOL" else data)
        path.write_bytes(content)
        with safetensors.safe_open(path, "np") as same:
            assert (same.metadata() or {}) == found.metadata
    assert all(at + count <= len(content) for at, count in log)
    return found is not None


def fuzz(tmp_path, log, examples):
    """Judge so many files; return how many of them were read, and how many refused."""
    counts = [0, 0]

    @settings(max_examples=examples, database=None)
    @given(content=files())
    def run(content):
        counts[judge(tmp_path / "x.safetensors", content, log)] += 1

    run()
    assert sum(counts) >= examples
    assert min(counts) > examples / 10, "the files are all good, or all bad"


def test_50_headers(tmp_path, watched):
    fuzz(tmp_path, watched, 50)


@pytest.mark.nightly
def test_10_000_headers(tmp_path, watched):
    fuzz(tmp_path, watched, 10_000)


def test_that_the_watch_can_fail(file, watched):
    path = file(changed())
    with builtins.open(path, "rb") as plain:
        assert plain.read()
    assert not watched  # what is not opened by the reader is not its own
    open_checkpoint(path)
    assert watched
    assert max(at + count for at, count in watched) <= path.stat().st_size - len(DATA)


def test_what_is_not_there_is_said_so_whatever_its_suffix(tmp_path):
    for name in ("gone", "gone.bin", "gone.safetensors", "gone.npz"):
        with pytest.raises(FileNotFoundError) as caught:
            open_checkpoint(tmp_path / name)
        assert caught.value.errno == errno.ENOENT
        assert f"path = {str(tmp_path / name)!r}, but it cannot be read" in str(caught.value)
        assert "No such file" in str(caught.value)
        assert "; name one that exists" in str(caught.value)
