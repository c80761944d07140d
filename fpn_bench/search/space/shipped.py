"""The search spaces and suites that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import fpn_bench


def list_spaces() -> list[str]:
    """Names of the shipped search spaces."""
    return sorted(shipped_files())


def list_suites() -> list[str]:
    """Names of the shipped suites: spaces whose candidates are listed."""
    return sorted(shipped_files("suites"))


def shipped_files(below: str = "") -> dict[str, Path]:
    """Name -> file. In a wheel the files lie inside the package, in a source checkout beside it."""
    inside = Path(str(resources.files(fpn_bench))) / "search_spaces"
    folder = inside if inside.is_dir() else inside.parent.parent / "search_spaces"
    return {p.stem: p for p in sorted((folder / below).glob("*.yaml"))}
