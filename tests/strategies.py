"""Hypothesis strategies for weights: shape, role and options, shrinking to a 1 x 1 matrix."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

TAPS = ["outward", "diagonal", "center", "channel_major", "spatial_major"]
GAINS = [1.0, -0.75, 2.5, 1 / 3, 1e-3]


def examples(count: int) -> int:
    """Return so many drawn examples for the normal run, and 16 times as many for the nightly one.

    For a test whose examples are long; its mark is `hypothesis`, if it is drawn by other means.
    """
    return count * settings.default.max_examples // settings.get_profile("normal").max_examples


@st.composite
def weights(
    draw: st.DrawFn, loosened: bool = True, longest: int = 8
) -> tuple[tuple[int, ...], Any, dict[str, Any]]:
    """Any weight of the specification: `(shape, role, options)` for `plan` and for `by_hand`.

    The role is a word, or a tuple of one for each block.
    """
    dims = draw(st.integers(0, 3))
    letters = "OI" + "DHW"[3 - dims :] + draw(st.sampled_from(["", "E", "EX"]))
    letters = "".join(draw(st.permutations(letters)))
    transposed = draw(st.booleans())
    groups = draw(st.integers(1, 3))
    size = {c: draw(st.integers(0 if c not in "OI" else 1, 4)) for c in letters}
    size["O"], size["I"] = draw(st.integers(0, longest)), draw(st.integers(0, longest))
    grouped = "I" if transposed else "O"
    size[grouped] = size[grouped] // groups * groups
    blocks = None
    if draw(st.booleans()):
        cuts = draw(st.lists(st.integers(0, size["O"]), max_size=3).map(sorted))
        ends = [0, *cuts, size["O"]]
        blocks = tuple(b - a for a, b in pairwise(ends))
    options: dict[str, Any] = {
        "layout": letters,
        "groups": groups,
        "transposed": transposed,
        "blocks": blocks,
        "taps": draw(st.sampled_from(TAPS)),
    }
    kernel = [size[c] for c in "DHW" if c in letters]
    if options["taps"] not in TAPS[-2:] and kernel and all(kernel) and draw(st.booleans()):
        options["tap"] = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    if kernel and draw(st.booleans()):
        options["stride"] = tuple(draw(st.sampled_from([1, 2, 3, -2, -3])) for _ in kernel)
    role: Any = draw(st.sampled_from(["transit", "zero"]))
    if blocks is not None and draw(st.booleans()):
        role = tuple(draw(st.sampled_from(["transit", "zero"])) for _ in blocks)
    roles = {role} if isinstance(role, str) else set(role)
    if "zero" in roles:
        options["eps"] = draw(st.sampled_from([1e-6, 0.5, -1e-3]))
        options["form"] = draw(st.sampled_from(["pair", "shifted"]))
    if "transit" in roles:
        options["gain"] = draw(st.sampled_from(GAINS))
        options["wide"] = draw(st.sampled_from(["truncate", "fold_rms", "fold_mean"]))
        if loosened and draw(st.booleans()):
            options |= {"loosen": 0.125, "seed": draw(st.integers(0, 2**63 - 1))}
            options["loosen_at"] = draw(st.sampled_from(["all", "entries"]))
    return tuple(size[c] for c in letters), role, options


@st.composite
def parts(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """An index of a weight of that shape: one slice of step 1 for each axis."""
    spans = []
    for size in shape:
        a, b = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        spans.append(slice(a, b))
    return tuple(spans)


def matrices(largest: int = 12) -> st.SearchStrategy[tuple[int, int]]:
    """Sizes (m, n) of a matrix."""
    side = st.integers(1, largest)
    return st.tuples(side, side)
