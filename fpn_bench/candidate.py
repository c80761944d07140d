"""A candidate: one detector that could be trained, as data with an identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from fpn_bench.graph import NeckGraph
from fpn_bench.pyramid import ImageSize
from fpn_bench.training.protocol import HeadConfig


@dataclass(frozen=True)
class BackboneId:
    """Which backbone with which weights: what tells two of them apart, not how they are found.

    Attributes:
        name: timm name.
        weights: `WeightsRecord.id`, e.g. ``"file:resnet50.safetensors#1a2b3c4d"``.
        levels: pyramid levels it hands over, finest first.
    """

    name: str
    weights: str
    levels: tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """Backbone, neck, head and input size. Two spellings of one network are one candidate.

    Attributes:
        backbone: which, with which weights.
        graph: the neck as data.
        head: the detection head.
        image_size: (height, width) of the network's input in pixels.
    """

    backbone: BackboneId
    graph: NeckGraph
    head: HeadConfig
    image_size: ImageSize

    @cached_property
    def id(self) -> str:
        """16 hex digits over everything, the neck by its canonical id."""
        data = {
            "backbone": [self.backbone.name, self.backbone.weights, list(self.backbone.levels)],
            "neck": self.graph.id,
            "head": self.head.model_dump(mode="json"),
            "image_size": list(self.image_size),
        }
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
