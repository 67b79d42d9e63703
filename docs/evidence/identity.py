"""Which part of IDInit does the work: the identity inside a branch, or the zero at its end?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import idinit_ref_torch as irt
from docs.evidence import _baselines, _decoder, _nets, _study, _training
from docs.evidence._data import filled
from docs.evidence._study import Effect, Row, Verdict, effect, judged, mean, pick, spread, table

TITLE = "Identity inside, or zero at the end?"
CLAIM = (
    "Identity-like weights inside a residual branch, with IDIZ at its end, are what makes IDInit "
    "train better than random weights or than branches of exactly zero ([P] claims the two "
    "together)."
)
HERE = "Here each is changed on its own."
NOISE = 0.5  # the standard deviation of what is added to the images to learn from
# The sizes of each net, by width; a rate is tried for `tune` steps.
TEXT: dict[int, dict[str, Any]] = {
    256: {"layers": 4, "heads": 4, "context": 64, "batch": 32, "steps": 800, "tune": 100,
          "rates": (3e-4, 1e-3, 3e-3)},
    128: {"layers": 4, "heads": 4, "context": 64, "batch": 16, "steps": 300, "tune": 100,
          "rates": (1e-3, 3e-3, 1e-2)},
    64: {"layers": 2, "heads": 4, "context": 32, "batch": 8, "steps": 200, "tune": 100,
         "rates": (1e-3, 3e-3, 1e-2, 3e-2)},
}  # fmt: skip
IMAGES: dict[int, dict[str, Any]] = {
    64: {"blocks": 2, "batch": 32, "steps": 80, "tune": 40,
         "rates": (1e-3, 3e-3, 1e-2, 3e-2)},
    32: {"blocks": 2, "batch": 16, "steps": 60, "tune": 30,
         "rates": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)},
}  # fmt: skip
PHOTOGRAPHS: dict[int, dict[str, Any]] = {
    32: {"blocks": 2, "batch": 32, "steps": 150, "tune": 50, "rates": IMAGES[64]["rates"]},
}
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
NETS = {  # kind, width, and what more; the large ones first
    "transformer, width 256": tuple(name for name in FIRST if "1e-3" not in name),
    "transformer, width 128": FIRST,
    "resnet, width 64": (*FIRST, "init_"),
    "resnet, width 64, BN": (*FIRST, "init_"),
    "transformer, width 64": (*FIRST, "init_", *PARTS),
    "resnet, width 32": (*FIRST, "init_", "fixup", "skipinit"),
    "resnet, width 32, BN": (*FIRST, "init_"),
    "resnet, width 32, photographs": (*FIRST, "init_"),
    "resnet, width 32, photographs, BN": (*FIRST, "init_"),
}


SMALL = "transformer, width 64"
LARGER = {"IDI, IDIZ, larger rate": ((), 1e-6)}
UNTUNED = {
    "transformer, width 256": {"orthogonal qk, IDIZ": 1e-3},
    "transformer, width 128": {"orthogonal qk, IDIZ": 1e-3, "IDI, IDIZ, larger rate": 3e-3},
}
CROSSED = {  # in ResNets: a start, and the one at whose rate it runs as well
    "orthogonal, IDIZ, rate of IDI": ("orthogonal, IDIZ", "IDI, IDIZ"),
    "IDI, IDIZ, rate of orthogonal": ("IDI, IDIZ", "orthogonal, IDIZ"),
}


def shape(net: str) -> tuple[str, int, dict[str, Any]]:
    """Return the kind of a net, its width, and its other sizes."""
    kind, width, *more = net.split(", ")
    number = int(width.removeprefix("width "))
    images = PHOTOGRAPHS if "photographs" in more else IMAGES
    return kind, number, (TEXT if kind == "transformer" else images)[number]


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return what is to be measured; what matters most first, each net whole."""
    stages: list[tuple[str, Sequence[str]]] = list(NETS.items())
    if quick:
        stages = [(SMALL, ("IDI, IDIZ", "IDI, 0", "default"))]
    found: list[Row] = []
    for net, starts in stages:
        _, _, size = shape(net)
        steps, rates = 60 if quick else size["steps"], size["rates"]
        found += _study.swept(
            [{"net": net, "start": start, "steps": steps} for start in starts],
            rates[1:2] if quick else rates,
            rows,
            tune=TUNE,
            seeds=SEEDS[:2] if quick else SEEDS,
            score="score",
        )
        found += [
            {"net": net, "start": start, "steps": steps, "rate": rate, "seed": seed}
            for start, rate in UNTUNED.get(net, {}).items()
            for seed in SEEDS
        ]
        if net.startswith("resnet"):
            found += _crossed(net, rows)
        if len(found) > len(rows):
            break  # this net is not complete
    return found


