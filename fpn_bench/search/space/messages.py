"""Findings of the schema, and values of a space file, as one line for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from fpn_bench.errors import SpaceError, UnknownNameError

MAX_DEPTH = 32
"""Deepest nesting of a space file."""
MAX_VALUES = 200_000
"""Most values in a space, those that stand at several places counted as often."""

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A part of a space file: these keys and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def expected(what: str, instead: str = "") -> PydanticCustomError:
    """What a validator of the schema raises: what it expected, and an example of what to type instead."""
    return PydanticCustomError("expected", "{what}", {"what": what, "instead": instead})


def plain(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy of what a file says, in the types of JSON.

    Raises:
        SpaceError: it is nested too deep, holds itself, or holds too much.
    """
    left = MAX_VALUES

    def copied(value: Any, path: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise SpaceError(f"{source}: {path[:60]}: expected at most {MAX_VALUES} values, got more")
        if depth > MAX_DEPTH:
            raise SpaceError(f"{source}: {path[:60]}: expected at most {MAX_DEPTH} levels of nesting, got more")
        if isinstance(value, Mapping):
            return {str(k): copied(v, f"{path}.{k}" if path else str(k), depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [copied(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)

    found: dict[str, Any] = copied(raw, "", 0)
    return found


def validated(model: type[Model], raw: Any, path: str, source: str) -> Model:
    """A model of what a file says at a path; nothing is taken for another type than it was written in.

    Raises:
        SpaceError: it does not fit; names the key, what is expected there and what stands there.
    """
    try:
        return model.model_validate_json(json.dumps(raw), strict=True)  # as JSON, in which a list may be a tuple
    except ValidationError as error:
        # A misspelt key also leaves the right one missing: say the misspelling first.
        problems = sorted(error.errors(), key=lambda p: p["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SpaceError(f"{source}: {_problem(model, raw, problems[0], path)}{more}") from error


def short(value: Any) -> str:
    """A value on one line, cut."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _problem(model: type[BaseModel], raw: Any, problem: Any, path: str) -> str:
    """One of pydantic's findings as a path in the file and what is expected there."""
    where, place = path, problem["loc"]
    for part in place:
        if isinstance(raw, Mapping) and part in raw:
            raw = raw[part]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            where, raw = f"{where}[{part}]", raw[part]
            continue
        elif problem["type"] != "missing" or part != place[-1]:
            continue  # the tag of a union or the number of the only backbone, which are not in the file
        where = f"{where}.{part}" if where else str(part)
    if problem["type"] == "extra_forbidden":
        parent = where.rpartition(".")[0]
        unknown = UnknownNameError("key", str(place[-1]), _known_keys(model, place[:-1]))
        return f"{parent}: {unknown}" if parent else str(unknown)
    if problem["type"] == "missing":
        return f"{where}: expected a value, got nothing"
    return f"{where}: {_finding(problem)}" if where else _finding(problem)


def _known_keys(model: type[BaseModel], place: Iterable[str | int]) -> set[str]:
    """What a mapping may hold at a place of the schema."""
    schema = model.model_json_schema()
    node = schema
    for part in place:
        if "discriminator" in node:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node["items"] if isinstance(part, int) else node["properties"][part]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return set(node["properties"])


_FINDINGS = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_long": "at most {max_length} characters",
    "literal_error": "{expected}",
    "union_tag_invalid": "kind: {expected_tags}",
    "union_tag_not_found": "a mapping with kind:",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "expected": "{what}",
}
"""pydantic's kinds of problem -> what was expected."""


def _finding(problem: Any) -> str:
    """What was expected, what stands there, and what to type instead where that is known."""
    got, known = short(problem["input"]), _FINDINGS.get(problem["type"])
    if known is None:
        message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        return f"expected {message}, got {got}" if message != problem["msg"] else f"{message}, got {got}"
    context = problem.get("ctx", {})
    instead = context.get("instead")
    return f"expected {known.format(**context)}, got {got}" + (f"; try {instead}" if instead else "")
