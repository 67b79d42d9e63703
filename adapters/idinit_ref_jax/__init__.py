"""IDInit for JAX: initialisers for every library, and in-place ones for ``flax.nnx`` layers.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> import idinit_ref_jax as ij
>>> ij.idi()(jax.random.key(0), (2, 3), jnp.float32)
Array([[1., 0., 1.],
       [0., 1., 0.]], dtype=float32)

In Flax: ``nnx.Linear(2, 3, kernel_init=ij.idi(), rngs=rngs)``. In Equinox, whose weights are
(out, in): ``eqx.tree_at(lambda m: m.weight, linear, ij.idi(in_axis=1, out_axis=0)(None, shape))``.
"""

try:
    from ._initializers import idi, idiz
except ModuleNotFoundError as problem:
    raise ImportError('idinit_ref_jax needs JAX: pip install "idinit-ref[jax]"') from problem
from ._audit import audit
from ._jacobian import jacobian
from ._layers import idi_layer_, idiz_layer_, layer_plans
from ._model import init, plans
from ._trace import trace

__all__ = [
    "audit",
    "idi",
    "idi_layer_",
    "idiz",
    "idiz_layer_",
    "init",
    "jacobian",
    "layer_plans",
    "plans",
    "trace",
]
