"""Structures of real models, as a tracer draws them: which weights are zero, and what is said."""

from __future__ import annotations

import pytest

from computations import Net
from cost import calls
from idinit_ref.core.weights import plan
from idinit_ref.roles.decide import decide
from idinit_ref.roles.graph import Graph, Node
from idinit_ref.roles.search import explain_roles
from idinit_ref.roles.unread import unread

SMALL, LARGE = (1, 8, 4, 4), (1, 8, 8, 8)


def up(net, name, x):
    return net.f(name, x, shape=LARGE, does="resize")


@pytest.mark.parametrize("order", [1, -1])
def test_a_level_of_a_pyramid(order):
    """FPN, DPT: neither level is a change of the other."""
    net = Net(LARGE)
    low = net.f("low", net.w("c1", net.x()))
    high = net.f("high", net.w("c2", low, shape=SMALL))
    top = up(net, "up", net.w("inner2", high, shape=SMALL))
    net.w("out", net.add("y", *[net.w("inner1", low), top][::order]))
    assert net.zeros("out") == set()
    assert net.notes("out")["pyramid"].names == ("INNER2",)


@pytest.mark.parametrize(
    ("before", "after", "is_level"),
    [
        ((1, 32, 4, 4), LARGE, True),
        ((1, 4, 8, 16), (1, 4, 16, 8), False),
        ((4, 8, 4, 4), LARGE, False),
        ((1, 8, 1, 1), LARGE, False),
    ],
    ids=["pixels shuffled", "transposed", "windows put together", "spread"],
)
def test_channels_that_moves_lay_out_in_space_are_a_level(before, after, is_level):
    """Also if a reshape, a transpose and a reshape do it."""
    net = Net(after)
    low = net.f("low", net.w("c1", net.x()))
    deep = net.w("inner2", net.f("high", net.w("c2", low, shape=before)), shape=before)
    parts = net.f("parts", deep, shape=(1, 8, 2, 2, 4, 4), does="move")
    top = net.f("whole", parts, shape=after, does="move")
    net.w("out", net.add("y", net.w("inner1", low), top))
    assert net.zeros("out") == (set() if is_level else {"INNER2"})
    assert ("pyramid" in net.notes("out")) == is_level


def test_a_vector_whose_channels_move_is_no_level():
    """A condition, made of another input and added at every place."""
    net = Net(LARGE)
    low = net.f("low", net.w("c1", net.x()))
    vector = net.w("t", net.x("time", shape=(1, 3)), shape=(1, 2, 4))
    moved = net.f("moved", vector, shape=(1, 8, 1), does="move")
    shift = net.f("spread", moved, shape=LARGE, does="move")
    deep = net.f("relu", net.add("shifted", net.w("c2", low), shift))
    net.w("out", net.add("y", net.w("s", low), net.w("c3", deep)))
    assert net.zeros("out") == {"C3"}
    assert "pyramid" not in net.notes("out")


def test_levels_that_are_results_of_their_own():
    """The deeper level of a feature pyramid feeds a head too: no closed region, and no note."""
    net = Net(LARGE)
    low = net.f("low", net.w("c1", net.x()))
    high = net.f("high", net.w("c2", low, shape=SMALL))
    inner = net.w("inner2", high, shape=SMALL)
    net.w("out2", inner, shape=SMALL)
    net.w("out1", net.add("y", net.w("inner1", low), up(net, "up", inner)))
    assert net.zeros("out1", "out2") == set()
    assert not net.notes("out1", "out2")


def test_a_residual_block_that_upsamples_is_no_level():
    """Both sides are resized, as in the generator of a GAN."""
    net = Net(LARGE)
    x = net.f("x0", net.w("c0", net.x(shape=SMALL), shape=SMALL))
    main = net.w("c2", net.f("relu", net.w("c1", up(net, "up1", x))))
    net.w("out", net.add("y", net.w("short", up(net, "up2", x)), main))
    assert net.zeros("out") == {"C2"}


def test_content_and_position_of_a_query():
    """DAB-DETR: a query is no stream, although both of its terms come from the same anchors."""
    net = Net()
    anchors, memory = net.x("anchors"), net.x("memory")
    p = net.f("relu", net.w("pos", anchors))
    start = net.f("tanh", net.w("start", p))
    x = net.f("norm", net.w("mix", net.mul("product", p, start)), does="norm")
    q = net.add("q", net.w("content", x), net.w("position", p))
    mixed = net.attend("mixed", q, net.w("k", memory), net.w("v", memory))
    y = net.f("norm2", net.add("y", x, net.w("o", mixed)), does="norm")
    assert net.zeros(y) == {"O"}