def tuned(rows: Sequence[Row], net: str, start: str) -> dict[float, float]:
    """Return the loss of each rate that was tried to choose one."""
    found = pick(rows, net=net, start=start)
    return {row["rate"]: -row["score"] for row in found if row["seed"] in TUNE}


def _crossed(net: str, rows: Sequence[Row]) -> list[Row]:
    """Return both starts at each other's rate, so that they can be compared at the same one."""
    _, _, size = shape(net)
    best: dict[str, float] = {}
    for start, _ in CROSSED.values():
        losses = tuned(rows, net, start)
        if len(losses) < len(size["rates"]):
            return []
        best[start] = min(losses, key=lambda rate: (losses[rate], rate))
    return [
        {"net": net, "start": name, "steps": size["steps"], "rate": best[other], "seed": seed}
        for name, (start, other) in CROSSED.items()
        if best[start] != best[other]
        for seed in SEEDS
    ]


# The starts ---------------------------------------------------------------------------------------


def orthogonal(weight: Tensor) -> None:
    """Fill with a semi-orthogonal matrix whose singular values are those of IDI, sqrt(m/n) or 1."""
    rows, columns = weight.flatten(1).shape
    nn.init.orthogonal_(weight, math.sqrt(max(1.0, rows / columns)))


def begin(net: str, model: Any, start: str, example: Tensor) -> None:
    """Write a start into a model whose head and embeddings are the same for all but ``init_``."""
    if not net.startswith("transformer"):
        return _begin_resnet(model, start, example)
    if start == "rezero":
        for block in model.blocks:
            nn.init.zeros_(block.scale)
    if start in ("default", "rezero"):
        return None  # of a transformer: what PyTorch's layers have drawn
    if start == "init_":
        irt.init_(model, example)
        return None
    which, eps = (CELLS | PARTS | LARGER)[start]
    irt.init_(model, example, head="keep", eps=eps or 1e-6)
    blocks = [block.branch for block in model.blocks]
    inner = {
        "qk": [w.weight for b in blocks[::2] for w in (b.q, b.k)],
        "v": [b.v.weight for b in blocks[::2]],
        "up": [b[0].weight for b in blocks[1::2]],
    }
    _exchange(
        [weight for name in which for weight in inner[name]],
        [] if eps else [layer.weight for layer in _decoder.ends(model)],
    )
    return None


def _exchange(inside: Sequence[Tensor], ends: Sequence[Tensor]) -> None:
    """Put orthogonal weights inside branches, and exact zeros at ends."""
    with torch.no_grad():
        for weight in inside:
            orthogonal(weight)
        for weight in ends:
            weight.zero_()


