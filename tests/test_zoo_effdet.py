"""EfficientDet's necks against effdet: its weights copied over give its outputs, its gradients and its figures."""

from __future__ import annotations

import copy

import pytest
import torch
from effdet.config import get_efficientdet_config, set_config_writeable
from effdet.efficientdet import BiFpn
from torch import nn

from fpn_bench.graph import cost
from fpn_bench.neck import build_neck
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


def test_the_reference_is_left_as_it_was():
    """The comparison copies weights out of it, and must not compare a module with itself."""
    reference, neck = pair("bifpn", "fa", {}, {})
    before = copy.deepcopy(reference.state_dict())
    neck([torch.randn(2, s.channels, *map_size((128, 128), s.level)) for s in B0])[0].sum().backward()
    assert all(torch.equal(before[k], v) for k, v in reference.state_dict().items())
    assert all(p.grad is None for p in reference.parameters())
