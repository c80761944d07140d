"""Nodes and their operations as plain JSON values, and strictly back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fpn_bench.errors import GraphError
from fpn_bench.graph.merge_ops import Merge
from fpn_bench.graph.node import SUM, Edge, Node
from fpn_bench.graph.spec import MERGES, OPS, MergeOp, Op, field_types, values_off_default
from fpn_bench.graph.validate import check_value, did_you_mean


def node_to_dict(node: Node) -> dict[str, Any]:
    """One node; fields at their default are left out."""
    return (
        {
            "name": node.name,
            "level": node.level,
            "inputs": [{"source": e.source} | ({"ops": _ops_to_list(e.ops)} if e.ops else {}) for e in node.inputs],
        }
        | ({"merge": _merge_to_dict(node.merge)} if node.merge != SUM else {})
        | ({"ops": _ops_to_list(node.ops)} if node.ops else {})
        | ({"shared": node.shared} if node.shared else {})
    )


def _merge_to_dict(merge: MergeOp) -> dict[str, Any]:
    return ({} if isinstance(merge, Merge) else {"merge": merge.op_type}) | values_off_default(merge)


def _ops_to_list(ops: Sequence[Op]) -> list[dict[str, Any]]:
    return [{"op": op.op_type} | values_off_default(op) for op in ops]


def checked_list(value: Any, node: str | None, what: str) -> list[Any]:
    """The value, which must be a list."""
    if not isinstance(value, list):
        raise GraphError(node, f"expected {what} to be a list, got {value!r}")
    return value


def check_keys(data: Any, node: str | None, what: str, required: set[str], optional: set[str]) -> None:
    """Refuse what is no mapping, lacks a key or has an unknown one."""
    if not isinstance(data, Mapping):
        raise GraphError(node, f"expected {what} to be a mapping, got {data!r}")
    for key in data:
        if key not in required | optional:
            raise GraphError(node, f"{what} has unknown key {key!r}: {did_you_mean(key, required | optional)}")
    missing = required - set(data)
    if missing:
        raise GraphError(node, f"{what} lacks {', '.join(sorted(map(repr, missing)))}")


def load(cls: Any, data: Any, node: str | None, what: str) -> Any:
    """An instance of a flat dataclass from a mapping, strictly: unknown keys and wrong types are errors."""
    hints = field_types(cls)
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    check_keys(data, node, what, required, set(hints) - required)
    for key, value in data.items():
        check_value(hints[key], key, value, node, what)
    return cls(**data)


def _load_word(words: Mapping[str, Any], item: Mapping[str, Any], key: str, node: str) -> Any:
    word = item[key]
    if not isinstance(word, str) or word not in words:
        raise GraphError(node, f"unknown {key} {word!r}: {did_you_mean(word, words)}")
    return load(words[word], {k: v for k, v in item.items() if k != key}, node, word)


def _load_merge(item: Any, node: str) -> MergeOp:
    if isinstance(item, Mapping) and "merge" in item:
        merge: MergeOp = _load_word(MERGES, item, "merge", node)
        return merge
    plain: Merge = load(Merge, item, node, "merge")
    return plain


def _load_ops(items: Any, node: str) -> tuple[Op, ...]:
    ops: list[Op] = []
    for item in checked_list(items, node, "ops"):
        if not isinstance(item, Mapping) or "op" not in item:
            raise GraphError(node, f"op {item!r} lacks 'op', one of {', '.join(sorted(OPS))}")
        ops.append(_load_word(OPS, item, "op", node))
    return tuple(ops)


def node_from_dict(data: Any) -> Node:
    """The node that `node_to_dict` wrote.

    Raises:
        GraphError: an unknown or missing key or a value of the wrong type.
    """
    name = data.get("name") if isinstance(data, Mapping) else None
    where = name if isinstance(name, str) else None
    check_keys(data, where, "node", {"name", "level", "inputs"}, {"merge", "ops", "shared"})
    if not isinstance(name, str):
        raise GraphError(None, f"expected a node's name to be a string, got {name!r}")
    edges = []
    for item in checked_list(data["inputs"], name, "inputs"):
        check_keys(item, name, "edge", {"source"}, {"ops"})
        if not isinstance(item["source"], str):
            raise GraphError(name, f"expected the name of a node or input as an edge's source, got {item['source']!r}")
        edges.append(Edge(item["source"], _load_ops(item.get("ops", []), name)))
    merge = _load_merge(data.get("merge", {}), name)
    return Node(name, data["level"], tuple(edges), merge, _load_ops(data.get("ops", []), name), data.get("shared", ""))
