"""The site builds strictly, without a network; its links lead somewhere; every name is in it.

Nightly the whole site is built; each time two of its pages are.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate
from sphinx.util.inventory import InventoryFile

import idinit_ref
from docs import test_explore

pytestmark = pytest.mark.every
nightly = pytest.mark.nightly
browser = test_explore.browser

ROOT = Path(__file__).parents[2]
PUBLIC = [
    "idinit_ref", "idinit_ref_torch", "idinit_ref_jax", "idinit_ref_tensorflow",
    *(f"idinit_ref.{name}" for name in (
        "errors", "diagnostics", "testing", "files", "roles", "roles.names",
    )),
]  # fmt: skip
INSIDE = [
    module.name
    for module in pkgutil.walk_packages(idinit_ref.__path__, "idinit_ref.")
    if not re.search(r"\.(_|commands|presets|tracing)", module.name)
]
NAMES = [
    (module, name)
    for module in PUBLIC
    for name in importlib.import_module(module).__all__
    if name != "__version__"
]


class Page(HTMLParser):
    """The places of a page, what it links to, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("img", "script", "iframe", "source", "object") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])


def built(source, folder, *options):
    """What Sphinx says when it builds a site."""
    command = [sys.executable, "-m", "sphinx", "-q", *options, str(source), str(folder)]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def reads_without_a_network(site, pages):
    """Nothing is loaded from elsewhere, and no formula is left as TeX."""
    assert not [load for page in pages for load in page.loads if "//" in load]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet
    mathematics = (site / "mathematics.html").read_text()
    assert mathematics.count("<math") > 100
    assert "$" not in re.sub(r"<(pre|script|code).*?</\1>", "", mathematics, flags=re.DOTALL)
    assert not re.search(r"<mi>\\|<mtext>[^<]*\\", mathematics)


def inventory_of(site):
    """The names that the reference has."""
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, to: base + to)
    return {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}


# Two pages, without figures ----------------------------------------------------------------------

CONF = """
from docs import _site
from docs.conf import *
_site._make = lambda app: None
html_extra_path = html_static_path = html_css_files = []
"""


