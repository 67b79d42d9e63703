"""Epsilon instead of zero at the end of a branch keeps neurons alive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict
from idinit_ref.diagnostics import gradient_coverage

TITLE = "Exact zero or epsilon"
CLAIM = (
    "Exact zeros at the end of a residual branch leave dead neurons; a small epsilon revives "
    "them [P]."
)
EPS = (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TUNE, SEEDS = (100, 101, 102, 103), (0, 1, 2, 3, 4)
NETS = ("same width", "option A", "option A, gamma 1", "option A, gamma 0")
EPOCHS = 3


class _OptionA(nn.Module):
    """Every second place of the image, and channels of zeros: He et al. 2015, option A."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)


def _net(kind: str) -> nn.Sequential:
    """Return four residual blocks, the third of which may halve the image."""
    norm = "gamma" in kind
    model = _nets.resnet(4, 8, norm=norm, stages=1 if kind == "same width" else 2)
    for block in model:
        if isinstance(block, _nets.Residual) and not isinstance(block.shortcut, nn.Identity):
            block.shortcut = _OptionA()
    return model


def cells(quick: bool, rows: list[Row]) -> list[Row]:
    kinds, sizes = (NETS[1::2], (0.0, 1e-6)) if quick else (NETS, EPS)
    epochs = 1 if quick else EPOCHS
    settings = [{"net": kind, "eps": eps, "epochs": epochs} for kind in kinds for eps in sizes]
    rates, tune, seeds = (RATES[2::2], (100,), (0, 1)) if quick else (RATES, TUNE, SEEDS)
    return _study.swept(settings, rates, rows, tune=tune, seeds=seeds, score="accuracy")


def measure(net: str, eps: float, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    x, y, judge, labels = _training.digits()
    model = _net(net)
    # The order of taps is that of the data that were measured.
    irt.init_(model, x[:2], eps=eps or 1e-6, taps="channel_major")
    for block in _residuals(model):
        *_, last = _nets.weighted(block.branch)
        if eps == 0:
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
        if net.endswith("gamma 0"):
            nn.init.zeros_(block.branch[-1].weight)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    found: dict[str, Any] = {}
    steps = 0
    for steps, _ in enumerate(
        _training.train(model, _training.batches(x, y, 32, epochs, seed), optimiser), 1
    ):
        if steps - 1 in (0, 1, 10):
            gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
            seen = gradient_coverage(gradients)
            found |= {f"zero_{steps - 1}": seen.overall, f"rows_{steps - 1}": seen.overall_rows}
    same = sum(int((a == b).sum()) for a, b in zip(before, model.parameters(), strict=True))
    finite = steps == len(x) // 32 * epochs
    return {
        "accuracy": _training.accuracy(model, judge, labels) if finite else 0.1,
        "diverged": int(not finite),
        **{f"{key}_{k}": found.get(f"{key}_{k}") for key in ("zero", "rows") for k in (0, 1, 10)},
        "frozen": same / sum(p.numel() for p in model.parameters()),
    }


def _residuals(model: nn.Module) -> list[_nets.Residual]:
    return [module for module in model.modules() if isinstance(module, _nets.Residual)]


def _values(rows: list[Row], key: str, **setting: Any) -> list[float]:
    found = [row[key] for row in _study.judged(rows, SEEDS, **setting)]
    return [value for value in found if value is not None]


def _kinds(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["net"] for row in rows))


def _better(rows: list[Row], net: str, key: str, sign: int) -> bool:
    """Return whether eps 1e-6 beats 0 by more than two standard errors of the difference."""
    a, b = ([sign * v for v in _values(rows, key, net=net, eps=eps)] for eps in (1e-6, 0.0))
    return _study.stands(a, b) == "ahead of"


