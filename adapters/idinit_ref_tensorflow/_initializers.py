"""One weight: Keras initializers, and variables written in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from math import prod
from numbers import Integral
from typing import Any, TypeVar

import keras
import numpy as np

from idinit_ref import Plan, Role, plan
from idinit_ref.core.kernel import Taps
from idinit_ref.core.noise import LoosenAt
from idinit_ref.core.pattern import Form, Wide
from idinit_ref.errors import DTypeError, OptionError, OptionTypeError, message

__all__ = ["IDI", "IDIZ", "idi_", "idiz_"]

Variable = TypeVar("Variable")

_LARGE = 2**16  # elements: below, a call costs more than its copy
_ALIGNED = 64  # bytes: what TensorFlow's kernels expect of memory
KERAS_LAYOUTS = {2: "IO", 3: "WIO", 4: "HWIO", 5: "DHWIO"}


def _plan(shape: Any, role: Role, *, layout: str | None, **options: Any) -> Plan:
    """Decide a weight whose axes stand as Keras stores them, unless a layout says otherwise."""
    sizes = tuple(shape) if isinstance(shape, Iterable) else shape
    if layout is None and isinstance(sizes, tuple):
        layout = KERAS_LAYOUTS.get(len(sizes))
    return plan(sizes, role, layout=layout, **options)


def _dtype_name(dtype: Any) -> str:
    """Return Keras' name of a dtype, floatx for None."""
    try:
        return str(keras.backend.standardize_dtype(dtype))
    except (TypeError, ValueError) as problem:
        raise DTypeError(
            message(
                "dtype",
                dtype,
                f"Keras should know it, and said: {problem}",
                "pass a name such as 'float32' or 'bfloat16', or None for keras.config.floatx()",
            )
        ) from problem


def _smallest_shape(layout: Any, stride: Any, blocks: Any, tap: Any) -> tuple[int, ...]:
    """Return the smallest shape that fits well-formed options; it has no entries."""

    def whole(values: Any) -> list[int]:
        listed = values if isinstance(values, (list, tuple)) else ()
        return [max(int(value), 0) for value in listed if isinstance(value, Integral)]

    places = whole(tap)
    rank = len(places or whole(stride))
    letters = layout if isinstance(layout, str) else KERAS_LAYOUTS.get(2 + rank, "IO")
    kernel = zip((c for c in "DHW" if c in letters), places, strict=False)
    sizes = {"O": sum(whole(blocks))} | {c: place + 1 for c, place in kernel}
    return tuple(sizes.get(c, 0) for c in letters)


def _sharded(decided: Plan, dtype: str, sharding: Any) -> Any:
    """Make a weight shard by shard, as a Keras variable with a layout asks (JAX backend only)."""
    try:
        sharding = getattr(sharding, "backend_layout", sharding)  # of a keras TensorLayout
    except ValueError as problem:
        raise OptionError(
            message(
                "layout",
                sharding,
                f"it should have a mesh, and Keras said: {problem}",
                "give it one: TensorLayout(axes, device_mesh)",
            )
        ) from problem
    jax = sys.modules.get("jax") if keras.backend.backend() == "jax" else None
    if jax is None or not isinstance(sharding, jax.sharding.Sharding):
        raise OptionTypeError(
            message(
                "layout",
                sharding,
                "here it should be a keras.distribution.TensorLayout or a JAX sharding, "
                "on Keras' JAX backend",
                "leave it out; axis letters belong to the constructor: IDI(layout='OI')",
            )
        )
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # Keras hands over the sharding without its devices, inside jax.set_mesh.
        sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    try:
        sharding.shard_shape(decided.shape)
    except (ValueError, IndexError) as problem:  # an IndexError if it has more axes
        raise OptionError(
            message(
                "layout",
                sharding,
                f"it should cut every axis of shape {decided.shape} evenly, and JAX said: "
                f"{problem}",
                "name only axes of the mesh, whose sizes divide the axes of the weight",
            )
        ) from problem
    return jax.make_array_from_callback(
        decided.shape, sharding, lambda index: decided.block(index, dtype=dtype)
    )


