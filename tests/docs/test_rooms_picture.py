"""The picture of the rooms: every import is in it, or follows from others that are."""

from __future__ import annotations

import re
import shutil

import pytest

from docs import _rooms


def reach(arrows, room):
    return set().union(*({b} | reach(arrows, b) for a, b in arrows if a == room))


def test_the_arrows_reach_what_is_imported_and_none_is_needless():
    rooms, arrows = _rooms.listed(), _rooms.arrows(_rooms.listed())
    every = [(room, other) for room, others in rooms.items() for other in others]
    assert set(arrows) <= set(every)
    for arrow in arrows:
        assert arrow[1] not in reach([other for other in arrows if other != arrow], arrow[0])
    for room in rooms:
        assert reach(arrows, room) == reach(every, room)


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt-get install graphviz")
def test_every_room_and_every_arrow_is_drawn():
    svg = _rooms.picture().decode()
    assert set(re.findall(r"<text [^>]*>([^<]*)</text>", svg)) == set(_rooms.listed())
    drawn = re.findall(r"<title>([^<]*)&#45;&gt;([^<]*)</title>", svg)
    assert sorted(drawn) == sorted(_rooms.arrows(_rooms.listed()))


def test_where_there_is_no_graphviz_there_is_no_picture(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert _rooms.picture() is None
