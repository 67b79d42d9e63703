"""What each process of test_checkpoints.py does: python ... RANK RANKS MEET FOLDER."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import idinit_ref_torch as irt

WIDTH = 256


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def sharded(ranks):
    """A model on a mesh of its own for each number of ranks: 2 x 2, else a line."""
    with torch.device("meta"):
        model = nn.Sequential(Block(), Block())
    if ranks == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        for block in model:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(block, mesh["tp"], plan)
        mesh = mesh["dp"]
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return model


def whole():
    model = nn.Sequential(Block(), Block())
    irt.init_(model, torch.zeros(1, WIDTH), eps=0.5)
    return model.state_dict()


def save(model, folder):
    irt.init_(model, torch.zeros(1, WIDTH), eps=0.5)
    dcp.save(get_model_state_dict(model), checkpoint_id=folder)


def load(model, folder):
    """Another mesh: every part is read from wherever it was written."""
    state = get_model_state_dict(model)
    for tensor in state.values():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local.fill_(9)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state)
    expected = whole()
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(full, expected[name]), name


if __name__ == "__main__":
    rank, ranks, meet, folder = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    there = Path(folder).exists()
    dist.barrier()
    (load if there else save)(sharded(ranks), folder)
    dist.barrier()
    dist.destroy_process_group()
    print("all is well")
