"""One weight: Keras initializers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import keras

from idinit_ref import Plan, Role
from idinit_ref.core.axes import (
    bias,
    check_clear,
    einsum_letters,
    joined,
    letters_of,
    numbered,
    unknown,
)
from idinit_ref.core.kernel import Taps
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import DTypeError, message
from idinit_ref.tracing import asking

from ._sharded import sharded, tensor

__all__ = ["IDI", "IDIZ", "decide", "dtype_name"]

Axes = int | Sequence[int]

_CONVOLUTIONS = {"BaseConv", "BaseDepthwiseConv", "BaseSeparableConv", "ConvLSTMCell"}
_AXES = ("input_axes", "output_axes", "batch_axes")
KERAS_LAYOUTS = {2: "IO", 3: "WIO", 4: "HWIO", 5: "DHWIO"}


def decide(shape: Any, role: Role, *, layout: str | None, **options: Any) -> tuple[Plan, str]:
    """Return the plan of a weight and a letter for each axis; the plan joins axes of one letter."""
    sizes = tuple(shape) if isinstance(shape, Iterable) else shape
    axes = {name: options.pop(name, None) for name in _AXES}
    if isinstance(sizes, tuple) and layout is None:
        copies = axes["batch_axes"] or ()
        if axes["input_axes"] or axes["output_axes"] or (copies and len(sizes) - len(copies) == 2):
            numbers = (axes["input_axes"] or (-2,), axes["output_axes"] or (-1,), copies)
            layout = letters_of(sizes, dict(zip(_AXES, numbers, strict=True)))
        elif copies:
            raise unknown(sizes, f"batch_axes={copies}", "input_axes= and output_axes=")
        else:
            layout = _layout_of_caller(sizes, options)
    decided = joined(sizes, role, layout, **options)
    return decided, layout or decided.layout


def _layout_of_caller(sizes: tuple[Any, ...], options: Mapping[str, Any]) -> str | None:
    """Return the axis letters that the calling layer implies, or Keras' usual ones."""
    variable, _ = asking((keras.Variable,))
    layer, _ = asking((keras.Layer,))
    if layer is not None and variable is not None:  # another layer's call may fill the variable
        owners = [x for x in layer._flatten_layers() if any(variable is v for v in x.weights)]
        layer = owners[-1] if owners else layer
    usual = KERAS_LAYOUTS.get(len(sizes))
    if isinstance(layer, keras.layers.EinsumDense):
        if variable is not None and variable.name == "bias":
            raise bias(sizes)
        return einsum_letters(layer.equation)
    kinds = {base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("keras.")}
    if "BaseConvTranspose" in kinds and usual is not None:
        return usual[:-2] + "OI"
    names = "input_axes=, output_axes= and batch_axes="
    check_clear(sizes, layer, bool(kinds & _CONVOLUTIONS), options, names)
    return usual


def dtype_name(dtype: Any) -> str:
    """Return Keras' name of a dtype, floatx for None."""
    try:
        return str(keras.backend.standardize_dtype(dtype))
    except (TypeError, ValueError) as problem:
        should = f"Keras should accept it; it raised: {problem}"
        cure = "pass a name such as 'float32' or 'bfloat16', or None for keras.config.floatx()"
        raise DTypeError(message("dtype", dtype, should, cure)) from problem


def _smallest_shape(layout: Any, stride: Any, blocks: Any, tap: Any) -> tuple[int, ...]:
    """Return the smallest shape that valid options fit; it has no entries."""

    def whole(values: Any) -> list[int]:
        listed = values if isinstance(values, (list, tuple)) else ()
        return [max(int(value), 0) for value in listed if isinstance(value, Integral)]

    places = whole(tap)
    rank = len(places or whole(stride))
    letters = layout if isinstance(layout, str) else KERAS_LAYOUTS.get(2 + rank, "IO")
    kernel = zip((c for c in "DHW" if c in letters), places, strict=False)
    sizes = {"O": sum(whole(blocks))} | {c: place + 1 for c, place in kernel}
    return tuple(1 if c in letters[:k] else sizes.get(c, 0) for k, c in enumerate(letters))


