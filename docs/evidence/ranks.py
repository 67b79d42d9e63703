"""Plan a Llama of 70B parameters for 1 to 1024 ranks; write time and memory to ranks.md.

    pip install -c constraints.txt -e ".[dev]"
    python -m docs.evidence.ranks               # ten minutes or so, 5 GB of memory
    python -m docs.evidence.ranks --size small  # a try, which prints the page instead
    python -m docs.evidence.ranks --render      # writes the page from the old data

Run it on a machine that does nothing else. Each rank is a process. PyTorch's fake process group
tells it which of how many ranks it is. No other rank exists, so ranks cannot communicate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode, _clear_sharding_prop_cache
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

import idinit_ref as ir
import idinit_ref_torch as irt
from docs.evidence._data import filled, kept, load, machine, save, table
from idinit_ref_torch._sharded import parts
from idinit_ref_torch._tensor import write_

RANKS = [2**k for k in range(11)]
TENSOR = 8  # ranks in a group of tensor parallelism
SECONDS, MEMORY = 10, 1000  # for one rank's plan; MB
REAL = 5e9  # bytes: parts up to this size are filled here, too
CUT = {"q": 0, "k": 0, "v": 0, "gate": 0, "up": 0, "o": 1, "down": 1}  # the axes of the tensor cuts
FULL = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
SMALL = {**FULL, "hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 1792}
SIZES = {"full": FULL, "small": SMALL}


def llama(sizes: dict[str, int], rank: int = 0, meshes: tuple[int, int] | None = None):
    """Return the model without memory; on a mesh (data, tensor), this rank's part of it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
    if meshes is None:
        return model
    dist.init_process_group("fake", rank=rank, world_size=meshes[0] * meshes[1], store=FakeStore())
    mesh = init_device_mesh("cpu", meshes, mesh_dim_names=("data", "tensor"))
    if meshes[1] > 1:
        styles = (ColwiseParallel, RowwiseParallel)
        cuts = {
            f"{'mlp' if len(name) > 1 else 'self_attn'}.{name}_proj": styles[dim]()
            for name, dim in CUT.items()
        }
        for layer in model.model.layers:
            parallelize_module(layer, mesh["tensor"], cuts)
        parallelize_module(model, mesh["tensor"], {"lm_head": ColwiseParallel()})
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh["data"])
    return model


def initialise(model) -> ir.Report:
    """Decide and check everything, and write this rank's parts if they have memory."""
    return irt.init_(model, {"input_ids": torch.zeros(1, 8, dtype=torch.long, device="meta")})


def megabytes(kind: str) -> float:
    """Return the resident memory: now (VmRSS), or the peak of this program (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) * 1024 / 1e6


def one_rank(sizes: dict[str, int], rank: int, meshes: tuple[int, int]) -> dict[str, float]:
    """Plan one rank's parts and, where they are small enough, fill them."""
    model = llama(sizes, rank, meshes)
    before, start = megabytes("VmRSS"), (time.perf_counter(), time.process_time())
    report = initialise(model)
    parameters = dict(model.named_parameters())
    pieces = [
        (plan, index) for name, plan in report.plans.items() for _, index in parts(parameters[name])
    ]
    seconds, processor = time.perf_counter() - start[0], time.process_time() - start[1]
    peak = megabytes("VmHWM")
    filled = {name: parameters[name].to_local() for name in report.plans}
    out = {
        "seconds": seconds,
        "processor": processor,
        "peak": peak,
        "before": before,
        "pieces": len(pieces),
        "bytes": sum(part.numel() * part.element_size() for part in filled.values()),
        "entries": sum(plan.entries(index)[0].size for plan, index in pieces),
    }
    if out["bytes"] <= REAL:
        model.to_empty(device="cpu")
        parameters, took = dict(model.named_parameters()), []
        for _ in range(4):  # the first one also gets its memory from the system
            start = time.perf_counter()
            with torch.no_grad():
                for name, plan in report.plans.items():
                    write_(parameters[name], plan)
            took.append(time.perf_counter() - start)
        out["real"] = statistics.median(took[1:])
    return out


def bandwidth() -> float:
    """Return the bytes that `zero_` writes in a second, into memory that was written before."""
    memory, took = torch.ones(2**29, dtype=torch.bfloat16), []
    for _ in range(20):
        start = time.perf_counter()
        memory.zero_()
        took.append(time.perf_counter() - start)
    return memory.nbytes / statistics.median(took)


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().view(torch.uint16).numpy()).hexdigest()


def place(whole: torch.Tensor, name: str, rank: int, meshes: tuple[int, int]) -> torch.Tensor:
    """Return the place of a rank's part in a weight, by torch.chunk alone."""
    data, tensor = divmod(rank, meshes[1])
    kind = name.split(".")[-2].removesuffix("_proj")
    if meshes[1] > 1:
        whole = whole.chunk(meshes[1], {**CUT, "lm_head": 0}[kind])[tensor]
    found = whole.chunk(meshes[0])
    return found[data] if data < len(found) else whole[:0]


