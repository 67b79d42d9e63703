"""The lines of a term are its entries, each once, and few; its keys agree there alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost import calls
from idinit_ref.core.lattice import keys, lines, nnz
from idinit_ref.core.pattern import Term


@st.composite
def spans(draw, low=0, high=14):
    a, b = sorted((draw(st.integers(low, high)), draw(st.integers(low, high))))
    return range(a, b)


terms = st.builds(
    Term, st.just(1.0), spans(), spans(), shift=st.integers(-9, 20), period=st.integers(1, 16)
)


def has(term, i, j):
    """The definition of a term."""
    inside = i in term.rows and j in term.columns
    return inside and (j - i) % term.period == term.shift % term.period


@settings(max_examples=600)
@given(terms, spans(), st.integers(0, 9), st.integers(1, 5), st.integers(0, 12))
def test_lines_are_the_entries(term, rows, first, step, count):
    found = [
        (line.row + k * line.row_step, line.item + k * line.item_step)
        for line in lines(term, rows, first, step, count)
        for k in range(line.length)
    ]
    expected = {(i, b) for i in rows for b in range(count) if has(term, i, first + step * b)}
    assert len(found) == len(set(found))
    assert set(found) == expected


SIDE = 9
SQUARE = [*product(range(SIDE), range(SIDE))]
SPANS = [range(a, b) for a in range(SIDE) for b in range(a + 1, SIDE + 1)]


def bits(places):
    """Places (i, j) of the square as the bits of one integer."""
    return sum(1 << (SIDE * i + j) for i, j in places)


DOWN = [(rows, bits((i, j) for i, j in SQUARE if i in rows)) for rows in SPANS]
STRIPS = [range(first, SIDE, step) for step in range(1, SIDE + 1) for first in range(step)]


def sections():
    """Strips and columns that meet, and where: each strip from 0 with all columns, each other
    strip with those columns that begin and end on it."""
    for strip, columns in product(STRIPS, SPANS):
        if strip.start == 0 or (columns[0] in strip and columns[-1] in strip):
            yield strip, columns, bits((i, j) for i, j in SQUARE if j in strip and j in columns)


def wrong_lines(term, rows, strip, expected, find=lines):
    """What lines say of a term, and what they should say; None where that is one.

    A sum of as many powers of two as it has bits is a sum of different ones. So a right sum, of a
    right number of places, holds each solution exactly once.
    """
    total = number = 0
    first, step = strip.start, strip.step
    for row, item, length, row_step, item_step in find(term, rows, first, step, len(strip)):
        place, by = SIDE * row + first + step * item, SIDE * row_step + step * item_step
        number += length
        for k in range(length):
            total += 1 << (place + k * by)
    if total == expected and number == expected.bit_count():
        return None
    found = [
        (line.row + k * line.row_step, first + step * (line.item + k * line.item_step))
        for line in find(term, rows, first, step, len(strip))
        for k in range(line.length)
    ]
    wanted = [(i, j) for i, j in SQUARE if expected >> (SIDE * i + j) & 1]
    return (
        f"{term} in {rows} and the columns {[*strip]}: the lines hold {sorted(found)}, "
        f"and the solutions are {wanted}, each once"
    )


def solutions(period, shift):
    return bits((i, j) for i, j in SQUARE if (j - i - shift) % period == 0)


@pytest.mark.parametrize("period", range(1, 8))
@pytest.mark.cases(3)
def test_every_small_term(period):
    """Every shift, rectangle and step within 9 x 9: each solution exactly once."""
    for shift in range(period):
        every = solutions(period, shift)
        for strip, columns, across in sections():
            here = every & across
            for rows, down in DOWN:
                term = Term(1.0, rows, columns, shift, period)
                wrong = wrong_lines(term, range(SIDE), strip, here & down)
                assert wrong is None, wrong


@pytest.mark.parametrize("period", range(1, 8))
def test_every_small_meeting_of_rows(period):
    """The rows of a term and those asked for, all ranges of both; shifts beyond a period."""
    columns = range(1, SIDE)
    for shift, step in product((-period - 1, 3 * period + 2), (1, 2, 5)):
        strip = range(0, SIDE, step)
        here = solutions(period, shift) & bits((i, j) for i, j in SQUARE if j and j in strip)
        for (rows, down), (asked, below) in product(DOWN, DOWN):
            term = Term(1.0, rows, columns, shift, period)
            wrong = wrong_lines(term, asked, strip, here & down & below)
            assert wrong is None, wrong


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda found: found[1:], id="one is missing"),
        pytest.param(lambda found: [*found, found[0]], id="one comes twice"),
        pytest.param(lambda found: found * 2, id="all come twice"),
        pytest.param(
            lambda found: [found[0]._replace(item=found[0].item + 1), *found[1:]],
            id="one is elsewhere",
        ),
    ],
)
def test_a_wrong_line_is_found_and_its_term_is_named(spoil):
    term = Term(1.0, range(2, 7), range(1, 7), 1, 5)
    of = (term, range(SIDE), range(SIDE))
    expected = bits((i, j) for i in range(2, 7) for j in range(1, 7) if (j - i) % 5 == 1)
    assert wrong_lines(*of, expected) is None
    assert str(term) in wrong_lines(*of, expected, lambda *of: spoil([*lines(*of)]))


@settings(max_examples=300)
@given(terms, spans(), st.integers(0, 9), st.integers(1, 5), st.integers(0, 12))
def test_lines_are_few(term, rows, first, step, count):
    """Never more than the best of the three directions: columns, rows, diagonals."""
    columns = [b for b in range(count) if first + step * b in term.columns]
    here = [i for i in rows if i in term.rows]
    diagonals = (len(here) + len(columns) * step) // term.period + 1
    number = len(list(lines(term, rows, first, step, count)))
    assert number <= min(len(columns), len(here), diagonals)


@settings(max_examples=300)
@given(terms)
def test_nnz_and_keys(term):
    i, j = np.arange(18)[:, None], np.arange(18)[None, :]
    row, column = keys(term, np, i, j)
    expected = [[has(term, a, b) for b in range(18)] for a in range(18)]
    assert np.array_equal(row == column, expected)
    assert nnz(term) == np.sum(expected)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_long_lines_in_all_directions(step):
    """Larger than what chance draws above; and no diagonal is tried in vain."""
    costs = set()
    for period, shift, across, rows, first, count in product(
        (1, 3, 4, 6, 10, 14, 23),
        (0, 5, -2),
        (range(40), range(17, 70)),
        (range(3), range(9), range(2, 40)),
        (0, 3, 11),
        (5, 13, 30),
    ):
        term = Term(1.0, range(1, 38), across, shift, period)
        found = list(lines(term, rows, first, step, count))
        places = [
            (line.row + k * line.row_step, line.item + k * line.item_step)
            for line in found
            for k in range(line.length)
        ]
        here = [i for i in rows if i in term.rows]
        columns = [b for b in range(count) if first + step * b in across]
        expected = [(i, b) for i in here for b in columns if has(term, i, first + step * b)]
        assert sorted(places) == expected
        diagonals = (len(here) + len(columns) * step) // period + 1
        assert len(found) <= min(len(columns), len(here), diagonals)
        if found and found[0].row_step and found[0].item_step and len(here) >= step:
            of = (term, rows, first, step, count)
            costs.add((len(found), calls(lambda of=of: list(lines(*of)))))
    (_, one), (_, two), *_ = sorted(costs)
    assert all(cost == one + (number - 1) * (two - one) for number, cost in costs)
