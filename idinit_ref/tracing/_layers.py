"""Internal: convolutions and lookups in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.layout import SPATIAL
from ._axes import Atom, Axis, View
from ._labels import Einsum
from ._made import Made, Shape, names_of
from ._places import box_at
from ._products import Products
from ._recipes import reordered
from ._values import Data, Operation, Signal, Track, Value, is_constant

__all__ = ["Layers"]

_MOST = 64  # the most rows that are joined one by one
_SLICES = 16  # the most slices of one signal that indices take


class Selection(NamedTuple):
    """Entries of a signal that indices or a mask select."""

    table: Signal
    places: tuple[Value, ...]
    shape: Shape | None
    kept: tuple[int | None, ...] | None

    def is_like(self, other: Selection) -> bool:
        """Whether the same entries are selected of a signal of the same shape."""
        if len(self.places) != len(other.places):
            return False
        pairs = zip(self.places, other.places, strict=True)
        is_alike = self.shape == other.shape and self.kept == other.kept
        is_alike &= self.table.shape == other.table.shape is not None
        return is_alike and all(a is b for a, b in pairs)


class Layers(Products):
    """A drawing with convolutions and lookups."""

    # Convolutions ---------------------------------------------------------------------------

    def convolution(
        self,
        name: str,
        signal: Value,
        kernel: Value,
        letters: str,
        shape: Shape | None,
        *,
        channels: int,
        space: Sequence[int],
        left: Sequence[int] | None,
        dilation: Sequence[int] = (),
        spread: Sequence[int] = (),
        crops: bool = False,
        before: Sequence[int] | None = None,
        sized: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Value:
        """Draw a convolution.

        Parameters
        ----------
        name : str
            Of the operation.
        signal, kernel : Value
            Its data and its kernel.
        letters : str
            Of the axes of the kernel; "" where they are not known.
        shape : tuple of int, optional
            Of the result.
        channels, space : int, sequence of int
            The axis of the result that holds the outputs, and its spatial axes in the order D, H,
            W.
        left, dilation, spread : sequence of int
            The left padding, if known, the kernel's dilation, and the dilation of the input (the
            stride of a transposed convolution).
        crops : bool
            Whether the result of a transposed convolution is cropped by `left`, as deep learning
            frameworks define it. If not, `left` pads the dilated input, as in `jax.lax`.
        before : sequence of int, optional
            The spatial axes of the signal, if they differ from those of the result.
        sized : bool
            Whether `left` depends on the signal's size, as with "same" padding and a stride.
        options : mapping, optional
            How the kernel is used, as options of :func:`idinit_ref.plan`: groups, transposed.
        """
        if isinstance(kernel, Signal) and kernel.member and not kernel.chosen:
            kernel = kernel.member  # a kernel times an input
        signal, kernel = self.with_states([signal, kernel])
        if isinstance(signal, Signal) and max(spread, default=1) > 1:
            signal = self._apart(name, signal, before or space, spread)
        weight = isinstance(kernel, Made) and bool(kernel.parts)
        if not isinstance(signal, Signal) or not weight or kernel.shape is None:
            return self._convolved(name, signal, kernel, letters, shape, channels)
        assert isinstance(kernel, Made)
        sizes = kernel.shape
        steps = tuple(spread) or (1,) * len(space)
        moved = [signal.moved[axis] if signal.shift else 0 for axis in before or space]
        by = zip(moved, steps, strict=True)
        more = [-at * step if crops else at * step for at, step in by]
        operation = Operation(
            sizes,
            letters or None,
            options=_own(options or {}, kernel, letters),
            left=None if left is None else tuple(a + b for a, b in zip(left, more, strict=True)),
            spread=steps,
            dilation=tuple(dilation) or (1,) * len(space),
            kernel=tuple(sizes[letters.index(c)] for c in SPATIAL if c in letters),
            space=tuple(space),
            forward=crops,
            sized=sized,
            reads=frozenset({channels} - {*(before or space)}),
        )
        if shape is None or not letters:
            return self.weigh(name, kernel, signal, operation, Signal("", shape))
        axes: list[Axis] = [(Atom.of(-1, size),) for size in shape]
        outs, ins = letters.index("O"), letters.index("I")
        axes[channels] = (Atom.of(outs, sizes[outs]),)
        groups = shape[channels] // sizes[outs] if sizes[outs] else 1
        if groups > 1:  # transposed: axis I holds the groups
            group = Atom(ins, sizes[ins] // groups, groups, 0, 0, groups)
            axes[channels] = (group, *axes[channels])
        track = Track(operation, View(tuple(axes)))
        return self.weigh(name, kernel, signal, operation, Signal("", shape, (track,)))

    def _apart(
        self, name: str, signal: Signal, space: Sequence[int], steps: Sequence[int]
    ) -> Signal:
        """Draw zeros between a signal's entries, as a transposed convolution does first."""
        if signal.shape is None:
            return signal
        shape = list(signal.shape)
        for axis, step in zip(space, steps, strict=True):
            shape[axis] *= step
        return self.resized(f"{name}: apart", signal, tuple(shape), "resize")

    def _convolved(
        self,
        name: str,
        signal: Value,
        kernel: Value,
        letters: str,
        shape: Shape | None,
        channels: int,
    ) -> Value:
        """Draw a convolution whose kernel is data or constant."""
        if not isinstance(signal, Signal) or not isinstance(kernel, Signal) or not letters:
            word = "linear" if is_constant(signal) or is_constant(kernel) else ""
            if _is_blur(signal, kernel, letters, shape, channels):
                word = "pool"
            return self.result(name, [signal, kernel], shape, word=word)
        self.kernel(name, kernel.node, True)
        rank = len(signal.shape or ())
        is_each = kernel.shape is not None and kernel.shape[letters.index("I")] == 1
        own = [f"axis {k}" for k in range(rank)]
        own[channels] = "O" if is_each else "I"  # depthwise: the channels are not summed
        out = [*own[:channels], "O", *own[channels + 1 :]]
        ours = ["O" if letter == "O" or (is_each and letter == "I") else "I" for letter in letters]
        pair = (signal, kernel)
        return self._contract(Einsum(name, pair, (own, ours), out, shape), pair)

    # Lookups --------------------------------------------------------------------------------

    def lookup(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None = None,
        floating: bool = True,
        axes: Sequence[int] | None = None,
    ) -> Value:
        """Draw a lookup of rows in a table, or of a matrix in a stack (it may be a weight).

        A lookup in a signal at known indices that form a box is a slice, and one that repeats
        entries at the border of the signal, as padding does, a concatenation of slices.

        Parameters
        ----------
        name : str
            Of the operation.
        values : sequence of Value
            The table and the indices.
        shape : tuple of int, optional
            Of the result.
        kept : sequence of (int or None), optional
            For each axis of the result, the table's axis that it keeps whole, or None for an axis
            of the indices. The lookup takes one index of every other axis. None if unknown.
        floating : bool
            Whether the result is a floating-point tensor.
        axes : sequence of int, optional
            The table's axes to which the indices belong, if one array holds the indices of all
            along its last axis. By default there is one array for each axis that is not kept.
        """
        table, *rest = values
        if isinstance(table, Signal) and floating:
            found = self._at_box(name, table, rest, shape, kept, axes)
            found = found or self._in_runs(name, table, rest, shape, kept, axes)
            return found or self.select(name, table, rest, shape, kept)
        if not isinstance(table, Made) or not table.parts:
            return self.result(name, values, shape, floating, "select")
        chosen = table.lost(shape)
        if kept is not None and shape is not None:
            chosen = table.moved(shape, lambda view: _chosen(view, kept, shape))
        if not any(isinstance(value, (Signal, Data)) for value in rest):
            is_row = kept is not None and None not in kept  # at one index of each other axis
            if not names_of(rest) and (chosen.is_matrix or is_row):
                return self._at_box(name, table, rest, shape, kept, axes) or chosen
            order = _order_of(table, rest, shape, kept) if floating and table.is_plain else None
            if order is not None:
                self.use(table, "rows")
                recipe = reordered(table, *order)
                found = table.multiplied(()).noted(lambda own: "reordered")
                return found._replace(recipe=recipe) if recipe else table
            is_known = floating and all(map(is_constant, rest)) and _are_apart(rest, kept)
            self.use(table, "rows" if is_known else "embedding" if floating else "other")
            found = self._rows(name, table, rest, shape, kept, axes) if is_known else None
            return found or self.other(name, values, shape, floating)
        if not floating:
            return self.result(name, values, shape, floating)
        found = self.find(name, table, shape)
        return found._replace(member=chosen, chosen=found.node)

    def _rows(
        self,
        name: str,
        table: Made,
        places: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None,
        axes: Sequence[int] | None,
    ) -> Value | None:
        """Draw a lookup of several rows at known indices: a slice, or rows that are joined."""
        if table.shape is None or shape is None or kept is None or not table.is_plain:
            return None
        found = self._at_box(name, table, places, shape, kept, axes)
        new = [axis for axis, old in enumerate(kept) if old is None]
        if found is not None or len(shape) != len(table.shape) or len(new) != 1:
            return found if found is not None and prod(shape[axis] for axis in new) > 1 else None
        index, (axis,) = _index_of(places, 1), new
        order = [] if index is None else [int(at) % table.shape[axis] for at in index.ravel()]
        if not 1 < len({*order}) == len(order) <= _MOST:
            return None
        every = [(0, size, 1) for size in table.shape]
        rows = [
            self.part(name, table, [*every[:axis], (at, at + 1, 1), *every[axis + 1 :]])
            for at in order
        ]
        return self.join(name, rows, axis, shape)

    def _at_box(
        self,
        name: str,
        table: Value,
        places: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None,
        axes: Sequence[int] | None,
    ) -> Value | None:
        """Draw a lookup at known indices that form a box; None if they do not."""
        if table.shape is None or shape is None or kept is None:
            return None
        windows = [kept.index(a) if a in kept else None for a in range(len(table.shape))]
        own = [axis for axis, window in enumerate(windows) if window is None]
        index = _index_of(places, len(own) if axes is None else None)
        found = None if index is None else box_at(index, axes or own, windows, shape, table.shape)
        if found is None:
            return None
        box, order = found
        part = self.part(name, table, box.spans)
        if box.turned:
            part = self.flip(name, part, box.turned)
        used = [axis for axis in order if shape[axis] != 1]  # in the order of the box
        part = self.reshape(name, part, tuple(shape[axis] for axis in used))
        if used != sorted(used):
            part = self.transpose(name, part, [used.index(axis) for axis in sorted(used)])
        return self.reshape(name, part, shape)

    def _in_runs(
        self,
        name: str,
        table: Signal,
        places: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None,
        axes: Sequence[int] | None,
    ) -> Value | None:
        """Draw a lookup along some axes, of a few runs of indices, as slices side by side, or None.

        Padding by an index is such a lookup.
        """
        if table.shape is None or shape is None or kept is None or len(kept) != len(table.shape):
            return None
        own = [axis for axis, old in enumerate(kept) if old != axis]
        index = _index_of(places, len(own) if axes is None else None)
        if index is None or index.shape != (*(shape[axis] for axis in own), len(own)):
            return None
        along: list[tuple[int, list[range]]] = []
        for k, axis in enumerate(own):
            size, at = table.shape[axis], np.moveaxis(index[..., k], k, 0).reshape(shape[axis], -1)
            is_own = kept[axis] is None and (axes or own)[k] == axis and (at == at[:, :1]).all()
            runs = _runs_of([int(k + size if k < 0 else k) for k in at[:, 0]]) if is_own else []
            if not runs or any(min(run) < 0 or max(run) >= size for run in runs):
                return None
            along.append((axis, runs))
        found: Value = table
        for axis, runs in along:
            found = self._by_runs(name, found, axis, runs)
        return found

    def _by_runs(self, name: str, value: Value, axis: int, runs: Sequence[range]) -> Value:
        """Draw slices of a value side by side; those of falling indices are reversed."""
        whole, parts = [(0, size, 1) for size in value.shape or ()], []
        for run in runs:
            span = (min(run), max(run) + 1, 1)
            part = self.part(name, value, [*whole[:axis], span, *whole[axis + 1 :]])
            parts.append(self.flip(name, part, [axis]) if run.step < 0 else part)
        sizes = [size for _, size, _ in whole]
        shape = (*sizes[:axis], sum(map(len, runs)), *sizes[axis + 1 :])
        return self.join(name, parts, axis, shape)

    def select(
        self,
        name: str,
        table: Signal,
        places: Sequence[Value],
        shape: Shape | None,
        kept: Sequence[int | None] | None,
    ) -> Value:
        """Draw a selection of a signal's entries; the same selection is drawn once."""
        whole = None if kept is None else tuple(kept)

        def draw() -> Value:
            out = self.result(name, [table, *places], shape, word="select")
            if isinstance(out, Signal):
                self.selections[out.node] = Selection(table, tuple(places), shape, whole)
            return out

        return self.once((table.node, shape, whole), places, draw)

    def take(
        self,
        name: str,
        table: Value,
        places: Value,
        axis: int,
        shape: Shape | None,
        floating: bool = True,
    ) -> Value:
        """Draw a lookup along one axis, which the axes of the indices replace."""
        kept: list[int | None] | None = None
        if table.shape is not None and shape is not None:
            rank = len(table.shape)
            at = axis % rank
            kept = [*range(at), *[None] * (len(shape) - rank + 1), *range(at + 1, rank)]
        return self.lookup(name, [table, places], shape, kept, floating)


