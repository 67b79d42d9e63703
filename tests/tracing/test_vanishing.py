"""Random programs, computed by NumPy too: a result that is said to vanish is 0, and no other."""

import numpy as np
import pytest
from hypothesis import assume, event, given, note
from hypothesis import strategies as st

from idinit_ref.roles import infer_roles
from idinit_ref.tracing import Drawing, Parameter, clamped, power
from tracing.programs import MOVES, SIZES, Program

SHAPE = (2, 3, 4)
FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sin": np.sin,
    "abs": np.abs,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.1 * x),
    "square": np.square,
    "expm1": lambda x: np.expm1(np.minimum(x, 3)),
    "log1p": lambda x: np.log1p(np.abs(x)),
    "exp": lambda x: np.exp(np.minimum(x, 3)),
    "cos": np.cos,
    "sigmoid": lambda x: 1 / (1 + np.exp(-np.clip(x, -30, 30))),
    "softplus": lambda x: np.log1p(np.exp(np.clip(x, -30, 30))),
    "reciprocal": lambda x: 1 / (np.abs(x) + 1e-9),
    "softmax": lambda x: np.full_like(x, 0.25) + 0 * x,
    "cumsum": lambda x: x.cumsum(-1),
    "norm": lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3),
}
PAIRS = {
    "multiply": np.multiply,
    "divide": lambda a, b: a / (np.abs(b) + 0.5),
    "maximum": np.maximum,
    "minimum": np.minimum,
    "atan2": lambda a, b: np.arctan2(a, np.abs(b) + 0.5),
    "where": lambda a, b: np.where(np.arange(a.shape[-1]) % 2 == 1, a, b),
    "hypot": np.hypot,
    "squared_difference": lambda a, b: (a - b) ** 2,
}


WITH_NUMBERS = {
    "add": np.add,
    "subtract": np.subtract,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": lambda x, c: np.where(np.arange(4) > 1, x, c),
}


