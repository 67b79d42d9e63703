"""The golden file, made by another route than the code, is met bit for bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import by_hand
import idinit_ref as ir

CASES = json.loads((Path(__file__).parents[1] / "golden.json").read_text())
NAMES = ("layout", "groups", "transposed", "blocks", "taps", "tap")


def options(case):
    found = {name: case[name] for name in NAMES if name in case}
    if case["role"] == "transit":
        return found | {"gain": case["value"], "wide": case.get("wide", "truncate")}
    return found | {"eps": case["value"]}


def test_the_file_is_whole():
    assert len(CASES) == 107


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['role']}-{c['value']}-{c['shape']}")
def test_golden(case):
    plan = ir.plan(case["shape"], case["role"], **options(case))
    array = plan.build()
    assert array.dtype == np.float64
    assert array.shape == tuple(case["shape"])
    assert hashlib.sha256(array.tobytes()).hexdigest() == case["sha256_f64"]
    positions, values = plan.entries()
    assert [[p, v] for p, v in zip(positions, values, strict=True)] == case["entries"]
    assert plan.nnz == len(case["entries"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['role']}-{c['value']}-{c['shape']}")
def test_by_hand_agrees_with_golden(case):
    """The tests' own oracle is held to the same file."""
    array = by_hand.weight(tuple(case["shape"]), case["role"], **options(case))
    assert hashlib.sha256(array.tobytes()).hexdigest() == case["sha256_f64"]
