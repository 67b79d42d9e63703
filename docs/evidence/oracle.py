"""Run the oracle on known implementations, and write what it finds to oracle.md beside this file.

pip install -c constraints.txt ".[evidence]"
python docs/evidence/oracle.py            # writes oracle.md
python docs/evidence/oracle.py --check    # exits 1 if oracle.md says anything else
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anyinit
import jax
import keras
import torch
from dks.pytorch.parameter_sampling_functions import scaled_uniform_orthogonal_
from torch import nn
from zero_init import ZerO_Init

import idinit_ref
import idinit_ref_jax
import idinit_ref_tensorflow
import idinit_ref_torch
from idinit_ref import Plan
from idinit_ref.testing import PROPERTIES, Report, make_oracle

PAGE = Path(__file__).with_suffix(".md")
VARIANCES = ["variance", "row_norm"]


class Known(NamedTuple):
    """An implementation, what it says it is, and how the oracle is told of it."""

    title: str
    make: Callable[..., Any]
    claim: str
    options: dict[str, Any]


def layer(shape: tuple[int, ...]) -> nn.Module:
    """Return the real layer whose weight has a shape."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=False)
    return nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)


def zero_init(shape: tuple[int, ...]) -> torch.Tensor:
    """Let zero-init's ZerO_Init make the weight of a layer."""
    module = layer(shape)
    ZerO_Init(module)
    return module.weight


def dks(shape: tuple[int, ...]) -> torch.Tensor:
    """Let dks' scaled_uniform_orthogonal_ make the weight of a layer."""
    module = layer(shape)
    return scaled_uniform_orthogonal_(module.weight)


def any_init(shape: tuple[int, ...]) -> torch.Tensor:
    """Let anyinit.initialize make the weight of a model of one layer."""
    model = nn.Sequential(layer(shape))
    anyinit.initialize(model, "analytic", (1, shape[1]))
    return model[0].weight


def is_square_and_odd(plan: Plan) -> bool:
    """Whether a kernel is one that ZerO_Init and dks take: square, and with a middle."""
    height, width = plan.axes.kernel
    return height == width and height % 2 == 1


KERNEL = {"layout": None, "conv": "OIHW", "taps": "center"}
KNOWN = [
    Known(
        "the reference, idi",
        idinit_ref.idi,
        "IDI of this specification, in NumPy; matrices and kernels.",
        {"conv": "OIHW"},
    ),
    Known("the reference, idiz", idinit_ref.idiz, "IDIZ, likewise.", {"conv": "OIHW"}),
    Known(
        "idinit_ref_torch.idi_",
        idinit_ref_torch.idi_,
        "IDI into a PyTorch tensor in place.",
        {"conv": "OIHW"},
    ),
    Known(
        "idinit_ref_torch.idiz_",
        idinit_ref_torch.idiz_,
        "IDIZ into a PyTorch tensor in place.",
        {"conv": "OIHW"},
    ),
    Known(
        "idinit_ref_jax.idi",
        idinit_ref_jax.idi,
        "IDI as a JAX initializer.",
        {"layout": "IO", "conv": "HWIO"},
    ),
    Known(
        "idinit_ref_jax.idiz",
        idinit_ref_jax.idiz,
        "IDIZ as a JAX initializer.",
        {"layout": "IO", "conv": "HWIO"},
    ),
    Known(
        "idinit_ref_tensorflow.IDI",
        idinit_ref_tensorflow.IDI,
        "IDI as a Keras initializer.",
        {"layout": "IO", "conv": "HWIO"},
    ),
    Known(
        "idinit_ref_tensorflow.IDIZ",
        idinit_ref_tensorflow.IDIZ,
        "IDIZ as a Keras initializer.",
        {"layout": "IO", "conv": "HWIO"},
    ),
    Known(
        "torch.nn.init.eye_",
        nn.init.eye_,
        'Says: "Preserves the identity of the inputs in Linear layers, where as many inputs are '
        'preserved as possible."',
        {},
    ),
    Known(
        "torch.nn.init.dirac_",
        nn.init.dirac_,
        'Says: "Preserves the identity of the inputs in Convolutional layers, where as many input '
        "channels are preserved as possible. In case of groups>1, each group of channels preserves "
        'identity." Asked as channel-maintain, with the tap (k - 1) // 2.',
        KERNEL,
    ),
    Known(
        "keras.initializers.Identity",
        keras.initializers.Identity,
        "Says: generates the identity matrix; only for 2D matrices.",
        {"layout": "IO"},
    ),
    Known(
        "jax.nn.initializers.delta_orthogonal",
        jax.nn.initializers.delta_orthogonal(),
        "Says: a random orthogonal matrix at the centre of the kernel; at most as many inputs as "
        "outputs. Asked as channel-maintain, kernels with no more inputs than outputs.",
        {
            "layout": None,
            "conv": "HWIO",
            "taps": "center",
            "only": lambda p: p.shape[2] <= p.shape[3],
            "name": "delta_orthogonal",
        },
    ),
    Known(
        "zero-init, nn.Linear",
        zero_init,
        "ZerO initialization: a (partial) identity, or a Hadamard transform where the outputs "
        "outnumber the inputs.",
        {},
    ),
    Known(
        "zero-init, nn.Conv2d",
        zero_init,
        "The same at one tap; square kernels only, and asked for odd ones.",
        {**KERNEL, "only": is_square_and_odd},
    ),
    Known(
        "dks, nn.Linear",
        dks,
        "Scaled uniform orthogonal: a random orthogonal matrix times max(sqrt(out / in), 1), such "
        "that the layer preserves q values. Run through scaled_uniform_orthogonal_ on the weight "
        "of the layer; its JAX and TensorFlow variants were not run.",
        {},
    ),
    Known(
        "dks, nn.Conv2d",
        dks,
        "The same at the centre of the kernel (Delta); odd kernels, asked for square ones.",
        {**KERNEL, "only": is_square_and_odd},
    ),
    Known(
        "anyinit, nn.Linear",
        any_init,
        'Scales random weights "so the signal neither dies nor explodes", on average over the '
        "draw. Asked for the two variance properties alone: of each output for any covariance "
        "(T2), and the norm of each row, which is that of white inputs.",
        {"expect": VARIANCES},
    ),
]


