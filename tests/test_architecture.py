"""The packages stand as ARCHITECTURE.md lists them: a lower one never imports a higher one."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fpn_bench

PACKAGE = Path(fpn_bench.__file__).parent
LAYERS = {
    "_compat": 0,
    "errors": 0,
    "metrics": 0,
    "host": 0,
    "paths": 0,
    "pyramid": 0,
    "json_text": 0,
    "redact": 0,
    "vocabulary": 0,
    "yaml_text": 0,
    "graph": 1,
    "analysis": 1,
    "zoo": 2,
    "nn": 2,
    "profiling": 2,
    "data": 2,
    "latency": 3,
    "backbones": 4,
    "detection": 4,
    "training": 5,
    "candidates": 6,
    "export": 7,
    "search": 7,
    "reports": 8,
    "tabular": 8,
    "cli": 9,
    "__main__": 10,
}
SAME_LAYER = {("pyramid", "errors"), ("yaml_text", "errors"), ("metrics", "errors"), ("paths", "errors")}
EXCLUSIVE = {
    "timm": {"backbones", "training"},  # its models in the former alone, its optimisers in the latter
    "optuna": {"search"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
    "plotly": {"reports"},
    "dash": {"reports"},
    "typer": {"cli"},
}
NO_TORCH = ("graph", "zoo", "analysis", "search", "reports", "tabular", "training.protocol", "cli.lists")


@functools.cache
def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path}: relative import"
            found |= {f"{item.module}.{alias.name}" for alias in item.names} | {item.module or ""}
    return found


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def test_every_package_is_in_the_table():
    assert {package_of(p) for p in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_a_lower_package_never_imports_a_higher_one(path):
    package = package_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "fpn_bench" or len(parts) == 1:
            continue
        other = parts[1]
        if other == package or other not in LAYERS:
            assert other == package or not (PACKAGE / other).exists(), f"{path}: {name} is not in the table"
            continue
        allowed = LAYERS[other] < LAYERS[package] or (package, other) in SAME_LAYER
        assert allowed, f"{path}: {package} (layer {LAYERS[package]}) imports {name} (layer {LAYERS[other]})"


def test_no_module_needs_itself():
    modules = {".".join(("fpn_bench", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in FILES}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    needs = {name: {other for other in imported_at_once(path) if other in modules} for name, path in modules.items()}
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the cycle


def imported_at_once(path: Path) -> set[str]:
    """The modules that a file imports as soon as it is imported itself."""
    tree = ast.parse(path.read_text())
    late = {
        id(inner)
        for item in ast.walk(tree)
        if isinstance(item, ast.FunctionDef) or (isinstance(item, ast.If) and "TYPE_CHECKING" in ast.unparse(item.test))
        for inner in ast.walk(item)
    }
    found = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.Import) and id(item) not in late:
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and id(item) not in late:
            names = {f"{item.module}.{alias.name}" for alias in item.names}
            inside = {name for name in names if is_module(name)}
            found |= inside | ({item.module or ""} if names - inside else set())
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("package", LAYERS)
def test_files_classes_and_functions_are_small(package):
    """A published neck is one recipe with its docstring, read top down: its function may be a little longer."""
    longest_function = 100 if package == "zoo" else 80
    for path in (p for p in FILES if package_of(p) == package):
        text = path.read_text()
        assert text.count("\n") <= (450 if package == "search" else 500), path
        for item in ast.walk(ast.parse(text)):
            if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                most = 300 if isinstance(item, ast.ClassDef) else longest_function
                assert item.end_lineno - item.lineno < most, f"{path}: {item.name}"


@pytest.mark.parametrize(("library", "packages"), EXCLUSIVE.items())
def test_a_heavy_library_is_imported_by_one_package_only(library, packages):
    for path in FILES:
        if any(name.split(".")[0] == library for name in imports_of(path)):
            assert package_of(path) in packages, f"{path} imports {library}"


def test_private_parts_of_other_libraries_are_in_one_file():
    """What ruff's SLF does not see: imports from private modules, and of private names. Python documents `_thread`."""
    for path in FILES:
        for name in imports_of(path) - {"_thread"}:
            private = re.search(r"(^|\.)_[a-z]", name) and not name.startswith("fpn_bench.")
            assert not private or package_of(path) == "_compat", f"{path} imports {name}"


def test_graphs_need_no_torch():
    """One process for all of these packages: the first that imports torch is named."""
    code = (
        "import importlib, sys\n"
        f"for package in {sorted(NO_TORCH)}:\n"
        "    importlib.import_module(f'fpn_bench.{package}')\n"
        "    assert 'torch' not in sys.modules, f'torch was imported by {package}'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_heavy_library():
    code = (
        "import sys, fpn_bench; heavy = {'torch', 'timm', 'optuna', 'plotly', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
