"""The way through a neck graph: which maps its operations read and make, in the order in which they run.

Whatever builds, costs, names, times or writes a graph takes levels, channels and sizes from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from fpn_bench.graph.node import Edge, Node
from fpn_bench.graph.path_ops import AdaptivePool, Resample, ResizeToLevel
from fpn_bench.graph.spec import Op
from fpn_bench.pyramid import ImageSize

if TYPE_CHECKING:
    from fpn_bench.graph.neck_graph import NeckGraph


class OpShape(NamedTuple):
    """One operation on its way: the level and channels of the map before and behind it."""

    op: Op
    level: int
    channels: int
    level_after: int
    channels_after: int

    @property
    def levels(self) -> int:
        """Levels up the pyramid that the map moves."""
        return self.level_after - self.level

    @property
    def reaches_size(self) -> bool:
        """Whether its map has the size of `level_after`, whatever it read."""
        return self.level_after != self.level or isinstance(self.op, ResizeToLevel)


@dataclass(frozen=True, slots=True)
class NodeShapes:
    """One node on its way.

    Attributes:
        node: it.
        edges: the operations on each of its edges.
        widths: channels of each edge's map at the merge.
        after: the operations behind the merge.
    """

    node: Node
    edges: tuple[tuple[OpShape, ...], ...]
    widths: tuple[int, ...]
    after: tuple[OpShape, ...]

    @property
    def merges(self) -> bool:
        """Whether the merge does anything."""
        return len(self.widths) > 1 or not self.node.merge.is_identity_of_one


def walk(graph: NeckGraph) -> Iterator[NodeShapes]:
    """The nodes that some output depends on, sources first; `NeckGraph.walked` keeps them."""
    for node in graph.nodes:
        if node.name in graph.reachable:
            edges, widths = [], []
            for edge in node.inputs:
                channels = graph.channels_of(edge.source)
                shapes = edge_shapes(edge, graph.level_of(edge.source), channels, node.level)
                edges.append(shapes)
                widths.append(shapes[-1].channels_after if shapes else channels)
            after = _inferred(tuple(node.ops), node.level, node.merge.out_width(widths), 0)
            yield NodeShapes(node, tuple(edges), tuple(widths), after)


def with_sizes(
    shapes: Iterable[OpShape], size: ImageSize, sizes: Mapping[int, ImageSize]
) -> Iterator[tuple[OpShape, ImageSize, ImageSize]]:
    """Operations in a row, each with the (height, width) of the map before and behind it.

    Args:
        shapes: of the operations.
        size: of the map that the first one reads.
        sizes: of each level.
    """
    for shape in shapes:
        before = size
        if isinstance(shape.op, AdaptivePool):
            size = (shape.op.bins, shape.op.bins)
        elif shape.reaches_size:
            size = sizes[shape.level_after]
        yield shape, before, size


def used_levels(graph: NeckGraph) -> frozenset[int]:
    """Every level that some live edge of the graph reaches, also half-way between two nodes."""
    levels = set()
    for shapes in graph.walked:
        levels.add(shapes.node.level)
        levels.update(shape.level_after for edge in shapes.edges for shape in edge)
    return frozenset(levels)


def sizing_level(inputs: Collection[int], level: int) -> int:
    """The input level that `fpn_bench.pyramid.level_sizes` makes the size of `level` from."""
    return max((k for k in inputs if k <= level), default=min(inputs))


def edge_shapes(edge: Edge, level: int, channels: int, node_level: int) -> tuple[OpShape, ...]:
    """The way of an edge's map from its source's level and channels to a node at `node_level`."""
    if not edge.ops:
        return ()
    return _inferred(tuple(edge.ops), level, channels, resample_levels(edge.ops, level, node_level))


def resample_levels(ops: Sequence[Op], source_level: int, node_level: int) -> int:
    """Levels that the `Resample` of an edge moves: what the other operations leave of the difference."""
    return node_level - source_level - sum(op.levels_moved for op in ops)


@lru_cache(maxsize=4096)
def _inferred(ops: tuple[Op, ...], level: int, channels: int, resample_levels: int) -> tuple[OpShape, ...]:
    """The way of a map of `channels` at `level` through `ops`, whose `Resample` moves it `resample_levels` up."""
    shapes = []
    for op in ops:
        levels = resample_levels if isinstance(op, Resample) else op.levels_moved
        shapes.append(OpShape(op, level, channels, level + levels, op.out_width(channels, levels)))
        level, channels = level + levels, shapes[-1].channels_after
    return tuple(shapes)
