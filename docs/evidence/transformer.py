"""The study of transformers: loss at equal steps, and steps to an equal loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import idinit_ref_torch as irt
from docs.evidence import _decoder, _study, _training
from docs.evidence._decoder import (
    CHANCE,
    MODULES,
    Transformer,
    embed,
    ends,
    linears,
    text,
    windows,
)

TITLE = "Do transformers converge faster?"
CLAIM = "Transformers converge faster with IDInit."
HERE = (
    "The claim does not say how much faster, than which other start, or at which learning rate. "
    "Here it is the loss at equal steps, and the steps to the loss that GPT-2's default ends with, "
    "each method at its best rate."
)

WIDTH, HEADS, CONTEXT, BATCH, BASE = 64, 4, 64, 8, 32
LAYERS, STEPS, WARM, EVERY = 4, 150, 30, 10
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNE, SEEDS = (100, 101), (0, 1, 2, 3, 4)

# The methods --------------------------------------------------------------------------------------


def gpt2(model: Transformer, example: Tensor) -> None:
    """Radford et al. 2019: N(0, 0.02^2), the branches' last by 1 / sqrt(2 L)."""
    embed(model, 0.02)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=0.02)
    for layer in ends(model):
        nn.init.normal_(layer.weight, std=0.02 / math.sqrt(len(model.blocks)))


def lecun(model: Transformer, example: Tensor) -> None:
    """LeCun et al. 1998: N(0, 1/inputs); else as GPT-2, whose 0.02 is of width 2500 so."""
    embed(model, 0.02)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    with torch.no_grad():
        for layer in ends(model):
            layer.weight.div_(math.sqrt(len(model.blocks)))


def t_fixup(model: Transformer, example: Tensor) -> None:
    """Huang et al. 2020; an encoder's factor in the layers, as there is no cross-attention."""
    xavier(model)
    embed(model, model.head.in_features**-0.5)
    depth = len(model.blocks) / 2
    firsts = [block.branch.v if block.attends else block.branch[0] for block in model.blocks]
    with torch.no_grad():
        for layer in (model.token, model.place):
            layer.weight.mul_((9 * depth) ** -0.25)
        for layer in (*firsts, *ends(model)):
            layer.weight.mul_(0.67 * depth**-0.25)


def xavier(model: Transformer) -> None:
    """Glorot, Bengio 2010, as T-Fixup and ReZero begin."""
    for layer in linears(model):
        nn.init.xavier_uniform_(layer.weight)


def rezero(model: Transformer, example: Tensor) -> None:
    """Bachlechner et al. 2020: a learned scale of 0 for each branch, Xavier weights."""
    embed(model, 0.02)
    xavier(model)
    for block in model.blocks:
        nn.init.zeros_(block.scale)


def mup(model: Transformer, example: Tensor) -> None:
    """Yang et al. 2021, Table 3 and D.2: N(0, 1/inputs), zero head and query, 1/d attention."""
    embed(model, 1.0)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    nn.init.zeros_(model.head.weight)
    for block in model.blocks:
        if block.attends:
            nn.init.zeros_(block.branch.q.weight)
            block.branch.scale **= 2


def zero(model: Transformer, example: Tensor) -> None:
    """Zhao et al. 2022: PyPI zero-init, layer by layer, which knows no branch's end."""
    embed(model, 0.02)
    for layer in linears(model):
        _study.need("zero_init").ZerO_Init(layer)


def idinit(model: Transformer, example: Tensor) -> None:
    """[P]: traced, with its defaults; the embeddings are GPT-2's."""
    embed(model, 0.02)
    irt.init_(model, example)


METHODS: dict[str, Callable[[Transformer, Tensor], None]] = {
    "gpt2": gpt2,
    "lecun": lecun,
    "t_fixup": t_fixup,
    "rezero": rezero,
    "mup": mup,
    "zero": zero,
    "idinit": idinit,
}


def groups(method: str, model: Transformer, rate: float) -> list[dict[str, Any]]:
    """Return parameters and their rates: muP's for matrices is BASE / WIDTH of the others'."""
    slow = [layer.weight for layer in linears(model)] if method == "mup" else []
    known = set(map(id, slow))
    rest = [p for p in model.parameters() if id(p) not in known]
    return [{"params": rest}, *([{"params": slow, "lr": rate * BASE / WIDTH}] if slow else [])]


