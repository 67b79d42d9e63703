"""The first page of the evidence: what came out of each study, of their data alone."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from docs.evidence._data import FOLDER, filled, load
from docs.evidence._study import INSTALL, table
from idinit_ref.files import whole_file

STUDIES = (
    "residual",
    "depth",
    "convolution",
    "epsilon",
    "rank",
    "linear",
    "spread",
    "transformer",
    "stability",
    "real",
    "identity",
    "symmetry",
    "heads",
    "chains",
    "parity",
)

ADVICE = """\
1. Have a residual net without norms? [Xavier and Kaiming fail when it is deep](residual.md). Use
   `init_`, or a start made for it (Fixup, SkipInit, small branches), of which some did better.
2. Have norms? Begin branches as nothing: in a [small transformer](transformer.md) IDInit was better
   than GPT-2's default, and a learned scale of 0 (ReZero) better than IDInit.
3. Have a chain without skips? [ReLU and tanh learn at any depth](depth.md) from identities. GELU
   and SiLU fade (theorem T13): give them skips.
4. Leave `taps` outward or diagonal, [not at a corner](convolution.md), and eps at 1e-6; do not
   expect [less variance between runs](spread.md).
5. Run `audit` after `init_`: [of twelve real models](real.md) it says which begin badly, and why.
"""

# A default, why it is so, and the page or study that carries it, if any does.
DEFAULTS = (
    ("gain 1", "theorem T6: with ReLU a gain of sqrt(2) doubles in every layer", ""),
    ("wide = truncate", "theorems T2 and T4", ""),
    ("taps = outward", "theorem T14", "convolution"),
    ("the identity tap of the layer", "theorem T14", ""),
    ("form = pair", "what the texts say; theorems T10 and T11", "symmetry"),
    ("eps = 1e-6", "what the texts say", "epsilon"),
    ("loosen = 0", "the same bits always; the rank needs something that parts copies", "rank"),
    ("loosen_at = all", "the texts differ", "symmetry"),
    ("head = transit", "the rule for roles; theorem T16", "heads"),
    ("norms = keep", "the model's own scales stay", "heads"),
    ("embeddings = keep", "the texts do not define them", ""),
    ("biases = auto", "what a bias says is kept; audits of real models", "real"),
    ("roles from the computation", "identity and minimality, measured on each model", "zoo"),
)

OTHERS = """\
## Other pages of measurements

* [oracle.md](oracle.md): which properties hold for the implementations that are public
* [mutation.md](mutation.md): what the tests would notice
* [performance.md](performance.md): how fast a weight is made, beside zeros and beside others
* [ranks.md](ranks.md): what each of many ranks does
* [export.md](export.md): how fast a checkpoint is written
* [zoo.md](zoo.md): does every architecture at hand start as it should?
* [gpu.md](gpu.md): on a GPU
"""


def _defaults() -> list[list[str]]:
    """Return the lines of the table of defaults."""
    lines = []
    for what, why, name in DEFAULTS:
        carried = f"[{name}]({name}.md)" if name else "no experiment"
        lines.append([f"`{what}`" if "=" in what else what, why, carried])
    return lines


def page() -> str:
    """Return index.md."""
    lines = []
    for name in STUDIES:
        study, data = importlib.import_module(f"docs.evidence.{name}"), load(name)
        verdict, figure = study.verdict(data["rows"])
        lines.append([study.CLAIM, f"**{verdict}**", figure, f"[{study.TITLE}]({name}.md)"])
    return filled(
        "index",
        claims=table(["claim", "verdict", "what was measured", "study"], lines),
        advice=ADVICE,
        defaults=table(["default", "why", "the experiment that carries it"], _defaults()),
        install=INSTALL,
        study=STUDIES[0],
        others=OTHERS,
    )


def main() -> None:
    """Write index.md."""
    argparse.ArgumentParser(prog="python -m docs.evidence.index", description=__doc__).parse_args()
    target: Path = FOLDER / "index.md"
    with whole_file(target) as file:
        file.write(page().encode())
    print(target)


if __name__ == "__main__":
    main()
