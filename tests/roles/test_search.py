"""Roles from the computation: named structures, written by hand."""

from __future__ import annotations

import pytest

from computations import Net
from cost import calls
from idinit_ref.errors import GraphError, OptionError, OptionTypeError
from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import explain_roles, infer_roles


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


def test_a_branch_that_takes_its_values_from_elsewhere():
    """A decoder asks a memory for values; its branch is a residual sum of these, not of x."""
    net = Net()
    m, x = net.x("m"), net.x("x")
    h = net.attend("t", net.w("q", x), net.w("k", m), net.w("v", m))
    h = net.w("o", h)
    net.add("y2", x, net.add("y1", h, net.w("more", h)))
    assert net.zeros() == {"O"}


def test_attention_and_a_gated_unit():
    net = Net()
    x = net.x()
    n = net.f("n", x)
    q, k, v = net.w("q", n), net.w("k", n), net.w("v", n)
    x = net.add("y1", x, net.w("o", net.attend("mix", q, k, v)))
    n = net.f("m", x)
    net.add("y2", net.w("down", net.mul("mul", net.f("silu", net.w("gate", n)), net.w("up", n))), x)
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
    (tie,) = found.notes
    assert (tie.kind, tie.names) == ("tie", ("A", "B"))


def test_a_sum_of_branches_of_one_weight_is_no_tie():
    """Its roles could not make one of them small: two calls of one encoder, and their losses."""
    net = Net()
    x = net.x()
    net.add("s", net.w("a", net.f("n", x)), net.again("b", "A", net.f("m", x)))
    assert not explain_roles(Graph(net.nodes)).notes


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
    cut = net.f("cut", x, shape=(1, 4), does="crop")
    net.add("y", net.f("pad", cut, shape=(1, 8), does="pad"), main)
    assert net.zeros() == {"C2"}


def test_low_rank_pairs_beside_a_weight():
    net = Net()
    x = net.x()
    net.add("y", net.w("w", x), net.f("scale", net.w("b", net.w("a", x, shape=(2, 1)))))
    assert net.zeros() == {"B"}


def test_a_gate_at_the_end_of_a_branch_never_vanishes():
    """Squeeze and excite: sigmoid(0) is a half, so the convolution alone ends the branch."""
    net = Net()
    x = net.x()
    h = net.w("c2", net.w("c1", x))
    gate = net.w("e2", net.w("e1", net.f("pool", h, does="pool")))
    net.add("y", net.mul("mul", h, net.sigmoid("sigmoid", gate)), x)
    assert net.zeros() == {"C2"}


@pytest.mark.parametrize("kept", ["z * h + (1 - z) * n", "(1 - z) * n + z * h"])
def test_a_gate_on_the_skip(kept):
    """A highway, and a GRU's update: no weight alone makes the sum the skip."""
    net = Net()
    h = net.x()
    z = net.sigmoid("z", net.w("wz", h))
    rest = net.f("1 - z", z, does="shift", vanishes="never")
    n = net.f("n", net.w("wn", net.mul("r", h, net.sigmoid("s", net.w("wr", h)))))
    sides = net.mul("zh", z, h), net.mul("zn", rest, n)
    net.add("y", *sides[:: 1 if kept[0] == "z" else -1])
    assert net.zeros() == set()
    assert "a skip that is multiplied" in net.notes()["gate"].text


def test_notes_that_say_the_same_of_the_same_weights_are_one():
    """Of a cell there is one fact to know, however many steps it takes; of two cells, two."""
    net = Net()
    adds = {}
    for cell in "ab":
        h, adds[cell] = net.x(f"x{cell}"), []
        for t in range(20):
            name = f"{cell}{t}"
            for gate in "zn":
                shared = f"{gate}{cell}".upper()
                net.again(f"{gate}{name}", shared, h) if t else net.w(shared.lower(), h)
            z, n = (f"{gate}{name if t else cell}" for gate in "zn")
            z, n = net.sigmoid(f"s{name}", z), net.f(f"t{name}", n)
            rest = net.f(f"r{name}", z, does="shift", vanishes="never")
            h = net.add(f"h{name}", net.mul(f"k{name}", z, h), net.mul(f"m{name}", rest, n))
            adds[cell].append(h)
    notes = [note for note in explain_roles(net.graph()).notes if note.kind == "gate"]
    assert [note.names for note in notes] == [("NA",), ("NB",)]
    for note, own in zip(notes, adds.values(), strict=True):
        first, *others = own
        assert note.text.startswith(f"{first} adds ")
        assert note.text.endswith(f"the same at {', '.join(others[:5])} and 14 more")


