"""Files: their bytes, their values, their memory, and that they are whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import by_hand
import by_name
import idinit_ref as ir
from idinit_ref.files import bits, containers, storage, whole, writing
from idinit_ref.files.bits import DTYPES, FLOATS
from idinit_ref.files.reading import open_checkpoint
from idinit_ref.files.writing import file_plans, save

REAL = {  # precision and least normal exponent, for by_hand.nearest
    "float64": (53, -1022),
    "float32": (24, -126),
    "float16": (11, -14),
    "bfloat16": (8, -126),
    "float8_e4m3fn": (4, -6),
    "float8_e5m2": (3, -14),
    "complex64": (24, -126),
}
PLANS = {
    "tall": ((5, 3), "transit", {"gain": 0.3}),
    "wide": ((3, 8), "transit", {"wide": "fold_rms"}),
    "zero": ((4, 9), "zero", {"eps": 0.3}),
    "packed": ((4, 12), "transit", {"layout": "IO", "blocks": (4, 4, 4)}),
    "roles": ((6, 3), ("transit", "zero", "zero"), {"blocks": (3, 1, 2), "eps": 0.3, "gain": 0.3}),
    "conv": ((6, 2, 3, 3), "zero", {"eps": 0.1, "groups": 2}),
    "centre": ((4, 4, 3), "transit", {"taps": "center", "tap": (2,)}),
    "diagonal": ((7, 2, 3, 3), "transit", {"taps": "diagonal", "tap": (0, 1)}),
    "phases": ((4, 3, 4, 5), "transit", {"layout": "IOHW", "stride": (2, -3), "tap": (1, 2)}),
    "shifted": ((3, 11), "zero", {"eps": 0.3, "form": "shifted"}),
    "noise": ((4, 6), "transit", {"loosen": 0.125, "seed": 3}),
    "noise at entries": ((6, 4), "transit", {"loosen": 0.125, "loosen_at": "entries"}),
    "empty": ((0, 3), "transit", {}),
}
MADE = {name: ir.plan(shape, role, **options) for name, (shape, role, options) in PLANS.items()}


def content(path):
    """Header and data of a file."""
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    return json.loads(data[8 : 8 + size]), data[8 + size :]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def old(file):
    """A file of that name that is there before; an error must leave it and nothing else."""
    file.write_bytes(b"old")
    yield file
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_bytes() == b"old"


# What is in it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_holds_the_specified_entries_rounded_once(dtype, file):
    save(file, MADE, dtype=dtype)
    loaded = safetensors.torch.load_file(file)
    assert set(loaded) == set(PLANS)
    for name, (shape, role, options) in PLANS.items():
        weight = loaded[name]
        assert weight.dtype == getattr(torch, dtype)
        assert tuple(weight.shape) == shape
        exact = by_hand.weight(shape, role, **options)
        expected = [by_hand.nearest(value, *REAL[dtype]) for value in exact.reshape(-1)]
        found = weight.to(torch.complex128 if dtype == "complex64" else torch.float64)
        assert found.reshape(-1).tolist() == expected, name


def test_plans_are_float32_and_arrays_as_they_are_unless_a_dtype_is_named(file):
    arrays = {"half": np.ones(2, np.float16), "count": np.array(7), "mask": np.array([True])}
    save(file, {"plan": ir.plan((2, 2)), **arrays})
    header, _ = content(file)
    assert {k: v["dtype"] for k, v in header.items() if k in {*arrays, "plan"}} == {
        "plan": "F32", "half": "F16", "count": "I64", "mask": "BOOL",
    }  # fmt: skip
    save(file, {"plan": ir.plan((2, 2)), **arrays}, dtype=torch.bfloat16)
    header, _ = content(file)
    assert {k: v["dtype"] for k, v in header.items() if k in {*arrays, "plan"}} == {
        "plan": "BF16", "half": "BF16", "count": "I64", "mask": "BOOL",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_finite_value_of_a_narrow_dtype_becomes_its_own_bits(name, file):
    unsigned = np.uint16 if name == "bfloat16" else np.uint8
    bits = np.arange(np.iinfo(unsigned).max + 1).astype(unsigned)
    own = bits.view(getattr(ml_dtypes, name))
    with np.errstate(invalid="ignore"):  # of the NaNs among them
        finite = np.isfinite(own)
    save(file, {"a": own[finite].astype(np.float64)}, dtype=name)
    assert content(file)[1] == bits[finite].tobytes()
    save(file, {"a": own[finite]})
    assert content(file)[1] == bits[finite].tobytes()


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "complex64"])
@pytest.mark.parametrize("source", [np.float64, np.float32])
def test_nan_and_infinity_stay_what_they_are(name, source, file):
    values = np.array([1.5, np.nan, np.inf, -np.nan, -0.0, -np.inf, 0.0], source)
    if name == "float8_e4m3fn":  # it has no infinity
        values = values[~np.isinf(values)]
    save(file, {"a": values}, dtype=name)
    assert content(file)[1] == values.astype(getattr(ml_dtypes, name, name)).tobytes()


def test_nan_and_infinity_as_complex_numbers(file):
    save(file, {"a": np.array([np.nan, -np.inf, 2.0])}, dtype="complex64")
    held = np.frombuffer(content(file)[1], np.complex64)
    assert np.isnan(held[0].real)
    assert held[1:].tolist() == [complex(-np.inf, 0), 2 + 0j]
    assert held[0].imag == 0


def test_a_dtype_may_be_of_any_framework(file):
    import jax.numpy as jnp
    import tensorflow as tf

    for dtype in (
        "bfloat16",
        np.dtype(ml_dtypes.bfloat16),
        ml_dtypes.bfloat16,
        torch.bfloat16,
        jnp.bfloat16,
        tf.bfloat16,
    ):
        save(file, {"a": ir.plan((2, 2))}, dtype=dtype)
        assert content(file)[0]["a"]["dtype"] == "BF16"
    for dtype in (np.float32, jnp.float32, tf.float32, torch.float32):
        save(file, {"a": ir.plan((2, 2))}, dtype=dtype)
        assert content(file)[0]["a"]["dtype"] == "F32"


@given(hnp.arrays(np.float64, 20, elements=st.floats(-400, 400)))
def test_arrays_are_rounded_to_nearest_even(values):
    for name in ("bfloat16", "float8_e4m3fn", "float16", "float32"):
        tensor = storage.as_tensor("a", values)
        raw = b"".join(map(bytes, storage.stream(tensor, name)))
        held = np.frombuffer(raw, getattr(ml_dtypes, name, name)).astype(np.float64)
        assert held.tolist() == [by_hand.nearest(value, *REAL[name]) for value in values]
        assert np.signbit(held).tolist() == np.signbit(values).tolist()


def test_bytes_are_those_of_the_formats_own_writer(file):
    """All dtypes, names that need escapes, a scalar and an empty tensor; metadata apart."""
    values = {
        f'{name}.é"/{k}': torch.arange(3).to(getattr(torch, name))
        for k, name in enumerate(sorted(DTYPES))
    }
    values |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "b": torch.ones(2, 2)}
    theirs = file.with_name("theirs.safetensors")
    safetensors.torch.save_file(values, theirs, metadata={"format": "pt"})
    view = {"bfloat16": torch.uint16, "float8_e4m3fn": torch.uint8, "float8_e5m2": torch.uint8}

    def to_numpy(tensor):
        name = str(tensor.dtype).removeprefix("torch.")
        if name in view:
            return tensor.view(view[name]).numpy().view(getattr(ml_dtypes, name))
        return tensor.numpy()

    save(file, {name: to_numpy(tensor) for name, tensor in reversed(values.items())})
    (our_header, our_data), (their_header, their_data) = content(file), content(theirs)
    assert our_header.pop("__metadata__")["format"] == their_header.pop("__metadata__")["format"]
    assert list(our_header.items()) == list(their_header.items())
    assert our_data == their_data
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata()["idinit_ref"] == ir.__version__


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(24.0).reshape(2, 3, 4)[:, ::-1, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float32(3), (2, 5)),
        np.arange(5, dtype=">f4"),
        np.arange(5, dtype=">i2"),
        np.array(2.5),
    ],
    ids=["transposed", "strided", "fortran", "broadcast", "big-endian", "big-endian-int", "scalar"],
)
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_arrays_of_any_strides_and_byte_order(array, dtype, file):
    save(file, {"a": array}, dtype=dtype)
    loaded = safetensors.torch.load_file(file)["a"]
    assert loaded.tolist() == array.tolist()


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (5, 1, 2), (1, 13)])
def test_blocks_of_any_size_make_the_same_bytes(shape, file, monkeypatch):
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    for block in (1, 2, 5, 8, 100):
        monkeypatch.setattr(storage, "BLOCK", block)
        save(file, {"a": array, "p": ir.plan((4, 6), layout="IO", loosen=0.5)}, dtype="float64")
        loaded = safetensors.torch.load_file(file)
        assert np.array_equal(loaded["a"].numpy(), array)
        expected = by_hand.weight((4, 6), layout="IO", loosen=0.5)
        assert np.array_equal(loaded["p"].numpy(), expected)


def test_the_metadata_makes_every_plan_again(file):
    save(file, {**MADE, "array": np.ones(2)}, metadata={"author": "me", "format": "np"})
    header, _ = content(file)
    about = header["__metadata__"]
    assert (about["author"], about["format"], about["idinit_ref"]) == ("me", "np", ir.__version__)
    options = json.loads(about["idinit_ref.plans"])
    assert {k: ir.plan(header[k]["shape"], **v) for k, v in options.items()} == MADE
    assert options["tall"] == {"role": "transit", "layout": "OI", "gain": 0.3}


def test_the_same_input_gives_the_same_bytes_with_progress_or_without(file):
    save(file, MADE)
    first = file.read_bytes()
    seen = []
    save(file, dict(reversed(MADE.items())), progress=lambda *state: seen.append(state))
    assert file.read_bytes() == first
    total = len(content(file)[1])
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_an_empty_checkpoint_is_a_file_too(file):
    save(file, {})
    assert safetensors.torch.load_file(file) == {}


def test_rules_to_file_to_a_models_state(file):
    model = torch.nn.ModuleDict(
        {"up_proj": torch.nn.Linear(3, 7), "down_proj": torch.nn.Linear(7, 3)}
    )
    net = torch.nn.ModuleDict({"mlp": model, "norm": torch.nn.LayerNorm(3)})
    save(file, by_name.plans({name: tuple(p.shape) for name, p in net.named_parameters()}))
    result = net.load_state_dict(safetensors.torch.load_file(file), strict=False)
    assert sorted(result.missing_keys) == ["norm.bias", "norm.weight"]
    x = torch.randn(4, 3)
    assert torch.equal(model["up_proj"](x), x[:, [0, 1, 2, 0, 1, 2, 0]])
    assert model["down_proj"](model["up_proj"](x)).abs().max() <= 2e-6 * x.abs().max()


# In shards ---------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.integers(1, 40),
    st.sampled_from(["model.safetensors", "my.model.safetensors"]),
)
def test_shards_are_those_of_hugging_face(sizes, limit, name):
    arrays = {f"t{k}": np.zeros(size, np.float16) for k, size in enumerate(sizes)}
    files = file_plans(name, arrays, shard_bytes=limit)
    state = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
    pattern = name.replace(".safetensors", "{suffix}.safetensors")
    theirs = split_torch_state_dict_into_shards(
        state, filename_pattern=pattern, max_shard_size=limit
    )
    expected = {key: sorted(names) for key, names in theirs.filename_to_tensors.items()}
    shards = [file for file in files if file.path.suffix == ".safetensors"]
    if sizes:
        assert {str(file.path): sorted(file.names) for file in shards} == expected
    assert [file.path.name for file in files[len(shards) :]] == (
        [f"{name}.index.json"] if len(shards) > 1 else []
    )
    assert len(shards) >= 1


def test_every_shard_is_a_file_and_the_index_knows_them(file):
    arrays = {"count": np.array(7), "large": np.ones(99, np.float32)}
    save(file, {**arrays, **MADE}, shard_bytes=150, metadata={"author": "me"})
    names = sorted(path.name for path in file.parent.iterdir())
    index = json.loads((file.parent / "model.safetensors.index.json").read_text())
    assert names[-1] == "model.safetensors.index.json"
    assert names[:-1] == sorted(set(index["weight_map"].values()))
    assert list(index) == ["metadata", "weight_map"]
    assert list(index["weight_map"]) == sorted({*arrays, *MADE})
    found, sizes = {}, 0
    for shard in names[:-1]:
        assert re.fullmatch(rf"model-\d{{5}}-of-{len(names) - 1:05d}\.safetensors", shard)
        header, data = content(file.parent / shard)
        about, sizes = header.pop("__metadata__"), sizes + len(data)
        plans = json.loads(about["idinit_ref.plans"])
        assert (about["author"], about["format"]) == ("me", "pt")
        assert {k: ir.plan(header[k]["shape"], **v) for k, v in plans.items()} == {
            k: MADE[k] for k in header if k in MADE
        }
        assert {index["weight_map"][name] for name in header} == {shard}
        assert len(data) <= 150 or len(header) == 1
        found |= safetensors.torch.load_file(file.parent / shard)
    assert index["metadata"] == {"total_size": sizes}
    for name, plan in MADE.items():
        assert np.array_equal(found[name].numpy(), plan.build(dtype="float32"))
    assert found["count"] == 7
    assert torch.equal(found["large"], torch.ones(99))


def test_a_sharded_checkpoint_is_a_models_own(tmp_path):
    """All weights of a GPT-2, through transformers, which reads every shard."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=31, n_positions=9))
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    made = {**state, **by_name.plans({name: array.shape for name, array in state.items()})}
    model.config.save_pretrained(tmp_path)
    save(tmp_path / "model.safetensors", made, shard_bytes=2000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 5
    loaded, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, parameter in loaded.named_parameters():
        value = made[name]
        expected = value.build(dtype="float32") if isinstance(value, ir.Plan) else value
        assert np.array_equal(parameter.detach().numpy(), expected), name


def test_old_forms_of_a_checkpoint_go_when_the_new_one_is_there(file):
    keep = ["model.bin", "my-model.safetensors", "model-1-of-2.safetensors", "model.npz"]
    for name in keep:
        (file.parent / name).write_bytes(b"other")
    (file.parent / "model-00099-of-00099.safetensors").mkdir()  # no file of a checkpoint
    keep.append("model-00099-of-00099.safetensors")

    def others():
        return sorted({path.name for path in file.parent.iterdir()} - set(keep))

    def planned(shard):
        return sorted(path.path.name for path in file_plans(file, MADE, shard_bytes=shard))

    save(file, MADE)
    assert others() == [file.name]
    for shard in (100, 200, 10**6, 100):
        save(file, MADE, shard_bytes=shard)
        assert others() == planned(shard)
    save(file, MADE)  # one file is asked for, and nothing is said of others
    assert others() == sorted([file.name, *planned(100)])
    assert set(keep) <= {path.name for path in file.parent.iterdir()}
    assert safetensors.torch.load_file(file).keys() == MADE.keys()


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def planned(file, **options):
    return {path.path.name for path in file_plans(file, MADE, **options)}


@pytest.mark.cases(1)
@pytest.mark.parametrize("before", [None, 100, 150, 10**6])
def test_shards_that_are_interrupted_anywhere_leave_the_old_files(before, file, monkeypatch):
    """At every block, every opening and every renaming; before, none, other or the same files."""
    if before:
        save(file, {"old": np.arange(90.0), **MADE}, shard_bytes=before)
    (file.parent / "other").write_bytes(b"")
    old = snapshot(file.parent)
    calls = 0

    def count(function, stop, problem):
        def counted(*arguments):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise problem
            return function(*arguments)

        return counted

    usual = os.replace
    for problem in (KeyboardInterrupt(), OSError(errno.EIO, "broken")):
        for stop in range(1, 999):
            calls, at = 0, (stop, problem)
            with monkeypatch.context() as patch:
                patch.setattr(whole, "open", count(open, *at), raising=False)
                patch.setattr(whole.os, "replace", count(usual, *at))
                try:
                    save(file, MADE, shard_bytes=150, progress=count(lambda *_: None, *at))
                except (KeyboardInterrupt, OSError):
                    assert snapshot(file.parent) == old, stop
                else:
                    break
        assert 20 < stop < 99
        assert set(snapshot(file.parent)) == planned(file, shard_bytes=150) | {"other"}
        for path in file.parent.iterdir():
            path.unlink()
        for name, data in old.items():
            (file.parent / name).write_bytes(data)


def test_an_interrupt_after_a_renaming_takes_it_back(file, monkeypatch):
    save(file, {"old": np.arange(90.0), **MADE}, shard_bytes=100)
    old, usual = snapshot(file.parent), os.replace
    calls = stop = 0

    def replace(*arguments):
        nonlocal calls
        calls += 1
        usual(*arguments)
        if calls == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(whole.os, "replace", replace)
    for stop in range(1, 99):  # noqa: B007 (`replace` uses it)
        calls = 0
        try:
            save(file, MADE, shard_bytes=150)
        except KeyboardInterrupt:
            assert snapshot(file.parent) == old
        else:
            break
    assert 10 < stop < 99


def test_an_interrupt_of_the_cleaning_up_goes_on_to_the_new_files(file, monkeypatch):
    save(file, MADE, shard_bytes=100)
    usual, calls = Path.unlink, 0

    def unlink(path):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        usual(path)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        save(file, MADE, shard_bytes=150)
    assert set(snapshot(file.parent)) == planned(file, shard_bytes=150)


def test_links_to_folders_are_followed_and_links_of_shards_replaced(tmp_path):
    """What a shard's link names (a cache's blob) may be of others too."""
    store, link = tmp_path / "store", tmp_path / "link"
    store.mkdir()
    link.symlink_to("store")
    shards = planned(link / "m.safetensors", shard_bytes=150)
    (tmp_path / "blob").write_bytes(b"blob")
    (store / min(shards)).symlink_to("../blob")
    (store / "m.safetensors").symlink_to("../blob")
    save(link / "m.safetensors", MADE, shard_bytes=150)
    assert (tmp_path / "blob").read_bytes() == b"blob"
    assert link.is_symlink()
    assert {path.name for path in store.iterdir()} == shards
    assert not any(path.is_symlink() for path in store.iterdir())


# NumPy's and Keras' files -------------------------------------------------------------------------

WITHOUT_BITS = [name for name in DTYPES if not name.startswith(("bfloat", "float8"))]


def values_of(names):
    found = {f"every/{name}": np.arange(3).astype(name) for name in names}
    found |= {"scalar": np.array(2.5), "none": np.zeros((0, 4)), "strided": np.ones((4, 6))[::2].T}
    return found | {"swapped": np.arange(300, dtype=">i2"), "é": np.arange(7.0)}


def test_npz_is_what_numpy_reads(tmp_path):
    values = values_of(WITHOUT_BITS)
    path = tmp_path / "model.npz"
    save(path, {**values, **MADE}, metadata={"author": "mé"})
    with np.load(path) as loaded:
        assert list(loaded) == [*values, *MADE]
        for name, value in values.items():
            assert loaded[name].dtype == value.dtype.newbyteorder("<")
            assert loaded[name].shape == value.shape
            assert loaded[name].tolist() == value.tolist()
        for name, (shape, role, options) in PLANS.items():
            exact = by_hand.weight(shape, role, **options).astype(np.float32)
            assert np.array_equal(loaded[name], exact)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.comment) == {"author": "mé", "idinit_ref": ir.__version__}
        comments = {i.filename.removesuffix(".npy"): i.comment for i in archive.infolist()}
    assert all(comments[name] == b"" for name in values)
    options = {name: json.loads(comments[name])["idinit_ref.plan"] for name in MADE}
    assert {k: ir.plan(MADE[k].shape, **v) for k, v in options.items()} == MADE


