"""Reading and writing YAML that people type: the core schema of YAML 1.2.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

PyYAML reads YAML 1.1, in which ``0100`` is 64, ``1:4`` is 64, ``no`` is false and ``2024-01-01`` is a date. Here a
number is what it looks like: ``0100`` is 100, ``0x40`` and ``0o100`` are 64, ``1e-3`` is a float; only ``true`` and
``false`` are booleans; anything else is text. Merge keys (``<<``) still work.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from fpn_bench.errors import InputError

MAX_DEPTH = 100
"""Collections within collections, those behind aliases included."""
MAX_NODES = 100_000
"""Values and keys in all, those behind an alias counted each time they are referred to."""
MAX_CHARACTERS = 10_000_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (re.compile(r"^(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    "float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?(?:\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$"
        ),
        list("-+.0123456789"),
    ),
}


def load_yaml(text: str, source: str, *, error: type[InputError] = InputError, strings: bool = False) -> Any:
    """The one document in a text, as dicts, lists, strings, numbers, booleans and None.

    Args:
        text: YAML.
        source: what it is, such as a path; opens messages.
        error: class of the error.
        strings: leave every scalar the text that was typed, so that a class may be called ``1.50`` or ``null``.

    Raises:
        InputError: (or ``error``) it is not YAML, gives a key twice, contains itself, is nested deeper than `MAX_DEPTH`
            or has more than `MAX_NODES` values; the message is one line that says where.
    """
    if len(text) > MAX_CHARACTERS:
        raise error(f"{source}: expected at most {MAX_CHARACTERS:,} characters of YAML, got {len(text):,}")
    try:
        return yaml.load(text, Loader=_TextLoader if strings else _CoreLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise error(f"{source}: {where}not valid YAML: {_one_line(problem.problem or problem.context)}") from None
    # A character that YAML forbids, or an escape of a code point that is none.
    except (yaml.YAMLError, ValueError, OverflowError) as problem:
        raise error(f"{source}: not valid YAML: {_one_line(problem)}") from None


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar, such as one left as text by ``load_yaml(strings=True)``.

    Raises:
        ValueError: it is a whole number of more digits than Python converts.
    """
    kind = next((kind for kind, (pattern, _) in _SCALARS.items() if pattern.match(text)), "str")
    return _value(kind, text)


def dump_yaml(value: Any) -> str:
    """YAML that this module and YAML 1.1 readers, such as PyYAML, read as the same value; keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _value(kind: str, text: str) -> str | int | float | bool | None:
    """A scalar of the core schema, which its pattern matches.

    Raises:
        ValueError: a whole number of more digits than Python converts.
    """
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _mark(mark: Any) -> Any:
    """Untyped: the stubs know two kinds of marks, PyYAML's own and those of libyaml."""
    return mark


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())


class _TextLoader(yaml.SafeLoader):
    """Collections of text, bounded in depth and number; what the tag of a scalar says is ignored."""

    # Of this class alone: PyYAML's own stay as they are, and none of them is inherited.
    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {}  # noqa: RUF012

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open = 0
        self._extent: dict[int, tuple[int, int]] = {}
        """id of a finished node -> its depth and number of nodes; nodes live as long as the loader."""
        self._nodes: list[yaml.Node] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node and what is in it; PyYAML's own, with the bounds held."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._extent:
                raise yaml.composer.ComposerError(
                    None, None, f"*{event.anchor} contains itself", _mark(event.start_mark)
                )
            return node
        self._open += 1
        if self._open > MAX_DEPTH:
            self._refuse_depth(mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        if node is not None:
            self._measure(node)
        return node

    def _measure(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        else:
            children = node.value if isinstance(node, yaml.SequenceNode) else []
        extents = [self._extent[id(child)] for child in children]
        depth = 1 + max((depth for depth, _ in extents), default=0)
        count = 1 + sum(count for _, count in extents)
        if depth > MAX_DEPTH:
            self._refuse_depth(node.start_mark)
        if count > MAX_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_NODES:,} values", node.start_mark)
        self._extent[id(node)] = depth, count
        self._nodes.append(node)

    def _refuse_depth(self, mark: Any) -> None:
        raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, each key once."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or mapping; expected text or a number", key_node.start_mark
                )
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_text(self, node: yaml.Node) -> str:
        """The text of a scalar."""
        value = str(self.construct_scalar(node))  # type: ignore[arg-type]
        try:
            value.encode()
        except UnicodeEncodeError:
            raise yaml.constructor.ConstructorError(
                None, None, "half of a surrogate pair is no character", node.start_mark
            ) from None
        return value

    def refuse_tag(self, node: yaml.Node) -> None:
        """Objects are not made, whatever the file asks for."""
        tag = str(node.tag).replace(_TAG, "!!")
        raise yaml.constructor.ConstructorError(None, None, f"unknown tag {tag!r}; remove it", node.start_mark)


class _CoreLoader(_TextLoader):
    """As `_TextLoader`, with scalars of the core schema."""

    # Of this class alone: PyYAML's own stay as they are, and none of them is inherited.
    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {}  # noqa: RUF012

    def construct_core(self, node: yaml.Node) -> Any:
        """A scalar that is null, a boolean or a number, by its text or by its tag."""
        text, kind = self.construct_text(node), str(node.tag).removeprefix(_TAG)
        pattern = _SCALARS[kind][0]
        try:
            if kind == "null" or pattern.match(text):
                return _value(kind, text)
        except ValueError:  # more digits than Python converts
            pass
        raise yaml.constructor.ConstructorError(
            None, None, f"{text[:40]!r} cannot be read as {kind}", node.start_mark
        ) from None


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which quotes what YAML 1.1 takes for no text; with what YAML 1.2 takes for none besides."""

    def ignore_aliases(self, data: Any) -> bool:
        """Written out each time: nobody types anchors."""
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """PyYAML folds lines at these characters unless they are escaped."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(f"{_TAG}str", text, style=style)


def _register() -> None:
    _Dumper.add_representer(str, _Dumper.represent_text)
    for loader in (_TextLoader, _CoreLoader):
        loader.add_constructor(f"{_TAG}map", yaml.SafeLoader.construct_yaml_map)  # type: ignore[type-var]
        loader.add_constructor(f"{_TAG}seq", yaml.SafeLoader.construct_yaml_seq)  # type: ignore[type-var]
        loader.add_constructor(f"{_TAG}str", loader.construct_text)
        loader.add_constructor(None, loader.refuse_tag)
        loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"^<<$"), ["<"])
    for kind, (pattern, first) in _SCALARS.items():
        _TextLoader.add_constructor(f"{_TAG}{kind}", _TextLoader.construct_text)
        _CoreLoader.add_constructor(f"{_TAG}{kind}", _CoreLoader.construct_core)
        _CoreLoader.add_implicit_resolver(f"{_TAG}{kind}", pattern, first)
        _Dumper.add_implicit_resolver(f"{_TAG}{kind}", pattern, first)


_register()
