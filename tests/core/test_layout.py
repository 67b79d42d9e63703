"""Cuts and strips: each place once, and as few pieces as memory allows."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import idinit_ref as ir
from idinit_ref.core.kernel import identity_tap, phase_sizes, phases
from idinit_ref.core.layout import Layout, cut, strides_of
from idinit_ref.core.sheets import sheets
from idinit_ref.errors import LayoutError, OptionError, ShapeError


def test_a_cut_is_a_partition_at_the_multiples_with_nothing_to_join():
    for size in range(1, 7):
        for start in range(3 * size + 1):
            for stop in range(4 * size + 1):
                cuts = list(cut(start, stop, size))
                covered = [
                    segment * size + place
                    for cut in cuts
                    for segment in range(cut.first, cut.first + cut.copies)
                    for place in range(cut.start, cut.stop)
                ]
                assert covered == list(range(start, stop))
                assert all(0 <= cut.start < cut.stop <= size and cut.copies for cut in cuts)
                whole = [cut for cut in cuts if (cut.start, cut.stop) == (0, size)]
                assert len(whole) <= 1
                assert len(cuts) - len(whole) <= 2


@pytest.mark.parametrize(
    ("shape", "letters", "taps", "number"),
    [
        # inputs and kernel lie in memory as the columns count them: one strip
        ((5, 3), "OI", "channel_major", 1),
        ((3, 5), "IO", "spatial_major", 1),
        ((5, 3, 4), "OIW", "channel_major", 1),
        ((5, 3, 4, 2), "OIHW", "channel_major", 1),
        ((3, 4, 2, 5), "IHWO", "channel_major", 1),
        ((5, 3, 4, 2, 3), "OIDHW", "channel_major", 1),
        ((5, 3, 4, 1, 3), "OIDHW", "channel_major", 1),
        ((5, 4, 3), "OWI", "spatial_major", 1),
        ((5, 4, 2, 3), "OHWI", "spatial_major", 1),
        ((4, 2, 3, 5), "HWIO", "spatial_major", 1),
        ((4, 2, 1, 5), "HWIO", "channel_major", 1),  # one input: wherever it lies
        # they do not: one strip for each tap
        ((4, 5, 2, 1), "HOWI", "channel_major", 8),
        ((5, 3, 4, 2), "OIHW", "spatial_major", 8),
        ((5, 4, 2, 3), "OHWI", "channel_major", 8),
        ((5, 3, 2, 4), "OIWH", "channel_major", 8),
        ((4, 2, 3, 5), "HWIO", "channel_major", 8),
        ((4, 5, 2, 3), "HOWI", "spatial_major", 8),
        ((5, 3, 4, 2), "OIHW", "center", 1),
        ((5, 3, 4, 2), "OIHW", "outward", 8),
        ((4, 2, 3, 5), "HWIO", "outward", 8),
        ((5, 3), "OI", "outward", 1),
    ],
)
def test_few_strips(shape, letters, taps, number):
    layout = Layout(shape, letters, 1, False, None, taps, None)
    (sheet,) = sheets(layout, tuple(map(range, shape)), strides_of(shape))
    assert len(sheet.strips) == number
    columns = [s.first + s.step * k for s in sheet.strips for k in range(s.length)]
    assert sorted(columns) == list(range(layout.columns))


def test_a_part_of_the_kernel_is_not_taken_for_the_whole():
    layout = Layout((5, 3, 4, 2), "OIHW", 1, False, None, "channel_major", None)
    for size in (1, 2, 3):
        box = (range(5), range(3), range(4 - size, 4), range(2))
        (sheet,) = sheets(layout, box, strides_of([len(span) for span in box]))
        assert len(sheet.strips) == 2 * size


def test_no_piece_is_empty():
    """What `matrices` shows: blocks of no rows and whole groups leave nothing behind."""
    assert ir.plan((6, 5), blocks=(2, 0, 4)).matrices == ((2, 5, 1), (4, 5, 1))
    assert ir.plan((12, 5), groups=3, blocks=(4, 8)).matrices == ((4, 5, 1), (4, 5, 2))
    assert ir.plan((12, 5), groups=3, blocks=(5, 7)).matrices == (
        (4, 5, 1),
        (1, 5, 1),
        (3, 5, 1),
        (4, 5, 1),
    )


def test_a_tap_outside_the_kernel():
    """Held here too, and not only where `plan` reads its options."""
    for tap in [(-1,), (3,)]:
        with pytest.raises(OptionError, match="inside the kernel"):
            Layout((4, 4, 3), "OIW", 1, False, None, "center", tap)
    for tap in [(0,), (2,)]:
        assert Layout((4, 4, 3), "OIW", 1, False, None, "center", tap).center == tap
    with pytest.raises(LayoutError, match="'I' appears twice"):
        Layout((2, 2, 2), "OII", 1, False, None, "center", None)


def test_identity_tap_is_the_shift_of_a_convolution():
    """Against the definition: out[t] = sum of w[s] * padded[t + s * dilation]."""
    x = np.arange(1.0, 8.0)
    for left in range(7):
        for dilation in range(1, 4):
            for kernel in range(1, 5):
                padded = np.concatenate([np.zeros(left), x, np.zeros(20)])
                passes = [s for s in range(kernel) if padded[s * dilation :][:7].tolist() == [*x]]
                (tap,) = identity_tap((left,), (dilation,), (kernel,))
                assert isinstance(tap, int)
                if passes:
                    assert [tap] == passes
                else:
                    away = [abs(s * dilation - left) for s in range(kernel)]
                    assert tap == away.index(min(away))


def test_memory_that_is_enough_and_no_more():
    """Every stride of 0 to 7: rows that follow one another, or columns, or an error."""
    for shape, noise in product([(2, 3), (3, 2), (1, 3), (2, 1), (1, 1)], [0.0, 0.5]):
        plan = ir.plan(shape, loosen=noise)
        for strides in product(range(8), repeat=2):
            m, n = shape
            places = np.add.outer(np.arange(m) * strides[0], np.arange(n) * strides[1])
            memory = np.zeros(places.max() + 1)
            if not any((np.diff(order.reshape(-1)) > 0).all() for order in (places, places.T)):
                with pytest.raises(ir.errors.ShapeError, match="share memory"):
                    plan.write(memory, strides)
                continue
            plan.write(memory, strides)
            assert np.array_equal(memory[places], plan.build())
            with pytest.raises(ir.errors.ShapeError, match=f"one axis of {memory.size} places"):
                plan.write(np.zeros(memory.size - 1), strides)


def test_the_sizes_of_phases_need_no_list_of_taps():
    for kernel, stride, taps in product(
        [(), (0,), (1,), (4,), (3, 5), (2, 3, 2), (3, 0)], (None, 2, -3), ("outward", "center")
    ):
        steps = None if stride is None else (stride,) * len(kernel)
        listed = phases(kernel, taps, None, steps)
        assert phase_sizes(kernel, taps, steps) == tuple(map(len, listed)), (kernel, steps)


def test_a_kernel_of_too_many_taps_to_list():
    huge = ir.plan((4, 4, 2**50))
    assert huge.nnz == 4
    with pytest.raises(ShapeError, match=r"kernel = \(1125899906842624,\), .*taps='center'"):
        huge.block((slice(0, 1),) * 3)
    middle = slice(2**49 - 1, 2**49)
    one = ir.plan((4, 4, 2**50), taps="center").block((slice(0, 1), slice(0, 1), middle))
    assert one.item() == 1.0
