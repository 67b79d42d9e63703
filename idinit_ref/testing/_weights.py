"""A weight as its matrices (spec sections 3 and 4), and as the layer that uses it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, round_array
from ..core.kernel import CORNER
from ..core.plan import Plan
from ..core.sheets import column_grid
from ._frameworks import Framework

Values = NDArray[Any]


def dense(plan: Plan, dtype: str) -> Values:
    """Return the reference's weight, rounded into a dtype, as float64."""
    plan.check(np.float64)
    positions, values = plan.entries()
    out = np.zeros(prod(plan.shape))
    out[positions] = round_array(values, FORMATS[dtype], "an entry")
    return out.reshape(plan.shape)


# Matrices ----------------------------------------------------------------------------------------


def _copies(plan: Plan, values: Values) -> Iterator[tuple[str, Values]]:
    """Yield every batch copy of a weight, and the letters of its axes."""
    letters = "".join(c for c in plan.layout if c in "OIDHW")
    batch = [axis for axis, c in enumerate(plan.layout) if c not in "OIDHW"]
    moved = np.moveaxis(values, batch, range(len(batch)))
    for place in np.ndindex(moved.shape[: len(batch)]):
        copy = moved[place]
        if plan.transposed:  # as an ordinary layout: all outputs, and the inputs of one group
            parts = np.split(copy, plan.groups, letters.index("I"))
            copy = np.concatenate(parts, letters.index("O"))
        yield letters, copy


def _segments(plan: Plan) -> list[range]:
    """Return the rows of every matrix along all outputs of all groups."""
    pieces = [
        (piece.start + k * piece.m, piece.m)
        for piece in plan.axes.pieces
        for k in range(piece.copies)
    ]
    starts = range(0, plan.axes.outputs * plan.groups, max(plan.axes.outputs, 1))
    starts = starts if plan.transposed else range(1)
    return [range(t + a, t + a + m) for t in starts for a, m in pieces]


def rows(plan: Plan) -> Iterator[tuple[int, int, int]]:
    """Yield (output, its row i, the number m of rows in its matrix)."""
    for segment in _segments(plan):
        for i, output in enumerate(segment):
            yield output, i, len(segment)


def _columns(plan: Plan, phase: int) -> NDArray[np.intp]:
    """Return channel * taps + tap of every column of a phase, taps in row-major order."""
    at = plan.axes
    if not prod(at.kernel):
        return np.zeros(0, np.intp)
    box = [range(1)] * len(plan.shape)
    for axis in (at.i_axis, *at.spatial_axes):
        box[axis] = range(at.channels if axis == at.i_axis else plan.shape[axis])
    grid = column_grid(at, np, tuple(box), phase)
    full = np.broadcast_to(grid, [len(span) for span in box])
    flat = np.moveaxis(full, (at.i_axis, *at.spatial_axes), range(1 + len(at.kernel))).ravel()
    (places,) = np.nonzero(flat >= 0)
    return places[np.argsort(flat[places])]


def whole(plan: Plan, values: Values) -> Iterator[list[Values]]:
    """Yield every batch copy of a weight: for each phase, all rows of its matrices."""
    for letters, copy in _copies(plan, values):
        kernel = np.transpose(copy, [letters.index(c) for c in "OIDHW" if c in letters])
        flat = kernel.reshape(len(kernel), prod(kernel.shape[1:]))
        yield [flat[:, _columns(plan, phase)] for phase in range(len(plan.axes.widths))]


def matrices(plan: Plan, values: Values) -> Iterator[tuple[str, Values]]:
    """Yield the matrices of a weight; if there are several, each with its name and a colon."""
    parts, phases = _segments(plan), len(plan.axes.widths)
    many = len(parts) > 1 or any(c not in "OIDHW" for c in plan.layout)
    for number, of_phases in enumerate(whole(plan, values)):
        for phase, matrix in enumerate(of_phases):
            for segment in parts:
                names = [f"rows {segment.start} to {segment.stop - 1} of copy {number}"] * many
                names += [f"phase {phase}"] * (phases > 1)
                name = f"{', '.join(names)}: " if names else ""
                yield name, matrix[segment.start : segment.stop]


# The layer ---------------------------------------------------------------------------------------


def apply(at: Framework, plan: Plan, values: Values, x: Values) -> list[Values]:
    """Apply every batch copy to a signal (samples, inputs, *space), through a real layer.

    With a stride the layer is a transposed convolution.
    """
    stride = stride_of(plan)
    return [at.layer(x, w, letters, plan.groups, stride) for letters, w in _copies(plan, values)]


def stride_of(plan: Plan) -> tuple[int, ...] | None:
    """Return the stride of a kernel's transposed convolution; None for other weights."""
    return None if plan.taps in CORNER or not plan.axes.kernel else plan.stride


def inputs(plan: Plan) -> int:
    """Return the number of inputs of a layer, in all groups."""
    return plan.axes.channels * plan.groups


def signal(plan: Plan, samples: int = 4, more: int = 1) -> Values:
    """Return random small integers (samples, inputs, *space): their products are exact."""
    space = tuple(k + more for k in plan.axes.kernel)
    draw = np.random.default_rng(prod(plan.shape) + samples)
    out = draw.integers(1, 64, (samples, inputs(plan), *space)).astype(float)
    out[::2] *= -1
    return out


def group_of(plan: Plan, output: int) -> int:
    """Return the group of an output of the layer."""
    return output // (plan.axes.outputs // (1 if plan.transposed else plan.groups))


def patches(plan: Plan, x: Values) -> Iterator[tuple[Values, tuple[slice, ...]]]:
    """Yield the patches that each group sees, and their positions in the layer's output.

    One for each phase: (samples, groups, n, *positions), n the columns of its matrix. Positions
    whose patch reaches beyond the signal are left out.
    """
    samples, groups, channels = len(x), plan.groups, plan.axes.channels
    kernel, space, stride = plan.axes.kernel, x.shape[2:], stride_of(plan)
    x = x.reshape(samples, groups, channels, *space)
    for phase, taps in enumerate(plan.axes.phases if prod(kernel) else ()):
        seen: Values = np.zeros(0)
        where = [slice(0)] * len(kernel)
        for tap in taps:
            spans = []
            for axis, (t, k, size) in enumerate(zip(tap, kernel, space, strict=True)):
                step = 1 if stride is None else abs(stride[axis])
                last, reach = t // step, (k - 1 - t % step) // step
                if stride is not None and stride[axis] > 0:  # output s*q + r sees x[q - last]
                    first, begin = reach - last, step * reach + t % step
                else:  # a correlation, or a flipped kernel
                    first, begin = last, 0 if stride is None else k - 1 - t % step
                count = size - reach
                spans.append(slice(first, first + count))
                where[axis] = slice(begin, begin + (count - 1) * step + 1, step)
            part = x[(slice(None),) * 3 + tuple(spans)]
            if not seen.size:
                seen = np.zeros((*part.shape[:3], *kernel, *part.shape[3:]))
            seen[(slice(None),) * 3 + tuple(tap)] = part
        if not taps:
            continue
        places = seen.shape[3 + len(kernel) :]
        flat = seen.reshape(samples, groups, channels * prod(kernel), *places)
        yield flat[:, :, _columns(plan, phase)], tuple(where)
