"""FPN against torchvision's own, with torchvision's weights copied in: equal to the bit."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from fpn_bench.graph import cost
from fpn_bench.nn.neck import build_neck
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.zoo import create_graph

FEATURES = (FeatureSpec(3, 24, 8), FeatureSpec(4, 48, 16), FeatureSpec(5, 96, 32))
SIZES = {
    "even": [(32, 40), (16, 20), (8, 10)],
    "odd": [(43, 85), (22, 43), (11, 22)],
    "rounded down": [(41, 33), (20, 16), (10, 8)],
    "one pixel": [(4, 4), (2, 2), (1, 1)],
}


def copy_weights(ours: torch.nn.Module, theirs: FeaturePyramidNetwork, levels: list[int], norm: bool) -> None:
    keys = {"0.weight": "0.weight", "0.bias": "0.bias"}
    if norm:
        keys = {f"{i}.{n}": f"{i}.{n}" for i, n in [(0, "weight"), (1, "weight"), (1, "bias"), (1, "running_mean")]}
        keys |= {"1.running_var": "1.running_var", "1.num_batches_tracked": "1.num_batches_tracked"}
    state = {}
    for i, level in enumerate(levels):
        for mine, source in keys.items():
            state[f"steps.lateral{level}.after.{mine}"] = theirs.inner_blocks[i].state_dict()[source]
            state[f"steps.P{level}.after.{mine}"] = theirs.layer_blocks[i].state_dict()[source]
    if isinstance(theirs.extra_blocks, LastLevelP6P7):  # which has no norm whatever the FPN has
        for name, block, place in (("P6", theirs.extra_blocks.p6, 0), ("P7", theirs.extra_blocks.p7, 1)):
            for key, value in block.state_dict().items():
                state[f"steps.{name}.paths.0.ops.{place}.conv.{key}"] = value
    ours.load_state_dict(state)


def run_both(ours, theirs, sizes):
    torch.manual_seed(1)
    maps = [torch.randn(2, s.channels, *size) for s, size in zip(FEATURES, sizes, strict=True)]
    mine_in = [x.clone().requires_grad_() for x in maps]
    theirs_in = [x.clone().requires_grad_() for x in maps]
    mine = ours(mine_in)
    expected = list(theirs(OrderedDict((str(i), x) for i, x in enumerate(theirs_in))).values())
    return mine, expected, mine_in, theirs_in


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize(
    ("extra", "out_levels", "options", "norm"),
    [
        (None, (3, 4, 5), {}, False),
        (None, (3, 4, 5), {}, True),
        (LastLevelMaxPool(), (3, 4, 5, 6), {"extra": "subsample"}, False),
        (LastLevelMaxPool(), (3, 4, 5, 6), {"extra": "subsample"}, True),
        (LastLevelP6P7(32, 32), (3, 4, 5, 6, 7), {"extra": "on_output"}, False),
        (LastLevelP6P7(32, 32), (3, 4, 5, 6, 7), {"extra": "on_output", "extra_norm": False}, True),
        (LastLevelP6P7(96, 32), (3, 4, 5, 6, 7), {"extra": "on_input"}, False),
        (LastLevelP6P7(96, 32), (3, 4, 5, 6, 7), {"extra": "on_input", "extra_norm": False}, True),
    ],
    ids=[
        "plain",
        "plain bn",
        "maxpool",
        "maxpool bn",
        "p6p7 on P5",
        "p6p7 on P5 bn",
        "p6p7 on C5",
        "p6p7 on C5 bn",
    ],
)
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_equals_torchvision_to_the_bit(sizes, extra, out_levels, options, norm, train):
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(
        [s.channels for s in FEATURES], 32, extra, norm_layer=torch.nn.BatchNorm2d if norm else None
    ).train(train)
    graph = create_graph("fpn", FEATURES, out_levels, 32, norm="batch" if norm else "none", **options)
    ours = build_neck(graph, FEATURES).train(train)
    copy_weights(ours, theirs, [3, 4, 5], norm)
    if train and norm and sizes[-1] == (1, 1):
        sizes = [(8, 8), (4, 4), (2, 2)]
    mine, expected, mine_in, theirs_in = run_both(ours, theirs, sizes)
    assert len(mine) == len(expected) == len(out_levels)
    for a, b in zip(mine, expected, strict=True):
        assert torch.equal(a, b)
    sum((x**2).sum() for x in mine).backward()
    sum((x**2).sum() for x in expected).backward()
    for a, b in zip(mine_in, theirs_in, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_parameter_counts_equal_torchvision():
    theirs = FeaturePyramidNetwork([24, 48, 96], 32, LastLevelP6P7(96, 32))
    ours = build_neck(create_graph("fpn", FEATURES, (3, 4, 5, 6, 7), 32, extra="on_input"))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ["fpn", "pafpn", "channel_mapper", "top_only"])
def test_extra_convs_may_be_without_norm(name):
    normed, bare = (
        create_graph(name, FEATURES, (3, 4, 5, 6, 7), 32, norm="batch", extra="on_output", extra_norm=extra_norm)
        for extra_norm in (True, False)
    )
    assert cost(normed, (64, 64)).params - cost(bare, (64, 64)).params == 2 * (2 * 32 - 32)  # for a bias each
    plain = create_graph(name, FEATURES, (3, 4, 5, 6, 7), 32, extra="on_output", extra_norm=False)
    assert plain.id == create_graph(name, FEATURES, (3, 4, 5, 6, 7), 32, extra="on_output").id


def test_laterals_may_be_without_norm():
    normed, bare = (
        create_graph("fpn", FEATURES, (3, 4, 5), 32, norm="batch", lateral_norm=lateral_norm)
        for lateral_norm in (True, False)
    )
    assert cost(normed, (64, 64)).params - cost(bare, (64, 64)).params == 3 * (2 * 32 - 32)
    assert all(len(node.ops) == 1 for node in bare.nodes if node.name.startswith("lateral"))
