"""Random programs: what the drawing says lies along every axis is what NumPy's labels say."""

from itertools import pairwise, product
from math import prod

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from idinit_ref.tracing import Drawing, Parameter, Signal, View
from idinit_ref.tracing._axes import Atom
from tracing.programs import JOINS, MOVES, SIZES, Both, Program, held

SHAPES = st.lists(SIZES, min_size=1, max_size=3)


def labels_of(made, array, sources):
    """The labels that the parts of a value say, and those of parameters that are followed."""
    found, lost = np.full(array.shape, -1), set()
    for part in made.parts:
        if part.view is None:
            lost.add(part.name)
            continue
        here = held(part.view, array.shape, sources[part.name])
        assert not ((found >= 0) & (here >= 0)).any(), "two parameters at one place"
        found = np.where(here >= 0, here, found)
    known = np.isin(array, np.concatenate([sources[n].ravel() for n in lost] or [[]]), invert=True)
    return found, known


@given(data=st.data(), shape=SHAPES)
def test_moves_and_joins_are_followed_entry_by_entry(data, shape):
    program = Program(data)
    both = program.run(program.parameter(shape), MOVES + JOINS)
    found, known = labels_of(both.value, both.array, program.sources)
    event(f"followed: {bool(known.all())}")
    assert np.array_equal(found[known], both.array[known])


@given(data=st.data(), shape=SHAPES)
def test_what_is_gone_is_no_part(data, shape):
    """A parameter of which no entry is left is none of the value's."""
    program = Program(data)
    both = program.run(program.parameter(shape), [*MOVES, *JOINS, "again", "part"])
    for part in both.value.parts:
        if part.view is not None:
            assert np.isin(both.array, program.sources[part.name]).any()


@given(data=st.data(), shape=SHAPES)
def test_axes_that_are_only_moved_are_never_lost(data, shape):
    program = Program(data)
    moves = ["transpose", "flip", "broadcast"]
    both = program.run(program.parameter(shape), moves)
    (part,) = both.value.parts
    assert np.array_equal(held(part.view, both.array.shape, program.sources["p0"]), both.array)


@given(data=st.data(), shape=SHAPES)
def test_a_result_is_followed_like_a_weight(data, shape):
    """The axes of a result are those of the weight: labels of outputs move with it."""
    program = Program(data)
    inputs, outputs = data.draw(SIZES), data.draw(SIZES)
    weight = program.parameter([inputs, outputs])
    x = program.draw.input("x", (*shape, inputs))
    axes = [f"b{k}" for k in range(len(shape))]
    value = program.draw.product(
        "dot", [x, weight.value], [[*axes, "i"], ["i", "o"]], [*axes, "o"], (*shape, outputs)
    )
    columns = np.broadcast_to(np.arange(outputs), (*shape, outputs))
    both = program.run(type(weight)(value, columns), MOVES)
    for track in both.value.tracks:
        source = np.broadcast_to(np.arange(outputs), (inputs, outputs))
        assert np.array_equal(held(track.view, both.array.shape, source), both.array)


@given(data=st.data(), shape=SHAPES)
def test_one_signal_is_never_two_arrays(data, shape):
    """Values that the drawing takes for one are equal: no undone chain is found by mistake."""
    program = Program(data)
    x = Both(program.draw.input("x", tuple(shape)), 1 + np.arange(prod(shape)).reshape(shape))
    known, arrays = [x], {x.value.node: x.array}
    for _ in range(data.draw(st.integers(1, 8))):
        words = [*MOVES, *JOINS, "take", "again", "again"]
        new = program.step(data.draw(st.sampled_from(known)), words)
        if not isinstance(new.value, Signal):
            continue
        old = arrays.setdefault(new.value.node, new.array)
        assert np.array_equal(old, new.array)
        event(f"found again: {old is not new.array}")
        known.append(new)


