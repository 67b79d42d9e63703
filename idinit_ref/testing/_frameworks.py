"""The frameworks whose arrays an implementation may return, behind one interface.

Each reads its arrays exactly, and applies weights through its real dense layer and convolution. A
framework is imported only when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS
from ..core.layout import SPATIAL
from ..errors import OptionError, message

Values = NDArray[Any]
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64")
_FP8 = tuple(name for name in FORMATS if name.startswith("float8_"))


class Framework:
    """Arrays of one namespace. This base supports any namespace of the array API standard."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name = str(xp.__name__).partition(".")[0]

    # Arrays -----------------------------------------------------------------------------------

    def owns(self, raw: Any) -> bool:
        """Whether an object is an array of this framework."""
        known = framework_of(raw)
        return known is not None and known.name == self.name

    def dtype_of(self, raw: Any) -> str:
        """Return the name of an array's dtype."""
        return getattr(raw.dtype, "name", None) or str(raw.dtype).rpartition(".")[2]

    def device_of(self, raw: Any) -> str:
        """Return an array's device as text."""
        return str(array_api_compat.device(_value(raw)))

    def can_read(self, raw: Any) -> bool:
        """Whether an array has values."""
        return True

    def is_writable(self, raw: Any) -> bool:
        """Whether an array can be written to in place."""
        return bool(array_api_compat.is_writeable_array(raw))

    def numpy(self, raw: Any) -> Values:
        """Return an array's exact values, as float64 or complex128."""
        default = self.xp.__array_namespace_info__().default_device()
        return _wide(array_api_compat.to_device(raw, default))

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        """Return an array of NaN, for an implementation that works in place."""
        return self.xp.full(shape, np.nan, dtype=self.dtype(dtype), device=device)

    def dtype(self, name: str | None) -> Any:
        """Return the dtype of a name; None if the framework lacks it."""
        return None if name is None else getattr(self.xp, name, None)

    def dtypes(self) -> tuple[str, ...]:
        """Return the dtypes for weights, the default one first."""
        default = self.dtype_of(self.xp.zeros(()))
        return (default, *(n for n in _FLOATS if n != default and self.dtype(n) is not None))

    def small_dtypes(self) -> tuple[str, ...]:
        """Return the dtypes in which small entries round to 0."""
        return tuple(name for name in ("float16", "float32", *_FP8) if self.dtype(name) is not None)

    def devices(self) -> tuple[Any, ...]:
        """Return the devices to request, without the default one."""
        if not hasattr(self.xp, "__array_namespace_info__"):
            return ()
        info = self.xp.__array_namespace_info__()
        return tuple(device for device in info.devices() if device != info.default_device())

    # Layers -----------------------------------------------------------------------------------

    def layer(
        self,
        x: Values,
        w: Values,
        letters: str,
        groups: int = 1,
        stride: Sequence[int] | None = None,
    ) -> Values:
        """Apply a stored weight to a signal (samples, inputs, *space).

        A matrix is a dense layer. A kernel is a correlation without padding or, with a stride, a
        transposed convolution, whose outputs have the size ``(size - 1) * stride + k``. A negative
        stride means a kernel that is stored flipped; it is flipped back.
        """
        if np.iscomplexobj(w):
            parts = (self.layer(x, part, letters, groups, stride) for part in (w.real, w.imag))
            real, imaginary = parts
            return real + 1j * imaginary
        space = "".join(c for c in SPATIAL if c in letters)
        kernel = np.transpose(w, [letters.index(c) for c in "OI" + space])
        if stride is not None:
            kernel = np.flip(kernel, tuple(2 + a for a, step in enumerate(stride) if step < 0))
            stride = tuple(map(abs, stride))
        kernel = kernel.copy()  # contiguous, without negative strides
        if not x.size or not w.size:
            step = stride or [0] * len(space)
            sizes = zip(x.shape[2:], kernel.shape[2:], step, strict=True)
            long = [(n - 1) * s + k if s else n - k + 1 for n, k, s in sizes]
            return np.zeros((len(x), len(kernel), *long))
        out = []
        for a, b in zip(np.split(x, groups, 1), np.split(kernel, groups), strict=True):
            if not space:
                out.append(_wide(self._linear(a, b)))
            elif stride is None:
                out.append(_wide(self._convolve(a, b)))
            else:
                out.append(_wide(self._upsample(a, b, tuple(stride))))
        return np.concatenate(out, 1)

    def _linear(self, x: Values, w: Values) -> Any:
        return self.xp.matmul(self.xp.asarray(x), self.xp.matrix_transpose(self.xp.asarray(w)))

    def _convolve(self, x: Values, w: Values) -> Any:
        """Sum over the taps: NumPy and the standard have no convolution."""
        sizes = [n - k + 1 for n, k in zip(x.shape[2:], w.shape[2:], strict=True)]
        out = np.zeros((len(x), len(w), *sizes))
        for tap in np.ndindex(w.shape[2:]):
            spans: Any = [slice(t, t + size) for t, size in zip(tap, sizes, strict=True)]
            out += np.einsum("oi,ni...->no...", w[(..., *tap)], x[(..., *spans)])
        return out

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        """Add every input to the outputs, tap by tap."""
        long = zip(x.shape[2:], w.shape[2:], steps, strict=True)
        out = np.zeros((len(x), len(w), *((size - 1) * step + k for size, k, step in long)))
        for tap in np.ndindex(w.shape[2:]):
            reach = zip(tap, x.shape[2:], steps, strict=True)
            spans: Any = [slice(t, t + (size - 1) * step + 1, step) for t, size, step in reach]
            out[(..., *spans)] += np.einsum("oi,ni...->no...", w[(..., *tap)], x)
        return out