def test_formulas_names_and_references_of_two_pages(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    (source / "conf.py").write_text(CONF)
    for name in ("mathematics", "reference/errors"):
        (source / f"{Path(name).name}.md").write_text((ROOT / f"docs/{name}.md").read_text())
    (source / "index.md").write_text("# Two\n```{toctree}\nmathematics\nerrors\n```\n")
    warnings = built(source, site).splitlines()
    elsewhere = re.compile(r"\[(myst\.xref_missing|ref\.\w+)\]|WARNING: undefined label")
    assert not [line for line in warnings if "WARNING" in line and not elsewhere.search(line)]
    reads_without_a_network(site, [Page(path.read_text()) for path in site.glob("*.html")])
    errors = importlib.import_module("idinit_ref.errors")
    assert inventory_of(site) >= {f"idinit_ref.errors.{name}" for name in errors.__all__}


# The whole site ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built("docs", folder, "-W", "--keep-going")
    return folder


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > 30
    return found


@nightly
def test_every_link_inside_leads_somewhere(site, pages):
    dead = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                dead.append((path.name, link))
            elif parts.fragment and target in pages and target.name != "explore.html":
                dead += [(path.name, link)] * (unquote(parts.fragment) not in pages[target].ids)
    assert not dead, dead[:10]


@nightly
def test_no_page_needs_a_network(site, pages):
    reads_without_a_network(site, pages.values())


@nightly
def test_each_theorem_leads_to_its_code_and_to_its_tests(site):
    text = (site / "mathematics.html").read_text()
    parts = re.split(r'<section id="', text)
    theorems = {
        part.partition("-")[0]: Page(part).links for part in parts if re.match(r"t\d+-", part)
    }
    assert [*theorems] == [f"t{number}" for number in range(1, 17)]
    for name, links in theorems.items():
        assert any(link.startswith("reference/") for link in links), name
        tests = [link for link in links if link.startswith("named_tests.html#")]
        assert any(f"test-{name}-" in link for link in tests), name
    assert "::" not in re.sub(r"<a .*?</a>", "", "".join(parts[1:]), flags=re.DOTALL)


@nightly
def test_formulas_are_set_in_a_font_of_mathematics(site):
    """Chromium needs its table of constants; without it a subscript stays on the line."""
    style = (site / "_static" / "site.css").read_text()
    (font,) = re.findall(r'url\("(.*?)"\)', style)
    assert b"MATH" in (site / "_static" / font).read_bytes()[:1000]
    assert "_static/site.css" in (site / "mathematics.html").read_text()


@nightly
def test_every_page_is_in_the_menu(site):
    menu = Page((site / "index.html").read_text()).links
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("")
        if name.parts[0] not in ("_made", "_build", "index") and name.parts[0] != "reference":
            assert f"{name}.html" in menu, name


@nightly
def test_every_public_name_is_in_the_reference(site):
    known = inventory_of(site)
    for module, name in NAMES:
        item, path = getattr(importlib.import_module(module), name), f"{module}.{name}"
        if path not in known:  # then where it is public first of all
            path = f"idinit_ref.{name}"
            assert path in known, (module, name)
            assert getattr(idinit_ref, name) is item
        assert known >= {f"{path}.{member}" for member in own_members(item)}, path
    # Of the insides each function and class is there once, where it is made or where it is public.
    short = {name.rpartition(".")[2] for name in known}
    for module in map(importlib.import_module, INSIDE):
        for name, item in vars(module).items():
            is_own = getattr(item, "__module__", "") == module.__name__ and name[0] != "_"
            if is_own and (inspect.isfunction(item) or inspect.isclass(item)):
                assert name in short, (module, name)


def own_members(item):
    """The public methods and properties that this project's classes give to one of them."""
    kinds = (property, cached_property, classmethod, staticmethod)
    return {
        name: getattr(item, name)
        for kind in (item.__mro__ if inspect.isclass(item) else ())
        if kind.__module__.startswith("idinit_ref")  # not of tuple, dict, Exception, Keras
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    }


def gaps(item):
    """What a docstring lacks. A property, too, has an example of its own."""
    doc = get_doc_object(item)
    asked = {"GL08", "PR01", "PR02", "RT01", "YD01", "EX01"}  # as numpydoc numbers what is missing
    missing = [code for code, _ in validate(doc)["errors"] if code in asked]
    for section in ("Parameters", "Returns", "Yields"):  # of which numpydoc passes {"a", "b"} by
        missing += [entry.name or entry.type for entry in doc[section] if not "".join(entry.desc)]
    return missing or ["no >>>"] * (">>> " not in (item.__doc__ or ""))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_parameter_is_described(module, name):
    item = getattr(importlib.import_module(module), name)
    if not (inspect.isfunction(item) or inspect.isclass(item)):
        return
    found = {each: gaps(what) for each, what in {name: item, **own_members(item)}.items()}
    assert not {each: codes for each, codes in found.items() if codes}


def test_what_is_not_described_is_found(monkeypatch):
    report = importlib.import_module("idinit_ref.testing").OracleReport
    assert {"ok", "broken", "count", "to_dict", "junit"} == set(own_members(report))
    whole = inspect.cleandoc(report.count.__doc__)
    for code, text in {
        "GL08": "",
        "PR01": re.sub(r"Parameters\n.*?\n\n", "", whole, flags=re.DOTALL),
        "verdict": re.sub(r"    The verdict.*?\n", "", whole),
        "RT01": re.sub(r"Returns\n.*?\n\n", "", whole, flags=re.DOTALL),
        "int": re.sub(r"    The number.*?\n", "", whole),
        "EX01": whole.partition("Examples\n")[0],
        "no >>>": whole.replace(">>> ", ""),
    }.items():
        monkeypatch.setattr(report.count, "__doc__", text)
        assert gaps(report.count) == [code]


@nightly
def test_a_figure_is_drawn_for_every_page_that_shows_one(site):
    images = {path.name for path in (site / "_images").iterdir()}
    assert {"figure1.svg", "wide.svg", "zero.svg", "kernels.svg", "packed.svg", "depth.svg",
            "spectra.svg", "start.svg"} <= images  # fmt: skip


@nightly
def test_no_page_is_wider_than_a_phone(site, browser):
    """At 360 pixels a wide table or figure scrolls in its own box, and the page does not."""
    test_explore.seen(browser, 360, "light")
    wide = []
    for path in sorted(site.rglob("*.html")):
        if "_modules" not in path.parts:
            browser.get(path.as_uri())
            width = browser.execute_script("return document.documentElement.scrollWidth")
            wide += [(path.name, width)] * (width > 360)
    assert not wide


@nightly
@pytest.mark.parametrize(
    ("words", "title"),
    [("loosen", "Choices"), ("U-Net", "A whole model in one call"), ("transposed", "Gallery")],
    ids=["loosen", "U-Net", "transposed"],
)
def test_the_search_finds_pages(site, browser, words, title):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{(site / 'search.html').as_uri()}?q={words}")
    links = "return [...document.querySelectorAll('#search-results a')].map(a => a.textContent)"
    WebDriverWait(browser, 60).until(lambda it: title in it.execute_script(links))
