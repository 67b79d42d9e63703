"""Ways to tell the copies of a wide MLP apart, and the number of different units in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import idinit_ref_torch as irt
from docs.evidence import _decoder, _study
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, effect, judged, mean, pick, spread, table
from docs.evidence.identity import orthogonal

TITLE = "How copies are told apart"
CLAIM = "To tell the copies in a wide hidden layer apart, another way is better than IDIZ's pair."
HERE = (
    "IDI fills a wide hidden layer with copies. The last weight, IDIZ in the form of a pair [P], "
    "tells most of them apart (T11). Noise on IDI tells all apart ([P], Sec. 3.1.1, loosened). So "
    "does the form that is called shifted here. The study asks which way gives the lower loss "
    "at the same cost, and how many units differ through training."
)
WIDTH, HEADS, LAYERS, CONTEXT, BATCH, STEPS = 64, 4, 2, 32, 8, 200
RATES = {"AdamW": (1e-3, 3e-3, 1e-2, 3e-2), "SGD": (0.01, 0.03, 0.1, 0.3, 1.0)}
TUNE, SEEDS = (100,), (0, 1, 2)
NOISE, TOLERANCES = 0.01, (1e-9, 1e-3)
LEVEL = 0.001  # a difference of losses that matters to nobody
WAYS = {
    "pair": "IDI, and IDIZ with its defaults",
    "shifted": 'IDI, and IDIZ with form="shifted"',
    "entries": f"IDI with noise of {NOISE} on its entries that are not 0, and IDIZ as a pair",
    "all": f"IDI with noise of {NOISE} on all entries, and IDIZ as a pair",
    "orthogonal": "a random semi-orthogonal weight of IDI's singular values, and IDIZ as a pair",
    "zero": "IDI, and exact zeros: nothing tells copies apart",
}


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured, an optimiser after the other."""
    found: list[Row] = []
    for name, rates in RATES.items():
        if quick and name != "AdamW":
            break
        found += _study.swept(
            [
                {"optimiser": name, "way": way, "steps": 40 if quick else STEPS}
                for way in (("pair", "zero") if quick else WAYS)
            ],
            rates[1:2] if quick else rates,
            rows,
            tune=TUNE,
            seeds=SEEDS[:2] if quick else SEEDS,
            score="score",
        )
        if len(found) > len(rows):
            break
    return found


def different(first: Tensor, last: Tensor, tolerance: float) -> int:
    """Count hidden units whose weights differ by more than this from every earlier unit's."""
    units = torch.cat([first, last.T], 1).double()
    near = torch.cdist(units, units, p=torch.inf) <= tolerance
    return int((~near.tril(-1).any(1)).sum())


