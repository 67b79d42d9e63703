"""IDInit for PyTorch: fill tensors and layers in place, as ``torch.nn.init`` does.

Every number comes from `idinit_ref`; nothing here knows a formula.

Examples
--------
>>> import torch
>>> from idinit_ref_torch import idi_, idiz_layer_
>>> idi_(torch.empty(3, 2))
tensor([[1., 0.],
        [0., 1.],
        [1., 0.]])
>>> idiz_layer_(torch.nn.Linear(2, 2), eps=0.5).weight.tolist()
[[0.5, -0.5], [-0.5, 0.5]]
"""

try:
    import torch as _torch  # noqa: F401 - imported here so that the error names the missing extra
except ImportError as problem:
    raise ImportError(
        'idinit_ref_torch needs PyTorch; install it with: pip install "idinit-ref[torch]"'
    ) from problem

from ._audit import audit
from ._jacobian import jacobian
from ._layers import idi_layer_, idiz_layer_, layer_plans
from ._model import init_, plans
from ._tensor import idi_, idiz_
from ._trace import trace

__all__ = [
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
