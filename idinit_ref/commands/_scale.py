"""The colour scale of a weight's entries. matplotlib is imported only where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..core.dtypes import format_of, round_value
from ..core.pattern import Role
from ..core.plan import Plan
from ._matrix import Floats, different, value_text

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

_PALETTE = ("#c65102", "#f5b47a", "#f4f4f2", "#5f9bd0", "#06245c")  # differ in lightness, too
_WEAK = 0.45  # the position of the smallest entry on its side of the palette
_SQUARE = 10**4  # the largest denominator under a root in a name
_LEGEND = 8  # the most named values; for more there is a colour bar


class Scale(NamedTuple):
    """A colour scale: orange below 0, blue above, logarithmic on both sides.

    The colour of the smallest entry is far from that of 0. Negative colours are lighter than
    positive ones, so signs differ even without colours. The scale is linear below the absolute
    value `smallest`. `names` has the names of the values that occur; it is empty if they are too
    many.

    >>> scale = Scale(1e-6, 1.0, {})
    >>> [float(scale.position(x).round(3)) for x in (0.0, 1e-6, 1e-3, 1.0, -1.0)]
    [0.0, 0.45, 0.725, 1.0, -1.0]
    """

    smallest: float
    largest: float
    names: dict[float, str]

    @classmethod
    def of(cls, plans: Sequence[Plan], dtype: Any = "float64") -> Scale:
        """Return the scale of some weights, with the values' names in the formulas.

        >>> from idinit_ref import plan
        >>> Scale.of([plan((3, 8), wide="fold_mean", gain=6)]).names
        {2.0: 'tau/3 = 2', 3.0: 'tau/2 = 3'}
        """
        to, names = format_of(dtype), {}
        for p in plans:
            for alike in different(p):
                for term in alike.terms(p) if alike.copies else ():
                    value = round_value(term.value, to, "an entry")
                    names[value] = f"{_name(p, alike.role, term.value)} = {value_text(value)}"
        sizes = [abs(value) for value in names]
        return cls(min(sizes), max(sizes), names if len(names) <= _LEGEND else {})

    @classmethod
    def of_noise(cls, values: Floats) -> Scale:
        """Return a scale for values that are mostly distinct."""
        sizes = np.abs(values[values != 0])
        return cls(float(np.median(sizes)), float(sizes.max()), {})

    @property
    def weak(self) -> float:
        """The position of the smallest entry; near 1 if all entries have nearly the same size."""
        return 1 - (1 - _WEAK) * min(10 * self._decades, 1.0)

    @property
    def _decades(self) -> float:
        return float(np.log10(self.largest) - np.log10(self.smallest))

    def position(self, values: ArrayLike) -> Floats:
        """Return the positions of values between the colours: -1 to 1."""
        v = np.asarray(values, dtype=np.float64)
        inside = np.clip(v, -self.smallest, self.smallest) / self.smallest
        above = np.log10(np.maximum(np.abs(v), self.smallest)) - np.log10(self.smallest)
        share = above / (self._decades or 1.0)
        return np.asarray(self.weak * inside + (1 - self.weak) * np.sign(v) * share)

    def value(self, positions: ArrayLike) -> Floats:
        """Return the values of positions: the inverse of `position`."""
        at = np.asarray(positions, dtype=np.float64)
        share = np.maximum(np.abs(at) - self.weak, 0) / (1 - self.weak or 1.0)
        with np.errstate(over="ignore"):  # by rounding alone
            above = 10 ** (np.log10(self.smallest) + share * self._decades)
        inside = np.abs(at) / self.weak * self.smallest
        size = np.where(np.abs(at) <= self.weak, inside, np.minimum(above, self.largest))
        return np.asarray(np.sign(at) * size)

    def colours(self) -> tuple[Normalize, Colormap]:
        """Return matplotlib's norm and colour map."""
        from matplotlib.colors import FuncNorm, LinearSegmentedColormap

        middle = (0, (1 - _WEAK) / 2, 0.5, (1 + _WEAK) / 2, 1)
        palette = list(zip(middle, _PALETTE, strict=True))
        # An odd number of colours, so that 0 has its own.
        colours = LinearSegmentedColormap.from_list("idinit", palette, N=513)
        both = (self.position, self.value)
        return FuncNorm(both, vmin=-self.largest, vmax=self.largest), colours


def _name(p: Plan, role: Role, value: float) -> str:
    """Return the name of an entry in the formulas."""
    if role == "zero":
        sign = "+" if (value > 0) == (p.eps > 0) else "-"
        square = (value / p.eps) ** 2
        named = Fraction(square).limit_denominator(_SQUARE)
        root = "" if named == 1 else f"*sqrt({named})"
        if abs(named - square) > 1e-9 * square:
            root = f"*{value_text(square**0.5)}"
        return f"{sign}eps{root}"
    if value == p.gain:
        return "tau"
    if p.wide == "fold_rms":
        return f"tau/sqrt({round((p.gain / value) ** 2)})"
    return f"tau/{round(p.gain / value)}"
