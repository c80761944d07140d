"""Definitions of this package copied into a text that stands alone: with all that they read, and their imports."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

_OWN = "fpn_bench"


class Bundle:
    """Source text that grows by definitions; each stands in it once, behind those that it reads."""

    def __init__(self) -> None:
        self._imports: dict[str, set[str]] = {}
        self._plain_imports: set[str] = set()
        self._definitions: dict[str, tuple[str, str]] = {}  # name -> (module, text)

    def add(self, item: type | Callable[..., Any]) -> None:
        """A class or function of this package, with everything that it reads."""
        self._add(item.__module__, item.__name__)

    def add_text(self, name: str, text: str, like: str) -> None:
        """A definition written for the occasion, whose imports are those of the module `like`."""
        self._add_read(like, ast.parse(text), own=False)
        self._definitions[name] = ("", text)

    def add_imports(self, text: str) -> None:
        """Import statements as they stand."""
        for statement in ast.parse(text).body:
            match statement:
                case ast.Import(names=names):
                    self._plain_imports |= {f"import {a.name}" for a in names}
                case ast.ImportFrom(module=str(module), names=names):
                    self._imports.setdefault(module, set()).update(a.name for a in names)

    def text(self) -> str:
        """Imports and definitions."""
        groups: dict[bool, list[str]] = {True: [], False: []}
        lines = [(name.removeprefix("import ").split(" ")[0], name) for name in self._plain_imports]
        lines += [
            (module, f"from {module} import {', '.join(sorted(names))}") for module, names in self._imports.items()
        ]
        # `import x` before `from x import y`, as they are usually sorted.
        for module, line in sorted(lines, key=lambda pair: (pair[1].startswith("from"), pair)):
            groups[module.split(".")[0] in sys.stdlib_module_names].append(line)
        imports = "\n\n".join("\n".join(group) for group in groups.values() if group)
        return "\n\n\n".join([imports, *(text for _, text in self._definitions.values())]) + "\n"

    def _add(self, module: str, name: str) -> None:
        source, table = _definitions(module)
        statement = table[name]
        if isinstance(statement, ast.Import):
            alias = next(a for a in statement.names if (a.asname or a.name.split(".")[0]) == name)
            self._plain_imports.add(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
        elif isinstance(statement, ast.ImportFrom):
            alias = next(a for a in statement.names if (a.asname or a.name) == name)
            home = statement.module or ""
            if home.split(".")[0] == _OWN:
                self._add(home, alias.name)
            else:
                text = alias.name + (f" as {alias.asname}" if alias.asname else "")
                self._imports.setdefault(home, set()).add(text)
        elif name in self._definitions:
            assert self._definitions[name][0] == module, f"two definitions have the name {name}"
        else:
            self._add_read(module, statement, own=True, but=name)
            self._definitions[name] = (module, _segment(source, statement))

    def _add_read(self, module: str, tree: ast.AST, *, own: bool, but: str = "") -> None:
        """What a piece of code reads of the names of its module; `own`: its definitions too, not only its imports."""
        _, table = _definitions(module)
        for name in _names(tree):
            if name != but and name in table and (own or isinstance(table[name], ast.Import | ast.ImportFrom)):
                self._add(module, name)


def _names(tree: ast.AST) -> Iterator[str]:
    """Names that are read, in the order of the text."""
    seen = {node.id: (node.lineno, node.col_offset) for node in ast.walk(tree) if isinstance(node, ast.Name)}
    yield from sorted(seen, key=lambda name: seen[name])


@lru_cache(maxsize=64)
def _definitions(module: str) -> tuple[str, dict[str, ast.stmt]]:
    """The text of a module, and the statement that binds each of its names."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    table: dict[str, ast.stmt] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Import(names=names):
                table |= {(a.asname or a.name.split(".")[0]): statement for a in names}
            case ast.ImportFrom(names=names):
                table |= {(a.asname or a.name): statement for a in names}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                table[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                table[name] = statement
    return source, table


def _segment(source: str, statement: ast.stmt) -> str:
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(source.splitlines()[first - 1 : statement.end_lineno])
