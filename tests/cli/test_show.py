"""`idinit show`: what it prints is what the specification says."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

import by_hand
import idinit_ref as ir
from idinit_ref.commands import _terminal
from idinit_ref.commands import show as show_command


@pytest.fixture
def shown(idinit):
    """What `idinit show` prints; it must succeed and fit into 80 columns."""

    def run(line):
        status, out, err = idinit(f"show {line}")
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80
        return out

    return run


def facts(out):
    """The table below a matrix, as a dictionary."""
    found = re.findall(r"^  ([a-zA-Z][\w ,()-]*?)  +(\S.*)$", out, re.MULTILINE)
    return dict(found)


def printed(out):
    """The matrices that were printed in numbers."""
    found = []
    for part in out.split("\n\n")[1::2]:
        lines = [line for line in part.splitlines() if not line.startswith(("  channel", "  tap"))]
        unit = 1.0
        if lines[-1].startswith("  in units of "):
            unit = float(lines.pop().split()[-1])
        found.append(
            np.array([[0.0 if c == "·" else float(c) for c in line.split()] for line in lines])
            * unit
        )
    return found


# show: small matrices ----------------------------------------------------------------------------


def test_show_10_4(shown):
    assert shown("10 4") == (
        "IDI  10 x 4  layout OI  in float64\n"
        "\n"
        "  1 · · ·\n"
        "  · 1 · ·\n"
        "  · · 1 ·\n"
        "  · · · 1\n"
        "  1 · · ·\n"
        "  · 1 · ·\n"
        "  · · 1 ·\n"
        "  · · · 1\n"
        "  1 · · ·\n"
        "  · 1 · ·\n"
        "\n"
        "  matrix m x n        10 x 4\n"
        "  non-zeros           10 of 40\n"
        "  row norms           1\n"
        "  row sums            1\n"
        "  rows sum to 0       no\n"
        "  exact transit (T1)  yes: output i is x[i mod 4]\n"
        "  rank                4 (full)\n"
        "  singular values     1.732 (2x), 1.414 (2x)\n"
        "  isometry            no\n"
    )


def test_show_4_10_zero(shown):
    assert shown("4 10 --role zero") == (
        "IDIZ  4 x 10  layout OI  in float64\n"
        "\n"
        "   1  ·  ·  · -1  ·  ·  ·  ·  ·\n"
        "   ·  1  ·  ·  · -1  ·  ·  ·  ·\n"
        "   ·  ·  1  ·  ·  · -1  ·  ·  ·\n"
        "   ·  ·  ·  1  ·  ·  · -1  ·  ·\n"
        "  in units of 1e-06\n"
        "\n"
        "  matrix m x n        4 x 10\n"
        "  non-zeros           8 of 40\n"
        "  row norms           1.414e-06\n"
        "  row sums            0\n"
        "  rows sum to 0       yes, exactly\n"
        "  exact transit (T1)  no\n"
        "  rank                4 (full)\n"
        "  singular values     1.414e-06 (4x)\n"
        "  isometry            no\n"
    )


def test_a_kernel_names_its_column_order_and_the_tap_of_every_column(shown):
    lines = shown("2 2 1 3").splitlines()
    assert lines[2:6] == [
        "  channel  0  1  0  1  0  1",
        "  tap     01 01 00 00 02 02",
        "           1  ·  ·  ·  ·  ·",
        "           ·  1  ·  ·  ·  ·",
    ]
    said = "  matrix m x n        2 x 6, column = rank*2 + c, ranks by distance from (0, 1)"
    assert said in lines
    lines = shown("2 2 1 3 --tap 0,2").splitlines()
    assert lines[3] == "  tap     02 02 01 01 00 00"
    lines = shown("2 2 1 3 --taps channel_major").splitlines()
    assert lines[2:6] == [
        "  channel  0  0  0  1  1  1",
        "  tap     00 01 02 00 01 02",
        "           1  ·  ·  ·  ·  ·",
        "           ·  1  ·  ·  ·  ·",
    ]
    assert "  matrix m x n        2 x 6, column = c*3 + s (channel c, tap s of 1 x 3)" in lines
    lines = shown("2 2 1 3 --taps spatial_major").splitlines()
    assert lines[2:4] == ["  channel  0  1  0  1  0  1", "  tap     00 00 01 01 02 02"]
    assert "  matrix m x n        2 x 6, column = s*2 + c (channel c, tap s of 1 x 3)" in lines
    out = shown("2 2 3 3 --taps center --tap 0,2")
    assert facts(out)["matrix m x n"] == "2 x 2, at the tap (0, 2); 0 at the others"
    found = shown("2 1 11").splitlines()[3].split()[1:]
    assert found == ["5", "4", "6", "3", "7", "2", "8", "1", "9", "0", "10"]
    lines = shown("2 2 1 3 --taps diagonal").splitlines()
    assert lines[2:4] == ["  channel  0  1  0  1  0  1", "  tap     01 00 02 01 00 02"]
    told = facts("\n".join(lines))["columns"]
    assert told.startswith("t: channel t mod 2, rank (t + t // 6) mod 3, ranks by")


def test_phases_are_shown_once_for_each_size_with_their_taps(shown):
    out = shown("2 2 4 4 --layout IOHW --stride 2,2")
    assert printed(out) == [pytest.approx(np.asarray(by_hand.idi_matrix(2, 8, 1.0)))]
    assert out.splitlines()[3] == "  tap     22 22 02 02 20 20 00 00"
    assert facts(out)["copies"] == "4, in 4 phases of this size; the first is shown"
    out = shown("1 1 3 2 --layout IOHW --stride 2,-1")
    assert [matrix.shape for matrix in printed(out)] == [(1, 4), (1, 2)]
    assert [line for line in out.splitlines() if line.startswith("  tap")] == [
        "  tap     20 00 21 01",
        "  tap     10 11",
    ]
    out = shown("2 2 4 --stride 2 --taps center")
    assert facts(out)["matrix m x n"] == "2 x 2, at the tap (2,); 0 at the others of its phase"


def test_a_shifted_idiz_has_an_entry_in_every_column(shown):
    out = shown("2 9 --role zero --form shifted --eps 2")
    expected = by_hand.weight((2, 9), "zero", eps=2.0, form="shifted")
    np.testing.assert_allclose(printed(out)[0], expected, rtol=1e-3)
    assert facts(out)["rows sum to 0"] in ("yes, exactly", "yes, up to rounding")
    assert facts(out)["rank"] == "2 (full)"
    assert facts(shown("3 17 --role zero --form shifted"))["rows sum to 0"].startswith("yes")
    with_noise = facts(shown("3 3 --loosen 1e-20"))  # far from 0, and not to be mistaken for it
    assert with_noise["rows sum to 0"] == "no"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4 4 3 3 --stride 2", "stride = (2,), but it should have one number for each of the 2"),
        ("4 4 3 3 --stride 2,0", "stride = (2, 0), but it should hold no 0; give the stride"),
        ("4 4 --stride 2", "stride = (2,), but a matrix (layout OI) has no phases; leave it out"),
        ("4 4 --form shifted", "form = 'shifted', but IDI (role 'transit') has no such option"),
        ("4 4 --role zeros", "role = 'zeros', but it should be one of 'transit', 'zero'; pick one"),
        ("4 4 --role zero,", "role = '', but it should be one of 'transit', 'zero'; pick one"),
        ("4 4 --role zero,transit", "role = ('zero', 'transit'), but it should have as many roles"),
        ("4 4 --loosen-at entries", "loosen_at = 'entries', but there is no noise to place"),
        (
            "4 4 3 --taps spiral",
            "taps = 'spiral', but it should be one of outward, diagonal, center",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(line, said, idinit):
    status, out, err = idinit(f"show {line}")
    assert (status, out) == (2, "")
    assert err.startswith(f"idinit: {said}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("3 3 --gain -2", [by_hand.idi_matrix(3, 3, -2.0)]),
        ("3 3 --gain -2e0", [by_hand.idi_matrix(3, 3, -2.0)]),
        ("5 3 --role zero --eps -5.e-1", [by_hand.idiz_matrix(5, 3, -0.5)]),
        ("5 3 --role zero --eps -.5E+0", [by_hand.idiz_matrix(5, 3, -0.5)]),
        ("2 4 --wide fold_mean", [by_hand.idi_matrix(2, 4, 1.0, "fold_mean")]),
        ("5 3 --role zero --eps .5", [by_hand.idiz_matrix(5, 3, 0.5)]),
        ("4 1 --role zero --eps .5", [by_hand.idiz_matrix(4, 1, 0.5)]),
        (
            "7 3 --blocks 3,3,1 --role zero,transit,transit --eps .5 --gain 2",
            [
                by_hand.idiz_matrix(3, 3, 0.5),
                by_hand.idi_matrix(3, 3, 2.0),
                by_hand.idi_matrix(1, 3, 2.0),
            ],
        ),
        ("7 3 --blocks 3,3,1", [by_hand.idi_matrix(3, 3, 1.0), by_hand.idi_matrix(1, 3, 1.0)]),
        ("3 7 --layout IO --blocks 3,4", [by_hand.idi_matrix(m, 3, 1.0) for m in (3, 4)]),
        ("6 2 3 --groups 3 --role zero --eps 2", [by_hand.idiz_matrix(2, 6, 2.0)]),
        ("6 2 3 --groups 3 --transposed --layout IOW", [by_hand.idi_matrix(2, 6, 1.0)]),
        ("3 2 4 --taps diagonal", [by_hand.idi_matrix(3, 8, 1.0)]),
        ("3 2 3 --layout IOW --stride 2", [by_hand.idi_matrix(2, n, 1.0) for n in (6, 3)]),
        ("3 2 3 --layout WIO --stride -2", [by_hand.idi_matrix(3, n, 1.0) for n in (4, 2)]),
        ("5 2 4 --layout EOI", [by_hand.idi_matrix(2, 4, 1.0)]),
        ("3 3 2 4 --layout HWIO --taps center", [by_hand.idi_matrix(4, 2, 1.0)]),
        ("2 3 2 3 --layout HWIO --taps spatial_major", [by_hand.idi_matrix(3, 12, 1.0)]),
        ("3 2 --gain 0.1 --dtype bfloat16", [by_hand.idi_matrix(3, 2, 0.1001)]),
    ],
)
def test_the_matrices_are_those_of_the_specification(line, expected, shown):
    found = printed(shown(line))
    assert [matrix.tolist() for matrix in found] == expected


@pytest.mark.parametrize(
    ("line", "copies"),
    [
        ("6 4 --blocks 2,2,2", ["3"]),
        ("6 4 --blocks 2,4", [None, None]),
        ("6 2 3 --groups 3", ["3"]),
        ("6 2 3 --groups 3 --transposed --layout IOW", ["3"]),
        ("5 2 4 --layout EOI", ["5"]),
        ("5 4 3 --layout EOI --blocks 1,1,2", ["10", "5"]),
    ],
)
def test_every_distinct_matrix_is_there_once_with_its_count(line, copies, shown):
    out = shown(line)
    tables = out.split("matrix m x n")[1:]
    assert [facts(f"  matrix{table}").get("copies") for table in tables] == copies


def test_noise_is_shown_as_it_is_stored(shown):
    out = shown("6 4 --groups 2 --loosen 0.5 --seed 3")
    first = by_hand.weight((6, 4), groups=2, loosen=0.5, seed=3)[:3]
    assert np.allclose(printed(out)[0], first, rtol=1e-3, atol=0)
    assert facts(out)["copies"] == "2; each has its own noise, the first is shown"
    assert facts(out)["exact transit (T1)"] == "no"


def test_blocks_of_two_roles_are_told_apart(shown, idinit):
    line = "8 4 --blocks 2,2,2,2 --role transit,zero,zero,transit --loosen 0.5"
    out = shown(line)
    assert out.startswith("IDI+IDIZ  8 x 4  layout OI  in float64\n")
    expected = by_hand.weight((8, 4), blocks=(2,) * 4, loosen=0.5)[:2]
    assert np.allclose(printed(out)[0], expected, rtol=1e-3, atol=0)
    assert printed(out)[1].tolist() == by_hand.idiz_matrix(2, 4, 1e-6)
    tables = [facts(f"  matrix m x n{table}") for table in out.split("  matrix m x n")[1:]]
    assert [table["role"] for table in tables] == ["transit", "zero"]
    assert [table["non-zeros"] for table in tables] == ["8 of 8", "4 of 8"]
    assert tables[0]["copies"] == "2; each has its own noise, the first is shown"
    assert tables[1]["copies"] == "2"
    told = json.loads(idinit(f"show {line} --json")[1])
    assert told["role"] == ["transit", "zero", "zero", "transit"]
    roles = [(each["role"], each["copies"], each["non_zeros"]) for each in told["matrices"]]
    assert roles == [("transit", 2, 8), ("zero", 2, 4)]


def test_noise_in_the_entries_alone_is_shown_as_it_is_stored(shown):
    out = shown("6 4 --loosen 0.5 --loosen-at entries")
    expected = by_hand.weight((6, 4), loosen=0.5, loosen_at="entries")
    np.testing.assert_allclose(printed(out)[0], expected, rtol=1e-3)
    assert facts(out)["non-zeros"] == "6 of 24"
    assert "deviation 0.5, in the non-zeros; not in the picture" in facts(
        shown("300 200 --loosen 0.5 --loosen-at entries")
    ).get("noise", "")


def test_an_empty_weight(shown):
    assert shown("0 3") == "IDI  0 x 3  layout OI  in float64\n\n  no entries\n"


# show: facts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "n", "options"),
    [
        (6, 6, ""),
        (7, 3, "--gain 2"),
        (3, 7, ""),
        (3, 7, "--wide fold_rms"),
        (3, 7, "--wide fold_mean"),
        (6, 6, "--role zero --eps .5"),
        (9, 4, "--role zero --eps .5"),
        (4, 9, "--role zero --eps .5"),
        (8, 9, "--role zero --eps .5"),
        (5, 1, "--role zero --eps .5"),
        (40, 50, "--role zero --eps .5"),
        (20, 45, "--role zero --eps .5"),
    ],
)
@pytest.mark.parametrize("limit", [512, 0], ids=["decomposed", "by its entries"])
def test_facts_are_those_of_the_matrix(limit, m, n, options, shown, monkeypatch):
    """Norms, sums, rank and singular values against NumPy on the matrix by hand."""
    monkeypatch.setattr(show_command, "_SVD", limit)
    words = options.split()
    wide = words[1] if "--wide" in words else "truncate"
    gain = float(words[1]) if "--gain" in words else 1.0
    zero = "zero" in words
    w = np.array(by_hand.idiz_matrix(m, n, 0.5) if zero else by_hand.idi_matrix(m, n, gain, wide))
    found = facts(shown(f"{m} {n} {options}"))

    def ends(text):
        return [float(part) for part in text.split(" ..")]

    def close(text, values):
        wanted = [f"{values.min():.4g}", f"{values.max():.4g}"]
        return [f"{x:.4g}" for x in ends(text)] in (wanted, wanted[:1])

    assert close(found["row norms"], np.linalg.norm(w, axis=1))
    assert close(found["row sums"], w.sum(axis=1))
    assert (found["rows sum to 0"] == "yes, exactly") == (not w.sum(axis=1).any())
    assert found["non-zeros"] == f"{np.count_nonzero(w):,} of {m * n:,}"
    exact = m >= n and np.array_equal(w, np.array([np.eye(n)[i % n] for i in range(m)]))
    assert found["exact transit (T1)"] == (f"yes: output i is x[i mod {n}]" if exact else "no")
    overlap = (np.count_nonzero(w, 0).max() > 1) and (np.count_nonzero(w, 1).max() > 1)
    if limit == 0 and overlap:
        assert found["rank, singular values"] == "not computed (the smaller side is over 0)"
        assert "rank" not in found
        return
    rank = np.linalg.matrix_rank(w)
    assert found["rank"] == f"{rank}{' (full)' if rank == min(m, n) else ''}"
    values = np.linalg.svd(w, compute_uv=False)
    values[values < 1e-9] = 0.0
    if "distinct" in found["singular values"]:
        low_high = found["singular values"].partition(" (")[0].split(" .. ")
        assert low_high == [f"{values[0]:.4g}", f"{values[-1]:.4g}"]
    else:
        pairs = re.findall(r"(\S+) \((\d+)x\)", found["singular values"])
        assert sum(int(count) for _, count in pairs) == min(m, n)
        listed = np.repeat([float(v) for v, _ in pairs], [int(c) for _, c in pairs])
        assert np.allclose(listed, values, rtol=1e-3)
    ones = np.allclose(values, 1, rtol=0, atol=1e-12)
    side = "yes" if m >= n else "only for its rows (W W^T = I)"
    assert found["isometry"] == (side if ones else "no")


def test_an_isometry_that_a_dtype_disturbs_says_by_how_much(shown):
    out = shown("3 7 --wide fold_rms --dtype float32")
    assert facts(out)["isometry"] == "only for its rows (W W^T = I), to within 2e-08"
    assert facts(shown("3 7 --wide fold_rms --dtype bfloat16"))["isometry"] == "no"


@pytest.mark.parametrize(
    ("line", "norms", "sums", "rank", "values"),
    [
        ("4 4 --gain 1e300", "1e+300", "1e+300", "4 (full)", "1e+300 (4x)"),
        ("4 4 --gain -1e-200", "1e-200", "-1e-200", "4 (full)", "1e-200 (4x)"),
        ("4 4 --gain 5e-324", "4.941e-324", "4.941e-324", "4 (full)", "4.941e-324 (4x)"),
        ("2 4 --wide fold_mean --gain 1e308",
         "7.071e+307", "1e+308", "2 (full)", "7.071e+307 (2x)"),
        ("2 4 --wide fold_rms --gain -1.7e308",
         "1.7e+308", "-2.404e+308", "2 (full)", "1.7e+308 (2x)"),
        ("4 4 --role zero --eps 1.7e308",
         "2.404e+308", "0", "3", "3.400e+308 (1x), 2.404e+308 (2x), 0 (1x)"),
        ("4 4 --role zero --eps 1e-300",
         "1.414e-300", "0", "3", "2e-300 (1x), 1.414e-300 (2x), 0 (1x)"),
    ],
)  # fmt: skip
def test_facts_of_the_largest_and_smallest_entries(line, norms, sums, rank, values, shown):
    found = facts(shown(line))
    assert [found[k] for k in ("row norms", "row sums", "rank", "singular values", "isometry")] == [
        norms, sums, rank, values, "no",
    ]  # fmt: skip


def test_nothing_is_claimed_that_was_not_computed(shown):
    found = facts(shown("2000 2000 --role zero"))
    assert found["rank, singular values"] == "not computed (the smaller side is over 512)"
    assert "rank" not in found
    assert found["rows sum to 0"] == "yes, exactly"
    found = facts(shown("4000000 3"))
    assert found["the rest"] == "not computed (over 2,097,152 entries)"
    assert list(found) == ["matrix m x n", "non-zeros", "the rest"]


def test_noise_is_drawn_for_small_matrices_only(shown, monkeypatch):
    """A row costs tens of microseconds however short it is: a minute for this one."""
    assert "row norms" in facts(shown("128 64 --loosen .1"))
    monkeypatch.setattr(ir.Plan, "entries", None)
    found = facts(shown("1000000 2 --loosen .1"))
    assert found["the rest"] == "not computed (over 8,192 entries)"
    assert found["noise"] == "deviation 0.1, in every entry; not in the picture"
    assert list(found) == ["matrix m x n", "non-zeros", "noise", "the rest"]


# show: pictures ----------------------------------------------------------------------------------


def signs(w, h, across):
    """Down-sample by loops: the sign of the largest entry of every cell, + of equal ones."""
    m, n = w.shape
    return [
        [
            int(np.sign(max(cell.reshape(-1), key=lambda value: (abs(value), value))))
            for j in range(across)
            for cell in [w[i * m // h : (i + 1) * m // h, j * n // across : (j + 1) * n // across]]
        ]
        for i in range(h)
    ]


SIZES = [(100, 60), (60, 100), (40, 34), (33, 300), (500, 2), (97, 89)]


@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_a_picture_without_colour(m, n, role, shown):
    out = shown(f"{m} {n} --role {role}")
    rows = re.findall(r"^  │(.*)│$", out, re.MULTILINE)
    w = np.array(
        by_hand.idi_matrix(m, n, 1.0) if role == "transit" else by_hand.idiz_matrix(m, n, 1.0)
    )
    assert len(rows) <= 24
    assert [[" +-".index(c) if c != "-" else -1 for c in row] for row in rows] == signs(
        w, len(rows), len(rows[0])
    )
    high, wide = -(-m // len(rows)), -(-n // len(rows[0]))
    assert f"a cell is up to {high} x {wide} entries: + positive, - negative" in out


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_a_picture_in_colour_has_two_cells_in_a_character(m, n, idinit, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = idinit(f"show {m} {n} --role zero")
    console, found = Console(), []
    for line in out.splitlines():
        text = Text.from_ansi(line)
        if not text.plain.startswith("  │"):
            continue
        pair = [], []
        for k, c in enumerate(text.plain[3:-1], 3):
            style = text.get_style_at_offset(console, k)
            sign = {6: 1, 1: -1}  # cyan, red
            front = sign.get(style.color.number if style.color else 0, 0)
            back = sign.get(style.bgcolor.number if style.bgcolor else 0, 0)
            pair[0].append({" ": 0, "▀": front, "▄": 0, "█": front}[c])
            pair[1].append({" ": 0, "▀": back, "▄": front, "█": front}[c])
        found += pair
    h = len(found) if any(found[-1]) or len(found) == m else len(found) - 1
    assert h <= 48
    assert found[:h] == signs(np.array(by_hand.idiz_matrix(m, n, 1.0)), h, len(found[0]))


def test_no_color_is_honoured(idinit, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = idinit("show 100 100 --role zero")
    assert "+ positive, - negative" in out
    assert not re.search(r"\x1b\[[\d;]*3\dm", out)


@pytest.mark.parametrize(
    ("name", "value", "coloured"),
    [("TERM", "xterm", True), ("TERM", "dumb", False), ("NO_COLOR", "1", False)],
)
def test_a_terminal_is_coloured_unless_it_cannot_or_should_not(
    name, value, coloured, idinit, monkeypatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv(name, value)
    _, out, _ = idinit("show 3 2")
    assert ("\x1b" in out) == coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()[2:4] == ["  1 ·", "  · 1"]


@pytest.mark.parametrize(("columns", "expected"), [(None, 80), (0, 80), (30, 40), (100, 100)])
def test_the_width_is_that_of_the_terminal(columns, expected, monkeypatch):
    def size(_):
        if columns is None:
            raise OSError("no terminal")
        return os.terminal_size((columns, 24))

    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", size)
    assert _terminal.width() == expected


@pytest.mark.parametrize(
    ("line", "both"),
    [
        ("1000000 1000000", False),
        ("1000000 1000000 --role zero", True),
        ("3 1000000000000 --wide fold_rms", False),
        ("1000000000000 3 --role zero", False),
        ("9 9 9999 --role zero", False),
        ("1000000000 2000000000 --role zero", True),
    ],
)
def test_any_size_is_drawn(line, both, shown):
    picture = "".join(re.findall(r"^  │(.*)│$", shown(line), re.MULTILINE))
    assert set(picture) - {" "} == ({"+", "-"} if both else {"+"})


@pytest.mark.parametrize(
    ("line", "nnz"),
    [
        ("4611686018427387904 4611686018427387904 --role zero", 2**63),
        ("4 4611686018427387904 4611686018427387904 --layout OIE", 4),
        ("4611686018427387904 4 4611686018427387904 --taps center", 2**62),
        ("1000000000000000000 1000000001000000000 --role zero", 2 * 10**18),
        (" ".join(["4611686018427387904"] * 3) + " --layout OIE --wide fold_rms", 2**62),
    ],
)
def test_even_sizes_that_no_array_can_have(line, nnz, idinit):
    status, out, err = idinit(f"show {line}")
    assert (status, err) == (0, "")
    assert "│+" in out
    assert f"{nnz:,} of " in facts(out)["non-zeros"]


def test_the_centre_of_a_kernel_that_no_array_can_have(shown):
    out = shown("3 2 4611686018427387904 --taps center")
    assert [matrix.tolist() for matrix in printed(out)] == [by_hand.idi_matrix(3, 2, 1.0)]
    assert facts(out)["matrix m x n"].startswith(f"3 x 2, at the tap ({2**61 - 1},)")


def test_a_large_noisy_matrix_is_drawn_without_its_noise_and_says_so(shown):
    out = shown("50 90 --loosen 0.01")
    assert facts(out)["noise"] == "deviation 0.01, in every entry; not in the picture"
    assert facts(out)["non-zeros"] == "4,500 of 4,500"
