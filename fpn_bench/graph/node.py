"""Nodes and edges, the parts of a neck graph."""

from __future__ import annotations

from dataclasses import dataclass

from fpn_bench.graph.merge_ops import Merge
from fpn_bench.graph.spec import MergeOp, Op

SUM = Merge("sum")


@dataclass(frozen=True, slots=True)
class Edge:
    """One input of a node: the map of `source` after `ops`, in order."""

    source: str
    ops: tuple[Op, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One map of the neck.

    Attributes:
        name: unique in the graph; never a position.
        level: pyramid level of the map.
        inputs: what is merged, in order; at least one.
        merge: how.
        ops: what follows the merge, in order.
        shared: nodes with the same word here have the same weights; "" has its own. They must have the same
            operations and channels, at whatever level, and inputs whose order means something: one, or a merge that
            does not commute.
    """

    name: str
    level: int
    inputs: tuple[Edge, ...]
    merge: MergeOp = SUM
    ops: tuple[Op, ...] = ()
    shared: str = ""


def input_name(level: int) -> str:
    """The name of the backbone's map at `level`."""
    return f"C{level}"
