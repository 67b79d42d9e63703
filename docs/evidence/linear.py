"""Does momentum, or do mini-batches, let identity initialisation learn negative eigenvalues?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, judged, mean, pick, spread, swept, table

TITLE = "Linear nets and negative eigenvalues"
CLAIM = (
    "Momentum or mini-batches fix the convergence failure of identity initialisation for targets "
    "with negative eigenvalues."
)
HERE = (
    'The failure is that of Bartlett et al. 2018, "Gradient descent with identity initialization '
    'efficiently learns positive definite linear transformations by deep residual networks".'
)
OPTIMISERS = {  # batch, momentum; None is Adam
    "GD": (64, 0.0),
    "GD + momentum": (64, 0.9),
    "SGD": (8, 0.0),
    "SGD + momentum": (8, 0.9),
    "Adam": (64, None),
}
TARGETS = ("positive", "negative", "random")
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TUNE, SEEDS = (100, 101, 102, 103, 104), (0, 1, 2, 3, 4)
STEPS = 300
LEARNT = 0.01


def _settings(quick: bool) -> list[Row]:
    plain = {"data": "whitened", "dtype": "float32"}
    main = [
        {"target": target, "optimiser": name, "init": init, **plain}
        for target in (TARGETS[:2] if quick else TARGETS)
        for name in (["GD", "GD + momentum", "SGD"] if quick else OPTIMISERS)
        for init in (("bartlett",) if quick else ("bartlett", "orthogonal_1"))
    ]
    why = [("finite", "float32"), ("whitened", "float64"), ("finite", "float64")]
    return main + [
        {"target": "negative", "optimiser": name, "init": "bartlett", "data": d, "dtype": t}
        for d, t in ([] if quick else why)
        for name in OPTIMISERS
    ]


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured."""
    rates = RATES[2:5] if quick else RATES
    seeds = SEEDS[:2] if quick else SEEDS
    return swept(_settings(quick), rates, rows, tune=TUNE, seeds=seeds, score="score")


