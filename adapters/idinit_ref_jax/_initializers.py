"""One weight: initialisers with the calling convention of ``jax.nn.initializers``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import index
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from idinit_ref import Plan, Role, plan
from idinit_ref.core.axes import bias, check_clear, einsum_letters, joined, letters_of, numbered
from idinit_ref.core.build import resolve
from idinit_ref.core.kernel import Taps
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import OptionError, OptionTypeError, message
from idinit_ref.tracing import asking

from ._sharded import realise

__all__ = ["NUMBERED", "Initializer", "build", "decide", "idi", "idiz", "make"]

Axes = int | Sequence[int]

_AXES: dict[str, tuple[int, ...]] = {"in_axis": (-2,), "out_axis": (-1,), "batch_axis": ()}
_NAMED = {"in_axis": "input_axes", "out_axis": "output_axes", "batch_axis": "batch_axes"}
NUMBERED = "in_axis= and out_axis="
_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvND", "ConvNDTranspose")
_KINDS = (*_CONVOLUTIONS, "ConvLocal", "Einsum", "LinearGeneral", "DenseGeneral")


@dataclass(frozen=True, repr=False)
class Initializer:
    """The result of :func:`idi` and :func:`idiz`: hashable, and equal if all options are equal.

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
        changed = [f"{k}={v!r}" for k, v in self.options if v != usual.get(k, v)]
        return f"{verb}({', '.join(changed)})"

    def __call__(
        self,
        key: Any,
        shape: Any = None,
        dtype: Any = None,
        out_sharding: NamedSharding | PartitionSpec | None = None,
    ) -> jax.Array:
        """Build the weight: ``init(key, shape, dtype)``, or Haiku's ``init(shape, dtype)``.

        Parameters
        ----------
        key : object
            Ignored, since nothing is random; may be None.
        shape : sequence of int
            The shape of the weight.
        dtype : dtype, optional
            Real floating or complex. By default that of the initialiser, or else JAX's default
            floating dtype. As everywhere in JAX, float64 becomes float32 unless x64 is enabled.
        out_sharding : NamedSharding or PartitionSpec, optional
            The placement of the result on the devices; a PartitionSpec needs ``jax.set_mesh``. Each
            shard is built separately, or cut from the whole if several axes count as one. Explicit
            and auto mesh axes work, as in JAX's own initialisers. In a traced function JAX drops a
            ``memory_kind``: give it in ``out_shardings``.

        Returns
        -------
        jax.Array, shape `shape`
            The same bits whole or in shards, eager or under ``jax.jit``.

        Raises
        ------
        ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
            If shape, dtype or sharding do not fit the options.
        """
        if isinstance(key, (tuple, list)) and not isinstance(shape, (tuple, list)):
            shape, dtype = key, shape if dtype is None else dtype
        given: object = out_sharding
        if not isinstance(given, (NamedSharding, PartitionSpec, type(None))):
            should = "it should be a NamedSharding, a PartitionSpec or None"
            cure = "wrap it: NamedSharding(mesh, PartitionSpec(...))"
            raise OptionTypeError(message("out_sharding", given, should, cure))
        return build(self, shape, dtype, out_sharding)


