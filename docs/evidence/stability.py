"""The study of how much may be wrong with the learning rate and the weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, mean, pick, table

TITLE = "Over which learning rates and weight decays does it train?"
CLAIM = (
    "IDInit is stable over hyper-parameters: without warm-up it trains for more learning rates and "
    "weight decays than other starts do [P]."
)
HERE = "Here: the number of pairs of the grid where the mean accuracy is at least 0.6."
METHODS = ("xavier", "kaiming", "orthogonal", "zero", "fixup", "rezero", "skipinit", "idinit")
NORMED = ("kaiming", "zero_gamma", "idinit")
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
DECAYS = (0.0, 1e-2, 1e-1)
SEEDS = (0, 1, 2, 3, 4)
BLOCKS, WIDTH, SIZE, EPOCHS = 8, 8, 64, 3
TRAINS, LIMITS = 0.6, (0.5, 0.75, 0.9)
HEAD = ("start", "pairs that train", "a seed", "at 0.5", "at 0.75", "at 0.9", "rates", "best mean",
        "mean of all pairs", "diverged")  # fmt: skip


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    pairs = [(False, name) for name in METHODS] + [(True, name) for name in NORMED]
    rates, decays, seeds = (RATES, DECAYS, SEEDS)
    if quick:
        pairs, rates, decays, seeds = [pairs[1], pairs[-4]], RATES[2:5], DECAYS[:2], SEEDS[:1]
    return [
        {"norm": norm, "method": name, "rate": rate, "decay": decay, "seed": seed}
        for norm, name in pairs
        for rate in rates
        for decay in decays
        for seed in seeds
    ]


def measure(norm: bool, method: str, rate: float, decay: float, seed: int) -> Row:
    torch.manual_seed(seed)
    net = _nets.resnet(BLOCKS, WIDTH, norm=norm, scalars=_baselines.METHODS[method].scalars)
    _baselines.apply(method, net, _training.digits()[0][:2])
    optimiser = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    return _training.learn(net, optimiser, size=SIZE, epochs=EPOCHS, seed=seed)


# What comes out -----------------------------------------------------------------------------------


def _starts(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    return list(dict.fromkeys((row["norm"], row["method"]) for row in rows))


def _grid(rows: Sequence[Row], key: str) -> list[float]:
    return sorted({row[key] for row in rows})


def _map(rows: Sequence[Row], norm: bool, method: str) -> list[list[float]]:
    """Return the mean accuracies: a row for each decay, a column for each rate."""
    mine = pick(rows, norm=norm, method=method)
    return [
        [mean(r["accuracy"] for r in pick(mine, rate=q, decay=d)) for q in _grid(rows, "rate")]
        for d in _grid(rows, "decay")
    ]


def _area(rows: Sequence[Row], norm: bool, method: str, limit: float = TRAINS) -> int:
    return sum(value >= limit for line in _map(rows, norm, method) for value in line)


def _areas(rows: Sequence[Row], norm: bool, method: str, limit: float = TRAINS) -> list[float]:
    """Return how many pairs train with each seed."""
    mine = pick(rows, norm=norm, method=method)
    seeds = sorted({row["seed"] for row in mine})
    return [sum(row["accuracy"] >= limit for row in pick(mine, seed=seed)) for seed in seeds]


def _stood(rows: Sequence[Row], norm: bool, limit: float = TRAINS) -> dict[str, str]:
    """Return how IDInit stands to each other start of nets with norms, or without."""
    return {
        name: _study.stands(*(_areas(rows, norm, start, limit) for start in ("idinit", name)))
        for with_norm, name in _starts(rows)
        if with_norm == norm and name != "idinit"
    }


def _counted(stood: dict[str, str]) -> str:
    """Return the names by how IDInit stands to them."""
    ways = ("ahead of", "level with", "behind")
    named = {way: [name for name, how in stood.items() if how == way] for way in ways}
    return ", ".join(f"{way} {', '.join(names)}" for way, names in named.items() if names)


def _label(norm: bool, method: str) -> str:
    return f"{method}, BN" if norm else method


def verdict(rows: Sequence[Row]) -> Verdict:
    areas = {start: _area(rows, *start) for start in _starts(rows)}
    whole = len(_grid(rows, "rate")) * len(_grid(rows, "decay"))
    figure = f"of {whole} pairs train: " + ", ".join(
        f"{_label(*start)} {area}" for start, area in areas.items()
    )
    stood = _stood(rows, False)
    figure += f"; at {TRAINS:g}: {_counted(stood)}"
    for limit in LIMITS:
        figure += f"; at {limit:g} instead of {TRAINS:g}: {_counted(_stood(rows, False, limit))}"
    if normed := _stood(rows, True):
        strict = _counted(_stood(rows, True, LIMITS[-1]))
        figure += f"; with BN: {_counted(normed)}, at {LIMITS[-1]:g} {strict}"
    return Verdict(_study.beside(stood, _baselines.OLD), figure)


def page(rows: Sequence[Row]) -> str:
    rates, decays = _grid(rows, "rate"), _grid(rows, "decay")
    lines, maps = [], []
    for norm, method in _starts(rows):
        values = _map(rows, norm, method)
        good = [q for n, q in enumerate(rates) if any(line[n] >= TRAINS for line in values)]
        mine = pick(rows, norm=norm, method=method)
        lines.append([
            _label(norm, method),
            _area(rows, norm, method),
            _study.spread(_areas(rows, norm, method), ".1f"),
            *(_area(rows, norm, method, limit) for limit in LIMITS),
            f"{min(good):g} to {max(good):g}" if good else "none",
            f"{max(map(max, values)):.3f}",
            f"{mean(value for line in values for value in line):.3f}",
            f"{sum(row['diverged'] for row in mine)} of {len(mine)}",
        ])  # fmt: skip
        maps += [
            [_label(norm, method), f"{decay:g}", *(f"{value:.2f}" for value in line)]
            for decay, line in zip(decays, values, strict=True)
        ]
    cites = dict.fromkeys(method for _, method in _starts(rows))
    return filled(
        "stability",
        blocks=BLOCKS,
        width=WIDTH,
        size=SIZE,
        epochs=EPOCHS,
        seeds=_study.listed(SEEDS),
        methods=table(
            ["method", "what it is"], [[name, _baselines.METHODS[name].cite] for name in cites]
        ),
        results=table(HEAD, lines),
        trains=TRAINS,
        grid=table(["start", "decay", *(f"{rate:g}" for rate in rates)], maps),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    rates, decays = _grid(rows, "rate"), _grid(rows, "decay")
    starts = _starts(rows)
    panels = list(figure.subplots(3, 4, sharex=True, sharey=True).flat)
    for axes in panels:
        axes.grid(visible=False)
        axes.set_axis_off()
    picture = None
    for axes, start in zip(panels, starts, strict=False):
        axes.set_axis_on()
        picture = axes.imshow(_map(rows, *start), vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for n, line in enumerate(_map(rows, *start)):
            for k, value in enumerate(line):
                if value >= TRAINS:
                    axes.plot(k, n, "k.", markersize=3)
        axes.set_title(f"{_label(*start)}: {_area(rows, *start)}", fontsize=8)
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=90, fontsize=7)
        axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays], fontsize=7)
    figure.supxlabel("learning rate", fontsize=8)
    figure.supylabel("weight decay", fontsize=8)
    figure.colorbar(picture, ax=list(figure.axes), label="mean accuracy (dot: trains)")


def check(rows: Sequence[Row]) -> None:
    """A net without norms trains over more of the grid than with Kaiming, over less with none."""
    assert _area(rows, False, "idinit") > _area(rows, False, "kaiming")
    if len({row["seed"] for row in rows}) > 1:
        stood = _stood(rows, False)
        assert "behind" not in stood.values()
        assert list(stood.values()).count("ahead of") > len(stood) / 2


if __name__ == "__main__":
    _study.main("stability")
