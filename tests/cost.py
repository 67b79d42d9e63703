"""A cost that no busy machine changes."""

from __future__ import annotations

import sys


def calls(function):
    """How many Python-level calls a function makes."""
    made = 0

    def count(frame, event, argument):
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return made
