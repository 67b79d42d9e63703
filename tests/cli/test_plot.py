"""`idinit show --plot`: a picture holds the weight's entries, and its file is whole or absent."""

from __future__ import annotations

import errno
import itertools
import os
import re
import subprocess
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

import by_hand
import idinit_ref as ir
from docs import gallery_figures
from idinit_ref.commands._matrix import NOISY, cells
from idinit_ref.commands._page import page
from idinit_ref.commands._scale import Scale
from idinit_ref.commands.plot import draw
from idinit_ref.core.sheets import Strip
from strategies import TAPS

SVG = "{http://www.w3.org/2000/svg}"


def drawn(shape, role="transit", *, dtype="float64", **options):
    figure = Figure()
    draw(ir.plan(shape, role, **options), figure, dtype=dtype)
    return figure


def heats(figure, kind):
    """The arrays of the heat maps of that kind, by their labels."""
    return {
        axes.get_label(): np.asarray(axes.images[0].get_array())
        for axes in figure.axes
        if axes.get_label().startswith(kind)
    }


def texts(figure):
    """All that is said, one for each line, and each as a whole."""
    found = [text.get_text() for text in figure.findobj(Text)]
    return [*(" ".join(text.split("\n")) for text in found), *"\n".join(found).split("\n")]


def coarse(w, h, across):
    """Down-sample by loops: the entry of each cell that is largest, the positive of equal ones."""
    m, n = w.shape
    out = np.zeros((h, across))
    for i, j in np.ndindex(h, across):
        cell = w[i * m // h : (i + 1) * m // h, j * n // across : (j + 1) * n // across]
        out[i, j] = max(cell.ravel(), key=lambda value: (abs(value), value))
    return out


# What is drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((10, 4), {}, [by_hand.idi_matrix(10, 4, 1.0)]),
        ((4, 10), {"gain": -2.0}, [by_hand.idi_matrix(4, 10, -2.0)]),
        ((4, 10), {"wide": "fold_rms"}, [by_hand.idi_matrix(4, 10, 1.0, "fold_rms")]),
        ((4, 10), {"wide": "fold_mean"}, [by_hand.idi_matrix(4, 10, 1.0, "fold_mean")]),
        ((4, 10), {"role": "zero"}, [by_hand.idiz_matrix(4, 10, 1e-6)]),
        ((5, 1), {"role": "zero", "eps": -0.5}, [by_hand.idiz_matrix(5, 1, -0.5)]),
        ((4, 10), {"layout": "IO"}, [by_hand.idi_matrix(10, 4, 1.0)]),
        ((5, 2, 3), {"layout": "EOI"}, [by_hand.idi_matrix(2, 3, 1.0)]),
        ((7, 3), {"blocks": (3, 3, 1)}, [by_hand.idi_matrix(m, 3, 1.0) for m in (3, 1)]),
        (
            (6, 3),
            {"role": ("transit", "zero"), "blocks": (3, 3), "eps": 0.5},
            [by_hand.idi_matrix(3, 3, 1.0), by_hand.idiz_matrix(3, 3, 0.5)],
        ),
        ((6, 4), {"gain": 1.7e308}, [by_hand.idi_matrix(6, 4, 1.7e308)]),
        ((6, 4), {"gain": 5e-324}, [by_hand.idi_matrix(6, 4, 5e-324)]),
        ((3, 2), {"gain": 0.1, "dtype": "bfloat16"}, [by_hand.idi_matrix(3, 2, 0.10009765625)]),
        ((60, 90), {"role": "zero"}, [by_hand.idiz_matrix(60, 90, 1e-6)]),
        ((6, 4), {"loosen": 0.5, "seed": 3}, [by_hand.weight((6, 4), loosen=0.5, seed=3)]),
        (
            (6, 4),
            {"loosen": 0.5, "groups": 2},
            [by_hand.weight((6, 4), loosen=0.5, groups=2)[:3]],
        ),
    ],
)
def test_the_matrix_is_that_of_the_specification(shape, options, expected):
    found = heats(drawn(shape, **options), "matrix")
    assert [matrix.tolist() for matrix in found.values()] == [
        np.asarray(w).tolist() for w in expected
    ]


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 3, 2), {"role": "zero"}),
        ((3, 20, 3), {"role": "zero", "form": "shifted"}),
        ((4, 12, 3), {}),
        ((3, 2, 4, 4), {"layout": "IOHW", "stride": (2, 2)}),
        ((6, 2, 3, 2), {"layout": "IOHW", "stride": (2, 1), "groups": 2, "transposed": True}),
        ((5, 3, 2), {"layout": "WIO", "stride": (-3,), "role": "zero"}),
        ((4, 2, 3), {"stride": (2,), "loosen": 0.1}),
        ((4, 2, 5), {"stride": (2,), "loosen": 0.1, "loosen_at": "entries"}),
        ((5, 2, 3), {}),
        ((3, 2, 1, 2, 2), {}),
        ((2, 3, 3, 4), {"layout": "HWIO"}),
        ((6, 2, 3), {"groups": 3, "role": "zero"}),
        ((6, 2, 3), {"groups": 3, "transposed": True, "layout": "IOW"}),
        ((4, 2, 1, 2), {"loosen": 0.1}),
        ((3, 2, 5, 5), {"role": "zero"}),
        ((6, 1, 7, 7), {}),
        ((2, 2, 15), {"role": "zero"}),
        ((2, 2, 3, 3, 3), {"role": "zero"}),
    ],
)
@pytest.mark.cases(4)
def test_a_kernels_panels_hold_its_taps(shape, options, taps):
    w = by_hand.weight(shape, taps=taps, **options)
    letters = options.get("layout", {3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)])
    groups = options.get("groups", 1)
    first = [slice(None)] * len(shape)  # of alike groups the first is drawn
    if options.get("transposed"):
        first[letters.index("I")] = slice(shape[letters.index("I")] // groups)
    else:
        first[letters.index("O")] = slice(shape[letters.index("O")] // groups)
    spatial = [c for c in "DHW" if c in letters]
    w = np.transpose(w[tuple(first)], [letters.index(c) for c in ["O", "I", *spatial]])
    panels = heats(drawn(shape, taps=taps, **options), "tap")
    places = list(np.ndindex(w.shape[2:]))
    assert list(panels) == [f"tap ({', '.join(map(str, place))})" for place in places]
    for panel, place in zip(panels.values(), places, strict=True):
        assert panel.tolist() == w[(..., *place)].tolist()


@pytest.mark.parametrize(
    ("kernel", "lines"),
    [
        ((5, 5), [5] * 5),
        ((7, 7), [7] * 7),
        ((11, 11), [11] * 11),
        ((1, 9), [9]),
        ((9,), [9]),
        ((15,), [8, 7]),
        ((15, 1), [8, 7]),
        ((2, 15), [8, 7, 8, 7]),
        ((3, 3, 3), [9] * 3),
        ((2, 4, 4), [4] * 8),
    ],
)
@pytest.mark.cases(2)
def test_taps_stand_as_in_the_kernel(kernel, lines):
    found = [axes for axes in drawn((4, 2, *kernel)).axes if axes.get_label().startswith("tap")]
    heights = [round(axes.get_position().y0, 6) for axes in found]  # in the order of the taps
    assert heights == sorted(heights, reverse=True)
    assert [heights.count(y) for y in dict.fromkeys(heights)] == lines
    across = [axes.get_position().x0 for axes in found]
    assert all(a < b for a, b in itertools.pairwise(across[: lines[0]]))
    assert across[lines[0] :][:1] in ([], across[:1])


@pytest.mark.parametrize("taps", ["outward", "diagonal", "channel_major", "center"])
@pytest.mark.parametrize("kernel", [(12, 12), (5, 5, 5), (40, 3), (127,)])
@pytest.mark.cases(4)
def test_too_many_taps_are_not_drawn_apart_and_it_says_so(kernel, taps):
    figure = drawn((4, 3, *kernel), taps=taps)
    assert heats(figure, "tap") == {}
    said = f"the {np.prod(kernel)} taps are too many for panels of their own"
    assert said in texts(figure)


def test_one_tap_is_the_matrix():
    figure = drawn((4, 3, 1, 1))
    assert heats(figure, "tap") == {}
    assert not [text for text in texts(figure) if "taps" in text and "one by one" in text]


def test_values_are_named():
    def legend(*args, **options):
        found = drawn(*args, **options).legends[0].get_texts()
        return [text.get_text() for text in found[:-1]]

    assert legend((4, 4)) == ["tau = 1"]
    assert legend((4, 4), "zero") == ["+eps = 1e-06", "-eps = -1e-06"]
    assert legend((4, 4), "zero", eps=-2.0) == ["-eps = 2", "+eps = -2"]
    assert legend((4, 4), "zero", dtype="bfloat16") == ["+eps = 9.984e-07", "-eps = -9.984e-07"]
    assert legend((2, 4), "zero", form="shifted") == ["+eps = 1e-06", "-eps = -1e-06"]
    four = ["+eps*sqrt(1/2) = 7.071e-07", "-eps*sqrt(1/2) = -7.071e-07"]
    assert legend((2, 8), "zero", form="shifted") == four
    three = ["+eps*sqrt(1/3) = 5.774e-07", "-eps*sqrt(4/3) = -1.155e-06"]
    assert legend((2, 6), "zero", form="shifted") == three
    assert legend((2, 5), wide="fold_rms") == ["tau/sqrt(2) = 0.7071", "tau/sqrt(3) = 0.5774"]
    assert legend((2, 5), wide="fold_mean") == ["tau/2 = 0.5", "tau/3 = 0.3333"]


def test_more_values_than_can_be_named_and_noise_have_a_colour_bar():
    for figure in (
        drawn((66, 300), wide="fold_mean", blocks=tuple(range(1, 12))),
        drawn((4, 4), loosen=0.01),
    ):
        assert [axes.get_label() for axes in figure.axes].count("values") == 1
        assert figure.legends == []


def test_titles_name_the_options():
    found = " ".join(texts(drawn((4, 3, 3, 3), gain=0.5, groups=2, taps="spatial_major")))
    assert "IDI  4 x 3 x 3 x 3  layout OIHW" in found
    assert "tau = 0.5; wide: truncate; taps: spatial_major; 2 groups; in float64" in found
    assert "matrix 2 x 27, 2 copies" in found
    assert "input j = s*3 + c (channel c, tap s of 3 x 3)" in found
    found = " ".join(texts(drawn((4, 3, 3, 3), "zero", form="shifted", stride=(2, 2))))
    assert "form: shifted; taps: outward; stride: 2, 2; in float64" in found
    assert "column = rank*3 + c, ranks by distance from (2, 2); phase of the taps" in found
    said = "noise of deviation 0.5, in the non-zeros, seed 0"
    assert said in " ".join(texts(drawn((4, 4), loosen=0.5, loosen_at="entries")))
    found = " ".join(texts(drawn((4, 3, 3, 3), taps="diagonal", tap=(0, 0))))
    assert "input j = t: channel t mod 3, rank (t + t // 9) mod 9" in found
    assert "at the tap (1, 1); 0 at the others" in texts(drawn((4, 3, 3, 3), taps="center"))


def test_roles_of_blocks_are_named():
    """Two kernels of one size: each has its panels, and the legend has the values of both."""
    roles = {"role": ("zero", "transit"), "blocks": (2, 2), "form": "shifted", "gain": 2.0}
    figure = drawn((4, 2, 3), **roles)
    said = texts(figure)
    about = "tau = 2; eps = 1e-06; wide: truncate; form: shifted; taps: outward; "
    about += "blocks: 2 zero, 2 transit; in float64"
    assert f"IDI+IDIZ  4 x 2 x 3  layout OIW {about}" in said
    assert list(heats(figure, "matrix")) == ["matrix 2 x 6, IDIZ", "matrix 2 x 6, IDI"]
    panels = [np.asarray(a.images[0].get_array()) for a in figure.axes if "tap" in a.get_label()]
    w = by_hand.weight((4, 2, 3), **roles)
    expected = [w[rows, :, tap] for rows in (slice(2), slice(2, 4)) for tap in range(3)]
    assert [panel.tolist() for panel in panels] == [part.tolist() for part in expected]
    named = [text.split(" = ")[0] for text in said if " = " in text and ";" not in text]
    assert {"tau", "+eps*sqrt(1/3)", "-eps*sqrt(4/3)"} <= {*named}


def test_many_sizes_of_blocks_are_not_all_drawn_and_it_says_so():
    figure = drawn((55, 4), blocks=tuple(range(1, 11)))
    assert list(heats(figure, "matrix")) == [f"matrix {m} x 4" for m in range(1, 7)]
    assert "4 matrices of other sizes are not drawn" in texts(figure)


def test_an_empty_weight_is_drawn_as_such():
    figure = drawn((0, 4))
    assert "no entries" in texts(figure)
    assert figure.axes == []


# Down-sampled -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(30, 17), (17, 30), (24, 24), (23, 2), (9, 1)])
@pytest.mark.parametrize("columns", [(0, 1), (1, 3), (4, 1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_cells_are_those_of_the_matrix(m, n, columns, sign):
    first, step = columns
    if first >= n:
        return
    for role in ("transit", "zero"):
        w = np.array(
            by_hand.idi_matrix(m, n, 2.0) if role == "transit" else by_hand.idiz_matrix(m, n, 2.0)
        )[:, first::step]
        size = max(m // 3, 1), max(w.shape[1] // 2, 1)
        terms = ir.plan((m, n), role, **{"gain" if role == "transit" else "eps": 2.0}).terms(m)
        count = w.shape[1]
        strips = [Strip(first, step, count, 0, 1, n)]
        found = cells(terms, m, count, size, strips=strips, sign=sign)
        assert found.tolist() == (sign * coarse(sign * w, *size)).tolist()


def test_a_large_noisy_matrix_has_no_noise_and_a_wide_one_is_down_sampled_with_it():
    figure = drawn((100, 90), loosen=0.5)
    assert NOISY < 100 * 90
    assert "noise of deviation 0.5, in every entry; not in the picture" in texts(figure)
    assert set(np.unique(heats(figure, "matrix")["matrix 100 x 90"])) == {0.0, 1.0}
    (found,) = heats(drawn((20, 400), loosen=0.5), "matrix").values()
    assert found.shape[1] < 400
    w = by_hand.weight((20, 400), loosen=0.5)
    assert found.tolist() == coarse(w, *found.shape).tolist()


def test_a_weight_of_a_trillion_entries():
    size = 10**6
    figure = drawn((size, size), "zero")
    (found,) = heats(figure, "matrix").values()
    h, w = found.shape
    edge = -(-size // h)
    assert h == w
    said = " ".join(texts(figure))
    assert f"each cell is up to {edge:,} x {edge:,} entries; it shows the largest entry" in said
    assert "a cell in two colours has both signs" in said
    expected = np.diag(np.full(h, 1e-6))
    expected[-1, 0] = -1e-6  # j = (i + 1) mod n, of the last row
    # The entry after the diagonal falls into the next cell where a cell ends.
    over = np.diag(np.full(h - 1, -1e-6), 1)
    assert found.tolist() == (expected + over).tolist()
    (halves,) = figure.axes[0].collections  # +eps and -eps in every cell on the diagonal
    assert len(halves.get_paths()) == h
    corners = halves.get_paths()[1].vertices  # of the cell (1, 1): its right half
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert np.allclose(low, np.array([1.5, 1]) * size / h - 0.5)
    assert np.allclose(high, np.array([2, 2]) * size / h - 0.5)
    red, _, blue, _ = halves.get_facecolor()[1]
    assert red > blue  # as what is negative
    assert {text.get_text() for text in figure.axes[0].get_xticklabels()} >= {"0", "200,000"}


@pytest.mark.parametrize("shape", [(2**62, 2**62), (10**12, 3), (3, 10**12), (9, 10**15, 9)])
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_any_size_is_drawn(shape, role):
    figure = drawn(shape, role)
    (found,) = heats(figure, "matrix").values()
    assert found.size <= 150 * 210
    assert found[0, 0] > 0
    both = any(isinstance(each, PolyCollection) for each in figure.axes[0].collections)
    assert ((found < 0).any() or both) == (role == "zero")


# Colours and places -------------------------------------------------------------------------------


def lightness(colour):
    """CIE L*, 0 to 100, of an RGB colour."""
    rgb = np.asarray(colour)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


@pytest.mark.parametrize(
    ("small", "large"), [(1.0, 1.0), (1e-6, 1.0), (0.5, 1.0), (5e-324, 1.7e308), (1e-300, 1e-300)]
)
def test_signs_and_sizes_are_told_apart_in_grey(small, large):
    norm, colours = Scale(small, large, {}).colours()
    plus, minus, zero = (lightness(colours(norm(v))) for v in (large, -large, 0.0))
    assert plus + 25 < minus < zero - 25
    plus, minus = (lightness(colours(norm(v))) for v in (small, -small))
    assert plus + 8 < minus < zero - 12


@pytest.mark.parametrize(("small", "large"), [(1.0, 1.0), (1e-6, 1.0), (0.9, 1.0), (1e-200, 1e200)])
def test_the_scale_rises_and_has_an_inverse(small, large):
    scale = Scale(small, large, {})
    sizes = np.array([small / 2, small, np.sqrt(small) * np.sqrt(large), large])
    values = np.concatenate([-sizes[::-1], [0.0], sizes])
    at = scale.position(values)
    assert (np.diff(at) >= 0).all()
    assert (at[0], at[4], at[-1]) == (-1.0, 0.0, 1.0)
    assert np.allclose(at, -at[::-1], rtol=0, atol=1e-15)
    assert np.allclose(scale.value(at), values, rtol=1e-9, atol=0)


def test_values_that_are_nearly_one_look_alike():
    scale = Scale(1.0, 1 + 1e-12, {})
    assert scale.position(1.0) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 4), by_hand.idiz_matrix(10, 4, 1e-6)),
        ((4, 10), by_hand.idiz_matrix(4, 10, 1e-6)),
        ((5, 1), by_hand.idiz_matrix(5, 1, 1e-6)),
    ],
)
def test_the_pixels_of_a_png_have_the_signs_of_the_entries(shape, expected, tmp_path):
    with page(tmp_path / "w.png") as figure:
        draw(ir.plan(shape, "zero"), figure)
    picture = imread(tmp_path / "w.png")
    high, wide = picture.shape[:2]
    (axes,) = (axes for axes in figure.axes if axes.get_label().startswith("matrix"))
    for i, j in np.ndindex(shape):
        pixel = axes.transData.transform((j + 0.35, i + 0.35))  # beside the number in the cell
        x, y = figure.transFigure.inverted().transform(pixel)
        red, _, blue = picture[int((1 - y) * high), int(x * wide), :3]
        sign = 0 if abs(red - blue) < 0.1 else 1 if blue > red else -1
        assert sign == np.sign(expected[i][j])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((10, 4), {}),
        ((1, 1), {}),
        ((1, 1000), {"role": "zero"}),
        ((16, 64, 3, 2), {"role": "zero"}),
        ((8, 1, 3, 3), {"groups": 8, "taps": "center"}),
        ((3072, 768), {"role": "zero"}),
        ((1280, 768), {"blocks": (768, 256, 256)}),
        ((2**62, 2**62), {"role": "zero"}),
        ((3, 10**12), {"wide": "fold_rms"}),
        ((8, 4, 2, 1, 2), {"role": "zero"}),
        ((2, 9, 1, 9), {}),
        ((8, 12), {"loosen": 0.01}),
        ((6, 1, 2), {"blocks": (1, 2, 3)}),
        ((16, 8, 5, 5), {}),
        ((64, 3, 7, 7), {"role": "zero"}),
        ((8, 8, 11, 11), {}),
        pytest.param((2048, 2048, 11, 11), {"role": "zero"}, marks=pytest.mark.nightly),
        ((1, 4000, 3, 3, 3), {}),
        ((8, 4, 15), {}),
        ((4, 4, 3, 5, 5), {}),
        ((3, 3, 12, 12), {}),
    ],
)
@pytest.mark.cases(3)
def test_no_text_lies_on_another_or_beside_the_page(shape, options):
    figure = drawn(shape, **options)
    FigureCanvasAgg(figure).draw()
    page_box = figure.bbox
    beyond = set()  # ticks outside what is shown, which are not drawn
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = axis.get_major_ticks()
        beyond |= {t for tick in ticks if not low <= tick.get_loc() <= high for t in (tick.label1,)}
    boxes = {}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible() and text not in beyond:
            if text.axes and text in text.axes.texts:
                continue  # the numbers in the cells
            box = text.get_window_extent()
            where = f"{text.get_text()!r} at {box.x0:.0f}, {box.y0:.0f}"
            if not text.axes or box.width:
                boxes[where] = box
    for where, box in boxes.items():
        assert page_box.x0 <= box.x0, where
        assert box.x1 <= page_box.x1, where
        assert page_box.y0 <= box.y0, where
        assert box.y1 <= page_box.y1, where
    for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, down) < 2, (a, b)


