"""``idinit show --plot``: a weight as a picture in a file, and the drawing that the gallery uses.

What is drawn comes from a plan's closed form, so that any size can be. matplotlib is imported
where it is used and not before.
"""

from __future__ import annotations

import errno
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.dtypes import Format, format_of, round_value
from ..core.layout import Layout, Strip, strides_of
from ..core.pattern import Term
from ..core.plan import Plan
from ..errors import OptionError, message
from ..files.whole import whole_file
from ._matrix import (
    Alike,
    Floats,
    cells,
    column_text,
    different,
    extract,
    title_text,
    value_text,
)
from ._scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["NOISY", "check", "draw", "heat", "legend", "noise_text", "page"]

NOISY = 2**13  # the entries of the largest matrix whose noise is drawn: a row of it is slow
_STYLE: dict[str, Any] = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "idinit"}
_FINE = 30  # cells an inch: finer lines are not seen
_SIZES = 6  # matrices of different sizes that are drawn
_TAPS, _ROWS, _ACROSS = 121, 16, 11  # taps that are drawn apart, and how many down and across
_SPARSE = 5  # taps across that leave room for words
_LINE = 0.18  # the height of a line of text, in inches


def heat(
    axes: Axes,
    values: Floats,
    scale: Scale,
    *,
    lowest: Floats | None = None,
    shape: tuple[int, int] | None = None,
    ticks: tuple[int, int] = (6, 6),
    cell: float = 0.0,
) -> AxesImage:
    """Draw a matrix as a heat map, row 0 on top.

    Parameters
    ----------
    axes : matplotlib Axes
        Where to.
    values : ndarray of float64, shape (h, w)
        The matrix, or its cells (`cells`).
    scale : Scale
        The colours.
    lowest : ndarray of float64, shape (h, w), optional
        As values, with the negative of equal entries: a cell where it differs gets two colours.
    shape : (int, int), optional
        The entries of the matrix, if they are more than the cells.
    ticks : (int, int)
        How many there may be, down and across.
    cell : float
        The least side of a cell in inches: entries are written into large ones. 0: they are not.

    Returns
    -------
    matplotlib AxesImage
        Its array is `values`.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import idinit_ref as ir
    >>> w = ir.idi((6, 4))
    >>> image = heat(Figure().subplots(), w, Scale.of([ir.plan(w.shape)]))
    >>> bool((image.get_array() == w).all())
    True
    """
    from matplotlib.collections import PolyCollection

    h, w = values.shape
    m, n = shape or values.shape
    norm, colours = scale.colours()
    left, right, bottom, top = -0.5, n - 0.5, m - 0.5, -0.5
    image = axes.imshow(
        values,
        cmap=colours,
        norm=norm,
        interpolation="none",
        aspect="auto",
        extent=(left, right, bottom, top),
    )
    high, wide = (bottom - top) / h, (right - left) / w
    if lowest is not None and (both := np.argwhere(lowest != values)).size:
        corner = np.array([(0.5, 0), (1, 0), (1, 1), (0.5, 1)]) * (wide, high)  # the right half
        corners = corner + both[:, None, ::-1] * (wide, high) + np.array([left, top])
        second = colours(norm(lowest[tuple(both.T)]))
        axes.add_collection(
            PolyCollection(corners, facecolors=second, linewidths=0, antialiased=False)
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    for axis, size, most in ((axes.yaxis, m, ticks[0]), (axes.xaxis, n, ticks[1])):
        places = _ticks(size, most)
        axis.set_ticks([float(place) for place in places], [_count(place) for place in places])
    axes.tick_params(length=2, width=0.5, labelsize=8)
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
        spine.set_color("0.4")
    if (h, w) == (m, n) and max(m, n) <= 40:
        axes.hlines(np.arange(1, m) - 0.5, left, right, colors="white", linewidth=0.8)
        axes.vlines(np.arange(1, n) - 0.5, top, bottom, colors="white", linewidth=0.8)
    if cell >= 0.15 and (h, w) == (m, n):
        texts = {(i, j): value_text(values[i, j]) for i, j in np.argwhere(values).tolist()}
        fit = max(map(len, texts.values()), default=0) <= (cell - 0.05) / 0.065
        for (i, j), text in texts.items():
            short = text if fit else "+" if values[i, j] > 0 else "\N{MINUS SIGN}"
            ink = "white" if scale.position(values[i, j]) > 0.7 else "black"
            axes.text(j, i, short, color=ink, ha="center", va="center", fontsize=7)
    return image


def _ticks(size: int, most: int) -> list[int]:
    """Return 0 and multiples of 1, 2 or 5 times a power of ten below a size, at most so many."""
    steps = (factor * 10**power for power in count() for factor in (1, 2, 5))
    return list(range(0, size, next(step for step in steps if step * most >= size)))


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**7 else f"{number:.3g}"


def legend(figure: Any, scale: Scale, **where: Any) -> None:
    """Add a legend that names the values of a scale, and 0.

    Parameters
    ----------
    figure : matplotlib Figure, SubFigure or Axes
        Where to.
    scale : Scale
        One with names.
    **where
        Of its ``legend``: loc and others.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> figure = Figure()
    >>> legend(figure, Scale(1.0, 1.0, {1.0: "tau = 1"}), loc="upper left")
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['tau = 1', '0 (no entry)']
    """
    from matplotlib.patches import Patch

    norm, colours = scale.colours()
    named = [*sorted(scale.names.items(), reverse=True), (0.0, "0 (no entry)")]
    handles = [
        Patch(facecolor=colours(norm(value)), edgecolor="0.4", linewidth=0.5, label=name)
        for value, name in named
    ]
    options = {"frameon": False, "ncols": 3, "borderpad": 0, "borderaxespad": 0}
    figure.legend(handles=handles, **(options | where))


class _Part(NamedTuple):
    """One of several alike matrices, ready to be drawn."""

    alike: Alike
    terms: tuple[Term, ...]
    noisy: Floats | None

    @property
    def m(self) -> int:
        return self.alike.m

    @property
    def n(self) -> int:
        return self.alike.n

    def sampled(
        self, count: int, strips: Sequence[Strip], wide: float, high: float
    ) -> tuple[Floats, Floats]:
        """Return cells of `count` columns, zeros where no strip has them; and the lowest ones.

        They are as many as can be seen in a width and a height.
        """
        m = self.m
        size = min(m, max(int(_FINE * high), 1)), min(count, max(int(_FINE * wide), 1))
        if self.noisy is not None:
            shown = np.zeros((m, count))
            for s in strips:
                columns = s.first + s.step * np.arange(s.length)
                shown[:, s.offset + s.stride * np.arange(s.length)] = self.noisy[:, columns]
            made = _coarse(shown, size)
            return made, made
        known = [term.value for term in self.terms]
        both = size != (m, count) and min(known) < 0 < max(known)
        found = [
            cells(self.terms, m, count, size, strips=strips, sign=sign)
            for sign in ((1, -1) if both else (1,))
        ]
        return found[0], found[-1]


def _part(p: Plan, alike: Alike, to: Format) -> _Part:
    terms = tuple(
        term._replace(value=round_value(term.value, to, "an entry"))
        for term in p.terms(alike.m, alike.n)
    )
    few = p.loosen and alike.m * alike.n <= NOISY
    return _Part(alike, terms, extract(p, alike, to).dense() if few else None)


def _coarse(dense: Floats, size: tuple[int, int]) -> Floats:
    """Return the largest entry of each cell, as `cells`."""
    (m, n), (h, w) = dense.shape, size
    down, across = [i * m // h for i in range(h)], [j * n // w for j in range(w)]
    high = np.maximum.reduceat(np.maximum.reduceat(dense, down, 0), across, 1)
    low = np.minimum.reduceat(np.minimum.reduceat(dense, down, 0), across, 1)
    return np.where(high >= -low, high, low)


class _Panel(NamedTuple):
    """A tap of a kernel, and where it is drawn."""

    tap: tuple[int, ...]
    phase: int
    strips: tuple[Strip, ...]  # its columns of the matrix; offsets and strides are channels
    row: int
    column: int


def _panels(at: Layout) -> list[_Panel]:
    """Return a kernel's taps, a row of panels or some for each of its rows; none if too many."""
    kernel = at.kernel
    taps = prod(kernel)
    if not 1 < taps <= _TAPS:
        return []
    deep = len(kernel) == 3 and prod(kernel[1:]) <= _ACROSS  # then a plane is a row
    line = taps if max(kernel) == taps else prod(kernel[1:]) if deep else kernel[-1]
    rows = -(-line // _ACROSS)  # that a line is broken into
    across = -(-line // rows)
    if taps // line * rows > _ROWS:
        return []
    of = {tap: phase for phase, members in enumerate(at.phases) for tap in members}
    found = []
    for s, tap in enumerate(product(*map(range, kernel))):
        row, column = s // line * rows + s % line // across, s % line % across
        found.append(_Panel(tap, of.get(tap, 0), _columns(at, tap), row, column))
    return found


def _columns(at: Layout, tap: tuple[int, ...]) -> tuple[Strip, ...]:
    """Return the columns of one tap's channels, in the first group."""
    spans = dict(zip(at.spatial_axes, tap, strict=True))
    box = [range(spans.get(axis, 0), spans.get(axis, 0) + 1) for axis in range(len(at.shape))]
    box[at.i_axis] = range(at.channels)
    strides = strides_of([len(span) for span in box])  # one channel beside the other
    return next(iter(at.sheets(tuple(box), strides))).strips


class _Flow:
    """What stands on a page from top to bottom, in inches; the page gets the height it needs."""

    def __init__(self, figure: Figure, width: float) -> None:
        self.figure, self.width, self.y = figure, width, 0.15
        self._placed: list[tuple[Any, tuple[float, float, float, float]]] = []

    def text(self, text: str, x: float = 0.2, size: float = 9, **style: Any) -> None:
        """Add text below, broken into lines that fit."""
        for line in textwrap.wrap(text, int((self.width - x - 0.1) * 72 / (size * 0.6))):
            made = self.figure.text(0, 0, line, va="top", fontsize=size, **style)
            self._placed.append((made, (x, self.y, 0, 0)))
            self.y += size / 50

    def axes(self, x: float, y: float, wide: float, high: float, label: str) -> Axes:
        """Add axes with their upper left corner there."""
        made = self.figure.add_axes((0, 0, 1, 1), label=label)
        self._placed.append((made, (x, y, wide, high)))
        return made

    def place(self) -> None:
        """Set the page's size, and put everything in its place."""
        width, height = self.width, self.y
        self.figure.set_size_inches(width, height)
        for made, (x, y, wide, high) in self._placed:
            if high:
                made.set_position((x / width, 1 - (y + high) / height, wide / width, high / height))
            else:
                made.set_position((x / width, 1 - y / height))


_LEFT, _RIGHT = 1.0, 0.35  # margins beside matrices, in inches


def _fit(
    m: int, n: int, room: tuple[float, float], cell: float, least: float
) -> tuple[float, float]:
    """Return width and height of a matrix: square cells, unless it would be a mere line then."""
    w, h = min(room[0], cell * n), min(room[1], cell * m)
    if h > w * m / n:
        h = max(w * m / n, min(h, least))
    if w > h * n / m:
        w = max(h * n / m, min(w, least))
    return w, h


class _Grid(NamedTuple):
    """How a kernel's taps stand beside and below each other, in inches."""

    across: int
    down: int

    @property
    def sparse(self) -> bool:
        """Whether there is room for words."""
        return self.across <= _SPARSE

    @property
    def room(self) -> tuple[float, float]:
        """The most of a tap's width and height."""
        gap, above = self.gaps
        return 7.0 / self.across - gap, max(min(2.2, 8.0 / self.down - above), 0.4)

    @property
    def gaps(self) -> tuple[float, float]:
        """What is free beside a tap, and above it for its name."""
        return (0.22, 0.27) if self.sparse else (0.1, 0.22)

    def pitch(self, wide: float) -> float:
        """Return the distance of two beside each other, so that the words have room."""
        return max(wide, 0.6 if self.sparse else 0.45) + self.gaps[0]


def draw(plan: Plan, figure: Figure, *, dtype: Any = "float64") -> None:
    """Draw a weight: its matrix (one of each size, if it has several), and a kernel's taps.

    Sign and size are colours on a symmetric logarithmic scale, whose values a legend names. A
    matrix of more entries than can be seen is drawn in cells, each with its largest entry.

    Parameters
    ----------
    plan : Plan
        The weight.
    figure : matplotlib Figure
        An empty one. It gets the size that the picture needs.
    dtype : dtype of any framework
        The values are those that it holds.

    Raises
    ------
    DTypeError, RoundingError
        If the dtype cannot hold the weight.

    Notes
    -----
    Sections 1 to 4 of the specification. Noise is drawn in matrices of up to `NOISY` entries; of
    larger ones the picture says that it is left out.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> import idinit_ref as ir
    >>> figure = Figure()
    >>> draw(ir.plan((4, 2, 1, 3), "zero"), figure)
    >>> [axes.get_label() for axes in figure.axes]
    ['legend', 'matrix 4 x 6', 'tap (0, 0)', 'tap (0, 1)', 'tap (0, 2)']
    """
    plan.check(dtype)
    to, at = format_of(dtype), plan.axes
    found = different(plan) if prod(plan.shape) else []
    parts = [_part(plan, alike, to) for alike in found[:_SIZES]]
    panels = _panels(at) if parts else []
    across = max((panel.column for panel in panels), default=0) + 1
    grid = _Grid(across, max((panel.row for panel in panels), default=0) + 1)
    sizes = [_fit(part.m, part.n, (7.0, 5.0), 0.4, 2.2) for part in parts]
    small = [_fit(part.m, at.channels, grid.room, 0.3, 0.9) for part in parts if panels]
    widest = max([3.8, *(w for w, _ in sizes), *(grid.across * grid.pitch(w) for w, _ in small)])
    flow = _Flow(figure, _LEFT + widest + _RIGHT)
    flow.text(title_text(plan), size=11, weight="bold")
    flow.text(_about(plan, to, parts))
    if not parts:
        flow.text("no entries")
        flow.place()
        return
    noisy = [part.noisy.ravel() for part in parts if part.noisy is not None]
    scale = Scale.of_noise(np.concatenate(noisy)) if noisy else Scale.of([plan], dtype)
    _add_legend(flow, scale)
    for k, part in enumerate(parts):
        _add_matrix(flow, plan, part, sizes[k], scale)
        if any(later.m == part.m for later in parts[k + 1 :]):  # another phase of the same rows
            continue
        if panels:
            whole = [_part(plan, alike, to) for alike in _phases(plan, part)]
            _add_taps(flow, whole, panels, grid, small[k], scale)
        elif prod(at.kernel) > 1:
            flow.text(f"the {prod(at.kernel):,} taps are too many to be drawn one by one")
            flow.y += 0.12
    if len(found) > len(parts):
        flow.text(f"and {len(found) - len(parts):,} matrices of other sizes, which are not drawn")
    flow.place()


def _phases(p: Plan, part: _Part) -> list[Alike]:
    """Return the matrices of all phases of a part's rows."""
    return [part.alike._replace(phase=k, n=n) for k, n in enumerate(p.axes.widths)]


def noise_text(p: Plan) -> str:
    """Say what noise a weight has, and where.

    Parameters
    ----------
    p : Plan
        A loosened one.

    Returns
    -------
    str

    Examples
    --------
    >>> import idinit_ref as ir
    >>> noise_text(ir.plan((2, 2), loosen=0.1, loosen_at="entries"))
    'deviation 0.1, in the non-zeros'
    """
    where = "in every entry" if p.loosen_at == "all" else "in the non-zeros"
    return f"deviation {p.loosen:g}, {where}"


def _about(p: Plan, to: Format, parts: Sequence[_Part]) -> str:
    """Return the options that have a say in what is drawn."""
    said = [f"tau = {p.gain:g}" if p.role == "transit" else f"eps = {p.eps:g}"]
    if p.role == "transit" and any(part.m < part.n for part in parts):
        said.append(f"wide: {p.wide}")
    if p.role == "zero" and any(2 * part.m <= part.n for part in parts) and p.form != "pair":
        said.append(f"form: {p.form}")
    if p.axes.kernel:
        said.append(f"taps: {p.taps}")
    if len(p.axes.phases) > 1:
        said.append(f"stride: {', '.join(map(str, p.stride or ()))}")
    if p.groups > 1:
        said.append(f"{p.groups} groups" + " (transposed)" * p.transposed)
    if p.blocks is not None:
        said.append(f"blocks: {', '.join(map(str, p.blocks))}")
    if p.loosen:
        said.append(f"noise of {noise_text(p)}, seed {p.seed}")
    return "; ".join([*said, f"in {to.name}"])


def _add_legend(flow: _Flow, scale: Scale) -> None:
    """Add what names the values, or a colour bar where they are too many."""
    flow.y += 0.08
    if scale.names:
        longest = max(12, *map(len, scale.names.values()))
        columns = max(1, int((flow.width - 0.3) / (0.5 + 0.075 * longest)))
        rows = -(-(len(scale.names) + 1) // columns)
        axes = flow.axes(0.2, flow.y, flow.width - 0.3, rows * _LINE, "legend")
        axes.set_axis_off()
        legend(axes, scale, loc="upper left", ncols=columns)
        flow.y += rows * _LINE + 0.12
        return
    from matplotlib.cm import ScalarMappable

    norm, colours = scale.colours()
    axes = flow.axes(_LEFT, flow.y, flow.width - _LEFT - 0.6, 0.14, "values")
    bar = flow.figure.colorbar(ScalarMappable(norm, colours), cax=axes, orientation="horizontal")
    sizes = dict.fromkeys((scale.smallest, scale.largest))
    ticks = [*(-size for size in reversed(sizes)), 0.0, *sizes]
    bar.set_ticks(ticks, labels=[value_text(tick) for tick in ticks])
    bar.minorticks_off()
    axes.tick_params(length=2, width=0.5, labelsize=8)
    flow.y += 0.38
    flow.text("linear between the two marks beside 0, logarithmic beyond them", _LEFT, 8)
    flow.y += 0.12


def _add_matrix(flow: _Flow, p: Plan, part: _Part, size: tuple[float, float], scale: Scale) -> None:
    at, (wide, high) = p.axes, size
    label = f"matrix {part.m:,} x {part.n:,}"
    drawn, lowest = part.sampled(part.n, [Strip(0, 1, part.n, 0, 1, part.n)], wide, high)
    copies = f", {part.alike.copies:,} copies" if part.alike.copies > 1 else ""
    if copies and p.loosen:
        copies += "; each with noise of its own, the first is drawn"
    flow.text(f"{label}{copies}", weight="bold")
    columns = column_text(at, part.alike.phase)
    beside = columns.startswith("column =") and len(columns) <= wide * 16  # below the picture
    if not beside:
        flow.text(columns)
    if p.loosen and part.noisy is None:
        flow.text(f"noise of {noise_text(p)}; not in the picture")
    flow.text(_coarseness(part.m, part.n, drawn.shape, (drawn != lowest).any()))
    flow.y += 0.06
    axes = flow.axes(_LEFT, flow.y, wide, high, label)
    _add_heat(axes, drawn, lowest, (part.m, part.n), size, scale)
    _name_rows(axes, high)
    axes.set_xlabel(columns.replace("column", "input j", 1) if beside else "input j")
    flow.y += high + 0.55


def _add_taps(
    flow: _Flow,
    parts: Sequence[_Part],
    panels: Sequence[_Panel],
    grid: _Grid,
    size: tuple[float, float],
    scale: Scale,
) -> None:
    """Add a kernel's taps: an outputs x channels map each. `parts` are its phases."""
    (wide, high), m = size, parts[0].m
    channels = max(sum(strip.length for strip in panel.strips) for panel in panels)
    made = [parts[each.phase].sampled(channels, each.strips, wide, high) for each in panels]
    named = "" if grid.sparse else " (each one's place above it)"
    flow.text(f"the same, tap by tap{named}", weight="bold")
    both = any((drawn != lowest).any() for drawn, lowest in made)
    flow.text(_coarseness(m, channels, made[0][0].shape, both))
    above, taken = grid.gaps[1], {(panel.row, panel.column) for panel in panels}
    for (tap, *_, row, column), (drawn, lowest) in zip(panels, made, strict=True):
        x, y = _LEFT + column * grid.pitch(wide), flow.y + above - 0.1 + row * (high + above)
        place = ", ".join(map(str, tap))
        axes = flow.axes(x, y, wide, high, f"tap ({place})")
        _add_heat(axes, drawn, lowest, (m, channels), size, scale)
        title, height = (f"tap {place}", 8) if grid.sparse else (place, 7)
        axes.set_title(title, loc="left", fontsize=height, pad=2)
        if column:
            axes.tick_params(labelleft=False)
        else:
            _name_rows(axes, high)
        if (row + 1, column) in taken:
            axes.tick_params(labelbottom=False)
        elif grid.sparse or not column:
            axes.set_xlabel("channel c")
    flow.y += grid.down * (high + above) + 0.6


def _name_rows(axes: Axes, high: float) -> None:
    """Name the axis down; across, where a low one has no room."""
    axes.set_ylabel("output i")
    if high < 0.7:
        axes.yaxis.label.set(rotation=0, ha="right", va="center")


def _coarseness(m: int, n: int, size: tuple[int, ...], both: bool | np.bool) -> str:
    """Say what a cell is, where it is more than one entry."""
    if size == (m, n):
        return ""
    high, wide = -(-m // size[0]), -(-n // size[1])
    text = f"each cell is up to {high:,} x {wide:,} entries; it shows the largest entry"
    return text + ("; one in two colours has both signs" if both else "")


def _add_heat(
    axes: Axes,
    drawn: Floats,
    lowest: Floats,
    shape: tuple[int, int],
    size: tuple[float, float],
    scale: Scale,
) -> None:
    wide, high = size
    room = 0.16 + 0.075 * len(_count(shape[1] - 1))
    heat(
        axes,
        drawn,
        scale,
        lowest=lowest,
        shape=shape,
        ticks=(min(max(int(high / 0.2), 1), 12), min(max(int(wide / room), 1), 12)),
        cell=min(wide / shape[1], high / shape[0]),
    )


# Files --------------------------------------------------------------------------------------------


def check(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise if a picture cannot be written there.

    Parameters
    ----------
    path : path
        The file, .svg or .png.
    force : bool
        Whether a file that is there may be replaced.

    Raises
    ------
    OptionError
        If it has another suffix, is a folder or a device, its folder is not there, or it is there
        already; if matplotlib cannot be imported.

    Examples
    --------
    >>> from idinit_ref.errors import OptionError
    >>> try:
    ...     check("weight.gif")
    ... except OptionError as problem:
    ...     print(problem)
    plot = 'weight.gif', but the name should end in .svg or .png; write weight.svg
    """
    target, name = Path(path), os.fspath(path)
    if target.suffix.lower() not in (".svg", ".png"):
        cure = f"write {target.with_suffix('.svg') if target.name else 'weight.svg'}"
        raise OptionError(message("plot", name, "the name should end in .svg or .png", cure))
    if os.path.isdir(target):
        should = "it should be the name of a file, and a folder has it"
        raise OptionError(message("plot", name, should, "choose another name"))
    if not os.path.isdir(target.parent):
        should = f"there is no folder {target.parent}"
        raise OptionError(message("plot", name, should, "make it first, or choose another"))
    real = os.path.realpath(target)
    if os.path.lexists(real) and not os.path.isfile(real):
        should = "it should be the name of a file, and a device, a pipe or a dead link has it"
        raise OptionError(message("plot", name, should, "choose another name"))
    if os.path.lexists(target) and not force:
        cure = "choose another name, or add --force to replace it"
        raise OptionError(message("plot", name, "no such file should be there yet", cure))
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except Exception as problem:  # a broken one raises anything
        why = f"{type(problem).__name__}: {problem}"
        should = f"a picture needs matplotlib, which cannot be imported ({why})"
        cure = "pip install matplotlib"
        raise OptionError(message("plot", name, should, cure)) from problem


_PLACE = "its folder should be one that takes new files", "choose a folder that you can write to"
_ROOM = "there should be room for it", "make room there, or choose another folder"
_REFUSALS = {
    errno.ENAMETOOLONG: ("the system should take its name", "choose a shorter one"),
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
}


@contextmanager
def page(
    path: str | os.PathLike[str], size: tuple[float, float] = (6.4, 4.8), title: str = ""
) -> Iterator[Figure]:
    """Yield a figure that becomes a file at the end: the same bytes for the same drawing.

    Parameters
    ----------
    path : path
        The file, .svg or .png. One that is there is replaced, of a link the one that it leads to.
    size : (float, float)
        Width and height in inches.
    title : str
        What the file says of itself to who does not see it.

    Yields
    ------
    matplotlib Figure
        Whatever the user's own matplotlib settings are, those are its defaults.

    Raises
    ------
    OptionError
        If it cannot be written; nothing is left then.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with page(Path(folder) / "a.png") as figure:
    ...         _ = figure.subplots().plot([1, 2])
    ...     (Path(folder) / "a.png").read_bytes()[1:4]
    b'PNG'
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    target = Path(path)
    form = target.suffix.lower()[1:]
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size)
        yield figure
        named: dict[str, Any] = {"Title": title} if title else {}
        lacks = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[form]
        try:
            with whole_file(Path(os.path.realpath(target))) as file:
                figure.savefig(file, format=form, dpi=150, metadata=named | lacks)
        except OSError as problem:
            should, cure = _REFUSALS.get(problem.errno or 0, _PLACE)
            should += f" ({problem.strerror or problem})"
            raise OptionError(message("plot", os.fspath(path), should, cure)) from problem
