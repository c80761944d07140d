"""Backbones as candidates use them: loaded once, with everything that all candidates of one share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fpn_bench.backbones import Backbone
from fpn_bench.backbones.split import split_backbone
from fpn_bench.backbones.weights import WeightsRecord
from fpn_bench.candidates.candidate import BackboneId
from fpn_bench.graph import NeckGraph
from fpn_bench.latency import backbone_parts
from fpn_bench.profiling import Execution, count_macs, count_params
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.cache import FeatureProvider
from fpn_bench.training.protocol import Freeze
from fpn_bench.vocabulary import AdapterName


@dataclass(frozen=True)
class BackboneSource:
    """How a backbone is found.

    Attributes:
        name: timm name.
        weights: None (random), a file, ``"hub"`` or ``"pip:PACKAGE"``.
        levels: pyramid levels it hands to the neck.
        adapter: what makes those that the model lacks, see `fpn_bench.create_backbone`.
    """

    name: str
    weights: str | None = None
    levels: tuple[int, ...] = (3, 4, 5)
    adapter: AdapterName = "simple"


def known_as(weights: WeightsRecord, other_id: str | None) -> WeightsRecord:
    """The weights under the name in `other_id` if both have the same content, else unchanged. A file may have another
    name on another machine; its hash identifies it.
    """
    source, _, rest = (other_id or "").partition(":")
    name, mark, digest = rest.rpartition("#")
    if not mark or weights.sha256 is None or not weights.sha256.startswith(digest) or source not in ("file", "pip"):
        return weights
    return replace(weights, source=source, name=name)  # type: ignore[arg-type]  # one of the two above


class LoadedBackbone:
    """A backbone with its trunk's costs, sizes of maps and parts, and its features once they are asked for.

    The adapter belongs to the candidate's graph, where it is costed, trained and timed with the neck.

    Attributes:
        backbone: the module.
        split: its frozen part and the rest.
        identity: its name, weights, levels and adapter.
        params, macs: of the trunk, for one image.
        sizes: level -> (height, width) of the trunk's maps.
        features: of the training and the validation split, once they were asked for.
        variant: what the trunk's maps depend on beside name, weights and preprocessing.
    """

    def __init__(self, backbone: Backbone, adapter: str, freeze: Freeze, image_size: ImageSize) -> None:
        """Runs the trunk on one image."""
        self.backbone = backbone
        self.split = split_backbone(backbone, freeze, image_size)
        used = "none" if backbone.adapter is None else adapter
        self.identity = BackboneId(backbone.name, backbone.weights.id, backbone.levels, used)
        trunk = backbone_parts(backbone)["backbone"]
        self.params = count_params(trunk)
        image = torch.zeros(1, 3, *image_size)
        self.macs = count_macs(trunk, (image,))
        with torch.inference_mode():
            maps = backbone.trunk(image)
        self.sizes: dict[int, ImageSize] = {
            spec.level: (x.shape[-2], x.shape[-1]) for spec, x in zip(backbone.trunk_features, maps, strict=True)
        }
        self.features: tuple[FeatureProvider, FeatureProvider] | None = None
        self.variant: dict[str, Any] = dict(self.split.variant)
        if (padded := backbone.recipe.padded(image_size)) != image_size:
            self.variant["padded_size"] = list(padded)
        if self.identity.adapter == "taps":  # which depth a level is depends on how many there are
            self.variant["taps"] = [spec.level for spec in backbone.trunk_features]
        self._on_device: nn.Module | None = None

    @property
    def adapter_graph(self) -> NeckGraph | None:
        """What makes the levels that the trunk lacks."""
        return None if self.backbone.adapter is None else self.backbone.adapter.graph

    def on_device(self, execution: Execution) -> nn.Module:
        """A copy of the trunk as latency is measured on it, made once for all candidates."""
        if self._on_device is None:
            self._on_device = execution.place(_Trunk(self.backbone))
        return self._on_device

    def leave_device(self) -> None:
        """Free the device memory of `on_device`'s copy for a training."""
        self._on_device = None


class _Trunk(nn.Module):
    """A backbone without its adapter, which belongs to the candidate's graph."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone_parts(backbone)["backbone"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.backbone, Backbone)
        return self.backbone.trunk(images)