def test_features_that_are_injected_late():
    """Deepstack: the entry of the stream stays transit."""
    net = Net()
    early = net.f("early", net.w("patch", net.x()))
    late = net.add("late", early, net.w("vis", net.f("tanh", early)))
    stream = net.w("merger", late)
    stream = net.add("s1", stream, net.w("o", net.f("tanh2", stream)))
    y = net.add("s2", stream, net.w("inject", early))
    assert net.zeros(y) == {"VIS", "O", "INJECT"}


def test_learned_latents():
    """A learned tensor is the skip of its first block."""
    net = Net()
    x = net.x()
    z = net.f("expand", net.x("latents", (1, 2, 4)), shape=(1, 2, 4), does="move")
    for k in (1, 2):
        mixed = net.attend(f"t{k}", net.w(f"q{k}", z), net.w(f"k{k}", x), net.w(f"v{k}", x))
        z = net.add(f"z{k}", z, net.w(f"o{k}", mixed))
    assert net.zeros(z) == {"O1", "O2"}


def test_positions_that_every_layer_adds_are_no_source():
    """DETR, SAM: the stream is the skip, and its entry stays transit."""
    net = Net()
    pos, x = net.x("pos"), net.w("entry", net.x("image"))
    for k in (1, 2):
        at = net.add(f"p{k}", x, pos)
        mixed = net.attend(f"t{k}", net.w(f"q{k}", at), net.w(f"k{k}", at), net.w(f"v{k}", x))
        x = net.f(f"n{k}", net.add(f"x{k}", x, net.w(f"o{k}", mixed)), does="norm")
    y = net.w("head", net.add("last", x, pos))
    assert net.zeros(y) == {"O1", "O2"}


@pytest.mark.parametrize("first", ["mask", "x"])
@pytest.mark.parametrize("how", ["mask", "masked before", "gate"])
def test_a_mask_or_a_gate_on_both_sides_parts_nothing(first, how):
    net = Net()
    for name in ("mask", "x") if first == "mask" else ("x", "mask"):
        net.x(name, (2, 1) if name == "mask" else None)
    x = "x"
    if how == "masked before":
        x = net.mul("xm", "x", "mask")
    short = net.w("short", x)
    main = net.w("down", net.f("relu", net.w("up", x)))
    left, right = "mask", "mask"
    if how == "gate":
        left = net.sigmoid("g", net.w("wg", x))
        right = net.f("1 - g", left, does="shift", vanishes="never")
    y = net.add("y", net.mul("s", short, left), net.mul("m", main, right))
    assert net.zeros(net.w("out", y)) == {"DOWN"}


def test_pieces_that_are_added_to_each_other():
    """Res2Net: no piece is a copy of what another one is computed from."""
    net = Net()
    x = net.x()
    whole = net.w("i", x)
    pieces = [net.f(f"p{k}", whole, shape=(2, 1), does="select") for k in range(4)]
    y, out = net.f("r0", net.w("c0", pieces[0], shape=(2, 1))), [pieces[3]]
    for k in (1, 2):
        out.append(y)
        y = net.f(f"r{k}", net.w(f"c{k}", net.add(f"s{k}", y, pieces[k]), shape=(2, 1)))
    net.add("y", x, net.w("o", net.f("cat", *out, y, shape=(2, 4), does="join")))
    assert net.zeros() == {"O"}


def test_a_sum_of_losses():
    net = Net()
    x = net.x()
    h = net.f("relu", net.w("a", x))
    losses = []
    for name in ("probe1", "probe2"):
        error = net.f(f"error {name}", net.w(name, h), x)
        square = net.f(f"square {name}", error, does="product", vanishes=())
        losses.append(net.f(f"mean {name}", square, shape=(), does="pool"))
        h = net.f(f"relu {name}", net.w(f"b {name}", h))
    assert net.zeros(h, net.add("loss", *losses)) == set()


