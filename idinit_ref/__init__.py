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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors
from .core.pattern import Role
from .core.plan import Plan
from .core.weights import idi, idiz, plan

if TYPE_CHECKING:
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

# Imported when they are asked for: one weight needs neither graphs nor files.
_LATER = {
    "Graph": "roles.graph",
    "Node": "roles.graph",
    "Report": "roles.report",
    "infer_roles": "roles.search",
    "save": "files.writing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