def test_npz_numbers_of_eight_bytes_where_four_are_too_few(tmp_path, monkeypatch):
    """At a limit of 500 bytes instead of 2 GB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)
    monkeypatch.setattr(containers, "_ZIP64", 500)
    values = {f"a{n}": np.arange(n) for n in (0, 40, 43, 44, 45, 46, 47, 48, 60, 100, 1000)}
    path = tmp_path / "model.npz"
    for count in range(len(values) + 1):
        some = dict(list(values.items())[:count])
        save(path, some)
        assert file_plans(path, some)[0].nbytes == path.stat().st_size
        with np.load(path) as loaded:
            assert {name: array.tolist() for name, array in loaded.items()} == {
                name: array.tolist() for name, array in some.items()
            }


def test_npz_options_that_are_too_long_for_a_comment_are_left_out(tmp_path):
    path = tmp_path / "model.npz"
    made = {"a": ir.plan((30_000, 1), blocks=(1,) * 30_000)}
    save(path, made, digests=True)
    with zipfile.ZipFile(path) as archive:
        assert list(json.loads(archive.infolist()[0].comment)) == ["idinit_ref.sha256"]
    with np.load(path) as loaded:
        assert loaded["a"].sum() == 30_000
    assert file_plans(path, made, digests=True)[0].nbytes == path.stat().st_size


def test_h5_is_what_h5py_reads(tmp_path):
    values = values_of(WITHOUT_BITS)
    path = tmp_path / "model.h5"
    save(path, {**values, **MADE}, metadata={"author": "mé"})
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"author": "mé", "idinit_ref": ir.__version__}
        for name, value in values.items():
            assert file[name].dtype == value.dtype.newbyteorder("<")
            assert file[name].shape == value.shape
            assert file[name][()].tolist() == value.tolist()
            assert dict(file[name].attrs) == {}
        for name, (shape, role, options) in PLANS.items():
            exact = by_hand.weight(shape, role, **options).astype(np.float32)
            assert np.array_equal(file[name][()], exact)
            assert file[name].chunks is None
            told = json.loads(file[name].attrs["idinit_ref.plan"])
            assert ir.plan(shape, **told) == MADE[name]


@pytest.mark.filterwarnings(  # Keras (3.15) converts its variables with np.array()
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keras_loads_its_weights(dtype, tmp_path):
    import keras

    layers = [keras.layers.Dense(size, dtype=dtype, name=f"d{size}") for size in (6, 3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    bias = np.arange(6, dtype=np.float32)
    made = {
        "layers/dense/vars/0": ir.plan((4, 6), layout="IO", gain=0.3),
        "layers/dense/vars/1": bias,
        "layers/dense_1/vars/0": ir.plan((6, 3), "zero", layout="IO", eps=0.1),
        "layers/dense_1/vars/1": np.zeros(3, np.float32),
    }
    path, again = tmp_path / "model.weights.h5", tmp_path / "again.weights.h5"
    save(path, made, dtype=dtype)
    model.load_weights(path)
    first = by_hand.weight((4, 6), layout="IO", gain=0.3)
    last = by_hand.weight((6, 3), "zero", layout="IO", eps=0.1)
    for layer, exact in zip(layers, (first, last), strict=True):
        found = np.asarray(layer.kernel.numpy(), np.float64).reshape(-1)
        assert found.tolist() == [by_hand.nearest(x, *REAL[dtype]) for x in exact.reshape(-1)]
    found = np.asarray(layers[0].bias.numpy(), np.float64)
    assert found.tolist() == bias.tolist()
    model.save_weights(again)  # so Keras stores the same
    with h5py.File(path) as ours, h5py.File(again) as theirs:
        for name in made:
            assert ours[name].dtype == theirs[name].dtype
            assert ours[name][()].tobytes() == theirs[name][()].tobytes()
            told = {k: v for k, v in ours[name].attrs.items() if not k.startswith("idinit_ref")}
            assert told == dict(theirs[name].attrs)


def test_a_missing_h5py_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'pip install "idinit-ref\[export\]"'):
        save(tmp_path / "a.h5", MADE)
    assert list(tmp_path.iterdir()) == []


# All formats --------------------------------------------------------------------------------------

NAMES = ["model.safetensors", "model.npz", "model.h5"]


@pytest.mark.parametrize("digests", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_would_be_written_is_written_and_nothing_before(name, digests, tmp_path, monkeypatch):
    made = {**values_of(["bool", "float32"]), **MADE, "large": ir.plan((700, 900))}
    options = {"metadata": {"author": "mé"}, "digests": digests}
    for shard in [None, 1, 1000, 10**7] if name == "model.safetensors" else [None]:
        folder = tmp_path / str(shard)
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(whole, "open", None, raising=False)
            files = file_plans(folder / name, made, shard_bytes=shard, **options)
        assert list(folder.iterdir()) == []
        save(folder / name, made, shard_bytes=shard, **options)
        assert {file.path: file.nbytes for file in files} == {
            path: path.stat().st_size for path in folder.iterdir()
        }
        assert sorted(name for file in files for name in file.names) == sorted(made)


def digests_of(path):
    """The digests that a file has, and the bytes of every tensor, read by others."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            told = {i.filename[:-4]: json.loads(i.comment) for i in archive.infolist()}
        with np.load(path) as loaded:
            held = {name: array.tobytes() for name, array in loaded.items()}
        return {name: about["idinit_ref.sha256"] for name, about in told.items()}, held
    if path.suffix == ".h5":
        found = {}

        def collect(name, at):
            if isinstance(at, h5py.Dataset):
                found[name] = (at.attrs["idinit_ref.sha256"], at[()].tobytes())

        with h5py.File(path) as file:
            file.visititems(collect)
        return {k: told for k, (told, _) in found.items()}, {k: v for k, (_, v) in found.items()}
    header, data = content(path)
    told = json.loads(header.pop("__metadata__")["idinit_ref.sha256"])
    return told, {name: data[slice(*at["data_offsets"])] for name, at in header.items()}


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_digests_are_those_of_the_bytes(name, dtype, tmp_path):
    made = {**values_of(["bool", "float32"]), **MADE, "large": ir.plan((700, 900), "zero", eps=0.1)}
    save(tmp_path / name, made, digests=True, dtype=dtype)
    told, held = digests_of(tmp_path / name)
    assert set(told) == set(made)
    assert told == {key: hashlib.sha256(data).hexdigest() for key, data in held.items()}