@given(data=st.data(), apart=SIZES, size=SIZES, low=SIZES)
def test_a_digit_whose_entries_lie_apart_is_sliced_and_flipped_as_they_are(data, apart, size, low):
    def entries(digit):
        found = [None] * digit.radix
        for k in range(digit.size):
            found[digit.low + k * digit.apart] = digit.start + k * digit.step
        return found

    radix = low + (size - 1) * apart + 1 + data.draw(st.integers(0, 3))
    digit = Atom(0, data.draw(st.sampled_from([-2, 1, 3])), size, 9, low, radix, apart)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, radix)] * 2)))
    step = data.draw(st.integers(1, 4))
    assert entries(digit.slice(start, stop, step)) == entries(digit)[start:stop:step]
    assert entries(digit.flip()) == entries(digit)[::-1]


def grid(draw, x):
    """Its quarters, written to zeros."""
    out = draw.constant((4, 6), value=0)
    for i, j in ((0, 0), (0, 2), (1, 2), (1, 0)):
        sizes = [(0, 1), (1, 4)][i], [(0, 2), (), (2, 6)][j]
        part = draw.part("part", x, [(*span, 1) for span in sizes])
        out = draw.write("write", out, part, [span[0] for span in sizes], (4, 6))
    return out


def halves(draw, x, axis, sizes):
    return draw.join("join", draw.split("split", x, axis, sizes), axis, x.shape)


def steps(draw, x):
    spans = [[(0, 4, 1), (at, 6, 2)] for at in (0, 1)]
    parts = [draw.part("part", x, span) for span in spans]
    return draw.reshape("flatten", draw.stack("stack", parts, 2, (4, 3, 2)), (4, 6))


def written(draw, x, under):
    """Its entries, written to others at every second row and every third column."""
    for i, j in np.ndindex(2, 3):
        part = draw.part("part", x, [(i, 4, 2), (j, 6, 3)])
        under = draw.write("write", under, part, [i, j], (4, 6), [2, 3])
    return under


def scattered(draw, x, adds=False):
    """Its columns, written or added to zeros at indices."""
    out = draw.constant((4, 6), value=0)
    for first in (1, 0):
        part = draw.part("part", x, [(0, 4, 1), (first, 6, 2)])
        index = draw.constant((3, 1), numbers=np.arange(first, 6, 2)[:, None])
        at = [1], [0, None]
        if adds:
            out = draw.scatter_add("add", out, part, [index], (4, 6), at)
        else:
            out = draw.scatter("scatter", out, part, index, (4, 6), at)
    return out


def sheared(draw, x):
    flat = draw.reshape("flatten", x, (24,))
    return draw.reshape("view", halves(draw, flat, 0, [5, 12, 7]), (4, 6))


def turned(draw, x):
    return draw.product("einsum", [x], ["ab"], "ba", x.shape[::-1])


def cropped(draw, x, fill):
    more = draw.pad("pad", x, [1, 2], (7, 9), None, [draw.constant((), True, fill)])
    return draw.part("crop", more, [(1, 5, 1), (2, 8, 1)])


