"""One network, whose every operation can be written in several ways.

A table has, for each kind of operation, the plain spelling first and then others by name. All are
one function, so a network that is written with any of them has to start with the same weights.
"""

from __future__ import annotations

import itertools

import numpy as np

WIDTH, HIDDEN, HEADS, LENGTH = 8, 12, 2, 5
MAPS = ("relu", "silu", "gelu", "tanh")
SIZES = {
    "one": {"d": (WIDTH, WIDTH)},
    "glu": {"g": (WIDTH, HIDDEN), "u": (WIDTH, HIDDEN), "d": (HIDDEN, WIDTH)},
    "attention": dict.fromkeys("qkvo", (WIDTH, WIDTH)),
}
SIZES |= {kind: {"u": (WIDTH, HIDDEN), "d": (HIDDEN, WIDTH)} for kind in MAPS}
"""The matrices of each kind of branch, inputs first."""
KINDS = {
    "linear": ("relu", "one", "attention"),
    "sum": ("relu", "one"),
    "move": ("one", "attention"),
    "norm": ("relu",),
    "softmax": ("attention",),
    "attention": ("attention", "attention"),
}
"""The branches in which each kind of operation is tried; other kinds are branches themselves."""
X = np.random.default_rng(0).normal(size=(3, LENGTH, WIDTH)).astype("float32")


OPERATIONS = (
    "LINEAR",
    "SUM",
    "MOVE",
    "RELU",
    "SILU",
    "GELU",
    "TANH",
    "NORM",
    "SOFTMAX",
    "ATTENTION",
)


def table_of(names):
    """A framework's spellings by the kind of operation, of the names in its module."""
    return {name.lower(): names[name] for name in OPERATIONS}


class Network:
    """Residual branches of some kinds; `given` are the spellings of some kinds of operations."""

    def __init__(self, table, kinds, entry, given):
        self.kinds, self.entry = kinds, entry
        self.spelling = {kind: next(iter(ways.values())) for kind, ways in table.items()}
        self.spelling |= {kind: table[kind][name] for kind, name in given.items()}
        sizes = {"e": (WIDTH, WIDTH)} if entry else {}
        for place, kind in enumerate(kinds):
            sizes |= {f"{name}{place}": size for name, size in SIZES[kind].items()}
        sizes["z"] = (WIDTH, 3)
        rng = np.random.default_rng(1)
        self.values = {k: rng.normal(size=size) / size[0] ** 0.5 for k, size in sizes.items()}

    def __call__(self, p, x):
        say = self.spelling
        if self.entry:
            x = say["linear"](x, p["e"])
        for place, kind in enumerate(self.kinds):
            own = {name: p[f"{name}{place}"] for name in SIZES[kind]}
            skip, branch = (say["move"](x), x) if place % 2 == 0 else (x, say["move"](x))
            x = say["sum"](skip, self.branch(kind, own, branch))
        return say["linear"](say["move"](x), p["z"])

    def branch(self, kind, p, x):
        say, linear = self.spelling, self.spelling["linear"]
        if kind == "one":
            return linear(x, p["d"])
        if kind == "glu":
            return linear(say["silu"](linear(x, p["g"])) * linear(x, p["u"]), p["d"])
        h = say["norm"](x)
        if kind == "attention":
            q, k, v = linear(h, p["q"]), linear(x, p["k"]), linear(x, p["v"])
            return linear(say["attention"](q, k, v, say["softmax"]), p["o"])
        return linear(say[kind](linear(h, p["u"])), p["d"])


FLAT = WIDTH, 3 * WIDTH
STORED = {
    "parts of heads": FLAT,
    "slices of heads": FLAT,
    "one of three": FLAT,
    "three in front": FLAT,
    "every third": FLAT,
    "three last": FLAT,
    "einsum": FLAT,
    "three axes": (WIDTH, HEADS, 3 * WIDTH // HEADS),
    "four axes": (WIDTH, HEADS, 3, WIDTH // HEADS),
}
"""For each way to cut queries, keys and values from one matrix: its shape as it is stored."""


def packed(how, q, k, v):
    """Queries, keys and values, interleaved in one weight as PACKED of a framework cuts them."""
    heads = np.stack([one.reshape(WIDTH, HEADS, -1) for one in (q, k, v)], 2)
    if how in ("every third", "three last"):
        heads = np.moveaxis(heads, 2, 3)
    return heads.reshape(STORED[how])


class Apart:
    """An attention whose queries, keys and values have a matrix each; `turn` is applied to some."""

    def __init__(self, table, turn):
        self.attend, self.softmax = (
            next(iter(table[k].values())) for k in ("attention", "softmax")
        )
        self.turn = turn
        rng = np.random.default_rng(2)
        self.values = {name: rng.normal(size=(WIDTH, WIDTH)) for name in "qkvo"}

    def parts(self, p, x):
        return (x @ p[name] for name in "qkv")

    def __call__(self, p, x):
        q, k, v = self.parts(p, x)
        return x + self.attend(self.turn(q), self.turn(k), v, self.softmax) @ p["o"]


class Packed(Apart):
    """The same with one weight for the three."""

    def __init__(self, framework, how, turn):
        super().__init__(framework.TABLE, turn)
        self.cut = framework.PACKED[how]
        q, k, v, o = self.values.values()
        self.values = {"w": packed(how, q, k, v), "o": o}

    def parts(self, p, x):
        return self.cut(x, p["w"])


def single(table):
    """Every other spelling of every kind of operation, alone."""
    return [(kind, name) for kind in table for name in itertools.islice(table[kind], 1, None)]


def several(table, seed):
    """A network, and spellings of several kinds of operations in it."""
    rng = np.random.default_rng(seed)
    kinds = tuple(rng.choice(list(SIZES), rng.integers(1, 4)))
    chosen = rng.choice(list(table), rng.integers(2, 6), replace=False)
    return kinds, bool(rng.integers(2)), {kind: str(rng.choice([*table[kind]])) for kind in chosen}


def differing(run, table, kinds, entry, given):
    """The parameters that start otherwise than in the plain spelling; both are one function."""
    (before, plain), (same, found) = (
        run(network, network.values, X)
        for network in (Network(table, kinds, entry, say) for say in ({}, given))
    )
    np.testing.assert_allclose(same, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
    return [name for name in plain if not np.array_equal(plain[name], found[name])]
