"""What building in PyTorch allocates: the weight, and next to nothing beside it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import idinit_ref as ir
from core.test_build import BIG


def test_an_array_stands_for_its_namespace():
    assert isinstance(ir.idi((2, 2), xp=torch.ones(1)), torch.Tensor)


def test_the_meta_device_makes_nothing():
    array = ir.idi((10**6, 10**6), xp=torch, device="meta")
    assert array.device.type == "meta"
    assert tuple(array.shape) == (10**6, 10**6)


class Allocated(TorchDispatchMode):
    """Adds up the bytes of every storage that an operation makes."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            self.storages[storage.data_ptr()] = storage.nbytes()
        return out


@pytest.mark.parametrize(("shape", "options"), BIG[:-1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_it_allocates_the_result_alone(shape, options, dtype):
    with Allocated() as allocated:
        array = ir.idi(shape, xp=torch, dtype=dtype, **options)
    whole = array.untyped_storage().nbytes()
    assert max(allocated.storages.values()) == whole
    assert sum(allocated.storages.values()) <= 1.1 * whole


def test_loosened_rows_come_one_at_a_time():
    with Allocated() as allocated:
        array = ir.idi((400, 500), xp=torch, loosen=0.1)
    extra = sorted(allocated.storages.values())[:-1]
    assert max(extra) <= 500 * 8
    assert array.untyped_storage().nbytes() == 400 * 500 * 4
