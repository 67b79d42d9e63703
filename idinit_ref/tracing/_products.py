"""Internal: products, sums after products, and lookups by data."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod

from ._aligned import Aligned
from ._axes import Atom, Axis, View
from ._functions import Fact, fact_of
from ._labels import Einsum, Labels, axis_of, kernel_among, kinds_of, parted
from ._made import Made, Shape, joined
from ._moves import shift_of
from ._recipes import chosen, factors_of, is_eye, scaled_of, summed_of
from ._resolution import by_matrix, folded
from ._results import done_by, spread
from ._stored import Stored
from ._summed import factor_of, gathered, multiplied
from ._units import left_by, merged, placed, spread_to, summed_by
from ._values import Data, Operation, Signal, Term, Track, Value, is_constant, is_number, is_zero

__all__ = ["Products"]


class Products(Aligned):
    """A drawing with products."""

    def product(
        self,
        name: str,
        values: Sequence[Value],
        labels: Sequence[Labels],
        out: Labels,
        shape: Shape | None,
        grouped: Labels = (),
    ) -> Value:
        """Draw a product that sums over some axes, given as an einsum.

        Parameters
        ----------
        name : str
            Of the operation.
        values : sequence of Value
            Its operands.
        labels, out : sequence of labels
            Of the axes of every operand, and of the result.
        shape : tuple of int, optional
            Of the result.
        grouped : labels
            The labels of a stack of matrices, each applied to a part of the other operand's rows.
        """
        return self._product(Einsum(name, values, labels, out, shape, grouped))

    def _product(self, of: Einsum) -> Value:
        name, values, labels, out, shape, grouped = of
        values = self.with_states(values)
        if any(map(is_zero, values)):
            return self.zeros(name, values, shape)
        given = of._replace(values=values)
        if len(values) == 1:
            return self._alone(given)
        if len(values) > 2:
            return self._several(given)
        data, weight = values
        if isinstance(data, Made) and isinstance(weight, Made):
            values = self.read(name, data, weight, labels)
        a, b = self._chosen(given._replace(values=values))
        pair = given._replace(values=(a, b))
        for made, signal, at in ((a, b, 0), (b, a, 1)):
            own, rest = labels[at], labels[1 - at]
            if not isinstance(made, Made) or not made.parts or not isinstance(signal, Signal):
                continue
            kinds = kinds_of(own, rest, out, grouped)
            if signal.picks and "I" in kinds:
                return self.find(name, made, shape)
            if signal.shape == shape and self.is_diagonal(made):
                return self.result(name, [signal, made], shape, word="mul")
            if {*own} <= {*rest} == {*out} and len(rest) == len(out):  # a scale
                return self._scaled(name, signal, made, (rest, own, out))
            if len(set(own)) < len(own) or made.shape is None:
                return self.weigh(name, made, signal, Operation(()), Signal("", shape))
            if len(out) == len(set(out)):
                each = bool(grouped) or made is not values[at]
                return self._dense(of, made, signal, at, kinds, each)
        if not any(isinstance(value, (Signal, Data)) for value in (a, b)):
            return self._of_weights(pair)
        if isinstance(a, Signal) and isinstance(b, Signal):
            return self._contract(pair, (a, b))
        return self._mixed(pair)

    def _alone(self, of: Einsum) -> Value:
        """Draw an einsum of one operand: a sum over axes, and a permutation of the others."""
        (value,), (own,), sizes = of.values, of.labels, of.values[0].shape
        left = [label for label in own if label in of.out]
        if len({*own}) < len(own) or sizes is None or len(left) < len(of.out):
            return self.other(of.name, of.values, of.shape)
        if len(left) < len(own):
            summed = [axis for axis, label in enumerate(own) if label not in of.out]
            rest = tuple(size for axis, size in enumerate(sizes) if axis not in summed)
            value = self.sum(of.name, value, summed, rest)
        return self.transpose(of.name, value, [left.index(label) for label in of.out])

    def with_states(self, values: Sequence[Value]) -> list[Value]:
        """Return operands; integers and zeros that a weight reads, as a state, are a signal."""
        if not any(isinstance(value, Made) and value.parts for value in values):
            return list(values)
        return [self._as_signal(value) for value in values]

    def _as_signal(self, value: Value) -> Value:
        if isinstance(value, Data):  # some frameworks multiply integers with floats
            return self.once("floats", [value], lambda: self.start("floats", value.shape))
        return self.data(value) if isinstance(value, Made) and value.zero else value

    def _contract(self, of: Einsum, signals: tuple[Signal, Signal]) -> Signal:
        """Draw a product of two signals; it vanishes with a signal whose units it does not sum."""
        _, _, labels, out, shape, _ = of
        for signal in signals:
            signal.spend()
        inputs = tuple(dict.fromkeys(signal.node for signal in signals))
        places = [inputs.index(signal.node) for signal in signals]
        makers = [track.operation for track in kernel_among(signals, labels, out).fresh]
        ways = [summed_by(own, out) for own in labels]
        kept = {
            place
            for signal, place, way in zip(signals, places, ways, strict=True)
            if placed(signal.units, way)
        }
        for signal, place in zip(signals, places, strict=True):
            self.learned.late |= self.asked(signal.node) if place in kept else set()
        unknown = {p for p, signal in zip(places, signals, strict=True) if not signal.units}
        enough = kept or unknown
        node = self.draw(
            "other",
            of.name,
            inputs,
            shape,
            does="contract",
            vanishes=tuple(sorted(enough)),
            sums=tuple(sorted({*places} - kept - unknown)),
        )
        for operation in makers:
            operation.makes = node
        for signal, own, rest in zip(signals, labels, labels[::-1], strict=True):
            left = {*own} & {*out}
            if left - {*rest} and {*own} - left:  # it may be a matrix
                self.kernel(node, signal.node, not left & {*rest})
        units = [
            unit
            for signal, place, way in zip(signals, places, ways, strict=True)
            for unit in self.factor(node, place, self.follow(node, signal, way))
        ]
        return Signal(node, shape, halves=multiplied(signals), units=merged(units))

    def _mixed(self, of: Einsum) -> Value:
        """Draw a product of a signal with constants or data: a linear map of it."""
        for at, (value, own) in enumerate(zip(of.values, of.labels, strict=True)):
            if not isinstance(value, Signal) or not is_constant(of.values[1 - at]):
                continue
            made, rest = of.values[1 - at], of.labels[1 - at]
            to = ["I" if c in own else "O" for c in rest if c not in own or c not in of.out]
            if isinstance(made, Made) and len(to) == len(rest) and is_eye(made, to, {}):
                (new,) = {*rest} - {*own}
                turned = [new if c in rest else c for c in own]
                return self.transpose(of.name, value, [turned.index(c) for c in of.out])
            axes = by_matrix(value, own, of.out, of.shape)
            if axes and of.shape:
                there = of._replace(
                    out=[of.out[axis] for axis in axes], shape=tuple(of.shape[k] for k in axes)
                )
                found = self._linear(there, Fact("resize"))
                return self.transpose(of.name, found, [axes.index(k) for k in range(len(axes))])
        return self._linear(of, fact_of("linear"))

    def _linear(self, of: Einsum, fact: Fact) -> Value:
        """Draw a linear map of a signal, by constants or data."""
        found = self.other(of.name, of.values, of.shape, word=fact)
        if not isinstance(found, Signal):
            return found
        pairs = zip(of.values, of.labels, strict=True)
        ways = [(v, summed_by(own, of.out)) for v, own in pairs if isinstance(v, Signal)]
        return self.moved(found, ways)

    def _dense(
        self, of: Einsum, made: Made, signal: Signal, at: int, kinds: str, each: bool
    ) -> Signal:
        """Draw a product of a signal with a weight, which is the operand `at`."""
        name, _, labels, out, shape, _ = of
        own, rest = labels[at], labels[1 - at]
        late = self.tables_in(made) & self.asked(signal.node)  # keys and values of one
        self.learned.late |= late
        self._batch(signal, rest, own, out)
        made, own, kinds, apart = parted(made, own, kinds)
        sizes = made.shape or ()
        axes: list[Axis] = []
        for axis, label in enumerate(out):
            size = 1 if shape is None else shape[axis]
            parts = apart.get(label, [label])
            axes.append(axis_of(parts, made, own, size, label in rest))
        reads = {k for k, label in enumerate(rest) if label in labels[at] and label not in out}
        operation = Operation(sizes, kinds, each=each, reads=frozenset(reads))
        track = Track(operation, View(tuple(axes)))
        found = self.weigh(name, made, signal, operation, Signal("", shape, (track,)))
        self.weights.fed[found.node] = summed_by(rest, out)
        moved = dict(zip(rest, signal.moved, strict=False))
        return found._replace(shift=shift_of(tuple(moved.get(label, 0) for label in out)))

    def _scaled(
        self, name: str, signal: Signal, made: Made, labels: tuple[Labels, Labels, Labels]
    ) -> Value:
        """Draw a product that sums over no axis: the value scales the signal along its axes."""
        rest, own, out = map(list, labels)
        by = self.transpose(name, made, [own.index(label) for label in rest if label in own])
        pairs = zip(rest, signal.shape or (), strict=True)
        by = self.reshape(name, by, tuple(size if label in own else 1 for label, size in pairs))
        value = self.multiply(name, signal, by, signal.shape)
        return value if rest == out else self.transpose(name, value, [*map(rest.index, out)])

    def _chosen(self, of: Einsum) -> tuple[Value, Value]:
        """Return two operands, with a matrix that an input chose from a stack as that matrix."""
        found, labels = list(of.values), of.labels
        for at in (0, 1):
            value, rest = found[at], found[1 - at]
            if not isinstance(value, Signal) or not value.member or not isinstance(rest, Signal):
                continue
            if value.chosen and not value.member.is_matrix:
                continue
            kinds = kinds_of(labels[at], labels[1 - at], of.out, of.grouped)
            operation = Operation(value.shape or (), kinds)
            given = [(part.view, self.parameters[part.name].shape) for part in value.member.parts]
            if all(isinstance(operation.stored(*each), Stored) for each in given):
                self.used.members.add(value.chosen)
                found[at] = value.member
                break
        return found[0], found[1]

    def _several(self, of: Einsum) -> Value:
        """Draw a product of many operands as products of two, signals before weights."""
        name, values, labels, out, shape, _ = of
        sizes: dict[Hashable, int] = {}
        for value, own in zip(values, labels, strict=True):
            sizes |= zip(own, value.shape or (), strict=False)
        order = sorted(range(len(values)), key=lambda at: not isinstance(values[at], Signal))
        if any(value.shape is None for value in values):
            return self.other(name, values, shape)
        value, have = values[order[0]], list(labels[order[0]])
        for number, at in enumerate(order[1:], 2):
            later = {label for rest in order[number:] for label in labels[rest]} | set(out)
            both = dict.fromkeys((*have, *labels[at]))
            to = list(out) if number == len(order) else [c for c in both if c in later]
            size = shape if number == len(order) else tuple(sizes[label] for label in to)
            value = self.product(name, [value, values[at]], [have, labels[at]], to, size)
            have = to
        return value

    def _of_weights(self, of: Einsum) -> Value:
        """Return a product of values of parameters, each with its remaining axes."""
        name, values, labels, out, shape, _ = of
        part = chosen(values, labels, out)
        if part is not None:
            return part
        self.compose(values, labels)
        found = []
        for at in (0, 1):
            made, own = values[at], labels[at]
            if not isinstance(made, Made) or not made.parts:
                continue
            noted = made.noted(done_by("multiplied as a matrix by", name, [values[1 - at]]))

            def moved(view: View, own: Labels = own) -> View:
                sizes = shape or (0,) * len(out)
                axes: list[Axis] = [
                    view.axes[own.index(label)] if label in own else (Atom.of(-1, size),)
                    for label, size in zip(out, sizes, strict=True)
                ]
                return View(tuple(axes), view.fixed)

            found.append(noted.lost(shape) if shape is None else noted.moved(shape, moved))
        recipe = None if shape is None else factors_of(values, labels, out)
        return joined(shape, found)._replace(recipe=recipe)

    def _batch(self, signal: Signal, rest: Labels, own: Labels, out: Labels) -> None:
        """Record that a weight has a batch axis at an axis of an earlier weight's result."""
        for axis, label in enumerate(rest):
            if label not in own or label not in out:
                continue
            for operation, view, *_ in signal.tracks:
                for atom in view.axes[axis]:
                    if atom.axis >= 0 and atom.step > 0 and atom.size == atom.radix:
                        operation.batched.add((atom.axis, atom.step, atom.size))

    def multiply(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw an elementwise product: a scaling, a gate, or half of a matrix product."""
        if isinstance(a, Signal) and isinstance(b, Signal):
            for operation, half in a.halves:
                if any(operation is of and half != rest for of, rest in b.halves):
                    operation.gated = True
        is_norm = self._is_standard(a, b) or self._is_standard(b, a)
        word = "norm" if is_norm else "mul"
        out = self.scale(name, (a, b), shape, "multiplied by", word)
        if isinstance(out, Signal) and isinstance(a, Signal) and isinstance(b, Signal):
            out = out._replace(halves=multiplied((a, b)))
        if isinstance(out, Made) and out.parts and not out.recipe:
            return out._replace(recipe=scaled_of((a, b), shape))
        for signal, made in ((a, b), (b, a)):
            if not isinstance(signal, Signal) or not isinstance(made, Made):
                continue
            if (made.parts or made.entries) and isinstance(out, Signal) and not out.member:
                is_direct = out.is_direct or self._is_normed(signal, made)
                return out._replace(term=Term(signal, made), is_direct=is_direct)
        return out

    def _is_normed(self, signal: Signal, made: Made) -> bool:
        """Whether a function and a learned scale stand for a norm, as tanh(a * x) * w does."""
        node = self.node(signal.node)
        is_scale = bool(made.parts) and prod(made.shape or ()) > 1
        if node.does != "map" or node.vanishes != "all" or not is_scale:
            return False
        while node.does in ("map", "move", "scale") and len(node.inputs) == 1:
            node = self.node(node.inputs[0])
        return made.is_vector and (node.kind == "weight" or node.does == "norm")

    def _is_standard(self, signal: Value, by: Value) -> bool:
        """Whether a product with a signal is a norm's, with a running variance and a scale."""
        if not isinstance(signal, Signal) or not isinstance(by, Made) or not by.rooted:
            return False
        return not all(self.parameters[part.name].note for part in by.parts)

    def scale(
        self,
        name: str,
        values: Sequence[Value],
        shape: Shape | None,
        doing: str = "",
        word: str = "div",
    ) -> Value:
        """Draw a product with numbers, a quotient by them, or a change of sign.

        Only a number keeps a weight a weight, and a weight's result such a result.
        """
        word = "scale" if len(values) == 1 and word != "neg" else word
        if any(map(is_zero, values[: 1 if word == "div" else None])):
            return self.zeros(name, values, shape)
        rest = [value for value in values if not is_number(value)]
        if len(rest) == 1 and rest[0].shape == shape and len(rest) + len(values) > 1:
            (value,) = rest
            if isinstance(value, Made):
                return value.sloped(-1.0 if word == "neg" else factor_of(values, word == "div"))
            if isinstance(value, Signal):
                node = self.draw("other", name, (value.node,), shape, does="scale")
                self.weights.shrunk[node] = factor_of(values, word == "div")
                scaled = value._replace(
                    node=node, narrow=None, pieces=(), picks=False, term=None, fold=None, places=()
                )
                self.expand(scaled, word, values)
                return self.moved(scaled, [(value, spread_to(shape, shape))])
        out = self.entrywise(name, values, shape, doing=doing, word=word)
        if len(values) == 2 and isinstance(out, Signal):
            for made, by in (values, values[::-1]):
                single = isinstance(by, Signal) and (by.is_number or by.shape == ())
                if single and isinstance(made, Made) and made.parts:
                    # for example a spectral norm, whose state is an input
                    done = done_by(doing, name, [by])
                    return out._replace(member=spread(made, shape).noted(done))
        return out

    def sum(
        self,
        name: str,
        value: Value,
        axes: Sequence[int],
        shape: Shape | None,
        mean: bool = False,
    ) -> Value:
        """Draw a sum or mean along axes; after an elementwise product it may be a matrix product.

        A sum over the periods of a folded convolution result shifts its origin.
        """
        signal = value if isinstance(value, Signal) else None
        fold = signal.fold if signal is not None and len(axes) == 1 else None
        if fold and shape and axes[0] in fold.axes:
            out = self.result(name, [value], shape, word="sum")
            assert isinstance(out, Signal)
            return folded(out, fold, axes[0], shape)
        if signal is not None and signal.term is not None and value.shape:
            found = self._summed(name, signal.term, axes, value.shape, shape)
            if found is not None:
                return found
        out = self.result(name, [value], shape, word="sum")
        if isinstance(out, Signal) and signal is not None:
            self.weights.gathered |= {} if mean else gathered(out.node, signal, axes)
            places = left_by(len(signal.shape or ()), axes, shape)
            return self.moved(out, [(signal, places)])
        return self._sum_of_weights(name, value, out, axes) if isinstance(out, Made) else out

    def extreme(
        self, name: str, value: Value, axes: Sequence[int], shape: Shape | None, word: str = "max"
    ) -> Value:
        """Draw a maximum or minimum along axes."""
        out = self.result(name, [value], shape, word=word)
        if isinstance(out, Signal) and isinstance(value, Signal):
            self.axes.steps[out.node] = [
                (value.node, left_by(len(value.shape or ()), axes, shape)),
            ]
        return out

    def _sum_of_weights(self, name: str, value: Value, out: Made, axes: Sequence[int]) -> Value:
        """Return a sum of a value of parameters, which may be one of a product."""
        made = value if isinstance(value, Made) and value.recipe and out.shape is not None else None
        keeps = made is not None and len(made.shape or ()) == len(out.shape or ())
        found = None if made is None else summed_of(made, axes, keeps)
        if isinstance(found, Made):
            return self.reshape(name, found, out.shape)
        return out.noted(done_by("", name, []))._replace(recipe=found)

    def _summed(
        self, name: str, term: Term, axes: Sequence[int], whole: Shape, shape: Shape | None
    ) -> Value | None:
        """Draw an elementwise product and its sum as a matrix product; None if they are not one."""
        signal, made = term
        rank, lost = len(whole), any(part.view is None for part in made.parts)
        if signal.shape is None or made.shape is None or lost:
            return None
        if shape is not None and len(shape) == rank:  # the summed axes stay, with size 1
            return None
        first, second = rank - len(signal.shape), rank - len(made.shape)
        wide = [axis for axis in range(first, rank) if axis - first not in signal.spread]
        ours = [axis for axis in wide if signal.shape[axis - first] == whole[axis]]
        theirs = [axis for axis in range(second, rank) if made.varies(axis - second)]
        summed = set(axes) & set(theirs)
        if not summed or not summed <= set(ours) or set(theirs) <= {*axes, *ours}:
            return None

        def chosen(view: View) -> View:
            return View(tuple(view.axes[axis - second] for axis in theirs), view.fixed)

        weight = made.moved(tuple(whole[axis] for axis in theirs), chosen)
        data = signal.along([axis - first for axis in ours])
        kept = [axis for axis in range(rank) if axis not in axes]
        return self.product(name, [data, weight], [ours, theirs], kept, shape)

    # Tables ---------------------------------------------------------------------------------

    def find(self, name: str, table: Made, shape: Shape | None) -> Signal:
        """Draw a lookup in a table by data: a signal starts there."""
        base = f"{table.parts[0].name}: lookup" if self.prefixed else name
        signal = self.start(base, shape)
        self.use(table, "embedding", signal.node)
        return signal
