"""One contract over every neck family, and random graphs, against torch's own counters."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import typing
from collections import Counter
from pathlib import Path

import pytest
import torch
from graphs import random_graph
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fpn_bench.errors import GraphError, InputError, UnknownNameError
from fpn_bench.graph import (
    AdaptivePool,
    Attention,
    Conv,
    DeformableConv,
    Edge,
    Merge,
    NeckGraph,
    Node,
    Reassemble,
    Resample,
    ResizeToLevel,
    SpatialSoftmax,
    TransposedConv,
    as_svg,
    as_text,
    cost,
)
from fpn_bench.graph.spec import MERGES, OPS, Op
from fpn_bench.nn import Downsample, WeightedSum, fit
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec, level_sizes, map_size
from fpn_bench.zoo import choices, create_graph, describe, list_necks, options
from fpn_bench.zoo.merging_cells import MergingCells
from fpn_bench.zoo.pyramid_dags import PyramidDags

FEATURES = tuple(FeatureSpec(k, c, 2**k) for k, c in ((2, 16), (3, 24), (4, 32), (5, 48)))
RESNET50 = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 512), (4, 1024), (5, 2048)))
IMAGE_SIZES = [(640, 640), (333, 257), (97, 65)]


def maps(image_size, batch=1, dtype=torch.float32, features=FEATURES, device="cpu"):
    torch.manual_seed(0)
    sizes = [map_size(image_size, s.level) for s in features]
    return [
        torch.randn(batch, s.channels, *size, dtype=dtype, device=device)
        for s, size in zip(features, sizes, strict=True)
    ]


def deformable_flops(_x, weight, *_args, out_shape, **_kwargs):
    """torch's counter knows no deformable convolution: each of its outputs takes a weight's row, as a plain one's."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def counted(graph, image_size, device="meta"):
    """(MACs by torch's counter, outputs), with attention as the products it is made of, which have a formula.

    Small maps are quicker on the CPU: on meta, the shapes are found in Python.
    """
    with torch.device(device):
        neck = build_neck(graph).requires_grad_(False).eval()
    if device == "meta":
        for module in neck.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.forward = torch.nn.Identity()  # has no MACs, and is slow on meta
    formula = {torch.ops.torchvision.deform_conv2d: deformable_flops}
    counter = FlopCounterMode(display=False, custom_mapping=formula)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        outputs = neck(maps(image_size, device=device, features=graph.inputs))
    return counter.get_total_flops() // 2, outputs


def variants(name):
    """Every option of a family at each of its values, one at a time; numbers and lists at some others."""
    yield {}
    for option, default in options(name).items():
        values = list(choices(name)[option])
        if isinstance(default, bool):
            values = [False, True]
        elif isinstance(default, int):
            values = [1, default + 2]  # an odd kernel stays odd
        elif isinstance(default, float):
            values = [default / 2, default * 2]
        elif isinstance(default, tuple):
            values = [default[:1] + default[2:]] if len(default) > 1 else []
        elif (name, option) in GENOMES:
            values = [GENOMES[name, option].text(GENOMES[name, option].sample(random.Random(seed))) for seed in (0, 1)]
        yield from ({option: value} for value in values if value != default)


GENOMES = {("merging_cells", "cell"): MergingCells((3, 4, 5, 6)), ("opa_fpn", "dag"): PyramidDags()}
OWN_WIDTHS = ("out_conv", "out_convs")
"""Options whose other value gives the outputs the paper's own, unequal widths."""
FEW = ("bifpn", "csp_pafpn", "fapn", "fpn", "hybrid_encoder", "merging_cells", "semantic_fpn", "unet")
"""Families that have every kind of node between them; the others take their turn with the slow tests."""


def cases():
    """Every family with every variant of it: ordinary is what two families before it have not shown already."""
    shown = Counter()
    for name in list_necks():
        for chosen in variants(name):
            key = str(chosen)
            marks = [pytest.mark.slow] if chosen and shown[key] >= 2 else []
            shown[key] += 1
            yield pytest.param(name, chosen, id=f"{name}-{chosen}", marks=marks)


def necks():
    """Every family: ordinary are the few."""
    return [pytest.param(name, marks=[] if name in FEW else [pytest.mark.slow]) for name in list_necks()]


