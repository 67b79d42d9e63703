"""Layers of ``flax.nnx``: their axes, groups and paddings; their parameters, set in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from idinit_ref import Plan, Role
from idinit_ref.core.axes import einsum_letters
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import SPATIAL
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.core.weights import either
from idinit_ref.diagnostics.spectrum import check_normed
from idinit_ref.errors import OptionError, OptionTypeError, ShapeError, message
from idinit_ref.tracing import identity

from ._initializers import NUMBERED, Initializer, build, decide, make
from ._sharded import sharding_of

__all__ = ["idi_layer_", "idiz_layer_", "layer_plans"]

_USED: dict[Role, tuple[str, ...]] = {
    "transit": ("gain", "wide", "loosen", "loosen_at", "seed"),
    "zero": ("eps", "form"),
}
_KNOWN = "Linear, LinearGeneral, Einsum, Conv, ConvTranspose, LoRA or MultiHeadAttention"


class _Weight(NamedTuple):
    """A weight of a layer: its name, its parameter, its initialiser, and the bias beside it."""

    name: str
    parameter: Any
    init: Initializer
    bias: Any


def layer_plans(
    layer: Any,
    role: Role = "transit",
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> dict[str, Plan]:
    """Decide the weights of one ``flax.nnx`` layer, and change nothing.

    Parameters
    ----------
    layer : flax.nnx.Module
        Linear, LinearGeneral, Einsum, Conv, ConvTranspose, LoRA or MultiHeadAttention; its
        parameters may be abstract (``nnx.eval_shape``). It may be a stack of layers (``nnx.vmap``,
        for a scan over them): the leading axes of its parameters are then batch axes. It may also
        be such a layer in nnx.WeightNorm or nnx.SpectralNorm; then the result of the norm becomes
        the weight.
    role : {"transit", "zero"}
        IDI or IDIZ. With "zero", only the last weight of an attention layer (`out`) or of a LoRA
        (`lora_b`) is IDIZ; the others are IDI. The layer that a LoRA wraps is left out.
    gain, wide
        For weights in role "transit", as in :func:`idinit_ref.plan`.
    eps, form
        For weights in role "zero", as in :func:`idinit_ref.plan`.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix (spec section 3). The first three start at the identity tap,
        in each phase of a strided ConvTranspose.
    tap : sequence of int, optional
        The identity tap in the order D, H, W. By default it is the tap through which the layer
        passes its input unshifted, computed from padding and dilation, or the nearest one. ('SAME'
        of a strided Conv pads by the length of the input, which is assumed to be a multiple of the
        stride.)
    loosen, loosen_at, seed
        The noise on weights in role "transit"; weight number k has the seed ``seed + k``.

    Returns
    -------
    dict of str to Plan
        By the name of the parameter: "kernel", "query.kernel", "lora_a" and so on. The plan joins
        several axes of inputs, or of outputs, into one; for LinearGeneral a reshape gives the
        parameter's shape back.

    Raises
    ------
    ImportError
        If Flax is not installed.
    OptionTypeError
        If the layer is not of a known type.
    ShapeError, LayoutError, OptionError
        If the options do not fit the layer, the name of its padding is unknown, its kernel does not
        have the axes of such a layer (after those of a stack), or its norm cannot reproduce the
        weight. All options are validated, used or not.

    Examples
    --------
    >>> from flax import nnx
    >>> layer = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(0))
    >>> p = layer_plans(layer)["kernel"]
    >>> p.layout, p.groups, p.taps, p.tap
    ('HWIO', 4, 'outward', (1, 1))
    >>> up = nnx.ConvTranspose(4, 4, (4, 4), (2, 2), transpose_kernel=True, rngs=nnx.Rngs(0))
    >>> p = layer_plans(up)["kernel"]
    >>> p.layout, p.stride, p.tap
    ('HWOI', (2, 2), (1, 1))
    """
    weights = _weights(
        layer, role, gain=gain, eps=eps, wide=wide, form=form, taps=taps, tap=tap, loosen=loosen,
        loosen_at=loosen_at, seed=seed,
    )  # fmt: skip
    return {weight.name: decide(weight.init, weight.parameter.shape)[0] for weight in weights}


def idi_layer_(
    layer: Any,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> Any:
    """Make the weights of one ``flax.nnx`` layer IDI, and its biases 0, in place.

    [P, Eq. 3]; IDIC for kernels [P, Sec. 3.3]. Dtype, sharding and metadata of the parameters
    stay; abstract parameters get values. Equinox's layers are immutable: see :func:`idi`.

    Parameters
    ----------
    layer, gain, wide, taps, tap, loosen, loosen_at, seed
        As in :func:`layer_plans`.

    Returns
    -------
    flax.nnx.Module
        The same layer.

    Raises
    ------
    ImportError, OptionTypeError, ShapeError, LayoutError, OptionError
        As in :func:`layer_plans`; the layer is untouched then.
    DTypeError, RoundingError
        If a parameter's dtype cannot hold the weight; the layer is untouched then.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = idi_layer_(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> layer(jnp.array([5.0, 7.0]))
    Array([5., 7., 5.], dtype=float32)
    """
    options: dict[str, Any] = {"gain": gain, "wide": wide}
    options |= {"loosen": loosen, "loosen_at": loosen_at, "seed": seed}
    _write(layer, _weights(layer, "transit", taps=taps, tap=tap, **options))
    return layer


def idiz_layer_(
    layer: Any,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Any:
    """Make the last weight of one ``flax.nnx`` layer IDIZ, and its biases 0, in place.

    Spec section 2; IDIZC for kernels [P, Sec. 3.3]. The other weights of an attention layer,
    query, key and value, become IDI.

    Parameters
    ----------
    layer, eps, form, taps, tap
        As in :func:`layer_plans`.

    Returns
    -------
    flax.nnx.Module
        The same layer.

    Raises
    ------
    ImportError, OptionTypeError, ShapeError, LayoutError, OptionError, DTypeError, RoundingError
        As in :func:`idi_layer_`; the layer is untouched then.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> layer = idiz_layer_(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), eps=0.5)
    >>> layer(jnp.array([5.0, 7.0]))
    Array([-1.,  1., -1.], dtype=float32)
    """
    _write(layer, _weights(layer, "zero", taps=taps, tap=tap, eps=eps, form=form))
    return layer


def _nnx() -> Any:
    try:
        from flax import nnx
    except ImportError as problem:
        raise ImportError("layers are those of flax.nnx: pip install flax") from problem
    return nnx


def _weights(
    layer: Any, role: Role, *, taps: Taps, tap: Sequence[int] | None, **options: Any
) -> list[_Weight]:
    """Return the weights of a layer in the order of its computation."""
    nnx = _nnx()
    if isinstance(layer, (nnx.WeightNorm, nnx.SpectralNorm)):
        layer = layer.layer_instance
    parts = {"kernel": layer}
    if isinstance(layer, nnx.MultiHeadAttention):
        names = ("query", "key", "value", "out")
        parts = {f"{name}.kernel": getattr(layer, name) for name in names}
    if isinstance(layer, nnx.LoRA):
        parts = {"lora_a": layer, "lora_b": layer}
    weights: list[_Weight] = []
    for k, (name, part) in enumerate(parts.items()):
        parameter, bias = (getattr(part, at, None) for at in (name.rpartition(".")[2], "bias"))
        if parameter is None:
            raise _unknown_layer(part)
        its_role = role if k == len(parts) - 1 else "transit"
        sample = either((0, 0), its_role, k, **options)
        axes = _axes(nnx, part, tuple(parameter.shape), taps, tap)
        used = {option: getattr(sample, option) for option in _USED[its_role]}
        weights.append(_Weight(name, parameter, make(its_role, **axes, **used), bias))
    return weights


def _axes(
    nnx: Any, layer: Any, given: tuple[int, ...], taps: Taps, tap: Sequence[int] | None
) -> dict[str, Any]:
    """Return the options of an initialiser that depend on the kind of layer.

    Axes are counted from the last: additional leading axes are those of a stack.
    """
    axes: dict[str, Any] = {"in_axis": -2, "out_axis": -1, "batch_axis": ()}
    options: dict[str, Any] = {"taps": taps}
    shape: Sequence[int]
    if isinstance(layer, nnx.LoRA):
        shape = given[-2:]
    elif isinstance(layer, nnx.Linear):
        shape = layer.in_features, layer.out_features
    elif isinstance(layer, nnx.LinearGeneral):
        shape = (*layer.batch_axis.values(), *layer.in_features, *layer.out_features)
        out = -len(layer.out_features)
        both = out - len(layer.in_features)
        axes |= {"in_axis": range(both, out), "out_axis": range(out, 0)}
        axes["batch_axis"] = range(-len(shape), both)
    elif isinstance(layer, nnx.Einsum):
        shape = layer.kernel_shape
        letters = einsum_letters(layer.einsum_str, "einsum_str", NUMBERED)
        kinds = ["I" if c == "I" else "O" if c == "O" else "B" for c in letters]
        for name, kind in zip(axes, "IOB", strict=True):
            axes[name] = [axis for axis, c in enumerate(kinds, -len(kinds)) if c == kind]
    elif isinstance(layer, (nnx.Conv, nnx.ConvTranspose)):
        shape = layer.kernel_shape
        options["groups"] = getattr(layer, "feature_group_count", 1)
        if getattr(layer, "transpose_kernel", False):
            axes |= {"in_axis": -1, "out_axis": -2}
        options |= _identity(layer, isinstance(layer, nnx.ConvTranspose), taps)
    else:
        raise _unknown_layer(layer)
    stack = len(given) - len(shape)
    if given[max(stack, 0) :] != tuple(shape):
        should = (
            f"the last axes of this {type(layer).__name__}'s kernel should be {tuple(shape)}, "
            "after those of a stack of layers"
        )
        cure = "stack layers along leading axes: nnx.vmap(..., out_axes=0)"
        raise ShapeError(message("kernel", given, should, cure))
    axes["batch_axis"] = (*range(stack), *axes["batch_axis"])
    options |= axes
    return options if tap is None else options | {"tap": tap}


def _unknown_layer(layer: Any) -> OptionTypeError:
    should = f"it should be {_KNOWN} of flax.nnx"
    cure = (
        "use idi(...) or idiz(...) as kernel_init; into Equinox's immutable modules "
        "insert their result with eqx.tree_at (in_axis=1, out_axis=0)"
    )
    return OptionTypeError(message("layer", type(layer), should, cure))


def _identity(layer: Any, transposed: bool, taps: Taps) -> dict[str, Any]:
    """Return the identity tap and the phases of a convolution, where its order of taps uses them.

    A ConvTranspose is a convolution of the input spread by its strides. Only `transpose_kernel`
    flips the kernel.
    """
    kernel = layer.kernel_size
    dilation, strides = _per_axis(layer.kernel_dilation, kernel), _per_axis(layer.strides, kernel)
    spread = strides if transposed else _per_axis(layer.input_dilation, kernel)
    flipped = bool(getattr(layer, "transpose_kernel", False))
    if isinstance(layer.padding, str):
        axes = zip(kernel, dilation, strides, strict=True)
        left = [_left_padding(layer, d * (k - 1), s, transposed, flipped) for k, d, s in axes]
    else:
        left = [p if isinstance(p, int) else p[0] for p in _per_axis(layer.padding, kernel)]
    if len(kernel) > len(SPATIAL):
        return {}
    flips = [flipped] * len(kernel)
    options = identity(left, dilation, kernel, spread, flips, forward=False)
    layout = SPATIAL[len(SPATIAL) - len(kernel) :] + "OI"
    used = either((*kernel, 1, 1), "transit", layout=layout, taps=taps, **options)
    return {name: getattr(used, name) for name in options}


def _left_padding(layer: Any, reach: int, stride: int, transposed: bool, flipped: bool) -> int:
    """Return the left padding that a name of a padding means along one axis.

    `reach` is dilation * (kernel size - 1). Names are those of `jax.lax`; CIRCULAR and REFLECT
    those of `flax.nnx`.
    """
    more = max(reach + 1 - stride, 0)
    rules = {"SAME": more // 2, "SAME_LOWER": -(-more // 2), "VALID": 0, "CAUSAL": reach}
    rules |= {"CIRCULAR": reach // 2, "REFLECT": reach // 2}
    if transposed:
        rules = {"SAME": reach if stride > reach else (reach + stride) // 2, "VALID": reach}
        rules["CIRCULAR"] = reach - (more + flipped) // 2
    name = layer.padding.upper()
    if name not in rules:
        should = f"the identity tap is known for {', '.join(rules)} and for numbers"
        cure = "give its kernel an initialiser: idi(tap=...)"
        raise OptionError(message("padding", layer.padding, should, cure))
    return rules[name]


def _per_axis(value: Any, kernel: Sequence[int]) -> tuple[Any, ...]:
    """Return an option of a convolution for every axis; in Flax None means 1."""
    value = 1 if value is None else value
    return (value,) * len(kernel) if isinstance(value, int) else tuple(value)


def _write(outer: Any, weights: list[_Weight]) -> None:
    """Build all weights first; then set them, zero biases, and the scales of a weight norm."""
    nnx, new, scales = _nnx(), [], {}
    for name, parameter, init, bias in weights:
        old = parameter.get_value()
        weight = build(init, old.shape, old.dtype, sharding_of(old))
        new.append((parameter, weight))
        if bias is not None:
            new.append((bias, jnp.zeros_like(bias.get_value())))
        path = tuple(name.split("."))
        if isinstance(outer, nnx.WeightNorm) and outer.variable_filter(path, parameter):
            scales[path] = _scale(outer, weight)
        elif isinstance(outer, nnx.SpectralNorm):
            check_normed(outer, np.asarray(weight))
    for parameter, value in new:
        parameter.set_value(value)
    if scales and outer.use_scale:
        outer.scales |= scales


def _scale(outer: Any, kernel: Any) -> Any:
    """Return the scales that undo weight norm's division of a kernel by its norms.

    Weight norm adds an epsilon to the squared norms, which has to be small beside them.
    """
    given = outer.feature_axes
    features = {axis % kernel.ndim for axis in (given if isinstance(given, tuple) else (given,))}
    squares = jnp.sum(
        jnp.square(kernel), axis=[axis for axis in range(kernel.ndim) if axis not in features]
    )
    exact = (squares == 0) | (outer.epsilon <= 1e-5 * squares)
    if not outer.use_scale:
        exact &= (squares == 0) | (jnp.abs(squares - 1) < 1e-5)
    if not exact.all():
        should = f"it divides by sqrt(sum of squares + epsilon={outer.epsilon}), and should leave "
        should += "this kernel unchanged"
        cure = "wrap it with use_scale=True and epsilon=0.0, or wrap the layer afterwards"
        raise OptionError(message("layer", type(outer).__name__, should, cure))
    return jnp.sqrt(squares)
