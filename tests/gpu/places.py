"""Where the checks run: a framework on a device, a GPU or (to prove the checks) the CPU."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FRAMEWORKS = ["torch", "cupy", "jax"]  # JAX last: it gives no memory back
UNTESTED = "nothing was tested on a GPU"


@dataclass(frozen=True)
class Place:
    """A framework on a device. Only what the CPU lacks differs: streams, graphs and events."""

    framework: str
    gpu: bool

    def __str__(self) -> str:
        return f"{self.framework} on {'a GPU' if self.gpu else self.instead}"

    @property
    def instead(self) -> str:
        return "numpy" if self.framework == "cupy" else "the CPU"

    @property
    def xp(self) -> Any:
        name = {"jax": "jax.numpy", "cupy": "cupy" if self.gpu else "numpy"}
        return importlib.import_module(name.get(self.framework, self.framework))

    @property
    def device(self) -> Any:
        """The device, as the framework names it."""
        if self.framework == "torch":
            return torch.device("cuda", 0) if self.gpu else torch.device("cpu")
        if self.framework == "jax":
            return importlib.import_module("jax").devices("gpu" if self.gpu else "cpu")[0]
        return self.xp.cuda.Device(0) if self.gpu else "cpu"

    def wait(self) -> None:
        """Wait for all that was asked of the device (JAX waits for arrays)."""
        if self.gpu and self.framework == "torch":
            torch.cuda.synchronize()
        elif self.gpu and self.framework == "cupy":
            self.xp.cuda.Device(0).synchronize()

    def busy(self) -> None:
        """Give the device some milliseconds of work, in which Python goes ahead of it."""
        if self.gpu and self.framework == "torch":
            torch.cuda._sleep(10_000_000)  # cycles
        elif self.gpu and self.framework == "cupy":
            work = self.xp.ones(2**26, dtype="float32")
            for _ in range(20):
                work *= 1

    @contextmanager
    def aside(self):
        """Work on a stream beside the main one, which is busy; then the main one waits for it."""
        if not self.gpu:
            yield
        elif self.framework == "torch":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.busy()  # what ran elsewhere would now come first
                yield
            torch.cuda.current_stream().wait_stream(side)
        else:
            main, side = self.xp.cuda.get_current_stream(), self.xp.cuda.Stream(non_blocking=True)
            side.wait_event(main.record())
            with side:
                self.busy()
                yield
            main.wait_event(side.record())

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        """Return what replays the device's part of some work, without its Python."""
        if not self.gpu:
            return Recorded.of(work) if self.framework == "torch" else work
        with self.aside():
            work()  # kernels are compiled and memory is got before
        self.wait()
        if self.framework == "torch":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
            return graph.replay
        stream = self.xp.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            work()
            graph = stream.end_capture()

        def replay() -> None:
            self.wait()
            graph.launch(stream)
            stream.synchronize()

        return replay

    def seconds(self, work: Callable[[], object]) -> float:
        """How long the device takes, by its events; for JAX until the result is there."""
        if self.framework == "jax":
            block = importlib.import_module("jax").block_until_ready
            start = time.perf_counter()
            block(work())
            return time.perf_counter() - start
        if not self.gpu:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        self.busy()
        if self.framework == "torch":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            work()
            stop.record()
            stop.synchronize()
            return start.elapsed_time(stop) / 1e3
        start, stop = (self.xp.cuda.Event() for _ in "ab")
        start.record()
        work()
        stop.record()
        stop.synchronize()
        return self.xp.cuda.get_elapsed_time(start, stop) / 1e3

    def default(self) -> Any:
        """JAX's way to say where new arrays lie."""
        if self.framework != "jax":
            return nullcontext()
        return importlib.import_module("jax").default_device(self.device)

    def describe(self) -> str:
        """The framework with its version, and the device."""
        module = importlib.import_module(self.framework if self.gpu else self.xp.__name__)
        version = getattr(module, "__version__", None) or importlib.import_module("jax").__version__
        if not self.gpu:
            return f"{self.framework}: {version} on {self.instead}"
        if self.framework == "torch":
            return f"torch {version} (CUDA {torch.version.cuda}), {torch.cuda.get_device_name(0)}"
        if self.framework == "jax":
            return f"jax {version}, {self.device.device_kind}"
        properties = module.cuda.runtime.getDeviceProperties(0)
        runtime = module.cuda.runtime.runtimeGetVersion()
        return f"cupy {version} (CUDA {runtime}), {properties['name'].decode()}"


class Recorded(TorchDispatchMode):
    """A CUDA graph for the CPU: notes each operation, and does them again on the same memory.

    As CUDA does, it refuses what would wait for the device or bring numbers from the host.
    """

    REFUSED = ("_local_scalar_dense", "nonzero", "_to_copy", "masked_select")

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # One number of the host is an argument of a kernel; an array of it would be copied.
        if name in self.REFUSED or (name == "lift_fresh" and args[0].ndim):
            raise RuntimeError(f"{func} is not permitted during a capture")
        self.noted.append((func, args, kwargs or {}))
        return func(*args, **kwargs or {})

    @classmethod
    def of(cls, work: Callable[[], object]) -> Callable[[], None]:
        with cls() as recorded:
            work()

        def replay() -> None:
            for func, args, kwargs in recorded.noted:
                func(*args, **kwargs)

        return replay


def why_not(framework: str) -> str | None:
    """Why a framework has no GPU here, or None where it has one."""
    try:
        module = importlib.import_module(framework)
    except ImportError as problem:
        return f"{framework} cannot be imported ({problem})"
    if framework == "torch":
        seen = torch.cuda.is_available() and torch.version.cuda
        return None if seen else f"torch {module.__version__} sees no CUDA device"
    if framework == "jax":
        try:
            module.devices("gpu")
        except RuntimeError:
            return f"jax {module.__version__} sees no GPU"
        return None
    try:
        module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as problem:
        return f"cupy {module.__version__} sees no CUDA device ({problem})"
    return None