class _Initializer(keras.initializers.Initializer):  # type: ignore[misc]  # Keras is untyped
    """An initializer of one role, with the options of `idinit_ref.plan`."""

    role: Role

    def _validate(self, layout: str | None, axes: tuple[Axes | None, ...], **options: Any) -> None:
        shape = _smallest_shape(layout, *(options[name] for name in ("stride", "blocks", "tap")))
        letters = KERAS_LAYOUTS.get(len(shape)) if layout is None else layout
        decided = joined(shape, self.role, letters, **options)
        self._options = {name: getattr(decided, name) for name in options} | {"layout": layout}
        self._axes: dict[str, Any] = dict(numbered(layout, dict(zip(_AXES, axes, strict=True))))

    def __call__(self, shape: Sequence[int], dtype: Any = None, layout: Any = None) -> Any:
        """Build a weight.

        Parameters
        ----------
        shape : sequence of int
            The stored shape.
        dtype : str or dtype, optional
            Real floating or complex; ``keras.config.floatx()`` if left out.
        layout : keras.distribution.TensorLayout or jax.sharding.Sharding, optional
            The placement on the devices that Keras' JAX backend asks for (not axis letters).

        Returns
        -------
        tensor of Keras' backend, shape `shape`
            Every entry is the float64 one rounded once, to nearest even.

        Raises
        ------
        ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
            As in `idinit_ref.plan` and `idinit_ref.Plan.build`.
        """
        decided, letters = decide(shape, self.role, **self._options, **self._axes)
        name = dtype_name(dtype)
        if layout is not None:
            return sharded(decided, name, layout, tuple(shape), letters)
        return tensor(decided, name, tuple(shape), letters)

    def get_config(self) -> dict[str, Any]:
        """Return all options, ready for JSON.

        Returns
        -------
        dict
            The constructor's arguments.

        Examples
        --------
        >>> from idinit_ref_tensorflow import IDIZ
        >>> IDIZ(eps=0.5, layout="HWIO").get_config()["layout"]
        'HWIO'
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (self._options | self._axes).items()
        }


@keras.saving.register_keras_serializable(package="idinit_ref")
class IDI(_Initializer):
    """Identity-preserving weights, IDI_tau: ``W[i, j] = tau if j = i mod n`` [P, Eq. 3].

    For kernels IDIC_tau [P, Sec. 3.3]; spec sections 1 and 3 to 5.

    Parameters
    ----------
    gain, wide, groups, transposed, stride, blocks, taps, tap, loosen, loosen_at, seed
        As in `idinit_ref.plan`.
    layout : str, optional
        A letter for each axis. Axes of one letter count as one: "IOO" for the kernel (d, heads,
        size) of queries, "IIO" for that of an output projection.
    input_axes, output_axes, batch_axes : int or sequence of int, optional
        The axes of the inputs, of the outputs and of stacked weights, instead of `layout`; they are
        `in_axis` and so on of ``jax.nn.initializers``. If only some are given, the others are -2,
        -1 and none. The other axes are the kernel's.

    Raises
    ------
    LayoutError, OptionError, OptionTypeError
        At construction, if an option is wrong for every shape.

    Notes
    -----
    An initializer sees only a shape. If no option names the axes, it looks at the layer that calls
    it: the equation of an EinsumDense (also in attention), or the rank of a convolution: "WIO",
    "HWIO", "DHWIO", and "HWOI" for Conv2DTranspose. Another layer's weight of three axes or more is
    an error. In a direct call a square kernel of odd size counts as a convolution, and so does any
    kernel with an option such as `taps`; everything else is an error.

    The other defaults fit Dense, and Conv1D to Conv3D with one group and padding "same". Other
    layers need options. DepthwiseConv2D of C channels needs ``groups=C, transposed=True``.
    Conv2DTranspose needs its strides as `stride` and its left padding as `tap` ((0, 0) for "valid",
    half of k - s for "same"). Or call :func:`idi_layer_`, which reads all of this from the layer.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import IDI
    >>> keras.ops.convert_to_numpy(IDI(gain=2.0)((2, 3)))
    array([[2., 0., 2.],
           [0., 2., 0.]], dtype=float32)
    """

    role = "transit"

    def __init__(
        self,
        gain: float = 1.0,
        *,
        wide: Wide = "truncate",
        layout: str | None = None,
        input_axes: Axes | None = None,
        output_axes: Axes | None = None,
        batch_axes: Axes | None = None,
        groups: int = 1,
        transposed: bool = False,
        stride: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        taps: Taps = "outward",
        tap: Sequence[int] | None = None,
        loosen: float = 0.0,
        loosen_at: LoosenAt = "all",
        seed: int = 0,
    ) -> None:
        self._validate(
            layout, (input_axes, output_axes, batch_axes), gain=gain, wide=wide, groups=groups,
            transposed=transposed, stride=stride, blocks=blocks, taps=taps, tap=tap, loosen=loosen,
            loosen_at=loosen_at, seed=seed,
        )  # fmt: skip


@keras.saving.register_keras_serializable(package="idinit_ref")
class IDIZ(_Initializer):
    """Zero-preserving weights, IDIZ_eps: +eps and -eps in every row (spec section 2).

    For the last weight of a residual branch; for kernels IDIZC_eps [P, Sec. 3.3].

    Parameters
    ----------
    eps, form, groups, transposed, stride, blocks, taps, tap
        As in `idinit_ref.plan`.
    layout, input_axes, output_axes, batch_axes
        As in :class:`IDI`; see also its notes.

    Raises
    ------
    LayoutError, OptionError, OptionTypeError
        At construction, if an option is wrong for every shape.

    Examples
    --------
    >>> import keras
    >>> from idinit_ref_tensorflow import IDIZ
    >>> keras.ops.convert_to_numpy(IDIZ(eps=0.5)((3, 2)))
    array([[ 0.5,  0. ],
           [ 0. ,  0.5],
           [-0.5, -0.5]], dtype=float32)
    """

    role = "zero"

    def __init__(
        self,
        eps: float = 1e-6,
        *,
        form: Form = "pair",
        layout: str | None = None,
        input_axes: Axes | None = None,
        output_axes: Axes | None = None,
        batch_axes: Axes | None = None,
        groups: int = 1,
        transposed: bool = False,
        stride: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        taps: Taps = "outward",
        tap: Sequence[int] | None = None,
    ) -> None:
        self._validate(
            layout, (input_axes, output_axes, batch_axes), eps=eps, form=form, groups=groups,
            transposed=transposed, stride=stride, blocks=blocks, taps=taps, tap=tap,
        )  # fmt: skip
