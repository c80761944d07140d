"""Two graphs in a row as one: the values, the costs and the identity of both together."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from graphs import graphs, random_graph, respelled
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fpn_bench.errors import GraphError
from fpn_bench.graph import Conv, Edge, GraphBuilder, NeckGraph, Node, Norm, Resample, adapter_nodes, compose, cost
from fpn_bench.graph.walk import used_levels
from fpn_bench.nn.neck import Neck, build_neck
from fpn_bench.pyramid import FeatureSpec, level_sizes
from fpn_bench.zoo import create_graph, list_necks

VIT = (FeatureSpec(4, 24, 16),)
PYRAMID = (FeatureSpec(3, 12, 8), FeatureSpec(4, 24, 16), FeatureSpec(5, 24, 32))


def simple_pyramid() -> NeckGraph:
    """P3 to P5 of the one map of a plain transformer, the middle one as it is."""
    b = GraphBuilder(VIT)
    b.add("P3", 3, Edge("C4", (Resample("nearest"), Conv(12, 1))), ops=(Norm("layer"),))
    b.add("P5", 5, Edge("C4", (Resample("max_pool"),)))
    return b.graph(("P3", "C4", "P5"))


def in_front_of(graph: NeckGraph, seed: int) -> NeckGraph:
    """A random graph that returns the inputs of `graph`, each read from some node of its own."""
    rng = random.Random(seed)
    own = random_graph(rng.randrange(10**6))
    nodes = list(own.nodes)
    outputs = []
    for spec in graph.inputs:
        source = rng.choice(nodes[: len(own.nodes)])
        ways = {-1: ("nearest", "bilinear"), 0: (None,), 1: ("max_pool", "subsample")}
        way = rng.choice(ways[(spec.level > source.level) - (spec.level < source.level)])
        edge = Edge(source.name, (Resample(way),) if way else ())
        nodes.append(Node(f"out{spec.level}", spec.level, (edge,), ops=(Conv(spec.channels, 1),)))
        outputs.append(f"out{spec.level}")
    return NeckGraph(own.inputs, tuple(nodes), tuple(outputs))


def composed_with_its_parts(first: NeckGraph, second: NeckGraph) -> tuple[Neck, Neck, Neck]:
    """The modules of the whole and of both parts, with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        whole, one, two = Neck(compose(first, second)).eval(), Neck(first).eval(), Neck(second).eval()
    given = {f"steps.adapter_{k.removeprefix('steps.')}": v for k, v in one.state_dict().items()} | two.state_dict()
    whole.load_state_dict({k: given[k] for k in whole.state_dict()})
    return whole, one, two


def maps(graph: NeckGraph, sizes: dict[int, tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, spec.channels, *sizes[spec.level], generator=generator) for spec in graph.inputs]


