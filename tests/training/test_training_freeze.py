"""Freezing: what the protocol says of it, what is trained, and that a backbone in two parts is the whole one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

import fpn_bench as fb
from fpn_bench.backbones import Backbone, create_backbone
from fpn_bench.backbones.split import Prefix, Suffix, split_backbone
from fpn_bench.candidates.backbone import BackboneSource
from fpn_bench.data.coco import load_coco
from fpn_bench.data.dataset import DetectionDataset, ImageRecord
from fpn_bench.data.synthetic import write_synthetic
from fpn_bench.detection.detector import Detector
from fpn_bench.errors import InputError
from fpn_bench.nn.neck import build_neck
from fpn_bench.training import (
    FeatureCache,
    FeatureSource,
    HeadConfig,
    Protocol,
    TrainingRecipe,
    evaluate_detector,
    seeded,
    train_detector,
)
from fpn_bench.zoo import create_graph

SIZE = (96, 128)
SPLIT = ["test_resnet", "test_convnext", "test_efficientnet", "regnetx_002", "tiny_vit_5m_224", "test_mambaout"]
# In the first, all branches go on from C3 to C4; in the second a class token goes along with the map.
WHOLE = ["hrnet_w18_small", "pit_ti_224"]


def make(name: str, **options) -> Backbone:
    return create_backbone(name, image_size=SIZE, **options)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def moved_statistics(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {
        name
        for name, tensor in model.state_dict().items()
        if "running" in name and not torch.equal(tensor, before[name])
    }


# --- the protocol


def protocol(**training) -> Protocol:
    return Protocol(dataset="d", dataset_hash="0" * 64, image_size=(320, 416), training=TrainingRecipe(**training))


def test_protocols_from_before_there_was_freezing_keep_their_ids() -> None:
    plain = Protocol(dataset="any name", dataset_hash="0" * 64, image_size=(256, 256), code_version=1, training={})
    assert plain.id == "9f7a295bd2d3"
    changes = {"head": HeadConfig(convs=4), "code_version": 1}
    assert protocol(optimizer="adamw", epochs=3, ema_decay=0).model_copy(update=changes).id == "9fb6a5041750"
    assert protocol(freeze="all", backbone_lr_factor=1.0).id == protocol().id  # what is frozen has no rate


def test_how_much_is_frozen_and_how_fast_the_rest_learns_are_part_of_the_id() -> None:
    several = [protocol(), protocol(freeze="none"), protocol(freeze=2), protocol(freeze=3)]
    several += [protocol(freeze=3, backbone_lr_factor=1.0)]
    assert len({p.id for p in several}) == len(several)
    assert all(Protocol.model_validate_json(p.model_dump_json()).id == p.id for p in several)


@pytest.mark.parametrize("value", ["some", -1, 0, True, 3.0, "3", None, [3]])
def test_other_values_are_one_clear_error(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingRecipe(freeze=value)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("freeze",)
    assert "expected all, none or the last frozen level, e.g. freeze: 3" in problem["msg"]


@pytest.mark.parametrize(
    ("name", "freeze", "wanted"),
    [
        ("test_resnet", 7, "1, 2, 3, 4, all or none"),
        ("test_resnet", 5, "1, 2, 3, 4, all or none"),
        ("test_vit", 4, "all or none"),
    ],
)
def test_a_level_that_cannot_be_the_last_frozen_one_is_an_error(name: str, freeze: int, wanted: str) -> None:
    message = rf"^training\.freeze: expected {wanted} for backbone '{name}' with the maps C[\dC, ]+, got {freeze}$"
    with pytest.raises(InputError, match=message):
        split_backbone(make(name), freeze, SIZE)


# --- two parts are the whole


@pytest.mark.parametrize(
    ("name", "freeze", "options"),
    [
        *((name, 3, {}) for name in SPLIT),
        ("test_resnet", 2, {}),
        ("test_resnet", 4, {}),
        ("test_vit", 3, {"adapter": "taps"}),
        ("swin_tiny_patch4_window7_224", 3, {}),  # windows and NHWC
    ],
)
def test_prefix_and_suffix_are_the_backbone(name: str, freeze: int, options: dict[str, str]) -> None:
    backbone = make(name, **options)
    split = split_backbone(backbone, freeze, SIZE)
    assert split.reason == ""
    inputs = split.prefix.trunk(images())
    assert [spec.level for spec in split.prefix.trunk_features] == sorted({freeze, *range(3, freeze + 1)})
    for ours, whole in zip(split.suffix(inputs), backbone.trunk(images()), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)
    trained = sum(p.numel() for p in split.suffix.parameters() if p.requires_grad)
    assert 0 < trained < sum(p.numel() for p in backbone.model.parameters())


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_looks_further_back_is_not_split_and_says_so(name: str) -> None:
    backbone = make(name)
    split = split_backbone(backbone, 3, SIZE)
    assert split.reason.startswith(f"the part of {name} behind C3 does not run on its own (")
    (same,) = split.prefix.trunk(images())
    assert torch.equal(same, images())
    assert split.prefix.trunk_features == ()
    for ours, whole in zip(split.suffix([same]), backbone.trunk(images()), strict=True):
        assert torch.equal(ours, whole)


def test_everything_frozen_is_the_backbone_itself() -> None:
    backbone = make("test_resnet")
    split = split_backbone(backbone, "all", SIZE)
    assert split.prefix is backbone
    assert not list(split.suffix.parameters())


def test_the_backbone_is_left_as_it_was() -> None:
    backbone = make("test_resnet")
    before = copy.deepcopy(backbone.state_dict())
    for freeze in (3, "none"):
        suffix = split_backbone(backbone, freeze, SIZE).suffix
        for tensor in suffix.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_trained_weights_find_their_place_in_the_backbone() -> None:
    backbone = make("test_efficientnet")
    split = split_backbone(backbone, 3, SIZE)
    for parameter in split.suffix.parameters():
        parameter.data.mul_(1.5)
    inputs = split.prefix.trunk(images())
    unknown = backbone.load_state_dict(split.suffix.backbone.state_dict(), strict=False).unexpected_keys
    assert unknown == []
    for ours, whole in zip(split.suffix(inputs), backbone.trunk(images()), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=1e-5)


# --- what is trained


def gradients_by_hand(backbone: Backbone, trained: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], nn.Module]:
    """The truth: the plain model, the named parts set to be trained one by one."""
    model = copy.deepcopy(backbone.model).eval()
    for part in trained:
        model.get_submodule(part).train().requires_grad_(True)
    _, *maps = model.forward_intermediates(images(), indices=[1, 2, 3, 4], intermediates_only=True)
    sum(m.square().mean() for m in maps).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model


@pytest.mark.parametrize("freeze", [2, 3, 4])
def test_gradients_and_statistics_are_those_of_the_plain_model(freeze: int) -> None:
    backbone = make("test_resnet")
    split = split_backbone(backbone, freeze, SIZE)
    wanted, model = gradients_by_hand(backbone, tuple(f"layer{k}" for k in range(freeze, 5)))
    suffix = split.suffix.train()
    sum(m.square().mean() for m in suffix(split.prefix.trunk(images()))).backward()
    found = {name: p.grad for name, p in suffix.backbone.model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name])
    statistics = model.state_dict()
    left = {name: tensor for name, tensor in suffix.backbone.model.state_dict().items() if "running" in name}
    assert left
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, statistics[name])
        assert not torch.equal(tensor, backbone.model.state_dict()[name])


@pytest.mark.parametrize("freeze", [3, "none"])
def test_what_is_frozen_of_a_model_in_one_part_stays(freeze: int | str) -> None:
    backbone = make("hrnet_w18_small")
    before = copy.deepcopy(backbone.model.state_dict())
    suffix = split_backbone(backbone, freeze, SIZE).suffix.train()
    sum(m.square().mean() for m in suffix([images()])).backward()
    model = suffix.backbone.model
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    moved = moved_statistics(model, before)
    first = {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight"}
    if freeze == "none":
        assert first <= with_gradient
        assert "bn1.running_mean" in moved
    else:
        assert not first & with_gradient
        assert "bn1.running_mean" not in moved
        assert not any(name.startswith(("layer1", "stage2.0.branches.1")) for name in moved | with_gradient)
    assert any(name.startswith("stage4") for name in with_gradient)
    assert any(name.startswith("stage4") for name in moved)
    suffix.eval()
    assert not any(module.training for module in suffix.modules())


# --- the training


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageRecord, ...]:
    """Noise with a bright box in it."""
    folder, rng, found = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for k in range(8):
        pixels = rng.integers(0, 120, (*SIZE, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(0, 40, 2))
        pixels[y : y + 40, x : x + 48] += 120
        Image.fromarray(pixels).save(folder / f"{k}.png")
        box = np.array([[x, y, x + 48, y + 40]], np.float32)
        found.append(
            ImageRecord(
                id=k, path=folder / f"{k}.png", size=SIZE, boxes=box, labels=np.zeros(1, np.int64),
                areas=np.array([48 * 40], np.float32), crowd=np.zeros(1, np.bool_),
            )
        )  # fmt: skip
    return tuple(found)


def detector(backbone: Backbone) -> Detector:
    graph = create_graph("fpn", features=backbone.trunk_features, channels=16, out_levels=(3, 4, 5))
    with seeded(0):
        return Detector(build_neck(graph, backbone.trunk_features), 1, HeadConfig(convs=1))


def cached(prefix: Prefix, records: tuple[ImageRecord, ...], root: Path, **variant) -> FeatureCache:
    return FeatureCache.open_or_build(
        prefix, records, dataset_hash="d0", split="train", image_size=SIZE, root=root, mirror=True, variant=variant
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout"])
def test_training_on_kept_outputs_begins_as_training_on_images_does(
    name: str, records: tuple[ImageRecord, ...], tmp_path: Path
) -> None:
    backbone = make(name)
    split = split_backbone(backbone, 3, SIZE)
    # The other way: the whole model on images, frozen parts by the same rule, nothing kept.
    whole = copy.deepcopy(backbone)
    whole.model.requires_grad_(True)
    trained = {n for n, p in split.suffix.backbone.named_parameters() if p.requires_grad}
    for n, parameter in whole.named_parameters():
        parameter.requires_grad_(n in trained)
    still = [n for n, m in whole.model.named_modules() if not any(p.requires_grad for p in m.parameters())]
    ways = {
        "kept": (cached(split.prefix, records, tmp_path, **split.variant), split.suffix),
        "computed": (FeatureSource(split.prefix, records, image_size=SIZE, mirror=True), split.suffix),
        "whole": (FeatureSource(Prefix(backbone), records, image_size=SIZE, mirror=True), Suffix(whole, still)),
    }
    recipe = TrainingRecipe(epochs=2, batch_size=4, freeze=3, learning_rate=1e-3)
    curves = {}
    for way, (provider, suffix) in ways.items():
        result = train_detector(
            detector(backbone), provider, provider, recipe=recipe, seed=0, backbone=copy.deepcopy(suffix)
        )
        curves[way] = [loss for _, loss in result.curve]
    assert curves["computed"] == pytest.approx(curves["whole"], rel=1e-4)
    assert curves["kept"] == pytest.approx(curves["whole"], rel=5e-3)  # float16 on disk
    assert cached(split.prefix, records, tmp_path, **split.variant).hit
    assert not cached(split.prefix, records, tmp_path).hit  # the maps of the whole trunk are another entry


def test_both_parts_are_left_with_the_weights_that_were_evaluated(records: tuple[ImageRecord, ...]) -> None:
    backbone = make("test_resnet")
    split = split_backbone(backbone, 3, SIZE)
    provider = FeatureSource(split.prefix, records, image_size=SIZE, mirror=True)
    head, suffix = detector(backbone), copy.deepcopy(split.suffix)
    recipe = TrainingRecipe(epochs=3, batch_size=4, freeze=3, ema_decay=0.5)
    result = train_detector(head, provider, provider, recipe=recipe, seed=0, backbone=suffix)
    assert not suffix.training
    checkpoint = nn.ModuleDict({"detector": head, "backbone": suffix}).state_dict()
    fresh = nn.ModuleDict({"detector": detector(backbone), "backbone": copy.deepcopy(split.suffix)})
    assert repr(evaluate_detector(fresh["detector"], provider, backbone=fresh["backbone"])) != repr(result.ap)
    fresh.load_state_dict(checkpoint)
    assert repr(evaluate_detector(fresh["detector"], provider, backbone=fresh["backbone"])) == repr(result.ap)
    # Averaged too: the last weights are others.
    last = copy.deepcopy(split.suffix)
    plain = recipe.model_copy(update={"ema_decay": 0})
    train_detector(detector(backbone), provider, provider, recipe=plain, seed=0, backbone=last)
    assert not torch.equal(last.backbone.model.layer4[0].conv1.weight, suffix.backbone.model.layer4[0].conv1.weight)


@pytest.mark.parametrize("factor", [0.1, 1.0])
def test_the_backbone_learns_at_its_share_of_the_rate(records: tuple[ImageRecord, ...], factor: float) -> None:
    backbone = make("test_resnet")
    split = split_backbone(backbone, 3, SIZE)
    provider = FeatureSource(split.prefix, records, image_size=SIZE, mirror=True)
    head, suffix = detector(backbone), copy.deepcopy(split.suffix)
    before = copy.deepcopy([head.state_dict(), suffix.state_dict()])
    # One step of AdamW without decay moves each weight by the rate, which begins at 0.04 of its peak.
    recipe = TrainingRecipe(
        epochs=1,
        batch_size=8,
        optimizer="adamw",
        freeze=3,
        ema_decay=0,
        weight_decay=0,
        learning_rate=1e-2,
        backbone_lr_factor=factor,
    )
    train_detector(head, provider, provider, recipe=recipe, seed=0, backbone=suffix)

    def step(module: nn.Module, old: dict[str, torch.Tensor]) -> float:
        return max(float((p.detach() - old[n]).abs().max()) for n, p in module.named_parameters())

    assert step(head, before[0]) == pytest.approx(4e-4, rel=1e-2)
    assert step(suffix, before[1]) == pytest.approx(4e-4 * factor, rel=1e-2)


# --- on the bench


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    folder = write_synthetic(
        tmp_path_factory.mktemp("data"), train_images=8, val_images=4, image_size=SIZE, sides=(12, 64)
    )
    return load_coco(folder, name="tiny")


@pytest.mark.parametrize(
    ("name", "freeze", "kept"),
    [
        ("test_resnet", "all", "all"),
        ("test_resnet", 3, "up to C3"),
        ("test_resnet", "none", "nothing"),
        ("hrnet_w18_small", 4, "nothing"),
        ("test_vit", "none", "nothing"),
    ],
)
def test_a_bench_trains_what_the_protocol_says_and_tells_what_is_kept(
    dataset: DetectionDataset, tmp_path: Path, name: str, freeze: int | str, kept: str
) -> None:
    recipe = TrainingRecipe(epochs=1, batch_size=4, freeze=freeze)
    options = {"image_size": SIZE, "head": HeadConfig(convs=1), "training": recipe, "cache_root": tmp_path}
    bench = fb.EvaluationContext(dataset, **options)
    source = BackboneSource(name)
    backbone = bench.load_backbone(source)
    before = copy.deepcopy(backbone.state_dict())
    candidate = bench.candidate(source, create_graph("fpn", features=backbone.features, channels=16))
    first, again = bench.train(candidate, seed=0), bench.train(candidate, seed=0)
    assert first.curve == again.curve  # each training starts from the same weights
    assert all(torch.equal(tensor, before[n]) for n, tensor in backbone.state_dict().items())
    assert bench.cached(candidate.backbone) == kept
    assert any(tmp_path.rglob("*.npy")) == (kept != "nothing")
    told = [text for text in bench.warnings if text.endswith("runs on every batch, and nothing of it is cached")]
    assert len(told) == (kept == "nothing")
    if kept != "nothing":
        other = fb.EvaluationContext(dataset, **options)
        other.candidate(source, candidate.graph)
        other.train(candidate, seed=0)
        assert other.cache_hit(candidate.backbone)
        uncached = fb.EvaluationContext(dataset, **options, cache_gib=0)
        uncached.load_backbone(source)
        assert uncached.cached(candidate.backbone) == "nothing"
        assert uncached.train(candidate, seed=0).curve[0][1] == pytest.approx(first.curve[0][1], rel=1e-2)


def test_a_bench_refuses_a_level_that_the_backbone_lacks(dataset: DetectionDataset, tmp_path: Path) -> None:
    bench = fb.EvaluationContext(dataset, image_size=SIZE, training=TrainingRecipe(freeze=5), cache_root=tmp_path)
    with pytest.raises(InputError, match=r"freeze: expected .* got 5"):
        bench.load_backbone(BackboneSource("test_resnet"))
