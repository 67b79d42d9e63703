"""One built layer: what its axes are, where its identity tap lies, and its weights in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import keras
from array_api_compat import numpy as xp

from idinit_ref import Plan, Role
from idinit_ref.errors import OptionError, OptionTypeError, message
from idinit_ref.layout import Taps, identity_tap, merge_axes, split_axes
from idinit_ref.pattern import Wide
from idinit_ref.plan import either

from ._initializers import shape_and_dtype

__all__ = ["idi_layer_", "idiz_layer_", "layer_plans"]

Layer = TypeVar("Layer")


class Weight(NamedTuple):
    """One weight of a layer, and what only the layer knows of it."""

    name: str
    variable: Any
    letters: str  # a letter for each axis; axes of one letter are joined
    bias: Any = None
    groups: int = 1
    transposed: bool = False
    taps: Taps = "channel_major"  # the default where the caller names none
    left_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    causal: bool = False  # whether its padding comes in front of the convolution
    parts: int = 1  # how many weights of one size are packed along its outputs
    last: bool = True  # whether it is among the layer's last weights

    def plan(
        self, role: Role, number: int, taps: Taps | None, tap: Sequence[int] | None, **values: Any
    ) -> Plan:
        """Decide it, from the values of both roles."""
        shape, _ = shape_and_dtype(self.variable)
        taps = self.taps if taps is None else taps
        if taps == "center" and tap is None:
            tap = identity_tap(self.left_padding, self.dilation, shape[: len(self.dilation)])
        shape, layout = merge_axes(shape, self.letters)
        return either(
            shape,
            role,
            number,
            layout=layout,
            groups=self.groups,
            transposed=self.transposed,
            taps=taps,
            tap=tap,
            **values,
        )

    def stored(self, left: Sequence[int]) -> dict[str, Any]:
        """Return what a model's plan needs besides the letters, with the padding before it."""
        facts: dict[str, Any] = {}
        if self.groups > 1:
            facts = {"groups": self.groups, "transposed": self.transposed}
        if self.dilation:
            padding = self.left_padding if self.causal else padded(self.left_padding, left)
            kernel = shape_and_dtype(self.variable)[0][: len(self.dilation)]
            with suppress(OptionError):  # no tap is the identity
                facts["tap"] = identity_tap(padding, self.dilation, kernel)
        return facts


def padded(padding: Sequence[int], left: Sequence[int]) -> tuple[int, ...]:
    """Return the left padding on a kernel's axes, with what an operation before it has added.

    >>> padded((1, 1), (0, 2, 3))  # the last axes are the kernel's
    (3, 4)
    """
    more = left[len(left) - len(padding) :] or (0,) * len(padding)
    return tuple(a + b for a, b in zip(padding, more, strict=True))


def _dense(layer: Any) -> Iterator[Weight]:
    yield Weight("kernel", layer.kernel, "IO", layer.bias)


def _einsum_dense(layer: Any) -> Iterator[Weight]:
    inputs, rest = layer.equation.replace("...", "").split(",")
    kernel, outputs = rest.split("->")
    letters = "".join("I" if c not in outputs else "B" if c in inputs else "O" for c in kernel)
    if not {"I", "O"} <= set(letters) or len(set(kernel)) < len(kernel):
        raise OptionError(
            message(
                "equation",
                layer.equation,
                f"the axes {kernel!r} of its kernel should all differ, and at least one should be "
                "in the input alone and one in the output alone",
                "leave a kernel that only scales as it is, or write another equation",
            )
        )
    yield Weight("kernel", layer.kernel, letters, layer.bias)


def _left_padding(layer: Any, strides: Sequence[int], more: Sequence[int] | None) -> Iterator[int]:
    """Yield the left padding on each axis; of a transposed one, that of what it transposes.

    'same' leaves as many places as the input has times the stride, or as output_padding says.
    """
    axes = zip(layer.kernel_size, layer.dilation_rate, strides, strict=True)
    for axis, (k, step, stride) in enumerate(axes):
        size = step * (k - 1) + 1
        if layer.padding == "same":
            extra = stride - size % 2 if more is None else more[axis]
            yield max(size - size % 2 - extra, 0) // 2
        else:
            yield size - 1 if layer.padding == "causal" else 0


def _kernel(
    layer: Any,
    name: str,
    letters: str,
    strides: Sequence[int] | None = None,
    more: Sequence[int] | None = None,
    **facts: Any,
) -> Weight:
    """Return a convolution's kernel, whose spatial axes stand first."""
    return Weight(
        name,
        getattr(layer, name),
        "DHW"[3 - layer.rank :] + letters,
        left_padding=tuple(_left_padding(layer, strides or (1,) * layer.rank, more)),
        dilation=layer.dilation_rate,
        causal=layer.padding == "causal",
        **facts,
    )


