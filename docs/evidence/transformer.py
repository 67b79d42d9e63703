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
from docs.evidence._data import filled
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
    "The study compares the loss at equal steps, and the steps to the final loss of GPT-2's "
    "default, each method at its best rate."
)

WIDTH, HEADS, CONTEXT, BATCH, BASE = 64, 4, 64, 8, 32
LAYERS, STEPS, WARM, EVERY = 4, 150, 30, 10
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNE, SEEDS = (100, 101), (0, 1, 2, 3, 4)

# The methods --------------------------------------------------------------------------------------


def gpt2(model: Transformer, example: Tensor) -> None:
    """Radford et al. 2019: N(0, 0.02^2), the last of each branch times 1 / sqrt(2 L)."""
    embed(model, 0.02)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=0.02)
    for layer in ends(model):
        nn.init.normal_(layer.weight, std=0.02 / math.sqrt(len(model.blocks)))


def lecun(model: Transformer, example: Tensor) -> None:
    """LeCun et al. 1998: N(0, 1/inputs), else as GPT-2; at width 2500 that is its 0.02."""
    embed(model, 0.02)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    with torch.no_grad():
        for layer in ends(model):
            layer.weight.div_(math.sqrt(len(model.blocks)))


def t_fixup(model: Transformer, example: Tensor) -> None:
    """Huang et al. 2020, with an encoder's factor, since there is no cross-attention."""
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
    """Bachlechner et al. 2020: Xavier weights, and a learned scale of 0 on each branch."""
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
    """Zhao et al. 2022: PyPI zero-init, layer by layer; it does not treat branch ends apart."""
    embed(model, 0.02)
    for layer in linears(model):
        _study.need("zero_init").ZerO_Init(layer)


def idinit(model: Transformer, example: Tensor) -> None:
    """[P]: `init_` with its defaults; the embeddings are GPT-2's."""
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
    """Return parameters and rates; muP's rate for matrices is BASE / WIDTH of the other rate."""
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
    """Train once; return the loss in training and on held-out text."""
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
    """Return each net without and with warm-up that was measured."""
    return list(dict.fromkeys((row["net"], row["warm"]) for row in rows))


def named(net: str, warm: bool) -> str:
    """Return a set-up in words."""
    return f"{net}, {'with' if warm else 'no'} warm-up"


def results(rows: Sequence[_study.Row], net: str, warm: bool) -> dict[str, list[_study.Row]]:
    """Return the judged runs of each method."""
    names = dict.fromkeys(row["method"] for row in _study.pick(rows, net=net, warm=warm))
    return {m: _study.judged(rows, SEEDS, net=net, warm=warm, method=m) for m in names}


def final(runs: Sequence[_study.Row]) -> float:
    """Return the mean final loss on held-out text."""
    return -_study.mean(row["score"] for row in runs)


def reached(runs: Sequence[_study.Row], target: float) -> list[int | None]:
    """Return each run's steps until the mean loss over EVERY steps reaches the target."""
    ends_ = range(EVERY, STEPS + 1, EVERY)
    return [
        next((end for end, loss in zip(ends_, row["curve"], strict=False) if loss <= target), None)
        for row in runs
    ]


def target(found: dict[str, list[_study.Row]]) -> float:
    """Return the default's final training loss."""
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
    """Judge: holds if IDInit is ahead of all everywhere, holds when of some method everywhere."""
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
    about = [[name, " ".join((how.__doc__ or "").split())] for name, how in METHODS.items()]
    stood = compared(rows)
    others = [name for name in METHODS if any(name in against for against in stood.values())]
    lines = [[named(*p), *(stood[p].get(name, "") for name in others)] for p in stood]
    rates = {row["rate"] for row in rows}
    edge = [
        f"{name} ({named(*place)})"
        for place in places(rows)
        for name, runs in results(rows, *place).items()
        if runs[0]["rate"] in (min(rates), max(rates))
    ]
    return filled(
        "transformer",
        layers=rows[0]["layers"],
        width=WIDTH,
        heads=HEADS,
        context=CONTEXT,
        hidden=4 * WIDTH,
        steps=rows[0]["steps"],
        batch=BATCH,
        warm=WARM,
        tune=_study.listed(sorted({row["seed"] for row in rows} & set(TUNE))),
        seeds=_study.listed(sorted({row["seed"] for row in rows} & set(SEEDS))),
        modules=len(MODULES),
        digest=", ".join(sorted({row["text"] for row in rows})),
        every=EVERY,
        chance=CHANCE,
        methods=_study.table(["method", "what it is"], about),
        results="\n".join(
            f"## {named(*place).capitalize()}\n\n{_ends(rows, *place)}" for place in places(rows)
        ),
        sweep=_sweep(rows),
        stands=_study.table(["IDInit is", *others], lines),
        edge="; ".join(edge) or "none",
        kept=WIDTH**-0.5,
    )


def _ends(rows: Sequence[_study.Row], net: str, warm: bool) -> str:
    """Return the table of a set-up, the lowest final loss first."""
    found = results(rows, net, warm)
    aim = target(found)
    lines = []
    for name, runs in sorted(found.items(), key=lambda item: final(item[1])):
        steps = reached(runs, aim)
        known = [step for step in steps if step is not None]
        middle = [row["curve"][len(row["curve"]) // 3 - 1] for row in runs]
        lines.append([
            name, f"{runs[0]['rate']:g}",
            _study.spread((row["first"] for row in runs), ".2f"),
            _study.spread(middle, ".2f"),
            _study.spread((-row["score"] for row in runs), ".3f"),
            f"{_study.spread(known, '.0f')} ({len(known)} of {len(runs)})" if known else "never",
        ])  # fmt: skip
    third = EVERY * (len(next(iter(found.values()))[0]["curve"]) // 3)
    head = ["method", "best rate", "first loss", f"loss, step {third}", "final loss"]
    return _study.table([*head, f"steps to {aim:.2f}"], lines)


def _sweep(rows: Sequence[_study.Row]) -> str:
    """Return the table of all rates, on the seeds that tune."""
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
    return _study.table(["net", "method", *(f"{rate:g}" for rate in rates)], lines)


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
