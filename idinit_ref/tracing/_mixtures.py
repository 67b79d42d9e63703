"""Internal: weights that a router mixes for each sample, as those of CondConv."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from math import prod
from typing import Any

from ..core.layout import SPATIAL
from ._applied import Applied
from ._labels import Einsum, Labels, kernel_among
from ._made import Made, Shape, names_of
from ._recipes import factors_of, opened
from ._units import merged
from ._values import Blend, Mixture, Operation, Signal, Value

__all__ = ["Mixtures"]


_STEPS = 16  # the most nodes that are followed


def _with(shape: Sequence[int], sizes: Mapping[int, int]) -> Shape:
    """Return a shape with other sizes of some axes."""
    return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))


def _blend_of(value: Value) -> Blend | None:
    """Return a sum of weights as such; a weight alone is one."""
    if isinstance(value, Made):
        one = Made((), number=True, value=1.0)
        return Blend(((one, value),), ()) if value.is_plain else None
    found = value.mixture if isinstance(value, Signal) else None
    return found if isinstance(found, Blend) else None


class Mixtures(Applied):
    """A drawing with mixtures of a stack's matrices, each applied as their sum."""

    def _product(self, of: Einsum) -> Value:
        """Draw a product: see :class:`Products`.

        A signal meets the matrices of a mixture first, and the router their results.
        """
        for _, mixed, own, signal, rest in of.sides:
            if not isinstance(mixed, Signal) or not isinstance(signal, Signal) or not mixed.mixture:
                continue
            found = self._by_mixture(of, mixed, signal, own, rest)
            if found is not None:
                return found
        result = super()._product(of)
        for _, weight, own, by, rest in of.sides:
            if isinstance(weight, Made) and isinstance(by, Signal) and self._routes(by):
                return self._mixture(result, (by, weight), (rest, own), of.out)
        return result

    def _by_mixture(
        self, of: Einsum, mixed: Signal, signal: Signal, own: Labels, rest: Labels
    ) -> Value | None:
        """Draw a product of a signal with a mixture; None if that is not its matrix or kernel."""
        found: Value | None = None
        if isinstance(mixed.mixture, Blend):

            def apply(made: Made) -> Value:
                return self._product(of._replace(values=(signal, made), labels=(rest, own)))

            found = self._blended(of.name, mixed.mixture, of.shape, apply)
        elif mixed.mixture and kernel_among((mixed, signal), (own, rest), of.out) is mixed:
            made, router = mixed.mixture
            found = self.applied(of, made, signal, own, rest, router)
        if found is not None:
            self.fates.lazy.add(self._base(mixed.node))
        return found._replace(is_direct=True) if isinstance(found, Signal) else found

    def _routes(self, signal: Signal) -> bool:
        """Whether a signal is never 0, as a softmax or sigmoid is: it may weigh experts."""
        stack = [signal.node]
        for _ in range(_STEPS):
            node = self.node(stack.pop())
            if node.vanishes != "never":
                at = range(len(node.inputs)) if node.vanishes == "all" else node.vanishes
                if node.kind != "other" or not at or (len(at) > 1 and node.vanishes == "all"):
                    return False
                stack += [node.inputs[place] for place in at]
            if not stack:
                return True
        return False

    def _mixture(
        self, result: Value, of: tuple[Signal, Made], labels: tuple[Labels, Labels], out: Labels
    ) -> Value:
        """Return a product of a router and a weight, with its recipe as a mixture."""
        router, made = of
        recipe = factors_of([Made(router.shape), made], labels, out)
        if not isinstance(result, Signal) or not made.parts or recipe is None:
            return result
        return result._replace(mixture=Mixture(Made(result.shape, recipe=recipe), router))

    def convolution(
        self, name: str, signal: Value, kernel: Value, letters: str, shape: Shape | None, **how: Any
    ) -> Value:
        """Draw a convolution: see :class:`Layers`; its groups may have a mixture each."""
        if isinstance(kernel, Signal) and kernel.mixture and isinstance(signal, Signal) and shape:
            found: Value | None = None
            if isinstance(kernel.mixture, Blend):

                def apply(made: Made) -> Value:
                    return self.convolution(name, signal, made, letters, shape, **how)

                found = self._blended(name, kernel.mixture, shape, apply)
            else:
                found = self._of_samples(name, signal, kernel.mixture, letters, shape, how)
            if found is not None:
                self.fates.lazy.add(self._base(kernel.node))
                return found
        return super().convolution(name, signal, kernel, letters, shape, **how)

    def _of_samples(
        self, name: str, signal: Signal, mixture: Mixture, letters: str, shape: Shape, how: Any
    ) -> Value | None:
        """Draw a convolution in which each sample is a group with a kernel of its own."""
        found, at, space = opened(mixture.made), how["channels"], [*how["space"]]
        old = signal.shape or ()
        rest = [axis for axis in range(len(shape)) if axis not in (at, *space)]
        if found is None or len(rest) != 1 or [*(how.get("before") or space)] != space:
            return None
        stack, by = found.factors
        if not names_of([stack.made]):
            stack, by = by, stack
        axes = dict(zip(letters, found.axes, strict=True))
        own = [label for label, _ in axes["O"]]
        mixed = [label for label in by.labels if label in stack.labels]
        inner = [label for c in "I" + SPATIAL for label, _ in axes.get(c, ())]
        order = [*mixed, *own[1:], *inner]
        count = how["options"].get("groups", 1) if how.get("options") else 1
        is_each = len(own) == 2 and len(mixed) == 1 and {*by.labels} == {own[0], *mixed}
        sizes = dict(zip(stack.labels, stack.made.shape or (), strict=True))
        if not is_each or {*order} != {*sizes} or count != axes["O"][0][1] or old[rest[0]] != 1:
            return None
        experts, outs, ins = sizes[mixed[0]], sizes[own[1]], old[at] // count
        spatial = [c for c in SPATIAL if c in letters]
        kernel = self.transpose(name, stack.made, [[*stack.labels].index(c) for c in order])
        ends = [prod(n for _, n in axes[c]) for c in spatial]
        kernel = self.reshape(name, kernel, (experts * outs, ins, *ends))
        data = self._regrouped(name, signal, at, rest[0], count)
        wide = _with(shape, {at: experts * outs, rest[0]: count})
        plain = how | {"options": {}}
        value = self.convolution(name, data, kernel, "OI" + "".join(spatial), wide, **plain)
        for track in value.fresh if isinstance(value, Signal) else ():
            track.operation.batched.add((0, outs, experts))
        value = self.reshape(name, value, (*wide[:at], experts, outs, *wide[at + 1 :]))
        names: list[Hashable] = [*range(len(shape))]
        names[rest[0]], names[at : at + 1] = own[0], [mixed[0], at]
        out = [label for label in names if label != mixed[0]]
        router = self.reshape(name, mixture.router, by.made.shape)
        pair, labels = [value, router], [names, by.labels]
        value = self.product(name, pair, labels, out, _with(wide, {at: outs}))
        return self._ungrouped(name, value, at, rest[0], shape)

    def _regrouped(self, name: str, signal: Value, at: int, batch: int, count: int) -> Value:
        """Draw the groups of channels of one sample as samples."""
        old = signal.shape or ()
        value = self.reshape(name, signal, (*old[:at], count, old[at] // count, *old[at + 1 :]))
        order = [axis + (axis >= at) for axis in range(len(old))]
        order[batch], spare = at, order[batch]
        value = self.transpose(name, value, [*order, spare])
        return self.reshape(name, value, _with(old, {at: old[at] // count, batch: count}))

    def _ungrouped(self, name: str, value: Value, at: int, batch: int, shape: Shape) -> Value:
        """Draw samples as groups of channels of one sample."""
        value = self.reshape(name, value, (*(value.shape or ()), 1))
        order = [*range(len(shape))]
        order[batch] = len(shape)
        return self.reshape(
            name, self.transpose(name, value, [*order[:at], batch, *order[at:]]), shape
        )

    def multiply(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw an elementwise product; it may weigh the results of experts."""
        one, two = (self._experts(v) if isinstance(v, Signal) else v for v in (a, b))
        result = super().multiply(name, one, two, shape)
        for made, by in ((a, b), (b, a)):
            if not isinstance(made, Made) or not made.is_plain or made.shape != shape:
                continue
            if isinstance(by, Signal) and isinstance(result, Signal) and self._is_share(by):
                by = self.part(name, by, [(0, 1, 1)] * len(by.shape or ()))
                share = self.reshape(name, by, ())
                return result._replace(mixture=Blend(((share, made),), (result.node,)))
        return result

    def _is_share(self, by: Signal) -> bool:
        """Whether a signal is one number, of a router or of the inputs alone, as a time is."""
        is_given = self._after[by.node][0] < 0 and by.node not in self.learned.nodes
        return (by.is_number or by.shape == ()) and (is_given or self._routes(by))

    def add(self, name: str, a: Value, b: Value, shape: Shape | None) -> Value:
        """Draw a sum of two values, entry by entry; it may mix weights, one after the other."""
        result = super().add(name, a, b, shape)
        one, two = map(_blend_of, (a, b))
        if one is None or two is None or a.shape != b.shape:
            return result
        parts = [made.parts[0] for _, made in (*one.terms, *two.terms)]
        if not isinstance(result, Signal) or len({*parts}) < len(parts):
            return result
        nodes = (*one.nodes, *two.nodes, result.node)
        return result._replace(mixture=Blend((*one.terms, *two.terms), nodes))

    def _blended(
        self, name: str, blend: Blend, shape: Shape | None, apply: Callable[[Made], Value]
    ) -> Value | None:
        """Draw a product with a sum of weights: each is applied, and a router sums the results."""
        if len(blend.terms) < 2 or shape is None:
            return None
        size, every = len(blend.terms), range(len(shape))
        parts = self.stack(name, [apply(made) for _, made in blend.terms], 0, (size, *shape))
        router = self.stack(name, [by for by, _ in blend.terms], 0, (size,))
        self.fates.lazy.update(blend.nodes)
        found = self.product(name, [parts, router], [["", *every], [""]], every, shape)
        return found._replace(is_direct=True) if isinstance(found, Signal) else found

    def _contract(self, of: Einsum, signals: tuple[Signal, Signal]) -> Signal:
        """Draw a product of two signals; experts that it mixes are matrices of a stack."""
        gone = [{at for at, c in enumerate(own) if c not in of.out} for own in of.labels]
        routed = [self._routes(signal) for signal in signals[::-1]]
        one, two = map(self._experts, signals, gone, routed)
        return super()._contract(of, (one, two))

    def _experts(
        self, signal: Signal, summed: Set[int] = frozenset(), is_routed: bool = False
    ) -> Signal:
        """Return a signal without units along axes of experts; they are no outputs.

        Experts are stacked before the inputs of their matrices. If they are summed, each has a
        matrix of its own.
        """
        experts = set[int]()
        for track in signal.fresh:
            operation = track.operation
            for axis, atoms in enumerate(track.view.axes):
                digits = {(atom.axis, atom.step, atom.size) for atom in atoms if atom.radix > 1}
                is_whole = all(atom.axis >= 0 and atom.size == atom.radix for atom in atoms)
                is_known = digits <= operation.batched
                if not digits or not is_whole or (is_routed and axis not in summed):
                    continue
                if not is_known and not self._stacks(operation, digits, is_routed):
                    continue
                experts.add(axis)
                if axis in summed:
                    operation.batched |= digits
        units = [unit._replace(axes=unit.axes - experts) for unit in signal.units]
        return signal._replace(units=merged(units)) if experts else signal

    def _stacks(
        self, operation: Operation, digits: Set[tuple[int, int, int]], is_routed: bool
    ) -> bool:
        """Whether digits of an operation's outputs number the matrices of a stack.

        If a router weighs them, outputs may follow before the inputs.
        """
        kinds = operation.kinds or ()
        view = next((view for _, of, view in reversed(self.weights.each) if of is operation), None)
        if view is None or any(kinds[axis] != "O" for axis, *_ in digits):
            return False
        order: list[tuple[int, int, str]] = []  # of storage
        for axis, atoms in enumerate(view.axes):
            step = prod(atom.radix for atom in atoms)
            for atom in atoms:
                step //= atom.radix
                what = "E" if (axis, step, atom.size) in digits else kinds[axis]
                order += [(atom.axis, -abs(atom.step), what)] if atom.is_source else []
        found = "".join(what for *_, what in sorted(order))
        return re.fullmatch("E+[^E]*O[^E]*" if is_routed else "E+I[^E]*O[^E]*", found) is not None
