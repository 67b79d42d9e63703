"""Chains with tanh, GELU and SiLU: where the signal fades, and what repairs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, judged, mean, pick, spread, stands, table
from docs.evidence.depth import jacobian
from idinit_ref.diagnostics import gaussian_gain

TITLE = "Chains with tanh, GELU and SiLU"
CLAIM = (
    "Identities carry signals through plain nets of any depth [P, S]: with tanh, GELU and SiLU, to "
    "100 layers ([depth](depth.md) has ReLU, and 10,000 layers)."
)
HERE = (
    "Theorem T13 says that GELU and SiLU end this: the signal shrinks like 2^-L. The study asks "
    "whether that is so, whether a gain or a skip repairs it, and how orthogonal weights compare "
    "with identities."
)
ACTIVATIONS: dict[str, Any] = {"tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
WAYS = {
    "IDI": "identities",
    "IDI, gain 2": "identities times 2, so that GELU's and SiLU's slope at 0 is 1",
    "IDI, skips": "blocks x + W2 f(W1 x) of the same number of layers; W1 is IDI, W2 IDIZ",
    "orthogonal": "random; tanh: variance 1.05 and biases of variance 2.01e-5 (Xiao et al. 2018), "
    "which is critical; GELU and SiLU: the gain that keeps the second moment of a Gaussian of "
    "variance 1, but not of other signals, so that it is not critical",
}
DEPTHS, TRAINED, JUDGED = (10, 100, 1000), (10, 100), 100
RATES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0)
# With tanh, which alone learns so deep without skips; the rates of `depth`.
DEEP = {1000: (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}
TUNE, SEEDS = (100,), (0, 1, 2)
WIDTH, BATCH, EPOCHS, CHANCE, LEARNT = 64, 64, 3, 0.1, 0.3


def _ways(act: str) -> list[str]:
    return [way for way in WAYS if act != "tanh" or way != "IDI, gain 2"]


def _depths(act: str) -> list[int]:
    return sorted({*DEPTHS, *(DEEP if act == "tanh" else ())})


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return the starts at all depths, and training at some."""
    acts = ("gelu",) if quick else tuple(ACTIVATIONS)
    found: list[Row] = [
        {"kind": "start", "act": act, "depth": depth, "way": way, "seed": 0}
        for act in acts
        for depth in (DEPTHS[:2] if quick else _depths(act))
        for way in _ways(act)
    ]
    settings = [
        {"kind": "train", "act": act, "depth": depth, "way": way}
        for act in acts
        for depth in (TRAINED[1:] if quick else TRAINED)
        for way in (("IDI", "IDI, skips") if quick else _ways(act))
    ]
    rates, seeds = ((0.3,), SEEDS[:2]) if quick else (RATES, SEEDS)

    def swept(settings: list[Row], rates: Sequence[float]) -> list[Row]:
        return _study.swept(settings, rates, rows, tune=TUNE, seeds=seeds, score="accuracy")

    found += swept(settings, rates)
    for depth, fewer in {} if quick else DEEP.items():
        deep = {"kind": "train", "act": "tanh", "depth": depth}
        found += swept([{**deep, "way": way} for way in _ways("tanh")], fewer)
    return found


