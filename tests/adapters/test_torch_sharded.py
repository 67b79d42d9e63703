"""DTensors and FSDP2 in 2, 3 and 4 real processes, against the unsharded bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from side_by_side import all_is_well

SCRIPT = Path(__file__).with_name("sharded_torch.py")
MORE = [pytest.param(ranks, marks=pytest.mark.nightly) for ranks in (3, 4)]


@pytest.mark.parametrize("ranks", [2, *MORE])
def test_every_rank_holds_its_part_of_the_same_bits(ranks, tmp_path):
    """Any placement, uneven, empty and in pieces; Partial refused; models; one training step."""
    commands = [(SCRIPT, rank, ranks, tmp_path / "meet") for rank in range(ranks)]
    all_is_well(commands, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