def decide(init: Initializer, shape: Sequence[int]) -> tuple[Plan, str, tuple[int, ...]]:
    """Return the plan of a weight, a letter for each of its axes, and their sizes.

    The plan joins axes of one letter. `split_axes` with these letters splits them again; a reshape
    then gives the stored shape.
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
        plan(shape)  # raises the core's error for this shape
    if letters is None and len(sizes) < 2:
        plan(sizes)  # raises the core's error for a bias
    if letters is None:
        letters, sizes = _letters(axes, sizes, options)
    return joined(sizes, init.role, letters, **options), letters, sizes


def build(
    init: Initializer, shape: Sequence[int], dtype: Any, sharding: Sharding | PartitionSpec | None
) -> jax.Array:
    """Build a weight, under any kind of sharding."""
    decided, letters, parted = decide(init, shape)
    dtype = dict(init.options)["dtype"] if dtype is None else dtype
    return realise(decided, letters, parted, tuple(map(index, shape)), dtype, sharding)


def _letters(
    axes: Mapping[str, tuple[int, ...] | None], shape: tuple[int, ...], options: Mapping[str, Any]
) -> tuple[str, tuple[int, ...]]:
    """Return a letter and a size for each axis, from the options or from the calling layer."""
    given = dict(_AXES)
    given |= {name: places for name, places in axes.items() if places is not None}
    if axes["in_axis"] is not None or axes["out_axis"] is not None:
        return letters_of(shape, given), shape
    layer, own = asking(_modules(), ("einsum_str", "name", "shape"), __name__)
    kind = _kind(layer)
    if kind == "Einsum" and not axes["batch_axis"] and "einsum_str" in own:
        if own.get("name") == "bias" or hasattr(layer, "kernel"):
            raise bias(shape)
        return einsum_letters(own["einsum_str"], "einsum_str", NUMBERED), shape
    names, copies = f"{NUMBERED}, and batch_axis= for stacks", len(given["batch_axis"])
    check_clear(shape, layer, kind in _CONVOLUTIONS, options, names, copies)
    if kind in ("LinearGeneral", "DenseGeneral") and "shape" in own:
        # These layers ask for one matrix, whatever the shape of the weight.
        batch = getattr(layer, "batch_axis", None) or getattr(layer, "batch_dims", ())
        copies = prod(own["shape"][: len(batch)]) if batch else 1
        return "BIO", (copies, shape[0] // copies, shape[1])
    if kind == "ConvNDTranspose" or getattr(layer, "transpose_kernel", False):
        given |= {"in_axis": (-1,), "out_axis": (-2,)}
    return letters_of(shape, given), shape


def _modules() -> tuple[type, ...]:
    """Return the layer classes of the libraries that are imported."""
    names = ("flax.nnx", "flax.linen", "haiku")
    return tuple(sys.modules[name].Module for name in names if name in sys.modules)


def _kind(layer: Any) -> str | None:
    """Return which of `_KINDS` of Flax or Haiku a layer is, or None."""
    for base in type(layer).__mro__:
        if base.__name__ in _KINDS and base.__module__.startswith(("flax.", "haiku.")):
            return base.__name__
    return None


def make(
    role: Role,
    *,
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    dtype: Any = None,
    **more: Any,
) -> Initializer:
    """Return an initialiser. Validates all that needs no shape; `more` are axes and scalars."""
    axes = {name: more.pop(name, None) for name in _NAMED}
    for jaxs, ours in _NAMED.items():
        value = more.pop(ours, None)
        if value is not None and axes[jaxs] is not None:
            should = f"{jaxs}, JAX's name for the same axes, should not be given as well"
            raise OptionError(message(ours, value, should, "give one of them"))
        axes[jaxs] = axes[jaxs] if value is None else value
    numbers = numbered(layout, axes)
    sample = plan((1, 1), role, taps=taps, **more)
    options = {name: getattr(sample, name) for name in more}
    options |= {name: numbers.get(name) for name in _AXES}
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
    in_axis: Axes | None = None,
    out_axis: Axes | None = None,
    batch_axis: Axes | None = None,
    input_axes: Axes | None = None,
    output_axes: Axes | None = None,
    batch_axes: Axes | None = None,
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

    IDI_tau [P, Eq. 3], spec section 1; for kernels IDIC_tau [P, Sec. 3.3], spec section 3. Use it
    like those of ``jax.nn.initializers``: ``kernel_init=idi()`` in Flax.

    Parameters
    ----------
    gain, wide, groups, transposed, stride, blocks, taps, tap, loosen, loosen_at, seed
        As in :func:`idinit_ref.plan`.
    in_axis, out_axis, batch_axis : int or sequence of int, optional
        The axes of the inputs, of the outputs and of stacked weights. Names and defaults are those
        of ``jax.nn.initializers.variance_scaling``: if only some are given, the others are -2, -1
        and none. Several axes of one kind count as one in row-major order; every batch axis holds
        independent copies. The other axes are the kernel's, in order: W, or H and W, or D, H and W.
    input_axes, output_axes, batch_axes : int or sequence of int, optional
        The same axes, under the names of the Keras adapter. Give one name only.
    layout : str, optional
        A letter for each axis, as in :func:`idinit_ref.plan`; it replaces the axis numbers. Axes of
        one letter count as one: "IOO" for the kernel (d, heads, size) of queries, "OOI", "LIOO"
        for a stack.
    dtype : dtype, optional
        The dtype if the call gives none.

    Returns
    -------
    callable
        ``init(key, shape, dtype=dtype, out_sharding=None) -> jax.Array``. It ignores the key. It is
        hashable, and equal to another one with equal options. Under ``jax.jit`` the weight is a
        comparison of two index ranges that XLA fuses, with no constant of the weight's size (unless
        it is loosened).

    Raises
    ------
    OptionError, OptionTypeError, DTypeError
        If an option is out of range. Errors that depend on the shape are raised by the call.

    Notes
    -----
    An initialiser sees only a shape. Three axes or more may be a convolution, a stack of matrices
    or heads. Without `layout` and axes, the initialiser looks at the layer that calls it, if it is
    one of Flax's or Haiku's own: Conv and ConvTranspose, Einsum for its equation, LinearGeneral and
    DenseGeneral for their batch axes. Any other layer is an error. In a direct call a square kernel
    of odd size counts as a convolution (HWIO, DHWIO), and so does any kernel with an option such as
    `taps`; everything else is an error.

    Haiku's call, ``init(shape, dtype)``, works too.

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
        "transit", gain=gain, wide=wide, in_axis=in_axis, out_axis=out_axis,
        batch_axis=batch_axis, input_axes=input_axes, output_axes=output_axes,
        batch_axes=batch_axes, layout=layout, groups=groups, transposed=transposed, stride=stride,
        blocks=blocks, taps=taps, tap=tap, loosen=loosen, loosen_at=loosen_at, seed=seed,
        dtype=dtype,
    )  # fmt: skip


def idiz(
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    in_axis: Axes | None = None,
    out_axis: Axes | None = None,
    batch_axis: Axes | None = None,
    input_axes: Axes | None = None,
    output_axes: Axes | None = None,
    batch_axes: Axes | None = None,
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
    in_axis, out_axis, batch_axis, input_axes, output_axes, batch_axes, layout, dtype
        As in :func:`idi`.

    Returns
    -------
    callable
        As in :func:`idi`.

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
        "zero", eps=eps, form=form, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis,
        input_axes=input_axes, output_axes=output_axes, batch_axes=batch_axes, layout=layout,
        groups=groups, transposed=transposed, stride=stride, blocks=blocks, taps=taps, tap=tap,
        dtype=dtype,
    )  # fmt: skip