def test_shards_have_the_digests_of_their_own_tensors(file):
    save(file, MADE, digests=True, shard_bytes=150)
    for path in file.parent.glob("*.safetensors"):
        told, held = digests_of(path)
        assert told == {key: hashlib.sha256(data).hexdigest() for key, data in held.items()}


def test_the_same_input_gives_the_same_bytes_at_any_time(tmp_path):
    """In another process on another day. The next test covers HDF5, which asks the system."""
    arrays = values_of(["bool", "float32"])
    np.savez(tmp_path / "arrays.npz", **arrays)
    for name in NAMES:
        save(tmp_path / name, {**arrays, **MADE}, digests=True)
    first = snapshot(tmp_path)
    code = f"""if True:
        import time
        time.time = lambda: 1e9
        import numpy as np
        import idinit_ref as ir
        made = {{n: ir.plan(s, r, **o) for n, (s, r, o) in {PLANS!r}.items()}}
        arrays = np.load("arrays.npz")
        for name in {NAMES}:
            ir.save(name, {{**arrays, **made}}, digests=True)
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == first[name], name


def times(path):
    """The names of an HDF5 file whose headers hold a modification time: message type 14 or 18."""
    with h5py.File(path) as file:
        names = ["/"]
        file.visit(names.append)
        held = {name: h5py.h5o.get_info(file[name].id).hdr.mesg.present for name in names}
    return [name for name, messages in held.items() if messages >> 14 & 1 or messages >> 18 & 1]


def test_an_hdf5_file_holds_no_time(tmp_path):
    save(tmp_path / "ours.h5", {**values_of(["bool", "float32"]), **MADE}, digests=True)
    assert times(tmp_path / "ours.h5") == []
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("timed", data=np.ones(2), track_times=True)
    assert times(tmp_path / "other.h5") == ["timed"]


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_at_any_block_leaves_the_old_file(name, tmp_path):
    path, calls = tmp_path / name, 0
    path.write_bytes(b"old")

    def progress(*_):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt

    for stop in range(len(MADE)):  # noqa: B007 (`progress` uses it)
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            save(path, MADE, digests=True, progress=progress)
        assert snapshot(tmp_path) == {name: b"old"}
    stop += 1
    calls = 0
    save(path, MADE, digests=True, progress=progress)
    assert list(snapshot(tmp_path)) == [name]


class Broken:
    """A tensor that has not what it should have, in its second block."""

    dtype = "float32"
    shape = (2, storage.BLOCK)

    def __init__(self, problem):
        self.problem = problem

    def read(self, index, dtype):
        if index[0].start and self.problem is not None:
            raise self.problem
        return np.zeros(5 if index[0].start else storage.BLOCK, bits.carrier(dtype))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("problem", "error", "text"),
    [
        (OSError(errno.EIO, "gone"), OSError, "it could not be written (gone)"),
        (ir.errors.RoundingError("too large"), ir.errors.RoundingError, "too large"),
        (None, ir.errors.OptionError, "has 4,194,304 bytes; let read() return whole blocks"),
    ],
)
def test_a_tensor_that_fails_leaves_the_old_file(problem, error, text, name, tmp_path):
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(error, match=re.escape(text)):
        save(tmp_path / name, {**MADE, "broken": Broken(problem)}, digests=True)
    assert snapshot(tmp_path) == {name: b"old"}


def test_tensors_are_written_in_the_dtype_that_is_asked_for(file):
    noise = storage.NoiseTensor((5, 7), 0.5, 3)
    save(
        file,
        {
            "a": noise,
            "b": storage.PlanTensor(MADE["tall"]),
            "c": storage.ArrayTensor(np.ones(2, "i2")),
        },
    )
    loaded = safetensors.torch.load_file(file)
    rows = [np.random.Generator(np.random.Philox(key=[3, r])).standard_normal(7) for r in range(5)]
    assert np.array_equal(loaded["a"].numpy(), (0.5 * np.array(rows)).astype(np.float32))
    assert list(json.loads(content(file)[0]["__metadata__"]["idinit_ref.plans"])) == ["b"]
    assert (loaded["b"].dtype, loaded["c"].dtype) == (torch.float32, torch.int16)
    save(file, {"a": noise}, dtype="bfloat16")
    assert content(file)[0]["a"]["dtype"] == "BF16"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; where none may be mounted, files of at most 1 MiB."""
    import resource

    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    may = os.geteuid() == 0 and shutil.which("mount") is not None
    mounted = may and not subprocess.run(command, capture_output=True).returncode
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "shard"),
    [(name, None) for name in NAMES] + [("model.safetensors", 700_000)],
)
def test_a_disk_that_is_really_full_leaves_the_old_files(name, shard, small_disk):
    path = small_disk / name
    save(path, MADE, shard_bytes=shard and 150)
    old = snapshot(small_disk)
    made = {"a": ir.plan((400, 400)), "b": ir.plan((600, 700)), "c": ir.plan((400, 400))}
    with pytest.raises(OSError, match=r"No space left|File too large") as caught:
        save(path, made, digests=True, shard_bytes=shard)
    assert "check that the folder exists and is writable, with 2," in str(caught.value)
    assert snapshot(small_disk) == old
    save(path, {"a": ir.plan((400, 500))}, shard_bytes=shard)  # there is room, as before


