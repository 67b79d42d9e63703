"""Time an export of Llama 3 8B beside `dd`, and write what comes out to export.md beside this file.

    pip install -c constraints.txt .
    python docs/evidence/export.py --folder DIR        # 16 GB free there; ten minutes or so
    python docs/evidence/export.py --size small        # a try, which prints the page instead

On a machine that does nothing else. The two write in turn, each with a final fsync, into the same
folder, as processes of their own; what the system says of each process is what the page has.
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
from typing import NamedTuple

import numpy as np

import idinit_ref as ir
from idinit_ref import presets, rules
from idinit_ref.export import layout_of
from idinit_ref.storage import carrier

PAGE = Path(__file__).with_suffix(".md")
BLOCK = 4 * 2**20
DTYPE = "bfloat16"
SMALL = 40  # tensors
GOAL, MEMORY, PLANNING = 1.3, 200, 2.0  # times dd, MB, seconds


class Run(NamedTuple):
    """What the system said of a process."""

    seconds: float
    user: float
    system: float
    peak: float  # MB


class Zeros(NamedTuple):
    """A tensor in the place of what IDInit does not define: of another file, in its dtype."""

    shape: tuple[int, ...]
    dtype: str = DTYPE

    def read(self, index: tuple[slice, ...], dtype: str) -> np.ndarray:
        """Return a block."""
        spans = zip(index, self.shape, strict=True)
        return np.zeros([len(range(*span.indices(size))) for span, size in spans], carrier(dtype))


def whole(tensors: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """Return what is written for a model: plans, zero biases, and the rest as from a file."""
    made = rules.plans(tensors)
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


def plan_large() -> str:
    """Decide all of Llama 3 70B, with headers and index, and say what it took."""
    start = time.perf_counter()
    tensors = whole(large())
    files = layout_of("model.safetensors", tensors, dtype=DTYPE, shard_bytes=5 * 10**9)
    seconds = time.perf_counter() - start
    total = sum(file.nbytes for file in files)
    return (
        f"{len(tensors)} tensors of Llama 3 70B, {total / 1e9:.1f} GB in {len(files) - 1} shards "
        f"of at most 5 GB: plans, headers and index take {seconds:.2f} s"
    )


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


def measure(size: str, rounds: int, folder: Path) -> tuple[int, dict[str, list[Run]]]:
    """Let dd, the export, and the export with digests write in turn; return bytes and runs."""
    file = folder / "model.safetensors"
    sizes = {
        name: layout_of(file, model(size), dtype=DTYPE, digests=digests)[0].nbytes
        for name, digests in (("export", False), ("export with digests", True))
    }
    count = round(sizes["export"] / BLOCK)
    sizes["dd"] = count * BLOCK
    export = [sys.executable, __file__, "--size", size, "--write", str(file)]
    commands = {
        "dd": ["dd", "if=/dev/zero", f"of={file}", "bs=4M", f"count={count}", "conv=fsync"],
        "export": export,
        "export with digests": [*export, "--digests"],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(rounds):
        names = list(commands)
        for name in names if number % 2 == 0 else reversed(names):
            os.sync()
            runs[name].append(run(commands[name]))
            wrong = file.stat().st_size != sizes[name]
            file.unlink()
            if wrong:
                raise SystemExit(f"{name} wrote a file of another size")
            last = runs[name][-1]
            print(f"{name}: {last.seconds:.1f} s, {last.peak:.0f} MB", file=sys.stderr)
    return sizes["export"], runs


def file_system(folder: Path) -> str:
    """Return the kind of the file system that a folder is in."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(at), kind) for at, kind in mounts if folder.is_relative_to(at)]
    return max(inside)[1]


def page(size: str, nbytes: int, runs: dict[str, list[Run]], kind: str) -> str:
    """Return export.md."""
    medians = {
        name: Run(*(statistics.median(column) for column in zip(*found, strict=True)))
        for name, found in runs.items()
    }
    ratios = {name: found.seconds / medians["dd"].seconds for name, found in medians.items()}
    rounds = [
        each.seconds / dd.seconds for each, dd in zip(runs["export"], runs["dd"], strict=True)
    ]
    peak = max(each.peak for name, found in runs.items() if name != "dd" for each in found)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    start = time.perf_counter()
    planning = plan_large()
    took = time.perf_counter() - start

    def verdict(good: bool) -> str:
        return "kept" if good else "NOT KEPT"

    what = "Llama 3 8B" if size == "full" else f"A try, the first {SMALL} tensors of Llama 3 8B,"
    lines = [
        "# How fast is an export, and how much memory does it take?",
        "",
        "Written by its command, not by hand, on a machine that did nothing else:",
        "",
        "```",
        "pip install -c constraints.txt .",
        f"python docs/evidence/export.py{'' if size == 'full' else ' --size ' + size}",
        "```",
        "",
        f"{what} in {DTYPE}, {nbytes:,} bytes, is written by `ir.save`",
        "into one `.safetensors` file: IDI and IDIZ for the dense weights, zeros for the embedding",
        "and the normalisation. Beside it `dd if=/dev/zero bs=4M conv=fsync` writes as much. They",
        "take turns; each is a process of its own, start and imports included, with a final fsync.",
        "",
        "| | median | of dd | MB/s | user | system | peak memory | each round |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in medians.items():
        each = ", ".join(f"{one.seconds:.1f}" for one in runs[name])
        most = "" if name == "dd" else f"{max(one.peak for one in runs[name]):.0f} MB"
        lines.append(
            f"| {name} | {found.seconds:.1f} s | {ratios[name]:.2f} | "
            f"{nbytes / 1e6 / found.seconds:,.0f} | {found.user:.1f} s | {found.system:.1f} s | "
            f"{most} | {each} s |"
        )
    digests = medians["export with digests"].seconds - medians["export"].seconds
    lines += [
        "",
        f"* At most {GOAL} times the time of dd: **{verdict(ratios['export'] <= GOAL)}** "
        f"({ratios['export']:.2f}; round by round {', '.join(f'{x:.2f}' for x in rounds)}).",
        f"* Under {MEMORY} MB, whatever the model: **{verdict(peak < MEMORY)}** ({peak:.0f} MB, "
        "Python and NumPy included).",
        f"* A SHA-256 of every tensor (`digests=True`) makes a difference of {digests:+.1f} s;",
        "  another thread makes it while the same bytes are written.",
        f"* Under {PLANNING:.0f} s: **{verdict(took < PLANNING)}**.",
        f"  {planning}.",
        "",
        f"Machine: {os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory, {kind}, "
        f"{platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, NumPy {np.__version__}, idinit-ref {ir.__version__}; "
        f"{date.today().isoformat()}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page; or, as a process that is measured, write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".", help="where to write (default: here)")
    parser.add_argument("--write", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--digests", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        ir.save(args.write, model(args.size), dtype=DTYPE, digests=args.digests)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name).resolve()
        kind = file_system(folder)
        text = page(args.size, *measure(args.size, args.rounds, folder), kind)
    if args.size == "full":
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
