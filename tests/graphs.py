"""Random graphs and re-spellings of them, for property-based tests."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from fpn_bench.graph import Activation, Conv, Edge, Merge, NeckGraph, Node, Norm, Resample, input_name
from fpn_bench.pyramid import FeatureSpec

MERGES = ("sum", "mean", "max", "fast_normalised", "softmax", "concat")


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
        merge = Merge(rng.choice(MERGES))
        ops = [Conv(width, 1)] if merge.kind == "concat" else []
        if rng.random() < 0.7:
            ops += _block(rng, width)
        nodes.append(Node(f"n{i}", level, tuple(edges), merge, tuple(ops)))
    last = {}
    for node in nodes:
        last[node.level] = node.name
    levels = sorted(last)
    outputs = [last[level] for level in levels if rng.random() < 0.7] or [last[levels[-1]]]
    return NeckGraph(inputs, tuple(nodes), tuple(outputs))


def _block(rng: random.Random, width: int) -> list:
    kernel = rng.choice([1, 3, 5])
    dilation = rng.choice([1, 1, 2]) if kernel > 1 else 1
    conv = Conv(width, kernel, separable=rng.random() < 0.3, dilation=dilation, bias=rng.random() < 0.5)
    if not conv.separable and rng.random() < 0.3:
        conv = Conv(width, 3, groups=rng.choice([2, width]))
    block = [conv]
    if rng.random() < 0.5:
        block.append(Norm(rng.choice(["batch", "group"])))
    if rng.random() < 0.5:
        block.insert(
            rng.randint(0, len(block)), Activation(rng.choice(["relu", "silu", "gelu", "relu6", "leaky_relu"]))
        )
    return block


def _bridge(rng: random.Random, source: int, target: int, width: int) -> tuple:
    ops: list = [Conv(width, 1)] if rng.random() < 0.3 else []
    if source > target:
        ops.insert(rng.randint(0, len(ops)), Resample(rng.choice(["nearest", "bilinear"])))
    elif source < target:
        way = rng.choice(["pool", "conv", "both"]) if target - source > 1 else rng.choice(["pool", "conv"])
        kind = rng.choice(["max_pool", "avg_pool", "subsample"])
        kernel = rng.choice(["stride", "stride+1"]) if kind != "subsample" else "stride"
        if way == "conv":
            ops.append(Conv(width, rng.choice([3, 2 ** (target - source)]), stride=2 ** (target - source)))
        elif way == "pool":
            ops.insert(rng.randint(0, len(ops)), Resample(kind, kernel))
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
        if len(edges) == 1 and node.merge.is_identity_of_one and rng.random() < 0.5:
            edges, ops = [Edge(edges[0].source, edges[0].ops + node.ops)], ()
        name = names[node.name]
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
