"""What test_checkpoints.py runs on eight devices: python ... FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import idinit_ref as ir
import idinit_ref_jax as irj
from idinit_ref.files import inspect, open_checkpoint

PLANS = {
    "up": ir.plan((64, 32), layout="OI"),
    "down": ir.plan((32, 64), "zero", eps=0.5),
}
STORED = {name: plan.build(dtype="float32").T for name, plan in PLANS.items()}  # inputs x outputs


def apply(params, x):
    return x + jax.nn.relu(x @ params["up"]) @ params["down"]


def parameters(mesh, specs):
    return {
        name: jax.device_put(jnp.ones(STORED[name].shape), NamedSharding(mesh, spec))
        for name, spec in specs.items()
    }


def restored(path, mesh, specs):
    """Restore into a model of another mesh, each device its own part."""
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
        parameters(mesh, specs),
    )
    params = ocp.StandardCheckpointer().restore(path, like)
    for name, spec in specs.items():
        assert params[name].sharding == NamedSharding(mesh, spec)
        for shard in params[name].addressable_shards:
            assert np.array_equal(shard.data, STORED[name][shard.index]), name
    x = jnp.linspace(-1, 1, 64).reshape(2, 32)
    assert np.allclose(apply(params, x), apply(STORED, x), atol=1e-6)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    assert len(jax.devices()) == 8
    mesh, other = (
        jax.make_mesh(sizes, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
        for sizes in ((4, 2), (2, 4))
    )
    first, second = {"up": P("x", "y"), "down": P("y")}, {"up": P("y"), "down": P("x", "y")}
    params, _ = irj.init(parameters(mesh, first), jnp.ones((2, 32)), apply, eps=0.5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "model", params)
    restored(folder / "model", other, second)
    # Here it is read in the parts in which it was written, and is what it was.
    opened = open_checkpoint(folder / "model")
    assert opened.tensors["up"].array.chunk_layout.read_chunk.shape == (8, 32)
    assert {name: found.kind for name, _, found in inspect(opened)} == {"up": "idi", "down": "idiz"}
    # And what this package writes, without a model, is restored in parts.
    ir.save(folder / "new.orbax", {name: np.asarray(a) for name, a in STORED.items()})
    restored(folder / "new.orbax", other, second)
    restored(folder / "new.orbax", mesh, first)
    print("all is well")