def problem(target: str, data: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return a target, 10 x 10, and 64 inputs, in float64; whitened: X'X / 64 is the identity."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(74, 10, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(draw[:10])
    values = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    if target == "negative":
        values[::3] *= -1  # four of ten
    phi = draw[:10] / math.sqrt(10) if target == "random" else basis @ values.diag() @ basis.T
    x = draw[10:]
    return phi, torch.linalg.qr(x)[0] * 8 if data == "whitened" else x


class _Half(nn.Module):
    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return (out - y).square().sum(1).mean() / 2


def measure(
    target: str, optimiser: str, init: str, data: str, dtype: str, rate: float, seed: int
) -> Row:
    """Train one net; the relative loss is |W3 W2 W1 - target|^2 / |target|^2."""
    phi, x = problem(target, data, seed)
    real = getattr(torch, dtype)
    x, phi = x.to(real), phi.to(real)
    torch.manual_seed(seed)
    model = _nets.mlp([10, 10, 10, 10], None)
    _baselines.apply(init, model, x)
    model = model.to(real)
    batch, momentum = OPTIMISERS[optimiser]
    weights = list(model.parameters())
    steps: Any = (
        torch.optim.Adam(weights, lr=rate)
        if momentum is None
        else torch.optim.SGD(weights, lr=rate, momentum=momentum)
    )
    stream = _training.batches(x, x @ phi.T, batch, STEPS * batch // 64, seed)
    done = sum(1 for _ in _training.train(model, stream, steps, _Half()))
    with torch.no_grad():
        product = model(torch.eye(10, dtype=real)).T
    loss = ((product - phi).square().sum() / phi.square().sum()).item()
    fine = done == STEPS // (64 // batch) * (64 // batch) and math.isfinite(loss) and loss < 1
    loss = max(loss, 1e-12) if fine else 1.0
    return {"loss": loss, "score": -math.log10(loss), "diverged": int(not fine)}


def _loss(rows: Sequence[Row], **setting: Any) -> float:
    """Return the geometric mean of the relative loss at the best rate."""
    found = judged(rows, SEEDS, **{"data": "whitened", "dtype": "float32", **setting})
    return 10 ** -mean(row["score"] for row in found)


def _learnt(rows: Sequence[Row], optimiser: str, data: str) -> int:
    """Return with how many seeds an optimiser learns a negative target at its best rate."""
    setting = {"target": "negative", "init": "bartlett", "optimiser": optimiser, "data": data}
    return sum(row["loss"] < LEARNT for row in judged(rows, SEEDS, dtype="float32", **setting))


def verdict(rows: Sequence[Row]) -> Verdict:
    """Decide from GD, and from each change of it."""
    names = [n for n in OPTIMISERS if pick(rows, optimiser=n)]
    found = {n: _loss(rows, target="negative", init="bartlett", optimiser=n) for n in names}
    figure = "negative eigenvalues, relative loss: " + ", ".join(
        f"{n} {v:.1e}" for n, v in found.items()
    )
    seeds = len(judged(rows, SEEDS, target="negative", init="bartlett", optimiser="GD",
                       data="whitened", dtype="float32"))  # fmt: skip
    learnt = {name: _learnt(rows, name, "whitened") for name in names}
    figure += f" (learnt with {', '.join(map(str, learnt.values()))} of {seeds} seeds)"
    cures = [n for n in names if n != "GD" and learnt[n] == seeds]
    if learnt["GD"] > seeds / 2:
        return Verdict("does not hold", f"GD at its best rate does not fail; {figure}")
    if {"GD + momentum", "SGD"} <= set(cures):
        if pick(rows, data="finite"):
            right = {name: _learnt(rows, name, "finite") for name in names}
            counts = ", ".join(f"{name} {count}" for name, count in right.items())
            figure += f"; Gaussian inputs, seeds of {len(SEEDS)} that learn: {counts}"
            if right["GD"]:
                return Verdict("holds when the inputs are whitened", figure)
        return Verdict("holds", figure)
    if cures:
        return Verdict(f"holds when the optimiser is {' or '.join(cures)}", figure)
    return Verdict("does not hold", figure)


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    keys = ("target", "init", "optimiser", "data", "dtype")
    settings = list(dict.fromkeys(tuple(row[k] for k in keys) for row in rows))
    best, sweep = [], []
    rates = sorted({row["rate"] for row in rows})
    for setting in settings:
        mine = pick(rows, **dict(zip(keys, setting, strict=True)))
        final = [row for row in mine if row["seed"] in SEEDS]
        rate = final[0]["rate"]
        score = spread((row["score"] for row in final), ".2f")
        lost = sum(row["diverged"] for row in final)
        best.append([*setting, rate, score, f"{10 ** -mean(r['score'] for r in final):.1e}", lost])
        tuning = [row for row in mine if row["seed"] in TUNE]
        sweep.append(
            [*setting, *(f"{mean(r['score'] for r in pick(tuning, rate=q)):.2f}" for q in rates)]
        )
    return filled(
        "linear",
        steps=STEPS,
        sgd_steps=STEPS // 8 * 8,
        tune=_study.listed(TUNE),
        seeds=_study.listed(SEEDS),
        learnt=LEARNT,
        results=table([*keys, "best rate", "score", "loss (geometric mean)", "diverged"], best),
        sweep=table([*keys, *rates], sweep),
        ends=_study.at_ends(rows, keys, SEEDS),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the loss at the best rate: a panel a target, a point a seed."""
    targets = [t for t in TARGETS if pick(rows, target=t)]
    names = [n for n in OPTIMISERS if pick(rows, optimiser=n)]
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        for shift, init in ((-0.12, "bartlett"), (0.12, "orthogonal_1")):
            some = judged(rows, SEEDS, target=target, init=init, data="whitened", dtype="float32")
            if some:
                at = [names.index(row["optimiser"]) + shift for row in some]
                axes.plot(at, [row["loss"] for row in some], "o", ms=4, alpha=0.6, label=init)
        axes.set(title=f"{target} target", yscale="log")
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    panels[0].set_ylabel("relative loss at the best rate")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)


def check(rows: Sequence[Row]) -> None:
    """Assert that identity with GD learns positive targets, and needs help with negative ones."""
    easy, hard = (
        _loss(rows, target=t, init="bartlett", optimiser="GD") for t in ("positive", "negative")
    )
    assert easy < LEARNT, easy
    assert hard > max(10 * easy, LEARNT), (easy, hard)
    for name in ("GD + momentum", "SGD", "Adam"):
        setting = {"target": "negative", "init": "bartlett", "optimiser": name, "data": "whitened"}
        losses = [row["loss"] for row in judged(rows, SEEDS, dtype="float32", **setting)]
        if losses or name != "Adam":  # which the quick study leaves out
            assert max(losses) < LEARNT, (name, losses)


if __name__ == "__main__":
    _study.main("linear")
