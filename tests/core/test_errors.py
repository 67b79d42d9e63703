"""Bad input: each a clear error with the value, the expectation and the cure."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import idinit_ref as ir
from idinit_ref import errors

pytestmark = pytest.mark.every


def torch():
    """PyTorch, for the cases that need it."""
    return importlib.import_module("torch")


ROWS = [
    # call, error, what the message must say: the value, the expectation, the cure
    (lambda: ir.idi(5), errors.OptionTypeError, ["shape = 5", "tuple", "shape=(5, 5)"]),
    (lambda: ir.idiz(-3), errors.OptionTypeError, ["shape = -3", "tuple", "shape=(3, 3)"]),
    (lambda: ir.idi("44"), errors.OptionTypeError, ["shape = '44'", "tuple"]),
    (lambda: ir.idi((4, -3)), errors.ShapeError, ["(4, -3)", ">= 0", "axis 1 is -3", "length"]),
    (lambda: ir.idi((4, True)), errors.OptionTypeError, ["(4, True)", "integer", "a bool"]),
    (lambda: ir.idi((np.True_, 4)), errors.OptionTypeError, ["integer", "a bool"]),
    (lambda: ir.idi((4, 2.0)), errors.OptionTypeError, ["(4, 2.0)", "integer", "2.0"]),
    (lambda: ir.idi((4,)), errors.ShapeError, ["(4,)", "2 to 5 axes", "bias"]),
    (lambda: ir.idi(()), errors.ShapeError, ["()", "2 to 5 axes"]),
    (lambda: ir.idi((1,) * 6), errors.ShapeError, ["2 to 5 axes", "layout="]),
    (lambda: ir.idi((4, 4), layout="OIH"), errors.LayoutError, ["'OIH'", "(4, 4)", "2 axes"]),
    (lambda: ir.idi((4, 4), layout=""), errors.LayoutError, ["''", "(4, 4)", "2 axes"]),
    (lambda: ir.idi((4, 4), layout="OO"), errors.LayoutError, ["'OO'", "(4, 4)", "twice"]),
    (lambda: ir.idi((4, 4), layout="OH"), errors.LayoutError, ["'OH'", "inputs", "missing"]),
    (lambda: ir.idi((4, 4), layout="WI"), errors.LayoutError, ["'WI'", "outputs", "missing"]),
    (lambda: ir.idi((4, 4), layout="oi"), errors.LayoutError, ["'oi'", "'o' is not a capital"]),
    (lambda: ir.idi((1,) * 5, layout="OEIEI"), errors.LayoutError, ["'E' appears twice"]),
    (lambda: ir.idi((4, 4), layout="O1"), errors.LayoutError, ["'1'", "capital"]),
    (lambda: ir.idi((4, 4), layout=("O", "I")), errors.OptionTypeError, ["layout", "string"]),
    (
        lambda: ir.idi((5, 4), groups=2),
        errors.LayoutError,
        ["groups = 2", "(5, 4)", "divisor of 5"],
    ),
    (
        lambda: ir.idi((5, 4), groups=2, layout="IO", transposed=True),
        errors.LayoutError,
        ["groups = 2", "I axis", "divisor of 5"],
    ),
    (lambda: ir.idi((4, 4), groups=0), errors.OptionError, ["groups = 0", ">= 1", "range"]),
    (lambda: ir.idi((4, 4), groups=True), errors.OptionTypeError, ["groups = True", "integer"]),
    (lambda: ir.idi((4, 4), groups=2.0), errors.OptionTypeError, ["groups = 2.0", "integer"]),
    (lambda: ir.idi((4, 4), transposed=1), errors.OptionTypeError, ["transposed = 1", "True"]),
    (lambda: ir.idi((6, 4), blocks=(3, 2)), errors.LayoutError, ["(3, 2)", "6, not 5", "size"]),
    (lambda: ir.idi((6, 4), blocks=(7, -1)), errors.OptionError, ["(7, -1)", ">= 0"]),
    (lambda: ir.idi((6, 4), blocks=3), errors.OptionTypeError, ["blocks = 3", "tuple"]),
    (lambda: ir.idi((6, 4), blocks=(3, 3.0)), errors.OptionTypeError, ["(3, 3.0)", "integer"]),
    (lambda: ir.idi((4, 4), wide="fold"), errors.OptionError, ["'fold'", "'truncate'"]),
    (lambda: ir.idi((4, 4), wide=None), errors.OptionError, ["None", "'truncate'", "whole model"]),
    (lambda: ir.idi((4, 4), taps=None), errors.OptionError, ["None", "'outward'", "leave it out"]),
    (lambda: ir.idi((4, 4), taps="middle"), errors.OptionError, ["'middle'", "'center'"]),
    (lambda: ir.plan((4, 4), "one"), errors.OptionError, ["'one'", "'transit', 'zero'"]),
    (
        lambda: ir.idi((4, 4, 3), taps="center", tap=(3,)),
        errors.OptionError,
        ["tap = (3,)", "inside the kernel (3,)", "k - 1"],
    ),
    (lambda: ir.idi((4, 4, 3), taps="center", tap=(-1,)), errors.OptionError, ["(-1,)", ">= 0"]),
    (
        lambda: ir.idi((4, 4, 3), taps="center", tap=(1, 1)),
        errors.OptionError,
        ["(1, 1)", "1 kernel axes", "order D, H, W"],
    ),
    (
        lambda: ir.idi((4, 4), tap=(1,)),
        errors.OptionError,
        ["tap = (1,)", "0 kernel axes", "leave it out of a matrix"],
    ),
    (
        lambda: ir.idi((4, 4, 3), taps="channel_major", tap=(1,)),
        errors.OptionError,
        ["(1,)", "first tap", "taps='outward'"],
    ),
    (
        lambda: ir.idi((4, 4, 3), taps="outwards"),
        errors.OptionError,
        ["taps = 'outwards'", "'outward', 'diagonal', 'center'", "pick one"],
    ),
    (
        lambda: ir.idi((4, 4, 3), stride=(2, 2)),
        errors.OptionError,
        ["stride = (2, 2)", "1 kernel axes", "order D, H, W"],
    ),
    (
        lambda: ir.idi((4, 4), stride=(2,)),
        errors.OptionError,
        ["stride = (2,)", "a matrix (layout OI) has no phases", "leave it out"],
    ),
    (
        lambda: ir.plan((4, 4, 4), layout="EIO", stride=()),
        errors.OptionError,
        ["stride = ()", "a matrix (layout EIO) has no phases", "leave it out"],
    ),
    (
        lambda: ir.idiz((4, 4, 3, 3), stride=(2, 0)),
        errors.OptionError,
        ["stride = (2, 0)", "no 0", "transposed convolution"],
    ),
    (lambda: ir.idi((4, 4, 3), stride=2), errors.OptionTypeError, ["stride = 2", "tuple", "(2,)"]),
    (
        lambda: ir.idi((4, 4, 3), stride=(1.5,)),
        errors.OptionTypeError,
        ["(1.5,)", "integer", "strides of the layer"],
    ),
    (lambda: ir.plan((4, 9), form="shifted"), errors.OptionError, ["form = 'shifted'", "'zero'"]),
    (lambda: ir.idiz((4, 9), form="paired"), errors.OptionError, ["'pair', 'shifted'"]),
    (
        lambda: ir.idi((4, 4), loosen_at="entries"),
        errors.OptionError,
        ["loosen_at = 'entries'", "loosen is 0", "loosen="],
    ),
    (
        lambda: ir.idi((4, 4), loosen=0.1, loosen_at="rows"),
        errors.OptionError,
        ["loosen_at = 'rows'", "'all', 'entries'"],
    ),
    (
        lambda: ir.plan((4, 4), "zero", loosen_at="entries"),
        errors.OptionError,
        ["loosen_at", "transit"],
    ),
    (lambda: ir.idi((4, 4, 3), taps="center", tap=1), errors.OptionTypeError, ["tap = 1", "tuple"]),
    (lambda: ir.idi((4, 4), gain=0), errors.OptionError, ["gain = 0", "finite and not 0"]),
    (lambda: ir.idi((4, 4), gain=float("nan")), errors.OptionError, ["nan", "finite"]),
    (lambda: ir.idi((4, 4), gain=float("inf")), errors.OptionError, ["inf", "finite"]),
    (lambda: ir.idi((4, 4), gain=10**400), errors.OptionError, ["finite"]),
    (lambda: ir.idi((4, 4), gain="1"), errors.OptionTypeError, ["gain = '1'", "real"]),
    (lambda: ir.idi((4, 4), gain=None), errors.OptionTypeError, ["gain = None", "real"]),
    (lambda: ir.idi((4, 4), gain=True), errors.OptionTypeError, ["gain = True", "real"]),
    (lambda: ir.idi((4, 4), gain=1j), errors.OptionTypeError, ["gain = 1j", "real"]),
    (lambda: ir.idiz((4, 4), eps=0.0), errors.OptionError, ["eps = 0.0", "finite and not 0"]),
    (lambda: ir.idiz((4, 4), eps=-float("inf")), errors.OptionError, ["-inf", "finite"]),
    (lambda: ir.idiz((4, 4), eps=float("nan")), errors.OptionError, ["nan", "finite"]),
    (lambda: ir.plan((4, 4), "zero", gain=2.0), errors.OptionError, ["gain = 2.0", "transit"]),
    (lambda: ir.plan((4, 4), "zero", loosen=0.1), errors.OptionError, ["loosen", "transit"]),
    (lambda: ir.plan((4, 4), eps=1e-3), errors.OptionError, ["eps = 0.001", "role='zero'"]),
    (lambda: ir.idi((4, 4), loosen=-1), errors.OptionError, ["loosen = -1", "not negative"]),
    (lambda: ir.idi((4, 4), seed=-1), errors.OptionError, ["seed = -1", ">= 0"]),
    (lambda: ir.idi((4, 4), seed=2**63), errors.OptionError, ["seed", str(2**63)]),
    (lambda: ir.idi((4, 4), seed=1.5), errors.OptionTypeError, ["seed = 1.5", "integer"]),
    (lambda: ir.idi((4, 4), xp="torch"), errors.OptionTypeError, ["xp = 'torch'", "not its name"]),
    (lambda: ir.idi((4, 4), xp=3), errors.OptionTypeError, ["xp = 3", "namespace"]),
    (
        lambda: ir.idi((4, 4), dtype="float99"),
        errors.DTypeError,
        ["'float99'", "NumPy", "ml_dtypes"],
    ),
    (
        lambda: ir.idi((4, 4), dtype=torch().float32),
        errors.DTypeError,
        ["torch.float32", "NumPy", "xp="],
    ),
    (
        lambda: ir.idi((4, 4), xp=torch(), dtype=np.float32),
        errors.DTypeError,
        ["float32", "torch", "own"],
    ),
    (lambda: ir.idi((4, 4), device="mars"), errors.OptionError, ["device = 'mars'", "numpy"]),
    (lambda: ir.idi((4, 4), xp=torch(), device="mars"), errors.OptionError, ["'mars'", "torch"]),
    (
        lambda: ir.plan((4, 4)).block((slice(0, 4, 2), slice(None))),
        errors.IndexingError,
        ["slice(0, 4, 2)", "step 1"],
    ),
    (lambda: ir.plan((4, 4)).block((slice(None),)), errors.IndexingError, ["2 slices", "(4, 4)"]),
    (lambda: ir.plan((4, 4)).block((0, slice(None))), errors.IndexingError, ["slice(i, i + 1)"]),
    (lambda: ir.plan((4, 4)).block(...), errors.IndexingError, ["Ellipsis", "tuple of 2"]),
    (
        lambda: ir.plan((4, 4)).entries((slice(0.5), slice(None))),
        errors.IndexingError,
        ["0.5", "integer"],
    ),
    (lambda: ir.plan((4, 4)).write(np.zeros(15)), errors.ShapeError, ["(15,)", "16 places"]),
    (
        lambda: ir.plan((4, 4)).write(np.zeros(16), (4,)),
        errors.ShapeError,
        ["strides = (4,)", "each axis"],
    ),
    (
        lambda: ir.plan((4, 4)).write(np.zeros(16), (-4, 1)),
        errors.ShapeError,
        ["(-4, 1)", "bytes"],
    ),
    (lambda: ir.plan((4, 4)).write(np.zeros((16, 4))), errors.ShapeError, ["(16, 4)", "flat view"]),
    (lambda: ir.plan((4, 4)).write([0.0] * 16), errors.OptionTypeError, ["list", "written to"]),
    (
        lambda: ir.plan((4, 4)).write(np.zeros(16), (4, 0)),
        errors.ShapeError,
        ["(4, 0)", "share memory", "copy"],
    ),
    (
        lambda: ir.plan((4, 4)).write(np.zeros(16), (1.5, 1)),
        errors.OptionTypeError,
        ["strides", "1.5", "bytes"],
    ),
    (lambda: ir.plan((4, 4)).write(np.zeros(16), 3), errors.OptionTypeError, ["strides = 3"]),
    (lambda: ir.idi((2, 2), gain=np.complex64(1 + 5j)), errors.OptionTypeError, ["gain", "real"]),
    (lambda: ir.idi((2, 2), gain=torch().ones(())), errors.OptionTypeError, ["gain", "float(x)"]),
    (lambda: ir.idi((2**63, 2)), errors.ShapeError, [str(2**63), "< 2**63", "axis 0"]),
    (lambda: ir.idi((2**32, 2**31)), errors.ShapeError, ["9.22e+18 places", "block(index)"]),
    (lambda: ir.plan((2**32, 2**31)).entries(), errors.ShapeError, ["places", "entries(index)"]),
    (
        lambda: ir.idiz((2, 3), eps=-1e-9, dtype="float16"),
        errors.RoundingError,
        ["eps = -1e-09", "rounds to 0", "float16"],
    ),
]


@pytest.mark.parametrize(("call", "error", "says"), ROWS)
def test_bad_input(call, error, says):
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "; " in text, "no cure"
    for words in says:
        assert words in text


def test_every_error_is_in_the_family_and_is_what_python_would_raise():
    family = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(error, errors.IDInitError) for error in family)
    builtin = (ValueError, TypeError, IndexError)
    assert all(issubclass(e, builtin) for e in family if e is not errors.IDInitError)


@pytest.mark.parametrize("array", ["numpy", "torch"])
def test_write_leaves_the_target_untouched(array):
    if array == "numpy":
        import ml_dtypes

        flat = np.full(9, 7.0).astype(ml_dtypes.float8_e4m3fn)
    else:
        flat = torch().full((9,), 7.0).to(torch().float8_e4m3fn)
    with pytest.raises(errors.RoundingError):
        ir.plan((3, 3), "zero").write(flat)
    assert all(float(v) == 7.0 for v in flat)


def test_write_refuses_what_cannot_be_written_to():
    import jax.numpy as jnp

    with pytest.raises(errors.OptionTypeError, match=r"flat.*written to.*build\(\)"):
        ir.plan((3, 3)).write(jnp.zeros(9))
    whole = np.zeros(9)
    whole.flags.writeable = False
    with pytest.raises(errors.OptionTypeError, match="written to"):
        ir.plan((3, 3)).write(whole)


@pytest.mark.parametrize("make", [ir.idi, ir.idiz])
@pytest.mark.parametrize("size", [2**29, 2**31 - 1], ids=["past memory", "past addresses"])
def test_more_than_memory_holds_names_the_ways_that_do(make, size):
    with pytest.raises(MemoryError) as caught:
        make((size, size))
    assert f"size = '{size**2:,} entries of float64', but it should fit" in str(caught.value)
    assert "plan(...).block(index), or write all to a file with save" in str(caught.value)
    corner = ir.plan((size, size)).block((slice(size - 1, size), slice(size - 1, size)))
    assert corner.tolist() == [[1.0]]


def test_of_what_a_namespace_says_the_first_line_is_enough(monkeypatch):
    def zeros(*args, **kwargs):
        raise RuntimeError("it is out of reach\nat line 1\nat line 2")

    monkeypatch.setattr("array_api_compat.torch.zeros", zeros)
    with pytest.raises(errors.OptionError, match=r"says: it is out of reach; pass"):
        ir.idi((2, 2), xp=torch(), device="cpu")
