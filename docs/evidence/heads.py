"""The role of the head, and the treatment of norms that end a branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

import idinit_ref_torch as irt
from docs.evidence import _decoder, _study
from docs.evidence._data import filled
from docs.evidence._study import Effect, Row, Verdict, effect, judged, mean, pick, spread, table

TITLE = "Heads, and norms at the end of a branch"
CLAIM = "For heads, and for norms that end a branch, the defaults of `init_` are the best values."
HERE = (
    "By default a head is IDI (transit). A norm that ends a branch keeps its scale, though it "
    "divides by the size of IDIZ's output. The study asks how the other values of these options "
    "change the loss."
)
WIDTH, HEADS, LAYERS, CONTEXT, BATCH, STEPS = 64, 4, 2, 32, 8, 200
RATES, TUNE, SEEDS = (1e-3, 3e-3, 1e-2, 3e-2), (100,), (0, 1, 2)
NETS: dict[str, dict[str, dict[str, Any] | None]] = {  # options of init_, the first its default
    "pre-norm": {"head transit": {}, "head zero": {"head": "zero"}, "head keep": {"head": "keep"},
                 "default": None},
    "sandwich": {"norms keep": {}, "norms zero": {"norms": "zero"}, "default": None},
}  # fmt: skip


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return every way of every net."""
    settings = [
        {"net": net, "way": way, "steps": 40 if quick else STEPS}
        for net, ways in NETS.items()
        for way in ways
        if not quick or net == "pre-norm"
    ]
    rates, seeds = (RATES[1:2], SEEDS[:2]) if quick else (RATES, SEEDS)
    return _study.swept(settings, rates, rows, tune=TUNE, seeds=seeds, score="score")


def measure(net: str, way: str, steps: int, rate: float, seed: int) -> Row:
    """Train once."""
    torch.manual_seed(seed)
    shape = (_decoder.VOCAB, WIDTH, LAYERS, HEADS, CONTEXT)
    model = _decoder.Transformer(*shape, norm=True, sandwich=net == "sandwich")
    _decoder.embed(model, 0.02)
    options = NETS[net][way]
    example = torch.arange(CONTEXT)[None]
    if options is not None:
        irt.init_(model, example, **options)
    with torch.no_grad():
        x = model.token(example) + model.place.weight
        added = (model.blocks(x) - x).square().mean().sqrt() / x.square().mean().sqrt()
    found = _decoder.learn(
        model,
        torch.optim.AdamW(model.parameters(), lr=rate, fused=True),
        steps=steps // 2 if seed in TUNE else steps,
        batch=BATCH,
        context=CONTEXT,
        seed=seed,
        tuning=seed in TUNE,
    )
    return {**found, "added": added.item()}


# What came out ------------------------------------------------------------------------------------


def losses(rows: Sequence[Row], net: str, way: str) -> list[float]:
    """Return the loss of every seed that judges."""
    return [-row["score"] for row in judged(rows, SEEDS, net=net, way=way)]


def effects(rows: Sequence[Row]) -> dict[str, Effect]:
    """Return the change of the loss by every other value of an option; below 0 is better."""
    found = {}
    for net, (first, *others) in ((net, list(ways)) for net, ways in NETS.items()):
        for way in others:
            if pair := losses(rows, net, way):
                found[f"{net}, {way} instead of {first}"] = effect(pair, losses(rows, net, first))
    return found


def verdict(rows: Sequence[Row]) -> Verdict:
    """Say whether any other value of an option is better than the default of ``init_``."""
    found = effects(rows)
    figure = "change of the loss: " + "; ".join(f"{name} {e}" for name, e in found.items())
    better = [
        name for name, e in found.items() if e.shown and e.value < 0 and "default" not in name
    ]
    if better:
        words = " and ".join(name.replace("instead of", "beats") for name in better)
        return Verdict(f"does not hold ({words})", figure)
    options = [e for name, e in found.items() if "default" not in name]
    if all(e.shown for e in options):
        return Verdict("holds", figure)
    return Verdict("not shown (no other value is better, and not all are worse)", figure)


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    lines = []
    for net, ways in NETS.items():
        for way in ways:
            if runs := judged(rows, SEEDS, net=net, way=way):
                sweep = ", ".join(
                    f"{row['rate']:g}: {-row['score']:.2f}"
                    for row in pick(rows, net=net, way=way)
                    if row["seed"] in TUNE
                )
                first = spread((row["first"] for row in runs), ".2f")
                added = f"{mean(row['added'] for row in runs):.1g}"
                rate = f"{runs[0]['rate']:g}"
                final = spread(losses(rows, net, way))
                lines.append([net, way, sweep, rate, added, first, final])
    head = ["net", "way", "rate: loss when tuning", "rate", "all branches / stream at first"]
    changes = [[name, str(e)] for name, e in effects(rows).items()]
    return filled(
        "heads",
        characters=_decoder.VOCAB,
        **_decoder.scale(WIDTH, LAYERS, STEPS, BATCH * CONTEXT),
        seeds=_study.listed(SEEDS),
        results=table([*head, "first loss", "final loss"], lines),
        changes=table(["change", "of the final loss"], changes),
        chance=_decoder.CHANCE,
        largest=1 / math.sqrt(1e-5),
        ends=_study.at_ends(rows, ("net", "way"), SEEDS),
        options=_options(rows),
    )


def _options(rows: Sequence[Row]) -> str:
    """Return in a line for each option of ``init_`` what its other values do."""
    return "\n".join(
        f"* {name}: {'not shown' if not e.shown else 'better' if e.value < 0 else 'worse'}"
        for name, e in effects(rows).items()
        if "default" not in name
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the effects with their intervals."""
    found = effects(rows)
    axes, at = figure.subplots(), list(range(len(found), 0, -1))
    halves = [e.half if math.isfinite(e.half) else 0 for e in found.values()]
    axes.errorbar([e.value for e in found.values()], at, xerr=halves, fmt="o", capsize=3)
    axes.axvline(0, color="black", lw=0.7)
    axes.set_yticks(at, found)
    axes.set_xlabel("change of the final loss, below 0 is better")


def check(rows: Sequence[Row]) -> None:
    """Assert T16, and that all learn."""
    for row in rows:
        assert row["score"] > 0.3 - _decoder.CHANCE, row
        if row["way"] == "head zero":
            assert abs(row["first"] - _decoder.CHANCE) < 1e-3, row["first"]
        if row["way"] == "head transit":
            assert 0.1 < row["first"] - _decoder.CHANCE < 0.9, row["first"]  # few characters
            assert row["added"] < 1e-3
    kept, zeroed = (
        [row["added"] for row in pick(rows, net="sandwich", way=f"norms {value}")]
        for value in ("keep", "zero")
    )
    assert not kept or max(zeroed) < min(kept)


if __name__ == "__main__":
    _study.main("heads")
