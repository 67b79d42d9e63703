"""Four claims again, at a width that more than one channel can pass."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import islice, product
from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import (
    _baselines,
    _decoder,
    _nets,
    _study,
    _training,
    epsilon,
    identity,
    residual,
    spread,
    stability,
)
from docs.evidence._data import filled
from docs.evidence._study import Effect, Row, Verdict, effect, judged, listed, mean, pick, table

TITLE = "Four claims again, at widths 16 and 64"
CLAIM = (
    "What the studies of residual nets, eps, variance and stability found at width 8, all but that "
    "of eps with kernels in channel-major order, is so at widths 16 and 64 with outward kernels."
)
WIDTH, BATCH, TUNE, SEEDS = 64, 32, (100,), tuple(range(12))
# What is to be measured: nets, starts, rates, decays, steps, and how many seeds judge.
EPS = {"eps 0": 0.0, "eps 1e-6": 1e-6}
CLAIMS: dict[str, dict[str, Any]] = {
    "epsilon": {
        "nets": ("same width", "option A", "option A, gamma 0"),
        "starts": tuple(EPS), "rates": (0.01, 0.03, 0.1, 0.3), "steps": 60,
        "seeds": 3,
    },
    "residual": {
        "nets": ("32 blocks",), "starts": ("idinit", "xavier", "kaiming"),
        "rates": (0.01, 0.003, 0.001), "steps": 60, "seeds": 3,
        "smaller": {
            "xavier": (0.003, 0.001, 0.0003, 0.0001, 0.00003),
            "kaiming": (1e-5, 1e-6, 1e-7, 1e-8),
        },
    },
    "stability": {
        "nets": ("4 blocks",), "starts": ("idinit", "xavier", "kaiming", "rezero"),
        "rates": (0.003, 0.01, 0.03, 0.1, 0.3), "decays": (0.0, 0.1), "steps": 44, "seeds": 3,
    },
    "stability, transformer": {
        "nets": ("transformer",), "starts": ("idinit", "default", "rezero"),
        "rates": (0.001, 0.003, 0.01, 0.03, 0.1), "decays": (0.0, 1.0), "steps": 80,
        "seeds": 3,
    },
    "spread": {
        "nets": ("4 blocks",), "starts": ("idinit", "xavier", "fixup"),
        "rates": (0.3, 0.1, 0.03, 0.01, 0.003), "steps": 60, "seeds": 12,
    },
}  # fmt: skip
NARROW = 16  # cheap: with all blocks, and all nets of epsilon
CLAIMS |= {
    f"{claim}, width {NARROW}": {**CLAIMS[claim], "width": NARROW, **more}
    for claim, more in (
        ("epsilon", {"nets": epsilon.NETS, "seeds": 5}),
        ("spread", {"nets": ("8 blocks",)}),
        ("residual", {}),
        ("stability", {"nets": ("8 blocks",)}),
    )
}
TEXT = {"layers": 2, "heads": 4, "context": 32}
CHANCE, FAILS, TRAINS = 0.1, 0.3, 0.6  # accuracies; a text is learned at a loss of LEARNED
LEARNED = 2.8
OTHER_TRAINS, OTHER_LEARNED = (0.5, 0.65, 0.75), (2.6, 3.0)  # would the verdict be another?


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured, a claim after the other."""
    found: list[Row] = []
    for claim, plan in CLAIMS.items():
        seeds = SEEDS[: plan["seeds"]]
        nets, rates = plan["nets"], plan["rates"]
        if quick:
            nets, rates, seeds = nets[1:2], rates[:1], seeds[:2]
        for net, start, decay in product(nets, plan["starts"], plan.get("decays", (0.0,))):
            setting = {"claim": claim, "net": net, "start": start, "decay": decay}
            if "decays" in plan:
                found += [{**setting, "rate": r, "seed": n} for r, n in product(rates, seeds)]
            else:
                mine = plan.get("smaller", {}).get(start, rates)
                found += _study.swept([setting], mine, rows, tune=TUNE, seeds=seeds, score="score")
        if quick or len(found) > len(rows):
            break
    return found


# Measuring ----------------------------------------------------------------------------------------