def _begin_resnet(model: Any, start: str, example: Tensor) -> None:
    """Write a start into the branches alone; only Fixup and ``init_`` do more."""
    if start == "init_":
        irt.init_(model, example)
        return
    stem, *_, head = _nets.weighted(model)
    same = [*stem.parameters(), *(head.parameters() if start != "fixup" else ())]
    drawn = [value.detach().clone() for value in same]
    if start in ("rezero", "skipinit"):
        for block in _baselines.branches(model):
            block.scale = nn.Parameter(torch.zeros(()))
    if start in ("fixup", "skipinit"):
        _baselines.apply({"skipinit": "kaiming"}.get(start, start), model, example)
    elif start not in ("default", "rezero"):
        which, eps = CELLS[CROSSED[start][0] if start in CROSSED else start]
        irt.init_(model, example, head="keep", eps=eps or 1e-6)
        layers = [[*_nets.weighted(block.branch)] for block in _baselines.branches(model)]
        _exchange(
            [first.weight for first, _ in layers if which],
            [end.weight for _, end in layers if not eps],
        )
    with torch.no_grad():
        for value, before in zip(same, drawn, strict=True):
            value.copy_(before)


# Measuring ----------------------------------------------------------------------------------------


def transformer(start: str, seed: int, *, width: int, layers: int, heads: int, context: int) -> Any:
    """Return a transformer with its start."""
    torch.manual_seed(seed)
    scalars = start == "rezero"
    shape = (_decoder.VOCAB, width, layers, heads, context)
    model = _decoder.Transformer(*shape, norm=True, scalars=scalars)
    _decoder.embed(model, 0.02)
    begin("transformer", model, start, torch.zeros(1, context, dtype=torch.long))
    return model


def measure(net: str, start: str, steps: int, rate: float, seed: int) -> Row:
    """Train once; to choose a rate on fewer steps, and on data that judge nothing else."""
    kind, width, size = shape(net)
    if seed in TUNE:
        steps = min(steps, size["tune"])
    if kind != "transformer":
        return _images(net, start, steps, rate, seed)
    sizes = {name: size[name] for name in ("layers", "heads", "context")}
    model = transformer(start, seed, width=width, **sizes)
    return _decoder.learn(
        model,
        torch.optim.AdamW(model.parameters(), lr=rate, fused=True),
        steps=steps,
        batch=size["batch"],
        context=size["context"],
        seed=seed,
        tuning=seed in TUNE,
    )


def _images(net: str, start: str, steps: int, rate: float, seed: int) -> Row:
    torch.manual_seed(seed)
    is_digits = "photographs" not in net
    x, y, judge, labels = _training.digits() if is_digits else _training.photographs()
    if seed in TUNE:
        x, y, judge, labels = x[360:], y[360:], x[:360], y[:360]
    _, width, size = shape(net)
    classes = len(labels.unique())
    model = _nets.resnet(
        size["blocks"], width, norm=net.endswith("BN"), scalars=start == "fixup",
        inputs=x.shape[1], classes=classes,
    )  # fmt: skip
    begin(net, model, start, x[:2])
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    noise = torch.Generator().manual_seed(seed)

    def seen(images: Tensor) -> Tensor:
        noisy = images + NOISE * torch.randn(images.shape, generator=noise)
        return noisy if is_digits else images

    stream = _training.batches(x, y, size["batch"], 1000, seed)
    data = ((seen(images), labels) for images, labels in islice(stream, steps))
    losses = list(_training.train(model, data, optimiser, schedule=schedule))
    noise.manual_seed(999)  # the same noise for all that are judged
    model.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(seen(judge)), labels).item()
    diverged = len(losses) < steps or not loss < math.log(classes)
    return {
        "score": -math.log(classes) if diverged else -loss,
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
    }
    for inner in ("IDI", "orthogonal"):
        if of(f"{inner}, IDIZ 1e-3"):
            found[f"eps 1e-3 instead of 1e-6, {inner} inside"] = effect(
                of(f"{inner}, IDIZ 1e-3"), of(f"{inner}, IDIZ")
            )
    for rate, change in same_rate(rows, net).items():
        found[f"orthogonal inside, both at {rate:g}, IDIZ"] = change
    for name in PARTS:
        if of(name):
            weights = name.partition(",")[0].removeprefix("orthogonal ")
            found[f"orthogonal in {weights} alone, IDIZ"] = effect(of(name), of("IDI, IDIZ"))
    others = [name for name in NETS[net] if name not in CELLS and name not in PARTS and of(name)]
    for name in others:
        found[f"{name} instead of IDI, IDIZ"] = effect(of(name), of("IDI, IDIZ"))
    for ours in filter(of, LARGER):
        for name in ("orthogonal, IDIZ", *others):
            found[f"{name} instead of {ours}"] = effect(of(name), of(ours))
    return found


