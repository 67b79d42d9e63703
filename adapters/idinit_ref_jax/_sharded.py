"""Weights on one device, in shards of any kind, or in a traced function."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from idinit_ref import Plan
from idinit_ref.core.axes import stored
from idinit_ref.core.build import resolve
from idinit_ref.core.layout import split_axes
from idinit_ref.errors import OptionError, message

__all__ = ["place", "realise", "sharding_of"]


def realise(
    decided: Plan,
    letters: str,
    parted: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Sharding | PartitionSpec | None,
) -> jax.Array:
    """Build the weight of a plan in its stored shape.

    The plan joins the axes of `parted` that share a letter; a reshape of `parted` gives `shape`.
    """
    target = resolve(jnp, dtype, None)
    traced = target.way == "trace"
    merged = decided.shape != shape or len(decided.shape) < len(parted)
    if sharding is not None:
        sharding = _fitting(sharding, shape, traced)
    if traced:

        def make() -> jax.Array:
            out = decided.build(jnp, target.dtype)
            out = split_axes(jnp, out, parted, letters).reshape(shape) if merged else out
            return cast("jax.Array", out)

        return make() if sharding is None else _constrained(make, sharding)
    take: Callable[[tuple[slice, ...]], Any] = partial(decided.block, dtype=target.dtype)
    if merged:
        take = stored(decided, target.dtype, shape, letters, parted).__getitem__
    return place(take, shape, target.dtype, sharding)


def place(
    take: Callable[[tuple[slice, ...]], Any],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Sharding | None,
) -> jax.Array:
    """Build an array, each shard separately; `take` returns the entries of one part."""
    if sharding is None:
        return jnp.asarray(take((slice(None),) * len(shape)))

    @cache  # JAX asks again for every copy of a shard
    def shard(*spans: tuple[int, int]) -> Any:
        return take(tuple(slice(*span) for span in spans))

    def callback(where: tuple[slice, ...] | None) -> Any:
        cuts = zip(where or (), shape, strict=True)
        return shard(*(span.indices(size)[:2] for span, size in cuts))

    return jax.make_array_from_callback(shape, sharding, callback, dtype=dtype)


def sharding_of(old: Any) -> Sharding | None:
    """Return the sharding that places a new array where an old one lies."""
    if isinstance(old, jax.core.Tracer):
        sharding = jax.typeof(old).sharding
        return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
    # An uncommitted array moves to where it is used; the new one should too.
    return getattr(old, "sharding", None) if getattr(old, "committed", True) else None


def _fitting(sharding: Sharding | PartitionSpec, shape: tuple[int, ...], traced: bool) -> Sharding:
    """Return a sharding that divides a shape evenly; a PartitionSpec gets the current mesh."""
    given = sharding
    here = jax.sharding.get_abstract_mesh() if traced else jax.sharding.get_mesh()
    mesh: Any = here if isinstance(sharding, PartitionSpec) else getattr(sharding, "mesh", None)
    if isinstance(mesh, AbstractMesh):  # from jax.typeof of an array on devices
        mesh = here
    types = () if mesh is None else (*mesh.axis_types, *here.axis_types)
    if traced and AxisType.Explicit in types and mesh.abstract_mesh != here:
        should = f"in a traced function its mesh should be the one that is set, {here}"
        cure = "enter `with jax.set_mesh(mesh):` with the same mesh around the call"
        raise OptionError(message("out_sharding", given, should, cure))
    if mesh is not None and mesh.empty:
        should = "it should have a mesh with devices, and none is set"
        cure = "enter `with jax.set_mesh(mesh):`, or pass NamedSharding(mesh, spec)"
        raise OptionError(message("out_sharding", given, should, cure))
    spec: Any = getattr(sharding, "spec", sharding)
    if getattr(spec, "unreduced", None):
        should = "it should not be unreduced: the devices would hold terms of a sum, not entries"
        cure = "name the axis in the specification, or leave it out"
        raise OptionError(message("out_sharding", given, should, cure))
    try:
        if mesh is not None and mesh is here:
            sharding = NamedSharding(mesh, spec)
        if isinstance(spec, PartitionSpec) and len(spec) > len(shape):
            raise IndexError(f"the specification has {len(spec)} axes")
        cast("Sharding", sharding).shard_shape(shape)
    except Exception as problem:  # JAX raises several types, some of its own
        should = f"it should divide every axis of shape {shape} evenly; JAX raised: {problem}"
        cure = "name only axes of the mesh, whose sizes divide the axes of the weight"
        raise OptionError(message("out_sharding", given, should, cure)) from problem
    return cast("Sharding", sharding)


def _constrained(make: Callable[[], jax.Array], sharding: Sharding) -> jax.Array:
    """Build a weight in a traced function under a sharding, for the axis types of its mesh."""
    constrain: Any = jax.lax.with_sharding_constraint
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return cast("jax.Array", constrain(make(), sharding))
    mesh, spec = sharding.mesh, sharding.spec
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )

    def explicit_names(part: Any) -> Any:
        names = part if isinstance(part, tuple) else (part,)
        return tuple(name for name in names if name in explicit) or None

    # With a reshard afterwards, every device would build the whole weight.
    jaxs: Any = jax.sharding
    inside = jaxs.auto_axes(
        lambda: constrain(make(), spec),
        axes=explicit,
        out_sharding=jaxs.PartitionSpec(*map(explicit_names, spec)),
    )
    return cast("jax.Array", inside())
