"""Random numbers for JAX by NumPy: JAX itself compiles a program for each shape of them."""

from __future__ import annotations

import functools
import importlib
import inspect

import numpy as np

DRAWS = {  # what is drawn from, and how
    "uniform": lambda draw, shape, low, high: draw.uniform(low, high, shape),
    "normal": lambda draw, shape: draw.standard_normal(shape),
    "truncated_normal": lambda draw, low, high, shape: draw.standard_normal(shape).clip(low, high),
}


def by_numpy(own, draws):
    """JAX's function `own`, which draws by NumPy for a key that is at hand and plain bounds."""
    import jax

    signature = inspect.signature(own)

    @functools.wraps(own)
    def drawn(*args, **options):
        given = signature.bind(*args, **options)
        given.apply_defaults()
        key, dtype = given.arguments.pop("key"), given.arguments.pop("dtype")
        dtype = np.dtype(jax.numpy.result_type(float) if dtype is None else dtype)
        sharding, shape = given.arguments.pop("out_sharding"), given.arguments["shape"] or ()
        given.arguments["shape"] = shape
        bounds = (value for name, value in given.arguments.items() if name != "shape")
        traced = isinstance(key, jax.core.Tracer) or key.shape not in ((), (2,))
        numbers = all(isinstance(value, (int, float)) for value in bounds)
        if traced or sharding or not numbers or not jax.numpy.issubdtype(dtype, np.floating):
            return own(*args, **options)
        words = key if key.dtype == np.uint32 else jax.random.key_data(key)
        draw = np.random.default_rng(np.asarray(words).ravel().tolist())
        return jax.numpy.asarray(draws(draw, *given.arguments.values()).astype(dtype))

    return drawn


def patched(patch):
    """Let JAX draw by NumPy, where it is installed."""
    try:
        places = [importlib.import_module(name) for name in ("jax.random", "jax._src.random")]
    except ModuleNotFoundError:
        return
    for place in places:
        for name, draws in DRAWS.items():
            patch.setattr(place, name, by_numpy(getattr(place, name), draws))
