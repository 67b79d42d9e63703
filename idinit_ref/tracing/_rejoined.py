"""Internal: products with slices of one matrix, whose sum is a product with a concatenation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from ..roles.graph import Node
from ._axes import Atom, View
from ._records import Records
from ._summed import Readers, Weighed, after, readers_of, rejoined
from ._values import Operation, Signal

__all__ = ["rejoin"]


def rejoin(drawn: Records, outputs: Collection[str]) -> None:
    """Draw such sums in a finished drawing as such products."""
    weights, axes = drawn.weights, drawn.axes
    readers = readers_of(drawn.nodes, outputs)
    for uses, axis in _slices(weights.each, weights.data, drawn.shapes, readers):
        names = [operation.name for _, operation, _ in uses]
        signals = [weights.data[name] for name in names]
        (at,) = uses[0][1].reads
        shape = list(signals[0].shape or ())
        shape[at] = sum((signal.shape or ())[at] for signal in signals)
        inputs = tuple(signal.node for signal in signals)
        cat = Node(f"{names[0]}: cat", "other", inputs, tuple(shape), does="join")
        found = None if cat.name in drawn.place else _joined(drawn.nodes, names, cat)
        if found is None:
            continue
        nodes, last, gone = found
        drawn.keep(nodes)
        weights.data[last] = Signal(cat.name, cat.shape)
        axes.differences = {k: v for k, v in axes.differences.items() if k not in gone}
        drawn.used.each = [
            (name, use, last if to in gone else to, by) for name, use, to, by in drawn.used.each
        ]
        rest = [use for use in weights.each if use[1].name not in {*names} - {last}]
        weights.each = [
            _whole(use, axis, shape[at]) if use[1].name == last else use for use in rest
        ]
        rejoined(signals)


def _whole(use: Weighed, axis: int, size: int) -> Weighed:
    """Return the use of a slice as one of the whole matrix."""
    name, operation, view = use
    assert view is not None
    whole = (Atom.of(view.axes[axis][0].axis, size),)
    return name, operation, replace(view, axes=(*view.axes[:axis], whole, *view.axes[axis + 1 :]))


def _slices(
    uses: Sequence[Weighed],
    data: Mapping[str, Signal],
    shapes: Mapping[str, Sequence[int]],
    readers: Readers,
) -> list[tuple[list[Weighed], int]]:
    """Return the uses of the slices of each matrix, in its order, if their results are summed.

    Together, the slices are the inputs of that matrix, along an axis of its operations' weights.
    """
    own: dict[tuple[str, str], list[Weighed]] = {}
    for use in uses:
        own.setdefault((use[0], after(use[1].name, readers)[-1]), []).append(use)
    found = []
    for (name, _), each in own.items():
        axis = _cut_axis(each, shapes[name]) if len(each) > 1 else None
        signals = [data[operation.name] for _, operation, _ in each]
        if axis is not None and _alike([operation for _, operation, _ in each], signals):
            found.append((sorted(each, key=_start_along(axis)), axis))
    return found


def _start_along(axis: int) -> Callable[[Weighed], int]:
    """Return a function that says where the slice of a use starts, along an axis."""

    def start(use: Weighed) -> int:
        return 0 if use[2] is None else use[2].axes[axis][0].start

    return start


def _cut_axis(uses: Sequence[Weighed], shape: Sequence[int]) -> int | None:
    """Return the summed axis of an operation's weight along which some uses are all slices."""
    views = [view for *_, view in uses if view is not None]
    kinds = uses[0][1].kinds or ()
    if len(views) < len(uses):
        return None
    for axis, kind in enumerate(kinds):
        atoms = [view.axes[axis] for view in views]
        if kind != "I" or any(len(each) != 1 or each[0].axis < 0 for each in atoms):
            continue
        cuts = sorted((each[0] for each in atoms), key=lambda atom: atom.start)
        ends = [0, *(atom.start + atom.size for atom in cuts)]
        is_whole = all(
            atom.start == end and (atom.step, atom.low, atom.radix) == (1, 0, atom.size)
            for atom, end in zip(cuts, ends, strict=False)
        )
        if is_whole and ends[-1] == shape[cuts[0].axis] and _others_agree(views, axis):
            return axis
    return None


def _others_agree(views: Sequence[View], axis: int) -> bool:
    """Whether views differ along one axis alone."""
    rests = {replace(v, axes=(*v.axes[:axis], *v.axes[axis + 1 :])) for v in views}
    return len(rests) == 1


def _alike(operations: Sequence[Operation], signals: Sequence[Signal]) -> bool:
    """Whether operations read different signals, which differ in size along the axis they sum."""
    first, shapes = operations[0], [signal.shape for signal in signals]
    facts = {
        (repr(of.kinds), of.left, of.dilation, of.spread, of.kernel, of.reads, repr(of.options))
        for of in operations
    }
    if len(facts) > 1 or len(first.reads) != 1 or first.batched or None in shapes:
        return False
    (axis,) = first.reads
    rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes if shape is not None}
    return len(rests) == 1 and len({signal.node for signal in signals}) == len(signals)


def _joined(
    nodes: Sequence[Node], operations: Sequence[str], join: Node
) -> tuple[list[Node], str, set[str]] | None:
    """Return nodes in which the last of some operations reads a concatenation for all of them.

    Return also that operation and the nodes that are gone. None if more than sums reads these.
    """
    *_, last = (node.name for node in nodes if node.name in operations)
    gone, found = {*operations} - {last}, list[Node]()
    for node in nodes:
        left = tuple(name for name in node.inputs if name not in gone)
        if node.name in gone:
            continue
        if len(left) < len(node.inputs):
            if node.kind != "add" and node.does != "move":
                return None
            if not left:
                gone.add(node.name)
                continue
            node = replace(node, kind="other", inputs=left, does="move")
        if node.name == last:
            found.append(join)
            node = replace(node, inputs=(join.name,))
        found.append(node)
    return found, last, gone