# Memory and imports ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.safetensors", "float32"),
        ("a.safetensors", "bfloat16"),
        ("a.safetensors", "float64"),
        ("a.npz", "float32"),
        ("a.h5", "bfloat16"),
    ],
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_memory_is_bounded(name, dtype, role, tmp_path):
    """64 MB in float32, from a plan and from an array without memory of its own."""
    file = tmp_path / name
    made = {"a": ir.plan((4096, 4096), role), "b": np.broadcast_to(np.float32(1), (2**22,))}
    tracemalloc.start()
    try:
        save(file, made, dtype=dtype, digests=role == "zero")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert file.stat().st_size > (4096 * 4096 + 2**22) * bits.itemsize(dtype)
    file.unlink()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="as Linux tells it")
@pytest.mark.nightly
def test_the_whole_process_is_small(file):
    """A GB of bfloat16: the most memory that the system says the process had."""
    code = """if True:
        import sys
        import idinit_ref as ir
        layers = {f"{k}.weight": ir.plan((4096, 14336), "zero") for k in range(9)}
        ir.save(sys.argv[1], layers, dtype="bfloat16", digests=True)
        print(open("/proc/self/status").read())
    """
    run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert run.stderr == ""
    assert file.stat().st_size > 1e9
    file.unlink()
    assert 10e3 < int(re.search(r"VmHWM:\s*(\d+) kB", run.stdout)[1]) < 120e3


