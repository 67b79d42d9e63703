"""The first page of the evidence: what came out of each study, of their data alone."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from docs.evidence._data import FOLDER, load
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
    return f"""# Are the method's claims true, and when?

{table(["claim", "verdict", "what was measured", "study"], lines)}
Each study is one command; its page says how it was done, what the other methods do under the same
sweep, and what it cannot show. They are small: digits of 8 x 8 pixels, a text of some megabytes,
two CPU cores. What they show need not hold for larger ones. "Ahead" and "behind" are differences of
two standard errors; with five seeds each, about one in twelve pairs of equal methods would differ
so by chance, and only the study of the spread corrects for how many are asked for.

```
{INSTALL}
python -m docs.evidence.{STUDIES[0]}
python -m docs.evidence.index
```

A run that was stopped goes on where it was; `--quick --out FOLDER` runs what the tests run. The
same seeds give the same bits on the same machine; on another processor single runs differ.
[P] is arXiv 2503.04626, [S] is OpenReview qpeAhwxTopw.

{OTHERS}"""


def main() -> None:
    """Write index.md."""
    argparse.ArgumentParser(prog="python -m docs.evidence.index", description=__doc__).parse_args()
    target: Path = FOLDER / "index.md"
    with whole_file(target) as file:
        file.write(page().encode())
    print(target)


if __name__ == "__main__":
    main()
