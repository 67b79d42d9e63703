"""Internal: the part of tracing that all adapters share and that needs no framework.

A tracer reads its framework's operations in order and makes one call of `Drawing` for each, with
names, shapes and axis numbers. The drawing tracks the axes of every parameter and builds the
core's graph.

Examples
--------
>>> from idinit_ref.tracing import Drawing, Parameter
>>> draw = Drawing([Parameter("w", (4, 3))])
>>> x = draw.input("x", (2, 3))
>>> y = draw.product("product", [x, draw.parameter("w")], ["bi", "oi"], "bo", (2, 4))
>>> draw.graph([y]).by_name["w"].options
{'layout': 'OI'}
"""

from ._asking import asking
from ._axes import View
from ._drawing import Drawing
from ._functions import Fact, clamped, is_entrywise, power
from ._joins import At
from ._kernels import identity
from ._labels import Sides, of_einsum, of_matmul, of_tensordot
from ._late import redrawn
from ._loops import LAYERS, MEMBERS, reads_by_turn
from ._made import Made, Part, entries_of, span_of
from ._moves import Moving
from ._parameter import Parameter
from ._places import Box
from ._slices import Span, spans_of
from ._values import Data, Signal, Value, is_constant, is_number

__all__ = [
    "LAYERS",
    "MEMBERS",
    "At",
    "Box",
    "Data",
    "Drawing",
    "Fact",
    "Made",
    "Moving",
    "Parameter",
    "Part",
    "Sides",
    "Signal",
    "Span",
    "Value",
    "View",
    "asking",
    "clamped",
    "entries_of",
    "identity",
    "is_constant",
    "is_entrywise",
    "is_number",
    "of_einsum",
    "of_matmul",
    "of_tensordot",
    "power",
    "reads_by_turn",
    "redrawn",
    "span_of",
    "spans_of",
]
