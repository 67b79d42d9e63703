"""Does a weight padded with identities change in more directions than one padded with zeros?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _baselines, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, judged, mean, need, pick, spread, swept, table
from idinit_ref.diagnostics import rank_of_change

TITLE = "The rank of what training changes"
CLAIM = "Padding with identities breaks the rank limit of zero padding [P, Theorem 3.1]."
HERE = (
    "With inputs of size D0 and hidden layers of size Dh > D0, the middle weight minus its initial "
    "value can exceed the rank D0; with zeros it cannot [ZerO, Zhao et al. 2022]."
)
INPUTS, WIDTH, CLASSES = 64, 256, 10
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TUNE, SEEDS = (100, 101), (0, 1, 2, 3, 4)
STEPS = (1, 2, 4, 8, 16, 32, 64, 132)
BATCH, EPOCHS = 64, 6
TOL = {"float64": 1e-9, "float32": 1e-4}
"""Of the largest singular value of the change: far above what roundings add."""


class Way(NamedTuple):
    """One line of the table: the difference from the plain case, and the proof's bound."""

    words: str
    method: str = "idi"
    bound: int = WIDTH
    activation: str = "relu"
    bias: bool = False
    optimiser: str = "momentum"
    decay: float = 0.0
    dtype: str = "float64"
    drop: float = 0.0