class Signals:
    """A program on two signals, run on both, on either and on neither of them as zeros."""

    def __init__(self, data):
        self.data, self.draw = data, Drawing([Parameter("w", (4, 4))])
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        a, b = rng.uniform(-2, 2, (2, *SHAPE))
        self.matrix = rng.uniform(-1, 1, (4, 4))
        self.arrays, self.pool = {}, []
        self.keep(self.draw.input("a", SHAPE), [a, 0 * a, a, 0 * a])
        self.keep(self.draw.input("b", SHAPE), [b, b, 0 * b, 0 * b])

    def keep(self, value, arrays):
        arrays = [np.clip(np.nan_to_num(array), -1e3, 1e3) for array in arrays]
        self.arrays.setdefault(value.node, arrays)
        if arrays[0].shape == SHAPE:
            self.pool.append((value, arrays))

    def pick(self):
        return self.data.draw(st.sampled_from(range(len(self.pool))))

    def step(self):
        how = self.data.draw(st.sampled_from(
            ["function", "pair", "add", "subtract", "number", "scale", "move", "join", "weight",
             "contract", "power", "clamp", "pad"]))  # fmt: skip
        getattr(self, how)(*self.pool[self.pick()])
        return how

    def function(self, value, arrays):
        name = self.data.draw(st.sampled_from(sorted(FUNCTIONS)))
        if name in ("softmax", "cumsum", "norm"):
            new = self.draw.result(name, [value], SHAPE, word=name)
        else:
            new = self.draw.entrywise(name, [value], SHAPE)
        self.keep(new, [FUNCTIONS[name](x) for x in arrays])

    def pair(self, value, arrays):
        other, others = self.pool[self.pick()]
        name = self.data.draw(st.sampled_from(sorted(PAIRS)))
        draw = self.draw
        if name == "multiply":
            new = draw.multiply(name, value, other, SHAPE)
        elif name == "divide":
            new = draw.scale(name, [value, other], SHAPE)
        else:
            new = draw.entrywise(name, [value, other], SHAPE)
        self.keep(new, [PAIRS[name](x, y) for x, y in zip(arrays, others, strict=True)])

    def add(self, value, arrays):
        other, others = self.pool[self.pick()]
        new = self.draw.add("add", value, other, SHAPE)
        self.keep(new, [x + y for x, y in zip(arrays, others, strict=True)])

    def subtract(self, value, arrays):
        other, others = self.pool[self.pick()]
        new = self.draw.subtract("subtract", value, other, SHAPE)
        self.keep(new, [x - y for x, y in zip(arrays, others, strict=True)])

    def number(self, value, arrays):
        by = self.data.draw(st.sampled_from([-1.5, 0, 0.25]))
        one = self.draw.constant((), True, by)
        how = self.data.draw(st.sampled_from(sorted(WITH_NUMBERS)))
        if how in ("add", "subtract"):
            new = getattr(self.draw, how)(how, value, one, SHAPE)
        else:
            new = self.draw.entrywise(how, [value, one], SHAPE)
        self.keep(new, [WITH_NUMBERS[how](x, by) for x in arrays])

    def scale(self, value, arrays):
        new = self.draw.multiply("mul", value, self.draw.constant((), True, 0.7), SHAPE)
        self.keep(new, [0.7 * x for x in arrays])

    def power(self, value, arrays):
        by = self.data.draw(st.sampled_from([-1, 0.5, 1, 2, 3]))
        new = self.draw.entrywise("pow", [value], SHAPE, word=power(by))
        self.keep(new, [(np.abs(x) + (1e-9 if by < 0 else 0)) ** by for x in arrays])

    def clamp(self, value, arrays):
        low, high = self.data.draw(st.sampled_from([(-1, 1), (0, 6), (0.5, 2), (-3, -1)]))
        new = self.draw.entrywise("clamp", [value], SHAPE, word=clamped(low, high))
        self.keep(new, [np.clip(x, low, high) for x in arrays])

    def move(self, value, arrays):
        new = self.draw.flip("flip", value, [1])
        self.keep(new, [np.flip(x, 1) for x in arrays])

    def join(self, value, arrays):
        other, others = self.pool[self.pick()]
        whole = self.draw.join("join", [value, other], 2, (2, 3, 8))
        both = [np.concatenate(pair, 2) for pair in zip(arrays, others, strict=True)]
        self.keep(whole, both)
        start = self.data.draw(st.integers(0, 4))
        part = self.draw.part("part", whole, [(0, 2, 1), (0, 3, 1), (start, start + 4, 1)])
        self.keep(part, [x[..., start : start + 4] for x in both])

    def pad(self, value, arrays):
        fill = self.data.draw(st.sampled_from([0, 1]))
        one = self.draw.constant((), True, fill)
        new = self.draw.pad("pad", value, [0, 0, 1], (2, 3, 5), None, [one])
        width = ((0, 0), (0, 0), (1, 0))
        self.keep(new, [np.pad(x, width, constant_values=fill) for x in arrays])

    def weight(self, value, arrays):
        weight = self.draw.parameter("w")
        new = self.draw.product("dot", [value, weight], ["bti", "oi"], "bto", SHAPE)
        self.keep(new, [x @ self.matrix.T for x in arrays])

    def contract(self, value, arrays):
        other, others = self.pool[self.pick()]
        scores = self.draw.product("scores", [value, other], ["bti", "bsi"], "bts", (2, 3, 3))
        made = [np.einsum("bti,bsi->bts", x, y) for x, y in zip(arrays, others, strict=True)]
        self.keep(scores, made)
        last, lasts = self.pool[self.pick()]
        new = self.draw.product("mix", [scores, last], ["bts", "bsi"], "bti", SHAPE)
        self.keep(new, [np.einsum("bts,bsi->bti", x, y) for x, y in zip(made, lasts, strict=True)])


def is_zero(array):
    return not np.any(array)


@given(data=st.data())
def test_a_node_is_zero_where_it_says_so_and_not_where_it_never_is(data):
    program = Signals(data)
    for _ in range(data.draw(st.integers(1, 8))):
        event(program.step())
    graph = program.draw.graph([program.pool[-1][0]])
    for node in graph.nodes:
        known = program.arrays.keys() >= {node.name, *node.inputs}
        if node.kind not in ("add", "other") or not known:
            continue  # a sum of slices is drawn as a slice of the sum, which no step has made
        for case, array in enumerate(program.arrays[node.name]):
            zeros = [is_zero(program.arrays[name][case]) for name in node.inputs]
            if node.vanishes == "never":
                assert not (all(zeros) and is_zero(array)), node
            elif node.vanishes == "all":
                assert not all(zeros) or is_zero(array), node
            else:
                for place in (*node.vanishes, *node.sums):
                    assert not zeros[place] or is_zero(array), node


