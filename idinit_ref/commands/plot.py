"""``idinit show --plot``: draws a weight; the gallery uses the same functions.

A picture is drawn from a plan's closed form, so any size is possible. matplotlib is imported only
where it is used.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.dtypes import Format, format_of
from ..core.pattern import called
from ..core.plan import Plan
from ..core.sheets import Strip
from ._matrix import Floats, column_text, different, noise_text, title_text, value_text
from ._panels import CELLS, DrawnMatrix, Panel, panels_of, part_of
from ._scale import Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_SIZES = 6  # the most matrices of different sizes
_WRITTEN = 12  # the longest side of a matrix with numbers
_SPARSE = 5  # the most taps across with room for words
_WIDTH, _LETTERS = 7.6, 88  # the width of a page in inches, and of its lines in letters


def heat(
    axes: Axes,
    values: Floats,
    scale: Scale,
    *,
    lowest: Floats | None = None,
    shape: tuple[int, int] | None = None,
    ticks: tuple[int, int] = (6, 6),
    numbers: bool = False,
) -> AxesImage:
    """Draw a matrix, or its cells, as a heat map with row 0 on top; return its image.

    `lowest` is like `values`, but has the negative one of two entries of equal size: a cell where
    they differ gets two colours. `shape` is that of the matrix, if it has more entries than cells.
    `ticks` is the most ticks down and across. `numbers` writes entries into large enough cells.

    >>> from matplotlib.figure import Figure
    >>> import idinit_ref as ir
    >>> w = ir.idi((6, 4))
    >>> image = heat(Figure().subplots(), w, Scale.of([ir.plan(w.shape)]))
    >>> bool((image.get_array() == w).all())
    True
    """
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    h, w = values.shape
    m, n = shape or values.shape
    norm, colours = scale.colours()
    edges = (-0.5, n - 0.5, m - 0.5, -0.5)
    options: dict[str, Any] = {"interpolation": "none", "aspect": "auto", "extent": edges}
    image = axes.imshow(values, cmap=colours, norm=norm, **options)
    high, wide = m / h, n / w
    if lowest is not None and (both := np.argwhere(lowest != values)).size:
        corner = np.array([(0.5, 0), (1, 0), (1, 1), (0.5, 1)]) * (wide, high)  # the right half
        corners = corner + both[:, None, ::-1] * (wide, high) - 0.5
        second = colours(norm(lowest[tuple(both.T)]))
        halves = PolyCollection(corners, facecolors=second, linewidths=0, antialiased=False)
        axes.add_collection(halves, autolim=False)
    across = 1 if n >= 1000 and ticks[1] <= 3 else ticks[1]  # "1,000" is wide
    for axis, most in ((axes.yaxis, ticks[0]), (axes.xaxis, across)):
        axis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        axis.set_major_formatter(FuncFormatter(lambda at, _: _count(at + 0.0)))
    axes.tick_params(length=2, width=0.5, labelsize=8)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color="0.4")
    if (h, w) == (m, n) and max(m, n) <= 40:
        axes.hlines(np.arange(1, m) - 0.5, *edges[:2], colors="white", linewidth=0.8)
        axes.vlines(np.arange(1, n) - 0.5, *edges[2:], colors="white", linewidth=0.8)
    if numbers and (h, w) == (m, n) and max(m, n) <= _WRITTEN:
        texts = {(i, j): value_text(values[i, j]) for i, j in np.argwhere(values).tolist()}
        fit = max(map(len, texts.values()), default=0) * max(m, n) <= 5 * _WRITTEN
        for (i, j), text in texts.items():
            short = text if fit else "+" if values[i, j] > 0 else "\N{MINUS SIGN}"
            ink = "white" if scale.position(values[i, j]) > 0.7 else "black"
            axes.text(j, i, short, color=ink, ha="center", va="center", fontsize=7)
    return image


def _count(number: float) -> str:
    return f"{number:,.0f}" if abs(number) < 10**7 else f"{number:.3g}"


def legend(figure: Any, scale: Scale, **where: Any) -> None:
    """Add a legend of a scale's named values and 0 to a figure or axes; options of `legend`.

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


