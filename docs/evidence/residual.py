"""The study of residual nets without normalisation."""

from __future__ import annotations

from typing import Any

import torch

from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled

TITLE = "Do Xavier and Kaiming fail residual nets without normalisation?"
CLAIM = "Xavier and Kaiming fail residual nets without normalisation; IDInit trains them."
HERE = (
    "The claim does not say what failing is, nor at which depth. Here a method trains a net if its "
    "mean accuracy is at least 0.6, and fails if it is under 0.3 (chance is 0.1)."
)

METHODS = [
    "xavier",
    "kaiming",
    "orthogonal",
    "delta_orthogonal",
    "dirac",
    "zero",
    "hardt_ma",
    "fixup",
    "rezero",
    "skipinit",
    "idinit",
]
EPOCHS = {8: 6, 32: 6, 128: 4}  # by the number of blocks: what the deep nets cost sets a limit
WIDTH, BATCH, MOMENTUM = 8, 64, 0.9
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)
START = slice(2, 5)  # the rates that every method is tried at
TUNE, SEEDS = (100, 101, 102, 103), (0, 1, 2, 3, 4)
QUICK = {"xavier": 0.0003, "kaiming": 0.00001, "fixup": 0.03, "idinit": 0.1}
CHANCE, TRAINS, FAILS = 0.1, 0.6, 0.3


def _asked(known: list[_study.Row]) -> list[float]:
    """Return the rates to try: those of the start, and on while the best is at an end.

    Smaller ones too while nothing learns: what diverged ties with what is at chance.
    """
    low, high = START.stop, START.start
    while True:
        rates = RATES[high:low]
        rows = [row for row in known if row["rate"] in rates and row["seed"] in TUNE]
        if len(rows) < len(rates) * len(TUNE):
            return list(rates)
        best = _study.best_rate(rows, "accuracy")
        top = _study.mean(row["accuracy"] for row in rows if row["rate"] == best)
        if (best == rates[-1] or top < 2 * CHANCE) and low < len(RATES):
            low += 1
        elif best == rates[0] and high > 0:
            high -= 1
        else:
            return list(rates)


def cells(quick: bool, rows: list[_study.Row]) -> list[_study.Row]:
    found = []
    if quick:  # one rate each, the best of the full study or near it
        return [
            {"method": name, "blocks": 32, "epochs": 2, "rate": rate, "seed": seed}
            for name, rate in QUICK.items()
            for seed in SEEDS[:2]
        ]
    for blocks, epochs in EPOCHS.items():
        for name in METHODS:
            setting = {"method": name, "blocks": blocks, "epochs": epochs}
            rates = _asked(_study.pick(rows, **setting))
            found += _study.swept([setting], rates, rows, tune=TUNE, seeds=SEEDS, score="accuracy")
    return found


def measure(method: str, blocks: int, epochs: int, rate: float, seed: int) -> _study.Row:
    x, y, test_x, test_y = _training.digits()
    torch.manual_seed(seed)
    net = _nets.resnet(blocks, WIDTH, scalars=_baselines.METHODS[method].scalars)
    _baselines.apply(method, net, x[:2])
    scalars = [p for p in net.parameters() if p.ndim == 0]
    groups = [{"params": [p for p in net.parameters() if p.ndim > 0]}]
    if scalars:  # Fixup's authors train its scales and biases at a tenth of the rate
        groups.append({"params": scalars, "lr": rate / 10 if method == "fixup" else rate})
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    each = len(x) // BATCH
    steps, curve = 0, []
    for _ in _training.train(net, _training.batches(x, y, BATCH, epochs, seed), optimiser):
        if steps and steps % each == 0:  # what is yielded is of before a step
            curve.append(_training.accuracy(net, test_x, test_y))
        steps += 1
    with torch.no_grad():
        finite = bool(torch.isfinite(net(test_x)).all())
    diverged = steps < each * epochs or not finite
    end = CHANCE if diverged else _training.accuracy(net, test_x, test_y)
    curve.append(end)
    reached = [number for number, value in enumerate(curve, 1) if value >= 0.9]
    to_90 = reached[0] if reached else None
    return {"accuracy": end, "to_90": to_90, "diverged": int(diverged), "steps": steps}


# What comes out -----------------------------------------------------------------------------------


def _depths(rows: list[_study.Row]) -> list[int]:
    return sorted({row["blocks"] for row in rows})


def _methods(rows: list[_study.Row]) -> list[str]:
    return [name for name in METHODS if _study.pick(rows, method=name)]


def _scores(rows: list[_study.Row], method: str, blocks: int) -> list[float]:
    return [row["accuracy"] for row in _study.judged(rows, SEEDS, method=method, blocks=blocks)]


def _score(rows: list[_study.Row], method: str, blocks: int) -> float:
    return _study.mean(_scores(rows, method, blocks))


def _stand(rows: list[_study.Row], how: str) -> str:
    """Return the methods that stand so to IDInit, and where."""
    found = [
        f"{name} ({_score(rows, name, blocks):.2f} beside {_score(rows, 'idinit', blocks):.2f}"
        f" at {blocks} blocks)"
        for blocks in _depths(rows)
        for name in _methods(rows)
        if name != "idinit"
        and _study.stands(_scores(rows, name, blocks), _scores(rows, "idinit", blocks)) == how
    ]
    return "; ".join(found) or "none"