def same_rate(rows: Sequence[Row], net: str) -> dict[float, Effect]:
    """Return orthogonal weights beside IDI at the rate of either, with IDIZ at the end."""
    runs = {
        start: judged(rows, SEEDS, net=net, start=start)
        for start in ("IDI, IDIZ", "orthogonal, IDIZ", *CROSSED)
    }
    found = {}
    for start, other in (("orthogonal, IDIZ", "IDI, IDIZ"), ("IDI, IDIZ", "orthogonal, IDIZ")):
        crossed = next(name for name, both in CROSSED.items() if both == (start, other))
        for name in (start, crossed):  # at the rate of the other one
            pair = {start: runs[name], other: runs[other]}
            if all(pair.values()) and runs[name][0]["rate"] == runs[other][0]["rate"]:
                idi, orthogonal = ([-r["score"] for r in pair[s]] for s in sorted(pair))
                found[runs[other][0]["rate"]] = effect(orthogonal, idi)
    return dict(sorted(found.items()))


def said(found: Effect) -> str:
    """Return in a word what a change does."""
    return "not shown" if not found.shown else "better" if found.value < 0 else "worse"


def judged_inside(rows: Sequence[Row], net: str) -> str:
    """Return what orthogonal weights do, if that is so at the best rates and at the same rates."""
    own = effects(rows, net)["orthogonal inside instead of IDI"]
    words = {said(change) for change in (own, *same_rate(rows, net).values())}
    return words.pop() if same_rate(rows, net) and len(words) == 1 else "not shown"


def nets_where(rows: Sequence[Row], word: str) -> list[str]:
    """Return the nets in which orthogonal weights are better, worse, or not shown to be either."""
    return [net for net in whole(rows) if judged_inside(rows, net) == word]


def whole(rows: Sequence[Row]) -> list[str]:
    """Return the nets that have all cells of the 2 x 2; a quick run has none."""
    return [net for net in NETS if losses(rows, net, "orthogonal, 0")]


def verdict(rows: Sequence[Row]) -> Verdict:
    """Judge the identity by the loss of orthogonal weights, the end by that of an exact 0."""
    nets = whole(rows)
    if not nets:  # the quick run
        zero, mine = (mean(losses(rows, SMALL, start)) for start in ("IDI, 0", "IDI, IDIZ"))
        return Verdict("holds in small for IDIZ", f"loss {mine:.2f}, with an exact 0 {zero:.2f}")
    lines = []
    for net in nets:
        own, end, other, *_ = effects(rows, net).values()
        queries = effects(rows, net).get("orthogonal in qk alone, IDIZ")
        changes = {"orthogonal inside": own}
        changes |= {f"both at {rate:g}": e for rate, e in same_rate(rows, net).items()}
        changes |= {"orthogonal in queries and keys alone": queries} if queries else {}
        changes |= {"0 at the end, IDI inside": end, "0 at the end, orthogonal inside": other}
        lines.append(
            f"{net}, change of the loss: "
            + ", ".join(f"{name} {_brief(change)}" for name, change in changes.items())
        )
    ends = "0 at the end instead of IDIZ, {} inside".format
    claims = [_claim("identity inside", {net: judged_inside(rows, net) for net in nets})]
    claims += [
        _claim(f"IDIZ at the end, {inner} inside", {net: said(effects(rows, net)[ends(inner)])
               for net in nets})
        for inner in ("IDI", "orthogonal")
    ]  # fmt: skip
    return Verdict("\n".join(claims), "; ".join(lines))


