"""What each of N processes checks (test_torch_sharded.py): python sharded_torch.py N FILE."""

from __future__ import annotations

import itertools
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry, TensorMeta
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import idinit_ref as ir
import idinit_ref_torch as irt

SHAPES = [(7, 5), (3, 10), (1, 4), (6, 0), (8, 8)]
KERNELS = [
    ((6, 4, 3, 3), {"groups": 2}),
    ((6, 4, 4), {"layout": "IOW", "transposed": True, "stride": (2,), "tap": (1,)}),
]


def local_part(whole, mesh, placements):
    """What this rank should hold, cut by the placements' own splitting, one after the other."""
    for placement, ranks, rank in zip(placements, mesh.shape, mesh.get_coordinate(), strict=True):
        if not placement.is_replicate():
            pieces, _ = placement._split_tensor(whole, ranks, with_padding=False, contiguous=True)
            whole = pieces[rank]
    return whole


def weights(mesh, step):
    """Placements, or pairs of them, even and uneven, with parts that are empty or in pieces."""
    kinds = [Replicate(), Shard(0), Shard(1), _StridedShard(0, split_factor=2)]
    kinds.append(_StridedShard(1, split_factor=3))
    made = [(shape, {}) for shape in SHAPES] + KERNELS
    pairs = itertools.product(kinds, repeat=mesh.ndim)
    cases = itertools.product(pairs, made, ("transit", "zero"))
    for placements, (shape, options), role in itertools.islice(cases, 0, None, step):
        if role == "zero":
            how, more = irt.idiz_, {**options, "eps": 0.5}
        else:
            how, more = irt.idi_, {**options, "loosen": 0.25, "seed": 3}
        whole = how(torch.empty(shape), **more)
        local = torch.full_like(local_part(whole, mesh, placements), 9.0)
        sharded = DTensor.from_local(
            local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )
        assert how(sharded, **more) is sharded
        expected = local_part(whole, mesh, placements)
        assert torch.equal(sharded.to_local(), expected), (placements, shape, role)
        if not any(hasattr(placement, "split_factor") for placement in placements):
            assert torch.equal(sharded.full_tensor(), whole), (placements, shape, role)