def test_notes_on_nodes_that_differ_in_their_names_alone_are_one():
    net = Net()
    x = net.x()
    for k, kind in enumerate(["sigmoid", "sigmoid", "exp"]):
        x = net.add(f"y{k}", x, net.sigmoid(f"{k}: {kind}", net.w(f"w{k}", x)))
    one, other = explain_roles(net.graph(x)).notes
    assert (one.names, other.names) == (("y0", "y1"), ("y2",))
    assert one.text.endswith("0: sigmoid is not 0 where its inputs are; the same at y1")
    assert other.text.endswith("2: exp is not 0 where its inputs are")


def test_a_gate_on_the_skip_that_another_input_computes_is_none():
    """Whatever it is, the sum is the skip where the branch is zero."""
    net = Net()
    x = net.x()
    scaled = net.mul("scaled", x, net.sigmoid("gate", net.w("c", net.x("t"))))
    net.add("y", scaled, net.w("b", net.w("a", x)))
    assert net.zeros() == {"B"}


def test_a_gate_before_the_end_is_not():
    net = Net()
    x = net.x()
    h = net.w("c1", x)
    gate = net.sigmoid("sigmoid", net.w("e2", net.w("e1", net.f("pool", h, does="pool"))))
    net.add("y", net.w("c2", net.mul("mul", h, gate)), x)
    assert net.zeros() == {"C2"}


def test_after_a_gate_an_activation_that_adds_is_no_branch():
    """The sum inside tanh-GELU: u + 0.04 u^3, with u computed by way of a gate."""
    net = Net()
    h = net.x()
    u = net.mul("mul", h, net.sigmoid("sigmoid", net.w("e", h)))
    net.f("tanh", net.add("sum", u, net.f("cube", u, does="product", vanishes=())))
    assert net.zeros() == set()
    assert not net.notes()


def test_rotary_positions_are_no_branch():
    net = Net()
    cos, sin = net.x("cos"), net.x("sin")
    q = net.w("q", net.x())
    net.add("r", net.mul("qc", q, cos), net.mul("rs", net.f("rotate", q, does="move"), sin))
    assert net.zeros() == set()


def test_a_position_bias_that_all_layers_share_is_no_skip():
    """As in T5: it reaches later scores through earlier layers, but not as their stream."""
    net = Net()
    bias, x = net.x("bias", (2, 2)), net.x()
    for k in range(3):
        q, key = net.w(f"q{k}", x), net.w(f"k{k}", x)
        square = {"shape": (2, 2), "does": "contract", "vanishes": (0, 1)}
        scores = net.add(f"s{k}", net.f(f"qk{k}", q, key, sums=(0, 1), **square), bias)
        p = net.f(f"p{k}", scores, does="softmax", vanishes="never")
        mix = net.f(f"mix{k}", p, net.w(f"v{k}", x), **square | {"shape": (2, 4)})
        x = net.add(f"y{k}", x, net.w(f"o{k}", mix))
    assert net.zeros() == {"O0", "O1", "O2"}


def test_cross_attention():
    net = Net()
    states = net.block(0, net.x("source"))
    y = net.block(1, net.x("target"))
    k = net.w("k", states)
    mix = net.attend("mix", net.w("q", y), k, net.w("v", states))
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


def test_a_stream_that_a_projection_is_added_to():
    """The stream is the skip, however deep it is: its entry stays transit."""
    net = Net()
    x = net.x()
    inner = net.block(1, net.w("first", x))
    net.add("z", net.w("short", x), inner)
    assert net.zeros() == {"B1", "SHORT"}


