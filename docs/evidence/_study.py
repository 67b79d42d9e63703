"""Runs a study: measures its cells, keeps the results, and writes data, figure and page.

A study is a module of this folder with

    TITLE, CLAIM           a heading, and the claim in the words of its owners, with the source
    HERE                   how the study understands the claim; optional
    cells(quick, rows)     the cells to measure, given the rows so far; called until all are there
    measure(**cell)        one measurement: plain numbers, the same on each run on one machine
    verdict(rows)          holds, holds when ..., does not hold or not shown; and the figures
    page(rows)             the template templates/NAME.md.in, filled with tables and figures
    draw(rows, figure)     the picture, into a matplotlib figure
    check(rows)            asserts the direction of the result, not a lucky value

and is run by ``python -m docs.evidence.NAME``. A stopped run goes on if ``cells``, ``measure`` and
all that they use are the same; comments, docstrings and the other functions may change. A page of
old data needs the constants (rates, seeds, epochs) that NAME.json was measured with.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from docs.evidence._data import FOLDER, code_digest, filled, load, machine, save
from docs.evidence._data import table as table
from idinit_ref.files import whole_file

SHARED = ("_training", "_nets", "_baselines", "_decoder")
INSTALL = 'pip install -c constraints.txt -e ".[evidence]"'

Row = dict[str, Any]


class Verdict(NamedTuple):
    """The verdict, a claim a line, and its figures; "; " separates the bullets of the page.

    A claim "holds", "holds when ...", "does not hold" or is "not shown". What is judged stands
    before it, and a short reason in brackets after it: "8 blocks: not shown (p 0.07)".
    """

    holds: str
    figure: str


# What a study asks for ----------------------------------------------------------------------------


def need(module: str) -> Any:
    """Import a package of the studies; where it is missing, exit with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise SystemExit(f"{module} cannot be imported ({problem}); {INSTALL}") from problem


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values."""
    items = wanted.items()
    return [row for row in rows if items <= row.items()]


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN of nothing."""
    known = list(values)
    return statistics.fmean(known) if known else math.nan


def spread(values: Iterable[float], form: str = ".3f") -> str:
    """Return mean and standard deviation over seeds, as "0.912 ± 0.004"."""
    known = list(values)
    if len(known) < 2:
        return format(mean(known), form)
    return f"{mean(known):{form}} ± {statistics.stdev(known):{form}}"


def listed(numbers: Iterable[float]) -> str:
    """Return "0.1, 0.3, 1"."""
    return ", ".join(format(number, "g") for number in numbers)


def stands(ours: Sequence[float], others: Sequence[float]) -> str:
    """Return "ahead of" or "behind" if means differ by two standard errors, else "level with"."""
    if min(len(ours), len(others)) < 2:  # nothing is known of the error
        return "level with"
    errors = [statistics.variance(values) / len(values) for values in (ours, others)]
    difference = mean(ours) - mean(others)
    if abs(difference) <= 2 * math.sqrt(sum(errors)):
        return "level with"
    return "ahead of" if difference > 0 else "behind"


def beside(stood: Mapping[str, str], what: str) -> str:
    """Return the claims that `what` is better than other starts, from how it stands to each.

    Ahead of one it holds, behind it does not, and level with it is not shown. Most cases come
    first; of more than three that it is not ahead of, only the number is told.
    """
    words = {"ahead of": "holds", "level with": "not shown", "behind": "does not hold"}
    names = {way: [name for name, how in stood.items() if how == way] for way in words}
    lines = []
    for way in sorted(words, key=lambda way: -len(names[way])):
        if len(names[way]) == len(stood):
            return f"{what}: {words[way]}"
        others, last = ", ".join(names[way][:-1]), names[way][-1:]
        others = " or ".join(filter(None, [others, *last]))
        if way == "ahead of" and last:
            lines.append(f"{what}: holds when the other start is {others}")
        elif last:
            number = f"{len(names[way])} of {len(stood)} starts"
            others = number if len(names[way]) > 3 else others
            lines.append(f"{what}, beside {others}: {words[way]}")
    return "\n".join(lines)


class Effect(NamedTuple):
    """A mean difference of pairs; ± `half` is its interval of 95 %, by Student's t.

    `least` is the smallest effect that so many pairs of this scatter show four times of five.
    """

    value: float
    half: float
    least: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.value) > self.half

    def __str__(self) -> str:
        """Return "+0.012 ± 0.004"; if 0 is inside, also the least effect that would show.

        A small interval gets the decimals that it needs; without any scatter there is none.
        """
        if self.half < 1e-9:
            return f"{self.value:+.3f} in every pair{'' if self.shown else ', not shown'}"
        digits = max(3, -math.floor(math.log10(self.half))) if math.isfinite(self.half) else 3
        text = f"{self.value:+.{digits}f} ± {self.half:.{digits}f}"
        return text if self.shown else f"{text}, not shown (least seen {self.least:.{digits}f})"


