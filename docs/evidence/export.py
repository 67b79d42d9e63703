"""Time an export of Llama 3 8B beside `dd`, and write export.md.

    pip install -c constraints.txt .
    python -m docs.evidence.export --folder DIR        # 16 GB free there; ten minutes or so
    python -m docs.evidence.export --size small        # a try, which prints the page instead
    python -m docs.evidence.export --render            # writes the page from the old data

Run it on a machine that does nothing else. The two write in turn, each in its own process, into the
same folder, with a final fsync. The figures are the system's own account of each process.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import idinit_ref as ir
from docs.evidence._data import filled, kept, load, machine, save, table
from idinit_ref.files import assemble, file_plans, presets
from idinit_ref.files.bits import carrier
from idinit_ref.files.sources import Asked

BLOCK = 4 * 2**20
DTYPE = "bfloat16"
SHARD = 5 * 10**9  # bytes
SMALL, ROUNDS = 40, 3  # tensors; at least
GOAL, MEMORY, PLANNING = 1.3, 200, 2.0  # times dd, MB, seconds


class Run(NamedTuple):
    """The system's account of a process."""

    seconds: float
    user: float
    system: float
    peak: float  # MB


class Zeros(NamedTuple):
    """A tensor of zeros, where IDInit defines no values; it stands for one of another file."""

    shape: tuple[int, ...]
    dtype: str = DTYPE

    def read(self, index: tuple[slice, ...], dtype: str) -> np.ndarray:
        """Return a block."""
        spans = zip(index, self.shape, strict=True)
        return np.zeros([len(range(*span.indices(size))) for span, size in spans], carrier(dtype))