@given(data=st.data(), shape=st.lists(SIZES, min_size=1, max_size=3))
def test_the_axes_with_units_are_those_along_which_the_outputs_differ(data, shape):
    program = Program(data)
    inputs, outputs = data.draw(SIZES), data.draw(SIZES)
    weight = program.parameter([inputs, outputs])
    axes = [f"b{k}" for k in range(len(shape))]
    x = program.draw.input("x", (*shape, inputs))
    value = program.draw.product(
        "dot", [x, weight.value], [[*axes, "i"], ["i", "o"]], [*axes, "o"], (*shape, outputs)
    )
    columns = np.broadcast_to(np.arange(outputs), (*shape, outputs))
    both = program.run(type(weight)(value, columns), MOVES)
    along = {axis for axis, n in enumerate(both.array.shape)
             if (both.array != both.array.take([0], axis)).any()}  # fmt: skip
    for unit in both.value.units:
        assert along <= unit.axes


# Contractions, by hand ----------------------------------------------------------------------------


def projected(*names):
    draw = Drawing([Parameter(name, (4, 4)) for name in names])
    x = draw.input("x", (2, 3, 4))
    for name in names:
        yield draw.product(name, [x, draw.parameter(name)], ["bti", "io"], "bto", (2, 3, 4))
    yield draw


def ends(draw, node):
    """The weights with which a node vanishes."""
    by_name = draw.graph([]).by_name

    def walk(name):
        found = by_name[name]
        if found.kind == "weight":
            return {found.weights[0]}
        if found.vanishes == "never":
            return set()
        inputs = found.inputs
        if isinstance(found.vanishes, tuple):
            inputs = [found.inputs[place] for place in found.vanishes]
        return set().union(*map(walk, inputs))

    return walk(node)


def test_a_score_vanishes_with_neither_queries_nor_keys():
    q, k, draw = projected("q", "k")
    out = draw.product("scores", [q, k], ["bti", "bsi"], "bts", (2, 3, 3))
    assert ends(draw, out.node) == set()
    assert draw.nodes[-1].sums == (0, 1)


@pytest.mark.parametrize("keys_first", [False, True])
def test_linear_attention_vanishes_with_its_values_in_either_order(keys_first):
    q, k, v, draw = projected("q", "k", "v")
    if keys_first:
        state = draw.product("state", [k, v], ["bsi", "bso"], "bio", (2, 4, 4))
        out = draw.product("mix", [q, state], ["bti", "bio"], "bto", (2, 3, 4))
    else:
        scores = draw.product("scores", [q, k], ["bti", "bsi"], "bts", (2, 3, 3))
        out = draw.product("mix", [scores, v], ["bts", "bso"], "bto", (2, 3, 4))
    assert ends(draw, out.node) == {"v"}


def test_a_state_space_vanishes_with_its_input_but_not_with_b_and_c():
    x, b, c, draw = projected("x_proj", "b", "c")
    wide = (2, 3, 4, 4)
    columns = draw.broadcast("x", draw.reshape("x", x, (2, 3, 4, 1)), wide)
    rows = [draw.broadcast("n", draw.reshape("n", one, (2, 3, 1, 4)), wide) for one in (b, c)]
    state = draw.result(
        "cumsum", [draw.multiply("bx", columns, rows[0], wide)], wide, word="cumsum"
    )
    out = draw.sum("sum", draw.multiply("ch", state, rows[1], wide), [3], (2, 3, 4))
    assert ends(draw, out.node) == {"x_proj"}


def test_a_gate_and_what_it_gates_both_vanish():
    a, b, draw = projected("a", "b")
    out = draw.multiply("mul", a, b, (2, 3, 4))
    assert ends(draw, out.node) == {"a", "b"}


def test_a_grouped_query_without_rows_of_its_own_keeps_its_weight():
    """Its heads are an axis that the keys lack, as the outputs of a computed kernel are."""
    draw = Drawing([Parameter("q", (4, 6)), Parameter("k", (4, 3))])
    x = draw.input("x", (2, 5, 4))
    q = draw.product("q", [x, draw.parameter("q")], ["bti", "io"], "bto", (2, 5, 6))
    k = draw.product("k", [x, draw.parameter("k")], ["bti", "io"], "bto", (2, 5, 3))
    heads = draw.reshape("heads", q, (2, 5, 2, 3))
    draw.product("scores", [heads, k], ["btgd", "bsd"], "bgts", (2, 2, 5, 5))
    assert draw.graph([]).by_name["q"].note == ""


