"""EfficientDet's necks against effdet: its weights copied over give its outputs, its gradients and its figures."""

from __future__ import annotations

import copy

import pytest
import torch
from effdet.config import get_efficientdet_config, set_config_writeable
from effdet.efficientdet import BiFpn
from torch import nn

from fpn_bench.errors import InputError
from fpn_bench.graph import Conv, Norm, Resample, cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec, map_size
from fpn_bench.zoo import create_graph

B0 = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 40), (4, 112), (5, 320)))
B2 = tuple(FeatureSpec(k, c, 2**k) for k, c in ((3, 48), (4, 120), (5, 352)))
METHODS = {"fa": "fast_normalised", "attn": "softmax", "sum": "sum"}
CASES = [
    ("bifpn", "fa", {}, {}),
    ("bifpn", "attn", {}, {}),
    ("bifpn", "sum", {}, {}),
    ("qufpn", "fa", {}, {}),
    ("qufpn", "sum", {}, {}),
    ("pan", "fa", {}, {}),
    ("pan", "sum", {}, {}),
    ("bifpn", "fa", {"redundant_bias": True}, {"redundant_bias": True}),
    ("bifpn", "fa", {"conv_bn_relu_pattern": True}, {"pre_activation": False}),
    ("bifpn", "fa", {"separable_conv": False, "act_type": "relu6"}, {"separable": False, "activation": "relu6"}),
    ("bifpn", "fa", {"upsample_type": "bilinear"}, {"up": "bilinear"}),
    ("bifpn", "fa", {"max_level": 5, "num_levels": 3}, {}),
    ("qufpn", "fa", {"max_level": 6, "num_levels": 4, "fpn_cell_repeats": 1}, {"repeats": 1}),
    ("bifpn", "fa", {"fpn_channels": 40, "fpn_cell_repeats": 2}, {"repeats": 2}),  # P3 needs no lateral
]


def effdet_neck(name, method, features, size, changes) -> BiFpn:
    config = get_efficientdet_config("efficientdet_d0")
    set_config_writeable(config)
    config.fpn_name = f"{name}_{method}"
    config.image_size = (size, size)
    for key, value in changes.items():
        config[key] = value
    return BiFpn(config, [{"num_chs": s.channels, "reduction": s.stride} for s in features])


def layers_of(module):
    """Convolutions and norms in the order they stand, and apart from them the learned weights of the merges."""
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    return layers, [p for key, p in module.named_parameters() if "edge_weights" in key or "merge" in key]


def pair(name, method, changes, options, size=128, features=B0):
    """effdet's neck, nothing in it at zero or one, and ours with its values."""
    torch.manual_seed(0)
    reference = effdet_neck(name, method, features, size, changes)
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            if parameter.ndim == 1:  # merges, norms, biases; one weight in four of a merge is negative
                parameter.add_(torch.randn_like(parameter), alpha=1.5 if "edge_weights" in key else 0.3)
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    top = 2 + changes.get("num_levels", 5)
    channels = changes.get("fpn_channels", 64)
    graph = create_graph(name, features, range(3, top + 1), channels, fusion=METHODS[method], **options)
    neck = build_neck(graph, features)
    theirs, ours = layers_of(reference), layers_of(neck)
    for kind in (0, 1):
        assert [tuple(p.shape for p in m.parameters()) if kind == 0 else m.shape for m in theirs[kind]] == [
            tuple(p.shape for p in m.parameters()) if kind == 0 else m.shape for m in ours[kind]
        ]
    with torch.no_grad():
        for mine, source in zip(ours[0], theirs[0], strict=True):
            mine.load_state_dict(source.state_dict())
        for mine, source in zip(ours[1], theirs[1], strict=True):
            mine.copy_(source)
    return reference, neck


