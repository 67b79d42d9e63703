"""One `backend` fixture over all namespaces; one that cannot load fails, it is never skipped."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hashlib
import importlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick",
    max_examples=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("quick")

CASES = 16
"""Of a test with more cases, this many run each time, and the others with `-m nightly`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as nightly what is beyond a sample of a large grid.

    The sample is drawn by a digest of the case's name: the same on every machine, and over all
    axes of the grid. A test marked `every` runs all its cases.
    """
    grids: dict[tuple[str, str], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and not item.get_closest_marker("every"):
            grids[(str(item.path), item.originalname)].append(item)
    for cases in grids.values():
        cases.sort(key=lambda item: hashlib.sha256(item.name.encode()).digest())
        for item in cases[CASES:]:
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
    """JAX with float64, and back."""
    jax = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