def measure(claim: str, net: str, start: str, decay: float, rate: float, seed: int) -> Row:
    """Train once; to choose a rate, on data that judge nothing else."""
    torch.manual_seed(seed)
    if net == "transformer":
        return _text(start, decay, rate, seed)
    x, y, judge, labels = _training.digits()
    x, judge = (nn.functional.avg_pool2d(images, 2) for images in (x, judge))
    if seed in TUNE:
        x, y, judge, labels = x[360:], y[360:], x[:360], y[:360]
    width = CLAIMS[claim].get("width", WIDTH)
    if claim.startswith("epsilon"):
        model = epsilon.made(net, width)
        epsilon.begin(model, x[:2], net, EPS[start])
    else:
        scalars = _baselines.METHODS[start].scalars
        model = _nets.resnet(int(net.removesuffix(" blocks")), width, scalars=scalars)
        if start == "idinit":
            irt.init_(model, x[:2])
        else:
            _baselines.apply(start, model, x[:2])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    slow = 10 if start == "fixup" else 1  # as its authors have it, for the scalars
    groups = [{"params": [p for p in model.parameters() if p.ndim > 0]}]
    if numbers := [p for p in model.parameters() if p.ndim == 0]:
        groups.append({"params": numbers, "lr": rate / slow})
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=decay)
    steps = CLAIMS[claim]["steps"]
    data = islice(_training.batches(x, y, BATCH, 1000, seed), steps)
    made = sum(1 for _ in _training.train(model, data, optimiser))
    same = sum(int((a == b).sum()) for a, b in zip(before, model.parameters(), strict=True))
    right = _training.accuracy(model, judge, labels)
    diverged = made < steps or not _finite(model, judge)
    return {
        "score": CHANCE if diverged else right,
        "diverged": int(diverged),
        "frozen": same / sum(p.numel() for p in model.parameters()),
    }


def _finite(model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.isfinite(model(x)).all())


def _text(start: str, decay: float, rate: float, seed: int) -> Row:
    """Train the transformer of `identity`, with AdamW, without warm-up, schedule or clipping."""
    start = "init_" if start == "idinit" else start
    model = identity.transformer(start, seed, width=WIDTH, **TEXT)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    seen, judge, _ = _decoder.text()
    steps, context = CLAIMS["stability, transformer"]["steps"], TEXT["context"]
    data = _decoder.windows(seen, 8, context, steps, seed)
    made = sum(1 for _ in _training.train(model, data, optimiser))
    x, y = next(_decoder.windows(judge, 128, context, 1, 0))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    diverged = made < steps or not loss < _decoder.CHANCE
    return {"score": -_decoder.CHANCE if diverged else -loss, "diverged": int(diverged)}


# What comes out -----------------------------------------------------------------------------------


def _got(rows: Sequence[Row], key: str = "score", **setting: Any) -> list[float]:
    """Return a value of each seed that judges."""
    return [row[key] for row in judged(rows, SEEDS, **setting)]


def _label(claim: str) -> str:
    """Return the set-up of a claim, as "width 64, 32 blocks"."""
    nets = CLAIMS[claim]["nets"]
    return f"width {CLAIMS[claim].get('width', WIDTH)}{f', {nets[0]}' if len(nets) == 1 else ''}"


def _limit(claim: str) -> float:
    return -LEARNED if "transformer" in claim else TRAINS


def _pairs(rows: Sequence[Row], claim: str, start: str, limit: float) -> list[float]:
    """Return of how many pairs of rate and decay the net trains, for each seed."""
    mine = pick(rows, claim=claim, start=start)
    seeds = sorted({row["seed"] for row in mine})
    return [sum(row["score"] >= limit for row in pick(mine, seed=seed)) for seed in seeds]


def _against(rows: Sequence[Row], claim: str, limit: float | None = None) -> dict[str, Effect]:
    """Return by how much IDInit is above each other start."""
    values = {
        start: _pairs(rows, claim, start, limit or _limit(claim)) if "decays" in CLAIMS[claim]
        else _got(rows, claim=claim, start=start)
        for start in CLAIMS[claim]["starts"]
    }  # fmt: skip
    return {
        name: effect(values["idinit"], each) for name, each in values.items() if name != "idinit"
    }