def close(mine, theirs):
    """To 1e-5 of the largest value, or of one where that is smaller."""
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(mine / scale, theirs / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "method", "changes", "options"), CASES)
def test_outputs_gradients_and_statistics_are_effdets(name, method, changes, options, training):
    size = 64
    reference, neck = (m.train(training) for m in pair(name, method, changes, options, size))
    inputs = [torch.randn(4, s.channels, *map_size((size, size), s.level)) for s in B0]
    mine = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    got = neck(mine)
    wanted = reference(list(theirs))  # it appends to the list that it is given
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        close(a, b)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator) / x.numel() for x in wanted]
    sum((a * w).sum() for a, w in zip(got, weights, strict=True)).backward()
    sum((b * w).sum() for b, w in zip(wanted, weights, strict=True)).backward()
    for a, b in zip(mine, theirs, strict=True):
        close(a.grad, b.grad)
    (ours, merges), (layers, edge_weights) = layers_of(neck), layers_of(reference)
    for a, b in zip(ours, layers, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            close(p.grad, q.grad)
        for p, q in zip(a.buffers(), b.buffers(), strict=True):
            close(p.float(), q.float())
    for p, q in zip(merges, edge_weights, strict=True):
        close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("name", "features", "channels", "options", "size", "params", "giga_macs"),
    [
        ("bifpn", B0, 64, {}, 512, 194_361, 0.136),
        ("bifpn", B0, 64, {"redundant_bias": True}, 512, 196_281, 0.136),
        ("bifpn", B2, 112, {"redundant_bias": True, "repeats": 5}, 768, 708_159, 1.216),
        ("qufpn", B0, 64, {}, 512, 442_832, 0.354),
    ],
)
def test_published_figures(name, features, channels, options, size, params, giga_macs):
    costs = cost(create_graph(name, features, (3, 4, 5, 6, 7), channels, **options), (size, size))
    assert costs.params == params
    assert round(costs.macs / 1e9, 3) == giga_macs


@pytest.mark.parametrize(("channels", "repeats"), [(64, 3), (88, 4), (160, 6), (384, 8)])
@pytest.mark.parametrize("name", ["bifpn", "qufpn", "pan"])
def test_params_of_other_widths_and_repeats_are_effdets(name, channels, repeats):
    changes = {"fpn_channels": channels, "fpn_cell_repeats": repeats}
    with torch.device("meta"):
        reference = effdet_neck(name, "fa", B2, 512, changes)
    graph = create_graph(name, B2, (3, 4, 5, 6, 7), channels, repeats=repeats)
    assert cost(graph, (512, 512)).params == sum(p.numel() for p in reference.parameters())


def test_every_later_cell_of_bifpn_has_the_closed_form_of_its_paper():
    def params(repeats):
        return cost(create_graph("bifpn", B0, (3, 4, 5, 6, 7), 64, repeats=repeats), (64, 64)).params

    c = 64
    assert params(3) - params(2) == params(2) - params(1) == 8 * (9 * c + c**2 + 2 * c) + 19 == 38_419


def test_levels_may_share_their_lateral():
    own, shared = (
        create_graph("bifpn", B0, (3, 4, 5, 6, 7), 64, repeats=1, lateral=lateral) for lateral in ("edge", "level")
    )
    saved = 64 * (112 + 320) + 2 * 2 * 64  # P4 and P5 are read twice
    assert cost(own, (64, 64)).params - cost(shared, (64, 64)).params == saved


@pytest.mark.parametrize("fusion", ["fast_normalised", "softmax"])
def test_each_channel_may_have_its_own_weights(fusion):
    """google/automl's `channel_fastattn` and `channel_attn`."""
    one, each = (
        create_graph("bifpn", B0, (3, 4, 5), 64, repeats=1, fusion=fusion, per_channel=per_channel)
        for per_channel in (False, True)
    )
    weights = 2 + 2 + 3 + 2  # inputs of the nodes
    assert cost(each, (64, 64)).params - cost(one, (64, 64)).params == weights * (64 - 1)
    neck = build_neck(each).eval()
    merge = neck.steps["cell1_top_down4"].merge
    w = torch.randn(2, 64)
    with torch.no_grad():
        merge.weights.copy_(w.reshape(merge.weights.shape))
    xs = [torch.randn(1, 64, 3, 3) for _ in range(2)]
    share = w.softmax(0) if fusion == "softmax" else w.relu() / (w.relu().sum(0) + 1e-4)
    torch.testing.assert_close(merge(xs), sum(s[:, None, None] * x for s, x in zip(share, xs, strict=True)))
    with pytest.raises(InputError, match="per_channel=True, got fusion='sum'; try"):
        create_graph("bifpn", B0, (3, 4, 5), 64, fusion="sum", per_channel=True)


