"""Products with a weight: dense layers, convolutions, and lookups in a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jax.extend.core import JaxprEqn, Literal

from idinit_ref.layout import SPATIAL

from ._axes import Atom, Stored, View
from ._notes import Made, Notes, Operation, Signal, Track, Value, is_constant, is_floating
from ._rules import cut, done_by, dtype_of, other, result, shape_of

__all__ = ["convolution", "dot", "lookup"]


def lookup(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a gather or dynamic slice: of a table, it looks up rows; of a stack, a matrix."""
    table, (var,) = given[0], eqn.outvars
    fixed = [v.val for v in eqn.invars[1:] if isinstance(v, Literal)]
    if eqn.primitive.name == "dynamic_slice" and len(fixed) == len(eqn.invars) - 1:
        old, new = shape_of(eqn.invars[0]), shape_of(var)
        first = [min(max(int(at), 0), a - b) for at, a, b in zip(fixed, old, new, strict=True)]
        spans = [(at, at + size, 1) for at, size in zip(first, new, strict=True)]
        return [cut(notes, table, spans, old, eqn, var)]
    if not isinstance(table, Made):
        return other(notes, eqn, given)
    chosen = table.moved(lambda view: _chosen(eqn, view))
    is_matrix = all(p.view is not None and p.view.rank > 1 for p in chosen.parts.values())
    if all(isinstance(v, Made) or is_constant(v) for v in given):
        if is_matrix:
            return [chosen]
        notes.use(table, "embedding" if is_floating(dtype_of(var)) else "other")
        return [result(notes, eqn.primitive.name, given, var)]
    if not is_floating(dtype_of(var)):
        return other(notes, eqn, given)
    picked = _picked(notes, table, var)
    return [replace(picked, member=chosen if is_matrix else None, chosen=picked.node)]


def _chosen(eqn: JaxprEqn, view: View) -> View | None:
    """Return the view of what a gather takes, or None where it takes more than one place."""
    old, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    if any(size not in (1, full) for size, full in zip(sizes, old, strict=True)):
        return None
    for axis, (size, full) in enumerate(zip(sizes, old, strict=True)):
        if size != full:
            part = view.slice(axis, 0, 1)  # some place: it is not known which
            if part is None:
                return None
            view = part
    if eqn.primitive.name == "dynamic_slice":
        return view
    numbers, new = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0])
    if getattr(numbers, "operand_batching_dims", ()):
        return None
    for axis in sorted(numbers.collapsed_slice_dims, reverse=True):
        view = view.take(axis)
    axes: list[tuple[Atom, ...]] = [(Atom(-1, 1, size),) for size in new]
    for place, atoms in zip(numbers.offset_dims, view.axes, strict=True):
        axes[place] = atoms
    return View(tuple(axes), view.fixed)


def _picked(notes: Notes, table: Made, var: Any) -> Signal:
    signal = notes.start(f"{next(iter(table.parts))}: lookup", shape_of(var))
    notes.use(table, "embedding", signal.node)
    return signal


