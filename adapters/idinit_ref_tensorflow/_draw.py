"""The graph that a tracer draws of the values it meets.

Both ways to read a model (TensorFlow's function graph, Keras' own) say here what they see. What a
parameter's axes mean is followed from where it is stored to the operation that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

from idinit_ref import Node
from idinit_ref.errors import OptionError
from idinit_ref.graph import Use
from idinit_ref.layout import SPATIAL, identity_tap, merge_axes

from ._layers import Weight, padded
from ._values import Axes, Data, Made, Shape, Signal, Value, only_made, regroup, reshaped


@dataclass
class Parameter:
    """A variable of the model, and what is known of it."""

    name: str
    variable: Any
    shape: Shape
    note: str
    state: bool  # made untrainable: a parameter only if it is used as a weight
    known: Weight | None  # as its layer knows it
    is_bias: bool = False  # as its layer says
    uses: set[Use] = field(default_factory=set)
    facts: dict[tuple[Any, ...], str] = field(default_factory=dict)  # how stored: by which use
    cuts: set[tuple[int, int]] = field(default_factory=set)  # of its outputs
    lost: str = ""  # the operation that it reaches with its axes lost

    @property
    def letters(self) -> str:
        """A letter for each stored axis, or "" where they are not known."""
        return next((key[0] for key in self.facts), "")

    def node(self) -> Node:
        """Write down what has been seen."""
        order: tuple[Use, ...] = ("embedding", "weight", "other", "bias")
        use = next((use for use in order if use in self.uses), None)
        shape, options, note = self.shape, {}, self.note
        if use is None:
            note = note or "not used by the computation of these example inputs"
        elif "weight" in self.uses and len(shape) > 1:
            if len(self.facts) > 1:
                ways = [f"{at} ({key[0]} {dict(key[1:]) or ''})" for key, at in self.facts.items()]
                note = note or f"used in several ways: {', '.join(ways)}"
            elif self.lost or not self.facts:
                note = note or f"only a part of what {self.lost} computes its weight from"
            else:
                key = next(iter(self.facts))
                shape, layout = merge_axes(shape, self.letters)
                options = {"layout": layout, **dict(key[1:]), **self._blocks(shape, layout)}
        return Node(
            self.name, "parameter", (), shape, use=use or "other", options=options, note=note
        )

    def _blocks(self, shape: Shape, layout: str) -> dict[str, Any]:
        """Return the cuts of the outputs, if they make them up; of a convolution two halves."""
        outputs = shape[layout.index("O")]
        if self.known is not None and self.known.parts > 1:
            return {"blocks": (outputs // self.known.parts,) * self.known.parts}
        cuts = sorted(self.cuts)
        sizes = tuple(stop - start for start, stop in cuts)
        starts = [0, *(stop for _, stop in cuts)]
        is_kernel = any(c in SPATIAL for c in layout)
        if len(cuts) < 2 or starts != [*(start for start, _ in cuts), outputs]:
            return {}
        return {"blocks": sizes} if not is_kernel or sizes == (outputs // 2,) * 2 else {}


class Drawing:
    """The graph so far."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.nodes: list[Node] = []
        self._names = dict.fromkeys(self.parameters, 1)

    def parameter(self, name: str) -> Made:
        """Return a parameter as it is stored."""
        shape = self.parameters[name].shape
        return Made(shape, {name: tuple((axis,) for axis in range(len(shape)))})

    def mark(self) -> Any:
        """Return all that was drawn so far, for `back_to`."""
        return (
            list(self.nodes),
            dict(self._names),
            {
                n: (set(p.uses), dict(p.facts), set(p.cuts), p.lost)
                for n, p in self.parameters.items()
            },
        )

    def back_to(self, mark: Any) -> None:
        """Take back all that was drawn since a mark."""
        self.nodes, self._names, seen = mark
        for n, (uses, facts, cuts, lost) in seen.items():
            p = self.parameters[n]
            p.uses, p.facts, p.cuts, p.lost = uses, facts, cuts, lost

    def _draw(self, name: str, kind: Any, inputs: Iterable[str], shape: Any, **more: Any) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        while count > 1 and f"{name} ({count})" in self._names:
            count += 1
        name = name if count == 1 else f"{name} ({count})"
        self._names.setdefault(name, 1)
        self.nodes.append(Node(name, kind, tuple(dict.fromkeys(inputs)), shape, **more))
        return name

    def data(self, name: str, shape: Shape | None, floating: bool) -> Value:
        """Return an input of the model."""
        return self.start(name, shape) if floating else Data(shape)

    def start(self, name: str, shape: Shape | None) -> Signal:
        """Start a signal."""
        return Signal(self._draw(name, "input", (), shape), shape)

    def touch(self, values: Iterable[Value], use: Use) -> None:
        """Note the use of all the parameters that some values are made of."""
        for value in values:
            for name in value.axes if isinstance(value, Made) else ():
                self.parameters[name].uses.add(use)

    def other(
        self, name: str, values: Sequence[Value], shape: Shape | None, floating: bool = True
    ) -> Value:
        """Draw any operation."""
        signals = [n for value in values for n in _signals(value)]
        if only_made(values):
            names = [n for value in values for n in cast("Made", value).axes]
            return Made(shape, dict.fromkeys(names))
        if not floating:
            return Data(shape, tuple(dict.fromkeys(signals)))
        if not any(isinstance(value, Signal) for value in values):
            self.touch(values, "other")
            return self.start(name, shape)
        self.touch(values, "other")
        return Signal(self._draw(name, "other", signals, shape), shape)

    def keep(self, name: str, values: Sequence[Value], shape: Shape | None) -> Value:
        """Draw an elementwise operation that leaves a weight a weight: its scale, its rounding."""
        result = self.other(name, values, shape)
        if not isinstance(result, Made):
            return result
        ways: dict[str, set[Axes]] = {}
        for value in cast("Sequence[Made]", values):
            for n, old in value.axes.items():
                ways.setdefault(n, set()).update([old] if old and value.shape == shape else [])
        return Made(shape, {n: way.pop() if len(way) == 1 else None for n, way in ways.items()})

    # Views ----------------------------------------------------------------------------------

    def cast(self, name: str, value: Value, shape: Shape | None, floating: bool) -> Value:
        """Draw what changes no place: a cast, an identity."""
        if isinstance(value, Signal) and not floating:
            return Data(shape, (value.node,))
        if isinstance(value, Data) and floating:
            return self.other(name, [value], shape)
        return value

    def reshape(self, name: str, value: Value, shape: Shape | None, floating: bool = True) -> Value:
        """Draw a reshape, a squeeze, or axes of size 1 more."""
        if isinstance(value, Data) or None in (value.shape, shape):
            return self.other(name, [value], shape, floating)
        assert value.shape is not None
        assert shape is not None
        groups = regroup(value.shape, shape)
        if isinstance(value, Made):
            stored = {n: self.parameters[n].shape for n in value.axes}
            axes = {
                n: None if old is None else reshaped(old, stored[n], groups, shape)
                for n, old in value.axes.items()
            }
            return Made(shape, axes)
        places: list[int] = []
        left = [0] * len(shape)
        for old, new in groups:
            wide = [axis for axis in old if value.shape[axis] != 1]
            now = [axis for axis in new if shape[axis] != 1]
            if value.left and len(wide) == len(now) == 1:
                left[now[0]] = value.left[wide[0]]
        for old, new in groups:
            inside = [axis for axis in old if axis in value.places]
            rest = [axis for axis in old if axis not in inside and value.shape[axis] != 1]
            if inside and not rest:
                places += new
            elif inside:
                places = []
                break
        if sorted(value.places) != list(value.places):
            places = []
        node = self._draw(name, "other", [value.node], shape)
        return Signal(node, shape, value.products, tuple(places), left=tuple(left))

    def transpose(self, name: str, value: Value, order: Sequence[int] | None) -> Value:
        """Draw a permutation of axes."""
        if isinstance(value, Data) or value.shape is None or order is None:
            return self.other(name, [value], None, not isinstance(value, Data))
        order = [axis % len(value.shape) for axis in order]
        shape = tuple(value.shape[axis] for axis in order)
        if isinstance(value, Made):
            return Made(
                shape,
                {n: old and tuple(old[axis] for axis in order) for n, old in value.axes.items()},
            )
        node = self._draw(name, "other", [value.node], shape)
        places = tuple(order.index(axis) for axis in value.places)
        return Signal(node, shape, value.products, places)

    def part(
        self,
        name: str,
        value: Value,
        shape: Shape | None,
        spans: Mapping[int, tuple[int, int]] | None,
        gone: Sequence[int] = (),
        floating: bool = True,
    ) -> Value:
        """Draw a slice: what spans of which axes it takes (None: not known), which axes vanish."""
        if isinstance(value, Made):
            lost = spans is None or (shape is None) or value.shape is None
            return Made(
                shape,
                {
                    n: None
                    if lost or old is None
                    else tuple(at for axis, at in enumerate(old) if axis not in gone)
                    for n, old in value.axes.items()
                },
            )
        result = self.other(name, [value], shape, floating)
        if not isinstance(value, Signal) or not isinstance(result, Signal):
            return result
        if spans and value.places and value.shape is not None:
            cut = [axis for axis, span in spans.items() if span != (0, value.shape[axis])]
            first, *rest = value.places
            size = prod(value.shape[axis] for axis in rest)
            if cut == [first]:
                start, stop = spans[first]
                for n in value.products:
                    self.parameters[n].cuts.add((start * size, stop * size))
        return result._replace(products=value.products)

    def join(self, name: str, values: Sequence[Value], shape: Shape | None) -> Value:
        """Draw a concatenation."""
        if not only_made(values):
            return self.other(name, values, shape)
        return Made(shape, {n: at for v in values for n, at in cast("Made", v).axes.items()})

    def pad(
        self, name: str, values: Sequence[Value], shape: Shape | None, left: Sequence[int] | None
    ) -> Value:
        """Draw a padding, with what stands before the start of every axis."""
        result = self.other(name, values, shape)
        return result._replace(left=tuple(left or ())) if isinstance(result, Signal) else result

    # Operations -----------------------------------------------------------------------------

    def lookup(self, name: str, values: Sequence[Value], shape: Shape | None) -> Value:
        """Draw a lookup in a table, which is the first value."""
        if isinstance(values[0], Made):
            self.touch(values[:1], "embedding")
        return self.other(name, values, shape)

    def add(self, name: str, left: Value, right: Value, shape: Shape | None) -> Value:
        """Draw an addition of two values."""
        if isinstance(left, Signal) and isinstance(right, Signal):
            # Both at once: an addition of a tensor to itself has one input, and is no "add".
            kind = "add" if left.node != right.node else "other"
            node = self._draw(name, kind, (left.node, right.node), shape)
            if left.products and right.products and left.places == right.places:
                both = tuple(dict.fromkeys(left.products + right.products))
                return Signal(node, shape, both, left.places)
            return Signal(node, shape)
        if isinstance(left, Made) and isinstance(right, Made):
            return self.keep(name, (left, right), shape)
        signal, made = (left, right) if isinstance(left, Signal) else (right, left)
        if not isinstance(signal, Signal) or not isinstance(made, Made):
            return self.other(name, (left, right), shape)
        self.touch([made], "bias" if self._is_bias(signal, made) else "other")
        node = self._draw(name, "other", [signal.node], shape)
        if signal.shape != shape:
            return Signal(node, shape)
        return signal._replace(node=node, left=())

    def _is_bias(self, signal: Signal, made: Made) -> bool:
        """Whether it lies along the outputs of the weights before it, and along nothing else."""
        if made.axes and all(self.parameters[n].is_bias for n in made.axes):
            return True
        if not signal.products or made.shape is None or signal.shape is None:
            return False
        first = len(signal.shape) - len(made.shape)
        along = {first + axis for axis, size in enumerate(made.shape) if size != 1}
        if signal.places:
            return along <= {*signal.places, *signal.copies}
        return len(along) <= 1

    def product(
        self,
        name: str,
        signals: Sequence[Value],
        made: Made,
        letters: str,
        shape: Shape | None,
        places: Sequence[int] = (),
        copies: Sequence[int] = (),
        window: tuple[Sequence[int], Sequence[int]] | None = None,
        **options: Any,
    ) -> Value:
        """Draw a weight operation.

        `letters` says what the axes of its weight mean, `places` which axes of the result hold the
        outputs, in the order of the weight's axes, and `copies` which are batch axes of it.
        `window` is the left padding and the dilation of a convolution, if they are known.
        """
        inputs = [n for value in signals for n in _signals(value)]
        if not made.axes:
            return Signal(self._draw(name, "other", inputs, shape), shape)
        first = next(iter(made.axes))
        name = first.removesuffix("/kernel") if first.endswith("/kernel") else name
        node = self._draw(name, "weight", inputs, shape, weights=tuple(made.axes))
        left = next((v.left for v in signals if isinstance(v, Signal)), ())
        left = tuple(size for axis, size in enumerate(left) if axis not in (0, *places))
        for n, axes in made.axes.items():
            parameter = self.parameters[n]
            parameter.uses.add("weight")
            if axes is None:
                parameter.lost = node
                continue
            if parameter.known is not None:
                stored, facts = parameter.known.letters, parameter.known.stored(left)
            else:
                stored = _stored(axes, letters, len(parameter.shape))
                facts = options | _tap(window, left, stored, parameter.shape)
            if {"I", "O"} <= set(stored):
                parameter.facts.setdefault((stored, *facts.items()), node)
            else:
                parameter.lost = node
        return Signal(node, shape, tuple(made.axes), tuple(places), tuple(copies))


def _signals(value: Value) -> tuple[str, ...]:
    if isinstance(value, Signal):
        return (value.node,)
    return value.signals if isinstance(value, Data) else ()


def _stored(axes: Axes | None, letters: str, rank: int) -> str:
    """Return the letters of the stored axes; one that was indexed away is a batch axis."""
    if axes is None:
        return ""
    found = ["B"] * rank
    for letter, at in zip(letters, axes, strict=True):
        for axis in at:
            found[axis] = letter
    return "".join(found)


def _tap(
    window: tuple[Sequence[int], Sequence[int]] | None,
    left: Sequence[int],
    letters: str,
    shape: Shape,
) -> dict[str, Any]:
    """Return the identity tap of a convolution, if it has one."""
    kernel = [size for c, size in zip(letters, shape, strict=True) if c in SPATIAL]
    if window is None or not kernel:
        return {}
    rank = len(kernel)
    padding, dilation = (axes[-rank:] for axes in window)
    try:
        return {"tap": identity_tap(padded(padding, left), dilation, kernel)}
    except OptionError:
        return {}