NETS = ("pre-norm", "norm-free")


def methods(net: str) -> list[str]:
    """Return the methods that are meant for a net: T-Fixup is for one without norms."""
    return [name for name in METHODS if net == "norm-free" or name != "t_fixup"]


# Measuring ----------------------------------------------------------------------------------------


def measure(
    net: str, warm: bool, method: str, rate: float, seed: int, layers: int, steps: int
) -> dict[str, Any]:
    """Train once; the loss through training and on text that was not seen."""
    learn, judge, digest = text()
    torch.manual_seed(seed)
    shape = (_decoder.VOCAB, WIDTH, layers, HEADS, CONTEXT)
    model = Transformer(*shape, norm=net == "pre-norm", scalars=method == "rezero")
    METHODS[method](model, torch.zeros(1, CONTEXT, dtype=torch.long))
    optimiser = torch.optim.AdamW(groups(method, model, rate), lr=rate)
    parameters = list(model.parameters())

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)

    optimiser.register_step_pre_hook(clip)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARM) if warm else 1.0
    )
    data = windows(learn, BATCH, CONTEXT, steps, seed)
    losses = list(_training.train(model, data, optimiser, schedule=schedule))
    x, y = next(windows(judge, 128, CONTEXT, 1, 0))
    with torch.no_grad():
        loss = functional.cross_entropy(model(x), y).item()
    diverged = len(losses) < steps or not loss < CHANCE
    whole = range(0, len(losses) - EVERY + 1, EVERY)
    return {
        "score": -CHANCE if diverged else -loss,
        "curve": [_study.mean(losses[i : i + EVERY]) for i in whole],
        "first": losses[0] if losses else None,
        "diverged": int(diverged),
        "text": digest,
    }


def cells(quick: bool, rows: Sequence[_study.Row]) -> list[_study.Row]:
    """Return every method in each net, without and with warm-up."""
    rates, tune, seeds = (RATES[2:4], TUNE[:1], SEEDS[:2]) if quick else (RATES, TUNE, SEEDS)
    size = {"layers": LAYERS, "steps": 100 if quick else STEPS}
    settings = [
        {"net": net, "warm": warm, "method": name}
        for net in (NETS[1:] if quick else NETS)
        for warm in ((False,) if quick else (False, True))
        for name in (("gpt2", "idinit") if quick else methods(net))
    ]
    found = _study.swept(settings, rates, rows, tune=tune, seeds=seeds, score="score")
    return [{**cell, **size} for cell in found]


# What came out ------------------------------------------------------------------------------------


def places(rows: Sequence[_study.Row]) -> list[tuple[str, bool]]:
    """Return each net without and with warm-up, as far as it was measured."""
    return list(dict.fromkeys((row["net"], row["warm"]) for row in rows))


def named(net: str, warm: bool) -> str:
    """Return a set-up in words."""
    return f"{net}, {'with' if warm else 'no'} warm-up"


def results(rows: Sequence[_study.Row], net: str, warm: bool) -> dict[str, list[_study.Row]]:
    """Return the judged runs of each method."""
    names = dict.fromkeys(row["method"] for row in _study.pick(rows, net=net, warm=warm))
    return {m: _study.judged(rows, SEEDS, net=net, warm=warm, method=m) for m in names}


def final(runs: Sequence[_study.Row]) -> float:
    """Return the mean loss at the end on the text that was not seen."""
    return -_study.mean(row["score"] for row in runs)


def reached(runs: Sequence[_study.Row], target: float) -> list[int | None]:
    """Return each run's steps until a mean loss over EVERY steps is at most the target."""
    ends_ = range(EVERY, STEPS + 1, EVERY)
    return [
        next((end for end, loss in zip(ends_, row["curve"], strict=False) if loss <= target), None)
        for row in runs
    ]


def target(found: dict[str, list[_study.Row]]) -> float:
    """Return the training loss that the default has in the end."""
    return _study.mean(row["curve"][-1] for row in found["gpt2"])


def compared(rows: Sequence[_study.Row]) -> dict[tuple[str, bool], dict[str, str]]:
    """Return how IDInit stands to each other method in each set-up."""
    return {
        place: {
            name: _study.stands(*([row["score"] for row in r] for r in (found["idinit"], runs)))
            for name, runs in found.items()
            if name != "idinit"
        }
        for place in places(rows)
        for found in [results(rows, *place)]
    }


