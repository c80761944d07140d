"""Two graphs in a row as one: a backbone's adapter and the neck behind it."""

from __future__ import annotations

from dataclasses import replace

from fpn_bench.errors import GraphError
from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.node import Edge, Node, input_name
from fpn_bench.graph.walk import sizing_level, used_levels

ADAPTER_PREFIX = "adapter_"
"""What the names of the first graph's nodes begin with in the whole."""


def compose(first: NeckGraph, second: NeckGraph) -> NeckGraph:
    """`second` on what `first` returns, as one graph over the inputs of `first`.

    With the same weights it gives, to the bit, what the two give one after the other, and it costs what they cost
    together, less the nodes of `first` that `second` has no use for.

    Args:
        first: its nodes and shared words are prefixed with `ADAPTER_PREFIX`, so that both graphs may use one name.
        second: over ``first.out_features``; its nodes keep their names.

    Raises:
        GraphError: the inputs of `second` are not what `first` returns; a name stands in both all the same; or a level
            would have another size in the whole.
    """
    if second.inputs != first.out_features:
        made, wanted = (
            ", ".join(f"C{spec.level}: {spec.channels}ch stride {spec.stride}" for spec in specs)
            for specs in (first.out_features, second.inputs)
        )
        raise GraphError(None, f"the second graph reads ({wanted}), the first returns ({made}); make one for the other")
    _check_sizes(first, second)
    names = {node.name: ADAPTER_PREFIX + node.name for node in first.nodes}
    words = {node.shared: ADAPTER_PREFIX + node.shared for node in first.nodes if node.shared}
    for node in second.nodes:
        if node.shared in words.values():
            raise GraphError(
                node.name, f"is shared={node.shared!r}, the name of the first graph's weights; choose another"
            )
    adapter = [_renamed(node, names, names[node.name], words.get(node.shared, "")) for node in first.nodes]
    # What the second reads by the name of an input is the first's output of that level.
    sources = {
        input_name(spec.level): names.get(output, output)
        for spec, output in zip(second.inputs, first.outputs, strict=True)
    }
    neck = [_renamed(node, sources, node.name, node.shared) for node in second.nodes]
    return NeckGraph(first.inputs, (*adapter, *neck), tuple(sources.get(name, name) for name in second.outputs))


def adapter_nodes(first: NeckGraph) -> frozenset[str]:
    """What the nodes of `first` are called in whatever it was composed with."""
    return frozenset(ADAPTER_PREFIX + node.name for node in first.nodes)


def _renamed(node: Node, sources: dict[str, str], name: str, shared: str) -> Node:
    edges = tuple(Edge(sources.get(edge.source, edge.source), edge.ops) for edge in node.inputs)
    return replace(node, name=name, inputs=edges, shared=shared)


def _check_sizes(first: NeckGraph, second: NeckGraph) -> None:
    """Every level of `second` must have, in the whole, the size that it has behind the maps of `first`.

    A level's size is that of one input, its anchor, halved (rounded up) or doubled some times. Through the maps of
    `first` the way may be another: from another anchor, or coarser first and back, which loses the odd row.
    """
    inputs = [spec.level for spec in first.inputs]
    between = [spec.level for spec in first.out_features]
    for level in sorted(used_levels(second)):
        anchor, through = sizing_level(inputs, level), sizing_level(between, level)
        if sizing_level(inputs, through) != anchor or through > max(anchor, level):
            raise GraphError(
                None,
                f"level {level} of the second graph has the size that P{through} of the first gives it, and would have "
                f"that of C{anchor} in the whole; let the first return level {level} or {anchor} as well",
            )