def test_two_streams_that_feed_each_other():
    net = Net()
    x = net.x()
    m, z = net.w("i", x), net.w("l", x)
    for k in range(3):
        both = net.f(f"cat{k}", m, z, shape=(2, 8), does="join")
        m = net.add(f"m{k}", m, net.w(f"a{k}", both))
        z = net.add(f"z{k}", z, net.w(f"b{k}", net.f(f"tanh{k}", m)))
        z = net.add(f"zz{k}", z, net.w(f"c{k}", net.f(f"tan{k}", z)))
    zeros = {f"{letter}{k}" for letter in "ABC" for k in range(3)}
    assert net.zeros(net.w("o1", z), net.w("o2", m)) == zeros


@pytest.mark.parametrize(
    ("how", "zeros", "says"),
    [
        ("h", {"B"}, None),
        ("x * sigmoid(h)", set(), "s is not 0 where its inputs are"),
        ("softplus(h)", set(), "softplus is not 0 where its inputs are"),
        ("(h - x) / 2", set(), "it holds its source itself"),
        ("h * h", set(), "square vanishes to second order only, as its factors vanish together"),
        ("h * sigmoid(h)", {"B"}, None),
        ("h + t", set(), "t enters it over no weight"),
        ("h + zeros", {"B"}, None),
        ("h * g", {"B"}, None),
        ("h * tanh(h)", set(), "swish vanishes to second order only"),
        ("x * h squared", set(), "square vanishes to second order only"),
        ("h squared", set(), "square vanishes to second order only"),
    ],
)
def test_what_a_branch_ends_in(how, zeros, says):
    net = Net()
    x = net.x()
    h = net.w("b", net.f("relu", net.w("a", x)))
    end = {
        "h": lambda: h,
        "x * sigmoid(h)": lambda: net.mul("gated", x, net.sigmoid("s", h)),
        "softplus(h)": lambda: net.f("softplus", h, vanishes="never"),
        "(h - x) / 2": lambda: net.f("half", net.f("minus", h, x), does="scale"),
        "h * h": lambda: net.f("square", h, does="product", vanishes=()),
        "h squared": lambda: net.f("square", h, does="product"),
        "x * h squared": lambda: net.mul("gated", x, net.f("square", h, does="product")),
        "h * sigmoid(h)": lambda: net.mul("swish", h, net.sigmoid("s", h)),
        "h + t": lambda: net.add("sum", h, net.x("t")),
        "h + zeros": lambda: net.add("sum", net._new("zeros", "other", (), (2, 4)), h),
        "h * g": lambda: net.mul("product", net.w("g", x), h),  # the longer way, of two alike
        "h * tanh(h)": lambda: net.mul("swish", h, net.f("tanh", h)),
    }[how]()
    y = net.add("y", x, end)
    assert net.zeros(y) == zeros
    notes = net.notes(y)
    assert set(notes) == ({"endless"} if says else set())
    assert not says or says in notes["endless"].text


def test_a_norm_at_the_end_of_a_branch():
    net = Net()
    x = net.x()
    h = net.w("down", net.f("silu", net.w("up", net.f("pre", x, does="norm"))))
    y = net.add("y", x, net.f("post", h, does="norm"))
    assert net.zeros(y) == {"DOWN"}
    norm = net.notes(y)["norm"]
    assert norm.names == ("DOWN",)
    assert "(post)" in norm.text


def test_a_norm_that_is_written_out():
    """x * rsqrt(mean(x^2) + e) * w + b: only the first factor vanishes."""
    net = Net()
    x = net.x()
    h = net.w("w", net.w("u", x))
    square = net.f("square", h, does="product", vanishes=())
    mean = net.f("mean", square, shape=(2, 1), does="pool")
    root = net.f("rsqrt", net.f("e", mean, does="shift", vanishes="never"), vanishes="never")
    normed = net.f("shift", net.f("scale", net.mul("mul", h, root), does="scale"), does="shift")
    y = net.add("y", x, normed)
    assert net.zeros(y) == {"W"}
    assert "(mul)" in net.notes(y)["norm"].text


def test_dynamic_kernels_are_no_weights():
    """CondConv: nothing of the branch vanishes but with all kernels, so nothing is zero."""
    net = Net()
    x = net.w("stem", net.x())
    r = net.sigmoid("r", net.w("route", net.f("pool", x, shape=(2, 1), does="pool")))
    h = x
    for k in range(3):
        kernel = net.f(f"kernel{k}", r, shape=(4, 4), does="scale")
        conv = net.f(f"conv{k}", h, kernel, does="contract", vanishes=(0, 1), shape=(2, 4))
        h = net.f(f"relu{k}", conv)
    y = net.add("y", x, h)
    assert net.zeros(y) == set()
    assert set(net.notes(y)) == {"endless"}