def whole(tensors: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """Return all values of a model: plans, zero biases, and zeros for the rest."""
    made = assemble({name: Asked(shape) for name, shape in tensors.items()}).values
    return {name: made.get(name, Zeros(shape)) for name, shape in tensors.items()}


def model(size: str) -> dict[str, object]:
    """Return Llama 3 8B, or a part of it."""
    tensors = presets.load("llama-3-8b").tensors
    if size == "small":
        tensors = dict(list(tensors.items())[:SMALL])
    return whole(tensors)


def large() -> dict[str, tuple[int, ...]]:
    """Return the 723 tensors of Llama 3 70B."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 8192)}
    for k in range(80):
        at = f"model.layers.{k}"
        for name, outputs in {"q": 8192, "k": 1024, "v": 1024, "o": 8192}.items():
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (outputs, 8192)
        for name in ("gate", "up"):
            shapes[f"{at}.mlp.{name}_proj.weight"] = (28672, 8192)
        shapes[f"{at}.mlp.down_proj.weight"] = (8192, 28672)
        shapes[f"{at}.input_layernorm.weight"] = (8192,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (8192,)
    return {**shapes, "model.norm.weight": (8192,), "lm_head.weight": (128256, 8192)}


def plan_large() -> dict[str, float]:
    """Time the plans of Llama 3 70B, with headers and index."""
    start = time.perf_counter()
    tensors = whole(large())
    files = file_plans("model.safetensors", tensors, dtype=DTYPE, shard_bytes=SHARD)
    seconds = time.perf_counter() - start
    return {
        "tensors": len(tensors),
        "bytes": sum(file.nbytes for file in files),
        "shards": len(files) - 1,
        "seconds": seconds,
    }


def run(command: list[str]) -> Run:
    """Run a command in a process of its own; it must succeed."""
    start = time.perf_counter()
    child = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        if command[0] == "dd"
        else [],
    )
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{shlex.join(command)} failed")
    return Run(seconds, used.ru_utime, used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def measure(size: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Let dd, the export, and the export with digests write in turn; return all figures."""
    file = folder / "model.safetensors"
    sizes = {
        name: file_plans(file, model(size), dtype=DTYPE, digests=digests)[0].nbytes
        for name, digests in (("export", False), ("export with digests", True))
    }
    count = round(sizes["export"] / BLOCK)
    sizes["dd"] = count * BLOCK
    export = [sys.executable, "-m", "docs.evidence.export", "--size", size, "--write", str(file)]
    commands = {
        "dd": ["dd", "if=/dev/zero", f"of={file}", "bs=4M", f"count={count}", "conv=fsync"],
        "export": export,
        "export with digests": [*export, "--digests"],
    }
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        names = list(commands)
        for name in names if number % 2 == 0 else reversed(names):
            os.sync()
            used = run(commands[name])
            wrong = file.stat().st_size != sizes[name]
            file.unlink()
            if wrong:
                raise SystemExit(f"{name} wrote a file of another size")
            rows.append({"writer": name, "round": number, **used._asdict()})
            print(f"{name}: {used.seconds:.1f} s, {used.peak:.0f} MB", file=sys.stderr)
    return {
        "size": size,
        "date": f"{date.today()}",
        "machine": f"{machine()}, {file_system(folder)}",
        "versions": f"Python {platform.python_version()}, NumPy {np.__version__}, "
        f"idinit-ref {ir.__version__}",
        "bytes": sizes["export"],
        "large": plan_large(),
        "rows": rows,
    }


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder is in."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(at), kind) for at, kind in mounts if folder.is_relative_to(at)]
    return max(inside)[1]


def page(data: dict[str, Any]) -> str:
    """Return export.md."""
    runs: dict[str, list[Run]] = {}
    for row in data["rows"]:
        runs.setdefault(row["writer"], []).append(Run(*(row[key] for key in Run._fields)))
    medians = {
        name: Run(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in runs.items()
    }
    ratios = {name: found.seconds / medians["dd"].seconds for name, found in medians.items()}
    rounds = [
        each.seconds / dd.seconds for each, dd in zip(runs["export"], runs["dd"], strict=True)
    ]
    peak = max(each.peak for name, found in runs.items() if name != "dd" for each in found)
    size, nbytes, large = data["size"], data["bytes"], data["large"]
    lines = []
    for name, found in medians.items():
        most = "" if name == "dd" else f"{max(one.peak for one in runs[name]):.0f} MB"
        lines.append([
            name, f"{found.seconds:.1f} s", f"{ratios[name]:.2f}",
            f"{nbytes / 1e6 / found.seconds:,.0f}", f"{found.user:.1f} s",
            f"{found.system:.1f} s", most,
            f"{', '.join(f'{one.seconds:.1f}' for one in runs[name])} s",
        ])  # fmt: skip
    head = ["writer", "median", "of dd", "MB/s", "user", "system", "peak memory", "each round"]
    return filled(
        "export",
        options="" if size == "full" else f" --size {size}",
        what="Llama 3 8B" if size == "full" else f"the first {SMALL} tensors of Llama 3 8B",
        dtype=DTYPE,
        nbytes=nbytes,
        table=table(head, lines),
        goal=GOAL,
        goal_kept=kept(ratios["export"] <= GOAL),
        ratio=ratios["export"],
        rounds=", ".join(f"{x:.2f}" for x in rounds),
        memory=MEMORY,
        memory_kept=kept(peak < MEMORY),
        peak=peak,
        digests=medians["export with digests"].seconds - medians["export"].seconds,
        planning=PLANNING,
        planning_kept=kept(large["seconds"] < PLANNING),
        tensors=large["tensors"],
        large=large["bytes"] / 1e9,
        shards=large["shards"],
        shard=SHARD / 1e9,
        seconds=large["seconds"],
        machine=data["machine"],
        versions=data["versions"],
        date=data["date"],
    )


def main() -> None:
    """Measure and write the page; or, as a process that is measured, write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", default=".", help="where to write (default: here)")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rounds < ROUNDS:
        parser.error(f"--rounds: a median of {args.rounds} says little; pass {ROUNDS} or more")
    if not Path(args.folder).is_dir():
        parser.error(f"--folder: {args.folder} is no folder; pass one with 16 GB free")
    if args.write:
        ir.save(args.write, model(args.size), dtype=DTYPE, digests=args.digests)
        return
    if args.render:
        data = load("export")
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            data = measure(args.size, args.rounds, Path(name).resolve())
    if data["size"] == "full":
        save("export", data, page(data))
    else:
        print(page(data))


if __name__ == "__main__":
    main()
