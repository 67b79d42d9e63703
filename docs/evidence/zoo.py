"""Every architecture at hand: does `init_` start it as the specification says?

    pip install -c constraints.txt -e ".[evidence,zoo]"
    python -m docs.evidence.zoo --jobs 2         # an hour or so; a stopped run goes on
    python -m docs.evidence.zoo --minutes 50     # and then the page of what there is
    python -m docs.evidence.zoo --quick --out F  # the sample that the tests run
    python -m docs.evidence.zoo --only 'torchvision/*' --out F
    python -m docs.evidence.zoo --render         # writes the page from the old data

Each model is made tiny and measured in a process of its own, with limits of time and memory. What
is measured stands in zoo.rows.jsonl, by the state of the code, until all is.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import datetime
import fnmatch
import functools
import importlib
import json
import math
import os
import platform
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from docs.evidence._data import FOLDER, code_digest, filled, load, machine, save
from docs.evidence._study import table
from docs.evidence._zoo_serve import SECONDS, served
from idinit_ref.files import whole_file

Row = dict[str, Any]

# Small and unlike one another: what the tests measure anew.
SAMPLE = (
    "albert", "bart", "beit", "bert", "bloom", "clip", "convnext", "cohere", "deberta-v2", "dinov2",
    "distilbert", "efficientnet", "electra", "falcon", "funnel", "gemma3_text", "gpt2", "gpt_neox",
    "granitemoe", "hubert", "layoutlm", "llama", "mamba", "mistral", "mixtral", "mobilenet_v2",
    "mpt", "olmo2", "opt", "phi", "poolformer", "qwen2_moe", "regnet", "resnet", "rwkv", "swin",
    "swinv2", "t5", "vit", "whisper",
)  # fmt: skip
VERDICTS = ("right", "wrong", "refused", "failed", "not built")  # each worse than the one before
FAULTS = ("missed", "vain", "false", "dead_matrices", "effects")


def prepare() -> None:
    """Import what models need, before processes are forked: it takes longer than most models."""
    for key, value in (
        ("KERAS_BACKEND", "tensorflow"),
        ("TF_CPP_MIN_LOG_LEVEL", "3"),
        ("TF_NUM_INTRAOP_THREADS", "1"),
        ("TF_NUM_INTEROP_THREADS", "1"),
    ):
        os.environ.setdefault(key, value)
    import torch

    from docs.evidence import _zoo_others

    torch.set_num_threads(1)
    _zoo_others.name_operators()
    warnings.simplefilter("ignore")
    import transformers
    from transformers.models.auto import modeling_auto  # noqa: F401 - for the processes

    import idinit_ref_torch  # noqa: F401 - likewise
    from docs.evidence import _zoo_build, _zoo_measure  # noqa: F401 - likewise

    transformers.logging.set_verbosity_error()
    measure("transformers/bert")  # what is imported late, too
    for name in ("keras", "keras_hub"):  # no operation before the fork: it would start threads
        if _zoo_others.installed(name):
            importlib.import_module(name)


def models() -> list[str]:
    """Return the names of all models, as family/name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from docs.evidence import _zoo_others

    return [*(f"transformers/{kind}" for kind in CONFIG_MAPPING_NAMES), *_zoo_others.names()]


def measure(model: str) -> Row:
    """Build and measure one model."""
    from docs.evidence import _zoo_build, _zoo_keras, _zoo_others

    family, _, name = model.partition("/")
    begin = time.process_time()
    try:
        if family == "flax":
            row = _zoo_others.flax(name)
        elif family in ("keras", "keras_hub"):
            row = _zoo_keras.measure(family, name)
        elif family == "transformers":
            row = _of_torch(*_zoo_build.build(name))
        else:
            row = _of_torch(*_zoo_others.build(family, name))
    except _zoo_build.CannotBuildError as problem:
        return {"verdict": "not built", "why": str(problem)}
    row["cpu_s"] = round(time.process_time() - begin, 2)
    return row


def _of_torch(model: Any, given: Any) -> Row:
    from docs.evidence._zoo_measure import judge

    inputs = list(given) if isinstance(given, dict) else ["image"]
    kept = copy.deepcopy(model)
    return {
        "class": type(model).__name__,
        "inputs": inputs,
        **judge(lambda: (copy.deepcopy(kept), copy.deepcopy(given))),
    }


# Running ------------------------------------------------------------------------------------------


