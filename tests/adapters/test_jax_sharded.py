"""Eight devices in one process and in two: no collective, no copy of a weight, the same bits."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from side_by_side import all_is_well

SCRIPT = Path(__file__).with_name("sharded_jax.py")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_each_device_makes_its_part_alone(processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    commands = [(SCRIPT, rank, processes, port) for rank in range(processes)]
    all_is_well(commands, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
