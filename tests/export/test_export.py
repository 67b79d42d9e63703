"""The file: its bytes, its values, its memory, and that it is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import by_hand
import idinit_ref as ir
from idinit_ref import export, rules
from idinit_ref.export import DTYPES, FLOATS, save

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
    "conv": ((6, 2, 3, 3), "zero", {"eps": 0.1, "groups": 2}),
    "centre": ((4, 4, 3), "transit", {"taps": "center", "tap": (2,)}),
    "noise": ((4, 6), "transit", {"loosen": 0.125, "seed": 3}),
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
        tensor = export._Tensor("a", values, name)
        raw = b"".join(tensor.chunks())
        held = np.frombuffer(raw, getattr(ml_dtypes, name, name)).astype(np.float64)
        assert held.tolist() == [by_hand.nearest(value, *REAL[name]) for value in values]
        assert np.signbit(held).tolist() == np.signbit(values).tolist()


def test_bytes_are_those_of_the_formats_own_writer(file):
    """All dtypes, names that need escapes, a scalar and an empty tensor; metadata apart."""
    values = {
        f"{name}.é\n/{k}": torch.arange(3).to(getattr(torch, name))
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
        monkeypatch.setattr(export, "_BLOCK", block)
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
    save(file, rules.plans({name: tuple(p.shape) for name, p in net.named_parameters()}))
    result = net.load_state_dict(safetensors.torch.load_file(file), strict=False)
    assert sorted(result.missing_keys) == ["norm.bias", "norm.weight"]
    x = torch.randn(4, 3)
    assert torch.equal(model["up_proj"](x), x[:, [0, 1, 2, 0, 1, 2, 0]])
    assert model["down_proj"](model["up_proj"](x)).abs().max() <= 2e-6 * x.abs().max()


# Memory and imports ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_memory_is_bounded(dtype, role, file):
    """64 MB in float32, from a plan and from an array without memory of its own."""
    made = {"a": ir.plan((4096, 4096), role), "b": np.broadcast_to(np.float32(1), (2**22,))}
    tracemalloc.start()
    try:
        save(file, made, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40e6
    assert file.stat().st_size > (4096 * 4096 + 2**22) * export.itemsize(dtype)
    file.unlink()


def test_narrow_dtypes_need_no_ml_dtypes_and_nothing_heavy_is_loaded(file):
    code = """if True:
        import sys
        sys.modules["ml_dtypes"] = None
        import idinit_ref as ir
        from idinit_ref.export import save
        for dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            save(sys.argv[1], {"a": ir.plan((5, 3))}, dtype=dtype)
        heavy = {"torch", "jax", "tensorflow", "safetensors", "rich", "transformers"}
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

    monkeypatch.setattr(export, "open", full, raising=False)
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

    monkeypatch.setattr(export.os, "replace", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        save(old, MADE)


def test_no_permission(old, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(export, "open", refuse, raising=False)
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
        ({"a": np.zeros(2, np.longdouble)}, {}, ir.errors.DTypeError, "safetensors file holds"),
        (
            {"a": np.zeros(2, np.complex64)},
            {"dtype": "float32"},
            ir.errors.DTypeError,
            "dtype of a = 'complex64', but as float32 it would lose its imaginary part",
        ),
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
            "name = 'a\\udc80', but it should be text that UTF-8 holds",
        ),
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
            "metadata = '\\ud800', but it should be text that UTF-8 holds",
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
    monkeypatch.setattr(export, "open", None, raising=False)
    with pytest.raises(error, match=re.escape(text)):
        save(old, made, **options)


@pytest.mark.parametrize("name", ["model.bin", "model", "model.safetensors.tmp", ""])
def test_other_suffixes(name, tmp_path):
    with pytest.raises(ir.errors.OptionError, match=rf"{name}'.*should be \.safetensors; give a"):
        save(name and tmp_path / name, MADE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [3, None, b"model.safetensors"])
def test_a_path_of_the_wrong_type_is_refused(path):
    with pytest.raises(ir.errors.OptionTypeError, match=r"path = .*str or os.PathLike; write"):
        ir.save(path, {"w": ir.plan((2, 2))})