def test_a_model_of_70_billion_is_decided_without_its_memory():
    """A single file with digests; and shards of 5 GB with their headers and the index."""
    shapes = {"lm_head.weight": (128256, 8192)}
    for k in range(80):
        at, own = f"model.layers.{k}.self_attn", {"q": 8192, "k": 1024, "v": 1024, "o": 8192}
        shapes |= {f"{at}.{name}_proj.weight": (size, 8192) for name, size in own.items()}
        at = f"model.layers.{k}.mlp"
        shapes |= {f"{at}.{name}_proj.weight": (28672, 8192) for name in ("gate", "up")}
        shapes[f"{at}.down_proj.weight"] = (8192, 28672)
    data = 2 * (128256 * 8192 + 80 * (2 * 8192**2 + 2 * 1024 * 8192 + 3 * 28672 * 8192))
    made = by_name.plans(shapes)
    files = file_plans("m.safetensors", made, dtype="bfloat16", shard_bytes=5 * 10**9)
    (whole,) = file_plans("m.safetensors", made, dtype="bfloat16", digests=True)
    assert 0 < whole.nbytes - data < 400_000
    assert data / 5e9 < len(files) - 1 < 1.2 * data / 5e9
    assert all(file.nbytes < 5.001e9 for file in files)


def test_narrow_dtypes_need_no_ml_dtypes_and_nothing_heavy_is_loaded(file):
    code = """if True:
        import sys
        sys.modules["ml_dtypes"] = None
        import idinit_ref as ir
        from idinit_ref import save
        for dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            save(sys.argv[1], {"a": ir.plan((5, 3))}, dtype=dtype)
        heavy = {"torch", "jax", "tensorflow", "safetensors", "rich", "transformers", "h5py"}
        print(sorted(heavy & set(sys.modules)))
    """
    run = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
    loaded = safetensors.torch.load_file(file)["a"]
    assert loaded.dtype == torch.float8_e5m2
    assert loaded.float().tolist() == by_hand.weight((5, 3)).tolist()


