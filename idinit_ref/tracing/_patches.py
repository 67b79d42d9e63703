"""Internal: windows of a signal, whose product with a matrix is a convolution."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..core.layout import SPATIAL
from ._axes import Atom, Axis, View
from ._labels import Einsum, Labels
from ._made import Made, Shape
from ._recipes import thin
from ._reduced import Reduced
from ._values import Patches, Signal, Value

__all__ = ["Windows"]


class Windows(Reduced):
    """A drawing with windows, as `unfold` takes them."""

    def windows(
        self,
        name: str,
        signal: Value,
        shape: Shape | None,
        kernel: Sequence[int],
        places: Sequence[int],
        layout: Sequence[Sequence[int]],
        *,
        word: str = "linear",
        **how: Any,
    ) -> Value:
        """Draw the windows of a signal at all places where a kernel meets it.

        Parameters
        ----------
        name, signal, shape
            As of every operation.
        kernel, places : sequence of int
            The sizes of a window, and of the result of a convolution with such a kernel.
        layout : sequence of sequence of int
            For each axis of the result, what lies along it, the slowest first: 0 is the batch, 1
            the channels; then come the axes of the kernel, and then those of the places.
        word : str
            The plain name of the operation.
        **how
            As of :class:`Sliding`: channels and space (of the signal), left, dilation.
        """
        out = self.result(name, [signal], shape, word=word)
        if not isinstance(signal, Signal) or not isinstance(out, Signal) or signal.shape is None:
            return out
        channels, space = how["channels"], how["space"]
        batch = prod(n for at, n in enumerate(signal.shape) if at not in (channels, *space))
        sizes = (batch, signal.shape[channels], *kernel, *places)
        order = [axis for own in layout for axis in own]
        new = tuple(prod(sizes[axis] for axis in own) for own in layout)
        view = View.of(sizes).transpose(order).reshape([sizes[axis] for axis in order], new)
        if new != shape or view is None or len(signal.shape) - len(space) > 2:
            return out
        self.fates.lazy.add(out.node)
        return out._replace(patches=Patches(signal, view, sizes, how))

    def chosen_by(
        self,
        name: str,
        signal: Value,
        kernel: Made,
        letters: str,
        shape: Shape,
        how: Mapping[str, Any],
    ) -> Value | None:
        """Draw a convolution with a constant kernel that only chooses entries, as their windows."""
        spatial = [c for c in SPATIAL if c in letters]
        numbers, groups = kernel.numbers, how.get("options", {}).get("groups", 1)
        if numbers is None or max(how.get("spread") or [1]) > 1:
            return None
        rows = numbers.transpose([letters.index(c) for c in ("O", "I", *spatial)])
        outs, ins, *sizes = rows.shape
        flat = rows.reshape(outs, -1)
        count, channels = prod(sizes), ins * groups
        is_choice = ((flat != 0).sum(1) == 1).all() and (flat.max(1) == 1).all()
        if count == 1 or outs != count * channels or not is_choice:
            return None
        own, taps = np.divmod(flat.argmax(1), count)
        own = own + np.arange(outs) // (outs // groups) * ins
        rank = len(spatial)
        by_channel, by_tap = (np.divmod(np.arange(outs), n) for n in (count, channels))
        inner = [*range(2, rank + 2)]
        if np.array_equal((own, taps), by_channel):
            inner = [1, *inner]
        elif np.array_equal((taps, own), by_tap):
            inner = [*inner, 1]
        else:
            return None
        space = [*how["space"]]
        layout: list[list[int]] = [[0] for _ in shape]
        layout[how["channels"]] = inner
        for at, axis in enumerate(space):
            layout[axis] = [rank + 2 + at]
        how = {key: how.get(key) for key in ("channels", "space", "left", "dilation", "before")}
        places = [shape[axis] for axis in space]
        return self.windows(name, signal, shape, sizes, places, layout, **how)

    def at_places(
        self, name: str, signal: Signal, kernel: Made, letters: str, shape: Shape, how: Any
    ) -> Value | None:
        """Draw a convolution of windows with a kernel of one tap as a product with a matrix."""
        sizes, at = dict(zip(letters, kernel.shape or (), strict=True)), how["channels"]
        taps = prod(size for letter, size in sizes.items() if letter in SPATIAL)
        same = [size for axis, size in enumerate(signal.shape or ()) if axis != at]
        if taps > 1 or same != [size for axis, size in enumerate(shape) if axis != at]:
            return None
        if how.get("options") or (signal.shape or ())[at] != sizes["I"]:
            return None
        own = [letter for letter in letters if letter in "OI"]
        matrix = self.reshape(name, kernel, tuple(sizes[letter] for letter in own))
        names: list[Hashable] = [*range(len(shape))]
        rest, out = ([*names[:at], letter, *names[at + 1 :]] for letter in "IO")
        return self.product(name, [signal, matrix], [rest, own], out, shape)

    def by_windows(
        self, of: Einsum, made: Made, signal: Signal, own: Labels, rest: Labels
    ) -> Value | None:
        """Draw a product of windows with a matrix as a convolution; None if it is none."""
        name, out, shape, patches = of.name, of.out, of.shape, signal.patches
        if patches is None:
            return None
        x, sizes = patches.signal, patches.sizes
        wide = [label for label, n in zip(own, made.shape or (), strict=True) if n > 1]
        made = thin(made, own, {*own} - {*wide} - {*rest})
        own = [label for label in own if label in wide or label in rest]
        ways = [_axes_of(axis, sizes) for axis in (*patches.view.axes, patches.view.fixed)]
        along = {label: way or [] for label, way in zip(rest, ways, strict=False)}
        ends = [label for label in own if label in out]
        rank = (len(sizes) - 2) // 2
        is_each = len(ends) == 1 and along.get(ends[0]) == [1]  # a kernel of each channel
        read = [1] * (is_each and sizes[1] > 1)
        read += [axis for label in own if label not in ends for axis in along.get(label, [-1])]
        is_whole = sorted(read) == [at for at in range(1, rank + 2) if sizes[at] > 1]
        first = [*out].index(ends[0]) if ends else 0
        if not is_whole or None in ways or ways[-1] or shape is None or made.shape is None:
            return None
        if [*out[first : first + len(ends)]] != ends or not ({*ends}.isdisjoint(rest) or is_each):
            return None
        parts = zip(own, made.shape, strict=True)
        digits: list[tuple[Hashable, int]] = []
        for label, size in parts:
            here = [(at, sizes[at]) for at in along[label]] if label not in ends else []
            digits += here or [(("", label), size)]
        order = sorted(range(len(digits)), key=lambda at: _rank_of(digits[at][0]))
        outputs = prod(size for label, size in digits if not isinstance(label, int))
        new = (outputs, 1 if is_each else sizes[1], *sizes[2 : rank + 2])
        groups = {"options": {"groups": sizes[1]}} if is_each and sizes[1] > 1 else {}
        old, split = made.shape, tuple(size for _, size in digits)

        def move(view: View) -> View | None:
            found = view.reshape(old, split)
            turned = None if found is None else found.transpose(order)
            return turned and turned.reshape([split[at] for at in order], new)

        how = {**patches.how, **groups}
        to: list[Hashable] = []
        for label in out:
            to += along.get(label, []) if label not in ends else ["O"] * (label == ends[0])
        names = _along(patches)
        there = {0: sizes[0], "O": outputs} | {at: sizes[at] for at in range(rank + 2, len(sizes))}
        whole = tuple(there[what] for what in names)
        letters = "OI" + SPATIAL[len(SPATIAL) - rank :]
        value = self.convolution(name, x, made.moved(new, move), letters, whole, **how)
        turn = [names.index(what) for what in to]
        turn += [at for at in range(len(names)) if at not in turn]
        value = value if turn == sorted(turn) else self.transpose(name, value, turn)
        return self.reshape(name, value, shape)


def _along(patches: Patches) -> list[Hashable]:
    """Return what lies along each axis of a convolution: "O", or an axis of the windows."""
    rank, space = (len(patches.sizes) - 2) // 2, [*patches.how["space"]]
    names: list[Hashable] = [0] * len(patches.signal.shape or ())
    names[patches.how["channels"]] = "O"
    for at, axis in enumerate(space):
        names[axis] = rank + 2 + at
    return names


def _rank_of(label: Hashable) -> int:
    """Return where a digit of a matrix stands in its kernel: outputs, channels, space."""
    return label if isinstance(label, int) else 0


def _axes_of(axis: Axis, sizes: Shape) -> list[int] | None:
    """Return the whole axes of windows that lie along an axis; None if others do."""
    atoms = [atom for atom in axis if atom.radix > 1 or (atom.axis >= 0 and sizes[atom.axis] > 1)]
    is_whole = all(
        atom.axis >= 0 and atom == Atom.of(atom.axis, sizes[atom.axis]) for atom in atoms
    )
    return [atom.axis for atom in atoms] if is_whole else None