def verdict(rows: Sequence[_study.Row]) -> _study.Verdict:
    """Say holds if IDInit is ahead of all everywhere, "when" if of some method everywhere."""
    words = []
    stood = compared(rows)
    for place in stood:
        found = results(rows, *place)
        best = min((name for name in found if name != "idinit"), key=lambda m: final(found[m]))
        how = stood[place][best]
        words.append(
            f"{named(*place)}: {final(found['idinit']):.2f}, {how} the best other ({best}, "
            f"{final(found[best]):.2f}), and the default has {final(found['gpt2']):.2f}"
        )
    met = {m: [against[m] for against in stood.values() if m in against] for m in METHODS}
    beaten = [m for m, how in met.items() if set(how) == {"ahead of"}]
    if all(set(against.values()) == {"ahead of"} for against in stood.values()):
        holds = "holds"
    elif beaten:
        holds = f"holds when the other start is {' or '.join(beaten)}"
    else:
        holds = "does not hold"
    behind = {m: how.count("behind") for m, how in met.items() if "behind" in how}
    if behind:
        most = sorted(behind, key=lambda m: -behind[m])
        names = ", ".join(f"{m} in {behind[m]}" for m in most)
        holds += f"; behind {names} of {len(stood)} set-ups"
    return _study.Verdict(holds, f"final loss at width {WIDTH}, {'; '.join(words)}")