# The command and its files ------------------------------------------------------------------------


def test_an_svg_names_its_axes_and_values(idinit, tmp_path):
    path = tmp_path / "w.svg"
    status, out, err = idinit(f"show 64 64 3 3 --role zero --plot {path}")
    assert (status, err) == (0, "")
    without = idinit("show 64 64 3 3 --role zero")[1]
    assert out == f"{without}\n  picture in {path}\n"
    root = ElementTree.parse(path).getroot()
    found = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for said in (
        "IDIZ  64 x 64 x 3 x 3  layout OIHW",
        "eps = 1e-06; taps: outward; in float64",
        "+eps = 1e-06",
        "-eps = -1e-06",
        "0 (no entry)",
        "output i",
        "input j = rank*64 + c, ranks by distance from (1, 1)",
        "channel c",
        "tap 2, 1",
    ):
        assert said in found, said
    assert "IDIZ  64 x 64 x 3 x 3  layout OIHW" in path.read_text().split("</metadata>")[0]
    assert len(list(root.iter(f"{SVG}image"))) == 10
    assert os.listdir(tmp_path) == ["w.svg"]


@pytest.mark.nightly
def test_the_same_command_writes_the_same_bytes(idinit, tmp_path):
    """Also in another process, and with other hashes and matplotlib settings of one's own."""
    line = "show 6 4 3 --role zero --plot "
    (tmp_path / "matplotlibrc").write_text("font.family: monospace\naxes.labelcolor: red\n")
    settings = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "TZ": "X+9"}
    command = (
        "import sys; "
        "from idinit_ref.commands.cli import main; [main(x.split()) for x in sys.argv[1:]]"
    )
    names = ["b.svg", "b.png"]
    subprocess.run(
        [sys.executable, "-c", command, *(f"{line}{tmp_path / name}" for name in names)],
        env=os.environ | settings | {"SOURCE_DATE_EPOCH": "1"},
        check=True,
        capture_output=True,
    )
    for name, start in zip(names, (b"<?xml", b"\x89PNG\r\n\x1a\n"), strict=True):
        for again in range(2):
            path = tmp_path / f"{again}{name.upper()}"
            assert idinit(f"{line}{path}")[0] == 0
            assert path.read_bytes() == (tmp_path / name).read_bytes()
            assert path.read_bytes().startswith(start)


