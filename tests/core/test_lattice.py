"""The lines of a term are its entries, each once, and few; its keys agree there alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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
