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
