"""Do plain nets of any depth keep their signals, and learn?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import (
    Row,
    Verdict,
    judged,
    mean,
    need,
    pick,
    spread,
    stands,
    swept,
    table,
)
from idinit_ref.diagnostics.spectrum import chi, singular_values

TITLE = "Plain nets of 10 to 10,000 layers"
CLAIM = (
    "Isometry at any depth in plain nets: identities keep signals and gradients without skips and "
    "normalisation, so that nets of any depth train [P, S: dynamical isometry]."
)
HERE = (
    "Orthogonal weights of critical scale are not among the other starts here; [chains](chains.md) "
    "compares them with identities, at 10 and 100 layers."
)
DEPTHS = {  # batch, epochs, rates times layers, tuning seeds
    10: (64, 3, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (100, 101)),
    100: (64, 3, (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (100, 101)),
    1000: (128, 3, (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), (100, 101)),
    10000: (128, 3, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (100, 101)),
}
SEEDS = (0, 1, 2, 3, 4)
METHODS = ("idinit", "kaiming", "xavier", "orthogonal", "orthogonal_1")
UNEVEN = ("idinit", "zero", "kaiming", "orthogonal_1")
SAME = ("zero", "bartlett")
WIDTHS = {"64": (64,), "96, 64": (96, 64)}
ACTIVATIONS: dict[str, Any] = {"relu": nn.ReLU, "tanh": nn.Tanh}
CHANCE, LEARNT = 0.1, 0.3
LEAST = 1e-300


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured."""
    methods = ("idinit", "kaiming", "orthogonal_1") if quick else METHODS
    found: list[Row] = [
        {"kind": "same", "act": "relu", "depth": depth, "widths": "64", "method": name, "seed": 0}
        for depth in ([10] if quick else [10, 100, 1000])
        for name in SAME
    ]
    for depth, (_, _, rates, tune) in DEPTHS.items():
        if quick and depth > 1000:
            continue
        for act in ACTIVATIONS:
            for widths in WIDTHS if depth == 100 and not quick else ["64"]:
                names = methods if widths == "64" else UNEVEN
                several = SEEDS[:1] if quick else SEEDS
                found += [
                    {"kind": "start", "act": act, "depth": depth, "widths": widths}
                    | {"method": name, "seed": seed}
                    for name in names
                    for seed in (several if name not in ("idinit", "zero") else SEEDS[:1])
                ]
                if quick and depth > 100:
                    continue
                settings = [
                    {"kind": "train", "act": act, "depth": depth, "widths": widths, "method": name}
                    for name in names
                ]
                found += swept(
                    settings,
                    rates[1:4] if quick else rates,
                    rows,
                    tune=tune[:1] if quick else tune,
                    seeds=SEEDS[:2] if quick else SEEDS,
                    score="accuracy",
                )
    return found


@cache
def _idinit(depth: int, widths: str) -> list[Tensor]:
    """Return IDInit's weights, which are the same for all seeds and activations."""
    model = _net("relu", depth, widths)
    _baselines.apply("idinit", model, torch.zeros(2, 64))
    return [layer.weight.detach() for layer in _nets.weighted(model)]


def _net(act: str, depth: int, widths: str) -> nn.Sequential:
    hidden = [WIDTHS[widths][at % len(WIDTHS[widths])] for at in range(depth - 1)]
    return _nets.mlp([64, *hidden, 10], ACTIVATIONS[act])


