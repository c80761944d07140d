"""Steps of a neck as what its latency is made of: units alike in two necks have one key, and are timed once."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fpn_bench.graph import Conv, NeckGraph, cost
from fpn_bench.graph.spec import Operation, values_off_default
from fpn_bench.graph.walk import NodeShapes, used_levels, with_sizes
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import ImageSize, level_sizes


@dataclass(frozen=True, slots=True)
class Unit:
    """One step of a neck: a node with its edges, on maps of given sizes.

    Attributes:
        key: canonical text; equal for units that compute alike, whatever their names, levels and neck.
        macs: multiply-adds for one image.
        work: kind of operation, e.g. ``"activation silu"`` -> (how many the unit has, elements they read and write).
    """

    key: str
    macs: int
    work: Mapping[str, tuple[int, int]]

    @property
    def id(self) -> str:
        """16 hex digits over the key."""
        return short_hash(self.key)


def neck_units(graph: NeckGraph, input_sizes: Mapping[int, ImageSize]) -> dict[str, Unit]:
    """The units of a neck by the name of their node; nodes that only pass a map on have none.

    Args:
        graph: the neck.
        input_sizes: level -> (height, width) of each of its inputs.

    Raises:
        InputError: the sizes are not those of the graph's inputs.
    """
    macs = {node.name: node.macs for node in cost(graph, input_sizes=input_sizes).nodes}
    sizes = level_sizes(input_sizes, used_levels(graph))
    units = {shapes.node.name: _unit(graph, shapes, sizes, macs[shapes.node.name]) for shapes in graph.walked}
    return {name: unit for name, unit in units.items() if unit.work}


def _unit(graph: NeckGraph, shapes: NodeShapes, sizes: Mapping[int, ImageSize], macs: int) -> Unit:
    node = shapes.node
    work: dict[str, tuple[int, int]] = {}

    def add(item: Operation, elements: int) -> None:
        count, moved = work.get(kind := _kind(item), (0, 0))
        work[kind] = count + 1, moved + elements

    edges = []
    for edge, path in zip(node.inputs, shapes.edges, strict=True):
        source = sizes[graph.level_of(edge.source)]
        way: list[Any] = [graph.channels_of(edge.source), source]
        for shape, before, after in with_sizes(path, source, sizes):
            way.append([_words(shape.op), shape.levels, after])
            add(shape.op, shape.channels * math.prod(before) + shape.channels_after * math.prod(after))
        edges.append(way)
    pixels = math.prod(sizes[node.level])
    if shapes.merges:
        add(node.merge, (sum(shapes.widths) + node.merge.out_width(shapes.widths)) * pixels)
    for shape in shapes.after:
        add(shape.op, (shape.channels + shape.channels_after) * pixels)
    if node.merge.commutes:
        edges.sort(key=json.dumps)
    key = [sizes[node.level], edges, _words(node.merge), [_words(op) for op in node.ops]]
    return Unit(json.dumps(key, sort_keys=True, separators=(",", ":")), macs, work)


def _words(item: Operation) -> dict[str, Any]:
    return {"word": item.op_type} | values_off_default(item)


def _kind(item: Operation) -> str:
    """What operations that take alike long, an element, have in common: the word and the values that are no numbers."""
    values = [value for value in _words(item).values() if isinstance(value, str)]
    flags = [name for name, value in _words(item).items() if value is True]
    grouped = ["grouped"] if isinstance(item, Conv) and item.groups > 1 else []
    return " ".join(values + flags + grouped)


def unit_calls(
    graph: NeckGraph, input_sizes: Mapping[int, ImageSize], nodes: Mapping[str, str], place: torch.device
) -> dict[str, Callable[[], object]]:
    """A call of each unit, given as unit id -> node: the node's own step of the built neck, on random maps."""
    sizes = level_sizes(input_sizes, used_levels(graph))
    by_name = {node.name: node for node in graph.nodes}
    maps: dict[tuple[int, int, ImageSize], torch.Tensor] = {}
    calls: dict[str, Callable[[], object]] = {}
    with torch.random.fork_rng(devices=[]):
        neck = build_neck(graph).eval()
        for unit, name in nodes.items():
            sources = []
            for i, edge in enumerate(by_name[name].inputs):
                kind = i, graph.channels_of(edge.source), sizes[graph.level_of(edge.source)]
                if kind not in maps:
                    maps[kind] = torch.randn(1, kind[1], *kind[2]).to(place)
                sources.append(maps[kind])
            calls[unit] = functools.partial(neck.steps[name].to(place), sources, sizes)
    return calls


def short_hash(text: str) -> str:
    """16 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
