"""The lines of a term are its entries, each once, and few; its keys agree there alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost import calls
from idinit_ref.lattice import keys, lines, nnz
from idinit_ref.pattern import Term


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
