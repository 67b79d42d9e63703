"""Real architectures at their start: the default, IDInit, and branches of zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    audit = irt.audit(net, inputs)
    moments = [layer.second_moment for layer in audit.layers if f"{layer.name}.weight" not in ends]
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
        "why": _short(next(iter(audit.healthy), "")),
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


def _short(text: str) -> str:
    return text if len(text) < 160 else text[:157] + "..."


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


def span(row: Row, key: str) -> float:
    """Return the powers of ten between the largest and the smallest that is not 0."""
    known = _known(row, key)
    return max(known) - min(known) if known else math.inf


def small(row: Row) -> bool:
    """Return whether every residual branch is tiny beside its skip."""
    return all(value is None or value < math.log10(SMALL) for value in row["branches"])


def verdict(rows: Sequence[Row]) -> Verdict:
    """Judge by the audit's verdict, and by the size of branches."""
    mine = pick(rows, start="init_")
    ill = [row["model"] for row in mine if not row["healthy"]]
    large = [row["model"] for row in mine if not small(row)]
    counts = {
        start: (sum(row["healthy"] for row in found), sum(map(small, found)), len(found))
        for start in STARTS
        for found in [pick(rows, start=start)]
    }
    figure = "; ".join(
        f"{start}: {well} of {size} healthy, branches small in {little}"
        for start, (well, little, size) in counts.items()
    )
    if not ill and not large:
        return Verdict("holds", figure)
    parts = [f"the audit fails for {', '.join(ill)}"] if ill else []
    if large:
        parts.append(f"branches are not small in {', '.join(large)}, where a norm ends them")
    if len({*ill, *large}) > len(mine) / 2:
        return Verdict(f"does not hold: {'; '.join(parts)}", figure)
    return Verdict(f"holds, with exceptions: {'; '.join(parts)}", figure)


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
                f"{span(row, 'moments'):.1f}",
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
    ill = [
        f"* {row['model']}, {row['start']}: {row['why']}"
        for row in rows
        if not row["healthy"] and row["start"] != "zeroed"
    ]
    of = {start: pick(rows, start=start) for start in STARTS}
    return filled(
        "real",
        starts=table(["start", "what it is"], STARTS.items()),
        step=STEP,
        results=table(head, lines),
        spans=", ".join(
            f"{start} {mean(span(row, 'moments') for row in found):.1f}"
            for start, found in of.items()
        ),
        stuck=", ".join(
            f"{start} {sum(row['still'][1] for row in found)}" for start, found in of.items()
        ),
        ill="\n".join(ill) or "* none",
    )


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
        if row["start"] == "zeroed" and row["model"] in ("GPT-2", "Llama", "ViT", "U-Net"):
            assert not _known(row, "branches"), row["model"]
        if row["start"] == "init_" and row["model"] in ("GPT-2", "Llama", "ViT", "U-Net"):
            (default,) = pick(rows, model=row["model"], start="default", seed=row["seed"])
            assert max(_known(row, "branches")) < max(_known(default, "branches")) - 2
            assert row["healthy"], row["why"]


if __name__ == "__main__":
    _study.main("real")
