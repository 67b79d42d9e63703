"""Sharded models to checkpoints, each process its own part, and back on another mesh."""

from __future__ import annotations

from pathlib import Path

import pytest

from idinit_ref.files import inspect, open_checkpoint
from side_by_side import all_is_well

HERE = Path(__file__).parent
pytestmark = pytest.mark.nightly  # each time, in one process: tests/files/test_folders.py


def processes(ranks, tmp_path):
    script = HERE / "checkpoints_torch.py"
    meet = tmp_path / f"meet{len(list(tmp_path.iterdir()))}"
    commands = [(script, rank, ranks, meet, tmp_path / "dcp") for rank in range(ranks)]
    all_is_well(commands, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")


@pytest.mark.parametrize(
    ("ranks", "others"),
    [(2, None), (4, 2), (3, 4)],
    ids=["2", "4 to 2", "3 to 4"],
)
def test_each_process_of_pytorch_writes_its_part(tmp_path, ranks, others):
    import torch  # noqa: F401 - needed

    processes(ranks, tmp_path)
    opened = open_checkpoint(tmp_path / "dcp")
    kinds = {name: found.kind for name, _, found in inspect(opened)}
    assert kinds["0.up.weight"] == "idi"
    assert kinds["1.down.weight"] == "idiz"
    parts = [path.stat().st_size for path in (tmp_path / "dcp").glob("*.distcp")]
    assert len(parts) == ranks
    assert max(parts) < opened.nbytes / ranks + 100_000  # an even part, and what is around it
    if others is not None:
        processes(others, tmp_path)


def test_eight_devices_of_jax_write_their_parts(tmp_path):
    import orbax.checkpoint  # noqa: F401 - needed

    flags = "--xla_force_host_platform_device_count=8"
    all_is_well([(HERE / "checkpoints_jax.py", tmp_path)], XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
