"""IDInit, the mathematical reference: identity-like weights for any shape, in any framework.

[P] "IDInit: A Universal and Stable Initialization Method for Neural Network Training"
(ICLR 2025, arXiv 2503.04626).

Examples
--------
>>> import idinit_ref as ir
>>> ir.idi((2, 3))
array([[1., 0., 0.],
       [0., 1., 0.]])
"""

from . import errors
from .export import save
from .graph import Graph, Node, infer_roles
from .model import Report
from .pattern import Role
from .plan import Plan, idi, idiz, plan

__all__ = [
    "Graph",
    "Node",
    "Plan",
    "Report",
    "Role",
    "__version__",
    "errors",
    "idi",
    "idiz",
    "infer_roles",
    "plan",
    "save",
]

__version__ = "0.1.0"
