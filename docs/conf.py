"""The site: python -m sphinx -W docs docs/_build, which needs no network."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
FONTS = Path(find_spec("ziamath").submodule_search_locations[0], "fonts")
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "adapters")]

import idinit_ref  # noqa: E402

project = "idinit-ref"
author = project_copyright = "the idinit-ref developers"
version = release = idinit_ref.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "numpydoc", "docs._site"]
exclude_patterns = ["_build", "_made/*.md"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nitpicky = True  # a reference that leads nowhere is an error
nitpick_ignore = [("py:class", "collections.abc.Mapping")]
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say more
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
viewcode_line_numbers = True

html_theme = "furo"
html_title = f"idinit-ref {release}"
html_math_renderer = "mathml"
html_static_path = ["site.css", *map(str, FONTS.glob("STIXTwoMath*.ttf"))]
html_css_files = ["site.css"]
html_extra_path = ["explore.html"]
html_theme_options = {"light_css_variables": {"font-stack": "system-ui, sans-serif"}}
