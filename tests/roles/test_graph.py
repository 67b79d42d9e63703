"""Roles from the computation: named structures by hand, and random graphs against all paths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import idinit_ref as ir
from cost import calls
from idinit_ref.errors import GraphError, OptionError, OptionTypeError, ShapeError
from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import _Search, explain_roles, infer_roles


class Net:
    """A graph written as a program."""

    def __init__(self):
        self.nodes = []

    def _new(self, *args, **more):
        self.nodes.append(Node(*args, **more))
        return args[0]

    def shape(self, name):
        return next(node.shape for node in self.nodes if node.name == name)

    def x(self, name="x", shape=(2, 4)):
        return self._new(name, "input", (), shape)

    def w(self, name, *inputs, shape=(2, 4)):
        """A dense layer `name` with a parameter of its name in capitals."""
        if name.upper() not in (node.name for node in self.nodes):
            self._new(name.upper(), "parameter", (), (4, 4), use="weight")
        return self._new(name, "weight", inputs, shape, weights=(name.upper(),))

    def again(self, name, parameter, *inputs):
        return self._new(name, "weight", inputs, (2, 4), weights=(parameter,))

    def f(self, name, *inputs, shape=None):
        return self._new(name, "other", inputs, shape or self.shape(inputs[0]))

    def add(self, name, left, right, shape=None):
        return self._new(name, "add", (left, right), shape or self.shape(left))

    def roles(self, *outputs):
        return infer_roles(Graph(self.nodes, outputs))

    def zeros(self):
        return {name for name, role in self.roles().items() if role == "zero"}

    def block(self, k, x):
        """A pre-norm residual branch."""
        return self.add(f"y{k}", x, self.w(f"b{k}", self.w(f"a{k}", self.f(f"n{k}", x))))


def test_pre_norm_and_post_norm():
    net = Net()
    x = net.block(2, net.block(1, net.x()))
    x = net.f("norm", net.add("y3", net.w("b3", net.w("a3", x)), x))
    net.add("y4", net.w("b4", net.w("a4", x)), x)
    assert net.zeros() == {"B1", "B2", "B3", "B4"}


def test_the_input_itself_is_a_skip():
    net = Net()
    x = net.x()
    net.add("y", net.w("a", x), x)
    assert net.zeros() == {"A"}


def test_attention_and_a_gated_unit():
    net = Net()
    x = net.x()
    n = net.f("n", x)
    q, k, v = net.w("q", n), net.w("k", n), net.w("v", n)
    scores = net.f("scores", q, k, shape=(2, 2))
    x = net.add("y1", x, net.w("o", net.f("mix", scores, v, shape=(2, 4))))
    n = net.f("m", x)
    net.add("y2", net.w("down", net.f("mul", net.f("silu", net.w("gate", n)), net.w("up", n))), x)
    assert net.zeros() == {"O", "DOWN"}


@pytest.mark.parametrize("order", ["(x + a) + m", "(x + m) + a", "(a + m) + x"])
@pytest.mark.parametrize("shared", [True, False])
def test_parallel_attention_and_mlp(order, shared):
    """Whichever sum comes first, and whether both branches begin with one norm or two."""
    net = Net()
    x = net.x()
    n = net.f("n", x)
    a = net.w("o", net.w("v", n))
    m = net.w("down", net.w("up", n if shared else net.f("n2", x)))
    one, two, three = (
        {"x": x, "a": a, "m": m}[c] for c in order.replace("(", "").replace(")", "").split(" + ")
    )
    net.block(1, net.add("y", net.add("s", one, two), three))
    assert net.zeros() == {"O", "DOWN", "B1"}


def test_a_tie_that_nothing_settles_is_transit_and_says_so():
    net = Net()
    n = net.f("n", net.x())
    net.add("s", net.w("a", n), net.w("b", n))
    found = explain_roles(Graph(net.nodes))
    assert {name: role.role for name, role in found.items()} == {"A": "transit", "B": "transit"}
    assert found["A"].why == found["B"].why == ("a tie: s adds two branches",)


def test_a_projection_shortcut_of_another_shape():
    net = Net()
    x = net.x()
    main = net.w("c3", net.w("c2", net.w("c1", x)), shape=(1, 8))
    y = net.add("y", main, net.w("short", x, shape=(1, 8)))
    net.add("z", net.w("d2", net.w("d1", y, shape=(1, 8)), shape=(1, 8)), y)
    assert net.zeros() == {"C3", "D2"}


def test_a_shortcut_that_is_cut_and_padded():
    net = Net()
    x = net.x()
    main = net.w("c2", net.w("c1", x, shape=(1, 8)), shape=(1, 8))
    net.add("y", net.f("pad", net.f("cut", x, shape=(1, 4)), shape=(1, 8)), main)
    assert net.zeros() == {"C2"}


def test_low_rank_pairs_beside_a_weight():
    net = Net()
    x = net.x()
    net.add("y", net.w("w", x), net.f("scale", net.w("b", net.w("a", x, shape=(2, 1)))))
    assert net.zeros() == {"B"}


def test_a_gate_at_the_end_of_a_branch_is_a_last_weight_too():
    net = Net()
    x = net.x()
    h = net.w("c2", net.w("c1", x))
    gate = net.w("e2", net.w("e1", net.f("pool", h)))
    net.add("y", net.f("mul", h, net.f("sigmoid", gate)), x)
    assert net.zeros() == {"C2", "E2"}


@pytest.mark.parametrize("kept", ["z * h + (1 - z) * n", "(1 - z) * n + z * h"])
def test_a_gate_that_both_sides_share(kept):
    """A highway, and a GRU's update: the gate is at the end of the branch, too."""
    net = Net()
    h = net.x()
    z, n = net.f("z", net.w("wz", h)), net.f("n", net.w("wn", net.f("r", h, net.w("wr", h))))
    sides = net.f("zh", z, h), net.f("zn", z, n)
    net.add("y", *sides[:: 1 if kept[0] == "z" else -1])
    assert net.zeros() == {"WZ", "WN"}


