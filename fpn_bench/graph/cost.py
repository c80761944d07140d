"""Params and MACs of a neck graph in closed form, from the data alone.

Counted are convolutions: one multiply-add is one MAC, biases are free. Norm layers, activations, merges and
resampling have no MACs in this definition (the one `fpn_bench.profiling` measures by).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpn_bench.errors import InputError
from fpn_bench.graph.graph import NeckGraph, Node, resample_levels
from fpn_bench.graph.ops import Conv, Norm, Op, Resample
from fpn_bench.pyramid import ImageSize, level_sizes, map_size


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node, its edges included.

    Attributes:
        name, level: of the node.
        size: (height, width) of its map.
        params: learned values.
        macs: multiply-adds for one image.
    """

    name: str
    level: int
    size: ImageSize
    params: int
    macs: int


@dataclass(frozen=True, slots=True)
class GraphCost:
    """Cost of a neck: totals over its live nodes, and each of them."""

    params: int
    macs: int
    nodes: tuple[NodeCost, ...]


def cost(
    graph: NeckGraph, image_size: ImageSize | None = None, *, input_sizes: Mapping[int, ImageSize] | None = None
) -> GraphCost:
    """Params and MACs of a graph for one image.

    Args:
        graph: the neck; nodes that no output depends on cost nothing.
        image_size: (height, width) in pixels; maps are taken as halved and rounded up at each level.
        input_sizes: instead, level -> (height, width) of each of the graph's inputs, where the backbone rounds
            otherwise.

    Raises:
        InputError: neither or both sizes were given, or one is not positive.
    """
    if (image_size is None) == (input_sizes is None):
        raise InputError("cost() takes either image_size=(height, width) or input_sizes={level: (height, width)}")
    if input_sizes is None:
        assert image_size is not None
        if min(image_size) < 1:
            raise InputError(f"image_size {image_size} came; (height, width) of at least 1 pixel is wanted")
        input_sizes = {spec.level: map_size(image_size, spec.level) for spec in graph.inputs}
    wanted = [spec.level for spec in graph.inputs]
    if sorted(input_sizes) != wanted or any(min(size) < 1 for size in input_sizes.values()):
        raise InputError(f"input_sizes {dict(input_sizes)} came; a size of at least 1x1 for each of {wanted} is wanted")
    sizes = level_sizes(input_sizes, used_levels(graph))
    nodes = tuple(_node_cost(graph, node, sizes) for node in graph.nodes if node.name in graph.alive)
    return GraphCost(sum(n.params for n in nodes), sum(n.macs for n in nodes), nodes)


def used_levels(graph: NeckGraph) -> frozenset[int]:
    """Every level that some live edge of the graph reaches, also half-way between two nodes."""
    levels = set()
    for node in graph.nodes:
        if node.name not in graph.alive:
            continue
        levels.add(node.level)
        for edge in node.inputs:
            level = graph.level_of(edge.source)
            jump = resample_levels(edge, level, node.level)
            for op in edge.ops:
                level += levels_moved(op, jump)
                levels.add(level)
    return frozenset(levels)


def levels_moved(op: Op, resample_jump: int) -> int:
    """Levels up the pyramid that one operation of an edge moves; `resample_jump` is what its `Resample` covers."""
    if isinstance(op, Resample):
        return resample_jump
    return op.stride.bit_length() - 1 if isinstance(op, Conv) else 0


def _node_cost(graph: NeckGraph, node: Node, sizes: Mapping[int, ImageSize]) -> NodeCost:
    params = len(node.inputs) if node.merge.is_weighted else 0
    macs = 0
    width = 0
    for edge in node.inputs:
        level, channels = graph.level_of(edge.source), graph.channels_of(edge.source)
        jump = resample_levels(edge, level, node.level)
        for op in edge.ops:
            op_params, op_macs, channels = _op_cost(op, channels, sizes[level])
            params, macs = params + op_params, macs + op_macs
            level += levels_moved(op, jump)
        width = width + channels if node.merge.kind == "concat" else channels
    for op in node.ops:
        op_params, op_macs, width = _op_cost(op, width, sizes[node.level])
        params, macs = params + op_params, macs + op_macs
    return NodeCost(node.name, node.level, sizes[node.level], params, macs)


def _op_cost(op: Op, channels: int, size: ImageSize) -> tuple[int, int, int]:
    """(params, macs, channels out) of one operation on a map of `size`."""
    if isinstance(op, Norm):
        return 2 * channels, 0, channels
    if not isinstance(op, Conv):
        return 0, 0, channels
    height, width = (conv_size(side, op) for side in size)
    if op.separable:
        weights = op.kernel**2 * channels + channels * op.channels
    else:
        weights = op.kernel**2 * channels * op.channels // op.groups
    return weights + op.channels * op.bias, weights * height * width, op.channels


def conv_size(side: int, op: Conv) -> int:
    """Side of the map that the convolution itself makes of a side, before it is fitted to the level's size."""
    if op.tiles:
        return -(-side // op.stride)
    return (side + 2 * op.padding - op.dilation * (op.kernel - 1) - 1) // op.stride + 1
