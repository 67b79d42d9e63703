"""Internal: the picture of an audit. Only drawing imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OptionError, message

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = 1e-30  # smaller values, also zeros, are hollow points at the bottom


def draw(moments: Mapping[str, float], ratios: Mapping[str, float], path: str | Path) -> None:
    """Write the picture of an audit: see `Audit.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise ImportError('a picture needs matplotlib: pip install "idinit-ref[plot]"') from problem
    if not moments:
        cure = "audit a model whose weights the trace finds"
        should = "it should have a weight operation to draw"
        raise OptionError(message("audit", "no weight operation", should, cure))
    figure = Figure()
    fill(figure, moments, ratios)
    figure.savefig(path)


def fill(figure: Figure, moments: Mapping[str, float], ratios: Mapping[str, float]) -> None:
    """Draw second moments of weight operations, and ratios of branches to skips, into a figure.

    Both are by the names of nodes; a weight operation that ends a branch has its own mark.
    """
    figure.set_size_inches(6.4, 4.8 if ratios else 2.8)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(2 if ratios else 1, squeeze=False)[:, 0]
    layers = list(enumerate(moments.items(), 1))
    rest = [(at, moment) for at, (name, moment) in layers if name not in ratios]
    ends = [(at, moment) for at, (name, moment) in layers if name in ratios]
    _points(axes[0], rest, "o-", "C0", "the other weight operations")
    _points(axes[0], ends, "s", "C1", "ends of branches")
    axes[0].set(xlabel="weight operation, in the order of computation", ylabel="second moment")
    if ratios:
        axes[0].legend(frameon=False, fontsize=8)
        _points(axes[1], list(enumerate(ratios.values(), 1)), "s", "C1", "")
        axes[1].set(xlabel="residual add", ylabel="rms of branch / skip")
    for panel in axes:
        panel.set_yscale("log")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)


def _points(axes: Axes, pairs: list[tuple[int, float]], form: str, color: str, label: str) -> None:
    """Plot values; zeros are hollow points at the bottom."""
    full = [value if _LEAST < value < float("inf") else float("nan") for _, value in pairs]
    at = [place for place, _ in pairs]
    axes.plot(at, full, form, color=color, label=label, markersize=4, linewidth=1)
    foot = min((value for value in full if value == value), default=1.0) / 10
    for place, value in pairs:
        if value <= _LEAST:
            axes.plot(place, foot, form[0], color="C3", markersize=5, markerfacecolor="none")
            axes.annotate("0", (place, foot), xytext=(5, -3), textcoords="offset points",
                          color="C3", fontsize=8)  # fmt: skip
