"""An identical convolution degrades, and fusing space into the channels repairs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import idinit_ref_torch as irt
from docs.evidence import _nets, _study, _training
from docs.evidence._study import Row, Verdict
from idinit_ref.diagnostics import gradient_coverage

TITLE = "How a kernel becomes a matrix"
CLAIM = (
    "An identical convolution, which places the identity at one tap, degrades; flattening space "
    "and channels together repairs it ([P])."
)
TAPS = ("center", "spatial_major", "channel_major")
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TUNE, SEEDS = (100, 101, 102, 103), (0, 1, 2, 3, 4)
EPOCHS = 2
NETS = (  # net, depth, norm, IDIZ at the ends of branches, the rule of the first kernel
    ("residual", 8, False, True, "same"),
    ("residual", 16, False, True, "same"),
    ("residual", 32, False, True, "same"),
    ("residual", 8, True, True, "same"),
    ("residual", 32, True, True, "same"),
    ("residual", 8, False, False, "same"),
    ("residual", 8, True, False, "same"),
    ("plain", 4, False, False, "same"),
    ("plain", 12, False, False, "same"),
    ("residual", 8, False, True, "center"),
    ("residual", 8, False, True, "spatial_major"),
    ("residual", 32, False, True, "spatial_major"),
    ("residual", 32, True, True, "spatial_major"),
)
QUICK = (NETS[2], NETS[8])
NAMES = ("net", "depth", "norm", "idiz", "stem")


def cells(quick: bool, rows: list[Row]) -> list[Row]:
    nets = QUICK if quick else NETS
    settings = [
        {**dict(zip(NAMES, net, strict=True)), "taps": taps, "epochs": 1 if quick else EPOCHS}
        for net in nets
        for taps in TAPS
    ]
    rates, tune, seeds = (RATES[2:5:2], (100,), (0, 1)) if quick else (RATES, TUNE, SEEDS)
    return _study.swept(settings, rates, rows, tune=tune, seeds=seeds, score="accuracy")


def _plain(depth: int) -> nn.Sequential:
    """Return a convolution and ReLU so many times, and the head of the residual net."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv2d(16 if number else 1, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def measure(
    net: str,
    depth: int,
    norm: bool,
    idiz: bool,
    stem: str,
    taps: Any,
    epochs: int,
    rate: float,
    seed: int,
) -> dict[str, float]:
    torch.manual_seed(seed)
    x, y, judge, labels = _training.digits()
    model = _plain(depth) if net == "plain" else _nets.resnet(depth, norm=norm)
    kernels = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    said: dict[str, Any] = {} if stem == "same" else {kernels[0]: {"taps": stem}}
    if not idiz:
        said |= {name: "transit" for name in kernels if ".branch." in name}
    irt.init_(model, x[:2], taps=taps, overrides=said)
    inner = next(layer for layer in _nets.weighted(model) if layer.weight.shape[1:2] == (16,))
    used = inner.weight.detach() != 0
    loss = nn.functional.cross_entropy(model(x[:64]), y[:64])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    start = gradient_coverage([gradient.numpy() for gradient in gradients])
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    data = _training.batches(x, y, 32, epochs, seed)
    losses = list(_training.train(model, data, optimiser))
    finite = len(losses) == len(x) // 32 * epochs
    return {
        "accuracy": _training.accuracy(model, judge, labels) if finite else 0.1,
        "diverged": int(not finite),
        "dead": start.overall,
        "channels": int(used.any(0).flatten(1).any(1).sum()),
        "positions": int(used.any(0).any(0).sum()),
    }


def _groups(rows: list[Row]) -> list[Row]:
    """Return each net, once."""
    found = {tuple(row[name] for name in NAMES): None for row in rows}
    return [dict(zip(NAMES, net, strict=True)) for net in found]


def _scores(rows: list[Row], **setting: Any) -> list[float]:
    return [row["accuracy"] for row in _study.judged(rows, SEEDS, **setting)]


def _better(rows: list[Row], one: str, other: str, net: Row) -> bool:
    """Return whether one is better by more than two standard errors of the difference."""
    a, b = (_scores(rows, **net, taps=taps) for taps in (one, other))
    return _study.stands(a, b) == "ahead of"


def _label(net: Row) -> str:
    ends = ", IDIZ" if net["idiz"] else ", all transit"
    kind = ", BN" if net["norm"] else ""
    stem = "" if net["stem"] == "same" else f", first {net['stem']}"
    return f"{net['net']} {net['depth']}{kind}{ends if net['net'] == 'residual' else ''}{stem}"


def _won(rows: list[Row], one: str, other: str, *, controls: bool = False) -> list[str]:
    """Return the nets where one is better; of those whose first kernel has a rule of its own."""
    nets = [net for net in _groups(rows) if (net["stem"] != "same") == controls]
    return [_label(net) for net in nets if _better(rows, one, other, net)]