def stepped(step, states, count=0, x=None):
    """The roles of x + the first state, after a loop or after `count` turns drawn apart."""
    draw = Drawing([Parameter(name, (4, 4)) for name in "wug"])
    x = draw.input("x", (2, 4))
    start = {"x": x, "zeros": draw.constant((2, 4), value=0)}

    def dense(name, value):
        return draw.product(name, [value, draw.parameter(name)], ["bi", "io"], "bo", (2, 4))

    def turn(now):
        return step(draw, dense, x, *now)

    now = [start.get(state) or draw.input(state, (2, 4)) for state in states]
    if count:
        for _ in range(count):
            now = turn(now)
    else:
        now = draw.loop("state", now, [(2, 4)] * len(now), turn, fixed=[x])[-1]
    graph = draw.graph([draw.add("out", x, now[0], (2, 4)), *now[1:]])
    return {name for name, role in infer_roles(graph).items() if role == "zero"}


def add(draw, a, b):
    return draw.add("add", a, b, (2, 4))


def gated(draw, dense, x, state):
    gate = draw.entrywise("sigmoid", [dense("g", x)], (2, 4))
    return [add(draw, draw.multiply("mul", gate, state, (2, 4)), dense("w", x))]


STEPS = {
    "a sum": (lambda draw, dense, x, s: [add(draw, s, dense("w", x))], ["zeros"], "w"),
    "a gated sum": (gated, ["zeros"], "w"),
    "a weight reads the state": (
        lambda draw, dense, x, s: [add(draw, dense("w", x), dense("u", s))], ["zeros"], "w"),
    "a delay of two turns": (
        lambda draw, dense, x, s, d, e: [add(draw, dense("w", x), d), e, dense("u", x)],
        ["zeros"] * 3, "wu"),
    "two streams": (
        lambda draw, dense, x, s, m: [add(draw, s, dense("w", m)), add(draw, m, dense("u", s))],
        ["x", "m"], "wu"),
    "a stream reads its start": (
        lambda draw, dense, x, s: [add(draw, dense("w", s), dense("u", x))], ["x"], "wu"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STEPS)
def test_a_loop_is_judged_as_its_turns_one_after_the_other(kind):
    step, states, wanted = STEPS[kind]
    assert stepped(step, states) == set(wanted) == stepped(step, states, 4)


@pytest.mark.parametrize("order", [1, -1], ids=["token last", "token first"])
def test_a_class_token_is_the_source_of_its_block(order):
    """A vector that was data before is no bias of what it is added to."""
    draw = Drawing([Parameter("token", (1, 1, 4)), Parameter("w", (4, 4))])
    token = draw.broadcast("expand", draw.parameter("token"), (2, 1, 4))
    both = draw.join("cat", [token, draw.input("x", (2, 3, 4))], 1, (2, 4, 4))
    pooled = draw.reshape("view", draw.sum("mean", both, [1], (2, 4)), (2, 1, 4))
    made = draw.product("dot", [pooled, draw.parameter("w")], ["bti", "io"], "bto", (2, 1, 4))
    graph = draw.graph([draw.add("add", *[made, token][::order], (2, 1, 4))])
    assert infer_roles(graph) == {"w": "zero"}


@pytest.mark.parametrize("order", [1, -1], ids=["streams last", "streams first"])
@pytest.mark.parametrize("read", [True, False])
def test_copies_are_a_skip_if_something_else_reads_them(read, order):
    """The streams of hyper-connections start as copies; those made for a sum alone broadcast."""
    draw = Drawing([Parameter("w", (4, 4))])
    x = draw.input("x", (2, 4))
    streams = draw.broadcast("expand", draw.reshape("view", x, (2, 1, 4)), (2, 3, 4))
    mean = draw.result("mean", [streams], (2, 4), word="mean") if read else x
    made = draw.product("dot", [mean, draw.parameter("w")], ["bi", "io"], "bo", (2, 4))
    shares = draw.input("shares", (2, 3, 1))
    branch = draw.multiply("mul", shares, draw.reshape("back", made, (2, 1, 4)), (2, 3, 4))
    graph = draw.graph([draw.add("add", *[branch, streams][::order], (2, 3, 4))])
    assert infer_roles(graph) == {"w": "zero" if read else "transit"}


@pytest.mark.parametrize("word", ["rsqrt", "sigmoid"])
def test_a_product_with_a_root_of_statistics_is_a_norm_and_one_with_a_gate_is_none(word):
    """So what is added to it shifts, or is a constant that never vanishes."""
    draw = Drawing([Parameter("b", (4,))])
    x = draw.input("x", (2, 3, 4))
    squares = draw.entrywise("square", [x], (2, 3, 4))
    mean = draw.result("mean", [squares], (2, 3, 1), word="mean")
    shifted = draw.add("shift", mean, draw.constant((), True, 1e-6), (2, 3, 1))
    by = draw.entrywise(word, [shifted], (2, 3, 1))
    bias = draw.broadcast("spread", draw.parameter("b"), (2, 3, 4))
    draw.graph([draw.add("add", draw.multiply("mul", x, by, (2, 3, 4)), bias, (2, 3, 4))])
    assert draw.nodes[-1].vanishes == ("all" if word == "rsqrt" else "never")


# Functions that are written out -------------------------------------------------------------------

SMOOTH = {
    "exp": np.exp,
    "cos": np.cos,
    "sin": np.sin,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "log": np.log,
    "neg": np.negative,
}
SIGNS = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide}