ADAPTERS = {"keras": "tensorflow", "keras_hub": "tensorflow", "flax": "jax"}  # the others: torch


@functools.cache
def _source(family: str) -> str:
    """Return a digest of the code that measures a family, and of what it measures."""
    root = FOLDER.parents[1]
    adapter = f"adapters/idinit_ref_{ADAPTERS.get(family, 'torch')}"
    files = [*FOLDER.glob("_zoo*.py"), *FOLDER.glob("zoo.py")]
    files += [path for part in ("idinit_ref", adapter) for path in (root / part).rglob("*.py")]
    return code_digest(files)[:16]


def _code(model: str) -> str:
    return _source(model.partition("/")[0])


def _known(log: Path) -> dict[str, Row]:
    """Return what runs of the same code have measured; leave no other rows in the log."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        with contextlib.suppress(ValueError):  # cut off in the middle
            row = json.loads(line)
            if row.pop("code") == _code(row["model"]):
                found[row["model"]] = row
    with whole_file(log) as file:
        file.write("".join(map(_line, found.values())).encode())
    return found


def _line(row: Row) -> str:
    return json.dumps({**row, "code": _code(row["model"])}) + "\n"


def _last(model: str, page: dict[str, str]) -> int:
    """Order models: last those that took long or could not be built, as the old page says."""
    return {"failed": 1, "not built": 2}.get(page.get(model, ""), 0)


def versions() -> str:
    """Return what was installed."""
    found = []
    for name in (
        "torch",
        "transformers",
        "torchvision",
        "timm",
        "keras",
        "keras-hub",
        "flax",
        "idinit-ref",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return f"{', '.join(found)}, Python {platform.python_version()}"


def run(chosen: Sequence[str], log: Path, jobs: int, minutes: float = math.inf) -> list[Row]:
    """Measure models that the log does not know, and return the rows of all that it then knows."""
    known, page = _known(log), {}
    if (FOLDER / "zoo.json").exists():
        page = {row["model"]: row["verdict"] for row in load("zoo")["rows"]}
    todo = [model for model in chosen if model not in known]
    todo.sort(key=lambda model: _last(model, page))
    if known:
        print(f"goes on after {len(known)} models in {log}", file=sys.stderr)
    begin = time.monotonic()
    ending = begin + 60 * minutes
    for number, (model, row) in enumerate(served(todo, measure, jobs, ending=ending), 1):
        known[model] = {"model": model, **row}
        with log.open("a") as file:
            file.write(_line(known[model]))
        left = (time.monotonic() - begin) / number * (len(todo) - number) / 60
        bar = "#" * (20 * number // len(todo))
        end = "" if sys.stderr.isatty() else "\n"
        text = f"\rzoo [{bar:<20}] {number} of {len(todo)}, {left:.0f} minutes left  {model:<40}"
        print(text, end=end, file=sys.stderr, flush=True)
    return [known[model] for model in chosen if model in known]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the zoo and write its page."""
    parser = argparse.ArgumentParser(prog="python -m docs.evidence.zoo")
    parser.add_argument("--quick", action="store_true", help="the sample of the tests")
    parser.add_argument("--only", default="*", help="a pattern of names: 'transformers/qwen*'")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then write what there is")
    parser.add_argument("--out", type=Path, help="a folder for page and data")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} processes measure nothing; pass 1 or more")
    if (options.quick or options.only != "*") and options.out is None and not options.render:
        parser.error("a part is no page; say with --out FOLDER where it is to be")
    folder: Path = options.out or FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if options.render:
        data = load("zoo")
    else:
        prepare()
        every = [f"transformers/{kind}" for kind in SAMPLE] if options.quick else models()
        chosen = [model for model in every if fnmatch.fnmatchcase(model, options.only)]
        log = folder / "zoo.rows.jsonl"
        rows = run(chosen, log, options.jobs, options.minutes)
        data = {"date": f"{datetime.date.today()}", "machine": machine(), "versions": versions()}
        data |= {"of": len(models()), "rows": rows}
    save("zoo", data, page(data), folder)
    if not options.render and len(rows) == len(chosen):
        log.unlink()
    print(folder / "zoo.md")


# What the data say --------------------------------------------------------------------------------


