"""The figures of the gallery, drawn by the library: ``python docs/gallery_figures.py FOLDER``.

Each is a function of `FIGURES`, and its docstring is its caption. Nothing is stored: every number
comes from `idinit_ref`, or from a network that is computed here.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

import idinit_ref as ir
from idinit_ref.commands._page import page
from idinit_ref.commands._scale import Scale
from idinit_ref.commands.plot import heat, legend
from idinit_ref.core.kernel import Taps
from idinit_ref.core.pattern import Wide
from idinit_ref.diagnostics import moments
from idinit_ref.diagnostics.picture import fill
from idinit_ref.diagnostics.spectrum import singular_values

Floats = NDArray[np.float64]

WIDTH = 64  # of the networks
WAYS: tuple[Wide, ...] = get_args(Wide)
STARTS = {  # unlike in lightness, and in line and marker for who sees no colours
    "IDI": {"color": "#06245c", "linestyle": "-", "marker": "o"},
    "Kaiming": {"color": "#c65102", "linestyle": "--", "marker": "s"},
    "orthogonal": {"color": "#7fb2dd", "linestyle": "-.", "marker": "^"},
}


# Weights ------------------------------------------------------------------------------------------


def _row(figure: Figure, plans: Sequence[tuple[str, ir.Plan]]) -> list[Axes]:
    """Draw matrices side by side in cells of one size, and a legend."""
    scale = Scale.of([plan for _, plan in plans])
    figure.set_layout_engine("constrained")
    columns = [max(plan.shape[1], 2) for _, plan in plans]
    grid = figure.subplots(1, len(plans), width_ratios=columns, squeeze=False)[0]
    for axes, (title, plan) in zip(grid, plans, strict=True):
        heat(axes, plan.build(), scale, ticks=(10, 10))
        axes.set_aspect("equal", anchor="N")
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("input j")
    grid[0].set_ylabel("output i")
    legend(figure, scale, loc="outside lower left", ncols=4, borderaxespad=0.3)
    return list(grid)


def start(figure: Figure) -> None:
    """What a network starts with: IDI everywhere, and IDIZ at the end of each residual branch.

    One symmetric logarithmic scale shows tau = 1 and eps = 1e-6. The last weight of a branch holds
    +eps and -eps in every row. So the branch adds almost nothing, and none of its neurons is dead.
    """
    figure.set_size_inches(8.2, 3.6)
    shapes = {"square, 7 x 7": (7, 7), "tall, 10 x 4": (10, 4), "wide, 4 x 10": (4, 10)}
    plans = [(title, ir.plan(shape)) for title, shape in shapes.items()]
    _row(figure, [*plans, ("end of a branch, 7 x 7", ir.plan((7, 7), "zero"))])


def figure1(figure: Figure) -> None:
    """Identity-like matrices of any shape, as in the text's Figure 1, drawn from Eq. 3.

    The text's figure was not available, so this one was not compared with it.

    Square: tau I. Tall: stacked identities, the last one cut. Wide: by [P, Eq. 3] one identity, and
    zeros in the other columns.
    """
    figure.set_size_inches(6.5, 3.6)
    shapes = {"square, 7 x 7": (7, 7), "tall, 10 x 4": (10, 4), "wide, 4 x 10": (4, 10)}
    _row(figure, [(title, ir.plan(shape)) for title, shape in shapes.items()])


def wide(figure: Figure) -> None:
    """Three ways to fill a wide IDI.

    Square and tall weights are the same in all three. ``truncate`` leaves columns empty,
    ``fold_rms`` keeps the norm of every row, ``fold_mean`` takes the mean of the inputs that share
    an output. Rows of a fold have 3 or 2 entries: 10 = 4 + 4 + 2.
    """
    figure.set_size_inches(9, 2.9)
    ways = [(f'4 x 10, "{way}"', ir.plan((4, 10), wide=way)) for way in WAYS]
    _row(figure, [("square, 5 x 5", ir.plan((5, 5))), ("tall, 9 x 4", ir.plan((9, 4))), *ways])


def zero(figure: Figure) -> None:
    """IDIZ, the last weight of a residual branch.

    Every row holds +eps and -eps and sums to 0. For m < n the second entry lies after the first m
    columns; for m >= n it is the next one. For n = 1 both would fall on one place, so the rows hold
    +eps and -eps in turn.
    """
    figure.set_size_inches(7.5, 3.6)
    shapes = {"2m < n": (4, 10), "m < n <= 2m": (6, 9), "m >= n": (10, 4), "n = 1": (10, 1)}
    _row(figure, [(f"{why}\n{m} x {n}", ir.plan((m, n), "zero")) for why, (m, n) in shapes.items()])


def shifted(figure: Figure) -> None:
    """The two forms of a wide IDIZ.

    ``pair`` (the default) has two entries in each row, so the columns after the first 2m have none.
    ``shifted`` has one in every column: block q of m columns is rotated by q places, and the signs
    alternate. In both, rows sum to 0 and have the same norm, and no two columns of a block are
    equal.
    """
    figure.set_size_inches(9, 1.9)
    plans = [(f'3 x {n}, "pair"', ir.plan((3, n), "zero")) for n in (12,)]
    plans += [(f'3 x {n}, "shifted"', ir.plan((3, n), "zero", form="shifted")) for n in (12, 14)]
    _row(figure, plans)


def loose(figure: Figure) -> None:
    """A weight without noise, with noise in every entry, and with noise in the non-zeros only.

    IDI of 6 outputs and 6 inputs with ``loosen=0.1``, in two decimals. With ``loosen_at="all"``
    (the default) every entry gets noise, so copies of a hidden unit differ from the first step on.
    With ``"entries"`` the zeros stay 0. The noise is drawn by Philox from a seed, so the same seed
    gives the same noise in every framework. The scale is linear between the two marks beside 0, and
    logarithmic beyond them.
    """
    figure.set_size_inches(8, 3.2)
    figure.set_layout_engine("constrained")
    weights = {
        "exact": ir.idi((6, 6)),
        'loosen_at="all"': ir.idi((6, 6), loosen=0.1),
        'loosen_at="entries"': ir.idi((6, 6), loosen=0.1, loosen_at="entries"),
    }
    noisy = np.concatenate([w.ravel() for w in weights.values()])
    scale = Scale.of_noise(noisy)
    grid = figure.subplots(1, len(weights))
    for axes, (title, w) in zip(grid, weights.items(), strict=True):
        image = heat(axes, w.round(2), scale, ticks=(6, 6), numbers=True)
        axes.set_aspect("equal")
        axes.set(title=title, xlabel="input j")
    grid[0].set_ylabel("output i")
    bar = figure.colorbar(image, ax=list(grid), location="bottom", shrink=0.6, aspect=40)
    ticks = [-scale.largest, -scale.smallest, 0.0, scale.smallest, scale.largest]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.minorticks_off()


def packed(figure: Figure) -> None:
    """Packed weights: queries, keys and values, and the gates of an LSTM.

    ``blocks`` cuts the outputs into matrices, each initialised separately; lines show the cuts.
    Here grouped attention has 8 inputs and 8, 4 and 4 outputs, and the LSTM 6 inputs and 4 units.
    Without ``blocks`` the identity would continue from one matrix into the next: the second picture
    of each.
    """
    figure.set_size_inches(6.5, 4.1)
    axes = _row(
        figure,
        [
            ("q, k, v\nblocks (8, 4, 4)", ir.plan((16, 8), blocks=(8, 4, 4))),
            ("no blocks", ir.plan((16, 8))),
            ("LSTM gates\nblocks (4, 4, 4, 4)", ir.plan((16, 6), blocks=(4, 4, 4, 4))),
            ("no blocks", ir.plan((16, 6))),
        ],
    )
    for number, ends in ((0, (8, 12)), (2, (4, 8, 12))):
        for end in ends:
            axes[number].axhline(end - 0.5, color="#c65102", linewidth=1.2)


def _taps(figure: Figure, plans: Sequence[tuple[str, ir.Plan]]) -> None:
    """Draw kernels tap by tap, side by side, and a legend."""
    figure.set_layout_engine("constrained")
    scale = Scale.of([plan for _, plan in plans])
    parts = figure.subfigures(1, len(plans), squeeze=False)[0]
    for number, (part, (title, plan)) in enumerate(zip(parts, plans, strict=True)):
        part.suptitle(title, fontsize=9)
        at = plan.axes
        grid = part.subplots(*at.kernel, sharex=True, sharey=True)
        kernel = np.moveaxis(plan.build(), (at.o_axis, at.i_axis), (0, 1))
        for (a, b), axes in np.ndenumerate(grid):
            heat(axes, kernel[:, :, a, b], scale, ticks=(3, 4))
            axes.set_title(f"{a}, {b}", fontsize=7, pad=2)
        part.supxlabel("channel c", fontsize=8)
        if number == 0:
            part.supylabel("output i", fontsize=8)
    legend(figure, scale, loc="outside lower left", borderaxespad=0.3)


def _kernels(figure: Figure, role: ir.Role, outputs: int) -> None:
    figure.set_size_inches(12, 3.6)
    plans = [ir.plan((outputs, 6, 3, 3), role, taps=order) for order in get_args(Taps)]
    _taps(figure, [(f'taps="{plan.taps}"', plan) for plan in plans])


def kernels(figure: Figure) -> None:
    """A kernel in the five orders of its taps.

    IDI for a 3 x 3 kernel of 6 outputs and 6 channels, tap by tap. ``outward`` (the default) and
    ``center`` are the identity at the middle tap: the convolution passes its inputs unshifted.
    ``diagonal`` also keeps every channel, and gives each its own tap. The other two start at the
    first tap. ``channel_major`` keeps one channel in nine, and both move the image.
    """
    _kernels(figure, "transit", 6)


def kernels_more(figure: Figure) -> None:
    """The same kernels with 14 outputs, more than the 6 channels.

    ``outward`` continues with the tap above the middle one, then with the one beside it. ``center``
    holds copies of the identity.
    """
    _kernels(figure, "transit", 14)


def kernels_zero(figure: Figure) -> None:
    """The kernel with 6 outputs as the last weight of a residual branch (IDIZ).

    Every output has +eps and -eps, at two taps or in two channels. Its entries sum to 0.
    """
    _kernels(figure, "zero", 6)


def phases(figure: Figure) -> None:
    """Kernels of transposed convolutions: each phase of the taps is a kernel of its own.

    4 inputs, 4 outputs, taps 0, 0 to 3, 3. With stride 2 and padding 1 the layer enlarges the
    image: every place appears 2 x 2 times. Without phases three of four places would be 0.
    """
    figure.set_size_inches(9, 3.8)
    shape, layout = (4, 4, 4, 4), "IOHW"
    plans = [("stride 1: no phases", ir.plan(shape, layout=layout))]
    plans.append(("stride=(2, 2)", ir.plan(shape, layout=layout, stride=(2, 2))))
    plans.append(("stride=(4, 2)", ir.plan(shape, layout=layout, stride=(4, 2))))
    _taps(figure, plans)


# Networks -----------------------------------------------------------------------------------------


def _weights(start: str, depth: int, gain: float) -> Iterator[Floats]:
    """Yield square weights: IDI with tau = 1; the random ones with a gain, always of one seed."""
    rng = np.random.default_rng(0)
    for _ in range(depth):
        noise = rng.standard_normal((WIDTH, WIDTH))
        if start == "IDI":
            yield ir.idi((WIDTH, WIDTH))
        elif start == "Kaiming":
            yield gain * noise / np.sqrt(WIDTH)
        else:
            q, r = np.linalg.qr(noise)
            yield gain * q * np.sign(np.diag(r))


def depth(figure: Figure) -> None:
    """The second moment of the activations through depth.

    100 layers of width 64, Gaussian inputs, and one draw of the random weights. Their gain suits
    the activation: sqrt(2) with ReLU, 1 without. IDI has tau = 1 in both. The first ReLU takes
    about a half of its second moment; after that IDI keeps it exactly (theorems T2 and T6). Without
    ReLU orthogonal weights keep it, too: one line hides the other.
    """
    figure.set_size_inches(8, 3.4)
    figure.set_layout_engine("constrained")
    inputs = np.random.default_rng(1).standard_normal((512, WIDTH))
    grid = figure.subplots(1, 2, sharey=True)
    for axes, relu in zip(grid, (True, False), strict=True):
        for start, style in STARTS.items():
            x, layers = inputs, [inputs]
            for w in _weights(start, 100, 2**0.5 if relu else 1.0):
                x = np.maximum(x @ w.T, 0) if relu else x @ w.T
                layers.append(x)
            axes.plot(moments(layers).second, label=start, markevery=20, markersize=4, **style)
        axes.set(title="with ReLU" if relu else "without", xlabel="layer", yscale="log")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("second moment")
    grid[0].legend(frameon=False)


def spectra(figure: Figure) -> None:
    """Singular values of the Jacobian of a plain ReLU network.

    Width 64, at one Gaussian input. A logarithmic axis cannot show zeros, so the legends count the
    values that are 0 in float64. With IDI the values are 1 or 0 at any depth: the first ReLU stops
    the negative coordinates, and the others stop none (theorems T5 and T6). Random weights (gain
    sqrt(2), one draw) spread the values further in each layer.
    """
    figure.set_size_inches(9, 3.4)
    figure.set_layout_engine("constrained")
    inputs = np.random.default_rng(1).standard_normal(WIDTH)
    grid = figure.subplots(1, 3, sharey=True)
    for axes, layers in zip(grid, (1, 10, 50), strict=True):
        for start, style in STARTS.items():
            x, jacobian = inputs, np.eye(WIDTH)
            for w in _weights(start, layers, 2**0.5):
                z = w @ x
                x, jacobian = np.maximum(z, 0), (z > 0)[:, None] * (w @ jacobian)
            s = singular_values(jacobian)
            s = s[s > s[0] * WIDTH * np.finfo(np.float64).eps]  # the others are rounding
            label = f"{start}, {WIDTH - s.size} are 0"
            axes.plot(np.arange(1, s.size + 1), s, label=label, markevery=6, markersize=4, **style)
        title = f"{layers} layer{'s' * (layers > 1)}"
        axes.set(title=title, xlabel="number, the largest first", yscale="log", xlim=(0, WIDTH + 1))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="center right")
    grid[0].set_ylabel("singular value")


def audit(figure: Figure) -> None:
    """An audit: second moments through depth, and branches beside their skips.

    A residual network of 8 blocks of width 16 in PyTorch, after `init_`. One ReLU is never on. Its
    branch is exactly 0 (the hollow mark), and dead. The other branches have the size of eps, as
    they should.
    """
    import torch
    from torch import nn

    import idinit_ref_torch as irt

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.down(torch.relu(self.up(x)))
            return out

    model = nn.Sequential(nn.Linear(8, 16), *[Block() for _ in range(8)], nn.Linear(16, 3))
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 8), np.float32))
    irt.init_(model, inputs)
    with torch.no_grad():
        model[4].up.bias.fill_(-100.0)  # type: ignore[union-attr, operator]  # a Block has it
    found = irt.audit(model, inputs)
    fill(figure, found.second_moments, found.ratios)


FIGURES: dict[str, Callable[[Figure], None]] = {
    each.__name__: each
    for each in (
        *(start, figure1, wide, zero, shifted, kernels, kernels_more, kernels_zero),
        *(phases, packed, loose, depth, spectra, audit),
    )
}


def captions() -> dict[str, str]:
    """Return the caption of every figure, by the name of its file without the suffix."""
    return {name: inspect.getdoc(draw) or "" for name, draw in FIGURES.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all of them as SVG."""
    parser = argparse.ArgumentParser(description="Draw the figures of the gallery as SVG.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="it is made if it is not there")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in captions().items():
        with page(folder / f"{name}.svg", title=caption.partition("\n")[0]) as figure:
            FIGURES[name](figure)


if __name__ == "__main__":
    main()
