"""Backbone and FPN together under torch.compile and torch.export, for main families; all of these work."""

from typing import Any

import pytest
import torch
from torch import nn

from fpn_bench import build_neck, create_graph
from fpn_bench.backbones import create_backbone

SIZE = (96, 160)
NAMES = [
    "resnet18",
    "mobilenetv3_small_050",
    "tinynet_d",
    "convnext_atto",
    "regnetx_002",
    "hrnet_w18_small",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",  # levels made by an adapter
    "eva02_tiny_patch14_224",  # maps put on their level's grid
    "maxvit_pico_rw_256",  # built for the size
    "fastvit_s12",
    "pvt_v2_b0",
]


class Fused(nn.Module):
    """Backbone, then FPN."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = create_backbone(name, image_size=SIZE)
        graph = create_graph("fpn", self.backbone.features, channels=16)
        self.neck = build_neck(graph, self.backbone.features)

    def forward(self, images: torch.Tensor) -> Any:
        return self.neck(self.backbone(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiled_and_exported_give_the_same(name: str) -> None:
    model, images = Fused(name).eval(), torch.randn(1, 3, *SIZE)
    expected = model(images)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    exported = torch.export.export(model, (images,)).module()
    for run in (compiled, exported):
        for actual, wanted in zip(run(images), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-6)
