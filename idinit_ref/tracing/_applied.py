"""Internal: weights that are products and sums, applied to a signal one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..core.layout import SPATIAL
from ._labels import Einsum, Labels
from ._made import Made, Shape, Terms, names_of
from ._patches import Windows
from ._recipes import is_eye, kernel_of, opened, ordered, uncopied
from ._values import Signal, Value, is_zero

__all__ = ["Applied"]


class Applied(Windows):
    """A drawing with weights that have recipes."""

    def _product(self, of: Einsum) -> Value:
        """Draw a product: see :class:`Products`.

        A weight that is a product or a sum of parameters is applied as these, one after the other.
        Matrices that are joined read the parts of a joined signal each on its own.
        """
        for _, made, own, signal, rest in of.sides:
            if not isinstance(made, Made) or not isinstance(signal, Signal):
                continue
            if apart := self._in_parts(signal, made, rest, own, of.out):
                return self._of_pairs(of, apart, rest, own)
            is_windowed = bool(signal.patches and made.parts)
            if not (made.recipe or is_windowed) or len(own) != len(made.shape or ()):
                continue
            one, labels = uncopied(made, own, rest)
            by = self.applied if made.recipe else self.by_windows
            found = by(of, one, signal, labels, rest)
            if found is not None:
                return found
        return super()._product(of)

    def _of_pairs(
        self, of: Einsum, pairs: Iterable[Sequence[Value]], rest: Labels, own: Labels
    ) -> Value:
        """Draw the sum of products of some signals, each with a weight."""
        products = (self._product(of._replace(values=p, labels=(rest, own))) for p in pairs)
        return self._summed_up(of.name, of.shape, products)

    def _in_parts(
        self, signal: Signal, made: Made, rest: Labels, own: Labels, out: Labels
    ) -> list[list[Value]] | None:
        """Return the parts of a concatenation, each with the matrix that reads it alone.

        [x, h] [w, u] is x w + h u, as a recurrent cell may have it.
        """
        joined, names = self.joins.get(signal.node), names_of([made])
        if joined is None or joined.is_new or len(names) < 2 or made.shape is None:
            return None
        label = rest[joined.axis]
        if label in out or label not in own:
            return None
        at, pairs = [*own].index(label), list[list[Value]]()
        for operand, (start, stop) in zip(joined.operands, pairwise(joined.starts), strict=True):
            read = self.part_along("slice", made, at, start, stop)
            is_data = isinstance(operand, Signal) or is_zero(operand)
            if not is_data or not isinstance(read, Made) or not read.is_plain:
                return None
            pairs.append([operand, read])
        return pairs if names == names_of(read for _, read in pairs) else None

    def convolution(
        self, name: str, signal: Value, kernel: Value, letters: str, shape: Shape | None, **how: Any
    ) -> Value:
        """Draw a convolution: see :class:`Layers`; its kernel may be a product or a sum."""
        if isinstance(kernel, Made) and isinstance(signal, Signal) and letters and shape:
            found: Value | None = None
            if isinstance(kernel.recipe, Terms):
                terms = (
                    self.convolution(name, signal, term, letters, shape, **how)
                    for term in kernel.recipe.values
                )
                found = self._summed_up(name, shape, terms)
            elif kernel.recipe and not how.get("options"):
                found = self._in_two(name, signal, kernel, letters, shape, how)
            elif signal.shape == shape and _passes(kernel, letters, how):
                found = signal
            elif kernel.parts and signal.patches:
                found = self.at_places(name, signal, kernel, letters, shape, how)
            elif not kernel.parts:
                found = self.chosen_by(name, signal, kernel, letters, shape, how)
            if found is not None:
                return found
        return super().convolution(name, signal, kernel, letters, shape, **how)

    def _in_two(
        self, name: str, signal: Signal, kernel: Made, letters: str, shape: Shape, how: Any
    ) -> Value | None:
        """Draw a convolution whose kernel is a product; None if that does not fit."""
        found, axis = kernel_of(kernel, letters), how["channels"]
        inputs = dict(zip(letters, kernel.shape or (), strict=True))["I"]
        is_moved = [*(how.get("before") or how["space"])] != [*how["space"]]
        if found is None or is_moved or (signal.shape or ())[axis] != inputs:
            return None
        at = found.at
        rest: list[Hashable] = [*range(len(shape))]
        own, between = ([*rest[:axis], c, *rest[axis + 1 :]] for c in (at, found.between))

        def mixed(value: Value, ours: Labels, out: Labels, size: int) -> Value:
            sizes = list(value.shape or ())
            sizes[axis] = size
            matrix, labels = found.matrix
            return self.product(name, [value, matrix], [ours, labels], out, tuple(sizes))

        size = (found.kernel.shape or ())[letters.index(at)]
        if at == "I":
            first = mixed(signal, own, between, size)
            return self.convolution(name, first, found.kernel, letters, shape, **how)
        middle = (*shape[:axis], size, *shape[axis + 1 :])
        last = self.convolution(name, signal, found.kernel, letters, middle, **how)
        return mixed(last, between, own, shape[axis])

    def applied(
        self,
        of: Einsum,
        made: Made,
        signal: Signal,
        own: Labels,
        rest: Labels,
        router: Signal | None = None,
    ) -> Value | None:
        """Draw a product with a weight by its recipe; None if that does not fit.

        A router stands for the constant in the recipe of a mixture.
        """
        name, out, shape = of.name, of.out, of.shape
        if isinstance(made.recipe, Terms):
            terms = [(signal, term) for term in made.recipe.values]
            return self._of_pairs(of, terms, rest, own)
        found, sizes = opened(made), signal.shape
        is_plain = all(len({*each}) == len(each) for each in (own, rest, out))
        if found is None or sizes is None or shape is None or not is_plain:
            return None
        parts: dict[Hashable, Sequence[tuple[Hashable, int]]]
        parts = dict(zip(own, found.axes, strict=True))
        pairs = [parts.get(c, [(c, size)]) for c, size in zip(rest, sizes, strict=True)]
        data = [pair for each in pairs for pair in each]
        ends = [
            pair for c, size in zip(out, shape, strict=True) for pair in parts.get(c, [(c, size)])
        ]
        factors = ordered(found.factors, [c for c, _ in data], [c for c, _ in ends])
        if factors is None:
            return None
        value: Value = self.reshape(name, signal, tuple(size for _, size in data))
        have = dict(data)
        for number, factor in enumerate(factors):
            every = have | dict(zip(factor.labels, factor.made.shape or (), strict=True))
            left = {*factors[1].labels, *dict(ends)}
            new = dict(ends) if number else {c: n for c, n in every.items() if c in left}
            pair = [value, factor.made]
            if router is not None and not names_of([factor.made]):
                pair = [value, self.reshape(name, router, factor.made.shape)]
            value = self.product(name, pair, [[*have], factor.labels], [*new], tuple(new.values()))
            have = new
        return self.reshape(name, value, shape)


def _passes(kernel: Made, letters: str, how: Mapping[str, Any]) -> bool:
    """Whether a convolution with a constant kernel returns its input, of the same shape."""
    left, spatial = how["left"], [c for c in SPATIAL if c in letters]
    by = how.get("dilation") or (1,) * len(spatial)
    if left is None or any(at % step for at, step in zip(left, by, strict=True)):
        return False
    taps = {c: at // step for c, at, step in zip(spatial, left, by, strict=True)}
    sizes = dict(zip(letters, kernel.shape or (), strict=True))
    is_inside = all(at < sizes[c] for c, at in taps.items())
    return is_inside and max(how.get("spread") or [1]) == 1 and is_eye(kernel, letters, taps)