def test_an_older_picture_is_replaced_with_force_alone(idinit, tmp_path):
    path = tmp_path / "w.svg"
    path.write_text("old")
    status, out, err = idinit(f"show 2 2 --plot {path}")
    assert (status, out) == (2, "")
    assert err == (
        f"idinit: plot = {str(path)!r}, but this file should not exist yet; "
        "choose another name, or add --force to replace it\n"
    )
    assert path.read_text() == "old"
    assert idinit(f"show 2 2 --plot {path} --force")[0] == 0
    assert "<svg" in path.read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2 2 --plot {}/w.gif", "w.gif', but the name should end in .svg or .png; write "),
        ("2 2 --plot {}/weight", "weight', but the name should end in .svg or .png; write "),
        ("2 2 --plot {}/.svg", ".svg', but the name should end in .svg or .png; write "),
        ("2 2 --plot {}/no/w.svg", "w.svg', but the folder {}/no should exist; make it first"),
        ("2 2 --plot {}/a.file/w.svg", "w.svg', but the folder {}/a.file should exist; make it"),
        ("2 2 --plot {}/folder.svg", "it should be the name of a file, not of a folder"),
        ("2 2 --plot {}/folder.svg --force", "it should be the name of a file, not of a folder"),
        ("2 2 --plot {}/link.svg", "this file should not exist yet"),
        ("2 2 --force", "force = True, but it applies only to the file of --plot"),
        ("2 -2 --plot {}/w.svg", "every axis should be an integer >= 0"),
        ("2 2 --role zero --dtype float8_e4m3 --plot {}/w.svg", "it rounds to 0 in float8_e4m3"),
        ("2 2 --plot", "plot = None, but it needs a value; write --plot=VALUE"),
        (["show", "2", "2", "--plot", ""], "plot = '', but the name should end in .svg or .png"),
    ],
)
def test_bad_input_changes_and_prints_nothing(line, said, idinit, tmp_path):
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "a.file").write_text("")
    (tmp_path / "link.svg").symlink_to(tmp_path / "nowhere")
    before = sorted(os.listdir(tmp_path))
    if isinstance(line, str):
        line = f"show {line.format(tmp_path)}"
    status, out, err = idinit(line)
    assert (status, out) == (2, "")
    assert said.format(tmp_path) in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_without_matplotlib_it_says_how_to_get_it(idinit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = idinit(f"show 2 2 --plot {tmp_path}/w.svg")
    assert (status, out) == (2, "")
    assert err.startswith("idinit: plot = ")
    assert "a picture needs matplotlib, which cannot be imported" in err
    assert err.endswith("; pip install matplotlib\n")
    assert os.listdir(tmp_path) == []
    assert idinit("show 2 2")[0] == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("matplotlib.figure", "raise AttributeError('no\\nnumpy.bool8')"),
        ("matplotlib.figure", "import numpy._of_another_age"),
        ("matplotlib.style", "raise RuntimeError('a broken style')"),
        ("matplotlib.style", None),
    ],
)
def test_a_broken_matplotlib_is_one_line_too(name, text, idinit, tmp_path, monkeypatch):
    folder, part = tmp_path / "matplotlib", name.partition(".")[2]
    folder.mkdir()
    for each in ("__init__", "figure", "style"):
        (folder / f"{each}.py").write_text("class Figure: pass")
    (folder / f"{part}.py").unlink()
    if text is not None:
        (folder / f"{part}.py").write_text(text)
    for each in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = idinit(f"show 2 2 --plot {tmp_path}/w.svg")
    for each in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, each)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "w.svg', but a picture needs matplotlib, which cannot be imported (" in err
    assert err.endswith("; pip install matplotlib\n")


