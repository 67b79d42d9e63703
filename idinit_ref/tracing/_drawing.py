"""Internal: the drawing, to which a tracer adds each operation with one call."""

from __future__ import annotations

from ._axes import View
from ._made import Made, Part, Shape
from ._seams import Seams
from ._values import Data, Signal, Value

__all__ = ["Drawing"]


class Drawing(Seams):
    """The graph of a computation under construction, from names, shapes and axis numbers.

    Examples
    --------
    >>> from idinit_ref.tracing import Parameter
    >>> draw = Drawing([Parameter("w", (3, 3)), Parameter("b", (3,))])
    >>> x = draw.input("x", (2, 3))
    >>> h = draw.product("dot", [x, draw.parameter("w")], ["bi", "io"], "bo", (2, 3))
    >>> h = draw.add("add", h, draw.broadcast("spread", draw.parameter("b"), (2, 3)), (2, 3))
    >>> y = draw.add("add", x, h, (2, 3))
    >>> [(node.name, node.use) for node in draw.graph([y]).nodes if node.kind == "parameter"]
    [('w', 'weight'), ('b', 'bias')]
    """

    def parameter(self, name: str) -> Made:
        """Return a parameter as it is stored."""
        given = self.parameters[name]
        return Made(given.shape, (Part(name, View.of(given.shape)),), span=given.span)

    def input(self, name: str, shape: Shape | None, floating: bool = True) -> Signal | Data:
        """Return an input of the model."""
        return self.start(name, shape) if floating else Data(shape)

    # What changes no number -----------------------------------------------------------------

    def cast(self, name: str, value: Value, floating: bool = True, mask: bool = False) -> Value:
        """Draw a cast: of a signal to integers, or of data to floats, of a mask say."""
        if isinstance(value, Signal) and not floating:
            return self.result(name, [value], value.shape, floating, "move")
        if isinstance(value, Data) and floating:
            return self.start(name, value.shape)._replace(picks=mask)
        return value.stepped(name) if isinstance(value, Made) and not floating else value

    def stop(self, name: str, value: Value, floating: bool = True) -> Value:
        """Draw an operation that stops gradients."""
        if isinstance(value, Made):
            parts = tuple(part._replace(stopped=True) for part in value.parts)
            return value._replace(parts=parts, recipe=None)
        if not isinstance(value, Signal):
            return value
        out = self.result(name, [value], value.shape, floating, "move")
        if isinstance(out, Signal):
            self.stops.add(out.node)
        return out