def draw(plan: Plan, figure: Figure, *, dtype: Any = "float64") -> None:
    """Draw a weight: its matrix (one of each size, if it has several), and a kernel's taps.

    Sign and size are colours on a symmetric logarithmic scale; a legend names the values, rounded
    into the dtype. Raises a DTypeError or RoundingError if the dtype cannot hold them. A matrix
    with too many entries is drawn in cells, each with its largest entry. Noise is drawn in matrices
    of up to `NOISY` entries; otherwise a note tells that it is left out. The figure should be
    empty; it gets the size that the picture needs.

    >>> from matplotlib.figure import Figure
    >>> import idinit_ref as ir
    >>> figure = Figure()
    >>> draw(ir.plan((4, 2, 1, 3), "zero"), figure)
    >>> [axes.get_label() for axes in figure.axes]
    ['matrix 4 x 6', 'tap (0, 0)', 'tap (0, 1)', 'tap (0, 2)']
    """
    plan.check(dtype)
    to, at = format_of(dtype), plan.axes
    sizes = different(plan) if prod(plan.shape) else []
    parts = [part_of(plan, alike, to) for alike in sizes[:_SIZES]]
    panels = panels_of(at) if parts else []
    notes = [title_text(plan), _about(plan, to, parts)]
    if not parts:
        notes.append("no entries")
    elif prod(at.kernel) > 1 and not panels:
        notes.append(f"the {prod(at.kernel):,} taps are too many for panels of their own")
    if len(sizes) > len(parts):
        more = len(sizes) - len(parts)
        notes.append(f"{more:,} matrices of other sizes are not drawn")
    figure.set_layout_engine("constrained")
    figure.suptitle(_lines(notes), x=0.02, ha="left", fontsize=9)
    figure.set_size_inches(_WIDTH, 1.2)
    if not parts:
        return
    noisy = [part.noisy.ravel() for part in parts if part.noisy is not None]
    scale = Scale.of_noise(np.concatenate(noisy)) if noisy else Scale.of([plan], dtype)
    rows: list[tuple[DrawnMatrix, bool]] = []  # a matrix, and whether it is drawn tap by tap
    for k, part in enumerate(parts):
        rows.append((part, False))
        later = [other.alike.piece for other in parts[k + 1 :]]
        if panels and part.alike.piece not in later:  # the last phase
            rows.append((part, True))
    down = 1 + max((panel.row for panel in panels), default=0)
    across = 1 + max((panel.column for panel in panels), default=0)
    heights = []
    for part, tapped in rows:
        ratio, side = _ratio(part.m, at.channels if tapped else part.n), _WIDTH - 1.2
        if tapped:
            height = (min(side / across * ratio, 1.6) + 0.25) * down
        else:
            height = min(side * ratio, 3.6, max(0.45 * part.m, 0.5))
        heights.append(height + 1.5)
    figure.set_size_inches(_WIDTH, sum(heights) + 0.2 * len(notes) + 0.6)
    places = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for place, (part, tapped) in zip(places, rows, strict=True):
        if tapped:
            phases = [part.alike._replace(phase=k, n=n) for k, n in enumerate(at.widths)]
            whole = [part_of(plan, phase, to) for phase in phases]
            _draw_taps(place, (down, across), whole, panels, scale)
        else:
            _draw_matrix(place.subplots(), plan, part, scale)
    _name_colours(figure, scale)


def _lines(texts: Sequence[str]) -> str:
    return "\n".join(textwrap.fill(text, _LETTERS) for text in texts if text)


def _ratio(m: int, n: int) -> float:
    """Return height / width of a matrix: square cells, unless it would be too narrow."""
    return float(min(max(m / max(n, 1), 1 / 8), 8))


def _about(p: Plan, to: Format, parts: Sequence[DrawnMatrix]) -> str:
    """Return the options that change the picture."""
    names = {"transit": f"tau = {p.gain:g}", "zero": f"eps = {p.eps:g}"}
    options = [text for role, text in names.items() if role in p.roles]
    transit, zero = ([x for x in parts if x.alike.role == role] for role in names)
    if any(part.m < part.n for part in transit):
        options.append(f"wide: {p.wide}")
    if any(2 * part.m <= part.n for part in zero) and p.form != "pair":
        options.append(f"form: {p.form}")
    if p.axes.kernel:
        options.append(f"taps: {p.taps}")
    if len(p.axes.phases) > 1:
        options.append(f"stride: {', '.join(map(str, p.stride or ()))}")
    if p.groups > 1:
        options.append(f"{p.groups} groups" + " (transposed)" * p.transposed)
    if p.blocks is not None:
        is_one = isinstance(p.role, str) or p.axes.apart
        roles = [""] * len(p.blocks) if is_one else [f" {role}" for role in p.roles]
        texts = [f"{size}{role}" for size, role in zip(p.blocks, roles, strict=True)]
        options.append(f"blocks: {', '.join(texts)}")
    if p.loosen:
        options.append(f"noise of {noise_text(p)}, seed {p.seed}")
    return "; ".join([*options, f"in {to.name}"])


