"""The pages of docs/extending: what they say works, each in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "extending"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")


def program(page: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=[path.stem for path in PAGES])
def test_the_program_of_a_page_runs(page, tmp_path):
    code = program(page)
    assert "assert" in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\S+\.md)\)", (FOLDER / "README.md").read_text()))
    assert linked == {path.name for path in PAGES}
