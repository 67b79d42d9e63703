"""Operations that only move or look up entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from idinit_ref.tracing import At, Signal, Span, Value, is_constant

from ._call import Call, axis_of, other, result

# Moves ------------------------------------------------------------------------------------------


def reshape(call: Call) -> Value:
    if call.overload == "dtype":
        return other(call)
    return call.draw.reshape(call.what, call.of(call.args[0]), call.shape)


def transpose(call: Call) -> Value:
    value = call.of(call.args[0])
    rank = len(value.shape or ())
    order = list(range(rank))
    if call.name == "aten::permute":
        order = [axis_of(axis, rank) for axis in call.args[1]]
    elif rank > 1:
        a, b = call.args[1:3] if len(call.args) > 2 else (-2, -1)
        order[a], order[b] = order[b], order[a]
    return call.draw.transpose(call.what, value, order)


_BOUNDS = ((1, "start"), (2, "end"), (3, "step"))


def _cut(call: Call, first: int) -> tuple[list[Span], int]:
    """Return the spans of a slice or selection, and its axis; `first` is the position of `dim`."""
    spans = [(0, size, 1) for size in call.of(call.args[0]).shape or ()]
    axis = axis_of(call.arg(first, "dim", 0), len(spans))
    size = spans[axis][1]
    if "select" in call.name:
        at = axis_of(int(call.arg(first + 1, "index")), size)
        spans[axis] = (at, at + 1, 1)
    else:
        start, stop, step = (call.arg(first + k, key) for k, key in _BOUNDS)
        start, stop, _ = slice(start, stop).indices(size)
        spans[axis] = (start, stop, step or 1)
    return spans, axis


def crop(call: Call) -> Value:
    return call.draw.part(call.what, call.of(call.args[0]), _cut(call, 1)[0])


def select(call: Call) -> Value:
    spans, axis = _cut(call, 1)
    return call.draw.part(call.what, call.of(call.args[0]), spans, (axis,))


def overwrite(call: Call) -> Value:
    value, part = (call.of(arg) for arg in call.args[:2])
    return call.draw.overwrite(call.what, value, part, _cut(call, 2)[0], call.shape)


def split(call: Call) -> list[Value]:
    value = call.of(call.args[0])
    axis = axis_of(call.arg(2, "dim", 0), len(value.shape or ()))
    sizes = [int(tensor.shape[axis]) for tensor in call.results]
    return call.draw.split("split", value, axis, sizes)


def unbind(call: Call) -> list[Value]:
    value = call.of(call.args[0])
    axis = axis_of(call.arg(1, "dim", 0), len(value.shape or ()))
    return call.draw.unstack("unbind", value, axis, len(call.results))


def lose(call: Call) -> Value:
    return call.draw.part(call.what, call.of(call.args[0]), None, shape=call.shape)


def restride(call: Call) -> Value:
    """Draw `as_strided`, with which a mean of an image in channels_last ends: it moves nothing."""
    given, new = call.args[0], call.results[0]
    same = given.shape == new.shape and given.storage_offset() == new.storage_offset()
    steps = zip(given.shape, given.stride(), new.stride(), strict=True) if same else ()
    if same and all(size == 1 or old == by for size, old, by in steps):
        return call.of(given)
    return lose(call)


def expand(call: Call) -> Value:
    return call.draw.broadcast(call.what, call.of(call.args[0]), call.shape)


def flip(call: Call) -> Value:
    value = call.of(call.args[0])
    rank = len(value.shape or ())
    return call.draw.flip("flip", value, [axis_of(axis, rank) for axis in call.args[1]])


def rot90(call: Call) -> Value:
    value = call.of(call.args[0])
    plane = [axis_of(axis, len(value.shape or ())) for axis in call.arg(2, "dims", (0, 1))]
    return call.draw.turn("rot90", value, call.arg(1, "k", 1), plane)


def roll(call: Call) -> Value:
    value, axes = call.of(call.args[0]), call.arg(2, "dims", ())
    rank = len(value.shape or ())
    if not axes and rank != 1:
        return lose(call)
    pairs = zip(axes or (0,), call.args[1], strict=True)
    return call.draw.roll("roll", value, {axis_of(axis, rank): by for axis, by in pairs})


def repeat(call: Call) -> Value:
    value = call.of(call.args[0])
    return call.draw.tile("repeat", value, call.shape, call.floating)


def cast(call: Call) -> Value:
    given = call.args[0]
    return call.draw.cast("cast", call.of(given), call.floating, given.dtype == torch.bool)


def stop(call: Call) -> Value:
    return call.draw.stop("detach", call.of(call.args[0]), call.floating)


def copy(call: Call) -> Value:
    source = call.args[1]
    value = call.draw.cast("cast", call.of(source), call.floating, source.dtype == torch.bool)
    return call.draw.broadcast("expand", value, call.shape)


def cat(call: Call) -> Value:
    tensors = [t for t in call.args[0] if t.dim() > 1 or t.numel() or t.dim() == len(call.shape)]
    axis = axis_of(call.arg(1, "dim", 0), len(call.shape))
    values = [call.of(tensor) for tensor in tensors]
    return call.draw.join("cat", values, axis, call.shape, call.floating)


def stack(call: Call) -> Value:
    axis = axis_of(call.arg(1, "dim", 0), len(call.shape))
    values = [call.of(tensor) for tensor in call.args[0]]
    return call.draw.stack("stack", values, axis, call.shape)


def block_diagonal(call: Call) -> Value:
    """Draw matrices that are written along the diagonal of zeros."""
    made: Value = call.draw.constant(call.shape, value=0)
    row = column = 0
    for tensor in call.args[0]:
        rows, columns = torch.atleast_2d(tensor).shape  # type: ignore[no-untyped-call]  # untyped in PyTorch
        block = call.draw.reshape("view", call.of(tensor), (rows, columns))
        made = call.draw.write("block_diag", made, block, [row, column], call.shape)
        row, column = row + rows, column + columns
    return made


def pad(call: Call) -> Value:
    value = call.of(call.args[0])
    is_constant = call.name == "aten::constant_pad_nd"
    does: Literal["pad", "move"] = "pad" if is_constant else "move"
    if not (is_constant or isinstance(value, Signal)):
        return result(call, does)
    low = [0] * len(call.shape)
    for number, by in enumerate(call.args[1][::2], 1):
        low[-number] = by
    fill = [call.of(call.arg(2, "value", 0))] if is_constant else []
    return call.draw.pad("pad", value, low, call.shape, None, fill, does)


def fold(call: Call) -> Value:
    """Draw overlapping blocks that are laid out in space and added (col2im).

    With a stride it is drawn as a transposed convolution is: first the places move apart.
    """
    value, draw = call.of(call.args[0]), call.draw
    if not isinstance(value, Signal) or value.shape is None:
        return result(call, "linear")
    sizes, *window = call.args[1:6]
    counts = [
        (size + 2 * pad - by * (reach - 1) - 1) // step + 1
        for size, reach, by, pad, step in zip(sizes, *window, strict=True)
    ]
    grid = draw.reshape("view", value, (*value.shape[:-1], *counts))
    steps = window[-1]
    if isinstance(grid, Signal) and max(steps) > 1:
        wide = (n * step for n, step in zip(counts, steps, strict=True))
        grid = draw.resized("apart", grid, (*value.shape[:-1], *wide), "resize")
    return draw.result(call.what, [grid], call.shape, word="linear")


def unfold(call: Call) -> Value:
    """Draw the windows of an image, flattened, one for each place (im2col)."""
    kernel, dilation, padding, strides = call.args[1:5]
    size, rank = call.args[0].shape, call.args[0].dim()
    window = zip(size[-2:], kernel, dilation, padding, strides, strict=True)
    places = [(n + 2 * pad - by * (k - 1) - 1) // step + 1 for n, k, by, pad, step in window]
    return call.draw.windows(
        call.what,
        call.of(call.args[0]),
        call.shape,
        kernel,
        places,
        [[0], [1, 2, 3], [4, 5]][4 - rank :],
        channels=rank - 3,
        space=(rank - 2, rank - 1),
        left=padding,
        dilation=dilation,
        word="move",
    )


# Lookups ----------------------------------------------------------------------------------------


def embedding(call: Call) -> Value:
    table, ids = (call.of(arg) for arg in call.args[:2])
    return call.draw.take("lookup", table, ids, 0, call.shape)


def bag(call: Call) -> Value:
    table, ids = (call.of(arg) for arg in call.args[:2])
    return call.draw.lookup("lookup", [table, ids], call.shape, None)


def index(call: Call) -> Value:
    """Draw a lookup by index tensors along some axes."""
    table, places = call.args[:2]
    given = [place for place in places if place is not None]
    values = [call.of(table), *map(call.of, given)]
    kept = _kept(table, places)
    return call.draw.lookup("lookup", values, call.shape, kept, call.floating)


def _kept(table: Tensor, places: Sequence[Tensor | None]) -> list[int | None] | None:
    """Return for each axis of an indexing's result the table's axis that it keeps whole, if any."""
    places = [*places, *[None] * (table.dim() - len(places))]
    given = [place for place in places if place is not None]
    at = [axis for axis, place in enumerate(places) if place is not None]
    if any(place.dtype in (torch.bool, torch.uint8) for place in given):
        return None
    rank = max(place.dim() for place in given)
    whole: list[int | None] = [a for a, place in enumerate(places) if place is None]
    first = at[0] if at[-1] - at[0] == len(at) - 1 else 0
    return [*whole[:first], *[None] * rank, *whole[first:]]


def placed(call: Call) -> tuple[Value, Value, At] | None:
    """Return the update of a write at known indices, these in one array, and their axes."""
    if call.name in ("aten::index_copy", "aten::index_add"):
        table, axis, places, source = call.args[:4]
        axis = axis_of(axis, table.dim())
        at, kept = [axis], _kept(table, [None] * axis + [places])
    elif call.name == "aten::index_put":
        table, places, source = call.args[:3]
        at = [axis for axis, place in enumerate(places) if place is not None]
        places, kept = [place for place in places if place is not None], _kept(table, places)
    else:
        return None
    places = [places] if isinstance(places, Tensor) else places
    given = [value.integers if is_constant(value := call.of(place)) else None for place in places]
    known = [index for index in given if index is not None]
    if kept is None or len(known) < len(given):
        return None
    index = np.stack(np.broadcast_arrays(*known), -1)
    rows = iter(index.shape)
    shape = tuple(next(rows) if axis is None else int(table.shape[axis]) for axis in kept)
    windows = [kept.index(axis) if axis in kept else None for axis in range(table.dim())]
    update = call.draw.broadcast("expand", call.of(source), shape)
    return update, call.draw.constant(index.shape, numbers=index), (at, windows)


def along(call: Call) -> Value:
    """Draw a lookup by one index tensor along one axis."""
    table, places = call.of(call.args[0]), call.of(call.args[2])
    if call.name == "aten::index_select":
        axis = call.args[1]
        return call.draw.take("lookup", table, places, axis, call.shape, call.floating)
    kept: list[int | None] = [None] * len(call.shape)
    return call.draw.lookup("lookup", [table, places], call.shape, kept, call.floating)


def take(call: Call) -> Value:
    values = [call.of(arg) for arg in call.args[:2]]
    return call.draw.lookup("lookup", values, call.shape, None, call.floating)
