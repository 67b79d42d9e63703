"""DTensors and FSDP2 in 2, 3 and 4 real processes, against the unsharded bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sharded_torch.py")


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_holds_its_part_of_the_same_bits(ranks, tmp_path):
    """Any placement, uneven, empty and in pieces; Partial refused; models; one training step."""
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), str(ranks), tmp_path / "meet"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]
    try:
        for process in running:
            out, said = process.communicate(timeout=300)
            assert out == "all is well\n", said[-3000:]
    finally:
        for process in running:
            process.kill()
            process.communicate()