class Written:
    """A function of one weight's result, drawn, and as a function of NumPy."""

    def __init__(self, data):
        self.data, self.draw = data, Drawing([Parameter("w", (4, 4))])
        self.x = self.draw.input("x", (2, 4))
        h = self.draw.product("dot", [self.x, self.draw.parameter("w")], ["bi", "io"], "bo", (2, 4))
        self.pool = [(h, lambda h: h)]

    def number(self, value):
        return self.draw.constant((), True, value), lambda h: value

    def step(self):
        pick, draw = lambda: self.data.draw(st.sampled_from(self.pool)), self.draw
        value, f = pick()
        name = self.data.draw(st.sampled_from([*SMOOTH, *SIGNS, *SIGNS]))
        if name in SMOOTH:
            way = draw.scale if name == "neg" else draw.entrywise
            self.pool.append((way(name, [value], (2, 4), word=name), lambda h: SMOOTH[name](f(h))))
            return
        number = self.data.draw(st.sampled_from([-1.0, 0.5, 1.0, 2.0]))
        other, g = pick() if self.data.draw(st.booleans()) else self.number(number)
        if self.data.draw(st.booleans()):
            value, f, other, g = other, g, value, f
        if name == "divide":
            scales = draw.scale if value.shape != () else draw.entrywise
            new = scales("divide", [value, other], (2, 4), "divided by", "div")
        else:
            new = getattr(draw, name)(name, value, other, (2, 4))
        self.pool.append((new, lambda h: SIGNS[name](f(h), g(h))))


@given(st.data())
def test_a_function_of_a_weight_is_judged_by_its_value_and_slope_at_0(data):
    """Less its value at 0 it vanishes; the weight is its end if its slope is not 0."""
    written = Written(data)
    for _ in range(data.draw(st.integers(1, 7))):
        written.step()
    (value, f), draw = written.pool[-1], written.draw
    step, h = 1e-4, np.array([-1e-4, 0.0, 1e-4])
    try:
        with np.errstate(all="raise", under="ignore"):
            below, at, above = np.broadcast_to(f(h), 3)
    except FloatingPointError:  # 1 / h, say
        return
    slope = (above - below) / (2 * step)
    assume(abs(above + below - 2 * at) < 1e-3 and max(abs(at), abs(slope)) < 50)
    assume(abs(slope) > 0.01 or abs(slope) < 1e-9)
    if abs(at) > 1e-12:
        value = draw.subtract("less", value, written.number(at)[0], (2, 4))
    graph = draw.graph([draw.add("y", written.x, value, (2, 4))])
    event(f"a slope: {abs(slope) > 0.01}, a number: {abs(at) > 1e-12}")
    note("\n".join(f"{n.name} = {n.kind} {n.does} {n.inputs} {n.vanishes}" for n in graph.nodes))
    assert infer_roles(graph)["w"] == ("zero" if abs(slope) > 0.01 else "transit")