# Whole or not at all -----------------------------------------------------------------------------


class Full:
    """A file that takes some writes, and then says that the disk is full."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("writes", [0, 1, 4])
def test_a_full_disk_leaves_nothing(writes, old, monkeypatch):
    def full(*arguments):
        return Full(open(*arguments), writes)

    monkeypatch.setattr(whole, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(old, MADE)
    assert caught.value.errno == errno.ENOSPC
    assert str(old) in str(caught.value)
    assert "bytes free; nothing was changed" in str(caught.value)


def test_a_file_size_limit_of_the_system_leaves_nothing(old):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(old, {"a": ir.plan((1024, 1024))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_interrupt_leaves_nothing(old):
    def stop(done, _):
        names = sorted(path.name for path in old.parent.iterdir())
        assert names[0] == old.name
        assert re.fullmatch(rf"{re.escape(old.name)}\.part-[0-9a-f]+", names[1])
        assert len(names) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(old, MADE, progress=stop)


def test_a_rename_that_fails_leaves_nothing(old, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(whole.os, "replace", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        save(old, MADE)


def test_no_permission(old, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(whole, "open", refuse, raising=False)
    with pytest.raises(PermissionError, match=r"Permission denied\); check that the folder"):
        save(old, MADE)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone.*No such file.*the folder exists"):
        save(tmp_path / "gone" / "a.safetensors", MADE)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file(old):
    with pytest.raises(NotADirectoryError, match="Not a directory"):
        save(old / "a.safetensors", MADE)


def test_a_path_that_is_a_folder(file):
    file.mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        save(file, MADE)
    assert list(file.parent.iterdir()) == [file]
    assert list(file.iterdir()) == []


def test_a_new_file_replaces_the_old_one_and_has_the_usual_rights(file):
    file.write_bytes(b"old")
    plain = file.with_name("plain")
    plain.write_bytes(b"")
    save(str(file), MADE)
    assert set(safetensors.torch.load_file(file)) == set(MADE)
    assert file.stat().st_mode == plain.stat().st_mode
    assert len(list(file.parent.iterdir())) == 2


def test_a_link_stays_and_the_file_that_it_names_is_replaced(tmp_path):
    store, link = tmp_path / "store", tmp_path / "link.safetensors"
    store.mkdir()
    (store / "blob").write_bytes(b"old")
    link.symlink_to("store/blob")
    save(
        link,
        MADE,
        progress=lambda *_: next(store.glob("blob.part-*")),  # beside the file, not the link
    )
    assert os.readlink(link) == "store/blob"
    assert set(safetensors.torch.load_file(store / "blob")) == set(MADE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blob", link.name, "store"]


# Bad input: one test each, before any file is opened ----------------------------------------------


@pytest.mark.parametrize(
    ("made", "options", "error", "text"),
    [
        ({3: MADE["tall"]}, {}, ir.errors.OptionError, "name = 3, but it should be a string"),
        ({"__metadata__": MADE["tall"]}, {}, ir.errors.OptionError, "'__metadata__'; rename it"),
        ({"a": [1.0]}, {}, ir.errors.OptionTypeError, "a = 'list', but it should be a Plan or a"),
        ({"a": np.array(["x"])}, {}, ir.errors.DTypeError, "dtype of a = 'str32'"),
        ({"a": np.zeros(2, np.longdouble)}, {}, ir.errors.DTypeError, "a checkpoint can hold bool"),
        (
            {"a": np.zeros(2, np.complex64)},
            {"dtype": "float32"},
            ir.errors.DTypeError,
            "dtype of a = 'complex64', but a conversion to float32 would lose the imaginary part",
        ),
        ({}, {"shard_bytes": 0}, ir.errors.OptionError, "shard_bytes = 0, but it should be an int"),
        ({}, {"shard_bytes": 5e9}, ir.errors.OptionTypeError, "shard_bytes = 5000000000.0, but"),
        ({}, {"shard_bytes": True}, ir.errors.OptionTypeError, "shard_bytes = True, but it should"),
        ({}, {"dtype": "int32"}, ir.errors.DTypeError, "dtype = 'int32', but it should be a"),
        ({}, {"dtype": "float7"}, ir.errors.DTypeError, "dtype = 'float7', but it should be a"),
        (
            {},
            {"dtype": "float8_e3m4"},
            ir.errors.DTypeError,
            "dtype = 'float8_e3m4', but a safetensors file holds float8_e5m2, float8_e4m3fn",
        ),
        ([1], {}, ir.errors.OptionTypeError, "plans_or_arrays = 'list', but it should be a ma"),
        (
            {"a\udc80": MADE["tall"]},
            {},
            ir.errors.OptionError,
            "name = 'a\\udc80', but it should be valid UTF-8",
        ),
        ({"a\nb": MADE["tall"]}, {}, ir.errors.OptionError, "name = 'a\\nb', but it should"),
        ({"a\\b": MADE["tall"]}, {}, ir.errors.OptionError, "should hold no backslash"),
        ({"a/../b": MADE["tall"]}, {}, ir.errors.OptionError, "no part between slashes should be"),
        (
            {"good": MADE["tall"], "a": ir.plan((3, 3), "zero")},
            {"dtype": "float8_e4m3fn"},
            ir.errors.RoundingError,
            "eps = 1e-06, but it rounds to 0 in float8_e4m3fn",
        ),
        (
            {"good": MADE["tall"], "head": np.array([1.0, -1e6])},
            {"dtype": "float16"},
            ir.errors.RoundingError,
            "head = -1000000.0, but the largest value of float16 is 65504.0",
        ),
        (
            {"a": np.array([np.nan, -np.inf])},
            {"dtype": "float8_e4m3fn"},
            ir.errors.RoundingError,
            "a = -inf, but the largest value of float8_e4m3fn is 448.0",
        ),
        (
            {"a": np.array([np.nan, 1e6])},
            {"dtype": "float16"},
            ir.errors.RoundingError,
            "a = 1000000.0, but the largest value of float16 is 65504.0",
        ),
        (
            {},
            {"metadata": ["steps"]},
            ir.errors.OptionTypeError,
            "metadata = 'list', but it should be a mapping with names as its keys; pass a dict",
        ),
        (
            {},
            {"metadata": {"by": "\ud800"}},
            ir.errors.OptionError,
            "metadata = '\\ud800', but it should be valid UTF-8",
        ),
        (
            {},
            {"metadata": {"steps": 3}},
            ir.errors.OptionTypeError,
            "metadata = {'steps': 3}, but keys and values should be strings; use json.dumps",
        ),
    ],
)  # fmt: skip
def test_bad_input(made, options, error, text, old, monkeypatch):
    monkeypatch.setattr(whole, "open", None, raising=False)
    with pytest.raises(error, match=re.escape(text)):
        save(old, made, **options)


@pytest.mark.parametrize("name", ["model.bin", "model", "model.safetensors.tmp", ""])
def test_other_suffixes(name, tmp_path):
    with pytest.raises(
        ir.errors.OptionError, match=rf"{name}'.*suffix should be \.safetensors, \.np"
    ):
        save(name and tmp_path / name, MADE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [3, None, b"model.safetensors"])
def test_a_path_of_the_wrong_type_is_refused(path):
    with pytest.raises(ir.errors.OptionTypeError, match=r"path = .*str or os.PathLike; write"):
        ir.save(path, {"w": ir.plan((2, 2))})


@pytest.mark.parametrize(
    ("name", "made", "options", "error", "text"),
    [
        (
            "a.npz",
            {},
            {"dtype": "bfloat16"},
            ir.errors.DTypeError,
            "dtype = 'bfloat16', but an .npz file holds float16, float32, complex64, float64; choo",
        ),
        (
            "a.npz",
            {"b": np.zeros(2, ml_dtypes.bfloat16)},
            {},
            ir.errors.DTypeError,
            "dtype of b = 'bfloat16', but an .npz file holds bool, uint8",
        ),
        (
            "a.h5",
            {"b": np.zeros(2, ml_dtypes.float8_e5m2)},
            {},
            ir.errors.DTypeError,
            "dtype of b = 'float8_e5m2', but an .h5 file holds bool, uint8",
        ),
        ("a.npz", {}, {"shard_bytes": 9}, ir.errors.OptionError, "only a .safetensors checkpoint"),
        ("a.h5", {}, {"shard_bytes": 9}, ir.errors.OptionError, "shard_bytes = 9, but only a .saf"),
        (
            "a.h5",
            {"a/b/c": MADE["tall"], "a/b": MADE["tall"]},
            {},
            ir.errors.OptionError,
            "'a/b' cannot be a tensor and a group of other tensors in an .h5 file",
        ),
        ("a.npz", {"a.npy": MADE["tall"]}, {}, ir.errors.OptionError, "name = 'a.npy', but numpy"),
        (
            "a.npz",
            {},
            {"metadata": {"long": "x" * 70_000}},
            ir.errors.OptionError,
            "metadata = ['idinit_ref', 'long'], but it has 70,035 bytes; an",
        ),
        (
            "a.h5",
            {},
            {"metadata": {"by": "a\0b"}},
            ir.errors.OptionError,
            "metadata = ['idinit_ref', 'by'], but an .h5 file cannot hold it",
        ),
        (
            "a.safetensors",
            {f"{k}": np.ones(1) for k in range(10)},
            {"shard_bytes": 1},
            ir.errors.OptionError,
            "shard_bytes = 1, but there should be at most 9 shards, not 10",
        ),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_a_format_cannot_hold(name, made, options, error, text, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(whole, "open", None, raising=False)
    monkeypatch.setattr(writing, "_SHARDS", 9)  # instead of 99,999
    for call in (save, file_plans):
        with pytest.raises(error, match=re.escape(text)):
            call(tmp_path / name, made, **options)
    assert snapshot(tmp_path) == {name: b"old"}


# What a second reader found ----------------------------------------------------------------------


def test_a_masked_array_is_refused(file):
    with pytest.raises(ir.errors.OptionTypeError, match=r"w = 'MaskedArray', .*value\.filled"):
        save(file, {"w": np.ma.masked_array(np.arange(3.0), [0, 1, 0])})
    assert not file.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5"])
def test_more_axes_than_every_numpy_has_are_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ir.errors.ShapeError, match="at most 32 axes"):
        save(path, {"w": np.zeros((1,) * 33, np.float32)})
    save(path, {"w": np.zeros((1,) * 32, np.float32)})
    assert open_checkpoint(path).tensors["w"].shape == (1,) * 32


def test_a_name_too_long_for_a_zip_file_is_refused(tmp_path):
    for long in ("n" * 65_532, "é" * 32_766):
        with pytest.raises(ir.errors.OptionError, match=r"an \.npz file holds names of 65,535"):
            save(tmp_path / "a.npz", {long: np.zeros(1)})
    save(tmp_path / "a.npz", {"n" * 65_531: np.zeros(1)})
    assert list(np.load(tmp_path / "a.npz")) == ["n" * 65_531]


@pytest.mark.parametrize("name", ["up/kernel", "fc.weight", "vars/a", "vars/0/a", "myvars/0"])
def test_keras_would_not_find_such_a_name(name, tmp_path):
    with pytest.raises(ir.errors.OptionError, match="only names LAYER/vars/NUMBER"):
        save(tmp_path / "a.weights.h5", {"dense/vars/0": np.zeros(2), name: np.zeros(2)})
    save(tmp_path / "a.h5", {name: np.zeros(2)})
    assert list(open_checkpoint(tmp_path / "a.h5").tensors) == [name]


def test_a_file_that_is_replaced_keeps_its_rights(file):
    file.write_bytes(b"private")
    file.chmod(0o600)
    save(file, MADE)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_name_as_long_as_a_file_can_have(tmp_path):
    for name in ("é" * 121 + ".safetensors", "n" * 243 + ".safetensors"):
        assert len(name.encode()) >= 254
        save(tmp_path / name, MADE)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()


def test_what_cannot_be_read_is_named_and_not_the_output(tmp_path):
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save(source, MADE)
    tensors = open_checkpoint(source).tensors
    source.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        save(out, tensors)
    assert caught.value.filename == str(source)
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_loses_an_entry_names_the_tensor(file):
    with pytest.raises(ir.errors.RoundingError, match=r"tensor 'b': eps = 1e-60"):
        save(file, {"a": ir.plan((2, 2)), "b": ir.plan((2, 2), "zero", eps=1e-60)})


def test_a_header_that_nobody_reads_is_not_written(file, monkeypatch):
    made = {f"{'n' * 100}{k}": MADE["tall"] for k in range(100)}
    monkeypatch.setattr(containers, "CAP", 25_000)
    save(file, made)  # without the plans' options
    assert "idinit_ref.plans" not in content(file)[0]["__metadata__"]
    assert file_plans(file, made)[0].nbytes == file.stat().st_size
    monkeypatch.setattr(containers, "CAP", 2_000)
    with pytest.raises(ir.errors.OptionError, match=r"should have at most 2,000; write several"):
        save(file, made)
    save(file, made, shard_bytes=500)
    assert len(list(file.parent.iterdir())) > 10


def test_noise_in_long_rows_takes_the_memory_of_a_block(file, monkeypatch):
    """Of a small block, since tracing takes long."""
    monkeypatch.setattr(storage, "BLOCK", 2**15)
    size = 2**19
    tensors = {
        "fill": storage.NoiseTensor((size,), 0.5, 3),
        "loose": ir.plan((2, size), loosen=0.5, seed=3),
    }
    tracemalloc.start()
    try:
        save(file, tensors, dtype="float32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * 8 * size
    loaded = safetensors.torch.load_file(file)

    def row(r):
        key = np.array([3, r], np.uint64)
        return 0.5 * np.random.Generator(np.random.Philox(key=key)).standard_normal(size)

    assert np.array_equal(loaded["fill"].numpy(), row(0).astype(np.float32))
    for r in range(2):
        exact = row(r)
        exact[r] += 1.0
        assert np.array_equal(loaded["loose"][r].numpy(), exact.astype(np.float32))
