"""Tokens: one set for all spellings of a network, another for another network."""

from __future__ import annotations

from collections import Counter

import pytest
from graphs import random_graph, respelled
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn_bench.graph import Conv, Edge, NeckGraph, Node, count_tokens, graph_tokens
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph

FEATURES = (FeatureSpec(3, 40, 8), FeatureSpec(4, 112, 16), FeatureSpec(5, 320, 32))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_spellings_of_a_network_have_the_same_tokens(seed):
    graph = random_graph(seed)
    other = respelled(graph, seed)
    assert graph_tokens(other, rounds=2) == graph_tokens(graph, rounds=2)


def test_networks_of_other_structure_have_other_tokens():
    merges = [create_graph("fpn", FEATURES, (3, 4, 5), 64, merge=m) for m in ("sum", "max", "concat")]
    levels = [create_graph(f, FEATURES, out, 64) for f in ("fpn", "pafpn") for out in ((3, 4, 5), (3, 4, 5, 6))]
    found = [graph_tokens(graph) for graph in merges + levels[1:]]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_widths_have_the_same_tokens():
    narrow, wide = (create_graph("fpn", FEATURES, (3, 4, 5), width) for width in (32, 64))
    assert narrow.id != wide.id
    assert graph_tokens(narrow) == graph_tokens(wide)


def test_rounds_see_further():
    """A chain of a-b-a-a and one of a-a-b-a: the same labels and edges; only a vertex's surroundings differ."""
    edges = [("1", "2", "e"), ("2", "3", "e"), ("3", "4", "e")]
    one = {"1": "a", "2": "b", "3": "a", "4": "a"}
    other = {"1": "a", "2": "a", "3": "b", "4": "a"}
    assert count_tokens(one, edges, rounds=0) == count_tokens(other, edges, rounds=0)
    assert count_tokens(one, edges, rounds=1) != count_tokens(other, edges, rounds=1)


def test_counts_by_hand():
    """Two equal inputs into one sum: round 0 has two labels and one kind of edge, round 1 tells the sum from them."""
    counts = count_tokens({"x": "in", "y": "in", "s": "sum"}, [("x", "s", "conv"), ("y", "s", "conv")], rounds=1)
    by_round = {r: sorted(c for t, c in counts.items() if t.startswith(f"{r}:")) for r in (0, 1)}
    assert by_round == {0: [1, 2, 2], 1: [1, 2]}


def test_direction_and_multiplicity_count():
    vertices = {"x": "v", "y": "w"}
    forth, back = [("x", "y", "e")], [("y", "x", "e")]
    assert count_tokens(vertices, forth) != count_tokens(vertices, back)
    assert count_tokens(vertices, forth) != count_tokens(vertices, forth * 2)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_an_edgeless_graph_counts_its_vertices(rounds):
    counts = count_tokens({"x": "v", "y": "v"}, [], rounds=rounds)
    assert Counter(t.partition(":")[0] for t in counts) == dict.fromkeys(map(str, range(rounds + 1)), 1)
    assert set(counts.values()) == {2}


def test_dead_nodes_are_not_seen():
    live = Node("p3", 3, (Edge("C3"),), ops=(Conv(8, 1),))
    dead = Node("dead", 3, (Edge("C3"),), ops=(Conv(8, 3),))
    inputs = (FeatureSpec(3, 8, 8),)
    assert graph_tokens(NeckGraph(inputs, (live, dead), ("p3",))) == graph_tokens(NeckGraph(inputs, (live,), ("p3",)))
