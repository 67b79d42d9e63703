"""The frameworks whose arrays an implementation may return, behind one face.

Each knows how to read an array exactly, and the real dense layer and convolution that a weight of
it is for. Nothing is imported before it is asked for.
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

__all__ = ["Framework", "framework", "framework_of"]

Values = NDArray[Any]
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64")
_FP8 = tuple(name for name in FORMATS if name.startswith("float8_"))


class Framework:
    """Arrays of one namespace; this base serves any of the array API standard.

    Parameters
    ----------
    xp
        The namespace.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.name = str(xp.__name__).partition(".")[0]

    # Arrays -----------------------------------------------------------------------------------

    def owns(self, raw: Any) -> bool:
        """Whether it is an array of this framework."""
        found = framework_of(raw)
        return found is not None and found.name == self.name

    def dtype_of(self, raw: Any) -> str:
        """Return the name of an array's dtype."""
        return getattr(raw.dtype, "name", None) or str(raw.dtype).rpartition(".")[2]

    def device_of(self, raw: Any) -> str:
        """Return an array's device as text."""
        return str(array_api_compat.device(raw))

    def shape_of(self, raw: Any) -> tuple[int, ...]:
        """Return an array's shape."""
        return tuple(raw.shape)

    def can_read(self, raw: Any) -> bool:
        """Whether an array has values."""
        return True

    def is_writable(self, raw: Any) -> bool:
        """Whether an array can be written to in place."""
        return bool(array_api_compat.is_writeable_array(raw))

    def numpy(self, raw: Any) -> Values:
        """Return an array's exact values, as float64 or complex128."""
        return _wide(np.asarray(self._moved(raw)))

    def _moved(self, raw: Any) -> Any:
        """Return an array where NumPy can read it."""
        default = self.xp.__array_namespace_info__().default_device()
        return array_api_compat.to_device(raw, default)

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        """Return an array full of NaN, to be written to."""
        return self.xp.full(shape, np.nan, dtype=self.dtype(dtype), device=device)

    def dtype(self, name: str | None) -> Any:
        """Return the dtype of a name; None where there is none."""
        return None if name is None else getattr(self.xp, name, None)

    def dtypes(self) -> tuple[str, ...]:
        """Return the dtypes for weights, the default one first."""
        default = self.dtype_of(self.xp.zeros(()))
        return (default, *(n for n in _FLOATS if n != default and self.dtype(n) is not None))

    def small_dtypes(self) -> tuple[str, ...]:
        """Return the dtypes in which small entries are lost."""
        return tuple(name for name in ("float16", "float32", *_FP8) if self.dtype(name) is not None)

    def devices(self) -> tuple[Any, ...]:
        """Return the devices to ask for, other than the default one."""
        try:
            info = self.xp.__array_namespace_info__()
        except AttributeError:
            return ()
        return tuple(device for device in info.devices() if device != info.default_device())

    # Layers -----------------------------------------------------------------------------------

    def linear(self, x: Values, w: Values, letters: str) -> Values:
        """Let a stored matrix act on a signal (samples, inputs), as a dense layer does."""
        xp = self.xp
        a, b = xp.asarray(x.astype(w.dtype)), xp.asarray(w)
        return _wide(np.asarray(xp.matmul(a, b if letters == "IO" else xp.matrix_transpose(b))))

    def convolve(self, x: Values, w: Values, letters: str, groups: int) -> Values:
        """Convolve (samples, channels, *space) by a stored kernel: stride 1, no padding."""
        if np.iscomplexobj(w):
            real, imaginary = (self.convolve(x, part, letters, groups) for part in (w.real, w.imag))
            return real + 1j * imaginary
        if not x.size or not w.size:
            kernel = [w.shape[letters.index(c)] for c in SPATIAL if c in letters]
            space = [s - k + 1 for s, k in zip(x.shape[2:], kernel, strict=True)]
            return np.zeros((len(x), w.shape[letters.index("O")], *space))
        return _wide(self._convolve(x, w, letters, groups))

    def upsample(
        self, x: Values, w: Values, letters: str, groups: int, stride: Sequence[int]
    ) -> Values:
        """Apply a stored kernel as a transposed convolution does: no padding.

        The stride is negative where the kernel is stored flipped: it is turned over there, as the
        layers do that store it so. Outputs are ``(size - 1) * stride + k`` long.
        """
        if np.iscomplexobj(w):
            parts = (self.upsample(x, part, letters, groups, stride) for part in (w.real, w.imag))
            real, imaginary = parts
            return real + 1j * imaginary
        flipped = [c for c, step in zip(_space(letters), stride, strict=True) if step < 0]
        w = np.flip(w, tuple(letters.index(c) for c in flipped)).copy()  # no negative strides
        steps = tuple(map(abs, stride))
        kernel = _stored_as(w, letters, "OI" + _space(letters))
        long = zip(x.shape[2:], kernel.shape[2:], steps, strict=True)
        shape = (len(x), len(kernel), *((size - 1) * step + k for size, k, step in long))
        if not x.size or not w.size:
            return np.zeros(shape)
        split = zip(np.split(x, groups, 1), np.split(kernel, groups), strict=True)
        return np.concatenate([_wide(self._upsample(a, b, steps)) for a, b in split], 1)

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        """Add every input into the outputs, tap by tap. The kernel has the axes O, I, space."""
        long = zip(x.shape[2:], w.shape[2:], steps, strict=True)
        out = np.zeros((len(x), len(w), *((size - 1) * step + k for size, k, step in long)))
        for tap in np.ndindex(w.shape[2:]):
            reach = zip(tap, x.shape[2:], steps, strict=True)
            where: Any = [slice(t, t + (size - 1) * step + 1, step) for t, size, step in reach]
            out[(..., *where)] += np.einsum("oi,ni...->no...", w[(..., *tap)], x)
        return out

    def _convolve(self, x: Values, w: Values, letters: str, groups: int) -> Any:
        """Sum over windows: there is no convolution in NumPy or in the standard."""
        kernel = _stored_as(w, letters, "OI" + _space(letters))
        dims = kernel.ndim - 2
        axes = tuple(range(2, 2 + dims))
        seen = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axes)
        out = [
            np.tensordot(a, b, ((1, *range(2 + dims, 2 + 2 * dims)), (1, *axes)))
            for a, b in zip(np.split(seen, groups, 1), np.split(kernel, groups), strict=True)
        ]
        return np.moveaxis(np.concatenate(out, -1), -1, 1)


