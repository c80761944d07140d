"""Counts of the small patterns in a graph: what a model of accuracy compares necks by.

Weisfeiler and Leman's relabelling, used as a feature map (Shervashidze et al. 2011, "Weisfeiler-Lehman Graph Kernels",
section 3; for architectures Ru et al. 2021, "Interpretable Neural Architecture Search via Bayesian Optimisation with
Weisfeiler-Lehman Kernels"): in each round a vertex's label becomes its own together with those around it, and every
label that ever stood somewhere is a token. Two spellings of one network have the same tokens; two networks that
differ within `rounds` steps of some vertex have not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from fpn_bench.graph.canonical import _reduce
from fpn_bench.graph.neck_graph import NeckGraph

_WIDTH = re.compile(r'"channels":\d+,?')


def graph_tokens(graph: NeckGraph, *, rounds: int = 1) -> dict[str, int]:
    """Token, ``"round:label"`` -> count, of the network that all spellings of a graph share (as in `NeckGraph.id`).

    Channels of operations are left out: necks of one structure and several widths share their tokens, and their costs
    tell them apart.
    """
    reduced = _reduce(graph)
    edges = [
        (source, name, f"{position} {_WIDTH.sub('', text)}")
        for name, incoming in reduced.edges.items()
        for source, position, text in incoming
    ]
    return count_tokens(reduced.labels, edges, rounds=rounds)


def count_tokens(
    labels: Mapping[str, str], edges: Iterable[tuple[str, str, str]], *, rounds: int = 1
) -> dict[str, int]:
    """Token, ``"round:label"`` -> count, of any directed graph.

    Args:
        labels: vertex -> what it is; vertices of one label are not told apart.
        edges: (source, target, what it is); several between two vertices are.
        rounds: how far a token sees; 0 counts the labels of vertices and edges alone.
    """
    edges = list(edges)
    colours = {vertex: _short(label) for vertex, label in labels.items()}
    counts = Counter(f"0:{_short('edge', text)}" for _, _, text in edges)
    counts.update(f"0:{colour}" for colour in colours.values())
    for number in range(1, rounds + 1):
        around: dict[str, list[str]] = {vertex: [] for vertex in labels}
        for source, target, text in edges:
            around[target].append(f"< {text} {colours[source]}")
            around[source].append(f"> {text} {colours[target]}")
        colours = {vertex: _short(colour, *sorted(around[vertex])) for vertex, colour in colours.items()}
        counts.update(f"{number}:{colour}" for colour in colours.values())
    return dict(counts)


def _short(*parts: str) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()
