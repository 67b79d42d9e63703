"""Can gradient descent from the identity learn one to four negative eigenvalues?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from docs.evidence import _nets, _study, _training, linear
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, judged, mean, table

TITLE = "One to four negative eigenvalues"
CLAIM = (
    "Full-batch gradient descent that begins at the identity fails for targets with negative "
    "eigenvalues (Bartlett et al. 2018)."
)
HERE = (
    "The study asks whether it fails for every number of negative eigenvalues, and whether noise "
    "on the identity changes that. An odd number needs a negative determinant."
)
COUNTS, NOISES = (1, 2, 3, 4), (0.0, 1e-3, 1e-2)
RATES, TUNE, SEEDS = (0.03, 0.1, 0.3), (100, 101), (0, 1, 2, 3, 4)
STEPS = 1000


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured."""
    settings = [
        {"count": count, "noise": noise, "steps": 300 if quick else STEPS}
        for count in (COUNTS[:2] if quick else COUNTS)
        for noise in (NOISES[::2] if quick else NOISES)
    ]
    rates, seeds = (RATES[2:], SEEDS[:2]) if quick else (RATES, SEEDS)
    return _study.swept(settings, rates, rows, tune=TUNE, seeds=seeds, score="score")


def measure(count: int, noise: float, steps: int, rate: float, seed: int) -> Row:
    """Train three square layers by GD on whitened inputs; the loss is relative, as in linear."""
    target, x = linear.problem("positive", "whitened", seed)
    values, basis = torch.linalg.eigh(target)
    values[:: 10 // count][:count] *= -1
    target = basis @ values.diag() @ basis.T
    torch.manual_seed(seed)
    model = _nets.mlp([10, 10, 10, 10]).double()
    with torch.no_grad():
        for layer in _nets.weighted(model):
            layer.weight.copy_(torch.eye(10) + noise * torch.randn(10, 10))
    optimiser = torch.optim.SGD(model.parameters(), lr=rate)
    stream = _training.batches(x, x @ target.T, len(x), steps, seed)
    done = sum(1 for _ in _training.train(model, stream, optimiser, linear._Half()))
    with torch.no_grad():
        product = model(torch.eye(10, dtype=x.dtype)).T
    loss = ((product - target).square().sum() / target.square().sum()).item()
    fine = done == steps and math.isfinite(loss) and loss < 1
    loss = max(loss, 1e-12) if fine else 1.0
    return {"loss": loss, "score": -math.log10(loss), "diverged": int(not fine)}


def _learnt(rows: Sequence[Row], count: int, noise: float) -> tuple[int, int]:
    found = judged(rows, SEEDS, count=count, noise=noise)
    return sum(row["loss"] < linear.LEARNT for row in found), len(found)


def _odd(count: int) -> bool:
    return count % 2 == 1


# Where full-batch GD may fail: a claim is one of these, or names its cases.
CASES: dict[str, Callable[[float, int], bool]] = {
    "holds": lambda noise, count: True,
    "holds when the identity is exact": lambda noise, count: noise == 0,
    "holds when the count is odd": lambda noise, count: _odd(count),
    "holds when the identity is exact or the count is odd": lambda noise, count: (
        noise == 0 or _odd(count)
    ),
    "holds when the identity is exact and the count is odd": lambda noise, count: (
        noise == 0 and _odd(count)
    ),
    "does not hold": lambda noise, count: False,
}


def _known(rows: Sequence[Row]) -> list[tuple[float, int]]:
    return sorted({(row["noise"], row["count"]) for row in rows})


def verdict(rows: Sequence[Row]) -> Verdict:
    """Say for which noises and counts most seeds fail."""
    figure = "; ".join(
        f"noise {noise:g}, seeds that learn: "
        + ", ".join(
            f"{learnt} of {size} ({count} negative)"
            for at, count in _known(rows)
            for learnt, size in [_learnt(rows, count, noise)]
            if at == noise
        )
        for noise in sorted({row["noise"] for row in rows})
    )
    shares = {key: _learnt(rows, key[1], key[0]) for key in _known(rows)}
    failing = {key for key, (learnt, size) in shares.items() if learnt <= size / 2}
    for words, fails in CASES.items():
        if failing == {key for key in shares if fails(*key)}:
            return Verdict(words, figure)
    some = " or ".join(f"noise is {noise:g}, {count} negative" for noise, count in sorted(failing))
    return Verdict(f"holds when {some}", figure)


def _by_parity(rows: Sequence[Row], noise: float, odd: bool) -> tuple[int, int]:
    """Return how many runs learn, and of how many, with odd or with even counts."""
    found = [_learnt(rows, c, n) for n, c in _known(rows) if n == noise and _odd(c) == odd]
    return sum(learnt for learnt, _ in found), sum(size for _, size in found)


def _parity(rows: Sequence[Row]) -> str:
    """Return the counts of odd and even targets, and whether the parity decides."""
    lines, apart = [], []
    for noise in sorted({row["noise"] for row in rows}):
        (odd, odds), (even, evens) = (_by_parity(rows, noise, kind) for kind in (True, False))
        lines.append(f"* noise {noise:g}: odd {odd} of {odds} learn, even {even} of {evens}")
        if (odd > odds / 2) != (even > evens / 2):
            apart.append(f"{noise:g}")
    said = f"The parity decides when the noise is {' or '.join(apart)}." if apart else (
        "So this first try is not confirmed: at each noise most runs of both kinds fail, or most "
        "of both learn."
    )  # fmt: skip
    return "\n".join([*lines, "", said])


def page(rows: Sequence[Row]) -> str:
    """Return set-up, table and reading."""
    lines = []
    for noise in NOISES:
        for count in COUNTS:
            found = judged(rows, SEEDS, count=count, noise=noise)
            if found:
                learnt, size = _learnt(rows, count, noise)
                loss = 10 ** -mean(row["score"] for row in found)
                lines.append(
                    [f"{noise:g}", count, found[0]["rate"], f"{learnt} of {size}", f"{loss:.1e}"]
                )
    return filled(
        "parity",
        steps=rows[0]["steps"],
        rates=_study.listed(RATES),
        tune=_study.listed(TUNE),
        learnt=linear.LEARNT,
        results=table(["noise", "negative", "rate", "learnt", "loss (geometric mean)"], lines),
        parity=_parity(rows),
        ends=_study.at_ends(rows, ("noise", "count"), SEEDS),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the loss over the count, a point a seed."""
    axes = figure.subplots()
    for shift, noise in enumerate(sorted({row["noise"] for row in rows})):
        some = judged(rows, SEEDS, noise=noise)
        at = [row["count"] + 0.12 * (shift - 1) for row in some]
        axes.plot(at, [row["loss"] for row in some], "o", ms=4, alpha=0.6, label=f"noise {noise:g}")
    axes.set(yscale="log", xlabel="negative eigenvalues", ylabel="relative loss")
    axes.set_xticks(COUNTS)
    axes.legend()


def check(rows: Sequence[Row]) -> None:
    """Assert that the exact identity learns no negative eigenvalue, and that noise helps."""
    for noise, count in _known(rows):
        learnt, size = _learnt(rows, count, noise)
        assert learnt == 0 if noise == 0 else learnt > size / 2, (noise, count, learnt)


if __name__ == "__main__":
    _study.main("parity")