def _name_colours(figure: Figure, scale: Scale) -> None:
    """Add a legend of the values, or a colour bar if they are too many."""
    if scale.names:
        columns = max(1, _LETTERS // (10 + max(12, *map(len, scale.names.values()))))
        legend(figure, scale, loc="outside lower left", ncols=columns, borderaxespad=0.5)
        return
    from matplotlib.cm import ScalarMappable

    norm, colours = scale.colours()
    axes = figure.axes
    where: dict[str, Any] = {"location": "bottom", "aspect": 40, "shrink": 0.9, "pad": 0.02}
    bar = axes[0].figure.colorbar(ScalarMappable(norm, colours), ax=axes[0], **where)
    sizes = dict.fromkeys((scale.smallest, scale.largest))
    ticks = [*(-size for size in reversed(sizes)), 0.0, *sizes]
    bar.set_ticks(ticks, labels=[value_text(tick) for tick in ticks])
    bar.minorticks_off()
    bar.set_label("linear between the marks next to 0, logarithmic beyond them", fontsize=8)
    bar.ax.set_label("values")
    bar.ax.tick_params(length=2, width=0.5, labelsize=8)


def _draw_matrix(axes: Axes, p: Plan, part: DrawnMatrix, scale: Scale) -> None:
    name = "" if isinstance(p.role, str) else f", {called(part.alike.role)}"
    label = f"matrix {part.m:,} x {part.n:,}{name}"
    drawn, lowest = part.sampled(part.n, [Strip(0, 1, part.n, 0, 1, part.n)])
    copies = f", {part.alike.copies:,} copies" if part.alike.copies > 1 else ""
    if copies and part.alike.is_noisy(p):
        copies += "; each has its own noise, the first is drawn"
    columns = column_text(p.axes, part.alike.phase)
    beside = columns.startswith("column =") and len(columns) <= _LETTERS  # below the picture
    notes = [f"{label}{copies}", "" if beside else columns]
    if part.alike.is_noisy(p) and part.noisy is None:
        notes.append(f"noise of {noise_text(p)}; not in the picture")
    notes.append(_coarseness(part.m, part.n, drawn.shape, bool((drawn != lowest).any())))
    ratio = _ratio(part.m, part.n)
    ticks = (8 if ratio >= 0.4 else 2), (8 if ratio <= 1.5 else 2)
    heat(axes, drawn, scale, lowest=lowest, shape=(part.m, part.n), ticks=ticks, numbers=True)
    axes.set_label(label)
    axes.set_title(_lines(notes), loc="left", fontsize=9)
    axes.set_box_aspect(ratio)
    axes.set_anchor("NW")
    axes.set_ylabel("output i")
    named = columns.replace("column", "input j", 1) if beside else "input j"
    axes.set_xlabel(named, loc="left")


def _draw_taps(
    figure: Any,
    grid: tuple[int, int],
    parts: Sequence[DrawnMatrix],
    panels: Sequence[Panel],
    scale: Scale,
) -> None:
    """Draw each of a kernel's taps as an outputs x channels map. `parts` are its phases.

    The axes are placed here: matplotlib's layout of 121 axes would take minutes.
    """
    m, channels = parts[0].m, max(sum(s.length for s in panel.strips) for panel in panels)
    sparse = grid[1] <= _SPARSE
    most = max(CELLS // max(grid), 12)
    sampled = [parts[panel.phase].sampled(channels, panel.strips, most) for panel in panels]
    both = any((drawn != lowest).any() for drawn, lowest in sampled)
    named = "" if sparse else " (its position above each)"
    notes = [f"the same, tap by tap{named}", _coarseness(m, channels, sampled[0][0].shape, both)]
    figure.suptitle(_lines(notes), x=0.02, ha="left", fontsize=9)
    figure.supxlabel("channel c", fontsize=9)
    figure.supylabel("output i", fontsize=9)
    inches = figure.bbox.height / figure.dpi
    high, wide = (1 - 1.1 / inches) / grid[0], 0.88 / grid[1]
    taken = {(panel.row, panel.column) for panel in panels}
    for panel, (drawn, lowest) in zip(panels, sampled, strict=True):
        place = ", ".join(map(str, panel.tap))
        x, y = 0.1 + panel.column * wide, 0.55 / inches + (grid[0] - 1 - panel.row) * high
        axes = figure.add_axes((x, y, 0.8 * wide, high - 0.22 / inches), label=f"tap ({place})")
        heat(axes, drawn, scale, lowest=lowest, shape=(m, channels), ticks=(3, 3), numbers=sparse)
        axes.set_title(f"tap {place}" if sparse else place, fontsize=8 if sparse else 7, pad=2)
        below = (panel.row + 1, panel.column) in taken or (panel.column > 0 and not sparse)
        axes.tick_params(labelsize=7, labelleft=not panel.column, labelbottom=not below)


def _coarseness(m: int, n: int, size: tuple[int, ...], both: bool) -> str:
    """Describe a cell, if it has more than one entry."""
    if size == (m, n):
        return ""
    high, wide = -(-m // size[0]), -(-n // size[1])
    text = f"each cell is up to {high:,} x {wide:,} entries; it shows the largest entry"
    return text + ("; a cell in two colours has both signs" if both else "")