def _stood(found: dict[str, Effect]) -> dict[str, str]:
    """Return how IDInit stands to each other start."""
    ways = {name: "ahead of" if each.value > 0 else "behind" for name, each in found.items()}
    return {name: way if found[name].shown else "level with" for name, way in ways.items()}


def _residual(rows: Sequence[Row], claim: str) -> tuple[str, str]:
    means = {s: mean(_got(rows, claim=claim, start=s)) for s in CLAIMS[claim]["starts"]}
    fail = [name for name in ("xavier", "kaiming") if means[name] < FAILS]
    words = "does not hold"
    if means["idinit"] >= TRAINS and fail:
        words = "holds" if len(fail) == 2 else f"holds when the other start is {fail[0]}"
    figures = [f"{name} {value:.2f}" for name, value in means.items()]
    figures += [f"above {name} {each}" for name, each in _against(rows, claim).items()]
    return f"{_label(claim)}: {words}", f"accuracy: {', '.join(figures)}"


def _eps(rows: Sequence[Row], claim: str, net: str, key: str) -> Effect:
    zero, mine = (_got(rows, key, claim=claim, net=net, start=start) for start in EPS)
    return effect(mine, zero)


def _epsilon(rows: Sequence[Row], claim: str) -> tuple[str, str]:
    nets = list(dict.fromkeys(row["net"] for row in pick(rows, claim=claim)))
    lines, figures = [], []
    for key, what, change, sign in (
        ("frozen", "parameters that never move", "fewer parameters never move", -1),
        ("score", "accuracy", "accuracy is higher", 1),
    ):
        found = {net: _eps(rows, claim, net, key) for net in nets}
        shown = {net: sign * each.value for net, each in found.items() if each.shown}
        good = [net for net, value in shown.items() if value > 0]
        words = epsilon.where(good, nets, "does not hold" if shown else "not shown")
        lines.append(f"{_label(claim)}, {change}: {words}")
        figures.append(f"{what}: " + ", ".join(f"{net} {each}" for net, each in found.items()))
    return "\n".join(lines), "; ".join(figures)


def _spread(rows: Sequence[Row], claim: str) -> tuple[str, str]:
    """Judge variances by Brown and Forsythe's test, corrected for the number of tests (Holm)."""
    starts = CLAIMS[claim]["starts"]
    values = {start: _got(rows, claim=claim, start=start) for start in starts}
    deviations = {start: statistics.stdev(each) for start, each in values.items()}
    test = _study.need("scipy.stats").levene
    chances = {s: float(test(values["idinit"], values[s]).pvalue) for s in starts if s != "idinit"}
    stood = dict.fromkeys(chances, "level with")
    for place, (start, chance) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        if chance * (len(chances) - place) >= 0.05:
            break
        stood[start] = "ahead of" if deviations[start] > deviations["idinit"] else "behind"
    figures = []
    for start, value in deviations.items():
        fine = [r["score"] for r in judged(rows, SEEDS, claim=claim, start=start, diverged=0)]
        lost = len(values[start]) - len(fine)
        notes = [f"p {chances[start]:.2f}"] if start in chances else []
        if lost:
            notes.append(f"without the {lost} that diverged {statistics.stdev(fine):.3f}")
        figures.append(f"{start} {value:.3f}" + f" ({', '.join(notes)})" * bool(notes))
    figure = f"standard deviation of the accuracy: {', '.join(figures)}"
    return _study.beside(stood, _label(claim)), figure


def _stability(rows: Sequence[Row], claim: str) -> tuple[str, str]:
    plan = CLAIMS[claim]
    words = _study.beside(_stood(_against(rows, claim)), _label(claim))
    counts = {s: mean(_pairs(rows, claim, s, _limit(claim))) for s in plan["starts"]}
    figure = ", ".join(f"{start} {count:.1f}" for start, count in counts.items())
    return words, f"of {len(plan['rates']) * len(plan['decays'])} pairs train: {figure}"


JUDGES = {"residual": _residual, "epsilon": _epsilon, "spread": _spread, "stability": _stability}


