"""The picture of who imports whom, drawn from the list in docs/architecture.md."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath

PAGE = Path(__file__).parent / "architecture.md"
WIDTH, FLOOR, HIGH = 610.0, 62.0, 22.0  # of the picture, a floor and a box, in points
_LANE, _GAP = 8.0, 9.0  # what an arrow takes that passes a floor, and what is free between two


class Knot(NamedTuple):
    """A room on its floor, or where its arrow to another one passes a floor."""

    floor: int
    room: str
    to: str = ""


def listed() -> dict[str, set[str]]:
    """Return the rooms of the page's list, each with those that it imports."""
    text = PAGE.read_text().split("```text\n")[1].split("```")[0]
    lines = text.replace("\n ", " ").splitlines()  # one that begins with a space goes on
    return {room: set(rest) for room, *rest in map(str.split, lines)}


def ways(rooms: Mapping[str, set[str]]) -> list[list[Knot]]:
    """Return each arrow's way down, without those that others make up together.

    Each room is on the lowest floor above all that it imports.
    """

    def floor(room: str) -> int:
        return max((1 + floor(other) for other in rooms[room]), default=0)

    def reach(room: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in rooms[room]))

    found = []
    for room, direct in rooms.items():
        for other in sorted(direct - set().union(*map(reach, direct))):
            top, bottom = Knot(floor(room), room), Knot(floor(other), other)
            passed = [Knot(at, room, other) for at in range(top.floor - 1, bottom.floor, -1)]
            found.append([top, *passed, bottom])
    return found


def _order(links: Sequence[tuple[Knot, Knot]]) -> list[list[Knot]]:
    """Return the floors, each from left to right, so that few arrows cross: the best of many."""
    chance = random.Random(0)
    knots = sorted({knot for link in links for knot in link})
    floors = [[knot for knot in knots if knot.floor == at] for at in range(knots[-1].floor + 1)]
    best, fewest = floors, len(links) ** 2
    for _ in range(60):
        floors = [chance.sample(floor, len(floor)) for floor in floors]
        at = {knot: k / len(floor) for floor in floors for k, knot in enumerate(floor)}
        for sweep in range(12):  # each floor by the middles of what it meets below, then above
            for floor in floors[:: 1 - 2 * (sweep % 2)]:
                for knot in floor:
                    meets = [at[link[1 - sweep % 2]] for link in links if link[sweep % 2] == knot]
                    at[knot] = fmean(meets or [at[knot]])
                floor.sort(key=at.__getitem__)
                at |= {knot: k / len(floor) for k, knot in enumerate(floor)}
            crossed = sum(
                a.floor == c.floor and (at[a] - at[c]) * (at[b] - at[d]) < 0
                for k, (a, b) in enumerate(links)
                for c, d in links[:k]
            )
            if crossed < fewest:
                best, fewest = [floor.copy() for floor in floors], crossed
    return best


def _settle(wanted: Sequence[float], sizes: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Return the places next to the wanted ones where none meets its neighbour."""
    starts = [sum(sizes[:k]) + sizes[k] / 2 for k in range(len(sizes))]
    pools: list[tuple[float, int, int]] = []  # shift, weight, how many: isotonic regression
    for want, start, weight in zip(wanted, starts, weights, strict=True):
        pools.append((want - start, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, v, k), (b, w, n) = pools[-2:]
            pools[-2:] = [((a * v + b * w) / (v + w), v + w, k + n)]
    shifts = [min(max(a, 0), WIDTH - sum(sizes)) for a, _, count in pools for _ in range(count)]
    return [start + shift for start, shift in zip(starts, shifts, strict=True)]


def _places(links: Sequence[tuple[Knot, Knot]], sizes: Mapping[Knot, float]) -> dict[Knot, float]:
    """Return how far to the right each knot is: long arrows straight, the others short."""
    floors = _order(links)
    at = {knot: WIDTH * (k + 0.5) / len(floor) for floor in floors for k, knot in enumerate(floor)}
    beside: dict[Knot, list[Knot]] = {knot: [] for knot in at}
    for a, b in links:
        weight = 8 if a.to and b.to else 3 if a.to or b.to else 1
        beside[a] += [b] * weight
        beside[b] += [a] * weight
    for _ in range(100):
        for floor in floors:
            wanted = [fmean(at[other] for other in beside[knot]) for knot in floor]
            weights = [len(beside[knot]) for knot in floor]
            at |= zip(floor, _settle(wanted, [sizes[knot] for knot in floor], weights), strict=True)
    return at


def draw(figure: Figure) -> None:
    """Draw the rooms into an empty figure, which gets the size that they need.

    An arrow has the label "from to". It goes straight down where it passes a floor, so that it
    meets no room but its own two.
    """
    paths = ways(listed())
    links = [link for path in paths for link in pairwise(path)]
    wide = {knot: TextPath((0, 0), knot.room, size=10).get_extents().width + 12
            for link in links for knot in link if not knot.to}  # fmt: skip
    sizes = {knot: wide.get(knot, _LANE) + _GAP for link in links for knot in link}
    at = _places(links, sizes)
    height = FLOOR * max(knot.floor for knot in at) + 2 * HIGH
    figure.set_size_inches(WIDTH / 72, height / 72)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, height))  # in points
    axes.set_axis_off()
    for top, *passed, bottom in paths:
        line = [(top, -1), *((knot, end) for knot in passed for end in (1, -1)), (bottom, 1)]
        axes.plot(
            [at[knot] for knot, _ in line],
            [HIGH + FLOOR * knot.floor + end * HIGH / 2 for knot, end in line],
            color="#777777", linewidth=0.9, marker=7, markevery=[-1], zorder=1,
            label=f"{top.room} {bottom.room}",
        )  # fmt: skip
    for knot, long in wide.items():
        x, y = at[knot], HIGH + FLOOR * knot.floor
        style = {"boxstyle": "round,pad=0,rounding_size=4", "fc": "#eef3fa", "ec": "#2a5c99"}
        corner = x - long / 2, y - HIGH / 2
        axes.add_patch(FancyBboxPatch(corner, long, HIGH, label=knot.room, zorder=2, **style))
        axes.text(x, y, knot.room, ha="center", va="center_baseline", size=10, zorder=3)