def refused(mesh):
    """The same error on every rank, with nothing written."""
    mine = torch.ones(4, 4)
    partial = DTensor.from_local(mine, mesh, [Partial()] * mesh.ndim)
    wrong = DTensor.from_local(
        mine, mesh, [Shard(0)] * mesh.ndim, run_check=False, shape=(100, 4), stride=(4, 1)
    )
    gathered = [distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)] * mesh.ndim) for _ in "ab"]
    beyond = DTensor.from_local(
        mine, mesh, [Shard(5)] * mesh.ndim, run_check=False, shape=(4, 4), stride=(4, 1)
    )
    for tensor, text in (
        (partial, "terms of a sum"),
        (wrong, "this rank's part should be"),
        (beyond, "should cut one of the 2 axes"),
    ):
        for verb in (irt.idi_, irt.idiz_):
            with pytest.raises(ir.errors.OptionError, match=text):
                verb(tensor)
        assert (mine == 1).all()
    if mesh.ndim > 1:  # cut by the mesh's last axis first, which placements do not tell
        order = (ShardOrderEntry(tensor_dim=0, mesh_dims=(1, 0)),)
        meta = TensorMeta(torch.Size((4 * mesh.size(), 4)), (4, 1), torch.float32)
        spec = DTensorSpec(mesh, (Shard(0),) * 2, meta, shard_order=order)
        turned = DTensor(mine, spec, requires_grad=False)
        with pytest.raises(ir.errors.OptionError, match="in their order"):
            irt.idi_(turned)
        assert (mine == 1).all()
    # What only one rank can see is an error there alone: nothing is sent to ask the others.
    rank, ranks, rows = dist.get_rank(), dist.get_world_size(), 4 * dist.get_world_size() - 1
    uneven = DTensor.from_local(
        mine, mesh, [Shard(0)] * mesh.ndim, run_check=False, shape=(rows, 4), stride=(4, 1)
    )
    if rank == ranks - 1:
        with pytest.raises(ir.errors.OptionError, match="this rank's part should be"):
            irt.idi_(uneven)
    else:
        irt.idi_(uneven)
        mine.fill_(1)
    # In a model: nothing is written, not even what could be.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight = nn.Parameter(gathered[0])
    model[1].weight = nn.Parameter(partial)
    with pytest.raises(ir.errors.OptionError, match=r"parameter '1\.weight'"):
        irt.init_(model, torch.zeros(1, 4))
    assert (gathered[0].to_local() == 1).all()
    assert (mine == 1).all()
    # What PyTorch's own functions do: every part becomes a whole matrix, in silence.
    nn.init.eye_(gathered[1])
    assert gathered[1].to_local().shape == (4, 4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def sharded(kind, ranks):
    """A model without memory, sharded, and then given memory: as large ones are made."""
    with torch.device("meta"):
        model = Net()
    sizes, names = ((ranks,), ("all",)) if kind != "both" else ((ranks // 2, 2), ("dp", "all"))
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=names)
    if kind != "fsdp":
        for block in model.blocks:
            plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            parallelize_module(block, mesh["all"], plan)
    if kind != "tensor":
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh[names[0]])
    return model.to_empty(device="cpu")


def gathered():
    """After a forward pass the outermost module is whole; no write to it is lost."""
    x = torch.ones(2, 5)
    model = fully_shard(Net())
    model(x)
    with pytest.raises(ir.errors.OptionError, match=r"weight = 'gathered'.*lost"):
        irt.idi_layer_(model.stem)
    with pytest.raises(ir.errors.OptionError, match="= 'gathered'"):
        irt.init_(model.blocks[0], torch.ones(2, 6))
    layer = fully_shard(nn.Linear(5, 6))
    layer(x)
    irt.idi_layer_(layer)
    assert torch.equal(layer.weight.full_tensor(), irt.idi_(torch.empty(6, 5)))
    model.reshard()
    irt.idi_layer_(model.stem)
    assert torch.equal(model.stem.weight.full_tensor(), irt.idi_(torch.empty(6, 5)))
    # Memory that has been written to can still be dropped and gathered.
    model.unshard()
    irt.idi_(model.stem.weight)
    model.reshard()
    model(x).sum().backward()


def older():
    """FSDP of before: a wrapped model is refused and unharmed; inside it works."""
    cpu, x = torch.device("cpu"), torch.ones(2, 5)
    model = FullyShardedDataParallel(Net(), use_orig_params=True, device_id=cpu)
    with pytest.raises(ir.errors.OptionError, match="fully_shard"):
        irt.init_(model, x)
    model(x)
    with FullyShardedDataParallel.summon_full_params(model):
        irt.init_(model.module, x, eps=0.1)
    whole = Net()
    irt.init_(whole, x, eps=0.1)
    assert torch.allclose(model(x), whole(x), atol=1e-6)
    model(x).sum().backward()
    # As it is by default, parameters are views of a flat one: nothing of it can be written to.
    model = FullyShardedDataParallel(Net(), device_id=cpu)
    before = model._flat_param.clone()
    with pytest.raises(ir.errors.OptionError, match="use_orig_params=True"):
        irt.init_(model.module, x)
    with (
        FullyShardedDataParallel.summon_full_params(model),
        pytest.raises(ir.errors.OptionError, match="use_orig_params=True"),
    ):
        irt.init_(model.module, x)
    assert torch.equal(model._flat_param, before)


def empty():
    """FSDP2 on top of tensor parallelism keeps a part that is empty as (0, 0)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = nn.Sequential(nn.Linear(1, 13, bias=False))
    parallelize_module(model, mesh["tp"], {"0": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    irt.idi_(model[0].weight)
    mine = model[0].weight.to_local()
    assert mine.numel() == (0 if mesh.get_local_rank("tp") else 7 - mesh.get_local_rank("dp"))
    assert (mine == 1).all()


def models(ranks):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))

    def step(model, optimiser):
        model(x).square().mean().backward()
        optimiser.step()
        return model(x)

    for kind in ("fsdp", "tensor", "both") if ranks % 2 == 0 else ("fsdp", "tensor"):
        whole, model = Net(), sharded(kind, ranks)
        for module in (*whole.modules(), *model.modules()):
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        told = irt.init_(whole, x, eps=0.1)
        hooks = [(*m._forward_pre_hooks, *m._forward_hooks) for m in model.modules()]
        assert str(irt.init_(model, x, eps=0.1)) == str(told)
        assert hooks == [(*m._forward_pre_hooks, *m._forward_hooks) for m in model.modules()]
        for (name, mine), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
            full = mine.full_tensor() if isinstance(mine, DTensor) else mine
            assert torch.equal(full, theirs), (kind, name)
        optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, whole)]
        assert torch.allclose(model(x), whole(x), atol=1e-6)
        if kind != "tensor":  # now the outermost module has its parameters gathered
            assert not isinstance(model.head.weight, DTensor)
            irt.init_(model, x, eps=0.2)
            irt.init_(whole, x, eps=0.2)
            assert torch.allclose(model(x), whole(x), atol=1e-6)
        stepped = [step(*pair) for pair in zip((model, whole), optimisers, strict=True)]
        assert torch.allclose(*stepped, atol=1e-5), kind


if __name__ == "__main__":
    rank, ranks, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    for sizes in ((ranks,), (2, ranks // 2)) if ranks % 2 == 0 else ((ranks,),):
        mesh = init_device_mesh("cpu", sizes)
        weights(mesh, step=1 if ranks > 2 else 5)
        refused(mesh)
    models(ranks)
    if ranks == 4:
        empty()
    gathered()
    older()
    dist.destroy_process_group()
    print("all is well")
