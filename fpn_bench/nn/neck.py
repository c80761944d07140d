"""From the neck as data to a torch module: `build_neck`.

Everything that can be decided from the graph is decided here, once: the order of the steps, which slots they read and
write, when a map is no longer needed. `Neck.forward` is one flat loop over the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from fpn_bench import nn as layers
from fpn_bench.errors import GraphError, InputError
from fpn_bench.graph import Edge, NeckGraph, Node, input_name, ops
from fpn_bench.graph.cost import used_levels
from fpn_bench.graph.graph import edge_stops
from fpn_bench.graph.ops import trace
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
        nodes = [node for node in graph.nodes if node.name in graph.alive]
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
        for node in nodes:
            steps[node.name] = step = _build_step(graph, node, twins.get(node.shared))
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
        InputError: the features are not those the graph was made for.
    """
    if features is not None and tuple(features) != graph.inputs:
        got = ", ".join(f"P{s.level}: {s.channels}ch stride {s.stride}" for s in features)
        wanted = ", ".join(f"P{s.level}: {s.channels}ch stride {s.stride}" for s in graph.inputs)
        raise InputError(
            f"expected the features that the graph was made for ({wanted}), got ({got}); create a graph for those"
        )
    return Neck(graph)


def _build_step(graph: NeckGraph, node: Node, twin: _Step | None) -> _Step:
    """The modules of one node; with a twin, those of the twin, whose weights it shares."""
    paths, widths = [], []
    for i, edge in enumerate(node.inputs):
        path, width = _build_path(graph, node, edge, None if twin is None else twin.modules_of(i))
        paths.append(path)
        widths.append(width)
    if twin is not None:
        return _Step(paths, twin.merge, twin.after)
    is_merge = len(paths) > 1 or not node.merge.is_identity_of_one
    merge = _build_merge(node.merge, widths) if is_merge else None
    after = [_build_op(stop) for stop in trace(node.ops, node.level, node.merge.channels(widths))]
    return _Step(paths, merge, nn.Sequential(*after) if after else None)


def _build_path(graph: NeckGraph, node: Node, edge: Edge, shared: Iterable[nn.Module] | None) -> tuple[_Path, int]:
    level, width = graph.level_of(edge.source), graph.channels_of(edge.source)
    modules: list[nn.Module] = []
    levels: list[int | None] = []
    for stop in edge_stops(edge, level, width, node.level):
        if shared is None:
            modules.append(_build_op(stop))
        levels.append(stop.level_after if stop.level_after != stop.level or isinstance(stop.op, ops.Restore) else None)
        width = stop.channels_after
    return _Path(modules if shared is None else tuple(shared), levels), width


def _build_op(stop: ops.Stop) -> nn.Module:
    op, width, levels = stop.op, stop.channels, stop.level_after - stop.level
    match op:
        case ops.Conv():
            conv = layers.make_conv(
                width,
                op.channels,
                op.kernel,
                stride=op.stride,
                padding=op.padding,
                groups=op.groups,
                dilation=op.dilation,
                bias=op.bias,
                separable=op.separable,
                gain=op.gain,
            )
            return layers.StridedConv(conv, tile=op.stride if op.tiles else 1) if levels else conv
        case ops.TransposedConv():
            return layers.StridedConv(
                layers.make_transposed_conv(
                    width,
                    op.channels,
                    op.kernel,
                    op.stride,
                    padding=op.padding,
                    output_padding=op.output_padding,
                    groups=op.groups,
                    bias=op.bias,
                )
            )
        case ops.Norm():
            return layers.make_norm(op.kind, width, eps=op.eps, momentum=op.momentum, groups=op.groups)
        case ops.Activation():
            return layers.make_activation(op.kind, op.slope)
        case ops.AdaptivePool():
            return layers.AdaptivePool(op.kind, op.bins)
        case ops.Restore():
            return layers.Upsample(op.kind)
        case ops.PositionalEncoding():
            return layers.PositionalEncoding(width, op.temperature)
        case ops.Resample(kind="pixel_shuffle"):
            return layers.PixelShuffle(2**-levels)
        case ops.Resample(kind="adaptive_max_pool" | "adaptive_avg_pool"):
            return layers.AdaptivePool(op.kind.split("_")[1])
        case ops.Resample():
            if op.direction < 0:
                return layers.Upsample(op.kind)
            stride = 2**levels
            return layers.Downsample(op.kind, stride, {"stride": stride, "stride+1": stride + 1, "3": 3}[op.kernel])


def _build_merge(merge: ops.AnyMerge, widths: Sequence[int]) -> nn.Module:
    match merge:
        case ops.Merge(kind="weighted" | "fast_normalised" | "softmax"):
            channels = widths[0] if merge.per_channel else 0
            return layers.WeightedSum(len(widths), kind=merge.kind, eps=merge.eps, channels=channels)
        case ops.Merge():
            plain: dict[str, type[nn.Module]] = {
                "sum": layers.Sum,
                "mean": layers.Mean,
                "max": layers.Max,
                "product": layers.Product,
                "concat": layers.Concat,
            }
            return plain[merge.kind]()
        case ops.SpatialSoftmax():
            return layers.SpatialSoftmax()
        case ops.Attention():
            return layers.Attention(merge.heads, merge.scaled)
        case ops.Reassemble():
            return layers.Reassemble(merge.kernel, merge.dilation)
        case ops.DeformableConv():
            return layers.DeformableConv(
                widths[0], merge.channels_out, merge.kernel, bias=merge.bias, modulated=merge.modulated
            )


def _last_readers(sources: Sequence[Sequence[int]], keep: set[int]) -> tuple[tuple[int, ...], ...]:
    """Per step, the slots that no later step reads: their maps can be freed."""
    last = {slot: step for step, slots in enumerate(sources) for slot in slots}
    return tuple(
        tuple(slot for slot, at in last.items() if at == step and slot not in keep) for step in range(len(sources))
    )