STRICT = INPUTS + CLASSES
WAYS = {
    "zero padding": Way("[I; 0], I, [I, 0]", "bartlett", INPUTS),
    "idi": Way("IDI: [I; I; I; I], I, [I, 0]", bound=STRICT),
    "hadamard": Way("ZerO: Hadamard, I, [I, 0]", "zero", STRICT),
    "kaiming": Way("Kaiming", "kaiming"),
    "orthogonal": Way("orthogonal, gain sqrt(2)", "orthogonal"),
    "idi, linear": Way("IDI, no activation", activation="none", bound=STRICT),
    "idi, tanh": Way("IDI, tanh", activation="tanh", bound=STRICT),
    "idi, bias": Way("IDI, biases", bias=True, bound=STRICT),
    "idi, sgd": Way("IDI, no momentum", optimiser="sgd", bound=STRICT),
    "idi, adam": Way("IDI, Adam", optimiser="adam", bound=STRICT),
    "idi, head 0": Way("IDI, head of exact zeros", "idi_zero", INPUTS),
    "idi, head idiz": Way("IDI, head IDIZ (in 20 columns)", "idi_idiz", INPUTS + 2 * CLASSES),
    "idi, float32": Way("IDI, float32", dtype="float32", bound=STRICT),
    "idi, fold": Way("IDI, head folded (`fold_mean`)", "idi_fold"),
    "idi, loose": Way("IDI, loosened, s = 0.01", "idi_loose"),
    "idi, random head": Way("IDI, head Kaiming", "idi_random"),
    "idi, dropout": Way("IDI, dropout 0.1", drop=0.1),
    "idi, decay": Way("IDI, weight decay 0.01", decay=0.01),
}
QUICK = ("zero padding", "idi", "hadamard", "kaiming", "idi, fold", "idi, loose")
ACTIVATIONS: dict[str, Any] = {"relu": nn.ReLU, "tanh": nn.Tanh, "none": None}


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured."""
    settings = [{"way": way} for way in (QUICK if quick else WAYS)]
    rates, seeds = (RATES[3:5], SEEDS[:2]) if quick else (RATES, SEEDS)
    return swept(settings, rates, rows, tune=TUNE[: len(seeds) // 2], seeds=seeds, score="accuracy")


def _fill(model: nn.Sequential, method: str, seed: int) -> None:
    """Initialise; the methods idi_* differ from IDI in the head, or in noise."""
    example = torch.zeros(2, INPUTS)
    if not method.startswith("idi"):
        _baselines.apply(method, model, example)
        return
    head: Any = "zero" if method == "idi_idiz" else "transit"
    irt.init_(model, example, head=head, wide="fold_mean" if method == "idi_fold" else "truncate")
    *_, last = layers = list(_nets.weighted(model))
    if method == "idi_zero":
        nn.init.zeros_(last.weight)
    elif method == "idi_random":
        nn.init.kaiming_normal_(last.weight)
    elif method == "idi_loose":
        for number, layer in enumerate(layers):
            irt.idi_layer_(layer, loosen=0.01, seed=3 * seed + number)


def turned(images: Tensor) -> Tensor:
    """Return images as rows, rotated by one orthogonal matrix, so that no input is constant."""
    draw = torch.randn(INPUTS, INPUTS, generator=torch.Generator().manual_seed(0)).double()
    return images.flatten(1).double() @ torch.linalg.qr(draw)[0]


def distinct(weight: Tensor) -> int:
    """Return how many different rows a weight has; those of zeros do not count."""
    tol = TOL[str(weight.dtype).removeprefix("torch.")] * weight.abs().max()
    apart = (weight[:, None] - weight).abs().amax(2)
    first = (apart <= tol).int().argmax(1)
    return len(first[weight.abs().amax(1) > 0].unique())


def measure(way: str, rate: float, seed: int) -> Row:
    """Train one net, and look at its middle weight on the way."""
    _, method, _, activation, bias, optimiser, decay, dtype, drop = WAYS[way]
    x, y, test, labels = _training.digits()
    real = getattr(torch, dtype)
    x, test = (turned(images).to(real) for images in (x, test))
    torch.manual_seed(seed)
    model = _nets.mlp((INPUTS, WIDTH, WIDTH, CLASSES), ACTIVATIONS[activation], bias=bias)
    _fill(model, method, seed)
    model = model.to(real)
    first, middle, _ = _nets.weighted(model)
    start = middle.weight.detach().clone()
    if drop:
        model.insert(2, nn.Dropout(drop))
    weights = list(model.parameters())
    steps: torch.optim.Optimizer
    if optimiser == "adam":
        steps = torch.optim.Adam(weights, lr=rate / 10)
    else:
        momentum = 0.9 if optimiser == "momentum" else 0.0
        steps = torch.optim.SGD(weights, lr=rate, momentum=momentum, weight_decay=decay)
    ranks: list[int] = []
    values, done = [0.0], 0
    stream = _training.batches(x, y, BATCH, EPOCHS, seed)
    with need("threadpoolctl").threadpool_limits(1):  # NumPy's, as PyTorch has one thread
        for done, _ in enumerate(_training.train(model, stream, steps), 1):
            if done - 1 in STEPS:  # the loss of this batch is known, and the step not made yet
                ranks.append(_rank(middle.weight, start)[1])
        values, rank = _rank(middle.weight, start)
    ranks.append(rank)
    fine = done == STEPS[-1] and bool(values)
    return {
        "accuracy": _training.accuracy(model, test, labels) if fine else 0.1,
        "ranks": ranks if fine else None,
        "rank": rank if fine else None,
        "fine": sum(value > 1e-9 * values[0] for value in values) if fine else None,
        "large": sum(value > 0.01 * values[0] for value in values) if fine else None,
        "units": distinct(first.weight.detach()) if fine else None,
        "diverged": int(not fine),
    }


def _rank(weight: Tensor, start: Tensor) -> tuple[list[float], int]:
    """Return the singular values of the change and their number above the tolerance."""
    if not weight.abs().max() < 1e100:  # diverged
        return [], 0
    weight, start = weight.detach(), start.detach()
    values = rank_of_change(weight, start).singular_values.tolist()
    tol = TOL[str(weight.dtype).removeprefix("torch.")]
    return values, sum(value > tol * values[0] for value in values)


def _final(rows: Sequence[Row], way: str, key: str = "rank") -> list[float]:
    """Return the values of the judging runs that did not diverge."""
    return [row[key] for row in judged(rows, SEEDS, way=way) if not row["diverged"]]


def verdict(rows: Sequence[Row]) -> Verdict:
    """Decide from the plain case, and from the two that tell the copies apart."""
    names = ("zero padding", "idi", "idi, fold", "idi, loose", "kaiming")
    zero, plain, fold, loose, random = (mean(_final(rows, name)) for name in names)
    figure = (
        f"rank of the change of a {WIDTH} x {WIDTH} weight, D0 = {INPUTS}: zero padding {zero:.0f} "
        f"(proved: {INPUTS} at most), IDI {plain:.0f} (proved: {STRICT} at most), IDI loosened "
        f"{loose:.0f}, IDI with a folded head {fold:.0f}, Kaiming {random:.0f}"
    )
    if zero > INPUTS:
        return Verdict("does not hold", f"zero padding has no limit either; {figure}")
    if plain > 0.8 * random:
        return Verdict("holds", figure)
    if min(fold, loose) > 2 * INPUTS:
        if plain > INPUTS:
            figure += "; where nothing tells the copies of an input apart, the outputs add at most "
            figure += f"their number, {CLASSES}, to D0"
        return Verdict("holds when something tells the copies of an input apart", figure)
    return Verdict("does not hold", figure)


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables, proof and reading."""
    names = [way for way in WAYS if pick(rows, way=way)]
    lines = []
    for way in names:
        found, (words, *_), bound = judged(rows, SEEDS, way=way), WAYS[way], WAYS[way].bound
        first = [row["ranks"][0] for row in found if not row["diverged"]]
        cells = [spread(_final(rows, way, key), ".1f") for key in ("rank", "large", "units")]
        score = spread(row["accuracy"] for row in found)
        lost = sum(row["diverged"] for row in found)
        start = f"{mean(first):.1f}"
        lines.append([words, found[0]["rate"], start, bound, *cells, score, lost])
    head = ["weights", "best rate", "rank after step 1", "at most", f"rank after {STEPS[-1]} steps"]
    head += ["above 1%", "different units", "accuracy", "diverged"]
    rates = sorted({row["rate"] for row in rows})
    seeds = sorted({row["seed"] for row in rows if row["seed"] in TUNE})
    sweep = [
        [way]
        + [
            spread(row["accuracy"] for row in pick(rows, way=way, rate=rate) if row["seed"] in TUNE)
            for rate in rates
        ]
        for way in names
    ]
    plain, zero = (mean(_final(rows, way)) for way in ("idi", "zero padding"))
    gain, room = plain - zero, mean(_final(rows, "kaiming")) - zero
    single = _final(rows, "idi, float32", "fine")
    score = {way: mean(row["accuracy"] for row in judged(rows, SEEDS, way=way)) for way in names}
    return filled(
        "rank",
        inputs=INPUTS,
        width=WIDTH,
        classes=CLASSES,
        batch=BATCH,
        epochs=EPOCHS,
        steps=STEPS[-1],
        tuning=_study.listed(seeds),
        seeds=_study.listed(SEEDS),
        tolerance=TOL["float64"],
        coarse=TOL["float32"],
        results=table(head, lines),
        strict=STRICT,
        room=room,
        gain=gain,
        lowest=min(score.values()),
        highest=max(score.values()),
        fine=f"{mean(single):.0f}" if single else "not measured:",
        sweep=table(["weights", *map(str, rates)], sweep),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the rank through training, and where it ends, beside its bound."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.1))
    for way in ("kaiming", "idi, loose", "idi, fold", "hadamard", "idi", "zero padding"):
        found = [row for row in judged(rows, SEEDS, way=way) if not row["diverged"]]
        middle = [mean(row["ranks"][at] for row in found) for at in range(len(STEPS))]
        left.plot(STEPS, middle, marker="o", markersize=3, label=way)
    for bound, words in ((INPUTS, "D0"), (STRICT, "D0 + C")):
        left.axhline(bound, color="black", linewidth=0.7, linestyle=":")
        at = 2 if bound > INPUTS else -9
        left.text(132, bound + at, f"{words} = {bound}", fontsize=7, ha="right")
    left.set(xscale="log", xlabel="step", ylabel="rank of W2 minus its initial value")
    left.legend(fontsize=7)
    names = [way for way in reversed(WAYS) if pick(rows, way=way)]
    right.barh(names, [mean(_final(rows, way)) for way in names], height=0.6)
    right.plot([WAYS[way].bound for way in names], names, "k|", markersize=9, label="at most")
    right.set(xlabel="rank after training")
    right.legend(fontsize=7, loc="upper right")
    right.tick_params(axis="y", labelsize=7)


def check(rows: Sequence[Row]) -> None:
    """Assert the bounds, and that the other ways pass them."""
    for way in WAYS:
        found = judged(rows, SEEDS, way=way)
        assert all(row["rank"] <= WAYS[way].bound for row in found if not row["diverged"]), way
        if found:
            assert sum(row["diverged"] for row in found) * 2 < len(found), way
    zero, plain, random = (_final(rows, way) for way in ("zero padding", "idi", "kaiming"))
    assert max(zero) <= INPUTS < min(plain)
    assert mean(plain) < 0.5 * mean(random)
    for way in ("idi, loose", "idi, fold"):
        assert min(_final(rows, way)) > 2 * INPUTS, way
    assert max(row["ranks"][0] for row in judged(rows, SEEDS, way="idi")) <= CLASSES
    assert mean(_final(rows, "idi", "units")) <= STRICT < mean(_final(rows, "kaiming", "units"))


if __name__ == "__main__":
    _study.main("rank")
