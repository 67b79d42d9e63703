"""Time weights beside zero fill and beside peers, and write docs/evidence/performance.md.

    pip install -c constraints.txt ".[benchmarks]"
    python tests/benchmarks/performance.py            # ten minutes at most, on an idle machine
    python tests/benchmarks/performance.py --quick    # a try of a minute, which prints the page

All in one process. The contestants of a group take turns in every round, in an order that is
shuffled anew; a ratio is that of two times of the same round, so that a slow moment hits both.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np

import idinit_ref as ir
from docs.evidence import _data
from idinit_ref.core.plan import strips

PAGE = _data.FOLDER / "performance.md"
FIGURE = PAGE.with_suffix(".svg")
PACKAGES = (
    "numpy", "torch", "jax", "keras", "tensorflow-cpu", "zero-init", "anyinit", "idinit-ref",
)  # fmt: skip
FIT_FROM = 26  # the slope is that of the times from 2**26 elements on: 256 MB and more
SMALLEST = 6

MOST = 10_000  # calls in a time

Contestants = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]
Curves = dict[str, dict[str, dict[int, float]]]


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int  # at least
    seconds: float  # more rounds until then, but at most ten times as many
    shortest: float  # what one time is to take; a shorter call is repeated
    largest: int  # cost over size goes up to 2**largest elements
    shrink: int = 1  # by how much every axis is divided


FULL = Effort(rounds=20, seconds=2.0, shortest=1e-2, largest=28)
QUICK = Effort(rounds=3, seconds=0.0, shortest=2e-4, largest=22)
TINY = Effort(rounds=2, seconds=0.0, shortest=0.0, largest=9, shrink=64)


class Claim(NamedTuple):
    """That ours takes at most `limit` times as long as another; None is no limit."""

    ours: str
    other: str
    limit: float | None


class Group(NamedTuple):
    """What takes turns: ways to make one weight."""

    library: str
    shape: tuple[int, ...]
    contestants: Callable[..., Contestants]
    claims: tuple[Claim, ...] = ()
    peers: tuple[Claim, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    needs: str | None = None  # a package that is not in the extra `dev`

    @property
    def weight(self) -> str:
        """The weight, in words."""
        words = [f"{key}={value}" for key, value in self.options.items()]
        return " ".join(["x".join(map(str, self.shape)), *words])

    @property
    def names(self) -> list[str]:
        """Who takes part."""
        pairs = ((claim.other, claim.ours) for claim in self.claims + self.peers)
        return list(dict.fromkeys(itertools.chain.from_iterable(pairs)))

    def start(self, shrink: int = 1) -> Contestants:
        """Make what is needed, and return all who could take part."""
        shape = tuple(max(size // shrink, 1) if size > 16 else size for size in self.shape)
        options = dict(self.options)
        if "groups" in options:
            options["groups"] = max(options["groups"] // shrink, 1)
        everyone = self.contestants(shape, **options)
        return {name: everyone[name] for name in self.names}


# The contestants ------------------------------------------------------------------------------


def torch_tensors(shape: tuple[int, ...], groups: int = 1, **options: Any) -> Contestants:
    """One parameter in memory that has been written before, filled by all in place."""
    import torch

    import idinit_ref_torch as irt

    weight = torch.nn.Parameter(torch.ones(shape))
    flat, gains = weight.detach(), itertools.count(2)
    options |= {"groups": groups}
    memory = flat.numpy().reshape(-1)
    entries = strips(ir.plan(shape, **options), memory.shape, flat.stride(), memory.dtype) or ()

    def floor() -> None:
        flat.zero_()
        for at, value in entries:
            memory[at] = value

    return {
        "zero_": flat.zero_,
        "(zero_, entries)": floor,
        "(nn.init.zeros_)": lambda: torch.nn.init.zeros_(weight),
        "idi_": lambda: irt.idi_(weight, **options),
        "idiz_": lambda: irt.idiz_(weight, **options),
        "idi_ (new gain)": lambda: irt.idi_(weight, gain=next(gains), **options),
        "eye_": lambda: torch.nn.init.eye_(weight),
        "dirac_": lambda: torch.nn.init.dirac_(weight, groups),
        "kaiming_normal_": lambda: torch.nn.init.kaiming_normal_(weight),
        "orthogonal_": lambda: torch.nn.init.orthogonal_(weight),
    }


def torch_in_turn(shape: tuple[int, ...]) -> Contestants:
    """Eight parameters, filled one after the other as in a model: caches do not hold them all."""
    every = [torch_tensors(shape) for _ in range(8)]

    def in_turn(name: str) -> Callable[[], None]:
        runs = [contestants[name] for contestants in every]

        def call() -> None:
            for run in runs:
                run()

        return call

    return {name: in_turn(name) for name in every[0]}


def one_torch_thread(shape: tuple[int, ...]) -> Contestants:
    """Make the same contestants, each of which has one thread of PyTorch's while it runs."""
    import torch

    threads = torch.get_num_threads()

    def alone(run: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            torch.set_num_threads(1)
            run()
            torch.set_num_threads(threads)

        return call

    return {name: alone(run) for name, run in torch_tensors(shape).items()}


def torch_layers(shape: tuple[int, ...]) -> Contestants:
    """One layer without a bias, and a model of that layer only."""
    import torch
    from zero_init import ZerO_Init

    import idinit_ref_torch as irt

    if len(shape) == 2:
        layer: torch.nn.Module = torch.nn.Linear(shape[1], shape[0], bias=False)
    else:
        layer = torch.nn.Conv2d(shape[1], shape[0], shape[2:], bias=False)
    model, sample = torch.nn.Sequential(layer), (1, shape[1])

    def analytic() -> None:
        import anyinit

        anyinit.initialize(model, "analytic", sample)

    return {
        "idi_layer_": lambda: irt.idi_layer_(layer),
        "idiz_layer_": lambda: irt.idiz_layer_(layer),
        "init_": lambda: irt.init_(model, torch.ones(sample)),
        "zero_init.ZerO_Init": lambda: ZerO_Init(layer),
        "anyinit.initialize": analytic,
    }


def numpy_arrays(shape: tuple[int, ...]) -> Contestants:
    """A new float32 array at every call."""

    def touched(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[:: 4096 // array.itemsize] += 0  # one entry of each page
        return array

    def fill() -> np.ndarray:
        array = np.empty(shape, np.float32)
        array.fill(0)
        return array

    return {
        "np.empty + fill": fill,
        "idi": lambda: ir.idi(shape, dtype=np.float32),
        "idiz": lambda: ir.idiz(shape, dtype=np.float32),
        "idi + touch": lambda: touched(ir.idi(shape, dtype=np.float32)),
        "idiz + touch": lambda: touched(ir.idiz(shape, dtype=np.float32)),
    }


def jax_arrays(shape: tuple[int, ...], **options: Any) -> Contestants:
    """A new float32 array of a compiled function at every call, ready when the clock stops."""
    import jax
    import jax.numpy as jnp

    import idinit_ref_jax as irj

    key = jax.random.key(0)

    def compiled(init: Callable[..., jax.Array]) -> Callable[[], jax.Array]:
        function = jax.jit(lambda key: init(key, shape, jnp.float32))
        return lambda: function(key).block_until_ready()

    peers = jax.nn.initializers
    return {
        "jnp.zeros": compiled(lambda key, shape, dtype: jnp.zeros(shape, dtype)),
        "idi()": compiled(irj.idi(**options)),
        "idiz()": compiled(irj.idiz(**options)),
        "orthogonal()": compiled(peers.orthogonal()),
        "delta_orthogonal()": compiled(peers.delta_orthogonal()),
    }


def keras_tensors(shape: tuple[int, ...]) -> Contestants:
    """A new float32 tensor at every call, made eagerly."""
    import keras

    import idinit_ref_tensorflow as irk

    made = {
        "Zeros()": keras.initializers.Zeros(),
        "IDI()": irk.IDI(),
        "IDIZ()": irk.IDIZ(),
        "Orthogonal()": keras.initializers.Orthogonal(seed=0),
    }
    return {name: lambda init=init: init(shape, "float32") for name, init in made.items()}


# The groups -----------------------------------------------------------------------------------


def against(other: str, limit: float | None, *ours: str) -> tuple[Claim, ...]:
    """Return a claim for each of ours."""
    return tuple(Claim(one, other, limit) for one in ours)


def peers(*others: str, ours: tuple[str, ...]) -> tuple[Claim, ...]:
    """Return what every pair claims: never slower."""
    return tuple(claim for other in others for claim in against(other, None, *ours))


def groups() -> Iterator[Group]:
    """Yield all groups."""
    matrices = ((4096, 4096), (8192, 2048), (2048, 8192))
    kernel, depthwise = (512, 512, 3, 3), (4096, 1, 3, 3)
    ours = ("idi_", "idiz_")
    others = peers("eye_", "kaiming_normal_", ours=ours)
    floor, bare = against("zero_", 1.10, *ours), against("zero_", None, "(zero_, entries)")
    for shape in matrices:
        yield Group("PyTorch", shape, torch_tensors, floor + bare, others)
    convs = peers("dirac_", "kaiming_normal_", ours=ours)
    floor = against("zero_", 1.25, *ours)
    yield Group("PyTorch", kernel, torch_tensors, floor + bare, convs)
    yield Group("PyTorch, 8 in turn", kernel, torch_in_turn, floor + bare)
    yield Group("PyTorch, one thread", kernel, one_torch_thread, floor + bare)
    options = {"groups": depthwise[0]}
    floor += bare + against("zero_", None, "(nn.init.zeros_)")
    yield Group("PyTorch", depthwise, torch_tensors, floor, convs, options)
    small = against("eye_", 5.0, *ours) + against("eye_", None, "idi_ (new gain)")
    others += peers("orthogonal_", ours=ours)
    yield Group("PyTorch", (16, 16), torch_tensors, small, others)
    yield Group("PyTorch", (16, 16, 3, 3), torch_tensors, (), convs)
    yield Group("PyTorch", (1024, 1024), torch_tensors, (), peers("orthogonal_", ours=ours))
    layers = ("idi_layer_", "idiz_layer_")
    for shape in ((4096, 4096), (1024, 512), (64, 64), kernel, (16, 16, 3, 3)):
        zero = peers("zero_init.ZerO_Init", ours=layers)
        yield Group("PyTorch layer", shape, torch_layers, (), zero)
    for shape in ((4096, 4096), (64, 64)):
        found = peers("anyinit.initialize", ours=(*layers, "init_"))
        yield Group("PyTorch model", shape, torch_layers, (), found, needs="anyinit")
    numpys = ("idi", "idiz", "idi + touch", "idiz + touch")
    for shape in (*matrices, kernel):
        yield Group("NumPy", shape, numpy_arrays, against("np.empty + fill", 1.10, *numpys))
    jaxs = ("idi()", "idiz()")
    zeros = against("jnp.zeros", 1.25, *jaxs)
    for shape in matrices:
        yield Group("JAX, jit", shape, jax_arrays, zeros)
    delta = peers("delta_orthogonal()", ours=jaxs)
    spread = against("jnp.zeros", 1.35, *jaxs)
    yield Group("JAX, jit", (3, 3, 512, 512), jax_arrays, spread)
    # Apart: behind a peer that takes 17 ms on all threads, every fill of 0.1 ms is slower.
    yield Group("JAX, jit", (3, 3, 512, 512), jax_arrays, (), delta)
    yield Group("JAX, jit", (8192, 2048), jax_arrays, zeros, options={"layout": "OI"})
    yield Group("JAX, jit", kernel, jax_arrays, spread, options={"layout": "OIHW"})
    for shape in ((1024, 1024), (16, 16)):
        yield Group("JAX, jit", shape, jax_arrays, (), peers("orthogonal()", ours=jaxs))
    kerases = ("IDI()", "IDIZ()")
    for shape in (*matrices, (3, 3, 512, 512)):
        yield Group("Keras", shape, keras_tensors, against("Zeros()", 1.5, *kerases))
    for shape in ((1024, 1024), (16, 16)):
        yield Group("Keras", shape, keras_tensors, (), peers("Orthogonal()", ours=kerases))


GROUPS = tuple(groups())


def sizes(largest: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield powers of two, each with a shape of so many elements."""
    for power in range(SMALLEST, largest + 1):
        yield power, (2 ** (power - power // 2), 2 ** (power // 2))


CURVES: dict[str, tuple[Callable[..., Contestants], tuple[str, ...]]] = {
    "PyTorch, in place": (torch_tensors, ("zero_", "idi_", "idiz_")),
    "NumPy, a new array": (numpy_arrays, ("np.empty + fill", "idi + touch", "idiz + touch")),
}


# The clock ------------------------------------------------------------------------------------


def once(run: Callable[[], Any], repeats: int) -> float:
    """Return the seconds that a call takes, results and their freeing included.

    After as many that are not counted: threads that slept through a peer's calls are awake then,
    and each has a core of its own again.
    """
    for _ in range(repeats):
        run()
    loop = itertools.repeat(None, repeats)
    start = time.perf_counter()
    for _ in loop:
        run()
    return (time.perf_counter() - start) / repeats


def measure(contestants: Contestants, effort: Effort, order: random.Random) -> Times:
    """Let contestants take turns, and return the times of each, round by round."""
    repeats = {}
    for name, run in contestants.items():
        # The call before the first time compiles, remembers a plan, touches memory.
        repeats[name] = min(math.ceil(effort.shortest / once(run, 1)) or 1, MOST)
        repeats[name] = min(math.ceil(effort.shortest / once(run, repeats[name])) or 1, MOST)
    times: Times = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for number in range(10 * effort.rounds):
            if number >= effort.rounds and time.perf_counter() - start > effort.seconds:
                break
            for name in order.sample(list(contestants), len(contestants)):
                times[name].append(float(f"{once(contestants[name], repeats[name]):.4g}"))
    finally:
        gc.enable()
    return times


class Ratio(NamedTuple):
    """Of two contestants' times in the same round: median and quartiles."""

    low: float
    median: float
    high: float


def ratio(upper: list[float], lower: list[float]) -> Ratio:
    """Return the quartiles of the rounds' ratios."""
    found = [a / b for a, b in zip(upper, lower, strict=True)]
    return Ratio(*statistics.quantiles(found, n=4, method="inclusive"))


def slope(curve: dict[int, float]) -> float | None:
    """Return the exponent of time over size at the large end, by least squares of logarithms."""
    large = {power: math.log2(seconds) for power, seconds in curve.items() if power >= FIT_FROM}
    if len(large) < 2:
        return None
    return statistics.linear_regression(*zip(*large.items(), strict=True)).slope


def run_groups(effort: Effort, chosen: tuple[Group, ...] = GROUPS) -> list[tuple[Group, Times]]:
    """Measure groups."""
    order, results = random.Random(0), []
    for group in chosen:
        times = measure(group.start(effort.shrink), effort, order)
        results.append((group, times))
        said = ", ".join(f"{n} {1e3 * statistics.median(t):.4g}" for n, t in times.items())
        print(f"{group.library} {group.weight}: {said} ms", file=sys.stderr)
    return results


def run_curves(effort: Effort) -> Curves:
    """Measure cost over size: for each title and contestant the median at each power of two."""
    order, curves = random.Random(1), {}
    for title, (make, names) in CURVES.items():
        found: dict[str, dict[int, float]] = {name: {} for name in names}
        for power, shape in sizes(effort.largest):
            everyone = make(shape)
            few = effort._replace(seconds=min(effort.seconds, 0.5))
            times = measure({name: everyone[name] for name in names}, few, order)
            for name in names:
                found[name][power] = statistics.median(times[name])
            print(f"{title} 2^{power}", file=sys.stderr)
        curves[title] = found
    return curves


# The page -------------------------------------------------------------------------------------


def plot(curves: Curves, file: Path) -> None:
    """Draw cost over size, both axes logarithmic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "performance", "svg.fonttype": "none", "font.size": 10}
    looks = (("#000000", "-", "o"), ("#0072B2", "--", "s"), ("#D55E00", ":", "^"))
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 4), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True)
        for panel, (title, found) in zip(panels, curves.items(), strict=True):
            for (name, curve), (colour, line, marker) in zip(found.items(), looks, strict=True):
                panel.plot(
                    [2**power for power in curve],
                    list(curve.values()),
                    color=colour,
                    linestyle=line,
                    marker=marker,
                    markersize=4,
                    fillstyle="none",
                    label=name,
                )
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_title(title)
            panel.set_xlabel("elements (float32, 4 bytes each)")
            panel.grid(alpha=0.3)
            panel.legend()
        panels[0].set_ylabel("time of one call (s)")
        figure.savefig(file, format="svg", metadata={"Date": None})
    file.write_text("\n".join(map(str.rstrip, file.read_text().splitlines())) + "\n")


def duration(times: list[float]) -> str:
    """Return a median in a unit that fits."""
    seconds = statistics.median(times)
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def number(value: float) -> str:
    """Return a ratio in three figures or more."""
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def limit_rows(results: list[tuple[Group, Times]]) -> Iterator[tuple[str, ...]]:
    """Yield a line for each claim that has a floor."""
    for group, times in results:
        for ours, other, limit in group.claims:
            got = ratio(times[ours], times[other])
            verdict = "" if limit is None else "kept" if got.median <= limit else "**NOT KEPT**"
            most = "none" if limit is None else f"{limit:.2f}"
            yield (*compared(group, times, ours, other, got), most, verdict)


def peer_rows(results: list[tuple[Group, Times]]) -> Iterator[tuple[str, ...]]:
    """Yield a line for each peer."""
    for group, times in results:
        for ours, other, _ in group.peers:
            got = ratio(times[other], times[ours])
            verdict = "faster" if got.low > 1 else "**SLOWER**" if got.high < 1 else "alike"
            yield (*compared(group, times, ours, other, got), verdict)


def compared(group: Group, times: Times, ours: str, other: str, got: Ratio) -> tuple[str, ...]:
    """Return the cells that both tables have: who, how long, and the ratio."""
    took = (duration(times[ours]), duration(times[other]))
    quartiles = f"{number(got.low)} to {number(got.high)}"
    return (group.library, group.weight, ours, other, *took, number(got.median), quartiles)


def curve_rows(curves: Curves) -> Iterator[tuple[str, ...]]:
    """Yield a line for each curve."""
    for title, found in curves.items():
        for name, curve in found.items():
            shown = (duration([curve[power]]) for power in shown_powers(curve))
            fitted = slope(curve)
            yield (title, name, *shown, "too small" if fitted is None else f"{fitted:.2f}")


def shown_powers(curve: dict[int, float]) -> list[int]:
    """Return the sizes that the table has."""
    first, last = min(curve), max(curve)
    return sorted({first, *range(first - first % 4 + 4, last, 4), last})


def machine() -> str:
    """Return processor, cores and memory in words."""
    file, name = Path("/proc/cpuinfo"), platform.processor()
    if file.exists():
        lines = [line for line in file.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(": ")[2] if lines else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{name}, {cores()} cores, {memory:.0f} GB of memory, {system}"


def cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version(package: str) -> str:
    """Return a package's version, without that of its build."""
    try:
        return f"{package} {importlib.metadata.version(package).partition('+')[0]}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (another build)"


def about(load: float, seconds: float, *, quick: bool) -> dict[str, Any]:
    """Return what the page says of the run."""
    import torch

    return {
        "machine": f"{machine()}; load average {load:.1f} when it began. "
        f"{date.today().isoformat()}, {seconds / 60:.1f} minutes.",
        "threads": f"PyTorch {torch.get_num_threads()}, NumPy 1, JAX and TensorFlow as many as "
        f"they like of {cores()} cores.",
        "versions": f"{', '.join(map(version, PACKAGES))}, Python {platform.python_version()}.",
        "quick": quick,
    }


def load() -> tuple[list[tuple[Group, Times]], Curves, dict[str, Any]]:
    """Return what the last run has measured."""
    data = _data.load("performance")
    curves = {
        title: {
            name: {int(power): t for power, t in curve.items()} for name, curve in found.items()
        }
        for title, found in data["curves"].items()
    }
    for group, row in zip(GROUPS, data["rows"], strict=True):
        found = row["library"], row["weight"], [*row["times"]]
        if found != (group.library, group.weight, group.names):
            raise SystemExit(f"performance.json has no {group.library} {group.weight} where it was")
    times = [row["times"] for row in data["rows"]]
    return list(zip(GROUPS, times, strict=True)), curves, data["about"]


def page(results: list[tuple[Group, Times]], curves: Curves, said: dict[str, Any]) -> str:
    """Return performance.md."""
    rounds = [len(next(iter(times.values()))) for _, times in results]
    limits, beside = list(limit_rows(results)), list(peer_rows(results))
    powers = shown_powers(next(iter(next(iter(curves.values())).values())))
    what = ["library", "weight", "ours"]
    return _data.filled(
        "performance",
        options=" --quick" if said["quick"] else "",
        machine=said["machine"],
        threads=said["threads"],
        versions=said["versions"],
        rounds=min(rounds),
        shortest=1e3 * FULL.shortest,
        limits=len(limits),
        missed=sum("NOT KEPT" in row[-1] for row in limits),
        limit_table=_data.table(
            [*what, "beside", "ours takes", "beside takes", "ratio", "quartiles", "limit", "it is"],
            limits,
        ),
        pairs=len(beside),
        slower=sum("SLOWER" in row[-1] for row in beside),
        peer_table=_data.table(
            [*what, "peer", "ours takes", "peer takes", "times faster", "quartiles", "ours is"],
            beside,
        ),
        first=f"2^{min(powers)} to 2^{max(powers)}",
        fit=FIT_FROM,
        curve_table=_data.table(
            ["library", "call", *(f"2^{power}" for power in powers), "slope"], curve_rows(curves)
        ).rstrip(),
    )


def main() -> None:
    """Measure, and write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a try, which prints the page instead")
    parser.add_argument("--render", action="store_true", help="write the page from the old data")
    args = parser.parse_args()
    if args.render:
        PAGE.write_text(page(*load()))
        return
    effort, busy, start = QUICK if args.quick else FULL, os.getloadavg()[0], time.perf_counter()
    results, curves = run_groups(effort), run_curves(effort)
    said = about(busy, time.perf_counter() - start, quick=args.quick)
    text = page(results, curves, said)
    if args.quick:
        print(text)
        return
    rows = [
        {"library": group.library, "weight": group.weight, "times": times}
        for group, times in results
    ]
    _data.save("performance", {"about": said, "curves": curves, "rows": rows}, text)
    plot(curves, FIGURE)


if __name__ == "__main__":
    main()
