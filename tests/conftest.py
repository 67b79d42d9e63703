"""What all tests share: profiles, samples of large grids, packages that may be missing, backends.

A test simply imports what it needs. Where that package is not installed the test is skipped, and
the reason names the package; with CI set it fails, so that green means tested. What asks for a
package in another way, as in a process of its own, is marked ``needs("torch")``.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hashlib
import importlib
import linecache
import re
import sys
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import jax_draws

for profile, examples in (("normal", 25), ("nightly", 400)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=bool(os.environ.get("CI")) and profile == "normal",
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile("normal")

# Packages that may be missing ---------------------------------------------------------------------

PACKAGES = {
    *("torch", "jax", "tensorflow", "keras", "flax", "equinox", "transformers", "torchvision"),
    *("accelerate", "haiku"),
    *("rich", "h5py", "safetensors", "ml_dtypes", "matplotlib", "array_api_strict", "dask"),
    *("orbax", "tensorstore", "sklearn", "zero_init", "anyinit", "selenium", "sphinx", "hatchling"),
}
"""Those of the extras; numpy, array-api-compat, hypothesis and pytest are always there."""


def left_out(package: str) -> str:
    return f'{package} is not installed: pip install -c constraints.txt -e ".[dev]"'


def absent(package: str) -> bool:
    """Whether a package is not installed; one that a test hides in `sys.modules` is installed."""
    return PathFinder.find_spec(package) is None


def missing(problem: BaseException | None) -> str | None:
    """Return the package whose absence is the cause of this exception, or None."""
    while problem is not None:
        package = (getattr(problem, "name", None) or "").partition(".")[0]
        if isinstance(problem, ImportError) and package in PACKAGES and absent(package):
            return package
        problem = problem.__cause__
    return None


def skip_if_missing(report: Any, call: Any, path: Any) -> None:
    """Turn a failure into a skip if a package is missing, unless CI is set."""
    package = missing(call.excinfo and call.excinfo.value)
    if report.failed and package and not os.environ.get("CI"):
        report.outcome, report.longrepr = "skipped", (str(path), 0, f"Skipped: {left_out(package)}")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    skip_if_missing(report, report.call, collector.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    report = yield
    skip_if_missing(report, call, item.path)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for package in filter(absent, mark.args):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(left_out(package))


# Names of cases ----------------------------------------------------------------------------------


def source_of(function: Any) -> str:
    """Return the text of a lambda's body."""
    places = [at for at in function.__code__.co_positions() if None not in at and at[3]]
    first = min((line, column) for line, _, column, _ in places if column)
    last = max((line, column) for _, line, _, column in places)
    text = ""
    for line in range(first[0], last[0] + 1):
        whole = linecache.getline(function.__code__.co_filename, line).encode()
        begin, end = (first[1] if line == first[0] else 0), (last[1] if line == last[0] else None)
        text += whole[begin:end].decode() + " "
    return text


def brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def pytest_make_parametrize_id(config: pytest.Config, val: Any, argname: str) -> str | None:
    """Name a case by the source of a lambda, or by a short list, tuple, dict or dtype."""
    if getattr(val, "__name__", "") == "<lambda>":
        return brief(source_of(val))
    if isinstance(val, (list, tuple, dict)) or type(val).__name__ in ("dtype", "DType"):
        text = repr(val)
        return None if " at 0x" in text else brief(text)
    return None


collect_ignore_glob = [  # scripts and models of tests, whose imports take long
    *("adapters/sharded_*.py", "adapters/checkpoints_*.py", "adapters/zoo_*.py"),
    *("benchmarks/performance.py", "gpu/trained.py", "gpu/bandwidth.py", "gpu/checks.py"),
]


# Samples ------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "of a test with more cases N run each time, and the others with -m nightly"
    parser.addoption("--cases", type=int, default=6, metavar="N", help=text)


COMPILED = re.compile(r"adapters.test_(\w+_)?(jax|tensorflow)")
"""Of grids in these files at most 2 cases run each time: each case compiles programs anew."""


