"""IDInit for TensorFlow, and for Keras 3 on any of its backends.

`IDI` and `IDIZ` are Keras initializers. `idi_` and `idiz_` write one variable in place;
`idi_layer_` and `idiz_layer_` write one built layer. `init_` writes a whole model and finds the
roles from its computation (`trace`, `plans`). Every number comes from `idinit_ref`.

[P] "IDInit: A Universal and Stable Initialization Method for Neural Network Training"
(ICLR 2025, arXiv 2503.04626).

Examples
--------
>>> import keras
>>> import idinit_ref_tensorflow as it
>>> layer = keras.layers.Dense(4, kernel_initializer=it.IDI())
>>> layer.build((None, 3))
>>> keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor([[5.0, 6.0, 7.0]])))
array([[5., 6., 7., 5.]], dtype=float32)
"""

try:
    import keras as _  # noqa: F401
except ImportError as problem:
    raise ImportError(
        "idinit_ref_tensorflow needs Keras 3 and one of its backends; "
        f'pip install "idinit-ref[tensorflow]" installs both (the import raised: {problem})'
    ) from problem

from ._audit import audit
from ._initializers import IDI, IDIZ
from ._jacobian import jacobian
from ._layers import idi_layer_, idiz_layer_, layer_plans
from ._model import init_, plans
from ._trace import trace
from ._variable import idi_, idiz_

__all__ = [
    "IDI",
    "IDIZ",
    "audit",
    "idi_",
    "idi_layer_",
    "idiz_",
    "idiz_layer_",
    "init_",
    "jacobian",
    "layer_plans",
    "plans",
    "trace",
]
