"""Internal: the drawing, to which a tracer adds each operation with one call."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from ._axes import View
from ._functions import Fact, fact_of
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
        if isinstance(value, Data):
            return value
        out: Value
        if isinstance(value, Made):
            parts = tuple(part._replace(stopped=True) for part in value.parts)
            out = value._replace(parts=parts, recipe=None)
        else:
            out = self.result(name, [value], value.shape, floating, "move")
            self.stops |= {out.node} if isinstance(out, Signal) else set()
        self._stopped[id(out)] = out, value
        return out

    def entrywise(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        floating: bool = True,
        doing: str = "",
        word: str | Fact = "",
    ) -> Value:
        """Draw an elementwise operation: see :class:`Results`.

        A choice between a value and its own copy that stops gradients is the value: JAX writes
        such a choice for every operand of a `cond` under `vmap`.
        """
        fact = fact_of(word) if isinstance(word, str) else word
        if (fact.does, fact.vanishes) == ("select", "sum"):
            whole = self._of_one(values[: fact.of])
            if whole is not None and whole.shape == shape:
                return whole
        return super().entrywise(name, values, shape, floating, doing, word)

    def either(
        self, name: str, values: Sequence[Value], shape: Shape | None, floating: bool = True
    ) -> Value:
        """Draw a choice between values: see :class:`Loops`."""
        whole = self._of_one(values)
        return whole if whole is not None else super().either(name, values, shape, floating)

    def _of_one(self, values: Sequence[Value]) -> Value | None:
        """Return the value of which some values are copies that stop gradients, if one does not."""
        origins = [self._stopped.get(id(value), (value, value))[1] for value in values]
        is_one = len({id(origin) for origin in origins}) == 1 < len(values)
        return origins[0] if is_one and any(map(operator.is_, origins, values)) else None