def simulate(sizes: dict[str, int], all_meshes: list[tuple[int, int]]) -> dict[str, object]:
    """Let every rank fill its parts of one layer and the head, one after the other."""
    sizes = {**sizes, "num_hidden_layers": 1}
    model = llama(sizes).to_empty(device="cpu")
    parameters, names = dict(model.named_parameters()), list(initialise(model).plans)
    expected = {name: digest(parameters[name]) for name in names}
    with torch.no_grad():
        for meshes in all_meshes:
            for name in names:
                parameters[name].fill_(7)
            for rank in range(meshes[0] * meshes[1]):
                mine = llama(sizes, rank, meshes).to_empty(device="cpu")
                held = dict(mine.named_parameters())
                for name in names:
                    held[name].to_local().fill_(9)
                with CommDebugMode() as sent:
                    initialise(mine)
                if sent.get_total_counts():
                    raise SystemExit(f"rank {rank} of {meshes} communicated")
                for name in names:
                    local = held[name].to_local()
                    place(parameters[name], name, rank, meshes).copy_(local)
                dist.destroy_process_group()
                _clear_sharding_prop_cache()  # it knows meshes by their sizes, not by the rank
            wrong = [name for name in names if digest(parameters[name]) != expected[name]]
            if wrong:
                raise SystemExit(f"on {meshes} other bits than unsharded: {', '.join(wrong)}")
    return {
        "weights": len(names),
        "bytes": sum(parameters[name].nbytes for name in names),
        "digest": hashlib.sha256("".join(expected.values()).encode()).hexdigest(),
    }


def measure(size: str, ranks: list[int], many: int) -> dict[str, Any]:
    """Measure the first and the last of each number of ranks; simulate all of `many`."""
    rows: list[dict[str, Any]] = []
    data = {
        "size": size,
        "date": f"{date.today()}",
        "machine": machine(),
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"transformers {transformers.__version__}, idinit-ref {ir.__version__}",
        "speed": bandwidth(),
        "many": many,
        "rows": rows,
    }
    for tensor in (1, TENSOR):
        for count in (count for count in ranks if count >= tensor):
            meshes = (count // tensor, tensor)
            for rank in sorted({0, count - 1}):
                rows.append({"data": meshes[0], "tensor": tensor, "rank": rank})
                rows[-1] |= ask(size, rank, meshes)
                print(json.dumps(rows[-1]), file=sys.stderr)
    data["meshes"] = [(many, 1), (many // TENSOR, TENSOR)]
    data["whole"] = run(["--simulate", json.dumps(data["meshes"])], size)
    return data


def page(data: dict[str, Any]) -> str:
    """Return ranks.md."""
    size, many, both, whole = (data[key] for key in ("size", "many", "meshes", "whole"))
    rows, slowest = [], 0.0
    grouped: dict[tuple[int, int], list[dict[str, float]]] = {}
    for row in data["rows"]:
        grouped.setdefault((row["data"], row["tensor"]), []).append(row)
    for meshes, found in grouped.items():
        keys = found[0].keys() | found[-1].keys()
        most = {key: max(each.get(key, 0) for each in found) for key in keys}
        if math.prod(meshes) == many:
            slowest = max(slowest, most["seconds"])
        real = f"{most['real']:.3f} s" if "real" in most else ""
        rows.append([
            math.prod(meshes), f"{meshes[0]} x {meshes[1]}", f"{most['seconds']:.1f} s",
            f"{most['processor']:.1f} s", f"{most['peak']:.0f} MB",
            f"{most['peak'] - most['before']:.0f} MB", f"{most['pieces']:.0f}",
            f"{most['entries']:,.0f}", f"{most['bytes'] / 1e9:.3f} GB",
            f"{most['bytes'] / data['speed']:.3f} s", real,
        ])  # fmt: skip
    peak = max(row["peak"] for row in data["rows"])
    head = ["ranks", "data x tensor", "plan", "its CPU", "resident", "of it `init_`", "parts"]
    return filled(
        "ranks",
        options="" if size == "full" else f" --size {size}",
        what="Llama 3 70B" if size == "full" else "a small Llama",
        tensor=TENSOR,
        speed=data["speed"] / 1e9,
        real=REAL / 1e9,
        table=table([*head, "entries", "bytes", "on paper", "here"], rows),
        many=many,
        limit=SECONDS,
        plan_kept=kept(slowest < SECONDS),
        slowest=slowest,
        memory=MEMORY / 1000,
        memory_kept=kept(peak < MEMORY),
        peak=peak,
        meshes=" and of ".join(f"{a} x {b}" for a, b in both),
        weights=whole["weights"],
        nbytes=whole["bytes"],
        digest=whole["digest"][:32],
        machine=data["machine"],
        versions=data["versions"],
        date=data["date"],
    )


def run(arguments: list[str], size: str) -> dict[str, Any]:
    """Run this file in another process, and return the JSON that it prints."""
    command = [sys.executable, "-m", "docs.evidence.ranks", "--size", size, *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def ask(size: str, rank: int, meshes: tuple[int, int]) -> dict[str, float]:
    """Measure one rank in another process."""
    return run(["--rank", str(rank), "--meshes", json.dumps(meshes)], size)


def main() -> None:
    """Measure and write the page; or, as a process that is measured, be one rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    for hidden in ("--rank", "--meshes", "--simulate"):
        parser.add_argument(hidden, type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # more would wait for one another on a machine that has other work
    if args.simulate is not None:
        print(json.dumps(simulate(SIZES[args.size], list(map(tuple, args.simulate)))))
    elif args.rank is not None:
        print(json.dumps(one_rank(SIZES[args.size], args.rank, tuple(args.meshes))))
    elif args.size == "small" and not args.render:
        print(page(measure("small", [1, 8, 16], 16)))
    else:
        data = load("ranks") if args.render else measure("full", RANKS, 64)
        save("ranks", data, page(data))


if __name__ == "__main__":
    main()
