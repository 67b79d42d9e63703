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

# A question of docs/choices.md, the default, its reason, and what supports it, if anything does.
DEFAULTS = (
    ("a wide weight, m < n", "wide = truncate; in `init_` a weight that would leave a part of a "
     "concatenation unread is folded", "theorems T2 and T4", ""),
    ("how a kernel becomes a matrix", "taps = outward", "theorem T14", "convolution"),
    ("transposed kernels", "their phases", "theorem T15: the layer upsamples", ""),
    ("which tap is the identity", "that of the layer's padding", "theorem T14", ""),
    ("epsilon's second entry", "at m + (i mod (n - m)) for m < n, else (i + 1) mod n",
     "rows sum to 0", ""),
    ("a wide IDIZ, n >= 2m", "form = pair", "what the texts say; theorems T10 and T11; no other "
     "form is shown to be better", "symmetry"),
    ("IDIZ with n = 1", "the sign alternates", "two entries in one place would cancel", ""),
    ("the size of eps", "eps = 1e-06", "what the texts say", "epsilon"),
    ("gain per activation", "gain = 1", "theorem T6: with ReLU a gain of sqrt(2) doubles in every "
     "layer", ""),
    ("loosening", "loosen = 0", "always the same bits; the rank needs copies told apart", "rank"),
    ("where the noise goes", "loosen_at = all", "the texts differ; no difference is shown",
     "symmetry"),
    ("norms that end a branch", "norms = keep", "the model's own scales stay; the study "
     "contradicts this: in it zero is better", "heads"),
    ("what stands inside a branch", "identities", "what the texts say; the study contradicts "
     "this in two nets of nine: random orthogonal weights are better", "identity"),
    ("heads", "head = transit", "the rule for roles; theorem T16; zero is worse, for keep no "
     "difference is shown", "heads"),
    ("embeddings", "embeddings = keep", "the texts do not define a start for them", ""),
    ("biases", "biases = auto", "biases whose values have a meaning keep them", ""),
    ("roles", "from the computation", "R1 and R2 of the rule, measured on each model", "zoo"),
)  # fmt: skip


def _defaults() -> list[list[str]]:
    """Return the lines of the table of defaults."""
    return [
        [question, default, why, f"[{name}]({name}.md)" if name else "none"]
        for question, default, why, name in DEFAULTS
    ]


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
        defaults=table(["question", "default", "why", "experiment"], _defaults()),
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