def verdict(rows: list[Row]) -> Verdict:
    nets = sum(net["stem"] == "same" for net in _groups(rows))
    some = {t: _won(rows, t, "center") for t in TAPS[1:]}
    lost = {t: _won(rows, "center", t) for t in TAPS[1:]}
    figure = "; ".join(
        f"{t} is better than center by two standard errors in {len(some[t])} of {nets} nets, "
        f"and worse in {len(lost[t])}"
        for t in TAPS[1:]
    )
    controls = [_won(rows, t, "center", controls=True) for t in TAPS[1:]]
    if held := sum(net["stem"] != "same" for net in _groups(rows)):
        figure += "; with the first kernel alike for all: " + "; ".join(
            f"{t} in {len(won)} of {held} nets" for t, won in zip(TAPS[1:], controls, strict=True)
        )
    if any(len(won) == nets for won in some.values()):
        return Verdict("holds", figure)
    parts = []
    for kind in dict.fromkeys(net["net"] for net in _groups(rows)):
        size = sum(net["net"] == kind and net["stem"] == "same" for net in _groups(rows))
        won = {t: sum(name.startswith(kind) for name in some[t]) for t in TAPS[1:]}
        if max(won.values()) > size / 2:  # ahead in most nets of the kind
            counts = " and ".join(f"{t} in {won[t]}" for t in won)
            parts.append(f"{kind} (of {size} nets {counts})")
    if parts:
        words = f"holds when the net is {' or '.join(parts)}"
        gaps = _gaps(rows)
        if gaps and all(left < gap / 2 for gap, left in gaps.values()):
            words += "; most of channel_major's lead is its first kernel's, which makes patches"
        return Verdict(words, figure)
    return Verdict("does not hold", figure)


def page(rows: list[Row]) -> str:
    nets, lines, sweep = _groups(rows), [], []
    for net in nets:
        for taps in TAPS:
            known = _study.pick(rows, **net, taps=taps)
            best = _study.judged(known, SEEDS)
            lines.append(
                (
                    _label(net),
                    taps,
                    f"{best[0]['rate']:g}",
                    _study.spread(_scores(rows, **net, taps=taps)),
                    f"{best[0]['dead']:.3f}",
                    best[0]["channels"],
                    best[0]["positions"],
                    sum(row["diverged"] for row in known),
                )
            )
            rates = sorted({row["rate"] for row in known})
            tuning = [row for row in known if row["seed"] not in SEEDS]
            means = [_study.mean(r["accuracy"] for r in _study.pick(tuning, rate=v)) for v in rates]
            sweep.append((_label(net), taps, *(f"{value:.3f}" for value in means)))
    head = ("net", "taps", "rate", "accuracy", "no gradient", "channels", "taps used", "diverged")
    spatial, channel = (_won(rows, *pair) for pair in (TAPS[1:], TAPS[:0:-1]))
    fair = [net for net in nets if net["net"] == "residual" and net["stem"] == "same"]
    overall = _means(rows)
    say = lambda names: "; ".join(names) or "none"  # noqa: E731
    ends = say(
        [
            f"{_label(net)}, {taps} ({rate:g})"
            for net in nets
            for taps in TAPS
            if (rate := _study.judged(rows, SEEDS, **net, taps=taps)[0]["rate"])
            in (RATES[0], RATES[-1])
            and _study.mean(_scores(rows, **net, taps=taps)) > 0.2
        ]
    )
    return f"""## Set-up

Digits of 8 x 8, 1,437 to learn from and 360 to judge by; width 16, kernels 3 x 3; {EPOCHS} epochs
of batches of 32, SGD with momentum 0.9, constant rate. "residual": `_nets.resnet`; "plain": as many
convolutions with ReLU, no skip. "IDIZ": the last kernel of each branch; "all transit": none. All
kernels, the first one too, are flattened as said, but where "first ..." names another rule for
the first: with one input channel both flattenings make all patches of it, and center copies.
Rates {", ".join(f"{rate:g}" for rate in RATES)}; the best of seeds 100 to 103 is judged on seeds 0
to 4. IDInit is deterministic, so a seed is an order of batches.

## At the best rate of each

{_study.table(head, lines)}
Mean ± standard deviation over seeds. "no gradient": the fraction of parameters whose gradient is
exactly 0 at the start. "channels", "taps used": of the first kernel with 16 inputs, how many input
channels it reads, and at how many places. "diverged": of all runs of this line.

## The two flattenings

Better by more than two standard errors of the difference of the means:

* spatial_major than channel_major in: {say(spatial)}.
* channel_major than spatial_major in: {say(channel)}.
* channel_major than center in: {say(_won(rows, "channel_major", "center"))}.
* spatial_major than center in: {say(_won(rows, "spatial_major", "center"))}.
* center than channel_major in: {say(_won(rows, "center", "channel_major"))}.
* center than spatial_major in: {say(_won(rows, "center", "spatial_major"))}.

Of all nets spatial_major is better than channel_major in {len(spatial)}, worse in {len(channel)},
and the mean over the {len(fair)} residual nets whose first kernel has the same rule is
{overall[0]:.3f} for center, {overall[1]:.3f} for spatial_major and {overall[2]:.3f} for
channel_major: {_default(rows)}

A control: with one input channel, center makes 16 equal channels of it, and a flattening all its
patches. Nets whose first kernel is the same for all three (and not counted above): better than
center are spatial_major in {say(_won(rows, "spatial_major", "center", controls=True))};
channel_major in {say(_won(rows, "channel_major", "center", controls=True))}. {_control(rows)}

Why: in spatial_major row i takes input channel i mod C at tap i // C. With as many outputs as
inputs that is the first tap for all rows: every channel moves by one step to the same corner, and
none is lost. In channel_major row i takes channel i // K at tap i % K: all K shifts, of O/K input
channels. Both move the image out of sight in a deep net without skips, a step in each layer.

## What this cannot show

One data set of small images, one width, {EPOCHS} epochs, one optimiser. A best rate at the end of
the grid might be bettered outside it: {ends}. Accuracies after {EPOCHS} epochs are of speed more
than of what can be reached.

## The sweep

{_study.table(("net", "taps", *(f"{rate:g}" for rate in rates)), sweep)}
Mean accuracy over the seeds that tune.
"""