def effect(ours: Sequence[float], others: Sequence[float]) -> Effect:
    """Return how far `ours` are above `others`; the two come in pairs, one for each seed."""
    pairs = [mine - other for mine, other in zip(ours, others, strict=True)]
    if len(pairs) < 2:
        return Effect(mean(pairs), math.inf, math.inf)
    free, special = len(pairs) - 1, need("scipy.special")
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    quantile = special.stdtrit(free, 0.975)  # of Student's t
    least = special.nctdtrinc(free, 0.2, quantile)  # whose noncentral t is below it once in five
    return Effect(mean(pairs), float(quantile) * error, float(least) * error)


def best_rate(rows: Iterable[Row], score: str) -> float:
    """Return the learning rate with the highest mean score; of equal ones the smallest."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row["rate"], []).append(row[score])
    return max(sorted(found), key=lambda rate: mean(found[rate]))


def swept(
    settings: Iterable[Row],
    rates: Sequence[float],
    rows: Sequence[Row],
    *,
    tune: Sequence[int],
    seeds: Sequence[int],
    score: str,
) -> list[Row]:
    """Return cells: each setting at each rate with the seeds ``tune``, the best rate with others.

    The rate is chosen and judged on different seeds, so that luck in the choice does not count.
    A measurement gives ``score``, the higher the better, and a finite one also where it diverged.
    """
    cells = []
    for setting in settings:
        tuning = [{**setting, "rate": rate, "seed": seed} for rate in rates for seed in tune]
        cells += tuning
        known = [row for row in pick(rows, **setting) if row["seed"] in tune]
        if len(known) == len(tuning):
            best = best_rate(known, score)
            cells += [{**setting, "rate": best, "seed": seed} for seed in seeds]
    return cells


def judged(rows: Iterable[Row], seeds: Sequence[int], **setting: Any) -> list[Row]:
    """Return the rows of a setting at its best rate, on the seeds that judge (:func:`swept`)."""
    return [row for row in pick(rows, **setting) if row["seed"] in seeds]


def at_ends(rows: Sequence[Row], keys: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the settings whose best rate is the first or last that was tried, and that rate."""
    found = []
    for setting in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        mine = pick(rows, **dict(zip(keys, setting, strict=True)))
        rates = sorted({row["rate"] for row in mine})
        best = judged(mine, seeds)[0]["rate"]
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            end = "lower" if best == rates[0] else "upper"
            found.append(f"{', '.join(map(str, setting))} ({best:g}, the {end} end)")
    return "; ".join(found) or "none"


# Measuring ----------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Return a value for JSON; a number has six digits."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a study measured {value}, which JSON has no number for; say None")
        return float(f"{value:.6g}")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _measure(job: tuple[str, Row]) -> tuple[Row, Row]:
    """Measure one cell, on one thread, so that results do not depend on the number of threads."""
    name, cell = job
    need("torch").set_num_threads(1)
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = importlib.import_module(f"docs.evidence.{name}").measure(**cell)
    row = {key: _plain(value) for key, value in found.items()}
    return cell, {**cell, **row, "cpu_s": round(time.process_time() - begin, 3)}


class MissingError(Exception):
    """A missing package, in a process of a pool: a pool does not report SystemExit."""


def _told(job: tuple[str, Row]) -> tuple[Row, Row]:
    try:
        return _measure(job)
    except SystemExit as problem:
        raise MissingError(problem.code) from None


def _measured(jobs: Sequence[tuple[str, Row]], workers: int) -> Iterator[tuple[Row, Row]]:
    """Yield measurements as they end; with several workers, from processes."""
    if workers == 1:
        yield from map(_measure, jobs)
    else:
        quiet = (signal.SIGINT, signal.SIG_IGN)  # the one that asked is told, and ends them
        with multiprocessing.get_context("spawn").Pool(workers, signal.signal, quiet) as pool:
            try:
                yield from pool.imap_unordered(_told, jobs)
            except MissingError as problem:
                raise SystemExit(str(problem)) from None


def _source(name: str) -> str:
    """Return a digest of the code that measures, and of the code that it calls."""
    root = FOLDER.parents[1]
    files = [FOLDER / f"{module}.py" for module in (name, *SHARED)]
    for package in (root / "idinit_ref", root / "adapters" / "idinit_ref_torch"):
        files += package.rglob("*.py")
    return code_digest(files, _machine()["versions"])


def _resume(log: Path, head: Row) -> list[tuple[Row, Row]]:
    """Return the measurements of a stopped run of the same code, and start the log with them."""
    lines = log.read_text().splitlines() if log.exists() else []
    known: list[tuple[Row, Row]] = []
    if lines and json.loads(lines[0]) == head:
        for line in lines[1:]:
            with contextlib.suppress(ValueError):  # cut off in the middle
                known.append(json.loads(line))
        print(f"goes on after {len(known)} measurements in {log}", file=sys.stderr)
    with whole_file(log) as file:
        file.write("".join(json.dumps(line) + "\n" for line in [head, *known]).encode())
    return known


