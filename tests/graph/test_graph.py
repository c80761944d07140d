"""Checks, identity, reading and writing of neck graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from xml.etree import ElementTree

import pytest
from graphs import graphs, random_graph, respelled
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn_bench.errors import FormatVersionError, FpnBenchError, GraphError
from fpn_bench.graph import (
    Activation,
    AdaptivePool,
    Attention,
    Conv,
    DeformableConv,
    Edge,
    GraphBuilder,
    Merge,
    NeckGraph,
    Node,
    Norm,
    PositionalEncoding,
    Reassemble,
    Resample,
    ResizeToLevel,
    SpatialSoftmax,
    TransposedConv,
    as_svg,
    as_text,
    cost,
)
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph, list_necks

C3, C4, C5 = FeatureSpec(3, 8, 8), FeatureSpec(4, 16, 16), FeatureSpec(5, 32, 32)


def one(*nodes: Node, outputs: tuple[str, ...] = ("out",), inputs=(C3, C4, C5)) -> NeckGraph:
    return NeckGraph(inputs, nodes, outputs)


def conv(name: str, level: int, source: str, *ops, merge: Merge = Merge()) -> Node:  # noqa: B008
    return Node(name, level, (Edge(source),), merge, ops or (Conv(4, 1),))


def steered(merge, *sources: str) -> NeckGraph:
    return one(conv("wide", 3, "C3", Conv(9, 1)), Node("out", 3, tuple(map(Edge, sources)), merge))


def on_edge(*ops) -> NeckGraph:
    return one(Node("out", 3, (Edge("C3", ops),)))


# -- identity ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_a_respelled_graph_has_the_same_id_and_cost(graph, seed):
    other = respelled(graph, seed)
    assert other.id == graph.id
    a, b = cost(graph, (97, 65)), cost(other, (97, 65))
    assert (a.params, a.macs) == (b.params, b.macs)


def changes(graph: NeckGraph):
    """Graphs that differ from `graph` in one thing that alters the function."""
    for i, node in enumerate(graph.nodes):
        if node.name not in graph.reachable:
            continue
        variants = []
        if node.shared:
            nodes = [dataclasses.replace(n, shared="") if n is node else n for n in graph.nodes]
            owner = NeckGraph(graph.inputs, tuple(nodes), graph.outputs)
            if cost(owner, (8, 8)).params != cost(graph, (8, 8)).params:  # there was a weight and another had it too
                yield owner
            continue
        if isinstance(node.merge, Merge) and node.merge.kind != "concat" and len(node.inputs) > 1:
            others = {"sum", "mean", "max", "product", "weighted", "fast_normalised", "softmax"} - {node.merge.kind}
            variants += [dataclasses.replace(node, merge=Merge(kind)) for kind in sorted(others)]
            if node.merge.learns:
                flipped = dataclasses.replace(node.merge, per_channel=not node.merge.per_channel)
                variants.append(dataclasses.replace(node, merge=flipped))
        if isinstance(node.merge, Attention):
            variants.append(dataclasses.replace(node, merge=Attention(4, node.merge.scaled)))
        if isinstance(node.merge, SpatialSoftmax) and len(node.inputs) > 2:
            variants.append(dataclasses.replace(node, inputs=(*node.inputs[-2::-1], node.inputs[-1])))
        variants.append(dataclasses.replace(node, ops=(*node.ops, Activation("silu"))))
        variants.append(dataclasses.replace(node, ops=(*node.ops, Norm("group", groups=2))))
        for j, edge in enumerate(node.inputs):
            edges = list(node.inputs)
            edges[j] = Edge(edge.source, (*edge.ops, Activation("leaky_relu")))
            variants.append(dataclasses.replace(node, inputs=tuple(edges)))
            edges[j] = Edge(edge.source, (*edge.ops, Activation("leaky_relu", slope=0.2)))
            variants.append(dataclasses.replace(node, inputs=tuple(edges)))
        for variant in variants:
            nodes = list(graph.nodes)
            nodes[i] = variant
            yield NeckGraph(graph.inputs, tuple(nodes), graph.outputs)


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_any_change_of_the_function_changes_the_id(graph):
    for changed in itertools.islice(changes(graph), 40):
        assert changed.id != graph.id


def test_a_shared_lateral_is_not_two_laterals():
    shared = one(
        conv("lat", 3, "C3"),
        conv("a", 3, "lat", Conv(4, 3)),
        conv("b", 3, "lat", Conv(4, 3)),
        Node("out", 3, (Edge("a"), Edge("b"))),
    )
    owned = one(
        conv("lat1", 3, "C3"),
        conv("lat2", 3, "C3"),
        conv("a", 3, "lat1", Conv(4, 3)),
        conv("b", 3, "lat2", Conv(4, 3)),
        Node("out", 3, (Edge("a"), Edge("b"))),
    )
    assert shared.id != owned.id
    assert cost(shared, (64, 64)).params < cost(owned, (64, 64)).params


def test_colours_alone_cannot_tell_these_apart():
    """A six-cycle and two triangles of equal nodes: refinement ties, individualisation decides."""

    def ring(pairs):
        lower = [conv(f"a{i}", 3, "C3") for i in range(6)]
        upper = [Node(f"b{i}", 3, (Edge(f"a{p}"), Edge(f"a{q}"))) for i, (p, q) in enumerate(pairs)]
        return one(*lower, *upper, Node("out", 3, tuple(Edge(f"b{i}") for i in range(6))))

    cycle = ring([(i, (i + 1) % 6) for i in range(6)])
    triangles = ring([(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)])
    shuffled = ring([(3, 1), (1, 5), (5, 0), (0, 2), (2, 4), (4, 3)])
    assert cycle.id != triangles.id
    assert cycle.id == shuffled.id


def test_shared_weights_are_part_of_the_identity_and_their_word_is_not():
    def pair(*words: str, extra: tuple[Node, ...] = ()) -> NeckGraph:
        nodes = [
            Node(f"n{k}", k, (Edge(f"C{k}", (Conv(8, 1),)),), ops=(Activation(),)) for k in (3, 4)
        ]  # private to what reads them
        nodes += [
            Node(f"out{k}", k, (Edge(f"n{k}"),), ops=(Conv(4, 3),), shared=word)
            for k, word in zip((3, 4), words, strict=True)
        ]
        return one(*nodes, *extra, outputs=("out3", "out4"))

    assert pair("a", "a").id == pair("b", "b").id
    assert pair("a", "a").id != pair("", "").id
    assert pair("a", "b").id == pair("", "").id == pair("a", "").id
    dead = Node("dead", 3, (Edge("n3"),), ops=(Conv(4, 3),), shared="a")
    assert pair("a", "", extra=(dead,)).id == pair("", "").id
    own, shared = cost(pair("", ""), (64, 64)), cost(pair("a", "a"), (64, 64))
    assert own.params - shared.params == 8 * 4 * 9 + 4
    assert own.macs == shared.macs


def test_which_weights_are_shared_is_part_of_the_identity():
    """x -> f -> g beside y -> f or y -> g: one op shared of two that look alike."""

    def chain(first: str, second: str, other: str) -> NeckGraph:
        return one(
            Node("a", 3, (Edge("C3"),), ops=(Conv(8, 3),), shared=first),
            Node("b", 3, (Edge("a"),), ops=(Conv(8, 3),), shared=second),
            Node("c", 3, (Edge("C3", (Conv(8, 1),)),)),
            Node("d", 3, (Edge("c"),), ops=(Conv(8, 3),), shared=other),
            Node("out", 3, (Edge("b"), Edge("d"))),
        )

    ids = {chain("w", "", "w").id, chain("", "w", "w").id, chain("", "", "").id, chain("w", "w", "w").id}
    assert len(ids) == 4


def test_many_interchangeable_nodes_are_hashed_fast():
    nodes = [conv(f"a{i}", 3, "C3", Conv(4, 3)) for i in range(14)]
    nodes.append(Node("out", 3, tuple(Edge(n.name) for n in nodes)))
    assert one(*nodes).id == one(*nodes[:14][::-1], nodes[14]).id


def test_equal_branches_are_hashed_fast():
    """Twelve times two residual units: no two vertices read and feed the same ones, and each may stand for each."""
    nodes = []
    for i in range(12):
        source = "C3"
        for j in range(2):
            unit = (Edge(source), Edge(source, (Conv(8, 3),)))
            nodes.append(Node(f"b{i}_{j}", 3, unit, ops=(Activation(),)))
            source = nodes[-1].name
    ends = [f"b{i}_1" for i in range(12)]
    summed = one(*nodes, Node("out", 3, tuple(map(Edge, ends))))
    crossed = [
        n if n.name != "b0_1" else dataclasses.replace(n, inputs=(n.inputs[0], Edge("b1_0", (Conv(8, 3),))))
        for n in nodes
    ]
    assert summed.id == one(*nodes[::-1], Node("out", 3, tuple(map(Edge, ends[::-1])))).id
    assert summed.id != one(*crossed, Node("out", 3, tuple(map(Edge, ends)))).id


def test_concat_keeps_the_order_of_its_inputs():
    a, b = conv("a", 3, "C3", Conv(4, 1)), conv("b", 3, "C3", Conv(4, 3))
    forward = one(a, b, Node("out", 3, (Edge("a"), Edge("b")), Merge("concat")))
    backward = one(a, b, Node("out", 3, (Edge("b"), Edge("a")), Merge("concat")))
    assert forward.id != backward.id


def test_unread_inputs_count_only_where_a_map_takes_its_size_from_them():
    assert one(conv("out", 3, "C3")).id == one(conv("out", 3, "C3"), inputs=(C3,)).id
    up = Node("out", 3, (Edge("C5", (Resample("nearest"), Conv(4, 3))),))
    sized, free = one(up), one(up, inputs=(C5,))
    assert cost(sized, (97, 65)).macs != cost(free, (97, 65)).macs
    assert sized.id != free.id
    wider = one(up, inputs=(dataclasses.replace(C3, channels=99), C4, C5))
    assert wider.id == one(up, inputs=(C3, dataclasses.replace(C4, channels=7), C5)).id == sized.id


def test_fields_a_kind_does_not_use_and_whole_numbers_are_only_spelling():
    def ids(*ops, merge=Merge("sum")):  # noqa: B008
        return one(Node("out", 3, (Edge("C3"), Edge("C3", (Conv(8, 1),))), merge, ops)).id

    assert ids(merge=Merge("sum", eps=1e-3)) == ids()
    assert ids(merge=Merge("fast_normalised", eps=1e-3)) != ids(merge=Merge("fast_normalised"))
    assert ids(Norm("batch", groups=16)) == ids(Norm("batch"))
    assert ids(Norm("batch", momentum=0.2)) != ids(Norm("batch"))
    assert ids(Norm("group", momentum=0.2)) == ids(Norm("group"))
    assert ids(Norm(eps=0)) == ids(Norm(eps=0.0))
    assert Norm(eps=0) == Norm(eps=0.0)
    assert ids(Activation("leaky_relu", -0.0)) == ids(Activation("leaky_relu", 0.0))
    assert str(Norm(eps=-0.0)) == str(Norm(eps=0.0))


def test_windows_that_are_the_same_over_one_level_are_one_network():
    def down(kernel: str, level: int) -> str:
        return one(Node("out", level, (Edge("C3", (Resample("max_pool", kernel),)),))).id

    assert down("3", 4) == down("stride+1", 4)
    assert down("3", 5) != down("stride+1", 5)


# -- reading and writing -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(graphs)
def test_dict_and_json_round_trip(graph):
    again = NeckGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph
    assert NeckGraph.from_json(graph.to_json()).id == graph.id


def edited(edit) -> dict:
    data = create_graph("fpn", (C3, C4, C5), channels=8).to_dict()
    edit(data)
    return data


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(noodes=[]), "unknown key 'noodes': did you mean 'nodes'"),
        (lambda d: d.pop("outputs"), "lacks 'outputs'"),
        (lambda d: d["nodes"][0].update(levl=3), "node 'lateral3': node has unknown key 'levl': did you mean 'level'"),
        (
            lambda d: d["nodes"][0].update(level="3"),
            "'lateral3': expected a whole number from 0 to 30 as the level, got '3'",
        ),
        (lambda d: d["nodes"][0]["ops"][0].update(kernal=3), "unknown key 'kernal': did you mean 'kernel'"),
        (lambda d: d["nodes"][0]["ops"][0].update(kernel=1.5), "kernel=1.5; expected type int"),
        (lambda d: d["nodes"][0]["ops"][0].update(bias=1), "bias=1; expected type bool"),
        (lambda d: d["nodes"][0]["ops"][0].update(op="convv"), "unknown op 'convv': did you mean 'conv'"),
        (lambda d: d["nodes"][-1].update(merge={"kind": "sun"}), "kind='sun': did you mean 'sum'"),
        (lambda d: d.update(schema_version="1"), "expected schema_version 1 in the graph, got '1'"),
        (lambda d: d["outputs"].append(3), "expected the name of a node as an output, got 3"),
        (lambda d: d.update(nodes={}), "expected nodes to be a list, got {}"),
    ],
)
def test_loading_is_strict_and_says_where(edit, message):
    with pytest.raises(GraphError) as caught:
        NeckGraph.from_dict(edited(edit))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_file_is_refused():
    with pytest.raises(FormatVersionError, match="upgrade"):
        NeckGraph.from_dict(edited(lambda d: d.update(schema_version=2)))


def test_text_that_is_no_json():
    with pytest.raises(GraphError, match="not a JSON graph"):
        NeckGraph.from_json("{")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["op", "source", "level"]), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_one_wrong_value_anywhere_makes_a_graph_or_our_own_error(data):
    tree = create_graph("fpn", (C3, C4, C5), channels=8, norm="batch", merge="fast_normalised").to_dict()
    tree["nodes"][0]["ops"][1]["eps"] = 1e-3
    tree["nodes"][3]["merge"]["eps"] = 1e-3
    at = tree
    while True:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(json_values)
    with contextlib.suppress(FpnBenchError):  # any other error fails the test
        assert NeckGraph.from_dict(tree).id


# -- bad graphs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "node", "message"),
    [
        (lambda: one(Node("a", 3, (Edge("b"),)), Node("b", 3, (Edge("a"),)), outputs=("a",)), "b", "cycle"),
        (lambda: one(Node("out", 3, (Edge("out"),))), "out", "cycle"),
        (lambda: one(conv("out", 3, "C33")), "out", "unknown source 'C33': did you mean 'C3'"),
        (lambda: one(conv("out", 4, "C3")), "out", "reads C3 of level 3, 1 level(s) away: put a downsampling"),
        (lambda: one(conv("out", 3, "C5")), "out", "put a nearest or bilinear"),
        (
            lambda: one(Node("out", 3, (Edge("C3"), Edge("C4", (Resample("nearest"),))))),
            "out",
            "unequal channels by sum (C3 8, C4 16)",
        ),
        (
            lambda: one(Node("out", 3, (Edge("C5", (Resample("max_pool"),)),))),
            "out",
            "goes the other way; try nearest or bilinear",
        ),
        (lambda: one(Node("out", 3, (Edge("C3", (Resample("nearest"),)),))), "out", "leave the resample out"),
        (
            lambda: one(Node("out", 5, (Edge("C3", (Resample("max_pool"), Resample("max_pool"))),))),
            "out",
            "expected one resample on the edge from C3, got 2",
        ),
        (lambda: one(conv("out", 3, "C3", Conv(4, 3, stride=2))), "out", "resample on the edges"),
        (lambda: one(conv("out", 3, "C3", Conv(4, 3, groups=3))), "out", "groups=3"),
        (lambda: one(conv("out", 3, "C3", Conv(0, 3))), "out", "channels=0"),
        (lambda: one(conv("out", 3, "C3", Conv(4, 2))), "out", "even kernel=2"),
        (lambda: one(Node("out", 4, (Edge("C3", (Conv(4, 3, stride=6),)),))), "out", "power of two"),
        (lambda: one(conv("out", 3, "C3", Conv(4.0, 3))), "out", "channels=4.0; expected type int"),
        (lambda: one(conv("out", 3, "C3", Conv(4, 3, separable="no"))), "out", "separable='no'; expected type bool"),
        (lambda: one(conv("out", 3, "C3", Norm("instance"))), "out", "kind='instance': known: batch, group, layer"),
        (lambda: one(conv("out", 4, "C3", merge=Merge("add"))), "out", "kind='add'"),
        (lambda: one(conv("out", 3, "C3", merge=Merge("sum", eps=-1))), "out", "eps=-1.0"),
        (lambda: one(conv("out", 3, "C3", Norm(eps=float("nan")))), "out", "eps=nan"),
        (lambda: one(conv("out", 3, "C3", "relu")), "out", "has 'relu' as an operation"),
        (lambda: one(Node("out", 4, (Edge("C3", (Resample("maxpool"),)),))), "out", "did you mean 'max_pool'"),
        (lambda: one(Node("out", 3, ())), "out", "expected at least one input, got none"),
        (lambda: one(conv("C3", 3, "C3"), outputs=("C3",)), "C3", "name of a backbone input"),
        (lambda: one(conv("out", 3, "C3"), conv("out", 3, "C3")), "out", "two nodes"),
        (lambda: one(conv("out", 3, "C3"), outputs=("oot",)), "oot", "did you mean 'out'"),
        (
            lambda: one(conv("out", 3, "C3"), conv("b", 3, "C3"), outputs=("out", "b")),
            "b",
            "one output for level 3, got this one and 'out'",
        ),
        (lambda: one(conv("out", 3, "C3"), outputs=()), None, "expected at least one output in the graph, got none"),
        (lambda: one(conv("out", -1, "C3")), "out", "the level, got -1"),
        (lambda: steered(SpatialSoftmax(), "C3"), "out", "expected at least one map, then the logits"),
        (lambda: steered(SpatialSoftmax(), "C3", "C3"), "out", "the logits, has 8 channels; expected 1"),
        (
            lambda: steered(SpatialSoftmax(), "C3", "wide", "C3"),
            "out",
            "unequal channels by spatial_softmax (C3 8, wide 9",
        ),
        (lambda: steered(Attention(), "C3", "C3"), "out", "2 input(s) by attention; expected three"),
        (lambda: steered(Attention(), "C3", "wide", "C3"), "out", "query and key of unequal channels"),
        (
            lambda: steered(Attention(3), "C3", "C3", "C3"),
            "out",
            "heads=3; expected a divisor of the 8 channels of its query and the 8",
        ),
        (lambda: steered(Reassemble(3), "C3", "C3"), "out", "filters of 8 channels; expected 3**2 = 9"),
        (lambda: steered(Reassemble(4), "C3", "C3"), "out", "kernel=4, dilation=1; expected an odd kernel"),
        (lambda: steered(DeformableConv(8), "C3", "C3"), "out", "offsets of 8; expected 27 times a divisor of 8"),
        (lambda: steered(DeformableConv(8, 2), "C3", "C3"), "out", "kernel=2"),
        (lambda: one(conv("out", 3, "C3", merge=Merge("max", per_channel=True))), "out", "per_channel=True"),
        (lambda: on_edge(AdaptivePool(2)), "out", "put a restore behind it"),
        (lambda: on_edge(ResizeToLevel()), "out", "restores what no adaptive_pool has pooled"),
        (lambda: on_edge(AdaptivePool(), AdaptivePool(), ResizeToLevel()), "out", "pools adaptively what is pooled"),
        (lambda: on_edge(AdaptivePool(0), ResizeToLevel()), "out", "bins=0"),
        (
            lambda: on_edge(AdaptivePool(), PositionalEncoding(), ResizeToLevel()),
            "out",
            "between adaptive_pool and restore",
        ),
        (lambda: on_edge(Conv(6, 1), PositionalEncoding()), "out", "6 channels; expected a multiple of 4"),
        (lambda: on_edge(PositionalEncoding(0.5)), "out", "temperature=0.5"),
        (
            lambda: one(Node("out", 2, (Edge("C3", (TransposedConv(4, 6, 2),)),))),
            "out",
            "expected kernel=2, kernel=4 or an odd one",
        ),
        (
            lambda: one(Node("out", 2, (Edge("C3", (TransposedConv(4, 3, 3),)),))),
            "out",
            "stride=3; expected a power of two",
        ),
        (lambda: one(conv("out", 3, "C3", TransposedConv(4))), "out", "changes the level behind its merge"),
        (
            lambda: one(Node("out", 2, (Edge("C3", (Conv(6, 1), Resample("pixel_shuffle"))),))),
            "out",
            "6 channels; expected a multiple of 4",
        ),
        (lambda: on_edge(Conv(4, 1, gain=0)), "out", "gain=0.0"),
        (
            lambda: one(Node("out", 3, (Edge("C3"), Edge("C3")), shared="w")),
            "out",
            "give each input a shared node of its own",
        ),
        (
            lambda: one(
                Node("a", 3, (Edge("C3"),), ops=(Conv(8, 1),), shared="w"),
                Node("out", 3, (Edge("a"),), ops=(Conv(8, 3),), shared="w"),
            ),
            "out",
            "shares 'w' with 'a', but has other operations",
        ),
        (lambda: GraphBuilder([C3]).add("out", 3, "C4"), "out", "unknown source 'C4': known: C3"),
        (lambda: GraphBuilder([C3]).add("C3", 3, "C3"), "C3", "name of a backbone input"),
        (lambda: GraphBuilder([C3]).add("a.b", 3, "C3"), "a.b", "without '.'"),
        (lambda: GraphBuilder([C3]).graph(["P9"]), "P9", "is an output but no node: known: C3"),
        (lambda: one(conv("out", 3, "C3", Merge("sum"))), "out", "as an operation; activation,"),
        (lambda: on_edge(Attention()), "out", "as an operation"),
        (lambda: one(Node("out", 3, (Edge("C3"),), Conv(8))), "out", "as a merge; attention,"),
        (lambda: one(Node("out", 3, (Edge("C3"),), "sum")), "out", "'sum' as a merge"),
        (lambda: one(Node("out", 3, ("C3",))), "out", "expected an Edge as an input"),
        (lambda: one(Node("out", 3, (Edge(3),))), "out", "unknown source 3"),
        (lambda: one(conv("out", 3, "C3"), outputs=(3,)), "3", "is an output but no node"),
        (lambda: GraphBuilder([C3]).add("out", 3), "out", "expected at least one input, got none"),
    ],
)
def test_bad_graphs_name_the_node_and_what_is_wanted(make, node, message):
    with pytest.raises(GraphError) as caught:
        make()
    assert caught.value.node == node
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_may_come_in_any_order():
    nodes = create_graph("fpn", (C3, C4, C5), channels=8).nodes
    for order in itertools.islice(itertools.permutations(nodes), 0, 40320, 997):
        graph = one(*order, outputs=("P3", "P4", "P5"))
        seen = {"C3", "C4", "C5"}
        for node in graph.nodes:
            assert {e.source for e in node.inputs} <= seen
            seen.add(node.name)


# -- drawings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_necks())
def test_text_names_every_node_and_svg_is_xml(name):
    graph = create_graph(name, (C3, C4, C5), (3, 4, 5, 6), 8)
    text = as_text(graph)
    root = ElementTree.fromstring(as_svg(graph))
    titles = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("title"))
    for node in graph.nodes:
        assert node.name in text
        assert f"{node.name}:" in titles


@settings(max_examples=20, deadline=None)
@given(graphs)
def test_any_graph_can_be_drawn(graph):
    ElementTree.fromstring(as_svg(graph))
    assert len(as_text(graph).splitlines()) == len(graph.nodes) + 2


def test_boxes_of_a_drawing_do_not_overlap():
    for seed in range(60):
        root = ElementTree.fromstring(as_svg(random_graph(seed)))
        rects = [
            tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in root.iter() if r.tag.endswith("rect")
        ]
        for (x, y, w, h), (u, v, s, t) in itertools.combinations(rects, 2):
            assert x + w <= u or u + s <= x or y + h <= v or v + t <= y


def test_names_of_before_still_work_and_say_their_new_one():
    graph = create_graph("upernet", (C3, C4, C5), channels=8)
    with pytest.warns(DeprecationWarning, match="now called `reachable`"):
        assert graph.alive == graph.reachable
    with pytest.warns(DeprecationWarning, match="now called `ResizeToLevel`"):
        from fpn_bench.graph import Restore
    assert Restore is ResizeToLevel
    text = graph.to_json()
    assert '"restore"' in text  # in files the operation keeps its name
    assert NeckGraph.from_json(text) == graph
