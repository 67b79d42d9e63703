"""The picture of the rooms: every import is in it, and no arrow seems to lead elsewhere."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from docs._rooms import draw, listed


@pytest.fixture(scope="module")
def drawn():
    """The boxes by room, and the points of each arrow by (from, to), in pixels."""
    figure = Figure()
    draw(figure)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    patches = [each for each in axes.patches if isinstance(each, FancyBboxPatch)]
    boxes = {each.get_label(): each.get_window_extent() for each in patches}
    lines = {
        tuple(line.get_label().split()): axes.transData.transform(line.get_xydata())
        for line in axes.lines
    }
    return figure, boxes, lines


def reach(arrows, room):
    return set().union(*({b} | reach(arrows, b) for a, b in arrows if a == room))


def test_every_room_is_drawn_and_reaches_what_it_imports(drawn):
    _, boxes, lines = drawn
    rooms = listed()
    assert set(boxes) == set(rooms)
    every = [(room, other) for room, others in rooms.items() for other in others]
    assert set(lines) <= set(every)
    for room in rooms:
        assert reach(lines, room) == reach(every, room)


def test_an_arrow_meets_no_room_but_its_own_two_and_those_at_their_edges(drawn):
    _, boxes, lines = drawn
    for (room, other), points in lines.items():
        for a, b in pairwise(points):
            x, y = np.linspace(a, b, 500).T
            for name, box in boxes.items():
                near = 0 if name in (room, other) else 2
                across = (box.x0 - near < x) & (x < box.x1 + near)
                down = (box.y0 + 1e-6 - near < y) & (y < box.y1 - 1e-6 + near)
                assert not (across & down).any(), (room, other, name)
        assert points[0, 1] == pytest.approx(boxes[room].y0)
        assert points[-1, 1] == pytest.approx(boxes[other].y1)
        assert (np.diff(points[:, 1]) < 0).all()


def test_rooms_do_not_meet_and_hold_their_names(drawn):
    figure, boxes, _ = drawn
    for a, b in combinations(boxes.values(), 2):
        assert not a.padded(2).overlaps(b)
    (axes,) = figure.axes
    for text in axes.texts:
        box, name = boxes[text.get_text()], text.get_window_extent()
        assert box.x0 + 2 < name.x0 < name.x1 < box.x1 - 2
        assert figure.bbox.x0 < box.x0 < box.x1 < figure.bbox.x1
        assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
    below = min(text.zorder for text in axes.texts), min(patch.zorder for patch in axes.patches)
    assert max(line.zorder for line in axes.lines) < min(below)
