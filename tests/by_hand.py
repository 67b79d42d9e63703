"""The specification by another route: entry by entry, in plain Python loops, without the core.

Nothing here imports idinit_ref, so that the tests cannot share a bug with it.
"""

from __future__ import annotations

import functools
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


def shifted_matrix(m, n, eps):
    """Section 2, form="shifted": the entries of a row one after the other, then their sizes."""
    if not n >= 2 * m >= 2:
        return idiz_matrix(m, n, eps)
    w = [[0.0] * n for _ in range(m)]
    for i in range(m):
        where = [(q, q * m + (i + q) % m) for q in range(-(-n // m)) if q * m + (i + q) % m < n]
        k, p = len(where), math.ceil(len(where) / 2)
        for q, j in where:
            if q % 2 == 0:
                w[i][j] = eps * math.sqrt(2 * (k - p) / (p * k))
            else:
                w[i][j] = -eps * math.sqrt(2 * p / ((k - p) * k))
    return w


def phase_taps(kernel, tap, stride):
    """Section 3: the taps of every phase, in rank order: nearest to its identity tap first."""
    tap = [(k - 1) // 2 for k in kernel] if tap is None else tap
    stride = [1] * len(kernel) if stride is None else stride
    phases = {}
    for place in itertools.product(*map(range, kernel)):
        residues = tuple(t % abs(s) for t, s in zip(place, stride, strict=True))
        phases.setdefault(residues, []).append(place)
    for residues, places in phases.items():
        identity = []
        for axis, (p, s) in enumerate(zip(tap, stride, strict=True)):
            wanted = [p + r if s > 0 else p - r for r in range(abs(s))]
            (wanted,) = [t for t in wanted if t % abs(s) == residues[axis]]
            mine = {place[axis] for place in places}
            identity.append(min(mine, key=lambda t, wanted=wanted: abs(t - wanted)))

        def distance(place, identity=identity):
            three = zip(place, identity, stride, strict=True)
            return sum(((t - t0) // abs(s)) ** 2 for t, t0, s in three)

        phases[residues] = sorted(places, key=lambda place: (distance(place), place))
    return list(phases.values())


def columns_of(kernel, channels, taps, tap, stride):
    """Section 3: (matrix, its columns, column) for every place and channel that holds one."""
    corner = taps in ("channel_major", "spatial_major")
    every = list(itertools.product(*map(range, kernel)))
    orders = [every] if corner else phase_taps(kernel, tap, stride)
    held = {}
    for which, places in enumerate(orders):
        if taps == "center":
            places = places[:1]
        n, k = channels * len(places), len(places)
        for column in range(n):
            if taps == "channel_major":
                c, place = column // k, places[column % k]
            elif taps == "diagonal":
                c = column % channels
                place = places[(column + column // math.lcm(channels, k)) % k]
            else:
                c, place = column % channels, places[column // channels]
            held[place, c] = (which, n, column)
    return held


def remembered(make):
    """Make each weight once: tests ask for the same one in every dtype and framework."""
    kept = functools.lru_cache(maxsize=256)(make)

    @functools.wraps(make)
    def again(shape, role="transit", **options):
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return kept(tuple(shape), role, **options).copy()

    return again


@remembered
def weight(
    shape,
    role="transit",
    *,
    gain=1.0,
    eps=1e-6,
    wide="truncate",
    form="pair",
    layout=None,
    groups=1,
    transposed=False,
    stride=None,
    blocks=None,
    taps="outward",
    tap=None,
    loosen=0.0,
    loosen_at="all",
    seed=0,
):
    """Sections 3 to 5 for one weight, as a float64 NumPy array; `role` may be one of each block."""
    layout = layout or {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)]
    size = dict(zip(layout, shape, strict=True))
    spatial = [c for c in "DHW" if c in layout]
    batch = [c for c in layout if c not in "OIDHW"]
    kernel = [size[c] for c in spatial]
    channels = size["I"] // groups if transposed else size["I"]
    outputs = size["O"] * groups if transposed else size["O"]
    held = columns_of(kernel, channels, taps, tap, stride)
    # Noise is drawn as if there were no phases.
    phased = stride is not None and any(abs(s) > 1 for s in stride)
    plain = columns_of(
        kernel, channels, "outward" if phased and taps == "center" else taps, tap, None
    )
    draws = len(plain)

    if not isinstance(role, str):  # a role for each block: the rows of two weights of one role each
        pick = [each for each, count in zip(role, blocks, strict=True) for _ in range(count)]
        stored = {
            "layout": layout, "groups": groups, "transposed": transposed, "stride": stride,
            "blocks": blocks, "taps": taps, "tap": tap,
        }  # fmt: skip
        noise = {"loosen": loosen, "loosen_at": loosen_at, "seed": seed}
        rows = [-1 if letter == "O" else 1 for letter in layout]
        return np.where(
            np.reshape([each == "zero" for each in pick], rows),
            weight(shape, "zero", eps=eps, form=form, **stored),
            weight(shape, "transit", gain=gain, wide=wide, **noise, **stored),
        )

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
            for g in range(groups if transposed else 1):
                noise = np.zeros(draws)
                if loosen:
                    r = copy * outputs + g * size["O"] + o
                    philox = np.random.Philox(key=[seed, r])
                    noise = loosen * np.random.Generator(philox).standard_normal(draws)
                for (place, c), (_, n, j) in held.items():
                    if (m, n) not in made:
                        if role == "transit":
                            made[m, n] = idi_matrix(m, n, gain, wide)
                        else:
                            make = shifted_matrix if form == "shifted" else idiz_matrix
                            made[m, n] = make(m, n, eps)
                    value = made[m, n][i][j]
                    if loosen_at == "all" or value:
                        value += noise[plain[place, c][2]]
                    at = dict(zip(batch, where, strict=True)) | {"O": o, "I": g * channels + c}
                    at |= dict(zip(spatial, place, strict=True))
                    out[tuple(at[letter] for letter in layout)] = value
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
