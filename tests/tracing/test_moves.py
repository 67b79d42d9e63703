"""Random programs: what the drawing says lies along every axis is what NumPy's labels say."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from idinit_ref.tracing import Drawing, Parameter, View
from tracing.programs import JOINS, MOVES, SIZES, Program, held

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