class _NumPy(Framework):
    def _moved(self, raw: Any) -> Any:
        return raw

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        return np.full(shape, np.nan, dtype=self.dtype(dtype))

    def device_of(self, raw: Any) -> str:
        return "cpu"

    def dtype(self, name: str | None) -> Any:
        if name is not None and name not in np.sctypeDict:
            if importlib.util.find_spec("ml_dtypes") is None:
                return None
            ml_dtypes: Any = importlib.import_module("ml_dtypes")
            name = getattr(ml_dtypes, name, None)
        return None if name is None else np.dtype(name)

    def devices(self) -> tuple[Any, ...]:
        return ()


class _Torch(Framework):
    def owns(self, raw: Any) -> bool:
        return isinstance(raw, self.xp.Tensor)

    def device_of(self, raw: Any) -> str:
        return str(raw.device)

    def can_read(self, raw: Any) -> bool:
        return not raw.is_meta

    def numpy(self, raw: Any) -> Values:
        wide = self.xp.complex128 if raw.is_complex() else self.xp.float64
        out: Values = raw.detach().cpu().to(wide).resolve_conj().resolve_neg().numpy()
        return out

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        return self.xp.full(shape, np.nan, device=device).to(self.dtype(dtype) or self._default)

    @property
    def _default(self) -> Any:
        return self.xp.get_default_dtype()

    def devices(self) -> tuple[Any, ...]:
        cuda = ["cuda:0"] if self.xp.cuda.is_available() else []
        return ("meta", *cuda)

    def linear(self, x: Values, w: Values, letters: str) -> Values:
        a, b = self.xp.tensor(x.astype(w.dtype)), self.xp.tensor(w)
        if letters == "OI":
            return _wide(self.xp.nn.functional.linear(a, b).numpy())
        return _wide((a @ b).numpy())

    def _convolve(self, x: Values, w: Values, letters: str, groups: int) -> Any:
        space = _space(letters)
        convolution = getattr(self.xp.nn.functional, f"conv{len(space)}d")
        kernel = self.xp.tensor(_stored_as(w, letters, "OI" + space))
        return convolution(self.xp.tensor(x), kernel, groups=groups).numpy()

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        convolution = getattr(self.xp.nn.functional, f"conv_transpose{len(steps)}d")
        kernel = self.xp.tensor(np.ascontiguousarray(w.swapaxes(0, 1)))
        return convolution(self.xp.tensor(x), kernel, stride=steps).numpy()


