"""Backbones against timm's own features, and the errors of what cannot be built."""

import pytest
import timm
import torch
from timm.models import get_deprecated_models

from fpn_bench.backbones import Backbone, create_backbone, describe_backbone, list_backbones
from fpn_bench.backbones.models import architecture
from fpn_bench.errors import InputError, UnknownNameError
from fpn_bench.pyramid import FeatureSpec, map_size

# One small model a way timm builds features: custom classes, sequential stages, channels-last maps, pooling stages.
FAMILIES = [
    "tf_efficientnet_lite0",
    "resnet18",
    "convnext_atto",
    "mobilenetv3_small_050",
    "regnetx_002",
    "mambaout_femto",
    "hardcorenas_a",
    "pvt_v2_b0",
]


def _timm_features(name: str, backbone: Backbone, images: torch.Tensor) -> dict[int, torch.Tensor]:
    """Stride -> map by timm's default features_only wrapper with the same weights, NCHW."""
    reference = timm.create_model(name, features_only=True).eval()
    ours, theirs = backbone.model.state_dict(), reference.state_dict()
    # Wrappers rename some modules, so weights go over by order.
    assert [v.shape for v in ours.values()] == [v.shape for v in theirs.values()]
    reference.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    with torch.no_grad():
        maps = reference(images)
    if str(getattr(reference, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    return dict(zip(reference.feature_info.reduction(), maps, strict=True))


@pytest.mark.parametrize("image_size", [(96, 128), (101, 75)])
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_timms_own(name: str, image_size: tuple[int, int]) -> None:
    backbone = create_backbone(name, (2, 3, 4, 5), image_size=image_size)
    images = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(1))
    height, width = backbone.recipe.padded(image_size)
    padded = torch.nn.functional.pad(images, (0, width - image_size[1], 0, height - image_size[0]))
    expected = _timm_features(name, backbone, padded)
    maps = backbone(images)
    assert backbone.levels == (2, 3, 4, 5)
    assert backbone.adapter is None
    for spec, actual in zip(backbone.features, maps, strict=True):
        assert spec.stride == 2**spec.level
        assert actual.shape[1:] == (spec.channels, *map_size(image_size, spec.level))
        assert actual.is_contiguous()
        height, width = actual.shape[2:]
        torch.testing.assert_close(actual, expected[spec.stride][..., :height, :width], rtol=0, atol=0)


def test_windowed_model_takes_other_sizes_and_gives_nchw() -> None:
    backbone = create_backbone("swin_tiny_patch4_window7_224", image_size=(96, 160))
    assert [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 96, 160))] == [
        (1, 192, 12, 20),
        (1, 384, 6, 10),
        (1, 768, 3, 5),
    ]


def test_model_built_for_one_size_is_built_for_the_size_asked() -> None:
    backbone = create_backbone("pit_ti_224", image_size=(256, 320))
    assert [s.level for s in backbone.features] == [3, 4, 5]
    assert backbone(torch.zeros(1, 3, 256, 320))[0].shape == (1, 64, 32, 40)


@pytest.mark.parametrize("levels", [(5,), (3, 5), (1, 2, 3)])
def test_levels_are_those_asked_and_later_stages_are_cut_off(levels: tuple[int, ...]) -> None:
    backbone = create_backbone("resnet18", levels)
    whole = create_backbone("resnet18", (1, 2, 3, 4, 5))
    images = torch.randn(1, 3, 64, 64)
    everything = dict(zip(whole.levels, whole(images), strict=True))
    for level, actual in zip(backbone.levels, backbone(images), strict=True):
        assert torch.equal(actual, everything[level])
    assert (len(list(backbone.parameters())) < len(list(whole.parameters()))) == (levels[-1] < 5)
    assert not any(k.startswith(("model.fc", "fc")) for k in backbone.state_dict())


def test_valid_padding_has_the_nominal_stride() -> None:
    assert [s.stride for s in create_backbone("inception_v3", (3, 4, 5), device="meta").features] == [8, 16, 32]