def check_costs(name, chosen, out_levels, image_size):
    """The graph costs what torch counts and its maps have the sizes it says."""
    graph = create_graph(name, FEATURES, out_levels, 16, **chosen)
    assert [s.level for s in graph.out_features] == list(out_levels)
    assert all(s.stride == 2**s.level for s in graph.out_features)
    if not any(option in chosen for option in OWN_WIDTHS):
        assert all(s.channels == 16 for s in graph.out_features)
    expected = cost(graph, image_size)
    macs, outputs = counted(graph, image_size, "meta" if image_size == (640, 640) else "cpu")
    assert macs == expected.macs
    size_of = {node.name: node.size for node in expected.nodes}
    for spec, key, x in zip(graph.out_features, graph.outputs, outputs, strict=True):
        assert x.shape == (1, spec.channels, *map_size(image_size, spec.level))
        assert size_of.get(key, x.shape[2:]) == x.shape[2:]


def check_gradients(name, chosen, out_levels, image_size, dtype, batch):
    """Values are finite and differ, and gradients reach every parameter."""
    torch.manual_seed(0)
    graph = create_graph(name, FEATURES, out_levels, 16, **chosen)
    neck = build_neck(graph).to(dtype)
    assert sum(p.numel() for p in neck.parameters()) == cost(graph, image_size).params
    neck.train(batch > 1)  # batch statistics of a one-pixel map need more than one image
    outputs = neck(maps(image_size, batch, dtype))
    for x in outputs:
        assert x.dtype == dtype
        assert torch.isfinite(x).all()
        # Statistics that nothing has trained yet let small values through in eval mode: differing, if not large.
        assert x.float().std() > 1e-3 * (1 if batch > 1 else x.float().abs().max())
    sum(x.float().pow(2).sum() for x in outputs).backward()
    for key, parameter in neck.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0 or "bias" in key, key


@pytest.mark.parametrize(("name", "chosen"), list(cases()))
def test_every_option_costs_what_it_says_and_learns(name, chosen):
    if "repeats" in options(name):  # one cell says about an option what seven say
        chosen = {"repeats": 1} | chosen
    check_costs(name, chosen, (3, 4, 5, 6), (333, 257))
    check_gradients(name, chosen, (3, 4, 5, 6), (97, 65), torch.float32, 2)


@pytest.mark.parametrize("name", necks())
def test_every_neck_runs_at_every_size_type_and_batch(name):
    for out_levels, image_size in [((3, 4), (640, 640)), ((3, 4, 5), (97, 65)), ((2, 3, 4, 5, 6, 7), (640, 640))]:
        check_costs(name, {}, out_levels, image_size)
    for image_size, dtype, batch in [
        ((333, 257), torch.float32, 2),
        ((333, 257), torch.bfloat16, 1),
        ((97, 65), torch.float32, 1),
        ((97, 65), torch.bfloat16, 1),
        ((97, 65), torch.bfloat16, 2),
    ]:
        check_gradients(name, {}, (2, 3, 4, 5, 6, 7), image_size, dtype, batch)
    graph = create_graph(name, FEATURES, (2, 3, 4, 5, 6, 7), 16)
    for dtype, batch in [(torch.float32, 1), (torch.bfloat16, 2)]:
        neck = build_neck(graph).to(dtype).eval()
        with torch.no_grad():
            assert all(torch.isfinite(x).all() for x in neck(maps((640, 640), batch, dtype)))


@pytest.mark.parametrize("block", [0, 1, *(pytest.param(block, marks=pytest.mark.slow) for block in range(2, 10))])
def test_random_graphs_cost_what_torch_counts(block):
    for seed in range(50 * block, 50 * block + 50):
        graph = random_graph(seed)
        with torch.device("meta"):
            neck = build_neck(graph)
        for image_size in IMAGE_SIZES:
            expected = cost(graph, image_size)
            assert counted(graph, image_size)[0] == expected.macs
        assert sum(p.numel() for p in neck.parameters()) == expected.params


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_run_at_sizes_that_round_either_way(seed):
    graph = random_graph(seed)
    neck = build_neck(graph).eval()
    for height, width in [(33, 47), (32, 31), (7, 5)]:
        inputs = []
        for i, spec in enumerate(graph.inputs):
            inputs.append(torch.randn(1, spec.channels, max(1, height >> i), max(1, width >> i)))  # rounds down
        sizes = level_sizes({s.level: x.shape[-2:] for s, x in zip(graph.inputs, inputs, strict=True)}, range(8))
        for spec, x in zip(graph.out_features, neck(inputs), strict=True):
            assert tuple(x.shape) == (1, spec.channels, *sizes[spec.level])
            assert torch.isfinite(x).all()


NEEDED = {Conv: {"channels": 8}, TransposedConv: {"channels": 8}, Resample: {"kind": "max_pool"}}
NEEDED[DeformableConv] = {"channels_out": 8}