def run(name: str, *, quick: bool, workers: int = 1, log: Path | None = None) -> list[Row]:
    """Measure all cells of a study but those in the log; return the rows in the cells' order."""
    study = importlib.import_module(f"docs.evidence.{name}")
    head = {"study": name, "quick": quick, "source": _source(name)}
    found = {json.dumps(cell): row for cell, row in (_resume(log, head) if log else [])}
    while True:
        cells = {json.dumps(cell): cell for cell in study.cells(quick, list(found.values()))}
        todo = [(name, cell) for key, cell in cells.items() if key not in found]
        if not todo:
            return [found[key] for key in cells]
        begin = time.monotonic()
        for number, (cell, row) in enumerate(_measured(todo, workers), 1):
            found[json.dumps(cell)] = row
            if log:
                with log.open("a") as file:
                    file.write(json.dumps([cell, row]) + "\n")
                left = (time.monotonic() - begin) / number * (len(todo) - number) / 60
                bar = "#" * (20 * len(found) // len(cells))
                _say(f"{name} [{bar:<20}] {len(found)} of {len(cells)}, {left:.1f} minutes left")
        if log:
            print(file=sys.stderr)


def _say(text: str) -> None:
    """Show progress: in a terminal on one line, in a file on a line for each measurement."""
    end = "" if sys.stderr.isatty() else "\n"
    print(f"\r{text:<78}" if not end else text, end=end, file=sys.stderr, flush=True)


# Writing ------------------------------------------------------------------------------------------


def _machine() -> Row:
    packages = ("numpy", "torch", "jax", "keras", "scikit-learn", "zero-init", "idinit-ref")
    return {
        "machine": machine(),
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in packages)
        + f", Python {platform.python_version()}",
    }


def settings(name: str) -> Row:
    """Return the constants of a study that JSON can hold, as JSON values; no texts."""
    found = {}
    for key, value in vars(importlib.import_module(f"docs.evidence.{name}")).items():
        if key.isupper() and key != "QUICK" and not isinstance(value, str):  # no words
            with contextlib.suppress(TypeError):  # what is made of functions
                found[key] = json.loads(json.dumps(value))
    return found


def page(name: str, data: Row) -> str:
    """Return a study's page, from its data alone."""
    now = settings(name)
    if other := [
        key for key in data["settings"] | now if data["settings"].get(key) != now.get(key)
    ]:
        raise SystemExit(
            f"{name}.json was measured with another {' and '.join(other)}; run the study again: "
            f"python -m docs.evidence.{name}"
        )
    study = importlib.import_module(f"docs.evidence.{name}")
    rows = data["rows"]
    holds, figure = study.verdict(rows)
    claims = holds.splitlines()
    said = f"**Verdict: {holds}.**"
    if len(claims) > 1:
        said = "\n".join(["**Verdict:**\n", *(f"* **{each}**" for each in claims), "\nFigures:"])
    minutes = sum(row["cpu_s"] for row in rows) / 60
    return filled(
        "study",
        title=study.TITLE,
        name=name,
        install=INSTALL,
        claim=" ".join([study.CLAIM, getattr(study, "HERE", "")]).strip(),
        verdict=said,
        figures="\n".join(f"* {each}" for each in figure.split("; ")),
        text=study.page(rows).strip(),
        count=len(rows),
        minutes=minutes,
        date=data["date"],
        machine=data["machine"],
        versions=data["versions"],
    )


def write(name: str, data: Row, folder: Path) -> Any:
    """Write a study's page, figure and data; each file appears when it is complete."""
    study = importlib.import_module(f"docs.evidence.{name}")
    matplotlib = need("matplotlib")
    matplotlib.use("svg")
    style = {"svg.hashsalt": name, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with matplotlib.rc_context(style):
        figure = need("matplotlib.figure").Figure(figsize=(8, 4), layout="constrained")
        study.draw(data["rows"], figure)
        with whole_file(folder / f"{name}.svg") as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
    save(name, data, page(name, data), folder)
    return figure


def main(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run the command of one study."""
    parser = argparse.ArgumentParser(prog=f"python -m docs.evidence.{name}")
    parser.add_argument("--quick", action="store_true", help="small, as in CI; writes to --out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, help="a folder for page, figure and data")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers: {options.workers} processes measure nothing; pass 1 or more")
    if options.quick and options.out is None:
        parser.error("--quick: its page is no evidence; say with --out FOLDER where it is to be")
    folder: Path = options.out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if options.render:
        data = load(name)
    else:
        need("matplotlib")
        log = folder / f"{name}.rows.jsonl"
        try:
            rows = run(name, quick=options.quick, workers=options.workers, log=log)
        except KeyboardInterrupt:
            raise SystemExit(f"\nstopped; the same command goes on from {log}") from None
        data = {"study": name, "quick": options.quick, "date": f"{datetime.date.today()}"}
        data |= {**_machine(), "settings": settings(name), "rows": rows}
    write(name, data, folder)
    if not options.render:
        log.unlink()
    print(folder / f"{name}.md")
    importlib.import_module(f"docs.evidence.{name}").check(data["rows"])