def _means(rows: list[Row]) -> list[float]:
    """Return the mean accuracy of each rule over the residual nets that have it in all kernels."""
    fair = [net for net in _groups(rows) if net["net"] == "residual" and net["stem"] == "same"]
    return [
        _study.mean(_study.mean(_scores(rows, **net, taps=taps)) for net in fair) for taps in TAPS
    ]


def _default(rows: list[Row]) -> str:
    """Say which flattening counts and means speak for; the default is channel_major."""
    spatial, channel = (len(_won(rows, *pair)) for pair in (TAPS[1:], TAPS[:0:-1]))
    _, mean_of_spatial, mean_of_channel = _means(rows)
    if spatial > channel and mean_of_spatial > mean_of_channel:
        return "the default, channel_major, should change."
    if channel > spatial and mean_of_channel > mean_of_spatial:
        return "both speak for channel_major, the default."
    return (
        "neither is better by both counts and means, and\n"
        "channel_major stays, since it is the plain reshape."
    )


def _gaps(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """Return channel_major's lead over center, and what is left with patches in both's first."""
    found = {}
    for net in _groups(rows):
        same = {**net, "stem": "same"}
        if net["stem"] == "spatial_major" and same in _groups(rows):
            channel, center = (
                [_study.mean(_scores(rows, **n, taps=taps)) for n in (same, net)]
                for taps in ("channel_major", "center")
            )
            found[_label(same)] = channel[0] - center[0], channel[1] - center[1]
    return found


def _control(rows: list[Row]) -> str:
    """Say what is left of center's gap where the first kernel is the same."""
    if not (gaps := _gaps(rows)):
        return ""
    parts = (f"{left:.2f} of {gap:.2f} ({name})" for name, (gap, left) in gaps.items())
    return (
        "Of channel_major's lead over center there\n"
        f"is left, where the first kernel of both makes patches: {'; '.join(parts)}."
    )


def draw(rows: list[Row], figure: Any) -> None:
    axes = figure.subplots()
    nets = _groups(rows)
    for number, taps in enumerate(TAPS):
        found = [_scores(rows, **net, taps=taps) for net in nets]
        errors = [float(torch.tensor(values).std()) for values in found]
        places = [place + (number - 1) * 0.27 for place in range(len(nets))]
        axes.bar(places, list(map(_study.mean, found)), 0.25, yerr=errors, label=taps)
    labels = [_label(net).replace(", ", "\n").replace("first ", "first\n") for net in nets]
    axes.set_xticks(range(len(nets)), labels, fontsize=6)
    axes.set_ylabel("accuracy")
    axes.legend(ncols=3)


def check(rows: list[Row]) -> None:
    for row in rows:
        reads = {"center": (16, 1), "spatial_major": (16, 1), "channel_major": (2, 9)}
        assert (row["channels"], row["positions"]) == reads[row["taps"]]
        if row["net"] == "plain" and row["depth"] > 8 and row["taps"] != "center":
            assert row["dead"] > 0.9  # the image has been moved out
            assert row["accuracy"] < 0.3
    deep = {"net": "residual", "depth": 32, "norm": False, "idiz": True, "stem": "same"}
    for net in (net for net in QUICK if net[0] == "residual"):
        setting = dict(zip(NAMES, net, strict=True))
        center, *fused = (_study.mean(_scores(rows, **setting, taps=taps)) for taps in TAPS)
        assert min(fused) > center
    center, *fused = (_study.mean(_scores(rows, **deep, taps=taps)) for taps in TAPS)
    assert min(fused) > center + 0.05
    if len(_groups(rows)) > len(QUICK):  # what the choice of the default, in choices.md, says
        size = sum(net["net"] == "residual" and net["stem"] == "same" for net in _groups(rows))
        won = {t: [n for n in _won(rows, t, "center") if "residual" in n] for t in TAPS[1:]}
        assert len(won["channel_major"]) > size / 2
        assert "should change" not in _default(rows)
        assert not [n for n in _won(rows, "channel_major", "center") if "plain" in n]
        assert all(left < gap / 2 for gap, left in _gaps(rows).values())


if __name__ == "__main__":
    _study.main("convolution")
