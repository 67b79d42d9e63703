"""The page one can touch, in a real browser: its numbers, its keys, its narrow and dark sides."""

from __future__ import annotations

import json
import os
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

import idinit_ref as ir

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explore.html"
ORDERS = ["outward", "diagonal", "center", "channel_major", "spatial_major"]
CASES = json.loads((ROOT / "tests" / "golden.json").read_text())
BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FIELDS = ["role", "m", "n", "gain", "eps", "wide", "form", "k", "taps", "stride"]
FIELDS += ["signal", "layers", "seed"]
START = {"m": "10", "n": "4", "k": "0", "gain": "1", "eps": "1e-6", "seed": "0", "layers": "50"}
START["stride"] = "1"
SCHEMES = ["light", pytest.param("dark", marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def browser():
    missing = [str(path) for path in (BROWSER, DRIVER) if not path.exists()]
    if missing:
        left_out = pytest.fail if os.environ.get("CI") else pytest.skip
        left_out(
            f"{' and '.join(missing)} should be there: apt-get install chromium chromium-driver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    yield driver
    driver.quit()


@pytest.fixture
def page(browser):
    """The page as first seen, wide and light; at the end nothing may have gone wrong in it."""
    seen(browser, 1200, "light")
    browser.get_log("browser")
    go(browser)
    yield browser
    assert browser.get_log("browser") == []


def seen(browser, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )


def go(browser, state=""):
    browser.get("about:blank")  # else only the part behind # would change
    browser.get(f"{PAGE.as_uri()}#{state}")


def ask(browser, script, *args):
    """What a script's expression is, floats and all: JSON keeps every bit of a finite float."""
    return json.loads(browser.execute_script(f"return JSON.stringify({script})", *args))


def settled(browser):
    """Let what waits for the next frames be done."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def same(got, want):
    got = np.array(got, np.float64).reshape(want.shape)
    return got.tobytes() == want.tobytes()


# Numbers ------------------------------------------------------------------------------------------


def covered(case):
    """What the page has: one matrix or kernel, without groups, blocks or batch axes."""
    return "groups" not in case and "blocks" not in case and "E" not in case["layout"]


def options(case):
    which = ("role", "wide", "form", "taps", "tap", "stride")
    names = {k: case[k] for k in which if k in case}
    return names | {"gain" if case["role"] == "transit" else "eps": case["value"]}


def test_golden(page):
    cases = [case for case in CASES if covered(case)]
    assert len(cases) == 185
    assert sum(len(case["layout"]) > 2 for case in cases) == 130
    asked = []
    for case in cases:
        axes = dict(zip(case["layout"], case["shape"], strict=True))
        size = [axes[letter] for letter in "DHW" if letter in axes]
        asked.append([axes["O"], axes["I"], size, options(case)])
    answers = ask(
        page,
        """arguments[0].map(([m, n, size, options]) => size.length
           ? idinit.kernel(m, n, size, options) : idinit.weight(m, n, options).flat())""",
        asked,
    )
    for case, answer in zip(cases, answers, strict=True):
        want = np.zeros(prod(case["shape"]))
        for position, value in case["entries"]:
            want[position] = value
        order = [case["layout"].index(letter) for letter in "OIDHW" if letter in case["layout"]]
        want = want.reshape(case["shape"]).transpose(order)  # the page says O, I, space
        assert same(answer, np.ascontiguousarray(want)), case


def random_weight(draw):
    """Any weight of the page: outputs, inputs, kernel, and options for it and for the library."""
    m, n = (int(size) for size in draw.integers(1, 65, 2))
    kernel = [int(k) for k in draw.integers(1, 6, int(draw.integers(0, 4)))]
    more = {}
    if kernel:
        m, n = min(m, 12), min(n, 12)
        more["taps"] = str(draw.choice(ORDERS))
        corner = more["taps"].endswith("_major")
        if draw.random() < 0.5 and not corner:
            more["tap"] = [int(draw.integers(k)) for k in kernel]
        if draw.random() < 0.5:
            more["stride"] = [int(draw.choice([-3, -2, -1, 1, 2, 3])) for _ in kernel]
    value = float(draw.normal() * 10.0 ** draw.integers(-9, 9))
    if draw.random() < 0.5:
        more |= {"gain": value, "wide": str(draw.choice(["truncate", "fold_rms", "fold_mean"]))}
    else:
        more |= {"eps": value, "form": str(draw.choice(["pair", "shifted"]))}
    return m, n, kernel, more


def test_random_weights_are_the_libraries(page):
    draw = np.random.default_rng(0)
    asked, wants = [], []
    for _ in range(300):
        m, n, kernel, more = random_weight(draw)
        make, role = (ir.idi, "transit") if "gain" in more else (ir.idiz, "zero")
        wants.append(make((m, n, *kernel), **more))
        asked.append([m, n, kernel, more | {"role": role}])
    answers = ask(
        page,
        """arguments[0].map(([m, n, size, options]) => size.length
           ? idinit.kernel(m, n, size, options) : idinit.weight(m, n, options).flat())""",
        asked,
    )
    for question, answer, want in zip(asked, answers, wants, strict=True):
        assert same(answer, want), question


@pytest.mark.parametrize("taps", ORDERS)
@pytest.mark.cases(2)
def test_the_page_shows_the_kernel_that_it_says(page, taps):
    """Every panel of the kernel, pointed at: the entries of the library's, whose stride is 2."""
    go(page, f"m=3&n=2&k=4&stride=2&taps={taps}")
    script = "idinit.kernel(3, 2, [4, 4], {taps: arguments[0], stride: [2, 2]})"
    want = ir.idi((3, 2, 4, 4), taps=taps, stride=(2, 2))
    assert same(ask(page, script, taps), want)
    page.execute_script("document.getElementById('tapmap').focus()")
    for i, o in ((0, 0), (1, 0), (5, 3), (11, 7)):  # a line of the picture, a place in it
        page.execute_script("document.getElementById('tapmap').blur()")
        page.execute_script("document.getElementById('tapmap').focus()")
        keys(page, "\ue011", *["\ue013"] * 12, *["\ue015"] * i, *["\ue014"] * o)
        (a, output), (b, channel) = divmod(i, 3), divmod(o, 2)
        said = f"tap ({a}, {b}), output {output}, input {channel}: {want[output, channel, a, b]:g}"
        assert text_of(page, "tapmap-at") == said


def test_phases_are_told(page):
    go(page, "m=8&n=8&k=4&stride=2")
    assert "32 columns = 8 channels \u00d7 4 taps (across), outward" in text_of(page, "what")
    assert "first of 4 phases" in text_of(page, "what")
    assert "1 (32\u00d7)" in text_of(page, "chips")  # one of each output in each phase
    go(page, "m=8&n=8&k=4&stride=2&taps=channel_major")  # which has none
    assert "128 columns = 8 channels \u00d7 16 taps (across), channel_major." in text_of(
        page, "what"
    )
    assert "phase" not in text_of(page, "what")


def matrices():
    draw = np.random.default_rng(1)
    shapes = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 5), (9, 4), (4, 9), (64, 64), (30, 17), (17, 30)]
    yield from (ir.idi(shape, gain=-0.75) for shape in shapes)
    yield from (ir.idi(shape, wide="fold_mean") for shape in [(4, 11), (6, 64)])
    yield from (ir.idiz(shape) for shape in shapes)
    yield from (ir.idiz((5, 8)), ir.idiz((128, 100), eps=3.0), np.zeros((3, 2)))
    for m, n in [(6, 6), (3, 20), (40, 12)]:
        yield draw.normal(size=(m, n))
        yield draw.normal(size=(m, 2)) @ draw.normal(size=(2, n))  # of rank 2
    yield draw.normal(size=(9, 3)) * [1e6, 1.0, 1e-6]


def test_facts(page):
    asked = list(matrices())
    assert len(asked) >= 30
    answers = ask(page, "arguments[0].map(idinit.facts)", [w.tolist() for w in asked])
    for w, found in zip(asked, answers, strict=True):
        s = np.linalg.svd(w, compute_uv=False)
        assert found["rank"] == np.linalg.matrix_rank(w)
        for fact, truth, options in (
            ("singular", s, {"rtol": 1e-12, "atol": 1e-14 * s[0]}),
            ("norms", np.linalg.norm(w, axis=1), {"rtol": 1e-14}),
            ("sums", w.sum(1), {"rtol": 1e-13, "atol": 1e-9}),
        ):
            np.testing.assert_allclose(found[fact], truth, **options, err_msg=f"{fact} of {w}")
        assert found["nonzeros"] == np.count_nonzero(w)
        passes = w @ np.diag(np.arange(1.0, w.shape[1] + 1))  # output i is input i mod n
        want = np.resize(np.arange(1.0, w.shape[1] + 1), w.shape[0])
        assert found["transit"] == (w.shape[0] >= w.shape[1] and (passes.sum(1) == want).all())


def test_isometry_and_transit_are_told(page):
    names = ("isometry", "transit")
    asked = [(4, 4, 1.0), (4, 4, -1.0), (8, 4, 1.0), (3, 5, 1.0), (4, 4, 2.0)]
    answers = ask(
        page,
        "arguments[0].map(([m, n, gain]) => idinit.facts(idinit.weight(m, n, {gain})))",
        asked,
    )
    found = [tuple(answer[name] for name in names) for answer in answers]
    assert found == [(True, True), (True, False), (False, True), (True, False), (False, False)]
    zero = ask(page, "idinit.facts(idinit.weight(6, 6, {role: 'zero'}))")
    assert (zero["transit"], zero["rank"], set(zero["sums"])) == (False, 5, {0})


def test_a_smaller_side_over_128_is_left_out_unless_orthogonal(page):
    script = "idinit.facts(idinit.weight(...arguments[0])).singular"
    assert ask(page, script, [300, 200, {"role": "zero"}]) is None
    assert ask(page, script, [200, 200, {}]) == [1.0] * 200


@pytest.mark.parametrize("shape", [(200, 200), (300, 200), (200, 300), (129, 257), (400, 129)])
@pytest.mark.cases(2)
def test_the_rank_of_a_large_idiz_is_that_of_its_formula(page, shape):
    m, n = shape
    go(page, f"role=zero&m={m}&n={n}")
    said = page.execute_script(
        """return [...document.querySelectorAll('dt')].find(
           term => term.textContent === 'rank').nextElementSibling.textContent"""
    )
    rank = int(np.linalg.matrix_rank(ir.idiz(shape)))
    assert said == f"{rank} of {min(m, n)}" + " (full)" * (rank == min(m, n))


def test_depth(page):
    """T6, to the last bit where products are exact; and what the two random ones do on average."""
    x = ask(page, "Array.from(idinit.input(64, 'gaussian', 3))")
    assert abs(np.mean(x)) < 0.5
    assert abs(np.std(x) - 1) < 0.3
    runs = ask(
        page,
        """arguments[0].map(([kind, gain]) =>
           idinit.depth(kind, Float64Array.from(arguments[1]), 40, {gain, seed: 5}))""",
        [["idi", 1], ["idi", 2], ["idi", 1e90], ["idi", -1], ["kaiming", 1], ["orthogonal", 1]],
        x,
    )
    one, two, huge, minus, kaiming, orthogonal = runs
    whole, half = (np.log10(np.mean(np.square(v))) for v in (x, np.maximum(x, 0)))
    layers = np.arange(41)
    for run, gain in ((one, 1.0), (two, 2.0), (huge, 1e90)):
        gains = 2 * layers * np.log10(gain)
        relu = np.where(layers == 0, whole, half + gains)
        for kind, truth in (("linear", whole + gains), ("relu", relu)):
            name = f"{kind}, gain {gain}"
            np.testing.assert_allclose(run[kind], truth, rtol=1e-12, atol=1e-12, err_msg=name)
    assert minus["relu"][2:] == [None] * 39  # JSON has no -Infinity: all is 0
    np.testing.assert_allclose(orthogonal["linear"], whole, atol=1e-12)
    assert abs(orthogonal["relu"][40] - 40 * np.log10(0.5)) < 4
    assert abs(kaiming["linear"][40] - 40 * np.log10(2)) < 2
    assert abs(kaiming["relu"][40]) < 4


@pytest.mark.parametrize("n", [1, 2, 3, 64, 100])
@pytest.mark.cases(2)
def test_the_wave_has_a_mean_square_of_one(page, n):
    assert np.mean(np.square(ask(page, f"Array.from(idinit.input({n}, 'wave', 0))"))) == (
        pytest.approx(1, abs=1e-14)
    )


def test_the_seed_changes_the_draw(page):
    first, again, other = ask(page, "[1, 1, 2].map(s => [...idinit.input(5, 'gaussian', s)])")
    assert first == again
    assert not set(first) & set(other)


# The page -----------------------------------------------------------------------------------------

STATES = [
    "",
    "m=12&n=16",
    "m=16&n=8&k=3",
    "m=5&n=5&k=5&stride=3&taps=diagonal",
    "m=4&n=13&role=zero&form=shifted",
    "m=64&n=64&role=zero",
    "m=500&n=900&k=11",
    "m=4096&n=1&k=2",
    "m=1&n=1&gain=-1e100&layers=100",
    "m=0&gain=0&n=&layers=500&role=x",
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.nightly
def test_360_pixels_are_enough(page, scheme):
    seen(page, 360, scheme)
    for state in STATES:
        go(page, state)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360, state
        assert page.execute_script("return innerWidth") == 360


def test_nothing_is_loaded(page):
    text = PAGE.read_text()
    assert not re.search(r"\w//\w|['\"(]//", text), "an address"
    assert re.findall(r'(?:src|href)="(?!#|data:,")[^"]*"', text) == ['href="index.html"']  # of <a>
    assert not re.search(r"@import|\burl\(|\bfetch\(|XMLHttpRequest|\bimport\b *[({'\"]", text)
    assert "default-src 'none'" in text
    for state in STATES[2::3]:
        go(page, state)
        assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_link_leads_back_to_the_site(page, tmp_path):
    (tmp_path / "explore.html").write_text(PAGE.read_text())  # as in the site
    (tmp_path / "index.html").write_text("<title>the site</title>")
    page.get((tmp_path / "explore.html").as_uri())
    page.find_element("link text", "idinit-ref: the documentation").click()
    assert page.title == "the site"


def luminance(colour):
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(page, scheme):
    """WCAG 2: 4.5 to 1 for text, 3 to 1 for edges, lines of charts and the ends of the scale."""
    seen(page, 1200, scheme)
    script = "getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()"

    def against(name, ground):
        dark, light = sorted(
            luminance((c * 2)[:1] + c[1:] if len(c) > 4 else "#" + "".join(2 * x for x in c[1:]))
            for c in (ask(page, script, f"--{name}"), ask(page, script, f"--{ground}"))
        )
        return (light + 0.05) / (dark + 0.05)

    for name in ("text", "muted", "accent", "bad"):
        assert min(against(name, "card"), against(name, "back")) >= 4.5, name
    for name in ("plus", "minus"):
        assert against(name, "card") >= 4.5, name
        assert against(name, "zero") >= 3, name
    assert against("third", "card") >= 3
    assert against("edge", "card") >= 3


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_signs_are_told_apart_without_colours(page, scheme):
    """By CIE L*, 0 to 100: the negative of two entries of one size is the lighter one."""
    seen(page, 1200, scheme)

    def lightness(state):
        go(page, state)
        settled(page)
        script = """return [...document.querySelectorAll('#chips span')].map(
            chip => [chip.textContent.split(' ')[0], chip.firstChild.style.backgroundColor])"""
        shown = page.execute_script(script)
        drawn = {",".join(key.split(",")[:3]) for key in colours(page, "map")}
        out = {}
        for value, colour in shown:
            parts = [int(part) for part in re.findall(r"\d+", colour)]
            assert ",".join(map(str, parts)) in drawn
            y = luminance("#" + "".join(f"{part:02x}" for part in parts))
            out[float(value)] = 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y
        return out

    for eps in (1e-6, 1.0, 1e-8, 0.01):
        found = lightness(f"role=zero&m=200&n=200&eps={eps:g}")  # cells of 4 pixels
        assert found[-eps] > found[eps] + 10
        assert min(abs(found[-eps] - found[0]), abs(found[eps] - found[0])) > 12


def keys(page, *pressed):
    from selenium.webdriver import ActionChains

    ActionChains(page).send_keys(*pressed).perform()


def tabbed(page):
    """The ids of what Tab reaches, once around, and each one's name for a screen reader."""
    page.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    found = {}
    for _ in range(60):
        keys(page, "\ue004")
        name, outline = page.execute_script(
            """const at = document.activeElement, name = at.id || `${at.tagName} ${at.innerText}`;
               return [name, getComputedStyle(at).outlineStyle]"""
        )
        if name in found or name.startswith("BODY"):
            break
        found[name] = (page.switch_to.active_element.accessible_name, outline)
    return found


@pytest.mark.nightly
def test_tab_reaches_everything_and_shows_where_it_is(page):
    reached = tabbed(page)
    go(page, "role=zero&k=3")
    reached |= tabbed(page)
    wanted = {*FIELDS, "map", "tapmap", "numbers", "ends", "A square", "SUMMARY How to read it"}
    assert wanted <= set(reached)
    for name, (accessible, outline) in reached.items():
        assert accessible.strip(), name
        assert outline == "solid", name
    assert "Arrow keys" in reached["map"][0]
    assert reached["seed"][0] == "Seed of random numbers"


def test_a_control_changed_by_keyboard_changes_the_matrix(page):
    assert len(rows(page)) == 10
    page.execute_script("document.getElementById('m').focus()")
    keys(page, "\ue013")  # arrow up
    assert len(rows(page)) == 11
    assert rows(page)[10] == ["10", "0", "0", "1", "0"]
    page.execute_script("document.getElementById('role').focus()")
    keys(page, "\ue015")  # arrow down: the next role
    assert rows(page)[3] == ["3", "-1e-6", "0", "0", "1e-6"]
    assert "m=11" in page.current_url
    assert "role=zero" in page.current_url


def rows(page):
    return page.execute_script(
        """return [...document.querySelectorAll('#numbers tbody tr')].map(
           row => [...row.cells].map(cell => cell.textContent))"""
    )


def fill(page, name, text):
    """As a paste does it: at once, for a number half typed is a number, too."""
    page.execute_script(
        """const field = document.getElementById(arguments[0]);
           field.value = arguments[1];
           field.dispatchEvent(new Event('input'))""",
        name,
        text,
    )


def text_of(page, name):
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


BAD = [("m", "0"), ("m", "-3"), ("m", "1e9"), ("m", ""), ("n", "2.5"), ("k", "12"), ("k", "-1")]
BAD += [("stride", "0"), ("stride", "-2"), ("stride", "1.5")]
BAD += [("gain", "0"), ("gain", ""), ("gain", "two"), ("gain", "Infinity"), ("gain", "1e200")]
BAD += [("gain", "<b>x</b>"), ("seed", "-1"), ("seed", "4294967296")]


@pytest.mark.nightly
def test_bad_values_get_a_message_beside_the_field(page):
    before = rows(page)
    for name, value in BAD:
        fill(page, name, value)
        said, invalid, described, apart = page.execute_script(
            """const field = document.getElementById(arguments[0]), error = field.nextSibling;
               return [error.textContent, field.ariaInvalid, field.getAttribute('aria-describedby'),
                 error.getBoundingClientRect().top - field.getBoundingClientRect().bottom]""",
            name,
        )
        assert f"is {value or 'empty'}: it should be" in said, (name, value)
        assert re.search(r"Write \S+, for example\.$", said)
        assert (invalid, described) == ("true", f"{name}-error")
        assert 0 <= apart < 10  # beside the field, and seen
        assert rows(page) == before  # the last good one is still there, and is said to be
        assert "last values" in text_of(page, "stale")
        fill(page, name, START[name])
        assert text_of(page, f"{name}-error") == ""
        assert page.find_element("id", name).get_dom_attribute("aria-invalid") == "false"
        assert rows(page) == before
        assert text_of(page, "stale") == ""


def test_a_bad_address_gets_the_messages_too(page):
    go(page, "m=abc&n=1e9&gain=0&role=both&layers=500&taps=corner&unknown=1")
    for name, value in [("m", "abc"), ("n", "1e9"), ("gain", "0"), ("role", "both")]:
        assert f"is {value}: it should be" in text_of(page, f"{name}-error")
    assert "is 500: it should be a whole number from 1 to 100" in text_of(page, "layers-error")
    assert "is corner: it should be outward, diagonal" in text_of(page, "taps-error")
    assert len(rows(page)) == 10
    page.find_element("id", "m").send_keys("3")
    assert text_of(page, "m-error") == ""


def test_the_address_restores_everything(page):
    want = {
        "role": "transit", "m": "5", "n": "7", "gain": "-0.5", "eps": "1e-3", "wide": "fold_mean",
        "form": "shifted", "k": "3", "taps": "spatial_major", "stride": "2",
        "signal": "gaussian", "layers": "7", "seed": "42",
    }  # fmt: skip
    go(page, "&".join(f"{name}={value}" for name, value in want.items()))
    script = "return arguments[0].map(name => document.getElementById(name).value)"
    assert dict(zip(FIELDS, page.execute_script(script, FIELDS), strict=True)) == want
    assert "63 columns = 7 channels \u00d7 9 taps (across), spatial_major" in text_of(page, "what")
    assert "7 layers of 7 \u00d7 7, IDI with τ = -0.5" in text_of(page, "many")
    fill(page, "seed", "43")
    url = page.current_url
    page.get("about:blank")
    page.get(url)
    assert page.execute_script(script, FIELDS) == [*(want | {"seed": "43"}).values()]
    page.execute_script("location.hash = '#m=2&n=3'")  # a link of the page, or the user's typing
    settled(page)
    assert [row[0] for row in rows(page)] == ["0", "1"]
    assert page.find_element("id", "k").get_property("value") == "0"


def colours(page, name):
    """How often each colour is on a canvas."""
    return page.execute_script(
        """const c = document.getElementById(arguments[0]), counts = {};
           const copy = Object.assign(document.createElement('canvas'),
             {width: c.width, height: c.height}).getContext('2d', {willReadFrequently: true});
           copy.drawImage(c, 0, 0);
           const {data} = copy.getImageData(0, 0, c.width, c.height);
           for (let i = 0; i < data.length; i += 4) {
             const key = [...data.slice(i, i + 4)].join();
             counts[key] = (counts[key] ?? 0) + 1;
           }
           return counts""",
        name,
    )


@pytest.mark.nightly
def test_the_canvases_are_drawn(page):
    light = colours(page, "map")
    assert light["6,48,111,255"] == 10 * 31 * 31  # ten entries of 1, in full blue
    go(page, "m=6&n=6&role=zero&k=3")
    for name in ("map", "tapmap"):
        found = colours(page, name)
        assert len(found) > 3
        assert max(found.values()) < 0.97 * sum(found.values())
    go(page, "m=3000&n=4096")
    assert len(colours(page, "map")) > 2
    seen(page, 1200, "dark")
    settled(page)
    assert "90,164,238,255" in colours(page, "map")  # redrawn without being told


@pytest.mark.nightly
def test_small_matrices_are_tables_and_large_ones_say_what_a_cell_is(page):
    go(page, "m=12&n=16&role=zero")
    table = np.array([row[1:] for row in rows(page)], np.float64)
    np.testing.assert_array_equal(table, ir.idiz((12, 16)))
    go(page, "m=13&n=16")
    assert rows(page) == []
    for size in (64, 65):
        go(page, f"m={size}&n={size}")
        assert "Point at" in text_of(page, "map-at")
    go(page, "m=1000&n=4000")
    assert re.search(r"up to \d+ \u00d7 \d+ entries and shows the largest", text_of(page, "map-at"))


@pytest.mark.nightly
def test_arrow_keys_and_the_pointer_tell_the_entries(page):
    from selenium.webdriver import ActionChains

    go(page, "m=6&n=10&role=zero")
    page.execute_script("document.getElementById('map').focus()")
    assert text_of(page, "map-at") == "row 0, column 0: 1e-6"
    keys(page, "\ue015", "\ue014", "\ue014", "\ue010")  # down, right, right, End
    assert text_of(page, "map-at") == "row 1, column 9: 0"
    keys(page, "\ue012", "\ue012")  # left, left
    assert text_of(page, "map-at") == "row 1, column 7: -1e-6"
    keys(page, "\ue011", *["\ue013"] * 9)  # Home, and up beyond the edge
    assert text_of(page, "map-at") == "row 0, column 0: 1e-6"
    canvas = page.find_element("id", "map")
    corner = (34 - canvas.size["width"] // 2, 20 - canvas.size["height"] // 2)
    offset = (corner[0] + 32 * 8 + 16, corner[1] + 32 * 2 + 16)
    ActionChains(page).move_to_element_with_offset(canvas, *offset).perform()
    assert text_of(page, "map-at") == "row 2, column 8: -1e-6"
    go(page, "m=5&n=2&k=3")
    page.execute_script("document.getElementById('tapmap').focus()")
    keys(page, "\ue014", "\ue014", "\ue015", "\ue015")  # into the second panel, two down
    assert text_of(page, "tapmap-at") == "tap (0, 1), output 2, input 0: 1"


def test_what_is_said(page):
    from selenium.webdriver.support.ui import WebDriverWait

    go(page, "m=6&n=4&role=zero")
    WebDriverWait(page, 600, 0.05).until(lambda page: text_of(page, "summary"))
    assert text_of(page, "summary") == (
        "IDIZ with ε = 1e-6, 6 \u00d7 4: 12 non-zeros, row norms 1.414e-6, rank 3 of 4, "
        "exact transit no."
    )
    live = "return document.getElementById('summary').ariaLive"
    assert page.execute_script(live) == "polite"
    go(page, "m=8&n=4")
    facts = page.execute_script(
        """return Object.fromEntries([...document.querySelectorAll('dt')].map(
           term => [term.textContent, term.nextElementSibling.textContent]))"""
    )
    assert facts["singular values"] == "1.414 (4\u00d7)"
    assert facts["rank"] == "4 of 4 (full)"
    transit = "yes: output i equals x[i mod 4] to the last bit (but the sign of a zero), so"
    assert facts["exact transit"].startswith(transit)
    assert facts["isometry"] == "no, but all lengths are multiplied by one number, 1.414"
    go(page, "n=2&m=2&gain=-1&layers=9")
    assert "IDI from layer 2 on" in text_of(page, "chart-relu")
    assert "All is 0" not in text_of(page, "chart-linear")


@pytest.mark.nightly
def test_the_largest_weight_is_shown(page):
    go(page, "m=4096&n=4096&k=11&wide=fold_rms")
    page.execute_script(
        "document.getElementById('gain').value = '2';"
        "document.getElementById('gain').dispatchEvent(new Event('input'))"
    )
    assert "τ = 2" in text_of(page, "what")


def test_without_a_browser_it_fails_with_the_cure(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setitem(globals(), "BROWSER", Path("/nowhere/chromium"))
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"):
        next(browser.__wrapped__())
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium chromium-driver"):
        next(browser.__wrapped__())
