"""What the package imports is what it says it needs."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from lowest_versions import lowest

import fpn_bench

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


DISTRIBUTIONS = packages_distributions()


def named(requirement: str) -> str:
    """``"Foo_bar[x]>=1"`` -> ``"foo-bar"``."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\\[<>=!~; ]", requirement)[0]).lower()


REQUIRED = {named(text) for text in PROJECT["dependencies"]}
OPTIONAL = {named(text) for texts in PROJECT["optional-dependencies"].values() for text in texts}


@functools.cache
def imported(path: Path) -> dict[str, bool]:
    """Foreign package -> whether a file imports it as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.If) for n in ast.walk(f)}
    found: dict[str, bool] = {}
    for item in ast.walk(tree):
        names = [a.name for a in item.names] if isinstance(item, ast.Import) else []
        if isinstance(item, ast.ImportFrom):
            names = [item.module or ""]
        for name in {name.partition(".")[0] for name in names} - {"fpn_bench", *sys.stdlib_module_names}:
            found[name] = found.get(name, False) or id(item) not in late
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "fpn_bench").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_import_is_declared(path: Path) -> None:
    for module in imported(path):
        offered = {named(name) for name in DISTRIBUTIONS.get(module, [module])}
        assert offered & (REQUIRED | OPTIONAL), f"{module} is imported and not declared"


def test_every_requirement_is_imported() -> None:
    modules = {module for path in (ROOT / "fpn_bench").rglob("*.py") for module in imported(path)}
    used = {named(name) for module in modules for name in DISTRIBUTIONS.get(module, [module])}
    assert not REQUIRED - used


def test_every_requirement_has_a_lowest_version() -> None:
    assert all(re.search(r"[>=]=?\d", text) for text in PROJECT["dependencies"])
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", text) for text in lowest())


def test_the_version_is_the_packages() -> None:
    assert PROJECT["version"] == fpn_bench.__version__
