"""The neck as data: nodes, edges, operations; checks, canonical id, costs and drawings. No torch."""

from fpn_bench.graph.builder import GraphBuilder
from fpn_bench.graph.compose import adapter_nodes, compose
from fpn_bench.graph.cost import GraphCost, NodeCost, cost
from fpn_bench.graph.draw import as_svg, as_text
from fpn_bench.graph.graph import Edge, NeckGraph, Node, input_name
from fpn_bench.graph.ops import (
    Activation,
    AdaptivePool,
    AnyMerge,
    Attention,
    Conv,
    DeformableConv,
    Merge,
    Norm,
    Op,
    PositionalEncoding,
    Reassemble,
    Resample,
    Restore,
    SpatialSoftmax,
    TransposedConv,
)
from fpn_bench.graph.tokens import count_tokens, graph_tokens

__all__ = [
    "Activation",
    "AdaptivePool",
    "AnyMerge",
    "Attention",
    "Conv",
    "DeformableConv",
    "Edge",
    "GraphBuilder",
    "GraphCost",
    "Merge",
    "NeckGraph",
    "Node",
    "NodeCost",
    "Norm",
    "Op",
    "PositionalEncoding",
    "Reassemble",
    "Resample",
    "Restore",
    "SpatialSoftmax",
    "TransposedConv",
    "adapter_nodes",
    "as_svg",
    "as_text",
    "compose",
    "cost",
    "count_tokens",
    "graph_tokens",
    "input_name",
]