def _claim(what: str, words: dict[str, str]) -> str:
    """Return the claim that a change is worse than IDInit, judged for each net, in lines."""
    held = {"worse": "holds", "better": "does not hold", "not shown": "not shown"}
    lines = []
    for word, claim in held.items():
        nets = [net for net in words if words[net] == word]
        if len(nets) == len(words):
            return f"{what}: {claim}"
        if nets:
            where = " / ".join(nets) if len(nets) < 4 else f"{len(nets)} of {len(words)} nets"
            lines.append(f"{what}, {where}: {claim}")
    return "\n".join(lines)


def _brief(change: Effect) -> str:
    return f"{change.value:+.3f} ± {change.half:.3f} ({said(change)})"


def page(rows: Sequence[Row]) -> str:
    """Return set-up, tables and reading."""
    diverged = sum(row["diverged"] for row in rows)
    return filled(
        "identity",
        transformers=_sizes("transformer", rows),
        resnets=_sizes("resnet", rows),
        noise=NOISE,
        seeds=", ".join(map(str, SEEDS)),
        short=_short(rows),
        better=" / ".join(nets_where(rows, "better")) or "none",
        unclear=" / ".join(nets_where(rows, "not shown")) or "none",
        results="\n".join(_results(rows, net) for net in NETS if pick(rows, net=net)),
        widths=_widths(rows),
        parts=_each(rows, _part),
        others=_each(rows, _other),
        edge="\n".join(
            f"* {net}: {_study.at_ends(pick(rows, net=net), ('start',), SEEDS)}" for net in NETS
        ),
        diverged=diverged,
        runs=len(rows),
    )


def _short(rows: Sequence[Row]) -> str:
    """Return the table of what matters most, a line a net."""
    lines = []
    for net in whole(rows):
        found = effects(rows, net)
        same = [f"{_brief(e)} at {rate:g}" for rate, e in same_rate(rows, net).items()]
        names = (f"{start} instead of IDI, IDIZ" for start in ("default", "rezero", "init_"))
        starts = [_brief(found[name]) if name in found else "not run" for name in names]
        own = _brief(found["orthogonal inside instead of IDI"])
        lines.append([net, own, ", ".join(same) or "not measured", *starts])
    head = ["net", "orthogonal inside, each at its best rate", "both at one rate"]
    return table([*head, "default", "rezero", "init_"], lines)


def _sizes(kind: str, rows: Sequence[Row]) -> str:
    """Return the sizes of the nets of a kind, in words."""
    parts = []
    for net in dict.fromkeys(row["net"] for row in rows):
        _, width, size = shape(net)
        if net.startswith(kind) and not net.endswith("BN"):
            deep = f"{size['layers']} layers" if "layers" in size else f"{size['blocks']} blocks"
            each = f"{size['batch'] * size['context']} tokens" if "context" in size else (
                f"{size['batch']} images")  # fmt: skip
            more = ", photographs" * net.endswith("photographs")
            parts.append(f"width {width}{more}, {deep}, {size['steps']} steps of {each}")
    return "; ".join(parts) or "none"


def _results(rows: Sequence[Row], net: str) -> str:
    """Return the tables of a net."""
    lines = []
    for start in dict.fromkeys(row["start"] for row in pick(rows, net=net)):
        runs = judged(rows, SEEDS, net=net, start=start)
        sweep = ", ".join(
            f"{row['rate']:g}: {-row['score']:.2f}"
            for row in pick(rows, net=net, start=start)
            if row["seed"] in TUNE
        )
        first = spread((row["first"] for row in runs), ".2f")
        final, lost = spread(losses(rows, net, start)), sum(row["diverged"] for row in runs)
        final += f" ({lost} at chance)" if lost else ""
        lines.append([start, sweep or "not tuned", f"{runs[0]['rate']:g}", first, final])
    head = ["inside, at the end", "rate: loss when tuning", "rate", "first loss", "final loss"]
    text = f"## {net}\n\n{table(head, lines)}"
    if net in whole(rows):
        found = [[name, str(e), said(e)] for name, e in effects(rows, net).items()]
        text += "\n" + table(["change", "of the final loss", "it is"], found)
    return text