def test_a_gate_before_the_end_is_not():
    net = Net()
    x = net.x()
    h = net.w("c1", x)
    gate = net.f("sigmoid", net.w("e2", net.w("e1", net.f("pool", h))))
    net.add("y", net.w("c2", net.f("mul", h, gate)), x)
    assert net.zeros() == {"C2"}


def test_after_a_gate_an_activation_that_adds_is_no_branch():
    """The sum inside tanh-GELU: u + 0.04 u^3, with u computed by way of a gate."""
    net = Net()
    h = net.x()
    u = net.f("mul", h, net.f("sigmoid", net.w("e", h)))
    net.f("tanh", net.add("sum", u, net.f("cube", u)))
    assert net.zeros() == set()


def test_rotary_positions_are_no_branch():
    net = Net()
    cos, sin = net.x("cos"), net.x("sin")
    q = net.w("q", net.x())
    net.add("r", net.f("qc", q, cos), net.f("rs", net.f("rotate", q), sin))
    assert net.zeros() == set()


def test_a_position_bias_that_all_layers_share_is_no_skip():
    """As in T5: it reaches later scores through earlier layers, but not as their stream."""
    net = Net()
    bias, x = net.x("bias", (2, 2)), net.x()
    for k in range(3):
        q, key = net.w(f"q{k}", x), net.w(f"k{k}", x)
        scores = net.add(f"s{k}", net.f(f"qk{k}", q, key, shape=(2, 2)), bias)
        mix = net.f(f"mix{k}", scores, net.w(f"v{k}", x), shape=(2, 4))
        x = net.add(f"y{k}", x, net.w(f"o{k}", mix))
    assert net.zeros() == {"O0", "O1", "O2"}


def test_cross_attention():
    net = Net()
    states = net.block(0, net.x("source"))
    y = net.block(1, net.x("target"))
    k = net.w("k", states)
    mix = net.f("mix", net.w("q", y), k, net.w("v", states))
    net.block(2, net.add("y", y, net.w("o", mix)))
    assert net.zeros() == {"B0", "B1", "B2", "O"}


def test_conditions_that_are_added_inside_a_branch():
    """As a time embedding is: no branch of its own, and it is not taken for a skip later."""
    net = Net()
    t, x = net.x("t"), net.x()
    for k in range(3):
        inner = net.add(f"s{k}", net.w(f"a{k}", x), net.w(f"t{k}", t))
        x = net.add(f"y{k}", net.w(f"b{k}", net.f(f"act{k}", inner)), x)
    assert net.zeros() == {"B0", "B1", "B2"}