def verdict(rows: list[_study.Row]) -> _study.Verdict:
    depths, old = _depths(rows), ("xavier", "kaiming")
    found: dict[str, list[int]] = {}
    figures = []
    for blocks in depths:
        means = {name: _score(rows, name, blocks) for name in (*old, "idinit")}
        fail = all(means[name] < FAILS for name in old)
        words, chance = "does not hold", _chance(rows, blocks)
        if fail and means["idinit"] >= TRAINS:
            words = "holds" if chance < 0.05 else f"not shown (marginal: p {chance:.2f})"
            trains = [value >= TRAINS for value in _scores(rows, "idinit", blocks)]
            figures.append(
                f"at {blocks} blocks {sum(trains)} of {len(trains)} seeds of IDInit train, and "
                f"the p-value of a mean of {TRAINS} or less is {chance:.2f}"
            )
        found.setdefault(words, []).append(blocks)
        values = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        figures.insert(depths.index(blocks), f"{blocks} blocks: {values}")
    lines = [
        f"{_baselines.OLD}, {_study.listed(at)} blocks: {words}" for words, at in found.items()
    ]
    return _study.Verdict("\n".join(lines), "; ".join(figures))


def _chance(rows: list[_study.Row], blocks: int) -> float:
    """Return p, one-sided, of the hypothesis that IDInit's mean accuracy is TRAINS or less."""
    scores = _scores(rows, "idinit", blocks)
    if len({*scores}) == 1:  # no scatter, which the test divides by
        return float(scores[0] <= TRAINS)
    test = _study.need("scipy.stats").ttest_1samp
    return float(test(scores, TRAINS, alternative="greater").pvalue)


def _shown(rate: float) -> str:
    return format(rate, "g")


def _stuck(rows: list[_study.Row]) -> list[str]:
    """Return what learned nothing at all."""
    return [
        f"{name} at {blocks} blocks"
        for blocks in _depths(rows)
        for name in _methods(rows)
        if max(r["accuracy"] for r in _study.pick(rows, method=name, blocks=blocks)) < 2 * CHANCE
    ]


def page(rows: list[_study.Row]) -> str:
    depths, methods = _depths(rows), _methods(rows)
    result, sweep = [], []
    for blocks in depths:
        for name in methods:
            found = _study.judged(rows, SEEDS, method=name, blocks=blocks)
            reached = [row["to_90"] for row in found if row["to_90"] is not None]
            result.append([
                blocks, name, _shown(found[0]["rate"]),
                _study.spread(row["accuracy"] for row in found),
                f"{sum(row['diverged'] for row in found)} of {len(found)}",
                f"{len(reached)} of {len(found)}",
                _study.spread(reached, ".1f") if reached else "-",
            ])  # fmt: skip
            tuned = [r for r in _study.pick(rows, method=name, blocks=blocks) if r["seed"] in TUNE]
            rates = sorted({row["rate"] for row in tuned}, reverse=True)
            means = {
                q: _study.mean(r["accuracy"] for r in _study.pick(tuned, rate=q)) for q in rates
            }
            sweep.append([blocks, name, ", ".join(f"{_shown(q)}: {means[q]:.2f}" for q in rates)])
    epochs = ", ".join(f"{_study.pick(rows, blocks=b)[0]['epochs']} at {b}" for b in depths)
    start = ", ".join(map(_shown, RATES[START]))
    stuck = _stuck(rows)
    cites = [[name, _baselines.METHODS[name].cite] for name in methods]
    return filled(
        "residual",
        width=WIDTH,
        momentum=MOMENTUM,
        batch=BATCH,
        epochs=epochs,
        start=start,
        diverged=2 * CHANCE,
        slowest=_shown(RATES[0]),
        fastest=_shown(RATES[-1]),
        tune=_study.listed(TUNE),
        seeds=_study.listed(SEEDS),
        chance=CHANCE,
        trains=TRAINS,
        fails=FAILS,
        methods=_study.table(["method", "what it is"], cites),
        results=_study.table(
            ["blocks", "method", "rate", "accuracy", "diverged", "reach 90 %", "epochs to 90 %"],
            result,
        ),
        sweep=_study.table(["blocks", "method", "rate: accuracy"], sweep),
        ahead=_stand(rows, "ahead of"),
        level=_stand(rows, "level with"),
        stuck="; ".join(stuck) or "none",
        tuning=len(TUNE),
    )


def draw(rows: list[_study.Row], figure: Any) -> None:
    depths, methods = _depths(rows), _methods(rows)
    axes = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
    for panel, blocks in zip(axes, depths, strict=True):
        for place, name in enumerate(reversed(methods)):
            found = _study.judged(rows, SEEDS, method=name, blocks=blocks)
            colour = "C3" if name == "idinit" else "C0"
            panel.barh(place, _score(rows, name, blocks), color=colour, alpha=0.4)
            values = [row["accuracy"] for row in found]
            panel.plot(values, [place] * len(values), ".", color=colour)
        panel.axvline(CHANCE, color="gray", linestyle=":")
        panel.set(xlim=(0, 1), xlabel="test accuracy", title=f"{blocks} blocks")
        panel.set_yticks(range(len(methods)), methods[::-1])


def check(rows: list[_study.Row]) -> None:
    """Deep nets: IDInit is ahead of Xavier, and far of Kaiming, which is less than the claim."""
    for blocks in _depths(rows):
        if blocks >= 32:
            assert _score(rows, "idinit", blocks) > _score(rows, "xavier", blocks)
            assert _score(rows, "idinit", blocks) > _score(rows, "kaiming", blocks) + 0.2
        if blocks >= 128:
            assert _score(rows, "idinit", blocks) >= TRAINS
            assert max(_score(rows, name, blocks) for name in ("xavier", "kaiming")) < FAILS
    if 8 in _depths(rows):  # and Xavier does train a shallow one
        assert _score(rows, "xavier", 8) > TRAINS


if __name__ == "__main__":
    _study.main("residual")
