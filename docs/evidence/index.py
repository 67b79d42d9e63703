"""The first page of the evidence: the verdict of each study, computed from its data."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from docs.evidence import wider
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
    "wider",
)

# A default, its reason, and the page or study that supports it, if there is one.
DEFAULTS = (
    ("gain 1", "theorem T6: with ReLU a gain of sqrt(2) doubles in every layer", ""),
    ("wide = truncate", "theorems T2 and T4", ""),
    ("taps = outward", "theorem T14", "convolution"),
    ("the identity tap of the layer", "theorem T14", ""),
    ("form = pair", "what the texts say; theorems T10 and T11", "symmetry"),
    ("eps = 1e-6", "what the texts say", "epsilon"),
    ("loosen = 0", "always the same bits; the rank needs copies told apart", "rank"),
    ("loosen_at = all", "the texts differ", "symmetry"),
    ("head = transit", "the rule for roles; theorem T16", "heads"),
    ("norms = keep", "the model's own scales stay", "heads"),
    ("embeddings = keep", "the texts do not define a start for them", ""),
    ("biases = auto", "biases with a meaning keep their values; audits of real models", "real"),
    ("roles from the computation", "R1 and R2 of the rule, measured on each model", "zoo"),
)


def _defaults() -> list[list[str]]:
    """Return the lines of the table of defaults."""
    lines = []
    for what, why, name in DEFAULTS:
        carried = f"[{name}]({name}.md)" if name else "none"
        lines.append([f"`{what}`" if "=" in what else what, why, carried])
    return lines


def page() -> str:
    """Return index.md."""
    lines = []
    wide = wider.verdicts(load("wider")["rows"])
    for name in STUDIES:
        study, data = importlib.import_module(f"docs.evidence.{name}"), load(name)
        verdict, _ = study.verdict(data["rows"])
        found = [f"**{'; '.join(verdict.splitlines())}**"]
        for claim, (words, _) in wide.items():
            if claim.partition(",")[0] == name:
                found.append(f"[again](wider.md), **{'; '.join(words.splitlines())}**")
        lines.append([study.CLAIM, "; ".join(found), f"[{name}]({name}.md)"])
    return filled(
        "index",
        claims=table(["claim", "verdict", "study"], lines),
        defaults=table(["default", "why", "experiment"], _defaults()),
        install=INSTALL,
        study=STUDIES[0],
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
