"""The command `idinit`: what it prints is what the specification says, and it fails in one line."""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from rich.text import Text

import by_hand
import idinit_ref as ir
from idinit_ref import cli, export

RUN = [sys.executable, "-c", "from idinit_ref.cli import main; raise SystemExit(main())"]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """No terminal, 80 columns."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def idinit(capsys):
    """Run the command in this process: (status, stdout, stderr)."""

    def run(line):
        status = cli.main(line.split() if isinstance(line, str) else line)
        return status, *capsys.readouterr()

    return run


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
    assert shown("2 1 11").splitlines()[3].split()[1:] == [str(s) for s in range(11)]


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
        ("7 3 --blocks 3,3,1", [by_hand.idi_matrix(3, 3, 1.0), by_hand.idi_matrix(1, 3, 1.0)]),
        ("3 7 --layout IO --blocks 3,4", [by_hand.idi_matrix(m, 3, 1.0) for m in (3, 4)]),
        ("6 2 3 --groups 3 --role zero --eps 2", [by_hand.idiz_matrix(2, 6, 2.0)]),
        ("6 2 3 --groups 3 --transposed --layout IOW", [by_hand.idi_matrix(2, 6, 1.0)]),
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
    assert facts(out)["copies"] == "2; each with noise of its own, the first is shown"
    assert facts(out)["exact transit (T1)"] == "no"


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
    monkeypatch.setattr(cli, "_SVD", limit)
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
    side = "yes" if m >= n else "only of its rows (W W^T = I)"
    assert found["isometry"] == (side if ones else "no")


def test_an_isometry_that_a_dtype_disturbs_says_by_how_much(shown):
    out = shown("3 7 --wide fold_rms --dtype float32")
    assert facts(out)["isometry"] == "only of its rows (W W^T = I), to within 2e-08"
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
        ("4 4611686018427387904 4611686018427387904", 4),
        ("4611686018427387904 4 4611686018427387904 --taps center", 2**62),
        ("1000000000000000000 1000000001000000000 --role zero", 2 * 10**18),
        (" ".join(["4611686018427387904"] * 3) + " --wide fold_rms", 2**124),
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


@pytest.mark.parametrize(("columns", "encoding"), [(5, "utf-8"), (20, "latin-1"), (80, "ascii")])
def test_narrow_terminals_and_other_encodings(columns, encoding):
    code = "import sys; from idinit_ref.cli import main; [main(a.split()) for a in sys.argv[1:]]"
    lines = ["show 3 2", "show 90 90 --role zero", "presets"]
    env = os.environ | {"COLUMNS": str(columns), "PYTHONIOENCODING": encoding}
    run = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    assert "positive" in run.stdout.decode(encoding)


@pytest.mark.parametrize("columns", [0, 10, 39])
def test_a_width_that_cannot_be_is_40(columns, idinit, monkeypatch):
    found = []
    for width in (columns, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        found.append([idinit(line) for line in ("presets", "show 4 4", "show 50 50")])
    assert found[0] == found[1]
    assert "LlamaFo" in found[0][0][1]


# export ------------------------------------------------------------------------------------------


def test_presets(idinit):
    status, out, err = idinit("presets")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if re.search(r"\d", line)]
    assert [row[0] for row in rows] == ["bert-base", "gpt2", "llama-3-8b", "resnet50", "vit-b-16"]
    assert rows[1] == ["gpt2", "GPT2LMHeadModel", "148", "124,439,808"]


def test_export_writes_the_file_and_says_what_is_in_it(idinit, tmp_path):
    path = tmp_path / "r.safetensors"
    line = ["export", "--preset", "resnet50", "--out", str(path), "--dtype", "float16"]
    status, out, err = idinit([*line, "--eps", "0.5", "--gain", "2"])
    assert (status, err) == (0, "")
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if line.startswith("  ")]
    table = {row[0]: row[1:] for row in rows if len(row) == 4}
    weights = safetensors.torch.load_file(path)
    assert len(weights) == 55
    by_role = {"transit": [0, 0], "zero": [0, 0], "bias": [0, 0]}
    for name, weight in weights.items():
        role = {2.0: "transit", 0.5: "zero", 0.0: "bias"}[weight.max().item()]
        assert (role == "bias") == name.endswith("bias")
        by_role[role][0] += 1
        by_role[role][1] += weight.numel()
    for role, (tensors, entries) in by_role.items():
        assert table[role] == [f"{tensors:,}", f"{entries:,}", f"{2 * entries:,}"]
    assert table["left out: normalisation"] == ["106", "53,120", "-"]
    assert table["left out: batch statistics"] == ["159", "53,173", "-"]
    flat = " ".join(out.split())
    assert f"{path}: {path.stat().st_size:,} bytes, float16, 55 tensors" in flat
    assert "it keeps the model's own initialisation" in flat
    assert "ResNetForImageClassification(ResNetConfig(num_labels=1000))" in flat


def test_what_it_says_about_loading_runs(idinit, tmp_path):
    path = tmp_path / "g.safetensors"
    _, out, _ = idinit(["export", "--preset", "resnet50", "--out", str(path)])
    code = "\n".join(line[2:] for line in out.splitlines() if re.match(r"  (from|model)", line))
    names: dict[str, object] = {}
    exec(code, names)
    assert torch.equal(names["model"].classifier[1].weight, torch.eye(1000, 2048))
    path.unlink()


def test_export_is_the_same_every_time_and_replaces_only_by_force(idinit, tmp_path):
    path = tmp_path / "r.safetensors"
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", str(path)]
    assert idinit(line)[0] == 0
    before, stamp = path.read_bytes(), path.stat().st_ino
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err == (
        f"idinit: out = '{path}', but no such file should be there yet; "
        "choose another name, or add --force to replace it\n"
    )
    assert path.stat().st_ino == stamp
    assert idinit([*line, "--force"])[0] == 0
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed_and_one_that_leads_nowhere_is_there_too(idinit, tmp_path):
    link, real = tmp_path / "link.safetensors", tmp_path / "real"
    link.symlink_to("real")
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", str(link)]
    status, _, err = idinit(line)
    assert (status, list(tmp_path.iterdir())) == (2, [link])
    assert "add --force to replace it" in err
    assert idinit([*line, "--force"])[0] == 0
    assert os.readlink(link) == "real"
    assert len(safetensors.torch.load(real.read_bytes())) == 55


def test_a_name_that_is_no_text(idinit, tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"\xff.safetensors"))
    line = ["export", "--preset", "resnet50", "--dtype", "float16", "--out", path]
    status, out, err = idinit(line)
    assert (status, err) == (0, "")
    assert "\\udcff.safetensors: " in out
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.safetensors"]


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("terminal", [False, True])
def test_progress_only_after_a_second_a_bar_on_a_terminal_and_else_lines(
    slow, terminal, idinit, tmp_path, monkeypatch
):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    clock = itertools.count(step=0.5)  # it is asked once or twice an update
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock) if slow else 0)
    line = ["export", "--preset", "resnet50", "--dtype", "float8_e5m2", "--eps", "1e-3"]
    status, _, err = idinit([*line, "--out", str(tmp_path / "r.safetensors")])
    assert status == 0
    if not slow:
        assert err == ""
    elif terminal:
        assert "MB" in err
        assert "idinit:" not in err
    else:
        done = [re.fullmatch(r"idinit: (\d+\.\d) of 25\.5 MB", t)[1] for t in err.splitlines()]
        assert 2 < len(done) < next(clock) / 5
        assert done == sorted(set(done), key=float)


def test_nobody_to_read_the_progress_does_not_stop_the_work(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        writes = 0

        def write(self, _):
            Gone.writes += 1
            raise BrokenPipeError

    monkeypatch.setattr(cli.time, "monotonic", itertools.count(step=10).__next__)
    monkeypatch.setattr(sys, "stderr", Gone())
    words = ["export", "--preset", "resnet50", "--dtype", "float16"]
    assert cli.main([*words, "--out", str(tmp_path / "r.safetensors")]) == 0
    assert Gone.writes > 2


# How it fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("show 3 -3", "shape = (3, -3), but every axis should be an integer >= 0"),
        ("show 3", "shape = (3,), but without a layout it should have 2 to 5 axes"),
        ("show 3 3 --gain nan", "gain = nan, but it should be finite and not 0"),
        ("show 3 3 --gain -inf", "gain = -inf, but it should be finite and not 0"),
        ("show 3 99999999999999999999999", "shape = (3, 99999999999999999999999), but every axis"),
        ("show 3 3 --eps 1", "eps = 1.0, but IDI (role 'transit') has no such option"),
        ("show 3 3 --blocks 1,1", "blocks = (1, 1), but the sizes should add up"),
        ("show 3 3 --layout OX", "layout = 'OX', but for shape (3, 3) the letter 'I'"),
        ("show 3 3 --dtype int8", "dtype = 'int8', but it should be a real floating or complex"),
        ("show 3 3 --role zero --dtype float8_e4m3fn", "eps = 1e-06, but it rounds to 0"),
        ("show", "the following arguments are required: SIZE (see idinit show --help)"),
        ("show 3 x", "argument SIZE: invalid int value: 'x' (see idinit show --help)"),
        ("show 3 3 --tap 1;1", "argument --tap: invalid integers value: '1;1'"),
        ("", "the following arguments are required: COMMAND (see idinit --help)"),
        ("export --preset gpt --out a.safetensors", "did you mean 'gpt2'?"),
        ("export --preset gpt2 --out a.bin", "path = 'a.bin', but its suffix should be"),
        (["export", "--preset", "gpt2", "--out", ""], "path = '', but its suffix should be .safet"),
        ("export --preset gpt2 --out gone/a.safetensors", "No such file or directory"),
        ("export --preset gpt2 --out a.safetensors --dtype int8", "invalid choice: 'int8'"),
        (
            "export --preset gpt2 --out a.safetensors --dtype float8_e5m2",
            "eps = 1e-06, but it rounds to 0 in float8_e5m2",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(line, text, idinit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert err.startswith("idinit: ")
    assert err.count("\n") == 1
    assert text in err
    assert list(tmp_path.iterdir()) == []


def test_version_and_help(idinit):
    assert idinit("--version") == (0, f"idinit {ir.__version__}\n", "")
    for line in ("--help", "show --help", "export --help"):
        status, out, err = idinit(line)
        assert (status, err) == (0, "")
        assert out.startswith("usage: idinit")


def test_without_rich_it_names_the_extra():
    code = f"import sys; sys.modules['rich'] = None; {RUN[2]}"
    run = subprocess.run([RUN[0], "-c", code, "show", "3", "3"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == 'idinit: it needs rich: pip install "idinit-ref[cli]"\n'
    run = subprocess.run([RUN[0], "-c", code, "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, f"idinit {ir.__version__}\n")


def test_another_missing_module_is_not_blamed_on_rich(monkeypatch):
    def broken(*_):
        raise ImportError("no", name="numpy.linalg")

    monkeypatch.setattr(cli, "_run", broken)
    with pytest.raises(ImportError, match="no"):
        cli.main([])


def test_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "idinit")
    run = subprocess.run([command, "show", "2", "3"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert "1 · ·" in run.stdout


@pytest.mark.parametrize("words", [["show", "30", "30"], ["presets"]])
def test_a_broken_pipe_is_quiet(words):
    run = subprocess.Popen([*RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    err = run.stderr.read()
    run.stderr.close()
    assert (run.wait(), err) == (1, b"")


@pytest.mark.parametrize(
    ("number", "usual"),
    [("SIGINT", "default_int_handler"), ("SIGTERM", "SIG_DFL"), ("SIGHUP", "SIG_DFL")],
)
def test_a_stopped_export_leaves_no_file(number, usual, tmp_path):
    """A real signal while the file is being written."""
    code = f"import signal; signal.signal(signal.{number}, signal.{usual}); {RUN[2]}"
    words = ["export", "--preset", "llama-3-8b", "--out", str(tmp_path / "l.safetensors")]
    run = subprocess.Popen([RUN[0], "-c", code, *words], stderr=subprocess.PIPE, text=True)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert run.poll() is None
        time.sleep(0.001)
    (part,) = tmp_path.iterdir()
    assert re.fullmatch(r"l\.safetensors\.part-[0-9a-f]+", part.name)
    run.send_signal(getattr(signal, number))
    _, err = run.communicate()
    assert run.returncode == 128 + getattr(signal, number)
    lines = [line for line in err.splitlines() if " GB" not in line]
    assert lines == [f"idinit: stopped by {number}; no unfinished file is left"]
    assert list(tmp_path.iterdir()) == []


def test_signals_are_the_callers_again_and_what_it_handles_or_ignores_stays(monkeypatch):
    during = {}

    def run(_):
        during.update({number: signal.getsignal(number) for number in numbers})
        signal.raise_signal(signal.SIGTERM)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    handlers = (signal.SIG_DFL, signal.SIG_IGN, lambda *_: None)
    before = [signal.signal(n, handler) for n, handler in zip(numbers, handlers, strict=True)]
    monkeypatch.setattr(cli, "_run", run)
    try:
        assert cli.main([]) == 128 + signal.SIGTERM
        assert [signal.getsignal(number) for number in numbers] == list(handlers)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert [
        during[number] is handler for number, handler in zip(numbers, handlers, strict=True)
    ] == [False, True, True]


def test_it_runs_in_a_thread_too(capsys):
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(cli.main, ["show", "2", "3"]).result() == 0
    assert "1 · ·" in capsys.readouterr().out


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [("show 10 4", 0, ""), ("presets", 0, ""), ("show 3 -3", 2, "idinit: shape = (3, -3), but")],
)
def test_a_closed_output_is_quiet(closed, words, status, text):
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", *RUN, *words.split()]
    run = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    assert run.returncode == status
    assert run.stderr.startswith("" if "2" in closed else text)
    assert run.stderr.count("\n") == (text != "" and "2" not in closed)


def test_a_file_that_cannot_be_written(idinit, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(export, "open", refuse, raising=False)
    path = tmp_path / "g.safetensors"
    status, out, err = idinit(["export", "--preset", "gpt2", "--out", str(path)])
    assert (status, out) == (2, "")
    assert err.startswith(
        f"idinit: path = '{path}', but it could not be written (Permission denied)"
    )
    assert err.count("\n") == 1


def test_an_error_of_the_system_names_its_file(idinit, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/x/y")

    monkeypatch.setattr(cli.presets, "load", refuse)
    status, _, err = idinit("export --preset gpt2 --out /x/y")
    assert (status, err) == (2, "idinit: /x/y: Permission denied\n")