def _convolution(layer: Any) -> Iterator[Weight]:
    alone = layer.groups > 1 and layer.kernel.shape[-2] == 1
    taps = "center" if alone else "channel_major"
    yield _kernel(layer, "kernel", "IO", bias=layer.bias, groups=layer.groups, taps=taps)


def _transposed_convolution(layer: Any) -> Iterator[Weight]:
    yield _kernel(layer, "kernel", "OI", layer.strides, layer.output_padding, bias=layer.bias)


def _depthwise(layer: Any, name: str, **facts: Any) -> Weight:
    channels = getattr(layer, name).shape[-2]
    return _kernel(layer, name, "IO", groups=channels, transposed=True, taps="center", **facts)


def _depthwise_convolution(layer: Any) -> Iterator[Weight]:
    yield _depthwise(layer, "kernel", bias=layer.bias)


def _separable_convolution(layer: Any) -> Iterator[Weight]:
    first = _depthwise(layer, "depthwise_kernel", last=False)
    yield first
    yield Weight(
        "pointwise_kernel",
        layer.pointwise_kernel,
        first.letters,
        layer.bias,
        left_padding=(0,) * layer.rank,
        dilation=(1,) * layer.rank,
    )


def _attention(layer: Any) -> Iterator[Weight]:
    out = layer._output_dense
    gate = getattr(layer, "_gate_dense", None)
    for part in (layer._query_dense, layer._key_dense, layer._value_dense, gate, out):
        if part is not None:
            for weight in _weights(part):
                yield weight._replace(name=f"{part.name}/{weight.name}", last=part is out)


_KNOWN: dict[str, Callable[[Any], Iterator[Weight]]] = {
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "Conv1DTranspose": _transposed_convolution,
    "Conv2DTranspose": _transposed_convolution,
    "Conv3DTranspose": _transposed_convolution,
    "DepthwiseConv1D": _depthwise_convolution,
    "DepthwiseConv2D": _depthwise_convolution,
    "SeparableConv1D": _separable_convolution,
    "SeparableConv2D": _separable_convolution,
    "MultiHeadAttention": _attention,
    "GroupQueryAttention": _attention,
}


