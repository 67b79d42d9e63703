"""The graph that a tracer draws of the values it meets.

Both ways to read a model (TensorFlow's function graph, Keras' own) say here what they see. What a
parameter's axes mean is followed from where it is stored to the operation that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any, cast

from idinit_ref import Node
from idinit_ref.graph import Use
from idinit_ref.layout import SPATIAL

from ._parameter import Parameter
from ._values import Axes, Data, Made, Shape, Signal, Value, only_made, regroup, reshaped
from ._window import Sizes, Window


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
                n: {k: copy(v) for k, v in vars(p).items() if k not in ("variable", "known")}
                for n, p in self.parameters.items()
            },
        )

    def back_to(self, mark: Any) -> None:
        """Take back all that was drawn since a mark."""
        self.nodes, self._names, seen = mark
        for n, old in seen.items():
            vars(self.parameters[n]).update(old)

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
                if use == "other" and name in cast("Made", value).sums:
                    self.parameters[name].sums = True  # as the first step of a GRU has it
                else:
                    self.parameters[name].uses.add(use)

    def other(
        self, name: str, values: Sequence[Value], shape: Shape | None, floating: bool = True
    ) -> Value:
        """Draw any operation."""
        signals = [n for value in values for n in _signals(value)]
        if only_made(values):
            made = cast("Sequence[Made]", values)
            names = [n for value in made for n in value.axes]
            done = next((value.done for value in made if value.done), name)
            return Made(shape, dict.fromkeys(names), done, _sums(made))
        if not floating:
            return Data(shape, tuple(dict.fromkeys(signals)))
        if not any(isinstance(value, Signal) for value in values):
            self.touch(values, "other")
            return self.start(name, shape)
        self.touch(values, "other")
        held: dict[str, Axes] = {}
        for value in values:
            if isinstance(value, Signal) and value.shape == shape:
                held |= value.held
        return Signal(self._draw(name, "other", signals, shape), shape, held=held)

    def keep(self, name: str, values: Sequence[Value], shape: Shape | None) -> Value:
        """Draw a scaling or a rounding: by a number, it leaves a weight, or its result, what it is.

        By anything else it does not: a mask, a norm, another parameter.
        """
        result = self.other(name, values, shape)
        first, *rest = [v for v in values if not isinstance(v, Made) or v.axes] or [Made(shape)]
        numbers = [v.shape for v in values if isinstance(v, Made) and not v.axes]
        if rest or first.shape != shape or any(s is None or prod(s) != 1 for s in numbers):
            return result
        if isinstance(result, Made):
            return cast("Made", first)._replace(shape=shape)
        if isinstance(result, Signal) and isinstance(first, Signal):
            return first._replace(node=result.node, left=(), picks=False, member=None)
        return result

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
            return value._replace(shape=shape, axes=axes)
        places: list[int] = []
        new_axes = {
            n: reshaped(old, self.parameters[n].shape, groups, shape)
            for n, old in value.held.items()
        }
        held = {n: axes for n, axes in new_axes.items() if axes is not None}
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
        result = Signal(node, shape, value.products, tuple(places), left=tuple(left), held=held)
        result = result._replace(picks=value.picks and value.shape[-1:] == shape[-1:])
        if value.member is None:
            return result
        return self._with(result, self.reshape(name, value.member, shape), value.chosen)

    @staticmethod
    def _with(signal: Signal, member: Value, chosen: str) -> Signal:
        return signal._replace(member=cast("Made", member), chosen=chosen)

    def transpose(self, name: str, value: Value, order: Sequence[int] | None) -> Value:
        """Draw a permutation of axes."""
        if isinstance(value, Data) or value.shape is None or order is None:
            return self.other(name, [value], None, not isinstance(value, Data))
        order = [axis % len(value.shape) for axis in order]
        shape = tuple(value.shape[axis] for axis in order)
        if isinstance(value, Made):
            axes = {n: old and tuple(old[axis] for axis in order) for n, old in value.axes.items()}
            return value._replace(shape=shape, axes=axes)
        node = self._draw(name, "other", [value.node], shape)
        places = tuple(order.index(axis) for axis in value.places)
        held = {n: tuple(old[axis] for axis in order) for n, old in value.held.items()}
        result = Signal(node, shape, value.products, places, held=held)
        if value.member is None:
            return result
        return self._with(result, self.transpose(name, value.member, order), value.chosen)

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
            return value._replace(
                shape=shape,
                axes={
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
        made = cast("Sequence[Made]", values)
        return Made(shape, {n: at for v in made for n, at in v.axes.items()}, "", _sums(made))

    def pad(
        self, name: str, values: Sequence[Value], shape: Shape | None, left: Sequence[int] | None
    ) -> Value:
        """Draw a padding, with what stands before the start of every axis."""
        result = self.other(name, values, shape)
        return result._replace(left=tuple(left or ())) if isinstance(result, Signal) else result

    # Operations -----------------------------------------------------------------------------

    def lookup(
        self, name: str, values: Sequence[Value], shape: Shape | None, axis: int | None = None
    ) -> Value:
        """Draw a lookup in a table, which is the first value, along an axis if that is known.

        Of a stack it takes a matrix, which may then be the weight of a product (`weight`).
        """
        table, *rest = values
        if not isinstance(table, Made) or only_made(values):
            if isinstance(table, Made):
                self.touch([table], "embedding")
            return self.other(name, values, shape)
        result = self.other(name, rest, shape)
        assert isinstance(result, Signal)
        for n in table.axes:
            self.parameters[n].looked.add(result.node)
        if axis is None or None in (shape, table.shape) or len(table.shape or ()) < 3:
            return result
        more = ((),) * (len(shape or ()) - len(table.shape or ()) + 1)
        axes = {n: o and (*o[:axis], *more, *o[axis + 1 :]) for n, o in table.axes.items()}
        return result._replace(
            member=Made(shape, axes), chosen=result.node, products=(), picks=False
        )

    def weights(self, values: Sequence[Value]) -> list[Value]:
        """Return the operands of a product, with a matrix that was chosen for what it is."""
        found = list(values)
        for at, value in enumerate(values[:2]):
            other = values[1 - at] if len(values) > 1 else value
            if isinstance(value, Signal) and value.member and isinstance(other, Signal):
                for n in value.member.axes:
                    self.parameters[n].chosen.add(value.chosen)
                found[at] = value.member
                break
        return found

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
            made = self.other(name, (left, right), shape)
            biases = {
                n
                for one, more in ((left, right), (right, left))
                for n in one.axes
                if more.axes and not one.done
            }
            return cast("Made", made)._replace(sums=_sums((left, right)) | biases)
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
        if made.done and any(
            len(self.parameters[n].shape) > 1 and n not in made.sums for n in made.axes
        ):
            return False  # a recurrent kernel times the zeros of the first state
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
        behind: Sequence[int] = (),
        window: Window | None = None,
        sizes: Sizes | None = None,
        **options: Any,
    ) -> Value:
        """Draw a weight operation.

        `letters` says what the axes of its weight mean, `places` which axes of the result hold the
        outputs, in the order of the weight's axes, and `copies` which are batch axes of it;
        `behind` are these axes of the signal.
        Of a convolution, `window` is how it slides, and `sizes` are those of its input in space,
        if they are known.
        """
        inputs = [n for value in signals for n in _signals(value)]
        if not made.axes:
            return Signal(self._draw(name, "other", inputs, shape), shape)
        if window is None and any(isinstance(v, Signal) and v.picks for v in signals):
            return self.lookup(name, [made, Data(shape)], shape)
        first = next(iter(made.axes))
        name = first.removesuffix("/kernel") if first.endswith("/kernel") else name
        node = self._draw(name, "weight", inputs, shape, weights=tuple(made.axes))
        left = next((v.left for v in signals if isinstance(v, Signal)), ())
        left = tuple(size for axis, size in enumerate(left) if axis not in (0, *places))
        for n, axes in made.axes.items():
            parameter = self.parameters[n]
            parameter.uses.add("weight")
            if axes is None:
                parameter.lost, parameter.done = node, made.done
                continue
            if parameter.known is not None:
                stored = parameter.known.letters
                if parameter.sizes is None:  # a shared layer has the tap of its first use
                    parameter.sizes = parameter.known.sizes if sizes is None else sizes
                facts = parameter.known.stored(parameter.sizes, left)
            else:
                stored = _stored(axes, letters, len(parameter.shape))
                facts = options | _slides(window, left, letters, stored)
            if {"I", "O"} <= set(stored):
                parameter.facts.setdefault((stored, *facts.items()), node)
            else:
                parameter.lost = node
        for v in signals:
            for axis in behind if isinstance(v, Signal) else ():
                for n, at in cast("Signal", v).held.items():
                    self.parameters[n].batched.update(at[axis])
        outs = [at for at, c in enumerate(letters) if c == "O"]
        along = dict(zip(places, outs, strict=False))
        held = {
            n: tuple(axes[along[at]] if at in along else () for at in range(len(shape or ())))
            for n, axes in made.axes.items()
            if axes is not None and letters
        }
        return Signal(node, shape, tuple(made.axes), tuple(places), tuple(copies), held=held)


def _sums(values: Iterable[Made]) -> frozenset[str]:
    return frozenset(n for value in values for n in value.sums)


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


def _slides(
    window: Window | None, left: Sequence[int], letters: str, stored: str
) -> dict[str, Any]:
    """Return the identity tap and the phases of a convolution, on the axes that are stored."""
    spatial = [c for c in letters if c in SPATIAL]
    kept = [at for at, c in enumerate(spatial) if c in stored]
    if window is None or not kept:
        return {}
    more = left[len(left) - len(spatial) :] or (0,) * len(spatial)
    return window.on(kept).stored([more[at] for at in kept])
