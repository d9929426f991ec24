"""A Sphinx extension: links that hold on a plain git host lead to the pages of the site.

A page links to the files of the repository as they lie there. What the site has as a page of its own is linked as that
page; any other file is a download.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TARGET = re.compile(r"(?<=\]\()([^)#\s]*)(#[^)\s]*)?(?=\))")
EXAMPLES = "site/examples.md"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "site/changelog.md",
    "CONTRIBUTING.md": "site/how-it-is-built.md",
    "docs": "index.md",
}
TABLES = "site/arguments.md"  # the section of README.md that lists what there is to turn


def page_of(path: str, anchor: str) -> tuple[str, str] | None:
    """The page, relative to docs/, and the anchor there, of what lies at ``path`` of the repository; None: no page."""
    if path == "README.md" and anchor in ("#what-there-is-to-turn", "#schedules", "#controllers"):
        return TABLES, anchor
    if path in PAGES:
        return PAGES[path], anchor
    if path.startswith("examples/") and not path.endswith(".png"):
        return EXAMPLES, f"#{path.split('/')[1].replace('.', '')}"
    return None


def site_links(text: str, folder: Path, page: Path) -> str:
    """``text`` of a file in ``folder`` with the links that it has to have in ``page``."""

    def replaced(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if not target or not (found := (folder / target).resolve()).exists():
            return match[0]
        path, anchor = page_of(found.relative_to(ROOT).as_posix(), anchor) or (None, anchor)
        return os.path.relpath(DOCS / path if path else found, page.parent) + anchor

    return TARGET.sub(replaced, text)


def read(app: Sphinx, name: str, content: list[str]) -> None:
    """Links of a page."""
    page = Path(app.env.doc2path(name))
    content[0] = site_links(content[0], page.parent, page)


def include(app: Sphinx, path: Path, name: str, content: list[str]) -> None:
    """Links of a file that a page includes."""
    page = Path(app.env.doc2path(app.env.docname))  # MyST passes the last part of the name alone
    content[0] = site_links(content[0], (DOCS / path).resolve().parent, page)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", read)
    app.connect("include-read", include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