def judge(known: Known) -> Report:
    """Run the oracle on one of them, from one seed."""
    torch.manual_seed(0)
    name = known.options.get("name", getattr(known.make, "__name__", None))
    options = {"budget": 600.0, "examples": 40, **known.options, "name": name}
    report = make_oracle(known.make, **options).run()
    print(f"{known.title}: {report.count('held')} held, {report.count('broken')} broken")
    return report


def page(reports: dict[str, Report]) -> str:
    """Return oracle.md: a summary, and then each implementation."""
    words = {"held": "yes", "broken": "**no**", "untested": ""}
    packages = ("torch", "keras", "jax", "zero-init", "dks", "anyinit", "idinit-ref")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in packages
    )
    lines = [
        "# What the oracle says of known implementations",
        "",
        "Written by `python docs/evidence/oracle.py`, which anyone can run, not by hand.",
        "Most of these do not claim to be IDInit: a **no** says where they differ from it,",
        "not that they fail at what they claim. An empty cell was not asked: it says nothing of",
        "that property, or takes no such option. For IDIZ and IDI the properties differ.",
        "",
        f"Versions: {versions}.",
        "",
        f"| | {' | '.join(PROPERTIES)} |",
        f"|---|{'---|' * len(PROPERTIES)}",
    ]
    for title, report in reports.items():
        found = {outcome.property: outcome.verdict for outcome in report.outcomes}
        cells = [words[found.get(name, "untested")] for name in PROPERTIES]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for known in KNOWN:
        report = reports[known.title]
        lines += ["", f"## {known.title}", "", known.claim, ""]
        held = [outcome.property for outcome in report.outcomes if outcome.verdict == "held"]
        lines.append(f"Held: {', '.join(held) or 'none'}.")
        if report.ok:
            continue
        lines += ["", "| broken | smallest counterexample |", "|---|---|"]
        for outcome in report.broken:
            first = outcome.message.splitlines()[0].replace("|", "\\|")
            lines.append(f"| {outcome.property} | {first} |")
        if report.diagnosis:
            lines += ["", "It looks like:", "", *(f"* {line}" for line in report.diagnosis)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with oracle.md")
    args = parser.parse_args()
    text = page({known.title: judge(known) for known in KNOWN})
    if not args.check:
        PAGE.write_text(text)
        return 0
    if text == PAGE.read_text():
        return 0
    print("oracle.md says something else; run without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
