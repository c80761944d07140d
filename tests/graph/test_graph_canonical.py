"""The canonical form against a plain reference, and how its work grows."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from graphs import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

import fpn_bench.graph.canonical as canonical
from fpn_bench.errors import GraphError, InputError
from fpn_bench.graph import Conv, Edge, GraphBuilder, Merge, NeckGraph, Node
from fpn_bench.graph.validate import MAX_NODES, MAX_NUMBER
from fpn_bench.pyramid import MAX_LEVEL, FeatureSpec
from fpn_bench.zoo import create_graph, list_necks, options

FEATURES = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 24), (4, 32), (5, 48)))


class Reference(canonical._Labelling):
    """Rounds that each look at every vertex, on colours as a list: quadratic on chains, and plain to see."""

    def best(self) -> str:
        ranks = {label: i for i, label in enumerate(sorted(set(self.labels)))}
        return self.least([ranks[label] for label in self.labels])

    def refined(self, colours: list[int]) -> list[int]:
        while True:
            keys = [
                (
                    colour,
                    sorted((kind, colours[other]) for kind, other in self.sources[v]),
                    sorted((kind, colours[other]) for kind, other in self.readers[v]),
                )
                for v, colour in enumerate(colours)
            ]
            distinct = []
            for key in sorted(keys):
                if not distinct or distinct[-1] != key:
                    distinct.append(key)
            if len(distinct) == len(set(colours)):
                return colours
            colours = [distinct.index(key) for key in keys]

    def least(self, colours: list[int]) -> str:
        """The least text over every member of the smallest tied class, all the way down: no short cut at all."""
        colours = self.refined(colours)
        classes = [[v for v, c in enumerate(colours) if c == colour] for colour in set(colours)]
        tied = [vs for vs in classes if len(vs) > 1]
        if not tied:
            names = [sorted(colours).index(colour) for colour in colours]
            partition = canonical._Partition(names)
            return self._certificate(partition)
        chosen = min(tied, key=lambda vs: (len(vs), colours[vs[0]]))
        return min(
            self.least([2 * c + (u != v) if c == colours[v] else 2 * c for u, c in enumerate(colours)]) for v in chosen
        )


def reference(graph: NeckGraph) -> str:
    return Reference(canonical._reduce(graph)).best()


def alike(seed: int) -> NeckGraph:
    """Layers of nodes of few kinds, so that many of them are hard to tell apart or not to be told apart at all."""
    rng = random.Random(seed)
    nodes: list[Node] = []
    layer = ["C3"]
    for depth in range(rng.randint(1, 4)):
        names = [f"n{depth}_{i}" for i in range(rng.randint(1, 3))]
        for name in names:
            sources = rng.sample(layer, min(len(layer), rng.randint(1, 2)))
            edges = tuple(Edge(source, (Conv(4, 3),)) for source in sources)
            nodes.append(Node(name, 3, edges, Merge(rng.choice(["sum", "sum", "max"]))))
        layer = names
    nodes.append(Node("out", 3, tuple(Edge(name) for name in layer)))
    rng.shuffle(nodes)
    return NeckGraph((FeatureSpec(3, 4, 8),), tuple(nodes), ("out",))


@settings(deadline=None)
@given(graphs)
def test_the_form_of_any_graph_is_the_references(graph):
    assert canonical.canonical_form(graph) == reference(graph)


@settings(deadline=None)
@given(st.integers(0, 10**6).map(alike))
def test_the_form_of_graphs_full_of_ties_is_the_references(graph):
    assert canonical.canonical_form(graph) == reference(graph)


@pytest.mark.parametrize("family", ["bifpn", "nas_fpn", "fpn", "fpg"])
def test_the_form_of_a_chain_is_the_references(family):
    graph = create_graph(family, FEATURES, (3, 4, 5, 6), 8, repeats=6)
    assert canonical.canonical_form(graph) == reference(graph)


@pytest.mark.parametrize("family", ["bifpn", "nas_fpn"])
def test_the_work_on_a_chain_grows_with_its_length_alone(family, monkeypatch):
    """Looks at a vertex, each: were all looked at in each round, there would be four times as many."""
    looks = 0
    around = canonical._Labelling._around

    def counting(self, v, partition):
        nonlocal looks
        looks += 1
        return around(self, v, partition)

    monkeypatch.setattr(canonical._Labelling, "_around", counting)
    found = []
    for repeats in (50, 200):
        looks = 0
        graph = create_graph(family, FEATURES, (3, 4, 5), 8, repeats=repeats)
        assert graph.id
        found.append(looks / len(graph.nodes))
    assert found[1] < 1.2 * found[0]


def test_a_private_path_of_any_length_is_joined_in_one_go():
    nodes = [Node(f"n{i}", 3, (Edge(f"n{i - 1}" if i else "C3"),), ops=(Conv(4, 3),)) for i in range(2000)]
    begun = time.perf_counter()
    graph = NeckGraph((FeatureSpec(3, 4, 8),), tuple(reversed(nodes)), ("n1999",))
    assert graph.id == NeckGraph(graph.inputs, tuple(nodes), graph.outputs).id
    assert time.perf_counter() - begun < 20  # a hang, not a speed


def test_many_pairs_that_mirror_each_other_are_no_deep_recursion():
    b = GraphBuilder([FeatureSpec(3, 4, 8)])
    source = "C3"
    for i in range(1200):
        pair = [b.add(f"{side}{i}", 3, source, Edge(source, (Conv(4, 3),)), merge=Merge("max")) for side in "ab"]
        source = b.add(f"sum{i}", 3, *pair)
    assert b.graph([source]).id


# -- bounds ------------------------------------------------------------------------------------------------------


def test_more_nodes_than_a_neck_may_have_are_refused_while_they_are_added():
    with pytest.raises(GraphError, match=rf"at most {MAX_NODES:,} nodes"):
        create_graph("bifpn", FEATURES, (3, 4, 5, 6, 7), 8, repeats=2000)
    node = Node("a", 3, (Edge("C3"),))
    with pytest.raises(GraphError, match=rf"at most {MAX_NODES:,} nodes"):
        NeckGraph(FEATURES, (node,) * (MAX_NODES + 1), ("a",))


@pytest.mark.parametrize("name", list_necks())
def test_a_number_that_nothing_needs_is_refused_at_once(name):
    """Every whole-number option of every family: refused in one line, or of no weight."""
    for option, default in options(name).items():
        if type(default) is int:
            begun = time.perf_counter()
            with contextlib.suppress(InputError):
                graph = create_graph(name, FEATURES, (3, 4, 5), 8, **{option: 100_000})
                assert len(graph.nodes) < 200
            assert time.perf_counter() - begun < 10, option


@pytest.mark.parametrize("channels", [MAX_NUMBER + 1, 400_000_000, 10**30])
@pytest.mark.parametrize("family", ["fpn", "bifpn", "unet"])
def test_channels_that_no_map_has_are_refused_in_one_line(family, channels):
    with pytest.raises(InputError, match=f"{channels:,}") as caught:
        create_graph(family, FEATURES, (3, 4, 5), channels)
    assert "\n" not in str(caught.value)


def test_wide_concats_and_inputs_are_refused_too():
    wide = FeatureSpec(3, MAX_NUMBER, 8)
    with pytest.raises(GraphError, match=r"node 'both': expected maps of at most"):
        NeckGraph((wide,), (Node("both", 3, (Edge("C3"), Edge("C3")), Merge("concat")),), ("both",))
    with pytest.raises(GraphError, match="C3"):
        NeckGraph((FeatureSpec(3, MAX_NUMBER + 1, 8),), (), ("C3",))


@pytest.mark.parametrize("level", [MAX_LEVEL + 1, 10**9, -1, 1.5, True])
def test_levels_that_no_image_has_are_refused(level):
    with pytest.raises(GraphError, match=f"from 0 to {MAX_LEVEL}"):
        NeckGraph(FEATURES, (Node("far", level, (Edge("C5"),)),), ("far",))
