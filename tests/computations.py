"""Graphs of computations: written as programs, drawn at random, and run in NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import explain_roles, infer_roles

SHAPE = (3, 4)


class Net:
    """A graph written as a program; every method returns the name of its node."""

    def __init__(self, shape=(2, 4)):
        self.nodes, self.usual, self._shapes = [], shape, {}

    def _new(self, *args, **more):
        self.nodes.append(Node(*args, **more))
        self._shapes[args[0]] = self.nodes[-1].shape
        return args[0]

    def shape(self, name):
        return self._shapes[name]

    def x(self, name="x", shape=None):
        return self._new(name, "input", (), shape or self.usual)

    def w(self, name, *inputs, shape=None, size=(4, 4), **options):
        """A dense layer `name` with a parameter of its name in capitals."""
        if name.upper() not in self._shapes:
            self._new(name.upper(), "parameter", (), size, use="weight", options=options)
        return self._new(name, "weight", inputs, shape or self.usual, weights=(name.upper(),))

    def again(self, name, parameter, *inputs):
        return self._new(name, "weight", inputs, self.usual, weights=(parameter,))

    def f(self, name, *inputs, shape=None, does="map", vanishes="all", sums=()):
        shape = shape or self.shape(inputs[0])
        return self._new(name, "other", inputs, shape, does=does, vanishes=vanishes, sums=sums)

    def sigmoid(self, name, x):
        return self.f(name, x, vanishes="never")

    def mul(self, name, *inputs, shape=None):
        places = tuple(range(len(inputs)))
        return self.f(name, *inputs, shape=shape, does="product", vanishes=places)

    def attend(self, name, q, k, v):
        """Softmax of the products of queries and keys, and the values that it mixes."""
        shape = self.shape(q)
        square = (*shape[:-1], shape[-2])
        scores = self.f(
            f"{name}.qk", q, k, shape=square, does="contract", vanishes=(0, 1), sums=(0, 1)
        )
        p = self.f(f"{name}.p", scores, does="softmax", vanishes="never")
        return self.f(name, p, v, shape=shape, does="contract", vanishes=(0, 1))

    def add(self, name, left, right, shape=None):
        return self._new(name, "add", (left, right), shape or self.shape(left))

    def graph(self, *outputs):
        return Graph(self.nodes, outputs)

    def roles(self, *outputs):
        return infer_roles(self.graph(*outputs))

    def zeros(self, *outputs):
        return {name for name, role in self.roles(*outputs).items() if role == "zero"}

    def notes(self, *outputs):
        return {note.kind: note for note in explain_roles(self.graph(*outputs)).notes}

    def block(self, k, x):
        """A pre-norm residual branch."""
        normed = self.f(f"n{k}", x, does="norm")
        return self.add(f"y{k}", x, self.w(f"b{k}", self.w(f"a{k}", normed)))


# Running -----------------------------------------------------------------------------------------


def draw_weights(graph, seed):
    """Return a random matrix for every weight, well conditioned."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((4, 4)) / 2 for name in graph.weights}


def run(graph, weights, seed):
    """Return the value of every node; complex weights give derivatives."""
    rng = np.random.default_rng(seed)
    values = {}
    names = [node.name for node in graph.nodes if node.kind == "input"]
    for name in sorted(names):  # the same whatever the order of the nodes is
        values[name] = rng.standard_normal(SHAPE)
    for node in graph.nodes:
        if node.kind not in ("input", "parameter"):
            values[node.name] = _value(node, [values[name] for name in node.inputs], weights)
    return values


def _value(node, given, weights):
    if node.kind == "weight":
        return given[0] @ weights[node.weights[0]].T
    if node.kind == "add":
        return given[0] + given[1]
    if not given:
        return np.zeros(SHAPE)
    if node.does == "attention":
        return _softmax(given[0] @ given[1].T) @ given[2]
    if node.does == "contract":
        return given[0] @ (given[1].T if node.sums else given[1])
    if node.does == "product":
        return np.prod(given, axis=0)
    (x,) = given
    return {
        "move": lambda: x,
        "scale": lambda: 2 * x,
        "norm": lambda: x / np.sqrt(1 + np.mean(x * x, axis=-1, keepdims=True)),
        "softmax": lambda: _softmax(x),
        "shift": lambda: x + 1,
        "map": lambda: (1 + np.tanh(x / 2)) / 2 if node.vanishes == "never" else np.tanh(x),
    }[node.does]()


