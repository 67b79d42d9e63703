"""Eight devices in one process and in two: no collective, no copy of a weight, the same bits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded_jax.py")


@pytest.mark.parametrize("processes", [1, 2])
def test_each_device_makes_its_part_alone(processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(processes), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        for rank in range(processes)
    ]
    try:
        for process in running:
            out, said = process.communicate(timeout=300)
            assert out == "all is well\n", said[-3000:]
    finally:
        for process in running:
            process.kill()
            process.communicate()
