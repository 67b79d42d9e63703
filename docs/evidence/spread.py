"""The study of how much the end of training differs from run to run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, mean, pick, swept, table

TITLE = "Does determinism lower the variance between runs?"
CLAIM = "A start without random numbers lowers the variance between runs."
HERE = (
    "Here: the standard deviation over seeds of the final accuracy and loss. A seed draws the "
    "weights and the order of the batches, or only one of them."
)
METHODS = {False: ("xavier", "fixup", "skipinit", "rezero", "idinit"),
           True: ("xavier", "kaiming", "orthogonal", "zero_gamma", "idinit")}  # fmt: skip
RATES = (0.3, 0.1, 0.03, 0.01, 0.003)
TUNE, SEEDS = (100, 101, 102), tuple(range(12))
BLOCKS, WIDTH, SIZE, EPOCHS = 8, 8, 64, 6
VARIED = ("both", "weights", "order")


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    if quick:  # the one comparison that comes out clearly in full, at the rates found there
        return [
            {"norm": False, "method": name, "vary": vary, "epochs": EPOCHS}
            | {"rate": rate, "seed": seed}
            for name, rate in (("fixup", 0.01), ("idinit", 0.03))
            for vary in VARIED
            for seed in SEEDS[:4]
        ]
    found = []
    for norm, names in METHODS.items():
        for name in names:
            setting = {"norm": norm, "method": name, "vary": "both", "epochs": EPOCHS}
            mine = swept([setting], RATES, rows, tune=TUNE, seeds=SEEDS, score="accuracy")
            final = [cell for cell in mine if cell["seed"] in SEEDS]
            found += mine + [{**cell, "vary": vary} for vary in VARIED[1:] for cell in final]
    return found


def measure(norm: bool, method: str, vary: str, epochs: int, rate: float, seed: int) -> Row:
    torch.manual_seed(0 if vary == "order" else seed)
    net = _nets.resnet(BLOCKS, WIDTH, norm=norm, scalars=_baselines.METHODS[method].scalars)
    _baselines.apply(method, net, _training.digits()[0][:2])
    scalars = [p for p in net.parameters() if p.ndim == 0]
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if p.ndim > 0]}]
    if scalars:  # Fixup's authors train its scales and biases at a tenth of the rate
        groups.append({"params": scalars, "lr": rate / 10 if method == "fixup" else rate})
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    order = 0 if vary == "weights" else seed
    return _training.learn(net, optimiser, size=SIZE, epochs=epochs, seed=order)


# What comes out -----------------------------------------------------------------------------------


def _starts(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    return list(dict.fromkeys((row["norm"], row["method"]) for row in rows))


def _values(rows: Sequence[Row], start: tuple[bool, str], vary: str, key: str) -> list[float]:
    found = pick(rows, norm=start[0], method=start[1], vary=vary)
    return [row[key] for row in found if row["seed"] in SEEDS]


def _deviation(rows: Sequence[Row], start: tuple[bool, str], vary: str, key: str) -> float:
    return statistics.stdev(_values(rows, start, vary, key))


def _chance(rows: Sequence[Row], start: tuple[bool, str], key: str) -> float:
    """Return how likely so different variances are of equal ones: Brown, Forsythe 1974."""
    ours, theirs = (_values(rows, s, "both", key) for s in ((start[0], "idinit"), start))
    if len({*ours}) == len({*theirs}) == 1:  # neither varies
        return 1.0
    test = _study.need("scipy.stats").levene
    return float(test(ours, theirs, center="median").pvalue)


def _others(rows: Sequence[Row]) -> list[tuple[bool, str]]:
    return [start for start in _starts(rows) if start[1] != "idinit"]


def _compared(rows: Sequence[Row], key: str) -> tuple[list[str], list[str]]:
    """Return the starts that scatter more than IDInit, and less, by more than chance allows."""
    more, less = [], []
    others = sorted(_others(rows), key=lambda start: _chance(rows, start, key))
    for place, start in enumerate(others):  # Holm 1979: so many tests at 0.05 in all
        if _chance(rows, start, key) * (len(others) - place) >= 0.05:
            break
        ours, theirs = (_deviation(rows, s, "both", key) for s in ((start[0], "idinit"), start))
        (more if theirs > ours else less).append(_label(*start))
    return more, less


def _label(norm: bool, method: str) -> str:
    return f"{method}, BN" if norm else method


def verdict(rows: Sequence[Row]) -> Verdict:
    more, less = _compared(rows, "accuracy")
    figure = "standard deviation of the accuracy: " + ", ".join(
        f"{_label(*start)} {_deviation(rows, start, 'both', 'accuracy'):.3f}"
        for start in _starts(rows)
    )
    figure += f"; least ratio that {len(SEEDS)} seeds show four times of five: {_least():.1f}"
    means = ", ".join(
        f"{_label(*start)} {mean(_values(rows, start, 'both', 'accuracy')):.2f}"
        for start in _starts(rows)
        if _label(*start) in (*more, *less) or start[1] == "idinit"
    )
    figure += f"; mean accuracies of IDInit, and of those that differ: {means}"
    names = [_label(*start) for start in _others(rows)]
    stood = dict.fromkeys(names, "level with") | dict.fromkeys(more, "ahead of")
    return Verdict(_study.beside(stood | dict.fromkeys(less, "behind"), _baselines.OLD), figure)


def _least() -> float:
    """Return the ratio of standard deviations that so many seeds show four times of five."""
    quantile = _study.need("scipy.stats").f.ppf
    known = len(SEEDS) - 1
    return float((quantile(0.975, known, known) * quantile(0.8, known, known)) ** 0.5)


def page(rows: Sequence[Row]) -> str:
    lines, causes = [], []
    for start in _starts(rows):
        final = [row for row in pick(rows, norm=start[0], method=start[1]) if row["seed"] in SEEDS]
        judge = _study.spread(_values(rows, start, "both", "accuracy"))
        loss = _study.spread(_values(rows, start, "both", "loss"))
        tests = ["-", "-"]
        if start[1] != "idinit":
            tests = [f"{_chance(rows, start, key):.3f}" for key in ("accuracy", "loss")]
        lost = sum(row["diverged"] for row in pick(final, vary="both"))
        lines.append([_label(*start), f"{final[0]['rate']:g}", judge, loss, *tests, lost])
        causes.append([
            _label(*start),
            *(f"{_deviation(rows, start, v, 'accuracy'):.3f}" for v in VARIED),
            *(f"{_deviation(rows, start, v, 'loss'):.3f}" for v in VARIED),
        ])  # fmt: skip
    cites = dict.fromkeys(method for _, method in _starts(rows))
    by_loss = [("; ".join(names) or "none") for names in _compared(rows, "loss")]
    by_right = [("; ".join(names) or "none") for names in _compared(rows, "accuracy")]
    sweep = []
    for norm, method in _starts(rows):
        mine = [r for r in pick(rows, norm=norm, method=method) if r["seed"] in TUNE]
        rates = sorted({row["rate"] for row in mine})
        means = [f"{q:g}: {mean(r['accuracy'] for r in pick(mine, rate=q)):.2f}" for q in rates]
        sweep.append([_label(norm, method), ", ".join(means)])
    return filled(
        "spread",
        blocks=BLOCKS,
        width=WIDTH,
        size=SIZE,
        epochs=EPOCHS,
        rates=_study.listed(RATES),
        tune=_study.listed(TUNE),
        seeds=len(SEEDS),
        least=_least(),
        methods=table(
            ["method", "what it is"], [[name, _baselines.METHODS[name].cite] for name in cites]
        ),
        results=table(
            ["start", "rate", "accuracy", "loss", "p, accuracy", "p, loss", "diverged"], lines
        ),
        clearly_by_accuracy=by_right[0],
        corrected_by_accuracy=by_right[1],
        clearly_by_loss=by_loss[0],
        corrected_by_loss=by_loss[1],
        causes=table(
            ["start", *(f"accuracy, {v}" for v in VARIED), *(f"loss, {v}" for v in VARIED)], causes
        ),
        sweep=table(["start", "rate: mean accuracy of the seeds that tune"], sweep),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    starts = _starts(rows)
    axes = figure.subplots()
    for number, vary in enumerate(VARIED):
        for place, start in enumerate(starts):
            values = _values(rows, start, vary, "accuracy")
            at = [place + (number - 1) * 0.25] * len(values)
            label = vary if place == 0 else None
            axes.plot(at, values, "o", ms=4, alpha=0.5, color=f"C{number}", label=label)
    labels = [_label(*start).replace(", ", "\n") for start in starts]
    axes.set_xticks(range(len(starts)), labels, fontsize=7)
    axes.set_ylabel("accuracy of each run")
    axes.legend(title="drawn anew")


def check(rows: Sequence[Row]) -> None:
    """IDInit's runs differ by the order of the batches alone, and by less than Fixup's."""
    for start in _starts(rows):
        for key in ("accuracy", "loss"):
            values = _values(rows, start, "weights", key)
            assert (len(set(values)) == 1) == (start[1] == "idinit"), (start, key, values)
        if start[1] == "idinit":
            assert _values(rows, start, "both", "loss") == _values(rows, start, "order", "loss")
    for key in ("accuracy", "loss"):
        fixup, ours = (_deviation(rows, (False, who), "both", key) for who in ("fixup", "idinit"))
        assert fixup > 1.2 * ours, (key, fixup, ours)


if __name__ == "__main__":
    _study.main("spread")