def begin(model: Any, way: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Write a start. The starts differ in the MLPs alone, whose weights are returned."""
    example = torch.zeros(1, CONTEXT, dtype=torch.long)
    irt.init_(model, example, head="keep", form="shifted" if way == "shifted" else "pair")
    pairs = [(block.branch[0], block.branch[-1]) for block in model.blocks[1::2]]
    with torch.no_grad():
        for number, (up, down) in enumerate(pairs):
            if way in ("entries", "all"):
                key = number + LAYERS * seed
                irt.idi_layer_(up, loosen=NOISE, loosen_at=way, seed=key)
            elif way == "orthogonal":
                orthogonal(up.weight)
            elif way == "zero":
                down.weight.zero_()
        for block in model.blocks[::2]:
            irt.idiz_layer_(block.branch.o)
    return [(up.weight, down.weight) for up, down in pairs]


def measure(optimiser: str, way: str, steps: int, rate: float, seed: int) -> Row:
    """Train once, and count units at the start, after 1, 2, 4, 8, ... steps, and at the end."""
    torch.manual_seed(seed)
    shape = (_decoder.VOCAB, WIDTH, LAYERS, HEADS, CONTEXT)
    model = _decoder.Transformer(*shape, norm=True)
    _decoder.embed(model, 0.02)
    pairs = begin(model, way, seed)
    counts: list[list[float]] = []

    def watch(done: int) -> None:
        if done & (done - 1) == 0 or done == steps:
            counts.append(
                [done]
                + [
                    mean(different(up.detach(), down.detach(), tolerance) for up, down in pairs)
                    / (4 * WIDTH)
                    for tolerance in TOLERANCES
                ]
            )

    tuning = seed in TUNE
    made: Any = (
        torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
        if optimiser == "AdamW"
        else torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    )
    found = _decoder.learn(
        model,
        made,
        steps=steps // 2 if tuning else steps,
        batch=BATCH,
        context=CONTEXT,
        seed=seed,
        tuning=tuning,
        watch=None if tuning else watch,
    )
    if not tuning:
        watch(steps)
    return {**found, "units": counts}


# What came out ------------------------------------------------------------------------------------


def _runs(rows: Sequence[Row], optimiser: str, way: str) -> list[Row]:
    return judged(rows, SEEDS, optimiser=optimiser, way=way)


def losses(rows: Sequence[Row], optimiser: str, way: str) -> list[float]:
    """Return the loss of every seed that judges."""
    return [-row["score"] for row in _runs(rows, optimiser, way)]


def _known(rows: Sequence[Row]) -> list[str]:
    return [name for name in RATES if losses(rows, name, "pair")]


def beside_pair(rows: Sequence[Row], optimiser: str) -> dict[str, _study.Effect]:
    """Return the loss of every other way minus pair's, seed by seed; below 0 is better."""
    pair = losses(rows, optimiser, "pair")
    ways = [way for way in WAYS if way != "pair" and losses(rows, optimiser, way)]
    return {way: effect(losses(rows, optimiser, way), pair) for way in ways}


def gap(rows: Sequence[Row], optimiser: str) -> float:
    """Return by how much exact zeros change the loss of pair, in the seed where it is most."""
    both = (losses(rows, optimiser, way) for way in ("zero", "pair"))
    return max(abs(a - b) for a, b in zip(*both, strict=True))


def _gaps(rows: Sequence[Row]) -> str:
    return ", ".join(f"{gap(rows, name):.5f} ({name})" for name in _known(rows))


def share(rows: Sequence[Row], optimiser: str, way: str) -> float:
    """Return the fraction of units that differ at the larger tolerance in the end."""
    return mean(row["units"][-1][2] for row in _runs(rows, optimiser, way))


def _better(rows: Sequence[Row]) -> list[str]:
    """Return the ways that beat pair under every optimiser."""
    found = [beside_pair(rows, name) for name in _known(rows)]
    return [w for w in found[0] if all(e[w].shown and e[w].value < 0 for e in found)]


def verdict(rows: Sequence[Row]) -> Verdict:
    """Name the ways that have a lower loss than the paper's."""
    known = _known(rows)
    lines = [
        f"exact zeros, which tell no copies apart, change the loss of pair by at most {_gaps(rows)}"
    ]
    for name in known:
        lines.append(f"{name}, the loss of pair: {mean(losses(rows, name, 'pair')):.3f}")
        found = beside_pair(rows, name)
        lines += [f"{name}, {way} instead of pair: {change}" for way, change in found.items()]
        units = ", ".join(f"{way} {share(rows, name, way):.2f}" for way in ("pair", *found))
        lines.append(
            f"{name}, units that differ by more than {TOLERANCES[1]:g} at the end: {units}"
        )
    figure = "; ".join(lines)
    better = _better(rows)
    if not better:
        level = all(gap(rows, name) < LEVEL for name in known)
        words = "no way beats the paper's pair under every optimiser"
        words += ", and exact zeros are as good" * level
        return Verdict(f"not shown ({words})", figure)
    return Verdict(f"holds when the way is {' or '.join(better)}", figure)


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    better = _better(rows)
    ways = " and ".join(better) or "No way"
    stays = "" if better else ", so the paper's form stays the default"
    return filled(
        "symmetry",
        **_decoder.scale(WIDTH, LAYERS, STEPS, BATCH * CONTEXT),
        seeds=_study.listed(SEEDS),
        ways=table(["way", "what it is"], WAYS.items()),
        results="\n".join(f"## {name}\n\n{_ends(rows, name)}" for name in _known(rows)),
        better=f"{ways} beats pair under every optimiser that was tried{stays}",
        gaps=_gaps(rows),
        tolerance=TOLERANCES[1],
        zero=max(share(rows, name, "zero") for name in _known(rows)),
        alike=_alike(rows),
        ends=_study.at_ends(rows, ("optimiser", "way"), SEEDS),
    )


def _alike(rows: Sequence[Row]) -> str:
    """Return the ways that leave, at the larger tolerance, no more units apart than zeros do."""
    return " and ".join(
        way
        for way in WAYS
        if way != "zero"
        and all(losses(rows, name, way) for name in _known(rows))
        and all(share(rows, name, way) <= share(rows, name, "zero") for name in _known(rows))
    ) or "no other way"  # fmt: skip


def _ends(rows: Sequence[Row], name: str) -> str:
    """Return the table of an optimiser."""
    lines = []
    found = beside_pair(rows, name)
    for way in WAYS:
        runs = _runs(rows, name, way)
        if not runs:
            continue
        sweep = ", ".join(
            f"{row['rate']:g}: {-row['score']:.2f}"
            for row in pick(rows, optimiser=name, way=way)
            if row["seed"] in TUNE
        )
        loss, beside = spread(losses(rows, name, way)), str(found.get(way, ""))
        units = (_through(runs, column) for column in (1, 2))
        lines.append([way, sweep, f"{runs[0]['rate']:g}", loss, beside, *units])
    head = ["way", "rate: loss when tuning", "rate", "final loss", "beside pair"]
    head += [f"different at {t:g}: first, least, most, last" for t in TOLERANCES]
    return table(head, lines)


def _through(runs: Sequence[Row], column: int) -> str:
    """Return the fraction of different units at first, the least, the most, and the last."""
    counts = [mean(at) for at in zip(*([c[column] for c in r["units"]] for r in runs), strict=True)]
    return ", ".join(f"{n:.2f}" for n in (counts[0], min(counts), max(counts), counts[-1]))


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the fraction of different units over steps, a panel an optimiser and tolerance."""
    known = _known(rows)
    panels = figure.subplots(1, 2 * len(known), sharey=True, squeeze=False)[0]
    for at, name in enumerate(known):
        for column, tolerance in enumerate(TOLERANCES, 1):
            axes = panels[2 * at + column - 1]
            for way in WAYS:
                runs = _runs(rows, name, way)
                if runs:
                    steps = [count[0] for count in runs[0]["units"]]
                    shown = [
                        mean(row["units"][i][column] for row in runs) for i in range(len(steps))
                    ]
                    axes.plot(steps, shown, label=way, lw=1.3)
            axes.set(title=f"{name}, at {tolerance:g}", xscale="symlog", xlabel="step")
            axes.set_ylim(0, 1.05)
    panels[0].set_ylabel("fraction of units that differ")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)


def check(rows: Sequence[Row]) -> None:
    """Assert what T11 says of the start, that all learn, and that exact zeros leave copies."""
    for name in _known(rows):
        for way in WAYS:
            runs = _runs(rows, name, way)
            assert all(-row["score"] < _decoder.CHANCE - 0.5 for row in runs), (name, way)
            apart = {"pair": 0.75, "zero": 0.25}.get(way, 1.0)
            assert all(row["units"][0][1] == apart for row in runs), (name, way)
        assert share(rows, name, "zero") < 0.3
        assert gap(rows, name) < LEVEL, name
    if all(losses(rows, name, "shifted") for name in _known(rows)):
        assert _alike(rows) == "pair and shifted"


if __name__ == "__main__":
    _study.main("symmetry")
