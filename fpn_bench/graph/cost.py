"""Params and MACs of a neck graph in closed form, from the data alone.

Counted are convolutions and the products of attention: one multiply-add is one MAC, biases are free. Norm layers,
activations, resampling and element-wise merges have no MACs in this definition (the one `fpn_bench.profiling` measures
by).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fpn_bench.errors import InputError
from fpn_bench.graph.graph import NeckGraph, Node, edge_stops
from fpn_bench.graph.ops import (
    AdaptivePool,
    AnyMerge,
    Attention,
    Conv,
    DeformableConv,
    Merge,
    Norm,
    Op,
    Restore,
    Stop,
    TransposedConv,
    trace,
)
from fpn_bench.pyramid import ImageSize, level_sizes, map_size


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node, its edges included.

    Attributes:
        name, level: of the node.
        size: (height, width) of its map.
        params: learned values; of nodes that share theirs, all stand at the first.
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
        InputError: neither or both sizes were given, or one is not positive; `image_size` was given for
            inputs whose strides are not powers of two.
    """
    if (image_size is None) == (input_sizes is None):
        raise InputError("cost() takes either image_size=(height, width) or input_sizes={level: (height, width)}")
    if input_sizes is None:
        assert image_size is not None
        if min(image_size) < 1:
            raise InputError(f"expected image_size as (height, width) of at least 1 pixel each, got {image_size}")
        for spec in graph.inputs:
            if spec.stride != 2**spec.level:
                raise InputError(
                    f"image_size does not give the size of input C{spec.level}, which has stride {spec.stride}: give "
                    "input_sizes={level: (height, width)} instead"
                )
        input_sizes = {spec.level: map_size(image_size, spec.level) for spec in graph.inputs}
    wanted = [spec.level for spec in graph.inputs]
    if sorted(input_sizes) != wanted or any(min(size) < 1 for size in input_sizes.values()):
        raise InputError(
            f"expected input_sizes of at least 1x1 for each of the levels {wanted}, got {dict(input_sizes)}"
        )
    sizes = level_sizes(input_sizes, used_levels(graph))
    nodes = []
    shared: set[str] = set()
    for node in graph.nodes:
        if node.name in graph.alive:
            params, macs = _node_cost(graph, node, sizes)
            owns = node.shared not in shared
            nodes.append(NodeCost(node.name, node.level, sizes[node.level], params if owns else 0, macs))
            shared |= {node.shared} - {""}
    return GraphCost(sum(n.params for n in nodes), sum(n.macs for n in nodes), tuple(nodes))


def used_levels(graph: NeckGraph) -> frozenset[int]:
    """Every level that some live edge of the graph reaches, also half-way between two nodes."""
    levels = set()
    for node in graph.nodes:
        if node.name in graph.alive:
            levels.add(node.level)
            for edge in node.inputs:
                source = edge.source
                stops = edge_stops(edge, graph.level_of(source), graph.channels_of(source), node.level)
                levels.update(stop.level_after for stop in stops)
    return frozenset(levels)


def _node_cost(graph: NeckGraph, node: Node, sizes: Mapping[int, ImageSize]) -> tuple[int, int]:
    """(params, macs) of one node."""
    widths = []
    params = macs = 0
    for edge in node.inputs:
        width = graph.channels_of(edge.source)
        size = sizes[graph.level_of(edge.source)]
        for stop in edge_stops(edge, graph.level_of(edge.source), width, node.level):
            op_params, op_macs = _op_cost(stop, size)
            params, macs, width = params + op_params, macs + op_macs, stop.channels_after
            if isinstance(stop.op, AdaptivePool):
                size = (stop.op.bins, stop.op.bins)
            elif isinstance(stop.op, Restore) or stop.level_after != stop.level:
                size = sizes[stop.level_after]
        widths.append(width)
    size = sizes[node.level]
    costs = [_merge_cost(node.merge, widths, size)]
    costs += [_op_cost(stop, size) for stop in trace(node.ops, node.level, node.merge.channels(widths))]
    return params + sum(p for p, _ in costs), macs + sum(m for _, m in costs)


def _op_cost(stop: Stop, size: ImageSize) -> tuple[int, int]:
    """(params, macs) of one operation on a map of `size`."""
    op: Op = stop.op
    if isinstance(op, Norm):
        return 2 * stop.channels, 0
    if isinstance(op, TransposedConv):
        weights = op.kernel**2 * stop.channels * op.channels // op.groups
        return weights + op.channels * op.bias, weights * size[0] * size[1]
    if not isinstance(op, Conv):
        return 0, 0
    height, width = (conv_size(side, op) for side in size)
    if op.separable:
        weights = op.kernel**2 * stop.channels + stop.channels * op.channels
    else:
        weights = op.kernel**2 * stop.channels * op.channels // op.groups
    return weights + op.channels * op.bias, weights * height * width


def _merge_cost(merge: AnyMerge, widths: Sequence[int], size: ImageSize) -> tuple[int, int]:
    """(params, macs) of merging maps of `size` and of `widths` channels."""
    pixels = size[0] * size[1]
    if isinstance(merge, Merge):
        return len(widths) * (widths[0] if merge.per_channel else 1) if merge.is_weighted else 0, 0
    if isinstance(merge, Attention):
        return 0, pixels**2 * (widths[0] + widths[2])
    if isinstance(merge, DeformableConv):
        weights = merge.kernel**2 * widths[0] * merge.channels_out
        return weights + merge.channels_out * merge.bias, weights * pixels
    return 0, 0


def conv_size(side: int, op: Conv) -> int:
    """Side of the map that the convolution itself makes of a side, before it is fitted to the level's size."""
    if op.tiles:
        return -(-side // op.stride)
    return (side + 2 * op.padding - op.dilation * (op.kernel - 1) - 1) // op.stride + 1