def _are_apart(places: Sequence[Value], kept: Sequence[int | None] | None) -> bool:
    """Whether a lookup takes rows along one axis, each once; positions of pairs repeat them."""
    index = _index_of(places, 1) if kept is not None and kept.count(None) == 1 else None
    return index is not None and len({*index.ravel().tolist()}) == index.size


def _is_blur(
    signal: Value, kernel: Value, letters: str, shape: Shape | None, channels: int
) -> bool:
    """Whether a constant kernel takes means in space of each channel alone."""
    numbers = kernel.numbers if isinstance(kernel, Made) else None
    if numbers is None or numbers.min() < 0 or signal.shape is None or shape is None:
        return False
    sums = numbers.sum(tuple(axis for axis, letter in enumerate(letters) if letter in SPATIAL))
    is_each = sums.size == signal.shape[channels] == shape[channels]
    return is_each and bool(np.allclose(sums, 1, rtol=1e-3))


def _own(options: Mapping[str, Any], kernel: Made, letters: str) -> Mapping[str, Any]:
    """Return options with the groups of the parameter alone, if the kernel is copies of it.

    Samples that are groups of one convolution have a copy each.
    """
    groups = options.get("groups", 1)
    views = [part.view for part in kernel.parts if part.view is not None]
    for view in views if "O" in letters and groups > 1 else ():
        copies = 1
        for atom in view.axes[letters.index("O")]:
            if atom.axis >= 0:
                break
            copies *= atom.radix
        if groups % copies == 0:
            return {**options, "groups": groups // copies}
    return options


def _index_of(places: Sequence[Value], count: int | None) -> NDArray[np.int64] | None:
    """Return known indices in one array, the last axis for their axes; None if some are unknown.

    They are `count` arrays, which broadcast, or one array already (None).
    """
    given = [place.integers if isinstance(place, Made) else None for place in places]
    known = [index for index in given if index is not None]
    if len(known) < len(given) or len(given) != (count or 1):
        return None
    return known[0] if count is None else np.stack(np.broadcast_arrays(*known), -1)


def _order_of(
    table: Made, places: Sequence[Value], shape: Shape | None, kept: Sequence[int | None] | None
) -> tuple[int, NDArray[np.int64]] | None:
    """Return the axis of a table along which a lookup takes every row once, and their order."""
    if shape is None or shape != table.shape or kept is None or len(places) != 1:
        return None
    index = places[0].integers if isinstance(places[0], Made) else None
    axes = [axis for axis, old in enumerate(kept) if old != axis]
    if index is None or len(axes) != 1 or kept[axes[0]] is not None:
        return None
    order = index.ravel() % shape[axes[0]]
    return (axes[0], order) if sorted(order) == list(range(shape[axes[0]])) else None


def _chosen(view: View, kept: Sequence[int | None], shape: Shape) -> View:
    """Return the view of a lookup at an unknown index."""
    axes: list[Axis] = [(Atom.of(-1, size),) for size in shape]
    fixed = list(view.fixed)
    for axis, atoms in enumerate(view.axes):
        if axis in kept:
            axes[kept.index(axis)] = atoms
        else:
            fixed += atoms
    return View(tuple(axes), tuple(fixed))


def _runs_of(indices: Sequence[int]) -> list[range]:
    """Return the runs of neighbours in a list of indices; none if no run is most of the list.

    >>> _runs_of([3, 0, 1, 2, 3, 0]), _runs_of([3, 0, 2, 1])
    ([range(3, 4), range(0, 4), range(0, 1)], [])
    """
    found: list[range] = []
    for at in indices:
        last = found[-1] if found else range(0)
        step = at - last[-1] if last else 0
        if abs(step) == 1 and (len(last) == 1 or step == last.step):
            found[-1] = range(last[0], at + step, step)
        else:
            found.append(range(at, at + 1))
    longest = max(map(len, found), default=0)
    return found if 2 * longest > len(indices) and len(found) <= _SLICES else []
