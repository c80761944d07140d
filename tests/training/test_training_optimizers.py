"""Which weights which optimiser trains, and that a recipe with Muon is as exact as one with AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fpn_bench as fb
from fpn_bench.detection.detector import Detector
from fpn_bench.pyramid import FeatureSpec
from fpn_bench.training import HeadConfig, Protocol, TrainingRecipe
from fpn_bench.training.full_recipe import FullRecipe
from fpn_bench.training.optimizers import create_optimizer, orthogonalised_parameters
from fpn_bench.zoo import list_necks

SPECS = (FeatureSpec(3, 16, 8), FeatureSpec(4, 24, 16), FeatureSpec(5, 32, 32))
MUON = TrainingRecipe(optimizer="muon")


def make(family: str = "bifpn", **options) -> Detector:
    return Detector(fb.build_neck(fb.create_graph(family, SPECS, channels=16, **options)), 3, HeadConfig(convs=1))


@pytest.mark.parametrize("family", list_necks())
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_trained_weight_is_in_one_group(family: str, optimizer: str) -> None:
    detector, backbone = make(family), nn.Conv2d(3, 4, 3)
    groups = create_optimizer(detector, backbone, TrainingRecipe(optimizer=optimizer)).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for m in (detector, backbone) for p in m.parameters() if p.requires_grad})


def test_muon_trains_the_plain_convolutions_of_neck_and_head_alone() -> None:
    detector = make("bifpn", separable=True)
    names = {id(p): name for name, p in detector.named_parameters()}
    chosen = {names[id(p)] for p in orthogonalised_parameters(detector)}
    shapes = {name: p.shape for name, p in detector.named_parameters()}
    assert chosen
    assert all(len(shapes[name]) == 4 and min(shapes[name][:2]) > 1 for name in chosen)  # neither depthwise nor vectors
    assert not any(word in name for name in chosen for word in ("cls_logits", "bbox_reg", "bbox_ctrness"))
    assert any(name.startswith("head.classification_head.conv.") for name in chosen)


def test_the_backbone_stays_with_adamw_at_its_own_rate() -> None:
    backbone = nn.Conv2d(3, 4, 3)
    optimizer = create_optimizer(make(), backbone, MUON)
    (group,) = [g for g in optimizer.param_groups if any(p is backbone.weight for p in g["params"])]
    assert group["use_fallback"] is True
    assert group["lr"] == MUON.learning_rate * MUON.backbone_lr_factor


def test_an_update_of_muon_is_orthogonal() -> None:
    """The update of a [out, in] weight has all singular values near its rate, whatever the gradient's are."""
    detector = make()
    weight = next(p for p in orthogonalised_parameters(detector) if p.shape[2:] == (1, 1))
    before = weight.detach().clone()
    rest = TrainingRecipe(optimizer="muon", weight_decay=0.0, muon_learning_rate=0.5)
    optimizer = create_optimizer(detector, nn.Identity(), rest)
    generator = torch.Generator().manual_seed(0)
    weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()
    moved = (before - weight.detach()).flatten(1)
    scale = max(1.0, moved.shape[0] / moved.shape[1]) ** 0.5
    singular = torch.linalg.svdvals(moved) / (0.5 * scale)
    assert singular.min() > 0.6  # five steps of Newton and Schulz, in bfloat16
    assert singular.max() < 1.3
    gradient = torch.linalg.svdvals(weight.grad.flatten(1))
    assert gradient.max() / gradient.min() > 3  # so that the test can fail


def test_protocols_of_before_keep_their_ids() -> None:
    base = Protocol(dataset="x", dataset_hash="0" * 64, image_size=(64, 64), training={"epochs": 8})
    assert base.training.optimizer == "adamw"  # as recorded before it could be chosen
    assert base.id == "1131cbdd83c3"
    same = base.model_copy(update={"training": TrainingRecipe(optimizer="adamw", muon_learning_rate=0.5)})
    assert same.id == base.id  # of an optimiser that is not used
    assert base.model_copy(update={"training": MUON}).id != base.id


def test_a_full_training_takes_the_optimiser_over() -> None:
    full = FullRecipe.after(TrainingRecipe(optimizer="muon", muon_learning_rate=0.01))
    assert (full.optimizer, full.muon_learning_rate) == ("muon", 0.01)