def made(act: str, depth: int, way: str, seed: int) -> nn.Sequential:
    """Return a net of `depth` dense layers and a head."""
    torch.manual_seed(seed)
    activation = ACTIVATIONS[act]
    if way == "IDI, skips":
        blocks = [
            _nets.Residual(_nets.mlp([WIDTH] * 3, activation, bias=True)) for _ in range(depth // 2)
        ]
        model = nn.Sequential(*blocks, nn.Linear(WIDTH, 10))
    else:
        layers = [(nn.Linear(WIDTH, WIDTH), activation()) for _ in range(depth)]
        model = nn.Sequential(*(one for pair in layers for one in pair), nn.Linear(WIDTH, 10))
    if way == "orthogonal":
        gain = math.sqrt(1.05) if act == "tanh" else gaussian_gain(_on_arrays(activation()))
        for layer in _nets.weighted(model[:-1]):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.normal_(layer.bias, std=math.sqrt(2.01e-5) if act == "tanh" else 0.0)
    else:  # layer by layer, as a trace of 1,000 takes long
        for layer in _nets.weighted(model):
            irt.idi_layer_(layer, gain=2.0 if way == "IDI, gain 2" else 1.0)
        for block in model if way == "IDI, skips" else ():
            if isinstance(block, _nets.Residual):
                irt.idiz_layer_(block.branch[-1])
    irt.idi_layer_(model[-1])  # the same head for all
    return model


def _on_arrays(activation: nn.Module) -> Any:
    return lambda z: activation(torch.as_tensor(z)).numpy()


def measure(kind: str, act: str, depth: int, way: str, seed: int, rate: float | None = None) -> Row:
    """Measure a net at its start, or train it."""
    model = made(act, depth, way, seed)
    if kind == "start":
        return _start(model[:-1].double(), depth)
    assert rate is not None
    x, y, judge, labels = _training.digits()
    if seed in TUNE:
        x, y, judge, labels = x[360:], y[360:], x[:360], y[:360]
    weights = list(model.parameters())
    steps = torch.optim.SGD(weights, lr=rate / depth, momentum=0.9)
    torch.set_flush_denormal(True)
    stream = _training.batches(x.flatten(1), y, BATCH, EPOCHS, seed)
    done = sum(1 for _ in _training.train(model, stream, steps))
    torch.set_flush_denormal(False)
    fine = done == EPOCHS * (len(x) // BATCH)
    fine = fine and all(torch.isfinite(weight).all() for weight in weights)
    accuracy = _training.accuracy(model, judge.flatten(1), labels) if fine else CHANCE
    return {"accuracy": accuracy, "diverged": int(not fine)}


@torch.no_grad()
def _start(body: nn.Sequential, depth: int) -> Row:
    """Return log10 of chi, and of the signal's size over the input's, layer by layer."""
    images = _training.digits()[2][:4].flatten(1).double()
    sizes, x = [], images
    each = len(body) // depth if len(body) >= depth else 1
    for number, layer in enumerate(body, 1):
        x = layer(x)
        if number % each == 0:
            sizes.append(_log_rms(x) - _log_rms(images))
    with torch.enable_grad():
        matrix = torch.as_tensor(jacobian(body, images[0]))
    chi = 2 * _log_rms(matrix) + math.log10(WIDTH)  # the sum of squares, over the width
    return {"sizes": sizes[:: max(1, len(sizes) // 50)], "size": sizes[-1], "chi": chi}


def _log_rms(x: Tensor) -> float:
    """Return log10 of the root mean square, whose squares need not fit float64."""
    largest = float(x.abs().max())
    if not 1e-307 < largest < math.inf:
        raise ValueError(f"a signal of size {largest} leaves float64; measure fewer layers")
    return math.log10(largest) + math.log10((x / largest).square().mean().sqrt())


# What came out ------------------------------------------------------------------------------------


def _runs(rows: Sequence[Row], act: str, depth: int, way: str) -> list[Row]:
    return judged(rows, SEEDS, kind="train", act=act, depth=depth, way=way)


def _scores(rows: Sequence[Row], act: str, depth: int, way: str) -> list[float]:
    return [row["accuracy"] for row in _runs(rows, act, depth, way)]


def _said(runs: Sequence[Row], form: str = ".3f") -> str:
    """Return the accuracy; of runs that all diverged there is none."""
    if runs and all(row["diverged"] for row in runs):
        return "diverged"
    return spread((row["accuracy"] for row in runs), form) if runs else ""


def _halvings(rows: Sequence[Row], act: str, depth: int) -> float:
    """Return how often a layer halves the signal, from the tenth part of the chain to its end."""
    (row,) = pick(rows, kind="start", act=act, depth=depth, way="IDI")
    sizes, each = row["sizes"], depth // len(row["sizes"])
    first, last = len(sizes) // 10, len(sizes) - 1
    return float((sizes[first] - sizes[last]) / math.log10(2) / (last - first) / each)


def _learns(rows: Sequence[Row], act: str, way: str, depth: int = JUDGED) -> bool:
    """Say whether a chain learns."""
    return mean(_scores(rows, act, depth, way)) > LEARNT


def verdict(rows: Sequence[Row]) -> Verdict:
    """Name the activations with which a deep chain learns, and those that skips repair."""
    depth = JUDGED
    acts = [act for act in ACTIVATIONS if pick(rows, act=act)]
    figure = "; ".join(
        f"{act}, {depth} layers, accuracy: "
        + ", ".join(
            f"{_said(runs, '.2f')} ({way})"
            for way in WAYS
            if (runs := _runs(rows, act, depth, way))
        )
        for act in acts
    )
    fine = [act for act in acts if _learns(rows, act, "IDI")]
    cured = [act for act in acts if act not in fine and _learns(rows, act, "IDI, skips")]
    if len(fine) == len(acts):
        return Verdict("holds", figure)
    repair = f" (skips repair {' and '.join(cured)})" if cured else ""
    if fine:
        return Verdict(f"holds when the activation is {' or '.join(fine)}{repair}", figure)
    return Verdict(f"does not hold{repair}", figure)


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    lines, sweep, beside, learning = [], [], [], []
    for act, depth in [(one, depth) for one in ACTIVATIONS for depth in _depths(one)]:
        for way in _ways(act):
            found = pick(rows, kind="start", act=act, depth=depth, way=way)
            if not found:
                continue
            runs = _runs(rows, act, depth, way)
            rate = f"{runs[0]['rate']:g}" if runs else ""
            where = [act, f"{depth:,}", way]
            powers = [f"10^{found[0][key]:.1f}" for key in ("size", "chi")]
            lines.append([*where, *powers, rate, _said(runs)])
            if runs:
                sweep.append([*where, _tried(rows, act, depth, way)])
        if pick(rows, kind="train", act=act, depth=depth):
            fine = [way for way in _ways(act) if _learns(rows, act, way, depth)]
            learning.append(f"* {act}, {depth:,} layers: {' / '.join(fine) or 'none'}")
        if _runs(rows, act, depth, "orthogonal"):
            beside.append(f"* {act}, {depth:,} layers: {_beside(rows, act, depth)}")
    last = DEPTHS[-1]
    halving = ", ".join(
        f"{act} {_halvings(rows, act, last):.3f}" for act in ("gelu", "silu")
    ) if pick(rows, kind="start", act="silu", depth=last) else "not measured"  # fmt: skip
    head = ["activation", "layers", "weights"]
    return filled(
        "chains",
        width=WIDTH,
        epochs=EPOCHS,
        batch=BATCH,
        rates=_study.listed(RATES),
        deep="; ".join(f"{depth:,} layers: {_study.listed(few)}" for depth, few in DEEP.items()),
        seeds=_study.listed(SEEDS),
        ways=table(["weights", "what they are"], WAYS.items()),
        results=table([*head, "signal", "chi", "rate x layers", "accuracy"], lines),
        learnt=LEARNT,
        learning="\n".join(learning),
        last=last,
        halvings=halving,
        beside="\n".join(beside),
        ends=_study.at_ends(pick(rows, kind="train"), ("act", "depth", "way"), SEEDS),
        sweep=table([*head, "rate x layers: accuracy when tuning"], sweep),
    )


def _tried(rows: Sequence[Row], act: str, depth: int, way: str) -> str:
    """Return the accuracy of each rate that was tried, or that it diverged."""
    tuning = pick(rows, kind="train", act=act, depth=depth, way=way)
    return ", ".join(
        f"{row['rate']:g}: {'diverged' if row['diverged'] else format(row['accuracy'], '.2f')}"
        for row in tuning
        if row["seed"] in TUNE
    )


def _beside(rows: Sequence[Row], act: str, depth: int) -> str:
    """Return how IDI stands to orthogonal weights; what does not learn is compared with nothing."""
    kind = "critical orthogonal weights" if act == "tanh" else "orthogonal weights"
    fine = [_learns(rows, act, way, depth) for way in ("IDI", "orthogonal")]
    if not any(fine):
        return f"neither IDI nor {kind} learn"
    if not all(fine):
        return f"{'IDI learns' if fine[0] else f'{kind} learn'} alone, beside " + (
            kind if fine[0] else "IDI")  # fmt: skip
    ours, others = (_scores(rows, act, depth, way) for way in ("IDI", "orthogonal"))
    return f"IDI ({mean(ours):.2f}) is {stands(ours, others)} {kind} ({mean(others):.2f})"


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the signal's size through a deep chain, a panel an activation."""
    acts = [act for act in ACTIVATIONS if pick(rows, act=act)]
    depth = max(row["depth"] for row in pick(rows, kind="start") if row["depth"] in DEPTHS)
    for axes, act in zip(figure.subplots(1, len(acts), squeeze=False)[0], acts, strict=True):
        for row in pick(rows, kind="start", act=act, depth=depth):
            places = [1 + i * depth / len(row["sizes"]) for i in range(len(row["sizes"]))]
            axes.plot(places, row["sizes"], label=row["way"])
        axes.set(title=act, xlabel="layer", ylim=(-60, 20))
    figure.axes[0].set_ylabel("log10 of the signal's size, cut off")
    handles, labels = figure.axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


def check(rows: Sequence[Row]) -> None:
    """Assert T13, that skips keep the signal, and what the template says of the other ways."""
    for row in pick(rows, kind="start"):
        size, deep = row["size"], row["depth"] >= 100
        if row["way"] == "IDI, skips":
            assert abs(size) < 0.01, row
        elif row["act"] != "tanh" and deep:
            assert (size < -20) if row["way"] == "IDI" else (size > 1), row
        if row["way"] == "IDI, gain 2" and deep:  # values above 0 double in every layer
            assert abs(size / row["depth"] / math.log10(2) - 1) < 0.01, row
    for act in ("gelu", "silu"):
        if pick(rows, kind="start", act=act, depth=1000):
            assert abs(_halvings(rows, act, 1000) - 1) < 1e-3
        if _runs(rows, act, 100, "IDI, gain 2"):
            assert _learns(rows, act, "IDI, gain 2", 10)
            assert not _learns(rows, act, "IDI, gain 2", 100)
    assert _learns(rows, "gelu", "IDI, skips")
    assert not _learns(rows, "gelu", "IDI")


if __name__ == "__main__":
    _study.main("chains")
