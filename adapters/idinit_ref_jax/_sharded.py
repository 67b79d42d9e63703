"""Where a weight lies: on one device, in shards of any kind, or in a traced function."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from array_api_compat import numpy as numpy_namespace
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from idinit_ref import Plan
from idinit_ref.core.build import resolve
from idinit_ref.core.layout import split_axes
from idinit_ref.errors import OptionError, message

__all__ = ["in_numpy", "place", "realise", "sharding_of"]


def realise(
    decided: Plan,
    letters: str,
    parted: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Sharding | PartitionSpec | None,
) -> jax.Array:
    """Make the weight of a plan, whose axes are those of a parted shape that share a letter.

    A reshape of the parted shape gives the stored one.
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
        take = in_numpy(decided, letters, parted, shape, target.dtype).__getitem__
    return place(take, shape, target.dtype, sharding)


def in_numpy(
    decided: Plan, letters: str, parted: tuple[int, ...], shape: tuple[int, ...], dtype: Any
) -> Any:
    """Make the weight of a plan as a NumPy array, as `realise` does."""
    whole = decided.build(dtype=dtype)
    return split_axes(numpy_namespace, whole, parted, letters).reshape(shape)


def place(
    take: Callable[[tuple[slice, ...]], Any],
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Sharding | None,
) -> jax.Array:
    """Make an array of what `take` gives for each part of it, every shard on its own."""
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
    """Return what the successor of an array has to ask for, to lie where the array lies."""
    if isinstance(old, jax.core.Tracer):
        sharding = jax.typeof(old).sharding
        return sharding if AxisType.Explicit in sharding.mesh.axis_types else None
    # An uncommitted array goes where it is used, and its successor should do so too.
    return getattr(old, "sharding", None) if getattr(old, "committed", True) else None


def _fitting(sharding: Sharding | PartitionSpec, shape: tuple[int, ...], traced: bool) -> Sharding:
    """Return a sharding that cuts a shape evenly; a PartitionSpec gets the mesh that is set."""
    given = sharding
    here = jax.sharding.get_abstract_mesh() if traced else jax.sharding.get_mesh()
    mesh: Any = here if isinstance(sharding, PartitionSpec) else getattr(sharding, "mesh", None)
    if isinstance(mesh, AbstractMesh):  # of what lies on devices already, as typeof says it
        mesh = here
    types = () if mesh is None else (*mesh.axis_types, *here.axis_types)
    if traced and AxisType.Explicit in types and mesh.abstract_mesh != here:
        raise OptionError(
            message(
                "out_sharding",
                given,
                f"in a traced function its mesh should be the one that is set, {here}",
                "enter `with jax.set_mesh(mesh):` with its mesh around the whole",
            )
        )
    if mesh is not None and mesh.empty:
        raise OptionError(
            message(
                "out_sharding",
                given,
                "it should find a mesh with devices, and none is set",
                "enter `with jax.set_mesh(mesh):`, or pass NamedSharding(mesh, spec)",
            )
        )
    spec: Any = getattr(sharding, "spec", sharding)
    if getattr(spec, "unreduced", None):
        raise OptionError(
            message(
                "out_sharding",
                given,
                "it should not be unreduced: such devices hold terms of a sum, not entries",
                "name the axis in the specification, or leave it out",
            )
        )
    try:
        if mesh is not None and mesh is here:
            sharding = NamedSharding(mesh, spec)
        if isinstance(spec, PartitionSpec) and len(spec) > len(shape):
            raise IndexError(f"the specification has {len(spec)} axes")
        cast("Sharding", sharding).shard_shape(shape)
    except Exception as problem:  # of several kinds, some of JAX alone
        raise OptionError(
            message(
                "out_sharding",
                given,
                f"it should cut every axis of shape {shape} evenly, and JAX said: {problem}",
                "name only axes of the mesh, whose sizes divide the axes of the weight",
            )
        ) from problem
    return cast("Sharding", sharding)


def _constrained(make: Callable[[], jax.Array], sharding: Sharding) -> jax.Array:
    """Return what a traced function makes, under a sharding, as the kind of its mesh demands."""
    constrain: Any = jax.lax.with_sharding_constraint
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return cast("jax.Array", constrain(make(), sharding))
    mesh, spec = sharding.mesh, sharding.spec
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )

    def shown(part: Any) -> Any:
        names = part if isinstance(part, tuple) else (part,)
        return tuple(name for name in names if name in explicit) or None

    # Resharding afterwards would let every device make the whole.
    jaxs: Any = jax.sharding
    inside = jaxs.auto_axes(
        lambda: constrain(make(), spec),
        axes=explicit,
        out_sharding=jaxs.PartitionSpec(*map(shown, spec)),
    )
    return cast("jax.Array", inside())
