"""Real architectures at their start: the default, IDInit, and branches of zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

import idinit_ref_torch as irt
from docs.evidence import _models, _study
from docs.evidence._data import filled
from docs.evidence._study import Row, Verdict, mean, pick, table

TITLE = "How real models begin"
CLAIM = (
    "IDInit starts any architecture well: signals keep their size through depth, residual branches "
    "begin as nothing, and gradients reach every parameter ([P]: universal)."
)
HERE = "The study audits twelve architectures at small sizes."
STARTS = {
    "default": "what the model's own code draws",
    "init_": "`irt.init_(model, inputs)`",
    "zeroed": "the default, with exact zeros (biases too) where IDInit has IDIZ, as of ReZero",
}
SEEDS = (0,)
STEP = 1e-3
SPAN = 2.0  # powers of ten between second moments of signals that keep their size
SMALL = 1e-3  # a branch that begins as nothing, beside its skip


def cells(quick: bool, rows: Sequence[Row]) -> list[Row]:
    """Return every model with every start."""
    names = ("GPT-2", "U-Net") if quick else _models.MODELS
    return [
        {"model": model, "start": start, "seed": seed}
        for model in names
        for start in STARTS
        for seed in SEEDS
    ]


def measure(model: str, start: str, seed: int) -> Row:
    """Audit one start, and measure the gradient of every matrix and kernel."""
    torch.manual_seed(seed)
    net, inputs = _models.MODELS[model]()
    net.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    report = irt.init_(net, inputs)
    ends = [name for name, role in report.roles.items() if role == "zero"]
    if start != "init_":
        net.load_state_dict(state)
    if start == "zeroed":
        with torch.no_grad():
            named = dict(net.named_parameters())
            for name in ends:
                named[name].zero_()
                bias = named.get(name.removesuffix("weight") + "bias")
                if bias is not None:
                    bias.zero_()
    _normed(net, inputs)
    audit = irt.audit(net, inputs, steps=3)
    moments = [each.second_moment for each in audit.layers if _weight(net, each.name) not in ends]
    said = " ".join(entry.why for entry in report.entries if entry.role == "zero")
    branches = [branch for branch in audit.branches if f"which {branch.add} adds" in said]
    gradients = _gradients(net, inputs)
    with torch.no_grad():  # the first step of Adam
        for weight in net.parameters():
            if weight.grad is not None:
                weight -= STEP * weight.grad.sign()
    after = _gradients(net, inputs)
    return {
        "parameters": sum(p.numel() for p in net.parameters()),
        "ends": len(ends),
        "healthy": int(bool(audit.healthy)),
        "moments": [_log(value) for value in moments],
        "branches": [_log(branch.ratio) for branch in branches],
        "copies": mean(layer.copies / layer.units for layer in audit.layers if layer.units),
        "gradients": [_log(value) for value in gradients],
        "still": [found.count(0.0) for found in (gradients, after)],
        "why": next(iter(audit.healthy), "").partition(" (")[0],
    }


def _normed(net: torch.nn.Module, inputs: Any) -> None:
    """Give batch norms the statistics of these inputs, as after a first step of training."""
    norms = [m for m in net.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        if norms:
            _run(net, inputs)
    net.eval()


def _weight(net: torch.nn.Module, layer: str) -> str:
    """Return the name of a layer's weight; "experts (2)" is the second matrix of its module."""
    name, _, number = layer.partition(" (")
    named = net.get_submodule(name).named_parameters(recurse=False)
    known = [each for each, value in named if value.ndim > 1]
    return f"{name}.{known[int(number.rstrip(')') or 1) - 1 if len(known) > 1 else 0]}"


def _log(value: float) -> float | None:
    return math.log10(value) if value > 0 and math.isfinite(value) else None


def _run(net: torch.nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple) else net(inputs)