def test_eps_is_that_of_the_fast_normalised_merges():
    for name in ("bifpn", "pan", "qufpn"):
        kinds = {node.merge.eps for node in create_graph(name, B0, (3, 4, 5), 64, eps=1e-5).nodes if node.merge.learns}
        assert kinds == {1e-5}
    plain = create_graph("bifpn", B0, (3, 4, 5), 64, fusion="sum")
    assert create_graph("bifpn", B0, (3, 4, 5), 64, fusion="sum", eps=1e-5).id == plain.id
    with pytest.raises(InputError, match=r"expected eps .* got 0"):
        create_graph("bifpn", B0, (3, 4, 5), 64, eps=0)


def test_the_first_extra_level_may_be_made_by_a_strided_conv():
    """PaddleDetection's BiFPN: a conv with norm of C5, pools behind it, laterals shared by all readers of a level."""
    graph = create_graph("bifpn", B0, (3, 4, 5, 6, 7), 64, repeats=1, lateral="level", extra="strided_conv")
    ops = {node.name: (node.inputs[0].source, *node.inputs[0].ops) for node in graph.nodes if len(node.inputs) == 1}
    assert ops["extra6"] == ("C5", Conv(64, 3, stride=2, bias=False), Norm(eps=1e-3, momentum=0.01))
    assert ops["extra7"] == ("extra6", Resample("max_pool", "stride+1"))
    cell = 8 * (9 * 64 + 64**2 + 2 * 64) + 19
    laterals = sum(s.channels * 64 + 2 * 64 for s in B0)
    assert cost(graph, (64, 64)).params == cell + laterals + 9 * 320 * 64 + 2 * 64


def test_a_node_of_one_input_has_no_weight_that_could_not_learn():
    graph = create_graph("pan", B0, (3, 4, 5), 64, fusion="softmax", repeats=1)
    kinds = {len(node.inputs): set() for node in graph.nodes if node.name.startswith("cell")}
    for node in graph.nodes:
        if node.name.startswith("cell"):
            kinds[len(node.inputs)].add(node.merge.kind)
    assert kinds == {1: {"sum"}, 2: {"softmax"}}


@pytest.mark.parametrize("pre_activation", [True, False])
@pytest.mark.parametrize("fusion", METHODS.values())
@pytest.mark.parametrize("name", ["bifpn", "pan", "qufpn"])
def test_maps_keep_their_spread_without_norms(name, fusion, pre_activation):
    for activation in ("none", "relu6", "silu", "gelu"):
        torch.manual_seed(0)
        chosen = {"norm": "none", "activation": activation, "fusion": fusion, "pre_activation": pre_activation}
        neck = build_neck(create_graph(name, B0, (3, 4, 5, 6), 16, **chosen))
        with torch.no_grad():
            outputs = neck([torch.randn(2, s.channels, *map_size((128, 96), s.level)) for s in B0])
        assert all(1e-3 < x.std() < 1e2 for x in outputs)


def test_the_reference_is_left_as_it_was():
    """The comparison copies weights out of it, and must not compare a module with itself."""
    reference, neck = pair("bifpn", "fa", {}, {})
    before = copy.deepcopy(reference.state_dict())
    neck([torch.randn(2, s.channels, *map_size((128, 128), s.level)) for s in B0])[0].sum().backward()
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())
    assert all(p.grad is None for p in reference.parameters())