def test_members_that_share_their_input():
    """A map over the members of an ensemble: its axis does not count."""
    net = Net((3, 2, 8))
    x = net.x(shape=(2, 8))
    stacked = {"size": (3, 8, 8), "layout": "EOI"}
    h = net.f("relu", net.w("up", x, **stacked))
    y = net.add("y", x, net.w("down", h, **stacked), shape=(3, 2, 8))
    assert net.zeros(y) == {"DOWN"}


def test_a_broadcast_along_the_batch_is_no_map():
    net = Net((3, 2, 8))
    x = net.x(shape=(2, 8))
    h = net.w("down", net.f("repeat", net.w("up", x, shape=(2, 8)), shape=(3, 2, 8), does="move"))
    assert net.zeros(net.add("y", x, h, shape=(3, 2, 8))) == set()


def test_a_state_space():
    """Its B and C are summed away, and its time step is never 0: x alone would end it."""
    net = Net()
    x = net.x()
    inner = net.f("silu", net.w("in", x))
    step = net.f("step", net.w("dt", inner), vanishes="never")
    b, c = net.w("b", inner), net.w("c", inner)
    state = net.f("state", step, b, inner, does="contract", vanishes=(1, 2))
    scan = net.f("scan", state, c, does="contract", vanishes=(0, 1), sums=(0, 1))
    held = net.add("d", scan, net.f("dx", inner, does="scale"))
    assert net.zeros(net.add("y", x, net.w("out", held))) == {"OUT"}


def test_what_is_zero_anyway_ends_nothing():
    """The first layer of DETR's decoder: what is first added to zeros starts the stream."""
    net = Net()
    queries, zeros = net.x("queries"), net._new("zeros", "other", (), (2, 4))
    mixed = net.attend("t", net.w("q", queries), net.w("k", queries), net.w("v", zeros))
    first = net.f("norm", net.w("o", mixed), does="norm")
    net.w("q2", net.add("at", first, queries))
    mixed = net.attend("t2", net.w("q3", first), net.w("k2", queries), net.w("v2", queries))
    y = net.block(1, net.add("y", first, net.w("o2", mixed)))
    assert net.zeros("q2", y) == {"B1"}
    assert not net.notes("q2", y)


@pytest.mark.parametrize("is_tied", [True, False], ids=["recurrent", "weights of its own"])
def test_the_kernel_of_a_recurrent_cell_ends_no_branch(is_tied):
    """Its last state is used alone. A zero kernel would forget all steps before."""
    net = Net()
    x = net.x(shape=(2, 5, 4))
    h = net.w("w", net.f("x0", x, shape=(2, 4), does="select"))
    for t in range(1, 5):
        row = net.f(f"x{t}", x, shape=(2, 4), does="select")
        first = net.again(f"w{t}", "W", row) if is_tied else net.w(f"w{t}", row)
        next_ = net.again(f"u{t}", "U", h) if t > 1 else net.w("u", h)
        h = net.f(f"h{t}", net.add(f"a{t}", first, next_))
    assert net.zeros(net.w("out", h)) == (set() if is_tied else {"U"})


def test_a_branch_of_which_a_part_is_added():
    """Deformable DETR: two of a box's four numbers are relative to its reference."""
    net = Net()
    reference = net.sigmoid("reference", net.w("r", net.x("queries")))
    h = net.f("relu", net.w("o", net.w("i", reference)))
    part = net.f("part", net.w("box", h, shape=(2, 8)), shape=(2, 4), does="select")
    y = net.add("y", part, net.f("logit", reference, vanishes="never"))
    assert net.zeros(y) == {"BOX"}


def test_a_second_copy():
    """x + (x + f): nothing more is zero, however it is written."""
    net = Net()
    x = net.w("entry", net.x())
    net.add("y", x, net.add("inner", x, net.w("b", net.w("a", x))))
    assert net.zeros() == {"B"}


def test_a_tie_of_many_branches_multiplies_the_signal():
    net = Net()
    x = net.w("entry", net.x())
    y = net.w("t0", x)
    for k in (1, 2, 3):
        y = net.add(f"y{k}", y, net.w(f"t{k}", x))
    assert net.zeros(net.w("out", y)) == set()
    tie = net.notes("out")["tie"]
    assert tie.names == ("T0", "T1", "T2", "T3")
    assert "4 branches" in tie.text
    assert "up to 4-fold" in tie.text