class _JAX(Framework):
    def __init__(self, xp: Any) -> None:
        super().__init__(importlib.import_module("jax.numpy"))
        self.jax: Any = importlib.import_module("jax")

    def owns(self, raw: Any) -> bool:
        return isinstance(raw, self.jax.Array)

    def device_of(self, raw: Any) -> str:
        return str(raw.device)

    def _moved(self, raw: Any) -> Any:
        return raw

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        return self.xp.full(shape, np.nan, dtype=self.dtype(dtype), device=device)

    def dtype(self, name: str | None) -> Any:
        found = super().dtype(name)
        wide = name in ("float64", "complex128")
        return None if wide and not self.jax.config.jax_enable_x64 else found

    def devices(self) -> tuple[Any, ...]:
        return tuple(self.jax.devices()[1:])

    def linear(self, x: Values, w: Values, letters: str) -> Values:
        b = self.xp.asarray(w if letters == "IO" else w.T)
        a = self.xp.asarray(x, dtype=b.dtype)
        return _wide(np.asarray(self.xp.matmul(a, b, precision="highest")))

    def _convolve(self, x: Values, w: Values, letters: str, groups: int) -> Any:
        space = _space(letters)
        kernel = self.xp.asarray(w)
        return self.jax.lax.conv_general_dilated(
            self.xp.asarray(x, dtype=kernel.dtype),
            kernel,
            window_strides=(1,) * len(space),
            padding="VALID",
            dimension_numbers=("NC" + space, letters, "NC" + space),
            feature_group_count=groups,
            precision="highest",
        )

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        space = SPATIAL[len(SPATIAL) - len(steps) :]
        kernel = self.xp.asarray(np.swapaxes(w, 0, 1))  # I and O are named the other way round
        return self.jax.lax.conv_transpose(
            self.xp.asarray(x, dtype=kernel.dtype),
            kernel,
            strides=steps,
            padding=[(k - 1, k - 1) for k in w.shape[2:]],
            dimension_numbers=("NC" + space, "OI" + space, "NC" + space),
            transpose_kernel=True,
            precision="highest",
        )