def _tensor(decided: Plan, dtype: str) -> Any:
    """Make a weight as a tensor of Keras' backend.

    TensorFlow copies an array of NumPy slowly (124 ms for 64 MB, where the array itself takes 19),
    so a large one is lent to it by DLPack. It crashes on memory that is not aligned to 64 bytes.
    """
    kind = np.dtype(dtype)
    if (
        keras.backend.backend() == "tensorflow"
        and kind.isbuiltin == 1  # DLPack knows no bfloat16 of NumPy
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


class _Initializer(keras.initializers.Initializer):  # type: ignore[misc]  # Keras has no types
    """A role, with the options of `idinit_ref.plan`."""

    role: Role

    def _settle(self, **options: Any) -> None:
        layout = options["layout"]
        facts = (options[name] for name in ("stride", "blocks", "tap"))
        decided = _plan(_smallest_shape(layout, *facts), self.role, **options)
        self._options = {name: getattr(decided, name) for name in options} | {"layout": layout}

    def __call__(self, shape: Sequence[int], dtype: Any = None, layout: Any = None) -> Any:
        """Make a weight.

        Parameters
        ----------
        shape : sequence of int
            The stored shape.
        dtype : str or dtype, optional
            Real floating or complex; ``keras.config.floatx()`` if left out.
        layout : keras.distribution.TensorLayout or jax.sharding.Sharding, optional
            Where Keras' JAX backend wants the weight to lie (not the axis letters).

        Returns
        -------
        tensor of Keras' backend, shape `shape`
            Every entry is the float64 one rounded once, to nearest even.

        Raises
        ------
        ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
            As in `idinit_ref.plan` and `idinit_ref.Plan.build`.
        """
        decided, name = _plan(shape, self.role, **self._options), _dtype_name(dtype)
        if layout is not None:
            return _sharded(decided, name, layout)
        return _tensor(decided, name)

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
            for name, value in self._options.items()
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
        A letter for each axis. Keras' own order by rank if left out: "IO", "WIO", "HWIO", "DHWIO".

    Raises
    ------
    LayoutError, OptionError, OptionTypeError
        At construction, if an option is wrong for every shape.

    Notes
    -----
    An initializer sees a shape, and not the layer it is for. The defaults fit Dense, and Conv1D
    to Conv3D with one group and padding "same". Elsewhere say what the axes are: for
    DepthwiseConv2D of C channels ``groups=C, transposed=True``; for Conv2DTranspose
    ``layout="HWOI"``, its strides as `stride`, and its left padding as `tap` ((0, 0) for "valid",
    half of k - s for "same"). Or let :func:`idi_layer_` read all of it from the built layer, as
    for EinsumDense and attention.

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
        self._settle(
            gain=gain,
            wide=wide,
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
        )


@keras.saving.register_keras_serializable(package="idinit_ref")
class IDIZ(_Initializer):
    """Zero-preserving weights, IDIZ_eps: +eps and -eps in every row (spec section 2).

    For the last weight of a residual branch; for kernels IDIZC_eps [P, Sec. 3.3].

    Parameters
    ----------
    eps, form, groups, transposed, stride, blocks, taps, tap
        As in `idinit_ref.plan`.
    layout : str, optional
        As in :class:`IDI`, whose notes hold here too.

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
        groups: int = 1,
        transposed: bool = False,
        stride: Sequence[int] | None = None,
        blocks: Sequence[int] | None = None,
        taps: Taps = "outward",
        tap: Sequence[int] | None = None,
    ) -> None:
        self._settle(
            eps=eps,
            form=form,
            layout=layout,
            groups=groups,
            transposed=transposed,
            stride=stride,
            blocks=blocks,
            taps=taps,
            tap=tap,
        )


def shape_and_dtype(variable: Any) -> tuple[tuple[int, ...], str]:
    """Return what a variable holds; an error unless it is one that can be assigned to."""
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(variable, keras.Variable):
        value = variable._value  # stays what is stored, also where Keras casts reads
        if value is None:
            raise OptionError(
                message(
                    "variable",
                    variable.path,
                    "it should hold a value already",
                    "leave keras.StatelessScope first, or build its layer outside of it",
                )
            )
    elif tensorflow is not None and isinstance(variable, tensorflow.Variable):
        value = variable.read_value()
    else:
        raise OptionTypeError(
            message(
                "variable",
                type(variable).__name__,
                "it should be a keras.Variable or a tf.Variable",
                "pass layer.kernel of a built layer; idinit_ref.idi makes a new array",
            )
        )
    return tuple(value.shape), _dtype_name(value.dtype)


def _assign(variable: Variable, role: Role, **options: Any) -> Variable:
    shape, dtype = shape_and_dtype(variable)
    array = _plan(shape, role, **options).build(dtype=dtype)
    variable.assign(array)  # type: ignore[attr-defined]  # shape_and_dtype has seen to it
    return variable


def idi_(
    variable: Variable,
    *,
    gain: float = 1.0,
    wide: Wide = "truncate",
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
) -> Variable:
    """Make a variable an identity-preserving weight, in place (IDI_tau, [P, Eq. 3]).

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        Of a real floating or complex dtype; its shape and dtype stay.
    gain, wide, layout, groups, transposed, stride, blocks, taps, tap, loosen, loosen_at, seed
        As in :class:`IDI`.

    Returns
    -------
    keras.Variable or tf.Variable
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in `idinit_ref.plan` and `idinit_ref.Plan.build`; the variable is untouched then.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from idinit_ref_tensorflow import idi_
    >>> kernel = keras.Variable([[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]])
    >>> idi_(kernel) is kernel
    True
    >>> np.asarray(kernel)
    array([[1., 0., 1.],
           [0., 1., 0.]], dtype=float32)
    """
    return _assign(
        variable,
        "transit",
        gain=gain,
        wide=wide,
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
    )


def idiz_(
    variable: Variable,
    *,
    eps: float = 1e-6,
    form: Form = "pair",
    layout: str | None = None,
    groups: int = 1,
    transposed: bool = False,
    stride: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    taps: Taps = "outward",
    tap: Sequence[int] | None = None,
) -> Variable:
    """Make a variable a zero-preserving weight, in place (IDIZ_eps, spec section 2).

    Parameters
    ----------
    variable : keras.Variable or tf.Variable
        Of a real floating or complex dtype; its shape and dtype stay.
    eps, form, layout, groups, transposed, stride, blocks, taps, tap
        As in :class:`IDIZ`.

    Returns
    -------
    keras.Variable or tf.Variable
        The same object.

    Raises
    ------
    ShapeError, LayoutError, OptionError, OptionTypeError, DTypeError, RoundingError
        As in `idinit_ref.plan` and `idinit_ref.Plan.build`; the variable is untouched then.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> from idinit_ref_tensorflow import idiz_
    >>> kernel = keras.Variable([[7.0, 7.0], [7.0, 7.0]])
    >>> idiz_(kernel, eps=0.5) is kernel
    True
    >>> np.asarray(kernel)
    array([[ 0.5, -0.5],
           [-0.5,  0.5]], dtype=float32)
    """
    return _assign(
        variable,
        "zero",
        eps=eps,
        form=form,
        layout=layout,
        groups=groups,
        transposed=transposed,
        stride=stride,
        blocks=blocks,
        taps=taps,
        tap=tap,
    )