@pytest.mark.parametrize("rows", [6, 4], ids=["all", "some"])
def test_rows_that_a_mask_selects_are_a_skip_if_they_are_all(rows):
    """As a layer that applies one MLP to the tokens of text, and another to those of audio."""
    net = Net()
    net._new("x", "input", (), (2, 3, 4))
    read, kept = (net.f(name, "x", shape=(rows, 4), does="select") for name in ("read", "kept"))
    net.add("y", kept, net.w("a", read, shape=(rows, 4)), shape=(rows, 4))
    assert net.zeros() == ({"A"} if rows == 6 else set())


@pytest.mark.parametrize("what", ["parameter", "constant", "broadcast", "unknown", "itself"])
def test_no_residual_add(what):
    net = Net()
    x = net.x()
    h = net.w("b", net.w("a", x))
    if what == "parameter":
        net._new("p", "parameter", (), (2, 4))
        net.add("y", h, net.f("expanded", "p", does="move"))
    elif what == "constant":
        net.add("y", h, net._new("c", "other", (), (2, 4)))
    elif what == "broadcast":
        net.add("y", net.f("mean", x, shape=(1, 4), does="pool"), h, shape=(2, 4))
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
    normed = net.f("norm", x, does="norm")
    head = net.f("softmax", net.w("head", normed), does="softmax", vanishes="never")
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
        infer_roles([])


def test_what_a_skip_is_made_of_too_ends_no_branch():
    """Two sums of the same two products: only W5 ends a branch."""
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
    x = net.x()
    for k in range(blocks):
        x = net.block(k, x)
    return net.graph(x)


def fan(terms):
    """Sums of many branches of two weights: first all branches, then one add after the other."""
    net = Net()
    x = net.x()
    ends = [net.w(f"b{k}", net.w(f"a{k}", x)) for k in range(terms)]
    y = ends[0]
    for k in range(1, terms):
        y = net.add(f"y{k}", y, ends[k])
    return net.graph(y)


def on_a_stream(terms):
    """As `fan`, but added to what they come from."""
    net = Net()
    y = x = net.x()
    for k in range(terms):
        y = net.add(f"y{k}", y, net.w(f"b{k}", net.w(f"a{k}", x)))
    return net.graph(y)


def conditioned(terms):
    """Blocks that one input is added to, inside and on the stream, as positions are."""
    net = Net()
    x, p = net.x(), net.x("p")
    t = net.w("t", p)
    conditions = [net.w(f"c{k}", t) for k in range(terms)]
    for k in range(terms):
        h = net.w(f"a{k}", net.add(f"q{k}", x, p))
        x = net.add(f"y{k}", x, net.w(f"b{k}", net.add(f"h{k}", h, conditions[k])))
    return net.graph(x)


def all_layers(count):
    """A chain whose layers are all summed after it (jumping knowledge)."""
    net = Net()
    x, layers = net.x(), []
    for k in range(count):
        layers.append(net.w(f"b{k}", layers[-1] if layers else x))
    total = layers[0]
    for k, layer in enumerate(layers[1:]):
        total = net.add(f"y{k}", total, layer)
    return net.graph(total)


def linear_attentions(count):
    """Blocks of linear attention that share their weights."""
    net = Net()
    x = net.x()
    for k in range(count):
        h = net.f(f"n{k}", x, does="norm")
        if k:
            q, key, v = (net.again(f"{name}{k}", f"{name.upper()}0", h) for name in "qkv")
        else:
            q, key, v = (net.w(f"{name}{k}", h) for name in "qkv")
        scores = net.f(f"s{k}", q, key, does="contract", vanishes=(), sums=(0, 1))
        x = net.add(f"y{k}", x, net.f(f"z{k}", scores, v, does="contract", vanishes=(1,)))
    return net.graph(x)


def newest_first(count):
    """Residual blocks whose results are all summed behind the last one."""
    net = Net()
    results = [net.x()]
    for k in range(count):
        results.append(net.block(k, results[-1]))
    total = results[-1]
    for k, result in enumerate(results[-2::-1]):
        total = net.add(f"z{k}", total, result)
    return net.graph(total)


def long_skips(count):
    """Blocks, and then one for each of them that adds its result again, the newest first."""
    net = Net()
    results = [net.x()]
    for k in range(count):
        results.append(net.block(k, results[-1]))
    total = results[-1]
    for k, result in enumerate(results[:0:-1]):
        total = net.add(f"z{k}", net.block(count + k, total), result)
    return net.graph(total)