def dot(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a product of matrices, stacked or not."""
    numbers, grouped = eqn.params.get("dimension_numbers"), ()
    if numbers is None:
        ragged = eqn.params["ragged_dot_dimension_numbers"]
        numbers, grouped = ragged.dot_dimension_numbers, ragged.rhs_group_dimensions
    contract, batch = numbers
    shapes = [shape_of(var) for var in eqn.invars[:2]]
    kinds = [["O"] * len(shape) for shape in shapes]
    for side in (0, 1):
        for axis in contract[side]:
            kinds[side][axis] = "I"
        for axis in (*batch[side], *(grouped if side else ())):
            kinds[side][axis] = "B"
    free = [[at for at, kind in enumerate(side) if kind == "O"] for side in kinds]
    (var,) = eqn.outvars
    ways: list[Value] = []
    for side in (0, 1):
        value, signal = given[side], given[1 - side]
        if isinstance(value, Signal) and value.member and isinstance(signal, Signal):
            how = [(name, part.view) for name, part in value.member.parts.items()]
            operation = Operation(shapes[side], kinds[side])
            shape = {name: notes.parameters[name].shape for name, _ in how}
            if all(isinstance(operation.stored(view, shape[name]), Stored) for name, view in how):
                notes.choose(value)
                value = value.member
        if not isinstance(value, Made):
            continue
        size, rest = shapes[side], free[1 - side]
        mine = [(Atom(axis, 1, size[axis]),) for axis in free[side]]
        theirs = [(Atom(-1, 1, shapes[1 - side][axis]),) for axis in rest]
        head = [(Atom(axis, 1, size[axis]),) for axis in batch[side]]
        view = View((*head, *mine, *theirs) if side == 0 else (*head, *theirs, *mine))
        if isinstance(signal, Signal):
            if signal.picks and "I" in kinds[side]:
                return [_picked(notes, value, var)]
            if len(view.axes) == len(shape_of(var)):
                for axis in batch[1 - side]:
                    _batch(signal, axis)
                operation = Operation(size, kinds[side])
                return [_weight(notes, "product", value, signal, view, operation, var)]
        done = done_by(eqn, [signal])
        ways.append(value.noted(done).moved(lambda old, new=view: _through(old, new)))  # type: ignore[misc]  # mypy sees no type in a default
    if ways and len(ways) + sum(map(is_constant, given[:2])) == 2:
        made = Made({})
        for way in ways:
            made = made.join(way) if isinstance(way, Made) else made
        return [made]
    return other(notes, eqn, given)


def convolution(notes: Notes, eqn: JaxprEqn, given: list[Value]) -> list[Value]:
    """Walk a convolution."""
    signal, kernel = given
    if isinstance(kernel, Signal) and kernel.member and not kernel.chosen:
        kernel = kernel.member  # scaled by an input
    if not isinstance(signal, Signal) or not isinstance(kernel, Made):
        return other(notes, eqn, given)
    params, size, (var,) = eqn.params, shape_of(eqn.invars[1]), eqn.outvars
    numbers = params["dimension_numbers"]
    out, into, *space = numbers.rhs_spec
    kinds = ["?"] * len(size)
    kinds[out], kinds[into] = "O", "I"
    is_known = len(space) <= len(SPATIAL) and params["batch_group_count"] == 1
    for axis, letter in zip(space, SPATIAL[len(SPATIAL) - len(space) :], strict=False):
        kinds[axis] = letter
    axes: list[tuple[Atom, ...]] = [(Atom(-1, 1, n),) for n in shape_of(var)]
    axes[numbers.out_spec[1]] = (Atom(out, 1, size[out]),)
    groups = params["feature_group_count"]
    moved = [signal.shift[axis] if signal.shift else 0 for axis in numbers.lhs_spec[2:]]
    left = zip(params["padding"], moved, params["lhs_dilation"], strict=True)
    operation = Operation(
        size,
        kinds if is_known else None,
        "",
        {"groups": groups} if groups > 1 else {},
        tuple(low + by * step for (low, _), by, step in left),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        tuple(size[axis] for axis in space),
        tuple(numbers.out_spec[2:]),
    )
    view = View(tuple(axes))
    return [_weight(notes, "convolution", kernel, signal, view, operation, var)]


def _weight(
    notes: Notes, base: str, made: Made, signal: Signal, view: View, operation: Operation, var: Any
) -> Signal:
    signal.spend()
    node = notes.weight(base, made, signal, shape_of(var), operation)
    return Signal(node, (Track(operation, view),))


def _batch(signal: Signal, axis: int) -> None:
    """Note that a weight has a batch axis where the result of an earlier one has an axis."""
    for operation, view, *_ in signal.tracks:
        for atom in view.axes[axis]:
            if atom.axis >= 0 and (atom.step, atom.size) == (1, operation.sizes[atom.axis]):
                operation.batched.add(atom.axis)


def _through(view: View, result: View) -> View:
    """Return the view of a product's result, given that of its operand."""
    axes = [
        view.axes[axis[0].axis] if axis[0].axis >= 0 else (Atom(-1, 1, axis[0].size),)
        for axis in result.axes
    ]
    return View(tuple(axes), view.fixed)