def words():
    """Every word of the vocabulary with every value that its fields list, one at a time."""
    for cls in (*OPS.values(), *MERGES.values()):
        needed = NEEDED.get(cls, {})
        yield cls(**needed)
        for field in dataclasses.fields(cls):
            hint = typing.get_type_hints(cls)[field.name]
            values = [False, True] if hint is bool else _literals(hint)
            for value in values:
                more = {"kind": "weighted"} if (cls, field.name, value) == (Merge, "per_channel", True) else {}
                yield cls(**{**needed, field.name: value, **more})


def _literals(hint):
    return [v for arg in typing.get_args(hint) for v in ([arg] if isinstance(arg, str) else _literals(arg))]


def graph_of(word) -> NeckGraph:
    """One node that uses the word, over one input of level 3."""
    first, last, ops, level, merge = Edge("C3"), Edge("C3"), (), 3, Merge()
    if isinstance(word, tuple(MERGES.values())):
        merge = word
        wanted = {SpatialSoftmax: 1, Reassemble: 25, DeformableConv: getattr(word, "offset_channels", 0)}
        if type(word) in wanted:
            last = Edge("C3", (Conv(wanted[type(word)], 1),))
        edges = (first, last, last) if isinstance(word, Attention) else (first, last)
    elif isinstance(word, (Resample, TransposedConv)):
        level += word.direction if isinstance(word, Resample) else -1
        edges = (Edge("C3", (word,)),)
    elif isinstance(word, AdaptivePool):
        edges = (Edge("C3", (word, ResizeToLevel())),)
    elif isinstance(word, ResizeToLevel):
        edges = (Edge("C3", (AdaptivePool(2), word)),)
    else:
        edges, ops = (first,), (word,)
    return NeckGraph((FeatureSpec(3, 8, 8),), (Node("out", level, edges, merge, ops),), ("out",))


@pytest.mark.parametrize("word", list(words()), ids=str)
def test_every_word_of_the_vocabulary_is_built_costed_drawn_and_read_back(word):
    graph = graph_of(word)
    assert NeckGraph.from_json(graph.to_json()) == graph
    assert "out" in as_text(graph)
    assert "out" in as_svg(graph)
    neck, expected = build_neck(graph), cost(graph, (72, 56))
    own = [p for name, p in neck.named_parameters() if isinstance(word, Op) or ".merge." in name]
    assert word.learns == bool(own)
    assert set(word.idle_fields) <= {field.name for field in dataclasses.fields(word)}
    inputs = maps((72, 56), features=graph.inputs)
    assert counted(graph, (72, 56), "cpu")[0] == expected.macs
    assert sum(p.numel() for p in neck.parameters()) == expected.params
    (x,) = neck(inputs)
    assert tuple(x.shape[-2:]) == expected.nodes[0].size
    assert x.shape[1] == graph.channels_of("out")
    assert torch.isfinite(x).all()


IDS = json.loads((Path(__file__).parents[1] / "ids.json").read_text())


def test_ids_are_those_of_every_store_there_is():
    """Another id would orphan the results that stand under it: what is new is added to the file, the rest stays."""
    necks = {name: create_graph(name, RESNET50, (3, 4, 5, 6), 64).id for name in list_necks()}
    assert necks == IDS["necks"]
    assert {str(word): graph_of(word).id for word in words()} == IDS["words"]


