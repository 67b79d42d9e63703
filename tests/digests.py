"""The table of digests: one SHA-256 for each weight and dtype, whatever makes it.

`python tests/digests.py` writes `digests.json` anew, from `by_hand` and exact fractions alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

import by_hand

PATH = Path(__file__).with_name("digests.json")

CASES = [
    ((5, 5), "transit", {}),
    ((7, 3), "transit", {"gain": -0.75}),
    ((3, 7), "transit", {"gain": 1 / 3}),
    ((3, 7), "transit", {"wide": "fold_rms"}),
    ((3, 8), "transit", {"wide": "fold_mean", "gain": 1.00390625093}),
    ((6, 4), "zero", {}),
    ((4, 9), "zero", {"eps": 1e-5}),
    ((6, 1), "zero", {}),
    ((5, 8), "transit", {"layout": "IO"}),
    ((11, 5), "zero", {"blocks": (5, 3, 3)}),
    ((3, 4, 6), "zero", {"layout": "EOI"}),
    ((6, 2, 3, 3), "transit", {"groups": 2, "taps": "channel_major"}),
    (
        (6, 2, 3, 3),
        "zero",
        {"layout": "IOHW", "groups": 3, "transposed": True, "taps": "channel_major"},
    ),
    ((3, 3, 2, 5), "transit", {"layout": "HWIO", "taps": "spatial_major"}),
    ((4, 3, 4), "transit", {"taps": "center", "gain": 0.1}),
    ((2, 3, 2, 3, 2), "zero", {"taps": "center", "tap": (1, 2, 0)}),
    ((6, 5), "transit", {"loosen": 0.01, "seed": 7}),
    (
        (4, 2, 3),
        "transit",
        {"loosen": 0.1, "seed": 1, "groups": 2, "taps": "channel_major"},
    ),
    ((6, 2, 3, 3), "transit", {"groups": 2}),
    ((5, 2, 4, 3), "transit", {"tap": (0, 1), "gain": -0.75}),
    ((3, 3, 2, 5), "zero", {"layout": "HWIO"}),
    ((9, 4, 3), "transit", {"taps": "diagonal"}),
    ((3, 2, 4, 4), "transit", {"layout": "IOHW", "transposed": True, "stride": (2, 2)}),
    ((5, 3, 2), "zero", {"layout": "WIO", "stride": (-2,), "tap": (2,), "taps": "center"}),
    ((4, 11), "zero", {"form": "shifted", "eps": 1e-5}),
    ((6, 5), "transit", {"loosen": 0.01, "loosen_at": "entries", "seed": 7}),
    ((4, 3, 2), "transit", {"layout": "WIO", "stride": (-3,), "loosen": 0.1}),
]
FORMATS = {
    "float64": (53, -1022),
    "float32": (24, -126),
    "float16": (11, -14),
    "bfloat16": (8, -126),
}
DTYPES = [*FORMATS, "complex64"]


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float64 values rounded once, as the bytes of a dtype; bfloat16 as uint16."""
    form = FORMATS["float32" if dtype == "complex64" else dtype]
    rounded = np.array([by_hand.nearest(v, *form) for v in values.reshape(-1)], np.float64)
    if dtype == "bfloat16":
        return (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return rounded.astype(dtype)


def digest(array: np.ndarray) -> str:
    """The SHA-256 of an array's bytes in row-major order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def table() -> list[dict[str, str]]:
    """One row a case, computed without the core."""
    weights = (by_hand.weight(shape, role, **options) for shape, role, options in CASES)
    return [{dtype: digest(stored(weight, dtype)) for dtype in DTYPES} for weight in weights]


def name(case: tuple) -> str:
    """A short name for a case."""
    shape, role, options = case
    return " ".join([str(shape), role, *(f"{k}={v}" for k, v in options.items())])


if __name__ == "__main__":
    rows = {name(case): row for case, row in zip(CASES, table(), strict=True)}
    PATH.write_text(json.dumps(rows, indent=1) + "\n")
