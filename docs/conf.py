"""Sphinx' configuration: ``sphinx-build --fail-on-warning docs docs/_build``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

import ormcache  # noqa: E402 - the checkout that is documented, installed or not

project = "ormcache"
author = "ormcache contributors"
copyright = "2026, ormcache contributors"
version = release = ormcache.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "ormcache_reference",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 79
add_module_names = False

# Indented blocks are commands and their output.
highlight_language = "none"

# Quotes in prose are mostly parts of code.
smartquotes = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = "ormcache"
html_copy_source = False
html_show_sphinx = False