def worse(row: Row, than: Row) -> str:
    """Say how a measurement is worse than an older one of the same model; "" if it is not."""
    if VERDICTS.index(row["verdict"]) > VERDICTS.index(than["verdict"]):
        return f"{row['verdict']} instead of {than['verdict']}: {row['why']}"
    for key in FAULTS:
        if len(row.get(key, ())) > len(than.get(key, ())):
            return (
                f"{key}: {', '.join(row[key])} instead of {', '.join(than.get(key, ())) or 'none'}"
            )
    return ""


def _share(rows: Sequence[Row]) -> str:
    ran = [row for row in rows if row["verdict"] in ("right", "wrong", "refused")]
    right = sum(row["verdict"] == "right" for row in ran)
    return f"{100 * right / len(ran):.1f} %" if ran else ""


def _part(measured: int, of: int, note: str = "") -> str:
    """Say what a page of a part is, and of which runs."""
    if measured == of:
        return ""
    text = f"**This page is of {measured:,} models of {of:,}; the others were not asked.** {note}"
    return f"\n{textwrap.fill(text, 100)}\n"


REASONS = {
    **dict.fromkeys(
        ("timm/efficientvim_m1", "timm/efficientvim_m2"),
        ": in a sum of heads of four depths the last is the branch of the others; the measurement"
        " asks for operands without a common weight",
    ),
    "timm/hgnet_small": ": a gate, whose sigmoid is saturated by activations of 2e4",
    "torchvision/ssdlite320_mobilenet_v3_large": ": its boxes match one place, where all that this"
    " layer reads is 0 behind ReLU6",
    "transformers/gemma3n_text": ": a weight that only makes a table of factors, for streams that"
    " are stacked, is kept",
    "transformers/pp_ocrv5_mobile_det": ": most wait behind hard sigmoids that are saturated",
    "transformers/sam": ": at this size the heads that make masks are two wide, behind ReLU",
    "transformers/superglue": ": it adds to a descriptor what it knows of the place, integers that"
    " the tape does not follow",
    "transformers/videomt": ": it adds what the last frame gave to learned queries; the measurement"
    " knows no skip that is not copied for the batch",
    "transformers/yoso": ": the arc cosine of a token's query and key, equal under identities, and"
    " so of a number rounded above 1",
}
"""What is known of models that are wrong, beside what was measured."""


def _reason(row: Row) -> str:
    text = f"{row['why']}{REASONS.get(row['model'], '')}".replace("|", "\\|").replace("`", "'")
    return text if len(text) < 340 else f"{text[:336]} ..."


def page(data: Row) -> str:
    """Return zoo.md."""
    rows = data["rows"]
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["model"].partition("/")[0], []).append(row)
    counts = []
    for family, of in families.items():
        held = collections.Counter(row["verdict"] for row in of)
        counts.append((family, len(of), *(held[name] for name in VERDICTS), _share(of)))
    faulty = [
        (row["model"], row.get("class", ""), row["verdict"], _reason(row))
        for row in rows
        if row["verdict"] in ("wrong", "refused", "failed")
    ]
    unbuilt: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "not built":
            unbuilt.setdefault(_kind(row["why"]), []).append(row["model"].partition("/")[2])
    why = [
        (reason, len(names), ", ".join(names[:6]) + (" ..." if len(names) > 6 else ""))
        for reason, names in sorted(unbuilt.items(), key=lambda item: -len(item[1]))
    ]
    measured = [row for row in rows if "adds" in row]
    adds, projections, zeros = (
        sum(row[key] for row in measured) for key in ("adds", "projections", "zeros")
    )
    return filled(
        "zoo",
        seconds=SECONDS,
        part=_part(len(rows), data["of"], data.get("note", "")),
        families=table(("family", "asked", *VERDICTS, "right of those that ran"), counts),
        adds=adds,
        zeros=zeros,
        projections=projections,
        faulty=table(("model", "class", "verdict", "why"), faulty) if faulty else "Nothing.\n",
        unbuilt=table(("what was said", "models", "as"), why) if why else "All were built.\n",
        models=len(rows),
        minutes=sum(row.get("cpu_s", 0) for row in rows) / 60,
        date=data["date"],
        machine=data["machine"],
        versions=data["versions"],
    )


def _kind(why: str) -> str:
    """Return what many errors have in common: the kind, or the size."""
    if why.endswith(" parameters"):
        return "too many parameters at a tiny size"
    return why.partition(":")[0].replace("|", " ")


if __name__ == "__main__":
    main()
