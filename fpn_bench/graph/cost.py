"""Params and MACs of a neck graph in closed form, from the data alone: the sum of what its operations say.

Counted are convolutions and the products of attention: one multiply-add is one MAC, biases are free. Norm layers,
activations, resampling and element-wise merges have no MACs in this definition (the one `fpn_bench.profiling` measures
by).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fpn_bench.errors import InputError
from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.walk import NodeShapes, used_levels, with_sizes
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
    for shapes in graph.walked:
        node = shapes.node
        params, macs = _node_cost(shapes, graph, sizes)
        owns = node.shared not in shared
        nodes.append(NodeCost(node.name, node.level, sizes[node.level], params if owns else 0, macs))
        shared |= {node.shared} - {""}
    return GraphCost(sum(n.params for n in nodes), sum(n.macs for n in nodes), tuple(nodes))


def _node_cost(shapes: NodeShapes, graph: NeckGraph, sizes: Mapping[int, ImageSize]) -> tuple[int, int]:
    """(params, macs) of one node."""
    node, size = shapes.node, sizes[shapes.node.level]
    costs = [node.merge.cost(shapes.widths, size), *(shape.op.cost(shape.channels, size) for shape in shapes.after)]
    for edge, path in zip(node.inputs, shapes.edges, strict=True):
        source = sizes[graph.level_of(edge.source)]
        costs += [shape.op.cost(shape.channels, before) for shape, before, _ in with_sizes(path, source, sizes)]
    return sum(params for params, _ in costs), sum(macs for _, macs in costs)
