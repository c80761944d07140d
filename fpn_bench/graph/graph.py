"""The neck as data: `NeckGraph`, a frozen, checked directed acyclic graph with a canonical id.

    inputs   C3, C4, C5 ...        the backbone's maps, named by their level
    nodes    name, level, edges (source, ops) -> merge -> ops
    outputs  names of nodes (or inputs), one a level

Laterals, extra levels, output convs are all nodes; nothing else exists. Torch modules are a consequence
(`fpn_bench.nn.neck`), and so are costs (`fpn_bench.graph.cost`) and drawings (`fpn_bench.graph.draw`).
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from fpn_bench.errors import FormatVersionError, GraphError
from fpn_bench.graph.ops import (
    MERGES,
    OPS,
    AdaptivePool,
    AnyMerge,
    Merge,
    Op,
    PositionalEncoding,
    Resample,
    Restore,
    Stop,
    levels_moved,
    trace,
)
from fpn_bench.json_text import parse_json
from fpn_bench.pyramid import MAX_LEVEL, FeatureSpec, check_features

SCHEMA_VERSION = 1
SUM = Merge("sum")
MAX_NODES = 10_000
"""Nodes a graph may have. Published necks have up to some hundred."""
MAX_NUMBER = 65_536
"""The largest whole number in an operation (channels, kernel, bins ...), and the most channels a map may have."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One input of a node: the map of `source` after `ops`, in order."""

    source: str
    ops: tuple[Op, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One map of the neck.

    Attributes:
        name: unique in the graph; never a position.
        level: pyramid level of the map.
        inputs: what is merged, in order; at least one.
        merge: how.
        ops: what follows the merge, in order.
        shared: nodes with the same word here have the same weights; "" has its own. They must have the same
            operations and channels, at whatever level, and inputs whose order means something: one, or a merge that
            does not commute.
    """

    name: str
    level: int
    inputs: tuple[Edge, ...]
    merge: AnyMerge = SUM
    ops: tuple[Op, ...] = ()
    shared: str = ""


@dataclass(frozen=True)
class NeckGraph:
    """A neck as data. Construction checks everything; an instance can be built, costed, drawn and hashed.

    Args:
        inputs: the backbone's features, finest first. ``C{level}`` is the name of each.
        nodes: in any order; kept in a topological one.
        outputs: names of what the neck returns, one a level; kept finest first.

    Raises:
        GraphError: names the node, what was expected and what it got.
    """

    inputs: tuple[FeatureSpec, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    _channels: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _levels: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inputs = check_inputs(self.inputs)
        check_count(len(self.nodes))
        levels = {input_name(spec.level): spec.level for spec in inputs}
        channels = {input_name(spec.level): spec.channels for spec in inputs}
        nodes = _topological(self.nodes, levels)
        for node in nodes:
            levels[node.name] = node.level
            channels[node.name] = check_node(node, levels, channels)
        _check_shared(nodes, levels, channels)
        outputs = _check_outputs(self.outputs, levels)
        for name, value in {
            "inputs": inputs,
            "nodes": nodes,
            "outputs": outputs,
            "_channels": channels,
            "_levels": levels,
        }.items():
            object.__setattr__(self, name, value)

    def channels_of(self, name: str) -> int:
        """Channels of an input's or node's map."""
        return self._channels[name]

    def level_of(self, name: str) -> int:
        """Pyramid level of an input's or node's map."""
        return self._levels[name]

    @cached_property
    def out_features(self) -> tuple[FeatureSpec, ...]:
        """What the neck returns, finest first."""
        return tuple(
            FeatureSpec(self._levels[name], self._channels[name], self._stride(self._levels[name]))
            for name in self.outputs
        )

    def _stride(self, level: int) -> int:
        """Input pixels a pixel: an input's own, or that of the input whose map gives this level its size, scaled."""
        sizing = max((s for s in self.inputs if s.level <= level), default=self.inputs[0], key=lambda s: s.level)
        return max(1, round(sizing.stride * 2.0 ** (level - sizing.level)))

    @cached_property
    def alive(self) -> frozenset[str]:
        """Names of the inputs and nodes that some output depends on."""
        by_name = {node.name: node for node in self.nodes}
        alive: set[str] = set()
        stack = list(self.outputs)
        while stack:
            name = stack.pop()
            if name not in alive:
                alive.add(name)
                if name in by_name:
                    stack.extend(edge.source for edge in by_name[name].inputs)
        return frozenset(alive)

    @cached_property
    def id(self) -> str:
        """16 hex digits, equal for two spellings of one network (see `fpn_bench.graph.canonical`)."""
        from fpn_bench.graph.canonical import canonical_form

        return hashlib.sha256(canonical_form(self).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fields at their default are left out. `from_dict` is its inverse."""
        return {
            "schema_version": SCHEMA_VERSION,
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs],
            "nodes": [
                {
                    "name": node.name,
                    "level": node.level,
                    "inputs": [
                        {"source": e.source} | ({"ops": _ops_to_list(e.ops)} if e.ops else {}) for e in node.inputs
                    ],
                }
                | ({"merge": _merge_to_dict(node.merge)} if node.merge != SUM else {})
                | ({"ops": _ops_to_list(node.ops)} if node.ops else {})
                | ({"shared": node.shared} if node.shared else {})
                for node in self.nodes
            ],
            "outputs": list(self.outputs),
        }

    def to_json(self) -> str:
        """One line of JSON, the same for equal graphs."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeckGraph:
        """The graph that `to_dict` wrote.

        Raises:
            GraphError: an unknown or missing key or a value of the wrong type, with the node it stands at.
            FormatVersionError: written by a newer fpn_bench.
        """
        _check_keys(data, None, "graph", {"schema_version", "inputs", "nodes", "outputs"}, set())
        version = data["schema_version"]
        if type(version) is not int or version < 1:
            raise GraphError(None, f"expected schema_version {SCHEMA_VERSION} in the graph, got {version!r}")
        if version > SCHEMA_VERSION:
            raise FormatVersionError(
                f"graph has schema_version {version}, this fpn_bench reads up to {SCHEMA_VERSION}: upgrade fpn-bench"
            )
        inputs = tuple(_load(FeatureSpec, item, None, "input") for item in _list(data["inputs"], None, "inputs"))
        nodes = tuple(_load_node(item) for item in _list(data["nodes"], None, "nodes"))
        outputs = _list(data["outputs"], None, "outputs")
        for name in outputs:
            if not isinstance(name, str):
                raise GraphError(None, f"expected the name of a node as an output, got {name!r}")
        return cls(inputs, nodes, tuple(outputs))

    @classmethod
    def from_json(cls, text: str) -> NeckGraph:
        """The graph that `to_json` wrote.

        Raises:
            GraphError: not JSON, or as `from_dict`.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise GraphError(None, f"not a JSON graph: {error}") from None
        return cls.from_dict(data)


def input_name(level: int) -> str:
    """The name of the backbone's map at `level`."""
    return f"C{level}"


# -- checks ------------------------------------------------------------------------------------------------------


def _topological(nodes: Iterable[Node], input_levels: Mapping[str, int]) -> tuple[Node, ...]:
    """Nodes so that every source comes first; otherwise in the order given."""
    nodes = tuple(nodes)
    known: dict[str, Node] = {}
    for node in nodes:
        check_name(node.name, input_levels, known)
        known[node.name] = node
    names = {*input_levels, *known}
    for node in nodes:
        check_sources(node, names)
    ordered: list[Node] = []
    done: set[str] = set(input_levels)
    for root in nodes:
        stack, standing = [root], {root.name: None}  # the latter in the stack's order
        while stack:
            node = stack[-1]
            if node.name in done:
                standing.pop(stack.pop().name, None)
                continue
            waiting = [known[e.source] for e in node.inputs if e.source not in done]
            if not waiting:
                done.add(node.name)
                ordered.append(node)
                standing.pop(stack.pop().name)
                continue
            for source in waiting:
                if source.name in standing:
                    names_above = list(standing)
                    cycle = " -> ".join([*names_above[names_above.index(source.name) :][::-1], node.name])
                    raise GraphError(node.name, f"stands in a cycle ({cycle}); a neck is acyclic")
            stack.append(waiting[0])
            standing[waiting[0].name] = None
    return tuple(ordered)


def check_inputs(features: Iterable[FeatureSpec]) -> tuple[FeatureSpec, ...]:
    """The features, as `check_features` gives them, of a width and at a level that a neck can have.

    Raises:
        InputError: no features, a level twice, or not finest first.
        GraphError: names the input, what was expected and what it got.
    """
    specs = check_features(features)
    for spec in specs:
        _check_level(input_name(spec.level), spec.level)
        _check_width(input_name(spec.level), spec.channels)
    return specs


def check_count(nodes: int) -> None:
    """Refuse more nodes than `MAX_NODES`.

    Raises:
        GraphError: says how many there may be.
    """
    if nodes > MAX_NODES:
        raise GraphError(
            None, f"expected at most {MAX_NODES:,} nodes, got more; lower repeats, or what else adds nodes"
        )


def _check_level(name: str, level: Any) -> None:
    if type(level) is not int or not 0 <= level <= MAX_LEVEL:
        raise GraphError(name, f"expected a whole number from 0 to {MAX_LEVEL} as the level, got {level!r}")


def _check_width(name: str, channels: int) -> int:
    if channels > MAX_NUMBER:
        raise GraphError(
            name, f"expected maps of at most {MAX_NUMBER:,} channels, got {channels:,}; choose a lower width"
        )
    return channels


def check_name(name: Any, inputs: Collection[str], nodes: Collection[str]) -> None:
    """Refuse what cannot name one more node.

    Raises:
        GraphError: names it and says why.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise GraphError(str(name), "a node's name is a non-empty string without '.'")
    if name in inputs:
        raise GraphError(name, "this is the name of a backbone input; choose another")
    if name in nodes:
        raise GraphError(name, "two nodes have this name; names are unique")


def check_sources(node: Node, names: Collection[str]) -> None:
    """Refuse a node that reads nothing, or something that is none of `names`.

    Raises:
        GraphError: names the node and the source, with the nearest known one.
    """
    if not node.inputs:
        raise GraphError(node.name, "expected at least one input, got none")
    for edge in node.inputs:
        if not isinstance(edge, Edge):
            raise GraphError(node.name, f"expected an Edge as an input, e.g. Edge('C3'), got {edge!r}")
        if edge.source not in names:
            near = difflib.get_close_matches(str(edge.source), names, n=1)
            wanted = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
            raise GraphError(node.name, f"reads unknown source {edge.source!r}: {wanted}")


def check_node(node: Node, levels: Mapping[str, int], channels: Mapping[str, int]) -> int:
    """The channels of one node's map, from the levels and channels of its sources.

    Raises:
        GraphError: names the node, what was expected and what it got.
    """
    _check_level(node.name, node.level)
    _check_values(node.merge, MERGES, node.name)
    for op in (*node.ops, *(op for edge in node.inputs for op in edge.ops)):
        _check_values(op, OPS, node.name)
    if not isinstance(node.shared, str):
        raise GraphError(node.name, f"expected a string as shared, got {node.shared!r}")
    widths = [_edge_channels(node, edge, levels[edge.source], channels[edge.source]) for edge in node.inputs]
    problem = node.merge.problem(widths)
    if problem:
        listed = ", ".join(f"{edge.source} {w}" for edge, w in zip(node.inputs, widths, strict=True))
        unequal = f" ({listed}); put a 1x1 conv on the edges" if "unequal" in problem else ""
        raise GraphError(node.name, problem + unequal)
    if node.shared and len(node.inputs) > 1 and node.merge.commutes:
        raise GraphError(
            node.name,
            f"is shared={node.shared!r} and merges inputs whose order is free; give each input a shared node of its "
            "own and merge those",
        )
    width = _check_width(node.name, node.merge.channels(widths))
    return _sound_behind(tuple(node.ops), width) or _check_behind(node.name, node.ops, width)


def _edge_channels(node: Node, edge: Edge, level: int, channels: int) -> int:
    """Channels of an edge's map at its node."""
    if not edge.ops and level == node.level:
        return channels
    return _sound_edge(tuple(edge.ops), level, channels, node.level) or _check_edge(node, edge, level, channels)


# Edges and operations behind merges come in few kinds: those that pass are remembered, those that do not are checked
# again for the message, which names the node.


@lru_cache(maxsize=4096)
def _sound_edge(ops: tuple[Op, ...], level: int, channels: int, node_level: int) -> int | None:
    edge = Edge("", ops)
    try:
        return _check_edge(Node("", node_level, (edge,)), edge, level, channels)
    except GraphError:
        return None


@lru_cache(maxsize=4096)
def _sound_behind(ops: tuple[Op, ...], channels: int) -> int | None:
    try:
        return _check_behind("", ops, channels)
    except GraphError:
        return None


def _check_edge(node: Node, edge: Edge, level: int, channels: int) -> int:
    stops = edge_stops(edge, level, channels, node.level)
    width = _checked_channels(node.name, stops, channels)
    _check_levels(node, edge, level)
    _check_pooled(node.name, edge.ops)
    return width


def _check_behind(name: str, ops: Sequence[Op], channels: int) -> int:
    for op in ops:
        if isinstance(op, (Resample, AdaptivePool, Restore)) or levels_moved(op):
            raise GraphError(name, "changes the level behind its merge; resample on the edges instead")
    return _checked_channels(name, trace(ops, 0, channels), channels)


def edge_stops(edge: Edge, level: int, channels: int, node_level: int) -> tuple[Stop, ...]:
    """The way of an edge's map from its source's level and channels to a node at `node_level`."""
    return _stops(tuple(edge.ops), level, channels, node_level) if edge.ops else ()


@lru_cache(maxsize=4096)
def _stops(ops: tuple[Op, ...], level: int, channels: int, node_level: int) -> tuple[Stop, ...]:
    return tuple(trace(ops, level, channels, _rest(ops, level, node_level)))


def _check_levels(node: Node, edge: Edge, source_level: int) -> None:
    resamples = [op for op in edge.ops if isinstance(op, Resample)]
    if len(resamples) > 1:
        raise GraphError(
            node.name,
            f"expected one resample on the edge from {edge.source}, got {len(resamples)}; leave out the others",
        )
    rest = resample_levels(edge, source_level, node.level)
    if not resamples:
        if rest:
            raise GraphError(
                node.name,
                f"is at level {node.level} and reads {edge.source} of level {source_level}, {abs(rest)} level(s) away: "
                f"put a {'downsampling (max_pool, a stride-2 conv)' if rest > 0 else 'nearest or bilinear'} "
                "resample on the edge",
            )
    elif rest == 0:
        raise GraphError(node.name, f"resamples {edge.source}, which is at its level already; leave the resample out")
    elif resamples[0].direction * rest < 0:
        right = "max_pool, avg_pool or subsample" if rest > 0 else "nearest or bilinear"
        raise GraphError(
            node.name,
            f"is at level {node.level} and reads {edge.source} of level {source_level} through {resamples[0].kind!r}, "
            f"which goes the other way; try {right}",
        )


def _check_pooled(name: str, ops: Sequence[Op]) -> None:
    """Every `AdaptivePool` must be ended by a `Restore`, and nothing between them may need the level's size."""
    pooled = False
    for op in ops:
        if isinstance(op, (AdaptivePool, Restore)):
            if pooled == isinstance(op, AdaptivePool):
                what = "pools adaptively what is pooled" if pooled else "restores what no adaptive_pool has pooled"
                raise GraphError(name, f"{what}; expected adaptive_pool, then restore, on an edge")
            pooled = not pooled
        elif pooled and (isinstance(op, (Resample, PositionalEncoding)) or levels_moved(op)):
            raise GraphError(name, f"has {op.word} between adaptive_pool and restore; put it outside of them")
    if pooled:
        raise GraphError(name, "ends an edge on a map pooled adaptively; put a restore behind it")


def _check_shared(nodes: Sequence[Node], levels: Mapping[str, int], channels: Mapping[str, int]) -> None:
    first: dict[str, tuple[str, Any]] = {}
    for node in nodes:
        if node.shared:
            edges = [(e.ops, resample_levels(e, levels[e.source], node.level), channels[e.source]) for e in node.inputs]
            name, wanted = first.setdefault(node.shared, (node.name, (node.merge, node.ops, edges)))
            if wanted != (node.merge, node.ops, edges):
                raise GraphError(
                    node.name, f"shares {node.shared!r} with {name!r}, but has other operations or channels"
                )


def resample_levels(edge: Edge, source_level: int, node_level: int) -> int:
    """Levels that the edge's `Resample` moves: what its strided convs leave of the difference."""
    return _rest(edge.ops, source_level, node_level)


def _rest(ops: Sequence[Op], source_level: int, node_level: int) -> int:
    return node_level - source_level - sum(map(levels_moved, ops))


def _checked_channels(name: str, stops: Iterable[Stop], channels: int) -> int:
    for stop in stops:
        problem = stop.op.problem(stop.channels, stop.level_after - stop.level)
        if problem:
            raise GraphError(name, problem)
        channels = _check_width(name, stop.channels_after)
    return channels


def _check_outputs(outputs: Iterable[str], levels: Mapping[str, int]) -> tuple[str, ...]:
    outputs = tuple(outputs)
    if not outputs:
        raise GraphError(None, "expected at least one output in the graph, got none")
    taken: dict[int, str] = {}
    for name in outputs:
        if name not in levels:
            near = difflib.get_close_matches(str(name), levels, n=1)
            wanted = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(levels)}"
            raise GraphError(str(name), f"is an output but no node: {wanted}")
        other = taken.setdefault(levels[name], name)
        if other != name or outputs.count(name) > 1:
            raise GraphError(name, f"expected one output for level {levels[name]}, got this one and {other!r}")
    return tuple(sorted(outputs, key=lambda name: levels[name]))


# -- reading and writing -----------------------------------------------------------------------------------------


def values_off_default(item: Any) -> dict[str, Any]:
    """Fields that are not at their default."""
    return {
        f.name: getattr(item, f.name)
        for f in dataclasses.fields(item)
        if f.default is dataclasses.MISSING or getattr(item, f.name) != f.default
    }


def _merge_to_dict(merge: AnyMerge) -> dict[str, Any]:
    return ({} if isinstance(merge, Merge) else {"merge": merge.word}) | values_off_default(merge)


def _ops_to_list(ops: Sequence[Op]) -> list[dict[str, Any]]:
    return [{"op": op.word} | values_off_default(op) for op in ops]


def _list(value: Any, node: str | None, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise GraphError(node, f"expected {what} to be a list, got {value!r}")
    return value


def _check_keys(data: Any, node: str | None, what: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(data, Mapping):
        raise GraphError(node, f"expected {what} to be a mapping, got {data!r}")
    for key in data:
        if key not in required | optional:
            near = difflib.get_close_matches(str(key), required | optional, n=1)
            wanted = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(required | optional))}"
            raise GraphError(node, f"{what} has unknown key {key!r}: {wanted}")
    missing = required - set(data)
    if missing:
        raise GraphError(node, f"{what} lacks {', '.join(sorted(map(repr, missing)))}")


def _load(cls: Any, data: Any, node: str | None, what: str) -> Any:
    """An instance of a flat dataclass from a mapping, strictly: unknown keys and wrong types are errors."""
    hints = _hints(cls)
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    _check_keys(data, node, what, required, set(hints) - required)
    for key, value in data.items():
        _check_value(hints[key], key, value, node, what)
    return cls(**data)


_SOUND: dict[int, Any] = {}
"""Words whose values have been checked, by their `id`; kept alive here, so that no other word can get it."""


def _check_values(item: Any, words: Mapping[str, type], node: str) -> None:
    """Refuse what is none of the words, or was made with a value that no field of it can have."""
    if type(item) is not words.get(what := getattr(item, "word", "")):
        kind = "a merge" if words is MERGES else "an operation"
        raise GraphError(node, f"has {item!r} as {kind}; {', '.join(sorted(words))} are known")
    if _SOUND.get(id(item)) is item:
        return
    for key, expected in _hints(type(item)).items():
        _check_value(expected, key, getattr(item, key), node, what)
    if len(_SOUND) >= 4096:
        _SOUND.clear()
    _SOUND[id(item)] = item


def _check_value(expected: Any, key: str, value: Any, node: str | None, what: str) -> None:
    if isinstance(expected, frozenset):
        if not isinstance(value, str) or value not in expected:
            near = difflib.get_close_matches(str(value), expected, n=1)
            choice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(expected))}"
            raise GraphError(node, f"{what} has {key}={value!r}: {choice}")
    elif type(value) is int and expected is int and value > MAX_NUMBER:
        raise GraphError(node, f"{what} has {key}={value:,}; expected at most {MAX_NUMBER:,}")
    elif type(value) is not expected and not (expected is float and type(value) is int and abs(value) < 2**53):
        raise GraphError(node, f"{what} has {key}={value!r}; expected type {expected.__name__}")


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    """Field name -> int, float, bool, str, or the frozen set of strings of a Literal."""
    if cls not in _HINTS:
        found = typing.get_type_hints(cls)
        _HINTS[cls] = {
            f.name: found[f.name] if isinstance(found[f.name], type) else frozenset(_literals(found[f.name]))
            for f in dataclasses.fields(cls)
        }
    return _HINTS[cls]


