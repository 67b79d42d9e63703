"""The specification by another route: entry by entry, in plain Python loops, without the core.

Nothing here imports idinit_ref, so that the tests cannot share a bug with it.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np


def idi_matrix(m, n, tau, wide="truncate"):
    """Section 1, row by row."""
    w = [[0.0] * n for _ in range(m)]
    for i in range(m):
        for j in range(n):
            if m >= n or wide == "truncate":
                if j == i % n:
                    w[i][j] = tau
            elif j % m == i:
                k = len([c for c in range(n) if c % m == i])
                w[i][j] = tau / math.sqrt(k) if wide == "fold_rms" else tau / k
    return w


def idiz_matrix(m, n, eps):
    """Section 2, row by row."""
    w = [[0.0] * n for _ in range(m)]
    for i in range(m):
        if n == 1:
            w[i][0] = eps if i % 2 == 0 else -eps
        elif n > m:
            w[i][i] = eps
            w[i][m + i % (n - m)] = -eps
        elif n >= 2:
            w[i][i % n] = eps
            w[i][(i + 1) % n] = -eps
    return w


def weight(
    shape,
    role="transit",
    *,
    gain=1.0,
    eps=1e-6,
    wide="truncate",
    layout=None,
    groups=1,
    transposed=False,
    blocks=None,
    taps="channel_major",
    tap=None,
    loosen=0.0,
    seed=0,
):
    """Sections 3 to 5 for one weight, as a float64 NumPy array."""
    layout = layout or {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)]
    size = dict(zip(layout, shape, strict=True))
    spatial = [c for c in "DHW" if c in layout]
    batch = [c for c in layout if c not in "OIDHW"]
    kernel = [size[c] for c in spatial]
    taps_total = math.prod(kernel)
    channels = size["I"] // groups if transposed else size["I"]
    outputs = size["O"] * groups if transposed else size["O"]
    centered = taps == "center" and spatial
    n = channels if centered else channels * taps_total
    if centered and tap is None:
        tap = [(k - 1) // 2 for k in kernel]

    # The matrix, and the row in it, of every place along the O axis.
    edges = {0, size["O"]}
    edges |= set(itertools.accumulate(blocks or ()))
    if not transposed:
        edges |= set(range(0, size["O"], max(size["O"] // groups, 1)))
    cuts = sorted(edges)
    segment = {}
    for low, high in itertools.pairwise(cuts):
        for o in range(low, high):
            segment[o] = (o - low, high - low)

    out = np.zeros(shape)
    made = {}
    for copy, where in enumerate(itertools.product(*(range(size[c]) for c in batch))):
        for o in range(size["O"]):
            i, m = segment[o]
            if m not in made:
                made[m] = (
                    idi_matrix(m, n, gain, wide) if role == "transit" else idiz_matrix(m, n, eps)
                )
            for g in range(groups if transposed else 1):
                row = list(made[m][i])
                if loosen:
                    r = copy * outputs + g * size["O"] + o
                    noise = np.random.Generator(np.random.Philox(key=[seed, r])).standard_normal(n)
                    row = [a + loosen * b for a, b in zip(row, noise, strict=True)]
                for c in range(channels):
                    for s, place in enumerate(itertools.product(*map(range, kernel))):
                        if centered:
                            if list(place) != list(tap):
                                continue
                            j = c
                        elif taps == "spatial_major":
                            j = s * channels + c
                        else:
                            j = c * taps_total + s
                        at = dict(zip(batch, where, strict=True)) | {"O": o, "I": g * channels + c}
                        at |= dict(zip(spatial, place, strict=True))
                        out[tuple(at[letter] for letter in layout)] = row[j]
    return out


def nearest(value, precision, emin):
    """The nearest number of a binary format, ties to even, in exact fractions."""
    if value == 0.0:
        return 0.0
    exact = Fraction(value)
    exponent = emin
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - precision + 1)
    return float(round(exact / unit) * unit)  # Python rounds halves to even
