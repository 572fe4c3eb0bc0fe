"""Sphinx configuration; generated pages are written before anything is read."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))

from generate import write_pages  # noqa: E402

write_pages(_HERE / "_generated")

project = "sparsehpc"
author = "The sparsehpc developers"
project_copyright = "The sparsehpc developers"
version = release = importlib.metadata.version("sparsehpc")

extensions = ["myst_parser", "mathml"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "sparsehpc"
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "navbar_center": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {"**": ["globaltoc.html"]}
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
