"""Fill memory of a GPU beside the same framework's zeros and copies; write docs/evidence/gpu.md.

    python tests/gpu/bandwidth.py

First the checks of checks.py run; a page is written only if all of them hold. Without a GPU the
page says so and holds no figures, unless it has some already: then it stays as it is.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the frameworks share a GPU
sys.path += map(str, Path(__file__).resolve().parents[1:3])

import idinit_ref as ir
import idinit_ref_jax as irj
import idinit_ref_torch as irt
from docs.evidence._data import FOLDER, filled, kept, load, save, table
from gpu import checks
from gpu.places import FRAMEWORKS, UNTESTED, Place, why_not

GIB = 2**30
SIZES = [1 * GIB, 4 * GIB, 16 * GIB]
ROUNDS, GOAL = 20, 0.95
FILLS = [("idi", (1, 1), "transit"), ("idiz", (4, 1), "zero")]  # square, and four times as tall
INSTALL = 'pip install -c constraints.txt -e ".[dev]" "jax[cuda13]" "cupy-cuda13x[ctk]"'


class Size(NamedTuple):
    """What was measured for one size."""

    nbytes: int
    seconds: dict[str, list[float]]


def sizes(shape: tuple[int, int], nbytes: int) -> tuple[int, int]:
    """A float32 matrix of so many bytes, with sides in that proportion."""
    rows, columns = shape
    unit = round((nbytes // 4 / (rows * columns)) ** 0.5)
    return rows * unit, columns * unit


class Work:
    """The memory of one size, and what is done with it: ``calls`` by name."""

    def __init__(self, place: Place, nbytes: int):
        self.place, xp = place, place.xp
        shapes = {name: sizes(shape, nbytes) for name, shape, _ in FILLS}
        self.nbytes = 4 * shapes["idi"][0] * shapes["idi"][1]
        self.calls: dict[str, Callable[[], Any]]
        if place.framework == "jax":
            self.calls = in_jax(place, shapes)
            return
        if place.framework == "torch":
            import torch

            flat = torch.ones(self.nbytes // 4, device=place.device)
            other = torch.ones_like(flat)
            zero, copy = flat.zero_, lambda: flat.copy_(other)
        else:
            flat = xp.ones(self.nbytes // 4, dtype=xp.float32)
            other = xp.ones_like(flat)
            zero, copy = lambda: flat.fill(0), lambda: xp.copyto(flat, other)
        self.calls = {"zero": zero}
        for name, _, role in FILLS:
            weight = flat.reshape(shapes[name])
            plan = ir.plan(shapes[name], role)
            self.calls[name] = filling(place, flat, weight, plan)
        self.calls["copy"] = copy

    def filled(self, name: str) -> Any:
        """What a call leaves behind."""
        return self.calls[name]()


def filling(place: Place, flat: Any, weight: Any, plan: ir.Plan) -> Callable[[], Any]:
    """An in-place fill, as a user writes it."""
    if place.framework == "torch":
        verb = {"transit": irt.idi_, "zero": irt.idiz_}[plan.role]
        return lambda: verb(weight)

    def fill() -> Any:
        flat.fill(0)
        plan.write(flat)
        return weight

    return fill


def in_jax(place: Place, shapes: dict[str, tuple[int, int]]) -> dict[str, Callable[[], Any]]:
    """JAX has no memory to fill in place: new arrays, from compiled programs."""
    import jax
    import jax.numpy as jnp

    out: dict[str, Callable[[], Any]] = {}
    with place.default():
        given = jax.block_until_ready(jnp.ones(shapes["idi"], jnp.float32))
        programs = {"zero": lambda: jnp.zeros(shapes["idi"], jnp.float32)}
        for name, _, role in FILLS:
            init = {"transit": irj.idi, "zero": irj.idiz}[role](layout="OI")
            shape = shapes[name]
            programs[name] = lambda init=init, shape=shape: init(None, shape, jnp.float32)
        for name, program in programs.items():
            out[name] = jax.jit(program).lower().compile()
        copy = jax.jit(jnp.copy).lower(given).compile()
    out["copy"] = lambda: copy(given)
    return out


def measure(place: Place, nbytes: int, rounds: int = ROUNDS) -> Size:
    """Time zeros, fills and copies in turn, each round in the other order."""
    work = Work(place, nbytes)
    took: dict[str, list[float]] = {name: [] for name in work.calls}
    for call in work.calls.values():
        place.seconds(call)  # kernels are compiled and memory is got before
    for number in range(rounds):
        names = list(work.calls)
        for name in names if number % 2 == 0 else reversed(names):
            place.wait()
            took[name].append(place.seconds(work.calls[name]))
    return Size(work.nbytes, took)


def free(place: Place) -> None:
    """Give the memory of a size back."""
    if place.framework == "torch" and place.gpu:
        import torch

        torch.cuda.empty_cache()
    if place.framework == "cupy" and place.gpu:
        place.xp.get_default_memory_pool().free_all_blocks()


def fitting(place: Place) -> list[Size]:
    """Measure what fits: a size takes its own memory twice."""
    found = []
    for nbytes in SIZES:
        try:
            found.append(measure(place, nbytes))
        except Exception as problem:  # each framework has its own error for too little memory
            if "memory" not in str(problem).lower() and "RESOURCE_EXHAUSTED" not in str(problem):
                raise
            print(f"{place}: {nbytes / GIB:g} GiB do not fit", file=sys.stderr)
            break
        finally:
            free(place)
    return found


def gathered(found: list[tuple[Place, list[Size]]], missing: dict[str, str]) -> dict[str, Any]:
    """Return what the page is made of."""
    return {
        "date": f"{date.today()}",
        "machine": f"{platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, idinit-ref {ir.__version__}",
        "missing": missing,
        "rows": [
            {
                "place": place.describe(),
                "framework": place.framework,
                "checks": len(checks.CHECKS[place.framework]),
                "nbytes": size.nbytes,
                "seconds": size.seconds,
            }
            for place, measured in found
            for size in measured
        ],
    }


def page(data: dict[str, Any]) -> str:
    """Return gpu.md."""
    rows = data["rows"]
    if not rows:
        return filled("gpu", install=INSTALL, results=filled("gpu_none"), missing=_missing(data))
    head = operator.itemgetter("place", "framework", "checks")
    places = [_place(*key, [*measured]) for key, measured in itertools.groupby(rows, head)]
    found = filled(
        "gpu_found",
        places="\n".join(places),
        rounds=len(rows[0]["seconds"]["zero"]),
        goal=GOAL,
        machine=data["machine"],
        date=data["date"],
    )
    return filled("gpu", install=INSTALL, results=found, missing=_missing(data))


def _missing(data: dict[str, Any]) -> str:
    """Return a line for each framework that was not run on a GPU."""
    missing = {**data["missing"], "tensorflow": "there are no checks for it"}
    return "\n".join(f"* {name}: not run on a GPU: {why}" for name, why in missing.items())


def _place(place: str, framework: str, count: int, measured: list[dict[str, Any]]) -> str:
    """Return the section of a framework on a GPU."""
    lines = []
    for size in measured:
        medians = {name: statistics.median(took) for name, took in size["seconds"].items()}
        for name, median in medians.items():
            speed = medians["zero"] / median
            lines.append([
                f"{size['nbytes'] / GIB:.3g} GiB", name, f"{median * 1e3:.3f} ms",
                f"{size['nbytes'] / median / 1e9:,.0f}", f"{speed:.3f}",
                kept(speed >= GOAL) if name.startswith("idi") else "",
            ])  # fmt: skip
    how = "The calls fill memory in place. Events of the device measure them; Python runs ahead."
    if framework == "jax":
        how = (
            "Compiled programs make new arrays. The time is wall-clock, until the arrays are ready."
        )
    head = ["float32", "call", "median", "GB/s written", "of zero's speed", "goal"]
    return f"## {place}\n\nAll {count} checks of `tests/gpu/checks.py` hold. {how}\n\n" + table(
        head, lines
    )


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(arguments)
    missing = {name: reason for name in FRAMEWORKS if (reason := why_not(name)) is not None}
    places = [Place(name, gpu=True) for name in FRAMEWORKS if name not in missing]
    if not places and (FOLDER / "gpu.json").exists() and load("gpu")["rows"]:
        raise SystemExit(f"{UNTESTED}: {'; '.join(missing.values())}. gpu.md keeps its figures")
    if any(place.framework == "jax" for place in places):
        import jax

        jax.config.update("jax_enable_x64", True)  # the checks have float64 too
    for place in places:
        for check in checks.CHECKS[place.framework]:
            check(place)
            print(f"{place}: {check.__name__} holds", file=sys.stderr)
    data = gathered([(place, fitting(place)) for place in places], missing)
    save("gpu", data, page(data), FOLDER)
    print(page(data))


if __name__ == "__main__":
    main()