def verdicts(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Return for each claim what holds, a line each, and the figures."""
    claims = dict.fromkeys(row["claim"] for row in rows)
    return {claim: JUDGES[claim.partition(",")[0]](rows, claim) for claim in claims}


def _said(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Return for each claim the name of its study, its lines and its figures."""
    return [(c.partition(",")[0], *each) for c, each in verdicts(rows).items()]


def verdict(rows: Sequence[Row]) -> Verdict:
    """Return the verdicts of all claims, a line each."""
    lines = [f"{name}, {line}" for name, words, _ in _said(rows) for line in words.splitlines()]
    figures = [
        f"{claim}, {part}" for claim, (_, figure) in verdicts(rows).items()
        for part in figure.split("; ")
    ]  # fmt: skip
    return Verdict("\n".join(lines), "; ".join(figures))


def _rates(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each start whose rate was chosen."""
    lines = []
    for claim, net, start in dict.fromkeys((r["claim"], r["net"], r["start"]) for r in rows):
        known = pick(rows, claim=claim, net=net, start=start)
        if "decays" in CLAIMS[claim]:
            continue
        runs = judged(known, SEEDS)
        tuned = [row for row in known if row["seed"] in TUNE]
        sweep = ", ".join(f"{row['rate']:g}: {row['score']:.2f}" for row in tuned)
        accuracy = _study.spread(row["score"] for row in runs)
        frozen = f"{mean(row['frozen'] for row in runs):.3f}"
        lost = f"{sum(row['diverged'] for row in runs)} of {len(runs)}"
        lines.append([claim, net, start, sweep, f"{runs[0]['rate']:g}", accuracy, lost, frozen])
    return lines


def _gridded(rows: Sequence[Row]) -> list[str]:
    """Return the claims whose rates and decays make a grid."""
    return [c for c in dict.fromkeys(row["claim"] for row in rows) if "decays" in CLAIMS[c]]


def _grids(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each start of a grid of rates and decays."""
    lines = []
    for claim in _gridded(rows):
        against = _against(rows, claim)
        for start in CLAIMS[claim]["starts"]:
            known = pick(rows, claim=claim, start=start)
            means = [
                ", ".join(
                    f"{abs(mean(row['score'] for row in pick(known, rate=rate, decay=decay))):.2f}"
                    for rate in CLAIMS[claim]["rates"]
                )
                for decay in CLAIMS[claim]["decays"]
            ]
            pairs = _study.spread(_pairs(rows, claim, start, _limit(claim)), ".1f")
            lost = f"{sum(row['diverged'] for row in known)} of {len(known)}"
            lines.append([claim, start, pairs, str(against.get(start, "-")), lost, *means])
    return lines


def _limits(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each grid and each limit of what trains: how IDInit stands."""
    lines = []
    for claim in _gridded(rows):
        others = [-n for n in OTHER_LEARNED] if "transformer" in claim else [*OTHER_TRAINS]
        for limit in (_limit(claim), *others):
            stood = _stood(_against(rows, claim, limit))
            counts = [
                f"{start} {mean(_pairs(rows, claim, start, limit)):.1f}"
                + (f" ({stood[start]})" if start in stood else "")
                for start in CLAIMS[claim]["starts"]
            ]
            lines.append([claim, f"{abs(limit):g}", ", ".join(counts)])
    return lines


def _left_out() -> list[str]:
    """Return what the four studies have and this one has not, claim by claim."""
    grid = f"a grid of {len(stability.RATES)} x {len(stability.DECAYS)}"
    studies: dict[str, tuple[Sequence[str], Sequence[int], list[str]]] = {
        "residual": (residual.METHODS, tuple(residual.EPOCHS), []),
        "stability": (stability.METHODS, (stability.BLOCKS,), ["batch normalisation", grid]),
        "spread": (
            spread.METHODS[False],
            (spread.BLOCKS,),
            ["batch normalisation", "weights and order drawn one by one"],
        ),
    }
    lines = []
    for claim, plan in CLAIMS.items():
        name = claim.partition(",")[0]
        if "transformer" in claim:  # no study has one
            continue
        if name == "epsilon":
            missing = [f"the net {net}" for net in epsilon.NETS if net not in plan["nets"]]
            missing.append(f"eps of {listed(e for e in epsilon.EPS if e not in EPS.values())}")
        else:
            methods, blocks, more = studies[name]
            missing = [f"{n} blocks" for n in blocks if f"{n} blocks" not in plan["nets"]]
            missing.append(f"the starts {', '.join(m for m in methods if m not in plan['starts'])}")
            missing += more
        lines.append(f"* {name}, {_label(claim)}: {'; '.join(missing)}")
    narrow = [f"{claim}, width {NARROW}" for claim in CLAIMS if "width" not in claim]
    return lines + [f"* {claim}: all of it" for claim in narrow if claim not in CLAIMS]


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    head = ["claim", "net", "start", "rate: accuracy when tuning", "rate", "accuracy", "diverged",
            "never moved"]  # fmt: skip
    grid = ["claim", "start", "pairs that train", "IDInit trains more", "diverged", "without decay",
            "with"]  # fmt: skip
    lines = []
    for claim, plan in CLAIMS.items():
        rates = "".join(
            f"; of {start} {listed(known)}" for start, known in plan.get("smaller", {}).items()
        )
        decays = f"; decays {listed(plan['decays'])}" if "decays" in plan else ""
        rates = listed(plan["rates"]) + rates + decays
        name, where = claim.partition(",")[0], _label(claim)
        lines.append(
            f"* {name}, {where}: {plan['steps']} steps, {plan['seeds']} seeds; rates {rates}"
        )
    ratio = _study.need("scipy.stats").f.ppf
    known = CLAIMS["spread"]["seeds"] - 1
    chosen = [row for row in rows if "decays" not in CLAIMS[row["claim"]]]
    said = [
        [f"{name}, {line}", figure.replace("; ", ", ") if at == 0 else ""]
        for name, words, figure in _said(rows)
        for at, line in enumerate(words.splitlines())
    ]
    return filled(
        "wider",
        width=WIDTH,
        narrow=NARROW,
        batch=BATCH,
        plans="\n".join(lines),
        layers=TEXT["layers"],
        trains=TRAINS,
        fails=FAILS,
        learned=LEARNED,
        verdicts=table(["claim", "figures"], said),
        rates=table(head, _rates(rows)),
        ends=_study.at_ends(chosen, ("claim", "net", "start"), SEEDS),
        grids=table(grid, _grids(rows)) if _grids(rows) else "",
        limits=table(["claim", "limit", "pairs that train"], _limits(rows)) if _grids(rows) else "",
        least=math.sqrt(ratio(0.975, known, known) * ratio(0.8, known, known)),
        left_out="\n".join(_left_out()),
    )


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw every run of the nets whose rate was chosen, a panel a claim."""
    claims = [c for c in verdicts(rows) if "decays" not in CLAIMS[c]]
    columns = min(3, len(claims))
    panels = figure.subplots(-(-len(claims) // columns), columns, squeeze=False).flat
    figure.set_size_inches(8, 4 * -(-len(claims) // columns))
    for axes, claim in zip(panels, claims, strict=True):
        mine = pick(rows, claim=claim)
        starts = list(dict.fromkeys((row["net"], row["start"]) for row in mine))
        for place, (net, start) in enumerate(starts):
            values = _got(mine, net=net, start=start)
            axes.plot(values, [-place] * len(values), "o", ms=4, alpha=0.5)
        names = [f"{net}\n{start}" for net, start in starts]
        axes.set_yticks([-place for place in range(len(starts))], names, fontsize=6)
        width = CLAIMS[claim].get("width", WIDTH)
        title = f"{claim.partition(',')[0]}, width {width}"
        axes.set(title=title, xlabel="accuracy", xlim=(0, 1))


def check(rows: Sequence[Row]) -> None:
    """Assert that eps frees weights that an exact 0 leaves as they are."""
    for claim, net in dict.fromkeys((row["claim"], row["net"]) for row in rows):
        if claim.startswith("epsilon") and net != "same width":
            assert _eps(rows, claim, net, "frozen").value < 0, net


if __name__ == "__main__":
    _study.main("wider")
