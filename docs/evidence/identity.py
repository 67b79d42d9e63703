"""Which part of IDInit does the work: the identity inside a branch, or the zero at its end?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _baselines, _decoder, _nets, _study, _training
from docs.evidence._study import Effect, Row, Verdict, effect, judged, mean, pick, spread, table

TITLE = "Identity inside, or zero at the end?"
CLAIM = (
    "Identity-like weights inside a residual branch, with IDIZ at its end, are what makes IDInit "
    "train better than random weights or than branches of exactly zero ([P] claims the two "
    "together)."
)
HERE = "Here each is changed on its own."
WIDTH, HEADS, LAYERS, CONTEXT, BATCH, STEPS = 64, 4, 2, 32, 8, 200
IMAGES = {"width": 32, "blocks": 2, "batch": 16, "steps": 60, "noise": 0.5}
RATES = {"transformer": (1e-3, 3e-3, 1e-2, 3e-2), "resnet": (3e-4, 1e-3, 3e-3)}
TUNE, SEEDS = (100,), (0, 1, 2)
ALL = ("qk", "v", "up")
CELLS: dict[str, tuple[tuple[str, ...], float]] = {  # the weights that are orthogonal; eps
    "IDI, IDIZ": ((), 1e-6),
    "IDI, 0": ((), 0.0),
    "orthogonal, IDIZ": (ALL, 1e-6),
    "orthogonal, 0": (ALL, 0.0),
    "IDI, IDIZ 1e-3": ((), 1e-3),
    "orthogonal, IDIZ 1e-3": (ALL, 1e-3),
}
PARTS = {f"orthogonal {name}, IDIZ": ((name,), 1e-6) for name in ALL}
FIRST = (*CELLS, "default", "rezero")
NETS = {
    "transformer": (*FIRST, "init_", *PARTS),
    "resnet": (*FIRST, "fixup", "skipinit"),
    "resnet, BN": FIRST,
}


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured; what matters most first, each stage whole."""
    stages = [(net, FIRST) for net in NETS]
    stages += [(net, starts[len(FIRST) :]) for net, starts in NETS.items()]
    if quick:
        stages = [("transformer", ("IDI, IDIZ", "IDI, 0", "default"))]
    found: list[Row] = []
    for net, starts in stages:
        rates = RATES[net.partition(",")[0]]
        steps = 60 if quick else _steps(net)
        found += _study.swept(
            [{"net": net, "start": start, "steps": steps} for start in starts],
            rates[1:2] if quick else rates,
            rows,
            tune=TUNE,
            seeds=SEEDS[:2] if quick else SEEDS,
            score="score",
        )
        if len(found) > len(rows):
            break  # this stage is not complete
    return found


def _steps(net: str) -> int:
    return STEPS if net == "transformer" else int(IMAGES["steps"])


# The starts ---------------------------------------------------------------------------------------


def orthogonal(weight: Tensor) -> None:
    """Fill with a semi-orthogonal matrix whose singular values are those of IDI, sqrt(m/n) or 1."""
    rows, columns = weight.flatten(1).shape
    nn.init.orthogonal_(weight, math.sqrt(max(1.0, rows / columns)))


def begin(net: str, model: Any, start: str, example: Tensor) -> None:
    """Write a start into a model whose head and embeddings are the same for all but ``init_``."""
    if start in _baselines.METHODS and net != "transformer":
        return _baselines.apply(start, model, example)
    if start == "rezero":
        for block in model.blocks:
            nn.init.zeros_(block.scale)
    if start in ("default", "rezero"):
        return None  # of a transformer: what PyTorch's layers have drawn
    if start == "init_":
        irt.init_(model, example)
        return None
    which, eps = (CELLS | PARTS)[start]
    irt.init_(model, example, head="keep", eps=eps or 1e-6)
    if net == "transformer":
        blocks = [block.branch for block in model.blocks]
        inner = {
            "qk": [w.weight for b in blocks[::2] for w in (b.q, b.k)],
            "v": [b.v.weight for b in blocks[::2]],
            "up": [b[0].weight for b in blocks[1::2]],
        }
        last = [layer.weight for layer in _decoder.ends(model)]
    else:
        layers = [[*_nets.weighted(b.branch)] for b in _baselines.branches(model)]
        inner = {"up": [first.weight for first, _ in layers]}
        last = [end.weight for _, end in layers]
    with torch.no_grad():
        for name in which:
            for weight in inner.get(name, []):
                orthogonal(weight)
        if not eps:
            for weight in last:
                weight.zero_()
    return None


