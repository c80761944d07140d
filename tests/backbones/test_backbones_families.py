"""One small model of every family of timm: maps where they belong, and their values timm's own."""

from typing import Any

import pytest
import timm
import torch
from torch.nn import functional as F

from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.backbones.grid import to_grid
from fpn_bench.backbones.probe import probe
from fpn_bench.pyramid import FeatureSpec, ImageSize, level_sizes, map_size

LEVELS = (3, 4, 5)
SIZE: ImageSize = (96, 160)

# The smallest of each family, or nearly: those small enough to look at their values here, and the larger ones.
SMALL = [
    "starnet_s050",
    "dla46x_c",
    "mobilevit_xxs",
    "edgenext_xx_small",
    "mobilenetv3_small_050",
    "ese_vovnet19b_slim_dw",
    "repghostnet_050",
    "tinynet_d",
    "efficientvit_m0",
    "ghostnet_050",
    "regnetx_002",
    "cspnext_tiny",
    "xcit_nano_12_p8_224",
    "cs3darknet_focus_s",
    "efficientvit_b0",
    "swiftformer_xs",
    "efficientformerv2_s0",
    "pvt_v2_b0",
    "convnext_atto",
    "fasternet_t0",
    "lcnetv2_small",
    "inception_next_atto",
    "rexnet_100",
    "mobileone_s1",
    "pit_ti_224",
    "hardcorenas_a",
    "repvit_m1",
    "coat_tiny",
    "eva02_tiny_patch14_224",
    "convit_tiny",
    "deit_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "gmlp_ti16_224",
    "hgnetv2_b0",
    "shvit_s1",
    "vit_tiny_r_s16_p8_224",
    "cpubone_nano",
    "iformer_s",
    "efficientvim_m1",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "densenet121",
    "nf_regnet_b0",
    "dpn48b",
    "fastvit_s12",
    "visformer_tiny",
    "eca_botnext26ts_256",
    "resnest14d",
    "csatv2",
    "resnetv2_18",
    "resnet18",
    "legacy_seresnet18",
    "cait_xxs24_224",
    "skresnet18",
    "gcvit_xxtiny",
    "tiny_vit_5m_224",
    "nest_tiny",
    "mvitv2_tiny",
    "inception_v3",
    "swin_tiny_patch4_window7_224",
]
LARGE = [
    "hrnet_w18_small",
    "lowformer_b0",
    "convmixer_768_32",
    "vit_srelpos_small_patch16_224",
    "vitamin_small_224",
    "legacy_xception",
    "tnt_s_legacy_patch16_224",
    "rdnet_tiny",
    "twins_svt_small",
    "res2net50_26w_4s",
    "caformer_s18",
    "volo_d1_224",
    "sam2_hiera_tiny",
    "xception41p",
    "hiera_tiny_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "davit_tiny",
    "focalnet_tiny_srf",
    "selecsls42",
    "tresnet_m",
    "nextvit_small",
    "efficientformer_l1",
    "sequencer2d_s",
    "levit_384_s8",
    "inception_v4",
    "inception_resnet_v2",
    "mobilenetv5_base",
    "pnasnet5large",
    "samvit_base_patch16_224",
    "beit_base_patch16_224",
    "qwen3_vit_88m",
    "nasnetalarge",
    "naflexvit_base_patch16_siglip",
    "vgg11",
    "gemma4_vit_167m",
    "deepseek_vit_412m",
]
REFUSED = ("crossvit_tiny_240",)  # see test_backbones_probe
NOT_ON_META = ("gemma4_vit_167m", "sequencer2d_s")  # reads values; its LSTM is slow there


def timms_own(backbone: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """All maps by timm's features_only wrapper, NCHW, built by the same recipe and with the same weights."""
    # tresnet lists its input as a map, which no wrapper gives.
    indices = [i for i, info in enumerate(backbone.model.feature_info) if info.get("module") != ""]
    reference = timm.create_model(backbone.name, features_only=True, out_indices=indices, **backbone.recipe.options)
    reference.eval()
    ours, names = backbone.model.state_dict(), list(reference.state_dict())
    # Some wrappers rename modules: then the weights go over by order.
    same = [k for k in names if k.removeprefix("model.") in ours]
    pairs = zip(same if len(same) == len(ours) else names, ours.values(), strict=False)
    wrong = reference.load_state_dict(dict(pairs), strict=False)
    assert not wrong.unexpected_keys
    with torch.no_grad():
        maps = reference(images)
    if str(getattr(reference, "output_fmt", "NCHW")).endswith("NHWC"):
        return [m.permute(0, 3, 1, 2) for m in maps]
    return list(maps)


def of_level(maps: list[torch.Tensor], spec: FeatureSpec, images: torch.Tensor) -> torch.Tensor:
    """The last of the maps nearest in size that have the level's channels."""
    wanted = images.shape[3] / spec.stride
    return min((m for m in reversed(maps) if m.shape[1] == spec.channels), key=lambda m: abs(m.shape[3] - wanted))


def check_shapes(backbone: Backbone, maps: tuple[torch.Tensor, ...]) -> None:
    size = backbone.image_size
    assert size is not None
    own = {spec.level: map_size(size, spec.level) for spec in backbone.trunk_features}
    sizes = level_sizes(own, LEVELS)
    assert backbone.levels == LEVELS
    assert [tuple(m.shape) for m in maps] == [(1, s.channels, *sizes[s.level]) for s in backbone.features]


def check_values(name: str) -> None:
    backbone = create_backbone(name, LEVELS, image_size=SIZE)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trunk = backbone.trunk(images)
        maps = trunk if backbone.adapter is None else backbone.adapter(trunk)
    check_shapes(backbone, maps)
    assert all(m.isfinite().all() for m in maps)
    assert all(m.is_contiguous() for m in trunk)

    height, width = padded = backbone.recipe.padded(SIZE)
    images = F.pad(images, (0, width - SIZE[1], 0, height - SIZE[0]))
    expected = timms_own(backbone, images)
    found = probe(name, SIZE)
    strides = dict(zip((s.level for s in found.features), found.strides, strict=True))
    for spec, actual in zip(backbone.trunk_features, trunk, strict=True):
        theirs = of_level(expected, spec, images)
        on_grid = to_grid(theirs, SIZE, padded, spec.level, strides[spec.level])
        # Eight steps of float32 at the size of the map's values: what is computed alike is rounded by the values' size.
        torch.testing.assert_close(actual, on_grid, rtol=0, atol=1e-6 * max(1.0, float(on_grid.abs().max())))


def every_third(names: list[str]) -> list[Any]:
    """Those that are ordinary; the two after each take their turn with the slow tests."""
    return [pytest.param(name, marks=[pytest.mark.slow] if i % 3 else []) for i, name in enumerate(names)]


@pytest.mark.parametrize("name", every_third(SMALL))
def test_values_are_timms_own(name: str) -> None:
    check_values(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_values_are_timms_own_in_large_models(name: str) -> None:
    check_values(name)


@pytest.mark.parametrize("name", every_third([name for name in LARGE if name not in NOT_ON_META]))
def test_maps_of_large_models_are_where_they_belong(name: str) -> None:
    backbone = create_backbone(name, LEVELS, image_size=SIZE, device="meta")
    check_shapes(backbone, backbone(torch.zeros(1, 3, *SIZE, device="meta")))


def test_every_family_has_one() -> None:
    families = {timm.model_entrypoint(name).__module__ for name in timm.list_models()}
    assert {timm.model_entrypoint(name).__module__ for name in (*SMALL, *LARGE, *REFUSED)} == families
