"""Weights in memory shared with TensorFlow, or in shards of Keras' JAX backend."""

from __future__ import annotations

import sys
from functools import partial
from math import prod
from typing import Any

import keras
import numpy as np

from idinit_ref import Plan
from idinit_ref.core.axes import stored
from idinit_ref.errors import OptionError, OptionTypeError, message

__all__ = ["sharded", "tensor"]

_LARGE = 2**16  # elements: below, the call of DLPack costs more than a copy
_ALIGNED = 64  # bytes: the alignment that TensorFlow's kernels expect


def sharded(decided: Plan, dtype: str, sharding: Any, shape: tuple[int, ...], letters: str) -> Any:
    """Build a weight shard by shard, for a Keras variable with a layout (JAX backend only)."""
    try:
        sharding = getattr(sharding, "backend_layout", sharding)  # of a keras TensorLayout
    except ValueError as problem:
        should = f"it should have a mesh; Keras raised: {problem}"
        cure = "give it one: TensorLayout(axes, device_mesh)"
        raise OptionError(message("layout", sharding, should, cure)) from problem
    jax = sys.modules.get("jax") if keras.backend.backend() == "jax" else None
    if jax is None or not isinstance(sharding, jax.sharding.Sharding):
        should = (
            "here it should be a keras.distribution.TensorLayout or a JAX sharding, "
            "on Keras' JAX backend"
        )
        cure = "leave it out; axis letters belong to the constructor: IDI(layout='OI')"
        raise OptionTypeError(message("layout", sharding, should, cure))
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # Inside jax.set_mesh, Keras passes the sharding without its devices.
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    try:
        sharding.shard_shape(shape)
    except (ValueError, IndexError) as problem:  # an IndexError if the sharding has more axes
        should = f"it should divide every axis of shape {shape} evenly; JAX raised: {problem}"
        cure = "name only axes of the mesh, whose sizes divide the axes of the weight"
        raise OptionError(message("layout", sharding, should, cure)) from problem
    take: Any = partial(decided.block, dtype=dtype)
    if decided.shape != shape:
        take = stored(decided, dtype, shape, letters).__getitem__
    return jax.make_array_from_callback(shape, sharding, take)


def tensor(decided: Plan, dtype: str, shape: tuple[int, ...], letters: str) -> Any:
    """Build a weight as a tensor of Keras' backend.

    TensorFlow copies a NumPy array slowly (124 ms for 64 MB; building the array takes 19), so a
    large one is shared through DLPack. TensorFlow crashes on memory not aligned to 64 bytes.
    """
    if decided.shape != shape:
        return keras.ops.convert_to_tensor(stored(decided, dtype, shape, letters), dtype=dtype)
    kind = np.dtype(dtype)
    if (
        keras.backend.backend() == "tensorflow"
        and kind.isbuiltin == 1  # NumPy's DLPack has no bfloat16
        and prod(decided.shape) >= _LARGE
    ):
        import tensorflow

        if tensorflow.executing_eagerly() and not tensorflow.config.list_logical_devices("GPU"):
            size = prod(decided.shape) * kind.itemsize
            memory = np.zeros(size + _ALIGNED, np.uint8)
            first = -memory.ctypes.data % _ALIGNED
            flat = memory[first : first + size].view(kind)
            decided.write(flat)
            capsule = flat.reshape(decided.shape).__dlpack__()
            return tensorflow.experimental.dlpack.from_dlpack(capsule)
    return keras.ops.convert_to_tensor(decided.build(dtype=dtype), dtype=dtype)
