"""What the site needs of Sphinx: formulas without a network, links to names, figures and helps."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import itertools
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

MADE = Path(__file__).parent / "_made"
COMMANDS = ("", "show", "export", "presets", "rules", "inspect", "diff", "check")


# Formulas -----------------------------------------------------------------------------------------


def _formula(translator: Any, node: nodes.Element, display: str) -> None:
    text = latex2mathml.converter.convert(node.astext(), display=display)
    # Of an absolute value, whose bars are taken for relations.
    bar = '<mo stretchy="false">&#x0007C;</mo>'
    text = text.replace(bar, bar.replace("<mo", '<mo lspace="0" rspace="0"'))
    translator.body.append(text)
    raise nodes.SkipNode


def _inline(translator: Any, node: nodes.Element) -> None:
    _formula(translator, node, "inline")


def _block(translator: Any, node: nodes.Element) -> None:
    # Not of the class "math", which the theme cuts to the height of a line.
    translator.body.append('<div style="margin: 1em 0; padding: 0.3em; overflow-x: auto">')
    with contextlib.suppress(nodes.SkipNode):
        _formula(translator, node, "block")
    translator.body.append("</div>")
    raise nodes.SkipNode


# Names --------------------------------------------------------------------------------------------


TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


class Names(SphinxTransform):
    """Turn `idinit_ref.name` and `tests/file.py::name` in a text into links to where they are."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Replace the literals that are dotted names of the packages, or names of tests."""
        for node in list(self.document.findall(nodes.literal)):
            name = node.astext()
            if isinstance(node.parent, (pending_xref, nodes.reference)):
                continue
            if re.fullmatch(r"idinit_ref(_\w+)?(\.\w+)+", name):
                about = {"refdomain": "py", "reftype": "obj", "reftarget": name, "maybe": True}
            elif TEST.fullmatch(name):
                about = {"refdomain": "std", "reftype": "ref", "reftarget": _label(name)}
                about["refexplicit"] = True
            else:
                continue
            link = pending_xref("", node.deepcopy(), refdoc=self.env.docname, **about)
            node.replace_self(link)


def _label(test: str) -> str:
    return nodes.make_id(test)


def _unknown(app: Sphinx, env: Any, node: pending_xref, child: nodes.Node) -> nodes.Node | None:
    """Leave a name that the reference does not have (one of the insides) as it is."""
    return child if node.get("maybe") else None


# What is made before ------------------------------------------------------------------------------


def _make(app: Sphinx) -> None:
    """Draw the figures, and write down what the command says of itself."""
    gallery = importlib.import_module("docs.gallery_figures")
    gallery.main([str(MADE)])
    parts = []
    for name, caption in gallery.captions().items():
        title, _, rest = caption.partition("\n")
        title = title.rstrip(".")
        parts.append(f"## {title}\n\n{' '.join(rest.split())}\n\n{_picture(name, title)}\n")
    (MADE / "gallery.md").write_text("\n".join(parts))
    (MADE / "command.md").write_text(_helps())
    (MADE / "tests.md").write_text(_tests())
    (MADE / "rooms.md").write_text(_rooms())


def _picture(name: str, title: str) -> str:
    """Return a figure that leads to itself, where it may be as large as it likes."""
    return f":::{{image}} _made/{name}.svg\n:alt: {title}\n:target: _images/{name}.svg\n:::\n"


def _tests() -> str:
    """Return the source of every test that a page names."""
    pages = [page for page in MADE.parent.rglob("*.md") if page.parent != MADE]
    named = {match.groups() for page in pages for match in TEST.finditer(page.read_text())}
    parts = []
    for path, names in itertools.groupby(sorted(named), lambda pair: pair[0]):
        parts.append(f"## {path}\n")
        lines = (MADE.parents[1] / path).read_text().splitlines()
        found = {f.name: f for f in ast.parse("\n".join(lines)).body if hasattr(f, "name")}
        for _, name in names:
            test = found[name]
            first = min([test.lineno, *(each.lineno for each in test.decorator_list)])
            source = "\n".join(lines[first - 1 : test.end_lineno])
            parts.append(
                f"({_label(f'{path}::{name}')})=\n### {name}\n\n```python\n{source}\n```\n"
            )
    return "\n".join(parts)


def _rooms() -> str:
    """Draw who imports whom, where the machine can; the list below the picture says the same."""
    svg = importlib.import_module("docs._rooms").picture()
    if svg is None:
        return ""
    (MADE / "rooms.svg").write_bytes(svg)
    return _picture("rooms", "The rooms by who imports whom: an arrow leads to what is imported")


def _helps() -> str:
    """Return the help of every command."""
    from idinit_ref.commands.cli import main

    parts = []
    for name in COMMANDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([*([name] if name else []), "--help"])
        title = f"idinit {name}".strip()
        parts.append(f"## {title}\n\n```text\n{said.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def _rubrics(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make the heading of a module's examples a rubric, since a page may hold several modules."""
    if what == "module":
        for at, line in enumerate(lines[1:]):
            if line and not line.strip("-"):
                lines[at : at + 2] = [f".. rubric:: {lines[at]}", ""]


def _mend_backlinks(app: Sphinx, problem: Exception | None) -> None:
    """Lead viewcode's way back from the source to where the reference has a name."""
    for page in () if problem else Path(app.outdir, "_modules").rglob("*.html"):
        text = page.read_text()

        def mended(found: re.Match[str], page: Path = page) -> str:
            target, anchor = found.groups()
            ids = re.findall(r'id="([\w.]+)"', (page.parent / target).read_text())
            last = anchor.removeprefix("idinit_ref")
            near = [name for name in ids if name == anchor or name.endswith(last)]
            where = f' href="{target}#{anchor if anchor in near else near[0]}"' if near else ""
            return f'class="viewcode-back"{where}'

        text = re.sub(r'class="viewcode-back" href="([^"#]+)#([^"]+)"', mended, text)
        page.write_text(re.sub(r'<li><a href="builtins.html">.*?</a>\s*</li>', "", text))


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_transform(Names)
    app.connect("autodoc-process-docstring", _rubrics, priority=600)
    app.connect("missing-reference", _unknown)
    app.connect("builder-inited", _make)
    app.connect("build-finished", _mend_backlinks)
    return {"parallel_read_safe": True}