def test_frozen_in_every_way() -> None:
    backbone = create_backbone("resnet18", (3,))
    backbone.train()
    torch.nn.Sequential(backbone).train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    (out,) = backbone(torch.randn(2, 3, 64, 64, requires_grad=True))
    assert not out.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_random_weights_come_from_the_seed_and_the_generator_stays() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    one, same, other = (create_backbone("mobilenetv3_small_050", (5,), seed=s) for s in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    weight = "model.conv_stem.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    assert (one.weights.id, one.weights.is_random) == ("random:seed7", True)


def test_normalisation_is_the_models_own() -> None:
    backbone = create_backbone("tf_efficientnet_lite0", (5,), device="meta")
    assert (backbone.mean, backbone.std, backbone.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert create_backbone("resnet18", (5,), device="meta").mean == (0.485, 0.456, 0.406)


def test_meta_backbone_has_shapes_only() -> None:
    backbone = create_backbone("resnet18", device="meta", image_size=(64, 96))
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert [tuple(m.shape[-2:]) for m in backbone(torch.zeros(1, 3, 64, 96, device="meta"))] == [
        (8, 12),
        (4, 6),
        (2, 3),
    ]
    with pytest.raises(InputError, match="leave out pretrained and weights"):
        create_backbone("resnet18", device="meta", pretrained=True)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "efficientvim_m1",
            {"adapter": "none"},
            r"has levels 4, 5, 6 \(strides 16, 32, 64\), not 3: ask for levels=\(4, 5, 6\), let adapter='simple' make",
        ),
        ("vit_tiny_patch16_224", {"adapter": "none"}, r"has levels 4 \(strides 16\), not 3, 5"),
        ("resnet18", {"levels": (3, 6), "adapter": "none"}, r"not 6: ask for levels=\(1, 2, 3, 4, 5\)"),
        ("resnet18", {"adapter": "taps"}, r"maps of several strides, .*: leave it at adapter='simple'"),
        ("vit_tiny_patch16_224", {"adapter": "tap"}, "expected adapter to be one of simple, taps, none, got 'tap'"),
        ("resnet18", {"levels": (4, 3)}, r"each of the levels once, finest first, .* got \(4, 3\)"),
        ("resnet18", {"levels": ()}, "each of the levels once, finest first"),
        (
            "crossvit_9_240",
            {"image_size": (256, 256)},
            "do not follow the image: one is 20x20 whatever the image's size",
        ),
        (
            "efficientformer_l1",
            {"image_size": (256, 256)},
            r"cannot take image_size=\(256, 256\) \(.*49.*\): its own size is image_size=\(224, 224\)",
        ),
        ("resnet18", {"pretrained": True, "weights": "w.pth"}, "got both; leave out pretrained or weights="),
    ],
)
def test_what_cannot_be_built_says_why(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        create_backbone(name, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_size_may_come_as_a_list() -> None:
    size: tuple[int, int] = [64, 96]  # type: ignore[assignment]
    assert create_backbone("resnet18", (3,), image_size=size, device="meta").image_size == (64, 96)
    assert describe_backbone("resnet18", size) == describe_backbone("resnet18", (64, 96))


@pytest.mark.parametrize("size", [(64,), (64, 64, 3), (0, 64), (64, -1), (64.0, 64), 64, "64", (None, 64)])
def test_what_is_no_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"expected image_size as \(height, width\) in whole pixels above 0"):
        create_backbone("resnet18", image_size=size)
    with pytest.raises(InputError, match=r"expected image_size as \(height, width\) in whole pixels above 0"):
        describe_backbone("resnet18", size)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet8", "resnet18"), ("resnet18.a9_in1k", "resnet18.a1_in1k"), ("", "fpn-bench backbones")]
)
def test_unknown_name_names_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        create_backbone(name)


def test_list_backbones() -> None:
    names = list_backbones()
    assert names == sorted(timm.list_models())
    assert list_backbones("tf_efficientnet_lite*") == [f"tf_efficientnet_lite{i}" for i in range(5)]
    assert list_backbones("no_such_*") == []


def test_describe_backbone() -> None:
    info = describe_backbone("resnet18")
    assert (info.family, info.reason) == ("resnet", "")
    assert info.features[2] == FeatureSpec(level=3, channels=128, stride=8)
    assert info.params == sum(p.numel() for p in create_backbone("resnet18").parameters())
    assert [s.level for s in describe_backbone("efficientvim_m1").features] == [4, 5, 6]
    fixed = describe_backbone("efficientformer_l1")
    assert fixed.features == ()
    assert "cannot take image_size=(256, 256)" in fixed.reason
    assert describe_backbone("efficientformer_l1", image_size=None).reason == ""
    with pytest.raises(UnknownNameError):
        describe_backbone("resnet_18x")


def test_channels_by_channel_first_for_every_layout() -> None:
    """At a size where no map is as high as it has channels, the channel axis can be told from the others."""
    for name in ("swin_tiny_patch4_window7_224", "mambaout_femto"):
        info = describe_backbone(name, image_size=(256, 256))
        published = timm.create_model(name, features_only=True, pretrained=False).feature_info.channels()
        assert [s.channels for s in info.features] == published


RENAMED = {old: new for old, new in get_deprecated_models().items() if new}


@pytest.mark.parametrize("name", sorted(get_deprecated_models()))
def test_a_name_that_timm_has_given_up_stands_for_its_successor(name: str) -> None:
    if name in RENAMED:
        assert architecture(name) == RENAMED[name].partition(".")[0]
        assert list_backbones(name) == [architecture(name)]
        with pytest.raises(UnknownNameError):
            architecture(f"{name}.in1k")
    else:
        with pytest.raises(UnknownNameError):
            architecture(name)


def test_the_successor_is_used_and_said(caplog) -> None:
    backbone = create_backbone("tf_efficientnet_b0_ns", image_size=(64, 64), device="meta")
    assert backbone.name == "tf_efficientnet_b0.ns_jft_in1k"
    assert describe_backbone("tf_efficientnet_b0_ns", (64, 64)).name == backbone.name
    assert caplog.text.count("timm calls backbone 'tf_efficientnet_b0_ns' 'tf_efficientnet_b0.ns_jft_in1k' now") <= 1