class _NumPy(Framework):
    def numpy(self, raw: Any) -> Values:
        return _wide(raw)

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        return np.full(shape, np.nan, dtype=self.dtype(dtype))

    def dtype(self, name: str | None) -> Any:
        if name is not None and name not in np.sctypeDict:
            if importlib.util.find_spec("ml_dtypes") is None:
                return None
            ml_dtypes: Any = importlib.import_module("ml_dtypes")
            name = getattr(ml_dtypes, name, None)
        return None if name is None else np.dtype(name)

    def _linear(self, x: Values, w: Values) -> Any:
        return x @ w.T


class _Torch(Framework):
    def can_read(self, raw: Any) -> bool:
        return not raw.is_meta

    def numpy(self, raw: Any) -> Values:
        wide = self.xp.complex128 if raw.is_complex() else self.xp.float64
        out: Values = raw.detach().cpu().to(wide).resolve_conj().resolve_neg().numpy()
        return out

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        array = self.xp.full(shape, np.nan, device=device)
        return array if dtype is None else array.to(self.dtype(dtype))

    def devices(self) -> tuple[Any, ...]:
        return ("meta", *(["cuda:0"] if self.xp.cuda.is_available() else []))

    def _linear(self, x: Values, w: Values) -> Any:
        return self.xp.nn.functional.linear(self.xp.tensor(x), self.xp.tensor(w))

    def _convolve(self, x: Values, w: Values) -> Any:
        convolution = getattr(self.xp.nn.functional, f"conv{w.ndim - 2}d")
        return convolution(self.xp.tensor(x), self.xp.tensor(w))

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        convolution = getattr(self.xp.nn.functional, f"conv_transpose{len(steps)}d")
        kernel = self.xp.tensor(w.swapaxes(0, 1).copy())
        return convolution(self.xp.tensor(x), kernel, stride=steps)


class _JAX(Framework):
    def __init__(self, xp: Any) -> None:
        super().__init__(importlib.import_module("jax.numpy"))
        self.jax: Any = importlib.import_module("jax")

    def numpy(self, raw: Any) -> Values:
        return _wide(raw)

    def dtype(self, name: str | None) -> Any:
        known = super().dtype(name)
        wide = name in ("float64", "complex128")
        return None if wide and not self.jax.config.jax_enable_x64 else known

    def devices(self) -> tuple[Any, ...]:
        return tuple(self.jax.devices()[1:])

    def _linear(self, x: Values, w: Values) -> Any:
        return self.xp.matmul(self.xp.asarray(x), self.xp.asarray(w.T), precision="highest")

    def _convolve(self, x: Values, w: Values) -> Any:
        a, b, steps = self.xp.asarray(x), self.xp.asarray(w), (1,) * (w.ndim - 2)
        return self.jax.lax.conv_general_dilated(a, b, steps, "VALID", precision="highest")

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        space = SPATIAL[len(SPATIAL) - len(steps) :]
        return self.jax.lax.conv_transpose(
            self.xp.asarray(x),
            self.xp.asarray(w.swapaxes(0, 1)),  # JAX exchanges the names I and O here
            strides=steps,
            padding=[(k - 1, k - 1) for k in w.shape[2:]],
            dimension_numbers=("NC" + space, "OI" + space, "NC" + space),
            transpose_kernel=True,
            precision="highest",
        )


