"""Which weight has which role: found in a computation, or, where there is none, by its name.

The names here are public, and so is `idinit_ref.roles.names`; the other modules are inside.
"""

from . import names
from .graph import Graph, Node
from .notes import Note
from .options import ModelOptions
from .report import Report
from .search import explain_roles, infer_roles

__all__ = [
    "Graph",
    "ModelOptions",
    "Node",
    "Note",
    "Report",
    "explain_roles",
    "infer_roles",
    "names",
]