_CELLS = {"LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1}


def known_weights(layer: Any) -> list[Weight]:
    """Return what a layer tells of its weights; nothing if it is not known, or changed them."""
    if not layer.built or is_changed(layer):
        return []
    for name, parts in _CELLS.items():
        if isinstance(layer, getattr(keras.layers, name)):
            kernels = ("kernel", "recurrent_kernel")
            return [Weight(n, getattr(layer, n), "IO", parts=parts) for n in kernels]
    names = _names(layer)
    try:
        return list(_KNOWN[names[0]](layer)) if names else []
    except OptionError:  # an equation that is no matrix
        return []


def _names(layer: Any) -> list[str]:
    return [name for name in _KNOWN if isinstance(layer, getattr(keras.layers, name))]


def is_changed(layer: Any) -> bool:
    """Whether a layer computes its weight from other variables: LoRA, quantised."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))


def quantised_parts(layer: Any) -> list[Any]:
    """Return what a quantised layer holds instead of a weight: integers, and their scales."""
    if not getattr(layer, "quantization_mode", None):
        return []
    bias = getattr(layer, "bias", None)
    return [variable for variable in layer._non_trainable_variables if variable is not bias]


def _weights(layer: Any) -> Iterator[Weight]:
    """Return the weights of a layer, in the order in which it uses them."""
    names = _names(layer)
    if not names:
        raise OptionTypeError(
            message(
                "layer",
                type(layer).__name__,
                f"it should be a keras.layers object of one of {', '.join(_KNOWN)}",
                "give each such layer of a model on its own; for other weights use idi_(variable)",
            )
        )
    if not layer.built:
        raise OptionError(
            message(
                "layer",
                layer.name,
                "it should be built, and has no weights yet",
                "call it once on an input, or call its build(input_shape)",
            )
        )
    if is_changed(layer):
        raise OptionError(
            message(
                "layer",
                layer.name,
                "its kernel should be its own: here LoRA or quantization has changed what it means",
                "initialise it first, and enable them afterwards",
            )
        )
    return _KNOWN[names[0]](layer)


def _decide(
    layer: Any, role: Role, taps: Taps | None, tap: Sequence[int] | None, **values: Any
) -> Iterator[tuple[Weight, Plan]]:
    for k, weight in enumerate(_weights(layer)):
        own: Role = role if weight.last else "transit"
        yield weight, weight.plan(own, k, taps, None if k else tap, **values)


def _assign(
    layer: Layer, role: Role, taps: Taps | None, tap: Sequence[int] | None, **values: Any
) -> Layer:
    """Make everything, then write everything."""
    ready = []
    for weight, decided in _decide(layer, role, taps, tap, **values):
        shape, dtype = shape_and_dtype(weight.variable)
        array = split_axes(xp, decided.build(dtype=dtype), shape, weight.letters)
        ready.append((weight.variable, array))
        if weight.bias is not None:
            ready.append((weight.bias, xp.zeros(shape_and_dtype(weight.bias)[0])))
    for variable, array in ready:
        variable.assign(array)
    return layer


def layer_plans(
    layer: Any,
    role: Role = "transit",
    *,
    gain: float = 1.0,
    eps: float = 1e-6,
    wide: Wide = "truncate",
    taps: Taps | None = None,
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    seed: int = 0,
) -> dict[str, Plan]:
    """Decide the weights of a built layer from what the layer knows, and change nothing.

    All options are validated; those of a role that none of its weights has are not used.

    Parameters
    ----------
    layer : keras.layers.Layer
        Built: Dense, EinsumDense, Conv1D to Conv3D and their Transpose, DepthwiseConv1D and 2D,
        SeparableConv1D and 2D, MultiHeadAttention or GroupQueryAttention.
    role : {"transit", "zero"}
        With "zero" the last weights of a layer of several are IDIZ (the pointwise kernel, the
        output projection), and those before them are transit.
    gain, wide, loosen, seed
        For the weights that are transit, as in `idinit_ref.plan`. With `loosen`, weight k of a
        layer has the seed ``seed + k``.
    eps : float
        For the weights that are zero, as in `idinit_ref.plan`.
    taps : {"channel_major", "spatial_major", "center"}, optional
        If left out, "center" for kernels with one input channel to a group (depthwise, and
        grouped with more than one group), else "channel_major".
    tap : sequence of int, optional
        The tap of ``taps="center"`` in the layer's first weight; the identity tap if left out.

    Returns
    -------
    dict of str to Plan
        By the weight's name, such as "kernel" or "query/kernel". A plan has the weight's shape,
        except where axes of one kind are joined (EinsumDense: heads and their size).

    Raises
    ------
    OptionTypeError
        If the layer is of another kind, or an option of another type.
    OptionError
        If it is not built, uses LoRA or quantization, has an equation without inputs or outputs,
        or if no tap of its kernel is the identity; and as in `idinit_ref.plan`.

    Notes
    -----
    The identity tap is the left padding divided by the dilation d (spec section 3). The left
    padding is 0 for 'valid', d (k - 1) for 'causal', and half of d (k - 1), rounded down, for
    'same'. With 'same' and strides above 1 Keras pads by the length of the input, which no layer
    knows; the rule of stride 1 stands in there.

    A transposed convolution of stride s has the tap through which output s * i is input i:
    0 for 'valid'; for 'same' with K = d (k - 1) + 1, half of max(K - s, 0), or of
    max(K - K % 2 - p, 0) with an `output_padding` p, rounded down and divided by d. TensorFlow
    and JAX agree in all of this.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import layer_plans
    >>> layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4))
    >>> layer.build((None, 5, 3))
    >>> decided = layer_plans(layer)["kernel"]
    >>> decided.shape, decided.layout
    ((3, 8), 'IO')
    """
    values = {"gain": gain, "eps": eps, "wide": wide, "loosen": loosen, "seed": seed}
    decided = _decide(layer, role, taps, tap, **values)
    return {weight.name: its_plan for weight, its_plan in decided}


def idi_layer_(
    layer: Layer,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    taps: Taps | None = None,
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    seed: int = 0,
) -> Layer:
    """Make a built layer's weights identity-preserving and its biases 0, in place.

    Parameters
    ----------
    layer, gain, wide, taps, tap, loosen, seed
        As in :func:`layer_plans`.

    Returns
    -------
    keras.layers.Layer
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`layer_plans` and `idinit_ref.Plan.build`; nothing is written then.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import idi_layer_
    >>> layer = keras.layers.Conv1D(2, 3, padding="same")
    >>> layer.build((None, 4, 2))
    >>> x = keras.ops.reshape(keras.ops.arange(8, dtype="float32"), (1, 4, 2))
    >>> bool(keras.ops.all(idi_layer_(layer, taps="center")(x) == x))
    True
    """
    return _assign(layer, "transit", taps, tap, gain=gain, wide=wide, loosen=loosen, seed=seed)


def idiz_layer_(
    layer: Layer,
    *,
    eps: float = 1e-6,
    taps: Taps | None = None,
    tap: Sequence[int] | None = None,
) -> Layer:
    """Make a built layer the last one of a residual branch, and its biases 0, in place.

    Its last weights become zero-preserving (IDIZ_eps, spec section 2).

    Parameters
    ----------
    layer, eps, taps, tap
        As in :func:`layer_plans` with role "zero".

    Returns
    -------
    keras.layers.Layer
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in :func:`layer_plans` and `idinit_ref.Plan.build`; nothing is written then.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import idiz_layer_
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 2))
    >>> x = keras.ops.convert_to_tensor([[3.0, 1.0]])
    >>> keras.ops.convert_to_numpy(idiz_layer_(layer, eps=0.5)(x))
    array([[ 1., -1.]], dtype=float32)
    """
    return _assign(layer, "zero", taps, tap, eps=eps)
