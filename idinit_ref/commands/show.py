"""``idinit show``: prints a weight as numbers or a picture, and its properties.

Every number comes from the core; the properties are computed from these numbers.
"""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from itertools import zip_longest
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import Format, format_of
from ..core.lattice import nnz
from ..core.layout import Layout
from ..core.pattern import Term
from ..core.plan import Plan
from ..core.sheets import column_grid
from ..core.weights import plan
from ..errors import OptionError, message
from ._matrix import (
    NOISY,
    Alike,
    Matrix,
    cells,
    column_text,
    different,
    extract,
    noise_text,
    title_text,
    value_text,
)
from ._terminal import Console, print_json

_ENTRIES = 2**21  # a matrix with more non-zeros, rows or columns is only drawn
_SVD = 512  # the largest smaller side of a matrix that is decomposed
_ROWS, _PIXELS = 32, 48  # the most rows as numbers; the most rows of a picture, half a line each


def run(args: Namespace, console: Console) -> None:
    """Print the weight of shape ``args.size`` and its properties; with ``--plot`` draw it."""
    given = vars(args)
    p = plan(args.size, **{k.name: given[k.name] for k in fields(Plan) if k.name in given})
    p.check(args.dtype)
    path = getattr(args, "plot", None)
    if path is not None:
        from . import _page, plot

        _page.check(path, force=args.force)
        with _page.page(path, title=title_text(p)) as figure:
            plot.draw(p, figure, dtype=args.dtype)
    elif args.force:
        should = "it applies only to the file of --plot, which is not given"
        raise OptionError(message("force", True, should, "leave it out, or add --plot FILE"))
    if args.json:
        print_json(console, _to_dict(p, format_of(args.dtype)))
        return
    name, _, rest = title_text(p).partition(" ")
    console.print(f"{console.style(name, 'bold')} {rest}  in {format_of(args.dtype).name}")
    if prod(p.shape) == 0:
        console.print("\n  no entries")
    else:
        for alike in different(p):
            console.print()
            _show_matrix(p, alike, format_of(args.dtype), console)
    if path is not None:
        console.show(f"\n  picture in {path}")


def _to_dict(p: Plan, to: Format) -> dict[str, Any]:
    """Return the plan, and for each size of matrix the non-zeros and properties."""
    matrices = []
    for alike in different(p) if prod(p.shape) else ():
        about: dict[str, Any] = {"m": alike.m, "n": alike.n, "copies": alike.copies}
        count, matrix, _ = _few(p, alike, to)
        known = dict(_facts(matrix)) if matrix else None
        about |= {"role": alike.role, "non_zeros": count, "facts": known}
        if matrix:
            entries = zip(matrix.rows, matrix.columns, matrix.values, strict=True)
            about["entries"] = [(int(i), int(j), float(value)) for i, j, value in entries]
        matrices.append(about)
    options = {key: value for key, value in p.options().items() if key != "role"}
    head = {"shape": p.shape, "role": p.role, "dtype": to.name, "options": options}
    return head | {"matrices": matrices}


def _few(p: Plan, alike: Alike, to: Format) -> tuple[int, Matrix | None, int]:
    """Return the number of a matrix's non-zeros, the matrix if they are few, and the limit."""
    count = alike.m * alike.n
    noisy = alike.is_noisy(p)
    if not noisy or p.loosen_at != "all":
        count = sum(map(nnz, alike.terms(p)))
    limit = NOISY if noisy else _ENTRIES
    few = max(alike.m, alike.n, count) <= limit
    return count, extract(p, alike, to) if few else None, limit


