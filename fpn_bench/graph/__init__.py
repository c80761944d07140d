"""The neck as data: nodes, edges, operations; checks, canonical id, costs and drawings. No torch."""

import warnings
from typing import Any

from fpn_bench.graph.builder import GraphBuilder
from fpn_bench.graph.compose import adapter_nodes, compose
from fpn_bench.graph.cost import GraphCost, NodeCost, cost
from fpn_bench.graph.draw import as_svg, as_text
from fpn_bench.graph.merge_ops import Attention, DeformableConv, Merge, Reassemble, SpatialSoftmax
from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.node import Edge, Node, input_name
from fpn_bench.graph.path_ops import (
    Activation,
    AdaptivePool,
    Conv,
    Norm,
    PositionalEncoding,
    Resample,
    ResizeToLevel,
    TransposedConv,
)
from fpn_bench.graph.spec import MERGES, OPS, MergeOp, Op, register
from fpn_bench.graph.tokens import count_tokens, graph_tokens

__all__ = [
    "MERGES",
    "OPS",
    "Activation",
    "AdaptivePool",
    "Attention",
    "Conv",
    "DeformableConv",
    "Edge",
    "GraphBuilder",
    "GraphCost",
    "Merge",
    "MergeOp",
    "NeckGraph",
    "Node",
    "NodeCost",
    "Norm",
    "Op",
    "PositionalEncoding",
    "Reassemble",
    "Resample",
    "ResizeToLevel",
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
    "register",
]


def __getattr__(name: str) -> Any:
    if name != "Restore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("`Restore` is now called `ResizeToLevel`", DeprecationWarning, stacklevel=2)
    return ResizeToLevel