def test_long_skips_around_blocks():
    net = Net()
    x = net.x()
    inner = net.block(2, net.block(1, net.w("first", x)))
    net.add("z", x, net.w("last", inner))
    assert net.zeros() == {"B1", "B2", "LAST"}


def test_a_stage_behind_a_projection_shortcut_counts_its_inner_blocks():
    net = Net()
    x = net.x()
    inner = net.block(1, net.w("first", x))
    net.add("z", net.w("short", x), inner)
    assert net.zeros() == {"B1", "FIRST"}


@pytest.mark.parametrize("what", ["parameter", "constant", "broadcast", "unknown", "itself"])
def test_no_residual_add(what):
    net = Net()
    x = net.x()
    h = net.w("b", net.w("a", x))
    if what == "parameter":
        net._new("p", "parameter", (), (2, 4))
        net.add("y", h, net.f("expanded", "p"))
    elif what == "constant":
        net.add("y", h, net._new("c", "other", (), (2, 4)))
    elif what == "broadcast":
        net.add("y", net.f("mean", x, shape=(1, 4)), h, shape=(2, 4))
    elif what == "unknown":
        net.nodes = [
            Node(n.name, n.kind, n.inputs, None if n.kind != "parameter" else n.shape, n.weights)
            for n in net.nodes
        ]
        net.add("y", x, h)
    else:
        net.add("y", h, h)
    assert net.zeros() == set()


def test_a_weight_used_twice():
    """In two branches, and once more where it would be transit."""
    net = Net()
    x = net.x()
    first = net.w("w", net.w("a", x))
    y = net.add("y1", x, first)
    y = net.add("y2", y, net.again("w2", "W", y))
    net.again("w3", "W", y)
    found = explain_roles(Graph(net.nodes))["W"]
    assert found.role == "zero"
    assert found.why == (
        "last of the branch w, which y1 adds to x",
        "last of the branch w2, which y2 adds to y1",
        "used elsewhere too, where it would be transit",
    )


def test_heads():
    net = Net()
    x = net.block(1, net.x())
    head = net.f("softmax", net.w("head", net.f("norm", x)))
    found = explain_roles(Graph(net.nodes, [head, x]))
    assert {name for name, role in found.items() if role.head} == {"HEAD"}


def test_a_hidden_state_that_is_returned_is_no_head():
    """As keys and values for a cache are, or features, or the statistics of a batch."""
    net = Net()
    hidden = net.w("hidden", net.x())
    mean = net.f("mean", hidden, shape=(4,))
    net.w("head", hidden)
    found = explain_roles(Graph(net.nodes, ["head", mean, hidden]))
    assert {name for name, role in found.items() if role.head} == {"HEAD"}


def test_overrides_of_roles():
    net = Net()
    net.block(1, net.x())
    graph = Graph(net.nodes)
    assert infer_roles(graph, overrides={"B1": "transit"}) == {"A1": "transit", "B1": "transit"}
    with pytest.raises(GraphError, match="the graph's weights are A1, B1; name one of them"):
        infer_roles(graph, overrides={"b1": "transit"})
    with pytest.raises(OptionError, match="overrides = 'best', but it should be one of"):
        infer_roles(graph, overrides={"B1": "best"})
    with pytest.raises(OptionTypeError, match="it should be a Graph"):
        infer_roles([X])


def test_lists_are_as_good_as_tuples():
    node = Node("h", "weight", ["x"], [2, 4], ["w"])
    assert node == Node("h", "weight", ("x",), (2, 4), ("w",))
    assert hash(node)
    for wrong in ({"inputs": None}, {"inputs": "x"}, {"shape": "ab"}, {"shape": 3}):
        with pytest.raises(OptionTypeError, match="it should be a tuple"):
            Node("h", **wrong)
    with pytest.raises(ShapeError):
        Node("h", shape=(2, -4))


X, P = Node("x", "input", shape=(2, 4)), Node("p", "parameter", shape=(4, 4))


