"""Where the axes of a parameter go: through transposes, reshapes and slices to an operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any, NamedTuple

from idinit_ref.kernel import identity_tap

__all__ = ["Atom", "Stored", "View", "blocks_of", "identity", "stored"]

_BATCH = "LENKPQRSTUVXYZABCFGJM"


class Atom(NamedTuple):
    """A run along one axis of a source: size places, step apart, from start on.

    Axis -1 is none of the source's: one that broadcasting made, say.
    """

    axis: int
    step: int
    size: int
    start: int = 0


@dataclass(frozen=True)
class View:
    """An array whose axes are made of those of a source.

    Parameters
    ----------
    axes : tuple of tuple of Atom
        For each axis, its atoms from the slowest to the fastest.
    fixed : tuple of Atom
        Atoms at one place of which the array stands, as a layer of a stack.
    """

    axes: tuple[tuple[Atom, ...], ...]
    fixed: tuple[Atom, ...] = ()

    @classmethod
    def of(cls, shape: Sequence[int]) -> View:
        """Return the view of a whole source."""
        return cls(tuple((Atom(axis, 1, size),) for axis, size in enumerate(shape)))

    @property
    def weight(self) -> int:
        """How many axes of the source it shows."""
        atoms = [atom for axis in (*self.axes, self.fixed) for atom in axis]
        return len({atom.axis for atom in atoms if atom.axis >= 0})

    @property
    def rank(self) -> int:
        """How many of its axes have more than one place of the source."""
        return sum(any(atom.axis >= 0 and atom.size > 1 for atom in axis) for axis in self.axes)

    def transpose(self, order: Iterable[int]) -> View:
        """Return the view with its axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def take(self, axis: int) -> View:
        """Return the view of one place along an axis."""
        rest = (*self.axes[:axis], *self.axes[axis + 1 :])
        return View(rest, (*self.fixed, *self.axes[axis]))

    def flip(self, axes: Iterable[int]) -> View:
        """Return the view with some axes reversed."""
        turned = set(axes)
        return replace(
            self,
            axes=tuple(
                tuple(a._replace(step=-a.step, start=a.start + (a.size - 1) * a.step) for a in axis)
                if place in turned
                else axis
                for place, axis in enumerate(self.axes)
            ),
        )

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> View | None:
        """Return the view of a part of one axis, or None where that is no run."""
        atoms = self.axes[axis]
        if not atoms:
            return self
        first, *inner = atoms
        run = prod(atom.size for atom in inner)
        if step != 1 and inner:
            return None
        if start % run or stop % run:
            return None
        size = -(-(stop - start) // step) if not inner else (stop - start) // run
        part = first._replace(
            start=first.start + start // run * first.step, step=first.step * step, size=size
        )
        axes = (*self.axes[:axis], (part, *inner), *self.axes[axis + 1 :])
        return replace(self, axes=axes)

    def broadcast(self, shape: Sequence[int], places: Sequence[int], old: Sequence[int]) -> View:
        """Return the view spread to a shape, in which its axes have the given places."""
        axes: list[tuple[Atom, ...]] = [(Atom(-1, 1, size),) if size != 1 else () for size in shape]
        for axis, place in enumerate(places):
            if old[axis] == shape[place]:
                axes[place] = self.axes[axis]
        return replace(self, axes=tuple(axes))

    def reshape(self, old: Sequence[int], new: Sequence[int]) -> View | None:
        """Return the view in another shape, or None where an axis cannot be followed."""
        if 0 in old:
            return None
        axes: list[tuple[Atom, ...]] = []
        fixed = list(self.fixed)
        i = j = 0
        while i < len(old) or j < len(new):
            if i < len(old) and j < len(new) and old[i] == new[j]:
                axes.append(self.axes[i])
                i, j = i + 1, j + 1
            elif i < len(old) and old[i] == 1:
                fixed += self.axes[i]
                i += 1
            elif j < len(new) and new[j] == 1:
                axes.append(())
                j += 1
            else:
                first, last = i, j
                a, b, i, j = old[i], new[j], i + 1, j + 1
                while a != b:
                    if a < b:
                        a, i = a * old[i], i + 1
                    else:
                        b, j = b * new[j], j + 1
                if any(prod(x.size for x in self.axes[k]) != old[k] for k in range(first, i)):
                    return None  # a part of something concatenated
                atoms = [atom for k in range(first, i) for atom in self.axes[k]]
                parted = _deal(atoms, new[last:j])
                if parted is None:
                    return None
                axes += parted
        return View(tuple(axes), tuple(fixed))


def _deal(atoms: list[Atom], sizes: Sequence[int]) -> list[tuple[Atom, ...]] | None:
    """Deal atoms out to axes of some sizes, cutting them where need be."""
    left = [atom for atom in atoms if atom.size != 1]
    dealt = []
    for need in sizes:
        axis = []
        while need > 1:
            atom = left.pop(0)
            if need % atom.size and atom.size % need:
                return None
            inner = max(atom.size // need, 1)
            size = min(atom.size, need)
            axis.append(Atom(atom.axis, atom.step * inner, size, atom.start))
            if inner > 1:
                left.insert(0, Atom(atom.axis, atom.step, inner))
            need //= size
        dealt.append(tuple(axis))
    return dealt


@dataclass(frozen=True)
class Stored:
    """A weight as its operation sees it.

    Parameters
    ----------
    shape : tuple of int
        The stored shape, with axes parted that serve two ends.
    letters : str
        A letter for each of these axes; those of one letter count as one.
    outs : tuple of int
        For each O among them, which axis of the operation's weight it is in, or -1.
    cut : tuple of int, optional
        Which part of the first O axis the operation uses, if not all.
    flipped : str
        The letters of axes that the operation sees reversed.
    """

    shape: tuple[int, ...]
    letters: str
    outs: tuple[int, ...] = ()
    cut: tuple[int, int] | None = None
    flipped: str = ""


def stored(view: View | None, kinds: Sequence[str], shape: Sequence[int]) -> Stored | str:
    """Return how a parameter is stored, given the letter of every axis of the operand.

    The letter "B" is a batch axis; each gets a letter of its own. A string says what is wrong.
    """
    if view is None:
        return "its axes cannot be followed to"
    found: list[list[tuple[Atom, str, int]]] = [[] for _ in shape]
    for place, atoms in enumerate(view.axes):
        for atom in atoms:
            if atom.axis >= 0:
                found[atom.axis].append((atom, kinds[place], place))
    for atom in view.fixed:
        if atom.axis >= 0:
            found[atom.axis].append((atom, "B", -1))
    sizes: list[int] = []
    letters: list[str] = []
    outs: list[int] = []
    cut, flipped = None, ""
    for runs, size in zip(found, shape, strict=True):
        runs.sort(key=lambda run: -abs(run[0].step))
        kept = [run for run in runs if run[0].size > 1 or run[1] == "B"] or runs
        seen = {letter for _, letter, _ in kept}
        flipped += "".join(letter for atom, letter, _ in kept if atom.step < 0)
        if not seen or (size == 1 and seen == {"B"}):
            if size != 1:
                return "it is only a factor of the weight of"
            sizes.append(1)
            letters.append("?")
        elif len(seen) == 1:
            atom, letter, place = kept[0]
            sizes.append(size)
            letters.append(letter)
            if letter == "O":
                outs.append(place if len({at for *_, at in kept}) == 1 else -1)
                if len(kept) == len(outs) == 1 and atom.step == 1 and atom.size < size:
                    cut = (atom.start, atom.start + atom.size)
        else:
            inner = 1
            parts = []
            for number, (atom, letter, place) in reversed(list(enumerate(kept))):
                if abs(atom.step) != inner:
                    return "it is used in parts by"
                length = atom.size if number else size // inner
                parts.append((length, letter, place))
                inner *= length
            if inner != size:
                return "it is used in parts by"
            for length, letter, place in reversed(parts):
                sizes.append(length)
                letters.append(letter)
                outs += [place] * (letter == "O")
    spare = iter(_BATCH)
    for place, letter in enumerate(letters):
        if letter == "?":  # of size 1: what is missing, or a batch axis
            letter = next((need for need in "IO" if need not in letters), "B")
            if letter == "O":
                outs.insert(letters[:place].count("O"), -1)
        letters[place] = next(spare) if letter == "B" else letter
    for need, meaning in (("O", "outputs"), ("I", "inputs")):
        if need not in letters:
            return f"it has no axis of {meaning} in"
    return Stored(tuple(sizes), "".join(letters), tuple(outs), cut, flipped)


def blocks_of(
    stored: Stored, cuts: Iterable[tuple[int, int, int]], sizes: Sequence[int]
) -> set[tuple[int, int]]:
    """Return where the parts of a weight's outputs begin and end; none if they are no blocks.

    Parameters
    ----------
    stored : Stored
        The weight.
    cuts : iterable of (int, int, int)
        Parts of the operation's result: the axis of its weight, and from where to where.
    sizes : sequence of int
        The shape of the operation's weight.
    """
    lengths = [n for n, letter in zip(stored.shape, stored.letters, strict=True) if letter == "O"]
    if stored.cut is not None:
        inner = prod(lengths[1:])
        return {(stored.cut[0] * inner, stored.cut[1] * inner)}
    ranges = set()
    for axis, start, stop in cuts:
        depth = 0
        while depth < len(stored.outs) and stored.outs[depth] == axis:
            depth += 1
        if axis in stored.outs[depth:] or prod(lengths[:depth]) != sizes[axis] or not depth:
            return set()
        inner = prod(lengths[depth:])
        ranges.add((start * inner, stop * inner))
    return ranges


def identity(
    left: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    kernel: Sequence[int],
    flipped: Sequence[bool],
) -> dict[str, Any]:
    """Return the identity tap of a convolution and its phases, as `idinit_ref.plan` takes them.

    Parameters
    ----------
    left, dilation, kernel : sequence of int
        Its left padding, and its kernel's dilation and size.
    strides : sequence of int
        By how much it spreads its input: more than 1 in a transposed convolution.
    flipped : sequence of bool
        Whether the parameter holds the kernel reversed, as ``transpose_kernel=True`` does.

    Returns
    -------
    dict
        `tap`, and `stride` where there is more than one phase. ``jax.lax`` slides the kernel as it
        is, so output stride * j + r meets input j at tap left - r: a negative stride. Reversed it
        is a positive one.
    """
    tap = identity_tap(left, dilation, kernel)
    phases = [s // gcd(s, d) for s, d in zip(strides, dilation, strict=True)]
    axes = list(zip(tap, phases, kernel, flipped, strict=True))
    found = {"tap": tuple(k - 1 - at if turned else at for at, _, k, turned in axes)}
    if any(phase > 1 for phase in phases):
        found["stride"] = tuple(p if turned or p == 1 else -p for _, p, _, turned in axes)
    return found
