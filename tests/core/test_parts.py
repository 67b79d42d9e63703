"""Many parts of weights with odd sizes, and all ways to reach them: no chance decides which."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

import by_hand
import idinit_ref as ir
from idinit_ref.core.build import resolve

NOISE = {"loosen": 0.5, "seed": 5}
WEIGHTS = [
    ((7, 3), "transit", {}),
    ((3, 7), "transit", {"wide": "fold_rms"}),
    ((3, 7), "transit", {"wide": "fold_mean", "layout": "IO"}),
    ((3, 8), "zero", {}),
    ((7, 3), "zero", {}),
    ((7, 1), "zero", {}),
    ((9, 7), "transit", {"blocks": (2, 0, 3, 4), **NOISE}),
    ((9, 5), "zero", {"blocks": (3, 3, 3), "layout": "OI"}),
    ((12, 4), "transit", {"blocks": (5, 7), "groups": 3}),
    ((9, 4), "transit", {"blocks": (4, 5), "groups": 3}),
    ((7, 9), "zero", {"blocks": (3, 1, 3), "groups": 3, "transposed": True}),
    ((15, 8), "transit", {"blocks": (3, 5), "layout": "IO", "groups": 3, "transposed": True}),
    ((9, 5), "zero", {"layout": "IO", "groups": 3, "transposed": True}),
    ((9, 5), "transit", {"layout": "IO", "groups": 3, "transposed": True, **NOISE}),
    ((6, 5, 3), "transit", {"layout": "IOW", "groups": 2, "transposed": True}),
    ((3, 9, 5), "transit", {"layout": "WIO", "groups": 3, "transposed": True, "taps": "center"}),
    ((3, 3, 5, 3), "transit", {"layout": "XEOI", **NOISE}),
    ((5, 3, 3, 3), "zero", {"layout": "OXIE"}),
    ((3, 6, 5, 3), "transit", {"layout": "EIOX", "groups": 2, "transposed": True, **NOISE}),
    ((6, 3, 3), "zero", {"groups": 2}),
    ((6, 3, 3), "transit", {"groups": 3, "taps": "spatial_major", **NOISE}),
    ((7, 3, 3, 5), "transit", {}),
    ((7, 3, 3, 5), "zero", {"layout": "OIHW", "taps": "spatial_major"}),
    ((3, 5, 3, 7), "zero", {"layout": "HWIO"}),
    ((5, 3, 3, 7), "transit", {"layout": "WHIO", "taps": "spatial_major"}),
    ((3, 5, 3, 7), "transit", {"layout": "HOWI", "taps": "center", "tap": (2, 0), **NOISE}),
    ((7, 3, 3, 5), "transit", {"layout": "OHWI", "taps": "spatial_major"}),
    ((3, 1, 3, 3), "transit", {"groups": 3, "taps": "center"}),
    ((5, 3, 2, 3, 3), "transit", {"taps": "center"}),
    ((5, 3, 2, 3, 3), "zero", {"layout": "OIWDH"}),
    ((9, 4), ("transit", "zero"), {"blocks": (4, 5), "groups": 3}),
    ((3, 9), ("zero", "transit", "zero"), {"blocks": (2, 4, 3), "layout": "IO", **NOISE}),
    ((6, 9, 3), ("zero", "transit"), {"blocks": (5, 4), "layout": "IOW", "stride": (2,)}),
]


def parts(shape, number=150):
    """The whole, nothing, every cut of one axis alone, and evenly many of all others."""
    spans = [[slice(*ends) for ends in combinations(range(size + 1), 2)] for size in shape]
    whole = [slice(0, size) for size in shape]
    yield tuple(whole)
    yield tuple(slice(size, size) for size in shape)
    for axis, cuts in enumerate(spans):
        for cut in cuts:
            yield (*whole[:axis], cut, *whole[axis + 1 :])
    every = list(product(*spans))
    yield from every[:: len(every) // number | 1]


@pytest.mark.parametrize(("shape", "role", "options"), WEIGHTS, ids=str)
def test_parts(shape, role, options):
    plan = ir.plan(shape, role, **options)
    whole = by_hand.weight(shape, role, **options)
    for index in parts(shape):
        expected = whole[index]
        np.testing.assert_array_equal(plan.block(index), expected, str(index), strict=True)
        positions, values = plan.entries(index)
        assert np.array_equal(positions, np.flatnonzero(expected))
        assert np.array_equal(values, expected.reshape(-1)[positions])


@pytest.mark.parametrize(("shape", "role", "options"), WEIGHTS, ids=str)
def test_parts_by_comparison(shape, role, options):
    """The way of a JAX trace, in NumPy."""
    plan = ir.plan(shape, role, **{k: v for k, v in options.items() if k not in NOISE})
    whole = plan.build()
    way = resolve(None, None, None)._replace(way="trace")
    for index in parts(shape, 50):
        box = tuple(range(span.start, span.stop) for span in index)
        result = plan._array(box, way)
        np.testing.assert_array_equal(result, whole[index], str(index), strict=True)
