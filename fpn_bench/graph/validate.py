"""What a neck graph is refused for. Every error names the node, what was expected and what it got."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from fpn_bench.errors import GraphError
from fpn_bench.graph.node import Edge, Node, input_name
from fpn_bench.graph.path_ops import AdaptivePool, PositionalEncoding, Resample, ResizeToLevel
from fpn_bench.graph.spec import MERGES, OPS, Op, Operation, field_types
from fpn_bench.graph.walk import resample_levels
from fpn_bench.pyramid import MAX_LEVEL, FeatureSpec, check_features

MAX_NODES = 10_000
"""Nodes a graph may have. Published necks have up to some hundred."""
MAX_NUMBER = 65_536
"""The largest whole number in an operation (channels, kernel, bins ...), and the most channels a map may have."""


def did_you_mean(got: object, known: Collection[str]) -> str:
    """What to type instead: the nearest known name, or all of them."""
    near = difflib.get_close_matches(str(got), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


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
            raise GraphError(node.name, f"reads unknown source {edge.source!r}: {did_you_mean(edge.source, names)}")


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
    problem = node.merge.validate(widths)
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
    width = _check_width(node.name, node.merge.out_width(widths))
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
    width = _checked_channels(node.name, edge.ops, channels, resample_levels(edge.ops, level, node.level))
    _check_levels(node, edge, level)
    _check_pooled(node.name, edge.ops)
    return width


def _check_behind(name: str, ops: Sequence[Op], channels: int) -> int:
    for op in ops:
        if isinstance(op, (Resample, AdaptivePool, ResizeToLevel)) or op.levels_moved:
            raise GraphError(name, "changes the level behind its merge; resample on the edges instead")
    return _checked_channels(name, ops, channels, 0)


def _check_levels(node: Node, edge: Edge, source_level: int) -> None:
    resamples = [op for op in edge.ops if isinstance(op, Resample)]
    if len(resamples) > 1:
        raise GraphError(
            node.name,
            f"expected one resample on the edge from {edge.source}, got {len(resamples)}; leave out the others",
        )
    rest = resample_levels(edge.ops, source_level, node.level)
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
    """Every `AdaptivePool` must be ended by a `ResizeToLevel`, and nothing between them may need the level's size."""
    pooled = False
    for op in ops:
        if isinstance(op, (AdaptivePool, ResizeToLevel)):
            if pooled == isinstance(op, AdaptivePool):
                what = "pools adaptively what is pooled" if pooled else "restores what no adaptive_pool has pooled"
                raise GraphError(name, f"{what}; expected adaptive_pool, then restore, on an edge")
            pooled = not pooled
        elif pooled and (isinstance(op, (Resample, PositionalEncoding)) or op.levels_moved):
            raise GraphError(name, f"has {op.op_type} between adaptive_pool and restore; put it outside of them")
    if pooled:
        raise GraphError(name, "ends an edge on a map pooled adaptively; put a restore behind it")


def topological(nodes: Iterable[Node], input_levels: Mapping[str, int]) -> tuple[Node, ...]:
    """Nodes so that every source comes first; otherwise in the order given.

    Raises:
        GraphError: a name that cannot be had, an unknown source, or a cycle.
    """
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


def check_shared(nodes: Sequence[Node], levels: Mapping[str, int], channels: Mapping[str, int]) -> None:
    """Refuse nodes that share weights and are not alike.

    Raises:
        GraphError: names the two.
    """
    first: dict[str, tuple[str, Any]] = {}
    for node in nodes:
        if node.shared:
            edges = [
                (e.ops, resample_levels(e.ops, levels[e.source], node.level), channels[e.source]) for e in node.inputs
            ]
            name, wanted = first.setdefault(node.shared, (node.name, (node.merge, node.ops, edges)))
            if wanted != (node.merge, node.ops, edges):
                raise GraphError(
                    node.name, f"shares {node.shared!r} with {name!r}, but has other operations or channels"
                )


def _checked_channels(name: str, ops: Sequence[Op], channels: int, resampled: int) -> int:
    """Channels behind the operations, whose `Resample` covers `resampled` levels; what is invalid is never asked."""
    for op in ops:
        moved = resampled if isinstance(op, Resample) else op.levels_moved
        problem = op.validate(channels, moved)
        if problem:
            raise GraphError(name, problem)
        channels = _check_width(name, op.out_width(channels, moved))
    return channels


def check_outputs(outputs: Iterable[str], levels: Mapping[str, int]) -> tuple[str, ...]:
    """The outputs, finest first.

    Raises:
        GraphError: none, one that is no node, or two of one level.
    """
    outputs = tuple(outputs)
    if not outputs:
        raise GraphError(None, "expected at least one output in the graph, got none")
    taken: dict[int, str] = {}
    for name in outputs:
        if name not in levels:
            raise GraphError(str(name), f"is an output but no node: {did_you_mean(name, levels)}")
        other = taken.setdefault(levels[name], name)
        if other != name or outputs.count(name) > 1:
            raise GraphError(name, f"expected one output for level {levels[name]}, got this one and {other!r}")
    return tuple(sorted(outputs, key=lambda name: levels[name]))


_SOUND: dict[int, Any] = {}
"""Operations whose values have been checked, by their `id`; kept alive here, so that no other can get it."""


def _check_values(item: Any, words: Mapping[str, type[Operation]], node: str) -> None:
    """Refuse what is none of the words, or was made with a value that no field of it can have."""
    if type(item) is not words.get(what := getattr(item, "op_type", "")):
        kind = "a merge" if words is MERGES else "an operation"
        raise GraphError(node, f"has {item!r} as {kind}; {', '.join(sorted(words))} are known")
    if _SOUND.get(id(item)) is item:
        return
    for key, expected in field_types(words[what]).items():
        check_value(expected, key, getattr(item, key), node, what)
    if len(_SOUND) >= 4096:
        _SOUND.clear()
    _SOUND[id(item)] = item


def check_value(expected: Any, key: str, value: Any, node: str | None, what: str) -> None:
    """Refuse a value of a field that is not of its type (see `fpn_bench.graph.spec.field_types`)."""
    if isinstance(expected, frozenset):
        if not isinstance(value, str) or value not in expected:
            raise GraphError(node, f"{what} has {key}={value!r}: {did_you_mean(value, expected)}")
    elif type(value) is int and expected is int and value > MAX_NUMBER:
        raise GraphError(node, f"{what} has {key}={value:,}; expected at most {MAX_NUMBER:,}")
    elif type(value) is not expected and not (expected is float and type(value) is int and abs(value) < 2**53):
        raise GraphError(node, f"{what} has {key}={value!r}; expected type {expected.__name__}")