# Measuring ----------------------------------------------------------------------------------------


def transformer(
    start: str,
    seed: int,
    *,
    width: int = WIDTH,
    layers: int = LAYERS,
    heads: int = HEADS,
    context: int = CONTEXT,
) -> Any:
    """Return a transformer with its start."""
    torch.manual_seed(seed)
    scalars = start == "rezero"
    shape = (_decoder.VOCAB, width, layers, heads, context)
    model = _decoder.Transformer(*shape, norm=True, scalars=scalars)
    _decoder.embed(model, 0.02)
    begin("transformer", model, start, torch.zeros(1, context, dtype=torch.long))
    return model


def measure(net: str, start: str, steps: int, rate: float, seed: int) -> Row:
    """Train once; to choose a rate on half the steps, and on data that judge nothing else."""
    tuning = seed in TUNE
    if net != "transformer":
        return _images(net, start, steps, rate, seed, tuning)
    model = transformer(start, seed)
    return _decoder.learn(
        model,
        torch.optim.AdamW(model.parameters(), lr=rate, fused=True),
        steps=steps // 2 if tuning else steps,
        batch=BATCH,
        context=CONTEXT,
        seed=seed,
        tuning=tuning,
    )


def _images(net: str, start: str, steps: int, rate: float, seed: int, tuning: bool) -> Row:
    torch.manual_seed(seed)
    x, y, judge, labels = _training.digits()
    if tuning:
        x, y, judge, labels = x[360:], y[360:], x[:360], y[:360]
        steps //= 2
    scalars = start in _baselines.METHODS and _baselines.METHODS[start].scalars
    blocks, width = int(IMAGES["blocks"]), int(IMAGES["width"])
    model = _nets.resnet(blocks, width, norm="BN" in net, scalars=scalars)
    begin(net, model, start, x[:2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    noise = torch.Generator().manual_seed(seed)

    def seen(images: Tensor) -> Tensor:
        return images + IMAGES["noise"] * torch.randn(images.shape, generator=noise)

    stream = _training.batches(x, y, int(IMAGES["batch"]), 1000, seed)
    data = ((seen(images), labels) for images, labels in islice(stream, steps))
    losses = list(_training.train(model, data, optimiser, schedule=schedule))
    noise.manual_seed(999)  # the same noise for all that are judged
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(seen(judge)), labels).item()
    diverged = len(losses) < steps or not loss < math.log(10)
    return {
        "score": -math.log(10) if diverged else -loss,
        "first": losses[0] if losses else None,
        "diverged": int(diverged),
    }


# What came out ------------------------------------------------------------------------------------


def losses(rows: Sequence[Row], net: str, start: str) -> list[float]:
    """Return the loss of every seed that judges."""
    return [-row["score"] for row in judged(rows, SEEDS, net=net, start=start)]


def effects(rows: Sequence[Row], net: str) -> dict[str, Effect]:
    """Return what each change does to the loss, seed by seed: below 0 it helps."""

    def of(start: str) -> list[float]:
        return losses(rows, net, start)

    def mixed(one: str, two: str) -> list[float]:
        return [(a + b) / 2 for a, b in zip(of(one), of(two), strict=True)]

    found = {
        "orthogonal inside instead of IDI": effect(
            mixed("orthogonal, IDIZ", "orthogonal, 0"), mixed("IDI, IDIZ", "IDI, 0")
        ),
        "0 at the end instead of IDIZ, IDI inside": effect(of("IDI, 0"), of("IDI, IDIZ")),
        "0 at the end instead of IDIZ, orthogonal inside": effect(
            of("orthogonal, 0"), of("orthogonal, IDIZ")
        ),
        "eps 1e-3 instead of 1e-6, IDI inside": effect(of("IDI, IDIZ 1e-3"), of("IDI, IDIZ")),
        "eps 1e-3 instead of 1e-6, orthogonal inside": effect(
            of("orthogonal, IDIZ 1e-3"), of("orthogonal, IDIZ")
        ),
    }
    for name in PARTS:
        if of(name):
            weights = name.partition(",")[0].removeprefix("orthogonal ")
            found[f"orthogonal in {weights} alone, IDIZ"] = effect(of(name), of("IDI, IDIZ"))
    for name in NETS[net]:
        if name not in CELLS and name not in PARTS and of(name):
            found[f"{name} instead of IDI, IDIZ"] = effect(of(name), of("IDI, IDIZ"))
    return found


def said(found: Effect) -> str:
    """Return in a word what a change does."""
    return "not shown" if not found.shown else "better" if found.value < 0 else "worse"


def verdict(rows: Sequence[Row]) -> Verdict:
    """Judge the identity by the loss of orthogonal weights, the end by that of an exact 0."""
    nets = [net for net in NETS if losses(rows, net, "orthogonal, 0")]
    if not nets:  # the quick run
        zero, mine = (mean(losses(rows, "transformer", s)) for s in ("IDI, 0", "IDI, IDIZ"))
        return Verdict("holds in small for IDIZ", f"loss {mine:.2f}, with an exact 0 {zero:.2f}")
    parts, words = [], []
    for net in nets:
        inside, end, other, *_ = effects(rows, net).values()
        parts.append((said(inside), said(end), said(other)))
        words.append(
            f"{net}, change of the loss: orthogonal inside {inside}, "
            f"0 at the end {end} (IDI inside) and {other} (orthogonal inside)"
        )
    identity = {part[0] for part in parts}
    where = [net for net, part in zip(nets, parts, strict=True) if part[1] == "worse"]
    ends = f"holds when the weights inside are IDI ({', '.join(where)})" if where else "not shown"
    inner = (
        "holds" if identity == {"worse"} else
        "does not hold" if "better" in identity else "not shown"
    )  # fmt: skip
    return Verdict(f"identity inside: {inner}; IDIZ at the end: {ends}", "; ".join(words))


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    parts = [_setup(rows)]
    for net, starts in NETS.items():
        known = [s for s in starts if losses(rows, net, s)]
        if not known:
            continue
        lines = []
        for start in known:
            runs = judged(rows, SEEDS, net=net, start=start)
            sweep = ", ".join(
                f"{row['rate']:g}: {-row['score']:.2f}"
                for row in pick(rows, net=net, start=start)
                if row["seed"] in TUNE
            )
            first = spread((row["first"] for row in runs), ".2f")
            final = spread(losses(rows, net, start))
            lines.append([start, sweep, f"{runs[0]['rate']:g}", first, final])
        head = ["inside, at the end", "rate: loss when tuning", "rate", "first loss", "final loss"]
        parts.append(f"## {net}\n\n{table(head, lines)}")
        if losses(rows, net, "orthogonal, 0"):
            found = [[name, str(e), said(e)] for name, e in effects(rows, net).items()]
            parts.append(table(["change", "of the final loss", "it is"], found))
    parts.append(_reading(rows))
    return "\n".join(parts)


def _setup(rows: Sequence[Row]) -> str:
    return f"""## What was done

Only the weights inside the residual branches and those at their ends differ between the cells.
"IDI" and "IDIZ" are `irt.init_(model, x, head="keep")`. "orthogonal" replaces IDI by random
semi-orthogonal weights of the same singular values. "0" replaces IDIZ by an exact zero. Embeddings
(standard deviation 0.02), heads (PyTorch's) and stems are the same in all cells. "init_" is IDInit
with its defaults, which makes the head IDI as well. "default" is PyTorch's own start. "rezero" is
the same with a learned scale of 0 at every branch. Fixup and SkipInit are those of `_baselines`.

* transformer: pre-norm, over characters, width {WIDTH}, {LAYERS} layers, {HEADS} heads, an MLP of
  {4 * WIDTH} with GELU, {STEPS} steps of {BATCH * CONTEXT} tokens of the standard library's
  sources. AdamW, gradients clipped to norm 1.
* resnet: {IMAGES["blocks"]} blocks of x + conv(relu(conv(x))) at width {IMAGES["width"]}, kernels
  outward, with batch normalisation ("BN") and without; {IMAGES["steps"]} steps of
  {IMAGES["batch"]} digits of 8 x 8 with noise of standard deviation {IMAGES["noise"]:g}. AdamW.

Each rate is tried once for half the steps, with its own seed, and judged on its own data: a tenth
of the text, 360 of the digits. The best rate runs with the seeds {SEEDS}, which draw the order of
the data and everything random. The loss is in nats, on data that chose nothing. Effects are paired
by seed; ± is an interval of 95 % (Student's t). "least seen" is the smallest effect that this
number of seeds would show four times of five.
"""


def _reading(rows: Sequence[Row]) -> str:
    parts = [f"{part} {said(e)}" for net in NETS if net == "transformer"
             for part, e in (effects(rows, net).items()
                             if losses(rows, net, "orthogonal, 0") else ())
             if " alone" in part]  # fmt: skip
    which = f"Each kind of weight on its own: {'; '.join(parts)}.\n\n" if parts else ""
    diverged = sum(row["diverged"] for row in rows)
    ends = {net: (rates[0], rates[-1]) for net, rates in RATES.items()}
    edge = [
        f"{row['start']} ({row['net']})"
        for row in rows
        if row["seed"] == SEEDS[0] and row["rate"] in ends[row["net"].partition(",")[0]]
    ]
    return f"""## How to read it

{
        which
    }With IDI in a 4 x wide MLP and an exact 0 after it, hidden units are copies of one another and
stay copies (theorem T11): three quarters of the layer are lost for good. IDIZ tells most of them
apart, by 1e-6 at first. Random weights tell all of them apart without it. So the end and the inside
are not independent, and the effect of the end is given for each inside.

The best rate lies at an end of the grid, and a wider grid could give more, for: {
        ", ".join(edge) or "none"
    }.

{diverged} of {len(rows)} runs diverged or ended no better than chance, and count as chance.

What it cannot show: a few hundred steps of small models only show the beginning of training. The
study is smaller than planned, to fit two shared cores. A transformer of width 256, four layers and
800 steps of 2,048 tokens, and a resnet of width 64, are left out. So are Fixup and SkipInit in the
transformer, since they are not meant for nets with norms. The constants at the top of `identity.py`
scale the study up; a stopped run continues.
"""


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the effects with their intervals, a panel a net."""
    nets = [net for net in NETS if losses(rows, net, "orthogonal, 0")]
    if not nets:  # the quick run
        starts = list(dict.fromkeys(row["start"] for row in rows))
        figure.subplots().bar(starts, [mean(losses(rows, "transformer", s)) for s in starts])
        return
    for axes, net in zip(figure.subplots(1, len(nets), squeeze=False)[0], nets, strict=True):
        found = effects(rows, net)
        at = range(len(found), 0, -1)
        values, halves = [e.value for e in found.values()], [e.half for e in found.values()]
        axes.errorbar(values, list(at), xerr=halves, fmt="o", ms=4, capsize=2)
        axes.axvline(0, color="black", lw=0.7)
        names = [name.replace(" instead of ", "\nfor ") for name in found]
        axes.set_yticks(list(at), names, fontsize=5.5)
        axes.set(title=net, xlabel="change of the loss")


def check(rows: Sequence[Row]) -> None:
    """Assert that every start learns, and that an exact 0 behind IDI costs the transformer."""
    for start in dict.fromkeys(row["start"] for row in pick(rows, net="transformer")):
        assert mean(losses(rows, "transformer", start)) < _decoder.CHANCE - 0.5, start
    zero, mine = (losses(rows, "transformer", start) for start in ("IDI, 0", "IDI, IDIZ"))
    assert mean(zero) > mean(mine)


if __name__ == "__main__":
    _study.main("identity")