@pytest.mark.parametrize("kind", ["scores", "noise"])
def test_a_sum_that_no_role_makes_small_says_so_or_is_no_tie(kind):
    net = Net()
    x = net.w("entry", net.x())
    one, other = net.w("a", x), net.w("b", x)
    if kind == "noise":
        other = net.f("times", net.f("exp", other, vanishes="never"), does="scale")
    y = net.add("sum", one, other)
    if kind == "scores":
        y = net.mul("mix", x, net.f("exp", net.f("leaky", y), vanishes="never"))
    net.w("out", y)
    assert net.zeros("out") == set()
    notes = net.notes("out")
    assert ("tie" in notes) == (kind == "noise")
    if notes:
        assert notes["tie"].text.endswith("no role makes the branch of exp small")


def test_a_tie_inside_a_branch_is_not_reported():
    net = Net()
    x = net.x()
    inner = net.add("tie", net.w("a", x), net.w("b", x))
    assert net.zeros(net.add("y", x, net.w("o", net.f("relu", inner)))) == {"O"}
    assert not net.notes("y")


def test_nested_zeros_say_their_depth():
    net = Net()
    x = net.x()
    inner = net.block(1, net.w("first", x))
    y = net.add("z", x, net.w("last", inner))
    found = explain_roles(net.graph(y))
    assert found["LAST"].why == ("last of the branch last, which z adds to x",)
    (why,) = found["B1"].why
    assert why.endswith("(depth 2: inside another branch)")


# What nothing reads ------------------------------------------------------------------------------


def joined(rows=8, columns=16, **options):
    net = Net((2, 8))
    x = net.x()
    m = net.f("norm", net.w("inner", net.f("relu", net.w("down", x))), does="norm")
    cat = net.f("cat", x, m, shape=(2, 16), does="join")
    head = net.w("join", net.f("moved", cat, does="move"), shape=(2, rows), size=(rows, columns))
    plans = {"JOIN": plan((rows, columns), **options)}
    return Graph(net.nodes, [head]), plans


def test_a_truncated_weight_reads_the_first_part_of_a_concatenation():
    graph, plans = joined()
    (note,) = unread(graph, plans)
    assert (note.kind, note.names) == ("unread", ("JOIN",))
    assert "norm" in note.text


@pytest.mark.parametrize(
    ("rows", "options"),
    [(8, {"wide": "fold_rms"}), (8, {"role": "zero"}), (16, {}), (9, {})],
    ids=str,
)
def test_all_parts_are_read(rows, options):
    graph, plans = joined(rows, **options)
    assert unread(graph, plans) == ()
    assert unread(graph, {}) == ()


@pytest.mark.parametrize(
    ("options", "wide", "text"),
    [
        (
            {},
            "fold_mean",
            "JOIN: wide='fold_mean' is used; truncated to the first 8 of 16 inputs, norm would",
        ),
        ({"overrides": {"J*": {"gain": 2.0}}}, "fold_mean", "'fold_mean' is used"),
        (
            {"wide": "truncate"},
            "truncate",
            "JOIN: truncated to the first 8 of 16 inputs, so norm starts with gradient 0",
        ),
        ({"overrides": {"JOIN": {"wide": "truncate"}}}, "truncate", "use wide='fold_mean'"),
        ({"wide": "fold_rms"}, "fold_rms", ""),
    ],
    ids=["default", "another override", "truncate", "override", "fold_rms"],
)
def test_a_model_folds_what_reads_a_concatenation(options, wide, text):
    """By default; where its user has chosen for the model or for the weight, it is only said."""
    graph, _ = joined()
    report = decide(graph, **options)
    assert report.plans["JOIN"].wide == wide
    assert report.plans["DOWN"].wide in ("truncate", options.get("wide"))
    said = [note.text for note in report.warnings if note.kind == "unread"]
    assert len(said) == bool(text)
    assert all(text in each for each in said)


@pytest.mark.parametrize(("second", "kinds"), [(12, []), (7, ["unread"])], ids=["whole", "short"])
def test_several_weights_that_read_a_concatenation(second, kinds):
    """What is lost is what the longest of them does not read: x has 8 places, and the rest 8."""
    graph, plans = joined()
    net = Net((2, 8))
    net.nodes = list(graph.nodes)
    net.w("too", next(node.name for node in graph.nodes if node.does == "join"), shape=(2, second))
    notes = unread(net.graph("join", "too"), plans | {"TOO": plan((second, 16))})
    assert [note.kind for note in notes] == kinds
    assert all({*note.names} == {"JOIN", "TOO"} for note in notes)


