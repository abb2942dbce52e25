"""The documents as a site: `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import fedhpc  # noqa: E402

project = "fedhpc"
author = "The fedhpc developers"
copyright = author
version = release = fedhpc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
smartquotes = False  # `--option` has two hyphens
default_role = "code"  # docstrings write code between single backticks, as Markdown does

myst_heading_anchors = 4
myst_links_external_new_tab = False

# Reading docstrings starts no MPI and needs no PyTorch.
autodoc_mock_imports = ["mpi4py", "torch"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"fedhpc {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False

START = "start"  # the page that is README.md


def _within_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Links that are right in a checkout, turned into links between pages; files outside docs/ are only named."""
    text = source[0]
    if page == START:
        text = (ROOT / "README.md").read_text().replace("](docs/", "](./").replace("# fedhpc\n", "# Start here\n", 1)
        text = re.sub(r"\[([^\]]+)\]\((?!\./|#|https?:)[^)]+\)", r"\1", text)
    else:
        text = text.replace("](../README.md", f"]({START}.md")
        text = re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", text)
    source[0] = text


def _plain(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: a star is a star, and what is said of a parameter begins a line, so a paragraph."""
    found: list[str] = []
    for line in lines:
        if re.match(r"`|Raises ", line) and found and found[-1].endswith("."):
            found.append("")
        found.append(line)
    _stars_are_stars(app, thing, found)
    lines[:] = found


def _stars_are_stars(app: Sphinx, context: Any, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [part.replace("*", r"\*") for part in parts[::2]]
        lines[number] = "`".join(parts)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _within_the_site)
    app.connect("autodoc-process-docstring", _plain)
    app.connect("sphinx-click-process-description", _stars_are_stars)