def _softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# Random programs ---------------------------------------------------------------------------------


class Program(Net):
    """A random network: residual blocks of all kinds, one after the other, of one or two streams.

    `marks` are the residual adds that were meant: name, skip and branch.
    """

    def __init__(self, draw):
        super().__init__(SHAPE)
        self._draw, self._count = draw, 0
        self.marks = []

    def pick(self, *options):
        return self._draw(st.sampled_from(options))

    def fresh(self, base):
        self._count += 1
        return f"{base}{self._count}"

    def weight(self, x):
        return self.w(self.fresh("w"), x)

    def plus(self, skip, branch):
        name = self.fresh("y")
        self.add(name, *((skip, branch) if self.pick(True, False) else (branch, skip)))
        self.marks.append((name, skip, branch))
        return name

    def branch(self, x, depth, memory):
        """What a block computes from a signal: over at least one weight."""
        kind = self.pick(*"wwwmmgqtanrev"[: 13 if depth > 0 else 5])
        if kind == "w":
            return self.weight(x)
        inner = self.branch(x, depth - 1, memory)
        if kind == "m":
            return self.weight(self.f(self.fresh("f"), inner))
        if kind == "g":  # a gate
            gate = self.sigmoid(self.fresh("s"), self.branch(x, depth - 1, memory))
            return self.mul(self.fresh("g"), *self.pick((inner, gate), (gate, inner)))
        if kind == "q":  # a product of two
            return self.mul(self.fresh("g"), inner, self.branch(x, depth - 1, memory))
        if kind == "t":  # attention, to itself or to a memory
            to = self.pick(x, memory)
            q, k, v = self.weight(x), self.weight(to), self.weight(to)
            mixed = self.attend(self.fresh("t"), q, k, v)
            return self.weight(mixed) if self.pick(True, False) or to == memory else mixed
        if kind == "a":  # two branches beside each other
            return self.add(self.fresh("p"), inner, self.branch(x, depth - 1, memory))
        if kind == "n":
            return self.f(self.fresh("n"), inner, does=self.pick("norm", "scale", "move"))
        if kind == "r":  # a residual block inside
            return self.weight(self.plus(inner, self.branch(inner, depth - 1, memory)))
        if kind == "e":  # a residual block at the end
            return self.plus(inner, self.branch(inner, depth - 1, memory))
        return self.sigmoid(self.fresh("s"), inner)

    def block(self, x, memory, other):
        """Return a stream after one more block."""
        kind = self.pick(*"ppppnsocdb")
        if kind == "b":  # positions, or a memory, beside the stream
            at = self.add(self.fresh("p"), x, self.pick("pos", memory))
            mixed = self.attend(self.fresh("t"), self.weight(at), self.weight(at), self.weight(x))
            return self.plus(x, self.weight(mixed))
        start = self.f(self.fresh("n"), x, does="norm") if self.pick(True, False) else x
        if kind == "s":  # a projection
            return self.plus(self.weight(x), self.weight(self.branch(start, 1, memory)))
        if kind == "d":  # one branch after the other, of one start
            y = self.plus(x, self.branch(start, 1, memory))
            return self.plus(y, self.branch(start, 1, memory))
        if kind == "o":  # from the other stream
            both = self.mul(self.fresh("g"), start, other)
            return self.plus(x, self.branch(both, 1, memory))
        if kind == "c":  # attention of two streams
            mixed = self.attend(
                self.fresh("t"), self.weight(start), self.weight(other), self.weight(other)
            )
            return self.plus(x, self.weight(mixed))
        y = self.plus(x, self.branch(start, 2, memory))
        return self.f(self.fresh("n"), y, does="norm") if kind == "n" else y


@st.composite
def programs(draw):
    """Random networks, as programs."""
    net = Program(draw)
    memory = net.f(net.fresh("f"), net.weight(net.x("m")))
    net.x("pos")
    x = net.x()
    streams = [net.weight(x), net.weight(x)] if draw(st.booleans()) else [x]
    for _ in range(draw(st.integers(1, 4))):
        turn = draw(st.integers(0, len(streams) - 1))
        streams[turn] = net.block(streams[turn], memory, streams[-1 - turn])
    net.ends = [net.weight(stream) for stream in streams]
    return net