def verdict(rows: list[Row]) -> Verdict:
    kinds = _kinds(rows)
    alive = [net for net in kinds if _better(rows, net, "frozen", -1)]
    right = [net for net in kinds if _better(rows, net, "accuracy", 1)]
    figure = "; ".join(
        f"{net}: never moved {_study.mean(_values(rows, 'frozen', net=net, eps=0.0)):.2f} with 0 "
        f"and {_study.mean(_values(rows, 'frozen', net=net, eps=1e-6)):.2f} with 1e-6, accuracy "
        f"{_study.mean(_values(rows, 'accuracy', net=net, eps=0.0)):.2f} and "
        f"{_study.mean(_values(rows, 'accuracy', net=net, eps=1e-6)):.2f}"
        for net in kinds
    )
    if len(alive) == len(right) == len(kinds):
        return Verdict("holds", figure)
    if alive:
        words = f"holds for gradients in {len(alive)} of {len(kinds)} nets"
        return Verdict(f"{words}; accuracy is better in {len(right)}", figure)
    return Verdict("does not hold", figure)


def page(rows: list[Row]) -> str:
    lines, sweep = [], []
    sizes = sorted({row["eps"] for row in rows})
    for net in _kinds(rows):
        for eps in sizes:
            known = _study.pick(rows, net=net, eps=eps)
            best = _study.judged(known, SEEDS)[0]
            counts = [
                " / ".join(f"{_study.mean(_values(known, f'{kind}_{k}')):.2f}" for k in (0, 1, 10))
                for kind in ("zero", "rows")
            ]
            chance = sum(value < 0.2 for value in _values(known, "accuracy"))
            score, frozen = (_study.spread(_values(known, key)) for key in ("accuracy", "frozen"))
            lines.append((net, f"{eps:g}", f"{best['rate']:g}", score, chance, *counts, frozen))
            rates = sorted({row["rate"] for row in known})
            tuning = [row for row in known if row["seed"] not in SEEDS]
            means = [_study.mean(r["accuracy"] for r in _study.pick(tuning, rate=v)) for v in rates]
            sweep.append((net, f"{eps:g}", *(f"{value:.3f}" for value in means)))
    ends = "; ".join(
        f"{net}, eps {eps:g} ({rate:g})"
        for net in _kinds(rows)
        for eps in sizes
        if (rate := _study.judged(rows, SEEDS, net=net, eps=eps)[0]["rate"])
        in (RATES[0], RATES[-1])
    )
    head = (
        "net",
        "eps",
        "rate",
        "accuracy",
        "at chance",
        "parameters 0/1/10",
        "rows 0/1/10",
        "never moved",
    )
    return filled(
        "epsilon",
        epochs=EPOCHS,
        rates=_study.listed(RATES),
        results=_study.table(head, lines),
        seeds=len(SEEDS),
        ends=ends or "none",
        sweep=_study.table(
            ("net", "eps", *(f"{r:g}" for r in sorted({x["rate"] for x in rows}))), sweep
        ),
    )


def draw(rows: list[Row], figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    sizes = sorted({row["eps"] for row in rows})
    for axes, key, name in ((left, "accuracy", "accuracy"), (right, "frozen", "never moved")):
        for number, net in enumerate(_kinds(rows)):  # beside each other, as some are alike
            found = [_values(rows, key, net=net, eps=eps) for eps in sizes]
            places = [place + 0.08 * number for place in range(len(sizes))]
            (line,) = axes.plot(places, list(map(_study.mean, found)), label=net)
            for place, values in zip(places, found, strict=True):
                axes.plot([place] * len(values), values, ".", color=line.get_color(), markersize=4)
        axes.set_xticks(range(len(sizes)), [f"{eps:g}" for eps in sizes])
        axes.set_xlabel("eps")
        axes.set_ylabel(name)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


def check(rows: list[Row]) -> None:
    for net in set(_kinds(rows)) - {"same width"}:
        zero, some = (_study.mean(_values(rows, "zero_10", net=net, eps=e)) for e in (0.0, 1e-6))
        assert zero > some + 0.2  # exact zeros still stop gradients at step 10
        zero, some = (_study.mean(_values(rows, "frozen", net=net, eps=e)) for e in (0.0, 1e-6))
        assert zero > some + 0.2  # and some of them for good
    zeros, others = (_values(rows, "accuracy", net=NETS[-1], eps=e) for e in (0.0, 1e-6))
    if len(zeros) == len(SEEDS):  # the quick study is too short for this
        assert _study.stands(others, zeros) == "ahead of"  # where two factors are 0


if __name__ == "__main__":
    _study.main("epsilon")