def losses(count):
    """Residual blocks with a head each, whose results are summed."""
    net = Net()
    x, heads = net.x(), []
    for k in range(count):
        x = net.block(k, x)
        heads.append(net.w(f"h{k}", x))
    total = heads[0]
    for k, head in enumerate(heads[1:]):
        total = net.add(f"z{k}", total, head)
    return net.graph(total)


def at_once_and_later(count):
    """Layers that are added to a sum twice: at once, and when all are there."""
    net = Net()
    total, layers = net.x(), []
    for k in range(count):
        layers.append(net.f(f"f{k}", net.w(f"b{k}", total)))
        total = net.add(f"y{k}", total, layers[-1])
    for k, layer in enumerate(layers):
        total = net.add(f"z{k}", total, layer)
    return net.graph(net.w("out", total))


def half_as_far(count):
    """Layers that are added to a sum, each with the layer half as far from the start."""
    net = Net()
    total, layers = net.x(), ["x"]
    for k in range(count):
        layers.append(net.w(f"b{k}", net.f(f"f{k}", total, does="scale")))
        total = net.add(f"y{k}", layers[-1], total)
        total = net.add(f"z{k}", total, layers[len(layers) // 2])
    return net.graph(total)


def grid(count):
    """Rows of five sums, each of the sum above and of a layer of the one to the left."""
    net = Net()
    row = [net.x()]
    for k in range(5):
        row.append(net.w(f"r{k}", row[-1]))
    for k in range(count):
        new = [net.w(f"c{k}", row[0])]
        for at, above in enumerate(row[1:]):
            new.append(net.add(f"y{k}.{at}", above, net.w(f"b{k}.{at}", new[-1])))
        row = new
    return net.graph(row[-1])


def states(count):
    """The states of a recurrent layer, which are summed behind the last one, the first ones first.

    A sum over states has no skip (section 6).
    """
    net = Net()
    x = net.x("x", (9, 2, 4))
    h = net.f("h0", net.w("w", net.f("x0", x, shape=net.usual, does="select")))
    results = [h]
    for k in range(1, count):
        x_k = net.again(f"w{k}", "W", net.f(f"x{k}", x, shape=net.usual, does="select"))
        h = net.f(
            f"h{k}", net.add(f"p{k}", x_k, net.again(f"u{k}", "U", h) if k > 1 else net.w("u", h))
        )
        results.append(h)
    total = results[0]
    for k, result in enumerate(results[1:]):
        total = net.add(f"y{k}", total, result)
    return net.graph(total)


SUMS = [newest_first, long_skips, losses]
AGAIN = [at_once_and_later, half_as_far, grid, states]
MAKERS = [stack, fan, on_a_stream, conditioned, all_layers, linear_attentions, *SUMS]


@pytest.mark.parametrize("make", MAKERS)
def test_the_cost_is_linear(make):
    one, two, four = (make(k) for k in (50, 100, 200))
    costs = [calls(lambda graph=graph: explain_roles(graph)) for graph in (one, two, four)]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.1)
    zeros = {name for name, role in infer_roles(four).items() if role == "zero"}
    blocks = {f"B{k}" for k in range(400 if make == long_skips else 200)}
    others = {fan: set(), all_layers: {"B1"}, linear_attentions: {"V0"}}
    assert zeros == others.get(make, blocks | ({"H199"} if make == losses else set()))


@pytest.mark.parametrize("make", AGAIN)
def test_the_cost_of_sums_of_what_was_summed_before_is_linear(make):
    one, two, four = (make(k) for k in (50, 100, 200))
    costs = [calls(lambda graph=graph: explain_roles(graph)) for graph in (one, two, four)]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.1)


def test_a_weight_that_no_output_reads_opens_no_region():
    """A projection: the unread product of what lies between changes nothing."""

    def zeros(dead):
        net = Net()
        source = net.w("a", net.x())
        inner = net.f("tanh", net.w("b", source))
        if dead:
            net.w("dead", inner)
        net.w("out", net.add("y", net.w("short", source), net.w("c", inner)))
        return net.zeros("out"), net.roles("out").get("DEAD")

    assert zeros(False) == ({"C"}, None)
    assert zeros(True) == ({"C"}, "transit")
