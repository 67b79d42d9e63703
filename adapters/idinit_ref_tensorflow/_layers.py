"""One built layer: its axes, its identity tap, and its weights, set in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import keras
from array_api_compat import numpy as xp

from idinit_ref import Plan, Role, plan
from idinit_ref.core.axes import einsum_letters, stored
from idinit_ref.core.kernel import Taps
from idinit_ref.core.layout import merge_axes
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.core.weights import either
from idinit_ref.diagnostics.spectrum import check_normed
from idinit_ref.errors import OptionError, OptionTypeError, message

from ._variable import shape_and_dtype
from ._window import Sizes, Window, same_transposed, sliding

__all__ = ["idi_layer_", "idiz_layer_", "layer_plans"]

Layer = TypeVar("Layer")


class Weight(NamedTuple):
    """One weight of a layer, with the facts that only the layer knows."""

    name: str
    variable: Any
    letters: str  # a letter for each axis; axes of one letter are joined
    bias: Any = None
    groups: int = 1
    transposed: bool = False
    window: Callable[[Sizes], Window] | None = None  # of a convolution, from its input's sizes
    sizes: Sizes = ()  # of the input that its layer was built for
    parts: int = 1  # how many weights of one size are packed along its outputs
    last: bool = True  # whether it is among the layer's last weights

    def plan(self, role: Role, number: int, tap: Sequence[int] | None, **options: Any) -> Plan:
        """Return its plan, from the options of both roles."""
        shape, layout = merge_axes(shape_and_dtype(self.variable)[0], self.letters)
        facts: dict[str, Any] = {}
        if self.groups > 1:
            facts = {"groups": self.groups, "transposed": self.transposed}
        if self.window is not None:
            facts |= self.window(self.sizes).stored()
        if tap is not None:
            plan(shape, layout=layout, taps=options["taps"], tap=tap)  # raises if it does not fit
            facts["tap"] = tap
        return either(shape, role, number, layout=layout, **facts, **options)


def _dense(layer: Any) -> Iterator[Weight]:
    yield Weight("kernel", layer.kernel, "IO", layer.bias)


def _einsum_dense(layer: Any) -> Iterator[Weight]:
    yield Weight("kernel", layer.kernel, einsum_letters(layer.equation), layer.bias)


def _window(layer: Any, sizes: Sizes) -> Window:
    """Return how a convolution slides over an input; leading sizes are ignored."""
    steps = layer.kernel_size, layer.strides, layer.dilation_rate
    return sliding(*steps, layer.padding, sizes[-layer.rank :])


def _transposed_window(layer: Any, _: Sizes) -> Window:
    """Return how a transposed convolution slides, which its input's sizes do not change."""
    more = layer.output_padding or (None,) * layer.rank
    left = (0,) * layer.rank
    if layer.padding == "same":
        axes = zip(layer.kernel_size, layer.dilation_rate, layer.strides, more, strict=True)
        left = tuple(same_transposed(d * (k - 1) + 1, s, extra) for k, d, s, extra in axes)
    return Window(layer.kernel_size, left, layer.dilation_rate, layer.strides)


def _built_for(layer: Any) -> Sizes:
    """Return the spatial sizes of the input that a layer was built for, if known."""
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, (tuple, list)) or len(shape) != layer.rank + 2:
        return ()
    return tuple(shape[2:] if layer.data_format == "channels_first" else shape[1:-1])


def _kernel(layer: Any, name: str, letters: str, window: Any = _window, **facts: Any) -> Weight:
    """Return a convolution's kernel; its spatial axes come first."""
    return Weight(
        name,
        getattr(layer, name),
        "DHW"[3 - layer.rank :] + letters,
        window=partial(window, layer),
        sizes=_built_for(layer),
        **facts,
    )


def _convolution(layer: Any) -> Iterator[Weight]:
    yield _kernel(layer, "kernel", "IO", bias=layer.bias, groups=layer.groups)


def _transposed_convolution(layer: Any) -> Iterator[Weight]:
    yield _kernel(layer, "kernel", "OI", _transposed_window, bias=layer.bias)


def _depthwise(layer: Any, name: str, **facts: Any) -> Weight:
    channels = getattr(layer, name).shape[-2]
    return _kernel(layer, name, "IO", groups=channels, transposed=True, **facts)


def _depthwise_convolution(layer: Any) -> Iterator[Weight]:
    yield _depthwise(layer, "kernel", bias=layer.bias)


def _separable_convolution(layer: Any) -> Iterator[Weight]:
    first = _depthwise(layer, "depthwise_kernel", last=False)
    yield first
    yield Weight("pointwise_kernel", layer.pointwise_kernel, first.letters, layer.bias)


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
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed_convolution
    ),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise_convolution),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable_convolution),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), _attention),
}


_CELLS = {"LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1}


def known_weights(layer: Any) -> list[Weight]:
    """Return the weights of a layer: none if its type is unknown, or LoRA or quantisation is on."""
    if not layer.built or is_changed(layer):
        return []
    for name, parts in _CELLS.items():
        if isinstance(layer, getattr(keras.layers, name)):
            kernels = ("kernel", "recurrent_kernel")
            return [Weight(n, getattr(layer, n), "IO", parts=parts) for n in kernels]
    names = _names(layer)
    try:
        return list(_KNOWN[names[0]](layer)) if names else []
    except OptionError:  # the equation has no inputs or no outputs
        return []


def _names(layer: Any) -> list[str]:
    return [name for name in _KNOWN if isinstance(layer, getattr(keras.layers, name))]


def is_changed(layer: Any) -> bool:
    """Whether a layer computes its weight from other variables: LoRA or quantisation."""
    return bool(getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None))