def page(rows: Sequence[_study.Row]) -> str:
    """Return set-up, tables and reading."""
    parts = [_setup(rows)]
    for net, warm in places(rows):
        found = results(rows, net, warm)
        aim = target(found)
        lines = []
        for name, runs in sorted(found.items(), key=lambda item: final(item[1])):
            steps = reached(runs, aim)
            known = [step for step in steps if step is not None]
            middle = [row["curve"][len(row["curve"]) // 3 - 1] for row in runs]
            lines.append(
                [
                    name,
                    f"{runs[0]['rate']:g}",
                    _study.spread((row["first"] for row in runs), ".2f"),
                    _study.spread(middle, ".2f"),
                    _study.spread((-row["score"] for row in runs), ".3f"),
                    f"{_study.spread(known, '.0f')} ({len(known)} of {len(runs)})"
                    if known
                    else "never",
                ]
            )
        third = EVERY * (len(next(iter(found.values()))[0]["curve"]) // 3)
        head = ["method", "best rate", "first loss", f"loss, step {third}", "final loss"]
        head.append(f"steps to {aim:.2f}")
        parts.append(f"## {named(net, warm).capitalize()}\n\n" + _study.table(head, lines))
    parts.append(_sweep(rows))
    parts.append(_reading(rows))
    return "\n".join(parts)


def _setup(rows: Sequence[_study.Row]) -> str:
    about = [[name, " ".join((how.__doc__ or "").split())] for name, how in METHODS.items()]
    tune, seeds = (sorted({r["seed"] for r in rows} & set(some)) for some in (TUNE, SEEDS))
    digest = ", ".join(sorted({row["text"] for row in rows}))
    return f"""## What was done

A decoder over characters: {rows[0]["layers"]} layers of width {WIDTH}, {HEADS} heads, a context of
{CONTEXT}, a GELU MLP of {4 * WIDTH}, learned positions, a head of its own, no biases in the dense
layers. "Pre-norm" has a LayerNorm before each branch and the head, "norm-free" has none.
{rows[0]["steps"]} steps of {BATCH} windows, PyTorch's AdamW with its defaults, gradients clipped to
norm 1 for all. Warm-up is linear over {WARM} steps; without it the rate is constant. Every method
tries the rates of the sweep's table. The seeds {tune} choose a rate, and the seeds {seeds}
judge it. A seed draws the random weights, the embeddings and the batches.

The text: {len(MODULES)} modules of Python's standard library, whose names and order the study
lists. Other versions of Python have other sources; the SHA-256 of this text is `{digest}`.
Its last tenth is held out. The final loss, in nats per character, is that of 128 windows of it.
"Steps to" is the number of steps until the training loss, a mean over {EVERY} steps, reaches the
default's final loss: the mean over the runs that get there, and their number. A run that ends no
better than chance ({CHANCE:.2f}) counts as diverged, and as chance.

{_study.table(["method", "what it is"], about)}"""


def _sweep(rows: Sequence[_study.Row]) -> str:
    lines = []
    rates = sorted({row["rate"] for row in rows})
    for net, warm in places(rows):
        for name in results(rows, net, warm):
            line = [named(net, warm), name]
            for rate in rates:
                runs = [
                    row
                    for row in _study.pick(rows, net=net, warm=warm, method=name, rate=rate)
                    if row["seed"] in TUNE
                ]
                lost = sum(row["diverged"] for row in runs)
                line.append(f"{final(runs):.2f}" + (f" ({lost} diverged)" if lost else ""))
            lines.append(line)
    return "## The sweep: final loss on the seeds that tune\n\n" + _study.table(
        ["net", "method", *(f"{rate:g}" for rate in rates)], lines
    )


def _reading(rows: Sequence[_study.Row]) -> str:
    stood = compared(rows)
    others = [name for name in METHODS if any(name in against for against in stood.values())]
    lines = [[named(*p), *(stood[p].get(name, "") for name in others)] for p in stood]
    rates = {row["rate"] for row in rows}
    edge = [
        f"{name} ({named(net, warm)})"
        for net, warm in places(rows)
        for name, runs in results(rows, net, warm).items()
        if runs[0]["rate"] in (min(rates), max(rates))
    ]
    return f"""## How to read it

IDInit's final loss compared with the others: "ahead" and "behind" mean more than two standard
errors of the difference of the means.

{_study.table(["IDInit is", *others], lines)}
Best at an end of the grid, where a wider grid could give more: {", ".join(edge) or "none"}.

At the start IDInit's branches add almost nothing (W_o and W_down are IDIZ), and query, key and
value are the identity. Then the score of two positions is the inner product of their vectors within
a head. So after a norm a position attends more to itself and to similar positions than to others.
Without norms the embeddings of standard deviation 0.02 make all scores nearly 0, and attention
starts as an average. ReZero starts with branches of exactly 0, ZerO with identities in them, the
other methods with random ones.

What this cannot show: there is one small model, one text and a short training. So the study is
about the first steps, not about where training ends. The scale of the embeddings, which IDInit
leaves alone, is GPT-2's 0.02, except for muP and T-Fixup, which define it. Weight decay and
clipping were not tuned. ReZero is meant for nets without norms, and learns scales that the others
lack. GPT-2's 0.02 suits wide nets: at width {WIDTH} it is a small part of the {WIDTH**-0.5:g} that
keeps a signal's size; "lecun" uses that value. No GPU was available, so nothing larger was run."""


def draw(rows: Sequence[_study.Row], figure: Any) -> None:
    """Draw the training loss of each method at its best rate."""
    here = places(rows)
    axes = figure.subplots(1, len(here), sharey=True, squeeze=False)[0]
    for axis, (net, warm) in zip(axes, here, strict=True):
        for number, name in enumerate(METHODS):
            runs = results(rows, net, warm).get(name, [])
            curves = [row["curve"] for row in runs if not row["diverged"]]
            if curves:
                mean = [_study.mean(column) for column in zip(*curves, strict=True)]
                steps = [EVERY * (i + 0.5) for i in range(len(mean))]
                bold = 2.2 if name == "idinit" else 1.2
                axis.plot(steps, mean, color=f"C{number}", lw=bold, label=name)
        axis.set(title=named(net, warm).replace(", ", "\n"), xlabel="step", ylim=(2.2, 4.2))
    axes[0].set_ylabel("training loss (nats a character)")
    handles = {line.get_label(): line for axis in axes for line in axis.lines}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))


def check(rows: Sequence[_study.Row]) -> None:
    """IDInit trains, and faster than from GPT-2's default, wherever both were measured."""
    for place in places(rows):
        found = results(rows, *place)
        mine, default = final(found["idinit"]), final(found["gpt2"])
        assert mine < CHANCE - 1, f"{named(*place)}: IDInit ends at {mine}, near chance"
        assert mine < default - 0.05, f"{named(*place)}: IDInit {mine}, the default {default}"
        steps = [reached(found[name], target(found)) for name in ("idinit", "gpt2")]
        assert all(step is not None for step in steps[0])
        late = found["gpt2"][0]["steps"]
        assert _study.mean(steps[0]) < _study.mean(step or late for step in steps[1])
        assert not any(row["diverged"] for row in found["idinit"]), f"{named(*place)}: diverges"


if __name__ == "__main__":
    _study.main("transformer")
