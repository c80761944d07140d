"""Levels that a model lacks: made by an adapter, against plain torch; taps of its depths."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fpn_bench.backbones import create_backbone
from fpn_bench.backbones.adapters import plan
from fpn_bench.backbones.probe import probe
from fpn_bench.errors import InputError
from fpn_bench.graph import cost
from fpn_bench.pyramid import FeatureSpec, map_size

VIT = "vit_tiny_patch16_224"
SIZE = (96, 160)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def test_simple_pyramid_is_plain_torch(images: torch.Tensor) -> None:
    backbone = create_backbone(VIT, (2, 3, 4, 5, 6), image_size=SIZE)
    assert backbone.trunk_features == (FeatureSpec(4, 192, 16),)
    assert [(s.level, s.channels, s.stride) for s in backbone.features] == [
        (2, 48, 4),
        (3, 96, 8),
        (4, 192, 16),
        (5, 192, 32),
        (6, 192, 64),
    ]
    (trunk,) = backbone.trunk(images)
    steps = backbone.adapter.steps
    to_p2 = [m for m in steps["made2"].modules() if isinstance(m, nn.ConvTranspose2d)]
    (norm,) = (m for m in steps["made2"].modules() if hasattr(m, "eps"))
    (to_p3,) = (m for m in steps["made3"].modules() if isinstance(m, nn.ConvTranspose2d))

    def up(x: torch.Tensor, conv: nn.ConvTranspose2d) -> torch.Tensor:
        return F.conv_transpose2d(x, conv.weight, conv.bias, stride=2)

    half = up(trunk, to_p2[0]).permute(0, 2, 3, 1)
    half = F.gelu(F.layer_norm(half, (96,), norm.weight, norm.bias, 1e-6)).permute(0, 3, 1, 2)
    expected = [up(half, to_p2[1]), up(trunk, to_p3), trunk, F.max_pool2d(trunk, 2), None]
    expected[4] = F.max_pool2d(expected[3], 2, ceil_mode=True)
    for actual, wanted in zip(backbone(images), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_levels_between_and_above_are_made_of_the_nearest(images: torch.Tensor) -> None:
    backbone = create_backbone("efficientvim_m1", (3, 4), image_size=SIZE)
    assert [s.level for s in backbone.trunk_features] == [4]
    backbone = create_backbone("resnet18", (5, 7), image_size=SIZE)
    assert [s.level for s in backbone.trunk_features] == [5]
    c5, p7 = backbone(images)
    torch.testing.assert_close(p7, F.max_pool2d(F.max_pool2d(c5, 2, ceil_mode=True), 2, ceil_mode=True))


def test_what_the_trunk_has_needs_no_adapter(images: torch.Tensor) -> None:
    for adapter in ("simple", "none"):
        backbone = create_backbone("resnet18", image_size=SIZE, adapter=adapter)
        assert backbone.adapter is None
        assert backbone.trunk_features == backbone.features
        assert all(torch.equal(a, b) for a, b in zip(backbone(images), backbone.trunk(images), strict=True))


def test_taps_are_depths(images: torch.Tensor) -> None:
    backbone = create_backbone(VIT, image_size=SIZE, adapter="taps")
    assert backbone.trunk_features == tuple(FeatureSpec(level, 192, 2**level) for level in (3, 4, 5))
    depths = backbone.model.forward_intermediates(images, norm=False, intermediates_only=True)
    p3, p4, p5 = backbone.trunk(images)
    assert len(depths) == 12
    assert torch.equal(p4, depths[7])
    torch.testing.assert_close(
        p5, F.avg_pool2d(depths[11], 2, ceil_mode=True, count_include_pad=False), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        p3, F.interpolate(depths[3], scale_factor=2, mode="bilinear", align_corners=False), rtol=1e-5, atol=1e-5
    )
    for actual, tap in zip(backbone(images), (p3, p4, p5), strict=True):
        expected = F.layer_norm(tap.permute(0, 2, 3, 1), (192,), eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_taps_far_above_are_pooled() -> None:
    backbone = create_backbone(VIT, (4, 5, 6, 7), image_size=SIZE, adapter="taps")
    assert [s.level for s in backbone.trunk_features] == [4, 5]
    assert backbone.levels == (4, 5, 6, 7)
    maps = backbone(torch.zeros(1, 3, *SIZE))
    assert [tuple(m.shape[2:]) for m in maps] == [map_size(SIZE, level) for level in (4, 5, 6, 7)]


def test_more_taps_than_depths() -> None:
    with pytest.raises(InputError, match="has 2 depths to tap, fewer than"):
        plan(replace(probe(VIT, SIZE), maps=2), (3, 4, 5), "taps")


def test_the_adapter_is_a_graph_that_trains_and_the_trunk_is_frozen(images: torch.Tensor) -> None:
    backbone = create_backbone(VIT, image_size=SIZE).train()
    assert backbone.adapter.graph.inputs == backbone.trunk_features
    assert backbone.adapter.graph.out_features == backbone.features
    assert cost(backbone.adapter.graph, SIZE).params == sum(p.numel() for p in backbone.adapter.parameters()) > 0
    assert not backbone.model.training
    sum(m.sum() for m in backbone(images)).backward()
    assert all(p.grad is not None for p in backbone.adapter.parameters())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())


def test_the_adapters_weights_come_from_the_seed() -> None:
    one, same, other = (create_backbone(VIT, (3,), seed=s).adapter.state_dict() for s in (1, 1, 2))
    (name,) = (k for k in one if k.endswith("weight"))
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