def test_a_part_that_another_weight_reads_is_read():
    graph, plans = joined()
    nodes = [*graph.nodes, *joined()[0].nodes[:0]]
    net = Net((2, 8))
    net.nodes = nodes
    net.w("again", "norm", shape=(2, 8), size=(8, 8))
    assert unread(net.graph("join", "again"), plans) == ()


@pytest.mark.parametrize(("part", "kinds"), [("skip", []), ("own", ["unread"])])
def test_the_crop_of_a_skip_is_no_part_that_nothing_reads(part, kinds):
    """As in a U-Net of valid convolutions: only a crop of a signal that has no reader is lost."""
    net = Net((2, 8, 4, 4))
    x = net.x()
    skip, own = net.w("skip", x), net.w("own", x)
    up = net.w("up", net.f("pool", skip, does="pool"))
    crop = net.f("crop", part, shape=(2, 8, 2, 2), does="crop")
    cat = net.f("cat", up, net.f("relu", crop), shape=(2, 16, 2, 2), does="join")
    head = net.w("join", cat, shape=(2, 8, 2, 2), size=(8, 16, 1, 1))
    graph = Graph(net.nodes, [head] if part == "own" else [head, own])
    assert [note.kind for note in unread(graph, {"JOIN": plan((8, 16, 1, 1))})] == kinds


def decoder(readers):
    """Two concatenations with one late part, and what else reads that part or its source."""
    net = Net((2, 8))
    x = net.x()
    skip = net.f("relu", net.w("skip", x))
    last = net.w("first", x)
    for k in range(2):
        cat = net.f(f"cat{k}", last, net.f(f"crop{k}", skip), shape=(2, 16), does="join")
        last = net.f(f"relu{k}", net.w(f"join{k}", cat, size=(8, 16), shape=(2, 8)))
    outs = {"none": [], "encoder": [net.w("down", skip)], "output": [skip]}[readers]
    return Graph(net.nodes, [last, *outs])


@pytest.mark.parametrize(
    ("readers", "folds"), [("none", {"JOIN0", "JOIN1"}), ("encoder", set()), ("output", set())]
)
def test_a_part_that_two_concatenations_join_last(readers, folds):
    """The skip of a U-Net is read by its encoder, too: then the weights stay truncated."""
    report = decide(decoder(readers), overrides={"SKIP": {"gain": 2.0}})
    folded = {name for name, plan in report.plans.items() if plan.wide == "fold_mean"}
    assert folded == folds
    assert {
        name for note in report.warnings if note.kind == "unread" for name in note.names
    } == folds


@pytest.mark.parametrize("last", [1, 2])
def test_what_one_concatenation_alone_joins_is_folded_first(last):
    """U-Net++: the second joins the late part of the first, too, and is folded for its own."""
    net = Net((2, 8))
    a, u = net.w("a", net.x()), net.w("u", net.x("y"))
    m = net.w("one", net.f("cat", a, u, shape=(2, 16), does="join"), size=(8, 16), shape=(2, 8))
    parts = [a, m, u][: 1 + last] if last == 2 else [a, m]
    wide = 8 * len(parts)
    cat = net.f("all", *parts, shape=(2, wide), does="join")
    head = net.w("two", cat, size=(8, wide), shape=(2, 8))
    plans = decide(net.graph(head)).plans
    assert {name for name, plan in plans.items() if plan.wide == "fold_mean"} == (
        {"TWO"} if last == 2 else {"ONE", "TWO"}
    )


def chain_of_joins(count):
    """A recurrent cell: each step joins its state first, and a row of one input second."""
    net = Net((2, 8))
    x, last = net.x(), net.x("h")
    for k in range(count):
        cat = net.f(f"cat{k}", last, net.f(f"row{k}", x), shape=(2, 16), does="join")
        name = f"step{k}"
        if not k:
            last = net.w("w", cat, size=(8, 16), shape=(2, 8))
        else:
            net.nodes.append(Node(name, "weight", (cat,), (2, 8), weights=("W",)))
            last = name
    return net.graph(last), {"W": plan((8, 16))}