def test_no_picture_loads_no_matplotlib():
    code = (
        "import sys; from idinit_ref.commands import cli; cli.main(['show', '2', '2']); "
        "import idinit_ref.commands.plot; print('matplotlib' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"


def test_a_write_that_fails_leaves_what_was_there(idinit, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", full)
    (tmp_path / "w.svg").write_text("old")
    status, out, err = idinit(f"show 2 2 --plot {tmp_path}/w.svg --force")
    assert (status, out) == (2, "")
    assert err == (
        f"idinit: plot = '{tmp_path}/w.svg', but the disk should have room for it (No space left "
        "on device); make room, or choose another folder\n"
    )
    assert os.listdir(tmp_path) == ["w.svg"]
    assert (tmp_path / "w.svg").read_text() == "old"


@pytest.mark.parametrize("folder", ["/proc", "/sys", "ro"])
def test_a_folder_that_takes_no_file_is_named_with_the_cure(folder, idinit, tmp_path):
    if folder == "ro":
        folder = str(tmp_path)
        os.chmod(folder, 0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("root may write into a read-only folder, so there is no such error")
    if not os.path.isdir(folder):
        pytest.skip(f"this system has no {folder}, which is a folder of Linux")
    status, out, err = idinit(f"show 2 2 --plot {folder}/w.svg")
    assert (status, out, err.count("\n")) == (2, "", 1)
    start = f"idinit: plot = '{folder}/w.svg', but its folder should be writable ("
    assert err.startswith(start)
    assert err.endswith("); choose a folder that you can write to\n")
    assert "part" not in err


def test_a_name_that_is_too_long(idinit, tmp_path):
    status, out, err = idinit(f"show 2 2 --plot {tmp_path}/{'x' * 300}.svg")
    assert (status, out) == (2, "")
    assert err.endswith(
        "its name should be short enough for the system (File name too long); shorten it\n"
    )
    assert os.listdir(tmp_path) == []


def test_a_link_stays_and_what_it_leads_to_is_written(idinit, tmp_path):
    (tmp_path / "old.svg").write_text("old")
    for link, to in (("link.svg", "old.svg"), ("new.svg", "none.svg")):
        (tmp_path / link).symlink_to(to)
        assert idinit(f"show 2 2 --plot {tmp_path / link}")[0] == 2
        assert idinit(f"show 2 2 --plot {tmp_path / link} --force")[0] == 0
        assert os.readlink(tmp_path / link) == to
        assert "<svg" in (tmp_path / to).read_text()
    assert sorted(os.listdir(tmp_path)) == ["link.svg", "new.svg", "none.svg", "old.svg"]


def identity(path):
    """What is at a path, and when it was written; to read it changes none of these."""
    about = os.lstat(path)
    return about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns


@pytest.mark.parametrize("kind", ["device", "pipe", "loop"])
@pytest.mark.parametrize("force", ["", " --force"])
def test_what_is_no_file_is_left_alone(kind, force, idinit, tmp_path):
    path = tmp_path / "w.svg"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full" if kind == "device" else "w.svg")
    before = identity(path)
    status, out, err = idinit(f"show 2 2 --plot {path}{force}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "w.svg', but it should be the name of a file, not of a device, a pipe or a dead" in err
    assert identity(path) == before


def test_the_help_describes_it(idinit):
    status, out, _ = idinit("show --help")
    assert status == 0
    assert "--plot FILE" in out
    assert "FILE.svg or FILE.png (needs matplotlib)" in " ".join(out.split())


# The gallery --------------------------------------------------------------------------------------


@pytest.mark.nightly  # each time the site draws it (tests/docs)
def test_the_gallery_is_drawn_and_has_captions(tmp_path):
    captions = gallery_figures.captions()
    gallery_figures.main([str(tmp_path / "new" / "folder")])
    files = sorted((tmp_path / "new" / "folder").iterdir())
    assert [path.name for path in files] == sorted(f"{name}.svg" for name in captions)
    for path in files:
        assert len(captions[path.stem]) > 100
        root = ElementTree.parse(path).getroot()
        assert any(True for _ in root.iter(f"{SVG}text"))


@pytest.mark.parametrize("name", ["start", "audit"])
def test_the_pictures_of_the_readme_are_those_of_the_gallery(name, tmp_path):
    title = gallery_figures.captions()[name].partition("\n")[0]
    with page(tmp_path / "now.svg", title=title) as figure:
        gallery_figures.FIGURES[name](figure)
    stored = Path(gallery_figures.__file__).with_name(f"{name}.svg").read_text()
    now, stored = _parts((tmp_path / "now.svg").read_text()), _parts(stored)
    assert now.text == stored.text
    np.testing.assert_allclose(now.places, stored.places, atol=0.5)  # of a point
    for drawn, kept in zip(now.images, stored.images, strict=True):
        np.testing.assert_allclose(drawn, kept, atol=0.01)


class _Parts(NamedTuple):
    """One page: what is written on it, where its lines are, and its images."""

    text: str
    places: list[float]
    images: list[np.ndarray]


def _parts(svg):
    """Take a page apart, since the last digit of a place is not the same on every processor.

    Matplotlib hashes places into the names of clip paths, and Pillow's compression of an image
    is its own, so neither says whether two pages show the same.
    """
    data = re.compile(r"base64,\s*([\w+/=\s]+)")
    name = re.compile(r"\b(?:[pm]|image)[0-9a-f]{10}\b")
    number = re.compile(r"-?\d+\.\d+")
    images = [imread(BytesIO(b64decode(found))) for found in data.findall(svg)]
    svg = name.sub("", data.sub("", svg))
    return _Parts(number.sub("", svg), [float(at) for at in number.findall(svg)], images)
