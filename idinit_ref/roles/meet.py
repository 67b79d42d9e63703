"""Internal: where the paths back from the two operands of an add meet (section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from .bounds import Bounds, Reads, free_of, orders
from .dominators import ROOT
from .flow import SPACE, Flow
from .graph import bare_shape, entries
from .ways import HERE, Frontier, Met, Way

__all__ = ["Meetings"]

_LONG = 8  # the nodes that a search passes before what is surely not ahead is found out


class Meetings:
    """The searches back from the operands of adds.

    Parameters
    ----------
    flow : Flow
        The flow of a graph.
    may_skip : function of two int
        Whether an operand, as a skip, may have a source before the other one, the branch.
    """

    def __init__(self, flow: Flow, may_skip: Callable[[int, int], bool]) -> None:
        self._flow, self._may = flow, may_skip
        self._bounds: list[Bounds] = []  # in several orders, once a search has been long

    @cached_property
    def _reads(self) -> Reads:
        """The paths back from all nodes."""
        return Reads(self._flow.inputs)

    @cached_property
    def _terms(self) -> Reads:
        """The paths back over no weights, to whole nodes."""
        return Reads([free_of(self._flow, number) for number in range(len(self._flow.nodes))])

    def of(self, add: int, sides: tuple[int, int]) -> Met:
        """Return the nearest nodes that one operand reaches freely, and the other over weights."""
        if usual := self._usual(add, sides):
            return usual
        may = [self._may(sides[side], sides[1 - side]) for side in (0, 1)]
        return self._searched(add, sides, may) if any(may) else ({}, {})

    def _usual(self, add: int, sides: tuple[int, int]) -> Met | None:
        """Return the source of the usual block: the branch is computed from the skip alone."""
        flow = self._flow
        for side, skip in enumerate(sides):
            branch, start = sides[1 - side], flow.start[skip]
            for source in (skip, start) if self._is_lone(add, skip, branch) else (skip,):
                is_above = flow.depth[source] < flow.depth[branch]
                if is_above and flow.before.is_above(source, branch):
                    return ({}, {source: HERE}) if side else ({source: HERE}, {})
        return None

    def _searched(self, add: int, sides: tuple[int, int], may: list[bool]) -> Met:
        """Search back from both operands, of which some may be skips."""
        flow = self._flow
        found: Met = ({}, {})

        def is_met(node: int, side: int, way: Way) -> bool:
            return may[side] and (way.spatial or self._is_alike(node, add, sides[side]))

        ahead = Frontier(flow.peak, is_met)
        for side in (0, 1):
            node, way = self._enter(sides[side])
            if way.free or may[1 - side]:
                ahead.push(node, side, way, True)
        stop, over = ROOT, [ROOT, ROOT]  # the latest node where ways ended, or passed over weights

        def is_fed(node: int, side: int, least: int) -> bool:
            use = flow.last_use(node, over[side])
            is_later = any(bounds.rank[use] > bounds.rank[over[side]] for bounds in self._bounds)
            return use > max(stop, least) and not is_later and flow.comes_from(over[side], use)

        while ahead.may_meet:
            for side in (0, 1):
                lone = ahead.lone(side) if stop == ROOT else None
                is_long = ahead.is_due and bool(self._bounds)
                if (
                    lone
                    and self._is_led(sides[1 - side], *lone, is_long)
                    and is_met(lone[0], side, lone[1])
                ):
                    return ({}, dict([lone])) if side else (dict([lone]), {})
            if ahead.is_due:
                if self._is_over(ahead, sides if stop == ROOT else (), may):
                    return found
                if sure := ahead.sure(is_fed):
                    return found[0] | sure[0], found[1] | sure[1]
            node, ways = ahead.pop()
            if all(way.over or way.free for way in ways):
                met = [
                    ways[side].free and ways[1 - side].over and is_met(node, side, ways[side])
                    for side in (0, 1)
                ]
                for side in (0, 1):
                    if met[side]:
                        found[side][node] = ways[side]
                if any(met) or (ways[0].free and ways[1].free):
                    stop = max(stop, node)
                    continue  # nodes further back are not nearer
            for side in (0, 1):
                is_alone = not ways[1 - side].is_open and flow.rejoined(node) is None
                over[side] = max(over[side], node) if ways[side].over else over[side]
                for to, way in self._back(node, ways[side]) if ways[side].is_open else ():
                    if way.free or may[1 - side]:  # else the other operand is no skip
                        ahead.push(to, side, way, is_alone)
        return found

    def _is_over(self, ahead: Frontier, sides: tuple[int, ...], may: list[bool]) -> bool:
        """Whether a long search surely finds nothing more; forget skips that have no source ahead.

        So it is if all ways of an operand lead to a node that is no source of it, and that the
        other one holds. The `sides` are the operands, if none of their ways has ended.
        """
        if ahead.popped < _LONG:
            return False
        if not self._bounds:
            ranks = range(len(self._flow.nodes)), *orders(self._flow)
            self._bounds = [Bounds(self._flow, rank) for rank in ranks]
        for side in (0, 1):
            may[side] = may[side] and not any(
                ahead.is_apart(side, bounds) for bounds in self._bounds
            )
        for side, other in enumerate(reversed(sides)):
            node, way = ahead.lone(side) or (ROOT, Way())
            is_whole = way.free and not way.over and len(self._flow.users[node]) > 1
            if is_whole and not may[side] and self._terms.has(other, node):
                return True
        return not any(may)

    def _is_led(self, side: int, node: int, way: Way, is_long: bool) -> bool:
        """Whether an operand surely reaches a node over weights that the other reaches freely.

        This needs no search if all ways of the other operand lead over that node, and none of its
        own ways has ended at a nearer one.
        """
        flow = self._flow
        lead = flow.lead[flow.hop[side]]
        if lead < 0 or way.over or not way.free:
            return False
        return any(
            flow.paths.is_above(node, to) or (is_long and self._reads.has(to, node))
            for to in flow.inputs[lead]
        )

    def _is_lone(self, add: int, skip: int, branch: int) -> bool:
        """Whether the start of a skip alone may be a source, as the branch is no skip."""
        nodes = self._flow.nodes
        is_sum = self._flow.start[skip] != skip and entries(nodes[skip]) == entries(nodes[add])
        return is_sum and not self._may(branch, skip)

    def _is_alike(self, node: int, add: int, side: int) -> bool:
        """Whether a node has the shape of an add or of its operand, or as many entries."""
        nodes = self._flow.nodes
        if 0 < entries(nodes[node]) == entries(nodes[add]):
            return True
        shape = bare_shape(nodes[node].shape)
        return shape in (bare_shape(nodes[at].shape) for at in (add, side))

    def _enter(self, side: int) -> tuple[int, Way]:
        """Return the node at which the ways back from an operand part, and the way to it."""
        flow, node, way = self._flow, self._flow.hop[side], HERE
        while flow.nodes[node].kind != "weight" and len(flow.users[node]) == 1:
            if len(flow.inputs[node]) != 1:
                break
            ((node, way),) = self._back(node, way)
        return node, way

    def _back(self, node: int, way: Way) -> Iterator[tuple[int, Way]]:
        """Yield the ways from a node back to all its inputs."""
        flow, this = self._flow, self._flow.nodes[node]
        whole = flow.rejoined(node) if way.free else None
        if whole is not None:
            yield flow.hop[whole], way._replace(over=False, cut=False)
        for to in flow.inputs[node]:
            if this.kind == "weight":
                yield to, Way(over=True)
                continue
            drops = way.free and flow.is_dropping(node, to)
            if way.over or way.cut or drops:
                yield to, Way(way.over, cut=way.cut or drops)
            if way.free and not drops and whole is None:
                by = flow.gates(node, to)
                gates = frozenset(by) | (way.gates or frozenset()) if by else way.gates
                is_moving = this.does in SPACE or flow.is_sorting(node, to)
                is_moving = is_moving or flow.is_widening(node)
                spatial = way.spatial and (this.kind == "add" or is_moving)
                yield flow.hop[to], Way(False, True, gates, spatial)