def quantised_parts(layer: Any) -> list[Any]:
    """Return the variables that replace a quantised layer's weight: integers and their scales."""
    if not getattr(layer, "quantization_mode", None):
        return []
    bias = getattr(layer, "bias", None)
    return [variable for variable in layer._non_trainable_variables if variable is not bias]


def _weights(layer: Any) -> Iterator[Weight]:
    """Return the weights of a layer, in the order of its computation."""
    if isinstance(layer, keras.layers.SpectralNormalization):
        layer = layer.layer
    names = _names(layer)
    if not names:
        should = f"it should be a keras.layers object of one of {', '.join(_KNOWN)}"
        cure = "pass each such layer of a model by itself; for other weights use idi_(variable)"
        raise OptionTypeError(message("layer", type(layer).__name__, should, cure))
    if not layer.built:
        should = "it should be built; it has no weights yet"
        cure = "call it once on an input, or call its build(input_shape)"
        raise OptionError(message("layer", layer.name, should, cure))
    if is_changed(layer):
        should = "its kernel should be its weight, without LoRA or quantization"
        cure = "initialise it first, and enable these afterwards"
        raise OptionError(message("layer", layer.name, should, cure))
    return _KNOWN[names[0]](layer)


def _decide(
    layer: Any, role: Role, tap: Sequence[int] | None, **options: Any
) -> Iterator[tuple[Weight, Plan]]:
    for k, weight in enumerate(_weights(layer)):
        its_role: Role = role if weight.last else "transit"
        yield weight, weight.plan(its_role, k, None if k else tap, **options)


def _assign(layer: Layer, role: Role, tap: Sequence[int] | None, **options: Any) -> Layer:
    """Build all weights, then write them."""
    ready = []
    for weight, decided in _decide(layer, role, tap, **options):
        shape, dtype = shape_and_dtype(weight.variable)
        array = stored(decided, dtype, shape, weight.letters)
        if isinstance(layer, keras.layers.SpectralNormalization):
            check_normed(layer, array)
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
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> dict[str, Plan]:
    """Decide the weights of a built layer from its settings, and change nothing.

    All options are validated. An option for a role that no weight of the layer has is ignored.

    Parameters
    ----------
    layer : keras.layers.Layer
        Built: Dense, EinsumDense, Conv1D to Conv3D and their Transpose, DepthwiseConv1D and 2D,
        SeparableConv1D and 2D, MultiHeadAttention or GroupQueryAttention; or one of them in
        SpectralNormalization, if the norm does not change the weight.
    role : {"transit", "zero"}
        The role of the layer. In a layer of several weights only the last ones (the pointwise
        kernel, the output projection) get "zero"; those before them are "transit".
    gain, wide, loosen, loosen_at, seed
        For weights in role "transit", as in `idinit_ref.plan`. With `loosen`, weight k of a layer
        has the seed ``seed + k``.
    eps, form
        For weights in role "zero", as in `idinit_ref.plan`.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel becomes a matrix, as in `idinit_ref.plan`. The first three start at the
        identity tap, in each phase of a transposed convolution.
    tap : sequence of int, optional
        The identity tap of the layer's first weight. By default it is read from the layer.

    Returns
    -------
    dict of str to Plan
        By the weight's name, such as "kernel" or "query/kernel". A plan has the weight's shape,
        but joins several axes of one kind (EinsumDense: heads and their size).

    Raises
    ------
    OptionTypeError
        If the layer or an option is not of a type listed here.
    OptionError
        If the layer is not built, uses LoRA or quantization, or has an equation without inputs or
        outputs; and as in `idinit_ref.plan`.

    Notes
    -----
    The identity tap is the left padding divided by the dilation d, or the tap nearest to that
    (spec section 3). The left padding is 0 for 'valid', d (k - 1) for 'causal', and half of
    d (k - 1), rounded down, for 'same'. With 'same' and a stride s above 1 Keras pads by the size
    n of the input: half of max(s (ceil(n/s) - 1) + d (k - 1) + 1 - n, 0). The size is that for
    which the layer was built. If that is None, the rule for stride 1 is used. (For a whole model,
    :func:`init_` uses the size of the call.)

    A transposed convolution of stride s has s phases. Its left padding p is 0 for 'valid'. For
    'same' with K = d (k - 1) + 1 it is half of max(K - s, 0), or of max(K - K % 2 - q, 0) with an
    `output_padding` q, rounded down. TensorFlow, JAX and PyTorch agree in all of this, and none
    of them flips the kernel.

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
    decided = _decide(
        layer, role, tap, gain=gain, eps=eps, wide=wide, form=form, taps=taps, loosen=loosen,
        loosen_at=loosen_at, seed=seed,
    )  # fmt: skip
    return {weight.name: its_plan for weight, its_plan in decided}


def idi_layer_(
    layer: Layer,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
    loosen: float = 0.0,
    loosen_at: LoosenAt = "all",
    seed: int = 0,
) -> Layer:
    """Make a built layer's weights identity-preserving and its biases 0, in place.

    Parameters
    ----------
    layer, gain, wide, taps, tap, loosen, loosen_at, seed
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
    >>> bool(keras.ops.all(idi_layer_(layer)(x) == x))
    True
    """
    return _assign(
        layer, "transit", tap, gain=gain, wide=wide, taps=taps, loosen=loosen, loosen_at=loosen_at,
        seed=seed,
    )  # fmt: skip


def idiz_layer_(
    layer: Layer,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Layer:
    """Make a built layer the end of a residual branch, and its biases 0, in place.

    Its last weights become zero-preserving (IDIZ_eps, spec section 2).

    Parameters
    ----------
    layer, eps, form, taps, tap
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
    return _assign(layer, "zero", tap, eps=eps, form=form, taps=taps)