@pytest.mark.parametrize(
    ("nodes", "outputs", "error", "says"),
    [
        ([X, X], [], GraphError, "its name stands twice"),
        ([Node("y", "other", ("x",)), X], [], GraphError, "it uses 'x', which is not before it"),
        ([X, Node("y", "add", ("x",))], [], GraphError, "it adds two tensors"),
        ([X, Node("y", "weight", ("x",))], [], GraphError, "has weights"),
        ([X, P, Node("y", "other", ("x",), weights=("p",))], [], GraphError, "has weights"),
        ([X, Node("y", "weight", ("x",), weights=("x",))], [], GraphError, "'x' is no parameter"),
        ([X, Node("y", "best", ("x",))], [], GraphError, "kind 'best' is none of input"),
        ([X], ["y"], GraphError, "there is no such node"),
        ([X], "x", OptionTypeError, "outputs = 'x', but it should be a list"),
        (None, [], OptionTypeError, "nodes = None, but it should be a list"),
        ([Node("x", "input", use="wgt")], [], GraphError, "use 'wgt' is none of weight"),
        ([X, Node("y", "input", ("x",))], [], GraphError, "is computed from nothing"),
        ([X, Node("p", "parameter", ("x",))], [], GraphError, "is computed from nothing"),
        (["x"], [], OptionTypeError, "every one should be a Node"),
    ],
)
def test_what_is_no_graph(nodes, outputs, error, says):
    with pytest.raises(error, match=says):
        Graph(nodes, outputs)


def test_a_graph_cannot_be_changed():
    graph = Graph([X, P], ["x"])
    with pytest.raises(AttributeError):
        graph.nodes = ()
    assert (graph.parameters, graph.weights) == (("p",), ())
    assert hash(X) == hash(Node("x", "input", shape=(2, 4)))
    assert (ir.Graph, ir.Node, ir.infer_roles) == (Graph, Node, infer_roles)


# All paths ---------------------------------------------------------------------------------------


class Paths:
    """Section 6 by enumeration: every way back from both sides of every add."""

    def __init__(self, graph):
        self.nodes = {node.name: node for node in graph.nodes}
        self.order = [node.name for node in graph.nodes]
        self.jumps = {}  # of residual adds: the skip, and what lies behind the branch
        self.claims = {}
        for node in graph.nodes:
            if node.kind == "add":
                self.judge(node)

    def steps(self, name):
        node = self.nodes[name]
        for to, weights in self.jumps.get(name, [(to, 0) for to in node.inputs]):
            if self.is_signal(to):
                yield to, [name] * (node.kind == "weight") + ["inside a branch"] * weights

    def is_signal(self, name):
        node = self.nodes[name]
        return node.kind == "input" or any(True for _ in self.steps(name))

    def ways(self, name, stops):
        """Yield every path as the node where it ends and the weights that it crosses."""
        yield name, []
        if name not in stops:
            for to, crossed in self.steps(name):
                for end, more in self.ways(to, stops):
                    yield end, crossed + more

    def judge(self, add):
        shape = add.shape
        sides = add.inputs
        if sides[0] == sides[1] or shape is None or not all(map(self.is_signal, sides)):
            return
        if any(self.nodes[side].shape != shape for side in sides):
            return
        stops = set()
        while True:
            reached = [{}, {}]
            for side, found in zip(sides, reached, strict=True):
                for end, crossed in self.ways(side, stops):
                    found.setdefault(end, []).append(crossed)
            both = [name for name in self.order if name in reached[0] and name in reached[1]]
            new = [
                name
                for name in both
                if name not in stops
                and self.nodes[name].shape == shape
                and any(not crossed for found in reached for crossed in found[name])
            ]
            if not new:
                break
            stops.add(new[-1])
        ancestors = [[], []]
        for name in stops:
            for skip in (0, 1):
                plain = any(not crossed for crossed in reached[skip][name])
                if plain and any(reached[1 - skip][name]):
                    ancestors[skip].append(name)
        if not stops and both:
            longest = [max(map(len, found[both[-1]])) for found in reached]
            if longest[0] != longest[1]:
                ancestors[longest[0] > longest[1]].append(both[-1])
        for skip in (0, 1):
            for end, crossed in self.ways(sides[1 - skip], set(ancestors[skip])):
                if end in ancestors[skip] and crossed and crossed[0] != "inside a branch":
                    self.claims.setdefault(crossed[0], set()).add(add.name)
        if bool(ancestors[0]) != bool(ancestors[1]):
            skip = int(bool(ancestors[1]))
            self.jumps[add.name] = [(sides[skip], 0)] + [
                (name, max(map(len, reached[1 - skip][name]))) for name in ancestors[skip]
            ]


