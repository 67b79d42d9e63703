"""Epsilon instead of zero at the end of a branch keeps neurons alive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _nets, _study, _training
from docs.evidence._data import filled, load
from docs.evidence._study import Row, Verdict, effect
from idinit_ref.diagnostics import gradient_coverage

TITLE = "Exact zero or epsilon"
CLAIM = (
    "Exact zeros at the end of a residual branch leave dead neurons; a small epsilon revives "
    "them [P]."
)
EPS = (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2)
RATES = (0.01, 0.03, 0.1, 0.3)
TUNE, SEEDS = (100,), (0, 1, 2, 3, 4)
NETS = ("same width", "option A", "option A, gamma 1", "option A, gamma 0")
EPOCHS = 3
SMALL = 0.1  # a branch that is small beside its skip


class _OptionA(nn.Module):
    """Every second place of the image, and channels of zeros: He et al. 2015, option A."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)


def made(kind: str, width: int = 8) -> nn.Sequential:
    """Return four residual blocks, the third of which may halve the image."""
    norm = "gamma" in kind
    model = _nets.resnet(4, width, norm=norm, stages=1 if kind == "same width" else 2)
    for block in model:
        if isinstance(block, _nets.Residual) and not isinstance(block.shortcut, nn.Identity):
            block.shortcut = _OptionA()
    return model


def begin(model: nn.Module, x: Tensor, kind: str, eps: float) -> None:
    """Write the start of a kind of net; an eps of 0 writes exact zeros.

    Every block ends with IDIZ, also the one that halves the image: alone `init_` gives it IDI,
    since option A's shortcut is no skip to it. So the starts differ in eps and nothing else.
    """
    layers = {module: f"{name}.weight" for name, module in model.named_modules()}
    ends = [[*_nets.weighted(block.branch)][-1] for block in _residuals(model)]
    irt.init_(model, x, eps=eps or 1e-6, overrides={layers[end]: "zero" for end in ends})
    for block in _residuals(model):
        *_, last = _nets.weighted(block.branch)
        if eps == 0:
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
        if kind.endswith("gamma 0"):
            nn.init.zeros_(block.branch[-1].weight)


def cells(quick: bool, rows: list[Row]) -> list[Row]:
    kinds, sizes = (NETS[1::2], (0.0, 1e-6)) if quick else (NETS, EPS)
    epochs = 1 if quick else EPOCHS
    settings = [{"net": kind, "eps": eps, "epochs": epochs} for kind in kinds for eps in sizes]
    rates, tune, seeds = (RATES[1:3], (100,), (0, 1)) if quick else (RATES, TUNE, SEEDS)
    trained = _study.swept(settings, rates, rows, tune=tune, seeds=seeds, score="accuracy")
    starts = [{**setting, "epochs": 0, "rate": 0.0, "seed": 0} for setting in settings]
    return trained + starts


def measure(net: str, eps: float, epochs: int, rate: float, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    x, y, judge, labels = _training.digits()
    model = made(net)
    begin(model, x[:2], net, eps)
    if epochs == 0:
        return {"branch": _largest(model, x[:64])}
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


@torch.no_grad()
def _largest(model: nn.Sequential, x: Tensor) -> float:
    """Return the root mean square of a branch beside its skip, where it is most."""
    ratios = []
    for layer in model:
        if isinstance(layer, _nets.Residual):
            skip, branch = (
                part(x).square().mean().sqrt() for part in (layer.shortcut, layer.branch)
            )
            ratios.append((branch / skip).item())
        x = layer(x)
    return max(ratios)


def _residuals(model: nn.Module) -> list[_nets.Residual]:
    return [module for module in model.modules() if isinstance(module, _nets.Residual)]


def _values(rows: list[Row], key: str, **setting: Any) -> list[float]:
    found = [row[key] for row in _study.judged(rows, SEEDS, **setting)]
    return [value for value in found if value is not None]


def _kinds(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["net"] for row in rows))


def where(good: Sequence[str], nets: Sequence[str], otherwise: str = "does not hold") -> str:
    """Return in which of the nets a claim holds."""
    if good and len(good) < len(nets):
        return f"holds when the net is {' or '.join(good)}"
    return "holds" if good else otherwise


def _stood(rows: list[Row], net: str, key: str, sign: int) -> str:
    """Return how eps 1e-6 stands to 0, by two standard errors of the difference."""
    ours, zeros = ([sign * v for v in _values(rows, key, net=net, eps=e)] for e in (1e-6, 0.0))
    return _study.stands(ours, zeros)


