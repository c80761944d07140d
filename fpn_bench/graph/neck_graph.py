"""The neck as data: `NeckGraph`, a frozen, checked directed acyclic graph with a canonical id.

    inputs   C3, C4, C5 ...        the backbone's maps, named by their level
    nodes    name, level, edges (source, ops) -> merge -> ops
    outputs  names of nodes (or inputs), one a level

Laterals, extra levels, output convs are all nodes; nothing else exists. Torch modules are a consequence
(`fpn_bench.nn.neck`), and so are costs (`fpn_bench.graph.cost`) and drawings (`fpn_bench.graph.draw`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fpn_bench.errors import FormatVersionError, GraphError
from fpn_bench.graph.node import Node, input_name
from fpn_bench.graph.serialise import check_keys, checked_list, load, node_from_dict, node_to_dict
from fpn_bench.graph.validate import check_count, check_inputs, check_node, check_outputs, check_shared, topological
from fpn_bench.graph.walk import NodeShapes, sizing_level, walk
from fpn_bench.json_text import parse_json
from fpn_bench.pyramid import FeatureSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class NeckGraph:
    """A neck as data. Construction checks everything; an instance can be built, costed, drawn and hashed.

    Args:
        inputs: the backbone's features, finest first. ``C{level}`` is the name of each.
        nodes: in any order; kept in a topological one.
        outputs: names of what the neck returns, one a level; kept finest first.

    Raises:
        GraphError: names the node, what was expected and what it got.
    """

    inputs: tuple[FeatureSpec, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    _channels: Mapping[str, int] = field(init=False, repr=False, compare=False)
    _levels: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inputs = check_inputs(self.inputs)
        check_count(len(self.nodes))
        levels = {input_name(spec.level): spec.level for spec in inputs}
        channels = {input_name(spec.level): spec.channels for spec in inputs}
        nodes = topological(self.nodes, levels)
        for node in nodes:
            levels[node.name] = node.level
            channels[node.name] = check_node(node, levels, channels)
        check_shared(nodes, levels, channels)
        outputs = check_outputs(self.outputs, levels)
        for name, value in {
            "inputs": inputs,
            "nodes": nodes,
            "outputs": outputs,
            "_channels": channels,
            "_levels": levels,
        }.items():
            object.__setattr__(self, name, value)

    def channels_of(self, name: str) -> int:
        """Channels of an input's or node's map."""
        return self._channels[name]

    def level_of(self, name: str) -> int:
        """Pyramid level of an input's or node's map."""
        return self._levels[name]

    @cached_property
    def out_features(self) -> tuple[FeatureSpec, ...]:
        """What the neck returns, finest first."""
        return tuple(
            FeatureSpec(self._levels[name], self._channels[name], self._stride(self._levels[name]))
            for name in self.outputs
        )

    def _stride(self, level: int) -> int:
        """Input pixels a pixel: an input's own, or that of the input whose map gives this level its size, scaled."""
        strides = {spec.level: spec.stride for spec in self.inputs}
        sizing = sizing_level(strides, level)
        return max(1, round(strides[sizing] * 2.0 ** (level - sizing)))

    @cached_property
    def reachable(self) -> frozenset[str]:
        """Names of the inputs and nodes that some output depends on."""
        by_name = {node.name: node for node in self.nodes}
        reachable: set[str] = set()
        stack = list(self.outputs)
        while stack:
            name = stack.pop()
            if name not in reachable:
                reachable.add(name)
                if name in by_name:
                    stack.extend(edge.source for edge in by_name[name].inputs)
        return frozenset(reachable)

    @property
    def alive(self) -> frozenset[str]:
        """Deprecated name of `reachable`."""
        warnings.warn("`NeckGraph.alive` is now called `reachable`", DeprecationWarning, stacklevel=2)
        return self.reachable

    @cached_property
    def walked(self) -> tuple[NodeShapes, ...]:
        """The nodes that some output depends on, sources first, each with the maps along its edges."""
        return tuple(walk(self))

    @cached_property
    def id(self) -> str:
        """16 hex digits, equal for two spellings of one network (see `fpn_bench.graph.canonical`)."""
        from fpn_bench.graph.canonical import canonical_form

        return hashlib.sha256(canonical_form(self).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fields at their default are left out. `from_dict` is its inverse."""
        return {
            "schema_version": SCHEMA_VERSION,
            "inputs": [dataclasses.asdict(spec) for spec in self.inputs],
            "nodes": [node_to_dict(node) for node in self.nodes],
            "outputs": list(self.outputs),
        }

    def to_json(self) -> str:
        """One line of JSON, the same for equal graphs."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NeckGraph:
        """The graph that `to_dict` wrote.

        Raises:
            GraphError: an unknown or missing key or a value of the wrong type, with the node it stands at.
            FormatVersionError: written by a newer fpn_bench.
        """
        check_keys(data, None, "graph", {"schema_version", "inputs", "nodes", "outputs"}, set())
        version = data["schema_version"]
        if type(version) is not int or version < 1:
            raise GraphError(None, f"expected schema_version {SCHEMA_VERSION} in the graph, got {version!r}")
        if version > SCHEMA_VERSION:
            raise FormatVersionError(
                f"graph has schema_version {version}, this fpn_bench reads up to {SCHEMA_VERSION}: upgrade fpn-bench"
            )
        inputs = tuple(load(FeatureSpec, item, None, "input") for item in checked_list(data["inputs"], None, "inputs"))
        nodes = tuple(node_from_dict(item) for item in checked_list(data["nodes"], None, "nodes"))
        outputs = checked_list(data["outputs"], None, "outputs")
        for name in outputs:
            if not isinstance(name, str):
                raise GraphError(None, f"expected the name of a node as an output, got {name!r}")
        return cls(inputs, nodes, tuple(outputs))

    @classmethod
    def from_json(cls, text: str) -> NeckGraph:
        """The graph that `to_json` wrote.

        Raises:
            GraphError: not JSON, or as `from_dict`.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise GraphError(None, f"not a JSON graph: {error}") from None
        return cls.from_dict(data)