def _widths(rows: Sequence[Row]) -> str:
    """Return the effects that two sizes of a net have in common, side by side."""
    lines = []
    for net in whole(rows):
        kind, width, _ = shape(net)
        for other in whole(rows):
            small = shape(other)[1]
            if small >= width or other != net.replace(f"width {width}", f"width {small}"):
                continue
            both = effects(rows, other), effects(rows, net)
            label = f"{kind}{', BN' * net.endswith('BN')}"
            lines += [
                [label, name, f"{both[0][name]} ({small})", f"{both[1][name]} ({width})"]
                for name in both[0].keys() & both[1].keys()
            ]
    order = list(effects(rows, whole(rows)[0])) if lines else []
    order += sorted({line[1] for line in lines} - {*order})
    lines.sort(key=lambda line: (order.index(line[1]), line[0]))
    return table(["net", "change", "small (width)", "large (width)"], lines) if lines else ""


def _each(rows: Sequence[Row], known: Callable[[str], str]) -> str:
    """Return in which nets a change is better, worse or not shown, for each that has a name."""
    found: dict[str, dict[str, list[str]]] = {}
    for net in whole(rows):
        for change, e in effects(rows, net).items():
            if name := known(change):
                found.setdefault(name, {}).setdefault(said(e), []).append(net)
    lines = [
        f"* {name}: " + "; ".join(f"{word} in {' / '.join(nets)}" for word, nets in words.items())
        for name, words in found.items()
    ]
    return "\n".join(lines) or "* not measured"


def _part(change: str) -> str:
    return change.partition(" alone")[0] if " alone" in change else ""


def _other(change: str) -> str:
    name, _, rest = change.partition(" instead of IDI, IDIZ")
    return "" if name == change else name + (" (IDI, IDIZ at the larger rate)" if rest else "")


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the effects with their intervals, a panel a net."""
    nets = whole(rows)
    if not nets:  # the quick run
        starts = list(dict.fromkeys(row["start"] for row in rows))
        figure.subplots().bar(starts, [mean(losses(rows, SMALL, start)) for start in starts])
        return
    lines = -(-len(nets) // 3)
    figure.set_size_inches(9, 4 * lines)
    panels = figure.subplots(lines, 3).flat
    for axes in panels[len(nets) :]:
        axes.set_visible(False)
    for axes, net in zip(panels, nets, strict=False):
        found = effects(rows, net)
        at = range(len(found), 0, -1)
        values, halves = [e.value for e in found.values()], [e.half for e in found.values()]
        axes.errorbar(values, list(at), xerr=halves, fmt="o", ms=4, capsize=2)
        axes.axvline(0, color="black", lw=0.7)
        names = [name.replace(" instead of ", "\nfor ") for name in found]
        axes.set_yticks(list(at), names, fontsize=5.5)
        axes.set(title=net.replace(", photographs", "\nphotographs"), xlabel="change of the loss")


def check(rows: Sequence[Row]) -> None:
    """Assert that every start learns, and that an exact 0 behind IDI costs the transformer."""
    for start in dict.fromkeys(row["start"] for row in pick(rows, net=SMALL)):
        assert mean(losses(rows, SMALL, start)) < _decoder.CHANCE - 0.5, start
    zero, mine = (losses(rows, SMALL, start) for start in ("IDI, 0", "IDI, IDIZ"))
    assert mean(zero) > mean(mine)


if __name__ == "__main__":
    _study.main("identity")