def random_sizes(graph: NeckGraph, rng: random.Random) -> dict[int, tuple[int, int]]:
    """Sizes of the inputs, halved and rounded up or down at random, as backbones do."""
    side = [rng.randint(24, 60), rng.randint(24, 60)]
    sizes = {}
    for spec in graph.inputs:
        sizes[spec.level] = (side[0], side[1])
        side = [max(1, (s + rng.randint(0, 1)) // 2) for s in side]
    return sizes


# -- values ------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_the_whole_gives_what_its_parts_give_in_a_row(second, seed):
    first = in_front_of(second, seed)
    try:
        whole, one, two = composed_with_its_parts(first, second)
    except GraphError as error:
        assume("would have that of" not in str(error))
        raise
    features = maps(first, random_sizes(first, random.Random(seed)))
    with torch.no_grad():
        expected, came = two(one(features)), whole(features)
    assert whole.out_features == two.out_features
    assert all(torch.equal(a, b) for a, b in zip(came, expected, strict=True))


@pytest.mark.parametrize("name", list_necks())
def test_every_neck_behind_an_adapter(name):
    first = simple_pyramid()
    second = create_graph(name, PYRAMID, channels=16)
    whole, one, two = composed_with_its_parts(first, second)
    features = maps(first, {4: (11, 7)})
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(whole(features), two(one(features)), strict=True))


@settings(max_examples=25, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_exactly_those_are_refused_where_a_level_would_change_its_size(second, seed):
    first, rng = in_front_of(second, seed), random.Random(seed)
    differ = False
    for _ in range(100):
        inputs = random_sizes(first, rng)
        levels = [spec.level for spec in first.out_features]
        at_once = level_sizes(inputs, used_levels(second) | set(levels))
        behind = level_sizes({k: at_once[k] for k in levels}, used_levels(second))
        differ |= any(at_once[k] != behind[k] for k in used_levels(second))
    if differ:
        with pytest.raises(GraphError, match="let the first return level"):
            compose(first, second)
    else:
        compose(first, second)


def test_a_level_of_another_size_is_refused_with_the_level_to_return():
    b = GraphBuilder((FeatureSpec(4, 8, 16),))
    first = b.graph([b.add("P5", 5, Edge("C4", (Resample("max_pool"),)))])
    second = create_graph("simple_fpn", first.out_features, (4, 5), 8)
    with pytest.raises(GraphError, match=r"level 4 of the second .* that of C4 in the whole; let the first return"):
        compose(first, second)


# -- costs -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_costs_add_up(second, seed):
    first = in_front_of(second, seed)
    try:
        whole = compose(first, second)
    except GraphError:
        assume(False)
    inputs = random_sizes(first, random.Random(seed))
    between = level_sizes(inputs, [spec.level for spec in first.out_features])
    parts = (
        cost(first, input_sizes=inputs),
        cost(second, input_sizes={spec.level: between[spec.level] for spec in second.inputs}),
    )
    total = cost(whole, input_sizes=inputs)
    adapter = [node for node in total.nodes if node.name in adapter_nodes(first)]
    rest = [node for node in total.nodes if node.name not in adapter_nodes(first)]
    assert (sum(n.params for n in rest), sum(n.macs for n in rest)) == (parts[1].params, parts[1].macs)
    assert sum(n.params for n in adapter) <= parts[0].params
    if {spec.level for spec in second.inputs} == {second.level_of(n) for n in second.reachable if n[0] == "C"}:
        assert (total.params, total.macs) == (parts[0].params + parts[1].params, parts[0].macs + parts[1].macs)


def test_what_the_second_does_not_read_is_dead_and_free():
    first = simple_pyramid()
    second = create_graph("top_only", PYRAMID, (5,), 16)
    whole = compose(first, second)
    assert whole.reachable & adapter_nodes(first) == {"adapter_P5"}
    assert (
        cost(whole, input_sizes={4: (9, 9)}).params
        == cost(second, input_sizes={3: (18, 18), 4: (9, 9), 5: (5, 5)}).params
    )
    assert not any("adapter_P3" in key for key in build_neck(whole, VIT).state_dict())


# -- identity ----------------------------------------------------------------------------------------------------


def nothing(features: tuple[FeatureSpec, ...]) -> NeckGraph:
    """Every map as it came."""
    return NeckGraph(features, (), tuple(f"C{spec.level}" for spec in features))


@settings(max_examples=25, deadline=None)
@given(graphs)
def test_nothing_before_or_behind_a_graph_leaves_its_id(graph):
    assert compose(nothing(graph.inputs), graph).id == graph.id
    assert compose(graph, nothing(graph.out_features)).id == graph.id


@settings(max_examples=25, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_the_id_is_that_of_the_networks_not_of_their_spelling(second, seed):
    first = in_front_of(second, seed)
    try:
        whole = compose(first, second)
    except GraphError:
        assume(False)
    assert compose(respelled(first, seed), respelled(second, seed + 1)).id == whole.id
    assert whole.id != second.id


def test_three_in_a_row_are_one_network_however_they_are_bracketed():
    b = GraphBuilder(VIT)
    fine = b.add("fine", 3, Edge("C4", (Resample("nearest"), Conv(12, 1))))
    first = b.graph((fine, "C4", b.add("coarse", 5, Edge("C4", (Resample("max_pool"),)))))
    second = create_graph("fpn", PYRAMID, (3, 4, 5), 16)
    third = create_graph("pafpn", second.out_features, (3, 4, 5), 8)
    left, right = compose(compose(first, second), third), compose(first, compose(second, third))
    assert left.id == right.id
    assert left.id != compose(first, second).id


def test_the_whole_is_written_and_read_like_any_graph():
    whole = compose(simple_pyramid(), create_graph("pafpn", PYRAMID, channels=16))
    assert NeckGraph.from_json(whole.to_json()) == whole


# -- names -------------------------------------------------------------------------------------------------------


def test_one_name_in_both_is_two_nodes():
    first = simple_pyramid()
    second = create_graph("channel_mapper", PYRAMID, channels=8)
    shared = {n.name for n in first.nodes} & {n.name for n in second.nodes}
    assert shared == {"P3", "P5"}
    whole = compose(first, second)
    assert len(whole.nodes) == len(first.nodes) + len(second.nodes)
    assert whole.outputs == ("P3", "P4", "P5")


def test_one_shared_word_in_both_is_two_sets_of_weights():
    def twins(features: tuple[FeatureSpec, ...]) -> NeckGraph:
        b = GraphBuilder(features)
        return b.graph([b.then(f"N{s.level}", f"C{s.level}", Conv(24, 1), shared="w") for s in features])

    first = twins((FeatureSpec(3, 24, 8), FeatureSpec(4, 24, 16)))
    second = twins(first.out_features)
    one = cost(first, (32, 32)).params
    assert cost(compose(first, second), (32, 32)).params == 2 * one


def renamed(graph: NeckGraph, name: str) -> NeckGraph:
    """The graph with its last node, an output, called `name`."""
    last = graph.nodes[-1]
    nodes = (*graph.nodes[:-1], dataclasses.replace(last, name=name))
    return NeckGraph(graph.inputs, nodes, tuple(name if n == last.name else n for n in graph.outputs))


@pytest.mark.parametrize(
    ("second", "node", "message"),
    [
        (lambda: create_graph("fpn", VIT, channels=8), None, "reads (C4: 24ch stride 16), the first returns (C3: 12ch"),
        (lambda: renamed(create_graph("channel_mapper", PYRAMID, channels=8), "adapter_P3"), "adapter_P3", "two nodes"),
        (
            lambda: NeckGraph(PYRAMID, (Node("a", 5, (Edge("C5"),), ops=(Conv(8, 1),), shared="adapter_w"),), ("a",)),
            "a",
            "is shared='adapter_w', the name of the first graph's weights",
        ),
    ],
)
def test_what_cannot_be_one_graph_names_the_node(second, node, message):
    plain = simple_pyramid()
    nodes = tuple(dataclasses.replace(n, shared="w") if n.name == "P3" else n for n in plain.nodes)
    with pytest.raises(GraphError) as caught:
        compose(NeckGraph(plain.inputs, nodes, plain.outputs), second())
    assert caught.value.node == node
    assert message in str(caught.value)


def test_a_node_that_has_the_name_of_an_input_of_the_first():
    b = GraphBuilder((FeatureSpec(3, 8, 8), FeatureSpec(4, 8, 16)))
    first = b.graph([b.then("P3", "C3", Conv(8, 1))])
    second = NeckGraph(first.out_features, (Node("C4", 3, (Edge("C3"),), ops=(Conv(4, 1),)),), ("C4",))
    with pytest.raises(GraphError, match="'C4': this is the name of a backbone input"):
        compose(first, second)
