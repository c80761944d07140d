"""MACs and parameters against published figures: torchvision's, EfficientDet's, timm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from effdet.config import get_efficientdet_config
from effdet.efficientdet import EfficientDet
from torch import Tensor, nn

from fpn_bench.profiling import PartProfile, count_macs, count_params, static_profile

_TIMM: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "timm_gmacs.json").read_text())["models"]


@pytest.mark.parametrize(
    "weights", ["ResNet50_Weights", "MobileNet_V3_Large_Weights", "Swin_T_Weights", "ViT_B_16_Weights"]
)
def test_classifiers_of_torchvision(weights: str) -> None:
    meta = torchvision.models.get_weight(f"{weights}.IMAGENET1K_V1").meta
    with torch.device("meta"):
        model = torchvision.models.get_model(weights.removesuffix("_Weights").lower()).eval()
    # Its own counter does not see the products of fused attention, hence not to the last digit.
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(meta["_ops"], abs=6e-4)
    assert count_params(model) == meta["num_params"]


class _Dense(nn.Module):
    """A detector of torchvision from a resized batch to the head's outputs; behind them nothing is multiplied."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.detector.backbone(images)
        outputs: dict[str, Tensor] = self.detector.head(list(maps.values()) if isinstance(maps, dict) else [maps])
        return outputs


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("retinanet_resnet50_fpn", 800),
        ("retinanet_resnet50_fpn_v2", 800),
        ("fcos_resnet50_fpn", 800),
        ("ssd300_vgg16", 300),
        ("ssdlite320_mobilenet_v3_large", 320),
    ],
)
def test_detectors_of_torchvision(name: str, size: int) -> None:
    """To the last digit. They were counted on one square image, which each detector resizes to its own `size`."""
    meta = torchvision.models.get_model_weights(name).DEFAULT.meta  # type: ignore[attr-defined]
    with torch.device("meta"):
        detector = torchvision.models.get_model(name, weights=None, weights_backbone=None).eval()
    macs = count_macs(_Dense(detector), torch.zeros(1, 3, size, size))
    assert round(macs / 1e9, 3) == meta["_ops"]


@pytest.mark.parametrize(
    ("name", "size", "gflops", "mparams"),
    [
        ("tf_efficientdet_d0", 512, 2.54, 3.9),
        ("tf_efficientdet_d1", 640, 6.10, 6.6),
        ("tf_efficientdet_d2", 768, 11.0, 8.1),
        ("tf_efficientdet_d3", 896, 24.9, 12.0),
    ],
)
def test_efficientdet(name: str, size: int, gflops: float, mparams: float) -> None:
    """Published (github.com/google/automl, efficientdet) is half of what TensorFlow's profiler counts.

    That is a MAC for each multiply-add, and half of one for each element-wise, pooling or reducing operation. Fused
    batch norm and resizing are not in it; they are what fvcore adds to the MACs. Its biases are, which are free here:
    what is compared is close, not the same.
    """
    config = get_efficientdet_config(name)
    with torch.device("meta"):
        detector = EfficientDet(config, pretrained_backbone=False).eval()
    profile = static_profile({"detector": (detector, torch.zeros(1, 3, size, size))})
    norms = profile.macs_fvcore_style - profile.macs
    assert (profile.macs + (profile.other_ops - norms) / 2) / 1e9 == pytest.approx(gflops, rel=0.01)
    assert profile.macs / 1e9 == pytest.approx(gflops, rel=0.02)
    assert profile.params / 1e6 == pytest.approx(mparams, abs=0.05)


def _profile(row: dict[str, Any]) -> PartProfile:
    with torch.device("meta"):
        model = timm.create_model(row["model"]).eval()
    return static_profile({"model": (model, torch.zeros(1, 3, row["image_size"], row["image_size"]))}).parts["model"]


def _check(row: dict[str, Any]) -> None:
    profile = _profile(row)
    if "differs" in row:
        assert profile.macs_fvcore_style / 1e9 > 1.01 * row["gmacs"], "it no longer differs"
    else:
        assert profile.macs_fvcore_style / 1e9 == pytest.approx(row["gmacs"], rel=0.01)
        # In some, norm layers had been folded into convolutions before.
        assert profile.params / 1e6 == pytest.approx(row["mparams"], rel=0.005, abs=0.005)


def test_enough_of_timms_table_is_compared() -> None:
    assert sum("differs" not in row for row in _TIMM) >= 50


@pytest.mark.parametrize("row", _TIMM[4::8], ids=lambda row: row["model"])
def test_timms_table_here_and_there(row: dict[str, Any]) -> None:
    _check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", _TIMM, ids=lambda row: row["model"])
def test_timms_table(row: dict[str, Any]) -> None:
    """Its newest, counted by fvcore."""
    _check(row)