def _literals(hint: Any) -> Iterable[str]:
    for arg in typing.get_args(hint):
        yield from [arg] if isinstance(arg, str) else _literals(arg)


def _load_word(words: Mapping[str, Any], item: Mapping[str, Any], key: str, node: str) -> Any:
    word = item[key]
    if not isinstance(word, str) or word not in words:
        near = difflib.get_close_matches(str(word), words, n=1)
        choice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(words))}"
        raise GraphError(node, f"unknown {key} {word!r}: {choice}")
    return _load(words[word], {k: v for k, v in item.items() if k != key}, node, word)


def _load_merge(item: Any, node: str) -> AnyMerge:
    if isinstance(item, Mapping) and "merge" in item:
        merge: AnyMerge = _load_word(MERGES, item, "merge", node)
        return merge
    plain: Merge = _load(Merge, item, node, "merge")
    return plain


def _load_ops(items: Any, node: str) -> tuple[Op, ...]:
    ops: list[Op] = []
    for item in _list(items, node, "ops"):
        if not isinstance(item, Mapping) or "op" not in item:
            raise GraphError(node, f"op {item!r} lacks 'op', one of {', '.join(sorted(OPS))}")
        ops.append(_load_word(OPS, item, "op", node))
    return tuple(ops)


def _load_node(data: Any) -> Node:
    name = data.get("name") if isinstance(data, Mapping) else None
    where = name if isinstance(name, str) else None
    _check_keys(data, where, "node", {"name", "level", "inputs"}, {"merge", "ops", "shared"})
    if not isinstance(name, str):
        raise GraphError(None, f"expected a node's name to be a string, got {name!r}")
    edges = []
    for item in _list(data["inputs"], name, "inputs"):
        _check_keys(item, name, "edge", {"source"}, {"ops"})
        if not isinstance(item["source"], str):
            raise GraphError(name, f"expected the name of a node or input as an edge's source, got {item['source']!r}")
        edges.append(Edge(item["source"], _load_ops(item.get("ops", []), name)))
    merge = _load_merge(data.get("merge", {}), name)
    return Node(name, data["level"], tuple(edges), merge, _load_ops(data.get("ops", []), name), data.get("shared", ""))
