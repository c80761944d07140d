"""From the neck as data to a torch module: `build_neck`.

Everything that can be decided from the graph is decided here, once: the order of the steps, which slots they read and
write, when a map is no longer needed. `Neck.forward` is one flat loop over the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from fpn_bench.errors import GraphError, InputError
from fpn_bench.graph import NeckGraph, input_name
from fpn_bench.graph.walk import NodeShapes, used_levels
from fpn_bench.nn.registry import build_merge, build_op
from fpn_bench.pyramid import FeatureSpec, level_sizes

Sizes = dict[int, tuple[int, int]]


class _Path(nn.Module):
    """The operations of one edge; those that change the level are given the size to reach."""

    def __init__(self, modules: Iterable[nn.Module], levels: Sequence[int | None]) -> None:
        super().__init__()
        self.ops = nn.ModuleList(modules)
        self.levels = tuple(levels)

    def forward(self, x: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        for op, level in zip(self.ops, self.levels, strict=True):
            x = op(x) if level is None else op(x, sizes[level])
        return x


class _Step(nn.Module):
    """One node: paths from its sources, their merge, what follows."""

    def __init__(self, paths: Sequence[_Path], merge: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        self.paths = nn.ModuleList(paths)
        self.merge = merge
        self.after = after

    def modules_of(self, index: int) -> Iterable[nn.Module]:
        """The operations on one of the paths."""
        path = self.paths[index]
        assert isinstance(path, _Path)
        return path.ops

    def forward(self, maps: Sequence[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        merged = [path(x, sizes) if path.levels else x for path, x in zip(self.paths, maps, strict=True)]
        x: torch.Tensor = merged[0] if self.merge is None else self.merge(merged)
        return x if self.after is None else self.after(x)


class Neck(nn.Module):
    """A neck built from a graph.

    Attributes:
        graph: what it was built from.
        out_features: what it returns, finest first.

    State-dict keys are ``steps.{node}.paths.{input}.ops.{i}...``, ``steps.{node}.merge...`` and
    ``steps.{node}.after.{i}...``; nodes that share weights each have a key for them.
    """

    def __init__(self, graph: NeckGraph) -> None:
        super().__init__()
        self.graph = graph
        self.out_features = graph.out_features
        nodes = [shapes.node for shapes in graph.walked]
        slot = {input_name(spec.level): i for i, spec in enumerate(graph.inputs)}
        slot |= {node.name: len(graph.inputs) + i for i, node in enumerate(nodes)}
        self._in_levels = tuple(spec.level for spec in graph.inputs)
        self._levels = tuple(sorted(used_levels(graph)))
        self._outputs = tuple(slot[name] for name in graph.outputs)
        taken = next((node.name for node in nodes if hasattr(nn.ModuleDict(), node.name)), None)
        if taken is not None:
            raise GraphError(taken, "this name is an attribute of torch's modules; choose another")
        steps: dict[str, _Step] = {}
        twins: dict[str, _Step] = {}
        for node, shapes in zip(nodes, graph.walked, strict=True):
            steps[node.name] = step = _build_step(shapes, twins.get(node.shared))
            if node.shared:
                twins.setdefault(node.shared, step)
        self.steps = nn.ModuleDict(steps)
        self._sources = tuple(tuple(slot[edge.source] for edge in node.inputs) for node in nodes)
        self._drops = _last_readers(self._sources, keep=set(self._outputs))

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Fuse the backbone's maps.

        Args:
            features: one [N, C_k, H_k, W_k] a level of ``graph.inputs``, finest first. Any size; the levels need not
                halve exactly.

        Returns:
            One [N, C, H_k, W_k] a level of ``out_features``, finest first.
        """
        maps: list[torch.Tensor | None] = list(features)
        if len(maps) != len(self._in_levels):
            wanted = ", ".join(f"C{level}" for level in self._in_levels)
            raise InputError(f"expected {len(self._in_levels)} feature maps, {wanted}, got {len(maps)}")
        sizes = level_sizes(
            {level: (x.shape[-2], x.shape[-1]) for level, x in zip(self._in_levels, features, strict=True)},
            self._levels,
        )
        for step, sources, drops in zip(self.steps.values(), self._sources, self._drops, strict=True):
            maps.append(step([maps[i] for i in sources], sizes))
            for i in drops:
                maps[i] = None
        return tuple(x for i in self._outputs if (x := maps[i]) is not None)


def build_neck(graph: NeckGraph, features: Sequence[FeatureSpec] | None = None) -> Neck:
    """The torch module of a graph, randomly initialised.

    Args:
        graph: the neck as data.
        features: what the backbone gives; when given, they must be the graph's inputs.

    Raises:
        GraphError: a node has a name that torch's modules use themselves, such as "values".
        InputError: the features are not those the graph was made for; an operation has no layer (`registry.builds`).
    """
    if features is not None and tuple(features) != graph.inputs:
        got = ", ".join(f"P{s.level}: {s.channels}ch stride {s.stride}" for s in features)
        wanted = ", ".join(f"P{s.level}: {s.channels}ch stride {s.stride}" for s in graph.inputs)
        raise InputError(
            f"expected the features that the graph was made for ({wanted}), got ({got}); create a graph for those"
        )
    return Neck(graph)


def _build_step(shapes: NodeShapes, twin: _Step | None) -> _Step:
    """The modules of one node; with a twin, those of the twin, whose weights it shares."""
    paths = []
    for i, path in enumerate(shapes.edges):
        modules = map(build_op, path) if twin is None else twin.modules_of(i)
        paths.append(_Path(modules, [shape.level_after if shape.reaches_size else None for shape in path]))
    if twin is not None:
        return _Step(paths, twin.merge, twin.after)
    merge = build_merge(shapes.node.merge, shapes.widths) if shapes.merges else None
    return _Step(paths, merge, nn.Sequential(*map(build_op, shapes.after)) if shapes.after else None)


def _last_readers(sources: Sequence[Sequence[int]], keep: set[int]) -> tuple[tuple[int, ...], ...]:
    """Per step, the slots that no later step reads: their maps can be freed."""
    last = {slot: step for step, slots in enumerate(sources) for slot in slots}
    return tuple(
        tuple(slot for slot, at in last.items() if at == step and slot not in keep) for step in range(len(sources))
    )
