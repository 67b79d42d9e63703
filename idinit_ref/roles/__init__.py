"""The role of every weight: from a computation, or by its name if there is none.

The names here and `idinit_ref.roles.names` are public; the other modules are internal.
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
