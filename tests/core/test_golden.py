"""The golden file, made by another route than the code, is met bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import by_hand
import idinit_ref as ir
from conftest import BACKENDS

pytestmark = pytest.mark.every

CASES = json.loads((Path(__file__).parents[1] / "golden.json").read_text())
NAMES = ("layout", "groups", "transposed", "blocks", "taps", "tap", "stride", "form")


def name(case):
    more = [f"{k}={case[k]}" for k in (*NAMES, "wide") if k in case]
    return "-".join([case["role"], str(case["value"]), str(case["shape"]), *more])


def options(case):
    found = {name: case[name] for name in NAMES if name in case}
    if case["role"] == "transit":
        return found | {"gain": case["value"], "wide": case.get("wide", "truncate")}
    return found | {"eps": case["value"]}


def test_the_file_is_whole():
    assert len(CASES) == 234


@pytest.mark.parametrize("case", CASES, ids=name)
def test_golden(case):
    plan = ir.plan(case["shape"], case["role"], **options(case))
    array = plan.build()
    assert array.dtype == np.float64
    assert array.shape == tuple(case["shape"])
    assert hashlib.sha256(array.tobytes()).hexdigest() == case["sha256_f64"]
    positions, values = plan.entries()
    assert [[p, v] for p, v in zip(positions, values, strict=True)] == case["entries"]
    assert plan.nnz == len(case["entries"])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_by_hand_agrees_with_golden(case):
    """The tests' own oracle is held to the same file."""
    array = by_hand.weight(tuple(case["shape"]), case["role"], **options(case))
    assert hashlib.sha256(array.tobytes()).hexdigest() == case["sha256_f64"]


EAGER = [backend for backend in BACKENDS if not backend.jit]
JIT = [backend for backend in BACKENDS if backend.jit]


def made(backend, case):
    plan = ir.plan(case["shape"], case["role"], **options(case))
    make = lambda: plan.build(backend.xp, backend.dtype("float64"), backend.at())  # noqa: E731
    return hashlib.sha256(np.ascontiguousarray(backend.numpy(backend.call(make)))).hexdigest()


@pytest.mark.cases(120)
@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("backend", EAGER, ids=lambda backend: backend.name)
def test_golden_in_every_namespace(backend, x64, case):
    assert made(backend, case) == case["sha256_f64"]


@pytest.mark.nightly  # JAX compiles each case anew; the digests hold a part of them every day
@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("backend", JIT, ids=lambda backend: backend.name)
def test_golden_compiled(backend, x64, case):
    assert made(backend, case) == case["sha256_f64"]