def _show_matrix(p: Plan, alike: Alike, to: Format, console: Console) -> None:
    """Print the first of several alike matrices, and its properties."""
    at, m, n = p.axes, alike.m, alike.n
    kernel = column_text(at, alike.phase)
    terms, noisy = alike.terms(p), alike.is_noisy(p)
    count, matrix, limit = _few(p, alike, to)
    size = f"{m:,} x {n:,}"
    beside = console.width - 22 - len(size) - 2  # the rest of the line
    facts = [("matrix m x n", f"{size}, {kernel}" if 0 < len(kernel) <= beside else size)]
    if len(kernel) > beside:
        lines = textwrap.wrap(kernel.removeprefix("column = "), console.width - 22)
        facts += [("" if k else "columns", line) for k, line in enumerate(lines)]
    if alike.copies > 1:
        note = "; each has its own noise, the first is shown" if noisy else ""
        phases = at.widths.count(n)
        if phases > 1:
            note = f", in {phases} phases of this size; the first is shown{note and '; '}{note[2:]}"
        facts.append(("copies", f"{alike.copies}{note}"))
    if not isinstance(p.role, str):
        facts.append(("role", alike.role))
    facts.append(("non-zeros", f"{count:,} of {m * n:,}"))
    width = console.width - 2
    few = matrix if m <= _ROWS and n <= width else None
    texts = _numbers(few, at, alike.phase, console) if few else []
    if not texts:
        texts = _picture(terms, m, n, console)
        if noisy:
            facts.append(("noise", f"{noise_text(p)}; not in the picture"))
    facts += _facts(matrix) if matrix else [("the rest", f"not computed (over {limit:,} entries)")]
    width = max(len(label) for label, _ in facts) + 2
    texts += ["", *(console.style(label.ljust(width), "cyan") + fact for label, fact in facts)]
    for text in texts:
        console.print(f"  {text}" if text else "")


def _numbers(matrix: Matrix, at: Layout, phase: int, console: Console) -> list[str]:
    """Return the matrix as numbers, with dim dots for zeros; nothing if it is too wide.

    A kernel has headings for its channels and taps.
    """
    sizes = [*{abs(value) for value in matrix.values.tolist()}]
    unit = sizes[0] if len(sizes) == 1 and len(value_text(sizes[0])) > 3 else 1.0
    texts = {
        (i, j): value_text(v / unit)
        for i, j, v in zip(matrix.rows, matrix.columns, matrix.values, strict=True)
    }
    heads = _heads(at, phase) if at.kernel and at.taps != "center" else []
    width = max(map(len, [*texts.values(), *(cell for head in heads for cell in head)]), default=1)
    margin = " " * 8 if heads else ""
    if len(margin) + matrix.n * (width + 1) - 1 > console.width - 2:
        return []
    dot = console.style(("·" if console.is_utf else ".").rjust(width), "dim")
    out = []
    for title, head in zip(("channel", "tap"), heads, strict=False):
        cells = " ".join(cell.rjust(width) for cell in head)
        out.append(console.style(f"{title:8}{cells}", "dim"))
    for i in range(matrix.m):
        line = []
        for j in range(matrix.n):
            text = texts.get((i, j), "")
            styles = ("red",) if text.startswith("-") else ("bold", "cyan")
            line.append(console.style(text.rjust(width), *styles) if text else dot)
        out.append(margin + " ".join(line))
    if unit != 1.0:
        out.append(console.style(f"in units of {value_text(unit)}", "dim"))
    return out


def _heads(at: Layout, phase: int) -> list[list[str]]:
    """Return the channel and the tap of every column of a phase."""
    spans = {axis: range(at.shape[axis]) for axis in at.spatial_axes}
    spans[at.i_axis] = range(at.channels)
    box = tuple(spans.get(axis, range(1)) for axis in range(len(at.shape)))
    grid = column_grid(at, np, box, phase)
    channels, taps = [""] * at.widths[phase], [""] * at.widths[phase]
    for place in np.ndindex(grid.shape):
        if grid[place] < 0:  # in another phase
            continue
        channels[grid[place]] = str(place[at.i_axis])
        tap = [str(place[axis]) for axis in at.spatial_axes]
        taps[grid[place]] = ("" if max(at.kernel) <= 10 else ",").join(tap)
    return [channels, taps]


def _picture(terms: Sequence[Term], m: int, n: int, console: Console) -> list[str]:
    """Return a picture of the matrix in few cells, each with the sign of its largest entry."""
    frame = "┌┐└┘─│" if console.is_utf else "++++-|"
    colour, style = console.is_utf and console.colour, console.style
    scale = max(m / _PIXELS, n / max(console.width - 6, 12))
    w = min(n, max(ceil(n / scale), 12))
    h = min(m, max(ceil(m / scale), 12))
    h = h if colour else ceil(h / 2)  # a character is twice as high as it is wide
    signs = np.sign(cells(terms, m, n, (h, w))).astype(int).tolist()
    if colour:  # two cells in each character
        cyan, red = style("█", "cyan"), style("█", "red")
        cell = {(1, 1): cyan, (-1, -1): red, (0, 0): " "}
        for sign, name, other in ((1, "cyan", "on red"), (-1, "red", "on cyan")):
            cell[sign, 0], cell[0, sign] = style("▀", name), style("▄", name)
            cell[sign, -sign] = style("▀", name, other)
        pairs = zip_longest(signs[::2], signs[1::2], fillvalue=[0] * w)
        drawn = ["".join(map(cell.__getitem__, zip(*pair, strict=True))) for pair in pairs]
        means = f"{cyan} positive, {red} negative"
    else:
        drawn = ["".join(" +-"[sign] for sign in row) for row in signs]
        means = "+ positive, - negative"
    high, wide = ceil(m / h), ceil(n / w)
    size = "one entry" if high == wide == 1 else f"up to {high:,} x {wide:,} entries"
    side = style(frame[5], "dim")
    return [
        style(frame[0] + frame[4] * w + frame[1], "dim"),
        *(side + line + side for line in drawn),
        style(frame[2] + frame[4] * w + frame[3], "dim"),
        f"a cell is {size}: {means}",
    ]


