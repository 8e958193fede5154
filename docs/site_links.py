"""A hook of mkdocs: pages and links that lie outside of docs/.

On a forge a page links to `../samples/gui.py` and `../CONTRIBUTING.md`. The site has pages of its own for the second
kind, and sends readers to the repository for the first.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
AT_THE_TOP = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Files of the repository's top folder that are pages of the site too."""
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s]+)(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie in the top folder."""
    for name in AT_THE_TOP:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Lead the links of a page to where the site has their files."""
    folder = "" if page.file.src_uri in AT_THE_TOP else "docs"

    def lead(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        return before + target(folder, link, str(config.repo_url)) + after

    return LINK.sub(lead, markdown)


def target(folder: str, link: str, repository: str) -> str:
    """Where a relative link leads on the site, from a page in a folder of the repository.

    >>> target("docs", "../samples/gui.py", "https://forge/us")
    'https://forge/us/blob/main/samples/gui.py'
    >>> target("docs", "../CONTRIBUTING.md#set-up", "https://forge/us")
    'CONTRIBUTING.md#set-up'
    >>> target("", "docs/chat.md", "https://forge/us")
    'chat.md'
    """
    name, mark, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(folder, name))
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + mark + anchor
    return link_at_the_top(path, repository) + mark + anchor


def link_at_the_top(path: str, repository: str) -> str:
    """Return a page of the site, or the file in the repository."""
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return path if path in AT_THE_TOP else f"{repository}/{kind}/main/{path}"
