"""Train the transformer of docs/evidence/identity.py at width 768 on a GPU; write JSON.

    python tests/gpu/trained.py OUT.json [--minutes 7] [--toy]

Each start tries three rates for half the steps, and runs with three seeds at the best. What does
not fit into the minutes is left out and named in the file. `--toy` is for the CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path += map(str, Path(__file__).resolve().parents[1:3])

import torch

from docs.evidence import _decoder, _study, identity

FULL = {"width": 768, "layers": 12, "heads": 12, "context": 256, "batch": 32, "steps": 300}
TOY = {"width": 32, "layers": 1, "heads": 4, "context": 16, "batch": 4, "steps": 12}
RATES, TUNE, SEEDS = (3e-4, 1e-3, 3e-3), 100, (0, 1, 2)
STARTS = identity.FIRST


def train(size: dict[str, int], start: str, rate: float, seed: int, device: str) -> dict[str, Any]:
    """Train once, with products in bfloat16 on a GPU."""
    sizes = {key: size[key] for key in ("width", "layers", "heads", "context")}
    model = identity.transformer(start, seed, **sizes).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    low = torch.autocast(device, torch.bfloat16) if device == "cuda" else nullcontext()
    begin, tuning = time.monotonic(), seed == TUNE
    with low:
        found = _decoder.learn(
            model,
            optimiser,
            steps=size["steps"] // 2 if tuning else size["steps"],
            batch=size["batch"],
            context=size["context"],
            seed=seed,
            tuning=tuning,
        )
    return {
        "start": start,
        "rate": rate,
        "seed": seed,
        **found,
        "seconds": round(time.monotonic() - begin, 2),
    }


def run(size: dict[str, int], device: str, minutes: float) -> dict[str, Any]:
    """Train in the order of worth until the time is over."""
    limit = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    left = []
    for start in STARTS:  # rates first: without them nothing can be judged
        for rate in RATES:
            if time.monotonic() < limit:
                rows.append(train(size, start, rate, TUNE, device))
                print(rows[-1], file=sys.stderr)
    for seed in SEEDS:
        for start in STARTS:
            known = [row for row in rows if row["start"] == start and row["seed"] == TUNE]
            if len(known) < len(RATES) or time.monotonic() > limit:
                left.append(f"{start}, seed {seed}")
                continue
            rows.append(train(size, start, _study.best_rate(known, "score"), seed, device))
            print(rows[-1], file=sys.stderr)
    name = torch.cuda.get_device_name(0) if device == "cuda" else "the CPU, at toy size"
    return {"device": name, "size": size, "left out": left, "rows": rows}


def main(arguments: list[str] | None = None) -> None:
    """Train, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=7)
    parser.add_argument("--toy", action="store_true")
    options = parser.parse_args(arguments)
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --toy runs a small size on the CPU")
    device = "cpu" if options.toy else "cuda"
    data = run(TOY if options.toy else FULL, device, options.minutes)
    options.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