class _TensorFlow(Framework):
    def dtype_of(self, raw: Any) -> str:
        return str(_value(raw).dtype.name)

    def numpy(self, raw: Any) -> Values:
        return _wide(_value(raw).numpy())

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        kind = self.dtype(dtype) or self.xp.float32
        return self.xp.Variable(self.xp.cast(self.xp.fill(shape, np.nan), kind))

    def is_writable(self, raw: Any) -> bool:
        return True

    def _linear(self, x: Values, w: Values) -> Any:
        return self.xp.linalg.matmul(x, w, transpose_b=True)

    def _convolve(self, x: Values, w: Values) -> Any:
        signal, kernel = _channels_last(x), np.moveaxis(w, (0, 1), (-1, -2)).astype(np.float32)
        return np.moveaxis(self.xp.nn.convolution(signal, kernel, padding="VALID"), -1, 1)

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        kernel = np.moveaxis(w, (0, 1), (-2, -1)).astype(np.float32)  # space, outputs, inputs
        long = zip(x.shape[2:], w.shape[2:], steps, strict=True)
        shape = (len(x), *((size - 1) * step + k for size, k, step in long), len(w))
        signal = _channels_last(x)
        outputs = self.xp.nn.conv_transpose(signal, kernel, shape, steps, padding="VALID")
        return np.moveaxis(outputs, -1, 1)


def _channels_last(x: Values) -> Values:
    return np.moveaxis(x, 1, -1).astype(np.float32)


_KNOWN: dict[str, type[Framework]] = {
    "numpy": _NumPy,
    "torch": _Torch,
    "jax": _JAX,
    "tensorflow": _TensorFlow,
}


def framework(xp: Any, option: str = "xp") -> Framework:
    """Return the framework of a module, of its name, or of an array; else raise an OptionError.

    The error names the option that `xp` was given to.
    """
    name = xp if isinstance(xp, str) else getattr(xp, "__name__", None)
    if not isinstance(name, str):
        known = framework_of(xp)
        if known is None:
            raise _unknown(xp, option)
        return known
    top = name.removeprefix("array_api_compat.").partition(".")[0]
    if top in ("jaxlib", "keras"):
        top = "jax" if top == "jaxlib" else _keras_backend()
    try:
        module: Any = importlib.import_module(top if top in _KNOWN else name)
    except ImportError as problem:
        if problem.name and problem.name != top:
            raise
        if top not in _KNOWN:
            raise _unknown(xp, option) from problem
        cure = f'{top} is not installed: pip install "idinit-ref[{top}]"'
        raise ImportError(cure, name=top) from problem
    if top in _KNOWN:
        return _KNOWN[top](module)
    if not hasattr(module, "__array_namespace_info__"):
        raise _unknown(xp, option)
    return Framework(module)


def _unknown(xp: Any, option: str) -> OptionError:
    should = "it should be an array namespace or the name of one"
    cure = "pass numpy, torch, jax.numpy, tensorflow or array_api_strict"
    return OptionError(message(option, xp, should, cure))


def _keras_backend() -> str:
    keras: Any = importlib.import_module("keras")
    return str(keras.backend.backend())


def framework_of(raw: Any) -> Framework | None:
    """Return the framework of an array; None for any other object."""
    raw = _value(raw)
    for kind in type(raw).__mro__:
        top = kind.__module__.partition(".")[0]
        top = "jax" if top == "jaxlib" else top
        if top in sys.modules and top in _KNOWN and hasattr(raw, "dtype"):
            if top == "numpy" and not isinstance(raw, np.ndarray):
                return None
            return framework(top)
    if array_api_compat.is_array_api_obj(raw):
        return framework(array_api_compat.array_namespace(raw))
    return None


def _value(raw: Any) -> Any:
    """Return the tensor of a Keras variable."""
    variable: Any = getattr(sys.modules.get("keras"), "Variable", ())
    return raw.value if isinstance(raw, variable) else raw


def _wide(array: Any) -> Values:
    array = np.asarray(array)
    out: Values = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    return out