def _made(act: str, depth: int, widths: str, method: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = _net(act, depth, widths)
    if method == "idinit":
        with torch.no_grad():
            for layer, weight in zip(_nets.weighted(model), _idinit(depth, widths), strict=True):
                layer.weight.copy_(weight)
    else:
        _baselines.apply(method, model, torch.zeros(2, 64))
    return model


def jacobian(body: nn.Module, x: Tensor) -> np.ndarray[Any, Any]:
    """Return the Jacobian at one input, exactly: row i is the gradient of output i, all at once."""
    size = body(x[None]).shape[1]
    rows = x.expand(size, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(body(rows), rows, torch.eye(size, dtype=x.dtype))
    return np.asarray(found.numpy())


def measure(
    kind: str, act: str, depth: int, widths: str, method: str, seed: int, rate: float | None = None
) -> Row:
    """Measure a net at its start (kind start), compare its weights (same), or train it."""
    model = _made(act, depth, widths, method, seed)
    if kind == "same":
        pairs = zip(_nets.weighted(model), _idinit(depth, widths), strict=True)
        return {"apart": max((layer.weight - w).abs().max().item() for layer, w in pairs)}
    if kind == "start":
        return _start(model, _training.digits()[2][:4].flatten(1))
    assert rate is not None
    torch.set_flush_denormal(True)  # a dying signal makes each step up to 50 times slower
    try:
        return _trained(model, _training.digits(), depth, rate, seed)
    finally:
        torch.set_flush_denormal(False)


def _trained(model: nn.Module, data: Any, depth: int, rate: float, seed: int) -> Row:
    x, y, test, labels = data
    batch, epochs, *_ = DEPTHS[depth]
    weights = list(model.parameters())
    steps = torch.optim.SGD(weights, lr=rate / depth, momentum=0.9)
    stream = _training.batches(x.flatten(1), y, batch, epochs, seed)
    done, still = 0, False
    for done, _ in enumerate(_training.train(model, stream, steps), 1):
        if done == 1 and not any(weight.grad.any() for weight in weights):
            still = True  # and will be: without a gradient nothing moves
            break
    fine = still or done == epochs * (len(x) // batch)
    fine = fine and all(torch.isfinite(weight).all() for weight in weights)
    return {
        "accuracy": _training.accuracy(model, test.flatten(1), labels) if fine else CHANCE,
        "diverged": int(not fine),
        "still": int(still),
    }


def _start(model: nn.Sequential, images: Tensor) -> Row:
    """Return chi and singular values of the Jacobian from the input to the last hidden layer."""
    body, found, near = model[:-1].double(), [], []
    with need("threadpoolctl").threadpool_limits(1):  # NumPy's, as PyTorch has one thread
        for image in images.double():
            matrix = jacobian(body, image)
            if not np.isfinite(matrix).all():
                found.append(1 / LEAST)
                near.append(0.0)
                continue
            values = singular_values(matrix)
            found.append(chi(matrix).value)
            near.append(np.mean((values > 0.5) & (values < 2)).item())
    value = min(max(mean(found), LEAST), 1 / LEAST)
    return {"log_chi": math.log10(value), "near": mean(near)}


# What came out ------------------------------------------------------------------------------------


def _scores(
    rows: Sequence[Row], act: str, depth: int, method: str, widths: str = "64"
) -> list[float]:
    found = judged(rows, SEEDS, kind="train", act=act, depth=depth, method=method, widths=widths)
    return [row["accuracy"] for row in found]


def _score(rows: Sequence[Row], act: str, depth: int, method: str, widths: str = "64") -> float:
    return mean(_scores(rows, act, depth, method, widths))


def _start_of(rows: Sequence[Row], **setting: Any) -> list[Row]:
    return pick(rows, kind="start", **setting)


def _depths(rows: Sequence[Row], kind: str = "train") -> list[int]:
    return sorted({row["depth"] for row in pick(rows, kind=kind)})


def _others(rows: Sequence[Row], act: str, depth: int) -> tuple[float, str]:
    """Return the best accuracy of the other methods, and the method."""
    names = {row["method"] for row in pick(rows, kind="train", act=act, depth=depth, widths="64")}
    return max((_score(rows, act, depth, name), name) for name in names - {"idinit"})


def _reached(rows: Sequence[Row], act: str) -> int:
    """Return the depth up to which all nets of IDInit learn; 0 if none does."""
    found = 0
    for depth in _depths(rows):
        if _score(rows, act, depth, "idinit") <= LEARNT:
            break
        found = depth
    return found


def verdict(rows: Sequence[Row]) -> Verdict:
    """Decide: it trains where it learns at each depth; isometry is chi = 1 at each depth."""
    depths, acts = _depths(rows), list(ACTIVATIONS)
    reach = {a: _reached(rows, a) for a in acts}
    starts = {
        a: [_start_of(rows, act=a, depth=d, method="idinit", widths="64")[0] for d in depths]
        for a in acts
    }
    chis = {a: [10 ** row["log_chi"] for row in starts[a]] for a in acts}
    near = {a: min(row["near"] for row in starts[a]) for a in acts}
    deepest = depths[-1]
    other = {a: _others(rows, a, deepest) for a in acts}
    figure = "; ".join(
        f"{a}, {deepest:,} layers: accuracy {_score(rows, a, deepest, 'idinit'):.2f}, the "
        f"best other that was tried ({other[a][1]}) {other[a][0]:.2f}, "
        f"chi from {chis[a][0]:.2g} at {depths[0]} layers "
        f"to {chis[a][-1]:.2g}, {near[a]:.0%} of singular values near 1 at least"
        for a in acts
    )
    if not all(reach.values()):
        return Verdict("does not hold", figure)
    if any(reach[a] < deepest for a in acts):
        words = " and ".join(f"{a} up to {reach[a]:,} layers" for a in acts)
        return Verdict(f"holds when nets are not too deep: {words} learn", figure)
    if all(0.9 < min(chis[a]) <= max(chis[a]) < 1.1 and near[a] > 0.9 for a in acts):
        return Verdict("holds", figure)
    if steady := [a for a in acts if min(chis[a]) > 0.9 * max(chis[a]) > 0.1]:
        figure += f"; with {' and '.join(steady)} chi is the same at all depths"
    return Verdict("training at any depth: holds\nisometry: does not hold", figure)


def _chi(found: Sequence[Row]) -> str:
    """Return chi as a number, or as a power of ten beside its spread."""
    logs = [row["log_chi"] for row in found]
    if min(logs) <= math.log10(LEAST) or max(logs) >= -math.log10(LEAST):
        return "below 1e-300" if logs[0] < 0 else "beyond 1e300"
    if max(logs) - min(logs) < 0.01 and abs(logs[0]) < 3:
        return f"{10 ** mean(logs):.3f}"
    return f"10^({spread(logs, '.1f')})"


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    lines, sweep = [], []
    for act in ACTIVATIONS:
        for depth in _depths(rows):
            _, _, rates, tune = DEPTHS[depth]
            for widths in WIDTHS:
                setting = {"act": act, "depth": depth, "widths": widths}
                for name in (*METHODS, "zero"):
                    found = judged(rows, SEEDS, kind="train", method=name, **setting)
                    if not found:
                        continue
                    start = _start_of(rows, method=name, **setting)
                    near = spread((row["near"] for row in start), ".2f")
                    score = spread(row["accuracy"] for row in found)
                    still, lost = (sum(row[key] for row in found) for key in ("still", "diverged"))
                    where = [act, f"{depth:,}", widths, name]
                    lines.append([*where, _chi(start), near, found[0]["rate"], score, still, lost])
                    tried = [
                        pick(rows, kind="train", method=name, rate=rate, **setting)
                        for rate in rates
                    ]
                    scores = [
                        f"{rate:g}: {mean(r['accuracy'] for r in some if r['seed'] in tune):.2f}"
                        for rate, some in zip(rates, tried, strict=True)
                        if some
                    ]
                    sweep.append([*where, ", ".join(scores)])
    depths, images = _depths(rows), len(_training.digits()[0])
    known = _depths(rows, "start")
    relu, tanh = (
        [
            10 ** _start_of(rows, act=act, depth=d, method="idinit", widths="64")[0]["log_chi"]
            for d in (known[0], known[-1])
        ]
        for act in ACTIVATIONS
    )
    ends = _at_ends(rows)
    most, where = max(ends, default=(CHANCE, "none"))
    how = [
        [f"{depth:,}", batch, epochs, images // batch * epochs, *map(_study.listed, (rates, tune))]
        for depth, (batch, epochs, rates, tune) in DEPTHS.items()
        if depth in depths
    ]
    head = ["activation", "layers", "widths", "weights", "chi", "near 1"]
    head += ["best rate x layers", "accuracy", "without a gradient", "diverged"]
    return filled(
        "depth",
        seeds=_study.listed(SEEDS),
        how=table(["layers", "batch", "epochs", "steps", "rates x layers", "tuning seeds"], how),
        chance=CHANCE,
        results=table(head, lines),
        relu=relu,
        tanh=tanh,
        shallow=known[0],
        deep=known[-1],
        beside=_beside(rows),
        ends=len(ends),
        most=most,
        where=where,
        learnt=LEARNT,
        apart=max(row["apart"] for row in pick(rows, kind="same")),
        sweep=table(["activation", "layers", "widths", "weights", "rate: accuracy"], sweep),
    )


def _beside(rows: Sequence[Row]) -> str:
    """Return a line for each activation and depth: how IDInit stands to the best of the others."""
    lines = []
    for act in ACTIVATIONS:
        for depth in _depths(rows):
            mine, (best, name) = _score(rows, act, depth, "idinit"), _others(rows, act, depth)
            ours, theirs = (_scores(rows, act, depth, who) for who in ("idinit", name))
            lines.append(
                f"* {act}, {depth:,} layers: IDInit ({mine:.3f}) is {stands(ours, theirs)} "
                f"the best of the others, {name} ({best:.3f})"
            )
    return "\n".join(lines)


def _at_ends(rows: Sequence[Row]) -> list[tuple[float, str]]:
    """Return score and name of each case whose best rate lies at an end of the grid."""
    ends = []
    for act in ACTIVATIONS:
        for depth in _depths(rows):
            rates = {row["rate"] for row in pick(rows, kind="train", act=act, depth=depth)}
            for name in (*METHODS, "zero"):
                for widths in WIDTHS:
                    setting = {"act": act, "depth": depth, "method": name, "widths": widths}
                    found = judged(rows, SEEDS, kind="train", **setting)
                    if found and found[0]["rate"] in (min(rates), max(rates)):
                        place = f"{name}, {act}, {depth:,} layers of width {widths}"
                        ends.append((_score(rows, **setting), place))
    return ends


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw chi and accuracy over depth, for both activations."""
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, act in enumerate(ACTIVATIONS):
        for name in METHODS:
            if not pick(rows, method=name):
                continue
            label = "idinit = ZerO = Bartlett" if name == "idinit" else name
            style = {"marker": "o", "markersize": 3, "label": label}
            known = _depths(rows, "start")
            logs = [
                mean(
                    row["log_chi"]
                    for row in _start_of(rows, act=act, depth=d, method=name, widths="64")
                )
                for d in known
            ]
            axes[0, column].plot(known, logs, **style)
            trained = _depths(rows)
            scores = [_score(rows, act, d, name) for d in trained]
            axes[1, column].plot(trained, scores, **style)
        axes[0, column].set(title=f"{act}: log10 of chi, cut off", xscale="log", ylim=(-12, 4))
        axes[1, column].axhline(CHANCE, color="black", linewidth=0.7, linestyle=":")
        axes[1, column].set(title=f"{act}: accuracy", xlabel="layers", ylim=(0, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)


def check(rows: Sequence[Row]) -> None:
    """Assert what the template says without a number."""
    assert all(row["apart"] == 0 for row in pick(rows, kind="same"))
    known = _depths(rows, "start")
    chis = {
        (act, name): [
            mean(r["log_chi"] for r in _start_of(rows, act=act, depth=d, method=name, widths="64"))
            for d in known
        ]
        for act in ACTIVATIONS
        for name in METHODS
        if pick(rows, method=name)
    }
    relu, tanh = chis["relu", "idinit"], chis["tanh", "idinit"]
    orthogonal = chis["tanh", "orthogonal_1"]
    assert max(relu) - min(relu) < 1e-3
    assert -0.7 < relu[0] < -0.15  # between 0.2 and 0.7 of the inputs are positive
    for (act, name), logs in chis.items():
        if act == "relu" and name != "idinit":
            assert logs[-1] < relu[-1] - 3, name
    assert all(
        later < earlier - 0.1 for logs in (tanh, orthogonal) for earlier, later in pairwise(logs)
    )
    assert tanh[-1] > -6
    assert all(mine > other for mine, other in zip(tanh[1:], orthogonal[1:], strict=True))
    for depth in {100, 1000} & {*known}:
        near = [
            _start_of(rows, act="tanh", depth=depth, method=name, widths="64")[0]["near"]
            for name in ("idinit", "orthogonal_1")
        ]
        assert near[0] > near[1] + 0.02
    assert chis["tanh", "kaiming"][-1] > 3
    for depth in _depths(rows):
        if depth >= 100:
            assert _score(rows, "relu", depth, "idinit") > _others(rows, "relu", depth)[0] + 0.2
            assert _score(rows, "tanh", depth, "idinit") > 0.3
            assert _score(rows, "tanh", depth, "kaiming") < 0.3
        if depth >= 1000:
            other = _scores(rows, "tanh", depth, "orthogonal_1")
            assert stands(_scores(rows, "tanh", depth, "idinit"), other) == "ahead of"
    if pick(rows, widths="96, 64"):
        for act in ACTIVATIONS:
            mine = _score(rows, act, 100, "idinit", "96, 64")
            assert mine > _score(rows, act, 100, "zero", "96, 64") + 0.2


if __name__ == "__main__":
    _study.main("depth")