def test_the_cost_of_concatenations_is_linear():
    cases = [chain_of_joins(k) for k in (50, 100, 200)]
    costs = [calls(lambda case=case: unread(*case)) for case in cases]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.2)
    assert [note.names for note in unread(*cases[0])] == [("W",)]


def test_a_running_mean_that_the_model_is_given():
    """JAX passes it as an input: it shifts the result, as a buffer would."""
    net = Net()
    x = net.x()
    mean = net.x("mean", shape=(4,))
    y = net.add("y", x, net.f("sub", net.w("w", x), mean))
    assert net.zeros(y) == {"W"}


@pytest.mark.parametrize("after", [True, False], ids=["behind the end", "before the end"])
def test_a_residual_add_inside_a_branch_is_zero_unless_it_only_reads_zeros(after):
    """Inkling adds a short convolution of it to what an attention gives: in vain, with that 0."""
    net = Net()
    h = net.f("norm", net.x(), does="norm")
    h = net.w("end", h) if after else net.w("first", h)
    h = net.add("inner", h, net.w("conv", h))
    net.w("out", net.add("y", "x", h if after else net.w("end", h)))
    assert net.zeros("out") == ({"END"} if after else {"END", "CONV"})


def test_a_weight_that_reads_what_vanishes_with_it_ends_no_branch():
    """l(tanh(l(x))) is of second order in l: a zero l would be in vain (R2)."""
    net = Net()
    net.w("first", net.x())
    net.w("out", net.add("y", "x", net.again("second", "FIRST", net.f("tanh", "first"))))
    assert not net.zeros("out")
    assert "second reads what vanishes with its own weight" in net.notes("out")["endless"].text


@pytest.mark.parametrize("rest", ["plain", "other"])
def test_a_weight_that_is_of_second_order_in_one_term_only(rest):
    """l(tanh(l(x))) + tanh(l(x)) vanishes with l, to first order; with k(x) it needs two zeros."""
    net = Net()
    h = net.f("tanh", net.w("first", net.x()))
    more = h if rest == "plain" else net.f("scale", net.w("k", "x"), does="scale")
    net.w("out", net.add("y", "x", net.f("sum", net.again("second", "FIRST", h), more, does="")))
    assert net.zeros("out") == ({"FIRST"} if rest == "plain" else set())


def test_a_weight_behind_its_own_source_ends_a_branch():
    """In h + l(tanh(h)) with h = l(x) it does not free itself: what the source holds remains."""
    net = Net()
    h = net.w("first", net.x())
    net.w("out", net.add("y", h, net.again("second", "FIRST", net.f("tanh", h))))
    assert net.zeros("out") == {"FIRST"}


@pytest.mark.parametrize("needed", [True, False], ids=["it ends a branch elsewhere", "in vain"])
def test_a_shared_weight_that_reads_zeros_in_several_blocks(needed):
    """One convolution behind the end of each block is free, unless it also ends a branch itself."""
    net = Net()
    x = net.x()
    net.w("c", x, shape=(1, 4))
    for k in range(3):
        h = net.w(f"end{k}", net.f(f"norm{k}", x, does="norm"))
        h = net.add(f"inner{k}", h, net.again(f"c{k}", "C", h))
        x = net.add(f"y{k}", x, h)
    if needed:
        x = net.add("y", x, net.again("last", "C", net.f("tanh", x)))
    net.w("out", x)
    ends = {f"END{k}" for k in range(3)}
    assert net.zeros("out") == (ends | {"C"} if needed else ends)


def test_a_stream_of_one_weight_that_also_makes_its_start():
    """h = l(x), and then h + l(tanh(h)) many times: no block's l reads what l alone makes zero."""
    net = Net()
    h = net.w("first", net.x())
    for k in range(20):
        h = net.add(f"y{k}", h, net.again(f"l{k}", "FIRST", net.f(f"tanh{k}", h)))
    net.w("out", h)
    assert net.zeros("out") == {"FIRST"}


def test_the_last_block_of_a_tower_ends_in_a_residual_add():
    """CLIP without projections: two towers are compared by a product, and neither is a query."""
    net = Net()
    towers = [net.block(k, net.x(f"x{k}")) for k in "ab"]
    net.f("logits", *towers, shape=(2, 2), does="contract", vanishes=(0, 1), sums=(0, 1))
    assert net.zeros("logits") == {"BA", "BB"}
