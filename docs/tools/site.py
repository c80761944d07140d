"""A hook of mkdocs: pages from outside docs/ and the gallery become pages of the site, and links follow them."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import gallery

ROOT = Path(__file__).parents[2]
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "results/README.md": "results.md",
    "results/LOG.md": "log.md",
}
"""Path in the repository -> page of the site."""
INSIDE = {page: path for path, page in OUTSIDE.items()}


def on_files(files: Files, config: Any) -> Files:
    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    files.append(File.generated(config, "necks.md", content=gallery.page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links go to pages of the site; those to other files of the repository become plain text."""
    here = page.file.src_uri
    source = INSIDE.get(here, f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if re.match(r"[a-z]+:", target) or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = OUTSIDE.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(there) is not None:
            return f"[{text}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor})"
        return text if (ROOT / path).exists() else match[0]  # what is not there, mkdocs refuses

    return re.sub(r"\[([^\]\[]*)\]\(([^)\s#]*)(#[^)\s]*|)\)", moved, markdown)
