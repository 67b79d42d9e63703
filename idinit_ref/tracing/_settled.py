"""Internal: the graph of a finished drawing, from its records."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from ..roles.graph import Graph, Node
from ._added import pieces_in, shifted_alone
from ._makers import makers
from ._parameter import Seen, node_of, with_rows
from ._records import Records
from ._rejoined import rejoin
from ._struck import distances, frozen, live, returned, struck
from ._summed import Weighed, gather, loops_of, members_in, readers_of, whole
from ._units import Places

__all__ = ["settled"]

_ALIKE = {"map", "scale", "shift", "product", "norm", "softmax", "pool", "pad", "resize"}
_ALIKE |= {"crop", "select"}  # keep the order of axes
_UNREAD = {"move", "select", "crop", "pad", "join", "resize"}  # are dropped if nothing reads them


def settled(drawn: Records, ends: Sequence[str], others: Collection[str]) -> Graph:
    """Return the graph of a drawing, parameters first; the drawing itself is settled, too.

    `ends` are the outputs, and `others` further results.
    """
    outputs = {*ends, *others}
    _settle_copies(drawn, outputs)
    rejoin(drawn, outputs)
    _find_crops(drawn)
    before = {node.name: node.inputs for node in drawn.nodes}
    added = pieces_in(drawn.used.addends, drawn.so_far)
    _drop_unread(drawn, {*outputs, *drawn.fates.exits})
    _part_distances(drawn, outputs)
    seen = {name: Seen(added=added.get(name, [])) for name in drawn.parameters}
    _see_uses(drawn, seen)
    _see_weights(drawn, seen, outputs)
    _see_changes(drawn, seen)
    _see_frozen(drawn, seen, outputs)
    parameters = [node_of(given, seen[name]) for name, given in drawn.parameters.items()]
    nodes = struck(drawn.nodes, drawn.axes.factors, drawn.axes.ways, outputs)
    wholes = {new for add, new in drawn.fates.rewritten.items() if add in drawn.place}
    read = {*others, *drawn.fates.exits, *drawn.fates.hidden, *wholes}
    nodes = returned(with_rows(nodes, seen), read, before, ends)
    return Graph([*parameters, *nodes], tuple(dict.fromkeys(ends)))


# Nodes ------------------------------------------------------------------------------------------


def _settle_copies(drawn: Records, outputs: Collection[str]) -> None:
    """Keep the copies of a signal in a sum if another operation also reads them.

    The streams of hyper-connections start as such copies, and each is a skip.
    """
    used = {*outputs, *(name for node in drawn.nodes for name in node.inputs)}
    for name, wide in drawn.fates.wide.items():
        pairs = zip(drawn.node(name).inputs, wide, strict=True)
        inputs = tuple(copies if copies in used else own for own, copies in pairs)
        drawn.change(name, inputs=inputs)


def _find_crops(drawn: Records) -> None:
    """Make slices in space of a signal without units crops: later weights read its channels."""
    read: dict[str, set[int]] = {name: set() for name in drawn.place}  # axes that weights sum
    for node in reversed(drawn.nodes):
        for to, places in _axes_before(drawn, node):
            read[to].update(a for a, at in places.items() if read[node.name].intersection(at))
        if node.kind == "weight":
            read[node.inputs[0]].update(drawn.weights.reads[node.name])
    for node in drawn.nodes:
        for to, places in _axes_before(drawn, node):
            read[node.name].update(at for a in read[to] for at in places.get(a, ()))
    for name, cut in drawn.axes.slices.items():
        channels = read[drawn.node(name).inputs[0]]
        if channels and channels.isdisjoint(cut):
            drawn.change(name, does="crop")


def _axes_before(drawn: Records, node: Node) -> Iterator[tuple[str, Places]]:
    """Yield the inputs of a node that keeps axes apart, and where their axes go."""
    if node.name in drawn.axes.turns:
        yield node.inputs[0], drawn.axes.turns[node.name]
    elif node.kind == "add" or node.does in _ALIKE:
        for to in node.inputs:
            rank = len(drawn.node(to).shape or ())
            if rank == len(node.shape or ()):
                yield to, {axis: (axis,) for axis in range(rank)}


def _drop_unread(drawn: Records, outputs: Collection[str]) -> None:
    """Remove moves, slices, joins, rewritten sums and functions that nothing reads."""
    read, kept, fates = {*outputs}, [], drawn.fates
    for node in reversed(drawn.nodes):
        is_dropped = node.does in _UNREAD or node.name in fates.rewritten
        is_dropped |= node.name in fates.passed or node.name in fates.lazy
        if not is_dropped or node.name in read:
            read.update(node.inputs)
            kept.append(node)
    drawn.keep(kept[::-1])
    uses = [(name, use, _kept(drawn, at), stopped) for name, use, at, stopped in drawn.used.each]
    drawn.used.each = [use for use in uses if use[2] is None or use[2] in drawn.place]
    factors = drawn.axes.factors.items()
    drawn.axes.factors = {at: own for at, own in factors if at[0] in drawn.place}
    drawn.weights.each = [use for use in drawn.weights.each if use[1].name in drawn.place]
    for _, operation, _ in drawn.weights.each:
        operation.keep(read)


def _kept(drawn: Records, node: str | None) -> str | None:
    """Return a node, or the function in which it was dropped."""
    while node in drawn.fates.passed and node not in drawn.place:
        node = drawn.fates.passed[node]
    return node


def _part_distances(drawn: Records, outputs: Collection[str]) -> None:
    """Make differences that are losses or distances no adds: they have no skip."""
    axes = drawn.axes
    own = {name: units for name, units in axes.differences.items() if name in drawn.place}
    for name in distances(drawn.nodes, own, axes.ways, outputs):
        inputs = tuple(dict.fromkeys(drawn.node(name).inputs))
        drawn.change(name, kind="other", inputs=inputs)


# Parameters -------------------------------------------------------------------------------------


def _see_uses(drawn: Records, seen: dict[str, Seen]) -> None:
    """Note the uses of all parameters, one by one."""
    used = drawn.used
    shifts = {node.name for node in drawn.nodes if node.does == "shift"}
    norms = {node.name for node in drawn.nodes if node.does == "norm"}
    scales = norms | {node.name for node in drawn.nodes if node.does == "scale"}
    weights = {name for name, *_ in drawn.weights.each}
    shifted = shifted_alone(used.each, shifts)
    for name, use, node, stopped in used.each:
        if use == "rows" and name in shifted:
            continue
        about = seen[name]
        about.stopped.add(stopped)
        chosen = "embedding" if use == "rows" else use
        if node in used.members or (use == "rows" and name in weights):
            chosen = "weight"
        about.uses.add("bias" if node in used.biases else chosen)
        about.sums.append(node if use == "bias" or node in shifts else None)
        if drawn.parameters[name].note or node in shifts:  # not a scale
            continue
        is_scale = use == "other" and node in scales and (name, node) not in used.changed
        about.scaled.append(node if is_scale else None)
        about.offsets.add(used.offsets.get((name, node or ""), 0.0))
        scales -= {node} if node in norms else set()  # a norm's first factor alone is its scale


def _see_weights(drawn: Records, seen: dict[str, Seen], outputs: Collection[str]) -> None:
    """Note in which ways parameters are weights."""
    joint = _joint(drawn, outputs)
    steps = loops_of(joint, drawn.shapes)
    for name, operation, view in joint:
        about, shape = seen[name], drawn.parameters[name].shape
        way = operation.stored(view, shape, drawn.batch_letters, steps[name])
        about.ways.append((operation, way))
        made = about.makes if len(about.ways) > 1 else operation.makes
        about.makes = made and operation.makes
    magnitudes = drawn.used.magnitudes
    for name in {name for name, _ in magnitudes}:
        seen[name].magnitude = all((name, of) in magnitudes for of, _ in seen[name].ways)


def _joint(drawn: Records, outputs: Collection[str]) -> list[Weighed]:
    """Return the uses of weights; products with parts of one, and their sum, are one use.

    A use that no output reads counts only if there is no other.
    """
    weights, read = drawn.weights, live(drawn.nodes, outputs)
    needed = {name for name, of, _ in weights.each if of.name in read}
    uses = [use for use in weights.each if use[1].name in read or use[0] not in needed]
    readers = readers_of(drawn.nodes, outputs)
    members = members_in(uses, weights.data, drawn.shapes)
    gather(weights.gathered, members, weights.shrunk, readers)
    roots = {name: drawn.root.get(one.node, one.node) for name, one in weights.data.items()}
    does = {node.name: node.does for node in drawn.nodes}
    heads = {name for name, to in roots.items() if does.get(to) in ("contract", "attention")}
    return whole(uses, weights.data, members, heads, weights.shrunk, readers)


def _see_changes(drawn: Records, seen: dict[str, Seen]) -> None:
    """Note what is done to parameters before their uses, and the kernels that they make."""
    used = drawn.used
    matrices = {name for name, given in drawn.parameters.items() if not given.is_vector}
    makes = makers(drawn.nodes, drawn.weights.kernels, used.each, used.narrow, matrices)
    for name, about in seen.items():
        about.done, about.met = used.done.get(name, ""), used.met.get(name, "")
        about.steps, about.scales = used.steps.get(name, set()), used.scales.get(name, "")
        if about.uses <= {"other", "sum"}:
            about.makes = about.makes or makes.get(name, "")


def _see_frozen(drawn: Records, seen: dict[str, Seen], outputs: Collection[str]) -> None:
    """Note the parameters that no gradient reaches."""
    exits = drawn.fates.exits
    by = [drawn.stop_name] * bool(drawn.stops) + list(exits.values())
    reason = " or ".join(dict.fromkeys(by or [drawn.stop_name]))
    for name in frozen(drawn.nodes, drawn.used.each, drawn.stops, exits, outputs):
        seen[name].frozen = f"frozen: every use of it is behind {reason}"