@pytest.mark.parametrize(
    "undone",
    {
        "flattened": lambda draw, x: draw.reshape("view", draw.reshape("view", x, (24,)), (4, 6)),
        "joined in threes": lambda draw, x: halves(draw, x, 1, [1, 3, 2]),
        "joined twice": lambda draw, x: halves(draw, halves(draw, x, 0, [1, 3]), 1, [3, 3]),
        "cut across rows": sheared,
        "every other one": steps,
        "turned by an einsum": lambda draw, x: turned(draw, turned(draw, x)),
        "quarters": grid,
        "written in steps": lambda draw, x: written(draw, x, draw.constant((4, 6), value=0)),
        "and over another signal": lambda draw, x: written(draw, x, draw.input("y", (4, 6))),
        "scattered": scattered,
        "added at indices": lambda draw, x: scattered(draw, x, True),
        "stacked rows": lambda draw, x: draw.stack(
            "stack", draw.unstack("row", x, 0, 4), 0, (4, 6)
        ),
        "padded": lambda draw, x: cropped(draw, x, 0),
        "padded with ones": lambda draw, x: cropped(draw, x, 1),
        "rolled": lambda draw, x: draw.roll("roll", draw.roll("roll", x, {1: 2}), {1: -2}),
        "reversed": lambda draw, x: draw.flip("flip", draw.flip("flip", x, [0]), [0]),
        "copied": lambda draw, x: draw.part(
            "copy", draw.broadcast("expand", x, (3, 4, 6)), [(1, 2, 1), (0, 4, 1), (0, 6, 1)], (0,)
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_is_undone_is_the_signal_itself(undone):
    draw = Drawing([])
    x = draw.input("x", (4, 6))
    out = undone[1](draw, x)
    assert out is x
    assert {node.name for node in draw.graph([out]).nodes} <= {"x", "y"}


def test_a_chain_of_steps_costs_as_much_as_its_steps():
    """All slices of many, stacked again, are the signal."""
    draw = Drawing([])
    x = draw.input("x", (1000, 2))
    rows = draw.unstack("row", x, 0, 1000)
    assert draw.stack("stack", rows, 0, (1000, 2)) is x


def test_indices_that_a_loop_changes_are_unknown():
    draw, seen = Drawing([]), []

    def turn(states):
        seen.append(states[0].integers)
        return [draw.constant((2,), numbers=np.array([1, 3]))]

    draw.loop("loop", [draw.constant((2,), numbers=np.array([0, 2]))], [(2,)], turn)
    assert seen[0].tolist() == [0, 2]
    assert seen[-1] is None


def test_undone_reshapes_change_nothing():
    view = View.of((4, 6))
    cut = view.reshape((4, 6), (2, 2, 3, 2))
    back = cut.reshape((2, 2, 3, 2), (4, 6))
    labels = np.arange(24).reshape(4, 6)
    assert np.array_equal(held(back, (4, 6), labels), labels)


def test_a_reshape_across_rows_is_lost():
    assert View.of((6, 4)).reshape((6, 4), (4, 6)) is None


# How a weight is stored -------------------------------------------------------------------------


def places(array, sources, name):
    """Where every entry of a parameter lies in an operand; None if one lies in none or several."""
    found = {}
    for index in product(*map(range, array.shape)):
        label = int(array[index])
        if label in found:
            return None
        found[label] = index
    labels = sources[name]
    if not all(int(label) in found for label in labels.ravel()):
        return None
    return {at: found[int(labels[at])] for at in product(*map(range, labels.shape))}


def parted_index(at, shape, parted):
    return np.unravel_index(np.ravel_multi_index(at, shape), parted)


@given(data=st.data(), shape=st.lists(SIZES, min_size=2, max_size=3))
def test_the_letters_of_a_weight_are_what_its_entries_do(data, shape):
    """Entries that differ along I alone meet other inputs alone, and so with O and batches."""
    program = Program(data)
    both = program.run(program.parameter(shape), [*MOVES[:3], "join", "again", "roll"], 4)
    rank = both.array.ndim
    if rank < 2 or both.array.size > 2000:
        return
    kinds = data.draw(st.lists(st.sampled_from("IOB"), min_size=rank, max_size=rank))
    own = [f"{kind}{axis}" for axis, kind in enumerate(kinds)]
    sizes = dict(zip(own, both.array.shape, strict=True))
    rest = ["n", *(label for label in own if label[0] in "IB")]
    out = ["n", *(label for label in own if label[0] in "BO")]
    sizes["n"] = 2
    draw = program.draw
    x = draw.input("x", tuple(sizes[label] for label in rest))
    shape_of = tuple(sizes[label] for label in out)
    y = draw.product("dot", [x, both.value], [rest, own], out, shape_of)
    graph = draw.graph([y])
    for name, source in program.sources.items():
        node = graph.by_name[name]
        found = places(both.array, program.sources, name)
        layout = node.options.get("layout")
        if layout is None or found is None or source.ndim < 2:
            event("no layout" if layout is None else "in parts")
            continue
        event(layout)
        parted, letters = node.options.get("parted", (source.shape, layout))
        coordinates = {}
        for at, index in found.items():
            where = parted_index(at, source.shape, parted)
            key = {
                kind: tuple(w for w, c in zip(where, letters, strict=True) if _kind(c) == kind)
                for kind in "IOB"
            }
            seen = {
                kind: tuple(i for i, c in zip(index, kinds, strict=True) if c == kind)
                for kind in "IOB"
            }
            for kind in "IO":
                old = coordinates.setdefault((kind, key[kind], key["B"]), seen[kind])
                assert old == seen[kind], (letters, parted, name)


def _kind(letter):
    return letter if letter in "IO" else "B"


@given(data=st.data())
def test_joined_weights_are_cut_where_their_own_outputs_are(data):
    """Several weights are joined along the outputs, and the result is cut somewhere."""
    pick = data.draw
    widths = pick(st.lists(SIZES, min_size=1, max_size=3))
    total, inputs = sum(widths), 3
    names = [f"w{k}" for k in range(len(widths))]
    turned = pick(st.booleans())
    shapes = [(n, inputs) if turned else (inputs, n) for n in widths]
    draw = Drawing([Parameter(*pair) for pair in zip(names, shapes, strict=True)])
    values = [draw.parameter(name) for name in names]
    axis = 0 if turned else 1
    whole = (total, inputs) if turned else (inputs, total)
    weight = draw.join("cat", values, axis, whole)
    x = draw.input("x", (2, inputs))
    labels = ["b", "i"], (["o", "i"] if turned else ["i", "o"])
    y = draw.product("dot", [x, weight], labels, ["b", "o"], (2, total))
    ends = sorted({0, total, *pick(st.lists(st.integers(0, total), max_size=3))})
    parts = draw.split("split", y, 1, np.diff(ends).tolist())
    graph = draw.graph([draw.entrywise("tanh", [part], part.shape) for part in parts])
    rows = np.repeat(np.arange(len(widths)), widths)
    for k, name in enumerate(names):
        mine = [int((rows[a:b] == k).sum()) for a, b in pairwise(ends)]
        blocks = tuple(n for n in mine if n)
        expected = {"layout": "OI" if turned else "IO"}
        if len(blocks) > 1:
            expected["blocks"] = blocks
        assert dict(graph.by_name[name].options) == expected


@pytest.mark.parametrize("sizes", [(4, 4), (3, 5)])
def test_what_is_joined_and_cut_again_is_as_if_it_were_not(sizes):
    """The weights of two uses, and their biases, joined and taken apart again."""
    names = ["up", "down", "b", "c"]
    shapes = [(sizes[0], 4), (sizes[1], 4), (sizes[0],), (sizes[1],)]
    draw = Drawing([Parameter(*pair) for pair in zip(names, shapes, strict=True)])
    up, down, b, c = (draw.parameter(name) for name in names)
    total = sum(sizes)
    both = draw.join("cat", [up, down], 0, (total, 4))
    bias = draw.join("cat", [b, c], 0, (total,))
    one, two = draw.split("split", both, 0, sizes)
    first = draw.part("slice", bias, [(0, sizes[0], 1)])
    second = draw.part("slice", bias, [(sizes[0], total, 1)])
    x = draw.input("x", (2, 4))
    ways = [(one, first, sizes[0]), (two, second, sizes[1])]
    ends = []
    for weight, add, size in ways:
        h = draw.product("dot", [x, weight], ["bi", "oi"], "bo", (2, size))
        ends.append(draw.add("add", h, draw.broadcast("spread", add, (2, size)), (2, size)))
    graph = draw.graph(ends)
    assert {name: graph.by_name[name].use for name in names} == {
        "up": "weight", "down": "weight", "b": "bias", "c": "bias",
    }  # fmt: skip
    for node in graph.nodes:
        if node.kind == "weight":
            assert len(node.weights) == 1
    assert dict(graph.by_name["up"].options) == {"layout": "OI"}


@pytest.mark.parametrize("kept", [(0, None), (None, 0), (None, 1), (1, None)])
def test_rows_and_columns_that_a_lookup_turns_are_followed(kept):
    """A gather may put the axis of its indices in front, or behind."""
    order, labels = [3, 0, 1], np.arange(5 * 4).reshape(5, 4)
    (axis,) = {0, 1} - {*kept}
    taken = np.take(labels, order, axis)
    taken = taken.transpose([axis if old is None else old for old in kept])
    draw = Drawing([Parameter("w", (5, 4))])
    index = draw.constant((3,), numbers=np.array(order))
    value = draw.lookup("gather", [draw.parameter("w"), index], taken.shape, kept)
    assert value.shape == taken.shape
    found, _ = labels_of(value, taken, {"w": labels})
    assert np.array_equal(found, taken)
