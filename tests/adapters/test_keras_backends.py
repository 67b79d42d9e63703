"""The Keras adapter on Keras' other backends: its tests once more, in a process for each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = ("tensorflow", "tensorflow_layers", "tensorflow_model", "transposed_tensorflow")
ALSO = ("audit_tensorflow", "waking_tensorflow", "tensorflow_tracing", "tensorflow_vanishing")
JAX, TORCH = [*NAMES, *ALSO], ["transposed_tensorflow", "audit_tensorflow", "waking_tensorflow"]


def passed(backend, names, *options):
    """How many tests of these files pass on a backend; none may fail."""
    files = [str(HERE / f"test_{name}.py") for name in names]
    environment = {
        "CI": "true",  # what a missing package leaves out is a failure
        "KERAS_BACKEND": backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of many tiny programs, each run once
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *files],
        cwd=HERE.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    said = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert said is not None, done.stdout[-1000:]
    return int(said[1])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("backend", "names", "least"), [("jax", JAX, 460), ("torch", TORCH, 100)], ids=["jax", "torch"]
)
def test_everything_passes_on(backend, names, least):
    assert passed(backend, names) >= least
