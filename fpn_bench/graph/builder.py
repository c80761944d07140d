"""Writing a graph down, node by node: what the zoo is written with, and a new idea in twenty lines.

b = GraphBuilder(features)
top = b.add("lateral5", 5, "C5", ops=[Conv(256, 1)])
mid = b.add("lateral4", 4, "C4", ops=[Conv(256, 1)])
mid = b.add("merged4", 4, mid, Edge(top, (Resample("nearest"),)))
graph = b.graph([b.add("P4", 4, mid, ops=[Conv(256)]), b.add("P5", 5, top, ops=[Conv(256)])])
"""

from __future__ import annotations

from collections.abc import Iterable

from fpn_bench.graph.neck_graph import NeckGraph
from fpn_bench.graph.node import SUM, Edge, Node, input_name
from fpn_bench.graph.spec import MergeOp, Op
from fpn_bench.graph.validate import check_count, check_inputs, check_name, check_node, check_sources
from fpn_bench.pyramid import FeatureSpec


class GraphBuilder:
    """A graph being written. Every node is checked as it is added, and its name is handed back to be read by others.

    Args:
        features: the backbone's features, finest first; ``C{level}`` is the name of each.

    Raises:
        InputError: no features, a level twice, or not finest first.
    """

    def __init__(self, features: Iterable[FeatureSpec]) -> None:
        self.features = check_inputs(features)
        self._nodes: list[Node] = []
        self._levels = {input_name(s.level): s.level for s in self.features}
        self._inputs = frozenset(self._levels)
        self._channels = {input_name(s.level): s.channels for s in self.features}

    def add(
        self,
        name: str,
        level: int,
        *inputs: str | Edge,
        merge: MergeOp = SUM,
        ops: Iterable[Op] = (),
        shared: str = "",
    ) -> str:
        """Add one node.

        Args:
            name: unique in the graph.
            level: pyramid level of its map.
            *inputs: names of nodes or inputs, or edges with operations.
            merge: how the inputs become one map.
            ops: what follows the merge.
            shared: nodes with the same word share their weights.

        Returns:
            The name.

        Raises:
            GraphError: names the node, what was expected and what it got.
        """
        check_count(len(self._nodes) + 1)
        check_name(name, self._inputs, self._levels)
        edges = tuple(edge if isinstance(edge, Edge) else Edge(edge) for edge in inputs)
        node = Node(name, level, edges, merge, tuple(ops), shared)
        check_sources(node, self._levels)
        self._channels[name] = check_node(node, self._levels, self._channels)
        self._levels[name] = level
        self._nodes.append(node)
        return name

    def then(self, name: str, source: str, *ops: Op, shared: str = "") -> str:
        """Add one node that has one input, at that input's level."""
        return self.add(name, self.level(source), source, ops=ops, shared=shared)

    def level(self, name: str) -> int:
        """Pyramid level of an input or node."""
        return self._levels[name]

    def channels(self, name: str) -> int:
        """Channels of an input or node."""
        return self._channels[name]

    def graph(self, outputs: Iterable[str]) -> NeckGraph:
        """The graph, with the nodes named as its outputs, one a level.

        Raises:
            GraphError: an output that is no node, or two of one level.
        """
        names = tuple(outputs)  # first, because what names them may still add nodes
        return NeckGraph(self.features, tuple(self._nodes), names)
