"""The neck as data: nodes, edges, operations; checks, canonical id, costs and drawings. No torch."""

from fpn_bench.graph.cost import GraphCost, NodeCost, cost
from fpn_bench.graph.draw import as_svg, as_text
from fpn_bench.graph.graph import Edge, NeckGraph, Node, input_name
from fpn_bench.graph.ops import Activation, Conv, Merge, Norm, Op, Resample

__all__ = [
    "Activation",
    "Conv",
    "Edge",
    "GraphCost",
    "Merge",
    "NeckGraph",
    "Node",
    "NodeCost",
    "Norm",
    "Op",
    "Resample",
    "as_svg",
    "as_text",
    "cost",
    "input_name",
]