def sample_size(item: pytest.Function) -> int:
    """Return how many cases of a test run each time; with -k all that it selects."""
    if item.config.getoption("keyword"):
        return sys.maxsize
    if (mark := item.get_closest_marker("cases")) is not None:
        return mark.args[0]
    few = 2 if COMPILED.search(str(item.path)) else 999
    return min(few, item.config.getoption("cases"))


def place_of(item: pytest.Function) -> tuple[bool, bytes]:
    """Return the place of a case in its grid: the first ones are the sample."""
    nightly = any(mark.name == "nightly" for mark in item.iter_markers())
    return nightly, hashlib.sha256(item.name.partition("[")[2].encode()).digest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as nightly what is beyond a sample of a large grid.

    The sample is drawn by a digest of the case's name: the same on every machine, and over all
    axes of the grid. Tests of the same cases draw the same ones, so what they share is built once.
    A test marked `every` runs all its cases, one marked `cases(n)` n of them; with -k all run.
    """
    grids: dict[tuple[str, str], list[pytest.Function]] = defaultdict(list)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if isinstance(item, pytest.Function) and ("cases" in marks or "every" not in marks):
            grids[(str(item.path), item.originalname)].append(item)
    for cases in grids.values():
        cases.sort(key=place_of)
        for item in cases[sample_size(cases[0]) :]:
            item.add_marker("nightly")


@dataclass(frozen=True)
class Backend:
    """A namespace to test, and how to reach it."""

    name: str
    module: str
    device: str | None = None
    jit: bool = False

    @property
    def xp(self) -> Any:
        return importlib.import_module(self.module)

    def dtype(self, name: str) -> Any:
        """The namespace's dtype of that name, or None where it has none."""
        if self.module in ("numpy", "dask.array"):
            if name == "bfloat16":
                return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
            return np.dtype(name)
        return getattr(self.xp, name, None)

    def at(self) -> Any:
        if self.device is None:
            return None
        return self.xp.Device(self.device)

    def call(self, make: Any) -> Any:
        """Run `make()`, under jit where this backend says so."""
        return importlib.import_module("jax").jit(make)() if self.jit else make()

    def numpy(self, array: Any) -> np.ndarray:
        """The array's own bits as NumPy; bfloat16 as uint16."""
        if self.module == "torch":
            torch = self.xp
            if array.dtype == torch.bfloat16:
                return array.view(torch.uint16).numpy()
            return array.numpy()
        if self.name == "array-api-strict-device":
            array = array.to_device(self.xp.Device("CPU_DEVICE"))
        out = np.asarray(array)
        return out.view(np.uint16) if out.dtype.name == "bfloat16" else out


BACKENDS = [
    Backend("numpy", "numpy"),
    Backend("array-api-strict", "array_api_strict"),
    Backend("array-api-strict-device", "array_api_strict", device="device1"),
    Backend("torch", "torch"),
    Backend("jax", "jax.numpy"),
    Backend("jax-jit", "jax.numpy", jit=True),
    Backend("dask", "dask.array"),
]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


@pytest.fixture
def x64():
    """JAX, where it is installed, with float64, and back."""
    if absent("jax") and not os.environ.get("CI"):
        yield
        return
    jax = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# Random numbers of JAX ----------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _jax_draws_by_numpy(request):
    """In the adapters' tests only: JAX compiles a program for each shape that it draws."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name == "adapters" and request.path.parent.parent.name == "tests":
            jax_draws.patched(patch)
        yield


@pytest.fixture(autouse=True, scope="module")
def _jax_compiles_in_haste(request):
    """Each time, not nightly, in the tests of models: a program there runs once or twice."""
    each_time = request.config.option.markexpr == "not nightly"
    if not (each_time and re.search(r"adapters.test_(jax_\w+|\w+_jax)\.py", str(request.path))):
        yield
        return
    jax = importlib.import_module("jax")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
