"""Which matrices of a stack a view reads, as NumPy reads them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from idinit_ref.tracing._axes import View
from idinit_ref.tracing._stored import steps_of, stored


def read(draw, view, numbers):
    """A view and the numbers of its matrices after a permutation, slices, flips and loops."""
    order = draw(st.permutations(range(3)))
    view = view.transpose([*order, 3, 4])
    numbers = numbers.transpose(order)
    for axis in (2, 1, 0):
        size = numbers.shape[axis]
        at = draw(st.integers(0, size - 1))
        how = draw(st.sampled_from(["index", "slice", "loop", "flipped loop"]))
        if how == "index":
            view, numbers = view.take(axis, at), numbers.take([at], axis)
            continue
        if how == "slice":
            view, numbers = view.slice(axis, at, size), numbers.take(range(at, size), axis)
        view = (view.flip([axis]) if how == "flipped loop" else view).each(axis)
    return view, numbers


@given(st.data(), st.sampled_from([(12,), (6, 2), (2, 6), (2, 3, 2)]))
def test_members_are_the_matrices_that_numpy_reads(data, stack):
    """Two uses of one stack have the same axes, and each names the matrices that it reads."""
    shape, digits = (*stack, 2, 2), (2, 3, 2)
    view = View.of(shape).reshape(shape, (*digits, 2, 2))
    uses = [read(data.draw, view, np.arange(12).reshape(digits)) for _ in range(2)]
    steps = steps_of([(view, "IO", ()) for view, _ in uses], shape)
    ways = [stored(view, "IO", shape, (), "", steps) for view, _ in uses]
    assert len({(way.shape, way.letters) for way in ways}) == 1
    for way, (_, expected) in zip(ways, uses, strict=True):
        letters = way.letters.removesuffix("IO")
        whole = np.arange(12).reshape(way.shape[: len(letters)])
        spans = tuple(slice(*way.member[letter]) for letter in letters)
        assert sorted(whole[spans].flat) == sorted(expected.flat)
