"""What each process checks (test_jax_sharded.py): python sharded_jax.py RANK PROCESSES PORT."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import idinit_ref as ir
import idinit_ref_jax as irj

COLLECTIVE = re.compile("all-gather|all-reduce|all-to-all|collective|reduce-scatter|send|recv")
WEIGHTS = [
    (irj.idi(), (1024, 2048), P("x", "y"), ir.plan((2048, 1024), "transit")),
    (irj.idiz(), (2048, 512), P("y"), ir.plan((512, 2048), "zero")),
    (irj.idi(gain=0.5), (512, 512), P(), ir.plan((512, 512), gain=0.5)),
    (irj.idiz(), (3, 3, 64, 128), P(None, None, "x", "y"), None),
    (irj.idi(groups=4), (3, 3, 64, 128), P(None, None, None, ("x", "y")), None),
]


def weights(mesh, dtype=jnp.float32):
    for init, shape, spec, plan in WEIGHTS:
        sharding = NamedSharding(mesh, spec)
        placed = init(None, shape, dtype, sharding)
        if plan is not None:  # stored as inputs x outputs
            whole = plan.build(dtype=dtype).T
            for shard in placed.addressable_shards:
                assert np.array_equal(shard.data, whole[shard.index])
        largest = max(shard.data.nbytes for shard in placed.addressable_shards)
        ways = [jax.jit(partial(init, None, shape, dtype, sharding))]
        if AxisType.Explicit not in mesh.axis_types:  # there an array without one is whole by type
            ways.append(jax.jit(partial(init, None, shape, dtype), out_shardings=sharding))
        for compiled in ways:
            program = compiled.lower().compile()
            assert not COLLECTIVE.search(program.as_text())
            memory = program.memory_analysis()
            assert memory.output_size_in_bytes == largest
            # XLA does not fuse a bfloat16 kernel whole: it needs some times its own part, no more.
            parts = 5 if dtype == jnp.bfloat16 and len(shape) > 2 else 0.1
            assert memory.temp_size_in_bytes < max(parts * largest, 8192)
            for mine, shard in zip(
                compiled().addressable_shards, placed.addressable_shards, strict=True
            ):
                assert mine.index == shard.index
                assert np.array_equal(mine.data, shard.data)


def meshes(mesh, explicit, mixed):
    """Auto and explicit axes, together too; what lies on devices says where as well."""
    init = irj.idi()
    whole = init(None, (8, 8), jnp.float32)
    for here in (explicit, mixed):
        with jax.set_mesh(here):
            spec = P("x", "y")
            for got in (
                init(None, (8, 8), jnp.float32, spec),
                jax.jit(lambda: init(None, (8, 8), jnp.float32, P("x", "y")))(),
            ):
                assert got.sharding == NamedSharding(here, spec)
                assert np.array_equal(got, whole)
    with jax.set_mesh(explicit):
        abstract = jax.typeof(init(None, (8, 8), jnp.float32, P("x"))).sharding
        got = init(None, (8, 8), jnp.float32, abstract)
        assert got.sharding.is_equivalent_to(NamedSharding(explicit, P("x")), 2)

    def refused(text, here, sharding, jit):
        make = partial(init, None, (8, 8), jnp.float32, sharding)
        place = jax.set_mesh(here) if here else nullcontext()
        with place, pytest.raises(ir.errors.OptionError, match=text):
            (jax.jit(make) if jit else make)()

    other = "the one that is set"
    refused(other, explicit, NamedSharding(mesh, P("x")), jit=True)
    refused(other, None, NamedSharding(explicit, P("x")), jit=True)
    refused("have a mesh", None, abstract, jit=False)
    refused("unreduced", None, NamedSharding(explicit, P("x", unreduced={"y"})), jit=False)
    refused("has 3 axes", None, NamedSharding(mesh, P("x", None, None)), jit=False)
    refused("name only axes of the mesh", explicit, P("z"), jit=True)


def detectors(mesh):
    """What the checks above look for is found where it is."""
    sharding = NamedSharding(mesh, P("x", "y"))
    gathered = jax.jit(lambda a: a.sum(), out_shardings=NamedSharding(mesh, P()))
    placed = irj.idi()(None, (1024, 2048), jnp.float32, sharding)
    assert COLLECTIVE.search(gathered.lower(placed).compile().as_text())
    program = jax.jit(lambda a: jnp.sort(a.reshape(-1)) @ a.reshape(-1)).lower(placed).compile()
    assert program.memory_analysis().temp_size_in_bytes > placed.nbytes / 10


def models(mesh):
    """A whole model whose parameters are sharded keeps its shardings, and gets its own parts."""
    place = {
        "up": NamedSharding(mesh, P(None, "y")),
        "down": NamedSharding(mesh, P("x")),
        "bias": NamedSharding(mesh, P()),
    }
    shapes = {"up": (8, 16), "down": (16, 8), "bias": (16,)}
    params = {
        name: jax.make_array_from_callback(
            shape, place[name], lambda index, shape=shape: np.indices(shape, np.float32)[-1][index]
        )
        for name, shape in shapes.items()
    }

    def apply(params, x):
        return x + jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]

    new, report = irj.init(params, jnp.ones((2, 8)), apply, eps=0.5)
    assert report.roles == {"up": "transit", "down": "zero", "bias": "bias"}
    expected = {
        "up": ir.plan((16, 8)).build(dtype="float32").T,
        "down": ir.plan((8, 16), "zero", eps=0.5).build(dtype="float32").T,
        "bias": np.zeros(16, np.float32),
    }
    for name, array in new.items():
        assert array.sharding == place[name]
        for shard in array.addressable_shards:
            assert np.array_equal(shard.data, expected[name][shard.index])


if __name__ == "__main__":
    rank, processes, port = map(int, sys.argv[1:])
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, rank)
    assert len(jax.devices()) == 8
    assert len(jax.local_devices()) == 8 // processes
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    weights(mesh)
    explicit, mixed = (
        jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, kind))
        for kind in (AxisType.Explicit, AxisType.Auto)
    )
    if processes == 1:
        for dtype in (jnp.float32, jnp.bfloat16):
            with jax.set_mesh(explicit):
                weights(explicit, dtype)
        meshes(mesh, explicit, mixed)
        detectors(mesh)
    models(mesh)
    print("all is well")