def _gradients(net: torch.nn.Module, inputs: Any) -> list[float]:
    """Return the root mean square of every matrix's gradient, in order, for random signs."""
    found = _run(net, inputs)
    out = found if isinstance(found, torch.Tensor) else found.logits
    signs = torch.randint(0, 2, out.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net.zero_grad(set_to_none=True)
    (out * signs).sum().backward()
    weights = [p for p in net.parameters() if p.ndim > 1 and p.grad is not None]
    return [weight.grad.square().mean().sqrt().item() for weight in weights]


# What came out ------------------------------------------------------------------------------------


def _known(row: Row, key: str) -> list[float]:
    return [value for value in row[key] if value is not None]


def span(row: Row) -> float:
    """Return the powers of ten between the largest second moment and the smallest; 0 is endless."""
    known = _known(row, "moments")
    return max(known) - min(known) if len(known) == len(row["moments"]) > 0 else math.inf


# What the claim says of a model: what is judged, where it fails, and by how much.
Part = tuple[Callable[[Row], bool], Callable[[Row], str]]
PARTS: dict[str, Part] = {
    "the audit finds a working model": (
        lambda row: bool(row["healthy"]),
        lambda row: row["why"],
    ),
    f"signals keep their size (second moments within {SPAN:g} powers of ten)": (
        lambda row: span(row) <= SPAN,
        lambda row: f"{span(row):.1f} powers",
    ),
    f"branches begin as nothing (below {SMALL:g} of their skip)": (
        lambda row: all(value < math.log10(SMALL) for value in _known(row, "branches")),
        lambda row: _power(_known(row, "branches")),
    ),
    "gradients reach every matrix at the start": (
        lambda row: row["still"][0] == 0,
        lambda row: f"{row['still'][0]} of {len(row['gradients'])} get exactly 0",
    ),
    "gradients reach every matrix after one step": (
        lambda row: row["still"][1] == 0,
        lambda row: f"{row['still'][1]} of {len(row['gradients'])} get exactly 0",
    ),
}


def verdict(rows: Sequence[Row]) -> Verdict:
    """Judge each part of the claim, with IDInit's start, model by model."""
    lines, figures = [], []
    for part, (holds, told) in PARTS.items():
        mine = pick(rows, start="init_")
        bad = [f"{row['model']} ({told(row)})" for row in mine if not holds(row)]
        words = f"holds when the model is not {' or '.join(bad)}" if bad else "holds"
        if len(bad) > len(mine) / 2:
            words = f"does not hold ({len(bad)} of {len(mine)} models fail)"
        lines.append(f"{part}: {words}")
        counts = [f"{s} {sum(map(holds, pick(rows, start=s)))}" for s in STARTS]
        figures.append(f"{part}, models of {len(mine)}: {', '.join(counts)}")
    return Verdict("\n".join(lines), "; ".join(figures))


def _power(values: Sequence[float], pick_: Any = max) -> str:
    return f"{10 ** pick_(values):.1g}" if values else "0"


def page(rows: Sequence[Row]) -> str:
    """Return set-up, table and reading."""
    lines = []
    for row in rows:
        moments, branches, gradients = (
            _known(row, k) for k in ("moments", "branches", "gradients")
        )
        lines.append(
            [
                row["model"] if row["start"] == "default" else "",
                row["start"],
                f"{_power(moments[:1])} to {_power(moments[-1:])}",
                f"{span(row):.1f}" if math.isfinite(span(row)) else "to 0",
                _power(branches),
                " / ".join(map(str, row["still"])),
                f"{row['copies']:.0%}",
                f"{_power(gradients, min)} to {_power(gradients)}",
                "yes" if row["healthy"] else "no",
            ]
        )
    head = ["model", "start", "second moment, first to last", "its span, powers of ten"]
    head += ["largest branch / skip", "gradients of exactly 0: at first, after a step"]
    head += ["copies", "gradients, rms", "healthy"]
    ill = [row for row in rows if not row["healthy"]]
    reasons = [f"* {r['model']}, {r['start']}: {r['why']}" for r in ill]
    of = {start: pick(rows, start=start) for start in STARTS}
    sizes = [row["parameters"] for row in rows]
    faded = [row for row in pick(rows, model="EfficientNet") if span(row) > SPAN]
    return filled(
        "real",
        starts=table(["start", "what it is"], STARTS.items()),
        step=STEP,
        smallest=min(sizes),
        largest=max(sizes),
        results=table(head, lines),
        kept=", ".join(
            f"{start} {sum(span(row) <= SPAN for row in found)} of {len(found)}"
            for start, found in of.items()
        ),
        span=SPAN,
        widest="; ".join(_widest(found) for found in of.values()),
        stuck=", ".join(
            f"{start} {sum(row['still'][1] for row in found)}" for start, found in of.items()
        ),
        ill="\n".join(reasons) or "* none",
        faded=filled("real_faded", starts=", ".join(r["start"] for r in faded)) if faded else "",
    )


def _widest(rows: Sequence[Row]) -> str:
    """Return the model whose second moments span the most, as "default Mamba 3.1"."""
    row = max(rows, key=span)
    return f"{row['start']} {row['model']}, {span(row):.1f}"


def draw(rows: Sequence[Row], figure: Any) -> None:
    """Draw the gradients' size by depth, a panel a model."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(6, len(names))
    grid = figure.subplots(-(-len(names) // columns), columns, sharey=True, squeeze=False)
    figure.set_size_inches(8, 2.2 * len(grid) + 0.4)
    for axes, name in zip(grid.flat, names, strict=False):
        for start in STARTS:
            for row in pick(rows, model=name, start=start)[:1]:
                size = max(1, len(row["gradients"]) - 1)
                known = [(i / size, v) for i, v in enumerate(row["gradients"]) if v is not None]
                axes.plot(*zip(*known, strict=True), ".", ms=3, label=start)
        axes.set_title(name, fontsize=8)
        axes.set_ylim(-16, 4)  # what underflows is cut off
        axes.tick_params(labelsize=6)
    for axes in grid[:, 0]:
        axes.set_ylabel("log10 of the gradient", fontsize=7)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


def check(rows: Sequence[Row]) -> None:
    """Assert that IDInit's branches begin smaller than the default's, and zeroed ones as 0."""
    for row in rows:
        if row["model"] not in ("GPT-2", "Llama", "ViT", "U-Net"):
            continue
        if row["start"] == "zeroed":
            assert not _known(row, "branches"), row["model"]
        if row["start"] == "init_":
            (default,) = pick(rows, model=row["model"], start="default", seed=row["seed"])
            assert max(_known(row, "branches")) < max(_known(default, "branches")) - 2
            for part, (holds, told) in PARTS.items():
                assert holds(row), (row["model"], part, told(row))


if __name__ == "__main__":
    _study.main("real")