class _TensorFlow(Framework):
    def owns(self, raw: Any) -> bool:
        return isinstance(_value(raw), (self.xp.Tensor, self.xp.Variable))

    def dtype_of(self, raw: Any) -> str:
        return str(_value(raw).dtype.name)

    def device_of(self, raw: Any) -> str:
        return str(_value(raw).device)

    def numpy(self, raw: Any) -> Values:
        return _wide(_value(raw).numpy())

    def empty(self, shape: tuple[int, ...], dtype: str | None = None, device: Any = None) -> Any:
        found = self.dtype(dtype) or self.xp.float32
        return self.xp.Variable(self.xp.cast(self.xp.fill(shape, np.nan), found))

    def dtypes(self) -> tuple[str, ...]:
        return ("float32", *(name for name in _FLOATS if name != "float32"))

    def is_writable(self, raw: Any) -> bool:
        return True

    def devices(self) -> tuple[Any, ...]:
        return ()

    def linear(self, x: Values, w: Values, letters: str) -> Values:
        a, b = self.xp.constant(x.astype(w.dtype)), self.xp.constant(w)
        return _wide(self.xp.linalg.matmul(a, b, transpose_b=letters == "OI").numpy())

    def _convolve(self, x: Values, w: Values, letters: str, groups: int) -> Any:
        space = _space(letters)
        kernel = _stored_as(w, letters, space + "IO").astype(np.float32)
        x = np.moveaxis(x, 1, -1).astype(np.float32)
        parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
        # Apart, since not every CPU build has grouped convolutions.
        out = [self.xp.nn.convolution(a, b, padding="VALID").numpy() for a, b in parts]
        return np.moveaxis(np.concatenate(out, -1), -1, 1)

    def _upsample(self, x: Values, w: Values, steps: tuple[int, ...]) -> Any:
        kernel = np.moveaxis(w, (0, 1), (-2, -1)).astype(np.float32)  # space, outputs, inputs
        long = zip(x.shape[2:], w.shape[2:], steps, strict=True)
        shape = (len(x), *((size - 1) * step + k for size, k, step in long), len(w))
        signal = np.moveaxis(x, 1, -1).astype(np.float32)
        out = self.xp.nn.conv_transpose(signal, kernel, shape, list(steps), padding="VALID")
        return np.moveaxis(out.numpy(), -1, 1)


_KNOWN: dict[str, type[Framework]] = {
    "numpy": _NumPy,
    "torch": _Torch,
    "jax": _JAX,
    "tensorflow": _TensorFlow,
}


def framework(xp: Any) -> Framework:
    """Return the framework of a module, of its name, or of an array.

    Raises
    ------
    OptionError
        If it is no array namespace.
    ImportError
        If it is a name, and not installed.
    """
    name = xp if isinstance(xp, str) else getattr(xp, "__name__", None)
    if not isinstance(name, str):
        found = framework_of(xp)
        if found is None:
            raise _unknown(xp)
        return found
    top = name.removeprefix("array_api_compat.").partition(".")[0]
    if top in ("jaxlib", "keras"):
        top = "jax" if top == "jaxlib" else _keras_backend()
    try:
        module: Any = importlib.import_module(top if top in _KNOWN else name)
    except ImportError as problem:
        if problem.name and problem.name != top:
            raise
        if top not in _KNOWN:
            raise _unknown(xp) from problem
        cure = f'{top} is not installed: pip install "idinit-ref[{top}]"'
        raise ImportError(cure, name=top) from problem
    if top in _KNOWN:
        return _KNOWN[top](module)
    if not hasattr(module, "__array_namespace_info__"):
        raise _unknown(xp)
    return Framework(module)


def _unknown(xp: Any) -> OptionError:
    return OptionError(
        message(
            "xp",
            xp,
            "it should be an array namespace or the name of one",
            "pass numpy, torch, jax.numpy, tensorflow or array_api_strict",
        )
    )


def _keras_backend() -> str:
    keras: Any = importlib.import_module("keras")
    return str(keras.backend.backend())


def framework_of(raw: Any) -> Framework | None:
    """Return the framework that an array belongs to; None if it is none."""
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


def _space(letters: str) -> str:
    return "".join(c for c in SPATIAL if c in letters)


def _stored_as(w: Values, letters: str, order: Sequence[str]) -> Values:
    """Return a kernel with its axes in another order."""
    return np.ascontiguousarray(np.transpose(w, [letters.index(c) for c in order]))