def _facts(matrix: Matrix) -> list[tuple[str, str]]:
    """Return the properties of a matrix, computed from its entries."""
    m, n, rows, columns, values = matrix
    exponent = int(np.frexp(np.abs(values).max())[1])  # scaled: no square overflows
    scaled = np.ldexp(values, -exponent)
    norms = np.sqrt(np.bincount(rows, scaled**2, m))
    sums = np.bincount(rows, scaled, m)
    transit = m >= n and rows.size == m and np.all(values == 1) and np.all(columns == rows % n)
    facts = [
        ("row norms", _range(norms, exponent)),
        ("row sums", _range(sums, exponent)),
        ("rows sum to 0", _zero_text(sums, rows, scaled)),
        ("exact transit (T1)", f"yes: output i is x[i mod {n}]" if transit else "no"),
    ]
    s = _singular(matrix._replace(values=scaled))
    if s is None:
        why = f"not computed (the smaller side is over {_SVD})"
        return [*facts, ("rank, singular values", why)]
    rank = int(np.count_nonzero(s))
    with np.errstate(over="ignore"):
        off = float(np.max(np.abs(np.ldexp(s, exponent) - 1)))
    isometry = "no"
    if off < 1e-6:
        isometry = "yes" if m >= n else "only for its rows (W W^T = I)"
        isometry += "" if off < 1e-12 else f", to within {off:.1g}"
    return [
        *facts,
        ("rank", f"{rank}{' (full)' if rank == min(m, n) else ''}"),
        ("singular values", _distinct(s, exponent)),
        ("isometry", isometry),
    ]


def _zero_text(sums: NDArray[Any], rows: NDArray[Any], values: NDArray[Any]) -> str:
    """Return in words whether the rows sum to 0."""
    if not sums.any():
        return "yes, exactly"
    sizes = np.bincount(rows, np.abs(values), sums.size)
    rounding = np.bincount(rows).max() * np.finfo(np.float64).eps
    return "yes, up to rounding" if np.all(np.abs(sums) <= rounding * sizes) else "no"


def _singular(matrix: Matrix) -> NDArray[np.float64] | None:
    """Return the singular values, largest first, with rounding noise set to 0; None if too large.

    If no two entries share a row, the columns are orthogonal and their norms are the singular
    values. If no two share a column, the same holds for the rows.
    """
    m, n, rows, columns, values = matrix
    if min(m, n) <= _SVD and m * n <= _ENTRIES:
        s = np.linalg.svd(matrix.dense(), compute_uv=False)
    elif np.bincount(rows).max() <= 1:
        s = np.sqrt(np.bincount(columns, values**2, n))
    elif np.bincount(columns).max() <= 1:
        s = np.sqrt(np.bincount(rows, values**2, m))
    else:
        return None
    s = np.sort(s)[::-1][: min(m, n)]
    return np.where(s > s[0] * max(m, n) * np.finfo(np.float64).eps, s, 0.0)


def _range(values: NDArray[Any], exponent: int) -> str:
    low, high = value_text(values.min(), exponent), value_text(values.max(), exponent)
    return low if low == high else f"{low} .. {high}"


def _distinct(s: NDArray[np.float64], exponent: int) -> str:
    """Return the distinct values with their counts, or their range if they are many."""
    first = np.flatnonzero(np.append(True, s[:-1] - s[1:] > 1e-9 * s[0]))
    if first.size > 6:
        return (
            f"{value_text(s[0], exponent)} .. {value_text(s[-1], exponent)} ({first.size} distinct)"
        )
    counts = np.diff(np.append(first, s.size))
    return ", ".join(
        f"{value_text(s[k], exponent)} ({c}x)" for k, c in zip(first, counts, strict=True)
    )
