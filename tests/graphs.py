"""Random graphs and re-spellings of them, for property-based tests."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import strategies as st

from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Attention,
    Conv,
    DeformableConv,
    Edge,
    Merge,
    MergeOp,
    NeckGraph,
    Node,
    Norm,
    PositionalEncoding,
    Reassemble,
    Resample,
    ResizeToLevel,
    SpatialSoftmax,
    TransposedConv,
    input_name,
)
from fpn_bench.pyramid import FeatureSpec

MERGES = ("sum", "mean", "max", "product", "weighted", "fast_normalised", "softmax", "concat")
ACTIVATIONS = ("relu", "relu6", "silu", "leaky_relu", "gelu", "hard_swish", "sigmoid")


def random_graph(seed: int, max_nodes: int = 9) -> NeckGraph:
    """A valid graph over P2..P7, using every word of the vocabulary."""
    rng = random.Random(seed)
    width = rng.choice([4, 8, 12])
    first = rng.choice([2, 3])
    inputs = tuple(
        FeatureSpec(k, rng.choice([4, 6, 8]) * (k - 1), 2**k) for k in range(first, first + rng.choice([1, 2, 3]))
    )
    nodes = [
        Node(f"lateral{s.level}", s.level, (Edge(input_name(s.level)),), ops=(Conv(width, rng.choice([1, 3])),))
        for s in inputs
    ]
    for i in range(rng.randint(1, max_nodes)):
        level = rng.randint(first, min(7, first + 4))
        sources = rng.sample(nodes, k=min(len(nodes), rng.randint(1, 3)))
        edges = [Edge(source.name, _bridge(rng, source.level, level, width)) for source in sources]
        merge = _merge(rng, edges, width)
        ops = [Conv(width, 1)] if merge == Merge("concat") else []
        if rng.random() < 0.7:
            ops += _block(rng, width)
        twins = [n for n in nodes if len(n.inputs) == 1 and n.level == level and not n.name.startswith("lateral")]
        if twins and rng.random() < 0.3:  # shares its weights with an earlier node
            j = nodes.index(rng.choice(twins))
            nodes[j] = dataclasses.replace(nodes[j], shared=nodes[j].shared or f"w{j}")
            source = next(n for n in nodes if n.name == nodes[j].inputs[0].source)
            same = [n for n in nodes if n.level == source.level]
            edges = [Edge(rng.choice(same).name, nodes[j].inputs[0].ops)]
            nodes.append(dataclasses.replace(nodes[j], name=f"n{i}", inputs=tuple(edges)))
            continue
        nodes.append(Node(f"n{i}", level, tuple(edges), merge, tuple(ops)))
    last = {}
    for node in nodes:
        last[node.level] = node.name
    levels = sorted(last)
    outputs = [last[level] for level in levels if rng.random() < 0.7] or [last[levels[-1]]]
    return NeckGraph(inputs, tuple(nodes), tuple(outputs))


def _merge(rng: random.Random, edges: list[Edge], width: int) -> MergeOp:
    """A merge of these edges; one that needs a map to steer it gets an edge for that."""
    steered = rng.choice([None, None, None, "softmax", "attention", "reassemble", "deform"])
    last = edges[-1]
    if steered == "softmax":
        edges.append(Edge(last.source, (*last.ops, Conv(len(edges), 1))))
        return SpatialSoftmax()
    if steered == "attention" and len(edges) == 3:
        return Attention(rng.choice([1, 2]), scaled=rng.random() < 0.5)
    if steered == "reassemble" and len(edges) == 2:
        edges[1] = Edge(last.source, (*last.ops, Conv(9, 3)))
        return Reassemble(3, rng.choice([1, 2]))
    if steered == "deform" and len(edges) == 2:
        merge = DeformableConv(width, rng.choice([1, 3]), rng.random() < 0.5, rng.random() < 0.5)
        edges[1] = Edge(last.source, (*last.ops, Conv(rng.choice([1, 2]) * merge.offset_channels, 3, gain=0.1)))
        return merge
    kind = rng.choice(MERGES)
    return Merge(kind, per_channel=rng.random() < 0.5 and Merge(kind).learns)


def _block(rng: random.Random, width: int) -> list:
    kernel = rng.choice([1, 3, 5])
    dilation = rng.choice([1, 1, 2]) if kernel > 1 else 1
    conv = Conv(width, kernel, separable=rng.random() < 0.3, dilation=dilation, bias=rng.random() < 0.5)
    if not conv.separable and rng.random() < 0.3:
        conv = Conv(width, 3, groups=rng.choice([2, width]))
    block = [conv]
    if rng.random() < 0.5:
        block.append(Norm(rng.choice(["batch", "group", "layer"])))
    if rng.random() < 0.5:
        block.insert(rng.randint(0, len(block)), Activation(rng.choice(ACTIVATIONS)))
    if rng.random() < 0.1:
        block.insert(0, PositionalEncoding())
    return block


def _bridge(rng: random.Random, source: int, target: int, width: int) -> tuple:
    ops: list = [Conv(width, 1)] if rng.random() < 0.3 else []
    if rng.random() < 0.1:
        ops += [AdaptivePool(rng.choice([1, 3]), rng.choice(["avg", "max"])), Conv(width, 1), ResizeToLevel()]
    if source > target:
        way = rng.choice(["nearest", "bilinear", "pixel_shuffle", "conv"])
        if way == "conv":
            stride = 2 ** (source - target)
            ops.append(TransposedConv(width, rng.choice([stride, 2 * stride, stride + 1]), stride))
        elif way == "pixel_shuffle":
            ops += [Conv(width * 4 ** (source - target), 1), Resample("pixel_shuffle")]
        else:
            ops.insert(rng.choice([0, len(ops)]), Resample(way))
    elif source < target:
        way = rng.choice(["pool", "conv", "both"]) if target - source > 1 else rng.choice(["pool", "conv"])
        kind = rng.choice(["max_pool", "avg_pool", "subsample", "adaptive_max_pool", "adaptive_avg_pool"])
        kernel = rng.choice(["stride", "stride+1"]) if kind in ("max_pool", "avg_pool") else "stride"
        if way == "conv":
            ops.append(Conv(width, rng.choice([3, 2 ** (target - source)]), stride=2 ** (target - source)))
        elif way == "pool":
            ops.insert(rng.choice([0, len(ops)]), Resample(kind, kernel))
        else:
            ops += [Resample(kind, kernel), Conv(width, 3, stride=2)]
    return tuple(ops)


def respelled(graph: NeckGraph, seed: int) -> NeckGraph:
    """The same network spelled otherwise: new names, other order, dead nodes, commuting inputs shuffled, detours."""
    rng = random.Random(seed)
    names = {node.name: f"x{rng.randrange(10**9)}_{i}" for i, node in enumerate(graph.nodes)}
    nodes = []
    for node in graph.nodes:
        edges = [Edge(names.get(e.source, e.source), e.ops) for e in node.inputs]
        if node.merge.commutes:
            rng.shuffle(edges)
        ops = node.ops
        name = names[node.name]
        if node.shared:
            nodes.append(Node(name, node.level, tuple(edges), node.merge, ops, f"other {node.shared}"))
            continue
        if len(edges) == 1 and node.merge.is_identity_of_one and rng.random() < 0.5:
            edges, ops = [Edge(edges[0].source, edges[0].ops + node.ops)], ()
        if ops and rng.random() < 0.4:  # what follows the merge in a node of its own
            nodes.append(Node(f"merged_{node.name}", node.level, tuple(edges), node.merge))
            nodes.append(Node(name, node.level, (Edge(f"merged_{node.name}"),), ops=ops))
            continue
        if rng.random() < 0.3:
            i = rng.randrange(len(edges))
            detour = Node(
                f"detour_{node.name}",
                _level(graph, names, edges[i].source),
                (Edge(edges[i].source),),
                Merge(rng.choice(["sum", "max"])),
            )
            nodes.append(detour)
            edges[i] = Edge(detour.name, edges[i].ops)
        nodes.append(Node(names[node.name], node.level, tuple(edges), node.merge, ops))
    some = graph.nodes[-1]
    nodes.append(Node("dead", some.level, (Edge(names[some.name]),), ops=(Conv(3, 3),)))
    rng.shuffle(nodes)
    return NeckGraph(graph.inputs, tuple(nodes), tuple(names.get(n, n) for n in reversed(graph.outputs)))


def _level(graph: NeckGraph, names: dict[str, str], new: str) -> int:
    old = next((o for o, n in names.items() if n == new), new)
    return graph.level_of(old)


graphs = st.integers(0, 10**6).map(random_graph)
