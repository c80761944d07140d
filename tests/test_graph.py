"""Checks, identity, reading and writing of neck graphs."""

from __future__ import annotations

import dataclasses
import itertools
import json
from xml.etree import ElementTree

import pytest
from graphs import graphs, random_graph, respelled
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn_bench.errors import FormatVersionError, FpnBenchError, GraphError
from fpn_bench.graph import Activation, Conv, Edge, Merge, NeckGraph, Node, Norm, Resample, as_svg, as_text, cost
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph, list_necks

C3, C4, C5 = FeatureSpec(3, 8, 8), FeatureSpec(4, 16, 16), FeatureSpec(5, 32, 32)


def one(*nodes: Node, outputs: tuple[str, ...] = ("out",), inputs=(C3, C4, C5)) -> NeckGraph:
    return NeckGraph(inputs, nodes, outputs)


def conv(name: str, level: int, source: str, *ops, merge: Merge = Merge()) -> Node:  # noqa: B008
    return Node(name, level, (Edge(source),), merge, ops or (Conv(4, 1),))


# -- identity ----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(graphs, st.integers(0, 10**6))
def test_a_respelled_graph_has_the_same_id_and_cost(graph, seed):
    other = respelled(graph, seed)
    assert other.id == graph.id
    a, b = cost(graph, (97, 65)), cost(other, (97, 65))
    assert (a.params, a.macs) == (b.params, b.macs)


def changes(graph: NeckGraph):
    """Graphs that differ from `graph` in one thing that alters the function."""
    for i, node in enumerate(graph.nodes):
        if node.name not in graph.alive:
            continue
        variants = []
        if node.merge.kind != "concat" and len(node.inputs) > 1:
            others = {"sum", "mean", "max", "fast_normalised", "softmax"} - {node.merge.kind}
            variants += [dataclasses.replace(node, merge=Merge(kind)) for kind in sorted(others)]
        variants.append(dataclasses.replace(node, ops=(*node.ops, Activation("silu"))))
        variants.append(dataclasses.replace(node, ops=(*node.ops, Norm("group", groups=2))))
        for j, edge in enumerate(node.inputs):
            edges = list(node.inputs)
            edges[j] = Edge(edge.source, (*edge.ops, Activation("leaky_relu")))
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


def test_many_interchangeable_nodes_are_hashed_fast():
    nodes = [conv(f"a{i}", 3, "C3", Conv(4, 3)) for i in range(14)]
    nodes.append(Node("out", 3, tuple(Edge(n.name) for n in nodes)))
    assert one(*nodes).id == one(*nodes[:14][::-1], nodes[14]).id


def test_concat_keeps_the_order_of_its_inputs():
    a, b = conv("a", 3, "C3", Conv(4, 1)), conv("b", 3, "C3", Conv(4, 3))
    forward = one(a, b, Node("out", 3, (Edge("a"), Edge("b")), Merge("concat")))
    backward = one(a, b, Node("out", 3, (Edge("b"), Edge("a")), Merge("concat")))
    assert forward.id != backward.id


def test_unread_inputs_are_no_part_of_the_identity():
    assert one(conv("out", 3, "C3")).id == one(conv("out", 3, "C3"), inputs=(C3,)).id


def test_ids_of_published_necks_are_stable():
    """An id stands in every store: a new version that gives another one would orphan all of them."""
    features = (FeatureSpec(3, 512, 8), FeatureSpec(4, 1024, 16), FeatureSpec(5, 2048, 32))
    ids = {name: create_graph(name, features).id for name in ("fpn", "pafpn", "channel_mapper", "top_only")}
    assert ids == {
        "fpn": "4cfa986c3a89fc49",
        "pafpn": "312ff5045175cd5e",
        "channel_mapper": "fdd8168d713c5dcb",
        "top_only": "0a1673fbbf3d9502",
    }


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
        (lambda d: d["nodes"][0].update(level="3"), "node 'lateral3': has level '3'; a whole number"),
        (lambda d: d["nodes"][0]["ops"][0].update(kernal=3), "unknown key 'kernal': did you mean 'kernel'"),
        (lambda d: d["nodes"][0]["ops"][0].update(kernel=1.5), "kernel=1.5; int is wanted"),
        (lambda d: d["nodes"][0]["ops"][0].update(bias=1), "bias=1; bool is wanted"),
        (lambda d: d["nodes"][0]["ops"][0].update(op="convv"), "unknown op 'convv': did you mean 'conv'"),
        (lambda d: d["nodes"][-1].update(merge={"kind": "sun"}), "kind='sun': did you mean 'sum'"),
        (lambda d: d.update(schema_version="1"), "schema_version '1'"),
        (lambda d: d["outputs"].append(3), "output 3 came"),
        (lambda d: d.update(nodes={}), "a list is wanted"),
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


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(
                st.sampled_from(
                    ["inputs", "nodes", "outputs", "schema_version", "name", "level", "source", "ops", "op"]
                ),
                c,
            )
        ),
        max_leaves=20,
    )
)
def test_no_file_makes_anything_but_our_own_error(data):
    with pytest.raises(FpnBenchError):
        NeckGraph.from_dict(data)


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
            "goes the other way; nearest or bilinear",
        ),
        (lambda: one(Node("out", 3, (Edge("C3", (Resample("nearest"),)),))), "out", "leave the resample out"),
        (
            lambda: one(Node("out", 5, (Edge("C3", (Resample("max_pool"), Resample("max_pool"))),))),
            "out",
            "once is wanted",
        ),
        (lambda: one(conv("out", 3, "C3", Conv(4, 3, stride=2))), "out", "resample on the edges"),
        (lambda: one(conv("out", 3, "C3", Conv(4, 3, groups=3))), "out", "groups=3"),
        (lambda: one(conv("out", 3, "C3", Conv(0, 3))), "out", "channels=0"),
        (lambda: one(conv("out", 3, "C3", Conv(4, 2))), "out", "even kernel=2"),
        (lambda: one(Node("out", 4, (Edge("C3", (Conv(4, 3, stride=6),)),))), "out", "power of two"),
        (lambda: one(Node("out", 3, ())), "out", "no inputs"),
        (lambda: one(conv("C3", 3, "C3"), outputs=("C3",)), "C3", "name of a backbone input"),
        (lambda: one(conv("out", 3, "C3"), conv("out", 3, "C3")), "out", "two nodes"),
        (lambda: one(conv("out", 3, "C3"), outputs=("oot",)), "oot", "did you mean 'out'"),
        (lambda: one(conv("out", 3, "C3"), conv("b", 3, "C3"), outputs=("out", "b")), "b", "both outputs of level 3"),
        (lambda: one(conv("out", 3, "C3"), outputs=()), None, "no outputs"),
        (lambda: one(conv("out", -1, "C3")), "out", "level -1"),
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


@settings(max_examples=40, deadline=None)
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
