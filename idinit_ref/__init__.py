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
from .core.pattern import Role
from .core.plan import Plan
from .core.weights import idi, idiz, plan
from .files.writing import save
from .roles.graph import Graph, Node
from .roles.report import Report
from .roles.search import infer_roles

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