@st.composite
def graphs(draw):
    """Small computations of every kind of node; most shapes are alike."""
    nodes = [Node("x0", "input", shape=(2, 4)), Node("P", "parameter", shape=(4, 4))]
    if draw(st.booleans()):
        nodes.append(Node("x1", "input", shape=(2, 4)))
    signals = [node.name for node in nodes if node.kind == "input"]
    for number in range(draw(st.integers(3, 14))):
        kind = draw(st.sampled_from(["weight", "add", "add", "other"] * 3 + ["constant"]))
        shape = draw(st.sampled_from([(2, 4)] * 9 + [(2, 8)]))
        recent = st.sampled_from(signals[-3:]) | st.sampled_from(signals)
        name = f"{kind}{number}"
        if kind == "weight":
            node = Node(name, "weight", (draw(recent),), shape, weights=("P",))
        elif kind == "add":
            node = Node(name, "add", (draw(recent), draw(recent)), shape)
        elif kind == "other":
            node = Node(name, "other", tuple(draw(st.lists(recent, min_size=1, max_size=2))), shape)
        else:
            node = Node(name, "other", ("P",), shape)
        nodes.append(node)
        signals.append(name)
    return Graph(nodes)


@settings(max_examples=300)
@given(graphs())
def test_random_graphs_against_all_paths(graph):
    search, paths = _Search(graph), Paths(graph)
    names = [node.name for node in graph.nodes]
    found = {
        names[at]: {text.split("which ")[1].split(" adds")[0] for text in why}
        for at, why in search.claims.items()
    }
    assert found == paths.claims
    assert {names[at] for at in search.residual} == set(paths.jumps)


@pytest.mark.nightly
@settings(max_examples=10_000)
@given(graphs())
def test_many_random_graphs_against_all_paths(graph):
    test_random_graphs_against_all_paths.hypothesis.inner_test(graph)


def test_an_ancestor_that_is_a_weight_operation_is_not_of_the_branch():
    """Two sums of the same two products: of y only W5 is the last weight of a branch."""
    shape = (2, 4)
    nodes = [
        Node("x", "input", shape=shape),
        *(Node(name, "parameter", shape=(4, 4)) for name in ("W0", "W1", "W5")),
        Node("w0", "weight", ("x",), shape, weights=("W0",)),
        Node("w1", "weight", ("x",), shape, weights=("W1",)),
        Node("one", "add", ("w0", "w1"), shape),
        Node("two", "add", ("w1", "w0"), shape),
        Node("w5", "weight", ("one",), shape, weights=("W5",)),
        Node("twice", "add", ("one", "one"), shape),
        Node("inner", "add", ("two", "w5"), shape),
        Node("y", "add", ("twice", "inner"), shape),
    ]
    roles = infer_roles(Graph(nodes))
    assert roles == {"W0": "transit", "W1": "transit", "W5": "zero"}


def stack(blocks):
    net = Net()
    nodes, x = [Node("x", "input", shape=(2, 4))], "x"
    for k in range(blocks):
        net.nodes = []
        net._new("before", "input", (), (2, 4))
        net.block(k, "before")
        nodes += [
            Node(
                n.name,
                n.kind,
                tuple(x if i == "before" else i for i in n.inputs),
                n.shape,
                n.weights,
            )
            for n in net.nodes[1:]
        ]
        x = f"y{k}"
    return Graph(nodes, [x])


def test_the_cost_is_linear_in_the_blocks():
    one, two, four = (stack(k) for k in (100, 200, 400))
    costs = [calls(lambda graph=graph: explain_roles(graph)) for graph in (one, two, four)]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.05)
    zeros = [name for name, role in infer_roles(four).items() if role == "zero"]
    assert zeros == [f"B{k}" for k in range(400)]