def _copies() -> tuple[list[str], list[str]]:
    """Return what IDIZ's eps does in a wide MLP, beside exact zeros: claims, and their figures.

    From the data of `symmetry`, whose transformers differ there only in the last weights.
    """
    data = load("symmetry")
    rows = sorted(data["rows"], key=lambda row: row["seed"])
    rows = [row for row in rows if row["seed"] in data["settings"]["SEEDS"]]
    names = list(dict.fromkeys(row["optimiser"] for row in rows))
    lines, figures = [], []

    def differ(at: int) -> Callable[[Row], float]:
        return lambda row: row["units"][-1][at]  # in the end

    told = [
        (f"more units differ by over {tolerance:g}", differ(at))
        for at, tolerance in enumerate(data["settings"]["TOLERANCES"], 1)
    ]
    for what, value in [*told, ("the loss is lower", lambda row: row["score"])]:
        found = {
            name: effect(*([value(row) for row in _study.pick(rows, optimiser=name, way=way)]
                           for way in ("pair", "zero")))
            for name in names
        }  # fmt: skip
        good, bad = (
            all(each.shown and sign * each.value > 0 for each in found.values()) for sign in (1, -1)
        )
        words = "holds" if good else "does not hold" if bad else "not shown"
        lines.append(f"copies of hidden units in a wide MLP, {what}: {words}")
        values = ", ".join(f"{each} ({name})" for name, each in found.items())
        figures.append(f"{what}: {values}")
    return lines, figures


def _apart(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of what was trained, and those of starts."""
    return [row for row in rows if row["epochs"]], [row for row in rows if not row["epochs"]]


def verdict(rows: list[Row]) -> Verdict:
    rows, starts = _apart(rows)
    kinds, lines = _kinds(rows), []
    for what, key, sign in (
        ("fewer parameters never move", "frozen", -1),
        ("accuracy is higher", "accuracy", 1),
    ):
        stood = {net: _stood(rows, net, key, sign) for net in kinds}
        otherwise = "does not hold" if "behind" in stood.values() else "not shown"
        good = [net for net, how in stood.items() if how == "ahead of"]
        lines.append(f"{what}: {where(good, kinds, otherwise)}")
    figures = [
        f"{net}: never moved {_study.mean(_values(rows, 'frozen', net=net, eps=0.0)):.2f} with 0 "
        f"and {_study.mean(_values(rows, 'frozen', net=net, eps=1e-6)):.2f} with 1e-6, accuracy "
        f"{_study.mean(_values(rows, 'accuracy', net=net, eps=0.0)):.2f} and "
        f"{_study.mean(_values(rows, 'accuracy', net=net, eps=1e-6)):.2f}"
        for net in kinds
    ]
    copies, found = _copies()
    large = max(row["eps"] for row in starts)
    branches = {row["net"]: row["branch"] for row in _study.pick(starts, eps=large)}
    small = [net for net, branch in branches.items() if branch < SMALL]
    undone = [f"{net}: {branch:.2f}" for net, branch in branches.items() if net not in small]
    words = where(small, kinds) + f" (a norm undoes it in {', '.join(undone)})" * bool(undone)
    lines += [*copies, f"with eps {large:g} branches begin below {SMALL:g} of their skip: {words}"]
    figures += [f"copies of hidden units in a wide MLP, {each}" for each in found]
    sizes = ", ".join(f"{net} {branch:.2g}" for net, branch in branches.items())
    figures.append(f"with eps {large:g} the largest branch beside its skip: {sizes}")
    return Verdict("\n".join(lines), "; ".join(figures))


def page(rows: list[Row]) -> str:
    rows, starts = _apart(rows)
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
    begun = [
        [
            net,
            *(f"{row['branch']:.1g}" for e in sizes for row in _study.pick(starts, net=net, eps=e)),
        ]
        for net in _kinds(starts)
    ]
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
        ends=_study.at_ends(rows, ("net", "eps"), SEEDS),
        copies="\n".join(f"* {each}" for each in _copies()[1]),
        starts=_study.table(("net", *(f"eps {eps:g}" for eps in sizes)), begun),
        tune=_study.listed(TUNE),
        sweep=_study.table(
            ("net", "eps", *(f"{r:g}" for r in sorted({x["rate"] for x in rows}))), sweep
        ),
    )


def draw(rows: list[Row], figure: Any) -> None:
    rows, _ = _apart(rows)
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
    rows, starts = _apart(rows)
    for eps in (1e-6, 1e-2):  # a norm enlarges a small branch
        known = {row["net"]: row["branch"] for row in _study.pick(starts, eps=eps)}
        if "option A, gamma 1" in known:
            assert known["option A, gamma 1"] > 10 * known["option A"]
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
