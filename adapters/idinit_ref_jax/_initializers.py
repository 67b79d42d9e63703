"""One weight: initialisers with the calling convention of ``jax.nn.initializers``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import index
from typing import Any, cast

import jax
import jax.numpy as jnp
from array_api_compat import numpy as numpy_namespace
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from idinit_ref import Plan, Role, plan
from idinit_ref.core.build import resolve
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import merge_axes, split_axes
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import OptionError, OptionTypeError, ShapeError, message

__all__ = [
    "Initializer",
    "build",
    "decide",
    "idi",
    "idiz",
    "in_numpy",
    "make",
    "place",
    "realise",
    "sharding_of",
]

_SPATIAL = "DHW"
_BATCH = "ABCEFGJKLMNPQRSTUVXYZ"  # the letters that the specification gives no meaning
_AXES = {"in_axis": (-2,), "out_axis": (-1,), "batch_axis": ()}


@dataclass(frozen=True, repr=False)
class Initializer:
    """What :func:`idi` and :func:`idiz` return: hashable, and equal where all options are.

    Parameters
    ----------
    role : {"transit", "zero"}
        IDI_tau or IDIZ_eps.
    options : tuple of (str, object)
        Every option of :func:`idi` or :func:`idiz`, in order.
    """

    role: Role
    options: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        verb, default = ("idi", idi()) if self.role == "transit" else ("idiz", idiz())
        usual = dict(default.options)
        said = [f"{k}={v!r}" for k, v in self.options if v != usual.get(k, v)]
        return f"{verb}({', '.join(said)})"

    def __call__(
        self,
        key: Any,
        shape: Sequence[int],
        dtype: Any = None,
        out_sharding: NamedSharding | PartitionSpec | None = None,
    ) -> jax.Array:
        """Make the weight.

        Parameters
        ----------
        key : object
            Ignored, for nothing here is random; None will do.
        shape : sequence of int
            The shape of the weight.
        dtype : dtype, optional
            Real floating or complex. That of the initialiser if left out, or else JAX's default
            floating dtype; float64 becomes float32 as everywhere in JAX unless x64 is enabled.
        out_sharding : NamedSharding or PartitionSpec, optional
            How the result is to lie on the devices; a PartitionSpec needs ``jax.set_mesh``. Each
            shard is made on its own (but cut from the whole where several axes count as one).
            Besides explicit mesh axes, which JAX's own initialisers serve, auto ones do. In a
            traced function JAX itself drops a ``memory_kind``: give it in ``out_shardings``.

        Returns
        -------
        jax.Array, shape `shape`
            The same bits whole or in shards, eager or under ``jax.jit``.

        Raises
        ------
        ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
            If shape, dtype or sharding do not fit the options; nothing is made then.
        """
        del key
        if not isinstance(out_sharding, (NamedSharding, PartitionSpec, type(None))):
            raise OptionTypeError(
                message(
                    "out_sharding",
                    out_sharding,
                    "it should be a NamedSharding, a PartitionSpec or None",
                    "wrap it: NamedSharding(mesh, PartitionSpec(...))",
                )
            )
        return build(self, shape, dtype, out_sharding)


def decide(init: Initializer, shape: Sequence[int]) -> tuple[Plan, str]:
    """Return the plan of a weight, and a letter for each of its axes.

    Axes of one letter are joined in the plan; `split_axes` with these letters parts them again.
    """
    options = dict(init.options)
    del options["dtype"]
    axes = {name: options.pop(name) for name in _AXES}
    letters = options.pop("layout")
    try:
        sizes = tuple(-1 if isinstance(size, bool) else index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if min(sizes, default=0) < 0:
        plan(shape)  # the core says what is wrong with it
    if letters is None and len(sizes) < 2:
        plan(sizes)  # as it says of a bias
    if letters is not None:
        return plan(sizes, init.role, layout=letters, **options), letters
    letters = _letters(axes, sizes)
    joined, layout = merge_axes(sizes, letters)
    return plan(joined, init.role, layout=layout, **options), letters


def build(
    init: Initializer, shape: Sequence[int], dtype: Any, sharding: Sharding | PartitionSpec | None
) -> jax.Array:
    """Make a weight, under any kind of sharding."""
    decided, letters = decide(init, shape)
    shape = tuple(map(index, shape))
    dtype = dict(init.options)["dtype"] if dtype is None else dtype
    return realise(decided, letters, shape, shape, dtype, sharding)


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


def _letters(axes: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> str:
    """Return a layout letter for each axis; inputs share I, and outputs share O."""
    ndim, batch = len(shape), iter(_BATCH)
    spatial = ndim - sum(map(len, axes.values()))
    if len(axes["batch_axis"]) > len(_BATCH) or spatial > len(_SPATIAL):
        raise ShapeError(
            message(
                "shape",
                shape,
                f"{axes} should leave at most {len(_SPATIAL)} axes of it for the kernel, and "
                f"name at most {len(_BATCH)} batch axes",
                "name the axes of stacked weights in batch_axis, and all axes of the inputs",
            )
        )
    letters: dict[int, str] = {}
    for name, places in axes.items():
        for place in places:
            axis = place % ndim if -ndim <= place < ndim else None
            if axis is None or axis in letters:
                raise OptionError(
                    message(
                        name,
                        places,
                        f"axis {place} should be one of the {ndim} axes of the weight"
                        if axis is None
                        else f"axis {place} of {ndim} is named twice in {axes}",
                        "name every axis once, as inputs, outputs or batch",
                    )
                )
            letters[axis] = {"in_axis": "I", "out_axis": "O"}.get(name) or next(batch)
    kernel = iter(_SPATIAL[len(_SPATIAL) - spatial :])
    return "".join(letters.get(axis) or next(kernel) for axis in range(ndim))


def _places(name: str, axes: object) -> tuple[int, ...]:
    given = axes if isinstance(axes, Sequence) else (axes,)
    try:
        places = tuple(index(cast("Any", place)) for place in given)
    except TypeError:
        places = None
    if places is None or any(isinstance(place, bool) for place in given):
        raise OptionTypeError(
            message(name, axes, "it should be an integer or a tuple of them", "write -1 or (0, 1)")
        )
    if not places and name != "batch_axis":
        raise OptionError(
            message(
                name,
                axes,
                "a weight should have at least one such axis",
                f"name it: {name}={_AXES[name][0]}",
            )
        )
    return places


def make(
    role: Role,
    *,
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    dtype: Any = None,
    **scalars: Any,
) -> Initializer:
    """Return an initialiser, after checking all that can be checked without a shape."""
    axes = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    axes = {name: _places(name, value) for name, value in axes.items()}
    if layout is not None and axes != _AXES:
        raise OptionError(
            message(
                "layout",
                layout,
                f"it names all axes, and so do {axes}",
                "give either layout, or in_axis, out_axis and batch_axis",
            )
        )
    sample = plan((1, 1), role, taps=taps, **scalars)
    options = {name: getattr(sample, name) for name in scalars}
    options |= axes
    options |= {"layout": layout, "groups": groups, "transposed": transposed}
    options |= {"stride": _hashable(stride), "blocks": _hashable(blocks)}
    options |= {"taps": taps, "tap": _hashable(tap)}
    # Python's float and complex mean JAX's own default precision, not that of np.dtype(float).
    as_is = dtype is None or dtype is float or dtype is complex
    options["dtype"] = dtype if as_is else resolve(None, dtype, None).dtype
    return Initializer(role, tuple(options.items()))


def _hashable(sizes: Sequence[int] | None) -> Any:
    return tuple(sizes) if isinstance(sizes, Sequence) else sizes


def idi(
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
    dtype: Any = None,
) -> Initializer:
    """Return an initialiser of identity-preserving weights: ``W[i, j] = tau if j = i mod n``.

    IDI_tau [P, Eq. 3], spec section 1; for kernels IDIC_tau [P, Sec. 3.3], spec section 3. It
    serves wherever one of ``jax.nn.initializers`` does: ``kernel_init=idi()`` in Flax.

    Parameters
    ----------
    gain, wide, groups, transposed, stride, blocks, taps, tap, loosen, loosen_at, seed
        As in :func:`idinit_ref.plan`.
    in_axis, out_axis, batch_axis : int or sequence of int
        The axes of the inputs, of the outputs and of stacked weights, as in
        ``jax.nn.initializers.variance_scaling``. Several axes of one kind count as one in
        row-major order; every batch axis holds independent copies. What is left is the kernel,
        in order: W, or H and W, or D, H and W.
    layout : str, optional
        A letter for each axis instead, as in :func:`idinit_ref.plan`.
    dtype : dtype, optional
        The dtype where the call gives none.

    Returns
    -------
    callable
        ``init(key, shape, dtype=dtype, out_sharding=None) -> jax.Array``. It ignores the key; it
        is hashable, and equal to another of equal options. Under ``jax.jit`` it is a comparison
        of two index ranges that XLA fuses, with no constant of the weight's size (unless it is
        loosened).

    Raises
    ------
    OptionError, OptionTypeError, DTypeError
        If an option is out of range; what depends on the shape is raised by the call.

    Notes
    -----
    Flax's ``LinearGeneral`` with a `batch_axis` shows its initialiser one flat matrix, in which
    the stacked weights cannot be told apart; use :func:`idi_layer_` there.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> idi(gain=2)(None, (2, 3), jnp.float32)
    Array([[2., 0., 2.],
           [0., 2., 0.]], dtype=float32)
    >>> idi(gain=2, in_axis=1, out_axis=0)
    idi(gain=2.0, in_axis=(1,), out_axis=(0,))
    """
    return make(
        "transit",
        gain=gain,
        wide=wide,
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        layout=layout,
        groups=groups,
        transposed=transposed,
        stride=stride,
        blocks=blocks,
        taps=taps,
        tap=tap,
        loosen=loosen,
        loosen_at=loosen_at,
        seed=seed,
        dtype=dtype,
    )


def idiz(
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    in_axis: int | Sequence[int] = -2,
    out_axis: int | Sequence[int] = -1,
    batch_axis: int | Sequence[int] = (),
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    dtype: Any = None,
) -> Initializer:
    """Return an initialiser of zero-preserving weights: +eps and -eps for every output.

    IDIZ_eps, spec section 2, for the last weight of a residual branch; for kernels IDIZC_eps
    [P, Sec. 3.3].

    Parameters
    ----------
    eps, form, groups, transposed, stride, blocks, taps, tap
        As in :func:`idinit_ref.plan`.
    in_axis, out_axis, batch_axis, layout, dtype
        As in :func:`idi`.

    Returns
    -------
    callable
        As :func:`idi` does.

    Raises
    ------
    OptionError, OptionTypeError, DTypeError
        As in :func:`idi`.

    Examples
    --------
    >>> idiz(eps=0.5)(None, (3, 2))
    Array([[ 0.5,  0. ],
           [ 0. ,  0.5],
           [-0.5, -0.5]], dtype=float32)
    """
    return make(
        "zero",
        eps=eps,
        form=form,
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        layout=layout,
        groups=groups,
        transposed=transposed,
        stride=stride,
        blocks=blocks,
        taps=taps,
        tap=tap,
        dtype=dtype,
    )
