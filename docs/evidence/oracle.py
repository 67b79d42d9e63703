"""Run the oracle on known implementations, and write its verdicts to oracle.md.

pip install -c constraints.txt -e ".[evidence]"
python -m docs.evidence.oracle             # writes oracle.json and oracle.md
python -m docs.evidence.oracle --check     # exits 1 if oracle.md says anything else
python -m docs.evidence.oracle --render    # writes the page from the old data
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import torch
from torch import nn
from zero_init import ZerO_Init

import idinit_ref
import idinit_ref_jax
import idinit_ref_tensorflow
import idinit_ref_torch
from docs.evidence._data import FOLDER, filled, load, save, table
from docs.evidence._study import INSTALL, need
from idinit_ref import Plan
from idinit_ref.testing import PROPERTIES, make_oracle

PACKAGES = ("torch", "keras", "jax", "zero-init", "dks", "anyinit", "idinit-ref")
VARIANCES = ["variance", "row_norm"]


class Known(NamedTuple):
    """An implementation, its own claim, and the oracle's options for it."""

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
    owner = need("dks.pytorch.parameter_sampling_functions")
    return owner.scaled_uniform_orthogonal_(module.weight)


def any_init(shape: tuple[int, ...]) -> torch.Tensor:
    """Let anyinit.initialize make the weight of a model of one layer."""
    model = nn.Sequential(layer(shape))
    need("anyinit").initialize(model, "analytic", (1, shape[1]))
    return model[0].weight


def is_square_and_odd(plan: Plan) -> bool:
    """Return whether ZerO_Init and dks accept a kernel: square, and with a middle."""
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


def judge(known: Known) -> dict[str, Any]:
    """Run the oracle on one implementation, from one seed."""
    torch.manual_seed(0)
    name = known.options.get("name", getattr(known.make, "__name__", None))
    options = {"budget": 600.0, "examples": 40, **known.options, "name": name}
    report = make_oracle(known.make, **options).run()
    print(f"{known.title}: {report.count('held')} held, {report.count('broken')} broken")
    return {
        "title": known.title,
        "claim": known.claim,
        "verdicts": {outcome.property: outcome.verdict for outcome in report.outcomes},
        "broken": {outcome.property: outcome.message.splitlines()[0] for outcome in report.broken},
        "diagnosis": report.diagnosis,
    }


def measure() -> dict[str, Any]:
    """Run the oracle on all implementations."""
    for owner in ("dks", "anyinit"):
        need(owner)
    versions = (f"{name} {importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES)
    return {"versions": ", ".join(versions), "rows": [judge(known) for known in KNOWN]}


def page(data: dict[str, Any]) -> str:
    """Return oracle.md: a summary, and then each implementation."""
    words = {"held": "yes", "broken": "**no**", "untested": ""}
    summary = [
        [row["title"], *(words[row["verdicts"].get(name, "untested")] for name in PROPERTIES)]
        for row in data["rows"]
    ]
    return filled(
        "oracle",
        install=INSTALL,
        versions=data["versions"],
        table=table(["implementation", *PROPERTIES], summary),
        implementations="\n".join(map(_verdict, data["rows"])).rstrip(),
    )


def _verdict(row: dict[str, Any]) -> str:
    """Return the section of one implementation."""
    held = [name for name, verdict in row["verdicts"].items() if verdict == "held"]
    text = f"## {row['title']}\n\n{row['claim']}\n\nHeld: {', '.join(held) or 'none'}.\n"
    if not row["broken"]:
        return text
    broken = [(name, message.replace("|", "\\|")) for name, message in row["broken"].items()]
    text += "\n" + table(["broken", "smallest counterexample"], broken)
    if row["diagnosis"]:
        text += "\nIt looks like:\n\n" + "".join(f"* {line}\n" for line in row["diagnosis"])
    return text


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with oracle.md")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    args = parser.parse_args()
    data = load("oracle") if args.render else measure()
    text = page(data)
    if not args.check:
        save("oracle", data, text)
        return 0
    if text == (FOLDER / "oracle.md").read_text():
        return 0
    print("oracle.md says something else; run without --check", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