def test_a_second_call_gives_the_same_and_leaves_the_inputs_alone():
    neck = build_neck(create_graph("fpn", FEATURES, (2, 3, 4, 5, 6), 16)).eval()
    inputs = maps((64, 64))
    before = [x.clone() for x in inputs]
    first, second = neck(inputs), neck(inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    assert len(inputs) == len(FEATURES)


@pytest.mark.parametrize("name", necks())
def test_exports_as_one_graph(name):
    neck = build_neck(create_graph(name, FEATURES, (2, 3, 4, 5, 6), 16)).eval()
    inputs = maps((64, 96))
    expected = neck(inputs)
    exported = torch.export.export(neck, (inputs,)).module()
    for a, b in zip(expected, exported(inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["pafpn", "asff", "fapn", "nas_fpn", pytest.param("opa_fpn", marks=pytest.mark.slow)])
def test_compiles_to_one_graph(name):
    chosen = {"repeats": 1} if "repeats" in options(name) else {}
    neck = build_neck(create_graph(name, FEATURES, (2, 3, 4, 5, 6), 16, **chosen)).eval()
    inputs = maps((64, 96))
    compiled = torch.compile(neck, backend="eager", fullgraph=True)
    for a, b in zip(neck(inputs), compiled(inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", list_necks())
def test_a_value_of_another_kind_is_refused_by_the_options_name(name):
    for option, default in options(name).items():
        wrong = ["never"] if choices(name)[option] or isinstance(default, bool) else []
        wrong += [True, 1.5, "3"] if type(default) is int else []
        wrong += ["half", None] if isinstance(default, float) else []
        for value in wrong:
            with pytest.raises(InputError, match=option):
                create_graph(name, FEATURES, (3, 4), 16, **{option: value})


def test_fast_normalised_equals_the_papers_formula():
    merge = WeightedSum(3, kind="fast_normalised", eps=1e-4)
    with torch.no_grad():
        merge.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
    xs = [torch.randn(1, 2, 3, 3) for _ in range(3)]
    expected = (0.5 * xs[0] + 2.0 * xs[2]) / (2.5 + 1e-4)
    torch.testing.assert_close(merge(xs), expected)


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(("stride", "kernel"), [(2, 2), (2, 3), (4, 4), (4, 5), (4, 3)])
@pytest.mark.parametrize("side", [8, 9, 11, 13])
def test_pools_equal_a_slow_loop(kind, stride, kernel, side):
    x = torch.randn(1, 1, side, side)
    out = -(-side // stride)
    before = 0 if kernel == stride else kernel // 2
    expected = torch.empty(1, 1, out, out)
    for i, j in itertools.product(range(out), repeat=2):
        rows = [r for r in range(i * stride - before, i * stride - before + kernel) if 0 <= r < side]
        cols = [c for c in range(j * stride - before, j * stride - before + kernel) if 0 <= c < side]
        window = x[0, 0, rows][:, cols]
        expected[0, 0, i, j] = window.max() if kind == "max_pool" else window.mean()
    torch.testing.assert_close(Downsample(kind, stride, kernel)(x, (out, out)), expected)


def test_fit_cuts_and_repeats():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert fit(x, (2, 3)) is x
    assert fit(x, (1, 4)).tolist() == [[[[0, 1, 2, 2]]]]


def test_build_neck_names_both_sides_of_a_mismatch():
    graph = create_graph("fpn", FEATURES, (3, 4, 5), 16)
    with pytest.raises(InputError, match=r"graph was made for .*P5: 48ch.*got .*P5: 32ch"):
        build_neck(graph, (*FEATURES[:3], FeatureSpec(5, 32, 32)))
    with pytest.raises(InputError, match="expected 4 feature maps, C2, C3, C4, C5, got 3"):
        build_neck(graph)(maps((64, 64))[1:])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: create_graph("fpm", FEATURES), UnknownNameError, "unknown neck 'fpm': did you mean 'fpn'"),
        (lambda: create_graph("fpn", FEATURES, merg="sum"), UnknownNameError, "did you mean 'merge'"),
        (lambda: create_graph("fpn", FEATURES, merge="summ"), UnknownNameError, "did you mean 'sum'"),
        (lambda: create_graph("fpn", FEATURES, (3, 5)), InputError, "contiguous"),
        (lambda: create_graph("fpn", FEATURES, (6, 7)), InputError, "begin at P5, where the features end"),
        (
            lambda: cost(create_graph("fpn", FEATURES), input_sizes={3: (4, 4)}),
            InputError,
            r"each of the levels \[2, 3, 4, 5\]",
        ),
        (lambda: create_graph("fpn", FEATURES, ()), InputError, "at least one level in out_levels"),
        (lambda: create_graph("fpn", FEATURES, (1, 2)), InputError, "P1 asked for, but the features start at P2"),
        (lambda: create_graph("fpn", FEATURES, repeats=0), InputError, "repeats .* got 0"),
        (lambda: create_graph("fpn", FEATURES, channels=0), InputError, "channels .* got 0"),
        (lambda: create_graph("fpn", ()), InputError, "got none"),
        (lambda: create_graph("fpn", FEATURES[::-1]), InputError, "finest first"),
        (lambda: create_graph("fpn", (FEATURES[0], FEATURES[2]), (2, 3, 4)), InputError, r"levels \[3\] lie inside"),
        (lambda: cost(create_graph("fpn", FEATURES), (0, 5)), InputError, "at least 1 pixel"),
        (lambda: cost(create_graph("fpn", FEATURES)), InputError, "either image_size"),
    ],
)
def test_wrong_calls_say_what_to_type(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["values", "type", "training"])
def test_names_that_torch_takes_are_refused_by_name(name):
    graph = NeckGraph((FeatureSpec(3, 8, 8),), (Node(name, 3, (Edge("C3"),), ops=(Conv(4, 1),)),), (name,))
    with pytest.raises(GraphError, match=f"node '{name}'"):
        build_neck(graph)


@pytest.mark.parametrize("name", list_necks())
def test_every_family_is_documented(name):
    text = describe(name)
    assert len(text.splitlines()) > 5
    for option in options(name):
        assert f"{option}:" in text
