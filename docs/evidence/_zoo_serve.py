"""One process a model: forked from one that has imported the frameworks, with limits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Row = dict[str, Any]

SECONDS = 180  # for one model
MEMORY = 12 << 30  # bytes of address space


def _child(work: Callable[[Any], Row], job: Any, pipe: int, seconds: int) -> None:
    """Measure one model, and write what came out; never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        row = work(job)
    except MemoryError:
        row = {"verdict": "failed", "why": "out of memory"}
    except BaseException as problem:  # whatever a model may raise; the process ends
        last = traceback.extract_tb(problem.__traceback__)[-1]
        text = f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]
        row = {"verdict": "failed", "why": f"{text} ({os.path.basename(last.filename)})"}
    data = json.dumps(row).encode()
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def served(
    jobs: Iterable[Any],
    work: Callable[[Any], Row],
    workers: int,
    seconds: int = SECONDS,
    ending: float = math.inf,
) -> Iterator[tuple[Any, Row]]:
    """Yield each job with what its process measured, as they end; begin none after `ending`.

    It is a time of `time.monotonic`; processes that still run then are stopped.
    """
    waiting = list(jobs)[::-1]
    running: dict[int, tuple[int, Any, float, list[bytes]]] = {}
    try:
        while (waiting or running) and time.monotonic() < ending:
            while waiting and len(running) < workers:
                job = waiting.pop()
                out, into = os.pipe()
                with warnings.catch_warnings():  # Python 3.12 warns of any thread in the parent
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if not pid:
                    os.close(out)
                    _child(work, job, into, seconds)
                os.close(into)
                running[out] = pid, job, time.monotonic(), []
            ready, _, _ = select.select(list(running), [], [], 1.0)
            for pipe in ready:
                part = os.read(pipe, 1 << 16)
                if part:
                    running[pipe][3].append(part)
                    continue
                pid, job, _, parts = running.pop(pipe)
                os.close(pipe)
                _, status = os.waitpid(pid, 0)
                yield job, _row(b"".join(parts), status, seconds)
            for pid, _, begin, _ in running.values():
                if time.monotonic() - begin > 3 * seconds:  # it waits, or others have the machine
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
    finally:
        for pid, *_ in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _row(data: bytes, status: int, seconds: int) -> Row:
    with contextlib.suppress(ValueError):
        found: Row = json.loads(data)
        return found
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return {"verdict": "failed", "why": f"it took more than {seconds} seconds"}
    return {"verdict": "failed", "why": f"its process ended with status {status}"}
